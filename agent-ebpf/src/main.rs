//! The kernel programs: they see an event, read what is known only at that instant, and hand over one record.
//!
//! Loaded and attached by `fgm::probes`, which fills in the globals below from the running kernel's BTF before the load.
//! They must never do what user space can do later: no names looked up, no state kept beyond what decides whether a
//! record is sent. Whatever could not be sent is counted in `LOST` (no room) or `CUT` (rate limit), per CPU and kind.
//!
//! One file per kind of event: `oom`, `cgroup`, `exit`, `kill`, `exec`, `reclaim`, `flags`; `rate` holds each back that comes too
//! often, `inits` knows whose first process is whose; `read` holds the walks through kernel structures, `kfunc` the kernel's functions that `lane` calls. `netns` answers
//! a question of user space. `lane` is no event but the walk over all cgroups, with a ring of its own: its records must not crowd out events.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

#[cfg(target_arch = "bpf")]
mod cgroup;
#[cfg(target_arch = "bpf")]
mod exec;
#[cfg(target_arch = "bpf")]
mod exit;
#[cfg(target_arch = "bpf")]
mod flags;
#[cfg(target_arch = "bpf")]
mod inits;
#[cfg(target_arch = "bpf")]
mod kfunc;
#[cfg(target_arch = "bpf")]
mod kill;
#[cfg(target_arch = "bpf")]
mod lane;
#[cfg(target_arch = "bpf")]
mod netns;
#[cfg(target_arch = "bpf")]
mod oom;
#[cfg(target_arch = "bpf")]
mod rate;
#[cfg(target_arch = "bpf")]
mod read;
#[cfg(target_arch = "bpf")]
mod reclaim;

/// So that `cargo check` on the host works: the programs exist for the BPF target only.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod shared {
    use agent_ebpf::{Formats, Offsets, Settings, kind};
    use aya_ebpf::{
        macros::map,
        maps::{PerCpuArray, RingBuf},
    };

    /// All events, in one ring so that their order is kept. The size is set at load.
    #[map]
    pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
    /// Records that found no room, by kind.
    #[map]
    pub static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(kind::COUNT, 0);
    /// Records that a rate limit held back, by kind.
    #[map]
    pub static CUT: PerCpuArray<u64> = PerCpuArray::with_max_entries(kind::COUNT, 0);

    // Globals, in .rodata: written by the loader and frozen, so that the verifier prunes what they rule out.
    #[unsafe(no_mangle)]
    pub static OFFSETS: Offsets = Offsets::ABSENT;
    #[unsafe(no_mangle)]
    pub static FORMATS: Formats = Formats::ABSENT;
    #[unsafe(no_mangle)]
    pub static SETTINGS: Settings = Settings::NONE;

    #[inline(always)]
    fn count(counters: &PerCpuArray<u64>, kind: u32) {
        if let Some(slot) = counters.get_ptr_mut(kind) {
            // Not atomic (this target has no fetch-and-add in stable `core`), and need not be: the slot is this CPU's,
            // and none of these hooks is preempted by another that counts the same kind. (Only a timer's SIGKILL comes
            // from an interrupt; that it meets the count of another kill of an init within one instruction is a risk taken.)
            // SAFETY: the map holds an aligned u64 at this index for as long as the program runs.
            unsafe { *slot += 1 };
        }
    }

    #[inline(always)]
    pub fn lost(kind: u32) {
        count(&LOST, kind);
    }

    #[inline(always)]
    pub fn cut(kind: u32) {
        count(&CUT, kind);
    }

    /// Reserves a record, lets `fill` write *every* field of it, and submits it; or counts it as lost.
    #[inline(always)]
    pub fn emit<T: 'static>(kind: u32, fill: impl FnOnce(&mut T)) {
        match EVENTS.reserve::<T>(0) {
            Some(mut entry) => {
                // SAFETY: the ring gives aligned memory of the size of T; T is an ABI record, for which any bytes are
                // valid values.
                fill(unsafe { &mut *entry.as_mut_ptr() });
                entry.submit(0);
            }
            None => lost(kind),
        }
    }

    /// Reads one field of a global. Volatile: the compiler must not fold the value of this build into the code.
    macro_rules! global {
        ($global:ident.$field:ident) => {
            // SAFETY: a plain static integer.
            unsafe { core::ptr::read_volatile(&raw const $crate::shared::$global.$field) }
        };
    }
    pub(crate) use global;

    /// The same for the walk's offsets.
    macro_rules! lane_global {
        ($field:ident) => {
            // SAFETY: a plain static integer.
            unsafe { core::ptr::read_volatile(&raw const $crate::lane::LANE.$field) }
        };
    }
    pub(crate) use lane_global;

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo) -> ! {
        loop {}
    }

    /// Helpers that read kernel memory are for GPL-compatible programs only.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}
