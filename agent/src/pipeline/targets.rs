//! The table of what is followed. Must never be relied on for an order.
//!
//! A walk of the lane looks each cgroup up fifty times a second: in a tree of 2,000 that is most of what the loop does.

use crate::names::CgroupId;
use crate::sampler::Target;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

pub(super) type Targets = HashMap<CgroupId, Target, BuildHasherDefault<ByInode>>;

/// Inodes count up, so that one multiplication spreads them.
#[derive(Default)]
pub(super) struct ByInode(u64);

impl Hasher for ByInode {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, n: u64) {
        // the table takes its seven bits from the top
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
