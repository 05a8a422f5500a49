//! What retention has removed from a data folder, in `removed.json`: how much of each table, and what the ledger said in files that are gone,
//! so that the account of the folder stays exact. Written before anything goes, with the names of what is about to go: these
//! files count nowhere from then on, and a start removes what a crash left of them.

use crate::ledger::Accounts;
use crate::names::Table;
use crate::retention::Reason;
use crate::segment::{self, Io, Segment, SegmentError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const NAME: &str = "removed.json";

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Removed {
    pub files: u64,
    pub bytes: u64,
    /// Files by reason.
    pub reasons: BTreeMap<String, u64>,
    /// Rows by table.
    pub rows: BTreeMap<String, u64>,
    /// Rows by table that the bucket never got: these the table `ledger` has, as lost by `ship_backlog`.
    pub unshipped: BTreeMap<String, u64>,
    /// Of each table, the end of the newest file that went: up to there rows are missing.
    pub until_us: BTreeMap<String, i64>,
    /// The sum of the rows of `ledger` that went.
    ledger: Value,
    /// Below the data folder, of what may be there still.
    removing: BTreeSet<String>,
}

impl Removed {
    /// Nothing when there is no such file.
    ///
    /// # Errors
    /// Why it cannot be understood.
    pub fn read(dir: &Path) -> Result<Self, String> {
        match fs::read(dir.join(NAME)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| e.to_string()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e.to_string()),
        }
    }

    pub fn path(dir: &Path) -> PathBuf {
        dir.join(NAME)
    }

    pub fn ledger(&self) -> Accounts {
        Accounts::from_json(&self.ledger)
    }

    pub fn is_gone(&self, dir: &Path, path: &Path) -> bool {
        path.strip_prefix(dir).ok().and_then(Path::to_str).is_some_and(|p| self.removing.contains(p))
    }

    pub fn removing(&self, dir: &Path) -> Vec<PathBuf> {
        self.removing.iter().map(|r| dir.join(r)).collect()
    }

    /// Counts a file that is about to go.
    ///
    /// # Errors
    /// Its rows of the ledger cannot be read; then it has to stay.
    pub fn note(&mut self, dir: &Path, s: &Segment, reason: &str) -> Result<(), String> {
        if s.table == Table::Ledger {
            let mut sum = self.ledger();
            for rows in segment::rows(&s.path)? {
                sum.add(&Accounts::of_rows(&s.counted(&rows)?));
            }
            self.ledger = sum.to_json();
        }
        let table = s.table.as_str();
        self.files += 1;
        self.bytes += s.bytes;
        *self.reasons.entry(reason.to_owned()).or_default() += 1;
        let is_unshipped = reason == Reason::ShipBacklog.as_str() && s.table != Table::Ledger;
        let rows = if is_unshipped { &mut self.unshipped } else { &mut self.rows };
        *rows.entry(table.to_owned()).or_default() += s.rows_left();
        let until = self.until_us.entry(table.to_owned()).or_insert(s.to_us);
        *until = s.to_us.max(*until);
        self.removing.extend(s.path.strip_prefix(dir).ok().and_then(|p| p.to_str()).map(str::to_owned));
        Ok(())
    }

    /// Puts it on the disk, without the names of what is gone by now.
    pub fn write(&mut self, io: &dyn Io, dir: &Path) -> Result<(), SegmentError> {
        self.removing.retain(|r| dir.join(r).exists());
        let path = dir.join(NAME);
        let own = dir.join(format!("{NAME}.tmp"));
        let fail = |step| {
            let path = path.clone();
            move |source| SegmentError::Io { step, path, source }
        };
        let mut file = io.create(&own).map_err(fail("cannot create"))?;
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        file.write_all(&text).map_err(fail("cannot write"))?;
        io.sync(&file).map_err(fail("cannot fsync"))?;
        io.rename(&own, &path).map_err(fail("cannot rename to"))?;
        io.sync_dir(dir).map_err(fail("cannot fsync the folder of"))
    }
}
