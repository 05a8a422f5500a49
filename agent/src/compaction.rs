//! Merges closed segments into one file of `v1/`: the rows of one hour, sorted over the whole file by (cgroup_id, ts).
//!
//! Each input is sorted, so that their keys are merged first, a row group's worth at a time; a row group takes of each input
//! rows that follow each other, and they are read and written a few columns at a time. In memory are: three columns
//! of a batch of each input, the order of one row group, a few columns of it, and what the writer has of one column. The file
//! names its inputs and how many rows it has of each; it is read back and held against its checksum before it gets its name.
//! Never removes an input and never decides what is merged when: `store` does, and calls this.

use crate::names::Table;
use crate::schema;
use crate::segment::{
    self, Encoder, Footer, Io, Merging, PAGE_ROWS, ROW_GROUP_ROWS, SegmentError, Temporary,
};
use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::{concat_batches, interleave};
use arrow::datatypes::{Int32Type, Int64Type, SchemaRef, TimestampMicrosecondType};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::errors::ParquetError;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes of a file at the most.
pub const FILE_BYTES: u64 = 64 << 20;
/// Inputs of one file at the most: each has a descriptor and a batch of keys. An hour of the default rotation has 40.
pub const INPUTS: usize = 64;
/// Keys of one input that are in memory together: a page.
const KEYS: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("{}: {reason}", path.display())]
    Input { path: PathBuf, reason: String },
    #[error(transparent)]
    Output(#[from] SegmentError),
    #[error("it would have {bytes} bytes, the bound is {limit}")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("it was told to stop")]
    Stopped,
}

/// What is merged.
pub struct Merge<'a> {
    pub table: Table,
    pub hour_us: i64,
    pub inputs: &'a [PathBuf],
    /// What the file says besides what the merge knows.
    pub metadata: &'a [(String, String)],
    pub limit_bytes: u64,
}

type Key = (Option<i64>, i64, i64);

/// One input, by its keys.
struct Input<'a> {
    path: &'a Path,
    metadata: ArrowReaderMetadata,
    rows: usize,
    batch: Option<(Int64Array, TimestampMicrosecondArray, Int64Array)>,
    /// Place in the batch, and in the file.
    at: usize,
    row: usize,
    last: Option<(Option<i64>, i64)>,
    taken: u64,
}

fn read(
    path: &Path,
    metadata: &ArrowReaderMetadata,
    columns: &[&str],
    rows: Option<RowSelection>,
    batch: usize,
) -> Result<ParquetRecordBatchReader, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let mask = ProjectionMask::columns(metadata.parquet_schema(), columns.iter().copied());
    segment::guarded(|| {
        let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone());
        if let Some(rows) = rows {
            builder = builder.with_row_selection(rows);
        }
        builder.with_projection(mask).with_batch_size(batch).build().map_err(|e| e.to_string())
    })
}

fn next(reader: &mut ParquetRecordBatchReader) -> Result<Option<RecordBatch>, String> {
    segment::guarded(|| reader.next().transpose().map_err(|e| e.to_string()))
}

impl<'a> Input<'a> {
    fn open(path: &'a Path) -> Result<Self, String> {
        let metadata = segment::load(path)?;
        let rows =
            usize::try_from(metadata.metadata().file_metadata().num_rows()).map_err(|e| e.to_string())?;
        Ok(Self { path, metadata, rows, batch: None, at: 0, row: 0, last: None, taken: 0 })
    }

    /// The keys that follow. Of forty inputs each reader would keep three decompressors until the end, and they are large.
    fn keys(&self) -> Result<Option<RecordBatch>, String> {
        let rows = self.row..self.rows.min(self.row + KEYS);
        if rows.is_empty() {
            return Ok(None);
        }
        let rows = RowSelection::from_consecutive_ranges(std::iter::once(rows), self.rows);
        next(&mut read(self.path, &self.metadata, &segment::ROW_KEY, Some(rows), KEYS)?)
    }

    /// The key and the place of the next row of the hour.
    fn next(&mut self, hour_us: i64) -> Result<Option<(Key, usize)>, String> {
        loop {
            let Some((ids, ts, ktime)) = self.batch.as_ref().filter(|(ids, ..)| self.at < ids.len()) else {
                let Some(batch) = self.keys()? else { return Ok(None) };
                let number =
                    |name| batch.column_by_name(name).and_then(|c| c.as_primitive_opt::<Int64Type>());
                let ts =
                    batch.column_by_name("ts").and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
                let (Some(ids), Some(ts), Some(ktime)) = (number("cgroup_id"), ts, number("ktime_ns")) else {
                    return Err("it lacks cgroup_id, ts or ktime_ns".to_owned());
                };
                (self.batch, self.at) = (Some((ids.clone(), ts.clone(), ktime.clone())), 0);
                continue;
            };
            let (i, row) = (self.at, self.row);
            let key = (ids.is_valid(i).then(|| ids.value(i)), ts.value(i), ktime.value(i));
            self.at += 1;
            self.row += 1;
            if self.last.is_some_and(|last| (key.0, key.1) < last) {
                return Err("its rows are not in the order of (cgroup_id, ts)".to_owned());
            }
            self.last = Some((key.0, key.1));
            if segment::hour_of(key.1) == hour_us {
                return Ok(Some((key, row)));
            }
        }
    }

    /// Some columns of some rows.
    fn columns(
        &self,
        table: Table,
        rows: &[Range<usize>],
        wanted: &SchemaRef,
    ) -> Result<RecordBatch, String> {
        let names: Vec<&str> = wanted.fields().iter().map(|f| f.name().as_str()).collect();
        let count = rows.iter().map(Range::len).sum();
        let selection = RowSelection::from_consecutive_ranges(rows.iter().cloned(), self.rows);
        let mut reader = read(self.path, &self.metadata, &names, Some(selection), count)?;
        let mut pieces = Vec::new();
        while let Some(batch) = next(&mut reader)? {
            pieces.push(segment::conform(table, &batch, wanted).map_err(|e| e.to_string())?);
        }
        let whole = if pieces.len() == 1 {
            pieces.swap_remove(0)
        } else {
            concat_batches(wanted, &pieces).map_err(|e| e.to_string())?
        };
        if whole.num_rows() == count {
            Ok(whole)
        } else {
            Err(format!("{} rows where its keys have {count}", whole.num_rows()))
        }
    }

    /// Adds the different values of a text column.
    fn values(&self, column: &str, into: &mut HashSet<String>) -> Result<(), String> {
        let mut reader = read(self.path, &self.metadata, &[column], None, ROW_GROUP_ROWS)?;
        while let Some(batch) = next(&mut reader)? {
            let Some(text) = batch.column_by_name(column).and_then(|c| c.as_dictionary_opt::<Int32Type>())
            else {
                break;
            };
            let Some(values) = text.values().as_string_opt::<i32>() else { break };
            for value in values.iter().flatten() {
                if !into.contains(value) {
                    into.insert(value.to_owned());
                }
            }
        }
        Ok(())
    }
}

/// How many rows a file has of each hour.
///
/// # Errors
/// Why it cannot be read.
pub fn hours(path: &Path) -> Result<BTreeMap<i64, u64>, String> {
    let mut reader = read(path, &segment::load(path)?, &["ts"], None, ROW_GROUP_ROWS)?;
    let mut found = BTreeMap::new();
    while let Some(batch) = next(&mut reader)? {
        let ts = batch.column_by_name("ts").and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
        for ts in ts.ok_or("it has no ts")?.values() {
            *found.entry(segment::hour_of(*ts)).or_default() += 1;
        }
    }
    Ok(found)
}

/// The rows of one row group, in their order.
#[derive(Default)]
struct Order {
    /// Of each input, what it gives.
    ranges: Vec<Vec<Range<usize>>>,
    /// Input, and place among the rows that it gives.
    rows: Vec<(usize, usize)>,
}

/// The inputs' keys, the smallest first.
struct Merger<'a> {
    inputs: Vec<Input<'a>>,
    heads: BinaryHeap<Reverse<(Key, usize, usize)>>,
    hour_us: i64,
    range_us: Option<(i64, i64)>,
}

impl<'a> Merger<'a> {
    fn open(paths: &'a [PathBuf], hour_us: i64) -> Result<Self, MergeError> {
        let wrong = |path: &Path, reason| MergeError::Input { path: path.to_owned(), reason };
        let inputs = paths
            .iter()
            .map(|p| Input::open(p).map_err(|reason| wrong(p, reason)))
            .collect::<Result<_, _>>()?;
        let mut own = Self { inputs, heads: BinaryHeap::new(), hour_us, range_us: None };
        for i in 0..own.inputs.len() {
            own.advance(i)?;
        }
        Ok(own)
    }

    fn wrong(&self, input: usize, reason: String) -> MergeError {
        MergeError::Input { path: self.inputs[input].path.to_owned(), reason }
    }

    fn advance(&mut self, i: usize) -> Result<(), MergeError> {
        let next = self.inputs[i].next(self.hour_us).map_err(|reason| self.wrong(i, reason))?;
        // of equal keys the earlier input's row comes first, so that the same inputs give the same file
        self.heads.extend(next.map(|(key, row)| Reverse((key, i, row))));
        Ok(())
    }

    /// The next rows; none when all are given.
    fn order(&mut self) -> Result<Order, MergeError> {
        let mut order = Order { ranges: vec![Vec::new(); self.inputs.len()], rows: Vec::new() };
        let mut given = vec![0; self.inputs.len()];
        while order.rows.len() < ROW_GROUP_ROWS
            && let Some(Reverse(((_, ts, _), input, row))) = self.heads.pop()
        {
            match order.ranges[input].last_mut() {
                Some(range) if range.end == row => range.end += 1,
                _ => order.ranges[input].push(row..row + 1),
            }
            order.rows.push((input, given[input]));
            given[input] += 1;
            self.inputs[input].taken += 1;
            let (from, to) = self.range_us.unwrap_or((ts, ts));
            self.range_us = Some((from.min(ts), to.max(ts)));
            self.advance(input)?;
        }
        Ok(order)
    }

    /// Writes the rows, some columns of all of them at a time.
    fn write(
        &self,
        table: Table,
        mut order: Order,
        encoder: &mut Encoder<File>,
        encode: &dyn Fn(ParquetError) -> SegmentError,
    ) -> Result<(), MergeError> {
        let giving: Vec<usize> = (0..self.inputs.len()).filter(|i| !order.ranges[*i].is_empty()).collect();
        let mut place = vec![0; self.inputs.len()];
        for (at, input) in giving.iter().enumerate() {
            place[*input] = at;
        }
        for (input, _) in &mut order.rows {
            *input = place[*input];
        }
        let schema = schema::of(table);
        let mut group = encoder.row_group().map_err(encode)?;
        for wanted in segment::few(&schema) {
            let mut of_inputs = Vec::with_capacity(giving.len());
            for i in &giving {
                let columns = self.inputs[*i].columns(table, &order.ranges[*i], &wanted);
                of_inputs.push(columns.map_err(|reason| self.wrong(*i, reason))?);
            }
            for column in 0..wanted.fields().len() {
                let values: Vec<&dyn Array> = of_inputs.iter().map(|b| b.column(column).as_ref()).collect();
                let rows = |source| SegmentError::Rows { table: table.as_str(), source };
                let merged: ArrayRef = interleave(&values, &order.rows).map_err(rows)?;
                group.column(&merged).map_err(encode)?;
            }
        }
        Ok(group.close().map_err(encode)?)
    }

    fn distinct(&self, table: Table, column: &str) -> Result<u64, MergeError> {
        let mut values = HashSet::new();
        if schema::of(table).column_with_name(column).is_some() {
            for (i, input) in self.inputs.iter().enumerate() {
                input.values(column, &mut values).map_err(|reason| self.wrong(i, reason))?;
            }
        }
        Ok(values.len() as u64)
    }
}

/// Writes the rows of the hour as the file `path` and gives how many rows it has of each input. The folder is there; it is not fsynced
/// yet, and until it is no input may go.
pub fn merge(
    io: &dyn Io,
    what: &Merge<'_>,
    path: &Path,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<u64>, MergeError> {
    let mut merger = Merger::open(what.inputs, what.hour_us)?;
    let ndv = (merger.distinct(what.table, "container_id")?, merger.distinct(what.table, "pod_uid")?);
    let (temporary, file) = Temporary::create(io, path)?;
    let own = temporary.path().to_owned();
    let encode = |source| SegmentError::Encode { path: own.clone(), source };
    let mut encoder =
        Encoder::new(file, &schema::of(what.table), PAGE_ROWS, ndv, what.metadata).map_err(encode)?;
    let mut rows = 0;
    loop {
        let order = merger.order()?;
        if order.rows.is_empty() {
            break;
        }
        if stop() {
            return Err(MergeError::Stopped);
        }
        rows += order.rows.len() as u64;
        merger.write(what.table, order, &mut encoder, &encode)?;
    }
    let (from_us, to_us) = merger.range_us.unwrap_or((what.hour_us, what.hour_us));
    let taken: Vec<u64> = merger.inputs.iter().map(|i| i.taken).collect();
    let name = |p: &PathBuf| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let inputs: Vec<Merging> =
        what.inputs.iter().zip(&taken).map(|(p, rows)| Merging { file: name(p), rows: *rows }).collect();
    encoder.note(segment::FROM, from_us.to_string());
    encoder.note(segment::TO, to_us.to_string());
    encoder.note(segment::HOUR, what.hour_us.to_string());
    encoder.note(segment::INPUTS, serde_json::json!(inputs).to_string());
    let file = encoder.close().map_err(encode)?;
    let footer = Footer::read(&own)?;
    footer.check_body(&own)?;
    if footer.rows() != rows {
        let reason = format!("{} rows were written, {rows} were read", footer.rows());
        return Err(SegmentError::Damaged { path: own, reason }.into());
    }
    let bytes = std::fs::metadata(&own).map_or(0, |m| m.len());
    if bytes > what.limit_bytes && what.inputs.len() > 1 {
        return Err(MergeError::TooLarge { bytes, limit: what.limit_bytes });
    }
    temporary.publish(io, &file, path)?;
    Ok(taken)
}
