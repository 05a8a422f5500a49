//! `cargo xtask bench store`: builds `agent/benches/store.rs` and the program as they are released, runs them and holds the numbers
//! against their bounds. Must never leave the gigabyte behind that it is measured on.

use super::{machine, out_folder};
use crate::child::{cargo, tool};
use crate::clock::Deadline;
use crate::ebpf;
use crate::progress::say;
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Two minutes on two idle cores.
const RUN: Duration = Duration::from_hours(1);
/// Where a number stands, what it may be at the most, and what it is.
const BOUNDS: [(&str, f64, &str); 7] = [
    ("/export_of_a_million_values/ms", 300.0, "export of a million values to Parquet, ms"),
    (
        "/one_hour_one_container_ten_metrics/by_cgroup_ms",
        100.0,
        "1 h × 1 container × 10 metrics, by cgroup, ms",
    ),
    (
        "/one_hour_one_container_ten_metrics/export_by_container_id_ms",
        100.0,
        "the same as an export by container id, ms",
    ),
    (
        "/export_of_many_rows/mib_above_idle",
        // 64 MB
        61.0,
        "memory of a 10 M row export above a program that has opened the folder, MiB",
    ),
    ("/merge_of_an_hour/mib_above_idle", 40.0, "memory of merging an hour of 200 containers, MiB"),
    ("/burst/dropped", 0.0, "rows dropped in 30 s of 100 Hz × 10 containers"),
    ("/burst/flushes_not_journaled", 0.0, "flushes of it that the journal did not take"),
];

pub fn bench(hours: usize, json_file: Option<&Path>) -> Result<i32> {
    say("building the release and its benchmark");
    let mut c = cargo();
    c.args(["build", "--release", "-p", "fgm", "--bin", "fgm", "--bench", "store"]);
    c.args(["--message-format", "json-render-diagnostics"]);
    let built = ebpf::executables(&mut c)?;
    let find = |begins: &str| -> Result<PathBuf> {
        let name = |p: &Path| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(begins));
        built.iter().find(|p| name(p)).cloned().with_context(|| format!("cargo built no {begins}"))
    };
    let (program, fgm) = (find("store")?, find("fgm")?);
    let out = out_folder("store")?;
    let mut c = tool(program);
    c.arg(&out).arg(fgm).arg(hours.to_string()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = crate::child::Reaped(c.spawn().context("cannot start the benchmark")?);
    let status = crate::child::wait_until(&mut child.0, Deadline::after(RUN))?;
    let mut text = String::new();
    if let Some(mut stdout) = child.0.stdout.take() {
        std::io::Read::read_to_string(&mut stdout, &mut text).context("what the benchmark said")?;
    }
    fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    if status.is_none_or(|s| !s.success()) {
        bail!("the benchmark failed, or took longer than {} s", RUN.as_secs());
    }
    let mut all: Value = serde_json::from_str(&text).context("the benchmark printed no JSON")?;
    all["machine"] = json!(machine());
    println!("{all:#}");
    let (report, is_good) = judged(&all);
    say(&report);
    if let Some(path) = json_file {
        fs::write(path, format!("{all:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(i32::from(!is_good))
}

/// Each number with its bound, and whether all keep to it.
fn judged(all: &Value) -> (String, bool) {
    let mut is_good = all["burst"]["rows"] == all["burst"]["rows_there"];
    let mut report = String::new();
    for (place, bound, what) in BOUNDS {
        let found = all.pointer(place).and_then(Value::as_f64).unwrap_or(f64::INFINITY);
        let keeps = found <= bound;
        is_good &= keeps;
        let _ = writeln!(report, "{} {what}: {found:.1} (bound {bound})", if keeps { "✓" } else { "✗" });
    }
    (report, is_good)
}

#[cfg(test)]
mod tests {
    use super::{BOUNDS, judged};
    use serde_json::json;

    #[test]
    fn a_number_that_is_missing_or_too_large_is_no_success() {
        let mut all = json!({
            "export_of_a_million_values": {"ms": 299.0},
            "one_hour_one_container_ten_metrics": {"by_cgroup_ms": 1, "export_by_container_id_ms": 2},
            "export_of_many_rows": {"mib_above_idle": 3},
            "merge_of_an_hour": {"mib_above_idle": 39.9},
            "burst": {"rows": 5, "rows_there": 5, "dropped": 0, "flushes_not_journaled": 0},
        });
        let (report, is_good) = judged(&all);
        assert!(is_good && report.matches('✓').count() == BOUNDS.len(), "{report}");
        all["burst"]["rows_there"] = json!(4);
        assert!(!judged(&all).1);
        all["burst"]["rows_there"] = json!(5);
        all["merge_of_an_hour"]["mib_above_idle"] = json!(41);
        assert!(!judged(&all).1);
    }
}
