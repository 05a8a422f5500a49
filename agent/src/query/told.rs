//! The table `containers` read back: who the pods of a folder, or of an earlier run, were.

use super::{Filter, QueryError, int, plan, text};
use crate::names::Table;
use crate::pods::{Container, Ended, MAX_PODS, Owner, Pod, Pods};
use crate::store::View;
use arrow::array::{Array, AsArray, RecordBatch};
use std::collections::{BTreeMap, HashMap};

/// The labels of a row.
fn labels(batch: &RecordBatch, row: usize) -> BTreeMap<String, String> {
    let Some(map) = batch.column_by_name("labels").and_then(|c| c.as_map_opt()).filter(|m| m.is_valid(row))
    else {
        return BTreeMap::new();
    };
    let entries = map.value(row);
    let [keys, values] = [0, 1].map(|i| entries.column(i).as_string_opt::<i32>());
    let (Some(keys), Some(values)) = (keys, values) else { return BTreeMap::new() };
    keys.iter()
        .zip(values)
        .filter_map(|(k, v)| Some((k?.to_owned(), v.unwrap_or_default().to_owned())))
        .collect()
}

/// What stands in the table of them.
const COLUMNS: [&str; 17] = [
    "ts",
    "pod_uid",
    "container_id",
    "qos",
    "namespace",
    "pod",
    "container",
    "labels",
    "owner_kind",
    "owner_name",
    "image",
    "cpu_limit",
    "memory_limit",
    "restart_count",
    "reason",
    "exit_code",
    "next_container_id",
];

/// Takes one row into what others said of its pod; of one that is older than them only what they do not say.
fn take(pod: &mut Pod, batch: &RecordBatch, row: usize, is_newest: bool) {
    let of = |name: &str| text(batch, name, row).map(str::to_owned);
    let count = |name: &str| int(batch, name, row).and_then(|n| i32::try_from(n).ok());
    if is_newest {
        (pod.namespace, pod.name) = (of("namespace").unwrap_or_default(), of("pod").unwrap_or_default());
        (pod.labels, pod.qos) = (labels(batch, row), of("qos"));
        pod.owner = of("owner_kind").zip(of("owner_name")).map(|(kind, name)| Owner { kind, name });
    }
    let (Some(id), Some(name)) = (of("container_id"), of("container")) else { return };
    let place = pod.containers.iter().position(|c| c.name == name).unwrap_or_else(|| {
        pod.containers.push(Container { name, ..Container::default() });
        pod.containers.len() - 1
    });
    let c = &mut pod.containers[place];
    if is_newest || c.ids.is_empty() {
        (c.image, c.cpu_limit, c.memory_limit) = (of("image"), of("cpu_limit"), of("memory_limit"));
    }
    c.restart_count = c.restart_count.max(count("restart_count").unwrap_or(0));
    if !c.ids.contains(&id) {
        c.ids.insert(if is_newest { c.ids.len() } else { 0 }, id.clone());
    }
    if let Some(exit_code) = count("exit_code") {
        c.ended.retain(|e| e.container_id != id);
        c.ended.push(Ended {
            container_id: id,
            reason: of("reason"),
            exit_code,
            restart_count: count("restart_count").unwrap_or(0),
            next_container_id: of("next_container_id"),
        });
    }
}

/// The pods that the table `containers` of a store tells of, each as it was told of last; the latest of them when they are more than
/// a table of pods holds.
///
/// # Errors
/// As of any query.
pub fn pods(view: &View) -> Result<Pods, QueryError> {
    let pods = Pods::default();
    earlier_pods(view)?.into_iter().for_each(|pod| pods.apply(pod));
    Ok(pods)
}

/// The latest pods, the latest first. A week of a node's rows is read a piece at a time.
///
/// # Errors
/// As of any query.
pub fn earlier_pods(view: &View) -> Result<Vec<Pod>, QueryError> {
    let mut pods: HashMap<String, (i64, Pod)> = HashMap::new();
    let plan = plan(view, Table::Containers, &Filter::range(i64::MIN, i64::MAX), u64::MAX)?;
    // in the order of their time within a boot, and boots in any
    for batch in plan.slices(Some(&COLUMNS))? {
        let batch = batch?;
        for row in 0..batch.num_rows() {
            let (Some(uid), Some(ts)) = (text(&batch, "pod_uid", row), int(&batch, "ts", row)) else {
                continue;
            };
            let (last, pod) = pods
                .entry(uid.to_owned())
                .or_insert_with(|| (ts, Pod { uid: uid.to_owned(), ..Pod::default() }));
            take(pod, &batch, row, ts >= *last);
            *last = ts.max(*last);
        }
    }
    let mut pods: Vec<_> = pods.into_values().collect();
    pods.sort_by_key(|(last, pod)| (std::cmp::Reverse(*last), pod.uid.clone()));
    pods.truncate(MAX_PODS);
    Ok(pods.into_iter().map(|(_, pod)| pod).collect())
}
