//! What Kubernetes tells, on its way into the table `containers`; and how much of what is recorded nobody has named.

use super::state::{HOUR, SECOND, State};
use crate::names::Table;
use crate::pods::Pods;
use serde_json::{Value, json};

/// Revisions that become rows in one turn of the loop.
const NAMES_A_TURN: usize = 1000;
/// How often cgroups without names are counted: each is looked for in a table.
const COUNT_EVERY: u64 = 10 * SECOND;

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
