//! Judges the folder that a run of the evidence benchmark left: reads what recorder, witness and driver wrote, prints, and holds
//! each figure to its bound. Must never take the recorder's word for what its own rows can show. Called by `evidence`.
//!
//! The recorder is read as a user reads it, by `fgm incidents` and `fgm export` on its data folder.

use super::bound::{self, Bound};
use super::case::{Case, Line};
use super::history;
use super::mix::IN_A_SECOND;
use super::reports::{self, Reports};
use super::score::{Score, Truth, median, p99, score, seconds};
use super::stories::{self, Stories};
use super::{Place, machine};
use crate::child::{output, run, tool};
use crate::progress::say;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Milliseconds to the first burst, measured on the machine itself: `{"first_burst_ms": […]}`.
pub const NATIVE: &str = "native.json";
/// What is wrong, by name, as far as somebody reads it.
const SHOWN: usize = 40;
const HISTORY_S: f64 = 30.0;
/// A machine that gives the recorder no turn excuses so much of a history and no more.
const EXCUSED_S: f64 = 1.0;
/// An incident may count from the row that comes with the kill.
const BASE_PERIOD_S: f64 = 1.0;
pub const FIRST_BURST_MS: f64 = 5.0;
/// A mix of so many has a whole storm.
const WHOLE: usize = 1000;

/// What the run was asked for.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub place: Place,
    pub kills: usize,
    /// What reads the lane: `bpf`, or the `pread` that stands in for it.
    pub lane: &'a str,
    pub json: Option<&'a Path>,
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not understood", path.display()))
}

/// 0 when every bound holds, 1 otherwise.
pub fn judge(out: &Path, agent: &Path, asked: &Asked<'_>) -> Result<i32> {
    if !out.join("data").is_dir() {
        run(tool("tar").arg("-xf").arg(out.join("data.tar")).arg("-C").arg(out))?;
    }
    let cases: Vec<Case> = read_json(&out.join("cases.json"))?;
    let status: Value = read_json(&out.join("status.json"))?;
    let text = fs::read_to_string(out.join("truth.jsonl")).context("the witness left nothing")?;
    let lines: Vec<Line> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("truth.jsonl is not understood")?;
    let data = out.join("data");
    let told = output(tool(agent).args(["incidents", "--json", "--limit", "10000", "--data"]).arg(&data))?;
    let told: Value = serde_json::from_str(&told).context("fgm incidents --json is no JSON")?;
    let incidents = told["incidents"].as_array().cloned().unwrap_or_default();

    let truth = Truth::of(&cases, &lines);
    let looks = history::looks(out, agent, &truth)?;
    let mut score = score(&truth, &cases, &incidents, &looks);
    let stories = stories::judge(&truth, &incidents);
    let reports = reports::judge(out, agent, &truth, &incidents)?;
    score.wrong.extend(stories.wrong.iter().chain(&reports.wrong).cloned());
    let (first_burst, place) = match asked.place {
        // without the file, as without a figure in it, the bound does not hold
        Place::Vm => (
            native(&read_json(&out.join(NATIVE)).unwrap_or_default()),
            format!("{}; first burst: this machine, limits of cgroup v1", asked.place.words()),
        ),
        Place::Host => (score.first_burst_ms.clone(), asked.place.words().to_owned()),
    };
    let figures = Figures {
        kills: truth.kills.len(),
        doubts: truth.doubts.len(),
        score: &score,
        stories: &stories,
        reports: &reports,
        blind_s: blind_s(&status)?,
        first_burst_ms: p99(&first_burst),
        unbalanced: unbalanced(&status),
    };
    let bounds = figures.bounds(asked);
    let (due, written, lost) = ledger(&status);
    let result = json!({
        "kills": figures.kills, "right_victim": score.right_victim, "right_container": score.right_container,
        "right_limit": score.right_limit, "stories": stories.of, "right_story": stories.right,
        "reports": reports.of, "right_report": reports.right, "history_s_min": score.history_s_min.map(round),
        "history_gap_s_max": round(score.history_gap.s), "history_short_s_max": round(score.history_short.s),
        "last_sample_ms_p99": p99(&score.last_sample_ms).map(round), "first_burst_ms_p99": figures.first_burst_ms.map(round),
        "last_sample_ms_p50": median(&score.last_sample_ms).map(round), "lane": asked.lane,
        "storm_within_s": score.storm_within_s.map(round), "storm_kills_in_a_second": score.storm,
        "short_life_s_p50": median(&lives(&cases, "short")).map(round),
        "blind_s": round(figures.blind_s), "false_alarms": score.false_alarms, "due": due, "written": written, "lost": lost.values().sum::<u64>(),
        "machine": machine(), "kernel": status["kernel"], "where": place,
        "containers": cases.iter().map(|c| c.containers.len()).sum::<usize>(), "bounds": bound::json(&bounds),
    });
    show(&result, &cases, &score, &stories, &truth, &status, &lost);
    let holds = bound::print(&bounds);
    if let Some(path) = asked.json {
        fs::write(path, format!("{result:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{result}");
    Ok(i32::from(!holds))
}

/// Milliseconds of each kill; none when the native half failed.
fn native(file: &Value) -> Vec<f64> {
    file["first_burst_ms"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

/// Seconds that the containers of a kind were there.
fn lives(cases: &[Case], kind: &str) -> Vec<f64> {
    let of_kind = cases.iter().filter(|c| c.kind == kind).flat_map(|c| &c.containers);
    of_kind.map(|g| seconds(g.removed_ns.saturating_sub(g.born_ns))).collect()
}

/// What is held to a bound.
struct Figures<'a> {
    kills: usize,
    doubts: usize,
    score: &'a Score,
    stories: &'a Stories,
    reports: &'a Reports,
    blind_s: f64,
    first_burst_ms: Option<f64>,
    unbalanced: Vec<String>,
}

impl Figures<'_> {
    fn bounds(&self, asked: &Asked<'_>) -> Vec<Bound> {
        let (s, kills) = (self.score, self.kills);
        // to a whole millisecond, as it is printed
        let excused = (self.blind_s.min(EXCUSED_S) * 1000.0).ceil() / 1000.0;
        let last_sample = if asked.lane == "pread" { 100.0 } else { 40.0 };
        let of = |name: &str, whose: &str| {
            if whose.is_empty() { name.to_owned() } else { format!("{name} ({whose})") }
        };
        let unbalanced = self.unbalanced.join(", ");
        let mut bounds = vec![
            Bound { what: format!("kills: {kills}, at least 1"), holds: kills > 0 },
            Bound::none("doubts of the truth", self.doubts),
            Bound::all("right_victim", s.right_victim, kills),
            Bound::all("right_container", s.right_container, kills),
            Bound::all("right_limit", s.right_limit, kills),
            Bound::all("right_trigger", s.right_trigger, s.triggers),
            Bound::all("right_story", self.stories.right, self.stories.of),
            Bound::all("right_report, one of each kind", self.reports.right, self.reports.of),
            Bound::none("false_alarms", s.false_alarms),
            Bound::at_least("history_s_min, by the rows", s.history_s_min, HISTORY_S),
            Bound::at_most(
                &of("history shorter than the life, s", &s.history_short.whose),
                Some(s.history_short.s),
                excused,
            ),
            Bound::at_most(&of("history_gap_s_max", &s.history_gap.whose), Some(s.history_gap.s), excused),
            Bound::at_most(
                &of("history claimed beyond the rows, s", &s.history_claimed.whose),
                Some(s.history_claimed.s),
                BASE_PERIOD_S,
            ),
            Bound::at_most("last_sample_ms_p99", p99(&s.last_sample_ms), last_sample),
            Bound::at_most("first_burst_ms_p99", self.first_burst_ms, FIRST_BURST_MS),
            Bound::none(&of("tables whose due is not written + lost", &unbalanced), self.unbalanced.len()),
        ];
        if asked.kills >= WHOLE {
            bounds.push(Bound::at_most(
                &format!("storm: {IN_A_SECOND} kills within, s"),
                s.storm_within_s,
                1.0,
            ));
        }
        bounds
    }
}

/// Seconds of its life in which no look at a container can have been: one period, the longest that the loop came late, and the
/// longest look. An error when the recorder does not tell them.
fn blind_s(status: &Value) -> Result<f64> {
    let number = |path: &str| {
        let found = status.pointer(path).and_then(Value::as_f64);
        found.with_context(|| format!("the recorder's status has no {path}"))
    };
    let late_and_period = number("/lane_late_max_ms")? + number("/lane/period_ms")?;
    Ok((late_and_period + number("/lane/look_longest_us")? / 1000.0) / 1000.0)
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Due, written and lost by reason, over all tables.
fn ledger(status: &Value) -> (u64, u64, BTreeMap<String, u64>) {
    let (mut due, mut written, mut lost) = (0, 0, BTreeMap::new());
    for (table, account) in status["ledger"].as_object().into_iter().flatten() {
        due += account["due"].as_u64().unwrap_or(0);
        written += account["written"].as_u64().unwrap_or(0);
        for (reason, n) in account["lost"].as_object().into_iter().flatten() {
            *lost.entry(format!("{table}/{reason}")).or_default() += n.as_u64().unwrap_or(0);
        }
    }
    (due, written, lost)
}

/// Tables whose account does not add up, each with its numbers. A status without an account is one.
fn unbalanced(status: &Value) -> Vec<String> {
    let Some(tables) = status["ledger"].as_object().filter(|tables| !tables.is_empty()) else {
        return vec!["no account".to_owned()];
    };
    let mut wrong = Vec::new();
    for (table, account) in tables {
        let number = |of: &Value| of.as_u64();
        let lost: u64 =
            account["lost"].as_object().into_iter().flatten().filter_map(|(_, n)| number(n)).sum();
        let (due, written) = (number(&account["due"]), number(&account["written"]));
        if due.is_none() || due != written.map(|w| w + lost) {
            wrong.push(format!(
                "{table}: {} due, {} written, {lost} lost",
                account["due"], account["written"]
            ));
        }
    }
    wrong
}

fn show(
    result: &Value,
    cases: &[Case],
    score: &Score,
    stories: &Stories,
    truth: &Truth<'_>,
    status: &Value,
    lost: &BTreeMap<String, u64>,
) {
    let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for case in cases {
        kinds.entry(&case.kind).or_default().0 += case.containers.len();
    }
    for kill in &truth.kills {
        kinds.entry(&kill.case.kind).or_default().1 += 1;
    }
    println!(
        "\n{} · kernel {} · {}",
        text(&result["machine"]),
        text(&result["kernel"]),
        text(&result["where"])
    );
    println!("{:>16}  {:>10} {:>6} {:>14}", "kind", "containers", "kills", "right stories");
    for (kind, (containers, kills)) in kinds {
        let (right, of) = stories.kinds.get(kind).copied().unwrap_or_default();
        println!("{kind:>16}  {containers:>10} {kills:>6} {:>14}", format!("{right} of {of}"));
    }
    for key in [
        "kills",
        "right_victim",
        "right_container",
        "right_limit",
        "history_s_min",
        "history_gap_s_max",
        "last_sample_ms_p50",
        "last_sample_ms_p99",
        "first_burst_ms_p99",
        "false_alarms",
        "due",
        "written",
        "lost",
    ] {
        println!("{key:>20}  {}", text(&result[key]));
    }
    println!("{:>20}  {} of {}", "right_trigger", score.right_trigger, score.triggers);
    for (name, of) in [("right_story", "stories"), ("right_report", "reports")] {
        println!("{name:>20}  {} of {}", result[name], result[of]);
    }
    println!("{:>20}  {} s without a look, at the longest", "blind", result["blind_s"]);
    println!(
        "{:>20}  {:?} p99 where the kills were",
        "first burst, ms",
        p99(&score.first_burst_ms).map(round)
    );
    println!(
        "{:>20}  {} kills within a second, {IN_A_SECOND} of them within {} s",
        "storm", score.storm, result["storm_within_s"]
    );
    println!("{:>20}  {} s, the median", "life of `short`", result["short_life_s_p50"]);
    for (reason, rows) in lost.iter().filter(|(_, rows)| **rows > 0) {
        println!("{:>20}  {rows} {reason}", "lost");
    }
    let losses = status["probe_losses"]["kinds"].as_array().cloned().unwrap_or_default();
    for kind in losses.iter().filter(|k| k["lost"] != 0 || k["cut"] != 0) {
        println!(
            "{:>20}  {}: {} found no room, {} over the rate",
            "kernel events",
            text(&kind["kind"]),
            kind["lost"],
            kind["cut"]
        );
    }
    let lane = &status["lane"];
    println!(
        "{:>20}  {} ms, {} readings, {} found no room",
        "lane", lane["period_ms"], lane["readings"], lane["ring_full"]
    );
    for doubt in &truth.doubts {
        say(&format!("✗ the truth is in doubt: {doubt}"));
    }
    for wrong in score.wrong.iter().take(SHOWN) {
        say(&format!("✗ {wrong}"));
    }
    if score.wrong.len() > SHOWN {
        say(&format!("✗ and {} more", score.wrong.len() - SHOWN));
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
