//! Whose process is the first of its container: pid 1 of a pid namespace by itself, others because user space said so, or
//! because they are the first to exec in a new cgroup. Used by `kill`, `exec`, `exit` and `cgroup`.

use crate::read::Pids;
use aya_ebpf::{
    macros::map,
    maps::{HashMap, LruHashMap},
};

/// Inits named by user space: thread group id in the agent's pid namespace → id of the container's cgroup. They leave when
/// they exit, lest a reused pid be taken for them.
#[map]
static INITS: HashMap<u32, u64> = HashMap::with_max_entries(4096, 0);

/// Cgroups made since the load → thread group id (of the initial namespace) of the first process to exec there, 0 until
/// then. One pushed out only means that its first exec goes untold.
#[map]
static FRESH: LruHashMap<u64, u32> = LruHashMap::with_max_entries(4096, 0);

/// The cgroup that user space named for an init.
#[inline(always)]
pub fn named(pid: u32) -> Option<u64> {
    if pid == 0 {
        return None;
    }
    // SAFETY: a copy of one aligned word.
    unsafe { INITS.get(pid) }.copied()
}

/// Pid 1 of a pid namespace below the agent's own. (The agent's own init has the same number in both.)
#[inline(always)]
pub fn is_nested(pids: Pids) -> bool {
    pids.inner == 1 && pids.ours > 1
}

#[inline(always)]
pub fn forget(pid: u32) -> bool {
    pid != 0 && INITS.remove(pid).is_ok()
}

#[inline(always)]
pub fn cgroup_made(cgroup_id: u64) {
    let _ = FRESH.insert(cgroup_id, 0, 0);
}

/// Whether this exec is by the first process of a cgroup made since the load.
#[inline(always)]
pub fn is_first_process(cgroup_id: u64, tgid: u32) -> bool {
    match FRESH.get_ptr_mut(cgroup_id) {
        Some(first) => {
            // SAFETY: the entry stays readable and writable until the program ends, even when it is pushed out.
            let first = unsafe { &mut *first };
            if *first == 0 {
                *first = tgid;
            }
            *first == tgid
        }
        None => false,
    }
}
