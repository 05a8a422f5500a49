//! Plays a scenario in cgroups as a kubelet makes them (systemd driver, containerd): pods with their pause container,
//! containers that are started again, pods that come and go. Must never leave a cgroup or a process behind, however it ends.
//! Called by `play` and by `demo_play`.

use super::{Container, Expect, Scenario};
use crate::cgroup::{self, Tree};
use crate::child::{self, TempDir, bound_to_us};
use crate::clock::{self, Deadline};
use crate::net::free_port;
use anyhow::{Context as _, Result, anyhow, bail};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PODS: &str = "kubepods.slice/kubepods-burstable.slice";
/// What holds a pod's namespaces; a kubelet starts it in each pod, before anything else.
const PAUSE: &str = "pause";
const PAUSE_ROLE: [&str; 5] = ["steady", "--bytes", "64K", "--name", PAUSE];
/// A kubelet's back-off begins at 10 s.
const BACK_OFF: Duration = Duration::from_secs(1);
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

/// A scenario that is being played; dropping it ends it and removes what it made.
pub struct Running<'s> {
    scenario: &'s Scenario,
    expect: &'s Expect,
    workload: PathBuf,
    start: Instant,
    deadline: Deadline,
    tree: Tree,
    /// What all UIDs of its pods begin with.
    mark: String,
    pods: BTreeMap<String, PathBuf>,
    parts: Vec<Part>,
    copies: Vec<u32>,
    ports: BTreeMap<String, u16>,
    scratch: Option<Scratch>,
    words: TempDir,
    interrupted: Arc<AtomicBool>,
}

struct Part {
    name: String,
    pod: String,
    id: String,
    dir: PathBuf,
    process: Child,
    /// 128 + N after signal N.
    ended: Option<i32>,
    restart: Option<(Deadline, u32)>,
    restarts: u32,
    /// Read when its cgroup was removed.
    oom_kill: Option<u64>,
}

/// One container with all the instances that it had.
pub struct Instance {
    pub name: String,
    pub id: String,
    pub oom_kill: u64,
    pub exit_code: Option<i32>,
}

impl<'s> Running<'s> {
    pub fn start(scenario: &'s Scenario, expect: &'s Expect, root: &Path, workload: &Path) -> Result<Self> {
        cgroup::usable(root).with_context(|| format!("`{}` cannot be played here", scenario.title))?;
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
        {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))
                .context("cannot watch for signals")?;
        }
        let mut ports = BTreeMap::new();
        for c in scenario.container.iter().filter(|c| c.port.is_some()) {
            ports.insert(c.name.clone(), free_port()?.port());
        }
        let mut uses = scenario.container.iter().flat_map(|c| c.role.iter().chain(c.files.values()));
        let scratch = uses.any(|w| w.contains("{scratch}") || w.contains("{disk}")).then(Scratch::new);
        // From here on the value owns what was made, so that every `?` below cleans up.
        let mut running = Self {
            scenario,
            expect,
            workload: workload.to_path_buf(),
            start: clock::now(),
            deadline: Deadline::after(Duration::from_secs(scenario.timeout_s)),
            tree: Tree::new(root),
            mark: random(4)?,
            pods: BTreeMap::new(),
            parts: Vec::new(),
            copies: vec![0; scenario.container.len()],
            ports,
            scratch: scratch.transpose()?,
            words: TempDir::new("scenario")?,
            interrupted,
        };
        running.start_due()?;
        Ok(running)
    }

    /// Starts what is due by now: everything at the start, then copies one after the other.
    fn start_due(&mut self) -> Result<()> {
        for (n, c) in self.scenario.container.iter().enumerate() {
            let due = |copies| self.start.elapsed().as_secs_f64() >= c.every_s * f64::from(copies);
            if self.copies[n] < c.copies && due(self.copies[n]) {
                let pod = if c.copies == 1 { c.pod.clone() } else { format!("{}-{}", c.pod, self.copies[n]) };
                self.start_container(c, &pod, c.restarts)?;
                self.copies[n] += 1;
            }
        }
        Ok(())
    }

    fn start_container(&mut self, c: &Container, pod: &str, restarts: u32) -> Result<()> {
        if !self.pods.contains_key(pod) {
            let uid = format!("{}_{}_4000_8000_{}", self.mark, random(2)?, random(6)?);
            let path = format!("{PODS}/kubepods-burstable-pod{uid}.slice");
            let dir = self.tree.make(&path)?;
            self.pods.insert(pod.to_owned(), dir);
            self.enter(PAUSE, pod, &PAUSE_ROLE.map(str::to_owned), &BTreeMap::new(), 0)?;
        }
        let role = c.role.iter().map(|w| self.filled(w, &c.name)).collect::<Result<Vec<_>>>()?;
        let mut files = c.files.clone();
        for text in files.values_mut() {
            *text = self.filled(text, &c.name)?;
        }
        self.enter(&c.name, pod, &role, &files, restarts)
    }

    fn enter(
        &mut self,
        name: &str,
        pod: &str,
        role: &[String],
        files: &BTreeMap<String, String>,
        restarts: u32,
    ) -> Result<()> {
        let id = random(32)?;
        let pod_dir = self.pods.get(pod).context("the pod is not there")?;
        let pod_name = pod_dir.file_name().unwrap_or_default().to_string_lossy();
        let dir = self.tree.make(&format!("{PODS}/{pod_name}/cri-containerd-{id}.scope"))?;
        for (file, text) in files {
            // Kernels without swap have no file for its limit, and need none.
            if file.starts_with("memory.swap.") && !dir.join(file).exists() {
                continue;
            }
            cgroup::set(&dir, file, text)?;
        }
        let mut c = bound_to_us(&self.workload);
        c.arg("--enter").arg(&dir).args(role);
        c.stdin(Stdio::null()).stdout(Stdio::null());
        let words = self.words.path().join(name);
        let file = fs::OpenOptions::new().append(true).create(true).open(&words);
        c.stderr(file.with_context(|| format!("cannot write {}", words.display()))?);
        let process = c.spawn().with_context(|| format!("cannot start {}", self.workload.display()))?;
        let part = Part {
            name: name.to_owned(),
            pod: pod.to_owned(),
            id,
            dir,
            process,
            ended: None,
            restart: None,
            restarts,
            oom_kill: None,
        };
        self.parts.push(part);
        Ok(())
    }

    /// A word of a role or a value of a control file, with what is known only here.
    fn filled(&self, word: &str, own: &str) -> Result<String> {
        let port = |name: &str| self.ports.get(name).with_context(|| format!("{name} has no port"));
        if word == "{listen}" {
            return Ok(format!("127.0.0.1:{}", port(own)?));
        }
        if let Some(name) = word.strip_prefix("{at:").and_then(|w| w.strip_suffix('}')) {
            return Ok(format!("127.0.0.1:{}", port(name)?));
        }
        let Some(scratch) = &self.scratch else { return Ok(word.to_owned()) };
        let path = scratch.path.to_str().context("the scratch file's path is not UTF-8")?;
        Ok(word.replace("{scratch}", path).replace("{disk}", &scratch.disk))
    }

    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The last instance of a container.
    pub fn id_of(&self, name: &str) -> &str {
        self.parts.iter().rev().find(|p| p.name == name).map_or("", |p| p.id.as_str())
    }

    /// A glob over the cgroup paths of all its pods and their containers.
    pub fn paths(&self) -> String {
        format!("*-pod{}_*", self.mark)
    }

    /// Does what is due: what has ended is started again, removed, or an error.
    pub fn tend(&mut self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        for n in 0..self.parts.len() {
            self.poll_part(n)?;
        }
        self.start_due()
    }

    /// Whether it is over; an error when it failed, was interrupted or takes too long.
    pub fn poll(&mut self) -> Result<bool> {
        self.tend()?;
        if self.deadline.passed() {
            bail!("no end after {} s", self.scenario.timeout_s);
        }
        if let Some(length) = self.scenario.length_s {
            return Ok(self.elapsed().as_secs() >= length);
        }
        let of = |name: &str| self.scenario.container.iter().position(|c| c.name == name);
        let Some((name, n)) = self.scenario.ends_with.as_deref().and_then(|n| Some((n, of(n)?))) else {
            return Ok(false);
        };
        let mut parts = self.parts.iter().filter(|p| p.name == name);
        Ok(self.copies[n] == self.scenario.container[n].copies
            && parts.all(|p| p.ended.is_some() && p.restart.is_none()))
    }

    fn poll_part(&mut self, n: usize) -> Result<()> {
        let part = &mut self.parts[n];
        if part.ended.is_none() {
            let Some(status) = part.process.try_wait().context("cannot wait for a container")? else {
                return Ok(());
            };
            part.ended = Some(code(status));
            let (name, pod) = (part.name.clone(), part.pod.clone());
            let foreseen =
                self.scenario.ends_with.as_deref() == Some(&name) || self.expect.foresees_end(&name);
            if !foreseen {
                let words = child::tail(&self.words.path().join(&name), 5);
                bail!("container {name} ended before its time: {status}\n{words}");
            }
            if part.restarts > 0 {
                part.restart = Some((Deadline::after(BACK_OFF), part.restarts - 1));
            } else if pod != self.pod_of(&name) {
                self.remove_pod(&pod)?;
            }
            return Ok(());
        }
        if let Some((at, left)) = part.restart
            && at.passed()
        {
            part.restart = None;
            let (name, pod) = (part.name.clone(), part.pod.clone());
            self.remove_part(n)?;
            let c = self.scenario.container.iter().find(|c| c.name == name);
            self.start_container(c.context("a container that nobody asked for")?, &pod, left)?;
        }
        Ok(())
    }

    /// The pod that the scenario names; that of a copy has a number behind it.
    fn pod_of(&self, name: &str) -> &str {
        self.scenario.container.iter().find(|c| c.name == name).map_or("", |c| c.pod.as_str())
    }

    /// As a runtime does with what has ended.
    fn remove_part(&mut self, n: usize) -> Result<()> {
        let part = &mut self.parts[n];
        if part.oom_kill.is_none() {
            part.oom_kill = Some(cgroup::value(&part.dir, "memory.events", "oom_kill")?);
            self.tree.remove_one(&part.dir)?;
        }
        Ok(())
    }

    fn remove_pod(&mut self, pod: &str) -> Result<()> {
        for n in 0..self.parts.len() {
            if self.parts[n].pod == pod {
                end(&mut [&mut self.parts[n]]);
                self.remove_part(n)?;
            }
        }
        let dir = self.pods.remove(pod).context("the pod is not there")?;
        self.tree.remove_one(&dir)
    }

    /// Every instance of every container but the pauses, with what the kernel's files say of it.
    pub fn instances(&self) -> Result<Vec<Instance>> {
        let instance = |p: &Part| {
            let oom_kill = match p.oom_kill {
                Some(n) => n,
                None => cgroup::value(&p.dir, "memory.events", "oom_kill")?,
            };
            Ok(Instance { name: p.name.clone(), id: p.id.clone(), oom_kill, exit_code: p.ended })
        };
        self.parts.iter().map(instance).collect()
    }

    /// The kernel's files and wait(2) say what the scenario is for.
    pub fn check(&self) -> Result<()> {
        let instances = self.instances()?;
        for c in &self.scenario.container {
            let own = || instances.iter().filter(|i| i.name == c.name);
            let codes: Vec<i32> = own().filter_map(|i| i.exit_code).collect();
            self.expect
                .kernel(&c.name, Some(own().map(|i| i.oom_kill).sum()), &codes)
                .map_err(|e| anyhow!(e))?;
        }
        Ok(())
    }

    /// End it and remove what it made; unlike a drop, says what went wrong.
    pub fn finish(mut self) -> Result<()> {
        self.stop();
        self.tree.remove()
    }

    fn stop(&mut self) {
        end(&mut self.parts.iter_mut().collect::<Vec<_>>());
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// As a runtime tells it: 128 + N after signal N.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Stops processes as a runtime does: SIGTERM, and SIGKILL to what does not heed it. Children are the cgroup's to kill.
fn end(parts: &mut [&mut Part]) {
    for part in parts.iter_mut().filter(|p| p.ended.is_none()) {
        let pid = rustix::process::Pid::from_child(&part.process);
        // All of these fail only when it is gone already.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    let deadline = Deadline::after(GRACE);
    for part in parts.iter_mut().filter(|p| p.ended.is_none()) {
        let _ = child::wait_until(&mut part.process, deadline);
        let _ = part.process.kill();
        part.ended = part.process.wait().ok().map(code);
    }
}

/// A file on a disk, and that disk's number for `io.max`.
struct Scratch {
    path: PathBuf,
    disk: String,
    ours: bool,
}

impl Scratch {
    fn new() -> Result<Self> {
        let number = |dev| format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
        if std::env::var_os("FGM_VM").is_some() {
            let path = PathBuf::from("/dev/vda");
            let meta = fs::metadata(&path).context("the test VM has no scratch disk /dev/vda")?;
            return Ok(Self { disk: number(meta.rdev()), path, ours: false });
        }
        let path = PathBuf::from(format!("/var/tmp/fgm-scenario-{}", std::process::id()));
        fs::write(&path, b"").with_context(|| format!("cannot write {}", path.display()))?;
        // From here on dropping it removes the file.
        let mut scratch = Self { disk: String::new(), path, ours: true };
        let dev = fs::metadata(&scratch.path).context("the scratch file is not there")?.dev();
        let block = Path::new("/sys/dev/block").join(number(dev));
        // Limits are those of a whole disk.
        let whole = if block.join("partition").exists() { block.join("../dev") } else { block.join("dev") };
        let disk = fs::read_to_string(&whole).map_err(|_| {
            anyhow!("/var/tmp is on no disk that io.max can limit: play this one in the test VM (--on vm)")
        })?;
        disk.trim().clone_into(&mut scratch.disk);
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.ours {
            // Gone already is as good.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// So many random bytes, in hex.
fn random(bytes: usize) -> Result<String> {
    use std::fmt::Write as _;
    use std::io::Read as _;
    let mut all = vec![0_u8; bytes];
    let mut source = fs::File::open("/dev/urandom").context("no /dev/urandom")?;
    source.read_exact(&mut all).context("cannot read /dev/urandom")?;
    let mut text = String::with_capacity(2 * bytes);
    for byte in all {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}
