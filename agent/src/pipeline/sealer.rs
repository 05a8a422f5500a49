//! The thread between the loop and the store: makes Arrow batches of what the loop hands over, gives them to the journal,
//! at a rotation to the writer, and announces incidents once their rows are on disk.
//!
//! The loop must not spend its time on columns, and a query must find each row exactly once on its way: rows are in
//! `Moving` until the moment in which the store has them, under one lock. Waits for no disk.

use super::shared::Shared;
use crate::accumulator::{NodeNames, Pending, Stamp};
use crate::incident::Incident;
use crate::ledger::Accounts;
use crate::names::Table;
use crate::pods::Pods;
use crate::priority::{self, Work};
use crate::retention::Reason;
use crate::store::{Chunk, DropReason, Kept, SealResult, ShutdownError, Writer};
use arrow::array::RecordBatch;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long the end of a run may take to write its last rows.
const SHUTDOWN: Duration = Duration::from_secs(20);
/// Rows kept since the last rotation beyond this want one before it is due.
const MAX_HELD_BYTES: usize = 18 << 20;

/// Rows that the loop gave away.
pub struct Job {
    pub pending: Arc<Pending>,
    pub at: Stamp,
    /// What happened since the job before.
    pub account: Accounts,
    /// The rotation that ends with these rows.
    pub rotation: Option<u64>,
    pub clock_offset_ns: i64,
}

/// What the loop and the thread share: rows given away and not yet known to the store, and what the thread has to say.
#[derive(Clone, Default)]
pub struct Moving(Arc<Way>);

#[derive(Default)]
struct Way {
    rows: Mutex<Vec<Arc<Pending>>>,
    rotation_wanted: AtomicBool,
    lost: Mutex<Vec<(Table, &'static str, u64)>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Moving {
    pub fn rows(&self) -> Vec<Arc<Pending>> {
        lock(&self.0.rows).clone()
    }

    /// Jobs that the thread has not come to. When it is behind, fewer and larger ones are less work.
    pub fn jobs(&self) -> usize {
        lock(&self.0.rows).len()
    }

    /// Whether a rotation is needed before its time. Asked for once.
    pub fn wants_rotation(&self) -> bool {
        self.0.rotation_wanted.swap(false, Ordering::Relaxed)
    }

    fn want_rotation(&self) {
        self.0.rotation_wanted.store(true, Ordering::Relaxed);
    }

    /// As if so many jobs were before the thread.
    #[cfg(test)]
    pub fn hold(&self, jobs: usize) {
        *lock(&self.0.rows) = (0..jobs).map(|_| Arc::default()).collect();
    }

    pub(super) fn note_lost(&self, table: Table, reason: &'static str, rows: u64) {
        lock(&self.0.lost).push((table, reason, rows));
    }

    /// Rows that were given away and will be in no file. Given out once.
    pub fn take_lost(&self) -> Vec<(Table, &'static str, u64)> {
        std::mem::take(&mut lock(&self.0.lost))
    }
}

pub struct Sealer {
    jobs: Sender<Job>,
    moving: Moving,
    thread: JoinHandle<anyhow::Result<()>>,
}

/// What the thread needs.
pub struct Setup {
    pub writer: Writer,
    pub names: NodeNames,
    /// Metadata that is the same in each segment of the run.
    pub metadata: Vec<(String, String)>,
    pub shared: Arc<Shared>,
    /// Names for the rows.
    pub pods: Pods,
    /// Rows of which the ledger has it that they went before they were shipped.
    pub unshipped: BTreeMap<Table, u64>,
}

impl Sealer {
    pub fn start(setup: Setup) -> std::io::Result<Self> {
        let (jobs, todo) = unbounded();
        let moving = Moving::default();
        let at_work = AtWork::new(setup, moving.clone());
        let thread =
            std::thread::Builder::new().name("fgm-sealer".to_owned()).spawn(move || at_work.run(&todo))?;
        Ok(Self { jobs, moving, thread })
    }

    pub fn moving(&self) -> Moving {
        self.moving.clone()
    }

    /// Takes a job. Never waits.
    ///
    /// # Errors
    /// The thread has ended before its time, which is a fault of the program: nothing would be written any more.
    pub fn give(&self, job: Job) -> anyhow::Result<()> {
        lock(&self.moving.0.rows).push(job.pending.clone());
        self.jobs.send(job).map_err(|_| {
            anyhow::anyhow!("the sealer thread has ended, no row can be written any more; start the agent again and report this")
        })
    }

    /// Writes what is left and ends.
    pub fn finish(self) -> anyhow::Result<()> {
        drop(self.jobs);
        self.thread.join().map_err(|_| anyhow::anyhow!("the sealer thread panicked"))?
    }
}

struct AtWork {
    setup: Setup,
    moving: Moving,
    kept: (Sender<Kept>, Receiver<Kept>),
    stored: (Sender<SealResult>, Receiver<SealResult>),
    /// Incidents that are not on disk for certain, by the flush that they are in.
    unannounced: BTreeMap<u64, Vec<Incident>>,
    /// The last flush of each rotation that is not stored yet.
    rotations: BTreeMap<u64, u64>,
    /// A rotation was asked for, and the job that brings it has not come yet.
    asked: bool,
    /// Drops that were told to the loop.
    dropped: BTreeMap<(Table, DropReason), u64>,
}

impl AtWork {
    fn new(setup: Setup, moving: Moving) -> Self {
        let (kept, stored) = (unbounded(), unbounded());
        let (unannounced, rotations, dropped) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { setup, moving, kept, stored, unannounced, rotations, asked: false, dropped }
    }

    fn run(mut self, todo: &Receiver<Job>) -> anyhow::Result<()> {
        priority::of_this_thread(Work::Writing);
        let (kept, stored) = (self.kept.1.clone(), self.stored.1.clone());
        loop {
            crossbeam_channel::select! {
                recv(todo) -> job => match job {
                    Ok(job) => self.flush(&job),
                    Err(_) => break,
                },
                recv(kept) -> outcome => if let Ok(outcome) = outcome {
                    self.note_kept(&outcome);
                },
                recv(stored) -> result => if let Ok(result) = result {
                    self.note_stored(&result);
                },
            }
        }
        let Setup { writer, shared, .. } = self.setup;
        let outcome = writer.shutdown(SHUTDOWN);
        for seq in
            kept.try_iter().filter_map(|k| if let Kept::Durable { seq } = k { Some(seq) } else { None })
        {
            announce(&shared, self.unannounced.remove(&seq));
        }
        for result in stored.try_iter() {
            let SealResult::Stored { rotation, .. } = result else { continue };
            announce_up_to(&shared, &mut self.unannounced, self.rotations.remove(&rotation));
        }
        match outcome {
            // Nothing is lost and nobody has to do anything: no failure.
            Err(journaled @ ShutdownError::Journaled { .. }) => {
                tracing::warn!("{journaled}");
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// The batches of a job; what cannot be made into columns is lost, and told.
    fn batches(&self, job: &Job) -> Vec<(Table, RecordBatch)> {
        let mut out = Vec::new();
        for table in Table::ALL {
            match job.pending.batch(table, &self.setup.names) {
                Ok(batch) => out.push((table, self.setup.pods.fill(batch))),
                Err(error) => {
                    let rows = job.account.of(table).and_then(|a| u64::try_from(a.written).ok()).unwrap_or(0);
                    tracing::error!(%error, table = table.as_str(), rows, "rows could not be made into columns; they are lost");
                    self.moving.note_lost(table, DropReason::Refused.as_str(), rows);
                }
            }
        }
        out
    }

    fn flush(&mut self, job: &Job) {
        let rows = self.batches(job);
        let mut metadata = self.setup.metadata.clone();
        metadata.push(("fgm.clock_offset_ns".to_owned(), job.clock_offset_ns.to_string()));
        let writer = &self.setup.writer;
        let flush = {
            let mut moving = lock(&self.moving.0.rows);
            let chunk = Chunk { at: job.at, account: &job.account, rows, metadata: &metadata };
            let flush = writer.keep(&chunk);
            moving.retain(|p| !Arc::ptr_eq(p, &job.pending));
            flush
        };
        let seq = flush.seq;
        let mut done = None;
        if !job.pending.incidents.is_empty() {
            self.unannounced.insert(seq, job.pending.incidents.clone());
            done = Some(self.kept.0.clone());
        }
        writer.journal(flush, done);
        if let Some(rotation) = job.rotation {
            self.asked = false;
            self.rotations.insert(rotation, seq);
            writer.rotate(rotation, metadata, Some(self.stored.0.clone()));
        } else if writer.held_bytes() > MAX_HELD_BYTES {
            self.want_rotation();
        }
        for drop in self.setup.writer.dropped() {
            let told = self.dropped.insert((drop.table, drop.reason), drop.rows).unwrap_or(0);
            if drop.rows > told {
                self.moving.note_lost(drop.table, drop.reason.as_str(), drop.rows - told);
            }
        }
        for (table, rows) in self.setup.writer.unshipped() {
            let told = self.setup.unshipped.insert(table, rows).unwrap_or(0);
            if rows > told {
                self.moving.note_lost(table, Reason::ShipBacklog.as_str(), rows - told);
            }
        }
    }

    /// Once, until it comes: jobs that are on their way would each become a rotation, and tiny files.
    fn want_rotation(&mut self) {
        if !std::mem::replace(&mut self.asked, true) {
            self.moving.want_rotation();
        }
    }

    fn note_kept(&mut self, outcome: &Kept) {
        match outcome {
            Kept::Durable { seq } => announce(&self.setup.shared, self.unannounced.remove(seq)),
            // a segment is the other way onto the disk
            Kept::Failed { seq } if self.unannounced.contains_key(seq) => self.want_rotation(),
            Kept::Failed { .. } => {}
        }
    }

    fn note_stored(&mut self, result: &SealResult) {
        if let SealResult::Stored { rotation, .. } = result {
            let last = self.rotations.remove(rotation);
            announce_up_to(&self.setup.shared, &mut self.unannounced, last);
        }
    }
}

fn announce_up_to(shared: &Shared, unannounced: &mut BTreeMap<u64, Vec<Incident>>, last: Option<u64>) {
    let Some(last) = last else { return };
    let later = unannounced.split_off(&(last + 1));
    for incidents in std::mem::replace(unannounced, later).into_values() {
        announce(shared, Some(incidents));
    }
}

/// An incident is announced when its rows are on disk, not before: what was announced survives the agent.
fn announce(shared: &Shared, incidents: Option<Vec<Incident>>) {
    for incident in incidents.unwrap_or_default() {
        tracing::info!(
            id = incident.id,
            revision = incident.revision,
            closed = incident.closed,
            summary = incident.summary,
            "incident"
        );
        shared.announce(incident);
    }
}
