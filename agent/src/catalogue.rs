//! Every number we read of a cgroup: the one list of files, keys, columns, units and tiers.
//!
//! `schema` makes the `samples` table from it, `cgroup` parses by it, `sampler` reads by it, the documents are written
//! from it. A value that is not listed here is not sampled. No I/O here.
//!
//! Source of names and meanings: the kernel's Documentation/admin-guide/cgroup-v2.rst and Documentation/accounting/psi.rst.

use Kind::{Counter, Gauge, Limit};
use Unit::{Bytes, Count, HundredthPercent, Microseconds, Pages, Weight};

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    Bytes,
    Count,
    Microseconds,
    Pages,
    /// Per cent × 100, so that PSI's two decimals stay an integer.
    HundredthPercent,
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

/// How a file's text is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One number, or `max`.
    Single,
    /// Lines of `key value`.
    KeyValue,
    /// PSI: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and the same for `full`.
    Pressure,
    /// `major:minor rbytes=… wbytes=…`, a line for each device; summed over devices.
    PerDevice,
    /// cpu.max: `quota period`, quota may be `max`.
    Pair,
}

/// A key of a file and the column that it fills.
#[derive(Debug)]
pub struct Column {
    /// Column name in the `samples` table and name of the metric in the recorder.
    pub name: &'static str,
    /// Key inside the file; for [`Format::Single`] empty, for [`Format::Pair`] `quota` and `period`,
    /// for [`Format::Pressure`] such as `some.total`.
    pub key: &'static str,
    pub kind: Kind,
    pub unit: Unit,
}

/// A file of a cgroup's directory.
#[derive(Debug)]
pub struct File {
    pub name: &'static str,
    pub tier: Tier,
    pub format: Format,
    pub columns: &'static [Column],
}

const fn c(name: &'static str, key: &'static str, kind: Kind, unit: Unit) -> Column {
    Column { name, key, kind, unit }
}

/// Index of a file in [`FILES`] and of its bit in `files_read`.
pub type FileIndex = usize;
/// Index of a column over all files, in the order of [`columns`].
pub type ColumnIndex = usize;

macro_rules! pressure {
    ($file:literal, $p:literal) => {
        File {
            name: $file,
            tier: Tier::Hot,
            format: Format::Pressure,
            columns: &[
                c(concat!($p, "_some_avg10_x100"), "some.avg10", Gauge, HundredthPercent),
                c(concat!($p, "_some_avg60_x100"), "some.avg60", Gauge, HundredthPercent),
                c(concat!($p, "_some_avg300_x100"), "some.avg300", Gauge, HundredthPercent),
                c(concat!($p, "_some_total_usec"), "some.total", Counter, Microseconds),
                c(concat!($p, "_full_avg10_x100"), "full.avg10", Gauge, HundredthPercent),
                c(concat!($p, "_full_avg60_x100"), "full.avg60", Gauge, HundredthPercent),
                c(concat!($p, "_full_avg300_x100"), "full.avg300", Gauge, HundredthPercent),
                c(concat!($p, "_full_total_usec"), "full.total", Counter, Microseconds),
            ],
        }
    };
}

macro_rules! single {
    ($file:literal, $column:literal, $tier:ident, $kind:ident, $unit:ident) => {
        File {
            name: $file,
            tier: Tier::$tier,
            format: Format::Single,
            columns: &[c($column, "", $kind, $unit)],
        }
    };
}

macro_rules! keyed {
    ($file:literal, $tier:ident, $prefix:literal, [$($key:literal $kind:ident $unit:ident),* $(,)?]) => {
        File {
            name: $file,
            tier: Tier::$tier,
            format: Format::KeyValue,
            columns: &[$(c(concat!($prefix, $key), $key, $kind, $unit)),*],
        }
    };
}

/// The files, hot ones first. The position is the bit in `files_read`: append only, never reorder.
pub static FILES: &[File] = &[
    single!("memory.current", "memory_current", Lane, Gauge, Bytes),
    single!("memory.swap.current", "memory_swap_current", Hot, Gauge, Bytes),
    keyed!("memory.events", Hot, "memory_events_", [
        "low" Counter Count, "high" Counter Count, "max" Counter Count, "oom" Counter Count,
        "oom_kill" Counter Count, "oom_group_kill" Counter Count, "sock_throttled" Counter Count,
    ]),
    keyed!("memory.stat", Hot, "memory_stat_", [
        "anon" Gauge Bytes, "file" Gauge Bytes, "kernel" Gauge Bytes, "kernel_stack" Gauge Bytes,
        "pagetables" Gauge Bytes, "sec_pagetables" Gauge Bytes, "percpu" Gauge Bytes, "sock" Gauge Bytes,
        "vmalloc" Gauge Bytes, "shmem" Gauge Bytes, "zswap" Gauge Bytes, "zswapped" Gauge Bytes,
        "file_mapped" Gauge Bytes, "file_dirty" Gauge Bytes, "file_writeback" Gauge Bytes,
        "swapcached" Gauge Bytes, "anon_thp" Gauge Bytes, "file_thp" Gauge Bytes, "shmem_thp" Gauge Bytes,
        "inactive_anon" Gauge Bytes, "active_anon" Gauge Bytes, "inactive_file" Gauge Bytes,
        "active_file" Gauge Bytes, "unevictable" Gauge Bytes, "slab_reclaimable" Gauge Bytes,
        "slab_unreclaimable" Gauge Bytes, "slab" Gauge Bytes,
        "workingset_refault_anon" Counter Count, "workingset_refault_file" Counter Count,
        "workingset_activate_anon" Counter Count, "workingset_activate_file" Counter Count,
        "workingset_restore_anon" Counter Count, "workingset_restore_file" Counter Count,
        "workingset_nodereclaim" Counter Count, "pgdemote_kswapd" Counter Pages, "pgdemote_direct" Counter Pages,
        "pgdemote_khugepaged" Counter Pages, "pgdemote_proactive" Counter Pages, "pgpromote_success" Counter Pages,
        "pswpin" Counter Pages, "pswpout" Counter Pages, "pgscan" Counter Pages, "pgsteal" Counter Pages,
        "pgscan_kswapd" Counter Pages, "pgscan_direct" Counter Pages, "pgscan_khugepaged" Counter Pages,
        "pgscan_proactive" Counter Pages, "pgsteal_kswapd" Counter Pages, "pgsteal_direct" Counter Pages,
        "pgsteal_khugepaged" Counter Pages, "pgsteal_proactive" Counter Pages, "pgfault" Counter Count,
        "pgmajfault" Counter Count, "pgrefill" Counter Pages, "pgactivate" Counter Pages,
        "pgdeactivate" Counter Pages, "pglazyfree" Counter Pages, "pglazyfreed" Counter Pages,
        "swpin_zero" Counter Pages, "swpout_zero" Counter Pages, "zswpin" Counter Pages, "zswpout" Counter Pages,
        "zswpwb" Counter Pages, "thp_fault_alloc" Counter Count, "thp_collapse_alloc" Counter Count,
        "thp_swpout" Counter Count, "thp_swpout_fallback" Counter Count, "numa_pages_migrated" Counter Pages,
        "numa_pte_updates" Counter Count, "numa_hint_faults" Counter Count, "hugetlb" Gauge Bytes,
    ]),
    keyed!("cpu.stat", Hot, "cpu_stat_", [
        "usage_usec" Counter Microseconds, "user_usec" Counter Microseconds, "system_usec" Counter Microseconds,
        "nice_usec" Counter Microseconds, "core_sched.force_idle_usec" Counter Microseconds,
        "nr_periods" Counter Count, "nr_throttled" Counter Count, "throttled_usec" Counter Microseconds,
        "nr_bursts" Counter Count, "burst_usec" Counter Microseconds,
    ]),
    File {
        name: "io.stat",
        tier: Tier::Hot,
        format: Format::PerDevice,
        columns: &[
            c("io_stat_rbytes", "rbytes", Counter, Bytes),
            c("io_stat_wbytes", "wbytes", Counter, Bytes),
            c("io_stat_rios", "rios", Counter, Count),
            c("io_stat_wios", "wios", Counter, Count),
            c("io_stat_dbytes", "dbytes", Counter, Bytes),
            c("io_stat_dios", "dios", Counter, Count),
        ],
    },
    single!("pids.current", "pids_current", Hot, Gauge, Count),
    pressure!("cpu.pressure", "cpu_pressure"),
    pressure!("memory.pressure", "memory_pressure"),
    pressure!("io.pressure", "io_pressure"),
    single!("memory.max", "memory_max", Slow, Limit, Bytes),
    single!("memory.high", "memory_high", Slow, Limit, Bytes),
    single!("memory.low", "memory_low", Slow, Limit, Bytes),
    single!("memory.min", "memory_min", Slow, Limit, Bytes),
    single!("memory.peak", "memory_peak", Slow, Gauge, Bytes),
    single!("memory.oom.group", "memory_oom_group", Slow, Limit, Count),
    keyed!("memory.events.local", Slow, "memory_events_local_", [
        "low" Counter Count, "high" Counter Count, "max" Counter Count, "oom" Counter Count,
        "oom_kill" Counter Count, "oom_group_kill" Counter Count, "sock_throttled" Counter Count,
    ]),
    single!("memory.swap.max", "memory_swap_max", Slow, Limit, Bytes),
    single!("memory.swap.high", "memory_swap_high", Slow, Limit, Bytes),
    single!("memory.swap.peak", "memory_swap_peak", Slow, Gauge, Bytes),
    keyed!("memory.swap.events", Slow, "memory_swap_events_", [
        "high" Counter Count, "max" Counter Count, "fail" Counter Count,
    ]),
    single!("memory.zswap.current", "memory_zswap_current", Slow, Gauge, Bytes),
    single!("memory.zswap.max", "memory_zswap_max", Slow, Limit, Bytes),
    single!("memory.zswap.writeback", "memory_zswap_writeback", Slow, Limit, Count),
    File {
        name: "cpu.max",
        tier: Tier::Slow,
        format: Format::Pair,
        columns: &[
            c("cpu_max_quota_usec", "quota", Limit, Microseconds),
            c("cpu_max_period_usec", "period", Limit, Microseconds),
        ],
    },
    single!("cpu.weight", "cpu_weight", Slow, Limit, Weight),
    single!("pids.max", "pids_max", Slow, Limit, Count),
    single!("pids.peak", "pids_peak", Slow, Gauge, Count),
    keyed!("pids.events", Slow, "pids_events_", ["max" Counter Count]),
];

/// Number of columns over all files.
pub const COLUMNS: usize = {
    let mut n = 0;
    let mut i = 0;
    while i < FILES.len() {
        n += FILES[i].columns.len();
        i += 1;
    }
    n
};

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
        }
        assert_eq!(seen.len(), COLUMNS);
    }

    #[test]
    fn first_columns_add_up() {
        for (i, f) in FILES.iter().enumerate() {
            assert_eq!(columns().nth(first_column(i)).map(|(_, _, c)| c.name), Some(f.columns[0].name));
        }
    }
}
