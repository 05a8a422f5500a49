//! A thousand nodes and a day in a bucket: an incident list, and the questions of one node, by as few requests and bytes as they need.
//! The bucket counts them itself.

#[path = "support/rows.rs"]
mod rows;
#[path = "support/store_faults.rs"]
mod store_faults;

use fgm::bucket::Bucket;
use fgm::export;
use fgm::fleet::{FILES_AT_ONCE, Fleet, Found, Who};
use fgm::incident::Incident;
use fgm::names::Table;
use fgm::query::{self, Filter};
use fgm::segment::{self, Disk, HOUR_US};
use object_store::path::Path;
use object_store::{ObjectStore, PutOptions};
use rows::{KILL_US, KILLED, QUIET, text};
use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use store_faults::Faulty;

const NODES: i64 = 1000;
const DAY_US: i64 = 24 * HOUR_US;
const DAY: i64 = KILL_US - KILL_US % DAY_US;
/// What a list of incidents may fetch of each file: its end, which is the whole of a small one.
const END_BYTES: u64 = 64 << 10;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

fn name(table: Table, cluster: &str, hour: i64, node: &str) -> String {
    let at = jiff::Timestamp::from_microsecond(DAY + hour * HOUR_US).expect("a time");
    let (date, hour) = (at.strftime("%Y-%m-%d"), at.strftime("%H"));
    format!(
        "prod/v1/table={}/cluster={cluster}/date={date}/hour={hour}/node={node}/b-00000001.parquet",
        table.as_str()
    )
}

async fn put(to: &Faulty, name: &str, bytes: Vec<u8>) {
    let path = Path::parse(name).expect("a path");
    to.put_opts(&path, bytes.into(), PutOptions::default()).await.expect("put");
}

fn node(n: i64) -> String {
    format!("node-{n:04}")
}

fn cluster(n: i64) -> &'static str {
    if n % 2 == 0 { "eu" } else { "us" }
}

/// The incident that a node has in its hour of the day.
fn incident(n: i64) -> Incident {
    let ts_us = DAY + (n % 24) * HOUR_US + n * 1_000_000;
    let base = rows::incident(2);
    Incident { id: format!("{}-b-{ts_us}", node(n)), node: node(n), ts_us, ..base }
}

/// Each node has an incident that day; of two more tables there is a file for each hour, which nobody may touch: they are no Parquet.
fn fleet() -> (Faulty, u64) {
    let to = Faulty::default();
    let dir = tempfile::tempdir().expect("a folder");
    let mut bytes = 0;
    block_on(async {
        for n in 0..NODES {
            let incident = incident(n);
            let mut row = rows::incident_row(&incident);
            row.insert("node", text(node(n)));
            let batch = rows::batch(Table::Incidents, &[row]);
            let made =
                segment::write(&Disk, dir.path(), Table::Incidents, &[batch], "b", 1, &rows::metadata());
            let made = made.expect("written");
            let file = fs::read(&made.path).expect("readable");
            bytes += file.len() as u64;
            put(&to, &name(Table::Incidents, cluster(n), n % 24, &node(n)), file).await;
            fs::remove_file(&made.path).expect("ours");
            for hour in 0..24 {
                for table in [Table::Samples, Table::Events] {
                    put(&to, &name(table, cluster(n), hour, &node(n)), vec![0; 8]).await;
                }
            }
        }
    });
    (to, bytes)
}

fn open(to: &Faulty) -> Fleet {
    for counter in [&to.lists, &to.gets, &to.puts, &to.bytes_read] {
        counter.store(0, Ordering::SeqCst);
    }
    Fleet::over(Bucket::over(Arc::new(to.clone()), "prod")).expect("threads")
}

/// As `fgm incidents` does.
fn incidents(fleet: &Fleet, files: &[Found]) -> BTreeSet<String> {
    let columns: Option<&[&str]> = Some(&["cgroup_id", "ts", "ktime_ns", "json"]);
    let mut out = BTreeSet::new();
    for some in files.chunks(FILES_AT_ONCE) {
        let found =
            export::incidents(&fleet.view(some, columns).expect("read"), Vec::new()).expect("incidents");
        out.extend(found.into_iter().map(|i| i.id));
    }
    fleet.well().expect("all was read");
    out
}

#[test]
fn a_list_of_the_incidents_of_a_thousand_nodes_and_a_day() {
    let (to, bytes) = fleet();
    let own = open(&to);
    let range = (DAY, DAY + DAY_US - 1);
    let files = own.files(Table::Incidents, range, &Who::default()).expect("listed");
    assert_eq!(files.len() as u64, NODES.unsigned_abs());
    let found = incidents(&own, &files);
    let wanted: BTreeSet<String> = (0..NODES).map(|n| incident(n).id).collect();
    assert!(found == wanted, "{} of {}", found.len(), wanted.len());
    let counts = own.counts();
    println!("1,000 nodes x 1 day: {counts}; the files have {bytes} bytes");
    // of the clusters one, and of each cluster's day one
    assert_eq!((counts.lists, to.asked(&to.lists)), (3, 3));
    assert_eq!(
        (counts.gets, to.asked(&to.gets)),
        (1000, 1000),
        "one a file: the end of a small one is all of it"
    );
    assert_eq!(counts.bytes_read, to.asked(&to.bytes_read));
    assert!(counts.bytes_read <= bytes && bytes <= 1000 * END_BYTES, "{counts}");
    assert_eq!(to.asked(&to.puts), 0);

    // of one cluster
    let own = open(&to);
    let eu = Who { cluster: Some("eu".into()), node: None };
    let files = own.files(Table::Incidents, range, &eu).expect("listed");
    assert_eq!(incidents(&own, &files).len(), 500);
    assert_eq!((own.counts().lists, own.counts().gets), (1, 500));

    // of one node and an hour
    let own = open(&to);
    let one = Who { cluster: Some("us".into()), node: Some(node(7)) };
    let hour = DAY + 7 * HOUR_US;
    let files = own.files(Table::Incidents, (hour, hour + HOUR_US - 1), &one).expect("listed");
    assert_eq!(incidents(&own, &files), BTreeSet::from([incident(7).id]));
    assert_eq!((own.counts().lists, own.counts().gets), (1, 1));

    // of a time when there was nothing, and of a node that is none
    let own = open(&to);
    let files = own.files(Table::Incidents, (DAY + 3 * DAY_US, DAY + 4 * DAY_US), &Who::default());
    assert!(files.expect("listed").is_empty());
    let nobody = Who { cluster: Some("eu".into()), node: Some("nobody".into()) };
    assert!(own.files(Table::Incidents, range, &nobody).expect("listed").is_empty());
    assert_eq!(own.counts().gets, 0);
}

#[test]
fn a_question_of_one_cgroup_takes_two_requests_of_a_file_and_a_part_of_its_bytes() {
    let dir = tempfile::tempdir().expect("a folder");
    let seconds = (0..600).flat_map(|s| (0..40).map(move |c| rows::base(QUIET + c, DAY + s * 1_000_000)));
    let batch = rows::batch(Table::Samples, &seconds.collect::<Vec<_>>());
    let made = segment::write(&Disk, dir.path(), Table::Samples, &[batch], "b", 1, &rows::metadata());
    let file = fs::read(made.expect("written").path).expect("readable");
    let (to, length) = (Faulty::default(), file.len() as u64);
    block_on(put(&to, &name(Table::Samples, "eu", 0, "n"), file));

    let filter = Filter { cgroups: Some(BTreeSet::from([QUIET + 3])), ..Filter::range(DAY, DAY + HOUR_US) };
    let of = |columns: Option<&'static [&'static str]>, asked: &[&str]| {
        let own = open(&to);
        let files = own.files(Table::Samples, (DAY, DAY + HOUR_US - 1), &Who::default()).expect("listed");
        let view = own.view(&files, columns).expect("read");
        let (rows, lost) = query::rows(&view, Table::Samples, &filter, Some(asked), u64::MAX).expect("rows");
        own.well().expect("all was read");
        assert!(lost.is_empty(), "{lost:?}");
        let n: usize = rows.iter().map(arrow::array::RecordBatch::num_rows).sum();
        assert_eq!(n, 600);
        own.counts()
    };
    let narrow = of(Some(&["cgroup_id", "ts", "ktime_ns", "memory_current"]), &["ts", "memory_current"]);
    let wide = of(None, &["ts", "memory_current", "cgroup_path", "pids_current"]);
    println!("{length} bytes; narrow: {narrow}; wide: {wide}");
    assert!(narrow.gets <= 2 && wide.gets <= 2, "{narrow}; {wide}");
    assert!(wide.bytes_read <= length, "nothing is fetched twice");
    assert_eq!(to.asked(&to.bytes_read), wide.bytes_read);
}

#[test]
fn a_file_that_is_no_file_of_ours_and_a_store_that_fails_are_told() {
    let to = Faulty::default();
    block_on(put(&to, &name(Table::Samples, "eu", 0, "n"), vec![7; 1000]));
    let own = open(&to);
    let files = own.files(Table::Samples, (DAY, DAY + HOUR_US - 1), &Who::default()).expect("listed");
    let view = own.view(&files, None).expect("read");
    let plan =
        query::plan(&view, Table::Samples, &Filter::range(DAY, DAY + DAY_US), u64::MAX).expect("a plan");
    assert_eq!(plan.rows, 0);
    assert!(plan.lost[0].reason.contains("unreadable segment b-00000001.parquet"), "{:?}", plan.lost);
    to.plan(|_| store_faults::Fault::Before);
    let error = own.view(&files, None).map(|_| ()).expect_err("must fail").to_string();
    assert!(error.contains("500 Internal Server Error") && error.contains("node=n"), "{error}");
    let error = own.files(Table::Samples, (DAY, DAY), &Who::default()).expect_err("must fail").to_string();
    assert!(error.contains("cannot list"), "{error}");
    let _ = KILLED;
}
