//! Rows of a table in a time range, out of closed segments, waiting batches and the pipeline's memory alike.
//!
//! Two steps, so that a limit is known before a row is handed out: [`plan`] reads only the keys (cgroup_id, ts) of what
//! `file` cannot leave out, and knows exactly which rows are asked for; [`Plan::chunks`] then reads those rows, whole cgroups at
//! a time, and [`Plan::slices`] reads them in bounded memory, both sorted by (cgroup_id, ts). What cannot be read is left
//! out and accounted for in [`Plan::lost`]. Never changes a file, never returns a part of what was asked without saying so.

mod file;
mod identity;
mod told;

pub use identity::{Identity, int, text};
pub use told::{earlier_pods, pods};

use crate::incident::Lost;
use crate::names::Table;
use crate::pods::{self, Pods};
use crate::schema;
use crate::segment::{self, Origin, ROW_KEY, SegmentError};
use crate::store::{Pin, View};
use arrow::array::{Array, AsArray, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Rows of a chunk: beyond it a chunk ends with the cgroup it is at. 16,384 rows of 180 columns are 24 MB.
const CHUNK_ROWS: usize = 16_384;
/// Rows of a slice, beyond which it ends where a run does that no other overlaps; they are in memory three times while they
/// are put in order.
const SLICE_ROWS: usize = 8192;
/// Rows of a group, beyond which it ends like a slice: with the run that follows it is no more than a row group.
const GROUP_ROWS: usize = segment::ROW_GROUP_ROWS - RUN_ROWS;
/// Rows of a run at the most, so that a cgroup of a whole day can be cut: half a page.
const RUN_ROWS: usize = 4096;
/// Rows of a run on the average, from which on whole runs are copied and not row after row.
const LONG_RUN_ROWS: usize = 64;
/// Runs whose keys are in memory at once: 262,144 rows, 6 MB.
const RUNS_AT_ONCE: usize = 64;

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
    /// Rows of containers with other ids (64 hexadecimal digits) may be left out.
    pub containers: Option<BTreeSet<String>>,
}

impl Filter {
    pub fn range(from_us: i64, to_us: i64) -> Self {
        Self { from_us, to_us, boot: None, cgroups: None, containers: None }
    }

    /// No cgroup is left out by it.
    fn is_of_all(&self) -> bool {
        self.cgroups.is_none() && self.containers.is_none()
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

/// Neighbouring rows of one cgroup in one source, each later than the one before.
#[derive(Clone, Debug)]
struct Run {
    key: Key,
    source: usize,
    rows: Range<usize>,
    from_us: i64,
    to_us: i64,
}

/// `cgroup_id`, `ts` and `ktime_ns` of a row.
pub type RowKey = (Option<i64>, i64, i64);

#[derive(Clone)]
enum Source {
    File { origin: Origin, metadata: ArrowReaderMetadata },
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
    pin: Pin,
    /// Who may name rows that were closed without names.
    pods: Option<Pods>,
}

/// What a piece of a plan gives.
pub type Chunk = Result<RecordBatch, QueryError>;

/// Finds the rows. An error when they are more than `max_rows`.
pub fn plan(view: &View, table: Table, filter: &Filter, max_rows: u64) -> Result<Plan, QueryError> {
    let lost = view.lost.iter().filter(|l| l.table == table.as_str()).cloned().collect();
    let (sources, runs, mut schemas) = (Vec::new(), Vec::new(), Vec::new());
    let mut plan = Plan { table, sources, runs, rows: 0, lost, pin: view.pin.clone(), pods: None };
    for segment in &view.segments {
        let is_wanted = segment.table == table
            && segment.overlaps(filter.from_us, filter.to_us)
            && filter.wants_boot(&segment.name.boot);
        if !is_wanted {
            continue;
        }
        if segment.is_newer() {
            let reason = format!("segment {}: {}", segment.file_name(), schema::newer(segment.schema));
            plan.lost.push(Lost { table: table.as_str().to_owned(), reason, rows: segment.rows_left() });
            continue;
        }
        let (mut runs, source) = (Vec::new(), plan.sources.len());
        let boot: Arc<str> = segment.name.boot.as_str().into();
        let mut found = Runs { filter, boot, source, counts: &|ts| segment.counts(ts), found: &mut runs };
        let origin = segment.origin();
        // no page of it can be left out
        let is_whole =
            filter.is_of_all() && filter.from_us <= segment.from_us && segment.to_us <= filter.to_us;
        match file::keys(&origin, is_whole, &mut schemas, &mut found) {
            Ok(metadata) => {
                plan.sources.push(Source::File { origin, metadata });
                plan.runs.extend(runs);
            }
            Err(reason) => {
                tracing::error!(path = %segment.path.display(), reason, "left an unreadable segment out of a query");
                let reason = format!("unreadable segment {}", segment.file_name());
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
        Runs { filter, boot, source, counts: &|_| true, found: &mut plan.runs }.add(&keys, &mut (0..));
        plan.sources.push(Source::Batch(loose.batch.clone()));
    }
    plan.put_in_order();
    plan.within(max_rows)?;
    Ok(plan)
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

/// Where the wanted rows of a source are noted.
struct Runs<'a> {
    filter: &'a Filter,
    boot: Arc<str>,
    source: usize,
    /// Whether the row of that instant counts in this source.
    counts: &'a dyn Fn(i64) -> bool,
    found: &'a mut Vec<Run>,
}

impl Runs<'_> {
    /// Takes what is wanted of some rows; `places` says where each stands in its source.
    fn add(&mut self, keys: &RecordBatch, places: &mut impl Iterator<Item = usize>) {
        let ids = keys.column_by_name("cgroup_id").and_then(|c| c.as_primitive_opt::<Int64Type>());
        let ts = keys.column_by_name("ts").and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
        let (Some(ids), Some(ts)) = (ids, ts) else { return };
        for (i, row) in (0..keys.num_rows()).zip(places) {
            let (cgroup_id, ts) = (ids.is_valid(i).then(|| ids.value(i)), ts.value(i));
            if !self.filter.wants(cgroup_id, ts) || !(self.counts)(ts) {
                continue;
            }
            match self.found.last_mut() {
                Some(r)
                    if r.source == self.source
                        && r.rows.end == row
                        && r.key.cgroup_id == cgroup_id
                        && r.to_us < ts
                        && r.rows.len() < RUN_ROWS =>
                {
                    r.rows.end += 1;
                    r.to_us = ts;
                }
                _ => {
                    let key = Key { cgroup_id, boot: self.boot.clone() };
                    let (source, rows) = (self.source, row..row + 1);
                    self.found.push(Run { key, source, rows, from_us: ts, to_us: ts });
                }
            }
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

    /// All rows, chunk after chunk, each sorted by (cgroup_id, ts) and of whole cgroups. `columns` = `None` for the whole table.
    pub fn chunks(&self, columns: Option<&[&str]>) -> Result<impl Iterator<Item = Chunk>, QueryError> {
        self.cut(columns, CHUNK_ROWS, false)
    }

    /// The same rows in the same order, in pieces that do not grow with a cgroup's.
    pub fn slices(&self, columns: Option<&[&str]>) -> Result<impl Iterator<Item = Chunk>, QueryError> {
        self.cut(columns, SLICE_ROWS, true)
    }

    /// Pieces of so many rows or more; a cgroup is cut, if at all, where no run reaches over.
    fn cut(
        &self,
        columns: Option<&[&str]>,
        least: usize,
        within: bool,
    ) -> Result<impl Iterator<Item = Chunk>, QueryError> {
        let out = self.schema(columns)?;
        Ok(self.neighbours(least, within).map(move |runs| self.read(runs, &out)))
    }

    /// The columns, when the table has them; `None` for the whole table.
    pub fn schema(&self, columns: Option<&[&str]>) -> Result<SchemaRef, QueryError> {
        let whole = schema::of(self.table);
        let unknown = columns.unwrap_or_default().iter().find(|n| whole.column_with_name(n).is_none());
        if let Some(name) = unknown {
            return Err(QueryError::NoColumn { table: self.table.as_str(), column: (*name).to_owned() });
        }
        Ok(columns.map_or(whole, |names| project(self.table, names)))
    }

    fn neighbours(&self, least: usize, within: bool) -> impl Iterator<Item = &[Run]> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = at;
            let (mut rows, mut until_us) = (0, i64::MIN);
            while let Some(run) = self.runs.get(at) {
                let is_new = at == start || run.key != self.runs[at - 1].key;
                if rows >= least && (is_new || within && run.from_us > until_us) {
                    break;
                }
                until_us = if is_new { run.to_us } else { run.to_us.max(until_us) };
                rows += run.rows.len();
                at += 1;
            }
            (at > start).then(|| &self.runs[start..at])
        })
    }

    /// The same rows in the same order, a row group at a time, of which only the columns that are asked for come into memory.
    pub fn groups(&self) -> impl Iterator<Item = Result<Group<'_>, QueryError>> {
        self.neighbours(GROUP_ROWS, true).map(|runs| Group::new(self, runs))
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

    /// The same plan, of those rows alone whose keys are named.
    pub fn only(&self, wanted: &HashSet<RowKey>) -> Result<Plan, QueryError> {
        let keys = project(self.table, &ROW_KEY);
        let mut by_source: BTreeMap<usize, Vec<&Run>> = BTreeMap::new();
        for run in &self.runs {
            by_source.entry(run.source).or_default().push(run);
        }
        let mut found: Vec<Run> = Vec::new();
        for (source, mut runs) in by_source {
            runs.sort_by_key(|r| r.rows.start);
            for some in runs.chunks(RUNS_AT_ONCE) {
                let ranges: Vec<Range<usize>> = some.iter().map(|r| r.rows.clone()).collect();
                let mut places = some.iter().flat_map(|run| run.rows.clone().map(|row| (*run, row)));
                for batch in self.pieces(source, &ranges, &keys)? {
                    for (i, (run, row)) in (0..batch.num_rows()).zip(places.by_ref()) {
                        let of = |name| int(&batch, name, i);
                        let (Some(ts), Some(ktime_ns)) = (of("ts"), of("ktime_ns")) else { continue };
                        if !wanted.contains(&(of("cgroup_id"), ts, ktime_ns)) {
                            continue;
                        }
                        match found.last_mut() {
                            Some(r) if r.source == source && r.rows.end == row && r.key == run.key => {
                                r.rows.end += 1;
                                (r.from_us, r.to_us) = (r.from_us.min(ts), r.to_us.max(ts));
                            }
                            _ => {
                                let rows = row..row + 1;
                                found.push(Run {
                                    key: run.key.clone(),
                                    source,
                                    rows,
                                    from_us: ts,
                                    to_us: ts,
                                });
                            }
                        }
                    }
                }
            }
        }
        let (sources, lost) = (self.sources.clone(), self.lost.clone());
        let (pin, pods) = (self.pin.clone(), self.pods.clone());
        let mut plan = Plan { table: self.table, sources, runs: found, rows: 0, lost, pin, pods };
        plan.put_in_order();
        Ok(plan)
    }

    /// The same plan, whose rows get the names that Kubernetes told after their file was closed.
    #[must_use]
    pub fn named_by(mut self, pods: &Pods) -> Self {
        self.pods = Some(pods.clone());
        self
    }

    /// The same plan, of those cgroups alone that are wanted.
    #[must_use]
    pub fn of(mut self, wanted: impl Fn(&Key) -> bool) -> Self {
        self.runs.retain(|run| wanted(&run.key));
        self.rows = self.runs.iter().map(|r| r.rows.len() as u64).sum();
        self
    }

    /// That the rows are no more than `max_rows`.
    ///
    /// # Errors
    /// That they are.
    pub fn within(&self, max_rows: u64) -> Result<(), QueryError> {
        if self.rows > max_rows {
            let (table, asked) = (self.table.as_str(), self.rows);
            return Err(QueryError::TooMany { table, asked, limit: max_rows });
        }
        Ok(())
    }

    fn put_in_order(&mut self) {
        self.rows = self.runs.iter().map(|r| r.rows.len() as u64).sum();
        self.runs.sort_by_cached_key(|r| (r.key.clone(), r.from_us, r.source, r.rows.start));
    }

    /// Rows of one source in its order; `ranges` are sorted.
    fn pieces(
        &self,
        source: usize,
        ranges: &[Range<usize>],
        columns: &SchemaRef,
    ) -> Result<Vec<RecordBatch>, QueryError> {
        match &self.sources[source] {
            Source::Batch(batch) => {
                let batch = segment::conform(self.table, batch, columns)?;
                let rows = ranges.iter().cloned().flatten().map(|r| u32::try_from(r).unwrap_or(u32::MAX));
                let rows = UInt32Array::from_iter_values(rows);
                let wrap = |source| SegmentError::Rows { table: self.table.as_str(), source };
                Ok(vec![take_record_batch(&batch, &rows).map_err(wrap)?])
            }
            Source::File { origin, metadata } => {
                let names: Vec<&str> = columns.fields().iter().map(|f| f.name().as_str()).collect();
                let vanished = |reason| QueryError::Vanished { path: origin.path.clone(), reason };
                file::rows(origin, metadata, ranges, &names).map_err(vanished)
            }
        }
    }

    fn read(&self, runs: &[Run], out: &SchemaRef) -> Result<RecordBatch, QueryError> {
        Group::new(self, runs)?.columns(out)
    }
}

/// Rows as they stand in one source.
struct Taken {
    ranges: Vec<Range<usize>>,
    /// Where each range begins among the rows that are taken.
    begins: Vec<usize>,
}

impl Taken {
    fn of(mut ranges: Vec<Range<usize>>) -> Self {
        ranges.sort_by_key(|r| r.start);
        let lengths = ranges.iter().map(Range::len);
        let begins = lengths.scan(0, |at, n| Some(std::mem::replace(at, *at + n))).collect();
        Self { ranges, begins }
    }

    /// Where a run's rows are in the batches that were taken: batch, first row, rows.
    fn places(&self, run: &Run, batches: &[RecordBatch], mut give: impl FnMut(usize, usize, usize)) {
        let mut from = self.begins[self.ranges.partition_point(|r| r.start < run.rows.start)];
        let (until, mut begin) = (from + run.rows.len(), 0);
        for (i, batch) in batches.iter().enumerate() {
            let end = begin + batch.num_rows();
            if from < until.min(end) {
                give(i, from - begin, until.min(end) - from);
            }
            (from, begin) = (from.max(end), end);
        }
    }
}

/// Neighbouring rows of a plan, to be read a few columns at a time.
pub struct Group<'a> {
    plan: &'a Plan,
    runs: &'a [Run],
    sources: BTreeMap<usize, Taken>,
    /// Piece and place in it of each row, where runs reach over into others.
    order: Option<Vec<(usize, usize)>>,
}

impl<'a> Group<'a> {
    fn new(plan: &'a Plan, runs: &'a [Run]) -> Result<Self, QueryError> {
        let mut ranges: BTreeMap<usize, Vec<Range<usize>>> = BTreeMap::new();
        for run in runs {
            ranges.entry(run.source).or_default().push(run.rows.clone());
        }
        let sources = ranges.into_iter().map(|(source, ranges)| (source, Taken::of(ranges))).collect();
        let mut group = Self { plan, runs, sources, order: None };
        if !runs.is_sorted_by(follows) {
            let keys = project(plan.table, &ROW_KEY);
            let pieces = group.gathered(&keys)?.into_values().flatten().collect::<Vec<_>>();
            group.order = Some(segment::order(plan.table, &pieces, &keys)?);
        }
        Ok(group)
    }

    /// Columns of all its rows, in order.
    pub fn columns(&self, wanted: &SchemaRef) -> Result<RecordBatch, QueryError> {
        let has = |name: &&str| wanted.column_with_name(name).is_some();
        let Some(pods) = self.plan.pods.as_ref().filter(|_| pods::NAMES.iter().any(has)) else {
            return self.as_stored(wanted);
        };
        // one name is told by the whole of who it is
        let by = pods::NAMES.into_iter().chain(pods::NAMED_BY);
        let names: Vec<&str> =
            wanted.fields().iter().map(|f| f.name().as_str()).chain(by.filter(|name| !has(name))).collect();
        let rows = pods.fill(self.as_stored(&project(self.plan.table, &names))?);
        let wrap = |source| SegmentError::Rows { table: self.plan.table.as_str(), source };
        let places = wanted.fields().iter().map(|f| rows.schema_ref().index_of(f.name()));
        let places = places.collect::<Result<Vec<_>, _>>();
        Ok(places.and_then(|places| rows.project(&places)).map_err(wrap)?)
    }

    fn as_stored(&self, wanted: &SchemaRef) -> Result<RecordBatch, QueryError> {
        let table = self.plan.table;
        let pieces = self.gathered(wanted)?;
        if let Some(order) = &self.order {
            let pieces: Vec<_> = pieces.into_values().flatten().collect();
            return Ok(segment::ordered(table, &pieces, wanted, order)?);
        }
        let (rows, runs) = (self.runs.iter().map(|r| r.rows.len()).sum::<usize>(), self.runs.len());
        let mut slices = Vec::new();
        // a slice has 160 bytes of its own for each column, a place in an order 16
        let are_long = rows >= LONG_RUN_ROWS * runs;
        let mut order = Vec::with_capacity(if are_long { 0 } else { rows });
        let firsts = pieces.values().scan(0, |at, batches| Some(std::mem::replace(at, *at + batches.len())));
        let firsts: BTreeMap<usize, usize> = pieces.keys().copied().zip(firsts).collect();
        for run in self.runs {
            let (first, batches) = (firsts[&run.source], &pieces[&run.source]);
            self.sources[&run.source].places(run, batches, |batch, row, n| {
                if are_long {
                    slices.push(batches[batch].slice(row, n));
                } else {
                    order.extend((row..row + n).map(|row| (first + batch, row)));
                }
            });
        }
        if are_long {
            return Ok(segment::joined(table, &slices, wanted)?);
        }
        let pieces: Vec<_> = pieces.into_values().flatten().collect();
        Ok(segment::ordered(table, &pieces, wanted, &order)?)
    }

    /// Rows as they stand in their sources: the same batches, whatever the columns are.
    fn gathered(&self, columns: &SchemaRef) -> Result<BTreeMap<usize, Vec<RecordBatch>>, QueryError> {
        let pieces = self
            .sources
            .iter()
            .map(|(source, taken)| Ok((*source, self.plan.pieces(*source, &taken.ranges, columns)?)));
        pieces.collect()
    }
}

/// Whether no row of a run has to stand before one of the run ahead of it.
fn follows(ahead: &Run, run: &Run) -> bool {
    let cgroups = (ahead.key.cgroup_id, run.key.cgroup_id);
    cgroups.0 < cgroups.1 || cgroups.0 == cgroups.1 && ahead.to_us < run.from_us
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
