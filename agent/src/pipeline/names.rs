//! What Kubernetes tells, on its way into the table `containers`; and how much of what is recorded nobody has named.

use super::state::{HOUR, SECOND, State};
use crate::cgroup::Meta;
use crate::names::{Scope, Table};
use crate::pods::Pods;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;

/// Revisions that become rows in one turn of the loop.
const NAMES_A_TURN: usize = 1000;
/// How often cgroups without names are counted: each is looked for in a table.
const COUNT_EVERY: u64 = 10 * SECOND;

/// A rotation waits so long for the name of a container, counted from its first row: the kubelet tells an id seconds after that, on a
/// busy node tens of them, and closed files stay as they are.
pub(super) const NAMES_WITHIN: u64 = 30 * SECOND;
/// Cgroups that are remembered as young. In a storm of new ones no rotation waits for the oldest of them.
const MOST_YOUNG: usize = 512;

/// Cgroups of pods that were seen a moment ago, the oldest first; also those that have gone since, whose rows are still to be closed.
#[derive(Default)]
pub(super) struct Young(VecDeque<(u64, Arc<Meta>)>);

impl Young {
    pub fn saw(&mut self, meta: &Arc<Meta>, now: u64) {
        if meta.identity.pod_uid.is_none() {
            return;
        }
        if self.0.len() == MOST_YOUNG {
            self.0.pop_front();
        }
        self.0.push_back((now, meta.clone()));
    }

    /// Whether Kubernetes is about to tell who one of them is. Of a pod's sandbox it never does, which is the first container in a pod
    /// that has just begun.
    pub fn wait_for_names(&mut self, pods: &Pods, now: u64) -> bool {
        while self.0.front().is_some_and(|(seen, _)| seen + NAMES_WITHIN <= now) {
            self.0.pop_front();
        }
        let is_unnamed =
            |meta: &Meta| meta.identity.container_id.is_some() && !pods.has_named(&meta.identity);
        let mut young = self.0.iter().map(|(_, meta)| meta).enumerate();
        young.any(|(place, meta)| is_unnamed(meta) && !self.is_sandbox(place, pods))
    }

    /// It is known once a container beside it has a name.
    fn is_sandbox(&self, place: usize, pods: &Pods) -> bool {
        let uid = &self.0[place].1.identity.pod_uid;
        let mut own = self.0.iter().enumerate().filter(|(_, (_, meta))| meta.identity.pod_uid == *uid);
        let begins = own.next().is_some_and(|(_, (_, meta))| meta.identity.scope == Scope::Pod);
        begins
            && own.next().is_some_and(|(first, _)| first == place)
            && own.any(|(_, (_, meta))| pods.has_named(&meta.identity))
    }
}

/// Cgroups without names, and when that was counted.
#[derive(Clone, Copy, Default)]
pub(super) struct Unnamed {
    cgroups: usize,
    again_ns: u64,
}

impl State {
    /// Where names of pods come from, and what becomes rows of the table `containers`.
    pub fn set_pods(&mut self, pods: Pods) {
        pods.keep_news();
        self.pods = Some(pods.clone());
        self.story.set_pods(pods);
    }

    /// What Kubernetes has told; each hour all of it, so that no row that names a container is much older than the rows that it names.
    pub(super) fn note_names(&mut self, now: u64) {
        let Some(pods) = &self.pods else { return };
        if self.next.names <= now {
            pods.tell_all();
            self.next.names = now + HOUR;
        }
        let (news, lost) = pods.take_news(NAMES_A_TURN);
        self.ledger.lost(Table::Containers, "too_many", lost);
        self.ledger.written(Table::Containers, news.len() as u64);
        let stamp = self.stamp(now);
        self.pending.containers.extend(news.into_iter().map(|revision| (stamp, revision)));
    }

    /// Cgroups and incidents of pods of which nothing is known, as `/api/status` has them: one that came and went while the API server was away
    /// never has a name.
    pub(super) fn unnamed(&mut self, now: u64) -> Value {
        if self.unnamed.again_ns <= now {
            let nobody = Pods::default();
            let pods = self.pods.as_ref().unwrap_or(&nobody);
            let cgroups = pods.count_unnamed(self.targets.values().map(|t| &t.meta.identity));
            self.unnamed = Unnamed { cgroups, again_ns: now + COUNT_EVERY };
        }
        let (incidents, given_up) = self.story.unnamed();
        json!({"cgroups": self.unnamed.cgroups, "incidents": incidents, "incidents_given_up": given_up})
    }
}
