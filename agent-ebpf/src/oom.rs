//! OOM kills: `oom:mark_victim` names the victim; `oom_kill_process`, where it may be hooked, names the limit.
//!
//! Three tasks and cgroups that are easily mixed up: the victim, the task whose allocation hit the limit (it runs this
//! code, so it is the current one), and the memory cgroup whose limit it was.
//!
//! How the kernel goes (mm/oom_kill.c, 6.1-6.18):
//!   oom_kill_process(oc)         may find the chosen task dying already: marks it and returns, nothing is counted
//!     __oom_kill_process(victim) counts the kill in memory.events, then marks; again for each member of a killed group
//!       mark_oom_victim()        fires the tracepoint once per task
//!   out_of_memory()              marks the current task without any of these when it is dying already
//! So a mark without `__oom_kill_process` before it, in the same task, was no kill. All of this runs under `oom_lock`.

use crate::{
    read::{self, follow, read},
    shared::{emit, global, lost},
};
use agent_ebpf::{ABSENT, OomRecord, OomScope, UNKNOWN, kind, limit_kind, mechanism};
use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::{btf_tracepoint, fentry, fexit, map, raw_tracepoint, tracepoint},
    maps::HashMap,
    programs::{BtfTracePointContext, FEntryContext, FExitContext, RawTracePointContext, TracePointContext},
};
use aya_log_ebpf::debug;

/// The kill under way, by `pid_tgid` of the task that runs it. `oom_lock` allows one at a time; the room is for those
/// whose `fexit` was missed, which a later kill by the same task overwrites.
#[map]
static OOM_SCOPES: HashMap<u64, OomScope> = HashMap::with_max_entries(64, 0);

/// `LONG_MAX / PAGE_SIZE`: "max" to the page counters of a 64-bit kernel (`PAGE_COUNTER_MAX`).
#[inline(always)]
fn page_counter_max() -> i64 {
    i64::MAX / i64::from(global!(SETTINGS.page_size).max(1))
}

// static void oom_kill_process(struct oom_control *oc, const char *message)
#[fentry(function = "oom_kill_process")]
pub fn oom_scope_enter(ctx: FEntryContext) -> i32 {
    let oc: *const u8 = ctx.arg(0);
    let mut scope = OomScope {
        cgroup_id: 0,
        usage_bytes: UNKNOWN,
        swap_bytes: UNKNOWN,
        max_bytes: UNKNOWN,
        limit_kind: limit_kind::NONE,
        killing: 0,
    };
    match read::<*const u8>(oc, global!(OFFSETS.oc_memcg)) {
        None => debug!(&ctx, "oom_kill_process: oom_control.memcg can't be read"),
        Some(memcg) if memcg.is_null() => scope.limit_kind = without_memcg(oc),
        Some(memcg) => fill_limit(memcg, &mut scope),
    }
    if OOM_SCOPES.insert(bpf_get_current_pid_tgid(), scope, 0).is_err() {
        lost(kind::OOM_SCOPE);
    }
    0
}

/// `enum oom_constraint` of include/linux/oom.h; the order is -1 for SysRq alone (drivers/tty/sysrq.c).
#[inline(always)]
fn without_memcg(oc: *const u8) -> u32 {
    // plain values: of an Option that is None the compiler copies the undefined rest, which the verifier refuses
    let order = read::<i32>(oc, global!(OFFSETS.oc_order)).unwrap_or(i32::MIN);
    let constraint = read::<u32>(oc, global!(OFFSETS.oc_constraint)).unwrap_or(ABSENT);
    if order == -1 {
        return limit_kind::SYSRQ;
    }
    if order == i32::MIN {
        return limit_kind::GLOBAL;
    }
    match constraint {
        0 => limit_kind::NODE,
        1 => limit_kind::CPUSET,
        2 => limit_kind::MEMORY_POLICY,
        _ => limit_kind::GLOBAL,
    }
}

#[inline(always)]
fn fill_limit(memcg: *const u8, scope: &mut OomScope) {
    let Some(cgroup) = follow(memcg, global!(OFFSETS.memcg_cgroup)) else { return };
    if read::is_v2(cgroup) != Some(true) {
        scope.limit_kind = limit_kind::MEMCG_V1;
        return;
    }
    let (id, max) = (read::cgroup_id(cgroup), read::<i64>(memcg, global!(OFFSETS.memcg_max)));
    // A limit that can't be read must not look like none.
    let Some(max) = max.filter(|_| id != 0) else { return };
    scope.limit_kind = limit_kind::MEMCG;
    scope.cgroup_id = id;
    scope.usage_bytes = read::pages_to_bytes(read(memcg, global!(OFFSETS.memcg_usage)));
    scope.swap_bytes = read::pages_to_bytes(read(memcg, global!(OFFSETS.memcg_swap_usage)));
    scope.max_bytes = read::pages_to_bytes(Some(max).filter(|&pages| pages < page_counter_max()));
}

// static void __oom_kill_process(struct task_struct *victim, const char *message)
#[fentry(function = "__oom_kill_process")]
pub fn oom_scope_kill(_ctx: FEntryContext) -> i32 {
    if let Some(scope) = OOM_SCOPES.get_ptr_mut(bpf_get_current_pid_tgid()) {
        // SAFETY: the entry is this task's own; nobody else writes it.
        unsafe { (*scope).killing = 1 };
    }
    0
}

#[fexit(function = "oom_kill_process")]
pub fn oom_scope_leave(_ctx: FExitContext) -> i32 {
    let _ = OOM_SCOPES.remove(bpf_get_current_pid_tgid());
    0
}

/// Whether the current task is within `oom_kill_process`, as far as that is hooked.
#[inline(always)]
pub fn killing() -> bool {
    // SAFETY: only looked at, not read.
    unsafe { OOM_SCOPES.get(bpf_get_current_pid_tgid()) }.is_some()
}

/// What does not depend on how the hook is attached: header, trigger, and the note of `oom_kill_process`.
#[inline(always)]
fn begin(record: &mut OomRecord, how: u32) {
    record.header.ktime_ns = unsafe { bpf_ktime_get_ns() };
    record.header.kind = kind::OOM_KILL;
    record.header.mechanism = how;
    read::describe_current(read::pids(read::current_task()), &mut record.trigger);
    // SAFETY: the entry is this task's own and nobody else writes it.
    match unsafe { OOM_SCOPES.get(bpf_get_current_pid_tgid()) } {
        Some(scope) => {
            record.limit_kind = scope.limit_kind;
            record.killing = scope.killing;
            record.limit_cgroup_id = scope.cgroup_id;
            record.limit_usage_bytes = scope.usage_bytes;
            record.limit_swap_bytes = scope.swap_bytes;
            record.limit_max_bytes = scope.max_bytes;
        }
        None => {
            record.limit_kind = limit_kind::NONE;
            record.killing = 0;
            record.limit_cgroup_id = 0;
            record.limit_usage_bytes = UNKNOWN;
            record.limit_swap_bytes = UNKNOWN;
            record.limit_max_bytes = UNKNOWN;
        }
    }
}

// TP_PROTO(struct task_struct *task, uid_t uid); user space has checked that the first argument is a task.
#[inline(always)]
fn mark_victim(ctx: &impl EbpfContext, task: *const u8, how: u32) {
    emit::<OomRecord>(kind::OOM_KILL, |record| {
        begin(record, how);
        read::describe(task, &mut record.victim);
        let mm = follow(task, global!(OFFSETS.task_mm));
        let counter = |offset: u32| mm.and_then(|mm| read::<i64>(mm, offset));
        record.anon_bytes = read::pages_to_bytes(counter(global!(OFFSETS.mm_rss_anon)));
        record.file_bytes = read::pages_to_bytes(counter(global!(OFFSETS.mm_rss_file)));
        record.shmem_bytes = read::pages_to_bytes(counter(global!(OFFSETS.mm_rss_shmem)));
        record.pgtables_bytes =
            counter(global!(OFFSETS.mm_pgtables_bytes)).map_or(UNKNOWN, |bytes| bytes.max(0) as u64);
        record.uid = follow(task, global!(OFFSETS.task_cred))
            .and_then(|cred| read::<u32>(cred, global!(OFFSETS.cred_uid)))
            .unwrap_or(ABSENT);
        record.oom_score_adj = follow(task, global!(OFFSETS.task_signal))
            .and_then(|signal| read::<i16>(signal, global!(OFFSETS.signal_oom_score_adj)))
            .map_or(i32::MIN, i32::from);
        if mm.is_none() {
            debug!(ctx, "mark_victim: pid {} has no mm", record.victim.pid);
        }
    });
}

#[btf_tracepoint(function = "mark_victim")]
pub fn oom_tp_btf(ctx: BtfTracePointContext) -> i32 {
    mark_victim(&ctx, ctx.arg(0), mechanism::TP_BTF);
    0
}

#[raw_tracepoint(tracepoint = "mark_victim")]
pub fn oom_raw_tp(ctx: RawTracePointContext) -> i32 {
    mark_victim(&ctx, ctx.arg(0), mechanism::RAW_TP);
    0
}

/// The last resort gives what the tracepoint's own record holds: no cgroup of the victim, and the thread's pid.
#[tracepoint(category = "oom", name = "mark_victim")]
pub fn oom_tracepoint(ctx: TracePointContext) -> u32 {
    emit::<OomRecord>(kind::OOM_KILL, |record| {
        begin(record, mechanism::TRACEPOINT);
        record.victim.cgroup_id = 0;
        record.victim.pid = read::initial_pid(field(&ctx, global!(FORMATS.victim_pid)).unwrap_or(0));
        record.victim._pad = 0;
        record.victim.comm = [0; 16];
        if let Some(loc) = field::<u32>(&ctx, global!(FORMATS.victim_comm)) {
            read::read_str(
                ctx.as_ptr().cast::<u8>().wrapping_add((loc & 0xffff) as usize),
                &mut record.victim.comm,
            );
        }
        let kb = |offset: u32| field::<u64>(&ctx, offset).map_or(UNKNOWN, |kb| kb << 10);
        record.anon_bytes = kb(global!(FORMATS.victim_anon_kb));
        record.file_bytes = kb(global!(FORMATS.victim_file_kb));
        record.shmem_bytes = kb(global!(FORMATS.victim_shmem_kb));
        record.pgtables_bytes = kb(global!(FORMATS.victim_pgtables_kb));
        record.uid = field(&ctx, global!(FORMATS.victim_uid)).unwrap_or(ABSENT);
        record.oom_score_adj =
            field::<i16>(&ctx, global!(FORMATS.victim_oom_score_adj)).map_or(i32::MIN, i32::from);
    });
    0
}

/// A field of the tracepoint's record; `None` when this kernel's record has no such field.
#[inline(always)]
pub fn field<T>(ctx: &TracePointContext, offset: u32) -> Option<T> {
    if offset == ABSENT {
        return None;
    }
    // SAFETY: the helper behind it checks the address; the offset is the kernel's own.
    unsafe { ctx.read_at(offset as usize) }.ok()
}
