//! Links and iterators of BPF programs that go over the kernel's things, by raw bpf(2): aya passes no `bpf_iter_link_info`, and
//! without one `iter/cgroup` refuses and `iter/task` goes over every task. Called by `walk` and `netns`.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper that can make these links")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// Commands and constants of include/uapi/linux/bpf.h.
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_ITER_CREATE: libc::c_int = 33;
const BPF_TRACE_ITER: u32 = 28;

/// `union bpf_iter_link_info`: what to go over.
pub struct Over([u32; 4]);

/// A cgroup, in an order of `enum bpf_cgroup_iter_order`.
pub fn over_cgroups(directory: BorrowedFd<'_>, order: u32) -> Over {
    Over([order, number(directory), 0, 0])
}

/// One task, by its number in the caller's pid namespace (`BPF_TASK_ITER_TID`, Linux 6.1).
pub fn over_task(tid: u32) -> Over {
    Over([tid, 0, 0, 0])
}

/// `union bpf_attr` up to what these two commands use; the kernel takes the rest for zeros.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    _pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct IterCreate {
    link_fd: u32,
    flags: u32,
}

/// # Errors
/// The kernel's.
pub fn link(program: BorrowedFd<'_>, over: &Over) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: number(program),
        attach_type: BPF_TRACE_ITER,
        iter_info: over.0.as_ptr().addr() as u64,
        iter_info_len: u32::try_from(size_of_val(&over.0)).unwrap_or_default(),
        ..LinkCreate::default()
    };
    bpf(BPF_LINK_CREATE, &mut attr)
}

/// An iterator of the link, at its beginning: reading it runs the program.
///
/// # Errors
/// The kernel's.
pub fn of(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    bpf(BPF_ITER_CREATE, &mut IterCreate { link_fd: number(link), flags: 0 })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// One call that gives a descriptor.
fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is a `repr(C)` prefix of `union bpf_attr` for this command and its size is told; what it points to
    // outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands give a new descriptor, which is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
