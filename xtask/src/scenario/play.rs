//! The part of a run that needs cgroup v2: one agent, the scenarios one after the other, and what the agent told of each. Judges
//! nothing. Runs on the host or in the test VM. Must never leave the agent running. Called by `run`, in the VM through
//! `xtask scenario --play`.

use super::{Running, Scenario, outcome};
use crate::agent::Agent;
use crate::clock::{self, Deadline};
use crate::demo::CGROUP_ROOT;
use crate::progress::{Step, say};
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Emulation makes each look of the lane many times dearer than it is: fewer looks, and a budget that allows them. Short bursts, since
/// a run waits for their end.
const SETTINGS: &str = "[lane]\nperiod_ms = 50\ncpu_budget_percent = 25\n[budget]\ncpu_percent = 50\n\
                        [trigger.oom_kill]\nburst_length_s = 4\n[trigger.exit]\nburst_length_s = 4\n\
                        [trigger.kill]\nburst_length_s = 4\n";
/// The last base row is read and its warnings are told.
const SETTLE: Duration = Duration::from_millis(2500);
/// From the end of a scenario to its last incident's.
const CLOSED: Duration = Duration::from_secs(60);

/// What was played, and what the agent told of it; a file in the output folder.
#[derive(Default, Serialize, Deserialize)]
pub struct Record {
    pub scenario: String,
    pub error: Option<String>,
    pub from_us: i64,
    pub to_us: i64,
    /// Glob over the cgroup paths of its pods.
    pub paths: String,
    pub containers: Vec<Played>,
    pub events: Vec<Value>,
    pub incidents: Vec<Value>,
    /// Highest value by `CONTAINER METRIC`.
    pub peaks: BTreeMap<String, Option<f64>>,
    /// By a kubelet, which gives a pod the sum of its containers' limits where each has one.
    #[serde(default)]
    pub in_cluster: bool,
    /// Nodes that had a part in it and whose agent gave no answer, with why.
    #[serde(default)]
    pub silent: Vec<String>,
}

/// One container and all instances that it had.
#[derive(Default, Serialize, Deserialize)]
pub struct Played {
    pub name: String,
    pub ids: Vec<String>,
    /// By the kernel's files; nobody can read those of a cluster's nodes.
    pub oom_kill: Option<u64>,
    pub exit_codes: Vec<i32>,
}

impl Record {
    /// The name in the scenario of the container that an event or an incident is about.
    pub fn container_of(&self, told: &Value) -> Option<&String> {
        let id = told["container_id"].as_str()?;
        self.containers.iter().find(|c| c.ids.iter().any(|own| own == id)).map(|c| &c.name)
    }

    pub fn peak(&self, container: &str, metric: &str) -> Option<f64> {
        self.peaks.get(&format!("{container} {metric}")).copied().flatten()
    }

    /// Whether an incident is of this container's limit. That of its pod, whose sandbox needs memory too, is hit first in a cluster.
    pub fn is_limit_of(&self, told: &Value, container: &str) -> bool {
        let limit = told["limit"]["cgroup_path"].as_str().unwrap_or_default();
        let own = told["cgroup_path"].as_str().and_then(|path| path.rsplit_once('/'));
        let is_pods = self.in_cluster && own.is_some_and(|(pod, _)| pod == limit);
        let of = if is_pods { self.container_of(told) } else { self.instance_in(limit) };
        of.is_some_and(|name| name == container)
    }

    /// By a cgroup path, which ends in the container's cgroup.
    fn instance_in(&self, path: &str) -> Option<&String> {
        let last = path.rsplit('/').next()?;
        self.containers.iter().find(|c| c.ids.iter().any(|id| last.contains(id.as_str()))).map(|c| &c.name)
    }

    /// Of one of its pods, whether a container's or the pod's own.
    fn is_about(&self, told: &Value) -> bool {
        let mark = self.paths.trim_matches('*');
        told["cgroup_path"].as_str().is_some_and(|path| path.contains(mark))
    }
}

/// Leaves the data folder, `agent.log` and NAME.json for each scenario in `out`. What a scenario fails of is in its record.
pub fn play(out: &Path, agent: &Path, workload: &Path, names: &[&str]) -> Result<()> {
    let words =
        format!("cgroup_root = \"{CGROUP_ROOT}\"\nnode = \"scenario-node\"\ncluster = \"scenario\"\n");
    // Read by us, so that its pages are charged to us and not to the first container that touches them.
    let own = crate::child::TempDir::new("workload")?;
    let program = own.path().join("workload");
    fs::copy(workload, &program).with_context(|| format!("cannot copy {}", workload.display()))?;
    let mut agent = Agent::start(out, agent, &words, SETTINGS)?;
    for name in names {
        let mut record = Record { scenario: (*name).to_owned(), ..Record::default() };
        if let Err(e) = one(&mut agent, &program, &mut record) {
            agent.alive()?;
            say(&format!("scenario {name}: {e:#}"));
            record.error = Some(format!("{e:#}"));
            // What was recorded by then can be exported.
            record.to_us = clock::wall_us();
        }
        outcome::keep(&record, out)?;
    }
    agent.stop()
}

fn one(agent: &mut Agent, workload: &Path, record: &mut Record) -> Result<()> {
    let scenario = Scenario::load(&record.scenario)?;
    let expect = scenario.expect()?;
    record.from_us = clock::wall_us();
    let mut running = Running::start(&scenario, &expect, Path::new(CGROUP_ROOT), workload)?;
    record.paths = running.paths();
    let mut step = Step::begin(format!("{}: {}", scenario.name, scenario.title));
    while !running.poll()? {
        agent.alive()?;
        step.update(Some(running.elapsed().as_secs_f64() / f64::from(scenario.climax_s)), "");
        thread::sleep(Duration::from_millis(50));
    }
    wait(agent, &mut running, record, expect.incidents())?;
    record.to_us = clock::wall_us();
    for i in running.instances()? {
        let at = record.containers.iter().position(|c| c.name == i.name).unwrap_or_else(|| {
            record.containers.push(Played { name: i.name.clone(), ..Played::default() });
            record.containers.len() - 1
        });
        let played = &mut record.containers[at];
        played.ids.push(i.id);
        *played.oom_kill.get_or_insert(0) += i.oom_kill;
        played.exit_codes.extend(i.exit_code);
    }
    record.events = told(agent, record, "events")?;
    record.incidents = told(agent, record, "incidents")?;
    for (container, metric) in expect.measured(false) {
        let own = record.containers.iter().find(|c| c.name == container);
        let ids = own.map(|c| c.ids.join(",")).unwrap_or_default();
        let peak = peak(agent, record, metric, &ids)?;
        record.peaks.insert(format!("{container} {metric}"), peak);
    }
    running.finish()?;
    step.done("");
    Ok(())
}

/// Until all that happened is told and no incident goes on. Fewer incidents than expected are for the judge to find.
fn wait(agent: &mut Agent, running: &mut Running<'_>, record: &Record, expected: usize) -> Result<()> {
    let (settled, deadline) = (Deadline::after(SETTLE), Deadline::after(CLOSED));
    loop {
        agent.alive()?;
        running.tend()?;
        thread::sleep(Duration::from_millis(200));
        if !settled.passed() {
            continue;
        }
        let incidents = told(agent, record, "incidents")?;
        let closed = incidents.iter().all(|i| i["closed"] == true);
        if closed && (incidents.len() >= expected || deadline.passed()) {
            return Ok(());
        }
        if deadline.passed() {
            bail!("an incident was not closed within {} s{}", CLOSED.as_secs(), agent.last_words());
        }
    }
}

/// As the agent takes an instant.
pub fn seconds(us: i64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

/// Events or incidents of our pods since the start.
fn told(agent: &Agent, record: &Record, what: &str) -> Result<Vec<Value>> {
    let answer = agent.get(&format!("/api/{what}?from={}", seconds(record.from_us)))?;
    let all = answer[what].as_array().with_context(|| format!("/api/{what} has no list"))?;
    Ok(all.iter().filter(|told| record.is_about(told)).cloned().collect())
}

fn peak(agent: &Agent, record: &Record, metric: &str, containers: &str) -> Result<Option<f64>> {
    let (from, to) = (seconds(record.from_us), seconds(record.to_us));
    let path =
        format!("/api/timeseries?metric={metric}&containers={containers}&from={from}&to={to}&rate=true");
    let answer = agent.get(&path)?;
    let lines = answer["series"].as_array().into_iter().flatten();
    let values = lines.filter_map(|s| s["metrics"][metric]["max"].as_array()).flatten();
    Ok(values.filter_map(Value::as_f64).fold(None, |most: Option<f64>, v| Some(most.map_or(v, |m| m.max(v)))))
}
