//! How long nobody recorded before this run: from the last base sample in the store to the first new one.
//!
//! Within one boot only: over a boot the monotonic clock begins anew and no container lives on. What was due meanwhile is
//! told by the cgroups that were followed at the end; what began and ended in between nobody knows.

use crate::names::{Cause, Table};
use crate::query::{self, Filter};
use crate::segment;
use crate::store::View;
use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    pub last_ktime_ns: u64,
    /// Cgroups with a base sample in the last period.
    pub cgroups: u64,
}

/// Rows looked at: a last second of far more cgroups than a node has.
const MAX_ROWS: u64 = 1_000_000;

/// What the store knows of the end of the run before; `None` when there was none in this boot, or it cannot be read.
pub fn before(view: &View, boot_id: &str, period_ms: u64) -> Option<Outage> {
    let boot = segment::boot_of(boot_id);
    let closed = view.segments.iter().filter(|s| s.table == Table::Samples && s.name.boot == boot);
    let left = view.journaled.iter().filter(|l| l.table == Table::Samples && l.boot == boot);
    let last_us = closed.map(|s| s.to_us).chain(left.map(|l| segment::time_range(&l.batch).1)).max()?;
    let period_us = i64::try_from(period_ms).ok()?.checked_mul(1000)?;
    // its own place in the period for each cgroup, and a moment for a late one
    let filter = Filter { boot: Some(boot), ..Filter::range(last_us - period_us * 3 / 2, last_us) };
    let columns = ["cgroup_id", "ktime_ns", "cause"];
    let rows = query::rows(view, Table::Samples, &filter, Some(&columns), MAX_ROWS);
    let (batches, _) =
        rows.inspect_err(|error| tracing::warn!(%error, "the end of the last run cannot be read")).ok()?;
    let (mut last_ktime_ns, mut cgroups) = (0, BTreeSet::new());
    for batch in &batches {
        for row in 0..batch.num_rows() {
            let ktime = query::int(batch, "ktime_ns", row).and_then(|k| u64::try_from(k).ok());
            last_ktime_ns = last_ktime_ns.max(ktime.unwrap_or(0));
            if query::text(batch, "cause", row) == Some(Cause::Base.as_str()) {
                cgroups.extend(query::int(batch, "cgroup_id", row));
            }
        }
    }
    Some(Outage { last_ktime_ns, cgroups: cgroups.len() as u64 })
}
