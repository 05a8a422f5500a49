//! Time: the kernel's monotonic clock, and the measured offset that maps it to wall time.
//!
//! The only file that reads a clock. Every row carries both times; the monotonic one orders, the wall one is for people.

use rustix::time::{ClockId, clock_gettime};

#[expect(clippy::cast_sign_loss, reason = "neither clock runs before its epoch")]
fn read(id: ClockId) -> u64 {
    let t = clock_gettime(id);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// `CLOCK_MONOTONIC` in ns: the same clock as `bpf_ktime_get_ns`.
pub fn ktime_ns() -> u64 {
    read(ClockId::Monotonic)
}

/// Wall time (`CLOCK_REALTIME`) in µs since the Unix epoch.
pub fn wall_us() -> i64 {
    i64::try_from(read(ClockId::Realtime) / 1000).unwrap_or(i64::MAX)
}

/// CPU time of the whole process, in ns.
pub fn process_cpu_ns() -> u64 {
    read(ClockId::ProcessCPUTime)
}

/// CPU time of the calling thread, in ns.
pub fn thread_cpu_ns() -> u64 {
    read(ClockId::ThreadCPUTime)
}

/// The wall clock and the monotonic one drift apart by less than 1 ms a second (adjtimex allows 500 ppm); more is a jump.
const STEP_NS: i128 = 50_000_000;

/// wall − monotonic, measured. Re-measured once a second, so that an NTP step or a suspend shows within that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    ns: i128,
    /// `CLOCK_BOOTTIME` − `CLOCK_MONOTONIC`: how long the machine has been suspended, in all.
    suspended_ns: i128,
}

/// What happened to the wall clock between two measurements, beyond the passing of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// By how much it was set: forward when positive.
    pub wall_ns: i64,
    /// How long the machine was suspended; the monotonic clock stood still meanwhile, the wall clock did not.
    pub suspended_ns: i64,
}

impl Offset {
    /// Of five readings keeps the one whose two monotonic readings lie closest together: the wall reading between them
    /// is then known to half that gap, well below a microsecond on an idle machine.
    pub fn measure() -> Self {
        let mut best = (u64::MAX, 0i128);
        for _ in 0..5 {
            let before = ktime_ns();
            let wall = read(ClockId::Realtime);
            let gap = ktime_ns().saturating_sub(before);
            if gap < best.0 {
                best = (gap, i128::from(wall) - i128::from(before + gap / 2));
            }
        }
        let before = ktime_ns();
        let boot = read(ClockId::Boottime);
        Self { ns: best.1, suspended_ns: i128::from(boot) - i128::from(before) }
    }

    /// An offset given by hand, for tests and for reading files back.
    pub fn from_ns(ns: i64) -> Self {
        Self { ns: i128::from(ns), suspended_ns: 0 }
    }

    /// A jump of the wall clock since an earlier measurement, if it was one.
    pub fn step_since(self, earlier: Self) -> Option<Step> {
        let suspended = self.suspended_ns - earlier.suspended_ns;
        // the two clocks are not read in one instant
        let suspended = if suspended < STEP_NS { 0 } else { suspended };
        let wall = self.ns - earlier.ns - suspended;
        let ns = |v: i128| i64::try_from(v).unwrap_or(if v < 0 { i64::MIN } else { i64::MAX });
        (wall.abs() >= STEP_NS || suspended > 0)
            .then_some(Step { wall_ns: ns(wall), suspended_ns: ns(suspended) })
    }

    pub fn as_ns(self) -> i64 {
        i64::try_from(self.ns).unwrap_or(i64::MAX)
    }

    /// Maps an instant of the monotonic clock to wall time in µs since the Unix epoch.
    pub fn wall_us(self, ktime_ns: u64) -> i64 {
        i64::try_from((i128::from(ktime_ns) + self.ns).div_euclid(1000)).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measured_offset_maps_now_to_now() {
        let offset = Offset::measure();
        let error = offset.wall_us(ktime_ns()) - wall_us();
        assert!(error.abs() < 100_000, "off by {error} µs");
    }

    #[test]
    fn a_step_is_told_from_a_suspend_and_from_a_slow_drift() {
        const S: i128 = 1_000_000_000;
        let at = |ns, suspended_ns| Offset { ns, suspended_ns };
        let step = |to: Offset| to.step_since(at(1000 * S, 5 * S)).map(|s| (s.wall_ns, s.suspended_ns));
        assert_eq!(step(at(1000 * S + 500_000, 5 * S)), None, "adjtimex at work");
        assert_eq!(step(at(4600 * S, 5 * S)), Some((3_600_000_000_000, 0)));
        assert_eq!(step(at(400 * S, 5 * S)), Some((-600_000_000_000, 0)));
        // an hour asleep: wall time went on, monotonic time did not
        let woken = at(4600 * S, 3605 * S);
        assert_eq!(step(woken), Some((0, 3_600_000_000_000)));
        assert_eq!(
            step(at(4601 * S, 3605 * S)),
            Some((1_000_000_000, 3_600_000_000_000)),
            "and set after it"
        );
        // rows of before and after: order by monotonic time, an hour apart by wall time
        let (before, after) = (at(1000 * S, 5 * S).wall_us(2_000_000_000), woken.wall_us(2_000_001_000));
        assert_eq!(after - before, 3_600_000_001);
    }

    #[test]
    fn the_monotonic_clock_goes_forward() {
        let a = ktime_ns();
        assert!(ktime_ns() >= a);
    }
}
