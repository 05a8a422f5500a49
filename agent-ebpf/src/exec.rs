//! The workload begins: `sched:sched_process_exec` of a container's init, or of the first process of a new cgroup.
//!
//! It fires when the new program is in place, so the current task has its new name. Every process on the machine that
//! execs comes through here: what is of no container is dropped after two look-ups.

use crate::{
    inits,
    oom::field,
    rate,
    read::{self, Pids, follow},
    shared::{cut, emit, global},
};
use agent_ebpf::{ExecRecord, kind, mechanism};
use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::{btf_tracepoint, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};

#[inline(always)]
fn executed(pids: Pids, filename: *const u8, how: u32) {
    let cgroup_id = read::current_cgroup_id();
    if cgroup_id <= read::ROOT_CGROUP_ID {
        return;
    }
    let first = inits::is_first_process(cgroup_id, (bpf_get_current_pid_tgid() >> 32) as u32);
    let is_init = inits::is_nested(pids) || inits::named(pids.ours).is_some();
    if !first && !is_init {
        return;
    }
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    let limit = global!(SETTINGS.events_per_second);
    if !rate::within(kind::EXEC, u32::from(is_init), cgroup_id, limit, ktime_ns) {
        cut(kind::EXEC);
        return;
    }
    emit::<ExecRecord>(kind::EXEC, |record| {
        record.header.ktime_ns = ktime_ns;
        record.header.kind = kind::EXEC;
        record.header.mechanism = how;
        read::describe_current(pids, &mut record.task);
        record.inner_pid = pids.inner;
        record.first_process = u32::from(first);
        // a NULL reads as an empty name
        record.filename_len = read::read_str(filename, &mut record.filename);
        record.ppid = read::parent(read::current_task()).map_or(0, |parent| read::pids(parent).ours);
    });
}

// TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)
#[inline(always)]
fn process_exec(task: *const u8, bprm: *const u8, how: u32) {
    let filename = follow(bprm, global!(OFFSETS.bprm_filename)).unwrap_or(core::ptr::null());
    executed(read::pids(task), filename, how);
}

#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec_tp_btf(ctx: BtfTracePointContext) -> i32 {
    process_exec(ctx.arg(0), ctx.arg(2), mechanism::TP_BTF);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn exec_raw_tp(ctx: RawTracePointContext) -> i32 {
    process_exec(ctx.arg(0), ctx.arg(2), mechanism::RAW_TP);
    0
}

/// The last resort. Without BTF the pids are those of the initial namespace, and only inits that user space has named and
/// first processes are known.
#[tracepoint(category = "sched", name = "sched_process_exec")]
pub fn exec_tracepoint(ctx: TracePointContext) -> u32 {
    let mut pids = read::pids(read::current_task());
    if pids.ours == 0 {
        pids.ours = read::initial_pid((bpf_get_current_pid_tgid() >> 32) as u32);
    }
    let filename = field::<u32>(&ctx, global!(FORMATS.exec_filename)).map_or(core::ptr::null(), |loc| {
        ctx.as_ptr().cast::<u8>().cast_const().wrapping_add((loc & 0xffff) as usize)
    });
    executed(pids, filename, mechanism::TRACEPOINT);
    0
}
