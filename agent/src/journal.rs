//! The format of the journal: what the agent writes each moment of the rows that are in no closed segment yet.
//!
//! A file is one opening and then frames, one a flush, each with all tables' rows of that flush: rows of one flush survive
//! together or not at all. Framing: [`MARK`], length and CRC-32 of the body (both u32, little endian), body. A body is the
//! length of its head (u32), the head as JSON, and for each table that the head lists an Arrow IPC stream, zstd. Each
//! frame can be read alone, so that damage costs the frames that it is in and no other: the reader looks for the next mark.
//!
//! A table costs nothing here: rows are record batches, columns without a value are left out ([`slim`]) and come back as
//! NULL when a reader conforms the rows to its schema. Why it is so: `docs/decisions/004-the-journal.md`.
//! Pure: `store` writes and reads the files.

use crate::accumulator::Stamp;
use crate::ledger::{self, Accounts};
use crate::names::Table;
use crate::schema;
use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{Field, Schema};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Begins each frame. 0xf7 is in no UTF-8 text and the whole unlikely in compressed bytes; a false one fails its CRC.
pub const MARK: [u8; 8] = *b"\xf7fgmJ1\r\n";
/// Mark, length, CRC.
const FRAMING: usize = MARK.len() + 8;
/// The least effort; what more of it would save has not been measured.
const ZSTD_LEVEL: i32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("table {table}: rows cannot be framed: {source}")]
    Rows { table: &'static str, source: ArrowError },
    #[error("table {table}: rows cannot be compressed: {source}")]
    Compress { table: &'static str, source: io::Error },
}

/// `<boot>-<seq>.journal`; the seq is of the same count as the segments' and names a journal once in a data folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JournalName {
    pub seq: u64,
    pub boot: String,
}

impl JournalName {
    pub const ENDING: &'static str = ".journal";

    pub fn parse(file_name: &str) -> Option<Self> {
        let (boot, seq) = file_name.strip_suffix(Self::ENDING)?.rsplit_once('-')?;
        let seq = seq.parse().ok().filter(|seq| *seq < u64::MAX / 2)?;
        (!boot.is_empty()).then(|| Self { seq, boot: boot.to_owned() })
    }

    pub fn file_name(&self) -> String {
        format!("{self}{}", Self::ENDING)
    }
}

/// As a segment's `fgm.journal` has it.
impl std::fmt::Display for JournalName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{:08}", self.boot, self.seq)
    }
}

/// What one flush leaves in the journal.
#[derive(Debug)]
pub struct Frame<'a> {
    pub at: Stamp,
    /// The account of the rotation, up to this flush.
    pub accounts: &'a Accounts,
    /// Rows given to this journal by table, this frame's with them, whether or not an earlier frame could be written.
    pub given: &'a BTreeMap<Table, u64>,
    pub rows: &'a [(Table, RecordBatch)],
}

/// The first frame of a file: what its segments would say of the run.
pub fn opening(metadata: &[(String, String)]) -> Vec<u8> {
    let pairs: Map<String, Value> = metadata.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    framed(&json!({"metadata": pairs, "schema_version": schema::VERSION}), &[])
}

impl Frame<'_> {
    pub fn encode(&self) -> Result<Vec<u8>, JournalError> {
        let mut tables = Vec::new();
        let mut blobs = Vec::new();
        for (table, batch) in self.rows {
            let wrong = |source| JournalError::Rows { table: table.as_str(), source };
            let batch = bare(batch).map_err(wrong)?;
            let mut stream = StreamWriter::try_new(Vec::new(), &batch.schema()).map_err(wrong)?;
            stream.write(&batch).map_err(wrong)?;
            let stream = stream.into_inner().map_err(wrong)?;
            let blob = zstd::bulk::compress(&stream, ZSTD_LEVEL)
                .map_err(|source| JournalError::Compress { table: table.as_str(), source })?;
            tables.push(json!([table.as_str(), blob.len(), batch.num_rows()]));
            blobs.push(blob);
        }
        let given: Map<String, Value> =
            self.given.iter().map(|(t, n)| (t.as_str().to_owned(), json!(n))).collect();
        let head = json!({
            "ktime_ns": self.at.ktime_ns,
            "wall_us": self.at.wall_us,
            "accounts": self.accounts.to_json(),
            "given": given,
            "tables": tables,
        });
        Ok(framed(&head, &blobs))
    }
}

fn framed(head: &Value, blobs: &[Vec<u8>]) -> Vec<u8> {
    let head = head.to_string().into_bytes();
    let body = 4 + head.len() + blobs.iter().map(Vec::len).sum::<usize>();
    let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    let mut out = Vec::with_capacity(FRAMING + body);
    out.extend(MARK);
    out.extend(length(body));
    out.extend([0; 4]);
    out.extend(length(head.len()));
    out.extend(head);
    for blob in blobs {
        out.extend(blob);
    }
    let crc = crc32fast::hash(&out[FRAMING..]);
    out[MARK.len() + 4..FRAMING].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Without the columns that have no value: nine of ten columns of a second's rows.
pub fn slim(batch: &RecordBatch) -> RecordBatch {
    let schema = batch.schema();
    let kept: Vec<usize> = (0..batch.num_columns())
        .filter(|i| {
            let column = batch.column(*i);
            !schema.field(*i).is_nullable() || column.logical_null_count() < column.len()
        })
        .collect();
    batch.project(&kept).unwrap_or_else(|_| batch.clone())
}

/// Slim, and without the columns' metadata, which the reader's schema has.
fn bare(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let batch = slim(batch);
    let fields: Vec<Field> = batch
        .schema()
        .fields()
        .iter()
        .map(|f| Field::new(f.name(), f.data_type().clone(), f.is_nullable()))
        .collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), batch.columns().to_vec())
}

/// What a journal holds: every whole frame, and what is known of the rest.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    pub metadata: Vec<(String, String)>,
    /// Version of its rows' columns; 0 when the opening is damaged.
    pub schema: u32,
    pub rows: Vec<(Table, RecordBatch)>,
    /// Of the last whole frame.
    pub last: Option<Last>,
    pub frames: u64,
    /// Bytes between whole frames, and frames that hold what we cannot read: damage, not a crash.
    pub damaged: u64,
    /// Bytes after the last whole frame: the write that a crash cut.
    pub torn: u64,
}

#[derive(Clone, Debug)]
pub struct Last {
    pub at: Stamp,
    pub accounts: Accounts,
    pub given: BTreeMap<Table, u64>,
}

impl Contents {
    /// Its columns may mean what this program does not know.
    pub fn is_newer(&self) -> bool {
        self.schema > schema::VERSION
    }

    pub fn of(&self, table: Table) -> Vec<RecordBatch> {
        self.rows.iter().filter(|(t, _)| *t == table).map(|(_, b)| b.clone()).collect()
    }

    pub fn value(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Rows that were given to the journal and are not in it, by table: their frames are damaged or were never written.
    pub fn missing(&self) -> BTreeMap<Table, u64> {
        let Some(last) = &self.last else { return BTreeMap::new() };
        let read = |table| -> u64 {
            self.rows.iter().filter(|(t, _)| *t == table).map(|(_, b)| b.num_rows() as u64).sum()
        };
        let missing = last.given.iter().map(|(table, given)| (*table, given.saturating_sub(read(*table))));
        missing.filter(|(_, n)| *n > 0).collect()
    }
}

/// Reads whatever bytes there are.
pub fn read(bytes: &[u8]) -> Contents {
    read_of(bytes, None)
}

/// The rows of one table.
pub fn read_table(bytes: &[u8], table: Table) -> Vec<RecordBatch> {
    read_of(bytes, Some(table)).rows.into_iter().map(|(_, batch)| batch).collect()
}

fn read_of(bytes: &[u8], only: Option<Table>) -> Contents {
    let mut contents = Contents::default();
    let (mut at, mut skipped) = (0, 0);
    while at < bytes.len() {
        if let Some(body) = frame_at(&bytes[at..]) {
            contents.damaged += skipped;
            skipped = 0;
            if !take(body, only, &mut contents) {
                contents.damaged += (FRAMING + body.len()) as u64;
            }
            at += FRAMING + body.len();
        } else {
            let rest = &bytes[at + 1..];
            let step = 1 + rest.windows(MARK.len()).position(|w| w == MARK).unwrap_or(rest.len());
            skipped += step as u64;
            at += step;
        }
    }
    contents.torn = skipped;
    contents
}

/// The body of the whole frame that begins here.
fn frame_at(bytes: &[u8]) -> Option<&[u8]> {
    let rest = bytes.strip_prefix(&MARK)?;
    let (length, rest) = number(rest)?;
    let (crc, rest) = number(rest)?;
    let body = rest.get(..length)?;
    (crc32fast::hash(body) as usize == crc).then_some(body)
}

fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*number) as usize, rest))
}

/// False when something in the frame is not understood; what is, is taken.
fn take(body: &[u8], only: Option<Table>, contents: &mut Contents) -> bool {
    let parsed = number(body).and_then(|(length, rest)| {
        let head: Value = serde_json::from_slice(rest.get(..length)?).ok()?;
        Some((head, &rest[length..]))
    });
    let Some((head, mut blobs)) = parsed else { return false };
    if let Some(metadata) = head["metadata"].as_object() {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        contents.metadata = metadata.iter().map(|(k, v)| (k.clone(), text(v))).collect();
        let version = head["schema_version"].as_u64().unwrap_or(0);
        contents.schema = u32::try_from(version).unwrap_or(u32::MAX);
        return true;
    }
    let (Some(ktime_ns), Some(wall_us)) = (head["ktime_ns"].as_u64(), head["wall_us"].as_i64()) else {
        return false;
    };
    let given = head["given"].as_object().into_iter().flatten();
    contents.frames += 1;
    contents.last = Some(Last {
        at: Stamp { ktime_ns, wall_us },
        accounts: Accounts::from_json(&head["accounts"]),
        given: given.filter_map(|(t, n)| Some((ledger::named(t)?, n.as_u64()?))).collect(),
    });
    let mut is_understood = true;
    for entry in head["tables"].as_array().into_iter().flatten() {
        let length = entry[1].as_u64().and_then(|n| usize::try_from(n).ok());
        let Some((blob, rest)) = length.and_then(|n| blobs.split_at_checked(n)) else { return false };
        blobs = rest;
        // a table of a later version is none of ours, and no reason to lose the others
        let table = entry[0].as_str().and_then(ledger::named);
        if only.is_some() && table != only {
            continue;
        }
        let rows = table.and_then(|table| Some((table, decode(blob)?)));
        match rows {
            Some((table, batches)) => contents.rows.extend(batches.into_iter().map(|b| (table, b))),
            None => is_understood = false,
        }
    }
    is_understood
}

fn decode(blob: &[u8]) -> Option<Vec<RecordBatch>> {
    let stream = zstd::stream::decode_all(blob).ok()?;
    StreamReader::try_new(stream.as_slice(), None).ok()?.collect::<Result<_, _>>().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accumulator::{LedgerRow, NodeNames, Pending};
    use proptest::prelude::*;

    /// A journal of so many frames, and where each begins.
    fn journal(frames: u64) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = opening(&[("fgm.node".to_owned(), "n".to_owned())]);
        let (mut starts, mut given, mut accounts) = (Vec::new(), BTreeMap::new(), Accounts::default());
        for n in 0..frames {
            let at = Stamp { ktime_ns: n, wall_us: n.cast_signed() };
            let row = LedgerRow {
                stamp: at,
                of_table: Table::Events,
                due: n.cast_signed(),
                written: n.cast_signed(),
                lost_by_reason: BTreeMap::new(),
            };
            let names = NodeNames { cluster: None, node: "n".into(), boot_id: "b".into() };
            let pending = Pending { ledger: vec![row; 3], ..Pending::default() };
            accounts.written(Table::Events, n);
            *given.entry(Table::Ledger).or_default() += 3;
            starts.push(bytes.len());
            let rows = pending.batches(&names).expect("batches");
            let frame = Frame { at, accounts: &accounts, given: &given, rows: &rows };
            bytes.extend(frame.encode().expect("encodes"));
        }
        (bytes, starts)
    }

    fn rows(contents: &Contents) -> usize {
        contents.rows.iter().map(|(_, b)| b.num_rows()).sum()
    }

    #[test]
    fn what_is_framed_is_what_is_read() {
        let (bytes, _) = journal(5);
        let got = read(&bytes);
        assert_eq!((rows(&got), got.frames, got.damaged, got.torn), (15, 5, 0, 0));
        assert_eq!(got.value("fgm.node"), Some("n"));
        assert_eq!(got.missing(), BTreeMap::new());
        let last = got.last.expect("a last one");
        assert_eq!((last.at.ktime_ns, last.accounts.of(Table::Events).map(|a| a.written)), (4, Some(10)));
        let sum: i64 =
            got.rows.iter().map(|(_, b)| Accounts::of_rows(b).of(Table::Events).expect("one").written).sum();
        assert_eq!(sum, 30);
        assert_eq!(
            got.rows[0].1.schema().column_with_name("cgroup_id"),
            None,
            "columns without a value are left out"
        );
    }

    proptest! {
        #[test]
        fn a_torn_tail_costs_its_own_frame(cut in 0usize..4000) {
            let (bytes, starts) = journal(5);
            let cut = cut % bytes.len();
            let got = read(&bytes[..cut]);
            let whole = starts.iter().skip(1).chain([&bytes.len()]).filter(|end| **end <= cut).count();
            prop_assert_eq!((rows(&got), got.damaged), (3 * whole, 0));
            let torn = cut - starts.iter().chain([&bytes.len()]).rfind(|s| **s <= cut).copied().unwrap_or(0);
            prop_assert_eq!(got.torn, torn as u64);
        }

        /// Flipped bytes anywhere: never a panic, all other frames are there, and what is missing is counted.
        #[test]
        fn a_flipped_byte_costs_one_frame(at in 0usize..4000, flip in 1u8..) {
            let (mut bytes, starts) = journal(6);
            let at = starts[0] + at % (starts[5] - starts[0]);
            bytes[at] ^= flip;
            let got = read(&bytes);
            prop_assert_eq!((rows(&got), got.frames), (15, 5));
            prop_assert!(got.damaged > 0 && got.torn == 0);
            prop_assert_eq!(got.missing(), BTreeMap::from([(Table::Ledger, 3)]));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), head in any::<bool>()) {
            if head {
                let crc = crc32fast::hash(&bytes);
                let length = u32::try_from(bytes.len()).expect("short");
                bytes.splice(0..0, MARK.into_iter().chain(length.to_le_bytes()).chain(crc.to_le_bytes()));
            }
            let got = read(&bytes);
            prop_assert_eq!(got.frames, 0);
            prop_assert_eq!(got.damaged + got.torn == 0, bytes.is_empty());
        }
    }

    #[test]
    fn a_name_is_read_back() {
        let name = JournalName { seq: 7, boot: "ab".into() };
        assert_eq!(JournalName::parse(&name.file_name()), Some(name));
        for wrong in ["x.journal", "-1.journal", "a-b.journal", "a-1.parquet"] {
            assert_eq!(JournalName::parse(wrong), None, "{wrong}");
        }
    }
}
