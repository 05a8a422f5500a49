//! What `cargo xtask bench sampler` holds the recorder against: readers of the same files that do nothing else, and the
//! process of a container that does nothing. Must never have a line of the recorder's code in it, parse or keep what it reads.
//!
//! ```text
//! reader floor DIR SECONDS FILE…   each second `pread` of FILE… below each directory in DIR, from descriptors that stay open
//! reader naive DIR SECONDS FILE…   the same by opening, reading into a String and closing
//! reader sit CGROUP                joins CGROUP and sleeps until it is killed
//! reader beat CGROUP               joins CGROUP and computes a little, ten times a second
//! ```
//! A reader says when all is open and its first round is over; from then on its rounds begin a second apart, however long one takes. Its last
//! line is a JSON object of those: reads, bytes, allocations, counted by its own allocator, and how many rounds began late.
//! Exit codes: 0 done, 1 the system refused something, 2 wrong arguments.
#![expect(unsafe_code, reason = "an allocator that counts is one by an unsafe trait")]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use std::{env, thread};

/// As large as the recorder's.
const BUFFER: usize = 64 << 10;
const SECOND_NS: u64 = 1_000_000_000;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: all of it is the system's allocator, with a count beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["sit", cgroup] => join(cgroup).map(|()| {
            loop {
                thread::park();
            }
        }),
        ["beat", cgroup] => join(cgroup).map(|()| beat()),
        [role @ ("floor" | "naive"), dir, seconds, ref files @ ..] if !files.is_empty() => {
            let Ok(seconds) = seconds.parse() else { return wrong() };
            containers(Path::new(dir)).and_then(|dirs| match role {
                "floor" => floor(&dirs, files, seconds),
                _ => naive(&dirs, files, seconds),
            })
        }
        _ => return wrong(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("reader: {message}");
            ExitCode::FAILURE
        }
    }
}

fn wrong() -> ExitCode {
    eprintln!("usage: reader floor|naive DIR SECONDS FILE…, or reader sit|beat CGROUP");
    ExitCode::from(2)
}

fn join(cgroup: &str) -> Result<(), String> {
    fs::write(Path::new(cgroup).join("cgroup.procs"), "0").map_err(|e| format!("cannot join {cgroup}: {e}"))
}

fn beat() -> ! {
    let mut n = 0u64;
    loop {
        for i in 0..1000u64 {
            n = black_box(n.wrapping_mul(31).wrapping_add(i));
        }
        // memory that comes and goes, so that the kernel's counters move
        drop(black_box(vec![n.to_le_bytes()[0]; 256 << 10]));
        thread::sleep(Duration::from_millis(100));
    }
}

fn containers(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let wrong = |e| format!("{}: {e}", dir.display());
    let mut dirs = Vec::new();
    for entry in fs::read_dir(dir).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        if path.is_dir() {
            dirs.push(path);
        }
    }
    dirs.sort();
    Ok(dirs)
}

/// Instants a second apart. What began late does not move those that follow: the mean is a round a second as long as one can be done in it.
struct Grid {
    next_ns: u64,
    late: u64,
}

impl Grid {
    fn new(now_ns: u64) -> Self {
        Self { next_ns: now_ns + SECOND_NS, late: 0 }
    }

    /// How long to wait for the next instant; not at all when it has passed.
    fn wait(&mut self, now_ns: u64) -> Duration {
        let wait = self.next_ns.checked_sub(now_ns);
        self.late += u64::from(wait.is_none());
        self.next_ns += SECOND_NS;
        Duration::from_nanos(wait.unwrap_or(0))
    }
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    part(now.tv_sec) * SECOND_NS + part(now.tv_nsec)
}

/// One round to open all, then one at each instant of a grid of seconds, and what these did at the end.
fn rounds(seconds: u64, mut round: impl FnMut() -> Result<(u64, u64), String>) -> Result<(), String> {
    let (mut reads, mut bytes) = (0, 0);
    round()?;
    println!("{{\"is_open\":true}}");
    let before = ALLOCATIONS.load(Relaxed);
    let mut grid = Grid::new(now_ns());
    for _ in 0..seconds {
        thread::sleep(grid.wait(now_ns()));
        let (r, b) = round()?;
        (reads, bytes) = (reads + r, bytes + b);
    }
    let (allocations, late) = (ALLOCATIONS.load(Relaxed) - before, grid.late);
    // whoever measures it finds it there for the whole of its last second
    thread::sleep(grid.wait(now_ns()));
    println!(
        "{{\"rounds\":{seconds},\"late\":{late},\"reads\":{reads},\"bytes\":{bytes},\"allocations\":{allocations}}}"
    );
    Ok(())
}

fn floor(dirs: &[PathBuf], files: &[&str], seconds: u64) -> Result<(), String> {
    let hard = getrlimit(Resource::Nofile).maximum;
    // what cannot be raised shows itself at the first file too many
    let _ = setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard });
    let mut open = Vec::with_capacity(dirs.len() * files.len());
    for path in dirs.iter().flat_map(|d| files.iter().map(move |f| d.join(f))) {
        match File::open(&path) {
            Ok(file) => open.push(file),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(format!("{}: {e}", path.display())),
        }
    }
    let mut buffer = vec![0u8; BUFFER];
    rounds(seconds, || {
        let (mut reads, mut bytes) = (0, 0);
        for file in &open {
            // some files refuse at some times, as io.pressure does where it is switched off
            if let Ok(n) = file.read_at(&mut buffer, 0) {
                black_box(&buffer);
                (reads, bytes) = (reads + 1, bytes + n as u64);
            }
        }
        Ok((reads, bytes))
    })
}

fn naive(dirs: &[PathBuf], files: &[&str], seconds: u64) -> Result<(), String> {
    rounds(seconds, || {
        let (mut reads, mut bytes) = (0, 0);
        for dir in dirs {
            for file in files {
                if let Ok(text) = fs::read_to_string(dir.join(file)) {
                    (reads, bytes) = (reads + 1, bytes + black_box(text).len() as u64);
                }
            }
        }
        Ok((reads, bytes))
    })
}

#[cfg(test)]
mod tests {
    use super::{Grid, SECOND_NS};
    use std::time::Duration;

    #[test]
    fn rounds_begin_a_second_apart_however_long_one_takes() {
        const S: u64 = SECOND_NS;
        let mut grid = Grid::new(7 * S);
        assert_eq!(grid.wait(7 * S + 1), Duration::from_nanos(S - 1));
        // 0.3 s of work, then none
        assert_eq!(grid.wait(8 * S + 3 * S / 10), Duration::from_millis(700));
        assert_eq!((grid.wait(10 * S), grid.late), (Duration::ZERO, 0), "at its very instant");
        // the round of 10 took until 12.5: that of 11 at once, that of 12 as well, that of 13 in its time
        assert_eq!(grid.wait(12 * S + S / 2), Duration::ZERO);
        assert_eq!(grid.wait(12 * S + 6 * S / 10), Duration::ZERO);
        assert_eq!(grid.wait(12 * S + 7 * S / 10), Duration::from_millis(300));
        assert_eq!(grid.late, 2);
    }
}
