//! What is read of the running kernel once, for the events and the lane alike: its BTF, parsed for our questions and for
//! aya's, tens of megabytes while it is there and nothing after.
//!
//! `pipeline` reads it at the start, attaches everything and lets go of it. Must never be kept.

use super::{
    attach,
    btf::Btf,
    offsets::{BTF_PATH, Facts, no_btf},
    walk::{self, LaneFacts},
};
use crate::machine::give_back_memory;
use std::fs;

/// The kernel as the programs must know it.
pub struct Kernel {
    pub(super) facts: Facts,
    pub(super) lane: Result<LaneFacts, String>,
    /// aya wants its own parse of the same file.
    pub(super) btf: Result<aya::Btf, String>,
}

impl Kernel {
    pub fn read() -> Self {
        let parsed = fs::read(BTF_PATH)
            .map_err(|e| no_btf(&e))
            .and_then(|data| Btf::parse(data).map_err(|e| format!("{BTF_PATH}: {e}")));
        let facts = Facts::of(parsed.as_ref());
        let lane = parsed.as_ref().map_err(Clone::clone).and_then(walk::resolve);
        // ours is done with before aya's begins
        let is_there = parsed.map(drop);
        give_back_memory();
        let btf = is_there.and_then(|()| aya::Btf::from_sys_fs().map_err(|e| attach::explain(&e)));
        Self { facts, lane, btf }
    }

    /// Frees it, and gives the memory back to the system.
    pub fn let_go(self) {
        drop(self);
        give_back_memory();
    }
}
