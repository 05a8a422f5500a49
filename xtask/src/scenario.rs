//! `cargo xtask scenario list|run|status|logs|stop|export|manifests`: workloads in cgroups of their own, the agent that watches them, and whether it saw
//! what there was to see. A scenario is a folder `scenarios/NAME`: what is played (`scenario.toml`), what must and must not be
//! told of it (`expect.toml`), the same for a cluster (`deploy.yaml`, rendered from the first), a dashboard and a README.
//! Called by a person, by `demo` and by `test`.

mod ask;
mod cluster;
mod expect;
#[cfg(test)]
mod expect_in_cluster;
mod manifest;
mod outcome;
mod play;
mod pods;
mod run;
mod runs;
mod stage;
mod verbs;

pub use expect::Expect;
pub use run::{GROUP, group, names};
pub use stage::Running;

use crate::usage::{self, Usage};
use crate::{child, ebpf, paths};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    #[serde(skip)]
    pub name: String,
    pub title: String,
    pub description: String,
    /// It is over when this container has ended for good…
    ends_with: Option<String>,
    /// …or after so many seconds.
    length_s: Option<u64>,
    /// After so many seconds it has failed.
    timeout_s: u64,
    /// Seconds from start to the moment that the scenario is about; progress is drawn against it.
    pub climax_s: u32,
    container: Vec<Container>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Container {
    pod: String,
    name: String,
    /// Words of the workload. `{scratch}`: a file on a disk; `{listen}`: the own address; `{at:NAME}`: that of container NAME.
    role: Vec<String>,
    /// Control files to write, by the kernel's names. `{disk}` in a value: number of the disk that has the scratch file.
    #[serde(default)]
    files: BTreeMap<String, String>,
    /// How often it is started again after its end.
    #[serde(default)]
    restarts: u32,
    /// So many pods of this one container, one after the other…
    #[serde(default = "one")]
    copies: u32,
    /// …so many seconds apart.
    #[serde(default)]
    every_s: f64,
    /// TCP port, where others come to it.
    port: Option<u16>,
}

fn one() -> u32 {
    1
}

pub fn folder() -> PathBuf {
    paths::root().join("scenarios")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

impl Scenario {
    pub fn load(name: &str) -> Result<Self> {
        let path = folder().join(name).join("scenario.toml");
        if !path.exists() {
            return Err(Usage(format!(
                "no scenario `{name}`: there is no {}; there are: {}",
                path.display(),
                names().join(", ")
            ))
            .into());
        }
        let scenario = Self::parse(&read(&path)?).with_context(|| path.display().to_string())?;
        Ok(Self { name: name.to_owned(), ..scenario })
    }

    /// What must and must not be told of it.
    pub fn expect(&self) -> Result<Expect> {
        let path = folder().join(&self.name).join("expect.toml");
        let expect = Expect::parse(&read(&path)?).with_context(|| path.display().to_string())?;
        for name in expect.containers() {
            if !self.container.iter().any(|c| c.name == name) {
                bail!("{}: no container is called `{name}`", path.display());
            }
        }
        Ok(expect)
    }

    fn parse(text: &str) -> Result<Self> {
        let scenario: Self = toml::from_str(text)?;
        let all = &scenario.container;
        if scenario.ends_with.is_some() == scenario.length_s.is_some() {
            bail!("either `ends_with` or `length_s` says when it is over");
        }
        if let Some(name) = &scenario.ends_with
            && !all.iter().any(|c| c.name == *name)
        {
            bail!("ends_with: no container is called `{name}`");
        }
        for (n, c) in all.iter().enumerate() {
            if all[..n].iter().any(|other| other.name == c.name) {
                bail!("two containers are called `{}`", c.name);
            }
            if c.copies > 1 && (c.restarts > 0 || all.iter().filter(|o| o.pod == c.pod).count() > 1) {
                bail!("container {}: `copies` is for a pod of one container that ends for good", c.name);
            }
            for other in c.role.iter().filter_map(|w| w.strip_prefix("{at:")?.strip_suffix('}')) {
                if !all.iter().any(|o| o.name == other && o.port.is_some()) {
                    bail!("container {}: no container with a port is called `{other}`", c.name);
                }
            }
        }
        Ok(scenario)
    }
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

const USAGE: &str = "cargo xtask scenario list [--json] | build | manifests [--write] | \
                     judge RUN-FOLDER | run --all [--kernel SERIES] | \
                     run NAME [--on vm|host|kind|minikube] [--cluster NAME] [--context NAME] [--kernel SERIES] [--out DIR] \
                     [--fgm PROGRAM] [--detach] [--dry-run] [--json] | status [NAME|RUN] [--json] | \
                     logs NAME|RUN [--follow] | stop NAME|RUN [--json] | export NAME|RUN [--json]";

pub fn verb(args: &[OsString]) -> Result<i32> {
    let words: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["list"] => {
            for name in names() {
                println!("{name:16} {}", Scenario::load(&name)?.title);
            }
        }
        ["list", "--json"] => {
            let one = |name: &String| {
                let s = Scenario::load(name)?;
                Ok(
                    serde_json::json!({"scenario": name, "title": s.title, "description": s.description.trim()}),
                )
            };
            println!("{}", serde_json::to_string(&names().iter().map(one).collect::<Result<Vec<_>>>()?)?);
        }
        ["build"] => println!("{}", workload()?.display()),
        ["manifests", "--write"] => manifest::write_all()?,
        ["manifests"] => return manifest::check_all(),
        ["--play", out, agent, workload, names @ ..] => {
            play::play(Path::new(out), Path::new(agent), Path::new(workload), names)?;
        }
        ["--watch", id] => return run::watch(id),
        ["status", words @ ..] => return verbs::status(words, USAGE),
        ["logs", words @ ..] => return verbs::logs(words, USAGE),
        ["stop", words @ ..] => return verbs::stop(words, USAGE),
        ["export", words @ ..] => return verbs::export(words, USAGE),
        ["judge", out] => return run::judge(Path::new(out)),
        ["run", "--all", options @ ..] => return run::all(options, USAGE),
        ["run", name, options @ ..] if !name.starts_with('-') => return run::verb(name, options, USAGE),
        _ => {
            let what = "neither list, build, manifests, judge, run, status, logs, stop nor export";
            return Err(usage::wrong(what, USAGE));
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::{Scenario, folder, names, read};

    #[test]
    fn every_scenario_in_the_tree_is_whole() {
        let names = names();
        assert!(names.len() >= 13, "{names:?}");
        let catalogue = read(&folder().join("../docs/metrics.md")).expect("the catalogue");
        for name in names {
            let scenario = Scenario::load(&name).expect(&name);
            let length = scenario.length_s.unwrap_or_else(|| scenario.climax_s.into());
            assert!(length < scenario.timeout_s, "{name}");
            assert!(!scenario.description.is_empty(), "{name}");
            let expect = scenario.expect().expect(&name);
            assert!(!expect.containers().is_empty(), "{name}: nothing is expected of it");
            let readme = read(&folder().join(&name).join("README.md")).expect("a README.md");
            assert!(readme.starts_with(&format!("# {name}\n")), "{name}: README.md has another title");
            let text = read(&folder().join(&name).join("dashboard.json")).expect("a dashboard.json");
            let dashboard: serde_json::Value = serde_json::from_str(&text).expect(&name);
            assert_eq!(dashboard["format"], 1, "{name}");
            let panels = dashboard["panels"].as_array().expect("panels");
            assert!(panels.len() >= 3, "{name}");
            for metric in panels.iter().filter_map(|p| p["metrics"].as_array()).flatten() {
                let metric = metric.as_str().and_then(|m| m.rsplit(':').next()).expect("a name");
                assert!(catalogue.contains(&format!("`{metric}`")), "{name}: no metric is called {metric}");
            }
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let text = read(&folder().join("shop/scenario.toml")).expect("the scenario");
        for (from, to) in [
            ("climax_s", "climacs_s"),
            ("length_s", "# length_s"),
            ("{at:backend}", "{at:nobody}"),
            ("name = \"store\"", "name = \"backend\""),
            ("restarts = 1", "restarts = 1\ncopies = 2"),
        ] {
            assert!(text.contains(from), "{from}");
            assert!(Scenario::parse(&text.replace(from, to)).is_err(), "{from} → {to}");
        }
    }
}
