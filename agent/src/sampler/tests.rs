//! The sampler over cgroups made of ordinary files: what it reads, leaves out, keeps open and counts.

use super::*;
use crate::accumulator::NodeNames;
use crate::cgroup::identify;
use crate::names::{CgroupId, Table};
use crate::recorder;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// A cgroup made of ordinary files: what the parsers and the policy need, not what the kernel does.
fn fake(dir: &Path, files: &[(&str, &str)]) -> Arc<Meta> {
    let path = dir.join("web.service");
    fs::create_dir_all(&path).expect("mkdir");
    for (name, text) in files {
        fs::write(path.join(name), text).expect("write");
    }
    let id = CgroupId(fs::metadata(&path).expect("stat").ino());
    Arc::new(Meta { id, parent_id: None, path: "/web.service".into(), identity: identify("/web.service") })
}

const SLOW: Plan<'_> =
    Plan { cause: Cause::Base, period_ms: 1000, burst: None, slow: true, loose: true, in_lane: false };
const HOT: Plan<'_> = Plan { slow: false, loose: false, ..SLOW };

fn with_sampler<T>(dir: &Path, descriptors: usize, test: impl FnOnce(&mut Sampler) -> T) -> T {
    let (recorder, series) = recorder::build();
    metrics::with_local_recorder(&recorder, || test(&mut Sampler::new(dir, &series, descriptors)))
}

fn batch(pending: &Pending) -> RecordBatch {
    let names = NodeNames { cluster: None, node: "n".into(), boot_id: "b".into() };
    pending.batch(Table::Samples, &names).expect("builds")
}

fn cell(batch: &RecordBatch, column: &str, row: usize) -> Option<i64> {
    let a = batch.column_by_name(column).expect("column").as_primitive::<Int64Type>();
    a.is_valid(row).then(|| a.value(row))
}

fn bit(batch: &RecordBatch, file: &str) -> bool {
    let mask = cell(batch, "files_read", 0).expect("a mask");
    mask >> crate::catalogue::file(file).expect("known") & 1 == 1
}

#[test]
fn max_is_null_with_its_bit_and_junk_is_null_without() {
    let dir = tempfile::tempdir().expect("a folder");
    let meta = fake(
        dir.path(),
        &[("memory.current", "8192\n"), ("memory.max", "max\n"), ("pids.current", "many\n")],
    );
    with_sampler(dir.path(), 1024, |s| {
        let mut target = s.open(&meta, Ring::new(1000, u64::MAX), 0).expect("there");
        let mut out = Pending::default();
        s.sample(&mut target, SLOW, clock::Offset::measure(), &mut out).expect("there");
        let b = batch(&out);
        assert_eq!(cell(&b, "memory_current", 0), Some(8192));
        assert_eq!((cell(&b, "memory_max", 0), bit(&b, "memory.max")), (None, true));
        assert_eq!((cell(&b, "pids_current", 0), bit(&b, "pids.current")), (None, false));
        assert!(!bit(&b, "cpu.stat"), "a file that is not there was not read");
        assert_eq!(s.faults.unparsed.get("pids.current"), Some(&1));
    });
}

#[test]
fn a_series_that_stands_twice_in_its_file_has_no_row_and_is_counted() {
    let dir = tempfile::tempdir().expect("a folder");
    let twice = "anon N0=1 N1=2\nanon N0=3\n";
    let meta = fake(dir.path(), &[("memory.current", "8192\n"), ("memory.numa_stat", twice)]);
    with_sampler(dir.path(), 1024, |s| {
        let mut target = s.open(&meta, Ring::new(1000, u64::MAX), 0).expect("there");
        let mut out = Pending::default();
        let taken = s.sample(&mut target, SLOW, clock::Offset::measure(), &mut out).expect("there");
        assert_eq!((taken.metrics, s.faults.unparsed.get("memory.numa_stat")), (0, Some(&1)));
        fs::write(dir.path().join("web.service/memory.numa_stat"), "anon N0=1 N1=2\n").expect("write");
        let taken = s.sample(&mut target, SLOW, clock::Offset::measure(), &mut out).expect("there");
        assert_eq!((taken.metrics, s.faults.unparsed.get("memory.numa_stat")), (2, Some(&1)));
    });
}

#[test]
fn a_row_in_place_of_a_lane_reading_tells_its_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    let meta = fake(dir.path(), &[("memory.current", "8192\n")]);
    with_sampler(dir.path(), 1024, |s| {
        let mut target = s.open(&meta, Ring::new(1000, u64::MAX), 0).expect("there");
        let mut out = Pending::default();
        for (in_lane, told) in [(true, Some(8192)), (false, None)] {
            let plan = Plan { cause: Cause::Burst, in_lane, ..HOT };
            let taken = s.sample(&mut target, plan, clock::Offset::measure(), &mut out).expect("there");
            assert_eq!(taken.in_lane, told);
        }
    });
}

#[test]
fn a_directory_made_anew_under_the_old_name_is_another_cgroup() {
    let dir = tempfile::tempdir().expect("a folder");
    let meta = fake(dir.path(), &[("memory.current", "1\n")]);
    with_sampler(dir.path(), 1024, |s| {
        let mut target = s.open(&meta, Ring::new(1000, u64::MAX), 0).expect("there");
        fs::rename(dir.path().join("web.service"), dir.path().join("old")).expect("rename");
        fake(dir.path(), &[("memory.current", "2\n")]);
        let mut out = Pending::default();
        assert!(s.sample(&mut target, SLOW, clock::Offset::measure(), &mut out).is_err());
        assert!(out.is_empty(), "no row of a cgroup that has gone");
    });
}

#[test]
fn a_file_that_is_not_there_is_no_failed_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let meta = fake(dir.path(), &[("memory.current", "4096\n")]);
    with_sampler(dir.path(), 1024, |s| {
        let mut target = s.open(&meta, Ring::new(1000, u64::MAX), clock::ktime_ns()).expect("there");
        let mut out = Pending::default();
        s.sample(&mut target, HOT, clock::Offset::measure(), &mut out).expect("there");
        assert!(s.faults.unread.is_empty(), "{:?}", s.faults.unread);
    });
}

#[test]
fn the_reserve_of_descriptors_is_kept_and_the_lane_goes_before_hot_files() {
    let dir = tempfile::tempdir().expect("a folder");
    let hot = ["memory.swap.current", "memory.events", "cpu.stat", "io.stat", "pids.current"];
    let mut files = vec![("memory.current", "1\n")];
    files.extend(hot.map(|f| (f, "")));
    let meta = fake(dir.path(), &files);
    with_sampler(dir.path(), RESERVED_DESCRIPTORS + 16, |s| {
        let open: Vec<_> =
            (0..20).map(|_| s.open(&meta, Ring::new(1000, u64::MAX), 0).expect("there")).collect();
        assert_eq!(s.descriptors(), (16, 16, 14));
        let lanes = open.iter().filter(|t| t.files[0].kept.is_some()).count();
        assert_eq!(lanes, 5, "hot files stop at 14, so that two more lanes find room");
    });
}

#[test]
fn short_of_descriptors_it_still_reads_everything() {
    let dir = tempfile::tempdir().expect("a folder");
    let meta = fake(
        dir.path(),
        &[("memory.current", "4096\n"), ("cpu.stat", "usage_usec 7\n"), ("pids.current", "3\n")],
    );
    with_sampler(dir.path(), RESERVED_DESCRIPTORS + 1, |s| {
        // one descriptor is all there is: it is the lane's
        let mut target = s.open(&meta, Ring::new(1000, u64::MAX), 0).expect("there");
        assert_eq!(s.descriptors().0, 1);
        let mut out = Pending::default();
        s.sample(&mut target, HOT, clock::Offset::measure(), &mut out).expect("there");
        assert_eq!(s.lane(&mut target, 50).map(|r| r.and_then(|r| r.memory_current())), Ok(Some(4096)));
        let b = batch(&out);
        assert_eq!((cell(&b, "cpu_stat_usage_usec", 0), cell(&b, "pids_current", 0)), (Some(7), Some(3)));
        s.close(&target);
        assert_eq!(s.descriptors().0, 0);
    });
}

#[test]
fn without_any_descriptor_a_lane_is_read_more_slowly_and_said_to_be_short() {
    let dir = tempfile::tempdir().expect("a folder");
    let meta = fake(dir.path(), &[("memory.current", "4096\n"), ("cpu.stat", "usage_usec 7\n")]);
    with_sampler(dir.path(), RESERVED_DESCRIPTORS, |s| {
        let mut target = s.open(&meta, Ring::new(1000, u64::MAX), 0).expect("there");
        assert_eq!((s.descriptors().0, s.is_short()), (0, true));
        let mut out = Pending::default();
        s.sample(&mut target, HOT, clock::Offset::measure(), &mut out).expect("there");
        assert_eq!(cell(&batch(&out), "cpu_stat_usage_usec", 0), Some(7));
        let reading = s.lane(&mut target, 50).expect("there").expect("a reading");
        assert_eq!((reading.memory_current(), u64::from(reading.period_ms)), (Some(4096), 250));
        assert_eq!(s.lane(&mut target, 50).map(|r| r.is_some()), Ok(false), "not at each look");
        assert!(s.faults.unread.is_empty(), "{:?}", s.faults);
        // opened anew or not, another cgroup under the old name is not read
        target.ring = Ring::new(1000, u64::MAX);
        fs::rename(dir.path().join("web.service"), dir.path().join("old")).expect("rename");
        fake(dir.path(), &[("memory.current", "1\n")]);
        assert_eq!(s.lane(&mut target, 50).map(|r| r.is_some()), Err(Vanished));
    });
    // a cgroup of a machine without the controller is not looked at each time
    let dir = tempfile::tempdir().expect("a folder");
    let meta = fake(dir.path(), &[("cpu.stat", "usage_usec 7\n")]);
    with_sampler(dir.path(), RESERVED_DESCRIPTORS, |s| {
        let mut target = s.open(&meta, Ring::new(1000, u64::MAX), 0).expect("there");
        (0..3).for_each(|_| assert_eq!(s.lane(&mut target, 50).map(|r| r.is_some()), Ok(false)));
        assert_eq!(s.opened, 0);
        assert!(target.files[0].absent && s.faults.unread.is_empty(), "{:?}", s.faults);
    });
}

/// A turn of the lane's walk and the base row that comes with it.
fn row(s: &mut Sampler, target: &mut Target, mark: u32) -> RecordBatch {
    target.still.look(false, Some(mark));
    target.ring.push(Reading::new(clock::ktime_ns(), 20));
    let mut out = Pending::default();
    s.sample(target, HOT, clock::Offset::measure(), &mut out).expect("there");
    batch(&out)
}

#[test]
fn memory_stat_of_one_at_rest_is_not_kept_open_and_comes_back_when_it_moves() {
    let dir = tempfile::tempdir().expect("a folder");
    let meta = fake(dir.path(), &[("memory.stat", "anon 5\n"), ("cpu.stat", "usage_usec 7\n")]);
    with_sampler(dir.path(), 4096, |s| {
        s.set_walks(true);
        let mut target = s.open(&meta, Ring::new(1 << 16, u64::MAX), 0).expect("there");
        row(s, &mut target, 1);
        assert_eq!((s.descriptors().0, s.taken_over, s.opened), (2, 0, 0));
        for _ in 0..4 {
            assert_eq!(cell(&row(s, &mut target, 1), "memory_stat_anon", 0), Some(5));
        }
        assert_eq!((s.descriptors().0, s.taken_over, s.opened), (1, 4, 0), "it is not read, and closed");
        fs::write(dir.path().join("web.service/memory.stat"), "anon 6\n").expect("write");
        assert_eq!(cell(&row(s, &mut target, 2), "memory_stat_anon", 0), Some(6));
        assert_eq!((s.descriptors().0, s.opened), (1, 1), "once is no reason to keep it");
        row(s, &mut target, 3);
        assert_eq!((s.descriptors().0, s.opened), (2, 1), "twice is");
        s.close(&target);
        assert_eq!(s.descriptors().0, 0);
    });
}

#[test]
fn beyond_its_budget_of_descriptors_it_opens_and_counts() {
    let dir = tempfile::tempdir().expect("a folder");
    let meta = fake(
        dir.path(),
        &[("memory.current", "4096\n"), ("cpu.stat", "usage_usec 7\n"), ("pids.current", "3\n")],
    );
    with_sampler(dir.path(), 4096, |s| {
        s.keep_at_most(2);
        let mut target = s.open(&meta, Ring::new(1000, u64::MAX), 0).expect("there");
        let mut out = Pending::default();
        s.sample(&mut target, HOT, clock::Offset::measure(), &mut out).expect("there");
        let b = batch(&out);
        assert_eq!((cell(&b, "cpu_stat_usage_usec", 0), cell(&b, "pids_current", 0)), (Some(7), Some(3)));
        assert_eq!((s.descriptors().0, s.opened, s.is_short), (2, 1, false), "a budget is no shortage");
        // opened anew or not, another cgroup under the old name is not read
        fs::rename(dir.path().join("web.service"), dir.path().join("old")).expect("rename");
        fake(
            dir.path(),
            &[("memory.current", "1\n"), ("cpu.stat", "usage_usec 8\n"), ("pids.current", "4\n")],
        );
        let mut out = Pending::default();
        assert!(s.sample(&mut target, HOT, clock::Offset::measure(), &mut out).is_err());
        assert!(
            out.is_empty() && s.row.take(&mut Vec::new()).iter().all(|w| *w == 0),
            "nothing stays in the row"
        );
    });
}
