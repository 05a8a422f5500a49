//! Each figure that is out of its bound, or not there, breaks it and no other.

use super::super::{reports::Reports, score::Most, stories::Stories};
use super::{Asked, EXCUSED_S, Figures, Place, Score, blind_s, lives, native, unbalanced};
use crate::bench::case::{Case, Group};
use serde_json::json;
use std::collections::BTreeMap;

const ASKED: Asked<'static> = Asked { place: Place::Vm, kills: 1000, lane: "bpf", json: None };

static TWO_OF_THREE: Stories = Stories { of: 3, right: 2, kinds: BTreeMap::new(), wrong: Vec::new() };
static NONE_OF_ONE: Reports = Reports { of: 1, right: 0, wrong: Vec::new() };

fn most(s: f64) -> Most {
    Most { s, whose: "init-0".to_owned() }
}

fn right() -> Score {
    Score {
        right_victim: 3,
        right_container: 3,
        right_limit: 3,
        right_trigger: 2,
        triggers: 2,
        history_s_min: Some(30.5),
        history_short: most(0.4),
        history_gap: most(0.4),
        history_claimed: most(0.9),
        last_sample_ms: vec![39.0; 4],
        storm: 50,
        storm_within_s: Some(0.9),
        ..Score::default()
    }
}

fn broken(asked: &Asked<'_>, change: impl FnOnce(&mut Score, &mut Figures<'_>)) -> Vec<String> {
    let (mut score, none) = (right(), Score::default());
    let (stories, reports) = (Stories { of: 3, right: 3, ..Stories::default() }, Reports::default());
    let mut figures = Figures {
        kills: 3,
        doubts: 0,
        score: &none,
        stories: &stories,
        reports: &reports,
        blind_s: 0.4,
        first_burst_ms: Some(4.9),
        unbalanced: Vec::new(),
    };
    change(&mut score, &mut figures);
    figures.score = &score;
    let bounds = figures.bounds(asked);
    bounds.into_iter().filter(|b| !b.holds).map(|b| b.what).collect()
}

#[test]
fn each_bound_is_broken_by_its_own_figure() {
    assert_eq!(broken(&ASKED, |_, _| {}), Vec::<String>::new());
    type Change = fn(&mut Score, &mut Figures<'_>);
    let changes: [(&str, Change); 17] = [
        ("doubts of", |_, f| f.doubts = 1),
        ("right_victim", |s, _| s.right_victim = 2),
        ("right_container", |s, _| s.right_container = 2),
        ("right_limit", |s, _| s.right_limit = 2),
        ("right_trigger", |s, _| s.right_trigger = 1),
        ("right_story: 2 of 3", |_, f| f.stories = &TWO_OF_THREE),
        ("right_report, one of each kind: 0 of 1", |_, f| f.reports = &NONE_OF_ONE),
        ("false_alarms", |s, _| s.false_alarms = 1),
        ("history_s_min", |s, _| s.history_s_min = Some(29.9)),
        ("history_s_min", |s, _| s.history_s_min = None),
        ("history shorter than the life, s (init-0): 0.410", |s, _| s.history_short = most(0.41)),
        ("history_gap_s_max (init-0): 0.410", |s, _| s.history_gap = most(0.41)),
        ("history claimed", |s, _| s.history_claimed = most(1.1)),
        ("last_sample_ms_p99: 41.000", |s, _| s.last_sample_ms.push(41.0)),
        ("first_burst_ms_p99: not measured", |_, f| f.first_burst_ms = None),
        ("tables whose due", |_, f| f.unbalanced.push("events".to_owned())),
        ("storm: 50 kills within, s: not measured", |s, _| s.storm_within_s = None),
    ];
    for (what, change) in changes {
        let broken = broken(&ASKED, change);
        assert!(broken.len() == 1 && broken[0].starts_with(what), "{what}: {broken:?}");
    }
    let nothing = broken(&ASKED, |s, f| {
        f.kills = 0;
        *s = Score {
            last_sample_ms: vec![1.0],
            history_s_min: Some(31.0),
            storm_within_s: Some(0.5),
            ..Score::default()
        };
    });
    assert_eq!(nothing, ["kills: 0, at least 1"]);
}

#[test]
fn the_lane_and_the_mix_decide_which_bound_it_is() {
    let slow = |s: &mut Score, _: &mut Figures<'_>| s.last_sample_ms = vec![99.0];
    assert_eq!(broken(&ASKED, slow).len(), 1);
    assert_eq!(broken(&Asked { lane: "pread", ..ASKED }, slow), Vec::<String>::new());
    let calm = |s: &mut Score, _: &mut Figures<'_>| s.storm_within_s = None;
    assert_eq!(broken(&Asked { kills: 20, ..ASKED }, calm), Vec::<String>::new());
}

#[test]
fn a_recorder_that_was_late_for_long_excuses_a_second() {
    let status = json!({"lane_late_max_ms": 10_000, "lane": {"period_ms": 20, "look_longest_us": 500}});
    let blind_s = blind_s(&status).expect("all there");
    assert!((blind_s - 10.0205).abs() < 1e-9);
    let broken_by = |gap: f64| {
        broken(&ASKED, |s, f| {
            f.blind_s = blind_s;
            s.history_gap = most(gap);
        })
    };
    assert_eq!(broken_by(EXCUSED_S), Vec::<String>::new());
    assert_eq!(broken_by(1.001), ["history_gap_s_max (init-0): 1.001, at most 1"]);
}

#[test]
fn an_account_adds_up_table_by_table() {
    let account =
        |due: u64, written: u64, late: u64| json!({"due": due, "written": written, "lost": {"late": late}});
    let status = json!({"ledger": {"events": account(5, 5, 0), "samples": account(9, 6, 3)}});
    assert_eq!(unbalanced(&status), Vec::<String>::new());
    // one row too many here and one too few there
    let status = json!({"ledger": {"events": account(5, 6, 0), "samples": account(9, 5, 3)}});
    assert_eq!(unbalanced(&status).len(), 2);
    assert_eq!(unbalanced(&json!({"ledger": {"events": {}}})).len(), 1);
    assert_eq!(unbalanced(&json!({"ledger": {}})).len(), 1);
}

#[test]
fn what_the_native_half_did_not_measure_is_nothing() {
    assert_eq!(native(&json!({"first_burst_ms": [2.5, 3.0]})), [2.5, 3.0]);
    assert!(native(&json!({"first_burst_ms": []})).is_empty() && native(&json!(null)).is_empty());
}

#[test]
fn a_life_is_from_birth_to_removal() {
    let group = |born_ns, removed_ns| Group { born_ns, removed_ns, ..Group::default() };
    let case = |kind: &str, group| Case { kind: kind.to_owned(), containers: vec![group], ..Case::default() };
    let cases = [case("short", group(1, 200_000_001)), case("init", group(0, 9)), case("short", group(5, 5))];
    assert_eq!(lives(&cases, "short"), [0.2, 0.0]);
}
