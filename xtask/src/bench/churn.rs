//! `cargo xtask bench churn`: cgroups made and removed by the ten thousand under the recorder. Is each one told with its
//! path, and is nothing kept of them? Must never touch a cgroup that it did not make. Called by `bench`.
//!
//! The truth is the inode and the path of each directory, as the driver made it; memory and descriptors are read from
//! /proc by us, not asked of the recorder.

use super::{Programs, machine, native};
use crate::agent::Agent;
use crate::cgroup::Tree;
use crate::clock::{Deadline, ktime_ns, wall_us};
use crate::progress::{Step, say};
use crate::setup;
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Cgroups made in a second. A debug build of the recorder spends 0.3 ms on each; a kubelet makes tens.
const PER_SECOND: u64 = 300;
/// Cgroups that are there at one time.
const ALIVE: usize = 64;
/// The first fifth as many are for tables and the allocator to come to their size; the baseline is taken after it.
const WARM_UP: usize = 5;
/// Measurements of memory over the run.
const LOOKS: usize = 40;
/// Rows leave the recorder's memory with a segment: after so long there are few. The ring holds 12 s of this pace, so that
/// a machine with other work shows what the recorder does and not when it is given its turn.
const TABLES: &str = "[rotation]\nevery_s = 5\n[probes]\nring_bytes = 4194304\n";
/// A recorder that is not given its turn has a full ring to go through.
const DRAINED: Duration = Duration::from_mins(3);
const SETTLE: Duration = Duration::from_secs(12);
/// Events of one request: one answer holds 10,000, and one second has some 1,600.
const WINDOW_US: i64 = 3_000_000;
const WANTED_PERCENT: f64 = 99.9;
const WANTED_SLOPE: f64 = 1e6;

struct Look {
    made: usize,
    anon_bytes: u64,
    descriptors: usize,
}

fn look(pid: u32, made: usize) -> Result<Look> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("the agent has no status")?;
    let kb = text
        .lines()
        .find_map(|l| l.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).context("the agent's descriptors")?.count();
    Ok(Look { made, anon_bytes: kb.context("no RssAnon")? * 1024, descriptors })
}

/// 0 when all was told and nothing stays behind, 1 otherwise.
pub fn bench(cgroups: usize, json_file: Option<&Path>) -> Result<i32> {
    if !setup::is_root() {
        bail!("making cgroups needs root");
    }
    let root = native::v2_root()?;
    let programs = Programs::build()?;
    let out = super::out_folder("churn")?;
    let keys = format!("cgroup_root = {:?}\nnode = \"bench\"\n", root.display().to_string());
    let mut agent = Agent::start(&out, &programs.agent, &keys, TABLES)?;

    let warm_up = cgroups / WARM_UP;
    let from_us = wall_us();
    let mut made = HashMap::with_capacity(cgroups);
    churn(&root, warm_up, &mut agent, &mut made, |_| Ok(()))?;
    settle(&agent)?;
    let before = look(agent.pid(), 0)?;
    let mut looks = Vec::with_capacity(LOOKS);
    let pid = agent.pid();
    let start = ktime_ns();
    let cpu = |agent: &Agent| anyhow::Ok(agent.get("/api/status")?["cpu_ns"].as_u64().unwrap_or(0));
    let cpu_before = cpu(&agent)?;
    churn(&root, cgroups, &mut agent, &mut made, |so_far| {
        looks.push(look(pid, so_far)?);
        Ok(())
    })?;
    let took_ns = ktime_ns() - start;
    settle(&agent)?;
    let after = look(pid, cgroups)?;
    let cpu_ns = cpu(&agent)?.saturating_sub(cpu_before);
    let status = agent.get("/api/status")?;
    let to_us = wall_us();
    let told = attributed(&agent, &made, from_us, to_us)?;
    agent.stop()?;

    let attributed = told.cgroups.len();
    let share = percent(attributed, made.len());
    // from the end of the warm-up to the end of it all, at rest both times; the slope during it holds the rows in hand
    let grown = signed(after.anon_bytes) - signed(before.anon_bytes);
    let slope = grown / float(cgroups) * 1e5;
    let result = json!({
        "cgroups": made.len(), "attributed": attributed, "attributed_percent": round(share), "told_again": told.again.len(),
        "anon_bytes_before": before.anon_bytes, "anon_bytes_after": after.anon_bytes,
        "anon_bytes_on_the_way": looks.iter().step_by(LOOKS / 10).map(|l| l.anon_bytes).collect::<Vec<_>>(),
        "slope_bytes_per_100k": round(slope), "slope_during_bytes_per_100k": round(slope_of(&looks) * 1e5),
        "descriptors_before": before.descriptors, "descriptors_after": after.descriptors,
        "cgroups_per_second": round(float(cgroups) * 1e9 / float(usize::try_from(took_ns).unwrap_or(1))),
        "cpu_us_per_cgroup": cpu_ns / 1000 / cgroups as u64,
        "events": status["ledger"]["events"], "probe_losses": losses(&status), "followed": status["cgroups"]["followed"],
        "machine": machine(), "kernel": status["kernel"], "where": "this machine",
    });
    for (key, value) in result.as_object().into_iter().flatten() {
        println!("{key:>28}  {value}");
    }
    if let Some(path) = json_file {
        fs::write(path, format!("{result:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{result}");
    let right = share >= WANTED_PERCENT && slope < WANTED_SLOPE && after.descriptors <= before.descriptors;
    Ok(i32::from(!right))
}

/// Until the recorder has told all that was in the ring, and then one rotation longer.
fn settle(agent: &Agent) -> Result<()> {
    let deadline = Deadline::after(DRAINED);
    let mut before = None;
    loop {
        let status = agent.get("/api/status")?;
        let now = (status["ledger"]["events"]["due"].as_u64(), status["cgroups"]["followed"].as_u64());
        if before == Some(now) || deadline.passed() {
            break;
        }
        before = Some(now);
        thread::sleep(Duration::from_secs(5));
    }
    thread::sleep(SETTLE);
    Ok(())
}

fn losses(status: &Value) -> Value {
    let kinds = status["probe_losses"]["kinds"].as_array().cloned().unwrap_or_default();
    let some = kinds.iter().filter(|k| k["lost"] != 0 || k["cut"] != 0);
    json!(some.map(|k| json!({"kind": k["kind"], "lost": k["lost"], "cut": k["cut"]})).collect::<Vec<_>>())
}

/// Makes and removes so many, some alive at one time, at an even pace; looks around some times on the way.
fn churn(
    root: &Path,
    cgroups: usize,
    agent: &mut Agent,
    made: &mut HashMap<u64, String>,
    mut look: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    let own = std::process::id();
    let mut tree = Tree::new(root);
    let pod = format!(
        "fgm-bench-{own}/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod00000000_0000_4000_8000_{own:012x}.slice"
    );
    let dir = tree.make(&pod)?;
    let mut step = Step::begin(format!("{cgroups} cgroups, {PER_SECOND} a second"));
    let (start, first) = (ktime_ns(), made.len());
    let mut alive: VecDeque<PathBuf> = VecDeque::with_capacity(ALIVE);
    for n in 0..cgroups {
        let name = format!("cri-containerd-{:032x}{own:032x}.scope", first + n);
        let path = dir.join(&name);
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        made.insert(fs::metadata(&path).context("stat")?.ino(), format!("/{pod}/{name}"));
        alive.push_back(path);
        if alive.len() >= ALIVE {
            remove(&mut alive)?;
        }
        if n % (cgroups / LOOKS).max(1) == 0 {
            agent.alive()?;
            look(n)?;
            let share = f64::from(u32::try_from(n * 1000 / cgroups).unwrap_or(0)) / 1000.0;
            step.update(Some(share), &format!("{n} made · "));
        }
        let due = start + n as u64 * 1_000_000_000 / PER_SECOND;
        if let Some(early) = due.checked_sub(ktime_ns()).filter(|ns| *ns > 1_000_000) {
            thread::sleep(Duration::from_nanos(early));
        }
    }
    while !alive.is_empty() {
        remove(&mut alive)?;
    }
    step.done("");
    tree.remove()
}

fn remove(alive: &mut VecDeque<PathBuf>) -> Result<()> {
    let Some(path) = alive.pop_front() else { return Ok(()) };
    fs::remove_dir(&path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Cgroups of ours that have a `cgroup_start` with their inode and their path: each once, so that one told twice hides none that was missed.
#[derive(Default)]
struct Told {
    cgroups: HashSet<u64>,
    /// Those of them told more than once.
    again: HashSet<u64>,
}

impl Told {
    fn hear(&mut self, event: &Value, made: &HashMap<u64, String>) {
        let id = event["cgroup_id"].as_u64().or_else(|| event["cgroup_id"].as_str()?.parse().ok());
        let Some((id, path)) = id.and_then(|id| Some((id, made.get(&id)?))) else { return };
        if event["kind"] == "cgroup_start"
            && event["cgroup_path"] == path.as_str()
            && !self.cgroups.insert(id)
        {
            self.again.insert(id);
        }
    }
}

fn attributed(agent: &Agent, made: &HashMap<u64, String>, from_us: i64, to_us: i64) -> Result<Told> {
    let mut step = Step::begin("reading the events");
    let mut told = Told::default();
    let mut at = from_us;
    let deadline = Deadline::after(Duration::from_mins(10));
    while at < to_us {
        let to = (at + WINDOW_US).min(to_us);
        // both ends belong to what is answered
        let answer = agent.get(&format!("/api/events?from={}&to={}", seconds(at), seconds(to - 1)))?;
        for event in answer["events"].as_array().into_iter().flatten() {
            told.hear(event, made);
        }
        step.update(None, &format!("{} told · ", told.cgroups.len()));
        if deadline.passed() {
            bail!("the events cannot be read in time");
        }
        at = to;
    }
    step.done("");
    if !told.again.is_empty() {
        say(&format!("{} births were told more than once", told.again.len()));
    }
    Ok(told)
}

fn seconds(us: i64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

/// Least squares: bytes for each cgroup made.
fn slope_of(looks: &[Look]) -> f64 {
    let n = float(looks.len()).max(1.0);
    let x = |l: &Look| float(l.made);
    let y = |l: &Look| signed(l.anon_bytes);
    let (mean_x, mean_y) = (looks.iter().map(x).sum::<f64>() / n, looks.iter().map(y).sum::<f64>() / n);
    let over: f64 = looks.iter().map(|l| (x(l) - mean_x) * (y(l) - mean_y)).sum();
    let under: f64 = looks.iter().map(|l| (x(l) - mean_x).powi(2)).sum();
    if under > 0.0 { over / under } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "a slope is no counter")]
fn signed(bytes: u64) -> f64 {
    bytes as f64
}

#[expect(clippy::cast_precision_loss, reason = "a share is no counter")]
fn float(n: usize) -> f64 {
    n as f64
}

fn percent(part: usize, whole: usize) -> f64 {
    float(part) * 100.0 / float(whole).max(1.0)
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::{Look, Told, slope_of};
    use serde_json::json;
    use std::collections::HashMap;

    #[test]
    fn a_birth_told_twice_hides_none_that_was_missed() {
        let made = HashMap::from([(7, "/a".to_owned()), (8, "/b".to_owned()), (9, "/c".to_owned())]);
        let mut told = Told::default();
        for (kind, id, path) in [
            ("cgroup_start", json!(7), "/a"),
            ("cgroup_start", json!("7"), "/a"),
            ("cgroup_start", json!(7), "/a"),
            ("cgroup_start", json!("9"), "/c"),
            // the end of one, one with another's path, and a stranger
            ("cgroup_end", json!(8), "/b"),
            ("cgroup_start", json!(8), "/a"),
            ("cgroup_start", json!(6), "/d"),
        ] {
            told.hear(&json!({"kind": kind, "cgroup_id": id, "cgroup_path": path}), &made);
        }
        assert_eq!((told.cgroups.len(), told.again.len()), (2, 1));
    }

    #[test]
    fn a_slope_is_that_of_the_line_through_the_looks() {
        let look = |made, anon_bytes| Look { made, anon_bytes, descriptors: 0 };
        let rising: Vec<Look> = (0..10).map(|n| look(n * 100, 5000 + n as u64 * 300)).collect();
        assert!((slope_of(&rising) - 3.0).abs() < 1e-9);
        let even: Vec<Look> = (0..10).map(|n| look(n, 7)).collect();
        assert!(slope_of(&even).abs() < 1e-9);
        assert!(slope_of(&[]).abs() < 1e-9);
    }
}
