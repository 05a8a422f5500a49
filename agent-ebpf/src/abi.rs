//! The ABI between the kernel programs (`main.rs`) and the agent (`fgm::probes`): records, globals, map keys.
//!
//! Plain data only: integers and byte arrays, explicit padding, sizes asserted. No bool, enum, Option or pointer may
//! cross here, since the kernel side writes these bytes and the other side must be able to read *any* bytes.
//! Both sides are built from this one file and the object is embedded in the agent, so there is no version to check.
#![no_std]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Length of `task_struct.comm` (`TASK_COMM_LEN`, unchanged since 2.6).
pub const COMM_LEN: usize = 16;
/// Longest cgroup path that is delivered, its NUL included. A container's is about 200 bytes, one of kind (a node in a
/// container) about 400; a longer one arrives cut, its length equal to `PATH_LEN - 1`.
pub const PATH_LEN: usize = 512;
/// Longest program name of an exec that is delivered, its NUL included; a longer one arrives cut.
pub const FILENAME_LEN: usize = 256;

/// A struct member or a tracepoint field that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;
/// A value that could not be read. In [`OomRecord::limit_max_bytes`] it means "no limit" ("max") instead.
pub const UNKNOWN: u64 = u64::MAX;

/// Kinds of records. The numbers index the per-kind counters as well.
pub mod kind {
    pub const OOM_KILL: u32 = 0;
    pub const CGROUP_START: u32 = 1;
    pub const CGROUP_END: u32 = 2;
    pub const EXIT: u32 = 3;
    /// Never a record: the note that `oom_kill_process` leaves for `mark_victim` (counted when it could not be left).
    pub const OOM_SCOPE: u32 = 4;
    pub const KILL: u32 = 5;
    pub const EXEC: u32 = 6;
    /// Counted as lost when a reclaim found no room in the table of totals.
    pub const MEMORY_RECLAIM: u32 = 7;
    pub const POPULATED: u32 = 8;
    pub const FROZEN: u32 = 9;
    pub const COUNT: u32 = 10;
}

/// What stands in place of a kernel function's BTF id until the load. No helper has such a number.
pub mod kfunc {
    pub const CSS_NEW: u32 = 0x4647_4d01;
    pub const CSS_NEXT: u32 = 0x4647_4d02;
    pub const CSS_DESTROY: u32 = 0x4647_4d03;
    pub const RDONLY_CAST: u32 = 0x4647_4d04;
    /// All of them, by the kernel's names.
    pub const ALL: [(u32, &str); 4] = [
        (CSS_NEW, "bpf_iter_css_new"),
        (CSS_NEXT, "bpf_iter_css_next"),
        (CSS_DESTROY, "bpf_iter_css_destroy"),
        (RDONLY_CAST, "bpf_rdonly_cast"),
    ];
}

/// How the program that wrote a record was attached.
pub mod mechanism {
    pub const TP_BTF: u32 = 1;
    pub const RAW_TP: u32 = 2;
    pub const TRACEPOINT: u32 = 3;
    pub const FENTRY: u32 = 4;
}

/// Begins every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// `bpf_ktime_get_ns` (`CLOCK_MONOTONIC`).
    pub ktime_ns: u64,
    /// One of [`kind`].
    pub kind: u32,
    /// One of [`mechanism`].
    pub mechanism: u32,
}

/// A task: thread group id in the agent's pid namespace (0 = not visible there), cgroup (0 = unknown), name.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TaskRecord {
    pub cgroup_id: u64,
    pub pid: u32,
    pub _pad: u32,
    pub comm: [u8; COMM_LEN],
}

/// What `oom_kill_process` told about the kill under way.
pub mod limit_kind {
    /// It was not seen (the hook is not attached, or the kernel took another way).
    pub const NONE: u32 = 0;
    /// `oc->memcg` is set and in the v2 hierarchy: the limit fields are its own.
    pub const MEMCG: u32 = 1;
    /// `oc->memcg` is NULL: no memory cgroup. Which of the last four it is could not be read.
    pub const GLOBAL: u32 = 2;
    /// `oc->memcg` is set but lives in a cgroup v1 hierarchy, whose ids mean nothing to us.
    pub const MEMCG_V1: u32 = 3;
    /// `oc->memcg` is NULL and `oc->constraint` none: the node ran out.
    pub const NODE: u32 = 4;
    pub const CPUSET: u32 = 5;
    pub const MEMORY_POLICY: u32 = 6;
    /// `oc->order` is -1: asked for by SysRq.
    pub const SYSRQ: u32 = 7;
}

/// One `oom:mark_victim`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct OomRecord {
    pub header: Header,
    pub victim: TaskRecord,
    pub trigger: TaskRecord,
    /// [`UNKNOWN`] where not read; so all the byte fields below.
    pub anon_bytes: u64,
    pub file_bytes: u64,
    pub shmem_bytes: u64,
    pub pgtables_bytes: u64,
    pub limit_cgroup_id: u64,
    pub limit_usage_bytes: u64,
    pub limit_swap_bytes: u64,
    pub limit_max_bytes: u64,
    /// One of [`limit_kind`].
    pub limit_kind: u32,
    /// 1: `__oom_kill_process` had been entered by this task; 0: it had not, or the hook is not attached.
    pub killing: u32,
    /// `ABSENT` when not read.
    pub uid: u32,
    /// [`i32::MIN`] when not read.
    pub oom_score_adj: i32,
}

/// One `cgroup:cgroup_mkdir` or `cgroup:cgroup_rmdir` of the v2 hierarchy.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CgroupRecord {
    pub header: Header,
    pub cgroup_id: u64,
    /// 0 when not known.
    pub parent_id: u64,
    pub level: u32,
    /// Bytes of `path` that count, the NUL not among them. What follows is left over from older records.
    pub path_len: u32,
    pub path: [u8; PATH_LEN],
}

/// One `sched:sched_process_exit` of the last thread of a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExitRecord {
    pub header: Header,
    pub task: TaskRecord,
    /// Parent's thread group id in the agent's pid namespace; 0 = not visible or not known.
    pub ppid: u32,
    /// Thread group id in the task's own pid namespace; 0 = not known.
    pub inner_pid: u32,
    /// As `wait(2)` gives it; meaningful when `has_status` is 1.
    pub wait_status: u32,
    pub has_status: u32,
}

/// What `signal:signal_generate` passed as `info`.
pub mod siginfo {
    /// `SEND_SIG_NOINFO` (0): the kernel on behalf of the current task.
    pub const NONE: u32 = 0;
    /// `SEND_SIG_PRIV` (1): the kernel for itself.
    pub const PRIV: u32 = 1;
    /// A `kernel_siginfo`, whose `si_code` is in the record.
    pub const GIVEN: u32 = 2;
    /// The tracepoint's own record does not tell these apart; its `code` is in the record.
    pub const UNKNOWN: u32 = 3;
}

/// One `signal:signal_generate` of SIGKILL or SIGTERM to an init.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct KillRecord {
    pub header: Header,
    pub target: TaskRecord,
    /// The current task.
    pub sender: TaskRecord,
    /// The process that started the sender's.
    pub parent: TaskRecord,
    /// Thread group id of the target in its own pid namespace; 0 = not known.
    pub target_inner_pid: u32,
    pub sender_uid: u32,
    pub signal: i32,
    /// Meaningful with [`siginfo::GIVEN`] and [`siginfo::UNKNOWN`].
    pub si_code: i32,
    /// One of [`siginfo`].
    pub info: u32,
    /// 1: to the process; 0: to one thread.
    pub group: u32,
    /// `TRACE_SIGNAL_*`: 0 delivered, 1 ignored, 2 already pending, 3 and 4 without room for its siginfo.
    pub result: i32,
    /// 1: the sender is within `oom_kill_process`.
    pub oom: u32,
    /// 1: the sender is on its way through `do_exit`.
    pub sender_exiting: u32,
    /// 1: the target was dying of something (with result 0: of this).
    pub target_dying: u32,
}

/// One `sched:sched_process_exec` of an init or of the first process of a new cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExecRecord {
    pub header: Header,
    pub task: TaskRecord,
    pub inner_pid: u32,
    pub first_process: u32,
    /// Bytes of `filename` that count, the NUL not among them.
    pub filename_len: u32,
    /// Parent's thread group id in the agent's pid namespace; 0 = not visible or not known.
    pub ppid: u32,
    pub filename: [u8; FILENAME_LEN],
}

/// A reclaim begins in a memory cgroup; what it adds up to is in the table of totals ([`reclaim`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReclaimRecord {
    pub header: Header,
    pub cgroup_id: u64,
    /// 1: the kernel named the memory cgroup; 0: it is that of the current task.
    pub named: u32,
    pub _pad: u32,
}

/// Totals per cgroup and CPU (map `RECLAIMS`).
pub mod reclaim {
    pub type Totals = [u64; 3];
    /// Reclaims begun on this CPU.
    pub const COUNT: usize = 0;
    /// Nanoseconds of those that ended on it.
    pub const TOTAL_NS: usize = 1;
    pub const LONGEST_NS: usize = 2;
}

/// One `cgroup:cgroup_notify_populated` or `cgroup:cgroup_notify_frozen` of the v2 hierarchy.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FlagRecord {
    pub header: Header,
    pub cgroup_id: u64,
    pub value: u32,
    pub _pad: u32,
}

/// What the program that is sent to one task writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NamespaceRecord {
    /// Thread group id in the agent's pid namespace; 0 = not visible there.
    pub pid: u32,
    /// Inode number of the network namespace.
    pub inum: u32,
}

/// What `oom_kill_process` leaves for `mark_victim`, keyed by the pid and tgid of the task that runs both.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct OomScope {
    pub cgroup_id: u64,
    pub usage_bytes: u64,
    pub swap_bytes: u64,
    pub max_bytes: u64,
    pub limit_kind: u32,
    pub killing: u32,
}

const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<TaskRecord>() == 32);
    assert!(size_of::<OomRecord>() == 160);
    assert!(size_of::<CgroupRecord>() == 40 + PATH_LEN);
    assert!(size_of::<ExitRecord>() == 64);
    assert!(size_of::<OomScope>() == 40);
    assert!(size_of::<KillRecord>() == 152);
    assert!(size_of::<ExecRecord>() == 64 + FILENAME_LEN);
    assert!(size_of::<ReclaimRecord>() == 32);
    assert!(size_of::<FlagRecord>() == 32);
    assert!(size_of::<NamespaceRecord>() == 8);
};

/// Where in its struct a member lies in the running kernel, as it is written in C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Byte offset of a member; the member may be a path into embedded structs.
    Member(&'static str, &'static str),
    /// Size of a struct.
    Size(&'static str),
    /// Worked out by user space.
    Computed(&'static str),
}

macro_rules! offsets {
    ($($field:ident: $kind:ident($($arg:literal),+);)+) => {
        /// Struct offsets of the running kernel, from its BTF; [`ABSENT`] where it has no such member. A global of the
        /// kernel object (`OFFSETS`): frozen at load, so that the verifier sees constants.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub struct Offsets { $(pub $field: u32,)+ }

        impl Offsets {
            pub const ABSENT: Self = Self { $($field: ABSENT,)+ };
            /// Name, origin and value slot of each field, in order.
            pub fn fields(&mut self) -> impl Iterator<Item = (&'static str, Source, &mut u32)> {
                [$((stringify!($field), Source::$kind($($arg),+), &mut self.$field),)+].into_iter()
            }
        }
    };
}

offsets! {
    task_group_leader: Member("task_struct", "group_leader");
    task_real_parent: Member("task_struct", "real_parent");
    task_thread_pid: Member("task_struct", "thread_pid");
    task_comm: Member("task_struct", "comm");
    task_flags: Member("task_struct", "flags");
    task_exit_code: Member("task_struct", "exit_code");
    task_start_time: Member("task_struct", "start_time");
    task_signal: Member("task_struct", "signal");
    task_cred: Member("task_struct", "real_cred");
    task_mm: Member("task_struct", "mm");
    task_cgroups: Member("task_struct", "cgroups");
    task_nsproxy: Member("task_struct", "nsproxy");
    nsproxy_net: Member("nsproxy", "net_ns");
    net_inum: Member("net", "ns.inum");
    cred_uid: Member("cred", "uid");
    signal_live: Member("signal_struct", "live");
    signal_flags: Member("signal_struct", "flags");
    signal_group_exit_code: Member("signal_struct", "group_exit_code");
    signal_oom_score_adj: Member("signal_struct", "oom_score_adj");
    pid_level: Member("pid", "level");
    pid_numbers: Member("pid", "numbers");
    upid_nr: Member("upid", "nr");
    upid_ns: Member("upid", "ns");
    upid_size: Size("upid");
    pidns_inum: Member("pid_namespace", "ns.inum");
    css_set_dfl_cgrp: Member("css_set", "dfl_cgrp");
    cgroup_kn: Member("cgroup", "kn");
    cgroup_level: Member("cgroup", "level");
    cgroup_root: Member("cgroup", "root");
    cgroup_parent_css: Member("cgroup", "self.parent");
    css_cgroup: Member("cgroup_subsys_state", "cgroup");
    root_hierarchy_id: Member("cgroup_root", "hierarchy_id");
    kernfs_id: Member("kernfs_node", "id");
    mm_pgtables_bytes: Member("mm_struct", "pgtables_bytes");
    mm_rss_file: Computed("mm_struct.rss_stat[MM_FILEPAGES]");
    mm_rss_anon: Computed("mm_struct.rss_stat[MM_ANONPAGES]");
    mm_rss_shmem: Computed("mm_struct.rss_stat[MM_SHMEMPAGES]");
    oc_memcg: Member("oom_control", "memcg");
    oc_constraint: Member("oom_control", "constraint");
    oc_order: Member("oom_control", "order");
    memcg_cgroup: Member("mem_cgroup", "css.cgroup");
    memcg_usage: Member("mem_cgroup", "memory.usage");
    memcg_max: Member("mem_cgroup", "memory.max");
    memcg_swap_usage: Member("mem_cgroup", "swap.usage");
    siginfo_code: Member("kernel_siginfo", "si_code");
    bprm_filename: Member("linux_binprm", "filename");
    cgroup_flags: Member("cgroup", "self.flags");
}

macro_rules! formats {
    ($($field:ident)+) => {
        /// Fields of the tracepoints' own records, from their `format` files; for the tracepoint fallback only.
        /// `victim_comm`, `exec_filename` and `*_path` are `__data_loc`.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub struct Formats { $(pub $field: u32,)+ }

        impl Formats {
            pub const ABSENT: Self = Self { $($field: ABSENT,)+ };
        }
    };
}

formats! {
    victim_pid victim_comm victim_anon_kb victim_file_kb victim_shmem_kb victim_pgtables_kb victim_uid
    victim_oom_score_adj
    mkdir_root mkdir_level mkdir_id mkdir_path
    rmdir_root rmdir_level rmdir_id rmdir_path
    exit_group_dead
    signal_sig signal_code signal_comm signal_pid signal_group signal_result
    exec_filename
    populated_root populated_level populated_id populated_val
    frozen_root frozen_level frozen_id frozen_val
}

/// Facts about the machine and the agent (global `SETTINGS`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Settings {
    /// Inode number of the agent's pid namespace (`/proc/self/ns/pid`).
    pub pidns_inum: u32,
    pub page_size: u32,
    /// 1: `sched_process_exit` has the argument `group_dead` (6.18 has, 6.12 has not).
    pub exit_has_group_dead: u32,
    /// Exits delivered per cgroup and second; the rest is counted. Inits have a budget of their own of the same size.
    pub exits_per_second: u32,
    /// The same for kills, execs, populated and frozen, each.
    pub events_per_second: u32,
    /// Cgroups made, and cgroups removed, per parent and second; and four times that for all that lie deeper than a
    /// container's own cgroup does, where a container may make as many parents as it likes.
    pub cgroups_per_second: u32,
    /// 1: `mm_vmscan_memcg_reclaim_begin` has the memory cgroup as its third argument (7.3 has, 6.18 has not).
    pub reclaim_has_memcg: u32,
}

impl Settings {
    pub const NONE: Self = Self {
        pidns_inum: 0,
        page_size: 4096,
        exit_has_group_dead: 0,
        exits_per_second: 0,
        events_per_second: 0,
        cgroups_per_second: 0,
        reclaim_has_memcg: 0,
    };
}

/// Which values of a [`LaneValues`] were read. A file's bit is set only where the file exists in that cgroup.
pub mod lane {
    pub const MEMORY: u64 = 1;
    pub const SWAP: u64 = 2;
    pub const MAX: u64 = 4;
    pub const EVENTS: u64 = 8;
    /// `sock_throttled` of memory.events, which older kernels do not have.
    pub const SOCK_THROTTLED: u64 = 16;
    pub const PIDS: u64 = 32;
    /// The three numbers of CFS bandwidth control in cpu.stat.
    pub const CFS: u64 = 64;
    /// Numbers that the mark is made of, at the most: 6.1 to 7.3 have some 70.
    pub const STAT_WORDS: usize = 128;
    /// Numbers of memory.events that every kernel with the walk has.
    pub const EVENTS_COUNT: usize = 6;
    /// `BPF_CGROUP_ITER_DESCENDANTS_PRE`: parents first.
    pub const DESCENDANTS_PRE: u32 = 2;
}

/// One cgroup as the walk found it. Not an event: it has a place of its own in `LANE_SLOTS`, the first cgroup of a walk the first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LaneRecord {
    /// `bpf_ktime_get_ns` when this cgroup was read.
    pub ktime_ns: u64,
    /// Another one when a number of memory.stat is another one; made of those that are [`due`](LaneDue::is_due).
    pub stat_mark: u32,
    /// 1 when it was made.
    pub is_marked: u32,
    pub values: LaneValues,
}

/// What a look found, its instant aside: most of the time the same as the look before.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LaneValues {
    pub cgroup_id: u64,
    pub memory_bytes: u64,
    pub swap_bytes: u64,
    /// [`UNKNOWN`] = "max".
    pub max_bytes: u64,
    /// low, high, max, oom, `oom_kill`, `oom_group_kill`: memory.events, which counts the descendants too.
    pub events: [u64; lane::EVENTS_COUNT],
    pub sock_throttled: u64,
    pub pids: u64,
    pub throttled_ns: u64,
    pub nr_periods: u32,
    pub nr_throttled: u32,
    /// Of [`lane`].
    pub have: u64,
}

const _: () = assert!(size_of::<LaneRecord>() == 136);

/// What user space and a walk tell each other (map `LANE_HEAD`). No walk runs while user space looks at it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LaneHead {
    pub due: LaneDue,
    /// Cgroups that the walk met; those beyond the slots were not read.
    pub met: u64,
}

/// Whose memory.stat is to be marked in a walk: those whose turn, once in a period, is in a span of time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LaneDue {
    /// 0 = nobody's.
    pub period_ns: u64,
    /// The instant before the span, within its period.
    pub after_ns: u64,
    pub span_ns: u64,
}

impl LaneDue {
    #[inline(always)]
    pub fn is_due(&self, cgroup_id: u64) -> bool {
        self.period_ns != 0
            && (phase(cgroup_id, self.period_ns) + self.period_ns - 1 - self.after_ns) % self.period_ns
                < self.span_ns
    }
}

/// Where in a period a cgroup has its turn: its own place, so that not all are due in the same instant.
#[inline(always)]
pub const fn phase(cgroup_id: u64, period_ns: u64) -> u64 {
    cgroup_id.wrapping_mul(0x9e37_79b9_7f4a_7c15) % period_ns
}

/// What the walk must know of the running kernel (global `LANE`); [`ABSENT`] where it has no such thing. The first three
/// are needed; each of the others makes only its own values absent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LaneOffsets {
    pub cgroup_kn: u32,
    pub kernfs_id: u32,
    pub cgroup_level: u32,
    /// `cgroup.subsys[memory_cgrp_id]`, and so on.
    pub memory_css: u32,
    pub pids_css: u32,
    pub cpu_css: u32,
    pub css_flags: u32,
    pub css_cgroup: u32,
    /// The bit of `css.flags` that a dead cgroup's own has no more.
    pub css_online: u32,
    /// The bit of `css.flags` that says that the controller's files are there: io brings memory along without them.
    pub css_visible: u32,
    pub memory_usage: u32,
    pub memory_max: u32,
    pub swap_usage: u32,
    pub memory_events: u32,
    pub sock_throttled: u32,
    /// `mem_cgroup.vmstats`, and the bytes from its start on that memory.stat is made of.
    pub memory_vmstats: u32,
    pub vmstats_bytes: u32,
    /// `memcg_vmstats.stats_updates`: changes that are not in those sums yet, since 6.8.
    pub vmstats_updates: u32,
    pub pids_counter: u32,
    pub cfs_nr_periods: u32,
    pub cfs_nr_throttled: u32,
    pub cfs_throttled_time: u32,
    pub page_size: u32,
    /// BTF ids of the controllers' structs.
    pub mem_cgroup_id: u32,
    pub pids_cgroup_id: u32,
    pub task_group_id: u32,
}

impl LaneOffsets {
    pub const ABSENT: Self = Self {
        cgroup_kn: ABSENT,
        kernfs_id: ABSENT,
        cgroup_level: ABSENT,
        memory_css: ABSENT,
        pids_css: ABSENT,
        cpu_css: ABSENT,
        css_flags: ABSENT,
        css_cgroup: ABSENT,
        css_online: ABSENT,
        css_visible: ABSENT,
        memory_usage: ABSENT,
        memory_max: ABSENT,
        swap_usage: ABSENT,
        memory_events: ABSENT,
        sock_throttled: ABSENT,
        memory_vmstats: ABSENT,
        vmstats_bytes: 0,
        vmstats_updates: ABSENT,
        pids_counter: ABSENT,
        cfs_nr_periods: ABSENT,
        cfs_nr_throttled: ABSENT,
        cfs_throttled_time: ABSENT,
        page_size: 4096,
        mem_cgroup_id: ABSENT,
        pids_cgroup_id: ABSENT,
        task_group_id: ABSENT,
    };
}
