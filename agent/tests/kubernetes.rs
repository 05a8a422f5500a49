//! The watch over pods against an API server that has bad days, and the names on their way into closed files.
//!
//! Needs no cluster and no privilege: the API server is a small one on loopback, the rows are made up. The agent as a whole, with
//! real containers, is in `kernel_names.rs`.

#[path = "support/api_server.rs"]
mod api_server;
#[path = "support/rows.rs"]
mod rows;

use api_server::{ApiServer, Mode, NODE, TOKEN, pod, restarted};
use fgm::accumulator::{NodeNames, Pending, Stamp};
use fgm::config::{Config, Kubernetes as Settings};
use fgm::kubernetes::Kubernetes;
use fgm::names::Table;
use fgm::pods::Pods;
use fgm::query;
use fgm::store::{SealResult, Store, Writer};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let end = fgm::clock::ktime_ns() + u64::try_from(LIMIT.as_nanos()).expect("short");
    while !done() {
        assert!(fgm::clock::ktime_ns() < end, "{what} did not come within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct Watching {
    names: Option<Kubernetes>,
    dir: tempfile::TempDir,
}

impl Watching {
    fn of(server: &ApiServer, token: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let kubeconfig = server.kubeconfig(dir.path(), token);
        let config = Config {
            node: NODE.to_owned(),
            kubernetes: Settings { enabled: true, kubeconfig },
            ..Config::default()
        };
        Self { names: Some(Kubernetes::start(&config, false)), dir }
    }

    fn names(&self) -> &Kubernetes {
        self.names.as_ref().expect("until it is dropped")
    }

    fn status(&self) -> Value {
        self.names().view().json()
    }

    fn is(&self, state: &str) -> bool {
        self.status()["state"] == state
    }

    fn knows(&self, uid: &str) -> bool {
        self.names().pods.who(Some(uid), None).is_some()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(names) = self.names.take() {
            names.stop();
        }
    }
}

#[test]
fn pods_are_listed_and_followed_and_a_quiet_watch_goes_on_where_it_was() {
    let server = ApiServer::start();
    for n in 0..120 {
        server.apply(pod(&format!("u{n}"), "cart", &format!("c{n}")));
    }
    let w = Watching::of(&server, TOKEN);
    wait("the list", || w.is("synced") && w.status()["pods"] == 120);
    server.apply(pod("late", "late", "cl"));
    server.delete(pod("u0", "cart", "c0"));
    wait("two changes", || w.knows("late") && w.status()["pods_gone"] == 1);
    let at = server.bookmark();
    server.end_watches();
    let from = format!("watch spec.nodeName=vm {at}");
    wait("a watch that goes on at the bookmark", || server.asked().contains(&from));
    server.apply(pod("later", "later", "cm"));
    wait("a change after the watch ended", || w.knows("later"));
    let asked = server.asked();
    let lists = asked.iter().filter(|a| a.starts_with("list")).count();
    assert_eq!(lists, 3, "120 pods in pages of 50, once: {asked:?}");
    assert!(asked.iter().all(|a| a.contains("spec.nodeName=vm")), "{asked:?}");
}

#[test]
fn a_connection_that_breaks_in_an_object_loses_none() {
    let server = ApiServer::start();
    let w = Watching::of(&server, TOKEN);
    wait("the list", || w.is("synced"));
    assert!(w.status()["advice"].as_str().is_some_and(|a| a.contains("FGM_NODE")), "an empty node is odd");
    server.apply_and_break(pod("half", "half", "c1"));
    wait("the object that was cut", || w.knows("half"));
    wait("the state", || w.is("synced"));
    server.apply(pod("whole", "whole", "c2"));
    wait("the next", || w.knows("whole"));
    assert_eq!(w.status()["lists"], 1, "{}", w.status());
}

#[test]
fn an_expired_history_and_an_unreadable_event_are_mended_by_a_list() {
    let server = ApiServer::start();
    let here = pod("here", "here", "c1");
    server.apply(here.clone());
    let w = Watching::of(&server, TOKEN);
    wait("the list", || w.knows("here") && w.is("synced"));
    server.change_unseen(here, false);
    server.change_unseen(pod("unseen", "unseen", "c2"), true);
    server.expire();
    wait("the list after 410", || w.knows("unseen") && w.status()["pods_gone"] == 1);
    server.change_unseen(pod("garbled", "garbled", "c3"), true);
    server.garbage();
    wait("the list after garbage", || w.knows("garbled") && w.is("synced"));
    assert!(w.status()["lists"].as_u64() >= Some(3), "{}", w.status());
}

#[test]
fn an_outage_is_said_and_what_happened_in_it_comes_after_it() {
    let mut server = ApiServer::start();
    let gone = pod("gone", "gone", "c1");
    server.apply(gone.clone());
    let w = Watching::of(&server, TOKEN);
    wait("the list", || w.knows("gone") && w.is("synced"));
    server.down();
    wait("the outage", || w.is("unreachable"));
    let status = w.status();
    assert!(status["why"].as_str().is_some_and(|t| t.contains("cannot be reached")), "{status}");
    assert!(w.knows("gone"), "what was known stays");
    server.delete(gone);
    server.apply(pod("new", "new", "c2"));
    server.up();
    wait("the end of the outage", || w.is("synced") && w.knows("new"));
    wait("the deletion", || w.status()["pods_gone"] == 1);
    assert!(w.knows("gone") && w.status()["last_error"]["text"].is_string());
}

#[test]
fn a_pod_that_came_and_went_in_an_outage_is_named_if_the_history_has_it() {
    let mut server = ApiServer::start();
    let w = Watching::of(&server, TOKEN);
    wait("the list", || w.is("synced"));
    let short = |server: &ApiServer, uid: &str| {
        server.apply(pod(uid, uid, uid));
        server.delete(restarted(pod(uid, uid, uid), "OOMKilled", 137, "next"));
    };
    server.down();
    short(&server, "told");
    server.up();
    wait("the history", || w.knows("told"));
    let who = w.names().pods.who(Some("told"), Some("told")).expect("known");
    assert!(who.ended("told").is_some() && w.status()["pods"] == 0, "{}", w.status());
    server.down();
    short(&server, "untold");
    server.expire();
    server.up();
    wait("a list", || w.is("synced") && w.status()["lists"] == 2);
    assert!(!w.knows("untold"), "nobody told of it");
}

#[test]
fn an_outage_in_which_nothing_happened_ends_without_a_word() {
    let mut server = ApiServer::start();
    server.apply(pod("here", "here", "c1"));
    let w = Watching::of(&server, TOKEN);
    wait("the list", || w.knows("here") && w.is("synced"));
    server.down();
    wait("the outage", || w.is("unreachable"));
    server.up();
    wait("the end of the outage", || w.is("synced"));
    assert_eq!(w.status()["lists"], 1, "the watch went on where it was: {}", w.status());
}

#[test]
fn what_answers_well_and_says_what_nobody_understands_is_never_taken_for_an_api_server() {
    let server = ApiServer::start();
    server.apply(pod("here", "here", "c1"));
    let w = Watching::of(&server, TOKEN);
    wait("the list", || w.knows("here") && w.is("synced"));
    server.set(Mode::Garbage);
    server.end_watches();
    wait("garbage", || w.is("unreachable"));
    let (since, asked) = (w.status()["since_us"].clone(), server.asked().len());
    wait("more attempts", || server.asked().len() >= asked + 3);
    let status = w.status();
    assert_eq!((&status["state"], &status["since_us"]), (&json!("unreachable"), &since), "{status}");
    server.set(Mode::Well);
    wait("the end of it", || w.is("synced"));
}

#[test]
fn a_token_that_is_replaced_in_the_kubeconfig_is_taken() {
    let server = ApiServer::start();
    server.apply(pod("here", "here", "c1"));
    let w = Watching::of(&server, "expired");
    wait("401", || w.is("denied"));
    let (since, asked) = (w.status()["since_us"].clone(), server.asked().len());
    wait("another attempt", || server.asked().len() >= asked + 2);
    assert_eq!(w.status()["since_us"], since, "the same trouble all the time: {}", w.status());
    server.kubeconfig(w.dir.path(), TOKEN);
    wait("the names", || w.is("synced") && w.knows("here"));
}

#[test]
fn a_kubeconfig_that_names_another_place_is_followed_there() {
    let mut old = ApiServer::start();
    let w = Watching::of(&old, TOKEN);
    wait("the list", || w.is("synced"));
    old.down();
    wait("the outage", || w.is("unreachable"));
    let new = ApiServer::start();
    new.apply(pod("here", "here", "c1"));
    new.kubeconfig(w.dir.path(), TOKEN);
    wait("the names", || w.is("synced") && w.knows("here"));
}

#[test]
fn a_refusal_is_named_with_the_mend_and_ends_when_it_is_mended() {
    let server = ApiServer::start();
    server.apply(pod("here", "here", "c1"));
    let stranger = Watching::of(&server, "expired");
    wait("401", || stranger.is("denied"));
    let why = stranger.status()["why"].clone();
    assert!(why.as_str().is_some_and(|t| t.contains("401") && t.contains("expired")), "{why}");
    assert!(stranger.names().view().line().contains("denied since 2"), "{}", stranger.names().view().line());

    let forbidden = "pods is forbidden: User \"system:serviceaccount:fgm:fgm\" cannot list resource \"pods\" in API group \"\" at the cluster scope";
    server.set(Mode::Refuses(403, forbidden.to_owned()));
    let w = Watching::of(&server, TOKEN);
    wait("403", || w.is("denied"));
    let why = w.status()["why"].clone();
    let words = ["may not list pods", "system:serviceaccount:fgm:fgm", "ClusterRole", "list and watch"];
    assert!(words.iter().all(|x| why.as_str().is_some_and(|t| t.contains(x))), "{why}");
    assert!(!w.knows("here"));
    server.set(Mode::Well);
    wait("the right", || w.is("synced") && w.knows("here"));
}

#[test]
fn what_is_no_api_server_is_told_and_a_slow_one_is_waited_for() {
    let server = ApiServer::start();
    server.apply(pod("here", "here", "c1"));
    server.set(Mode::Garbage);
    let w = Watching::of(&server, TOKEN);
    wait("garbage", || w.is("unreachable"));
    let why = w.status()["why"].clone();
    assert!(why.as_str().is_some_and(|t| t.contains("no list of pods")), "{why}");
    server.set(Mode::Slow(Duration::from_millis(200)));
    wait("the slow list", || w.is("synced") && w.knows("here"));
    server.apply(pod("later", "later", "c2"));
    wait("the slow watch", || w.knows("later"));
    server.apply(pod("last", "last", "c3"));
    wait("the slow watch again", || w.knows("last"));
    assert!(w.is("synced") && w.status()["lists"] == 1, "{}", w.status());
}

#[test]
fn the_end_of_a_container_is_kept_when_its_pod_goes() {
    let server = ApiServer::start();
    let w = Watching::of(&server, TOKEN);
    server.apply(pod("u", "cart", "aaa"));
    wait("the pod", || w.knows("u"));
    server.delete(restarted(pod("u", "cart", "aaa"), "OOMKilled", 137, "bbb"));
    wait("its end", || w.status()["pods_gone"] == 1);
    let who = w.names().pods.who(Some("u"), Some("aaa")).expect("kept");
    let end = who.ended("aaa").expect("told with the deletion");
    assert_eq!((end.reason.as_deref(), end.exit_code), (Some("OOMKilled"), 137));
}

#[test]
fn rows_that_were_written_before_a_name_was_known_have_it_in_the_closed_file() {
    let server = ApiServer::start();
    let w = Watching::of(&server, TOKEN);
    wait("the list", || w.is("synced"));
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    store.set_pods(w.names().pods.clone());
    let writer = Writer::start(store.clone(), rows::BOOT_ID).expect("starts");
    let mut row = rows::base(rows::QUIET, rows::KILL_US);
    for name in ["namespace", "pod", "container"] {
        row.remove(name);
    }
    let before = rows::batch(Table::Samples, &[row]);
    let (uid, id) = (query::text(&before, "pod_uid", 0), query::text(&before, "container_id", 0));
    server.apply(pod(uid.expect("a pod's row"), "cart-0", id.expect("a container's row")));
    wait("the pod", || w.status()["pods"] == 1);
    let (tell, told) = crossbeam_channel::unbounded();
    writer.seal(1, vec![(Table::Samples, before)], rows::metadata(), Some(tell));
    let Ok(SealResult::Stored { files, .. }) = told.recv_timeout(LIMIT) else { panic!("not stored") };
    assert_eq!(first_names(&files[0].path), ["shop", "cart-0", "app"].map(|name| Some(name.to_owned())));
}

/// Those of the first row of a Parquet file.
fn first_names(path: &Path) -> [Option<String>; 3] {
    let file = std::fs::File::open(path).expect("a file");
    let reader =
        parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet");
    let batch = reader.build().expect("readable").next().expect("a batch").expect("rows");
    ["namespace", "pod", "container"].map(|name| query::text(&batch, name, 0).map(str::to_owned))
}

/// What `fgm` prints as JSON, or the code that it ended with.
fn fgm(words: &[&str]) -> Result<Value, i32> {
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_fgm")).args(words).output().expect("runs");
    if done.status.success() {
        return Ok(serde_json::from_slice(&done.stdout).expect("JSON"));
    }
    Err(done.status.code().expect("not killed"))
}

#[test]
fn what_was_told_is_a_table_by_which_a_copied_folder_knows_labels_and_ends() {
    let server = ApiServer::start();
    let w = Watching::of(&server, TOKEN);
    w.names().pods.keep_news();
    wait("the list", || w.is("synced"));
    let mut unnamed = rows::base(rows::QUIET, rows::KILL_US);
    for name in ["namespace", "pod", "container"] {
        unnamed.remove(name);
    }
    let of_samples = rows::batch(Table::Samples, &[unnamed]);
    let uid = query::text(&of_samples, "pod_uid", 0).expect("a pod's row");
    let (ended, runs) = (rows::container_id(rows::KILLED), rows::container_id(rows::QUIET));
    let cart = pod(uid, "cart-0", &ended);
    server.apply(cart.clone());
    wait("the pod", || w.knows(uid));
    let mut at = Stamp { ktime_ns: 1, wall_us: rows::KILL_US };
    let mut told = Pending::default();
    let take = |told: &mut Pending, at: Stamp| {
        let (news, lost) = w.names().pods.take_news(usize::MAX);
        assert_eq!(lost, 0);
        told.containers.extend(news.into_iter().map(|revision| (at, revision)));
        told.containers.len()
    };
    assert_eq!(take(&mut told, at), 2, "the pod and its container");
    server.apply(restarted(cart, "OOMKilled", 137, &runs));
    at.wall_us += 1_000_000;
    wait("the restart", || take(&mut told, at) == 4);
    // nothing new, and all of it anew when that is asked for
    w.names().pods.tell_all();
    assert_eq!(take(&mut told, at), 7, "the pod, the container that ended, and the one that runs");

    let dir = tempfile::tempdir().expect("a folder");
    let writer = Writer::start(Store::open(dir.path()).expect("opens"), rows::BOOT_ID).expect("starts");
    let names = NodeNames { cluster: None, node: rows::NODE.into(), boot_id: rows::BOOT_ID.into() };
    let of_containers = told.batch(Table::Containers, &names).expect("a batch");
    let batches = vec![(Table::Samples, of_samples.clone()), (Table::Containers, of_containers)];
    writer.seal(1, batches, rows::metadata(), None);
    writer.shutdown(LIMIT).expect("in time");

    let pods = query::pods(&Store::open_read_only(dir.path()).expect("opens").view()).expect("readable");
    let who = pods.who(Some(uid), Some(&ended)).expect("known");
    let end = who.ended(&ended).expect("how it ended");
    assert_eq!(
        (end.reason.as_deref(), end.exit_code, end.next_container_id.as_deref()),
        (Some("OOMKilled"), 137, Some(&*runs))
    );
    let app = who.container().expect("the container");
    assert_eq!(
        (app.image.as_deref(), app.memory_limit.as_deref(), app.restart_count),
        (Some("cart:1"), Some("64Mi"), 1)
    );
    assert_eq!(who.pod.owner.as_ref().map(|o| (&*o.kind, &*o.name)), Some(("ReplicaSet", "cart-7d")));

    // labels and names are nowhere but in that table
    let data = dir.path().to_str().expect("text");
    let out = dir.path().join("out.json");
    let export_as = |format: &str, by: &str, what: &str| {
        let words = [
            "export",
            "--data",
            data,
            "--range",
            "5m",
            by,
            what,
            "--format",
            format,
            "--json",
            "-o",
            out.to_str().expect("text"),
        ];
        fgm(&words).map(|_| ())
    };
    let export = |by: &str, what: &str| export_as("json", by, what);
    for holds in ["app=cart-0", "tier in (web,api),!canary", "app!=store"] {
        assert_eq!(export("-l", holds), Ok(()), "{holds}");
    }
    for not in ["app=store", "!tier", "tier notin (web)"] {
        assert_eq!(export("-l", not), Err(3), "{not}");
    }
    for (by, holds, not) in [("-n", "shop", "other"), ("-c", "app", "sidecar")] {
        assert_eq!((export(by, holds), export(by, not)), (Ok(()), Err(3)), "{by}");
    }
    // and what is exported has them
    let rows: Value = serde_json::from_slice(&std::fs::read(&out).expect("an export")).expect("JSON");
    assert_eq!(
        (&rows[0]["namespace"], &rows[0]["pod"], &rows[0]["container"]),
        (&json!("shop"), &json!("cart-0"), &json!("app"))
    );
    assert_eq!(export_as("parquet", "-c", "app"), Ok(()));
    assert_eq!(first_names(&out), ["shop", "cart-0", "app"].map(|name| Some(name.to_owned())));
    // an agent that starts over it has the names of those that are gone
    let again = Pods::default();
    again.remember(
        query::earlier_pods(&Store::open_read_only(dir.path()).expect("opens").view()).expect("readable"),
    );
    assert_eq!((again.count().live, again.count().gone), (0, 1));
    assert_eq!(again.who(Some(uid), None).map(|w| w.pod.name.clone()).as_deref(), Some("cart-0"));
}
