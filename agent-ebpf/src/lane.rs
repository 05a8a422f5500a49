//! The lane: an `iter/cgroup` program that reads the few values that matter of every cgroup below the agent's root.
//!
//! User space asks for a walk once a tick, and both see the same memory: the walk writes a record of each cgroup into the next
//! slot, user space reads them when it is over. The kernel holds `cgroup_mutex` during the walk (kernel/bpf/cgroup_iter.c, 6.1 to
//! 7.3): nothing here may take long. Dead cgroups are skipped. What finds no slot is counted.

use crate::{
    kfunc::{CssIter, css_destroy, css_new, css_next, rdonly_cast},
    read::{follow, read, read_into},
    shared::lane_global,
};
use agent_ebpf::{ABSENT, LaneHead, LaneOffsets, LaneRecord, LaneValues, UNKNOWN, lane};
use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::{bpf_ktime_get_ns, generated::bpf_probe_read_kernel},
    macros::map,
    maps::{Array, PerCpuArray},
};
use core::mem::MaybeUninit;

/// The number is set at load.
#[map]
static LANE_SLOTS: Array<LaneRecord> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static LANE_HEAD: Array<LaneHead> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static LANE_WORDS: PerCpuArray<[u64; lane::STAT_WORDS]> = PerCpuArray::with_max_entries(1, 0);

#[unsafe(no_mangle)]
pub static LANE: LaneOffsets = LaneOffsets::ABSENT;

/// `struct bpf_iter__cgroup` (both members are 64-bit whatever the machine).
#[repr(C)]
pub struct Context {
    meta: *const u8,
    cgroup: *const u8,
}

/// Reads through a pointer whose type the verifier knows: no helper call, and a fault reads as 0.
///
/// # Safety
/// `base` must come from the iterator's context by such reads alone; the offset is of a member of its type.
#[inline(always)]
unsafe fn load<T: Copy>(base: *const u8, offset: u32) -> T {
    unsafe { core::ptr::read_volatile(base.wrapping_add(offset as usize).cast::<T>()) }
}

/// A controller of the cgroup, as its `cgroup_subsys_state`; NULL when it is not switched on there.
#[inline(always)]
fn controller(cgroup: *const u8, offset: u32) -> *const u8 {
    if offset == ABSENT {
        return core::ptr::null();
    }
    // SAFETY: an element of `cgroup.subsys`.
    unsafe { load(cgroup, offset) }
}

/// The same, NULL also when its files are hidden.
#[inline(always)]
fn visible(cgroup: *const u8, offset: u32) -> *const u8 {
    let css = controller(cgroup, offset);
    let (flags, bit) = (lane_global!(css_flags), lane_global!(css_visible));
    if css.is_null() || flags == ABSENT || bit == ABSENT {
        return css;
    }
    // SAFETY: `css` is a `cgroup_subsys_state`, and not NULL.
    if unsafe { load::<u32>(css, flags) } & bit == 0 { core::ptr::null() } else { css }
}

/// Pages as bytes. What page counters of 64-bit kernels take for "no limit" is `LONG_MAX / PAGE_SIZE`.
#[inline(always)]
fn bytes(pages: i64) -> u64 {
    if pages < 0 { 0 } else { pages as u64 * u64::from(lane_global!(page_size)) }
}

/// Pages of a limit as bytes, [`UNKNOWN`] where there is none.
#[inline(always)]
fn limit(pages: i64) -> u64 {
    let none = i64::MAX as u64 / u64::from(lane_global!(page_size).max(1));
    if pages as u64 >= none { UNKNOWN } else { bytes(pages) }
}

/// A member of a controller's own struct: loaded where the verifier knows the struct, else read by a helper, which costs a
/// hundred instructions and four for each number that it brings.
#[inline(always)]
fn value<T: Copy, const DIRECT: bool>(base: *const u8, offset: u32) -> Option<T> {
    if !DIRECT {
        return read(base, offset);
    }
    // SAFETY: the base was cast to a struct, and the offset is of a member of it.
    (offset != ABSENT).then(|| unsafe { load(base, offset) })
}

/// A `cgroup_subsys_state` as its controller's own struct, of which it is the first member.
#[inline(always)]
fn own<const DIRECT: bool>(css: *const u8, btf_id: u32) -> *const u8 {
    // SAFETY: the id is in .rodata, which is frozen.
    if DIRECT { unsafe { rdonly_cast(css, btf_id) } } else { css }
}

/// `memory.max` and `swap.usage` in pages: the end of one page counter and the start of the next, in 6.1 to 7.3; a helper reads both at once.
#[inline(always)]
fn limit_and_swap<const DIRECT: bool>(memcg: *const u8) -> (Option<i64>, Option<i64>) {
    let (max, swap) = (lane_global!(memory_max), lane_global!(swap_usage));
    let apart = swap.wrapping_sub(max);
    if !DIRECT && max != ABSENT && swap != ABSENT && apart < 64 && apart % 8 == 0 {
        let both = read::<[i64; 8]>(memcg, max);
        (both.map(|b| b[0]), both.map(|b| b[apart as usize / 8]))
    } else {
        (value::<i64, DIRECT>(memcg, max), value::<i64, DIRECT>(memcg, swap))
    }
}

#[inline(always)]
fn events<const DIRECT: bool>(memcg: *const u8, to: &mut [u64; lane::EVENTS_COUNT]) -> bool {
    let at = lane_global!(memory_events);
    if !DIRECT {
        return read_into(memcg, at, to);
    }
    if at == ABSENT {
        return false;
    }
    for (i, n) in to.iter_mut().enumerate() {
        // SAFETY: as for any value; `resolve` has seen that these are the first of the array.
        *n = unsafe { load(memcg, at + 8 * i as u32) };
    }
    true
}

#[inline(always)]
fn memory<const DIRECT: bool>(memcg: *const u8, values: &mut LaneValues) {
    let mut have = 0;
    if let Some(pages) = value::<i64, DIRECT>(memcg, lane_global!(memory_usage)) {
        values.memory_bytes = bytes(pages);
        have |= lane::MEMORY;
    }
    let (max, swap) = limit_and_swap::<DIRECT>(memcg);
    if let Some(pages) = max {
        values.max_bytes = limit(pages);
        have |= lane::MAX;
    }
    if let Some(pages) = swap {
        values.swap_bytes = bytes(pages);
        have |= lane::SWAP;
    }
    if events::<DIRECT>(memcg, &mut values.events) {
        have |= lane::EVENTS;
    }
    if let Some(n) = value::<u64, DIRECT>(memcg, lane_global!(sock_throttled)) {
        values.sock_throttled = n;
        have |= lane::SOCK_THROTTLED;
    }
    values.have = have;
}

/// The numbers that memory.stat prints, as the kernel has summed them up: every 2 s, and when the file is read and more has
/// changed since than it tolerates. How much that is goes into the mark as well (6.8 and later tell it for each cgroup).
/// User space reads the file when the mark is another one: a file costs twenty times as much.
#[inline(always)]
fn mark_statistics(memcg: *const u8, head: &LaneHead, record: &mut LaneRecord) {
    let bytes = lane_global!(vmstats_bytes) as usize;
    if bytes == 0 || bytes > 8 * lane::STAT_WORDS || !head.due.is_due(record.values.cgroup_id) {
        return;
    }
    let (Some(from), Some(words)) = (follow(memcg, lane_global!(memory_vmstats)), LANE_WORDS.get_ptr_mut(0))
    else {
        return;
    };
    // SAFETY: this CPU's own words, which nobody else uses while the walk is there; the helper checks the address.
    let words = unsafe {
        if bpf_probe_read_kernel(words.cast(), bytes as u32, from.cast()) != 0 {
            return;
        }
        &*words
    };
    let mut mark = u64::from(read::<u32>(from, lane_global!(vmstats_updates)).unwrap_or(0));
    for (i, word) in words.iter().enumerate() {
        if i * 8 >= bytes {
            break;
        }
        mark = (mark.rotate_left(5) ^ *word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    record.stat_mark = (mark ^ mark >> 32) as u32;
    record.is_marked = 1;
}

#[inline(always)]
fn throttling<const DIRECT: bool>(group: *const u8, values: &mut LaneValues) {
    let (at, throttled, time) =
        (lane_global!(cfs_nr_periods), lane_global!(cfs_nr_throttled), lane_global!(cfs_throttled_time));
    // in one read where they stand together, as in 6.1 to 7.3
    let found = if !DIRECT && at != ABSENT && throttled == at + 4 && time == at + 16 {
        read::<[u64; 3]>(group, at).map(|[n, _, ns]| (n as u32, (n >> 32) as u32, ns))
    } else {
        match (
            value::<u32, DIRECT>(group, at),
            value::<u32, DIRECT>(group, throttled),
            value::<u64, DIRECT>(group, time),
        ) {
            (Some(periods), Some(throttled), Some(ns)) => Some((periods, throttled, ns)),
            _ => None,
        }
    };
    let Some((periods, throttled, ns)) = found else { return };
    values.nr_periods = periods;
    values.nr_throttled = throttled;
    values.throttled_ns = ns;
    values.have |= lane::CFS;
}

/// Word by word, since `memset` goes byte by byte here: that was a quarter of the walk.
#[inline(always)]
fn clear(slot: *mut LaneRecord) {
    for i in 0..size_of::<LaneRecord>() / 8 {
        // SAFETY: the slot is ours, aligned and of so many words.
        unsafe { slot.cast::<u64>().add(i).write_volatile(0) };
    }
}

/// Writes the record of one cgroup.
#[inline(always)]
fn take<const DIRECT: bool>(cgroup: *const u8, head: &mut LaneHead) {
    // SAFETY: `cgroup` comes from the context. User space has checked that these three offsets are there.
    let id = unsafe {
        // The machine's own root has none of the files.
        if load::<i32>(cgroup, lane_global!(cgroup_level)) == 0 {
            return;
        }
        load::<u64>(load(cgroup, lane_global!(cgroup_kn)), lane_global!(kernfs_id))
    };
    let slot = LANE_SLOTS.get_ptr_mut(head.met as u32);
    head.met += 1;
    let Some(slot) = slot else { return };
    clear(slot);
    // SAFETY: as for the head; any bytes are a valid record.
    let record = unsafe { &mut *slot };
    // SAFETY: the helper has no precondition.
    record.ktime_ns = unsafe { bpf_ktime_get_ns() };
    record.values.cgroup_id = id;
    record.values.max_bytes = UNKNOWN;
    let css = visible(cgroup, lane_global!(memory_css));
    if !css.is_null() {
        let memcg = own::<DIRECT>(css, lane_global!(mem_cgroup_id));
        memory::<DIRECT>(memcg, &mut record.values);
        mark_statistics(memcg, head, record);
    }
    let css = visible(cgroup, lane_global!(pids_css));
    if !css.is_null() {
        let pids = own::<DIRECT>(css, lane_global!(pids_cgroup_id));
        if let Some(n) = value::<i64, DIRECT>(pids, lane_global!(pids_counter)) {
            record.values.pids = n.max(0) as u64;
            record.values.have |= lane::PIDS;
        }
    }
    // cpu.stat is there in any case, and has these lines wherever the controller is, hidden or not.
    let css = controller(cgroup, lane_global!(cpu_css));
    if !css.is_null() {
        throttling::<DIRECT>(own::<DIRECT>(css, lane_global!(task_group_id)), &mut record.values);
    }
}

#[inline(always)]
fn head() -> Option<&'static mut LaneHead> {
    // SAFETY: one walk runs at a time, and nobody else uses the head and the slots meanwhile.
    LANE_HEAD.get_ptr_mut(0).map(|head| unsafe { &mut *head })
}

/// Called by the kernel for each cgroup below the root, with `cgroup_mutex` held.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/cgroup")]
pub extern "C" fn lane_walk(context: *const Context) -> i32 {
    // SAFETY: the kernel passes its `bpf_iter__cgroup`.
    let cgroup = unsafe { (*context).cgroup };
    // NULL at the end of the walk.
    if !cgroup.is_null()
        && let Some(head) = head()
    {
        take::<false>(cgroup, head);
    }
    0
}

/// Called once, for the root, and goes down from there by itself: half of what [`lane_walk`] takes for each cgroup.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/cgroup")]
pub extern "C" fn lane_descend(context: *const Context) -> i32 {
    // SAFETY: the kernel passes its `bpf_iter__cgroup`.
    let root = unsafe { (*context).cgroup };
    if root.is_null() {
        return 0;
    }
    let Some(head) = head() else { return 0 };
    let mut place = MaybeUninit::<CssIter>::uninit();
    let it = place.as_mut_ptr();
    // SAFETY: the iterator lies on the stack and is destroyed in any case. A `cgroup` begins with its own css, and each css
    // that comes is one of these, held by RCU; user space has checked that the offsets are there.
    unsafe {
        if css_new(it, root, lane::DESCENDANTS_PRE) == 0 {
            loop {
                let css = css_next(it);
                if css.is_null() {
                    break;
                }
                if load::<u32>(css, lane_global!(css_flags)) & lane_global!(css_online) != 0 {
                    take::<true>(load(css, lane_global!(css_cgroup)), head);
                }
            }
        }
        css_destroy(it);
    }
    0
}
