//! Micro-benchmarks of the way of a sample: each parser over what a kernel prints, a commit, and rows made into columns.
//! `cargo bench -p fgm --bench micro`, and at the end of `cargo xtask bench sampler --micro`.

use divan::{Bencher, black_box};
use fgm::accumulator::{NodeNames, Pending, SampleRow, Stamp};
use fgm::catalogue::{self, FILES, columns};
use fgm::cgroup::parse::{Hints, parse};
use fgm::cgroup::{Meta, identify, loose};
use fgm::names::{Cause, CgroupId, Table};
use fgm::recorder;
use std::path::Path;
use std::sync::Arc;

fn main() {
    divan::main();
}

/// A file of a container of the test VM.
fn text(file: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cgroup/6.12.txt");
    let all = std::fs::read_to_string(path).expect("a fixture");
    let mut parts = all.split("=== ").skip(1).filter_map(|p| p.split_once('\n'));
    parts.find(|(name, _)| *name == file).map(|(_, text)| text.into()).expect("a file of the fixture")
}

const HOT: [&str; 7] =
    ["memory.current", "memory.events", "memory.stat", "cpu.stat", "io.stat", "memory.pressure", "cpu.max"];

#[divan::bench(args = HOT)]
fn parse_file(bencher: Bencher<'_, '_>, file: &str) {
    let (text, index) = (text(file), catalogue::file(file).expect("known"));
    let (mut hints, mut pairs) = (Hints::default(), Vec::with_capacity(64));
    bencher.bench_local(|| {
        pairs.clear();
        parse(index, &mut hints, black_box(&text), &mut pairs).expect("a kernel's text");
        pairs.len()
    });
}

#[divan::bench]
fn parse_loose(bencher: Bencher<'_, '_>) {
    let text = text("memory.numa_stat");
    bencher.bench_local(|| {
        let mut n = 0;
        loose::visit(black_box(&text), |_, _, _| n += 1).expect("a kernel's text");
        n
    });
}

fn meta(id: u64) -> Arc<Meta> {
    let path = format!("/docker/{id:064x}");
    Arc::new(Meta { id: CgroupId(id), parent_id: None, identity: identify(&path), path })
}

/// Rows with the columns of the hot files set.
fn rows(cgroups: u64, rows: u64) -> Pending {
    let (recorder, series) = recorder::build();
    let mut pending = Pending::default();
    for id in 1..=cgroups {
        let meta = meta(id);
        let (row, handles) = metrics::with_local_recorder(&recorder, || series.handles());
        for n in 0..rows {
            for (c, file, _) in columns() {
                if file.tier != catalogue::Tier::Slow {
                    handles[c].set(n * 4096 + c as u64);
                }
            }
            let at = Stamp { ktime_ns: n * 1_000_000_000 + id, wall_us: 0 };
            pending.samples.commit(&meta, sample(at), &row);
        }
    }
    pending
}

fn sample(at: Stamp) -> SampleRow<'static> {
    SampleRow { at, cause: Cause::Base, period_ms: 1000, burst: None, files_read: (1 << FILES.len()) - 1 }
}

/// All hot columns set through the recorder's handles, and the row committed.
#[divan::bench]
fn set_and_commit(bencher: Bencher<'_, '_>) {
    let (recorder, series) = recorder::build();
    let (row, handles) = metrics::with_local_recorder(&recorder, || series.handles());
    let hot: Vec<_> =
        columns().filter(|(_, f, _)| f.tier != catalogue::Tier::Slow).map(|(c, ..)| c).collect();
    let (meta, mut pending) = (meta(1), Pending::default());
    bencher.bench_local(|| {
        for &c in &hot {
            handles[c].set(black_box(4096));
        }
        pending.samples.commit(&meta, sample(Stamp::default()), &row);
        if pending.samples.len() > 10_000 {
            pending = Pending::default();
        }
    });
}

/// A flush of 200 containers made into Arrow columns.
#[divan::bench]
fn encode_200_rows(bencher: Bencher<'_, '_>) {
    let pending = rows(200, 1);
    let names = NodeNames { cluster: None, node: "n".into(), boot_id: "b".into() };
    bencher.bench_local(|| pending.batch(Table::Samples, &names).expect("builds").num_rows());
}
