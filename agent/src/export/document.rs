//! The JSON that goes along with the samples: incident, events, processes, cgroups, losses, provenance.
//!
//! The same parts stand in a report's data and in the metadata of an exported Parquet file; what changes from one export
//! of the same evidence to the next (`generated_us`, the checksum) only in the report. Absent is null. Cgroup ids are
//! text, since they may exceed what a browser's numbers hold. Values only.

use super::redact::Redaction;
use crate::incident::{Incident, Lost};
use crate::names::CgroupId;
use crate::query::{self, Identity, Key};
use arrow::array::RecordBatch;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Members of `provenance` that come from the files' metadata (`fgm.<name>`) or the agent's status.
pub const PROVENANCE: [&str; 12] = [
    "agent_version",
    "kernel",
    "node",
    "cluster",
    "boot_id",
    "cgroup_root",
    "ladder",
    "hooks",
    "base_hz",
    "lane_hz",
    "burst_hz",
    "clock_offset_ns",
];

/// Those whose text is JSON, not a string.
pub fn is_structured(name: &str) -> bool {
    matches!(name, "ladder" | "hooks" | "base_hz" | "lane_hz" | "burst_hz" | "clock_offset_ns")
}

pub struct Parts<'a> {
    pub incident: Option<&'a Incident>,
    /// Cgroups of the selection.
    pub cgroups: &'a BTreeSet<i64>,
    /// Rows in the window, of whatever cgroup.
    pub events: &'a [RecordBatch],
    pub processes: &'a [RecordBatch],
    pub identities: &'a BTreeMap<Key, Identity>,
    pub lost: Vec<Lost>,
    pub provenance: Map<String, Value>,
}

#[derive(Default)]
pub struct Document {
    pub incident: Value,
    pub events: Value,
    pub processes: Value,
    pub cgroups: Value,
    pub lost: Value,
    pub provenance: Map<String, Value>,
}

impl Document {
    pub fn new(parts: Parts<'_>) -> Self {
        let mut lost = parts.incident.map(|i| i.lost.clone()).unwrap_or_default();
        for more in &parts.lost {
            if !lost.contains(more) {
                lost.push(more.clone());
            }
        }
        let mut incident = json!(parts.incident);
        ids_to_text(&mut incident);
        Self {
            incident,
            events: events(&parts),
            processes: processes(&parts),
            cgroups: cgroups(parts.identities),
            lost: json!(lost),
            provenance: parts.provenance,
        }
    }

    /// Key-value metadata of the Parquet file.
    pub fn metadata(&self) -> Vec<(String, String)> {
        [
            ("fgm.table", json!("samples")),
            ("fgm.schema_version", json!(crate::schema::VERSION)),
            ("fgm.incident", self.incident.clone()),
            ("fgm.events", self.events.clone()),
            ("fgm.processes", self.processes.clone()),
            ("fgm.cgroups", self.cgroups.clone()),
            ("fgm.lost", self.lost.clone()),
            ("fgm.provenance", Value::Object(self.provenance.clone())),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.as_str().map_or_else(|| v.to_string(), str::to_owned)))
        .collect()
    }

    /// What the metadata of an exported file says.
    ///
    /// # Errors
    /// What it lacks.
    pub fn read<'a>(metadata: impl Fn(&str) -> Option<&'a str>) -> Result<Self, String> {
        let part = |key: &str| -> Result<Value, String> {
            let text = metadata(key).ok_or_else(|| format!("its metadata lacks {key}"))?;
            serde_json::from_str(text).map_err(|e| format!("its {key} is no JSON: {e}"))
        };
        let Value::Object(provenance) = part("fgm.provenance")? else {
            return Err("its fgm.provenance is no object".to_owned());
        };
        Ok(Self {
            incident: part("fgm.incident")?,
            events: part("fgm.events")?,
            processes: part("fgm.processes")?,
            cgroups: part("fgm.cgroups")?,
            lost: part("fgm.lost")?,
            provenance,
        })
    }

    /// Takes every name out.
    pub fn redact(&mut self, redaction: &Redaction) {
        let mut provenance = Value::Object(std::mem::take(&mut self.provenance));
        let mut parts = [
            &mut self.incident,
            &mut self.cgroups,
            &mut self.events,
            &mut self.processes,
            &mut self.lost,
            &mut provenance,
        ];
        for part in &parts {
            redaction.learn(part);
        }
        for part in &mut parts {
            redaction.document(part);
        }
        if let Value::Object(provenance) = provenance {
            self.provenance = provenance;
        }
        self.provenance.insert("redacted".to_owned(), json!(true));
    }

    /// Of the whole so many rows are in it.
    pub fn thinned(&mut self, rows: u64, how: Value) {
        self.provenance.insert("rows".to_owned(), json!(rows));
        self.provenance.insert("thinned".to_owned(), how);
    }

    /// The data of a report.
    pub fn into_report(mut self, generated_us: i64, parquet_sha256: &str) -> Value {
        self.provenance.insert("generated_us".to_owned(), json!(generated_us));
        self.provenance.insert("parquet_sha256".to_owned(), json!(parquet_sha256));
        json!({
            "format": 1,
            "incident": self.incident,
            "events": self.events,
            "processes": self.processes,
            "cgroups": self.cgroups,
            "lost": self.lost,
            "provenance": self.provenance,
        })
    }
}

fn ids_to_text(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                if name == "cgroup_id" && member.is_number() {
                    *member = Value::String(member.to_string());
                } else {
                    ids_to_text(member);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(ids_to_text),
        _ => {}
    }
}

fn id_text(id: i64) -> Value {
    Value::String(CgroupId::from_i64(id).to_string())
}

/// One row, the named columns only.
pub fn row(batch: &RecordBatch, row: usize, columns: &[&str]) -> Value {
    let mut out = Map::new();
    for column in columns {
        let int = query::int(batch, column, row);
        let (name, value) = match *column {
            "ts" => ("ts_us", json!(int)),
            "cgroup_id" => ("cgroup_id", int.map_or(Value::Null, id_text)),
            "is_init" => ("is_init", int.map_or(Value::Null, |v| Value::Bool(v != 0))),
            "detail" => {
                let text = query::text(batch, column, row);
                ("detail", text.map_or(Value::Null, |t| serde_json::from_str(t).unwrap_or_else(|_| json!(t))))
            }
            name => (name, int.map_or_else(|| json!(query::text(batch, column, row)), |v| json!(v))),
        };
        out.insert(name.to_owned(), value);
    }
    Value::Object(out)
}

pub const EVENT_COLUMNS: [&str; 13] = [
    "event_id",
    "kind",
    "severity",
    "source",
    "ts",
    "ktime_ns",
    "cgroup_id",
    "cgroup_path",
    "container_id",
    "pid",
    "comm",
    "exit_code",
    "signal",
];

/// Events of the selection's cgroups and those that the incident names, in time order.
fn events(parts: &Parts<'_>) -> Value {
    let columns: Vec<&str> = EVENT_COLUMNS.into_iter().chain(["detail", "node"]).collect();
    let named: BTreeSet<&str> = parts.incident.iter().flat_map(|i| &i.events).map(String::as_str).collect();
    let mut out = Vec::new();
    for batch in parts.events {
        for at in 0..batch.num_rows() {
            let of_selection =
                query::int(batch, "cgroup_id", at).is_some_and(|id| parts.cgroups.contains(&id));
            let is_named = query::text(batch, "event_id", at).is_some_and(|id| named.contains(id));
            if of_selection || is_named {
                out.push((query::int(batch, "ktime_ns", at), row(batch, at, &columns)));
            }
        }
    }
    out.sort_by_key(|(ktime_ns, _)| *ktime_ns);
    out.into_iter().map(|(_, value)| value).collect()
}

fn processes(parts: &Parts<'_>) -> Value {
    const COLUMNS: [&str; 18] = [
        "node",
        "ts",
        "cgroup_id",
        "cgroup_path",
        "pid",
        "comm",
        "state",
        "rss_bytes",
        "anon_bytes",
        "file_bytes",
        "shmem_bytes",
        "swap_bytes",
        "threads",
        "fds",
        "cpu_usec",
        "oom_score",
        "oom_score_adj",
        "is_init",
    ];
    let victims: BTreeSet<i64> =
        parts.incident.iter().flat_map(|i| &i.victims).filter_map(|v| v.pid).map(i64::from).collect();
    let mut out = Vec::new();
    for batch in parts.processes {
        for at in 0..batch.num_rows() {
            let mut value = row(batch, at, &COLUMNS);
            let is_victim = query::int(batch, "pid", at).is_some_and(|pid| victims.contains(&pid));
            value["is_victim"] = Value::Bool(is_victim);
            out.push((query::int(batch, "ts", at), value));
        }
    }
    out.sort_by_key(|(ts, _)| *ts);
    out.into_iter().map(|(_, value)| value).collect()
}

fn cgroups(identities: &BTreeMap<Key, Identity>) -> Value {
    identities
        .iter()
        .map(|(key, who)| {
            json!({
                "node": who.node,
                "cgroup_id": key.cgroup_id.map_or(Value::Null, id_text),
                "parent_cgroup_id": who.parent_cgroup_id.map_or(Value::Null, id_text),
                "cgroup_path": who.cgroup_path,
                "scope": who.scope,
                "container_id": who.container_id,
                "pod_uid": who.pod_uid,
                "qos": who.qos,
                "namespace": who.namespace,
                "pod": who.pod,
                "container": who.container,
            })
        })
        .collect()
}
