//! What the agent's kernel tests stand on: an agent in a folder of its own, pods and containers as cgroups, processes
//! with a role, and tracefs as the witness. Every wait is bounded; everything made is removed.

use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub const MIB: u64 = 1 << 20;
pub const ROLE: &str = "FGM_TEST_AGENT_ROLE";
pub const PROCS: &str = "FGM_TEST_AGENT_PROCS";
pub const ROOT: &str = "/sys/fs/cgroup";
pub const CONTROLLERS: &str = "+memory +pids +cpu +io";
/// No process of a test lives longer, whatever happens to its parent.
const CHILD_LIMIT: Duration = Duration::from_secs(120);

/// Whether the test can run here; if not, says why.
pub fn guard(name: &str) -> bool {
    let controllers = fs::read_to_string(format!("{ROOT}/cgroup.controllers")).unwrap_or_default();
    let reason = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if !fgm::probes::embedded() {
        "built without the eBPF object (cargo xtask build-ebpf)"
    } else if !controllers.split_whitespace().any(|c| c == "memory") {
        "no cgroup v2 with the memory controller at /sys/fs/cgroup"
    } else {
        return true;
    };
    println!("SKIPPED {name}: {reason}");
    false
}

/// Waits until `done`; a test that waits in vain fails with what it waited for.
pub fn wait(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = fgm::clock::ktime_ns() + u64::try_from(limit.as_nanos()).expect("short");
    while !done() {
        assert!(fgm::clock::ktime_ns() < end, "{what} did not come within {limit:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    std::process::id() * 100 + NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A cgroup that is removed when it goes out of scope.
pub struct Cgroup {
    pub path: PathBuf,
    pub container_id: String,
}

impl Cgroup {
    fn make(path: PathBuf, memory_max: Option<u64>, container_id: String) -> Self {
        fs::create_dir(&path).expect("mkdir");
        let cgroup = Self { path, container_id };
        if let Some(max) = memory_max {
            cgroup.write("memory.max", &max.to_string());
        }
        let _ = fs::write(cgroup.path.join("memory.swap.max"), "0");
        cgroup
    }

    pub fn write(&self, file: &str, text: &str) {
        fs::write(self.path.join(file), text)
            .unwrap_or_else(|e| panic!("{}/{file}: {e}", self.path.display()));
    }

    pub fn id(&self) -> u64 {
        fs::metadata(&self.path).expect("stat").ino()
    }

    pub fn events_local(&self, key: &str) -> u64 {
        self.count("memory.events.local", key)
    }

    fn count(&self, file: &str, key: &str) -> u64 {
        let text = fs::read_to_string(self.path.join(file)).expect(file);
        let found = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.parse().ok());
        found.unwrap_or_else(|| panic!("no {key} in {text}"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() || !self.path.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("left behind: {}", self.path.display());
    }
}

/// A pod's slice as the kubelet's systemd driver names it.
pub struct Pod {
    cgroup: Cgroup,
    pub uid: String,
}

impl Pod {
    pub fn new(memory_max: Option<u64>) -> Self {
        Self::below(Path::new(ROOT), memory_max)
    }

    pub fn below(root: &Path, memory_max: Option<u64>) -> Self {
        let uid = format!("{:08x}-0000-4000-8000-0123456789ab", number());
        let burstable = root.join("kubepods.slice/kubepods-burstable.slice");
        fs::create_dir_all(&burstable).expect("mkdir");
        for dir in [root, &root.join("kubepods.slice"), &burstable] {
            fs::write(dir.join("cgroup.subtree_control"), CONTROLLERS).expect("controllers");
        }
        let path = burstable.join(format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_")));
        let cgroup = Cgroup::make(path, memory_max, String::new());
        cgroup.write("cgroup.subtree_control", CONTROLLERS);
        Self { cgroup, uid }
    }

    pub fn container(&self, memory_max: Option<u64>) -> Cgroup {
        let id = format!("{:064x}", number());
        Cgroup::make(self.cgroup.path.join(format!("cri-containerd-{id}.scope")), memory_max, id)
    }

    pub fn id(&self) -> u64 {
        self.cgroup.id()
    }

    pub fn events_local(&self, key: &str) -> u64 {
        self.cgroup.events_local(key)
    }

    /// Of the pod and all that is or was below it.
    pub fn events(&self, key: &str) -> u64 {
        self.cgroup.count("memory.events", key)
    }
}

/// A process of this binary that plays a role in a cgroup.
pub struct Process {
    pub child: Child,
    pub pid: u32,
}

fn command(role: &str) -> Command {
    let mut c = Command::new(std::env::current_exe().expect("this binary"));
    c.args(["--exact", "child_role", "--nocapture", "--test-threads=1"]).env(ROLE, role);
    c.stdin(Stdio::piped()).stdout(Stdio::piped());
    c
}

impl Process {
    pub fn spawn(role: &str, cgroup: &Cgroup) -> Self {
        let child = command(role).env(PROCS, cgroup.path.join("cgroup.procs")).spawn().expect("spawn");
        Self { pid: child.id(), child }
    }

    pub fn wait_ready(&mut self) {
        let out = self.child.stdout.as_mut().expect("piped");
        // the harness writes the test's name before it, on the same line
        let ready = BufReader::new(out).lines().map_while(Result::ok).any(|l| l.ends_with("ready"));
        assert!(ready, "the process ended before it was ready");
    }

    /// (exit code, signal)
    pub fn wait(&mut self) -> (Option<i32>, Option<i32>) {
        let mut status = None;
        wait("the end of a process", CHILD_LIMIT, || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        status.map_or((None, None), |s| (s.code(), s.signal()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process of another program, ended with the test.
pub fn reaped(command: &mut Command) -> Process {
    let child = command.stdin(Stdio::null()).spawn().expect("spawn");
    Process { pid: child.id(), child }
}

fn touch(mib: u64, over: Duration) -> Vec<Vec<u8>> {
    let step = over / u32::try_from(mib.max(1)).expect("small");
    (0..mib)
        .map(|i| {
            std::thread::sleep(step);
            vec![u8::try_from(i % 251).unwrap_or(0) + 1; 1 << 20]
        })
        .collect()
}

/// Stays until the parent goes away (its end of the pipe closes), or the limit is over.
fn stay() {
    println!("ready");
    let _ = std::io::stdout().flush();
    std::thread::spawn(|| {
        std::thread::sleep(CHILD_LIMIT);
        std::process::exit(99);
    });
    let _ = std::io::stdin().read(&mut [0]);
}

/// The body of a process; never returns.
pub fn play(role: &str) {
    if let Some(procs) = std::env::var_os(PROCS) {
        fs::write(procs, "0").expect("move into the cgroup");
    }
    let mut words = role.split(' ');
    let what = words.next().unwrap_or_default();
    let numbers: Vec<u64> = words.filter_map(|w| w.parse().ok()).collect();
    match (what, &numbers[..]) {
        ("ramp", [mib, seconds]) => drop(touch(*mib, Duration::from_secs(*seconds))),
        ("hold", [mib]) => {
            let memory = touch(*mib, Duration::ZERO);
            stay();
            drop(memory);
        }
        ("sit", [mib]) => {
            fs::write("/proc/self/oom_score_adj", "1000").expect("oom_score_adj");
            let memory = touch(*mib, Duration::ZERO);
            stay();
            drop(memory);
        }
        ("greedy", [mib]) => {
            fs::write("/proc/self/oom_score_adj", "1000").expect("oom_score_adj");
            drop(touch(*mib, Duration::ZERO));
        }
        ("init", [idle, mib, over]) => {
            std::thread::sleep(Duration::from_secs(*idle));
            // inherits the cgroup
            let child = command(&format!("ramp {mib} {over}")).env_remove(PROCS).spawn();
            let status = child.and_then(|mut c| c.wait()).expect("a child");
            assert_eq!(status.signal(), Some(9));
            stay();
        }
        ("exit", [code]) => std::process::exit(i32::try_from(*code).expect("small")),
        _ => panic!("unknown role {role:?}"),
    }
    std::process::exit(0);
}

/// A private tracefs instance that records `oom/mark_victim`: the kernel's own account of who was killed.
pub struct Victims {
    dir: PathBuf,
}

impl Victims {
    pub fn begin() -> Self {
        let dir = PathBuf::from(format!("/sys/kernel/tracing/instances/fgm-agent-{}", number()));
        fs::create_dir(&dir).expect("a tracefs instance");
        fs::write(dir.join("trace_clock"), "mono").expect("trace_clock");
        fs::write(dir.join("events/oom/mark_victim/enable"), "1").expect("enable");
        Self { dir }
    }

    pub fn pids(&self) -> BTreeSet<u32> {
        let trace = fs::read_to_string(self.dir.join("trace")).expect("trace");
        let pid = |l: &str| l.split_once("pid=")?.1.split([' ', ',', '\n']).next()?.parse().ok();
        trace.lines().filter(|l| l.contains("mark_victim:")).filter_map(pid).collect()
    }
}

impl Drop for Victims {
    fn drop(&mut self) {
        let _ = fs::write(self.dir.join("events/oom/mark_victim/enable"), "0");
        let _ = fs::remove_dir(&self.dir);
    }
}

/// A running agent with a data folder of its own.
pub struct Agent {
    process: Child,
    dir: PathBuf,
    port: u16,
    prefix: Vec<String>,
    /// The folder outlives this agent: another one goes on in it.
    handed_over: bool,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("an address").port()
}

impl Agent {
    /// `tmpfs`: the size of a file system of its own for the data, or empty.
    pub fn start(name: &str, tmpfs: &str) -> Self {
        if tmpfs.is_empty() {
            return Self::start_with(name, "");
        }
        let dir = PathBuf::from(format!("/tmp/fgm-kernel-test-{name}-{}", number()));
        fs::create_dir_all(dir.join("data")).expect("mkdir");
        let size = format!("size={tmpfs}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "fgm-test"])
            .arg(dir.join("data"))
            .status();
        assert!(mounted.expect("mount").success());
        Self::run(dir, Vec::new())
    }

    /// With more lines of configuration.
    pub fn start_with(name: &str, config: &str) -> Self {
        let dir = PathBuf::from(format!("/tmp/fgm-kernel-test-{name}-{}", number()));
        fs::create_dir_all(dir.join("data")).expect("mkdir");
        fs::write(dir.join("more.toml"), config).expect("write");
        Self::run(dir, Vec::new())
    }

    /// An agent started by the words of another program, which takes something away from it.
    pub fn start_under(name: &str, prefix: Vec<impl Into<String>>) -> Self {
        Self::start_under_with(name, prefix, "")
    }

    pub fn start_under_with(name: &str, prefix: Vec<impl Into<String>>, config: &str) -> Self {
        let prefix = prefix.into_iter().map(Into::into).collect();
        let dir = PathBuf::from(format!("/tmp/fgm-kernel-test-{name}-{}", number()));
        fs::create_dir_all(dir.join("data")).expect("mkdir");
        fs::write(dir.join("more.toml"), config).expect("write");
        Self::run(dir, prefix)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).expect("a log")
    }

    fn run(dir: PathBuf, prefix: Vec<String>) -> Self {
        let (port, health) = (free_port(), free_port());
        let config = format!(
            "data_dir = \"{}\"\nnode = \"vm\"\nlisten = \"127.0.0.1:{port}\"\nhealth_listen = \"127.0.0.1:{health}\"\n\
             [trigger.oom_kill]\nburst_length_s = 3\n",
            dir.join("data").display()
        );
        let more = fs::read_to_string(dir.join("more.toml")).unwrap_or_default();
        let rotation = if more.contains("[rotation]") { "" } else { "[rotation]\nevery_s = 2\n" };
        // an emulated CPU makes a row many times dearer than it is
        let budget = if more.contains("[budget]") { "" } else { "[budget]\ncpu_percent = 60\n" };
        fs::write(dir.join("agent.toml"), config + rotation + budget + &more).expect("write");
        let log = fs::File::create(dir.join("log")).expect("a log");
        let mut words = prefix.clone();
        words.push(env!("CARGO_BIN_EXE_fgm").to_owned());
        let process = Command::new(&words[0])
            .args(&words[1..])
            .args(["agent", "--config"])
            .arg(dir.join("agent.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the agent");
        let mut agent = Self { process, dir, port, prefix, handed_over: false };
        wait("readiness", Duration::from_secs(150), || {
            let ended = agent.process.try_wait().expect("wait");
            assert!(
                ended.is_none(),
                "the agent ended: {}",
                fs::read_to_string(agent.dir.join("log")).unwrap_or_default()
            );
            agent.get("/readyz").is_some_and(|(code, _)| code == 200)
        });
        agent
    }

    /// As the kubelet runs it (`system-node-critical`): not the one that a node without memory takes.
    pub fn spared_by_the_oom_killer(self) -> Self {
        fs::write(format!("/proc/{}/oom_score_adj", self.process.id()), "-997").expect("oom_score_adj");
        self
    }

    fn get(&self, path: &str) -> Option<(u16, Vec<u8>)> {
        let http: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .into();
        let mut answer = http.get(format!("http://127.0.0.1:{}{path}", self.port)).call().ok()?;
        let body = answer.body_mut().with_config().limit(1 << 30).read_to_vec().ok()?;
        Some((answer.status().as_u16(), body))
    }

    pub fn get_ok(&self, path: &str) -> Vec<u8> {
        let (code, body) = self.get(path).unwrap_or_else(|| panic!("{path}: no answer"));
        assert_eq!(code, 200, "{path}: {}", String::from_utf8_lossy(&body));
        body
    }

    /// The rows of an export, if it has any.
    pub fn try_rows(&self, path: &str) -> Option<Vec<Row>> {
        self.get(path).filter(|(code, _)| *code == 200).map(|(_, body)| rows(&body))
    }

    pub fn status(&self) -> Value {
        serde_json::from_slice(&self.get_ok("/api/status")).expect("JSON")
    }

    pub fn export(&self, incident: &str, format: &str) -> Vec<u8> {
        self.get_ok(&format!("/api/export?incident={incident}&format={format}"))
    }

    pub fn incidents(&self) -> Vec<Value> {
        let all: Value = serde_json::from_slice(&self.get_ok("/api/incidents")).expect("JSON");
        all["incidents"].as_array().expect("a list").clone()
    }

    /// The newest incident, as soon as there is one.
    pub fn incident(&self, limit: Duration) -> Value {
        self.find_incident(limit, |_| true)
    }

    /// The newest incident that is closed.
    pub fn closed_incident(&self, limit: Duration) -> Value {
        self.find_incident(limit, |i| i["closed"] == true)
    }

    /// A container's incident, once it is closed.
    pub fn closed_incident_of(&self, container: &Cgroup, limit: Duration) -> Value {
        self.find_incident(limit, |i| {
            i["closed"] == true && i["container_id"] == container.container_id.as_str()
        })
    }

    fn find_incident(&self, limit: Duration, good: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        let end = fgm::clock::ktime_ns() + u64::try_from(limit.as_nanos()).expect("short");
        while found.is_none() {
            let all = self.incidents();
            found = all.iter().find(|i| good(i)).cloned();
            assert!(
                found.is_some() || fgm::clock::ktime_ns() < end,
                "the incident did not come within {limit:?}; there are {all:#?}\n{}",
                self.status()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        let found = found.expect("found");
        println!("{found}");
        found
    }

    /// All rows of a table in closed segments.
    pub fn stored(&self, table: &str) -> Vec<arrow::array::RecordBatch> {
        let dir = self.dir.join(format!("data/recent/table={table}"));
        let files = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
        let closed = files.filter(|p| p.extension().is_some_and(|e| e == "parquet"));
        closed.flat_map(|p| batches(&fs::read(p).expect("read"))).collect()
    }

    /// Waits until all rows that the agent has taken so far are in closed segments.
    pub fn settle(&self, table: &str) {
        // the state that is asked for is at the most a second old
        std::thread::sleep(Duration::from_secs(2));
        let status: Value = serde_json::from_slice(&self.get_ok("/api/status")).expect("JSON");
        let taken = status["ledger"][table]["written"].as_u64().expect("a count");
        wait("all rows in segments", Duration::from_secs(150), || {
            let closed = self.stored(table).iter().map(|b| b.num_rows() as u64).sum::<u64>();
            if closed < taken {
                println!("{closed} of {taken} rows of {table} are in segments");
            }
            closed >= taken
        });
    }

    /// (cgroup id, kind, exit code) of all events in closed segments.
    pub fn stored_events(&self) -> Vec<(Option<i64>, String, Option<i64>)> {
        let mut out = Vec::new();
        for batch in self.stored("events") {
            let (cgroup, code) = (ints(&batch, "cgroup_id"), ints(&batch, "exit_code"));
            let kind = texts(&batch, "kind");
            out.extend(
                (0..batch.num_rows()).map(|i| (cgroup[i], kind[i].clone().unwrap_or_default(), code[i])),
            );
        }
        out
    }

    pub fn segments(&self) -> Vec<PathBuf> {
        let dir = self.dir.join("data/recent/table=samples");
        let all = fs::read_dir(dir).expect("samples").flatten().map(|e| e.path());
        all.filter(|p| p.extension().is_some_and(|e| e == "parquet")).collect()
    }

    pub fn fill_disk(&self) {
        let mut file = fs::File::create(self.dir.join("data/ballast")).expect("ballast");
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    pub fn free_disk(&self) {
        fs::remove_file(self.dir.join("data/ballast")).expect("ballast");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("the agent can be signalled");
    }

    /// What happens meanwhile waits in the kernel.
    pub fn halted<T>(&self, work: impl FnOnce() -> T) -> T {
        self.signal(Signal::STOP);
        let done = work();
        self.signal(Signal::CONT);
        done
    }

    /// SIGTERM; whether it ended well.
    pub fn stop(mut self) -> bool {
        self.signal(Signal::TERM);
        let mut good = false;
        wait("the agent's end", Duration::from_secs(60), || match self.process.try_wait().expect("wait") {
            Some(status) => {
                good = status.success();
                true
            }
            None => false,
        });
        good
    }

    /// SIGKILL, and a new agent in the same folder.
    pub fn kill_and_restart(mut self) -> Self {
        self.process.kill().expect("SIGKILL");
        self.process.wait().expect("wait");
        self.handed_over = true;
        Self::run(self.dir.clone(), self.prefix.clone())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            println!("the agent's log:\n{}", fs::read_to_string(self.dir.join("log")).unwrap_or_default());
        }
        if !self.handed_over {
            let _ = Command::new("umount").arg(self.dir.join("data")).stderr(Stdio::null()).status();
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn batches(parquet: &[u8]) -> Vec<arrow::array::RecordBatch> {
    let bytes = bytes::Bytes::copy_from_slice(parquet);
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).expect("Parquet").build().expect("Parquet");
    reader.collect::<Result<_, _>>().expect("rows")
}

pub fn ints(batch: &arrow::array::RecordBatch, column: &str) -> Vec<Option<i64>> {
    batch.column_by_name(column).expect(column).as_primitive::<Int64Type>().iter().collect()
}

pub fn texts(batch: &arrow::array::RecordBatch, column: &str) -> Vec<Option<String>> {
    let array = batch.column_by_name(column).expect(column).as_dictionary::<Int32Type>();
    let values = array.downcast_dict::<arrow::array::StringArray>().expect("strings");
    values.into_iter().map(|v| v.map(str::to_owned)).collect()
}

/// What the tests look at of a row of `samples`.
#[derive(Debug)]
pub struct Row {
    pub ktime_ns: i64,
    pub cgroup_id: i64,
    pub cause: String,
    pub scope: String,
    pub memory_current: Option<i64>,
    pub memory_max: Option<i64>,
}

pub fn rows(parquet: &[u8]) -> Vec<Row> {
    let mut out = Vec::new();
    for batch in batches(parquet) {
        let (ktime, cgroup) = (ints(&batch, "ktime_ns"), ints(&batch, "cgroup_id"));
        let (current, max) = (ints(&batch, "memory_current"), ints(&batch, "memory_max"));
        let (cause, scope) = (texts(&batch, "cause"), texts(&batch, "scope"));
        out.extend((0..batch.num_rows()).map(|i| Row {
            ktime_ns: ktime[i].expect("ktime"),
            cgroup_id: cgroup[i].expect("cgroup"),
            cause: cause[i].clone().expect("cause"),
            scope: scope[i].clone().expect("scope"),
            memory_current: current[i],
            memory_max: max[i],
        }));
    }
    out
}
