//! Early warnings of one cgroup, from its own files: the time to look is before the damage.
//!
//! Pure. Fed with lane readings and base rows by `pipeline`; each warning starts or prolongs a burst and is a row in
//! `events`. A warning speaks once when its condition begins and is armed again only after the condition was gone for a
//! while: a container that lives at its limit with a full page cache is no news every second.

use crate::event::Kind;
use crate::names::CgroupId;
use serde_json::{Value, json};

const SECOND: u64 = 1_000_000_000;

/// `limit_near`: working set (usage less inactive file pages, which the kernel gives up first) from this share of the
/// limit on, in per cent…
const NEAR_PERCENT: u64 = 90;
/// …and armed again below this share.
const NEAR_AGAIN_PERCENT: u64 = 80;
/// `forecast_oom`: at the slope of the last second the limit is hit within this time…
const FORECAST_WITHIN_S: f64 = 10.0;
/// …and the working set is past this share of the limit, so that a start-up is no forecast…
const FORECAST_FROM_PERCENT: u64 = 50;
/// …and it rises by this share of the limit each second at least: near the limit any noise points at it…
const FORECAST_SLOPE_PERCENT: u64 = 1;
/// …for so many readings of the slope in a row, which are this far apart.
const FORECAST_TIMES: u32 = 3;
const SLOPE_STEP_NS: u64 = 250_000_000;
const SLOPE_OVER_NS: u64 = SECOND;
/// `cpu_throttled`: share of the scheduling periods of two base samples, in per cent.
const THROTTLED_PERCENT: u64 = 50;
const THROTTLED_AGAIN_PERCENT: u64 = 20;
const THROTTLED_MIN_PERIODS: u64 = 5;
/// `psi_stall`: share of the time between two base samples in which all tasks stood still, in per cent.
const MEMORY_FULL_PERCENT: u64 = 10;
const IO_FULL_PERCENT: u64 = 50;
const STALL_AGAIN_PERCENT: u64 = 5;
/// `memory_high`, `memory_max`, `fork_limit`: growth after this long without growth.
const QUIET_NS: u64 = 60 * SECOND;

/// The limit up the tree that leaves the least room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headroom {
    pub whose: CgroupId,
    /// Usage, inactive file pages and maximum of the cgroup whose limit it is.
    pub usage: u64,
    pub inactive_file: u64,
    pub max: u64,
}

impl Headroom {
    /// What the kernel cannot give up easily.
    fn working_set(self) -> u64 {
        self.usage.saturating_sub(self.inactive_file)
    }

    pub fn left(self) -> u64 {
        self.max.saturating_sub(self.working_set())
    }
}

/// Counters of a base row, as far as they were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub inactive_file: Option<u64>,
    pub events_high: Option<u64>,
    pub events_max: Option<u64>,
    pub pids_events_max: Option<u64>,
    pub nr_periods: Option<u64>,
    pub nr_throttled: Option<u64>,
    pub memory_full_usec: Option<u64>,
    pub io_full_usec: Option<u64>,
}

/// A warning and what it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Warning {
    pub kind: Kind,
    pub detail: Value,
}

/// A condition that speaks when it begins.
#[derive(Clone, Copy, Debug, Default)]
struct Latch {
    on: bool,
}

impl Latch {
    /// True when the condition has just begun.
    fn update(&mut self, begins: bool, over: bool) -> bool {
        let news = begins && !self.on;
        self.on = (self.on || begins) && !over;
        news
    }
}

/// What is remembered of one cgroup.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    before: Option<(u64, Counters)>,
    inactive_file: u64,
    near: Latch,
    forecast: Latch,
    rising: u32,
    /// Working sets of the last second, oldest first: (instant, bytes).
    slope: std::collections::VecDeque<(u64, u64)>,
    /// Whose they are.
    slope_of: Option<CgroupId>,
    throttled: Latch,
    memory_stall: Latch,
    io_stall: Latch,
    grew_high: Option<u64>,
    grew_max: Option<u64>,
    grew_pids: Option<u64>,
    /// The last reading of pids.events, a slow file: most rows are without it.
    refused: Option<u64>,
    reclaimed: Option<u64>,
}

fn percent(part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part) * 100 / u128::from(whole.max(1))).unwrap_or(u64::MAX)
}

impl Watch {
    /// A lane reading: the room that is left, of the cgroup and those above it.
    pub fn lane(&mut self, now_ns: u64, room: Headroom, mut warn: impl FnMut(Warning)) {
        if room.max == 0 {
            return;
        }
        let working_set = room.working_set();
        if self.slope_of.replace(room.whose) != Some(room.whose) {
            // from one cgroup's working set to another's there is no slope
            self.slope.clear();
            self.rising = 0;
        }
        let share = percent(working_set, room.max);
        if self.near.update(share >= NEAR_PERCENT, share < NEAR_AGAIN_PERCENT) {
            let detail = json!({"usage_bytes": room.usage, "working_set_bytes": working_set, "max_bytes": room.max, "share_percent": share});
            warn(Warning { kind: Kind::LimitNear, detail });
        }
        self.forecast(now_ns, working_set, room.max, &mut warn);
    }

    #[expect(clippy::cast_precision_loss, reason = "a forecast is no counter")]
    fn forecast(&mut self, now_ns: u64, working_set: u64, max: u64, warn: &mut impl FnMut(Warning)) {
        if self.slope.back().is_some_and(|(at, _)| now_ns < at + SLOPE_STEP_NS) {
            return;
        }
        self.slope.push_back((now_ns, working_set));
        while self
            .slope
            .front()
            .is_some_and(|(at, _)| now_ns.saturating_sub(*at) > SLOPE_OVER_NS + SLOPE_STEP_NS)
        {
            self.slope.pop_front();
        }
        let Some(&(first_ns, first)) = self.slope.front() else { return };
        let over = now_ns.saturating_sub(first_ns);
        if over < SLOPE_OVER_NS {
            return;
        }
        let per_second = (working_set.saturating_sub(first)) as f64 * 1e9 / over as f64;
        let seconds = if per_second > 0.0 {
            max.saturating_sub(working_set) as f64 / per_second
        } else {
            f64::INFINITY
        };
        let steep = per_second >= (max / 100 * FORECAST_SLOPE_PERCENT) as f64;
        let soon =
            steep && seconds <= FORECAST_WITHIN_S && percent(working_set, max) >= FORECAST_FROM_PERCENT;
        self.rising = if soon { self.rising + 1 } else { 0 };
        let news = self.forecast.update(self.rising >= FORECAST_TIMES, seconds > 6.0 * FORECAST_WITHIN_S);
        if news {
            let detail = json!({
                "seconds_to_limit": (seconds * 10.0).round() / 10.0,
                "bytes_per_second": per_second.round(),
                "working_set_bytes": working_set,
                "max_bytes": max,
            });
            warn(Warning { kind: Kind::ForecastOom, detail });
        }
    }

    /// Direct reclaim was told. True when it is the first after a quiet minute: a container that lives at its limit with a
    /// full page cache reclaims all the time.
    pub fn reclaim(&mut self, now_ns: u64) -> bool {
        let quiet = self.reclaimed.is_none_or(|at| now_ns.saturating_sub(at) >= QUIET_NS);
        self.reclaimed = Some(now_ns);
        quiet
    }

    pub fn inactive_file(&self) -> u64 {
        self.inactive_file
    }

    /// A base row of a cgroup that is not warned of, whose limit may be that of others.
    pub fn base_above(&mut self, now: Counters) {
        self.inactive_file = now.inactive_file.unwrap_or(0);
    }

    /// A base row, of the instant at which it was read.
    pub fn base(&mut self, now_ns: u64, now: Counters, mut warn: impl FnMut(Warning)) {
        self.inactive_file = now.inactive_file.unwrap_or(0);
        let refused = now.pids_events_max.and_then(|n| Some(n.saturating_sub(self.refused.replace(n)?)));
        let Some((then_ns, then)) = self.before.replace((now_ns, now)) else { return };
        let elapsed_usec = now_ns.saturating_sub(then_ns) / 1000;
        let growth = |get: fn(&Counters) -> Option<u64>| Some(get(&now)?.saturating_sub(get(&then)?));

        let events = [
            (Kind::MemoryHigh, growth(|c| c.events_high), &mut self.grew_high),
            (Kind::MemoryMax, growth(|c| c.events_max), &mut self.grew_max),
            (Kind::ForkLimit, refused, &mut self.grew_pids),
        ];
        for (kind, grew, last) in events {
            let Some(grew) = grew.filter(|g| *g > 0) else { continue };
            let quiet = last.is_none_or(|at| now_ns.saturating_sub(at) >= QUIET_NS);
            *last = Some(now_ns);
            if quiet {
                warn(Warning { kind, detail: json!({"grew_by": grew}) });
            }
        }

        if let (Some(periods), Some(throttled)) = (growth(|c| c.nr_periods), growth(|c| c.nr_throttled)) {
            let share = percent(throttled, periods);
            let enough = periods >= THROTTLED_MIN_PERIODS;
            if self.throttled.update(enough && share >= THROTTLED_PERCENT, share < THROTTLED_AGAIN_PERCENT) {
                let detail =
                    json!({"nr_periods": periods, "nr_throttled": throttled, "share_percent": share});
                warn(Warning { kind: Kind::CpuThrottled, detail });
            }
        }
        let stalls = [
            ("memory", growth(|c| c.memory_full_usec), MEMORY_FULL_PERCENT, &mut self.memory_stall),
            ("io", growth(|c| c.io_full_usec), IO_FULL_PERCENT, &mut self.io_stall),
        ];
        for (resource, stalled, from, latch) in stalls {
            let Some(stalled) = stalled else { continue };
            let share = percent(stalled, elapsed_usec);
            if latch.update(share >= from, share < STALL_AGAIN_PERCENT) {
                let detail = json!({"resource": resource, "full_usec": stalled, "share_percent": share});
                warn(Warning { kind: Kind::PsiStall, detail });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn lane(w: &mut Watch, at_ms: u64, usage_mib: u64) -> Vec<Kind> {
        lane_of(w, 7, at_ms, usage_mib)
    }

    fn lane_of(w: &mut Watch, whose: u64, at_ms: u64, usage_mib: u64) -> Vec<Kind> {
        let mut out = Vec::new();
        let inactive_file = w.inactive_file();
        let room = Headroom { whose: CgroupId(whose), usage: usage_mib * MIB, inactive_file, max: 100 * MIB };
        w.lane(at_ms * 1_000_000, room, |x| out.push(x.kind));
        out
    }

    fn base(w: &mut Watch, at_s: u64, c: Counters) -> Vec<Kind> {
        let mut out = Vec::new();
        w.base(at_s * SECOND, c, |x| out.push(x.kind));
        out
    }

    #[test]
    fn near_speaks_once_and_again_after_it_was_away() {
        let mut w = Watch::default();
        let says = [85, 91, 95, 85, 92, 70, 90].map(|mib| !lane(&mut w, 0, mib).is_empty());
        assert_eq!(says, [false, true, false, false, false, false, true]);
    }

    #[test]
    fn page_cache_at_the_limit_is_no_alarm() {
        let mut w = Watch::default();
        base(&mut w, 0, Counters { inactive_file: Some(60 * MIB), ..Counters::default() });
        assert!(lane(&mut w, 0, 100).is_empty());
    }

    #[test]
    fn another_cgroups_limit_is_no_slope() {
        let mut w = Watch::default();
        for i in 0..40 {
            assert!(lane_of(&mut w, 7, i * 100, 40).is_empty());
        }
        // its pod has less room from now on, with more in use
        for i in 40..80 {
            assert!(lane_of(&mut w, 8, i * 100, 80).is_empty(), "{i}");
        }
    }

    #[test]
    fn a_ramp_is_forecast_before_it_is_near() {
        let mut w = Watch::default();
        // 10 MiB a second from 40 of 100
        let first = (0..60).find_map(|i| lane(&mut w, i * 100, 40 + i).first().map(|k| (i, *k)));
        let (i, kind) = first.expect("a warning");
        assert_eq!(kind, Kind::ForecastOom);
        assert!((10..20).contains(&i), "at {} MiB", 40 + i);
    }

    #[test]
    fn a_start_up_and_a_sawtooth_below_half_are_no_forecast() {
        let mut w = Watch::default();
        for i in 0..300 {
            let usage = (i % 40) + 5;
            assert!(lane(&mut w, i * 100, usage).is_empty(), "at {i}");
        }
    }

    #[test]
    fn growth_after_quiet_speaks_and_steady_growth_does_not() {
        let mut w = Watch::default();
        let c = |n| Counters { events_max: Some(n), ..Counters::default() };
        let says: Vec<_> = (0..200).filter(|s| !base(&mut w, *s, c(*s)).is_empty()).collect();
        assert_eq!(says, [1]);
        assert!(base(&mut w, 300, c(199)).is_empty());
        assert_eq!(base(&mut w, 301, c(200)), [Kind::MemoryMax]);
    }

    #[test]
    fn throttling_and_stalls_are_shares_of_the_time_between_two_rows() {
        let mut w = Watch::default();
        let c = |periods, throttled, full| Counters {
            nr_periods: Some(periods),
            nr_throttled: Some(throttled),
            memory_full_usec: Some(full),
            ..Counters::default()
        };
        assert!(base(&mut w, 0, c(100, 0, 0)).is_empty());
        assert!(base(&mut w, 1, c(110, 2, 90_000)).is_empty());
        assert_eq!(base(&mut w, 2, c(120, 8, 190_000)), [Kind::CpuThrottled, Kind::PsiStall]);
        assert!(base(&mut w, 3, c(130, 16, 400_000)).is_empty(), "said once");
    }

    #[test]
    fn a_value_that_was_not_read_is_no_growth() {
        let mut w = Watch::default();
        base(&mut w, 0, Counters::default());
        assert!(base(&mut w, 1, Counters { events_max: Some(5), ..Counters::default() }).is_empty());
        assert!(base(&mut w, 2, Counters::default()).is_empty());
        assert!(base(&mut w, 3, Counters { events_max: Some(6), ..Counters::default() }).is_empty());
    }

    #[test]
    fn refused_forks_are_told_though_most_rows_are_without_them() {
        let mut w = Watch::default();
        let c = |n| Counters { pids_events_max: n, ..Counters::default() };
        let rows = [Some(0), None, None, Some(13), None, Some(13), None, Some(14)];
        let says: Vec<_> = rows.iter().enumerate().map(|(s, n)| base(&mut w, s as u64, c(*n))).collect();
        assert_eq!(says[3], [Kind::ForkLimit]);
        assert_eq!(says.concat().len(), 1, "and no more until it was quiet for a while");
    }

    proptest! {
        /// A container that stays where it is never warns more than once of each kind, whatever its level and noise.
        #[test]
        fn steady_never_cries_wolf(level in 1u64..99, noise in proptest::collection::vec(0u64..2, 600)) {
            let mut w = Watch::default();
            let mut count = 0;
            for (i, n) in noise.iter().enumerate() {
                let usage = level * MIB + n * MIB / 4;
                let room = Headroom { whose: CgroupId(7), usage, inactive_file: 0, max: 100 * MIB };
                w.lane(i as u64 * 50_000_000, room, |_| count += 1);
            }
            prop_assert!(count <= 1, "{count} warnings");
        }
    }
}
