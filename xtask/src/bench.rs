//! `cargo xtask bench`: the numbers that the recorder is held to, measured, with machine and kernel.
//! Must never print a number that was not measured in this run. Called by a person and by `test --long`.

mod bound;
mod case;
mod churn;
mod evidence;
mod history;
mod judge;
mod mix;
mod native;
mod play;
mod quiet;
mod reports;
mod rows;
mod sampler;
mod score;
mod stage;
mod store;
mod stories;
mod viewer;

use crate::usage::{self, Usage};
use crate::{cgroup, demo, ebpf, paths, scenario, setup};
use anyhow::{Context as _, Result, bail};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

const USAGE: &str = "cargo xtask bench evidence [--kernel SERIES | --host] [--kills N] [--lane bpf|pread] [--json FILE] [--judge FOLDER --agent FILE]
       cargo xtask bench churn [--cgroups N] [--json FILE]
       cargo xtask bench burst [--json FILE]
       cargo xtask bench store [--hours N] [--json FILE]
       cargo xtask bench viewer [--json FILE]
       cargo xtask bench quiet [--kernel SERIES | --host] [--minutes N] [--json FILE]
       cargo xtask bench sampler [--containers N]… [--in native|vm|both] [--kernel SERIES] [--load sit|beat] [--micro] [--json FILE]";
const MINUTES: usize = 10;
const HOURS: usize = 24;
const CGROUPS: usize = 100_000;
/// The recorder lists a thousand incidents.
const MAX_KILLS: usize = 1000;

#[derive(Clone, Copy, PartialEq)]
pub enum Place {
    Vm,
    Host,
}

impl Place {
    fn words(self) -> &'static str {
        match self {
            Self::Vm => "test VM, emulated: no bound on time holds in it",
            Self::Host => "this machine",
        }
    }
}

pub struct Programs {
    pub agent: PathBuf,
    pub workload: PathBuf,
    pub truth: PathBuf,
}

impl Programs {
    fn build() -> Result<Self> {
        ebpf::build()?;
        let words = ["--release", "-p", "fgm", "--bin", "fgm", "-p", "truth", "--bin", "truth"];
        let built = ebpf::cargo_build("the recorder as it is delivered, and the witness", &words)?;
        let find = |name: &str| {
            let found = built.iter().find(|p| p.ends_with(name)).cloned();
            found.with_context(|| format!("cargo built no {name}"))
        };
        Ok(Self { agent: find("fgm")?, workload: scenario::workload()?, truth: find("truth")? })
    }
}

fn out_folder(name: &str) -> Result<PathBuf> {
    let out = paths::target().join("bench").join(format!("{name}-{}", crate::clock::stamp()));
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    out.canonicalize().with_context(|| format!("no folder {}", out.display()))
}

/// The processor and how many of them, of the machine on which this runs.
fn machine() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|l| Some(l.strip_prefix("model name")?.split_once(':')?.1.trim()));
    let count = text.lines().filter(|l| l.starts_with("processor")).count();
    format!("{} × {count}", model.unwrap_or("unknown processor"))
}

fn count(text: &str, option: &str) -> Result<usize> {
    let number = text.parse().ok().filter(|n| *n > 0);
    number.ok_or_else(|| Usage(format!("{option} {text} is no whole number above 0; usage: {USAGE}")).into())
}

pub fn verb(args: &[OsString]) -> Result<i32> {
    let words: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    if words.first().is_some_and(|w| w == "--play") {
        return played(&words[1..]);
    }
    if words.first().is_some_and(|w| w == "sampler") {
        return sampler::bench(&sampler::Options::parse(words[1..].iter().map(String::as_str))?);
    }
    let (mut place, mut kernel, mut json) = (Place::Vm, crate::kernel::DEFAULT.to_owned(), None);
    let (mut kills, mut cgroups, mut minutes, mut hours) = (MAX_KILLS, CGROUPS, MINUTES, HOURS);
    let mut lane = "bpf".to_owned();
    let (mut folder, mut agent) = (None, None);
    let mut words = words.iter().map(String::as_str);
    let what = words.next().unwrap_or_default().to_owned();
    while let Some(word) = words.next() {
        match word {
            "--host" => place = Place::Host,
            "--kernel" => usage::value(words.next(), word, USAGE)?.clone_into(&mut kernel),
            "--kills" => kills = count(usage::value(words.next(), word, USAGE)?, word)?,
            "--lane" => usage::value(words.next(), word, USAGE)?.clone_into(&mut lane),
            "--minutes" => minutes = count(usage::value(words.next(), word, USAGE)?, word)?,
            "--hours" => hours = count(usage::value(words.next(), word, USAGE)?, word)?,
            "--cgroups" => cgroups = count(usage::value(words.next(), word, USAGE)?, word)?,
            "--judge" => folder = Some(PathBuf::from(usage::value(words.next(), word, USAGE)?)),
            "--agent" => agent = Some(PathBuf::from(usage::value(words.next(), word, USAGE)?)),
            "--json" => json = Some(PathBuf::from(usage::value(words.next(), word, USAGE)?)),
            _ => return Err(usage::wrong(format!("unknown option `{word}`"), USAGE)),
        }
    }
    crate::kernel::check_series(&kernel)?;
    if kills > MAX_KILLS {
        return Err(usage::wrong(format!("--kills {kills} is more than {MAX_KILLS}"), USAGE));
    }
    if !["bpf", "pread"].contains(&lane.as_str()) {
        return Err(usage::wrong(format!("--lane {lane} is neither bpf nor pread"), USAGE));
    }
    match what.as_str() {
        "quiet" => {
            can(place)?;
            quiet::bench(place, &kernel, minutes, json.as_deref())
        }
        "burst" => native::bench(json.as_deref()),
        "store" => store::bench(hours, json.as_deref()),
        "viewer" => viewer::bench(json.as_deref()),
        "churn" => churn::bench(cgroups, json.as_deref()),
        "evidence" => {
            let again = match (&folder, &agent) {
                (Some(folder), Some(agent)) => Some((folder.as_path(), agent.as_path())),
                (None, None) => None,
                _ => return Err(usage::wrong("--judge and --agent go together".to_owned(), USAGE)),
            };
            if again.is_none() {
                can(place)?;
            }
            let asked = judge::Asked { place, kills, lane: &lane, json: json.as_deref() };
            evidence::bench(&evidence::Options { kernel: &kernel, asked, again })
        }
        _ => Err(usage::wrong(format!("no benchmark `{what}`"), USAGE)),
    }
}

/// The least of it that has every kind of kill, for `test --long`.
pub fn short(kernel: &str) -> Result<i32> {
    let asked = judge::Asked { place: Place::Vm, kills: 20, lane: "bpf", json: None };
    evidence::bench(&evidence::Options { kernel, asked, again: None })
}

/// First of all, so that a machine that lacks something says so before minutes of compiling.
fn can(place: Place) -> Result<()> {
    match place {
        Place::Vm => setup::vm(),
        Place::Host => cgroup::usable(Path::new(demo::CGROUP_ROOT)).context("--host: not on this machine"),
    }
}

/// The inner half, in the test VM.
fn played(words: &[String]) -> Result<i32> {
    match words {
        [what, out, agent, workload, truth, kills, node_kills, lane] if what == "evidence" => {
            play::play(&play::Words {
                out: Path::new(out),
                agent: Path::new(agent),
                workload: Path::new(workload),
                truth: Path::new(truth),
                kills: count(kills, "kills")?,
                node_kills: node_kills.parse().context("node kills")?,
                lane,
            })?;
            Ok(0)
        }
        [what, out, agent, workload, minutes] if what == "quiet" => {
            quiet::play(Path::new(out), Path::new(agent), Path::new(workload), count(minutes, "minutes")?)?;
            Ok(0)
        }
        [what, out, agent, reader, alone, load, containers @ ..] if what == "sampler" => {
            let containers = containers.iter().map(|n| count(n, "containers")).collect::<Result<Vec<_>>>()?;
            sampler::play(
                Path::new(out),
                Path::new(agent),
                Path::new(reader),
                Path::new(alone),
                load,
                &containers,
            )?;
            Ok(0)
        }
        _ => bail!(
            "usage: bench --play quiet OUT AGENT WORKLOAD MINUTES, bench --play evidence OUT AGENT WORKLOAD TRUTH KILLS NODE-KILLS LANE, or bench --play sampler OUT AGENT READER ALONE LOAD CONTAINERS…"
        ),
    }
}
