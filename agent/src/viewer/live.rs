//! `/api/live`: server-sent events, a look at the agent's memory once a second for each client.
//!
//! Nothing is queued: a client that reads slowly is asked for less often, and what one message cannot hold is counted in
//! `lost`. Clients are few ([`CLIENTS`]); the stream ends when the client goes, and when the agent stops.

use super::answers::{EventsFilter, Refusal, known_incidents, look, of_query, on_a_blocking_thread};
use super::api::{self, Pairs};
use super::{App, Source, rows};
use crate::export::{Chooser, Containers, Problem, columns};
use crate::incident::Incident;
use crate::names::Table;
use crate::query::{self, Filter};
use crate::store::View;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Interval, MissedTickBehavior};

/// Each costs a copy of the rows of the last second, once a second.
pub const CLIENTS: usize = 16;
const EVERY: Duration = Duration::from_secs(1);
/// Rows, and events, of one message.
const MOST: usize = 5000;
/// Events may be told a little later than they were.
const LATE_US: i64 = 5_000_000;
const METRICS: &str = "memory_current,cpu_stat_usage_usec";

struct Client<S> {
    app: Arc<App<S>>,
    containers: Arc<Containers>,
    metrics: Vec<&'static str>,
    /// Instant of the newest sample that was sent.
    sent_us: i64,
    /// Ids of the events of the last seconds, with their instants.
    told: BTreeMap<String, i64>,
    incidents: Vec<(String, u32)>,
    messages: VecDeque<Event>,
    every: Interval,
    stopping: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

pub async fn live<S: Source>(State(app): State<Arc<App<S>>>, pairs: Pairs) -> Result<Response, Refusal> {
    let asked = api::understood(&api::LIVE, pairs)?;
    if !app.source.is_live() {
        return Err(
            Problem::not_found("a copied data folder has no live samples; ask a running agent").into()
        );
    }
    let containers = Arc::new(Containers::parse(|name| asked.get(name))?);
    let metrics = columns(asked.get("metric").unwrap_or(METRICS))?;
    let Ok(place) = app.listeners.clone().try_acquire_owned() else {
        let detail = format!("{CLIENTS} clients follow already; close one, or ask /api/timeseries");
        return Err(Problem::unavailable(detail).into());
    };
    let now_us = app.now_us();
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut client = Client {
        containers,
        metrics,
        sent_us: now_us - 1_000_000,
        told: BTreeMap::new(),
        incidents: revisions(&known_incidents(&app).await?),
        messages: VecDeque::new(),
        every,
        stopping: app.stop.subscribe(),
        _place: place,
        app,
    };
    // What happened before the client came is not news.
    client.look(true).await?;
    let stream = futures_util::stream::unfold(client, |mut client| async {
        let message = client.next().await?;
        Some((Ok::<_, Infallible>(message), client))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()).into_response())
}

fn revisions(incidents: &[Incident]) -> Vec<(String, u32)> {
    incidents.iter().map(|i| (i.id.clone(), i.revision)).collect()
}

fn message(name: &str, data: &Value) -> Event {
    Event::default().event(name).data(data.to_string())
}

impl<S: Source> Client<S> {
    /// The next message; None ends the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return Some(message);
            }
            tokio::select! {
                _ = self.stopping.wait_for(|stop| *stop) => return None,
                _ = self.every.tick() => {}
            }
            if let Err(problem) = self.look(false).await {
                self.messages.push_back(message("problem", &problem.to_json()));
            }
        }
    }

    async fn look(&mut self, is_first: bool) -> Result<(), Problem> {
        let now_us = self.app.now_us();
        let view = look(&self.app, &[Table::Samples, Table::Events], self.sent_us).await?;
        let (mut containers, metrics) = (Containers::clone(&self.containers), self.metrics.clone());
        // a pod with these labels may have come since
        self.app.know(&mut containers);
        let (sent_us, told) = (self.sent_us, self.told.clone());
        let seen = on_a_blocking_thread(move || {
            let chooser = Chooser::new(&containers, &[]);
            let samples = if containers.is_everything() {
                Samples::default()
            } else {
                samples(&view, &chooser, &metrics, sent_us, now_us)?
            };
            let filter = EventsFilter { kinds: Vec::new(), containers: &containers };
            let (mut events, _) = filter.read(&view, now_us - LATE_US, now_us)?;
            events.retain(|e| e["event_id"].as_str().is_some_and(|id| !told.contains_key(id)));
            Ok::<_, Problem>((samples, events))
        });
        let (samples, mut events) = seen.await??;
        self.sent_us = samples.newest_us.unwrap_or(self.sent_us).max(now_us - LATE_US);
        self.told.retain(|_, at| *at >= now_us - 2 * LATE_US);
        for event in &events {
            let id = event["event_id"].as_str().unwrap_or_default().to_owned();
            self.told.insert(id, event["ts_us"].as_i64().unwrap_or(now_us));
        }
        if is_first {
            return Ok(());
        }
        let lost = samples.lost + events.len().saturating_sub(MOST);
        events.truncate(MOST);
        if !samples.series.is_empty() {
            self.messages.push_back(message("samples", &json!({"series": samples.series})));
        }
        if !events.is_empty() {
            self.messages.push_back(message("events", &json!({"events": events})));
        }
        if lost > 0 {
            self.messages.push_back(message("lost", &json!({"rows": lost})));
        }
        let incidents = self.app.source.incidents();
        let news: Vec<&Incident> =
            incidents.iter().filter(|i| !self.incidents.contains(&(i.id.clone(), i.revision))).collect();
        if !news.is_empty() {
            self.messages.push_back(message("incidents", &json!({"incidents": news})));
            self.incidents = revisions(&incidents);
        }
        self.messages.push_back(message("tick", &json!({"now_us": now_us})));
        Ok(())
    }
}

#[derive(Default)]
struct Samples {
    series: Vec<Value>,
    newest_us: Option<i64>,
    lost: usize,
}

fn samples(
    view: &View,
    chooser: &Chooser<'_>,
    metrics: &[&'static str],
    after_us: i64,
    now_us: i64,
) -> Result<Samples, Problem> {
    let filter = Filter { cgroups: chooser.ids(), ..Filter::range(after_us + 1, now_us) };
    let plan = query::plan(view, Table::Samples, &filter, u64::MAX).map_err(of_query)?;
    let identities = plan.identities().map_err(of_query)?;
    let mut names = vec!["ts", "cgroup_id", "boot_id", "cause", "period_ms"];
    names.extend(metrics);
    let mut out = Samples::default();
    let mut held = 0;
    for batch in plan.chunks(Some(&names)).map_err(of_query)? {
        let batch = batch.map_err(of_query)?;
        for (key, range) in rows::stretches(&batch) {
            let Some(who) = identities.get(&key).filter(|who| chooser.takes(&key, who)) else { continue };
            let taken = range.start..range.end.min(range.start + (MOST - held));
            out.lost += range.len() - taken.len();
            held += taken.len();
            let moments = rows::moments(&batch, taken.clone());
            out.newest_us = out.newest_us.max(moments.last().map(|m| m.0));
            let list: Vec<Value> = taken
                .zip(moments)
                .map(|(row, (ts_us, cause, period_ms))| {
                    let values: Map<String, Value> = metrics
                        .iter()
                        .filter_map(|name| {
                            Some(((*name).to_owned(), json!(rows::int(rows::ints(&batch, name), row)?)))
                        })
                        .collect();
                    json!({"ts_us": ts_us, "cause": cause.as_str(), "period_ms": period_ms, "values": values})
                })
                .collect();
            let mut series = rows::who(&key, who);
            series.insert("rows".to_owned(), Value::Array(list));
            out.series.push(Value::Object(series));
        }
    }
    Ok(out)
}
