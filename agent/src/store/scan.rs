//! Which files a data folder has: closed segments of `recent/`, merged hours of `v1/`, and what is not well.
//!
//! `recent/` is looked at first: a running agent removes a segment only after the file that has its rows is in `v1/`, so that
//! whatever goes on meanwhile no row is missed. Changes nothing. Called when a folder is opened.

use super::index::Index;
use super::{MERGED, StoreError, folder};
use crate::names::Table;
use crate::segment::{self, Segment, SegmentError, SegmentName, Taken};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Default)]
pub struct Found {
    pub segments: Vec<Segment>,
    pub temporary: Vec<PathBuf>,
    pub damaged: Vec<(Table, PathBuf, SegmentError)>,
    pub highest_seq: u64,
    /// Those of the segments that the index does not know: their footers were read, their checksums were not held.
    pub opened: HashSet<PathBuf>,
}

pub fn scan(dir: &Path, index: &Index) -> Result<Found, StoreError> {
    let mut found = Found::default();
    for root in [Table::ALL.map(|t| (t, folder(dir, t))), Table::ALL.map(|t| (t, merged_folder(dir, t)))] {
        for (table, root) in root {
            let mut folders = vec![root];
            while let Some(folder) = folders.pop() {
                found.look(dir, index, table, &folder, &mut folders)?;
            }
        }
    }
    sort(&mut found.segments);
    Ok(found)
}

pub fn merged_folder(dir: &Path, table: Table) -> PathBuf {
    dir.join(MERGED).join(format!("table={}", table.as_str()))
}

pub fn sort(segments: &mut [Segment]) {
    segments.sort_by_key(|s| (s.table, s.from_us, s.name.seq));
}

impl Found {
    fn look(
        &mut self,
        dir: &Path,
        index: &Index,
        table: Table,
        folder: &Path,
        folders: &mut Vec<PathBuf>,
    ) -> Result<(), StoreError> {
        let read = |source| StoreError::Read { path: folder.to_owned(), source };
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(read(e)),
        };
        for entry in entries {
            let entry = entry.map_err(read)?;
            let path = entry.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if name.ends_with(segment::TEMPORARY) {
                self.temporary.push(path);
            } else if name.ends_with(".parquet") {
                if let Some(name) = SegmentName::parse(name) {
                    self.highest_seq = self.highest_seq.max(name.seq);
                }
                // of what the path leads to, as the index has it
                let known = fs::metadata(&path).ok().and_then(|there| index.find(dir, table, &path, &there));
                match known.map_or_else(|| segment::open(table, &path).map(|s| (s, true)), |s| Ok((s, false)))
                {
                    Ok((segment, is_opened)) => {
                        self.opened.extend(Some(&segment.path).filter(|_| is_opened).cloned());
                        self.segments.push(segment);
                    }
                    // it has been removed meanwhile; a link that leads nowhere has not
                    Err(_)
                        if fs::symlink_metadata(&path)
                            .is_err_and(|e| e.kind() == io::ErrorKind::NotFound) => {}
                    Err(error) => self.damaged.push((table, path, error)),
                }
            } else if entry.file_type().map_err(read)?.is_dir() {
                folders.push(path);
            }
        }
        Ok(())
    }
}

/// Notes in each segment which hours of it are in merged files, and takes out those of which no row is left.
pub fn settle(segments: &mut Vec<Segment>) -> Vec<Segment> {
    let recent = segments.iter().filter(|s| s.merged.is_none());
    let recent: HashSet<(Table, String)> = recent.map(|s| (s.table, s.file_name().to_owned())).collect();
    let mut taken: HashMap<(Table, String), Vec<Taken>> = HashMap::new();
    for s in segments.iter_mut() {
        let Some(merged) = &mut s.merged else { continue };
        for input in &merged.inputs {
            let key = (s.table, input.file.clone());
            if recent.contains(&key) {
                taken.entry(key).or_default().push(Taken { hour_us: merged.hour_us, rows: input.rows });
            }
        }
        merged.inputs.retain(|i| recent.contains(&(s.table, i.file.clone())));
    }
    for s in segments.iter_mut().filter(|s| s.merged.is_none()) {
        if let Some(hours) = taken.remove(&(s.table, s.file_name().to_owned())) {
            s.taken = hours;
        }
    }
    let (left, merged) =
        std::mem::take(segments).into_iter().partition(|s| s.rows_left() > 0 || s.taken.is_empty());
    *segments = left;
    merged
}
