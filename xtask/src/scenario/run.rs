//! A run from outside: builds, plays in the test VM, here or in a cluster, compares with what was expected, exports what was recorded.
//! Called by `scenario` and by `test`.

use super::outcome::{self, Outcome, show};
use super::play;
use super::runs::{Place, Run, State, record_of};
use super::{Scenario, cluster, folder};
use crate::demo::{self, CGROUP_ROOT, Programs};
use crate::progress::say;
use crate::tally::Tally;
use crate::vm::Guest;
use crate::{cgroup, child, clock, paths, usage};
use anyhow::{Context as _, Result, bail};
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// What `cargo xtask test` plays; `--long` plays all.
pub const GROUP: [&str; 4] = ["oom-group", "sigpipe-crash", "crash-loop", "quiet"];
/// Boot, the agent's start and end, on a busy machine.
const AROUND: Duration = Duration::from_mins(6);

pub fn names() -> Vec<String> {
    let entries = fs::read_dir(folder()).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|e| e.path().join("scenario.toml").exists())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[derive(Default)]
struct Options {
    on: Option<String>,
    cluster: Option<String>,
    context: Option<String>,
    kernel: Option<String>,
    out: Option<PathBuf>,
    /// The program that asks a cluster's agents.
    fgm: Option<PathBuf>,
    json: bool,
    detach: bool,
    dry_run: bool,
}

impl Options {
    fn parse(words: &[&str], usage: &str) -> Result<Self> {
        let (mut all, mut words) = (Self::default(), words.iter().copied());
        while let Some(word) = words.next() {
            let mut value = || usage::value(words.next(), word, usage).map(str::to_owned);
            match word {
                "--json" => all.json = true,
                "--detach" => all.detach = true,
                "--dry-run" => all.dry_run = true,
                "--on" => all.on = Some(value()?),
                "--cluster" => all.cluster = Some(crate::cluster::named(&value()?, usage)?),
                "--context" => all.context = Some(value()?),
                "--kernel" => all.kernel = Some(value()?),
                "--out" => all.out = Some(value()?.into()),
                "--fgm" => all.fgm = Some(value()?.into()),
                _ => return Err(usage::wrong(format!("unknown option `{word}`"), usage)),
            }
        }
        Ok(all)
    }

    /// `None` where the machine decides between vm and host.
    fn place(&self, usage: &str) -> Result<Option<Place>> {
        let named = |default: &str| self.cluster.clone().unwrap_or_else(|| default.to_owned());
        let place = match (self.on.as_deref(), &self.context) {
            (None, None) => None,
            (Some("vm"), None) => Some(Place::Vm),
            (Some("host"), None) => Some(Place::Host),
            // As the tools themselves call a cluster that nobody named.
            (Some("kind"), None) => Some(Place::Kind(named("kind"))),
            (Some("minikube"), None) => Some(Place::Minikube(named("minikube"))),
            (None, Some(name)) if name.is_empty() || name.starts_with('-') => {
                return Err(usage::wrong(format!("--context {name} is no context"), usage));
            }
            (None, Some(name)) => Some(Place::Context(name.clone())),
            (Some(_), Some(_)) => return Err(usage::wrong("--context goes without --on", usage)),
            (Some(other), None) => {
                return Err(usage::wrong(
                    format!("--on {other}: there are vm, host, kind and minikube"),
                    usage,
                ));
            }
        };
        let is_cluster = place.as_ref().is_some_and(|p| p.context().is_some());
        for (option, given, good) in [
            ("--cluster", self.cluster.is_some(), matches!(place, Some(Place::Kind(_) | Place::Minikube(_)))),
            ("--fgm", self.fgm.is_some(), is_cluster),
            ("--detach", self.detach, is_cluster),
            ("--dry-run", self.dry_run, is_cluster),
            ("--kernel", self.kernel.is_some(), matches!(place, None | Some(Place::Vm))),
        ] {
            if given && !good {
                let with = match option {
                    "--cluster" => "--on kind or --on minikube",
                    "--kernel" => "--on vm",
                    _ => "--on kind, --on minikube or --context",
                };
                return Err(usage::wrong(format!("{option} goes with {with} only"), usage));
            }
        }
        Ok(place)
    }
}

pub fn verb(name: &str, options: &[&str], usage: &str) -> Result<i32> {
    let mut options = Options::parse(options, usage)?;
    let place = options.place(usage)?;
    let scenario = Scenario::load(name)?;
    scenario.expect()?;
    if let Some(place) = place.clone().filter(|p| p.context().is_some()) {
        return in_cluster(&scenario, place, &options);
    }
    let kernel = options.kernel.unwrap_or_else(|| crate::kernel::DEFAULT.to_owned());
    crate::kernel::check_series(&kernel)?;
    let place = chosen(place, name)?;
    say(scenario.description.trim());
    let mut run = Run::begin(name, place, options.out.take(), PathBuf::new())?;
    let outcome = played(&mut run, &kernel);
    run.error = match &outcome {
        Ok(_) => outcome::kept(&run.folder, name)?.error,
        Err(e) => Some(format!("{e:#}")),
    };
    run.good = outcome.as_ref().ok().map(Outcome::is_good);
    run.finish(if run.error.is_none() { State::Ended } else { State::Failed })?;
    Ok(i32::from(!outcome?.print(options.json)?))
}

fn played(run: &mut Run, kernel: &str) -> Result<Outcome> {
    let programs = demo::build()?;
    run.fgm.clone_from(&programs.agent);
    run.save()?;
    let name = run.scenario.as_str();
    play_all(&run.place, kernel, &run.folder, &programs, &[name])?;
    outcome::of_folder(&run.folder, &programs.agent, &run.id, name, &["html", "parquet"])
}

fn in_cluster(scenario: &Scenario, place: Place, options: &Options) -> Result<i32> {
    if options.dry_run {
        let fgm = options.fgm.clone().unwrap_or_else(|| "fgm".into());
        print!("{}", cluster::plan(scenario, place, &fgm));
        return Ok(0);
    }
    // First, so that what is missing is said before minutes of compiling.
    cluster::agents(&place)?;
    let fgm = match &options.fgm {
        Some(given) => given.canonicalize().with_context(|| format!("no program {}", given.display()))?,
        None => demo::agent()?,
    };
    say(scenario.description.trim());
    let mut run = cluster::start(scenario, place, options.out.clone(), &fgm)?;
    let id = run.id.clone();
    say(&format!("run {id}; cargo xtask scenario status|logs|stop|export {id}, from any terminal"));
    if !options.detach {
        let outcome = cluster::watch(&mut run)?;
        return Ok(i32::from(!outcome.print(options.json)?));
    }
    let log = run.folder.join("watch.log");
    let file = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut c = child::tool(paths::own()?);
    c.args(["scenario", "--watch", &id]);
    c.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
    let watcher = c.spawn().context("cannot start what waits for its end")?;
    say(&format!("process {} waits for its end; {}", watcher.id(), log.display()));
    if options.json {
        println!("{}", serde_json::to_string(&run)?);
    } else {
        println!("{id}");
    }
    Ok(0)
}

/// What waits for the end of a run that was detached; nobody else calls it.
pub fn watch(id: &str) -> Result<i32> {
    let outcome = cluster::watch(&mut Run::load(id)?)?;
    Ok(i32::from(!outcome.print(true)?))
}

/// All of them in one boot.
pub fn all(options: &[&str], usage: &str) -> Result<i32> {
    let kernel = match options {
        [] => crate::kernel::DEFAULT,
        ["--kernel", series] => series,
        _ => return Err(usage::wrong(format!("`{}`", options.join(" ")), usage)),
    };
    crate::kernel::check_series(kernel)?;
    let tally = group(&names(), kernel)?;
    println!("{tally}");
    Ok(i32::from(!tally.good()))
}

/// Several in one boot, for `test`: a passed or failed one for each.
pub fn group(names: &[String], kernel: &str) -> Result<Tally> {
    let programs = demo::build()?;
    let run = clock::stamp();
    let out = paths::target().join("scenario").join(&run);
    let words: Vec<&str> = names.iter().map(String::as_str).collect();
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let out = out.canonicalize().with_context(|| format!("no folder {}", out.display()))?;
    play_all(&Place::Vm, kernel, &out, &programs, &words)?;
    let mut tally = Tally::default();
    for name in names {
        let good = outcome::of_folder(&out, &programs.agent, &format!("{name}-{run}"), name, &["html"])
            .map(|outcome| outcome.is_good());
        match good {
            Ok(true) => tally.passed += 1,
            Ok(false) => tally.failed += 1,
            Err(e) => {
                say(&format!("✗ {name}: {e:#}"));
                tally.failed += 1;
            }
        }
    }
    Ok(tally)
}

/// Compares what was recorded before with what is expected now.
pub fn judge(out: &Path) -> Result<i32> {
    let mut tally = Tally::default();
    for name in names() {
        if record_of(out, &name).exists() {
            tally += if show(&name, &outcome::verdict(&outcome::kept(out, &name)?)?) {
                Tally::PASSED
            } else {
                Tally::FAILED
            };
        }
    }
    if tally == Tally::default() {
        bail!("{} has no scenario's record", out.display());
    }
    println!("{tally}");
    Ok(i32::from(!tally.good()))
}

fn chosen(place: Option<Place>, name: &str) -> Result<Place> {
    match (place, cgroup::usable(Path::new(CGROUP_ROOT))) {
        (Some(Place::Host), Err(why)) => {
            bail!("{why:#}\n  to play it in the test VM instead: cargo xtask scenario run {name} --on vm")
        }
        (Some(place), _) => Ok(place),
        (None, Ok(())) => Ok(Place::Host),
        (None, Err(why)) => {
            say(&format!("not on this machine's own cgroups, since {why:#}; using the test VM"));
            Ok(Place::Vm)
        }
    }
}

/// Leaves a record of each in the output folder.
fn play_all(place: &Place, kernel: &str, out: &Path, programs: &Programs, names: &[&str]) -> Result<()> {
    if *place == Place::Host {
        return play::play(out, &programs.agent, &programs.workload, names);
    }
    let own = paths::own()?;
    let mut words: Vec<OsString> = vec![own.into(), "scenario".into(), "--play".into()];
    words.extend([out, &programs.agent, &programs.workload].map(OsString::from));
    words.extend(names.iter().map(OsString::from));
    let mut guest = Guest::new(words)?;
    kernel.clone_into(&mut guest.series);
    let mut all = AROUND;
    for name in names {
        all += Duration::from_secs(Scenario::load(name)?.timeout_s) + Duration::from_mins(1);
    }
    guest.timeout = all;
    guest.out = Some(out.to_path_buf());
    // What comes out comes by file; the guest's stdout must not mix with ours, whose last line is promised.
    let code = guest.run_with(&mut std::io::stderr(), &mut std::io::stderr())?;
    if code != 0 {
        bail!(
            "the run failed in the test VM (exit code {code}); what there is of it is in {}",
            out.display()
        );
    }
    Ok(())
}
