//! A witness of OOM kills that shares nothing with the recorder: the kernel's tracepoint by a private tracefs instance,
//! and /proc/vmstat, written down as JSON lines. The evidence benchmark compares the recorder with it.
//! Must never use BPF, cgroup files or a line of the recorder's code. Started by `cargo xtask bench`.
//!
//! ```text
//! truth TRACEFS FILE     until stdin ends; says `ready` on stdout once it listens
//! ```
//! Lines: `begin` and `end` with the kernel's count of OOM kills (`end` also with records that the trace buffer lost),
//! and between them a `mark_victim` for each task that the OOM killer marked: instant (`CLOCK_MONOTONIC`, to the
//! microsecond), the victim's thread id, and the process that ran, whose allocation it was (a trace names the thread; one that has gone
//! until it is looked for keeps its thread's id).
//! Exit codes: 0 done, 1 the system refused something, 2 wrong arguments.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, thread};

/// `O_NONBLOCK` of x86_64 and aarch64 alike: the trace is looked at, never waited for.
const NONBLOCK: i32 = 0o4000;
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Kilobytes of trace buffer for each CPU: a record of some 100 bytes, thousands of kills between two looks.
const BUFFER_KB: &str = "1024";

fn main() -> ExitCode {
    let words: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [tracefs, file] = words.as_slice() else {
        eprintln!("usage: truth TRACEFS FILE");
        return ExitCode::from(2);
    };
    match witness(tracefs, file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("truth: {message}");
            ExitCode::FAILURE
        }
    }
}

fn witness(tracefs: &Path, file: &Path) -> Result<(), String> {
    let named = |path: &Path| {
        let path = path.display().to_string();
        move |e: io::Error| format!("{path}: {e}")
    };
    let mut out = File::create(file).map_err(named(file))?;
    let instance = Instance::new(tracefs)?;
    let pipe = instance.dir.join("trace_pipe");
    let mut pipe_file =
        OpenOptions::new().read(true).custom_flags(NONBLOCK).open(&pipe).map_err(named(&pipe))?;
    let mut tell = |line: String| out.write_all(line.as_bytes()).map_err(named(file));
    tell(format!("{{\"truth\":\"begin\",\"vmstat_oom_kill\":{}}}\n", vmstat()?))?;

    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    thread::spawn(move || {
        // whatever comes, the end of it is what is waited for
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        ends.store(true, Ordering::Release);
    });
    println!("ready");
    let mut text = Vec::new();
    loop {
        // looked at before the trace, so that what was marked before the end is in
        let last = over.load(Ordering::Acquire);
        drain(&mut pipe_file, &mut text).map_err(named(&pipe))?;
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        for line in String::from_utf8_lossy(&text[..whole]).lines() {
            if let Some(mark) = Mark::parse(line) {
                tell(Mark { trigger_pid: process_of(mark.trigger_pid), ..mark }.json())?;
            } else if line.contains("mark_victim") {
                return Err(format!("not understood: {line}"));
            }
        }
        text.drain(..whole);
        if last {
            break;
        }
        thread::sleep(LOOK_EVERY);
    }
    let overrun = instance.overrun()?;
    tell(format!("{{\"truth\":\"end\",\"vmstat_oom_kill\":{},\"overrun\":{overrun}}}\n", vmstat()?))
}

fn drain(pipe: &mut File, text: &mut Vec<u8>) -> io::Result<()> {
    let mut part = [0; 1 << 13];
    loop {
        match pipe.read(&mut part) {
            Ok(0) => return Ok(()),
            Ok(n) => text.extend_from_slice(&part[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The process of a thread, as long as there is one.
fn process_of(thread: u32) -> u32 {
    let text = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let process = text.lines().find_map(|l| l.strip_prefix("Tgid:")?.trim().parse().ok());
    // 0 while it is being taken away
    process.filter(|p| *p != 0).unwrap_or(thread)
}

/// `oom_kill` of /proc/vmstat: kills since boot, in memory cgroups and of the node alike.
fn vmstat() -> Result<u64, String> {
    let text = fs::read_to_string("/proc/vmstat").map_err(|e| format!("/proc/vmstat: {e}"))?;
    let count = text.lines().find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse().ok());
    count.ok_or_else(|| "/proc/vmstat has no oom_kill".to_owned())
}

/// A trace buffer of our own, removed when it goes: nobody else's tracing is touched.
struct Instance {
    dir: PathBuf,
}

impl Instance {
    fn new(tracefs: &Path) -> Result<Self, String> {
        let dir = tracefs.join(format!("instances/fgm-truth-{}", std::process::id()));
        fs::create_dir(&dir).map_err(|e| format!("{}: {e} (is tracefs mounted there?)", dir.display()))?;
        let instance = Self { dir };
        for (file, text) in
            [("trace_clock", "mono"), ("buffer_size_kb", BUFFER_KB), ("events/oom/mark_victim/enable", "1")]
        {
            let path = instance.dir.join(file);
            fs::write(&path, text).map_err(|e| format!("cannot write {text} to {}: {e}", path.display()))?;
        }
        Ok(instance)
    }

    /// Records that found no room.
    fn overrun(&self) -> Result<u64, String> {
        let mut sum = 0;
        for cpu in fs::read_dir(self.dir.join("per_cpu")).map_err(|e| format!("per_cpu: {e}"))?.flatten() {
            let text = fs::read_to_string(cpu.path().join("stats")).map_err(|e| format!("stats: {e}"))?;
            let count = |name: &str| {
                text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap_or(0)
            };
            sum += count("overrun:") + count("dropped events:");
        }
        Ok(sum)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = fs::write(self.dir.join("events/oom/mark_victim/enable"), "0");
        if let Err(e) = fs::remove_dir(&self.dir) {
            eprintln!("truth: {} stays behind: {e}", self.dir.display());
        }
    }
}

/// One line of the trace: `hog-812   [001] d..1.  123.456789: mark_victim: pid=812 comm=hog total-vm=…`.
#[derive(Debug, PartialEq)]
struct Mark {
    ktime_ns: u64,
    pid: u32,
    trigger_pid: u32,
    trigger_comm: String,
}

impl Mark {
    fn parse(line: &str) -> Option<Self> {
        let (head, fields) = line.split_once(": mark_victim: ")?;
        let (task, rest) = head.split_once(" [")?;
        let (comm, pid) = task.trim().rsplit_once('-')?;
        let (seconds, micros) = rest.rsplit_once(' ')?.1.split_once('.')?;
        let micros: u64 = (micros.len() == 6).then(|| micros.parse().ok())??;
        let victim = fields.split(' ').find_map(|f| f.strip_prefix("pid="))?;
        Some(Self {
            ktime_ns: (seconds.parse::<u64>().ok()? * 1_000_000 + micros) * 1000,
            pid: victim.parse().ok()?,
            trigger_pid: pid.parse().ok()?,
            trigger_comm: comm.to_owned(),
        })
    }

    fn json(&self) -> String {
        let comm: String = self.trigger_comm.chars().filter(|c| !c.is_control()).collect();
        let comm = comm.replace('\\', "\\\\").replace('"', "\\\"");
        format!(
            "{{\"truth\":\"mark_victim\",\"ktime_ns\":{},\"pid\":{},\"trigger_pid\":{},\"trigger_comm\":\"{comm}\"}}\n",
            self.ktime_ns, self.pid, self.trigger_pid
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Mark;

    #[test]
    fn a_thread_is_told_as_its_process() {
        let thread = std::thread::spawn(|| {
            let link = std::fs::read_link("/proc/thread-self").expect("a thread");
            let id = link.file_name().and_then(|n| n.to_str()?.parse().ok()).expect("an id");
            (id, super::process_of(id))
        });
        let (thread, process) = thread.join().expect("a thread");
        assert_ne!(thread, process);
        assert_eq!(process, std::process::id());
    }

    #[test]
    fn a_mark_is_read_as_old_and_new_kernels_write_it() {
        for line in [
            "             hog-812     [001] d..1.   123.456789: mark_victim: pid=813",
            "  hog-812     [001] d..1.   123.456789: mark_victim: pid=813 comm=b total-vm=9kB anon-rss=7kB",
        ] {
            let mark = Mark::parse(line).expect(line);
            assert_eq!((mark.ktime_ns, mark.pid, mark.trigger_pid), (123_456_789_000, 813, 812));
            assert!(mark.json().contains("\"trigger_comm\":\"hog\""));
        }
    }

    #[test]
    fn names_with_dashes_and_quotes_are_kept() {
        let mark = Mark::parse(" a-b\"c-12 [000] d..1. 1.000002: mark_victim: pid=1").expect("a mark");
        assert_eq!(mark.trigger_comm, "a-b\"c");
        assert!(mark.json().contains("a-b\\\"c"));
        assert_eq!(Mark::parse("# tracer: nop"), None);
        assert_eq!(Mark::parse(" a-1 [000] d..1. 1.02: mark_victim: pid=1"), None);
    }
}
