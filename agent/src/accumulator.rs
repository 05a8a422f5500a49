//! The one owner of rows that are not in a segment yet, whatever their cause and table.
//!
//! Base, history and burst samples go through `commit` and `history` into the same rows. `take` hands everything over
//! to be written and leaves nothing behind; `snapshot` is for queries. Nothing here reads a clock, a file or the disk.

mod batch;
mod narrow;
mod samples;

pub use narrow::{Metrics, Value};
pub use samples::{SampleRow, Samples, Stamp};

use crate::catalogue::DEVICE_KEYS;
use crate::cgroup::Meta;
use crate::event::Event;
use crate::incident::Incident;
use crate::names::Table;
use crate::pods::Revision;
use arrow::array::RecordBatch;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What stands in every row of every table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeNames {
    pub cluster: Option<String>,
    pub node: String,
    pub boot_id: String,
}

/// One row of the `processes` table. Absent = could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub comm: String,
    /// The letter of /proc/PID/status `State`.
    pub state: Option<char>,
    pub rss_bytes: Option<u64>,
    pub anon_bytes: Option<u64>,
    pub file_bytes: Option<u64>,
    pub shmem_bytes: Option<u64>,
    pub swap_bytes: Option<u64>,
    pub threads: Option<u64>,
    pub fds: Option<u64>,
    pub cpu_usec: Option<u64>,
    pub oom_score: Option<i64>,
    pub oom_score_adj: Option<i64>,
    pub is_init: bool,
}

/// One row of the `io_devices` table: what a cgroup did on one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// `major:minor`.
    pub number: Arc<str>,
    pub name: Option<Arc<str>>,
    /// In the order of [`DEVICE_KEYS`].
    pub values: [Option<u64>; DEVICE_KEYS.len()],
}

/// One row of the `node` table, its values in the order of `catalogue::node::columns`.
pub type NodeRow = (Stamp, Vec<Option<u64>>);

/// What a row of these tables holds outside itself: an event's id, comm and detail (a kill's is the longest, an exit's
/// 300 bytes), a process's comm, an incident with its lists full.
const EVENT_TEXT_BYTES: usize = 500;
const PROCESS_TEXT_BYTES: usize = 16;
const INCIDENT_BYTES: usize = 40 << 10;

/// Rows of all tables.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    pub samples: Samples,
    pub events: Vec<(Event, Option<Arc<Meta>>)>,
    pub incidents: Vec<Incident>,
    pub processes: Vec<(Stamp, Arc<Meta>, Process)>,
    pub devices: Vec<(Stamp, Arc<Meta>, Device)>,
    pub metrics: Metrics,
    pub node: Vec<NodeRow>,
    pub containers: Vec<(Stamp, Revision)>,
    pub ledger: Vec<LedgerRow>,
}

/// One row of the `ledger` table: a period's account of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerRow {
    pub stamp: Stamp,
    pub of_table: Table,
    pub due: i64,
    pub written: i64,
    pub lost_by_reason: BTreeMap<Cow<'static, str>, i64>,
}

impl Pending {
    /// Arrow batches of the tables that have rows, each sorted by (`cgroup_id`, ts) where it matters.
    ///
    /// # Errors
    /// Arrow refuses the columns: a fault of ours, never of the data.
    pub fn batches(&self, names: &NodeNames) -> Result<Vec<(Table, RecordBatch)>, arrow::error::ArrowError> {
        let mut out = Vec::new();
        for table in Table::ALL {
            let batch = self.batch(table, names)?;
            if batch.num_rows() > 0 {
                out.push((table, batch));
            }
        }
        Ok(out)
    }

    /// One table's rows, maybe none.
    ///
    /// # Errors
    /// As [`Pending::batches`].
    pub fn batch(&self, table: Table, names: &NodeNames) -> Result<RecordBatch, arrow::error::ArrowError> {
        match table {
            Table::Samples => batch::samples(&self.samples, names),
            Table::Events => batch::events(&self.events, names),
            Table::Incidents => batch::incidents(&self.incidents, names),
            Table::Processes => batch::processes(&self.processes, names),
            Table::IoDevices => batch::devices(&self.devices, names),
            Table::Metrics => batch::metrics(&self.metrics, names),
            Table::Node => batch::node(&self.node, names),
            Table::Containers => batch::containers(&self.containers, names),
            Table::Ledger => batch::ledger(&self.ledger, names),
        }
    }

    /// A copy with the rows of one table only, and of the samples those not before `from_us`: a question about the last
    /// seconds must not copy a minute and a half.
    #[must_use]
    pub fn only(&self, table: Table, from_us: i64) -> Self {
        let none = Self::default();
        match table {
            Table::Samples => Self { samples: self.samples.since(from_us), ..none },
            Table::Events => Self { events: self.events.clone(), ..none },
            Table::Incidents => Self { incidents: self.incidents.clone(), ..none },
            Table::Processes => Self { processes: self.processes.clone(), ..none },
            Table::IoDevices => Self { devices: self.devices.clone(), ..none },
            Table::Metrics => Self { metrics: self.metrics.clone(), ..none },
            Table::Node => Self { node: self.node.clone(), ..none },
            Table::Containers => Self { containers: self.containers.clone(), ..none },
            Table::Ledger => Self { ledger: self.ledger.clone(), ..none },
        }
    }

    pub fn is_empty(&self) -> bool {
        self.rows() == 0
    }

    /// Bytes held, near enough: samples as they are, rows of other tables at what is usual for one.
    pub fn bytes(&self) -> usize {
        self.samples.bytes()
            + self.events.capacity() * (size_of::<(Event, Option<Arc<Meta>>)>() + EVENT_TEXT_BYTES)
            + self.processes.capacity() * (size_of::<(Stamp, Arc<Meta>, Process)>() + PROCESS_TEXT_BYTES)
            + self.devices.capacity() * size_of::<(Stamp, Arc<Meta>, Device)>()
            + self.metrics.bytes()
            + self.node.iter().map(|(_, v)| v.capacity() * size_of::<Option<u64>>()).sum::<usize>()
            + self.containers.capacity() * size_of::<(Stamp, Revision)>()
            + self.incidents.len() * INCIDENT_BYTES
    }

    /// Lets all go that is read from files, and says how many rows of each table that were.
    pub fn drop_readings(&mut self) -> [(Table, u64); 4] {
        let gone = [
            (Table::Samples, self.samples.len()),
            (Table::IoDevices, self.devices.len()),
            (Table::Metrics, self.metrics.len()),
            (Table::Processes, self.processes.len()),
        ];
        self.samples = Samples::default();
        self.devices = Vec::new();
        self.metrics = Metrics::default();
        self.processes = Vec::new();
        gone.map(|(table, rows)| (table, rows as u64))
    }

    pub fn rows(&self) -> usize {
        self.samples.len()
            + self.events.len()
            + self.incidents.len()
            + self.processes.len()
            + self.devices.len()
            + self.metrics.len()
            + self.node.len()
            + self.containers.len()
            + self.ledger.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{self, COLUMNS};
    use crate::cgroup::identify;
    use crate::names::{Cause, CgroupId};
    use crate::recorder;
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
    use proptest::prelude::*;

    fn names() -> NodeNames {
        NodeNames { cluster: None, node: "n".into(), boot_id: "b".into() }
    }

    fn meta(id: u64) -> Arc<Meta> {
        let path = format!("/docker/{id:064x}");
        Arc::new(Meta { id: CgroupId(id), parent_id: Some(CgroupId(1)), identity: identify(&path), path })
    }

    proptest! {
        /// What is set through the recorder's handles comes out of the batch, cell by cell, sorted, and nothing else does.
        #[test]
        fn every_value_set_is_in_the_batch(rows in proptest::collection::vec((1u64..4, proptest::collection::btree_map(0..COLUMNS, prop_oneof![Just(0), 0u64..1 << 50], 0..20)), 0..40)) {
            let (recorder, series) = recorder::build();
            let mut pending = Pending::default();
            let (row, handles) = metrics::with_local_recorder(&recorder, || series.handles());
            for (n, (id, values)) in rows.iter().enumerate() {
                for (column, value) in values {
                    handles[*column].set(*value);
                }
                let at = Stamp { ktime_ns: 1000 * (n as u64 + 1), wall_us: n.cast_signed() as i64 };
                pending.samples.commit(&meta(*id), SampleRow { at, cause: Cause::Base, period_ms: 1000, burst: None, files_read: 3 }, &row);
            }
            let batches = pending.batches(&names()).expect("builds");
            prop_assert_eq!(batches.len(), usize::from(!rows.is_empty()));
            let mut expect: Vec<_> = rows.iter().enumerate().map(|(n, (id, values))| (*id, n, values)).collect();
            expect.sort_by_key(|(id, n, _)| (*id, *n));
            for (_, batch) in &batches {
                prop_assert_eq!(batch.num_rows(), rows.len());
                let ts = batch.column_by_name("ts").expect("ts").as_primitive::<TimestampMicrosecondType>();
                let ids = batch.column_by_name("cgroup_id").expect("id").as_primitive::<Int64Type>();
                for (i, (id, n, _)) in expect.iter().enumerate() {
                    prop_assert_eq!((ids.value(i), ts.value(i)), (id.cast_signed(), n.cast_signed() as i64));
                }
                for (c, _, column) in catalogue::columns() {
                    let array = batch.column_by_name(column.name).expect("column").as_primitive::<Int64Type>();
                    for (i, (_, _, values)) in expect.iter().enumerate() {
                        let got = array.is_valid(i).then(|| array.value(i));
                        prop_assert_eq!(got, values.get(&c).map(|v| v.cast_signed()));
                    }
                }
            }
        }
    }

    #[test]
    fn columns_of_zeros_take_no_memory_of_their_own() {
        let current = catalogue::column("memory_current").expect("known");
        let swap = catalogue::column("memory_swap_current").expect("known");
        let zeros = |rows: u64| {
            let mut samples = Samples::default();
            for n in 0..rows {
                let at = Stamp { ktime_ns: n, wall_us: n.cast_signed() };
                samples.history(&meta(1), at, 50, "b1", &[(current, 4096), (swap, 0)], 1);
            }
            let batch =
                Pending { samples, ..Pending::default() }.batch(Table::Samples, &names()).expect("builds");
            let column =
                |name| batch.column_by_name(name).expect("column").as_primitive::<Int64Type>().clone();
            assert_eq!(
                column("memory_swap_current").values().iter().filter(|v| **v == 0).count() as u64,
                rows
            );
            (column("memory_current").values().as_ptr(), column("memory_swap_current").values().as_ptr())
        };
        let (few, many) = (zeros(3), zeros(500));
        assert_eq!(few.1, many.1);
        assert_ne!(few.0, many.0);
    }

    #[test]
    fn history_rows_carry_the_lane_value_and_nothing_else() {
        let mut samples = Samples::default();
        let at = Stamp { ktime_ns: 5, wall_us: 5 };
        samples.history(
            &meta(1),
            at,
            50,
            "b1",
            &[(catalogue::column("memory_current").expect("known"), 4096)],
            1,
        );
        let pending = Pending { samples, ..Pending::default() };
        let batches = pending.batches(&names()).expect("builds");
        let batch = &batches[0].1;
        let text = |name: &str| {
            let d = batch.column_by_name(name).expect("column").as_dictionary::<Int32Type>().clone();
            d.downcast_dict::<arrow::array::StringArray>()
                .map(|a| a.into_iter().next().flatten().map(str::to_owned))
                .expect("text")
        };
        assert_eq!(
            (text("cause").as_deref(), text("burst_id").as_deref(), text("scope").as_deref()),
            (Some("history"), Some("b1"), Some("container"))
        );
        let filled = batch.columns().iter().skip(19).filter(|c| c.null_count() == 0).count();
        assert_eq!(filled, 1);
    }
}
