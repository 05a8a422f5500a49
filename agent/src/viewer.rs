//! HTTP: the JSON API, the exports and the list of incidents on `listen`; health and metrics alone on `health_listen`.
//!
//! Owns its runtime, so that its shutdown waits for what it started. It reads the running agent through [`Source`] and
//! the data folder through a view of the store; it changes neither. What is heavy runs on blocking threads, a few at a
//! time. `listen` beyond loopback is refused: there are no tokens yet. A request for a host name that is not ours is
//! refused too, since a page elsewhere could point its name here (DNS rebinding). `pipeline` starts and stops it.

mod answers;
mod page;

pub use page::path_segment;

use crate::config::Config;
use crate::export::{Limits, Problem};
use crate::incident::Incident;
use crate::names::Table;
use crate::store::Store;
use arrow::array::RecordBatch;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::Value;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

/// Exports made at once: each holds up to some 200 MB and a core.
const EXPORTS_AT_ONCE: usize = 2;
/// Threads that wait on sockets. The work is done on blocking threads.
const SOCKET_THREADS: usize = 2;
const BLOCKING_THREADS: usize = 8;
/// How long open requests may take once the agent stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// What the HTTP side sees of the running agent. `pipeline` implements it.
pub trait Source: Send + Sync + 'static {
    /// Rows that are in no segment and do not wait in the store. `Err` = why they cannot be had now: an answer without
    /// them would look whole.
    fn memory(&self, table: Table) -> impl Future<Output = Result<Vec<RecordBatch>, String>> + Send;
    /// Newest first, the latest revision of each, bounded.
    fn incidents(&self) -> Vec<Incident>;
    /// Instance, ladder, rates, cost, ledger. Members named as in a report's `provenance` go into reports of rows that
    /// are in no file yet.
    fn status(&self) -> Value;
    /// `Err` = why not.
    fn ready(&self) -> Result<(), String>;
    /// Prometheus text.
    fn metrics(&self) -> String;
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address} ({key}): the port is taken, maybe by another fgm agent; `ss -ltnp 'sport = :{port}'` shows who holds it, or name another with {key}", port = address.port())]
    Taken { key: &'static str, address: SocketAddr },
    #[error("cannot listen on {address} ({key}): {source}; name an address of this machine with {key}")]
    Bind { key: &'static str, address: SocketAddr, source: io::Error },
    #[error(
        "listen = {address} would let everybody on the network read what runs here, and this version has no tokens; listen on 127.0.0.1 (kubectl port-forward and ssh -L reach it), health_listen may be open"
    )]
    Open { address: SocketAddr },
    #[error("cannot start the threads of the HTTP server: {source}")]
    Threads { source: io::Error },
}

/// State of all handlers.
pub struct App<S> {
    source: Arc<S>,
    store: Arc<Store>,
    limits: Limits,
    /// Addresses by which a request may name us, besides loopback.
    bound: Option<IpAddr>,
    exports: Arc<Semaphore>,
}

impl<S: Source> App<S> {
    pub fn new(source: Arc<S>, store: Arc<Store>, config: &Config) -> Arc<Self> {
        let limits =
            Limits { max_rows: config.export.max_rows, max_containers: config.export.max_containers };
        let bound = Some(config.listen.ip());
        Arc::new(Self { source, store, limits, bound, exports: Arc::new(Semaphore::new(EXPORTS_AT_ONCE)) })
    }
}

/// The running server. Dropping it without [`Server::stop`] ends it at once.
pub struct Server {
    runtime: Runtime,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    address: SocketAddr,
    health_address: SocketAddr,
}

impl Server {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn health_address(&self) -> SocketAddr {
        self.health_address
    }

    /// Lets open requests finish, for some seconds at the most.
    pub fn stop(self) {
        let _ = self.stop.send(true);
        let tasks = self.tasks;
        self.runtime.block_on(async {
            let all = async {
                for task in tasks {
                    let _ = task.await;
                }
            };
            if tokio::time::timeout(STOP_WITHIN, all).await.is_err() {
                tracing::warn!(seconds = STOP_WITHIN.as_secs(), "cut off requests that did not end");
            }
        });
        self.runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

type Bound = (TcpListener, SocketAddr);

/// Binds both addresses. Dropping them gives them back: `fgm doctor` asks no more than whether they can be had.
pub fn bind_both(config: &Config) -> Result<[Bound; 2], ServeError> {
    if !config.listen.ip().is_loopback() {
        return Err(ServeError::Open { address: config.listen });
    }
    Ok([bind("listen", config.listen)?, bind("health_listen", config.health_listen)?])
}

/// Binds both addresses, then serves. Must not be called inside another runtime.
pub fn serve<S: Source>(source: Arc<S>, store: Arc<Store>, config: &Config) -> Result<Server, ServeError> {
    let [(listener, address), (health_listener, health_address)] = bind_both(config)?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(SOCKET_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("fgm-http")
        .enable_all()
        .build()
        .map_err(|source| ServeError::Threads { source })?;
    let (stop, stopping) = watch::channel(false);
    let app = App::new(source, store, config);
    let mut tasks = Vec::new();
    for (listener, routes) in [(listener, router(app.clone())), (health_listener, health_router(app))] {
        let mut stopping = stopping.clone();
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(|source| ServeError::Threads { source })?
        };
        tasks.push(runtime.handle().spawn(async move {
            let until = async move {
                let _ = stopping.wait_for(|stop| *stop).await;
            };
            if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(until).await {
                tracing::error!(%error, "the HTTP server ended");
            }
        }));
    }
    Ok(Server { runtime, stop, tasks, address, health_address })
}

fn bind(key: &'static str, address: SocketAddr) -> Result<Bound, ServeError> {
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ServeError::Taken { key, address },
        _ => ServeError::Bind { key, address, source },
    };
    let listener = TcpListener::bind(address).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    let bound = listener.local_addr().map_err(fail)?;
    Ok((listener, bound))
}

/// Everything, for `listen`.
pub fn router<S: Source>(app: Arc<App<S>>) -> Router {
    Router::new()
        .route("/", get(page::index::<S>))
        .route("/healthz", get(answers::healthz))
        .route("/readyz", get(answers::readyz::<S>))
        .route("/metrics", get(answers::metrics::<S>))
        .route("/api/status", get(answers::status::<S>))
        .route("/api/incidents", get(answers::incidents::<S>))
        .route("/api/incidents/{id}", get(answers::incident::<S>))
        .route("/api/events", get(answers::events::<S>))
        .route("/api/export", get(answers::export::<S>))
        .fallback(answers::no_such_path)
        .method_not_allowed_fallback(answers::no_such_method)
        .layer(middleware::from_fn(harden))
        .layer(middleware::from_fn_with_state(app.clone(), own_host_only::<S>))
        .with_state(app)
}

/// Health and metrics alone, for `health_listen`: the kubelet and Prometheus come by the pod's address.
pub fn health_router<S: Source>(app: Arc<App<S>>) -> Router {
    Router::new()
        .route("/healthz", get(answers::healthz))
        .route("/readyz", get(answers::readyz::<S>))
        .route("/metrics", get(answers::metrics::<S>))
        .fallback(answers::no_such_path)
        .method_not_allowed_fallback(answers::no_such_method)
        .layer(middleware::from_fn(harden))
        .with_state(app)
}

async fn harden(request: Request, next: Next) -> Response {
    let is_head = request.method() == Method::HEAD;
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if !is_head {
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    }
    response
}

async fn own_host_only<S: Source>(State(app): State<Arc<App<S>>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).map(|h| h.to_str().unwrap_or("?").to_owned());
    match host {
        Some(host) if !is_own_host(&host, app.bound) => {
            let detail = format!("the host {host:?} is not this agent; use localhost or 127.0.0.1");
            answers::Refusal(Problem::refused(detail)).into_response()
        }
        // Every browser sends one: a request without is no page's.
        _ => next.run(request).await,
    }
}

fn is_own_host(host: &str, bound: Option<IpAddr>) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    let is_known = |ip: IpAddr| ip.is_loopback() || Some(ip) == bound;
    bare.eq_ignore_ascii_case("localhost") || bare.parse().is_ok_and(is_known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_ours() {
        let bound = Some(IpAddr::from([10, 1, 2, 3]));
        for ours in ["localhost", "LOCALHOST:8050", "127.0.0.1:8050", "[::1]:8050", "[::1]", "10.1.2.3:1"] {
            assert!(is_own_host(ours, bound), "{ours}");
        }
        for other in [
            "evil.example",
            "evil.example:8050",
            "localhost.evil.example",
            "10.1.2.4",
            "",
            "127.0.0.1.nip.io:80",
        ] {
            assert!(!is_own_host(other, bound), "{other}");
        }
    }
}
