//! `--all-nodes`: agents of several nodes asked through a stand-in of the API server, which forwards ports as one does
//! (`v4.channel.k8s.io` over a WebSocket); the answers are merged, and who did not answer is named.

#[path = "support/rows.rs"]
mod rows;
#[path = "support/server.rs"]
mod server;

use fgm::incident::Incident;
use fgm::names::Table;
use fgm::query;
use fgm::segment::Footer;
use fgm::viewer::{self, Server};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
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

    /// Has the made-up samples, as of that node.
    fn samples(&self, node: &str) {
        let rows: Vec<_> = rows::samples()
            .into_iter()
            .map(|mut row| {
                row.insert("node", text(node));
                row
            })
            .collect();
        let batch = rows::batch(Table::Samples, &rows);
        self.agent.memory.lock().expect("not poisoned").push((Table::Samples, batch));
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

/// Node and instant of each row of `samples` that a file has, sorted.
fn rows_in(file: &Path) -> Vec<(String, i64, i64)> {
    let file = std::fs::File::open(file).expect("written");
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet").build().expect("readable");
    let mut out = Vec::new();
    for batch in reader {
        let batch = batch.expect("rows");
        let of = |row| {
            let [id, ts] = ["cgroup_id", "ts"].map(|name| query::int(&batch, name, row).expect("a number"));
            (query::text(&batch, "node", row).expect("a node").to_owned(), id, ts)
        };
        out.extend((0..batch.num_rows()).map(of));
    }
    out.sort_unstable();
    out
}

/// A part of what goes along with a file of rows.
fn beside(file: &Path, key: &str) -> Value {
    let footer = Footer::read(file).expect("a footer");
    serde_json::from_str(footer.value(key).expect("it is there")).expect("JSON")
}

/// The same rows of each node, as they were made.
fn made(nodes: &[&str]) -> Vec<(String, i64, i64)> {
    let number = |cell: &rows::Cell| if let rows::Cell::Int(v) = cell { *v } else { panic!("a number") };
    let of_one = |node: &&str| {
        let node = (*node).to_owned();
        rows::samples()
            .into_iter()
            .map(move |row| (node.clone(), number(&row["cgroup_id"]), number(&row["ts"])))
    };
    let mut all: Vec<_> = nodes.iter().flat_map(of_one).collect();
    all.sort_unstable();
    all
}

#[test]
fn an_export_of_all_nodes_has_the_rows_of_each_and_names_the_silent() {
    let (a, b) = (Live::start("alfa-1", KILL_US), Live::start("bravo-1", KILL_US + 5));
    a.samples("alfa");
    b.samples("bravo");
    let dir = tempfile::tempdir().expect("a folder");
    let config = five(&a, &b).kubeconfig(dir.path(), "right");
    let (from, to) = (KILL_US / 1_000_000 - 300, KILL_US / 1_000_000 + 300);
    let export = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let path = out.to_str().expect("text").to_owned();
        let range = [from.to_string(), to.to_string()];
        let words = [&["export", "--from", &range[0], "--to", &range[1], "-o", &path], more].concat();
        (fgm(&config, &words), out)
    };
    let (told, whole) = export("all.parquet", &["--json"]);
    assert_eq!(told.status.code(), Some(0), "{told:?}");
    assert_eq!(rows_in(&whole), made(&["alfa", "bravo"]));
    let provenance = beside(&whole, "fgm.provenance");
    let names = |list: &Value| -> Vec<Value> {
        list.as_array().expect("a list").iter().map(|n| n["node"].clone()).collect()
    };
    assert_eq!(names(&provenance["unanswered"]), ["charlie", "delta", "echo"]);
    assert_eq!(provenance["unanswered"], parsed(&told)["unanswered"]);
    assert_eq!(provenance["nodes"][0]["rows"], made(&["alfa"]).len());
    assert_eq!(provenance["rows"], made(&["alfa", "bravo"]).len());
    assert_eq!(provenance["kernel"], "6.12.0-status", "what all say stands once");
    let stderr = String::from_utf8_lossy(&told.stderr);
    assert!(["charlie", "delta", "echo"].iter().all(|n| stderr.contains(&format!("node {n}"))), "{stderr}");
    let cgroups = beside(&whole, "fgm.cgroups");
    let of = |node: &str| names(&cgroups).iter().filter(|n| *n == node).count();
    assert_eq!((of("alfa"), of("bravo")), (4, 4), "{cgroups}");

    let text = |name, more: &[&str]| {
        let (told, out) = export(name, more);
        assert_eq!(told.status.code(), Some(0), "{told:?}");
        std::fs::read(out).expect("written")
    };
    let lines = text("all.csv", &[]).split(|b| *b == b'\n').count();
    assert_eq!(lines, made(&["alfa", "bravo"]).len() + 2, "a head, and the end of the last line");
    let list: Value = serde_json::from_slice(&text("all.json", &["-m", "memory_current"])).expect("JSON");
    assert_eq!(list.as_array().map(Vec::len), Some(made(&["alfa", "bravo"]).len()));
    let data = |name, more: &[&str]| {
        let page = String::from_utf8(text(name, more)).expect("text");
        let (_, rest) = page.split_once("id=\"fgm-data\">").expect("a report");
        rest.split_once("</script>").expect("an end").0.to_owned()
    };
    let page = data("all.html", &[]);
    assert!(
        ["\"alfa\"", "\"bravo\"", "\"unanswered\"", "connection refused"].iter().all(|w| page.contains(w)),
        "{page}"
    );
    // the stand-in of a name is the same on all nodes, and no name is left
    let page = data("plain.html", &["--redact"]);
    assert!(
        !["alfa", "bravo", "charlie", "delta", "echo", "cart-0"].iter().any(|w| page.contains(w)),
        "{page}"
    );

    let (none, _) = export("none.parquet", &["-c", "nobody"]);
    assert_eq!(none.status.code(), Some(3), "{none:?}");
    let (wrong, out) = export("wrong.parquet", &["-m", "memory_curent"]);
    assert_eq!((wrong.status.code(), out.exists()), (Some(2), false), "{wrong:?}");
    let (wrong, _) = export("wrong.parquet", &["--range", "5m"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}

#[test]
fn an_incident_of_all_nodes_is_the_export_of_the_node_that_has_it() {
    let (a, b) = (Live::start("alfa-1", KILL_US), Live::start("bravo-1", KILL_US + 5));
    a.samples("alfa");
    b.samples("bravo");
    let dir = tempfile::tempdir().expect("a folder");
    let node = |name, live: &Live| Node { name, phase: "Running", agent: Some(live.server.address()) };
    let config =
        ApiServer::start(vec![node("alfa", &a), node("bravo", &b)], &[]).kubeconfig(dir.path(), "right");
    let [all, own] = ["all.parquet", "own.parquet"].map(|name| dir.path().join(name));
    let [all_text, own_text] = [&all, &own].map(|path| path.to_str().expect("text"));
    for (asked, id, live) in [("alfa-1", "alfa-1", &a), ("latest", "bravo-1", &b)] {
        let told = fgm(&config, &["export", "--incident", asked, "--before", "5", "-o", all_text]);
        assert_eq!(told.status.code(), Some(0), "{told:?}");
        let told = Command::new(env!("CARGO_BIN_EXE_fgm"))
            .args(["export", "--incident", id, "--before", "5", "-o", own_text, "--server"])
            .arg(format!("http://{}", live.server.address()))
            .output()
            .expect("fgm runs");
        assert_eq!(told.status.code(), Some(0), "{told:?}");
        assert_eq!(beside(&all, "fgm.incident")["id"], id);
        assert!(!rows_in(&all).is_empty());
        assert_eq!(std::fs::read(&all).expect("all"), std::fs::read(&own).expect("own"), "{asked}");
    }
    let none = fgm(&config, &["export", "--incident", "charlie-1", "-o", all_text]);
    assert_eq!(none.status.code(), Some(3), "{none:?}");
    // of one that a node may have had which gave no answer, that is said
    let config = five(&a, &b).kubeconfig(dir.path(), "right");
    let told = fgm(&config, &["export", "--incident", "alfa-1", "-o", all_text]);
    assert_eq!(told.status.code(), Some(0), "{told:?}");
    let provenance = beside(&all, "fgm.provenance");
    assert_eq!(provenance["unanswered"].as_array().map(Vec::len), Some(3), "{provenance}");
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
