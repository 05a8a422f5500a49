//! What `fgm agent` says to a machine or a configuration that it cannot work with, and that a second signal, a damaged
//! folder or a taken port costs nothing that was saved.
//!
//! Needs no privilege. Tests of a running agent take whatever cgroup v2 mount there is, even one without controllers;
//! on a machine with none they say that they were skipped.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/api_server.rs"]
mod api_server;
#[path = "support/rows.rs"]
mod rows;

use agent::{Place, cgroup_root, get, wait};
use api_server::ApiServer;
use fgm::store::{Store, Writer};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[test]
fn a_wrong_configuration_is_2_and_names_place_key_and_what_would_do() {
    for (text, words) in [
        ("nod = \"b\"\n", ["agent.toml", "`nod`", "`cgroup_root`"]),
        ("[rotation]\nevery = 5\n", ["line 6", "`every`", "`every_s`"]),
        ("[lane]\nperiod_ms = \"fast\"\n", ["line 6", "lane.period_ms: period of the lane", "10 to 1000"]),
        ("[lane]\nperiod_ms = 3\n", ["agent.toml, line 6", "lane.period_ms = 3", "10 to 1000"]),
        ("node = \"a\nb\"\n", ["line 5", "5 | node", "string"]),
    ] {
        let (code, said) = Place::new(Path::new("/nonexistent"), text).refused();
        assert_eq!(code, Some(2), "{text:?}: {said}");
        assert!(words.iter().all(|w| said.contains(w)), "{text:?}: {said}");
    }
    let place = Place::new(Path::new("/nonexistent"), "");
    for (variable, value, word) in [
        ("FGM_ROTATION_EVERY_S", "soon", "not a whole number"),
        ("FGM_ROTATION_EVERY_S", "0", "out of range: 1 to 3600"),
        ("FGM_ROTATION_EVRY_S", "5", "accepted: FGM_ROTATION_EVERY_S"),
    ] {
        let (code, said) = place.refused_with(&[(variable, value)]);
        assert_eq!(code, Some(2), "{variable}: {said}");
        assert!(said.contains(variable) && said.contains(word), "{variable}: {said}");
    }
}

#[test]
fn a_folder_that_is_no_cgroup_v2_is_1_and_says_where_it_should_be() {
    let ordinary = tempfile::tempdir().expect("a folder");
    for root in [Path::new("/nonexistent/x"), ordinary.path(), Path::new("/proc/self/stat")] {
        let place = Place::new(root, "");
        let (code, said) = place.refused();
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains(&format!("cgroup_root {}", root.display())) && said.contains("mount"),
            "{said}"
        );
        assert!(said.matches("os error").count() <= 1, "the cause is said once: {said}");
        assert!(!place.data().exists(), "nothing was made");
    }
}

#[test]
fn a_data_folder_that_cannot_be_one_is_named_with_the_mend() {
    let Some(root) = cgroup_root("a_data_folder_that_cannot_be_one_is_named_with_the_mend") else { return };
    let place = Place::new(&root, "");
    fs::write(place.data(), "mine").expect("written");
    let (code, said) = place.refused();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is a file; name a folder with data_dir"), "{said}");
    assert_eq!(fs::read_to_string(place.data()).expect("there"), "mine");

    let (code, said) = Place::new(&root, "data_dir = \"/proc/fgm\"\n").refused();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cannot create the data folder /proc/fgm"), "{said}");

    let place = Place::new(&root, "[sampling]\ninclude = [\"[a\"]\n");
    let (code, said) = place.refused();
    assert!(code == Some(2) && said.contains("sampling.include: \"[a\" is not a glob"), "{said}");
}

#[test]
fn what_another_has_already_is_named_and_left_to_it() {
    let Some(root) = cgroup_root("what_another_has_already_is_named_and_left_to_it") else { return };
    let first = Place::new(&root, "");
    let mut running = first.start();
    let same = format!("data_dir = {:?}\n", first.data().display().to_string());
    let (code, said) = Place::new(&root, &same).refused();
    let pid = format!("in use by another agent (pid {})", running.process.id());
    assert!(code == Some(1) && said.contains(&pid), "{said}");
    for key in ["listen", "health_listen"] {
        let taken = format!("{key} = \"127.0.0.1:{}\"\n", first.port);
        let (code, said) = Place::new(&root, &taken).refused();
        assert_eq!(code, Some(1), "{said}");
        let words = [format!("127.0.0.1:{}", first.port), format!("({key})"), "the port is taken".to_owned()];
        assert!(words.iter().all(|w| said.contains(w)), "{said}");
    }
    let (code, said) = Place::new(&root, "listen = \"0.0.0.0:8050\"\n").refused();
    assert!(code == Some(2) && said.contains("listen on 127.0.0.1"), "{said}");
    assert!(get(first.port, "/api/status").contains("\"works\""), "the first one runs on");
    running.signal("TERM");
    assert!(running.ended().success(), "{}", running.log());
}

#[test]
fn an_agent_without_names_is_ready_and_says_why_and_what_to_do() {
    let Some(root) = cgroup_root("an_agent_without_names_is_ready_and_says_why_and_what_to_do") else {
        return;
    };
    let place = Place::new(&root, "");
    let mut agent = place.start();
    let (ready, status) = (get(place.port, "/readyz"), get(place.port, "/api/status"));
    assert!(
        ready.contains("\nkubernetes: off since 2") && ready.contains("KUBERNETES_SERVICE_HOST"),
        "{ready}"
    );
    assert!(status.contains(r#""state":"off""#) && status.contains(r#""unnamed":{"cgroups":"#), "{status}");
    agent.signal("TERM");
    assert!(agent.ended().success(), "{}", agent.log());

    let server = ApiServer::start();
    let dir = tempfile::tempdir().expect("a folder");
    let kubeconfig = server.kubeconfig(dir.path(), "expired");
    let node = api_server::NODE;
    let more =
        format!("node = {node:?}\n[kubernetes]\nkubeconfig = {:?}\n", kubeconfig.display().to_string());
    let place = Place::new(&root, &more);
    let mut agent = place.start();
    wait("401", || get(place.port, "/readyz").contains("\nkubernetes: denied since 2"));
    let (ready, status) = (get(place.port, "/readyz"), get(place.port, "/api/status"));
    assert!(ready.starts_with("HTTP/1.1 200") && ready.contains("put a valid one into the file"), "{ready}");
    assert!(status.contains(r#""state":"denied""#) && status.contains("(401, Unauthorized)"), "{status}");
    server.kubeconfig(dir.path(), api_server::TOKEN);
    wait("the mend", || get(place.port, "/readyz").contains("\nkubernetes: synced since 2"));
    assert!(get(place.port, "/api/status").contains(r#""state":"synced""#));
    agent.signal("TERM");
    assert!(agent.ended().success(), "{}", agent.log());
}

#[test]
fn signals_while_it_closes_cost_nothing_and_ordinary_refusals_are_not_logged() {
    let Some(root) = cgroup_root("signals_while_it_closes_cost_nothing") else { return };
    for signals in [["TERM", "TERM"], ["INT", "INT"], ["INT", "TERM"]] {
        let place = Place::new(&root, "");
        let mut agent = place.start();
        for path in ["/api/incidents/nope", "/nothing", "/api/export?range=x"] {
            assert!(get(place.port, path).starts_with("HTTP/1.1 40"));
        }
        for name in signals {
            agent.signal(name);
        }
        let status = agent.ended();
        assert!(status.success(), "{signals:?}: {status}: {}", agent.log());
        let log = agent.log();
        assert!(log.contains("closed") && !log.contains("a request"), "{log}");
        let view = Store::open_read_only(&place.data()).expect("opens").view();
        assert!(view.segments.iter().map(|s| s.rows).sum::<u64>() > 0 && view.lost.is_empty(), "{signals:?}");
    }
}

#[test]
fn damage_is_set_aside_at_the_start_and_what_cannot_be_read_stays() {
    let Some(root) = cgroup_root("damage_is_set_aside_at_the_start_and_what_cannot_be_read_stays") else {
        return;
    };
    let place = Place::new(&root, "");
    let store = Store::open(&place.data()).expect("opens");
    let writer = Writer::start(store, rows::BOOT_ID).expect("starts");
    for rotation in 1..4 {
        writer.seal(rotation, rows::all(), rows::metadata(), None);
    }
    writer.shutdown(Duration::from_secs(20)).expect("in time");
    let folder = place.data().join("recent/table=samples");
    let mut files: Vec<PathBuf> =
        fs::read_dir(&folder).expect("a folder").flatten().map(|e| e.path()).collect();
    files.sort();
    let whole = fs::read(&files[0]).expect("read");
    fs::write(&files[1], &whole[..whole.len() / 2]).expect("torn");
    let mut flipped = fs::read(&files[2]).expect("read");
    flipped[whole.len() / 3] ^= 0xff;
    fs::write(&files[2], flipped).expect("flipped");
    fs::write(folder.join("9-x-9.parquet.tmp"), "half").expect("unfinished");
    fs::write(folder.join(format!("9-x-{}.parquet", u64::MAX)), "").expect("an absurd number");
    let dangling = folder.join("0000000000000005-x-00000005.parquet");
    std::os::unix::fs::symlink("/nonexistent", &dangling).expect("a link");

    let mut agent = place.start();
    let status = get(place.port, "/api/status");
    assert!(status.contains("damaged segment") && status.contains("unreadable segment"), "{status}");
    agent.signal("TERM");
    assert!(agent.ended().success(), "{}", agent.log());
    assert_eq!(fs::read(&files[0]).expect("still there"), whole, "the whole one is untouched");
    assert!(fs::symlink_metadata(&dangling).is_ok(), "what could not be read is left where it is");
    assert!(!folder.join("9-x-9.parquet.tmp").exists());
    let aside: Vec<String> = fs::read_dir(place.data().join("quarantine"))
        .expect("a folder")
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(aside.iter().filter(|n| n.ends_with(".reason.txt")).count(), 3, "{aside:?}");
    assert_eq!(aside.len(), 6, "nothing damaged is deleted: {aside:?}");
    let log = agent.log();
    assert!(log.contains("set a damaged segment aside") && log.contains("left out a segment"), "{log}");
}
