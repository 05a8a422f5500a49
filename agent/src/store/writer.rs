//! The thread that turns sealed batches into closed segments.
//!
//! Sealing never waits: batches go into the bounded list of `pending`, which queries see, and the thread is woken. A
//! segment enters the index in the same moment in which its batch leaves the list, so that no row is seen twice or not
//! at all. A disk that refuses is not an end: batches stay, the attempt is repeated, the change of state is logged once.
//! Never touches the pipeline; only the pipeline holds a [`Writer`].

use crate::accumulator::Stamp;
use crate::journal::{self, Frame, JournalName};
use crate::ledger::Accounts;
use crate::machine::give_back_memory;
use crate::names::Table;
use crate::priority::{self, Work};
use crate::segment::{self, Disk, Io, Segment};
use crate::store::journaling::{Journaling, Kept};
use crate::store::pending::{self, Begun, DropReason, Dropped, Item, Rotation};
use crate::store::{Held, State, Store, StoreError, folder};
use arrow::array::RecordBatch;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// Pause after an attempt that failed; a new seal ends it early.
const RETRY: Duration = Duration::from_secs(5);
const ENOSPC: i32 = 28;
const EDQUOT: i32 = 122;

/// What became of a seal; sent to its `done` without ever waiting.
#[derive(Clone, Debug)]
pub enum SealResult {
    /// Everything that was not dropped is durable.
    Stored { rotation: u64, files: Vec<Segment>, file_size_bytes: u64, total_bytes: u64, dropped_rows: u64 },
    /// An attempt failed. The batches are kept and tried again; another message follows.
    Waiting { rotation: u64, reason: String },
}

#[derive(Debug, thiserror::Error)]
pub enum ShutdownError {
    #[error(
        "{rows} rows are lost, since they could not be written before the end: {reason}; what was closed before is whole"
    )]
    Lost { rows: u64, reason: String },
    #[error("{rows} rows are in the journal alone: {reason}; the next start makes files of them")]
    Journaled { rows: u64, reason: String },
}

/// The rows of one flush.
pub struct Chunk<'a> {
    pub at: Stamp,
    /// What happened since the flush before.
    pub account: &'a Accounts,
    pub rows: Vec<(Table, RecordBatch)>,
    /// What each file of the run says of it.
    pub metadata: &'a [(String, String)],
}

/// A flush that queries see and that is not in the journal yet.
#[must_use = "give it to Writer::journal"]
pub struct Unjournaled {
    /// Number of the flush.
    pub seq: u64,
    at: Stamp,
    journal: JournalName,
    /// For the journal's first frame.
    metadata: Vec<(String, String)>,
    accounts: Accounts,
    given: BTreeMap<Table, u64>,
    rows: Vec<(Table, RecordBatch)>,
}

enum Call {
    Work,
    Stop,
}

pub struct Writer {
    store: Arc<Store>,
    wake: Sender<()>,
    stop: Sender<()>,
    stopped: Receiver<()>,
    thread: JoinHandle<()>,
    journaling: Journaling,
}

impl Writer {
    /// Starts the thread. `boot_id` goes into the names of the files.
    pub fn start(store: Arc<Store>, boot_id: &str) -> Result<Self, StoreError> {
        Self::start_on(store, boot_id, Arc::new(Disk))
    }

    /// [`Writer::start`] over other file operations.
    pub fn start_on(store: Arc<Store>, boot_id: &str, io: Arc<dyn Io>) -> Result<Self, StoreError> {
        store.state().boot = segment::boot_of(boot_id);
        // One token each is enough: the thread looks at the whole list when it wakes.
        let (wake, woken) = bounded(1);
        let (stop, stopping) = bounded(1);
        let (tell, stopped) = bounded(1);
        let inner = store.clone();
        let journaling = Journaling::start(&store, &io)?;
        let journals = journaling.removals();
        let thread = std::thread::Builder::new()
            .name("fgm-writer".to_owned())
            .spawn(move || {
                priority::of_this_thread(Work::Writing);
                run(&inner, io.as_ref(), &|name| journals.remove(name), &woken, &stopping);
                drop(journals);
                let _ = tell.try_send(());
            })
            .map_err(|source| StoreError::Thread { source })?;
        Ok(Self { store, wake, stop, stopped, thread, journaling })
    }

    /// Other bounds on what waits for the disk, so that a test reaches them: bytes of rows, and of frames before the journal.
    #[cfg(test)]
    pub fn set_bounds(&mut self, rows: usize, frames: usize) {
        self.store.state().pending = pending::Pending::new(rows);
        self.journaling.set_queue_bytes(frames);
    }

    /// Takes the rows of a flush: from now on queries see them. Never waits; the caller may hold a lock.
    pub fn keep(&self, chunk: &Chunk<'_>) -> Unjournaled {
        let rows = chunk.rows.iter().filter(|(_, b)| b.num_rows() > 0);
        let rows: Vec<_> = rows.map(|(t, b)| (*t, journal::slim(b))).collect();
        let mut state = self.store.state();
        let seq = state.take_seq();
        if state.held.journal.is_none() {
            state.held.journal = Some(JournalName { seq: state.take_seq(), boot: state.boot.clone() });
            state.held.metadata = chunk.metadata.to_vec();
        }
        let held = &mut state.held;
        held.accounts.add(chunk.account);
        for (table, batch) in &rows {
            *held.given.entry(*table).or_default() += batch.num_rows() as u64;
            held.bytes += pending::bytes(batch);
        }
        held.rows.extend(rows.iter().cloned());
        held.last_flush = seq;
        let flush = Unjournaled {
            seq,
            at: chunk.at,
            journal: held.journal.clone().unwrap_or_else(|| JournalName { seq, boot: String::new() }),
            metadata: held.metadata.clone(),
            accounts: held.accounts.clone(),
            given: held.given.clone(),
            rows,
        };
        state.make_room();
        flush
    }

    /// Frames a flush and gives it to the threads of the journal. Waits for no disk. `done` hears what became of it.
    pub fn journal(&self, flush: Unjournaled, done: Option<Sender<Kept>>) {
        let Unjournaled { seq, at, journal, metadata, accounts, given, rows } = flush;
        match (Frame { at, accounts: &accounts, given: &given, rows: &rows }).encode() {
            Ok(frame) => self.journaling.give(journal, &metadata, seq, frame, done),
            Err(error) => self.journaling.failed(&journal, seq, &error.to_string(), done.as_ref()),
        }
    }

    /// See [`Store::dropped`].
    pub fn dropped(&self) -> Vec<Dropped> {
        self.store.dropped()
    }

    /// See [`Store::unshipped`].
    pub fn unshipped(&self) -> Vec<(Table, u64)> {
        self.store.unshipped()
    }

    /// Bytes of the rows that were kept since the last rotation.
    pub fn held_bytes(&self) -> usize {
        self.store.state().held.bytes
    }

    /// Hands all rows that were kept over to become segments, and their journal to be removed then. Never waits.
    pub fn rotate(
        &self,
        rotation: u64,
        mut metadata: Vec<(String, String)>,
        done: Option<Sender<SealResult>>,
    ) {
        let mut state = self.store.state();
        let held = std::mem::take(&mut state.held);
        metadata.push(("fgm.ledger".to_owned(), held.accounts.to_json().to_string()));
        if let Some(name) = &held.journal {
            metadata.push((segment::JOURNAL.to_owned(), name.to_string()));
        }
        self.push(state, rotation, held, metadata, done);
    }

    /// Hands a rotation's rows over, past the journal. Never waits. Batches of one table become one file. `done` hears of
    /// each attempt.
    pub fn seal(
        &self,
        rotation: u64,
        batches: Vec<(Table, RecordBatch)>,
        metadata: Vec<(String, String)>,
        done: Option<Sender<SealResult>>,
    ) {
        let rows = batches.into_iter().filter(|(_, b)| b.num_rows() > 0).collect();
        self.push(self.store.state(), rotation, Held { rows, ..Held::default() }, metadata, done);
    }

    fn push(
        &self,
        mut state: MutexGuard<'_, State>,
        number: u64,
        held: Held,
        metadata: Vec<(String, String)>,
        done: Option<Sender<SealResult>>,
    ) {
        let mut tables: BTreeMap<Table, Vec<RecordBatch>> = BTreeMap::new();
        for (table, batch) in held.rows {
            tables.entry(table).or_default().push(batch);
        }
        let items = tables.into_iter().map(|(table, batches)| Item::new(state.take_seq(), table, batches));
        let items = items.collect();
        let (written, journal, last_flush) = (Vec::new(), held.journal, held.last_flush);
        let rotation =
            Rotation { number, items, written, dropped_rows: 0, metadata, done, journal, last_flush };
        state.pending.push(rotation);
        state.make_room();
        drop(state);
        // A full channel means that the thread has been told already.
        let _ = self.wake.try_send(());
    }

    /// Writes what waits, for `limit` at the most, and ends the thread.
    pub fn shutdown(self, limit: Duration) -> Result<(), ShutdownError> {
        let _ = self.stop.try_send(());
        let is_over = self.stopped.recv_timeout(limit).is_ok();
        if is_over {
            // It has said its last word: joining does not wait.
            let _ = self.thread.join();
        }
        let (_, rows, _) = self.store.state().pending.size();
        // The journal's threads end when the last removal is done; they are given what is left of the time, and a moment.
        let journal_is_over = is_over && self.journaling.finish(limit);
        if rows == 0 && is_over {
            return Ok(());
        }
        let slow = || format!("the disk took longer than {} s", limit.as_secs());
        // without the mend, for which it is too late
        let reason = self.store.degraded().map_or_else(slow, |why| {
            why.rsplit_once("; ").map_or(why.as_str(), |(reason, _)| reason).to_owned()
        });
        let is_journaled = self.store.journal_holds_what_waits() && (journal_is_over || !is_over);
        Err(if is_journaled {
            ShutdownError::Journaled { rows, reason }
        } else {
            ShutdownError::Lost { rows, reason }
        })
    }
}

fn run(
    store: &Store,
    io: &dyn Io,
    forget: &dyn Fn(JournalName),
    woken: &Receiver<()>,
    stopping: &Receiver<()>,
) {
    loop {
        let call = next_call(store, woken, stopping);
        write_all(store, io, forget);
        if matches!(call, Call::Stop) {
            store.write_index(io);
            return;
        }
    }
}

fn next_call(store: &Store, woken: &Receiver<()>, stopping: &Receiver<()>) -> Call {
    let has_work = !store.state().pending.is_empty();
    let pause = if has_work { RETRY } else { Duration::from_hours(1) };
    crossbeam_channel::select! {
        recv(stopping) -> _ => Call::Stop,
        recv(woken) -> m => if m.is_ok() { Call::Work } else { Call::Stop },
        default(pause) => Call::Work,
    }
}

/// Writes until nothing waits or an attempt fails.
fn write_all(store: &Store, io: &dyn Io, forget: &dyn Fn(JournalName)) {
    store.state().reserve.regain();
    loop {
        complete(store, forget);
        let begun = {
            let mut state = store.state();
            let only_evidence = state.reserve.is_given_up();
            state.pending.begin(only_evidence)
        };
        let Some(Begun { item, metadata: mut pairs, rotation }) = begun else { return };
        let boot = store.boot();
        pairs.push(("fgm.rotation".to_owned(), rotation.to_string()));
        let dir = folder(&store.dir, item.table);
        if store.dir.is_dir() {
            // somebody may have removed what is below; of that `write` tells what cannot be mended
            let _ = std::fs::create_dir_all(&dir);
        }
        let batches = match item.read() {
            Ok(batches) => store.named(batches),
            Err(error) => {
                degrade(store, &format!("cannot read back the journal: {error}"), error.raw_os_error());
                return;
            }
        };
        if batches.is_empty() {
            tracing::error!(
                table = item.table.as_str(),
                rows = item.rows,
                "the journal has lost rows that were left to it"
            );
            store.state().pending.refuse(item.seq, DropReason::JournalDamaged);
            continue;
        }
        match segment::write(io, &dir, item.table, &batches, &boot, item.seq, &pairs) {
            Ok(segment) => {
                let mut state = store.state();
                state.segments.push(segment.clone());
                state.pending.finish(segment);
                if !state.reserve.is_given_up() && state.degraded.take().is_some() {
                    tracing::info!(data_dir = %store.dir.display(), "the store can be written again");
                }
            }
            Err(error) if error.is_final() => {
                tracing::error!(table = item.table.as_str(), rows = item.rows, %error, "refused rows that no file can hold");
                store.state().pending.refuse(item.seq, DropReason::Refused);
            }
            Err(error) => {
                let is_full = matches!(error.os_error(), Some(ENOSPC | EDQUOT));
                degrade(store, &error.to_string(), error.os_error());
                // with the reserve evidence may be written at once
                if !(is_full && store.state().reserve.give_up()) {
                    return;
                }
            }
        }
    }
}

/// Logs and reports the rotations of which everything is closed. The sizes are read after the close.
fn complete(store: &Store, forget: &dyn Fn(JournalName)) {
    let (complete, total_bytes) = {
        let mut state = store.state();
        let total: u64 = state.segments.iter().map(|s| s.bytes).sum();
        (state.pending.take_complete(), total)
    };
    if !complete.is_empty() {
        // columns of a rotation, and what it took to encode them
        give_back_memory();
    }
    for rotation in complete {
        let file_size_bytes =
            rotation.written.iter().map(|s| size_of_file(&s.path).unwrap_or(s.bytes)).sum::<u64>();
        tracing::info!(rotation = rotation.number, file_size_bytes, total_bytes, "File rotation completed");
        if let Some(journal) = rotation.journal {
            forget(journal);
        }
        if let Some(done) = rotation.done {
            let _ = done.try_send(SealResult::Stored {
                rotation: rotation.number,
                files: rotation.written,
                file_size_bytes,
                total_bytes,
                dropped_rows: rotation.dropped_rows,
            });
        }
    }
}

fn size_of_file(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|m| m.len())
}

fn degrade(store: &Store, error: &str, os_error: Option<i32>) {
    let mend = match os_error {
        Some(ENOSPC | EDQUOT) => "; free space there, rows wait in memory meanwhile",
        _ => "; rows wait in memory while the attempt is repeated",
    };
    let reason = format!("{error}{mend}");
    let mut state = store.state();
    state.pending.fail();
    if state.degraded.is_none() {
        tracing::error!(data_dir = %store.dir.display(), reason, "the store cannot be written");
    }
    state.degraded = Some(reason.clone());
    for (rotation, done) in state.pending.waiting() {
        let _ = done.try_send(SealResult::Waiting { rotation, reason: reason.clone() });
    }
}
