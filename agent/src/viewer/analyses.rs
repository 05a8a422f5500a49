//! `/api/analyze/…`: what the lines of a selection do over time, and when they will be at their limits.
//!
//! The same selection as `/api/timeseries`, and the same lines (`lines`); what is found in them `analyze` says. Here stands
//! only which limit bounds which metric, and whose: the one with the least room, of the cgroup or of one above it.

use super::answers::{Cancel, Refusal, Watched, json_answer, of_query, on_a_blocking_thread};
use super::api::{self, Endpoint, Pairs};
use super::lines::{OfOne, Wanted};
use super::{App, Source, rows};
use crate::analyze::{self, Grid};
use crate::catalogue;
use crate::export::{self, Limits, Problem};
use crate::names::Table;
use crate::query::{self, Filter, Identity, Key};
use crate::store::View;
use crate::timeseries::Point;
use axum::extract::{Query, State};
use axum::response::Response;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Lines analysed for one answer: each takes up to 20 ms.
const MAX_LINES: u64 = 500;
const NARROW: &str = "fewer metrics (metric=), or fewer containers (containers=, namespace=)";
/// Metrics that have a limit, its column, and the file in whose bit of `files_read` it says that there is none.
const LIMITED: [(&str, &str, &str); 4] = [
    ("memory_current", "memory_max", "memory.max"),
    ("memory_swap_current", "memory_swap_max", "memory.swap.max"),
    ("pids_current", "pids_max", "pids.max"),
    ("cpu_stat_usage_usec", "cpu_max_quota_usec", "cpu.max"),
];
const CPU: &str = "cpu_stat_usage_usec";

pub async fn periodicity<S: Source>(app: State<Arc<App<S>>>, pairs: Pairs) -> Result<Response, Refusal> {
    analysed(app, Analysis::Periodicity, pairs).await
}

pub async fn changepoint<S: Source>(app: State<Arc<App<S>>>, pairs: Pairs) -> Result<Response, Refusal> {
    analysed(app, Analysis::Changepoint, pairs).await
}

pub async fn trend<S: Source>(app: State<Arc<App<S>>>, pairs: Pairs) -> Result<Response, Refusal> {
    analysed(app, Analysis::Trend, pairs).await
}

/// What is asked of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Analysis {
    Periodicity,
    Changepoint,
    Trend,
}

impl Analysis {
    pub fn path(self) -> &'static str {
        self.endpoint().path
    }

    fn endpoint(self) -> &'static Endpoint {
        match self {
            Self::Periodicity => &api::PERIODICITY,
            Self::Changepoint => &api::CHANGEPOINT,
            Self::Trend => &api::TREND,
        }
    }

    fn find(self, of: &Of<'_>, grid: &Grid) -> Value {
        match self {
            Self::Periodicity => json!(analyze::period(grid)),
            Self::Changepoint => json!(analyze::changes(grid)),
            Self::Trend => trend_of(of, grid),
        }
    }

    /// The same answer for a folder that no agent serves. `pairs` are the parameters of the path.
    pub fn of_folder(
        self,
        view: &View,
        pairs: Vec<(String, String)>,
        now_us: i64,
        limits: Limits,
    ) -> Result<Value, Problem> {
        let mut wanted = Wanted::parse(&api::understood(self.endpoint(), Ok(Query(pairs)))?, now_us, limits)?;
        wanted.incidents = export::incidents(view, Vec::new())?;
        wanted.containers.know_by(view).map_err(of_query)?;
        make(view, &wanted, &Watched::default(), self)
    }
}

/// One line, and whose it is.
struct Of<'a> {
    key: &'a Key,
    identity: &'a Identity,
    metric: &'a str,
    limits: &'a BTreeMap<Key, Above>,
}

async fn analysed<S: Source>(
    State(app): State<Arc<App<S>>>,
    analysis: Analysis,
    pairs: Pairs,
) -> Result<Response, Refusal> {
    let wanted = Wanted::of(&app, &api::understood(analysis.endpoint(), pairs)?).await?;
    let _turn = app.query_turn().await?;
    let view = wanted.look(&app).await?;
    let cancel = Cancel::default();
    let watched = cancel.watched();
    let answer =
        on_a_blocking_thread(move || make(&view, &wanted, &watched, analysis).map(|v| json_answer(&v)))
            .await??;
    drop(cancel);
    Ok(answer)
}

fn make(view: &View, wanted: &Wanted, cancel: &Watched, analysis: Analysis) -> Result<Value, Problem> {
    let mut all: Vec<OfOne> = Vec::new();
    let mut lines = 0;
    let lost = wanted.each(view, cancel, |mut of_one| {
        lines += of_one.lines.len() as u64;
        let is_inside = |p: &Point| (wanted.from_us..=wanted.to_us).contains(&p.t_us);
        of_one.lines.iter_mut().for_each(|(_, points)| points.retain(is_inside));
        of_one.moments = Vec::new();
        if lines <= MAX_LINES {
            all.push(of_one);
        }
    })?;
    if lines > MAX_LINES {
        return Err(Problem::too_large("lines of an analysis", MAX_LINES, lines, NARROW));
    }
    let has_limit = |name: &str| LIMITED.iter().any(|(metric, ..)| *metric == name);
    let with_limits = analysis == Analysis::Trend
        && wanted.table == Table::Samples
        && wanted.metrics.iter().any(|m| has_limit(m.name));
    let limits = if with_limits { above(view, wanted, &all)? } else { BTreeMap::new() };
    let mut series = Vec::new();
    for of_one in &all {
        let mut found = Map::new();
        for (metric, points) in &of_one.lines {
            cancel.check()?;
            let of =
                Of { key: &of_one.key, identity: &of_one.identity, metric: metric.name, limits: &limits };
            // a metric of which there are too few readings to say anything is left out
            if let Some(grid) = Grid::new(points) {
                found.insert(metric.name.to_owned(), analysis.find(&of, &grid));
            }
        }
        let mut who = rows::who(&of_one.key, &of_one.identity);
        who.extend(of_one.beside.clone());
        who.insert("metrics".to_owned(), Value::Object(found));
        series.push(Value::Object(who));
    }
    Ok(json!({
        "from_us": wanted.from_us,
        "to_us": wanted.to_us,
        "table": wanted.table.as_str(),
        "series": series,
        "lost": lost,
    }))
}

fn trend_of(of: &Of<'_>, grid: &Grid) -> Value {
    let Some(trend) = analyze::trend(grid) else { return Value::Null };
    let mut told = json!(trend);
    let (forecast, limit) = match of.nearest(trend.value) {
        Some(near) => (
            analyze::forecast(&trend, near.room),
            json!({
                "name": near.name, "value": near.limit, "cgroup_path": near.path, "is_own": near.is_own,
                "room": near.room,
            }),
        ),
        None if LIMITED.iter().any(|(metric, ..)| *metric == of.metric) => {
            (Err("neither it nor a cgroup above it has a limit that is known"), Value::Null)
        }
        None => (Err("a metric without a limit"), Value::Null),
    };
    told["limit"] = limit;
    told["forecast"] = json!(forecast.ok());
    told["no_forecast"] = json!(forecast.err());
    told
}

/// What the last rows of a cgroup say of usage and limits, by metric.
#[derive(Default)]
struct Above {
    path: String,
    last: BTreeMap<&'static str, (f64, Option<f64>)>,
}

struct Near<'a> {
    name: &'static str,
    limit: f64,
    room: f64,
    path: &'a str,
    is_own: bool,
}

impl Of<'_> {
    /// The limit with the least room. Of the line's own cgroup what is used is what the trend says.
    fn nearest(&self, value: f64) -> Option<Near<'_>> {
        let own = self.identity.cgroup_path.as_deref()?;
        let (_, name, _) = LIMITED.iter().find(|(metric, ..)| *metric == self.metric)?;
        let near = self
            .limits
            .iter()
            .filter(|(key, above)| key.boot == self.key.boot && is_at_or_above(&above.path, own));
        let near = near.filter_map(|(key, above)| {
            let (used, limit) = above.last.get(self.metric)?;
            let is_own = key == self.key;
            let limit = (*limit)?;
            let room = limit - if is_own { value } else { *used };
            room.is_finite().then_some(Near { name, limit, room, path: &above.path, is_own })
        });
        near.min_by(|a, b| a.room.total_cmp(&b.room))
    }
}

fn is_at_or_above(path: &str, own: &str) -> bool {
    path == "/" || own.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The limits of the cgroups of these lines and of those above them, as their last rows have them.
fn above(view: &View, wanted: &Wanted, all: &[OfOne]) -> Result<BTreeMap<Key, Above>, Problem> {
    let paths: Vec<&str> = all.iter().filter_map(|o| o.identity.cgroup_path.as_deref()).collect();
    let wide = Filter::range(wanted.from_us, wanted.to_us);
    let plan = query::plan(view, Table::Samples, &wide, u64::MAX).map_err(of_query)?;
    let identities = plan.identities().map_err(of_query)?;
    let is_wanted = |who: &Identity| {
        who.cgroup_path.as_deref().is_some_and(|path| paths.iter().any(|own| is_at_or_above(path, own)))
    };
    let plan = plan.of(|key| identities.get(key).is_some_and(is_wanted));
    let mut names = vec!["ts", "cgroup_id", "boot_id", "files_read", "cpu_max_period_usec"];
    names.extend(LIMITED.iter().flat_map(|(metric, limit, _)| [*metric, *limit]));
    let mut out = BTreeMap::new();
    for batch in plan.chunks(Some(&names)).map_err(of_query)? {
        let batch = batch.map_err(of_query)?;
        for (key, range) in rows::stretches(&batch) {
            let path = identities.get(&key).and_then(|who| who.cgroup_path.clone()).unwrap_or_default();
            let mut above = Above { path, last: BTreeMap::new() };
            for (metric, limit, file) in LIMITED {
                let [used, set, read] = [metric, limit, "files_read"].map(|name| rows::ints(&batch, name));
                let bit = catalogue::file(file).map_or(0, |index| 1i64 << index);
                let newest =
                    |of: &dyn Fn(usize) -> Option<Option<i64>>| range.clone().rev().find_map(of).flatten();
                // NULL where the file was read is no limit, NULL elsewhere says nothing
                let limit = newest(&|row| match rows::int(set, row) {
                    Some(v) => Some(Some(v)),
                    None => rows::int(read, row).filter(|bits| bits & bit != 0).map(|_| None),
                });
                let level = newest(&|row| rows::int(used, row).map(Some));
                #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
                let real = |v: i64| v as f64;
                if metric == CPU {
                    let period = rows::ints(&batch, "cpu_max_period_usec");
                    let period = newest(&|row| rows::int(period, row).filter(|p| *p > 0).map(Some));
                    // µs of CPU a second, as its rate is; what a cgroup above uses would need its rate: its own limit alone counts
                    let limit = limit.zip(period).map(|(quota, period)| real(quota) / real(period) * 1e6);
                    above.last.insert(metric, (f64::NAN, limit));
                } else if let Some(level) = level {
                    above.last.insert(metric, (real(level), limit.map(real)));
                }
            }
            out.insert(key, above);
        }
    }
    Ok(out)
}
