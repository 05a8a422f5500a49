//! What the driver of the evidence benchmark knows by its own doing: cgroups, processes, and what the kernel's files said.
//! This, with the witness's lines, is the truth; nothing of it comes from the recorder. Written by `stage`, read by `score`.

use serde::{Deserialize, Serialize};

/// One pod and what happened in it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Case {
    /// Kind and number, for messages: `child-12`.
    pub name: String,
    pub kind: String,
    pub pod: Group,
    pub containers: Vec<Group>,
}

/// A cgroup: times are `CLOCK_MONOTONIC`, counts are its `memory.events.local`, read before it was removed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Group {
    /// Inode of its directory.
    pub id: u64,
    pub path: String,
    pub container_id: String,
    pub limit_bytes: Option<u64>,
    pub born_ns: u64,
    pub removed_ns: u64,
    /// Kills because of *its* limit.
    pub oom: u64,
    /// Kills of its own processes.
    pub oom_kill: u64,
    pub processes: Vec<Process>,
    /// A process that we started in it ended by a signal or with a code.
    pub ended_badly: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// The signal that ended it, by wait(2); `None` as well for one that a process in the container started.
    pub signal: Option<i32>,
    /// We started it, so `signal` is known.
    pub ours: bool,
}

/// A line of the witness.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "truth", rename_all = "snake_case")]
pub enum Line {
    Begin {
        vmstat_oom_kill: u64,
    },
    /// `<...>` is the name of a trigger which the trace did not keep.
    MarkVictim {
        ktime_ns: u64,
        pid: u32,
        trigger_pid: u32,
        trigger_comm: String,
    },
    End {
        vmstat_oom_kill: u64,
        overrun: u64,
    },
}
