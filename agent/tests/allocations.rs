//! The sampler allocates nothing for a sample once it has seen a cgroup, with the lane reading files and with its walk, as it runs where the
//! kernel lets it: counted by the allocator itself.
//!
//! Alone in its binary, and one test only, since the count is of the whole process.

use fgm::accumulator::Pending;
use fgm::cgroup::{Meta, identify};
use fgm::clock::{Offset, ktime_ns};
use fgm::lane::{File, Reading, Ring, Value};
use fgm::names::{Cause, CgroupId};
use fgm::recorder;
use fgm::sampler::{Plan, Sampler, Target};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const ROWS: usize = 2000;

/// Looks of the walk between two base rows, at 50 Hz.
const LOOKS: u64 = 50;
/// A ring's share where there are many cgroups: it is full soon.
const RING_BYTES: usize = 1 << 12;
const RING_NS: u64 = 30_000_000_000;

/// What the walk brings between two rows, and in the turn of the second: `moved` is how many bytes memory grew by. Each look is a value that has
/// changed, or the same one again.
fn looks(target: &mut Target, moved: u64, mark: u32) {
    let before = target.ring.newest().and_then(|r| r.memory_current()).unwrap_or(0);
    for n in 1..=LOOKS {
        let mut reading = Reading::new(ktime_ns(), 20);
        for file in [File::MemoryCurrent, File::SwapCurrent, File::MemoryEvents, File::PidsCurrent] {
            reading.read(file);
        }
        for value in [Value::SwapCurrent, Value::EventsHigh, Value::EventsMax, Value::EventsOom] {
            reading.set(value, 0);
        }
        reading.set(Value::PidsCurrent, 3);
        reading.set(Value::MemoryCurrent, before + moved * n);
        let since_ns = target.ring.newest().map_or(0, |r| r.ktime_ns);
        if moved == 0 && target.ring.repeat(since_ns, reading.ktime_ns, 20) {
            target.still.look(false, Some(mark));
        } else {
            target.still.look(target.ring.is_news(&reading), Some(mark));
            target.ring.push(reading);
        }
    }
}

#[test]
fn a_sample_allocates_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("web.service");
    std::fs::create_dir(&path).expect("mkdir");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cgroup/6.12.txt");
    let text = std::fs::read_to_string(fixture).expect("a fixture");
    for part in text.split("=== ").skip(1) {
        let (name, text) = part.split_once('\n').expect("a name");
        std::fs::write(path.join(name), text).expect("write");
    }
    let id = CgroupId(std::fs::metadata(&path).expect("stat").ino());
    let path = "/web.service".to_owned();
    let meta = Arc::new(Meta { id, parent_id: None, identity: identify(&path), path });
    let (recorder, series) = recorder::build();
    metrics::with_local_recorder(&recorder, || {
        let mut sampler = Sampler::new(dir.path(), &series, 4096);
        let mut target = sampler.open(&meta, Ring::new(1000, 1 << 16), ktime_ns()).expect("there");
        // as an old one: a young cgroup is looked at anew each time
        target.first_seen_ns = 0;
        let hot = Plan {
            cause: Cause::Base,
            period_ms: 1000,
            burst: None,
            slow: false,
            loose: false,
            in_lane: false,
        };
        let slow = Plan { slow: true, loose: true, ..hot };
        let beside_walk = hot;
        let mut pending = Pending::default();
        let mut take = |plan, rows: usize, pending: &mut Pending| {
            let region = Region::new(ALLOCATOR);
            for _ in 0..rows {
                sampler.sample(&mut target, plan, Offset::measure(), pending).expect("there");
            }
            let change = region.change();
            (change.allocations + change.reallocations, change.bytes_allocated)
        };
        take(slow, 3, &mut pending);
        take(hot, ROWS, &mut pending);
        let hot = take(hot, ROWS, &mut pending);
        let slow = take(slow, ROWS, &mut pending);
        println!(
            "{ROWS} hot samples: {hot:?} (allocations, bytes); {ROWS} with slow and loose files: {slow:?}"
        );
        // the rows themselves are kept in lists that double in size: a handful, however many the samples
        assert!(hot.0 <= 8, "{hot:?}");
        assert!(slow.0 <= 16, "{slow:?}");
        drop(pending);

        // the path of production: values of the walk, memory.stat taken over where it cannot have changed
        sampler.close(&target);
        sampler.set_walks(true);
        let mut target = sampler.open(&meta, Ring::new(RING_BYTES, RING_NS), ktime_ns()).expect("there");
        target.first_seen_ns = 0;
        let mut pending = Pending::default();
        let mut take = |moved, rows: usize, pending: &mut Pending| {
            let (before, region) = (sampler.taken_over, Region::new(ALLOCATOR));
            for n in 0..rows {
                // what moves has another mark each time
                let mark = if moved == 0 { 7 } else { u32::try_from(n).expect("few") };
                looks(&mut target, moved, mark);
                sampler.sample(&mut target, beside_walk, Offset::measure(), pending).expect("there");
            }
            let change = region.change();
            (change.allocations + change.reallocations, sampler.taken_over - before)
        };
        for moved in [4096, 0] {
            take(moved, ROWS, &mut pending);
        }
        let (moving, read) = take(4096, ROWS, &mut pending);
        let (still, taken_over) = take(0, ROWS, &mut pending);
        println!(
            "{ROWS} samples beside the walk: {moving} allocations while all moves, {still} while nothing does"
        );
        assert_eq!(read, 0, "what moves is read");
        // the first of them is read, and a machine that holds this test up may spoil some
        assert!(taken_over >= ROWS as u64 * 9 / 10, "{taken_over} of {ROWS} were taken over");
        assert!(moving <= 16 && still <= 16, "{moving} and {still}");
    });
}
