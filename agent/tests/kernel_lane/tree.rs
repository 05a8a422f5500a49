//! Cgroups and processes for the tests of the walk: a tree that is removed again, loads that end on their own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup and all below it, gone when this is dropped.
pub struct Tree {
    pub path: PathBuf,
}

impl Tree {
    /// `controllers` as for cgroup.subtree_control.
    pub fn new(name: &str, controllers: &str) -> Self {
        fs::write(format!("{ROOT}/cgroup.subtree_control"), "+memory +pids +cpu +io").expect("controllers");
        Self::below(Path::new(ROOT), name, controllers)
    }

    pub fn below(root: &Path, name: &str, controllers: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("fgm-lane-{}-{n}-{name}", std::process::id()));
        let tree = Self { path };
        tree.make("", controllers);
        tree
    }

    /// Makes a cgroup below; gives its directory.
    pub fn make(&self, name: &str, controllers: &str) -> PathBuf {
        let dir = self.path.join(name);
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        if !controllers.is_empty() {
            fs::write(dir.join("cgroup.subtree_control"), controllers).expect("controllers");
        }
        dir
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        for _ in 0..100 {
            remove(&self.path);
            if !self.path.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("left behind: {}", self.path.display());
    }
}

fn remove(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

pub fn id(dir: &Path) -> u64 {
    fs::metadata(dir).expect("stat").ino()
}

/// A file's text; `None` where the cgroup has no such file.
pub fn text(dir: &Path, file: &str) -> Option<String> {
    fs::read_to_string(dir.join(file)).ok()
}

/// A shell in a cgroup; ended with its test.
pub struct Shell(Child);

impl Shell {
    pub fn spawn(dir: &Path, script: &str) -> Self {
        let script = format!("echo 0 > {}/cgroup.procs; {script}", dir.display());
        let child = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn();
        Self(child.expect("sh"))
    }

    /// To its end, however it ends.
    pub fn run(dir: &Path, script: &str) {
        let mut shell = Self::spawn(dir, script);
        let end = fgm::clock::ktime_ns() + 60_000_000_000;
        while shell.0.try_wait().expect("wait").is_none() {
            assert!(fgm::clock::ktime_ns() < end, "`{script}` did not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
