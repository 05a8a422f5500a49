//! `cargo xtask faults`: the crash tests of the store and of the real agent over as many points as are asked for, and what
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
/// Of a hundred points so many kill the real agent; the others die within a file operation of the store.
const OF_THE_AGENT: u64 = 20;
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
    let of_agent = points * OF_THE_AGENT / 100;
    let mut all = json!({ MOST: 0.0 });
    for (test, points) in [("store_crash", points - of_agent), ("agent_crash", of_agent)] {
        add(&mut all, &counted(test, points)?)?;
    }
    let all_well = SUMS[1..].iter().all(|key| all[*key] == 0) && all[MOST].as_f64() <= Some(MOST_SECONDS);
    for key in SUMS.iter().chain([&MOST]) {
        println!("{key:<24}{}", all[*key]);
    }
    if let Some(path) = json_file {
        fs::write(&path, format!("{all:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !all_well {
        say(&format!("not all is well: wanted are zeros, and at most {MOST_SECONDS} s of base samples lost"));
    }
    Ok(i32::from(!all_well))
}

fn add(all: &mut Value, more: &Value) -> Result<()> {
    for key in SUMS {
        let n = more[key].as_u64().with_context(|| format!("the test printed no {key}"))?;
        all[key] = json!(all[key].as_u64().unwrap_or(0) + n);
    }
    let most = more[MOST].as_f64().with_context(|| format!("the test printed no {MOST}"))?;
    all[MOST] = json!(all[MOST].as_f64().unwrap_or(0.0).max(most));
    Ok(())
}

/// Runs a crash test; what it counted, whether or not it found that good.
fn counted(test: &str, points: u64) -> Result<Value> {
    let log = format!("faults-{test}");
    let mut command = cargo();
    command.args(["test", "--quiet", "-p", "fgm", "--test", test, "--", "--nocapture", "--test-threads=1"]);
    command.env("FGM_TEST_POINTS", points.to_string());
    let limit = BUILD + PER_POINT * u32::try_from(points)?;
    let outcome = quiet(&format!("{test}, {points} points"), &log, limit, &mut command);
    let path = crate::paths::target().join("logs").join(format!("{log}.log"));
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if let Some((_, counts)) = text.lines().find_map(|l| l.split_once("faults: ")) {
        return serde_json::from_str(counts).with_context(|| format!("{test} printed no JSON: {counts}"));
    }
    outcome?;
    bail!("{test} counted nothing (is cgroup v2 mounted?); see {}", path.display());
}

#[cfg(test)]
mod tests {
    use super::{add, verb};
    use serde_json::json;

    #[test]
    fn counts_add_up_and_the_worst_second_stands() {
        let one = |lost| {
            json!({"points": 3, "unreadable": 0, "incidents_lost": 1, "duplicates": 0, "ledger_errors": 0,
                "base_seconds_lost_max": lost})
        };
        let mut all = json!({"base_seconds_lost_max": 0.0});
        for lost in [0.5, 0.25] {
            add(&mut all, &one(lost)).expect("whole");
        }
        assert_eq!(
            (&all["points"], &all["incidents_lost"], &all["base_seconds_lost_max"]),
            (&6.into(), &2.into(), &0.5.into())
        );
        assert!(add(&mut all, &json!({})).is_err());
        assert!(verb(&["--points".into(), "3".into()]).is_err());
    }
}
