//! The files of a cgroup that have columns in the `samples` table, for `catalogue`. No I/O here.
//!
//! The position is the bit in `files_read`, and `lane` counts on the first ones: append only, never reorder.

use super::Kind::{Counter, Gauge, Limit};
use super::Unit::{Bytes, Count, HundredthPercent, Microseconds, Weight};
use super::{Column, File, Format, Tier, keys, memory_stat};

const fn share(name: &'static str, key: &'static str, since: &'static str, about: &'static str) -> Column {
    Column { name, key, kind: Gauge, unit: HundredthPercent, since, about }
}

const fn total(name: &'static str, key: &'static str, since: &'static str, about: &'static str) -> Column {
    Column { name, key, kind: Counter, unit: Microseconds, since, about }
}

macro_rules! pressure {
    ($file:literal, $p:literal, [$($side:literal $since:literal $about:literal),*]) => {
        File {
            name: $file,
            tier: Tier::Hot,
            format: Format::Pressure,
            columns: &[$(
                share(concat!($p, "_", $side, "_avg10_x100"), concat!($side, ".avg10"), $since, concat!($about, ": share of the last 10 s")),
                share(concat!($p, "_", $side, "_avg60_x100"), concat!($side, ".avg60"), $since, concat!($about, ": share of the last minute")),
                share(concat!($p, "_", $side, "_avg300_x100"), concat!($side, ".avg300"), $since, concat!($about, ": share of the last 5 min")),
                total(concat!($p, "_", $side, "_total_usec"), concat!($side, ".total"), $since, concat!($about, ": time in all")),
            )*],
        }
    };
}

macro_rules! single {
    ($file:literal, $column:literal, $tier:ident, $kind:ident, $unit:ident, $since:literal, $about:literal) => {
        File {
            name: $file,
            tier: Tier::$tier,
            format: Format::Single,
            columns: &[Column {
                name: $column,
                key: "",
                kind: $kind,
                unit: $unit,
                since: $since,
                about: $about,
            }],
        }
    };
}

const fn keyed(name: &'static str, tier: Tier, columns: &'static [Column]) -> File {
    File { name, tier, format: Format::KeyValue, columns }
}

pub static FILES: &[File] = &[
    single!(
        "memory.current",
        "memory_current",
        Lane,
        Gauge,
        Bytes,
        "5.14",
        "Memory in use, its cgroups below included"
    ),
    single!("memory.swap.current", "memory_swap_current", Hot, Gauge, Bytes, "5.14", "Swap in use"),
    keyed(
        "memory.events",
        Tier::Hot,
        keys!("memory_events_", [
            "low" Counter Count "5.14" "Times it was reclaimed although it was within memory.low",
            "high" Counter Count "5.14" "Times its tasks were slowed down for passing memory.high",
            "max" Counter Count "5.14" "Times an allocation met memory.max",
            "oom" Counter Count "5.14" "Times it was out of memory",
            "oom_kill" Counter Count "5.14" "Processes in it or below that the OOM killer ended, whosever limit it was",
            "oom_group_kill" Counter Count "5.17" "Times the OOM killer ended it as a whole",
            "sock_throttled" Counter Count "7.0" "Times a socket's memory was held back",
        ]),
    ),
    keyed("memory.stat", Tier::Hot, memory_stat::COLUMNS),
    keyed(
        "cpu.stat",
        Tier::Hot,
        keys!("cpu_stat_", [
            "usage_usec" Counter Microseconds "5.14" "CPU time",
            "user_usec" Counter Microseconds "5.14" "CPU time outside the kernel",
            "system_usec" Counter Microseconds "5.14" "CPU time in the kernel",
            "nice_usec" Counter Microseconds "6.11" "CPU time of tasks with a raised nice value",
            "core_sched.force_idle_usec" Counter Microseconds "6.0" "Time in which core scheduling kept a sibling CPU idle",
            "nr_periods" Counter Count "5.14" "Periods of cpu.max in which it wanted to run",
            "nr_throttled" Counter Count "5.14" "Periods of cpu.max in which it used up its quota",
            "throttled_usec" Counter Microseconds "5.14" "Time for which it was stopped by cpu.max",
            "nr_bursts" Counter Count "5.15" "Periods in which it used saved quota",
            "burst_usec" Counter Microseconds "5.15" "CPU time of saved quota",
        ]),
    ),
    File {
        name: "io.stat",
        tier: Tier::Hot,
        format: Format::PerDevice,
        columns: keys!("io_stat_", [
            "rbytes" Counter Bytes "5.14" "Bytes read, all devices",
            "wbytes" Counter Bytes "5.14" "Bytes written, all devices",
            "rios" Counter Count "5.14" "Reads, all devices",
            "wios" Counter Count "5.14" "Writes, all devices",
            "dbytes" Counter Bytes "5.14" "Bytes discarded, all devices",
            "dios" Counter Count "5.14" "Discards, all devices",
        ]),
    },
    single!(
        "pids.current",
        "pids_current",
        Hot,
        Gauge,
        Count,
        "5.14",
        "Tasks in it and below: processes and threads"
    ),
    pressure!("cpu.pressure", "cpu_pressure", [
        "some" "5.14" "A task waited for a CPU",
        "full" "5.14" "All tasks waited for a CPU"
    ]),
    pressure!("memory.pressure", "memory_pressure", [
        "some" "5.14" "A task waited for memory",
        "full" "5.14" "All tasks waited for memory"
    ]),
    pressure!("io.pressure", "io_pressure", [
        "some" "5.14" "A task waited for a disk",
        "full" "5.14" "All tasks waited for a disk"
    ]),
    single!(
        "memory.max",
        "memory_max",
        Slow,
        Limit,
        Bytes,
        "5.14",
        "Hard limit: beyond it there is reclaim, then an OOM kill"
    ),
    single!(
        "memory.high",
        "memory_high",
        Slow,
        Limit,
        Bytes,
        "5.14",
        "Soft limit: beyond it tasks are slowed down and reclaimed"
    ),
    single!(
        "memory.low",
        "memory_low",
        Slow,
        Limit,
        Bytes,
        "5.14",
        "Memory that is reclaimed only when nothing else is left"
    ),
    single!("memory.min", "memory_min", Slow, Limit, Bytes, "5.14", "Memory that is never reclaimed"),
    single!("memory.peak", "memory_peak", Slow, Gauge, Bytes, "5.19", "Most memory ever in use"),
    single!(
        "memory.oom.group",
        "memory_oom_group",
        Slow,
        Limit,
        Count,
        "5.14",
        "1 = an OOM kill ends all its processes"
    ),
    keyed(
        "memory.events.local",
        Tier::Slow,
        keys!("memory_events_local_", [
            "low" Counter Count "5.14" "As memory.events, without the cgroups below",
            "high" Counter Count "5.14" "As memory.events, without the cgroups below",
            "max" Counter Count "5.14" "As memory.events, without the cgroups below",
            "oom" Counter Count "5.14" "Times its own limit was the one that could not be kept",
            "oom_kill" Counter Count "5.14" "Processes of its own that the OOM killer ended",
            "oom_group_kill" Counter Count "5.17" "As memory.events, without the cgroups below",
            "sock_throttled" Counter Count "7.0" "As memory.events, without the cgroups below",
        ]),
    ),
    single!("memory.swap.max", "memory_swap_max", Slow, Limit, Bytes, "5.14", "Hard limit of swap"),
    single!(
        "memory.swap.high",
        "memory_swap_high",
        Slow,
        Limit,
        Bytes,
        "5.14",
        "Swap beyond which tasks are slowed down"
    ),
    single!("memory.swap.peak", "memory_swap_peak", Slow, Gauge, Bytes, "6.5", "Most swap ever in use"),
    keyed(
        "memory.swap.events",
        Tier::Slow,
        keys!("memory_swap_events_", [
            "high" Counter Count "5.14" "Times swap passed memory.swap.high",
            "max" Counter Count "5.14" "Times swap met memory.swap.max",
            "fail" Counter Count "5.14" "Times swap could not be had",
        ]),
    ),
    single!(
        "memory.zswap.current",
        "memory_zswap_current",
        Slow,
        Gauge,
        Bytes,
        "5.19",
        "Memory that zswap takes"
    ),
    single!("memory.zswap.max", "memory_zswap_max", Slow, Limit, Bytes, "5.19", "Limit of zswap"),
    single!(
        "memory.zswap.writeback",
        "memory_zswap_writeback",
        Slow,
        Limit,
        Count,
        "6.8",
        "1 = zswap may write to the swap device"
    ),
    File {
        name: "cpu.max",
        tier: Tier::Slow,
        format: Format::Pair,
        columns: &[
            Column {
                name: "cpu_max_quota_usec",
                key: "quota",
                kind: Limit,
                unit: Microseconds,
                since: "5.14",
                about: "CPU time that it may take in a period",
            },
            Column {
                name: "cpu_max_period_usec",
                key: "period",
                kind: Limit,
                unit: Microseconds,
                since: "5.14",
                about: "Length of that period",
            },
        ],
    },
    single!(
        "cpu.weight",
        "cpu_weight",
        Slow,
        Limit,
        Weight,
        "5.14",
        "Its share of CPU among its siblings, 100 by default"
    ),
    single!("pids.max", "pids_max", Slow, Limit, Count, "5.14", "Limit of tasks"),
    single!("pids.peak", "pids_peak", Slow, Gauge, Count, "6.1", "Most tasks ever"),
    keyed(
        "pids.events",
        Tier::Slow,
        keys!("pids_events_", [
            "max" Counter Count "5.14" "Times a fork was refused by pids.max",
        ]),
    ),
    pressure!("irq.pressure", "irq_pressure", ["full" "6.1" "All tasks waited for interrupts"]),
    keyed(
        "cpu.stat.local",
        Tier::Slow,
        keys!("cpu_stat_local_", [
            "throttled_usec" Counter Microseconds "6.6" "Time for which it was stopped by a limit of its own or above",
        ]),
    ),
    single!(
        "cpu.max.burst",
        "cpu_max_burst_usec",
        Slow,
        Limit,
        Microseconds,
        "5.15",
        "Quota that it may save up"
    ),
    single!(
        "cpu.idle",
        "cpu_idle",
        Slow,
        Limit,
        Count,
        "5.15",
        "1 = it runs only when nothing else wants to"
    ),
    keyed(
        "cgroup.stat",
        Tier::Slow,
        keys!("cgroup_stat_", [
            "nr_descendants" Gauge Count "5.14" "Cgroups below it",
            "nr_dying_descendants" Gauge Count "5.14" "Removed cgroups below it that still hold memory",
        ]),
    ),
    keyed(
        "cgroup.events",
        Tier::Slow,
        keys!("cgroup_events_", [
            "populated" Gauge Count "5.14" "1 = there is a process in it or below",
            "frozen" Gauge Count "5.14" "1 = its tasks are stopped by the freezer",
        ]),
    ),
    keyed(
        "cgroup.stat.local",
        Tier::Slow,
        keys!("cgroup_stat_local_", [
            "frozen_usec" Counter Microseconds "6.18" "Time for which it was frozen",
        ]),
    ),
    keyed(
        "pids.events.local",
        Tier::Slow,
        keys!("pids_events_local_", [
            "max" Counter Count "6.12" "Times a fork in this very cgroup was refused by a limit",
        ]),
    ),
    single!(
        "cgroup.max.depth",
        "cgroup_max_depth",
        Slow,
        Limit,
        Count,
        "5.14",
        "How deep cgroups may nest below it"
    ),
    single!(
        "cgroup.max.descendants",
        "cgroup_max_descendants",
        Slow,
        Limit,
        Count,
        "5.14",
        "Cgroups that may be below it"
    ),
];
