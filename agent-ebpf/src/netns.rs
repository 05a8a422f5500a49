//! The number of a task's network namespace: an `iter/task` program that user space sends to one process at a time.

use crate::{
    read::{self, follow},
    shared::global,
};
use agent_ebpf::NamespaceRecord;
use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};

/// The beginning of `struct bpf_iter_meta`.
#[repr(C)]
pub struct Meta {
    seq: *mut seq_file,
}

/// The beginning of `struct bpf_iter__task` (its members are 64-bit whatever the machine).
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    task: *const u8,
}

#[inline(always)]
fn number(task: *const u8) -> Option<u32> {
    // NULL once the task is on its way out (`exit_task_namespaces`).
    let proxy = follow(task, global!(OFFSETS.task_nsproxy))?;
    let net = follow(proxy, global!(OFFSETS.nsproxy_net))?;
    read::read(net, global!(OFFSETS.net_inum))
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn network_namespace(context: *const Context) -> i32 {
    // SAFETY: the kernel passes its `bpf_iter__task`, whose `meta` is always there.
    let (seq, task) = unsafe { ((*(*context).meta).seq, (*context).task) };
    // NULL at the end.
    if task.is_null() {
        return 0;
    }
    if let Some(inum) = number(task) {
        let mut record = NamespaceRecord { pid: read::pids(task).ours, inum };
        // SAFETY: the helper reads as many bytes as the record has. What finds no room comes again, as for any seq_file.
        unsafe { bpf_seq_write(seq, (&raw mut record).cast(), size_of::<NamespaceRecord>() as u32) };
    }
    0
}
