//! A node as kind has it: one container whose init has pid, cgroup and mount namespaces of its own and a cgroup2 mounted
//! anew, with a kubelet's tree below. The test looks at it from outside, by the host's paths and pids.
//!
//! Not tests themselves. Every wait is bounded by those of the stage; what is made is killed and removed.

use crate::stage::{Agent, CONTROLLERS, Cgroup, PROCS, Process, ROLE, ROOT, number, wait};
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The init: mounts the node's own view of its cgroups, and stays until the test goes away.
/// (The kernel mounts no file system over itself.)
const INIT: &str = "umount /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && echo ready && exec cat";
/// Into the node's cgroup first: what it is in then is the root of its cgroup namespace.
const START: &str = "echo 0 > \"$1/cgroup.procs\" && exec unshare --pid --fork --kill-child --cgroup --mount \
                     --mount-proc sh -c \"$2\"";
/// A process comes in from outside: into the cgroup first, since from inside nothing can be moved across the border.
const ENTER: &str = "echo 0 > \"$0/init.scope/cgroup.procs\" && echo ADJ > /proc/self/oom_score_adj && \
                     exec nsenter --target INIT --pid --cgroup --mount -- \"$@\"";

pub struct Node {
    outer: Child,
    pub path: PathBuf,
    /// Its container id, as whoever runs the node calls it.
    pub id: String,
    /// Pid 1 of the node, as the host has it.
    init: u32,
}

pub fn kind() -> PathBuf {
    Path::new(ROOT).join("kind")
}

pub fn inode(path: &Path) -> u64 {
    fs::metadata(path).expect("stat").ino()
}

impl Node {
    pub fn start() -> Self {
        let id = format!("{:064x}", number());
        let path = kind().join(format!("docker-{id}.scope"));
        fs::create_dir_all(&path).expect("mkdir");
        fs::write(kind().join("memory.max"), "max").expect("memory.max");
        for dir in [Path::new(ROOT), &kind()] {
            fs::write(dir.join("cgroup.subtree_control"), CONTROLLERS).expect("controllers");
        }
        let mut outer = Command::new("sh")
            .args(["-c", START, "sh"])
            .arg(&path)
            .arg(INIT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let out = BufReader::new(outer.stdout.take().expect("piped"));
        assert!(out.lines().map_while(Result::ok).any(|l| l == "ready"), "the node's init ended");
        // as kind's entrypoint does: nothing stays in the root of the node's tree, so that controllers can be handed down
        let init_scope = path.join("init.scope");
        fs::create_dir(&init_scope).expect("mkdir");
        let mut init = 0;
        for pid in pids(&path) {
            let outside = pid == outer.id();
            let to = if outside { Path::new(ROOT).join("init.scope") } else { init_scope.clone() };
            fs::write(to.join("cgroup.procs"), pid.to_string()).expect("move");
            init = if outside { init } else { pid };
        }
        fs::write(path.join("cgroup.subtree_control"), CONTROLLERS).expect("controllers");
        assert_eq!(ns_pids(init)[1..], [1], "pid 1 of the node");
        Self { outer, path, id, init }
    }

    /// The words that start a program inside the node; the program's own follow.
    fn words(&self, oom_score_adj: i32) -> Vec<String> {
        let script = ENTER.replace("INIT", &self.init.to_string()).replace("ADJ", &oom_score_adj.to_string());
        ["sh".to_owned(), "-c".to_owned(), script, self.path.display().to_string()].into()
    }

    fn command(&self, program: &str) -> Command {
        let mut words = self.words(0).into_iter();
        let mut c = Command::new(words.next().expect("sh"));
        c.args(words).arg(program);
        c
    }

    /// The path of a cgroup as it is seen in the node.
    pub fn inside(&self, cgroup: &Cgroup) -> String {
        format!("/{}", cgroup.path.strip_prefix(&self.path).expect("below the node").display())
    }

    /// A container's init: pid 1 of a pid namespace of its own. Its parent stays in the node's init.scope.
    pub fn container(&self, role: &str, cgroup: &Cgroup) -> Container {
        let mut c = self.command("unshare");
        c.args(["--pid", "--fork"]);
        c.arg(std::env::current_exe().expect("this binary"));
        c.args(["--exact", "child_role", "--nocapture", "--test-threads=1"]);
        c.env(ROLE, role).env(PROCS, format!("{ROOT}{}/cgroup.procs", self.inside(cgroup)));
        c.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = c.spawn().expect("unshare");
        let parent = Process { pid: child.id(), child };
        let mut found = Vec::new();
        wait("the container's init", Duration::from_secs(30), || {
            found = pids(&cgroup.path);
            !found.is_empty()
        });
        assert_eq!(found.len(), 1, "the init alone is in its cgroup: {found:?}");
        let [host, node, own] = ns_pids(found[0])[..] else { panic!("three namespaces deep") };
        assert_eq!((host, own), (found[0], 1));
        Container { parent, host, node }
    }

    /// An agent inside the node; when the node itself is at its limit it is not the one to be killed.
    pub fn agent(&self, name: &str) -> Agent {
        // two agents on an emulated machine: fewer segments to write
        Agent::start_under_with(name, self.words(-1000), "[rotation]\nevery_s = 10\n")
    }

    /// Runs a script inside the node; what it printed.
    pub fn run(&self, script: &str) -> String {
        let out = self.command("sh").args(["-c", script]).output().expect("sh");
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).expect("text")
    }

    /// The ids of the node's cgroup and of all below it.
    pub fn cgroup_ids(&self) -> BTreeSet<i64> {
        let (mut ids, mut stack) = (BTreeSet::new(), vec![self.path.clone()]);
        while let Some(dir) = stack.pop() {
            ids.insert(inode(&dir).cast_signed());
            let entries = fs::read_dir(&dir).expect("a cgroup").flatten();
            stack.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        }
        ids
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        let _ = self.outer.kill();
        let _ = self.outer.wait();
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

fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

/// A container of a node, with the pids of its init.
pub struct Container {
    /// `unshare`, which waits for the init.
    pub parent: Process,
    pub host: u32,
    pub node: u32,
}

impl Container {
    pub fn wait(&mut self) {
        self.parent.wait();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let pid = i32::try_from(self.host).ok().and_then(rustix::process::Pid::from_raw);
        // killing `unshare` would leave the init behind
        if self.parent.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
        }
    }
}

fn pids(cgroup: &Path) -> Vec<u32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).expect("cgroup.procs");
    text.lines().map(|l| l.parse().expect("a pid")).collect()
}

/// The kernel's own account: the pids of a process in each namespace from ours inwards.
pub fn ns_pids(pid: u32) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|l| l.strip_prefix("NSpid:")).expect("NSpid");
    line.split_whitespace().map(|n| n.parse().expect("a pid")).collect()
}
