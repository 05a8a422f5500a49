//! From a kill in the kernel to the first burst sample, on this machine itself, where emulation stretches no time.
//! Must never touch a cgroup that it did not make nor be seen by a mount of others. Called by `evidence`.
//!
//! A machine whose memory controller is in cgroup v1 can do it all the same: the limit is that of a v1 directory of our
//! own, the container is a directory of ours in the v2 hierarchy, and the process is in both. The witness has tracefs in a
//! mount namespace of its own.

use super::bound::{self, Bound};
use super::judge::FIRST_BURST_MS;
use super::play::Witness;
use super::score::{p99, seconds};
use super::{Programs, case::Line, machine, rows};
use crate::agent::Agent;
use crate::cgroup::{self, Tree};
use crate::child::{Reaped, tool, wait_until};
use crate::clock::Deadline;
use crate::progress::Step;
use crate::setup;
use anyhow::{Context as _, Result, bail};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

/// As many as a p99 needs.
const KILLS: u32 = 100;
const V1_MEMORY: &str = "/sys/fs/cgroup/memory";
const ENDS: Duration = Duration::from_secs(10);
/// Between two kills: a recorder that is not given its turn at once is late, and its container still there.
const APART: Duration = Duration::from_millis(600);

/// Where cgroup v2 is mounted, controllers or none.
pub fn v2_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("no /proc/self/mounts")?;
    let found = mounts.lines().find_map(|l| {
        let mut words = l.split(' ');
        let (path, kind) = (words.nth(1)?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    found.context("cgroup v2 is mounted nowhere")
}

/// `cargo xtask bench burst`: these alone, since they want a machine that has nothing else to do. 0 when the bound holds, 1 otherwise.
pub fn bench(json_file: Option<&Path>) -> Result<i32> {
    let programs = Programs::build()?;
    let mut all = first_bursts(&super::out_folder("burst")?, &programs)?;
    all.sort_by(f64::total_cmp);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let result = json!({
        "kills": all.len(), "first_burst_ms_p50": all.get(all.len() / 2), "first_burst_ms_p99": p99(&all),
        "first_burst_ms_max": all.last(), "load": read("/proc/loadavg"),
        "machine": machine(), "kernel": read("/proc/sys/kernel/osrelease"),
        "where": "this machine, limits of cgroup v1",
    });
    if let Some(path) = json_file {
        fs::write(path, format!("{result:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let bound = Bound::at_most("first_burst_ms_p99", p99(&all), FIRST_BURST_MS);
    let holds = bound::print(&[bound]);
    println!("{result}");
    Ok(i32::from(!holds))
}

/// Milliseconds of each kill, by the witness's instant and the rows' own.
pub fn first_bursts(out: &Path, programs: &Programs) -> Result<Vec<f64>> {
    if !setup::is_root() {
        bail!("making cgroups needs root");
    }
    let root = v2_root()?;
    let out = out.join("native");
    fs::create_dir_all(out.join("tracefs")).context("cannot create a folder")?;
    // owned by the test alone, with the limit that kills
    let limit = Directory::new(Path::new(V1_MEMORY))?;
    cgroup::set(&limit.0, "memory.limit_in_bytes", "8M")?;
    let keys = format!("cgroup_root = {:?}\nnode = \"bench\"\n", root.display().to_string());
    let mut agent = Agent::start(&out, &programs.agent, &keys, "")?;
    let witness = witness(&out, programs)?;
    let killed = kill(&root, &limit.0, programs, &mut agent);
    witness.stop()?;
    agent.stop()?;
    let killed = killed?;

    let text = fs::read_to_string(out.join("truth.jsonl")).context("the witness left nothing")?;
    let mut at: BTreeMap<u64, u64> = BTreeMap::new();
    for line in text.lines() {
        if let Line::MarkVictim { ktime_ns, pid, .. } = serde_json::from_str(line)?
            && let Some((id, _)) = killed.get(&pid)
        {
            at.entry(*id).or_insert(ktime_ns);
        }
    }
    let ids: Vec<&str> = killed.values().map(|(_, name)| name.as_str()).collect();
    let mut first: BTreeMap<u64, u64> = BTreeMap::new();
    rows::each(&out, &programs.agent, &ids, "cpu_stat_usage_usec", |row| {
        if row.cause == "burst" && at.get(&row.cgroup_id).is_some_and(|kill| row.ktime_ns >= *kill) {
            let first = first.entry(row.cgroup_id).or_insert(u64::MAX);
            *first = row.ktime_ns.min(*first);
        }
    })?;
    if at.len() != killed.len() || first.len() != killed.len() {
        let (marked, sampled) = (at.len(), first.len());
        bail!("of {} kills {marked} were marked and {sampled} have a burst", killed.len());
    }
    Ok(at.iter().map(|(id, kill)| seconds(first[id] - kill) * 1e3).collect())
}

fn witness(out: &Path, programs: &Programs) -> Result<Witness> {
    let mut c = tool("unshare");
    let (tracefs, lines) = (out.join("tracefs"), out.join("truth.jsonl"));
    c.args(["-m", "sh", "-c", "mount -t tracefs none \"$1\" && exec \"$0\" \"$@\""]);
    Witness::start(c.arg(&programs.truth).arg(tracefs).arg(lines))
}

/// One container after the other, each killed by the limit. By pid: the inode and the name of its container.
fn kill(
    root: &Path,
    limit: &Path,
    programs: &Programs,
    agent: &mut Agent,
) -> Result<BTreeMap<u32, (u64, String)>> {
    let own = std::process::id();
    let mut base = Tree::new(root);
    let pods = format!("fgm-bench-{own}/kubepods.slice/kubepods-burstable.slice");
    base.make(&pods)?;
    let mut step = Step::begin(format!("{KILLS} kills on this machine"));
    let mut killed = BTreeMap::new();
    for n in 0..KILLS {
        agent.alive()?;
        step.update(Some(f64::from(n) / f64::from(KILLS)), "");
        let mut tree = Tree::new(root);
        let name = format!("{n:032x}{own:032x}");
        let pod = format!("{n:08x}_0000_4000_8000_{own:012x}");
        let dir =
            tree.make(&format!("{pods}/kubepods-burstable-pod{pod}.slice/cri-containerd-{name}.scope"))?;
        let mut c = tool(&programs.workload);
        c.arg("--enter").arg(limit).arg("--enter").arg(&dir);
        c.args(["blast", "--bytes", "16M", "--after", "0.1", "--name", "app"]);
        c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = Reaped(c.spawn().context("cannot start the workload")?);
        let status = wait_until(&mut child.0, Deadline::after(ENDS))?;
        if status.is_none_or(|s| s.success()) {
            bail!("a process was to be killed by its limit and was not");
        }
        let id = fs::metadata(&dir).context("the container's cgroup has gone")?.ino();
        killed.insert(child.0.id(), (id, name));
        thread::sleep(APART);
        tree.remove()?;
    }
    base.remove()?;
    step.done("");
    Ok(killed)
}

/// A directory of a v1 hierarchy, removed when it goes.
struct Directory(PathBuf);

impl Directory {
    fn new(hierarchy: &Path) -> Result<Self> {
        let path = hierarchy.join(format!("fgm-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        crate::progress::say(&format!("{} stays behind", self.0.display()));
    }
}
