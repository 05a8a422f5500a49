//! The table `containers` read back: who the pods of a folder, or of an earlier run, were.

use super::{Filter, QueryError, int, rows, text};
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

/// Takes one row into what the earlier ones said of its pod.
fn take(pod: &mut Pod, batch: &RecordBatch, row: usize) {
    let of = |name: &str| text(batch, name, row).map(str::to_owned);
    let count = |name: &str| int(batch, name, row).and_then(|n| i32::try_from(n).ok());
    (pod.namespace, pod.name) = (of("namespace").unwrap_or_default(), of("pod").unwrap_or_default());
    (pod.labels, pod.qos) = (labels(batch, row), of("qos"));
    pod.owner = of("owner_kind").zip(of("owner_name")).map(|(kind, name)| Owner { kind, name });
    let (Some(id), Some(name)) = (of("container_id"), of("container")) else { return };
    let place = pod.containers.iter().position(|c| c.name == name).unwrap_or_else(|| {
        pod.containers.push(Container { name, ..Container::default() });
        pod.containers.len() - 1
    });
    let c = &mut pod.containers[place];
    (c.image, c.cpu_limit, c.memory_limit) = (of("image"), of("cpu_limit"), of("memory_limit"));
    c.restart_count = c.restart_count.max(count("restart_count").unwrap_or(0));
    if !c.ids.contains(&id) {
        c.ids.push(id.clone());
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
    for pod in earlier_pods(view)? {
        pods.apply(pod);
    }
    Ok(pods)
}

/// The latest pods, the latest first.
///
/// # Errors
/// As of any query.
pub fn earlier_pods(view: &View) -> Result<Vec<Pod>, QueryError> {
    let all = Filter::range(i64::MIN, i64::MAX);
    let (batches, _) = rows(view, Table::Containers, &all, None, u64::MAX)?;
    let mut places: Vec<(i64, usize, usize)> = Vec::new();
    for (b, batch) in batches.iter().enumerate() {
        places.extend((0..batch.num_rows()).filter_map(|row| Some((int(batch, "ts", row)?, b, row))));
    }
    places.sort_unstable();
    let mut pods: HashMap<String, (i64, Pod)> = HashMap::new();
    for (ts, b, row) in places {
        let Some(uid) = text(&batches[b], "pod_uid", row) else { continue };
        let (last, pod) =
            pods.entry(uid.to_owned()).or_insert_with(|| (ts, Pod { uid: uid.to_owned(), ..Pod::default() }));
        *last = ts;
        take(pod, &batches[b], row);
    }
    let mut pods: Vec<_> = pods.into_values().collect();
    pods.sort_by_key(|(last, pod)| (std::cmp::Reverse(*last), pod.uid.clone()));
    pods.truncate(MAX_PODS);
    Ok(pods.into_iter().map(|(_, pod)| pod).collect())
}
