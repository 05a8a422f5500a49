//! `fgm doctor`: what this machine offers the agent, what is missing, what that costs and how to mend it.
//!
//! It does what the agent does at its start, by the same code: surveys the machine, loads and attaches the probes, binds
//! the addresses; then it lets go of all. It writes nothing. Beside a running agent it may be run at any time.

use super::{Failure, configuration, log_to_stderr, output};
use crate::bucket::Bucket;
use crate::config::Config;
use crate::discovery::{Rules, Tree};
use crate::machine::{self, Finding, Machine, Standing};
use crate::names::Scope;
use crate::probes::{Hook, Ladder};
use crate::{pipeline, sampler, store, viewer};
use clap::Args;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;

const EXIT_CODES: &str = "Exit codes:
  0  all is there
  1  the agent works here, with less: what is missing is marked with -
  2  the agent cannot work here (or the command line or the configuration is wrong)";
/// Cgroups whose files are timed.
const COST_CGROUPS: usize = 200;
/// Less than this is soon full: an hour of a node of 200 containers before its compaction.
const FREE_BYTES: u64 = 512 << 20;

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct DoctorArgs {
    /// The agent's configuration (TOML); without it the defaults and the environment count.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Time the reading of each file, over the cgroups that are here.
    #[arg(long)]
    cost: bool,
}

/// Runs it and gives the exit code.
pub fn run(args: &DoctorArgs) -> Result<u8, Failure> {
    log_to_stderr("error");
    let config = configuration(args.config.as_deref())?;
    let mut findings = machine::survey(&config.cgroup_root);
    findings.push(data_folder(&config));
    findings.push(addresses(&config, findings.last().is_some_and(|f| f.standing == Standing::Note)));
    findings.extend(bucket(&config));
    let can_start = findings[0].standing != Standing::Broken;
    let ladder =
        if can_start { pipeline::ladder(&config) } else { Ok(Ladder::none("no cgroup v2".to_owned())) };
    let ladder = ladder.unwrap_or_else(|e| {
        findings.push(Finding::broken("probes", &*e.into_boxed_dyn_error()));
        Ladder::none("the configuration asks for what is not to be had".to_owned())
    });
    findings.push(built_in());
    findings.extend(ladder.hooks.iter().map(hook));
    let standing = findings.iter().map(|f| f.standing).max().unwrap_or(Standing::Good);
    let (verdict, code) = match standing {
        Standing::Good | Standing::Note => ("well", 0),
        Standing::Degraded => ("degraded", 1),
        Standing::Broken => ("broken", 2),
    };
    let works = if code == 2 { "nothing: the agent does not start" } else { ladder.works };
    let cost = if args.cost && can_start { cost(&config) } else { Vec::new() };
    let text = if args.json {
        let mut report = json!({
            "verdict": verdict,
            "agent_version": env!("CARGO_PKG_VERSION"),
            "kernel": Machine::kernel(),
            "cgroup_root": config.cgroup_root.display().to_string(),
            "level": ladder.level,
            "works": works,
            "reason": ladder.reason,
            "findings": findings,
        });
        if args.cost {
            report["cost"] = json!(cost);
        }
        format!("{}\n", pretty(&report))
    } else {
        table(verdict, works, &ladder, &findings) + &cost_table(&cost)
    };
    output::print(&text)?;
    Ok(code)
}

fn pretty(report: &Value) -> String {
    serde_json::to_string_pretty(report).unwrap_or_else(|_| report.to_string())
}

fn built_in() -> Finding {
    if crate::probes::embedded() {
        return Finding::good("kernel programs", "built in");
    }
    Finding::degraded(
        "kernel programs",
        "this agent was built without them",
        "no probes, whatever the machine offers",
        "cargo xtask build-ebpf, then build the agent again",
    )
}

/// A note when an agent has it already.
fn data_folder(config: &Config) -> Finding {
    let dir = config.data_dir.display();
    match store::look(&config.data_dir) {
        Err(e) => Finding::broken("data folder", &e),
        Ok(look) => {
            let free = look.free_bytes >> 20;
            let state = if look.exists { "writable" } else { "will be created" };
            match look.in_use_by {
                Some(pid) => Finding::note(
                    "data folder",
                    format!("{dir}, held by the running agent (pid {pid}), {free} MiB free"),
                ),
                None if look.free_bytes < FREE_BYTES => Finding::degraded(
                    "data folder",
                    format!("{dir}, {state}, {free} MiB free"),
                    "soon full: then nothing more is written",
                    "name a folder on a larger disk with data_dir",
                ),
                None => Finding::good("data folder", format!("{dir}, {state}, {free} MiB free")),
            }
        }
    }
}

/// One LIST of what is below the prefix; nothing where nothing is to be shipped.
fn bucket(config: &Config) -> Option<Finding> {
    if !config.ship.is_on() {
        return None;
    }
    let degraded = |error: String| {
        let costs = "finished hours and incidents stay on this node until retention wants their room";
        let (found, mend) = error.split_once("; ").unwrap_or((&error, "none is known"));
        Finding::degraded("bucket", found, costs, mend)
    };
    let ask = || -> Result<usize, String> {
        let bucket = Bucket::open(&config.ship).map_err(|e| e.to_string())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| format!("cannot start a runtime: {e}"))?;
        runtime.block_on(bucket.folders("v1")).map(|found| found.len()).map_err(|e| e.to_string())
    };
    Some(match ask() {
        Ok(tables) => {
            Finding::good("bucket", format!("{}: answers, {tables} tables are there", config.ship.url))
        }
        Err(error) => degraded(error),
    })
}

fn addresses(config: &Config, is_running: bool) -> Finding {
    let both = format!("{} and {}", config.listen, config.health_listen);
    match viewer::bind_both(config) {
        Ok(_) => Finding::good("addresses", format!("{both} are free")),
        Err(viewer::ServeError::Taken { .. }) if is_running => {
            Finding::note("addresses", format!("{both}: taken, as by the running agent"))
        }
        Err(e) => Finding::broken("addresses", &e),
    }
}

/// A rung: degraded when there is nothing, or only what stands in for a probe.
fn hook(hook: &Hook) -> Finding {
    let name = format!("hook {} ({})", hook.hook, hook.event);
    match (hook.mechanism, &hook.error) {
        (Some(how @ ("pread" | "inotify" | "poll" | "scan")), error) => Finding::degraded(
            name,
            format!("by {how}"),
            hook.costs,
            error.as_deref().unwrap_or("see the probes above"),
        ),
        (Some(how), None) => Finding::good(name, how),
        (Some(how), Some(error)) => Finding::note(name, format!("{how}; {error}")),
        (None, error) => {
            let error = error.as_deref().unwrap_or("the kernel gave no reason");
            let (reason, mend) = error.split_once("; ").unwrap_or((error, "none is known"));
            Finding::degraded(name, format!("not attached: {reason}"), hook.costs, mend)
        }
    }
}

/// For a person: a line a finding, and what to do below those that need it.
fn table(verdict: &str, works: &str, ladder: &Ladder, findings: &[Finding]) -> String {
    let mut out = String::new();
    let width = findings.iter().map(|f| f.name.chars().count()).max().unwrap_or(0);
    for f in findings {
        let mark = match f.standing {
            Standing::Good => '+',
            Standing::Note => ' ',
            Standing::Degraded => '-',
            Standing::Broken => '!',
        };
        let _ = writeln!(out, "{mark} {:width$}  {}", f.name, output::printable(&f.found));
        for (what, text) in [("costs", &f.costs), ("mend", &f.mend)] {
            if let Some(text) = text {
                let _ = writeln!(out, "  {:width$}  {what}: {}", "", output::printable(text));
            }
        }
    }
    let rung = json!(ladder.level);
    let _ = writeln!(out, "\n{verdict}; rung {}: {}", rung.as_str().unwrap_or_default(), works);
    if let Some(reason) = &ladder.reason {
        let _ = writeln!(out, "  since {}", output::printable(reason));
    }
    out
}

fn cost(config: &Config) -> Vec<sampler::Cost> {
    let Ok(mut tree) = Tree::new(&config.cgroup_root, Rules::default(), config.sampling.max_cgroups) else {
        return Vec::new();
    };
    tree.rescan();
    let mut nodes: Vec<_> = tree.nodes().filter(|n| n.meta.parent_id.is_some()).collect();
    // containers first: it is they who are many
    nodes.sort_by_key(|n| (n.meta.identity.scope != Scope::Container, n.meta.path.clone()));
    let paths: Vec<_> = nodes.iter().take(COST_CGROUPS).map(|n| tree.path(&n.meta)).collect();
    sampler::costs(&paths)
}

fn cost_table(costs: &[sampler::Cost]) -> String {
    let mut out = String::new();
    if costs.iter().all(|c| c.cgroups == 0) {
        return if costs.is_empty() {
            out
        } else {
            "\nno cgroup is here whose files could be timed\n".to_owned()
        };
    }
    let _ = writeln!(out, "\n{:24} {:5} {:>8} {:>9} {:>7}", "file", "tier", "cgroups", "p50 µs", "share");
    for c in costs.iter().filter(|c| c.cgroups > 0) {
        let _ = writeln!(
            out,
            "{:24} {:5} {:>8} {:>9.1} {:>6.1}%",
            c.file, c.tier, c.cgroups, c.p50_us, c.share_percent
        );
    }
    out
}
