//! The data folder through its public face: written is what is read, crashes leave nothing half, a full disk loses nothing.

#[path = "support/disks.rs"]
mod disks;
#[path = "support/rows.rs"]
mod rows;

use arrow::array::RecordBatch;
use crossbeam_channel::{Receiver, unbounded};
use disks::FullDisk;
use fgm::names::Table;
use fgm::query::{self, Filter};
use fgm::schema;
use fgm::segment::{self, Disk};
use fgm::store::{SealResult, Store, StoreError, Writer};
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataReader};
use proptest::prelude::*;
use rows::{BOOT_ID, Cell, KILL_US, KILLED, QUIET, Row, batch, int, row_of, text};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(20);

fn stored(from: &Receiver<SealResult>) -> (Vec<segment::Segment>, u64, u64) {
    match from.recv_timeout(WAIT).expect("the writer answers") {
        SealResult::Stored { files, file_size_bytes, total_bytes, .. } => {
            (files, file_size_bytes, total_bytes)
        }
        SealResult::Waiting { reason, .. } => panic!("not stored: {reason}"),
    }
}

fn seal_and_wait(
    writer: &Writer,
    rotation: u64,
    batches: Vec<(Table, RecordBatch)>,
) -> Vec<segment::Segment> {
    let (tell, told) = unbounded();
    writer.seal(rotation, batches, rows::metadata(), Some(tell));
    stored(&told).0
}

fn everything(store: &Store, table: Table) -> RecordBatch {
    let (batches, lost) =
        query::rows(&store.view(), table, &Filter::range(i64::MIN, i64::MAX), None, u64::MAX)
            .expect("readable");
    assert_eq!(lost, []);
    segment::sorted(table, &batches, &schema::of(table)).expect("one batch")
}

/// As rows of cells, so that dictionaries of another order compare equal.
fn cells(batch: &RecordBatch) -> Vec<Row> {
    let names: Vec<String> = batch.schema().fields().iter().map(|f| f.name().clone()).collect();
    (0..batch.num_rows())
        .map(|i| {
            names
                .iter()
                .filter_map(|n| {
                    let cell = query::int(batch, n, i)
                        .map(Cell::Int)
                        .or_else(|| query::text(batch, n, i).map(|t| Cell::Text(t.to_owned())))?;
                    Some((&*n.clone().leak(), cell))
                })
                .collect()
        })
        .collect()
}

/// Rows whose sort keys differ, so that there is one right order.
fn sparse_rows() -> impl Strategy<Value = Vec<Row>> {
    prop::collection::vec(sparse_row(), 1..120).prop_map(|mut rows| {
        for (i, row) in rows.iter_mut().enumerate() {
            row.insert("ktime_ns", int(i64::try_from(i).expect("small")));
        }
        rows
    })
}

fn sparse_row() -> impl Strategy<Value = Row> {
    let cell = prop::option::of(any::<i64>());
    (0..5i64, 0..1000i64, cell.clone(), cell.clone(), cell, "\\PC{0,12}", prop::option::of("[a-c]{1,2}"))
        .prop_map(|(cgroup, at, a, b, c, comm, ns)| {
            let mut row = row_of(4000 + cgroup * 100, KILL_US + at);
            for (name, v) in [("memory_current", a), ("memory_max", b), ("cpu_stat_usage_usec", c)] {
                if let Some(v) = v {
                    row.insert(name, int(v));
                }
            }
            row.insert("burst_id", text(comm));
            row.remove("namespace");
            if let Some(ns) = ns {
                row.insert("namespace", text(ns));
            }
            row
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn what_is_written_is_what_is_read(rows in sparse_rows()) {
        let dir = tempfile::tempdir().expect("a folder");
        let parts: Vec<RecordBatch> = rows.chunks(37).map(|r| batch(Table::Samples, r)).collect();
        let wanted = segment::sorted(Table::Samples, &parts, &schema::of(Table::Samples)).expect("sortable");
        let segment = segment::write(&Disk, dir.path(), Table::Samples, &parts, "b", 7, &[]).expect("written");
        let view = fgm::store::View { segments: vec![segment], ..Default::default() };
        let (read, _) = query::rows(&view, Table::Samples, &Filter::range(i64::MIN, i64::MAX), None, 1000).expect("read");
        let read = segment::sorted(Table::Samples, &read, &schema::of(Table::Samples)).expect("sortable");
        prop_assert_eq!(cells(&read), cells(&wanted));
    }

    #[test]
    fn a_filter_gives_the_rows_that_a_scan_gives(
        rows in sparse_rows(), from in 0..1000i64, length in 0..1000i64, pick in 0..5i64
    ) {
        let dir = tempfile::tempdir().expect("a folder");
        let mut view = fgm::store::View::default();
        let mut all = Vec::new();
        for (seq, part) in rows.chunks(50).enumerate() {
            let part = batch(Table::Samples, part);
            all.push(part.clone());
            if seq == 1 {
                view.loose.push(fgm::store::Loose { table: Table::Samples, boot: "b".into(), batch: part });
            } else {
                let s = segment::write(&Disk, dir.path(), Table::Samples, &[part], "b", seq as u64, &[]).expect("written");
                view.segments.push(s);
            }
        }
        let (from, to, cgroup) = (KILL_US + from, KILL_US + from + length, 4000 + pick * 100);
        let filter = Filter { cgroups: Some([cgroup].into()), ..Filter::range(from, to) };
        let (read, _) = query::rows(&view, Table::Samples, &filter, None, 1000).expect("read");
        let read: Vec<Row> = read.iter().flat_map(cells).collect();
        let all = segment::sorted(Table::Samples, &all, &schema::of(Table::Samples)).expect("sortable");
        let in_range = |c: &Cell| matches!(c, Cell::Int(ts) if (from..=to).contains(ts));
        let wanted: Vec<Row> =
            cells(&all).into_iter().filter(|r| r["cgroup_id"] == int(cgroup) && in_range(&r["ts"])).collect();
        prop_assert_eq!(read, wanted);
    }
}

#[test]
fn a_segment_has_the_settings_of_the_design() {
    let dir = tempfile::tempdir().expect("a folder");
    let part = batch(Table::Samples, &rows::samples());
    let s = segment::write(&Disk, dir.path(), Table::Samples, &[part], "b", 1, &rows::metadata())
        .expect("written");
    assert_eq!(s, segment::verify(Table::Samples, &s.path).expect("intact"));
    let file = File::open(&s.path).expect("there");
    let footer = ParquetMetaDataReader::new()
        .with_page_index_policy(PageIndexPolicy::Required)
        .parse_and_finish(&file)
        .expect("a footer with page index");
    assert!(footer.page_index().is_some());
    let group = footer.row_group(0);
    let sorting = group.sorting_columns().expect("declared");
    let names: Vec<String> = sorting
        .iter()
        .map(|c| group.column(usize::try_from(c.column_idx).expect("positive")).column_path().string())
        .collect();
    assert_eq!(names, ["cgroup_id", "ts"]);
    for column in group.columns() {
        let name = column.column_path().string();
        assert!(matches!(column.compression(), Compression::ZSTD(_)), "{name}");
        let encodings: Vec<Encoding> = column.encodings().collect();
        let is_text = column.column_type() == parquet::basic::Type::BYTE_ARRAY;
        let wanted = if is_text { Encoding::RLE_DICTIONARY } else { Encoding::DELTA_BINARY_PACKED };
        assert!(encodings.contains(&wanted), "{name}: {encodings:?}");
        let has_bloom = column.bloom_filter_offset().is_some();
        assert_eq!(has_bloom, name == "container_id" || name == "pod_uid", "{name}");
    }
    assert_eq!(segment::metadata_value(&footer, "fgm.kernel"), Some("6.12.0-test"));
    assert_eq!(segment::metadata_value(&footer, "fgm.table"), Some("samples"));
}

#[test]
fn a_rotation_closes_one_file_a_table_and_reports_their_sizes() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let writer = Writer::start(store.clone(), BOOT_ID).expect("starts");
    let (tell, told) = unbounded();
    writer.seal(1, rows::all(), rows::metadata(), Some(tell.clone()));
    let (files, size, total) = stored(&told);
    assert_eq!(files.len(), rows::all().len());
    let on_disk: u64 = files.iter().map(|f| fs::metadata(&f.path).expect("there").len()).sum();
    assert_eq!((size, total), (on_disk, on_disk));
    writer.seal(2, vec![(Table::Events, batch(Table::Events, &rows::events()))], vec![], Some(tell));
    let (_, size, total) = stored(&told);
    assert_eq!(total, on_disk + size);
    assert_eq!(store.total_bytes(), total);
    writer.shutdown(WAIT).expect("in time");
    assert_eq!(everything(&store, Table::Samples).num_rows(), rows::samples().len());
}

#[test]
fn rows_are_seen_once_while_they_wait_and_when_they_are_closed() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let writer = Writer::start(store.clone(), BOOT_ID).expect("starts");
    let (tell, told) = unbounded();
    for rotation in 0..20 {
        let part = batch(Table::Samples, &[rows::base(KILLED, KILL_US + rotation)]);
        writer.seal(rotation.cast_unsigned(), vec![(Table::Samples, part)], vec![], Some(tell.clone()));
        let seen = everything(&store, Table::Samples).num_rows();
        assert_eq!(seen, usize::try_from(rotation).expect("small") + 1);
    }
    for _ in 0..20 {
        stored(&told);
    }
    assert_eq!(everything(&store, Table::Samples).num_rows(), 20);
}

#[test]
fn a_second_start_reads_what_the_first_wrote_and_numbers_go_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let first = {
        let store = Store::open(dir.path()).expect("opens");
        let writer = Writer::start(store, BOOT_ID).expect("starts");
        let files = seal_and_wait(&writer, 1, rows::all());
        writer.shutdown(WAIT).expect("in time");
        files
    };
    let store = Store::open(dir.path()).expect("opens again");
    assert_eq!(everything(&store, Table::Samples).num_rows(), rows::samples().len());
    let highest = first.iter().map(|f| f.name.seq).max().expect("some");
    assert_eq!(store.sealed_seq(), highest);
    let writer = Writer::start(store, BOOT_ID).expect("starts");
    let second = seal_and_wait(&writer, 1, rows::all());
    assert!(second.iter().all(|f| f.name.seq > highest));
}

#[test]
fn a_crash_leaves_no_half_file_in_sight_and_damage_is_set_aside_with_its_reason() {
    let dir = tempfile::tempdir().expect("a folder");
    let files = {
        let store = Store::open(dir.path()).expect("opens");
        let writer = Writer::start(store, BOOT_ID).expect("starts");
        let files: Vec<_> = (0..3)
            .flat_map(|i| {
                let part =
                    batch(Table::Samples, &[rows::base(KILLED, KILL_US + i), rows::base(QUIET, KILL_US + i)]);
                seal_and_wait(&writer, i.cast_unsigned(), vec![(Table::Samples, part)])
            })
            .collect();
        writer.shutdown(WAIT).expect("in time");
        files
    };
    let bytes = fs::read(&files[0].path).expect("there");
    fs::write(&files[0].path, &bytes[..bytes.len() / 2]).expect("torn");
    let mut bytes = fs::read(&files[1].path).expect("there");
    bytes[100] ^= 0x40;
    fs::write(&files[1].path, &bytes).expect("a flipped bit in a page, the footer is whole");
    let temporary = files[2].path.with_file_name("0000000000000001-b-00000099.parquet.tmp");
    fs::write(&temporary, b"PAR1").expect("a left-over");

    let before: Vec<_> = walk(dir.path());
    let looked = Store::open_read_only(dir.path()).expect("opens to read");
    assert!(!looked.view().lost.is_empty(), "the torn file is accounted for");
    assert_eq!(walk(dir.path()), before, "reading changes nothing");

    let store = Store::open(dir.path()).expect("opens");
    assert!(!temporary.exists());
    let (read, lost) =
        query::rows(&store.view(), Table::Samples, &Filter::range(0, i64::MAX), None, 100).expect("readable");
    assert_eq!(read.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    assert_eq!(lost.len(), 2, "{lost:?}");
    let aside = walk(&dir.path().join("quarantine"));
    assert_eq!(aside.len(), 4, "two files and two reasons: {aside:?}");
    let reasons: String = aside
        .iter()
        .filter(|p| p.ends_with(".reason.txt"))
        .map(|p| fs::read_to_string(p).expect("a reason"))
        .collect();
    assert!(reasons.contains("no footer") && reasons.contains("checksum is"), "{reasons}");
}

#[test]
fn a_flipped_bit_anywhere_never_ends_the_reader() {
    let dir = tempfile::tempdir().expect("a folder");
    let part = batch(Table::Events, &rows::events());
    let s = segment::write(&Disk, dir.path(), Table::Events, &[part], "b", 1, &[]).expect("written");
    let whole = fs::read(&s.path).expect("there");
    let mut unreadable = 0;
    for at in (4..whole.len()).step_by(29) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&s.path, &bytes).expect("written");
        let view = fgm::store::View { segments: vec![s.clone()], ..Default::default() };
        match query::rows(&view, Table::Events, &Filter::range(0, i64::MAX), None, 1000) {
            Ok((_, lost)) => unreadable += lost.len(),
            Err(_) => unreadable += 1,
        }
    }
    assert!(unreadable > 10, "only {unreadable} of the damaged files were noticed");
}

fn walk(dir: &Path) -> Vec<String> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            out.extend(walk(&path));
        } else {
            out.push(path.display().to_string());
        }
    }
    out.sort();
    out
}

#[test]
fn a_full_disk_loses_nothing_and_says_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let disk = Arc::new(FullDisk { is_full: AtomicBool::new(true) });
    let writer = Writer::start_on(store.clone(), BOOT_ID, disk.clone()).expect("starts");
    let (tell, told) = unbounded();
    writer.seal(1, rows::all(), vec![], Some(tell.clone()));
    match told.recv_timeout(WAIT).expect("an answer") {
        SealResult::Waiting { reason, .. } => {
            assert!(reason.contains("No space left on device") && reason.contains("free space"), "{reason}");
        }
        SealResult::Stored { .. } => panic!("a full disk stored something"),
    }
    assert!(store.status()["degraded"].as_str().is_some_and(|r| r.contains("No space left")));
    assert_eq!(
        everything(&store, Table::Samples).num_rows(),
        rows::samples().len(),
        "queries see what waits"
    );
    assert_eq!(walk(&dir.path().join("recent")), [""; 0], "nothing half is left");

    disk.is_full.store(false, Ordering::SeqCst);
    writer.seal(2, vec![], vec![], None);
    let mut done = told.recv_timeout(WAIT).expect("an answer");
    while matches!(done, SealResult::Waiting { .. }) {
        done = told.recv_timeout(WAIT).expect("an answer");
    }
    writer.shutdown(WAIT).expect("in time");
    assert_eq!(store.degraded(), None);
    assert_eq!(everything(&store, Table::Samples).num_rows(), rows::samples().len());
}

#[test]
fn shutting_down_on_a_full_disk_is_bounded_and_names_the_rows() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let disk = Arc::new(FullDisk { is_full: AtomicBool::new(true) });
    let writer = Writer::start_on(store, BOOT_ID, disk).expect("starts");
    let part = batch(Table::Events, &rows::events());
    writer.seal(1, vec![(Table::Events, part)], vec![], None);
    let e = writer.shutdown(Duration::from_secs(5)).expect_err("cannot be written").to_string();
    assert!(e.contains("3 rows") && e.contains("No space left"), "{e}");
}

#[test]
fn rows_that_fit_no_table_are_refused_and_do_not_hold_up_others() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let writer = Writer::start(store.clone(), BOOT_ID).expect("starts");
    let (tell, told) = unbounded();
    let wrong = RecordBatch::try_from_iter([("x", batch(Table::Events, &rows::events()).column(9).clone())])
        .expect("ok");
    writer.seal(1, vec![(Table::Events, wrong)], vec![], Some(tell.clone()));
    writer.seal(2, rows::all(), vec![], Some(tell));
    assert!(stored(&told).0.is_empty());
    assert_eq!(stored(&told).0.len(), rows::all().len());
    assert_eq!(store.status()["dropped"][0]["reason"], "refused");
}

#[test]
fn two_agents_do_not_share_a_folder() {
    let dir = tempfile::tempdir().expect("a folder");
    let _first = Store::open(dir.path()).expect("opens");
    let e = Store::open(dir.path()).map(|_| ()).expect_err("in use");
    assert!(matches!(e, StoreError::InUse { .. }));
    let e = e.to_string();
    assert!(e.contains(&std::process::id().to_string()) && e.contains("data_dir"), "{e}");
    Store::open_read_only(dir.path()).expect("reading is free");
}

#[test]
fn a_folder_that_cannot_be_made_is_named_with_the_mend() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("plain");
    fs::write(&file, b"").expect("a file in the way");
    let e = Store::open(&file.join("data")).map(|_| ()).expect_err("must fail").to_string();
    assert!(e.contains("plain/data") && e.contains("name another with data_dir"), "{e}");
    let e = Store::open_read_only(dir.path()).map(|_| ()).expect_err("no data").to_string();
    assert!(e.contains("not a data folder"), "{e}");
}

#[test]
fn a_folder_without_the_right_to_write_is_named_with_the_mend() {
    if rustix::process::geteuid().is_root() {
        // Permissions do not stop root. The lock file can be in the way all the same.
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("LOCK")).expect("a folder in the way");
        let e = Store::open(dir.path()).map(|_| ()).expect_err("must fail").to_string();
        assert!(e.contains("cannot write into the data folder"), "{e}");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).expect("read-only");
    let e = Store::open(dir.path()).map(|_| ()).expect_err("must fail").to_string();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("undone");
    assert!(e.contains("cannot write into the data folder"), "{e}");
}

#[test]
fn more_rows_than_the_limit_is_an_error_with_both_numbers() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let writer = Writer::start(store.clone(), BOOT_ID).expect("starts");
    seal_and_wait(&writer, 1, rows::all());
    let e = query::rows(&store.view(), Table::Samples, &Filter::range(0, i64::MAX), None, 10)
        .expect_err("too many");
    let asked = rows::samples().len() as u64;
    assert!(matches!(e, query::QueryError::TooMany { asked: a, limit: 10, .. } if a == asked), "{e}");
}

#[test]
fn identities_come_with_each_cgroup() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let writer = Writer::start(store.clone(), BOOT_ID).expect("starts");
    seal_and_wait(&writer, 1, rows::all());
    let plan =
        query::plan(&store.view(), Table::Samples, &Filter::range(0, i64::MAX), u64::MAX).expect("planned");
    let found = plan.identities().expect("read");
    assert_eq!(found.len(), 4);
    let killed = found.iter().find(|(k, _)| k.cgroup_id == Some(KILLED)).expect("there").1;
    assert_eq!(killed.container.as_deref(), Some("cart"));
    assert_eq!(killed.parent_cgroup_id, Some(rows::POD));
    assert_eq!(killed.scope.as_deref(), Some("container"));
}
