//! The thread that turns sealed batches into closed segments.
//!
//! Sealing never waits: batches go into the bounded list of `pending`, which queries see, and the thread is woken. A
//! segment enters the index in the same moment in which its batch leaves the list, so that no row is seen twice or not
//! at all. A disk that refuses is not an end: batches stay, the attempt is repeated, the change of state is logged once.
//! Never touches the pipeline; only the pipeline holds a [`Writer`].

use crate::names::Table;
use crate::segment::{self, Disk, Io, Segment, SegmentError};
use crate::store::pending::{Begun, Item, Rotation};
use crate::store::{Store, StoreError, folder};
use arrow::array::RecordBatch;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
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
#[error(
    "{rows} rows are lost, since they could not be written before the end: {reason}; what was closed before is whole"
)]
pub struct ShutdownError {
    pub rows: u64,
    pub reason: String,
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
        let thread = std::thread::Builder::new()
            .name("fgm-writer".to_owned())
            .spawn(move || {
                run(&inner, io.as_ref(), &woken, &stopping);
                let _ = tell.try_send(());
            })
            .map_err(|source| StoreError::Thread { source })?;
        Ok(Self { store, wake, stop, stopped, thread })
    }

    /// Hands a rotation's rows over. Never waits. Batches of one table become one file. `done` hears of each attempt.
    pub fn seal(
        &self,
        rotation: u64,
        batches: Vec<(Table, RecordBatch)>,
        metadata: Vec<(String, String)>,
        done: Option<Sender<SealResult>>,
    ) {
        let mut tables: BTreeMap<Table, Vec<RecordBatch>> = BTreeMap::new();
        for (table, batch) in batches {
            if batch.num_rows() > 0 {
                tables.entry(table).or_default().push(batch);
            }
        }
        {
            let mut state = self.store.state();
            let mut items = Vec::new();
            for (table, batches) in tables {
                items.push(Item::new(state.next_seq, table, batches));
                state.next_seq += 1;
            }
            let written = Vec::new();
            state.pending.push(Rotation {
                number: rotation,
                items,
                written,
                dropped_rows: 0,
                metadata,
                done,
            });
        }
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
        if rows == 0 && is_over {
            return Ok(());
        }
        let slow = || format!("the disk took longer than {} s", limit.as_secs());
        // without the mend, for which it is too late
        let reason = self.store.degraded().map_or_else(slow, |why| {
            why.rsplit_once("; ").map_or(why.as_str(), |(reason, _)| reason).to_owned()
        });
        Err(ShutdownError { rows, reason })
    }
}

fn run(store: &Store, io: &dyn Io, woken: &Receiver<()>, stopping: &Receiver<()>) {
    loop {
        let call = next_call(store, woken, stopping);
        write_all(store, io);
        if matches!(call, Call::Stop) {
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
fn write_all(store: &Store, io: &dyn Io) {
    loop {
        complete(store);
        let begun = store.state().pending.begin();
        let Some(Begun { item, metadata: mut pairs, rotation }) = begun else { return };
        let boot = store.boot();
        pairs.push(("fgm.rotation".to_owned(), rotation.to_string()));
        let dir = folder(&store.dir, item.table);
        match segment::write(io, &dir, item.table, &item.batches, &boot, item.seq, &pairs) {
            Ok(segment) => {
                let mut state = store.state();
                state.segments.push(segment.clone());
                state.pending.finish(segment);
                if state.degraded.take().is_some() {
                    tracing::info!(data_dir = %store.dir.display(), "the store can be written again");
                }
            }
            Err(error) if error.is_final() => {
                tracing::error!(table = item.table.as_str(), rows = item.rows, %error, "refused rows that no file can hold");
                store.state().pending.refuse(item.seq);
            }
            Err(error) => {
                degrade(store, &error);
                return;
            }
        }
    }
}

/// Logs and reports the rotations of which everything is closed. The sizes are read after the close.
fn complete(store: &Store) {
    let (complete, total_bytes) = {
        let mut state = store.state();
        let total: u64 = state.segments.iter().map(|s| s.bytes).sum();
        (state.pending.take_complete(), total)
    };
    for rotation in complete {
        let file_size_bytes =
            rotation.written.iter().map(|s| size_of_file(&s.path).unwrap_or(s.bytes)).sum::<u64>();
        tracing::info!(rotation = rotation.number, file_size_bytes, total_bytes, "File rotation completed");
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

fn degrade(store: &Store, error: &SegmentError) {
    let mend = match error.os_error() {
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
