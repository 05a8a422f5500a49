//! `cargo xtask bench evidence`: a mix of OOM kills, the recorder, and a witness of its own; then kill by kill whether the
//! recorder was right. Must never take the recorder's word for what happened. Called by `bench`.
//!
//! The outer half: builds, starts the inner one (`play`) where cgroup v2 is, reads what each left, prints and judges.
//! The recorder is read as a user reads it, by `fgm incidents` and `fgm export` on its data folder.

use super::case::{Case, Line};
use super::score::{Score, Truth, p99, score};
use super::{Place, Programs, machine, native, play, rows};
use crate::child::{output, run, tool};
use crate::progress::say;
use crate::vm::Guest;
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A thousand kills took 13 minutes in an emulated machine beside others' work.
const LONGEST: Duration = Duration::from_mins(45);
/// What is wrong, by name, as far as somebody reads it.
const SHOWN: usize = 40;

pub struct Options<'a> {
    pub place: Place,
    pub kernel: &'a str,
    pub kills: usize,
    /// What reads the lane: `bpf`, or the `pread` that stands in for it.
    pub lane: &'a str,
    pub json: Option<&'a Path>,
}

/// 0 when every kill was told right and with the history that a look each period can give, 1 otherwise.
pub fn bench(options: &Options<'_>) -> Result<i32> {
    let programs = Programs::build()?;
    let out = super::out_folder("evidence")?;
    match options.place {
        Place::Vm => in_vm(&out, &programs, options)?,
        Place::Host => play::play(&play::Words {
            out: &out,
            agent: &programs.agent,
            workload: &programs.workload,
            truth: &programs.truth,
            kills: options.kills,
            node_kills: 0,
            lane: options.lane,
        })?,
    }
    let native = match options.place {
        Place::Vm => Some(native::first_bursts(&out, &programs)),
        Place::Host => None,
    };
    run(tool("tar").arg("-xf").arg(out.join("data.tar")).arg("-C").arg(&out))?;
    report(&out, &programs.agent, options, native)
}

fn in_vm(out: &Path, programs: &Programs, options: &Options<'_>) -> Result<()> {
    let own = crate::paths::own()?;
    // one of them takes an emulated machine a minute
    let node_kills = if options.kills >= 200 { 2 } else { 1 };
    let mut words: Vec<OsString> = vec![own.into(), "bench".into(), "--play".into(), "evidence".into()];
    words.extend([out, &programs.agent, &programs.workload, &programs.truth].map(OsString::from));
    words.extend([options.kills.to_string().into(), node_kills.to_string().into(), options.lane.into()]);
    let mut guest = Guest::new(words)?;
    options.kernel.clone_into(&mut guest.series);
    guest.timeout = LONGEST;
    guest.out = Some(out.to_path_buf());
    let code = guest.run_with(&mut std::io::stderr(), &mut std::io::stderr())?;
    if code != 0 {
        bail!(
            "the benchmark failed in the test VM (exit code {code}); what there is of it is in {}",
            out.display()
        );
    }
    Ok(())
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not understood", path.display()))
}

fn report(out: &Path, agent: &Path, options: &Options<'_>, native: Option<Result<Vec<f64>>>) -> Result<i32> {
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
    let mut score = score(&truth, &cases, &incidents);
    let blind_s = blind_s(&status)?;
    let enough = score.history_is_enough(blind_s);
    let ramps = ramps(out, agent, &truth)?;
    let (due, written, lost) = ledger(&status);
    let kills = truth.kills.len();
    // of a time that emulation stretches nothing can be said: the VM's own is shown, and never given as the number
    let (first_burst, place) = match native {
        None => (p99(&score.first_burst_ms), options.place.words().to_owned()),
        Some(Ok(native)) => (
            p99(&native),
            format!("{}; first burst: this machine, limits of cgroup v1", options.place.words()),
        ),
        Some(Err(why)) => {
            say(&format!("first burst: not to be had natively here, since {why:#}"));
            (None, options.place.words().to_owned())
        }
    };
    let result = json!({
        "kills": kills, "right_victim": score.right_victim, "right_container": score.right_container,
        "right_limit": score.right_limit, "history_s_min": score.history_s_min.map(round),
        "last_sample_ms_p99": p99(&ramps).map(round), "first_burst_ms_p99": first_burst.map(round),
        "last_sample_ms_p50": median(&ramps).map(round), "lane": options.lane,
        "history_short_s_max": score.history_short.as_ref().map_or(0.0, |(s, _)| round(*s)),
        "blind_s": round(blind_s), "false_alarms": score.false_alarms, "due": due, "written": written, "lost": lost.values().sum::<u64>(),
        "machine": machine(), "kernel": status["kernel"], "where": place,
        "containers": cases.iter().map(|c| c.containers.len()).sum::<usize>(),
    });
    show(&result, &cases, &score, &truth, &status, &lost);
    if let Some(path) = options.json {
        fs::write(path, format!("{result:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{result}");
    let right = [score.right_victim, score.right_container, score.right_limit].iter().all(|n| *n == kills)
        && score.right_trigger == score.triggers
        && enough
        && score.false_alarms == 0;
    Ok(i32::from(!right || kills == 0 || !truth.doubts.is_empty()))
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

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
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

/// Of each ramp: milliseconds from the last row before the kill, by the rows themselves and the witness's clock.
fn ramps(out: &Path, agent: &Path, truth: &Truth<'_>) -> Result<Vec<f64>> {
    let ramps = || truth.kills.iter().filter(|k| k.case.kind.starts_with("ramp"));
    let kills: BTreeMap<u64, u64> = ramps().map(|k| (k.container.id, k.ktime_ns)).collect();
    let ids: Vec<&str> = ramps().map(|k| k.container.container_id.as_str()).collect();
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    rows::each(out, agent, &ids, "memory_current", |row| {
        if row.value.is_some() && kills.get(&row.cgroup_id).is_some_and(|kill| row.ktime_ns < *kill) {
            let last = last.entry(row.cgroup_id).or_default();
            *last = row.ktime_ns.max(*last);
        }
    })?;
    // one without any row before its kill counts as one of the age of the universe
    Ok(kills.iter().map(|(id, kill)| ms(kill - last.get(id).copied().unwrap_or(0))).collect())
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds for a person")]
pub fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

fn show(
    result: &Value,
    cases: &[Case],
    score: &Score,
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
    println!("{:>16}  {:>10} {:>6}", "kind", "containers", "kills");
    for (kind, (containers, kills)) in kinds {
        println!("{kind:>16}  {containers:>10} {kills:>6}");
    }
    for key in [
        "kills",
        "right_victim",
        "right_container",
        "right_limit",
        "history_s_min",
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
    if let Some((short, whose)) = &score.history_short {
        println!("{:>20}  {short:.3} s: {whose}", "history short by");
        println!("{:>20}  {} s without a look", "at the longest", result["blind_s"]);
    }
    println!(
        "{:>20}  {:?} p99 where the kills were",
        "first burst, ms",
        p99(&score.first_burst_ms).map(round)
    );
    println!("{:>20}  {} within a second", "storm", score.storm);
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
