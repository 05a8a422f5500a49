//! All that the loop owns, and what it does as time passes: lane, base and burst samples, process tables, rotation.
//!
//! `react` beside this file holds what it does when the kernel reports something. Nothing here waits for anything.

use super::bursts::{self, Running};
use super::lane::Lane;
use super::sealer::{Job, Moving};
use super::warnings::Warnings;
use crate::accumulator::{NodeNames, Pending, Stamp};
use crate::cgroup::Meta;
use crate::clock::{self, Offset};
use crate::config::Config;
use crate::discovery::{Change, Tree};
use crate::ledger::Ledger;
use crate::names::{Cause, CgroupId, Scope, Table};
use crate::probes::{KindLoss, Losses};
use crate::processes;
use crate::sampler::{Plan, Sampler, Target, Vanished};
use crate::story::{Blame, Story};
use crate::trigger::Trigger;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
/// With mkdir and rmdir events the walk only corrects; without them it is how cgroups are found.
const RESCAN_WITH_EVENTS: u64 = 60 * SECOND;
pub(super) const RESCAN_WITHOUT: u64 = SECOND;
/// Base samples are looked for this often, so that they spread over the second instead of coming all at once.
const BASE_STEP: u64 = 50 * MS;
/// How often the process table of a container is read when nothing happens.
const PROCESSES_EVERY: u64 = 10 * SECOND;
/// A cgroup younger than this has its slow files read with every base row.
const YOUNG: u64 = 5 * SECOND;
/// A new container's first process is looked for until it is this old.
const INIT_WITHIN: u64 = 10 * SECOND;
/// Rows held in memory beyond this are handed over before the rotation is due.
const MAX_PENDING_BYTES: usize = 48 << 20;
/// Two rotations are at least this far apart, however many incidents want one.
const ROTATION_GAP: u64 = 250 * MS;
const MINUTE: u64 = 60 * SECOND;

/// Where in a period a cgroup has its turn: its own place, so that not all are due in the same instant.
fn phase(id: CgroupId, period: u64) -> u64 {
    id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) % period
}

/// Events that did not arrive so far, as the kernel side counted them.
#[derive(Clone, Copy, Default)]
struct EventLosses {
    full: u64,
    cut: u64,
    undecodable: u64,
    /// Those of them that told of a cgroup's birth or end.
    tree: u64,
}

pub struct State {
    pub(super) config: Config,
    pub(super) names: NodeNames,
    pub(super) offset: Offset,
    pub(super) tree: Tree,
    pub(super) sampler: Sampler,
    pub(super) targets: BTreeMap<CgroupId, Target>,
    pub(super) trigger: Trigger,
    pub(super) bursts: HashMap<CgroupId, Running>,
    pub(super) story: Story,
    pub(super) pending: Pending,
    pub(super) ledger: Ledger,
    pub(super) has_events: bool,
    pub(super) event_number: u64,
    /// Events of cgroups that are not in the tree: another machine's or another root's business.
    pub(super) outside: u64,
    pub(super) rotation_wanted: bool,
    pub(super) rescan_wanted: bool,
    pub(super) warnings: Warnings,
    /// Who last sent a signal to a container's init that may end it.
    pub(super) blames: HashMap<CgroupId, Blame>,
    /// Inits that the kernel side is to be told of: (pid, container).
    pub(super) new_inits: Vec<(u32, CgroupId)>,
    pub(super) lane: Lane,
    pub(super) vanished: Vec<CgroupId>,
    moving: Moving,
    event_losses: EventLosses,
    rotation: u64,
    next: Next,
    last_rotation: u64,
    pub(super) last_rescan: u64,
    /// Bytes that each lane ring may take now.
    pub(super) ring_capacity: usize,
    /// Start of the lane's last tick and how late it was, for the status page.
    pub lane_late_max_ns: u64,
}

struct Next {
    lane: u64,
    base: u64,
    rescan: u64,
    offset: u64,
    rotation: u64,
    minute: u64,
}

impl State {
    pub fn new(
        config: Config,
        names: NodeNames,
        tree: Tree,
        sampler: Sampler,
        lane: Lane,
        has_events: bool,
    ) -> Self {
        let now = clock::ktime_ns();
        let trigger = Trigger::new(bursts::settings(&config));
        let story = Story::new(names.clone(), config.trigger.oom_kill.burst_length_s * SECOND);
        let next = Next {
            lane: now,
            base: now,
            rescan: now,
            offset: now,
            rotation: now + config.rotation.every_s * SECOND,
            minute: now + MINUTE,
        };
        Self {
            config,
            names,
            offset: Offset::measure(),
            tree,
            sampler,
            targets: BTreeMap::new(),
            trigger,
            bursts: HashMap::new(),
            story,
            pending: Pending::default(),
            ledger: Ledger::default(),
            has_events,
            event_number: 0,
            outside: 0,
            rotation_wanted: false,
            rescan_wanted: false,
            warnings: Warnings::default(),
            blames: HashMap::new(),
            new_inits: Vec::new(),
            lane,
            vanished: Vec::new(),
            moving: Moving::default(),
            event_losses: EventLosses::default(),
            rotation: 0,
            next,
            last_rotation: now,
            last_rescan: 0,
            ring_capacity: 0,
            lane_late_max_ns: 0,
        }
    }

    pub(super) fn stamp(&self, ktime_ns: u64) -> Stamp {
        Stamp { ktime_ns, wall_us: self.offset.wall_us(ktime_ns) }
    }

    /// The next instant at which there is something to do.
    pub fn next_due(&self) -> u64 {
        let n = &self.next;
        let rotation = if self.rotation_wanted { self.last_rotation + ROTATION_GAP } else { n.rotation };
        let fixed = [n.lane, n.base, n.rescan, n.offset, rotation, n.minute];
        let moving = [self.trigger.next_due(), self.story.next_deadline()];
        fixed.into_iter().chain(moving.into_iter().flatten()).min().unwrap_or(n.lane)
    }

    /// Does all that is due. Returns a job for the sealer when rows are to be handed over.
    pub fn tick(&mut self, now: u64) -> Option<Job> {
        if self.next.offset <= now {
            self.offset = Offset::measure();
            self.next.offset = now + SECOND;
        }
        if self.next.lane <= now {
            self.lane_late_max_ns = self.lane_late_max_ns.max(now - self.next.lane);
            self.lane_tick(now);
            // after a stall the rhythm begins anew: what was missed is not made up for
            let period = self.lane.pace.period_ns();
            self.next.lane += period;
            if self.next.lane <= now {
                self.next.lane = now + period;
            }
        }
        self.burst_tick(now);
        if self.next.base <= now {
            self.base_tick(now);
            self.next.base = now + BASE_STEP;
        }
        if self.next.rescan <= now || self.rescan_wanted {
            self.rescan(now);
        }
        for incident in self.story.close_due(now) {
            self.revise(incident);
        }
        if self.next.minute <= now {
            self.next.minute = now + MINUTE;
            let stamp = self.stamp(now);
            self.pending.ledger.extend(self.ledger.close_period(stamp));
        }
        let full = self.pending.bytes() > MAX_PENDING_BYTES;
        let wanted = self.rotation_wanted && now >= self.last_rotation + ROTATION_GAP;
        (self.next.rotation <= now || wanted || full).then(|| self.rotate(now))
    }

    /// Hands all rows over.
    pub fn rotate(&mut self, now: u64) -> Job {
        self.rotation += 1;
        self.rotation_wanted = false;
        self.last_rotation = now;
        self.next.rotation = now + self.config.rotation.every_s * SECOND;
        let pending = Arc::new(std::mem::take(&mut self.pending));
        Job {
            rotation: self.rotation,
            pending,
            ledger: self.ledger.totals(),
            clock_offset_ns: self.offset.as_ns(),
        }
    }

    /// The last rows of a run.
    pub fn finish(&mut self) -> Job {
        let now = clock::ktime_ns();
        for incident in self.story.close_all(now) {
            self.revise(incident);
        }
        let stamp = self.stamp(now);
        self.pending.ledger.extend(self.ledger.close_period(stamp));
        self.rotate(now)
    }

    /// A revision of an incident: a row, which is announced once it is on disk. One that is not handed over yet gives
    /// way to its successor, which says all that it said: a storm of kills makes no more revisions than rotations.
    pub(super) fn revise(&mut self, incident: crate::incident::Incident) {
        if let Some(earlier) = self.pending.incidents.iter_mut().find(|i| i.id == incident.id) {
            *earlier = incident;
        } else {
            self.ledger.written(Table::Incidents, 1);
            self.pending.incidents.push(incident);
        }
        self.rotation_wanted = true;
    }

    /// Starts to follow a cgroup and takes its first sample at once: it may not live long.
    pub(super) fn follow(&mut self, meta: &Arc<Meta>) {
        let now = clock::ktime_ns();
        let ring = self.ring();
        let Some(target) = self.sampler.open(meta, ring, now) else { return };
        self.targets.insert(meta.id, target);
        let plan = Plan { slow: true, ..self.base_plan() };
        self.sample(meta.id, plan);
        let period = self.config.sampling.base_period_ms * MS;
        if let Some(t) = self.targets.get_mut(&meta.id) {
            t.next_base_ns = now + 1 + phase(meta.id, period);
            // its first process may need a moment to begin
            t.next_table_ns = now + 1 + phase(meta.id, SECOND);
            t.next_slow_ns = now + self.config.sampling.slow_period_ms * MS;
        }
    }

    /// Forgets a cgroup that has gone.
    pub(super) fn unfollow(&mut self, id: CgroupId, ktime_ns: u64) {
        if let Some(target) = self.targets.remove(&id) {
            self.sampler.close(&target);
        }
        self.trigger.gone(id, ktime_ns);
        self.warnings.forget(id);
        self.blames.remove(&id);
        self.bursts.remove(&id);
        self.story.gone(id, ktime_ns);
    }

    /// How a base row without slow files is taken.
    pub(super) fn base_plan(&self) -> Plan<'static> {
        let period_ms = u32::try_from(self.config.sampling.base_period_ms).unwrap_or(u32::MAX);
        Plan { cause: Cause::Base, period_ms, burst: None, slow: false, in_lane: false }
    }

    /// Takes one row of a cgroup. One that has gone is remembered and forgotten at the end of the round, when the
    /// kernel's last events about it are in.
    pub(super) fn sample(&mut self, id: CgroupId, plan: Plan<'_>) -> Option<Stamp> {
        let target = self.targets.get_mut(&id)?;
        let taken = self.sampler.sample(target, plan, self.offset, &mut self.pending.samples);
        match taken {
            Ok(_) => self.ledger.written(Table::Samples, 1),
            Err(Vanished) => self.vanished.push(id),
        }
        taken.ok()
    }

    fn base_tick(&mut self, now: u64) {
        let (period, slow_period) =
            (self.config.sampling.base_period_ms * MS, self.config.sampling.slow_period_ms * MS);
        let (mut due, mut tables) = (Vec::new(), Vec::new());
        for (id, target) in &mut self.targets {
            if target.next_table_ns <= now && target.meta.identity.scope == Scope::Container {
                // each has an instant of its own within the period: all tables at once would hold up the lane
                target.next_table_ns = now - now % PROCESSES_EVERY + phase(*id, PROCESSES_EVERY);
                if target.next_table_ns <= now {
                    target.next_table_ns += PROCESSES_EVERY;
                }
                tables.push(*id);
            }
            if target.next_base_ns > now {
                continue;
            }
            let missed = (now - target.next_base_ns) / period;
            target.next_base_ns += (missed + 1) * period;
            // limits are often written just after the directory is made: a young cgroup's are read with every row
            let age = now.saturating_sub(target.first_seen_ns);
            let slow = target.next_slow_ns <= now || age < YOUNG;
            if slow {
                target.next_slow_ns = now + slow_period;
            }
            let look_for_init = target.init_pid.is_none() && age < INIT_WITHIN;
            due.push((*id, slow, missed, look_for_init && target.meta.identity.scope == Scope::Container));
        }
        for (id, slow, missed, look_for_init) in due {
            self.ledger.lost(Table::Samples, "late", missed);
            self.story.lost(id, Table::Samples.as_str(), "late", missed);
            if look_for_init {
                self.look_for_init(id);
            }
            let plan = Plan { slow, ..self.base_plan() };
            if let Some(stamp) = self.sample(id, plan) {
                self.watch_base(id, stamp.ktime_ns);
            }
        }
        for id in tables {
            self.process_table(id);
        }
    }

    /// Remembers the first process of a container that was born under our eyes. One that was there before us has had
    /// other processes maybe, so its oldest one proves nothing.
    pub(super) fn look_for_init(&mut self, id: CgroupId) {
        let Some(node) = self.tree.get(id) else { return };
        let path = self.tree.path(&node.meta);
        if let Some(target) = self.targets.get_mut(&id).filter(|t| t.born_here) {
            target.init_pid = processes::first(Path::new("/proc"), &path);
            self.new_inits.extend(target.init_pid.map(|pid| (pid, id)));
        }
    }

    pub(super) fn process_table(&mut self, id: CgroupId) {
        let Some(target) = self.targets.get(&id) else { return };
        let meta = target.meta.clone();
        let at = self.stamp(clock::ktime_ns());
        let listing = processes::list(Path::new("/proc"), &self.tree.path(&meta), target.init_pid);
        self.ledger.written(Table::Processes, listing.processes.len() as u64);
        self.ledger.lost(Table::Processes, "too_many", listing.cut);
        self.story.lost(id, Table::Processes.as_str(), "too_many", listing.cut);
        self.pending.processes.extend(listing.processes.into_iter().map(|p| (at, meta.clone(), p)));
    }

    pub(super) fn rescan(&mut self, now: u64) {
        let first = self.targets.is_empty();
        self.rescan_wanted = false;
        self.last_rescan = now;
        self.next.rescan = now + if self.has_events { RESCAN_WITH_EVENTS } else { RESCAN_WITHOUT };
        let root = self.tree.get(self.tree.root()).filter(|n| n.followed).map(|n| n.meta.clone());
        if let Some(meta) = root.filter(|m| first && !self.targets.contains_key(&m.id)) {
            self.follow(&meta);
        }
        for change in self.tree.rescan() {
            match change {
                Change::Added(meta) => {
                    if self.tree.get(meta.id).is_some_and(|n| n.followed) {
                        self.follow(&meta);
                    }
                }
                // forgotten at the end of the round: the kernel's own word about it may be on its way
                Change::Gone(meta) => self.vanished.push(meta.id),
            }
        }
    }

    /// Ends the round: cgroups that were found gone are forgotten. Call it after the kernel's events were drained.
    pub fn forget_vanished(&mut self) {
        for id in std::mem::take(&mut self.vanished) {
            self.cgroup_gone(id);
        }
    }

    pub fn set_moving(&mut self, moving: Moving) {
        self.moving = moving;
    }

    /// All rows of a table that the store does not know yet; those on their way to it come with their other tables.
    pub fn rows(&self, table: Table, from_us: i64) -> Vec<Arc<Pending>> {
        let mut rows = self.moving.rows();
        rows.push(Arc::new(self.pending.only(table, from_us)));
        rows
    }

    /// Takes what the kernel side could not deliver into the account. The counts are totals since the start.
    pub fn note_losses(&mut self, losses: &Losses) {
        // a lost word about the limit leaves a kill without one, but is no row that is missing
        let rows = || losses.kinds.iter().filter(|k| k.kind != "oom_scope");
        let count = |get: fn(&KindLoss) -> u64| rows().map(get).sum::<u64>();
        let tree =
            losses.kinds.iter().filter(|k| k.kind.starts_with("cgroup_")).map(|k| k.lost + k.cut).sum();
        let now = EventLosses {
            full: count(|k| k.lost),
            cut: count(|k| k.cut),
            undecodable: losses.undecodable,
            tree,
        };
        let before = std::mem::replace(&mut self.event_losses, now);
        self.ledger.lost(Table::Events, "ring_full", now.full.saturating_sub(before.full));
        self.ledger.lost(Table::Events, "rate_limit", now.cut.saturating_sub(before.cut));
        self.ledger.lost(Table::Events, "undecodable", now.undecodable.saturating_sub(before.undecodable));
        // a birth or an end that was not told is found by a walk
        self.rescan_wanted |= now.tree > before.tree;
    }

    pub fn has_vanished(&self) -> bool {
        !self.vanished.is_empty()
    }
}
