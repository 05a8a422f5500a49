//! The other kernel events against a real kernel: who killed an init, execs, reclaim, populated and frozen, and the limits
//! on how often each is told. Run like `kernel.rs`, whose stage it shares.
//!
//! Truth comes from outside the probes: wait(2), the pids of the processes that the test starts, cgroup.procs,
//! cgroup.events, inode numbers, a private tracefs instance.
#![expect(clippy::unwrap_used, reason = "a test whose stage can't be set has failed")]

#[path = "kernel/container.rs"]
mod container;
#[expect(dead_code, reason = "shared with kernel.rs, which uses the rest")]
#[path = "kernel/stage.rs"]
mod stage;

use container::Container;
use fgm::{
    event::{Attribution, Exec, KernelEvent, Kill, Outcome, Sent, What},
    names::CgroupId,
    probes::{self, Level, Mechanism, ProbeConfig, ReclaimTotals},
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use stage::{Cgroup, Child, MIB, guard, start, wait_for};
use std::{fs, process::Command, thread, time::Duration};

/// Not a test: the body of the processes that the tests start from this very binary.
#[test]
fn child_role() {
    if let Ok(role) = std::env::var(stage::ROLE) {
        stage::play(&role);
    }
}

fn pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

fn kills_of(events: &[KernelEvent], target: u32) -> Vec<&Kill> {
    let of = |e: &'_ KernelEvent| matches!(&e.what, What::Kill(kill) if kill.target.pid == Some(target));
    events
        .iter()
        .filter(|e| of(e))
        .filter_map(|e| match &e.what {
            What::Kill(kill) => Some(&**kill),
            _ => None,
        })
        .collect()
}

/// The events until `count` kills of the target have come, and what comes in a moment after.
fn kills(probes: &mut probes::Probes, target: u32, count: usize) -> Vec<Kill> {
    let mut events = wait_for(probes, |events| kills_of(events, target).len() >= count);
    thread::sleep(Duration::from_millis(50));
    probes.drain(|event| events.push(event));
    for event in &events {
        if let What::Kill(_) = event.what {
            println!("{event:?}");
        }
    }
    kills_of(&events, target).into_iter().cloned().collect()
}

fn structured() -> [(Vec<Mechanism>, &'static str); 2] {
    [(vec![], "tp_btf"), (vec![Mechanism::TpBtf], "raw_tp")]
}

#[test]
fn a_kill_from_outside_names_its_sender() {
    if !guard("a_kill_from_outside_names_its_sender", false) {
        return;
    }
    for (without, how) in structured() {
        let mut probes = start(&ProbeConfig { without, ..ProbeConfig::default() });
        let (cgroup, elsewhere) = (Cgroup::new("target", None), Cgroup::new("sender", None));
        let mut container = Container::start("wait", &cgroup, false);
        // First politely: pid 1 without a handler does not even get it. Then not.
        // By another user, who has the right to kill.
        let script = format!(
            "echo 0 > {}; exec setpriv --reuid=65534 --inh-caps=+kill --ambient-caps=+kill \
             sh -c 'kill -TERM {pid}; kill -KILL {pid}'",
            elsewhere.path.join("cgroup.procs").display(),
            pid = container.pid
        );
        let mut sender = Command::new("sh").args(["-c", &script]).spawn().unwrap();
        assert!(sender.wait().unwrap().success());
        assert_eq!(container.wait(), Some(9));

        let kills = kills(&mut probes, container.pid, 2);
        assert_eq!(kills.len(), 2, "{how}");
        for kill in &kills {
            assert_eq!((kill.sent, kill.sent.by_kernel()), (Sent::ByTask, false));
            assert_eq!((kill.sender.pid, kill.sender.comm.as_str()), (Some(sender.id()), "sh"));
            assert_eq!((kill.sender.cgroup_id, kill.sender_uid), (Some(elsewhere.id()), Some(65534)));
            assert_eq!(kill.sender_parent.pid, Some(std::process::id()));
            assert_eq!((kill.target.cgroup_id, kill.target_inner_pid), (Some(cgroup.id()), Some(1)));
        }
        assert_eq!((kills[0].signal, kills[0].outcome), (15, Outcome::Ignored));
        assert_eq!((kills[1].signal, kills[1].outcome), (9, Outcome::Delivered));
    }
}

#[test]
fn a_container_cannot_kill_its_own_init_and_it_is_told() {
    if !guard("a_container_cannot_kill_its_own_init_and_it_is_told", false) {
        return;
    }
    let mut probes = start(&ProbeConfig::default());
    let cgroup = Cgroup::new("inside", None);
    let mut container = Container::start("wait", &cgroup, false);
    let shell = container.inside(&cgroup, "kill -KILL 1");
    let told = kills(&mut probes, container.pid, 1);
    assert!(container.is_running(), "the kernel protects pid 1 from its own");
    assert_eq!(told.len(), 1);
    let kill = &told[0];
    assert_eq!((kill.signal, kill.outcome, kill.sent), (9, Outcome::Ignored, Sent::ByTask));
    assert_eq!((kill.sender.pid, kill.sender.cgroup_id), (Some(shell), Some(cgroup.id())));
}

#[test]
fn a_write_to_cgroup_kill_is_told_as_such() {
    if !guard("a_write_to_cgroup_kill_is_told_as_such", false) {
        return;
    }
    let mut probes = start(&ProbeConfig::default());
    let pod = Cgroup::new("pod", None);
    let cgroup = pod.child("container");
    let mut container = Container::start("wait", &cgroup, false);
    // Of the cgroup above: the kernel goes down the tree on behalf of the writer.
    fs::write(pod.path.join("cgroup.kill"), "1").unwrap();
    assert_eq!(container.wait(), Some(9));
    let told = kills(&mut probes, container.pid, 1);
    // 7.3 goes through all threads; it is still one kill.
    let (kill, later) = told.split_first().expect("a kill");
    assert!(later.iter().all(|k| k.outcome == Outcome::AlreadyDying), "{later:?}");
    assert_eq!((kill.signal, kill.outcome, kill.sent), (9, Outcome::Delivered, Sent::ByCgroupKill));
    assert_eq!((kill.sender.pid, kill.target.cgroup_id), (Some(std::process::id()), Some(cgroup.id())));
}

#[test]
fn a_kill_of_a_process_group_reaches_the_init_once() {
    if !guard("a_kill_of_a_process_group_reaches_the_init_once", false) {
        return;
    }
    let mut probes = start(&ProbeConfig::default());
    let cgroup = Cgroup::new("group", None);
    let mut container = Container::start("wait", &cgroup, false);
    kill_process_group(pid(container.parent_pid()), Signal::KILL).unwrap();
    assert_eq!(container.wait(), Some(9));
    let told = kills(&mut probes, container.pid, 1);
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].sent, told[0].outcome), (Sent::ByTask, Outcome::Delivered));
    assert_eq!(told[0].sender.pid, Some(std::process::id()));
}

#[test]
fn a_kill_by_the_parents_death_names_the_parent() {
    if !guard("a_kill_by_the_parents_death_names_the_parent", false) {
        return;
    }
    let mut probes = start(&ProbeConfig::default());
    let cgroup = Cgroup::new("orphan", None);
    let mut container = Container::start("wait", &cgroup, true);
    let parent = container.parent_pid();
    kill_process(pid(parent), Signal::KILL).unwrap();
    assert_eq!(container.wait(), Some(9));
    let told = kills(&mut probes, container.pid, 1);
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].sent, told[0].sender.pid), (Sent::ByParentDeath, Some(parent)));
    assert_eq!((told[0].signal, told[0].outcome), (9, Outcome::Delivered));
}

#[test]
fn the_oom_killers_kill_is_nobodys() {
    if !guard("the_oom_killers_kill_is_nobodys", true) {
        return;
    }
    for without in [vec![], vec![Mechanism::Fentry]] {
        let config = ProbeConfig { without, ..ProbeConfig::default() };
        let (probes, ladder) = probes::start(&config);
        let mut probes = probes.unwrap();
        let cgroup = Cgroup::new("oom", Some(64 * MIB));
        let mut container = Container::start("ready hog", &cgroup, false);
        assert_eq!(container.wait(), Some(9));
        let events = wait_for(&mut probes, |events| {
            !kills_of(events, container.pid).is_empty() && oom_ktime(events).is_some()
        });
        let told = kills_of(&events, container.pid);
        println!("{told:?}");
        assert_eq!(told.len(), 1);
        let expected = match ladder.level {
            Level::FullBpf => Sent::ByOomKiller,
            _ => Sent::ByKernel,
        };
        assert_eq!((told[0].sent, told[0].outcome), (expected, Outcome::Delivered));
        assert!(told[0].sent.by_kernel());
        assert_eq!(cgroup.events_local("oom_kill"), 1);
        // And reclaim was tried before, which is the early warning.
        let reclaims: Vec<_> = events
            .iter()
            .filter(|e| matches!(&e.what, What::Reclaim(r) if r.cgroup_id == cgroup.id()))
            .collect();
        println!("{reclaims:?}");
        let first = reclaims.first().expect("a reclaim before the kill");
        assert!(first.ktime_ns < oom_ktime(&events).unwrap());
    }
}

fn oom_ktime(events: &[KernelEvent]) -> Option<u64> {
    events.iter().find(|e| matches!(e.what, What::OomKill(_))).map(|e| e.ktime_ns)
}

#[test]
fn an_init_named_by_user_space_is_watched_by_every_mechanism() {
    if !guard("an_init_named_by_user_space_is_watched_by_every_mechanism", false) {
        return;
    }
    use Mechanism::{RawTp, TpBtf};
    for (without, how) in [(vec![], "tp_btf"), (vec![TpBtf], "raw_tp"), (vec![TpBtf, RawTp], "tracepoint")] {
        if how == "tracepoint" && !stage::has_tracefs() {
            continue;
        }
        let mut probes = start(&ProbeConfig { without, ..ProbeConfig::default() });
        let cgroup = Cgroup::new("named", None);
        let sit = || {
            let mut child = Child::spawn("wait", &cgroup);
            child.wait_ready();
            child
        };
        let (mut unnamed, mut cleared, mut named) = (sit(), sit(), sit());
        probes.set_init(cleared.pid, cgroup.id()).unwrap();
        probes.clear_init(cleared.pid);
        probes.clear_init(cleared.pid);
        probes.set_init(named.pid, cgroup.id()).unwrap();
        for child in [&mut unnamed, &mut cleared, &mut named] {
            kill_process(pid(child.pid), Signal::TERM).unwrap();
            assert_eq!(child.wait().signal, Some(15));
        }
        let mut events = wait_for(&mut probes, |events| !kills_of(events, named.pid).is_empty());
        thread::sleep(Duration::from_millis(50));
        probes.drain(|event| events.push(event));
        assert!(kills_of(&events, unnamed.pid).is_empty() && kills_of(&events, cleared.pid).is_empty());
        let told = kills_of(&events, named.pid);
        println!("{how}: {told:?}");
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].signal, told[0].outcome), (15, Outcome::Delivered));
        assert_eq!((told[0].sent, told[0].sender.pid), (Sent::ByTask, Some(std::process::id())));
        assert_eq!(told[0].target.cgroup_id, Some(cgroup.id()));
        let source = events.iter().find(|e| matches!(e.what, What::Kill(_))).unwrap().source;
        assert_eq!(source, format!("{how}/signal_generate"));
    }
}

#[test]
fn a_container_that_signals_its_init_in_a_loop_hides_no_kill() {
    if !guard("a_container_that_signals_its_init_in_a_loop_hides_no_kill", false) {
        return;
    }
    let mut probes = start(&ProbeConfig { events_per_second: 5, ..ProbeConfig::default() });
    let cgroup = Cgroup::new("loop", None);
    let mut container = Container::start("wait", &cgroup, false);
    container.inside(&cgroup, "i=0; while [ $i -lt 200 ]; do kill -TERM 1; i=$((i+1)); done");
    kill_process(pid(container.pid), Signal::KILL).unwrap();
    assert_eq!(container.wait(), Some(9));
    let fatal = |kills: &[&Kill]| kills.iter().any(|k| k.outcome == Outcome::Delivered && k.signal == 9);
    let events = wait_for(&mut probes, |events| fatal(&kills_of(events, container.pid)));
    let told = kills_of(&events, container.pid);
    assert!(fatal(&told), "the kill from outside was cut");
    let loss = loss_of(&mut probes, "kill");
    println!("told {}, cut {} (per CPU {:?}), lost {}", told.len(), loss.cut, loss.cut_per_cpu, loss.lost);
    assert!(loss.cut > 0);
    assert_eq!(told.len() as u64 + loss.cut + loss.lost, 201, "told or counted, nothing else");
}

fn loss_of(probes: &mut probes::Probes, kind: &str) -> probes::KindLoss {
    probes.losses().kinds.into_iter().find(|loss| loss.kind == kind).expect("a counter for each kind")
}

#[test]
fn the_execs_of_an_init_and_of_a_first_process_are_told() {
    if !guard("the_execs_of_an_init_and_of_a_first_process_are_told", false) {
        return;
    }
    use Mechanism::{RawTp, TpBtf};
    for (without, how) in [(vec![], "tp_btf"), (vec![TpBtf], "raw_tp"), (vec![TpBtf, RawTp], "tracepoint")] {
        if how == "tracepoint" && !stage::has_tracefs() {
            continue;
        }
        let mut probes = start(&ProbeConfig { without, ..ProbeConfig::default() });
        let cgroup = Cgroup::new("exec", None);
        // The shell becomes `unshare` (first process), whose child becomes a shell and then `sleep` (init); `true` is neither.
        let script = format!(
            "echo 0 > {}; exec unshare --pid --fork sh -c 'env true; exec sleep 0'",
            cgroup.path.join("cgroup.procs").display()
        );
        let mut shell = Command::new("sh").args(["-c", &script]).spawn().unwrap();
        assert!(shell.wait().unwrap().success());
        let execs = |events: &[KernelEvent]| -> Vec<Exec> {
            events
                .iter()
                .filter_map(|e| match &e.what {
                    What::Exec(exec) if exec.task.cgroup_id == Some(cgroup.id()) => Some(exec.clone()),
                    _ => None,
                })
                .collect()
        };
        let events = wait_for(&mut probes, |events| execs(events).len() >= 3);
        let execs = execs(&events);
        println!("{how}: {execs:#?}");
        let said: Vec<_> =
            execs.iter().map(|e| (e.task.comm.as_str(), e.first_process, e.inner_pid)).collect();
        assert_eq!(
            said,
            [("unshare", true, Some(shell.id())), ("sh", false, Some(1)), ("sleep", false, Some(1))]
        );
        assert_eq!(execs[0].task.pid, Some(shell.id()));
        assert!(execs.iter().all(|e| e.filename.ends_with(&format!("/{}", e.task.comm))), "{execs:?}");
    }
}

/// A private tracefs instance that counts reclaims.
struct ReclaimTruth {
    dir: Option<std::path::PathBuf>,
}

impl ReclaimTruth {
    const EVENT: &'static str = "events/vmscan/mm_vmscan_memcg_reclaim_begin/enable";

    fn begin() -> Self {
        let dir =
            stage::tracefs().map(|root| root.join(format!("instances/fgm-reclaim-{}", std::process::id())));
        if let Some(dir) = &dir {
            let _ = fs::remove_dir(dir);
            fs::create_dir(dir).unwrap();
            fs::write(dir.join(Self::EVENT), "1").unwrap();
        }
        Self { dir }
    }

    fn count(&self) -> Option<u64> {
        let trace = fs::read_to_string(self.dir.as_ref()?.join("trace")).unwrap();
        Some(trace.lines().filter(|line| line.contains("mm_vmscan_memcg_reclaim_begin:")).count() as u64)
    }
}

impl Drop for ReclaimTruth {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            let _ = fs::write(dir.join(Self::EVENT), "0");
            let _ = fs::remove_dir(dir);
        }
    }
}

fn totals_of(probes: &probes::Probes, id: CgroupId) -> Option<ReclaimTotals> {
    let mut found = None;
    probes.reclaim(|cgroup, totals| found = if cgroup == id { Some(totals) } else { found });
    found
}

#[test]
fn reclaim_is_added_up_and_told_once_a_second() {
    if !guard("reclaim_is_added_up_and_told_once_a_second", true) {
        return;
    }
    for without in [vec![], vec![Mechanism::Fentry], vec![Mechanism::Fentry, Mechanism::TpBtf]] {
        let (probes, ladder) = probes::start(&ProbeConfig { without, ..ProbeConfig::default() });
        let mut probes = probes.unwrap();
        let (full, asker) = (Cgroup::new("full", Some(256 * MIB)), Cgroup::new("asker", Some(256 * MIB)));
        let mut sitter = Child::spawn("sitter", &full);
        sitter.wait_ready();
        let truth = ReclaimTruth::begin();
        let begun = fgm::clock::ktime_ns();
        // Nothing can be reclaimed without swap; that it was tried is what matters.
        let script = format!(
            "echo 0 > {}; for i in 1 2 3 4 5 6 7 8 9 10; do echo 1M > {} || :; done",
            asker.path.join("cgroup.procs").display(),
            full.path.join("memory.reclaim").display()
        );
        assert!(Command::new("sh").args(["-c", &script]).output().unwrap().status.success());
        let seconds = (fgm::clock::ktime_ns() - begun) / 1_000_000_000 + 2;
        let traced = truth.count();
        let by_function =
            ladder.hooks.iter().any(|h| h.hook.starts_with("try_to_free") && h.mechanism.is_some());
        // Without the function it is the asker's, unless the tracepoint names the cgroup (7.3).
        let told: Vec<_> = wait_for(&mut probes, |events| !reclaims_of(events, &[&full, &asker]).is_empty());
        let told = reclaims_of(&told, &[&full, &asker]);
        println!("{told:?}");
        let (_, first) = told.first().expect("a reclaim event");
        let named = first.attribution == Attribution::Memcg;
        assert!(named || !by_function, "{first:?}");
        let id = if named { full.id() } else { asker.id() };
        assert_eq!(first.cgroup_id, id);
        assert!(told.len() as u64 <= seconds, "{} events in {seconds} s", told.len());
        let totals = totals_of(&probes, id).expect("totals");
        println!("{totals:?}, {traced:?} traced");
        if let Some(traced) = traced {
            assert_eq!(totals.count, traced);
        }
        assert!(totals.count >= 10 && totals.total_ns >= totals.longest_ns && totals.longest_ns > 0);
        assert!(first.count >= 1 && first.count <= totals.count);
        let hook = if by_function {
            "fentry/try_to_free_mem_cgroup_pages"
        } else {
            "/mm_vmscan_memcg_reclaim_begin"
        };
        assert!(told[0].0.ends_with(hook), "{}", told[0].0);
        drop(sitter);
        drop(full);
        drop(asker);
        assert_eq!(totals_of(&probes, id), None, "what is gone is forgotten");
    }
}

fn reclaims_of(events: &[KernelEvent], of: &[&Cgroup]) -> Vec<(&'static str, fgm::event::Reclaim)> {
    events
        .iter()
        .filter_map(|e| match &e.what {
            What::Reclaim(reclaim) if of.iter().any(|c| c.id() == reclaim.cgroup_id) => {
                Some((e.source, *reclaim))
            }
            _ => None,
        })
        .collect()
}

/// A key of cgroup.events.
fn state(cgroup: &Cgroup, key: &str) -> bool {
    let text = fs::read_to_string(cgroup.path.join("cgroup.events")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).unwrap() == "1"
}

#[test]
fn populated_and_frozen_follow_cgroup_events() {
    if !guard("populated_and_frozen_follow_cgroup_events", false) {
        return;
    }
    use Mechanism::{RawTp, TpBtf};
    for (without, how) in [(vec![], "tp_btf"), (vec![TpBtf], "raw_tp"), (vec![TpBtf, RawTp], "tracepoint")] {
        if how == "tracepoint" && !stage::has_tracefs() {
            continue;
        }
        let mut probes = start(&ProbeConfig { without, ..ProbeConfig::default() });
        let parent = Cgroup::new("states", None);
        let cgroup = parent.child("child");
        let mut child = Child::spawn("wait", &cgroup);
        child.wait_ready();
        assert!(state(&cgroup, "populated") && state(&parent, "populated"));
        let freeze = |value: &str| {
            fs::write(cgroup.path.join("cgroup.freeze"), value).unwrap();
            let end = fgm::clock::ktime_ns() + 20_000_000_000;
            while state(&cgroup, "frozen") != (value == "1") && fgm::clock::ktime_ns() < end {
                thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(state(&cgroup, "frozen"), value == "1");
        };
        freeze("1");
        freeze("0");
        drop(child);
        assert!(!state(&cgroup, "populated"));
        let (child_id, parent_id) = (cgroup.id(), parent.id());
        let of = |events: &[KernelEvent], id: CgroupId| -> Vec<(&'static str, bool)> {
            events
                .iter()
                .filter_map(|e| match e.what {
                    What::Populated { cgroup_id, populated } if cgroup_id == id => {
                        Some(("populated", populated))
                    }
                    What::Frozen { cgroup_id, frozen } if cgroup_id == id => Some(("frozen", frozen)),
                    _ => None,
                })
                .collect()
        };
        let last = ("populated", false);
        let events =
            wait_for(&mut probes, |e| of(e, parent_id).contains(&last) && of(e, child_id).contains(&last));
        println!("{how}: {:?} {:?}", of(&events, child_id), of(&events, parent_id));
        assert_eq!(
            of(&events, child_id),
            [("populated", true), ("frozen", true), ("frozen", false), ("populated", false)]
        );
        assert_eq!(of(&events, parent_id), [("populated", true), last]);
        let sources: Vec<_> = events.iter().filter(|e| matches!(e.what, What::Frozen { .. })).collect();
        assert!(sources.iter().all(|e| e.source == format!("{how}/cgroup_notify_frozen")), "{sources:?}");
    }
}

#[test]
fn who_makes_cgroups_in_a_loop_is_cut_and_counted_and_hides_no_other() {
    if !guard("who_makes_cgroups_in_a_loop_is_cut_and_counted_and_hides_no_other", false) {
        return;
    }
    let mut probes = start(&ProbeConfig { cgroups_per_second: 10, ..ProbeConfig::default() });
    let (hostile, other) = (Cgroup::new("hostile", None), Cgroup::new("other", None));
    let made: Vec<Cgroup> = (0..100).map(|i| hostile.child(&format!("c{i}"))).collect();
    let ids: Vec<_> = made.iter().map(Cgroup::id).collect();
    let neighbour = other.child("neighbour");
    let id = neighbour.id();
    drop(made);
    let is = |e: &KernelEvent, wanted: &[CgroupId], start: bool| match e.what {
        What::CgroupStart { cgroup_id, .. } => start && wanted.contains(&cgroup_id),
        What::CgroupEnd { cgroup_id, .. } => !start && wanted.contains(&cgroup_id),
        _ => false,
    };
    let mut events = wait_for(&mut probes, |events| events.iter().any(|e| is(e, &[id], true)));
    thread::sleep(Duration::from_millis(100));
    probes.drain(|event| events.push(event));
    assert!(events.iter().any(|e| is(e, &[id], true)), "the neighbour's cgroup was cut");
    for (kind, start) in [("cgroup_start", true), ("cgroup_end", false)] {
        let told = events.iter().filter(|e| is(e, &ids, start)).count() as u64;
        let loss = loss_of(&mut probes, kind);
        println!(
            "{kind}: told {told}, cut {} (per CPU {:?}), lost {}",
            loss.cut, loss.cut_per_cpu, loss.lost
        );
        assert!(loss.cut > 0, "100 took longer than 10 seconds, or the limit does not work");
        assert_eq!(told + loss.cut + loss.lost, 100, "told or counted, nothing else");
    }
}
