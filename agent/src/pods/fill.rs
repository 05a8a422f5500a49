//! Names into rows that have none yet: the columns `namespace`, `pod` and `container` of a batch, by `pod_uid` and `container_id`.

use super::Pods;
use arrow::array::{Array, ArrayRef, AsArray, DictionaryArray, RecordBatch, StringDictionaryBuilder};
use arrow::datatypes::Int32Type;
use std::collections::HashMap;
use std::sync::Arc;

/// The columns that are filled, and those that say who it is.
pub const NAMES: [&str; 3] = ["namespace", "pod", "container"];
pub const NAMED_BY: [&str; 2] = ["pod_uid", "container_id"];

type Words = DictionaryArray<Int32Type>;

fn words<'a>(batch: &'a RecordBatch, name: &str) -> Option<&'a Words> {
    batch.column_by_name(name)?.as_dictionary_opt::<Int32Type>()
}

fn word(column: &Words, row: usize) -> Option<&str> {
    let key = column.key(row)?;
    let values = column.values().as_string_opt::<i32>()?;
    values.is_valid(key).then(|| values.value(key))
}

impl Pods {
    /// The batch with the names that are known now. A name that a row has stays; a row without one is as it was where
    /// nothing is known. Any batch that cannot be read as one of ours comes back unchanged.
    pub fn fill(&self, batch: RecordBatch) -> RecordBatch {
        if batch.num_rows() == 0 || self.changes() == 0 {
            return batch;
        }
        self.filled(&batch).unwrap_or(batch)
    }

    fn filled(&self, batch: &RecordBatch) -> Option<RecordBatch> {
        let (uids, ids) = (words(batch, NAMED_BY[0])?, words(batch, NAMED_BY[1])?);
        let had = [words(batch, NAMES[0])?, words(batch, NAMES[1])?, words(batch, NAMES[2])?];
        let mut known = HashMap::new();
        let mut columns: [StringDictionaryBuilder<Int32Type>; 3] = Default::default();
        let mut is_new = false;
        for row in 0..batch.num_rows() {
            let own = had.map(|column| word(column, row));
            let who = if own.iter().all(Option::is_some) {
                &None
            } else {
                known
                    .entry((uids.key(row), ids.key(row)))
                    .or_insert_with(|| self.who(word(uids, row), word(ids, row)))
            };
            let told = who
                .as_ref()
                .map(|w| [Some(&*w.pod.namespace), Some(&*w.pod.name), w.container().map(|c| &*c.name)]);
            for (i, column) in columns.iter_mut().enumerate() {
                let name = own[i].or_else(|| told?[i]);
                is_new |= name.is_some() && own[i].is_none();
                column.append_option(name);
            }
        }
        if !is_new {
            return None;
        }
        let mut all: Vec<ArrayRef> = batch.columns().to_vec();
        for (name, mut column) in NAMES.into_iter().zip(columns) {
            all[batch.schema_ref().index_of(name).ok()?] = Arc::new(column.finish());
        }
        RecordBatch::try_new(batch.schema(), all).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::pod;
    use super::*;
    use crate::accumulator::{NodeNames, Pending, SampleRow, Stamp};
    use crate::cgroup::{Meta, identify};
    use crate::names::{Cause, CgroupId, Table};
    use crate::recorder;

    const UID: &str = "0f9c1c2e-1111-2222-3333-0123456789ab";

    fn rows(paths: &[String]) -> RecordBatch {
        let (recorder, series) = recorder::build();
        let (row, _handles) = metrics::with_local_recorder(&recorder, || series.handles());
        let mut pending = Pending::default();
        for (n, path) in paths.iter().enumerate() {
            let id = CgroupId(n as u64 + 1);
            let meta = Meta { id, parent_id: None, path: path.clone(), identity: identify(path) };
            let at = Stamp { ktime_ns: 1, wall_us: 1 };
            let what = SampleRow { at, cause: Cause::Base, period_ms: 1000, burst: None, files_read: 0 };
            pending.samples.commit(&Arc::new(meta), what, &row);
        }
        let names = NodeNames { cluster: None, node: "n".into(), boot_id: "b".into() };
        pending.batch(Table::Samples, &names).expect("builds")
    }

    fn names(batch: &RecordBatch) -> Vec<[Option<&str>; 3]> {
        (0..batch.num_rows()).map(|row| NAMES.map(|n| word(words(batch, n).expect("there"), row))).collect()
    }

    #[test]
    fn rows_get_the_names_that_are_known_and_keep_those_that_they_have() {
        let id = format!("{:064x}", 7);
        let paths = [
            format!("/kubepods/pod{UID}/{id}"),
            format!("/kubepods/pod{UID}"),
            "/system.slice/cron.service".to_owned(),
            format!("/kubepods/pod{}/{:064x}", UID.replace('0', "1"), 8),
        ];
        let pods = Pods::default();
        let bare = pods.fill(rows(&paths));
        assert_eq!(names(&bare), [[None; 3]; 4]);
        pods.apply(pod(UID, "cart-0", &[&id]));
        let filled = pods.fill(bare);
        let cart = [Some("shop"), Some("cart-0")];
        assert_eq!(
            names(&filled),
            [[cart[0], cart[1], Some("app")], [cart[0], cart[1], None], [None; 3], [None; 3]]
        );
        assert_eq!(filled.schema(), crate::schema::of(Table::Samples));
        pods.apply(pod(UID, "renamed", &[&id]));
        assert_eq!(names(&pods.fill(filled))[0], [cart[0], cart[1], Some("app")], "a name is not exchanged");
    }
}
