//! Metrics that are in no file and no column: the working set, and per cent of a limit.
//!
//! Pure, and made when they are asked for: what is stored is what the kernel says. A part that was not read gives no value, nor does a limit
//! that is not set ("max"); a limit is read more seldom than what it bounds, so its last reading holds until the next one. Called by
//! `viewer`.

use super::{Point, Reading, levels, rates};
use crate::names::Cause;

/// What a metric is made of.
#[derive(Debug, PartialEq, Eq)]
enum Make {
    /// The first column less the second, which is of the same row.
    Difference,
    /// The first column as a share of the second.
    Share,
    /// The rate of the first column, a counter of µs, as a share of what the second of each third grants.
    ShareOfQuota,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Derived {
    pub name: &'static str,
    pub unit: &'static str,
    pub about: &'static str,
    /// Columns of `samples`.
    pub parts: &'static [&'static str],
    /// In whose bit of `files_read` it says that there is no limit.
    pub file: &'static str,
    make: Make,
}

const PERCENT: &str = "percent";

pub const DERIVED: [Derived; 5] = [
    Derived {
        name: "memory_working_set",
        unit: "bytes",
        about: "Memory in use less the page cache that reclaim takes first: what counts against the limit",
        parts: &["memory_current", "memory_stat_inactive_file"],
        file: "memory.stat",
        make: Make::Difference,
    },
    share("memory_percent_of_limit", &["memory_current", "memory_max"], "memory.max", "Memory in use"),
    share(
        "memory_swap_percent_of_limit",
        &["memory_swap_current", "memory_swap_max"],
        "memory.swap.max",
        "Swap in use",
    ),
    share("pids_percent_of_limit", &["pids_current", "pids_max"], "pids.max", "Processes and threads"),
    Derived {
        make: Make::ShareOfQuota,
        ..share(
            "cpu_percent_of_limit",
            &["cpu_stat_usage_usec", "cpu_max_quota_usec", "cpu_max_period_usec"],
            "cpu.max",
            "CPU time used",
        )
    },
];

const fn share(
    name: &'static str,
    parts: &'static [&'static str],
    file: &'static str,
    about: &'static str,
) -> Derived {
    Derived { name, unit: PERCENT, about, parts, file, make: Make::Share }
}

/// The metric of this name, if it is one of these.
pub fn derived(name: &str) -> Option<&'static Derived> {
    DERIVED.iter().find(|d| d.name == name)
}

/// The cells of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cells {
    pub t_us: i64,
    pub cause: Cause,
    pub period_ms: i64,
    /// In the order of the parts.
    pub parts: [Option<f64>; 3],
    /// Whether the metric's file was read for this row.
    pub is_read: bool,
}

impl Derived {
    /// Its values over the rows of one cgroup, in the order of time.
    pub fn points(&self, rows: &[Cells]) -> Vec<Point> {
        let reading = |row: &Cells, value: f64| Reading {
            t_us: row.t_us,
            value,
            cause: row.cause,
            period_ms: row.period_ms,
        };
        match self.make {
            Make::Difference => {
                let value = |row: &Cells| Some((row.parts[0]? - row.parts[1]?).max(0.0));
                let all = rows.iter().filter_map(|row| Some(reading(row, value(row)?)));
                levels(&all.collect::<Vec<_>>())
            }
            Make::Share => {
                let all = rows.iter().zip(self.limits(rows));
                let all = all.filter_map(|(row, limit)| Some(reading(row, row.parts[0]? / limit? * 100.0)));
                levels(&all.collect::<Vec<_>>())
            }
            Make::ShareOfQuota => {
                let used = rows.iter().filter_map(|row| Some(reading(row, row.parts[0]?)));
                let limits = self.limits(rows);
                let mut is_cut = false;
                let of_limit = |mut point: Point| {
                    // a rate belongs to the row that ends its interval
                    let at = rows.partition_point(|row| row.t_us <= point.t_us).checked_sub(1)?;
                    let Some(limit) = limits[at] else {
                        is_cut = true;
                        return None;
                    };
                    point.value = point.value / limit * 100.0;
                    point.cut |= std::mem::take(&mut is_cut);
                    Some(point)
                };
                rates(&used.collect::<Vec<_>>()).into_iter().filter_map(of_limit).collect()
            }
        }
    }

    /// The limit in force at each row: as last read, none where it was read and is not set. Nothing is a share of a limit of 0.
    fn limits(&self, rows: &[Cells]) -> Vec<Option<f64>> {
        let mut last = None;
        let limit = |row: &Cells| {
            let of_row = match self.make {
                // µs a second, as the rate is
                Make::ShareOfQuota => row.parts[1].zip(row.parts[2]).map(|(quota, each)| quota / each * 1e6),
                _ => row.parts[1],
            };
            if of_row.is_some() || row.is_read {
                last = of_row.filter(|limit| limit.is_finite() && *limit > 0.0);
            }
            last
        };
        rows.iter().map(limit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(second: i64, parts: [Option<f64>; 3], is_read: bool) -> Cells {
        Cells { t_us: second * 1_000_000, cause: Cause::Base, period_ms: 1000, parts, is_read }
    }

    fn told(name: &str, rows: &[Cells]) -> Vec<(i64, f64)> {
        let points = derived(name).expect("one of these").points(rows);
        points.iter().map(|p| (p.t_us / 1_000_000, (p.value * 10.0).round() / 10.0)).collect()
    }

    #[test]
    fn a_working_set_is_of_rows_that_have_both_parts() {
        let rows = [
            row(0, [Some(100.0), Some(30.0), None], true),
            row(1, [Some(110.0), None, None], false),
            row(2, [None, Some(30.0), None], true),
            row(3, [Some(20.0), Some(30.0), None], true),
        ];
        assert_eq!(told("memory_working_set", &rows), [(0, 70.0), (3, 0.0)]);
    }

    #[test]
    fn per_cent_is_of_the_last_limit_and_none_where_there_is_no_limit() {
        let used = |second, limit, is_read| row(second, [Some(50.0), limit, None], is_read);
        let rows = [
            used(0, None, false),
            used(1, Some(100.0), true),
            used(2, None, false),
            row(3, [None, None, None], false),
            used(4, Some(200.0), true),
            used(5, None, true),
            used(6, None, false),
            used(7, Some(0.0), true),
            used(8, Some(50.0), true),
        ];
        let wanted = [(1, 50.0), (2, 50.0), (4, 25.0), (8, 100.0)];
        for name in ["memory_percent_of_limit", "memory_swap_percent_of_limit", "pids_percent_of_limit"] {
            assert_eq!(told(name, &rows), wanted, "{name}");
        }
    }

    #[test]
    fn cpu_is_a_share_of_its_quota_with_none_from_a_first_reading_or_across_a_reset() {
        // half a core of two, and of a quarter later
        let used = |second, usage: f64, quota: Option<f64>, is_read| {
            row(second, [Some(usage), quota, quota.map(|_| 100_000.0)], is_read)
        };
        let rows = [
            used(0, 0.0, Some(200_000.0), true),
            used(1, 500_000.0, None, false),
            used(2, 1_000_000.0, Some(25_000.0), true),
            used(3, 1_500_000.0, None, true),
            used(4, 2_000_000.0, Some(50_000.0), true),
            used(5, 10.0, None, false),
            used(6, 250_010.0, None, false),
        ];
        assert_eq!(told("cpu_percent_of_limit", &rows), [(1, 25.0), (2, 200.0), (4, 100.0), (6, 50.0)]);
        let points = derived("cpu_percent_of_limit").expect("one of these").points(&rows);
        assert_eq!(points.iter().map(|p| p.cut).collect::<Vec<_>>(), [false, false, true, true]);
    }

    #[test]
    fn their_parts_are_columns_and_their_names_are_not() {
        for d in &DERIVED {
            assert!(d.parts.iter().all(|part| crate::catalogue::column(part).is_some()), "{}", d.name);
            assert!(crate::catalogue::file(d.file).is_some() && crate::catalogue::column(d.name).is_none());
        }
    }

    proptest! {
        #[test]
        fn nothing_is_infinite_or_below_zero(which in 0..DERIVED.len(), cells in prop::collection::vec((0i64..3, prop::array::uniform3(prop::option::of(0u32..1000)), any::<bool>()), 0..60)) {
            let mut second = 0;
            let rows: Vec<Cells> = cells.into_iter().map(|(more, parts, is_read)| {
                second += more;
                row(second, parts.map(|p| p.map(f64::from)), is_read)
            }).collect();
            let points = DERIVED[which].points(&rows);
            prop_assert!(points.len() <= rows.len());
            prop_assert!(points.iter().all(|p| p.value.is_finite() && p.value >= 0.0), "{:?}", points);
        }
    }
}
