//! Events of one container merged into an incident, and the paragraph that tells it.
//!
//! Pure: evidence comes in as values, revisions go out. The summary says only what the evidence says; what was not seen
//! is called so. `pipeline` feeds it and has each revision written before it is announced.

mod counted;
mod losses;
mod named;
mod restart;
mod summary;

use crate::accumulator::NodeNames;
use crate::cgroup::Meta;
use crate::event::{Event, Exit, Kill, OomKill};
use crate::incident::{ExitStatus, Incident, Killer, LimitChange, LimitHit, Lost, Trigger, Victim, Window};
use crate::lane::MemoryAt;
use crate::names::{CgroupId, Table};
use crate::pods::Pods;
use std::collections::{BTreeMap, VecDeque};
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
    pub limit_change: Option<LimitChange>,
    /// The cgroup that is killed as a whole, as its memory.oom.group asks.
    pub group_path: Option<String>,
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
    /// Where its names come from.
    pods: Pods,
}

pub struct Story {
    names: NodeNames,
    window_ns: u64,
    open: BTreeMap<CgroupId, Open>,
    /// Closed, and kept for a while: a container may take the place of theirs, and Kubernetes may tell more of them.
    waiting: VecDeque<Open>,
    places: restart::Places,
    pods: Pods,
    /// Somebody tells them: an incident may wait for its names.
    names_may_come: bool,
    /// How much of `pods` the incidents know.
    learnt: u64,
    losses: losses::Losses,
    /// Those of a pod that stopped waiting for their names, since too many waited.
    given_up: u64,
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

    fn close(&mut self) -> Incident {
        self.incident.closed = true;
        self.revise();
        self.incident.clone()
    }

    fn revise(&mut self) {
        self.incident.revision += 1;
        self.learn();
        self.incident.summary = summary::write(self);
    }
}

impl Story {
    /// `window_ns`: how long after its last event an incident stays open, the length of a burst.
    pub fn new(names: NodeNames, window_ns: u64) -> Self {
        Self {
            names,
            window_ns,
            open: BTreeMap::new(),
            waiting: VecDeque::new(),
            places: restart::Places::default(),
            pods: Pods::default(),
            names_may_come: false,
            learnt: 0,
            losses: losses::Losses::default(),
            given_up: 0,
        }
    }

    /// Where names of pods come from.
    pub fn set_pods(&mut self, pods: Pods) {
        self.pods = pods;
        self.names_may_come = true;
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
            open.incident.limit_change.clone_from(&evidence.limit_change);
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
        let (names, window_ns, pods, losses) = (&self.names, self.window_ns, &self.pods, &self.losses);
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
                lost: losses.before(owner.id, event.ktime_ns),
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
                pods: pods.clone(),
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
        let waiting = self.waiting.iter_mut().filter(|o| o.incident.cgroup_id == Some(owner.0));
        for open in waiting.chain(self.open.get_mut(&owner)) {
            open.gone_ns.get_or_insert(ktime_ns);
        }
    }

    /// A burst sample of the container was taken.
    pub fn burst_sample(&mut self, owner: CgroupId, ktime_ns: u64) {
        if let Some(open) = self.open.get_mut(&owner) {
            open.first_burst(ktime_ns);
        }
    }

    /// Rows of this container's evidence that are or will be missing: in its incident, if one is open or begins within a minute.
    pub fn lost(&mut self, owner: CgroupId, at_ns: u64, table: Table, reason: &'static str, rows: u64) {
        if rows == 0 {
            return;
        }
        let table = table.as_str();
        self.losses.note(owner, at_ns, table, reason, rows);
        let Some(open) = self.open.get_mut(&owner) else { return };
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
        // one whose container lives on may still see it end; it waits from its own last event on
        let names_may_come = self.names_may_come;
        self.waiting.retain(|o| {
            now_ns < o.deadline_ns.saturating_add(restart::WITHIN_NS) || (names_may_come && o.is_unnamed())
        });
        self.losses.forget_old(now_ns);
        let mut closed = Vec::new();
        for mut open in due.into_iter().filter_map(|id| self.open.remove(&id)) {
            closed.push(open.close());
            if open.incident.pod_uid.is_some() || open.incident.scope == "container" {
                while self.waiting.len() >= restart::MAX_WAITING {
                    let oldest = self.waiting.pop_back();
                    let is_unnamed = names_may_come && oldest.is_some_and(|o| o.is_unnamed());
                    self.given_up += u64::from(is_unnamed);
                }
                self.waiting.push_front(open);
            }
        }
        closed
    }

    /// Closes all, as at shutdown: their windows end here.
    pub fn close_all(&mut self, now_ns: u64) -> Vec<Incident> {
        let all = std::mem::take(&mut self.open).into_values();
        all.map(|mut open| {
            let i = &mut open.incident;
            let lived_us = now_ns.saturating_sub(i.ktime_ns) / 1000;
            i.window.to_us = i.window.to_us.min(i.ts_us + i64::try_from(lived_us).unwrap_or(0));
            open.close()
        })
        .collect()
    }
}

#[cfg(test)]
mod tests;
