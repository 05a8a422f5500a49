//! A run in a cluster that has our agents: its objects applied, its end waited for, what all agents tell of it judged and exported, its
//! objects deleted. Must never touch another context than the run's, nor an object that has not the run's label.
//! Called by `run` and `verbs`; tests/scenario.rs holds the exact calls against stand-ins of kubectl and fgm.
//!
//! Each run has a namespace of its own, so that runs of one scenario do not meet, what is told of one is told from the other by that
//! name, and one deletion takes all of it. What the rows of a run are is the agents' to keep: its objects may go first.
//!
//! Kubernetes is asked once a second rather than watched: a status has the instance before the present one too, and no container is started
//! again twice in that time.

use super::outcome::{self, Outcome};
use super::pods::{self, Pod, Progress};
use super::runs::{Place, Run, State};
use super::{Expect, Scenario, ask, manifest};
use crate::child::output;
use crate::clock::{self, Deadline};
use crate::cluster::{NAMESPACE, command, look_for};
use crate::progress::{Step, say};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const POLL: Duration = Duration::from_secs(1);
/// Until all containers run: an emulated or busy node takes its time.
const START: Duration = Duration::from_mins(5);
/// Back-offs of a kubelet, which are longer than those of `stage`.
const BACK_OFF: Duration = Duration::from_mins(1);
/// From the end of a scenario to its last incident's.
const CLOSED: Duration = Duration::from_secs(90);
/// An API server that gives no answer for so long is gone.
const SILENT: Duration = Duration::from_mins(1);
/// A new namespace gets its account from a controller, and no pod before that.
const ACCOUNT: Duration = Duration::from_secs(30);
/// What its containers said, kept when they go.
pub const LOG: &str = "pods.log";
const MANIFEST: &str = "deploy.yaml";

fn kubectl(place: &Place, rest: &[&str]) -> Vec<String> {
    let context = place.context().unwrap_or_default();
    let head = ["kubectl", "--context", &context];
    head.iter().chain(rest).map(|w| (*w).to_owned()).collect()
}

fn agents_line(place: &Place) -> Vec<String> {
    kubectl(place, &["--namespace", NAMESPACE, "get", "daemonset", "fgm", "--output", "json"])
}

fn apply_line(run: &Run) -> Vec<String> {
    kubectl(&run.place, &["apply", "--filename", &run.folder.join(MANIFEST).display().to_string()])
}

fn own(run: &Run, verb: &[&str], rest: &[&str]) -> Vec<String> {
    let namespace = run.namespace();
    let mut words = vec!["--namespace", &namespace];
    words.extend(verb);
    words.extend(["--selector", &run.label]);
    words.extend(rest);
    kubectl(&run.place, &words)
}

fn pods_line(run: &Run) -> Vec<String> {
    own(run, &["get", "pods"], &["--output", "json"])
}

pub fn logs_line(run: &Run, more: &[&str]) -> Vec<String> {
    let mut rest = vec!["--all-containers", "--prefix", "--tail", "-1", "--max-log-requests", "64"];
    rest.extend(more);
    own(run, &["logs"], &rest)
}

/// All of it is in that namespace.
fn delete_line(run: &Run) -> Vec<String> {
    kubectl(&run.place, &["delete", "namespace", "--selector", &run.label, "--wait=false"])
}

/// The agents have to be there, else there is nobody to ask afterwards.
pub fn agents(place: &Place) -> Result<()> {
    look_for(&["kubectl"])?;
    let mend = format!("`{}` installs them", place.deploy());
    let text = match output(&mut command(&agents_line(place))) {
        Err(e) if format!("{e:#}").contains("(NotFound)") => {
            bail!("no agents in {place}: namespace {NAMESPACE} has no daemonset fgm; {mend}")
        }
        other => other.with_context(|| {
            format!("cannot look for the agents in {place}; where there is such a cluster, {mend}")
        })?,
    };
    let set: Value = serde_json::from_str(&text).context("kubectl printed no JSON")?;
    let number = |name: &str| set["status"][name].as_u64().unwrap_or_default();
    let (ready, wanted) = (number("numberReady"), number("desiredNumberScheduled"));
    if ready == 0 {
        bail!(
            "of {wanted} agents in {place} none is ready: kubectl --context {} -n {NAMESPACE} get pods; {mend}",
            place.context().unwrap_or_default()
        );
    }
    if ready < wanted {
        say(&format!(
            "{ready} of {wanted} agents in {place} are ready: what happens on the other nodes is not recorded"
        ));
    }
    Ok(())
}

/// Its objects, after its record.
pub fn start(scenario: &Scenario, place: Place, out: Option<PathBuf>, fgm: &Path) -> Result<Run> {
    let mut run = Run::begin(&scenario.name, place, out, fgm.to_path_buf())?;
    let applied = apply(scenario, &run);
    if let Err(e) = &applied {
        run.error = Some(format!("{e:#}"));
        run.finish(State::Failed)?;
        // What there is of it.
        let _ = output(&mut command(&delete_line(&run)));
    }
    applied.map(|()| run)
}

fn apply(scenario: &Scenario, run: &Run) -> Result<()> {
    let path = run.folder.join(MANIFEST);
    fs::write(&path, manifest::render(scenario, Some(&run.id))?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let deadline = Deadline::after(ACCOUNT);
    loop {
        match output(&mut command(&apply_line(run))) {
            Err(e)
                if format!("{e:#}").contains("serviceaccount \"default\" not found")
                    && !deadline.passed() =>
            {
                thread::sleep(POLL);
            }
            other => return other.map(drop),
        }
    }
}

/// The calls that a run makes, in their order. Nothing is called.
pub fn plan(scenario: &Scenario, place: Place, fgm: &Path) -> String {
    let run = Run::planned(&scenario.name, place, fgm.to_path_buf());
    let files = ["html", "parquet"]
        .map(|ending| ask::export_line(&run, &[], &run.folder.join(format!("{}.{ending}", run.id))));
    let lines = [
        agents_line(&run.place),
        apply_line(&run),
        pods_line(&run),
        ask::incidents_line(&run),
        ask::events_line(&run),
    ];
    let last = [logs_line(&run, &[]), delete_line(&run)];
    lines.iter().chain(&last).chain(&files).map(|line| line.join(" ") + "\n").collect()
}

fn get_pods(run: &Run) -> Result<Value> {
    let text = output(&mut command(&pods_line(run)))?;
    serde_json::from_str(&text).context("kubectl get pods printed no JSON")
}

/// The run's pods as they are now; what is new about them is noted, and the caller's to save.
pub fn look(run: &mut Run) -> Result<(Progress, Vec<Pod>)> {
    let (scenario, pods) = (run.scenario()?, get_pods(run)?);
    let expect = scenario.expect()?;
    run.seen.note(&scenario, &pods);
    let progress = run.seen.progress(&scenario, &expect, &pods, clock::wall_us());
    if let Progress::Over { at_us } = progress {
        run.over_us.get_or_insert(at_us);
    }
    Ok((progress, pods::shown(&pods)))
}

/// Until its end; judged and exported then.
pub fn watch(run: &mut Run) -> Result<Outcome> {
    run.adopt()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("cannot watch for signals")?;
    }
    let scenario = run.scenario()?;
    let expect = scenario.expect()?;
    let goes_on = |run: &Run| -> Result<()> {
        let id = &run.id;
        if interrupted.load(Ordering::Relaxed) {
            stop(&mut run.clone())?;
            bail!("interrupted, and stopped; cargo xtask scenario export {id} exports what there is");
        }
        if run.is_stopped()? {
            bail!("the run was stopped; cargo xtask scenario export {id} exports what there is");
        }
        Ok(())
    };
    let ended = wait(run, &scenario, goes_on)?;
    if ended.is_ok() {
        settle(run, &expect, goes_on)?;
    }
    run.error = ended.err();
    // The judge and the export look no further.
    run.to_us = Some(clock::wall_us());
    run.save()?;
    // Before its end by us is told as well; and that end comes whether anybody answers or not.
    let record = ask::record(run, &expect);
    remove(run)?;
    run.good = record.as_ref().ok().map(|record| expect.judge(record).is_good());
    run.finish(if run.error.is_none() { State::Ended } else { State::Failed })?;
    let record = record?;
    outcome::keep(&record, &run.folder)?;
    outcome::of_cluster(run, &record)
}

/// Until the scenario is over; the inner error says why it never will be.
fn wait(
    run: &mut Run,
    scenario: &Scenario,
    goes_on: impl Fn(&Run) -> Result<()>,
) -> Result<Result<(), String>> {
    let mut step = Step::begin(format!("{}: {}", scenario.name, scenario.title));
    let start = Deadline::after(START);
    let mut end = None;
    let mut silent = Deadline::after(SILENT);
    loop {
        let looked = look(run);
        goes_on(run)?;
        match looked {
            Err(e) if silent.passed() => {
                return Err(
                    e.context(format!("{} gives no answer; run {} may go on there", run.place, run.id))
                );
            }
            Err(e) => step.update(None, &format!("no answer: {e} · ")),
            Ok((progress, _)) => {
                run.save()?;
                silent = Deadline::after(SILENT);
                let note = match progress {
                    Progress::Over { .. } => {
                        step.done("");
                        return Ok(Ok(()));
                    }
                    Progress::Broken(why) => return Ok(Err(why)),
                    Progress::Starting(why) if start.passed() => {
                        return Ok(Err(format!("not all containers run after {} s: {why}", START.as_secs())));
                    }
                    Progress::Starting(why) => format!("{why} · "),
                    Progress::Playing => String::new(),
                };
                let timeout = Duration::from_secs(scenario.timeout_s) + BACK_OFF;
                if run.seen.started_us.is_some() && end.get_or_insert(Deadline::after(timeout)).passed() {
                    return Ok(Err(format!("no end after {} s", timeout.as_secs())));
                }
                step.update(share(run, scenario), &note);
            }
        }
        thread::sleep(POLL);
    }
}

fn share(run: &Run, scenario: &Scenario) -> Option<f64> {
    let passed = u64::try_from(clock::wall_us() - run.seen.started_us?).ok()?;
    Some(Duration::from_micros(passed).as_secs_f64() / f64::from(scenario.climax_s))
}

/// Until all that happened is told and no incident goes on. Fewer incidents than expected are for the judge to find.
fn settle(run: &Run, expect: &Expect, goes_on: impl Fn(&Run) -> Result<()>) -> Result<()> {
    let mut step = Step::begin("waiting until all of it is told");
    let deadline = Deadline::after(CLOSED);
    loop {
        goes_on(run)?;
        let is_told = run.over_us.is_none_or(|us| clock::wall_us() >= us + ask::SETTLE_US);
        if is_told {
            // A way into a pod may end and the next one succeed.
            match ask::incidents(run) {
                Err(e) if deadline.passed() => {
                    return Err(
                        e.context(format!("run {} is not judged, and goes on in {}", run.id, run.place))
                    );
                }
                Ok((incidents, _)) => {
                    let closed = incidents.iter().all(|i| i["closed"] == true);
                    if closed && incidents.len() >= expect.incidents() || deadline.passed() {
                        step.done("");
                        return Ok(());
                    }
                }
                Err(_) => {}
            }
        }
        step.update(None, "");
        thread::sleep(POLL);
    }
}

/// Deletes its objects, after what they said was kept.
fn remove(run: &Run) -> Result<()> {
    let path = run.folder.join(LOG);
    match output(&mut command(&logs_line(run, &[]))) {
        Ok(text) => {
            fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        }
        Err(e) => say(&format!("what the containers said is not kept: {e:#}")),
    }
    output(&mut command(&delete_line(run))).map(drop)
}

/// Notes the end, then deletes. Once more is no harm.
pub fn stop(run: &mut Run) -> Result<()> {
    if run.state == State::Playing {
        // Its pods are known no more afterwards.
        if let Err(e) = look(run) {
            say(&format!("what became of its containers is not known: {e:#}"));
        }
        run.to_us = Some(clock::wall_us());
        run.state = State::Stopped;
        run.save()?;
        return remove(run);
    }
    output(&mut command(&delete_line(run))).map(drop)
}

/// What all agents have of it by now, judged anew unless it was judged at its end.
pub fn export(run: &mut Run) -> Result<Outcome> {
    let goes_on = run.state == State::Playing;
    if goes_on {
        look_for(&["kubectl"])?;
        look(run)?;
    }
    let expect = run.scenario()?.expect()?;
    let kept = outcome::kept(&run.folder, &run.scenario);
    let record = match kept.ok().filter(|kept| !goes_on && Some(kept.to_us) == run.to_us) {
        Some(kept) => kept,
        None => ask::record(run, &expect)?,
    };
    outcome::keep(&record, &run.folder)?;
    if !goes_on {
        run.good = Some(expect.judge(&record).is_good());
        run.save()?;
    }
    outcome::of_cluster(run, &record)
}
