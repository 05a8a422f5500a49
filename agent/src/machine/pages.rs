//! The program's own memory: its pages stay, what its heap has no use for goes back. A node that runs out of memory gives up page cache first, and the text of
//! running programs is page cache: the recorder would wait for the disk at the very moment that it is there for.
//! Locks only what has been touched (`MLOCK_ONFAULT`), and nothing but mapped files: heap and maps stay the kernel's.

use rustix::mm::{MlockFlags, mlock_with};
use std::fs;
use std::io;

/// What is free goes back to the system: it was in many small pieces and on many threads, and the allocator would keep it.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "malloc_trim(3) has no safe wrapper")]
    // SAFETY: it takes no pointer; it may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A mapping of /proc/self/maps.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: usize,
    length: usize,
}

/// Locks the mapped files that are read or run and never written. Returns their bytes, of which only those in use count.
///
/// # Errors
/// EPERM or ENOMEM without `CAP_IPC_LOCK` when `RLIMIT_MEMLOCK` is less than that.
pub fn keep_program() -> io::Result<usize> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut bytes = 0;
    for mapping in maps.lines().filter_map(program) {
        #[expect(unsafe_code, reason = "mlock2 takes an address")]
        // SAFETY: it changes nothing of the memory, and a range that has gone is refused by the kernel (ENOMEM).
        unsafe {
            mlock_with(
                std::ptr::with_exposed_provenance_mut(mapping.start),
                mapping.length,
                MlockFlags::ONFAULT,
            )?;
        }
        bytes += mapping.length;
    }
    Ok(bytes)
}

/// `7f00-7f80 r-xp 00000000 08:01 123 /path`: a file's (its inode is not 0), private, not written.
fn program(line: &str) -> Option<Mapping> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let is_read_only = matches!(words.next()?, "r-xp" | "r--p");
    if !is_read_only || words.nth(2)? == "0" {
        return None;
    }
    let start = usize::from_str_radix(start, 16).ok()?;
    let length = usize::from_str_radix(end, 16).ok()?.checked_sub(start)?;
    Some(Mapping { start, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_are_not_written_are_the_program() {
        let text = program("55d0a000-55d0c000 r-xp 00002000 fe:00 131 /usr/bin/fgm");
        assert_eq!(text, Some(Mapping { start: 0x55d0_a000, length: 0x2000 }));
        for other in [
            "55d0a000-55d0c000 rw-p 00002000 fe:00 131 /usr/bin/fgm",
            "7ffd000-7ffe000 r-xp 00000000 00:00 0 [vdso]",
            "7f00-7f80 r--s 00000000 fe:00 9 /var/cache",
            "",
            "junk",
        ] {
            assert_eq!(program(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_locked_is_this_program() {
        let Ok(bytes) = keep_program() else {
            println!("SKIPPED what_is_locked_is_this_program: RLIMIT_MEMLOCK is too low here");
            return;
        };
        let status = fs::read_to_string("/proc/self/status").expect("my status");
        let locked = status.lines().find_map(|l| l.strip_prefix("VmLck:")).expect("VmLck");
        let kb: usize = locked.trim().trim_end_matches(" kB").parse().expect("a number");
        assert!(bytes > 0 && kb * 1024 >= bytes, "{kb} kB locked, asked for {bytes} bytes");
    }
}
