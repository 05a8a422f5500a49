//! Roles that use the CPU and the disk. Must never write beyond the length that was told. Called by `main`.
#![expect(
    clippy::disallowed_methods,
    reason = "the ban keeps the agent on its own clock; this is not the agent"
)]

use crate::memory;
use std::fs::OpenOptions;
use std::hint::black_box;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks at the time.
const ROUND: u64 = 200_000;
/// One write, forced to the disk before the next.
const PIECE: usize = 256 << 10;

/// So many threads that never rest, one for each processor that this process may use unless told; `after` a while.
pub fn burn(threads: Option<usize>, after: Duration, length: Duration) {
    let held = memory::touched(memory::STEADY_BYTES);
    memory::idle(&held, Some(after));
    let threads = threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZeroUsize::get));
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while start.elapsed() < length {
                    let sum = (0..ROUND).fold(0_u64, |sum, n| black_box(sum.wrapping_add(n)));
                    black_box(sum);
                }
            });
        }
    });
}

/// Write a file of `bytes` over and over, each piece on the disk before the next.
pub fn write(file: &Path, bytes: usize, after: Duration, length: Duration) -> io::Result<()> {
    let held = memory::touched(memory::STEADY_BYTES);
    memory::idle(&held, Some(after));
    // A disk is there already, and must not be cut.
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(file)?;
    let piece = vec![b'x'; PIECE];
    let (start, mut at) = (Instant::now(), 0);
    while start.elapsed() < length {
        file.write_all_at(&piece, at as u64)?;
        file.sync_data()?;
        at = (at + PIECE) % bytes.max(PIECE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{PIECE, write};
    use std::time::Duration;

    #[test]
    fn no_more_is_written_than_was_told() {
        let path = std::env::temp_dir().join(format!("fgm-workload-{}", std::process::id()));
        write(&path, 2 * PIECE, Duration::ZERO, Duration::from_millis(100)).expect("a file");
        let length = std::fs::metadata(&path).expect("the file").len();
        std::fs::remove_file(&path).expect("removed");
        assert!(length > 0 && length <= 2 * PIECE as u64, "{length} bytes");
    }
}
