//! A data folder with what does not belong there: files of others, links that lead in circles, pipes, files and journals of a later schema.
//! Each is named or left alone, and the rest is read.

#[path = "support/child.rs"]
mod child;
#[path = "support/faults.rs"]
mod faults;
#[path = "support/rows.rs"]
mod rows;

use fgm::accumulator::Stamp;
use fgm::journal::MARK;
use fgm::ledger::Accounts;
use fgm::names::Table;
use fgm::query::{self, Filter};
use fgm::schema;
use fgm::segment::{self, Disk, HOUR_US};
use fgm::store::{Chunk, Kept, Rules, Store, View, Writer};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(20);

/// One segment a table.
fn data() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let writer = Writer::start(Store::open(dir.path()).expect("opens"), rows::BOOT_ID).expect("starts");
    writer.seal(1, rows::all(), rows::metadata(), None);
    writer.shutdown(WAIT).expect("in time");
    dir
}

fn samples(view: &View) -> (usize, Vec<fgm::incident::Lost>) {
    let (rows, lost) = query::rows(view, Table::Samples, &Filter::range(i64::MIN, i64::MAX), None, u64::MAX)
        .expect("readable");
    (rows.iter().map(arrow::array::RecordBatch::num_rows).sum(), lost)
}

fn inspected(dir: &Path) -> (Option<i32>, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_fgm")).arg("inspect").arg(dir).output().expect("fgm");
    (done.status.code(), String::from_utf8_lossy(&done.stdout).into_owned())
}

#[test]
fn what_is_not_ours_is_named_or_left_alone_and_the_rest_is_read() {
    let dir = data();
    let folder = dir.path().join("recent/table=samples");
    let all = rows::samples().len();
    fs::write(dir.path().join("notes.txt"), "mine").expect("written");
    fs::write(folder.join("notes.txt"), "mine").expect("written");
    fs::create_dir(folder.join("holidays.parquet")).expect("a folder with such a name");
    symlink(&folder, folder.join("circle")).expect("a link");
    symlink("/nonexistent/x", folder.join("0000000000000001-gone-00000001.parquet")).expect("a link");
    assert!(
        Command::new("mkfifo")
            .arg(folder.join("0000000000000002-pipe-00000002.parquet"))
            .status()
            .expect("mkfifo")
            .success()
    );
    fs::write(folder.join("holidays-2023.parquet"), "PAR1 no Parquet PAR1").expect("written");
    fs::create_dir_all(dir.path().join("v1/table=samples/cluster=x/date=soon")).expect("made");
    fs::write(dir.path().join("v1/table=samples/cluster=x/date=soon/a.parquet"), "junk").expect("written");
    fs::create_dir_all(dir.path().join("recent/table=songs")).expect("made");
    fs::write(dir.path().join("journal/shopping.journal"), "milk").expect("written");

    let view = Store::open_read_only(dir.path()).expect("opens").view();
    assert_eq!(samples(&view).0, all);
    let store = Store::open(dir.path()).expect("opens");
    assert_eq!(samples(&store.view()).0, all);
    let told: Vec<String> = store.view().lost.iter().map(|l| l.reason.clone()).collect();
    for name in ["gone-00000001", "pipe-00000002", "holidays-2023.parquet", "a.parquet"] {
        assert!(told.iter().any(|t| t.contains(name)), "{name} is not named: {told:?}");
    }
    for left in
        [dir.path().join("notes.txt"), folder.join("notes.txt"), dir.path().join("journal/shopping.journal")]
    {
        assert!(left.exists(), "{} is not ours to remove", left.display());
    }
    let (code, said) = inspected(dir.path());
    assert!(code == Some(1) && said.contains("pipe-00000002"), "{said}");
    assert!(
        dir.path().join("quarantine/samples-holidays-2023.parquet").exists(),
        "set aside, with the reason beside it"
    );
}

/// The only file of a table, with the version in it raised as a later program would have it.
fn of_a_later_schema(dir: &Path, table: Table) -> PathBuf {
    let folder = dir.join("recent").join(format!("table={}", table.as_str()));
    let old = fs::read_dir(&folder).expect("a folder").next().expect("a file").expect("an entry").path();
    let own = segment::open(table, &old).expect("whole");
    let batches = segment::rows(&old).expect("readable");
    let mut metadata = rows::metadata();
    metadata.push((segment::SCHEMA.to_owned(), (schema::VERSION + 1).to_string()));
    fs::remove_file(&old).expect("removed");
    segment::write(&Disk, &folder, table, &batches, &own.name.boot, own.name.seq, &metadata)
        .expect("written")
        .path
}

#[test]
fn a_segment_of_a_later_schema_stays_and_is_told_with_its_rows() {
    let dir = data();
    let all = rows::samples().len() as u64;
    let path = of_a_later_schema(dir.path(), Table::Samples);
    let bytes = fs::read(&path).expect("there");
    let look = |view: &View| {
        let (rows, lost) = samples(view);
        assert_eq!(rows, 0, "what they mean is not known");
        let told = lost.iter().find(|l| l.reason.contains("is newer than this fgm")).expect("told");
        assert_eq!((told.rows, told.table.as_str()), (all, "samples"), "{told:?}");
        assert_eq!(faults::keys(view, Table::Incidents).len(), 2, "the rest is read");
    };
    look(&Store::open_read_only(dir.path()).expect("opens").view());
    let store = Store::open(dir.path()).expect("opens");
    look(&store.view());
    let done = store.compact(&Disk, rows::KILL_US + 10 * HOUR_US, &Rules::default(), &|| false);
    assert!(done.left.iter().any(|(p, why)| *p == path && why.contains("newer")), "{:?}", done.left);
    assert!(done.made.iter().all(|m| m.table != Table::Samples) && !done.made.is_empty(), "{done:?}");
    drop(store);
    // by the index this time
    look(&Store::open(dir.path()).expect("opens").view());
    assert!(fs::read(&path).expect("there") == bytes, "untouched");
    let (code, said) = inspected(dir.path());
    assert!(code == Some(1) && said.contains("newer than this fgm"), "{said}");
}

#[test]
fn a_journal_of_a_later_schema_stays_and_is_told_with_its_rows() {
    let dir = tempfile::tempdir().expect("a folder");
    let writer = Writer::start(Store::open(dir.path()).expect("opens"), rows::BOOT_ID).expect("starts");
    let (tell, told) = crossbeam_channel::unbounded();
    let metadata = rows::metadata();
    let chunk =
        Chunk { at: Stamp::default(), account: &Accounts::default(), rows: rows::all(), metadata: &metadata };
    writer.journal(writer.keep(&chunk), Some(tell));
    assert!(matches!(told.recv_timeout(WAIT), Ok(Kept::Durable { .. })));
    let copy = child::copy(dir.path());
    writer.shutdown(WAIT).expect("in time");

    let journal = fs::read_dir(copy.path().join("journal"))
        .expect("a folder")
        .next()
        .expect("one")
        .expect("an entry")
        .path();
    let bytes = fs::read(&journal).expect("readable");
    let second = bytes.windows(MARK.len()).skip(1).position(|w| w == MARK).expect("a second frame") + 1;
    let text = String::from_utf8_lossy(&bytes[20..second]).into_owned();
    let (was, is) = (schema::VERSION, schema::VERSION + 1);
    let (from, to) = (format!("\"schema_version\":{was}"), format!("\"schema_version\":{is}"));
    assert!(text.contains(&from), "{text}");
    let body: Vec<u8> = [&bytes[16..20], text.replacen(&from, &to, 1).as_bytes()].concat();
    let mut later = MARK.to_vec();
    later.extend(u32::try_from(body.len()).expect("small").to_le_bytes());
    later.extend(crc32fast::hash(&body).to_le_bytes());
    later.extend(body);
    later.extend(&bytes[second..]);
    fs::write(&journal, &later).expect("written");

    let look = |view: &View| {
        assert_eq!(faults::keys(view, Table::Samples).len(), 0);
        let told =
            view.lost.iter().find(|l| l.table == "samples" && l.reason.contains("is newer")).expect("told");
        assert_eq!(told.rows, rows::samples().len() as u64);
    };
    look(&Store::open_read_only(copy.path()).expect("opens").view());
    look(&Store::open(copy.path()).expect("opens").view());
    assert!(fs::read(&journal).expect("it stays") == later);
    let (code, said) = inspected(copy.path());
    assert!(code == Some(1) && said.contains("newer than this fgm"), "{said}");
}
