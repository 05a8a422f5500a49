//! The account of what was due, written and lost, by table and reason.
//!
//! due = written + Σ lost(reason) holds by construction: a row enters the account once, as one or the other. Kept by
//! `pipeline`; rows of it go into the `ledger` table each minute, totals into `/api/status` and each segment's metadata.

use crate::accumulator::{LedgerRow, Stamp};
use crate::names::Table;
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Account {
    written: u64,
    lost: BTreeMap<&'static str, u64>,
}

impl Account {
    fn due(&self) -> u64 {
        self.written + self.lost.values().sum::<u64>()
    }

    fn add(&mut self, other: &Self) {
        self.written += other.written;
        for (reason, n) in &other.lost {
            *self.lost.entry(reason).or_default() += n;
        }
    }
}

#[derive(Debug, Default)]
pub struct Ledger {
    period: BTreeMap<Table, Account>,
    before: BTreeMap<Table, Account>,
}

impl Ledger {
    /// `n` rows that were due are in the accumulator.
    pub fn written(&mut self, table: Table, n: u64) {
        self.period.entry(table).or_default().written += n;
    }

    /// `n` rows that were due will never be.
    pub fn lost(&mut self, table: Table, reason: &'static str, n: u64) {
        if n > 0 {
            *self.period.entry(table).or_default().lost.entry(reason).or_default() += n;
        }
    }

    /// Closes the period: its rows for the `ledger` table.
    pub fn close_period(&mut self, stamp: Stamp) -> Vec<LedgerRow> {
        let mut rows = Vec::new();
        for (table, account) in std::mem::take(&mut self.period) {
            self.before.entry(table).or_default().add(&account);
            rows.push(LedgerRow {
                stamp,
                of_table: table,
                due: account.due(),
                written: account.written,
                lost_by_reason: account.lost.into_iter().collect(),
            });
        }
        rows
    }

    /// Totals since the start: `{"samples": {"due": …, "written": …, "lost": {reason: …}}, …}`.
    pub fn totals(&self) -> Value {
        let mut all = self.before.clone();
        for (table, account) in &self.period {
            all.entry(*table).or_default().add(account);
        }
        all.iter()
            .map(|(table, a)| {
                let value = json!({"due": a.due(), "written": a.written, "lost": a.lost});
                (table.as_str().to_owned(), value)
            })
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn periods_add_up_to_the_totals(steps in proptest::collection::vec((0usize..4, 0u64..50), 0..100)) {
            let mut ledger = Ledger::default();
            let (mut due, mut rows) = (0, Vec::new());
            for (what, n) in steps {
                match what {
                    0 => { ledger.written(Table::Samples, n); due += n; }
                    1 => { ledger.lost(Table::Samples, "late", n); due += n; }
                    2 => { ledger.lost(Table::Samples, "vanished", n); due += n; }
                    _ => rows.extend(ledger.close_period(Stamp::default())),
                }
            }
            rows.extend(ledger.close_period(Stamp::default()));
            for r in &rows {
                prop_assert_eq!(r.due, r.written + r.lost_by_reason.iter().map(|(_, n)| n).sum::<u64>());
            }
            prop_assert_eq!(rows.iter().map(|r| r.due).sum::<u64>(), due);
            if due > 0 {
                prop_assert_eq!(ledger.totals()["samples"]["due"].as_u64(), Some(due));
            }
        }
    }
}
