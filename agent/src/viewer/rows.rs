//! Record batches as the handlers walk over them: stretches of one cgroup, cells of integer columns, the names of who it is.
//!
//! Reads values that are there; NULL is None. Called by `containers`, `lines` and `live`.

use crate::catalogue;
use crate::export::Named;
use crate::names::{Cause, CgroupId};
use crate::query::{self, Identity, Key};
use crate::segment;
use crate::timeseries::derived::{Cells, Derived};
use arrow::array::{Array, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use serde_json::{Map, Value, json};
use std::ops::Range;

/// The neighbouring rows of one cgroup of one boot; a batch is sorted by (cgroup_id, ts).
pub fn stretches(batch: &RecordBatch) -> Vec<(Key, Range<usize>)> {
    let mut out: Vec<(Key, Range<usize>)> = Vec::new();
    let mut last: Option<(Option<i64>, &str)> = None;
    for row in 0..batch.num_rows() {
        let own =
            (query::int(batch, "cgroup_id", row), query::text(batch, "boot_id", row).unwrap_or_default());
        if let (Some((_, range)), true) = (out.last_mut(), last == Some(own)) {
            range.end = row + 1;
        } else {
            let key = Key { cgroup_id: own.0, boot: segment::boot_of(own.1).into() };
            out.push((key, row..row + 1));
            last = Some(own);
        }
    }
    out
}

/// A column of integers, if the batch has it.
pub fn ints<'a>(batch: &'a RecordBatch, name: &str) -> Option<&'a Int64Array> {
    batch.column_by_name(name)?.as_primitive_opt::<Int64Type>()
}

pub fn int(column: Option<&Int64Array>, row: usize) -> Option<i64> {
    column.filter(|c| c.is_valid(row)).map(|c| c.value(row))
}

/// Instants, causes and periods (1 s where a row does not say) of some rows.
pub fn moments(batch: &RecordBatch, rows: impl Iterator<Item = usize>) -> Vec<(i64, Cause, i64)> {
    let ts = batch.column_by_name("ts").and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
    let periods = ints(batch, "period_ms");
    let cause = |row| match query::text(batch, "cause", row) {
        Some("history") => Cause::History,
        Some("burst") => Cause::Burst,
        _ => Cause::Base,
    };
    let Some(ts) = ts else { return Vec::new() };
    rows.map(|row| (ts.value(row), cause(row), int(periods, row).unwrap_or(1000))).collect()
}

/// The cells of which a derived metric is made, of some rows and their moments.
pub fn cells(
    batch: &RecordBatch,
    derived: &Derived,
    rows: impl Iterator<Item = usize>,
    moments: &[(i64, Cause, i64)],
) -> Vec<Cells> {
    let columns: Vec<_> = derived.parts.iter().map(|part| ints(batch, part)).collect();
    let read = ints(batch, "files_read");
    let bit = catalogue::file(derived.file).map_or(0, |index| 1i64 << index);
    rows.zip(moments)
        .map(|(row, &(t_us, cause, period_ms))| {
            let mut parts = [None; 3];
            #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
            for (part, column) in parts.iter_mut().zip(&columns) {
                *part = int(*column, row).map(|v| v as f64);
            }
            let is_read = int(read, row).is_some_and(|bits| bits & bit != 0);
            Cells { t_us, cause, period_ms, parts, is_read }
        })
        .collect()
}

/// The labels of a row of `metrics`.
pub fn labels(batch: &RecordBatch, row: usize) -> Map<String, Value> {
    let Some(column) = batch.column_by_name("labels").and_then(|c| c.as_map_opt()) else { return Map::new() };
    if column.is_null(row) {
        return Map::new();
    }
    let pairs = column.value(row);
    let (Some(keys), Some(values)) =
        (pairs.column(0).as_string_opt::<i32>(), pairs.column(1).as_string_opt::<i32>())
    else {
        return Map::new();
    };
    let value = |i| if values.is_valid(i) { json!(values.value(i)) } else { Value::Null };
    (0..pairs.len()).map(|i| (keys.value(i).to_owned(), value(i))).collect()
}

/// Who a cgroup is, as every answer says it.
pub fn who(key: &Key, who: &Identity) -> Map<String, Value> {
    let id = |id: i64| CgroupId::from_i64(id).to_string();
    let all = json!({
        "key": Named::of(key).map(|n| n.0),
        "cgroup_id": key.cgroup_id.map(id),
        "boot": &*key.boot,
        "parent_cgroup_id": who.parent_cgroup_id.map(id),
        "cgroup_path": who.cgroup_path,
        "scope": who.scope,
        "container_id": who.container_id,
        "pod_uid": who.pod_uid,
        "qos": who.qos,
        "namespace": who.namespace,
        "pod": who.pod,
        "container": who.container,
    });
    match all {
        Value::Object(all) => all,
        _ => Map::new(),
    }
}
