//! Space that is kept for the evidence of incidents: a file of that size, which is given up when the disk is full. From then on the
//! writer makes files of evidence alone, ordinary rows wait in their bounded list, until there is room for both again.

use rustix::fs::FallocateFlags;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

const NAME: &str = "RESERVE";

#[derive(Debug, Default)]
pub struct Reserve {
    path: PathBuf,
    /// 0: none is wanted.
    bytes: u64,
    is_given_up: bool,
}

impl Reserve {
    /// Takes the space. Where it cannot be had there is none, and the log says so.
    pub fn take(dir: &Path, bytes: u64) -> Self {
        let mut own = Self { path: dir.join(NAME), bytes, is_given_up: false };
        if let Err(error) = own.fill() {
            tracing::warn!(path = %own.path.display(), %error, bytes, "no space is reserved for incidents");
            let _ = fs::remove_file(&own.path);
            own.bytes = 0;
        }
        own
    }

    fn fill(&mut self) -> io::Result<()> {
        if self.bytes == 0 {
            return match fs::remove_file(&self.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            };
        }
        let file = File::options().create(true).write(true).truncate(false).open(&self.path)?;
        file.set_len(self.bytes)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, self.bytes)?;
        Ok(())
    }

    pub fn is_given_up(&self) -> bool {
        self.is_given_up
    }

    /// Bytes that are kept just now.
    pub fn held(&self) -> u64 {
        if self.is_given_up { 0 } else { self.bytes }
    }

    /// Gives the space up, once.
    pub fn give_up(&mut self) -> bool {
        if self.bytes == 0 || self.is_given_up {
            return false;
        }
        self.is_given_up = fs::remove_file(&self.path).is_ok();
        if self.is_given_up {
            tracing::error!(
                bytes = self.bytes,
                "the disk is full: what was reserved is for the evidence of incidents alone"
            );
        }
        self.is_given_up
    }

    /// Takes the space again when there is that much left besides.
    pub fn regain(&mut self) {
        let has_room = |own: &Self| {
            own.path.parent().and_then(free_bytes).is_some_and(|free| free >= own.bytes.saturating_mul(2))
        };
        if self.is_given_up && has_room(self) && self.fill().is_ok() {
            self.is_given_up = false;
            tracing::info!(bytes = self.bytes, "space is reserved for incidents again");
        }
    }
}

/// Of the file system that a folder is on.
pub fn free_bytes(dir: &Path) -> Option<u64> {
    rustix::fs::statvfs(dir).ok().map(|s| s.f_bavail.saturating_mul(s.f_frsize))
}
