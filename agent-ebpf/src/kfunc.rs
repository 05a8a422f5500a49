//! Kernel functions that are called by the id of their BTF (kfuncs), for which aya has no way of its own.
//!
//! A call is compiled as one of a helper with a number of ours ([`agent_ebpf::kfunc`]); `fgm::probes::kfunc` puts the kernel's
//! id in its place before the load. Where a kernel has no such function, the program that calls it is not loaded.

use agent_ebpf::kfunc;
use core::mem::transmute;

/// `struct bpf_iter_css`.
pub type CssIter = [u64; 3];

/// `bpf_iter_css_new`: 0, or a negative error. In any case [`css_destroy`] must follow.
///
/// # Safety
/// `it` lies on the stack; `start` comes from the program's context.
#[inline(always)]
pub unsafe fn css_new(it: *mut CssIter, start: *const u8, order: u32) -> i32 {
    type Function = unsafe extern "C" fn(*mut CssIter, *const u8, u32) -> i32;
    unsafe { transmute::<usize, Function>(kfunc::CSS_NEW as usize)(it, start, order) }
}

/// `bpf_iter_css_next`: the next `cgroup_subsys_state`, NULL at the end.
///
/// # Safety
/// `it` was made by [`css_new`].
#[inline(always)]
pub unsafe fn css_next(it: *mut CssIter) -> *const u8 {
    type Function = unsafe extern "C" fn(*mut CssIter) -> *const u8;
    unsafe { transmute::<usize, Function>(kfunc::CSS_NEXT as usize)(it) }
}

/// `bpf_iter_css_destroy`.
///
/// # Safety
/// `it` was made by [`css_new`].
#[inline(always)]
pub unsafe fn css_destroy(it: *mut CssIter) {
    type Function = unsafe extern "C" fn(*mut CssIter);
    unsafe { transmute::<usize, Function>(kfunc::CSS_DESTROY as usize)(it) }
}

/// `bpf_rdonly_cast`: the same address, for the verifier a struct of that BTF id whose members can be read without a helper;
/// a fault reads as 0.
///
/// # Safety
/// The id is a constant to the verifier.
#[inline(always)]
pub unsafe fn rdonly_cast(object: *const u8, btf_id: u32) -> *const u8 {
    type Function = unsafe extern "C" fn(*const u8, u32) -> *const u8;
    unsafe { transmute::<usize, Function>(kfunc::RDONLY_CAST as usize)(object, btf_id) }
}
