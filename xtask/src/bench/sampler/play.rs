//! The half of the sampler's benchmark that runs in the test VM: the same containers under the floor, the naive reader and
//! the whole agent, one after the other. Must never measure two of them at a time. Called by `bench --play sampler`.
//!
//! Instructions are counted there, so waits cost nothing and a deadline means little: all programs are copied to memory
//! first, since a wait for the host is a jump of the guest's clock.

use super::native::{kernel, last_line};
use super::programs::{self, inside, occupy};
use super::{HOT, RESULT, Row, SECONDS, WARM_UP};
use crate::agent::Agent;
use crate::cgroup::Tree;
use crate::child::{self, Reaped, TempDir, tool, wait_until};
use crate::clock::{Deadline, ktime_ns};
use crate::demo::CGROUP_ROOT;
use crate::progress::Step;
use anyhow::{Context as _, Result, bail};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

/// 50 Hz whatever it costs: the lane's budget is what is measured here.
const TABLES: &str = "[lane]\nperiod_ms = 20\ncpu_budget_percent = 100\n";
const DESCRIPTORS: u64 = 1 << 18;
const SPARE: u64 = 3;
const ALL_FOLLOWED: Duration = Duration::from_mins(3);
const ENDS: Duration = Duration::from_mins(5);

struct Stage<'a> {
    temp: &'a Path,
    agent: PathBuf,
    reader: PathBuf,
    alone: PathBuf,
    load: &'a str,
}

pub fn play(
    out: &Path,
    agent: &Path,
    reader: &Path,
    alone: &Path,
    load: &str,
    containers: &[usize],
) -> Result<()> {
    let limit = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
    setrlimit(Resource::Nofile, limit).context("the limit of open files cannot be raised")?;
    let temp = TempDir::new("bench")?;
    let copy = |from: &Path, name: &str| {
        let to = temp.path().join(name);
        fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display())).map(|_| to)
    };
    let stage = Stage {
        temp: temp.path(),
        agent: copy(agent, "fgm")?,
        reader: copy(reader, "reader")?,
        alone: copy(alone, "alone")?,
        load,
    };
    let path = out.join(RESULT);
    let mut result = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    for &n in containers {
        for row in stage.rows(n)? {
            writeln!(result, "{}", serde_json::to_string(&row)?).context("cannot write a row")?;
        }
    }
    Ok(())
}

impl Stage<'_> {
    fn rows(&self, containers: usize) -> Result<Vec<Row>> {
        let mut step = Step::begin(format!("{containers} containers"));
        let mut tree = Tree::new(Path::new(CGROUP_ROOT));
        let mut processes = Vec::new();
        for n in 0..containers {
            let dir = tree.make(&format!("docker/{n:064x}"))?;
            processes.push(occupy(&self.reader, self.load, &dir)?);
        }
        let docker = Path::new(CGROUP_ROOT).join("docker");
        thread::sleep(Duration::from_secs(2));
        let mut rows = Vec::new();
        for name in ["floor", "naive"] {
            step.update(None, name);
            rows.push(self.reader(&mut tree, name, &docker, containers)?);
        }
        step.update(None, "allocations");
        let allocations = self.allocations(&mut tree)?;
        step.update(None, "fgm");
        rows.push(self.agent(&mut tree, containers, allocations)?);
        drop(processes);
        tree.remove()?;
        step.done("");
        Ok(rows)
    }

    fn row(&self, name: &str, containers: usize, us: u64, ns: u64, memory: u64) -> Row {
        Row {
            name: name.to_owned(),
            containers,
            place: "vm".to_owned(),
            cpu_us_per_container_second: programs::per_container_second(us, containers, ns),
            memory_bytes: Some(memory),
            memory_of: "memory.stat anon + kernel".to_owned(),
            allocations_per_sample: None,
            bytes_per_value: None,
            load: self.load.to_owned(),
            hot_and_lane_us: None,
            stages: None,
            kernel: kernel(),
            note: "a microsecond is 1,000 instructions".to_owned(),
        }
    }

    fn reader(&self, tree: &mut Tree, name: &str, docker: &Path, containers: usize) -> Result<Row> {
        let cgroup = tree.make(&format!("fgm-bench/{name}"))?;
        let output = self.temp.join("reader.json");
        let length = 2 + SECONDS + SPARE;
        let script = inside(self.temp, &cgroup, &self.reader)?;
        let mut c = programs::reader(&script, name, docker, length, &output)?;
        let mut child = Reaped(c.spawn().context("cannot start the reader")?);
        // twenty thousand files are not opened in a moment
        let deadline = Deadline::after(ALL_FOLLOWED);
        while fs::read_to_string(&output).unwrap_or_default().is_empty() {
            if deadline.passed() || child.0.try_wait().context("cannot wait")?.is_some() {
                bail!("{name} does not begin to read; see {}", output.display());
            }
            thread::sleep(Duration::from_millis(200));
        }
        thread::sleep(Duration::from_millis(1500));
        let (from, cpu) = (ktime_ns(), programs::cpu_us(&cgroup)?);
        thread::sleep(Duration::from_secs(SECONDS));
        let (to, cpu) = (ktime_ns(), programs::cpu_us(&cgroup)? - cpu);
        let memory = programs::memory(&cgroup)?;
        ended(&mut child)?;
        let said = last_line(&output)?;
        let number = |key: &str| said[key].as_u64().unwrap_or(0);
        let mut row = self.row(name, containers, cpu, to - from, memory);
        row.allocations_per_sample =
            programs::each(number("allocations"), number("rounds") * containers as u64);
        let files = programs::each(number("reads"), number("rounds") * containers as u64).unwrap_or(0.0);
        row.note = programs::with_late(&format!("{}; {files:.2} files read of each", row.note), &said);
        Ok(row)
    }

    /// What the sampler alone allocates over these cgroups.
    fn allocations(&self, tree: &mut Tree) -> Result<Option<f64>> {
        let cgroup = tree.make("fgm-bench/alone")?;
        let output = self.temp.join("alone.json");
        let mut c = Command::new(inside(self.temp, &cgroup, &self.alone)?);
        c.args([CGROUP_ROOT, CGROUP_ROOT, "8"]).stdout(fs::File::create(&output).context("cannot write")?);
        ended(&mut Reaped(c.spawn().context("cannot start the sampler")?))?;
        let said = last_line(&output)?;
        Ok(programs::each(said["allocations"].as_u64().unwrap_or(0), said["samples"].as_u64().unwrap_or(0)))
    }

    fn agent(&self, tree: &mut Tree, containers: usize, allocations: Option<f64>) -> Result<Row> {
        let cgroup = tree.make("fgm-bench/agent")?;
        let folder = self.temp.join(format!("agent-{containers}"));
        fs::create_dir_all(&folder).context("cannot create a folder")?;
        let script = inside(self.temp, &cgroup, &self.agent)?;
        let keys = format!("cgroup_root = \"{CGROUP_ROOT}\"\nnode = \"bench\"\n");
        let agent = Agent::start(&folder, &script, &keys, TABLES)?;
        check_hot(&agent)?;
        all_followed(&agent, containers)?;
        thread::sleep(Duration::from_secs(WARM_UP));
        let before = agent.get("/api/status")?;
        // a question has its cost; it is over before the window begins
        thread::sleep(Duration::from_secs(1));
        let (from, cpu) = (ktime_ns(), programs::cpu_us(&cgroup)?);
        thread::sleep(Duration::from_secs(SECONDS));
        let (to, cpu) = (ktime_ns(), programs::cpu_us(&cgroup)? - cpu);
        let memory = programs::memory(&cgroup)?;
        let stat = fs::read_to_string(cgroup.join("memory.stat")).unwrap_or_default();
        let after = agent.get("/api/status")?;
        let cost = Cost { before: &before["cost"], after: &after["cost"] };
        let seconds = cost.grown("/at_ns").context("the agent does not tell when it counted its cost")?;
        let mut stages = json!({});
        let each = |ns: u64| programs::per_container_second(ns / 1000, containers, seconds);
        for stage in after["cost"]["cpu_ns"].as_object().into_iter().flat_map(|stages| stages.keys()) {
            stages[stage] = json!(cost.grown(&format!("/cpu_ns/{stage}")).map(each));
        }
        let hot = cost.hot_ns();
        stages["hot_of_each_second"] = json!(hot.map(each));
        stages["samples"] = json!({"hot": cost.grown("/samples/hot"), "slow": cost.grown("/samples/slow")});
        stages["memory"] = memory_by(&stat);
        stages["memory_stat_taken_over"] = after["files"]["memory_stat_taken_over"].clone();
        stages["lane_period_ms"] = after["lane"]["period_ms"].clone();
        stages["ledger"] = after["ledger"]["samples"].clone();
        stages["descriptors"] = after["descriptors"].clone();
        agent.stop()?;
        let mut row = self.row("fgm", containers, cpu, to - from, memory);
        row.allocations_per_sample = allocations;
        row.bytes_per_value = self.bytes_per_value(&folder.join("data"))?;
        row.hot_and_lane_us = hot.zip(cost.grown("/cpu_ns/lane")).map(|(hot, lane)| each(hot + lane));
        row.note = format!(
            "{}; allocations are those of the sampler and the lane alone, without the agent",
            row.note
        );
        row.stages = Some(stages);
        let _ = fs::remove_dir_all(folder);
        Ok(row)
    }

    /// Of the samples' segments, not compacted yet.
    fn bytes_per_value(&self, data: &Path) -> Result<Option<f64>> {
        let text = child::output(tool(&self.agent).arg("inspect").arg("--json").arg(data))?;
        let all: Value = serde_json::from_str(&text).context("fgm inspect --json")?;
        let (mut bytes, mut values) = (0, 0);
        for file in all["files"].as_array().into_iter().flatten().filter(|f| f["table"] == "samples") {
            bytes += file["bytes"].as_u64().unwrap_or(0);
            values += file["values"].as_u64().unwrap_or(0);
        }
        Ok(programs::each(bytes, values))
    }
}

/// The agent's account of its CPU (`cost` in /api/status) at both ends of the window.
struct Cost<'a> {
    before: &'a Value,
    after: &'a Value,
}

impl Cost<'_> {
    /// `None` when either end does not tell it.
    fn grown(&self, pointer: &str) -> Option<u64> {
        let at = |v: &Value| v.pointer(pointer)?.as_u64();
        at(self.after)?.checked_sub(at(self.before)?)
    }

    /// What the hot files of all samples took. A sample with slow files reads the hot ones as well, and its time is under `slow`: it
    /// is held to have cost what one of the hot files alone does, so that the floor, which reads each second, has no second more.
    fn hot_ns(&self) -> Option<u64> {
        let ns = self.grown("/cpu_ns/hot")?;
        let (hot, slow) = (self.grown("/samples/hot")?, self.grown("/samples/slow")?);
        let all = u128::from(ns) * u128::from(hot + slow);
        u64::try_from(all.checked_div(u128::from(hot))?).ok()
    }
}

/// Where the memory is, in MB.
fn memory_by(stat: &str) -> Value {
    let mut out = json!({});
    for line in stat.lines() {
        if let Some((
            key @ ("anon" | "kernel" | "slab" | "percpu" | "vmalloc" | "pagetables" | "kernel_stack"
            | "slab_reclaimable" | "slab_unreclaimable" | "sock"),
            n,
        )) = line.split_once(' ')
        {
            out[key] = json!(n.trim().parse::<u64>().unwrap_or(0) / 1000);
        }
    }
    out
}

fn ended(child: &mut Reaped) -> Result<()> {
    match wait_until(&mut child.0, Deadline::after(ENDS))? {
        Some(status) if status.success() => Ok(()),
        other => bail!("a reader ended badly: {other:?}"),
    }
}

fn all_followed(agent: &Agent, containers: usize) -> Result<()> {
    let deadline = Deadline::after(ALL_FOLLOWED);
    loop {
        let cgroups = &agent.get("/api/status")?["cgroups"];
        if cgroups["followed"].as_u64() >= Some(containers as u64) && cgroups["waiting"] == 0 {
            return Ok(());
        }
        if deadline.passed() {
            bail!("of {containers} containers the agent has {cgroups} after {} s", ALL_FOLLOWED.as_secs());
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// The floor must read what the agent reads.
fn check_hot(agent: &Agent) -> Result<()> {
    let all = agent.get("/api/metrics")?;
    let metrics = all["metrics"].as_array().cloned().unwrap_or_default();
    // those of the node are hot as well, and are not read of each container
    let hot: BTreeSet<_> = metrics
        .iter()
        .filter(|m| m["table"] == "samples" && m["tier"] != "slow")
        .filter_map(|m| m["file"].as_str())
        .collect();
    if hot != BTreeSet::from(HOT) {
        bail!("the hot files of the agent are {hot:?}, the benchmark reads {HOT:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Cost;
    use serde_json::{Value, json};

    fn cost(hot_ns: u64, hot: u64, slow: u64) -> Value {
        json!({"cpu_ns": {"hot": hot_ns}, "samples": {"hot": hot, "slow": slow}})
    }

    #[test]
    fn the_hot_files_of_a_slow_sample_count_as_those_of_a_hot_one() {
        let hot_ns = |before: &Value, after: &Value| Cost { before, after }.hot_ns();
        let before = cost(500, 40, 7);
        // 90 samples of 10 ns each, and 10 with slow files
        assert_eq!(hot_ns(&before, &cost(1400, 130, 17)), Some(1000));
        assert_eq!(hot_ns(&before, &cost(1400, 130, 7)), Some(900));
        assert_eq!(hot_ns(&before, &cost(500, 40, 17)), None, "without a hot sample nothing can be said");
        for missing in ["/cpu_ns", "/samples"] {
            let mut after = cost(1400, 130, 17);
            *after.pointer_mut(missing).expect("there") = Value::Null;
            assert_eq!(hot_ns(&before, &after), None, "{missing}");
            assert_eq!(hot_ns(&after, &before), None, "{missing}");
        }
    }
}
