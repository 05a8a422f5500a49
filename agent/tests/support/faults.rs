//! What must hold of a data folder whatever happened to the process that wrote it, as counts of what does not.
//! Included by path; never in the product.
#![allow(dead_code, reason = "each test binary uses its own part")]

use arrow::array::RecordBatch;
use arrow::util::display::array_value_to_string;
use fgm::ledger::Accounts;
use fgm::names::Table;
use fgm::query::{self, Filter};
use fgm::segment::{self, Disk, Io};
use fgm::store::View;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// A disk on which the process dies: at an odd operation before it is done, at an even one after it.
pub struct Deadly {
    left: AtomicU64,
}

impl Deadly {
    /// 0: never.
    pub fn at_operation(number: u64) -> Self {
        Self { left: AtomicU64::new(if number == 0 { u64::MAX / 2 } else { number }) }
    }

    fn at<T>(&self, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        if left == 1 {
            die();
        }
        let done = operation();
        if left == 2 {
            die();
        }
        done
    }
}

fn die() {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).expect("SIGKILL");
}

impl Io for Deadly {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.at(|| Disk.create(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.at(|| Disk.rename(from, to))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.at(|| Disk.sync_dir(dir))
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.at(|| Disk.sync(file))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.at(|| Disk.remove(path))
    }
}

#[derive(Debug, Default, PartialEq)]
pub struct Tally {
    /// What was done to the store or the agent.
    pub kind: &'static str,
    pub points: u64,
    /// Closed files that are not whole, and rows that the store says are lost.
    pub unreadable: u64,
    /// Acknowledged and not there.
    pub incidents_lost: u64,
    pub base_seconds_lost_max: f64,
    pub duplicates: u64,
    pub ledger_errors: u64,
}

pub fn rows_of(view: &View, table: Table) -> Vec<RecordBatch> {
    let all = Filter::range(i64::MIN, i64::MAX);
    query::rows(view, table, &all, None, u64::MAX).expect("readable").0
}

pub fn ledger(view: &View) -> Accounts {
    let mut sum = Accounts::default();
    for rows in rows_of(view, Table::Ledger) {
        sum.add(&Accounts::of_rows(&rows));
    }
    sum
}

/// What tells a row of a table from all others.
fn key(table: Table, rows: &RecordBatch, i: usize) -> String {
    let columns: &[&str] = match table.as_str() {
        "samples" => &["cgroup_id", "ktime_ns"],
        "events" => &["event_id"],
        "incidents" => &["id", "revision"],
        "ledger" => &["of_table", "ktime_ns"],
        _ => &[],
    };
    // instants as numbers: the formatter knows no time zone by name
    let cell = |name: &str| {
        let number = query::int(rows, name, i).map(|n| n.to_string());
        number.or_else(|| query::text(rows, name, i).map(str::to_owned)).unwrap_or_else(|| {
            let column = rows.column_by_name(name).expect("a column of the table");
            array_value_to_string(column, i).expect("a value that can be shown")
        })
    };
    let schema = rows.schema();
    let all = schema.fields().iter().map(|f| f.name().as_str());
    let names: Vec<&str> = if columns.is_empty() { all.collect() } else { columns.to_vec() };
    let cells: Vec<String> = names.into_iter().map(cell).collect();
    cells.join(" ")
}

pub fn keys(view: &View, table: Table) -> Vec<String> {
    let rows = rows_of(view, table);
    rows.iter().flat_map(|b| (0..b.num_rows()).map(|i| key(table, b, i)).collect::<Vec<_>>()).collect()
}

impl Tally {
    /// `default` points, or as many as the caller of the tests wants.
    pub fn of(kind: &'static str, default: u64) -> Self {
        Self { kind, points: points(default), ..Self::default() }
    }

    /// Looks at a folder into which nobody writes.
    pub fn examine(&mut self, view: &View, what: &str) {
        let before = (self.unreadable, self.duplicates, self.ledger_errors);
        let whole = |s: &&segment::Segment| segment::verify(s.table, &s.path).is_ok();
        self.unreadable += (view.segments.len() - view.segments.iter().filter(whole).count()) as u64;
        self.unreadable += view.lost.len() as u64;
        let account = ledger(view);
        for table in Table::ALL {
            let keys = keys(view, table);
            self.duplicates += (keys.len() - keys.iter().collect::<BTreeSet<_>>().len()) as u64;
            let written = account.of(table).map_or(0, |a| a.written);
            if table != Table::Ledger && written != i64::try_from(keys.len()).expect("few") {
                println!("{what}: {} rows of {}, the ledger says {written}", keys.len(), table.as_str());
                self.ledger_errors += 1;
            }
        }
        for rows in rows_of(view, Table::Ledger) {
            let number = |column, i| query::int(&rows, column, i).unwrap_or(0);
            let wrong = |i: &usize| number("due", *i) != number("written", *i) + number("lost", *i);
            self.ledger_errors += (0..rows.num_rows()).filter(wrong).count() as u64;
        }
        let after = (self.unreadable, self.duplicates, self.ledger_errors);
        if after != before {
            println!("{what}: (unreadable, duplicates, ledger errors) {before:?} -> {after:?}");
        }
    }

    /// Says what was found in a form that `cargo xtask faults` reads, then fails if it is anything.
    pub fn settle(&self) {
        println!(
            "faults: {{\"kind\":{:?},\"points\":{},\"unreadable\":{},\"incidents_lost\":{},\"base_seconds_lost_max\":{:.3},\"duplicates\":{},\"ledger_errors\":{}}}",
            self.kind,
            self.points,
            self.unreadable,
            self.incidents_lost,
            self.base_seconds_lost_max,
            self.duplicates,
            self.ledger_errors
        );
        let wrong = self.unreadable + self.incidents_lost + self.duplicates + self.ledger_errors;
        assert_eq!(wrong, 0, "{self:?}");
    }
}

/// How many crashes a test makes: its own number, or what the caller of the tests says.
pub fn points(default: u64) -> u64 {
    std::env::var("FGM_TEST_POINTS").map_or(default, |n| n.parse().expect("FGM_TEST_POINTS: a number"))
}

/// xorshift, so that a failure can be had again.
pub fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
