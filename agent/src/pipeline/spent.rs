//! What the loop's work cost in CPU, by kind, and how many samples that was, for `/api/status`. Counts only; decides nothing.

use crate::clock;
use serde_json::{Value, json};

/// Nanoseconds of the loop's own thread since the start.
#[derive(Clone, Copy, Default)]
pub(super) struct Spent {
    pub lane: u64,
    /// Samples of the hot files, taken into rows.
    pub hot: u64,
    /// Samples with the slow files and with what has no column; the hot files are read for them as well.
    pub slow: u64,
    /// Samples behind `hot` and behind `slow`: a hot one costs `hot / hot_samples`, and each of both kinds holds one.
    pub hot_samples: u64,
    pub slow_samples: u64,
    /// Process tables, and the network with them.
    pub processes: u64,
}

impl Spent {
    pub fn status(self, process_ns: u64, running_s: u64, followed: usize) -> Value {
        let cgroup_seconds = running_s.max(1) * followed.max(1) as u64;
        json!({
            "at_ns": clock::ktime_ns(),
            "cpu_ns": {
                "lane": self.lane,
                "hot": self.hot,
                "slow": self.slow,
                "processes": self.processes,
                "loop": clock::thread_cpu_ns(),
                "all": process_ns,
            },
            "samples": { "hot": self.hot_samples, "slow": self.slow_samples },
            // of the whole agent since its start
            "us_per_cgroup_second": process_ns / 1000 / cgroup_seconds,
        })
    }
}

/// The clock of a piece of work.
pub(super) struct Lap(u64);

impl Lap {
    pub fn begin() -> Self {
        Self(clock::thread_cpu_ns())
    }

    /// Work of another kind that was done meanwhile and has an account of its own.
    pub fn leave_out(&mut self, ns: u64) {
        self.0 += ns;
    }

    /// Since it was asked last.
    pub fn ns(&mut self) -> u64 {
        let now = clock::thread_cpu_ns();
        now.saturating_sub(std::mem::replace(&mut self.0, now))
    }
}
