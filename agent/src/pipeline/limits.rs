//! Memory limits that change while their cgroup lives: an event each, and the last one remembered for the kill that may
//! follow.
//!
//! The walk of the lane reads memory.max at each tick, so a change is known between two ticks; without the walk between
//! two readings of the slow files. Who wrote it is not seen, but for the case in which the kernel kills on behalf of the
//! writer. Must never call the first setting of a young container's limit a change. `lane`, `state` and `react` call it.

use super::state::{State, YOUNG};
use crate::event::{Kind, Task};
use crate::incident::{LimitChange, LimitHit, Trigger};
use crate::names::CgroupId;
use serde_json::json;

/// A change this old is no part of a kill's story.
const REMEMBERED_NS: u64 = 600_000_000_000;

/// `memory_max_write` reclaims before it kills, 16 times at the most.
const ENFORCED_WITHIN_NS: u64 = 10_000_000_000;

/// `None` = "max".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub before: Option<u64>,
    pub after: Option<u64>,
    /// It was written after this instant, and not after the other.
    pub not_before_ns: u64,
    pub not_after_ns: u64,
}

impl Change {
    fn fell(&self) -> bool {
        self.after.is_some_and(|after| self.before.is_none_or(|before| after < before))
    }
}

impl State {
    /// Whether it is the limit that a runtime gives a container when it makes it.
    fn is_first_setting(&self, id: CgroupId, change: &Change) -> bool {
        let young = |seen: u64| change.not_after_ns < seen + YOUNG;
        change.before.is_none() && self.targets.get(&id).is_some_and(|t| young(t.first_seen_ns))
    }

    pub(super) fn limit_changed(&mut self, id: CgroupId, source: &'static str, change: Change) {
        if self.is_first_setting(id, &change) {
            return;
        }
        let Some(meta) = self.targets.get(&id).map(|t| t.meta.clone()) else { return };
        let detail = json!({
            "file": "memory.max", "before_bytes": change.before, "after_bytes": change.after,
            "not_before_ktime_ns": change.not_before_ns, "not_after_ktime_ns": change.not_after_ns,
        });
        let severity = Kind::LimitChange.severity();
        let mut event = self.event(Kind::LimitChange, severity, change.not_after_ns, source, detail);
        event.cgroup_id = Some(id);
        self.record(event, Some(meta));
        self.limit_changes.insert(id, change);
    }

    /// That the limit which was hit had fallen before the kill. `trigger`: the task that ran into it, where it is known.
    pub(super) fn limit_fell(
        &self,
        limit: &LimitHit,
        trigger: Option<&Task>,
        ktime_ns: u64,
    ) -> Option<LimitChange> {
        let id = CgroupId(limit.cgroup_id?);
        // the kernel's word about the kill has the new limit, which no reading has seen yet
        let unseen = self.targets.get(&id).map(|t| Change {
            before: t.memory_max,
            after: limit.max_bytes,
            not_before_ns: self.last_look_at_limit(id).min(ktime_ns),
            not_after_ns: ktime_ns,
        });
        let unseen = unseen.filter(|c| c.fell() && !self.is_first_setting(id, c));
        let seen = self.limit_changes.get(&id).copied().filter(|c| {
            c.fell() && c.not_before_ns < ktime_ns && ktime_ns < c.not_before_ns.saturating_add(REMEMBERED_NS)
        });
        let change = unseen.or(seen)?;
        // The kernel lets nobody charge beyond the limit. Usage beyond it means that the limit had just been written, and
        // `memory_max_write` kills in the name of who writes (mm/memcontrol.c), who then is not inside. Where usage was not
        // seen, a task from outside, which has nothing to charge there, just after the change is as telling.
        let recent = ktime_ns < change.not_after_ns.saturating_add(ENFORCED_WITHIN_NS);
        let over = limit.usage_bytes.zip(limit.max_bytes).map_or(recent, |(usage, max)| usage > max);
        let is_inside = |cgroup| self.tree.lineage(cgroup).any(|n| n.meta.id == id);
        let writer = trigger.filter(|t| over && t.cgroup_id.is_some_and(|cgroup| !is_inside(cgroup)));
        let by = writer.map(|task| Trigger {
            pid: task.pid,
            comm: Some(task.comm.clone()),
            cgroup_id: task.cgroup_id.map(|c| c.0),
            cgroup_path: self.path_of(task.cgroup_id),
        });
        Some(LimitChange {
            cgroup_id: Some(id.0),
            cgroup_path: limit.cgroup_path.clone(),
            before_bytes: change.before,
            after_bytes: change.after,
            not_before_us: self.offset.wall_us(change.not_before_ns),
            not_after_us: self.offset.wall_us(change.not_after_ns.min(ktime_ns)),
            by,
        })
    }

    /// When its memory.max was last read, at the latest possible.
    pub(super) fn last_look_at_limit(&self, id: CgroupId) -> u64 {
        let by_file = self.targets.get(&id).map_or(0, |t| t.limit_read_ns);
        self.lane.last_walk_ns().map_or(by_file, |walk| walk.max(by_file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_more_than_any() {
        let change = |before, after| Change { before, after, not_before_ns: 0, not_after_ns: 1 }.fell();
        assert!(change(None, Some(1)) && change(Some(2), Some(1)));
        assert!(!change(Some(1), None) && !change(Some(1), Some(2)) && !change(None, None));
    }
}
