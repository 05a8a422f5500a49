//! What the agents of a cluster tell of a run, and their rows as files: always all of them, by `fgm … --all-nodes`, as a user would ask.
//! Must never ask in another context than the run's. Called by `cluster` and `verbs`.

use super::Expect;
use super::outcome::exporting;
use super::play::{Record, seconds};
use super::runs::Run;
use crate::child::{self, tool};
use crate::clock;
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// The clocks of the nodes are not ours: so much before the start nothing can have been told of a run, so much after its end may
/// belong to it. Kubernetes has whole seconds; what the last base row says is told within two.
const BEFORE_US: i64 = 5_000_000;
pub const SETTLE_US: i64 = 3_500_000;

/// Of a run that is over this is the same at any time; of one that goes on it is what is known by now.
pub fn told_until(run: &Run) -> i64 {
    let to_us = run.to_us.unwrap_or_else(clock::wall_us);
    run.over_us.map_or(to_us, |us| to_us.min(us + SETTLE_US))
}

/// A line that asks all nodes; what `rest` says beside.
pub fn line(run: &Run, what: &str, rest: &[&str]) -> Vec<String> {
    let (fgm, context) = (run.fgm.display().to_string(), run.context().unwrap_or_default());
    let head = [fgm.as_str(), what, "--all-nodes", "--context", &context];
    head.iter().chain(rest).map(|w| (*w).to_owned()).collect()
}

pub fn incidents_line(run: &Run) -> Vec<String> {
    let (from, to) = (seconds(run.from_us - BEFORE_US), seconds(told_until(run)));
    line(run, "incidents", &["--json", "--limit", "10000", "--from", &from, "--to", &to])
}

pub fn events_line(run: &Run) -> Vec<String> {
    let (from, to) = (seconds(run.from_us - BEFORE_US), seconds(told_until(run)));
    line(run, "events", &["--json", "--namespace", &run.namespace(), "--from", &from, "--to", &to])
}

/// The whole of a run, beyond its end, in the format that the file's ending says.
pub fn export_line(run: &Run, more: &[&str], file: &Path) -> Vec<String> {
    let to_us = run.to_us.unwrap_or_else(clock::wall_us);
    let (from, to) = (seconds(run.from_us - BEFORE_US), seconds(to_us));
    let (namespace, file) = (run.namespace(), file.display().to_string());
    let mut rest = vec!["--namespace", &namespace, "--from", &from, "--to", &to];
    rest.extend(more);
    rest.extend(["--output", &file]);
    line(run, "export", &rest)
}

/// Standard output; empty when there is nothing of that kind, which is no failure.
fn output(line: &[String]) -> Result<String> {
    const NOTHING: i32 = 3;
    let mut c = tool(line.first().map_or("", String::as_str));
    c.args(line.iter().skip(1)).stdin(Stdio::null());
    let done = c.output().with_context(|| format!("cannot start `{}`", child::shown(&c)))?;
    if !done.status.success() && done.status.code() != Some(NOTHING) {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!("`{}` failed: {}\n{}", child::shown(&c), done.status, said.trim());
    }
    String::from_utf8(done.stdout).with_context(|| format!("`{}` printed no UTF-8", child::shown(&c)))
}

/// Incidents of the run's pods, and of its nodes those that gave no answer.
pub fn incidents(run: &Run) -> Result<(Vec<Value>, Vec<String>)> {
    let text = output(&incidents_line(run))?;
    let all: Value = serde_json::from_str(&text).context("fgm incidents printed no JSON")?;
    let list = |name: &str| all[name].as_array().cloned().unwrap_or_default();
    let (namespace, text) = (run.namespace(), |value: &Value| value.as_str().unwrap_or_default().to_owned());
    let is_ours =
        |i: &Value| i["namespace"] == namespace.as_str() || run.seen.pods.contains(&text(&i["pod_uid"]));
    let silent = list("unanswered").into_iter().filter(|one| run.seen.nodes.contains(&text(&one["node"])));
    let silent = silent.map(|one| format!("{}: {}", text(&one["node"]), text(&one["why"]))).collect();
    Ok((list("incidents").into_iter().filter(is_ours).collect(), silent))
}

/// All that the judge needs, of this instant.
pub fn record(run: &Run, expect: &Expect) -> Result<Record> {
    let (incidents, silent) = incidents(run)?;
    let events = output(&events_line(run))?;
    let events: Vec<Value> = events
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("fgm events printed no JSON")?;
    let mut record = Record {
        scenario: run.scenario.clone(),
        error: run.error.clone(),
        from_us: run.from_us,
        to_us: run.to_us.unwrap_or_else(clock::wall_us),
        containers: run.seen.played(),
        events: events.into_iter().filter(|event| !is_runtimes(event)).collect(),
        incidents,
        silent,
        in_cluster: true,
        ..Record::default()
    };
    if !expect.measured(true).is_empty() {
        record.peaks = peaks(run, expect, &record)?;
    }
    Ok(record)
}

/// What runc and crun do in the cgroup of a container that begins. No program of a scenario is called so.
fn is_runtimes(event: &Value) -> bool {
    let comm = event["comm"].as_str().unwrap_or_default();
    event["kind"] == "exit" && (comm.starts_with("runc") || comm.starts_with("crun"))
}

/// The highest value of each series that is expected, or by which it is known what is.
fn peaks(run: &Run, expect: &Expect, record: &Record) -> Result<BTreeMap<String, Option<f64>>> {
    let measured = expect.measured(true);
    let mut metrics: Vec<&str> = measured.iter().map(|(_, metric)| *metric).collect();
    metrics.sort_unstable();
    metrics.dedup();
    let file = run.folder.join("series.json");
    let rows = match exporting(run, &export_line(run, &["--metrics", &metrics.join(",")], &file), &file)? {
        Some(file) => fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?,
        None => "[]".to_owned(),
    };
    let rows: Vec<Value> = serde_json::from_str(&rows).context("fgm export wrote no rows")?;
    let mut peaks = BTreeMap::new();
    for (container, metric) in measured {
        let own = record.containers.iter().find(|c| c.name == container);
        let ids = own.map(|c| c.ids.as_slice()).unwrap_or_default();
        let peak = peak(&rows, ids, metric, is_counter(run, metric)?);
        peaks.insert(format!("{container} {metric}"), peak);
    }
    Ok(peaks)
}

fn is_counter(run: &Run, metric: &str) -> Result<bool> {
    let words = [run.fgm.display().to_string(), "metrics".into(), metric.into(), "--json".into()];
    let all: Value = serde_json::from_str(&output(&words)?).context("fgm metrics printed no JSON")?;
    let own = all["metrics"].as_array().into_iter().flatten().find(|m| m["name"] == metric);
    Ok(own.with_context(|| format!("fgm metrics has no {metric}"))?["kind"] == "counter")
}

/// Over all of a container's instances; of a counter its rate a second, between one row that has it and the next.
fn peak(rows: &[Value], ids: &[String], metric: &str, is_counter: bool) -> Option<f64> {
    let mut peak: Option<f64> = None;
    for id in ids {
        let own = rows.iter().filter(|row| row["container_id"] == id.as_str());
        let mut values: Vec<(i64, f64)> =
            own.filter_map(|row| Some((row["ktime_ns"].as_i64()?, row[metric].as_f64()?))).collect();
        values.sort_by_key(|(ktime_ns, _)| *ktime_ns);
        let rate = |pair: &[(i64, f64)]| {
            #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a scenario")]
            let seconds = (pair[1].0 - pair[0].0) as f64 / 1e9;
            (seconds > 0.0).then(|| (pair[1].1 - pair[0].1) / seconds)
        };
        let found: Vec<f64> = if is_counter {
            values.windows(2).filter_map(rate).collect()
        } else {
            values.into_iter().map(|(_, value)| value).collect()
        };
        peak = found.into_iter().fold(peak, |most, v| Some(most.map_or(v, |m| m.max(v))));
    }
    peak
}

/// RUN.html and RUN.parquet, of all nodes in one; `None` where no agent has a row of it.
pub fn export(run: &Run) -> Result<(Option<PathBuf>, Option<PathBuf>)> {
    let one = |ending: &str| {
        let file = run.folder.join(format!("{}.{ending}", run.id));
        exporting(run, &export_line(run, &[], &file), &file)
    };
    Ok((one("html")?, one("parquet")?))
}

#[cfg(test)]
mod tests {
    use super::{is_runtimes, peak};
    use serde_json::json;

    #[test]
    fn what_a_runtime_does_before_a_container_begins_is_not_the_scenarios() {
        for (kind, comm, is_its) in [
            ("exit", "runc:[0:PARENT]", true),
            ("exit", "crun", true),
            ("exit", "run", false),
            ("oom_kill", "runc:[2:INIT]", false),
        ] {
            assert_eq!(is_runtimes(&json!({"kind": kind, "comm": comm})), is_its, "{kind} {comm}");
        }
    }

    #[test]
    fn the_highest_rate_of_a_counter_is_between_two_rows_of_one_instance() {
        let row = |id: &str, s: i64, value: Option<i64>| json!({"container_id": id, "ktime_ns": s * 1_000_000_000, "m": value});
        let rows = [
            row("a", 3, Some(70)),
            row("a", 1, Some(10)),
            row("a", 2, None),
            row("b", 4, Some(0)),
            row("b", 5, Some(20)),
            row("c", 6, Some(1000)),
        ];
        let ids = ["a".to_owned(), "b".to_owned()];
        assert_eq!(peak(&rows, &ids, "m", true), Some(30.0));
        assert_eq!(peak(&rows, &ids, "m", false), Some(70.0));
        assert_eq!(peak(&rows, &[], "m", false), None);
        assert_eq!(peak(&rows, &["c".to_owned()], "m", true), None, "one row has no rate");
    }
}
