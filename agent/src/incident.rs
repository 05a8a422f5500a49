//! An incident: one or more events of one container (or pod) merged into a story, as the API, the command line and the
//! `incidents` table have it.
//!
//! The shape only; absent is `null`, never invented. `story` merges events into incidents and writes the summary.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Victim {
    pub pid: Option<u32>,
    pub comm: Option<String>,
    pub uid: Option<u32>,
    pub rss_bytes: Option<u64>,
    pub anon_bytes: Option<u64>,
    pub cgroup_id: Option<u64>,
    pub cgroup_path: Option<String>,
    pub ktime_ns: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trigger {
    pub pid: Option<u32>,
    pub comm: Option<String>,
    pub cgroup_id: Option<u64>,
    pub cgroup_path: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LimitHit {
    pub cgroup_id: Option<u64>,
    pub cgroup_path: Option<String>,
    pub max_bytes: Option<u64>,
    pub usage_bytes: Option<u64>,
    /// Swap in use by the cgroup and all below it, at the kill.
    #[serde(default)]
    pub swap_bytes: Option<u64>,
    /// `fentry` or `events_local`; or, when there is no cgroup: `global` (the node itself ran out of memory),
    /// `global_cpuset` or `global_mempolicy` (its allowed part did), `global_sysrq` (asked for), `global_unknown` (of these).
    pub source: String,
}

/// The limit that was hit had fallen before: from what to what, and between which instants it was written. `None` bytes =
/// no limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LimitChange {
    pub cgroup_id: Option<u64>,
    pub cgroup_path: Option<String>,
    pub before_bytes: Option<u64>,
    pub after_bytes: Option<u64>,
    pub not_before_us: i64,
    pub not_after_us: i64,
    /// Who wrote it, where the evidence shows it.
    pub by: Option<Trigger>,
}

/// The container that took the place of this one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    pub container_id: Option<String>,
    pub cgroup_id: u64,
    pub started_ktime_ns: u64,
    pub started_us: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Killer {
    pub pid: Option<u32>,
    pub comm: Option<String>,
    pub cgroup_path: Option<String>,
    pub signal: Option<i32>,
}

/// How the container's init ended; `None` fields while it lives or when it was not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExitStatus {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

/// What Kubernetes says about it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kubernetes {
    pub reason: Option<String>,
    pub exit_code: Option<i32>,
    pub restart_count: Option<i32>,
    pub next_container_id: Option<String>,
    /// Why all of the pod was ended: `Deleted`, or the reason and message of its status (`Evicted: …`).
    #[serde(default)]
    pub pod_end: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    pub from_us: i64,
    pub to_us: i64,
}

/// Rows that are missing, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub table: String,
    pub reason: String,
    pub rows: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// `<node>-<boot id>-<kernel time of the first event in ns>`.
    pub id: String,
    pub revision: u32,
    pub kind: String,
    pub severity: String,
    /// False while the burst after the event still runs: a later revision will follow.
    pub closed: bool,
    pub ts_us: i64,
    pub ktime_ns: u64,
    pub node: String,
    pub boot_id: String,
    pub cluster: Option<String>,
    pub scope: String,
    pub cgroup_id: Option<u64>,
    pub cgroup_path: Option<String>,
    pub container_id: Option<String>,
    pub pod_uid: Option<String>,
    pub qos: Option<String>,
    pub namespace: Option<String>,
    pub pod: Option<String>,
    pub container: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
    pub victims: Vec<Victim>,
    pub trigger: Option<Trigger>,
    pub limit: Option<LimitHit>,
    pub limit_change: Option<LimitChange>,
    pub killer: Option<Killer>,
    pub exit: Option<ExitStatus>,
    pub kubernetes: Option<Kubernetes>,
    pub restart: Option<Restart>,
    pub window: Window,
    /// Seconds of evidence before the first event, from the oldest row written for it.
    pub history_s: Option<f64>,
    pub last_sample_before_ms: Option<f64>,
    pub first_burst_after_ms: Option<f64>,
    pub events: Vec<String>,
    pub lost: Vec<Lost>,
    pub summary: String,
}
