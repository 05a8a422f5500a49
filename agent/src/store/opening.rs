//! How a data folder is opened: to write, which is the recovery, or to look at it, which changes nothing.
//!
//! Opening to write removes temporary files of a crash, sets damaged files aside (never deletes them), removes segments that a
//! merged file has and makes segments of a journal; all of it is logged. What cannot be read now stays and is told as lost.
//! Called by `pipeline`, `cli` and `viewer` through [`Store`].

use super::index::Index;
use super::removed::Removed;
use super::scan::{self, scan};
use super::{
    JOURNAL, LOCK, MERGED, QUARANTINE, RECENT, Store, StoreError, aside, damage, folder, recovery, set_aside,
};
use crate::incident::Lost;
use crate::names::Table;
use crate::schema;
use crate::segment::{self, Disk, Io, SegmentError};
use rustix::fs::FlockOperation;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

impl Store {
    /// Opens the folder for writing: creates it when absent, takes the lock, recovers.
    pub fn open(dir: &Path) -> Result<Arc<Self>, StoreError> {
        Self::open_on(dir, &Disk)
    }

    /// [`Store::open`] over other file operations.
    pub fn open_on(dir: &Path, io: &dyn Io) -> Result<Arc<Self>, StoreError> {
        let create = |path: &Path| {
            fs::create_dir_all(path).map_err(|source| StoreError::Create { path: path.into(), source })
        };
        if dir.is_file() {
            return Err(StoreError::NotAFolder { path: dir.into() });
        }
        create(dir)?;
        let lock = take_lock(dir)?;
        for table in Table::ALL {
            create(&folder(dir, table))?;
        }
        create(&dir.join(QUARANTINE))?;
        create(&dir.join(JOURNAL))?;
        let index = Index::read(dir);
        let mut found = scan(dir, &index)?;
        for path in &found.temporary {
            match fs::remove_file(path) {
                Ok(()) => {
                    tracing::warn!(path = %path.display(), "removed a file that a crash left unfinished");
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "cannot remove an unfinished file");
                }
            }
        }
        let believed = found.segments.len() - found.opened.len();
        found.segments.retain(|s| {
            match found.opened.contains(&s.path).then(|| segment::verify(s.table, &s.path)) {
                None | Some(Ok(_)) => true,
                Some(Err(error)) => {
                    found.damaged.push((s.table, s.path.clone(), error));
                    false
                }
            }
        });
        let mut lost = Vec::new();
        for (table, path, error) in found.damaged {
            lost.push(damage(table, &path, &error));
            if !matches!(error, SegmentError::Damaged { .. }) {
                // Nothing is known of what it holds: it may be read again once the cause is mended.
                tracing::error!(path = %path.display(), %error, "left out a segment that cannot be read");
                continue;
            }
            set_aside(dir, table, &path, &error);
        }
        let removed = removed_of(dir, |error| {
            let path = Removed::path(dir);
            let reason = format!("the account of what retention removed cannot be read: {error}");
            match aside(&dir.join(QUARANTINE), "removed.json", &path, &reason) {
                Ok(to) => tracing::error!(path = %path.display(), to = %to.display(), reason, "set aside"),
                Err(io) => tracing::error!(path = %path.display(), reason, %io, "cannot be set aside"),
            }
        });
        found.segments.retain(|s| !removed.is_gone(dir, &s.path));
        for s in found.segments.iter().filter(|s| s.is_newer()) {
            tracing::error!(path = %s.path.display(), reason = schema::newer(s.schema), "left out a segment");
        }
        let merged = scan::settle(&mut found.segments);
        let recovered = recovery::recover(io, dir, &mut found.segments, found.highest_seq)?;
        lost.extend(recovered.lost);
        let half_gone = removed.removing(dir);
        let store =
            Self::of(dir, Some(lock), found.segments, recovered.left, lost, recovered.highest_seq, removed);
        store.state().doom(half_gone, Vec::new());
        store.doom(merged);
        store.sweep(io);
        (store.state().believed, store.state().opened) = (believed, found.opened.len());
        // also when files of it have gone: a name must not be known for ever
        if !found.opened.is_empty() || index.len() != believed {
            store.write_index(io);
        }
        Ok(Arc::new(store))
    }

    /// Opens a folder, maybe copied from elsewhere, without a lock and without changing anything in it.
    pub fn open_read_only(dir: &Path) -> Result<Arc<Self>, StoreError> {
        Self::must_hold_data(dir)?;
        let reading = recovery::Reading::of(dir)?;
        let mut found = scan(dir, &Index::read(dir))?;
        let counts = (found.segments.len() - found.opened.len(), found.opened.len());
        // What the asker may not read is no loss, and an answer without it would be a wrong one.
        let forbidden = |e: &SegmentError| matches!(e, SegmentError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied);
        if let Some(at) = found.damaged.iter().position(|(.., error)| forbidden(error))
            && let (_, path, SegmentError::Io { source, .. }) = found.damaged.swap_remove(at)
        {
            return Err(StoreError::Read { path, source });
        }
        let mut lost: Vec<Lost> = found
            .damaged
            .iter()
            .map(|(table, path, error)| {
                tracing::warn!(path = %path.display(), %error, "left out a segment that cannot be read");
                damage(*table, path, error)
            })
            .collect();
        let removed = removed_of(dir, |error| {
            tracing::warn!(error, "the account of what retention removed cannot be read");
        });
        found.segments.retain(|s| !removed.is_gone(dir, &s.path));
        scan::settle(&mut found.segments);
        let metadata = reading.newest_metadata();
        let (journaled, more) = reading.rows(&found.segments);
        lost.extend(more);
        let store = Self::of(dir, None, found.segments, journaled, lost, found.highest_seq, removed);
        {
            let mut state = store.state();
            state.held.metadata = metadata;
            (state.believed, state.opened) = counts;
        }
        Ok(Arc::new(store))
    }

    /// Refuses a folder that is none of ours: opening to write would make it one.
    pub fn must_hold_data(dir: &Path) -> Result<(), StoreError> {
        let of = |name| {
            let path = dir.join(name);
            match fs::metadata(&path) {
                Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                    Err(StoreError::Read { path, source })
                }
                there => Ok(there.is_ok_and(|t| t.is_dir())),
            }
        };
        if of(RECENT)? || of(MERGED)? { Ok(()) } else { Err(StoreError::NoData { path: dir.into() }) }
    }
}

fn removed_of(dir: &Path, tell: impl FnOnce(&str)) -> Removed {
    Removed::read(dir).unwrap_or_else(|error| {
        tell(&error);
        Removed::default()
    })
}

/// Who is about to end, or a child that has not begun its own program yet, may hold the lock for a moment.
const ENDING: Duration = Duration::from_millis(500);
const ENDING_LOOKS: u32 = 20;

fn take_lock(dir: &Path) -> Result<File, StoreError> {
    let not_writable = |source| StoreError::NotWritable { path: dir.into(), source };
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(dir.join(LOCK))
        .map_err(not_writable)?;
    let lock = || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    let mut outcome = lock();
    for _ in 0..ENDING_LOOKS {
        if outcome != Err(rustix::io::Errno::WOULDBLOCK) {
            break;
        }
        std::thread::sleep(ENDING / ENDING_LOOKS);
        outcome = lock();
    }
    match outcome {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // The pid is a help to the reader, the lock itself is the kernel's.
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim();
            let holder = if holder.is_empty() { "unknown" } else { holder }.to_owned();
            return Err(StoreError::InUse { path: dir.into(), holder });
        }
        Err(e) => return Err(not_writable(e.into())),
    }
    file.set_len(0).map_err(not_writable)?;
    file.rewind().map_err(not_writable)?;
    writeln!(file, "{}", std::process::id()).map_err(not_writable)?;
    Ok(file)
}
