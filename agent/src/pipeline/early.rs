//! What the lane's walk has read of cgroups that are not followed yet: the walk meets them the moment they are made, while
//! the kernel's word of them may wait behind a storm of other events, and the storm may be what kills them.
//!
//! Bounded in number and in bytes. Whoever is followed gets its ring from here, so that its history begins with its life.

use super::targets::ByInode;
use crate::lane::{Reading, Ring};
use crate::names::CgroupId;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;

/// Cgroups that may wait with readings; of others the history begins when they are followed.
const AT_MOST: usize = 512;
/// What one of them may take: some ten seconds of a ramp.
const BYTES: usize = 8 << 10;
/// One that no walk has met for so long is no more.
const GONE_AFTER_NS: u64 = 1_000_000_000;
/// The word of it may be so late; then the readings are of no use.
const HEARD_WITHIN_NS: u64 = 10 * GONE_AFTER_NS;

#[derive(Default)]
pub(super) struct Early {
    rings: HashMap<CgroupId, Ring, BuildHasherDefault<ByInode>>,
    /// When those that are no more were looked for.
    checked_ns: u64,
}

impl Early {
    /// Keeps a reading; the oldest go when they are older than `window_ns`, or for want of room.
    pub fn keep(&mut self, id: CgroupId, reading: Reading, window_ns: u64) {
        // one without any of the controllers has nothing to tell
        if !reading.is_empty() && (self.rings.len() < AT_MOST || self.rings.contains_key(&id)) {
            self.rings.entry(id).or_insert_with(|| Ring::new(BYTES, window_ns)).push(reading);
        }
    }

    /// The readings of one that is followed from now on.
    pub fn give(&mut self, id: CgroupId) -> Option<Ring> {
        self.rings.remove(&id)
    }

    /// Lets go of those that the walks have ceased to meet; early, when there is no room for others.
    pub fn walked(&mut self, now_ns: u64) {
        if self.rings.is_empty() || now_ns < self.checked_ns + GONE_AFTER_NS {
            return;
        }
        self.checked_ns = now_ns;
        let within_ns = if self.rings.len() < AT_MOST { HEARD_WITHIN_NS } else { GONE_AFTER_NS };
        self.rings.retain(|_, ring| ring.newest().is_some_and(|r| r.ktime_ns + within_ns > now_ns));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn at(ms: u64) -> Reading {
        let mut reading = Reading::new(ms * MS, 20);
        reading.set(crate::lane::Value::MemoryCurrent, 4096);
        reading
    }

    #[test]
    fn a_ring_is_given_once_with_all_that_was_read() {
        let mut early = Early::default();
        for ms in [20, 40, 60] {
            early.keep(CgroupId(7), at(ms), 1000 * MS);
        }
        early.keep(CgroupId(8), at(60), 1000 * MS);
        let mut ring = early.give(CgroupId(7)).expect("read thrice");
        let mut given = Vec::new();
        ring.take_history(70 * MS, 1000 * MS, |r| given.push(r.ktime_ns / MS));
        assert_eq!(given, [20, 40, 60]);
        assert!(early.give(CgroupId(7)).is_none());
    }

    #[test]
    fn what_has_gone_is_let_go_and_others_stay() {
        let mut early = Early::default();
        early.keep(CgroupId(1), at(100), 1000 * MS);
        for ms in [100, 10_400] {
            early.keep(CgroupId(2), at(ms), 60_000 * MS);
        }
        early.walked(9000 * MS);
        assert_eq!(early.rings.len(), 2, "the word of it may be late");
        early.walked(10_500 * MS);
        assert!(early.give(CgroupId(1)).is_none());
        assert_eq!(early.give(CgroupId(2)).map(|r| r.len()), Some(2));
    }

    #[test]
    fn number_and_bytes_are_bounded() {
        let mut early = Early::default();
        for turn in 0..20_000u64 {
            let mut reading = at(20 + turn * 20);
            reading.set(crate::lane::Value::MemoryCurrent, turn << 24);
            early.keep(CgroupId(turn % 7), reading, u64::MAX);
        }
        for id in 100..2 * AT_MOST as u64 + 100 {
            early.keep(CgroupId(id), at(1), 1000 * MS);
        }
        assert_eq!(early.rings.len(), AT_MOST);
        early.walked(400_500 * MS);
        assert_eq!(early.rings.len(), 7, "those that have gone make room");
        assert!(early.rings.values().all(|r| r.bytes() <= BYTES));
        let busy = early.give(CgroupId(3)).expect("there");
        assert!(busy.len() > 500 && busy.cut() > 0, "{} {}", busy.len(), busy.cut());
    }
}
