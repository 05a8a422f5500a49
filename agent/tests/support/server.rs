//! An agent that is made up, its data folder, and its router: what the tests of the HTTP side share. Included by path;
//! never in the product.
#![allow(dead_code, reason = "each test binary uses its own part")]

use crate::rows::{self, BOOT_ID};
use arrow::array::RecordBatch;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, Response, StatusCode, header};
use bytes::Bytes;
use fgm::config::Config;
use fgm::incident::Incident;
use fgm::names::Table;
use fgm::pods::Pods;
use fgm::store::{Store, Writer};
use fgm::viewer::{self, App, Source};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tower::ServiceExt;

pub const WAIT: Duration = Duration::from_secs(20);

/// An agent whose memory can be sealed while it is being asked.
#[derive(Default)]
pub struct Agent {
    pub memory: Mutex<Vec<(Table, RecordBatch)>>,
    /// Sealed by the next question for samples, after it was answered.
    pub seal: Mutex<Option<Arc<Writer>>>,
    pub incidents: Vec<Incident>,
    pub not_ready: Option<String>,
    /// Does not hand its rows over.
    pub busy: bool,
    /// Hands its rows over when it is told to.
    pub held: Option<Arc<tokio::sync::Notify>>,
    /// What its clock says; the machine's own without.
    pub now_us: Option<i64>,
    pub pods: Pods,
}

impl Source for Agent {
    fn memory(&self, table: Table, _: i64) -> impl Future<Output = Result<Vec<RecordBatch>, String>> + Send {
        let busy = self.busy;
        let mut memory = self.memory.lock().expect("not poisoned");
        let rows = memory.iter().filter(|(t, _)| *t == table).map(|(_, b)| b.clone()).collect();
        if table == Table::Samples
            && let Some(writer) = self.seal.lock().expect("not poisoned").take()
        {
            writer.seal(1, std::mem::take(&mut *memory), rows::metadata(), None);
        }
        let held = self.held.clone();
        async move {
            if let Some(held) = held {
                held.notified().await;
            }
            if busy { Err("the agent is busy".to_owned()) } else { Ok(rows) }
        }
    }

    fn incidents(&self) -> Vec<Incident> {
        self.incidents.clone()
    }

    fn status(&self) -> Value {
        json!({"node": rows::NODE, "kernel": "6.12.0-status", "ladder": {"level": "full", "hooks": [{"event": "oom_kill"}]}})
    }

    fn ready(&self) -> Result<(), String> {
        self.not_ready.clone().map_or(Ok(()), Err)
    }

    fn now_us(&self) -> i64 {
        self.now_us.unwrap_or_else(fgm::clock::wall_us)
    }

    fn pods(&self) -> Pods {
        self.pods.clone()
    }

    fn metrics(&self) -> String {
        "fgm_samples_total 7".to_owned()
    }
}

pub struct Setup {
    _dir: tempfile::TempDir,
    pub store: Arc<Store>,
    pub writer: Arc<Writer>,
    pub config: Config,
}

pub fn setup() -> Setup {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let writer = Arc::new(Writer::start(store.clone(), BOOT_ID).expect("starts"));
    let any = "127.0.0.1:0".parse().expect("an address");
    let config = Config { data_dir: dir.path().into(), listen: any, health_listen: any, ..Config::default() };
    Setup { _dir: dir, store, writer, config }
}

impl Setup {
    pub fn seal_all(&self) {
        let (tell, told) = crossbeam_channel::unbounded();
        self.writer.seal(1, rows::all(), rows::metadata(), Some(tell));
        told.recv_timeout(WAIT).expect("sealed");
    }

    pub fn router(&self, agent: Agent) -> Router {
        viewer::router(App::new(Arc::new(agent), self.store.clone(), &self.config).expect("no token to read"))
    }
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

pub fn ask(router: &Router, uri: &str) -> (StatusCode, Response<()>, Bytes) {
    let request =
        Request::get(uri).header(header::HOST, "localhost:8050").body(Body::empty()).expect("a request");
    send(router, request)
}

pub fn send(router: &Router, request: Request<Body>) -> (StatusCode, Response<()>, Bytes) {
    block_on(async {
        let (head, body) = router.clone().oneshot(request).await.expect("infallible").into_parts();
        let body = to_bytes(body, usize::MAX).await.expect("a body");
        (head.status, Response::from_parts(head, ()), body)
    })
}

pub fn get_json(router: &Router, uri: &str) -> Value {
    let (status, _, body) = ask(router, uri);
    assert_eq!(status, 200, "{uri}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).expect("JSON")
}

pub fn problem(router: &Router, uri: &str, wanted: u16) -> Value {
    let (status, head, body) = ask(router, uri);
    assert_eq!(status, wanted, "{uri}: {}", String::from_utf8_lossy(&body));
    assert_eq!(head.headers()[header::CONTENT_TYPE], "application/problem+json");
    let problem: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(problem["status"], wanted);
    assert!(problem["type"].is_string() && problem["title"].is_string() && problem["detail"].is_string());
    problem
}

pub fn rows_of(body: Bytes) -> usize {
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(body)
        .expect("Parquet")
        .build()
        .expect("readable");
    reader.map(|b| b.expect("rows").num_rows()).sum()
}
