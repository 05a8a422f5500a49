//! Each way to be wrong, one by one: a judge that finds nothing wrong proves nothing.

use super::super::case::{Case, Group, Line, Process};
use super::{Looks, Most, Score, Truth, median, p99, score};
use serde_json::{Value, json};

const S: u64 = 1_000_000_000;

fn case() -> Case {
    let process = |pid, signal| Process { pid, signal, ours: true };
    let app = Group {
        id: 7,
        path: "/pod/app".into(),
        container_id: "c7".into(),
        limit_bytes: Some(4096),
        born_ns: 10 * S,
        removed_ns: 60 * S,
        oom: 1,
        oom_kill: 1,
        processes: vec![process(42, Some(9)), process(43, None)],
        ended_badly: true,
    };
    let pod = Group { id: 6, path: "/pod".into(), ..Group::default() };
    Case { name: "init-0".into(), kind: "init".into(), pod, containers: vec![app] }
}

fn mark(pid: u32) -> Line {
    Line::MarkVictim { ktime_ns: 50 * S, pid, trigger_pid: 42, trigger_comm: "app".into() }
}

fn lines() -> Vec<Line> {
    let end = Line::End { vmstat_oom_kill: 4, overrun: 0 };
    vec![Line::Begin { vmstat_oom_kill: 3 }, mark(42), end]
}

fn incident() -> Value {
    json!({
        "id": "i", "kind": "oom_kill", "ktime_ns": 50 * S + 9, "cgroup_id": 7, "container_id": "c7",
        "victims": [{"pid": 42, "cgroup_id": 7, "ktime_ns": 50 * S + 9}], "trigger": {"pid": 42},
        "limit": {"cgroup_id": 7, "max_bytes": 4096, "source": "fentry"},
        "history_s": 39.0, "first_burst_after_ms": 2.5, "summary": "",
    })
}

/// A row a second, from a second after its birth on.
fn looks() -> Looks {
    Looks::from([(7, (11..60).map(|s| s * S).collect())])
}

fn judge(cases: &[Case], incidents: &[Value]) -> Score {
    judge_rows(cases, incidents, &looks())
}

fn judge_rows(cases: &[Case], incidents: &[Value], looks: &Looks) -> Score {
    let truth = Truth::of(cases, &lines());
    assert_eq!(truth.doubts, Vec::<String>::new());
    score(&truth, cases, incidents, looks)
}

fn rights(score: &Score) -> [usize; 4] {
    [score.right_victim, score.right_container, score.right_limit, score.right_trigger]
}

#[test]
fn what_is_right_is_right() {
    let score = judge(&[case()], &[incident()]);
    assert_eq!((rights(&score), score.wrong.len(), score.false_alarms), ([1; 4], 0, 0));
    assert_eq!((score.history_s_min, score.first_burst_ms.as_slice()), (Some(39.0), [2.5].as_slice()));
    assert_eq!((score.history_short, score.history_claimed), (Most::default(), Most::default()));
    assert!((score.history_gap.s - 1.0).abs() < 1e-9);
}

#[test]
fn history_is_that_of_the_rows_whatever_the_incident_says() {
    let rows = |at: &[u64]| Looks::from([(7, at.iter().map(|s| s * S).collect::<Vec<_>>())]);
    let judged = |looks: &Looks| {
        let s = judge_rows(&[case()], &[incident()], looks);
        (s.history_s_min, [s.history_short.s, s.history_gap.s, s.history_claimed.s])
    };
    assert_eq!(judged(&rows(&[21, 40, 49])), (Some(29.0), [1.0, 19.0, 10.0]));
    assert_eq!(judged(&rows(&[52])), (Some(0.0), [30.0, 0.0, 39.0]), "only rows of after the kill");
    assert_eq!(judged(&Looks::new()), (Some(0.0), [30.0, 0.0, 39.0]));
    let score = judge_rows(&[case()], &[incident()], &rows(&[21, 40]));
    assert!(score.history_short.whose.contains("init-0: pid 42"), "{score:?}");
    assert!(score.history_gap.whose.contains("40.000 s old"), "{score:?}");
    // a kill that nobody told has its history judged as well
    let score = judge_rows(&[case()], &[], &rows(&[21, 40]));
    assert_eq!((score.history_s_min, score.triggers), (Some(29.0), 0));
}

#[test]
fn the_last_row_of_a_ramp_is_the_rows_own() {
    let mut ramp = case();
    assert_eq!(judge(&[ramp.clone()], &[incident()]).last_sample_ms, Vec::<f64>::new());
    ramp.kind = "ramp-5s".into();
    assert_eq!(judge(&[ramp.clone()], &[incident()]).last_sample_ms, [1000.0]);
    assert_eq!(judge_rows(&[ramp], &[incident()], &Looks::new()).last_sample_ms, [50_000.0]);
}

#[test]
fn a_storm_is_counted_by_itself_and_in_a_second() {
    let kills = |name: &str, of: u32, apart_ns: u64| {
        let mut case = case();
        (case.name, case.kind) = (name.into(), "storm".into());
        case.containers[0].oom_kill = u64::from(of);
        let first = if name == "storm-0" { 100 } else { 1000 };
        case.containers[0].processes =
            (0..of).map(|n| Process { pid: first + n, signal: Some(9), ours: true }).collect();
        let lines: Vec<Line> = (0..of)
            .map(|n| Line::MarkVictim {
                ktime_ns: 50 * S + u64::from(n) * apart_ns,
                pid: first + n,
                trigger_pid: 1,
                trigger_comm: "storm".into(),
            })
            .collect();
        (case, lines)
    };
    let storm = |storms: Vec<(Case, Vec<Line>)>| {
        let (cases, lines): (Vec<_>, Vec<_>) = storms.into_iter().unzip();
        let truth = Truth::of(&cases, &lines.concat());
        let score = score(&truth, &cases, &[], &Looks::new());
        (score.storm, score.storm_within_s)
    };
    assert_eq!(storm(vec![kills("storm-0", 75, S / 50)]), (50, Some(0.98)));
    assert_eq!(storm(vec![kills("storm-0", 49, 1)]), (49, None));
    assert_eq!(storm(vec![kills("storm-0", 40, 1), kills("storm-1", 60, S / 20)]), (40, Some(2.45)));
}

#[test]
fn a_kill_that_is_not_recorded_is_wrong() {
    let score = judge(&[case()], &[]);
    assert_eq!(rights(&score), [0; 4]);
    assert!(score.wrong[0].contains("init-0: pid 42") && score.wrong[0].contains("not recorded"));
}

#[test]
fn each_of_victim_container_limit_and_trigger_can_be_wrong_alone() {
    for (pointer, value, rights_then, alarms) in [
        ("/victims/0/pid", json!(43), [0; 4], 1),
        ("/victims/0/ktime_ns", json!(52 * S), [0; 4], 1),
        ("/container_id", json!("c8"), [1, 0, 1, 1], 0),
        ("/cgroup_id", json!(6), [1, 0, 1, 1], 0),
        ("/limit", Value::Null, [1, 1, 0, 1], 0),
        ("/limit/cgroup_id", json!(6), [1, 1, 0, 1], 0),
        ("/limit/max_bytes", json!(4095), [1, 1, 0, 1], 0),
        ("/trigger/pid", json!(1), [1, 1, 1, 0], 0),
    ] {
        let mut incident = incident();
        *incident.pointer_mut(pointer).expect(pointer) = value;
        let score = judge(&[case()], &[incident]);
        assert_eq!(
            (rights(&score), score.false_alarms),
            (rights_then, alarms),
            "{pointer}: {:?}",
            score.wrong
        );
        assert!(!score.wrong.is_empty(), "{pointer}");
    }
}

#[test]
fn the_limit_is_whose_own_count_rose_and_nobodys_is_the_nodes() {
    let mut case = case();
    case.containers[0].oom = 0;
    case.pod.oom = 1;
    assert_eq!(rights(&judge(&[case.clone()], &[incident()])), [1, 1, 0, 1]);
    case.pod.oom = 0;
    assert_eq!(rights(&judge(&[case.clone()], &[incident()])), [1, 1, 0, 1]);
    let mut global = incident();
    global["limit"] = json!({"cgroup_id": null, "max_bytes": null, "source": "global"});
    assert_eq!(rights(&judge(&[case], &[global])), [1; 4]);
}

#[test]
fn an_end_that_was_good_is_no_incident() {
    let mut case = case();
    let mut crash = incident();
    crash["kind"] = json!("crash");
    crash["victims"] = json!([]);
    assert_eq!(judge(&[case.clone()], &[incident(), crash.clone()]).false_alarms, 0);
    case.containers[0].ended_badly = false;
    assert_eq!(judge(&[case], &[incident(), crash]).false_alarms, 1);
}

#[test]
fn counts_that_do_not_agree_put_the_truth_in_doubt() {
    let doubts = |case: &Case, lines: &[Line]| Truth::of(std::slice::from_ref(case), lines).doubts.len();
    let mut lines = lines();
    assert_eq!(doubts(&case(), &lines), 0);
    lines.push(mark(99));
    assert_eq!(doubts(&case(), &lines), 1, "a stranger");
    lines.pop();
    let mut more = case();
    more.containers[0].oom_kill = 2;
    assert_eq!(doubts(&more, &lines), 2, "against the marks and against vmstat");
    lines[2] = Line::End { vmstat_oom_kill: 4, overrun: 3 };
    assert_eq!(doubts(&case(), &lines), 1, "a trace with holes");
    assert_eq!(doubts(&case(), &lines[..2]), 1, "no end");
}

#[test]
fn a_mark_of_one_that_ended_otherwise_is_no_kill() {
    let (case, mut lines) = (case(), lines());
    lines.push(mark(43));
    lines.push(mark(42));
    let cases = [case];
    let truth = Truth::of(&cases, &lines);
    assert_eq!((truth.kills.len(), truth.doubts.len()), (1, 0));
}

#[test]
fn p99_is_of_what_there_is() {
    let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
    assert_eq!((p99(&hundred), p99(&[3.0]), p99(&[])), (Some(99.0), Some(3.0), None));
    assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[])), (Some(2.0), None));
}
