//! The journal through the store's public face: what it gives back, what damage costs, and a disk that refuses.

#[path = "support/disks.rs"]
mod disks;
#[path = "support/rows.rs"]
mod rows;

use arrow::array::RecordBatch;
use crossbeam_channel::{Receiver, Sender, unbounded};
use disks::{FullDisk, NoSegments};
use fgm::accumulator::Stamp;
use fgm::export;
use fgm::ledger::Accounts;
use fgm::names::Table;
use fgm::query::{self, Filter};
use fgm::segment::{Encoder, PAGE_ROWS};
use fgm::store::{Chunk, Kept, SealResult, Store, View, Writer};
use rows::{BOOT_ID, KILL_US, KILLED, batch};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(20);

/// Gives one sample to the journal.
fn keep(writer: &Writer, n: i64, done: &Sender<Kept>) {
    let mut account = Accounts::default();
    account.written(Table::Samples, 1);
    let rows = vec![(Table::Samples, batch(Table::Samples, &[rows::base(KILLED, KILL_US + n)]))];
    let at = Stamp { ktime_ns: n.cast_unsigned(), wall_us: KILL_US + n };
    let metadata = rows::metadata();
    writer.journal(
        writer.keep(&Chunk { at, account: &account, rows, metadata: &metadata }),
        Some(done.clone()),
    );
}

/// Gives rows to the journal.
fn keep_batch(writer: &Writer, n: u64, rows: &RecordBatch, done: &Sender<Kept>) {
    let mut account = Accounts::default();
    account.written(Table::Samples, rows.num_rows() as u64);
    let at = Stamp { ktime_ns: n, wall_us: KILL_US };
    let metadata = rows::metadata();
    let rows = vec![(Table::Samples, rows.clone())];
    writer.journal(
        writer.keep(&Chunk { at, account: &account, rows, metadata: &metadata }),
        Some(done.clone()),
    );
}

fn answer(from: &Receiver<Kept>) -> Kept {
    from.recv_timeout(WAIT).expect("an answer")
}

fn count(view: &View, table: Table) -> usize {
    let (rows, _) = query::rows(view, table, &Filter::range(0, i64::MAX), None, u64::MAX).expect("readable");
    rows.iter().map(RecordBatch::num_rows).sum()
}

fn ledger(view: &View) -> Accounts {
    let (batches, _) =
        query::rows(view, Table::Ledger, &Filter::range(0, i64::MAX), None, u64::MAX).expect("readable");
    let mut sum = Accounts::default();
    for rows in &batches {
        sum.add(&Accounts::of_rows(rows));
    }
    sum
}

fn journals(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("journal")).expect("a folder");
    let mut all: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    all.sort();
    all
}

/// The folder as a crash leaves it after so many flushes: a copy, since this process lives on.
fn crashed(flushes: i64) -> tempfile::TempDir {
    let live = tempfile::tempdir().expect("a folder");
    let store = Store::open(live.path()).expect("opens");
    let writer = Writer::start(store, BOOT_ID).expect("starts");
    let (tell, told) = unbounded();
    for n in 0..flushes {
        keep(&writer, n, &tell);
        assert!(matches!(answer(&told), Kept::Durable { .. }));
    }
    let copy = tempfile::tempdir().expect("a folder");
    for folder in ["journal", "recent"] {
        fs::create_dir(copy.path().join(folder)).expect("mkdir");
    }
    for path in journals(live.path()) {
        fs::copy(&path, copy.path().join("journal").join(path.file_name().expect("a name"))).expect("copied");
    }
    copy
}

#[test]
fn what_is_kept_is_seen_at_once_and_moves_into_segments_at_the_rotation() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let writer = Writer::start(store.clone(), BOOT_ID).expect("starts");
    let (tell, told) = unbounded();
    let (stored, results) = unbounded();
    for n in 0..6 {
        let before = store.sealed_seq();
        keep(&writer, n, &tell);
        assert!(store.sealed_seq() > before, "who looks twice sees that something moved");
        assert_eq!(count(&store.view(), Table::Samples), usize::try_from(n).expect("small") + 1);
        assert!(matches!(answer(&told), Kept::Durable { .. }));
        let other = Store::open_read_only(dir.path()).expect("opens").view();
        assert_eq!(
            count(&other, Table::Samples),
            usize::try_from(n).expect("small") + 1,
            "another process sees it"
        );
        if n % 2 == 1 {
            writer.rotate(n.cast_unsigned(), rows::metadata(), Some(stored.clone()));
            let SealResult::Stored { files, .. } = results.recv_timeout(WAIT).expect("an answer") else {
                panic!()
            };
            assert_eq!((files.len(), files[0].rows), (1, 2));
        }
    }
    writer.shutdown(WAIT).expect("in time");
    assert!(journals(dir.path()).is_empty(), "what is stored has no journal");
    assert_eq!(count(&store.view(), Table::Samples), 6);
}

#[test]
fn an_incident_in_a_left_over_journal_is_known() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let writer = Writer::start(store, BOOT_ID).expect("starts");
    let (tell, told) = unbounded();
    let metadata = rows::metadata();
    let chunk =
        Chunk { at: Stamp::default(), account: &Accounts::default(), rows: rows::all(), metadata: &metadata };
    writer.journal(writer.keep(&chunk), Some(tell));
    assert!(matches!(answer(&told), Kept::Durable { .. }));
    let view = Store::open_read_only(dir.path()).expect("opens").view();
    let known = export::incidents(&view, Vec::new()).expect("readable");
    assert_eq!(known.iter().map(|i| i.id.clone()).collect::<Vec<_>>(), [rows::incident_id()]);
    assert!(view.metadata.contains(&rows::metadata()[0]), "provenance comes from the journal as well");
}

#[test]
fn a_torn_last_write_costs_itself() {
    let copy = crashed(5);
    let path = &journals(copy.path())[0];
    let length = fs::metadata(path).expect("there").len();
    fs::File::options().write(true).open(path).and_then(|f| f.set_len(length - 3)).expect("torn");
    assert_eq!(count(&Store::open_read_only(copy.path()).expect("opens").view(), Table::Samples), 4);
    let view = Store::open(copy.path()).expect("opens").view();
    assert_eq!((count(&view, Table::Samples), view.lost.as_slice()), (4, [].as_slice()));
    let account = ledger(&view).of(Table::Samples).cloned().expect("one");
    assert_eq!((account.due(), account.written), (4, 4), "the account ends with what was kept");
    assert!(journals(copy.path()).is_empty());
    assert_eq!(view.segments.iter().filter(|s| s.journal.is_some()).count(), 2, "samples and ledger");
    assert_eq!(count(&Store::open(copy.path()).expect("opens again").view(), Table::Samples), 4);
}

#[test]
fn a_flipped_byte_costs_one_flush_which_the_ledger_says_lost() {
    let copy = crashed(5);
    let path = journals(copy.path()).remove(0);
    let bytes = fs::read(&path).expect("read");
    let marks: Vec<usize> =
        (0..bytes.len()).filter(|i| bytes[*i..].starts_with(&fgm::journal::MARK)).collect();
    assert_eq!(marks.len(), 6, "an opening and five flushes");
    let at = marks[3] + 40;
    let file = fs::File::options().write(true).open(&path).expect("open");
    file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("flipped");
    let view = Store::open(copy.path()).expect("opens").view();
    assert_eq!(count(&view, Table::Samples), 4);
    let account = ledger(&view).of(Table::Samples).cloned().expect("one");
    assert_eq!((account.due(), account.written, account.lost["journal_damaged"]), (5, 4, 1));
    assert_eq!(view.lost.iter().map(|l| l.rows).sum::<u64>(), 1, "who asks for rows is told");
    assert!(journals(copy.path()).is_empty());
    let aside: Vec<_> = fs::read_dir(copy.path().join("quarantine")).expect("a folder").flatten().collect();
    assert_eq!(aside.len(), 2, "the journal and the reason: {aside:?}");
}

#[test]
fn a_journal_that_cannot_be_recovered_now_stays_and_is_seen() {
    let copy = crashed(3);
    let full = FullDisk { is_full: AtomicBool::new(true) };
    let store = Store::open_on(copy.path(), &full).expect("opens all the same");
    assert_eq!((count(&store.view(), Table::Samples), journals(copy.path()).len()), (3, 1));
    let writer = Writer::start(store.clone(), BOOT_ID).expect("starts");
    let (tell, told) = unbounded();
    keep(&writer, 10, &tell);
    assert!(matches!(answer(&told), Kept::Durable { .. }));
    assert_eq!(journals(copy.path()).len(), 2, "the new run has a journal of its own");
    writer.rotate(1, rows::metadata(), None);
    writer.shutdown(WAIT).expect("in time");
    drop(store);
    let view = Store::open(copy.path()).expect("opens").view();
    assert_eq!((count(&view, Table::Samples), view.journaled.len()), (4, 0));
}

#[test]
fn what_waits_beyond_the_bound_is_left_to_the_journal_and_none_of_it_is_lost() {
    const FLUSHES: u64 = 120;
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let disk = Arc::new(NoSegments { refuses: AtomicBool::new(true) });
    let writer = Writer::start_on(store.clone(), BOOT_ID, disk.clone()).expect("starts");
    let many: Vec<_> = (0..2000).map(|n| rows::base(KILLED, KILL_US + n)).collect();
    let many = batch(Table::Samples, &many);
    let all = usize::try_from(FLUSHES).expect("small") * many.num_rows();
    let (tell, told) = unbounded();
    let (stored, results) = unbounded();
    for n in 1..=FLUSHES {
        keep_batch(&writer, n, &many, &tell);
        assert!(matches!(answer(&told), Kept::Durable { .. }));
        if n % 10 == 0 {
            writer.rotate(n, rows::metadata(), Some(stored.clone()));
        }
    }
    let status = store.status();
    let pending = &status["pending"];
    let (alone, bytes) = (pending["rows_in_journal_alone"].as_u64(), pending["bytes"].as_u64());
    let in_all = many.get_array_memory_size() * usize::try_from(FLUSHES).expect("small");
    assert!(
        in_all > 100 << 20 && alone >= Some(50_000) && bytes < Some(32 << 20),
        "{in_all} bytes: {pending}"
    );
    assert_eq!(status["dropped"], serde_json::json!([]));
    assert_eq!(count(&store.view(), Table::Samples), all, "a query finds them where they are");
    // not the first: the writer may be at it, and what it is at stays in memory
    let path = journals(dir.path()).remove(2);
    let bytes = fs::read(&path).expect("read");
    let at = bytes.len() - 40;
    let file = fs::File::options().write(true).open(&path).expect("open");
    file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("flipped");
    let everything = Filter::range(0, i64::MAX);
    let (_, lost) =
        query::rows(&store.view(), Table::Samples, &everything, None, u64::MAX).expect("readable");
    assert_eq!(lost.iter().map(|l| l.rows).sum::<u64>(), many.num_rows() as u64, "what is damaged is told");
    file.write_all_at(&[bytes[at]], at as u64).expect("as it was");
    disk.refuses.store(false, Ordering::SeqCst);
    writer.rotate(FLUSHES + 1, rows::metadata(), None);
    let mut rotations = 0;
    while rotations < FLUSHES / 10 {
        let result = results.recv_timeout(WAIT).expect("an answer");
        rotations += u64::from(matches!(result, SealResult::Stored { dropped_rows: 0, .. }));
    }
    writer.shutdown(WAIT).expect("in time");
    assert!(journals(dir.path()).is_empty(), "what is stored has no journal");
    let view = Store::open_read_only(dir.path()).expect("opens").view();
    assert_eq!((count(&view, Table::Samples), view.segments.len()), (all, 12));
}

#[test]
fn a_full_disk_is_said_loses_nothing_and_the_journal_goes_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let disk = Arc::new(FullDisk { is_full: AtomicBool::new(true) });
    let writer = Writer::start_on(store.clone(), BOOT_ID, disk.clone()).expect("starts");
    let (tell, told) = unbounded();
    keep(&writer, 0, &tell);
    assert!(matches!(answer(&told), Kept::Failed { .. }), "nothing is acknowledged");
    let status = store.status();
    assert!(status["degraded"].as_str().is_some_and(|r| r.contains("No space left")), "{status}");
    assert_eq!((&status["journal"]["failed_flushes"], count(&store.view(), Table::Samples)), (&1.into(), 1));
    disk.is_full.store(false, Ordering::SeqCst);
    keep(&writer, 1, &tell);
    assert!(matches!(answer(&told), Kept::Durable { .. }));
    assert!(store.status()["degraded"].is_null());
    // a crash now would cost the flush that was refused, and say so
    let other = Store::open_read_only(dir.path()).expect("opens").view();
    let account = ledger(&other).of(Table::Samples).cloned().expect("one");
    assert_eq!((account.due(), account.written, account.lost["journal_damaged"]), (2, 1, 1));
    writer.rotate(1, rows::metadata(), None);
    writer.shutdown(WAIT).expect("in time");
    assert_eq!(count(&store.view(), Table::Samples), 2, "without a crash nothing is lost");
}

#[test]
fn a_journal_that_somebody_removes_is_made_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let writer = Writer::start(store.clone(), BOOT_ID).expect("starts");
    let (tell, told) = unbounded();
    keep(&writer, 0, &tell);
    assert!(matches!(answer(&told), Kept::Durable { .. }));
    fs::remove_dir_all(dir.path().join("journal")).expect("removed");
    keep(&writer, 1, &tell);
    assert!(matches!(answer(&told), Kept::Durable { .. }));
    assert_eq!(journals(dir.path()).len(), 1);
    let other = Store::open_read_only(dir.path()).expect("opens").view();
    let account = ledger(&other).of(Table::Samples).cloned().expect("one");
    assert_eq!((count(&other, Table::Samples), account.lost["journal_damaged"]), (1, 1));
    // the whole folder away: a state, and no end
    fs::remove_dir_all(dir.path()).expect("removed");
    keep(&writer, 2, &tell);
    assert!(matches!(answer(&told), Kept::Failed { .. }));
    assert_eq!(count(&store.view(), Table::Samples), 3, "memory has them all");
    drop(dir);
}

#[test]
fn inspect_says_what_is_well_and_what_is_not() {
    let copy = crashed(3);
    let inspect = |path: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fgm"));
        let done = command.arg("inspect").arg(path).arg("--json").output().expect("fgm");
        let found: Value = serde_json::from_slice(&done.stdout).unwrap_or_default();
        (done.status.code(), found)
    };
    assert_eq!(inspect(&copy.path().join("recent")).0, Some(3), "nothing to look at");
    let (code, found) = inspect(copy.path());
    assert_eq!(
        (code, &found["files"][0]["rows"]["samples"], &found["problems"]),
        (Some(0), &3.into(), &0.into()),
        "{found}"
    );
    assert_eq!(found["ledger"]["samples"]["rows"], 3, "{found}");
    let files: Vec<PathBuf> =
        Store::open(copy.path()).expect("opens").view().segments.into_iter().map(|s| s.path).collect();
    let (code, found) = inspect(copy.path());
    assert_eq!((code, found["files"].as_array().map(Vec::len)), (Some(0), Some(2)), "{found}");
    for file in found["files"].as_array().expect("files") {
        assert_eq!((&file["crc_is_right"], &file["is_in_order"]), (&true.into(), &true.into()), "{file}");
    }
    let samples = files.iter().find(|p| p.to_string_lossy().contains("samples")).expect("one");
    let byte = fs::read(samples).expect("read")[100];
    let file = fs::File::options().write(true).open(samples).expect("open");
    file.write_all_at(&[byte ^ 1], 100).expect("flipped");
    let (code, found) = inspect(samples);
    assert_eq!((code, &found["files"][0]["crc_is_right"]), (Some(1), &false.into()), "{found}");
    // a file that says of itself what is not so
    let disorder = batch(Table::Samples, &[rows::base(KILLED, KILL_US + 1), rows::base(KILLED, KILL_US)]);
    let path = copy.path().join("exported.parquet");
    let sink = fs::File::create(&path).expect("create");
    let mut encoder =
        Encoder::new(sink, &disorder.schema(), PAGE_ROWS, (1, 1), &rows::metadata()).expect("an encoder");
    let mut group = encoder.row_group().expect("a row group");
    disorder.columns().iter().for_each(|column| group.column(column).expect("written"));
    group.close().expect("written");
    encoder.close().expect("written");
    let (code, found) = inspect(&path);
    assert_eq!((code, &found["files"][0]["is_in_order"]), (Some(1), &false.into()), "{found}");
}
