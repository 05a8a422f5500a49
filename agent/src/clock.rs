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

/// wall − monotonic, measured. Re-measured once a second, so that an NTP step or a suspend shows within that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    ns: i128,
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
        Self { ns: best.1 }
    }

    /// An offset given by hand, for tests and for reading files back.
    pub fn from_ns(ns: i64) -> Self {
        Self { ns: i128::from(ns) }
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
    fn the_monotonic_clock_goes_forward() {
        let a = ktime_ns();
        assert!(ktime_ns() >= a);
    }
}
