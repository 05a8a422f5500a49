//! Who kills a container: `signal:signal_generate` of SIGKILL and SIGTERM to its init.
//!
//! The tracepoint fires once per signal and process, in the context that makes the signal and with the target's
//! `siglock` held; the current task is the sender unless `info` says otherwise. What becomes of the signal is in `result`:
//! pid 1 of a namespace drops what it has no handler for, and a SIGKILL from its own inside (`sig_ignored`,
//! kernel/signal.c). What the pieces mean together is worked out in user space (`decode`), not here.

use crate::{
    inits,
    oom::{self, field},
    rate,
    read::{self, follow, read},
    shared::{cut, emit, global},
};
use agent_ebpf::{KillRecord, kind, mechanism, siginfo};
use aya_ebpf::{
    helpers::{bpf_get_current_uid_gid, bpf_ktime_get_ns},
    macros::{btf_tracepoint, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
/// `TRACE_SIGNAL_DELIVERED`
const DELIVERED: i32 = 0;
/// include/linux/sched.h
const PF_EXITING: u32 = 4;
/// include/linux/sched/signal.h
const SIGNAL_GROUP_EXIT: u32 = 4;

struct Signal {
    number: i32,
    info: u32,
    code: i32,
    group: bool,
    result: i32,
}

/// A SIGKILL that is delivered is the last one, so it has a limit of its own; a container that signals itself in a loop
/// shares none with who signals it from outside.
#[inline(always)]
fn within_rate(signal: &Signal, target_cgroup: u64, ktime_ns: u64) -> bool {
    let class = if signal.number == SIGKILL && signal.result == DELIVERED {
        2
    } else {
        u32::from(read::current_cgroup_id() == target_cgroup)
    };
    rate::within(kind::KILL, class, target_cgroup, global!(SETTINGS.events_per_second), ktime_ns)
}

#[inline(always)]
fn begin(record: &mut KillRecord, signal: &Signal, ktime_ns: u64, how: u32) {
    record.header.ktime_ns = ktime_ns;
    record.header.kind = kind::KILL;
    record.header.mechanism = how;
    let sender = read::current_task();
    read::describe_current(read::pids(sender), &mut record.sender);
    match read::parent(sender) {
        Some(parent) => read::describe(parent, &mut record.parent),
        None => {
            record.parent.cgroup_id = 0;
            record.parent.pid = 0;
            record.parent._pad = 0;
            record.parent.comm = [0; 16];
        }
    }
    record.sender_uid = bpf_get_current_uid_gid() as u32;
    record.sender_exiting = u32::from(is_exiting(sender));
    record.signal = signal.number;
    record.info = signal.info;
    record.si_code = signal.code;
    record.group = u32::from(signal.group);
    record.result = signal.result;
    record.oom = u32::from(oom::killing());
}

/// An init that dies takes its namespace along (`zap_pid_ns_processes`): it sends SIGKILL to all that is in there, its own
/// other threads among them. That is the consequence of its end, not a kill of it.
#[inline(always)]
fn is_own_end(task: *const u8) -> bool {
    let sender = read::current_task();
    let leader = global!(OFFSETS.task_group_leader);
    is_exiting(sender) && follow(sender, leader) == follow(task, leader)
}

#[inline(always)]
fn is_exiting(task: *const u8) -> bool {
    read::<u32>(task, global!(OFFSETS.task_flags)).unwrap_or(0) & PF_EXITING != 0
}

/// The `info` argument: two small numbers stand for "none" (include/linux/signal.h).
#[inline(always)]
fn class_of(info: *const u8) -> (u32, i32) {
    match info as u64 {
        0 => (siginfo::NONE, 0),
        1 => (siginfo::PRIV, 0),
        _ => match read::<i32>(info, global!(OFFSETS.siginfo_code)) {
            Some(code) => (siginfo::GIVEN, code),
            None => (siginfo::NONE, 0),
        },
    }
}

// TP_PROTO(int sig, struct kernel_siginfo *info, struct task_struct *task, int group, int result)
#[inline(always)]
fn generated(number: i32, info: *const u8, task: *const u8, group: i32, result: i32, how: u32) {
    if number != SIGKILL && number != SIGTERM {
        return;
    }
    let pids = read::pids(task);
    if !inits::is_nested(pids) && inits::named(pids.ours).is_none() {
        return;
    }
    if is_own_end(task) {
        return;
    }
    let (info, code) = class_of(info);
    let signal = Signal { number, info, code, group: group != 0, result };
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    if !within_rate(&signal, read::task_cgroup_id(task), ktime_ns) {
        cut(kind::KILL);
        return;
    }
    emit::<KillRecord>(kind::KILL, |record| {
        begin(record, &signal, ktime_ns, how);
        read::describe(task, &mut record.target);
        record.target_inner_pid = pids.inner;
        record.target_dying = follow(task, global!(OFFSETS.task_signal))
            .and_then(|signal| read::<u32>(signal, global!(OFFSETS.signal_flags)))
            .map_or(0, |flags| u32::from(flags & SIGNAL_GROUP_EXIT != 0));
    });
}

#[btf_tracepoint(function = "signal_generate")]
pub fn kill_tp_btf(ctx: BtfTracePointContext) -> i32 {
    generated(ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg(3), ctx.arg(4), mechanism::TP_BTF);
    0
}

#[raw_tracepoint(tracepoint = "signal_generate")]
pub fn kill_raw_tp(ctx: RawTracePointContext) -> i32 {
    generated(ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg(3), ctx.arg(4), mechanism::RAW_TP);
    0
}

/// The last resort: the tracepoint's own record has no more of the target than its thread's pid, so only inits that user
/// space has named are known here.
#[tracepoint(category = "signal", name = "signal_generate")]
pub fn kill_tracepoint(ctx: TracePointContext) -> u32 {
    let number: i32 = field(&ctx, global!(FORMATS.signal_sig)).unwrap_or(0);
    if number != SIGKILL && number != SIGTERM {
        return 0;
    }
    let pid = read::initial_pid(field(&ctx, global!(FORMATS.signal_pid)).unwrap_or(0));
    let Some(cgroup_id) = inits::named(pid) else { return 0 };
    let signal = Signal {
        number,
        info: siginfo::UNKNOWN,
        code: field(&ctx, global!(FORMATS.signal_code)).unwrap_or(0),
        group: field::<i32>(&ctx, global!(FORMATS.signal_group)).unwrap_or(0) != 0,
        result: field(&ctx, global!(FORMATS.signal_result)).unwrap_or(DELIVERED),
    };
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    if !within_rate(&signal, cgroup_id, ktime_ns) {
        cut(kind::KILL);
        return 0;
    }
    emit::<KillRecord>(kind::KILL, |record| {
        begin(record, &signal, ktime_ns, mechanism::TRACEPOINT);
        record.target.cgroup_id = cgroup_id;
        record.target.pid = pid;
        record.target._pad = 0;
        record.target.comm = field(&ctx, global!(FORMATS.signal_comm)).unwrap_or([0; 16]);
        record.target_inner_pid = 0;
        record.target_dying = 0;
    });
    0
}
