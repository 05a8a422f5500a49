//! Bursts and histories: what the loop does with the trigger's decisions.

use super::spent::Lap;
use super::state::State;
use crate::accumulator::Stamp;
use crate::cgroup::Meta;
use crate::clock;
use crate::config::Config;
use crate::event::{KINDS, Kind};
use crate::lane::VALUES;
use crate::names::{Cause, CgroupId, Scope, Severity, Table};
use crate::sampler::Plan;
use crate::trigger::{Decision, KindSettings, Request, Settings, Suppressed};
use std::collections::BTreeMap;
use std::sync::Arc;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
/// The lane of a burst's cgroups reads again when the burst has left out its turn: a row's age in periods.
const ROWS_AGE: (u64, u64) = (5, 4);

/// A burst that runs: its id in the rows, and the cgroups that it samples.
pub(super) struct Running {
    pub id: String,
    pub members: Vec<CgroupId>,
    /// When the last row at an event was taken, and how grave that was.
    pub event_row: (Severity, u64),
}

/// What came of the wish for a burst.
#[derive(Default)]
pub(super) struct Started {
    /// A burst began, or goes on for longer.
    pub runs: bool,
    /// When the first burst sample of the container was taken, if this event caused it.
    pub first_row_ns: Option<u64>,
}

/// The trigger's settings as the configuration has them. A kind that does not trigger is a disabled one.
pub(super) fn settings(config: &Config) -> Settings {
    let off =
        KindSettings { enabled: false, period_ns: SECOND, length_ns: SECOND, cool_down_ns: 0, history_ns: 0 };
    let mut kinds = [off; KINDS];
    for (kind, t) in config.trigger.all() {
        kinds[kind as usize] = KindSettings {
            enabled: t.enabled,
            period_ns: t.burst_period_ms * MS,
            length_ns: t.burst_length_s * SECOND,
            cool_down_ns: t.cool_down_s * SECOND,
            history_ns: t.history_s * SECOND,
        };
    }
    Settings {
        kinds,
        rows_per_second: config.budget.rows_per_second,
        max_concurrent: config.budget.max_bursts,
    }
}

impl State {
    /// The cgroups whose lane rests while a burst reads the same value at least as often, into the table; and how old a row may be for that:
    /// a burst that is behind, as many at a time are on a small machine, would leave a gap where somebody looks for the last reading.
    pub(super) fn resting_lanes(&self) -> BTreeMap<CgroupId, u64> {
        let mut resting = BTreeMap::new();
        for (id, running) in &self.bursts {
            let Some(period) = self.trigger.period_ns(*id).filter(|p| self.in_place_of_lane(Some(*p))) else {
                continue;
            };
            let oldest = period * ROWS_AGE.0 / ROWS_AGE.1;
            for member in &running.members {
                let age = resting.entry(*member).or_insert(oldest);
                *age = (*age).min(oldest);
            }
        }
        resting
    }

    fn in_place_of_lane(&self, period_ns: Option<u64>) -> bool {
        period_ns.is_some_and(|p| p <= self.lane.pace.period_ns())
    }

    fn burst_plan<'a>(&self, period_ns: u64, id: &'a str) -> Plan<'a> {
        let period_ms = u32::try_from(period_ns / MS).unwrap_or(u32::MAX);
        let in_lane = self.in_place_of_lane(Some(period_ns));
        Plan { cause: Cause::Burst, period_ms, burst: Some(id), slow: false, loose: false, in_lane }
    }

    pub(super) fn burst_tick(&mut self, now: u64) {
        let mut due = Vec::new();
        self.trigger.due(now, |d| due.push(d));
        if due.is_empty() {
            self.end_bursts(now);
            return;
        }
        let (mut lap, mut rows) = (Lap::begin(), 0);
        for d in due {
            let Some(running) = self.bursts.remove(&d.cgroup) else { continue };
            let members = running.members.len() as u64;
            self.lost_of(d.cgroup, Table::Samples, "late", d.late * members);
            self.lost_of(d.cgroup, Table::Samples, Suppressed::TooManyBursts.as_str(), d.budget * members);
            for &member in &running.members {
                let Some(period) = d.period_ns else { break };
                if d.late > 0 {
                    // what the lane read in place of the rows left out
                    self.history(member, (d.late + 1) * period, now, now, &running.id);
                }
                let plan = self.burst_plan(period, &running.id);
                let stamp = self.sample(member, plan);
                rows += 1;
                if let Some(stamp) = stamp.filter(|_| member == d.cgroup) {
                    self.story.burst_sample(d.cgroup, stamp.ktime_ns);
                }
            }
            self.bursts.insert(d.cgroup, running);
            lap.leave_out(self.lane_if_due());
        }
        if let Some(affordable) = self.burst_cost.note(rows, lap.ns()) {
            self.trigger.allow(affordable, now);
        }
        self.end_bursts(now);
    }

    fn end_bursts(&mut self, now: u64) {
        for id in self.trigger.expire(now) {
            self.bursts.remove(&id);
        }
    }

    /// Writes the history of a container, its ancestors up to the pod and the cgroup of the limit, and begins or
    /// prolongs their burst. Rows that there will not be are accounted for.
    pub(super) fn start_burst(
        &mut self,
        owner: &Arc<Meta>,
        kind: Kind,
        limit: Option<CgroupId>,
        ktime_ns: u64,
    ) -> Started {
        let now = clock::ktime_ns();
        let mut members = self.tree.up_to_pod(owner.id);
        let pod = members.iter().rfind(|m| m.identity.scope == Scope::Pod).map_or(owner.id, |m| m.id);
        let limiting = limit.and_then(|id| self.tree.get(id)).filter(|n| n.followed).map(|n| n.meta.clone());
        members.extend(limiting.filter(|m| members.iter().all(|have| have.id != m.id)));
        for meta in &members {
            self.follow_now(meta.id);
        }
        let request = Request { cgroup: owner.id, pod, kind, rows: members.len() as u64 };
        let decision = self.trigger.fire(request, now);
        for (other, samples) in self.trigger.take_evicted() {
            if let Some(gave_way) = self.bursts.remove(&other) {
                let rows = samples * gave_way.members.len() as u64;
                self.lost_of(other, Table::Samples, Suppressed::TooManyBursts.as_str(), rows);
            }
        }
        let settings = self.trigger.settings(kind);
        if let Decision::Suppress { why, samples } = decision {
            self.lost_of(owner.id, Table::Samples, why.as_str(), samples * members.len() as u64);
            // what was asked for a moment ago has its history
            if matches!(why, Suppressed::Disabled | Suppressed::CoolDown) {
                return Started::default();
            }
        }
        let id = format!("{}-{}-{ktime_ns}", self.names.node, self.names.boot_id);
        let id = match (decision, self.bursts.get(&owner.id)) {
            (Decision::Extend { .. }, Some(running)) => running.id.clone(),
            _ => id,
        };
        for meta in &members {
            self.history(meta.id, settings.history_ns, ktime_ns, now, &id);
            self.look_if_due();
        }
        match decision {
            Decision::Suppress { .. } => Started::default(),
            Decision::Start { .. } | Decision::Extend { .. } => {
                let running = self.bursts.remove(&owner.id);
                let takes_row = running.as_ref().is_none_or(|r| self.takes_event_row(owner.id, kind, r, now));
                let mut first_row = None;
                if takes_row {
                    first_row = self.event_row(&members, settings.period_ns, &id);
                }
                let event_row = match &running {
                    Some(running) if !takes_row => running.event_row,
                    _ => (kind.severity(), now),
                };
                // another limit than that of the burst's first event: its cgroup is sampled from now on
                let mut all = running.map_or_else(Vec::new, |running| running.members);
                let news = members.iter().map(|m| m.id).filter(|id| !all.contains(id)).collect::<Vec<_>>();
                all.extend(news);
                self.bursts.insert(owner.id, Running { id, members: all, event_row });
                Started { runs: true, first_row_ns: first_row.map(|s| s.ktime_ns) }
            }
        }
    }

    /// Whether a burst that runs is to have a row at this event as well. What is graver than the last such row has one at once; the others are
    /// no more than the burst's own rows, since who can cause events can cause a thousand a second.
    fn takes_event_row(&self, owner: CgroupId, kind: Kind, running: &Running, now: u64) -> bool {
        let (severity, at) = running.event_row;
        let rhythm = self.trigger.period_ns(owner);
        kind.severity() > severity || rhythm.is_some_and(|period| now >= at + period)
    }

    /// The rows at an event, with limits and peaks, as near to it as can be. Returns the instant of the first member's.
    fn event_row(&mut self, members: &[Arc<Meta>], period_ns: u64, id: &str) -> Option<Stamp> {
        let plan = Plan { slow: true, ..self.burst_plan(period_ns, id) };
        let mut first = None;
        for (n, meta) in members.iter().enumerate() {
            if let Some(target) = self.targets.get_mut(&meta.id) {
                target.want_all();
            }
            let stamp = self.sample(meta.id, plan);
            first = first.or(stamp.filter(|_| n == 0));
            self.look_if_due();
        }
        first
    }

    /// The window is that before the event, and all up to now.
    fn history(&mut self, id: CgroupId, history_ns: u64, ktime_ns: u64, now: u64, burst: &str) {
        let Some(target) = self.targets.get_mut(&id) else { return };
        let mut values = Vec::with_capacity(VALUES);
        let (offset, samples) = (self.offset, &mut self.pending.samples);
        let window = history_ns + now.saturating_sub(ktime_ns);
        let given = target.ring.take_history(now, window, |r| {
            let at = Stamp { ktime_ns: r.ktime_ns, wall_us: offset.wall_us(r.ktime_ns) };
            values.clear();
            values.extend(r.columns());
            samples.history(&target.meta, at, u32::from(r.period_ms), burst, &values, r.files_read());
        });
        self.ledger.written(Table::Samples, given as u64);
    }
}
