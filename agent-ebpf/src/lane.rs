//! The lane: an `iter/cgroup` program that reads the few values that matter of every cgroup below the agent's root.
//!
//! User space asks for a walk once a tick and drains the ring after it, so a record never wakes anybody. The kernel holds
//! `cgroup_mutex` during the walk and skips dead cgroups (kernel/bpf/cgroup_iter.c, 6.1 to 7.3): nothing here may take
//! long. The ring is the lane's own, since thousands of records a second must not crowd out an event; what finds no
//! room is counted in `LANE_LOST`.

use crate::{
    read::{follow, read},
    shared::lane_global,
};
use agent_ebpf::{ABSENT, LaneDue, LaneOffsets, LaneRecord, UNKNOWN, lane};
use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    helpers::{bpf_ktime_get_ns, generated::bpf_probe_read_kernel},
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
};

/// The size is set at load.
#[map]
static LANE_RING: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
#[map]
static LANE_DUE: Array<LaneDue> = Array::with_max_entries(1, 0);
#[map]
static LANE_WORDS: PerCpuArray<[u64; lane::STAT_WORDS]> = PerCpuArray::with_max_entries(1, 0);
#[map]
static LANE_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

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

#[inline(always)]
fn memory(memcg: *const u8, record: &mut LaneRecord) {
    if let Some(pages) = read::<i64>(memcg, lane_global!(memory_usage)) {
        record.memory_bytes = bytes(pages);
        record.have |= lane::MEMORY;
    }
    if let Some(pages) = read::<i64>(memcg, lane_global!(swap_usage)) {
        record.swap_bytes = bytes(pages);
        record.have |= lane::SWAP;
    }
    if let Some(pages) = read::<i64>(memcg, lane_global!(memory_max)) {
        let none = i64::MAX as u64 / u64::from(lane_global!(page_size).max(1));
        record.max_bytes = if pages as u64 >= none { UNKNOWN } else { bytes(pages) };
        record.have |= lane::MAX;
    }
    if let Some(events) = read::<[u64; lane::EVENTS_COUNT]>(memcg, lane_global!(memory_events)) {
        record.events = events;
        record.have |= lane::EVENTS;
    }
    if let Some(n) = read::<u64>(memcg, lane_global!(sock_throttled)) {
        record.sock_throttled = n;
        record.have |= lane::SOCK_THROTTLED;
    }
}

/// The numbers that memory.stat prints, as the kernel has summed them up: every 2 s, and when the file is read and more has
/// changed since than it tolerates. How much that is goes into the mark as well (6.8 and later tell it for each cgroup).
/// User space reads the file when the mark is another one: a file costs twenty times as much.
#[inline(always)]
fn mark_statistics(memcg: *const u8, record: &mut LaneRecord) {
    let bytes = lane_global!(vmstats_bytes) as usize;
    if bytes == 0
        || bytes > 8 * lane::STAT_WORDS
        || LANE_DUE.get(0).is_none_or(|due| !due.is_due(record.cgroup_id))
    {
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
    record.have |= lane::STAT;
}

#[inline(always)]
fn throttling(group: *const u8, record: &mut LaneRecord) {
    let (at, throttled, time) =
        (lane_global!(cfs_nr_periods), lane_global!(cfs_nr_throttled), lane_global!(cfs_throttled_time));
    // in one read where they stand together, as in 6.1 to 7.3: a read costs more than what it brings
    let found = if at != ABSENT && throttled == at + 4 && time == at + 16 {
        read::<[u64; 3]>(group, at).map(|[n, _, ns]| (n as u32, (n >> 32) as u32, ns))
    } else {
        match (read::<u32>(group, at), read::<u32>(group, throttled), read::<u64>(group, time)) {
            (Some(periods), Some(throttled), Some(ns)) => Some((periods, throttled, ns)),
            _ => None,
        }
    };
    let Some((periods, throttled, ns)) = found else { return };
    record.nr_periods = periods;
    record.nr_throttled = throttled;
    record.throttled_ns = ns;
    record.have |= lane::CFS;
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/cgroup")]
pub extern "C" fn lane_walk(context: *const Context) -> i32 {
    // SAFETY: the kernel passes its `bpf_iter__cgroup`.
    let cgroup = unsafe { (*context).cgroup };
    // NULL at the end of the walk.
    if cgroup.is_null() {
        return 0;
    }
    // SAFETY: `cgroup` comes from the context. User space has checked that these three offsets are there.
    let id = unsafe {
        // The machine's own root has none of the files.
        if load::<i32>(cgroup, lane_global!(cgroup_level)) == 0 {
            return 0;
        }
        load::<u64>(load(cgroup, lane_global!(cgroup_kn)), lane_global!(kernfs_id))
    };
    let Some(mut entry) = LANE_RING.reserve::<LaneRecord>(0) else {
        if let Some(lost) = LANE_LOST.get_ptr_mut(0) {
            // SAFETY: this CPU's slot, and one walk runs at a time.
            unsafe { *lost += 1 };
        }
        return 0;
    };
    // SAFETY: the ring gives aligned memory of the record's size, for which any bytes are valid values.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    *record = LaneRecord {
        // SAFETY: the helper has no precondition.
        ktime_ns: unsafe { bpf_ktime_get_ns() },
        cgroup_id: id,
        memory_bytes: 0,
        swap_bytes: 0,
        max_bytes: UNKNOWN,
        events: [0; lane::EVENTS_COUNT],
        sock_throttled: 0,
        pids: 0,
        throttled_ns: 0,
        nr_periods: 0,
        nr_throttled: 0,
        have: 0,
        stat_mark: 0,
    };
    // A css is the first member of its controller's own struct (`mem_cgroup`, `pids_cgroup`, `task_group`).
    let css = visible(cgroup, lane_global!(memory_css));
    if !css.is_null() {
        memory(css, record);
        mark_statistics(css, record);
    }
    let css = visible(cgroup, lane_global!(pids_css));
    if !css.is_null()
        && let Some(n) = read::<i64>(css, lane_global!(pids_counter))
    {
        record.pids = n.max(0) as u64;
        record.have |= lane::PIDS;
    }
    // cpu.stat is there in any case, and has these lines wherever the controller is, hidden or not.
    let css = controller(cgroup, lane_global!(cpu_css));
    if !css.is_null() {
        throttling(css, record);
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    0
}
