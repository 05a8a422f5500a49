//! `cargo xtask bench viewer`: makes a folder of many containers and a million rows, and a report of them, has both opened in Chromium
//! (`static/test/bench.mjs`) and holds the times against their bounds. Must never count a page that did not open.

use super::{machine, out_folder};
use crate::child::{cargo, output, tool};
use crate::progress::say;
use crate::{browser, ebpf};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const CONTAINERS: &str = "500";
/// Where a number stands, the least and the most that it may be, and what it is.
const BOUNDS: [(&str, f64, f64, &str); 6] = [
    ("/viewer/containers", 500.0, f64::INFINITY, "containers in the list"),
    ("/viewer/metrics", 200.0, f64::INFINITY, "metrics in the search"),
    ("/viewer/rows_drawn", 1e6, f64::INFINITY, "rows behind the viewer's panels"),
    ("/viewer/first_paint_ms", 0.0, 1000.0, "viewer, first paint, ms"),
    ("/report/rows", 1e6, f64::INFINITY, "rows that the report is of"),
    ("/report/opened_ms", 0.0, 2000.0, "report opened and drawn, ms"),
];
/// A report of all columns of so many rows is refused for its size.
const METRICS: &str = "memory_current,memory_max,cpu_stat_usage_usec";
const REPORT_BYTES: f64 = 5.0 * 1024.0 * 1024.0;
/// The worst of each kind of input, until it is on the screen.
const INTERACTION_MS: f64 = 100.0;

pub fn bench(json_file: Option<&Path>) -> Result<i32> {
    browser::ensure()?;
    browser::libraries()?;
    say("building the release and its benchmark");
    let mut c = cargo();
    c.args(["build", "--release", "-p", "fgm", "--bin", "fgm", "--bench", "store"]);
    c.args(["--message-format", "json-render-diagnostics"]);
    let built = ebpf::executables(&mut c)?;
    let find = |begins: &str| -> Result<PathBuf> {
        let name = |p: &Path| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(begins));
        built.iter().find(|p| name(p)).cloned().with_context(|| format!("cargo built no {begins}"))
    };
    let (store, fgm) = (find("store")?, find("fgm")?);
    let out = out_folder("viewer")?;
    let (data, report) = (out.join("data"), out.join("report.html"));
    say("writing a million rows of eight containers, and 492 more containers");
    output(tool(store).arg("pages").arg(&data).arg(CONTAINERS))?;
    say("making the report");
    // Container ids 0 to 7, as `agent/benches/store.rs` names them.
    let eight: Vec<String> = (0..8).map(|n| format!("{n:064x}")).collect();
    let mut c = tool(&fgm);
    c.args(["export", "--from", "2000-01-01T00:00:00Z", "--containers", &eight.join(",")]).arg("--data");
    c.arg(&data).args(["--metrics", METRICS]).arg("-o").arg(&report);
    output(&mut c)?;
    say("opening both in Chromium");
    let mut c = tool("node");
    c.arg("test/bench.mjs").current_dir(browser::folder()).env("CHROMIUM", browser::chromium()?);
    c.env("FGM_DATA", &data).env("FGM_BIN", &fgm).env("FGM_REPORT", &report).env("FGM_SHOTS", &out);
    let mut all: Value = serde_json::from_str(&output(&mut c)?).context("bench.mjs printed no JSON")?;
    all["machine"] = json!(machine());
    println!("{all:#}");
    let (told, is_good) = judged(&all);
    say(&told);
    if let Some(path) = json_file {
        fs::write(path, format!("{all:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if is_good {
        fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    Ok(i32::from(!is_good))
}

/// Each number with its bound, and whether all keep to it.
fn judged(all: &Value) -> (String, bool) {
    let mut is_good = true;
    let mut told = String::new();
    let mut judge = |what: &str, found: Option<f64>, least: f64, most: f64| {
        let keeps = found.is_some_and(|n| n >= least && n <= most);
        is_good &= keeps;
        let bound = if most.is_finite() { format!("at most {most}") } else { format!("at least {least}") };
        let found = found.map_or("not measured".to_owned(), |n| format!("{n}"));
        let _ = writeln!(told, "{} {what}: {found} ({bound})", if keeps { "✓" } else { "✗" });
    };
    for (place, least, most, what) in BOUNDS {
        judge(what, all.pointer(place).and_then(Value::as_f64), least, most);
    }
    judge("report, bytes", all["report"]["bytes"].as_f64(), 1.0, REPORT_BYTES);
    for page in ["viewer", "report"] {
        match all[page]["interaction"].as_object() {
            Some(kinds) if !kinds.is_empty() => {
                for (kind, times) in kinds {
                    let what = format!("{page}, {kind}, worst, ms");
                    judge(&what, times["worst_ms"].as_f64(), 0.0, INTERACTION_MS);
                }
            }
            _ => judge(&format!("{page}, interaction"), None, 0.0, INTERACTION_MS),
        }
    }
    (told, is_good)
}

#[cfg(test)]
mod tests {
    use super::judged;
    use serde_json::json;

    #[test]
    fn a_slow_page_or_one_not_measured_is_no_success() {
        let good = json!({
            "viewer": {"containers": 600, "metrics": 250, "rows_drawn": 1_000_000, "first_paint_ms": 999.0,
                "interaction": {"wheel": {"median_ms": 20, "worst_ms": 99.9}}},
            "report": {"rows": 1_000_000, "bytes": 5_000_000, "opened_ms": 1999, "interaction": {"wheel": {"worst_ms": 30}}},
        });
        let (told, is_good) = judged(&good);
        assert!(is_good && !told.contains('✗'), "{told}");
        for (place, bad) in [
            ("/viewer/interaction/wheel/worst_ms", json!(101)),
            ("/viewer/containers", json!(499)),
            ("/report/interaction", json!({})),
            ("/report/opened_ms", json!(null)),
            ("/report/rows", json!(999_999)),
        ] {
            let mut all = good.clone();
            *all.pointer_mut(place).expect(place) = bad;
            assert!(!judged(&all).1, "{place}");
        }
    }
}
