//! Process tables: read every 10 s by the loop's rhythm, and at events. Must never let who causes events take the loop's time: a
//! table of hundreds of processes takes milliseconds, and a pod can have itself killed a thousand times a second.

use super::bursts::Started;
use super::state::{MS, State};
use crate::accumulator::Process;
use crate::catalogue::Kind;
use crate::catalogue::loose::Metric;
use crate::clock;
use crate::names::{CgroupId, Scope, Table};
use crate::processes;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

const PSS: &str = "process_pss_bytes";

/// Tables at events of one container take one part in so many of the loop's time…
const OF_CONTAINER: u64 = 20;
/// …and those of all containers of a pod one in so many.
const OF_POD: u64 = 4;
/// A table this young serves another event as well.
const YOUNG: u64 = 50_000_000;
/// Above this many, what rests no more is forgotten.
const KEPT: usize = 256;

/// The last table at an event of a container, or of a pod's containers.
#[derive(Clone, Copy)]
struct Last {
    /// When a container's was read.
    at: u64,
    rests_until: u64,
    rows: u64,
}

fn pss(process: &Process) -> Arc<Metric> {
    let labels = [("pid", process.pid.to_string()), ("comm", process.comm.clone())];
    let labels = labels.map(|(k, v)| (k.to_owned(), v)).to_vec();
    Arc::new(Metric { name: PSS.to_owned(), kind: Some(Kind::Gauge.as_str()), labels })
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 bytes")]
fn real(bytes: u64) -> f64 {
    bytes as f64
}

/// By container and by pod.
#[derive(Default)]
pub(super) struct Tables(HashMap<CgroupId, Last>);

impl State {
    /// The table that goes with a burst: there is one for each trigger that fires, and none for what is in its cool-down or beyond the
    /// budget of bursts, so that a node on which everything stalls at once does not spend itself on tables.
    pub(super) fn table_with(&mut self, id: CgroupId, started: &Started) {
        if started.runs {
            self.look_if_due();
            self.event_table(id);
        }
    }

    /// The table at an event, unless the container's or its pod's have had their share: what it would have had is lost, counted.
    pub(super) fn event_table(&mut self, id: CgroupId) {
        let pod = self.tree.up_to_pod(id).iter().rfind(|m| m.identity.scope == Scope::Pod).map(|m| m.id);
        let now = clock::ktime_ns();
        let rests = |id| self.tables.0.get(&id).filter(|last| now < last.rests_until).copied();
        if let Some(last) = rests(id).or(pod.and_then(rests)) {
            if now >= self.tables.0.get(&id).map_or(0, |last| last.at) + YOUNG {
                self.lost_of(id, Table::Processes, "process_budget", last.rows);
            }
            return;
        }
        let rows = self.process_table(id);
        self.pss_of_last(id, rows);
        let took = clock::ktime_ns().saturating_sub(now);
        if self.tables.0.len() >= KEPT {
            self.tables.0.retain(|_, last| now < last.rests_until);
        }
        let of_container = (took * OF_CONTAINER).max(YOUNG);
        self.tables.0.insert(id, Last { at: now, rests_until: now + of_container, rows });
        if let Some(pod) = pod.filter(|pod| *pod != id) {
            self.tables.0.insert(pod, Last { at: 0, rests_until: now + took * OF_POD, rows });
        }
    }

    /// PSS of the processes of the table that was just read, those that hold most first, while the time for it lasts. Into `metrics`: it is
    /// asked for by configuration, and most rows of `processes` would lack it.
    fn pss_of_last(&mut self, id: CgroupId, rows: u64) {
        let budget = self.config.sampling.pss_budget_ms * MS;
        let rows = usize::try_from(rows).unwrap_or(0).min(self.pending.processes.len());
        let from = self.pending.processes.len() - rows;
        let Some((at, meta, _)) = self.pending.processes.get(from).filter(|_| budget > 0).cloned() else {
            return;
        };
        let mut last: Vec<&Process> = self.pending.processes[from..].iter().map(|(_, _, p)| p).collect();
        last.sort_by_key(|p| std::cmp::Reverse(p.rss_bytes));
        let end = clock::ktime_ns() + budget;
        let (mut values, mut late, mut denied) = (Vec::new(), 0, 0);
        for process in last {
            if clock::ktime_ns() >= end {
                late += 1;
                continue;
            }
            match processes::pss_bytes(Path::new(super::state::PROC), process.pid) {
                Ok(bytes) => values.push((pss(process), real(bytes))),
                Err(error) if error.kind() == ErrorKind::PermissionDenied => denied += 1,
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    *self.process_faults.entry("smaps_rollup").or_default() += 1;
                }
                Err(_) => {}
            }
        }
        let written = self.pending.metrics.commit(at, Some(&meta), &mut values);
        self.ledger.written(Table::Metrics, written);
        for (reason, rows) in [("pss_budget", late), ("pss_denied", denied)] {
            self.lost_of(id, Table::Metrics, reason, rows);
        }
    }

    /// Reads the table of a cgroup and says how many rows it has.
    pub(super) fn process_table(&mut self, id: CgroupId) -> u64 {
        let Some(target) = self.targets.get(&id) else { return 0 };
        let meta = target.meta.clone();
        let at = self.stamp(clock::ktime_ns());
        let listing =
            processes::list(Path::new(super::state::PROC), &self.tree.path(&meta), self.inits.pid(id));
        let rows = listing.processes.len() as u64;
        self.ledger.written(Table::Processes, rows);
        self.lost_of(id, Table::Processes, "too_many", listing.cut);
        // one a directory at the least, since how many are in it is what was not read
        self.lost_of(id, Table::Processes, "too_many_cgroups", listing.directories_cut);
        for (file, n) in listing.unparsed {
            *self.process_faults.entry(file).or_default() += n;
        }
        // the first is the likeliest to be there at the next time as well
        if let Some(process) = listing.processes.first() {
            self.take_network(process.pid, Some(&meta), at);
        }
        self.pending.processes.extend(listing.processes.into_iter().map(|p| (at, meta.clone(), p)));
        rows
    }
}
