//! The account of what was due, written and lost, by table and reason.
//!
//! due = written + Σ lost(reason) holds by construction: a row enters the account once, as one or the other, and a row
//! that is lost later moves from the one to the other. Kept by `pipeline`. Rows of it go into the `ledger` table at each
//! minute and rotation, totals into `/api/status`, a rotation's account into the metadata of its segments, and the account
//! so far into each frame of the journal, from which recovery tells what a crash cost. The table `ledger` itself has none.

use crate::accumulator::{LedgerRow, Stamp};
use crate::names::Table;
use arrow::array::{AsArray, RecordBatch, StringArray};
use arrow::datatypes::{Int32Type, Int64Type};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Why rows are lost; one read back from a file is owned.
pub type Reason = Cow<'static, str>;

/// `written` is below zero in a period that lost more rows of earlier ones than it got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub written: i64,
    pub lost: BTreeMap<Reason, i64>,
}

impl Account {
    pub fn due(&self) -> i64 {
        self.written + self.lost.values().sum::<i64>()
    }

    fn is_empty(&self) -> bool {
        self.written == 0 && self.lost.values().all(|n| *n == 0)
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Accounts by table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts(BTreeMap<Table, Account>);

impl Accounts {
    pub fn written(&mut self, table: Table, n: u64) {
        self.0.entry(table).or_default().written += signed(n);
    }

    pub fn lost(&mut self, table: Table, reason: impl Into<Reason>, n: u64) {
        if n > 0 {
            *self.0.entry(table).or_default().lost.entry(reason.into()).or_default() += signed(n);
        }
    }

    /// `n` rows that counted as written were lost after all.
    pub fn lost_later(&mut self, table: Table, reason: impl Into<Reason>, n: u64) {
        self.lost(table, reason, n);
        self.0.entry(table).or_default().written -= signed(n);
    }

    fn combine(&mut self, other: &Self, sign: i64) {
        for (table, account) in &other.0 {
            let own = self.0.entry(*table).or_default();
            own.written += sign * account.written;
            for (reason, n) in &account.lost {
                *own.lost.entry(reason.clone()).or_default() += sign * n;
            }
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.combine(other, 1);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, -1);
    }

    /// That of one table.
    #[must_use]
    pub fn only(mut self, table: Table) -> Self {
        self.0.retain(|t, _| *t == table);
        self
    }

    pub fn of(&self, table: Table) -> Option<&Account> {
        self.0.get(&table)
    }

    /// What is lost, by table and reason.
    pub fn losses(&self) -> impl Iterator<Item = (Table, &str, u64)> {
        self.0.iter().flat_map(|(table, a)| {
            let lost =
                a.lost.iter().filter_map(|(r, n)| Some((&**r, u64::try_from(*n).ok().filter(|n| *n > 0)?)));
            lost.map(|(reason, n)| (*table, reason, n))
        })
    }

    /// As rows of the `ledger` table; a table of which nothing is to be said has none.
    pub fn rows(&self, stamp: Stamp) -> Vec<LedgerRow> {
        let said = self.0.iter().filter(|(_, a)| !a.is_empty());
        said.map(|(table, a)| LedgerRow {
            stamp,
            of_table: *table,
            due: a.due(),
            written: a.written,
            lost_by_reason: a.lost.iter().filter(|(_, n)| **n != 0).map(|(r, n)| (r.clone(), *n)).collect(),
        })
        .collect()
    }

    /// The sum of rows of the `ledger` table.
    pub fn of_rows(batch: &RecordBatch) -> Self {
        let mut all = Self::default();
        let text = |name: &str| {
            let column = batch.column_by_name(name)?.as_dictionary_opt::<Int32Type>()?;
            column.downcast_dict::<StringArray>()
        };
        let written = batch.column_by_name("written").and_then(|c| c.as_primitive_opt::<Int64Type>());
        let (Some(of_table), Some(written)) = (text("of_table"), written) else { return all };
        let lost = text("lost_by_reason");
        for (i, (of_table, written)) in of_table.into_iter().zip(written).enumerate() {
            let Some(table) = of_table.and_then(named) else { continue };
            let own = all.0.entry(table).or_default();
            own.written += written.unwrap_or(0);
            let lost = lost.and_then(|l| l.into_iter().nth(i).flatten());
            let lost: BTreeMap<String, i64> =
                lost.and_then(|l| serde_json::from_str(l).ok()).unwrap_or_default();
            for (reason, n) in lost {
                *own.lost.entry(reason.into()).or_default() += n;
            }
        }
        all
    }

    /// `{"samples": {"due": …, "written": …, "lost": {reason: …}}, …}`.
    pub fn to_json(&self) -> Value {
        let one = |a: &Account| json!({"due": a.due(), "written": a.written, "lost": a.lost});
        self.0.iter().map(|(t, a)| (t.as_str().to_owned(), one(a))).collect::<Map<_, _>>().into()
    }

    /// The inverse of [`Accounts::to_json`]; what is not understood is left out.
    pub fn from_json(value: &Value) -> Self {
        let mut all = Self::default();
        for (name, a) in value.as_object().into_iter().flatten() {
            let Some(table) = named(name) else { continue };
            let own = all.0.entry(table).or_default();
            own.written = a["written"].as_i64().unwrap_or(0);
            for (reason, n) in a["lost"].as_object().into_iter().flatten() {
                own.lost.insert(reason.clone().into(), n.as_i64().unwrap_or(0));
            }
        }
        all
    }
}

/// Whether losses of that reason stand in the incident of their container as well.
pub fn is_told_by_the_incident(reason: &str) -> bool {
    matches!(reason, "late" | "too_many") || reason.starts_with("burst_")
}

/// The table of that name.
pub fn named(name: &str) -> Option<Table> {
    Table::ALL.into_iter().find(|t| t.as_str() == name)
}

#[derive(Debug, Default)]
pub struct Ledger {
    /// Since the last flush.
    fresh: Accounts,
    /// Since the last row of the `ledger` table.
    period: Accounts,
    /// Until that row.
    before: Accounts,
}

impl Ledger {
    fn both(&mut self, note: impl Fn(&mut Accounts)) {
        note(&mut self.fresh);
        note(&mut self.period);
    }

    /// `n` rows that were due are in the accumulator.
    pub fn written(&mut self, table: Table, n: u64) {
        self.both(|a| a.written(table, n));
    }

    /// `n` rows that were due will never be.
    pub fn lost(&mut self, table: Table, reason: &'static str, n: u64) {
        self.both(|a| a.lost(table, reason, n));
    }

    /// `n` rows that were in the accumulator once never reached a file.
    pub fn lost_later(&mut self, table: Table, reason: &'static str, n: u64) {
        self.both(|a| a.lost_later(table, reason, n));
    }

    /// What was noted since the last flush.
    pub fn flush(&mut self) -> Accounts {
        std::mem::take(&mut self.fresh)
    }

    /// Closes the period: its rows for the `ledger` table.
    pub fn close_period(&mut self, stamp: Stamp) -> Vec<LedgerRow> {
        let period = std::mem::take(&mut self.period);
        self.before.add(&period);
        period.rows(stamp)
    }

    /// All since the start.
    pub fn account(&self) -> Accounts {
        let mut all = self.before.clone();
        all.add(&self.period);
        all
    }

    /// The same for `/api/status`.
    pub fn totals(&self) -> Value {
        self.account().to_json()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accumulator::{NodeNames, Pending};
    use proptest::prelude::*;

    fn batch(rows: Vec<LedgerRow>) -> RecordBatch {
        let names = NodeNames { cluster: None, node: "n".into(), boot_id: "b".into() };
        Pending { ledger: rows, ..Pending::default() }.batch(Table::Ledger, &names).expect("a batch")
    }

    proptest! {
        /// Whatever happens in whatever order, each row says due = written + lost, all rows together say what was due,
        /// and so do the flushes.
        #[test]
        fn periods_and_flushes_add_up(steps in proptest::collection::vec((0usize..6, 0u64..50, 0usize..2), 0..100)) {
            let mut ledger = Ledger::default();
            let (mut due, mut kept) = (0, 0i64);
            let (mut rows, mut flushed) = (Vec::new(), Accounts::default());
            for (what, n, table) in steps {
                let table = [Table::Samples, Table::Events][table];
                match what {
                    0 => { ledger.written(table, n); due += n; kept += signed(n); }
                    1 => { ledger.lost(table, "late", n); due += n; }
                    2 => { ledger.lost(table, "ring_full", n); due += n; }
                    3 => { ledger.lost_later(table, "writer_behind", n); kept -= signed(n); }
                    4 => flushed.add(&ledger.flush()),
                    _ => rows.extend(ledger.close_period(Stamp::default())),
                }
            }
            rows.extend(ledger.close_period(Stamp::default()));
            flushed.add(&ledger.flush());
            for r in &rows {
                prop_assert_eq!(r.due, r.written + r.lost_by_reason.values().sum::<i64>());
            }
            prop_assert_eq!(rows.iter().map(|r| r.due).sum::<i64>(), signed(due));
            prop_assert_eq!(rows.iter().map(|r| r.written).sum::<i64>(), kept);
            // through the table and through JSON it is the same account
            let json = Accounts::from_json(&flushed.to_json());
            prop_assert_eq!(&json, &flushed);
            let mut difference = Accounts::of_rows(&batch(rows));
            difference.subtract(&flushed);
            prop_assert_eq!(difference.rows(Stamp::default()), []);
            prop_assert_eq!(ledger.totals(), flushed.to_json());
        }
    }
}
