//! What `cargo xtask bench sampler` holds the recorder against: readers of the same files that do nothing else, and the
//! process of a container that does nothing. Must never have a line of the recorder's code in it, parse or keep what it reads.
//!
//! ```text
//! reader floor DIR SECONDS FILE…   once a second `pread` of FILE… below each directory in DIR, from descriptors that stay open
//! reader naive DIR SECONDS FILE…   the same by opening, reading into a String and closing
//! reader sit CGROUP                joins CGROUP and sleeps until it is killed
//! reader beat CGROUP               joins CGROUP and computes a little, ten times a second
//! ```
//! A reader says when all is open and its first second is over. Its last line is a JSON object: reads, bytes, and allocations, counted by its own allocator after the first second.
//! Exit codes: 0 done, 1 the system refused something, 2 wrong arguments.
#![expect(unsafe_code, reason = "an allocator that counts is one by an unsafe trait")]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
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

/// Calls a round once a second, and says at the end what all but the first did.
fn rounds(seconds: u64, mut round: impl FnMut() -> Result<(u64, u64), String>) -> Result<(), String> {
    let (mut reads, mut bytes) = (0, 0);
    let mut before = 0;
    for n in 0..=seconds {
        let (r, b) = round()?;
        if n == 0 {
            println!("{{\"is_open\":true}}");
            before = ALLOCATIONS.load(Relaxed);
        } else {
            (reads, bytes) = (reads + r, bytes + b);
        }
        thread::sleep(Duration::from_secs(1));
    }
    let allocations = ALLOCATIONS.load(Relaxed) - before;
    println!("{{\"rounds\":{seconds},\"reads\":{reads},\"bytes\":{bytes},\"allocations\":{allocations}}}");
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
