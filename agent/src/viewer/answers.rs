//! One function an endpoint. Each gathers its evidence, lets `export` or `query` do the work, and gives back JSON, bytes
//! or a problem. No state of its own.

use super::api::{self, Pairs};
use super::{App, Source, TURN_WITHIN, exposition, rows};
use crate::event::Kind;
use crate::export::{
    self, Chooser, Containers, EVENT_COLUMNS, Evidence, MEDIA_TYPE, Problem, Rows, Selection,
};
use crate::incident::{Incident, Lost};
use crate::names::Table;
use crate::query::{self, Filter, QueryError};
use crate::store::{Loose, View};
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Attempts to see memory and store of one instant. A flush comes every 0.6 s or at an incident.
const LOOKS: usize = 10;
const MAX_EVENTS: u64 = 10_000;
/// Range of `/api/events` when none is named.
const EVENTS_RANGE: &str = "15m";

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

pub async fn readyz<S: Source>(State(app): State<Arc<App<S>>>) -> Result<String, Refusal> {
    let ready = || ["ready", &app.source.notes()].map(str::trim).join("\n").trim().to_owned() + "\n";
    app.source.ready().map(|()| ready()).map_err(|why| Problem::unavailable(why).into())
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
    // what is asked for because something is wrong must not fail of it
    match exposition::lines(&app).await {
        Ok(lines) => text.push_str(&lines),
        Err(problem) => {
            let _ = writeln!(text, "# no values of containers: {}", problem.detail.replace('\n', " "));
        }
    }
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

pub async fn incidents<S: Source>(State(app): State<Arc<App<S>>>, pairs: Pairs) -> Result<Response, Refusal> {
    let asked = api::understood(&api::INCIDENTS, pairs)?;
    let range = asked.range_or_all(app.now_us())?;
    let (incidents, total) = export::listed(known_incidents(&app).await?, range, asked.get("limit"))?;
    Ok(json_answer(&json!({"incidents": incidents, "total": total})))
}

pub async fn incident<S: Source>(
    State(app): State<Arc<App<S>>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let incidents = known_incidents(&app).await?;
    Ok(json_answer(&json!(export::find(&incidents, &id)?)))
}

pub async fn catalogue(pairs: Pairs) -> Result<Response, Refusal> {
    let asked = api::understood(&api::METRICS_LIST, pairs)?;
    Ok(json_answer(&api::metrics(asked.get("search"))))
}

pub async fn openapi() -> Response {
    json_answer(&api::openapi())
}

pub async fn events<S: Source>(State(app): State<Arc<App<S>>>, pairs: Pairs) -> Result<Response, Refusal> {
    let asked = api::understood(&api::EVENTS, pairs)?;
    let (from_us, to_us) = asked.range(EVENTS_RANGE, app.now_us())?;
    let kinds = kinds(asked.get("kind").unwrap_or_default())?;
    let mut containers = Containers::parse(|name| asked.get(name))?;
    app.know(&mut containers);
    let view = look(&app, &[Table::Events], from_us).await?;
    let (events, lost) = on_a_blocking_thread(move || {
        EventsFilter { kinds, containers: &containers }.read(&view, from_us, to_us)
    })
    .await??;
    Ok(json_answer(&json!({"from_us": from_us, "to_us": to_us, "events": events, "lost": lost})))
}

/// Kinds of events, comma-separated; one that there is not is an error.
pub fn kinds(list: &str) -> Result<Vec<String>, Problem> {
    let kinds: Vec<String> =
        list.split(',').map(str::trim).filter(|k| !k.is_empty()).map(str::to_owned).collect();
    match kinds.iter().find(|kind| Kind::ALL.iter().all(|k| k.as_str() != *kind)) {
        Some(other) => {
            let known = Kind::ALL.map(Kind::as_str);
            Err(Problem::bad_query(format!("kind={other} is no kind of event"), &known))
        }
        None => Ok(kinds),
    }
}

/// The events of a view, as `/api/events` gives them.
pub fn events_of(
    view: &View,
    kind: &str,
    containers: &Containers,
    (from_us, to_us): (i64, i64),
) -> Result<Vec<Value>, Problem> {
    let filter = EventsFilter { kinds: kinds(kind)?, containers };
    filter.read(view, from_us, to_us).map(|(events, _)| events)
}

/// Which events; what is empty does not narrow.
pub(super) struct EventsFilter<'a> {
    pub kinds: Vec<String>,
    pub containers: &'a Containers,
}

impl EventsFilter<'_> {
    /// In time order.
    pub fn read(&self, view: &View, from_us: i64, to_us: i64) -> Result<(Vec<Value>, Vec<Lost>), Problem> {
        let chooser = Chooser::new(self.containers, &[]);
        let filter = Filter { cgroups: chooser.ids(), ..Filter::range(from_us, to_us) };
        let plan = query::plan(view, Table::Events, &filter, u64::MAX).map_err(of_query)?;
        let identities = plan.identities().map_err(of_query)?;
        let columns: Vec<&str> = EVENT_COLUMNS.into_iter().chain(["detail"]).collect();
        let mut events = Vec::new();
        for batch in plan.chunks(None).map_err(of_query)? {
            let batch = batch.map_err(of_query)?;
            for (key, range) in rows::stretches(&batch) {
                let is_taken = self.containers.is_everything()
                    || identities.get(&key).is_some_and(|who| chooser.takes(&key, who));
                for row in range.filter(|_| is_taken) {
                    let kind = query::text(&batch, "kind", row).unwrap_or_default();
                    if self.kinds.is_empty() || self.kinds.iter().any(|k| k == kind) {
                        events.push(export::row(&batch, row, &columns));
                    }
                }
            }
            if events.len() as u64 > MAX_EVENTS {
                let narrow = "a shorter range, kinds (kind=) or containers (containers=)";
                return Err(Problem::too_large("events of an answer", MAX_EVENTS, plan.rows, narrow));
            }
        }
        events.sort_by_key(|e| e["ktime_ns"].as_i64());
        Ok((events, plan.lost))
    }
}

/// A question for rows that cannot be answered.
pub(super) fn of_query(error: QueryError) -> Problem {
    match error {
        QueryError::TooMany { asked, limit, .. } => {
            Problem::too_large("export.max_rows", limit, asked, "a shorter range, or fewer containers")
        }
        other => Problem::internal(other),
    }
}

/// Tells work on another thread that nobody waits for it any more: dropped with the future that waits.
#[derive(Default)]
pub(super) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// The worker's side, whose end says nothing.
    pub fn watched(&self) -> Watched {
        Watched(self.0.clone())
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Default)]
pub(super) struct Watched(Arc<AtomicBool>);

impl Watched {
    pub fn check(&self) -> Result<(), Problem> {
        if self.0.load(Ordering::Relaxed) { Err(Problem::unavailable("the client has gone")) } else { Ok(()) }
    }
}

pub async fn export<S: Source>(State(app): State<Arc<App<S>>>, pairs: Pairs) -> Result<Response, Refusal> {
    let now_us = app.now_us();
    let mut selection = Selection::parse(&api::understood(&api::EXPORT, pairs)?.0, now_us)?;
    if let Rows::Range { containers, .. } = &mut selection.rows {
        app.know(containers);
    }
    let Ok(Ok(turn)) = tokio::time::timeout(TURN_WITHIN, app.exports.clone().acquire_owned()).await else {
        return Err(Problem::unavailable("other exports are being made; try again in some seconds").into());
    };
    let evidence = evidence(&app, now_us).await?;
    let cancel = Cancel::default();
    let watched = cancel.watched();
    let make = move || {
        // The turn lasts as long as the work: until the chunk that it is at, when the client goes.
        let _turn = turn;
        export::export_while(evidence, &selection, &|| watched.check())
    };
    let made = on_a_blocking_thread(make).await??;
    drop(cancel);
    let disposition = if made.format == export::Format::Html { "inline" } else { "attachment" };
    let disposition = format!("{disposition}; filename=\"{}\"", made.file_name);
    let headers = [
        (header::CONTENT_TYPE, made.format.media_type().to_owned()),
        (header::CONTENT_DISPOSITION, disposition),
    ];
    Ok((headers, made.bytes).into_response())
}

pub(super) fn json_answer(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

pub(super) async fn on_a_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Problem::internal(format!("the work was cut off: {e}")))
}

/// Store and memory of one instant. Rows go from memory into the store at a seal; when one came between the two looks,
/// they are looked at again, so that no row is there twice and none is missing.
pub(super) async fn look<S: Source>(app: &App<S>, tables: &[Table], from_us: i64) -> Result<View, Problem> {
    for _ in 0..LOOKS {
        let before = app.store.sealed_seq();
        let mut loose = Vec::new();
        for table in tables {
            let boot = app.store.boot();
            for batch in app.source.memory(*table, from_us).await.map_err(Problem::unavailable)? {
                loose.push(Loose { table: *table, boot: boot.clone(), batch });
            }
        }
        let mut view = app.store.view();
        if view.seq == before {
            view.loose.extend(loose);
            // rows that were written before their names were known get them when their segment closes, and here until then
            let pods = app.source.pods();
            for loose in view.loose.iter_mut().filter(|l| tables.contains(&l.table)) {
                loose.batch = pods.fill(loose.batch.clone());
            }
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
    let view = look(app, &[Table::Samples, Table::Events, Table::Processes, Table::Ledger], i64::MIN).await?;
    let status = app.source.status();
    let provenance = status.get("provenance").unwrap_or(&status).as_object().cloned().unwrap_or_default();
    let (pods, limits) = (app.source.pods(), app.limits);
    Ok(Evidence { view, incidents, provenance, pods, limits, now_us })
}
