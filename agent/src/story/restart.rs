//! Which container takes the place of one that ended: the only one that starts in its pod afterwards, or, where there is no
//! pod, the one that is made anew under the same path.
//!
//! Pure. Two places that are free in one pod at a time cannot be told apart: then nobody is linked. Must never guess.

use super::Story;
use crate::cgroup::Meta;
use crate::incident::{Incident, Restart};
use crate::names::{CgroupId, Scope};
use std::collections::VecDeque;

/// The kubelet's back-off grows to 300 s; half a minute for it to act.
pub(super) const WITHIN_NS: u64 = 330_000_000_000;
/// Places kept free at a time, on the whole node. The oldest give way.
const MAX_PLACES: usize = 512;
/// Closed incidents kept for the sake of a successor.
pub(super) const MAX_WAITING: usize = 256;

struct Place {
    key: String,
    id: CgroupId,
    ended_ns: u64,
}

#[derive(Default)]
pub(super) struct Places(VecDeque<Place>);

fn key(meta: &Meta) -> &str {
    meta.identity.pod_uid.as_deref().unwrap_or(&meta.path)
}

impl Places {
    /// A container ended: its init did, or its cgroup was removed, whichever is told first.
    fn ended(&mut self, meta: &Meta, ended_ns: u64) {
        if meta.identity.scope != Scope::Container || self.0.iter().any(|p| p.id == meta.id) {
            return;
        }
        if self.0.len() >= MAX_PLACES {
            self.0.pop_front();
        }
        self.0.push_back(Place { key: key(meta).to_owned(), id: meta.id, ended_ns });
    }

    /// A container started; the one whose place it takes.
    fn started(&mut self, meta: &Meta, started_ns: u64) -> Option<CgroupId> {
        if meta.identity.scope != Scope::Container {
            return None;
        }
        self.0.retain(|p| started_ns < p.ended_ns.saturating_add(WITHIN_NS));
        let is_free = |p: &Place| p.key == key(meta) && p.ended_ns <= started_ns && p.id != meta.id;
        let mut free = self.0.iter().filter(|p| is_free(p)).map(|p| p.id);
        let found = free.next().filter(|_| free.next().is_none());
        // one of several is taken: which of them is free from now on is not known either
        self.0.retain(|p| !is_free(p));
        found
    }
}

impl Story {
    /// A container ended, with an incident or without.
    pub fn container_ended(&mut self, meta: &Meta, ktime_ns: u64) {
        self.places.ended(meta, ktime_ns);
    }

    /// A container started. When it takes the place of one that has an incident: that incident's new revision.
    pub fn container_started(&mut self, meta: &Meta, ktime_ns: u64) -> Option<Incident> {
        let old = self.places.started(meta, ktime_ns)?;
        let mut waiting = self.waiting.iter_mut();
        let open = match self.open.get_mut(&old) {
            Some(open) => open,
            None => waiting.find(|o| o.incident.cgroup_id == Some(old.0))?,
        };
        let after_us = i64::try_from(ktime_ns.saturating_sub(open.incident.ktime_ns) / 1000).unwrap_or(0);
        open.incident.restart = Some(Restart {
            container_id: meta.identity.container_id.clone(),
            cgroup_id: meta.id.0,
            started_ktime_ns: ktime_ns,
            started_us: open.incident.ts_us + after_us,
        });
        open.revise();
        Some(open.incident.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::identify;

    const S: u64 = 1_000_000_000;

    fn meta(id: u64, path: &str) -> Meta {
        Meta { id: CgroupId(id), parent_id: None, path: path.to_owned(), identity: identify(path) }
    }

    fn in_pod(id: u64) -> Meta {
        meta(id, &format!("/kubepods/pod0f9c1c2e-1111-2222-3333-0123456789ab/{id:064x}"))
    }

    #[test]
    fn the_only_container_that_starts_in_the_pod_after_an_end_takes_its_place() {
        let mut places = Places::default();
        places.ended(&in_pod(1), 10 * S);
        places.ended(&in_pod(1), 11 * S);
        assert_eq!(places.started(&meta(2, &format!("/docker/{:064x}", 2)), 12 * S), None, "elsewhere");
        assert_eq!(places.started(&in_pod(3), 9 * S), None, "before the end");
        assert_eq!(places.started(&in_pod(4), 12 * S), Some(CgroupId(1)));
        assert_eq!(places.started(&in_pod(5), 13 * S), None, "the place is taken");
    }

    #[test]
    fn of_two_free_places_none_is_linked() {
        let mut places = Places::default();
        places.ended(&in_pod(1), 10 * S);
        places.ended(&in_pod(2), 11 * S);
        assert_eq!(places.started(&in_pod(3), 12 * S), None);
        assert_eq!(places.started(&in_pod(4), 13 * S), None, "nor the second one");
    }

    #[test]
    fn without_a_pod_the_same_path_is_the_same_place_and_a_place_is_not_kept_for_ever() {
        let mut places = Places::default();
        let path = format!("/docker/{:064x}", 7);
        places.ended(&meta(1, &path), 10 * S);
        assert_eq!(places.started(&meta(2, &path), 20 * S), Some(CgroupId(1)));
        places.ended(&meta(2, &path), 30 * S);
        assert_eq!(places.started(&meta(3, &path), 30 * S + WITHIN_NS), None);
        for id in 0..2 * MAX_PLACES as u64 {
            places.ended(&meta(id, &format!("/docker/{id:064x}")), 10 * S);
        }
        assert_eq!(places.0.len(), MAX_PLACES);
    }
}
