//! What is read of the node as a whole: the columns of the `node` table. No I/O here.
//!
//! `sampler` reads these files once a second. The keys of meminfo and vmstat that have no column go into `metrics`.

use super::Column;
use super::Kind::{self, Counter, Gauge, Limit};
use super::Unit::{self, Bytes, Count, Hundredth, HundredthPercent, Microseconds, Pages};

/// How a file of /proc is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `Key:  1234 kB`, or without a unit.
    KibiBytes,
    /// `key value`.
    KeyValue,
    /// `0.37 0.08 0.03 2/65 499`; the key is the place, both sides of the slash have one.
    LoadAvg,
    /// `key n n n …`; the key in the catalogue is `key.place`, and those of `cpu` are ticks.
    Ticks,
    /// PSI, as in a cgroup.
    Pressure,
}

/// A file of /proc.
#[derive(Debug)]
pub struct NodeFile {
    pub path: &'static str,
    pub layout: Layout,
    pub columns: &'static [Column],
}

const fn c(
    name: &'static str,
    key: &'static str,
    kind: Kind,
    unit: Unit,
    since: &'static str,
    about: &'static str,
) -> Column {
    Column { name, key, kind, unit, since, about }
}

const MEMINFO: &[Column] = &[
    c("meminfo_memtotal", "MemTotal", Gauge, Bytes, "5.14", "Memory that the kernel manages"),
    c("meminfo_memfree", "MemFree", Gauge, Bytes, "5.14", "Memory that nothing uses"),
    c(
        "meminfo_memavailable",
        "MemAvailable",
        Gauge,
        Bytes,
        "5.14",
        "Memory that can be had without swapping, as the kernel estimates it",
    ),
    c("meminfo_buffers", "Buffers", Gauge, Bytes, "5.14", "Cache of block devices"),
    c("meminfo_cached", "Cached", Gauge, Bytes, "5.14", "Page cache, shared memory included"),
    c("meminfo_swapcached", "SwapCached", Gauge, Bytes, "5.14", "Pages that are both in memory and in swap"),
    c("meminfo_active", "Active", Gauge, Bytes, "5.14", "Memory in recent use"),
    c("meminfo_inactive", "Inactive", Gauge, Bytes, "5.14", "Memory that reclaim takes from"),
    c("meminfo_active_anon", "Active(anon)", Gauge, Bytes, "5.14", "Anonymous memory in recent use"),
    c(
        "meminfo_inactive_anon",
        "Inactive(anon)",
        Gauge,
        Bytes,
        "5.14",
        "Anonymous memory that reclaim takes from",
    ),
    c("meminfo_active_file", "Active(file)", Gauge, Bytes, "5.14", "Page cache in recent use"),
    c("meminfo_inactive_file", "Inactive(file)", Gauge, Bytes, "5.14", "Page cache that reclaim takes from"),
    c("meminfo_unevictable", "Unevictable", Gauge, Bytes, "5.14", "Memory that reclaim cannot take"),
    c("meminfo_mlocked", "Mlocked", Gauge, Bytes, "5.14", "Locked memory"),
    c("meminfo_swaptotal", "SwapTotal", Gauge, Bytes, "5.14", "Swap"),
    c("meminfo_swapfree", "SwapFree", Gauge, Bytes, "5.14", "Swap that nothing uses"),
    c("meminfo_zswap", "Zswap", Gauge, Bytes, "5.19", "Memory that zswap takes"),
    c(
        "meminfo_zswapped",
        "Zswapped",
        Gauge,
        Bytes,
        "5.19",
        "Memory that zswap holds compressed, at its full size",
    ),
    c("meminfo_dirty", "Dirty", Gauge, Bytes, "5.14", "Page cache to be written back"),
    c("meminfo_writeback", "Writeback", Gauge, Bytes, "5.14", "Page cache being written back now"),
    c("meminfo_anonpages", "AnonPages", Gauge, Bytes, "5.14", "Anonymous memory"),
    c("meminfo_mapped", "Mapped", Gauge, Bytes, "5.14", "Page cache that is mapped by a process"),
    c("meminfo_shmem", "Shmem", Gauge, Bytes, "5.14", "tmpfs and shared memory"),
    c("meminfo_kreclaimable", "KReclaimable", Gauge, Bytes, "5.14", "Kernel memory that reclaim can free"),
    c("meminfo_slab", "Slab", Gauge, Bytes, "5.14", "Kernel objects in slabs"),
    c("meminfo_sreclaimable", "SReclaimable", Gauge, Bytes, "5.14", "Slabs that reclaim can free"),
    c("meminfo_sunreclaim", "SUnreclaim", Gauge, Bytes, "5.14", "Slabs that reclaim cannot free"),
    c("meminfo_kernelstack", "KernelStack", Gauge, Bytes, "5.14", "Stacks inside the kernel"),
    c("meminfo_pagetables", "PageTables", Gauge, Bytes, "5.14", "Page tables"),
    c(
        "meminfo_commitlimit",
        "CommitLimit",
        Limit,
        Bytes,
        "5.14",
        "Limit of promised memory where overcommit is off",
    ),
    c("meminfo_committed_as", "Committed_AS", Gauge, Bytes, "5.14", "Memory promised to processes"),
    c("meminfo_vmallocused", "VmallocUsed", Gauge, Bytes, "5.14", "vmalloc areas in use"),
    c("meminfo_percpu", "Percpu", Gauge, Bytes, "5.14", "Per-CPU structures"),
    c("meminfo_anonhugepages", "AnonHugePages", Gauge, Bytes, "5.14", "Anonymous memory in huge pages"),
    c("meminfo_hugepages_total", "HugePages_Total", Limit, Count, "5.14", "Pages set aside for hugetlbfs"),
    c(
        "meminfo_hugepages_free",
        "HugePages_Free",
        Gauge,
        Count,
        "5.14",
        "Pages of hugetlbfs that nothing uses",
    ),
    c(
        "meminfo_hugepages_rsvd",
        "HugePages_Rsvd",
        Gauge,
        Count,
        "5.14",
        "Pages of hugetlbfs that are promised",
    ),
    c(
        "meminfo_hugepages_surp",
        "HugePages_Surp",
        Gauge,
        Count,
        "5.14",
        "Pages of hugetlbfs beyond those set aside",
    ),
    c("meminfo_hugetlb", "Hugetlb", Gauge, Bytes, "5.14", "Memory set aside for hugetlbfs, all page sizes"),
];

const VMSTAT: &[Column] = &[
    c("vmstat_pgpgin", "pgpgin", Counter, Count, "5.14", "KiB read from disks"),
    c("vmstat_pgpgout", "pgpgout", Counter, Count, "5.14", "KiB written to disks"),
    c("vmstat_pswpin", "pswpin", Counter, Pages, "5.14", "Pages read from swap"),
    c("vmstat_pswpout", "pswpout", Counter, Pages, "5.14", "Pages written to swap"),
    c("vmstat_pgfree", "pgfree", Counter, Pages, "5.14", "Pages freed"),
    c("vmstat_pgfault", "pgfault", Counter, Count, "5.14", "Page faults"),
    c("vmstat_pgmajfault", "pgmajfault", Counter, Count, "5.14", "Page faults that waited for a disk"),
    c("vmstat_pgrefill", "pgrefill", Counter, Pages, "5.14", "Pages looked at on the active lists"),
    c("vmstat_pgscan_kswapd", "pgscan_kswapd", Counter, Pages, "5.14", "Pages that kswapd looked at"),
    c(
        "vmstat_pgscan_direct",
        "pgscan_direct",
        Counter,
        Pages,
        "5.14",
        "Pages looked at in an allocation, which waits for it",
    ),
    c("vmstat_pgsteal_kswapd", "pgsteal_kswapd", Counter, Pages, "5.14", "Pages that kswapd took"),
    c(
        "vmstat_pgsteal_direct",
        "pgsteal_direct",
        Counter,
        Pages,
        "5.14",
        "Pages taken in an allocation, which waits for it",
    ),
    c(
        "vmstat_allocstall_normal",
        "allocstall_normal",
        Counter,
        Count,
        "5.14",
        "Allocations that had to reclaim first",
    ),
    c(
        "vmstat_allocstall_movable",
        "allocstall_movable",
        Counter,
        Count,
        "5.14",
        "Allocations of movable memory that had to reclaim first",
    ),
    c(
        "vmstat_workingset_refault_anon",
        "workingset_refault_anon",
        Counter,
        Count,
        "5.14",
        "Anonymous pages that came back soon after their eviction",
    ),
    c(
        "vmstat_workingset_refault_file",
        "workingset_refault_file",
        Counter,
        Count,
        "5.14",
        "Page cache that came back soon after its eviction: thrashing",
    ),
    c(
        "vmstat_oom_kill",
        "oom_kill",
        Counter,
        Count,
        "5.14",
        "Processes that the OOM killer ended, on the whole node",
    ),
    c(
        "vmstat_compact_stall",
        "compact_stall",
        Counter,
        Count,
        "5.14",
        "Allocations that had to compact memory first",
    ),
    c("vmstat_compact_fail", "compact_fail", Counter, Count, "5.14", "Compactions that gave nothing"),
    c(
        "vmstat_thp_fault_alloc",
        "thp_fault_alloc",
        Counter,
        Count,
        "5.14",
        "Huge pages given in a page fault",
    ),
    c(
        "vmstat_thp_fault_fallback",
        "thp_fault_fallback",
        Counter,
        Count,
        "5.14",
        "Page faults that got no huge page",
    ),
    c(
        "vmstat_numa_hint_faults",
        "numa_hint_faults",
        Counter,
        Count,
        "5.14",
        "Page faults that NUMA balancing caused",
    ),
    c(
        "vmstat_numa_pages_migrated",
        "numa_pages_migrated",
        Counter,
        Pages,
        "5.14",
        "Pages that NUMA balancing moved",
    ),
    c("vmstat_nr_dirtied", "nr_dirtied", Counter, Pages, "5.14", "Pages made dirty"),
    c("vmstat_nr_written", "nr_written", Counter, Pages, "5.14", "Pages written back"),
];

const LOADAVG: &[Column] = &[
    c("loadavg_1min_x100", "0", Gauge, Hundredth, "5.14", "Tasks that run or wait, mean of a minute"),
    c("loadavg_5min_x100", "1", Gauge, Hundredth, "5.14", "Tasks that run or wait, mean of 5 minutes"),
    c("loadavg_15min_x100", "2", Gauge, Hundredth, "5.14", "Tasks that run or wait, mean of 15 minutes"),
    c("loadavg_runnable", "3", Gauge, Count, "5.14", "Tasks that run or could"),
    c("loadavg_tasks", "4", Gauge, Count, "5.14", "Tasks"),
];

const STAT: &[Column] = &[
    c(
        "stat_cpu_user_usec",
        "cpu.0",
        Counter,
        Microseconds,
        "5.14",
        "CPU time outside the kernel, guests included, all CPUs",
    ),
    c(
        "stat_cpu_nice_usec",
        "cpu.1",
        Counter,
        Microseconds,
        "5.14",
        "CPU time of tasks with a raised nice value",
    ),
    c("stat_cpu_system_usec", "cpu.2", Counter, Microseconds, "5.14", "CPU time in the kernel"),
    c("stat_cpu_idle_usec", "cpu.3", Counter, Microseconds, "5.14", "Idle time"),
    c(
        "stat_cpu_iowait_usec",
        "cpu.4",
        Counter,
        Microseconds,
        "5.14",
        "Idle time with a task waiting for a disk",
    ),
    c("stat_cpu_irq_usec", "cpu.5", Counter, Microseconds, "5.14", "Time in interrupts"),
    c("stat_cpu_softirq_usec", "cpu.6", Counter, Microseconds, "5.14", "Time in soft interrupts"),
    c(
        "stat_cpu_steal_usec",
        "cpu.7",
        Counter,
        Microseconds,
        "5.14",
        "Time that the hypervisor gave to others",
    ),
    c("stat_cpu_guest_usec", "cpu.8", Counter, Microseconds, "5.14", "Time in virtual machines"),
    c(
        "stat_cpu_guest_nice_usec",
        "cpu.9",
        Counter,
        Microseconds,
        "5.14",
        "Time in virtual machines with a raised nice value",
    ),
    c("stat_intr", "intr.0", Counter, Count, "5.14", "Interrupts"),
    c("stat_ctxt", "ctxt.0", Counter, Count, "5.14", "Context switches"),
    c("stat_processes", "processes.0", Counter, Count, "5.14", "Forks since the boot"),
    c("stat_procs_running", "procs_running.0", Gauge, Count, "5.14", "Tasks that run or could"),
    c("stat_procs_blocked", "procs_blocked.0", Gauge, Count, "5.14", "Tasks that wait for a disk"),
    c("stat_softirq", "softirq.0", Counter, Count, "5.14", "Soft interrupts"),
];

const CPU_PRESSURE: &[Column] = &[
    c(
        "cpu_pressure_some_avg10_x100",
        "some.avg10",
        Gauge,
        HundredthPercent,
        "5.14",
        "A task waited for a CPU: share of the last 10 s",
    ),
    c(
        "cpu_pressure_some_avg60_x100",
        "some.avg60",
        Gauge,
        HundredthPercent,
        "5.14",
        "A task waited for a CPU: share of the last minute",
    ),
    c(
        "cpu_pressure_some_avg300_x100",
        "some.avg300",
        Gauge,
        HundredthPercent,
        "5.14",
        "A task waited for a CPU: share of the last 5 min",
    ),
    c(
        "cpu_pressure_some_total_usec",
        "some.total",
        Counter,
        Microseconds,
        "5.14",
        "A task waited for a CPU: time in all",
    ),
    c(
        "cpu_pressure_full_avg10_x100",
        "full.avg10",
        Gauge,
        HundredthPercent,
        "5.14",
        "All tasks waited for a CPU: share of the last 10 s",
    ),
    c(
        "cpu_pressure_full_avg60_x100",
        "full.avg60",
        Gauge,
        HundredthPercent,
        "5.14",
        "All tasks waited for a CPU: share of the last minute",
    ),
    c(
        "cpu_pressure_full_avg300_x100",
        "full.avg300",
        Gauge,
        HundredthPercent,
        "5.14",
        "All tasks waited for a CPU: share of the last 5 min",
    ),
    c(
        "cpu_pressure_full_total_usec",
        "full.total",
        Counter,
        Microseconds,
        "5.14",
        "All tasks waited for a CPU: time in all",
    ),
];

const MEMORY_PRESSURE: &[Column] = &[
    c(
        "memory_pressure_some_avg10_x100",
        "some.avg10",
        Gauge,
        HundredthPercent,
        "5.14",
        "A task waited for memory: share of the last 10 s",
    ),
    c(
        "memory_pressure_some_avg60_x100",
        "some.avg60",
        Gauge,
        HundredthPercent,
        "5.14",
        "A task waited for memory: share of the last minute",
    ),
    c(
        "memory_pressure_some_avg300_x100",
        "some.avg300",
        Gauge,
        HundredthPercent,
        "5.14",
        "A task waited for memory: share of the last 5 min",
    ),
    c(
        "memory_pressure_some_total_usec",
        "some.total",
        Counter,
        Microseconds,
        "5.14",
        "A task waited for memory: time in all",
    ),
    c(
        "memory_pressure_full_avg10_x100",
        "full.avg10",
        Gauge,
        HundredthPercent,
        "5.14",
        "All tasks waited for memory: share of the last 10 s",
    ),
    c(
        "memory_pressure_full_avg60_x100",
        "full.avg60",
        Gauge,
        HundredthPercent,
        "5.14",
        "All tasks waited for memory: share of the last minute",
    ),
    c(
        "memory_pressure_full_avg300_x100",
        "full.avg300",
        Gauge,
        HundredthPercent,
        "5.14",
        "All tasks waited for memory: share of the last 5 min",
    ),
    c(
        "memory_pressure_full_total_usec",
        "full.total",
        Counter,
        Microseconds,
        "5.14",
        "All tasks waited for memory: time in all",
    ),
];

const IO_PRESSURE: &[Column] = &[
    c(
        "io_pressure_some_avg10_x100",
        "some.avg10",
        Gauge,
        HundredthPercent,
        "5.14",
        "A task waited for a disk: share of the last 10 s",
    ),
    c(
        "io_pressure_some_avg60_x100",
        "some.avg60",
        Gauge,
        HundredthPercent,
        "5.14",
        "A task waited for a disk: share of the last minute",
    ),
    c(
        "io_pressure_some_avg300_x100",
        "some.avg300",
        Gauge,
        HundredthPercent,
        "5.14",
        "A task waited for a disk: share of the last 5 min",
    ),
    c(
        "io_pressure_some_total_usec",
        "some.total",
        Counter,
        Microseconds,
        "5.14",
        "A task waited for a disk: time in all",
    ),
    c(
        "io_pressure_full_avg10_x100",
        "full.avg10",
        Gauge,
        HundredthPercent,
        "5.14",
        "All tasks waited for a disk: share of the last 10 s",
    ),
    c(
        "io_pressure_full_avg60_x100",
        "full.avg60",
        Gauge,
        HundredthPercent,
        "5.14",
        "All tasks waited for a disk: share of the last minute",
    ),
    c(
        "io_pressure_full_avg300_x100",
        "full.avg300",
        Gauge,
        HundredthPercent,
        "5.14",
        "All tasks waited for a disk: share of the last 5 min",
    ),
    c(
        "io_pressure_full_total_usec",
        "full.total",
        Counter,
        Microseconds,
        "5.14",
        "All tasks waited for a disk: time in all",
    ),
];

const IRQ_PRESSURE: &[Column] = &[
    c(
        "irq_pressure_full_avg10_x100",
        "full.avg10",
        Gauge,
        HundredthPercent,
        "6.1",
        "All tasks waited for interrupts: share of the last 10 s",
    ),
    c(
        "irq_pressure_full_avg60_x100",
        "full.avg60",
        Gauge,
        HundredthPercent,
        "6.1",
        "All tasks waited for interrupts: share of the last minute",
    ),
    c(
        "irq_pressure_full_avg300_x100",
        "full.avg300",
        Gauge,
        HundredthPercent,
        "6.1",
        "All tasks waited for interrupts: share of the last 5 min",
    ),
    c(
        "irq_pressure_full_total_usec",
        "full.total",
        Counter,
        Microseconds,
        "6.1",
        "All tasks waited for interrupts: time in all",
    ),
];

/// The files, in the order of the columns of the table.
pub static FILES: &[NodeFile] = &[
    NodeFile { path: "meminfo", layout: Layout::KibiBytes, columns: MEMINFO },
    NodeFile { path: "vmstat", layout: Layout::KeyValue, columns: VMSTAT },
    NodeFile { path: "loadavg", layout: Layout::LoadAvg, columns: LOADAVG },
    NodeFile { path: "stat", layout: Layout::Ticks, columns: STAT },
    NodeFile { path: "pressure/cpu", layout: Layout::Pressure, columns: CPU_PRESSURE },
    NodeFile { path: "pressure/memory", layout: Layout::Pressure, columns: MEMORY_PRESSURE },
    NodeFile { path: "pressure/io", layout: Layout::Pressure, columns: IO_PRESSURE },
    NodeFile { path: "pressure/irq", layout: Layout::Pressure, columns: IRQ_PRESSURE },
];

/// All columns of the `node` table, each with its file.
pub fn columns() -> impl Iterator<Item = (usize, &'static NodeFile, &'static Column)> {
    FILES.iter().flat_map(|f| f.columns.iter().map(move |c| (f, c))).enumerate().map(|(i, (f, c))| (i, f, c))
}
