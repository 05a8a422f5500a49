//! A memory cgroup at its limit: direct reclaim within it, begun and ended.
//!
//! `try_to_free_mem_cgroup_pages` (mm/vmscan.c) is where every such reclaim passes: a charge above `memory.max`, the
//! penalty above `memory.high`, a write to `memory.max`, `memory.high` or `memory.reclaim`. Hooked at both ends it names the
//! memory cgroup. The tracepoints inside it do not before 7.3: then the cgroup of the current task is taken, which may lie
//! below the one that is at its limit.
//!
//! A cgroup at its limit reclaims thousands of times a second, so only the first of a second is told; all are added up in
//! a table that user space reads.

use crate::{
    rate,
    read::{self, follow, read},
    shared::{emit, global, lost},
};
use agent_ebpf::{ReclaimRecord, kind, mechanism, reclaim};
use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::{btf_tracepoint, fentry, fexit, map, raw_tracepoint, tracepoint},
    maps::{LruHashMap, PerCpuHashMap},
    programs::{BtfTracePointContext, FEntryContext, FExitContext, RawTracePointContext, TracePointContext},
};

/// `BPF_F_NO_PREALLOC` of include/uapi/linux/bpf.h: most cgroups never reclaim.
const NO_PREALLOC: u32 = 1;
/// `BPF_NOEXIST`
const NOEXIST: u64 = 1;
/// `CSS_ONLINE` of include/linux/cgroup-defs.h
const CSS_ONLINE: u32 = 2;

/// Totals by cgroup. An entry leaves with its cgroup (`forget`); one that finds no room is counted as lost.
#[map]
static RECLAIMS: PerCpuHashMap<u64, reclaim::Totals> = PerCpuHashMap::with_max_entries(4096, NO_PREALLOC);

#[repr(C)]
#[derive(Clone, Copy)]
struct Stall {
    begun_ns: u64,
    cgroup_id: u64,
}

/// Reclaims under way, by `pid_tgid`. One pushed out costs the length of its stall.
#[map]
static STALLS: LruHashMap<u64, Stall> = LruHashMap::with_max_entries(1024, 0);

/// This CPU's slot of a cgroup's totals. Adding to it is not atomic, and need not be where a hook is not preempted; on a
/// kernel that preempts itself, a count in many thousands may be missed.
#[inline(always)]
fn slot(cgroup_id: u64) -> Option<*mut reclaim::Totals> {
    if let Some(slot) = RECLAIMS.get_ptr_mut(cgroup_id) {
        return Some(slot);
    }
    let _ = RECLAIMS.insert(cgroup_id, [0; 3], NOEXIST);
    RECLAIMS.get_ptr_mut(cgroup_id)
}

#[inline(always)]
fn begun(cgroup_id: u64, named: bool, how: u32) {
    if cgroup_id <= read::ROOT_CGROUP_ID {
        return;
    }
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    match slot(cgroup_id) {
        // SAFETY: the value is this CPU's, aligned, and stays until the program ends.
        Some(totals) => unsafe { (*totals)[reclaim::COUNT] += 1 },
        None => lost(kind::MEMORY_RECLAIM),
    }
    let _ = STALLS.insert(bpf_get_current_pid_tgid(), Stall { begun_ns: ktime_ns, cgroup_id }, 0);
    if rate::reclaim_is_news(cgroup_id, ktime_ns) {
        emit::<ReclaimRecord>(kind::MEMORY_RECLAIM, |record| {
            record.header.ktime_ns = ktime_ns;
            record.header.kind = kind::MEMORY_RECLAIM;
            record.header.mechanism = how;
            record.cgroup_id = cgroup_id;
            record.named = u32::from(named);
            record._pad = 0;
        });
    }
}

/// The cgroup of a memory cgroup, if it is of the v2 hierarchy and was not removed: what reclaims in one that was would
/// never be read nor leave the table.
#[inline(always)]
fn live_cgroup(memcg: *const u8) -> Option<u64> {
    let cgroup = follow(memcg, global!(OFFSETS.memcg_cgroup))?;
    let online = read::<u32>(cgroup, global!(OFFSETS.cgroup_flags))? & CSS_ONLINE != 0;
    (read::is_v2(cgroup) == Some(true) && online).then(|| read::cgroup_id(cgroup))
}

#[inline(always)]
fn ended() {
    let task = bpf_get_current_pid_tgid();
    // SAFETY: a copy of the entry of this very task.
    let Some(stall) = unsafe { STALLS.get(task) }.copied() else { return };
    let _ = STALLS.remove(task);
    let ns = unsafe { bpf_ktime_get_ns() }.saturating_sub(stall.begun_ns);
    // Gone when there was no room, which was counted at the begin, or when the cgroup was removed meanwhile.
    if let Some(totals) = RECLAIMS.get_ptr_mut(stall.cgroup_id) {
        // SAFETY: as in `begun`.
        let totals = unsafe { &mut *totals };
        totals[reclaim::TOTAL_NS] += ns;
        if totals[reclaim::LONGEST_NS] < ns {
            totals[reclaim::LONGEST_NS] = ns;
        }
    }
}

/// Called when a cgroup is removed.
#[inline(always)]
pub fn forget(cgroup_id: u64) {
    let _ = RECLAIMS.remove(cgroup_id);
}

// unsigned long try_to_free_mem_cgroup_pages(struct mem_cgroup *memcg, unsigned long nr_pages, gfp_t gfp_mask, ...)
#[fentry(function = "try_to_free_mem_cgroup_pages")]
pub fn reclaim_enter(ctx: FEntryContext) -> i32 {
    if let Some(cgroup_id) = live_cgroup(ctx.arg(0)) {
        begun(cgroup_id, true, mechanism::FENTRY);
    }
    0
}

#[fexit(function = "try_to_free_mem_cgroup_pages")]
pub fn reclaim_leave(_ctx: FExitContext) -> i32 {
    ended();
    0
}

// TP_PROTO(int order, gfp_t gfp_flags), and from 7.3 (gfp_t gfp_flags, int order, struct mem_cgroup *memcg)
#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_begin")]
pub fn reclaim_begin_tp_btf(ctx: BtfTracePointContext) -> i32 {
    if global!(SETTINGS.reclaim_has_memcg) == 0 {
        begun(read::current_cgroup_id(), false, mechanism::TP_BTF);
    } else if let Some(cgroup_id) = live_cgroup(ctx.arg(2)) {
        begun(cgroup_id, true, mechanism::TP_BTF);
    }
    0
}

#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_end")]
pub fn reclaim_end_tp_btf(_ctx: BtfTracePointContext) -> i32 {
    ended();
    0
}

#[raw_tracepoint(tracepoint = "mm_vmscan_memcg_reclaim_begin")]
pub fn reclaim_begin_raw_tp(ctx: RawTracePointContext) -> i32 {
    if global!(SETTINGS.reclaim_has_memcg) == 0 {
        begun(read::current_cgroup_id(), false, mechanism::RAW_TP);
    } else if let Some(cgroup_id) = live_cgroup(ctx.arg(2)) {
        begun(cgroup_id, true, mechanism::RAW_TP);
    }
    0
}

#[raw_tracepoint(tracepoint = "mm_vmscan_memcg_reclaim_end")]
pub fn reclaim_end_raw_tp(_ctx: RawTracePointContext) -> i32 {
    ended();
    0
}

#[tracepoint(category = "vmscan", name = "mm_vmscan_memcg_reclaim_begin")]
pub fn reclaim_begin_tracepoint(_ctx: TracePointContext) -> u32 {
    begun(read::current_cgroup_id(), false, mechanism::TRACEPOINT);
    0
}

#[tracepoint(category = "vmscan", name = "mm_vmscan_memcg_reclaim_end")]
pub fn reclaim_end_tracepoint(_ctx: TracePointContext) -> u32 {
    ended();
    0
}
