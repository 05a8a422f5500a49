//! Process tables at events: who is in a cgroup when something happens in it, and what that may cost.

use super::*;
use crate::event::{Attribution, Kill, Outcome, Reclaim, Sent};

const SECOND: u64 = 1_000_000_000;

/// A service with this process in it and two base rows, of which the second has the files `after` where the first had `before`. How many tables
/// it has then (a service has none by rhythm), and how many events of a kind.
fn at_event(file: &str, before: &str, after: &str, kind: Kind) -> (usize, usize) {
    let mut out = (0, 0);
    on_stage(100, true, |s| {
        let path = service(s);
        fs::write(path.join(file), before).expect("write");
        s.turn(ktime_ns());
        s.turn(ktime_ns() + SECOND);
        assert_eq!(s.tables(), 0, "nothing has happened");
        fs::write(path.join(file), after).expect("write");
        s.turn(ktime_ns() + 2 * SECOND);
        out = (s.tables(), s.events(kind));
    });
    out
}

fn service(s: &Stage) -> PathBuf {
    let path = s.make("web.service");
    fs::write(path.join("cgroup.procs"), format!("{}\n", std::process::id())).expect("write");
    path
}

#[test]
fn a_warning_of_any_kind_has_the_table_of_its_cgroup() {
    let psi = |total| {
        let side = |side| format!("{side} avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n");
        side("some") + &side("full")
    };
    let throttled = |n| format!("usage_usec 1\nnr_periods {n}\nnr_throttled {n}\nthrottled_usec {n}\n");
    for (file, before, after, kind) in [
        ("memory.pressure", psi(0), psi(3_000_000_000_u64), Kind::PsiStall),
        ("io.pressure", psi(0), psi(3_000_000_000), Kind::PsiStall),
        ("cpu.stat", throttled(0), throttled(100), Kind::CpuThrottled),
        ("pids.events", "max 0\n".into(), "max 3\n".into(), Kind::ForkLimit),
        ("memory.events", "high 0\nmax 0\n".into(), "high 2\nmax 0\n".into(), Kind::MemoryHigh),
        ("memory.events", "high 0\nmax 0\n".into(), "high 0\nmax 2\n".into(), Kind::MemoryMax),
    ] {
        assert_eq!(at_event(file, &before, &after, kind), (1, 1), "{file} {}", kind.as_str());
    }
}

#[test]
fn what_the_kernel_tells_has_the_table_of_its_cgroup() {
    let signal = |id| {
        What::Kill(Box::new(Kill {
            target: task(7, id),
            target_inner_pid: Some(1),
            sender: task(8, id),
            sender_uid: Some(0),
            sender_parent: task(9, id),
            signal: 9,
            sent: Sent::ByTask,
            outcome: Outcome::Delivered,
        }))
    };
    let attribution = Attribution::Memcg;
    let reclaim =
        |cgroup_id| What::Reclaim(Reclaim { cgroup_id, attribution, count: 1, total_ns: 1, longest_ns: 1 });
    let frozen = |cgroup_id| What::Frozen { cgroup_id, frozen: true };
    let all: [(Kind, &dyn Fn(CgroupId) -> What); 3] =
        [(Kind::Kill, &signal), (Kind::MemoryReclaim, &reclaim), (Kind::Frozen, &frozen)];
    for (kind, what) in all {
        on_stage(100, true, |s| {
            let id = id_of(&service(s));
            s.turn(ktime_ns());
            s.tell(what(id));
            assert_eq!((s.tables(), s.events(kind)), (1, 1), "{}", kind.as_str());
        });
    }
}

/// A switched-off kind and one in its cool-down fire nothing, so that nothing is read for them.
#[test]
fn what_does_not_fire_has_no_table() {
    on_stage(100, true, |s| {
        let path = service(s);
        s.state.config.trigger.cpu_throttled.enabled = false;
        s.state.trigger = crate::trigger::Trigger::new(super::super::bursts::settings(&s.state.config));
        let stat = |n| format!("usage_usec 1\nnr_periods {n}\nnr_throttled {n}\n");
        for n in 0..3 {
            fs::write(path.join("cpu.stat"), stat(n * 100)).expect("write");
            s.turn(ktime_ns() + n * SECOND);
        }
        assert_eq!((s.events(Kind::CpuThrottled), s.tables()), (1, 0));
    });
}

/// Whoever may freeze his own cgroups may do so all the time.
#[test]
fn a_storm_of_freezing_costs_a_few_tables() {
    on_stage(100, true, |s| {
        let id = id_of(&service(s));
        s.turn(ktime_ns());
        let begun = ktime_ns();
        for n in 0..2000 {
            s.tell(What::Frozen { cgroup_id: id, frozen: n % 2 == 0 });
        }
        let most = 1 + usize::try_from((ktime_ns() - begun) / 50_000_000).expect("few");
        assert!((1..=most).contains(&s.tables()), "{} tables, {most} at the most", s.tables());
        assert_eq!(s.events(Kind::Frozen), 2000);
    });
}
