//! From the bytes of the ring to [`KernelEvent`]s.
//!
//! Pure. Bytes come from the kernel programs of the same build, yet any bytes at all must decode to an event or to an
//! [`Undecodable`], never to a panic.

use crate::{
    event::{
        Attribution, Exec, Exit, GlobalOom, KernelEvent, Kill, LimitSnapshot, OomKill, OomLimit, Outcome,
        Reclaim, Sent, Task, VictimMemory, What,
    },
    names::CgroupId,
};
use agent_ebpf::{
    ABSENT, CgroupRecord, ExecRecord, ExitRecord, FlagRecord, Header, KillRecord, OomRecord, ReclaimRecord,
    TaskRecord, UNKNOWN, kind, limit_kind, mechanism, siginfo,
};
use zerocopy::FromBytes;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Undecodable {
    #[error("a record of {0} bytes is shorter than its kind")]
    Short(usize),
    #[error("unknown record kind {0}")]
    Kind(u32),
    #[error("unknown mechanism {0}")]
    Mechanism(u32),
}

/// Which of the hooks around a kill are attached: what the absence of their note means depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeHooks {
    None,
    /// `oom_kill_process`: the limit is known.
    Limit,
    /// And `__oom_kill_process`: kills are told from marks of dying tasks.
    LimitAndKill,
}

/// A reclaim comes with its totals at zero: they are in the kernel's table, which the caller reads.
pub fn decode(bytes: &[u8], hooks: ScopeHooks) -> Result<KernelEvent, Undecodable> {
    let header = record::<Header>(bytes)?;
    let source = source(header.kind, header.mechanism)?;
    let what = match header.kind {
        kind::OOM_KILL => What::OomKill(Box::new(oom_kill(&record(bytes)?, hooks))),
        kind::CGROUP_START => {
            let r = record::<CgroupRecord>(bytes)?;
            What::CgroupStart {
                cgroup_id: CgroupId(r.cgroup_id),
                parent_id: cgroup(r.parent_id),
                path: path(&r),
            }
        }
        kind::CGROUP_END => {
            let r = record::<CgroupRecord>(bytes)?;
            What::CgroupEnd {
                cgroup_id: CgroupId(r.cgroup_id),
                parent_id: cgroup(r.parent_id),
                path: path(&r),
            }
        }
        kind::EXIT => What::Exit(exit(&record(bytes)?)),
        kind::KILL => What::Kill(Box::new(kill(&record(bytes)?))),
        kind::EXEC => What::Exec(exec(&record(bytes)?)),
        kind::MEMORY_RECLAIM => {
            let r = record::<ReclaimRecord>(bytes)?;
            let attribution = if r.named == 0 { Attribution::Guess } else { Attribution::Memcg };
            let cgroup_id = CgroupId(r.cgroup_id);
            What::Reclaim(Reclaim { cgroup_id, attribution, count: 0, total_ns: 0, longest_ns: 0 })
        }
        kind::POPULATED => {
            let r = record::<FlagRecord>(bytes)?;
            What::Populated { cgroup_id: CgroupId(r.cgroup_id), populated: r.value != 0 }
        }
        kind::FROZEN => {
            let r = record::<FlagRecord>(bytes)?;
            What::Frozen { cgroup_id: CgroupId(r.cgroup_id), frozen: r.value != 0 }
        }
        kind => return Err(Undecodable::Kind(kind)),
    };
    Ok(KernelEvent { ktime_ns: header.ktime_ns, source, what })
}

/// The ring rounds sizes up to 8 bytes, so a record may be followed by a few more.
fn record<T: FromBytes>(bytes: &[u8]) -> Result<T, Undecodable> {
    T::read_from_prefix(bytes).map(|(record, _)| record).map_err(|_| Undecodable::Short(bytes.len()))
}

/// The names of a tracepoint by mechanism, in the order of their numbers.
macro_rules! names {
    ($tracepoint:literal) => {
        [
            concat!("tp_btf/", $tracepoint),
            concat!("raw_tp/", $tracepoint),
            concat!("tracepoint/", $tracepoint),
        ]
    };
}

fn source(kind: u32, how: u32) -> Result<&'static str, Undecodable> {
    let names = match kind {
        kind::OOM_KILL => names!("mark_victim"),
        kind::CGROUP_START => names!("cgroup_mkdir"),
        kind::CGROUP_END => names!("cgroup_rmdir"),
        kind::EXIT => names!("sched_process_exit"),
        kind::KILL => names!("signal_generate"),
        kind::EXEC => names!("sched_process_exec"),
        kind::MEMORY_RECLAIM if how == mechanism::FENTRY => return Ok("fentry/try_to_free_mem_cgroup_pages"),
        kind::MEMORY_RECLAIM => names!("mm_vmscan_memcg_reclaim_begin"),
        kind::POPULATED => names!("cgroup_notify_populated"),
        kind::FROZEN => names!("cgroup_notify_frozen"),
        kind => return Err(Undecodable::Kind(kind)),
    };
    match how {
        mechanism::TP_BTF => Ok(names[0]),
        mechanism::RAW_TP => Ok(names[1]),
        mechanism::TRACEPOINT => Ok(names[2]),
        how => Err(Undecodable::Mechanism(how)),
    }
}

/// Whose doing a signal was. The kernel marks what it sends for itself; what it sends for the current task has no siginfo.
/// `si_code`s are those of include/uapi/asm-generic/siginfo.h.
fn sent(r: &KillRecord) -> Sent {
    const SI_USER: i32 = 0;
    const SI_QUEUE: i32 = -1;
    const SI_TKILL: i32 = -6;
    const SIGKILL: i32 = 9;
    let for_itself = r.info == siginfo::PRIV || (r.info == siginfo::UNKNOWN && r.si_code > 0);
    let without_info = r.info == siginfo::NONE || (r.info == siginfo::UNKNOWN && r.si_code == SI_USER);
    if for_itself {
        return if r.oom != 0 { Sent::ByOomKiller } else { Sent::ByKernel };
    }
    if without_info {
        return match (r.group != 0, r.signal) {
            // `__cgroup_kill`: send_sig(SIGKILL, task, 0), to a thread; kill(2) is always to a process.
            (false, SIGKILL) => Sent::ByCgroupKill,
            // `reparent_leader`, by a parent in `do_exit`
            (true, _) if r.sender_exiting != 0 => Sent::ByParentDeath,
            _ => Sent::ByTask,
        };
    }
    match r.si_code {
        SI_USER | SI_QUEUE | SI_TKILL => Sent::ByTask,
        1.. => Sent::ByKernel,
        _ => Sent::ByTimerOrIo,
    }
}

fn kill(r: &KillRecord) -> Kill {
    Kill {
        target: task(&r.target),
        target_inner_pid: pid(r.target_inner_pid),
        sender: task(&r.sender),
        sender_uid: Some(r.sender_uid).filter(|&uid| uid != ABSENT),
        sender_parent: task(&r.parent),
        signal: r.signal,
        sent: sent(r),
        outcome: match r.result {
            1 if r.target_dying != 0 => Outcome::AlreadyDying,
            1 => Outcome::Ignored,
            2 => Outcome::AlreadyPending,
            // queued, if need be without its siginfo
            _ => Outcome::Delivered,
        },
    }
}

fn exec(r: &ExecRecord) -> Exec {
    Exec {
        task: task(&r.task),
        ppid: pid(r.ppid),
        inner_pid: pid(r.inner_pid),
        filename: counted(&r.filename, r.filename_len),
        first_process: r.first_process != 0,
    }
}

fn oom_kill(r: &OomRecord, hooks: ScopeHooks) -> OomKill {
    OomKill {
        victim: task(&r.victim),
        uid: Some(r.uid).filter(|&uid| uid != ABSENT),
        oom_score_adj: Some(r.oom_score_adj).filter(|&adj| adj != i32::MIN),
        memory: VictimMemory {
            anon_bytes: bytes(r.anon_bytes),
            file_bytes: bytes(r.file_bytes),
            shmem_bytes: bytes(r.shmem_bytes),
            pgtables_bytes: bytes(r.pgtables_bytes),
        },
        trigger: task(&r.trigger),
        limit: match r.limit_kind {
            limit_kind::MEMCG => OomLimit::Memcg(LimitSnapshot {
                cgroup_id: CgroupId(r.limit_cgroup_id),
                usage_bytes: bytes(r.limit_usage_bytes),
                swap_bytes: bytes(r.limit_swap_bytes),
                max_bytes: bytes(r.limit_max_bytes),
            }),
            limit_kind::GLOBAL => OomLimit::Global(GlobalOom::Unknown),
            limit_kind::NODE => OomLimit::Global(GlobalOom::Node),
            limit_kind::CPUSET => OomLimit::Global(GlobalOom::Cpuset),
            limit_kind::MEMORY_POLICY => OomLimit::Global(GlobalOom::MemoryPolicy),
            limit_kind::SYSRQ => OomLimit::Global(GlobalOom::SysRq),
            _ => OomLimit::Unknown,
        },
        already_dying: (hooks == ScopeHooks::LimitAndKill).then_some(r.killing == 0),
    }
}

fn exit(r: &ExitRecord) -> Exit {
    let status = (r.has_status != 0).then_some(r.wait_status);
    // As WIFEXITED, WEXITSTATUS and WTERMSIG of wait(2) take it apart.
    let signal = |s: u32| Some(s & 0x7f).filter(|&signal| signal != 0);
    let code = |s: u32| signal(s).is_none().then_some((s >> 8) & 0xff);
    Exit {
        task: task(&r.task),
        ppid: pid(r.ppid),
        inner_pid: pid(r.inner_pid),
        exit_code: status.and_then(code).map(u32::cast_signed),
        signal: status.and_then(signal).map(u32::cast_signed),
    }
}

fn task(r: &TaskRecord) -> Task {
    Task { pid: pid(r.pid), comm: text(&r.comm), cgroup_id: cgroup(r.cgroup_id) }
}

fn pid(pid: u32) -> Option<u32> {
    Some(pid).filter(|&pid| pid != 0)
}

fn cgroup(id: u64) -> Option<CgroupId> {
    Some(id).filter(|&id| id != 0).map(CgroupId)
}

fn bytes(value: u64) -> Option<u64> {
    Some(value).filter(|&value| value != UNKNOWN)
}

fn path(r: &CgroupRecord) -> String {
    counted(&r.path, r.path_len)
}

/// The bytes that count; what follows is left over from older records.
fn counted(bytes: &[u8], len: u32) -> String {
    let len = usize::try_from(len).map_or(bytes.len(), |len| len.min(bytes.len()));
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

/// Up to the first NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn exit_record(wait_status: u32) -> ExitRecord {
        let mut comm = [0; 16];
        comm[..2].copy_from_slice(b"sh");
        ExitRecord {
            header: Header { ktime_ns: 7, kind: kind::EXIT, mechanism: mechanism::TP_BTF },
            task: TaskRecord { cgroup_id: 42, pid: 10, _pad: 0, comm },
            ppid: 1,
            inner_pid: 3,
            wait_status,
            has_status: 1,
        }
    }

    fn oom_record() -> OomRecord {
        let mut r = OomRecord::read_from_bytes(&[0; size_of::<OomRecord>()]).unwrap();
        r.header = Header { ktime_ns: 1, kind: kind::OOM_KILL, mechanism: mechanism::RAW_TP };
        r
    }

    fn decoded_oom(r: &OomRecord, hooks: ScopeHooks) -> OomKill {
        let event = decode(r.as_bytes(), hooks).unwrap();
        assert_eq!(event.source, "raw_tp/mark_victim");
        match event.what {
            What::OomKill(kill) => *kill,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn exit_status_is_taken_apart_as_wait_does() {
        for (status, code, signal) in
            [(3 << 8, Some(3), None), (9, None, Some(9)), (0x8b, None, Some(11)), (0, Some(0), None)]
        {
            let event = decode(exit_record(status).as_bytes(), ScopeHooks::None).unwrap();
            let What::Exit(exit) = event.what else { panic!("{event:?}") };
            assert_eq!((exit.exit_code, exit.signal), (code, signal), "status {status:#x}");
            assert_eq!((exit.task.pid, exit.task.comm.as_str(), exit.ppid), (Some(10), "sh", Some(1)));
        }
    }

    #[test]
    fn an_unread_status_is_not_a_clean_exit() {
        let record = ExitRecord { has_status: 0, ..exit_record(0) };
        let What::Exit(exit) = decode(record.as_bytes(), ScopeHooks::None).unwrap().what else { panic!() };
        assert_eq!((exit.exit_code, exit.signal), (None, None));
    }

    #[test]
    fn no_limit_and_no_value_are_none() {
        let mut r = oom_record();
        r.limit_kind = limit_kind::MEMCG;
        r.limit_cgroup_id = 9;
        r.limit_usage_bytes = 4096;
        r.limit_max_bytes = UNKNOWN;
        r.anon_bytes = UNKNOWN;
        r.uid = ABSENT;
        r.oom_score_adj = i32::MIN;
        let kill = decoded_oom(&r, ScopeHooks::Limit);
        let OomLimit::Memcg(limit) = kill.limit else { panic!("{:?}", kill.limit) };
        assert_eq!((limit.cgroup_id, limit.usage_bytes, limit.max_bytes), (CgroupId(9), Some(4096), None));
        assert_eq!(
            (kill.memory.anon_bytes, kill.memory.rss_bytes(), kill.uid, kill.oom_score_adj),
            (None, None, None, None)
        );
        assert_eq!((kill.victim.pid, kill.victim.cgroup_id), (None, None));
    }

    #[test]
    fn a_dying_task_is_told_from_a_kill_only_with_the_hook() {
        let mut r = oom_record();
        assert_eq!(decoded_oom(&r, ScopeHooks::Limit).already_dying, None);
        assert_eq!(decoded_oom(&r, ScopeHooks::LimitAndKill).already_dying, Some(true));
        r.killing = 1;
        assert_eq!(decoded_oom(&r, ScopeHooks::LimitAndKill).already_dying, Some(false));
    }

    fn kill_record() -> KillRecord {
        let mut r = KillRecord::read_from_bytes(&[0; size_of::<KillRecord>()]).unwrap();
        r.header = Header { ktime_ns: 1, kind: kind::KILL, mechanism: mechanism::TP_BTF };
        KillRecord { signal: 9, info: siginfo::GIVEN, group: 1, ..r }
    }

    #[test]
    fn a_signal_is_put_down_to_whose_doing_it_was() {
        let given = kill_record();
        let none = KillRecord { info: siginfo::NONE, ..given };
        let own = KillRecord { info: siginfo::PRIV, ..given };
        let unknown = KillRecord { info: siginfo::UNKNOWN, ..given };
        for (r, expected) in [
            (given, Sent::ByTask),
            (KillRecord { si_code: -6, group: 0, ..given }, Sent::ByTask),
            (KillRecord { si_code: -1, ..given }, Sent::ByTask),
            (KillRecord { si_code: -2, ..given }, Sent::ByTimerOrIo),
            (KillRecord { si_code: 0x80, ..given }, Sent::ByKernel),
            (KillRecord { group: 0, ..none }, Sent::ByCgroupKill),
            (KillRecord { sender_exiting: 1, ..none }, Sent::ByParentDeath),
            (KillRecord { signal: 15, sender_exiting: 1, ..none }, Sent::ByParentDeath),
            (KillRecord { signal: 15, group: 0, ..none }, Sent::ByTask),
            (own, Sent::ByKernel),
            (KillRecord { oom: 1, ..own }, Sent::ByOomKiller),
            // a task that is within the OOM killer may still be what sends a signal of its own
            (KillRecord { oom: 1, ..given }, Sent::ByTask),
            (unknown, Sent::ByTask),
            (KillRecord { si_code: 0x80, ..unknown }, Sent::ByKernel),
            (KillRecord { group: 0, ..unknown }, Sent::ByCgroupKill),
            (KillRecord { si_code: -6, group: 0, ..unknown }, Sent::ByTask),
        ] {
            assert_eq!(sent(&r), expected, "{r:?}");
        }
        assert!(Sent::ByOomKiller.by_kernel() && !Sent::ByCgroupKill.by_kernel());
    }

    #[test]
    fn what_became_of_a_signal_is_told() {
        for (result, expected) in [
            (0, Outcome::Delivered),
            (1, Outcome::Ignored),
            (2, Outcome::AlreadyPending),
            (4, Outcome::Delivered),
        ] {
            let event = decode(KillRecord { result, ..kill_record() }.as_bytes(), ScopeHooks::None).unwrap();
            assert_eq!(event.source, "tp_btf/signal_generate");
            let What::Kill(told) = event.what else { panic!("{event:?}") };
            assert_eq!((told.outcome, told.signal), (expected, 9));
        }
        // The fatal one finds the process dying too: it has just made it so.
        let dying = KillRecord { target_dying: 1, ..kill_record() };
        assert_eq!(kill(&dying).outcome, Outcome::Delivered);
        assert_eq!(kill(&KillRecord { result: 1, ..dying }).outcome, Outcome::AlreadyDying);
    }

    #[test]
    fn a_reclaim_by_the_function_names_its_hook() {
        let header = Header { ktime_ns: 3, kind: kind::MEMORY_RECLAIM, mechanism: mechanism::FENTRY };
        let record = ReclaimRecord { header, cgroup_id: 7, named: 1, _pad: 0 };
        let event = decode(record.as_bytes(), ScopeHooks::None).unwrap();
        assert_eq!(event.source, "fentry/try_to_free_mem_cgroup_pages");
        let What::Reclaim(reclaim) = event.what else { panic!("{event:?}") };
        assert_eq!((reclaim.cgroup_id, reclaim.attribution), (CgroupId(7), Attribution::Memcg));
        let header = Header { mechanism: mechanism::FENTRY, kind: kind::EXIT, ..header };
        assert_eq!(
            decode(header.as_bytes(), ScopeHooks::None),
            Err(Undecodable::Mechanism(mechanism::FENTRY))
        );
    }

    #[test]
    fn unknown_kinds_and_short_records_are_errors() {
        let header = Header { ktime_ns: 1, kind: 77, mechanism: 1 };
        assert_eq!(decode(header.as_bytes(), ScopeHooks::None), Err(Undecodable::Kind(77)));
        let header = Header { ktime_ns: 1, kind: kind::EXIT, mechanism: 1 };
        assert_eq!(decode(header.as_bytes(), ScopeHooks::None), Err(Undecodable::Short(16)));
        assert_eq!(decode(&[], ScopeHooks::None), Err(Undecodable::Short(0)));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(
            kind in 0u32..11, mechanism in 0u32..6,
            rest in proptest::collection::vec(any::<u8>(), 0..700), cut in 0usize..20,
        ) {
            let header = Header { ktime_ns: 1, kind, mechanism };
            let bytes = [header.as_bytes(), &rest].concat();
            let bytes = &bytes[..bytes.len().saturating_sub(cut)];
            for hooks in [ScopeHooks::None, ScopeHooks::LimitAndKill] {
                let _ = decode(bytes, hooks);
            }
        }
    }
}
