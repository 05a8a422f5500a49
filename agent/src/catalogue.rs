//! Every number we read of a cgroup and of the node: the one list of files, keys, columns, units, tiers and meanings.
//!
//! `schema` makes the `samples` and `node` tables from it, `cgroup` parses by it, `sampler` reads by it, docs/metrics.md is
//! written from it ([`page`]). A value that is not listed here is not sampled into a column; what a kernel has beyond it goes
//! into the `metrics` table by the rules of [`loose`]. No I/O here.
//!
//! Source of names and meanings: the kernel's Documentation/admin-guide/cgroup-v2.rst and Documentation/accounting/psi.rst.

mod files;
pub mod loose;
mod memory_stat;
pub mod node;
mod page;

pub use files::FILES;
pub use page::page;

use Unit::{Bytes, Count, Hundredth, HundredthPercent, Microseconds, Pages, Weight};

/// How a value behaves over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Only grows while the cgroup lives; rates are made of it at query time.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Set by an administrator; NULL with its file read means "max", no limit.
    Limit,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Limit => "limit",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    Bytes,
    Count,
    Microseconds,
    Pages,
    /// Per cent × 100, so that PSI's two decimals stay an integer.
    HundredthPercent,
    /// × 100, as load averages.
    Hundredth,
    Weight,
}

impl Unit {
    pub fn as_str(self) -> &'static str {
        match self {
            Bytes => "bytes",
            Count => "count",
            Microseconds => "microseconds",
            Pages => "pages",
            HundredthPercent => "percent_x100",
            Hundredth => "x100",
            Weight => "weight",
        }
    }
}

/// How often a file is read when nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// In the lane's ring, and with every base and burst sample.
    Lane,
    /// With every base and burst sample.
    Hot,
    /// Every ten seconds, at the start of a cgroup and at an event.
    Slow,
}

impl Tier {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lane => "lane",
            Self::Hot => "hot",
            Self::Slow => "slow",
        }
    }
}

/// How a file's text is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One number, or `max`.
    Single,
    /// Lines of `key value`.
    KeyValue,
    /// PSI: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and the same for `full`.
    Pressure,
    /// `major:minor rbytes=… wbytes=…`, a line for each device; summed over devices, each in `io_devices`.
    PerDevice,
    /// cpu.max: `quota period`, quota may be `max`.
    Pair,
}

/// A key of a file and the column that it fills.
#[derive(Debug)]
pub struct Column {
    /// Column name in its table, and name of the metric in the recorder.
    pub name: &'static str,
    /// Key inside the file; for [`Format::Single`] empty, for [`Format::Pair`] `quota` and `period`,
    /// for [`Format::Pressure`] such as `some.total`.
    pub key: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    /// The kernel that brought it; `5.14` = that one or before, since we run on nothing older.
    pub since: &'static str,
    /// What it means, in a line.
    pub about: &'static str,
}

/// A file of a cgroup's directory.
#[derive(Debug)]
pub struct File {
    pub name: &'static str,
    pub tier: Tier,
    pub format: Format,
    pub columns: &'static [Column],
}

/// The columns of a file of `key value` lines: prefix of their names, then `"key" Kind Unit "since" "meaning"` for each.
macro_rules! keys {
    ($prefix:literal, [$($key:literal $kind:ident $unit:ident $since:literal $about:literal),* $(,)?]) => {
        &[$($crate::catalogue::Column {
            name: concat!($prefix, $key),
            key: $key,
            kind: $kind,
            unit: $unit,
            since: $since,
            about: $about,
        }),*]
    };
}
use keys;

/// Index of a file in [`FILES`] and of its bit in `files_read`.
pub type FileIndex = usize;
/// Index of a column over all files, in the order of [`columns`].
pub type ColumnIndex = usize;

/// What io.stat says of each device, in the order of its line and of the columns of `io_devices`.
pub const DEVICE_KEYS: [&str; 6] = ["rbytes", "wbytes", "rios", "wios", "dbytes", "dios"];

/// Number of columns over all files.
pub const COLUMNS: usize = first_column(FILES.len());

/// Index of a file's first column in the whole.
pub const fn first_column(file: FileIndex) -> ColumnIndex {
    let mut n = 0;
    let mut i = 0;
    while i < file {
        n += FILES[i].columns.len();
        i += 1;
    }
    n
}

/// By how much the values of a file may lag behind the instant at which it is read; None where they are those of that instant.
///
/// Source: `mem_cgroup_flush_stats` of mm/memcontrol.c, `psi_avgs_work` of kernel/sched/psi.c.
pub fn lag(file: &str) -> Option<&'static str> {
    match file {
        "memory.stat" | "memory.numa_stat" => {
            Some("up to 2 s, or 64 pages × CPUs of changes: the kernel sums it over its CPUs at intervals")
        }
        _ if file.ends_with(".pressure") => Some("avg10, avg60, avg300: up to 2 s; total: none"),
        _ => None,
    }
}

/// All columns, in the order of the `samples` table, each with its file.
pub fn columns() -> impl Iterator<Item = (ColumnIndex, &'static File, &'static Column)> {
    FILES.iter().flat_map(|f| f.columns.iter().map(move |c| (f, c))).enumerate().map(|(i, (f, c))| (i, f, c))
}

/// Looks a column up by its name.
pub fn column(name: &str) -> Option<ColumnIndex> {
    columns().find(|(_, _, c)| c.name == name).map(|(i, _, _)| i)
}

/// Looks a file up by its name.
pub fn file(name: &str) -> Option<FileIndex> {
    FILES.iter().position(|f| f.name == name)
}

const _: () = assert!(FILES.len() <= 63, "files_read is a signed 64-bit column: one bit a file");

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_plain() {
        let mut seen = HashSet::new();
        for (_, file, column) in columns() {
            assert!(seen.insert(column.name), "{} stands twice", column.name);
            let stem = file.name.replace('.', "_");
            assert!(column.name.starts_with(&stem), "{} is not named after {}", column.name, file.name);
            assert!(!column.about.is_empty() && !column.about.ends_with('.'), "{}", column.name);
        }
        assert_eq!(seen.len(), COLUMNS);
    }

    #[test]
    fn first_columns_add_up() {
        for (i, f) in FILES.iter().enumerate() {
            assert_eq!(columns().nth(first_column(i)).map(|(_, _, c)| c.name), Some(f.columns[0].name));
        }
    }

    #[test]
    fn a_device_has_the_keys_that_samples_sum() {
        let io = &FILES[file("io.stat").expect("known")];
        assert_eq!(io.columns.iter().map(|c| c.key).collect::<Vec<_>>(), DEVICE_KEYS);
    }
}
