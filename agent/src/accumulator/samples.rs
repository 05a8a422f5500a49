//! Rows of the `samples` table, packed: a fixed header, a mask of the columns set, and the values of those alone.

use crate::catalogue::ColumnIndex;
use crate::cgroup::Meta;
use crate::names::{Cause, CgroupId};
use crate::recorder::{MASK_WORDS, Row};
use std::collections::HashMap;
use std::sync::Arc;

/// An instant in both clocks: the kernel's monotonic one in ns, wall time in µs since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    pub ktime_ns: u64,
    pub wall_us: i64,
}

/// How a sample came about.
#[derive(Clone, Copy, Debug)]
pub struct SampleRow<'a> {
    pub at: Stamp,
    pub cause: Cause,
    pub period_ms: u32,
    pub burst: Option<&'a str>,
    /// Bit per file of the catalogue.
    pub files_read: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Header {
    pub at: Stamp,
    pub meta: u32,
    pub burst: Option<u32>,
    pub period_ms: u32,
    pub cause: Cause,
    pub files_read: u64,
    pub mask: [u64; MASK_WORDS],
    pub start: usize,
}

/// Samples of all cgroups, in the order in which they were committed.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    pub(super) metas: Vec<Arc<Meta>>,
    meta_index: HashMap<CgroupId, u32>,
    pub(super) bursts: Vec<String>,
    pub(super) headers: Vec<Header>,
    pub(super) values: Vec<u64>,
}

impl Samples {
    fn meta(&mut self, meta: &Arc<Meta>) -> u32 {
        if let Some(&i) = self.meta_index.get(&meta.id) {
            return i;
        }
        let i = u32::try_from(self.metas.len()).unwrap_or(u32::MAX);
        self.metas.push(meta.clone());
        self.meta_index.insert(meta.id, i);
        i
    }

    fn burst(&mut self, burst: &str) -> u32 {
        // few bursts run at once, and the newest is the one asked for
        let found = self.bursts.iter().rposition(|b| b == burst).unwrap_or_else(|| {
            self.bursts.push(burst.to_owned());
            self.bursts.len() - 1
        });
        u32::try_from(found).unwrap_or(u32::MAX)
    }

    fn push(&mut self, meta: &Arc<Meta>, row: &SampleRow<'_>, mask: [u64; MASK_WORDS], start: usize) {
        let header = Header {
            at: row.at,
            meta: self.meta(meta),
            burst: row.burst.map(|b| self.burst(b)),
            period_ms: row.period_ms,
            cause: row.cause,
            files_read: row.files_read,
            mask,
            start,
        };
        self.headers.push(header);
    }

    /// Turns a pending row into a sample and empties it.
    pub fn commit(&mut self, meta: &Arc<Meta>, row: SampleRow<'_>, pending: &Row) {
        let start = self.values.len();
        let mask = pending.take(&mut self.values);
        self.push(meta, &row, mask, start);
    }

    /// Adds a reading of the lane's ring. `values` in column order.
    pub fn history(
        &mut self,
        meta: &Arc<Meta>,
        at: Stamp,
        period_ms: u32,
        burst: &str,
        values: &[(ColumnIndex, u64)],
        files_read: u64,
    ) {
        let start = self.values.len();
        let mut mask = [0; MASK_WORDS];
        for &(column, value) in values {
            mask[column / 64] |= 1 << (column % 64);
            self.values.push(value);
        }
        let row = SampleRow { at, cause: Cause::History, period_ms, burst: Some(burst), files_read };
        self.push(meta, &row, mask, start);
    }

    /// A column of the row that was committed last.
    pub fn last(&self, column: ColumnIndex) -> Option<u64> {
        self.value(self.headers.last()?, column)
    }

    /// The column's value in a packed row: its place among the values is the number of set bits before its own.
    pub(super) fn value(&self, header: &Header, column: ColumnIndex) -> Option<u64> {
        let (word, bit) = (column / 64, column % 64);
        if header.mask[word] >> bit & 1 == 0 {
            return None;
        }
        let before: u32 = header.mask[..word].iter().map(|w| w.count_ones()).sum::<u32>()
            + (header.mask[word] & ((1 << bit) - 1)).count_ones();
        self.values.get(header.start + before as usize).copied()
    }

    /// A copy of the rows that are not before an instant.
    pub(super) fn since(&self, from_us: i64) -> Self {
        if from_us == i64::MIN {
            return self.clone();
        }
        let (metas, meta_index) = (self.metas.clone(), self.meta_index.clone());
        let mut out = Self { metas, meta_index, bursts: self.bursts.clone(), ..Self::default() };
        for header in self.headers.iter().filter(|h| h.at.wall_us >= from_us) {
            let held: u32 = header.mask.iter().map(|w| w.count_ones()).sum();
            let start = out.values.len();
            out.values.extend(self.values.iter().skip(header.start).take(held as usize));
            out.headers.push(Header { start, ..header.clone() });
        }
        out
    }

    pub fn len(&self) -> usize {
        self.headers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }

    /// Values of all rows, without those that are NULL.
    pub fn values(&self) -> usize {
        self.values.len()
    }

    /// Bytes held, by capacity.
    pub fn bytes(&self) -> usize {
        self.headers.capacity() * size_of::<Header>() + self.values.capacity() * size_of::<u64>()
    }
}
