//! The only place of xtask that reads a clock: deadlines for every wait, and names for output folders.
//! Must never be used for measuring the product. Called by everything that waits.
#![expect(
    clippy::disallowed_methods,
    reason = "the ban keeps the agent on its own clock; xtask is not the agent"
)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub fn now() -> Instant {
    Instant::now()
}

/// `CLOCK_MONOTONIC`, the kernel's time in events and traces.
pub fn ktime_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

/// A point in time after which waiting is given up.
#[derive(Clone, Copy)]
pub struct Deadline {
    start: Instant,
    after: Duration,
}

impl Deadline {
    pub fn after(after: Duration) -> Self {
        Self { start: now(), after }
    }

    pub fn passed(&self) -> bool {
        self.start.elapsed() >= self.after
    }
}

pub fn wall_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// UTC as `20261124T075501Z`, for the names of output folders.
pub fn stamp() -> String {
    let secs = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    format_utc(secs)
}

fn format_utc(secs: u64) -> String {
    let (days, rest) = (secs / 86_400, secs % 86_400);
    // Civil date from days, in eras of 400 years that start on 1 March (so that the leap day comes last).
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// `2026-11-24T07:55:01Z`, as Kubernetes writes times, in µs.
pub fn parse_utc(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let part = |text: Option<&str>| text?.parse::<i64>().ok();
    let (mut date, mut time) = (date.split('-'), time.split('.').next()?.split(':'));
    let (year, month, day) = (part(date.next())?, part(date.next())?, part(date.next())?);
    let (hour, minute, second) = (part(time.next())?, part(time.next())?, part(time.next())?);
    // As above, from the other side: March is month 0 of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some((days * 86_400 + hour * 3600 + minute * 60 + second) * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::{format_utc, parse_utc};

    #[test]
    fn what_kubernetes_writes_is_read() {
        for (text, secs) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T00:00:00Z", 951_782_400),
            ("2026-12-31T23:59:59.25Z", 1_798_761_599),
        ] {
            assert_eq!(parse_utc(text), Some(secs * 1_000_000), "{text}");
        }
        for text in ["", "null", "2026-12-31", "2026-12-31T23:59:59+01:00"] {
            assert_eq!(parse_utc(text), None, "{text}");
        }
    }

    #[test]
    fn stamp_counts_leap_days() {
        assert_eq!(format_utc(0), "19700101T000000Z");
        assert_eq!(format_utc(951_782_400), "20000229T000000Z");
        assert_eq!(format_utc(1_798_761_599), "20261231T235959Z");
    }
}
