//! The data folder: which closed segments there are, what waits to become one, and one consistent view of both.
//!
//! `recent/table=T/<start_us>-<boot>-<seq>.parquet` are closed segments; `v1/…` are hours of them, merged; `quarantine/` holds damaged ones with the
//! reason beside them; `journal/` holds rows that are in no segment yet; `LOCK` is held by the one agent that writes.
//! Opening is the recovery: temporary files of a crash are removed, damaged files are set aside (never deleted), segments that
//! a merged file has are removed, a journal becomes segments, all of it is logged. While an agent runs, [`Writer`] alone makes segments. No code here reads rows: `query` does. `pipeline` opens and seals, `viewer` and `cli` take views.

mod compacting;
mod index;
mod journaling;
mod look;
mod opening;
mod pending;
mod recovery;
mod removed;
mod reserve;
mod retaining;
mod scan;
mod shipped;
mod writer;

pub use compacting::{Compacted, Compaction, Rules, part};
pub use journaling::Kept;
pub use look::{Look, look};
pub use pending::{DropReason, Dropped, PENDING_BYTES};
pub use removed::Removed;
pub use reserve::free_bytes;
pub use retaining::Gone;
pub use shipped::{Hold, Shipped, name_below};
pub use writer::{Chunk, SealResult, ShutdownError, Unjournaled, Writer};

use crate::incident::Lost;
use crate::journal::{self, JournalName};
use crate::ledger::Accounts;
use crate::names::Table;
use crate::pods::Pods;
use crate::segment::{Io, Segment, SegmentError};
use arrow::array::RecordBatch;
use compacting::Doomed;
use pending::{InJournal, Pending};
use reserve::Reserve;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

const RECENT: &str = "recent";
const MERGED: &str = "v1";
const JOURNAL: &str = "journal";
const QUARANTINE: &str = "quarantine";
const LOCK: &str = "LOCK";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot create the data folder {}: {source}; create it, or name another with data_dir", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("the data folder {} is a file; name a folder with data_dir", path.display())]
    NotAFolder { path: PathBuf },
    #[error("cannot write into the data folder {}: {source}; give the agent's user the right to write there, or name another with data_dir", path.display())]
    NotWritable { path: PathBuf, source: io::Error },
    #[error("the data folder {} is in use by another agent (pid {holder}); stop that one, or name another with data_dir", path.display())]
    InUse { path: PathBuf, holder: String },
    #[error("{} is not a data folder of fgm: it has no folder {RECENT} and none {MERGED}; name the folder that data_dir names", path.display())]
    NoData { path: PathBuf },
    #[error("cannot read {}: {source}; run this as a user who may, or on a copy", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot start the writer thread: {source}")]
    Thread { source: io::Error },
}

/// Rows that are not in a closed segment.
#[derive(Clone, Debug)]
pub struct Loose {
    pub table: Table,
    /// Boot id as file names have it.
    pub boot: String,
    pub batch: RecordBatch,
}

/// Rows of one table and rotation that are in a journal and not in memory.
#[derive(Clone, Debug)]
pub struct Spilled {
    pub table: Table,
    pub boot: String,
    pub rows: u64,
    journal: Arc<File>,
}

impl Spilled {
    /// Reads them.
    pub fn read(&self) -> io::Result<Vec<Loose>> {
        let batches = journal::read_table(&pending::whole(&self.journal)?, self.table);
        let loose = |batch| Loose { table: self.table, boot: self.boot.clone(), batch };
        Ok(batches.into_iter().map(loose).collect())
    }
}

/// What the store held at one instant: no row twice, none missing.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub segments: Vec<Segment>,
    pub loose: Vec<Loose>,
    /// Rows that a crash left in the journal: on the disk, in no segment yet.
    pub journaled: Vec<Loose>,
    /// Rows of this run that are in its journals alone, since too much waits.
    pub spilled: Vec<Spilled>,
    /// Files that cannot be read, as losses.
    pub lost: Vec<Lost>,
    /// The last flush or seal that this view knows of.
    pub seq: u64,
    /// Metadata of the newest batches that wait.
    pub metadata: Vec<(String, String)>,
    /// While it lives, no file of this view is removed by the store that gave it.
    pub pin: Pin,
}

/// Holds files in their place.
pub type Pin = Option<Arc<()>>;

/// Rows that were kept since the last rotation.
#[derive(Default)]
struct Held {
    rows: Vec<(Table, RecordBatch)>,
    bytes: usize,
    /// Where they are on the disk; `None` before the first flush of a rotation.
    journal: Option<JournalName>,
    metadata: Vec<(String, String)>,
    accounts: Accounts,
    given: BTreeMap<Table, u64>,
    last_flush: u64,
}

/// A journal of this run whose rows are not all in segments.
#[derive(Default)]
struct OnDisk {
    /// To read it by, even when its name has gone.
    file: Option<Arc<File>>,
    /// The last flush that was written to it.
    written: u64,
    /// Some flush could not be.
    lacks_some: bool,
}

/// How the journal fares.
#[derive(Default)]
struct Health {
    degraded: Option<String>,
    /// Bytes of the file that is written just now.
    bytes: u64,
    /// Flushes that are in no journal.
    failed: u64,
}

struct State {
    segments: Vec<Segment>,
    lost: Vec<Lost>,
    held: Held,
    journal: Health,
    journals: BTreeMap<JournalName, OnDisk>,
    /// Rows of journals that the start could not make into segments.
    journaled: Vec<Loose>,
    pending: Pending,
    next_seq: u64,
    boot: String,
    degraded: Option<String>,
    /// Of the views that are given out now.
    pin: Arc<()>,
    /// Files that no new view has, oldest first.
    doomed: VecDeque<Doomed>,
    compaction: compacting::Totals,
    removed: Removed,
    reserve: Reserve,
    /// Files that the start knew from the index, and those that it had to open.
    believed: usize,
    opened: usize,
}

impl State {
    fn take_seq(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq - 1
    }

    fn spilled(&self) -> Vec<Spilled> {
        let items = self.pending.items().filter_map(|item| {
            let (table, boot, rows) = (item.table, self.boot.clone(), item.rows);
            Some(Spilled { table, boot, rows, journal: item.journal.clone()? })
        });
        items.collect()
    }

    /// Holds what waits to its bounds.
    fn make_room(&mut self) {
        let journals = &self.journals;
        self.pending.make_room(|rotation| {
            let Some(name) = &rotation.journal else { return InJournal::Never };
            match journals.get(name) {
                Some(j) if j.lacks_some => InJournal::Never,
                Some(OnDisk { file: Some(file), written, .. }) if *written >= rotation.last_flush => {
                    InJournal::Whole(file.clone())
                }
                _ => InJournal::NotYet,
            }
        });
    }
}

pub struct Store {
    dir: PathBuf,
    /// Held for the lifetime of the store; `None` when it was opened to read only.
    lock: Option<File>,
    state: Mutex<State>,
    /// Names for rows that were written before they were known.
    pods: OnceLock<Pods>,
    /// What retention leaves alone as long as it can.
    hold: OnceLock<Hold>,
}

impl Store {
    fn of(
        dir: &Path,
        lock: Option<File>,
        segments: Vec<Segment>,
        journaled: Vec<Loose>,
        lost: Vec<Lost>,
        highest_seq: u64,
        removed: Removed,
    ) -> Self {
        let state = State {
            segments,
            lost,
            held: Held::default(),
            journal: Health::default(),
            journals: BTreeMap::new(),
            journaled,
            pending: Pending::new(PENDING_BYTES),
            next_seq: highest_seq + 1,
            boot: "unknown".to_owned(),
            degraded: None,
            pin: Arc::default(),
            doomed: VecDeque::new(),
            compaction: compacting::Totals::default(),
            removed,
            reserve: Reserve::default(),
            believed: 0,
            opened: 0,
        };
        Self {
            dir: dir.to_owned(),
            lock,
            state: Mutex::new(state),
            pods: OnceLock::new(),
            hold: OnceLock::new(),
        }
    }

    /// One that nobody writes, of what lies elsewhere; `place` is its name in what is told of it.
    pub fn over(place: &Path, view: View) -> Arc<Self> {
        let View { segments, journaled, lost, seq, .. } = view;
        Arc::new(Self::of(place, None, segments, journaled, lost, seq, Removed::default()))
    }

    /// Where the writer finds names for rows that have none. Set once, before it is needed.
    pub fn set_pods(&self, pods: Pods) {
        let _ = self.pods.set(pods);
    }

    fn named(&self, batches: Vec<RecordBatch>) -> Vec<RecordBatch> {
        match self.pods.get() {
            Some(pods) => batches.into_iter().map(|batch| pods.fill(batch)).collect(),
            None => batches,
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn is_read_only(&self) -> bool {
        self.lock.is_none()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of the last flush or seal. When it is the same before and after the pipeline was asked for its rows in
    /// memory, those rows are not known here.
    pub fn sealed_seq(&self) -> u64 {
        self.state().next_seq - 1
    }

    /// Boot id of the running agent, as file names have it.
    pub fn boot(&self) -> String {
        self.state().boot.clone()
    }

    /// Closed segments and waiting batches, of one instant.
    pub fn view(&self) -> View {
        let state = self.state();
        let waiting = state.pending.items().flat_map(|i| i.batches.iter().map(|b| (i.table, b)));
        let held = state.held.rows.iter().map(|(table, batch)| (*table, batch));
        let loose = waiting.chain(held).map(|(table, batch)| Loose {
            table,
            boot: state.boot.clone(),
            batch: batch.clone(),
        });
        View {
            segments: state.segments.clone(),
            loose: loose.collect(),
            spilled: state.spilled(),
            journaled: state.journaled.clone(),
            lost: state.lost.clone(),
            seq: state.next_seq - 1,
            metadata: match state.held.metadata.as_slice() {
                [] => state.pending.newest_metadata(),
                of_held => of_held.to_vec(),
            },
            pin: Some(state.pin.clone()),
        }
    }

    /// Bytes of all closed segments.
    pub fn total_bytes(&self) -> u64 {
        self.state().segments.iter().map(|s| s.bytes).sum()
    }

    /// What retention has removed from the folder.
    pub fn removed(&self) -> Removed {
        self.state().removed.clone()
    }

    /// Keeps that much space for the evidence of incidents, 0 for none.
    pub fn reserve(&self, bytes: u64) {
        let reserve = Reserve::take(&self.dir, bytes);
        self.state().reserve = reserve;
    }

    /// Notes what is known of each closed file, for the next start.
    pub(crate) fn write_index(&self, io: &dyn Io) {
        // An input that is gone for the index must be gone for the disk.
        for table in Table::ALL {
            if let Err(error) = io.sync_dir(&folder(&self.dir, table)) {
                tracing::warn!(%error, "the index of segments is not written");
                return;
            }
        }
        let segments = self.state().segments.clone();
        if let Err(error) = index::write(&self.dir, segments.iter()) {
            tracing::warn!(%error, "the index of segments cannot be written; the next start opens each");
        }
    }

    /// Batches that the bound on waiting rows has cut so far.
    pub fn dropped(&self) -> Vec<Dropped> {
        self.state().pending.dropped()
    }

    /// Why nothing can be written just now.
    pub fn degraded(&self) -> Option<String> {
        self.state().degraded.clone()
    }

    /// Whether what waits to become a segment survives the end of the process.
    fn journal_holds_what_waits(&self) -> bool {
        let state = self.state();
        state.journal.degraded.is_none() && state.journal.failed == 0 && state.pending.is_journaled()
    }

    /// The store's part of `/api/status`.
    pub fn status(&self) -> Value {
        let state = self.state();
        let (batches, rows, bytes) = state.pending.size();
        let dropped: Vec<Value> = state
            .pending
            .dropped()
            .iter()
            .map(|d| json!({"table": d.table.as_str(), "reason": d.reason.as_str(), "rows": d.rows}))
            .collect();
        json!({
            "data_dir": self.dir.display().to_string(),
            "files": state.segments.len(),
            "bytes": state.segments.iter().map(|s| s.bytes).sum::<u64>(),
            "rows": state.segments.iter().map(Segment::rows_left).sum::<u64>(),
            "from_us": state.segments.iter().map(|s| s.from_us).min(),
            "to_us": state.segments.iter().map(|s| s.to_us).max(),
            "pending": {
                "batches": batches, "rows": rows, "bytes": bytes, "limit_bytes": PENDING_BYTES,
                "rows_in_journal_alone": state.pending.rows_in_journal_alone(),
            },
            "held": {
                "rows": state.held.rows.iter().map(|(_, b)| b.num_rows()).sum::<usize>(),
                "bytes": state.held.bytes,
            },
            "dropped": dropped,
            "lost": state.lost,
            "journal": {
                "bytes": state.journal.bytes,
                "failed_flushes": state.journal.failed,
                "degraded": state.journal.degraded,
            },
            "start": {"believed": state.believed, "opened": state.opened},
            "retention": {
                "files": state.removed.files,
                "bytes": state.removed.bytes,
                "reasons": state.removed.reasons,
                "rows": state.removed.rows,
                "unshipped_rows": state.removed.unshipped,
                "until_us": state.removed.until_us,
                "reserve_bytes": state.reserve.held(),
                "only_evidence_is_written": state.reserve.is_given_up(),
            },
            "compaction": state.compaction.to_json(&state.segments),
            "degraded": state.degraded.as_ref().or(state.journal.degraded.as_ref()),
        })
    }
}

fn folder(dir: &Path, table: Table) -> PathBuf {
    dir.join(RECENT).join(format!("table={}", table.as_str()))
}

fn damage(table: Table, path: &Path, error: &SegmentError) -> Lost {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // How many rows it held stood in the footer that cannot be read: 0 means "not known".
    let what = if matches!(error, SegmentError::Damaged { .. }) { "damaged" } else { "unreadable" };
    Lost { table: table.as_str().to_owned(), reason: format!("{what} segment {name}"), rows: 0 }
}

/// Moves a damaged file into `quarantine/`, with the reason beside it.
fn set_aside(dir: &Path, table: Table, path: &Path, error: &SegmentError) {
    let name = format!("{}-{}", table.as_str(), path.file_name().unwrap_or_default().to_string_lossy());
    match aside(&dir.join(QUARANTINE), &name, path, &error.to_string()) {
        Ok(to) => {
            tracing::error!(path = %path.display(), to = %to.display(), %error, "set a damaged segment aside");
        }
        Err(io) => {
            tracing::error!(path = %path.display(), %error, %io, "cannot set a damaged segment aside");
        }
    }
}

fn aside(quarantine: &Path, name: &str, path: &Path, why: &str) -> io::Result<PathBuf> {
    // An earlier file of that name must not be overwritten: nothing damaged is ever deleted.
    let mut to = quarantine.join(name);
    let mut n = 1;
    while to.exists() {
        to = quarantine.join(format!("{name}.{n}"));
        n += 1;
    }
    fs::rename(path, &to)?;
    let mut reason = to.clone().into_os_string();
    reason.push(".reason.txt");
    fs::write(PathBuf::from(reason), format!("{why}\n"))?;
    Ok(to)
}
