//! The lines that a question stands for: which metrics of which table, which cgroups, which time; and their points, one
//! cgroup after the other.
//!
//! Everything is held against the limits before a value is read: rows, containers, and cells (containers × metrics ×
//! buckets). Looks a little before the range, so that a limit that was read there is known and a rate's first interval
//! has its start. One line is one metric of one cgroup of one boot, and of one device or one set of labels; nothing is
//! added up. Called by `series` and `analyses`.

use super::answers::{Watched, known_incidents, look, of_query};
use super::api::Asked;
use super::containers::{self, RANGE};
use super::{App, Source, rows};
use crate::catalogue::{self, Kind, Unit, node};
use crate::export::{Chooser, Containers, Limits, Problem, columns, duration_us, glob, nearest};
use crate::incident::{Incident, Lost};
use crate::names::{Cause, Table};
use crate::query::{self, Filter, Identity, Key};
use crate::store::View;
use crate::timeseries::derived::{DERIVED, derived};
use crate::timeseries::{self, Point, Reading};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Float64Type;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ops::Range;

/// Slow files are read every ten seconds by default.
const LOOK_BACK_US: i64 = 15_000_000;
/// Buckets of a range when no length is named: about one for each two pixels.
const BUCKETS: i64 = 600;
const SHORTEST_US: i64 = 1000;
/// Numbers of one answer are ten times this: some 40 MB of JSON.
const MAX_CELLS: u64 = 500_000;
const NARROW: &str =
    "a shorter range, a longer resolution, fewer metrics, or fewer containers (containers=, namespace=)";
pub const TABLES: [&str; 4] = ["samples", "io_devices", "node", "metrics"];
/// What has no column is read with the slow files and has a row when it changed.
const LOOSE_PERIOD_MS: i64 = 21_000;

/// A column that a line is made of.
#[derive(Clone, Copy)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: &'static str,
}

/// A question, understood.
pub struct Wanted {
    pub from_us: i64,
    pub to_us: i64,
    pub step_us: i64,
    pub table: Table,
    /// Of `metrics`, whose names are in its rows, there is the column `value` alone.
    pub metrics: Vec<Metric>,
    /// Globs of the names in `metrics`.
    names: Vec<String>,
    pub is_rate: bool,
    max_rows: u64,
    max_containers: usize,
    pub containers: Containers,
    pub incidents: Vec<Incident>,
}

/// Instant, cause and period of a row.
pub type Moment = (i64, Cause, i64);

/// One cgroup, or one device or set of labels of it.
pub struct OfOne {
    pub key: Key,
    pub identity: Identity,
    /// Device, or name and labels.
    pub beside: Map<String, Value>,
    pub moments: Vec<Moment>,
    pub lines: Vec<(Metric, Vec<Point>)>,
}

impl Wanted {
    /// The question, with what the incidents know of labels.
    pub async fn of<S: Source>(app: &App<S>, asked: &Asked) -> Result<Self, Problem> {
        let mut wanted = Self::parse(asked, app.now_us(), app.limits)?;
        app.know(&mut wanted.containers);
        if !wanted.containers.labels.is_empty() {
            wanted.incidents = known_incidents(app).await?;
        }
        Ok(wanted)
    }

    pub fn parse(asked: &Asked, now_us: i64, limits: Limits) -> Result<Self, Problem> {
        let accepted = ["memory_current", "cpu_stat_*", "see /api/metrics"];
        let named = asked.get("metric").ok_or_else(|| Problem::bad_query("metric is missing", &accepted))?;
        let table = asked.get("table").unwrap_or(TABLES[0]);
        let (table, metrics) = metrics_of(table, named)?;
        let is_rate = match asked.get("rate") {
            None | Some("true") => true,
            Some("false") => false,
            Some(other) => {
                return Err(Problem::bad_query(format!("rate={other} is not known"), &["true", "false"]));
            }
        };
        let (from_us, to_us) = asked.range(RANGE, now_us)?;
        let step_us = match asked.get("resolution") {
            None => (to_us.saturating_sub(from_us) / BUCKETS).max(SHORTEST_US),
            Some(text) => duration_us("resolution", text)?.max(SHORTEST_US),
        };
        let containers = Containers::parse(|name| asked.get(name))?;
        let names = named.split(',').map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).collect();
        let (max_rows, max_containers) = (limits.max_rows, limits.max_containers);
        Ok(Self {
            from_us,
            to_us,
            step_us,
            table,
            metrics,
            names,
            is_rate,
            max_rows,
            max_containers,
            containers,
            incidents: Vec::new(),
        })
    }

    /// What there is to answer it from.
    pub async fn look<S: Source>(&self, app: &App<S>) -> Result<View, Problem> {
        look(app, &[self.table], self.from_us.saturating_sub(LOOK_BACK_US)).await
    }

    fn buckets(&self) -> u64 {
        (self.to_us.saturating_sub(self.from_us) / self.step_us).unsigned_abs() + 1
    }

    fn hold_cells(&self, lines: u64) -> Result<(), Problem> {
        let cells = self.buckets().saturating_mul(lines);
        if cells > MAX_CELLS {
            return Err(Problem::too_large("buckets of an answer", MAX_CELLS, cells, NARROW));
        }
        Ok(())
    }

    /// Calls `take` for each cgroup (device, set of labels), and gives what was lost.
    pub fn each(
        &self,
        view: &View,
        cancel: &Watched,
        mut take: impl FnMut(OfOne),
    ) -> Result<Vec<Lost>, Problem> {
        let chooser = Chooser::new(&self.containers, &self.incidents);
        let wide = Filter::range(self.from_us.saturating_sub(LOOK_BACK_US), self.to_us);
        let (plan, identities) = containers::chosen(view, self.table, &wide, &chooser)?;
        if identities.len() > self.max_containers {
            let (limit, asked) = (self.max_containers as u64, identities.len() as u64);
            return Err(Problem::too_large("export.max_containers", limit, asked, NARROW));
        }
        self.hold_cells((identities.len().max(1) * self.metrics.len()) as u64)?;
        plan.within(self.max_rows).map_err(of_query)?;
        let mut names = vec!["ts", "cgroup_id", "boot_id"];
        names.extend(match self.table {
            Table::Samples => &["cause", "period_ms"][..],
            Table::IoDevices => &["device", "device_name"],
            Table::Metrics => &["name", "kind", "labels"],
            _ => &[],
        });
        for metric in &self.metrics {
            match derived(metric.name) {
                Some(made) => names.extend(made.parts.iter().chain(&["files_read"])),
                None => names.push(metric.name),
            }
        }
        // a column may be asked for and be a part as well
        names.sort_unstable();
        names.dedup();
        let mut lines = 0;
        for batch in plan.chunks(Some(&names)).map_err(of_query)? {
            cancel.check()?;
            let batch = batch.map_err(of_query)?;
            for (key, range) in rows::stretches(&batch) {
                let identity = identities.get(&key).cloned().unwrap_or_default();
                for (beside, at) in self.apart(&batch, range) {
                    lines += self.metrics.len() as u64;
                    self.hold_cells(lines)?;
                    let (moments, lines) = self.lines(&batch, &at, &beside);
                    take(OfOne { key: key.clone(), identity: identity.clone(), beside, moments, lines });
                }
            }
        }
        Ok(plan.lost)
    }

    /// The rows of one cgroup, taken apart by device or by name and labels.
    fn apart(&self, batch: &RecordBatch, range: Range<usize>) -> Vec<(Map<String, Value>, Vec<usize>)> {
        let mut out: BTreeMap<String, (Map<String, Value>, Vec<usize>)> = BTreeMap::new();
        for row in range {
            let beside = match self.table {
                Table::IoDevices => json!({
                    "device": query::text(batch, "device", row),
                    "device_name": query::text(batch, "device_name", row),
                }),
                Table::Metrics => {
                    let name = query::text(batch, "name", row).unwrap_or_default();
                    if !self.names.iter().any(|pattern| glob(pattern, name)) {
                        continue;
                    }
                    let kind = query::text(batch, "kind", row);
                    json!({"name": name, "kind": kind, "labels": rows::labels(batch, row)})
                }
                _ => Value::Null,
            };
            // a device is its number: its name may be learnt later
            let tag = if self.table == Table::IoDevices {
                beside["device"].to_string()
            } else {
                beside.to_string()
            };
            let Value::Object(beside) = beside else {
                out.entry(tag).or_default().1.push(row);
                continue;
            };
            let one = out.entry(tag).or_default();
            one.0.extend(beside.into_iter().filter(|(_, v)| !v.is_null()));
            one.1.push(row);
        }
        out.into_values().collect()
    }

    fn lines(
        &self,
        batch: &RecordBatch,
        at: &[usize],
        beside: &Map<String, Value>,
    ) -> (Vec<Moment>, Vec<(Metric, Vec<Point>)>) {
        let mut moments = rows::moments(batch, at.iter().copied());
        if self.table == Table::Metrics {
            for moment in &mut moments {
                moment.2 = LOOSE_PERIOD_MS;
            }
        }
        let mut lines = Vec::new();
        for metric in &self.metrics {
            if let Some(made) = derived(metric.name) {
                let cells = rows::cells(batch, made, at.iter().copied(), &moments);
                lines.push((*metric, made.points(&cells)));
                continue;
            }
            let floats = batch.column_by_name(metric.name).and_then(|c| c.as_primitive_opt::<Float64Type>());
            let ints = rows::ints(batch, metric.name);
            #[expect(clippy::cast_precision_loss, reason = "exact below 2^53, see Reading")]
            let value = |row: usize| match floats {
                Some(column) => column.is_valid(row).then(|| column.value(row)),
                None => rows::int(ints, row).map(|v| v as f64),
            };
            let readings: Vec<Reading> = at
                .iter()
                .zip(&moments)
                .filter_map(|(row, &(t_us, cause, period_ms))| {
                    Some(Reading { t_us, value: value(*row)?, cause, period_ms })
                })
                .collect();
            let is_counter = match beside.get("kind") {
                Some(kind) => kind == "counter",
                None => metric.kind == Kind::Counter,
            };
            let points = if self.is_rate && is_counter {
                timeseries::rates(&readings)
            } else {
                timeseries::levels(&readings)
            };
            lines.push((*metric, points));
        }
        (moments, lines)
    }
}

/// The table, and which of its columns are named.
fn metrics_of(table: &str, named: &str) -> Result<(Table, Vec<Metric>), Problem> {
    let chosen = |all: Vec<Metric>| {
        let mut out = Vec::new();
        for pattern in named.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            let mut found: Vec<Metric> = all.iter().filter(|m| glob(pattern, m.name)).copied().collect();
            if found.is_empty() {
                let near = nearest(pattern, all.iter().map(|m| m.name));
                let detail = format!("{table} has no column named {pattern}; /api/metrics lists all");
                return Err(Problem::bad_query(detail, &near));
            }
            found.retain(|m| !out.iter().any(|o: &Metric| o.name == m.name));
            out.extend(found);
        }
        Ok(out)
    };
    let of = |c: &'static catalogue::Column| Metric { name: c.name, kind: c.kind, unit: c.unit.as_str() };
    match table {
        "samples" => {
            // by their whole names, so that memory_* is what it says in /api/metrics
            let (made, plain): (Vec<_>, Vec<_>) =
                named.split(',').map(str::trim).partition(|name| derived(name).is_some());
            let names = if plain.is_empty() { Vec::new() } else { columns(&plain.join(","))? };
            let all = catalogue::columns().filter(|(_, _, c)| names.contains(&c.name));
            let mut all: Vec<Metric> = all.map(|(_, _, c)| of(c)).collect();
            for one in DERIVED.iter().filter(|d| made.contains(&d.name)) {
                all.push(Metric { name: one.name, kind: Kind::Gauge, unit: one.unit });
            }
            Ok((Table::Samples, all))
        }
        "node" => Ok((Table::Node, chosen(node::columns().map(|(_, _, c)| of(c)).collect())?)),
        "io_devices" => Ok((Table::IoDevices, chosen(catalogue::DEVICE_KEYS.map(device).to_vec())?)),
        "metrics" => Ok((
            Table::Metrics,
            vec![Metric { name: "value", kind: Kind::Gauge, unit: Unit::Count.as_str() }],
        )),
        other => Err(Problem::bad_query(format!("table={other} has no series"), &TABLES)),
    }
}

/// What io.stat says of one device.
pub fn device(name: &'static str) -> Metric {
    let unit = if name.ends_with("bytes") { Unit::Bytes } else { Unit::Count };
    Metric { name, kind: Kind::Counter, unit: unit.as_str() }
}
