//! Pending rows as Arrow record batches of `schema`. Runs off the sampling thread.

use super::samples::{Header, Samples, Stamp};
use super::{Device, LedgerRow, Metrics, NodeNames, NodeRow, Process};
use crate::catalogue::{COLUMNS, node};
use crate::cgroup::Meta;
use crate::event::Event;
use crate::incident::Incident;
use crate::names::{CgroupId, Scope, Table};
use crate::pods::Revision;
use crate::recorder::MASK_WORDS;
use crate::schema;
use arrow::array::{
    Array as _, ArrayRef, Float64Array, Int64Array, Int64Builder, MapBuilder, MapFieldNames, RecordBatch,
    StringBuilder, StringDictionaryBuilder, TimestampMicrosecondBuilder,
};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::datatypes::Int32Type;
use arrow::error::ArrowError;
use std::sync::{Arc, OnceLock};

/// The longest column of zeros that is kept as such.
const MOST_ZEROS: usize = 1 << 17;

/// With room for what will come and no more: a batch is made of each second and kept until the rotation, and what a builder
/// takes by default, a thousand rows, or twice what it needs, would be kept with it.
fn text<'a>(values: impl Iterator<Item = Option<&'a str>> + Clone) -> ArrayRef {
    // rows of a cgroup stand together
    let (mut before, mut count, mut bytes) = ("", 0, 0);
    for v in values.clone().flatten() {
        if count == 0 || v != before {
            (before, count, bytes) = (v, count + 1, bytes + v.len());
        }
    }
    words(values, count, bytes)
}

fn owned(values: impl Iterator<Item = Option<String>>) -> ArrayRef {
    words(values, 1, 16)
}

fn words<T: AsRef<str>>(values: impl Iterator<Item = Option<T>>, count: usize, bytes: usize) -> ArrayRef {
    let mut b = StringDictionaryBuilder::<Int32Type>::with_capacity(values.size_hint().0, count, bytes);
    for v in values {
        b.append_option(v);
    }
    Arc::new(b.finish())
}

fn int<T: TryInto<i64>>(values: impl Iterator<Item = Option<T>>) -> ArrayRef {
    let mut b = Int64Builder::with_capacity(values.size_hint().0);
    for v in values {
        // a value past 2^63 has no place in the column: NULL rather than a wrong number
        b.append_option(v.and_then(|v| v.try_into().ok()));
    }
    light(b.finish())
}

/// Most numbers of most containers are 0 or not there: columns of nothing else share their zeros.
fn light(array: Int64Array) -> ArrayRef {
    let rows = array.len();
    if rows > MOST_ZEROS || array.values().iter().any(|v| *v != 0) {
        return Arc::new(array);
    }
    // pages that nobody writes take no memory
    static ZEROS: OnceLock<Buffer> = OnceLock::new();
    let zeros = ZEROS.get_or_init(|| Buffer::from_vec(vec![0i64; MOST_ZEROS]));
    Arc::new(Int64Array::new(ScalarBuffer::new(zeros.clone(), 0, rows), array.nulls().cloned()))
}

/// The common columns, in the order of `schema::common`, of rows of (instant, cgroup).
fn common(rows: &[(Stamp, Option<&Meta>)], names: &NodeNames) -> Vec<ArrayRef> {
    let mut ts = TimestampMicrosecondBuilder::new().with_timezone("UTC");
    for (at, _) in rows {
        ts.append_value(at.wall_us);
    }
    let n = rows.len();
    let metas = || rows.iter().map(|(_, m)| *m);
    vec![
        Arc::new(ts.finish()),
        int(rows.iter().map(|(at, _)| Some(at.ktime_ns))),
        text(std::iter::repeat_n(names.cluster.as_deref(), n)),
        text(std::iter::repeat_n(Some(names.node.as_str()), n)),
        text(std::iter::repeat_n(Some(names.boot_id.as_str()), n)),
        text(metas().map(|m| m.map(|m| m.identity.scope.as_str()))),
        text(metas().map(|m| m?.identity.pod_uid.as_deref())),
        text(metas().map(|m| m?.identity.container_id.as_deref())),
        text(metas().map(|m| Some(m?.identity.qos?.as_str()))),
        int(metas().map(|m| m.map(|m| m.id.as_i64()))),
        int(metas().map(|m| Some(m?.parent_id?.as_i64()))),
        text(metas().map(|m| m.map(|m| m.path.as_str()))),
        // names are filled in when they are known (`pods`)
        text(std::iter::repeat_n(None, n)),
        text(std::iter::repeat_n(None, n)),
        text(std::iter::repeat_n(None, n)),
    ]
}

fn batch(table: Table, columns: Vec<ArrayRef>) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_new(schema::of(table), columns)
}

pub(super) fn samples(samples: &Samples, names: &NodeNames) -> Result<RecordBatch, ArrowError> {
    let mut order: Vec<&Header> = samples.headers.iter().collect();
    let meta = |h: &Header| &samples.metas[h.meta as usize];
    order.sort_by_key(|h| (meta(h).id.as_i64(), h.at.wall_us, h.at.ktime_ns));
    let rows: Vec<_> = order.iter().map(|h| (h.at, Some(&**meta(h)))).collect();
    let mut columns = common(&rows, names);
    columns.push(text(order.iter().map(|h| Some(h.cause.as_str()))));
    columns.push(int(order.iter().map(|h| Some(h.period_ms))));
    columns.push(text(order.iter().map(|h| Some(samples.bursts[h.burst? as usize].as_str()))));
    columns.push(int(order.iter().map(|h| Some(h.files_read))));
    // A packed row has its values in the order of the columns: one place in each row moves on with them.
    let mut places: Vec<usize> = order.iter().map(|h| h.start).collect();
    let mut any = [0u64; MASK_WORDS];
    for h in &order {
        any.iter_mut().zip(h.mask).for_each(|(any, word)| *any |= word);
    }
    for column in 0..COLUMNS {
        let (word, bit) = (column / 64, column % 64);
        if any[word] >> bit & 1 == 0 {
            columns.push(light(Int64Array::new_null(order.len())));
            continue;
        }
        columns.push(int(order.iter().zip(&mut places).map(|(h, place)| {
            let is_set = h.mask[word] >> bit & 1 == 1;
            let value = is_set.then(|| samples.values.get(*place).copied()).flatten();
            *place += usize::from(is_set);
            value
        })));
    }
    batch(Table::Samples, columns)
}

pub(super) fn events(
    rows: &[(Event, Option<Arc<Meta>>)],
    names: &NodeNames,
) -> Result<RecordBatch, ArrowError> {
    let stamps: Vec<_> =
        rows.iter().map(|(e, m)| (Stamp { ktime_ns: e.ktime_ns, wall_us: e.ts_us }, m.as_deref())).collect();
    let mut columns = common(&stamps, names);
    // the event's own cgroup stands even where no container of ours is known for it
    columns[9] =
        int(rows.iter().map(|(e, m)| e.cgroup_id.or(m.as_ref().map(|m| m.id)).map(CgroupId::as_i64)));
    columns.extend([
        text(rows.iter().map(|(e, _)| Some(e.event_id.as_str()))),
        text(rows.iter().map(|(e, _)| Some(e.kind.as_str()))),
        text(rows.iter().map(|(e, _)| Some(e.severity.as_str()))),
        text(rows.iter().map(|(e, _)| Some(e.source))),
        int(rows.iter().map(|(e, _)| e.pid)),
        text(rows.iter().map(|(e, _)| e.comm.as_deref())),
        int(rows.iter().map(|(e, _)| e.exit_code)),
        int(rows.iter().map(|(e, _)| e.signal)),
        owned(rows.iter().map(|(e, _)| Some(e.detail.to_string()))),
    ]);
    batch(Table::Events, columns)
}

fn json<T: serde::Serialize>(value: &T) -> Option<String> {
    serde_json::to_string(value).ok().filter(|t| t != "null")
}

/// A number of milliseconds as whole microseconds.
#[expect(clippy::cast_possible_truncation, reason = "years of microseconds fit")]
fn usec(ms: f64) -> i64 {
    (ms * 1000.0).round() as i64
}

pub(super) fn incidents(rows: &[Incident], names: &NodeNames) -> Result<RecordBatch, ArrowError> {
    let stamps: Vec<_> =
        rows.iter().map(|i| (Stamp { ktime_ns: i.ktime_ns, wall_us: i.ts_us }, None)).collect();
    let mut columns = common(&stamps, names);
    columns[5] = text(rows.iter().map(|i| Some(i.scope.as_str())));
    columns[6] = text(rows.iter().map(|i| i.pod_uid.as_deref()));
    columns[7] = text(rows.iter().map(|i| i.container_id.as_deref()));
    columns[8] = text(rows.iter().map(|i| i.qos.as_deref()));
    columns[9] = int(rows.iter().map(|i| i.cgroup_id));
    columns[11] = text(rows.iter().map(|i| i.cgroup_path.as_deref()));
    columns[12] = text(rows.iter().map(|i| i.namespace.as_deref()));
    columns[13] = text(rows.iter().map(|i| i.pod.as_deref()));
    columns[14] = text(rows.iter().map(|i| i.container.as_deref()));
    columns.extend([
        text(rows.iter().map(|i| Some(i.id.as_str()))),
        int(rows.iter().map(|i| Some(i.revision))),
        text(rows.iter().map(|i| Some(i.kind.as_str()))),
        text(rows.iter().map(|i| Some(i.severity.as_str()))),
        owned(rows.iter().map(|i| json(&i.victims))),
        owned(rows.iter().map(|i| json(&i.trigger))),
        owned(rows.iter().map(|i| json(&i.limit))),
        owned(rows.iter().map(|i| json(&i.killer))),
        owned(rows.iter().map(|i| json(&i.exit))),
        owned(rows.iter().map(|i| json(&i.kubernetes))),
        owned(rows.iter().map(|i| json(&i.labels))),
        owned(rows.iter().map(|i| json(&i.events))),
        owned(rows.iter().map(|i| json(&i.lost))),
        int(rows.iter().map(|i| Some(i.window.from_us))),
        int(rows.iter().map(|i| Some(i.window.to_us))),
        int(rows.iter().map(|i| i.history_s.map(|s| usec(s * 1000.0)))),
        int(rows.iter().map(|i| i.last_sample_before_ms.map(usec))),
        int(rows.iter().map(|i| i.first_burst_after_ms.map(usec))),
        text(rows.iter().map(|i| Some(i.summary.as_str()))),
        owned(rows.iter().map(json)),
    ]);
    batch(Table::Incidents, columns)
}

pub(super) fn processes(
    rows: &[(Stamp, Arc<Meta>, Process)],
    names: &NodeNames,
) -> Result<RecordBatch, ArrowError> {
    let stamps: Vec<_> = rows.iter().map(|(at, m, _)| (*at, Some(&**m))).collect();
    let mut columns = common(&stamps, names);
    let of = |get: fn(&Process) -> Option<u64>| int(rows.iter().map(move |(_, _, p)| get(p)));
    columns.extend([
        int(rows.iter().map(|(_, _, p)| Some(p.pid))),
        text(rows.iter().map(|(_, _, p)| Some(p.comm.as_str()))),
        owned(rows.iter().map(|(_, _, p)| p.state.map(String::from))),
        of(|p| p.rss_bytes),
        of(|p| p.anon_bytes),
        of(|p| p.file_bytes),
        of(|p| p.shmem_bytes),
        of(|p| p.swap_bytes),
        of(|p| p.threads),
        of(|p| p.fds),
        of(|p| p.cpu_usec),
        int(rows.iter().map(|(_, _, p)| p.oom_score)),
        int(rows.iter().map(|(_, _, p)| p.oom_score_adj)),
        int(rows.iter().map(|(_, _, p)| Some(i64::from(p.is_init)))),
    ]);
    batch(Table::Processes, columns)
}

pub(super) fn devices(
    rows: &[(Stamp, Arc<Meta>, Device)],
    names: &NodeNames,
) -> Result<RecordBatch, ArrowError> {
    let stamps: Vec<_> = rows.iter().map(|(at, m, _)| (*at, Some(&**m))).collect();
    let mut columns = common(&stamps, names);
    columns.push(text(rows.iter().map(|(_, _, d)| Some(&*d.number))));
    columns.push(text(rows.iter().map(|(_, _, d)| d.name.as_deref())));
    columns.extend(
        (0..crate::catalogue::DEVICE_KEYS.len()).map(|i| int(rows.iter().map(|(_, _, d)| d.values[i]))),
    );
    batch(Table::IoDevices, columns)
}

/// The common columns of rows of the node as a whole.
fn of_node(stamps: &[(Stamp, Option<&Meta>)], names: &NodeNames) -> Vec<ArrayRef> {
    let mut columns = common(stamps, names);
    let scope = |meta: Option<&Meta>| meta.map_or(Scope::Node, |m| m.identity.scope);
    columns[5] = text(stamps.iter().map(|(_, m)| Some(scope(*m).as_str())));
    columns
}

/// One map a row, of what stands in the maps of `rows`.
fn maps<'a>(
    rows: impl Iterator<Item = impl Iterator<Item = (&'a String, &'a String)>>,
) -> Result<ArrayRef, ArrowError> {
    let [entry, key, value] = ["key_value", "key", "value"].map(str::to_owned);
    let mut maps = MapBuilder::new(
        Some(MapFieldNames { entry, key, value }),
        StringBuilder::with_capacity(0, 0),
        StringBuilder::with_capacity(0, 0),
    );
    for row in rows {
        for (key, value) in row {
            maps.keys().append_value(key);
            maps.values().append_value(value);
        }
        maps.append(true)?;
    }
    Ok(Arc::new(maps.finish()))
}

pub(super) fn containers(rows: &[(Stamp, Revision)], names: &NodeNames) -> Result<RecordBatch, ArrowError> {
    let stamps: Vec<_> = rows.iter().map(|(at, _)| (*at, None)).collect();
    let mut columns = common(&stamps, names);
    let of = || rows.iter().map(|(_, r)| r);
    let scope = |r: &Revision| if r.id().is_some() { Scope::Container } else { Scope::Pod }.as_str();
    columns[5] = text(of().map(|r| Some(scope(r))));
    columns[6] = text(of().map(|r| Some(r.pod_uid())));
    columns[7] = text(of().map(Revision::id));
    columns[8] = text(of().map(|r| r.pod.qos.as_deref()));
    columns[12] = text(of().map(|r| Some(&*r.pod.namespace)));
    columns[13] = text(of().map(|r| Some(&*r.pod.name)));
    columns[14] = text(of().map(|r| Some(&*r.container()?.name)));
    let owner = |r: &'_ Revision| r.pod.owner.clone();
    columns.extend([
        maps(of().map(|r| r.pod.labels.iter()))?,
        owned(of().map(|r| Some(owner(r)?.kind))),
        owned(of().map(|r| Some(owner(r)?.name))),
        text(of().map(|r| r.container()?.image.as_deref())),
        text(of().map(|r| r.container()?.cpu_limit.as_deref())),
        text(of().map(|r| r.container()?.memory_limit.as_deref())),
        int(of().map(|r| r.ended().map(|e| e.restart_count).or(Some(r.container()?.restart_count)))),
        text(of().map(|r| r.ended()?.reason.as_deref())),
        int(of().map(|r| Some(r.ended()?.exit_code))),
        text(of().map(|r| r.ended()?.next_container_id.as_deref())),
    ]);
    batch(Table::Containers, columns)
}

pub(super) fn metrics(rows: &Metrics, names: &NodeNames) -> Result<RecordBatch, ArrowError> {
    let mut stamps = Vec::with_capacity(rows.len());
    for head in &rows.heads {
        stamps.resize(head.end, (head.at, head.meta.as_deref()));
    }
    let mut columns = of_node(&stamps, names);
    let values = rows.values.iter().map(|(_, v)| Some(*v).filter(|v| !v.is_nan()));
    columns.extend([
        text(rows.values.iter().map(|(m, _)| Some(m.name.as_str()))),
        text(rows.values.iter().map(|(m, _)| m.kind)),
        maps(rows.values.iter().map(|(m, _)| m.labels.iter().map(|(k, v)| (k, v))))?,
        Arc::new(values.collect::<Float64Array>()),
    ]);
    batch(Table::Metrics, columns)
}

pub(super) fn node(rows: &[NodeRow], names: &NodeNames) -> Result<RecordBatch, ArrowError> {
    let stamps: Vec<_> = rows.iter().map(|(at, _)| (*at, None)).collect();
    let mut columns = of_node(&stamps, names);
    columns.extend(node::columns().map(|(i, ..)| int(rows.iter().map(|(_, v)| v.get(i).copied().flatten()))));
    batch(Table::Node, columns)
}

pub(super) fn ledger(rows: &[LedgerRow], names: &NodeNames) -> Result<RecordBatch, ArrowError> {
    let stamps: Vec<_> = rows.iter().map(|r| (r.stamp, None)).collect();
    let mut columns = common(&stamps, names);
    let lost = |r: &LedgerRow| r.lost_by_reason.values().sum::<i64>();
    columns.extend([
        text(rows.iter().map(|r| Some(r.of_table.as_str()))),
        int(rows.iter().map(|r| Some(r.due))),
        int(rows.iter().map(|r| Some(r.written))),
        int(rows.iter().map(|r| Some(lost(r)))),
        owned(rows.iter().map(|r| json(&r.lost_by_reason))),
    ]);
    batch(Table::Ledger, columns)
}
