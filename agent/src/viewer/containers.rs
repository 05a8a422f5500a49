//! `/api/containers` and `/api/filters`: which cgroups there are rows of, and what their last rows say.
//!
//! Live is what has rows up to the newest instant that is known, by its own period; a cgroup that ended is gone and keeps
//! its last values as its last, with their instant. No names are made up: what is not known is null.

use super::answers::{
    Cancel, Refusal, Watched, json_answer, known_incidents, look, of_query, on_a_blocking_thread,
};
use super::api::{self, Asked, Pairs};
use super::{App, Source, rows};
use crate::export::{Chooser, Containers, Problem};
use crate::names::Table;
use crate::pods::Pods;
use crate::query::{self, Filter, Identity, Key, Plan};
use crate::store::View;
use crate::timeseries::GAP_PERIODS;
use crate::timeseries::derived::derived;
use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Range when none is named.
pub const RANGE: &str = "15m";
/// Rows are handed over a moment after they were read.
const LATE_US: i64 = 2_000_000;
const COLUMNS: [&str; 10] = [
    "ts",
    "cgroup_id",
    "boot_id",
    "cause",
    "period_ms",
    "files_read",
    "memory_current",
    "memory_max",
    "memory_stat_inactive_file",
    "cpu_stat_usage_usec",
];

/// What the rows of one cgroup say.
#[derive(Default, Serialize)]
struct Told {
    first_us: i64,
    last_us: i64,
    rows: u64,
    is_live: bool,
    memory_bytes: Option<i64>,
    /// As of its last reading in the range.
    memory_limit_bytes: Option<i64>,
    memory_peak_bytes: Option<i64>,
    /// Of the last row that has memory.stat.
    memory_working_set_bytes: Option<f64>,
    /// Of the last reading of memory.current, by the limit that was in force then.
    memory_percent_of_limit: Option<f64>,
    /// Over the last interval of two seconds or more, in thousandths of a core.
    cpu_millicores: Option<f64>,
}

struct One {
    key: Key,
    who: Identity,
    told: Told,
}

pub async fn list<S: Source>(State(app): State<Arc<App<S>>>, pairs: Pairs) -> Result<Response, Refusal> {
    let asked = api::understood(&api::CONTAINERS_LIST, pairs)?;
    let state = match asked.get("state") {
        None => None,
        Some("live") => Some(true),
        Some("gone") => Some(false),
        Some(other) => {
            return Err(Problem::bad_query(format!("state={other} is not known"), &["live", "gone"]).into());
        }
    };
    let word = asked.get("search").unwrap_or_default().to_lowercase();
    let same = |name: &str, value: &Option<String>| {
        asked.get(name).is_none_or(|w| value.as_deref().is_some_and(|v| v.eq_ignore_ascii_case(w)))
    };
    let (found, (from_us, to_us)) = gather(&app, &asked).await?;
    let pods = app.source.pods();
    let shown: Vec<Value> = found
        .iter()
        .filter(|one| state.is_none_or(|live| one.told.is_live == live))
        .filter(|one| same("scope", &one.who.scope) && same("qos", &one.who.qos) && has_word(&one.who, &word))
        .map(|one| {
            let mut all = rows::who(&one.key, &one.who);
            all.extend(told_of(&pods, &one.who));
            if let Value::Object(told) = json!(one.told) {
                all.extend(told);
            }
            Value::Object(all)
        })
        .collect();
    Ok(json_answer(&json!({"from_us": from_us, "to_us": to_us, "of": found.len(), "containers": shown})))
}

/// What Kubernetes says of it now; null where it says nothing. No part of its rows.
fn told_of(pods: &Pods, who: &Identity) -> Map<String, Value> {
    let found = pods.who(who.pod_uid.as_deref(), who.container_id.as_deref());
    let pod = found.as_ref().map(|w| &w.pod);
    let container = found.as_ref().and_then(|w| w.container());
    [
        ("labels", json!(pod.map(|p| &p.labels))),
        ("owner", json!(pod.and_then(|p| p.owner.as_ref()).map(|o| json!({"kind": o.kind, "name": o.name})))),
        ("image", json!(container.and_then(|c| c.image.as_ref()))),
        ("restart_count", json!(container.map(|c| c.restart_count))),
        ("cpu_limit", json!(container.and_then(|c| c.cpu_limit.as_ref()))),
        ("memory_limit", json!(container.and_then(|c| c.memory_limit.as_ref()))),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect()
}

pub async fn filters<S: Source>(State(app): State<Arc<App<S>>>, pairs: Pairs) -> Result<Response, Refusal> {
    let asked = api::understood(&api::FILTERS, pairs)?;
    let (found, (from_us, to_us)) = gather(&app, &asked).await?;
    let facet = |value: fn(&Identity) -> &Option<String>| {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for value in found.iter().filter_map(|one| value(&one.who).as_deref()) {
            *counts.entry(value).or_default() += 1;
        }
        let facet: Vec<Value> =
            counts.into_iter().map(|(value, n)| json!({"value": value, "count": n})).collect();
        facet
    };
    let live = found.iter().filter(|one| one.told.is_live).count();
    Ok(json_answer(&json!({
        "from_us": from_us,
        "to_us": to_us,
        "scope": facet(|w| &w.scope),
        "qos": facet(|w| &w.qos),
        "namespace": facet(|w| &w.namespace),
        "pod": facet(|w| &w.pod),
        "state": [{"value": "live", "count": live}, {"value": "gone", "count": found.len() - live}],
    })))
}

fn has_word(who: &Identity, word: &str) -> bool {
    [&who.cgroup_path, &who.container_id, &who.pod_uid, &who.namespace, &who.pod, &who.container]
        .iter()
        .any(|text| text.as_ref().is_some_and(|t| t.to_lowercase().contains(word)))
}

async fn gather<S: Source>(app: &App<S>, asked: &Asked) -> Result<(Vec<One>, (i64, i64)), Problem> {
    let (from_us, to_us) = asked.range(RANGE, app.now_us())?;
    let mut containers = Containers::parse(|name| asked.get(name))?;
    app.know(&mut containers);
    let incidents = if containers.labels.is_empty() { Vec::new() } else { known_incidents(app).await? };
    let _turn = app.query_turn().await?;
    let view = look(app, &[Table::Samples, Table::Events], from_us).await?;
    let now_us = app.now_us();
    let max_rows = app.limits.max_rows;
    let cancel = Cancel::default();
    let watched = cancel.watched();
    let pods = app.source.pods();
    let found = on_a_blocking_thread(move || {
        let chooser = Chooser::new(&containers, &incidents);
        let filter = Filter { cgroups: chooser.ids(), ..Filter::range(from_us, to_us) };
        let mut found = tell(&view, &filter, max_rows, now_us.min(to_us), &watched)?;
        for one in &mut found {
            one.who.name_by(&pods);
        }
        found.retain(|one| chooser.takes(&one.key, &one.who));
        Ok::<_, Problem>(found)
    })
    .await??;
    drop(cancel);
    Ok((found, (from_us, to_us)))
}

fn tell(
    view: &View,
    filter: &Filter,
    max_rows: u64,
    now_us: i64,
    cancel: &Watched,
) -> Result<Vec<One>, Problem> {
    let plan = query::plan(view, Table::Samples, filter, max_rows).map_err(of_query)?;
    let mut identities = plan.identities().map_err(of_query)?;
    let ended = ended(view, filter)?;
    let mut found = BTreeMap::new();
    for batch in plan.chunks(Some(&COLUMNS)).map_err(of_query)? {
        cancel.check()?;
        let batch = batch.map_err(of_query)?;
        let [memory, limit, cpu] =
            ["memory_current", "memory_max", "cpu_stat_usage_usec"].map(|name| rows::ints(&batch, name));
        for (key, range) in rows::stretches(&batch) {
            let moments = rows::moments(&batch, range.clone());
            let (Some((first_us, ..)), Some((last_us, _, period_ms))) = (moments.first(), moments.last())
            else {
                continue;
            };
            let newest = |column| range.clone().rev().find_map(|row| rows::int(column, row));
            let last = |name: &str| {
                let made = derived(name)?;
                made.points(&rows::cells(&batch, made, range.clone(), &moments)).pop()
            };
            let measured = range.clone().zip(&moments).rfind(|(row, _)| rows::int(memory, *row).is_some());
            let measured_us = measured.map(|(_, (t_us, ..))| *t_us);
            let told = Told {
                first_us: *first_us,
                last_us: *last_us,
                rows: range.len() as u64,
                is_live: !ended.contains(&key) && is_live(*last_us, *period_ms, now_us),
                memory_bytes: newest(memory),
                memory_limit_bytes: newest(limit),
                memory_peak_bytes: range.clone().filter_map(|row| rows::int(memory, row)).max(),
                memory_working_set_bytes: last("memory_working_set").map(|p| p.value),
                memory_percent_of_limit: last("memory_percent_of_limit")
                    .filter(|p| Some(p.t_us) == measured_us)
                    .map(|p| p.value),
                cpu_millicores: busy(
                    range.clone().zip(&moments).filter_map(|(row, m)| Some((m.0, rows::int(cpu, row)?))),
                ),
            };
            found.insert(key, told);
        }
    }
    let mut out: Vec<One> = found
        .into_iter()
        .map(|(key, told)| One { who: identities.remove(&key).unwrap_or_default(), key, told })
        .collect();
    out.sort_by(|a, b| {
        let rank = |one: &One| (!one.told.is_live, one.who.scope.as_deref() != Some("container"));
        (rank(a), &a.who.cgroup_path, &a.key).cmp(&(rank(b), &b.who.cgroup_path, &b.key))
    });
    Ok(out)
}

/// Whether the next row is not overdue.
pub(super) fn is_live(last_us: i64, period_ms: i64, now_us: i64) -> bool {
    now_us - last_us <= GAP_PERIODS * 1000 * period_ms.max(1000) + LATE_US
}

/// The cgroups of which the kernel told the end: gone, however new their last row is.
pub(super) fn ended(view: &View, filter: &Filter) -> Result<BTreeSet<Key>, Problem> {
    let columns = ["ts", "cgroup_id", "boot_id", "kind"];
    let (batches, _) =
        query::rows(view, Table::Events, filter, Some(&columns), u64::MAX).map_err(of_query)?;
    let mut out = BTreeSet::new();
    for batch in &batches {
        for (key, mut range) in rows::stretches(batch) {
            if range.any(|row| query::text(batch, "kind", row) == Some("cgroup_end")) {
                out.insert(key);
            }
        }
    }
    Ok(out)
}

/// CPU over the last two seconds of readings (instant in µs, usage in µs).
#[expect(clippy::cast_precision_loss, reason = "differences")]
fn busy(readings: impl Iterator<Item = (i64, i64)>) -> Option<f64> {
    let all: Vec<(i64, i64)> = readings.collect();
    let (to_us, usage) = *all.last()?;
    let (from_us, before) = *all.iter().rev().find(|(t, _)| to_us - t >= 2_000_000).or(all.first())?;
    (to_us > from_us && usage >= before).then(|| (usage - before) as f64 / (to_us - from_us) as f64 * 1000.0)
}

/// The rows of the cgroups that a selection takes, and who these are.
pub fn chosen(
    view: &View,
    table: Table,
    filter: &Filter,
    chooser: &Chooser<'_>,
) -> Result<(Plan, BTreeMap<Key, Identity>), Problem> {
    let filter = Filter { cgroups: chooser.ids(), containers: chooser.container_ids(), ..filter.clone() };
    let plan = query::plan(view, table, &filter, u64::MAX).map_err(of_query)?;
    let mut identities = plan.identities().map_err(of_query)?;
    identities.retain(|key, who| chooser.takes(key, who));
    Ok((plan.of(|key| identities.contains_key(key)), identities))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_told_of_the_last_seconds_and_never_across_a_reset() {
        let told = |list: &[(i64, i64)]| busy(list.iter().map(|(s, usage)| (s * 1_000_000, *usage)));
        assert_eq!(told(&[(0, 0), (10, 9_000_000), (12, 10_000_000)]), Some(500.0));
        assert_eq!(told(&[(0, 0), (1, 250_000)]), Some(250.0), "all that there is");
        assert_eq!(told(&[(0, 5)]), None);
        assert_eq!(told(&[(0, 9_000_000), (2, 5)]), None);
    }
}
