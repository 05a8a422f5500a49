//! A stand-in for a container: a process that is pid 1 of a pid namespace of its own and alone in its cgroup.
//!
//! Not tests themselves. Who it is comes from cgroup.procs, how it ended from wait(2) of the shell that started it, which
//! tells a signal as 128 + its number. Every wait is bounded.

use crate::stage::{Cgroup, PROCS, ROLE};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

const LIMIT_NS: u64 = 60_000_000_000;

pub struct Container {
    parent: std::process::Child,
    /// Of the init, as the test sees it.
    pub pid: u32,
}

impl Container {
    /// `dies_with_parent`: asks the kernel for a SIGKILL when its parent dies.
    pub fn start(role: &str, cgroup: &Cgroup, dies_with_parent: bool) -> Self {
        let mut command = Command::new("unshare");
        command.arg("--pid");
        if dies_with_parent {
            command.args(["--fork", "--kill-child"]);
        } else {
            // The shell stays outside; its first child is pid 1. (`--fork` of util-linux 2.38 can't tell a child's signal.)
            command.args(["sh", "-c", "\"$0\" \"$@\"; exit $?"]);
        }
        let mut parent = command
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "child_role", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(PROCS, cgroup.path.join("cgroup.procs"))
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(parent.stdout.take().unwrap());
        assert!(
            out.lines().any(|line| line.unwrap().ends_with("ready")),
            "the init ended before it was ready"
        );
        let procs = fs::read_to_string(cgroup.path.join("cgroup.procs")).unwrap();
        let pids: Vec<u32> = procs.lines().map(|pid| pid.parse().unwrap()).collect();
        assert_eq!(pids.len(), 1, "the init alone is in its cgroup: {pids:?}");
        Self { parent, pid: pids[0] }
    }

    pub fn parent_pid(&self) -> u32 {
        self.parent.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.parent.try_wait().unwrap().is_none()
    }

    /// The signal that ended the init, or its parent.
    pub fn wait(&mut self) -> Option<i32> {
        let end = fgm::clock::ktime_ns() + LIMIT_NS;
        while fgm::clock::ktime_ns() < end {
            if let Some(status) = self.parent.try_wait().unwrap() {
                return status.signal().or_else(|| status.code().map(|code| code - 128));
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("container {} did not end", self.pid);
    }

    /// A shell that comes into the container's cgroup and pid namespace, as `exec` of a runtime does, tells its pid in the
    /// test's own namespace, and runs `script`.
    pub fn inside(&self, cgroup: &Cgroup, script: &str) -> u32 {
        let script = format!(
            "echo 0 > {}; read -r pid rest < /proc/self/stat; echo $pid; {script}; exit 0",
            cgroup.path.join("cgroup.procs").display()
        );
        let target = self.pid.to_string();
        let out =
            Command::new("nsenter").args(["-t", &target, "--pid", "sh", "-c", &script]).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        text.lines().next().and_then(|pid| pid.trim().parse().ok()).unwrap_or_else(|| panic!("{out:?}"))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.is_running() {
            let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
            let _ = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
            let _ = self.parent.kill();
        }
        let _ = self.parent.wait();
    }
}
