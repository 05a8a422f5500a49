//! What a crash left in the journal: as segments when the folder is opened to write, as rows to look at otherwise.
//!
//! A segment names the journal that its rows were in, and each table of a journal becomes one segment, so that whatever
//! instant a crash chose, of a recovery too, each (journal, table) is either stored or still to be read: never both,
//! never neither. A journal goes when all its tables are stored; one with damage in it is set aside instead. Recovery ends
//! the journal's account: what the crash kept from being closed gets rows in `ledger`, what is missing is lost there.

use crate::accumulator::{NodeNames, Pending};
use crate::incident::Lost;
use crate::journal::{self, Contents, JournalName};
use crate::ledger::Accounts;
use crate::names::Table;
use crate::schema;
use crate::segment::{self, Io, JOURNAL as TAG, Segment};
use crate::store::{JOURNAL, Loose, QUARANTINE, StoreError, aside, folder};
use arrow::array::RecordBatch;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A row that was given to the journal and is not in it.
const MISSING: &str = "journal_damaged";

/// Journals of a data folder, oldest first.
pub fn journals(dir: &Path) -> Result<Vec<(JournalName, PathBuf)>, StoreError> {
    let folder = dir.join(JOURNAL);
    let read = |source| StoreError::Read { path: folder.clone(), source };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(read(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(read)?.path();
        let name = path.file_name().and_then(|n| n.to_str()).and_then(JournalName::parse);
        found.extend(name.map(|name| (name, path)));
    }
    found.sort();
    Ok(found)
}

/// All rows of a journal, those that end its account among them, without the tables that are in a segment already.
fn tables(name: &JournalName, contents: &Contents, segments: &[Segment]) -> Vec<(Table, Vec<RecordBatch>)> {
    let tag = name.to_string();
    let is_stored = |table| segments.iter().any(|s| s.table == table && s.is_of_journal(&tag));
    let mut all = Vec::new();
    for table in Table::ALL {
        let mut rows = contents.of(table);
        if table == Table::Ledger {
            rows.extend(closing(contents, &account(contents)));
        }
        if !rows.is_empty() && !is_stored(table) {
            all.push((table, rows));
        }
    }
    all
}

/// The account of all that the journal was given, with what is missing as lost.
fn account(contents: &Contents) -> Accounts {
    let mut all = contents.last.as_ref().map(|l| l.accounts.clone()).unwrap_or_default();
    for (table, rows) in contents.missing() {
        if table != Table::Ledger {
            all.lost_later(table, MISSING, rows);
        }
    }
    all
}

/// The rows of the ledger that the crash kept from being written.
fn closing(contents: &Contents, account: &Accounts) -> Option<RecordBatch> {
    let last = contents.last.as_ref()?;
    let mut open = account.clone();
    contents.of(Table::Ledger).iter().for_each(|closed| open.subtract(&Accounts::of_rows(closed)));
    let value = |key| contents.value(key).unwrap_or_default().to_owned();
    let names = NodeNames {
        cluster: Some(value("fgm.cluster")).filter(|c| !c.is_empty()),
        node: value("fgm.node"),
        boot_id: value("fgm.boot_id"),
    };
    let ledger = open.rows(last.at);
    if ledger.is_empty() {
        return None;
    }
    Pending { ledger, ..Pending::default() }.batch(Table::Ledger, &names).ok()
}

/// The rows of a journal of a later version, which stays for the program that can read it.
fn newer(name: &JournalName, contents: &Contents) -> Vec<Lost> {
    let reason = format!("journal {name}: {}", schema::newer(contents.schema));
    let given = contents.last.iter().flat_map(|l| &l.given);
    given.map(|(t, n)| Lost { table: t.as_str().to_owned(), reason: reason.clone(), rows: *n }).collect()
}

/// What is known to be missing by table; of a last frame that is damaged nobody knows how much that was.
fn losses(name: &JournalName, contents: &Contents) -> Vec<Lost> {
    let reason = format!("damaged journal {name}");
    let lost =
        |(table, rows): (Table, u64)| Lost { table: table.as_str().to_owned(), reason: reason.clone(), rows };
    let missing: Vec<Lost> = contents.missing().into_iter().map(lost).collect();
    if missing.is_empty() && contents.damaged > 0 { vec![lost((Table::Samples, 0))] } else { missing }
}

/// What is in the journals of a folder and in none of its segments. Read the journals before the segments: a running agent
/// may close one meanwhile.
pub struct Reading(Vec<(JournalName, Contents)>);

impl Reading {
    pub fn of(dir: &Path) -> Result<Self, StoreError> {
        let mut all = Vec::new();
        for (name, path) in journals(dir)? {
            match fs::read(&path) {
                Ok(bytes) => all.push((name, journal::read(&bytes))),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(StoreError::Read { path, source }),
            }
        }
        Ok(Self(all))
    }

    pub fn newest_metadata(&self) -> Vec<(String, String)> {
        self.0.last().map(|(_, contents)| contents.metadata.clone()).unwrap_or_default()
    }

    pub fn rows(self, segments: &[Segment]) -> (Vec<Loose>, Vec<Lost>) {
        let (mut rows, mut lost) = (Vec::new(), Vec::new());
        for (name, contents) in &self.0 {
            if contents.is_newer() {
                lost.extend(newer(name, contents));
                continue;
            }
            for (table, batches) in tables(name, contents, segments) {
                let loose = |batch| Loose { table, boot: name.boot.clone(), batch };
                rows.extend(batches.into_iter().map(loose));
            }
            lost.extend(losses(name, contents));
        }
        (rows, lost)
    }
}

/// The outcome of a recovery.
#[derive(Default)]
pub struct Recovered {
    /// Rows of journals that could not be made into segments now; the next start tries again.
    pub left: Vec<Loose>,
    pub lost: Vec<Lost>,
    pub highest_seq: u64,
}

/// Makes segments of all left-over journals.
pub fn recover(
    io: &dyn Io,
    dir: &Path,
    segments: &mut Vec<Segment>,
    highest_seq: u64,
) -> Result<Recovered, StoreError> {
    let found = journals(dir)?;
    let newest = found.iter().map(|(name, _)| name.seq).max().unwrap_or(0);
    let mut out = Recovered { highest_seq: highest_seq.max(newest), ..Recovered::default() };
    for (name, path) in found {
        let contents = match fs::read(&path) {
            Ok(bytes) => journal::read(&bytes),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "left out a journal that cannot be read");
                let reason = format!("unreadable journal {name}");
                out.lost.push(Lost { table: Table::Samples.as_str().to_owned(), reason, rows: 0 });
                continue;
            }
        };
        if contents.is_newer() {
            tracing::error!(path = %path.display(), reason = schema::newer(contents.schema), "left out a journal");
            out.lost.extend(newer(&name, &contents));
            continue;
        }
        out.lost.extend(losses(&name, &contents));
        let before = segments.len();
        match store(io, dir, &name, &contents, segments, &mut out.highest_seq) {
            Ok(()) => {
                let rows: u64 = segments[before..].iter().map(|s| s.rows).sum();
                let Contents { frames, torn, damaged, .. } = &contents;
                tracing::warn!(journal = %name, frames, rows, torn, damaged, "recovered what a crash left in the journal");
                remove(io, dir, &name, &path, &contents);
            }
            Err(error) => {
                tracing::error!(journal = %name, %error, "a journal cannot be made into segments now; it stays");
                for (table, batches) in tables(&name, &contents, segments) {
                    let loose = |batch| Loose { table, boot: name.boot.clone(), batch };
                    out.left.extend(batches.into_iter().map(loose));
                }
            }
        }
    }
    Ok(out)
}

fn store(
    io: &dyn Io,
    dir: &Path,
    name: &JournalName,
    contents: &Contents,
    segments: &mut Vec<Segment>,
    seq: &mut u64,
) -> Result<(), segment::SegmentError> {
    let mut metadata = contents.metadata.clone();
    metadata.push((TAG.to_owned(), name.to_string()));
    metadata.push(("fgm.recovered".to_owned(), "true".to_owned()));
    metadata.push(("fgm.ledger".to_owned(), account(contents).to_json().to_string()));
    for (table, batches) in tables(name, contents, segments) {
        *seq += 1;
        match segment::write(io, &folder(dir, table), table, &batches, &name.boot, *seq, &metadata) {
            Ok(segment) => segments.push(segment),
            // no later attempt can do better, and the journal is kept aside
            Err(error) if error.is_final() => {
                tracing::error!(journal = %name, table = table.as_str(), %error, "rows of a journal fit no table");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn remove(io: &dyn Io, dir: &Path, name: &JournalName, path: &Path, contents: &Contents) {
    let result = if contents.damaged == 0 {
        io.remove(path)
    } else {
        let reason =
            format!("{} bytes of it are damaged; every whole frame of it was read", contents.damaged);
        aside(&dir.join(QUARANTINE), &name.file_name(), path, &reason).map(|to| {
            tracing::error!(path = %path.display(), to = %to.display(), reason, "set a damaged journal aside");
        })
    };
    if let Err(error) = result {
        // Its tables are stored, so that it costs a look at each start and nothing else.
        tracing::warn!(path = %path.display(), %error, "a journal whose rows are stored cannot be removed");
    }
}
