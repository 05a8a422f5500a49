//! What the loop does when the kernel reports something: the event's row, the history and the burst, the incident.

use super::state::{RESCAN_WITHOUT, State};
use crate::cgroup::Meta;
use crate::clock;
use crate::event::{Event, Exit, KernelEvent, Kill, Kind, OomKill, OomLimit, Outcome, Sent, What};
use crate::incident::LimitHit;
use crate::lane::MemoryAt;
use crate::names::{CgroupId, Scope, Severity, Table};
use crate::processes;
use crate::story::{Blame, Evidence};
use agent_ebpf::PATH_LEN;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::Arc;

const SECOND: u64 = 1_000_000_000;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
/// The summary compares with the reading this long before a kill.
const LOOK_BACK: u64 = 30 * SECOND;

/// A kill in a cgroup whose birth was not told (a full ring) is worth a walk; kills outside the root not one each.
const RESCAN_FOR_A_KILL: u64 = SECOND / 10;

/// The kernel's own word about a cgroup that was found gone is looked for among so many.
const FOUND_GONE: usize = 256;

/// The last component of a path as the kernel has it.
fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// An end of a container that somebody will ask about: not a success, and not the stop that a SIGTERM asks for.
fn asks_for_a_reason(exit: &Exit) -> bool {
    match (exit.signal, exit.exit_code) {
        (Some(signal), _) => signal != SIGTERM,
        (None, Some(code)) => code != 0 && code != 128 + SIGTERM,
        (None, None) => false,
    }
}

impl State {
    pub fn react(&mut self, event: KernelEvent) {
        let KernelEvent { ktime_ns, source, what } = event;
        match what {
            What::CgroupStart { cgroup_id, parent_id, path } => match parent_id {
                Some(parent) => self.cgroup_start(ktime_ns, source, cgroup_id, parent, &path),
                None => self.rescan_wanted = true,
            },
            What::CgroupEnd { cgroup_id, parent_id, path } => {
                if !self.cgroup_end(ktime_ns, source, cgroup_id) {
                    self.strangers_end(ktime_ns, source, cgroup_id, parent_id, &path);
                }
            }
            What::Exit(exit) => self.exit(ktime_ns, source, &exit),
            What::OomKill(kill) => self.oom_kill(ktime_ns, source, &kill),
            other => self.told(ktime_ns, source, &other),
        }
    }

    /// What becomes a row and nothing more.
    fn told(&mut self, ktime_ns: u64, source: &'static str, what: &What) {
        let event = match what {
            What::Kill(kill) => self.kill(ktime_ns, source, kill),
            What::Exec(exec) => self.exec(ktime_ns, source, exec),
            What::Reclaim(reclaim) => self.reclaim(ktime_ns, source, reclaim),
            What::Populated { cgroup_id, populated } => {
                self.flag(Kind::Populated, ktime_ns, source, *cgroup_id, *populated)
            }
            What::Frozen { cgroup_id, frozen } => {
                self.flag(Kind::Frozen, ktime_ns, source, *cgroup_id, *frozen)
            }
            What::OomKill(_) | What::CgroupStart { .. } | What::CgroupEnd { .. } | What::Exit(_) => None,
        };
        let Some(mut event) = event else { return };
        let Some(owner) = event.cgroup_id.and_then(|id| self.owner(id, None)) else { return };
        match what {
            What::Kill(kill) => self.blame(&owner, &event, kill),
            What::Exec(exec) => self.learn_init(&owner, exec),
            What::Populated { cgroup_id, populated: true } => self.look_for_init(*cgroup_id),
            What::Reclaim(_)
                if self.targets.get_mut(&owner.id).is_some_and(|t| t.watch.reclaim(ktime_ns)) =>
            {
                let started = self.start_burst(&owner, Kind::MemoryReclaim, None, ktime_ns);
                self.table_with(owner.id, &started);
            }
            What::Frozen { .. } => self.event_table(owner.id),
            // it goes on: the row has the totals so far, and is no news
            What::Reclaim(_) => event.severity = Severity::Info,
            _ => {}
        }
        self.record(event, Some(owner));
    }

    /// Remembers who sent the last signal that may end a container's init; a SIGKILL starts its burst.
    fn blame(&mut self, owner: &Arc<Meta>, event: &Event, kill: &Kill) {
        if kill.outcome != Outcome::Delivered || kill.sent == Sent::ByOomKiller {
            return;
        }
        let blame = Blame {
            sender_path: self.path_of(kill.sender.cgroup_id),
            kill: kill.clone(),
            event_id: event.event_id.clone(),
            ktime_ns: event.ktime_ns,
        };
        self.blames.insert(owner.id, blame);
        if kill.signal == SIGKILL && !self.is_sandbox(owner, &kill.target.comm) {
            let started = self.start_burst(owner, Kind::Kill, None, event.ktime_ns);
            // a signal has not ended anybody yet, and whoever is not the init may live on
            self.table_with(owner.id, &started);
        }
    }

    pub(super) fn event(
        &mut self,
        kind: Kind,
        severity: Severity,
        ktime_ns: u64,
        source: &'static str,
        detail: Value,
    ) -> Event {
        self.event_number += 1;
        Event {
            event_id: format!("{}-{}-{ktime_ns}-{}", self.names.node, self.names.boot_id, self.event_number),
            kind,
            severity,
            source,
            ts_us: self.offset.wall_us(ktime_ns),
            ktime_ns,
            cgroup_id: None,
            pid: None,
            comm: None,
            exit_code: None,
            signal: None,
            detail,
        }
    }

    pub(super) fn record(&mut self, event: Event, meta: Option<Arc<Meta>>) {
        self.ledger.written(Table::Events, 1);
        self.pending.events.push((event, meta));
    }

    fn cgroup_start(
        &mut self,
        ktime_ns: u64,
        source: &'static str,
        id: CgroupId,
        parent: CgroupId,
        path: &str,
    ) {
        if path.len() >= PATH_LEN - 1 {
            // cut by the kernel side: the name at its end may not be the name
            self.rescan_wanted = true;
            return;
        }
        if let Some(meta) = self.tree.made(id, parent, last(path))
            && self.tree.get(id).is_some_and(|n| n.followed)
        {
            self.follow(&meta);
        }
        // a walk may have been faster than the event: born under our eyes all the same
        self.follow_now(id);
        // of what it did until it was followed, or until it had gone, there are no base rows, where that took long
        if let Some(target) = self.targets.get(&id) {
            let last_words = target.ring.newest().filter(|_| target.last_row_ns == 0);
            let until_ns = last_words.map_or(target.first_seen_ns, |r| r.ktime_ns);
            let unread_ns = until_ns.saturating_sub(ktime_ns);
            let missed = unread_ns / (self.config.sampling.base_period_ms * 1_000_000);
            self.lost_of(id, Table::Samples, "late", missed);
        }
        let Some(node) = self.tree.get(id) else {
            self.outside += 1;
            return;
        };
        if !node.followed {
            return;
        }
        let meta = node.meta.clone();
        self.inits.born(id);
        self.restarted(&meta, ktime_ns);
        let mut event = self.event(Kind::CgroupStart, Severity::Info, ktime_ns, source, json!({}));
        event.cgroup_id = Some(id);
        self.record(event, Some(meta));
    }

    /// False when the cgroup is not known.
    fn cgroup_end(&mut self, ktime_ns: u64, source: &'static str, id: CgroupId) -> bool {
        let Some(node) = self.tree.removed(id) else { return false };
        if node.followed {
            self.end_told(ktime_ns, source, &node.meta);
            self.unfollow(id, ktime_ns);
        }
        true
    }

    fn end_told(&mut self, ktime_ns: u64, source: &'static str, meta: &Arc<Meta>) {
        let mut event = self.event(Kind::CgroupEnd, Severity::Info, ktime_ns, source, json!({}));
        event.cgroup_id = Some(meta.id);
        self.record(event, Some(meta.clone()));
        self.story.container_ended(meta, ktime_ns);
    }

    /// The end of one whose birth was lost and that no walk has met: all that will ever be told of it.
    fn strangers_end(
        &mut self,
        ktime_ns: u64,
        source: &'static str,
        id: CgroupId,
        parent: Option<CgroupId>,
        path: &str,
    ) {
        if path.len() >= PATH_LEN - 1 || self.found_gone.contains(&id) {
            return;
        }
        match self.tree.stranger(id, parent, last(path)) {
            Some(meta) => self.end_told(ktime_ns, source, &meta),
            None => self.outside += 1,
        }
    }

    /// A container started: the place of another one, maybe.
    pub(super) fn restarted(&mut self, meta: &Meta, ktime_ns: u64) {
        if let Some(incident) = self.story.container_started(meta, ktime_ns) {
            self.revise(incident);
        }
    }

    /// Forgets a cgroup whose files say that it has gone and whose end no probe reported.
    pub(super) fn cgroup_gone(&mut self, id: CgroupId) {
        if self.cgroup_end(clock::ktime_ns(), "files", id) {
            if self.found_gone.len() == FOUND_GONE {
                self.found_gone.pop_front();
            }
            self.found_gone.push_back(id);
        }
    }

    /// The followed cgroup that a person would name for this one. One that is not known is looked for by a walk, unless
    /// the last walk was less than `gap` ago: an event from outside the root is never found.
    fn owner(&mut self, id: CgroupId, gap: Option<u64>) -> Option<Arc<Meta>> {
        let now = clock::ktime_ns();
        if self.tree.get(id).is_none() && gap.is_some_and(|gap| now >= self.last_rescan + gap) {
            self.rescan(now);
        }
        self.tree.owner(id).map(|n| n.meta.clone())
    }

    fn exit(&mut self, ktime_ns: u64, source: &'static str, exit: &Exit) {
        let Some(id) = exit.task.cgroup_id else { return };
        let gap = (!self.has_events).then_some(RESCAN_WITHOUT);
        let Some(owner) = self.owner(id, gap) else {
            self.outside += 1;
            return;
        };
        let ours = matches!(owner.identity.scope, Scope::Container | Scope::Pod | Scope::Other);
        if !ours && exit.signal.is_none() && !self.story.is_open(owner.id) {
            return;
        }
        let is_init = self.is_init(&owner, ktime_ns, exit);
        if is_init {
            self.story.container_ended(&owner, ktime_ns);
        }
        let detail = json!({"is_init": is_init, "ppid": exit.ppid, "inner_pid": exit.inner_pid});
        let severity = match (exit.signal, exit.exit_code) {
            (None, Some(0)) => Severity::Info,
            (None, _) if !is_init => Severity::Info,
            _ => Severity::Warning,
        };
        let mut event = self.event(Kind::Exit, severity, ktime_ns, source, detail);
        event.cgroup_id = Some(id);
        event.pid = exit.task.pid;
        event.comm = Some(exit.task.comm.clone());
        event.exit_code = exit.exit_code;
        event.signal = exit.signal;
        let is_ours = owner.identity.scope == Scope::Container && !self.is_sandbox(&owner, &exit.task.comm);
        let asks = is_init && is_ours && asks_for_a_reason(exit);
        if asks && !self.story.is_open(owner.id) {
            let evidence = self.evidence_before(&owner, Kind::Exit, ktime_ns, exit.task.cgroup_id);
            let started = self.start_burst(&owner, Kind::Exit, None, ktime_ns);
            let blame = self.blames.get(&owner.id);
            let incident = self.story.ended(&owner, &event, exit, blame, &evidence);
            self.table_with(owner.id, &started);
            self.revise(incident);
        } else {
            self.story.exit(owner.id, &event, exit, is_init);
        }
        self.record(event, Some(owner));
    }

    pub(super) fn path_of(&self, id: Option<CgroupId>) -> Option<String> {
        self.tree.get(id?).map(|n| n.meta.path.clone())
    }

    /// Whose limit it was: from the probe that saw it, else from the files.
    fn limit(&mut self, kill: &OomKill) -> Option<LimitHit> {
        match kill.limit {
            OomLimit::Memcg(snapshot) => Some(LimitHit {
                cgroup_id: Some(snapshot.cgroup_id.0),
                cgroup_path: self.path_of(Some(snapshot.cgroup_id)),
                max_bytes: snapshot.max_bytes,
                usage_bytes: snapshot.usage_bytes,
                swap_bytes: snapshot.swap_bytes,
                source: "fentry".to_owned(),
            }),
            OomLimit::Global(why) => {
                Some(LimitHit { source: why.as_str().to_owned(), ..LimitHit::default() })
            }
            OomLimit::Unknown => self.limit_by_files(kill.victim.cgroup_id?),
        }
    }

    /// The cgroup that goes with a victim in it: the outermost one with memory.oom.group, of those from the victim's own up to that whose limit it was.
    pub(super) fn oom_group(&self, victim: CgroupId, limit: &LimitHit) -> Option<String> {
        let is_set = |meta: &Meta| {
            let text = fs::read_to_string(self.tree.path(meta).join("memory.oom.group"));
            text.is_ok_and(|text| text.trim() == "1")
        };
        let mut outermost = None;
        for node in self.tree.lineage(victim) {
            if is_set(&node.meta) {
                outermost = Some(node.meta.path.clone());
            }
            if limit.cgroup_id == Some(node.meta.id.0) {
                break;
            }
        }
        outermost
    }

    /// Whose limit a kill in this cgroup hit, by the counters of those above it.
    pub(super) fn limit_by_files(&mut self, id: CgroupId) -> Option<LimitHit> {
        let meta = self.tree.limit_by_events_local(id)?;
        let max = fs::read_to_string(self.tree.path(&meta).join("memory.max")).ok();
        Some(LimitHit {
            cgroup_id: Some(meta.id.0),
            cgroup_path: Some(meta.path.clone()),
            max_bytes: max.and_then(|t| t.trim().parse().ok()),
            usage_bytes: None,
            swap_bytes: None,
            source: "events_local".to_owned(),
        })
    }

    fn evidence(&mut self, owner: &Meta, ktime_ns: u64, kill: &OomKill) -> Evidence {
        let limit = self.limit(kill);
        let trigger_path = self.path_of(kill.trigger.cgroup_id);
        let limit_change = limit.as_ref().and_then(|l| self.limit_fell(l, Some(&kill.trigger), ktime_ns));
        let whole = kill.victim.cgroup_id.zip(limit.as_ref());
        Evidence {
            group_path: whole.and_then(|(victim, limit)| self.oom_group(victim, limit)),
            trigger_path,
            limit,
            limit_change,
            ..self.evidence_before(owner, Kind::OomKill, ktime_ns, kill.victim.cgroup_id)
        }
    }

    /// What the lane and the warnings know from before an instant.
    pub(super) fn evidence_before(
        &self,
        owner: &Meta,
        kind: Kind,
        ktime_ns: u64,
        victim: Option<CgroupId>,
    ) -> Evidence {
        let victim_path = self.path_of(victim);
        let target = self.targets.get(&owner.id);
        let ring = target.map(|t| &t.ring);
        let before = |at: u64| ring.and_then(|r| r.last_before(at)?.memory_at());
        // what is older than the history is in the ring maybe, but not written for this event
        let settings = self.trigger.settings(kind);
        let history_ns = settings.history_ns.min(self.config.lane.history_s * SECOND);
        let from = ktime_ns.saturating_sub(history_ns);
        let written = ring.filter(|_| settings.enabled && history_ns > 0);
        let oldest =
            written.and_then(|r| r.oldest_since(from)?.memory_at()).filter(|r| r.ktime_ns < ktime_ns);
        let earlier: Option<MemoryAt> = before(ktime_ns.saturating_sub(LOOK_BACK) + 1).or(oldest);
        let warnings = self.warnings.of(owner.id);
        Evidence { victim_path, oldest, earlier, last: before(ktime_ns), warnings, ..Evidence::default() }
    }

    fn oom_kill(&mut self, ktime_ns: u64, source: &'static str, kill: &OomKill) {
        let of = |pid| processes::cgroup_of(Path::new("/proc"), pid, &self.config.cgroup_root);
        if kill.victim.cgroup_id.is_none()
            && let Some(id) = kill.victim.pid.and_then(|pid| of(pid).or_else(|| self.inits.of_pid(pid)))
        {
            // The plain tracepoint, the means of a kernel without BTF, names the victim by its pid alone: its cgroup is what /proc says, or,
            // when it has gone already, that whose init it was (its end is told after its kill).
            let mut kill = kill.clone();
            kill.victim.cgroup_id = Some(id);
            return self.oom_kill(ktime_ns, source, &kill);
        }
        let Some(victim_cgroup) = kill.victim.cgroup_id else {
            self.outside += 1;
            return;
        };
        let Some(owner) = self.owner(victim_cgroup, Some(RESCAN_FOR_A_KILL)) else {
            self.outside += 1;
            return;
        };
        self.notices.probed(victim_cgroup, ktime_ns);
        let evidence = self.evidence(&owner, ktime_ns, kill);
        let dying = kill.already_dying == Some(true);
        let limit = &evidence.limit;
        let detail = json!({
            "victim": {
                "uid": kill.uid, "oom_score_adj": kill.oom_score_adj,
                "anon_bytes": kill.memory.anon_bytes, "file_bytes": kill.memory.file_bytes,
                "shmem_bytes": kill.memory.shmem_bytes, "pgtables_bytes": kill.memory.pgtables_bytes,
                "already_dying": kill.already_dying,
            },
            "trigger": {
                "pid": kill.trigger.pid, "comm": kill.trigger.comm,
                "cgroup_id": kill.trigger.cgroup_id.map(|c| c.0), "cgroup_path": evidence.trigger_path,
            },
            "limit": limit, "oom_group": evidence.group_path,
        });
        let severity = if dying { Severity::Warning } else { Severity::Critical };
        let mut event = self.event(Kind::OomKill, severity, ktime_ns, source, detail);
        event.cgroup_id = Some(victim_cgroup);
        event.pid = kill.victim.pid;
        event.comm = Some(kill.victim.comm.clone());
        let limit_id = limit.as_ref().and_then(|l| l.cgroup_id).map(CgroupId);
        if dying {
            // marked, but not killed by this: an event, no incident
            self.record(event, Some(owner));
            return;
        }
        let started = self.start_burst(&owner, Kind::OomKill, limit_id, ktime_ns);
        let incident = self.story.oom_kill(&owner, &event, kill, evidence, started.first_row_ns);
        self.event_table(owner.id);
        self.revise(incident);
        self.record(event, Some(owner));
    }
}
