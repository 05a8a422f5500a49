//! `agent.toml`: every key has a default that serves, an environment variable (`FGM_…`) and a line in
//! `fgm agent --help-config`.
//!
//! Unknown or wrong keys are refused with file, line and the accepted keys. Reads one file and the environment, at
//! start-up only; called by `main`.

mod kubernetes;
mod lane;
mod place;
mod prometheus;
mod range;
mod ship;
mod upkeep;

use crate::event::Kind;
pub use kubernetes::Kubernetes;
pub use lane::{Lane, Period, Source};
pub use prometheus::Prometheus;
use serde::{Deserialize, Serialize};
pub use ship::Ship;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
pub use upkeep::{Compaction, Retention};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}; name an existing file with --config, or leave --config out to run with the defaults", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {} is not text in UTF-8; save it as such", path.display())]
    NotText { path: PathBuf },
    #[error("{}: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    #[error("environment variable {variable}={value:?}: {message}; {meaning}")]
    Environment { variable: String, value: String, message: String, meaning: String },
    #[error("environment variable {variable} sets no key of the agent; accepted: {accepted}")]
    Variable { variable: String, accepted: String },
    #[error("{origin}: {key} = {value} is out of range: {rule}")]
    Range { origin: String, key: String, value: String, rule: &'static str },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub data_dir: PathBuf,
    pub cgroup_root: PathBuf,
    /// Empty = the host name.
    pub node: String,
    pub cluster: String,
    pub listen: SocketAddr,
    pub health_listen: SocketAddr,
    /// Empty = no token.
    pub token_file: PathBuf,
    pub sampling: Sampling,
    pub lane: Lane,
    pub trigger: Triggers,
    pub budget: Budget,
    pub probes: Probes,
    pub rotation: Rotation,
    pub compaction: Compaction,
    pub retention: Retention,
    pub ship: Ship,
    pub export: Export,
    pub prometheus: Prometheus,
    pub kubernetes: Kubernetes,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/fgm".into(),
            cgroup_root: "/sys/fs/cgroup".into(),
            node: String::new(),
            cluster: String::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 8050)),
            health_listen: SocketAddr::from(([0, 0, 0, 0], 8051)),
            token_file: PathBuf::new(),
            sampling: Sampling::default(),
            lane: Lane::default(),
            trigger: Triggers::default(),
            budget: Budget::default(),
            probes: Probes::default(),
            rotation: Rotation::default(),
            compaction: Compaction::default(),
            retention: Retention::default(),
            ship: Ship::default(),
            export: Export::default(),
            prometheus: Prometheus::default(),
            kubernetes: Kubernetes::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    pub base_period_ms: u64,
    pub slow_period_ms: u64,
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub max_cgroups: usize,
    pub max_descriptors: usize,
    pub pss_budget_ms: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            base_period_ms: 1000,
            slow_period_ms: 10_000,
            include: Vec::new(),
            exclude: Vec::new(),
            max_cgroups: 4096,
            max_descriptors: 7168,
            pss_budget_ms: 0,
        }
    }
}

/// What one kind of trigger does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TriggerKind {
    pub enabled: bool,
    pub burst_period_ms: u64,
    pub burst_length_s: u64,
    pub cool_down_s: u64,
    pub history_s: u64,
}

impl Default for TriggerKind {
    fn default() -> Self {
        Self { enabled: true, burst_period_ms: 50, burst_length_s: 10, cool_down_s: 60, history_s: 60 }
    }
}

impl TriggerKind {
    const KEYS: [(&'static str, &'static str); 5] = [
        ("enabled", "whether it starts a burst and writes history; its event is recorded either way"),
        ("burst_period_ms", "period of the burst's samples (10 to 1000)"),
        ("burst_length_s", "length of the burst (1 to 600)"),
        ("cool_down_s", "seconds until the same kind of the same container triggers again (0 to 3600)"),
        ("history_s", "seconds of the lane that are written (0 to 600)"),
    ];
}

/// The kinds that trigger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Triggers {
    pub oom_kill: TriggerKind,
    pub kill: TriggerKind,
    pub exit: TriggerKind,
    pub limit_near: TriggerKind,
    pub forecast_oom: TriggerKind,
    pub memory_reclaim: TriggerKind,
    pub memory_high: TriggerKind,
    pub memory_max: TriggerKind,
    pub psi_stall: TriggerKind,
    pub cpu_throttled: TriggerKind,
    pub fork_limit: TriggerKind,
}

impl Default for Triggers {
    fn default() -> Self {
        let kind = TriggerKind::default();
        // what ends a container is told however often it comes
        let end = TriggerKind { cool_down_s: 0, ..kind.clone() };
        Self {
            oom_kill: end.clone(),
            kill: end.clone(),
            exit: end,
            limit_near: kind.clone(),
            forecast_oom: kind.clone(),
            memory_reclaim: kind.clone(),
            memory_high: kind.clone(),
            memory_max: kind.clone(),
            psi_stall: kind.clone(),
            cpu_throttled: kind.clone(),
            fork_limit: kind,
        }
    }
}

impl Triggers {
    /// Each kind that triggers, with its name and its settings.
    pub fn all(&self) -> [(Kind, &TriggerKind); 11] {
        [
            (Kind::OomKill, &self.oom_kill),
            (Kind::Kill, &self.kill),
            (Kind::Exit, &self.exit),
            (Kind::LimitNear, &self.limit_near),
            (Kind::ForecastOom, &self.forecast_oom),
            (Kind::MemoryReclaim, &self.memory_reclaim),
            (Kind::MemoryHigh, &self.memory_high),
            (Kind::MemoryMax, &self.memory_max),
            (Kind::PsiStall, &self.psi_stall),
            (Kind::CpuThrottled, &self.cpu_throttled),
            (Kind::ForkLimit, &self.fork_limit),
        ]
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    pub rows_per_second: u64,
    pub cpu_percent: f64,
    pub max_bursts: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { rows_per_second: 1000, cpu_percent: 10.0, max_bursts: 64 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Probes {
    pub enabled: bool,
    pub ring_bytes: u32,
    pub log: bool,
    pub without: Vec<String>,
}

impl Probes {
    /// What `without` may name.
    pub const MECHANISMS: [&str; 4] = ["tp_btf", "raw_tp", "tracepoint", "fentry"];
}

impl Default for Probes {
    fn default() -> Self {
        Self { enabled: true, ring_bytes: 1 << 20, log: false, without: Vec::new() }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rotation {
    pub every_s: u64,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { every_s: 90 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Export {
    pub max_rows: u64,
    pub max_containers: usize,
}

impl Default for Export {
    fn default() -> Self {
        Self { max_rows: 10_000_000, max_containers: 100 }
    }
}

/// Each key: its path, and what it means. The order is that of the help.
const KEYS: &[(&str, &str)] = &[
    ("data_dir", "folder of the recorded data; created when absent"),
    ("cgroup_root", "where cgroup v2 is mounted"),
    ("node", "name of this node in every row; empty = the host name"),
    ("cluster", "name of the cluster in every row; empty = not set"),
    ("listen", "address of the viewer and the API; beyond loopback it needs a token_file"),
    ("health_listen", "address of /healthz, /readyz and /metrics"),
    ("token_file", "file with the token that the viewer and the API ask for; empty = none"),
    ("sampling.base_period_ms", "period of base samples (100 to 60000)"),
    ("sampling.slow_period_ms", "period of the slow files: limits, peaks (base period to 600000)"),
    (
        "sampling.include",
        "globs of cgroup paths to follow besides containers, pods, what holds pods, and services",
    ),
    ("sampling.exclude", "globs of cgroup paths never to follow"),
    ("sampling.max_cgroups", "cgroups followed at the most (1 to 65536)"),
    (
        "sampling.max_descriptors",
        "files kept open for the base samples (0 to 1048576), each in 5 KB of the kernel's memory; the others are opened each time, at more CPU",
    ),
    (
        "sampling.pss_budget_ms",
        "milliseconds that reading the PSS of a container's processes may take at an event (0 to 1000); 0 = not read. It holds each process's mm lock, and needs CAP_SYS_PTRACE for those of other users",
    ),
    (
        "lane.source",
        "what reads the lane: \"bpf\", the kernel's own walk over all cgroups; \"pread\", files; \"auto\", the first that works",
    ),
    (
        "lane.period_ms",
        "period of the lane, the fast in-memory history (10 to 1000); \"auto\" = 20 with the walk, 50 without",
    ),
    (
        "lane.cpu_budget_percent",
        "share of one core that the lane may take (0.01 to 100); it slows down to 100 ms to keep to it",
    ),
    ("lane.history_s", "seconds of lane kept for each cgroup (1 to 600)"),
    ("lane.memory_bytes", "bytes that all lane rings may take together"),
    ("budget.rows_per_second", "burst rows a second, all bursts together (20 to 100000)"),
    (
        "budget.cpu_percent",
        "share of one core that bursts may take, all together (0.1 to 100); the least severe slow down first",
    ),
    ("budget.max_bursts", "bursts that may run at once (1 to 1024)"),
    ("probes.enabled", "load the eBPF probes"),
    ("probes.ring_bytes", "size of the kernel's event ring, a power of two (4096 to 268435456)"),
    ("probes.log", "diagnostics of the kernel programs into the log"),
    (
        "probes.without",
        "means of attaching not to use, where a kernel misbehaves: tp_btf, raw_tp, tracepoint, fentry",
    ),
    ("rotation.every_s", "seconds after which a segment is closed (1 to 3600)"),
    ("compaction.enabled", "merge the segments of each finished hour into one file below v1/"),
    ("compaction.after_s", "seconds after the end of an hour until it is merged (0 to 86400)"),
    ("retention.max_age_h", "hours after which ordinary data is removed (1 to 87600)"),
    (
        "retention.incident_max_age_h",
        "hours after which incidents and the data of their windows are removed (max_age_h to 87600)",
    ),
    (
        "retention.max_bytes",
        "bytes of all recorded files: beyond it the oldest go, incidents last (at least 1048576)",
    ),
    (
        "retention.min_free_bytes",
        "bytes to leave free on the disk: ordinary data is removed for it, incidents are not; 0 = none",
    ),
    (
        "retention.reserve_bytes",
        "bytes set aside for incidents, given up when the disk is full (0 to 1073741824); 0 = none",
    ),
    (
        "ship.url",
        "where finished hours and incidents are copied to: s3://, gs:// or az://bucket/prefix, file:///folder; empty = nowhere. Credentials come from the environment or the workload's identity",
    ),
    (
        "ship.what",
        "\"all\": every finished hour, and incidents at once; \"incidents\": these and their windows only",
    ),
    ("ship.endpoint", "URL of the server, where it is none of the provider's own; empty = the provider's"),
    (
        "ship.region",
        "region of the bucket, where the environment does not say; empty = the provider's default",
    ),
    ("ship.ca_file", "file of certificates (PEM) to trust besides the system's; empty = the system's alone"),
    ("ship.sse", "server-side encryption on S3: \"AES256\", \"aws:kms\"; empty = as the bucket has it"),
    ("ship.sse_kms_key", "id of the key for \"aws:kms\"; empty = the bucket's default key"),
    (
        "ship.max_backlog_bytes",
        "bytes that retention leaves alone since they are not copied yet; beyond it they go and the ledger says ship_backlog (0 to 1099511627776)",
    ),
    ("ship.timeout_s", "seconds that one request may take (1 to 3600)"),
    ("ship.retry_max_s", "longest pause between two attempts; the pauses double from 1 s on (1 to 86400)"),
    ("export.max_rows", "rows one export may hold"),
    ("export.max_containers", "containers one export may hold"),
    (
        "prometheus.metrics",
        "values of containers on /metrics: names or globs of docs/metrics.md; empty = none",
    ),
    ("prometheus.max_containers", "containers and services on /metrics at the most (1 to 100000)"),
    ("kubernetes.enabled", "ask the Kubernetes API for the names of this node's pods, where there is one"),
    (
        "kubernetes.kubeconfig",
        "file that says where the API is and who we are; empty = the pod's service account",
    ),
];

/// All keys with their meanings, those of each kind of trigger at the end.
pub fn keys() -> Vec<(String, &'static str)> {
    let fixed = KEYS.iter().map(|(k, m)| ((*k).to_owned(), *m));
    let defaults = Triggers::default();
    let kinds = defaults.all().into_iter().flat_map(|(kind, _)| {
        TriggerKind::KEYS.map(|(key, meaning)| (format!("trigger.{}.{key}", kind.as_str()), meaning))
    });
    fixed.chain(kinds).collect()
}

/// Lays one table over another, key by key.
fn lay_over(under: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => lay_over(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// A key with what it means, for a refusal.
fn meaning(key: &str) -> String {
    let about = keys().into_iter().find(|(k, _)| *k == key).map_or("", |(_, about)| about);
    format!("{key}: {about}")
}

/// The file's configuration and its text.
fn read(path: &Path) -> Result<(Config, String), ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::InvalidData => ConfigError::NotText { path: path.into() },
        _ => ConfigError::Read { path: path.into(), source },
    })?;
    let config = Config::parse(&text).map_err(|e: toml::de::Error| {
        let own = || place::plain(e.to_string().trim_end());
        let mut message = place::syntax_error(&text).unwrap_or_else(own);
        let key = e.span().and_then(|span| place::key_at(&text, span.start));
        if let Some(key) = key.filter(|key| keys().iter().any(|(k, _)| k == key)) {
            message = format!("{message}\n{}", meaning(&key));
        }
        ConfigError::Parse { path: path.into(), message }
    })?;
    Ok((config, text))
}

/// `sampling.base_period_ms` → `FGM_SAMPLING_BASE_PERIOD_MS`.
pub fn variable(key: &str) -> String {
    format!("FGM_{}", key.replace('.', "_").to_uppercase())
}

impl Config {
    /// Reads the file, if one is named, lays the environment over it and checks the ranges.
    pub fn load(path: Option<&Path>, env: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let (mut config, text) = match path {
            None => (Self::default(), String::new()),
            Some(path) => read(path)?,
        };
        let mut from_env = Vec::new();
        for (key, _) in &keys() {
            let variable = variable(key);
            let Some(value) = env(&variable) else { continue };
            config = config.with(key, &value).map_err(|message| ConfigError::Environment {
                variable: variable.clone(),
                value: value.clone(),
                message,
                meaning: meaning(key),
            })?;
            from_env.push(key.clone());
        }
        let origin = |key: &str| match (path, place::line_of(&text, key)) {
            _ if from_env.iter().any(|k| k == key) => format!("environment variable {}", variable(key)),
            (Some(path), Some(line)) => format!("{}, line {line}", path.display()),
            _ => "configuration".to_owned(),
        };
        range::check(&config, &origin)?;
        Ok(config)
    }

    /// Refuses names of variables that can only be misspelt keys: those that begin as one of our tables does. Other names
    /// that begin with `FGM_` may be somebody else's; Kubernetes sets such for each Service called `fgm…`.
    pub fn check_variables(names: impl Iterator<Item = String>) -> Result<(), ConfigError> {
        let keys = keys();
        for name in names {
            let of_service = ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"].iter().any(|s| name.contains(s));
            let table = keys.iter().find_map(|(key, _)| {
                let table = key.split_once('.')?.0;
                name.starts_with(&format!("{}_", variable(table))).then_some(table)
            });
            let (Some(table), false) = (table, of_service) else { continue };
            let of_table = keys.iter().filter(|(key, _)| key.split('.').next() == Some(table));
            let accepted: Vec<String> = of_table.map(|(key, _)| variable(key)).collect();
            if !accepted.contains(&name) {
                return Err(ConfigError::Variable { variable: name, accepted: accepted.join(", ") });
            }
        }
        Ok(())
    }

    /// A part of a table that a file leaves out has the default of its own kind, not that of its shape: the file is laid
    /// over the defaults. It is read as a whole first, since only that tells the line of what is wrong.
    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        let _: Self = toml::from_str(text)?;
        let mut whole = toml::Table::try_from(Self::default()).unwrap_or_default();
        lay_over(&mut whole, toml::from_str(text)?);
        whole.try_into()
    }

    /// The configuration with one key set from text: as it is for a string, as TOML has it for the rest.
    fn with(&self, key: &str, value: &str) -> Result<Self, String> {
        let mut whole = toml::Table::try_from(self).map_err(|e| e.to_string())?;
        let mut at = &mut whole;
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().unwrap_or(key);
        for part in parts {
            at = at
                .get_mut(part)
                .and_then(toml::Value::as_table_mut)
                .ok_or_else(|| format!("{part} is not a table"))?;
        }
        let parsed = match at.get(last) {
            Some(toml::Value::Integer(_)) => {
                value.trim().parse().map(toml::Value::Integer).map_err(|_| "not a whole number".to_owned())?
            }
            Some(toml::Value::Float(_)) => {
                value.trim().parse().map(toml::Value::Float).map_err(|_| "not a number".to_owned())?
            }
            Some(toml::Value::Boolean(_)) => value
                .trim()
                .parse()
                .map(toml::Value::Boolean)
                .map_err(|_| "neither true nor false".to_owned())?,
            Some(toml::Value::Array(_)) => toml::from_str::<toml::Table>(&format!("v = {value}"))
                .ok()
                .and_then(|mut t| t.remove("v"))
                .ok_or_else(|| "not a list such as [\"a\", \"b\"]".to_owned())?,
            _ => toml::Value::String(value.to_owned()),
        };
        at.insert(last.to_owned(), parsed);
        whole.try_into().map_err(|e: toml::de::Error| place::plain(e.message()))
    }

    /// The text of `fgm agent --help-config`: every key, its default, its variable and its meaning.
    pub fn help() -> String {
        let defaults = toml::Table::try_from(Self::default()).unwrap_or_default();
        let mut out = String::from(
            "agent.toml: each key with its default, its environment variable and its meaning\n\n",
        );
        for (key, meaning) in &keys() {
            let mut value = None;
            let mut table = Some(&defaults);
            for part in key.split('.') {
                value = table.and_then(|t| t.get(part));
                table = value.and_then(toml::Value::as_table);
            }
            let value = value.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(out, "{key} = {value}\n    {meaning}\n    {}", variable(key));
        }
        out
    }
}

#[cfg(test)]
mod tests;
