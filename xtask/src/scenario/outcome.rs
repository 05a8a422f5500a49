//! What a run leaves: the verdict on what was told, and the files of what was recorded, which is what `--json` ends with.
//! Must never call a scenario good of which nothing was recorded. Called by `run`, `cluster` and `verbs`.

use super::expect::Verdict;
use super::play::{Record, seconds};
use super::runs::{Run, State, record_of};
use super::{Scenario, ask};
use crate::child::{self, tool};
use crate::cluster::command;
use crate::progress::{quiet, say};
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const EXPORT: Duration = Duration::from_mins(2);

/// With `--json` the last line on stdout.
#[derive(Serialize)]
pub struct Outcome {
    run: String,
    scenario: String,
    #[serde(flatten)]
    verdict: Verdict,
    /// None where nothing was recorded; a group has no Parquet beside the one in its reports.
    html: Option<PathBuf>,
    parquet: Option<PathBuf>,
}

pub fn kept(out: &Path, name: &str) -> Result<Record> {
    let path = record_of(out, name);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

pub fn verdict(record: &Record) -> Result<Verdict> {
    Ok(Scenario::load(&record.scenario)?.expect()?.judge(record))
}

pub fn keep(record: &Record, out: &Path) -> Result<()> {
    let path = record_of(out, &record.scenario);
    fs::write(&path, serde_json::to_string_pretty(record)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

pub fn of_folder(out: &Path, agent: &Path, run: &str, name: &str, endings: &[&str]) -> Result<Outcome> {
    of_record(out, agent, run, &kept(out, name)?, endings)
}

/// Compare, and export what was recorded of its pods as a user would: of the folder's own data.
pub fn of_record(out: &Path, agent: &Path, run: &str, record: &Record, endings: &[&str]) -> Result<Outcome> {
    let verdict = verdict(record)?;
    show(&record.scenario, &verdict);
    let export = |ending: &str| -> Result<Option<PathBuf>> {
        // A record without an end has nothing to export.
        if record.to_us == 0 || !endings.contains(&ending) {
            return Ok(None);
        }
        let file = out.join(format!("{run}.{ending}"));
        let mut c = tool(agent);
        c.arg("export");
        if !record.paths.is_empty() {
            c.args(["--containers", &record.paths]);
        }
        c.args(["--from", &seconds(record.from_us), "--to", &seconds(record.to_us)]);
        c.arg("--data").arg(out.join("data")).arg("-o").arg(&file);
        match quiet(&format!("exporting {run}.{ending}"), "scenario-export", EXPORT, &mut c) {
            // What failed may have failed before there was a row.
            Err(e) if record.error.is_some() => {
                say(&format!("no {ending}: {e:#}"));
                Ok(None)
            }
            other => other.map(|()| Some(file)),
        }
    };
    let (html, parquet) = (export("html")?, export("parquet")?);
    Ok(Outcome { run: run.to_owned(), scenario: record.scenario.clone(), verdict, html, parquet })
}

/// The same of a cluster, whose agents have the rows.
pub fn of_cluster(run: &Run, record: &Record) -> Result<Outcome> {
    let verdict = verdict(record)?;
    show(&record.scenario, &verdict);
    let (html, parquet) = ask::export(run)?;
    Ok(Outcome { run: run.id.clone(), scenario: run.scenario.clone(), verdict, html, parquet })
}

/// Runs a line of `fgm export`; `None` where there was nothing to export, which only a run that failed or was stopped may have.
pub fn exporting(run: &Run, line: &[String], file: &Path) -> Result<Option<PathBuf>> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    match quiet(&format!("exporting {name}"), "scenario-export", EXPORT, &mut command(line)) {
        Ok(()) if fs::metadata(file).is_ok_and(|m| m.len() > 0) => Ok(Some(file.to_path_buf())),
        Ok(()) => bail!("`{}` wrote nothing", child::shown(&command(line))),
        Err(e) if run.error.is_some() || run.state == State::Stopped => {
            say(&format!("no {name}: {e:#}"));
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// For a person, before an export that may fail; says whether it is as it should be.
pub fn show(name: &str, verdict: &Verdict) -> bool {
    let Verdict { met, missing, unexpected, note } = verdict;
    let good = verdict.is_good();
    say(&format!("{} {name}: {} met", if good { "✓" } else { "✗" }, met.len()));
    if let Some(note) = note {
        say(&format!("    by the rules for a cluster: {note}"));
    }
    for (word, list) in [("missing", missing), ("unexpected", unexpected)] {
        for what in list {
            say(&format!("    {word}: {what}"));
        }
    }
    good
}

impl Outcome {
    /// On stdout; says whether it is as it should be.
    pub fn print(&self, json: bool) -> Result<bool> {
        if json {
            println!("{}", serde_json::to_string(self)?);
        } else {
            for (what, file) in [("report", &self.html), ("parquet", &self.parquet)] {
                let file = file.as_ref().map_or("none".into(), |f| f.display().to_string());
                println!("{what:8} {file}");
            }
        }
        Ok(self.is_good())
    }

    pub fn is_good(&self) -> bool {
        self.verdict.is_good()
    }
}
