//! One run of the test: the agent installed, a pod killed, the agent asked, the agent removed, its files read.
//! Must never judge: that is `check`'s. Called by `kubernetes`.

use super::check::{Checks, Killed};
use super::control::{CONTEXT, Control, NODE};
use crate::child::{self, Reaped, TempDir};
use crate::clock::Deadline;
use crate::exported::{of_parquet, of_report};
use crate::net::free_port;
use crate::progress::{Step, say};
use crate::tally::Tally;
use crate::{http, image, paths};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// On an emulated CPU of a busy machine; on an idle one a fifth of it.
const NODE_READY: Duration = Duration::from_mins(6);
const AGENT_READY: Duration = Duration::from_mins(5);
/// From the pod's creation to an incident with everything in it.
const TOLD: Duration = Duration::from_mins(6);
/// A scenario of half a minute, on an emulated CPU.
const SCENARIO: Duration = Duration::from_mins(8);
const AGENT_GONE: Duration = Duration::from_mins(3);
const EXPORT: Duration = Duration::from_mins(2);

/// One of the test's own manifests, with the image of the workload in it.
pub fn manifest(name: &str) -> Result<String> {
    let path = paths::root().join("tests/kubernetes").join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.replace("WORKLOAD", &image::workload_tag()))
}

/// The guest, while it runs.
pub type Node<'scope> = thread::ScopedJoinHandle<'scope, Result<i32>>;

pub struct Test<'p> {
    control: Control<'p>,
    out: PathBuf,
    fgm: PathBuf,
    checks: Checks,
    forward: Option<(Reaped, SocketAddr)>,
    systemd: bool,
}

impl<'p> Test<'p> {
    /// `out` is shared with the guest.
    pub fn new(control: Control<'p>, out: PathBuf, fgm: PathBuf, systemd: bool) -> Self {
        Self { control, out, fgm, checks: Checks::default(), forward: None, systemd }
    }

    pub fn out(&self) -> &Path {
        &self.out
    }

    pub fn tally(&self) -> Tally {
        self.checks.tally()
    }

    /// Until the agent is gone again; what it told meanwhile has been checked.
    pub fn play(&mut self, node: &Node<'_>) -> Result<Killed> {
        let manifests = paths::root().join("deploy/manifests").display().to_string();
        self.control.ask(&["apply", "-k", &manifests])?;
        self.node(node)?;
        self.agent(node)?;
        let process = self.look(node)?;
        super::check::privilege(&mut self.checks, &process);
        let shop = self.out.join("shop.yaml");
        fs::write(&shop, manifest("shop.yaml")?).context("cannot write a manifest")?;
        self.control.ask(&["apply", "-f", &shop.display().to_string()])?;
        let killed = self.killed(node)?;
        let incident = self.incident(node, &killed)?;
        killed.incident(&mut self.checks, &incident);
        self.live(&killed, &incident)?;
        self.scenario("oom-kill")?;
        self.stopped(node)?;
        self.delete_agent(node)?;
        Ok(killed)
    }

    /// Asks until there is an answer, as long as cluster and node are there.
    fn until<T>(
        &mut self,
        node: &Node<'_>,
        what: &str,
        limit: Duration,
        mut ask: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let mut step = Step::begin(what);
        let deadline = Deadline::after(limit);
        let mut last = String::new();
        loop {
            match ask(self) {
                Ok(Some(answer)) => {
                    step.done("");
                    return Ok(answer);
                }
                Ok(None) => {}
                Err(e) => last = format!("; the last answer: {e:#}"),
            }
            self.control.alive()?;
            if node.is_finished() {
                bail!("{what}: the node has ended");
            }
            if let Ok(words) = fs::read_to_string(self.out.join(super::node::ENDED)) {
                bail!("{what}: {words}");
            }
            if deadline.passed() {
                bail!("{what}: not within {} s{last}", limit.as_secs());
            }
            step.update(None, "");
            thread::sleep(Duration::from_secs(1));
        }
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.control.ask(args)?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {}: no JSON", args.join(" ")))
    }

    /// The node registers, and gets from us what a cloud's controller gives it: the address by which it is reached (the guest is behind
    /// a port of our loopback), and the end of its taint.
    fn node(&mut self, node: &Node<'_>) -> Result<()> {
        let uri = format!("/api/v1/nodes/{NODE}/status");
        self.until(node, "waiting for the node", NODE_READY, |test| {
            let mut object = test.json(&["get", "node", NODE, "--output=json"])?;
            object["status"]["addresses"] = json!([{"type": "InternalIP", "address": "127.0.0.1"}]);
            let file = test.out.join("addresses.json");
            fs::write(&file, object.to_string())?;
            test.control.ask(&["replace", "--raw", &uri, "-f", &file.display().to_string()])?;
            let taint = "node.cloudprovider.kubernetes.io/uninitialized-";
            test.control.ask(&["taint", "nodes", NODE, taint])?;
            Ok(Some(()))
        })?;
        let info = self.until(node, "waiting until it is ready", NODE_READY, |test| {
            let object = test.json(&["get", "node", NODE, "--output=json"])?;
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            Ok(ready.then(|| object["status"]["nodeInfo"].clone()))
        })?;
        let word = |name: &str| info[name].as_str().unwrap_or("?").to_owned();
        say(&format!(
            "  the node: Kubernetes {}, {}, Linux {}",
            word("kubeletVersion"),
            word("containerRuntimeVersion"),
            word("kernelVersion")
        ));
        Ok(())
    }

    /// The DaemonSet's pod is ready by its own probe, and answers through a forwarded port.
    fn agent(&mut self, node: &Node<'_>) -> Result<()> {
        self.until(node, "waiting for the agent's pod", AGENT_READY, |test| {
            let set = test.json(&["--namespace=fgm", "get", "daemonset", "fgm", "--output=json"])?;
            let status = &set["status"];
            Ok((status["numberReady"] == 1 && status["desiredNumberScheduled"] == 1).then_some(()))
        })?;
        let ready = self.until(node, "asking it through kubectl port-forward", AGENT_READY, |test| {
            let ready = test.get("/readyz")?;
            Ok(ready.contains("kubernetes: synced").then_some(ready))
        })?;
        self.checks.that("/readyz is ready, with names synced", ready.starts_with("ready\n"), &ready);
        let status: Value =
            serde_json::from_str(&self.get("/api/status")?).context("/api/status is no JSON")?;
        let kubernetes = &status["kubernetes"];
        self.checks.is("/api/status says synced", &kubernetes["state"], &Value::from("synced"));
        self.checks.is("of this node's pods", &kubernetes["node"], &Value::from(NODE));
        super::events::hooks(&mut self.checks, &status["ladder"]);
        fs::write(self.out.join("status.json"), format!("{status:#}"))?;
        Ok(())
    }

    /// GET from the agent; the forwarding is begun anew where it has ended.
    fn get(&mut self, path: &str) -> Result<String> {
        let address = self.forwarded()?;
        let reply = http::get(address, path)?;
        if reply.status != 200 {
            bail!("{path} answers {}: {}", reply.status, reply.body);
        }
        Ok(reply.body)
    }

    fn forwarded(&mut self) -> Result<SocketAddr> {
        if let Some((process, address)) = &mut self.forward
            && process.0.try_wait().context("cannot wait for kubectl")?.is_none()
        {
            return Ok(*address);
        }
        let select =
            ["--namespace=fgm", "get", "pods", "--selector=app.kubernetes.io/name=fgm", "--output=name"];
        let pod = self.control.ask(&select)?;
        let pod = pod.lines().next().context("no pod of the agent")?;
        let address = free_port()?;
        let ports = format!("{}:8050", address.port());
        let log = fs::File::create(self.out.join("port-forward.log"))?;
        let mut c = self.control.kubectl(&["--namespace=fgm", "port-forward", pod, &ports])?;
        c.stdout(log.try_clone()?).stderr(log);
        let process = Reaped(c.spawn().context("cannot start kubectl port-forward")?);
        self.forward = Some((process, address));
        let deadline = Deadline::after(Duration::from_secs(20));
        while std::net::TcpStream::connect(address).is_err() {
            if deadline.passed() {
                bail!("kubectl port-forward: {}", child::tail(&self.out.join("port-forward.log"), 5));
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(address)
    }

    fn look(&mut self, node: &Node<'_>) -> Result<Value> {
        fs::write(self.out.join(super::node::LOOK), "")?;
        self.until(node, "looking at the agent's process", Duration::from_mins(1), |test| {
            let Ok(text) = fs::read_to_string(test.out.join(super::node::PROCESS)) else { return Ok(None) };
            Ok(Some(serde_json::from_str(&text)?))
        })
    }

    fn pods(&self) -> Result<Value> {
        self.json(&["--namespace=shop", "get", "pods", "--selector=app=cart", "--output=json"])
    }

    fn killed(&mut self, node: &Node<'_>) -> Result<Killed> {
        self.until(node, "waiting until a container is killed and started again", TOLD, |test| {
            Ok(Killed::of(&test.pods()?))
        })
    }

    /// `fgm incidents`, until one has all that comes in time: the end, and Kubernetes' word for it.
    fn incident(&mut self, node: &Node<'_>, killed: &Killed) -> Result<Value> {
        let incident = self.until(node, "waiting for the incident", TOLD, |test| {
            let all = test.ask_fgm(&["incidents", "--json"])?;
            let all: Value = serde_json::from_str(&all).context("fgm incidents --json is no JSON")?;
            let own = all["incidents"].as_array().into_iter().flatten().find(|i| killed.is_of(i));
            let is_whole =
                |i: &&Value| i["closed"] == true && i["kubernetes"]["next_container_id"].is_string();
            Ok(own.filter(is_whole).cloned())
        })?;
        fs::write(self.out.join("incident.json"), format!("{incident:#}"))?;
        say(&format!("  {}", incident["summary"].as_str().unwrap_or_default()));
        Ok(incident)
    }

    /// The agent's command line on this machine, over the forwarded port.
    fn ask_fgm(&mut self, args: &[&str]) -> Result<String> {
        let server = format!("http://{}", self.forwarded()?);
        bounded(Command::new(&self.fgm).args(args).args(["--server", &server]), EXPORT)
    }

    /// What the running agent exports and lists.
    fn live(&mut self, killed: &Killed, incident: &Value) -> Result<()> {
        let id = incident["id"].as_str().context("an incident without an id")?.to_owned();
        let rows = self.out.join("live.json");
        self.ask_fgm(&["export", "--incident", &id, "--output", &rows.display().to_string()])?;
        killed.rows(&mut self.checks, "fgm export of the incident", &read(&rows)?);
        let html = self.out.join("incident.html");
        self.ask_fgm(&["export", "--incident", &id, "--output", &html.display().to_string()])?;
        let size = fs::metadata(&html).map_or(0, |m| m.len());
        self.checks.that("its report is written", size > 50_000, &size);
        let page = fs::read_to_string(&html).with_context(|| format!("cannot read {}", html.display()))?;
        killed.exported(&mut self.checks, "the report", of_report(&page).as_ref());
        let parquet = self.out.join("incident.parquet");
        self.ask_fgm(&["export", "--incident", &id, "--output", &parquet.display().to_string()])?;
        killed.exported(&mut self.checks, "the Parquet file", in_parquet(&parquet)?.as_ref());
        let listed: Value = serde_json::from_str(&self.get("/api/containers?labels=app%3Dcart,tier%3Dweb")?)?;
        killed.container(&mut self.checks, &listed);
        let listed: Value = serde_json::from_str(&self.get("/api/containers?labels=app%3Dkeeper")?)?;
        let pod = format!("keeper-{NODE}");
        let own = listed["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
        // the pod itself and its sandbox stand there as well
        let named = own.iter().any(|c| c["pod"] == pod.as_str() && c["container"] == "keeper");
        self.checks.that("a static pod's container is named by its mirror", named, &listed);
        let listed: Value = serde_json::from_str(&self.get("/api/containers")?)?;
        self.paths(killed, &listed);
        self.all_nodes(&id)
    }

    /// All agents asked through the API server, each in its pod: here the one.
    fn all_nodes(&mut self, incident: &str) -> Result<()> {
        let config = self.control.config();
        let ask = |what: &str| {
            let mut c = Command::new(&self.fgm);
            bounded(c.args([what, "--all-nodes", "--json", "--kubeconfig"]).arg(&config), EXPORT)
        };
        let (incidents, events) = (ask("incidents")?, ask("events")?);
        let all: Value = serde_json::from_str(&incidents).context("fgm incidents is no JSON")?;
        let own = all["incidents"].as_array().into_iter().flatten().find(|i| i["id"] == incident);
        self.checks.that(
            "fgm incidents --all-nodes has it, and each node answers",
            own.is_some_and(|i| i["node"] == NODE) && all["unanswered"] == json!([]),
            &all,
        );
        let kills = events.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
        let kills = kills.filter(|e| e["kind"] == "oom_kill" && e["node"] == NODE).count();
        self.checks.that("fgm events --all-nodes has the kill", kills >= 1, &kills);
        Ok(())
    }

    /// `cargo xtask scenario run`, as in anybody's cluster: by kubectl and `fgm … --all-nodes` alone, and judged by the scenario's own rules.
    fn scenario(&mut self, name: &str) -> Result<()> {
        let mut c = self.control.as_user(&paths::own()?);
        c.args(["scenario", "run", name, "--context", CONTEXT, "--json", "--fgm"]).arg(&self.fgm);
        c.env("FGM_RUNS", self.out.join("runs"));
        let step = Step::begin(format!("playing the scenario {name} in the cluster"));
        let said = bounded(&mut c, SCENARIO)?;
        step.done("");
        let outcome: Value = serde_json::from_str(said.lines().last().unwrap_or_default())
            .with_context(|| format!("the scenario {name} ended with no JSON"))?;
        let met = outcome["met"].as_array().map_or(0, Vec::len);
        let good = outcome["missing"] == json!([]) && outcome["unexpected"] == json!([]);
        self.checks.that(
            &format!("all that is expected of {name} is told, and no more"),
            good && met > 0,
            &outcome,
        );
        for file in ["html", "parquet"] {
            let size = outcome[file].as_str().and_then(|path| fs::metadata(path).ok()).map_or(0, |m| m.len());
            self.checks.that(&format!("its {file} is written, of all nodes"), size > 10_000, &size);
        }
        Ok(())
    }

    /// A pod is deleted as a user deletes it; then all kinds of events have been.
    fn stopped(&mut self, node: &Node<'_>) -> Result<()> {
        let pods = self.pods()?;
        let all = pods["items"][0]["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let proxy = all.iter().find(|c| c["name"] == "proxy").map(|c| super::check::id(&c["containerID"]));
        self.control.ask(&["--namespace=shop", "delete", "deployment", "cart", "--wait=false"])?;
        self.until(node, "waiting until a deleted pod has gone", AGENT_GONE, |test| {
            Ok(test.pods()?["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
        })?;
        // the state that is asked for is at the most a second old
        thread::sleep(Duration::from_secs(2));
        let text = self.ask_fgm(&["events", "--json", "--range", "1h"])?;
        let events: Vec<Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        super::events::lives(&mut self.checks, &events, &proxy.unwrap_or_default());
        Ok(())
    }

    /// Where the runtime put them: the paths of the driver in use, and of containers that no kubelet started.
    fn paths(&mut self, killed: &Killed, listed: &Value) {
        let all = listed["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let path = |id: &Value| {
            all.iter()
                .find(|c| c["container_id"] == *id)
                .and_then(|c| c["cgroup_path"].as_str())
                .unwrap_or_default()
        };
        let id = killed.id();
        let id = id.as_str().unwrap_or_default();
        let own = path(&killed.id());
        let good = if self.systemd {
            own.starts_with("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod")
                && own.ends_with(&format!(".slice/cri-containerd-{id}.scope"))
        } else {
            own.starts_with("/kubepods/burstable/pod") && own.ends_with(id)
        };
        let driver = if self.systemd { "systemd" } else { "cgroupfs" };
        self.checks.that(&format!("the killed container's cgroup is where {driver} puts it"), good, &own);
        for plain in super::node::PLAIN.iter().filter(|p| self.systemd || !p.systemd) {
            let seen = path(&Value::from(plain.name)).to_owned();
            let what = format!("a container of {} is known at {}", plain.runtime, plain.path);
            // crun puts what it runs into a child of its scope
            self.checks.that(&what, seen.starts_with(plain.path), &seen);
        }
    }

    /// The DaemonSet goes as a user removes it; the pod has its grace period to close its files.
    fn delete_agent(&mut self, node: &Node<'_>) -> Result<()> {
        self.forward = None;
        self.control.ask(&["--namespace=fgm", "delete", "daemonset", "fgm", "--wait=false"])?;
        self.until(node, "waiting until the agent has ended", AGENT_GONE, |test| {
            let pods = test.json(&["--namespace=fgm", "get", "pods", "--output=json"])?;
            Ok(pods["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
        })
    }

    /// The data folder, brought from the node: read natively, without agent and API server.
    pub fn folder(&mut self, killed: &Killed) -> Result<()> {
        let data = self.out.join(super::node::DATA);
        let folder = data.display().to_string();
        let inspected = bounded(Command::new(&self.fgm).args(["inspect", &folder, "--json"]), EXPORT)?;
        let inspected: Value = serde_json::from_str(&inspected).context("fgm inspect is no JSON")?;
        self.checks.that("the data folder is whole", inspected["problems"] == 0, &inspected["problems"]);
        let journals = fs::read_dir(data.join("journal")).map_or(0, Iterator::count);
        self.checks.that("SIGTERM left nothing in a journal", journals == 0, &journals);
        let rows = self.out.join("stored.json");
        let id = killed.id();
        let id = id.as_str().context("a container without an id")?;
        let args = ["export", "--data", &folder, "--range", "1h", "--containers", id, "--output"];
        bounded(Command::new(&self.fgm).args(args).arg(&rows), EXPORT)?;
        killed.rows(&mut self.checks, "the closed files", &read(&rows)?);
        // no row has a label: the folder's own table of containers does
        let labelled = self.out.join("labelled.json");
        let args =
            ["export", "--data", &folder, "--range", "1h", "--labels", "app=cart,tier=web", "--output"];
        bounded(Command::new(&self.fgm).args(args).arg(&labelled), EXPORT)?;
        killed.rows(&mut self.checks, "the closed files, by label", &read(&labelled)?);
        let told = bounded(Command::new(&self.fgm).args(["incidents", "--data", &folder, "--json"]), EXPORT)?;
        let told: Value = serde_json::from_str(&told).context("fgm incidents is no JSON")?;
        let own = told["incidents"].as_array().into_iter().flatten().find(|i| killed.is_of(i));
        let id = own
            .and_then(|i| i["id"].as_str())
            .context("the folder has no incident of the killed container")?;
        let parquet = self.out.join("stored.parquet");
        let args = ["export", "--data", &folder, "--incident", id, "--output"];
        bounded(Command::new(&self.fgm).args(args).arg(&parquet), EXPORT)?;
        killed.exported(
            &mut self.checks,
            "a Parquet file of the closed files",
            in_parquet(&parquet)?.as_ref(),
        );
        Ok(())
    }

    /// What there is to say of a test that did not come to its end.
    pub fn last_words(&self) {
        for args in [
            &["get", "pods", "--all-namespaces", "--output=wide"][..],
            &["get", "events", "--all-namespaces", "--sort-by=.metadata.creationTimestamp"],
            &["--namespace=fgm", "logs", "daemonset/fgm", "--tail=40"],
            &["--namespace=fgm", "logs", "daemonset/fgm", "--previous", "--tail=40"],
        ] {
            let text = self.control.ask(args).unwrap_or_else(|e| format!("{e:#}"));
            let lines: Vec<&str> = text.lines().collect();
            say(&format!(
                "── kubectl {}\n{}",
                args.join(" "),
                lines[lines.len().saturating_sub(40)..].join("\n")
            ));
        }
        for name in ["kubelet.log", "containerd.log"] {
            say(&format!("── the end of {name}\n{}", child::tail(&self.out.join(name), 30)));
        }
        self.control.say_last_words();
        say(&format!("all of it is in {}", self.out.display()));
    }

    pub fn keep_logs(&self) {
        if let Err(e) = self.control.keep_logs(&self.out) {
            say(&format!("{e:#}"));
        }
    }
}

fn in_parquet(path: &Path) -> Result<Option<Value>> {
    Ok(of_parquet(&fs::read(path).with_context(|| format!("cannot read {}", path.display()))?))
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
}

/// Standard output of a command that succeeds in time.
fn bounded(c: &mut Command, limit: Duration) -> Result<String> {
    let dir = TempDir::new("answer")?;
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    c.stdin(Stdio::null()).stdout(fs::File::create(&out)?).stderr(fs::File::create(&err)?);
    let mut process = Reaped(c.spawn().with_context(|| format!("cannot start `{}`", child::shown(c)))?);
    match child::wait_until(&mut process.0, Deadline::after(limit))? {
        Some(status) if status.success() => Ok(fs::read_to_string(&out)?),
        Some(status) => bail!("`{}` failed: {status}\n{}", child::shown(c), child::tail(&err, 10)),
        None => bail!("`{}` was ended after {} s", child::shown(c), limit.as_secs()),
    }
}
