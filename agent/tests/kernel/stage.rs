//! What the kernel tests stand on: cgroups that are removed again, child processes with a role, tracefs as the witness.
//!
//! Not tests themselves. Every wait is bounded; every cgroup is a short-lived one of ours.

use fgm::{
    event::{KernelEvent, OomKill, OomLimit},
    names::CgroupId,
    probes::{self, ProbeConfig, Probes},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::MetadataExt, process::ExitStatusExt},
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

pub const MIB: u64 = 1 << 20;
/// Names the role to a child process of the test binary.
pub const ROLE: &str = "FGM_TEST_ROLE";
pub const PROCS: &str = "FGM_TEST_PROCS";
/// Nothing a child does takes longer, even under emulation on a busy machine.
const CHILD_LIMIT: Duration = Duration::from_mins(1);
const EVENT_LIMIT_MS: u64 = 20_000;

/// Whether the test can run here; if not, says why.
pub fn guard(name: &str, needs_memory: bool) -> bool {
    let skip = |reason: &str| {
        println!("SKIPPED {name}: {reason}");
        false
    };
    if !rustix::process::geteuid().is_root() {
        return skip("not root");
    }
    if !probes::embedded() {
        return skip("built without the eBPF object (cargo xtask build-ebpf)");
    }
    let Some(root) = v2_root() else { return skip("no cgroup v2 hierarchy is mounted") };
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    if needs_memory && !controllers.split_whitespace().any(|c| c == "memory") {
        return skip("cgroup v2 has no memory controller here");
    }
    true
}

fn mounts_of(fs_type: &str) -> Vec<PathBuf> {
    fs::read_to_string("/proc/self/mounts")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, at, ty) = (fields.next()?, fields.next()?, fields.next()?);
            (ty == fs_type).then(|| PathBuf::from(at))
        })
        .collect()
}

fn v2_root() -> Option<PathBuf> {
    mounts_of("cgroup2").into_iter().next()
}

pub fn v1_hierarchy() -> Option<PathBuf> {
    mounts_of("cgroup").into_iter().find(|path| path.ends_with("pids") || path.ends_with("freezer"))
}

pub fn tracefs() -> Option<PathBuf> {
    mounts_of("tracefs").into_iter().find(|path| path.join("events").is_dir())
}

pub fn has_tracefs() -> bool {
    tracefs().is_some()
}

pub fn start(config: &ProbeConfig) -> Probes {
    let (probes, ladder) = probes::start(config);
    probes.unwrap_or_else(|| panic!("no probes: {ladder:?}"))
}

/// Drains until `done`, or until the limit; what came is given back either way.
pub fn wait_for(probes: &mut Probes, done: impl Fn(&[KernelEvent]) -> bool) -> Vec<KernelEvent> {
    let mut events = Vec::new();
    let end = fgm::clock::ktime_ns() + EVENT_LIMIT_MS * 1_000_000;
    loop {
        probes.drain(|event| events.push(event));
        if done(&events) || fgm::clock::ktime_ns() > end {
            return events;
        }
        let fd = probes.fd();
        let timeout = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).expect("poll");
    }
}

/// A cgroup that is gone when this is dropped.
pub struct Cgroup {
    pub path: PathBuf,
}

impl Cgroup {
    pub fn new(name: &str, memory_max: Option<u64>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = v2_root().unwrap().join(format!("fgm-test-{}-{n}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        if let Some(max) = memory_max {
            fs::write(path.join("memory.max"), max.to_string()).unwrap();
            // Absent without swap accounting, which is just as good.
            let _ = fs::write(path.join("memory.swap.max"), "0");
        }
        Self { path }
    }

    /// A cgroup below, with the memory controller where there is one.
    pub fn child(&self, name: &str) -> Self {
        let _ = fs::write(self.path.join("cgroup.subtree_control"), "+memory");
        let path = self.path.join(name);
        fs::create_dir(&path).unwrap();
        Self { path }
    }

    pub fn id(&self) -> CgroupId {
        CgroupId(fs::metadata(&self.path).unwrap().ino())
    }

    pub fn events_local(&self, key: &str) -> u64 {
        let text = fs::read_to_string(self.path.join("memory.events.local")).unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
            .unwrap_or_else(|| panic!("no {key} in {text}"))
    }

    /// The limit told is this cgroup's, with counters that fit; or not told at all, where fentry is not allowed.
    pub fn check_limit(&self, kill: &OomKill, max: u64) {
        let OomLimit::Memcg(limit) = kill.limit else {
            assert_eq!(kill.limit, OomLimit::Unknown);
            assert_eq!(kill.already_dying, None, "with fentry the limit must be known");
            println!("the limit is not told: no fentry here");
            return;
        };
        assert_eq!(kill.already_dying, Some(false));
        assert_eq!(limit.cgroup_id, self.id());
        assert_eq!(limit.max_bytes, Some(max));
        assert_eq!(limit.swap_bytes, Some(0));
        let usage = limit.usage_bytes.expect("usage");
        assert!(usage <= max && usage > max - MIB, "usage {usage} at the limit {max}");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() || !self.path.exists() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        println!("left behind: {}", self.path.display());
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Status {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

/// A process of this binary that plays a role within a cgroup; killed when dropped.
pub struct Child {
    process: std::process::Child,
    pub pid: u32,
    pub oom_score_adj: i32,
}

impl Child {
    pub fn spawn(role: &str, cgroup: &Cgroup) -> Self {
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_role", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(PROCS, cgroup.path.join("cgroup.procs"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        Self { pid: process.id(), process, oom_score_adj: own.trim().parse().unwrap() }
    }

    pub fn wait_ready(&mut self) {
        let out = self.process.stdout.as_mut().unwrap();
        for line in BufReader::new(out).lines() {
            // The harness has written the test's name before it, on the same line.
            if line.unwrap().ends_with("ready") {
                return;
            }
        }
        panic!("the child ended before it was ready");
    }

    pub fn wait(&mut self) -> Status {
        let end = fgm::clock::ktime_ns() + u64::try_from(CHILD_LIMIT.as_nanos()).unwrap();
        while fgm::clock::ktime_ns() < end {
            if let Some(status) = self.process.try_wait().unwrap() {
                return Status { code: status.code(), signal: status.signal() };
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("child {} did not end within {CHILD_LIMIT:?}", self.pid);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the child does; never returns.
pub fn play(role: &str) {
    let procs = std::env::var_os(PROCS).expect("the parent names the cgroup");
    fs::write(procs, "0").expect("move into the cgroup");
    match role {
        "hog" => drop(touch(1024)),
        "sitter" => {
            fs::write("/proc/self/oom_score_adj", "1000").expect("oom_score_adj");
            let memory = touch(40);
            println!("ready");
            std::io::stdout().flush().expect("flush");
            thread::spawn(|| {
                thread::sleep(CHILD_LIMIT);
                std::process::exit(99);
            });
            // Ends with the parent too: then its end of the pipe closes.
            let _ = std::io::stdin().read(&mut [0]);
            drop(memory);
        }
        "asker" => drop(touch(40)),
        "ready hog" => {
            println!("ready");
            std::io::stdout().flush().expect("flush");
            // Until its place in the cgroup has been looked up.
            thread::sleep(Duration::from_millis(500));
            drop(touch(1024));
        }
        "wait" => {
            println!("ready");
            std::io::stdout().flush().expect("flush");
            let _ = std::io::stdin().read(&mut [0]);
        }
        "abort" => std::process::abort(),
        "threads" => {
            for _ in 0..7 {
                thread::spawn(|| thread::sleep(CHILD_LIMIT));
            }
            thread::sleep(Duration::from_millis(20));
            std::process::exit(7);
        }
        _ => {
            let code = role.strip_prefix("exit ").and_then(|code| code.parse().ok());
            std::process::exit(code.expect("a known role"));
        }
    }
    std::process::exit(0);
}

/// Allocates and writes to this many MiB, one by one.
fn touch(mib: usize) -> Vec<Vec<u8>> {
    (0..mib).map(|i| vec![u8::try_from(i % 255).unwrap_or(0) + 1; 1 << 20]).collect()
}

/// A private tracefs instance that records `oom/mark_victim` on the monotonic clock.
pub struct Truth {
    dir: Option<PathBuf>,
}

impl Truth {
    pub fn begin() -> Self {
        let Some(root) = tracefs() else {
            println!("no tracefs: kills are not compared with it");
            return Self { dir: None };
        };
        let dir = root.join(format!("instances/fgm-test-{}", std::process::id()));
        let _ = fs::remove_dir(&dir);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("trace_clock"), "mono").unwrap();
        fs::write(dir.join("events/oom/mark_victim/enable"), "1").unwrap();
        Self { dir: Some(dir) }
    }

    /// The first kill in the trace is the event's: victim, time, and memory as the kernel's own record has it.
    pub fn agrees_with(&self, event: &KernelEvent, kill: &OomKill) {
        let Some(dir) = &self.dir else { return };
        let trace = fs::read_to_string(dir.join("trace")).unwrap();
        let line =
            trace.lines().find(|line| line.contains("mark_victim:")).unwrap_or_else(|| panic!("{trace}"));
        println!("{line}");
        let value = |key: &str| -> Option<&str> {
            let rest = line.split_once(key)?.1;
            rest.split([' ', ',']).next()
        };
        let kb = |key: &str| value(key)?.strip_suffix("kB")?.parse::<u64>().ok().map(|kb| kb << 10);
        assert_eq!(value("pid=").and_then(|pid| pid.parse().ok()), kill.victim.pid);
        let seconds: f64 = line
            .split_whitespace()
            .find_map(|word| word.strip_suffix(':')?.parse().ok())
            .expect("the time of the record");
        #[expect(clippy::cast_precision_loss, reason = "microseconds matter, not nanoseconds")]
        let apart = event.ktime_ns as f64 / 1e9 - seconds;
        // The two are written one after the other, with a preemption between them at worst: 11 ms seen under emulation.
        assert!(apart.abs() < 0.2, "{apart} s from the trace");
        if let Some(comm) = value("comm=") {
            assert_eq!(kill.victim.comm, comm);
            // The victim may run on between the two readings, and on 6.1 fold in what its threads had counted on their
            // own: up to 64 faults each, of up to 16 file pages.
            for (name, told, traced, slack) in [
                ("anon", kill.memory.anon_bytes, kb("anon-rss="), MIB),
                ("file", kill.memory.file_bytes, kb("file-rss:"), 4 * MIB),
                ("shmem", kill.memory.shmem_bytes, kb("shmem-rss:"), 0),
                ("pgtables", kill.memory.pgtables_bytes, kb("pgtables="), MIB / 16),
            ] {
                let (told, traced) = (told.expect(name), traced.expect(name));
                assert!(told.abs_diff(traced) <= slack, "{name}: {told} told, {traced} in the trace");
            }
        }
    }
}

impl Drop for Truth {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            let _ = fs::write(dir.join("events/oom/mark_victim/enable"), "0");
            let _ = fs::remove_dir(dir);
        }
    }
}
