//! Rows into Parquet, with the settings of every file we make, column by column. Counts and checksums what it writes. Knows no path;
//! `segment`, `compaction` and `export` give it a sink.

use super::{BODY_CRC, ROW_GROUP_ROWS, TAIL_CRC, UNSTAMPED, footer};
use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, FieldRef, Int32Type, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, compute_leaves};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::ColumnPath;
use std::collections::HashSet;
use std::io::{self, Write};
use std::sync::Arc;

/// Rows of a page at the most; at 1 Hz it is over two hours of one cgroup. Whoever reads or writes a file has 24 bytes in memory for
/// each page of each column.
pub const PAGE_ROWS: usize = 8192;
/// The same of a file that is made to be read as a whole.
pub const LONG_PAGE_ROWS: usize = 4 * PAGE_ROWS;
/// zstd 9 saves 2-3 % more for four times the CPU.
const ZSTD_LEVEL: i32 = 3;

/// Columns of numbers that are in memory together: 262,144 rows of 2 take 4 MB.
const COLUMNS: usize = 2;
/// Columns whose pages have statistics, since rows are looked for by them. A reader holds those of all pages.
const SOUGHT: [&str; 5] = ["cgroup_id", "ts", "ktime_ns", "container_id", "pod_uid"];

/// The columns of a row group that are read and written together. A text is as long as it likes: such a column goes alone.
pub fn few(schema: &Schema) -> impl Iterator<Item = SchemaRef> {
    let is_number = |f: &FieldRef| f.data_type().is_primitive();
    let alike = schema.fields().chunk_by(move |a, b| is_number(a) && is_number(b));
    alike.flat_map(|fields| fields.chunks(COLUMNS)).map(|fields| Arc::new(Schema::new(fields.to_vec())))
}

/// Different values of a dictionary column, for the size of its bloom filter.
pub fn distinct(batches: &[RecordBatch], column: &str) -> u64 {
    let mut found = HashSet::new();
    for array in batches.iter().filter_map(|b| b.column_by_name(column)) {
        let Some(array) = array.as_dictionary_opt::<Int32Type>() else { continue };
        let Some(values) = array.values().as_string_opt::<i32>() else { continue };
        let keys: HashSet<usize> = array.keys_iter().flatten().collect();
        found.extend(keys.into_iter().map(|k| values.value(k)));
    }
    found.len() as u64
}

/// The writer settings of every file we make.
fn properties(
    schema: &Schema,
    page_rows: usize,
    ndv: [(&str, u64); 2],
    metadata: Vec<KeyValue>,
) -> WriterProperties {
    let mut p = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL).unwrap_or_default()))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(page_rows)
        .set_created_by(concat!("fgm ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(metadata));
    let mut sorting = Vec::new();
    for (i, field) in schema.fields().iter().enumerate() {
        let path = ColumnPath::from(field.name().as_str());
        if SOUGHT.contains(&field.name().as_str()) {
            p = p.set_column_statistics_enabled(path.clone(), EnabledStatistics::Page);
        }
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

/// Counts and checksums the pages that pass through, and holds back what follows them until it has its checksum.
struct Checked<W> {
    inner: W,
    crc: crc32fast::Hasher,
    bytes: u64,
    tail: Option<Vec<u8>>,
}

impl<W: Write> Checked<W> {
    fn new(inner: W) -> Self {
        Self { inner, crc: crc32fast::Hasher::new(), bytes: 0, tail: None }
    }

    /// All pages are written. What the footer has to say of them.
    fn body_ends(&mut self) -> [KeyValue; 2] {
        self.tail = Some(Vec::new());
        let body = format!("{}:{:08x}", self.bytes, self.crc.clone().finalize());
        [(BODY_CRC, body), (TAIL_CRC, UNSTAMPED.to_owned())].map(|(k, v)| KeyValue::new(k.to_owned(), v))
    }

    fn finish(mut self) -> Result<W, ParquetError> {
        let mut tail = self.tail.take().unwrap_or_default();
        footer::stamp(&mut tail).map_err(ParquetError::General)?;
        self.inner.write_all(&tail)?;
        self.inner.flush()?;
        Ok(self.inner)
    }
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if let Some(tail) = &mut self.tail {
            tail.extend_from_slice(buf);
            return Ok(buf.len());
        }
        let n = self.inner.write(buf)?;
        self.crc.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Rows into Parquet with the settings of every file we make: row groups, column by column, so that none need be in memory as a
/// whole. The rows must come sorted.
pub struct Encoder<W: Write + Send> {
    writer: SerializedFileWriter<Checked<W>>,
    schema: SchemaRef,
    page_rows: usize,
    ndv: [(&'static str, u64); 2],
}

impl<W: Write + Send> Encoder<W> {
    /// `ndv` = different container ids and pod uids to come, for the bloom filters.
    pub fn new(
        sink: W,
        schema: &SchemaRef,
        page_rows: usize,
        ndv: (u64, u64),
        metadata: &[(String, String)],
    ) -> Result<Self, ParquetError> {
        let pairs = metadata.iter().map(|(k, v)| KeyValue::new(k.clone(), v.clone())).collect();
        let ndv = [("container_id", ndv.0), ("pod_uid", ndv.1)];
        let properties = properties(schema, page_rows, ndv, pairs);
        let writer = ArrowWriter::try_new(Checked::new(sink), schema.clone(), Some(properties))?;
        let (writer, _) = writer.into_serialized_writer()?;
        Ok(Self { writer, schema: schema.clone(), page_rows, ndv })
    }

    pub fn row_group(&mut self) -> Result<RowGroup<'_, W>, ParquetError> {
        let (schema, page_rows, ndv) = (self.schema.clone(), self.page_rows, self.ndv);
        Ok(RowGroup { writer: self.writer.next_row_group()?, schema, page_rows, ndv, next: 0 })
    }

    /// Adds to the metadata what is known at the end alone.
    pub fn note(&mut self, key: &str, value: String) {
        self.writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
    }

    /// Writes the footer and gives the sink back.
    pub fn close(mut self) -> Result<W, ParquetError> {
        self.writer.flush()?;
        for pair in self.writer.inner_mut().body_ends() {
            self.writer.append_key_value_metadata(pair);
        }
        self.writer.into_inner()?.finish()
    }
}

/// A row group that waits for its next column.
pub struct RowGroup<'a, W: Write + Send> {
    writer: SerializedRowGroupWriter<'a, Checked<W>>,
    schema: SchemaRef,
    page_rows: usize,
    ndv: [(&'static str, u64); 2],
    next: usize,
}

impl<W: Write + Send> RowGroup<'_, W> {
    /// The next column of the schema: all its values.
    pub fn column(&mut self, values: &ArrayRef) -> Result<(), ParquetError> {
        let schema = self.schema.clone();
        let field = schema.fields().get(self.next);
        let field = field.ok_or_else(|| ParquetError::General("a column too many".to_owned()))?;
        self.next += 1;
        let mut writers = self.writers(field)?.into_iter();
        for leaf in compute_leaves(field, values)? {
            let column = writers.next();
            let mut column = column.ok_or_else(|| ParquetError::General("a leaf too many".to_owned()))?;
            column.write(&leaf)?;
            column.close()?.append_to_row_group(&mut self.writer)?;
        }
        Ok(())
    }

    /// The writers of one column, as those of a file that has no other: all at once have a compressor and a decompressor
    /// each, 16 MB of them.
    fn writers(&self, field: &FieldRef) -> Result<Vec<ArrowColumnWriter>, ParquetError> {
        let alone = Arc::new(Schema::new(vec![field.clone()]));
        let properties = properties(&alone, self.page_rows, self.ndv, Vec::new());
        let (_, factory) =
            ArrowWriter::try_new(Vec::new(), alone, Some(properties))?.into_serialized_writer()?;
        factory.create_column_writers(0)
    }

    pub fn close(self) -> Result<(), ParquetError> {
        self.writer.close().map(drop)
    }
}
