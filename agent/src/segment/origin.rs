//! Where the bytes of a closed file are: on the disk, or far away and fetched a range at a time.
//!
//! The one seam between the query layer and a bucket: whoever reads a file reads an [`Origin`]. What a far file is, and how its
//! bytes come, is for who implements [`Far`] (`fleet`).

use bytes::{Buf, Bytes};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes that a far file is read by when nobody says how many: a page's header and more.
const READ_AT_ONCE: u64 = 64 << 10;

/// A file of which ranges can be had, at the price of a request each.
pub trait Far: Send + Sync {
    fn length(&self) -> u64;
    /// Waits for them.
    fn read(&self, range: Range<u64>) -> io::Result<Bytes>;
    /// These will be read soon: the fewer requests they come by the better.
    fn expect(&self, ranges: &[Range<u64>]) -> io::Result<()>;
    /// Whether this column will be read once any other is.
    fn wants(&self, column: &str) -> bool;
}

/// A far file, which is the same as another only when it is that one.
#[derive(Clone)]
pub struct Distant(pub Arc<dyn Far>);

impl fmt::Debug for Distant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes far away", self.0.length())
    }
}

impl PartialEq for Distant {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Distant {}

/// Where a file is. Of a far one the path is its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub path: PathBuf,
    pub far: Option<Distant>,
}

impl Origin {
    pub fn disk(path: &Path) -> Self {
        Self { path: path.to_owned(), far: None }
    }

    pub fn open(&self) -> io::Result<Reader> {
        match &self.far {
            Some(far) => Ok(Reader::Far(far.clone())),
            None => File::open(&self.path).map(Reader::Disk),
        }
    }
}

/// What a Parquet reader reads.
pub enum Reader {
    Disk(File),
    Far(Distant),
}

impl Length for Reader {
    fn len(&self) -> u64 {
        match self {
            Self::Disk(file) => file.len(),
            Self::Far(far) => far.0.length(),
        }
    }
}

impl ChunkReader for Reader {
    type T = Run;

    fn get_read(&self, start: u64) -> ParquetResult<Run> {
        match self {
            Self::Disk(file) => file.get_read(start).map(Run::Disk),
            Self::Far(far) => Ok(Run::Far { far: far.clone(), at: start, held: Bytes::new() }),
        }
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        match self {
            Self::Disk(file) => file.get_bytes(start, length),
            Self::Far(far) => {
                let end = start.checked_add(length as u64).filter(|end| *end <= far.0.length());
                let end = end.ok_or_else(|| ParquetError::EOF("it is shorter than it says".to_owned()))?;
                far.0.read(start..end).map_err(|e| ParquetError::External(Box::new(e)))
            }
        }
    }
}

/// Bytes from some place on.
pub enum Run {
    Disk(BufReader<File>),
    Far { far: Distant, at: u64, held: Bytes },
}

impl Read for Run {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Disk(file) => file.read(buf),
            Self::Far { far, at, held } => {
                if held.is_empty() {
                    let end = far.0.length().min(at.saturating_add(READ_AT_ONCE.max(buf.len() as u64)));
                    if end <= *at {
                        return Ok(0);
                    }
                    *held = far.0.read(*at..end)?;
                    *at = end;
                }
                let n = buf.len().min(held.len());
                held.copy_to_slice(&mut buf[..n]);
                Ok(n)
            }
        }
    }
}
