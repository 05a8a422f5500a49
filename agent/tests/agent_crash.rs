//! The real agent, killed by SIGKILL at random instants in one data folder: each next start recovers, a second of base
//! samples is the most that is lost, nothing is there twice, the ledger is exact and knows how long nobody recorded.
//!
//! Needs no privilege, but a cgroup v2 mount; without one it says that it was skipped. The bound of the test is wider than
//! a second, since the machine may be busy with other tests: `cargo xtask faults` prints what was measured.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/faults.rs"]
mod faults;

use agent::{Place, cgroup_root};
use faults::{Tally, random, rows_of};
use fgm::clock::ktime_ns;
use fgm::names::Table;
use fgm::query;
use fgm::store::{Store, View};
use std::collections::BTreeMap;
use std::time::Duration;

const PERIOD_MS: u64 = 100;
/// Without a journal it would be the rotation's minute.
const MOST_LOST_S: f64 = 3.0;

/// Last base sample of each cgroup since `from`.
fn last_samples(view: &View, from: u64) -> BTreeMap<i64, u64> {
    let mut last = BTreeMap::new();
    for rows in rows_of(view, Table::Samples) {
        for i in 0..rows.num_rows() {
            let ktime = query::int(&rows, "ktime_ns", i).expect("an instant").cast_unsigned();
            if query::text(&rows, "cause", i) == Some("base") && ktime >= from {
                let known: &mut u64 =
                    last.entry(query::int(&rows, "cgroup_id", i).expect("an id")).or_default();
                *known = (*known).max(ktime);
            }
        }
    }
    last
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "seconds of a test")]
fn a_killed_agent_loses_a_second_at_the_most_and_accounts_for_it() {
    let Some(root) = cgroup_root("a_killed_agent_loses_a_second_at_the_most_and_accounts_for_it") else {
        return;
    };
    let more = format!(
        "[sampling]\nbase_period_ms = {PERIOD_MS}\ninclude = [\"/**\"]\n[probes]\nenabled = false\n[rotation]\nevery_s = 2\n"
    );
    let place = Place::new(&root, &more);
    let mut tally = Tally::of("agent killed at any instant", 12);
    let mut seed = u64::from(std::process::id()) | 1;
    println!("seed {seed}");
    let mut down_ns = 0;
    let mut ended = None;
    for point in 0..tally.points {
        let spawned = ktime_ns();
        let mut agent = place.start();
        let ready = ktime_ns();
        std::thread::sleep(Duration::from_millis(random(&mut seed) % 2500));
        let killed = ktime_ns();
        agent.signal("KILL");
        let status = agent.ended();
        assert_eq!(status.code(), None, "{}", agent.log());
        let view = Store::open_read_only(&place.data()).expect("readable").view();
        tally.examine(&view, &format!("point {point}"));
        let last = last_samples(&view, spawned);
        // of the newest: a cgroup of somebody else may have gone meanwhile
        let lost_ns = last.values().max().map_or(killed - ready, |at| killed.saturating_sub(*at));
        let lost_s = lost_ns.saturating_sub(PERIOD_MS * 1_000_000) as f64 / 1e9;
        println!("point {point}: {lost_s:.3} s of {} cgroups lost", last.len());
        tally.base_seconds_lost_max = tally.base_seconds_lost_max.max(lost_s);
        if let (Some(before), Some(first)) = (ended, last.values().min()) {
            down_ns += first.saturating_sub(before);
        }
        ended = last.values().max().copied().or(ended);
    }
    let view = Store::open(&place.data()).expect("recovers").view();
    tally.examine(&view, "the end");
    let account = faults::ledger(&view).of(Table::Samples).cloned().expect("samples");
    assert!(account.written > 0 && down_ns > 0);
    if tally.points > 1 {
        assert!(account.lost.get("agent_down").is_some_and(|n| *n > 0), "{account:?}");
    }
    tally.settle();
    assert!(tally.base_seconds_lost_max < MOST_LOST_S, "{tally:?}");
}
