//! What comes after: the container that takes the place of a dead one, rows across a jump of the wall clock and across a stall, and a bucket that does not
//! answer. Run like
//! `kernel_agent.rs`, whose stage it shares.
//!
//! Truth: inode numbers, and clocks read before and after by the test.

#[expect(dead_code, reason = "shared with kernel_agent.rs, which uses the rest")]
#[path = "kernel_agent/stage.rs"]
mod stage;
#[path = "kernel_causes/told.rs"]
mod told;

use arrow::{array::AsArray, datatypes::TimestampMicrosecondType};
use fgm::clock::{ktime_ns, wall_us};
use fgm::query;
use serde_json::Value;
use stage::{Agent, Cgroup, Pod, guard, ints, rows, wait};
use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    process::{Command, Stdio},
    thread,
    time::Duration,
};
use told::{begin, details, summary};

const LIMIT: Duration = Duration::from_secs(150);
const SECOND: i64 = 1_000_000;
/// Of the monotonic clock, ns.
const MILLI: i64 = 1_000_000;

#[test]
fn the_container_that_takes_the_place_of_a_dead_one_is_linked() {
    if !guard("the_container_that_takes_the_place_of_a_dead_one_is_linked") {
        return;
    }
    let agent = Agent::start("restart", "");
    let kill = |app: &Cgroup| {
        let mut init = begin("sleep 60", app);
        // after its exec and not before
        wait("the init's program", Duration::from_secs(30), || {
            fs::read_to_string(format!("/proc/{}/cmdline", init.pid)).is_ok_and(|c| c.contains("sleep"))
        });
        thread::sleep(Duration::from_secs(1));
        assert!(Command::new("kill").args(["-9", &init.pid.to_string()]).status().expect("kill").success());
        assert_eq!(init.wait().1, Some(9));
    };
    let of = |id: &str| agent.incidents().into_iter().find(|i| i["id"] == id).expect("the incident");
    let pod = Pod::new(None);
    let app = pod.container(None);
    kill(&app);
    let closed = agent.closed_incident_of(&app, LIMIT);
    let id = closed["id"].as_str().expect("an id").to_owned();
    drop(app);
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
    for app in [&one, &two] {
        kill(app);
    }
    let _third = pod.container(None);
    for app in [&one, &two] {
        // an incident closes seconds after the start of the third
        assert!(agent.closed_incident_of(app, LIMIT)["restart"].is_null());
    }

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
    let steps = [("+1 hour", 3600 * SECOND), ("-2 hours", -7200 * SECOND), ("+1 hour", 3600 * SECOND)];
    for (number, (by, wanted)) in (1..).zip(steps) {
        let (wall, ktime) = (wall_us(), ktime_ns());
        assert!(
            Command::new("date").args(["-s", by]).stdout(Stdio::null()).status().expect("date").success()
        );
        let passed = i64::try_from((ktime_ns() - ktime) / 1000).expect("short");
        let truth = wall_us() - wall - passed;
        assert!((truth - wanted).abs() < 2 * SECOND, "the clock was set by {truth} µs");
        wait("the step", LIMIT, || agent.status()["clock_steps"]["count"] == number);
        let step = agent.status()["clock_steps"]["last"].clone();
        let seen = step["wall_step_ns"].as_i64().expect("a number") / 1000;
        assert!((seen - truth).abs() < SECOND / 10, "{seen} for {truth}");
        assert_eq!(step["suspended_ns"], 0);
        thread::sleep(Duration::from_secs(4));
    }
    wait("the events", LIMIT, || details(&agent, "clock_step").len() == 3);
    let mut all = Vec::new();
    wait("rows whose wall time jumps as the clock did", LIMIT, || {
        all = instants(&agent, &app);
        let jumps = all.windows(2).map(|w| (w[1].1 - w[0].1) - (w[1].0 - w[0].0) / 1000);
        jumps.filter(|j| j.abs() > 60 * SECOND).count() == 3
    });
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

/// Base rows that are missing between two of a cgroup's around a time, of all cgroups; and how many of these there are.
fn missing(agent: &Agent, (from, to): (i64, i64)) -> (i64, i64) {
    let mut all: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for batch in agent.stored("samples") {
        for (row, (id, ktime)) in
            ints(&batch, "cgroup_id").into_iter().zip(ints(&batch, "ktime_ns")).enumerate()
        {
            if query::text(&batch, "cause", row) == Some("base") {
                all.entry(id.expect("an id")).or_default().push(ktime.expect("ktime"));
            }
        }
    }
    let (mut rows, mut cgroups) = (0, 0);
    for at in all.values_mut() {
        at.sort_unstable();
        if let Some(around) = at.windows(2).find(|w| w[0] < from && w[1] > to) {
            rows += (around[1] - around[0] + 500 * MILLI) / (1000 * MILLI) - 1;
            cgroups += 1;
        }
    }
    (rows, cgroups)
}

/// A recorder that is given no turn.
#[test]
fn a_stall_loses_its_own_seconds_and_says_how_many_rows_that_is() {
    if !guard("a_stall_loses_its_own_seconds_and_says_how_many_rows_that_is") {
        return;
    }
    let agent = Agent::start("stall", "");
    let pod = Pod::new(None);
    let app = pod.container(None);
    let _idle = begin("sleep 100", &app);
    wait("rows in a file", LIMIT, || instants(&agent, &app).len() >= 4);
    let account = || agent.status()["ledger"]["samples"].clone();
    let late = |account: &Value| account["lost"]["late"].as_i64().unwrap_or(0);
    let (before, late_before) = (instants(&agent, &app), late(&account()));
    let (from, to) = agent.halted(|| {
        let from = ktime_ns().cast_signed();
        thread::sleep(Duration::from_secs(8));
        (from, ktime_ns().cast_signed())
    });
    let mut after = Vec::new();
    wait("rows of after it", LIMIT, || {
        after = instants(&agent, &app);
        after.iter().filter(|(ktime, _)| *ktime > to).count() >= 3
    });
    assert!(before.iter().all(|row| after.contains(row)), "what was recorded stays");
    // the signal may find it in the middle of a row
    let during = after.iter().filter(|(ktime, _)| (from + 500 * MILLI..to).contains(ktime)).count();
    assert_eq!(during, 0, "nobody took these");
    let (rows, cgroups) = missing(&agent, (from + 500 * MILLI, to));
    let account = account();
    let told = late(&account) - late_before;
    println!("{rows} rows of {cgroups} cgroups are missing around the stall; the account has {told} more");
    assert!(cgroups >= 2 && rows >= 7 * cgroups, "{rows} rows of {cgroups} cgroups");
    // this machine may be late at other times too
    assert!((rows - cgroups..=rows + rows / 2).contains(&told), "{told} told, {rows} missing: {account}");
    let lost: i64 = account["lost"].as_object().expect("reasons").values().filter_map(Value::as_i64).sum();
    assert_eq!(account["due"].as_i64(), account["written"].as_i64().map(|w| w + lost), "{account}");
}

/// A bucket that takes connections and never answers.
#[test]
fn a_dead_bucket_makes_no_row_late() {
    if !guard("a_dead_bucket_makes_no_row_late") {
        return;
    }
    let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
    let endpoint = silent.local_addr().expect("bound");
    let dead = format!(
        "[ship]\nurl = \"s3://evidence/x\"\nendpoint = \"http://{endpoint}\"\nregion = \"here\"\ntimeout_s = 1\nretry_max_s = 1\n"
    );
    // by how much the rows of a container are apart from their period, ms, at nine of ten, and attempts to ship that failed
    let late = |name: &str, config: &str| {
        let words = vec!["env", "AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY=b"];
        let agent = Agent::start_under_with(name, words, config);
        let (pod, other) = (Pod::new(None), Pod::new(None));
        let (app, steady) = (pod.container(None), other.container(None));
        let _idle = begin("sleep 100", &steady);
        // an incident wants to be shipped at once
        let mut init = begin("sleep 60", &app);
        thread::sleep(Duration::from_secs(1));
        assert!(Command::new("kill").args(["-9", &init.pid.to_string()]).status().expect("kill").success());
        assert_eq!(init.wait().1, Some(9));
        agent.closed_incident_of(&app, LIMIT);
        let failures = || agent.status()["ship"]["failures"].as_u64().unwrap_or(0);
        let mut all = Vec::new();
        // the client tries some times on its own before it says so
        wait("rows of half a minute, and an attempt that failed", 3 * LIMIT, || {
            all = instants(&agent, &steady);
            all.len() > 30 && (config.is_empty() || failures() > 0)
        });
        let mut off: Vec<i64> =
            all.windows(2).map(|w| ((w[1].0 - w[0].0) / 1_000_000 - 1000).abs()).collect();
        off.sort_unstable();
        (off[off.len() * 9 / 10], failures())
    };
    let (without, none) = late("no-bucket", "");
    let (with, failed) = late("dead-bucket", &dead);
    println!(
        "rows are {without} ms off their period without a bucket, {with} ms with one that is dead; {failed} attempts failed"
    );
    assert!(none == 0 && failed >= 1, "{failed} attempts failed");
    assert!(with <= without + 100, "{with} ms and {without} ms");
}
