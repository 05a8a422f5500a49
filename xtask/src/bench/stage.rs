//! Plays one case of the evidence benchmark in cgroups of its own and writes down what it did and what the kernel's files
//! said. Must never ask the recorder anything. Called by `play`, from many threads.

use super::case::{Case, Group, Process};
use super::mix::{Container, Plan};
use crate::cgroup::{self, Tree};
use crate::child::Reaped;
use crate::clock::{Deadline, ktime_ns};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// The longest case lasts 36 s; an emulated machine that others use as well takes its time.
const LONGEST: Duration = Duration::from_mins(5);
/// From the start of a process to the name of its role.
const READY: Duration = Duration::from_mins(1);
/// From the last kill to the removal of the cgroups, as a runtime would take; but for what is removed at once.
const AFTER: Duration = Duration::from_millis(200);
/// How often it is looked whether a process has ended, of a case that lasts and of one that is as short as can be.
const OFTEN: Duration = Duration::from_millis(20);
const OFTENER: Duration = Duration::from_millis(1);

pub struct Stage<'a> {
    pub root: &'a Path,
    pub workload: &'a Path,
    /// Folder for what processes print.
    pub words: &'a Path,
}

struct Playing {
    dir: PathBuf,
    words: PathBuf,
    group: Group,
    processes: Vec<(Reaped, bool)>,
}

/// A name that no other case has: the recorder tells cases apart by it in its own way, we by the inode.
fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Stage<'_> {
    pub fn play(&self, name: &str, plan: &Plan) -> Result<Case> {
        self.attempt(name, plan).with_context(|| format!("case {name}"))
    }

    fn attempt(&self, name: &str, plan: &Plan) -> Result<Case> {
        let mut tree = Tree::new(self.root);
        let uid = format!("{:08x}_0000_4000_8000_{:012x}", number(), std::process::id());
        let pod_path = format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice");
        let mut pod = Group { born_ns: ktime_ns(), ..Group::default() };
        let pod_dir = tree.make(&pod_path)?;
        self.identify(&mut pod, &pod_dir)?;
        pod.limit_bytes = limit(&pod_dir, plan.pod_limit)?;
        let (gate, hold) = std::io::pipe().context("no pipe")?;
        let mut playing = Vec::new();
        for (n, container) in plan.containers.iter().enumerate() {
            let id = format!("{:064x}", (u128::from(number()) << 64) + u128::from(std::process::id()));
            let mut group = Group { born_ns: ktime_ns(), container_id: id.clone(), ..Group::default() };
            let dir = tree.make(&format!("{pod_path}/cri-containerd-{id}.scope"))?;
            self.identify(&mut group, &dir)?;
            group.limit_bytes = limit(&dir, container.limit)?;
            if container.group_kill {
                cgroup::set(&dir, "memory.oom.group", "1")?;
            }
            let words = self.words.join(format!("{name}-{n}"));
            let processes = self.start(&dir, &words, container, plan.gate.then_some(&gate))?;
            playing.push(Playing { dir, words, group, processes });
        }
        drop(gate);
        if plan.gate {
            self.all_ready(&playing)?;
        }
        drop(hold);
        await_ends(&mut playing, if plan.at_once { OFTENER } else { OFTEN })?;
        if !plan.at_once {
            thread::sleep(AFTER);
        }

        let count = |group: &mut Group, dir: &Path| -> Result<()> {
            group.oom = cgroup::value(dir, "memory.events.local", "oom")?;
            group.oom_kill = cgroup::value(dir, "memory.events.local", "oom_kill")?;
            Ok(())
        };
        count(&mut pod, &pod_dir)?;
        for p in &mut playing {
            count(&mut p.group, &p.dir)?;
            p.end()?;
        }
        tree.remove()?;
        let removed_ns = ktime_ns();
        pod.removed_ns = removed_ns;
        let containers = playing.into_iter().map(|p| Group { removed_ns, ..p.group }).collect();
        Ok(Case { name: name.to_owned(), kind: plan.kind.to_owned(), pod, containers })
    }

    fn identify(&self, group: &mut Group, dir: &Path) -> Result<()> {
        let meta = fs::metadata(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
        group.id = meta.ino();
        let path = dir.strip_prefix(self.root).unwrap_or(dir);
        group.path = format!("/{}", path.display());
        Ok(())
    }

    fn start(
        &self,
        dir: &Path,
        words: &Path,
        container: &Container,
        gate: Option<&std::io::PipeReader>,
    ) -> Result<Vec<(Reaped, bool)>> {
        let out = File::create(words).with_context(|| format!("cannot write {}", words.display()))?;
        let mut processes = Vec::new();
        for part in &container.parts {
            let mut c = Command::new(self.workload);
            c.arg("--enter").arg(dir).args(&part.role).stdout(Stdio::null());
            c.stderr(out.try_clone().context("no descriptor")?);
            c.stdin(match gate {
                Some(gate) => Stdio::from(gate.try_clone().context("no descriptor")?),
                None => Stdio::null(),
            });
            let child = c.spawn().with_context(|| format!("cannot start {}", self.workload.display()))?;
            if let Some(adj) = container.oom_score_adj {
                fs::write(format!("/proc/{}/oom_score_adj", child.id()), adj.to_string())
                    .context("oom_score_adj")?;
            }
            processes.push((Reaped(child), part.awaited));
        }
        Ok(processes)
    }

    /// All processes have joined their cgroup and taken the name of their role: until then they have this program's file name.
    fn all_ready(&self, playing: &[Playing]) -> Result<()> {
        let before =
            self.workload.file_name().and_then(|n| n.to_str()).context("the workload has no name")?;
        let deadline = Deadline::after(READY);
        for (child, _) in playing.iter().flat_map(|p| &p.processes) {
            let comm = format!("/proc/{}/comm", child.0.id());
            while fs::read_to_string(&comm).is_ok_and(|name| name.trim() == before) {
                if deadline.passed() {
                    bail!("process {} did not begin within {} s", child.0.id(), READY.as_secs());
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

fn limit(dir: &Path, max: Option<&str>) -> Result<Option<u64>> {
    if dir.join("memory.swap.max").exists() {
        cgroup::set(dir, "memory.swap.max", "0")?;
    }
    let Some(max) = max else { return Ok(None) };
    cgroup::set(dir, "memory.max", max)?;
    let text = fs::read_to_string(dir.join("memory.max")).context("memory.max")?;
    Ok(Some(text.trim().parse().with_context(|| format!("memory.max is {text}"))?))
}

fn await_ends(playing: &mut [Playing], look: Duration) -> Result<()> {
    let deadline = Deadline::after(LONGEST);
    for p in playing {
        for (child, awaited) in &mut p.processes {
            while *awaited && child.0.try_wait().context("cannot wait")?.is_none() {
                if deadline.passed() {
                    bail!("a process of {} does not end within {} s", p.group.path, LONGEST.as_secs());
                }
                thread::sleep(look);
            }
        }
    }
    Ok(())
}

impl Playing {
    /// Ends what still runs and takes down who was in the container and how it ended.
    fn end(&mut self) -> Result<()> {
        let mut ours = BTreeSet::new();
        for (child, awaited) in &mut self.processes {
            if !*awaited {
                child.0.kill().context("cannot end a process")?;
            }
            let status = child.0.wait().context("cannot wait")?;
            self.group.ended_badly |= !status.success();
            let pid = child.0.id();
            ours.insert(pid);
            self.group.processes.push(Process { pid, signal: status.signal(), ours: true });
        }
        // what the container's processes say begins with `workload[PID]: `, those of their children too
        let text = fs::read_to_string(&self.words).unwrap_or_default();
        let pids = text.lines().filter_map(|l| l.strip_prefix("workload[")?.split_once(']')?.0.parse().ok());
        let others: BTreeSet<u32> = pids.filter(|pid| !ours.contains(pid)).collect();
        self.group.processes.extend(others.into_iter().map(|pid| Process { pid, signal: None, ours: false }));
        Ok(())
    }
}
