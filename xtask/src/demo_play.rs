//! The part of the demo that needs cgroup v2: agent, scenario, incident. Runs on the host or in the test VM.
//! Must never leave the agent running. Called by `demo`, in the VM through `xtask demo --play`.

use crate::child::{self, Reaped};
use crate::clock::Deadline;
use crate::demo::CGROUP_ROOT;
use crate::http;
use crate::progress::Step;
use crate::scenario::{Running, Scenario};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

/// The file in the output folder that holds the incident as the agent's API tells it.
pub const INCIDENT_FILE: &str = "incident.json";

/// A debug agent in an emulated CPU needs seconds to read the kernel's types.
const READY: Duration = Duration::from_mins(1);
/// Emulation makes each look of the lane many times dearer than it is: fewer looks, and a budget that allows them.
/// A shorter burst, since whoever runs the demo waits for its end: a second run is to take less than a minute.
const SETTINGS: &str =
    "[lane]\nperiod_ms = 50\ncpu_budget_percent = 25\n[trigger.oom_kill]\nburst_length_s = 6\n";
/// From the start of the scenario to a closed incident: climax, burst, and a few seconds to tell its story.
const INCIDENT: Duration = Duration::from_secs(110);
const STOP: Duration = Duration::from_secs(30);

pub fn verb(words: &[String]) -> Result<i32> {
    let [out, agent, workload] = words else { bail!("usage: demo --play OUT AGENT WORKLOAD") };
    play(Path::new(out), Path::new(agent), Path::new(workload))?;
    Ok(0)
}

/// Leaves the data folder, `agent.log` and the incident in `out`.
pub fn play(out: &Path, agent: &Path, workload: &Path) -> Result<()> {
    let mut agent = Agent::start(out, agent)?;
    let incident = record(&mut agent, workload)?;
    agent.stop()?;
    let path = out.join(INCIDENT_FILE);
    fs::write(&path, format!("{incident:#}\n")).with_context(|| format!("cannot write {}", path.display()))
}

/// Play the scenario until the agent calls its incident closed.
fn record(agent: &mut Agent, workload: &Path) -> Result<Value> {
    let scenario = Scenario::load("oom-kill")?;
    let mut running = Running::start(&scenario, Path::new(CGROUP_ROOT), workload)?;
    let mut step = Step::begin(format!("scenario: {}", scenario.title));
    let deadline = Deadline::after(INCIDENT);
    let mut last_asked = Deadline::after(Duration::ZERO);
    let mut seen = None;
    let incident = loop {
        agent.alive()?;
        let over = running.poll()?;
        if last_asked.passed() {
            last_asked = Deadline::after(Duration::from_millis(500));
            seen = agent.incident(running.container_id())?;
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

struct Agent {
    process: Reaped,
    address: SocketAddr,
    log: PathBuf,
}

impl Agent {
    fn start(out: &Path, program: &Path) -> Result<Self> {
        let step = Step::begin("starting the agent");
        let (address, health) = (free_port()?, free_port()?);
        let config = out.join("agent.toml");
        let text = format!(
            "data_dir = {:?}\ncgroup_root = \"{CGROUP_ROOT}\"\nnode = \"demo-node\"\ncluster = \"demo\"\n\
             listen = \"{address}\"\nhealth_listen = \"{health}\"\n{SETTINGS}",
            out.join("data").display().to_string()
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let log = out.join("agent.log");
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut c = child::bound_to_us(program);
        c.args(["agent", "--config"]).arg(&config).env("RUST_BACKTRACE", "0");
        c.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let process = Reaped(c.spawn().with_context(|| format!("cannot start {}", program.display()))?);
        let mut agent = Self { process, address, log };
        let deadline = Deadline::after(READY);
        while !http::get(address, "/readyz").is_ok_and(|r| r.status == 200) {
            agent.alive()?;
            if deadline.passed() {
                bail!("the agent is not ready after {} s{}", READY.as_secs(), agent.last_words());
            }
            thread::sleep(Duration::from_millis(100));
        }
        step.done("");
        Ok(agent)
    }

    fn alive(&mut self) -> Result<()> {
        if let Some(status) = self.process.0.try_wait().context("cannot wait for the agent")? {
            bail!("the agent ended: {status}{}", self.last_words());
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        format!("; the end of {}:\n{}", self.log.display(), child::tail(&self.log, 25))
    }

    fn incident(&self, container: &str) -> Result<Option<Value>> {
        let reply = http::get(self.address, "/api/incidents")?;
        if reply.status != 200 {
            bail!("/api/incidents answers {}: {}", reply.status, reply.body);
        }
        let list = serde_json::from_str(&reply.body).context("/api/incidents is not JSON")?;
        Ok(pick(&list, container))
    }

    /// SIGTERM, as an orchestrator ends it; it has to close its files and say 0.
    fn stop(mut self) -> Result<()> {
        let step = Step::begin("stopping the agent");
        let pid = rustix::process::Pid::from_child(&self.process.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .context("cannot signal the agent")?;
        match child::wait_until(&mut self.process.0, Deadline::after(STOP))? {
            Some(status) if status.success() => step.done(""),
            Some(status) => bail!("the agent ended badly on SIGTERM: {status}{}", self.last_words()),
            None => {
                bail!("the agent does not end on SIGTERM within {} s{}", STOP.as_secs(), self.last_words())
            }
        }
        Ok(())
    }
}

/// A port that is free now; between this and the agent's bind nobody but a scanner of ports would take it.
fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on the loopback")?;
    listener.local_addr().context("a listener without an address")
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
