//! A process that writes is killed at any point, within each file operation too, again and again in one folder: what was
//! acknowledged is there, nothing is there twice, and the ledger accounts for each row. The process is this test binary.

#[path = "support/child.rs"]
mod child;
#[path = "support/faults.rs"]
mod faults;
#[path = "support/rows.rs"]
mod rows;
#[path = "support/writing.rs"]
mod writing;

use faults::{Deadly, Tally, random};
use fgm::names::Table;
use fgm::store::Store;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use writing::{durable, missing};

/// Crashes in one folder, so that recoveries are crashed as well.
const IN_ONE_FOLDER: u64 = 6;

/// Not a test: what the test runs. Told folder, number of the run, and the file operation in which it is to die (0: none).
#[test]
fn child() {
    let Some(told) = child::told() else { return };
    let number = |i: usize| told[i].parse().expect("a number");
    writing::write(Path::new(&told[0]), number(1), 0, Arc::new(Deadly::at_operation(number(2))), false);
}

#[test]
fn a_crash_at_any_point_loses_nothing_that_was_acknowledged_and_doubles_nothing() {
    let mut tally = Tally::of("store killed in a file operation or at any instant", 36);
    let mut seed = 0x5eed_u64;
    let (mut done, mut died) = (0, 0);
    while done < tally.points {
        let dir = tempfile::tempdir().expect("a folder");
        let mut all = BTreeSet::new();
        for number in 0..IN_ONE_FOLDER {
            let by_operation = !done.is_multiple_of(3);
            // a busy machine syncs more flushes at once, so that there are fewer operations
            let operations = if done.is_multiple_of(4) { 110 } else { 60 };
            let die_at = if by_operation { 1 + random(&mut seed) % operations } else { 0 };
            let after = (!by_operation).then(|| Duration::from_millis(5 + random(&mut seed) % 80));
            let what = format!("point {done}, run {number}, operation {die_at}, {after:?}");
            let told = [&dir.path().display().to_string(), &number.to_string(), &die_at.to_string()];
            let (is_whole, said) = child::run(&told.map(String::as_str), |child| {
                if let Some(after) = after {
                    std::thread::sleep(after);
                    child.kill().expect("SIGKILL");
                }
            });
            died += u64::from(!is_whole);
            all.extend(durable(number, &said));
            done += 1;
            if !dir.path().join("recent").is_dir() {
                continue;
            }
            let before = Store::open_read_only(dir.path()).expect("readable").view();
            tally.examine(&before, &what);
            tally.incidents_lost += missing(&before, &all, 0, &what);
            if number + 1 == IN_ONE_FOLDER {
                let after = Store::open(dir.path()).expect("opens").view();
                tally.examine(&after, &what);
                tally.incidents_lost += missing(&after, &all, 0, &what);
                assert!(after.journaled.is_empty(), "{what}: all is in segments");
                for table in Table::ALL {
                    let sorted = |view| BTreeSet::from_iter(faults::keys(view, table));
                    assert_eq!(sorted(&before), sorted(&after), "{what}: what is read is what is recovered");
                }
                assert_eq!(fs::read_dir(dir.path().join("journal")).expect("a folder").count(), 0);
            }
        }
        assert!(!all.is_empty(), "nothing was acknowledged in a whole folder");
    }
    assert!(died * 3 > tally.points, "only {died} of {} died: the points are chosen badly", tally.points);
    tally.settle();
}
