//! One look at what is new, and its way into the bucket: incidents first, then the files of `v1/`, the oldest first.
//!
//! What fails comes last in the next pass, and a third failure ends this one: an object that a store never takes holds up no other,
//! and a dead store costs three requests. Every step may be the last of the process: nothing is noted that the bucket does not have.

use super::{Incidents, Status, bundle, lock};
use crate::bucket::{Bucket, BucketError, Put};
use crate::config::Ship as Settings;
use crate::fleet::BUNDLES;
use crate::incident::Incident;
use crate::names::Table;
use crate::segment::{Disk, Segment};
use crate::store::{Shipped, Store, name_below};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Failures that end a pass.
const FAILURES: u32 = 3;
/// After the end of its window an incident waits so long for its last rows to reach the store.
const SETTLE_US: i64 = 2_000_000;
/// The note is put on the disk after so many files, and at the end of each pass.
const NOTE_AFTER: usize = 16;
/// What is compared of two files of one length: the end, which has the checksums of all the rest.
const COMPARED_BYTES: u64 = 64 << 10;

/// What is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    All,
    /// Bundles, and the table `incidents`, by which they are found.
    Incidents,
}

impl What {
    pub fn of(name: &str) -> Self {
        if name == "incidents" { Self::Incidents } else { Self::All }
    }

    pub fn wants(self, table: Table) -> bool {
        self == Self::All || table == Table::Incidents
    }
}

pub struct Shipper {
    store: Arc<Store>,
    settings: Settings,
    what: What,
    shipped: Arc<Mutex<Shipped>>,
    pub(super) status: Status,
    bucket: Option<Bucket>,
    /// Names that failed, with how often: these come last. Of those that are not due any more none stays.
    failed: BTreeMap<String, u32>,
    /// Incidents of which no bundle can be made.
    unmade: HashSet<(String, u32)>,
}

impl Shipper {
    pub fn new(
        store: Arc<Store>,
        settings: Settings,
        what: What,
        shipped: Arc<Mutex<Shipped>>,
        status: Status,
    ) -> Self {
        let (failed, unmade) = (BTreeMap::new(), HashSet::new());
        Self { store, settings, what, shipped, status, bucket: None, failed, unmade }
    }

    /// Over a bucket that is open already.
    #[must_use]
    pub fn over(self, bucket: Bucket) -> Self {
        Self { bucket: Some(bucket), ..self }
    }

    pub fn longest_pause_s(&self) -> u64 {
        self.settings.retry_max_s
    }

    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Copies what is to be copied.
    ///
    /// # Errors
    /// Why not all of it, in words.
    pub async fn pass(&mut self, incidents: &Incidents, now_us: i64) -> Result<(), String> {
        let bucket = if let Some(bucket) = &self.bucket {
            bucket.clone()
        } else {
            let bucket = Bucket::open(&self.settings).map_err(|e| e.to_string())?;
            self.bucket.insert(bucket).clone()
        };
        let due = self.due();
        self.status.backlog(due.len() as u64, due.iter().map(|(_, s)| s.bytes).sum());
        let outcome = self.copy(&bucket, &due, incidents, now_us).await;
        let left = due.iter().filter(|(name, _)| !lock(&self.shipped).has(name));
        let (files, bytes) = left.fold((0, 0), |(n, sum), (_, s)| (n + 1, sum + s.bytes));
        self.status.backlog(files, bytes);
        if outcome.is_ok() {
            self.status.rests();
        }
        outcome
    }

    async fn copy(
        &mut self,
        bucket: &Bucket,
        due: &[(String, Segment)],
        incidents: &Incidents,
        now_us: i64,
    ) -> Result<(), String> {
        let mut noted = 0;
        let outcome = self.copy_all(bucket, due, incidents, now_us, &mut noted).await;
        if outcome.is_ok() && lock(&self.shipped).is_new() {
            lock(&self.shipped).is_complete();
            noted += 1;
        }
        // what failed does not take back what arrived
        if noted > 0 {
            self.write_note()?;
        }
        outcome
    }

    async fn copy_all(
        &mut self,
        bucket: &Bucket,
        due: &[(String, Segment)],
        incidents: &Incidents,
        now_us: i64,
        noted: &mut usize,
    ) -> Result<(), String> {
        let mut errors: Vec<String> = Vec::new();
        for incident in self.due_incidents(incidents, now_us) {
            let name = bundle::name(&incident);
            match self.put_bundle(bucket, &name, &incident, now_us).await {
                Ok(is_there) => *noted += usize::from(is_there),
                Err(error) => self.note_failure(&name, error.to_string(), &mut errors)?,
            }
        }
        for (name, segment) in due {
            match self.put(bucket, name, segment).await {
                Ok(()) => {
                    self.failed.remove(name);
                    self.status.went_well(now_us);
                    *noted += 1;
                    if (*noted).is_multiple_of(NOTE_AFTER) {
                        self.write_note()?;
                    }
                }
                // retention took it, or the disk: others can be read
                Err(error) if error.is_of_the_file() => {
                    let failures = self.failed.entry(name.clone()).or_default();
                    *failures += 1;
                    if *failures == 1 {
                        tracing::warn!(%error, "left a file out that was to be shipped");
                    }
                }
                Err(error) => self.note_failure(name, error.to_string(), &mut errors)?,
            }
        }
        self.failed.retain(|name, _| name.starts_with(BUNDLES) || due.iter().any(|(n, _)| n == name));
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    /// An error when there were enough of them.
    fn note_failure(&mut self, name: &str, error: String, errors: &mut Vec<String>) -> Result<(), String> {
        *self.failed.entry(name.to_owned()).or_default() += 1;
        errors.push(error);
        if errors.len() < FAILURES as usize { Ok(()) } else { Err(errors.swap_remove(0)) }
    }

    fn write_note(&self) -> Result<(), String> {
        // the lock is held for no disk
        let mut own = lock(&self.shipped).clone();
        self.store.write_shipped(&Disk, &mut own).map_err(|e| e.to_string())?;
        *lock(&self.shipped) = own;
        Ok(())
    }

    /// Files of `v1/` that the bucket is not known to have; what failed before at the end.
    fn due(&self) -> Vec<(String, Segment)> {
        let name = |s: &Segment| name_below(self.store.dir(), &s.path).map(str::to_owned);
        // this is asked every two seconds, and nearly all of them are there
        let is_due = |s: &Segment| {
            self.what.wants(s.table) && name(s).is_some_and(|name| !lock(&self.shipped).has(&name))
        };
        let all = self.store.merged(is_due).into_iter();
        let mut due: Vec<_> = all.filter_map(|s| Some((name(&s)?, s))).collect();
        due.sort_by_key(|(name, s)| (self.failures(name), s.from_us));
        due
    }

    fn due_incidents(&self, incidents: &Incidents, now_us: i64) -> Vec<Incident> {
        let shipped = lock(&self.shipped);
        let mut all = incidents(&|i: &Incident| {
            i.closed
                && i.window.to_us.saturating_add(SETTLE_US) <= now_us
                && !shipped.has_bundle(&i.id, i.revision)
                && !self.unmade.contains(&(i.id.clone(), i.revision))
        });
        all.sort_by_cached_key(|i| (self.failures(&bundle::name(i)), i.ts_us, i.id.clone()));
        all
    }

    fn failures(&self, name: &str) -> u32 {
        self.failed.get(name).copied().unwrap_or(0)
    }

    /// Whether there is one now.
    async fn put_bundle(
        &mut self,
        bucket: &Bucket,
        name: &str,
        incident: &Incident,
        now_us: i64,
    ) -> Result<bool, BucketError> {
        let bytes = match bundle::make(self.store.view(), incident, now_us) {
            Ok(bytes) => bytes,
            Err(problem) => {
                tracing::warn!(id = incident.id, %problem, "no bundle can be made of an incident");
                self.status.unmade();
                self.unmade.insert((incident.id.clone(), incident.revision));
                return Ok(false);
            }
        };
        let length = bytes.len() as u64;
        let put = bucket.create(name, bytes.into()).await?;
        self.failed.remove(name);
        lock(&self.shipped).note_bundle(&incident.id, incident.revision);
        self.status.put_bundle(length, put == Put::Exists);
        self.status.went_well(now_us);
        Ok(true)
    }

    async fn put(&self, bucket: &Bucket, name: &str, segment: &Segment) -> Result<(), BucketError> {
        let file = |source| BucketError::File { path: segment.path.clone(), source };
        self.store.settle(&Disk, segment).map_err(file)?;
        let mut was_there = false;
        // without a note most files are there: their bytes need not go up to hear it
        let is_new = lock(&self.shipped).is_new();
        let mut put = if is_new && bucket.size(name).await?.is_some() {
            Put::Exists
        } else {
            bucket.create_from(name, &segment.path).await?
        };
        if put == Put::Exists {
            was_there = is_same(bucket, name, &segment.path).await?;
            if !was_there {
                // of a folder that was emptied within a boot, whose numbers began anew
                let other = other_name(name, &segment.path)?;
                tracing::warn!(name, other, "the bucket has another file of that name");
                put = bucket.create_from(&other, &segment.path).await?;
                was_there = put == Put::Exists;
            }
        }
        lock(&self.shipped).note(name);
        self.status.put(segment.bytes, was_there);
        Ok(())
    }
}

/// The end of a file, which names the checksums of the rest.
fn end_of(path: &Path) -> Result<(u64, Vec<u8>), BucketError> {
    let wrong = |source| BucketError::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(wrong)?;
    let length = file.metadata().map_err(wrong)?.len();
    let mut end = vec![0; usize::try_from(length.min(COMPARED_BYTES)).unwrap_or(0)];
    let start = length - end.len() as u64;
    file.read_exact_at(&mut end, start).map_err(wrong)?;
    Ok((length, end))
}

async fn is_same(bucket: &Bucket, name: &str, path: &Path) -> Result<bool, BucketError> {
    let (length, end) = end_of(path)?;
    if bucket.size(name).await? != Some(length) {
        return Ok(false);
    }
    Ok(length == 0 || bucket.range(name, length - end.len() as u64..length).await? == end)
}

/// `…/<boot>-<n>.parquet` → `…/<boot>.<checksum>-<n>.parquet`.
fn other_name(name: &str, path: &Path) -> Result<String, BucketError> {
    let crc = crc32fast::hash(&end_of(path)?.1);
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    let file = file.replacen('-', &format!(".{crc:08x}-"), 1);
    Ok(format!("{folder}/{file}"))
}
