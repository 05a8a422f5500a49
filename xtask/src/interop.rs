//! `cargo xtask interop`: engines that share no code with us read what a real agent wrote, and must find the same rows and sums;
//! the queries of docs/query.md run over it. Must never write what is read: it is the output of the demo.
//! Called by a person, and by `test` with the engines that CI has.

use crate::child::tool;
use crate::clock::ktime_ns;
use crate::progress::say;
use crate::suite::{OTHER, checked, shown, venv};
use crate::tally::Tally;
use crate::{demo, kernel, paths, usage};
use anyhow::Result;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const USAGE: &str = "cargo xtask interop [--all] [--data DIR --parquet FILE]";
/// Spark takes its time to start, and ClickHouse is 600 MB to fetch.
const ALL: Duration = Duration::from_mins(20);

pub fn verb(args: &[OsString]) -> Result<i32> {
    let (mut is_all, mut data, mut parquet) = (false, None, None);
    let words: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "--all" => is_all = true,
            "--data" => data = Some(PathBuf::from(usage::value(words.next(), word, USAGE)?)),
            "--parquet" => parquet = Some(PathBuf::from(usage::value(words.next(), word, USAGE)?)),
            _ => return Err(usage::wrong(format!("unknown option `{word}`"), USAGE)),
        }
    }
    let (data, parquet) = match (data, parquet) {
        (Some(data), Some(parquet)) => (data, parquet),
        (None, None) => {
            if let Some(found) = newest_demo() {
                found
            } else {
                say("no demo has been played yet: playing one");
                let made = demo::in_vm(kernel::DEFAULT)?;
                (made.data, made.parquet)
            }
        }
        _ => return Err(usage::wrong("--data and --parquet go together", USAGE)),
    };
    say(&format!("reading {} and {}", data.display(), parquet.display()));
    let start = ktime_ns();
    let tally = check(&data, &parquet, is_all)?;
    say(&format!("{} s", (ktime_ns() - start) / 1_000_000_000));
    Ok(i32::from(!tally.good()))
}

/// A data folder and an exported file, read by the engines of CI or by all.
pub fn check(data: &Path, parquet: &Path, is_all: bool) -> Result<Tally> {
    let folder = paths::root().join("tests/interop");
    let lists =
        if is_all { &["requirements.txt", "requirements-all.txt"][..] } else { &["requirements.txt"] };
    let mut c = tool(venv(&folder, lists)?);
    c.arg(folder.join("check.py")).arg("--parquet").arg(parquet).arg("--data").arg(data);
    c.arg("--questions").arg(paths::root().join("docs/query.md"));
    if is_all {
        c.arg("--all");
    }
    let (status, text) = shown(&mut c, if is_all { ALL } else { OTHER })?;
    checked(status, &text)
}

/// Data folder and export of the last demo that came to its end.
fn newest_demo() -> Option<(PathBuf, PathBuf)> {
    let entries = fs::read_dir(paths::target().join("demo")).ok()?;
    let mut all: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    all.sort();
    let whole = all.into_iter().map(|dir| (dir.join("data"), dir.join("incident.parquet")));
    whole.rev().find(|(data, parquet)| data.join("recent").is_dir() && parquet.is_file())
}
