//! The HTTP side through its router and, where sockets matter, through real ones: answers, refusals, addresses.

#[path = "support/rows.rs"]
mod rows;
#[path = "support/server.rs"]
mod server;

use arrow::array::RecordBatch;
use axum::body::Body;
use axum::http::{Request, header};
use fgm::config::Config;
use fgm::incident::Incident;
use fgm::names::Table;
use fgm::pods::{Container, Pod};
use fgm::query;
use fgm::segment::Io;
use fgm::store::Writer;
use fgm::viewer::{self, App, ServeError};
use rows::{BOOT_ID, KILL_US, KILLED, QUIET};
use serde_json::{Value, json};
use server::{Agent, ask, block_on, get_json, problem, rows_of, send, setup};
use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use tower::ServiceExt;

#[test]
fn health_readiness_and_metrics() {
    let s = setup();
    let health = |agent| {
        viewer::health_router(App::new(Arc::new(agent), s.store.clone(), &s.config).expect("no token"))
    };
    for router in [s.router(Agent::default()), health(Agent::default())] {
        assert_eq!(ask(&router, "/healthz").0, 200);
        assert_eq!(ask(&router, "/readyz").0, 200);
        let (_, head, body) = ask(&router, "/metrics");
        assert!(
            head.headers()[header::CONTENT_TYPE]
                .to_str()
                .expect("text")
                .starts_with("text/plain; version=0.0.4")
        );
        let body = String::from_utf8(body.to_vec()).expect("text");
        assert!(
            body.starts_with("fgm_samples_total 7\n") && body.contains("\nfgm_store_degraded 0\n"),
            "{body}"
        );
    }
    let router = s.router(Agent { not_ready: Some("no cgroup v2".into()), ..Agent::default() });
    assert!(problem(&router, "/readyz", 503)["detail"].as_str().is_some_and(|d| d.contains("no cgroup v2")));
    assert_eq!(ask(&router, "/healthz").0, 200, "alive all the same");
    problem(&health(Agent::default()), "/api/status", 404);
}

#[test]
fn values_of_containers_that_live_are_on_metrics_and_nothing_of_the_dead() {
    let mut s = setup();
    s.seal_all();
    let shown = |s: &server::Setup, seconds: i64, more: Vec<rows::Row>| {
        let memory = vec![(Table::Samples, rows::batch(Table::Samples, &more))];
        let now_us = Some(KILL_US + seconds * 1_000_000);
        let router = s.router(Agent { memory: memory.into(), now_us, ..Agent::default() });
        String::from_utf8(ask(&router, "/metrics").2.to_vec()).expect("text")
    };
    let sidecar = |metric: &str| {
        let id = rows::container_id(rows::QUIET);
        let labels = format!("namespace=\"shop\",pod=\"cart-0\",container=\"sidecar\",container_id=\"{id}\"");
        format!("\nfgm_container_{metric}{{{labels},pod_uid=\"7a000000-0000-4000-8000-000000000001\"}} ")
    };
    let ten = shown(&s, 10, Vec::new());
    assert!(ten.contains("\nfgm_prometheus_containers 2\n"), "neither pods nor slices: {ten}");
    assert!(ten.contains(&format!("{}8388608\n", sidecar("memory_current_bytes"))), "{ten}");
    assert!(ten.contains("\n# TYPE fgm_container_memory_current_bytes gauge\n"), "{ten}");
    assert!(ten.contains("\n# TYPE fgm_container_cpu_stat_usage_seconds_total counter\n"), "{ten}");
    assert!(ten.contains(&sidecar("cpu_stat_usage_seconds_total")), "{ten}");
    assert!(!ten.contains("memory_stat_file"), "not in the list: {ten}");

    // a limit that is there, and one that was taken away
    let row = |seconds: i64, max: Option<i64>| {
        let mut row = rows::base(rows::QUIET, KILL_US + seconds * 1_000_000);
        let bit = fgm::catalogue::file("memory.max").expect("known");
        row.insert("files_read", rows::int(1 | 1 << bit));
        row.remove("memory_max");
        row.extend(max.map(|max| ("memory_max", rows::int(max))));
        row
    };
    let limited = shown(&s, 12, vec![row(11, Some(1 << 26))]);
    assert!(limited.contains(&format!("{}67108864\n", sidecar("memory_max_bytes"))), "{limited}");
    let free = shown(&s, 13, vec![row(11, Some(1 << 26)), row(12, None)]);
    assert!(!free.contains(&sidecar("memory_max_bytes")), "{free}");

    let minute = shown(&s, 60, Vec::new());
    assert!(minute.contains("\nfgm_prometheus_containers 0\n") && !minute.contains("sidecar"), "{minute}");

    s.config.prometheus.max_containers = 1;
    let cut = shown(&s, 10, Vec::new());
    assert!(cut.contains("\nfgm_prometheus_containers_left_out 1\n"), "{cut}");
    s.config.prometheus.metrics = vec!["memory_curent".to_owned()];
    let refused = App::new(Arc::new(Agent::default()), s.store.clone(), &s.config).err().expect("refused");
    assert!(refused.to_string().contains("memory_curent"), "{refused}");
    s.config.prometheus.metrics.clear();
    assert!(!shown(&s, 10, Vec::new()).contains("fgm_container_"));
}

#[test]
fn status_has_the_agent_and_the_store() {
    let s = setup();
    s.seal_all();
    let status = get_json(&s.router(Agent::default()), "/api/status");
    assert_eq!(status["node"], rows::NODE);
    assert_eq!(status["store"]["files"], rows::all().len());
    assert_eq!(status["store"]["bytes"], s.store.total_bytes());
    assert_eq!(status["degraded"], Value::Null);
}

#[test]
fn rows_in_memory_that_cannot_be_had_are_said_to_be_missing() {
    let s = setup();
    s.seal_all();
    let router = s.router(Agent { busy: true, ..Agent::default() });
    let told = problem(&router, "/api/export?format=json&range=1h", 503);
    assert_eq!(told["detail"], "the agent is busy");
}

/// Every new file is `/dev/full`.
struct FullDisk;

impl Io for FullDisk {
    fn create(&self, _: &Path) -> std::io::Result<File> {
        File::options().write(true).open("/dev/full")
    }
}

#[test]
fn a_full_disk_shows_in_status_and_metrics_and_the_rows_in_exports() {
    let mut s = setup();
    s.writer = Arc::new(Writer::start_on(s.store.clone(), BOOT_ID, Arc::new(FullDisk)).expect("starts"));
    s.seal_all();
    let router = s.router(Agent::default());
    assert_eq!(
        get_json(&router, "/api/incidents")["incidents"],
        json!([]),
        "what is not on disk is not announced"
    );
    let router = s.router(Agent { incidents: vec![rows::incident(2)], ..Agent::default() });
    let status = get_json(&router, "/api/status");
    assert!(
        status["degraded"].as_str().is_some_and(|d| d.contains("No space left") && d.contains("free space"))
    );
    let metrics = String::from_utf8(ask(&router, "/metrics").2.to_vec()).expect("text");
    assert!(metrics.contains("\nfgm_store_degraded 1\n"), "{metrics}");
    let (status, _, body) = ask(&router, "/api/export?incident=latest");
    assert_eq!(status, 200);
    assert!(rows_of(body) > 1600);
}

#[test]
fn incidents_of_the_store_and_of_the_running_agent_are_one_list() {
    let s = setup();
    s.seal_all();
    let newer =
        Incident { id: "newer".into(), ts_us: KILL_US + 1, summary: "x".into(), ..Incident::default() };
    let router = s.router(Agent { incidents: vec![newer, rows::incident(3)], ..Agent::default() });
    let all = get_json(&router, "/api/incidents");
    let seen: Vec<(&str, i64)> = all["incidents"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|i| (i["id"].as_str().expect("an id"), i["revision"].as_i64().expect("a number")))
        .collect();
    let id = rows::incident_id();
    assert_eq!(seen, [("newer", 0), (id.as_str(), 3)], "newest first, the latest revision of each");
    let page = get_json(&router, "/api/incidents?limit=1");
    assert_eq!((&page["incidents"][0]["id"], &page["total"]), (&json!("newer"), &json!(2)), "one of two");
    #[expect(clippy::cast_precision_loss, reason = "µs of this century")]
    let until = format!("/api/incidents?to={:.6}", KILL_US as f64 / 1e6);
    let rest = get_json(&router, &until);
    assert_eq!((&rest["incidents"][0]["id"], &rest["total"]), (&json!(id), &json!(1)), "the older one");
    for wrong in ["limit=0", "limit=many", "limit=10001", "from=2026-01-02&to=2026-01-01"] {
        assert_eq!(ask(&router, &format!("/api/incidents?{wrong}")).0, 400, "{wrong}");
    }
    let one = get_json(&router, &format!("/api/incidents/{id}"));
    let typed: Incident = serde_json::from_value(one).expect("the shape of an incident");
    assert_eq!(typed, rows::incident(3));
    assert!(
        problem(&router, "/api/incidents/nope", 404)["detail"].as_str().is_some_and(|d| d.contains("newer"))
    );
}

#[test]
fn an_export_is_a_file_with_a_name() {
    let s = setup();
    s.seal_all();
    let router = s.router(Agent::default());
    let (status, head, parquet) = ask(&router, "/api/export?incident=latest");
    assert_eq!(status, 200);
    assert_eq!(head.headers()[header::CONTENT_TYPE], "application/vnd.apache.parquet");
    let name = head.headers()[header::CONTENT_DISPOSITION].to_str().expect("text");
    assert_eq!(name, format!("attachment; filename=\"incident-{}.parquet\"", rows::incident_id()));
    assert_eq!(head.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    assert!(rows_of(parquet) > 1600);
    let (status, head, html) = ask(&router, "/api/export?incident=latest&format=html&before=10&after=2");
    assert_eq!(status, 200);
    assert_eq!(head.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
    assert!(html.starts_with(b"<!doctype html>") || html.starts_with(b"<!DOCTYPE html>"));
}

#[test]
fn rows_in_memory_are_in_an_export_at_once() {
    let s = setup();
    let agent =
        Agent { memory: Mutex::new(rows::all()), incidents: vec![rows::incident(1)], ..Agent::default() };
    let router = s.router(agent);
    let (status, _, html) = ask(&router, "/api/export?incident=latest&format=html");
    assert_eq!(status, 200);
    let html = String::from_utf8(html.to_vec()).expect("text");
    let data =
        html.split_once(r#"id="fgm-data">"#).expect("data").1.split_once("</script>").expect("an end").0;
    let data: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(data["provenance"]["kernel"], "6.12.0-status", "no file says it yet, the running agent does");
    assert_eq!(data["provenance"]["ladder"], "full");
    assert_eq!(data["provenance"]["hooks"][0]["event"], "oom_kill");
    assert_eq!(data["processes"].as_array().map(Vec::len), Some(2));
}

/// A row that was made before anybody had named its container, and the pod that it is of.
fn nameless() -> (RecordBatch, Pod) {
    let mut row = rows::base(rows::QUIET, rows::KILL_US);
    for name in ["namespace", "pod", "container"] {
        row.remove(name);
    }
    let batch = rows::batch(Table::Samples, &[row]);
    let of = |name| query::text(&batch, name, 0).expect("of a container").to_owned();
    let app = Container { name: "app".into(), ids: vec![of("container_id")], ..Container::default() };
    let (namespace, name) = ("shop".to_owned(), "cart-0".to_owned());
    let pod = Pod { uid: of("pod_uid"), namespace, name, containers: vec![app], ..Pod::default() };
    (batch, pod)
}

#[test]
fn rows_in_memory_have_the_names_that_are_known_by_now() {
    let s = setup();
    let (batch, pod) = nameless();
    let agent = Agent { memory: vec![(Table::Samples, batch)].into(), ..Agent::default() };
    let (pods, all) = (agent.pods.clone(), "/api/export?format=json&from=1&to=9999999999");
    let router = s.router(agent);
    assert_eq!(get_json(&router, all)[0].get("container"), None);
    pods.apply(pod);
    let row = &get_json(&router, all)[0];
    assert_eq!(
        (&row["namespace"], &row["pod"], &row["container"]),
        (&json!("shop"), &json!("cart-0"), &json!("app"))
    );
}

#[test]
fn rows_that_were_closed_without_names_are_found_by_those_that_are_known() {
    let s = setup();
    let (batch, pod) = nameless();
    let agent = Agent { memory: vec![(Table::Samples, batch)].into(), ..Agent::default() };
    agent.pods.apply(pod);
    let router = s.router(agent);
    for by in ["namespace=shop", "containers=app", "search=cart-0"] {
        let answer = get_json(&router, &format!("/api/containers?from=1&to=9999999999&{by}"));
        let one = &answer["containers"][0];
        assert_eq!((&one["namespace"], &one["container"]), (&json!("shop"), &json!("app")), "{by}: {answer}");
    }
    for by in ["namespace=other", "containers=other"] {
        let answer = get_json(&router, &format!("/api/containers?from=1&to=9999999999&{by}"));
        assert_eq!(answer["containers"].as_array().map(Vec::len), Some(0), "{by}: {answer}");
    }
}

#[test]
fn rows_that_are_sealed_during_a_question_are_seen_once() {
    let s = setup();
    let agent = Agent { memory: Mutex::new(rows::all()), ..Agent::default() };
    *agent.seal.lock().expect("not poisoned") = Some(s.writer.clone());
    let to = KILL_US / 1_000_000 + 20;
    let (status, _, body) = ask(&s.router(agent), &format!("/api/export?from={}&to={to}", to - 300));
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    assert_eq!(rows_of(body), rows::samples().len());
}

#[test]
fn events_are_json() {
    let s = setup();
    s.seal_all();
    let router = s.router(Agent::default());
    let to = KILL_US / 1_000_000 + 20;
    let events = get_json(&router, &format!("/api/events?from={}&to={to}", to - 300));
    let kinds: Vec<&str> =
        events["events"].as_array().expect("a list").iter().filter_map(|e| e["kind"].as_str()).collect();
    assert_eq!(kinds, ["cgroup_start", "oom_kill", "exit"], "in time order");
    assert_eq!(events["events"][1]["comm"], rows::ODD_COMM);
    problem(&router, "/api/events?since=1", 400);
}

#[test]
fn a_bad_query_is_400_with_what_is_accepted() {
    let s = setup();
    s.seal_all();
    let router = s.router(Agent::default());
    let p = problem(&router, "/api/export?incident=latest&format=xlsx", 400);
    assert_eq!(p["accepted"], json!(["parquet", "html", "csv", "json"]));
    let p = problem(&router, "/api/export?rnage=5m", 400);
    assert!(p["accepted"].as_array().is_some_and(|a| a.contains(&json!("range"))));
    problem(&router, "/api/export", 400);
    problem(&router, "/api/export?range=5m&labels=app%20within%20(a)", 400);
    problem(&router, "/api/export?incident=unknown", 404);
    problem(&router, "/api/nothing", 404);
    let request =
        Request::post("/api/export").header(header::HOST, "localhost").body(Body::empty()).expect("ok");
    assert_eq!(send(&router, request).0, 405);
}

#[test]
fn over_the_limit_is_413_and_not_one_row() {
    let mut s = setup();
    s.seal_all();
    s.config.export.max_rows = 10;
    let p = problem(&s.router(Agent::default()), "/api/export?incident=latest", 413);
    assert_eq!(p["limit"], json!({"name": "export.max_rows", "value": 10}));
    assert!(p["asked"].as_u64().is_some_and(|n| n > 1600) && p["narrow"].is_string(), "{p}");
}

#[test]
fn an_address_that_is_too_long_is_414_with_its_length() {
    let router = setup().router(Agent::default());
    let long = format!("/api/containers?search={}", "x".repeat(20_000));
    let p = problem(&router, &long, 414);
    assert_eq!((&p["asked"], &p["limit"]["value"]), (&json!(long.len()), &json!(16_384)));
    assert_eq!(ask(&router, &format!("/api/containers?search={}", "x".repeat(10_000))).0, 200);
}

#[test]
fn one_request_too_many_is_told_to_come_again() {
    let s = setup();
    s.seal_all();
    let router = s.router(Agent { held: Some(Arc::default()), ..Agent::default() });
    let asked = |path: &str| {
        let request =
            Request::get(path).header(header::HOST, "localhost").body(Body::empty()).expect("a request");
        router.clone().oneshot(request)
    };
    block_on(async {
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..64 {
            waiting.spawn(asked("/api/events?range=5m"));
        }
        // each has come as far as it can
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let refused = asked("/api/metrics").await.expect("infallible");
        assert_eq!(refused.status(), 503);
        assert!(refused.headers().contains_key(header::RETRY_AFTER));
        assert!(waiting.try_join_next().is_none(), "the others wait for their turn");
        // who goes makes room
        waiting.shutdown().await;
        assert_eq!(asked("/api/metrics").await.expect("infallible").status(), 200);
    });
}

#[test]
fn a_foreign_host_name_is_refused() {
    let s = setup();
    let router = s.router(Agent::default());
    let with = |host: &str| {
        let request =
            Request::get("/api/status").header(header::HOST, host).body(Body::empty()).expect("a request");
        send(&router, request).0
    };
    assert_eq!(with("rebound.example:8050"), 403);
    assert_eq!(with("127.0.0.1:9999"), 200);
    assert_eq!(with("[::1]"), 200);
}

#[test]
fn a_taken_port_is_named_with_the_key_and_the_mend() {
    let s = setup();
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("an address");
    for (key, config) in [
        ("listen", Config { listen: taken, ..s.config.clone() }),
        ("health_listen", Config { health_listen: taken, ..s.config.clone() }),
    ] {
        let e = viewer::serve(Arc::new(Agent::default()), s.store.clone(), &config)
            .map(|_| ())
            .expect_err("taken");
        let e = e.to_string();
        assert!(
            e.contains(&taken.to_string()) && e.contains(&format!("({key})")) && e.contains("ss -ltnp"),
            "{e}"
        );
    }
}

#[test]
fn an_open_address_is_refused_with_the_mend() {
    let s = setup();
    let config = Config { listen: "0.0.0.0:0".parse().expect("an address"), ..s.config.clone() };
    let e =
        viewer::serve(Arc::new(Agent::default()), s.store.clone(), &config).map(|_| ()).expect_err("refused");
    assert!(matches!(e, ServeError::Open { .. }));
    assert!(e.to_string().contains("127.0.0.1"), "{e}");
}

fn fgm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fgm")).args(args).output().expect("runs")
}

#[test]
fn the_command_line_gets_the_same_bytes_from_an_agent_and_from_its_folder() {
    let s = setup();
    s.seal_all();
    let server = viewer::serve(Arc::new(Agent::default()), s.store.clone(), &s.config).expect("serves");
    let url = format!("http://{}", server.address());
    let out = tempfile::tempdir().expect("a folder");
    let (a, b) = (out.path().join("a.parquet"), out.path().join("b.parquet"));
    let data = s.config.data_dir.to_str().expect("text");
    for (place, file) in [(["--server", url.as_str()], &a), (["--data", data], &b)] {
        let file = file.to_str().expect("text");
        let run = fgm(&["export", place[0], place[1], "--incident", "latest", "-o", file]);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    }
    let (a, b) = (std::fs::read(a).expect("there"), std::fs::read(b).expect("there"));
    assert!(a == b, "{} bytes and {} bytes", a.len(), b.len());
    assert!(rows_of(a.into()) > 1600);

    let run = fgm(&["incidents", "--server", &url, "--json"]);
    assert_eq!(run.status.code(), Some(0));
    let listed: Value = serde_json::from_slice(&run.stdout).expect("JSON");
    assert_eq!(listed["incidents"][0]["id"], rows::incident_id());
    let run = fgm(&["export", "--server", &url, "--incident", "nope", "-o", "-", "--format", "html"]);
    assert_eq!(run.status.code(), Some(3), "{}", String::from_utf8_lossy(&run.stderr));
    let run = fgm(&["export", "--server", &url, "--range", "soon", "-o", "-", "--format", "html"]);
    assert_eq!(run.status.code(), Some(2), "{}", String::from_utf8_lossy(&run.stderr));
    server.stop();
    let run = fgm(&["incidents", "--server", &url]);
    assert_eq!(run.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&run.stderr).contains("is the agent running there?"));
}

/// Working set and per cent of limits are made of the columns when they are asked for.
#[test]
fn derived_metrics_are_told_and_null_where_a_part_or_the_limit_is() {
    let s = setup();
    let row = |cgroup: i64, second: i64, more: &[(&'static str, i64)]| {
        let mut row = rows::base(cgroup, KILL_US + 1 + second * 1_000_000);
        row.extend(more.iter().map(|(name, value)| (*name, rows::int(*value))));
        row
    };
    let read = 1 << fgm::catalogue::file("memory.max").expect("known");
    let cart = |second, used, more: &[(&'static str, i64)]| {
        let parts = [("memory_current", used), ("memory_stat_inactive_file", 100), ("files_read", 1)];
        row(KILLED, second, &[&parts, more].concat())
    };
    let list = [
        cart(0, 600, &[("memory_max", 1000), ("files_read", read)]),
        cart(1, 800, &[]),
        row(QUIET, 0, &[("memory_current", 600), ("memory_max", 1000), ("files_read", read)]),
        // "max"
        row(QUIET, 1, &[("memory_current", 800), ("files_read", read)]),
    ];
    let memory = Mutex::new(vec![(Table::Samples, rows::batch(Table::Samples, &list))]);
    let router = s.router(Agent { memory, ..Agent::default() });
    let from = KILL_US / 1_000_000;
    let window = format!("from={from}&to={}", from + 9);
    let told = get_json(&router, &format!("/api/containers?{window}"));
    let of = |answer: &Value, list: &str, name: &str| {
        let all = answer[list].as_array().expect("a list").clone();
        all.into_iter().find(|one| one["container"] == name).expect("there")
    };
    for (name, working_set, percent) in
        [("cart", json!(700.0), json!(80.0)), ("sidecar", Value::Null, Value::Null)]
    {
        let one = of(&told, "containers", name);
        assert_eq!(one["memory_working_set_bytes"], working_set, "{one}");
        assert_eq!(one["memory_percent_of_limit"], percent, "{one}");
    }
    let metrics = "memory_percent_of_limit,memory_current,memory_working_set";
    let told =
        get_json(&router, &format!("/api/timeseries?metric={metrics}&{window}&resolution=60s&rate=false"));
    let line = |name: &str, metric: &str| {
        let line = &of(&told, "series", name)["metrics"][metric];
        (line["min"].clone(), line["max"].clone())
    };
    assert_eq!(line("cart", "memory_working_set"), (json!([500.0]), json!([700.0])));
    assert_eq!(line("cart", "memory_percent_of_limit"), (json!([60.0]), json!([80.0])));
    assert_eq!(line("cart", "memory_current"), (json!([600.0]), json!([800.0])));
    assert_eq!(line("sidecar", "memory_working_set"), (Value::Null, Value::Null));
    assert_eq!(line("sidecar", "memory_percent_of_limit"), (json!([60.0]), json!([60.0])));
    let units: Vec<_> =
        told["metrics"].as_array().expect("a list").iter().map(|m| m["unit"].clone()).collect();
    assert_eq!(units, ["bytes", "bytes", "percent"], "{told}");
    // the trend of one is asked for by the same names, and the list of metrics has them
    get_json(&router, &format!("/api/analyze/trend?metric=memory_working_set&{window}"));
    let listed = get_json(&router, "/api/metrics?search=working_set");
    assert_eq!(listed["derived"][0]["of"], json!(["memory_current", "memory_stat_inactive_file"]));
}
