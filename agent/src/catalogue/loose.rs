//! What goes into the `metrics` table: files keyed by hardware, keys and files that the catalogue has no column for.
//!
//! A name is made of the file's name and the key, with `_` for what is no letter or digit; what names hardware or a
//! resource is a label. Pure rules over names; `sampler` reads the files, `cgroup` parses them.

use super::{FILES, Kind};
use std::fmt::Write as _;

/// Files of a cgroup's directory that hold no numbers of it, and why each is not read.
pub const LEFT_OUT: &[(&str, &str)] = &[
    ("cgroup.controllers", "names of controllers"),
    ("cgroup.freeze", "a switch; cgroup.events tells the state"),
    ("cgroup.kill", "can only be written"),
    ("cgroup.pressure", "a switch"),
    ("cgroup.procs", "process ids: the `processes` table"),
    ("cgroup.subtree_control", "names of controllers"),
    ("cgroup.threads", "thread ids"),
    ("cgroup.type", "a word"),
    ("cpu.weight.nice", "cpu.weight on another scale"),
    ("cpuset.cpus", "a list of CPUs"),
    ("cpuset.cpus.effective", "a list of CPUs"),
    ("cpuset.cpus.exclusive", "a list of CPUs"),
    ("cpuset.cpus.exclusive.effective", "a list of CPUs"),
    ("cpuset.cpus.isolated", "a list of CPUs"),
    ("cpuset.cpus.partition", "a word"),
    ("cpuset.mems", "a list of NUMA nodes"),
    ("cpuset.mems.effective", "a list of NUMA nodes"),
    ("io.bfq.weight", "words for some devices, and io.weight has the rest"),
    ("io.prio.class", "a word"),
    ("memory.reclaim", "can only be written"),
];

/// Whether a file of a cgroup's directory is read into the `metrics` table as a whole.
pub fn is_loose(file: &str) -> bool {
    file.contains('.')
        && !LEFT_OUT.iter().any(|(name, _)| *name == file)
        && !FILES.iter().any(|f| f.name == file)
        // as the kernel's debugging has it
        && !file.starts_with("__DEBUG__")
}

/// One series of the `metrics` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Metric {
    pub name: String,
    /// `None` where nothing tells it.
    pub kind: Option<&'static str>,
    pub labels: Vec<(String, String)>,
}

/// Letters and digits as they are, `_` for the rest, none of it at the end or twice.
fn word(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_ascii_alphanumeric() => out.push(c),
            _ if out.ends_with('_') => {}
            _ => out.push('_'),
        }
    }
    out.truncate(out.trim_end_matches('_').len());
    out
}

/// A key of memory.stat is of the same kind in memory.numa_stat; limits, peaks and counts of events tell by their names.
fn kind_of(file: &str, key: &str) -> Option<&'static str> {
    let kind = match file.rsplit('.').next().unwrap_or_default() {
        "numa_stat" if file.starts_with("memory.") => {
            let stat = FILES.iter().find(|f| f.name == "memory.stat")?;
            stat.columns.iter().find(|c| c.key == key)?.kind
        }
        "max" | "min" | "low" | "high" | "weight" => Kind::Limit,
        "current" | "peak" | "numa_stat" => Kind::Gauge,
        "events" | "local" if file.contains(".events") => Kind::Counter,
        "stat" if file == "cgroup.stat" => Kind::Gauge,
        _ => return None,
    };
    Some(kind.as_str())
}

/// The series of a value: `key` stands at the begin of its line, `sub` before its `=`; either may be empty.
///
/// * `memory.numa_stat`: `anon N0=4096` is `memory_numa_stat_anon` with the label `node` = `0`.
/// * `hugetlb.2MB.current` is `hugetlb_current` with the label `page_size` = `2MB`.
/// * `misc.current`: `sev 3` is `misc_current` with the label `resource` = `sev`.
/// * `rdma.current`: `mlx4_0 hca_handle=2` is `rdma_current_hca_handle` with the label `device` = `mlx4_0`.
/// * `io.max`: `8:0 rbps=1048576` is `io_max_rbps` with the label `device` = `8:0`.
/// * `io.weight`: `default 100` is `io_weight` with the label `device` = `default`.
pub fn metric(file: &str, key: &str, sub: &str) -> Metric {
    let mut labels = Vec::new();
    let mut label = |name: &str, value: &str| labels.push((name.to_owned(), value.to_owned()));
    let node = sub.strip_prefix('N').filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    let mut name = file.to_owned();
    if let Some((size, rest)) = file.strip_prefix("hugetlb.").and_then(|r| r.split_once('.')) {
        label("page_size", size);
        name = format!("hugetlb.{rest}");
    }
    let controller = file.split('.').next().unwrap_or_default();
    match controller {
        "misc" if !key.is_empty() => label("resource", key),
        "rdma" | "io" | "dmem" if !key.is_empty() => label("device", key),
        _ if !key.is_empty() => _ = write!(name, ".{key}"),
        _ => {}
    }
    match node {
        Some(node) => label("node", node),
        None if !sub.is_empty() => _ = write!(name, ".{sub}"),
        None => {}
    }
    Metric { name: word(&name), kind: kind_of(file, key), labels }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(file: &str, key: &str, sub: &str) -> String {
        let m = metric(file, key, sub);
        let labels: Vec<_> = m.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        format!("{} {} {}", m.name, labels.join(","), m.kind.unwrap_or("?"))
    }

    #[test]
    fn hardware_is_a_label_and_the_rest_is_the_name() {
        assert_eq!(shown("memory.numa_stat", "anon", "N1"), "memory_numa_stat_anon node=1 gauge");
        assert_eq!(
            shown("memory.numa_stat", "pgdemote_kswapd", "N0"),
            "memory_numa_stat_pgdemote_kswapd node=0 counter"
        );
        assert_eq!(shown("hugetlb.2MB.current", "", ""), "hugetlb_current page_size=2MB gauge");
        assert_eq!(shown("hugetlb.1GB.rsvd.max", "", ""), "hugetlb_rsvd_max page_size=1GB limit");
        assert_eq!(shown("hugetlb.2MB.events", "max", ""), "hugetlb_events_max page_size=2MB counter");
        assert_eq!(shown("hugetlb.2MB.numa_stat", "", "N3"), "hugetlb_numa_stat page_size=2MB,node=3 gauge");
        assert_eq!(
            shown("hugetlb.2MB.numa_stat", "", "total"),
            "hugetlb_numa_stat_total page_size=2MB gauge"
        );
        assert_eq!(shown("misc.current", "sev_es", ""), "misc_current resource=sev_es gauge");
        assert_eq!(shown("misc.events.local", "sev.max", ""), "misc_events_local resource=sev.max counter");
        assert_eq!(
            shown("rdma.current", "mlx4_0", "hca_handle"),
            "rdma_current_hca_handle device=mlx4_0 gauge"
        );
        assert_eq!(shown("io.max", "8:0", "rbps"), "io_max_rbps device=8:0 limit");
        assert_eq!(shown("io.weight", "default", ""), "io_weight device=default limit");
        assert_eq!(shown("io.stat", "8:0", "cost.usage"), "io_stat_cost_usage device=8:0 ?");
        assert_eq!(shown("cgroup.stat", "nr_subsys_cpu", ""), "cgroup_stat_nr_subsys_cpu  gauge");
        assert_eq!(shown("new.thing", "a-key", "b"), "new_thing_a_key_b  ?");
    }

    #[test]
    fn files_with_columns_and_files_of_words_are_not_loose() {
        for file in ["memory.stat", "cgroup.procs", "cpuset.mems", "notify_on_release"] {
            assert!(!is_loose(file), "{file}");
        }
        for file in
            ["memory.numa_stat", "hugetlb.2MB.max", "misc.peak", "rdma.max", "io.latency", "new.thing"]
        {
            assert!(is_loose(file), "{file}");
        }
    }
}
