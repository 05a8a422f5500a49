//! How often each kind of event may be told, per cgroup and second, so that one hostile container cannot fill the ring for
//! all. Used by every kind but OOM kills, which cost their makers a process each.
//!
//! Only says yes or no: the caller counts what it holds back.

use agent_ebpf::kind;
use aya_ebpf::{macros::map, maps::LruHashMap};

/// A container's own cgroup is at level 4 under a kubelet, at 3 or 2 elsewhere; below 5 a container made it, or a runtime
/// that is itself in a container.
const DEEP: u32 = 5;
/// Share of all deep cgroups together, in limits of one parent.
const DEEP_SHARE: u32 = 4;

#[repr(C)]
#[derive(Clone, Copy)]
struct Key {
    cgroup_id: u64,
    kind: u32,
    class: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Window {
    second: u64,
    sent: u64,
}

/// What was told in the current second. An entry pushed out only lets a cgroup start its second anew.
#[map]
static RATES: LruHashMap<Key, Window> = LruHashMap::with_max_entries(8192, 0);

/// Whether one more may be told. Each `class` of a kind has a limit of its own, so that what a container does a thousand
/// times cannot hide the one thing that matters. Counts races between CPUs only roughly, which is enough for a limit.
#[inline(always)]
pub fn within(kind: u32, class: u32, cgroup_id: u64, limit: u32, ktime_ns: u64) -> bool {
    let second = ktime_ns / 1_000_000_000;
    let key = Key { cgroup_id, kind, class };
    match RATES.get_ptr_mut(key) {
        Some(window) => {
            // SAFETY: the entry stays readable and writable until the program ends, even when it is pushed out.
            let window = unsafe { &mut *window };
            if window.second != second {
                window.second = second;
                window.sent = 0;
            }
            window.sent += 1;
            window.sent <= u64::from(limit)
        }
        None => {
            let _ = RATES.insert(key, Window { second, sent: 1 }, 0);
            limit > 0
        }
    }
}

/// The same for what happens to a cgroup at a level of the tree: whoever makes cgroups by the thousand, each with a limit
/// of its own, shares one more limit with all others that lie as deep.
#[inline(always)]
pub fn within_tree(kind: u32, cgroup_id: u64, level: u32, limits: (u32, u32), ktime_ns: u64) -> bool {
    let (own, shared) = limits;
    within(kind, 0, cgroup_id, own, ktime_ns)
        && (level <= DEEP || within(kind, 1, 0, shared.saturating_mul(DEEP_SHARE), ktime_ns))
}

/// A reclaim is told once a second and cgroup; the others are not lost but in the totals.
#[inline(always)]
pub fn reclaim_is_news(cgroup_id: u64, ktime_ns: u64) -> bool {
    within(kind::MEMORY_RECLAIM, 0, cgroup_id, 1, ktime_ns)
}
