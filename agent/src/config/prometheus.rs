//! The table `[prometheus]`: which values of containers `/metrics` carries. Plain values; `viewer` checks the names.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prometheus {
    pub metrics: Vec<String>,
    pub max_containers: usize,
}

impl Default for Prometheus {
    fn default() -> Self {
        let core = [
            "cpu_stat_usage_usec",
            "cpu_stat_nr_periods",
            "cpu_stat_nr_throttled",
            "cpu_stat_throttled_usec",
            "cpu_pressure_some_total_usec",
            "memory_current",
            "memory_max",
            "memory_swap_current",
            "memory_stat_anon",
            "memory_stat_inactive_file",
            "memory_events_max",
            "memory_events_oom_kill",
            "memory_pressure_full_total_usec",
            "io_pressure_full_total_usec",
            "pids_current",
        ];
        Self { metrics: core.map(str::to_owned).to_vec(), max_containers: 500 }
    }
}
