//! Whether a folder would do as the data folder, without making anything in it. `fgm doctor` asks.

use super::{LOCK, StoreError};
use rustix::fs::{Access, FlockOperation};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// What was found of a data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    pub exists: bool,
    /// Of the file system that it is, or will be, on.
    pub free_bytes: u64,
    /// Pid of the agent that holds it.
    pub in_use_by: Option<String>,
}

/// Looks at a data folder, or at the folder in which it would be made.
///
/// # Errors
/// Why it will not do, with the mend.
pub fn look(dir: &Path) -> Result<Look, StoreError> {
    if dir.is_file() {
        return Err(StoreError::NotAFolder { path: dir.into() });
    }
    let exists = dir.is_dir();
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| PathBuf::from(dir));
    let there = absolute.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let refused = |source: io::Error| {
        let path = dir.to_owned();
        if exists { StoreError::NotWritable { path, source } } else { StoreError::Create { path, source } }
    };
    if !there.is_dir() {
        return Err(refused(io::ErrorKind::NotADirectory.into()));
    }
    rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK).map_err(|e| refused(e.into()))?;
    let free_bytes = rustix::fs::statvfs(there).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
    let lock = dir.join(LOCK);
    let held = File::open(&lock).is_ok_and(|file| {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    });
    let holder = || fs::read_to_string(&lock).map(|t| t.trim().to_owned()).unwrap_or_default();
    Ok(Look { exists, free_bytes, in_use_by: held.then(holder) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn a_folder_in_use_names_its_holder_and_one_to_be_made_is_not_made() {
        let dir = tempfile::tempdir().expect("a folder");
        let data = dir.path().join("a/b");
        let told = look(&data).expect("may be made");
        assert!(
            !told.exists && told.free_bytes > 0 && told.in_use_by.is_none() && !data.exists(),
            "{told:?}"
        );
        let store = Store::open(&data).expect("opens");
        assert_eq!(look(&data).expect("there").in_use_by, Some(std::process::id().to_string()));
        drop(store);
        assert_eq!(look(&data).expect("there").in_use_by, None);
        std::fs::write(dir.path().join("file"), "").expect("write");
        assert!(matches!(look(&dir.path().join("file")), Err(StoreError::NotAFolder { .. })));
        assert!(matches!(look(&dir.path().join("file/data")), Err(StoreError::Create { .. })));
    }
}
