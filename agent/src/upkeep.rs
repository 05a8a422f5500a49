//! The thread that keeps the data folder small: finished hours become files of `v1/`, and what is too old or too much goes.
//!
//! Of the lowest priority, and it holds up nobody: neither the loop nor the writer waits for it, and it ends at once when the agent does.
//! What it cannot do is told in the log and in `/api/status` (`store.compaction`), and tried again in a minute. Started by `pipeline`.

use crate::clock;
use crate::config::{Config, Retention};
use crate::export;
use crate::pods::Pods;
use crate::priority::{self, Work};
use crate::query;
use crate::retention::{Limits, Window};
use crate::segment::{self, Disk};
use crate::store::{self, Rules, Store};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

const EVERY: Duration = Duration::from_mins(1);
/// Soon after a start: the agent may have been away for hours, on a disk that is full.
const FIRST: Duration = Duration::from_secs(10);
/// Looks at the age and the sum of all files are further apart: they may have to read the incidents. A full disk is looked after
/// each time.
const RETENTION_EVERY_NS: u64 = 600_000_000_000;
const HOUR_US: i64 = segment::HOUR_US;

pub struct Upkeep {
    /// Dropped to end the thread.
    running: Sender<()>,
    thread: JoinHandle<()>,
}

impl Upkeep {
    /// `pods` gets the names that earlier runs have written.
    pub fn start(store: Arc<Store>, config: &Config, pods: Pods) -> io::Result<Self> {
        let after_us = i64::try_from(config.compaction.after_s).unwrap_or(0) * 1_000_000;
        let rules = config.compaction.enabled.then(|| Rules { after_us, ..Rules::default() });
        let retention = config.retention.clone();
        let (running, told) = bounded(0);
        let builder = std::thread::Builder::new().name("fgm-upkeep".to_owned());
        let thread = builder.spawn(move || {
            priority::of_this_thread(Work::Upkeep);
            remember(&store, &pods);
            run(&store, rules.as_ref(), &retention, &told);
        })?;
        Ok(Self { running, thread })
    }

    /// Ends the thread; what it is at stays undone and is begun again by the next start.
    pub fn stop(self) {
        drop(self.running);
        if self.thread.join().is_err() {
            tracing::error!("the upkeep thread panicked");
        }
    }
}

/// Who the pods were that nobody tells of any more: a start must not wait for the reading.
fn remember(store: &Store, pods: &Pods) {
    match query::earlier_pods(&store.view()) {
        Ok(earlier) => pods.remember(earlier),
        Err(problem) => tracing::warn!(%problem, "names of an earlier run cannot be read"),
    }
}

fn run(store: &Store, rules: Option<&Rules>, retention: &Retention, running: &Receiver<()>) {
    let stop = || !matches!(running.try_recv(), Err(TryRecvError::Empty));
    let (mut trouble, mut next_ns) = (None, 0);
    let mut pause = FIRST;
    while matches!(running.recv_timeout(pause), Err(RecvTimeoutError::Timeout)) {
        pause = EVERY;
        if let Some(rules) = rules {
            store.compact(&Disk, clock::wall_us(), rules, &stop);
        }
        let free = store::free_bytes(store.dir()).unwrap_or(u64::MAX);
        let wanted_bytes = retention.min_free_bytes.saturating_sub(free);
        let now = clock::ktime_ns();
        if now < next_ns && wanted_bytes == 0 {
            continue;
        }
        next_ns = now + RETENTION_EVERY_NS;
        let error = retain(store, retention, clock::wall_us(), wanted_bytes).err();
        if error != trouble {
            if let Some(error) = &error {
                tracing::error!(error, "nothing is removed that is beyond the limits of retention");
            }
            trouble = error;
        }
    }
}

/// One pass of the retention.
fn retain(store: &Store, retention: &Retention, now_us: i64, wanted_bytes: u64) -> Result<(), String> {
    let hours = |h: u64| i64::try_from(h).unwrap_or(i64::MAX).saturating_mul(HOUR_US);
    let limits = Limits {
        max_age_us: hours(retention.max_age_h),
        incident_max_age_us: hours(retention.incident_max_age_h),
        max_bytes: retention.max_bytes,
        wanted_bytes,
    };
    store.retain(&Disk, now_us, &limits, || incidents(store)).map(drop)
}

/// The windows of all incidents that are on the disk.
fn incidents(store: &Store) -> Result<Vec<Window>, String> {
    let all = export::incidents(&store.view(), Vec::new()).map_err(|e| e.to_string())?;
    Ok(all
        .into_iter()
        .map(|i| Window {
            boot: segment::boot_of(&i.boot_id),
            from_us: i.window.from_us.min(i.ts_us),
            to_us: i.window.to_us.max(i.ts_us),
        })
        .collect())
}
