//! What the loop does where no probe tells: cgroups found by inotify, kills by the growth of memory.events.
//!
//! A kill is noticed by inotify within some 10 ms, or by the base rows (`poll`), and is then an event and an incident like
//! one that a probe told of, but without victim, trigger and exact time. Where a probe tells of kills the counters only
//! check it: growth of which it told nothing is counted as lost. Nothing here waits.

use super::state::State;
use crate::catalogue::{self, ColumnIndex};
use crate::clock;
use crate::discovery::{Kills, News, Tree};
use crate::event::{KernelEvent, Kind, What};
use crate::names::{CgroupId, Severity, Table};
use crate::notify::{Notice, Notify, Wants};
use crate::probes::{Hook, Ladder};
use crate::story::Evidence;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
/// Notices are read at most this often: a cgroup at its limit changes its memory.events without pause, and so do all
/// above it.
const GAP: u64 = 10 * MS;
/// Cgroups that get their watches in one turn.
const NEWS_A_TURN: usize = 128;
/// A kill of which no probe told is looked for anew this long after its counter grew, the ring having been drained.
const SETTLE: u64 = 2 * SECOND;
/// A walk for a kill that may have been in a cgroup not known yet; not more often than this.
const RESCAN_GAP: u64 = SECOND / 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    /// Nobody looks.
    #[default]
    Off,
    /// The counters are how kills are found.
    Count,
    /// A probe tells of kills; the counters check it.
    Check,
}

/// Growth of a counter that no probe has explained yet.
struct Suspect {
    id: CgroupId,
    count: u64,
    since_ns: u64,
    due_ns: u64,
}

#[derive(Default)]
pub(super) struct Notices {
    mode: Mode,
    finds_cgroups: bool,
    notify: Option<Notify>,
    /// Why inotify cannot be had.
    reason: Option<String>,
    next_ns: u64,
    column: Option<ColumnIndex>,
    counted: u64,
    last_kill_ns: u64,
    /// When a probe last told of a kill in a cgroup.
    probed: HashMap<CgroupId, u64>,
    /// `oom_kill` of memory.events in the last base row.
    sums: HashMap<CgroupId, u64>,
    suspects: Vec<Suspect>,
    missed: u64,
}

impl Notices {
    /// Takes over what the probes of this ladder do not tell.
    pub fn start(ladder: &Ladder, tree: &mut Tree) -> Self {
        let told = |hook: &str| ladder.hooks.iter().any(|h| h.hook == hook && h.mechanism.is_some());
        let wants = Wants { directories: !told("cgroup_mkdir"), events: !told("mark_victim") };
        let mode = if wants.events { Mode::Count } else { Mode::Check };
        let column = catalogue::column("memory_events_oom_kill");
        let mut this = Self { mode, column, finds_cgroups: wants.directories, ..Self::default() };
        if wants.events {
            tree.keep_sums();
        }
        if wants.events || wants.directories {
            match Notify::start(wants) {
                Ok(notify) => {
                    this.notify = Some(notify);
                    tree.keep_news();
                }
                Err(reason) => this.reason = Some(reason),
            }
        }
        this
    }

    /// Its lines in the ladder.
    pub fn rungs(&self) -> Vec<Hook> {
        let by = |other| Some(if self.notify.is_some() { "inotify" } else { other });
        let hook = |event, hook, mechanism, costs| Hook {
            event,
            hook,
            mechanism,
            error: self.reason.clone(),
            costs,
        };
        let mut rungs = Vec::new();
        if self.mode == Mode::Count {
            rungs.push(hook(
                "oom_kill",
                "memory.events",
                by("poll"),
                "kills are told by their cgroup, count and limit: no victim, no trigger, and an instant that is late by up to a base period",
            ));
        }
        if self.finds_cgroups {
            rungs.push(hook(
                "cgroup_start",
                "cgroup directories",
                by("scan"),
                "a container that lives shorter than a scan is missed; its kills are put down to the cgroup above it",
            ));
        }
        rungs
    }

    /// Whether inotify tells of all cgroups that come and go.
    pub fn finds_all_cgroups(&self) -> bool {
        self.finds_cgroups && self.notify.as_ref().is_some_and(|n| n.refused() == 0)
    }

    /// Readable when notices wait; none within the gap after the last ones.
    pub fn fd(&self, now: u64) -> Option<BorrowedFd<'_>> {
        self.notify.as_ref().filter(|_| now >= self.next_ns).map(Notify::fd)
    }

    /// A probe told of a kill.
    pub fn probed(&mut self, id: CgroupId, ktime_ns: u64) {
        if self.mode == Mode::Check {
            self.probed.insert(id, ktime_ns);
        }
    }

    pub fn forget(&mut self, id: CgroupId) {
        self.sums.remove(&id);
    }

    pub fn status(&self) -> Value {
        let by = |other| if self.notify.is_some() { "inotify" } else { other };
        let notify = self.notify.as_ref();
        let (held, may) = notify.map_or((0, 0), Notify::watches);
        json!({
            "kills_from": match self.mode {
                Mode::Count => by("poll"),
                Mode::Off | Mode::Check => "probes",
            },
            "cgroups_from": if self.finds_cgroups { by("scan") } else { "probes" },
            "reason": self.reason,
            "watches": {"held": held, "limit": may},
            "unwatched_cgroups": notify.map_or(0, Notify::refused),
            "shortage": notify.and_then(Notify::shortage),
            "overflows": notify.map_or(0, |n| n.overflows),
            "kills_counted": self.counted,
            "kills_missed_by_probes": self.missed,
        })
    }
}

impl State {
    pub(super) fn set_notices(&mut self, notices: Notices) {
        self.notices = notices;
    }

    /// Reads what inotify has to tell, and acts on it.
    pub fn heed(&mut self, now: u64) {
        if self.notices.notify.is_none() || now < self.notices.next_ns {
            return;
        }
        self.notices.next_ns = now + GAP;
        self.heed_now(now);
    }

    fn heed_now(&mut self, now: u64) {
        self.keep_watch(now);
        let Some(notify) = &mut self.notices.notify else { return };
        let (mut changed, mut removed) = (BTreeSet::new(), Vec::new());
        for notice in notify.read() {
            match notice {
                Notice::Made { parent, name } => self.directory_made(parent, &name, now),
                Notice::Removed { parent, name } => removed.push((parent, name)),
                Notice::Events(id) => {
                    changed.insert(id);
                }
                Notice::Overflow => {
                    self.rescan_wanted = true;
                    changed.extend(self.tree.children(self.tree.root()).map(|n| n.meta.id));
                }
            }
        }
        self.keep_watch(now);
        // the deepest first: what is told there need not be looked for from above
        let depth = |id: &CgroupId| std::cmp::Reverse(self.tree.lineage(*id).count());
        let mut changed: Vec<_> = changed.into_iter().collect();
        changed.sort_by_cached_key(depth);
        for id in changed {
            self.count_kills(id, "inotify", now);
        }
        for (parent, name) in removed {
            self.directory_removed(parent, &name, now);
        }
    }

    /// Gives new cgroups their watches, and takes them from those that have gone.
    fn keep_watch(&mut self, now: u64) {
        for news in self.tree.take_news(NEWS_A_TURN) {
            let Some(notify) = &mut self.notices.notify else { return };
            match news {
                News::Went(id) => notify.forget(id),
                News::Came(id) => {
                    let Some(node) = self.tree.get(id) else { continue };
                    let path = self.tree.path(&node.meta);
                    notify.watch(id, &path);
                    if notify.wants().directories {
                        self.look_below(id, &path, now);
                    }
                }
            }
        }
    }

    /// What was made in a directory before it was watched. kernfs counts directories in the links.
    fn look_below(&mut self, id: CgroupId, path: &Path, now: u64) {
        if fs::metadata(path).is_ok_and(|m| m.nlink() == 2) {
            return;
        }
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir())
                && self.tree.get(CgroupId(entry.ino())).is_none()
                && let Some(name) = entry.file_name().to_str()
            {
                self.directory_made(id, name, now);
            }
        }
    }

    fn directory_made(&mut self, parent: CgroupId, name: &str, now: u64) {
        let Some(node) = self.tree.get(parent) else { return };
        let Ok(made) = fs::metadata(self.tree.path(&node.meta).join(name)) else { return };
        let cgroup_id = CgroupId(made.ino());
        // told by its parent's watch and found by a look below it: once is enough
        if !self.inits.is_born_here(cgroup_id) {
            let what = What::CgroupStart { cgroup_id, parent_id: Some(parent), path: name.to_owned() };
            self.react(KernelEvent { ktime_ns: now, source: "inotify", what });
        }
    }

    fn directory_removed(&mut self, parent: CgroupId, name: &str, now: u64) {
        let named = |path: &str| path.rsplit('/').next() == Some(name);
        let gone: Vec<_> =
            self.tree.children(parent).filter(|n| named(&n.meta.path)).map(|n| n.meta.clone()).collect();
        for meta in gone {
            // one made anew under the name is not the one that has gone
            if fs::metadata(self.tree.path(&meta)).is_ok_and(|m| m.ino() == meta.id.0) {
                continue;
            }
            let what =
                What::CgroupEnd { cgroup_id: meta.id, parent_id: Some(parent), path: meta.path.clone() };
            self.react(KernelEvent { ktime_ns: now, source: "inotify", what });
        }
    }

    /// After a base row: kills that nobody told of. `ktime_ns` is the row's.
    pub(super) fn check_kills(&mut self, id: CgroupId, ktime_ns: u64) {
        let sum = self.notices.column.and_then(|c| self.pending.samples.last(c));
        let (Some(sum), false) = (sum, self.notices.mode == Mode::Off) else { return };
        if self.notices.mode == Mode::Count {
            if let (Some(notify), Some(node)) = (&mut self.notices.notify, self.tree.get(id)) {
                // the memory controller may have come after the directory
                notify.watch(id, &self.tree.path(&node.meta));
            }
            if self.tree.untold(id, sum) > 0 {
                self.heed_now(ktime_ns);
                self.count_kills(id, "poll", ktime_ns);
            }
            return;
        }
        let before = self.notices.sums.insert(id, sum);
        if before.is_some_and(|before| sum > before) {
            let count = self.tree.kills_here(id);
            let since_ns = ktime_ns.saturating_sub(self.config.sampling.base_period_ms * MS + SETTLE);
            if count > 0 {
                self.notices.suspects.push(Suspect { id, count, since_ns, due_ns: ktime_ns + SETTLE });
            }
        }
    }

    /// Where not all is watched, the sums above what is followed are looked at: they alone remember what has gone.
    pub(super) fn check_sums(&mut self, now: u64) {
        if self.notices.mode != Mode::Count || self.notices.notify.as_ref().is_some_and(|n| n.refused() == 0)
        {
            return;
        }
        if let Some(notify) = &mut self.notices.notify {
            for id in notify.lacking() {
                if let Some(node) = self.tree.get(id) {
                    notify.watch(id, &self.tree.path(&node.meta));
                }
            }
        }
        let above: Vec<_> = self.tree.children(self.tree.root()).map(|n| n.meta.id).collect();
        for id in above {
            self.count_kills(id, "poll", now);
        }
    }

    /// Growth that no probe has explained by now is lost events.
    pub fn settle_kills(&mut self, now: u64) {
        let notices = &mut self.notices;
        let (due, rest) = std::mem::take(&mut notices.suspects).into_iter().partition(|s| s.due_ns <= now);
        notices.suspects = rest;
        let missed: Vec<Suspect> = due;
        for suspect in missed {
            if notices.probed.get(&suspect.id).is_none_or(|at| *at < suspect.since_ns) {
                notices.missed += suspect.count;
                self.ledger.lost(Table::Events, "missed", suspect.count);
            }
        }
        let keep = self.config.sampling.base_period_ms * MS + 5 * SETTLE;
        notices.probed.retain(|_, at| now < *at + keep);
    }

    fn count_kills(&mut self, id: CgroupId, source: &'static str, now: u64) {
        let sure = self.has_events || self.notices.finds_all_cgroups();
        if !sure && now >= self.last_rescan + RESCAN_GAP && self.tree.has_grown(id) {
            self.rescan(now);
        }
        for kills in self.tree.kills(id) {
            self.kills_counted(&kills, source);
        }
    }

    fn kills_counted(&mut self, kills: &Kills, source: &'static str) {
        let id = kills.meta.id;
        // an incident is named by its instant: two found at once have two
        let now = clock::ktime_ns().max(self.notices.last_kill_ns + 1);
        self.notices.last_kill_ns = now;
        self.notices.counted += kills.count;
        let Some(owner) = self.tree.owner(id).map(|n| n.meta.clone()) else {
            self.outside += 1;
            return;
        };
        let limit = self.limit_by_files(id);
        let limit_id = limit.as_ref().and_then(|l| l.cgroup_id).map(CgroupId);
        let detail = json!({
            "kills": kills.count, "in_a_cgroup_that_has_gone": kills.of_gone,
            "victim": null, "trigger": null, "limit": limit,
        });
        let mut event = self.event(Kind::OomKill, Severity::Critical, now, source, detail);
        event.cgroup_id = Some(id);
        let limit_change = limit.as_ref().and_then(|l| self.limit_fell(l, None, now));
        let evidence =
            Evidence { limit, limit_change, ..self.evidence_before(&owner, Kind::OomKill, now, Some(id)) };
        let started = self.start_burst(&owner, Kind::OomKill, limit_id, now);
        let incident = self.story.kills_counted(&owner, &event, kills.count, &evidence, started.first_row_ns);
        self.event_table(owner.id);
        self.revise(incident);
        self.record(event, Some(owner));
    }
}
