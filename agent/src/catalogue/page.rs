//! docs/metrics.md, written from the catalogue, so that the page and what is sampled cannot differ. No I/O here.
//!
//! The test below holds the committed page against it; with `FGM_WRITE_DOCS=1` the test writes the page.

use super::loose::LEFT_OUT;
use super::{Column, FILES, lag, node};
use std::fmt::Write as _;

const HEAD: &str = "# Metrics

Generated from `agent/src/catalogue`; renew it with `FGM_WRITE_DOCS=1 cargo test -p fgm --lib catalogue::page`.

One column for each, a signed 64-bit integer. NULL means: not read in this row (the file's bit in `files_read` is clear), or
\"max\", no limit, or that this kernel lacks it (the bit is set). *Counter*: only grows while the cgroup lives. *Gauge*: goes
up and down. *Limit*: set by an administrator. Tiers: *lane* files are in the fast history too, *hot* ones in each base
sample (1 Hz) and each burst sample, *slow* ones every 10 s, at the start of a cgroup and at an event. *Since*: the kernel
that brought it; 5.14 stands for that one or any before, since fgm runs on nothing older. Some keys are there only in
kernels built with what they count (swap, zswap, NUMA balancing, huge pages, core scheduling, interrupt accounting).
";

const LOOSE: &str = "## Table `metrics`: what has no column

One row a value: `name`, `kind` (NULL where nothing tells it), `labels` (a map) and `value` (a 64-bit float; NULL = \"max\").
Read with the slow files; a value that did not change has a row at the start, with the base row after an event, and once a minute.

| file | names | labels |
|---|---|---|
| `memory.numa_stat` | `memory_numa_stat_KEY`, the keys of memory.stat | `node` |
| `hugetlb.SIZE.*` | `hugetlb_current`, `hugetlb_max`, `hugetlb_rsvd_current`, `hugetlb_rsvd_max`, `hugetlb_events_max`, `hugetlb_events_local_max`, `hugetlb_numa_stat`, `hugetlb_numa_stat_total` | `page_size`, `node` |
| `misc.*` | `misc_current`, `misc_max`, `misc_peak`, `misc_events`, `misc_events_local` | `resource` |
| `rdma.*` | `rdma_current_KEY`, `rdma_max_KEY`, … | `device` |
| `io.*` | `io_max_KEY`, `io_latency_KEY`, `io_weight`, and of io.stat what `io_devices` has no column for | `device` |
| any other file of numbers | `FILE_KEY` | |
| a key that a file above has and this page does not | `FILE_KEY` | |
| `/proc/meminfo`, `/proc/vmstat` | `meminfo_KEY`, `vmstat_KEY`: the keys without a column, `scope` = `node` | |
| `/proc/PID/smaps_rollup` | `process_pss_bytes`, at events, when `sampling.pss_budget_ms` allows | `pid`, `comm` |
| `/proc/PID/net/dev` | `net_rx_bytes`, `net_tx_bytes` and so on, once for each network namespace | `interface`, `netns` |
| fgm itself | what it emits through the `metrics` facade, `scope` = `node` | its own |

Not read:

| file | why |
|---|---|
";

fn table(out: &mut String, columns: &[Column]) {
    out.push_str("\n| column | key | kind | unit | since | meaning |\n|---|---|---|---|---|---|\n");
    for c in columns {
        let key = if c.key.is_empty() { String::new() } else { format!("`{}`", c.key) };
        let (kind, unit) = (c.kind.as_str(), c.unit.as_str());
        let _ = writeln!(out, "| `{}` | {key} | {kind} | {unit} | {} | {} |", c.name, c.since, c.about);
    }
}

/// The whole page.
pub fn page() -> String {
    let mut out = HEAD.to_owned();
    let count = FILES.iter().map(|f| f.columns.len()).sum::<usize>();
    let _ = write!(out, "\n## Table `samples`: {count} columns of {} files of a cgroup\n", FILES.len());
    for (bit, file) in FILES.iter().enumerate() {
        let _ = write!(out, "\n### `{}` ({}, bit {bit} of `files_read`)\n", file.name, file.tier.as_str());
        if let Some(lag) = lag(file.name) {
            let _ = write!(out, "\n*Lags*: {lag}.\n");
        }
        table(&mut out, file.columns);
    }
    out.push_str(
        "\n## Table `io_devices`\n\n`device` (major:minor), `device_name`, and the columns of io.stat for each device: in each base sample \
         in which one of them changed, and every 10 s.\n\n",
    );
    out.push_str(LOOSE);
    for (file, why) in LEFT_OUT {
        let _ = writeln!(out, "| `{file}` | {why} |");
    }
    out.push_str("\n## Table `node`: the node as a whole, once a second\n");
    for file in node::FILES {
        let _ = write!(out, "\n### `/proc/{}`\n", file.path);
        table(&mut out, file.columns);
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_page_is_the_catalogue() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        if std::env::var_os("FGM_WRITE_DOCS").is_some() {
            std::fs::write(&path, super::page()).expect("docs/metrics.md is written");
        }
        let is = std::fs::read_to_string(&path).unwrap_or_default();
        let is_new = is == super::page();
        assert!(
            is_new,
            "docs/metrics.md is stale; renew it with: FGM_WRITE_DOCS=1 cargo test -p fgm --lib catalogue::page"
        );
    }
}
