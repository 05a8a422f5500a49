//! Values of containers on `/metrics`, for alerts and for who has no place for Parquet: the columns that `[prometheus]` names, of
//! the containers and services that live.
//!
//! Out of the rows, like every other answer, and made once a second at the most, whoever asks: the address is open to all of the
//! cluster. A value is that of the newest row in which its file was read, so a limit that was taken away is gone here too, and so is
//! whatever ended. Called by `answers`.

use super::answers::{look, of_query, on_a_blocking_thread};
use super::containers::{ended, is_live};
use super::{App, ServeError, Source, rows};
use crate::catalogue::{self, FileIndex, Kind, Unit};
use crate::clock;
use crate::config::Config;
use crate::export::{self, Problem};
use crate::names::Table;
use crate::pods::Pods;
use crate::query::{self, Filter, Identity, Key};
use crate::store::View;
use arrow::array::RecordBatch;
use metrics_exporter_prometheus::formatting::{sanitize_label_value, write_help_line, write_type_line};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::Mutex;

const SECOND: u64 = 1_000_000_000;
const ROWS_OF: [&str; 5] = ["ts", "cgroup_id", "boot_id", "period_ms", "files_read"];

/// A column as Prometheus has it.
struct Exposed {
    column: &'static str,
    about: &'static str,
    file: FileIndex,
    name: String,
    kind: &'static str,
    /// What the value is divided by, since Prometheus counts in seconds and in ones.
    per: f64,
}

impl Exposed {
    fn of(column: &'static str) -> Option<Self> {
        let (_, file, known) = catalogue::columns().find(|(_, _, c)| c.name == column)?;
        let (unit, per) = match known.unit {
            Unit::Bytes if column.ends_with("bytes") => ("", 1.0),
            Unit::Bytes => ("_bytes", 1.0),
            Unit::Microseconds => ("_seconds", 1e6),
            Unit::HundredthPercent => ("_ratio", 1e4),
            Unit::Hundredth => ("", 1e2),
            Unit::Count | Unit::Pages | Unit::Weight => ("", 1.0),
        };
        let stem = column.trim_end_matches("_usec");
        let is_counter = known.kind == Kind::Counter;
        let stem = if is_counter { stem.trim_end_matches("_total") } else { stem };
        Some(Self {
            column,
            about: known.about,
            file: catalogue::file(file.name)?,
            name: format!("fgm_container_{stem}{unit}{}", if is_counter { "_total" } else { "" }),
            kind: if is_counter { "counter" } else { "gauge" },
            per,
        })
    }
}

/// What is to be shown, and what was shown last.
pub struct Exposition {
    columns: Arc<[Exposed]>,
    max_containers: usize,
    /// As far back as a slow file's last reading may be.
    range_us: i64,
    made: Mutex<Option<(u64, Arc<str>)>>,
}

impl Exposition {
    /// # Errors
    /// A name that no column has.
    pub fn new(config: &Config) -> Result<Self, ServeError> {
        let names = export::columns(&config.prometheus.metrics.join(","))
            .map_err(|problem| ServeError::Exposed { why: problem.detail })?;
        let ms = config.sampling.slow_period_ms + 2 * config.sampling.base_period_ms;
        Ok(Self {
            columns: names.into_iter().filter_map(Exposed::of).collect(),
            max_containers: config.prometheus.max_containers,
            range_us: i64::try_from(ms * 1000).unwrap_or(i64::MAX),
            made: Mutex::new(None),
        })
    }
}

/// The lines of all containers, not older than a second.
///
/// # Errors
/// The agent is too busy to hand over its rows, or they cannot be read.
pub async fn lines<S: Source>(app: &Arc<App<S>>) -> Result<Arc<str>, Problem> {
    let exposition = &app.exposition;
    if exposition.columns.is_empty() {
        return Ok("".into());
    }
    let mut made = exposition.made.lock().await;
    let second = clock::ktime_ns() / SECOND;
    if let Some((at, text)) = &*made
        && *at == second
    {
        return Ok(text.clone());
    }
    let now_us = app.now_us();
    let filter = Filter::range(now_us.saturating_sub(exposition.range_us), now_us);
    let view = look(app, &[Table::Samples, Table::Events], filter.from_us).await?;
    let (columns, pods, max) = (exposition.columns.clone(), app.source.pods(), exposition.max_containers);
    let text: Arc<str> =
        on_a_blocking_thread(move || text(&view, &filter, &columns, &pods, max)).await??.into();
    *made = Some((second, text.clone()));
    Ok(text)
}

type Values = Vec<Option<f64>>;

fn text(
    view: &View,
    filter: &Filter,
    columns: &[Exposed],
    pods: &Pods,
    max_containers: usize,
) -> Result<String, Problem> {
    let plan = query::plan(view, Table::Samples, filter, u64::MAX).map_err(of_query)?;
    let mut identities = plan.identities().map_err(of_query)?;
    identities.retain(|_, who| matches!(who.scope.as_deref(), Some("container" | "service")));
    let (plan, ended) = (plan.of(|key| identities.contains_key(key)), ended(view, filter)?);
    let names: Vec<&str> = ROWS_OF.into_iter().chain(columns.iter().map(|c| c.column)).collect();
    let mut found: BTreeMap<Key, Values> = BTreeMap::new();
    for batch in plan.chunks(Some(&names)).map_err(of_query)? {
        let batch = batch.map_err(of_query)?;
        for (key, range) in rows::stretches(&batch) {
            let last = rows::moments(&batch, range.clone()).pop();
            if last.is_some_and(|(at, _, period_ms)| is_live(at, period_ms, filter.to_us))
                && !ended.contains(&key)
            {
                found.insert(key, columns.iter().map(|c| newest(&batch, range.clone(), c)).collect());
            }
        }
    }
    let left_out = found.len().saturating_sub(max_containers);
    let shown: Vec<(String, Values)> = found
        .into_iter()
        .take(max_containers)
        .map(|(key, values)| (labels(&identities.remove(&key).unwrap_or_default(), pods), values))
        .collect();
    let mut out = String::new();
    for (name, help, value) in [
        ("fgm_prometheus_containers", "Containers and services with values here.", shown.len()),
        ("fgm_prometheus_containers_left_out", "More of them than prometheus.max_containers.", left_out),
    ] {
        head(&mut out, name, help, "gauge");
        let _ = writeln!(out, "{name} {value}");
    }
    for (at, column) in columns.iter().enumerate() {
        head(&mut out, &column.name, column.about, column.kind);
        for (labels, values) in &shown {
            if let Some(value) = values[at] {
                let _ = writeln!(out, "{}{{{labels}}} {value}", column.name);
            }
        }
    }
    Ok(out)
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    write_help_line(out, name, None, None, help);
    write_type_line(out, name, None, None, kind);
}

/// As the newest row has it in which the file was read.
#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
fn newest(batch: &RecordBatch, range: Range<usize>, column: &Exposed) -> Option<f64> {
    let (values, masks) = (rows::ints(batch, column.column), rows::ints(batch, "files_read"));
    let is_read = |row: &usize| {
        rows::int(values, *row).is_some() || rows::int(masks, *row).is_some_and(|m| m >> column.file & 1 == 1)
    };
    let value = rows::int(values, range.rev().find(is_read)?)?;
    Some(value as f64 / column.per)
}

/// Who it is, as Kubernetes says now or else as its rows do; a service by its path.
fn labels(who: &Identity, pods: &Pods) -> String {
    let told = pods.who(who.pod_uid.as_deref(), who.container_id.as_deref());
    let container = told.as_ref().and_then(|w| w.container());
    let pod = told.as_ref().map(|w| &w.pod);
    let path = if who.container_id.is_some() { None } else { who.cgroup_path.as_deref() };
    let all = [
        ("namespace", pod.map(|p| p.namespace.as_str()).or(who.namespace.as_deref())),
        ("pod", pod.map(|p| p.name.as_str()).or(who.pod.as_deref())),
        ("container", container.map(|c| c.name.as_str()).or(who.container.as_deref())),
        ("container_id", who.container_id.as_deref()),
        ("pod_uid", who.pod_uid.as_deref()),
        ("cgroup", path),
    ];
    let known = all.iter().filter_map(|(name, value)| Some((name, (*value)?)));
    known
        .map(|(name, value)| format!("{name}=\"{}\"", sanitize_label_value(value)))
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_units_that_prometheus_counts_in() {
        let name = |column| Exposed::of(column).map(|e| (e.name, e.kind, e.per));
        let is = |name: &str, kind, per| Some((format!("fgm_container_{name}"), kind, per));
        assert_eq!(name("cpu_stat_usage_usec"), is("cpu_stat_usage_seconds_total", "counter", 1e6));
        assert_eq!(name("memory_current"), is("memory_current_bytes", "gauge", 1.0));
        assert_eq!(name("memory_max"), is("memory_max_bytes", "gauge", 1.0));
        assert_eq!(name("memory_events_oom_kill"), is("memory_events_oom_kill_total", "counter", 1.0));
        let psi = "memory_pressure_full_total_usec";
        assert_eq!(name(psi), is("memory_pressure_full_seconds_total", "counter", 1e6));
        assert_eq!(name("io_stat_rbytes"), is("io_stat_rbytes_total", "counter", 1.0));
    }

    #[test]
    fn every_column_has_a_name_of_its_own() {
        let all: Vec<String> =
            catalogue::columns().filter_map(|(_, _, c)| Exposed::of(c.name)).map(|e| e.name).collect();
        let distinct: std::collections::HashSet<&String> = all.iter().collect();
        assert_eq!((all.len(), distinct.len()), (catalogue::COLUMNS, catalogue::COLUMNS));
    }
}
