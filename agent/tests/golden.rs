//! Files of this release, as real agents wrote them, are read by every later one: `fixtures/golden/schema-N` is a data folder with
//! segments, merged hours and the journal of an agent that was killed. What they hold was counted by pyarrow, not by us.
//!
//! A folder of a later schema is made by `FGM_GOLDEN=SEGMENTS:TO_MERGE:KILLED cargo test -p fgm --test golden -- made` out of three data
//! folders (of two demos, and of an agent that got a SIGKILL), and stands beside the earlier ones, which stay.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use fgm::clock::wall_us;
use fgm::export;
use fgm::names::Table;
use fgm::query::{self, Filter};
use fgm::schema;
use fgm::segment::{Disk, HOUR_US};
use fgm::store::{Rules, Store, View};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/golden/schema-{version}"))
}

fn rows(view: &View, table: Table) -> Vec<RecordBatch> {
    let (rows, lost) =
        query::rows(view, table, &Filter::range(i64::MIN, i64::MAX), None, u64::MAX).expect("readable");
    assert_eq!(lost, []);
    rows
}

/// Rows, values that are numbers, and their sum.
fn counted(rows: &[RecordBatch]) -> (usize, usize, i128) {
    let (mut values, mut sum) = (0, 0);
    for column in rows.iter().flat_map(RecordBatch::columns) {
        if let Some(numbers) = column.as_primitive_opt::<Int64Type>() {
            values += numbers.len() - numbers.null_count();
            sum += numbers.iter().flatten().map(i128::from).sum::<i128>();
        }
    }
    (rows.iter().map(RecordBatch::num_rows).sum(), values, sum)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    assert!(Command::new("cp").arg("-r").arg(from).arg(to).status().expect("cp").success());
}

/// Not a test: makes the folder of this schema anew, when it is told out of what.
#[test]
fn made() {
    let Ok(told) = std::env::var("FGM_GOLDEN") else { return };
    let from: Vec<&Path> = told.split(':').map(Path::new).collect();
    let [segments, to_merge, killed] = from[..] else { panic!("FGM_GOLDEN=SEGMENTS:TO_MERGE:KILLED") };
    let to = golden(schema::VERSION);
    let _ = fs::remove_dir_all(&to);
    copy(&segments.join("recent"), &to);
    copy(&killed.join("journal"), &to);
    let work = tempfile::tempdir().expect("a folder");
    copy(&to_merge.join("recent"), work.path());
    let store = Store::open(work.path()).expect("opens");
    let done = store.compact(&Disk, wall_us() + 2 * HOUR_US, &Rules::default(), &|| false);
    // without Kubernetes nobody tells of containers
    assert!(done.made.len() == Table::ALL.len() - 1 && done.left.is_empty(), "{done:?}");
    copy(&work.path().join("v1"), &to);
}

#[test]
fn files_of_schema_2_are_read() {
    let store = Store::open_read_only(&golden(2)).expect("opens");
    let view = store.view();
    assert_eq!(view.lost, []);
    let (merged, segments): (Vec<_>, Vec<_>) =
        view.segments.iter().cloned().partition(|s| s.merged.is_some());
    let part = |segments: &[_]| View { segments: segments.to_vec(), ..View::default() };
    let journal = View { journaled: view.journaled.clone(), ..View::default() };
    for (name, of_one, wanted) in [
        ("segments", part(&segments), SEGMENTS),
        ("merged", part(&merged), MERGED),
        ("journal", journal, JOURNAL),
    ] {
        for (table, wanted) in wanted {
            let table = Table::ALL.into_iter().find(|t| t.as_str() == *table).expect("a table");
            assert_eq!(counted(&rows(&of_one, table)), *wanted, "{name}, {}", table.as_str());
        }
    }
    let all = export::incidents(&view, Vec::new()).expect("readable");
    let kills: Vec<_> = all.iter().filter(|i| i.kind == "oom_kill").collect();
    assert_eq!(kills.len(), KILLS, "{all:?}");
    let victim = &kills[0].victims[0];
    assert!(
        kills.iter().all(|i| i.victims[0].comm.as_deref() == Some("hog")) && victim.pid.is_some(),
        "{victim:?}"
    );
    assert!(kills[0].limit.as_ref().is_some_and(|l| l.max_bytes.is_some()), "{:?}", kills[0]);
}

type Counts = &'static [(&'static str, (usize, usize, i128))];

const SEGMENTS: Counts = &[
    ("events", (34, 116, 1_051_714_994_856)),
    ("incidents", (8, 58, 28_729_023_211_243_021)),
    ("io_devices", (9, 72, 150_586_058_798)),
    ("ledger", (7, 28, 323_978_990_187)),
    ("metrics", (1_292, 2_332, 31_469_395_113_829)),
    ("node", (39, 4_212, 1_339_455_035_442)),
    ("processes", (16, 240, 436_245_893_652)),
    ("samples", (3_183, 103_605, 115_727_655_798_179)),
];
const MERGED: Counts = &[
    ("events", (34, 116, 1_212_245_900_904)),
    ("incidents", (8, 58, 28_729_051_687_163_999)),
    ("io_devices", (9, 72, 185_502_260_293)),
    ("ledger", (7, 28, 356_606_703_152)),
    ("metrics", (1_292, 2_332, 36_773_096_107_265)),
    ("node", (39, 4_212, 1_495_843_307_277)),
    ("processes", (14, 210, 498_853_221_790)),
    ("samples", (3_201, 102_769, 130_595_077_787_034)),
];
/// Without the ledger, which the reader of a journal brings to its end.
const JOURNAL: Counts = &[
    ("metrics", (434, 438, 19_904_478_153_970_256)),
    ("node", (12, 1_320, 553_294_547_243_579)),
    ("samples", (12, 398, 555_064_728_976_105)),
];
const KILLS: usize = 2;
