//! All that the loop owns, and what it does as time passes: lane, base and burst samples, process tables, rotation.
//!
//! `react` beside this file holds what it does when the kernel reports something. Nothing here waits for anything.

use super::bursts::{self, Running};
use super::early::Early;
use super::handover::Handover;
use super::inits::Inits;
use super::lane::{Lane, Seen};
use super::limits::Change as LimitChange;
use super::names::{Unnamed, Young};
use super::notices::Notices;
use super::outage::Outage;
use super::sealer::{Job, Moving};
use super::spent::{Lap, Spent};
use super::tables::Tables;
use super::targets::Targets;
use super::time::Steps;
use super::warnings::Warnings;
use crate::accumulator::{NodeNames, Pending, Stamp};
use crate::cgroup::Meta;
use crate::clock::{self, Offset};
use crate::config::Config;
use crate::discovery::{Change, Tree};
use crate::ledger::Ledger;
use crate::names::{Cause, CgroupId, Scope, Table};
use crate::pods::Pods;
use crate::probes::{KindLoss, Losses};
use crate::processes::Unparsed;
use crate::recorder::Series;
use crate::sampler::{Network, Node, Plan, Sampler, Vanished};
use crate::story::{Blame, Story};
use crate::trigger::{Cost, Trigger};
use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::path::Path;
use std::sync::Arc;

pub(super) const MS: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1_000 * MS;
/// With mkdir and rmdir events the walk only corrects; without them it is how cgroups are found.
const RESCAN_WITH_EVENTS: u64 = 60 * SECOND;
pub(super) const RESCAN_WITHOUT: u64 = SECOND;
/// Base samples are looked for this often, so that they spread over the second instead of coming all at once.
const BASE_STEP: u64 = 50 * MS;
/// How often the process table of a container is read when nothing happens.
pub(super) const PROCESSES_EVERY: u64 = 10 * SECOND;
/// A cgroup younger than this has its slow files read with every base row.
pub(super) const YOUNG: u64 = 5 * SECOND;
/// A new container's first process is looked for until it is this old.
const INIT_WITHIN: u64 = 10 * SECOND;
const MINUTE: u64 = 60 * SECOND;
pub(super) const HOUR: u64 = 60 * MINUTE;
/// Cgroups that a walk has found are opened and read for the first time for so long a turn, and at least so many, so that
/// the lane of the others does not wait for thousands of them.
const FOLLOW_FOR: u64 = 5 * MS;
const FOLLOW_AT_LEAST: usize = 4;
pub(super) const PROC: &str = "/proc";

/// The next turn of a cgroup in a period. Its turns lie on a grid of its own, the same for periods that divide one another: a row that is due
/// every ten seconds is due with a row that is due every second, however late the loop came to it, and after a stall the grid goes on.
fn next_turn(id: CgroupId, now: u64, period: u64) -> u64 {
    let turn = now - now % period + agent_ebpf::phase(id.0, period);
    if turn > now { turn } else { turn + period }
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
    pub(super) node: Node,
    pub(super) network: Network,
    /// The agent's own metrics come from here.
    pub(super) series: Series,
    pub(super) targets: Targets,
    pub(super) trigger: Trigger,
    pub(super) burst_cost: Cost,
    pub(super) tables: Tables,
    /// Files of processes that could not be understood.
    pub(super) process_faults: Unparsed,
    pub(super) bursts: HashMap<CgroupId, Running>,
    pub(super) story: Story,
    pub(super) pods: Option<Pods>,
    pub(super) unnamed: Unnamed,
    pub(super) young: Young,
    pub(super) pending: Pending,
    pub(super) ledger: Ledger,
    pub(super) has_events: bool,
    pub(super) event_number: u64,
    /// Events of cgroups that are not in the tree: another machine's or another root's business.
    pub(super) outside: u64,
    pub(super) rescan_wanted: bool,
    pub(super) warnings: Warnings,
    /// Who last sent a signal to a container's init that may end it.
    pub(super) blames: HashMap<CgroupId, Blame>,
    pub(super) inits: Inits,
    /// The last change of each cgroup's memory limit.
    pub(super) limit_changes: HashMap<CgroupId, LimitChange>,
    pub(super) clock_steps: Steps,
    pub(super) lane: Lane,
    /// What the lane has seen and nobody has looked after yet.
    pub(super) seen: Seen,
    /// What it has read of those that are to be followed.
    pub(super) early: Early,
    pub(super) spent: Spent,
    pub(super) vanished: Vec<CgroupId>,
    /// The latest whose end their files told: the kernel's word about it, should it come late, tells nothing new.
    pub(super) found_gone: VecDeque<CgroupId>,
    /// While the kernel's events are behind the clock: the instant of the last that was reacted to.
    pub(super) heard_ns: Option<u64>,
    pub(super) notices: Notices,
    /// Found by a walk, to be followed when there is time: what holds most first.
    to_follow: VecDeque<Arc<Meta>>,
    pub(super) handover: Handover,
    event_losses: EventLosses,
    pub(super) next: Next,
    pub(super) last_rescan: u64,
    /// When base rows were looked for last.
    pub(super) last_base: u64,
    /// Bytes that each lane ring may take now.
    pub(super) ring_capacity: usize,
    /// Start of the lane's last tick and how late it was, for the status page.
    pub lane_late_max_ns: u64,
}

pub(super) struct Next {
    pub(super) lane: u64,
    base: u64,
    rescan: u64,
    offset: u64,
    pub(super) names: u64,
    pub(super) minute: u64,
    pub(super) node: u64,
    /// What is read of the node less often.
    pub(super) node_slow: u64,
}

impl State {
    pub fn new(
        config: Config,
        names: NodeNames,
        tree: Tree,
        mut sampler: Sampler,
        series: Series,
        lane: Lane,
        has_events: bool,
    ) -> Self {
        sampler.set_walks(lane.brings_rows());
        let now = clock::ktime_ns();
        let trigger = Trigger::new(bursts::settings(&config));
        let burst_cost = Cost::new(config.budget.rows_per_second, config.budget.cpu_percent);
        let story = Story::new(names.clone(), config.trigger.oom_kill.burst_length_s * SECOND);
        let next = Next {
            lane: now,
            base: now,
            rescan: now,
            offset: now,
            names: now + HOUR,
            minute: now + MINUTE,
            node: now,
            node_slow: now,
        };
        Self {
            handover: Handover::new(config.rotation.every_s, now),
            config,
            names,
            offset: Offset::measure(),
            tree,
            sampler,
            node: Node::new(Path::new(PROC)),
            network: Network::new(Path::new(PROC)),
            series,
            targets: Targets::default(),
            pods: None,
            unnamed: Unnamed::default(),
            young: Young::default(),
            trigger,
            burst_cost,
            tables: Tables::default(),
            process_faults: Unparsed::new(),
            bursts: HashMap::new(),
            story,
            pending: Pending::default(),
            ledger: Ledger::default(),
            has_events,
            event_number: 0,
            outside: 0,
            rescan_wanted: false,
            warnings: Warnings::default(),
            blames: HashMap::new(),
            inits: Inits::default(),
            limit_changes: HashMap::new(),
            clock_steps: Steps::default(),
            lane,
            seen: Seen::default(),
            early: Early::default(),
            spent: Spent::default(),
            vanished: Vec::new(),
            found_gone: VecDeque::new(),
            heard_ns: None,
            notices: Notices::default(),
            to_follow: VecDeque::new(),
            event_losses: EventLosses::default(),
            next,
            last_rescan: 0,
            last_base: now,
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
        if !self.to_follow.is_empty() {
            return 0;
        }
        let fixed = [n.lane, n.base, n.rescan, n.offset, self.handover.next_due(), n.minute, n.node];
        let moving = [self.trigger.next_due(), self.story.next_deadline()];
        fixed.into_iter().chain(moving.into_iter().flatten()).min().unwrap_or(n.lane)
    }

    /// Does all that is due. Returns a job for the sealer when rows are to be handed over.
    pub fn tick(&mut self, now: u64) -> Option<Job> {
        if self.next.offset <= now {
            self.measure_clock(now);
            for incident in self.story.learn() {
                self.revise(incident);
            }
            self.note_names(now);
            self.next.offset = now + SECOND;
        }
        self.lane_if_due();
        self.burst_tick(now);
        if self.next.base <= now {
            self.base_tick(now);
            self.last_base = now;
            self.next.base = if self.lane.brings_rows() { self.next.lane } else { now + BASE_STEP };
        }
        if self.next.node <= now {
            self.node_tick(now);
        }
        if self.next.rescan <= now || self.rescan_wanted {
            self.rescan(now);
            self.check_sums(now);
        }
        self.follow_some();
        // what waits in the kernel's ring may belong to an incident whose time is over by the clock
        for incident in self.story.close_due(self.heard_ns.unwrap_or(now)) {
            self.revise(incident);
        }
        if self.next.minute <= now {
            self.close_ledger(now);
        }
        self.hand_over(now)
    }

    /// Takes the time in which no agent ran into the account.
    pub fn note_outage(&mut self, outage: Outage) {
        let now = clock::ktime_ns();
        let down_ns = now.saturating_sub(outage.last_ktime_ns);
        let rows = outage.cgroups * (down_ns / (self.config.sampling.base_period_ms * MS));
        if rows > 0 {
            tracing::warn!(
                seconds = down_ns / SECOND,
                rows,
                "no agent recorded since the last sample in the store"
            );
            self.ledger.lost(Table::Samples, "agent_down", rows);
            self.close_ledger(now);
        }
    }

    /// Rows of a cgroup that were due and are not there: into the account, and into its incident, if one is open or comes soon.
    pub(super) fn lost_of(&mut self, id: CgroupId, table: Table, reason: &'static str, rows: u64) {
        self.ledger.lost(table, reason, rows);
        self.story.lost(id, clock::ktime_ns(), table, reason, rows);
    }

    /// Starts to follow a cgroup and takes its first sample at once: it may not live long.
    pub(super) fn follow(&mut self, meta: &Arc<Meta>) {
        let now = clock::ktime_ns();
        let ring = self.ring(meta.id);
        let Some(target) = self.sampler.open(meta, ring, now) else { return };
        self.targets.insert(meta.id, target);
        self.young.saw(meta, now);
        let plan = Plan { slow: true, loose: true, ..self.base_plan() };
        self.sample(meta.id, plan);
        let period = self.config.sampling.base_period_ms * MS;
        if let Some(t) = self.targets.get_mut(&meta.id) {
            t.next_base_ns = next_turn(meta.id, now, period);
            // its first process may need a moment to begin
            t.next_table_ns = next_turn(meta.id, now, SECOND);
            t.next_slow_ns = next_turn(meta.id, now, self.config.sampling.slow_period_ms * MS);
        }
    }

    /// Follows some of those that wait for it.
    fn follow_some(&mut self) {
        let end = clock::ktime_ns() + FOLLOW_FOR;
        let mut followed = 0;
        while followed < FOLLOW_AT_LEAST || clock::ktime_ns() < end {
            let Some(meta) = self.to_follow.pop_front() else { return };
            // it may have gone meanwhile
            if self.tree.get(meta.id).is_some_and(|n| n.followed) && !self.targets.contains_key(&meta.id) {
                self.follow(&meta);
                followed += 1;
                self.lane_if_due();
            }
        }
    }

    /// Follows one out of its turn: something happens in it.
    pub(super) fn follow_now(&mut self, id: CgroupId) {
        if let Some(at) = self.to_follow.iter().position(|m| m.id == id)
            && let Some(meta) = self.to_follow.remove(at)
        {
            self.follow(&meta);
        }
    }

    /// Cgroups that are known and wait for their first sample.
    pub fn waiting(&self) -> usize {
        self.to_follow.len()
    }

    /// The order in which those that a walk has found are followed: containers before pods before services, and of each
    /// the largest first, since that is where something is most likely to happen.
    fn in_order(&self, found: Vec<Arc<Meta>>) -> Vec<Arc<Meta>> {
        let memory = |meta: &Meta| -> u64 {
            let text = fs::read_to_string(self.tree.path(meta).join("memory.current")).unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        };
        let rank = |meta: &Meta| match meta.identity.scope {
            Scope::Container => 0,
            Scope::Pod => 1,
            Scope::Service => 2,
            Scope::Other | Scope::Node => 3,
        };
        let mut found = found;
        found.sort_by_cached_key(|meta| (rank(meta), Reverse(memory(meta))));
        found
    }

    /// Forgets a cgroup that has gone.
    pub(super) fn unfollow(&mut self, id: CgroupId, ktime_ns: u64) {
        if let Some(target) = self.targets.remove(&id) {
            self.sampler.close(&target);
        }
        self.trigger.gone(id, ktime_ns);
        self.warnings.forget(id);
        self.blames.remove(&id);
        self.inits.forget(id);
        self.limit_changes.remove(&id);
        self.bursts.remove(&id);
        self.story.gone(id, ktime_ns);
        self.notices.forget(id);
    }

    /// How a base row without slow files is taken.
    pub(super) fn base_plan(&self) -> Plan<'static> {
        let period_ms = u32::try_from(self.config.sampling.base_period_ms).unwrap_or(u32::MAX);
        Plan { cause: Cause::Base, period_ms, burst: None, slow: false, loose: false, in_lane: false }
    }

    /// Takes one row of a cgroup. One that has gone is remembered and forgotten at the end of the round, when the
    /// kernel's last events about it are in.
    pub(super) fn sample(&mut self, id: CgroupId, plan: Plan<'_>) -> Option<Stamp> {
        let last_look = if plan.slow { self.last_look_at_limit(id) } else { 0 };
        let target = self.targets.get_mut(&id)?;
        let (before, is_first) = (target.memory_max, target.last_row_ns == 0);
        let taken = self.sampler.sample(target, plan, self.offset, &mut self.pending);
        let after = target.memory_max;
        if let Ok(taken) = &taken {
            self.seen.row(target, taken);
        }
        if let (Ok(taken), true) = (&taken, before != after && !is_first) {
            let not_after_ns = taken.at.ktime_ns;
            self.limit_changed(
                id,
                "files",
                LimitChange { before, after, not_before_ns: last_look, not_after_ns },
            );
        }
        match taken {
            Ok(taken) => {
                self.ledger.written(Table::Samples, 1);
                self.ledger.written(Table::Metrics, taken.metrics);
                self.ledger.written(Table::IoDevices, taken.devices);
                self.ledger.lost(Table::Metrics, "too_many", taken.cut);
            }
            Err(Vanished) => self.vanished.push(id),
        }
        taken.ok().map(|t| t.at)
    }

    fn base_tick(&mut self, now: u64) {
        let (period, slow_period) =
            (self.config.sampling.base_period_ms * MS, self.config.sampling.slow_period_ms * MS);
        let (mut due, mut tables) = (Vec::new(), Vec::new());
        let mut lap = Lap::begin();
        for (id, target) in &mut self.targets {
            if target.next_table_ns <= now && target.meta.identity.scope == Scope::Container {
                // each has an instant of its own within the period: all tables at once would hold up the lane
                target.next_table_ns = next_turn(*id, now, PROCESSES_EVERY);
                tables.push(*id);
            }
            if target.next_base_ns > now {
                continue;
            }
            let missed = (now - target.next_base_ns) / period;
            target.next_base_ns += (missed + 1) * period;
            // limits are often written just after the directory is made: a young cgroup's are read with every row
            let age = now.saturating_sub(target.first_seen_ns);
            let loose = target.next_slow_ns <= now || std::mem::take(&mut target.loose_wanted);
            let slow = loose || age < YOUNG;
            if loose {
                target.next_slow_ns = next_turn(*id, now, slow_period);
            }
            due.push((*id, slow, loose, missed, age < INIT_WITHIN));
        }
        // those with slow files behind the others, so that the clock tells the tiers apart
        due.sort_by_key(|(_, slow, ..)| *slow);
        let (hot, count) = (due.partition_point(|(_, slow, ..)| !slow), due.len());
        for (n, (id, slow, loose, missed, look_for_init)) in due.into_iter().enumerate() {
            if n == hot {
                self.spent.hot += lap.ns();
            }
            self.lost_of(id, Table::Samples, "late", missed);
            if look_for_init {
                self.look_for_init(id);
            }
            let plan = Plan { slow, loose, ..self.base_plan() };
            if let Some(stamp) = self.sample(id, plan) {
                *(if slow { &mut self.spent.slow_samples } else { &mut self.spent.hot_samples }) += 1;
                self.watch_base(id, stamp.ktime_ns);
                self.check_kills(id, stamp.ktime_ns);
            }
            lap.leave_out(self.lane_if_due());
        }
        *(if hot < count { &mut self.spent.slow } else { &mut self.spent.hot }) += lap.ns();
        for id in tables {
            self.process_table(id);
            lap.leave_out(self.lane_if_due());
        }
        self.spent.processes += lap.ns();
    }

    pub(super) fn rescan(&mut self, now: u64) {
        let first = self.targets.is_empty();
        self.rescan_wanted = false;
        self.last_rescan = now;
        let told = self.has_events || self.notices.finds_all_cgroups();
        self.next.rescan = now + if told { RESCAN_WITH_EVENTS } else { RESCAN_WITHOUT };
        let root = self.tree.get(self.tree.root()).filter(|n| n.followed).map(|n| n.meta.clone());
        if let Some(meta) = root.filter(|m| first && !self.targets.contains_key(&m.id)) {
            self.follow(&meta);
        }
        let mut found = Vec::new();
        for change in self.tree.rescan() {
            match change {
                Change::Added(meta) => {
                    if !first && !self.has_events {
                        self.restarted(&meta, now);
                    }
                    found.extend(self.tree.get(meta.id).filter(|n| n.followed).map(|n| n.meta.clone()));
                }
                // forgotten at the end of the round: the kernel's own word about it may be on its way
                Change::Gone(meta) => self.vanished.push(meta.id),
            }
        }
        if found.len() > FOLLOW_AT_LEAST {
            found = self.in_order(found);
        }
        self.to_follow.extend(found);
    }

    /// Ends the round: cgroups that were found gone are forgotten. Call it after the kernel's events were drained.
    pub fn forget_vanished(&mut self) {
        for id in std::mem::take(&mut self.vanished) {
            self.cgroup_gone(id);
        }
    }

    pub fn set_moving(&mut self, moving: Moving) {
        self.handover.set_moving(moving);
    }

    /// All rows of a table that the store does not know yet; those on their way to it come with their other tables.
    pub fn rows(&self, table: Table, from_us: i64) -> Vec<Arc<Pending>> {
        let mut rows = self.handover.moving().rows();
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
