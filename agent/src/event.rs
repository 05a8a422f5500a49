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

/// What limited the memory, as far as the hook in force can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomLimit {
    /// `fentry oom_kill_process` saw `oc->memcg`.
    Memcg(LimitSnapshot),
    /// `fentry oom_kill_process` saw that there was none: the node itself ran out.
    Global,
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
    /// `path` is as the kernel has it, from the hierarchy's root, cut at the length of the ABI.
    CgroupStart {
        cgroup_id: CgroupId,
        parent_id: Option<CgroupId>,
        path: String,
    },
    CgroupEnd {
        cgroup_id: CgroupId,
        path: String,
    },
    Exit(Exit),
}

/// The kinds of rows in the `events` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    OomKill,
    Exit,
    CgroupStart,
    CgroupEnd,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OomKill => "oom_kill",
            Self::Exit => "exit",
            Self::CgroupStart => "cgroup_start",
            Self::CgroupEnd => "cgroup_end",
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
