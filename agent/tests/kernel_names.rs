//! The whole agent over real cgroups, with an API server beside it: names arrive in rows, in answers and in incidents, whenever they
//! are told, and where Kubernetes and the kernel disagree it is said. Run like `kernel_agent.rs`, whose stage it shares.

#[path = "support/api_server.rs"]
mod api_server;
#[expect(dead_code, reason = "shared with kernel_agent.rs, which uses the rest")]
#[path = "kernel_agent/stage.rs"]
mod stage;

use api_server::{ApiServer, TOKEN, pod, restarted};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Float64Type;
use serde_json::{Value, json};
use stage::{Agent, MIB, Pod, Process, guard, texts, wait};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(150);

/// Not a test: the body of the processes that the tests start from this very binary.
#[test]
fn child_role() {
    if let Ok(role) = std::env::var(stage::ROLE) {
        stage::play(&role);
    }
}

fn agent(server: &ApiServer, dir: &std::path::Path) -> Agent {
    let kubeconfig = server.kubeconfig(dir, TOKEN);
    // an emulated CPU takes ten seconds to close the segments of two
    let config = format!(
        "[rotation]\nevery_s = 20\n[sampling]\npss_budget_ms = 500\n[kubernetes]\nkubeconfig = \"{}\"\n",
        kubeconfig.display()
    );
    Agent::start_with("names", &config)
}

/// Bytes, by the kernel's own sum.
fn pss_of(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it lives");
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1024.0
}

/// The values of a process in the table `metrics`.
fn pss_rows(batch: &RecordBatch, pid: u32) -> Vec<f64> {
    let labels = batch.column_by_name("labels").expect("labels").as_map();
    let values = batch.column_by_name("value").expect("value").as_primitive::<Float64Type>();
    let is_of = |row: usize| {
        let of_row = labels.value(row);
        of_row.column(1).as_string::<i32>().iter().flatten().any(|v| v == pid.to_string())
    };
    let rows = texts(batch, "name").into_iter().enumerate();
    rows.filter(|(row, name)| name.as_deref() == Some("process_pss_bytes") && is_of(*row))
        .map(|(row, _)| values.value(row))
        .collect()
}

fn incident_of(agent: &Agent, container: &str, what: &str, good: impl Fn(&Value) -> bool) -> Value {
    let mut found = None;
    wait(what, LIMIT, || {
        let all = agent.incidents();
        found = all.into_iter().find(|i| i["container_id"] == container && good(i));
        found.is_some()
    });
    found.inspect(|i| println!("{i}")).expect("found")
}

#[test]
fn names_come_into_rows_answers_and_incidents() {
    if !guard("names_come_into_rows_answers_and_incidents") {
        return;
    }
    let server = ApiServer::start();
    let dir = tempfile::tempdir().expect("a folder");
    let slice = Pod::new(None);
    let app = slice.container(Some(48 * MIB));
    let cart = pod(&slice.uid, "cart-0", &app.container_id);
    let agent = agent(&server, dir.path());
    let ready = String::from_utf8(agent.get_ok("/readyz")).expect("text");
    assert!(ready.starts_with("ready\nkubernetes: "), "{ready}");

    // killed before Kubernetes has told who it is
    let mut hog = Process::spawn("ramp 100 6", &app);
    let procs = || std::fs::read_to_string(app.path.join("cgroup.procs")).unwrap_or_default();
    wait("the init", LIMIT, || !procs().is_empty());
    let mut beside = Process::spawn("hold 12", &app);
    beside.wait_ready();
    assert_eq!(hog.wait().1, Some(9));
    let pss_by_the_kernel = pss_of(beside.pid);
    let i = agent.closed_incident_of(&app, LIMIT);
    assert!(i["pod"].is_null() && i["kubernetes"].is_null(), "{i}");
    server.apply(cart.clone());
    let named = |i: &Value| i["pod"] == "cart-0";
    let i = incident_of(&agent, &app.container_id, "the name", named);
    assert_eq!(
        (&i["namespace"], &i["container"], &i["labels"]["tier"]),
        (&json!("shop"), &json!("app"), &json!("web"))
    );
    assert_eq!(i["closed"], true);

    // what the kernel calls an OOM kill has no such name there
    let next = format!("{:064x}", stage::number());
    server.apply(restarted(cart, "Error", 137, &next));
    let told = |i: &Value| i["kubernetes"]["next_container_id"] == next.as_str();
    let i = incident_of(&agent, &app.container_id, "the end as Kubernetes tells it", told);
    assert_eq!((&i["kubernetes"]["reason"], &i["kubernetes"]["restart_count"]), (&json!("Error"), &json!(1)));
    let summary = i["summary"].as_str().expect("a summary");
    assert!(summary.contains("container app of pod shop/cart-0"), "{summary}");
    assert!(summary.contains("Kubernetes does not say so: it has Error, exit code 137"), "{summary}");

    // answers: by label, though no row was ever told a label
    let all = agent.get_ok("/api/containers?labels=tier%3Dweb,app%3Dcart-0");
    let all: Value = serde_json::from_slice(&all).expect("JSON");
    let shown = all["containers"].as_array().expect("a list");
    let one = shown.iter().find(|c| c["container_id"] == app.container_id.as_str()).expect("listed");
    assert_eq!(
        (&one["pod"], &one["container"], &one["image"]),
        (&json!("cart-0"), &json!("app"), &json!("cart:1"))
    );
    assert_eq!((&one["owner"]["kind"], &one["labels"]["app"]), (&json!("ReplicaSet"), &json!("cart-0")));

    // files: those that were closed since the name is known, of every table
    agent.settle("samples");
    for table in ["samples", "events", "incidents"] {
        let mut named = 0;
        for batch in agent.stored(table) {
            let (ids, pods, containers) =
                (texts(&batch, "container_id"), texts(&batch, "pod"), texts(&batch, "container"));
            for ((id, pod), container) in ids.iter().zip(&pods).zip(&containers) {
                if let Some(pod) = pod {
                    assert_eq!(pod, "cart-0");
                    let is_app = id.as_deref() == Some(&*app.container_id);
                    assert_eq!(container.as_deref(), is_app.then_some("app"), "{id:?}");
                    named += usize::from(is_app);
                }
            }
        }
        assert!(named > 0 || table == "events", "no row of {table} has a name");
    }
    // what was told is a table of its own
    agent.settle("containers");
    let told: Vec<_> = agent
        .stored("containers")
        .iter()
        .flat_map(|b| {
            let rows = texts(b, "container_id").into_iter().zip(texts(b, "image")).zip(texts(b, "reason"));
            rows.map(|((id, image), reason)| (id, image, reason)).collect::<Vec<_>>()
        })
        .collect();
    let of = |id: &str, reason: Option<&str>| {
        let own = |text: &str| Some(text.to_owned());
        told.contains(&(own(id), own("cart:1"), reason.map(str::to_owned)))
    };
    assert!(
        of(&app.container_id, None) && of(&app.container_id, Some("Error")) && of(&next, None),
        "{told:?}"
    );

    // at the kill, or just before it, the one that was beside
    let pss: Vec<f64> = agent.stored("metrics").iter().flat_map(|b| pss_rows(b, beside.pid)).collect();
    let is_near = |v: &f64| (v - pss_by_the_kernel).abs() < 3.0 * 1_048_576.0;
    assert!(pss.iter().any(is_near), "{pss:?}, smaps_rollup: {pss_by_the_kernel}");

    let status = agent.status();
    assert_eq!(
        (&status["kubernetes"]["state"], &status["kubernetes"]["pods"]),
        (&json!("synced"), &json!(1)),
        "{status}"
    );
    assert!(agent.stop());
}

#[test]
fn an_api_server_that_is_away_costs_names_and_nothing_else() {
    if !guard("an_api_server_that_is_away_costs_names_and_nothing_else") {
        return;
    }
    let mut server = ApiServer::start();
    server.down();
    let dir = tempfile::tempdir().expect("a folder");
    let agent = agent(&server, dir.path());
    let slice = Pod::new(None);
    let app = slice.container(Some(48 * MIB));
    let mut hog = Process::spawn("ramp 100 1", &app);
    assert_eq!(hog.wait().1, Some(9));
    let i = agent.closed_incident_of(&app, LIMIT);
    assert!(i["pod"].is_null() && i["victims"][0]["pid"].as_u64() == Some(u64::from(hog.pid)), "{i}");
    let ready = String::from_utf8(agent.get_ok("/readyz")).expect("text");
    assert!(ready.contains("kubernetes: unreachable since"), "{ready}");
    server.apply(pod(&slice.uid, "cart-0", &app.container_id));
    server.up();
    incident_of(&agent, &app.container_id, "the name after the outage", |i| i["pod"] == "cart-0");
    assert!(agent.stop());
}
