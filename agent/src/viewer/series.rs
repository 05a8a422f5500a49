//! `/api/timeseries`: metrics of containers as buckets. Which lines there are, and what of them is too much, `lines` knows.

use super::answers::{Cancel, Refusal, Watched, json_answer, on_a_blocking_thread};
use super::api::{self, Pairs};
use super::lines::{OfOne, Wanted};
use super::{App, Source, rows};
use crate::catalogue::Kind;
use crate::export::Problem;
use crate::names::{Cause, Table};
use crate::store::View;
use crate::timeseries::{self, Buckets};
use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};
use std::sync::Arc;

pub async fn timeseries<S: Source>(
    State(app): State<Arc<App<S>>>,
    pairs: Pairs,
) -> Result<Response, Refusal> {
    let asked = api::understood(&api::TIMESERIES, pairs)?;
    let wanted = Wanted::of(&app, &asked).await?;
    let _turn = app.query_turn().await?;
    let view = wanted.look(&app).await?;
    let cancel = Cancel::default();
    let watched = cancel.watched();
    let answer =
        on_a_blocking_thread(move || make(&view, &wanted, &watched).map(|v| json_answer(&v))).await??;
    // When the client goes, this future is dropped at its await, and with it what the thread looks at.
    drop(cancel);
    Ok(answer)
}

fn make(view: &View, wanted: &Wanted, cancel: &Watched) -> Result<Value, Problem> {
    let mut series = Vec::new();
    let lost = wanted.each(view, cancel, |of_one| series.push(one(of_one, wanted)))?;
    let metrics: Vec<Value> = wanted
        .metrics
        .iter()
        .map(
            |m| json!({"name": m.name, "unit": m.unit, "is_rate": wanted.is_rate && m.kind == Kind::Counter}),
        )
        .collect();
    Ok(json!({
        "from_us": wanted.from_us,
        "to_us": wanted.to_us,
        "resolution_us": wanted.step_us,
        "table": wanted.table.as_str(),
        "metrics": metrics,
        "series": series,
        "lost": lost,
    }))
}

/// The lines of one cgroup; a metric of which it has no reading is left out.
fn one(of_one: OfOne, wanted: &Wanted) -> Value {
    let mut who = rows::who(&of_one.key, &of_one.identity);
    let mut lines = Map::new();
    for (metric, points) in &of_one.lines {
        let buckets: Buckets = timeseries::buckets(points, (wanted.from_us, wanted.to_us), wanted.step_us);
        if !buckets.t.is_empty() {
            lines.insert(metric.name.to_owned(), json!(buckets));
        }
    }
    let inside: Vec<_> =
        of_one.moments.into_iter().filter(|(t, ..)| (wanted.from_us..=wanted.to_us).contains(t)).collect();
    if wanted.table == Table::Samples {
        let period =
            |wanted| inside.iter().filter(|(_, cause, _)| *cause == wanted).map(|(_, _, ms)| *ms).min();
        let periods = json!({"base": period(Cause::Base), "history": period(Cause::History), "burst": period(Cause::Burst)});
        who.insert("periods_ms".to_owned(), periods);
        who.insert("bands".to_owned(), json!(timeseries::bands(&inside)));
    }
    who.extend(of_one.beside);
    who.insert("rows".to_owned(), json!(inside.len()));
    who.insert("metrics".to_owned(), Value::Object(lines));
    Value::Object(who)
}
