//! A report is to be sent by mail: at most [`MAX_REPORT_BYTES`]. What is larger is thinned: of each cgroup and each bucket of
//! time those rows stay whose values are the lowest and the highest, and of a counter the two between which it rose fastest.
//!
//! Rows stay as they are or go: no value is made up, none is averaged. All rows close to the incident stay. The report
//! says that it was thinned, from how many rows, and, where the whole was small enough to be encoded, its hash. Called by `fit`.

use crate::query;
use arrow::array::{Array, AsArray, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::Int64Type;
use std::collections::BTreeSet;

/// The whole file, script and data.
pub const MAX_REPORT_BYTES: usize = 5_000_000;
/// Rows that stay of a bucket, as a rule: fewer than the columns ask for, since several are at their peak at once.
pub const ROWS_OF_BUCKET: u64 = 12;
/// All rows this close to the incident stay.
const CLOSE_US: i64 = 2_000_000;

/// What the report draws, and so what it must keep the peaks of.
const LEVELS: [&str; 5] =
    ["memory_current", "memory_stat_anon", "memory_stat_file", "memory_swap_current", "pids_current"];
const COUNTERS: [&str; 7] = [
    "cpu_stat_usage_usec",
    "cpu_stat_nr_throttled",
    "memory_pressure_some_total_usec",
    "cpu_pressure_some_total_usec",
    "io_pressure_some_total_usec",
    "io_stat_rbytes",
    "io_stat_wbytes",
];
/// Set seldom; each change of one stays.
const LIMITS: [&str; 4] = ["memory_max", "cpu_max_quota_usec", "cpu_max_period_usec", "pids_max"];

/// What [`thin`] decides by, and the keys of the rows.
pub fn columns() -> Vec<&'static str> {
    let keys = ["ts", "ktime_ns", "boot_id", "cgroup_id"];
    keys.into_iter().chain(LEVELS).chain(COUNTERS).chain(LIMITS).collect()
}

/// The rows of a chunk (whole cgroups, sorted by cgroup and time) that stay.
pub fn thin(batch: &RecordBatch, bucket_us: i64, event_us: Option<i64>) -> Result<RecordBatch, String> {
    let at = |row| query::int(batch, "ts", row).unwrap_or(0);
    let bucket = |row: usize| {
        let who = (query::int(batch, "cgroup_id", row), query::text(batch, "boot_id", row));
        (who, at(row).div_euclid(bucket_us.max(1)))
    };
    let column = |name: &&str| batch.column_by_name(name).and_then(|c| c.as_primitive_opt::<Int64Type>());
    let [levels, counters, limits] =
        [&LEVELS[..], &COUNTERS, &LIMITS].map(|names| names.iter().filter_map(column).collect::<Vec<_>>());
    let rows: Vec<usize> = (0..batch.num_rows()).collect();
    let mut kept = BTreeSet::new();
    for of_one in rows.chunk_by(|a, b| bucket(*a) == bucket(*b)) {
        kept.extend([of_one[0], of_one[of_one.len() - 1]]);
        for c in &levels {
            let read = || of_one.iter().copied().filter(|row| c.is_valid(*row));
            kept.extend(read().min_by_key(|row| c.value(*row)));
            kept.extend(read().max_by_key(|row| c.value(*row)));
        }
        for c in &counters {
            let read: Vec<usize> = of_one.iter().copied().filter(|row| c.is_valid(*row)).collect();
            #[expect(clippy::cast_precision_loss, reason = "compared with one another")]
            let speed = |w: &&[usize]| {
                (c.value(w[1]).saturating_sub(c.value(w[0]))) as f64 / (at(w[1]) - at(w[0])).max(1) as f64
            };
            kept.extend(read.windows(2).max_by(|a, b| speed(a).total_cmp(&speed(b))).into_iter().flatten());
        }
        for c in &limits {
            let read: Vec<usize> = of_one.iter().copied().filter(|row| c.is_valid(*row)).collect();
            kept.extend(read.first());
            kept.extend(read.windows(2).filter(|w| c.value(w[0]) != c.value(w[1])).map(|w| w[1]));
        }
        if let Some(event_us) = event_us {
            kept.extend(of_one.iter().copied().filter(|row| (at(*row) - event_us).abs() <= CLOSE_US));
        }
    }
    let kept =
        UInt32Array::from_iter_values(kept.into_iter().map(|row| u32::try_from(row).unwrap_or(u32::MAX)));
    take_record_batch(batch, &kept).map_err(|e| e.to_string())
}
