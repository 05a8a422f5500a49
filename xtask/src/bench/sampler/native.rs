//! The sampler and the lane on this machine at its own speed, over as many real cgroups. Must never leave a cgroup behind.
//! Called by `sampler`.
//!
//! Where the controllers are in cgroup v1, a v2 directory has cpu.stat and PSI alone; the other hot files are then copies of a
//! real container's, on a tmpfs, which read cheaper than the real thing (`note` says so). The lane walks the real cgroups.

use super::programs::{self, Programs, inside, occupy};
use super::{HOT, Row, SECONDS};
use crate::bench::native::v2_root;
use crate::cgroup::Tree;
use crate::child::{Reaped, wait_until};
use crate::clock::{Deadline, ktime_ns};
use crate::paths;
use crate::progress::{Step, say};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

/// The first round opens and allocates.
const BEGIN: u64 = 3;
/// A window that begins between two rounds has as many of them as seconds.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(500);
const SPARE: u64 = 4;
const TMPFS: &str = "/dev/shm";

pub fn rows(programs: &Programs, containers: usize, load: &str) -> Result<Vec<Row>> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let wanted = (containers * HOT.len() + 300) as u64;
    if limit < wanted {
        say(&format!(
            "native, {containers} containers: left out, {wanted} open files are needed and {limit} allowed"
        ));
        return Ok(Vec::new());
    }
    let own = std::process::id();
    let mut tree = Tree::new(&v2_root()?);
    let base = tree.make(&format!("fgm-bench-{own}"))?;
    let mut step = Step::begin(format!("{containers} cgroups on this machine"));
    let files = Folder::new(own)?;
    let copies = copies()?;
    let (mut processes, mut real, mut copied) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..containers {
        let id = format!("{n:032x}{own:032x}");
        let cgroup = tree.make(&format!("fgm-bench-{own}/docker/{id}"))?;
        processes.push(occupy(&programs.reader, load, &cgroup)?);
        let dir = files.0.join("docker").join(id);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        (real, copied) = (Vec::new(), Vec::new());
        for name in HOT {
            if cgroup.join(name).exists() {
                symlink(cgroup.join(name), dir.join(name)).context("cannot make a link")?;
                real.push(name);
            } else if let Some(text) = copies.get(name) {
                fs::write(dir.join(name), text).context("cannot write a copy")?;
                copied.push(name);
            }
        }
    }
    step.update(None, "");
    let note = format!("real: {}; copies on tmpfs: {}", real.join(" "), copied.join(" "));
    let containers_dir = files.0.join("docker");
    let mut rows = Vec::new();
    for name in ["floor", "naive", "fgm"] {
        let cgroup = tree.make(&format!("fgm-bench-{own}/{name}"))?;
        let output = files.0.join(format!("{name}.json"));
        let length = BEGIN + SECONDS + SPARE;
        let command = if name == "fgm" {
            let mut c = Command::new(inside(&files.0, &cgroup, &programs.alone)?);
            c.arg(&files.0).arg(&base).arg(length.to_string());
            c.stdout(fs::File::create(&output).context("cannot write")?);
            c
        } else {
            let script = inside(&files.0, &cgroup, &programs.reader)?;
            programs::reader(&script, name, &containers_dir, length, &output)?
        };
        let (us, ns, anon) = measured(command, &cgroup, length)?;
        let said = last_line(&output)?;
        let number = |key: &str| said[key].as_u64().unwrap_or(0);
        let samples = if name == "fgm" { number("samples") } else { number("rounds") * containers as u64 };
        if name == "fgm" && number("readings") < containers as u64 * SECONDS * 45 {
            bail!("the lane gave {} readings; this machine is too busy to measure on", number("readings"));
        }
        rows.push(Row {
            name: name.to_owned(),
            containers,
            place: "native".to_owned(),
            cpu_us_per_container_second: programs::per_container_second(us, containers, ns),
            memory_bytes: Some(anon),
            memory_of: "RssAnon".to_owned(),
            allocations_per_sample: programs::each(number("allocations"), samples),
            bytes_per_value: None,
            load: load.to_owned(),
            hot_and_lane_us: None,
            stages: None,
            kernel: kernel(),
            note: programs::with_late(&note, &said),
        });
    }
    step.done("");
    drop(processes);
    tree.remove()?;
    Ok(rows)
}

pub fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// CPU in µs over the nanoseconds of the window, and the anonymous memory at its end.
fn measured(mut command: Command, cgroup: &Path, length: u64) -> Result<(u64, u64, u64)> {
    let mut child = Reaped(command.spawn().context("cannot start it")?);
    let pid = child.0.id();
    thread::sleep(Duration::from_secs(BEGIN) + BETWEEN_ROUNDS);
    let (from, cpu) = (ktime_ns(), programs::cpu_us(cgroup)?);
    thread::sleep(Duration::from_secs(SECONDS));
    let (to, cpu) = (ktime_ns(), programs::cpu_us(cgroup)? - cpu);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("it has ended before its time")?;
    let kb =
        status.lines().find_map(|l| l.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse().ok());
    let anon: u64 = kb.context("it has no RssAnon")?;
    match wait_until(&mut child.0, Deadline::after(Duration::from_secs(length + 30)))? {
        Some(status) if status.success() => Ok((cpu, to - from, anon * 1024)),
        other => bail!("it ended badly: {other:?}"),
    }
}

/// The JSON at the end of a program's output.
pub fn last_line(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let line = text.lines().last().with_context(|| format!("{} is empty", path.display()))?;
    serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))
}

/// The files of a container as kernel 6.12 printed them.
fn copies() -> Result<BTreeMap<String, String>> {
    let path = paths::root().join("agent/tests/fixtures/cgroup/6.12.txt");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let parts = text.split("=== ").skip(1).filter_map(|p| p.split_once('\n'));
    Ok(parts.map(|(name, text)| (name.to_owned(), text.to_owned())).collect())
}

/// A folder in memory, removed when the value goes.
struct Folder(PathBuf);

impl Folder {
    fn new(own: u32) -> Result<Self> {
        let path = Path::new(TMPFS).join(format!("fgm-bench-{own}"));
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
