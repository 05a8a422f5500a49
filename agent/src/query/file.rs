//! Reads what a question wants of one closed file, and leaves out what its footer proves to be something else: row groups by their
//! statistics and by the bloom filter of container ids, pages by the page index. What is left is looked at row by row.
//!
//! Of a file that is far away, what a reading will take is asked for before it begins, all at once.
//!
//! Never changes a file; what cannot be read is an error with the reason. Called by `query` alone.

use super::{CHUNK_ROWS, Filter, Runs};
use crate::schema;
use crate::segment::{self, Origin};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder, RowSelection};
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::page_index::offset_index::OffsetIndexMetaData;
use parquet::file::statistics::Statistics;
use std::ops::Range;

const KEYS: [&str; 2] = ["cgroup_id", "ts"];

/// Notes the wanted rows; gives what is needed to read them. `is_whole` says that no page of it can be left out; `schemas` are
/// those of other files.
pub fn keys(
    origin: &Origin,
    is_whole: bool,
    schemas: &mut Vec<SchemaRef>,
    found: &mut Runs<'_>,
) -> Result<ArrowReaderMetadata, String> {
    // of one far away the places of pages are what is asked for
    let metadata = segment::load_from(origin, !is_whole || origin.far.is_some())?;
    if let Some(far) = &origin.far {
        // of a file on the disk its segment says so
        let version = segment::metadata_value(metadata.metadata(), segment::SCHEMA);
        let version = version.and_then(|v| v.parse().ok()).unwrap_or(0);
        if version > schema::VERSION {
            return Err(schema::newer(version));
        }
        let groups = metadata.metadata().row_groups().iter();
        let wanted = groups.filter(|g| may_match(g, found.filter));
        let places: Vec<_> = wanted
            .flat_map(RowGroupMetaData::columns)
            .filter(|c| name_of(c).is_some_and(|name| KEYS.contains(&name) || far.0.wants(name)))
            .map(whole)
            .collect();
        far.0.expect(&places).map_err(|e| e.to_string())?;
    }
    let mut start = 0;
    for (i, group) in metadata.metadata().row_groups().iter().enumerate() {
        let rows = usize::try_from(group.num_rows()).map_err(|e| e.to_string())?;
        let end = start + rows;
        let is_wanted =
            may_match(group, found.filter) && may_have_container(origin, &metadata, i, found.filter)?;
        let pages = if is_wanted { pages(&metadata, i, rows, found.filter) } else { Vec::new() };
        if !pages.is_empty() {
            let selection = RowSelection::from_consecutive_ranges(pages.iter().cloned(), rows);
            let mut places = pages.into_iter().flatten().map(|row| start + row);
            for batch in read(origin, &metadata, i, selection, &KEYS)? {
                found.add(&batch, &mut places);
            }
        }
        start = end;
    }
    segment::without_copies(metadata, schemas).map_err(|e| e.to_string())
}

/// Rows by their place in the file; `ranges` are sorted.
pub fn rows(
    origin: &Origin,
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
            out.extend(read(origin, metadata, i, selection, columns)?);
        }
        start = end;
    }
    Ok(out)
}

/// The wanted rows of one row group.
fn read(
    origin: &Origin,
    metadata: &ArrowReaderMetadata,
    group: usize,
    selection: RowSelection,
    columns: &[&str],
) -> Result<Vec<RecordBatch>, String> {
    let file = origin.open().map_err(|e| e.to_string())?;
    if let Some(far) = &origin.far {
        let places = places(metadata, group, &selection, columns);
        far.0.expect(&places).map_err(|e| e.to_string())?;
    }
    let mask = ProjectionMask::columns(metadata.parquet_schema(), columns.iter().copied());
    // a reader makes room for a whole batch of each column at once
    let batch = selection.row_count().min(CHUNK_ROWS);
    segment::guarded(|| {
        ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
            .with_row_groups(vec![group])
            .with_projection(mask)
            .with_row_selection(selection)
            .with_batch_size(batch)
            .build()
            .map_err(|e| e.to_string())?
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| e.to_string())
    })
}

fn name_of(column: &ColumnChunkMetaData) -> Option<&str> {
    column.column_path().parts().first().map(String::as_str)
}

fn whole(column: &ColumnChunkMetaData) -> Range<u64> {
    let (start, length) = column.byte_range();
    start..start.saturating_add(length)
}

/// Where the bytes are that a reading of some rows takes: the pages that have them, and the dictionaries of these.
fn places(
    metadata: &ArrowReaderMetadata,
    group: usize,
    selection: &RowSelection,
    columns: &[&str],
) -> Vec<Range<u64>> {
    let index = metadata.metadata().page_index();
    let mut out = Vec::new();
    for (i, column) in metadata.metadata().row_group(group).columns().iter().enumerate() {
        if !name_of(column).is_some_and(|name| columns.contains(&name)) {
            continue;
        }
        let pages =
            index.and_then(|index| index.offset_index(group, i)).map(OffsetIndexMetaData::page_locations);
        match pages.and_then(|pages| Some((pages, u64::try_from(pages.first()?.offset).ok()?))) {
            Some((pages, first)) => {
                let start = whole(column).start;
                if first > start {
                    out.push(start..first);
                }
                out.extend(selection.scan_ranges(pages));
            }
            None => out.push(whole(column)),
        }
    }
    out
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
    bounds("ts").is_none_or(|b| may_have_ts(filter, b))
        && bounds("cgroup_id").is_none_or(|b| may_have_cgroup(filter, b))
}

fn may_have_ts(filter: &Filter, (low, high): (i64, i64)) -> bool {
    high >= filter.from_us && low <= filter.to_us
}

fn may_have_cgroup(filter: &Filter, (low, high): (i64, i64)) -> bool {
    filter.cgroups.as_ref().is_none_or(|set| set.range(low..=high).next().is_some())
}

/// False when the bloom filter of a row group proves that no row of it has one of the container ids.
fn may_have_container(
    origin: &Origin,
    metadata: &ArrowReaderMetadata,
    group: usize,
    filter: &Filter,
) -> Result<bool, String> {
    let Some(wanted) = &filter.containers else { return Ok(true) };
    let columns = metadata.parquet_schema().columns();
    let Some(column) = columns.iter().position(|c| c.path().string() == "container_id") else {
        return Ok(true);
    };
    let file = origin.open().map_err(|e| e.to_string())?;
    segment::guarded(|| {
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone());
        let bloom = reader.get_row_group_column_bloom_filter(group, column).map_err(|e| e.to_string())?;
        Ok(bloom.is_none_or(|bloom| wanted.iter().any(|id| bloom.check(&id.as_str()))))
    })
}

/// The rows of a row group that are in pages which may have what is asked for.
fn pages(metadata: &ArrowReaderMetadata, group: usize, rows: usize, filter: &Filter) -> Vec<Range<usize>> {
    let of = |name: &str, may: &dyn Fn((i64, i64)) -> bool, null: bool| {
        let columns = metadata.parquet_schema().columns();
        let column = columns.iter().position(|c| c.path().string() == name)?;
        let index = metadata.metadata().page_index()?;
        let ColumnIndexMetaData::INT64(values) = index.column_index(group, column)? else { return None };
        let places = index.offset_index(group, column)?.page_locations();
        let begins = places.iter().map(|p| usize::try_from(p.first_row_index).unwrap_or(0));
        let ends = begins.clone().skip(1).chain([rows]);
        let kept = begins.zip(ends).enumerate().filter(|(i, _)| {
            let bounds = values.min_value(*i).zip(values.max_value(*i));
            bounds.map_or(null, |(low, high)| may((*low, *high)))
        });
        Some(RowSelection::from_consecutive_ranges(kept.map(|(_, (from, to))| from..to), rows))
    };
    let by_ts = of("ts", &|b| may_have_ts(filter, b), true);
    let by_cgroup = of("cgroup_id", &|b| may_have_cgroup(filter, b), filter.cgroups.is_none());
    let both = match (by_ts, by_cgroup) {
        (Some(a), Some(b)) => a.intersection(&b),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => return std::iter::once(0..rows).collect(),
    };
    let mut at = 0;
    let mut out = Vec::new();
    for part in both.iter() {
        if !part.skip && part.row_count > 0 {
            out.push(at..at + part.row_count);
        }
        at += part.row_count;
    }
    out
}
