//! The report of a selection: whole where that is no more than [`MAX_REPORT_BYTES`], else the rows that `thin` keeps.
//!
//! Memory does not grow with the rows: which of them stay is told by the columns that are drawn, a slice at a time, and all
//! columns are read of those rows alone. Says what it left out. Called by `export`.

use super::choose::Found;
use super::document::Document;
use super::encode::{Sink, Way};
use super::thin::{self, MAX_REPORT_BYTES, ROWS_OF_BUCKET};
use super::{Failure, MAX_BYTES, NARROW, Problem, sha256};
use crate::names::Table;
use crate::query::{self, RowKey};
use crate::{report, schema};
use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use serde_json::json;
use std::collections::HashSet;

/// Up to so many values (rows × columns) the whole is encoded although it does not fit, for its hash: a second or two.
const HASHED_VALUES: u64 = 5_000_000;
/// A value of thinned rows takes about half a byte. Only how coarse the first try is depends on it.
const VALUES_OF_BYTE: usize = 2;

/// What an export of the same selection as Parquet would be.
enum Whole {
    Fits(Vec<u8>),
    TooLarge(Option<Told>),
}

struct Told {
    bytes: usize,
    sha256: String,
}

pub fn report(way: &Way<'_>, mut document: Document, now_us: i64, found: &Found) -> Result<Vec<u8>, Failure> {
    let beside =
        report::TEMPLATE.len() + document.metadata().iter().map(|(_, v)| v.len()).sum::<usize>() + 1000;
    let room = MAX_REPORT_BYTES.saturating_sub(beside) / 4 * 3;
    let embedded = match whole(way, &document, room)? {
        Whole::Fits(bytes) => bytes,
        Whole::TooLarge(_) if room < MAX_REPORT_BYTES / 8 => {
            let narrow = "a shorter range, or format=parquet, which has no such limit";
            let (limit, asked) = (MAX_REPORT_BYTES as u64, (beside + room + 1) as u64);
            return Err(Problem::too_large("bytes of a report", limit, asked.max(limit + 1), narrow).into());
        }
        Whole::TooLarge(told) => thinned(way, &mut document, room, found, told.as_ref())?,
    };
    let data = document.into_report(now_us, &sha256(&embedded));
    Ok(report::render(report::TEMPLATE, &data, &embedded).map_err(Problem::internal)?)
}

fn columns(way: &Way<'_>) -> usize {
    way.columns.map_or_else(|| schema::of(Table::Samples).fields().len(), <[_]>::len)
}

fn whole(way: &Way<'_>, document: &Document, room: usize) -> Result<Whole, Failure> {
    let is_hashed = way.plan.rows.saturating_mul(columns(way) as u64) <= HASHED_VALUES;
    let mut sink = Sink::memory(if is_hashed { MAX_BYTES } else { room as u64 });
    match way.parquet(&document.metadata(), &mut sink) {
        Err(_) if sink.is_over() => Ok(Whole::TooLarge(None)),
        Err(e) => Err(e),
        Ok(()) => {
            let bytes = sink.into_bytes();
            if bytes.len() <= room {
                return Ok(Whole::Fits(bytes));
            }
            Ok(Whole::TooLarge(Some(Told { bytes: bytes.len(), sha256: sha256(&bytes) })))
        }
    }
}

/// As many rows as there is room for, or somewhat fewer.
fn thinned(
    way: &Way<'_>,
    document: &mut Document,
    room: usize,
    found: &Found,
    whole: Option<&Told>,
) -> Result<Vec<u8>, Failure> {
    let rows = way.plan.rows;
    let span_us = found.filter.to_us.saturating_sub(found.filter.from_us).max(1);
    let wanted = match whole {
        Some(told) => u128::from(rows) * room as u128 / told.bytes.max(1) as u128,
        None => (room * VALUES_OF_BYTE / columns(way).max(1)) as u128,
    };
    let buckets = (wanted / u128::from(ROWS_OF_BUCKET * way.plan.keys().len().max(1) as u64)).max(1);
    let mut bucket_us = (span_us / i64::try_from(buckets).unwrap_or(i64::MAX)).max(1000);
    let event_us = found.incident.as_ref().map(|i| i.ts_us);
    let mut kept = decided(way, bucket_us, event_us)?;
    loop {
        let plan = way.plan.only(&keys(&kept))?;
        let how = json!({
            "bucket_us": bucket_us,
            "rows_of": rows,
            "full_sha256": whole.map(|told| &told.sha256),
            "full_bytes": whole.map(|told| told.bytes),
        });
        document.thinned(plan.rows, how);
        let mut sink = Sink::memory(MAX_BYTES);
        Way { plan: &plan, ..*way }.parquet(&document.metadata(), &mut sink)?;
        let bytes = sink.into_bytes();
        if bytes.len() <= room {
            return Ok(bytes);
        }
        if bucket_us > span_us.saturating_mul(2) {
            let asked = bytes.len() as u64;
            return Err(Problem::too_large("bytes of a report", room as u64, asked, NARROW).into());
        }
        let tenths = i64::try_from(bytes.len() * 11 / room.max(1)).unwrap_or(i64::MAX).max(15);
        bucket_us = (bucket_us.saturating_mul(tenths) / 10).saturating_add(1);
        // The peaks of a longer bucket are among those of the shorter ones.
        kept = thin::thin(&kept, bucket_us, event_us).map_err(Problem::internal)?;
    }
}

/// The rows that stay, by their keys and what decides it.
fn decided(way: &Way<'_>, bucket_us: i64, event_us: Option<i64>) -> Result<RecordBatch, Failure> {
    let columns = thin::columns();
    let mut kept = Vec::new();
    for rows in way.plan.slices(Some(&columns))? {
        (way.go_on)()?;
        kept.push(thin::thin(&rows?, bucket_us, event_us).map_err(Problem::internal)?);
    }
    let schema = way.plan.schema(Some(&columns))?;
    Ok(concat_batches(&schema, &kept).map_err(Problem::internal)?)
}

fn keys(rows: &RecordBatch) -> HashSet<RowKey> {
    let of = |name, row| query::int(rows, name, row);
    (0..rows.num_rows())
        .filter_map(|row| Some((of("cgroup_id", row), of("ts", row)?, of("ktime_ns", row)?)))
        .collect()
}
