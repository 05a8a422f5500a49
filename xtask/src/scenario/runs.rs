//! The record of a run, `RUN/run.json` in the folder of runs. It is written before anything of the run is started, so that a run whose xtask
//! was killed can still be asked for, stopped and exported. Must never be read half written: it is renamed into its place.
//! Called by `run`, `cluster` and `verbs`.
//!
//! Who plays a run and who stops it are two processes that share this file: the one that plays reads it anew before it writes,
//! and gives up when its state is no longer `playing`.

use super::pods::Seen;
use super::{Scenario, manifest, names};
use crate::cluster::Cluster;
use crate::usage::Usage;
use crate::{clock, paths};
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::{fmt, fs, process};

const FILE: &str = "run.json";

/// Where a run is played.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    Vm,
    Host,
    Kind(String),
    Minikube(String),
    /// Any other cluster, by its context in the user's kubeconfig.
    Context(String),
}

impl Place {
    /// The context of a cluster; `None` where there is none.
    pub fn context(&self) -> Option<String> {
        match self {
            Self::Vm | Self::Host => None,
            Self::Kind(name) => Some(Cluster::Kind(name.clone()).context()),
            Self::Minikube(name) => Some(Cluster::Minikube(name.clone()).context()),
            Self::Context(name) => Some(name.clone()),
        }
    }

    /// The command that brings agents and workload there.
    pub fn deploy(&self) -> String {
        match self {
            Self::Kind(name) => format!("cargo xtask cluster deploy --kind {name}"),
            Self::Minikube(name) => format!("cargo xtask cluster deploy --minikube {name}"),
            _ => "helm upgrade --install fgm deploy/helm --namespace fgm --create-namespace".to_owned(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm => f.write_str("vm"),
            Self::Host => f.write_str("host"),
            Self::Kind(name) => write!(f, "kind {name}"),
            Self::Minikube(name) => write!(f, "minikube {name}"),
            Self::Context(name) => write!(f, "context {name}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Playing,
    /// It came to its end by itself.
    Ended,
    Stopped,
    /// It could not be played; `error` says why.
    Failed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Playing => "playing",
            Self::Ended => "ended",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        })
    }
}

/// A process, told from a later one of the same number by when it began.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    began: u64,
}

impl Process {
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may have blanks and parentheses of its own; `starttime` is the 20th word behind it.
        let mut words = stat.rsplit_once(") ")?.1.split(' ');
        (words.next() != Some("Z")).then_some(())?;
        Some(Self { pid, began: words.nth(18)?.parse().ok()? })
    }

    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    #[serde(rename = "run")]
    pub id: String,
    pub scenario: String,
    pub place: Place,
    /// On each object that it has in a cluster.
    pub label: String,
    pub state: State,
    pub error: Option<String>,
    /// Whether all that was told was as expected, where it was judged.
    pub good: Option<bool>,
    pub from_us: i64,
    /// What was recorded later is not exported.
    pub to_us: Option<i64>,
    /// When the scenario was over, by Kubernetes' word.
    pub over_us: Option<i64>,
    /// Who plays it.
    pub watcher: Option<Process>,
    /// Where its other files are.
    pub folder: PathBuf,
    /// The program that asks the agents.
    pub fgm: PathBuf,
    #[serde(default)]
    pub seen: Seen,
}

/// The folder of runs: `$FGM_RUNS`, else `target/scenario`.
pub fn folder() -> PathBuf {
    let set = std::env::var_os("FGM_RUNS").filter(|v| !v.is_empty());
    set.map_or_else(|| paths::target().join("scenario"), PathBuf::from)
}

impl Run {
    /// A run that nothing is known of yet, and its folder.
    pub fn begin(scenario: &str, place: Place, out: Option<PathBuf>, fgm: PathBuf) -> Result<Self> {
        let own = claim(scenario)?;
        let id = own.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let folder = out.unwrap_or(own);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let folder = folder.canonicalize().with_context(|| format!("no folder {}", folder.display()))?;
        let run = Self::new(id, scenario, place, folder, fgm);
        run.save()?;
        Ok(run)
    }

    /// One that is only spoken of.
    pub fn planned(scenario: &str, place: Place, fgm: PathBuf) -> Self {
        let id = format!("{scenario}-{}", clock::stamp());
        let own = folder().join(&id);
        Self::new(id, scenario, place, own, fgm)
    }

    fn new(id: String, scenario: &str, place: Place, folder: PathBuf, fgm: PathBuf) -> Self {
        Self {
            label: format!("{}={id}", manifest::RUN_LABEL),
            id,
            scenario: scenario.to_owned(),
            place,
            state: State::Playing,
            error: None,
            good: None,
            from_us: clock::wall_us(),
            to_us: None,
            over_us: None,
            watcher: Process::of(process::id()),
            folder,
            fgm,
            seen: Seen::default(),
        }
    }

    pub fn load(id: &str) -> Result<Self> {
        let path = folder().join(id).join(FILE);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    pub fn save(&self) -> Result<()> {
        let path = folder().join(&self.id).join(FILE);
        let fresh = path.with_extension(format!("{}.new", process::id()));
        fs::write(&fresh, serde_json::to_string_pretty(self)?)
            .and_then(|()| fs::rename(&fresh, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// This process plays it from now on.
    pub fn adopt(&mut self) -> Result<()> {
        self.watcher = Process::of(process::id());
        self.save()
    }

    /// What another process has made of it meanwhile.
    pub fn is_stopped(&self) -> Result<bool> {
        Ok(Self::load(&self.id)?.state != State::Playing)
    }

    /// It is over; who stopped it has said so before.
    pub fn finish(&mut self, state: State) -> Result<()> {
        self.state = if self.is_stopped()? { State::Stopped } else { state };
        self.to_us.get_or_insert(clock::wall_us());
        self.save()
    }

    pub fn is_watched(&self) -> bool {
        self.watcher.is_some_and(Process::is_alive)
    }

    pub fn context(&self) -> Option<String> {
        self.place.context()
    }

    /// Its own in a cluster, so that what is in it is its and nobody else's.
    pub fn namespace(&self) -> String {
        manifest::namespace(&self.id)
    }

    pub fn scenario(&self) -> Result<Scenario> {
        Scenario::load(&self.scenario)
    }
}

/// A folder that no other run has.
fn claim(scenario: &str) -> Result<PathBuf> {
    let all = folder();
    fs::create_dir_all(&all).with_context(|| format!("cannot create {}", all.display()))?;
    let stamp = clock::stamp();
    for n in 1..100 {
        let more = if n == 1 { String::new() } else { format!("-{n}") };
        let own = all.join(format!("{scenario}-{stamp}{more}"));
        match fs::create_dir(&own) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => {
                other.with_context(|| format!("cannot create {}", own.display()))?;
                return Ok(own);
            }
        }
    }
    bail!("a hundred runs of {scenario} in one second");
}

/// All runs, the newest first. What is no run's folder is passed by.
pub fn all() -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(folder()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if entry.path().join(FILE).exists() {
            runs.push(Run::load(&name.to_string_lossy())?);
        }
    }
    runs.sort_by(|a, b| (b.from_us, &b.id).cmp(&(a.from_us, &a.id)));
    Ok(runs)
}

/// The run of that id, or the newest one of the scenario of that name.
pub fn find(word: &str) -> Result<Run> {
    if !word.contains('/') && folder().join(word).join(FILE).exists() {
        return Run::load(word);
    }
    if let Some(run) = all()?.into_iter().find(|r| r.scenario == word) {
        return Ok(run);
    }
    let why = if names().iter().any(|n| n == word) {
        format!("scenario {word} has not been run: cargo xtask scenario run {word}")
    } else {
        format!(
            "`{word}` is neither a run nor a scenario: cargo xtask scenario status lists the runs in {}, \
             cargo xtask scenario list the scenarios",
            folder().display()
        )
    };
    Err(Usage(why).into())
}

/// What a later verb finds in a run's folder, or where it would be.
pub fn record_of(folder: &Path, scenario: &str) -> PathBuf {
    folder.join(format!("{scenario}.json"))
}

#[cfg(test)]
mod tests {
    use super::{Place, Process};

    #[test]
    fn a_place_has_the_context_that_its_tool_gives_it() {
        for (place, context) in [
            (Place::Vm, None),
            (Place::Kind("a".into()), Some("kind-a")),
            (Place::Minikube("a".into()), Some("a")),
            (Place::Context("b@c".into()), Some("b@c")),
        ] {
            assert_eq!(place.context().as_deref(), context);
        }
    }

    #[test]
    fn a_process_is_no_other_one_of_its_number() {
        let own = Process::of(std::process::id()).expect("we are there");
        assert!(own.is_alive());
        assert!(!Process { began: own.began + 1, ..own }.is_alive());
        assert!(!Process { pid: u32::MAX, ..own }.is_alive());
    }
}
