//! `cargo xtask scenario list|run`: plays a scenario from `scenarios/NAME/scenario.toml` in cgroups of its own.
//! Must never leave a cgroup or a process behind, however it ends. Called by a person and by `demo`.

use crate::cgroup::{self, Tree};
use crate::child::{self, TempDir, bound_to_us};
use crate::clock::{self, Deadline};
use crate::progress::{self, Step, say};
use crate::usage::{self, Usage};
use crate::vm::Guest;
use crate::{ebpf, paths};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub title: String,
    pub description: String,
    /// Cgroup of the pod, below the root.
    pod: String,
    ends_with: String,
    timeout_s: u64,
    pub climax_s: u32,
    container: Vec<Container>,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Container {
    name: String,
    cgroup: String,
    role: Vec<String>,
    /// Control files to write, by the kernel's names.
    #[serde(default)]
    files: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    container: String,
    exit_code: i32,
    oom_kill: u64,
}

impl Scenario {
    pub fn load(name: &str) -> Result<Self> {
        let path = paths::root().join("scenarios").join(name).join("scenario.toml");
        if !path.exists() {
            let names = names().join(", ");
            return Err(Usage(format!(
                "no scenario `{name}`: there is no {}; there are: {names}",
                path.display()
            ))
            .into());
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let scenario: Self = toml::from_str(text)?;
        for name in [&scenario.ends_with, &scenario.expect.container] {
            if !scenario.container.iter().any(|c| c.name == *name) {
                bail!("no container is called `{name}`");
            }
        }
        Ok(scenario)
    }
}

fn names() -> Vec<String> {
    let entries = fs::read_dir(paths::root().join("scenarios")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|e| e.path().join("scenario.toml").exists())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A scenario that is being played; dropping it ends it and removes what it made.
pub struct Running<'s> {
    scenario: &'s Scenario,
    start: Instant,
    deadline: Deadline,
    tree: Tree,
    parts: Vec<Part>,
    /// What the containers print, where a redrawn progress line would garble it; elsewhere it is on stderr.
    words: Option<TempDir>,
    interrupted: Arc<AtomicBool>,
}

struct Part {
    name: String,
    id: String,
    dir: PathBuf,
    process: Child,
    ended: Option<ExitStatus>,
}

impl<'s> Running<'s> {
    pub fn start(scenario: &'s Scenario, root: &Path, workload: &Path) -> Result<Self> {
        cgroup::usable(root).with_context(|| format!("`{}` cannot be played here", scenario.title))?;
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
        {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))
                .context("cannot watch for signals")?;
        }
        let uid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("no random pod UID")?;
        let pod = scenario.pod.replace("{pod_uid_}", &uid.trim().replace('-', "_"));
        let deadline = Deadline::after(Duration::from_secs(scenario.timeout_s));
        let tree = Tree::new(root);
        let words = if progress::on_terminal() { Some(TempDir::new("scenario")?) } else { None };
        // From here on the value owns what was made, so that every `?` below cleans up.
        let mut running =
            Self { scenario, start: clock::now(), deadline, tree, parts: Vec::new(), words, interrupted };
        for container in &scenario.container {
            running.start_container(container, &pod, workload)?;
        }
        Ok(running)
    }

    fn start_container(&mut self, container: &Container, pod: &str, workload: &Path) -> Result<()> {
        let id = random_id()?;
        let dir = self.tree.make(&format!("{pod}/{}", container.cgroup.replace("{id}", &id)))?;
        for (file, text) in &container.files {
            // Kernels without swap have no file for its limit, and need none.
            if file.starts_with("memory.swap.") && !dir.join(file).exists() {
                continue;
            }
            cgroup::set(&dir, file, text)?;
        }
        let mut c = bound_to_us(workload);
        c.arg("--enter").arg(&dir).args(&container.role);
        c.stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(words) = &self.words {
            let path = words.path().join(&container.name);
            c.stderr(fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?);
        }
        let process = c.spawn().with_context(|| format!("cannot start {}", workload.display()))?;
        say(&format!("  container {} is {}", container.name, dir.display()));
        self.parts.push(Part { name: container.name.clone(), id, dir, process, ended: None });
        Ok(())
    }

    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The id of the container that the expectation is about.
    pub fn container_id(&self) -> &str {
        self.part(&self.scenario.expect.container).map_or("", |p| p.id.as_str())
    }

    fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|p| p.name == name)
    }

    /// Whether it is over; an error when it failed, was interrupted or takes too long.
    pub fn poll(&mut self) -> Result<bool> {
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        for part in &mut self.parts {
            if part.ended.is_none() {
                part.ended = part.process.try_wait().context("cannot wait for a container")?;
            }
        }
        for part in &self.parts {
            if let Some(status) = part.ended
                && part.name != self.scenario.ends_with
            {
                let words = self.words.as_ref().map(|w| child::tail(&w.path().join(&part.name), 5));
                bail!(
                    "container {} ended before its time: {status}\n{}",
                    part.name,
                    words.unwrap_or_default()
                );
            }
        }
        if self.deadline.passed() {
            bail!("no end after {} s", self.scenario.timeout_s);
        }
        Ok(self.part(&self.scenario.ends_with).is_some_and(|p| p.ended.is_some()))
    }

    /// Compare with what the scenario promises; the exit code counts only when the container ended.
    pub fn check(&self) -> Result<Vec<serde_json::Value>> {
        let expect = &self.scenario.expect;
        let part = self.part(&expect.container).context("the container is not there")?;
        let kills = cgroup::value(&part.dir, "memory.events", "oom_kill")?;
        if kills != expect.oom_kill {
            bail!("container {}: {kills} OOM kills, and {} were to be", part.name, expect.oom_kill);
        }
        if let Some(status) = part.ended
            && status.code() != Some(expect.exit_code)
        {
            let signal = status.signal().map(|s| format!(" (signal {s})")).unwrap_or_default();
            bail!("container {}: {status}{signal}, and exit code {} was to be", part.name, expect.exit_code);
        }
        let entry = |p: &Part| {
            serde_json::json!({
                "name": p.name, "id": p.id, "cgroup": p.dir,
                "oom_kill": cgroup::value(&p.dir, "memory.events", "oom_kill").ok(),
            })
        };
        Ok(self.parts.iter().map(entry).collect())
    }

    /// End it and remove what it made; unlike a drop, says what went wrong.
    pub fn finish(mut self) -> Result<()> {
        self.stop();
        self.tree.remove()
    }

    fn stop(&mut self) {
        for part in &mut self.parts {
            // Both fail only when it is gone already; children of it are the cgroup's to kill.
            let _ = part.process.kill();
            let _ = part.process.wait();
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

fn random_id() -> Result<String> {
    use std::fmt::Write as _;
    use std::io::Read as _;
    let mut bytes = [0_u8; 32];
    let mut source = fs::File::open("/dev/urandom").context("no /dev/urandom")?;
    source.read_exact(&mut bytes).context("cannot read /dev/urandom")?;
    let mut id = String::with_capacity(64);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(id, "{byte:02x}");
    }
    Ok(id)
}

/// The static workload, built unless we are in the test VM, where compiling takes minutes.
pub fn workload() -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    if env::var_os("FGM_VM").is_some() {
        let built = paths::target().join(&triple).join("debug/workload");
        if !built.exists() {
            bail!("{} is not built: run `cargo xtask scenario build` outside the VM first", built.display());
        }
        return Ok(built);
    }
    let mut c = child::cargo();
    c.args(["build", "-p", "workload", "--target", &triple, "--message-format", "json-render-diagnostics"]);
    // Its own target folder entry by --target, so that these flags rebuild nothing else.
    c.env("CARGO_TARGET_DIR", paths::target()).env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    let built = ebpf::executables(&mut c)?;
    built.into_iter().find(|p| p.ends_with("workload")).context("cargo built no workload")
}

/// Play it to its end, with progress, and print what it was as one JSON line.
fn run(name: &str, root: &Path) -> Result<i32> {
    let scenario = Scenario::load(name)?;
    if let Err(e) = cgroup::usable(root) {
        bail!("{e:#}\n  to play it in the test VM instead: cargo xtask scenario run {name} --vm");
    }
    say(scenario.description.trim());
    let workload = workload()?;
    let mut running = Running::start(&scenario, root, &workload)?;
    let mut step = Step::begin(&scenario.title);
    while !running.poll()? {
        step.update(None, "");
        thread::sleep(Duration::from_millis(100));
    }
    let containers = running.check()?;
    running.finish()?;
    step.done("");
    println!("{}", serde_json::json!({ "scenario": name, "containers": containers }));
    Ok(0)
}

pub fn verb(args: &[OsString]) -> Result<i32> {
    const USAGE: &str =
        "cargo xtask scenario list | build | run NAME [--cgroup-root DIR] [--vm] [--kernel SERIES]";
    let words: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (name, mut options) = match words.as_slice() {
        ["list"] => {
            for name in names() {
                println!("{name:16} {}", Scenario::load(&name)?.title);
            }
            return Ok(0);
        }
        ["build"] => {
            println!("{}", workload()?.display());
            return Ok(0);
        }
        ["run", name, options @ ..] if !name.starts_with('-') => (*name, options),
        _ => return Err(usage::wrong("neither list, build nor run NAME", USAGE)),
    };
    let (mut root, mut in_vm, mut kernel) = (PathBuf::from("/sys/fs/cgroup"), false, None);
    while !options.is_empty() {
        options = match options {
            ["--vm", rest @ ..] => {
                in_vm = true;
                rest
            }
            ["--cgroup-root", dir, rest @ ..] => {
                root = PathBuf::from(dir);
                rest
            }
            ["--kernel", series, rest @ ..] => {
                kernel = Some((*series).to_owned());
                rest
            }
            [option @ ("--cgroup-root" | "--kernel")] => {
                return Err(usage::wrong(format!("{option} has no value"), USAGE));
            }
            _ => return Err(usage::wrong(format!("unknown option `{}`", options[0]), USAGE)),
        };
    }
    if kernel.is_some() && !in_vm {
        return Err(usage::wrong("--kernel goes with --vm only", USAGE));
    }
    if !in_vm {
        return run(name, &root);
    }
    Scenario::load(name)?;
    workload()?;
    let own = env::current_exe().context("cannot tell my own path")?;
    let mut guest = Guest::new(vec![own.into(), "scenario".into(), "run".into(), name.into()])?;
    if let Some(series) = kernel {
        guest.series = series;
    }
    guest.timeout = Duration::from_mins(5);
    guest.run()
}

#[cfg(test)]
mod tests {
    use super::{Scenario, names};

    #[test]
    fn every_scenario_in_the_tree_is_valid() {
        let names = names();
        assert!(names.contains(&"oom-kill".to_owned()), "{names:?}");
        for name in names {
            let scenario = Scenario::load(&name).expect(&name);
            assert!(u64::from(scenario.climax_s) < scenario.timeout_s, "{name}");
            for container in &scenario.container {
                assert!(container.cgroup.contains("{id}"), "{name}: each run needs a fresh container id");
            }
            assert!(!scenario.description.is_empty(), "{name}");
        }
    }

    #[test]
    fn unknown_keys_and_names_are_refused() {
        let text = std::fs::read_to_string(crate::paths::root().join("scenarios/oom-kill/scenario.toml"));
        let text = text.expect("the scenario");
        assert!(Scenario::parse(&text.replace("climax_s", "climacs_s")).is_err());
        assert!(Scenario::parse(&text.replace("ends_with = \"app\"", "ends_with = \"nobody\"")).is_err());
    }
}
