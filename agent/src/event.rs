//! What happened: the kernel's own account ([`KernelEvent`], as the probes deliver it) and the row that the
//! `events` table keeps of it ([`Event`]).
//!
//! Plain values. `probes` makes kernel events, `pipeline` turns them into events, `trigger` and `incident` read them.

use crate::names::{CgroupId, Severity};
use serde_json::Value;

/// A task as the kernel named it at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Thread group id in the agent's pid namespace; `None` when the task is not visible there.
    pub pid: Option<u32>,
    /// `task_struct.comm`, at most 15 bytes.
    pub comm: String,
    /// The cgroup v2 the task was in, as id; `None` when the kernel structure could not be read.
    pub cgroup_id: Option<CgroupId>,
}

/// Memory of the victim when it was chosen, in bytes (`mm_struct.rss_stat` × page size).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VictimMemory {
    pub anon_bytes: Option<u64>,
    pub file_bytes: Option<u64>,
    pub shmem_bytes: Option<u64>,
    pub pgtables_bytes: Option<u64>,
}

impl VictimMemory {
    /// Anonymous + file + shared memory resident, as `oom_kill_process` prints it; `None` unless all are known.
    pub fn rss_bytes(&self) -> Option<u64> {
        Some(self.anon_bytes? + self.file_bytes? + self.shmem_bytes?)
    }
}

/// The memory cgroup whose limit was hit, read in the kernel at the kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitSnapshot {
    pub cgroup_id: CgroupId,
    pub usage_bytes: Option<u64>,
    pub swap_bytes: Option<u64>,
    /// `None` = no limit ("max").
    pub max_bytes: Option<u64>,
}

/// Why the kernel had no page to give, when it was no memory cgroup's limit (`oom_control.constraint` and `.order`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GlobalOom {
    /// The node's memory, all of it.
    Node,
    /// The part of it that the asking task's cpuset (`cpuset.mems`) allows.
    Cpuset,
    /// The NUMA nodes that the asking task's memory policy names.
    MemoryPolicy,
    /// None: somebody asked for a kill, by SysRq.
    SysRq,
    /// Any of these; this kernel does not tell.
    Unknown,
}

impl GlobalOom {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "global",
            Self::Cpuset => "global_cpuset",
            Self::MemoryPolicy => "global_mempolicy",
            Self::SysRq => "global_sysrq",
            Self::Unknown => "global_unknown",
        }
    }
}

/// What limited the memory, as far as the hook in force can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomLimit {
    /// `fentry oom_kill_process` saw `oc->memcg`.
    Memcg(LimitSnapshot),
    /// `fentry oom_kill_process` saw that there was none: the node itself ran out.
    Global(GlobalOom),
    /// The hook that knows it is not attached or did not fire.
    Unknown,
}

/// One OOM kill: who died, who asked for the memory, whose limit it was. Three different things.
///
/// The kernel may tell the same victim twice within milliseconds (a group kill that meets another of its threads):
/// distinct victims are distinct pids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OomKill {
    pub victim: Task,
    pub uid: Option<u32>,
    pub oom_score_adj: Option<i32>,
    pub memory: VictimMemory,
    pub trigger: Task,
    pub limit: OomLimit,
    /// The kernel marked a task that was dying anyway: no kill, and `memory.events` does not count it as one.
    /// `None` when the hooks that tell these apart are not attached.
    pub already_dying: Option<bool>,
}

/// The last thread of a process has gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    pub task: Task,
    pub ppid: Option<u32>,
    /// Pid as seen inside the innermost pid namespace of the task: 1 is a container's init.
    pub inner_pid: Option<u32>,
    /// `WEXITSTATUS`, when it exited by itself.
    pub exit_code: Option<i32>,
    /// `WTERMSIG`, when a signal ended it.
    pub signal: Option<i32>,
}

/// How a signal came to be sent: what `signal:signal_generate` shows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// `kill`, `tgkill`, `sigqueue`, `pidfd_send_signal`: the sender asked for it, of this process or of its group.
    ByTask,
    /// Somebody wrote to `cgroup.kill` of this cgroup or of one above: the sender is who wrote. (SIGKILL, to a thread,
    /// without siginfo; nothing else in 6.1 to 7.3 sends one like it to another task.)
    ByCgroupKill,
    /// The parent died and the process had asked for a signal then (`PR_SET_PDEATHSIG`): the sender is the parent.
    ByParentDeath,
    /// The OOM killer: the sender is the task whose allocation hit the limit, no murderer. Without the fentry hooks this
    /// is told as `ByKernel`, and an `oom_kill` of the same pid follows within microseconds.
    ByOomKiller,
    /// The kernel for reasons of its own: the end of the pid namespace, RLIMIT_CPU, SysRq. The sender is the task that
    /// ran when it did.
    ByKernel,
    /// A timer or an I/O notification that the process, or its parent before an exec, had ordered. The sender is whatever
    /// ran at that instant and means nothing.
    ByTimerOrIo,
}

impl Sent {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ByTask => "task",
            Self::ByCgroupKill => "cgroup_kill",
            Self::ByParentDeath => "parent_death",
            Self::ByOomKiller => "oom_killer",
            Self::ByKernel => "kernel",
            Self::ByTimerOrIo => "timer_or_io",
        }
    }

    /// Nobody in user space asked for it.
    pub fn by_kernel(self) -> bool {
        matches!(self, Self::ByOomKiller | Self::ByKernel | Self::ByTimerOrIo)
    }
}

/// What became of a signal when it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Queued: a SIGKILL is fatal, a SIGTERM is up to the process's handler.
    Delivered,
    /// Dropped by the kernel: pid 1 of a namespace has no handler for it, or it is a SIGKILL from inside.
    Ignored,
    /// Dropped since the process was dying of another. One write to `cgroup.kill` may say so of each further thread (7.3).
    AlreadyDying,
    /// One like it was waiting.
    AlreadyPending,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Ignored => "ignored",
            Self::AlreadyDying => "already_dying",
            Self::AlreadyPending => "already_pending",
        }
    }
}

/// SIGKILL or SIGTERM to a container's init: who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    pub target: Task,
    /// Pid of the target in its own pid namespace: 1, unless user space named this init (`Probes::set_init`).
    pub target_inner_pid: Option<u32>,
    /// The task that ran when the signal was made; what it has to do with it is in `sent`.
    pub sender: Task,
    /// Its real user id, in the initial user namespace.
    pub sender_uid: Option<u32>,
    /// Who started the sender: behind a `runc kill` stands a containerd-shim, behind a `kill` a person's shell.
    pub sender_parent: Task,
    pub signal: i32,
    pub sent: Sent,
    pub outcome: Outcome,
}

/// A container's init, or the first process of a new cgroup, became another program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// Already with its new name.
    pub task: Task,
    pub ppid: Option<u32>,
    /// 1 is a container's init.
    pub inner_pid: Option<u32>,
    /// As given to execve, cut at the length of the ABI.
    pub filename: String,
    /// By the first process that execs in a cgroup made since the probes were loaded (its later execs too).
    pub first_process: bool,
}

/// How the cgroup of a reclaim was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribution {
    /// The kernel named the memory cgroup that is at its limit.
    Memcg,
    /// The cgroup of the task that had to reclaim; the limit may be that of an ancestor.
    Guess,
}

impl Attribution {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memcg => "memcg",
            Self::Guess => "guess",
        }
    }
}

/// Direct reclaim within one memory cgroup: it is at `memory.max` or `memory.high`, or somebody asked (`memory.reclaim`).
/// Counters since the probes saw the cgroup first. An event comes at the first reclaim at once, then at most one a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reclaim {
    pub cgroup_id: CgroupId,
    pub attribution: Attribution,
    /// Reclaims begun.
    pub count: u64,
    /// Time that tasks stood still in those that have ended, and the longest of them.
    pub total_ns: u64,
    pub longest_ns: u64,
}

/// What the kernel told, at `ktime_ns` (`CLOCK_MONOTONIC`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelEvent {
    pub ktime_ns: u64,
    /// The hook that delivered it, such as `tp_btf/mark_victim`.
    pub source: &'static str,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    OomKill(Box<OomKill>),
    /// `path`, of births and ends, is as the kernel has it, from the hierarchy's root, cut at the length of the ABI.
    CgroupStart {
        cgroup_id: CgroupId,
        parent_id: Option<CgroupId>,
        path: String,
    },
    CgroupEnd {
        cgroup_id: CgroupId,
        parent_id: Option<CgroupId>,
        path: String,
    },
    Exit(Exit),
    Kill(Box<Kill>),
    Exec(Exec),
    Reclaim(Reclaim),
    /// The first process came into the cgroup or one below it, or the last one left.
    Populated {
        cgroup_id: CgroupId,
        populated: bool,
    },
    /// All processes of the cgroup are frozen, or no longer.
    Frozen {
        cgroup_id: CgroupId,
        frozen: bool,
    },
}

/// The kinds of rows in the `events` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    OomKill,
    Exit,
    CgroupStart,
    CgroupEnd,
    Kill,
    Exec,
    MemoryReclaim,
    Populated,
    Frozen,
    // From files, no probe needed:
    LimitNear,
    ForecastOom,
    MemoryHigh,
    MemoryMax,
    PsiStall,
    CpuThrottled,
    ForkLimit,
    /// A memory limit was written anew.
    LimitChange,
    /// The wall clock was set, or the machine suspended.
    ClockStep,
}

/// How many kinds there are: the length of a table indexed by `Kind as usize`.
pub const KINDS: usize = Kind::ClockStep as usize + 1;

impl Kind {
    /// All of them, each at its own place.
    pub const ALL: [Self; KINDS] = [
        Self::OomKill,
        Self::Exit,
        Self::CgroupStart,
        Self::CgroupEnd,
        Self::Kill,
        Self::Exec,
        Self::MemoryReclaim,
        Self::Populated,
        Self::Frozen,
        Self::LimitNear,
        Self::ForecastOom,
        Self::MemoryHigh,
        Self::MemoryMax,
        Self::PsiStall,
        Self::CpuThrottled,
        Self::ForkLimit,
        Self::LimitChange,
        Self::ClockStep,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::OomKill => "oom_kill",
            Self::Exit => "exit",
            Self::CgroupStart => "cgroup_start",
            Self::CgroupEnd => "cgroup_end",
            Self::Kill => "kill",
            Self::Exec => "exec",
            Self::MemoryReclaim => "memory_reclaim",
            Self::Populated => "populated",
            Self::Frozen => "frozen",
            Self::LimitNear => "limit_near",
            Self::ForecastOom => "forecast_oom",
            Self::MemoryHigh => "memory_high",
            Self::MemoryMax => "memory_max",
            Self::PsiStall => "psi_stall",
            Self::CpuThrottled => "cpu_throttled",
            Self::ForkLimit => "fork_limit",
            Self::LimitChange => "limit_change",
            Self::ClockStep => "clock_step",
        }
    }

    /// How much a burst of this kind is worth when the budget is short.
    pub fn severity(self) -> Severity {
        match self {
            Self::OomKill => Severity::Critical,
            Self::Kill
            | Self::Exit
            | Self::LimitNear
            | Self::ForecastOom
            | Self::PsiStall
            | Self::ForkLimit
            | Self::ClockStep => Severity::Warning,
            Self::MemoryHigh
            | Self::MemoryMax
            | Self::MemoryReclaim
            | Self::CpuThrottled
            | Self::CgroupStart
            | Self::CgroupEnd
            | Self::Exec
            | Self::Populated
            | Self::Frozen
            | Self::LimitChange => Severity::Info,
        }
    }
}

/// One row of the `events` table.
#[derive(Clone, Debug)]
pub struct Event {
    pub event_id: String,
    pub kind: Kind,
    pub severity: Severity,
    pub source: &'static str,
    pub ts_us: i64,
    pub ktime_ns: u64,
    pub cgroup_id: Option<CgroupId>,
    pub pid: Option<u32>,
    pub comm: Option<String>,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub detail: Value,
}
