//! The memory of an array map, seen from user space: no call to read or write it.
//!
//! For maps made with `BPF_F_MMAPABLE` whose program runs only while the owner asks it to, so that nothing changes under a
//! reference. It must never outlive its mapping, nor be given a map whose values are of another size. `walk` uses it.
#![expect(unsafe_code, reason = "mmap(2) of a map has no safe wrapper")]

use super::attach;
use aya::maps::Map;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::AsFd as _;
use std::ptr::NonNull;
use zerocopy::{FromBytes, IntoBytes};

pub(super) struct Shared<T> {
    at: NonNull<T>,
    len: usize,
}

// SAFETY: it is memory of this process that nobody else of it uses.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T: FromBytes + IntoBytes> Shared<T> {
    /// All `len` values of an array map.
    ///
    /// # Errors
    /// It is no array map, or cannot be mapped.
    pub fn of(map: &Map, len: usize) -> Result<Self, String> {
        // the kernel puts values at multiples of 8 bytes
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 8) };
        let Map::Array(map) = map else {
            return Err("the embedded eBPF object has a map of another kind".to_owned());
        };
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping; the kernel refuses one beyond the end of the map.
        let at = unsafe {
            mmap(std::ptr::null_mut(), len * size_of::<T>(), protection, flags, map.fd().as_fd(), 0)
        };
        let at = at.map_err(|e| format!("a map's memory: {}", attach::explain(&e)))?;
        let at = NonNull::new(at.cast()).ok_or("a map's memory is at 0")?;
        Ok(Self { at, len })
    }

    pub fn all(&self) -> &[T] {
        // SAFETY: so many values are mapped for as long as this lives, any bytes are valid ones, and the program that writes them
        // runs only within a call of the owner.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    pub fn all_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and this is the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: what `of` has mapped, which nothing refers to any more.
        let unmapped = unsafe { munmap(self.at.as_ptr().cast(), self.len * size_of::<T>()) };
        debug_assert!(unmapped.is_ok());
    }
}
