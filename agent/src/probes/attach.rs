//! Loading and attaching the kernel programs: for each hook the best mechanism that this kernel and these privileges
//! allow, and a line for the ladder that says which, or why not and what to do about it.
//!
//! Nothing here may stop the agent: a hook that fails is a degraded state, reported and lived with. Called by
//! `probes::start` only.

use super::{Hook, Mechanism, decode::ScopeHooks, offsets::Facts};
use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, FEntry, FExit, ProgramError, RawTracePoint, TracePoint},
};
use std::{error::Error, fs, io};

/// One tracepoint and the programs that serve it, `<prefix>_<mechanism>`.
struct Spec {
    event: &'static str,
    category: &'static str,
    tracepoint: &'static str,
    prefix: &'static str,
    costs: &'static str,
}

const SPECS: [Spec; 4] = [
    Spec {
        event: "oom_kill",
        category: "oom",
        tracepoint: "mark_victim",
        prefix: "oom",
        costs: "kills are seen only as counts in memory.events: no victim, no trigger, no exact time",
    },
    Spec {
        event: "cgroup_start",
        category: "cgroup",
        tracepoint: "cgroup_mkdir",
        prefix: "mkdir",
        costs: "containers are found by scanning: one that lives shorter than a scan is missed",
    },
    Spec {
        event: "cgroup_end",
        category: "cgroup",
        tracepoint: "cgroup_rmdir",
        prefix: "rmdir",
        costs: "the end of a container is noticed at the next reading, not at its instant",
    },
    Spec {
        event: "exit",
        category: "sched",
        tracepoint: "sched_process_exit",
        prefix: "exit",
        costs: "no exit codes and signals of processes",
    },
];

const FENTRY_COSTS: &str = "whose limit a kill hit is inferred from memory.events.local, without the counters of that instant; \
     marks of tasks that were dying anyway can't be told from kills";

/// Attaches what can be. The hooks around a kill come first, so that no kill is seen without them.
pub fn attach_all(ebpf: &mut Ebpf, facts: &Facts, without: &[Mechanism]) -> (Vec<Hook>, ScopeHooks) {
    let btf = match &facts.no_btf {
        Some(reason) => Err(reason.clone()),
        // aya wants its own parse of the file; it is dropped when all is attached.
        None => Btf::from_sys_fs().map_err(|e| explain(&e)),
    };
    let mut hooks = Vec::new();
    let scope = attach_scope(ebpf, facts, btf.as_ref(), without, &mut hooks);
    for spec in &SPECS {
        hooks.push(attach_tracepoint(ebpf, facts, btf.as_ref(), without, spec));
    }
    (hooks, scope)
}

fn attach_tracepoint(
    ebpf: &mut Ebpf,
    facts: &Facts,
    btf: Result<&Btf, &String>,
    without: &[Mechanism],
    spec: &Spec,
) -> Hook {
    let mut hook =
        Hook { event: spec.event, hook: spec.tracepoint, mechanism: None, error: None, costs: spec.costs };
    let mut errors: Vec<String> = Vec::new();
    for mechanism in [Mechanism::TpBtf, Mechanism::RawTp, Mechanism::Tracepoint] {
        let attached = if without.contains(&mechanism) {
            Err("switched off by configuration".to_owned())
        } else {
            facts.check(spec.tracepoint, mechanism).and_then(|()| attach_one(ebpf, btf, mechanism, spec))
        };
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
    hook
}

fn attach_one(
    ebpf: &mut Ebpf,
    btf: Result<&Btf, &String>,
    mechanism: Mechanism,
    spec: &Spec,
) -> Result<(), String> {
    let name = format!("{}_{}", spec.prefix, mechanism.as_str());
    let program = ebpf.program_mut(&name).ok_or_else(|| no_program(&name))?;
    let attached: Result<(), ProgramError> = match mechanism {
        Mechanism::TpBtf => {
            let btf = btf.map_err(Clone::clone)?;
            <&mut BtfTracePoint>::try_from(program)
                .and_then(|p| p.load(spec.tracepoint, btf).and_then(|()| p.attach()).map(drop))
        }
        Mechanism::RawTp => <&mut RawTracePoint>::try_from(program)
            .and_then(|p| p.load().and_then(|()| p.attach(spec.tracepoint)).map(drop)),
        Mechanism::Tracepoint => <&mut TracePoint>::try_from(program)
            .and_then(|p| p.load().and_then(|()| p.attach(spec.category, spec.tracepoint)).map(drop)),
        Mechanism::Fentry => return Err(no_program(&name)),
    };
    attached.map_err(|e| {
        log_verifier(&name, &e);
        explain(&e)
    })
}

/// `oom_kill_process` is hooked at both ends or not at all: a note that is never taken away would be taken for the limit
/// of a later kill.
fn attach_scope(
    ebpf: &mut Ebpf,
    facts: &Facts,
    btf: Result<&Btf, &String>,
    without: &[Mechanism],
    hooks: &mut Vec<Hook>,
) -> ScopeHooks {
    let mut hook = |name: &'static str, result: Result<(), String>| {
        let attached = result.is_ok();
        hooks.push(Hook {
            event: "oom_kill",
            hook: name,
            mechanism: attached.then_some(Mechanism::Fentry.as_str()),
            error: result.err(),
            costs: FENTRY_COSTS,
        });
        attached
    };
    if without.contains(&Mechanism::Fentry) {
        hook("oom_kill_process", Err("switched off by configuration".to_owned()));
        return ScopeHooks::None;
    }
    let limit = attach_limit(ebpf, facts, btf);
    if !hook("oom_kill_process", limit) {
        return ScopeHooks::None;
    }
    let kill = facts.check("__oom_kill_process", Mechanism::Fentry).and_then(|()| {
        let btf = btf.map_err(Clone::clone)?;
        load_fentry(ebpf, "oom_scope_kill", "__oom_kill_process", btf)
    });
    if hook("__oom_kill_process", kill) { ScopeHooks::LimitAndKill } else { ScopeHooks::Limit }
}

fn attach_limit(ebpf: &mut Ebpf, facts: &Facts, btf: Result<&Btf, &String>) -> Result<(), String> {
    facts.check("oom_kill_process", Mechanism::Fentry)?;
    let btf = btf.map_err(Clone::clone)?;
    // The end first: should the beginning fail, it only removes what is not there.
    let program = ebpf.program_mut("oom_scope_leave").ok_or_else(|| no_program("oom_scope_leave"))?;
    <&mut FExit>::try_from(program)
        .and_then(|p| p.load("oom_kill_process", btf).and_then(|()| p.attach()).map(drop))
        .map_err(|e| {
            log_verifier("oom_scope_leave", &e);
            explain(&e)
        })?;
    load_fentry(ebpf, "oom_scope_enter", "oom_kill_process", btf)
}

fn load_fentry(ebpf: &mut Ebpf, name: &str, function: &str, btf: &Btf) -> Result<(), String> {
    let program = ebpf.program_mut(name).ok_or_else(|| no_program(name))?;
    <&mut FEntry>::try_from(program)
        .and_then(|p| p.load(function, btf).and_then(|()| p.attach()).map(drop))
        .map_err(|e| {
            log_verifier(name, &e);
            explain(&e)
        })
}

fn no_program(name: &str) -> String {
    format!("the embedded eBPF object has no program {name}: build it anew with cargo xtask build-ebpf")
}

/// The verifier's last words, for the person who debugs a program; far too long for the ladder.
fn log_verifier(program: &str, error: &ProgramError) {
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

/// Names of the needed capabilities that this process does not hold.
pub fn missing_capabilities() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    missing_from(&status)
}

fn missing_from(status: &str) -> Vec<&'static str> {
    const SYS_ADMIN: u32 = 21;
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;
    let Some(effective) = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
    else {
        return Vec::new();
    };
    let has = |bit: u32| effective >> bit & 1 == 1 || effective >> SYS_ADMIN & 1 == 1;
    [("CAP_BPF", BPF), ("CAP_PERFMON", PERFMON)]
        .into_iter()
        .filter(|&(_, bit)| !has(bit))
        .map(|(name, _)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing_from("CapEff:\t0000000000000000\n"), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing_from("CapEff:\t0000008000000000\n"), ["CAP_PERFMON"]);
        assert!(missing_from("CapEff:\t0000000000200000\n").is_empty(), "CAP_SYS_ADMIN stands for both");
        assert!(missing_from("nothing").is_empty());
    }

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
