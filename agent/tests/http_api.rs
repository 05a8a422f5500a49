//! The API for programs and for the viewer: series, containers, filters, the catalogue, live events, the description of
//! it all, and who is let in.

#[path = "support/rows.rs"]
mod rows;
#[path = "support/server.rs"]
mod server;

use axum::body::Body;
use axum::http::{Request, header};
use axum::response::Response;
use fgm::incident::Incident;
use fgm::names::Table;
use fgm::viewer::{self, ServeError};
use http_body_util::BodyExt;
use rows::{KILL_US, KILLED, POD, QUIET};
use serde_json::{Value, json};
use server::{Agent, ask, block_on, get_json, problem, send, setup};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tower::ServiceExt;

/// The minutes around the made-up kill.
fn window() -> String {
    let to = KILL_US / 1_000_000 + 20;
    format!("from={}&to={to}", to - 300)
}

fn keys(answer: &Value, list: &str) -> Vec<i64> {
    let id = |one: &Value| one["cgroup_id"].as_str().and_then(|id| id.parse().ok());
    answer[list].as_array().expect("a list").iter().filter_map(id).collect()
}

#[test]
fn a_series_keeps_the_peak_in_the_widest_bucket_and_has_no_container_twice() {
    let s = setup();
    s.seal_all();
    let router = s.router(Agent::default());
    let whole =
        get_json(&router, &format!("/api/timeseries?metric=memory_current&{}&resolution=300s", window()));
    let fine = get_json(
        &router,
        &format!("/api/timeseries?metric=memory_current&{}&resolution=1ms&containers=cart", window()),
    );
    let ids = keys(&whole, "series");
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    assert!(ids.contains(&KILLED) && ids.contains(&QUIET) && ids.contains(&POD));
    assert_eq!(keys(&fine, "series"), [KILLED]);
    let id = KILLED.to_string();
    let of = |answer: &Value, name: &str| -> Vec<f64> {
        let series = answer["series"].as_array().expect("a list");
        let one = series.iter().find(|s| s["cgroup_id"] == id.as_str()).expect("the killed one");
        let list = one["metrics"]["memory_current"][name].as_array().expect("a list");
        list.iter().filter_map(Value::as_f64).collect()
    };
    // Ground truth are the rows that were made up, not what a query says.
    let wanted = rows::samples().into_iter().filter(|r| r.get("cgroup_id") == Some(&rows::int(KILLED)));
    let truth: Vec<f64> = wanted
        .filter_map(|r| match r.get("memory_current") {
            Some(rows::Cell::Int(v)) => json!(v).as_f64(),
            _ => None,
        })
        .collect();
    let most = truth.iter().copied().reduce(f64::max).expect("rows");
    let most_of = |answer: &Value| of(answer, "max").into_iter().fold(0.0, f64::max);
    assert!((most_of(&whole) - most).abs() < 0.5 && (most_of(&fine) - most).abs() < 0.5);
    let readings: u64 = of(&whole, "n").iter().filter_map(|n| format!("{n}").parse::<u64>().ok()).sum();
    assert_eq!(readings, truth.len() as u64, "every reading is in a bucket");
    assert!(of(&fine, "t").len() > of(&whole, "t").len() * 100);
    let series = whole["series"].as_array().expect("a list");
    let killed = series.iter().find(|s| s["cgroup_id"] == id.as_str()).expect("the killed one");
    let causes: Vec<&str> =
        killed["bands"].as_array().expect("a list").iter().filter_map(|b| b["cause"].as_str()).collect();
    assert!(causes.contains(&"history") && causes.contains(&"burst"), "{causes:?}");
}

#[test]
fn a_counter_is_a_rate_unless_it_is_asked_for_as_it_stands() {
    let s = setup();
    let cpu = |cgroup: i64, at_s: i64, usage: i64| {
        let mut row = rows::base(cgroup, KILL_US + at_s * 1_000_000);
        row.insert("cpu_stat_usage_usec", rows::int(usage));
        row
    };
    // Half a core for three seconds, a restart's reset, a gap of seven seconds.
    let list: Vec<_> = [
        (0, 5_000_000),
        (1, 5_500_000),
        (2, 6_000_000),
        (3, 6_500_000),
        (4, 100_000),
        (5, 350_000),
        (12, 400_000),
        (13, 500_000),
    ]
    .map(|(at, usage)| cpu(KILLED, at, usage))
    .into_iter()
    .chain([cpu(QUIET, 0, 1_000_000), cpu(QUIET, 1, 1_010_000)])
    .collect();
    let agent = Agent {
        memory: Mutex::new(vec![(Table::Samples, rows::batch(Table::Samples, &list))]),
        ..Agent::default()
    };
    let router = s.router(agent);
    let from = KILL_US / 1_000_000 - 1;
    let path = format!(
        "/api/timeseries?metric=cpu_stat_usage_usec&from={from}&to={}&resolution=100ms&containers=cart",
        from + 20
    );
    let rates = get_json(&router, &path);
    let line = &rates["series"][0]["metrics"]["cpu_stat_usage_usec"];
    assert_eq!(line["t"], json!([2_000_000, 3_000_000, 4_000_000, 6_000_000, 14_000_000]));
    assert_eq!(line["avg"], json!([500_000.0, 500_000.0, 500_000.0, 250_000.0, 100_000.0]));
    assert_eq!(line["cut"], json!([0, 0, 0, 1, 1]), "no line over the reset, none over the gap");
    assert_eq!(rates["metrics"][0]["is_rate"], true);
    let raw = get_json(&router, &format!("{path}&rate=false"));
    assert_eq!(raw["series"][0]["metrics"]["cpu_stat_usage_usec"]["max"][0], 5_000_000.0);
    assert_eq!(raw["metrics"][0]["is_rate"], false);
}

#[test]
fn a_series_that_is_too_large_is_413_with_what_would_help() {
    let s = setup();
    s.seal_all();
    let router = s.router(Agent::default());
    let p = problem(&router, &format!("/api/timeseries?metric=memory_*&{}&resolution=1ms", window()), 413);
    assert_eq!(p["limit"]["name"], "buckets of an answer");
    assert!(p["asked"].as_u64() > p["limit"]["value"].as_u64() && p["narrow"].is_string());
    problem(&router, &format!("/api/timeseries?{}", window()), 400);
    problem(&router, &format!("/api/timeseries?metric=nothing_like_it&{}", window()), 400);
    problem(&router, &format!("/api/timeseries?metric=memory_current&rate=maybe&{}", window()), 400);
    let p = problem(&router, "/api/timeseries?metrics=memory_current", 400);
    assert!(p["accepted"].as_array().is_some_and(|a| a.contains(&json!("metric"))));
}

#[test]
fn containers_are_listed_with_what_their_last_rows_say_and_narrowed() {
    let s = setup();
    s.seal_all();
    let labels = Some([("app".to_owned(), "cart".to_owned())].into());
    let labelled = Incident { labels, ..rows::incident(9) };
    let router = s.router(Agent { incidents: vec![labelled], ..Agent::default() });
    let list = |more: &str| get_json(&router, &format!("/api/containers?{}{more}", window()));
    let all = list("");
    let cart = all["containers"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|c| c["container"] == "cart")
        .expect("cart")
        .clone();
    assert_eq!(cart["cgroup_id"], KILLED.to_string(), "ids are text: a browser's numbers end at 2^53");
    assert_eq!(cart["key"], format!("{KILLED}@{}", &rows::BOOT_ID.replace('-', "")[..8]));
    assert!(cart["memory_peak_bytes"].as_i64() >= cart["memory_bytes"].as_i64());
    assert!(cart["first_us"].as_i64() < cart["last_us"].as_i64());
    assert_eq!(keys(&list("&search=SIDECAR"), "containers"), [QUIET]);
    assert_eq!(keys(&list("&scope=pod"), "containers"), [POD]);
    assert_eq!(keys(&list("&qos=guaranteed"), "containers"), [0i64; 0]);
    assert_eq!(keys(&list("&namespace=elsewhere"), "containers"), [0i64; 0]);
    assert_eq!(keys(&list("&state=live"), "containers"), [0i64; 0], "the rows are of 2023");
    let key = cart["key"].as_str().expect("text");
    assert_eq!(keys(&list(&format!("&containers={key}")), "containers"), [KILLED]);
    let of_app =
        |selector: &str| keys(&list(&format!("&scope=container&labels={selector}")), "containers").len();
    assert_eq!((of_app("app%20in%20(cart,shop)"), of_app("app!=cart"), of_app("!app")), (2, 0, 0));
    problem(&router, "/api/containers?state=asleep", 400);

    let facets = get_json(&router, &format!("/api/filters?{}", window()));
    assert_eq!(facets["namespace"], json!([{"value": "shop", "count": 3}]));
    let scopes: Vec<&str> =
        facets["scope"].as_array().expect("a list").iter().filter_map(|f| f["value"].as_str()).collect();
    assert!(scopes.contains(&"container") && scopes.contains(&"pod"));
}

#[test]
fn events_are_narrowed_by_kind_and_container() {
    let s = setup();
    s.seal_all();
    let router = s.router(Agent::default());
    let kinds = |more: &str| -> Vec<String> {
        let answer = get_json(&router, &format!("/api/events?{}{more}", window()));
        answer["events"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|e| e["kind"].as_str().unwrap_or("?").to_owned())
            .collect()
    };
    assert_eq!(kinds("&kind=oom_kill,exit"), ["oom_kill", "exit"]);
    assert_eq!(kinds("&kind=exec"), [""; 0]);
    let (status, _, body) = ask(&router, &format!("/api/events?{}&kind=nothing", window()));
    assert_eq!(status, 400, "a kind that there is not");
    assert!(String::from_utf8_lossy(&body).contains("\"oom_kill\""), "with those that there are");
    assert_eq!(kinds("&containers=sidecar&kind=oom_kill"), [""; 0]);
    assert_eq!(kinds("&containers=cart&kind=oom_kill"), ["oom_kill"]);
}

#[test]
fn the_catalogue_can_be_searched() {
    let s = setup();
    let router = s.router(Agent::default());
    let all = get_json(&router, "/api/metrics")["metrics"].as_array().map(Vec::len);
    let of_node = fgm::catalogue::node::columns().count();
    assert_eq!(all, Some(fgm::catalogue::COLUMNS + of_node + fgm::catalogue::DEVICE_KEYS.len()));
    let found = get_json(&router, "/api/metrics?search=THROTTLED");
    let names: Vec<&str> =
        found["metrics"].as_array().expect("a list").iter().filter_map(|m| m["name"].as_str()).collect();
    assert!(names.contains(&"cpu_stat_nr_throttled") && !names.contains(&"memory_current"), "{names:?}");
}

/// The description is committed: a change of the API shows in the review, and `FGM_WRITE_SNAPSHOTS=1` writes it anew.
#[test]
fn the_description_is_the_committed_one_and_every_path_of_it_answers() {
    let s = setup();
    s.seal_all();
    let router = s.router(Agent::default());
    let description = get_json(&router, "/api/openapi.json");
    let text = format!("{description:#}\n");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/openapi.json");
    if std::env::var_os("FGM_WRITE_SNAPSHOTS").is_some() {
        fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        fs::write(&file, &text).expect("written");
    }
    let committed = fs::read_to_string(&file).expect("the committed description");
    assert!(committed == text, "the API and {} differ; FGM_WRITE_SNAPSHOTS=1 writes it anew", file.display());
    for path in description["paths"].as_object().expect("paths").keys().filter(|p| *p != "/api/live") {
        let is_series = path == "/api/timeseries" || path.starts_with("/api/analyze/");
        let metric = if is_series { "?metric=memory_current&range=5m" } else { "" };
        let (status, _, body) = ask(&router, &format!("{}{metric}", path.replace("{id}", "latest")));
        let wanted = if path == "/api/export" { 400 } else { 200 };
        assert_eq!(status, wanted, "{path}: {}", String::from_utf8_lossy(&body));
    }
}

#[test]
fn the_page_is_kept_by_its_tag_and_may_load_nothing_from_elsewhere() {
    let s = setup();
    let router = s.router(Agent::default());
    let (status, head, page) = ask(&router, "/");
    assert_eq!(status, 200);
    assert!(page.starts_with(b"<!doctype html>"));
    let policy = head.headers()[header::CONTENT_SECURITY_POLICY].to_str().expect("text");
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"), "{policy}");
    let tag = head.headers()[header::ETAG].clone();
    let again = Request::get("/").header(header::HOST, "localhost").header(header::IF_NONE_MATCH, tag);
    let (status, _, body) = send(&router, again.body(Body::empty()).expect("a request"));
    assert_eq!((status.as_u16(), body.len()), (304, 0));
    let (_, head, _) = ask(&router, "/api/incidents");
    assert_eq!(head.headers()[header::CACHE_CONTROL], "no-store");
}

fn with(path: &str, headers: &[(header::HeaderName, &str)]) -> Request<Body> {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    request.body(Body::empty()).expect("a request")
}

#[test]
fn with_a_token_only_who_has_it_is_answered_by_any_name() {
    let mut s = setup();
    let file = s.config.data_dir.join("token");
    fs::write(&file, "0123456789abcdef0123\n").expect("written");
    s.config.token_file = file;
    let router = s.router(Agent::default());
    let status = |path: &str, token: &str| {
        let headers = [(header::HOST, "node-7.example:8050"), (header::AUTHORIZATION, token)];
        send(&router, with(path, &headers)).0.as_u16()
    };
    assert_eq!(status("/api/status", "Bearer 0123456789abcdef0123"), 200);
    for wrong in [
        "Bearer 0123456789abcdef012",
        "Bearer 0123456789abcdef01234",
        "Basic 0123456789abcdef0123",
        "Bearer",
        "",
    ] {
        assert_eq!(status("/api/status", wrong), 401, "{wrong}");
    }
    for path in
        ["/metrics", "/api/export?incident=latest", "/api/live", "/api/timeseries?metric=memory_current"]
    {
        assert_eq!(status(path, ""), 401, "{path}");
    }
    let (_, head, _) = send(&router, with("/api/status", &[(header::HOST, "localhost")]));
    assert_eq!(head.headers()[header::WWW_AUTHENTICATE], "Bearer");
    assert_eq!(status("/", ""), 200, "the page holds nothing, and asks for the token");
}

#[test]
fn an_open_address_is_served_with_a_token_and_a_bad_token_is_refused_with_the_mend() {
    let mut s = setup();
    s.config.listen = "0.0.0.0:0".parse().expect("an address");
    s.config.token_file = s.config.data_dir.join("token");
    let start = |s: &server::Setup| viewer::serve(Arc::new(Agent::default()), s.store.clone(), &s.config);
    let refused = |s: &server::Setup| match start(s).map(|_| ()) {
        Err(e @ ServeError::Token { .. }) => e.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(refused(&s).contains("No such file"));
    fs::write(&s.config.token_file, "short").expect("written");
    let text = refused(&s);
    assert!(text.contains("16 or more") && text.contains("openssl rand"), "{text}");
    fs::write(&s.config.token_file, "0123456789abcdef").expect("written");
    start(&s).expect("serves").stop();
}

#[test]
fn a_page_of_another_origin_is_refused() {
    let s = setup();
    let router = s.router(Agent::default());
    let from = |origin: &str| {
        send(&router, with("/api/status", &[(header::HOST, "localhost:8050"), (header::ORIGIN, origin)]))
            .0
            .as_u16()
    };
    assert_eq!(from("http://localhost:8050"), 200);
    assert_eq!(from("http://localhost:3000"), 403);
    assert_eq!(from("https://evil.example"), 403);
    assert_eq!(from("null"), 403);
}

/// Messages of a stream until one of that name has come.
async fn until(stream: &mut Response, name: &str) -> Vec<(String, Value)> {
    let (mut text, mut seen) = (String::new(), Vec::new());
    let all = async {
        while !seen.iter().any(|(n, _): &(String, Value)| n == name) {
            let frame = stream.frame().await.expect("more to come").expect("a frame");
            text.push_str(&String::from_utf8_lossy(frame.data_ref().expect("data")));
            while let Some((message, rest)) = text.split_once("\n\n") {
                let field = |name: &str| {
                    message.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned()
                };
                seen.push((field("event:"), serde_json::from_str(&field("data:")).unwrap_or_default()));
                text = String::from(rest);
            }
        }
    };
    tokio::time::timeout(server::WAIT, all).await.expect("in time");
    seen
}

#[test]
fn live_tells_new_rows_and_events_once_and_no_old_ones() {
    let s = setup();
    let (now_us, id) = (fgm::clock::wall_us, KILLED.to_string());
    let sample = |cgroup: i64, memory: i64| {
        let mut row = rows::base(cgroup, now_us());
        row.insert("memory_current", rows::int(memory));
        row
    };
    let event = |id: &str| {
        let mut row = rows::row_of(KILLED, now_us());
        row.extend([("event_id", rows::text(id)), ("kind", rows::text("exit"))]);
        row
    };
    let old = [
        (Table::Samples, rows::batch(Table::Samples, &[sample(KILLED, 1)])),
        (Table::Events, rows::batch(Table::Events, &[event("old")])),
    ];
    let agent = Arc::new(Agent { memory: Mutex::new(old.into()), ..Agent::default() });
    let app = viewer::App::new(agent.clone(), s.store.clone(), &s.config).expect("no token");
    let router = viewer::router(app);
    block_on(async {
        let request = with("/api/live?containers=cart&metric=memory_current", &[(header::HOST, "localhost")]);
        let mut stream = router.clone().oneshot(request).await.expect("infallible");
        assert_eq!(stream.status(), 200);
        assert_eq!(stream.headers()[header::CONTENT_TYPE], "text/event-stream");
        let first = until(&mut stream, "tick").await;
        assert!(first.iter().all(|(name, _)| name != "events"), "what was before is not news: {first:?}");
        let more = [
            (Table::Samples, rows::batch(Table::Samples, &[sample(KILLED, 77), sample(QUIET, 5)])),
            (Table::Events, rows::batch(Table::Events, &[event("new")])),
        ];
        agent.memory.lock().expect("not poisoned").extend(more);
        let seen = until(&mut stream, "events").await;
        let samples: Vec<&Value> = seen
            .iter()
            .filter(|(n, _)| n == "samples")
            .filter_map(|(_, d)| d["series"].as_array())
            .flatten()
            .collect();
        assert!(samples.iter().all(|series| series["cgroup_id"] == id.as_str()), "of the chosen alone");
        let values: Vec<i64> = samples
            .iter()
            .filter_map(|s| s["rows"].as_array())
            .flatten()
            .filter_map(|r| r["values"]["memory_current"].as_i64())
            .collect();
        assert_eq!(values, [77]);
        let ids: Vec<&str> = seen
            .iter()
            .filter(|(n, _)| n == "events")
            .filter_map(|(_, d)| d["events"].as_array())
            .flatten()
            .filter_map(|e| e["event_id"].as_str())
            .collect();
        assert_eq!(ids, ["new"]);
        // Two more looks: nothing is told again.
        for _ in 0..2 {
            let again = until(&mut stream, "tick").await;
            assert!(again.iter().all(|(name, _)| name != "events" && name != "samples"), "{again:?}");
        }
    });
}

#[test]
fn live_has_so_many_places_and_a_client_that_goes_gives_its_place_back() {
    let s = setup();
    let router = s.router(Agent::default());
    block_on(async {
        let open = || router.clone().oneshot(with("/api/live", &[(header::HOST, "localhost")]));
        let mut held = Vec::new();
        loop {
            let answer = open().await.expect("infallible");
            if answer.status() == 503 {
                break;
            }
            assert_eq!(answer.status(), 200);
            held.push(answer);
            assert!(held.len() <= 64, "no end");
        }
        assert_eq!(held.len(), 16);
        held.pop();
        assert_eq!(open().await.expect("infallible").status(), 200);
    });
}

#[test]
fn a_live_stream_ends_with_the_server_and_holds_its_stop_up_no_longer() {
    let s = setup();
    let server = viewer::serve(Arc::new(Agent::default()), s.store.clone(), &s.config).expect("serves");
    let address = server.address();
    let (ticked, ticks) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().timeout_global(Some(server::WAIT)).build().into();
        let body = agent.get(format!("http://{address}/api/live")).call().expect("an answer").into_body();
        let mut lines = BufReader::new(body.into_reader()).lines();
        assert!(lines.any(|line| line.expect("text") == "event: tick"));
        ticked.send(()).expect("somebody waits");
        lines.for_each(|line| drop(line.expect("ends well")));
    });
    ticks.recv_timeout(server::WAIT).expect("a tick");
    let began_ns = fgm::clock::ktime_ns();
    server.stop();
    // Cut off, it would have taken the five seconds that an open request gets.
    assert!(Duration::from_nanos(fgm::clock::ktime_ns() - began_ns) < Duration::from_secs(4));
    reader.join().expect("no panic");
}

#[test]
fn an_answer_is_packed_as_the_client_takes_it_and_says_the_same() {
    let s = setup();
    s.seal_all();
    let router = s.router(Agent::default());
    let path = format!("/api/timeseries?metric=memory_*&{}", window());
    let plain = ask(&router, &path).2;
    let packed = |coding: &str| {
        let headers = [(header::HOST, "localhost"), (header::ACCEPT_ENCODING, coding)];
        let (status, head, body) = send(&router, with(&path, &headers));
        assert_eq!(status, 200);
        assert_eq!(head.headers()[header::CONTENT_ENCODING], coding);
        assert_eq!(head.headers()[header::VARY], "accept-encoding");
        assert!(body.len() * 3 < plain.len(), "{coding}: {} of {}", body.len(), plain.len());
        body
    };
    assert_eq!(zstd::stream::decode_all(&packed("zstd")[..]).expect("zstd"), plain);
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(&packed("gzip")[..]).read_to_end(&mut text).expect("gzip");
    assert_eq!(text, plain);
    let all = [(header::HOST, "localhost"), (header::ACCEPT_ENCODING, "zstd, gzip")];
    let (_, head, parquet) = send(&router, with("/api/export?incident=latest", &all));
    assert!(
        !head.headers().contains_key(header::CONTENT_ENCODING) && parquet.starts_with(b"PAR1"),
        "packed already"
    );
    let (_, head, _) = send(&router, with("/api/incidents/nothing", &all));
    assert!(!head.headers().contains_key(header::CONTENT_ENCODING), "too small to be worth it");
    let (_, head, _) = send(&router, with("/", &all));
    let tag = head.headers()[header::ETAG].to_str().expect("text").to_owned();
    let again = [
        (header::HOST, "localhost"),
        (header::ACCEPT_ENCODING, "zstd"),
        (header::IF_NONE_MATCH, tag.as_str()),
    ];
    assert_eq!(send(&router, with("/", &again)).0, 304);
}

/// A container whose memory climbs to its pod's limit, one that works each half minute, one that was restarted with less.
fn analysed() -> (server::Setup, Agent) {
    let s = setup();
    let at = |i: i64| KILL_US + i * 1_000_000;
    let mut list = Vec::new();
    for i in 0..600i64 {
        for (cgroup, memory, limit) in [
            (KILLED, (100 << 20) + i * (1 << 18), Some(1 << 40)),
            (QUIET, if i < 300 { 64 << 20 } else { 16 << 20 }, None),
            (POD, (200 << 20) + i * (1 << 18), Some(400 << 20)),
        ] {
            let mut row = rows::base(cgroup, at(i));
            row.insert("memory_current", rows::int(memory + i * 7919 % 13 * 4096));
            row.remove("memory_max");
            if let Some(limit) = limit {
                row.insert("memory_max", rows::int(limit));
            }
            row.insert("files_read", rows::int(i64::MAX));
            row.insert("cpu_stat_usage_usec", rows::int(i * 10_000 + (i + 27) / 30 * 2_000_000));
            list.push(row);
        }
    }
    let memory = Mutex::new(vec![(Table::Samples, rows::batch(Table::Samples, &list))]);
    (s, Agent { memory, ..Agent::default() })
}

#[test]
fn analyses_say_what_the_made_up_lines_do() {
    let (s, agent) = analysed();
    let router = s.router(agent);
    let from = KILL_US / 1_000_000;
    let ask_of = |what: &str, metric: &str, containers: &str| {
        let range = format!("from={from}&to={}", from + 600);
        let answer = get_json(
            &router,
            &format!("/api/analyze/{what}?metric={metric}&containers={containers}&{range}"),
        );
        answer["series"][0]["metrics"][metric].clone()
    };
    let trend = ask_of("trend", "memory_current", "cart");
    assert_eq!(trend["direction"], "rising");
    // The pod's limit has the least room: 400 MiB less 200 MiB and 599 steps of a quarter.
    let seconds = trend["forecast"]["seconds"].as_f64().expect("a forecast");
    assert!((seconds - 200.0).abs() < 10.0, "{trend:#}");
    assert_eq!(
        (&trend["limit"]["cgroup_path"], &trend["limit"]["is_own"]),
        (&json!(rows::POD_PATH), &json!(false))
    );
    let still = ask_of("trend", "memory_current", "sidecar");
    assert_eq!((&still["direction"], &still["no_forecast"]), (&json!("flat"), &json!("it is not rising")));
    let changes = ask_of("changepoint", "memory_current", "sidecar");
    assert_eq!(changes["changes"].as_array().map(Vec::len), Some(1), "{changes:#}");
    let at = changes["changes"][0]["t_us"].as_i64().expect("an instant") - KILL_US;
    assert!((at - 300_000_000).abs() < 4_000_000, "{at}");
    assert_eq!(
        ask_of("changepoint", "memory_current", "cart")["changes"],
        json!([]),
        "a ramp does not change"
    );
    let period = ask_of("periodicity", "cpu_stat_usage_usec", "cart");
    let seconds = period["period_us"].as_f64().expect("a period") / 1e6;
    assert!((seconds - 30.0).abs() < 1.0, "{seconds}");
    assert_eq!(ask_of("periodicity", "memory_current", "cart"), Value::Null, "a ramp does not repeat");
    problem(&router, "/api/analyze/trend?range=5m", 400);
    problem(&router, "/api/analyze/fortune?metric=memory_current", 404);
}

#[test]
fn devices_labels_and_the_node_are_lines_of_their_own() {
    let s = setup();
    s.seal_all();
    let router = s.router(Agent::default());
    let series = |more: &str| {
        let answer = get_json(&router, &format!("/api/timeseries?{more}&{}", window()));
        answer["series"].as_array().expect("a list").clone()
    };
    let devices = series("table=io_devices&metric=rbytes,wbytes&rate=false");
    let names: Vec<(&Value, &Value)> = devices.iter().map(|d| (&d["cgroup_id"], &d["device"])).collect();
    assert!(!names.is_empty() && names.iter().all(|(_, device)| device.is_string()));
    assert_eq!(
        names.iter().map(|n| format!("{n:?}")).collect::<BTreeSet<_>>().len(),
        names.len(),
        "no device twice: {names:?}"
    );
    let node = series("table=node&metric=meminfo_*");
    assert!(node.len() == 1 && node[0]["metrics"]["meminfo_memtotal"]["n"][0].is_u64(), "{node:?}");
    let loose = series("table=metrics&metric=*");
    assert!(
        !loose.is_empty() && loose.iter().all(|l| l["name"].is_string() && l["labels"].is_object()),
        "{loose:?}"
    );
    let one = loose[0]["name"].as_str().expect("text");
    assert!(series(&format!("table=metrics&metric={one}")).iter().all(|l| l["name"] == one));
    problem(&router, "/api/timeseries?table=ledger&metric=x", 400);
    problem(&router, "/api/timeseries?table=node&metric=memory_current", 400);
}
