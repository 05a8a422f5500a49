//! The command line: `fgm agent | view | export | events | incidents | analyze | metrics | inspect | compact | ship |
//! doctor | completions`.
//!
//! Turns arguments into a call of the library and its outcome into an exit code. Output goes to stdout or the named file,
//! everything else to stderr. `export`, `events` and `incidents` work on a running agent (`--server`) or on a data folder (`--data`),
//! which they never change, or on a bucket (`far`). Called by `main` only.

mod analyze;
mod compact;
mod doctor;
mod events;
mod far;
mod fetch;
mod incidents;
mod inspect;
mod local;
mod merged;
mod metrics;
mod nodes;
mod output;
mod ship;
mod view;

use crate::bucket::Bucket;
use crate::clock;
use crate::config::{Config, ConfigError};
use crate::discovery::DiscoveryError;
use crate::export::{self, Format, Problem};
use crate::fleet::Who;
use crate::viewer::ServeError;
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use serde_json::json;
use std::ffi::OsString;
use std::fmt;
use std::io::{Cursor, IsTerminal, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  failed; the reason is on stderr
  2  the command line, the configuration or the query is wrong
  3  nothing was found: no such incident, no row in the range";

const DEFAULT_SERVER: &str = "http://127.0.0.1:8050";

#[derive(Parser)]
#[command(name = "fgm", version, about = "A flight recorder for containers.", after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Record this node until SIGTERM.
    Agent(AgentArgs),
    /// Say what this machine offers the agent, what is missing, what that costs and how to mend it.
    Doctor(doctor::DoctorArgs),
    /// Write an incident or a range of samples to a file.
    Export(Box<ExportArgs>),
    /// List the recorded incidents, newest first: all of them, or those of a range.
    Incidents(incidents::IncidentsArgs),
    /// Tell what is in a file or a data folder, and whether it is well.
    Inspect(InspectArgs),
    /// Merge the segments of finished hours below v1/, in a data folder that no agent holds.
    Compact(compact::CompactArgs),
    /// Copy finished hours and incidents into a bucket, of a data folder that no agent holds.
    Ship(ship::ShipArgs),
    /// List what the kernel told (default: of 15 min, of a data folder all), or follow it.
    Events(events::EventsArgs),
    /// Say whether metrics repeat, where they changed, where they are going and when they will be at their limit.
    Analyze(analyze::AnalyzeArgs),
    /// List the metrics that can be asked for, with their meaning.
    Metrics(metrics::MetricsArgs),
    /// Serve the viewer over a data folder or a copy of one; no agent, no root.
    View(ViewArgs),
    /// Print what makes a shell complete our command line, such as `fgm completions bash > /etc/bash_completion.d/fgm`.
    Completions {
        /// bash, zsh, fish, elvish or powershell.
        shell: Shell,
    },
}

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
struct AgentArgs {
    /// Configuration file (TOML); without it the defaults and the environment count.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print every key with its default, its environment variable and its meaning.
    #[arg(long)]
    help_config: bool,
}

/// Where the data is.
#[derive(Args)]
struct Place {
    /// Address of a running agent.
    #[arg(long, value_name = "URL", default_value = DEFAULT_SERVER, conflicts_with = "data")]
    server: String,
    /// A data folder (what data_dir names, or a copy of it); read only, no agent needed.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// File with the token of that agent, where it asks for one.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
struct ViewArgs {
    /// A data folder (what data_dir names, or a copy of it), as it is at the start; a time of a bucket (s3://, gs:// or
    /// az://bucket/prefix, file:///folder); or the address of a running agent, which serves the viewer itself: then its page's
    /// address is printed once it answers.
    #[arg(value_name = "DIR|BUCKET|URL")]
    place: PathBuf,
    #[command(flatten)]
    time: TimeRange,
    /// Of a bucket this cluster alone.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Of a bucket this node alone.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Address to serve on; port 0 = any free one. The address is printed.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8050")]
    listen: SocketAddr,
    /// File with a token that requests must bring; needed beyond loopback.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print JSON: {"url"}.
    #[arg(long)]
    json: bool,
}

impl ViewArgs {
    fn who(&self) -> Who {
        Who { cluster: self.cluster.clone(), node: self.node.clone() }
    }

    /// The options that narrow a bucket: a folder is shown as a whole.
    fn of_a_bucket(&self) -> Option<(String, String)> {
        let who = [("cluster", &self.cluster), ("node", &self.node)];
        pairs(self.time.named().into_iter().chain(who)).into_iter().next()
    }
}

/// Which time.
#[derive(Args)]
struct TimeRange {
    /// The time up to now, such as 15m or 1h30m; of a data folder (--data) up to its newest reading.
    #[arg(long, conflicts_with_all = ["from", "to"])]
    range: Option<String>,
    /// Start of the range, RFC 3339 or Unix seconds.
    #[arg(long)]
    from: Option<String>,
    /// End of the range; default: now, of a data folder its newest reading.
    #[arg(long)]
    to: Option<String>,
}

impl TimeRange {
    fn named(&self) -> [(&'static str, &Option<String>); 3] {
        [("range", &self.range), ("from", &self.from), ("to", &self.to)]
    }
}

/// Options that were given, as the API's parameters.
fn pairs<'a>(named: impl IntoIterator<Item = (&'static str, &'a Option<String>)>) -> Vec<(String, String)> {
    let given = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
    given.collect()
}

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
struct InspectArgs {
    /// A Parquet file or a journal of ours, or a folder of them; nothing in it changes. Or a bucket, whose footers are read.
    #[arg(value_name = "FILE|DIR|BUCKET")]
    path: PathBuf,
    /// Print JSON: {"path", "files": […], "ledger": {…}, "problems": N}.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
struct ExportArgs {
    #[command(flatten)]
    bucket: far::InBucket,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    nodes: nodes::OnNodes,
    /// Incident to export, or `latest`.
    #[arg(long, value_name = "ID", conflicts_with_all = ["range", "from", "to", "namespace", "labels", "containers"])]
    incident: Option<String>,
    /// Seconds (or 30s, 5m) before the incident; default: the incident's own window.
    #[arg(long, value_name = "S", requires = "incident")]
    before: Option<String>,
    /// Seconds (or 30s, 5m) after the incident; default: the incident's own window.
    #[arg(long, value_name = "S", requires = "incident")]
    after: Option<String>,
    #[command(flatten)]
    time: TimeRange,
    /// Kubernetes namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Kubernetes label selector, such as app=cart,tier in (web,api).
    #[arg(short, long)]
    labels: Option<String>,
    /// Container names, container ids or globs of cgroup paths, comma-separated.
    #[arg(short, long)]
    containers: Option<String>,
    /// Columns or globs of columns, comma-separated, such as memory_*,cpu_stat_usage_usec.
    #[arg(short, long)]
    metrics: Option<String>,
    /// Replace names (of node, pod, container, process, path) by stand-ins and leave labels out.
    #[arg(long)]
    redact: bool,
    /// Print JSON of what was written: {"file", "format", "bytes", "sha256"}; of all nodes {"unanswered": [{"node", "why"}]} besides.
    #[arg(long)]
    json: bool,
    /// parquet, html, csv or json; default: what the ending of the output says.
    #[arg(long)]
    format: Option<String>,
    /// File to write, or - for stdout.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Why a command did not do what it should.
#[derive(Debug)]
enum Failure {
    /// Exit code 1.
    Failed(anyhow::Error),
    /// Exit code 2.
    Usage(String),
    /// Exit code 3.
    Nothing(String),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Nothing(_) => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(e) => f.write_str(&chain(e)),
            Self::Usage(e) | Self::Nothing(e) => f.write_str(e),
        }
    }
}

/// An error and its causes. Our own errors end with their mend and have the cause in the middle, so that a cause which
/// is in the text already is not said again.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

impl From<anyhow::Error> for Failure {
    fn from(e: anyhow::Error) -> Self {
        let is_configuration = matches!(
            e.downcast_ref(),
            Some(ServeError::Open { .. } | ServeError::Token { .. } | ServeError::Exposed { .. })
        ) || matches!(e.downcast_ref(), Some(DiscoveryError::Glob { .. }));
        if is_configuration { Self::Usage(chain(&e)) } else { Self::Failed(e) }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        match problem.status {
            400 => Self::Usage(in_our_words(&problem.to_string())),
            404 => Self::Nothing(in_our_words(&problem.detail)),
            _ => Self::Failed(anyhow::Error::msg(in_our_words(&problem.to_string()))),
        }
    }
}

/// What a problem says of the API's parameters, as the command line has them: `kind=exit` is `--kind exit`.
fn in_our_words(text: &str) -> String {
    let mut text = text.replace("/api/metrics", "`fgm metrics`").replace('&', " ");
    for name in export::PARAMETERS.into_iter().chain(["kind", "metric", "limit", "table"]) {
        let parameter = format!("{name}=");
        let mut said = String::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once(parameter.as_str()) {
            said.push_str(before);
            if before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '-')) {
                said.push_str(&parameter);
            } else {
                let gap = if after.is_empty() || after.starts_with([')', ',', ' ']) { "" } else { " " };
                let _ = fmt::Write::write_fmt(&mut said, format_args!("--{name}{gap}"));
            }
            rest = after;
        }
        said.push_str(rest);
        text = said;
    }
    text
}

/// Nothing was found: what was looked for, in which time, and which time the data has. `looked` is the time where the
/// agent said it.
fn nothing(what: &str, place: &Place, time: &TimeRange, looked: Option<(i64, i64)>) -> Failure {
    let held = match &place.data {
        Some(dir) => local::held(dir).ok().flatten(),
        None => fetch::held(place),
    };
    let now_us = match (&place.data, held) {
        (Some(_), Some((_, newest_us))) => newest_us,
        _ => clock::wall_us(),
    };
    let is_named = time.named().iter().any(|(_, value)| value.is_some());
    let of = |value: &Option<String>| value.clone();
    let [range, from, to] = [of(&time.range), of(&time.from), of(&time.to)];
    let looked = looked.or_else(|| {
        let range = export::time_range_or_all(range.as_deref(), from.as_deref(), to.as_deref(), now_us);
        range.ok().filter(|_| is_named)
    });
    let at = |us| export::instant(us, 0);
    let looked = match looked {
        Some((0, to)) => format!(" up to {}", at(to)),
        Some((from, to)) => format!(" from {} to {}", at(from), at(to)),
        None => " has been recorded".to_owned(),
    };
    let held = match held {
        Some((from, to)) => format!("; the data reaches from {} to {}", at(from), at(to)),
        None => String::new(),
    };
    Failure::Nothing(format!("no {what}{looked}{held}"))
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Doctor(args) => match doctor::run(&args) {
            Ok(code) => return ExitCode::from(code),
            Err(failure) => Err(failure),
        },
        Command::Agent(args) => agent(&args),
        Command::Export(args) => export(&args),
        Command::Incidents(args) => {
            log_to_stderr(nodes::LOG);
            incidents::run(&args)
        }
        Command::Inspect(args) => {
            log_to_stderr("warn");
            match args.path.to_str().filter(|path| Bucket::is_url(path)) {
                Some(url) => far::Far::open(url, Who::default())
                    .and_then(|far| far.inspect(args.json).and_then(|()| far.finish())),
                None => inspect::inspect(&args.path, args.json),
            }
        }
        Command::Compact(args) => {
            log_to_stderr("warn");
            compact::run(&args)
        }
        Command::Ship(args) => {
            log_to_stderr("warn");
            ship::run(&args)
        }
        Command::Events(args) => {
            log_to_stderr(nodes::LOG);
            events::run(&args)
        }
        Command::Metrics(args) => metrics::run(&args),
        Command::View(args) => {
            log_to_stderr("warn");
            view::run(&args)
        }
        Command::Analyze(args) => {
            log_to_stderr("warn");
            analyze::run(&args)
        }
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "fgm", &mut text);
            output::print(&String::from_utf8_lossy(&text))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nowhere else to go when stderr is closed.
            let _ = writeln!(std::io::stderr(), "fgm: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

/// `FGM_LOG` (or RUST_LOG) chooses what is logged, as tracing's filters have it.
fn log_to_stderr(default: &str) {
    let mut wrong = None;
    let filter = ["FGM_LOG", EnvFilter::DEFAULT_ENV].into_iter().find_map(|name| {
        let text = std::env::var_os(name).filter(|text| !text.is_empty())?;
        let text = text.to_string_lossy().into_owned();
        EnvFilter::try_new(&text).map_err(|error| wrong = Some((name, text, error))).ok()
    });
    let filter = filter.unwrap_or_else(|| EnvFilter::new(default));
    let is_terminal = std::io::stderr().is_terminal();
    // A second call (in tests) keeps the first subscriber.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(is_terminal)
        .try_init();
    if let Some((variable, text, error)) = wrong {
        tracing::warn!(variable, text, %error, "not a log filter, such as info or fgm=debug: it does not count");
    }
}

fn agent(args: &AgentArgs) -> Result<(), Failure> {
    if args.help_config {
        return output::print(&Config::help());
    }
    log_to_stderr("info");
    Ok(crate::pipeline::run(configuration(args.config.as_deref())?)?)
}

/// The file, if one is named, and the environment.
fn configuration(path: Option<&Path>) -> Result<Config, Failure> {
    let wrong = |e: ConfigError| Failure::Usage(e.to_string());
    let text = |value: OsString| value.to_string_lossy().into_owned();
    Config::check_variables(std::env::vars_os().map(|(name, _)| text(name))).map_err(wrong)?;
    Config::load(path, |name| std::env::var_os(name).map(text)).map_err(wrong)
}

fn export(args: &ExportArgs) -> Result<(), Failure> {
    log_to_stderr(nodes::LOG);
    let format = output::format(&args.output, args.format.as_deref())?;
    let named = [
        ("incident", &args.incident),
        ("before", &args.before),
        ("after", &args.after),
        ("namespace", &args.namespace),
        ("labels", &args.labels),
        ("containers", &args.containers),
        ("metrics", &args.metrics),
    ];
    let mut pairs = pairs(named.into_iter().chain(args.time.named()));
    pairs.push(("format".to_owned(), format.as_str().to_owned()));
    if args.redact {
        pairs.push(("redact".to_owned(), "true".to_owned()));
    }
    if args.json && args.output == Path::new("-") {
        return Err(Failure::Usage("--json and -o - both want stdout; name a file with -o".to_owned()));
    }
    let (far, nodes) = (args.bucket.open()?, args.nodes.open()?);
    let mut unanswered = None;
    let mut made: output::Told<Box<dyn Read>> = {
        let _shown = output::Progress::start("exporting");
        let unnamed = || output::unnamed(&args.output);
        output::Told::new(match (&far, &nodes, &args.place.data) {
            (Some(far), _, _) => {
                let made = far.export(&pairs, unnamed()?)?;
                far.finish()?;
                Box::new(made)
            }
            (None, Some(nodes), _) => {
                let token_file = args.place.token_file.as_deref();
                let (made, silent) = merged::export(nodes, token_file, &pairs, &args.output)?;
                unanswered = Some(silent);
                Box::new(made)
            }
            (None, None, Some(dir)) => Box::new(local::export(dir, &pairs, unnamed()?)?),
            // in memory: an agent's container has no folder for temporary files
            (None, None, None) => Box::new(Cursor::new(fetch::export(&args.place, &pairs, Vec::new())?)),
        })
    };
    output::write(&args.output, format == Format::Parquet, &mut made)?;
    if args.json {
        let (bytes, sha256) = made.told();
        let mut told =
            json!({"file": args.output, "format": format.as_str(), "bytes": bytes, "sha256": sha256});
        if let Some(far) = &far {
            told["requests"] = far.took();
        }
        if let Some(unanswered) = unanswered {
            told["unanswered"] = json!(unanswered);
        }
        output::print(&format!("{told}\n"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let source = || std::io::Error::other("disk on fire");
        let ours = ConfigError::Read { path: "x".into(), source: source() };
        let text = chain(&anyhow::Error::new(ours).context("start"));
        assert_eq!(text.matches("disk on fire").count(), 1, "{text}");
        let plain = chain(&anyhow::Error::new(source()).context("cannot write x"));
        assert_eq!(plain, "cannot write x: disk on fire");
    }

    #[test]
    fn problems_speak_of_flags() {
        for (said, wanted) in [
            (
                "a shorter range, kinds (kind=) or containers (containers=)",
                "a shorter range, kinds (--kind) or containers (--containers)",
            ),
            ("kind=bogus is no kind", "--kind bogus is no kind"),
            ("accepted: range=15m, from=…&to=…", "accepted: --range 15m, --from … --to …"),
            ("/api/metrics lists all", "`fgm metrics` lists all"),
            ("app=cart stays, and so does x_to=y", "app=cart stays, and so does x_to=y"),
        ] {
            assert_eq!(in_our_words(said), wanted);
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
