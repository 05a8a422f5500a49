//! Rows of a table in a time range, out of closed segments, waiting batches and the pipeline's memory alike.
//!
//! Two steps, so that a limit is known before a row is handed out: [`plan`] reads only the keys (cgroup_id, ts) of what
//! the file's time range and the statistics of its row groups leave over, and knows exactly which rows are asked for;
//! [`Plan::chunks`] then reads those rows, some cgroups at a time, sorted by (cgroup_id, ts). What cannot be read is left
//! out and accounted for in [`Plan::lost`]. Never changes a file, never returns a part of what was asked without saying so.
//! Held in memory: the rows of one chunk, which is at least one cgroup's.

mod identity;

pub use identity::{Identity, int, text};

use crate::incident::Lost;
use crate::names::Table;
use crate::schema;
use crate::segment::{self, Segment, SegmentError};
use crate::store::{Pin, View};
use arrow::array::{Array, AsArray, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::file::metadata::{PageIndexPolicy, RowGroupMetaData};
use parquet::file::statistics::Statistics;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of a chunk: beyond it a chunk ends with the cgroup it is at. 16,384 rows of 180 columns are 24 MB.
const CHUNK_ROWS: usize = 16_384;

#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error("{asked} rows of {table} are asked for, the limit is {limit}")]
    TooMany { table: &'static str, asked: u64, limit: u64 },
    #[error("table {table} has no column {column}")]
    NoColumn { table: &'static str, column: String },
    #[error(transparent)]
    Rows(#[from] SegmentError),
    #[error("{} became unreadable while it was read: {reason}", path.display())]
    Vanished { path: PathBuf, reason: String },
}

/// Which rows: a closed time range, and if given one boot and some cgroups.
#[derive(Clone, Debug)]
pub struct Filter {
    pub from_us: i64,
    pub to_us: i64,
    /// Boot id as file names have it: cgroup ids mean nothing across boots.
    pub boot: Option<String>,
    pub cgroups: Option<BTreeSet<i64>>,
}

impl Filter {
    pub fn range(from_us: i64, to_us: i64) -> Self {
        Self { from_us, to_us, boot: None, cgroups: None }
    }

    fn wants(&self, cgroup_id: Option<i64>, ts_us: i64) -> bool {
        (self.from_us..=self.to_us).contains(&ts_us)
            && self.cgroups.as_ref().is_none_or(|set| cgroup_id.is_some_and(|id| set.contains(&id)))
    }

    fn wants_boot(&self, boot: &str) -> bool {
        self.boot.as_deref().is_none_or(|b| b == boot)
    }
}

/// A cgroup of one boot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub cgroup_id: Option<i64>,
    pub boot: Arc<str>,
}

/// Neighbouring rows of one cgroup in one source.
#[derive(Clone, Debug)]
struct Run {
    key: Key,
    source: usize,
    rows: Range<usize>,
}

enum Source {
    File { path: PathBuf, metadata: ArrowReaderMetadata },
    Batch(RecordBatch),
}

/// Which rows a query will return, counted, none of them read yet.
pub struct Plan {
    table: Table,
    sources: Vec<Source>,
    /// Sorted by key, within one by source and place.
    runs: Vec<Run>,
    pub rows: u64,
    pub lost: Vec<Lost>,
    /// The files stay while the plan lives.
    _pin: Pin,
}

/// Finds the rows. An error when they are more than `max_rows`.
pub fn plan(view: &View, table: Table, filter: &Filter, max_rows: u64) -> Result<Plan, QueryError> {
    let lost = view.lost.iter().filter(|l| l.table == table.as_str()).cloned().collect();
    let (sources, runs) = (Vec::new(), Vec::new());
    let mut plan = Plan { table, sources, runs, rows: 0, lost, _pin: view.pin.clone() };
    for segment in &view.segments {
        let is_wanted = segment.table == table
            && segment.overlaps(filter.from_us, filter.to_us)
            && filter.wants_boot(&segment.name.boot);
        if !is_wanted {
            continue;
        }
        let boot: Arc<str> = segment.name.boot.as_str().into();
        let found = open(&segment.path).and_then(|metadata| {
            let mut runs = Vec::new();
            keys_of_file(segment, &metadata, filter, &boot, plan.sources.len(), &mut runs)?;
            Ok((metadata, runs))
        });
        match found {
            Ok((metadata, runs)) => {
                plan.sources.push(Source::File { path: segment.path.clone(), metadata });
                plan.runs.extend(runs);
            }
            Err(reason) => {
                let name = segment.path.file_name().unwrap_or_default().to_string_lossy();
                tracing::error!(path = %segment.path.display(), reason, "left an unreadable segment out of a query");
                let reason = format!("unreadable segment {name}");
                let rows = segment.rows_left();
                plan.lost.push(Lost { table: table.as_str().to_owned(), reason, rows });
            }
        }
    }
    let mut spilled = Vec::new();
    for of_one in view.spilled.iter().filter(|s| s.table == table && filter.wants_boot(&s.boot)) {
        let rows = of_one.read().unwrap_or_else(|error| {
            tracing::error!(%error, "left rows out of a query that are in the journal alone");
            Vec::new()
        });
        let there: u64 = rows.iter().map(|l| l.batch.num_rows() as u64).sum();
        if there < of_one.rows {
            let (table, reason) = (table.as_str().to_owned(), "unreadable journal".to_owned());
            plan.lost.push(Lost { table, reason, rows: of_one.rows - there });
        }
        spilled.extend(rows);
    }
    let loose = view.journaled.iter().chain(&spilled).chain(&view.loose);
    for loose in loose.filter(|l| l.table == table && filter.wants_boot(&l.boot)) {
        let boot: Arc<str> = loose.boot.as_str().into();
        let source = plan.sources.len();
        let keys = segment::conform(table, &loose.batch, &key_schema(table))?;
        keys_of_batch(&keys, 0, filter, &|_| true, &boot, source, &mut plan.runs);
        plan.sources.push(Source::Batch(loose.batch.clone()));
    }
    plan.rows = plan.runs.iter().map(|r| r.rows.len() as u64).sum();
    if plan.rows > max_rows {
        return Err(QueryError::TooMany { table: table.as_str(), asked: plan.rows, limit: max_rows });
    }
    plan.runs.sort_by(|a, b| (&a.key, a.source, a.rows.start).cmp(&(&b.key, b.source, b.rows.start)));
    Ok(plan)
}

fn open(path: &Path) -> Result<ArrowReaderMetadata, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    segment::guarded(|| ArrowReaderMetadata::load(&file, options).map_err(|e| e.to_string()))
}

fn key_schema(table: Table) -> SchemaRef {
    project(table, &["cgroup_id", "ts"])
}

fn project(table: Table, columns: &[&str]) -> SchemaRef {
    let whole = schema::of(table);
    let fields: Vec<_> =
        whole.fields().iter().filter(|f| columns.contains(&f.name().as_str())).cloned().collect();
    Arc::new(Schema::new(fields))
}

/// The schema of the rows that [`Plan::chunks`] gives for these columns.
pub fn projection(table: Table, columns: Option<&[&str]>) -> SchemaRef {
    columns.map_or_else(|| schema::of(table), |names| project(table, names))
}

/// False when the statistics of a row group prove that it holds nothing that is asked for.
fn may_match(group: &RowGroupMetaData, filter: &Filter) -> bool {
    let bounds = |name: &str| {
        let column = group.columns().iter().find(|c| c.column_path().string() == name)?;
        match column.statistics()? {
            Statistics::Int64(s) => Some((*s.min_opt()?, *s.max_opt()?)),
            _ => None,
        }
    };
    if bounds("ts").is_some_and(|(lo, hi)| hi < filter.from_us || lo > filter.to_us) {
        return false;
    }
    match (&filter.cgroups, bounds("cgroup_id")) {
        (Some(set), Some((lo, hi))) => set.range(lo..=hi).next().is_some(),
        _ => true,
    }
}

fn keys_of_file(
    segment: &Segment,
    metadata: &ArrowReaderMetadata,
    filter: &Filter,
    boot: &Arc<str>,
    source: usize,
    runs: &mut Vec<Run>,
) -> Result<(), String> {
    let mut start = 0;
    for (i, group) in metadata.metadata().row_groups().iter().enumerate() {
        let rows = usize::try_from(group.num_rows()).map_err(|e| e.to_string())?;
        if may_match(group, filter) {
            let all = RowSelection::from_consecutive_ranges(std::iter::once(0..rows), rows);
            let mut at = start;
            for batch in read_group(&segment.path, metadata, i, all, &["cgroup_id", "ts"])? {
                keys_of_batch(&batch, at, filter, &|ts| segment.counts(ts), boot, source, runs);
                at += batch.num_rows();
            }
        }
        start += rows;
    }
    Ok(())
}

/// The wanted rows of one row group.
fn read_group(
    path: &Path,
    metadata: &ArrowReaderMetadata,
    group: usize,
    selection: RowSelection,
    columns: &[&str],
) -> Result<Vec<RecordBatch>, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let mask = ProjectionMask::columns(metadata.parquet_schema(), columns.iter().copied());
    segment::guarded(|| {
        ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
            .with_row_groups(vec![group])
            .with_projection(mask)
            .with_row_selection(selection)
            .with_batch_size(CHUNK_ROWS)
            .build()
            .map_err(|e| e.to_string())?
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| e.to_string())
    })
}

fn keys_of_batch(
    batch: &RecordBatch,
    first_row: usize,
    filter: &Filter,
    counts: &dyn Fn(i64) -> bool,
    boot: &Arc<str>,
    source: usize,
    runs: &mut Vec<Run>,
) {
    let ids = batch.column_by_name("cgroup_id").and_then(|c| c.as_primitive_opt::<Int64Type>());
    let ts = batch.column_by_name("ts").and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
    let (Some(ids), Some(ts)) = (ids, ts) else { return };
    for i in 0..batch.num_rows() {
        let cgroup_id = ids.is_valid(i).then(|| ids.value(i));
        if !filter.wants(cgroup_id, ts.value(i)) || !counts(ts.value(i)) {
            continue;
        }
        let row = first_row + i;
        match runs.last_mut() {
            Some(r) if r.source == source && r.rows.end == row && r.key.cgroup_id == cgroup_id => {
                r.rows.end += 1;
            }
            _ => runs.push(Run { key: Key { cgroup_id, boot: boot.clone() }, source, rows: row..row + 1 }),
        }
    }
}

impl Plan {
    /// The cgroups of which there are rows.
    pub fn keys(&self) -> BTreeSet<Key> {
        self.runs.iter().map(|r| r.key.clone()).collect()
    }

    /// Metadata of the newest file in the plan.
    pub fn newest_metadata(&self, key: &str) -> Option<String> {
        self.sources.iter().rev().find_map(|s| match s {
            Source::File { metadata, .. } => {
                segment::metadata_value(metadata.metadata(), key).map(str::to_owned)
            }
            Source::Batch(_) => None,
        })
    }

    /// All rows, chunk after chunk, each sorted by (cgroup_id, ts). `columns` = `None` for the whole table.
    pub fn chunks(
        &self,
        columns: Option<&[&str]>,
    ) -> Result<impl Iterator<Item = Result<RecordBatch, QueryError>>, QueryError> {
        let whole = schema::of(self.table);
        let unknown = columns.unwrap_or_default().iter().find(|n| whole.column_with_name(n).is_none());
        if let Some(name) = unknown {
            return Err(QueryError::NoColumn { table: self.table.as_str(), column: (*name).to_owned() });
        }
        let out = projection(self.table, columns);
        let mut at = 0;
        Ok(std::iter::from_fn(move || {
            let start = at;
            let mut rows = 0;
            while at < self.runs.len() {
                let is_new = at == start || self.runs[at].key != self.runs[at - 1].key;
                if is_new && rows >= CHUNK_ROWS {
                    break;
                }
                rows += self.runs[at].rows.len();
                at += 1;
            }
            (at > start).then(|| self.read(&self.runs[start..at], &out))
        }))
    }

    /// Names and place of each cgroup, from its latest rows; what one row lacks is taken from an earlier one.
    pub fn identities(&self) -> Result<BTreeMap<Key, Identity>, QueryError> {
        // The last row of a cgroup in each source is enough: within one source names do not change.
        let mut last: BTreeMap<(Key, usize), Run> = BTreeMap::new();
        for run in &self.runs {
            let row = run.rows.end - 1;
            last.insert((run.key.clone(), run.source), Run { rows: row..row + 1, ..run.clone() });
        }
        // All at once: a read for each cgroup would decode the same pages hundreds of times over.
        let names: Vec<&str> = Identity::COLUMNS.into_iter().chain(["cgroup_id", "boot_id", "ts"]).collect();
        let out = project(self.table, &names);
        let mut found: BTreeMap<Key, Identity> = BTreeMap::new();
        let runs: Vec<Run> = last.into_values().collect();
        for some in runs.chunks(CHUNK_ROWS) {
            let rows = self.read(some, &out)?;
            for row in 0..rows.num_rows() {
                let boot = segment::boot_of(text(&rows, "boot_id", row).unwrap_or_default()).into();
                let key = Key { cgroup_id: int(&rows, "cgroup_id", row), boot };
                found.entry(key).or_default().lay_over(&rows, row);
            }
        }
        Ok(found)
    }

    fn read(&self, runs: &[Run], out: &SchemaRef) -> Result<RecordBatch, QueryError> {
        let mut by_source: BTreeMap<usize, Vec<Range<usize>>> = BTreeMap::new();
        for run in runs {
            by_source.entry(run.source).or_default().push(run.rows.clone());
        }
        // The sort needs its keys even when they are not asked for.
        let mut names: Vec<&str> = out.fields().iter().map(|f| f.name().as_str()).collect();
        names.extend(["cgroup_id", "ts", "ktime_ns"]);
        let wide = project(self.table, &names);
        let mut pieces = Vec::new();
        for (source, mut ranges) in by_source {
            ranges.sort_by_key(|r| r.start);
            match &self.sources[source] {
                Source::Batch(batch) => {
                    let batch = segment::conform(self.table, batch, &wide)?;
                    let rows = ranges.into_iter().flatten().map(|r| u32::try_from(r).unwrap_or(u32::MAX));
                    let rows = UInt32Array::from_iter_values(rows);
                    let wrap = |source| SegmentError::Rows { table: self.table.as_str(), source };
                    pieces.push(take_record_batch(&batch, &rows).map_err(wrap)?);
                }
                Source::File { path, metadata } => {
                    let vanished = |reason| QueryError::Vanished { path: path.clone(), reason };
                    pieces.extend(read_ranges(path, metadata, &ranges, &names).map_err(vanished)?);
                }
            }
        }
        let rows = segment::sorted(self.table, &pieces, &wide)?;
        Ok(segment::conform(self.table, &rows, out)?)
    }
}

/// Rows by their place in the file; `ranges` are sorted.
fn read_ranges(
    path: &Path,
    metadata: &ArrowReaderMetadata,
    ranges: &[Range<usize>],
    columns: &[&str],
) -> Result<Vec<RecordBatch>, String> {
    let mut out = Vec::new();
    let mut start = 0;
    for (i, group) in metadata.metadata().row_groups().iter().enumerate() {
        let rows = usize::try_from(group.num_rows()).map_err(|e| e.to_string())?;
        let end = start + rows;
        let within: Vec<Range<usize>> = ranges
            .iter()
            .filter(|r| r.start < end && r.end > start)
            .map(|r| r.start.max(start) - start..r.end.min(end) - start)
            .collect();
        if !within.is_empty() {
            let selection = RowSelection::from_consecutive_ranges(within.into_iter(), rows);
            out.extend(read_group(path, metadata, i, selection, columns)?);
        }
        start = end;
    }
    Ok(out)
}

/// [`plan`] and all its rows at once, for what is known to be small.
pub fn rows(
    view: &View,
    table: Table,
    filter: &Filter,
    columns: Option<&[&str]>,
    max_rows: u64,
) -> Result<(Vec<RecordBatch>, Vec<Lost>), QueryError> {
    let plan = plan(view, table, filter, max_rows)?;
    let rows = plan.chunks(columns)?.collect::<Result<Vec<_>, _>>()?;
    Ok((rows, plan.lost))
}
