//! What is too old or too much goes, ordinary data first and incidents last; the account stays exact, whatever a crash chooses;
//! a full disk stops nothing but writing, and evidence of incidents is written for longer than anything else.

#[path = "support/child.rs"]
mod child;
#[path = "support/faults.rs"]
mod faults;
#[path = "support/rows.rs"]
mod rows;

use crossbeam_channel::unbounded;
use faults::{Deadly, Tally, random};
use fgm::names::Table;
use fgm::retention::{Limits, Window};
use fgm::segment::{Disk, HOUR_US, Io};
use fgm::store::{Rules, SealResult, Store, View, Writer};
use rows::{BOOT_ID, KILL_US, KILLED, QUIET, batch};
use serde_json::Value;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(20);
const HOUR: i64 = KILL_US - KILL_US % HOUR_US;
const HOURS: i64 = 6;
const NOW: i64 = HOUR + (HOURS + 1) * HOUR_US;
const ALL: Limits =
    Limits { max_age_us: i64::MAX, incident_max_age_us: i64::MAX, max_bytes: u64::MAX, wanted_bytes: 0 };

/// Six hours of two cgroups, with an incident in the first of them.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let writer = Writer::start(Store::open(dir.path()).expect("opens"), BOOT_ID).expect("starts");
    let (tell, told) = unbounded();
    for hour in 0..HOURS {
        for part in 0..2 {
            let at = HOUR + hour * HOUR_US + part * 1_700_000_000;
            let samples: Vec<_> = (0..200)
                .flat_map(|s| [KILLED, QUIET].map(|c| rows::base(c, at + s * 1_000_000 + part)))
                .collect();
            let mut all = vec![(Table::Samples, batch(Table::Samples, &samples))];
            if (hour, part) == (0, 0) {
                all = rows::all();
            }
            all.push(rows::ledger_of(&all, at + 300_000_000));
            writer.seal(1, all, rows::metadata(), Some(tell.clone()));
            assert!(matches!(told.recv_timeout(WAIT), Ok(SealResult::Stored { .. })));
        }
    }
    writer.shutdown(WAIT).expect("in time");
    dir
}

fn windows() -> Vec<Window> {
    let boot = BOOT_ID.replace('-', "");
    vec![Window { boot, from_us: KILL_US - 30_000_000, to_us: KILL_US + 10_000_000 }]
}

fn rows_of(view: &View, table: Table) -> usize {
    faults::keys(view, table).len()
}

fn problems(dir: &Path) -> Value {
    let done =
        Command::new(env!("CARGO_BIN_EXE_fgm")).arg("inspect").arg(dir).arg("--json").output().expect("fgm");
    serde_json::from_slice(&done.stdout).expect("JSON")
}

fn hours_of(view: &View, table: Table) -> Vec<i64> {
    let mut hours: Vec<i64> = view
        .segments
        .iter()
        .filter(|s| s.table == table)
        .map(|s| (s.from_us - HOUR).div_euclid(HOUR_US))
        .collect();
    hours.sort_unstable();
    hours.dedup();
    hours
}

#[test]
fn what_is_too_old_goes_and_is_told_and_the_account_stays_exact() {
    let dir = folder();
    assert_eq!(problems(dir.path())["problems"], 0);
    let store = Store::open(dir.path()).expect("opens");
    let limits = Limits { max_age_us: 3 * HOUR_US, ..ALL };
    let gone = store.retain(&Disk, NOW, &limits, || Ok(windows())).expect("removed");
    assert!(!gone.is_empty() && gone.iter().all(|g| g.reason.as_str() == "age" && !g.segment.path.exists()));
    assert_eq!(hours_of(&store.view(), Table::Samples), [0, 4, 5], "that of the incident stays");
    assert_eq!(hours_of(&store.view(), Table::Node), [0; 0], "no export of an incident reads this");
    assert_eq!(rows_of(&store.view(), Table::Incidents), 2);
    let inspected = problems(dir.path());
    assert_eq!(inspected["problems"], 0, "{inspected}");
    assert_eq!(inspected["ledger"]["samples"]["lost"]["retention"], 7 * 400, "{inspected}");
    let status = &store.status()["retention"];
    assert_eq!(
        (&status["files"], &status["reasons"]["age"]),
        (&gone.len().into(), &gone.len().into()),
        "{status}"
    );
    assert!(store.retain(&Disk, NOW, &limits, || Ok(windows())).expect("nothing").is_empty());
    assert!(
        store
            .retain(&Disk, NOW, &ALL, || panic!("nothing is beyond the limits"))
            .expect("nothing")
            .is_empty()
    );
    drop(store);
    let store = Store::open(dir.path()).expect("opens");
    assert_eq!(store.status()["retention"]["files"], gone.len(), "a start knows what went before it");
    let gone =
        store.retain(&Disk, NOW, &Limits { incident_max_age_us: 3 * HOUR_US, ..limits }, || Ok(windows()));
    assert!(gone.expect("removed").iter().any(|g| g.segment.table == Table::Incidents));
    assert_eq!(problems(dir.path())["problems"], 0);
}

#[test]
fn beyond_its_bytes_the_oldest_goes_first_and_incidents_last() {
    let dir = folder();
    let store = Store::open(dir.path()).expect("opens");
    store.compact(&Disk, NOW, &Rules::default(), &|| false);
    let (mut last, mut order) = (store.total_bytes(), Vec::new());
    while last > 0 {
        let limits = Limits { max_bytes: last - 1, ..ALL };
        let gone = store.retain(&Disk, NOW, &limits, || Ok(windows())).expect("removed");
        assert!(!gone.is_empty() && store.total_bytes() < last);
        assert_eq!(problems(dir.path())["problems"].as_u64().unwrap_or(0), 0);
        last = store.total_bytes();
        order.extend(
            gone.into_iter().map(|g| ((g.segment.from_us - HOUR).div_euclid(HOUR_US), g.segment.table)),
        );
        if store.view().segments.iter().all(|s| s.table == Table::Incidents) {
            break;
        }
    }
    let samples: Vec<i64> = order.iter().filter(|(_, t)| *t == Table::Samples).map(|(h, _)| *h).collect();
    assert_eq!(samples, [1, 2, 3, 4, 5, 0]);
    let (others, evidence) =
        order.split_at(order.iter().position(|(h, t)| (*h, *t) == (5, Table::Samples)).expect("there"));
    assert!(
        others.iter().all(|(h, t)| *h > 0 || !matches!(t, Table::Samples | Table::Events | Table::Processes)),
        "{others:?}"
    );
    assert!(evidence.iter().any(|(h, t)| (*h, *t) == (0, Table::Processes)), "{evidence:?}");
    // no folder of an hour that is gone
    let hours = fs::read_dir(dir.path().join("v1/table=samples/cluster=test")).map_or(0, Iterator::count);
    assert_eq!(hours, 0);
}

#[test]
fn space_for_others_takes_no_evidence_and_unknown_incidents_take_nothing() {
    let dir = folder();
    let store = Store::open(dir.path()).expect("opens");
    let limits = Limits { wanted_bytes: u64::MAX, ..ALL };
    let before = rows_of(&store.view(), Table::Samples);
    let e = store.retain(&Disk, NOW, &limits, || Err("unreadable".to_owned())).expect_err("nothing is known");
    assert!(e.contains("unreadable") && rows_of(&store.view(), Table::Samples) == before, "{e}");
    let gone = store.retain(&Disk, NOW, &limits, || Ok(windows())).expect("removed");
    assert!(gone.iter().all(|g| g.reason.as_str() == "free"));
    assert_eq!(hours_of(&store.view(), Table::Samples), [0]);
    assert_eq!(rows_of(&store.view(), Table::Incidents), 2);
}

/// Not a test: what the test runs. Told folder, and the file operation in which it is to die.
#[test]
fn child() {
    let Some(told) = child::told() else { return };
    let io = Deadly::at_operation(told[1].parse().expect("a number"));
    let store = Store::open_on(Path::new(&told[0]), &io).expect("opens");
    store.retain(&io, NOW, &Limits { max_age_us: 3 * HOUR_US, ..ALL }, || Ok(windows())).expect("removed");
}

#[test]
fn a_crash_anywhere_leaves_the_account_exact() {
    let whole = folder();
    let mut tally = Tally { kind: "killed while retention removes", ..Tally::default() };
    let least = faults::points(0);
    let (mut operations, mut seed) = (u64::MAX, 0x5eed_u64);
    let mut sums = Vec::new();
    while tally.points < operations.max(least) {
        tally.points += 1;
        let number =
            if tally.points <= operations { tally.points } else { 1 + random(&mut seed) % operations };
        let dir = child::copy(whole.path());
        if child::to_the_end(&[&dir.path().display().to_string(), &number.to_string()])
            && operations == u64::MAX
        {
            operations = number;
        }
        let what = format!("point {}, operation {number}", tally.points);
        let mut account = |when: &str| {
            let inspected = problems(dir.path());
            if inspected["problems"] != 0 {
                println!("{what}, {when}: {inspected}");
                tally.ledger_errors += 1;
            }
        };
        account("as the crash left it");
        let store = Store::open(dir.path()).expect("opens");
        let (removed, view) = (store.removed(), store.view());
        for path in removed.removing(dir.path()) {
            assert!(!path.exists(), "{what}: {}", path.display());
        }
        drop(store);
        account("after the start");
        tally.incidents_lost += 2 - rows_of(&view, Table::Incidents).min(2) as u64;
        tally.unreadable += view.lost.len() as u64;
        sums.push(rows_of(&view, Table::Samples) as u64 + removed.rows.get("samples").copied().unwrap_or(0));
    }
    assert!(operations > 20, "only {operations} operations: the test is blind");
    assert!(sums.windows(2).all(|w| w[0] == w[1]), "{sums:?}");
    tally.settle();
}

/// Full, but for what the reserve gives back.
struct Nearly {
    dir: PathBuf,
    is_full: AtomicBool,
}

impl Io for Nearly {
    fn create(&self, path: &Path) -> io::Result<File> {
        if self.is_full.load(Ordering::SeqCst) && self.dir.join("RESERVE").exists() {
            return File::options().write(true).open("/dev/full");
        }
        Disk.create(path)
    }
}

#[test]
fn when_the_disk_is_full_the_reserve_is_for_incidents() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    store.reserve(1 << 20);
    let reserve = dir.path().join("RESERVE");
    assert_eq!(fs::metadata(&reserve).expect("taken").len(), 1 << 20);
    let disk = Arc::new(Nearly { dir: dir.path().to_owned(), is_full: AtomicBool::new(true) });
    let writer = Writer::start_on(store.clone(), BOOT_ID, disk.clone()).expect("starts");
    let (tell, told) = unbounded();
    let ordinary = batch(Table::Samples, &[rows::base(QUIET, KILL_US), rows::base(KILLED, KILL_US)]);
    writer.seal(1, vec![(Table::Samples, ordinary)], vec![], Some(tell.clone()));
    assert!(matches!(told.recv_timeout(WAIT), Ok(SealResult::Waiting { rotation: 1, .. })));
    let incident = batch(Table::Incidents, &[rows::incident_row(&rows::incident(1))]);
    writer.seal(2, vec![(Table::Incidents, incident)], vec![], Some(tell));
    loop {
        match told.recv_timeout(WAIT).expect("an answer") {
            SealResult::Stored { rotation, files, .. } => {
                assert_eq!((rotation, files.len()), (2, 1), "the incident alone");
                break;
            }
            SealResult::Waiting { reason, .. } => assert!(reason.contains("No space left"), "{reason}"),
        }
    }
    let status = store.status();
    assert!(status["degraded"].as_str().is_some_and(|r| r.contains("No space left")), "{status}");
    assert_eq!(rows_of(&store.view(), Table::Samples), 2, "queries see what waits");
    disk.is_full.store(false, Ordering::SeqCst);
    writer.shutdown(WAIT).expect("in time");
    assert!(reserve.exists(), "it is taken again");
    assert_eq!(
        (rows_of(&store.view(), Table::Samples), store.status()["retention"]["reserve_bytes"].as_u64()),
        (2, Some(1 << 20))
    );
    assert!(store.status()["degraded"].is_null(), "{}", store.status());
    store.reserve(0);
    assert!(!reserve.exists());
}
