//! Plausible rows for tests: a pod with a container that is OOM-killed and a quiet neighbour, with base samples, the lane's
//! history and the burst around the kill, events, processes and the incident. Included by path; never in the product.
#![allow(dead_code, reason = "each test binary uses its own part")]

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringDictionaryBuilder, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Int32Type};
use fgm::accumulator::{Device, NodeNames, Pending, Stamp};
use fgm::catalogue::loose::metric;
use fgm::cgroup::{Meta, identify};
use fgm::incident::{Incident, LimitHit, Trigger, Victim, Window};
use fgm::ledger::Accounts;
use fgm::names::{CgroupId, Table};
use fgm::schema;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// 2023-11-14T22:13:20Z, when the kill happens.
pub const KILL_US: i64 = 1_700_000_000_000_000;
pub const BOOT_ID: &str = "0f0e0d0c-0b0a-4908-8706-050403020100";
pub const NODE: &str = "node-a";
/// The node and the boot that rows are of, when it is not the one above.
static WHO: OnceLock<(String, String)> = OnceLock::new();

/// From now on rows are of this node, for good; its boot is told from other nodes' by its name.
pub fn be(node: &str) {
    let mut boot = node.bytes().fold(String::new(), |hex, b| format!("{hex}{b:02x}"));
    boot.truncate(12);
    WHO.set((node.to_owned(), format!("{}{boot:0>12}", &BOOT_ID[..24]))).expect("once");
}

fn node() -> &'static str {
    WHO.get().map_or(NODE, |(node, _)| node)
}

pub fn boot_id() -> &'static str {
    WHO.get().map_or(BOOT_ID, |(_, boot_id)| boot_id)
}

/// wall − monotonic of the made-up machine.
const OFFSET_US: i64 = KILL_US - 5_000_000_000;

pub const POD: i64 = 4100;
pub const KILLED: i64 = 4200;
pub const QUIET: i64 = 4300;
pub const SLICE: i64 = 4000;

pub const POD_PATH: &str = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7a.slice";
const LIMIT: i64 = 64 << 20;

#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    Int(i64),
    Text(String),
}

pub type Row = BTreeMap<&'static str, Cell>;

pub fn int(v: i64) -> Cell {
    Cell::Int(v)
}

pub fn text(v: impl Into<String>) -> Cell {
    Cell::Text(v.into())
}

/// Rows of named cells as a batch of the table's schema; a cell that is not named is NULL.
pub fn batch(table: Table, rows: &[Row]) -> RecordBatch {
    let schema = schema::of(table);
    for row in rows {
        for name in row.keys() {
            assert!(schema.column_with_name(name).is_some(), "{} has no column {name}", table.as_str());
        }
    }
    let columns: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .map(|f| {
            let ints = || {
                rows.iter().map(|r| match r.get(f.name().as_str()) {
                    Some(Cell::Int(v)) => Some(*v),
                    Some(Cell::Text(t)) => panic!("{} is an integer, not {t:?}", f.name()),
                    None => None,
                })
            };
            match f.data_type() {
                DataType::Timestamp(_, _) => {
                    Arc::new(ints().collect::<TimestampMicrosecondArray>().with_timezone("UTC")) as ArrayRef
                }
                DataType::Int64 => Arc::new(ints().collect::<Int64Array>()),
                _ => {
                    let mut b = StringDictionaryBuilder::<Int32Type>::new();
                    for r in rows {
                        b.append_option(match r.get(f.name().as_str()) {
                            Some(Cell::Text(t)) => Some(t.as_str()),
                            Some(Cell::Int(v)) => panic!("{} is text, not {v}", f.name()),
                            None => None,
                        });
                    }
                    Arc::new(b.finish())
                }
            }
        })
        .collect();
    RecordBatch::try_new(schema, columns).expect("rows fit the schema")
}

pub fn container_id(cgroup_id: i64) -> String {
    format!("{cgroup_id:064x}")
}

/// The common columns of a cgroup at an instant.
pub fn row_of(cgroup_id: i64, ts_us: i64) -> Row {
    let mut row = Row::from([
        ("ts", int(ts_us)),
        ("ktime_ns", int((ts_us - OFFSET_US) * 1000)),
        ("cluster", text("test")),
        ("node", text(node())),
        ("boot_id", text(boot_id())),
        ("cgroup_id", int(cgroup_id)),
    ]);
    let (scope, parent, path) = match cgroup_id {
        SLICE => ("other", 1, "/kubepods.slice/kubepods-burstable.slice".to_owned()),
        POD => ("pod", SLICE, POD_PATH.to_owned()),
        id => ("container", POD, format!("{POD_PATH}/cri-containerd-{}.scope", container_id(id))),
    };
    row.extend([("scope", text(scope)), ("parent_cgroup_id", int(parent)), ("cgroup_path", text(path))]);
    if cgroup_id != SLICE {
        row.extend([
            ("pod_uid", text("7a000000-0000-4000-8000-000000000001")),
            ("qos", text("Burstable")),
            ("namespace", text("shop")),
            ("pod", text("cart-0")),
        ]);
    }
    if !matches!(cgroup_id, SLICE | POD) {
        row.insert("container_id", text(container_id(cgroup_id)));
        row.insert("container", text(if cgroup_id == KILLED { "cart" } else { "sidecar" }));
    }
    row
}

fn memory_at(cgroup_id: i64, ts_us: i64) -> i64 {
    let before_s = (KILL_US - ts_us) / 1_000_000;
    match cgroup_id {
        QUIET => 8 << 20,
        _ if ts_us > KILL_US => 4 << 20,
        _ => (LIMIT - before_s * (1 << 19)).max(4 << 20),
    }
}

/// One base sample.
pub fn base(cgroup_id: i64, ts_us: i64) -> Row {
    let mut row = row_of(cgroup_id, ts_us);
    let memory = memory_at(cgroup_id, ts_us);
    row.extend([
        ("cause", text("base")),
        ("period_ms", int(1000)),
        ("files_read", int(0xff)),
        ("memory_current", int(memory)),
        ("memory_stat_anon", int(memory * 9 / 10)),
        ("cpu_stat_usage_usec", int((ts_us - OFFSET_US) / 10)),
        ("memory_pressure_some_total_usec", int((ts_us - OFFSET_US) / 100)),
        ("pids_current", int(3)),
    ]);
    if ts_us % 10_000_000 == 0 {
        row.insert("memory_max", int(LIMIT));
    }
    row
}

fn fast(cgroup_id: i64, ts_us: i64, cause: &str) -> Row {
    let mut row = row_of(cgroup_id, ts_us);
    row.extend([
        ("cause", text(cause)),
        ("period_ms", int(50)),
        ("burst_id", text(incident_id())),
        ("files_read", int(1)),
        ("memory_current", int(memory_at(cgroup_id, ts_us))),
    ]);
    row
}

pub fn incident_id() -> String {
    format!("{}-{}-{}", node(), boot_id(), (KILL_US - OFFSET_US) * 1000)
}

/// Two minutes before the kill to ten seconds after it.
pub fn samples() -> Vec<Row> {
    let mut rows = Vec::new();
    for s in -120..=10 {
        for cgroup in [SLICE, POD, KILLED, QUIET] {
            rows.push(base(cgroup, KILL_US + s * 1_000_000 + 7));
        }
    }
    for cgroup in [KILLED, POD] {
        rows.extend((1..=600).map(|i| fast(cgroup, KILL_US - i * 50_000, "history")));
        rows.extend((1..=200).map(|i| fast(cgroup, KILL_US + i * 50_000, "burst")));
    }
    rows
}

pub fn events() -> Vec<Row> {
    let mut start = row_of(KILLED, KILL_US - 119_000_000);
    start.extend([
        ("event_id", text("e1")),
        ("kind", text("cgroup_start")),
        ("severity", text("info")),
        ("source", text("tp_btf/cgroup_mkdir")),
        ("detail", text("{}")),
    ]);
    let mut kill = row_of(KILLED, KILL_US);
    kill.extend([
        ("event_id", text("e2")),
        ("kind", text("oom_kill")),
        ("severity", text("critical")),
        ("source", text("tp_btf/mark_victim")),
        ("pid", int(4242)),
        ("comm", text(ODD_COMM)),
        ("detail", text(r#"{"anon_bytes":66000000}"#)),
    ]);
    let mut other = row_of(QUIET, KILL_US + 1);
    other.extend([("event_id", text("e3")), ("kind", text("exit")), ("severity", text("info"))]);
    vec![start, kill, other]
}

/// A comm as the kernel may hold one.
pub const ODD_COMM: &str = "a</script>\u{1}\u{fffd}\"";

pub fn processes() -> Vec<Row> {
    [(4242, ODD_COMM, 60 << 20), (4201, "init", 1 << 20)]
        .into_iter()
        .map(|(pid, comm, rss)| {
            let mut row = row_of(KILLED, KILL_US - 40_000);
            row.extend([
                ("pid", int(pid)),
                ("comm", text(comm)),
                ("state", text("R")),
                ("rss_bytes", int(rss)),
                ("is_init", int(i64::from(pid == 4201))),
            ]);
            row
        })
        .collect()
}

pub fn incident(revision: u32) -> Incident {
    Incident {
        id: incident_id(),
        revision,
        kind: "oom_kill".into(),
        severity: "critical".into(),
        closed: revision > 1,
        ts_us: KILL_US,
        ktime_ns: u64::try_from((KILL_US - OFFSET_US) * 1000).expect("positive"),
        node: node().into(),
        boot_id: boot_id().into(),
        scope: "container".into(),
        cgroup_id: u64::try_from(KILLED).ok(),
        cgroup_path: Some(format!("{POD_PATH}/cri-containerd-{}.scope", container_id(KILLED))),
        container_id: Some(container_id(KILLED)),
        namespace: Some("shop".into()),
        labels: Some(BTreeMap::from([("app".to_owned(), "cart".to_owned())])),
        pod_uid: Some("7a000000-0000-4000-8000-000000000001".into()),
        victims: vec![Victim {
            pid: Some(4242),
            comm: Some(ODD_COMM.into()),
            cgroup_id: u64::try_from(KILLED).ok(),
            ..Victim::default()
        }],
        trigger: Some(Trigger { pid: Some(4243), comm: Some("hog".into()), ..Trigger::default() }),
        limit: Some(LimitHit {
            cgroup_id: u64::try_from(KILLED).ok(),
            max_bytes: u64::try_from(LIMIT).ok(),
            source: "fentry".into(),
            ..LimitHit::default()
        }),
        window: Window { from_us: KILL_US - 30_000_000, to_us: KILL_US + 10_000_000 },
        history_s: Some(30.0),
        events: vec!["e2".into()],
        summary: format!("revision {revision}: {ODD_COMM} was killed"),
        ..Incident::default()
    }
}

pub fn incident_row(incident: &Incident) -> Row {
    let mut row = row_of(KILLED, incident.ts_us);
    row.extend([
        ("id", text(&incident.id)),
        ("revision", int(i64::from(incident.revision))),
        ("kind", text(&incident.kind)),
        ("severity", text(&incident.severity)),
        ("summary", text(&incident.summary)),
        ("json", text(serde_json::to_string(incident).expect("serialises"))),
    ]);
    row
}

/// The tables that come from no test's cells, since one has a map: of the container and of the node.
fn sampled() -> Pending {
    let path = format!("{POD_PATH}/cri-containerd-{}.scope", container_id(KILLED));
    let (id, parent_id) = (CgroupId::from_i64(KILLED), Some(CgroupId::from_i64(POD)));
    let meta = Arc::new(Meta { id, parent_id, identity: identify(&path), path });
    let mut pending = Pending::default();
    for n in 0..20 {
        let wall_us = KILL_US - 1_000_000 * n;
        let at = Stamp { ktime_ns: (wall_us - OFFSET_US).unsigned_abs() * 1000, wall_us };
        let value = |file, key, sub, v| (Arc::new(metric(file, key, sub)), v);
        let mut of_one = vec![
            value("memory.numa_stat", "anon", "N0", 4096.0),
            value("memory.numa_stat", "anon", "N1", 0.0),
            value("hugetlb.2MB.max", "", "", f64::NAN),
            value("cpu.uclamp.min", "", "", 12.5),
        ];
        pending.metrics.commit(at, Some(&meta), &mut of_one);
        pending.metrics.commit(at, None, &mut vec![value("fgm_cpu_nanoseconds_total", "", "", 7e9)]);
        for (number, name) in [("8:0", Some("sda".into())), ("8:16", None)] {
            let device = Device {
                number: number.into(),
                name,
                values: [Some(n.unsigned_abs()), None, Some(1), None, None, None],
            };
            pending.devices.push((at, meta.clone(), device));
        }
        pending.node.push((at, vec![Some(n.unsigned_abs()); fgm::catalogue::node::columns().count()]));
    }
    pending
}

/// Everything, as the pipeline would seal it.
pub fn all() -> Vec<(Table, RecordBatch)> {
    let sampled = sampled();
    let names = NodeNames { cluster: Some("test".into()), node: node().into(), boot_id: boot_id().into() };
    let of = |table| (table, sampled.batch(table, &names).expect("a batch"));
    vec![
        of(Table::Metrics),
        of(Table::IoDevices),
        of(Table::Node),
        (Table::Samples, batch(Table::Samples, &samples())),
        (Table::Events, batch(Table::Events, &events())),
        (Table::Processes, batch(Table::Processes, &processes())),
        (
            Table::Incidents,
            batch(Table::Incidents, &[incident_row(&incident(1)), incident_row(&incident(2))]),
        ),
    ]
}

/// The account of these rows, as one row a table.
pub fn ledger_of(all: &[(Table, RecordBatch)], at: i64) -> (Table, RecordBatch) {
    let mut account = Accounts::default();
    for (table, rows) in all {
        account.written(*table, rows.num_rows() as u64);
    }
    (Table::Ledger, told_by(&account, at))
}

/// An account as rows of the table `ledger`.
pub fn told_by(account: &Accounts, at: i64) -> RecordBatch {
    let ledger = account.rows(Stamp { ktime_ns: at.unsigned_abs(), wall_us: at });
    let names = NodeNames { cluster: None, node: node().into(), boot_id: boot_id().into() };
    Pending { ledger, ..Pending::default() }.batch(Table::Ledger, &names).expect("a batch")
}

pub fn metadata() -> Vec<(String, String)> {
    [
        ("fgm.node", node()),
        ("fgm.cluster", "test"),
        ("fgm.boot_id", boot_id()),
        ("fgm.kernel", "6.12.0-test"),
        ("fgm.ladder", "full"),
        (
            "fgm.hooks",
            r#"[{"event":"oom_kill","hook":"tp_btf/mark_victim","mechanism":"tp_btf","error":null}]"#,
        ),
        ("fgm.base_hz", "1"),
        ("fgm.lane_hz", "20"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .to_vec()
}
