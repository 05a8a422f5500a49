//! A file in a bucket, read a range at a time: what was fetched stays in memory, what was not is fetched when it is needed, with as
//! much of its neighbourhood as makes a further request unlikely.

use super::Trouble;
use crate::bucket::{Bucket, BucketError, Object};
use crate::names::Table;
use crate::segment::Far;
use bytes::{Bytes, BytesMut};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Runtime;

/// Fetched of the end of a file: the footer of `samples` with its page index takes more than those of tables with few columns.
const END_BYTES: u64 = 64 << 10;
const END_BYTES_OF_SAMPLES: u64 = 256 << 10;
/// A footer that is longer comes with this much before it.
const MORE_BYTES: u64 = 256 << 10;
/// Bytes between two ranges that are cheaper to fetch than another request is to make: 20 ms at 50 MB/s.
const GAP_BYTES: u64 = 1 << 20;
/// A file up to this is read at once, all columns that are wanted together.
const SMALL_BYTES: u64 = 8 << 20;

pub struct FarFile {
    bucket: Bucket,
    runtime: Arc<Runtime>,
    name: String,
    length: u64,
    end_bytes: u64,
    columns: Option<&'static [&'static str]>,
    /// Sorted by their start; no two touch.
    pieces: Mutex<Vec<(u64, Bytes)>>,
    trouble: Trouble,
}

impl FarFile {
    pub fn new(
        bucket: Bucket,
        runtime: Arc<Runtime>,
        object: &Object,
        table: Table,
        columns: Option<&'static [&'static str]>,
        trouble: Trouble,
    ) -> Self {
        let end_bytes = if table == Table::Samples { END_BYTES_OF_SAMPLES } else { END_BYTES };
        let (name, length) = (object.name.clone(), object.bytes);
        Self { bucket, runtime, name, length, end_bytes, columns, pieces: Mutex::default(), trouble }
    }

    fn pieces(&self) -> MutexGuard<'_, Vec<(u64, Bytes)>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches the end.
    pub async fn warm(&self) -> Result<(), BucketError> {
        if self.length > 0 {
            let start = self.length.saturating_sub(self.end_bytes);
            let bytes = self.bucket.range(&self.name, start..self.length).await?;
            insert(&mut self.pieces(), start, bytes);
        }
        Ok(())
    }

    fn found(&self, range: &Range<u64>) -> Option<Bytes> {
        let pieces = self.pieces();
        let (start, bytes) = pieces.iter().rev().find(|(start, _)| *start <= range.start)?;
        let from = usize::try_from(range.start - start).ok()?;
        let to = usize::try_from(range.end - start).ok()?;
        (to <= bytes.len()).then(|| bytes.slice(from..to))
    }

    fn fetch(&self, ranges: Vec<Range<u64>>) -> io::Result<()> {
        let fetched = self.runtime.block_on(async {
            let all = ranges.iter().map(|r| self.bucket.range(&self.name, r.clone()));
            futures_util::future::try_join_all(all).await
        });
        match fetched {
            Ok(fetched) => {
                let mut pieces = self.pieces();
                for (range, bytes) in ranges.into_iter().zip(fetched) {
                    insert(&mut pieces, range.start, bytes);
                }
                Ok(())
            }
            Err(error) => {
                let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                trouble.get_or_insert_with(|| error.to_string());
                Err(io::Error::other(error))
            }
        }
    }

    /// What is missing of a range; of what lies just before the end that is there already, more than that.
    fn missing(&self, range: &Range<u64>) -> Range<u64> {
        let pieces = self.pieces();
        let Some((start, bytes)) = pieces.last() else { return range.clone() };
        let reaches_end = start + bytes.len() as u64 == self.length;
        if reaches_end && range.end >= *start && range.start < *start {
            return range.start.saturating_sub(MORE_BYTES)..*start;
        }
        range.clone()
    }
}

/// Puts a piece to the others, and together what touches or overlaps.
fn insert(pieces: &mut Vec<(u64, Bytes)>, start: u64, bytes: Bytes) {
    let end_of = |(start, bytes): &(u64, Bytes)| start + bytes.len() as u64;
    let end = start + bytes.len() as u64;
    let (touching, mut apart): (Vec<_>, Vec<_>) =
        pieces.drain(..).partition(|p| p.0 <= end && end_of(p) >= start);
    let piece = if touching.is_empty() {
        (start, bytes)
    } else {
        let mut all = touching;
        all.push((start, bytes));
        all.sort_by_key(|p| p.0);
        let from = all[0].0;
        let mut whole = BytesMut::new();
        for (at, bytes) in all {
            let have = from + whole.len() as u64;
            let skip = usize::try_from(have.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
            whole.extend_from_slice(&bytes[skip..]);
        }
        (from, whole.freeze())
    };
    apart.push(piece);
    apart.sort_by_key(|p| p.0);
    *pieces = apart;
}

/// Neighbours as one.
fn together(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|r| r.start);
    let mut out: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(GAP_BYTES) => {
                last.end = range.end.max(last.end);
            }
            _ => out.push(range),
        }
    }
    out
}

impl Far for FarFile {
    fn length(&self) -> u64 {
        self.length
    }

    fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        if let Some(bytes) = self.found(&range) {
            return Ok(bytes);
        }
        self.fetch(vec![self.missing(&range)])?;
        self.found(&range).ok_or_else(|| io::Error::other(format!("{}: {range:?} cannot be had", self.name)))
    }

    fn expect(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        let missing: Vec<Range<u64>> =
            ranges.iter().filter(|r| !r.is_empty() && self.found(r).is_none()).cloned().collect();
        if missing.is_empty() { Ok(()) } else { self.fetch(together(missing)) }
    }

    fn wants(&self, column: &str) -> bool {
        match self.columns {
            Some(columns) => columns.contains(&column),
            None => self.length <= SMALL_BYTES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_touch_become_one_and_gaps_stay() {
        let mut pieces = Vec::new();
        let data: Vec<u8> = (0..=255).collect();
        let part = |r: Range<usize>| Bytes::copy_from_slice(&data[r]);
        insert(&mut pieces, 100, part(100..120));
        insert(&mut pieces, 10, part(10..20));
        insert(&mut pieces, 130, part(130..140));
        assert_eq!(pieces.len(), 3);
        insert(&mut pieces, 115, part(115..135));
        assert_eq!(pieces, [(10, part(10..20)), (100, part(100..140))]);
        insert(&mut pieces, 5, part(5..200));
        assert_eq!(pieces, [(5, part(5..200))]);
        insert(&mut pieces, 50, part(50..60));
        assert_eq!(pieces, [(5, part(5..200))], "what is known already changes nothing");
    }

    #[test]
    fn ranges_with_less_between_them_than_a_request_is_worth_are_one() {
        let far = GAP_BYTES + 10;
        let one = |ranges| {
            let out = together(ranges);
            assert_eq!(out.len(), 1, "{out:?}");
            (out[0].start, out[0].end)
        };
        assert_eq!(one(vec![50..60, 0..10]), (0, 60));
        assert_eq!(together(vec![0..10, far + 1..far + 9]), [0..10, far + 1..far + 9]);
        assert_eq!(one(vec![0..10, far..far + 9, 2..5]), (0, far + 9));
    }
}
