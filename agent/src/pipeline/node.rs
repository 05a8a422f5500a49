//! What the loop takes of the node as a whole and of network namespaces, and the agent's own metrics.

use super::state::{MS, PROCESSES_EVERY, SECOND, State};
use crate::accumulator::Stamp;
use crate::cgroup::Meta;
use crate::clock;
use crate::names::Table;
use std::sync::Arc;

/// How often the node is read.
const NODE_EVERY: u64 = SECOND;

impl State {
    /// Takes the counters of a process's network namespace, for its pod where it has one.
    pub(super) fn take_network(&mut self, pid: u32, container: Option<&Arc<Meta>>, at: Stamp) {
        let owner = container.map(|c| self.tree.up_to_pod(c.id).pop().unwrap_or_else(|| c.clone()));
        let mut values = Vec::new();
        self.network.read(pid, owner.as_ref().map(|o| o.id), at.ktime_ns, PROCESSES_EVERY, &mut values);
        self.ledger.lost(Table::Metrics, "too_many", std::mem::take(&mut self.network.cut));
        let rows = self.pending.metrics.commit(at, owner.as_ref(), &mut values);
        self.ledger.written(Table::Metrics, rows);
    }

    /// A row of the node, and every ten seconds what it has no column for, its network and the agent's own metrics.
    pub(super) fn node_tick(&mut self, now: u64) {
        self.ledger.lost(Table::Node, "late", (now - self.next.node) / NODE_EVERY);
        self.next.node = now + NODE_EVERY - now % NODE_EVERY;
        let is_slow = self.next.node_slow <= now;
        let mut rest = Vec::new();
        let at = self.stamp(clock::ktime_ns());
        let row = self.node.read(is_slow.then_some(&mut rest));
        self.pending.node.push((at, row));
        self.ledger.written(Table::Node, 1);
        if !is_slow {
            return;
        }
        let slow_period = self.config.sampling.slow_period_ms * MS;
        // on the grid of the rows, so that a turn that came late moves none of those after it
        self.next.node_slow = now + slow_period - now % slow_period;
        let cut = self.node.take_cut() + self.series.own(&mut rest);
        self.ledger.lost(Table::Metrics, "too_many", cut);
        let rows = self.pending.metrics.commit(at, None, &mut rest);
        self.ledger.written(Table::Metrics, rows);
        self.take_network(1, None, at);
    }
}
