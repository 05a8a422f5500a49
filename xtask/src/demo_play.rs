//! The part of the demo that needs cgroup v2: agent, scenario, incident. Runs on the host or in the test VM.
//! Must never leave the agent running. Called by `demo`, in the VM through `xtask demo --play`.

use crate::agent::Agent;
use crate::clock::Deadline;
use crate::demo::CGROUP_ROOT;
use crate::progress::Step;
use crate::scenario::{Running, Scenario};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// The file in the output folder that holds the incident as the agent's API tells it.
pub const INCIDENT_FILE: &str = "incident.json";

/// Emulation makes each look of the lane many times dearer than it is: fewer looks, and a budget that allows them.
/// A shorter burst, since whoever runs the demo waits for its end: a second run is to take less than a minute.
const SETTINGS: &str = "[lane]\nperiod_ms = 50\ncpu_budget_percent = 25\n[budget]\ncpu_percent = 50\n[trigger.oom_kill]\nburst_length_s = 6\n";
/// From the start of the scenario to a closed incident: climax, burst, and a few seconds to tell its story.
const INCIDENT: Duration = Duration::from_secs(110);

pub fn verb(words: &[String]) -> Result<i32> {
    let [out, agent, workload] = words else { bail!("usage: demo --play OUT AGENT WORKLOAD") };
    play(Path::new(out), Path::new(agent), Path::new(workload))?;
    Ok(0)
}

/// Leaves the data folder, `agent.log` and the incident in `out`.
pub fn play(out: &Path, agent: &Path, workload: &Path) -> Result<()> {
    let words = format!("cgroup_root = \"{CGROUP_ROOT}\"\nnode = \"demo-node\"\ncluster = \"demo\"\n");
    let mut agent = Agent::start(out, agent, &words, SETTINGS)?;
    let incident = record(&mut agent, workload)?;
    agent.stop()?;
    let path = out.join(INCIDENT_FILE);
    fs::write(&path, format!("{incident:#}\n")).with_context(|| format!("cannot write {}", path.display()))
}

/// Play the scenario until the agent calls its incident closed.
fn record(agent: &mut Agent, workload: &Path) -> Result<Value> {
    let scenario = Scenario::load("oom-kill")?;
    let expect = scenario.expect()?;
    let mut running = Running::start(&scenario, &expect, Path::new(CGROUP_ROOT), workload)?;
    let mut step = Step::begin(format!("scenario: {}", scenario.title));
    let deadline = Deadline::after(INCIDENT);
    let mut last_asked = Deadline::after(Duration::ZERO);
    let mut seen = None;
    let incident = loop {
        agent.alive()?;
        let over = running.poll()?;
        if last_asked.passed() {
            last_asked = Deadline::after(Duration::from_millis(500));
            seen = pick(&agent.get("/api/incidents")?, running.id_of("app"));
        }
        let elapsed = running.elapsed().as_secs_f64();
        match &seen {
            Some(incident) if closed(incident) => break incident.clone(),
            Some(_) => step.update(None, "incident open, recording what comes after · "),
            None => step.update(Some(elapsed / f64::from(scenario.climax_s)), ""),
        }
        if deadline.passed() {
            let state = if seen.is_some() { "was not closed" } else { "was not reported" };
            let ended = if over { "the scenario is over" } else { "the scenario still runs" };
            bail!("the incident {state} within {} s ({ended}){}", INCIDENT.as_secs(), agent.last_words());
        }
        thread::sleep(Duration::from_millis(100));
    };
    running.check()?;
    running.finish()?;
    step.done("incident recorded");
    Ok(incident)
}

fn closed(incident: &Value) -> bool {
    incident.get("closed").and_then(Value::as_bool).unwrap_or(false)
}

/// Of the API's list, newest first: the one about this container, as far as incidents name theirs.
fn pick(list: &Value, container: &str) -> Option<Value> {
    let incidents = list.get("incidents")?.as_array()?;
    let text = |i: &Value, name: &str| i.get(name).and_then(Value::as_str).map(str::to_owned);
    let oom = |i: &&Value| text(i, "kind").is_some_and(|k| k == "oom_kill");
    let ours = |i: &&Value| {
        ["container_id", "cgroup_path"].iter().any(|n| text(i, n).is_some_and(|t| t.contains(container)))
    };
    incidents.iter().filter(oom).find(ours).cloned()
}

#[cfg(test)]
mod tests {
    use super::{closed, pick};
    use serde_json::json;

    #[test]
    fn the_incident_of_our_container_is_picked() {
        let list = json!({"incidents": [
            {"id": "c", "kind": "oom_kill", "cgroup_path": "/kubepods/other", "closed": true},
            {"id": "b", "kind": "oom_kill", "cgroup_path": "/kubepods/pod/cri-containerd-77.scope", "closed": false},
            {"id": "a", "kind": "exit", "container_id": "77"},
        ]});
        let incident = pick(&list, "77").expect("an incident");
        assert_eq!(incident["id"], "b");
        assert!(!closed(&incident));
        assert!(pick(&list, "88").is_none());
        assert!(pick(&json!({}), "77").is_none());
    }
}
