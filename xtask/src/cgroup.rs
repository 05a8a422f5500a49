//! Making, filling and removing cgroups for scenarios.
//! Must never remove or kill what it did not make, nor touch a hierarchy that is not cgroup v2.
//! Called by `scenario`, and by `demo` to see whether this machine can play one.

use crate::clock::Deadline;
use crate::setup;
use anyhow::{Context as _, Result, anyhow, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// What a node's containers have; only memory is indispensable here.
const CONTROLLERS: &[&str] = &["cpu", "io", "memory", "pids"];
const REMOVAL: Duration = Duration::from_secs(10);

/// Why scenarios cannot be played under this root; `Ok` when they can. Leaves nothing behind.
pub fn usable(root: &Path) -> Result<()> {
    let offered = fs::read_to_string(root.join("cgroup.controllers")).map_err(|_| {
        anyhow!("{} is not a cgroup v2 hierarchy (cgroup v1, or not mounted)", root.display())
    })?;
    if !offered.split_whitespace().any(|c| c == "memory") {
        bail!(
            "the cgroup v2 hierarchy at {} has no memory controller (it has: {})",
            root.display(),
            offered.trim()
        );
    }
    if !setup::is_root() {
        bail!("making cgroups under {} needs root", root.display());
    }
    let mut tree = Tree::new(root);
    let probe = tree.make(&format!("fgm-probe-{}.slice", std::process::id()))?;
    let works = probe.join("memory.max").exists();
    tree.remove()?;
    if !works {
        bail!("the memory controller cannot be enabled under {}", root.display());
    }
    Ok(())
}

/// Cgroups that we made, and controllers that we enabled on the way; undone when the value goes.
pub struct Tree {
    root: PathBuf,
    made: Vec<PathBuf>,
    enabled: Vec<(PathBuf, &'static str)>,
}

impl Tree {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf(), made: Vec::new(), enabled: Vec::new() }
    }

    /// Create a cgroup and its parents, with our controllers enabled all the way down to it.
    pub fn make(&mut self, path: &str) -> Result<PathBuf> {
        let mut dir = self.root.clone();
        for part in path.split('/') {
            self.enable(&dir);
            dir.push(part);
            match fs::create_dir(&dir) {
                Ok(()) => self.made.push(dir.clone()),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => {
                    return Err(e).with_context(|| format!("cannot create the cgroup {}", dir.display()));
                }
            }
        }
        Ok(dir)
    }

    /// Enable what is offered and not enabled yet. A refusal shows itself when a limit's file is missing.
    fn enable(&mut self, dir: &Path) {
        let words = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
        let (offered, on) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
        let has = |text: &str, word: &str| text.split_whitespace().any(|w| w == word);
        for controller in CONTROLLERS {
            if has(&offered, controller)
                && !has(&on, controller)
                && fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}")).is_ok()
                && !self.made.iter().any(|made| made == dir)
            {
                self.enabled.push((dir.to_path_buf(), controller));
            }
        }
    }

    /// Kill what runs in one of our cgroups, and remove it.
    pub fn remove_one(&mut self, dir: &Path) -> Result<()> {
        self.made.retain(|made| made != dir);
        remove_dir(dir)
    }

    /// Kill what runs in our cgroups, remove them, and give back the controllers that were off before.
    pub fn remove(&mut self) -> Result<()> {
        let mut failed = None;
        while let Some(dir) = self.made.pop() {
            if let Err(e) = remove_dir(&dir) {
                failed = Some(e);
            }
        }
        for (dir, controller) in self.enabled.drain(..).rev() {
            // Somebody else may have come to need it meanwhile; then it stays, as it should.
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("-{controller}"));
        }
        failed.map_or(Ok(()), Err)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Err(e) = self.remove() {
            crate::progress::say(&format!("{e:#}"));
        }
    }
}

fn remove_dir(dir: &Path) -> Result<()> {
    let deadline = Deadline::after(REMOVAL);
    while let Err(e) = fs::remove_dir(dir) {
        if e.kind() == std::io::ErrorKind::NotFound {
            break;
        }
        if deadline.passed() {
            return Err(e).with_context(|| format!("cannot remove the cgroup {}", dir.display()));
        }
        kill(dir);
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// `cgroup.kill` (Linux 5.14), else one by one.
fn kill(dir: &Path) {
    if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|l| l.parse().ok()).filter_map(rustix::process::Pid::from_raw) {
        // Gone already is as good.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// One value of a flat-keyed file such as `memory.events.local`.
pub fn value(dir: &Path, file: &str, key: &str) -> Result<u64> {
    let path = dir.join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let found = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok());
    found.with_context(|| format!("{} has no number for {key}", path.display()))
}

/// Write one limit.
pub fn set(dir: &Path, file: &str, text: &str) -> Result<()> {
    let path = dir.join(file);
    fs::write(&path, text).with_context(|| format!("cannot write `{text}` to {}", path.display()))
}
