//! Sample rows of some containers, as `fgm export` gives them to a user. Called by the benchmarks' judges.

use crate::child::{output, tool};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::Path;

/// Containers of one export: its answer is bounded.
const PER_EXPORT: usize = 20;

pub struct Row<'a> {
    pub cgroup_id: u64,
    pub ktime_ns: u64,
    pub cause: &'a str,
    pub value: Option<u64>,
}

/// Each row of these containers in the data folder under `out`, with one column's value.
pub fn each(out: &Path, agent: &Path, ids: &[&str], metric: &str, mut f: impl FnMut(Row<'_>)) -> Result<()> {
    let file = out.join("rows.csv");
    for some in ids.chunks(PER_EXPORT) {
        let mut c = tool(agent);
        c.args(["export", "--range", "6h", "--metrics", metric, "--containers", &some.join(",")]);
        output(c.arg("--data").arg(out.join("data")).arg("-o").arg(&file))?;
        let text = fs::read_to_string(&file).with_context(|| format!("no {}", file.display()))?;
        let mut lines = text.lines();
        let head: Vec<&str> = lines.next().context("an export without a head")?.split(',').collect();
        let column = |name: &str| {
            head.iter().position(|h| *h == name).with_context(|| format!("an export without {name}"))
        };
        let [id, at, cause, value] = ["cgroup_id", "ktime_ns", "cause", metric].map(column);
        let (id, at, cause, value) = (id?, at?, cause?, value?);
        for line in lines {
            let cells: Vec<&str> = line.split(',').collect();
            let number = |n: usize| cells.get(n).and_then(|c| c.parse::<u64>().ok());
            let (Some(cgroup_id), Some(ktime_ns)) = (number(id), number(at)) else { continue };
            let cause = cells.get(cause).copied().unwrap_or_default();
            f(Row { cgroup_id, ktime_ns, cause, value: number(value) });
        }
    }
    // nothing depends on it any more
    let _ = fs::remove_file(&file);
    Ok(())
}
