//! Rules of the repository, as tests: layers, headers, sizes, licences, and nothing of one machine in the sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The way of the data. A file may use what stands before it, never what stands behind.
const LAYERS: &[&str] = &[
    "names",
    "clock",
    "priority",
    "catalogue",
    "event",
    "config",
    "cgroup",
    "schema",
    "pods",
    "incident",
    "lane",
    "trigger",
    "warn",
    "recorder",
    "accumulator",
    "ledger",
    "journal",
    "story",
    "machine",
    "discovery",
    "processes",
    "notify",
    "kubernetes",
    "sampler",
    "probes",
    "segment",
    "compaction",
    "retention",
    "bucket",
    "store",
    "fleet",
    "query",
    "timeseries",
    "analyze",
    "report",
    "export",
    "viewer",
    "ship",
    "upkeep",
    "pipeline",
    "cli",
    "main",
];
/// Longer than this, a file is to be split.
const LONGEST_FILE: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if path.is_dir() {
            if !["target", "node_modules", ".git", "out"].contains(&&*name) {
                walk(&path, out);
            }
        } else {
            out.push(path);
        }
    }
}

fn files(ending: &str) -> Vec<(PathBuf, String)> {
    let mut out = Vec::new();
    walk(&root(), &mut out);
    let mut found: Vec<_> = out
        .into_iter()
        .filter(|p| p.to_string_lossy().ends_with(ending))
        .filter_map(|p| fs::read_to_string(&p).ok().map(|t| (p, t)))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no file ends in {ending}");
    found
}

/// `agent/src/cgroup/parse.rs` → `cgroup`.
fn module(path: &Path) -> Option<String> {
    let rest = path.strip_prefix(root().join("agent/src")).ok()?;
    let first = rest.components().next()?.as_os_str().to_string_lossy().into_owned();
    Some(first.trim_end_matches(".rs").to_owned())
}

#[test]
fn imports_go_up_only() {
    let place = |m: &str| LAYERS.iter().position(|l| *l == m);
    for (path, text) in files(".rs") {
        let Some(own) = module(&path).filter(|m| m != "lib") else { continue };
        let at = place(&own).unwrap_or_else(|| panic!("{} has no place in LAYERS", path.display()));
        // the tests of a file may use anything
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let used: BTreeSet<&str> = code
            .match_indices("crate::")
            .map(|(i, m)| &code[i + m.len()..])
            .map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap_or_default())
            .collect();
        for module in used.into_iter().filter(|m| *m != own && !m.is_empty()) {
            if let Some(other) = place(module) {
                assert!(other < at, "{}: {own} must not use {module}, which comes after it", path.display());
            }
        }
    }
}

#[test]
fn every_source_file_says_what_it_is_for() {
    for (path, text) in files(".rs") {
        assert!(text.starts_with("//!"), "{} does not begin with //!", path.display());
    }
}

#[test]
fn no_file_is_too_long() {
    for (path, text) in files(".rs") {
        let lines = text.lines().count();
        assert!(lines <= LONGEST_FILE, "{} has {lines} lines: split it", path.display());
    }
}

#[test]
fn the_pure_middle_reads_no_clock_and_no_file() {
    const PURE: &[&str] = &[
        "names",
        "catalogue",
        "event",
        "schema",
        "incident",
        "lane",
        "trigger",
        "warn",
        "accumulator",
        "ledger",
        "journal",
        "retention",
        "story",
        "cgroup",
        "pods",
    ];
    for (path, text) in files(".rs") {
        if !module(&path).is_some_and(|m| PURE.contains(&m.as_str())) {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in ["std::fs", "std::net", "std::thread", "tokio", "rustix", "clock::", "aya::"] {
            assert!(!code.contains(word), "{} uses {word}", path.display());
        }
    }
}

#[test]
fn every_licence_is_one_that_we_take() {
    const TAKEN: &[&str] =
        &["MIT", "Apache-2.0", "BSD", "ISC", "Zlib", "Unicode", "Unlicense", "MPL-2.0", "CC0"];
    let out = Command::new(env!("CARGO"))
        // what deny.toml looks at: the lock names crates of systems that we are not built for
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .arg("--manifest-path")
        .arg(root().join("Cargo.toml"))
        .output()
        .expect("cargo metadata");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let all: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let packages = all["packages"].as_array().expect("packages");
    assert!(packages.len() > 50, "{} packages", packages.len());
    for p in packages {
        let licence = p["license"].as_str().unwrap_or_default();
        assert!(TAKEN.iter().any(|t| licence.contains(t)), "{}: {licence:?}", p["name"]);
    }
}
