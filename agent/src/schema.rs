//! The Arrow schemas of the store's tables. The samples table is made from the catalogue.
//!
//! Rules for later versions: columns may be added at the end, never reused with another meaning; `VERSION` grows then.
//! No I/O. `accumulator` fills these, `segment` writes them, `query` reads them.

use crate::catalogue::{self, Column, node};
use crate::names::Table;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// Version of the tables, in each file's metadata as `fgm.schema_version`.
pub const VERSION: u32 = 2;

/// What is said of a file of a later version, which nobody here can be sure to understand.
pub fn newer(version: u32) -> String {
    format!("schema version {version} is newer than this fgm's, which is {VERSION}; read it with a newer fgm")
}

fn text(name: &str) -> Field {
    Field::new(name, DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)), true)
}

fn int(name: &str) -> Field {
    Field::new(name, DataType::Int64, true)
}

/// The columns that every table begins with, in this order.
pub fn common() -> Vec<Field> {
    let mut f = vec![
        Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
        Field::new("ktime_ns", DataType::Int64, false),
    ];
    f.extend(["cluster", "node", "boot_id", "scope", "pod_uid", "container_id", "qos"].map(text));
    f.extend(["cgroup_id", "parent_cgroup_id"].map(int));
    f.extend(["cgroup_path", "namespace", "pod", "container"].map(text));
    f
}

fn samples() -> Schema {
    let mut f = common();
    f.push(text("cause"));
    f.push(int("period_ms"));
    f.push(text("burst_id"));
    f.push(int("files_read"));
    f.extend(catalogue::columns().map(|(_, file, column)| sampled(file.name, column)));
    Schema::new(f)
}

/// A column of the catalogue, with what it is in its metadata.
fn sampled(file: &str, column: &Column) -> Field {
    let about = [("unit", column.unit.as_str()), ("kind", column.kind.as_str()), ("file", file)];
    let lag = catalogue::lag(file).map(|lag| ("lag", lag));
    let about: HashMap<_, _> =
        about.into_iter().chain(lag).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    int(column.name).with_metadata(about)
}

fn io_devices() -> Schema {
    let mut f = vec![text("device"), text("device_name")];
    f.extend(catalogue::DEVICE_KEYS.map(int));
    with_common(f)
}

/// The labels of a metric: a map, as Parquet and Arrow both call its parts.
fn labels() -> Field {
    let entry = [Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)];
    let entries = Field::new("key_value", DataType::Struct(entry.to_vec().into()), false);
    Field::new("labels", DataType::Map(Arc::new(entries), false), true)
}

fn metrics() -> Schema {
    with_common(vec![text("name"), text("kind"), labels(), Field::new("value", DataType::Float64, true)])
}

fn node_table() -> Schema {
    with_common(node::columns().map(|(_, file, column)| sampled(file.path, column)).collect())
}

fn with_common(more: Vec<Field>) -> Schema {
    let mut f = common();
    f.extend(more);
    Schema::new(f)
}

fn events() -> Schema {
    with_common(vec![
        text("event_id"),
        text("kind"),
        text("severity"),
        text("source"),
        int("pid"),
        text("comm"),
        int("exit_code"),
        int("signal"),
        text("detail"),
    ])
}

fn incidents() -> Schema {
    let mut f = vec![text("id"), int("revision"), text("kind"), text("severity")];
    // Nested parts are JSON text of the shapes that the API gives; `json` is the whole incident.
    f.extend(
        ["victims", "trigger", "limit", "killer", "exit", "kubernetes", "labels", "events", "lost"].map(text),
    );
    f.extend(["window_from_us", "window_to_us"].map(int));
    f.extend(["history_us", "last_sample_before_us", "first_burst_after_us"].map(int));
    f.push(text("summary"));
    f.push(text("json"));
    with_common(f)
}

fn processes() -> Schema {
    let mut f = vec![int("pid"), text("comm"), text("state")];
    f.extend(["rss_bytes", "anon_bytes", "file_bytes", "shmem_bytes", "swap_bytes"].map(int));
    f.extend(["threads", "fds", "cpu_usec", "oom_score", "oom_score_adj", "is_init"].map(int));
    with_common(f)
}

fn ledger() -> Schema {
    let mut f = vec![text("of_table")];
    f.extend(["due", "written", "lost"].map(int));
    f.push(text("lost_by_reason"));
    with_common(f)
}

/// Revisions of what Kubernetes tells of a container (of the pod itself where `container_id` is NULL); limits as Kubernetes writes them.
fn containers() -> Schema {
    let mut f = vec![labels()];
    f.extend(["owner_kind", "owner_name", "image", "cpu_limit", "memory_limit"].map(text));
    f.push(int("restart_count"));
    f.push(text("reason"));
    f.push(int("exit_code"));
    f.push(text("next_container_id"));
    with_common(f)
}

/// The schema of a table.
pub fn of(table: Table) -> Arc<Schema> {
    static ALL: LazyLock<HashMap<Table, Arc<Schema>>> = LazyLock::new(|| {
        let of = |table| match table {
            Table::Samples => samples(),
            Table::Events => events(),
            Table::Incidents => incidents(),
            Table::Processes => processes(),
            Table::IoDevices => io_devices(),
            Table::Metrics => metrics(),
            Table::Node => node_table(),
            Table::Containers => containers(),
            Table::Ledger => ledger(),
        };
        Table::ALL.map(|table| (table, Arc::new(of(table)))).into()
    });
    ALL[&table].clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_begins_with_the_common_columns() {
        for table in Table::ALL {
            let schema = of(table);
            for (i, f) in common().iter().enumerate() {
                assert_eq!(schema.field(i), f, "{} column {i}", table.as_str());
            }
        }
    }

    #[test]
    fn every_sample_column_has_a_unit() {
        let schema = of(Table::Samples);
        assert_eq!(schema.fields().len(), common().len() + 4 + catalogue::COLUMNS);
        for (_, _, column) in catalogue::columns() {
            let f = schema.field_with_name(column.name).expect("a column of the catalogue");
            assert!(f.metadata().contains_key("unit"));
        }
    }
}
