//! What is sampled fast, and when: a pure state machine from (event, now) to decisions.
//!
//! No clock, no file, no cgroup is read here; `pipeline` asks and acts. Each kind of trigger has its settings. All bursts
//! together stay within a budget of rows a second: when it is short, bursts of the lowest severity slow down first, then
//! stand still; a pod's second burst stands behind every pod's first of the same severity, and what a pod has beyond its
//! share behind all others of any severity, so that no neighbour pays for a pod that triggers all the time. A burst that is extended again and again has a longest length, after which its
//! container rests. What was asked for and not given is told, for the caller to count.

mod cost;

pub use cost::Cost;

use crate::event::{KINDS, Kind};
use crate::names::{CgroupId, Severity};
use std::collections::BTreeMap;

/// What one kind of trigger does. All times in ns of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindSettings {
    pub enabled: bool,
    pub period_ns: u64,
    pub length_ns: u64,
    /// The same kind of the same container triggers again only after this.
    pub cool_down_ns: u64,
    /// How much of the lane's ring is written.
    pub history_ns: u64,
}

#[derive(Clone, Debug)]
pub struct Settings {
    /// By `Kind as usize`.
    pub kinds: [KindSettings; KINDS],
    /// Burst rows a second, all bursts together.
    pub rows_per_second: u64,
    pub max_concurrent: usize,
}

/// A burst that is extended again and again ends after this many lengths…
pub const LONGEST: u64 = 6;
/// …and then its container gets no new one for this many lengths.
pub const REST: u64 = 1;
/// Bursts of one pod that compete with others by their severity. A pod of so many containers that are killed at once is rare.
const SHARE: usize = 4;
/// A burst slower than this tells no more than the base samples do: it stands still instead.
const SLOWEST_NS: u64 = 1_000_000_000;
const SECOND: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suppressed {
    /// This kind is switched off.
    Disabled,
    /// The same kind triggered for this container a moment ago.
    CoolDown,
    /// `burst.max_concurrent` bursts of at least this severity run already.
    TooManyBursts,
    /// The container had its longest burst and rests.
    Rest,
}

impl Suppressed {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "burst_disabled",
            Self::CoolDown => "burst_cool_down",
            Self::TooManyBursts => "burst_budget",
            Self::Rest => "burst_rest",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Start {
        burst: u64,
    },
    Extend {
        burst: u64,
    },
    /// Nothing is sampled for this event; of the burst that it asked for so many samples were not asked for before.
    Suppress {
        why: Suppressed,
        samples: u64,
    },
}

/// Who triggers.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub cgroup: CgroupId,
    /// Its pod, or itself where there is none: what the budget is shared between.
    pub pod: CgroupId,
    pub kind: Kind,
    /// Rows of each burst sample: the cgroups that are sampled together.
    pub rows: u64,
}

#[derive(Clone, Copy, Debug)]
struct Burst {
    number: u64,
    pod: CgroupId,
    severity: Severity,
    rows: u64,
    /// As asked for.
    wanted_ns: u64,
    /// As the budget allows; `None` = stands still.
    period_ns: Option<u64>,
    length_ns: u64,
    started_ns: u64,
    until_ns: u64,
    next_ns: u64,
}

/// A burst sample that is due, and how many were due and are not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    pub cgroup: CgroupId,
    pub burst: u64,
    /// The period in force; `None` = the burst stands still, take no sample.
    pub period_ns: Option<u64>,
    /// The caller came too late for these.
    pub late: u64,
    /// The budget does not allow these.
    pub budget: u64,
}

#[derive(Debug)]
pub struct Trigger {
    settings: Settings,
    numbers: u64,
    bursts: BTreeMap<CgroupId, Burst>,
    /// Containers that rest, and until when.
    resting: BTreeMap<CgroupId, u64>,
    /// Until when a kind of a container is not to trigger again.
    cooling: BTreeMap<(CgroupId, Kind), u64>,
    /// The first sample of a container's suppressed bursts that is not accounted for, so that many events of one instant are not
    /// each a burst lost.
    suppressed: BTreeMap<CgroupId, u64>,
    /// Bursts that gave way to more severe ones, with the samples that they will not take.
    evicted: Vec<(CgroupId, u64)>,
}

impl Trigger {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            numbers: 0,
            bursts: BTreeMap::new(),
            resting: BTreeMap::new(),
            cooling: BTreeMap::new(),
            suppressed: BTreeMap::new(),
            evicted: Vec::new(),
        }
    }

    /// From now on so many burst rows a second, all bursts together.
    pub fn allow(&mut self, rows_per_second: u64, now_ns: u64) {
        self.settings.rows_per_second = rows_per_second;
        self.share_out(now_ns);
    }

    pub fn settings(&self, kind: Kind) -> KindSettings {
        self.settings.kinds[kind as usize]
    }

    /// Something happened to a container (or pod): start its burst, or make the running one longer.
    pub fn fire(&mut self, request: Request, now_ns: u64) -> Decision {
        let Request { cgroup, pod, kind, rows } = request;
        let s = self.settings(kind);
        if !s.enabled {
            return Decision::Suppress { why: Suppressed::Disabled, samples: 0 };
        }
        if self.cooling.get(&(cgroup, kind)).is_some_and(|until| now_ns < *until) {
            return self.suppress(cgroup, s, now_ns, Suppressed::CoolDown);
        }
        let decision = self.admit(cgroup, pod, kind, rows, now_ns);
        if s.cool_down_ns > 0 && !matches!(decision, Decision::Suppress { .. }) {
            self.cooling.insert((cgroup, kind), now_ns + s.cool_down_ns);
        }
        decision
    }

    fn admit(&mut self, cgroup: CgroupId, pod: CgroupId, kind: Kind, rows: u64, now_ns: u64) -> Decision {
        let s = self.settings(kind);
        if let Some(burst) = self.bursts.get_mut(&cgroup) {
            let longest = burst.started_ns + LONGEST * burst.length_ns;
            burst.until_ns = (now_ns + s.length_ns).min(longest).max(burst.until_ns);
            burst.severity = burst.severity.max(kind.severity());
            burst.wanted_ns = burst.wanted_ns.min(s.period_ns);
            let number = burst.number;
            self.share_out(now_ns);
            return Decision::Extend { burst: number };
        }
        if self.resting.get(&cgroup).is_some_and(|until| now_ns < *until) {
            return self.suppress(cgroup, s, now_ns, Suppressed::Rest);
        }
        self.resting.remove(&cgroup);
        if self.bursts.len() >= self.settings.max_concurrent {
            let Some(other) = self.gives_way_to(pod, kind.severity()) else {
                return self.suppress(cgroup, s, now_ns, Suppressed::TooManyBursts);
            };
            if let Some(b) = self.bursts.remove(&other) {
                self.evicted.push((other, b.until_ns.saturating_sub(b.next_ns).div_ceil(b.wanted_ns)));
            }
        }
        self.numbers += 1;
        let burst = Burst {
            number: self.numbers,
            pod,
            severity: kind.severity(),
            rows: rows.max(1),
            wanted_ns: s.period_ns.max(1),
            period_ns: None,
            length_ns: s.length_ns,
            started_ns: now_ns,
            until_ns: now_ns + s.length_ns,
            next_ns: now_ns,
        };
        self.bursts.insert(cgroup, burst);
        self.share_out(now_ns);
        Decision::Start { burst: self.numbers }
    }

    /// The burst that makes room: the least severe one, if it is less severe than this; else, for a pod that has not its share, the
    /// last of a pod that has more than that. A pod that has its share takes no place of one that has no more.
    fn gives_way_to(&self, pod: CgroupId, severity: Severity) -> Option<CgroupId> {
        let mut of_pod: BTreeMap<CgroupId, usize> = BTreeMap::new();
        for burst in self.bursts.values() {
            *of_pod.entry(burst.pod).or_default() += 1;
        }
        let has = |pod: CgroupId| of_pod.get(&pod).copied().unwrap_or(0);
        let may = |b: &Burst| has(pod) < SHARE || has(b.pod) > SHARE || b.pod == pod;
        let less = self.bursts.iter().filter(|(_, b)| b.severity < severity && may(b));
        if let Some((least, _)) = less.min_by_key(|(_, b)| (b.severity, b.started_ns)) {
            return Some(*least);
        }
        let beyond = self.bursts.iter().filter(|(_, b)| has(b.pod) > SHARE);
        let last = beyond.min_by_key(|(_, b)| (b.severity, std::cmp::Reverse(b.number)));
        last.filter(|_| has(pod) < SHARE).map(|(c, _)| *c)
    }

    fn suppress(&mut self, cgroup: CgroupId, s: KindSettings, now_ns: u64, why: Suppressed) -> Decision {
        // a burst that runs samples what is asked for up to its end
        let runs_until = self.bursts.get(&cgroup).map_or(0, |b| b.until_ns);
        let accounted = self.suppressed.get(&cgroup).copied().unwrap_or(0);
        let next = accounted.max(runs_until).max(now_ns);
        let samples = (now_ns + s.length_ns).saturating_sub(next).div_ceil(s.period_ns.max(1));
        if samples > 0 {
            self.suppressed.insert(cgroup, next + samples * s.period_ns.max(1));
        }
        Decision::Suppress { why, samples }
    }

    /// Gives the budget to the bursts, the most severe first, each pod's first before any pod's second, and those beyond a pod's
    /// share last.
    fn share_out(&mut self, now_ns: u64) {
        let mut order: Vec<CgroupId> = self.bursts.keys().copied().collect();
        order.sort_by_key(|c| {
            let b = &self.bursts[c];
            (std::cmp::Reverse(b.severity), b.started_ns, b.number)
        });
        let mut of_severity: BTreeMap<(Severity, CgroupId), u64> = BTreeMap::new();
        let mut of_pod: BTreeMap<CgroupId, usize> = BTreeMap::new();
        let mut ranked: Vec<_> = order
            .into_iter()
            .map(|c| {
                let b = &self.bursts[&c];
                let rank = of_severity.entry((b.severity, b.pod)).or_default();
                *rank += 1;
                let all = of_pod.entry(b.pod).or_default();
                *all += 1;
                ((*all > SHARE, std::cmp::Reverse(b.severity), *rank), c)
            })
            .collect();
        // stable: within a rank the order of their start stays
        ranked.sort_by_key(|(rank, _)| *rank);
        // in rows per second × 1000, so that slow bursts are not rounded away
        let mut left = self.settings.rows_per_second * 1000;
        for (_, cgroup) in ranked {
            let Some(burst) = self.bursts.get_mut(&cgroup) else { continue };
            let before = burst.period_ns;
            let cost = |period: u64| (burst.rows * SECOND * 1000).div_ceil(period);
            let mut period = burst.wanted_ns;
            while period < SLOWEST_NS && cost(period) > left {
                period = (period * 2).min(SLOWEST_NS);
            }
            if cost(period) <= left {
                left -= cost(period);
                burst.period_ns = Some(period);
                if before.is_none() {
                    burst.next_ns = burst.next_ns.max(now_ns);
                }
            } else {
                burst.period_ns = None;
            }
        }
    }

    /// The instant of the next burst sample or end of a burst.
    pub fn next_due(&self) -> Option<u64> {
        self.bursts
            .values()
            .map(|b| if b.period_ns.is_some() { b.next_ns.min(b.until_ns) } else { b.until_ns })
            .min()
    }

    /// The burst samples due now. A late caller gets one sample and is told how many it missed. To be called before
    /// `expire`, so that the account of a burst that ends is whole.
    pub fn due(&mut self, now_ns: u64, mut sample: impl FnMut(Due)) {
        for (&cgroup, burst) in &mut self.bursts {
            if burst.next_ns > now_ns || burst.next_ns >= burst.until_ns {
                continue;
            }
            let last = now_ns.min(burst.until_ns - 1);
            let step = burst.period_ns.unwrap_or(burst.wanted_ns);
            let steps = (last - burst.next_ns) / step + 1;
            let (late, budget) = match burst.period_ns {
                // a slowed burst leaves out samples between this one and the last
                Some(period) => (steps - 1, (period / burst.wanted_ns - 1) * steps),
                None => (0, steps),
            };
            burst.next_ns += steps * step;
            sample(Due { cgroup, burst: burst.number, period_ns: burst.period_ns, late, budget });
        }
    }

    /// Bursts that gave way to more severe ones since the last call, with the samples that they will not take.
    pub fn take_evicted(&mut self) -> Vec<(CgroupId, u64)> {
        std::mem::take(&mut self.evicted)
    }

    /// Ends the bursts whose time is over, and says which.
    pub fn expire(&mut self, now_ns: u64) -> Vec<CgroupId> {
        let over: Vec<_> =
            self.bursts.iter().filter(|(_, b)| b.until_ns <= now_ns).map(|(c, b)| (*c, *b)).collect();
        for (cgroup, burst) in &over {
            self.bursts.remove(cgroup);
            if burst.until_ns >= burst.started_ns + LONGEST * burst.length_ns {
                self.resting.insert(*cgroup, burst.until_ns + REST * burst.length_ns);
            }
        }
        if !over.is_empty() {
            self.share_out(now_ns);
        }
        self.resting.retain(|_, until| now_ns < *until);
        self.cooling.retain(|_, until| now_ns < *until);
        self.suppressed.retain(|_, until| now_ns < *until);
        over.into_iter().map(|(c, _)| c).collect()
    }

    /// The container has gone: nothing is left to sample.
    pub fn gone(&mut self, cgroup: CgroupId, now_ns: u64) {
        if self.bursts.remove(&cgroup).is_some() {
            self.share_out(now_ns);
        }
    }

    pub fn running(&self) -> usize {
        self.bursts.len()
    }

    /// The period in force of a container's burst, if one runs.
    pub fn period_ns(&self, cgroup: CgroupId) -> Option<u64> {
        self.bursts.get(&cgroup)?.period_ns
    }

    /// Whether a burst runs for it; one that gave way to a more severe one does not.
    pub fn is_running(&self, cgroup: CgroupId) -> bool {
        self.bursts.contains_key(&cgroup)
    }

    /// Rows a second that the running bursts take by their periods, rounded up.
    pub fn rows_per_second(&self) -> u64 {
        let all = self.bursts.values().filter_map(|b| Some((b.rows * SECOND * 1000).div_ceil(b.period_ns?)));
        all.sum::<u64>().div_ceil(1000)
    }
}

#[cfg(test)]
mod tests;
