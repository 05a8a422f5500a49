//! The rules for a cluster, held against what was recorded in one: `fixtures/oom-kill-kubelet-1.20.json` is the record of a run on the test's
//! own cluster, whose kubelet leaves `memory.oom.group` at 0; what a kubelet since 1.28 makes of the same run is made of it here.
//! Tests only.

use super::Scenario;
use super::expect::{Expect, Verdict};
use super::play::{Played, Record};
use serde_json::{Value, json};

fn recorded() -> Record {
    serde_json::from_str(include_str!("fixtures/oom-kill-kubelet-1.20.json")).expect("a record")
}

/// With `memory.oom.group` the kernel marks each process of the container, the init ends by signal 9, and Kubernetes says 137.
fn since_1_28() -> Record {
    let mut record = recorded();
    let at = |kind: &str, comm: &str| {
        let found = record.events.iter().position(|e| e["kind"] == kind && e["comm"] == comm);
        found.unwrap_or_else(|| panic!("no {kind} of {comm}"))
    };
    let (kill, end) = (at("oom_kill", "hog"), at("exit", "app"));
    let mut second = record.events[kill].clone();
    second["comm"] = json!("app");
    record.events.insert(kill + 1, second);
    let end = &mut record.events[end + 1];
    (end["signal"], end["exit_code"], end["severity"]) = (json!(9), Value::Null, json!("warning"));
    let incident = &mut record.incidents[0];
    incident["exit"] = json!({"code": null, "signal": 9});
    incident["kubernetes"]["exit_code"] = json!(137);
    let mut init = incident["victims"][0].clone();
    init["comm"] = json!("app");
    incident["victims"].as_array_mut().expect("victims").push(init);
    record.containers.iter_mut().find(|c| c.name == "app").expect("app").exit_codes = vec![137];
    grouped(&mut record, Some(1.0));
    record
}

fn grouped(record: &mut Record, value: Option<f64>) {
    record.peaks.insert("app memory_oom_group".into(), value);
}

fn expect(name: &str) -> Expect {
    Scenario::load(name).and_then(|s| s.expect()).expect("its rules")
}

fn judge(name: &str, record: &Record) -> Verdict {
    expect(name).judge(record)
}

#[test]
fn a_container_that_dies_as_one_is_expected_where_the_kubelet_said_so() {
    let old = judge("oom-kill", &recorded());
    assert!(old.is_good() && old.note.is_none(), "{old:?}");
    let new = judge("oom-kill", &since_1_28());
    assert!(new.is_good() && new.met.len() == 5, "{new:?}");
    let note = new.note.expect("a note");
    assert!(note.contains("memory_oom_group of app is 1"), "{note}");
}

#[test]
fn neither_kubelet_may_have_what_the_other_one_has() {
    let mut alone = recorded();
    grouped(&mut alone, Some(1.0));
    let verdict = judge("oom-kill", &alone);
    assert!(!verdict.is_good(), "one victim, where the kernel had to take all: {verdict:?}");
    let mut all = since_1_28();
    grouped(&mut all, Some(0.0));
    let verdict = judge("oom-kill", &all);
    assert!(!verdict.is_good() && verdict.note.is_none(), "all, where one was to be taken: {verdict:?}");
    all = since_1_28();
    all.in_cluster = false;
    assert!(!judge("oom-kill", &all).is_good(), "elsewhere the scenario's own files decide");
}

#[test]
fn where_the_file_was_not_recorded_the_kill_itself_decides() {
    for mut record in [recorded(), since_1_28()] {
        grouped(&mut record, None);
        let verdict = judge("oom-kill", &record);
        assert!(verdict.is_good(), "{verdict:?}");
        record.events.retain(|e| e["kind"] != "oom_kill");
        assert!(!judge("oom-kill", &record).is_good(), "neither lets a kill go untold");
    }
}

/// A run that goes on until its time is over, with one container.
fn running(series: (&str, f64), events: Vec<Value>) -> Record {
    Record {
        containers: vec![Played { name: "app".into(), ids: vec!["aaa".into()], ..Played::default() }],
        peaks: [(format!("app {}", series.0), Some(series.1))].into(),
        in_cluster: true,
        events,
        ..Record::default()
    }
}

#[test]
fn what_kubernetes_cannot_be_asked_for_is_not_missed() {
    let event =
        |kind: &str| json!({"kind": kind, "container_id": "aaa", "severity": "warning", "detail": {}});
    for (name, series, most, told) in [
        ("fork-storm", "pids_current", 25.0, "fork_limit"),
        ("io-pressure", "io_stat_wbytes", 9e6, "psi_stall"),
    ] {
        for events in [vec![], vec![event(told)]] {
            let verdict = judge(name, &running((series, most), events));
            assert!(verdict.is_good() && verdict.met.len() == 1 && verdict.note.is_some(), "{verdict:?}");
        }
        assert!(!judge(name, &running((series, 1.0), vec![])).is_good(), "{name}: it did nothing");
        assert!(!judge(name, &running((series, most), vec![event("oom_kill")])).is_good(), "{name}");
        let mut here = running((series, most), vec![]);
        here.in_cluster = false;
        assert!(!judge(name, &here).is_good(), "{name}: where the file is set, the event must come");
    }
}

#[test]
fn what_is_asked_for_names_each_file_that_decides() {
    assert_eq!(expect("oom-kill").measured(true), [("app", "memory_oom_group")]);
    assert!(expect("oom-kill").measured(false).is_empty());
    assert_eq!(expect("fork-storm").measured(true), [("app", "pids_current")]);
    for name in ["oom-kill", "oom-child", "oom-group"] {
        assert!(expect(name).foresees_end("app") && !expect(name).foresees_end("sidecar"), "{name}");
    }
    let typo = "[[cluster]]\nwhy = \"a\"\nwhen = { container = \"app\", metric = \"m\", was = 1 }\n";
    assert!(Expect::parse(typo).is_err() && Expect::parse(&typo.replace("was", "is")).is_ok());
}
