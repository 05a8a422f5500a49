//! `cargo xtask demo`: from a clone to the report of a real OOM kill, with all set-up on the way.
//! Must never show anything that the agent did not record: the incident comes from its API, the files from `fgm export`.
//! Called by a person and by `test`.
//!
//! Plays on this machine's own cgroup v2 where that works, else in the test VM. The part that plays (`demo_play`) is the
//! same in both; in the VM it is this very program, started from its host path with the output folder shared. The export
//! reads the data folder afterwards and outside: inside, emulated, it takes 6 s a file instead of 0.6 s.

use crate::cgroup;
use crate::child::tool;
use crate::progress::{quiet, say};
use crate::vm::Guest;
use crate::{demo_play, ebpf, paths, scenario, usage};
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const USAGE: &str = "cargo xtask demo [--vm | --host] [--kernel SERIES] [--out DIR]";
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// What the demo leaves; also its last line on stdout.
#[derive(Serialize)]
pub struct Outcome {
    pub incident: String,
    pub html: PathBuf,
    pub parquet: PathBuf,
    pub data: PathBuf,
    pub summary: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Any,
    Vm,
    Host,
}

pub fn verb(args: &[OsString]) -> Result<i32> {
    let words: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    if words.first().is_some_and(|w| w == "--play") {
        return demo_play::verb(&words[1..]);
    }
    let (mut place, mut kernel, mut out) = (Place::Any, crate::kernel::DEFAULT.to_owned(), None);
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "--vm" => place = Place::Vm,
            "--host" => place = Place::Host,
            "--kernel" => usage::value(words.next(), word, USAGE)?.clone_into(&mut kernel),
            "--out" => out = Some(PathBuf::from(usage::value(words.next(), word, USAGE)?)),
            _ => return Err(usage::wrong(format!("unknown option `{word}`"), USAGE)),
        }
    }
    crate::kernel::check_series(&kernel)?;
    let outcome = run(place, &kernel, out)?;
    println!("\n{}\n", outcome.summary);
    println!("report   {}", outcome.html.display());
    println!("parquet  {}", outcome.parquet.display());
    println!("data     {}", outcome.data.display());
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(0)
}

/// The demo in the test VM, for `test`.
pub fn in_vm(kernel: &str) -> Result<Outcome> {
    run(Place::Vm, kernel, None)
}

fn run(place: Place, kernel: &str, out: Option<PathBuf>) -> Result<Outcome> {
    let usable = cgroup::usable(Path::new(CGROUP_ROOT));
    let on_host = match (place, usable) {
        (Place::Vm, _) => false,
        (Place::Host, usable) => usable.map(|()| true).context("--host: not on this machine")?,
        (Place::Any, Ok(())) => {
            say("demo: playing on this machine's own cgroup v2");
            true
        }
        (Place::Any, Err(why)) => {
            say(&format!("demo: not on this machine's own cgroups, since {why:#}; using the test VM"));
            false
        }
    };
    if !on_host {
        // First, so that a machine that lacks something says so before minutes of compiling.
        crate::setup::vm()?;
    }
    let programs = build()?;
    let out = out.unwrap_or_else(|| paths::target().join("demo").join(crate::clock::stamp()));
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let out = out.canonicalize().with_context(|| format!("no folder {}", out.display()))?;
    if on_host {
        demo_play::play(&out, &programs.agent, &programs.workload)?;
    } else {
        play_in_vm(&out, &programs, kernel)?;
    }
    outcome(&out, &programs.agent)
}

fn play_in_vm(out: &Path, programs: &Programs, kernel: &str) -> Result<()> {
    let own = paths::own()?;
    let (agent, workload) = (programs.agent.clone(), programs.workload.clone());
    let words: [OsString; 6] =
        [own.into(), "demo".into(), "--play".into(), out.into(), agent.into(), workload.into()];
    let mut guest = Guest::new(words.to_vec())?;
    kernel.clone_into(&mut guest.series);
    guest.timeout = Duration::from_mins(6);
    guest.out = Some(out.to_path_buf());
    // What comes out comes by file; the guest's stdout must not mix with ours, whose last line is promised.
    let code = guest.run_with(&mut std::io::stderr(), &mut std::io::stderr())?;
    if code != 0 {
        bail!(
            "the demo failed in the test VM (exit code {code}); what there is of it is in {}",
            out.display()
        );
    }
    Ok(())
}

/// Read what was played, and export it as a user would.
fn outcome(out: &Path, agent: &Path) -> Result<Outcome> {
    let path = out.join(demo_play::INCIDENT_FILE);
    let text = fs::read_to_string(&path).with_context(|| format!("the agent left no {}", path.display()))?;
    let incident: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    let text = |name: &str| {
        let value = incident.get(name).and_then(Value::as_str).map(str::to_owned);
        value.with_context(|| format!("the incident in {} has no {name}", path.display()))
    };
    let (id, data) = (text("id")?, out.join("data"));
    let (html, parquet) = (out.join("incident.html"), out.join("incident.parquet"));
    for (file, log) in [(&html, "export-html"), (&parquet, "export-parquet")] {
        let mut c = tool(agent);
        c.args(["export", "--incident", &id, "--data"]).arg(&data).arg("-o").arg(file);
        let name = file.file_name().unwrap_or_default().display().to_string();
        quiet(&format!("exporting {name}"), log, Duration::from_mins(1), &mut c)?;
        if !fs::metadata(file).is_ok_and(|m| m.len() > 0) {
            bail!("the export left no {}", file.display());
        }
    }
    Ok(Outcome { incident: id, html, parquet, data, summary: text("summary")? })
}

pub struct Programs {
    pub agent: PathBuf,
    pub workload: PathBuf,
}

pub fn build() -> Result<Programs> {
    Ok(Programs { agent: agent()?, workload: scenario::workload()? })
}

/// Kernel programs first, since the agent embeds them. A debug agent: it is built in a fraction of the time.
pub fn agent() -> Result<PathBuf> {
    ebpf::build()?;
    let built = ebpf::cargo_build("the agent", &["-p", "fgm", "--bin", "fgm"])?;
    built.into_iter().find(|p| p.ends_with("fgm")).context("cargo built no fgm")
}
