//! The whole agent against a real kernel: kills in cgroups named as a kubelet names them, and what the agent says of
//! them afterwards. Run as root with --test-threads=1 where cgroup v2 has the memory controller (the test VM);
//! elsewhere each test says that it was skipped and why.
//!
//! Truth comes from processes and files that the agent has no part in: wait(2), inode numbers, memory.events.local and a
//! private tracefs instance.

#[path = "kernel_agent/stage.rs"]
#[expect(dead_code, reason = "some of it serves the tests without BPF alone")]
mod stage;

use fgm::clock::ktime_ns;
use stage::{Agent, MIB, Pod, Process, Victims, guard, rows, wait};
use std::collections::BTreeSet;
use std::time::Duration;

/// Not a test: the body of the processes that the tests start from this very binary.
#[test]
fn child_role() {
    if let Ok(role) = std::env::var(stage::ROLE) {
        stage::play(&role);
    }
}

#[test]
fn a_child_is_killed_while_the_containers_init_lives_on() {
    if !guard("a_child_is_killed_while_the_containers_init_lives_on") {
        return;
    }
    let agent = Agent::start("child", "");
    let truth = Victims::begin();
    let born = ktime_ns();
    let pod = Pod::new(None);
    let app = pod.container(Some(64 * MIB));
    // idle for 34 s, then a child ramps to 100 MiB over 5 s
    let init = Process::spawn("init 34 100 5", &app);
    let i = agent.closed_incident(Duration::from_secs(90));

    let killed = truth.pids();
    assert_eq!(killed.len(), 1, "{killed:?}");
    assert_eq!(i["kind"], "oom_kill");
    assert_eq!(i["victims"][0]["pid"].as_u64(), killed.first().map(|p| u64::from(*p)));
    assert_ne!(i["victims"][0]["pid"].as_u64(), Some(u64::from(init.pid)), "the child, not the init");
    assert_eq!(i["victims"].as_array().map(Vec::len), usize::try_from(app.events_local("oom_kill")).ok());
    assert_eq!(
        (i["cgroup_id"].as_u64(), i["container_id"].as_str()),
        (Some(app.id()), Some(app.container_id.as_str()))
    );
    assert_eq!((i["pod_uid"].as_str(), i["qos"].as_str()), (Some(pod.uid.as_str()), Some("Burstable")));
    assert_eq!(
        (i["limit"]["cgroup_id"].as_u64(), i["limit"]["max_bytes"].as_u64()),
        (Some(app.id()), Some(64 * MIB))
    );
    assert_eq!(i["exit"], serde_json::Value::Null, "the init lives: {i}");
    let history = i["history_s"].as_f64().expect("history");
    assert!(history >= 30.0, "{history} s of history");
    let last = i["last_sample_before_ms"].as_f64().expect("a last sample");
    assert!((0.0..2000.0).contains(&last), "{last} ms");
    assert!(i["first_burst_after_ms"].as_f64().is_some_and(|ms| ms >= 0.0), "{i}");
    let summary = i["summary"].as_str().expect("a summary");
    assert!(
        summary.contains("64.0 MiB") && summary.contains(&format!("(pid {})", killed.first().expect("one"))),
        "{summary}"
    );

    let kill_ns = i["ktime_ns"].as_i64().expect("ktime");
    let table = rows(&agent.export(i["id"].as_str().expect("id"), "parquet"));
    let of_app: Vec<_> = table.iter().filter(|r| r.cgroup_id == app.id().cast_signed()).collect();
    let causes: BTreeSet<&str> = of_app.iter().map(|r| r.cause.as_str()).collect();
    assert_eq!(causes, BTreeSet::from(["base", "burst", "history"]));
    let instants: BTreeSet<i64> = of_app.iter().map(|r| r.ktime_ns).collect();
    assert_eq!(instants.len(), of_app.len(), "no instant twice");
    assert!(instants.first().is_some_and(|t| *t > born.cast_signed()), "no row before it was born");
    let history: Vec<_> = of_app.iter().filter(|r| r.cause == "history").collect();
    assert!(history.len() > 200, "{} rows of history in 34 s", history.len());
    // a warning may have started a burst, whose rows then stand for the lane's
    let before: Vec<_> = of_app.iter().filter(|r| r.cause != "base" && r.ktime_ns < kill_ns).collect();
    let (first, last) = (before.first().expect("rows"), before.last().expect("rows"));
    assert!(first.memory_current < Some(20 * MIB.cast_signed()), "{first:?}");
    assert!(last.memory_current > Some(40 * MIB.cast_signed()), "{last:?}");
    let widest = before.windows(2).map(|w| w[1].ktime_ns - w[0].ktime_ns).max().expect("rows");
    assert!(widest < 2_000_000_000, "a gap of {widest} ns in history and burst");
    assert!(
        of_app.iter().any(|r| r.memory_max == Some((64 * MIB).cast_signed())),
        "the limit is in the rows"
    );
    let of_pod = table.iter().filter(|r| r.scope == "pod").count();
    assert!(of_pod > 100, "the pod's rows are there too: {of_pod}");

    let html = String::from_utf8(agent.export(i["id"].as_str().expect("id"), "html")).expect("text");
    assert!(html.contains("Content-Security-Policy") && html.contains(&app.container_id));
    assert!(agent.stop(), "SIGTERM ends it with success");
}

#[test]
fn the_pods_limit_is_named_and_the_trigger_in_another_container() {
    if !guard("the_pods_limit_is_named_and_the_trigger_in_another_container") {
        return;
    }
    let agent = Agent::start("pod", "");
    let pod = Pod::new(Some(64 * MIB));
    let (victim, other) = (pod.container(None), pod.container(None));
    let mut sitter = Process::spawn("sit 40", &victim);
    sitter.wait_ready();
    // a container's first process is looked for with its base samples
    std::thread::sleep(Duration::from_secs(4));
    let mut asker = Process::spawn("ramp 40 0", &other);
    assert_eq!(sitter.wait().1, Some(9), "the sitter was to be killed");
    // where the victim's memory is slow to come free, the kernel takes the asker too
    let asker_killed = asker.wait().1 == Some(9);

    let i = agent.closed_incident_of(&victim, Duration::from_secs(60));
    let victims: usize = agent.incidents().iter().filter_map(|i| i["victims"].as_array().map(Vec::len)).sum();
    assert_eq!(victims, 1 + usize::from(asker_killed));
    let counted = victim.events_local("oom_kill") + other.events_local("oom_kill");
    assert_eq!(victims as u64, counted, "as many as memory.events.local has");
    assert_eq!(i["victims"][0]["pid"].as_u64(), Some(u64::from(sitter.pid)));
    assert_eq!(i["container_id"].as_str(), Some(victim.container_id.as_str()));
    assert_eq!(i["trigger"]["pid"].as_u64(), Some(u64::from(asker.pid)));
    assert_eq!(i["trigger"]["cgroup_id"].as_u64(), Some(other.id()));
    assert_eq!(i["limit"]["cgroup_id"].as_u64(), Some(pod.id()));
    assert_eq!(i["limit"]["max_bytes"].as_u64(), Some(64 * MIB));
    assert_eq!(
        (i["exit"]["signal"].as_i64(), i["exit"]["code"].as_i64()),
        (Some(9), None),
        "it was the init: {i}"
    );
    assert!(i["summary"].as_str().is_some_and(|s| s.contains("ancestor")), "{}", i["summary"]);
    assert!(pod.events_local("oom") >= 1);
}

#[test]
fn a_group_kill_names_each_victim_once() {
    if !guard("a_group_kill_names_each_victim_once") {
        return;
    }
    let agent = Agent::start("group", "");
    let truth = Victims::begin();
    let pod = Pod::new(None);
    let app = pod.container(Some(64 * MIB));
    app.write("memory.oom.group", "1");
    let mut sitters: Vec<_> = (0..2).map(|_| Process::spawn("hold 4", &app)).collect();
    for s in &mut sitters {
        s.wait_ready();
    }
    let mut hog = Process::spawn("ramp 100 1", &app);
    assert_eq!(hog.wait().1, Some(9));
    for s in &mut sitters {
        assert_eq!(s.wait().1, Some(9), "all of the group die");
    }
    let i = agent.closed_incident(Duration::from_secs(60));
    let named: BTreeSet<u32> = i["victims"]
        .as_array()
        .expect("victims")
        .iter()
        .filter_map(|v| v["pid"].as_u64().and_then(|p| u32::try_from(p).ok()))
        .collect();
    let killed: BTreeSet<u32> = sitters.iter().chain([&hog]).map(|p| p.pid).collect();
    assert_eq!(named, killed);
    // the kernel's record has thread ids, and one of the first victim's other threads may be marked as well
    assert!(truth.pids().is_superset(&named), "{:?}", truth.pids());
    assert_eq!(i["victims"].as_array().map(Vec::len), Some(named.len()), "each once");
    // the kernel counts calls of its kill function: the first victim again as a member of its group, and all of them
    // once more when another thread runs into the limit before it has noticed
    let (counted, groups) = (app.events_local("oom_kill"), app.events_local("oom_group_kill"));
    assert!(groups >= 1 && counted > named.len() as u64, "oom_kill {counted}, oom_group_kill {groups}");
    let said = "The kernel kills all of the container together, since its memory.oom.group is set.";
    assert!(i["summary"].as_str().is_some_and(|s| s.contains(said)), "{}", i["summary"]);
}

#[test]
fn a_container_that_lives_a_fifth_of_a_second_is_recorded() {
    if !guard("a_container_that_lives_a_fifth_of_a_second_is_recorded") {
        return;
    }
    let agent = Agent::start("short", "");
    let pod = Pod::new(None);
    let (id, container, born, died) = {
        let born = ktime_ns();
        let short = pod.container(None);
        let mut p = Process::spawn("exit 3", &short);
        assert_eq!(p.wait().0, Some(3));
        std::thread::sleep(Duration::from_millis(200));
        let (id, name) = (short.id().cast_signed(), short.container_id.clone());
        drop(short);
        (id, name, born.cast_signed(), ktime_ns().cast_signed())
    };
    std::thread::sleep(Duration::from_secs(3));
    let text = agent.get_ok(&format!("/api/export?format=parquet&range=5m&containers={container}"));
    let of_it: Vec<_> = rows(&text).into_iter().filter(|r| r.cgroup_id == id).collect();
    assert!(!of_it.is_empty(), "it was sampled at least once");
    assert!(of_it.iter().all(|r| (born..died).contains(&r.ktime_ns)), "no row outside its life: {of_it:?}");
    agent.settle("events");
    let events = agent.stored_events();
    let kinds: Vec<_> = events.iter().filter(|(cgroup, ..)| *cgroup == Some(id)).collect();
    for kind in ["cgroup_start", "exit", "cgroup_end"] {
        assert!(kinds.iter().any(|(_, k, _)| k == kind), "{kind} is missing from {kinds:?}");
    }
    assert!(kinds.iter().any(|(_, k, code)| k == "exit" && *code == Some(3)), "{kinds:?}");
}

/// The ring holds a few events: what it refuses is in the account by number, what is there afterwards is found all the same, and a kill is told.
#[test]
fn what_the_smallest_ring_refuses_is_accounted_for() {
    if !guard("what_the_smallest_ring_refuses_is_accounted_for") {
        return;
    }
    let agent = Agent::start_with("tiny", "[probes]\nring_bytes = 4096\n");
    let pod = Pod::new(None);
    let births = || std::iter::repeat_with(|| pod.container(None)).take(150).collect::<Vec<_>>();
    // an agent that reads meanwhile may be quick enough for a ring of any size
    let born = agent.halted(births);
    let ids: BTreeSet<i64> = born.iter().map(|c| c.id().cast_signed()).collect();
    // most go again, at once
    let stay = born.into_iter().skip(140).collect::<Vec<_>>();
    let killed = pod.container(Some(8 * MIB));
    let mut hog = Process::spawn("ramp 32 0", &killed);
    assert_eq!(hog.wait().1, Some(9));
    agent.closed_incident_of(&killed, Duration::from_secs(60));
    wait("a look at those that stay", Duration::from_secs(90), || {
        let known: Vec<_> = agent.try_rows("/api/export?format=parquet&range=5m").unwrap_or_default();
        let seen: BTreeSet<i64> = known.iter().map(|r| r.cgroup_id).collect();
        stay.iter().all(|c| seen.contains(&c.id().cast_signed()))
    });
    agent.settle("events");
    let events = agent.stored_events();
    let told = |kind: &str| {
        let of_ours = events.iter().filter(|(id, k, _)| k == kind && id.is_some_and(|id| ids.contains(&id)));
        of_ours.count() as u64
    };
    let status = agent.status();
    let lost = &status["ledger"]["events"]["lost"];
    let of = |reason: &str| lost[reason].as_u64().unwrap_or(0);
    // of those that went again at once, the end as well
    let due = (2 * ids.len() - stay.len()) as u64;
    let missing = due.saturating_sub(told("cgroup_start") + told("cgroup_end"));
    println!("{missing} of our {due} births and ends are not told; lost: {lost}");
    assert!(of("ring_full") > 0, "a ring of 4096 bytes has held {} births: {lost}", ids.len());
    assert!(
        of("ring_full") + of("rate_limit") >= missing,
        "{missing} are missing, and {lost} is all that is said of it"
    );
    assert_eq!(
        status["ledger"]["events"]["due"].as_u64(),
        Some(
            status["ledger"]["events"]["written"].as_u64().expect("a count")
                + lost.as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum::<u64>(),
        )
    );
    assert!(agent.stop());
}

#[test]
fn an_announced_incident_survives_the_kill_of_the_agent() {
    if !guard("an_announced_incident_survives_the_kill_of_the_agent") {
        return;
    }
    let agent = Agent::start("kill9", "");
    let pod = Pod::new(None);
    let app = pod.container(Some(32 * MIB));
    let mut hog = Process::spawn("ramp 100 1", &app);
    assert_eq!(hog.wait().1, Some(9));
    let i = agent.incident(Duration::from_secs(30));
    let again = agent.kill_and_restart();
    let j = again.incident(Duration::from_secs(30));
    assert_eq!((&j["id"], &j["victims"]), (&i["id"], &i["victims"]));
    let table = rows(&again.export(i["id"].as_str().expect("id"), "parquet"));
    assert!(table.iter().any(|r| r.cause == "history"), "its history is still there: {} rows", table.len());
    assert!(again.stop());
}

#[test]
fn a_full_disk_stops_nothing_but_writing() {
    if !guard("a_full_disk_stops_nothing_but_writing") {
        return;
    }
    let agent = Agent::start("full", "8M");
    let pod = Pod::new(None);
    let app = pod.container(None);
    let _steady = Process::spawn("hold 1", &app);
    wait("a first segment", Duration::from_secs(30), || agent.status()["store"]["files"].as_u64() > Some(2));
    let closed = agent.segments();
    agent.fill_disk();
    wait("the complaint", Duration::from_secs(60), || agent.status()["store"]["degraded"].is_string());
    let why = agent.status()["store"]["degraded"].to_string();
    assert!(why.contains("free space"), "{why}");
    for file in &closed {
        assert!(!rows(&std::fs::read(file).expect("still there")).is_empty());
    }
    let waiting = agent.status()["store"]["pending"]["rows"].as_u64().expect("rows");
    assert!(waiting > 0, "rows wait in memory");
    agent.free_disk();
    wait("the recovery", Duration::from_secs(60), || agent.status()["store"]["degraded"].is_null());
    assert_eq!(agent.status()["store"]["dropped"].as_array().map(Vec::len), Some(0), "nothing was lost");
    // the table that was refused is written first, and need not be the one that is looked at
    wait("a new segment", Duration::from_secs(60), || agent.segments().len() > closed.len());
    assert!(agent.stop());
}

/// Takes things away in a mount namespace of its own, then becomes the agent.
const HIDE_BTF: [&str; 5] =
    ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\""];
const HIDE_ALL: [&str; 5] = [
    "unshare",
    "-m",
    "sh",
    "-c",
    "mount -t tmpfs none /sys/kernel/btf && mount -t tmpfs none /sys/kernel/tracing && \
     mount -t tmpfs none /sys/kernel/debug && exec \"$0\" \"$@\"",
];

#[test]
fn without_btf_tracepoints_take_over_and_it_says_what_is_lost() {
    if !guard("without_btf_tracepoints_take_over_and_it_says_what_is_lost") {
        return;
    }
    let agent = Agent::start_under("nobtf", HIDE_BTF.to_vec());
    let ladder = agent.status()["ladder"].clone();
    assert_eq!(ladder["level"], "no_fentry", "{ladder}");
    let hooks = ladder["hooks"].as_array().expect("hooks");
    let of = |name: &str| hooks.iter().find(|h| h["hook"] == name).expect("the hook");
    for name in ["mark_victim", "cgroup_mkdir", "cgroup_rmdir", "sched_process_exit"] {
        assert_eq!(of(name)["mechanism"], "tracepoint", "{ladder}");
        assert!(of(name)["error"].as_str().is_some_and(|e| e.contains("CONFIG_DEBUG_INFO_BTF")), "{ladder}");
    }
    assert!(of("oom_kill_process")["mechanism"].is_null(), "{ladder}");
    let log = agent.log();
    assert!(log.contains("probe not attached") && log.contains("is inferred from"), "{log}");
    let pod = Pod::new(None);
    let app = pod.container(Some(32 * MIB));
    let mut hog = Process::spawn("ramp 100 3", &app);
    assert_eq!(hog.wait().1, Some(9));
    let i = agent.incident(Duration::from_secs(30));
    assert_eq!(
        i["victims"][0]["pid"].as_u64(),
        Some(u64::from(hog.pid)),
        "the kill is seen all the same: {i}"
    );
    assert!(agent.stop());
}

#[test]
fn without_anything_of_the_kernel_it_says_so_and_samples_on() {
    if !guard("without_anything_of_the_kernel_it_says_so_and_samples_on") {
        return;
    }
    const NO_CAPABILITIES: [&str; 3] = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    const NO_PERFMON: [&str; 3] =
        ["setpriv", "--bounding-set=-perfmon,-sys_admin", "--inh-caps=-perfmon,-sys_admin"];
    let pod = Pod::new(None);
    let app = pod.container(None);
    let _steady = Process::spawn("hold 1", &app);
    for (name, prefix, missing) in [
        ("nocap", NO_CAPABILITIES.to_vec(), ["lacks CAP_BPF and CAP_PERFMON", "grant"]),
        ("noperfmon", NO_PERFMON.to_vec(), ["lacks CAP_PERFMON", "grant"]),
        ("hidden", HIDE_ALL.to_vec(), ["CONFIG_DEBUG_INFO_BTF", "mount -t tracefs"]),
    ] {
        let agent = Agent::start_under(name, prefix);
        let ladder = agent.status()["ladder"].clone();
        assert_eq!(ladder["level"], "no_bpf", "{name}: {ladder}");
        assert!(ladder["works"].as_str().is_some_and(|w| w.starts_with("samples")), "{name}: {ladder}");
        let log = agent.log();
        for word in missing {
            assert!(ladder.to_string().contains(word) && log.contains(word), "{name}: {ladder} {log}");
        }
        assert_eq!(log.matches("no kernel probes").count(), 1, "{log}");
        std::thread::sleep(Duration::from_secs(4));
        let path = format!("/api/export?format=parquet&range=1m&containers={}", app.container_id);
        assert!(!rows(&agent.get_ok(&path)).is_empty(), "{name}: it still samples");
        assert!(agent.stop());
    }
}

#[test]
fn a_kill_by_somebody_names_the_sender_and_a_crash_is_told_from_it() {
    if !guard("a_kill_by_somebody_names_the_sender_and_a_crash_is_told_from_it") {
        return;
    }
    let agent = Agent::start("killer", "");
    let pod = Pod::new(None);
    let (app, other) = (pod.container(None), pod.container(None));
    let mut init = Process::spawn("hold 1", &app);
    init.wait_ready();
    let mut other_init = Process::spawn("hold 1", &other);
    other_init.wait_ready();
    // it is named to the kernel side within its second base sample
    std::thread::sleep(Duration::from_secs(4));
    let killer =
        std::process::Command::new("sh").args(["-c", &format!("echo $$; kill -9 {}", init.pid)]).output();
    let killer: u64 =
        String::from_utf8(killer.expect("sh").stdout).expect("text").trim().parse().expect("a pid");
    assert_eq!(init.wait().1, Some(9));
    let i = agent.closed_incident_of(&app, Duration::from_secs(60));
    assert_eq!((i["kind"].as_str(), i["exit"]["signal"].as_i64()), (Some("killed"), Some(9)));
    assert_eq!((i["killer"]["pid"].as_u64(), i["killer"]["signal"].as_i64()), (Some(killer), Some(9)), "{i}");
    assert!(i["limit"].is_null() && i["trigger"].is_null());
    assert!(i["summary"].as_str().is_some_and(|s| s.contains("\"sh\"")), "{}", i["summary"]);

    let abort = std::process::Command::new("kill").args(["-ABRT", &other_init.pid.to_string()]).status();
    assert!(abort.expect("kill").success());
    assert_eq!(other_init.wait().1, Some(6));
    let i = agent.closed_incident_of(&other, Duration::from_secs(60));
    assert_eq!((i["kind"].as_str(), i["exit"]["signal"].as_i64()), (Some("crash"), Some(6)));
    assert!(i["killer"].is_null() && i["limit"].is_null(), "{i}");
    assert!(i["summary"].as_str().is_some_and(|s| s.contains("cause not observed")), "{}", i["summary"]);
    assert!(agent.stop());
}

#[test]
fn network_counters_name_their_namespace_with_the_daemonsets_capabilities() {
    if !guard("network_counters_name_their_namespace_with_the_daemonsets_capabilities") {
        return;
    }
    const DAEMONSET: [&str; 3] =
        ["setpriv", "--bounding-set=-all,+bpf,+perfmon", "--inh-caps=-all,+bpf,+perfmon"];
    let (pod, in_the_nodes) = (Pod::new(None), Pod::new(None));
    let (app, other) = (pod.container(None), in_the_nodes.container(None));
    let enter = |cgroup: &stage::Cgroup, words: &str| {
        let script = format!("echo 0 > '{}/cgroup.procs' && exec {words} sleep 100", cgroup.path.display());
        stage::reaped(std::process::Command::new("sh").args(["-c", &script]))
    };
    let (alone, _shares) = (enter(&app, "unshare --net"), enter(&other, "env"));
    let number = |pid: u32| {
        let link = std::fs::read_link(format!("/proc/{pid}/ns/net")).expect("a namespace");
        link.to_string_lossy().trim_matches(|c: char| !c.is_ascii_digit()).to_owned()
    };
    let node = number(std::process::id());
    wait("a namespace of its own", Duration::from_secs(20), || number(alone.pid) != node);
    let agent = Agent::start_under("netns", DAEMONSET.to_vec());
    let ladder = agent.status()["ladder"].to_string();
    assert!(ladder.contains("\"iter_task\""), "{ladder}");

    let of = |agent: &Agent, owner: Option<i64>| -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for batch in agent.stored("metrics") {
            let (cgroup, name) = (stage::ints(&batch, "cgroup_id"), stage::texts(&batch, "name"));
            let labels = batch.column_by_name("labels").expect("labels");
            for i in 0..batch.num_rows() {
                if cgroup[i] == owner && name[i].as_deref() == Some("net_rx_bytes") {
                    let labels = arrow::util::display::array_value_to_string(labels, i).expect("text");
                    found.insert(labels);
                }
            }
        }
        found
    };
    let (pod_id, other_id) = (Some(pod.id().cast_signed()), Some(in_the_nodes.id().cast_signed()));
    wait("counters of the pod", Duration::from_secs(60), || !of(&agent, pod_id).is_empty());
    agent.settle("metrics");
    let own: Vec<String> = of(&agent, pod_id).into_iter().collect();
    assert_eq!(own, [format!("{{interface: lo, netns: {}}}", number(alone.pid))]);
    let nodes = of(&agent, None);
    assert!(!nodes.is_empty() && nodes.iter().all(|l| l.ends_with(&format!("netns: {node}}}"))), "{nodes:?}");
    assert_eq!(of(&agent, other_id), BTreeSet::new(), "the node's own namespace is the node's");
    assert!(agent.stop());
}
