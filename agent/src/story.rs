//! Events of one container merged into an incident, and the paragraph that tells it.
//!
//! Pure: evidence comes in as values, revisions go out. The summary says only what the evidence says; what was not seen
//! is called so. `pipeline` feeds it and has each revision written before it is announced.

mod counted;
mod summary;

use crate::accumulator::NodeNames;
use crate::cgroup::Meta;
use crate::event::{Event, Exit, Kill, OomKill};
use crate::incident::{ExitStatus, Incident, Killer, LimitHit, Lost, Trigger, Victim, Window};
use crate::lane::MemoryAt;
use crate::names::CgroupId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// An incident that goes on and on is closed after this many burst lengths; what follows is a new one.
const LONGEST: u64 = 6;
/// Victims named one by one in an incident. A group kill of more is counted.
const MAX_VICTIMS: usize = 64;
/// Events listed in an incident: every process that ends in the container is one, and each revision carries the list.
const MAX_EVENTS: usize = 256;

const SIGKILL: i32 = 9;

/// What is known around a kill besides the event itself.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    pub victim_path: Option<String>,
    pub trigger_path: Option<String>,
    pub limit: Option<LimitHit>,
    /// Readings of the container's memory before the kill: the oldest kept, the one nearest to 30 s before, the last.
    pub oldest: Option<MemoryAt>,
    pub earlier: Option<MemoryAt>,
    pub last: Option<MemoryAt>,
    /// Warnings of the container from the minutes before, oldest first: (event id, kind, instant).
    pub warnings: Vec<(String, &'static str, u64)>,
}

/// A signal to a container's init, as it was told.
#[derive(Clone, Debug)]
pub struct Blame {
    pub kill: Kill,
    pub event_id: String,
    pub ktime_ns: u64,
    pub sender_path: Option<String>,
}

#[derive(Clone, Debug)]
struct Open {
    incident: Incident,
    evidence: Evidence,
    deadline_ns: u64,
    /// The container's cgroup was removed at this instant.
    gone_ns: Option<u64>,
    /// When its init ended.
    init_ended_ns: Option<u64>,
    /// Whose signal ended it.
    blame: Option<Blame>,
    more_victims: u64,
    more_events: u64,
}

pub struct Story {
    names: NodeNames,
    window_ns: u64,
    open: BTreeMap<CgroupId, Open>,
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn ms(ns: u64) -> f64 {
    (ns as f64 / 1e3).round() / 1e3
}

impl Open {
    fn first_burst(&mut self, ktime_ns: u64) {
        let first = &mut self.incident.first_burst_after_ms;
        if first.is_none() && ktime_ns >= self.incident.ktime_ns {
            *first = Some(ms(ktime_ns - self.incident.ktime_ns));
        }
    }

    fn list(&mut self, event: &Event) {
        if self.incident.events.len() < MAX_EVENTS {
            self.incident.events.push(event.event_id.clone());
        } else {
            self.more_events += 1;
        }
    }

    fn revise(&mut self) {
        self.incident.revision += 1;
        self.incident.summary = summary::write(self);
    }
}

impl Story {
    /// `window_ns`: how long after its last event an incident stays open, the length of a burst.
    pub fn new(names: NodeNames, window_ns: u64) -> Self {
        Self { names, window_ns, open: BTreeMap::new() }
    }

    /// An OOM kill in a container (or pod, or whatever owns the victim): a new incident, or more of the open one.
    /// `first_burst` is the instant of the burst sample that this event caused, if it caused one. Returns the new revision.
    pub fn oom_kill(
        &mut self,
        owner: &Arc<Meta>,
        event: &Event,
        kill: &OomKill,
        evidence: Evidence,
        first_burst: Option<u64>,
    ) -> Incident {
        let open = self.begin(owner, event, event.kind.as_str(), &evidence);
        // whatever it was called before: now it is this
        event.kind.as_str().clone_into(&mut open.incident.kind);
        event.severity.as_str().clone_into(&mut open.incident.severity);
        open.incident.trigger.get_or_insert_with(|| Trigger {
            pid: kill.trigger.pid,
            comm: Some(kill.trigger.comm.clone()),
            cgroup_id: kill.trigger.cgroup_id.map(|c| c.0),
            cgroup_path: evidence.trigger_path.clone(),
        });
        if open.incident.limit.is_none() {
            open.incident.limit.clone_from(&evidence.limit);
        }
        // A group kill marks its first victim again, by another thread of it: one process, one victim.
        let known = |v: &Victim| {
            v.pid == kill.victim.pid
                && v.cgroup_id == kill.victim.cgroup_id.map(|c| c.0)
                && (v.pid.is_some() || v.ktime_ns == event.ktime_ns)
        };
        if open.incident.victims.iter().any(known) {
            // counted already
        } else if open.incident.victims.len() >= MAX_VICTIMS {
            open.more_victims += 1;
        } else {
            open.incident.victims.push(Victim {
                pid: kill.victim.pid,
                comm: Some(kill.victim.comm.clone()),
                uid: kill.uid,
                rss_bytes: kill.memory.rss_bytes(),
                anon_bytes: kill.memory.anon_bytes,
                cgroup_id: kill.victim.cgroup_id.map(|c| c.0),
                cgroup_path: evidence.victim_path,
                ktime_ns: event.ktime_ns,
            });
        }
        open.list(event);
        if let Some(at) = first_burst {
            open.first_burst(at);
        }
        open.revise();
        open.incident.clone()
    }

    /// The container's init ended in a way that asks for a reason, and no incident is open that gives one: a new incident.
    /// `blame` is the last signal to the init that may have done it.
    pub fn ended(
        &mut self,
        owner: &Arc<Meta>,
        event: &Event,
        exit: &Exit,
        blame: Option<&Blame>,
        evidence: &Evidence,
    ) -> Incident {
        let kind = if exit.signal == Some(SIGKILL) { "killed" } else { "crash" };
        let open = self.begin(owner, event, kind, evidence);
        open.incident.exit = Some(ExitStatus { code: exit.exit_code, signal: exit.signal });
        open.init_ended_ns = Some(event.ktime_ns);
        open.incident.victims.push(Victim {
            pid: exit.task.pid,
            comm: Some(exit.task.comm.clone()),
            cgroup_id: exit.task.cgroup_id.map(|c| c.0),
            cgroup_path: evidence.victim_path.clone(),
            ktime_ns: event.ktime_ns,
            ..Victim::default()
        });
        // a SIGTERM does not explain another end than its own
        let blame = blame.filter(|b| Some(b.kill.signal) == exit.signal);
        if let Some(blame) = blame {
            let sender = &blame.kill.sender;
            open.incident.killer = Some(Killer {
                pid: sender.pid,
                comm: Some(sender.comm.clone()),
                cgroup_path: blame.sender_path.clone(),
                signal: Some(blame.kill.signal),
            });
            open.incident.events.push(blame.event_id.clone());
            open.blame = Some(blame.clone());
        }
        open.list(event);
        open.revise();
        open.incident.clone()
    }

    /// The open incident of a container, or a new one of this kind that begins with this event.
    fn begin(&mut self, owner: &Arc<Meta>, event: &Event, kind: &str, evidence: &Evidence) -> &mut Open {
        let (names, window_ns) = (&self.names, self.window_ns);
        let before = |r: &MemoryAt| event.ktime_ns.saturating_sub(r.ktime_ns);
        let open = self.open.entry(owner.id).or_insert_with(|| {
            let id = &owner.identity;
            let history_us = evidence.oldest.map_or(0, |r| i64::try_from(before(&r) / 1000).unwrap_or(0));
            let incident = Incident {
                id: format!("{}-{}-{}", names.node, names.boot_id, event.ktime_ns),
                kind: kind.to_owned(),
                severity: event.severity.as_str().to_owned(),
                ts_us: event.ts_us,
                ktime_ns: event.ktime_ns,
                node: names.node.clone(),
                boot_id: names.boot_id.clone(),
                cluster: names.cluster.clone(),
                scope: id.scope.as_str().to_owned(),
                cgroup_id: Some(owner.id.0),
                cgroup_path: Some(owner.path.clone()),
                container_id: id.container_id.clone(),
                pod_uid: id.pod_uid.clone(),
                qos: id.qos.map(|q| q.as_str().to_owned()),
                events: evidence.warnings.iter().map(|(id, ..)| id.clone()).collect(),
                history_s: evidence.oldest.map(|r| ms(before(&r)) / 1e3),
                last_sample_before_ms: evidence.last.map(|r| ms(before(&r))),
                window: Window { from_us: event.ts_us - history_us, to_us: event.ts_us },
                ..Incident::default()
            };
            Open {
                incident,
                evidence: evidence.clone(),
                deadline_ns: 0,
                gone_ns: None,
                init_ended_ns: None,
                blame: None,
                more_victims: 0,
                more_events: 0,
            }
        });
        let first = open.incident.ktime_ns;
        // events of two CPUs may come a little out of order: the window never shrinks
        open.deadline_ns =
            (event.ktime_ns + window_ns).min(first + LONGEST * window_ns).max(open.deadline_ns).max(first);
        open.incident.window.to_us =
            open.incident.ts_us + i64::try_from((open.deadline_ns - first) / 1000).unwrap_or(0);
        open
    }

    /// A process of the container ended.
    pub fn exit(&mut self, owner: CgroupId, event: &Event, exit: &Exit, is_init: bool) {
        let Some(open) = self.open.get_mut(&owner) else { return };
        open.list(event);
        if is_init {
            open.incident.exit = Some(ExitStatus { code: exit.exit_code, signal: exit.signal });
            open.init_ended_ns = Some(event.ktime_ns);
        }
    }

    /// The container's cgroup was removed.
    pub fn gone(&mut self, owner: CgroupId, ktime_ns: u64) {
        if let Some(open) = self.open.get_mut(&owner) {
            open.gone_ns = Some(ktime_ns);
        }
    }

    /// A burst sample of the container was taken.
    pub fn burst_sample(&mut self, owner: CgroupId, ktime_ns: u64) {
        if let Some(open) = self.open.get_mut(&owner) {
            open.first_burst(ktime_ns);
        }
    }

    /// Rows of this container's evidence that will be missing.
    pub fn lost(&mut self, owner: CgroupId, table: &str, reason: &str, rows: u64) {
        let Some(open) = self.open.get_mut(&owner).filter(|_| rows > 0) else { return };
        let lost = &mut open.incident.lost;
        match lost.iter_mut().find(|l| l.table == table && l.reason == reason) {
            Some(l) => l.rows += rows,
            None => lost.push(Lost { table: table.to_owned(), reason: reason.to_owned(), rows }),
        }
    }

    pub fn is_open(&self, owner: CgroupId) -> bool {
        self.open.contains_key(&owner)
    }

    pub fn next_deadline(&self) -> Option<u64> {
        self.open.values().map(|o| o.deadline_ns).min()
    }

    /// Closes the incidents whose window is over and returns their last revision.
    pub fn close_due(&mut self, now_ns: u64) -> Vec<Incident> {
        let due: Vec<_> =
            self.open.iter().filter(|(_, o)| o.deadline_ns <= now_ns).map(|(id, _)| *id).collect();
        due.into_iter().filter_map(|id| self.open.remove(&id)).map(Self::close).collect()
    }

    /// Closes all, as at shutdown: their windows end here.
    pub fn close_all(&mut self, now_ns: u64) -> Vec<Incident> {
        let all = std::mem::take(&mut self.open).into_values();
        all.map(|mut open| {
            let i = &mut open.incident;
            let lived_us = now_ns.saturating_sub(i.ktime_ns) / 1000;
            i.window.to_us = i.window.to_us.min(i.ts_us + i64::try_from(lived_us).unwrap_or(0));
            Self::close(open)
        })
        .collect()
    }

    fn close(mut open: Open) -> Incident {
        open.incident.closed = true;
        open.revise();
        open.incident
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::identify;
    use crate::event::{Kind, OomLimit, Outcome, Sent, Task, VictimMemory};
    use crate::names::Severity;
    use serde_json::Value;

    const S: u64 = 1_000_000_000;
    const MIB: u64 = 1 << 20;
    const CID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn owner() -> Arc<Meta> {
        let path = format!("/docker/{CID}");
        Arc::new(Meta { id: CgroupId(7), parent_id: Some(CgroupId(1)), identity: identify(&path), path })
    }

    fn names() -> NodeNames {
        NodeNames { cluster: None, node: "n1".into(), boot_id: "b".into() }
    }

    fn event(ktime_ns: u64) -> Event {
        Event {
            event_id: format!("e{ktime_ns}"),
            kind: Kind::OomKill,
            severity: Severity::Critical,
            source: "tp_btf/mark_victim",
            ts_us: i64::try_from(ktime_ns / 1000).expect("small"),
            ktime_ns,
            cgroup_id: Some(CgroupId(7)),
            pid: Some(42),
            comm: Some("hog".into()),
            exit_code: None,
            signal: None,
            detail: Value::Null,
        }
    }

    fn task(pid: u32, comm: &str) -> Task {
        Task { pid: Some(pid), comm: comm.into(), cgroup_id: Some(CgroupId(7)) }
    }

    fn kill(victim: u32, trigger: u32) -> OomKill {
        OomKill {
            victim: task(victim, "hog"),
            uid: Some(0),
            oom_score_adj: Some(0),
            memory: VictimMemory {
                anon_bytes: Some(180 * MIB),
                file_bytes: Some(MIB),
                shmem_bytes: Some(0),
                pgtables_bytes: None,
            },
            trigger: task(trigger, "asker"),
            limit: OomLimit::Unknown,
            already_dying: None,
        }
    }

    fn evidence() -> Evidence {
        Evidence {
            limit: Some(LimitHit {
                cgroup_id: Some(7),
                cgroup_path: Some(owner().path.clone()),
                max_bytes: Some(200 * MIB),
                usage_bytes: Some(200 * MIB),
                source: "fentry".into(),
            }),
            oldest: Some(MemoryAt { ktime_ns: 40 * S, memory_current: 20 * MIB }),
            earlier: Some(MemoryAt { ktime_ns: 70 * S, memory_current: 21 * MIB }),
            last: Some(MemoryAt { ktime_ns: 100 * S - 12_000_000, memory_current: 199 * MIB }),
            victim_path: Some(owner().path.clone()),
            trigger_path: Some(owner().path.clone()),
            warnings: vec![("w1".into(), "forecast_oom", 93 * S)],
        }
    }

    #[test]
    fn a_kill_is_told_from_the_evidence() {
        let mut story = Story::new(names(), 10 * S);
        let i = story.oom_kill(&owner(), &event(100 * S), &kill(42, 43), evidence(), None);
        assert_eq!((i.revision, i.closed, i.id.as_str()), (1, false, "n1-b-100000000000"));
        assert_eq!((i.history_s, i.last_sample_before_ms), (Some(60.0), Some(12.0)));
        for part in [
            "\"hog\" (pid 42)",
            "0123456789ab",
            "180.0 MiB",
            "200.0 MiB",
            "\"asker\" (pid 43)",
            "21.0 MiB",
            "199.0 MiB",
            "forecast_oom 7.0 s before",
            "12 ms",
        ] {
            assert!(i.summary.contains(part), "{part:?} is not in: {}", i.summary);
        }
    }

    #[test]
    fn what_was_not_observed_is_called_so() {
        let mut story = Story::new(names(), 10 * S);
        let i = story.oom_kill(&owner(), &event(100 * S), &kill(42, 42), Evidence::default(), None);
        assert!(i.limit.is_none() && i.history_s.is_none());
        assert!(i.summary.contains("was not observed"), "{}", i.summary);
    }

    #[test]
    fn events_of_one_container_merge_and_the_window_closes_it() {
        let mut story = Story::new(names(), 10 * S);
        story.oom_kill(&owner(), &event(100 * S), &kill(42, 42), evidence(), None);
        story.burst_sample(CgroupId(7), 100 * S + 3_000_000);
        let again = story.oom_kill(&owner(), &event(105 * S), &kill(44, 44), evidence(), None);
        assert_eq!((again.revision, again.victims.len(), again.events.len()), (2, 2, 3));
        let exit =
            Exit { task: task(42, "hog"), ppid: None, inner_pid: Some(1), exit_code: None, signal: Some(9) };
        story.exit(CgroupId(7), &event(106 * S), &exit, true);
        assert_eq!(story.next_deadline(), Some(115 * S));
        assert!(story.close_due(114 * S).is_empty());
        let closed = story.close_due(115 * S);
        assert_eq!(closed.len(), 1);
        let c = &closed[0];
        assert!(c.closed && c.revision == 3 && c.first_burst_after_ms == Some(3.0));
        assert_eq!(c.exit, Some(ExitStatus { code: None, signal: Some(9) }));
        assert!(c.summary.contains("signal 9"), "{}", c.summary);
        assert!(!story.is_open(CgroupId(7)));
    }

    fn blame(sent: Sent) -> Blame {
        let kill = Kill {
            target: task(42, "app"),
            target_inner_pid: Some(1),
            sender: task(99, "kill"),
            sender_uid: Some(0),
            sender_parent: task(98, "bash"),
            signal: 9,
            sent,
            outcome: Outcome::Delivered,
        };
        Blame {
            kill,
            event_id: "k1".into(),
            ktime_ns: 100 * S - 2_000_000,
            sender_path: Some("/user.slice".into()),
        }
    }

    fn ended(signal: Option<i32>, code: Option<i32>, blame: Option<&Blame>) -> Incident {
        let exit = Exit { task: task(42, "app"), ppid: None, inner_pid: Some(1), exit_code: code, signal };
        let mut story = Story::new(names(), 10 * S);
        story.ended(&owner(), &event(100 * S), &exit, blame, &evidence())
    }

    #[test]
    fn a_kill_by_somebody_names_who() {
        let i = ended(Some(9), None, Some(&blame(Sent::ByTask)));
        assert_eq!((i.kind.as_str(), i.killer.as_ref().and_then(|k| k.pid)), ("killed", Some(99)));
        assert!(i.events.contains(&"k1".to_owned()));
        for part in ["\"kill\" (pid 99)", "uid 0", "/user.slice", "\"bash\" (pid 98)", "signal 9"] {
            assert!(i.summary.contains(part), "{part:?} is not in: {}", i.summary);
        }
        let i = ended(Some(9), None, Some(&blame(Sent::ByCgroupKill)));
        assert!(i.summary.contains("cgroup.kill"), "{}", i.summary);
    }

    #[test]
    fn a_kill_that_nobody_was_seen_to_send_is_called_so() {
        let i = ended(Some(9), None, None);
        assert!(i.killer.is_none() && i.summary.contains("cause not observed"), "{}", i.summary);
        // a SIGTERM before it is no explanation
        let mut term = blame(Sent::ByTask);
        term.kill.signal = 15;
        assert!(ended(Some(9), None, Some(&term)).killer.is_none());
    }

    #[test]
    fn a_crash_is_no_kill() {
        let i = ended(Some(11), None, None);
        assert_eq!(i.kind, "crash");
        assert!(i.summary.contains("crashed with signal 11") && i.limit.is_none(), "{}", i.summary);
        let i = ended(None, Some(3), None);
        assert!(i.summary.contains("exit code 3"), "{}", i.summary);
    }

    #[test]
    fn a_process_marked_twice_is_one_victim() {
        let mut story = Story::new(names(), 10 * S);
        story.oom_kill(&owner(), &event(100 * S), &kill(42, 42), evidence(), None);
        let again = story.oom_kill(&owner(), &event(100 * S + 5), &kill(42, 42), evidence(), None);
        assert_eq!((again.victims.len(), again.events.len()), (1, 3));
    }

    #[test]
    fn an_endless_series_of_kills_is_cut_into_incidents() {
        let mut story = Story::new(names(), 10 * S);
        for t in 0..100u64 {
            story.oom_kill(
                &owner(),
                &event((100 + t) * S),
                &kill(1000 + u32::try_from(t).expect("small"), 1),
                evidence(),
                None,
            );
            assert!(story.next_deadline().is_some_and(|d| d <= 160 * S));
        }
        let closed = story.close_due(160 * S);
        assert_eq!(closed[0].victims.len(), MAX_VICTIMS);
        assert!(closed[0].summary.contains("100 processes") && closed[0].summary.contains("95 more"));
        assert!(closed[0].summary.len() < 1500, "{}", closed[0].summary);
    }

    #[test]
    fn a_container_that_forks_without_end_does_not_swell_its_incident() {
        let mut story = Story::new(names(), 10 * S);
        story.oom_kill(&owner(), &event(100 * S), &kill(42, 42), evidence(), None);
        let exit =
            Exit { task: task(9, "sh"), ppid: None, inner_pid: None, exit_code: Some(0), signal: None };
        for n in 0..2 * MAX_EVENTS as u64 {
            story.exit(CgroupId(7), &event(101 * S + n), &exit, false);
        }
        let closed = &story.close_all(103 * S)[0];
        assert_eq!(closed.window.to_us - closed.ts_us, 3_000_000, "nothing is recorded after the end");
        assert_eq!(closed.events.len(), MAX_EVENTS);
        assert!(
            closed.summary.contains(" 258 more events of it are in the events table."),
            "{}",
            closed.summary
        );
    }

    #[test]
    fn a_limit_inside_the_container_is_not_called_its_ancestors() {
        let mut story = Story::new(names(), 10 * S);
        let path = format!("{}/container", owner().path);
        let hit = LimitHit { cgroup_id: Some(8), cgroup_path: Some(path.clone()), ..LimitHit::default() };
        let within = Evidence { limit: Some(hit.clone()), ..evidence() };
        let i = story.oom_kill(&owner(), &event(100 * S), &kill(42, 42), within, None);
        assert!(i.summary.contains(&format!("that of {path} inside it")), "{}", i.summary);
        let above =
            Evidence { limit: Some(LimitHit { cgroup_path: Some("/docker".into()), ..hit }), ..evidence() };
        let i = Story::new(names(), S).oom_kill(&owner(), &event(100 * S), &kill(42, 42), above, None);
        assert!(i.summary.contains("that of its ancestor /docker,"), "{}", i.summary);
    }

    #[test]
    fn only_a_container_has_an_init_and_memory_that_stays_stays_at_its_value() {
        let path = "/batch/job1".to_owned();
        let meta = Meta { id: CgroupId(7), parent_id: Some(CgroupId(1)), identity: identify(&path), path };
        let mut story = Story::new(names(), 10 * S);
        let e = evidence();
        let flat = Evidence { last: e.last.map(|r| MemoryAt { memory_current: 21 * MIB, ..r }), ..e };
        story.oom_kill(&Arc::new(meta), &event(100 * S), &kill(42, 42), flat, None);
        let summary = &story.close_due(110 * S)[0].summary;
        assert!(summary.contains("the cgroup's memory stayed at 21.0 MiB;"), "{summary}");
        assert!(!summary.contains("other's") && !summary.contains("init process"), "{summary}");
    }

    #[test]
    fn events_that_come_out_of_order_do_not_shorten_the_window() {
        let mut story = Story::new(names(), S);
        story.oom_kill(&owner(), &event(100 * S), &kill(42, 42), evidence(), None);
        story.oom_kill(&owner(), &event(90 * S), &kill(43, 42), evidence(), None);
        assert_eq!(story.next_deadline(), Some(101 * S));
    }
}
