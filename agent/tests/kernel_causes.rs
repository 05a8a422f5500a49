//! Why a container ended: limits that fell, a kill that no limit asked for, a container that hardly lived. Run like
//! `kernel_agent.rs`, whose stage it shares.
//!
//! Truth: pids that the processes print themselves, wait(2), inode numbers, clocks read before and after by the test.

#[expect(dead_code, reason = "shared with kernel_agent.rs, which uses the rest")]
#[path = "kernel_agent/stage.rs"]
mod stage;
#[path = "kernel_causes/told.rs"]
mod told;

use fgm::clock::wall_us;
use serde_json::Value;
use stage::{Agent, Cgroup, MIB, Pod, Process, guard};
use std::{fs, process::Command, thread, time::Duration};
use told::{begin, details, summary};

const LIMIT: Duration = Duration::from_secs(150);

/// Not a test: the body of the processes that the tests start from this very binary.
#[test]
fn child_role() {
    if let Ok(role) = std::env::var(stage::ROLE) {
        stage::play(&role);
    }
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
    agent.settle("events");
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

    agent.settle("events");
    let told = details(&agent, "limit_change");
    let of = |cgroup: &Cgroup| told.iter().filter(|(id, _)| *id == Some(cgroup.id().cast_signed())).count();
    assert_eq!((of(&app), of(&later), told.len()), (1, 1, 2), "the first setting is no change: {told:?}");
}

#[test]
fn a_kill_without_a_limit_is_told_for_what_it_is() {
    if !guard("a_kill_without_a_limit_is_told_for_what_it_is") {
        return;
    }
    let agent = Agent::start("node", "").spared_by_the_oom_killer();
    let pod = Pod::new(None);
    let asked = pod.container(None);
    let mut sitter = Process::spawn("sit 40", &asked);
    sitter.wait_ready();
    first_to_go(&sitter);
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

    // The kernel is to keep half of what is free; its marks end at one and a half of that, so that when the process has gone
    // nothing presses any more: with more than that it went on to kill those who look on.
    fs::write("/proc/sys/vm/drop_caches", "3").expect("drop_caches");
    let hungry = pod.container(None);
    let reserve = Reserve::keep_free(meminfo("MemFree") / 2);
    let mut hog = Process::spawn("greedy 1900", &hungry);
    first_to_go(&hog);
    let ended = hog.wait();
    drop(reserve);
    assert_eq!(ended.1, Some(9));
    let i = agent.closed_incident_of(&hungry, LIMIT);
    assert_eq!((&i["limit"]["source"], &i["limit"]["cgroup_id"]), (&"global".into(), &Value::Null), "{i}");
    assert_eq!(pid_of(&i["victims"][0]), Some(hog.pid), "{i}");
    assert!(summary(&i).contains("the node itself had run out of memory"), "{i}");
}

/// Neither the agent nor this test.
fn first_to_go(process: &Process) {
    fs::write(format!("/proc/{}/oom_score_adj", process.pid), "1000").expect("oom_score_adj");
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
