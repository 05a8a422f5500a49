//! The lane's tick: one look at all followed cgroups, by the kernel's walk or by `pread`, into their rings.
//!
//! It decides by configuration and by what works: a walk that fails for good gives way to `pread`, with the reason in the
//! status. The rhythm is `lane::Pace`'s. Nothing here writes a row; `react` does when a trigger fires.

use super::limits::Change;
use super::spent::Lap;
use super::state::State;
use crate::clock;
use crate::config::{self, Source};
use crate::lane::{Pace, Ring, capacity};
use crate::names::{CgroupId, Scope};
use crate::probes::{Hook, Kernel, Walk};
use crate::sampler::{Taken, Target, Vanished};
use agent_ebpf::LaneDue;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const SECOND: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;
/// The rhythm when the configuration leaves it to us. The walk costs 0.5 µs a cgroup, `pread` of memory.current 1.2 µs.
const WALK_MS: u64 = 20;
const PREAD_MS: u64 = 50;
/// Base rows are taken in the turn of a walk, and begin with what it has read, unless walks are rarer than this.
const WITH_WALKS_MS: u64 = 100;
/// Warnings are looked for when memory changes, and so often when it does not.
const WATCH_EVERY: u64 = 240 * MS;
/// A walk that failed so often in a row is given up.
const FAILURES: u32 = 3;
/// From 15/16 of its limit on, a container's process table is taken whenever it grew by another 1/64 of the limit, so that
/// the one before a kill is young; not more often than this.
const TABLE_GAP: u64 = 100 * MS;

/// Where readings come from, and what became of them.
pub(super) struct Lane {
    walk: Option<Walk>,
    pub pace: Pace,
    /// Why it is not the walk.
    reason: Option<String>,
    /// What the walk cannot read on this kernel.
    missing: Vec<&'static str>,
    failures: u32,
    readings: u64,
    /// Readings that found no room in the kernel's ring.
    ring_full: u64,
    /// The longest look by the clock: a walk waits while the kernel makes or moves cgroups.
    longest_ns: u64,
    /// When the last look began, if it was a walk.
    last_walk_ns: Option<u64>,
}

impl Lane {
    /// # Errors
    /// That the configuration insists on the walk and it cannot be had, with the reason.
    pub fn start(config: &config::Config, kernel: Option<&Kernel>) -> anyhow::Result<Self> {
        let walk = match config.lane.source {
            Source::Pread => Err("lane.source is \"pread\" in the configuration".to_owned()),
            _ => match kernel {
                Some(kernel) => Walk::start_on(kernel, &config.cgroup_root),
                None => Err("probes.enabled is false in the configuration".to_owned()),
            },
        };
        if let (Source::Bpf, Err(reason)) = (config.lane.source, &walk) {
            anyhow::bail!(
                "lane.source is \"bpf\" and the walk over the cgroups cannot be had: {reason}; \"auto\" would read files instead"
            );
        }
        let missing = walk.as_ref().map(|w| w.missing().to_vec()).unwrap_or_default();
        let (walk, reason) = match walk {
            Ok(walk) => (Some(walk), None),
            Err(reason) => (None, Some(reason)),
        };
        let pace = pace(&config.lane, walk.is_some());
        Ok(Self {
            walk,
            pace,
            reason,
            missing,
            failures: 0,
            readings: 0,
            ring_full: 0,
            longest_ns: 0,
            last_walk_ns: None,
        })
    }

    pub fn last_walk_ns(&self) -> Option<u64> {
        self.last_walk_ns
    }

    /// Whether base rows begin with what the walk has read.
    pub fn brings_rows(&self) -> bool {
        self.walk.is_some() && self.pace.slowest_ms() <= WITH_WALKS_MS
    }

    fn source(&self) -> &'static str {
        self.walk.as_ref().map_or("pread", |w| w.way().as_str())
    }

    /// Its line in the ladder.
    pub fn rung(&self) -> Hook {
        let missing = (!self.missing.is_empty())
            .then(|| format!("this kernel does not tell {}", self.missing.join(", ")));
        Hook {
            event: "lane",
            hook: "iter/cgroup",
            mechanism: Some(self.source()),
            error: self.reason.clone().or(missing),
            costs: "history before an event has memory.current alone, at a lower rate and a higher cost",
        }
    }

    pub fn status(&self, rings: (usize, u64)) -> Value {
        json!({
            "source": self.source(),
            "reason": self.reason,
            "missing": self.missing,
            "period_ms": self.pace.period_ms(),
            "look_cpu_us": self.pace.look_ns() / 1000,
            "look_longest_us": self.longest_ns / 1000,
            "readings": self.readings,
            "ring_full": self.ring_full,
            "memory_bytes": rings.0,
            "cut_for_room": rings.1,
        })
    }
}

fn pace(config: &config::Lane, walk: bool) -> Pace {
    let asked = config.period_ms.or(if walk { WALK_MS } else { PREAD_MS });
    Pace::new(asked, config.cpu_budget_percent, clock::ktime_ns())
}

impl State {
    /// A ring for one more cgroup, with what was read of it already. All have the same share, or together they would outgrow
    /// their budget.
    pub(super) fn ring(&mut self, id: CgroupId) -> Ring {
        let capacity = capacity(self.config.lane.memory_bytes, self.targets.len() + 1);
        if std::mem::replace(&mut self.ring_capacity, capacity) != capacity {
            for t in self.targets.values_mut() {
                t.ring.set_capacity(capacity);
            }
        }
        if let Some(mut ring) = self.early.give(id) {
            ring.set_capacity(capacity);
            return ring;
        }
        Ring::new(capacity, self.config.lane.history_s * SECOND)
    }

    /// Bytes that all rings take, and readings that they dropped before their time.
    pub(super) fn rings(&self) -> (usize, u64) {
        self.targets.values().fold((0, 0), |(bytes, cut), t| (bytes + t.ring.bytes(), cut + t.ring.cut()))
    }

    /// The lane comes first: whatever takes long asks for a look between two pieces of its work, so that no cgroup's events or number hold up
    /// the history of the others. What the look brought up is left for [`State::lane_if_due`], since the caller may be in the
    /// middle of something. Returns the CPU that it took, in ns.
    pub(super) fn look_if_due(&mut self) -> u64 {
        let now = clock::ktime_ns();
        if self.next.lane > now {
            return 0;
        }
        self.lane_late_max_ns = self.lane_late_max_ns.max(now - self.next.lane);
        let look_ns = self.look(now);
        // after a stall the rhythm begins anew: what was missed is not made up for
        let period = self.lane.pace.period_ns();
        self.next.lane += period;
        if self.next.lane <= now {
            self.next.lane = now + period;
        }
        look_ns
    }

    /// A look when it is due, and what this one or earlier ones brought up: warnings, tables, limits. Returns the CPU that it took, in ns.
    pub(super) fn lane_if_due(&mut self) -> u64 {
        let look_ns = self.look_if_due();
        let seen = std::mem::take(&mut self.seen);
        if seen.is_empty() {
            return look_ns;
        }
        let mut lap = Lap::begin();
        self.watch_lane(&seen.memory);
        let watched_ns = lap.ns();
        self.spent.lane += watched_ns;
        for id in seen.tables {
            self.event_table(id);
        }
        for (id, change) in seen.limits {
            self.limit_changed(id, "lane", change);
        }
        look_ns + watched_ns + lap.ns()
    }

    fn look(&mut self, now: u64) -> u64 {
        let mut lap = Lap::begin();
        let mut seen = std::mem::take(&mut self.seen);
        let resting = self.resting_lanes();
        if self.lane.walk.is_some() {
            self.walk_look(now, &resting, &mut seen);
        } else {
            self.pread_look(now, &resting, &mut seen);
        }
        self.seen = seen;
        let after = clock::ktime_ns();
        self.lane.longest_ns = self.lane.longest_ns.max(after.saturating_sub(now));
        let look_ns = lap.ns();
        self.spent.lane += look_ns;
        self.lane.pace.looked(after, look_ns);
        look_ns
    }

    fn walk_look(&mut self, now: u64, resting: &BTreeMap<CgroupId, u64>, seen: &mut Seen) {
        let Some(walk) = &mut self.lane.walk else { return };
        let (targets, tree, early) = (&mut self.targets, &self.tree, &mut self.early);
        let window_ns = self.config.lane.history_s * SECOND;
        let last_walk_ns = self.lane.last_walk_ns.replace(now);
        // memory.stat is marked of those whose base row comes in this turn
        let period_ns = self.config.sampling.base_period_ms * MS;
        let due = LaneDue {
            period_ns,
            after_ns: self.last_base % period_ns,
            span_ns: now.saturating_sub(self.last_base),
        };
        let period_ms = self.lane.pace.period_ms();
        let result = walk.look(period_ms, due, |look| {
            let id = look.id();
            let Some(target) = targets.get_mut(&id) else {
                // one that nobody has told us of yet, or that waits for its turn
                if tree.get(id).is_none_or(|n| n.followed) {
                    early.keep(id, look.reading(), window_ns);
                }
                return;
            };
            let is_resting = rests(resting, target, now);
            if let Some(since_ns) = look.same_since_ns
                && !is_resting
                && target.ring.repeat(since_ns, look.ktime_ns(), period_ms)
            {
                target.still.look(false, look.mark());
                seen.take(target, look.memory_current(), now);
                return;
            }
            let reading = look.reading();
            // without any of the controllers
            if reading.is_empty() {
                return;
            }
            target.still.look(target.ring.is_news(&reading), look.mark());
            if let Some(max) = reading.memory_max() {
                let before = std::mem::replace(&mut target.memory_max, max);
                if before != max {
                    target.watched_ns = 0;
                    let not_before_ns = last_walk_ns.unwrap_or(target.first_seen_ns);
                    let not_after_ns = reading.ktime_ns;
                    seen.limits.push((id, Change { before, after: max, not_before_ns, not_after_ns }));
                }
            }
            if is_resting || !target.ring.push(reading) {
                return;
            }
            seen.take(target, reading.memory_current(), now);
        });
        match result {
            Ok(counts) => {
                self.lane.failures = 0;
                self.early.walked(now);
                self.lane.readings += counts.readings;
                self.lane.ring_full += counts.lost;
            }
            Err(reason) => {
                self.lane.failures += 1;
                if self.lane.failures >= FAILURES {
                    tracing::warn!(reason, "the lane goes on by reading files");
                    self.lane.walk = None;
                    self.lane.last_walk_ns = None;
                    self.lane.reason = Some(reason);
                    self.lane.pace = pace(&self.config.lane, false);
                    self.sampler.set_walks(false);
                    for (id, target) in &mut self.targets {
                        if self.sampler.keep_open(target).is_err() {
                            self.vanished.push(*id);
                        }
                    }
                }
            }
        }
    }

    fn pread_look(&mut self, now: u64, resting: &BTreeMap<CgroupId, u64>, seen: &mut Seen) {
        for (id, target) in &mut self.targets {
            if rests(resting, target, now) {
                continue;
            }
            match self.sampler.lane(target, self.lane.pace.period_ms()) {
                Ok(Some(reading)) => {
                    self.lane.readings += 1;
                    seen.take(target, reading.memory_current(), now);
                }
                Ok(None) => {}
                Err(Vanished) => self.vanished.push(*id),
            }
        }
    }
}

/// Whether a burst has just read it, or is about to.
fn rests(resting: &BTreeMap<CgroupId, u64>, target: &Target, now: u64) -> bool {
    !resting.is_empty() && resting.get(&target.meta.id).is_some_and(|age| now < target.last_row_ns + age)
}

/// What looks at all cgroups brought up, to be dealt with when nothing else is under way.
#[derive(Default)]
pub(super) struct Seen {
    /// memory.current of each, and when.
    memory: Vec<(CgroupId, u64, u64)>,
    tables: Vec<CgroupId>,
    limits: Vec<(CgroupId, Change)>,
}

impl Seen {
    fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.tables.is_empty() && self.limits.is_empty()
    }

    /// A burst's row: while the lane rests, warnings and tables near the limit go by what the burst reads.
    pub(super) fn row(&mut self, target: &mut Target, taken: &Taken) {
        self.take(target, taken.in_lane, taken.at.ktime_ns);
    }

    fn take(&mut self, target: &mut Target, memory_current: Option<u64>, now: u64) {
        let Some(bytes) = memory_current else { return };
        let id = target.meta.id;
        // what stands still is looked at now and then: those above it may come near to their limit
        if target.last_memory.replace(bytes) != Some(bytes) || now >= target.watched_ns + WATCH_EVERY {
            target.watched_ns = now;
            self.memory.push((id, bytes, now));
        }
        if wants_table(target, bytes, now) {
            self.tables.push(id);
        }
    }
}

/// Whether a container has come so near to its limit that its process table should be taken now.
fn wants_table(target: &mut Target, bytes: u64, now: u64) -> bool {
    let Some(max) = target.memory_max else { return false };
    if bytes < max - max / 16 || target.meta.identity.scope != Scope::Container {
        return false;
    }
    let due = target.last_table.is_none_or(|(at, then)| now >= at + TABLE_GAP && bytes > then + max / 64);
    if due {
        target.last_table = Some((now, bytes));
    }
    due
}
