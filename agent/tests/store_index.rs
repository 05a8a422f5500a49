//! The index of segments saves a start the opening of each, and is never believed against a file.

#[path = "support/rows.rs"]
mod rows;

use fgm::accumulator::{NodeNames, Pending, Stamp};
use fgm::clock::ktime_ns;
use fgm::ledger::Accounts;
use fgm::names::Table;
use fgm::segment::{self, Disk, Segment};
use fgm::store::Store;
use rows::{KILL_US, KILLED, batch};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MANY: u64 = 10_000;

fn folder_of(dir: &Path) -> PathBuf {
    let folder = dir.join("recent/table=samples");
    fs::create_dir_all(&folder).expect("mkdir");
    folder
}

fn segment(dir: &Path, seq: u64) -> Segment {
    let at = KILL_US + i64::try_from(seq).expect("small") * 1_000_000;
    let rows = [batch(Table::Samples, &[rows::base(KILLED, at), rows::base(KILLED, at + 1)])];
    segment::write(&Disk, &folder_of(dir), Table::Samples, &rows, "b", seq, &rows::metadata())
        .expect("written")
}

/// Files that the start believed the index of, and those that it opened.
fn start(store: &Store) -> (u64, u64) {
    let status = store.status();
    let number = |key: &str| status["start"][key].as_u64().expect("a number");
    (number("believed"), number("opened"))
}

fn index(dir: &Path) -> PathBuf {
    dir.join("segments.index")
}

fn segments(store: &Store) -> Vec<Segment> {
    store.view().segments
}

#[test]
fn a_start_with_ten_thousand_segments_opens_none_of_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let (folder, rows) = (dir.path().join("recent/table=ledger"), rows::metadata());
    fs::create_dir_all(&folder).expect("mkdir");
    let names = NodeNames { cluster: None, node: rows::NODE.into(), boot_id: rows::BOOT_ID.into() };
    let mut account = Accounts::default();
    account.written(Table::Samples, 1);
    let ledger =
        Pending { ledger: account.rows(Stamp { ktime_ns: 1, wall_us: KILL_US }), ..Pending::default() };
    let ledger = [ledger.batch(Table::Ledger, &names).expect("a batch")];
    let one = segment::write(&Disk, &folder, Table::Ledger, &ledger, "b", 1, &rows).expect("written");
    for seq in 2..=MANY {
        let name = format!("{:016}-b-{seq:08}.parquet", one.name.start_us);
        fs::hard_link(&one.path, one.path.with_file_name(name)).expect("linked");
    }
    let timed = || {
        let from = ktime_ns();
        let store = Store::open(dir.path()).expect("opens");
        let ms = (ktime_ns() - from) / 1_000_000;
        (start(&store), segments(&store), ms)
    };
    let (counts, opened, without_ms) = timed();
    assert_eq!(counts, (0, MANY));
    let (counts, believed, with_ms) = timed();
    assert_eq!(counts, (MANY, 0));
    assert!(opened == believed, "the index has another account of them");
    println!("start with {MANY} segments: {with_ms} ms by the index, {without_ms} ms without");
    assert!(with_ms < without_ms, "{with_ms} ms by the index, {without_ms} ms without");
    let read = Store::open_read_only(dir.path()).expect("opens");
    assert_eq!(start(&read), (MANY, 0));
}

#[test]
fn a_file_that_changed_is_opened_and_one_that_went_is_forgotten() {
    let dir = tempfile::tempdir().expect("a folder");
    let all: Vec<Segment> = (1..=5).map(|seq| segment(dir.path(), seq)).collect();
    drop(Store::open(dir.path()).expect("opens"));
    // the same size, a flipped bit
    let byte = fs::read(&all[0].path).expect("there")[100];
    File::options()
        .write(true)
        .open(&all[0].path)
        .and_then(|f| f.write_all_at(&[byte ^ 1], 100))
        .expect("flipped");
    // another file under the name of one
    let other = segment(dir.path(), 9);
    fs::rename(&other.path, &all[1].path).expect("renamed");
    fs::remove_file(&all[2].path).expect("removed");
    let new = segment(dir.path(), 7);
    let store = Store::open(dir.path()).expect("opens");
    assert_eq!(start(&store), (2, 3));
    let paths: Vec<PathBuf> = segments(&store).into_iter().map(|s| s.path).collect();
    let wanted = [&all[3].path, &all[4].path, &new.path, &all[1].path];
    assert!(paths.len() == 4 && wanted.iter().all(|w| paths.contains(w)), "{paths:?}");
    let second = segments(&store).into_iter().find(|s| s.path == all[1].path).expect("there");
    assert_eq!(second.from_us, other.from_us, "what the file says, not what the index said");
    assert_eq!(store.view().lost.len(), 1, "the damaged one is set aside");
    drop(store);
    assert_eq!(start(&Store::open(dir.path()).expect("opens")), (4, 0));
}

#[test]
fn a_damaged_index_is_not_believed_and_made_again() {
    let dir = tempfile::tempdir().expect("a folder");
    for seq in 1..=3 {
        segment(dir.path(), seq);
    }
    let facts = segments(&Store::open(dir.path()).expect("opens"));
    let whole = fs::read(index(dir.path())).expect("there");
    let version = String::from_utf8_lossy(&whole).replacen("segments 2", "segments 3", 1).into_bytes();
    let rows = whole.windows(8).position(|w| w == b"\"rows\":2").expect("rows");
    let mut flipped = whole.clone();
    flipped[rows + 7] = b'3';
    for damaged in [flipped, whole[..whole.len() / 2].to_vec(), Vec::new(), b"junk".to_vec(), version] {
        fs::write(index(dir.path()), damaged).expect("written");
        let read = Store::open_read_only(dir.path()).expect("opens");
        assert_eq!((start(&read), segments(&read)), ((0, 3), facts.clone()));
        let store = Store::open(dir.path()).expect("opens");
        assert_eq!((start(&store), segments(&store)), ((0, 3), facts.clone()));
        drop(store);
        assert_eq!(start(&Store::open(dir.path()).expect("opens")), (3, 0), "made again");
    }
    fs::remove_file(index(dir.path())).expect("removed");
    fs::create_dir(index(dir.path())).expect("a folder in the way");
    assert_eq!(segments(&Store::open(dir.path()).expect("opens all the same")), facts);
}
