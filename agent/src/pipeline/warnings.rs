//! Early warnings: what the loop feeds to each cgroup's watch, and what a warning causes.

use super::state::State;
use crate::catalogue::{self, ColumnIndex};
use crate::event::Kind;
use crate::names::{CgroupId, Scope};
use crate::sampler::Target;
use crate::warn::{Counters, Headroom, Warning};
use std::collections::HashMap;

/// A warning this old has nothing to do with what happens now.
const FORGET_AFTER_NS: u64 = 120_000_000_000;
/// Of a limit that many pods share, only those are told who hold this share of what is used, in per cent: near the limit of all
/// pods of a node each of hundreds would have something to say.
const SHARE_OF_MANY_PERCENT: u64 = 10;
/// Warnings remembered of one container.
const REMEMBERED: usize = 16;

/// Warnings of the last minutes, for the incident that they warned of.
#[derive(Default)]
pub(super) struct Warnings {
    recent: HashMap<CgroupId, Vec<(String, &'static str, u64)>>,
    columns: Option<Columns>,
}

/// Where the watched counters stand.
#[derive(Clone, Copy)]
struct Columns([ColumnIndex; 8]);

impl Columns {
    fn find() -> Option<Self> {
        let names = [
            "memory_stat_inactive_file",
            "memory_events_high",
            "memory_events_max",
            "pids_events_max",
            "cpu_stat_nr_periods",
            "cpu_stat_nr_throttled",
            "memory_pressure_full_total_usec",
            "io_pressure_full_total_usec",
        ];
        let mut found = [0; 8];
        for (at, name) in found.iter_mut().zip(names) {
            *at = catalogue::column(name)?;
        }
        Some(Self(found))
    }

    fn counters(self, value: impl Fn(ColumnIndex) -> Option<u64>) -> Counters {
        let [inactive_file, high, max, pids, periods, throttled, memory, io] = self.0.map(value);
        Counters {
            inactive_file,
            events_high: high,
            events_max: max,
            pids_events_max: pids,
            nr_periods: periods,
            nr_throttled: throttled,
            memory_full_usec: memory,
            io_full_usec: io,
        }
    }
}

impl Warnings {
    /// Those of a container, oldest first.
    pub fn of(&self, id: CgroupId) -> Vec<(String, &'static str, u64)> {
        self.recent.get(&id).cloned().unwrap_or_default()
    }

    pub fn forget(&mut self, id: CgroupId) {
        self.recent.remove(&id);
    }

    fn remember(&mut self, id: CgroupId, event_id: String, kind: &'static str, ktime_ns: u64) {
        let recent = self.recent.entry(id).or_default();
        recent.retain(|(_, _, at)| ktime_ns < at + FORGET_AFTER_NS);
        if recent.len() >= REMEMBERED {
            recent.remove(0);
        }
        recent.push((event_id, kind, ktime_ns));
    }
}

impl State {
    /// Lane readings: whose, memory.current in bytes, and when. A container is held against the limit up the tree that leaves it the least room.
    pub(super) fn watch_lane(&mut self, readings: &[(CgroupId, u64, u64)]) {
        let mut warnings = Vec::new();
        for &(id, usage, at) in readings {
            let Some(target) = self.targets.get(&id) else { continue };
            if !matches!(target.meta.identity.scope, Scope::Container | Scope::Service) {
                continue;
            }
            let room = |t: &Target, usage: u64| {
                let max = t.memory_max?;
                Some(Headroom { whose: t.meta.id, usage, inactive_file: t.watch.inactive_file(), max })
            };
            let own = room(target, usage);
            let above =
                std::iter::successors(target.meta.parent_id.and_then(|p| self.targets.get(&p)), |t| {
                    self.targets.get(&t.meta.parent_id?)
                });
            let is_shared = |t: &Target| matches!(t.meta.identity.scope, Scope::Other | Scope::Node);
            let has_a_share = |r: &Headroom| usage.saturating_mul(100) >= r.usage * SHARE_OF_MANY_PERCENT;
            let rooms =
                above.filter_map(|t| room(t, t.last_memory?).filter(|r| !is_shared(t) || has_a_share(r)));
            let nearest = own.into_iter().chain(rooms).min_by_key(|r| r.left());
            if let (Some(room), Some(target)) = (nearest, self.targets.get_mut(&id)) {
                target.watch.lane(at, room, |w| warnings.push((id, at, w)));
            }
        }
        for (id, at, warning) in warnings {
            self.warn(id, at, "lane", warning);
        }
    }

    /// A base row of a cgroup, the one that was committed last.
    pub(super) fn watch_base(&mut self, id: CgroupId, ktime_ns: u64) {
        let columns = match self.warnings.columns {
            Some(columns) => columns,
            None => match Columns::find() {
                Some(found) => *self.warnings.columns.insert(found),
                None => return,
            },
        };
        let samples = &self.pending.samples;
        let Some(target) = self.targets.get_mut(&id) else { return };
        let counters = columns.counters(|c| samples.last(c));
        if !matches!(target.meta.identity.scope, Scope::Container | Scope::Service) {
            target.watch.base_above(counters);
            return;
        }
        let mut warnings = Vec::new();
        target.watch.base(ktime_ns, counters, |w| warnings.push(w));
        for warning in warnings {
            self.warn(id, ktime_ns, "files", warning);
        }
    }

    /// Records a warning and starts, or prolongs, the burst that it asks for.
    fn warn(&mut self, id: CgroupId, ktime_ns: u64, source: &'static str, warning: Warning) {
        let Some(meta) = self.targets.get(&id).map(|t| t.meta.clone()) else { return };
        let started = self.start_burst(&meta, warning.kind, None, ktime_ns);
        // near the limit in any case: who holds the memory, while they are still there
        if matches!(warning.kind, Kind::LimitNear | Kind::ForecastOom) {
            self.event_table(id);
        } else {
            self.table_with(id, &started);
        }
        let severity = warning.kind.severity();
        let mut event = self.event(warning.kind, severity, ktime_ns, source, warning.detail);
        event.cgroup_id = Some(id);
        self.warnings.remember(id, event.event_id.clone(), warning.kind.as_str(), ktime_ns);
        self.record(event, Some(meta));
    }
}
