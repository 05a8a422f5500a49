//! OOM kills known by a counter alone: that there were so many in this cgroup, and not who.
//!
//! Part of `story`, for where no probe tells of kills. Victims are listed by their cgroup, one for each kill, with nothing
//! else in them; there is no trigger.

use super::{Evidence, MAX_VICTIMS, Story};
use crate::cgroup::Meta;
use crate::event::Event;
use crate::incident::{Incident, Victim};
use std::sync::Arc;

impl Story {
    /// So many kills in a container: a new incident, or more of the open one. Returns the new revision.
    pub fn kills_counted(
        &mut self,
        owner: &Arc<Meta>,
        event: &Event,
        count: u64,
        evidence: &Evidence,
        first_burst: Option<u64>,
    ) -> Incident {
        let open = self.begin(owner, event, event.kind.as_str(), evidence);
        event.kind.as_str().clone_into(&mut open.incident.kind);
        event.severity.as_str().clone_into(&mut open.incident.severity);
        if open.incident.limit.is_none() {
            open.incident.limit.clone_from(&evidence.limit);
            open.incident.limit_change.clone_from(&evidence.limit_change);
        }
        let room = MAX_VICTIMS.saturating_sub(open.incident.victims.len()) as u64;
        open.more_victims += count.saturating_sub(room);
        for _ in 0..count.min(room) {
            open.incident.victims.push(Victim {
                cgroup_id: event.cgroup_id.map(|c| c.0),
                cgroup_path: evidence.victim_path.clone(),
                ktime_ns: event.ktime_ns,
                ..Victim::default()
            });
        }
        open.list(event);
        if let Some(at) = first_burst {
            open.first_burst(at);
        }
        open.revise();
        open.incident.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accumulator::NodeNames;
    use crate::cgroup::identify;
    use crate::event::Kind;
    use crate::incident::LimitHit;
    use crate::names::{CgroupId, Severity};
    use serde_json::Value;

    #[test]
    fn what_a_counter_tells_is_told_and_nothing_else() {
        let path = "/docker/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef".to_owned();
        let owner =
            Arc::new(Meta { id: CgroupId(7), parent_id: Some(CgroupId(1)), identity: identify(&path), path });
        let mut story =
            Story::new(NodeNames { cluster: None, node: "n1".into(), boot_id: "b".into() }, 1_000_000_000);
        let event = Event {
            event_id: "e".into(),
            kind: Kind::OomKill,
            severity: Severity::Critical,
            source: "inotify",
            ts_us: 5,
            ktime_ns: 5000,
            cgroup_id: Some(CgroupId(7)),
            pid: None,
            comm: None,
            exit_code: None,
            signal: None,
            detail: Value::Null,
        };
        let hit = LimitHit {
            cgroup_id: Some(7),
            max_bytes: Some(64 << 20),
            source: "events_local".into(),
            ..LimitHit::default()
        };
        let evidence = Evidence { limit: Some(hit.clone()), ..Evidence::default() };
        let i = story.kills_counted(&owner, &event, 1, &evidence, None);
        assert!(i.summary.contains("killed a process that was not observed in container"), "{}", i.summary);
        assert!(i.summary.contains("the container's own memory.max of 64.0 MiB"), "{}", i.summary);
        assert_eq!((i.trigger, i.limit, i.victims[0].pid), (None, Some(hit), None));
        let i = story.kills_counted(&owner, &event, 70, &evidence, None);
        assert_eq!((i.victims.len(), i.revision), (MAX_VICTIMS, 2));
        assert!(i.summary.contains("killed 71 processes that were not observed in"), "{}", i.summary);
        assert!(!i.summary.contains("pid"), "{}", i.summary);
    }
}
