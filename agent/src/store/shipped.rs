//! What of a data folder is in the bucket, in `shipped.json`: the files of `v1/` and the bundles of incidents that were put there.
//!
//! A file is named here only after the bucket had it. What a crash keeps from being noted is put again, and the bucket says that it is
//! there; without the note, or with another bucket's, each file is looked for before it is put. It is a help and no truth.

use super::{Store, StoreError};
use crate::segment::{Io, Segment};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::Path;

const NAME: &str = "shipped.json";
/// Bundles that are remembered: more than incidents are.
const BUNDLES: usize = 4000;

/// Which files retention leaves alone as long as it can.
pub struct Hold {
    /// Bytes of them, beyond which they go like others.
    pub max_bytes: u64,
    pub keeps: Box<dyn Fn(&Segment) -> bool + Send + Sync>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shipped {
    /// The bucket that has them.
    url: String,
    /// Below the data folder.
    files: BTreeSet<String>,
    /// The latest revision of each incident that was put, by its id.
    bundles: BTreeMap<String, u32>,
    /// Nothing is known of what the bucket has.
    #[serde(skip)]
    is_new: bool,
}

/// A path below the data folder, as the bucket names it.
pub fn name_below<'a>(dir: &Path, path: &'a Path) -> Option<&'a str> {
    path.strip_prefix(dir).ok()?.to_str()
}

impl Shipped {
    /// What is known of that bucket: nothing, when the note is about another or cannot be read.
    pub fn read(dir: &Path, url: &str) -> Self {
        let new = || Self { url: url.to_owned(), is_new: true, ..Self::default() };
        let path = dir.join(NAME);
        match fs::read(&path).map(|bytes| serde_json::from_slice::<Self>(&bytes)) {
            Ok(Ok(own)) if own.url == url => own,
            Ok(Ok(_)) => new(),
            Ok(Err(error)) => {
                tracing::warn!(path = %path.display(), %error, "the note of what was shipped cannot be read; the bucket is asked for each file");
                new()
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "the note of what was shipped cannot be read; the bucket is asked for each file");
                }
                new()
            }
        }
    }

    /// Whether each file must be looked for before it is put.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    pub fn has(&self, name: &str) -> bool {
        self.files.contains(name)
    }

    pub fn has_bundle(&self, id: &str, revision: u32) -> bool {
        self.bundles.get(id).is_some_and(|r| *r >= revision)
    }

    pub fn note(&mut self, name: &str) {
        self.files.insert(name.to_owned());
    }

    pub fn note_bundle(&mut self, id: &str, revision: u32) {
        let known = self.bundles.entry(id.to_owned()).or_default();
        *known = revision.max(*known);
    }

    /// All that is in the folder has been held against the bucket.
    pub fn is_complete(&mut self) {
        self.is_new = false;
    }

    /// Forgets what is not in the folder any more. Ids end with their time, so that within a boot the oldest go first.
    fn prune(&mut self, dir: &Path) {
        self.files.retain(|name| dir.join(name).exists());
        while self.bundles.len() > BUNDLES {
            self.bundles.pop_first();
        }
    }
}

impl Store {
    /// The files of `v1/` that are wanted, oldest first.
    pub fn merged(&self, wanted: impl Fn(&Segment) -> bool) -> Vec<Segment> {
        let mut all: Vec<Segment> =
            self.state().segments.iter().filter(|s| s.merged.is_some() && wanted(s)).cloned().collect();
        all.sort_by(|a, b| (a.from_us, &a.path).cmp(&(b.from_us, &b.path)));
        all
    }

    /// What retention must not take while there is another way. Set once.
    pub fn hold(&self, hold: Hold) {
        let _ = self.hold.set(hold);
    }

    /// Makes a file of `v1/` one that a power failure leaves: whoever has a copy of it must not meet the same rows under
    /// another name.
    pub fn settle(&self, io: &dyn Io, segment: &Segment) -> io::Result<()> {
        let folders = segment.path.ancestors().skip(1).take_while(|p| p.starts_with(&self.dir));
        folders.into_iter().try_for_each(|folder| io.sync_dir(folder))
    }

    /// Puts the note on the disk.
    pub fn write_shipped(&self, io: &dyn Io, shipped: &mut Shipped) -> Result<(), StoreError> {
        shipped.prune(&self.dir);
        let (path, temporary) = (self.dir.join(NAME), self.dir.join(format!("{NAME}.tmp")));
        let write = || {
            let mut file = io.create(&temporary)?;
            file.write_all(&serde_json::to_vec(shipped).unwrap_or_default())?;
            io.sync(&file)?;
            io.rename(&temporary, &path)?;
            io.sync_dir(&self.dir)
        };
        write().map_err(|source| StoreError::NotWritable { path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Disk;

    #[test]
    fn the_note_is_of_one_bucket_and_of_files_that_are_there() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path()).expect("opens");
        let mut own = Shipped::read(dir.path(), "s3://a");
        assert!(own.is_new());
        fs::write(dir.path().join("here"), "").expect("write");
        for name in ["here", "gone"] {
            own.note(name);
        }
        own.note_bundle("n-b-1", 2);
        own.is_complete();
        store.write_shipped(&Disk, &mut own).expect("written");
        let again = Shipped::read(dir.path(), "s3://a");
        assert!(again.has("here") && !again.has("gone") && !again.is_new());
        assert!(
            again.has_bundle("n-b-1", 1) && again.has_bundle("n-b-1", 2) && !again.has_bundle("n-b-1", 3)
        );
        let other = Shipped::read(dir.path(), "s3://b");
        assert!(other.is_new() && !other.has("here"));
        fs::write(dir.path().join(NAME), "{").expect("write");
        assert!(Shipped::read(dir.path(), "s3://a").is_new());
    }
}
