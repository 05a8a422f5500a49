//! Finished hours and incidents arrive in the bucket, each once, whatever the store answers and at whatever instant the agent dies;
//! what has not arrived stays on the disk, and what cannot stay is told.

#[path = "support/faults.rs"]
mod faults;
#[path = "support/rows.rs"]
mod rows;
#[path = "support/store_faults.rs"]
mod store_faults;

use crossbeam_channel::unbounded;
use faults::random;
use fgm::bucket::{Bucket, Put};
use fgm::config::Ship as Settings;
use fgm::incident::Incident;
use fgm::ledger::Accounts;
use fgm::names::Table;
use fgm::retention::{Limits, Window};
use fgm::segment::{Disk, HOUR_US};
use fgm::ship::{self, Incidents, Shipper, Status, What, bundle_name};
use fgm::store::{Rules, SealResult, Shipped, Store, Writer};
use rows::{BOOT_ID, KILL_US, KILLED, QUIET, batch};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store_faults::{Fault, Faulty};

const WAIT: Duration = Duration::from_secs(20);
const HOUR: i64 = KILL_US - KILL_US % HOUR_US;
const HOURS: i64 = 3;
const NOW: i64 = HOUR + (HOURS + 1) * HOUR_US;
const URL: &str = "s3://bucket/prefix";

/// Three hours of two cgroups, with an incident in the first of them, compacted.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let writer = Writer::start(store.clone(), BOOT_ID).expect("starts");
    let (tell, told) = unbounded();
    for hour in 0..HOURS {
        let at = HOUR + hour * HOUR_US;
        let seconds = (0..50).flat_map(|s| [KILLED, QUIET].map(|c| rows::base(c, at + s * 1_000_000)));
        let mut all = vec![(Table::Samples, batch(Table::Samples, &seconds.collect::<Vec<_>>()))];
        if hour == 0 {
            all = rows::all();
        }
        all.push(rows::ledger_of(&all, at + 3_000_000_000));
        writer.seal(1, all, rows::metadata(), Some(tell.clone()));
        assert!(matches!(told.recv_timeout(WAIT), Ok(SealResult::Stored { .. })));
    }
    writer.shutdown(WAIT).expect("in time");
    let told = store.compact(&Disk, NOW, &Rules::default(), &|| false);
    assert!(told.made.len() >= 5 && told.left.is_empty(), "{told:?}");
    dir
}

fn incident() -> Incident {
    Incident { cluster: Some("test".into()), closed: true, ..rows::incident(2) }
}

fn incidents() -> Incidents {
    Box::new(|wanted| [incident()].into_iter().filter(|i| wanted(i)).collect())
}

fn shipper(store: &Arc<Store>, to: &Faulty, what: What) -> Shipper {
    let settings = Settings { url: URL.into(), ..Settings::default() };
    let shipped = Arc::new(Mutex::new(Shipped::read(store.dir(), URL)));
    let status = Status::on(&settings);
    Shipper::new(store.clone(), settings, what, shipped, status).over(bucket(to))
}

fn bucket(to: &Faulty) -> Bucket {
    Bucket::over(Arc::new(to.clone()), "prefix")
}

fn mixed(n: u64) -> u64 {
    random(&mut (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// The files of `v1/`, as the bucket should have them.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(dir: &Path, root: &Path, out: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(dir).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, root, out);
            } else {
                let name = path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
                out.insert(format!("prefix/{name}"), fs::read(&path).expect("readable"));
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(&dir.join("v1"), dir, &mut out);
    out
}

/// What is in the bucket beside the bundle is `v1/`, byte for byte; and the bundle is there once.
fn has_all(to: &Faulty, dir: &Path) {
    let mut there = block_on(to.all());
    let bundle = there.remove(&format!("prefix/{}", bundle_name(&incident()))).expect("a bundle");
    assert!(bundle.starts_with(b"PAR1"));
    let wanted = files(dir);
    assert_eq!(there.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    assert!(there == wanted, "all bytes are the same");
}

#[test]
fn an_hour_and_an_incident_arrive_once_and_are_not_put_again() {
    let dir = folder();
    let store = Store::open(dir.path()).expect("opens");
    let to = Faulty::default();
    let mut own = shipper(&store, &to, What::All);
    block_on(own.pass(&incidents(), NOW)).expect("arrives");
    has_all(&to, dir.path());
    let status = own.status().json();
    let wanted = files(dir.path()).len();
    assert_eq!((&status["files"], &status["bundles"]), (&wanted.into(), &1.into()), "{status}");
    assert_eq!(status["backlog"]["files"], 0, "{status}");
    let puts = Faulty::asked(&to.puts);
    assert_eq!(puts, wanted as u64 + 1);
    // of a run that goes on, and of one that begins anew
    block_on(own.pass(&incidents(), NOW)).expect("nothing to do");
    block_on(shipper(&store, &to, What::All).pass(&incidents(), NOW)).expect("nothing to do");
    assert_eq!(Faulty::asked(&to.puts), puts, "nothing is put twice");
}

#[test]
fn without_its_note_the_bucket_is_asked_and_nothing_goes_up_again() {
    let dir = folder();
    let store = Store::open(dir.path()).expect("opens");
    let to = Faulty::default();
    block_on(shipper(&store, &to, What::All).pass(&incidents(), NOW)).expect("arrives");
    let before = block_on(to.all());
    let puts = Faulty::asked(&to.puts);
    fs::remove_file(dir.path().join("shipped.json")).expect("a note");
    let mut own = shipper(&store, &to, What::All);
    let none: Incidents = Box::new(|_| Vec::new());
    block_on(own.pass(&none, NOW)).expect("all is there");
    assert_eq!(Faulty::asked(&to.puts), puts, "no file was put");
    assert!(block_on(to.all()) == before);
    let status = own.status().json();
    assert_eq!(status["found_there"], status["files"], "{status}");
    assert!(!Shipped::read(dir.path(), URL).is_new(), "it is noted anew");
}

#[test]
fn whatever_request_is_the_last_of_a_run_the_next_one_ends_with_each_file_once() {
    let dir = folder();
    let mut died = 0;
    for silent in [Fault::Silent, Fault::SilentAfter] {
        for last in 1.. {
            let _ = fs::remove_file(dir.path().join("shipped.json"));
            let store = Store::open(dir.path()).expect("opens");
            let to = Faulty::default();
            to.plan(move |n| if n == last { silent } else { Fault::None });
            let mut own = shipper(&store, &to, What::All);
            let all = incidents();
            // a request that is never answered is where the process ends
            let is_done = block_on(async {
                tokio::select! {
                    biased;
                    done = own.pass(&all, NOW) => { done.expect("no error"); true }
                    () = tokio::time::sleep(Duration::from_millis(50)) => false
                }
            });
            to.plan(|_| Fault::None);
            block_on(shipper(&store, &to, What::All).pass(&incidents(), NOW)).expect("goes on");
            has_all(&to, dir.path());
            if is_done {
                break;
            }
            died += 1;
        }
    }
    assert!(died >= 2 * 6, "{died} deaths");
}

#[test]
fn failures_before_and_after_the_deed_lose_nothing_and_double_nothing() {
    let dir = folder();
    for seed in 0..20u64 {
        let _ = fs::remove_file(dir.path().join("shipped.json"));
        let store = Store::open(dir.path()).expect("opens");
        let to = Faulty::default();
        to.plan(move |n| match mixed(seed * 1000 + n) % 4 {
            0 => Fault::Before,
            1 => Fault::After,
            _ => Fault::None,
        });
        let mut own = shipper(&store, &to, What::All);
        let mut passes = 0;
        while let Err(error) = block_on(own.pass(&incidents(), NOW)) {
            assert!(error.contains("500 Internal Server Error"), "{error}");
            passes += 1;
            assert!(passes < 200, "{error}");
        }
        has_all(&to, dir.path());
    }
}

#[test]
fn one_object_that_a_store_never_takes_holds_up_no_other() {
    let dir = folder();
    let store = Store::open(dir.path()).expect("opens");
    let to = Faulty::default();
    let wanted = files(dir.path());
    let refused = wanted.keys().next().expect("files").clone();
    to.refuse(&refused);
    let mut own = shipper(&store, &to, What::All);
    for _ in 0..3 {
        let error = block_on(own.pass(&incidents(), NOW)).expect_err("one is refused");
        assert!(
            error.contains("500") && error.contains(refused.strip_prefix("prefix/").expect("below")),
            "{error}"
        );
    }
    assert_eq!(block_on(to.all()).len(), wanted.len(), "all but one, and the bundle");
    assert_eq!(own.status().json()["backlog"]["files"], 1);
    to.refuse("");
    block_on(own.pass(&incidents(), NOW)).expect("arrives");
    has_all(&to, dir.path());
}

#[test]
fn a_large_file_goes_up_in_parts_of_which_nothing_is_seen_until_all_are_there() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("large");
    let bytes: Vec<u8> = (0..100_000u64).flat_map(|n| mixed(n).to_le_bytes()).collect();
    fs::write(&path, &bytes).expect("write");
    for last in 1..=12 {
        let to = Faulty::default();
        let own = bucket(&to).in_parts_of(100 << 10);
        to.plan(move |n| if n == last { Fault::Before } else { Fault::None });
        let outcome = block_on(own.create_from("v1/large", &path));
        let there = block_on(to.all());
        if let Ok(put) = outcome {
            to.plan(|_| Fault::None);
            assert_eq!(put, Put::Made);
            assert_eq!(last, 12, "look, begin, eight parts, end");
            assert_eq!(there.get("prefix/v1/large"), Some(&bytes));
        } else {
            assert!(there.is_empty(), "{last}: nothing half is there");
            to.plan(|_| Fault::None);
            assert_eq!(block_on(own.create_from("v1/large", &path)).expect("goes on"), Put::Made);
            assert_eq!(block_on(to.all()).get("prefix/v1/large"), Some(&bytes));
        }
        assert_eq!(block_on(own.create_from("v1/large", &path)).expect("looks first"), Put::Exists);
    }
}

#[test]
fn another_file_of_the_same_name_stays_and_ours_gets_a_name_of_its_own() {
    let dir = folder();
    let store = Store::open(dir.path()).expect("opens");
    let to = Faulty::default();
    let wanted = files(dir.path());
    let (name, bytes) = wanted.first_key_value().expect("files");
    let own = name.strip_prefix("prefix/").expect("below").to_owned();
    block_on(bucket(&to).create(&own, vec![7; bytes.len()].into())).expect("put");
    for _ in 0..2 {
        let _ = fs::remove_file(dir.path().join("shipped.json"));
        block_on(shipper(&store, &to, What::All).pass(&incidents(), NOW)).expect("arrives");
        let there = block_on(to.all());
        assert_eq!(there[name], vec![7; bytes.len()], "what was there stays");
        let same: Vec<&String> = there.iter().filter(|(_, b)| *b == bytes).map(|(n, _)| n).collect();
        assert_eq!(same.len(), 1, "{same:?}");
        let (folder, file) = same[0].rsplit_once('/').expect("a folder");
        assert_eq!(folder, name.rsplit_once('/').expect("a folder").0);
        let boot = BOOT_ID.replace('-', "");
        assert!(file.starts_with(&format!("{boot}.")), "{file}");
        assert_eq!(there.len(), wanted.len() + 2);
    }
}

#[test]
fn incidents_alone_are_their_bundles_and_the_table_that_lists_them() {
    let dir = folder();
    let store = Store::open(dir.path()).expect("opens");
    let to = Faulty::default();
    block_on(shipper(&store, &to, What::Incidents).pass(&incidents(), NOW)).expect("arrives");
    let names: Vec<String> = block_on(to.all()).into_keys().collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.contains(&format!("prefix/{}", bundle_name(&incident()))), "{names:?}");
    assert!(names.iter().any(|n| n.starts_with("prefix/v1/table=incidents/cluster=")), "{names:?}");
}

#[test]
fn an_incident_goes_when_its_window_is_over_and_again_when_more_is_known() {
    let dir = folder();
    let store = Store::open(dir.path()).expect("opens");
    let to = Faulty::default();
    let mut own = shipper(&store, &to, What::Incidents);
    let is_closed = Arc::new(AtomicBool::new(false));
    let known = is_closed.clone();
    let of = move |revision| {
        let known = known.clone();
        let all: Incidents = Box::new(move |wanted| {
            let closed = known.load(Ordering::Relaxed);
            [Incident { closed, revision, ..incident() }].into_iter().filter(|i| wanted(i)).collect()
        });
        all
    };
    let bundles = || block_on(to.all()).keys().filter(|n| n.contains("/bundles/")).count();
    let end = incident().window.to_us;
    block_on(own.pass(&of(1), NOW)).expect("well");
    assert_eq!(bundles(), 0, "it goes on");
    is_closed.store(true, Ordering::Relaxed);
    block_on(own.pass(&of(2), end + 1_000_000)).expect("well");
    assert_eq!(bundles(), 0, "its last rows may be on their way");
    block_on(own.pass(&of(2), end + 3_000_000)).expect("well");
    block_on(own.pass(&of(2), end + 5_000_000)).expect("well");
    assert_eq!(bundles(), 1);
    block_on(own.pass(&of(3), end + 9_000_000)).expect("well");
    assert_eq!(bundles(), 2, "a revision of its own");
}

const ALL: Limits =
    Limits { max_age_us: i64::MAX, incident_max_age_us: i64::MAX, max_bytes: u64::MAX, wanted_bytes: 0 };

fn inspected(dir: &Path) -> Value {
    let done =
        Command::new(env!("CARGO_BIN_EXE_fgm")).arg("inspect").arg(dir).arg("--json").output().expect("fgm");
    serde_json::from_slice(&done.stdout).expect("JSON")
}

#[test]
fn what_is_not_there_yet_stays_on_the_disk_until_it_is_too_much_and_then_it_is_told() {
    let dir = folder();
    let store = Store::open(dir.path()).expect("opens");
    let shipped = Arc::new(Mutex::new(Shipped::read(dir.path(), URL)));
    let all: u64 = store.merged(|_| true).iter().map(|s| s.bytes).sum();
    ship::hold(&store, What::All, all, shipped.clone());
    let none = || Ok(Vec::<Window>::new());
    let limits = Limits { max_bytes: 0, ..ALL };
    assert!(store.retain(&Disk, NOW, &limits, none).expect("nothing").is_empty(), "all of it waits");

    // half of it arrives: that may go
    let half: Vec<_> = store.merged(|_| true).into_iter().filter(|s| s.table == Table::Samples).collect();
    let first = half.first().expect("samples");
    let name = first.path.strip_prefix(dir.path()).expect("below").to_str().expect("text").to_owned();
    shipped.lock().expect("no panic").note(&name);
    let gone = store.retain(&Disk, NOW, &limits, none).expect("one");
    assert_eq!(gone.iter().map(|g| g.reason.as_str()).collect::<Vec<_>>(), ["bytes"]);
    drop(store);

    // beyond the bound the oldest goes, and the account is of one mind
    let store = Store::open(dir.path()).expect("opens");
    let all: u64 = store.merged(|_| true).iter().map(|s| s.bytes).sum();
    ship::hold(&store, What::All, all - 1, shipped);
    let gone = store.retain(&Disk, NOW, &limits, none).expect("one");
    let reasons: Vec<&str> = gone.iter().map(|g| g.reason.as_str()).collect();
    assert_eq!(reasons, ["ship_backlog"], "no more than has to");
    let (table, rows) = (gone[0].segment.table, gone[0].segment.rows);
    assert_eq!(store.unshipped(), [(table, rows)]);
    let told = inspected(dir.path());
    assert_eq!(told["problems"], 0, "{told}");
    assert_eq!(told["ledger"][table.as_str()]["lost"]["ship_backlog"], rows, "{told}");
    assert_eq!(store.status()["retention"]["reasons"]["ship_backlog"], 1);

    // once the agent's ledger says it, it is not told twice
    assert!(ship::told(&store).is_empty());
    let mut account = Accounts::default();
    account.lost_later(table, "ship_backlog", rows);
    let ledger = rows::told_by(&account, NOW);
    let writer = Writer::start(store.clone(), BOOT_ID).expect("starts");
    writer.seal(1, vec![(Table::Ledger, ledger)], rows::metadata(), None);
    writer.shutdown(WAIT).expect("in time");
    assert_eq!(ship::told(&store), BTreeMap::from([(table, rows)]));
    let told = inspected(dir.path());
    assert_eq!(told["problems"], 0, "{told}");
    assert_eq!(told["ledger"][table.as_str()]["lost"]["ship_backlog"], rows, "{told}");
}

#[test]
fn a_bucket_counts_what_it_asks_for() {
    let to = Faulty::default();
    let own = bucket(&to);
    block_on(async {
        for n in 0..3 {
            let put = own.create(&format!("v1/table=events/cluster=c{n}/x"), vec![n; 100].into()).await;
            assert_eq!(put.expect("put"), Put::Made);
        }
        assert_eq!(
            own.create("v1/table=events/cluster=c0/x", vec![9; 100].into()).await.expect("asks"),
            Put::Exists
        );
        assert_eq!(own.range("v1/table=events/cluster=c1/x", 10..30).await.expect("read"), vec![1; 20]);
        assert_eq!(own.size("v1/nothing").await.expect("asks"), None);
        assert_eq!(own.list("v1/table=events").await.expect("listed").len(), 3);
        assert_eq!(own.folders("v1/table=events").await.expect("listed").len(), 3);
        assert!(own.list("v1/table=node").await.expect("listed").is_empty());
    });
    let counts = own.counts();
    assert_eq!((counts.puts, counts.gets, counts.lists), (4, 2, 3));
    assert_eq!((counts.bytes_read, counts.bytes_written), (20, 300));
    assert_eq!(counts.gets, Faulty::asked(&to.gets));
    assert_eq!(counts.lists, Faulty::asked(&to.lists));
    assert_eq!(counts.bytes_read, Faulty::asked(&to.bytes_read));
}
