//! What the story makes of events: one incident or several, who is named, what is called unseen.

use super::*;
use crate::cgroup::identify;
use crate::event::{Kind, OomLimit, Outcome, Sent, Task, VictimMemory};
use crate::names::Severity;
use serde_json::Value;

const S: u64 = 1_000_000_000;
const MIB: u64 = 1 << 20;
const CID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn owner() -> Arc<Meta> {
    let path = format!("/docker/{CID}");
    Arc::new(Meta { id: CgroupId(7), parent_id: Some(CgroupId(1)), identity: identify(&path), path })
}

pub(super) fn names() -> NodeNames {
    NodeNames { cluster: None, node: "n1".into(), boot_id: "b".into() }
}

pub(super) fn event(ktime_ns: u64) -> Event {
    Event {
        event_id: format!("e{ktime_ns}"),
        kind: Kind::OomKill,
        severity: Severity::Critical,
        source: "tp_btf/mark_victim",
        ts_us: i64::try_from(ktime_ns / 1000).expect("small"),
        ktime_ns,
        cgroup_id: Some(CgroupId(7)),
        pid: Some(42),
        comm: Some("hog".into()),
        exit_code: None,
        signal: None,
        detail: Value::Null,
    }
}

pub(super) fn task(pid: u32, comm: &str) -> Task {
    Task { pid: Some(pid), comm: comm.into(), cgroup_id: Some(CgroupId(7)) }
}

pub(super) fn kill(victim: u32, trigger: u32) -> OomKill {
    OomKill {
        victim: task(victim, "hog"),
        uid: Some(0),
        oom_score_adj: Some(0),
        memory: VictimMemory {
            anon_bytes: Some(180 * MIB),
            file_bytes: Some(MIB),
            shmem_bytes: Some(0),
            pgtables_bytes: None,
        },
        trigger: task(trigger, "asker"),
        limit: OomLimit::Unknown,
        already_dying: None,
    }
}

pub(super) fn evidence() -> Evidence {
    Evidence {
        limit: Some(LimitHit {
            cgroup_id: Some(7),
            cgroup_path: Some(owner().path.clone()),
            max_bytes: Some(200 * MIB),
            usage_bytes: Some(200 * MIB),
            swap_bytes: Some(3 * MIB),
            source: "fentry".into(),
        }),
        oldest: Some(MemoryAt { ktime_ns: 40 * S, memory_current: 20 * MIB }),
        earlier: Some(MemoryAt { ktime_ns: 70 * S, memory_current: 21 * MIB }),
        last: Some(MemoryAt { ktime_ns: 100 * S - 12_000_000, memory_current: 199 * MIB }),
        victim_path: Some(owner().path.clone()),
        trigger_path: Some(owner().path.clone()),
        warnings: vec![("w1".into(), "forecast_oom", 93 * S)],
        limit_change: None,
        group_path: None,
    }
}

#[test]
fn a_kill_is_told_from_the_evidence() {
    let mut story = Story::new(names(), 10 * S);
    let i = story.oom_kill(&owner(), &event(100 * S), &kill(42, 43), evidence(), None);
    assert_eq!((i.revision, i.closed, i.id.as_str()), (1, false, "n1-b-100000000000"));
    assert_eq!((i.history_s, i.last_sample_before_ms), (Some(60.0), Some(12.0)));
    for part in [
        "\"hog\" (pid 42)",
        "0123456789ab",
        "180.0 MiB",
        "200.0 MiB",
        "\"asker\" (pid 43)",
        "21.0 MiB",
        "199.0 MiB",
        "forecast_oom 7.0 s before",
        "12 ms",
    ] {
        assert!(i.summary.contains(part), "{part:?} is not in: {}", i.summary);
    }
}

#[test]
fn what_was_not_observed_is_called_so() {
    let mut story = Story::new(names(), 10 * S);
    let i = story.oom_kill(&owner(), &event(100 * S), &kill(42, 42), Evidence::default(), None);
    assert!(i.limit.is_none() && i.history_s.is_none());
    assert!(i.summary.contains("was not observed"), "{}", i.summary);
}

#[test]
fn events_of_one_container_merge_and_the_window_closes_it() {
    let mut story = Story::new(names(), 10 * S);
    story.oom_kill(&owner(), &event(100 * S), &kill(42, 42), evidence(), None);
    story.burst_sample(CgroupId(7), 100 * S + 3_000_000);
    let again = story.oom_kill(&owner(), &event(105 * S), &kill(44, 44), evidence(), None);
    assert_eq!((again.revision, again.victims.len(), again.events.len()), (2, 2, 3));
    let exit =
        Exit { task: task(42, "hog"), ppid: None, inner_pid: Some(1), exit_code: None, signal: Some(9) };
    story.exit(CgroupId(7), &event(106 * S), &exit, true);
    assert_eq!(story.next_deadline(), Some(115 * S));
    assert!(story.close_due(114 * S).is_empty());
    let closed = story.close_due(115 * S);
    assert_eq!(closed.len(), 1);
    let c = &closed[0];
    assert!(c.closed && c.revision == 3 && c.first_burst_after_ms == Some(3.0));
    assert_eq!(c.exit, Some(ExitStatus { code: None, signal: Some(9) }));
    assert!(c.summary.contains("signal 9"), "{}", c.summary);
    assert!(!story.is_open(CgroupId(7)));
}

pub(super) fn blame(sent: Sent) -> Blame {
    let kill = Kill {
        target: task(42, "app"),
        target_inner_pid: Some(1),
        sender: task(99, "kill"),
        sender_uid: Some(0),
        sender_parent: task(98, "bash"),
        signal: 9,
        sent,
        outcome: Outcome::Delivered,
    };
    Blame {
        kill,
        event_id: "k1".into(),
        ktime_ns: 100 * S - 2_000_000,
        sender_path: Some("/user.slice".into()),
    }
}

fn ended(signal: Option<i32>, code: Option<i32>, blame: Option<&Blame>) -> Incident {
    let exit = Exit { task: task(42, "app"), ppid: None, inner_pid: Some(1), exit_code: code, signal };
    let mut story = Story::new(names(), 10 * S);
    story.ended(&owner(), &event(100 * S), &exit, blame, &evidence())
}

#[test]
fn a_kill_by_somebody_names_who() {
    let i = ended(Some(9), None, Some(&blame(Sent::ByTask)));
    assert_eq!((i.kind.as_str(), i.killer.as_ref().and_then(|k| k.pid)), ("killed", Some(99)));
    assert!(i.events.contains(&"k1".to_owned()));
    for part in ["\"kill\" (pid 99)", "uid 0", "/user.slice", "\"bash\" (pid 98)", "signal 9"] {
        assert!(i.summary.contains(part), "{part:?} is not in: {}", i.summary);
    }
    let i = ended(Some(9), None, Some(&blame(Sent::ByCgroupKill)));
    assert!(i.summary.contains("cgroup.kill"), "{}", i.summary);
}

#[test]
fn a_kill_that_nobody_was_seen_to_send_is_called_so() {
    let i = ended(Some(9), None, None);
    assert!(i.killer.is_none() && i.summary.contains("cause not observed"), "{}", i.summary);
    // a SIGTERM before it is no explanation
    let mut term = blame(Sent::ByTask);
    term.kill.signal = 15;
    assert!(ended(Some(9), None, Some(&term)).killer.is_none());
}

#[test]
fn a_crash_is_no_kill() {
    let i = ended(Some(11), None, None);
    assert_eq!(i.kind, "crash");
    assert!(i.summary.contains("crashed with signal 11") && i.limit.is_none(), "{}", i.summary);
    let i = ended(None, Some(3), None);
    assert!(i.summary.contains("exit code 3"), "{}", i.summary);
}

#[test]
fn of_several_victims_it_is_told_which_one_asked() {
    let mut story = Story::new(names(), 10 * S);
    let one = story.oom_kill(&owner(), &event(100 * S), &kill(42, 42), evidence(), None);
    assert!(one.summary.contains(" The victim itself asked for the memory"), "{}", one.summary);
    let two = story.oom_kill(&owner(), &event(100 * S + 5), &kill(43, 42), evidence(), None);
    let words = " One of them, \"asker\" (pid 42), asked for the memory that could not be had.";
    assert!(two.summary.contains(words), "{}", two.summary);
}

#[test]
fn what_goes_together_is_told_with_whose_file_asks_for_it() {
    for (path, whole) in [(&*owner().path, "the container"), ("/kubepods/pod", "/kubepods/pod")] {
        let mut story = Story::new(names(), 10 * S);
        let evidence = Evidence { group_path: Some(path.to_owned()), ..evidence() };
        let i = story.oom_kill(&owner(), &event(100 * S), &kill(42, 42), evidence, None);
        let said = format!(" The kernel kills all of {whole} together, since its memory.oom.group is set.");
        assert!(i.summary.contains(&said), "{}", i.summary);
    }
    let mut story = Story::new(names(), 10 * S);
    let i = story.oom_kill(&owner(), &event(100 * S), &kill(42, 42), evidence(), None);
    assert!(!i.summary.contains("oom.group"), "{}", i.summary);
}

#[test]
fn a_process_marked_twice_is_one_victim() {
    let mut story = Story::new(names(), 10 * S);
    story.oom_kill(&owner(), &event(100 * S), &kill(42, 42), evidence(), None);
    let again = story.oom_kill(&owner(), &event(100 * S + 5), &kill(42, 42), evidence(), None);
    assert_eq!((again.victims.len(), again.events.len()), (1, 3));
}

#[test]
fn an_endless_series_of_kills_is_cut_into_incidents() {
    let mut story = Story::new(names(), 10 * S);
    for t in 0..100u64 {
        story.oom_kill(
            &owner(),
            &event((100 + t) * S),
            &kill(1000 + u32::try_from(t).expect("small"), 1),
            evidence(),
            None,
        );
        assert!(story.next_deadline().is_some_and(|d| d <= 160 * S));
    }
    let closed = story.close_due(160 * S);
    assert_eq!(closed[0].victims.len(), MAX_VICTIMS);
    assert!(closed[0].summary.contains("100 processes") && closed[0].summary.contains("95 more"));
    assert!(closed[0].summary.len() < 1500, "{}", closed[0].summary);
}

#[test]
fn a_container_that_forks_without_end_does_not_swell_its_incident() {
    let mut story = Story::new(names(), 10 * S);
    story.oom_kill(&owner(), &event(100 * S), &kill(42, 42), evidence(), None);
    let exit = Exit { task: task(9, "sh"), ppid: None, inner_pid: None, exit_code: Some(0), signal: None };
    for n in 0..2 * MAX_EVENTS as u64 {
        story.exit(CgroupId(7), &event(101 * S + n), &exit, false);
    }
    let closed = &story.close_all(103 * S)[0];
    assert_eq!(closed.window.to_us - closed.ts_us, 3_000_000, "nothing is recorded after the end");
    assert_eq!(closed.events.len(), MAX_EVENTS);
    assert!(closed.summary.contains(" 258 more events of it are in the events table."), "{}", closed.summary);
}

#[test]
fn a_limit_inside_the_container_is_not_called_its_ancestors() {
    let mut story = Story::new(names(), 10 * S);
    let path = format!("{}/container", owner().path);
    let hit = LimitHit { cgroup_id: Some(8), cgroup_path: Some(path.clone()), ..LimitHit::default() };
    let within = Evidence { limit: Some(hit.clone()), ..evidence() };
    let i = story.oom_kill(&owner(), &event(100 * S), &kill(42, 42), within, None);
    assert!(i.summary.contains(&format!("that of {path} inside it")), "{}", i.summary);
    let above =
        Evidence { limit: Some(LimitHit { cgroup_path: Some("/docker".into()), ..hit }), ..evidence() };
    let i = Story::new(names(), S).oom_kill(&owner(), &event(100 * S), &kill(42, 42), above, None);
    assert!(i.summary.contains("that of its ancestor /docker,"), "{}", i.summary);
}

#[test]
fn only_a_container_has_an_init_and_memory_that_stays_stays_at_its_value() {
    let path = "/batch/job1".to_owned();
    let meta = Meta { id: CgroupId(7), parent_id: Some(CgroupId(1)), identity: identify(&path), path };
    let mut story = Story::new(names(), 10 * S);
    let e = evidence();
    let flat = Evidence { last: e.last.map(|r| MemoryAt { memory_current: 21 * MIB, ..r }), ..e };
    story.oom_kill(&Arc::new(meta), &event(100 * S), &kill(42, 42), flat, None);
    let summary = &story.close_due(110 * S)[0].summary;
    assert!(summary.contains("the cgroup's memory stayed at 21.0 MiB;"), "{summary}");
    assert!(!summary.contains("other's") && !summary.contains("init process"), "{summary}");
}

#[test]
fn events_that_come_out_of_order_do_not_shorten_the_window() {
    let mut story = Story::new(names(), S);
    story.oom_kill(&owner(), &event(100 * S), &kill(42, 42), evidence(), None);
    story.oom_kill(&owner(), &event(90 * S), &kill(43, 42), evidence(), None);
    assert_eq!(story.next_deadline(), Some(101 * S));
}

#[test]
fn a_limit_that_fell_is_told_with_who_wrote_it_where_that_is_seen() {
    let by = Trigger {
        pid: Some(77),
        comm: Some("sh".into()),
        cgroup_id: Some(3),
        cgroup_path: Some("/init.scope".into()),
    };
    let change = LimitChange {
        cgroup_id: Some(7),
        cgroup_path: Some(owner().path.clone()),
        before_bytes: Some(500 * MIB),
        after_bytes: Some(200 * MIB),
        not_before_us: 99_980_000,
        not_after_us: 100_000_000,
        by: Some(by),
    };
    let told = |change: &LimitChange| {
        let evidence = Evidence { limit_change: Some(change.clone()), ..evidence() };
        Story::new(names(), 10 * S).oom_kill(&owner(), &event(100 * S), &kill(42, 77), evidence, None)
    };
    let i = told(&change);
    assert_eq!(i.limit_change.as_ref(), Some(&change));
    let words =
        "from 500.0 MiB to 200.0 MiB at most 20 ms before the kill, by \"sh\" (pid 77) in /init.scope";
    assert!(i.summary.contains(words) && !i.summary.contains("asked for"), "{}", i.summary);
    let i = told(&LimitChange { by: None, before_bytes: None, not_after_us: 99_990_000, ..change });
    let words = "from no limit to 200.0 MiB between 20 ms and 10 ms before the kill; who wrote it: cause not observed";
    assert!(i.summary.contains(words) && i.summary.contains("asked for"), "{}", i.summary);
}

#[test]
fn without_a_limit_only_what_is_known_is_said() {
    let told = |source: &str| {
        let limit = Some(LimitHit { source: source.into(), ..LimitHit::default() });
        let evidence = Evidence { limit, ..evidence() };
        Story::new(names(), S).oom_kill(&owner(), &event(100 * S), &kill(42, 43), evidence, None).summary
    };
    for (source, words) in [
        ("global", "the node itself had run out"),
        ("global_cpuset", "cpuset allows"),
        ("global_mempolicy", "memory policy names"),
        ("global_sysrq", "Who asked for it: cause not observed"),
        ("global_unknown", "which of these was not observed"),
    ] {
        let summary = told(source);
        assert!(summary.contains(words), "{source}: {summary}");
        assert_eq!(summary.contains("\"asker\""), source != "global_sysrq", "{source}: {summary}");
    }
}

#[test]
fn a_successor_that_comes_after_the_incident_is_closed_makes_a_revision_of_it() {
    let mut story = Story::new(names(), 10 * S);
    let id = |n: u64| format!("{n:064x}");
    let meta = |n: u64| {
        let path = format!("/kubepods/pod0f9c1c2e-1111-2222-3333-0123456789ab/{}", id(n));
        Arc::new(Meta { id: CgroupId(n), parent_id: None, identity: identify(&path), path })
    };
    story.oom_kill(&meta(7), &event(100 * S), &kill(42, 42), evidence(), None);
    story.container_ended(&meta(7), 100 * S);
    story.gone(CgroupId(7), 101 * S);
    let closed = story.close_due(110 * S).pop().expect("closed");
    assert!(closed.restart.is_none());
    let next = Arc::new(Meta { ..(*meta(9)).clone() });
    let again = story.container_started(&next, 140 * S).expect("a revision");
    assert_eq!(
        (again.id.as_str(), again.revision, again.closed),
        (closed.id.as_str(), closed.revision + 1, true)
    );
    let restart = again.restart.expect("linked");
    assert_eq!((restart.container_id, restart.cgroup_id), (Some(id(9)), 9));
    assert_eq!(restart.started_us - again.ts_us, 40_000_000);
    assert!(again.summary.contains("took its place 40.0 s after the kill"), "{}", again.summary);
    assert!(story.container_started(&meta(11), 141 * S).is_none(), "it has one already");
    assert!(story.close_due(1000 * S).is_empty() && story.waiting.is_empty(), "nobody waits for ever");
}
