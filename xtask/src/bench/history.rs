//! How much history the exported rows show before a kill: from which instant on, and the longest time in it without a row.
//! Rows and instants only; must never look at what the recorder says of its own history. Pure but for the export.
//! Called by `judge`.

use super::rows;
use super::score::Truth;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

/// What is older is no history of this kill (`lane.history_s`).
const WINDOW_NS: u64 = 60_000_000_000;

/// Instants at which a container's memory is in the rows, whatever they were taken for, in order; by the cgroup's inode.
pub type Looks = BTreeMap<u64, Vec<u64>>;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shown {
    /// From the oldest row of the window to the kill.
    pub length: Duration,
    /// Between two rows that follow each other, or from the last one to the kill.
    pub gap: Duration,
    /// From the last row to the kill.
    pub last: Duration,
}

/// `None`: no row before the kill.
pub fn shown(looks: &[u64], kill_ns: u64) -> Option<Shown> {
    let before = &looks[..looks.partition_point(|at| *at < kill_ns)];
    let before = &before[before.partition_point(|at| *at < kill_ns.saturating_sub(WINDOW_NS))..];
    let (first, last) = (before.first()?, before.last()?);
    let between = before.windows(2).map(|two| two[1] - two[0]).max();
    let [length, gap, last] =
        [kill_ns - first, between.unwrap_or(0).max(kill_ns - last), kill_ns - last].map(Duration::from_nanos);
    Some(Shown { length, gap, last })
}

/// Of all containers in which something was killed.
pub fn looks(out: &Path, agent: &Path, truth: &Truth<'_>) -> Result<Looks> {
    let ids: BTreeSet<&str> = truth.kills.iter().map(|k| k.container.container_id.as_str()).collect();
    let ids: Vec<&str> = ids.into_iter().collect();
    let mut looks = Looks::new();
    rows::each(out, agent, &ids, "memory_current", |row| {
        if row.value.is_some() {
            looks.entry(row.cgroup_id).or_default().push(row.ktime_ns);
        }
    })?;
    for at in looks.values_mut() {
        at.sort_unstable();
    }
    Ok(looks)
}

#[cfg(test)]
mod tests {
    use super::{Shown, shown};
    use std::time::Duration;

    const S: u64 = 1_000_000_000;

    fn shows(length_s: u64, gap_s: u64, last_s: u64) -> Shown {
        let [length, gap, last] = [length_s, gap_s, last_s].map(Duration::from_secs);
        Shown { length, gap, last }
    }

    #[test]
    fn history_is_what_rows_before_the_kill_show() {
        let shown = |at: &[u64]| shown(at, 100 * S);
        assert_eq!(shown(&[]), None);
        assert_eq!(shown(&[100 * S, 101 * S]), None, "what comes with the kill or after it is no history");
        let one = shows(30, 30, 30);
        assert_eq!(shown(&[70 * S]), Some(one), "one row shows no course");
        let hole = shows(31, 20, 1);
        assert_eq!(shown(&[69 * S, 70 * S, 90 * S, 98 * S, 99 * S, 103 * S]), Some(hole));
        let end = shows(31, 29, 29);
        assert_eq!(shown(&[69 * S, 71 * S, 105 * S]), Some(end), "a hole over the kill ends with it");
        let window = shows(60, 59, 1);
        assert_eq!(shown(&[3 * S, 39 * S, 40 * S, 99 * S]), Some(window), "what is older is none");
    }
}
