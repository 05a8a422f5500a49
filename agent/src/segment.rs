//! One closed Parquet file of one table: its name, how it is encoded, and how it gets onto the disk in one piece.
//!
//! Rows are sorted by (cgroup_id, ts). A file is written under a temporary name, finished, fsynced, renamed, and its
//! folder fsynced; closing consumes the writer. A reader therefore never sees half a file under a final name.
//! Never opens a file that is already closed for writing, never decides when to write: `store` does.
//! `export` uses the same [`Encoder`] for the files it hands out.
//!
//! parquet 60.1 verifies page checksums but cannot write them, so the checksum of everything before the footer stands
//! in the footer: `fgm.body_crc32` = `<bytes>:<crc32 in hex>`. [`verify`] holds a file against it.

mod footer;

pub use footer::Footer;

use crate::names::Table;
use crate::schema;
use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, new_null_array};
use arrow::compute::{SortColumn, SortOptions, cast, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Int32Type, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaData, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of a row group at the most: bounds what writer and reader hold, and is the grain of pruning.
pub const ROW_GROUP_ROWS: usize = 65_536;
/// Rows of a page at the most; at 1 Hz it is a little over an hour of one cgroup.
const PAGE_ROWS: usize = 4096;
/// zstd 9 saves 2-3 % more for four times the CPU.
const ZSTD_LEVEL: i32 = 3;
/// Ending of a file that is still being written. It does not match `*.parquet`.
pub const TEMPORARY: &str = "parquet.tmp";
/// Key of the journal that held the file's rows.
pub const JOURNAL: &str = "fgm.journal";
const BODY_CRC: &str = "fgm.body_crc32";

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

/// `<start_us>-<boot>-<seq>.parquet`: sorts by time, unique in a data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentName {
    pub start_us: i64,
    /// Boot id without its dashes.
    pub boot: String,
    pub seq: u64,
}

impl SegmentName {
    pub fn parse(file_name: &str) -> Option<Self> {
        let mut parts = file_name.strip_suffix(".parquet")?.splitn(3, '-');
        let start_us = parts.next()?.parse().ok().filter(|v| *v >= 0)?;
        let boot = parts.next().filter(|b| !b.is_empty())?.to_owned();
        // The store counts on from the highest.
        let seq = parts.next()?.parse().ok().filter(|seq| *seq < u64::MAX / 2)?;
        Some(Self { start_us, boot, seq })
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
    /// The journal whose rows of this table these are: with it, a journal that is left over is not read twice.
    pub journal: Option<String>,
}

impl Segment {
    pub fn overlaps(&self, from_us: i64, to_us: i64) -> bool {
        self.from_us <= to_us && self.to_us >= from_us
    }
}

/// The file operations behind a segment and a journal, so that a test can make each of them fail.
pub trait Io: Send + Sync + 'static {
    fn create(&self, path: &Path) -> io::Result<File>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
}

/// The real file system.
pub struct Disk;

impl Io for Disk {
    fn create(&self, path: &Path) -> io::Result<File> {
        File::create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

/// The batch with exactly the columns of `schema`, by name: an absent nullable one becomes NULL (the file of an older
/// version), another type is cast when arrow can (text that is not a dictionary), surplus columns are dropped.
pub fn conform(table: Table, batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, SegmentError> {
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
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
        columns.push(column);
    }
    let rows = |source| SegmentError::Rows { table: table.as_str(), source };
    RecordBatch::try_new(schema.clone(), columns).map_err(rows)
}

/// All batches as one, sorted by (cgroup_id, ts, ktime_ns); equal keys keep the order in which they came, so that the
/// same rows always give the same bytes.
pub fn sorted(
    table: Table,
    batches: &[RecordBatch],
    schema: &SchemaRef,
) -> Result<RecordBatch, SegmentError> {
    let rows = |source| SegmentError::Rows { table: table.as_str(), source };
    let conformed: Vec<RecordBatch> =
        batches.iter().map(|b| conform(table, b, schema)).collect::<Result<_, _>>()?;
    let whole = concat_batches(schema, &conformed).map_err(rows)?;
    let place: ArrayRef = Arc::new(arrow::array::UInt64Array::from_iter_values(0..whole.num_rows() as u64));
    let options = Some(SortOptions { descending: false, nulls_first: true });
    let mut keys: Vec<SortColumn> = ["cgroup_id", "ts", "ktime_ns"]
        .iter()
        .filter_map(|k| whole.column_by_name(k))
        .map(|c| SortColumn { values: c.clone(), options })
        .collect();
    keys.push(SortColumn { values: place, options });
    let order = lexsort_to_indices(&keys, None).map_err(rows)?;
    take_record_batch(&whole, &order).map_err(rows)
}

/// Different values of a dictionary column, for the size of its bloom filter.
pub fn distinct(batch: &RecordBatch, column: &str) -> u64 {
    let Some(array) = batch.column_by_name(column) else { return 0 };
    let Some(dictionary) = array.as_any().downcast_ref::<arrow::array::DictionaryArray<Int32Type>>() else {
        return 0;
    };
    let Some(values) = dictionary.values().as_any().downcast_ref::<StringArray>() else { return 0 };
    let keys: HashSet<usize> = dictionary.keys_iter().flatten().collect();
    keys.into_iter().map(|k| values.value(k)).collect::<HashSet<_>>().len() as u64
}

/// The writer settings of every file we make.
fn properties(schema: &Schema, ndv: [(&str, u64); 2], metadata: Vec<KeyValue>) -> WriterProperties {
    let mut p = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL).unwrap_or_default()))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_created_by(concat!("fgm ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(metadata));
    let mut sorting = Vec::new();
    for (i, field) in schema.fields().iter().enumerate() {
        let path = ColumnPath::from(field.name().as_str());
        p = match field.data_type() {
            DataType::Dictionary(_, _) => p.set_column_dictionary_enabled(path, true),
            DataType::Map(entries, _) => {
                let part = |of: &str| {
                    ColumnPath::new(vec![field.name().clone(), entries.name().clone(), of.to_owned()])
                };
                p.set_column_dictionary_enabled(part("key"), true)
                    .set_column_dictionary_enabled(part("value"), true)
            }
            DataType::Float64 => p.set_column_encoding(path, Encoding::BYTE_STREAM_SPLIT),
            _ => p.set_column_encoding(path, Encoding::DELTA_BINARY_PACKED),
        };
        if matches!(field.name().as_str(), "cgroup_id" | "ts") {
            let column_idx = i32::try_from(i).unwrap_or(i32::MAX);
            sorting.push((
                field.name() == "ts",
                SortingColumn { column_idx, descending: false, nulls_first: true },
            ));
        }
    }
    sorting.sort_by_key(|(is_ts, _)| *is_ts);
    for (column, n) in ndv {
        if schema.column_with_name(column).is_some() {
            p = p.set_column_bloom_filter_max_ndv(ColumnPath::from(column), n.max(1));
        }
    }
    p.set_sorting_columns(Some(sorting.into_iter().map(|(_, s)| s).collect())).build()
}

/// Counts and checksums what passes through.
struct Checked<W> {
    inner: W,
    crc: crc32fast::Hasher,
    bytes: u64,
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.crc.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Rows into Parquet with the settings of every file we make. The rows must come sorted.
pub struct Encoder<W: Write + Send> {
    writer: ArrowWriter<Checked<W>>,
}

impl<W: Write + Send> Encoder<W> {
    /// `ndv` = different container ids and pod uids to come, for the bloom filters.
    pub fn new(
        sink: W,
        schema: &SchemaRef,
        ndv: (u64, u64),
        metadata: &[(String, String)],
    ) -> Result<Self, ParquetError> {
        let pairs = metadata.iter().map(|(k, v)| KeyValue::new(k.clone(), v.clone())).collect();
        let p = properties(schema, [("container_id", ndv.0), ("pod_uid", ndv.1)], pairs);
        let sink = Checked { inner: sink, crc: crc32fast::Hasher::new(), bytes: 0 };
        Ok(Self { writer: ArrowWriter::try_new(sink, schema.clone(), Some(p))? })
    }

    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), ParquetError> {
        self.writer.write(batch)
    }

    /// Bytes given to the sink so far.
    pub fn bytes(&self) -> u64 {
        self.writer.inner().bytes
    }

    /// Writes the footer and gives the sink back.
    pub fn close(mut self) -> Result<W, ParquetError> {
        self.writer.flush()?;
        self.writer.sync()?;
        let body = self.writer.inner();
        let check = format!("{}:{:08x}", body.bytes, body.crc.clone().finalize());
        self.writer.append_key_value_metadata(KeyValue::new(BODY_CRC.to_owned(), check));
        Ok(self.writer.into_inner()?.inner)
    }
}

/// A temporary file that goes away unless it is published.
struct Temporary {
    path: PathBuf,
    is_published: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_published {
            // Best effort: what stays behind is removed at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
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
    let rows = sorted(table, batches, &schema)?;
    let (from_us, to_us) = time_range(&rows);
    let name = SegmentName { start_us: from_us.max(0), boot: boot.to_owned(), seq };
    let path = dir.join(name.file_name());
    let temporary = path.with_extension(TEMPORARY);

    let mut pairs = vec![
        ("fgm.table".to_owned(), table.as_str().to_owned()),
        ("fgm.schema_version".to_owned(), schema::VERSION.to_string()),
        ("fgm.agent_version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("fgm.from_us".to_owned(), from_us.to_string()),
        ("fgm.to_us".to_owned(), to_us.to_string()),
        ("fgm.seq".to_owned(), seq.to_string()),
    ];
    pairs.retain(|(k, _)| !metadata.iter().any(|(m, _)| m == k));
    pairs.extend_from_slice(metadata);

    let fail = |step, path: &Path| {
        let path = path.to_owned();
        move |source| SegmentError::Io { step, path, source }
    };
    let encode = |source| SegmentError::Encode { path: temporary.clone(), source };
    let file = io.create(&temporary).map_err(fail("cannot create", &temporary))?;
    let mut guard = Temporary { path: temporary.clone(), is_published: false };
    let ndv = (distinct(&rows, "container_id"), distinct(&rows, "pod_uid"));
    let mut encoder = Encoder::new(file, &schema, ndv, &pairs).map_err(encode)?;
    encoder.write(&rows).map_err(encode)?;
    let file = encoder.close().map_err(encode)?;
    io.sync(&file).map_err(fail("cannot fsync", &temporary))?;
    let bytes = file.metadata().map_err(fail("cannot read the size of", &temporary))?.len();
    drop(file);
    io.rename(&temporary, &path).map_err(fail("cannot rename to", &path))?;
    guard.is_published = true;
    io.sync_dir(dir).map_err(fail("cannot fsync the folder", dir))?;
    let journal = pairs.into_iter().find(|(k, _)| k == JOURNAL).map(|(_, v)| v);
    Ok(Segment { table, path, name, from_us, to_us, rows: rows.num_rows() as u64, bytes, journal })
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
    let io = |source| SegmentError::Io { step: "cannot read the size of", path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    let number = |key| footer.value(key).and_then(|v| v.parse::<i64>().ok());
    let from_us = number("fgm.from_us").unwrap_or(name.start_us);
    let to_us = number("fgm.to_us").ok_or_else(|| damaged("its metadata lacks fgm.to_us".to_owned()))?;
    let journal = footer.value(JOURNAL).map(str::to_owned);
    let rows = footer.rows();
    Ok((Segment { table, path: path.to_owned(), name, from_us, to_us, rows, bytes, journal }, footer))
}

/// [`open`], and holds every byte before the footer against its checksum.
pub fn verify(table: Table, path: &Path) -> Result<Segment, SegmentError> {
    let (segment, footer) = inspect(table, path)?;
    footer.check_body(path)?;
    Ok(segment)
}
