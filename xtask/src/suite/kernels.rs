//! The agent's kernel tests (`agent/tests/kernel*.rs`) in the test VM: one boot for each file, two side by side.
//! Must never call a kernel passed of which a file did not run. Called by `suite`.
//!
//! A test waits as much as it computes, so that two guests on two cores end a third earlier than one after the other; those whose tests look at
//! instants run by themselves. A file that fails is run once more when nothing else runs: an emulated CPU on a busy machine may be seconds
//! late. What a test says of the product fails twice.

use crate::clock::ktime_ns;
use crate::progress::say;
use crate::tally::{self, Names, Tally};
use crate::vm::Guest;
use crate::{child, ebpf, paths};
use anyhow::Result;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// What an ordinary run plays on the second kernel, since it depends on the kernel most; `--long` plays everything on each.
const ELSEWHERE: &[&str] = &["kernel", "kernel_agent", "kernel_events", "kernel_lane", "kernel_nested"];
/// What looks at how soon something was, and so must not share the machine with another guest.
const ALONE: &[&str] = &["kernel_agent", "kernel_lane"];
/// For one file.
const LONGEST: Duration = Duration::from_mins(10);
const SIDE_BY_SIDE: usize = 2;

struct Job {
    series: String,
    binary: PathBuf,
    /// As in `agent/tests`, without the hash that cargo puts behind it.
    file: String,
}

/// What came of one boot.
struct Outcome {
    tally: Tally,
    text: String,
    seconds: u64,
}

/// A row of the summary for each kernel: its name, its count, and the seconds of its boots.
pub fn run(kernels: &[String], long: bool, names: &mut Names) -> Result<Vec<(String, Tally, u64)>> {
    let jobs = jobs(kernels, long)?;
    let done = Mutex::new(Vec::new());
    let (alone, together): (Vec<_>, Vec<_>) =
        jobs.iter().enumerate().partition(|(_, job)| ALONE.contains(&job.file.as_str()));
    run_all(&together, SIDE_BY_SIDE, &done);
    run_all(&alone, 1, &done);
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_by_key(|(n, _)| *n);

    let mut rows: Vec<_> = kernels.iter().map(|k| (k.clone(), Tally::default(), 0)).collect();
    for (n, mut outcome) in done {
        let job = &jobs[n];
        names.add(&outcome.text);
        let mut seconds = outcome.seconds;
        if outcome.tally.failed > 0 {
            say(&format!("kernel {}: {} failed (above); once more, by itself", job.series, job.file));
            outcome = boot(job);
            show(job, &outcome);
            seconds += outcome.seconds;
            names.add(&outcome.text);
            names.twice(format!("{} on {}", job.file, job.series));
        }
        if let Some(row) = rows.iter_mut().find(|(series, ..)| *series == job.series) {
            row.1 += outcome.tally;
            row.2 += seconds;
        }
    }
    Ok(rows
        .into_iter()
        .map(|(series, tally, seconds)| (format!("kernel {series}"), tally, seconds))
        .collect())
}

fn run_all(jobs: &[(usize, &Job)], at_once: usize, done: &Mutex<Vec<(usize, Outcome)>>) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some((n, job)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = boot(job);
                    // held while it is printed, so that no other file's output comes between
                    let Ok(mut done) = done.lock() else { return };
                    show(job, &outcome);
                    done.push((*n, outcome));
                }
            });
        }
    });
}

fn jobs(kernels: &[String], long: bool) -> Result<Vec<Job>> {
    let mut c = child::cargo();
    c.args([
        "test",
        "-p",
        "fgm",
        "--test",
        "kernel*",
        "--no-run",
        "--message-format",
        "json-render-diagnostics",
    ]);
    let built = ebpf::executables(&mut c)?;
    let mut jobs = Vec::new();
    for (n, series) in kernels.iter().enumerate() {
        for binary in &built {
            let name = binary.file_name().unwrap_or_default().to_string_lossy();
            let file = name.rsplit_once('-').map_or(&*name, |(file, _)| file);
            if file.starts_with("kernel") && (long || n == 0 || ELSEWHERE.contains(&file)) {
                jobs.push(Job { series: series.clone(), binary: binary.clone(), file: file.to_owned() });
            }
        }
    }
    Ok(jobs)
}

fn boot(job: &Job) -> Outcome {
    let start = ktime_ns();
    let mut text = Vec::new();
    let code = guest(job).and_then(|guest| guest.run_with(&mut text, &mut std::io::stderr()));
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut tally = tally::libtest(&text);
    match code {
        Ok(code) if code != 0 && tally.failed == 0 => {
            say(&format!("kernel {}: {} ended with exit code {code}", job.series, job.file));
            tally += Tally::FAILED;
        }
        Ok(_) => {}
        Err(e) => {
            say(&format!("kernel {}: {}: {e:#}", job.series, job.file));
            tally += Tally::FAILED;
        }
    }
    Outcome { tally, text, seconds: (ktime_ns() - start) / 1_000_000_000 }
}

fn guest(job: &Job) -> Result<Guest> {
    let binary: &Path = &job.binary;
    let mut guest = Guest::new(vec![binary.into(), "--test-threads=1".into(), "--show-output".into()])?;
    job.series.clone_into(&mut guest.series);
    guest.timeout = LONGEST;
    guest.cwd = paths::root().join("agent");
    Ok(guest)
}

fn show(job: &Job, outcome: &Outcome) {
    say(&format!("\n── kernel {} · {} · {} s", job.series, job.file, outcome.seconds));
    let _ = std::io::stdout().write_all(outcome.text.as_bytes());
    let _ = std::io::stdout().flush();
}
