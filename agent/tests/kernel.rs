//! The probes against a real kernel: each attaches, fires, and tells the truth. Run as root, with --test-threads=1, on a
//! machine whose cgroup v2 has the memory controller (the test VM); elsewhere each test says that it was skipped and why.
//!
//! Truth comes from outside the probes: tracefs, memory.events.local, inode numbers, wait(2).
#![expect(clippy::unwrap_used, reason = "a test whose stage can't be set has failed")]

#[path = "kernel/stage.rs"]
mod stage;

use fgm::{
    event::{OomKill, OomLimit, What},
    names::CgroupId,
    probes::{self, Level, Mechanism, ProbeConfig},
};
use stage::{Cgroup, Child, MIB, Truth, guard, start, wait_for};
use std::{fs, process::Command, thread, time::Duration};

/// Not a test: the body of the processes that the tests start from this very binary.
#[test]
fn child_role() {
    if let Ok(role) = std::env::var(stage::ROLE) {
        stage::play(&role);
    }
}

#[test]
fn every_probe_attaches() {
    if !guard("every_probe_attaches", false) {
        return;
    }
    let (probes, ladder) = probes::start(&ProbeConfig::default());
    println!("{}", serde_json::to_string_pretty(&ladder).unwrap());
    assert!(probes.is_some(), "{:?}", ladder.reason);
    let tracepoints: Vec<_> = ladder.hooks.iter().filter(|h| !is_function(h)).collect();
    let events: Vec<_> = tracepoints.iter().map(|h| h.event).filter(|&e| e != "memory_reclaim").collect();
    assert_eq!(
        events,
        ["oom_kill", "cgroup_start", "cgroup_end", "exit", "kill", "exec", "populated", "frozen"]
    );
    assert!(tracepoints.iter().all(|h| h.mechanism == Some("tp_btf")), "{tracepoints:?}");
    // Where fentry is forbidden the level says so and the reason is there; elsewhere nothing is missing.
    match ladder.level {
        Level::FullBpf => assert!(ladder.hooks.iter().all(|h| h.error.is_none()), "{:?}", ladder.hooks),
        Level::NoFentry => assert!(ladder.hooks.iter().any(|h| h.error.is_some())),
        Level::NoBpf => panic!("{:?}", ladder.reason),
    }
}

/// Hooked by fentry, where that is allowed.
fn is_function(hook: &probes::Hook) -> bool {
    ["oom_kill_process", "__oom_kill_process", "try_to_free_mem_cgroup_pages"].contains(&hook.hook)
}

#[test]
fn each_mechanism_attaches_alone() {
    if !guard("each_mechanism_attaches_alone", false) {
        return;
    }
    for (mut without, left) in mechanisms() {
        // So that reclaim, too, goes by its tracepoints.
        without.push(Mechanism::Fentry);
        let (_probes, ladder) = probes::start(&ProbeConfig { without, ..ProbeConfig::default() });
        for hook in ladder.hooks.iter().filter(|h| !is_function(h)) {
            if left == "tracepoint" && !stage::has_tracefs() {
                assert!(hook.error.as_ref().is_some_and(|e| e.contains("mount -t tracefs")), "{hook:?}");
            } else {
                assert_eq!(hook.mechanism, Some(left), "{hook:?}");
            }
        }
    }
}

/// Sets of mechanisms to leave out, with the one that is then in force.
fn mechanisms() -> [(Vec<Mechanism>, &'static str); 3] {
    use Mechanism::{RawTp, TpBtf};
    [(vec![], "tp_btf"), (vec![TpBtf], "raw_tp"), (vec![TpBtf, RawTp], "tracepoint")]
}

fn kill_in(events: &[fgm::event::KernelEvent]) -> Option<(&fgm::event::KernelEvent, &OomKill)> {
    events.iter().find_map(|e| match &e.what {
        What::OomKill(kill) => Some((e, &**kill)),
        _ => None,
    })
}

#[test]
fn a_kill_names_victim_trigger_and_limit() {
    if !guard("a_kill_names_victim_trigger_and_limit", true) {
        return;
    }
    for (without, how) in mechanisms() {
        let mut probes = start(&ProbeConfig { without, ..ProbeConfig::default() });
        let truth = Truth::begin();
        let cgroup = Cgroup::new("oom", Some(64 * MIB));
        let mut child = Child::spawn("hog", &cgroup);
        let status = child.wait();
        assert_eq!(status.signal, Some(9), "the hog was to be killed");

        let events = wait_for(&mut probes, |events| {
            kill_in(events).is_some() && !exits_of(events, child.pid).is_empty()
        });
        let (event, kill) = kill_in(&events).expect("an oom_kill event");
        println!("{how}: {event:?}");
        assert_eq!(event.source, format!("{how}/mark_victim"));
        assert_eq!(kill.victim.pid, Some(child.pid));
        assert_eq!(kill.trigger.pid, Some(child.pid), "it was alone, so it triggered its own end");
        assert_eq!(kill.trigger.cgroup_id, Some(cgroup.id()));
        assert_eq!(kill.uid, Some(0));
        assert_eq!(kill.oom_score_adj, Some(child.oom_score_adj));
        if how == "tracepoint" {
            assert_eq!(kill.victim.cgroup_id, None, "the tracepoint does not have it");
        } else {
            assert_eq!(kill.victim.cgroup_id, Some(cgroup.id()));
        }
        truth.agrees_with(event, kill);
        cgroup.check_limit(kill, 64 * MIB);
        assert_eq!(cgroup.events_local("oom_kill"), 1);

        let exits = exits_of(&events, child.pid);
        assert_eq!(exits.len(), 1, "{exits:?}");
        let exit = exits[0];
        assert_eq!((exit.signal, exit.exit_code), (Some(9), None));
        assert_eq!(exit.task.cgroup_id, Some(cgroup.id()));
    }
}

#[test]
fn the_victim_is_named_not_the_trigger() {
    if !guard("the_victim_is_named_not_the_trigger", true) {
        return;
    }
    let mut probes = start(&ProbeConfig::default());
    let truth = Truth::begin();
    let pod = Cgroup::new("pod", Some(64 * MIB));
    let (a, b) = (pod.child("sitting"), pod.child("asking"));
    // 40 MiB, first in line for the killer; then a second process asks for 40 of the pod's 64.
    let mut sitter = Child::spawn("sitter", &a);
    sitter.wait_ready();
    let mut asker = Child::spawn("asker", &b);
    // The asker may follow, when it asks again before the first one's memory is back (seen on 6.18 under emulation).
    println!("asker: {:?}", asker.wait());
    assert_eq!(sitter.wait().signal, Some(9));

    let events = wait_for(&mut probes, |events| kill_in(events).is_some());
    let (event, kill) = kill_in(&events).expect("an oom_kill event");
    println!("{event:?}");
    assert_eq!((kill.victim.pid, kill.victim.cgroup_id), (Some(sitter.pid), Some(a.id())));
    assert_eq!((kill.trigger.pid, kill.trigger.cgroup_id), (Some(asker.pid), Some(b.id())));
    assert_eq!(kill.oom_score_adj, Some(1000));
    truth.agrees_with(event, kill);
    // The limit is the pod's, though neither process is in the pod's own cgroup.
    pod.check_limit(kill, 64 * MIB);
    // `oom` counts each time that reclaim gave up, also while the victim was still dying.
    assert!(pod.events_local("oom") >= 1);
    assert_eq!(a.events_local("oom_kill"), 1);
}

#[test]
fn a_group_kill_names_each_victim() {
    if !guard("a_group_kill_names_each_victim", true) {
        return;
    }
    let mut probes = start(&ProbeConfig::default());
    let cgroup = Cgroup::new("group", Some(96 * MIB));
    fs::write(cgroup.path.join("memory.oom.group"), "1").unwrap();
    let mut sitter = Child::spawn("sitter", &cgroup);
    sitter.wait_ready();
    let mut hog = Child::spawn("hog", &cgroup);
    assert_eq!((hog.wait().signal, sitter.wait().signal), (Some(9), Some(9)));
    let victims = |events: &[fgm::event::KernelEvent]| {
        let mut pids: Vec<_> = events
            .iter()
            .filter_map(|e| match &e.what {
                What::OomKill(kill) => {
                    assert_ne!(kill.already_dying, Some(true), "{kill:?}");
                    assert!(!matches!(kill.limit, OomLimit::Global(_)), "{kill:?}");
                    kill.victim.pid
                }
                _ => None,
            })
            .collect();
        pids.sort_unstable();
        // A process may be marked again through another thread, when its leader has let go of the memory already.
        pids.dedup();
        pids
    };
    let events = wait_for(&mut probes, |events| victims(events).len() >= 2);
    let mut expected = vec![sitter.pid, hog.pid];
    expected.sort_unstable();
    assert_eq!(victims(&events), expected);
    assert_eq!(cgroup.events_local("oom_group_kill"), 1);
}

#[test]
fn cgroups_are_told_with_their_inode() {
    if !guard("cgroups_are_told_with_their_inode", false) {
        return;
    }
    for (without, how) in mechanisms() {
        if how == "tracepoint" && !stage::has_tracefs() {
            continue;
        }
        let mut probes = start(&ProbeConfig { without, ..ProbeConfig::default() });
        let parent = Cgroup::new("parent", None);
        let child = parent.child("child");
        let (id, parent_id) = (child.id(), parent.id());
        let suffix = format!("{}/child", parent.path.file_name().unwrap().to_string_lossy());
        drop(child);
        let events = wait_for(&mut probes, |events| {
            events.iter().any(|e| matches!(&e.what, What::CgroupEnd { cgroup_id, .. } if *cgroup_id == id))
        });
        let started = events.iter().find_map(|e| match &e.what {
            What::CgroupStart { cgroup_id, parent_id, path } if *cgroup_id == id => {
                Some((e.source, *parent_id, path))
            }
            _ => None,
        });
        let (source, told_parent, path) = started.expect("cgroup_start of the child");
        assert_eq!(source, format!("{how}/cgroup_mkdir"));
        assert_eq!(told_parent, if how == "tracepoint" { None } else { Some(parent_id) });
        assert!(path.ends_with(&suffix), "{path} should end with {suffix}");
        let ended: Vec<_> = events
            .iter()
            .filter_map(|e| match &e.what {
                What::CgroupEnd { cgroup_id, path, .. } if *cgroup_id == id => Some((e.source, path)),
                _ => None,
            })
            .collect();
        assert_eq!(ended.len(), 1, "{ended:?}");
        assert_eq!(ended[0].0, format!("{how}/cgroup_rmdir"));
        assert!(ended[0].1.ends_with(&suffix), "{ended:?}");
    }
}

#[test]
fn cgroups_of_v1_hierarchies_are_not_told() {
    if !guard("cgroups_of_v1_hierarchies_are_not_told", false) {
        return;
    }
    let Some(v1) = stage::v1_hierarchy() else {
        println!("SKIPPED cgroups_of_v1_hierarchies_are_not_told: no cgroup v1 hierarchy here");
        return;
    };
    let mut probes = start(&ProbeConfig::default());
    let name = format!("fgm-v1-{}", std::process::id());
    let dir = v1.join(&name);
    fs::create_dir(&dir).unwrap();
    fs::remove_dir(&dir).unwrap();
    let marker = Cgroup::new("marker", None);
    let id = marker.id();
    let events = wait_for(&mut probes, |events| started(events, id));
    assert!(started(&events, id), "the v2 cgroup made after it is told");
    for event in &events {
        if let What::CgroupStart { path, .. } | What::CgroupEnd { path, .. } = &event.what {
            assert!(!path.contains(&name), "{event:?}");
        }
    }
}

fn started(events: &[fgm::event::KernelEvent], id: CgroupId) -> bool {
    events.iter().any(|e| matches!(&e.what, What::CgroupStart { cgroup_id, .. } if *cgroup_id == id))
}

#[test]
fn exits_carry_code_and_signal_once_per_process() {
    if !guard("exits_carry_code_and_signal_once_per_process", false) {
        return;
    }
    for (without, how) in mechanisms() {
        if how == "tracepoint" && !stage::has_tracefs() {
            continue;
        }
        let mut probes = start(&ProbeConfig { without, ..ProbeConfig::default() });
        let cgroup = Cgroup::new("exit", None);
        // "threads" ends with eight threads at once, which is where a process could be told twice.
        for (role, code, signal) in
            [("exit 3", Some(3), None), ("abort", None, Some(6)), ("threads", Some(7), None)]
        {
            let mut child = Child::spawn(role, &cgroup);
            let status = child.wait();
            assert_eq!((status.code, status.signal), (code, signal), "{role}");
            let mut events = wait_for(&mut probes, |events| !exits_of(events, child.pid).is_empty());
            thread::sleep(Duration::from_millis(50));
            probes.drain(|event| events.push(event));
            let exits = exits_of(&events, child.pid);
            assert_eq!(exits.len(), 1, "{role}: {exits:?}");
            let exit = exits[0];
            assert_eq!((exit.exit_code, exit.signal), (code, signal), "{role}: {exit:?}");
            assert_eq!(exit.task.cgroup_id, Some(cgroup.id()));
            assert_eq!(exit.ppid, Some(std::process::id()));
            assert!(exit.inner_pid.is_some());
        }
    }
}

fn exits_of(events: &[fgm::event::KernelEvent], pid: u32) -> Vec<&fgm::event::Exit> {
    events
        .iter()
        .filter_map(|e| match &e.what {
            What::Exit(exit) if exit.task.pid == Some(pid) => Some(exit),
            _ => None,
        })
        .collect()
}

#[test]
fn a_container_init_is_pid_one_inside() {
    if !guard("a_container_init_is_pid_one_inside", false) {
        return;
    }
    let mut probes = start(&ProbeConfig::default());
    let cgroup = Cgroup::new("init", None);
    let procs = cgroup.path.join("cgroup.procs");
    let script =
        format!("echo $$ > {}; exec unshare --pid --fork --kill-child sh -c 'exit 5'", procs.display());
    let status = Command::new("sh").args(["-c", &script]).status().unwrap();
    assert_eq!(status.code(), Some(5), "unshare gives its child's code");
    let inits = |events: &[fgm::event::KernelEvent]| -> Vec<Option<i32>> {
        events
            .iter()
            .filter_map(|e| match &e.what {
                What::Exit(x) if x.inner_pid == Some(1) && x.task.cgroup_id == Some(cgroup.id()) => {
                    Some(x.exit_code)
                }
                _ => None,
            })
            .collect()
    };
    let events = wait_for(&mut probes, |events| !inits(events).is_empty());
    assert_eq!(inits(&events), [Some(5)]);
}

#[test]
fn what_a_full_ring_refuses_is_counted() {
    if !guard("what_a_full_ring_refuses_is_counted", false) {
        return;
    }
    let mut probes = start(&ProbeConfig { ring_bytes: 4096, ..ProbeConfig::default() });
    let parent = Cgroup::new("overflow", None);
    let before = of_kind(&mut probes, "cgroup_start").lost;
    // A record takes 560 bytes with its header: seven fit into 4 KiB, no matter how slowly we read.
    let children: Vec<Cgroup> = (0..40).map(|i| parent.child(&format!("c{i}"))).collect();
    let mut told = 0;
    let ids: Vec<CgroupId> = children.iter().map(Cgroup::id).collect();
    probes.drain(|event| {
        if let What::CgroupStart { cgroup_id, .. } = event.what {
            told += u64::from(ids.contains(&cgroup_id));
        }
    });
    let loss = of_kind(&mut probes, "cgroup_start");
    println!("told {told}, lost {} (per CPU {:?})", loss.lost - before, loss.lost_per_cpu);
    assert!(told > 0);
    assert_eq!(told + loss.lost - before, 40, "told or counted, nothing else");
    assert_eq!(loss.lost, loss.lost_per_cpu.iter().sum::<u64>());
}

#[test]
fn a_flood_of_exits_is_cut_and_counted_but_not_an_inits() {
    if !guard("a_flood_of_exits_is_cut_and_counted_but_not_an_inits", false) {
        return;
    }
    let mut probes = start(&ProbeConfig { exits_per_second: 5, ..ProbeConfig::default() });
    let cgroup = Cgroup::new("flood", None);
    let procs = cgroup.path.join("cgroup.procs");
    let script = format!(
        "echo $$ > {}; i=0; while [ $i -lt 200 ]; do (:); i=$((i+1)); done; exec unshare --pid --fork sh -c 'exit 9'",
        procs.display()
    );
    assert_eq!(Command::new("sh").args(["-c", &script]).status().unwrap().code(), Some(9));
    let (mut told, mut init) = (0u64, false);
    thread::sleep(Duration::from_millis(100));
    probes.drain(|event| {
        if let What::Exit(x) = event.what
            && x.task.cgroup_id == Some(cgroup.id())
        {
            told += 1;
            init |= x.inner_pid == Some(1);
        }
    });
    let loss = of_kind(&mut probes, "exit");
    println!("told {told}, cut {} (per CPU {:?}), lost {}", loss.cut, loss.cut_per_cpu, loss.lost);
    assert!(loss.cut > 0, "200 exits took longer than 40 seconds, or the limit does not work");
    // 200 subshells, the init, and unshare itself; other cgroups' exits may be cut as well, never fewer.
    assert!(told + loss.cut >= 202, "told {told} + cut {}", loss.cut);
    assert!(init, "the end of the init was cut");
}

fn of_kind(probes: &mut probes::Probes, kind: &str) -> probes::KindLoss {
    probes.losses().kinds.into_iter().find(|loss| loss.kind == kind).expect("a counter for each kind")
}

#[test]
fn diagnostics_of_the_programs_load_too() {
    if !guard("diagnostics_of_the_programs_load_too", false) {
        return;
    }
    // With the log on, the verifier sees the branches that are otherwise pruned.
    let (probes, ladder) = probes::start(&ProbeConfig { log: true, ..ProbeConfig::default() });
    assert!(probes.is_some(), "{:?}", ladder.reason);
    let refused: Vec<_> = ladder.hooks.iter().filter(|h| h.mechanism.is_none() && !is_function(h)).collect();
    assert!(refused.is_empty(), "{refused:?}");
    if ladder.level == Level::FullBpf {
        assert!(ladder.hooks.iter().all(|h| h.mechanism.is_some()), "{:?}", ladder.hooks);
    }
}
