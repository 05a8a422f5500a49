//! Sealed batches that are not yet a closed segment: the bounded list between the pipeline and the writer thread.
//!
//! Plain values, no clock, no lock, no file opened. When the writer is behind (a slow or a full disk, a busy machine) the
//! list grows. Beyond a first bound rows that the journal has leave memory, oldest rotation first, and are read from there
//! when their turn has come. Beyond a second one, which only rows that the journal could not take can reach, the oldest
//! batch that belongs to no incident goes first, and every row that goes is counted.

use crate::journal::{self, JournalName};
use crate::names::Table;
use crate::segment::Segment;
use crate::store::writer::SealResult;
use arrow::array::{Array, RecordBatch};
use crossbeam_channel::Sender;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes that waiting batches may take together: some ten minutes of 200 cgroups at 1 Hz.
pub const PENDING_BYTES: usize = 64 << 20;
/// Bytes beyond which those that the journal has are left to it.
const IN_MEMORY_BYTES: usize = 24 << 20;

/// Why a batch was dropped before it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropReason {
    /// The writer was behind and ordinary rows made room.
    WriterBehind,
    /// The writer was behind and only evidence of incidents was left to make room.
    WriterBehindIncident,
    /// The writer was behind, the rows were left to the journal, and it gave back fewer.
    JournalDamaged,
    /// The rows do not fit the table: a fault of the program, which must not hold up all that comes after.
    Refused,
}

impl DropReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WriterBehind => "writer_behind",
            Self::WriterBehindIncident => "writer_behind_incident",
            Self::JournalDamaged => "journal_damaged",
            Self::Refused => "refused",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    pub table: Table,
    pub reason: DropReason,
    pub rows: u64,
}

/// Bytes of a batch's rows, as if it had all of them for itself: columns of zeros share theirs.
pub fn bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|c| c.to_data().get_slice_memory_size().unwrap_or(0)).sum()
}

/// One table's rows of one rotation: becomes one file.
#[derive(Clone, Debug)]
pub struct Item {
    pub seq: u64,
    pub table: Table,
    pub batches: Vec<RecordBatch>,
    pub rows: u64,
    /// The journal that has the rows, when `batches` has them no more.
    pub journal: Option<Arc<File>>,
    bytes: usize,
    is_evidence: bool,
}

impl Item {
    /// The rows, from wherever they are. From the journal they may be fewer than there should be.
    pub fn read(&self) -> io::Result<Vec<RecordBatch>> {
        match &self.journal {
            None => Ok(self.batches.clone()),
            Some(file) => Ok(journal::read_table(&whole(file)?, self.table)),
        }
    }

    pub fn new(seq: u64, table: Table, batches: Vec<RecordBatch>) -> Self {
        let rows = batches.iter().map(|b| b.num_rows() as u64).sum();
        let bytes = batches.iter().map(bytes).sum();
        let is_evidence = match table {
            // the account as well: without it nobody can say what is missing
            Table::Incidents | Table::Events | Table::Processes | Table::Containers | Table::Ledger => true,
            Table::Samples => batches
                .iter()
                .any(|b| b.column_by_name("burst_id").is_some_and(|c| c.logical_null_count() < c.len())),
            Table::IoDevices | Table::Metrics | Table::Node => false,
        };
        Self { seq, table, batches, rows, journal: None, bytes, is_evidence }
    }
}

/// All bytes of a file, whatever its place in it, and even when its name has gone.
pub fn whole(file: &File) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

pub struct Rotation {
    pub number: u64,
    pub items: Vec<Item>,
    pub written: Vec<Segment>,
    pub dropped_rows: u64,
    pub metadata: Vec<(String, String)>,
    pub done: Option<Sender<SealResult>>,
    /// Goes when nothing of the rotation waits any more.
    pub journal: Option<JournalName>,
    /// The last flush of the rotation.
    pub last_flush: u64,
}

/// How a rotation's journal stands.
pub enum InJournal {
    /// All its flushes are there.
    Whole(Arc<File>),
    /// The last ones are on their way.
    NotYet,
    /// Some flush will never be there, or there is no journal.
    Never,
}

/// What the writer is given to write.
pub struct Begun {
    pub item: Item,
    pub metadata: Vec<(String, String)>,
    pub rotation: u64,
}

pub struct Pending {
    rotations: VecDeque<Rotation>,
    bytes: usize,
    limit: usize,
    /// The item that the writer is at: it is not dropped under its hands.
    busy: Option<u64>,
    dropped: BTreeMap<(Table, DropReason), u64>,
}

impl Pending {
    pub fn new(limit: usize) -> Self {
        Self { rotations: VecDeque::new(), bytes: 0, limit, busy: None, dropped: BTreeMap::new() }
    }

    pub fn push(&mut self, rotation: Rotation) {
        self.bytes += rotation.items.iter().map(|i| i.bytes).sum::<usize>();
        self.rotations.push_back(rotation);
    }

    /// Holds the list to its bounds; to be called whenever it or a journal has grown. Rows on their way into the journal
    /// are not dropped: they are there in a moment, or the bound on what waits for the journal makes them ones that never will be.
    pub fn make_room(&mut self, journal: impl Fn(&Rotation) -> InJournal) {
        self.leave_to_journal(&journal);
        let never = |r: &Rotation| matches!(journal(r), InJournal::Never);
        while self.bytes > self.limit && (self.drop_oldest(false, &never) || self.drop_oldest(true, &never)) {
        }
    }

    fn leave_to_journal(&mut self, journal: &impl Fn(&Rotation) -> InJournal) {
        for rotation in &mut self.rotations {
            if self.bytes <= IN_MEMORY_BYTES.min(self.limit) {
                return;
            }
            let InJournal::Whole(file) = journal(rotation) else { continue };
            let busy = self.busy;
            for item in rotation.items.iter_mut().filter(|i| i.journal.is_none() && Some(i.seq) != busy) {
                self.bytes -= item.bytes;
                item.bytes = 0;
                item.batches = Vec::new();
                item.journal = Some(file.clone());
            }
        }
    }

    fn drop_oldest(&mut self, of_evidence: bool, may: &impl Fn(&Rotation) -> bool) -> bool {
        let busy = self.busy;
        for rotation in &mut self.rotations {
            if !may(rotation) {
                continue;
            }
            let goes = |i: &Item| i.is_evidence == of_evidence && i.bytes > 0 && Some(i.seq) != busy;
            let at = rotation.items.iter().position(goes);
            if let Some(at) = at {
                let item = rotation.items.remove(at);
                rotation.dropped_rows += item.rows;
                self.bytes -= item.bytes;
                let reason =
                    if of_evidence { DropReason::WriterBehindIncident } else { DropReason::WriterBehind };
                *self.dropped.entry((item.table, reason)).or_default() += item.rows;
                return true;
            }
        }
        false
    }

    /// The oldest item, or the oldest that is evidence, with its rotation's metadata, marked as being written.
    pub fn begin(&mut self, only_evidence: bool) -> Option<Begun> {
        let may = |i: &&Item| i.is_evidence || !only_evidence;
        let (rotation, item) =
            self.rotations.iter().find_map(|r| Some((r, r.items.iter().find(may)?.clone())))?;
        self.busy = Some(item.seq);
        Some(Begun { item, metadata: rotation.metadata.clone(), rotation: rotation.number })
    }

    /// The item that was begun is now `segment`.
    pub fn finish(&mut self, segment: Segment) {
        if let Some((rotation, item)) = self.take(segment.name.seq) {
            let missing = item.rows.saturating_sub(segment.rows);
            rotation.dropped_rows += missing;
            rotation.written.push(segment);
            self.count(item.table, DropReason::JournalDamaged, missing);
        }
    }

    fn take(&mut self, seq: u64) -> Option<(&mut Rotation, Item)> {
        self.busy = None;
        for rotation in &mut self.rotations {
            if let Some(at) = rotation.items.iter().position(|i| i.seq == seq) {
                let item = rotation.items.remove(at);
                self.bytes -= item.bytes;
                return Some((rotation, item));
            }
        }
        None
    }

    fn count(&mut self, table: Table, reason: DropReason, rows: u64) {
        if rows > 0 {
            *self.dropped.entry((table, reason)).or_default() += rows;
        }
    }

    /// The item that was begun could not be written and stays.
    pub fn fail(&mut self) {
        self.busy = None;
    }

    /// The item that was begun can never be written: it goes, counted.
    pub fn refuse(&mut self, seq: u64, reason: DropReason) {
        if let Some((rotation, item)) = self.take(seq) {
            rotation.dropped_rows += item.rows;
            self.count(item.table, reason, item.rows);
        }
    }

    /// Rotations of which nothing waits any more, oldest first.
    pub fn take_complete(&mut self) -> Vec<Rotation> {
        let (complete, rest) =
            std::mem::take(&mut self.rotations).into_iter().partition(|r: &Rotation| r.items.is_empty());
        self.rotations = rest;
        complete.into()
    }

    /// Who wants to hear of the rotations that still wait.
    pub fn waiting(&self) -> impl Iterator<Item = (u64, &Sender<SealResult>)> {
        self.rotations.iter().filter_map(|r| Some((r.number, r.done.as_ref()?)))
    }

    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.rotations.iter().flat_map(|r| &r.items)
    }

    /// Whether all that waits is in a journal.
    pub fn is_journaled(&self) -> bool {
        self.rotations.iter().all(|r| r.journal.is_some())
    }

    /// Rows that are in a journal and not in memory.
    pub fn rows_in_journal_alone(&self) -> u64 {
        self.items().filter(|i| i.journal.is_some()).map(|i| i.rows).sum()
    }

    pub fn newest_metadata(&self) -> Vec<(String, String)> {
        self.rotations.back().map(|r| r.metadata.clone()).unwrap_or_default()
    }

    pub fn is_empty(&self) -> bool {
        self.rotations.is_empty()
    }

    /// Batches, rows, bytes.
    pub fn size(&self) -> (usize, u64, usize) {
        (self.items().count(), self.items().map(|i| i.rows).sum(), self.bytes)
    }

    pub fn dropped(&self) -> Vec<Dropped> {
        self.dropped
            .iter()
            .map(|((table, reason), rows)| Dropped { table: *table, reason: *reason, rows: *rows })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;
    use arrow::array::new_null_array;
    use arrow::array::{ArrayRef, Int64Array, TimestampMicrosecondArray};

    fn batch(table: Table, rows: usize) -> RecordBatch {
        let schema = schema::of(table);
        let columns: Vec<ArrayRef> = schema
            .fields()
            .iter()
            .map(|f| match f.name().as_str() {
                "ts" => {
                    Arc::new(TimestampMicrosecondArray::from(vec![1; rows]).with_timezone("UTC")) as ArrayRef
                }
                "ktime_ns" => Arc::new(Int64Array::from(vec![1; rows])),
                _ => new_null_array(f.data_type(), rows),
            })
            .collect();
        RecordBatch::try_new(schema, columns).expect("a batch of the schema")
    }

    fn rotation(number: u64, items: Vec<Item>) -> Rotation {
        let (written, metadata) = (Vec::new(), Vec::new());
        Rotation {
            number,
            items,
            written,
            dropped_rows: 0,
            metadata,
            done: None,
            journal: None,
            last_flush: 0,
        }
    }

    #[test]
    fn beyond_the_bound_the_oldest_ordinary_rows_go_and_are_counted() {
        let one = Item::new(0, Table::Samples, vec![batch(Table::Samples, 10)]).bytes;
        let mut pending = Pending::new(one * 2 + one / 2);
        pending.push(rotation(1, vec![Item::new(1, Table::Events, vec![batch(Table::Events, 3)])]));
        for seq in 2..5 {
            pending
                .push(rotation(seq, vec![Item::new(seq, Table::Samples, vec![batch(Table::Samples, 10)])]));
            pending.make_room(|_| InJournal::Never);
        }
        let left: Vec<u64> = pending.items().map(|i| i.seq).collect();
        assert_eq!(left, [1, 3, 4], "the events stay although they are older");
        let dropped = Dropped { table: Table::Samples, reason: DropReason::WriterBehind, rows: 10 };
        assert_eq!(pending.dropped(), [dropped]);
    }

    #[test]
    fn evidence_goes_only_when_nothing_else_is_left() {
        let events = |seq| Item::new(seq, Table::Events, vec![batch(Table::Events, 10)]);
        let mut pending = Pending::new(events(0).bytes * 2);
        for seq in 1..5 {
            pending.push(rotation(seq, vec![events(seq)]));
            pending.make_room(|_| InJournal::NotYet);
        }
        assert_eq!(pending.items().count(), 4, "what is on its way to the journal is not dropped");
        pending.make_room(|_| InJournal::Never);
        let left: Vec<u64> = pending.items().map(|i| i.seq).collect();
        assert_eq!(left, [3, 4]);
        let dropped = Dropped { table: Table::Events, reason: DropReason::WriterBehindIncident, rows: 20 };
        assert_eq!(pending.dropped(), [dropped]);
    }

    #[test]
    fn what_is_being_written_is_not_dropped() {
        let samples = |seq| Item::new(seq, Table::Samples, vec![batch(Table::Samples, 10)]);
        let mut pending = Pending::new(samples(0).bytes);
        pending.push(rotation(1, vec![samples(1)]));
        let item = pending.begin(false).expect("an item waits").item;
        pending.push(rotation(2, vec![samples(2)]));
        pending.make_room(|_| InJournal::Never);
        let left: Vec<u64> = pending.items().map(|i| i.seq).collect();
        assert_eq!((item.seq, left), (1, vec![1]));
    }

    #[test]
    fn what_the_journal_has_leaves_memory_and_is_lost_to_nobody() {
        let samples = |seq| Item::new(seq, Table::Samples, vec![batch(Table::Samples, 10)]);
        let mut pending = Pending::new(samples(0).bytes);
        for seq in 1..4 {
            pending.push(rotation(seq, vec![samples(seq)]));
        }
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        pending.make_room(|r| if r.number < 3 { InJournal::Whole(file.clone()) } else { InJournal::NotYet });
        let (batches, rows, bytes) = pending.size();
        assert_eq!((batches, rows, bytes), (3, 30, samples(0).bytes), "rows are counted wherever they are");
        assert_eq!((pending.rows_in_journal_alone(), pending.dropped()), (20, vec![]));
        let item = pending.begin(false).expect("the oldest").item;
        assert_eq!(item.read().expect("an empty journal").len(), 0);
        pending.refuse(item.seq, DropReason::JournalDamaged);
        let dropped = Dropped { table: Table::Samples, reason: DropReason::JournalDamaged, rows: 10 };
        assert_eq!(pending.dropped(), [dropped], "what the journal does not give back is counted");
    }
}
