//! A selection of rows as one file that a person takes away: Parquet, or the report that holds the same Parquet, CSV, JSON.
//!
//! Works on [`Evidence`], which the running agent (`viewer`) and a data folder (`cli`) make alike. Which rows there are is
//! known and held against the limits before a byte is encoded: the answer is whole or it is a [`Problem`]. The same
//! selection of settled data gives the same Parquet bytes, so nothing that changes by itself (the time of the export)
//! stands in them. Reads no clock, opens no socket, writes no file.

mod choose;
mod document;
mod encode;
mod fit;
mod labels;
mod merged;
mod problem;
mod redact;
mod selection;
mod thin;

pub use choose::{Chooser, Named, around};
pub use document::{EVENT_COLUMNS, row};
pub use labels::Labels;
pub use merged::{Merged, Part, Silent};
pub use problem::{MEDIA_TYPE, Problem};
pub use selection::{
    Containers, Format, PARAMETERS, Rows, Selection, columns, duration_us, glob, instant, nearest,
    time_range, time_range_or_all,
};
pub use thin::MAX_REPORT_BYTES;

use crate::incident::{Incident, Lost};
use crate::ledger::{self, Accounts};
use crate::names::Table;
use crate::pods::Pods;
use crate::query::{self, Filter, QueryError};
use crate::schema;
use crate::store::View;
use arrow::array::RecordBatch;
use encode::{GoOn, Sink, Way};
use redact::Redaction;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;

/// Bytes of an answer that is made in memory, so that an error can still be an error.
pub const MAX_BYTES: u64 = 64 << 20;
/// Rows of events, and of processes, that go along.
const MAX_SIDE_ROWS: u64 = 100_000;
const LEDGER_PERIOD_US: i64 = 60_000_000;
/// Incidents of one list where no number is named, and at the most: one has some 5 KB.
pub const INCIDENTS_LISTED: usize = 1000;
const MAX_INCIDENTS: usize = 10_000;
/// Files that may turn out unreadable in the middle before an export gives up.
const MAX_UNREADABLE: usize = 16;

/// The columns that say which row it is; with `metrics` these stay.
const ALWAYS: [&str; 19] = [
    "ts",
    "ktime_ns",
    "cluster",
    "node",
    "boot_id",
    "scope",
    "pod_uid",
    "container_id",
    "qos",
    "cgroup_id",
    "parent_cgroup_id",
    "cgroup_path",
    "namespace",
    "pod",
    "container",
    "cause",
    "period_ms",
    "burst_id",
    "files_read",
];

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_rows: u64,
    pub max_containers: usize,
}

/// All that an export may draw on, of one instant.
pub struct Evidence {
    pub view: View,
    /// Latest revision of each, newest first.
    pub incidents: Vec<Incident>,
    /// What the running agent knows of itself, under the names of the report's `provenance`. Empty without an agent.
    pub provenance: Map<String, Value>,
    /// What Kubernetes has told: rows whose file was closed before get their names by it.
    pub pods: Pods,
    pub limits: Limits,
    /// Where `incident=latest` may still be in the making.
    pub now_us: i64,
}

/// A finished answer.
#[derive(Debug)]
pub struct Exported {
    pub bytes: Vec<u8>,
    pub format: Format,
    pub file_name: String,
}

/// Incidents as the disk has them: the latest revision of each, newest first, with those that the running agent
/// has announced over them. A revision that is not on disk yet is nobody's business: it might be lost again.
pub fn incidents(view: &View, running: Vec<Incident>) -> Result<Vec<Incident>, Problem> {
    let all = Filter::range(i64::MIN, i64::MAX);
    let (segments, journaled) = (view.segments.clone(), view.journaled.clone());
    let closed = View { segments, journaled, spilled: view.spilled.clone(), ..View::default() };
    let (rows, _) =
        query::rows(&closed, Table::Incidents, &all, Some(&["json"]), u64::MAX).map_err(of_query)?;
    let mut latest: BTreeMap<String, Incident> = BTreeMap::new();
    let stored = rows.iter().flat_map(|batch| {
        (0..batch.num_rows()).filter_map(|row| serde_json::from_str(query::text(batch, "json", row)?).ok())
    });
    for incident in stored.chain(running) {
        let known = latest.get(&incident.id).map(|i: &Incident| i.revision);
        if known.is_none_or(|revision| revision <= incident.revision) {
            latest.insert(incident.id.clone(), incident);
        }
    }
    let mut out: Vec<Incident> = latest.into_values().collect();
    out.sort_by(|a, b| (b.ts_us, &b.id).cmp(&(a.ts_us, &a.id)));
    Ok(out)
}

/// The part of the incidents that a list shows: those of a range, newest first, `limit` at the most; and how many the range has.
pub fn listed(
    mut all: Vec<Incident>,
    (from_us, to_us): (i64, i64),
    limit: Option<&str>,
) -> Result<(Vec<Incident>, usize), Problem> {
    let limit = limit.map_or(Ok(INCIDENTS_LISTED), str::parse);
    let limit = limit.ok().filter(|n| (1..=MAX_INCIDENTS).contains(n));
    let limit = limit
        .ok_or_else(|| Problem::bad_query(format!("limit is a number from 1 to {MAX_INCIDENTS}"), &[]))?;
    all.retain(|i| (from_us..=to_us).contains(&i.ts_us));
    let total = all.len();
    all.truncate(limit);
    Ok((all, total))
}

/// The incident of that id, or the newest one for `latest`.
pub fn find<'a>(incidents: &'a [Incident], id: &str) -> Result<&'a Incident, Problem> {
    let found = if id == "latest" { incidents.first() } else { incidents.iter().find(|i| i.id == id) };
    found.ok_or_else(|| match incidents.first() {
        None => Problem::not_found("no incident has been recorded"),
        Some(newest) => Problem::not_found(format!(
            "no incident {id:?} among the {} that are known; the newest is {}",
            incidents.len(),
            newest.id
        )),
    })
}

/// Makes the answer in memory.
pub fn export(evidence: Evidence, selection: &Selection) -> Result<Exported, Problem> {
    export_while(evidence, selection, &|| Ok(()))
}

/// The same for as long as `go_on` says so; it is asked before each slice of rows.
pub fn export_while(evidence: Evidence, selection: &Selection, go_on: GoOn<'_>) -> Result<Exported, Problem> {
    let mut sink = Sink::memory(MAX_BYTES);
    let file_name = make(evidence, selection, go_on, &mut sink)?;
    Ok(Exported { bytes: sink.into_bytes(), format: selection.format, file_name })
}

/// Makes the answer in a file, of whatever length, and gives the name that it should have. What the file had is gone; a
/// refused export leaves it empty.
pub fn export_into(evidence: Evidence, selection: &Selection, file: File) -> Result<String, Problem> {
    let mut sink = Sink::file(file);
    let made = make(evidence, selection, &|| Ok(()), &mut sink).and_then(|name| sink.finish().map(|()| name));
    if made.is_err() {
        let _ = sink.clear();
    }
    made
}

fn make(
    mut evidence: Evidence,
    selection: &Selection,
    go_on: GoOn<'_>,
    sink: &mut Sink,
) -> Result<String, Problem> {
    for _ in 0..MAX_UNREADABLE {
        sink.clear()?;
        match attempt(&evidence, selection, go_on, sink) {
            Err(Failure::Vanished { path, reason }) => {
                // Its rows were counted on: begin again without it, and say so in what goes out.
                tracing::error!(path = %path.display(), reason, "left an unreadable segment out of an export");
                evidence.view.segments.retain(|s| {
                    if s.path == path {
                        let name = path.file_name().unwrap_or_default().to_string_lossy();
                        let reason = format!("unreadable segment {name}");
                        evidence.view.lost.push(Lost {
                            table: s.table.as_str().into(),
                            reason,
                            rows: s.rows,
                        });
                    }
                    s.path != path
                });
            }
            Err(Failure::Problem(problem)) => return Err(problem),
            Ok(file_name) => return Ok(file_name),
        }
    }
    Err(Problem::internal(format!("more than {MAX_UNREADABLE} segments are unreadable; see the agent's log")))
}

enum Failure {
    Problem(Problem),
    Vanished { path: std::path::PathBuf, reason: String },
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Vanished { path, reason } => Self::Vanished { path, reason },
            other => Self::Problem(of_query(other)),
        }
    }
}

fn of_query(error: QueryError) -> Problem {
    match error {
        QueryError::TooMany { asked, limit, .. } => {
            Problem::too_large("export.max_rows", limit, asked, NARROW)
        }
        other => Problem::internal(other),
    }
}

const NARROW: &str =
    "a shorter range, fewer containers (namespace=, containers=), or raise the limit in agent.toml";

fn attempt(
    evidence: &Evidence,
    selection: &Selection,
    go_on: GoOn<'_>,
    sink: &mut Sink,
) -> Result<String, Failure> {
    let found = choose::find_rows(evidence, &selection.rows)?;
    encoded(&found, selection, evidence.now_us, go_on, sink, || document(evidence, &found))
}

/// The rows that were found, in the format that is wanted, with the document that goes along where the format has one.
fn encoded(
    found: &choose::Found,
    selection: &Selection,
    now_us: i64,
    go_on: GoOn<'_>,
    sink: &mut Sink,
    document: impl FnOnce() -> Result<document::Document, Failure>,
) -> Result<String, Failure> {
    let names = wanted_columns(selection);
    let mut stem = match &found.incident {
        Some(incident) => format!("incident-{}", file_stem(&incident.id)),
        None => format!("samples-{}-{}", found.filter.from_us, found.filter.to_us),
    };
    let redaction = selection.is_redacted.then(Redaction::default);
    let way = Way { plan: &found.plan, columns: names.as_deref(), redaction: redaction.as_ref(), go_on };
    let document = || {
        let mut document = document()?;
        if let Some(redaction) = &redaction {
            document.redact(redaction);
        }
        Ok::<_, Failure>(document)
    };
    match selection.format {
        Format::Parquet => way.parquet(&document()?.metadata(), sink)?,
        Format::Html => {
            let page = fit::report(&way, document()?, now_us, found)?;
            sink.write_all(&page).map_err(Problem::internal)?;
        }
        Format::Csv => way.csv(sink)?,
        Format::Json => way.json(sink)?,
    }
    if let (Some(redaction), Some(incident)) = (&redaction, &found.incident) {
        redaction.learn(&json!({"node": incident.node}));
        stem = file_stem(&redaction.text(&format!("incident-{}", incident.id)));
    }
    Ok(format!("{stem}.{}", selection.format.as_str()))
}

/// As hex.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, b| {
        let _ = write!(hex, "{b:02x}");
        hex
    })
}

/// Ids hold node names: only what is safe in a file name and in a header stays.
fn file_stem(id: &str) -> String {
    id.chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' })
        .collect()
}

fn wanted_columns(selection: &Selection) -> Option<Vec<&str>> {
    let metrics = selection.metrics.as_ref()?;
    let mut names: Vec<&str> = ALWAYS.to_vec();
    names.extend(metrics);
    Some(names)
}

/// What goes along with the samples.
fn document(evidence: &Evidence, found: &choose::Found) -> Result<document::Document, Failure> {
    let mut lost = found.plan.lost.clone();
    let mut side = |table, filter: &Filter| -> Result<Vec<RecordBatch>, Failure> {
        let (rows, more) =
            query::rows(&evidence.view, table, filter, None, MAX_SIDE_ROWS).map_err(|e| match e {
                QueryError::TooMany { asked, limit, .. } => {
                    Failure::Problem(Problem::too_large("events or processes", limit, asked, NARROW))
                }
                other => other.into(),
            })?;
        lost.extend(more);
        Ok(rows.into_iter().map(|batch| evidence.pods.fill(batch)).collect())
    };
    let events = side(Table::Events, &Filter { cgroups: None, ..found.filter.clone() })?;
    let processes = side(Table::Processes, &found.filter)?;
    lost.extend(ledger_of(evidence, found)?);
    let known = found.plan.keys().into_iter().filter_map(|k| k.cgroup_id).collect();
    Ok(document::Document::new(document::Parts {
        incident: found.incident.as_ref(),
        cgroups: found.filter.cgroups.as_ref().unwrap_or(&known),
        events: &events,
        processes: &processes,
        identities: &found.identities,
        lost,
        provenance: provenance(evidence, found),
    }))
}

/// What the ledger says is lost in the minutes of the range. Of an incident, what the whole node lost: losses of its own
/// container stand in it.
fn ledger_of(evidence: &Evidence, found: &choose::Found) -> Result<Vec<Lost>, Failure> {
    // the row of a minute stands at its end
    let to_us = found.filter.to_us.saturating_add(LEDGER_PERIOD_US);
    let filter = Filter { cgroups: None, to_us, ..found.filter.clone() };
    let (rows, _) = query::rows(&evidence.view, Table::Ledger, &filter, None, u64::MAX)?;
    let mut sum = Accounts::default();
    for batch in &rows {
        sum.add(&Accounts::of_rows(batch));
    }
    let is_wanted = |reason: &str| found.incident.is_none() || !ledger::is_told_by_the_incident(reason);
    let losses = sum.losses().filter(|(_, reason, _)| is_wanted(reason));
    Ok(losses
        .map(|(table, reason, rows)| Lost {
            table: table.as_str().to_owned(),
            reason: reason.to_owned(),
            rows,
        })
        .collect())
}

/// How the evidence was made: of the files' own metadata first, of the running agent where there is no file yet.
fn provenance(evidence: &Evidence, found: &choose::Found) -> Map<String, Value> {
    let mut all = Map::new();
    for name in document::PROVENANCE {
        let key = format!("fgm.{name}");
        let waiting = || evidence.view.metadata.iter().find(|(k, _)| *k == key).map(|(_, v)| v.clone());
        let of_files = found.plan.newest_metadata(&key).or_else(waiting);
        let value = match of_files {
            Some(text) => serde_json::from_str(&text)
                .ok()
                .filter(|v: &Value| v.is_number() || v.is_array() || v.is_object())
                .filter(|_| document::is_structured(name))
                .unwrap_or(Value::String(text)),
            None => evidence.provenance.get(name).cloned().unwrap_or(Value::Null),
        };
        all.insert(name.to_owned(), value);
    }
    // The agent writes the ladder as one object; a report wants its level and its hooks apart.
    if let Some(Value::Object(ladder)) = all.get("ladder").cloned() {
        all.insert("ladder".to_owned(), ladder.get("level").cloned().unwrap_or(Value::Null));
        if all.get("hooks").is_none_or(Value::is_null) {
            all.insert("hooks".to_owned(), ladder.get("hooks").cloned().unwrap_or(Value::Null));
        }
    }
    if let Some(incident) = &found.incident {
        // Of the incident's own two times: the offset as it was then, and the same whenever it is exported.
        let wall_ns = i128::from(incident.ts_us) * 1000;
        let offset = i64::try_from(wall_ns - i128::from(incident.ktime_ns)).ok();
        all.insert("clock_offset_ns".to_owned(), json!(offset));
    }
    all.insert("rows".to_owned(), json!(found.plan.rows));
    all.insert("schema_version".to_owned(), json!(schema::VERSION));
    all
}
