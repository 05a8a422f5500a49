//! Tests of the watch over what a watcher may tell, and over a mock of the API server's HTTP side.

use super::*;
use axum::http::{Request, Response};
use futures_util::stream;
use kube::client::Body;
use serde_json::json;
use std::collections::VecDeque;
use std::io::{Read as _, Write as _};

fn object(uid: &str) -> Pod {
    let id = format!("containerd://{uid}c");
    let status = json!({"name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0, "containerID": id});
    let whole = json!({
        "metadata": {"uid": uid, "name": format!("pod-{uid}"), "namespace": "shop", "resourceVersion": "7"},
        "spec": {"containers": [{"name": "app"}]},
        "status": {"containerStatuses": [status]},
    });
    serde_json::from_value(whole).expect("a Pod")
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(20), future).await.expect("it comes to its end")
    })
}

/// Of one that does not wait between attempts.
fn patient() -> Patience {
    Patience::new(std::iter::repeat(Duration::ZERO))
}

fn attempt<'a>(pods: &'a Pods, state: &'a State, answered: &'a Notify) -> Attempt<'a> {
    Attempt { pods, state, answered, has_changed: &|| false }
}

fn told(events: Vec<watcher::Result<Event<Pod>>>) -> (Pods, State, Next) {
    let (pods, state, answered) = (Pods::default(), State::new(Watch::Connecting), Notify::new());
    let next = run(follow(stream::iter(events), &attempt(&pods, &state, &answered), &mut patient()));
    (pods, state, next)
}

fn knows(pods: &Pods, uid: &str) -> bool {
    pods.who(Some(uid), Some(&format!("{uid}c"))).is_some_and(|w| w.container().is_some())
}

#[test]
fn a_list_is_taken_and_what_it_leaves_out_has_gone() {
    let events = vec![
        Ok(Event::Init),
        Ok(Event::InitApply(object("a"))),
        Ok(Event::InitApply(object("b"))),
        Ok(Event::InitDone),
        Ok(Event::Apply(object("c"))),
        Ok(Event::Delete(object("b"))),
        Ok(Event::Init),
        Ok(Event::InitApply(object("c"))),
        Ok(Event::InitDone),
    ];
    let (pods, state, _) = told(events);
    let count = pods.count();
    assert_eq!((count.live, count.gone, state.watch()), (1, 2, Watch::Synced));
    assert!(["a", "b", "c"].iter().all(|uid| knows(&pods, uid)), "names stay for what is in memory");
}

#[test]
fn a_pod_that_is_first_told_of_by_its_deletion_has_its_names() {
    let (pods, ..) = told(vec![Ok(Event::Init), Ok(Event::InitDone), Ok(Event::Delete(object("a")))]);
    assert_eq!((pods.count().live, pods.count().gone), (0, 1));
    assert!(knows(&pods, "a"));
}

#[test]
fn half_a_list_takes_nothing_away() {
    let error = || Err(watcher::Error::NoResourceVersion);
    let events = vec![
        Ok(Event::Init),
        Ok(Event::InitApply(object("a"))),
        Ok(Event::InitDone),
        Ok(Event::Init),
        Ok(Event::InitApply(object("b"))),
        error(),
    ];
    let (pods, state, next) = told(events);
    assert_eq!((pods.count().live, pods.count().gone, next), (2, 0, Next::Anew));
    assert!(matches!(state.watch(), Watch::Unreachable { .. }));
}

#[test]
fn an_object_without_a_name_is_counted_and_the_others_are_taken() {
    let events = vec![
        Ok(Event::Init),
        Ok(Event::InitApply(Pod::default())),
        Ok(Event::InitApply(object("a"))),
        Ok(Event::InitDone),
    ];
    let (pods, state, _) = told(events);
    assert_eq!((pods.count().live, state.json(json!({}))["unnamed_objects"].as_u64()), (1, Some(1)));
}

#[test]
fn each_error_has_its_state_and_its_mend() {
    let api = |code: u16, message: &str| {
        let status = json!({"code": code, "message": message, "reason": ""});
        Error::Api(Box::new(serde_json::from_value(status).expect("a Status")))
    };
    let serde = || Error::SerdeError(serde_json::from_str::<Pod>("{").expect_err("no JSON"));
    let refused = || Error::Service("client error (Connect)".into());
    let said = |error: &watcher::Error| match verdict(error) {
        (Some(Watch::Denied { why }), anew) => ("denied", why, anew),
        (Some(Watch::Unreachable { why }), anew) => ("unreachable", why, anew),
        (None, anew) => ("", String::new(), anew),
        (other, _) => panic!("{other:?}"),
    };
    for (error, state, words, next) in [
        (
            watcher::Error::InitialListFailed(api(401, "Unauthorized")),
            "denied",
            ["token", "kubernetes.kubeconfig"],
            Next::Settings,
        ),
        (
            watcher::Error::InitialListFailed(api(403, "pods is forbidden")),
            "denied",
            ["may not list pods", "rbac.yaml"],
            Next::GoOn,
        ),
        (
            watcher::Error::WatchStartFailed(api(403, "pods is forbidden")),
            "denied",
            ["may not watch pods", "list and watch"],
            Next::GoOn,
        ),
        (
            watcher::Error::InitialListFailed(api(500, "etcd is ill")),
            "unreachable",
            ["500", "etcd is ill"],
            Next::GoOn,
        ),
        (
            watcher::Error::InitialListFailed(refused()),
            "unreachable",
            ["cannot be reached", "Connect"],
            Next::GoOn,
        ),
        (watcher::Error::InitialListFailed(serde()), "unreachable", ["no list of pods", "EOF"], Next::Anew),
        (watcher::Error::WatchFailed(serde()), "unreachable", ["watch", "EOF"], Next::Anew),
        (watcher::Error::WatchFailed(api(0, "")), "unreachable", ["watch", "something else"], Next::Anew),
        (
            watcher::Error::WatchFailed(api(500, "etcd is ill")),
            "unreachable",
            ["500", "etcd is ill"],
            Next::Anew,
        ),
        (watcher::Error::WatchStartFailed(api(410, "too old")), "", ["", ""], Next::Anew),
    ] {
        let (got, why, goes_on) = said(&error);
        assert_eq!((got, goes_on), (state, next), "{error}");
        assert!(words.iter().all(|w| why.contains(w)), "{why}");
    }
}

/// An API server that answers in turn, and what it was asked.
fn answered(answers: Vec<(u16, String)>) -> (Pods, Watch, Vec<String>) {
    let (pods, state) = (Pods::default(), State::new(Watch::Connecting));
    let asked = run(async {
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let client = Client::new(service, "default");
        let mut answers = VecDeque::from(answers);
        let mut asked = Vec::new();
        let server = async {
            while let Some((request, send)) = handle.next_request().await {
                asked.push(request.uri().to_string());
                let Some((code, body)) = answers.pop_front() else { break };
                send.send_response(
                    Response::builder().status(code).body(Body::from(body.into_bytes())).expect("an answer"),
                );
            }
        };
        let (answered, mut patience) = (Notify::new(), patient());
        let attempt = attempt(&pods, &state, &answered);
        tokio::select! {
            () = server => {}
            () = watch(client, "n-1", &attempt, &mut patience) => {}
        }
        asked
    });
    (pods, state.watch(), asked)
}

fn list(uids: &[&str], more: Option<&str>) -> String {
    let items: Vec<Pod> = uids.iter().map(|uid| object(uid)).collect();
    let metadata = json!({"resourceVersion": "5", "continue": more});
    json!({"apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": items}).to_string()
}

fn event(kind: &str, object: &Pod) -> String {
    let mut object = json!(object);
    object["apiVersion"] = json!("v1");
    object["kind"] = json!("Pod");
    format!("{}\n", json!({"type": kind, "object": object}))
}

#[test]
fn only_this_nodes_pods_are_asked_for_by_pages_and_then_watched() {
    let (pods, state, asked) = answered(vec![
        (200, list(&["a"], Some("next"))),
        (200, list(&["b"], None)),
        (200, event("ADDED", &object("c"))),
    ]);
    assert!(["a", "b", "c"].iter().all(|uid| knows(&pods, uid)), "{asked:?}");
    assert_eq!(state, Watch::Synced);
    assert!(
        asked
            .iter()
            .all(|u| u.starts_with("/api/v1/pods?") && u.contains("fieldSelector=spec.nodeName%3Dn-1")),
        "{asked:?}"
    );
    assert!(asked[0].contains("limit=50") && asked[1].contains("continue=next"), "{asked:?}");
    assert!(asked[2].contains("watch=true") && asked[2].contains("resourceVersion=5"), "{asked:?}");
    assert!(asked[3].contains("resourceVersion=7"), "it goes on after the last object: {asked:?}");
}

#[test]
fn an_expired_version_is_listed_anew_however_it_is_told() {
    let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "too old", "reason": "Expired", "code": 410});
    let in_stream = format!("{}\n", json!({"type": "ERROR", "object": gone}));
    for told in [(200, in_stream), (410, gone.to_string())] {
        let (pods, state, asked) =
            answered(vec![(200, list(&["a"], None)), told, (200, list(&["b"], None)), (200, String::new())]);
        assert_eq!((pods.count().live, pods.count().gone, &state), (1, 1, &Watch::Synced), "{asked:?}");
        assert!(asked[2].contains("limit=50"), "{asked:?}");
    }
}

#[test]
fn an_object_that_cannot_be_read_is_not_left_out() {
    let garbage = format!("{}{}", event("ADDED", &object("b")), "{\"type\": \"ADDED\", \"object\": 7}\n");
    let (pods, _, asked) =
        answered(vec![(200, list(&["a"], None)), (200, garbage), (200, list(&["a", "b", "c"], None))]);
    assert!(["a", "b", "c"].iter().all(|uid| knows(&pods, uid)), "{asked:?}");
    assert!(asked[2].contains("limit=50"), "the list tells what the watch could not: {asked:?}");
}

/// A server that takes each connection and answers its first request with what this makes of it; without an answer it holds the connection.
fn server(answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("bound").port();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let mut head = [0; 4096];
                let n = connection.read(&mut head).unwrap_or(0);
                match answer(&String::from_utf8_lossy(&head[..n])) {
                    Some(text) => drop(connection.write_all(text.as_bytes())),
                    None => drop(connection.read(&mut head)),
                }
            });
        }
    });
    port
}

fn in_json(body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// What is said of the server at this port when the third attempt to make a list of it, or to follow one, has failed.
fn said_of(port: u16, adjust: impl FnOnce(&mut Patience)) -> Watch {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: t\n\
         clusters: [{{name: t, cluster: {{server: \"http://127.0.0.1:{port}\"}}}}]\n\
         users: [{{name: t, user: {{token: t}}}}]\ncontexts: [{{name: t, context: {{cluster: t, user: t}}}}]\n"
    );
    std::fs::write(&file, text).expect("written");
    let (pods, state) = (Pods::default(), State::new(Watch::Connecting));
    let (tell, told) = std::sync::mpsc::channel();
    // how it stands at the beginning of each pause
    let at = state.clone();
    let mut patience = Patience::new(std::iter::repeat_with(move || {
        let _ = tell.send(at.watch());
        Duration::ZERO
    }));
    adjust(&mut patience);
    let place = Place::Kubeconfig(file);
    run(async {
        let mut stood = Vec::new();
        let third = async {
            loop {
                stood.extend(told.try_iter());
                if let Some(third) = stood.get(2) {
                    return third.clone();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = always(&place, "n", &pods, &state, &mut patience) => panic!("it never ends"),
            third = third => third,
        }
    })
}

#[test]
fn a_server_that_takes_a_connection_and_says_nothing_is_not_waited_for_for_ever() {
    fn why(port: u16, adjust: impl FnOnce(&mut Patience)) -> String {
        match said_of(port, adjust) {
            Watch::Unreachable { why } => why,
            other => panic!("{other:?}"),
        }
    }
    let short = Duration::from_millis(100);
    let silent = why(server(|_| None), |p| p.page_within = short);
    assert!(silent.contains("did not answer a list"), "{silent}");
    let silent = why(server(|_| None), |p| p.silence = short);
    assert!(silent.contains("cannot be reached") && silent.contains("timed out"), "{silent}");
    // one that goes silent after the list
    let watched = server(|asked| (!asked.contains("watch=true")).then(|| in_json(&list(&["a"], None))));
    let silent = why(watched, |p| p.silence = short);
    assert!(silent.contains("cannot be reached") && silent.contains("timed out"), "{silent}");
}

#[test]
fn watches_that_end_as_they_begin_are_an_error_and_have_pauses() {
    let asked = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let count = asked.clone();
    let port = server(move |head| {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Some(in_json(&if head.contains("watch=true") { String::new() } else { list(&["a"], None) }))
    });
    let Watch::Unreachable { why } = said_of(port, |_| {}) else { panic!("it is none") };
    assert!(why.contains("ends at once"), "{why}");
    // a list and its watches in each of three attempts, and some before the end was seen
    let asked = asked.load(std::sync::atomic::Ordering::Relaxed);
    assert!(asked < 10 * (MOST_ANSWERS + 3), "{asked} requests in three attempts");
}

#[test]
fn a_place_is_looked_for_and_a_wrong_one_is_said_with_the_mend() {
    let with = |enabled, kubeconfig: &str| Settings { enabled, kubeconfig: kubeconfig.into() };
    let why = |s: &Settings, in_cluster| Place::find(s, in_cluster).err().unwrap_or_default();
    assert!(why(&with(false, "x"), true).contains("kubernetes.enabled is false"));
    assert!(why(&with(true, ""), false).contains("KUBERNETES_SERVICE_HOST"));
    assert!(matches!(Place::find(&with(true, ""), true), Ok(Place::InCluster)));
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config");
    for (text, words) in [
        (None, "No such file"),
        (Some("clusters: 7"), "parse"),
        (Some("apiVersion: v1\nkind: Config\ncurrent-context: a\n"), "context"),
    ] {
        if let Some(text) = text {
            std::fs::write(&file, text).expect("written");
        }
        let why = run(Place::Kubeconfig(file.clone()).config()).map(|_| ()).expect_err("refused");
        assert!(
            why.contains(words) && why.contains("kubernetes.kubeconfig") && why.contains("kubectl"),
            "{why}"
        );
    }
    let why = run(Place::InCluster.config()).map(|_| ()).expect_err("this is no cluster");
    assert!(why.contains("automountServiceAccountToken"), "{why}");
}

#[test]
fn a_node_name_is_held_against_what_can_be_one() {
    for good in ["n", "ip-10-0-0-1.eu-west-1.compute.internal", "0"] {
        assert!(is_node_name(good), "{good}");
    }
    for bad in ["", "N", "a,spec.nodeName!=a", "a b", &"a".repeat(254)] {
        assert!(!is_node_name(bad), "{bad}");
    }
    let config = Config {
        node: "a=b".to_owned(),
        kubernetes: Settings { enabled: true, kubeconfig: "/x".into() },
        ..Config::default()
    };
    let off = Kubernetes::start(&config, false);
    let line = off.view().line();
    assert!(line.contains("off") && line.contains("FGM_NODE"), "{line}");
    off.stop();
}

#[test]
fn an_empty_answer_is_told_to_be_one_about_a_name() {
    let config = Config { node: "n".to_owned(), ..Config::default() };
    let names = Kubernetes::start(&config, true);
    names.state.listed();
    let view = names.view();
    assert!(view.line().contains("no pod has spec.nodeName n, which is the host name"), "{}", view.line());
    names.pods.apply(pod::of(object("a")).expect("a pod"));
    assert_eq!(view.json()["advice"], Value::Null);
    names.stop();
}
