//! The catalogue against a real kernel: every number in every file of a container is in a row, with the file's own value.
//! Run as root with --test-threads=1 where cgroup v2 has the memory controller (the test VM); elsewhere each test says that
//! it was skipped and why. The container is frozen, so that its files stand still while they are compared.

#[path = "kernel_lane/tree.rs"]
#[expect(dead_code, reason = "the tree of the lane's tests, of which these need a part")]
mod tree;

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{Float64Type, Int32Type, Int64Type};
use fgm::accumulator::{NodeNames, Pending};
use fgm::catalogue::{self, FILES, Format, loose};
use fgm::cgroup::{Meta, identify};
use fgm::clock::{self, Offset};
use fgm::lane::Ring;
use fgm::names::{Cause, CgroupId, Table};
use fgm::recorder;
use fgm::sampler::{Node, Plan, Sampler};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tree::{Shell, Tree, id, text};

const ROOT: &str = "/sys/fs/cgroup";
const ALL: &str = "+cpu +cpuset +io +memory +pids +hugetlb +misc +rdma";

fn guard(name: &str) -> bool {
    let controllers = fs::read_to_string(format!("{ROOT}/cgroup.controllers")).unwrap_or_default();
    let reason = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if !controllers.split_whitespace().any(|c| c == "hugetlb") {
        "no cgroup v2 with all controllers at /sys/fs/cgroup"
    } else {
        return true;
    };
    println!("SKIPPED {name}: {reason}");
    false
}

/// A number as a file has it: (file, key, what stands before its `=`), and the number, `None` = "max".
type Numbers = BTreeMap<(String, String, String), Option<f64>>;

/// Every number of every file of the directory that is not left out on purpose, read by plain text work.
fn numbers(dir: &Path) -> Numbers {
    let mut out = Numbers::new();
    for entry in fs::read_dir(dir).expect("the directory").flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() || loose::LEFT_OUT.iter().any(|(name, _)| *name == file) {
            continue;
        }
        let Some(text) = text(dir, &file) else { continue };
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let mut put = |key: &str, sub: &str, value: &str| {
                let value = if value == "max" { None } else { Some(value.parse().expect("a number")) };
                out.insert((file.clone(), key.to_owned(), sub.to_owned()), value);
            };
            match words[..] {
                [value] if !value.contains('=') => put("", "", value),
                [quota, period] if file == "cpu.max" => {
                    put("quota", "", quota);
                    put("period", "", period);
                }
                [key, value] if !value.contains('=') => put(key, "", value),
                _ => {
                    let key = words[0].split_once('=').map_or(words[0], |_| "");
                    for word in words.iter().filter(|w| w.contains('=')) {
                        let (sub, value) = word.split_once('=').expect("k=v");
                        put(key, sub, value);
                    }
                }
            }
        }
    }
    out
}

/// What the sampler makes of the cgroup: the batches of one slow reading.
fn sampled(dir: &Path) -> BTreeMap<Table, RecordBatch> {
    let (recorder, series) = recorder::build();
    metrics::with_local_recorder(&recorder, || {
        let mut sampler = Sampler::new(Path::new(ROOT), &series, 4096);
        let path = format!("/{}", dir.strip_prefix(ROOT).expect("below the root").display());
        let meta = Arc::new(Meta { id: CgroupId(id(dir)), parent_id: None, identity: identify(&path), path });
        let mut target = sampler.open(&meta, Ring::new(1000, u64::MAX), clock::ktime_ns()).expect("there");
        let mut pending = Pending::default();
        let plan = Plan {
            cause: Cause::Base,
            period_ms: 1000,
            burst: None,
            slow: true,
            loose: true,
            in_lane: false,
        };
        sampler.sample(&mut target, plan, Offset::measure(), &mut pending).expect("there");
        assert!(
            sampler.faults.unparsed.is_empty() && sampler.faults.unread.is_empty(),
            "{:?}",
            sampler.faults
        );
        let names = NodeNames { cluster: None, node: "n".into(), boot_id: "b".into() };
        pending.batches(&names).expect("batches").into_iter().collect()
    })
}

fn words(batch: &RecordBatch, column: &str) -> Vec<Option<String>> {
    let column = batch.column_by_name(column).expect("a column").as_dictionary::<Int32Type>();
    let texts = column.downcast_dict::<StringArray>().expect("text");
    texts.into_iter().map(|t| t.map(str::to_owned)).collect()
}

/// A series by its name and labels.
type Series = (String, Vec<(String, String)>);

/// Rows of `metrics`.
fn narrow(batch: &RecordBatch) -> BTreeMap<Series, Option<f64>> {
    let labels = batch.column_by_name("labels").expect("labels").as_map();
    let values = batch.column_by_name("value").expect("value").as_primitive::<Float64Type>();
    let names = words(batch, "name").into_iter().enumerate();
    names
        .map(|(i, name)| {
            let entry = labels.value(i);
            let (keys, of) = (entry.column(0).as_string::<i32>(), entry.column(1).as_string::<i32>());
            let labels =
                (0..entry.len()).map(|j| (keys.value(j).to_owned(), of.value(j).to_owned())).collect();
            ((name.expect("a name"), labels), values.is_valid(i).then(|| values.value(i)))
        })
        .collect()
}

/// A container that has done a little of everything, frozen.
fn container(tree: &Tree) -> (std::path::PathBuf, Shell) {
    let dir = tree.make("web", "");
    fs::write(dir.join("memory.max"), "268435456").expect("a limit");
    let script = "dd if=/dev/vda of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null; \
                  dd if=/dev/zero of=/tmp/fgm-catalogue bs=64k count=64 2>/dev/null; rm -f /tmp/fgm-catalogue; \
                  x=$(head -c 4000000 /dev/zero | tr '\\0' x); echo ready > /tmp/fgm-catalogue-ready; sleep 300 & wait";
    let _ = fs::remove_file("/tmp/fgm-catalogue-ready");
    let shell = Shell::spawn(&dir, script);
    let end = clock::ktime_ns() + 60_000_000_000;
    while fs::metadata("/tmp/fgm-catalogue-ready").is_err() {
        assert!(clock::ktime_ns() < end, "the load did not come");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    fs::write(dir.join("cgroup.freeze"), "1").expect("frozen");
    // memory.stat is brought up to date every two seconds, and what was freed may take longer on a busy machine
    let memory = || {
        let all = numbers(&dir).into_iter();
        all.filter(|((file, ..), _)| file.starts_with("memory.") && !file.ends_with("pressure"))
            .collect::<Numbers>()
    };
    let mut before = memory();
    for _ in 0..15 {
        std::thread::sleep(std::time::Duration::from_secs(4));
        let now = memory();
        if now == before {
            break;
        }
        before = now;
    }
    (dir, shell)
}

#[test]
fn every_number_of_a_container_is_in_a_row() {
    if !guard("every_number_of_a_container_is_in_a_row") {
        return;
    }
    fs::write(format!("{ROOT}/cgroup.subtree_control"), ALL).expect("controllers");
    let tree = Tree::new("catalogue", ALL);
    let (dir, _shell) = container(&tree);
    let before = numbers(&dir);
    let tables = sampled(&dir);
    let after = numbers(&dir);
    let samples = &tables[&Table::Samples];
    let narrow = narrow(&tables[&Table::Metrics]);
    let files_read = samples.column_by_name("files_read").expect("bits").as_primitive::<Int64Type>().value(0);
    let (mut wide, mut loose_ones, mut moved) = (0, 0, Vec::new());
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    for ((file, key, sub), value) in &before {
        let at = (file.clone(), key.clone(), sub.clone());
        let index = catalogue::file(file);
        let format = index.map(|i| FILES[i].format);
        let wanted = match format {
            Some(Format::Pressure) => format!("{key}.{sub}"),
            Some(Format::PerDevice) => sub.clone(),
            _ => key.clone(),
        };
        let column = index.and_then(|i| FILES[i].columns.iter().find(|c| c.key == wanted));
        let got = if let Some(column) = column {
            wide += 1;
            assert_eq!(files_read >> index.expect("known") & 1, 1, "{file} was not read");
            let array = samples.column_by_name(column.name).expect("a column").as_primitive::<Int64Type>();
            let got = array.is_valid(0).then(|| array.value(0));
            if format == Some(Format::PerDevice) {
                *sums.entry(column.name.to_owned()).or_default() += value.expect("a count");
                continue;
            }
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let got = got.map(|v| if wanted.contains(".avg") { v as f64 / 100.0 } else { v as f64 });
            got
        } else {
            loose_ones += 1;
            let metric = loose::metric(file, key, sub);
            let row = narrow.get(&(metric.name.clone(), metric.labels.clone()));
            *row.unwrap_or_else(|| panic!("{file} {key} {sub} is neither a column nor a row of metrics"))
        };
        if after.get(&at) == Some(value) {
            assert_eq!(got, *value, "{file} {key} {sub}");
        } else {
            moved.push(at);
        }
    }
    for (column, sum) in sums {
        let array = samples.column_by_name(&column).expect("a column").as_primitive::<Int64Type>();
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let got = array.value(0) as f64;
        assert!((got - sum).abs() < 0.5, "{column}: {got} is not the sum of the devices, {sum}");
    }
    println!("{wide} numbers in columns, {loose_ones} in metrics, {} of them moved: {moved:?}", moved.len());
    // means go on sinking, and the time for which it is frozen on growing
    moved.retain(|(file, _, sub)| !sub.starts_with("avg") && file != "cgroup.stat.local");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a kernel");
    if !kernel.starts_with("6.1.") {
        assert!(wide + loose_ones >= 200, "{} metrics", wide + loose_ones);
    }
    assert!(moved.len() < 10, "a frozen container stands still: {moved:?}");

    // the disk was read, and is told for itself
    let devices = &tables[&Table::IoDevices];
    let (name, rbytes) = (words(devices, "device_name"), devices.column_by_name("rbytes").expect("rbytes"));
    assert_eq!(name, [Some("vda".to_owned())]);
    assert!(rbytes.as_primitive::<Int64Type>().value(0) >= 1 << 20);
}

#[test]
fn the_node_is_as_its_files_say() {
    if !guard("the_node_is_as_its_files_say") {
        return;
    }
    let mut node = Node::new(Path::new("/proc"));
    let mut rest = Vec::new();
    let row = node.read(Some(&mut rest));
    let stat = fs::read_to_string("/proc/stat").expect("stat");
    let forks: u64 = stat.lines().find_map(|l| l.strip_prefix("processes ")?.parse().ok()).expect("forks");
    let value = |name: &str| {
        let column = catalogue::node::columns().find(|(_, _, c)| c.name == name).expect("a column");
        row[column.0].unwrap_or_else(|| panic!("{name} is NULL"))
    };
    assert!(value("stat_processes") <= forks && value("stat_processes") + 50 > forks);
    let absent: Vec<_> =
        catalogue::node::columns().filter(|(i, ..)| row[*i].is_none()).map(|(_, _, c)| c.name).collect();
    println!("{} keys in columns, {} in metrics, not here: {absent:?}", row.len() - absent.len(), rest.len());
    let expected = |n: &&str| n.starts_with("irq_") || n.starts_with("meminfo_zswap");
    assert!(absent.iter().all(expected), "{absent:?}");
    assert!(node.faults.unparsed.is_empty() && node.faults.unread.is_empty(), "{:?}", node.faults);
}
