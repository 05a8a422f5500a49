//! What the reading of each file costs on this machine, over the cgroups that are there. `fgm doctor --cost` asks.
//!
//! Each file is opened once and read by `pread`, as the agent does with what it reads often; the first read is not counted,
//! since it makes what the later ones find.

use crate::catalogue::{FILES, Tier};
use crate::clock;
use serde::Serialize;
use std::fs::File;
use std::path::PathBuf;

/// Reads of one file of one cgroup.
const READS: usize = 5;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    pub file: &'static str,
    pub tier: &'static str,
    /// Cgroups that have it, of those looked at.
    pub cgroups: usize,
    /// Half of the reads took no longer.
    pub p50_us: f64,
    /// Of a sweep over all files of all these cgroups.
    pub share_percent: f64,
}

/// The cost of each file of the catalogue, in its order; those that no cgroup has have no cost.
#[expect(clippy::cast_precision_loss, reason = "microseconds, shown with one decimal")]
pub fn costs(cgroups: &[PathBuf]) -> Vec<Cost> {
    let mut buffer = vec![0u8; super::BUFFER];
    let mut measured = Vec::new();
    for file in FILES {
        let mut times = Vec::new();
        let mut having = 0;
        for fd in cgroups.iter().filter_map(|dir| File::open(dir.join(file.name)).ok()) {
            let mut read = || {
                let before = clock::ktime_ns();
                rustix::io::pread(&fd, &mut buffer[..], 0).ok().map(|_| clock::ktime_ns() - before)
            };
            if read().is_none() {
                continue;
            }
            having += 1;
            times.extend((0..READS).filter_map(|_| read()));
        }
        times.sort_unstable();
        let p50_ns = times.get(times.len() / 2).copied().unwrap_or(0);
        measured.push((file, having, p50_ns));
    }
    let sweep: f64 = measured.iter().map(|(_, having, ns)| *having as f64 * *ns as f64).sum();
    let cost = |(file, cgroups, ns): (&crate::catalogue::File, usize, u64)| Cost {
        file: file.name,
        tier: match file.tier {
            Tier::Lane => "lane",
            Tier::Hot => "hot",
            Tier::Slow => "slow",
        },
        cgroups,
        p50_us: (ns as f64 / 100.0).round() / 10.0,
        share_percent: if sweep > 0.0 {
            (cgroups as f64 * ns as f64 / sweep * 1000.0).round() / 10.0
        } else {
            0.0
        },
    };
    measured.into_iter().map(cost).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_has_its_share_and_what_is_not_there_has_none() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["memory.current", "cpu.stat"] {
            std::fs::write(dir.path().join(name), "1\n").expect("write");
        }
        let all = costs(&[dir.path().to_owned(), dir.path().join("gone")]);
        assert_eq!(all.len(), FILES.len());
        let having: Vec<_> = all.iter().filter(|c| c.cgroups > 0).map(|c| (c.file, c.cgroups)).collect();
        assert_eq!(having, [("memory.current", 1), ("cpu.stat", 1)]);
        let sum: f64 = all.iter().map(|c| c.share_percent).sum();
        assert!((99.0..101.0).contains(&sum), "{all:?}");
    }
}
