//! The thread between the loop and the store: makes Arrow batches of what the loop hands over, seals them, and announces
//! incidents once their rows are on disk.
//!
//! The loop must not spend its time on columns, and a query must find each row exactly once on its way: rows are in
//! `Moving` until the moment in which the store has them, under one lock.

use super::shared::Shared;
use crate::accumulator::{NodeNames, Pending};
use crate::incident::Incident;
use crate::store::{SealResult, Writer};
use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long the end of a run may take to write its last rows.
const SHUTDOWN: Duration = Duration::from_secs(20);

/// Rows that the loop gave away at a rotation.
pub struct Job {
    pub rotation: u64,
    pub pending: Arc<Pending>,
    pub ledger: Value,
    pub clock_offset_ns: i64,
}

/// Rows given away by the loop and not yet known to the store.
#[derive(Clone, Default)]
pub struct Moving(Arc<Mutex<Vec<Given>>>);

/// A rotation's number and its rows.
type Given = (u64, Arc<Pending>);

impl Moving {
    fn lock(&self) -> MutexGuard<'_, Vec<Given>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn rows(&self) -> Vec<Arc<Pending>> {
        self.lock().iter().map(|(_, p)| p.clone()).collect()
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
}

impl Sealer {
    pub fn start(setup: Setup) -> std::io::Result<Self> {
        let (jobs, todo) = unbounded();
        let moving = Moving::default();
        let inner = moving.clone();
        let thread = std::thread::Builder::new()
            .name("fgm-sealer".to_owned())
            .spawn(move || run(setup, &todo, &inner))?;
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
        self.moving.lock().push((job.rotation, job.pending.clone()));
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

fn run(setup: Setup, todo: &Receiver<Job>, moving: &Moving) -> anyhow::Result<()> {
    let (done, results) = unbounded();
    let mut unannounced = BTreeMap::new();
    loop {
        crossbeam_channel::select! {
            recv(todo) -> job => match job {
                Ok(job) => seal(&setup, &job, moving, &done, &mut unannounced),
                Err(_) => break,
            },
            recv(results) -> result => if let Ok(result) = result {
                announce(&setup.shared, &result, &mut unannounced);
            },
        }
    }
    let outcome = setup.writer.shutdown(SHUTDOWN);
    while let Ok(result) = results.try_recv() {
        announce(&setup.shared, &result, &mut unannounced);
    }
    Ok(outcome?)
}

fn seal(
    setup: &Setup,
    job: &Job,
    moving: &Moving,
    done: &Sender<SealResult>,
    unannounced: &mut BTreeMap<u64, Vec<Incident>>,
) {
    let batches = job.pending.batches(&setup.names).unwrap_or_else(|error| {
        tracing::error!(%error, rows = job.pending.rows(), "rows could not be made into columns; they are lost");
        Vec::new()
    });
    if !job.pending.incidents.is_empty() {
        unannounced.insert(job.rotation, job.pending.incidents.clone());
    }
    let mut metadata = setup.metadata.clone();
    metadata.push(("fgm.ledger".to_owned(), job.ledger.to_string()));
    metadata.push(("fgm.clock_offset_ns".to_owned(), job.clock_offset_ns.to_string()));
    let mut rows = moving.lock();
    setup.writer.seal(job.rotation, batches, metadata, Some(done.clone()));
    rows.retain(|(rotation, _)| *rotation != job.rotation);
}

/// An incident is announced when its rows are on disk, not before: what was announced survives the agent.
fn announce(shared: &Shared, result: &SealResult, unannounced: &mut BTreeMap<u64, Vec<Incident>>) {
    let SealResult::Stored { rotation, .. } = result else { return };
    for incident in unannounced.remove(rotation).unwrap_or_default() {
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
