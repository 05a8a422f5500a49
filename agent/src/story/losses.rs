//! What was lost of each cgroup in the last minute: an incident that begins now has it in its account, since that minute is the
//! evidence it is asked for. Part of `story`.

use crate::incident::Lost;
use crate::names::CgroupId;
use std::collections::BTreeMap;

/// The history that an incident has before its first event, at the defaults.
const KEPT_NS: u64 = 60_000_000_000;
/// Losses of one kind within this are one entry.
const STEP_NS: u64 = 1_000_000_000;
/// Entries in all, in 40 bytes each: a minute of losses each second of 64 bursts, twice. Of more the ledger tells alone.
const MAX_ENTRIES: usize = 8192;

struct Entry {
    at_ns: u64,
    table: &'static str,
    reason: &'static str,
    rows: u64,
}

#[derive(Default)]
pub(super) struct Losses {
    of: BTreeMap<CgroupId, Vec<Entry>>,
    entries: usize,
    pruned_ns: u64,
}

impl Losses {
    pub fn note(
        &mut self,
        owner: CgroupId,
        at_ns: u64,
        table: &'static str,
        reason: &'static str,
        rows: u64,
    ) {
        if self.entries >= MAX_ENTRIES && !self.of.contains_key(&owner) {
            return;
        }
        let own = self.of.entry(owner).or_default();
        let same = |e: &&mut Entry| {
            e.table == table && e.reason == reason && at_ns.saturating_sub(e.at_ns) < STEP_NS
        };
        if let Some(entry) = own.iter_mut().rev().find(same) {
            entry.rows += rows;
        } else if self.entries < MAX_ENTRIES {
            own.push(Entry { at_ns, table, reason, rows });
            self.entries += 1;
        }
    }

    /// Of the minute before an instant, and after it.
    pub fn before(&self, owner: CgroupId, ktime_ns: u64) -> Vec<Lost> {
        let mut sum: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        let since = ktime_ns.saturating_sub(KEPT_NS);
        for entry in self.of.get(&owner).into_iter().flatten().filter(|e| e.at_ns >= since) {
            *sum.entry((entry.table, entry.reason)).or_default() += entry.rows;
        }
        let lost = |((table, reason), rows): ((&str, &str), u64)| Lost {
            table: table.to_owned(),
            reason: reason.to_owned(),
            rows,
        };
        sum.into_iter().map(lost).collect()
    }

    pub fn forget_old(&mut self, now_ns: u64) {
        if self.of.is_empty() || now_ns < self.pruned_ns + STEP_NS {
            return;
        }
        self.pruned_ns = now_ns;
        self.of.retain(|_, own| {
            own.retain(|e| now_ns < e.at_ns + KEPT_NS);
            !own.is_empty()
        });
        self.entries = self.of.values().map(Vec::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn a_minute_is_kept_of_each_kind_and_no_more() {
        let mut losses = Losses::default();
        let a = CgroupId(7);
        for ms in 0..5000 {
            losses.note(a, ms * S / 1000, "samples", "late", 1);
        }
        losses.note(a, 30 * S, "processes", "process_budget", 2);
        losses.note(CgroupId(8), 30 * S, "samples", "late", 9);
        assert_eq!(losses.entries, 5 + 2);
        let rows = |at: u64| losses.before(a, at).into_iter().map(|l| (l.reason, l.rows)).collect::<Vec<_>>();
        assert_eq!(rows(60 * S), [("process_budget".to_owned(), 2), ("late".to_owned(), 5000)]);
        assert_eq!(rows(62 * S)[1], ("late".to_owned(), 3000));
        assert_eq!(rows(91 * S), []);
        losses.forget_old(61 * S);
        assert_eq!(losses.entries, 3 + 2);
        losses.forget_old(200 * S);
        assert!(losses.of.is_empty() && losses.entries == 0);
    }

    #[test]
    fn however_many_lose_there_is_a_bound() {
        let mut losses = Losses::default();
        for id in 0..2 * MAX_ENTRIES as u64 {
            losses.note(CgroupId(id), S, "samples", "late", 1);
        }
        losses.note(CgroupId(1), S, "samples", "late", 1);
        assert_eq!(losses.of.len(), MAX_ENTRIES);
        assert_eq!((losses.entries, losses.before(CgroupId(1), S)[0].rows), (MAX_ENTRIES, 2));
        losses.forget_old(100 * S);
        losses.note(CgroupId(1), 100 * S, "samples", "late", 1);
        assert_eq!(losses.entries, 1);
    }
}
