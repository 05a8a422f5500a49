//! File operations that go wrong on purpose. Included by path; never in the product.
#![allow(dead_code, reason = "each test binary uses its own part")]

use fgm::segment::{Disk, Io};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Disk whose new files lead to `/dev/full` while it is full, which answers every write with ENOSPC as a full disk does.
pub struct FullDisk {
    pub is_full: AtomicBool,
}

impl Io for FullDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        if self.is_full.load(Ordering::SeqCst) {
            return File::options().write(true).open("/dev/full");
        }
        Disk.create(path)
    }
}

/// Disk on which no segment can be written while it refuses, and journals can.
pub struct NoSegments {
    pub refuses: AtomicBool,
}

impl Io for NoSegments {
    fn create(&self, path: &Path) -> io::Result<File> {
        if self.refuses.load(Ordering::SeqCst) && path.extension().is_some_and(|e| e == "tmp") {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Disk.create(path)
    }
}
