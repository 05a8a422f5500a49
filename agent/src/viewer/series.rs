//! `/api/timeseries`: metrics of containers as buckets.
//!
//! Everything is held against the limits before a value is read: rows, containers, and cells (containers × metrics ×
//! buckets). Looks a little before the range, so that a limit that was read there is known and a rate's first interval
//! has its start. One line is one metric of one cgroup of one boot; nothing is added up over containers.

use super::answers::{
    Cancel, Refusal, Watched, json_answer, known_incidents, look, of_query, on_a_blocking_thread,
};
use super::api::{self, Pairs};
use super::containers::{self, RANGE};
use super::{App, Source, rows};
use crate::catalogue::{self, Column, Kind};
use crate::export::{Chooser, Containers, Problem, columns, duration_us};
use crate::names::{Cause, Table};
use crate::query::{self, Filter};
use crate::store::View;
use crate::timeseries::{self, Buckets, Reading};
use arrow::array::RecordBatch;
use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// Slow files are read every ten seconds by default.
const LOOK_BACK_US: i64 = 15_000_000;
/// Buckets of a range when no length is named: about one for each two pixels.
const BUCKETS: i64 = 600;
const SHORTEST_US: i64 = 1000;
/// Numbers of one answer are ten times this: some 40 MB of JSON.
const MAX_CELLS: u64 = 500_000;
const NARROW: &str =
    "a shorter range, a longer resolution, fewer metrics, or fewer containers (containers=, namespace=)";
/// Columns besides the metrics.
const KEYS: [&str; 5] = ["ts", "cgroup_id", "boot_id", "cause", "period_ms"];

struct Wanted {
    from_us: i64,
    to_us: i64,
    step_us: i64,
    metrics: Vec<&'static Column>,
    is_rate: bool,
    max_rows: u64,
    max_containers: usize,
}

pub async fn timeseries<S: Source>(
    State(app): State<Arc<App<S>>>,
    pairs: Pairs,
) -> Result<Response, Refusal> {
    let asked = api::understood(&api::TIMESERIES, pairs)?;
    let accepted = ["memory_current", "cpu_stat_*", "see /api/metrics"];
    let names = asked.get("metric").ok_or_else(|| Problem::bad_query("metric is missing", &accepted))?;
    let metrics: Vec<&Column> = columns(names)?
        .into_iter()
        .filter_map(|name| catalogue::columns().map(|(_, _, c)| c).find(|c| c.name == name))
        .collect();
    let is_rate = match asked.get("rate") {
        None | Some("true") => true,
        Some("false") => false,
        Some(other) => {
            return Err(Problem::bad_query(format!("rate={other} is not known"), &["true", "false"]).into());
        }
    };
    let (from_us, to_us) = asked.range(RANGE, app.now_us())?;
    let step_us = match asked.get("resolution") {
        None => (to_us.saturating_sub(from_us) / BUCKETS).max(SHORTEST_US),
        Some(text) => duration_us("resolution", text)?.max(SHORTEST_US),
    };
    let containers = Containers::parse(|name| asked.get(name))?;
    let incidents = if containers.labels.is_empty() { Vec::new() } else { known_incidents(&app).await? };
    let _turn = app.query_turn().await?;
    let view = look(&app, &[Table::Samples], from_us.saturating_sub(LOOK_BACK_US)).await?;
    let (max_rows, max_containers) = (app.limits.max_rows, app.limits.max_containers);
    let wanted = Wanted { from_us, to_us, step_us, metrics, is_rate, max_rows, max_containers };
    let cancel = Cancel::default();
    let watched = cancel.watched();
    let answer = on_a_blocking_thread(move || {
        make(&view, &wanted, &Chooser::new(&containers, &incidents), &watched).map(|v| json_answer(&v))
    })
    .await??;
    // When the client goes, this future is dropped at its await, and with it what the thread looks at.
    drop(cancel);
    Ok(answer)
}

fn make(view: &View, wanted: &Wanted, chooser: &Chooser<'_>, cancel: &Watched) -> Result<Value, Problem> {
    let wide = Filter::range(wanted.from_us.saturating_sub(LOOK_BACK_US), wanted.to_us);
    let chosen = containers::chosen(view, &wide, chooser)?;
    if chosen.len() > wanted.max_containers {
        let limit = wanted.max_containers as u64;
        return Err(Problem::too_large("export.max_containers", limit, chosen.len() as u64, NARROW));
    }
    let buckets = (wanted.to_us.saturating_sub(wanted.from_us) / wanted.step_us).unsigned_abs() + 1;
    let cells = buckets.saturating_mul((chosen.len().max(1) * wanted.metrics.len()) as u64);
    if cells > MAX_CELLS {
        return Err(Problem::too_large("buckets of an answer", MAX_CELLS, cells, NARROW));
    }
    let ids: BTreeSet<i64> = chosen.iter().filter_map(|key| key.cgroup_id).collect();
    let filter = Filter { cgroups: Some(ids), ..wide };
    let plan = query::plan(view, Table::Samples, &filter, wanted.max_rows).map_err(of_query)?;
    let identities = plan.identities().map_err(of_query)?;
    let mut names: Vec<&str> = KEYS.to_vec();
    names.extend(wanted.metrics.iter().map(|c| c.name));
    let mut series = Vec::new();
    for batch in plan.chunks(Some(&names)).map_err(of_query)? {
        cancel.check()?;
        let batch = batch.map_err(of_query)?;
        for (key, range) in rows::stretches(&batch) {
            if chosen.contains(&key) {
                let who = rows::who(&key, identities.get(&key).unwrap_or(&query::Identity::default()));
                series.push(one(&batch, range, who, wanted));
            }
        }
    }
    let metrics: Vec<Value> = wanted
        .metrics
        .iter()
        .map(|c| json!({"name": c.name, "unit": c.unit.as_str(), "is_rate": wanted.is_rate && c.kind == Kind::Counter}))
        .collect();
    Ok(json!({
        "from_us": wanted.from_us,
        "to_us": wanted.to_us,
        "resolution_us": wanted.step_us,
        "metrics": metrics,
        "series": series,
        "lost": plan.lost,
    }))
}

/// The lines of one cgroup; a metric of which it has no reading is left out.
fn one(batch: &RecordBatch, range: Range<usize>, mut who: Map<String, Value>, wanted: &Wanted) -> Value {
    let moments = rows::moments(batch, range.clone());
    let mut lines = Map::new();
    for column in &wanted.metrics {
        let values = rows::ints(batch, column.name);
        let readings: Vec<Reading> = range
            .clone()
            .zip(&moments)
            .filter_map(|(row, &(t_us, cause, period_ms))| {
                Some(Reading { t_us, value: rows::int(values, row)?, cause, period_ms })
            })
            .collect();
        let points = if wanted.is_rate && column.kind == Kind::Counter {
            timeseries::rates(&readings)
        } else {
            timeseries::levels(&readings)
        };
        let buckets: Buckets = timeseries::buckets(&points, (wanted.from_us, wanted.to_us), wanted.step_us);
        if !buckets.t.is_empty() {
            lines.insert(column.name.to_owned(), json!(buckets));
        }
    }
    let inside: Vec<_> =
        moments.into_iter().filter(|(t, ..)| (wanted.from_us..=wanted.to_us).contains(t)).collect();
    let period = |wanted| inside.iter().filter(|(_, cause, _)| *cause == wanted).map(|(_, _, ms)| *ms).min();
    let periods = json!({"base": period(Cause::Base), "history": period(Cause::History), "burst": period(Cause::Burst)});
    who.insert("periods_ms".to_owned(), periods);
    who.insert("rows".to_owned(), json!(inside.len()));
    who.insert("bands".to_owned(), json!(timeseries::bands(&inside)));
    who.insert("metrics".to_owned(), Value::Object(lines));
    Value::Object(who)
}
