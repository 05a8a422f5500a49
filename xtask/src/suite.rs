//! `cargo xtask test` and `ci`: every test of the repository in groups, and one line that sums them up.
//! Must never call a group passed of which nothing ran. Called by a person and by `.ci/run`.

mod kernels;

use crate::child::{self, Reaped, tool};
use crate::clock::{Deadline, ktime_ns};
use crate::demo::{self, Outcome};
use crate::image::Profile;
use crate::progress::{quiet, say};
use crate::setup::{self, Check, Need};
use crate::tally::{self, Names, Tally};
use crate::{bench, browser, ebpf, interop, kernel, kubernetes, paths, scenario, usage};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

/// Kernels of an ordinary run: the oldest that we support in full, and Debian's current one.
const KERNELS: &[&str] = &["6.12", "6.1"];
/// Compiling everything on two cores takes 5-8 minutes; the tests themselves take one.
const WORKSPACE: Duration = Duration::from_mins(25);
pub const OTHER: Duration = Duration::from_mins(10);
/// Forty pages in Chromium: a minute and a half on two idle cores.
const BROWSER_TESTS: Duration = Duration::from_mins(10);

const PYTHON: Need = Need {
    package: "python3",
    why: "reads our Parquet with DuckDB and pyarrow",
    check: Check::Program("python3"),
};
const VENV: Need =
    Need { package: "python3-venv", why: "keeps the tests' libraries in target/venv", check: Check::Package };

/// What one run is made of.
#[derive(Default)]
struct Suite {
    /// Name, count and seconds of each.
    groups: Vec<(String, Tally, u64)>,
    names: Names,
}

pub fn test(args: &[OsString]) -> Result<i32> {
    const USAGE: &str = "cargo xtask test [--long] [--kernels 6.12,6.1] [--only-kernels | --without-kernels | --kubernetes] [--without-kubernetes]";
    let mut kernels: Vec<String> = KERNELS.iter().map(|k| (*k).to_owned()).collect();
    let (mut long, mut only_kernels, mut without_kernels, mut only_kubernetes) = (false, false, false, false);
    let mut with_kubernetes = true;
    let mut args = args.iter().map(|a| a.to_string_lossy().into_owned());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--long" => {
                long = true;
                let others = kernel::SERIES.iter().filter(|k| !KERNELS.contains(k));
                kernels.extend(others.map(|k| (*k).to_owned()));
            }
            "--only-kernels" => only_kernels = true,
            "--without-kernels" => without_kernels = true,
            "--kubernetes" => only_kubernetes = true,
            "--without-kubernetes" => with_kubernetes = false,
            "--kernels" => {
                let list = args.next();
                let list = usage::value(list.as_deref(), "--kernels", USAGE)?;
                kernels = list.split(',').map(|k| k.trim().to_owned()).filter(|k| !k.is_empty()).collect();
            }
            _ => return Err(usage::wrong(format!("unknown option `{arg}`"), USAGE)),
        }
    }
    // `--long` after `--kernels` may name some anew
    let mut seen = BTreeSet::new();
    kernels.retain(|k| seen.insert(k.clone()));
    if kernels.is_empty() {
        return Err(usage::wrong("--kernels names none", USAGE));
    }
    for series in &kernels {
        kernel::check_series(series)?;
    }
    if [only_kernels, without_kernels, only_kubernetes].iter().filter(|o| **o).count() > 1 {
        let what = "--only-kernels, --without-kernels and --kubernetes leave nothing of each other";
        return Err(usage::wrong(what, USAGE));
    }
    // All set-up first: a machine that lacks something says so before minutes of compiling.
    setup::vm()?;
    let mut suite = Suite::default();
    if only_kubernetes {
        suite.kubernetes(&kernels, long);
        return Ok(suite.finish());
    }
    if only_kernels {
        ebpf::build()?;
        suite.kernels(&kernels, long);
        return Ok(suite.finish());
    }
    browser::ensure()?;
    setup::ensure(&[PYTHON])?;
    kubernetes::kubectl::folder()?;
    let programs = if long || with_kubernetes { Some(kubernetes::make_beside()?) } else { None };
    ebpf::build()?;

    suite.group("workspace", workspace);
    if !without_kernels {
        suite.kernels(&kernels, long);
    }
    let mut outcome = None;
    suite.group("demo", |_| {
        outcome = Some(demo::in_vm(&kernels[0])?);
        Ok(Tally::PASSED)
    });
    suite.group("scenarios", |_| {
        let names = if long { scenario::names() } else { scenario::GROUP.map(str::to_owned).to_vec() };
        scenario::group(&names, &kernels[0])
    });
    if let Some(programs) = programs {
        programs.wait()?;
    }
    if long {
        suite.kubernetes(&kernels, long);
        suite.group("evidence", |_| {
            Ok(if bench::short(&kernels[0])? == 0 { Tally::PASSED } else { Tally::FAILED })
        });
        suite.readers(outcome.as_ref(), long);
    } else if with_kubernetes {
        // A cluster waits more than it computes: beside what has no guest it takes half of its time.
        let cluster = || timed("kubernetes", || kubernetes::test(&kernels[0], true, Profile::Dev));
        let first = thread::scope(|scope| {
            let beside = scope.spawn(cluster);
            suite.readers(outcome.as_ref(), long);
            beside.join().unwrap_or(("kubernetes".to_owned(), Tally::FAILED, 0))
        });
        // as in a kernel's tests: what it says of the product it says twice
        let (name, tally, seconds) = if first.1.good() {
            first
        } else {
            suite.names.twice("kubernetes".to_owned());
            cluster()
        };
        suite.push(&name, tally, seconds);
    } else {
        say("\nkubernetes: left out, as --without-kubernetes asks");
        suite.readers(outcome.as_ref(), long);
    }
    suite.group("browser", |names| pages(outcome.as_ref().context("there is no demo to look at")?, names));
    Ok(suite.finish())
}

/// What to run before each commit: no VM, no network once things are built.
pub fn ci() -> i32 {
    let mut suite = Suite::default();
    let ebpf_manifest = paths::root().join("agent-ebpf/Cargo.toml");
    suite.group("format", |_| {
        child::run(child::cargo().args(["fmt", "--all", "--check"]))?;
        child::run(child::cargo().args(["fmt", "--check", "--manifest-path"]).arg(&ebpf_manifest))?;
        Ok(Tally::PASSED)
    });
    suite.group("clippy", |_| {
        child::run(child::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
        Ok(Tally::PASSED)
    });
    suite.group("workspace", workspace);
    suite.finish()
}

impl Suite {
    fn group(&mut self, name: &str, run: impl FnOnce(&mut Names) -> Result<Tally>) {
        let (name, tally, seconds) = timed(name, || run(&mut self.names));
        self.push(&name, tally, seconds);
    }

    /// What reads the demo's data or needs none, and no guest.
    fn readers(&mut self, demo: Option<&Outcome>, long: bool) {
        self.group("interop", |_| {
            let demo = demo.context("there is no demo to read")?;
            interop::check(&demo.data, &demo.parquet, false)
        });
        self.group("fleet", |_| fleet(long));
        self.group("deploy", |_| deploy());
        self.group("api", |_| api(demo.context("there is no demo to ask about")?));
    }

    fn kernels(&mut self, series: &[String], long: bool) {
        say("\n── kernels");
        match kernels::run(series, long, &mut self.names) {
            Ok(rows) => rows.iter().for_each(|(name, tally, seconds)| self.push(name, *tally, *seconds)),
            Err(e) => {
                say(&format!("kernel tests: {e:#}"));
                self.push("kernel tests", Tally::FAILED, 0);
            }
        }
    }

    /// On the first kernel by systemd's cgroup driver, as clusters are; `long`: on the second by cgroupfs, and on the newest, so that the
    /// DaemonSet's privileges are seen to be enough on old and new ones.
    fn kubernetes(&mut self, series: &[String], long: bool) {
        let (first, others) = (series.first(), series.get(1..).unwrap_or_default());
        let newest = others.get(1..).and_then(|newer| newer.last());
        let more = [(others.first(), "kubernetes, cgroupfs", false), (newest, "kubernetes, newest", true)];
        let runs = [(first, "kubernetes", true)].into_iter().chain(more.into_iter().filter(|_| long));
        for (series, name, systemd) in runs {
            if let Some(series) = series {
                let profile = if long { Profile::Release } else { Profile::Dev };
                self.group(name, |_| kubernetes::test(series, systemd, profile));
            }
        }
    }

    fn push(&mut self, name: &str, mut tally: Tally, seconds: u64) {
        if !tally.good() && tally.failed == 0 {
            say(&format!("{name}: nothing of this group ran, which counts as a failure"));
            tally.failed = 1;
        }
        self.groups.push((name.to_owned(), tally, seconds));
    }

    /// The summary; its last line is the sum, alone on its line.
    fn finish(self) -> i32 {
        let mut sum = Tally::default();
        println!();
        for report in self.names.reports() {
            println!("{report}\n");
        }
        for (name, tally, seconds) in &self.groups {
            println!("{} {name:16} {tally} · {seconds} s", if tally.good() { "✓" } else { "✗" });
            sum += *tally;
        }
        // A test skipped on this machine and run in the VM is no skipped test; one that ran nowhere counts once.
        if !self.names.second_tries().is_empty() {
            println!("run twice, since they failed once: {}", self.names.second_tries().join(", "));
        }
        let nowhere: Vec<_> = self.names.nowhere().map(String::as_str).collect();
        if sum.skipped > 0 {
            println!(
                "of the skipped, these ran nowhere: {}",
                if nowhere.is_empty() { "none".into() } else { nowhere.join(", ") }
            );
        }
        let named: u32 = self
            .groups
            .iter()
            .filter(|(n, ..)| n == "workspace" || n.starts_with("kernel "))
            .map(|(_, t, _)| t.skipped)
            .sum();
        sum.skipped = sum.skipped - named + u32::try_from(nowhere.len()).unwrap_or(u32::MAX);
        println!("{sum}");
        i32::from(!self.groups.iter().all(|(_, t, _)| t.good()))
    }
}

/// A group's name, count and seconds.
fn timed(name: &str, run: impl FnOnce() -> Result<Tally>) -> (String, Tally, u64) {
    say(&format!("\n── {name}"));
    let start = ktime_ns();
    let tally = run().unwrap_or_else(|e| {
        say(&format!("{name}: {e:#}"));
        Tally::FAILED
    });
    (name.to_owned(), tally, (ktime_ns() - start) / 1_000_000_000)
}

/// Unit, property, integration and repository-rule tests of all crates.
fn workspace(names: &mut Names) -> Result<Tally> {
    let mut c = child::cargo();
    c.args(["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
    let (status, text) = shown(&mut c, WORKSPACE)?;
    names.add(&text);
    settle(status, tally::libtest(&text))
}

/// The Helm chart, and the plain manifests by a kubectl that is there: none may be skipped.
fn deploy() -> Result<Tally> {
    let folder = paths::root().join("tests/deploy");
    let mut c = tool(venv(&folder, &["requirements.txt"])?);
    c.arg(folder.join("check.py")).env("CI", "true");
    if let Some(own) = kubernetes::kubectl::folder()? {
        let path = std::env::var_os("PATH").unwrap_or_default();
        c.env("PATH", [own.into_os_string(), path].join(OsStr::new(":")));
    }
    let (status, text) = shown(&mut c, OTHER)?;
    checked(status, &text)
}

/// A folder is shipped into an S3 server that fails, and read back; `long`: by ClickHouse and Spark as well.
fn fleet(long: bool) -> Result<Tally> {
    let folder = paths::root().join("tests/fleet");
    let recorded = ebpf::cargo_build("a folder's maker", &["-p", "fgm", "--example", "recorded"])?;
    let recorded =
        recorded.into_iter().find(|p| p.ends_with("recorded")).context("cargo built no recorded")?;
    let lists: &[&str] =
        if long { &["requirements.txt", "requirements-all.txt"] } else { &["requirements.txt"] };
    let mut c = tool(venv(&folder, lists)?);
    c.arg(folder.join("check.py")).arg("--fgm").arg(built_agent()?).arg("--recorded").arg(recorded);
    c.args(long.then_some("--all"));
    let (status, text) = shown(&mut c, OTHER)?;
    checked(status, &text)
}

/// The API over the demo's data, asked what schemathesis makes up from its description.
fn api(demo: &Outcome) -> Result<Tally> {
    let folder = paths::root().join("tests/api");
    let mut c = tool(venv(&folder, &["requirements.txt"])?);
    c.arg(folder.join("check.py")).arg("--fgm").arg(built_agent()?).arg("--data").arg(&demo.data);
    let (status, text) = shown(&mut c, OTHER)?;
    checked(status, &text)
}

fn built_agent() -> Result<PathBuf> {
    let agent = ebpf::cargo_build("the agent", &["-p", "fgm", "--bin", "fgm"])?;
    agent.into_iter().find(|p| p.ends_with("fgm")).context("cargo built no fgm")
}

/// One test with thousands of checks; counting those would drown every other number.
pub fn checked(status: ExitStatus, text: &str) -> Result<Tally> {
    match tally::own(text) {
        Some(checks) if checks.good() && status.success() => Ok(Tally::PASSED),
        Some(checks) => Ok(Tally { failed: checks.failed.max(1), ..Tally::default() }),
        None => bail!("check.py ended with {status} and no count of its checks"),
    }
}

/// A virtual environment with what the lists in a folder name, made anew when what they name changes.
pub fn venv(folder: &Path, lists: &[&str]) -> Result<PathBuf> {
    let mut venv = paths::target().join("venv").join(folder.file_name().unwrap_or_default());
    let mut wanted = String::new();
    for list in lists {
        let file = folder.join(list);
        wanted += &fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    if lists.len() > 1 {
        venv.set_extension("all");
    }
    let python = venv.join("bin/python");
    let stamp = venv.join("fgm-requirements");
    if python.exists() && fs::read_to_string(&stamp).is_ok_and(|s| s == wanted) {
        return Ok(python);
    }
    let _ = fs::remove_dir_all(&venv);
    let make = || {
        let mut c = tool("python3");
        c.args(["-m", "venv"]).arg(&venv);
        c
    };
    // Debian's python3 has venv but not the ensurepip that it needs; its package python3-venv has.
    if let Err(e) = quiet("making a Python environment", "venv", OTHER, &mut make()) {
        if !setup::has_apt() {
            return Err(e);
        }
        let _ = fs::remove_dir_all(&venv);
        setup::ensure(&[VENV])?;
        quiet("making a Python environment", "venv", OTHER, &mut make())?;
    }
    let mut c = tool(&python);
    c.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input"]);
    c.args(wanted.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')));
    quiet("installing the test's libraries from PyPI", "pip", Duration::from_mins(10), &mut c)?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(python)
}

/// The front end's own tests, with the demo's report, and its data in the viewer, opened in a browser.
fn pages(demo: &Outcome, names: &mut Names) -> Result<Tally> {
    browser::libraries()?;
    let mut c = tool("npm");
    c.current_dir(browser::folder()).arg("test");
    c.env("CHROMIUM", browser::chromium()?).env("FGM_REPORT", &demo.html);
    c.env("FGM_SHOTS", paths::target().join("shots")).env("CI", "true");
    c.env("FGM_DATA", &demo.data).env("FGM_BIN", built_agent()?);
    let (status, text) = shown(&mut c, BROWSER_TESTS)?;
    names.keep_failures(&text);
    settle(status, tally::node(&text))
}

/// A runner that failed without a failed test (it did not compile, it crashed) is a failure too.
fn settle(status: ExitStatus, tally: Tally) -> Result<Tally> {
    if !status.success() && tally.failed == 0 {
        if tally == Tally::default() {
            bail!("{status}");
        }
        say(&format!("the runner ended with {status}"));
        return Ok(Tally { failed: 1, ..tally });
    }
    Ok(tally)
}

/// Run with output shown and kept, at most so long.
pub fn shown(command: &mut Command, limit: Duration) -> Result<(ExitStatus, String)> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = Reaped(child.with_context(|| format!("cannot start `{}`", child::shown(command)))?);
    let stdout = child.0.stdout.take().context("a pipe that was asked for is not there")?;
    let reader = thread::spawn(move || {
        let mut text = String::new();
        let mut lines = BufReader::new(stdout);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let _ = std::io::stdout().write_all(&line);
            text.push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
        text
    });
    let Some(status) = child::wait_until(&mut child.0, Deadline::after(limit))? else {
        bail!("`{}` was ended after {} s", child::shown(command), limit.as_secs());
    };
    // A grandchild that keeps the pipe open must not hold us: what it wrote so far is what counts.
    let deadline = Deadline::after(Duration::from_secs(10));
    while !reader.is_finished() && !deadline.passed() {
        thread::sleep(Duration::from_millis(20));
    }
    if !reader.is_finished() {
        bail!("`{}` left a process behind that holds its output open", child::shown(command));
    }
    let text = reader.join().ok().context("reading a child's output failed")?;
    Ok((status, text))
}
