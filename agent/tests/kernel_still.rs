//! memory.stat is read when it can have changed and not otherwise, against a real kernel: nothing is missed of a container
//! that wakes, and one that sleeps, is frozen or is empty costs no reading. Run as root with --test-threads=1 where cgroup v2
//! has the memory controller (the test VM); elsewhere it says that it was skipped and why.

#[path = "kernel_lane/tree.rs"]
#[expect(dead_code, reason = "the tree of the lane's tests, of which these need a part")]
mod tree;

use agent_ebpf::LaneDue;
use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use fgm::accumulator::{NodeNames, Pending};
use fgm::catalogue;
use fgm::cgroup::{Meta, identify};
use fgm::clock::{Offset, ktime_ns};
use fgm::lane::Ring;
use fgm::names::{Cause, CgroupId, Table};
use fgm::probes::{Look, Walk};
use fgm::recorder;
use fgm::sampler::{Plan, Sampler, Target};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tree::{Shell, Tree, id, text};

const ROOT: &str = "/sys/fs/cgroup";
const HOT: Plan<'_> =
    Plan { cause: Cause::Base, period_ms: 1000, burst: None, slow: false, loose: false, in_lane: false };
/// Each is due in each walk.
const ALL: LaneDue = LaneDue { period_ns: 1, after_ns: 0, span_ns: 1 };
/// What an idle container needs at the most to be found still: the kernel sums up every two seconds.
const TRIES: usize = 8;

fn guard(name: &str) -> bool {
    let controllers = fs::read_to_string(format!("{ROOT}/cgroup.controllers")).unwrap_or_default();
    let reason = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if !controllers.split_whitespace().any(|c| c == "memory") {
        "no cgroup v2 with the memory controller at /sys/fs/cgroup"
    } else {
        return true;
    };
    println!("SKIPPED {name}: {reason}");
    false
}

/// A container, the walk over it and the sampler that follows it, as the agent's loop has them.
struct Followed {
    dir: std::path::PathBuf,
    walk: Walk,
    sampler: Sampler,
    target: Target,
}

impl Followed {
    fn new(tree: &Tree, dir: &Path, series: &recorder::Series) -> Self {
        let mut sampler = Sampler::new(Path::new(ROOT), series, 4096);
        sampler.set_walks(true);
        let path = format!("/{}", dir.strip_prefix(ROOT).expect("below the root").display());
        let meta = Arc::new(Meta { id: CgroupId(id(dir)), parent_id: None, identity: identify(&path), path });
        let mut target = sampler.open(&meta, Ring::new(1 << 16, u64::MAX), ktime_ns()).expect("there");
        // as an old one: a young cgroup has everything read
        target.first_seen_ns = 0;
        Self { dir: dir.to_owned(), walk: Walk::start(&tree.path).expect("the walk"), sampler, target }
    }

    fn look(&mut self) -> Option<u32> {
        let (target, mut told) = (&mut self.target, None);
        let look = |look: Look<'_>| {
            if look.id() == target.meta.id {
                let reading = look.reading();
                target.still.look(target.ring.is_news(&reading), look.mark());
                target.ring.push(reading);
                told = look.mark();
            }
        };
        self.walk.look(20, ALL, look).expect("a walk");
        told
    }

    /// A look and a row; whether memory.stat was taken over from the row before. It must be as its file is either way.
    fn row(&mut self) -> bool {
        for _ in 0..20 {
            let mark = self.look();
            let taken_over = self.sampler.taken_over;
            let mut pending = Pending::default();
            self.sampler.sample(&mut self.target, HOT, Offset::measure(), &mut pending).expect("there");
            // read behind the row: a reading before it would have made the kernel sum up what the row is to miss nothing of
            let file = numbers(&self.dir);
            let names = NodeNames { cluster: None, node: "n".into(), boot_id: "b".into() };
            let batch = pending.batch(Table::Samples, &names).expect("a batch");
            let row: Vec<_> = file
                .iter()
                .map(|(name, _)| {
                    let column = batch.column_by_name(name).expect("a column").as_primitive::<Int64Type>();
                    (name.clone(), column.is_valid(0).then(|| column.value(0)))
                })
                .collect();
            let files =
                batch.column_by_name("files_read").expect("bits").as_primitive::<Int64Type>().value(0);
            assert_eq!(files >> catalogue::file("memory.stat").expect("known") & 1, 1, "its bit is set");
            let is_taken_over = self.sampler.taken_over > taken_over;
            if row == file {
                return is_taken_over;
            }
            // it moved between row and file, or the file made the kernel sum up what it had not: the next look must see it
            assert!(
                self.look() != mark,
                "the row is other than the file, and no mark says so: {row:?} {file:?}"
            );
        }
        panic!("memory.stat never stood still for the time of a reading");
    }

    /// Rows until one is taken over.
    fn comes_to_rest(&mut self, what: &str) {
        for _ in 0..TRIES {
            if self.row() {
                return;
            }
            std::thread::sleep(Duration::from_millis(700));
        }
        panic!("{what}: memory.stat is read again and again");
    }
}

/// memory.stat by plain text work, as the columns have it.
fn numbers(dir: &Path) -> Vec<(String, Option<i64>)> {
    let file = &catalogue::FILES[catalogue::file("memory.stat").expect("known")];
    let text = text(dir, "memory.stat").expect("memory.stat");
    let value = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.parse().ok());
    file.columns.iter().map(|c| (c.name.to_owned(), value(c.key))).collect()
}

#[test]
fn a_container_that_sleeps_costs_no_reading_and_one_that_wakes_is_read_at_once() {
    if !guard("a_container_that_sleeps_costs_no_reading_and_one_that_wakes_is_read_at_once") {
        return;
    }
    let tree = Tree::new("still", "+memory +pids +cpu");
    let dir = tree.make("web", "");
    let go = "/tmp/fgm-still-go";
    let _ = fs::remove_file(go);
    fs::create_dir_all("/tmp").expect("a folder");
    // a pipe: who waits for it uses no CPU
    assert!(std::process::Command::new("mkfifo").arg(go).status().expect("mkfifo").success());
    let script = format!("while read -r n < {go}; do x=$(head -c $n /dev/zero | tr '\\0' x); done");
    let _shell = Shell::spawn(&dir, &script);
    std::thread::sleep(Duration::from_secs(1));
    let (recorder, series) = recorder::build();
    metrics::with_local_recorder(&recorder, || {
        let mut f = Followed::new(&tree, &dir, &series);
        assert!(f.look().is_some(), "this kernel gives no mark of memory.stat");
        f.comes_to_rest("asleep");

        let mark = f.look();
        fs::write(go, "6000000\n").expect("the pipe");
        std::thread::sleep(Duration::from_secs(1));
        assert!(!f.row(), "it ran: its memory.stat is read");
        std::thread::sleep(Duration::from_secs(4));
        assert_ne!(f.look(), mark, "other numbers have another mark");
        f.comes_to_rest("asleep again");

        // somebody else takes its memory away: nobody in it runs
        fs::write(dir.join("memory.reclaim"), "1M").ok();
        f.row();
        f.comes_to_rest("after a reclaim");

        fs::write(dir.join("cgroup.freeze"), "1").expect("frozen");
        f.comes_to_rest("frozen");
        let late = std::thread::spawn(move || fs::write(go, "6000000\n"));
        std::thread::sleep(Duration::from_millis(500));
        // the pipe wakes it for as long as it takes to be frozen again
        f.comes_to_rest("frozen still");
        fs::write(dir.join("cgroup.freeze"), "0").expect("thawed");
        late.join().expect("joins").expect("the pipe");
        std::thread::sleep(Duration::from_secs(1));
        assert!(!f.row(), "it has woken and is read");

        fs::write(dir.join("cgroup.kill"), "1").expect("killed");
        std::thread::sleep(Duration::from_secs(1));
        assert!(!f.row(), "it has become empty: what was given back is read");
        f.comes_to_rest("empty");
    });
    let _ = fs::remove_file(go);
}
