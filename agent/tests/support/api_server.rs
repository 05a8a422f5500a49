//! An API server that knows pods alone: LIST by pages, chunked WATCH, bookmarks, and all that an API server does to a client on a bad day.
//! Included by path; never in the product.
#![allow(dead_code, reason = "each test binary uses its own part")]

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::get;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::broadcast::{self, Receiver, Sender};

pub const NODE: &str = "vm";
pub const TOKEN: &str = "right";

/// What it does to whoever asks.
#[derive(Clone, Debug, PartialEq)]
pub enum Mode {
    Well,
    /// Refuses with this status and message.
    Refuses(u16, String),
    /// Answers what is no list.
    Garbage,
    /// Takes so long for each piece of an answer.
    Slow(Duration),
}

/// What goes to those that watch.
#[derive(Clone)]
enum Told {
    Line(String),
    /// The connection ends behind this text.
    Cut(String),
    /// The answer ends as it should.
    End,
}

struct Inner {
    mode: Mode,
    /// By UID.
    pods: BTreeMap<String, Value>,
    version: u64,
    /// A watch from before this is told that it is gone.
    oldest: u64,
    history: Vec<(u64, String)>,
    asked: Vec<String>,
}

struct Shared {
    inner: Mutex<Inner>,
    told: Sender<Told>,
}

pub struct ApiServer {
    shared: Arc<Shared>,
    port: u16,
    runtime: Option<Runtime>,
}

/// A pod of [`NODE`] with one container, as a kubelet reports it.
pub fn pod(uid: &str, name: &str, container_id: &str) -> Value {
    let id = format!("containerd://{container_id}");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "uid": uid, "name": name, "namespace": "shop", "labels": {"app": name, "tier": "web"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cart-7d", "uid": "o", "controller": true}],
        },
        "spec": {"nodeName": NODE, "containers": [{"name": "app", "image": "cart:1", "resources": {"limits": {"memory": "64Mi"}}}]},
        "status": {"phase": "Running", "qosClass": "Burstable", "containerStatuses": [{
            "name": "app", "image": "cart:1", "imageID": "", "ready": true, "restartCount": 0, "containerID": id,
            "state": {"running": {"startedAt": "2026-11-01T00:00:00Z"}},
        }]},
    })
}

/// The same pod after its container ended and another one took its place.
pub fn restarted(mut pod: Value, reason: &str, exit_code: i32, next: &str) -> Value {
    let status = &mut pod["status"]["containerStatuses"][0];
    let old = status["containerID"].clone();
    status["lastState"] =
        json!({"terminated": {"containerID": old, "exitCode": exit_code, "reason": reason}});
    status["containerID"] = json!(format!("containerd://{next}"));
    status["restartCount"] = json!(1);
    pod
}

impl ApiServer {
    pub fn start() -> Self {
        let inner = Inner {
            mode: Mode::Well,
            pods: BTreeMap::new(),
            version: 1,
            oldest: 0,
            history: Vec::new(),
            asked: Vec::new(),
        };
        let shared = Arc::new(Shared { inner: Mutex::new(inner), told: broadcast::channel(10_000).0 });
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("bound").port();
        let mut server = Self { shared, port, runtime: None };
        server.up();
        server
    }

    /// Serves (again) at its port.
    pub fn up(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener =
            runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", self.port))).expect("its port");
        let router = Router::new().route("/api/v1/pods", get(pods)).with_state(self.shared.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        self.runtime = Some(runtime);
    }

    /// Goes away, with all connections.
    pub fn down(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.shared.inner.lock().expect("not poisoned"))
    }

    pub fn set(&self, mode: Mode) {
        self.with(|i| i.mode = mode);
    }

    fn tell(&self, kind: &str, mut pod: Value, put: bool) -> String {
        self.with(|i| {
            i.version += 1;
            pod["metadata"]["resourceVersion"] = json!(i.version.to_string());
            let uid = pod["metadata"]["uid"].as_str().expect("a uid").to_owned();
            if put {
                i.pods.insert(uid, pod.clone());
            } else {
                i.pods.remove(&uid);
            }
            let line = format!("{}\n", json!({"type": kind, "object": pod}));
            i.history.push((i.version, line.clone()));
            line
        })
    }

    pub fn apply(&self, pod: Value) {
        let line = self.tell("MODIFIED", pod, true);
        let _ = self.shared.told.send(Told::Line(line));
    }

    pub fn delete(&self, pod: Value) {
        let line = self.tell("DELETED", pod, false);
        let _ = self.shared.told.send(Told::Line(line));
    }

    /// The connection breaks in the middle of the object.
    pub fn apply_and_break(&self, pod: Value) {
        let line = self.tell("MODIFIED", pod, true);
        let _ = self.shared.told.send(Told::Cut(line[..line.len() / 2].to_owned()));
    }

    /// Sends what is no event.
    pub fn garbage(&self) {
        let _ = self.shared.told.send(Told::Line("{\"type\": \"MODIFIED\", \"object\": [7]}\n".to_owned()));
    }

    /// Moves the version on without a change, to what is returned.
    pub fn bookmark(&self) -> u64 {
        let version = self.with(|i| {
            i.version += 1;
            i.version
        });
        let object =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"resourceVersion": version.to_string()}});
        let _ =
            self.shared.told.send(Told::Line(format!("{}\n", json!({"type": "BOOKMARK", "object": object}))));
        version
    }

    /// Forgets all history: whoever watches is told so, and whoever asks for it later.
    pub fn expire(&self) {
        self.with(|i| {
            i.version += 1;
            i.oldest = i.version;
        });
        let _ =
            self.shared.told.send(Told::Line(format!("{}\n", json!({"type": "ERROR", "object": gone()}))));
    }

    /// A change that is told to nobody: only a list has it.
    pub fn change_unseen(&self, pod: Value, is_there: bool) {
        self.tell("MODIFIED", pod, is_there);
    }

    /// Ends all watches as they end every some minutes.
    pub fn end_watches(&self) {
        let _ = self.shared.told.send(Told::End);
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<String> {
        self.with(|i| i.asked.clone())
    }

    /// A kubeconfig that leads here, with this token.
    pub fn kubeconfig(&self, dir: &Path, token: &str) -> PathBuf {
        let path = dir.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: \"http://127.0.0.1:{}\"}}}}]\n\
             users: [{{name: test, user: {{token: {token}}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n",
            self.port
        );
        std::fs::write(&path, text).expect("written");
        path
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.down();
    }
}

fn gone() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "too old resource version", "reason": "Expired", "code": 410})
}

fn status(code: u16, message: &str) -> Response<Body> {
    let body =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code});
    let code = StatusCode::from_u16(code).expect("a status");
    Response::builder().status(code).body(Body::from(body.to_string())).expect("an answer")
}

async fn pods(
    State(shared): State<Arc<Shared>>,
    Query(asked): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response<Body> {
    let get = |name: &str| asked.get(name).map_or("", String::as_str);
    let is_watch = get("watch") == "true";
    let mode = {
        let mut inner = shared.inner.lock().expect("not poisoned");
        let verb = if is_watch { "watch" } else { "list" };
        inner.asked.push(format!("{verb} {} {}", get("fieldSelector"), get("resourceVersion")));
        inner.mode.clone()
    };
    let token = headers.get("authorization").and_then(|h| h.to_str().ok()).unwrap_or_default();
    if token != format!("Bearer {TOKEN}") {
        return status(401, "Unauthorized");
    }
    let pause = match mode {
        Mode::Refuses(code, message) => return status(code, &message),
        Mode::Garbage => return Response::new(Body::from("<html>a captive portal</html>")),
        Mode::Slow(pause) => pause,
        Mode::Well => Duration::ZERO,
    };
    if !is_watch {
        let text = list(&shared, get("limit"), get("continue"));
        let pieces: Vec<Bytes> =
            text.as_bytes().chunks(text.len() / 8 + 1).map(Bytes::copy_from_slice).collect();
        return in_json(stream::unfold(pieces.into_iter(), move |mut pieces| async move {
            tokio::time::sleep(pause).await;
            Some((Ok::<_, io::Error>(pieces.next()?), pieces))
        }));
    }
    let since: u64 = get("resourceVersion").parse().unwrap_or(0);
    // subscribed before the history is read: nothing falls between
    let told = shared.told.subscribe();
    let inner = shared.inner.lock().expect("not poisoned");
    if since < inner.oldest {
        return status(410, "too old resource version");
    }
    let missed: Vec<Told> =
        inner.history.iter().filter(|(v, _)| *v > since).map(|(_, line)| Told::Line(line.clone())).collect();
    drop(inner);
    in_json(watched(missed, told).flat_map(move |told| slowly(told, pause)))
}

fn in_json(body: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Response<Body> {
    let answer = Response::builder().header("content-type", "application/json");
    answer.body(Body::from_stream(body)).expect("an answer")
}

/// In two pieces with a pause before each, unless there is to be none.
fn slowly(told: io::Result<Bytes>, pause: Duration) -> impl Stream<Item = io::Result<Bytes>> {
    let pieces = match told {
        Ok(text) if !pause.is_zero() => {
            let half = text.len() / 2;
            vec![Ok(text.slice(..half)), Ok(text.slice(half..))]
        }
        other => vec![other],
    };
    stream::iter(pieces).then(move |piece| async move {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        piece
    })
}

fn list(shared: &Shared, limit: &str, at: &str) -> String {
    let inner = shared.inner.lock().expect("not poisoned");
    let (limit, at) = (limit.parse().unwrap_or(usize::MAX), at.parse().unwrap_or(0usize));
    let items: Vec<&Value> = inner.pods.values().skip(at).take(limit).collect();
    let next = at + items.len();
    let more = (next < inner.pods.len()).then(|| next.to_string());
    let metadata = json!({"resourceVersion": inner.version.to_string(), "continue": more});
    json!({"apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": items}).to_string()
}

fn watched(missed: Vec<Told>, told: Receiver<Told>) -> impl Stream<Item = io::Result<Bytes>> {
    let state = (missed.into_iter(), told, false);
    stream::unfold(state, |(mut missed, mut told, is_cut)| async move {
        if is_cut {
            // hyper closes the connection without the last chunk
            return Some((Err(io::Error::other("cut")), (missed, told, true)));
        }
        let next = match missed.next() {
            Some(next) => next,
            None => told.recv().await.ok()?,
        };
        match next {
            Told::Line(line) => Some((Ok(Bytes::from(line)), (missed, told, false))),
            Told::Cut(part) => Some((Ok(Bytes::from(part)), (missed, told, true))),
            Told::End => None,
        }
    })
}
