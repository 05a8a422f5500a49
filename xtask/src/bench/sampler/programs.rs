//! The programs of the sampler's benchmark, and the boxes in which they run: each in a cgroup of its own, so that the kernel
//! tells what it costs. Must never measure a debug build. Called by `sampler` and `native`.

use crate::child::{self, tool};
use crate::{cgroup, ebpf};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub struct Programs {
    pub agent: PathBuf,
    /// Floor, naive reader, and the process of a container.
    pub reader: PathBuf,
    /// The sampler and the lane without the agent.
    pub alone: PathBuf,
}

impl Programs {
    pub fn build() -> Result<Self> {
        ebpf::build()?;
        let words = ["--release", "-p", "fgm", "--bin", "fgm", "-p", "reader", "--bin", "reader"];
        let built = ebpf::cargo_build("the agent for measuring, and the readers", &words)?;
        let find = |built: &[PathBuf], name: &str| {
            let is = |p: &&PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(name));
            built.iter().find(is).cloned().with_context(|| format!("cargo built no {name}"))
        };
        let mut c = child::cargo();
        c.args(["bench", "--no-run", "-p", "fgm", "--bench", "sampler"]);
        c.args(["--message-format", "json-render-diagnostics"]);
        let alone = find(&ebpf::executables(&mut c)?, "sampler-")?;
        Ok(Self { agent: find(&built, "fgm")?, reader: find(&built, "reader")?, alone })
    }
}

/// A program that is in this cgroup from its first instruction on: what it allocates is charged there.
pub fn inside(dir: &Path, cgroup: &Path, program: &Path) -> Result<PathBuf> {
    let script = dir.join(format!("in-{}", cgroup.file_name().unwrap_or_default().display()));
    let text = format!(
        "#!/bin/sh\necho 0 > '{}/cgroup.procs' && exec '{}' \"$@\"\n",
        cgroup.display(),
        program.display()
    );
    fs::write(&script, text).with_context(|| format!("cannot write {}", script.display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).context("cannot make it a program")?;
    Ok(script)
}

/// A process that sits, or works a little, in a container's cgroup.
pub fn occupy(reader: &Path, role: &str, cgroup: &Path) -> Result<child::Reaped> {
    let mut c = tool(reader);
    c.arg(role).arg(cgroup).stdin(Stdio::null()).stdout(Stdio::null());
    Ok(child::Reaped(c.spawn().context("cannot start a container's process")?))
}

/// CPU that a cgroup has used, in µs.
pub fn cpu_us(cgroup: &Path) -> Result<u64> {
    cgroup::value(cgroup, "cpu.stat", "usage_usec")
}

/// Anonymous and kernel memory of a cgroup.
pub fn memory(cgroup: &Path) -> Result<u64> {
    let of = |key| cgroup::value(cgroup, "memory.stat", key);
    Ok(of("anon")? + of("kernel")?)
}

/// CPU-µs of each container and second.
#[expect(clippy::cast_precision_loss, reason = "a mean, shown with one decimal")]
pub fn per_container_second(us: u64, containers: usize, ns: u64) -> f64 {
    us as f64 * 1e9 / ns as f64 / containers as f64
}

/// `a` for each `b`.
#[expect(clippy::cast_precision_loss, reason = "a mean, shown with three decimals")]
pub fn each(a: u64, b: u64) -> Option<f64> {
    (b > 0).then(|| a as f64 / b as f64)
}

/// A row's note, with the rounds of a reader that began late, if there were any.
pub fn with_late(note: &str, said: &Value) -> String {
    match said["late"].as_u64() {
        None | Some(0) => note.to_owned(),
        Some(late) => format!("{note}; {late} of {} rounds began late", said["rounds"]),
    }
}

/// A reader over all directories in `dir`, its output in a file.
pub fn reader(script: &Path, role: &str, dir: &Path, seconds: u64, to: &Path) -> Result<Command> {
    let mut c = tool(script);
    c.arg(role).arg(dir).arg(seconds.to_string()).args(super::HOT);
    let out = fs::File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    c.stdin(Stdio::null()).stdout(out);
    Ok(c)
}
