//! `--all-nodes`: agents of several nodes asked through a stand-in of the API server, which forwards ports as one does
//! (`v4.channel.k8s.io` over a WebSocket); the answers are merged, and who did not answer is named.

#[path = "support/rows.rs"]
mod rows;
#[path = "support/server.rs"]
mod server;

use fgm::incident::Incident;
use fgm::names::Table;
use fgm::viewer::{self, Server};
use rows::{KILL_US, text};
use serde_json::{Value, json};
use server::{Agent, Setup, setup};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;
use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::{Message, WebSocket};

const TOKEN: &str = "Bearer right";

/// A node: its agent's pod, the pod's phase, and where the agent listens (none: nobody does).
#[derive(Clone)]
struct Node {
    name: &'static str,
    phase: &'static str,
    agent: Option<SocketAddr>,
}

/// Lists pods and nodes, and forwards ports.
struct ApiServer {
    port: u16,
}

impl ApiServer {
    /// `bare` are nodes without an agent.
    fn start(nodes: Vec<Node>, bare: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("bound").port();
        let nodes = Arc::new(nodes);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let nodes = nodes.clone();
                std::thread::spawn(move || answer(&stream, &nodes, bare));
            }
        });
        Self { port }
    }

    fn kubeconfig(&self, dir: &Path, token: &str) -> PathBuf {
        let path = dir.join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://127.0.0.1:{}", self.port)}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        std::fs::write(&path, text.to_string()).expect("written");
        path
    }
}

/// One connection, of which the first request is looked at before it is read.
fn answer(stream: &TcpStream, nodes: &[Node], bare: &[&str]) {
    let mut seen = [0; 4096];
    let head = loop {
        let n = stream.peek(&mut seen).unwrap_or(0);
        let text = String::from_utf8_lossy(&seen[..n]).into_owned();
        if n == 0 || text.contains("\r\n\r\n") {
            break text;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let is_known = head.to_lowercase().contains(&format!("authorization: {}", TOKEN.to_lowercase()));
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let list = |kind: &str, items: Vec<Value>| json!({"apiVersion": "v1", "kind": kind, "metadata": {"resourceVersion": "1"}, "items": items});
    let (status, body) = if !is_known {
        (
            401,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "Unauthorized", "code": 401}),
        )
    } else if path == "/api/v1/nodes" {
        let names = nodes.iter().map(|n| n.name).chain(bare.iter().copied());
        (200, list("NodeList", names.map(|name| json!({"metadata": {"name": name}})).collect()))
    } else if path == "/api/v1/namespaces/fgm/pods"
        && query.contains("labelSelector=app.kubernetes.io%2Fname%3Dfgm")
    {
        let pod = |n: &Node| {
            let metadata = json!({"name": format!("fgm-{}", n.name), "namespace": "fgm"});
            json!({"metadata": metadata, "spec": {"nodeName": n.name, "containers": []}, "status": {"phase": n.phase}})
        };
        (200, list("PodList", nodes.iter().map(pod).collect()))
    } else if path.ends_with("/pods") {
        (200, list("PodList", Vec::new()))
    } else if let Some(pod) = path.strip_suffix("/portforward").and_then(|p| p.rsplit('/').next()) {
        let node = nodes.iter().find(|n| pod == format!("fgm-{}", n.name)).expect("one of the pods");
        assert_eq!(query.trim_start_matches('&'), "ports=8050");
        return forward(stream, node);
    } else {
        (
            404,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": path, "code": 404}),
        )
    };
    let body = body.to_string();
    let mut stream = stream;
    let _ = stream.read(&mut seen);
    let _ = write!(
        stream,
        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
}

/// As a kubelet does it: channel 0 has the bytes, channel 1 what went wrong, each begins with the port.
fn forward(stream: &TcpStream, node: &Node) {
    #[expect(clippy::result_large_err, reason = "the library's own signature")]
    let protocol = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        let asked =
            request.headers().get("sec-websocket-protocol").and_then(|p| p.to_str().ok()).unwrap_or("");
        assert!(asked.contains("v4.channel.k8s.io"), "{asked}");
        response
            .headers_mut()
            .insert("sec-websocket-protocol", "v4.channel.k8s.io".parse().expect("a value"));
        Ok(response)
    };
    let stream = stream.try_clone().expect("a second handle");
    let Ok(mut socket) = tungstenite::accept_hdr(stream, protocol) else { return };
    let send = |socket: &mut WebSocket<TcpStream>, channel: u8, bytes: &[u8]| {
        let frame: Vec<u8> = std::iter::once(channel).chain(bytes.iter().copied()).collect();
        socket.send(Message::binary(frame)).is_ok()
    };
    for channel in [0, 1] {
        send(&mut socket, channel, &8050u16.to_le_bytes());
    }
    let Some(mut agent) = node.agent.and_then(|a| TcpStream::connect(a).ok()) else {
        send(&mut socket, 1, b"failed to connect to localhost:8050 inside namespace: connection refused");
        return close(socket);
    };
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        match socket.read() {
            Ok(Message::Binary(frame)) if frame.first() == Some(&0) => asked.extend_from_slice(&frame[1..]),
            Ok(_) => {}
            Err(_) => return,
        }
    }
    let asked = String::from_utf8(asked)
        .expect("a request's head")
        .replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    agent.write_all(asked.as_bytes()).expect("sent");
    let mut piece = [0; 16_384];
    while let Ok(n) = agent.read(&mut piece) {
        if n == 0 || !send(&mut socket, 0, &piece[..n]) {
            break;
        }
    }
    close(socket);
}

/// What is not read when a socket is dropped resets the connection, and takes with it what was sent last.
fn close(mut socket: WebSocket<TcpStream>) {
    let _ = socket.close(None);
    while socket.read().is_ok() {}
}

/// An agent that serves, and its folder.
struct Live {
    agent: Arc<Agent>,
    server: Server,
    _folder: Setup,
}

impl Live {
    fn start(incident: &str, ts_us: i64) -> Self {
        let folder = setup();
        let incidents =
            vec![Incident { id: incident.into(), ts_us, node: incident.into(), ..rows::incident(2) }];
        let agent = Arc::new(Agent { incidents, ..Agent::default() });
        let server = viewer::serve(agent.clone(), folder.store.clone(), &folder.config).expect("serves");
        Self { agent, server, _folder: folder }
    }

    fn happens(&self, id: &str, ts_us: i64) {
        let mut event = rows::events().remove(1);
        event.insert("event_id", text(id));
        event.insert("ts", rows::int(ts_us));
        let batch = rows::batch(Table::Events, &[event]);
        self.agent.memory.lock().expect("not poisoned").push((Table::Events, batch));
    }
}

fn command(kubeconfig: &Path, words: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_fgm"));
    c.args(words).arg("--all-nodes").arg("--kubeconfig").arg(kubeconfig);
    c
}

fn fgm(kubeconfig: &Path, words: &[&str]) -> Output {
    command(kubeconfig, words).output().expect("fgm runs")
}

fn parsed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

/// Two nodes that answer, one whose agent waits, one whose agent does not listen, and one without an agent.
fn five(a: &Live, b: &Live) -> ApiServer {
    let node = |name, phase, agent| Node { name, phase, agent };
    let nodes = vec![
        node("alfa", "Running", Some(a.server.address())),
        node("bravo", "Running", Some(b.server.address())),
        node("charlie", "Pending", None),
        node("delta", "Running", None),
    ];
    ApiServer::start(nodes, &["echo"])
}

#[test]
fn incidents_of_all_nodes_are_one_list_and_the_silent_are_named() {
    let (a, b) = (Live::start("alfa-1", KILL_US), Live::start("bravo-1", KILL_US + 5));
    let dir = tempfile::tempdir().expect("a folder");
    let config = five(&a, &b).kubeconfig(dir.path(), "right");
    let told = fgm(&config, &["incidents", "--json"]);
    let all = parsed(&told);
    let ids: Vec<_> = all["incidents"].as_array().expect("a list").iter().map(|i| i["id"].clone()).collect();
    assert_eq!((json!(ids), &all["total"]), (json!(["bravo-1", "alfa-1"]), &json!(2)));
    let silent: BTreeMap<&str, &str> = all["unanswered"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|s| Some((s["node"].as_str()?, s["why"].as_str()?)))
        .collect();
    assert_eq!(silent.keys().copied().collect::<Vec<_>>(), ["charlie", "delta", "echo"], "{silent:?}");
    assert!(silent["charlie"].contains("Pending"), "{silent:?}");
    assert!(silent["delta"].contains("connection refused"), "{silent:?}");
    assert!(silent["echo"].contains("no agent"), "{silent:?}");
    let stderr = String::from_utf8_lossy(&told.stderr).into_owned();
    for node in ["node charlie", "node delta", "node echo"] {
        assert!(stderr.contains(node), "{stderr}");
    }
    assert_eq!(told.status.code(), Some(0));
    // the newest of all, not of each
    let one = parsed(&fgm(&config, &["incidents", "--json", "--limit", "1"]));
    assert_eq!(
        (one["incidents"].as_array().map(Vec::len), &one["incidents"][0]["id"]),
        (Some(1), &json!("bravo-1"))
    );
    assert_eq!(one["total"], 2);
}

#[test]
fn events_of_all_nodes_are_by_time_and_say_whose_they_are() {
    let (a, b) = (Live::start("alfa-1", KILL_US), Live::start("bravo-1", KILL_US));
    for (live, id, at) in [(&a, "e1", KILL_US), (&b, "e2", KILL_US + 1), (&a, "e3", KILL_US + 2)] {
        live.happens(id, at);
    }
    let dir = tempfile::tempdir().expect("a folder");
    let config = five(&a, &b).kubeconfig(dir.path(), "right");
    let (from, to) = (KILL_US / 1_000_000 - 1, KILL_US / 1_000_000 + 1);
    let range = ["--from", &from.to_string(), "--to", &to.to_string()];
    let told = fgm(&config, &[&["events", "--json"], &range[..]].concat());
    let lines: Vec<Value> =
        told.stdout.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice(l).ok()).collect();
    let seen: Vec<_> =
        lines.iter().filter_map(|e| Some((e["event_id"].as_str()?, e["ts_us"].as_i64()?))).collect();
    assert_eq!(seen, [("e1", KILL_US), ("e2", KILL_US + 1), ("e3", KILL_US + 2)], "{told:?}");
    let none = fgm(&config, &[&["events", "--kind", "exit"], &range[..]].concat());
    assert_eq!(none.status.code(), Some(3), "{none:?}");
    let wrong = fgm(&config, &["events", "--kind", "oomkill"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}

#[test]
fn events_of_all_nodes_are_followed() {
    let (a, b) = (Live::start("alfa-1", KILL_US), Live::start("bravo-1", KILL_US));
    let dir = tempfile::tempdir().expect("a folder");
    let config = five(&a, &b).kubeconfig(dir.path(), "right");
    let mut child = command(&config, &["events", "--follow", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("fgm runs");
    let (tell, told) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            let _ = tell.send(line);
        }
    });
    let mut lines: Vec<Value> = Vec::new();
    for turn in 0..100 {
        let now = fgm::clock::wall_us();
        b.happens(&format!("b{turn}"), now + 1);
        a.happens(&format!("a{turn}"), now);
        if let Ok(line) = told.recv_timeout(Duration::from_millis(300)) {
            lines.push(serde_json::from_str(&line).expect("JSON"));
        }
        let of = |mark: char| {
            lines.iter().filter(|l| l["event_id"].as_str().is_some_and(|id| id.starts_with(mark))).count()
        };
        if of('a') > 3 && of('b') > 3 {
            break;
        }
    }
    child.kill().expect("ends");
    let mut stderr = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("text");
    child.wait().expect("ended");
    let ids: Vec<&str> = lines.iter().filter_map(|l| l["event_id"].as_str()).collect();
    let both = |mark: char| ids.iter().filter(|id| id.starts_with(mark)).count() > 3;
    assert!(both('a') && both('b'), "{ids:?}\n{stderr}");
    // those of one turn came together, and in order
    let at = |id: &str| ids.iter().position(|i| *i == id);
    let pairs: Vec<_> =
        (0..100).filter_map(|n| Some((at(&format!("a{n}"))?, at(&format!("b{n}"))?))).collect();
    assert!(!pairs.is_empty() && pairs.iter().all(|(a, b)| a < b), "{ids:?}");
    assert!(stderr.contains("node delta") && stderr.contains("node charlie"), "{stderr}");
}

#[test]
fn what_stands_in_the_way_is_said() {
    let dir = tempfile::tempdir().expect("a folder");
    let api = ApiServer::start(Vec::new(), &[]);
    let config = api.kubeconfig(dir.path(), "right");
    let fails = |config: &Path, words: &[&str], code: i32, said: &[&str]| {
        let output = fgm(config, words);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        for s in said {
            assert!(stderr.contains(s), "{s}: {stderr}");
        }
    };
    fails(&config, &["incidents"], 1, &["no pod of namespace fgm", "--agents-namespace"]);
    let expired = api.kubeconfig(dir.path(), "expired");
    fails(&expired, &["incidents"], 1, &["cannot list the pods of namespace fgm", "Unauthorized"]);
    fails(&dir.path().join("absent"), &["incidents"], 2, &["absent", "--kubeconfig"]);
    fails(&expired, &["incidents", "--context", "other"], 2, &["other", "--context"]);
    fails(&expired, &["incidents", "--data", "/"], 2, &["--all-nodes"]);
    let nobody = vec![Node { name: "delta", phase: "Running", agent: None }];
    let config = ApiServer::start(nobody, &[]).kubeconfig(dir.path(), "right");
    fails(&config, &["incidents"], 1, &["node delta", "connection refused", "none answered"]);
}
