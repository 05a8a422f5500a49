//! What a recorder must not invent: rows before a cgroup's birth or after its end, repeated values, instants of a tick
//! count, rates of a first reading, numbers for "max", series that mix devices or processes.

use super::*;
use crate::catalogue;
use crate::processes;
use arrow::array::{Array, RecordBatch};

const SECOND: u64 = 1_000_000_000;

fn batch(s: &Stage, table: Table) -> Vec<RecordBatch> {
    let all = s.handed_over.iter().map(|p| &**p).chain([&s.state.pending]);
    all.map(|p| p.batch(table, &s.state.names).expect("builds")).filter(|b| b.num_rows() > 0).collect()
}

/// A column of the rows of one cgroup, in the order of time.
fn ints(s: &Stage, table: Table, id: CgroupId, column: &str) -> Vec<Option<i64>> {
    let mut rows = Vec::new();
    for b in batch(s, table) {
        let int = |name: &str| {
            b.column_by_name(name).expect("a column").as_primitive::<Int64Type>().iter().collect::<Vec<_>>()
        };
        let of_one = int("cgroup_id").into_iter().zip(int("ktime_ns")).zip(int(column));
        rows.extend(
            of_one.filter(|((cgroup, _), _)| *cgroup == Some(id.as_i64())).map(|((_, at), v)| (at, v)),
        );
    }
    rows.sort_unstable();
    rows.into_iter().map(|(_, v)| v).collect()
}

fn instants(s: &Stage, id: CgroupId) -> Vec<u64> {
    ints(s, Table::Samples, id, "ktime_ns").into_iter().flatten().map(i64::cast_unsigned).collect()
}

#[test]
fn no_row_before_its_birth_or_after_its_end() {
    on_stage(100, true, |s| {
        let other = s.make("other.service");
        for n in 0..3 {
            s.turn(ktime_ns() + n * SECOND);
        }
        let born = ktime_ns();
        let path = s.make("web.service");
        let id = id_of(&path);
        s.tell_start(&path);
        for n in 3..6 {
            s.turn(ktime_ns() + n * SECOND);
        }
        fs::remove_dir_all(&path).expect("rmdir");
        let ended = ktime_ns();
        for n in 6..12 {
            s.turn(ktime_ns() + n * SECOND);
        }
        let rows = instants(s, id);
        assert!(rows.len() >= 3, "{rows:?}");
        assert!(rows.iter().all(|at| (born..=ended).contains(at)), "{rows:?} is not within {born}..={ended}");
        assert!(instants(s, id_of(&other)).iter().any(|at| *at > ended), "the others go on");
        // not in the other tables either
        for table in [Table::Metrics, Table::IoDevices] {
            let after =
                ints(s, table, id, "ktime_ns").into_iter().flatten().any(|at| at.cast_unsigned() > ended);
            assert!(!after, "{}", table.as_str());
        }
    });
}

/// The same name, another cgroup: the old one's values end with it, and the new one's are its own.
#[test]
fn a_name_that_comes_back_is_another_cgroup() {
    on_stage(100, true, |s| {
        let path = s.make("web.service");
        let old = id_of(&path);
        s.turn(ktime_ns());
        fs::rename(&path, s.dir.path().join("kept-so-that-the-inode-stays")).expect("rename");
        let path = s.make("web.service");
        let new = id_of(&path);
        fs::write(path.join("memory.current"), "4096\n").expect("write");
        s.tell_start(&path);
        for n in 1..4 {
            s.turn(ktime_ns() + n * SECOND);
        }
        assert_eq!(ints(s, Table::Samples, old, "memory_current"), [Some(8192)]);
        let of_new = ints(s, Table::Samples, new, "memory_current");
        assert!(of_new.len() >= 3 && of_new.iter().all(|v| *v == Some(4096)), "{of_new:?}");
    });
}

#[test]
fn a_stall_loses_what_the_ledger_says_and_nothing_else() {
    on_stage(100, true, |s| {
        let path = s.make("web.service");
        let id = id_of(&path);
        let start = ktime_ns();
        s.turn(start);
        for n in 1..=5 {
            s.turn(start + n * SECOND);
        }
        let before = instants(s, id);
        let lost =
            |s: &Stage, table: &str| s.state.ledger.totals()[table]["lost"]["late"].as_i64().unwrap_or(0);
        assert_eq!((lost(s, "samples"), lost(s, "node")), (0, 0));
        // the loop comes seven seconds late
        s.turn(start + 12 * SECOND);
        s.turn(start + 13 * SECOND);
        let rows = instants(s, id);
        assert_eq!(rows[..before.len()], before, "what was recorded before stays");
        let followed = i64::try_from(s.state.targets.len()).expect("few");
        assert_eq!((lost(s, "samples"), lost(s, "node")), (6 * followed, 6));
        let totals = s.state.ledger.totals();
        let written: usize = batch(s, Table::Samples).iter().map(RecordBatch::num_rows).sum();
        assert_eq!(totals["samples"]["written"], written);
        assert_eq!(totals["samples"]["due"], i64::try_from(written).expect("few") + 6 * followed);
    });
}

/// The loop's own idea of the time runs an hour ahead here; rows have the instant at which the files were read.
#[test]
fn an_instant_is_when_it_was_read_and_not_when_it_was_due() {
    on_stage(100, true, |s| {
        let path = s.make("web.service");
        let id = id_of(&path);
        s.turn(ktime_ns());
        for n in 1..4 {
            let (before, rows) = (ktime_ns(), instants(s, id).len());
            s.turn(before + 3600 * n * SECOND);
            let after = ktime_ns();
            let at = *instants(s, id).last().expect("a row");
            assert!((before..=after).contains(&at), "{at} is not within {before}..={after}");
            assert_eq!(instants(s, id).len(), rows + 1);
        }
        let (first, last) = (instants(s, id)[0], *instants(s, id).last().expect("a row"));
        let ts = |row: u64| s.state.offset.wall_us(row);
        for b in batch(s, Table::Samples) {
            let ts_column = b.column_by_name("ts").expect("ts");
            let us = ts_column.as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
            assert!(
                us.iter().flatten().all(|us| (ts(first) - 2_000_000..=ts(last) + 2_000_000).contains(&us))
            );
        }
    });
}

/// A counter is what its file says, also in the first row: there is nothing before it that could give a rate.
#[test]
fn the_first_reading_of_a_counter_is_no_spike() {
    on_stage(100, true, |s| {
        let path = s.make("web.service");
        fs::write(path.join("cpu.stat"), "usage_usec 987654321\n").expect("write");
        s.turn(ktime_ns());
        fs::write(path.join("cpu.stat"), "usage_usec 987654399\n").expect("write");
        s.turn(ktime_ns() + 2 * SECOND);
        let usage = ints(s, Table::Samples, id_of(&path), "cpu_stat_usage_usec");
        assert_eq!(usage, [Some(987_654_321), Some(987_654_399)]);
    });
}

#[test]
fn max_is_no_number_in_any_table() {
    on_stage(100, true, |s| {
        let path = s.make("web.service");
        for file in ["memory.max", "pids.max", "hugetlb.2MB.max", "cgroup.max.depth"] {
            fs::write(path.join(file), "max\n").expect("write");
        }
        fs::write(path.join("cpu.max"), "max 100000\n").expect("write");
        s.turn(ktime_ns());
        let id = id_of(&path);
        for column in ["memory_max", "pids_max", "cpu_max_quota_usec", "cgroup_max_depth"] {
            assert_eq!(ints(s, Table::Samples, id, column), [None], "{column}");
        }
        assert_eq!(ints(s, Table::Samples, id, "cpu_max_period_usec"), [Some(100_000)]);
        let read = ints(s, Table::Samples, id, "files_read")[0].expect("bits");
        assert_eq!(read >> catalogue::file("memory.max").expect("known") & 1, 1);
        let metrics = &batch(s, Table::Metrics)[0];
        let names = metrics.column_by_name("name").expect("name").as_dictionary::<Int32Type>();
        let names = names.downcast_dict::<StringArray>().expect("text");
        let at = (0..metrics.num_rows()).find(|i| names.value(*i) == "hugetlb_max").expect("a row");
        assert!(metrics.column_by_name("value").expect("value").is_null(at));
    });
}

#[test]
fn each_device_is_a_series_of_its_own_and_samples_have_the_sum() {
    on_stage(100, true, |s| {
        let path = s.make("web.service");
        let line = |n| {
            format!(
                "8:0 rbytes={n} wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n8:16 rbytes=7 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n"
            )
        };
        let id = id_of(&path);
        fs::write(path.join("io.stat"), line(10)).expect("write");
        s.turn(ktime_ns());
        // a young cgroup has every device in every row; this one is old
        let target = s.state.targets.get_mut(&id).expect("followed");
        target.first_seen_ns = 0;
        // nor does a slow row, which has them all, come meanwhile
        target.next_slow_ns = u64::MAX;
        for (n, rbytes) in [(1, 10), (2, 30), (3, 30)] {
            fs::write(path.join("io.stat"), line(rbytes)).expect("write");
            s.turn(ktime_ns() + 2 * n * SECOND);
        }
        assert_eq!(ints(s, Table::Samples, id, "io_stat_rbytes"), [17, 17, 37, 37].map(Some));
        let mut rows = Vec::new();
        for b in batch(s, Table::IoDevices) {
            let device = b.column_by_name("device").expect("device").as_dictionary::<Int32Type>();
            let device = device.downcast_dict::<StringArray>().expect("text");
            let rbytes = b.column_by_name("rbytes").expect("rbytes").as_primitive::<Int64Type>();
            rows.extend((0..b.num_rows()).map(|i| (device.value(i).to_owned(), rbytes.value(i))));
        }
        rows.sort();
        let expected = [("8:0", 10), ("8:0", 30), ("8:16", 7)].map(|(d, n)| (d.to_owned(), n));
        assert_eq!(rows, expected, "a device has a row when it changed");
    });
}

#[test]
fn processes_are_rows_and_their_numbers_no_metrics() {
    on_stage(100, true, |s| {
        let path = s.make(&format!("docker/{CID}"));
        fs::write(path.join("cgroup.procs"), format!("{}\n", std::process::id())).expect("write");
        s.turn(ktime_ns());
        s.turn(ktime_ns() + 2 * SECOND);
        let pids = ints(s, Table::Processes, id_of(&path), "pid");
        assert!(
            !pids.is_empty() && pids.iter().all(|p| *p == Some(i64::from(std::process::id()))),
            "{pids:?}"
        );
        let is_pid = |name: &str| name == "pid" || name.starts_with("pid_");
        assert!(catalogue::columns().all(|(_, _, c)| !is_pid(c.name)));
        assert_eq!(processes::pids(&path), [std::process::id()]);
        let metrics = batch(s, Table::Metrics);
        let names = metrics[0].column_by_name("name").expect("name").as_dictionary::<Int32Type>();
        let mut values = names.downcast_dict::<StringArray>().expect("text").into_iter().flatten();
        assert!(values.all(|n| !is_pid(n) && !n.starts_with("cgroup_procs")));
    });
}

#[test]
fn a_loose_value_has_a_row_when_it_changes_and_at_an_event() {
    on_stage(100, true, |s| {
        let path = s.make(&format!("docker/{CID}"));
        let id = id_of(&path);
        let put = |n: u64| {
            fs::write(path.join("memory.numa_stat"), format!("anon N0={n}\nfile N0=5\n")).expect("write");
        };
        put(1);
        let start = ktime_ns();
        s.turn(start);
        let count = |s: &Stage| ints(s, Table::Metrics, id, "ktime_ns").len();
        let first = count(s);
        assert!(first >= 2, "{first}");
        s.turn(start + 11 * SECOND);
        assert_eq!(count(s), first, "nothing changed");
        put(2);
        s.turn(start + 22 * SECOND);
        assert_eq!(count(s), first + 1);
        s.tell(kill(1, id));
        s.turn(start + 23 * SECOND);
        assert_eq!(count(s), first + 1 + first, "all of them with the first base row after an event");
        s.turn(start + 24 * SECOND);
        assert_eq!(count(s), first + 1 + first, "once");
    });
}

/// However late the loop comes to a row: slow files are read with every tenth row, not with every tenth or eleventh.
#[test]
fn slow_files_are_read_every_ten_seconds_whatever_the_loop_is_late_by() {
    on_stage(100, true, |s| {
        let id = id_of(&s.make("web.service"));
        s.turn(ktime_ns());
        let late_ns = |n: u64| n * 7919 % 60 * 1_000_000;
        let (mut of_cgroup, mut of_node) = (Vec::new(), Vec::new());
        for n in 0..100 {
            let before = s.state.targets[&id].next_slow_ns;
            let now = s.state.targets[&id].next_base_ns + late_ns(n);
            s.turn(now);
            if s.state.targets[&id].next_slow_ns != before {
                of_cgroup.push(n);
            }
        }
        // its turn comes with those of the cgroups and alone, so that it is driven alone
        for n in 0..100 {
            let before = s.state.next.node_slow;
            let now = s.state.next.node + late_ns(n);
            s.state.node_tick(now);
            if s.state.next.node_slow != before {
                of_node.push(n);
            }
        }
        for at in [of_cgroup, of_node] {
            let apart: Vec<u64> = at.windows(2).map(|w| w[1] - w[0]).collect();
            assert!(apart.len() >= 8 && apart.iter().all(|n| *n == 10), "{apart:?} rows apart");
        }
        // after a stall of half a minute the grid goes on
        let (due, base) = (s.state.targets[&id].next_slow_ns, s.state.targets[&id].next_base_ns);
        s.turn(base + 34 * SECOND + 1);
        let next = s.state.targets[&id].next_slow_ns;
        assert!(next > base + 34 * SECOND && (next - due) % (10 * SECOND) == 0, "{due} and {next}");
    });
}

/// A limit that falls is dated by the readings on its two sides, not by the plan of the second one.
#[test]
fn a_fallen_limit_is_dated_from_the_reading_before_it() {
    on_stage(100, true, |s| {
        let path = s.make("web.service");
        let id = id_of(&path);
        s.turn(ktime_ns());
        let read_ns = s.state.targets[&id].limit_read_ns;
        assert!(read_ns > 0);
        fs::write(path.join("memory.max"), "12288\n").expect("write");
        let now = s.state.targets[&id].next_slow_ns.max(s.state.targets[&id].next_base_ns);
        s.turn(now);
        let change = s.state.limit_changes[&id];
        assert_eq!((change.before, change.after), (Some(16384), Some(12288)));
        assert_eq!(change.not_before_ns, read_ns);
    });
}

/// What a limit of open files takes away is speed, of no cgroup its rows or its history.
#[test]
fn without_descriptors_every_cgroup_has_rows_and_a_lane() {
    on_stage_of(100, true, 0, |s| {
        let paths: Vec<PathBuf> = (0..20).map(|n| s.make(&format!("s{n}.service"))).collect();
        let end = ktime_ns() + SECOND / 2;
        while ktime_ns() < end {
            s.turn(ktime_ns());
            std::thread::yield_now();
        }
        for n in 1..4 {
            s.turn(ktime_ns() + n * SECOND);
        }
        for id in paths.iter().map(|path| id_of(path)) {
            let newest = s.state.targets[&id].ring.newest();
            assert_eq!(newest.and_then(|r| r.memory_current()), Some(8192), "a lane");
            assert!(instants(s, id).len() >= 4, "{:?}", instants(s, id));
        }
        let sampler = &s.state.sampler;
        assert_eq!((sampler.descriptors().0, sampler.is_short()), (0, true));
        assert!(sampler.faults.unread.is_empty(), "{:?}", sampler.faults);
    });
}
