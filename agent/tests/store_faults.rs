//! What else goes wrong than a crash: a last write that is torn, a byte that flips, a disk that is full, a folder that is read-only
//! or vanishes, a clock that is set. What was acknowledged is there, nothing is there twice, and what is gone is told.
//!
//! The full and the read-only disk are a tmpfs in a mount namespace of its own; where none may be made, it says that it was skipped.

#[path = "support/child.rs"]
mod child;
#[path = "support/faults.rs"]
mod faults;
#[path = "support/rows.rs"]
mod rows;
#[path = "support/writing.rs"]
mod writing;

use faults::{Deadly, Tally, random};
use fgm::clock::ktime_ns;
use fgm::incident::Lost;
use fgm::journal::MARK;
use fgm::names::Table;
use fgm::segment::{self, Disk, HOUR_US};
use fgm::store::{Rules, Store, StoreError, View};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use writing::{FLUSHES, Flush, durable, missing};

const NEVER: i64 = rows::KILL_US + 1000 * HOUR_US;

/// Not a test: what the tests run. Told what to do and where.
#[test]
fn child() {
    let Some(told) = child::told() else { return };
    let dir = Path::new(&told[1]);
    let number = |i: usize| told.get(i).map_or(0, |t| t.parse().expect("a number"));
    match told[0].as_str() {
        "write" => {
            let io = Arc::new(Deadly::at_operation(number(3)));
            writing::write(dir, number(2), number(4), io, number(5) > 0);
        }
        "full" => full(dir, number(2)),
        "read-only" => read_only(dir, number(2)),
        other => panic!("{other}"),
    }
}

/// A child that writes a run: whether it came to its end, and what is durable.
fn written(dir: &Path, run: u64, die_at: u64, seed: u64) -> (bool, BTreeSet<Flush>) {
    let words = [dir.display().to_string(), run.to_string(), die_at.to_string(), seed.to_string()];
    let told: Vec<&str> = std::iter::once("write").chain(words.iter().map(String::as_str)).collect();
    let (is_whole, said) = child::run(&told, |_| {});
    (is_whole, durable(run, &said).collect())
}

fn every(run: u64) -> BTreeSet<Flush> {
    (1..=FLUSHES).map(|n| (run, n)).collect()
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { out.extend(files_below(&path)) } else { out.push(path) }
    }
    out.sort();
    out
}

fn ending<'a>(files: &'a [PathBuf], ending: &str) -> Vec<&'a PathBuf> {
    files.iter().filter(|f| f.extension().is_some_and(|e| e == ending)).collect()
}

#[test]
fn a_torn_last_write_costs_nothing_that_was_acknowledged() {
    let mut tally = Tally::of("last write torn", 8);
    let mut seed = 0x70b2_u64;
    for point in 0..tally.points {
        let dir = tempfile::tempdir().expect("a folder");
        let (_, acknowledged) = written(dir.path(), 0, 30 + random(&mut seed) % 60, 0);
        let files = files_below(dir.path());
        let what = format!("point {point}");
        if let Some(journal) = ending(&files, "journal").last() {
            // a part of a frame that was on its way, with or without what the disk had there before
            let bytes = fs::read(journal).expect("readable");
            let mut torn = bytes.clone();
            let last = bytes.windows(MARK.len()).rposition(|w| w == MARK).unwrap_or(0);
            let part = usize::try_from(random(&mut seed)).unwrap_or(0) % (bytes.len() - last).max(1);
            torn.extend(&bytes[last..last + part]);
            torn.extend((0..random(&mut seed) % 4096).map(|_| random(&mut seed).to_le_bytes()[0]));
            fs::write(journal, torn).expect("torn");
        }
        let folder = dir.path().join("recent/table=samples");
        if folder.is_dir() {
            fs::write(folder.join("0000000000000001-b-00000999.parquet.tmp"), b"PAR1 and no more")
                .expect("torn");
        }
        if dir.path().join("recent").is_dir() {
            let before = Store::open_read_only(dir.path()).expect("readable").view();
            tally.incidents_lost += missing(&before, &acknowledged, 0, &what);
            let mut after = Store::open(dir.path()).expect("opens").view();
            // What stands behind a cut frame cannot be told from a frame that was changed later: that the journal's end
            // cannot be read is said, and costs nothing.
            let of_end = |l: &Lost| l.reason.starts_with("damaged journal") && l.rows == 0;
            after.lost.retain(|l| !of_end(l));
            tally.examine(&after, &what);
            tally.incidents_lost += missing(&after, &acknowledged, 0, &what);
        }
    }
    tally.settle();
}

/// A folder with segments, merged hours, and a journal that a crash left.
fn folder_with_everything() -> (tempfile::TempDir, BTreeSet<Flush>) {
    let dir = tempfile::tempdir().expect("a folder");
    let (is_whole, mut all) = written(dir.path(), 0, 0, 0);
    assert!(is_whole);
    Store::open(dir.path()).expect("opens").compact(&Disk, NEVER, &Rules::default(), &|| false);
    let (is_whole, more) = written(dir.path(), 1, 0, 0);
    assert!(is_whole);
    all.extend(more);
    for die_at in (20..).step_by(3) {
        let copy = child::copy(dir.path());
        let (is_whole, more) = written(copy.path(), 2, die_at, 0);
        assert!(!is_whole, "no crash leaves a journal with rows that are acknowledged");
        if !more.is_empty() && !ending(&files_below(&copy.path().join("journal")), "journal").is_empty() {
            all.extend(more);
            return (copy, all);
        }
    }
    unreachable!("the range has no end");
}

#[test]
fn a_flipped_byte_costs_the_file_it_is_in_at_the_most_and_is_told() {
    let mut tally = Tally::of("a byte flipped", 24);
    let (whole, _) = folder_with_everything();
    let keys = |view: &View| -> BTreeMap<Table, BTreeSet<String>> {
        Table::ALL.into_iter().map(|t| (t, faults::keys(view, t).into_iter().collect())).collect()
    };
    let before = keys(&Store::open_read_only(whole.path()).expect("readable").view());
    let mut seed = 0xf11b_u64;
    let mut told = 0;
    for point in 0..tally.points {
        let dir = child::copy(whole.path());
        let files = files_below(dir.path());
        let is_data = |f: &&PathBuf| f.extension().is_some() && fs::metadata(f).is_ok_and(|m| m.len() > 0);
        let files: Vec<&PathBuf> = files.iter().filter(is_data).collect();
        let file = files[usize::try_from(random(&mut seed)).unwrap_or(0) % files.len()];
        let bytes = fs::read(file).expect("readable");
        let at = random(&mut seed) % bytes.len().max(1) as u64;
        let old = bytes[usize::try_from(at).expect("small")];
        let new = old ^ (1 << (random(&mut seed) % 8));
        File::options().write(true).open(file).and_then(|f| f.write_all_at(&[new], at)).expect("flipped");
        let place = file.strip_prefix(dir.path()).expect("in it").display();
        let what = format!("point {point}: byte {at} of {place}, {old:#x} to {new:#x}");
        // by the files and not by what an index remembers of them
        let _ = fs::remove_file(dir.path().join("segments.index"));
        let store = Store::open(dir.path()).expect("opens");
        let view = store.view();
        let after = keys(&view);
        told += u64::from(!view.lost.is_empty());
        for table in Table::ALL {
            let (was, is) = (&before[&table], &after[&table]);
            // of the ledger a recovery makes rows, maybe at the instant of one that is there
            let twice = if table == Table::Ledger { 0 } else { faults::keys(&view, table).len() - is.len() };
            if twice > 0 {
                println!("{what}: {twice} rows of {} are there twice", table.as_str());
            }
            tally.duplicates += twice as u64;
            let is_silent = was.difference(is).next().is_some() && view.lost.is_empty();
            let is_made_up = table != Table::Ledger && is.difference(was).next().is_some();
            if is_silent || is_made_up {
                println!("{what}: {} rows of {} are gone, others are there", was.len(), table.as_str());
                tally.ledger_errors += 1;
            }
        }
        tally.unreadable +=
            view.segments.iter().filter(|s| segment::verify(s.table, &s.path).is_err()).count() as u64;
        drop(store);
        let again = keys(&Store::open(dir.path()).expect("opens again").view());
        assert!(again == after, "{what}: the second start has the same rows");
    }
    assert!(told * 4 > tally.points, "only {told} of {} were noticed: the test is blind", tally.points);
    tally.settle();
}

/// Runs one of the roles in a mount namespace with a small tmpfs; false where there may be none.
fn in_a_small_place(role: &str, points: u64, size: &str, name: &str) -> bool {
    let dir = tempfile::tempdir().expect("a folder");
    let place = dir.path().display().to_string();
    let mount = format!("mount -t tmpfs -o size={size} none \"$1\" || exit 99; shift; exec \"$@\"");
    let inner = child::command(&[role, &place, &points.to_string()]);
    let mut command = Command::new("unshare");
    command.args(if rustix::process::geteuid().is_root() { &["-m"][..] } else { &["-rm"][..] });
    command.args(["sh", "-c", &mount, "sh", &place]).arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let Ok(done) = command.output() else {
        println!("SKIPPED {name}: there is no unshare");
        return false;
    };
    let (said, complaint) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    if !said.contains("running 1 test") && !done.status.success() {
        println!("SKIPPED {name}: no mount namespace may be made here: {complaint}");
        return false;
    }
    print!("{said}");
    assert!(done.status.success(), "{complaint}");
    true
}

#[test]
fn a_full_disk_loses_nothing_once_it_has_room_again() {
    let name = "a_full_disk_loses_nothing_once_it_has_room_again";
    in_a_small_place("full", faults::points(6), "6m", name);
}

/// In the small place: it fills up at any moment, and has room again before the end.
fn full(place: &Path, points: u64) {
    let mut tally = Tally { kind: "disk full", points, ..Tally::default() };
    let mut seed = 0xf011_u64;
    for point in 0..points {
        let (dir, filler) = (place.join("data"), place.join("filler"));
        let told = ["write", &dir.display().to_string(), "0", "0", "0", "1"];
        let (is_whole, said) = child::run(&told, |_| {
            // a disk that is full at the start is refused, with a word about it: here it has room until the first frame
            let end = ktime_ns() + 20_000_000_000;
            let begun = || fs::read_dir(dir.join("journal")).is_ok_and(|mut files| files.next().is_some());
            while !begun() && ktime_ns() < end {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(random(&mut seed) % 120));
            let fill = File::create(&filler).and_then(|mut f| io::copy(&mut io::repeat(1), &mut f));
            assert_eq!(
                fill.map(drop).map_err(|e| e.raw_os_error()),
                Err(Some(28)),
                "No space left on device"
            );
            std::thread::sleep(Duration::from_millis(20 + random(&mut seed) % 200));
            fs::remove_file(&filler).expect("room");
        });
        let what = format!("point {point}");
        assert!(is_whole, "{what}: {said}");
        let view = Store::open(&dir).expect("opens").view();
        tally.examine(&view, &what);
        tally.incidents_lost += missing(&view, &every(0), 0, &what);
        fs::remove_dir_all(&dir).expect("removed");
    }
    tally.settle();
}

#[test]
fn a_read_only_folder_is_read_and_refused_to_a_writer() {
    let name = "a_read_only_folder_is_read_and_refused_to_a_writer";
    in_a_small_place("read-only", faults::points(2), "16m", name);
}

fn read_only(place: &Path, points: u64) {
    let mut tally = Tally { kind: "folder read-only", points, ..Tally::default() };
    let remount = |how: &str| {
        let done = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(place).status();
        assert!(done.is_ok_and(|s| s.success()), "mount -o remount,{how}");
    };
    let mut seed = 0x4ead_u64;
    for point in 0..points {
        let (dir, what) = (place.join("data"), format!("point {point}"));
        let (_, acknowledged) = written(&dir, 0, 40 + random(&mut seed) % 40, 0);
        remount("ro");
        let refused = Store::open(&dir).map(drop).expect_err("read-only");
        assert!(matches!(refused, StoreError::NotWritable { .. } | StoreError::Create { .. }), "{refused}");
        assert!(refused.to_string().contains(&dir.display().to_string()), "{refused}");
        let view = Store::open_read_only(&dir).expect("readable").view();
        tally.examine(&view, &what);
        tally.incidents_lost += missing(&view, &acknowledged, 0, &what);
        remount("rw");
        let view = Store::open(&dir).expect("opens").view();
        tally.examine(&view, &what);
        tally.incidents_lost += missing(&view, &acknowledged, 0, &what);
        fs::remove_dir_all(&dir).expect("removed");
    }
    tally.settle();
}

#[test]
fn folders_that_vanish_are_made_again() {
    let mut tally = Tally::of("folder vanished", 6);
    let mut seed = 0x9a5d_u64;
    for point in 0..tally.points {
        let (dir, aside) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let told = ["write", &dir.path().display().to_string(), "0", "0", "0", "1"];
        let kept = aside.path().join("kept");
        let (is_whole, said) = child::run(&told, |_| {
            std::thread::sleep(Duration::from_millis(random(&mut seed) % 150));
            let _ = fs::rename(dir.path().join("recent"), &kept);
        });
        let what = format!("point {point}");
        assert!(is_whole, "{what}: {said}");
        // who took it away gives it back
        for file in ending(&files_below(&kept), "parquet") {
            let to = dir.path().join("recent").join(file.strip_prefix(&kept).expect("in it"));
            fs::create_dir_all(to.parent().expect("a folder")).expect("made");
            // one that had its name before the folder went, and was made again since that could not be synced: the same rows
            if !to.exists() {
                fs::copy(file, to).expect("given back");
            }
        }
        let view = Store::open(dir.path()).expect("opens").view();
        tally.examine(&view, &what);
        tally.incidents_lost += missing(&view, &every(0), 0, &what);
    }
    tally.settle();
}

#[test]
fn a_clock_that_is_set_costs_no_row_and_doubles_none() {
    let mut tally = Tally::of("clock set", 6);
    let mut seed = 0xc10c_u64;
    for point in 0..tally.points {
        let dir = tempfile::tempdir().expect("a folder");
        let skew = random(&mut seed) | 1;
        let die_at = if point % 2 == 0 { 0 } else { 40 + random(&mut seed) % 60 };
        let (is_whole, acknowledged) = written(dir.path(), 0, die_at, skew);
        let wanted = if is_whole { every(0) } else { acknowledged };
        let what = format!("point {point}, skew {skew}");
        let store = Store::open(dir.path()).expect("opens");
        tally.examine(&store.view(), &what);
        // as far as the clock has come, an hour later, and once all is over
        for now_us in [rows::KILL_US, rows::KILL_US + HOUR_US, NEVER] {
            let done = store.compact(&Disk, now_us, &Rules::default(), &|| false);
            assert!(done.left.is_empty() && done.set_aside.is_empty(), "{what}: {done:?}");
            tally.examine(&store.view(), &what);
            tally.incidents_lost += missing(&store.view(), &wanted, skew, &what);
        }
        assert!(store.view().segments.iter().all(|s| s.merged.is_some()), "{what}: all hours are merged");
    }
    tally.settle();
}
