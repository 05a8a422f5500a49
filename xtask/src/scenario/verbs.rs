//! `scenario status|logs|stop|export`: what can be asked of a run from another terminal, or after its xtask was killed. NAME means the newest
//! run of that scenario. Must never start anything of a run. Called by `scenario`.
//!
//! In a cluster a run's objects live on without us, and all of it works by the run's label. A run in the test VM or on this machine lives and dies with
//! its xtask: to stop it is to end that process, as Ctrl-C does, and its folder has what was recorded.

use super::cluster;
use super::outcome::{self, Outcome};
use super::play::Record;
use super::pods::{Pod, Progress};
use super::runs::{self, Run, State, record_of};
use crate::child;
use crate::clock::{self, Deadline};
use crate::cluster::{command, look_for};
use crate::demo;
use crate::progress::say;
use crate::usage;
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use std::fs;
use std::thread;
use std::time::Duration;

/// The agent of a run on this machine has 20 s for its last rows, and the export comes after.
const ENDS: Duration = Duration::from_mins(2);

#[derive(Serialize)]
struct Status {
    #[serde(flatten)]
    run: Run,
    /// Whether a process waits for its end.
    watched: bool,
    /// Of one that is played in a cluster; null where nobody could be asked, or there is nothing more to ask.
    pods: Option<Vec<Pod>>,
    /// What the cluster says of it, or why it says nothing.
    note: String,
}

/// NAME or RUN, and the options that the verb has.
fn named<'a>(words: &[&'a str], allowed: &[&str], usage: &str) -> Result<(Option<&'a str>, bool)> {
    let (mut name, mut option) = (None, false);
    for word in words {
        match *word {
            word if allowed.contains(&word) => option = true,
            word if word.starts_with('-') => {
                return Err(usage::wrong(format!("unknown option `{word}`"), usage));
            }
            word if name.is_none() => name = Some(word),
            word => return Err(usage::wrong(format!("one run is meant, and `{word}` is a second"), usage)),
        }
    }
    Ok((name, option))
}

fn one(words: &[&str], allowed: &[&str], usage: &str) -> Result<(Run, bool)> {
    let (name, option) = named(words, allowed, usage)?;
    let name = name.ok_or_else(|| usage::wrong("neither the NAME of a scenario nor a RUN", usage))?;
    Ok((runs::find(name)?, option))
}

pub fn status(words: &[&str], usage: &str) -> Result<i32> {
    let (name, json) = named(words, &["--json"], usage)?;
    let runs = match name {
        Some(name) => vec![runs::find(name)?],
        None => runs::all()?,
    };
    let all = runs.into_iter().map(state).collect::<Result<Vec<_>>>()?;
    if json {
        println!("{}", serde_json::to_string(&all)?);
        return Ok(0);
    }
    if all.is_empty() {
        say(&format!("no runs in {}; cargo xtask scenario run NAME plays one", runs::folder().display()));
    }
    for one in all {
        let (run, place) = (&one.run, one.run.place.to_string());
        println!("{:36} {place:18} {:8} {}", run.id, run.state.to_string(), one.note);
        for pod in one.pods.iter().flatten() {
            let node = pod.node.as_deref().unwrap_or("no node");
            println!(
                "  {:24} {node:18} {:10} {}, {} restarts",
                pod.name,
                pod.phase,
                pod.containers.join(", "),
                pod.restarts
            );
        }
    }
    Ok(0)
}

fn is_in_cluster(run: &Run) -> bool {
    run.state == State::Playing && run.context().is_some()
}

fn state(mut run: Run) -> Result<Status> {
    let watched = run.state == State::Playing && run.is_watched();
    let (mut pods, mut note) = (None, String::new());
    if is_in_cluster(&run) {
        note = match look_for(&["kubectl"]).and_then(|()| cluster::look(&mut run)) {
            Ok((progress, found)) => {
                pods = Some(found);
                match progress {
                    Progress::Starting(why) => format!("starting: {why}"),
                    Progress::Playing => "playing".to_owned(),
                    Progress::Over { .. } => "over".to_owned(),
                    Progress::Broken(why) => format!("broken: {why}"),
                }
            }
            Err(e) => format!("no answer: {e:#}"),
        };
        if !watched {
            // What was seen now is perhaps gone when it is exported.
            run.save()?;
            note += "; nobody waits for its end: stop ends it, export judges it";
        }
    } else if run.state == State::Playing && !watched {
        "its xtask has ended before its time; export takes what there is".clone_into(&mut note);
    } else if let Some(error) = &run.error {
        note.clone_from(error);
    } else if let Some(good) = run.good {
        (if good { "as expected" } else { "not as expected" }).clone_into(&mut note);
    }
    Ok(Status { run, watched, pods, note })
}

pub fn logs(words: &[&str], usage: &str) -> Result<i32> {
    let (run, follow) = one(words, &["--follow"], usage)?;
    if is_in_cluster(&run) {
        look_for(&["kubectl"])?;
        let more: &[&str] = if follow { &["--follow"] } else { &[] };
        child::run(&mut command(&cluster::logs_line(&run, more)))?;
        return Ok(0);
    }
    if follow {
        return Err(usage::wrong("--follow goes with a run that is played in a cluster", usage));
    }
    // The agent's log is that of a run here; the containers' were kept of one in a cluster.
    let name = if run.context().is_some() { cluster::LOG } else { "agent.log" };
    let path = run.folder.join(name);
    let text =
        fs::read_to_string(&path).with_context(|| format!("run {} left no {}", run.id, path.display()))?;
    print!("{text}");
    Ok(0)
}

pub fn stop(words: &[&str], usage: &str) -> Result<i32> {
    let (mut run, json) = one(words, &["--json"], usage)?;
    let was = run.state;
    if run.context().is_some() {
        look_for(&["kubectl"])?;
        cluster::stop(&mut run)?;
    } else if was == State::Playing {
        end(&mut run)?;
    }
    let id = &run.id;
    if was == State::Playing {
        say(&format!("stopped; cargo xtask scenario export {id} exports what there is"));
    } else {
        say(&format!("run {id} has {was} before"));
    }
    if json {
        println!("{}", serde_json::to_string(&run)?);
    }
    Ok(0)
}

/// As Ctrl-C does where it is played.
fn end(run: &mut Run) -> Result<()> {
    run.state = State::Stopped;
    run.to_us = Some(clock::wall_us());
    run.save()?;
    let Some(process) = run.watcher.filter(|p| p.is_alive()) else { return Ok(()) };
    let pid = i32::try_from(process.pid).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.with_context(|| format!("{} is no process", process.pid))?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)
        .with_context(|| format!("cannot end process {}", process.pid))?;
    let deadline = Deadline::after(ENDS);
    while process.is_alive() {
        if deadline.passed() {
            bail!("process {} was told to end and has not after {} s", process.pid, ENDS.as_secs());
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// 0 when the files are there: what `run` says by its exit code stands in the verdict.
pub fn export(words: &[&str], usage: &str) -> Result<i32> {
    let (mut run, json) = one(words, &["--json"], usage)?;
    let data = run.folder.join("data");
    if run.context().is_none() && !data.exists() {
        bail!("run {} has recorded nothing: there is no {}", run.id, data.display());
    }
    if !run.fgm.exists() {
        run.fgm = demo::agent()?;
    }
    let outcome = if run.context().is_some() { cluster::export(&mut run)? } else { of_folder(&run)? };
    outcome.print(json)?;
    Ok(0)
}

fn of_folder(run: &Run) -> Result<Outcome> {
    let (folder, name) = (&run.folder, run.scenario.as_str());
    if !record_of(folder, name).exists() {
        // Its xtask has not come to that; all that its agent recorded is of this run.
        let error = Some(if run.is_watched() { "it is being played" } else { "it was ended before its end" });
        let record = Record {
            scenario: name.to_owned(),
            error: error.map(str::to_owned),
            from_us: run.from_us,
            to_us: run.to_us.unwrap_or_else(clock::wall_us),
            ..Record::default()
        };
        return outcome::of_record(folder, &run.fgm, &run.id, &record, &["html", "parquet"]);
    }
    outcome::of_folder(folder, &run.fgm, &run.id, name, &["html", "parquet"])
}
