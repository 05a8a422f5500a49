//! `cargo xtask cluster create|deploy|status|viewer|destroy`: the agent on a kind or minikube cluster of one's own, by the tools that
//! a person would use. Must never touch another context of the user's kubeconfig than that of the cluster it was told.
//! Called by a person; tests/cluster.rs holds the exact calls against stand-ins of the tools.

use crate::child::{self, tool};
use crate::image::{self, Of, Profile};
use crate::paths::{self, which};
use crate::progress::{quiet, say};
use crate::usage;
use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const USAGE: &str = "cargo xtask cluster create|deploy|status|viewer|destroy --kind NAME|--minikube PROFILE \
                     [--image FILE]… [--node NODE] [--port 8050] [--dry-run]";
pub const NAMESPACE: &str = "fgm";
/// A node image is fetched by the first of them.
const CREATE: Duration = Duration::from_mins(15);
const STEP: Duration = Duration::from_mins(5);

/// A tool, and the command that gets it.
const TOOLS: [(&str, &str); 4] = [
    ("kind", "go install sigs.k8s.io/kind@latest"),
    (
        "minikube",
        "curl -LO https://storage.googleapis.com/minikube/releases/latest/minikube-linux-amd64 && \
         sudo install minikube-linux-amd64 /usr/local/bin/minikube",
    ),
    (
        "kubectl",
        "curl -LO \"https://dl.k8s.io/release/$(curl -Ls https://dl.k8s.io/release/stable.txt)/bin/linux/amd64/kubectl\" && \
         sudo install kubectl /usr/local/bin/kubectl",
    ),
    ("helm", "curl -fsSL https://raw.githubusercontent.com/helm/helm/main/scripts/get-helm-3 | bash"),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verb {
    Create,
    Deploy,
    Status,
    Viewer,
    Destroy,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Cluster {
    Kind(String),
    Minikube(String),
}

#[derive(Debug, PartialEq)]
struct Args {
    verb: Verb,
    cluster: Cluster,
    images: Vec<PathBuf>,
    node: Option<String>,
    port: u16,
    dry_run: bool,
}

impl Args {
    fn parse(words: &[String]) -> Result<Self> {
        let mut words = words.iter().map(String::as_str);
        let verb = match words.next() {
            Some("create") => Verb::Create,
            Some("deploy") => Verb::Deploy,
            Some("status") => Verb::Status,
            Some("viewer") => Verb::Viewer,
            Some("destroy") => Verb::Destroy,
            Some(other) => return Err(usage::wrong(format!("no verb `{other}`"), USAGE)),
            None => return Err(usage::wrong("no verb", USAGE)),
        };
        let (mut cluster, mut images, mut node, mut port, mut dry_run) =
            (None, Vec::new(), None, 8050, false);
        while let Some(word) = words.next() {
            let mut value = || usage::value(words.next(), word, USAGE).map(str::to_owned);
            match word {
                "--kind" | "--minikube" if cluster.is_some() => {
                    return Err(usage::wrong("two clusters are named, and one is meant", USAGE));
                }
                "--kind" => cluster = Some(Cluster::Kind(named(&value()?, USAGE)?)),
                "--minikube" => cluster = Some(Cluster::Minikube(named(&value()?, USAGE)?)),
                "--image" if verb == Verb::Deploy => images.push(PathBuf::from(value()?)),
                "--node" if verb == Verb::Viewer => node = Some(named(&value()?, USAGE)?),
                "--port" if verb == Verb::Viewer => {
                    let text = value()?;
                    port =
                        text.parse().map_err(|_| usage::wrong(format!("--port {text} is no port"), USAGE))?;
                }
                "--dry-run" => dry_run = true,
                _ => return Err(usage::wrong(format!("unknown option `{word}`"), USAGE)),
            }
        }
        let cluster = cluster.ok_or_else(|| usage::wrong("neither --kind nor --minikube", USAGE))?;
        Ok(Self { verb, cluster, images, node, port, dry_run })
    }
}

/// As clusters, profiles and nodes are named: never an option, never a path.
pub fn named(name: &str, usage: &str) -> Result<String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    if name.is_empty() || name.starts_with(['-', '.']) || !name.chars().all(good) {
        return Err(usage::wrong(
            format!(
                "`{name}` is no name: lower-case letters, digits, `-` and `.`, not `-` or `.` at the start"
            ),
            usage,
        ));
    }
    Ok(name.to_owned())
}

fn words(line: &[&str]) -> Vec<String> {
    line.iter().map(|w| (*w).to_owned()).collect()
}

impl Cluster {
    /// Its name in the user's kubeconfig, by the tool's own rule.
    pub fn context(&self) -> String {
        match self {
            Self::Kind(name) => format!("kind-{name}"),
            Self::Minikube(profile) => profile.clone(),
        }
    }

    fn name(&self) -> &str {
        let (Self::Kind(name) | Self::Minikube(name)) = self;
        name
    }

    fn create(&self) -> Vec<String> {
        match self {
            Self::Kind(name) => words(&["kind", "create", "cluster", "--name", name, "--wait", "180s"]),
            Self::Minikube(profile) => words(&["minikube", "start", "--profile", profile]),
        }
    }

    fn load(&self, archive: &Path) -> Vec<String> {
        let file = archive.to_string_lossy();
        match self {
            Self::Kind(name) => words(&["kind", "load", "image-archive", &file, "--name", name]),
            Self::Minikube(profile) => words(&["minikube", "image", "load", &file, "--profile", profile]),
        }
    }

    fn destroy(&self) -> Vec<String> {
        match self {
            Self::Kind(name) => words(&["kind", "delete", "cluster", "--name", name]),
            Self::Minikube(profile) => words(&["minikube", "delete", "--profile", profile]),
        }
    }

    fn kubectl(&self, rest: &[&str]) -> Vec<String> {
        let mut line = words(&["kubectl", "--context", &self.context(), "--namespace", NAMESPACE]);
        line.extend(words(rest));
        line
    }

    /// `mark` changes with the image, so that the same tag with another content is rolled out too.
    fn install(&self, chart: &Path, mark: &str) -> Vec<String> {
        let (context, chart) = (self.context(), chart.to_string_lossy());
        let (cluster, mark) =
            (format!("cluster={}", self.name()), format!("podAnnotations.fgm-image={mark}"));
        words(&[
            "helm",
            "upgrade",
            "--install",
            "fgm",
            &chart,
            "--kube-context",
            &context,
            "--namespace",
            NAMESPACE,
            "--create-namespace",
            "--set-string",
            &cluster,
            "--set-string",
            &mark,
        ])
    }

    fn pods(&self, node: Option<&str>) -> Vec<String> {
        let mut line = self.kubectl(&["get", "pods", "--selector", "app.kubernetes.io/name=fgm"]);
        if let Some(node) = node {
            line.extend(words(&["--field-selector", &format!("spec.nodeName={node}")]));
        }
        line.extend(words(&["--output", "name"]));
        line
    }
}

/// The tools that a verb needs, all looked for before the first is run.
fn tools(args: &Args) -> Vec<&'static str> {
    let own = match args.cluster {
        Cluster::Kind(_) => "kind",
        Cluster::Minikube(_) => "minikube",
    };
    match args.verb {
        Verb::Create | Verb::Destroy => vec![own],
        Verb::Deploy => vec![own, "helm", "kubectl"],
        Verb::Status | Verb::Viewer => vec!["kubectl"],
    }
}

/// An error that names each that is not there, with the command that gets it.
pub fn look_for(tools: &[&str]) -> Result<()> {
    let mut missing = String::new();
    for &name in tools {
        if which(name).is_none() {
            let get = TOOLS.iter().find(|(tool, _)| *tool == name).map_or("", |(_, get)| get);
            write!(missing, "\n  {name} is not in PATH. To get it:\n    {get}")?;
        }
    }
    if !missing.is_empty() {
        bail!("a tool is missing:{missing}");
    }
    Ok(())
}

pub fn verb(args: &[OsString]) -> Result<i32> {
    let words: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let args = Args::parse(&words)?;
    if !args.dry_run {
        look_for(&tools(&args))?;
    }
    let cluster = &args.cluster;
    let run = Runner { dry_run: args.dry_run, cluster: cluster.context() };
    match args.verb {
        Verb::Create => run.step("creating the cluster", "create", CREATE, &cluster.create())?,
        Verb::Deploy => deploy(&args, &run)?,
        Verb::Status => {
            run.shown(&cluster.kubectl(&["get", "daemonset,pods", "--output", "wide"]))?;
        }
        Verb::Viewer => viewer(&args, &run)?,
        Verb::Destroy => run.step("deleting the cluster", "destroy", STEP, &cluster.destroy())?,
    }
    Ok(0)
}

/// Builds (unless told what there is), loads, installs, waits for every node's agent.
fn deploy(args: &Args, run: &Runner) -> Result<()> {
    let cluster = &args.cluster;
    let mut images = args.images.clone();
    if images.is_empty() {
        for (of, tag, line) in [
            (Of::Agent, image::default_tag(), "cargo xtask image"),
            (Of::Workload, image::workload_tag(), "cargo xtask image --workload"),
        ] {
            let archive = image::archive(of);
            if args.dry_run {
                println!("{line}");
            } else {
                let certificates = image::certificates(of)?;
                let program = image::build(of, Profile::Release)?;
                image::make(of, &program, certificates.as_deref(), &archive, &tag)?;
            }
            images.push(archive);
        }
    }
    let mut mark = Sha256::new();
    for archive in &images {
        // What would be built is not there in a dry run; what was named must be.
        if !(args.dry_run && args.images.is_empty()) {
            let bytes = fs::read(archive)
                .with_context(|| format!("no image {}: cargo xtask image makes one", archive.display()))?;
            mark.update(bytes);
        }
    }
    let mut hex = String::new();
    for byte in mark.finalize().iter().take(8) {
        write!(hex, "{byte:02x}")?;
    }
    for archive in &images {
        run.step("loading an image", "load", STEP, &cluster.load(archive))?;
    }
    let chart = paths::root().join("deploy/helm");
    run.step("installing the chart", "install", STEP, &cluster.install(&chart, &hex))?;
    // hostPID and hostPath; the chart does not own its namespace. The DaemonSet's controller tries again.
    let label =
        ["label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=privileged", "--overwrite"];
    run.step("labelling the namespace", "label", STEP, &cluster.kubectl(&label))?;
    let rollout = ["rollout", "status", "daemonset/fgm", "--timeout", "240s"];
    run.step("waiting for every node's agent", "rollout", STEP, &cluster.kubectl(&rollout))
}

/// Forwards a port to one node's agent until it is interrupted.
fn viewer(args: &Args, run: &Runner) -> Result<()> {
    let pods = args.cluster.pods(args.node.as_deref());
    let found = if args.dry_run {
        println!("{}", pods.join(" "));
        "POD".to_owned()
    } else {
        child::output(&mut command(&pods))?
    };
    let Some(pod) = found.lines().next().filter(|p| !p.is_empty()) else {
        let node = args.node.as_ref().map(|n| format!(" on node {n}")).unwrap_or_default();
        bail!("no agent runs{node} in {}: cargo xtask cluster deploy installs it", args.cluster.context());
    };
    let ports = format!("{}:8050", args.port);
    if !args.dry_run {
        say(&format!("the viewer of {pod} is at http://127.0.0.1:{}/ until you press Ctrl-C", args.port));
    }
    run.shown(&args.cluster.kubectl(&["port-forward", "--address", "127.0.0.1", pod, &ports]))
}

/// Runs commands, or shows them.
struct Runner {
    dry_run: bool,
    cluster: String,
}

pub fn command(line: &[String]) -> Command {
    let mut c = tool(line.first().map_or("", String::as_str));
    c.args(line.iter().skip(1));
    c
}

impl Runner {
    /// What it says goes to a log.
    fn step(&self, what: &str, log: &str, limit: Duration, line: &[String]) -> Result<()> {
        if self.dry_run {
            println!("{}", line.join(" "));
            return Ok(());
        }
        quiet(what, &format!("cluster-{}-{log}", self.cluster), limit, &mut command(line))
    }

    /// What it says is the answer.
    fn shown(&self, line: &[String]) -> Result<()> {
        if self.dry_run {
            println!("{}", line.join(" "));
            return Ok(());
        }
        child::run(&mut command(line))
    }
}

#[cfg(test)]
mod tests {
    use super::{Args, Cluster, Verb, tools};

    fn parse(line: &str) -> anyhow::Result<Args> {
        Args::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_context_is_named_by_each_tools_own_rule() {
        assert_eq!(Cluster::Kind("a".into()).context(), "kind-a");
        assert_eq!(Cluster::Minikube("a".into()).context(), "a");
    }

    #[test]
    fn wrong_words_are_refused() {
        for line in [
            "",
            "create",
            "dance --kind a",
            "create --kind",
            "create --kind -a",
            "create --kind ../a",
            "create --kind a --minikube b",
            "create --kind a --image x",
            "viewer --kind a --port 70000",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        let args = parse("viewer --minikube m --node n --port 1 --dry-run").expect("right words");
        assert_eq!((args.verb, args.port, args.dry_run), (Verb::Viewer, 1, true));
        assert_eq!(tools(&args), ["kubectl"]);
    }
}
