//! The lane against a real kernel: every value that the walk reads equals its file, it sees what it should and no more,
//! and what the agent makes of it. Run as root with --test-threads=1 where cgroup v2 has the memory controller (the test
//! VM); elsewhere each test says that it was skipped and why.

#[path = "kernel_agent/stage.rs"]
#[expect(dead_code, reason = "the stage of the agent's tests, of which the lane's need a part")]
mod stage;
#[path = "kernel_lane/tree.rs"]
mod tree;

use fgm::catalogue;
use fgm::clock::ktime_ns;
use fgm::lane::Reading;
use fgm::probes::{Kernel, Walk, Way};
use stage::{Agent, MIB, Pod, Process, guard, rows};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tree::{Shell, Tree, id, text};

/// Not a test: the body of the processes that the tests start from this very binary.
#[test]
fn child_role() {
    if let Ok(role) = std::env::var(stage::ROLE) {
        stage::play(&role);
    }
}

fn walk(walk: &mut Walk) -> BTreeMap<u64, Reading> {
    let mut found = BTreeMap::new();
    walk.tick(20, |id, reading| {
        assert!(found.insert(id.0, reading).is_none(), "{id:?} stands twice in one walk");
    })
    .expect("a walk");
    found
}

fn start(root: &Path) -> Walk {
    let walk = Walk::start(root).expect("the walk");
    assert!(walk.missing().is_empty(), "this kernel does not tell {:?}", walk.missing());
    walk
}

/// By each way that this kernel knows.
fn both(root: &Path) -> [Walk; 2] {
    let kernel = Kernel::read();
    [start(root), Walk::by(Way::Iterator, &kernel, root).expect("the kernel's own iterator")]
}

/// What the files say of the lane's columns, with the files' bits.
fn by_files(dir: &Path) -> (BTreeMap<&'static str, u64>, u64) {
    let mut values = BTreeMap::new();
    let mut bits = 0;
    for file in
        ["memory.current", "memory.swap.current", "memory.events", "cpu.stat", "pids.current", "memory.max"]
    {
        let Some(text) = text(dir, file) else { continue };
        let index = catalogue::file(file).expect("known");
        if file != "cpu.stat" {
            bits |= 1 << index;
        }
        for column in catalogue::FILES[index].columns {
            if file == "cpu.stat" && !["nr_periods", "nr_throttled", "throttled_usec"].contains(&column.key) {
                continue;
            }
            let value = if column.key.is_empty() {
                text.trim().parse().ok()
            } else {
                text.lines().find_map(|l| l.strip_prefix(column.key)?.strip_prefix(' ')?.parse().ok())
            };
            if let Some(value) = value {
                values.insert(column.name, value);
            }
        }
    }
    (values, bits)
}

fn by_walk(reading: &Reading) -> (BTreeMap<&'static str, u64>, u64) {
    let name = |i: usize| catalogue::columns().nth(i).map(|(_, _, c)| c.name).expect("a column");
    (reading.columns().map(|(i, v)| (name(i), v)).collect(), reading.files_read())
}

/// The walks between two equal readings of the files say the same. What moves is looked at again.
fn agrees(walks: &mut [Walk], dir: &Path) -> BTreeMap<&'static str, u64> {
    let mut last = None;
    for _ in 0..50 {
        let before = by_files(dir);
        let told: Vec<_> = walks
            .iter_mut()
            .map(|w| walk(w).get(&id(dir)).map(by_walk).expect("it is in the walk"))
            .collect();
        if before == by_files(dir) {
            if told.iter().all(|told| *told == before) {
                return before.0;
            }
            last = Some((before, told));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{}: files and walk differ: {last:#?}", dir.display());
}

#[test]
fn every_value_equals_its_file() {
    if !guard("every_value_equals_its_file") {
        return;
    }
    let all = "+memory +pids +cpu";
    let tree = Tree::new("parity", all);
    let mut w = both(&tree.path);

    let idle = agrees(&mut w, &tree.make("idle", ""));
    assert_eq!((idle["memory_current"], idle["pids_current"], idle["cpu_stat_nr_throttled"]), (0, 0, 0));
    assert!(!idle.contains_key("memory_max"), "\"max\" is no number");

    // three processes, and 12 MiB in a limit of 40
    let held = tree.make("held", "");
    fs::write(held.join("memory.max"), (40 * MIB).to_string()).expect("a limit");
    let _sleepers: Vec<_> = (0..2).map(|_| Shell::spawn(&held, "exec sleep 60")).collect();
    let _memory = Shell::spawn(&held, "x=$(head -c 12582912 /dev/zero | tr '\\0' 'x'); sleep 60 & wait");
    stage::wait("12 MiB", Duration::from_secs(30), || by_files(&held).0["memory_current"] > 12 * MIB);
    std::thread::sleep(Duration::from_millis(500));
    let told = agrees(&mut w, &held);
    assert_eq!(told["memory_max"], 40 * MIB);
    assert!(told["pids_current"] >= 3 && told["memory_current"] > 12 * MIB, "{told:?}");
    fs::write(held.join("memory.max"), "max").expect("no limit");
    assert!(!agrees(&mut w, &held).contains_key("memory_max"));

    // killed at its limit: events of all kinds, also in the parent, which counts those below it
    let killed = tree.make("killed", "");
    fs::write(killed.join("memory.max"), (8 * MIB).to_string()).expect("a limit");
    let _ = fs::write(killed.join("memory.swap.max"), "0");
    Shell::run(&killed, "x=$(head -c 33554432 /dev/zero | tr '\\0' 'x')");
    let told = agrees(&mut w, &killed);
    assert!(told["memory_events_oom_kill"] >= 1 && told["memory_events_max"] >= 1, "{told:?}");
    assert_eq!(agrees(&mut w, &tree.path)["memory_events_oom_kill"], told["memory_events_oom_kill"]);

    // file pages above memory.high
    let high = tree.make("high", "");
    fs::write(high.join("memory.high"), MIB.to_string()).expect("memory.high");
    Shell::run(&high, "head -c 6291456 /dev/zero > /tmp/fgm-lane-high; rm /tmp/fgm-lane-high");
    let told = agrees(&mut w, &high);
    assert!(told["memory_events_high"] >= 1, "{told:?}");

    // a tenth of a core, for a while
    let throttled = tree.make("throttled", "");
    fs::write(throttled.join("cpu.max"), "10000 100000").expect("cpu.max");
    Shell::run(&throttled, "timeout 1 sh -c 'while :; do :; done'");
    let told = agrees(&mut w, &throttled);
    assert!(told["cpu_stat_nr_throttled"] >= 3 && told["cpu_stat_throttled_usec"] > 100_000, "{told:?}");
    println!("throttled: {told:?}");
}

#[test]
fn a_controller_that_is_off_leaves_its_values_out() {
    if !guard("a_controller_that_is_off_leaves_its_values_out") {
        return;
    }
    let tree = Tree::new("absent", "+memory +pids +cpu +io");
    let mut w = both(&tree.path);
    for (name, controllers) in
        [("none", ""), ("pids", "+pids"), ("memory", "+memory"), ("cpu", "+cpu"), ("io", "+io")]
    {
        tree.make(name, controllers);
        let told = agrees(&mut w, &tree.make(&format!("{name}/below"), ""));
        println!("{controllers:?}: {:?}", told.keys());
        assert_eq!(
            told.contains_key("memory_current"),
            name == "memory",
            "io brings memory, but not its files"
        );
        assert_eq!(told.contains_key("pids_current"), name == "pids");
        assert_eq!(told.contains_key("cpu_stat_nr_periods"), name == "cpu");
    }
}

/// The quicker way came with Linux 6.8 and is taken where it is.
#[test]
fn the_quicker_way_is_taken_where_the_kernel_has_it() {
    if !guard("the_quicker_way_is_taken_where_the_kernel_has_it") {
        return;
    }
    let release = text(Path::new("/proc/sys/kernel"), "osrelease").expect("a release");
    let mut numbers = release.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let has_it = (numbers.next(), numbers.next()) >= (Some(6), Some(8));
    let tree = Tree::new("way", "+memory");
    assert_eq!(start(&tree.path).way(), if has_it { Way::Descent } else { Way::Iterator }, "{release}");
    if let Err(reason) = Walk::by(Way::Descent, &Kernel::read(), &tree.path) {
        println!("{release}: {reason}");
    }
}

/// Both ways meet the same, in the same order, while cgroups come and go.
#[test]
fn both_ways_meet_the_same_cgroups() {
    if !guard("both_ways_meet_the_same_cgroups") {
        return;
    }
    let tree = Tree::new("ways", "+memory +pids +cpu");
    let mut walks = both(&tree.path);
    for round in 0..5 {
        for i in 0..10 {
            tree.make(&format!("{round}-{i}"), "+memory");
            tree.make(&format!("{round}-{i}/below"), "");
        }
        for i in 0..round {
            fs::remove_dir(tree.path.join(format!("{round}-{i}/below"))).expect("rmdir");
        }
        let [descent, iterator] = &mut walks;
        let met = |w: &mut Walk| {
            let mut ids = Vec::new();
            w.tick(20, |id, _| ids.push(id)).expect("a walk");
            ids
        };
        let by_descent = met(descent);
        assert_eq!(by_descent, met(iterator));
        assert_eq!(by_descent.len(), 1 + (round + 1) * 20 - (0..=round).sum::<usize>());
    }
}

#[test]
fn a_walk_sees_its_root_and_what_is_below_and_nothing_else() {
    if !guard("a_walk_sees_its_root_and_what_is_below_and_nothing_else") {
        return;
    }
    let (tree, other) = (Tree::new("mine", "+memory"), Tree::new("other", "+memory"));
    other.make("stranger", "");
    let a = tree.make("a", "+memory");
    let dirs = [tree.path.clone(), a, tree.make("a/deep", ""), tree.make("b", "")];
    let mut w = start(&tree.path);
    let before = ktime_ns();
    let found = walk(&mut w);
    let after = ktime_ns();
    let mut expected: Vec<u64> = dirs.iter().map(|d| id(d)).collect();
    expected.sort_unstable();
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), expected);
    assert!(found.values().all(|r| (before..after).contains(&r.ktime_ns)), "the instants are of this walk");

    // one that has gone is no error, nor is one that is new
    fs::remove_dir(&dirs[3]).expect("rmdir");
    assert_eq!(walk(&mut w).len(), 3);
    let c = tree.make("c", "");
    assert!(walk(&mut w).contains_key(&id(&c)));
    // the machine's own root has none of the files, and is passed over
    let mut all = start(Path::new("/sys/fs/cgroup"));
    let found = walk(&mut all);
    assert!(!found.contains_key(&id(Path::new("/sys/fs/cgroup"))));
    assert!(expected.iter().take(3).all(|id| found.contains_key(id)) && found.contains_key(&id(&other.path)));

    drop(tree);
    assert_eq!(w.tick(20, |_, _| ()).map_or(0, |c| c.readings), 0, "its root has gone");
}

#[test]
fn what_finds_no_room_is_counted() {
    if !guard("what_finds_no_room_is_counted") {
        return;
    }
    let tree = Tree::new("full", "+memory");
    for i in 0..99 {
        tree.make(&i.to_string(), "");
    }
    let mut w = Walk::with_slots(&tree.path, 30).expect("the walk");
    for _ in 0..3 {
        let counts = w.tick(20, |_, _| ()).expect("a walk");
        assert_eq!((counts.readings, counts.lost), (30, 70), "each walk begins at the first slot");
    }
}

/// Printed, not judged: emulation tells nothing but the ratio. Runs on a cgroup v1 memory hierarchy as well, where the
/// files have other names and there is nothing but memory to read.
#[test]
fn what_a_walk_costs_beside_pread() {
    const CGROUPS: u64 = 200;
    const NAME: &str = "what_a_walk_costs_beside_pread";
    let v1 = Path::new("/sys/fs/cgroup/memory");
    let old = v1.join("memory.usage_in_bytes").exists();
    if old && (!rustix::process::geteuid().is_root() || !fgm::probes::embedded()) || !old && !guard(NAME) {
        return;
    }
    let (tree, files) = if old {
        let files =
            ["memory.usage_in_bytes", "memory.limit_in_bytes", "memory.failcnt", "memory.oom_control"];
        (Tree::below(v1, "cost", ""), files)
    } else {
        let files = ["memory.current", "memory.swap.current", "memory.events", "pids.current"];
        (Tree::new("cost", "+memory +pids +cpu"), files)
    };
    let dirs: Vec<_> = (0..CGROUPS).map(|i| tree.make(&i.to_string(), "")).collect();
    // a thousand files and the walk's own are more than most machines allow at first
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let all = rustix::process::Rlimit { current: hard, maximum: hard };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, all).expect("open files");
    let open = |f: &str| dirs.iter().map(|d| fs::File::open(d.join(f)).expect("a file")).collect::<Vec<_>>();
    let (one, four): (Vec<_>, Vec<_>) = (open(files[0]), files.iter().flat_map(|f| open(f)).collect());
    let mut walks = both(&tree.path);
    // by the clock, the best of many: on 6.1 under emulation CPU time comes in whole ticks
    let best = |mut look: Box<dyn FnMut() + '_>| {
        let cost = (0..200).map(|_| {
            let before = ktime_ns();
            look();
            ktime_ns() - before
        });
        cost.min().unwrap_or(0) / CGROUPS
    };
    let read = |files: &[fs::File]| {
        let mut buffer = [0u8; 4096];
        for f in files {
            std::hint::black_box(rustix::io::pread(f, &mut buffer, 0).expect("pread"));
        }
    };
    let walk_ns = walks.each_mut().map(|w| {
        let way = w.way().as_str();
        let ns = best(Box::new(|| {
            w.tick(20, |_, r| {
                std::hint::black_box(r);
            })
            .expect("a walk");
        }));
        (way, ns)
    });
    let one_ns = best(Box::new(|| read(&one)));
    let four_ns = best(Box::new(|| read(&four)));
    println!(
        "lane cost, {CGROUPS} cgroups, kernel {}: walk {walk_ns:?} ns a cgroup; pread of memory.current {one_ns} ns, of four files {four_ns} ns",
        text(Path::new("/proc/sys/kernel"), "osrelease").unwrap_or_default().trim()
    );
}

#[test]
fn the_last_reading_before_a_kill_is_young() {
    if !guard("the_last_reading_before_a_kill_is_young") {
        return;
    }
    // emulation is many times slower than a machine: the budget must not decide here
    let agent = Agent::start_with("lane", "[lane]\ncpu_budget_percent = 30\n");
    assert_ne!(agent.status()["lane"]["source"], "pread", "{}", agent.status()["lane"]);
    let mut last = Vec::new();
    for seconds in [1u64, 5, 2, 3] {
        let pod = Pod::new(None);
        let app = pod.container(Some(64 * MIB));
        let mut ramp = Process::spawn(&format!("ramp 100 {seconds}"), &app);
        assert_eq!(ramp.wait().1, Some(9));
        let i = agent.closed_incident_of(&app, Duration::from_secs(60));
        last.push(i["last_sample_before_ms"].as_f64().expect("a last sample"));
        let table = rows(&agent.export(i["id"].as_str().expect("id"), "parquet"));
        let of_app: Vec<_> = table.iter().filter(|r| r.cgroup_id == app.id().cast_signed()).collect();
        let history: Vec<_> = of_app.iter().filter(|r| r.cause == "history").collect();
        assert!(history.len() > 20, "{} rows", history.len());
        let limit = Some((64 * MIB).cast_signed());
        assert!(history.iter().skip(5).all(|r| r.memory_max == limit), "the limit is in the history");
        // in place of the lane, where a warning has started a burst
        let mut fast = of_app.iter().filter(|r| r.cause != "base");
        assert!(fast.any(|r| r.memory_current > Some((50 * MIB).cast_signed())));
    }
    println!("last reading before the kill, ms: {last:?}; {}", agent.status()["lane"]);
    assert!(last.iter().all(|ms| (0.0..1000.0).contains(ms)), "{last:?}");
    assert!(agent.stop());
}

#[test]
fn by_pread_the_agent_tells_the_same_story() {
    if !guard("by_pread_the_agent_tells_the_same_story") {
        return;
    }
    let agent = Agent::start_with("pread", "[lane]\nsource = \"pread\"\n");
    let status = agent.status();
    assert_eq!(status["lane"]["source"], "pread", "{status}");
    let rung =
        status["ladder"]["hooks"].as_array().and_then(|h| h.iter().find(|h| h["event"] == "lane")).cloned();
    assert_eq!(rung.expect("a rung")["mechanism"], "pread");
    let pod = Pod::new(None);
    let app = pod.container(Some(64 * MIB));
    let mut ramp = Process::spawn("ramp 100 3", &app);
    assert_eq!(ramp.wait().1, Some(9));
    let i = agent.closed_incident_of(&app, Duration::from_secs(60));
    let table = rows(&agent.export(i["id"].as_str().expect("id"), "parquet"));
    let history: Vec<_> =
        table.iter().filter(|r| r.cgroup_id == app.id().cast_signed() && r.cause == "history").collect();
    assert!(history.len() > 10, "{} rows", history.len());
    assert!(history.iter().all(|r| r.memory_current.is_some() && r.memory_max.is_none()));
    assert!(agent.stop());
}
