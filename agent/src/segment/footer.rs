//! The footer of a closed Parquet file of ours, and what it lets one check: the checksums of the body and of the tail, the order of rows.
//!
//! The tail is all that is written after the pages: page index, footer, its length. Its checksum stands in itself, as eight digits
//! that are zeros while it is computed ([`stamp`]). A file without one (of an earlier version) is believed.

use super::{BODY_CRC, Origin, SCHEMA, SegmentError, TAIL_CRC, UNSTAMPED, guarded, metadata_value};
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, SchemaRef, TimestampMicrosecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::{ARROW_SCHEMA_META_KEY, ProjectionMask};
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    FileMetaData, PageIndexPolicy, ParquetMetaData, ParquetMetaDataBuilder, ParquetMetaDataReader,
    RowGroupMetaData,
};
use parquet::file::reader::ChunkReader;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

pub struct Footer(ParquetMetaData);

/// What follows the pages, with zeros where its checksum is. `None` when the file says nothing of one.
fn tail_of(file: &impl ChunkReader, footer: &ParquetMetaData) -> Result<Option<Vec<u8>>, String> {
    let Some(said) = metadata_value(footer, TAIL_CRC) else { return Ok(None) };
    let start = metadata_value(footer, BODY_CRC).and_then(|v| v.split_once(':')?.0.parse::<u64>().ok());
    let start = start.ok_or("its metadata lacks the length of its body")?;
    let length = file.len().checked_sub(start);
    let length = length.and_then(|n| usize::try_from(n).ok()).ok_or("it is shorter than its body")?;
    let mut bytes = file.get_bytes(start, length).map_err(|e| e.to_string())?.to_vec();
    let digits = digits_of(&bytes, said)?;
    bytes[digits..digits + UNSTAMPED.len()].copy_from_slice(UNSTAMPED.as_bytes());
    Ok(Some(bytes))
}

/// Where in a tail its checksum is.
fn digits_of(tail: &[u8], said: &str) -> Result<usize, String> {
    let key = tail.windows(TAIL_CRC.len()).position(|w| w == TAIL_CRC.as_bytes());
    let value = key.map_or(&[][..], |key| &tail[key + TAIL_CRC.len()..]);
    // behind the key come a field header and the length
    let digits = value.windows(said.len()).take(8).position(|w| w == said.as_bytes());
    let digits = key.zip(digits).filter(|_| said.len() == UNSTAMPED.len());
    let digits = digits.map(|(key, at)| key + TAIL_CRC.len() + at);
    digits.ok_or_else(|| "the checksum of its footer is not one".to_owned())
}

/// Enters its checksum into a tail that is not written yet.
pub fn stamp(tail: &mut [u8]) -> Result<(), String> {
    let digits = digits_of(tail, UNSTAMPED)?;
    let crc = format!("{:08x}", crc32fast::hash(tail));
    tail[digits..digits + UNSTAMPED.len()].copy_from_slice(crc.as_bytes());
    Ok(())
}

/// A file's footer, held against its checksum: what all of its rows are read by.
pub fn load(path: &Path) -> Result<ArrowReaderMetadata, String> {
    load_from(&Origin::disk(path), false)
}

/// The same wherever the file is, with the page index if somebody will leave pages out by it: it takes 24 bytes in memory for each
/// page of each column, and without it the pages are found by their headers.
pub fn load_from(origin: &Origin, with_pages: bool) -> Result<ArrowReaderMetadata, String> {
    let file = origin.open().map_err(|e| e.to_string())?;
    let policy = if with_pages { PageIndexPolicy::Optional } else { PageIndexPolicy::Skip };
    let options = ArrowReaderOptions::new().with_page_index_policy(policy);
    guarded(|| {
        let metadata = ArrowReaderMetadata::load(&file, options).map_err(|e| e.to_string())?;
        check_tail(&file, metadata.metadata())?;
        Ok(metadata)
    })
}

/// The same footer without what other files have alike: the schema, of which each has 60 KB of text and as much again when it is
/// parsed, is one of `known` if it was met before.
pub fn without_copies(
    metadata: ArrowReaderMetadata,
    known: &mut Vec<SchemaRef>,
) -> Result<ArrowReaderMetadata, ParquetError> {
    let schema = known.iter().find(|s| *s == metadata.schema()).cloned();
    let schema = schema.unwrap_or_else(|| {
        known.push(metadata.schema().clone());
        metadata.schema().clone()
    });
    let whole = metadata.metadata().clone();
    drop(metadata);
    let file = whole.file_metadata();
    let pairs = file.key_value_metadata().into_iter().flatten();
    let lean = FileMetaData::new(
        file.version(),
        file.num_rows(),
        file.created_by().map(str::to_owned),
        Some(pairs.filter(|kv| kv.key != ARROW_SCHEMA_META_KEY).cloned().collect()),
        file.schema_descr_ptr(),
        file.column_orders().cloned(),
    );
    let mut whole = Arc::unwrap_or_clone(whole).into_builder();
    let (groups, pages) = (whole.take_row_groups(), whole.take_page_index());
    let lean = ParquetMetaDataBuilder::new(lean).set_row_groups(groups).set_page_index(pages).build();
    ArrowReaderMetadata::try_new(Arc::new(lean), ArrowReaderOptions::new().with_schema(schema))
}

/// Holds page index and footer against their checksum.
///
/// # Errors
/// Why they are not what was written.
fn check_tail(file: &impl ChunkReader, footer: &ParquetMetaData) -> Result<(), String> {
    let said = metadata_value(footer, TAIL_CRC).unwrap_or_default().to_owned();
    let Some(tail) = tail_of(file, footer)? else { return Ok(()) };
    let found = format!("{:08x}", crc32fast::hash(&tail));
    if found == said { Ok(()) } else { Err(format!("checksum of its footer is {found}, written was {said}")) }
}

impl Footer {
    /// Of a file that was opened to read its rows.
    pub fn of(metadata: &ArrowReaderMetadata) -> Self {
        Self(metadata.metadata().as_ref().clone())
    }

    /// Reads the footer and the page index; no page is read.
    pub fn read(path: &Path) -> Result<Self, SegmentError> {
        let io = |source| SegmentError::Io { step: "cannot open", path: path.to_owned(), source };
        // Looked at before it is opened: to open a pipe would wait for ever.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(io(io::Error::other("it is not a file")));
        }
        let file = File::open(path).map_err(io)?;
        let parse = || {
            let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
            let parsed = reader.parse_and_finish(&file).map_err(|e| format!("no footer: {e}"))?;
            check_tail(&file, &parsed)?;
            Ok(parsed)
        };
        let damaged = |reason| SegmentError::Damaged { path: path.to_owned(), reason };
        guarded(parse).map(Self).map_err(damaged)
    }

    pub fn value(&self, key: &str) -> Option<&str> {
        metadata_value(&self.0, key)
    }

    /// 0 when it does not say: a file that is not ours.
    pub fn schema_version(&self) -> u32 {
        self.value(SCHEMA).and_then(|v| v.parse().ok()).unwrap_or(0)
    }

    /// All of the metadata.
    pub fn pairs(&self) -> impl Iterator<Item = (String, String)> {
        let pairs = self.0.file_metadata().key_value_metadata().into_iter().flatten();
        pairs.map(|kv| (kv.key.clone(), kv.value.clone().unwrap_or_default()))
    }

    pub fn rows(&self) -> u64 {
        u64::try_from(self.0.file_metadata().num_rows()).unwrap_or(0)
    }

    pub fn columns(&self) -> usize {
        self.0.file_metadata().schema_descr().root_schema().get_fields().len()
    }

    /// Values of numbers in all rows, without those that are NULL; `None` where the file does not count its NULLs.
    pub fn values(&self, is_one: impl Fn(&str) -> bool) -> Option<u64> {
        let columns = self.0.row_groups().iter().flat_map(RowGroupMetaData::columns);
        let mut columns = columns.filter(|c| is_one(c.column_descr().name()));
        columns.try_fold(0, |sum, c| {
            let nulls = c.statistics()?.null_count_opt()?;
            Some(sum + u64::try_from(c.num_values()).ok()?.checked_sub(nulls)?)
        })
    }

    /// Holds every byte before the footer against its checksum.
    pub fn check_body(&self, path: &Path) -> Result<(), SegmentError> {
        let damaged = |reason: String| SegmentError::Damaged { path: path.to_owned(), reason };
        let Some((length, crc)) = self.value(BODY_CRC).and_then(|v| v.split_once(':')) else {
            return Err(damaged(format!("its metadata lacks {BODY_CRC}")));
        };
        let length: u64 = length.parse().map_err(|_| damaged(format!("bad {BODY_CRC}")))?;
        let io = |source| SegmentError::Io { step: "cannot read", path: path.to_owned(), source };
        let mut body = File::open(path).map_err(io)?.take(length);
        let mut hasher = crc32fast::Hasher::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = body.read(&mut buffer).map_err(io)?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
        }
        let found = format!("{:08x}", hasher.finalize());
        if found == crc { Ok(()) } else { Err(damaged(format!("checksum is {found}, written was {crc}"))) }
    }

    /// Whether the rows are sorted by (cgroup_id, ts), those of no cgroup first.
    pub fn is_in_order(&self, path: &Path) -> Result<bool, String> {
        let file = File::open(path).map_err(|e| e.to_string())?;
        guarded(|| {
            let mask = ProjectionMask::columns(self.0.file_metadata().schema_descr(), ["cgroup_id", "ts"]);
            let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| e.to_string())?;
            let reader = builder.with_projection(mask).build().map_err(|e| e.to_string())?;
            let mut last = None;
            for batch in reader {
                let batch = batch.map_err(|e| e.to_string())?;
                let ids = batch.column_by_name("cgroup_id").and_then(|c| c.as_primitive_opt::<Int64Type>());
                let ts =
                    batch.column_by_name("ts").and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
                let (Some(ids), Some(ts)) = (ids, ts) else {
                    return Err("it has no cgroup_id or no ts".to_owned());
                };
                for i in 0..batch.num_rows() {
                    let key = (ids.is_valid(i).then(|| ids.value(i)), ts.value(i));
                    if last.is_some_and(|last| key < last) {
                        return Ok(false);
                    }
                    last = Some(key);
                }
            }
            Ok(true)
        })
    }
}
