//! Walks through kernel structures, by the offsets of the running kernel. Used by every kind of event.
//!
//! All reads go through `bpf_probe_read_kernel`: a null, a freed or an absent thing gives `None`, never a fault. What
//! is read belongs to another task or to the current one while a tracepoint holds it, so nothing here takes a lock.

use crate::shared::global;
use agent_ebpf::{ABSENT, TaskRecord, UNKNOWN};
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_task,
    bpf_probe_read_kernel, bpf_probe_read_kernel_buf, generated,
};

/// Pid namespaces nest 32 deep (`MAX_PID_NS_LEVEL`); a task may live at any depth, but the agent is looked for in the
/// outer eight only: kind in a container is at 2, and the verifier walks every turn of the loop.
const MAX_OUR_LEVEL: u32 = 8;

/// `PROC_PID_INIT_INO`: the initial pid namespace, whose numbers `bpf_get_current_pid_tgid` and tracepoints give.
const INITIAL_PIDNS_INUM: u32 = 0xefff_fffc;

/// The root of the v2 hierarchy: kernfs numbers from 1 where `ino_t` has 64 bits.
pub const ROOT_CGROUP_ID: u64 = 1;

/// A value at an offset from a kernel address.
#[inline(always)]
pub fn read<T>(base: *const u8, offset: u32) -> Option<T> {
    if offset == ABSENT {
        return None;
    }
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(offset as usize).cast::<T>()) }.ok()
}

/// The same into a place of its own; whether it was there, else the place holds zeros.
#[inline(always)]
pub fn read_into<T>(base: *const u8, offset: u32, to: &mut T) -> bool {
    let from = base.wrapping_add(offset as usize);
    // SAFETY: the helper checks the address, and writes as many bytes as `to` has.
    offset != ABSENT
        && unsafe {
            generated::bpf_probe_read_kernel((&raw mut *to).cast(), size_of::<T>() as u32, from.cast()) == 0
        }
}

/// A pointer at an offset from a kernel address; `None` when it is NULL.
#[inline(always)]
pub fn follow(base: *const u8, offset: u32) -> Option<*const u8> {
    read::<*const u8>(base, offset).filter(|p| !p.is_null())
}

/// Copies a NUL-terminated string; gives its length without the NUL.
#[inline(always)]
pub fn read_str(from: *const u8, to: &mut [u8]) -> u32 {
    // SAFETY: the helper checks the address and writes at most `to.len()` bytes.
    let n =
        unsafe { generated::bpf_probe_read_kernel_str(to.as_mut_ptr().cast(), to.len() as u32, from.cast()) };
    if n > 0 { n as u32 - 1 } else { 0 }
}

#[inline(always)]
pub fn current_task() -> *const u8 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_get_current_task() as *const u8 }
}

#[inline(always)]
pub fn current_cgroup_id() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_get_current_cgroup_id() }
}

/// Thread group id of a task in the agent's pid namespace and in its own; 0 where there is none.
#[derive(Clone, Copy)]
pub struct Pids {
    pub ours: u32,
    pub inner: u32,
}

#[inline(always)]
pub fn pids(task: *const u8) -> Pids {
    walk_pids(task).unwrap_or(Pids { ours: 0, inner: 0 })
}

#[inline(always)]
fn walk_pids(task: *const u8) -> Option<Pids> {
    let leader = follow(task, global!(OFFSETS.task_group_leader))?;
    // NULL once the task was reaped (`__unhash_process`).
    let pid = follow(leader, global!(OFFSETS.task_thread_pid))?;
    let level: u32 = read(pid, global!(OFFSETS.pid_level))?;
    let (numbers, size) = (global!(OFFSETS.pid_numbers), global!(OFFSETS.upid_size));
    if numbers == ABSENT || size == ABSENT {
        return None;
    }
    let numbers = pid.wrapping_add(numbers as usize);
    let own = numbers.wrapping_add(level as usize * size as usize);
    let mut found = Pids { ours: 0, inner: read(own, global!(OFFSETS.upid_nr))? };
    let mut upid = numbers;
    for i in 0..MAX_OUR_LEVEL {
        if i > level {
            break;
        }
        let ns = follow(upid, global!(OFFSETS.upid_ns))?;
        if read(ns, global!(OFFSETS.pidns_inum)) == Some(global!(SETTINGS.pidns_inum)) {
            found.ours = read(upid, global!(OFFSETS.upid_nr))?;
            break;
        }
        upid = upid.wrapping_add(size as usize);
    }
    Some(found)
}

/// The id of a cgroup; 0 when it can't be read.
#[inline(always)]
pub fn cgroup_id(cgroup: *const u8) -> u64 {
    follow(cgroup, global!(OFFSETS.cgroup_kn))
        .and_then(|kn| read::<u64>(kn, global!(OFFSETS.kernfs_id)))
        .unwrap_or(0)
}

/// Whether a cgroup is in the v2 hierarchy: its root was the first to be numbered (`cgroup_init`), so it has number 0.
#[inline(always)]
pub fn is_v2(cgroup: *const u8) -> Option<bool> {
    let root = follow(cgroup, global!(OFFSETS.cgroup_root))?;
    Some(read::<i32>(root, global!(OFFSETS.root_hierarchy_id))? == 0)
}

/// The id of the v2 cgroup of a task; 0 when it can't be read.
#[inline(always)]
pub fn task_cgroup_id(task: *const u8) -> u64 {
    follow(task, global!(OFFSETS.task_cgroups))
        .and_then(|set| follow(set, global!(OFFSETS.css_set_dfl_cgrp)))
        .map_or(0, |cgroup| cgroup_id(cgroup))
}

/// Fills the record of any task.
#[inline(always)]
pub fn describe(task: *const u8, to: &mut TaskRecord) {
    to.cgroup_id = task_cgroup_id(task);
    to.pid = pids(task).ours;
    to._pad = 0;
    to.comm = [0; 16];
    let comm = global!(OFFSETS.task_comm);
    if comm != ABSENT {
        // SAFETY: the helper checks the address and writes `comm.len()` bytes.
        let _ = unsafe { bpf_probe_read_kernel_buf(task.wrapping_add(comm as usize), &mut to.comm) };
    }
}

/// The process that started a task's process.
#[inline(always)]
pub fn parent(task: *const u8) -> Option<*const u8> {
    let leader = follow(task, global!(OFFSETS.task_group_leader))?;
    follow(leader, global!(OFFSETS.task_real_parent))
}

/// A pid of the initial pid namespace is of use only to an agent that lives there; else 0.
#[inline(always)]
pub fn initial_pid(pid: u32) -> u32 {
    if global!(SETTINGS.pidns_inum) == INITIAL_PIDNS_INUM { pid } else { 0 }
}

/// Fills the record of the current task, whose pids the caller has, without BTF too.
#[inline(always)]
pub fn describe_current(pids: Pids, to: &mut TaskRecord) {
    to.cgroup_id = current_cgroup_id();
    to.pid = if global!(OFFSETS.task_thread_pid) == ABSENT {
        initial_pid((bpf_get_current_pid_tgid() >> 32) as u32)
    } else {
        pids.ours
    };
    to._pad = 0;
    to.comm = bpf_get_current_comm().unwrap_or([0; 16]);
}

/// Bytes of a counter of pages; negative ones (per-CPU parts not folded in yet) are 0, as for the kernel's own readers.
#[inline(always)]
pub fn pages_to_bytes(pages: Option<i64>) -> u64 {
    match pages {
        Some(n) if n > 0 => n as u64 * u64::from(global!(SETTINGS.page_size)),
        Some(_) => 0,
        None => UNKNOWN,
    }
}
