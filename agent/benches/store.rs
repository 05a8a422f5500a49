//! The numbers of the store: what it takes to merge an hour, to find rows and to hand them out, and whether a burst of writes is
//! kept. `cargo xtask bench store` builds and runs it and says on what machine.
//!
//! Must never print what this run did not measure. Memory is that of a process of its own, seen from outside. Prints JSON.

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringDictionaryBuilder, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Int32Type};
use fgm::accumulator::Stamp;
use fgm::clock::ktime_ns;
use fgm::export::{self, Evidence, Limits, Selection};
use fgm::ledger::Accounts;
use fgm::names::Table;
use fgm::pods::Pods;
use fgm::query::{self, Filter};
use fgm::schema;
use fgm::segment::{Disk, HOUR_US};
use fgm::store::{Chunk, Rules, SealResult, Store, View, Writer};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const BOOT: &str = "0f0e0d0c-0b0a-4908-8706-050403020100";
const CONTAINERS: i64 = 200;
/// Each of five containers.
const PODS: i64 = 40;
const CGROUPS: i64 = CONTAINERS + PODS;
/// A whole hour of some day.
const START: i64 = 1_700_000_000_000_000 - 1_700_000_000_000_000 % HOUR_US;
const SECOND: i64 = 1_000_000;
const ROWS_OF_AN_EXPORT: i64 = 10_000_000;
/// A hundred rows a second of eight containers: a million.
const PAGE_SECONDS: i64 = 1250;
const METRICS: &str = "memory_current,memory_stat_anon,memory_stat_file,memory_events_max,cpu_stat_usage_usec,\
    cpu_stat_nr_throttled,cpu_pressure_some_total_usec,memory_pressure_some_total_usec,io_pressure_some_total_usec,pids_current";
const PATIENCE: Duration = Duration::from_mins(5);

/// Rows of all cgroups over some seconds, every one of `hz` a second.
struct Rows {
    from_us: i64,
    seconds: i64,
    hz: i64,
    cgroups: std::ops::Range<i64>,
}

impl Rows {
    fn each(&self) -> impl Iterator<Item = (i64, i64)> + '_ {
        let step = SECOND / self.hz;
        self.cgroups.clone().flat_map(move |cgroup| {
            (0..self.seconds * self.hz).map(move |i| (cgroup, self.from_us + i * step + cgroup * 37))
        })
    }

    fn text(&self, of: impl Fn(i64, i64) -> Option<String>) -> ArrayRef {
        let mut builder = StringDictionaryBuilder::<Int32Type>::new();
        let mut last: Option<(i64, Option<String>)> = None;
        for (cgroup, ts) in self.each() {
            if last.as_ref().is_none_or(|(of, _)| *of != cgroup) {
                last = Some((cgroup, of(cgroup, ts)));
            }
            builder.append_option(last.as_ref().and_then(|(_, text)| text.as_deref()));
        }
        Arc::new(builder.finish())
    }

    fn batch(&self) -> RecordBatch {
        let schema = schema::of(Table::Samples);
        let mut number = 0;
        let columns = schema.fields().iter().map(|field| -> ArrayRef {
            let is_container = |c: i64| !(CONTAINERS..CGROUPS).contains(&c);
            let pod = |c: i64| if is_container(c) { c / (CONTAINERS / PODS) } else { c - CONTAINERS };
            match (field.name().as_str(), field.data_type()) {
                ("ts", _) => Arc::new(
                    self.each()
                        .map(|(_, ts)| Some(ts))
                        .collect::<TimestampMicrosecondArray>()
                        .with_timezone("UTC"),
                ),
                ("ktime_ns", _) => Arc::new(
                    self.each().map(|(c, ts)| Some((ts - START) * 1000 + c * 7 + 11)).collect::<Int64Array>(),
                ),
                ("cgroup_id", _) => {
                    Arc::new(self.each().map(|(c, _)| Some(5000 + c)).collect::<Int64Array>())
                }
                ("parent_cgroup_id", _) => {
                    Arc::new(self.each().map(|(c, _)| Some(4000 + pod(c))).collect::<Int64Array>())
                }
                ("period_ms", _) => {
                    Arc::new(self.each().map(|_| Some(1000 / self.hz)).collect::<Int64Array>())
                }
                ("files_read", _) => Arc::new(self.each().map(|_| Some(0xffff)).collect::<Int64Array>()),
                ("node", _) => self.text(|_, _| Some("node-a".to_owned())),
                ("boot_id", _) => self.text(|_, _| Some(BOOT.to_owned())),
                ("scope", _) => {
                    self.text(|c, _| Some(if is_container(c) { "container" } else { "pod" }.to_owned()))
                }
                ("pod_uid", _) => {
                    self.text(|c, _| Some(format!("{:08x}-0000-4000-8000-000000000001", pod(c))))
                }
                ("container_id", _) => self.text(|c, _| is_container(c).then(|| container_id(c))),
                ("cgroup_path", _) => {
                    self.text(|c, _| Some(format!("/kubepods.slice/pod{}/{c:064x}", pod(c))))
                }
                ("namespace", _) => {
                    self.text(|c, _| Some(if pod(c) < PODS / 2 { "shop" } else { "bank" }.to_owned()))
                }
                ("cause", _) => self.text(|_, _| Some(if self.hz > 1 { "burst" } else { "base" }.to_owned())),
                (_, DataType::Int64) => {
                    number += 1;
                    Arc::new(self.each().map(|(c, ts)| value(number, c, ts - START)).collect::<Int64Array>())
                }
                _ => self.text(|_, _| None),
            }
        });
        let columns = columns.collect();
        RecordBatch::try_new(schema, columns).expect("rows fit the schema")
    }
}

fn container_id(cgroup: i64) -> String {
    format!("{cgroup:064x}")
}

/// As kernel files have them: of ten columns four stand still, three count, two waver, one is read each ten seconds.
fn value(column: i64, cgroup: i64, at_us: i64) -> Option<i64> {
    let mut noise = (column * 1_000_003 + cgroup * 7919 + at_us / 1000).unsigned_abs();
    noise = (noise ^ (noise >> 13)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let noise = i64::try_from(noise >> 52).expect("12 bits");
    match column % 10 {
        0..=3 => Some(column * 4096),
        4..=6 => Some(at_us / 1000 * (column + cgroup) + noise),
        7..=8 => Some((64 << 20) + cgroup * 4096 + noise * 4096),
        _ => (at_us / SECOND % 10 == cgroup % 10).then_some(column << 20),
    }
}

fn ms(from_ns: u64) -> f64 {
    let ns = u32::try_from((ktime_ns() - from_ns) / 1000).expect("an hour at the most");
    f64::from(ns) / 1000.0
}

/// The middle one of some runs, in milliseconds.
fn median(runs: usize, mut work: impl FnMut()) -> f64 {
    let mut all: Vec<f64> = (0..runs)
        .map(|_| {
            let from = ktime_ns();
            work();
            ms(from)
        })
        .collect();
    all.sort_by(f64::total_cmp);
    all[runs / 2]
}

/// Segments of some hours, so many rotations in each: what waits to be written is bounded, and more rows at once would be dropped.
fn fill(dir: &Path, hours: i64, rotations: i64) {
    let writer = Writer::start(Store::open(dir).expect("opens"), BOOT).expect("starts");
    let (tell, told) = crossbeam_channel::bounded(1);
    for hour in 0..hours {
        for part in 0..rotations {
            let seconds = 3600 / rotations;
            let from_us = START + hour * HOUR_US + part * seconds * SECOND;
            let rows = Rows { from_us, seconds, hz: 1, cgroups: 0..CGROUPS };
            writer.seal(1, vec![(Table::Samples, rows.batch())], metadata(), Some(tell.clone()));
            let sealed = told.recv_timeout(PATIENCE);
            assert!(matches!(sealed, Ok(SealResult::Stored { dropped_rows: 0, .. })), "not stored");
        }
        eprintln!("  hour {} of {hours}", hour + 1);
    }
    writer.shutdown(PATIENCE).expect("in time");
}

/// What the pages are measured on: a million rows of eight containers, and more containers than a list shows at once.
fn fill_for_pages(dir: &Path, containers: i64) {
    let writer = Writer::start(Store::open(dir).expect("opens"), BOOT).expect("starts");
    let (tell, told) = crossbeam_channel::bounded(1);
    // what waits to be written is bounded: more rows at once would be dropped
    let parts = 50;
    for part in 0..parts {
        let from_us = START + part * (PAGE_SECONDS / parts) * SECOND;
        let of = |hz, cgroups| Rows { from_us, seconds: PAGE_SECONDS / parts, hz, cgroups }.batch();
        let rows = vec![
            (Table::Samples, of(100, 0..8)),
            (Table::Samples, of(1, 8..CGROUPS + containers - CONTAINERS)),
        ];
        for rows in rows {
            writer.seal(1, vec![rows], metadata(), Some(tell.clone()));
            let sealed = told.recv_timeout(PATIENCE);
            assert!(matches!(sealed, Ok(SealResult::Stored { dropped_rows: 0, .. })), "not stored");
        }
    }
    writer.shutdown(PATIENCE).expect("in time");
}

fn metadata() -> Vec<(String, String)> {
    let pairs = [("fgm.node", "node-a"), ("fgm.cluster", ""), ("fgm.boot_id", BOOT)];
    pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec()
}

/// Runs a command; its wall time in ms and the most memory that it had in MiB, looked at each 2 ms: the kernel's high-water mark, so
/// that what happens between two looks counts.
fn measured(command: &mut Command) -> (f64, f64) {
    let from = ktime_ns();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("starts");
    let status = format!("/proc/{}/status", child.id());
    let mut most_kb = 0;
    let ended = loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let of = |key: &str| {
            text.lines().find_map(|l| l.strip_prefix(key)?.trim().split(' ').next()?.parse::<u32>().ok())
        };
        most_kb = most_kb.max(of("VmHWM:").unwrap_or(0));
        if let Some(ended) = child.try_wait().expect("wait") {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(ended.success(), "{command:?}: {ended}");
    (ms(from), f64::from(most_kb) / 1024.0)
}

fn export(view: &View, query: &[(&str, &str)], limits: Limits) -> u64 {
    let pairs: Vec<(String, String)> =
        query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let selection = Selection::parse(&pairs, START).expect("a selection");
    let (view, incidents, provenance, pods) = (view.clone(), Vec::new(), Map::new(), Pods::default());
    let made =
        export::export(Evidence { view, incidents, provenance, pods, limits, now_us: START }, &selection);
    made.expect("exported").bytes.len() as u64
}

fn seconds(us: i64) -> String {
    format!("{}.{:06}", us / SECOND, us % SECOND)
}

/// 100 Hz of ten containers at their own pace, with everything that the agent does with rows; what is not there afterwards.
fn burst(dir: &Path, length_s: i64) -> Value {
    let store = Store::open(dir).expect("opens");
    let writer = Writer::start(store.clone(), BOOT).expect("starts");
    let flush_us = 600_000;
    let (mut given, mut longest_ms) = (0u64, 0f64);
    let begin = ktime_ns();
    for flush in 0..length_s * SECOND / flush_us {
        let rows = Rows { from_us: START + flush * flush_us, seconds: 1, hz: 100, cgroups: 0..10 }.batch();
        let rows = rows.slice(0, 60 * 10);
        given += rows.num_rows() as u64;
        let from = ktime_ns();
        let mut account = Accounts::default();
        account.written(Table::Samples, rows.num_rows() as u64);
        let chunk = Chunk {
            at: Stamp::default(),
            account: &account,
            rows: vec![(Table::Samples, rows)],
            metadata: &metadata(),
        };
        let kept = writer.keep(&chunk);
        longest_ms = longest_ms.max(ms(from));
        writer.journal(kept, None);
        if flush % 15 == 14 {
            writer.rotate(1, metadata(), None);
        }
        let due = begin + u64::try_from((flush + 1) * flush_us * 1000).expect("positive");
        std::thread::sleep(Duration::from_nanos(due.saturating_sub(ktime_ns())));
    }
    writer.rotate(1, metadata(), None);
    writer.shutdown(PATIENCE).expect("in time");
    let failed = store.status()["journal"]["failed_flushes"].clone();
    let dropped: u64 = store.dropped().iter().map(|d| d.rows).sum();
    let plan = query::plan(&store.view(), Table::Samples, &Filter::range(i64::MIN, i64::MAX), u64::MAX)
        .expect("readable");
    json!({"rows": given, "rows_there": plan.rows, "dropped": dropped, "flushes_not_journaled": failed, "keep_longest_ms": longest_ms})
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|w| w != "--bench").collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["open", dir] => drop(Store::open(Path::new(dir)).expect("opens")),
        ["pages", dir, containers] => fill_for_pages(Path::new(dir), containers.parse().expect("containers")),
        ["merge", dir, hours] => {
            let store = Store::open(Path::new(dir)).expect("opens");
            let now = START + hours.parse::<i64>().expect("hours") * HOUR_US + 900 * SECOND;
            let done = store.compact(&Disk, now, &Rules::default(), &|| false);
            assert!(done.left.is_empty() && done.set_aside.is_empty() && !done.made.is_empty(), "{done:?}");
        }
        [dir, fgm, hours] => {
            let all = bench(&PathBuf::from(dir), Path::new(fgm), hours.parse().expect("hours"));
            println!("{all:#}");
        }
        _ => eprintln!("usage: store DIR FGM HOURS; `cargo xtask bench store` does it"),
    }
}

fn bench(dir: &Path, fgm: &Path, hours: i64) -> Value {
    let own = std::env::current_exe().expect("this program");
    let role =
        |name: &str, dir: &Path, more: &[&str]| measured(Command::new(&own).arg(name).arg(dir).args(more));
    eprintln!("a burst of 30 s");
    let burst = burst(&dir.join("burst"), 30);

    let data = dir.join("data");
    eprintln!("writing {hours} hours");
    let from = ktime_ns();
    fill(&data, hours, 40);
    let written_ms = ms(from);
    let segments = Store::open_read_only(&data).expect("readable").view().segments;
    let (rows, recent_bytes) =
        (segments.iter().map(|s| s.rows).sum::<u64>(), segments.iter().map(|s| s.bytes).sum::<u64>());
    drop(segments);
    eprintln!("merging them");
    let (_, idle_mib) = role("open", &data, &[]);
    let (hour_ms, hour_mib) = role("merge", &data, &["1"]);
    if hours > 1 {
        role("merge", &data, &[&hours.to_string()]);
    }

    let store = Store::open_read_only(&data).expect("readable");
    let view = store.view();
    let merged_bytes: u64 = view.segments.iter().map(|s| s.bytes).sum();
    let limits = Limits { max_rows: 10_000_000, max_containers: 100 };
    eprintln!("asking");
    let at = START + hours / 2 * HOUR_US;
    let metrics: Vec<&str> = METRICS.split(',').map(str::trim).collect();
    let columns: Vec<&str> = ["ts", "cgroup_id"].into_iter().chain(metrics.iter().copied()).collect();
    let mut found = 0;
    let by_cgroup_ms = median(9, || {
        let filter = Filter { cgroups: Some([5000 + 77].into()), ..Filter::range(at, at + HOUR_US - 1) };
        let (rows, _) = query::rows(&view, Table::Samples, &filter, Some(&columns), u64::MAX).expect("found");
        found = rows.iter().map(RecordBatch::num_rows).sum();
    });
    let (from, to) = (seconds(at), seconds(at + HOUR_US - 1));
    let id = container_id(77);
    let range = [("from", from.as_str()), ("to", to.as_str()), ("metrics", METRICS)];
    let by_id = [&range[..], &[("containers", id.as_str())]].concat();
    let by_container_ms = median(9, || {
        export(&view, &by_id, limits);
    });
    // 100 containers and their pods, 10 metrics: a million values
    let to = seconds(at + 834 * SECOND - 1);
    let million = [("from", from.as_str()), ("to", to.as_str()), ("metrics", METRICS), ("namespace", "shop")];
    let mut bytes = 0;
    let million_ms = median(5, || bytes = export(&view, &million, limits));
    drop(view);
    drop(store);

    eprintln!("exporting {ROWS_OF_AN_EXPORT} rows");
    let cgroups = CGROUPS / 2;
    let last = (START + hours * HOUR_US).min(START + ROWS_OF_AN_EXPORT / cgroups * SECOND - SECOND);
    let out = dir.join("out.parquet");
    let fgm_export = |to_us: i64| {
        let mut command = Command::new(fgm);
        command.args(["export", "--from", &seconds(START), "--to", &seconds(to_us), "-n", "shop", "--data"]);
        command.arg(&data).arg("-o").arg(&out);
        measured(&mut command)
    };
    let (_, few_mib) = fgm_export(START + SECOND);
    let (many_ms, many_mib) = fgm_export(last);
    let exported = fgm::segment::Footer::read(&out).expect("whole").rows();
    json!({
        "containers": CONTAINERS,
        "hours": hours,
        "rows": rows,
        "written_s": written_ms / 1000.0,
        "segments_bytes": recent_bytes,
        "merged_bytes": merged_bytes,
        "burst": burst,
        "merge_of_an_hour": {"segments": 40, "ms": hour_ms, "mib_above_idle": hour_mib - idle_mib},
        "one_hour_one_container_ten_metrics": {"rows": found, "by_cgroup_ms": by_cgroup_ms, "export_by_container_id_ms": by_container_ms},
        "export_of_a_million_values": {"ms": million_ms, "bytes": bytes},
        "export_of_many_rows": {
            "rows": exported,
            "ms": many_ms,
            "mib_above_idle": many_mib - idle_mib,
            "mib_above_a_small_one": many_mib - few_mib,
        },
    })
}
