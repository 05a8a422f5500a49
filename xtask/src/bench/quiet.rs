//! `cargo xtask bench quiet`: containers to which nothing happens, under the recorder's own defaults. Whatever it warns of is
//! a false alarm. Must never count as quiet what was not there to the end. Called by `bench`; in the test VM through
//! `bench --play quiet`.
//!
//! `idle` hold some memory and do next to nothing; `steady` live at 60 to 80 % of their limit, a part of it page cache in
//! use, with light CPU under a quota; `full-cache` read more than their limit holds, so that they live at it and nothing is
//! wrong: what is told of those is counted apart.

use super::{Place, Programs, machine};
use crate::agent::Agent;
use crate::cgroup::{self, Tree};
use crate::child::{Reaped, TempDir};
use crate::clock::{ktime_ns, wall_us};
use crate::demo::CGROUP_ROOT;
use crate::progress::Step;
use crate::vm::Guest;
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

const IDLE: usize = 20;
const STEADY: usize = 15;
const FULL_CACHE: usize = 5;
/// Bytes of the file that each container reads for itself alone: the first to touch a page is charged for it.
const REGION: usize = 32 << 20;
/// What emulation asks for; every threshold stays as it is.
const TABLES: &str = "[lane]\nperiod_ms = 50\ncpu_budget_percent = 25\n";
/// What begins takes memory and CPU for a moment, and may be told: counting starts after it.
const BEGIN: Duration = Duration::from_secs(30);
const RESULT: &str = "quiet.json";
/// Kinds that warn. The others tell what happened, and so does a row of these that says that it goes on (`info`).
const WARNINGS: [&str; 8] = [
    "limit_near",
    "forecast_oom",
    "psi_stall",
    "cpu_throttled",
    "memory_high",
    "memory_max",
    "memory_reclaim",
    "fork_limit",
];

/// 0 when nothing was warned of but where memory is full of cache, 1 otherwise.
pub fn bench(place: Place, kernel: &str, minutes: usize, json_file: Option<&Path>) -> Result<i32> {
    let programs = Programs::build()?;
    let out = super::out_folder("quiet")?;
    // a hole: zeros when read, and the page cache does not know better
    let data = File::create(out.join("cached")).context("cannot write the file to be cached")?;
    data.set_len(((STEADY + FULL_CACHE) * REGION) as u64).context("cannot size the file to be cached")?;
    if place == Place::Host {
        play(&out, &programs.agent, &programs.workload, minutes)?;
    } else {
        let own = crate::paths::own()?;
        let mut words: Vec<OsString> = vec![own.into(), "bench".into(), "--play".into(), "quiet".into()];
        words.extend([&out, &programs.agent, &programs.workload].map(OsString::from));
        words.push(minutes.to_string().into());
        let mut guest = Guest::new(words)?;
        kernel.clone_into(&mut guest.series);
        guest.timeout = Duration::from_secs(minutes as u64 * 60 + 300);
        guest.out = Some(out.clone());
        let code = guest.run_with(&mut std::io::stderr(), &mut std::io::stderr())?;
        if code != 0 {
            bail!(
                "the benchmark failed in the test VM (exit code {code}); what there is of it is in {}",
                out.display()
            );
        }
    }
    let path = out.join(RESULT);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut result: Value = serde_json::from_str(&text)?;
    result["machine"] = json!(machine());
    result["where"] = json!(place.words());
    for (key, value) in result.as_object().into_iter().flatten() {
        println!("{key:>16}  {value}");
    }
    if let Some(path) = json_file {
        fs::write(path, format!("{result:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{result}");
    Ok(i32::from(result["false_alarms"] != 0))
}

/// Kind of container by number, with its limit and its words.
fn container(n: usize, out: &Path) -> (&'static str, &'static str, String) {
    let file = out.join("cached").display().to_string();
    match n.checked_sub(IDLE) {
        None => ("idle", "32M", "steady --bytes 4M --name idle".to_owned()),
        Some(n) if n < STEADY => {
            // with 7 MiB of cache and what a process takes 14.6 to 19.1 MiB of 24
            let bytes = (7 << 20) + n * (4_500 << 10) / (STEADY - 1);
            let from = n * REGION;
            let words =
                format!("serve --bytes {bytes} --file {file} --from {from} --length 7M --name steady");
            ("steady", "24M", words)
        }
        Some(n) => {
            let from = n * REGION;
            let words = format!("serve --bytes 8M --file {file} --from {from} --length 32M --name reader");
            ("full-cache", "16M", words)
        }
    }
}

pub fn play(out: &Path, agent: &Path, workload: &Path, minutes: usize) -> Result<()> {
    let temp = TempDir::new("bench")?;
    let program = temp.path().join("workload");
    fs::copy(workload, &program).with_context(|| format!("cannot copy {}", workload.display()))?;
    let keys = format!("cgroup_root = \"{CGROUP_ROOT}\"\nnode = \"bench\"\n");
    let mut agent = Agent::start(temp.path(), agent, &keys, TABLES)?;
    let mut tree = Tree::new(Path::new(CGROUP_ROOT));
    let own = std::process::id();
    let mut processes = Vec::new();
    let mut classes: BTreeMap<String, &str> = BTreeMap::new();
    let pods = "kubepods.slice/kubepods-burstable.slice";
    for n in 0..IDLE + STEADY + FULL_CACHE {
        let (class, limit, words) = container(n, out);
        let id = format!("{n:032x}{own:032x}");
        let pod = format!("{pods}/kubepods-burstable-pod{n:08x}_0000_4000_8000_{own:012x}.slice");
        let dir = tree.make(&format!("{pod}/cri-containerd-{id}.scope"))?;
        cgroup::set(&dir, "memory.max", limit)?;
        cgroup::set(&dir, "cpu.max", "50000 100000")?;
        let mut c = Command::new(&program);
        c.arg("--enter").arg(&dir).args(words.split(' '));
        let child =
            c.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("cannot start a container")?;
        processes.push((Reaped(child), dir, class));
        classes.insert(id, class);
    }
    thread::sleep(BEGIN);
    let (from_us, start) = (wall_us(), ktime_ns());
    let mut step = Step::begin(format!("{} containers for {minutes} min", processes.len()));
    let length = minutes as u64 * 60_000_000_000;
    while ktime_ns() - start < length {
        agent.alive()?;
        for (child, _, class) in &mut processes {
            if let Some(status) = child.0.try_wait().context("cannot wait")? {
                bail!("a container that was to be {class} ended: {status}");
            }
        }
        step.update(None, "");
        thread::sleep(Duration::from_millis(500));
    }
    step.done("");
    let events = agent.get(&format!("/api/events?from={}.0", from_us / 1_000_000))?;
    let incidents = agent.get("/api/incidents")?;
    let status = agent.get("/api/status")?;
    let shares = shares(&processes)?;
    drop(processes);
    let mut result = result(&events, &incidents, &classes, minutes);
    result["kernel"] = status["kernel"].clone();
    result["share_of_limit_percent"] = shares;
    let path = out.join(RESULT);
    fs::write(&path, result.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    let log = temp.path().join("agent.log");
    fs::copy(&log, out.join("agent.log")).context("cannot copy the agent's log")?;
    fs::write(out.join("events.json"), events.to_string()).context("cannot write the events")?;
    // when all is written: on a busy machine it may take longer than it may
    agent.stop()?;
    tree.remove()
}

/// Where they stood at the end: least and most of each class, so that nobody has to believe what they were to be.
fn shares(processes: &[(Reaped, std::path::PathBuf, &'static str)]) -> Result<Value> {
    let mut all: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (_, dir, class) in processes {
        let number = |name: &str| -> Result<u64> {
            let text = fs::read_to_string(dir.join(name)).with_context(|| name.to_owned())?;
            text.trim().parse().with_context(|| format!("{name} is {text}"))
        };
        let share = number("memory.current")? * 100 / number("memory.max")?;
        let of = all.entry(class).or_insert((share, share));
        *of = (of.0.min(share), of.1.max(share));
    }
    Ok(json!(all))
}

/// Counts of warnings by class and kind.
fn result(events: &Value, incidents: &Value, classes: &BTreeMap<String, &str>, minutes: usize) -> Value {
    let mut told: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
    for event in events["events"].as_array().into_iter().flatten() {
        let kind = event["kind"].as_str().unwrap_or_default();
        if WARNINGS.contains(&kind) && event["severity"] != "info" {
            let class = event["container_id"].as_str().and_then(|id| classes.get(id)).unwrap_or(&"other");
            *told.entry(class).or_default().entry(kind.to_owned()).or_default() += 1;
        }
    }
    let incidents = incidents["incidents"].as_array().map_or(0, Vec::len) as u64;
    let false_alarms =
        ["idle", "steady"].iter().filter_map(|c| told.get(c)).flat_map(BTreeMap::values).sum::<u64>()
            + incidents;
    json!({
        "minutes": minutes, "containers": {"idle": IDLE, "steady": STEADY, "full-cache": FULL_CACHE},
        "warnings": told, "incidents": incidents, "false_alarms": false_alarms,
    })
}

#[cfg(test)]
mod tests {
    use super::result;
    use serde_json::json;
    use std::collections::BTreeMap;

    #[test]
    fn warnings_are_counted_by_class_and_those_of_full_caches_apart() {
        let classes = BTreeMap::from([("a".to_owned(), "idle"), ("b".to_owned(), "full-cache")]);
        let event = |kind: &str, id: &str| json!({"kind": kind, "container_id": id, "severity": "warning"});
        let goes_on = json!({"kind": "memory_reclaim", "container_id": "b", "severity": "info"});
        let events = json!({"events": [
            event("psi_stall", "a"), event("memory_max", "b"), event("memory_max", "b"), event("exec", "a"), goes_on,
        ]});
        let r = result(&events, &json!({"incidents": []}), &classes, 10);
        assert_eq!(r["warnings"], json!({"full-cache": {"memory_max": 2}, "idle": {"psi_stall": 1}}));
        assert_eq!(r["false_alarms"], 1);
        assert_eq!(result(&events, &json!({"incidents": [{}, {}]}), &classes, 10)["false_alarms"], 3);
    }
}
