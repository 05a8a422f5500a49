//! A process that writes is killed at any point, within each file operation too, again and again in one folder: what was
//! acknowledged is there, nothing is there twice, and the ledger accounts for each row. The process is this test binary.

#[path = "support/faults.rs"]
mod faults;
#[path = "support/rows.rs"]
mod rows;

use arrow::array::RecordBatch;
use crossbeam_channel::unbounded;
use faults::{Deadly, Tally, random};
use fgm::accumulator::{NodeNames, Pending, Stamp};
use fgm::ledger::Ledger;
use fgm::names::Table;
use fgm::segment::Io;
use fgm::store::{Chunk, Kept, Loose, Store, View, Writer};
use rows::{BOOT_ID, KILL_US, KILLED, QUIET, batch, row_of, text};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// What the child is told: folder, number of the run, and the file operation in which it is to die (0: none).
const CHILD: &str = "FGM_TEST_CRASH";
const WAIT: Duration = Duration::from_secs(20);
const FLUSHES: u64 = 24;
/// Crashes in one folder, so that recoveries are crashed as well.
const IN_ONE_FOLDER: u64 = 6;

/// The rows of one flush; each has an instant of its own.
fn flush_of(run: u64, n: u64) -> Vec<(Table, RecordBatch)> {
    let at = KILL_US + i64::try_from(run * 1_000_000 + n * 1000).expect("small");
    let samples = [rows::base(KILLED, at), rows::base(QUIET, at), rows::base(KILLED, at + 1)];
    let mut event = row_of(KILLED, at);
    event.extend([("event_id", text(format!("{run}-{n}"))), ("kind", text("exit"))]);
    let mut out = vec![
        (Table::Samples, batch(Table::Samples, &samples)),
        (Table::Events, batch(Table::Events, &[event])),
    ];
    if n.is_multiple_of(5) {
        let mut incident = rows::incident(1);
        (incident.id, incident.ts_us) = (format!("{run}-{n}"), at);
        out.push((Table::Incidents, batch(Table::Incidents, &[rows::incident_row(&incident)])));
    }
    out
}

/// Not a test: what the test runs, and says what is acknowledged.
#[test]
fn child() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let told: Vec<&str> = told.split('\n').collect();
    let (dir, run, die_at): (_, u64, u64) =
        (Path::new(told[0]), told[1].parse().expect("a run"), told[2].parse().expect("an operation"));
    let io: Arc<dyn Io> = Arc::new(Deadly::at_operation(die_at));
    let store = Store::open_on(dir, io.as_ref()).expect("opens");
    let writer = Writer::start_on(store, BOOT_ID, io).expect("starts");
    let (tell, kept) = unbounded();
    let mut say = io::stdout();
    let (mut ledger, mut given) = (Ledger::default(), std::collections::BTreeMap::new());
    let names = NodeNames { cluster: None, node: rows::NODE.into(), boot_id: BOOT_ID.into() };
    let mut acknowledge = |given: &std::collections::BTreeMap<u64, u64>, kept: &Kept| {
        let Kept::Durable { seq } = kept else { panic!("{kept:?}") };
        writeln!(say, "durable {}", given[seq]).and_then(|()| say.flush()).expect("a parent that listens");
    };
    for n in 1..=FLUSHES {
        let mut chunk = flush_of(run, n);
        for (table, batch) in &chunk {
            ledger.written(*table, batch.num_rows() as u64);
        }
        ledger.lost(Table::Samples, "late", n % 3);
        let wall_us = KILL_US + i64::try_from(run * 1_000_000 + n * 1000).expect("small");
        let at = Stamp { ktime_ns: run * 1_000_000 + n, wall_us };
        let is_rotation = n.is_multiple_of(8);
        // a minute and a rotation, as the loop has them
        if is_rotation || n.is_multiple_of(5) {
            let pending = Pending { ledger: ledger.close_period(at), ..Pending::default() };
            chunk.push((Table::Ledger, pending.batch(Table::Ledger, &names).expect("a batch")));
        }
        let metadata = rows::metadata();
        let flush = writer.keep(&Chunk { at, account: &ledger.flush(), rows: chunk, metadata: &metadata });
        given.insert(flush.seq, n);
        writer.journal(flush, Some(tell.clone()));
        if is_rotation {
            writer.rotate(n, metadata, None);
        }
        for k in kept.try_iter() {
            acknowledge(&given, &k);
        }
        std::thread::sleep(Duration::from_millis(n % 3));
    }
    writer.shutdown(WAIT).expect("in time");
    kept.try_iter().for_each(|k| acknowledge(&given, &k));
}

/// Runs the child until it dies; the flushes that it said are durable.
fn run(dir: &Path, run: u64, die_at: u64, kill_after: Option<Duration>) -> (bool, Vec<u64>) {
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{}\n{run}\n{die_at}", dir.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a child");
    if let Some(after) = kill_after {
        std::thread::sleep(after);
        child.kill().expect("SIGKILL");
    }
    let (mut said, mut complaint) = (String::new(), String::new());
    child.stdout.take().expect("a pipe").read_to_string(&mut said).expect("text");
    child.stderr.take().expect("a pipe").read_to_string(&mut complaint).expect("text");
    let status = child.wait().expect("wait");
    assert!(status.success() || status.code().is_none(), "{status}: {said}{complaint}");
    let durable = said.lines().filter_map(|l| l.strip_prefix("durable ")?.parse().ok()).collect();
    (status.success(), durable)
}

/// Rows of acknowledged flushes that are not there.
fn missing(view: &View, durable: &BTreeSet<(u64, u64)>, what: &str) -> u64 {
    let mut missing = 0;
    for table in [Table::Samples, Table::Events, Table::Incidents] {
        let there: BTreeSet<String> = faults::keys(view, table).into_iter().collect();
        for (run, n) in durable {
            for (_, batch) in flush_of(*run, *n).into_iter().filter(|(t, _)| *t == table) {
                let boot = BOOT_ID.to_owned();
                let wanted = View { loose: vec![Loose { table, boot, batch }], ..View::default() };
                let gone =
                    faults::keys(&wanted, table).into_iter().filter(|k| !there.contains(k)).count() as u64;
                if gone > 0 {
                    println!("{what}: {gone} rows of {} of flush {run}-{n} are lost", table.as_str());
                }
                missing += gone;
            }
        }
    }
    missing
}

#[test]
fn a_crash_at_any_point_loses_nothing_that_was_acknowledged_and_doubles_nothing() {
    let mut tally = Tally { points: faults::points(36), ..Tally::default() };
    let mut seed = 0x5eed_u64;
    let (mut done, mut died) = (0, 0);
    while done < tally.points {
        let dir = tempfile::tempdir().expect("a folder");
        let mut durable = BTreeSet::new();
        for number in 0..IN_ONE_FOLDER {
            let by_operation = !done.is_multiple_of(3);
            let die_at = if by_operation { 1 + random(&mut seed) % 110 } else { 0 };
            let after = (!by_operation).then(|| Duration::from_millis(5 + random(&mut seed) % 80));
            let what = format!("point {done}, run {number}, operation {die_at}, {after:?}");
            let (is_whole, acknowledged) = run(dir.path(), number, die_at, after);
            died += u64::from(!is_whole);
            durable.extend(acknowledged.into_iter().map(|n| (number, n)));
            done += 1;
            if !dir.path().join("recent").is_dir() {
                continue;
            }
            let before = Store::open_read_only(dir.path()).expect("readable").view();
            tally.examine(&before, &what);
            tally.incidents_lost += missing(&before, &durable, &what);
            if number + 1 == IN_ONE_FOLDER {
                let after = Store::open(dir.path()).expect("opens").view();
                tally.examine(&after, &what);
                tally.incidents_lost += missing(&after, &durable, &what);
                assert!(after.journaled.is_empty(), "{what}: all is in segments");
                for table in Table::ALL {
                    let sorted = |view| BTreeSet::from_iter(faults::keys(view, table));
                    assert_eq!(sorted(&before), sorted(&after), "{what}: what is read is what is recovered");
                }
                assert_eq!(fs::read_dir(dir.path().join("journal")).expect("a folder").count(), 0);
            }
        }
        assert!(!durable.is_empty(), "nothing was acknowledged in a whole folder");
    }
    assert!(died * 2 > tally.points, "only {died} of {} died: the points are chosen badly", tally.points);
    tally.settle();
}
