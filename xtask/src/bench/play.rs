//! The inner half of the evidence benchmark, where cgroup v2 is: recorder, witness and cases side by side. Leaves what
//! each of them saw in the output folder; judges nothing. Called by `evidence`, in the test VM through `bench --play`.

use super::case::Case;
use super::mix::{self, Plan};
use super::stage::Stage;
use crate::agent::Agent;
use crate::cgroup::Tree;
use crate::child::{self, Reaped, TempDir};
use crate::clock::Deadline;
use crate::demo::CGROUP_ROOT;
use crate::progress::{Step, say};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// As the recorder is told to call this machine.
pub const NODE: &str = "bench";
const TRACEFS: &str = "/sys/kernel/tracing";
/// Cases at one time; a storm counts as one.
const SIDE_BY_SIDE: usize = 8;
/// Emulation makes each look of the lane many times dearer than it is: a budget that allows the rate it is held to.
fn tables(lane: &str) -> String {
    let period_ms = if lane == "pread" { 50 } else { 20 };
    format!(
        "[lane]\nsource = \"{lane}\"\nperiod_ms = {period_ms}\ncpu_budget_percent = 60\n[budget]\ncpu_percent = 60\n"
    )
}

/// The last bursts and exits are told before the recorder is ended.
const SETTLE: Duration = Duration::from_secs(3);
const WITNESS_ENDS: Duration = Duration::from_secs(20);

pub struct Words<'a> {
    pub out: &'a Path,
    pub agent: &'a Path,
    pub workload: &'a Path,
    pub truth: &'a Path,
    pub kills: usize,
    /// Kills by the node's own want of memory: not on a machine that others use.
    pub node_kills: usize,
    pub lane: &'a str,
}

pub fn play(w: &Words<'_>) -> Result<()> {
    // in the guest's memory: a file on the share costs its server a descriptor, and there will be thousands
    let temp = TempDir::new("bench")?;
    let words = temp.path().join("words");
    fs::create_dir(&words).context("cannot create a folder")?;
    // read by us, so that its pages are charged to us: the first container to touch them would be charged for them, and
    // reclaim them again and again instead of being killed
    let workload = temp.path().join("workload");
    fs::copy(w.workload, &workload).with_context(|| format!("cannot copy {}", w.workload.display()))?;
    let keys = format!("cgroup_root = \"{CGROUP_ROOT}\"\nnode = \"{NODE}\"\n");
    let mut agent = Agent::start(temp.path(), w.agent, &keys, &tables(w.lane))?;
    let lines = temp.path().join("truth.jsonl");
    let witness = Witness::start(Command::new(w.truth).arg(TRACEFS).arg(&lines))?;
    // held for the whole run, so that no case switches a controller off that another needs
    let mut base = Tree::new(Path::new(CGROUP_ROOT));
    base.make("kubepods.slice/kubepods-burstable.slice/fgm-bench.slice")?;
    let stage = Stage { root: Path::new(CGROUP_ROOT), workload: &workload, words: &words };
    let mut cases = Vec::new();
    if w.node_kills > 0 {
        // what is asked for is more than there is: the kernel must promise it all the same
        fs::write("/proc/sys/vm/overcommit_memory", "1").context("overcommit_memory")?;
        for pid in [agent.pid(), witness.process.0.id()] {
            protect(pid, "-1000")?;
        }
    }
    // first, while there is no data in memory yet: a node that has it full thrashes for minutes before it kills
    for n in 0..w.node_kills {
        let step = Step::begin(format!("the node runs out of memory ({} of {})", n + 1, w.node_kills));
        protect(std::process::id(), "-1000")?;
        cases.push(stage.play(&format!("node-{n}"), &mix::node())?);
        step.done("");
    }
    // what we start inherits ours
    protect(std::process::id(), "0")?;
    cases.extend(run(&stage, &mix::plan(w.kills), &mut agent)?);
    base.remove()?;
    thread::sleep(SETTLE);
    agent.alive()?;
    let status = agent.get("/api/status")?;
    witness.stop()?;
    let write = |name: &str, text: String| {
        let path = w.out.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("cases.json", serde_json::to_string(&cases)?)?;
    write("status.json", status.to_string())?;
    agent.stop()?;
    for name in ["truth.jsonl", "agent.log", "agent.toml"] {
        let path = temp.path().join(name);
        fs::copy(&path, w.out.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
    }
    let mut tar = child::tool("tar");
    tar.arg("-cf").arg(w.out.join("data.tar")).arg("-C").arg(temp.path()).arg("data");
    child::run(&mut tar)
}

/// -1000: the node's OOM killer passes it by.
fn protect(pid: u32, oom_score_adj: &str) -> Result<()> {
    fs::write(format!("/proc/{pid}/oom_score_adj"), oom_score_adj).context("oom_score_adj")
}

/// All cases, so many at a time. The first that fails ends it.
fn run(stage: &Stage<'_>, plans: &[Plan], agent: &mut Agent) -> Result<Vec<Case>> {
    let mut names = Vec::with_capacity(plans.len());
    let mut of_kind: BTreeMap<&str, usize> = BTreeMap::new();
    for plan in plans {
        let n = of_kind.entry(plan.kind).or_default();
        names.push(format!("{}-{n}", plan.kind));
        *n += 1;
    }
    let (next, done) = (AtomicUsize::new(0), Mutex::new((Vec::new(), None)));
    let mut step = Step::begin(format!("{} cases, {SIDE_BY_SIDE} at a time", plans.len()));
    thread::scope(|scope| {
        let worker = || {
            while let Some((plan, name)) = {
                let at = next.fetch_add(1, Ordering::Relaxed);
                plans.get(at).zip(names.get(at))
            } {
                let outcome = stage.play(name, plan);
                let Ok(mut done) = done.lock() else { return };
                match outcome {
                    Ok(case) => done.0.push(case),
                    Err(e) => {
                        next.store(plans.len(), Ordering::Relaxed);
                        done.1.get_or_insert(e);
                    }
                }
            }
        };
        let workers: Vec<_> = (0..SIDE_BY_SIDE).map(|_| scope.spawn(worker)).collect();
        while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
            let count = done.lock().map_or(0, |d| d.0.len());
            let share = f64::from(u32::try_from(count).unwrap_or(0))
                / f64::from(u32::try_from(plans.len()).unwrap_or(1));
            step.update(Some(share), &format!("{count} over · "));
            thread::sleep(Duration::from_millis(200));
        }
    });
    agent.alive()?;
    let (cases, failed) = done.into_inner().unwrap_or_default();
    if let Some(e) = failed {
        say(&agent.last_words());
        return Err(e);
    }
    step.done("");
    Ok(cases)
}

/// The other process that watches the kernel.
pub struct Witness {
    pub process: Reaped,
}

impl Witness {
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let child = child.with_context(|| format!("cannot start `{}`", child::shown(command)))?;
        let mut process = Reaped(child);
        let mut line = String::new();
        let out = process.0.stdout.take().context("a pipe that was asked for is not there")?;
        BufReader::new(out).read_line(&mut line).context("the witness says nothing")?;
        if line.trim() != "ready" {
            bail!("the witness cannot listen to the kernel: see above");
        }
        Ok(Self { process })
    }

    pub fn stop(mut self) -> Result<()> {
        drop(self.process.0.stdin.take());
        match child::wait_until(&mut self.process.0, Deadline::after(WITNESS_ENDS))? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("the witness failed: {status}"),
            None => bail!("the witness does not end within {} s", WITNESS_ENDS.as_secs()),
        }
    }
}
