//! What the footers of all closed files say, in one file, so that a start need not open each of them.
//!
//! A fact is believed only of a file that has the size and the time of change that it had when its footer was read and its checksum
//! held. The index itself has a checksum; without it, or with a damaged one, every file is opened as if there had never been one. It is a
//! help and no truth: losing it costs time.

use super::StoreError;
use crate::names::Table;
use crate::segment::{self, Merged, Segment, SegmentName};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

pub const NAME: &str = "segments.index";
/// Grows when an entry means something else.
const VERSION: u32 = 2;

#[derive(Serialize, Deserialize)]
struct Entry {
    path: String,
    modified_ns: i64,
    from_us: i64,
    to_us: i64,
    rows: u64,
    bytes: u64,
    schema: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    journal: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    merged: Option<Merged>,
}

#[derive(Default)]
pub struct Index(HashMap<String, Entry>);

impl Index {
    /// Empty when there is none that can be believed.
    pub fn read(dir: &Path) -> Self {
        let path = dir.join(NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "the index of segments cannot be read; each is opened");
                }
                return Self::default();
            }
        };
        let entries = parse(&bytes).unwrap_or_else(|reason| {
            tracing::warn!(path = %path.display(), reason, "the index of segments is not believed; each is opened");
            Vec::new()
        });
        Self(entries.into_iter().map(|e| (e.path.clone(), e)).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The segment at that path, if the file is the one that was looked at.
    pub fn find(&self, dir: &Path, table: Table, path: &Path, there: &fs::Metadata) -> Option<Segment> {
        let e = self.0.get(path.strip_prefix(dir).ok()?.to_str()?)?;
        if !there.is_file() || (e.bytes, e.modified_ns) != (there.len(), segment::modified_ns(there)) {
            return None;
        }
        Some(Segment {
            table,
            path: path.to_owned(),
            name: SegmentName::parse(path.file_name()?.to_str()?)?,
            from_us: e.from_us,
            to_us: e.to_us,
            rows: e.rows,
            bytes: e.bytes,
            modified_ns: e.modified_ns,
            journal: e.journal.clone(),
            merged: e.merged.clone(),
            taken: Vec::new(),
            schema: e.schema,
            far: None,
        })
    }
}

fn header(body: &[u8]) -> String {
    format!("fgm segments {VERSION} {:08x}", crc32fast::hash(body))
}

fn parse(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let end = bytes.iter().position(|b| *b == b'\n').ok_or("it has no first line")?;
    let body = &bytes[end + 1..];
    if bytes[..end] != *header(body).as_bytes() {
        return Err("its checksum or its version is another".to_owned());
    }
    serde_json::from_slice(body).map_err(|e| e.to_string())
}

/// Puts the facts of these segments, whose files were whole, in the place of all earlier ones.
pub fn write<'a>(dir: &Path, segments: impl Iterator<Item = &'a Segment>) -> Result<(), StoreError> {
    let entries: Vec<Entry> = segments
        .filter_map(|s| {
            Some(Entry {
                path: s.path.strip_prefix(dir).ok()?.to_str()?.to_owned(),
                modified_ns: s.modified_ns,
                from_us: s.from_us,
                to_us: s.to_us,
                rows: s.rows,
                bytes: s.bytes,
                schema: s.schema,
                journal: s.journal.clone(),
                merged: s.merged.clone(),
            })
        })
        .collect();
    let body = serde_json::to_vec(&entries).unwrap_or_default();
    let mut bytes = header(&body).into_bytes();
    bytes.push(b'\n');
    bytes.extend(body);
    let (path, temporary) = (dir.join(NAME), dir.join(format!("{NAME}.tmp")));
    // Not fsynced: what a power failure leaves of it does not have its checksum.
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, &path))
        .map_err(|source| StoreError::NotWritable { path, source })
}
