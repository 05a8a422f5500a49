//! The range of each key. A value outside is refused, never bent.
//!
//! Pure; reads no file and no environment. Called by `config` once everything is laid together.

use super::{Config, ConfigError, Probes, Ship};

/// `origin` says where the value of a key came from.
pub fn check(config: &Config, origin: &dyn Fn(&str) -> String) -> Result<(), ConfigError> {
    let wrong = |key: &str, value, rule| {
        Err(ConfigError::Range { origin: origin(key), key: key.to_owned(), value, rule })
    };
    let range = |key: &str, value: u64, lo: u64, hi: u64, rule| {
        if (lo..=hi).contains(&value) { Ok(()) } else { wrong(key, value.to_string(), rule) }
    };
    for (key, path) in [("data_dir", &config.data_dir), ("cgroup_root", &config.cgroup_root)] {
        if path.as_os_str().is_empty() {
            return wrong(key, "\"\"".to_owned(), "name a folder, or leave the key out for its default");
        }
    }
    let s = &config.sampling;
    range("sampling.base_period_ms", s.base_period_ms, 100, 60_000, "100 to 60000")?;
    range(
        "sampling.slow_period_ms",
        s.slow_period_ms,
        s.base_period_ms,
        600_000,
        "sampling.base_period_ms to 600000",
    )?;
    range("sampling.max_cgroups", s.max_cgroups as u64, 1, 65_536, "1 to 65536")?;
    range("sampling.max_descriptors", s.max_descriptors as u64, 0, 1 << 20, "0 to 1048576")?;
    range("sampling.pss_budget_ms", s.pss_budget_ms, 0, 1000, "0 to 1000")?;
    range("lane.period_ms", config.lane.period_ms.or(20), 10, 1000, "10 to 1000, or \"auto\"")?;
    let budget = config.lane.cpu_budget_percent;
    if !(0.01..=100.0).contains(&budget) {
        return wrong("lane.cpu_budget_percent", budget.to_string(), "0.01 to 100");
    }
    range("lane.history_s", config.lane.history_s, 1, 600, "1 to 600")?;
    range("lane.memory_bytes", config.lane.memory_bytes, 1 << 16, 1 << 34, "65536 to 17179869184")?;
    for (kind, t) in config.trigger.all() {
        let key = |name: &str| format!("trigger.{}.{name}", kind.as_str());
        range(&key("burst_period_ms"), t.burst_period_ms, 10, 1000, "10 to 1000")?;
        range(&key("burst_length_s"), t.burst_length_s, 1, 600, "1 to 600")?;
        range(&key("cool_down_s"), t.cool_down_s, 0, 3600, "0 to 3600")?;
        range(&key("history_s"), t.history_s, 0, 600, "0 to 600")?;
    }
    range("budget.rows_per_second", config.budget.rows_per_second, 20, 100_000, "20 to 100000")?;
    let cpu = config.budget.cpu_percent;
    if !(0.1..=100.0).contains(&cpu) {
        return wrong("budget.cpu_percent", cpu.to_string(), "0.1 to 100");
    }
    range("budget.max_bursts", config.budget.max_bursts as u64, 1, 1024, "1 to 1024")?;
    range("rotation.every_s", config.rotation.every_s, 1, 3600, "1 to 3600")?;
    range("compaction.after_s", config.compaction.after_s, 0, 86_400, "0 to 86400")?;
    let r = &config.retention;
    range("retention.max_age_h", r.max_age_h, 1, 87_600, "1 to 87600")?;
    range(
        "retention.incident_max_age_h",
        r.incident_max_age_h,
        r.max_age_h,
        87_600,
        "retention.max_age_h to 87600",
    )?;
    range("retention.max_bytes", r.max_bytes, 1 << 20, u64::MAX, "at least 1048576")?;
    range("retention.reserve_bytes", r.reserve_bytes, 0, 1 << 30, "0 to 1073741824")?;
    let s = &config.ship;
    if s.is_on() && !Ship::SCHEMES.iter().any(|scheme| s.url.starts_with(scheme)) {
        let rule = "s3://, gs:// or az://bucket/prefix, file:///folder, or empty";
        return wrong("ship.url", format!("{:?}", s.url), rule);
    }
    if !Ship::WHAT.contains(&s.what.as_str()) {
        return wrong("ship.what", format!("{:?}", s.what), "\"all\" or \"incidents\"");
    }
    if !Ship::SSE.contains(&s.sse.as_str()) {
        return wrong("ship.sse", format!("{:?}", s.sse), "\"AES256\", \"aws:kms\" or empty");
    }
    range("ship.max_backlog_bytes", s.max_backlog_bytes, 0, 1 << 40, "0 to 1099511627776")?;
    range("ship.timeout_s", s.timeout_s, 1, 3600, "1 to 3600")?;
    range("ship.retry_max_s", s.retry_max_s, 1, 86_400, "1 to 86400")?;
    range("export.max_rows", config.export.max_rows, 1, u64::MAX, "at least 1")?;
    range("export.max_containers", config.export.max_containers as u64, 1, u64::MAX, "at least 1")?;
    range("prometheus.max_containers", config.prometheus.max_containers as u64, 1, 100_000, "1 to 100000")?;
    let ring = u64::from(config.probes.ring_bytes);
    range("probes.ring_bytes", ring, 4096, 1 << 28, "4096 to 268435456")?;
    if let Some(name) = config.probes.without.iter().find(|n| !Probes::MECHANISMS.contains(&n.as_str())) {
        return wrong("probes.without", format!("[{name:?}]"), "names of tp_btf, raw_tp, tracepoint, fentry");
    }
    if !config.probes.ring_bytes.is_power_of_two() {
        let rule = "a power of two (the kernel refuses any other size)";
        return wrong("probes.ring_bytes", ring.to_string(), rule);
    }
    Ok(())
}
