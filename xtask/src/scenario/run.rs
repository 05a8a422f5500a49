//! A run from outside: builds, plays in the test VM or here, compares with what was expected, exports what was recorded.
//! Must never call a scenario good of which nothing was recorded. Called by `scenario` and by `test`.

use super::expect::Verdict;
use super::play::{self, Record};
use super::{Scenario, folder};
use crate::child::tool;
use crate::demo::{self, CGROUP_ROOT, Programs};
use crate::progress::{quiet, say};
use crate::tally::Tally;
use crate::vm::Guest;
use crate::{cgroup, clock, paths, usage};
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What `cargo xtask test` plays; `--long` plays all.
pub const GROUP: [&str; 4] = ["oom-group", "sigpipe-crash", "crash-loop", "quiet"];
/// Boot, the agent's start and end, on a busy machine.
const AROUND: Duration = Duration::from_mins(6);

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Vm,
    Host,
}

/// What a run leaves; with `--json` the last line on stdout.
#[derive(Serialize)]
struct Outcome {
    run: String,
    scenario: String,
    #[serde(flatten)]
    verdict: Verdict,
    /// None where the scenario did not come to its end; a group has no Parquet beside the one in its reports.
    html: Option<PathBuf>,
    parquet: Option<PathBuf>,
}

pub fn names() -> Vec<String> {
    let entries = fs::read_dir(folder()).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|e| e.path().join("scenario.toml").exists())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

pub fn verb(name: &str, options: &[&str], usage: &str) -> Result<i32> {
    let (mut place, mut kernel, mut out, mut json) = (None, None, None, false);
    let mut options = options.iter().copied();
    while let Some(option) = options.next() {
        match option {
            "--json" => json = true,
            "--on" => {
                place = Some(match usage::value(options.next(), option, usage)? {
                    "vm" => Place::Vm,
                    "host" => Place::Host,
                    other => return Err(usage::wrong(format!("--on {other}: there are vm and host"), usage)),
                });
            }
            "--kernel" => kernel = Some(usage::value(options.next(), option, usage)?.to_owned()),
            "--out" => out = Some(PathBuf::from(usage::value(options.next(), option, usage)?)),
            _ => return Err(usage::wrong(format!("unknown option `{option}`"), usage)),
        }
    }
    let scenario = Scenario::load(name)?;
    scenario.expect()?;
    if kernel.is_some() && place == Some(Place::Host) {
        return Err(usage::wrong("--kernel goes with --on vm only", usage));
    }
    let kernel = kernel.unwrap_or_else(|| crate::kernel::DEFAULT.to_owned());
    crate::kernel::check_series(&kernel)?;
    let place = chosen(place, name)?;
    say(scenario.description.trim());
    let run = format!("{name}-{}", clock::stamp());
    let out = out.unwrap_or_else(|| paths::target().join("scenario").join(&run));
    let programs = demo::build()?;
    let out = play_all(place, &kernel, &out, &programs, &[name])?;
    let outcome = outcome(&out, &programs.agent, &run, name, &["html", "parquet"])?;
    let good = show(name, &outcome.verdict);
    if json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        for (what, file) in [("report", &outcome.html), ("parquet", &outcome.parquet)] {
            let file = file.as_ref().map_or("none".into(), |f| f.display().to_string());
            println!("{what:8} {file}");
        }
    }
    Ok(i32::from(!good))
}

/// All of them in one boot.
pub fn all(options: &[&str], usage: &str) -> Result<i32> {
    let kernel = match options {
        [] => crate::kernel::DEFAULT,
        ["--kernel", series] => series,
        _ => return Err(usage::wrong(format!("`{}`", options.join(" ")), usage)),
    };
    crate::kernel::check_series(kernel)?;
    let tally = group(&names(), kernel)?;
    println!("{tally}");
    Ok(i32::from(!tally.good()))
}

/// Several in one boot, for `test`: a passed or failed one for each.
pub fn group(names: &[String], kernel: &str) -> Result<Tally> {
    let programs = demo::build()?;
    let run = clock::stamp();
    let out = paths::target().join("scenario").join(&run);
    let words: Vec<&str> = names.iter().map(String::as_str).collect();
    let out = play_all(Place::Vm, kernel, &out, &programs, &words)?;
    let mut tally = Tally::default();
    for name in names {
        let good = outcome(&out, &programs.agent, &format!("{name}-{run}"), name, &["html"])
            .map(|o| show(name, &o.verdict));
        match good {
            Ok(true) => tally.passed += 1,
            Ok(false) => tally.failed += 1,
            Err(e) => {
                say(&format!("✗ {name}: {e:#}"));
                tally.failed += 1;
            }
        }
    }
    Ok(tally)
}

/// Compares what was recorded before with what is expected now.
pub fn judge(out: &Path) -> Result<i32> {
    let mut tally = Tally::default();
    for name in names() {
        if out.join(format!("{name}.json")).exists() {
            tally += if show(&name, &verdict(out, &name)?.1) { Tally::PASSED } else { Tally::FAILED };
        }
    }
    if tally == Tally::default() {
        bail!("{} has no scenario's record", out.display());
    }
    println!("{tally}");
    Ok(i32::from(!tally.good()))
}

fn verdict(out: &Path, name: &str) -> Result<(Record, Verdict)> {
    let path = out.join(format!("{name}.json"));
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let record: Record = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let verdict = Scenario::load(name)?.expect()?.judge(&record);
    Ok((record, verdict))
}

fn chosen(place: Option<Place>, name: &str) -> Result<Place> {
    match (place, cgroup::usable(Path::new(CGROUP_ROOT))) {
        (Some(Place::Host), Err(why)) => {
            bail!("{why:#}\n  to play it in the test VM instead: cargo xtask scenario run {name} --on vm")
        }
        (Some(place), _) => Ok(place),
        (None, Ok(())) => Ok(Place::Host),
        (None, Err(why)) => {
            say(&format!("not on this machine's own cgroups, since {why:#}; using the test VM"));
            Ok(Place::Vm)
        }
    }
}

/// Leaves a record of each in the output folder, whose full path it returns.
fn play_all(place: Place, kernel: &str, out: &Path, programs: &Programs, names: &[&str]) -> Result<PathBuf> {
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let out = out.canonicalize().with_context(|| format!("no folder {}", out.display()))?;
    if place == Place::Host {
        play::play(&out, &programs.agent, &programs.workload, names)?;
        return Ok(out);
    }
    let own = paths::own()?;
    let mut words: Vec<OsString> = vec![own.into(), "scenario".into(), "--play".into()];
    words.extend([&out, &programs.agent, &programs.workload].map(OsString::from));
    words.extend(names.iter().map(OsString::from));
    let mut guest = Guest::new(words)?;
    kernel.clone_into(&mut guest.series);
    let mut all = AROUND;
    for name in names {
        all += Duration::from_secs(Scenario::load(name)?.timeout_s) + Duration::from_mins(1);
    }
    guest.timeout = all;
    guest.out = Some(out.clone());
    // What comes out comes by file; the guest's stdout must not mix with ours, whose last line is promised.
    let code = guest.run_with(&mut std::io::stderr(), &mut std::io::stderr())?;
    if code != 0 {
        bail!(
            "the run failed in the test VM (exit code {code}); what there is of it is in {}",
            out.display()
        );
    }
    Ok(out)
}

/// Compare, and export what was recorded of its pods as a user would.
fn outcome(out: &Path, agent: &Path, run: &str, name: &str, endings: &[&str]) -> Result<Outcome> {
    let (record, verdict) = verdict(out, name)?;
    let seconds = |us: i64| format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    let export = |ending: &str| -> Result<Option<PathBuf>> {
        // A record without an end has nothing to export.
        if record.to_us == 0 || !endings.contains(&ending) {
            return Ok(None);
        }
        let file = out.join(format!("{run}.{ending}"));
        let mut c = tool(agent);
        c.args(["export", "--containers", &record.paths]);
        c.args(["--from", &seconds(record.from_us), "--to", &seconds(record.to_us)]);
        c.arg("--data").arg(out.join("data")).arg("-o").arg(&file);
        quiet(&format!("exporting {run}.{ending}"), "scenario-export", Duration::from_mins(2), &mut c)?;
        Ok(Some(file))
    };
    let (html, parquet) = (export("html")?, export("parquet")?);
    Ok(Outcome { run: run.to_owned(), scenario: name.to_owned(), verdict, html, parquet })
}

/// For a person; says whether it is as it should be.
fn show(name: &str, verdict: &Verdict) -> bool {
    let Verdict { met, missing, unexpected } = verdict;
    let good = verdict.is_good();
    say(&format!("{} {name}: {} met", if good { "✓" } else { "✗" }, met.len()));
    for (word, list) in [("missing", missing), ("unexpected", unexpected)] {
        for what in list {
            say(&format!("    {word}: {what}"));
        }
    }
    good
}
