//! What is sampled fast, and when: a pure state machine from (event, now) to decisions.
//!
//! No clock, no file, no cgroup is read here; `pipeline` asks and acts. A burst of a container ends by itself: extended
//! bursts have a longest length, after which the container must rest, so that no workload can keep the agent at its
//! high rate. What was asked for and not given is a decision too, and is counted by the caller.

use crate::names::CgroupId;
use std::collections::BTreeMap;

/// All times in ns of the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub period_ns: u64,
    pub length_ns: u64,
    pub max_concurrent: usize,
}

/// A burst that is extended again and again ends after this many lengths…
pub const LONGEST: u64 = 6;
/// …and then its container gets no new one for this many lengths.
pub const REST: u64 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suppressed {
    /// `burst.max_concurrent` bursts run already.
    TooManyBursts,
    /// The container had its longest burst and rests.
    Rest,
}

impl Suppressed {
    pub fn as_str(self) -> &'static str {
        match self {
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
    /// Nothing is sampled for this event; `ns` of the burst that it asked for were not asked for before.
    Suppress {
        why: Suppressed,
        ns: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Burst {
    number: u64,
    started_ns: u64,
    until_ns: u64,
    next_ns: u64,
}

/// A burst sample that is due, and how many before it were due and never taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    pub cgroup: CgroupId,
    pub burst: u64,
    pub missed: u64,
}

#[derive(Debug)]
pub struct Trigger {
    settings: Settings,
    numbers: u64,
    bursts: BTreeMap<CgroupId, Burst>,
    /// Containers that rest, and until when.
    resting: BTreeMap<CgroupId, u64>,
    /// Until when a container's suppressed bursts are accounted for, so that many events of one instant are not each
    /// a burst lost.
    suppressed: BTreeMap<CgroupId, u64>,
}

impl Trigger {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            numbers: 0,
            bursts: BTreeMap::new(),
            resting: BTreeMap::new(),
            suppressed: BTreeMap::new(),
        }
    }

    /// Something happened to a container (or pod): start its burst, or make the running one longer.
    pub fn fire(&mut self, cgroup: CgroupId, now_ns: u64) -> Decision {
        let s = self.settings;
        if let Some(burst) = self.bursts.get_mut(&cgroup) {
            let longest = burst.started_ns + LONGEST * s.length_ns;
            burst.until_ns = (now_ns + s.length_ns).min(longest).max(burst.until_ns);
            return Decision::Extend { burst: burst.number };
        }
        if self.resting.get(&cgroup).is_some_and(|until| now_ns < *until) {
            return self.suppress(cgroup, now_ns, Suppressed::Rest);
        }
        self.resting.remove(&cgroup);
        if self.bursts.len() >= s.max_concurrent {
            return self.suppress(cgroup, now_ns, Suppressed::TooManyBursts);
        }
        self.numbers += 1;
        let burst = Burst {
            number: self.numbers,
            started_ns: now_ns,
            until_ns: now_ns + s.length_ns,
            next_ns: now_ns,
        };
        self.bursts.insert(cgroup, burst);
        Decision::Start { burst: self.numbers }
    }

    fn suppress(&mut self, cgroup: CgroupId, now_ns: u64, why: Suppressed) -> Decision {
        let until = now_ns + self.settings.length_ns;
        let from = self.suppressed.insert(cgroup, until).unwrap_or(0).max(now_ns);
        Decision::Suppress { why, ns: until.saturating_sub(from) }
    }

    /// The instant of the next burst sample.
    pub fn next_due(&self) -> Option<u64> {
        self.bursts.values().map(|b| b.next_ns.min(b.until_ns)).min()
    }

    /// The burst samples due now. A late caller gets one sample and is told how many it missed.
    pub fn due(&mut self, now_ns: u64, mut sample: impl FnMut(Due)) {
        let period = self.settings.period_ns.max(1);
        for (&cgroup, burst) in &mut self.bursts {
            if burst.next_ns <= now_ns && burst.next_ns < burst.until_ns {
                let last = now_ns.min(burst.until_ns - 1);
                let missed = (last - burst.next_ns) / period;
                burst.next_ns += (missed + 1) * period;
                sample(Due { cgroup, burst: burst.number, missed });
            }
        }
    }

    /// Ends the bursts whose time is over, and says which.
    pub fn expire(&mut self, now_ns: u64) -> Vec<CgroupId> {
        let s = self.settings;
        let over: Vec<_> =
            self.bursts.iter().filter(|(_, b)| b.until_ns <= now_ns).map(|(c, b)| (*c, *b)).collect();
        for (cgroup, burst) in &over {
            self.bursts.remove(cgroup);
            if burst.until_ns >= burst.started_ns + LONGEST * s.length_ns {
                self.resting.insert(*cgroup, burst.until_ns + REST * s.length_ns);
            }
        }
        self.resting.retain(|_, until| now_ns < *until);
        self.suppressed.retain(|_, until| now_ns < *until);
        over.into_iter().map(|(c, _)| c).collect()
    }

    /// The container has gone: nothing is left to sample.
    pub fn gone(&mut self, cgroup: CgroupId) {
        self.bursts.remove(&cgroup);
    }

    pub fn running(&self) -> usize {
        self.bursts.len()
    }

    pub fn is_running(&self, cgroup: CgroupId) -> bool {
        self.bursts.contains_key(&cgroup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;
    const SETTINGS: Settings = Settings { period_ns: S / 20, length_ns: 10 * S, max_concurrent: 3 };

    fn count(t: &mut Trigger, from: u64, to: u64) -> (u64, u64) {
        let (mut taken, mut missed, mut now) = (0, 0, from);
        while now < to {
            t.due(now, |d| {
                taken += 1;
                missed += d.missed;
            });
            t.expire(now);
            now += S / 100;
        }
        (taken, missed)
    }

    #[test]
    fn a_burst_has_its_rate_and_its_length() {
        let mut t = Trigger::new(SETTINGS);
        assert_eq!(t.fire(CgroupId(1), S), Decision::Start { burst: 1 });
        assert_eq!(t.next_due(), Some(S));
        assert_eq!(count(&mut t, S, 30 * S), (200, 0));
        assert_eq!((t.running(), t.next_due()), (0, None));
    }

    #[test]
    fn overlapping_triggers_extend_one_burst() {
        let mut t = Trigger::new(SETTINGS);
        t.fire(CgroupId(1), S);
        assert_eq!(t.fire(CgroupId(1), 6 * S), Decision::Extend { burst: 1 });
        assert_eq!(count(&mut t, S, 40 * S), (300, 0));
    }

    #[test]
    fn a_stall_is_told_as_missed() {
        let mut t = Trigger::new(SETTINGS);
        t.fire(CgroupId(1), 0);
        let mut got = Vec::new();
        t.due(S, |d| got.push(d));
        assert_eq!(got, [Due { cgroup: CgroupId(1), burst: 1, missed: 20 }]);
    }

    #[test]
    fn the_budget_holds_and_the_rest_is_said() {
        let mut t = Trigger::new(SETTINGS);
        for i in 1..=3 {
            assert!(matches!(t.fire(CgroupId(i), 0), Decision::Start { .. }));
        }
        let why = Suppressed::TooManyBursts;
        assert_eq!(t.fire(CgroupId(4), 0), Decision::Suppress { why, ns: 10 * S });
    }

    #[test]
    fn what_many_events_ask_for_at_once_is_lost_once() {
        let mut t = Trigger::new(Settings { max_concurrent: 0, ..SETTINGS });
        let lost: u64 = [0, 0, S, 30 * S]
            .into_iter()
            .map(|now| match t.fire(CgroupId(4), now) {
                Decision::Suppress { ns, .. } => ns,
                _ => 0,
            })
            .sum();
        assert_eq!(lost, 21 * S);
        t.expire(60 * S);
        assert!(t.suppressed.is_empty());
    }

    proptest! {
        /// Whatever fires, no more bursts run than allowed, none lasts longer than the longest, and silence ends them all.
        #[test]
        fn never_above_budget_and_always_back_to_base(fires in proptest::collection::vec((0u64..6, 0u64..3 * S), 1..300)) {
            let mut t = Trigger::new(SETTINGS);
            let mut started: BTreeMap<u64, u64> = BTreeMap::new();
            let mut now = 0;
            for (cgroup, wait) in fires {
                now += wait;
                t.expire(now);
                let number = match t.fire(CgroupId(cgroup), now) {
                    Decision::Start { burst } => { started.insert(burst, now); Some(burst) }
                    Decision::Extend { burst } => Some(burst),
                    Decision::Suppress { .. } => None,
                };
                prop_assert!(t.running() <= SETTINGS.max_concurrent);
                if let Some(number) = number {
                    prop_assert!(now <= started[&number] + LONGEST * SETTINGS.length_ns);
                }
            }
            t.expire(now + (LONGEST + 1) * SETTINGS.length_ns);
            prop_assert_eq!(t.running(), 0);
            prop_assert_eq!(t.next_due(), None);
        }

        /// Samples taken + missed = samples due over the whole burst, however late the caller comes.
        #[test]
        fn due_is_taken_plus_missed(steps in proptest::collection::vec(1u64..2 * S, 1..100)) {
            let mut t = Trigger::new(SETTINGS);
            t.fire(CgroupId(1), 0);
            let (mut now, mut sum) = (0, 0);
            for step in steps {
                now += step;
                t.due(now, |d| sum += 1 + d.missed);
            }
            let expect = now.min(SETTINGS.length_ns - 1) / SETTINGS.period_ns + 1;
            prop_assert_eq!(sum, expect);
        }
    }
}
