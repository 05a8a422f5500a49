//! `agent.toml`: every key has a default that serves, an environment variable (`FGM_…`) and a line in
//! `fgm agent --help-config`.
//!
//! Unknown or wrong keys are refused with file, line and the accepted keys. Reads one file and the environment, at
//! start-up only; called by `main`.

use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}; name an existing file with --config, or leave --config out to run with the defaults", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    #[error("environment variable {variable}={value:?}: {message}")]
    Environment { variable: String, value: String, message: String },
    #[error("{origin}: {key} = {value} is out of range: {rule}")]
    Range { origin: String, key: &'static str, value: String, rule: &'static str },
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
    pub sampling: Sampling,
    pub lane: Lane,
    pub burst: Burst,
    pub probes: Probes,
    pub rotation: Rotation,
    pub export: Export,
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
            sampling: Sampling::default(),
            lane: Lane::default(),
            burst: Burst::default(),
            probes: Probes::default(),
            rotation: Rotation::default(),
            export: Export::default(),
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
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            base_period_ms: 1000,
            slow_period_ms: 10_000,
            include: Vec::new(),
            exclude: Vec::new(),
            max_cgroups: 4096,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lane {
    pub period_ms: u64,
    pub history_s: u64,
    pub memory_bytes: u64,
}

impl Default for Lane {
    fn default() -> Self {
        Self { period_ms: 50, history_s: 60, memory_bytes: 16 << 20 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Burst {
    pub period_ms: u64,
    pub length_s: u64,
    pub max_concurrent: usize,
}

impl Default for Burst {
    fn default() -> Self {
        Self { period_ms: 50, length_s: 10, max_concurrent: 16 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Probes {
    pub enabled: bool,
    pub ring_bytes: u32,
    pub log: bool,
}

impl Default for Probes {
    fn default() -> Self {
        Self { enabled: true, ring_bytes: 1 << 20, log: false }
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
pub const KEYS: &[(&str, &str)] = &[
    ("data_dir", "folder of the recorded data; created when absent"),
    ("cgroup_root", "where cgroup v2 is mounted"),
    ("node", "name of this node in every row; empty = the host name"),
    ("cluster", "name of the cluster in every row; empty = not set"),
    ("listen", "address of the viewer and the API"),
    ("health_listen", "address of /healthz, /readyz and /metrics"),
    ("sampling.base_period_ms", "period of base samples (100 to 60000)"),
    ("sampling.slow_period_ms", "period of the slow files: limits, peaks (base period to 600000)"),
    ("sampling.include", "globs of cgroup paths to follow besides containers, pods and services"),
    ("sampling.exclude", "globs of cgroup paths never to follow"),
    ("sampling.max_cgroups", "cgroups followed at the most (1 to 65536)"),
    ("lane.period_ms", "period of the lane, the fast in-memory history (10 to 1000)"),
    ("lane.history_s", "seconds of lane kept for each cgroup (1 to 600)"),
    ("lane.memory_bytes", "bytes that all lane rings may take together"),
    ("burst.period_ms", "period of burst samples after a trigger (10 to lane.period_ms)"),
    ("burst.length_s", "length of a burst (1 to 600)"),
    ("burst.max_concurrent", "bursts that may run at once (1 to 1024)"),
    ("probes.enabled", "load the eBPF probes"),
    ("probes.ring_bytes", "size of the kernel's event ring, a power of two (4096 to 268435456)"),
    ("probes.log", "diagnostics of the kernel programs into the log"),
    ("rotation.every_s", "seconds after which a segment is closed (1 to 3600)"),
    ("export.max_rows", "rows one export may hold"),
    ("export.max_containers", "containers one export may hold"),
];

/// `sampling.base_period_ms` → `FGM_SAMPLING_BASE_PERIOD_MS`.
pub fn variable(key: &str) -> String {
    format!("FGM_{}", key.replace('.', "_").to_uppercase())
}

impl Config {
    /// Reads the file, if one is named, lays the environment over it and checks the ranges.
    pub fn load(path: Option<&Path>, env: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut config = match path {
            None => Self::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ConfigError::Read { path: path.into(), source })?;
                toml::from_str(&text).map_err(|e| ConfigError::Parse {
                    path: path.into(),
                    message: e.to_string().trim_end().into(),
                })?
            }
        };
        for (key, _) in KEYS {
            let variable = variable(key);
            let Some(value) = env(&variable) else { continue };
            config = config.with(key, &value).map_err(|message| ConfigError::Environment {
                variable: variable.clone(),
                value: value.clone(),
                message,
            })?;
        }
        config.check(&path.map_or_else(|| "configuration".to_owned(), |p| p.display().to_string()))?;
        Ok(config)
    }

    /// The configuration with one key set from text, as TOML has it (a bare string is accepted for a string).
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
        let is_text = at.get(last).is_some_and(toml::Value::is_str);
        let parsed = if is_text {
            toml::Value::String(value.to_owned())
        } else {
            let line = format!("v = {value}");
            let mut t: toml::Table = toml::from_str(&line).map_err(|e| e.message().to_owned())?;
            t.remove("v").ok_or("no value")?
        };
        at.insert(last.to_owned(), parsed);
        whole.try_into().map_err(|e: toml::de::Error| e.message().to_owned())
    }

    fn check(&self, origin: &str) -> Result<(), ConfigError> {
        let range = |key, value: u64, lo: u64, hi: u64, rule| {
            if (lo..=hi).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::Range { origin: origin.to_owned(), key, value: value.to_string(), rule })
            }
        };
        let s = &self.sampling;
        range("sampling.base_period_ms", s.base_period_ms, 100, 60_000, "100 to 60000")?;
        range(
            "sampling.slow_period_ms",
            s.slow_period_ms,
            s.base_period_ms,
            600_000,
            "sampling.base_period_ms to 600000",
        )?;
        range("sampling.max_cgroups", s.max_cgroups as u64, 1, 65_536, "1 to 65536")?;
        range("lane.period_ms", self.lane.period_ms, 10, 1000, "10 to 1000")?;
        range("lane.history_s", self.lane.history_s, 1, 600, "1 to 600")?;
        range("lane.memory_bytes", self.lane.memory_bytes, 1 << 16, 1 << 34, "65536 to 17179869184")?;
        // during a burst its samples take the place of the lane's
        let rule = "10 to lane.period_ms";
        range("burst.period_ms", self.burst.period_ms, 10, self.lane.period_ms, rule)?;
        range("burst.length_s", self.burst.length_s, 1, 600, "1 to 600")?;
        range("burst.max_concurrent", self.burst.max_concurrent as u64, 1, 1024, "1 to 1024")?;
        range("rotation.every_s", self.rotation.every_s, 1, 3600, "1 to 3600")?;
        range("export.max_rows", self.export.max_rows, 1, u64::MAX, "at least 1")?;
        range("export.max_containers", self.export.max_containers as u64, 1, u64::MAX, "at least 1")?;
        let ring = u64::from(self.probes.ring_bytes);
        range("probes.ring_bytes", ring, 4096, 1 << 28, "4096 to 268435456")?;
        if !self.probes.ring_bytes.is_power_of_two() {
            return Err(ConfigError::Range {
                origin: origin.to_owned(),
                key: "probes.ring_bytes",
                value: ring.to_string(),
                rule: "a power of two (the kernel refuses any other size)",
            });
        }
        Ok(())
    }

    /// The text of `fgm agent --help-config`: every key, its default, its variable and its meaning.
    pub fn help() -> String {
        let defaults = toml::Table::try_from(Self::default()).unwrap_or_default();
        let mut out = String::from(
            "agent.toml: each key with its default, its environment variable and its meaning\n\n",
        );
        for (key, meaning) in KEYS {
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
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, text).expect("write");
        Config::load(Some(&path), |_| None)
    }

    #[test]
    fn an_unknown_key_names_file_line_and_the_accepted_keys() {
        let e = load("node = \"a\"\n\n[rotation]\nevery = 5\n").expect_err("must be refused").to_string();
        assert!(e.contains("agent.toml") && e.contains("line 4") && e.contains("`every`"), "{e}");
        assert!(e.contains("every_s"), "{e}");
    }

    #[test]
    fn a_wrong_type_names_its_line() {
        let e = load("[lane]\nperiod_ms = \"fast\"\n").expect_err("must be refused").to_string();
        assert!(e.contains("line 2"), "{e}");
    }

    #[test]
    fn a_value_out_of_range_names_the_rule() {
        let e = load("[lane]\nperiod_ms = 3\n").expect_err("must be refused").to_string();
        assert!(e.contains("lane.period_ms = 3") && e.contains("10 to 1000"), "{e}");
    }

    #[test]
    fn a_burst_is_not_slower_than_the_lane() {
        let e = load("[burst]\nperiod_ms = 51\n").expect_err("must be refused").to_string();
        assert!(e.contains("burst.period_ms = 51") && e.contains("lane.period_ms"), "{e}");
        load("[burst]\nperiod_ms = 100\n[lane]\nperiod_ms = 100\n").expect("as slow as the lane");
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let env = |k: &str| match k {
            "FGM_NODE" => Some("n1".to_owned()),
            "FGM_ROTATION_EVERY_S" => Some("7".to_owned()),
            _ => None,
        };
        let c = Config::load(None, env).expect("good");
        assert_eq!((c.node.as_str(), c.rotation.every_s), ("n1", 7));
    }

    #[test]
    fn a_wrong_variable_is_named() {
        let e = Config::load(None, |k| (k == "FGM_ROTATION_EVERY_S").then(|| "soon".to_owned()))
            .expect_err("must be refused")
            .to_string();
        assert!(e.contains("FGM_ROTATION_EVERY_S") && e.contains("soon"), "{e}");
    }

    #[test]
    fn every_key_is_in_the_help_and_every_default_has_a_key() {
        fn keys(prefix: &str, t: &toml::Table, out: &mut Vec<String>) {
            for (k, v) in t {
                let key = if prefix.is_empty() { k.clone() } else { format!("{prefix}.{k}") };
                match v {
                    toml::Value::Table(t) => keys(&key, t, out),
                    _ => out.push(key),
                }
            }
        }
        let mut all = Vec::new();
        keys("", &toml::Table::try_from(Config::default()).expect("serialises"), &mut all);
        let mut listed: Vec<String> = KEYS.iter().map(|(k, _)| (*k).to_owned()).collect();
        all.sort();
        listed.sort();
        assert_eq!(all, listed);
    }
}
