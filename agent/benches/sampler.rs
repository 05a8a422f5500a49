//! The hot tier and the lane without the rest of the agent: what `cargo xtask bench sampler` runs on the machine itself.
//!
//! ```text
//! sampler FILES LANE SECONDS    FILES/docker/<id> has each container's files, LANE/docker/<id> is its cgroup
//! ```
//! It does what the agent's loop does with them: a walk over LANE every 20 ms into rings, a hot sample of each container a
//! second into rows, which are given away every 0.6 s. The last line is a JSON object: samples, lane readings, values,
//! and what the allocator counted of the samples alone. What it takes of the machine is for others to measure.

use agent_ebpf::LaneDue;
use fgm::accumulator::Pending;
use fgm::cgroup::{Meta, identify};
use fgm::clock::{Offset, ktime_ns};
use fgm::lane::{Ring, capacity};
use fgm::names::{Cause, CgroupId};
use fgm::probes::Walk;
use fgm::recorder;
use fgm::sampler::{Plan, Sampler, Target};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const SECOND: u64 = 1_000_000_000;
const LANE_MS: u64 = 20;
const LANE: u64 = LANE_MS * 1_000_000;
const FLUSH: u64 = 600_000_000;
const LANE_BYTES: u64 = 16 << 20;
const HISTORY: u64 = 60 * SECOND;
const HOT: Plan<'_> =
    Plan { cause: Cause::Base, period_ms: 1000, burst: None, slow: false, loose: false, in_lane: false };

fn main() -> Result<(), String> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [files, lane, seconds] = &words[..] else {
        println!("usage: sampler FILES LANE SECONDS; `cargo xtask bench sampler` makes all of them");
        return Ok(());
    };
    let seconds: u64 = seconds.parse().map_err(|_| format!("SECONDS {seconds} is no number"))?;
    run(Path::new(files), Path::new(lane), seconds)
}

struct Followed {
    target: Target,
    next_ns: u64,
}

fn inode(path: &Path) -> Result<CgroupId, String> {
    fs::metadata(path).map(|m| CgroupId(m.ino())).map_err(|e| format!("{}: {e}", path.display()))
}

fn run(files: &Path, lane: &Path, seconds: u64) -> Result<(), String> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let all = rustix::process::Rlimit { current: limit, maximum: limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, all).map_err(|e| e.to_string())?;
    let series = recorder::install().map_err(|e| e.to_string())?;
    let mut sampler =
        Sampler::new(files, &series, usize::try_from(limit.unwrap_or(1 << 20)).unwrap_or(1 << 20));
    let mut names = Vec::new();
    for entry in fs::read_dir(files.join("docker")).map_err(|e| e.to_string())?.flatten() {
        if entry.path().is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let mut followed: BTreeMap<CgroupId, Followed> = BTreeMap::new();
    let start = ktime_ns();
    for name in &names {
        let path = format!("/docker/{name}");
        let id = inode(&files.join(&path[1..]))?;
        let meta = Arc::new(Meta { id, parent_id: None, identity: identify(&path), path });
        let ring = Ring::new(capacity(LANE_BYTES, names.len()), HISTORY);
        let mut target = sampler.open(&meta, ring, start).ok_or_else(|| format!("{name} has gone"))?;
        // as an old one: a young cgroup is looked at anew with each sample
        target.first_seen_ns = 0;
        let id = inode(&lane.join(&meta.path[1..]))?;
        let next_ns = start - start % SECOND + SECOND + agent_ebpf::phase(id.0, SECOND);
        followed.insert(id, Followed { target, next_ns });
    }
    let mut walk = Walk::start(lane)?;
    sampler.set_walks(true);
    let (mut pending, offset) = (Pending::default(), Offset::measure());
    let (mut samples, mut readings, mut values, mut allocations) = (0u64, 0u64, 0u64, 0);
    let (mut next_lane, mut last_base, mut next_flush) = (start, start, start + FLUSH);
    loop {
        let now = ktime_ns();
        if now >= start + seconds * SECOND {
            break;
        }
        if next_lane <= now {
            next_lane = (next_lane + LANE).max(now);
            let (after_ns, span_ns) = (last_base % SECOND, now - last_base);
            let due = LaneDue { period_ns: SECOND, after_ns, span_ns };
            let counts = walk.look(LANE_MS, due, |look| {
                let Some(Followed { target, .. }) = followed.get_mut(&look.id()) else { return };
                let repeats = look
                    .same_since_ns
                    .is_some_and(|since| target.ring.repeat(since, look.ktime_ns(), LANE_MS));
                if repeats {
                    target.still.look(false, look.mark());
                } else {
                    let reading = look.reading();
                    target.still.look(target.ring.is_news(&reading), look.mark());
                    target.ring.push(reading);
                }
            })?;
            readings += counts.readings;
            last_base = now;
            // the first round makes what is kept
            let is_warm = now > start + 2 * SECOND;
            let region = Region::new(ALLOCATOR);
            for f in followed.values_mut().filter(|f| f.next_ns <= now) {
                f.next_ns += SECOND;
                sampler.sample(&mut f.target, HOT, offset, &mut pending).map_err(|e| format!("{e:?}"))?;
                samples += u64::from(is_warm);
            }
            if is_warm {
                let change = region.change();
                allocations += change.allocations + change.reallocations;
            }
        }
        if next_flush <= now {
            next_flush = now + FLUSH;
            values += pending.samples.values() as u64;
            drop(std::mem::take(&mut pending));
        }
        let due = next_lane.min(next_flush);
        std::thread::sleep(Duration::from_nanos(due.saturating_sub(ktime_ns())));
    }
    let (kept, may, _) = sampler.descriptors();
    println!(
        "{{\"containers\":{},\"samples\":{samples},\"readings\":{readings},\"values\":{values},\"allocations\":{allocations},\"descriptors\":{kept},\"descriptors_may\":{may}}}",
        names.len()
    );
    Ok(())
}
