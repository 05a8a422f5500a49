//! Why a container ended and what came after: limits that fell, a kill that no limit asked for, a container that hardly
//! lived, the one that takes its place, and a wall clock that jumps. Run like `kernel_agent.rs`, whose stage it shares.
//!
//! Truth: pids that the processes print themselves, wait(2), inode numbers, clocks read before and after by the test.

#[expect(dead_code, reason = "shared with kernel_agent.rs, which uses the rest")]
#[path = "kernel_agent/stage.rs"]
mod stage;

use arrow::{array::AsArray, datatypes::TimestampMicrosecondType};
use fgm::clock::{ktime_ns, wall_us};
use serde_json::Value;
use stage::{Agent, Cgroup, MIB, Pod, Process, guard, ints, rows, texts, wait};
use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(90);
const SECOND: i64 = 1_000_000;

/// Not a test: the body of the processes that the tests start from this very binary.
#[test]
fn child_role() {
    if let Ok(role) = std::env::var(stage::ROLE) {
        stage::play(&role);
    }
}

/// A program that begins in the cgroup: what starts it goes in first, then becomes it, as a runtime does.
fn begin(script: &str, cgroup: &Cgroup) -> Process {
    let child = Command::new("sh")
        .args(["-c", "echo 0 > \"$0\" && exec sh -c \"$1\""])
        .arg(cgroup.path.join("cgroup.procs"))
        .arg(script)
        .stdin(Stdio::null())
        .spawn()
        .expect("sh");
    Process { pid: child.id(), child }
}

/// Writes by a shell of its own, whose pid it gives.
fn write_by_somebody(cgroup: &Cgroup, file: &str, text: &str) -> u32 {
    let path = cgroup.path.join(file);
    let out = Command::new("sh").args(["-c", "echo $$; echo \"$1\" > \"$0\""]).arg(path).arg(text).output();
    String::from_utf8(out.expect("sh").stdout).expect("text").trim().parse().expect("a pid")
}

fn pid_of(value: &Value) -> Option<u32> {
    value["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
}

fn summary(incident: &Value) -> &str {
    incident["summary"].as_str().expect("a summary")
}

/// The details of all events of a kind, in closed segments.
fn details(agent: &Agent, wanted: &str) -> Vec<(Option<i64>, Value)> {
    let mut out = Vec::new();
    for batch in agent.stored("events") {
        let (ids, kinds, details) =
            (ints(&batch, "cgroup_id"), texts(&batch, "kind"), texts(&batch, "detail"));
        for ((id, kind), detail) in ids.into_iter().zip(kinds).zip(details) {
            if kind.as_deref() == Some(wanted) {
                out.push((id, serde_json::from_str(&detail.expect("a detail")).expect("JSON")));
            }
        }
    }
    out
}

#[test]
fn the_end_of_a_container_that_lives_a_fifth_of_a_second_is_told_as_its_inits() {
    if !guard("the_end_of_a_container_that_lives_a_fifth_of_a_second_is_told_as_its_inits") {
        return;
    }
    let agent = Agent::start("brief", "");
    let pod = Pod::new(None);
    // another process of it ends before, and one of its init's children after the init
    for script in ["sleep 0.2; exit 3", "sh -c 'exit 4'; sleep 3 & exit 3"] {
        let app = pod.container(None);
        let mut init = begin(script, &app);
        assert_eq!(init.wait().0, Some(3));
        let i = agent.closed_incident_of(&app, LIMIT);
        assert_eq!((&i["kind"], &i["exit"]["code"]), (&"crash".into(), &3.into()), "{i}");
        assert_eq!(pid_of(&i["victims"][0]), Some(init.pid), "{i}");
    }
    let exits = details(&agent, "exit");
    assert_eq!(exits.iter().filter(|(_, detail)| detail["is_init"] == true).count(), 2, "{exits:?}");
}

#[test]
fn a_limit_that_was_lowered_is_told_and_who_did_it_where_the_kernel_shows_it() {
    if !guard("a_limit_that_was_lowered_is_told_and_who_did_it_where_the_kernel_shows_it") {
        return;
    }
    let agent = Agent::start("limit", "");
    let pod = Pod::new(None);
    // below what is in use: the kernel kills for the writer
    let app = pod.container(Some(200 * MIB));
    let mut init = Process::spawn("hold 80", &app);
    init.wait_ready();
    thread::sleep(Duration::from_secs(3));
    let writer = write_by_somebody(&app, "memory.max", &(32 * MIB).to_string());
    assert_eq!(init.wait().1, Some(9));
    let i = agent.closed_incident_of(&app, LIMIT);
    let change = &i["limit_change"];
    assert_eq!(i["limit"]["max_bytes"].as_u64(), Some(32 * MIB), "{i}");
    assert_eq!(
        (change["before_bytes"].as_u64(), change["after_bytes"].as_u64(), change["cgroup_id"].as_u64()),
        (Some(200 * MIB), Some(32 * MIB), Some(app.id())),
        "{i}"
    );
    assert_eq!(pid_of(&change["by"]), Some(writer), "{i}");
    assert!(summary(&i).contains("from 200.0 MiB to 32.0 MiB") && !summary(&i).contains("asked for"), "{i}");

    // below what will be in use: who wrote it is not seen, when it was written is
    let later = pod.container(Some(300 * MIB));
    let mut first = Process::spawn("hold 1", &later);
    first.wait_ready();
    thread::sleep(Duration::from_secs(3));
    let before = wall_us();
    write_by_somebody(&later, "memory.max", &(64 * MIB).to_string());
    let after = wall_us();
    thread::sleep(Duration::from_secs(3));
    let mut hog = Process::spawn("ramp 100 1", &later);
    assert_eq!(hog.wait().1, Some(9));
    let i = agent.closed_incident_of(&later, LIMIT);
    let change = &i["limit_change"];
    assert_eq!(
        (change["before_bytes"].as_u64(), change["after_bytes"].as_u64()),
        (Some(300 * MIB), Some(64 * MIB)),
        "{i}"
    );
    let (not_before, not_after) = (change["not_before_us"].as_i64(), change["not_after_us"].as_i64());
    // the offset to the wall clock is measured once a second
    assert!(not_before < Some(after + 5000) && not_after > Some(before - 5000), "{before}-{after}: {i}");
    assert!(change["by"].is_null() && summary(&i).contains("who wrote it: cause not observed"), "{i}");

    let told = details(&agent, "limit_change");
    let of = |cgroup: &Cgroup| told.iter().filter(|(id, _)| *id == Some(cgroup.id().cast_signed())).count();
    assert_eq!((of(&app), of(&later), told.len()), (1, 1, 2), "the first setting is no change: {told:?}");
}

#[test]
fn a_kill_without_a_limit_is_told_for_what_it_is() {
    if !guard("a_kill_without_a_limit_is_told_for_what_it_is") {
        return;
    }
    let agent = Agent::start("node", "");
    let pod = Pod::new(None);
    let asked = pod.container(None);
    let mut sitter = Process::spawn("sit 40", &asked);
    sitter.wait_ready();
    thread::sleep(Duration::from_secs(2));
    fs::write("/proc/sysrq-trigger", "f").expect("SysRq");
    assert_eq!(sitter.wait().1, Some(9));
    let i = agent.closed_incident_of(&asked, LIMIT);
    assert_eq!(
        (&i["limit"]["source"], &i["limit"]["cgroup_id"]),
        (&"global_sysrq".into(), &Value::Null),
        "{i}"
    );
    assert!(summary(&i).contains("SysRq") && summary(&i).contains("cause not observed"), "{i}");

    // the node is as good as full when the kernel must keep free almost all that it could give
    let available = meminfo("MemAvailable");
    let hungry = pod.container(None);
    let reserve = Reserve::keep_free(available.saturating_sub(300 * 1024));
    let mut hog = Process::spawn("greedy 900", &hungry);
    let ended = hog.wait();
    drop(reserve);
    assert_eq!(ended.1, Some(9));
    let i = agent.closed_incident_of(&hungry, LIMIT);
    assert_eq!((&i["limit"]["source"], &i["limit"]["cgroup_id"]), (&"global".into(), &Value::Null), "{i}");
    assert_eq!(pid_of(&i["victims"][0]), Some(hog.pid), "{i}");
    assert!(summary(&i).contains("the node itself had run out of memory"), "{i}");
}

fn meminfo(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("meminfo");
    let value = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')?.trim().strip_suffix(" kB"));
    value.and_then(|v| v.parse().ok()).expect("a number")
}

/// Makes the kernel keep this much memory free, until dropped.
struct Reserve(String);

impl Reserve {
    const FILE: &str = "/proc/sys/vm/min_free_kbytes";

    fn keep_free(kib: u64) -> Self {
        let before = Self(fs::read_to_string(Self::FILE).expect("min_free_kbytes"));
        fs::write(Self::FILE, kib.to_string()).expect("min_free_kbytes");
        before
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        let _ = fs::write(Self::FILE, &self.0);
    }
}

#[test]
fn the_container_that_takes_the_place_of_a_dead_one_is_linked() {
    if !guard("the_container_that_takes_the_place_of_a_dead_one_is_linked") {
        return;
    }
    let agent = Agent::start("restart", "");
    let killed = |app: &Cgroup| {
        let mut init = begin("sleep 60", app);
        // after its exec and not before
        wait("the init's program", Duration::from_secs(30), || {
            fs::read_to_string(format!("/proc/{}/cmdline", init.pid)).is_ok_and(|c| c.contains("sleep"))
        });
        thread::sleep(Duration::from_secs(1));
        assert!(Command::new("kill").args(["-9", &init.pid.to_string()]).status().expect("kill").success());
        assert_eq!(init.wait().1, Some(9));
        agent.closed_incident_of(app, LIMIT)["id"].as_str().expect("an id").to_owned()
    };
    let of = |id: &str| agent.incidents().into_iter().find(|i| i["id"] == id).expect("the incident");
    let pod = Pod::new(None);
    let app = pod.container(None);
    let id = killed(&app);
    drop(app);
    let closed = of(&id);
    assert!(closed["restart"].is_null(), "{closed}");
    let before = ktime_ns();
    let next = pod.container(None);
    let after = ktime_ns();
    wait("the link", LIMIT, || !of(&id)["restart"].is_null());
    let i = of(&id);
    assert_eq!(i["restart"]["container_id"].as_str(), Some(next.container_id.as_str()));
    assert_eq!(i["restart"]["cgroup_id"].as_u64(), Some(next.id()));
    let started = i["restart"]["started_ktime_ns"].as_u64().expect("an instant");
    assert!((before..=after).contains(&started), "{before} {started} {after}");
    assert_eq!(
        (&i["closed"], i["revision"].as_u64()),
        (&true.into(), closed["revision"].as_u64().map(|r| r + 1))
    );
    assert!(summary(&i).contains("took its place"), "{}", summary(&i));

    // of two places that are free at once none is linked
    let pod = Pod::new(None);
    let (one, two) = (pod.container(None), pod.container(None));
    let ids = [killed(&one), killed(&two)];
    let third = pod.container(None);
    wait("a row of it", LIMIT, || {
        details(&agent, "cgroup_start").iter().any(|(id, _)| *id == Some(third.id().cast_signed()))
    });
    assert!(ids.iter().all(|id| of(id)["restart"].is_null()));

    // the revision is on disk
    let again = agent.kill_and_restart();
    let i = again.incidents().into_iter().find(|i| i["id"] == id.as_str()).expect("the incident");
    assert_eq!(i["restart"]["cgroup_id"].as_u64(), Some(next.id()), "{i}");
}

/// (`ktime_ns`, ts in µs) of a cgroup's rows in closed segments, in monotonic order.
fn instants(agent: &Agent, cgroup: &Cgroup) -> Vec<(i64, i64)> {
    let mut out = Vec::new();
    for batch in agent.stored("samples") {
        let ts = batch.column_by_name("ts").expect("ts").as_primitive::<TimestampMicrosecondType>().clone();
        let (ids, ktime) = (ints(&batch, "cgroup_id"), ints(&batch, "ktime_ns"));
        for ((id, ktime), ts) in ids.into_iter().zip(ktime).zip(&ts) {
            if id == Some(cgroup.id().cast_signed()) {
                out.push((ktime.expect("ktime"), ts.expect("ts")));
            }
        }
    }
    out.sort_unstable();
    out
}

#[test]
fn a_wall_clock_that_is_set_anew_takes_no_row_along() {
    if !guard("a_wall_clock_that_is_set_anew_takes_no_row_along") {
        return;
    }
    let agent = Agent::start("clock", "");
    let pod = Pod::new(None);
    let app = pod.container(None);
    let _steady = begin("sleep 100", &app);
    thread::sleep(Duration::from_secs(4));
    let begun = wall_us();
    let mut steps = 0;
    for (by, wanted) in [("+1 hour", 3600 * SECOND), ("-2 hours", -7200 * SECOND), ("+1 hour", 3600 * SECOND)]
    {
        let (wall, ktime) = (wall_us(), ktime_ns());
        assert!(
            Command::new("date").args(["-s", by]).stdout(Stdio::null()).status().expect("date").success()
        );
        let passed = i64::try_from((ktime_ns() - ktime) / 1000).expect("short");
        let truth = wall_us() - wall - passed;
        assert!((truth - wanted).abs() < 2 * SECOND, "the clock was set by {truth} µs");
        steps += 1;
        wait("the step", LIMIT, || agent.status()["clock_steps"]["count"] == steps);
        let step = agent.status()["clock_steps"]["last"].clone();
        let seen = step["wall_step_ns"].as_i64().expect("a number") / 1000;
        assert!((seen - truth).abs() < SECOND / 10, "{seen} for {truth}");
        assert_eq!(step["suspended_ns"], 0);
        thread::sleep(Duration::from_secs(4));
    }
    wait("the events", LIMIT, || details(&agent, "clock_step").len() == 3);
    let all = instants(&agent, &app);
    let jumps: Vec<i64> = all.windows(2).map(|w| (w[1].1 - w[0].1) - (w[1].0 - w[0].0) / 1000).collect();
    let large = |j: &&i64| j.abs() > 60 * SECOND;
    assert_eq!(
        jumps.iter().filter(large).count(),
        3,
        "the wall time of the rows jumps as the clock did: {jumps:?}"
    );
    let apart = all.windows(2).map(|w| w[1].0 - w[0].0).max().expect("rows");
    assert!(all.windows(2).all(|w| w[0].0 < w[1].0) && apart < 10_000_000_000, "a gap of {apart} ns");
    // a range that has both hours has all rows
    let path = format!(
        "/api/export?format=parquet&from={}&to={}&containers={}",
        (begun - 7200 * SECOND) / SECOND,
        (begun + 7200 * SECOND) / SECOND,
        app.container_id
    );
    let exported: Vec<_> = rows(&agent.get_ok(&path)).into_iter().map(|r| r.ktime_ns).collect();
    assert!(all.iter().all(|(ktime, _)| exported.contains(ktime)), "{} of {}", exported.len(), all.len());
    assert!(agent.stop());
}
