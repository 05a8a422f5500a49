//! The sampler allocates nothing for a sample once it has seen a cgroup: counted by the allocator itself.
//!
//! Alone in its binary, and one test only, since the count is of the whole process.

use fgm::accumulator::Pending;
use fgm::cgroup::{Meta, identify};
use fgm::clock::{Offset, ktime_ns};
use fgm::lane::Ring;
use fgm::names::{Cause, CgroupId};
use fgm::recorder;
use fgm::sampler::{Plan, Sampler};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const ROWS: usize = 2000;

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
    });
}
