//! An agent in a folder of its own, for tests that need no privilege: over whatever cgroup v2 mount there is. Every wait is
//! bounded, every agent ends with its test. Included by path; never in the product.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

pub const LIMIT: Duration = Duration::from_secs(60);

/// Waits until `done`; a test that waits in vain fails with what it waited for.
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let end = fgm::clock::ktime_ns() + u64::try_from(LIMIT.as_nanos()).expect("short");
    while !done() {
        assert!(fgm::clock::ktime_ns() < end, "{what} did not come within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn cgroup_root(name: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mount =
        mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>()).find(|f| f.get(2) == Some(&"cgroup2"));
    if mount.is_none() {
        println!("SKIPPED {name}: no cgroup v2 is mounted");
    }
    mount.map(|f| PathBuf::from(f[1]))
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("an address").port()
}

/// A folder with a configuration; `more` goes into the top level of the file and may say again what is in it.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub port: u16,
}

impl Place {
    pub fn new(root: &Path, more: &str) -> Self {
        let place = Self { dir: tempfile::tempdir().expect("a folder"), port: free_port() };
        let mut text = String::new();
        for (key, value) in [
            ("data_dir", place.data().display().to_string()),
            ("cgroup_root", root.display().to_string()),
            ("listen", format!("127.0.0.1:{}", place.port)),
            ("health_listen", format!("127.0.0.1:{}", free_port())),
        ] {
            if !more.lines().any(|l| l.starts_with(&format!("{key} "))) {
                text = format!("{text}{key} = {value:?}\n");
            }
        }
        text.push_str(more);
        fs::write(place.config(), text).expect("written");
        place
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("agent.toml")
    }

    pub fn command(&self) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_fgm"));
        c.args(["agent", "--config"]).arg(self.config());
        // as a supervisor that closes what it does not need
        c.stdin(Stdio::null()).stdout(Stdio::null());
        // wherever the tests run, the agent is in no cluster
        c.env_remove("KUBERNETES_SERVICE_HOST");
        c
    }

    /// Exit code and stderr of an agent that is to refuse.
    pub fn refused(&self) -> (Option<i32>, String) {
        self.refused_with(&[])
    }

    pub fn refused_with(&self, env: &[(&str, &str)]) -> (Option<i32>, String) {
        let mut agent = Agent::spawn(self.command().envs(env.iter().copied()), self.dir.path());
        let status = agent.ended();
        (status.code(), agent.log())
    }

    pub fn start(&self) -> Agent {
        let mut agent = Agent::spawn(&mut self.command(), self.dir.path());
        wait("readiness", || {
            let ended = agent.process.try_wait().expect("wait");
            assert!(ended.is_none(), "it ended: {}", agent.log());
            get(self.port, "/readyz").starts_with("HTTP/1.1 200")
        });
        agent
    }
}

/// The whole answer, or nothing.
pub fn get(port: u16, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut s) = TcpStream::connect(("127.0.0.1", port)) {
        let _ = s.set_read_timeout(Some(Duration::from_secs(10)));
        let _ = write!(s, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let _ = s.read_to_string(&mut answer);
    }
    answer
}

pub struct Agent {
    pub process: Child,
    log: PathBuf,
}

impl Agent {
    pub fn spawn(command: &mut Command, dir: &Path) -> Self {
        let log = dir.join(format!("log-{}", free_port()));
        command.stderr(fs::File::create(&log).expect("a log"));
        Self { process: command.spawn().expect("the agent"), log }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }

    pub fn signal(&self, name: &str) {
        let kill = Command::new("kill").args(["-s", name, &self.process.id().to_string()]).status();
        assert!(kill.is_ok_and(|s| s.success()), "kill -s {name}");
    }

    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait("the end of the agent", || {
            status = self.process.try_wait().expect("wait");
            status.is_some()
        });
        status.expect("ended")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
