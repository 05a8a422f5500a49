//! The agent without BPF: capabilities taken away, it finds cgroups and OOM kills by inotify, and where that is short, by
//! looking. Run as root with --test-threads=1 in the test VM; elsewhere each test says that it was skipped and why.
//!
//! Truth is memory.events.local of the cgroups, memory.events of the pod (which remembers cgroups that have gone) and
//! wait(2).

#[expect(dead_code, reason = "the stage serves the tests with BPF as well")]
#[path = "kernel_agent/stage.rs"]
mod stage;

use serde_json::Value;
use stage::{Agent, Cgroup, MIB, Pod, Process, guard, rows, wait};
use std::fs;
use std::time::Duration;

const NO_CAPABILITIES: [&str; 3] = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
const LONG: Duration = Duration::from_secs(90);

/// Not a test: the body of the processes that the tests start from this very binary.
#[test]
fn child_role() {
    if let Ok(role) = std::env::var(stage::ROLE) {
        stage::play(&role);
    }
}

fn start(name: &str, kills_from: &str, cgroups_from: &str) -> Agent {
    let agent = Agent::start_under(name, NO_CAPABILITIES.into());
    let status = agent.status();
    assert_eq!(status["ladder"]["level"], "no_bpf", "{}", status["ladder"]);
    let n = &status["notices"];
    assert_eq!(
        (n["kills_from"].as_str(), n["cgroups_from"].as_str()),
        (Some(kills_from), Some(cgroups_from))
    );
    assert_eq!(status["lane"]["source"], "pread", "{}", status["lane"]);
    agent
}

/// A counter knows where and how often, and nothing of who.
fn is_told_by_a_counter(i: &Value, of: &Cgroup, limit: u64, max: u64) {
    assert_eq!((i["kind"].as_str(), i["cgroup_id"].as_u64()), (Some("oom_kill"), Some(of.id())));
    assert_eq!(i["container_id"].as_str(), Some(of.container_id.as_str()));
    let victims = i["victims"].as_array().expect("victims");
    assert_eq!(victims.len() as u64, of.events_local("oom_kill"), "as many as the kernel counted: {i}");
    assert!(victims.iter().all(|v| v["pid"].is_null() && v["comm"].is_null()), "{i}");
    assert!(victims.iter().all(|v| v["cgroup_id"].as_u64() == Some(of.id())), "{i}");
    assert!(i["trigger"].is_null(), "{i}");
    assert_eq!(i["limit"]["source"], "events_local", "{i}");
    assert_eq!(
        (i["limit"]["cgroup_id"].as_u64(), i["limit"]["max_bytes"].as_u64()),
        (Some(limit), Some(max))
    );
    assert!(i["summary"].as_str().is_some_and(|s| s.contains("not observed")), "{}", i["summary"]);
}

fn all_victims(agent: &Agent) -> u64 {
    agent.incidents().iter().filter_map(|i| i["victims"].as_array()).map(|v| v.len() as u64).sum()
}

#[test]
fn inotify_finds_a_childs_kill_and_a_group_kill() {
    if !guard("inotify_finds_a_childs_kill_and_a_group_kill") {
        return;
    }
    let agent = start("inotify", "inotify", "inotify");
    let pod = Pod::new(None);
    let app = pod.container(Some(64 * MIB));
    let _init = Process::spawn("init 3 100 3", &app);
    let i = agent.closed_incident_of(&app, LONG);
    is_told_by_a_counter(&i, &app, app.id(), 64 * MIB);
    assert_eq!(app.events_local("oom_kill"), 1);
    assert!(i["last_sample_before_ms"].as_f64().is_some_and(|ms| ms >= 0.0), "{i}");
    let table = rows(&agent.export(i["id"].as_str().expect("id"), "parquet"));
    for cause in ["base", "history", "burst"] {
        let n = table.iter().filter(|r| r.cgroup_id == app.id().cast_signed() && r.cause == cause).count();
        assert!(n > 3, "{n} rows of {cause}");
    }

    let group = pod.container(Some(64 * MIB));
    group.write("memory.oom.group", "1");
    let mut sitters: Vec<_> = (0..2).map(|_| Process::spawn("hold 4", &group)).collect();
    for s in &mut sitters {
        s.wait_ready();
    }
    assert_eq!(Process::spawn("ramp 100 1", &group).wait().1, Some(9));
    for s in &mut sitters {
        assert_eq!(s.wait().1, Some(9), "all of the group die");
    }
    is_told_by_a_counter(&agent.closed_incident_of(&group, LONG), &group, group.id(), 64 * MIB);

    let counted = pod.events("oom_kill");
    wait("all kills", LONG, || all_victims(&agent) >= counted);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(all_victims(&agent), counted, "each once");
    let n = agent.status()["notices"].clone();
    assert_eq!((n["kills_counted"].as_u64(), n["shortage"].is_null()), (Some(counted), true), "{n}");
    assert!(agent.stop());
}

#[test]
fn inotify_finds_a_kill_by_the_pods_limit() {
    if !guard("inotify_finds_a_kill_by_the_pods_limit") {
        return;
    }
    let agent = start("podlimit", "inotify", "inotify");
    let limited = Pod::new(Some(64 * MIB));
    let (victim, other) = (limited.container(None), limited.container(None));
    let mut sitter = Process::spawn("sit 40", &victim);
    sitter.wait_ready();
    let mut asker = Process::spawn("ramp 40 0", &other);
    assert_eq!(sitter.wait().1, Some(9), "the sitter was to be killed");
    asker.wait();
    is_told_by_a_counter(&agent.closed_incident_of(&victim, LONG), &victim, limited.id(), 64 * MIB);

    wait("all kills", LONG, || all_victims(&agent) >= limited.events("oom_kill"));
    assert_eq!(all_victims(&agent), limited.events("oom_kill"), "each once");
    assert!(agent.stop());
}

#[test]
fn kills_in_containers_that_live_an_instant_are_counted() {
    if !guard("kills_in_containers_that_live_an_instant_are_counted") {
        return;
    }
    let agent = start("instant", "inotify", "inotify");
    let pod = Pod::new(None);
    let mut born = Vec::new();
    for _ in 0..5 {
        let short = pod.container(Some(8 * MIB));
        assert_eq!(Process::spawn("ramp 64 0", &short).wait().1, Some(9));
        born.push(short.id().cast_signed());
        // it goes as soon as its process has
        drop(short);
    }
    let counted = pod.events("oom_kill");
    assert_eq!(counted, 5);
    wait("all kills", LONG, || all_victims(&agent) >= counted);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(all_victims(&agent), counted, "each once, in its container or in the pod");
    for i in agent.incidents() {
        let of = i["cgroup_id"].as_u64().expect("a cgroup");
        assert!(of == pod.id() || born.contains(&of.cast_signed()), "{i}");
    }
    agent.settle("events");
    let events = agent.stored_events();
    for kind in ["cgroup_start", "cgroup_end"] {
        let told = born.iter().filter(|id| events.iter().any(|(of, k, _)| *of == Some(**id) && k == kind));
        println!("{} of {} have a {kind}", told.count(), born.len());
    }
    // one that lives a little longer is told whole
    let longer = pod.container(None);
    let id = longer.id().cast_signed();
    std::thread::sleep(Duration::from_secs(1));
    drop(longer);
    std::thread::sleep(Duration::from_secs(4));
    agent.settle("events");
    let events = agent.stored_events();
    for kind in ["cgroup_start", "cgroup_end"] {
        assert_eq!(events.iter().filter(|(of, k, _)| *of == Some(id) && k == kind).count(), 1, "{kind}");
    }
    assert!(agent.stop());
}

/// A limit of the kernel, put back when the test is over.
struct Sysctl(&'static str, String);

impl Sysctl {
    fn set(name: &'static str, value: &str) -> Self {
        let path = format!("/proc/sys/fs/inotify/{name}");
        let before = fs::read_to_string(&path).expect("a sysctl");
        fs::write(&path, value).expect("set");
        Self(name, before)
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        let _ = fs::write(format!("/proc/sys/fs/inotify/{}", self.0), &self.1);
    }
}

#[test]
fn where_inotify_is_not_to_be_had_or_short_kills_are_found_by_looking() {
    if !guard("where_inotify_is_not_to_be_had_or_short_kills_are_found_by_looking") {
        return;
    }
    let pods = [Pod::new(None), Pod::new(None)];
    let apps = pods.each_ref().map(|pod| pod.container(Some(32 * MIB)));
    for (at, (name, sysctl, value, from, other)) in [
        ("poll", "max_user_instances", "0", "poll", "scan"),
        ("short", "max_user_watches", "8", "inotify", "inotify"),
    ]
    .into_iter()
    .enumerate()
    {
        let _limit = Sysctl::set(sysctl, value);
        let agent = start(name, from, other);
        wait("the shortage", LONG, || {
            let n = agent.status()["notices"].clone();
            n["shortage"]
                .as_str()
                .or(n["reason"].as_str())
                .is_some_and(|why| why.contains("fs.inotify.max_user"))
        });
        let n = agent.status()["notices"].clone();
        assert!(n["watches"]["held"].as_u64() <= Some(4), "half of what the user may have: {n}");
        let (pod, app) = (&pods[at], &apps[at]);
        let mut hog = Process::spawn("ramp 100 3", app);
        assert_eq!(hog.wait().1, Some(9));
        is_told_by_a_counter(&agent.closed_incident_of(app, LONG), app, app.id(), 32 * MIB);
        // born and gone between two looks
        let short = pod.container(Some(8 * MIB));
        assert_eq!(Process::spawn("ramp 64 0", &short).wait().1, Some(9));
        drop(short);
        wait("the pod's count", LONG, || all_victims(&agent) >= pod.events("oom_kill"));
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(all_victims(&agent), pod.events("oom_kill"), "each once");
        // cgroups are found by looking, too
        let late = pod.container(None);
        wait("the late one's rows", LONG, || {
            let path = format!("/api/export?format=parquet&range=1m&containers={}", late.container_id);
            agent.try_rows(&path).is_some_and(|rows| !rows.is_empty())
        });
        assert!(agent.stop());
    }
}

#[test]
fn with_probes_the_counters_find_nothing_that_was_missed() {
    if !guard("with_probes_the_counters_find_nothing_that_was_missed") {
        return;
    }
    let agent = Agent::start("checked", "");
    let pod = Pod::new(None);
    let apps: Vec<_> = (0..3).map(|_| pod.container(Some(32 * MIB))).collect();
    std::thread::sleep(Duration::from_secs(3));
    for app in &apps {
        assert_eq!(Process::spawn("ramp 100 1", app).wait().1, Some(9));
    }
    wait("the incidents", LONG, || all_victims(&agent) >= 3);
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(all_victims(&agent), pod.events("oom_kill"), "each once");
    let n = agent.status()["notices"].clone();
    assert_eq!(
        (n["kills_from"].as_str(), n["kills_missed_by_probes"].as_u64()),
        (Some("probes"), Some(0)),
        "{n}"
    );
    assert!(agent.stop());
}

#[test]
fn without_fentry_reclaim_is_told_by_its_tracepoints() {
    if !guard("without_fentry_reclaim_is_told_by_its_tracepoints") {
        return;
    }
    let agent = Agent::start_with("nofentry", "[probes]\nwithout = [\"fentry\"]\n");
    let ladder = agent.status()["ladder"].clone();
    assert_eq!(ladder["level"], "no_fentry", "{ladder}");
    let hooks = ladder["hooks"].as_array().expect("hooks");
    let of = |name: &str| hooks.iter().find(|h| h["hook"] == name).expect("the hook");
    for name in ["mm_vmscan_memcg_reclaim_begin", "mm_vmscan_memcg_reclaim_end"] {
        assert_eq!(of(name)["mechanism"], "tp_btf", "{ladder}");
    }
    assert!(
        of("try_to_free_mem_cgroup_pages")["error"].as_str().is_some_and(|e| e.contains("configuration"))
    );
    let pod = Pod::new(None);
    let app = pod.container(Some(32 * MIB));
    assert_eq!(Process::spawn("ramp 100 3", &app).wait().1, Some(9));
    let i = agent.closed_incident_of(&app, LONG);
    // the victim is known, the limit is by the files
    assert!(i["victims"][0]["pid"].is_u64(), "{i}");
    assert_eq!(
        (i["limit"]["source"].as_str(), i["limit"]["cgroup_id"].as_u64()),
        (Some("events_local"), Some(app.id()))
    );
    let own = Some(app.id().cast_signed());
    wait("the reclaim's event", LONG, || {
        agent.stored_events().iter().any(|(of, kind, _)| *of == own && kind == "memory_reclaim")
    });
    wait("the reclaim's totals", LONG, || agent.status()["reclaim"]["count"].as_u64() > Some(0));
    assert!(agent.stop());
}
