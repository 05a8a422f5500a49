//! Loading and attaching the kernel programs: for each hook the best mechanism that this kernel and these privileges
//! allow, and a line for the ladder that says which, or why not and what to do about it.
//!
//! Nothing here may stop the agent: a hook that fails is a degraded state, reported and lived with. Called by
//! `probes::start` only.

use super::{
    Hook, Mechanism,
    decode::ScopeHooks,
    hooks::{
        ALONE, FENTRY_COSTS, Function, OOM_KILL_PROCESS, OOM_KILL_VICTIM, RECLAIM, RECLAIM_COSTS, Spec,
        TRY_TO_FREE,
    },
    kernel::Kernel,
    offsets::Facts,
};
use crate::machine::missing_capabilities;
use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, FEntry, FExit, ProgramError, RawTracePoint, TracePoint},
};
use std::{error::Error, io};

/// Attaches what can be. The hooks around a kill come first, so that no kill is seen without them.
pub fn attach_all(ebpf: &mut Ebpf, kernel: &Kernel, without: &[Mechanism]) -> (Vec<Hook>, ScopeHooks) {
    let btf = kernel.btf.as_ref();
    let mut to = Attacher { ebpf, facts: &kernel.facts, btf, without, hooks: Vec::new() };
    let scope = to.scope();
    for spec in ALONE {
        to.tracepoint(spec);
    }
    to.reclaim();
    (to.hooks, scope)
}

struct Attacher<'a> {
    ebpf: &'a mut Ebpf,
    facts: &'a Facts,
    btf: Result<&'a Btf, &'a String>,
    without: &'a [Mechanism],
    hooks: Vec<Hook>,
}

impl Attacher<'_> {
    fn tracepoint(&mut self, spec: &Spec) {
        let mut hook = Hook {
            event: spec.event,
            hook: spec.tracepoint,
            mechanism: None,
            error: None,
            costs: spec.costs,
        };
        let mut errors: Vec<String> = Vec::new();
        for mechanism in [Mechanism::TpBtf, Mechanism::RawTp, Mechanism::Tracepoint] {
            let attached = self
                .allowed(mechanism)
                .and_then(|()| self.facts.check(spec, mechanism))
                .and_then(|()| self.attach_one(mechanism, spec));
            match attached {
                Ok(()) => {
                    hook.mechanism = Some(mechanism.as_str());
                    break;
                }
                Err(e) if errors.last().is_some_and(|last| last.ends_with(&e)) => {}
                Err(e) => errors.push(format!("{}: {e}", mechanism.as_str())),
            }
        }
        hook.error = (!errors.is_empty()).then(|| errors.join("; "));
        self.hooks.push(hook);
    }

    fn allowed(&self, mechanism: Mechanism) -> Result<(), String> {
        if self.without.contains(&mechanism) {
            return Err("switched off by configuration".to_owned());
        }
        Ok(())
    }

    fn attach_one(&mut self, mechanism: Mechanism, spec: &Spec) -> Result<(), String> {
        let name = format!("{}_{}", spec.prefix, mechanism.as_str());
        let program = self.ebpf.program_mut(&name).ok_or_else(|| no_program(&name))?;
        let attached: Result<(), ProgramError> = match mechanism {
            Mechanism::TpBtf => {
                let btf = self.btf.map_err(Clone::clone)?;
                <&mut BtfTracePoint>::try_from(program)
                    .and_then(|p| p.load(spec.tracepoint, btf).and_then(|()| p.attach()).map(drop))
            }
            Mechanism::RawTp => <&mut RawTracePoint>::try_from(program)
                .and_then(|p| p.load().and_then(|()| p.attach(spec.tracepoint)).map(drop)),
            Mechanism::Tracepoint => <&mut TracePoint>::try_from(program)
                .and_then(|p| p.load().and_then(|()| p.attach(spec.category, spec.tracepoint)).map(drop)),
            Mechanism::Fentry => return Err(no_program(&name)),
        };
        attached.map_err(|e| refused(&name, &e))
    }

    /// `oom_kill_process` is hooked at both ends or not at all: a note that is never taken away would be taken for the
    /// limit of a later kill.
    fn scope(&mut self) -> ScopeHooks {
        let limit = self.function(&OOM_KILL_PROCESS, "oom_scope_enter", Some("oom_scope_leave"));
        if !self.told_function("oom_kill", &OOM_KILL_PROCESS, FENTRY_COSTS, limit) {
            return ScopeHooks::None;
        }
        let kill = self.function(&OOM_KILL_VICTIM, "oom_scope_kill", None);
        if self.told_function("oom_kill", &OOM_KILL_VICTIM, FENTRY_COSTS, kill) {
            ScopeHooks::LimitAndKill
        } else {
            ScopeHooks::Limit
        }
    }

    /// By the function, which names the memory cgroup; else by the tracepoints within it.
    fn reclaim(&mut self) {
        let function = self.function(&TRY_TO_FREE, "reclaim_enter", Some("reclaim_leave"));
        if !self.told_function("memory_reclaim", &TRY_TO_FREE, RECLAIM_COSTS, function) {
            for spec in &RECLAIM {
                self.tracepoint(spec);
            }
        }
    }

    fn told_function(
        &mut self,
        event: &'static str,
        function: &Function,
        costs: &'static str,
        result: Result<(), String>,
    ) -> bool {
        let attached = result.is_ok();
        let mechanism = attached.then_some(Mechanism::Fentry.as_str());
        self.hooks.push(Hook { event, hook: function.name, mechanism, error: result.err(), costs });
        attached
    }

    /// The end first: should the beginning fail, it only takes away what is not there.
    fn function(&mut self, function: &Function, enter: &str, leave: Option<&str>) -> Result<(), String> {
        self.allowed(Mechanism::Fentry)?;
        self.facts.check_function(function)?;
        let btf = self.btf.map_err(Clone::clone)?;
        if let Some(leave) = leave {
            let program = self.ebpf.program_mut(leave).ok_or_else(|| no_program(leave))?;
            <&mut FExit>::try_from(program)
                .and_then(|p| p.load(function.name, btf).and_then(|()| p.attach()).map(drop))
                .map_err(|e| refused(leave, &e))?;
        }
        let program = self.ebpf.program_mut(enter).ok_or_else(|| no_program(enter))?;
        <&mut FEntry>::try_from(program)
            .and_then(|p| p.load(function.name, btf).and_then(|()| p.attach()).map(drop))
            .map_err(|e| refused(enter, &e))
    }
}

fn refused(program: &str, error: &ProgramError) -> String {
    log_verifier(program, error);
    explain(error)
}

pub(super) fn no_program(name: &str) -> String {
    format!("the embedded eBPF object has no program {name}: build it anew with cargo xtask build-ebpf")
}

/// The verifier's last words, for the person who debugs a program; far too long for the ladder.
pub(super) fn log_verifier(program: &str, error: &ProgramError) {
    if let ProgramError::LoadError { verifier_log, .. } = error {
        let log = verifier_log.to_string();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        tracing::debug!(program, "the kernel refused to load a program; the end of its log:\n{tail}");
    }
}

/// The kernel's reason in one line, and what to do about it.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut message = match error.downcast_ref::<ProgramError>() {
        // Its own text would end with the verifier's log, of thousands of lines.
        Some(ProgramError::LoadError { io_error, .. }) => {
            format!("the kernel refused the program: {io_error}")
        }
        _ => chain(error),
    };
    if let Some(mend) = mend(error, &missing_capabilities()) {
        message.push_str("; ");
        message.push_str(&mend);
    }
    message.replace('\n', " ")
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

fn mend(error: &(dyn Error + 'static), missing: &[&str]) -> Option<String> {
    let mut next = Some(error);
    let mut kind = None;
    while let Some(e) = next {
        if let Some(io) = e.downcast_ref::<io::Error>() {
            kind = Some((io.kind(), io.raw_os_error()));
        }
        next = e.source();
    }
    match kind? {
        (io::ErrorKind::PermissionDenied, _) if !missing.is_empty() => {
            Some(format!("the agent lacks {}: grant them (or run privileged)", missing.join(" and ")))
        }
        (io::ErrorKind::PermissionDenied, _) => {
            Some("the capabilities are there, so it is the kernel's lockdown, LSM or seccomp policy that forbids it".into())
        }
        // ENOTSUPP (524): no BPF trampolines on this architecture or in this configuration.
        (_, Some(524)) => Some("this kernel was built without BPF trampolines".into()),
        (io::ErrorKind::NotFound, _) => {
            Some("is tracefs mounted? (mount -t tracefs tracefs /sys/kernel/tracing)".into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_what_is_missing() {
        let error = io::Error::from_raw_os_error(1);
        assert_eq!(
            mend(&error, &["CAP_BPF"]).as_deref(),
            Some("the agent lacks CAP_BPF: grant them (or run privileged)")
        );
        assert!(mend(&error, &[]).is_some_and(|mend| mend.contains("lockdown")));
        assert_eq!(mend(&io::Error::from_raw_os_error(22), &["CAP_BPF"]), None);
    }
}
