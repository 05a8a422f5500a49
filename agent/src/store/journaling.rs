//! The threads that put the journal on the disk: one writes each frame, one syncs what is written and says so.
//!
//! Two, since they guard against different ends. What `write` took survives the end of the process, so it must not wait
//! behind an `fsync`, which takes as long as the disk likes and is what a power failure asks for. Nothing here holds up the
//! loop, the sealer or the segments: a frame that cannot be written is counted and told, its rows stay in memory for
//! their segment, and the next frame is tried anew. Called by [`super::Writer`] only.

use crate::journal::{self, JournalName};
use crate::priority;
use crate::segment::Io;
use crate::store::{JOURNAL, Store, StoreError};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Frames that may wait for a disk that hangs: minutes of 200 cgroups.
const QUEUE_BYTES: usize = 16 << 20;
/// A journal holds one rotation, which ends early at 48 MB in memory; on disk, compressed, it is less.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What became of a flush; sent to its `done` without ever waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It survives a power failure.
    Durable { seq: u64 },
    /// It is in memory alone, until its rotation is stored.
    Failed { seq: u64 },
}

struct Flush {
    journal: JournalName,
    /// In case it is the journal's first.
    opening: Vec<u8>,
    seq: u64,
    frame: Vec<u8>,
    done: Option<Sender<Kept>>,
}

enum Work {
    Flush(Flush),
    Remove(JournalName),
}

struct Written {
    journal: JournalName,
    file: Arc<File>,
    seq: u64,
    done: Option<Sender<Kept>>,
}

pub struct Journaling {
    store: Arc<Store>,
    work: Sender<Work>,
    queued: Arc<AtomicUsize>,
    queue_bytes: usize,
    stopped: Receiver<()>,
}

/// Says which journals are not needed any more.
pub struct Removals(Sender<Work>);

impl Removals {
    pub fn remove(&self, name: JournalName) {
        // Without the thread the journal stays and is found to be stored already at the next start.
        let _ = self.0.send(Work::Remove(name));
    }
}

impl Journaling {
    pub fn start(store: &Arc<Store>, io: &Arc<dyn Io>) -> Result<Self, StoreError> {
        let (work, todo) = unbounded();
        let (written, to_sync) = unbounded();
        let (tell, stopped) = bounded(1);
        let queued = Arc::new(AtomicUsize::new(0));
        let thread = |source| StoreError::Thread { source };
        let (inner, disk, bytes) = (store.clone(), io.clone(), queued.clone());
        let builder = std::thread::Builder::new().name("fgm-journal".to_owned());
        let run = move || {
            priority::of_this_thread(priority::Work::Writing);
            write(&inner, disk.as_ref(), &todo, &written, &bytes);
        };
        builder.spawn(run).map_err(thread)?;
        let (inner, disk) = (store.clone(), io.clone());
        let builder = std::thread::Builder::new().name("fgm-sync".to_owned());
        let run = move || {
            priority::of_this_thread(priority::Work::Writing);
            sync(&inner, disk.as_ref(), &to_sync);
            let _ = tell.try_send(());
        };
        builder.spawn(run).map_err(thread)?;
        Ok(Self { store: store.clone(), work, queued, queue_bytes: QUEUE_BYTES, stopped })
    }

    #[cfg(test)]
    pub fn set_queue_bytes(&mut self, bytes: usize) {
        self.queue_bytes = bytes;
    }

    pub fn removals(&self) -> Removals {
        Removals(self.work.clone())
    }

    pub fn give(
        &self,
        journal: JournalName,
        metadata: &[(String, String)],
        seq: u64,
        frame: Vec<u8>,
        done: Option<Sender<Kept>>,
    ) {
        if self.queued.load(Ordering::Relaxed) + frame.len() > self.queue_bytes {
            self.failed(&journal, seq, "the disk is behind", done.as_ref());
            return;
        }
        self.queued.fetch_add(frame.len(), Ordering::Relaxed);
        let opening = journal::opening(metadata);
        let flush = Flush { journal, opening, seq, frame, done };
        if let Err(back) = self.work.send(Work::Flush(flush))
            && let Work::Flush(flush) = back.0
        {
            self.failed(&flush.journal, seq, "its thread has ended", flush.done.as_ref());
        }
    }

    pub fn failed(&self, journal: &JournalName, seq: u64, reason: &str, done: Option<&Sender<Kept>>) {
        fail(&self.store, journal, seq, reason, done);
    }

    /// Waits until all is on the disk; false when it took longer.
    pub fn finish(self, limit: Duration) -> bool {
        let Self { work, stopped, .. } = self;
        drop(work);
        stopped.recv_timeout(limit).is_ok()
    }
}

fn fail(store: &Store, journal: &JournalName, seq: u64, reason: &str, done: Option<&Sender<Kept>>) {
    {
        let mut state = store.state();
        state.journals.entry(journal.clone()).or_default().lacks_some = true;
        let health = &mut state.journal;
        health.failed += 1;
        if health.degraded.is_none() {
            tracing::error!(reason, "the journal cannot be written; a crash would lose the rows in memory");
        }
        health.degraded = Some(reason.to_owned());
    }
    if let Some(done) = done {
        let _ = done.try_send(Kept::Failed { seq });
    }
}

/// The file that is written just now.
struct Open {
    name: JournalName,
    path: PathBuf,
    file: Arc<File>,
    bytes: u64,
}

fn write(store: &Store, io: &dyn Io, todo: &Receiver<Work>, written: &Sender<Written>, queued: &AtomicUsize) {
    let mut open: Option<Open> = None;
    for work in todo {
        match work {
            Work::Flush(flush) => {
                queued.fetch_sub(flush.frame.len(), Ordering::Relaxed);
                let Flush { seq, done, .. } = &flush;
                match append(store, io, &mut open, &flush) {
                    Ok(file) => {
                        {
                            let mut state = store.state();
                            state.journal.bytes = open.as_ref().map_or(0, |o| o.bytes);
                            state.journals.entry(flush.journal.clone()).or_default().written = *seq;
                        }
                        let journal = flush.journal.clone();
                        let _ = written.send(Written { journal, file, seq: *seq, done: done.clone() });
                    }
                    Err((path, error)) => {
                        let reason = format!("{}: {error}", path.display());
                        fail(store, &flush.journal, *seq, &reason, done.as_ref());
                    }
                }
            }
            Work::Remove(name) => {
                let path = store.dir.join(JOURNAL).join(name.file_name());
                open = open.filter(|o| o.name != name);
                store.state().journals.remove(&name);
                match io.remove(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!(path = %path.display(), %error, "cannot remove a journal whose rows are stored");
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Writes a frame behind the last one, so that a failed attempt leaves nothing between two frames.
fn append(
    store: &Store,
    io: &dyn Io,
    open: &mut Option<Open>,
    flush: &Flush,
) -> Result<Arc<File>, (PathBuf, io::Error)> {
    // One that somebody removed takes frames and keeps none.
    let is_there = |o: &Open| o.file.metadata().is_ok_and(|m| m.nlink() > 0);
    let mut now = match open.take() {
        Some(o) if o.name == flush.journal && is_there(&o) => o,
        _ => begin(store, io, flush)?,
    };
    let length = flush.frame.len() as u64;
    let result = if now.bytes + length > MAX_FILE_BYTES {
        Err(io::Error::other(format!("it is at its bound of {MAX_FILE_BYTES} bytes")))
    } else {
        now.file.write_all_at(&flush.frame, now.bytes)
    };
    match result {
        Ok(()) => {
            now.bytes += length;
            let file = now.file.clone();
            *open = Some(now);
            Ok(file)
        }
        Err(error) => {
            // What stays is overwritten by the next frame, or skipped by the reader.
            let _ = now.file.set_len(now.bytes);
            let path = now.path.clone();
            *open = Some(now);
            Err((path, error))
        }
    }
}

fn begin(store: &Store, io: &dyn Io, flush: &Flush) -> Result<Open, (PathBuf, io::Error)> {
    let dir = store.dir.join(JOURNAL);
    let path = dir.join(flush.journal.file_name());
    let wrong = |error| (path.clone(), error);
    match fs::create_dir(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(wrong(error)),
        _ => {}
    }
    let file = io.create(&path).map_err(wrong)?;
    file.write_all_at(&flush.opening, 0).map_err(wrong)?;
    io.sync_dir(&dir).map_err(wrong)?;
    let to_read = File::open(&path).map_err(wrong)?;
    {
        let mut state = store.state();
        let journal = state.journals.entry(flush.journal.clone()).or_default();
        // made anew, since somebody removed it with what was in it
        journal.lacks_some |= journal.file.is_some();
        journal.file = Some(Arc::new(to_read));
    }
    let bytes = flush.opening.len() as u64;
    Ok(Open { name: flush.journal.clone(), path, file: Arc::new(file), bytes })
}

fn sync(store: &Store, io: &dyn Io, to_sync: &Receiver<Written>) {
    while let Ok(first) = to_sync.recv() {
        // One sync serves all that came meanwhile; files change once a rotation.
        let mut all = vec![first];
        all.extend(to_sync.try_iter());
        for of_one in all.chunk_by(|a, b| Arc::ptr_eq(&a.file, &b.file)) {
            match io.sync(&of_one[0].file) {
                Ok(()) => {
                    if store.state().journal.degraded.take().is_some() {
                        tracing::info!("the journal can be written again");
                    }
                    for Written { seq, done, .. } in of_one {
                        if let Some(done) = done {
                            let _ = done.try_send(Kept::Durable { seq: *seq });
                        }
                    }
                }
                Err(error) => {
                    let reason = format!("cannot fsync the journal: {error}");
                    for Written { journal, seq, done, .. } in of_one {
                        fail(store, journal, *seq, &reason, done.as_ref());
                    }
                }
            }
        }
    }
}
