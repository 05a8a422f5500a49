//! Using anonymous memory at a given pace, page by page, so that the kernel charges exactly what was asked.
//! Must never read a clock of the agent's or allocate beyond the buffer. Called by the roles.
#![expect(
    clippy::disallowed_methods,
    reason = "the ban keeps the agent on its own clock; this is not the agent"
)]

use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Memory of a container that only idles: enough to be seen beside the noise of an empty one.
pub const STEADY_BYTES: usize = 4 << 20;

/// The smallest page there is; touching more often than once a page costs little and misses none.
const PAGE: usize = 4096;
/// Pace of a ramp: 200 steps a second make it smooth at the 50 Hz that the recorder reads.
const STEP: Duration = Duration::from_millis(5);
/// A steady container's heartbeat.
const BEAT: Duration = Duration::from_millis(100);

/// `bytes` of memory, all of it touched.
pub fn touched(bytes: usize) -> Vec<u8> {
    let mut buffer = zeroed(bytes);
    touch(&mut buffer, 0, bytes);
    buffer
}

/// Touch `bytes` evenly over `over`: at each step as much as is due by then, so that a late wake-up is caught up.
pub fn ramp(bytes: usize, over: Duration) -> Vec<u8> {
    let mut buffer = zeroed(bytes);
    let start = Instant::now();
    let mut done = 0;
    while done < bytes {
        let due = due(bytes, start.elapsed(), over);
        touch(&mut buffer, done, due);
        done = due;
        thread::sleep(STEP);
    }
    buffer
}

/// Keep the memory and read a part of a file over and over, a piece a beat, as a server with its working set does. Ends with
/// the file only.
pub fn serve(held: &[u8], file: &Path, from: usize, length: usize) -> io::Result<()> {
    const PIECE: usize = 64 << 10;
    let file = File::open(file)?;
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    loop {
        file.read_exact_at(&mut piece, (from + at) as u64)?;
        at = (at + PIECE) % length.max(PIECE);
        work(held);
        black_box(&piece);
        thread::sleep(BEAT);
    }
}

/// Keep the memory and burn a little CPU, for a time or for ever.
pub fn idle(held: &[u8], length: Option<Duration>) {
    let start = Instant::now();
    while length.is_none_or(|l| start.elapsed() < l) {
        work(held);
        thread::sleep(BEAT);
    }
}

/// A little of it.
fn work(held: &[u8]) {
    black_box(held.first());
    let mut sum = 0_u64;
    for n in 0..2_000_u64 {
        sum = black_box(sum.wrapping_add(n));
    }
}

/// Bytes due after `elapsed`, in whole thousandths of the way so that no float is needed.
fn due(bytes: usize, elapsed: Duration, over: Duration) -> usize {
    let (elapsed, over) = (elapsed.as_micros(), over.as_micros());
    if elapsed >= over {
        return bytes;
    }
    usize::try_from(bytes as u128 * elapsed / over).unwrap_or(bytes)
}

/// Zeroed memory comes from mmap untouched: nothing is charged before the first write to a page.
fn zeroed(bytes: usize) -> Vec<u8> {
    vec![0; bytes]
}

fn touch(buffer: &mut [u8], from: usize, to: usize) {
    for at in (from.next_multiple_of(PAGE)..to).step_by(PAGE) {
        buffer[at] = 1;
    }
    black_box(buffer);
}

#[cfg(test)]
mod tests {
    use super::{PAGE, due, ramp};
    use std::time::Duration;

    #[test]
    fn due_is_linear_and_ends_at_all() {
        let over = Duration::from_secs(4);
        assert_eq!(due(1000, Duration::ZERO, over), 0);
        assert_eq!(due(1000, Duration::from_secs(1), over), 250);
        assert_eq!(due(1000, Duration::from_secs(9), over), 1000);
        assert_eq!(due(1000, Duration::ZERO, Duration::ZERO), 1000);
    }

    #[test]
    fn ramp_touches_every_page() {
        let held = ramp(64 * PAGE, Duration::from_millis(30));
        assert!(held.chunks(PAGE).all(|page| page[0] == 1));
    }
}
