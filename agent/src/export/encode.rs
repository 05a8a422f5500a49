//! Rows of a plan as Parquet, CSV or JSON into a [`Sink`], a slice at a time: what is in memory does not grow with the rows.
//!
//! Never decides what is exported. Called by `export`.

use super::redact::Redaction;
use super::{Failure, Problem};
use crate::query::Plan;
use crate::segment::{self, Encoder, LONG_PAGE_ROWS};
use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::sync::Arc;

const NARROW: &str = "a shorter range, fewer containers or metrics, or format=parquet, which is the smallest";

/// Where an answer goes: memory that refuses to grow beyond a limit, and remembers that it did, or a file.
pub struct Sink {
    to: To,
    limit: u64,
    is_over: bool,
}

enum To {
    Memory(Vec<u8>),
    File(BufWriter<File>),
}

impl Sink {
    pub fn memory(limit: u64) -> Self {
        Self { to: To::Memory(Vec::new()), limit, is_over: false }
    }

    pub fn file(file: File) -> Self {
        Self { to: To::File(BufWriter::new(file)), limit: u64::MAX, is_over: false }
    }

    /// Takes back what an attempt has written.
    pub fn clear(&mut self) -> Result<(), Problem> {
        match &mut self.to {
            To::Memory(bytes) => bytes.clear(),
            To::File(out) => {
                let begin = |out: &mut BufWriter<File>| {
                    out.seek(SeekFrom::Start(0))?;
                    out.get_ref().set_len(0)
                };
                begin(out).map_err(|e| Problem::internal(format!("the export's file: {e}")))?;
            }
        }
        Ok(())
    }

    /// Whether the limit was met.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    pub fn finish(&mut self) -> Result<(), Problem> {
        self.flush().map_err(|e| Problem::internal(format!("the export's file: {e}")))
    }

    /// What is in memory.
    pub fn into_bytes(self) -> Vec<u8> {
        match self.to {
            To::Memory(bytes) => bytes,
            To::File(_) => Vec::new(),
        }
    }

    /// The outcome, unless the limit is what it failed by.
    fn outcome(&self, result: Result<(), Failure>) -> Result<(), Failure> {
        if self.is_over {
            return Err(Problem::too_large("bytes of an export", self.limit, self.limit + 1, NARROW).into());
        }
        result
    }
}

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.to {
            To::File(out) => out.write(buf),
            To::Memory(bytes) => {
                if (bytes.len() + buf.len()) as u64 > self.limit {
                    self.is_over = true;
                    return Err(io::Error::other("the answer is larger than its limit"));
                }
                bytes.extend_from_slice(buf);
                Ok(buf.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.to {
            To::Memory(_) => Ok(()),
            To::File(out) => out.flush(),
        }
    }
}

/// Asked before each slice of rows whether somebody still waits.
pub type GoOn<'a> = &'a dyn Fn() -> Result<(), Problem>;

/// How the rows of an export are gone through: which columns, without names where that was asked for, and until when.
pub struct Way<'a> {
    pub plan: &'a Plan,
    pub columns: Option<&'a [&'a str]>,
    pub redaction: Option<&'a Redaction>,
    pub go_on: GoOn<'a>,
}

impl Way<'_> {
    /// A row group at a time, and of that a few columns: a writer of whole rows keeps a compressor of each column.
    pub fn parquet(&self, metadata: &[(String, String)], sink: &mut Sink) -> Result<(), Failure> {
        let containers = self.plan.keys().len() as u64;
        let schema = self.plan.schema(self.columns)?;
        let encoder = Encoder::new(&mut *sink, &schema, LONG_PAGE_ROWS, (containers, containers), metadata);
        let result = encoder.map_err(|e| Problem::internal(e).into()).and_then(|e| self.groups(e, &schema));
        sink.outcome(result)
    }

    fn groups(&self, mut encoder: Encoder<&mut Sink>, schema: &Schema) -> Result<(), Failure> {
        for group in self.plan.groups() {
            let group = group?;
            let mut out = encoder.row_group().map_err(Problem::internal)?;
            for wanted in segment::few(schema) {
                (self.go_on)()?;
                for column in self.redacted(group.columns(&wanted)?)?.columns() {
                    out.column(column).map_err(Problem::internal)?;
                }
            }
            out.close().map_err(Problem::internal)?;
        }
        encoder.close().map_err(Problem::internal)?;
        Ok(())
    }

    fn redacted(&self, rows: RecordBatch) -> Result<RecordBatch, Failure> {
        Ok(match self.redaction {
            Some(redaction) => redaction.rows(&rows).map_err(Problem::internal)?,
            None => rows,
        })
    }

    pub fn csv(&self, sink: &mut Sink) -> Result<(), Failure> {
        let mut writer = arrow::csv::Writer::new(&mut *sink);
        let result = self.each(|rows| writer.write(&for_text(rows)?).map_err(|e| e.to_string()));
        drop(writer);
        sink.outcome(result)
    }

    pub fn json(&self, sink: &mut Sink) -> Result<(), Failure> {
        let mut writer = arrow::json::ArrayWriter::new(&mut *sink);
        let result = self
            .each(|rows| writer.write(&for_text(rows)?).map_err(|e| e.to_string()))
            .and_then(|()| writer.finish().map_err(|e| Problem::internal(e).into()));
        drop(writer);
        sink.outcome(result)
    }

    pub fn each(&self, mut write: impl FnMut(&RecordBatch) -> Result<(), String>) -> Result<(), Failure> {
        for rows in self.plan.slices(self.columns)? {
            (self.go_on)()?;
            let rows = self.redacted(rows?)?;
            write(&rows).map_err(Problem::internal)?;
        }
        Ok(())
    }
}

/// arrow writes times as text only in a zone given as an offset.
fn for_text(rows: &RecordBatch) -> Result<RecordBatch, String> {
    let zone = DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()));
    let is_ts = |f: &Field| matches!(f.data_type(), DataType::Timestamp(_, _));
    let schema = rows.schema();
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|f| if is_ts(f) { f.as_ref().clone().with_data_type(zone.clone()) } else { f.as_ref().clone() })
        .collect();
    let columns: Result<Vec<ArrayRef>, _> =
        rows.columns().iter().zip(&fields).map(|(c, f)| arrow::compute::cast(c, f.data_type())).collect();
    let columns = columns.map_err(|e| e.to_string())?;
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|e| e.to_string())
}
