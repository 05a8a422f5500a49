//! The hooks, as a table: for each event the tracepoint that tells it, what it must pass, what of the kernel's structures
//! its programs cannot do without, and what is lost without it.
//!
//! Data only. `attach` goes through it, `offsets` checks it against the running kernel.

/// One tracepoint and the programs that serve it, `<prefix>_<mechanism>`.
pub struct Spec {
    /// The event it serves, as in the `events` table.
    pub event: &'static str,
    pub category: &'static str,
    pub tracepoint: &'static str,
    pub prefix: &'static str,
    /// Arguments that must be pointers to these structs, by position.
    pub passes: &'static [(usize, &'static str)],
    /// Offsets without which it is of no use. Others make single values NULL.
    pub needs: &'static [&'static [&'static str]],
    pub costs: &'static str,
}

/// One function, hooked by fentry (and fexit) at its entry (and end).
pub struct Function {
    pub name: &'static str,
    pub first: &'static str,
    pub needs: &'static [&'static [&'static str]],
}

const PIDS: &[&str] = &[
    "task_group_leader",
    "task_thread_pid",
    "pid_level",
    "pid_numbers",
    "upid_nr",
    "upid_ns",
    "upid_size",
    "pidns_inum",
];
const CGROUP: &[&str] = &["cgroup_kn", "kernfs_id"];
const V2: &[&str] = &["cgroup_root", "root_hierarchy_id"];
const TASK: &[&str] = &["task_comm", "task_cgroups", "css_set_dfl_cgrp"];

pub const MARK_VICTIM: Spec = Spec {
    event: "oom_kill",
    category: "oom",
    tracepoint: "mark_victim",
    prefix: "oom",
    passes: &[(0, "task_struct")],
    needs: &[PIDS, CGROUP, TASK],
    costs: "kills are seen only as counts in memory.events: no victim, no trigger, no exact time",
};
pub const CGROUP_MKDIR: Spec = Spec {
    event: "cgroup_start",
    category: "cgroup",
    tracepoint: "cgroup_mkdir",
    prefix: "mkdir",
    passes: &[(0, "cgroup")],
    needs: &[CGROUP, V2],
    costs: "containers are found by scanning: one that lives shorter than a scan is missed",
};
pub const CGROUP_RMDIR: Spec = Spec {
    event: "cgroup_end",
    category: "cgroup",
    tracepoint: "cgroup_rmdir",
    prefix: "rmdir",
    passes: &[(0, "cgroup")],
    needs: &[CGROUP, V2],
    costs: "the end of a container is noticed at the next reading, not at its instant",
};
pub const PROCESS_EXIT: Spec = Spec {
    event: "exit",
    category: "sched",
    tracepoint: "sched_process_exit",
    prefix: "exit",
    passes: &[(0, "task_struct")],
    needs: &[
        PIDS,
        &[
            "task_signal",
            "signal_live",
            "signal_flags",
            "signal_group_exit_code",
            "task_exit_code",
            "task_start_time",
        ],
    ],
    costs: "no exit codes and signals of processes",
};
pub const SIGNAL_GENERATE: Spec = Spec {
    event: "kill",
    category: "signal",
    tracepoint: "signal_generate",
    prefix: "kill",
    passes: &[(1, "kernel_siginfo"), (2, "task_struct")],
    needs: &[PIDS, CGROUP, TASK, &["siginfo_code"]],
    costs: "who killed a container is not known: a failed probe, an eviction and a person all look alike",
};
pub const PROCESS_EXEC: Spec = Spec {
    event: "exec",
    category: "sched",
    tracepoint: "sched_process_exec",
    prefix: "exec",
    passes: &[(0, "task_struct"), (2, "linux_binprm")],
    needs: &[PIDS],
    costs: "the start of a workload is known by its cgroup's only",
};
pub const NOTIFY_POPULATED: Spec = Spec {
    event: "populated",
    category: "cgroup",
    tracepoint: "cgroup_notify_populated",
    prefix: "populated",
    passes: &[(0, "cgroup")],
    needs: &[CGROUP, V2],
    costs: "when a container's last process left is known by its cgroup's removal only",
};
pub const NOTIFY_FROZEN: Spec = Spec {
    event: "frozen",
    category: "cgroup",
    tracepoint: "cgroup_notify_frozen",
    prefix: "frozen",
    passes: &[(0, "cgroup")],
    needs: &[CGROUP, V2],
    costs: "a paused container looks like an idle one",
};
/// The end first: should the beginning fail, it only takes away what is not there.
pub const RECLAIM: [Spec; 2] = [
    Spec {
        event: "memory_reclaim",
        category: "vmscan",
        tracepoint: "mm_vmscan_memcg_reclaim_end",
        prefix: "reclaim_end",
        passes: &[],
        needs: &[],
        costs: "how long tasks stood still in reclaim is known from the pressure files only",
    },
    Spec {
        event: "memory_reclaim",
        category: "vmscan",
        tracepoint: "mm_vmscan_memcg_reclaim_begin",
        prefix: "reclaim_begin",
        passes: &[],
        needs: &[],
        costs: "the early warning by the first reclaim is missing",
    },
];

pub const ALONE: [&Spec; 8] = [
    &MARK_VICTIM,
    &CGROUP_MKDIR,
    &CGROUP_RMDIR,
    &PROCESS_EXIT,
    &SIGNAL_GENERATE,
    &PROCESS_EXEC,
    &NOTIFY_POPULATED,
    &NOTIFY_FROZEN,
];

pub const OOM_KILL_PROCESS: Function = Function {
    name: "oom_kill_process",
    first: "oom_control",
    needs: &[&["oc_memcg", "memcg_cgroup", "memcg_max", "memcg_usage"], CGROUP, V2],
};
pub const OOM_KILL_VICTIM: Function =
    Function { name: "__oom_kill_process", first: "task_struct", needs: &[] };
pub const TRY_TO_FREE: Function = Function {
    name: "try_to_free_mem_cgroup_pages",
    first: "mem_cgroup",
    needs: &[&["memcg_cgroup", "cgroup_flags"], CGROUP, V2],
};

pub const FUNCTIONS: [&Function; 3] = [&OOM_KILL_PROCESS, &OOM_KILL_VICTIM, &TRY_TO_FREE];

pub const FENTRY_COSTS: &str = "whose limit a kill hit is inferred from memory.events.local, without the counters of that instant; \
     marks of tasks that were dying anyway can't be told from kills";
pub const RECLAIM_COSTS: &str = "a reclaim is put down to the cgroup of the task that ran it, a guess: the limit may be that of a cgroup above";

/// All tracepoints.
pub fn specs() -> impl Iterator<Item = &'static Spec> {
    ALONE.into_iter().chain(&RECLAIM)
}
