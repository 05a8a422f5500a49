//! Properties of the trigger: within budget, fair, and always back to base.

use super::*;
use proptest::prelude::*;

const S: u64 = 1_000_000_000;

fn settings(rows_per_second: u64, max_concurrent: usize) -> Settings {
    let kind = KindSettings {
        enabled: true,
        period_ns: S / 20,
        length_ns: 10 * S,
        cool_down_ns: 0,
        history_ns: 60 * S,
    };
    let mut kinds = [kind; KINDS];
    kinds[Kind::CpuThrottled as usize].cool_down_ns = 60 * S;
    kinds[Kind::PsiStall as usize].enabled = false;
    Settings { kinds, rows_per_second, max_concurrent }
}

fn request(id: u64, kind: Kind) -> Request {
    Request { cgroup: CgroupId(id), pod: CgroupId(1000 + id), kind, rows: 2 }
}

fn trigger() -> Trigger {
    Trigger::new(settings(10_000, 3))
}

fn count(t: &mut Trigger, from: u64, to: u64) -> (u64, u64) {
    let (mut taken, mut missed, mut now) = (0, 0, from);
    while now < to {
        t.due(now, |d| {
            taken += 1;
            missed += d.late;
        });
        t.expire(now);
        now += S / 100;
    }
    (taken, missed)
}

#[test]
fn a_burst_has_its_rate_and_its_length() {
    let mut t = trigger();
    assert_eq!(t.fire(request(1, Kind::OomKill), S), Decision::Start { burst: 1 });
    assert_eq!(t.next_due(), Some(S));
    assert_eq!(count(&mut t, S, 30 * S), (200, 0));
    assert_eq!((t.running(), t.next_due()), (0, None));
}

#[test]
fn overlapping_triggers_extend_one_burst() {
    let mut t = trigger();
    t.fire(request(1, Kind::OomKill), S);
    assert_eq!(t.fire(request(1, Kind::LimitNear), 6 * S), Decision::Extend { burst: 1 });
    assert_eq!(count(&mut t, S, 40 * S), (300, 0));
}

#[test]
fn a_stall_is_told_as_late() {
    let mut t = trigger();
    t.fire(request(1, Kind::OomKill), 0);
    let mut got = Vec::new();
    t.due(S, |d| got.push(d));
    assert_eq!(got, [Due { cgroup: CgroupId(1), burst: 1, period_ns: Some(S / 20), late: 20, budget: 0 }]);
}

#[test]
fn a_kind_cools_down_and_a_disabled_one_never_fires() {
    let mut t = trigger();
    assert!(matches!(t.fire(request(1, Kind::CpuThrottled), 0), Decision::Start { .. }));
    assert_eq!(
        t.fire(request(1, Kind::CpuThrottled), S),
        Decision::Suppress { why: Suppressed::CoolDown, samples: 20 },
        "the second after the burst that runs"
    );
    assert!(
        matches!(t.fire(request(1, Kind::LimitNear), S), Decision::Extend { .. }),
        "another kind does not wait"
    );
    t.expire(60 * S);
    assert!(matches!(t.fire(request(1, Kind::CpuThrottled), 60 * S), Decision::Start { .. }));
    assert_eq!(
        t.fire(request(1, Kind::PsiStall), 60 * S),
        Decision::Suppress { why: Suppressed::Disabled, samples: 0 }
    );
}

#[test]
fn a_kill_takes_the_place_of_a_warning_never_the_other_way() {
    let mut t = trigger();
    for i in 1..=3 {
        t.fire(request(i, Kind::LimitNear), i);
    }
    assert_eq!(
        t.fire(request(4, Kind::LimitNear), 10),
        Decision::Suppress { why: Suppressed::TooManyBursts, samples: 200 }
    );
    assert!(matches!(t.fire(request(5, Kind::OomKill), 10), Decision::Start { .. }));
    assert!(!t.is_running(CgroupId(1)) && t.is_running(CgroupId(5)));
    assert_eq!(t.take_evicted(), [(CgroupId(1), 200)], "and what it will not take is told");
    t.fire(request(6, Kind::OomKill), 10);
    t.fire(request(7, Kind::OomKill), 10);
    assert_eq!(
        t.fire(request(9, Kind::LimitNear), 10),
        Decision::Suppress { why: Suppressed::TooManyBursts, samples: 200 }
    );
}

#[test]
fn when_the_budget_is_short_warnings_slow_down_first() {
    // 40 rows a second each at full rate; room for one and a half
    let mut t = Trigger::new(settings(60, 10));
    t.fire(request(1, Kind::LimitNear), 0);
    t.fire(request(2, Kind::OomKill), 0);
    let mut got = BTreeMap::new();
    for step in 0..20 {
        t.due(step * S / 20, |d| *got.entry(d.cgroup.0).or_insert(0) += u64::from(d.period_ns.is_some()));
    }
    assert_eq!((got[&2], got[&1]), (20, 10));
    let mut budget = 0;
    t.due(S, |d| budget += d.budget);
    assert_eq!(budget, 1, "what a slowed burst leaves out is told");
}

#[test]
fn a_pod_of_many_containers_does_not_starve_its_neighbour() {
    let mut t = Trigger::new(settings(80, 100));
    for i in 1..=50 {
        t.fire(Request { pod: CgroupId(7), ..request(i, Kind::OomKill) }, i);
    }
    t.fire(Request { pod: CgroupId(8), ..request(99, Kind::OomKill) }, 60);
    let mut got = 0;
    for step in 0..20 {
        t.due(S + step * S / 20, |d| got += u64::from(d.cgroup == CgroupId(99) && d.period_ns.is_some()));
    }
    assert_eq!(got, 20, "the neighbour has its full rate");
}

#[test]
fn what_many_events_ask_for_at_once_is_lost_once() {
    let mut t = Trigger::new(settings(100, 0));
    let lost: u64 = [0, 0, S, 30 * S]
        .into_iter()
        .map(|now| match t.fire(request(4, Kind::OomKill), now) {
            Decision::Suppress { samples, .. } => samples,
            _ => 0,
        })
        .sum();
    assert_eq!(lost, 21 * 20);
}

#[test]
fn many_events_in_each_period_lose_each_sample_once() {
    let mut t = Trigger::new(settings(100, 0));
    let mut lost = 0;
    for ms in 0..5000 {
        match t.fire(request(4, Kind::OomKill), ms * S / 1000) {
            Decision::Suppress { samples, .. } => lost += samples,
            other => panic!("{other:?}"),
        }
    }
    // the last one asks for samples up to 4.999 + 10 s
    assert_eq!(lost, 300);
}

#[test]
fn a_pod_that_has_all_places_leaves_one_to_a_neighbour() {
    let mut t = Trigger::new(settings(1000, 64));
    for i in 1..=64 {
        t.fire(Request { pod: CgroupId(7), ..request(i, Kind::OomKill) }, i);
    }
    for kind in [Kind::OomKill, Kind::LimitNear] {
        let neighbour = Request { pod: CgroupId(8), ..request(100 + kind as u64, kind) };
        assert!(matches!(t.fire(neighbour, 70), Decision::Start { .. }), "{kind:?}");
    }
    assert_eq!(t.take_evicted().iter().map(|(c, _)| c.0).collect::<Vec<_>>(), [64, 63], "the last ones");
    let mut got: BTreeMap<u64, u64> = BTreeMap::new();
    for step in 0..20 {
        t.due(S + step * S / 20, |d| *got.entry(d.cgroup.0).or_default() += u64::from(d.period_ns.is_some()));
    }
    for kind in [Kind::OomKill, Kind::LimitNear] {
        assert_eq!(got[&(100 + kind as u64)], 20, "{kind:?} has its full rate");
    }
    let fifth = Request { pod: CgroupId(7), ..request(200, Kind::OomKill) };
    assert!(matches!(t.fire(fifth, S), Decision::Suppress { why: Suppressed::TooManyBursts, .. }));
}

const KINDS_TRIED: [Kind; 4] = [Kind::OomKill, Kind::LimitNear, Kind::CpuThrottled, Kind::MemoryMax];

proptest! {
    /// Whatever fires, no more bursts run than allowed, they take no more than the budget, none lasts longer than the
    /// longest, and silence ends them all and leaves nothing behind.
    #[test]
    fn never_above_budget_and_always_back_to_base(
        rows in 1u64..500,
        fires in proptest::collection::vec((0u64..8, 0usize..4, 0u64..3 * S), 1..200),
    ) {
        let mut t = Trigger::new(settings(rows, 5));
        let mut started: BTreeMap<u64, u64> = BTreeMap::new();
        let mut now = 0;
        for (cgroup, kind, wait) in fires {
            now += wait;
            t.expire(now);
            let r = Request { pod: CgroupId(cgroup / 2), ..request(cgroup, KINDS_TRIED[kind]) };
            let number = match t.fire(r, now) {
                Decision::Start { burst } => { started.insert(burst, now); Some(burst) }
                Decision::Extend { burst } => Some(burst),
                Decision::Suppress { .. } => None,
            };
            prop_assert!(t.running() <= 5);
            prop_assert!(t.rows_per_second() <= rows, "{} of {}", t.rows_per_second(), rows);
            if let Some(number) = number {
                prop_assert!(now <= started[&number] + LONGEST * 10 * S);
            }
        }
        t.expire(now + (LONGEST + 7) * 10 * S);
        prop_assert_eq!(t.running(), 0);
        prop_assert_eq!(t.next_due(), None);
        prop_assert!(t.resting.is_empty() && t.cooling.is_empty() && t.suppressed.is_empty());
    }

    /// Samples taken + late + over budget = samples due over the whole burst, however late the caller comes, and also for
    /// a burst that stands still.
    #[test]
    fn due_is_taken_plus_missed(steps in proptest::collection::vec(1u64..2 * S, 1..100), rows in 1u64..80) {
        let rows = if rows < 40 { 1 } else { rows };
        let mut t = Trigger::new(settings(rows, 3));
        t.fire(request(1, Kind::OomKill), 0);
        let (mut now, mut sum) = (0, 0);
        for step in steps {
            now += step;
            t.due(now, |d| sum += u64::from(d.period_ns.is_some()) + d.late + d.budget);
        }
        let expect = now.min(10 * S - 1) / (S / 20) + 1;
        prop_assert_eq!(sum, expect);
    }

    /// A thousand triggers a second from one pod change nothing for another pod's burst.
    #[test]
    fn a_storm_leaves_the_neighbour_alone(storm in proptest::collection::vec((1u64..20, 0usize..4), 1000)) {
        let mut t = Trigger::new(settings(200, 64));
        t.fire(Request { pod: CgroupId(8), ..request(99, Kind::OomKill) }, 0);
        let mut got = 0;
        for (i, (cgroup, kind)) in storm.into_iter().enumerate() {
            let now = i as u64 * S / 1000;
            t.fire(Request { pod: CgroupId(7), ..request(cgroup, KINDS_TRIED[kind]) }, now);
            t.due(now, |d| got += u64::from(d.cgroup == CgroupId(99) && d.period_ns.is_some()));
        }
        prop_assert_eq!(got, 20);
    }
}
