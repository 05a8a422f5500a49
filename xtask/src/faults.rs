//! `cargo xtask faults`: the tests of what goes wrong with the store and the real agent, over as many points as are asked for, and what
//! they counted as one table. Must never count by itself: the tests do, and print it. Called by a person.

use crate::child::cargo;
use crate::progress::{quiet, say};
use crate::usage;
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const USAGE: &str = "cargo xtask faults [--points N] [--json FILE]";
/// Of a hundred points: how many a test has, and of how many kinds of fault. What depends on the instant gets most.
const TESTS: [(&str, u64, u64); 5] = [
    ("store_crash", 52, 1),
    ("agent_crash", 20, 1),
    ("store_compaction", 8, 1),
    ("store_retention", 8, 1),
    ("store_faults", 12, 6),
];
/// A point takes one to three seconds.
const PER_POINT: Duration = Duration::from_secs(10);
const BUILD: Duration = Duration::from_mins(20);
const SUMS: [&str; 5] = ["points", "unreadable", "incidents_lost", "duplicates", "ledger_errors"];
const MOST: &str = "base_seconds_lost_max";
/// What the design allows.
const MOST_SECONDS: f64 = 1.0;

/// 0 when nothing was lost that must not be, 1 otherwise.
pub fn verb(args: &[OsString]) -> Result<i32> {
    let (mut points, mut json_file) = (100, None);
    let mut args = args.iter().map(|a| a.to_string_lossy().into_owned());
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| usage::wrong(format!("{arg} has no value"), USAGE));
        match arg.as_str() {
            "--points" => {
                let text = value()?;
                let number = text.parse().ok().filter(|n| (10..=100_000).contains(n));
                points =
                    number.ok_or_else(|| usage::wrong(format!("--points {text}: 10 to 100000"), USAGE))?;
            }
            "--json" => json_file = Some(PathBuf::from(value()?)),
            _ => return Err(usage::wrong(format!("unknown option `{arg}`"), USAGE)),
        }
    }
    let mut all = json!({ MOST: 0.0, "kinds": [] });
    for (test, share, kinds) in TESTS {
        for of_one in counted(test, (points * share / 100).div_ceil(kinds), kinds)? {
            add(&mut all, &of_one)?;
        }
    }
    let all_well = SUMS[1..].iter().all(|key| all[*key] == 0) && all[MOST].as_f64() <= Some(MOST_SECONDS);
    print!("{}", table(&all));
    if let Some(path) = json_file {
        fs::write(&path, format!("{all:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !all_well {
        say(&format!("not all is well: wanted are zeros, and at most {MOST_SECONDS} s of base samples lost"));
    }
    Ok(i32::from(!all_well))
}

/// A line for each kind of fault, the sums last.
fn table(all: &Value) -> String {
    let keys: Vec<&str> = SUMS.into_iter().chain([MOST]).collect();
    let line = |kind: &str, row: &Value| {
        let cells: Vec<String> = keys.iter().map(|key| row[*key].to_string()).collect();
        format!("| {kind} | {} |\n", cells.join(" | "))
    };
    let mut out = format!("| kind | {} |\n|---|{}\n", keys.join(" | "), "---|".repeat(keys.len()));
    for kind in all["kinds"].as_array().into_iter().flatten() {
        out.push_str(&line(kind["kind"].as_str().unwrap_or_default(), kind));
    }
    out.push_str(&line("all", all));
    out
}

fn add(all: &mut Value, more: &Value) -> Result<()> {
    for key in SUMS {
        let n = more[key].as_u64().with_context(|| format!("the test printed no {key}"))?;
        all[key] = json!(all[key].as_u64().unwrap_or(0) + n);
    }
    let most = more[MOST].as_f64().with_context(|| format!("the test printed no {MOST}"))?;
    all[MOST] = json!(all[MOST].as_f64().unwrap_or(0.0).max(most));
    all["kinds"].as_array_mut().context("kinds is a list")?.push(more.clone());
    Ok(())
}

/// Runs a test; what it counted of each kind, whether or not it found that good.
fn counted(test: &str, points: u64, kinds: u64) -> Result<Vec<Value>> {
    let log = format!("faults-{test}");
    let mut command = cargo();
    command.args(["test", "--quiet", "-p", "fgm", "--test", test, "--", "--nocapture", "--test-threads=1"]);
    command.env("FGM_TEST_POINTS", points.to_string());
    let limit = BUILD + PER_POINT * u32::try_from(points * kinds)?;
    let outcome = quiet(&format!("{test}, {points} points of each kind"), &log, limit, &mut command);
    let path = crate::paths::target().join("logs").join(format!("{log}.log"));
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    for skipped in text.lines().filter(|l| l.contains("SKIPPED ")) {
        say(skipped);
    }
    let lines = text.lines().filter_map(|l| Some(l.split_once("faults: ")?.1));
    let found: Vec<Value> = lines
        .map(|l| serde_json::from_str(l).with_context(|| format!("{test} printed no JSON: {l}")))
        .collect::<Result<_>>()?;
    // a test that failed says nothing of the others', and one that counted has said why it failed
    if found.is_empty() || found.iter().all(|f| SUMS[1..].iter().all(|key| f[*key] == 0)) {
        outcome?;
    }
    if found.is_empty() {
        bail!("{test} counted nothing (is cgroup v2 mounted?); see {}", path.display());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{add, verb};
    use serde_json::json;

    #[test]
    fn counts_add_up_and_the_worst_second_stands() {
        let one = |lost| {
            json!({"kind": "torn", "points": 3, "unreadable": 0, "incidents_lost": 1, "duplicates": 0, "ledger_errors": 0,
                "base_seconds_lost_max": lost})
        };
        let mut all = json!({"base_seconds_lost_max": 0.0, "kinds": []});
        for lost in [0.5, 0.25] {
            add(&mut all, &one(lost)).expect("whole");
        }
        assert_eq!(
            (&all["points"], &all["incidents_lost"], &all["base_seconds_lost_max"]),
            (&6.into(), &2.into(), &0.5.into())
        );
        assert!(
            super::table(&all).ends_with("| all | 6 | 0 | 2 | 0 | 0 | 0.5 |\n"),
            "{}",
            super::table(&all)
        );
        assert!(add(&mut all, &json!({})).is_err());
        assert!(verb(&["--points".into(), "3".into()]).is_err());
    }
}
