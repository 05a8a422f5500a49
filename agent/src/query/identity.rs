//! Cells of a row, and who a cgroup is by the cells that name it.

use crate::pods::Pods;
use arrow::array::{Array, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{Int32Type, TimestampMicrosecondType};

/// Who a cgroup is, as its rows say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub node: Option<String>,
    pub parent_cgroup_id: Option<i64>,
    pub cgroup_path: Option<String>,
    pub scope: Option<String>,
    pub container_id: Option<String>,
    pub pod_uid: Option<String>,
    pub qos: Option<String>,
    pub namespace: Option<String>,
    pub pod: Option<String>,
    pub container: Option<String>,
}

impl Identity {
    pub(super) const COLUMNS: [&str; 10] = [
        "node",
        "parent_cgroup_id",
        "cgroup_path",
        "scope",
        "container_id",
        "pod_uid",
        "qos",
        "namespace",
        "pod",
        "container",
    ];

    /// Takes the names that Kubernetes told of it, where its rows have none.
    pub fn name_by(&mut self, pods: &Pods) {
        if self.container.is_some() {
            return;
        }
        let Some(who) = pods.who(self.pod_uid.as_deref(), self.container_id.as_deref()) else { return };
        let container = who.container().map(|c| c.name.clone());
        self.namespace.get_or_insert_with(|| who.pod.namespace.clone());
        self.pod.get_or_insert_with(|| who.pod.name.clone());
        self.container = container;
    }

    pub(super) fn lay_over(&mut self, rows: &RecordBatch, row: usize) {
        if let Some(id) = int(rows, "parent_cgroup_id", row) {
            self.parent_cgroup_id = Some(id);
        }
        for (name, field) in [
            ("node", &mut self.node),
            ("cgroup_path", &mut self.cgroup_path),
            ("scope", &mut self.scope),
            ("container_id", &mut self.container_id),
            ("pod_uid", &mut self.pod_uid),
            ("qos", &mut self.qos),
            ("namespace", &mut self.namespace),
            ("pod", &mut self.pod),
            ("container", &mut self.container),
        ] {
            if let Some(value) = text(rows, name, row) {
                *field = Some(value.to_owned());
            }
        }
    }
}

/// An integer (or an instant in µs) of a row.
pub fn int(rows: &RecordBatch, column: &str, row: usize) -> Option<i64> {
    let array = rows.column_by_name(column)?;
    if !array.is_valid(row) {
        return None;
    }
    if let Some(ts) = array.as_primitive_opt::<TimestampMicrosecondType>() {
        return Some(ts.value(row));
    }
    array.as_any().downcast_ref::<Int64Array>().map(|a| a.value(row))
}

/// A text of a row.
pub fn text<'a>(rows: &'a RecordBatch, column: &str, row: usize) -> Option<&'a str> {
    let array = rows.column_by_name(column)?.as_dictionary_opt::<Int32Type>()?;
    let key = array.key(row)?;
    let values = array.values().as_string_opt::<i32>()?;
    values.is_valid(key).then(|| values.value(key))
}
