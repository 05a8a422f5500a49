//! One closed Parquet file of one table: its name, how it is encoded, and how it gets onto the disk in one piece.
//!
//! Rows are sorted by (cgroup_id, ts). A file is written under a temporary name, finished, fsynced, renamed, and its
//! folder fsynced; closing consumes the writer. A reader therefore never sees half a file under a final name.
//! Never opens a file that is already closed for writing, never decides when to write: `store` does.
//! `export` uses the same [`Encoder`] for the files it hands out.
//!
//! parquet 60.1 verifies page checksums but cannot write them, so the checksum of everything before the footer stands
//! in the footer: `fgm.body_crc32` = `<bytes>:<crc32 in hex>`. [`verify`] holds a file against it. What follows the pages has a checksum of
//! its own, `fgm.tail_crc32`, which every reader of ours looks at, since a footer with another number in it is a footer.

mod encoder;
mod footer;
mod origin;

pub use encoder::{Encoder, LONG_PAGE_ROWS, PAGE_ROWS, distinct, few};
pub use footer::{Footer, load, load_from, without_copies};
pub use origin::{Distant, Far, Origin, Reader};

use crate::names::Table;
use crate::schema;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array, new_null_array};
use arrow::compute::{
    SortColumn, SortOptions, cast, concat, concat_batches, filter_record_batch, interleave,
    lexsort_to_indices,
};
use arrow::datatypes::{Field, SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of a row group at the most: bounds what writer and reader hold of a column. What a footer says of a group costs a reader some
/// 100 KB whatever its length, and pages are the grain of pruning.
pub const ROW_GROUP_ROWS: usize = 262_144;
/// What rows are sorted by, and known by.
pub const ROW_KEY: [&str; 3] = ["cgroup_id", "ts", "ktime_ns"];
/// Ending of a file that is still being written. It does not match `*.parquet`.
pub const TEMPORARY: &str = "parquet.tmp";
/// Key of the journal that held the file's rows.
pub const JOURNAL: &str = "fgm.journal";
/// Key of the files that a merged one was made of, and of the hour that it is.
pub const INPUTS: &str = "fgm.inputs";
pub const HOUR: &str = "fgm.hour_us";
pub const FROM: &str = "fgm.from_us";
pub const TO: &str = "fgm.to_us";
/// Key of the version of the columns.
pub const SCHEMA: &str = "fgm.schema_version";
pub const HOUR_US: i64 = 3_600_000_000;
const BODY_CRC: &str = "fgm.body_crc32";
/// Key of the checksum of all that follows the pages, and what stands there until it is known.
pub const TAIL_CRC: &str = "fgm.tail_crc32";
pub const UNSTAMPED: &str = "00000000";

#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    #[error("{step} {}: {source}", path.display())]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("writing {}: {source}", path.display())]
    Encode { path: PathBuf, source: ParquetError },
    #[error("table {table}: column {column} is {found}, expected {wanted}")]
    Column { table: &'static str, column: String, found: String, wanted: String },
    #[error("table {table}: {source}")]
    Rows { table: &'static str, source: ArrowError },
    #[error("{}: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
}

impl SegmentError {
    /// True when trying again cannot help: the rows themselves are at fault.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Column { .. } | Self::Rows { .. } => true,
            Self::Encode { source, .. } => !matches!(source, ParquetError::External(_)),
            Self::Io { .. } | Self::Damaged { .. } => false,
        }
    }

    /// The operating system's error at the bottom, when there is one.
    pub fn os_error(&self) -> Option<i32> {
        let mut at: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(e) = at {
            if let Some(code) = e.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
                return Some(code);
            }
            if let Some(ParquetError::External(inner)) = e.downcast_ref::<ParquetError>() {
                at = Some(inner.as_ref());
            } else {
                at = e.source();
            }
        }
        None
    }
}

/// `<start_us>-<boot>-<seq>.parquet`: sorts by time, unique in a data folder. A file of `v1/`, whose path has the time, is
/// `<boot>-<seq>.parquet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentName {
    pub start_us: i64,
    /// Boot id without its dashes.
    pub boot: String,
    pub seq: u64,
}

impl SegmentName {
    pub fn parse(file_name: &str) -> Option<Self> {
        let parts: Vec<&str> = file_name.strip_suffix(".parquet")?.splitn(3, '-').collect();
        let (start, boot, seq) = match parts[..] {
            [start, boot, seq] => (start, boot, seq),
            [boot, seq] => ("0", boot, seq),
            _ => return None,
        };
        let start_us = start.parse().ok().filter(|v| *v >= 0)?;
        // The store counts on from the highest.
        let seq = seq.parse().ok().filter(|seq| *seq < u64::MAX / 2)?;
        (!boot.is_empty()).then(|| Self { start_us, boot: boot.to_owned(), seq })
    }

    pub fn file_name(&self) -> String {
        format!("{:016}-{}-{:08}.parquet", self.start_us.max(0), self.boot, self.seq)
    }
}

/// A boot id as file names have it.
pub fn boot_of(boot_id: &str) -> String {
    let plain: String = boot_id.chars().filter(char::is_ascii_alphanumeric).collect();
    if plain.is_empty() { "unknown".to_owned() } else { plain.to_lowercase() }
}

/// A closed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub table: Table,
    pub path: PathBuf,
    pub name: SegmentName,
    pub from_us: i64,
    pub to_us: i64,
    pub rows: u64,
    pub bytes: u64,
    /// When its bytes were last changed.
    pub modified_ns: i64,
    /// The journal whose rows of this table these are (of a merged file: those that were left, with commas between): with
    /// it, a journal that is left over is not read twice.
    pub journal: Option<String>,
    /// Of a file of `v1/`.
    pub merged: Option<Merged>,
    /// The hours of a file of `recent/` that are in `v1/` already: these rows of it do not count.
    pub taken: Vec<Taken>,
    /// The version of its columns.
    pub schema: u32,
    /// Where its bytes are, when it is not on the disk.
    pub far: Option<Distant>,
}

/// What a file of `v1/` was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merged {
    pub hour_us: i64,
    /// Those that may still be there.
    pub inputs: Vec<Merging>,
}

/// The rows that a merged file has of one segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merging {
    pub file: String,
    pub rows: u64,
}

/// The rows of an hour that a merged file has of this segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub hour_us: i64,
    pub rows: u64,
}

/// Start of the hour of an instant.
pub fn hour_of(ts_us: i64) -> i64 {
    ts_us.div_euclid(HOUR_US).saturating_mul(HOUR_US)
}

impl Segment {
    pub fn origin(&self) -> Origin {
        Origin { path: self.path.clone(), far: self.far.clone() }
    }

    pub fn file_name(&self) -> &str {
        self.path.file_name().and_then(|n| n.to_str()).unwrap_or_default()
    }

    /// Rows that are in no merged file.
    pub fn rows_left(&self) -> u64 {
        self.rows.saturating_sub(self.taken.iter().map(|t| t.rows).sum())
    }

    /// Whether the row of that instant counts here.
    pub fn counts(&self, ts_us: i64) -> bool {
        self.taken.is_empty() || !self.taken.iter().any(|t| t.hour_us == hour_of(ts_us))
    }

    /// Those of some of its rows that count.
    pub fn counted(&self, rows: &RecordBatch) -> Result<RecordBatch, String> {
        let ts = rows.column_by_name("ts").and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
        let counts: BooleanArray =
            ts.ok_or("it has no ts")?.values().iter().map(|ts| Some(self.counts(*ts))).collect();
        filter_record_batch(rows, &counts).map_err(|e| e.to_string())
    }

    /// Its columns may mean what this program does not know: its rows are told as lost, the file stays as it is.
    pub fn is_newer(&self) -> bool {
        self.schema > schema::VERSION
    }

    pub fn is_of_journal(&self, tag: &str) -> bool {
        self.journal.as_deref().is_some_and(|all| all.split(',').any(|one| one == tag))
    }

    pub fn overlaps(&self, from_us: i64, to_us: i64) -> bool {
        self.from_us <= to_us && self.to_us >= from_us
    }
}

/// The file operations behind a segment and a journal, so that a test can make each of them fail.
pub trait Io: Send + Sync + 'static {
    fn create(&self, path: &Path) -> io::Result<File> {
        File::create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
}

/// The real file system.
pub struct Disk;

impl Io for Disk {}

/// A column of a batch as `field` has it: an absent nullable one becomes NULL (the file of an older version), another type
/// is cast when arrow can (text that is not a dictionary).
fn column(table: Table, batch: &RecordBatch, field: &Field) -> Result<ArrayRef, SegmentError> {
    let wrong = |found: String| SegmentError::Column {
        table: table.as_str(),
        column: field.name().clone(),
        found,
        wanted: field.data_type().to_string(),
    };
    let column: ArrayRef = match batch.column_by_name(field.name()) {
        Some(c) if c.data_type() == field.data_type() => c.clone(),
        Some(c) => cast(c, field.data_type()).map_err(|_| wrong(c.data_type().to_string()))?,
        None if field.is_nullable() => new_null_array(field.data_type(), batch.num_rows()),
        None => return Err(wrong("absent".to_owned())),
    };
    if !field.is_nullable() && column.null_count() > 0 {
        return Err(wrong(format!("NULL in {} rows", column.null_count())));
    }
    Ok(column)
}

/// The batch with exactly the columns of `schema`, by name; surplus columns are dropped.
pub fn conform(table: Table, batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, SegmentError> {
    let columns =
        schema.fields().iter().map(|field| column(table, batch, field)).collect::<Result<_, _>>()?;
    let rows = |source| SegmentError::Rows { table: table.as_str(), source };
    RecordBatch::try_new(schema.clone(), columns).map_err(rows)
}

/// All batches as one, in the order in which they come.
pub fn joined(
    table: Table,
    batches: &[RecordBatch],
    schema: &SchemaRef,
) -> Result<RecordBatch, SegmentError> {
    let conformed: Vec<RecordBatch> =
        batches.iter().map(|b| conform(table, b, schema)).collect::<Result<_, _>>()?;
    concat_batches(schema, &conformed).map_err(|source| SegmentError::Rows { table: table.as_str(), source })
}

/// Where the rows of some batches are, as (batch, row), sorted by (cgroup_id, ts, ktime_ns); equal keys keep the order in which
/// they came, so that the same rows always give the same bytes.
pub fn order(
    table: Table,
    batches: &[RecordBatch],
    schema: &SchemaRef,
) -> Result<Vec<(usize, usize)>, SegmentError> {
    let rows = |source| SegmentError::Rows { table: table.as_str(), source };
    // the first row of each batch
    let mut firsts = Vec::with_capacity(batches.len());
    let mut count = 0;
    for batch in batches {
        firsts.push(count);
        count += batch.num_rows();
    }
    if count == 0 {
        return Ok(Vec::new());
    }
    let options = Some(SortOptions { descending: false, nulls_first: true });
    let mut keys = Vec::new();
    for field in ROW_KEY.iter().filter_map(|k| schema.field_with_name(k).ok()) {
        let columns: Vec<_> = batches.iter().map(|b| column(table, b, field)).collect::<Result<_, _>>()?;
        let columns: Vec<&dyn Array> = columns.iter().map(AsRef::as_ref).collect();
        let values = concat(&columns).map_err(rows)?;
        keys.push(SortColumn { values, options });
    }
    let place: ArrayRef =
        Arc::new(UInt32Array::from_iter_values(0..u32::try_from(count).unwrap_or(u32::MAX)));
    keys.push(SortColumn { values: place, options });
    let order = lexsort_to_indices(&keys, None).map_err(rows)?;
    drop(keys);
    let place = |row: usize| {
        let batch = firsts.partition_point(|first| *first <= row) - 1;
        (batch, row - firsts[batch])
    };
    Ok(order.values().iter().map(|i| place(*i as usize)).collect())
}

/// One column of the rows that `order` names, of which there is at least one.
fn in_order(
    table: Table,
    batches: &[RecordBatch],
    field: &Field,
    order: &[(usize, usize)],
) -> Result<ArrayRef, SegmentError> {
    if field.is_nullable() && batches.iter().all(|b| b.column_by_name(field.name()).is_none()) {
        return Ok(new_null_array(field.data_type(), order.len()));
    }
    let columns: Vec<_> = batches.iter().map(|b| column(table, b, field)).collect::<Result<_, _>>()?;
    let columns: Vec<&dyn Array> = columns.iter().map(AsRef::as_ref).collect();
    interleave(&columns, order).map_err(|source| SegmentError::Rows { table: table.as_str(), source })
}

/// All batches as one, sorted as in a file.
pub fn sorted(
    table: Table,
    batches: &[RecordBatch],
    schema: &SchemaRef,
) -> Result<RecordBatch, SegmentError> {
    ordered(table, batches, schema, &order(table, batches, schema)?)
}

/// The rows that `order` names.
pub fn ordered(
    table: Table,
    batches: &[RecordBatch],
    schema: &SchemaRef,
    order: &[(usize, usize)],
) -> Result<RecordBatch, SegmentError> {
    if order.is_empty() {
        return Ok(RecordBatch::new_empty(schema.clone()));
    }
    let columns = schema.fields().iter().map(|f| in_order(table, batches, f, order));
    RecordBatch::try_new(schema.clone(), columns.collect::<Result<_, _>>()?)
        .map_err(|source| SegmentError::Rows { table: table.as_str(), source })
}

/// A temporary file that goes away unless it is published.
pub struct Temporary {
    path: PathBuf,
    is_published: bool,
}

impl Temporary {
    /// Makes the file that will be `path`.
    pub fn create(io: &dyn Io, path: &Path) -> Result<(Self, File), SegmentError> {
        let own = path.with_extension(TEMPORARY);
        let file = io.create(&own).map_err(fail("cannot create", &own))?;
        Ok((Self { path: own, is_published: false }, file))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its name once its bytes are durable. The name is durable when its folder is fsynced.
    pub fn publish(mut self, io: &dyn Io, file: &File, path: &Path) -> Result<(), SegmentError> {
        io.sync(file).map_err(fail("cannot fsync", &self.path))?;
        io.rename(&self.path, path).map_err(fail("cannot rename to", path))?;
        self.is_published = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_published {
            // Best effort: what stays behind is removed at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn fail(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SegmentError {
    let path = path.to_owned();
    move |source| SegmentError::Io { step, path, source }
}

/// Writes the rows as one closed segment into `dir` and returns it once it is durable.
pub fn write(
    io: &dyn Io,
    dir: &Path,
    table: Table,
    batches: &[RecordBatch],
    boot: &str,
    seq: u64,
    metadata: &[(String, String)],
) -> Result<Segment, SegmentError> {
    let schema = schema::of(table);
    let order = order(table, batches, &schema)?;
    let ranges = batches.iter().filter(|b| b.num_rows() > 0).map(time_range);
    let (from_us, to_us) = ranges.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or_default();
    let name = SegmentName { start_us: from_us.max(0), boot: boot.to_owned(), seq };
    let path = dir.join(name.file_name());

    let mut pairs = vec![
        ("fgm.table".to_owned(), table.as_str().to_owned()),
        (SCHEMA.to_owned(), schema::VERSION.to_string()),
        ("fgm.agent_version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        (FROM.to_owned(), from_us.to_string()),
        (TO.to_owned(), to_us.to_string()),
        ("fgm.seq".to_owned(), seq.to_string()),
    ];
    pairs.retain(|(k, _)| !metadata.iter().any(|(m, _)| m == k));
    pairs.extend_from_slice(metadata);

    let (temporary, file) = Temporary::create(io, &path)?;
    let encode = |source| SegmentError::Encode { path: temporary.path.clone(), source };
    let ndv = (distinct(batches, "container_id"), distinct(batches, "pod_uid"));
    let mut encoder = Encoder::new(file, &schema, PAGE_ROWS, ndv, &pairs).map_err(encode)?;
    // one column at a time: all of them would be as much memory again as the rows
    for rows in order.chunks(ROW_GROUP_ROWS) {
        let mut group = encoder.row_group().map_err(encode)?;
        for field in schema.fields() {
            group.column(&in_order(table, batches, field, rows)?).map_err(encode)?;
        }
        group.close().map_err(encode)?;
    }
    let file = encoder.close().map_err(encode)?;
    let there = file.metadata().map_err(fail("cannot read the size of", &temporary.path))?;
    let (bytes, modified_ns) = (there.len(), modified_ns(&there));
    temporary.publish(io, &file, &path)?;
    io.sync_dir(dir).map_err(fail("cannot fsync the folder", dir))?;
    let journal = pairs.into_iter().find(|(k, _)| k == JOURNAL).map(|(_, v)| v);
    let rows = order.len() as u64;
    let (merged, taken, schema) = (None, Vec::new(), schema::VERSION);
    Ok(Segment {
        table,
        path,
        name,
        from_us,
        to_us,
        rows,
        bytes,
        modified_ns,
        journal,
        merged,
        taken,
        schema,
        far: None,
    })
}

/// When a file's bytes were last changed.
pub fn modified_ns(there: &Metadata) -> i64 {
    there.mtime().saturating_mul(1_000_000_000).saturating_add(there.mtime_nsec())
}

/// First and last `ts` of rows in any order; (0, 0) of none.
pub fn time_range(rows: &RecordBatch) -> (i64, i64) {
    let ts = rows
        .column_by_name("ts")
        .and_then(|c| c.as_any().downcast_ref::<arrow::array::PrimitiveArray<TimestampMicrosecondType>>());
    let Some(ts) = ts else { return (0, 0) };
    (arrow::compute::min(ts).unwrap_or(0), arrow::compute::max(ts).unwrap_or(0))
}

/// Runs a decoder over bytes that a disk gave back. parquet 60.1 panics on some damaged page indexes and pages (a
/// flipped bit in an offset index is enough); one bad file must not end the reader.
pub fn guarded<T>(decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(format!("the decoder gave up: {text}"))
    })
}

/// The value of a key in a file's metadata.
pub fn metadata_value<'a>(footer: &'a ParquetMetaData, key: &str) -> Option<&'a str> {
    let pairs = footer.file_metadata().key_value_metadata()?;
    pairs.iter().find(|kv| kv.key == key).and_then(|kv| kv.value.as_deref())
}

/// All rows of a file that is known to be small.
///
/// # Errors
/// Why it cannot be read.
pub fn rows(path: &Path) -> Result<Vec<RecordBatch>, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    guarded(|| {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| e.to_string())?;
        let reader = builder.build().map_err(|e| e.to_string())?;
        reader.collect::<Result<_, _>>().map_err(|e| e.to_string())
    })
}

/// Reads the footer and the page index of a closed file; no page is read.
pub fn open(table: Table, path: &Path) -> Result<Segment, SegmentError> {
    inspect(table, path).map(|(segment, _)| segment)
}

fn inspect(table: Table, path: &Path) -> Result<(Segment, Footer), SegmentError> {
    let damaged = |reason: String| SegmentError::Damaged { path: path.to_owned(), reason };
    let file_name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let name = SegmentName::parse(file_name)
        .ok_or_else(|| damaged("its name is not <start_us>-<boot>-<seq>.parquet".to_owned()))?;
    let footer = Footer::read(path)?;
    let there = std::fs::metadata(path).map_err(fail("cannot read the size of", path))?;
    let (bytes, modified_ns) = (there.len(), modified_ns(&there));
    let number = |key| footer.value(key).and_then(|v| v.parse::<i64>().ok());
    let from_us = number(FROM).unwrap_or(name.start_us);
    let to_us = number(TO).ok_or_else(|| damaged(format!("its metadata lacks {TO}")))?;
    let merged = match footer.value(INPUTS) {
        None => None,
        Some(text) => Some(Merged {
            hour_us: number(HOUR).ok_or_else(|| damaged(format!("its metadata lacks {HOUR}")))?,
            inputs: serde_json::from_str(text).map_err(|e| damaged(format!("bad {INPUTS}: {e}")))?,
        }),
    };
    let journal = footer.value(JOURNAL).map(str::to_owned);
    let (rows, taken, schema) = (footer.rows(), Vec::new(), footer.schema_version());
    let path = path.to_owned();
    let segment = Segment {
        table,
        path,
        name,
        from_us,
        to_us,
        rows,
        bytes,
        modified_ns,
        journal,
        merged,
        taken,
        schema,
        far: None,
    };
    Ok((segment, footer))
}

/// [`open`], and holds every byte before the footer against its checksum.
pub fn verify(table: Table, path: &Path) -> Result<Segment, SegmentError> {
    let (segment, footer) = inspect(table, path)?;
    footer.check_body(path)?;
    Ok(segment)
}
