//! The live loop beside a disk that does not answer and queries without a pause: base rows keep to their grid, what waits to its bound,
//! and each row that was due is in a file or counted as lost.

use super::on_stage;
use crate::accumulator::NodeNames;
use crate::clock::ktime_ns;
use crate::ledger::Accounts;
use crate::machine::Machine;
use crate::names::{CgroupId, Table};
use crate::pipeline::handover::Handover;
use crate::pipeline::inbox::{self, Input, Outside};
use crate::pipeline::sealer::{Sealer, Setup};
use crate::pipeline::shared::Shared;
use crate::pipeline::{About, turn};
use crate::pods::Pods;
use crate::priority::{self, Work};
use crate::probes::Ladder;
use crate::query::{self, Filter};
use crate::segment::{Disk, Io};
use crate::store::{Store, View, Writer};
use arrow::array::RecordBatch;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;
use tokio::sync::oneshot;

const PERIOD_NS: u64 = 200_000_000;
const CGROUPS: u64 = 90;
/// The disk does not answer for so long.
const HELD_NS: u64 = 6_000_000_000;
/// Bytes of rows, and of frames of the journal, that may wait for it. A rotation brings some 50 KB, and six of them come meanwhile.
const WAITING: usize = 128 << 10;
const FRAMES: usize = 8 << 10;
/// Nothing else takes so long.
const LIMIT_NS: u64 = 30_000_000_000;

/// A disk on which every operation waits while it is held.
#[derive(Default)]
struct Held {
    is_held: Mutex<bool>,
    changed: Condvar,
}

impl Held {
    fn hold(&self, is_held: bool) {
        *self.is_held.lock().expect("no panic") = is_held;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let is_held = self.is_held.lock().expect("no panic");
        drop(self.changed.wait_while(is_held, |is_held| *is_held).expect("no panic"));
    }
}

impl Io for Held {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.wait();
        Disk.create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.wait();
        Disk.rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.wait();
        Disk.sync_dir(dir)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.wait();
        Disk.sync(file)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.wait();
        Disk.remove(path)
    }
}

/// Instants of base rows, by cgroup.
type Instants = BTreeMap<i64, BTreeSet<u64>>;

fn note(all: &mut Instants, rows: &RecordBatch) {
    for i in (0..rows.num_rows()).filter(|i| query::text(rows, "cause", *i) == Some("base")) {
        let id = query::int(rows, "cgroup_id", i).expect("an id");
        all.entry(id)
            .or_default()
            .insert(query::int(rows, "ktime_ns", i).expect("an instant").cast_unsigned());
    }
}

fn rows(view: &View, table: Table) -> Vec<RecordBatch> {
    query::rows(view, table, &Filter::range(i64::MIN, i64::MAX), None, u64::MAX).expect("readable").0
}

/// What queries saw while the loop ran.
#[derive(Default)]
struct Seen {
    base: Instants,
    queries: u64,
    /// Of rows that wait for the disk.
    most_bytes: u64,
}

impl Seen {
    /// All that there is: of the loop's own rows, and of the store's.
    fn look(&mut self, store: &Store, outside: &Outside, names: &NodeNames) {
        let (reply, answer) = oneshot::channel();
        if outside.send(Input::Rows { table: Table::Samples, from_us: i64::MIN, reply }) {
            for pending in answer.blocking_recv().unwrap_or_default() {
                note(&mut self.base, &pending.batch(Table::Samples, names).expect("a batch"));
            }
        }
        for batch in rows(&store.view(), Table::Samples) {
            note(&mut self.base, &batch);
        }
        let bytes = store.status()["pending"]["bytes"].as_u64().expect("a number");
        self.most_bytes = self.most_bytes.max(bytes);
        self.queries += 1;
    }
}

fn sleep(ns: u64) {
    thread::sleep(Duration::from_nanos(ns));
}

/// Until nothing waits for the disk.
fn drained(store: &Store) {
    let end = ktime_ns() + LIMIT_NS;
    while store.status()["pending"]["rows"] != 0 && ktime_ns() < end {
        sleep(20_000_000);
    }
}

/// Holds the disk for a while and waits until all is written: from when to when it was held.
fn hold(disk: &Held, store: &Store) -> (u64, u64) {
    // until then rotations are stored, and files are there for the queries
    sleep(1_500_000_000);
    disk.hold(true);
    let from = ktime_ns();
    sleep(HELD_NS);
    let to = ktime_ns();
    disk.hold(false);
    drained(store);
    // what was lost is told with a rotation
    sleep(1_500_000_000);
    drained(store);
    (from, to)
}

#[test]
fn a_disk_that_does_not_answer_and_queries_without_a_pause_leave_the_loop_alone() {
    on_stage(100, true, |s| {
        for n in 0..CGROUPS {
            s.make(&format!("s{n}.service"));
        }
        s.state.config.sampling.base_period_ms = PERIOD_NS / 1_000_000;
        s.state.handover = Handover::new(1, ktime_ns());
        let data = tempfile::tempdir().expect("a folder");
        let (disk, store) = (Arc::new(Held::default()), Store::open(data.path()).expect("opens"));
        let mut writer = Writer::start_on(store.clone(), "b", disk.clone()).expect("starts");
        writer.set_bounds(WAITING, FRAMES);
        let (names, shared) = (s.state.names.clone(), Arc::new(Shared::default()));
        let (pods, unshipped) = (Pods::default(), BTreeMap::new());
        let setup = Setup {
            writer,
            names: names.clone(),
            metadata: Vec::new(),
            shared: shared.clone(),
            pods,
            unshipped,
        };
        let sealer = Sealer::start(setup).expect("starts");
        s.state.set_moving(sealer.moving());
        let (outside, inbox) = inbox::open().expect("an eventfd");
        let text = || "n".to_owned();
        let machine = Machine {
            host: text(),
            boot_id: text(),
            kernel: text(),
            lacks: Vec::new(),
            descriptor_limit: 1000,
        };
        let about = About { machine, ladder: Ladder::none(text()), started_ns: ktime_ns(), shared };

        let is_over = AtomicBool::new(false);
        let (seen, (from, to)) = thread::scope(|scope| {
            let queries = scope.spawn(|| {
                priority::of_this_thread(Work::Asking);
                let mut seen = Seen::default();
                while !is_over.load(Ordering::Relaxed) {
                    seen.look(&store, &outside, &names);
                }
                seen
            });
            let script = scope.spawn(|| {
                let held = hold(&disk, &store);
                is_over.store(true, Ordering::Relaxed);
                outside.send_surely(Input::Shutdown);
                held
            });
            turn(&mut s.state, None, &inbox, &sealer, &about).expect("the loop goes on to its end");
            // none of the queries waits for an answer that does not come
            drop(inbox);
            (queries.join().expect("no panic"), script.join().expect("no panic"))
        });
        sealer.give(s.state.finish()).expect("the sealer lives");
        sealer.finish().expect("all is written");

        let account = s.state.ledger.account();
        let of_samples = account.of(Table::Samples).expect("samples");
        println!("{} queries, at most {} bytes waited, {of_samples:?}", seen.queries, seen.most_bytes);
        // the loop: no cgroup went without rows for as long as half of what the disk took, and most rows came when they were due
        let mut all = seen.base;
        let view = store.view();
        for batch in rows(&view, Table::Samples) {
            note(&mut all, &batch);
        }
        let (mut due, mut late, mut count) = (0, 0, 0);
        for (id, at) in &all {
            let phase = agent_ebpf::phase(CgroupId::from_i64(*id).0, PERIOD_NS);
            let slot = |at: &u64| (at - phase) / PERIOD_NS;
            let (first, last) = (at.first().expect("a row"), at.last().expect("a row"));
            // the first when it was found, the others on the grid
            due += 1 + slot(last) - slot(first);
            late += at.iter().skip(1).filter(|at| (*at - phase) % PERIOD_NS > PERIOD_NS / 2).count();
            count += at.len();
            let held = at.range(from..to).copied();
            let edges: Vec<u64> = [from].into_iter().chain(held).chain([to]).collect();
            let gap = edges.windows(2).map(|w| w[1] - w[0]).max().expect("two edges");
            assert!(gap < HELD_NS / 2, "nothing of {id} for {gap} ns");
        }
        assert_eq!(u64::try_from(all.len()).expect("few"), CGROUPS + 1, "and the root");
        assert!(late < count / 2, "{late} of {count} rows came late");
        assert!(seen.queries > 10, "{} queries", seen.queries);
        // memory: what waits is bounded, and the bound was reached
        let lost = |reason: &str| of_samples.lost.get(reason).copied().unwrap_or(0);
        assert!(lost("writer_behind") > 0, "{of_samples:?}: the bound was not reached, the test is blind");
        assert!(seen.most_bytes <= WAITING as u64 * 3 / 2, "{} bytes waited", seen.most_bytes);
        // the account: each row that was due is in a file or counted; the first and the last of a cgroup may be of a slot beside theirs
        let due = i64::try_from(due).expect("few");
        assert!((of_samples.due() - due).unsigned_abs() <= CGROUPS + 1, "{due} were due: {of_samples:?}");
        let mut told = Accounts::default();
        for batch in rows(&view, Table::Ledger) {
            told.add(&Accounts::of_rows(&batch));
        }
        assert_eq!(told.of(Table::Samples), Some(of_samples));
        for table in Table::ALL.into_iter().filter(|t| *t != Table::Ledger) {
            let stored: usize = rows(&view, table).iter().map(RecordBatch::num_rows).sum();
            let written = account.of(table).map_or(0, |a| a.written);
            assert_eq!(i64::try_from(stored).expect("few"), written, "{}", table.as_str());
        }
    });
}
