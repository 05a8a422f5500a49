//! Hours become files of `v1/`: each row is seen once before, meanwhile and afterwards, by queries and by who reads the files
//! himself, whatever file operation a crash chooses.

#[path = "support/child.rs"]
mod child;
#[path = "support/faults.rs"]
mod faults;
#[path = "support/rows.rs"]
mod rows;

use arrow::array::RecordBatch;
use crossbeam_channel::unbounded;
use faults::{Deadly, Tally, random};
use fgm::accumulator::Stamp;
use fgm::ledger::Accounts;
use fgm::names::Table;
use fgm::query::{self, Filter};
use fgm::segment::{self, Disk, Footer, HOUR_US, Io, Merging, Segment};
use fgm::store::{Chunk, Kept, Rules, SealResult, Store, View, Writer};
use rows::{BOOT_ID, KILL_US, KILLED, QUIET, batch, row_of, text};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(20);
/// 22:00 of the day of the kill.
const HOUR: i64 = KILL_US - KILL_US % HOUR_US;
/// When 22, 23 and 0 o'clock are to be merged, and 1 o'clock is not.
const NOW: i64 = HOUR + 3 * HOUR_US + 900_000_000;
const RULES: Rules = Rules { after_us: 900_000_000, file_bytes: 64 << 20 };

fn never() -> bool {
    false
}

fn open(dir: &Path) -> Arc<Store> {
    Store::open(dir).expect("opens")
}

/// A rotation with samples and events between two seconds of the hours, those of the history among them.
fn rotation(writer: &Writer, number: u64, from_s: i64, to_s: i64) {
    let mut samples = Vec::new();
    let mut events = Vec::new();
    for s in (from_s..to_s).step_by(7) {
        let at = HOUR + s * 1_000_000 + i64::try_from(number).expect("small");
        samples.extend([rows::base(QUIET, at), rows::base(KILLED, at), rows::base(KILLED, at - 30_000_500)]);
        let mut event = row_of(KILLED, at);
        event.extend([("event_id", text(format!("{number}-{s}"))), ("kind", text("exit"))]);
        events.push(event);
    }
    let all = vec![
        (Table::Samples, batch(Table::Samples, &samples)),
        (Table::Events, batch(Table::Events, &events)),
    ];
    seal(writer, number, all);
}

fn seal(writer: &Writer, number: u64, all: Vec<(Table, RecordBatch)>) {
    let (tell, told) = unbounded();
    writer.seal(number, all, rows::metadata(), Some(tell));
    assert!(matches!(told.recv_timeout(WAIT), Ok(SealResult::Stored { .. })));
}

/// Hours from 22 to 1 o'clock, in segments that know no hours.
fn folder() -> tempfile::TempDir {
    let dir = segments(&[
        (60, 1500),
        (1400, 2600),
        (2600, 4000),
        (4000, 6900),
        (6900, 7500),
        (7500, 10_000),
        (10_600, 11_500),
    ]);
    let writer = Writer::start(open(dir.path()), BOOT_ID).expect("starts");
    seal(&writer, 1, rows::all());
    writer.shutdown(WAIT).expect("in time");
    dir
}

/// A rotation for each of these stretches of seconds.
fn segments(stretches: &[(i64, i64)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let writer = Writer::start(open(dir.path()), BOOT_ID).expect("starts");
    for (number, (from, to)) in stretches.iter().copied().enumerate() {
        rotation(&writer, number as u64 + 2, from, to);
    }
    writer.shutdown(WAIT).expect("in time");
    dir
}

type Rows = BTreeMap<Table, Vec<String>>;

/// All rows of a table, by what tells them apart; of the smaller tables by all their cells.
fn whole(view: &View, table: Table) -> Vec<String> {
    faults::keys(view, table)
}

/// The same, by their instants alone: a tenth of the time.
fn instants(view: &View, table: Table) -> Vec<String> {
    let all = Filter::range(i64::MIN, i64::MAX);
    let (rows, _) =
        query::rows(view, table, &all, Some(&["cgroup_id", "ktime_ns"]), u64::MAX).expect("readable");
    let of = |b: &RecordBatch, i| {
        format!("{:?} {:?}", query::int(b, "cgroup_id", i), query::int(b, "ktime_ns", i))
    };
    rows.iter().flat_map(|b| (0..b.num_rows()).map(|i| of(b, i)).collect::<Vec<_>>()).collect()
}

fn rows_by(view: &View, keys: fn(&View, Table) -> Vec<String>) -> Rows {
    let of = |table| {
        let mut keys = keys(view, table);
        keys.sort();
        (table, keys)
    };
    Table::ALL.into_iter().map(of).collect()
}

/// All rows that a view has.
fn seen(view: &View) -> Rows {
    rows_by(view, whole)
}

fn parquet_below(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            out.extend(parquet_below(&path));
        } else if path.extension().is_some_and(|e| e == "parquet") {
            out.push(path);
        }
    }
    out.sort();
    out
}

/// Rows as an engine finds them that reads `v1/` and adds what it does not have yet: by the files alone.
fn by_the_files(dir: &Path) -> Rows {
    files_by(dir, whole)
}

fn files_by(dir: &Path, keys_of: fn(&View, Table) -> Vec<String>) -> Rows {
    let mut out = BTreeMap::new();
    for table in Table::ALL {
        let folder = |root: &str| dir.join(root).join(format!("table={}", table.as_str()));
        let alone = |path: &Path| {
            let segment =
                Segment { merged: None, taken: Vec::new(), ..segment::open(table, path).expect("readable") };
            View { segments: vec![segment], ..View::default() }
        };
        let (mut keys, mut taken) = (Vec::new(), BTreeSet::new());
        for path in parquet_below(&folder("v1")) {
            keys.extend(keys_of(&alone(&path), table));
            let footer = Footer::read(&path).expect("a footer");
            let hour: i64 = footer.value("fgm.hour_us").expect("an hour").parse().expect("a number");
            let inputs: Vec<Merging> =
                serde_json::from_str(footer.value("fgm.inputs").expect("inputs")).expect("JSON");
            taken.extend(inputs.into_iter().map(|i| (i.file, hour)));
        }
        for path in parquet_below(&folder("recent")) {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let view = alone(&path);
            let all = Filter::range(i64::MIN, i64::MAX);
            let (instants, _) = query::rows(&view, table, &all, Some(&["ts"]), u64::MAX).expect("readable");
            let instants = instants.iter().flat_map(|b| {
                (0..b.num_rows()).map(|i| query::int(b, "ts", i).expect("ts")).collect::<Vec<_>>()
            });
            let rows = keys_of(&view, table).into_iter().zip(instants);
            keys.extend(
                rows.filter(|(_, ts)| !taken.contains(&(name.clone(), segment::hour_of(*ts))))
                    .map(|(key, _)| key),
            );
        }
        keys.sort();
        out.insert(table, keys);
    }
    out
}

#[test]
fn an_hour_becomes_one_sorted_file_and_each_row_is_seen_once() {
    let dir = folder();
    let store = open(dir.path());
    let before = seen(&store.view());
    assert_eq!(store.compact(&Disk, HOUR + HOUR_US, &RULES, &never).made, [], "an hour has a quarter to end");
    let done = store.compact(&Disk, NOW, &RULES, &never);
    assert_eq!((done.left.as_slice(), done.set_aside.as_slice()), ([].as_slice(), [].as_slice()));
    let hours: BTreeSet<(&str, i64)> =
        done.made.iter().map(|m| (m.table.as_str(), (m.hour_us - HOUR) / HOUR_US)).collect();
    for table in ["samples", "events"] {
        assert!((0..3).all(|h| hours.contains(&(table, h))) && !hours.contains(&(table, 3)), "{hours:?}");
    }
    assert_eq!(done.made.len(), hours.len(), "one file each");
    assert_eq!(seen(&store.view()), before);
    assert_eq!(by_the_files(dir.path()), before);
    let one = done.made.iter().find(|m| m.table == Table::Samples && m.hour_us == HOUR).expect("22 o'clock");
    let path = one.path.strip_prefix(dir.path()).expect("in the folder").display().to_string();
    let folder = "v1/table=samples/cluster=test/date=2023-11-14/hour=22/node=node-a/";
    assert!(path.starts_with(&format!("{folder}{}-", BOOT_ID.replace('-', ""))), "{path}");
    for made in &done.made {
        let whole = segment::verify(made.table, &made.path).expect("whole");
        assert_eq!((whole.rows, whole.bytes), (made.rows, made.bytes));
        assert!(
            segment::hour_of(whole.from_us) == made.hour_us && segment::hour_of(whole.to_us) == made.hour_us
        );
        let footer = Footer::read(&made.path).expect("a footer");
        assert_eq!(footer.is_in_order(&made.path), Ok(true));
        assert_eq!(
            (footer.value("fgm.kernel"), footer.value("fgm.node")),
            (Some("6.12.0-test"), Some("node-a"))
        );
        let inputs: Vec<Merging> =
            serde_json::from_str(footer.value("fgm.inputs").expect("inputs")).expect("JSON");
        assert_eq!(inputs.iter().map(|i| i.rows).sum::<u64>(), made.rows);
    }
    // what is left has rows of 1 o'clock
    let recent = parquet_below(&dir.path().join("recent"));
    assert!(!recent.is_empty() && done.removed.iter().all(|p| !p.exists()));
    for path in recent {
        let table =
            if path.to_string_lossy().contains("table=samples") { Table::Samples } else { Table::Events };
        assert!(
            segment::open(table, &path).expect("readable").to_us >= HOUR + 3 * HOUR_US,
            "{}",
            path.display()
        );
    }
    assert_eq!(store.compact(&Disk, NOW, &RULES, &never).made, [], "nothing is done twice");
    // a row that comes late gets a file of its own
    let files = parquet_below(&dir.path().join("v1"));
    let writer = Writer::start(store.clone(), BOOT_ID).expect("starts");
    rotation(&writer, 20, 100, 107);
    let late = store.compact(&Disk, NOW, &RULES, &never);
    assert_eq!(late.made.len(), 2, "{late:?}");
    let more = parquet_below(&dir.path().join("v1"));
    assert!(more.len() == files.len() + 2 && files.iter().all(|f| more.contains(f)));
    assert_eq!(by_the_files(dir.path()), seen(&store.view()));
    let status = store.status();
    assert_eq!(status["compaction"]["files"], more.len(), "{status}");
}

#[test]
fn what_was_exported_is_exported_again_byte_by_byte() {
    let dir = folder();
    let export = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fgm"));
        command
            .args(["export", "--incident", "latest", "--format", "parquet", "-o", "-", "--data"])
            .arg(dir.path());
        let done = command.output().expect("fgm");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    };
    let before = export();
    let done = open(dir.path()).compact(&Disk, NOW, &RULES, &never);
    assert!(done.made.len() > 5, "{done:?}");
    assert!(export() == before, "the same incident, other bytes");
}

#[test]
fn a_view_keeps_its_files_until_it_is_gone() {
    let dir = folder();
    let store = open(dir.path());
    let view = store.view();
    let before = seen(&view);
    let done = store.compact(&Disk, NOW, &RULES, &never);
    assert!(!done.made.is_empty() && done.removed.is_empty());
    assert_eq!(seen(&view), before, "by the segments");
    assert_eq!(seen(&store.view()), before, "by the merged files");
    assert_eq!(by_the_files(dir.path()), before, "both are there");
    assert_eq!(
        seen(&Store::open_read_only(dir.path()).expect("opens").view()),
        before,
        "and another process knows which count"
    );
    drop(view);
    let done = store.compact(&Disk, NOW, &RULES, &never);
    assert!(done.made.is_empty() && !done.removed.is_empty());
    assert_eq!((seen(&store.view()), by_the_files(dir.path())), (before.clone(), before));
}

/// Not a test: what the test runs. Told folder, and the file operation in which it is to die.
#[test]
fn child() {
    let Some(told) = child::told() else { return };
    let io = Deadly::at_operation(told[1].parse().expect("a number"));
    let store = Store::open_on(Path::new(&told[0]), &io).expect("opens");
    let done = store.compact(&io, NOW, &RULES, &never);
    assert!(done.left.is_empty() && done.set_aside.is_empty(), "{done:?}");
}

/// Runs the child; whether it came to its end.
fn run(dir: &Path, die_at: u64) -> bool {
    child::to_the_end(&[&dir.display().to_string(), &die_at.to_string()])
}

fn rows_at(view: &View) -> Rows {
    rows_by(view, instants)
}

/// What is wrong with a folder that must have these rows once each.
fn compare(tally: &mut Tally, dir: &Path, before: &Rows, what: &str) {
    let queried = rows_at(&Store::open_read_only(dir).expect("opens").view());
    for (how, found) in [("queries", queried), ("files", files_by(dir, instants))] {
        for (table, wanted) in before {
            let (mut found, all) = (found[table].clone(), wanted.len());
            let twice = found.len();
            found.dedup();
            tally.duplicates += (twice - found.len()) as u64;
            let missing = wanted.iter().filter(|key| found.binary_search(key).is_err()).count();
            tally.incidents_lost += missing as u64;
            if missing > 0 || twice > found.len() {
                println!("{what}: {how}: {missing} of {all} rows of {} are missing", table.as_str());
            }
        }
    }
}

#[test]
fn a_crash_in_any_file_operation_loses_no_row_and_doubles_none() {
    let whole = segments(&[(60, 300), (3000, 3900), (7000, 7400), (10_700, 11_000)]);
    let before = rows_at(&Store::open_read_only(whole.path()).expect("opens").view());
    let mut tally = Tally { kind: "killed while hours are merged", ..Tally::default() };
    let least = faults::points(0);
    let mut seed = 0x5eed_u64;
    let mut operations = u64::MAX;
    // each of the operations, then any of them until there are as many points as were asked for
    while tally.points < operations.max(least) {
        tally.points += 1;
        let number =
            if tally.points <= operations { tally.points } else { 1 + random(&mut seed) % operations };
        let dir = child::copy(whole.path());
        if run(dir.path(), number) && operations == u64::MAX {
            operations = number;
        }
        let what = format!("point {}, operation {number}", tally.points);
        compare(&mut tally, dir.path(), &before, &what);
        // the next start may crash as well
        if tally.points.is_multiple_of(3) {
            let second = 1 + random(&mut seed) % 40;
            run(dir.path(), second);
            compare(&mut tally, dir.path(), &before, &format!("{what}, then {second}"));
        }
        let store = open(dir.path());
        assert_eq!(rows_at(&store.view()), before, "{what}: after the start");
        let done = store.compact(&Disk, NOW, &RULES, &never);
        assert!(done.left.is_empty() && done.set_aside.is_empty(), "{what}: {done:?}");
        drop(store);
        compare(&mut tally, dir.path(), &before, &format!("{what}: finished"));
        let view = Store::open_read_only(dir.path()).expect("opens").view();
        tally.unreadable +=
            (view.segments.iter()).filter(|s| segment::verify(s.table, &s.path).is_err()).count() as u64
                + view.lost.len() as u64;
        let all = |root: &str| parquet_below(&dir.path().join(root));
        let (v1, recent) = (all("v1"), all("recent"));
        assert_eq!(recent.len(), 2, "{what}: {recent:?}");
        let done = open(dir.path()).compact(&Disk, NOW, &RULES, &never);
        assert_eq!((done.made.len(), done.removed.len()), (0, 0), "{what}: a second time does nothing");
        assert_eq!((all("v1"), all("recent")), (v1, recent), "{what}");
    }
    println!("{operations} operations");
    assert!(operations > 40, "only {operations} operations: the test is blind");
    tally.settle();
}

/// Refuses to remove anything.
struct Keeping;

impl Io for Keeping {
    fn remove(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

#[test]
fn inputs_that_cannot_be_removed_count_nowhere_and_go_with_the_next_start() {
    let dir = folder();
    let store = open(dir.path());
    let before = seen(&store.view());
    let done = store.compact(&Keeping, NOW, &RULES, &never);
    assert!(done.removed.is_empty() && done.made.len() > 5);
    assert!(
        store.status()["compaction"]["error"].as_str().is_some_and(|e| e.contains("denied")),
        "{}",
        store.status()
    );
    assert_eq!(store.compact(&Keeping, NOW, &RULES, &never).made, [], "they are not merged again");
    assert_eq!((seen(&store.view()), by_the_files(dir.path())), (before.clone(), before.clone()));
    drop(store);
    assert_eq!(seen(&Store::open_read_only(dir.path()).expect("opens").view()), before);
    let store = open(dir.path());
    assert_eq!((seen(&store.view()), parquet_below(&dir.path().join("recent")).len()), (before, 2));
}

#[test]
fn a_damaged_input_is_set_aside_and_told_and_the_rest_is_merged() {
    let dir = folder();
    let store = open(dir.path());
    let victim = store.view().segments.iter().find(|s| s.table == Table::Samples).expect("one").clone();
    let byte = fs::read(&victim.path).expect("there")[100];
    File::options()
        .write(true)
        .open(&victim.path)
        .and_then(|f| f.write_all_at(&[byte ^ 1], 100))
        .expect("flipped");
    let done = store.compact(&Disk, NOW, &RULES, &never);
    assert_eq!(done.set_aside.len(), 1, "{done:?}");
    assert!(done.set_aside[0].0 == victim.path && done.set_aside[0].1.contains("checksum"), "{done:?}");
    assert!(
        !victim.path.exists() && done.made.iter().any(|m| m.table == Table::Samples && m.hour_us == HOUR)
    );
    let aside: Vec<PathBuf> =
        fs::read_dir(dir.path().join("quarantine")).expect("a folder").flatten().map(|e| e.path()).collect();
    assert_eq!(aside.len(), 2, "the file and the reason: {aside:?}");
    assert!(
        store.view().lost.iter().any(|l| l.reason.contains(victim.file_name())),
        "{:?}",
        store.view().lost
    );
    assert_eq!(store.status()["compaction"]["set_aside"], 1);
}

#[test]
fn a_left_over_journal_finds_its_rows_in_the_merged_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path());
    let writer = Writer::start(store.clone(), BOOT_ID).expect("starts");
    let (tell, told) = unbounded();
    let metadata = rows::metadata();
    let chunk =
        Chunk { at: Stamp::default(), account: &Accounts::default(), rows: rows::all(), metadata: &metadata };
    writer.journal(writer.keep(&chunk), Some(tell));
    assert!(matches!(told.recv_timeout(WAIT), Ok(Kept::Durable { .. })));
    let journal =
        fs::read_dir(dir.path().join("journal")).expect("a folder").flatten().next().expect("one").path();
    let bytes = fs::read(&journal).expect("readable");
    writer.rotate(1, rows::metadata(), None);
    writer.shutdown(WAIT).expect("in time");
    // as if it could not be removed
    fs::write(&journal, bytes).expect("written");
    let before = seen(&store.view());
    assert!(!store.compact(&Disk, NOW, &RULES, &never).made.is_empty());
    drop(store);
    assert!(parquet_below(&dir.path().join("recent")).is_empty());
    assert_eq!(seen(&Store::open_read_only(dir.path()).expect("opens").view()), before);
    let store = open(dir.path());
    assert!(!journal.exists());
    assert_eq!(seen(&store.view()), before);
}

#[test]
fn a_file_keeps_to_its_bound() {
    let dir = folder();
    let store = open(dir.path());
    let before = seen(&store.view());
    let largest = store.view().segments.iter().map(|s| s.bytes).max().expect("some");
    let rules = Rules { file_bytes: largest + largest / 2, ..RULES };
    let done = store.compact(&Disk, NOW, &rules, &never);
    let samples: Vec<_> =
        done.made.iter().filter(|m| m.table == Table::Samples && m.hour_us == HOUR).collect();
    assert!(samples.len() > 1, "{samples:?}");
    assert!(done.made.iter().all(|m| m.bytes <= rules.file_bytes), "{done:?}");
    assert_eq!((seen(&store.view()), by_the_files(dir.path())), (before.clone(), before));
}

#[test]
fn the_command_merges_what_no_agent_holds_and_says_first_what_it_would_do() {
    let dir = folder();
    let compact = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fgm"));
        let done = command.arg("compact").arg(dir.path()).args(more).output().expect("fgm");
        let json: Value = serde_json::from_slice(&done.stdout).unwrap_or_default();
        (done.status.code(), json, String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let before = parquet_below(dir.path());
    let (code, would, stderr) = compact(&["--dry-run", "--json"]);
    assert_eq!((code, parquet_below(dir.path())), (Some(0), before), "{stderr}");
    let held = open(dir.path());
    let rows = seen(&held.view());
    let (code, _, stderr) = compact(&["--json"]);
    assert!(code == Some(1) && stderr.contains("in use by another agent"), "{stderr}");
    drop(held);
    // see `open`
    let patiently = || loop {
        let done = compact(&["--json"]);
        if !done.2.contains("in use by another agent") {
            return done;
        }
        drop(open(dir.path()));
    };
    let (code, did, stderr) = patiently();
    assert_eq!(code, Some(0), "{stderr}");
    let files = |v: &Value| v["files"].as_array().map(Vec::len);
    assert_eq!((files(&would), would["files"][0]["path"].is_null()), (files(&did), true), "{would} {did}");
    assert!(
        did["files"][0]["rows"].as_u64() > Some(0)
            && did["removed"].as_array().is_some_and(|r| !r.is_empty()),
        "{did}"
    );
    assert_eq!(seen(&Store::open_read_only(dir.path()).expect("opens").view()), rows);
    let inspected = Command::new(env!("CARGO_BIN_EXE_fgm"))
        .arg("inspect")
        .arg(dir.path())
        .arg("--json")
        .output()
        .expect("fgm");
    let inspected: Value = serde_json::from_slice(&inspected.stdout).expect("JSON");
    assert!(inspected["problems"] == 0 && inspected["files"][0]["inputs"].is_array(), "{inspected}");
    let (code, again, _) = patiently();
    assert_eq!((code, files(&again)), (Some(0), Some(0)));
    let nowhere = dir.path().join("nowhere");
    let refused = Command::new(env!("CARGO_BIN_EXE_fgm")).arg("compact").arg(&nowhere).output().expect("fgm");
    assert!(refused.status.code() == Some(1) && !nowhere.exists());
}
