//! One function an endpoint. Each gathers its evidence, lets `export` or `query` do the work, and gives back JSON, bytes
//! or a problem. No state of its own.

use super::{App, Source};
use crate::clock;
use crate::export::{self, EVENT_COLUMNS, Evidence, MEDIA_TYPE, Problem, Selection};
use crate::incident::Incident;
use crate::names::Table;
use crate::query::{self, Filter, QueryError};
use crate::store::{Loose, View};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// How long an export may wait for its turn.
const TURN_WITHIN: Duration = Duration::from_secs(30);
/// Attempts to see memory and store of one instant. A seal comes every 90 s or at an incident.
const LOOKS: usize = 10;
const MAX_EVENTS: u64 = 10_000;
/// Range of `/api/events` when none is named.
const EVENTS_RANGE: &str = "15m";

type Params = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// A problem as an answer.
pub struct Refusal(pub Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // Only our own faults are worth a line: what is wrong with a request is said to whoever sent it, and "not now"
        // (an agent that starts, an export that waits its turn) is an ordinary answer.
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::warn!(status = self.0.status, detail = self.0.detail, "a request failed");
        } else {
            tracing::debug!(status = self.0.status, detail = self.0.detail, "a request was refused");
        }
        let mut response = (status, self.0.to_json().to_string()).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response
    }
}

pub async fn no_such_path(uri: Uri) -> Refusal {
    Refusal(Problem::no_such_path(uri.path()))
}

pub async fn no_such_method() -> Refusal {
    let mut problem = Problem::bad_query("only GET is understood here", &["GET"]);
    problem.status = 405;
    Refusal(problem)
}

pub async fn healthz() -> &'static str {
    "ok\n"
}

pub async fn readyz<S: Source>(State(app): State<Arc<App<S>>>) -> Result<&'static str, Refusal> {
    app.source.ready().map(|()| "ready\n").map_err(|why| Problem::unavailable(why).into())
}

pub async fn metrics<S: Source>(State(app): State<Arc<App<S>>>) -> impl IntoResponse {
    let mut text = app.source.metrics();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    let (status, mut gauge) = (app.store.status(), |name: &str, help: &str, value: &Value| {
        let value = value.as_u64().unwrap_or(0);
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    });
    gauge("fgm_store_bytes", "Bytes of closed segments.", &status["bytes"]);
    gauge("fgm_store_files", "Closed segments.", &status["files"]);
    gauge("fgm_store_pending_rows", "Rows that wait to be written.", &status["pending"]["rows"]);
    let degraded = json!(u64::from(status["degraded"].is_string()));
    gauge("fgm_store_degraded", "1 while the store cannot be written.", &degraded);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

pub async fn status<S: Source>(State(app): State<Arc<App<S>>>) -> Response {
    let mut all = match app.source.status() {
        Value::Object(all) => all,
        other => Map::from_iter([("agent".to_owned(), other)]),
    };
    let store = app.store.status();
    if all.get("degraded").is_none_or(Value::is_null) {
        all.insert("degraded".to_owned(), store["degraded"].clone());
    }
    all.insert("store".to_owned(), store);
    json_answer(&Value::Object(all))
}

pub async fn incidents<S: Source>(State(app): State<Arc<App<S>>>) -> Result<Response, Refusal> {
    let incidents = known_incidents(&app).await?;
    Ok(json_answer(&json!({"incidents": incidents})))
}

pub async fn incident<S: Source>(
    State(app): State<Arc<App<S>>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let incidents = known_incidents(&app).await?;
    Ok(json_answer(&json!(export::find(&incidents, &id)?)))
}

pub async fn events<S: Source>(State(app): State<Arc<App<S>>>, params: Params) -> Result<Response, Refusal> {
    let params = understood(params)?;
    let accepted = ["range", "from", "to"];
    if let Some((name, _)) = params.iter().find(|(n, _)| !accepted.contains(&n.as_str())) {
        return Err(Problem::bad_query(format!("parameter {name} is not known"), &accepted).into());
    }
    let get = |name: &str| params.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let range = if params.is_empty() { Some(EVENTS_RANGE) } else { get("range") };
    let (from_us, to_us) = export::time_range(range, get("from"), get("to"), clock::wall_us())?;
    let view = look(&app, &[Table::Events]).await?;
    let read = move || query::rows(&view, Table::Events, &Filter::range(from_us, to_us), None, MAX_EVENTS);
    let (rows, lost) = on_a_blocking_thread(read).await?.map_err(|e| match e {
        QueryError::TooMany { asked, limit, .. } => {
            Problem::too_large("events of an answer", limit, asked, "a shorter range")
        }
        other => Problem::internal(other),
    })?;
    let columns: Vec<&str> = EVENT_COLUMNS.into_iter().chain(["detail"]).collect();
    let mut events: Vec<Value> = rows
        .iter()
        .flat_map(|batch| (0..batch.num_rows()).map(|at| export::row(batch, at, &columns)))
        .collect();
    events.sort_by_key(|e| e["ktime_ns"].as_i64());
    Ok(json_answer(&json!({"from_us": from_us, "to_us": to_us, "events": events, "lost": lost})))
}

pub async fn export<S: Source>(State(app): State<Arc<App<S>>>, params: Params) -> Result<Response, Refusal> {
    let now_us = clock::wall_us();
    let selection = Selection::parse(&understood(params)?, now_us)?;
    let Ok(Ok(turn)) = tokio::time::timeout(TURN_WITHIN, app.exports.clone().acquire_owned()).await else {
        return Err(Problem::unavailable("other exports are being made; try again in some seconds").into());
    };
    let evidence = evidence(&app, now_us).await?;
    let make = move || {
        // The turn lasts as long as the work, also when nobody waits for the answer any more.
        let _turn = turn;
        export::export(evidence, &selection)
    };
    let made = on_a_blocking_thread(make).await??;
    let disposition = if made.format == export::Format::Html { "inline" } else { "attachment" };
    let disposition = format!("{disposition}; filename=\"{}\"", made.file_name);
    let headers = [
        (header::CONTENT_TYPE, made.format.media_type().to_owned()),
        (header::CONTENT_DISPOSITION, disposition),
    ];
    Ok((headers, made.bytes).into_response())
}

fn json_answer(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

fn understood(params: Params) -> Result<Vec<(String, String)>, Problem> {
    let Query(pairs) = params.map_err(|e| Problem::bad_query(format!("the query string: {e}"), &[]))?;
    Ok(pairs)
}

async fn on_a_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Problem::internal(format!("the work was cut off: {e}")))
}

/// Store and memory of one instant. Rows go from memory into the store at a seal; when one came between the two looks,
/// they are looked at again, so that no row is there twice and none is missing.
pub(super) async fn look<S: Source>(app: &App<S>, tables: &[Table]) -> Result<View, Problem> {
    for _ in 0..LOOKS {
        let before = app.store.sealed_seq();
        let mut loose = Vec::new();
        for table in tables {
            let boot = app.store.boot();
            for batch in app.source.memory(*table).await.map_err(Problem::unavailable)? {
                loose.push(Loose { table: *table, boot: boot.clone(), batch });
            }
        }
        let mut view = app.store.view();
        if view.seq == before {
            view.loose.extend(loose);
            return Ok(view);
        }
    }
    Err(Problem::unavailable("the agent seals its rows too often to be read just now; try again"))
}

pub(super) async fn known_incidents<S: Source>(app: &App<S>) -> Result<Vec<Incident>, Problem> {
    let (view, running) = (app.store.view(), app.source.incidents());
    on_a_blocking_thread(move || export::incidents(&view, running)).await?
}

async fn evidence<S: Source>(app: &App<S>, now_us: i64) -> Result<Evidence, Problem> {
    let incidents = known_incidents(app).await?;
    let view = look(app, &[Table::Samples, Table::Events, Table::Processes]).await?;
    let status = app.source.status();
    let provenance = status.get("provenance").unwrap_or(&status).as_object().cloned().unwrap_or_default();
    Ok(Evidence { view, incidents, provenance, limits: app.limits, now_us })
}
