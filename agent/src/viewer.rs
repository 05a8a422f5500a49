//! HTTP: the viewer, the JSON API and the exports on `listen`; health and metrics alone on `health_listen`.
//!
//! Owns its runtime, so that its shutdown waits for what it started. It reads the running agent (or, for `fgm view`, a
//! copied folder) through [`Source`] and the data folder through a view of the store; it changes neither. What is heavy
//! runs on blocking threads, a few at a time. `listen` beyond loopback needs a token. `pipeline` and `cli` start and stop it.

mod analyses;
mod answers;
mod api;
mod containers;
mod exposition;
mod guard;
mod lines;
mod live;
mod packing;
mod page;
mod rows;
mod series;

pub use analyses::Analysis;
pub use answers::{events_of as events, kinds};
pub use api::metrics;
pub use page::path_segment;

use crate::clock;
use crate::config::Config;
use crate::export::{Containers, Limits, Problem};
use crate::incident::Incident;
use crate::names::Table;
use crate::pods::Pods;
use crate::priority::{self, Work};
use crate::store::Store;
use arrow::array::RecordBatch;
use axum::Router;
use axum::middleware;
use axum::routing::get;
use exposition::Exposition;
use guard::Token;
use serde_json::Value;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

/// Exports made at once: each holds up to some 200 MB and a core.
const EXPORTS_AT_ONCE: usize = 2;
/// Questions for rows (series, containers) worked on at once, and how long one waits for its turn.
const QUERIES_AT_ONCE: usize = 4;
const TURN_WITHIN: Duration = Duration::from_secs(30);
/// Threads that wait on sockets. The work is done on blocking threads.
const SOCKET_THREADS: usize = 2;
const BLOCKING_THREADS: usize = 8;
/// How long open requests may take once the agent stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// What the HTTP side sees of the running agent. `pipeline` implements it.
pub trait Source: Send + Sync + 'static {
    /// Rows that are in no segment and do not wait in the store; of the samples none before `from_us` need be there.
    /// `Err` = why they cannot be had now: an answer without them would look whole.
    fn memory(
        &self,
        table: Table,
        from_us: i64,
    ) -> impl Future<Output = Result<Vec<RecordBatch>, String>> + Send;
    /// Newest first, the latest revision of each, bounded.
    fn incidents(&self) -> Vec<Incident>;
    /// Instance, ladder, rates, cost, ledger. Members named as in a report's `provenance` go into reports of rows that
    /// are in no file yet.
    fn status(&self) -> Value;
    /// `Err` = why not.
    fn ready(&self) -> Result<(), String>;
    /// What to know besides, of one that is ready; may be empty.
    fn notes(&self) -> String {
        String::new()
    }
    /// What Kubernetes has told so far.
    fn pods(&self) -> Pods {
        Pods::default()
    }
    /// Prometheus text.
    fn metrics(&self) -> String;
    /// False for a folder that nobody writes.
    fn is_live(&self) -> bool {
        true
    }
    /// Where a range "up to now" ends.
    fn now_us(&self) -> i64 {
        clock::wall_us()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address} ({key}): the port is taken, maybe by another fgm agent; `ss -ltnp 'sport = :{port}'` shows who holds it, or name another with {key}", port = address.port())]
    Taken { key: &'static str, address: SocketAddr },
    #[error("cannot listen on {address} ({key}): {source}; name an address of this machine with {key}")]
    Bind { key: &'static str, address: SocketAddr, source: io::Error },
    #[error(
        "listen = {address} would let everybody on the network read what runs here; name a file with a token as token_file, or listen on 127.0.0.1 (kubectl port-forward and ssh -L reach it), health_listen may be open"
    )]
    Open { address: SocketAddr },
    #[error("cannot take a token from {} (token_file): {why}; `openssl rand -hex 32` makes one", path.display())]
    Token { path: PathBuf, why: String },
    #[error("[prometheus] {why}; `fgm metrics` lists all as well, and metrics = [] shows none")]
    Exposed { why: String },
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
    token: Option<Token>,
    exposition: Exposition,
    requests: Arc<Semaphore>,
    exports: Arc<Semaphore>,
    queries: Arc<Semaphore>,
    listeners: Arc<Semaphore>,
    stop: watch::Sender<bool>,
}

impl<S: Source> App<S> {
    /// Who is meant by the labels and names that are asked for, as far as Kubernetes has told.
    fn know(&self, containers: &mut Containers) {
        containers.know(&self.source.pods());
    }

    /// Reads the token, if there is to be one.
    pub fn new(source: Arc<S>, store: Arc<Store>, config: &Config) -> Result<Arc<Self>, ServeError> {
        let limits =
            Limits { max_rows: config.export.max_rows, max_containers: config.export.max_containers };
        let places = |n| Arc::new(Semaphore::new(n));
        Ok(Arc::new(Self {
            source,
            store,
            limits,
            bound: Some(config.listen.ip()),
            token: Token::read(&config.token_file)?,
            exposition: Exposition::new(config)?,
            requests: places(guard::REQUESTS_AT_ONCE),
            exports: places(EXPORTS_AT_ONCE),
            queries: places(QUERIES_AT_ONCE),
            listeners: places(live::CLIENTS),
            stop: watch::Sender::new(false),
        }))
    }

    fn now_us(&self) -> i64 {
        self.source.now_us()
    }

    async fn query_turn(&self) -> Result<OwnedSemaphorePermit, Problem> {
        match tokio::time::timeout(TURN_WITHIN, self.queries.clone().acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(Problem::unavailable("other questions are being answered; try again in some seconds")),
        }
    }
}

/// The running server. Dropping it without [`Server::stop`] ends it at once.
pub struct Server {
    runtime: Runtime,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    address: SocketAddr,
    health_address: Option<SocketAddr>,
}

impl Server {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn health_address(&self) -> Option<SocketAddr> {
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
    closed_or_guarded(config, Token::read(&config.token_file)?.is_some())?;
    Exposition::new(config)?;
    Ok([bind("listen", config.listen)?, bind("health_listen", config.health_listen)?])
}

/// Beyond the loopback only with a token.
fn closed_or_guarded(config: &Config, token: bool) -> Result<(), ServeError> {
    if config.listen.ip().is_loopback() || token {
        return Ok(());
    }
    Err(ServeError::Open { address: config.listen })
}

/// Binds both addresses, then serves. Must not be called inside another runtime.
pub fn serve<S: Source>(source: Arc<S>, store: Arc<Store>, config: &Config) -> Result<Server, ServeError> {
    start(source, store, config, Some(config.health_listen))
}

/// The viewer and the API alone, with no second address.
pub fn serve_folder<S: Source>(
    source: Arc<S>,
    store: Arc<Store>,
    config: &Config,
) -> Result<Server, ServeError> {
    start(source, store, config, None)
}

fn start<S: Source>(
    source: Arc<S>,
    store: Arc<Store>,
    config: &Config,
    health: Option<SocketAddr>,
) -> Result<Server, ServeError> {
    let app = App::new(source, store, config)?;
    closed_or_guarded(config, app.token.is_some())?;
    let (listener, address) = bind("listen", config.listen)?;
    let health = health.map(|address| bind("health_listen", address)).transpose()?;
    let health_address = health.as_ref().map(|(_, address)| *address);
    let runtime = Builder::new_multi_thread()
        .worker_threads(SOCKET_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("fgm-http")
        .on_thread_start(|| priority::of_this_thread(Work::Asking))
        .enable_all()
        .build()
        .map_err(|source| ServeError::Threads { source })?;
    let stop = app.stop.clone();
    let mut served = vec![(listener, router(app.clone()))];
    served.extend(health.map(|(listener, _)| (listener, health_router(app))));
    let mut tasks = Vec::new();
    for (listener, routes) in served {
        let mut stopping = stop.subscribe();
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
        .route("/", get(page::index))
        .route("/healthz", get(answers::healthz))
        .route("/readyz", get(answers::readyz::<S>))
        .route("/metrics", get(answers::metrics::<S>))
        .route("/api/status", get(answers::status::<S>))
        .route("/api/incidents", get(answers::incidents::<S>))
        .route("/api/incidents/{id}", get(answers::incident::<S>))
        .route("/api/events", get(answers::events::<S>))
        .route("/api/export", get(answers::export::<S>))
        .route("/api/metrics", get(answers::catalogue))
        .route("/api/containers", get(containers::list::<S>))
        .route("/api/filters", get(containers::filters::<S>))
        .route("/api/timeseries", get(series::timeseries::<S>))
        .route("/api/analyze/periodicity", get(analyses::periodicity::<S>))
        .route("/api/analyze/changepoint", get(analyses::changepoint::<S>))
        .route("/api/analyze/trend", get(analyses::trend::<S>))
        .route("/api/live", get(live::live::<S>))
        .route("/api/openapi.json", get(answers::openapi))
        .fallback(answers::no_such_path)
        .method_not_allowed_fallback(answers::no_such_method)
        .layer(middleware::from_fn_with_state(app.clone(), guard::admit::<S>))
        .layer(middleware::from_fn(guard::harden))
        .layer(middleware::from_fn(packing::pack))
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
        .layer(middleware::from_fn(guard::harden))
        .layer(middleware::from_fn(packing::pack))
        .with_state(app)
}
