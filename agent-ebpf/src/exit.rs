//! Processes that end: `sched:sched_process_exit` of the last thread, outside the root cgroup.
//!
//! The exiting task is the current one and still in its cgroup here (`cgroup_exit` comes later in `do_exit`). Kernel
//! threads and whatever else lives in the root cgroup is no container's and is dropped. Rate limited per cgroup: a shell
//! loop in one container must not fill the ring for all; inits have a budget of their own, so that such a loop cannot
//! hide that its container ended.

use crate::{
    inits,
    oom::field,
    rate,
    read::{self, Pids, follow, read},
    shared::{cut, emit, global},
};
use agent_ebpf::{ABSENT, ExitRecord, kind, mechanism};
use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::{btf_tracepoint, map, raw_tracepoint, tracepoint},
    maps::LruHashMap,
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};
use aya_log_ebpf::debug;

/// include/linux/sched/signal.h
const SIGNAL_GROUP_EXIT: u32 = 4;
/// `BPF_NOEXIST` of include/uapi/linux/bpf.h
const NOEXIST: u64 = 1;

#[repr(C)]
#[derive(Clone, Copy)]
struct Process {
    start_time: u64,
    tgid: u64,
}

/// Processes whose end was told. Without the argument `group_dead` two threads that exit at once can both see
/// `signal->live` at 0; the first one to come here wins.
#[map]
static ENDED: LruHashMap<Process, u8> = LruHashMap::with_max_entries(1024, 0);

/// Whether the process is dead with this thread; `None` when the structures can't be read.
#[inline(always)]
fn last_thread(task: *const u8) -> Option<bool> {
    let signal = follow(task, global!(OFFSETS.task_signal))?;
    if read::<i32>(signal, global!(OFFSETS.signal_live))? != 0 {
        return Some(false);
    }
    let leader = follow(task, global!(OFFSETS.task_group_leader))?;
    let start_time = read(leader, global!(OFFSETS.task_start_time))?;
    let process = Process { start_time, tgid: bpf_get_current_pid_tgid() >> 32 };
    Some(ENDED.insert(process, 0, NOEXIST).is_ok())
}

/// As `wait(2)` will give it to the parent (`wait_task_zombie`): of the group when it exited as one, else its leader's.
#[inline(always)]
fn wait_status(task: *const u8) -> Option<u32> {
    let signal = follow(task, global!(OFFSETS.task_signal))?;
    let flags: u32 = read(signal, global!(OFFSETS.signal_flags))?;
    if flags & SIGNAL_GROUP_EXIT != 0 {
        return read(signal, global!(OFFSETS.signal_group_exit_code));
    }
    read(follow(task, global!(OFFSETS.task_group_leader))?, global!(OFFSETS.task_exit_code))
}

#[inline(always)]
fn send(task: Option<*const u8>, how: u32) {
    let cgroup_id = read::current_cgroup_id();
    if cgroup_id <= read::ROOT_CGROUP_ID {
        return;
    }
    let pids = task.map_or(Pids { ours: 0, inner: 0 }, |task| read::pids(task));
    let was_init = inits::forget(pids.ours);
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    let class = u32::from(pids.inner == 1 || was_init);
    if !rate::within(kind::EXIT, class, cgroup_id, global!(SETTINGS.exits_per_second), ktime_ns) {
        cut(kind::EXIT);
        return;
    }
    emit::<ExitRecord>(kind::EXIT, |record| {
        record.header.ktime_ns = ktime_ns;
        record.header.kind = kind::EXIT;
        record.header.mechanism = how;
        read::describe_current(pids, &mut record.task);
        record.inner_pid = pids.inner;
        record.ppid = task.and_then(|task| read::parent(task)).map_or(0, |parent| read::pids(parent).ours);
        let status = task.and_then(|task| wait_status(task));
        record.wait_status = status.unwrap_or(0);
        record.has_status = u32::from(status.is_some());
    });
}

/// Before 6.18 the tracepoint has the task alone; `group_dead` is read by the caller only when it is there.
#[inline(always)]
fn exiting(ctx: &impl EbpfContext, task: *const u8, group_dead: Option<bool>, how: u32) {
    match group_dead.or_else(|| last_thread(task)) {
        Some(true) => send(Some(task), how),
        Some(false) => {}
        None => debug!(ctx, "sched_process_exit: signal_struct can't be read"),
    }
}

#[btf_tracepoint(function = "sched_process_exit")]
pub fn exit_tp_btf(ctx: BtfTracePointContext) -> i32 {
    let group_dead = (global!(SETTINGS.exit_has_group_dead) != 0).then(|| ctx.arg::<u8>(1) != 0);
    exiting(&ctx, ctx.arg(0), group_dead, mechanism::TP_BTF);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn exit_raw_tp(ctx: RawTracePointContext) -> i32 {
    let group_dead = (global!(SETTINGS.exit_has_group_dead) != 0).then(|| ctx.arg::<u8>(1) != 0);
    exiting(&ctx, ctx.arg(0), group_dead, mechanism::RAW_TP);
    0
}

/// The last resort. Structures are read where BTF is there (it is the attaching that failed); otherwise the end of the
/// leader stands for the end of the process, without its status.
#[tracepoint(category = "sched", name = "sched_process_exit")]
pub fn exit_tracepoint(ctx: TracePointContext) -> u32 {
    let group_dead = field::<u8>(&ctx, global!(FORMATS.exit_group_dead)).map(|dead| dead != 0);
    if global!(OFFSETS.signal_live) != ABSENT {
        exiting(&ctx, read::current_task(), group_dead, mechanism::TRACEPOINT);
        return 0;
    }
    let id = bpf_get_current_pid_tgid();
    if group_dead.unwrap_or(id as u32 == (id >> 32) as u32) {
        send(None, mechanism::TRACEPOINT);
    }
    0
}
