//! The thread that copies finished hours and incidents into a bucket.
//!
//! On a runtime of its own at the lowest priority: nothing waits for it, and a dead bucket costs nothing but files that stay. A file of
//! `v1/` goes under its own name, once: it is put only where nothing is, and one that is there already must be the same. What of an
//! incident is known once its window is over goes at once as a bundle of its own, beside `v1/` (`bundle`), so that who reads
//! `v1/` sees no row twice. What was put is noted (`store::Shipped`) after the bucket had it. Started by `pipeline`.

mod bundle;
mod pass;
mod status;

pub use bundle::name as bundle_name;
pub use pass::{Shipper, What};
pub use status::Status;

use crate::clock;
use crate::config::Config;
use crate::incident::Incident;
use crate::ledger::Accounts;
use crate::names::Table;
use crate::priority::{self, Work};
use crate::query::{self, Filter};
use crate::retention::Reason;
use crate::store::{Hold, Shipped, Store, name_below};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// How often it is looked for what is new.
const EVERY: Duration = Duration::from_secs(2);
/// The first pause after a failure.
const FIRST_PAUSE_MS: u64 = 1000;
/// How long the end of the agent waits for a request that is under way.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// The incidents that are known and that somebody wants.
pub type Incidents = Box<dyn Fn(&dyn Fn(&Incident) -> bool) -> Vec<Incident> + Send>;

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct Ship {
    status: Status,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Ship {
    /// Begins to copy, if there is where to. From now on retention leaves alone what the bucket does not have.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(store: &Arc<Store>, config: &Config, incidents: Incidents) -> io::Result<Self> {
        let settings = config.ship.clone();
        if !settings.is_on() {
            return Ok(Self { status: Status::off(), running: None });
        }
        let what = What::of(&settings.what);
        let shipped = Arc::new(Mutex::new(Shipped::read(store.dir(), &settings.url)));
        hold(store, what, settings.max_backlog_bytes, shipped.clone());
        let status = Status::on(&settings);
        let (stop, stopped) = oneshot::channel();
        let (store, own) = (store.clone(), status.clone());
        let work = move || {
            priority::of_this_thread(Work::Upkeep);
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return own.failed(&format!("cannot start its runtime: {error}"), None),
            };
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = always(Shipper::new(store, settings, what, shipped, own), incidents) => {}
                }
            });
            // a look-up of an address may hang in the C library
            runtime.shutdown_timeout(STOP_WITHIN);
        };
        let thread = std::thread::Builder::new().name("fgm-ship".to_owned()).spawn(work)?;
        Ok(Self { status, running: Some((stop, thread)) })
    }

    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Ends the thread; what it is at is done again by the next run, which finds what has arrived.
    pub fn stop(self) {
        if let Some((stop, thread)) = self.running {
            let _ = stop.send(());
            if thread.join().is_err() {
                tracing::error!("the ship thread panicked");
            }
        }
    }
}

/// Tells retention what waits for the bucket: files of `v1/` that it does not have, and segments that will become such.
pub fn hold(store: &Arc<Store>, what: What, max_bytes: u64, shipped: Arc<Mutex<Shipped>>) {
    let dir = store.dir().to_owned();
    let keeps = Box::new(move |s: &crate::segment::Segment| {
        let is_there = || name_below(&dir, &s.path).is_some_and(|name| lock(&shipped).has(name));
        what.wants(s.table) && (s.merged.is_none() || !is_there())
    });
    store.hold(Hold { max_bytes, keeps });
}

async fn always(mut shipper: Shipper, incidents: Incidents) {
    let mut failures = 0;
    loop {
        let pause = match shipper.pass(&incidents, clock::wall_us()).await {
            Ok(()) => {
                failures = 0;
                EVERY
            }
            Err(error) => {
                failures += 1;
                let pause = pause_ms(failures, shipper.longest_pause_s(), clock::ktime_ns());
                shipper.status.failed(&error, Some(pause));
                Duration::from_millis(pause)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Twice as long after each failure, up to a bound, less a random part of up to a half: agents that lost the same bucket at the same
/// instant must not all come back at one.
pub fn pause_ms(failures: u32, longest_s: u64, seed: u64) -> u64 {
    let whole = FIRST_PAUSE_MS << failures.saturating_sub(1).min(20);
    let whole = whole.min(longest_s.saturating_mul(1000)).max(1);
    // the low bits of a clock in ns, mixed
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    whole - (mixed ^ (mixed >> 27)) % (whole / 2 + 1)
}

/// Rows that the ledger of a folder already tells as gone before they were shipped: what retention counted beyond is still to be told.
pub fn told(store: &Store) -> BTreeMap<Table, u64> {
    let removed = store.removed();
    if removed.unshipped.is_empty() {
        return BTreeMap::new();
    }
    let all = Filter::range(i64::MIN, i64::MAX);
    let mut sum = removed.ledger();
    match query::rows(&store.view(), Table::Ledger, &all, None, u64::MAX) {
        Ok((rows, _)) => rows.iter().for_each(|r| sum.add(&Accounts::of_rows(r))),
        Err(error) => {
            tracing::warn!(%error, "the ledger cannot be read: what it says of ship_backlog may be told twice");
        }
    }
    told_of(&sum)
}

/// What an account says of it.
pub fn told_of(sum: &Accounts) -> BTreeMap<Table, u64> {
    let losses = sum.losses().filter(|(_, reason, _)| *reason == Reason::ShipBacklog.as_str());
    losses.map(|(table, _, rows)| (table, rows)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound_and_are_never_all_the_same() {
        for failures in 1..40 {
            let whole = (1000u64 << (failures - 1).min(20)).min(300_000);
            let pauses: Vec<u64> = (0..50).map(|n| pause_ms(failures, 300, n * 1_000_003)).collect();
            assert!(pauses.iter().all(|p| (whole / 2..=whole).contains(p)), "{failures}: {pauses:?}");
            let first = pauses[0];
            assert!(pauses.iter().any(|p| p.abs_diff(first) > whole / 20), "{failures}: {pauses:?}");
        }
        assert!(pause_ms(u32::MAX, 1, 7) <= 1000);
    }
}
