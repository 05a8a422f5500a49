//! The loop's state over a tree of ordinary files: what events, walks and vanishing directories leave behind.

mod bursts;
mod cost;
mod heap;
mod ledger;
mod losses;
mod names;
mod slow;
mod tables;
mod truth;
mod warnings;

use super::inits::By;
use super::state::State;
use crate::accumulator::{NodeNames, Pending};
use crate::clock::ktime_ns;
use crate::config::Config;
use crate::discovery::{Rules, Tree};
use crate::event::{Exit, KernelEvent, Kind, OomKill, OomLimit, Task, VictimMemory, What};
use crate::names::{CgroupId, Table};
use crate::probes::{KindLoss, Losses};
use crate::recorder;
use crate::sampler::Sampler;
use arrow::array::{ArrayAccessor, AsArray, StringArray};
use arrow::datatypes::{Int32Type, Int64Type};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A root, and the state over it.
struct Stage {
    dir: tempfile::TempDir,
    state: State,
    /// What flushes and rotations took.
    handed_over: Vec<Arc<Pending>>,
}

fn on_stage(max_cgroups: usize, has_events: bool, test: impl FnOnce(&mut Stage)) {
    on_stage_of(max_cgroups, has_events, 1 << 16, test);
}

/// With so many open files allowed.
fn on_stage_of(max_cgroups: usize, has_events: bool, files: usize, test: impl FnOnce(&mut Stage)) {
    // a file system in memory, where there is one: 10,000 directories are made
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
    let (recorder, series) = recorder::build();
    let mut config = Config { cgroup_root: dir.path().to_owned(), ..Config::default() };
    config.sampling.max_cgroups = max_cgroups;
    // these cgroups are no kernel's
    config.lane.source = crate::config::Source::Pread;
    let names = NodeNames { cluster: None, node: "n".into(), boot_id: "b".into() };
    let tree = Tree::new(dir.path(), Rules::default(), max_cgroups).expect("a root");
    let sampler = metrics::with_local_recorder(&recorder, || Sampler::new(dir.path(), &series, files));
    let lane = super::lane::Lane::start(&config, None).expect("files");
    let state = State::new(config, names, tree, sampler, series, lane, has_events);
    let mut stage = Stage { dir, state, handed_over: Vec::new() };
    metrics::with_local_recorder(&recorder, || test(&mut stage));
}

fn id_of(path: &Path) -> CgroupId {
    CgroupId(fs::metadata(path).expect("stat").ino())
}

impl Stage {
    /// Makes a directory that looks like a cgroup.
    fn make(&self, path: &str) -> PathBuf {
        let path = self.dir.path().join(path);
        fs::create_dir_all(&path).expect("mkdir");
        for (name, text) in [
            ("memory.current", "8192\n"),
            ("cpu.stat", "usage_usec 1\n"),
            ("memory.max", "16384\n"),
            ("cgroup.procs", ""),
        ] {
            fs::write(path.join(name), text).expect("write");
        }
        path
    }

    fn tell(&mut self, what: What) {
        let ktime_ns = ktime_ns();
        self.state.react(KernelEvent { ktime_ns, source: "test", what });
    }

    fn tell_end(&mut self, id: CgroupId, path: &str) {
        let parent_id = Some(self.state.tree.root());
        self.tell(What::CgroupEnd { cgroup_id: id, parent_id, path: path.to_owned() });
    }

    fn tell_start(&mut self, path: &Path) {
        let parent = id_of(path.parent().expect("a parent"));
        let rest = path.strip_prefix(self.dir.path()).expect("below the root");
        self.tell(What::CgroupStart {
            cgroup_id: id_of(path),
            parent_id: Some(parent),
            path: format!("/{}", rest.display()),
        });
    }

    /// One turn of the loop at this instant, without probes.
    fn turn(&mut self, now: u64) {
        self.handed_over.extend(self.state.tick(now).map(|job| job.pending));
        if self.state.has_vanished() {
            self.state.forget_vanished();
        }
    }

    fn events(&self, kind: Kind) -> usize {
        self.all().flat_map(|p| &p.events).filter(|(e, _)| e.kind == kind).count()
    }

    /// Rows handed over and rows still held.
    fn all(&self) -> impl Iterator<Item = &Pending> {
        self.handed_over.iter().map(|p| &**p).chain([&self.state.pending])
    }

    fn tables(&self) -> usize {
        self.all().map(|p| p.processes.len()).sum()
    }
}

fn task(pid: u32, cgroup: CgroupId) -> Task {
    Task { pid: Some(pid), comm: "hog".into(), cgroup_id: Some(cgroup) }
}

fn kill(pid: u32, cgroup: CgroupId) -> What {
    What::OomKill(Box::new(OomKill {
        victim: task(pid, cgroup),
        uid: None,
        oom_score_adj: None,
        memory: VictimMemory::default(),
        trigger: task(pid, cgroup),
        limit: OomLimit::Unknown,
        already_dying: None,
    }))
}

#[test]
fn a_walk_that_is_faster_than_the_events_loses_none_of_them() {
    on_stage(100, true, |s| {
        let path = s.make("a.service");
        let id = id_of(&path);
        s.turn(ktime_ns());
        assert!(s.state.targets.contains_key(&id));
        s.tell_start(&path);
        assert_eq!((s.events(Kind::CgroupStart), s.state.outside), (1, 0));
        assert!(s.state.inits.is_born_here(id));
        fs::remove_dir_all(&path).expect("rmdir");
        s.state.rescan(ktime_ns());
        // the kernel's word arrives before the end of the round
        s.tell_end(id, "/a.service");
        s.state.forget_vanished();
        assert_eq!((s.events(Kind::CgroupEnd), s.state.targets.len()), (1, 1));
        assert_eq!(s.state.pending.events.last().map(|(e, _)| e.source), Some("test"));
    });
}

#[test]
fn without_events_an_end_found_by_the_walk_is_told() {
    on_stage(100, false, |s| {
        let path = s.make("a.service");
        s.turn(ktime_ns());
        fs::remove_dir_all(&path).expect("rmdir");
        s.state.rescan(ktime_ns());
        s.state.forget_vanished();
        assert_eq!(s.events(Kind::CgroupEnd), 1);
        assert_eq!(s.state.pending.events.last().map(|(e, _)| e.source), Some("files"));
    });
}

#[test]
fn the_end_of_one_whose_birth_was_lost_is_told_once_and_of_no_other() {
    on_stage(100, true, |s| {
        s.turn(ktime_ns());
        let (lost, outside) = (CgroupId(1 << 60), CgroupId(1 << 61));
        s.tell_end(lost, "/a.service");
        let (event, meta) = s.state.pending.events.last().cloned().expect("its end");
        assert_eq!((event.kind, event.cgroup_id), (Kind::CgroupEnd, Some(lost)));
        assert_eq!(meta.map(|m| m.path.clone()), Some("/a.service".to_owned()));
        // another root's, and one that the rules pass over
        let parent_id = Some(CgroupId(1 << 62));
        s.tell(What::CgroupEnd { cgroup_id: outside, parent_id, path: "/elsewhere/b.service".into() });
        s.tell_end(CgroupId((1 << 61) + 1), "/no-container");
        assert_eq!((s.events(Kind::CgroupEnd), s.state.outside), (1, 2));
        // the files were faster than the kernel's word
        let path = s.make("c.service");
        let id = id_of(&path);
        s.tell_start(&path);
        fs::remove_dir_all(&path).expect("rmdir");
        s.state.rescan(ktime_ns());
        s.state.forget_vanished();
        s.tell_end(id, "/c.service");
        assert_eq!(s.events(Kind::CgroupEnd), 2);
    });
}

#[test]
fn a_lost_birth_is_looked_for() {
    on_stage(100, true, |s| {
        s.turn(ktime_ns());
        let path = s.make("a.service");
        let mut losses = Losses { kinds: Vec::new(), undecodable: 0 };
        losses.kinds.push(KindLoss {
            kind: "cgroup_start",
            lost: 1,
            cut: 0,
            lost_per_cpu: vec![1],
            cut_per_cpu: vec![0],
        });
        s.state.note_losses(&losses);
        s.turn(ktime_ns());
        assert!(s.state.targets.contains_key(&id_of(&path)));
        assert_eq!(s.state.ledger.totals()["events"]["lost"]["ring_full"], 1);
    });
}

#[test]
fn a_kill_in_a_container_whose_birth_was_not_told_is_an_incident() {
    on_stage(100, true, |s| {
        s.turn(ktime_ns());
        let path = s.make(&format!("docker/{CID}"));
        s.state.last_rescan = 0;
        s.tell(kill(1, id_of(&path)));
        assert_eq!((s.state.pending.incidents.len(), s.state.outside), (1, 0));
        let walked = s.state.last_rescan;
        s.tell(kill(1, CgroupId(u64::MAX)));
        assert_eq!((s.state.outside, s.state.last_rescan), (1, walked), "outside the root: no walk for each");
    });
}

#[test]
fn a_suppressed_burst_stands_in_the_incident_of_its_first_event() {
    on_stage(100, true, |s| {
        let path = s.make(&format!("docker/{CID}"));
        s.turn(ktime_ns());
        s.state.config.budget.max_bursts = 0;
        s.state.trigger = crate::trigger::Trigger::new(super::bursts::settings(&s.state.config));
        s.tell(kill(1, id_of(&path)));
        let job = s.state.finish();
        let incident = job.pending.incidents.last().expect("an incident");
        assert_eq!(incident.lost[0].reason, "burst_budget");
        assert_eq!(incident.lost[0].rows, 200);
        assert!(incident.summary.contains("200 rows of samples (burst_budget)"), "{}", incident.summary);
        assert_eq!(s.state.ledger.totals()["samples"]["lost"]["burst_budget"], 200);
    });
}

#[test]
fn a_storm_of_kills_makes_one_revision_a_rotation() {
    on_stage(100, true, |s| {
        let path = s.make(&format!("docker/{CID}"));
        s.turn(ktime_ns());
        for pid in 1..500 {
            s.tell(kill(pid, id_of(&path)));
        }
        let got: Vec<_> = s.state.pending.incidents.iter().map(|i| i.revision).collect();
        assert_eq!(got, [499]);
        assert_eq!(s.state.ledger.totals()["incidents"]["written"], 1);
        assert_eq!(s.events(Kind::OomKill), 499);
        let metrics = s.state.series.render();
        assert!(metrics.contains("fgm_incidents_total{kind=\"oom_kill\"} 1\n"), "one incident: {metrics}");
    });
}

/// Who has itself killed a thousand times at once gets what its burst would have, and its neighbour all that it should.
#[test]
fn a_pod_that_triggers_all_the_time_takes_no_more_than_its_burst() {
    on_stage(100, true, |s| {
        let hostile = s.make(&format!("docker/{CID}"));
        let quiet = s.make(&format!("docker/{}0", &CID[1..]));
        for path in [&hostile, &quiet] {
            fs::write(path.join("cgroup.procs"), format!("{}\n", std::process::id())).expect("write");
        }
        s.turn(ktime_ns());
        let period = s.state.trigger.settings(Kind::OomKill).period_ns;
        let (tables, begun) = (s.tables(), ktime_ns());
        for pid in 1..=1000 {
            s.tell(kill(pid, id_of(&hostile)));
        }
        let periods = usize::try_from((ktime_ns() - begun) / period).expect("few");
        let rows_of = |s: &Stage, path: &Path| {
            let batch = s.state.pending.batch(Table::Samples, &s.state.names).expect("a batch");
            let id = i64::try_from(id_of(path).0).expect("small");
            let ids = batch.column_by_name("cgroup_id").expect("ids").as_primitive::<Int64Type>();
            let cause = batch.column_by_name("cause").expect("cause").as_dictionary::<Int32Type>();
            let cause = cause.downcast_dict::<StringArray>().expect("text");
            // not history: the lane looks between two kills
            (0..batch.num_rows()).filter(|n| ids.value(*n) == id && cause.value(*n) == "burst").count()
        };
        let rows = rows_of(s, &hostile);
        assert!((1..=2 + periods).contains(&rows), "{rows} rows at a thousand events");
        let taken = s.tables() - tables;
        assert!((1..=2 + periods).contains(&taken), "{taken} process tables at a thousand events");
        assert_eq!(s.events(Kind::OomKill), 1000, "each kill is told");
        let before = s.tables();
        s.tell(kill(2000, id_of(&quiet)));
        assert_eq!((rows_of(s, &quiet), s.tables() - before), (1, 1));
        assert!(s.state.trigger.is_running(id_of(&quiet)));
    });
}

/// Old cgroups with small rings must not hide that young ones have large ones.
#[test]
fn all_lane_rings_together_stay_within_their_budget() {
    on_stage(4096, true, |s| {
        s.state.config.lane.memory_bytes = 1 << 16;
        let fill = |s: &mut Stage| {
            for target in s.state.targets.values_mut() {
                for n in 0..4000 {
                    let mut reading = crate::lane::Reading::new(1_000_000 * (n + 1), 20);
                    reading.set(crate::lane::Value::MemoryCurrent, n * 4096);
                    target.ring.push(reading);
                }
            }
            s.state.targets.values().map(|t| t.ring.bytes()).sum::<usize>()
        };
        let mut alive: Vec<PathBuf> = Vec::new();
        for wave in [300, 10, 100, 250] {
            while alive.len() > wave {
                let path = alive.pop().expect("one is left");
                let id = id_of(&path);
                fs::remove_dir_all(&path).expect("rmdir");
                s.tell_end(id, "");
            }
            while alive.len() < wave {
                let path = s.make(&format!("s{}.service", alive.len()));
                s.tell_start(&path);
                alive.push(path);
            }
            let bytes = fill(s);
            assert!(bytes <= 1 << 16, "{bytes} bytes with {wave} cgroups");
        }
    });
}

#[test]
fn pid_1_of_a_sandbox_inside_is_not_the_containers_init() {
    on_stage(100, true, |s| {
        let path = s.make(&format!("docker/{CID}"));
        let id = id_of(&path);
        fs::write(path.join("cgroup.procs"), "50\n51\n").expect("write");
        s.turn(ktime_ns());
        for ppid in [50, 7] {
            let exit = Exit {
                task: task(60, id),
                ppid: Some(ppid),
                inner_pid: Some(1),
                exit_code: Some(0),
                signal: None,
            };
            s.tell(What::Exit(exit));
        }
        let got: Vec<_> = s.state.pending.events.iter().map(|(e, _)| e.detail["is_init"].clone()).collect();
        assert_eq!(got, [false, true]);
    });
}

/// A runtime ends a pod's sandbox by SIGKILL each time that a pod ends.
#[test]
fn the_end_of_a_pods_sandbox_is_an_event_and_no_incident() {
    let pod = "kubepods/podd6f0b51a-8f3b-4c39-9d3f-1f6f1a3f7d10";
    for (folder, comm, incidents) in [(pod, "pause", 0), (pod, "app", 1), ("docker", "pause", 1)] {
        on_stage(100, true, |s| {
            let id = id_of(&s.make(&format!("{folder}/{CID}")));
            s.turn(ktime_ns());
            let task = Task { comm: comm.into(), ..task(60, id) };
            let exit = Exit { task, ppid: Some(7), inner_pid: Some(1), exit_code: None, signal: Some(9) };
            s.tell(What::Exit(exit));
            assert_eq!(s.events(Kind::Exit), 1, "{folder} {comm}");
            s.turn(ktime_ns());
            assert_eq!(s.all().map(|p| p.incidents.len()).sum::<usize>(), incidents, "{folder} {comm}");
        });
    }
}

#[test]
fn a_helper_of_the_runtime_is_not_taken_for_the_init() {
    on_stage(100, true, |s| {
        let path = s.make(&format!("docker/{CID}"));
        let id = id_of(&path);
        s.tell_start(path.parent().expect("docker"));
        s.tell_start(&path);
        fs::write(path.join("cgroup.procs"), "50\n").expect("write");
        s.state.inits.learn(id, 49, By::Oldest);
        let seen = s.state.targets[&id].first_seen_ns;
        let exit =
            Exit { task: task(49, id), ppid: Some(7), inner_pid: Some(49), exit_code: Some(0), signal: None };
        s.tell(What::Exit(exit.clone()));
        assert_eq!(s.state.inits.pid(id), None, "looked for again");
        s.state.inits.learn(id, 49, By::Oldest);
        let ktime_ns = seen + 2_000_000_000;
        let late = Task { comm: "runc:[0:PARENT]".into(), ..exit.task.clone() };
        let late = Exit { task: late, ..exit.clone() };
        s.state.react(KernelEvent { ktime_ns, source: "test", what: What::Exit(late) });
        assert_eq!(s.state.inits.pid(id), None, "however slow the node is");
        s.state.inits.learn(id, 49, By::Oldest);
        s.state.react(KernelEvent { ktime_ns, source: "test", what: What::Exit(exit.clone()) });
        // nobody goes on: it is still listed itself
        fs::write(path.join("cgroup.procs"), "49\n").expect("write");
        s.state.inits.forget(id);
        s.state.inits.learn(id, 49, By::Oldest);
        s.tell(What::Exit(exit));
        let events = s.state.pending.events.iter().filter(|(e, _)| e.kind == Kind::Exit);
        let got: Vec<_> = events.map(|(e, _)| e.detail["is_init"].clone()).collect();
        assert_eq!(got, [false, false, true, true]);
    });
}

#[test]
fn rows_of_every_table_count_towards_the_bound_of_memory() {
    on_stage(100, true, |s| {
        let path = s.make(&format!("docker/{CID}"));
        s.turn(ktime_ns());
        let (id, before) = (id_of(&path), s.state.pending.bytes());
        for _ in 0..1000 {
            let exit =
                Exit { task: task(9, id), ppid: None, inner_pid: None, exit_code: Some(0), signal: None };
            s.tell(What::Exit(exit));
        }
        assert!(s.state.pending.bytes() - before >= 1000 * 500);
    });
}

#[test]
fn process_tables_are_not_taken_all_at_once() {
    on_stage(1000, true, |s| {
        for n in 0..200 {
            let path = s.make(&format!("docker/{n:064x}"));
            fs::write(path.join("cgroup.procs"), format!("{}\n", std::process::id())).expect("write");
        }
        let mut now = ktime_ns();
        s.turn(now);
        while s.state.waiting() > 0 {
            s.turn(now);
        }
        let mut most = 0;
        for _ in 0..500 {
            let before = s.tables();
            now += 50_000_000;
            s.turn(now);
            most = most.max(s.tables() - before);
        }
        // 25 s: the first table of each, and the two of its own rhythm
        let all = s.tables();
        assert!((600..=800).contains(&all), "{all} tables");
        assert!(most <= 40, "{most} tables in one turn");
    });
}

/// 10,000 containers live and die; nothing of them stays.
#[test]
fn churn_returns_to_baseline() {
    on_stage(64, true, |s| {
        s.turn(ktime_ns());
        // other tests of this process have files of their own
        let root = s.dir.path().to_owned();
        let descriptors = || {
            let open = fs::read_dir("/proc/self/fd").expect("proc").flatten();
            open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(&root))).count()
        };
        let before = (s.state.tree.known(), s.state.targets.len());
        let before_fds = (s.state.sampler.descriptors().0, descriptors());
        let mut live = 0;
        for n in 0..10_000u64 {
            let path = s.make("web.service");
            let id = id_of(&path);
            s.tell_start(&path);
            // an incident stays until its window is over, which nobody turns the clock to here
            if n % 50 == 0 && n < 2500 {
                s.tell(kill(1, id));
            }
            if n % 3 == 0 {
                let exit = Exit {
                    task: task(1, id),
                    ppid: None,
                    inner_pid: None,
                    exit_code: Some(0),
                    signal: Some(9),
                };
                s.tell(What::Exit(exit));
            }
            fs::remove_dir_all(&path).expect("rmdir");
            if n % 2 == 0 {
                s.tell_end(id, "/web.service");
            } else {
                // nobody tells: a read finds out
                let plan = crate::sampler::Plan { slow: true, ..s.state.base_plan() };
                s.state.sample(id, plan);
                s.state.forget_vanished();
            }
            if n % 1000 == 999 {
                let now = ktime_ns();
                s.state.rotate(now);
            }
            // tables have come to their size by then
            if n == 2999 {
                live = heap::live_bytes();
            }
        }
        let kept = heap::live_bytes() - live;
        assert!(kept < 7_000, "{kept} bytes are kept of 7,000 cgroups that have gone");
        s.turn(ktime_ns() + 3600 * 1_000_000_000);
        assert_eq!(before, (s.state.tree.known(), s.state.targets.len()));
        assert_eq!(before_fds, (s.state.sampler.descriptors().0, descriptors()));
        assert_eq!((s.state.trigger.running(), s.state.bursts.len()), (0, 0));
        assert_eq!(s.state.story.next_deadline(), None);
        let totals = s.state.ledger.totals();
        assert_eq!(totals["events"]["written"], 10_000 * 2 + 50 + 3334, "{totals}");
        assert!(totals[Table::Samples.as_str()]["written"].as_u64() >= Some(10_000));
    });
}

#[test]
fn what_a_walk_finds_is_followed_in_slices_and_a_kill_jumps_the_queue() {
    on_stage(4096, true, |s| {
        for i in 0..2000 {
            s.make(&format!("s{i}.service"));
        }
        s.turn(ktime_ns());
        let waiting = s.state.waiting();
        assert!(waiting > 0 && s.state.targets.len() + waiting == 2001, "{waiting} wait");
        assert_eq!(s.state.next_due(), 0, "it goes on at once");
        let known = s.state.tree.nodes().map(|n| n.meta.id);
        let last = known.filter(|id| !s.state.targets.contains_key(id)).max().expect("one that waits");
        s.tell(kill(1, last));
        assert!(s.state.targets.contains_key(&last), "where something happens is not kept waiting");
        while s.state.waiting() > 0 {
            s.turn(ktime_ns());
        }
        assert_eq!(s.state.targets.len(), 2001);
    });
}

/// The loop may be further behind than an incident stays open: the end of its init still belongs to it, and is no second one.
#[test]
fn what_the_kernel_told_before_an_incident_was_over_belongs_to_it_however_late_it_is_heard() {
    on_stage(100, true, |s| {
        let path = s.make(&format!("docker/{CID}"));
        let id = id_of(&path);
        s.turn(ktime_ns());
        s.tell_start(&path);
        s.state.inits.learn(id, 7, By::Namespace);
        let killed = ktime_ns();
        s.tell(kill(7, id));
        let much_later = killed + 600 * 1_000_000_000;
        // the exit waits in the kernel's ring
        s.state.heard_ns = Some(killed);
        s.turn(much_later);
        let exit =
            Exit { task: task(7, id), ppid: None, inner_pid: Some(1), exit_code: None, signal: Some(9) };
        s.tell(What::Exit(exit));
        s.state.heard_ns = None;
        s.turn(much_later + 1);
        let last =
            s.all().flat_map(|p| &p.incidents).fold(std::collections::BTreeMap::new(), |mut all, i| {
                all.insert(i.id.clone(), i.clone());
                all
            });
        let kinds: Vec<_> = last.values().map(|i| (i.kind.as_str(), i.closed)).collect();
        assert_eq!(kinds, [("oom_kill", true)], "one death, one incident");
        let exit = last.values().next().and_then(|i| i.exit.as_ref()).and_then(|e| e.signal);
        assert_eq!(exit, Some(9), "which knows how the init ended");
    });
}
