//! The number of a process's network namespace, as lsns(8) shows it, asked of the kernel for one process at a time.
//!
//! /proc/PID/ns/net tells the same to those with CAP_SYS_PTRACE only, which the agent does without. Loaded with the events,
//! asked by `sampler::network`. What cannot be had is `None`, never another process's.

use super::{Hook, attach, iter, kernel::Kernel};
use agent_ebpf::{ABSENT, NamespaceRecord};
use aya::{
    Ebpf,
    programs::{Iter, ProgramFd},
};
use std::{os::fd::AsFd, sync::Arc};
use zerocopy::FromBytes;

const PROGRAM: &str = "network_namespace";

/// The loaded program.
pub struct Namespaces {
    program: ProgramFd,
}

impl Namespaces {
    pub(super) fn load(ebpf: &mut Ebpf, kernel: &Kernel) -> Result<Self, String> {
        let offsets = &kernel.facts.offsets;
        if [offsets.task_nsproxy, offsets.nsproxy_net, offsets.net_inum].contains(&ABSENT) {
            return Err("this kernel's BTF does not tell where a task keeps its network namespace".to_owned());
        }
        if !kernel.facts.iterates_one_task {
            return Err("this kernel cannot go to one task (Linux 6.1 can)".to_owned());
        }
        let btf = kernel.btf.as_ref().map_err(Clone::clone)?;
        let program = ebpf.program_mut(PROGRAM).ok_or_else(|| attach::no_program(PROGRAM))?;
        let program = <&mut Iter>::try_from(program).map_err(|e| attach::explain(&e))?;
        program.load("task", btf).map_err(|e| {
            attach::log_verifier(PROGRAM, &e);
            attach::explain(&e)
        })?;
        let program = program.fd().map_err(|e| attach::explain(&e))?;
        Ok(Self { program: program.try_clone().map_err(|e| attach::explain(&e))? })
    }

    /// Of a process by its pid in the agent's pid namespace: the inode number that its /proc/PID/ns/net has. `None`: it has
    /// gone, is going, or the kernel refuses.
    pub fn number(&self, pid: u32) -> Option<u32> {
        if pid == 0 {
            return None;
        }
        let link = iter::link(self.program.as_fd(), &iter::over_task(pid)).ok()?;
        let iterator = iter::of(link.as_fd()).ok()?;
        // room for two: more than one would mean that the kernel went elsewhere
        let mut text = [0; 2 * size_of::<NamespaceRecord>()];
        let length = rustix::io::read(&iterator, &mut text).ok()?;
        let record = NamespaceRecord::read_from_bytes(&text[..length]).ok()?;
        (record.pid == pid && record.inum != 0).then_some(record.inum)
    }
}

/// Its line in the ladder.
pub fn rung(namespaces: &Result<Arc<Namespaces>, String>) -> Hook {
    Hook {
        event: "network",
        hook: "iter/task",
        mechanism: namespaces.is_ok().then_some("iter_task"),
        error: namespaces.as_ref().err().cloned(),
        costs: "network counters without the number of their namespace, but where /proc/PID/ns/net may be read (CAP_SYS_PTRACE)",
    }
}
