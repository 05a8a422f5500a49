//! The real agent over a folder with hours that are to be merged and hours that are too old: its upkeep does both while the loop goes
//! on sampling, no row is lost or doubled, and the loop is no later than without it.
//!
//! Needs no privilege, but a cgroup v2 mount; without one it says that it was skipped. The bound on time is wide, since the machine may be
//! busy with other tests; what was measured is printed.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/faults.rs"]
mod faults;
#[path = "support/rows.rs"]
mod rows;

use agent::{Place, cgroup_root, get, wait};
use fgm::accumulator::{NodeNames, Pending, Stamp};
use fgm::ledger::Accounts;
use fgm::names::Table;
use fgm::query::{self, Filter};
use fgm::segment::{HOUR_US, hour_of};
use fgm::store::{SealResult, Store, View, Writer};
use serde_json::Value;
use std::time::Duration;

const PERIOD_MS: i64 = 100;
/// A gap between two samples that is no more than the machine's own.
const LATE_MS: i64 = 3000;
const CGROUPS: i64 = 20;
const SEGMENTS: i64 = 8;

/// Samples of an hour in some segments, with their account.
fn hour(writer: &Writer, hour_us: i64) -> u64 {
    let (tell, told) = crossbeam_channel::unbounded();
    let mut written = 0;
    for part in 0..SEGMENTS {
        let seconds = (part * 3600 / SEGMENTS..(part + 1) * 3600 / SEGMENTS).step_by(5);
        let at = seconds.flat_map(|s| (0..CGROUPS).map(move |c| (c, hour_us + s * 1_000_000 + c)));
        let samples: Vec<_> = at.map(|(c, at)| rows::base(rows::QUIET + c, at)).collect();
        let samples = (Table::Samples, rows::batch(Table::Samples, &samples));
        let mut account = Accounts::default();
        account.written(Table::Samples, samples.1.num_rows() as u64);
        written += samples.1.num_rows() as u64;
        let wall_us = hour_us + (part + 1) * 3600 / SEGMENTS * 1_000_000 - 1;
        let ledger = account.rows(Stamp { ktime_ns: wall_us.unsigned_abs(), wall_us });
        let names = NodeNames { cluster: None, node: rows::NODE.into(), boot_id: rows::BOOT_ID.into() };
        let ledger = Pending { ledger, ..Pending::default() }.batch(Table::Ledger, &names).expect("a batch");
        writer.seal(1, vec![samples, (Table::Ledger, ledger)], rows::metadata(), Some(tell.clone()));
        assert!(matches!(told.recv_timeout(agent::LIMIT), Ok(SealResult::Stored { .. })));
    }
    written
}

fn status(port: u16) -> Value {
    let answer = get(port, "/api/status");
    answer.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok()).unwrap_or_default()
}

/// The longest gap between two base samples of one cgroup that the agent made, in ms, and how many it made.
fn longest_gap(view: &View, boot: &str) -> (i64, u64) {
    let filter = Filter { boot: Some(boot.to_owned()), ..Filter::range(i64::MIN, i64::MAX) };
    let columns = ["ts", "ktime_ns", "cgroup_id", "cause"];
    let (batches, _) =
        query::rows(view, Table::Samples, &filter, Some(&columns), u64::MAX).expect("readable");
    let mut last: Option<(Option<i64>, i64)> = None;
    let (mut longest, mut count) = (0, 0);
    for rows in &batches {
        for i in (0..rows.num_rows()).filter(|i| query::text(rows, "cause", *i) == Some("base")) {
            let own =
                (query::int(rows, "cgroup_id", i), query::int(rows, "ktime_ns", i).expect("an instant"));
            if let Some((_, at)) = last.filter(|(cgroup, _)| *cgroup == own.0) {
                longest = longest.max((own.1 - at) / 1_000_000);
            }
            (last, count) = (Some(own), count + 1);
        }
    }
    (longest, count)
}

#[test]
fn upkeep_of_a_running_agent_merges_and_removes_and_the_loop_goes_on() {
    let Some(root) = cgroup_root("upkeep_of_a_running_agent_merges_and_removes_and_the_loop_goes_on") else {
        return;
    };
    let more = format!(
        "[sampling]\nbase_period_ms = {PERIOD_MS}\ninclude = [\"/**\"]\n[probes]\nenabled = false\n[rotation]\nevery_s = 5\n\
         [retention]\nmax_age_h = 24\n"
    );
    let place = Place::new(&root, &more);
    let now = hour_of(fgm::clock::wall_us());
    let writer = Writer::start(Store::open(&place.data()).expect("opens"), rows::BOOT_ID).expect("starts");
    let (young, old) = (hour(&writer, now - 3 * HOUR_US), hour(&writer, now - 50 * HOUR_US));
    writer.shutdown(agent::LIMIT).expect("in time");
    let mut agent = place.start();
    let done = |all: &Value| {
        let store = &all["store"];
        let (made, gone) = (&store["compaction"]["made"], &store["retention"]["rows"]["samples"]);
        made.as_u64() >= Some(4) && gone.as_u64() == Some(old)
    };
    wait("the upkeep", || done(&status(place.port)));
    let all = status(place.port);
    assert!(all["store"]["compaction"]["error"].is_null() && all["store"]["degraded"].is_null(), "{all}");
    // a rotation more, so that what was sampled meanwhile is in segments
    std::thread::sleep(Duration::from_secs(6));
    agent.signal("TERM");
    assert!(agent.ended().success(), "{}", agent.log());
    let store = Store::open(&place.data()).expect("opens");
    let view = store.view();
    let merged = |from_us| view.segments.iter().filter(move |s| s.merged.is_some() && s.from_us >= from_us);
    assert_eq!(merged(0).filter(|s| s.table == Table::Samples).map(|s| s.rows).sum::<u64>(), young);
    assert!(merged(0).all(|s| s.to_us > now - 24 * HOUR_US), "what is too old has gone");
    assert_eq!(store.removed().rows["samples"], old);
    let own = view.segments.iter().find(|s| s.name.boot != rows::BOOT_ID.replace('-', "")).expect("its own");
    let (gap_ms, samples) = longest_gap(&view, &own.name.boot);
    let late =
        faults::ledger(&view).of(Table::Samples).and_then(|a| a.lost.get("late").copied()).unwrap_or(0);
    println!("longest gap {gap_ms} ms at a period of {PERIOD_MS} ms in {samples} samples, {late} late");
    assert!(samples > 100 && gap_ms < LATE_MS, "{gap_ms} ms, {samples} samples");
    let inspected = std::process::Command::new(env!("CARGO_BIN_EXE_fgm"))
        .arg("inspect")
        .arg(place.data())
        .output()
        .expect("fgm");
    assert!(inspected.status.success(), "{}", String::from_utf8_lossy(&inspected.stdout));
}
