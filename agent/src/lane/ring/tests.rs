//! What the ring promises: all that was pushed comes out, in order, once, within the bounds.

use super::*;
use proptest::prelude::*;

const MS: u64 = 1_000_000;
const PAGE: u64 = 4096;
const HOUR: u64 = 3_600_000 * MS;

fn memory(ktime_ns: u64, memory_current: u64) -> Reading {
    let mut r = Reading::new(ktime_ns, 50);
    r.set(Value::MemoryCurrent, memory_current);
    r
}

fn filled(n: u64) -> Ring {
    let mut ring = Ring::new(1 << 20, HOUR);
    for i in 0..n {
        assert!(ring.push(memory(1000 * MS + i * 50 * MS, i * PAGE)));
    }
    ring
}

fn history(ring: &mut Ring, now: u64, window: u64) -> Vec<Reading> {
    let mut out = Vec::new();
    ring.take_history(now, window, |r| out.push(*r));
    out
}

#[test]
fn history_is_the_window_and_is_given_once() {
    let mut ring = filled(100);
    let now = 1000 * MS + 99 * 50 * MS;
    let first = history(&mut ring, now, 1000 * MS);
    assert_eq!(first.len(), 21);
    assert_eq!(first.last(), Some(&memory(now, 99 * PAGE)));
    assert!(history(&mut ring, now, 1000 * MS).is_empty());
    assert_eq!(history(&mut ring, now, 60_000 * MS).len(), 79, "what is older");
    ring.push(memory(now + 50 * MS, 7 * PAGE));
    assert_eq!(history(&mut ring, now + 60 * MS, 60_000 * MS).len(), 1);
}

#[test]
fn what_was_read_after_the_event_is_not_before_it() {
    let ring = filled(10);
    let kill = 1000 * MS + 4 * 50 * MS + 1;
    assert_eq!(ring.last_before(kill).and_then(|r| r.memory_current()), Some(4 * PAGE));
    assert_eq!(ring.last_before(10), None);
    assert_eq!(ring.newest().and_then(|r| r.memory_current()), Some(9 * PAGE));
}

#[test]
fn what_a_burst_wrote_is_found_but_not_given_again() {
    let mut ring = filled(2);
    ring.push_written(memory(2000 * MS, 7));
    assert!(!ring.push(memory(2000 * MS, 8)), "an instant is unique");
    assert_eq!(ring.last_before(u64::MAX).and_then(|r| r.memory_current()), Some(7));
    let rest = history(&mut ring, u64::MAX, u64::MAX);
    assert_eq!(rest.iter().map(|r| r.ktime_ns).collect::<Vec<_>>(), [1000 * MS, 1050 * MS]);
}

#[test]
fn what_a_short_history_left_out_is_given_by_a_long_one() {
    let mut ring = filled(100);
    let newest = ring.newest().expect("full").ktime_ns;
    let short = history(&mut ring, newest - 1000 * MS, 100 * MS).len();
    let later = history(&mut ring, newest - 200 * MS, 60 * MS).len();
    assert_eq!((short, later), (3, 2));
    // a burst takes the lane's place for a moment, and slows down again
    ring.push_written(memory(newest + 20 * MS, 7));
    ring.push(memory(newest + 40 * MS, 8));
    let rest = history(&mut ring, newest + 40 * MS, 60_000 * MS);
    assert_eq!(short + later + rest.len() + 1, 102, "each once, and the written one not at all");
    assert!(rest.is_sorted_by_key(|r| r.ktime_ns) && rest.iter().all(|r| r.ktime_ns != newest + 20 * MS));
    assert_eq!(history(&mut ring, newest + 40 * MS, 60_000 * MS), []);
}

#[test]
fn a_reading_that_became_a_row_is_found_and_those_around_it_are_given() {
    for written in [0u64, 3, 9] {
        let mut ring = Ring::new(1 << 20, HOUR);
        for i in 0..10 {
            ring.push(memory(1000 * MS + i * 50 * MS, 7 * PAGE));
            if i == written {
                ring.newest_is_written();
            }
        }
        let row = 1000 * MS + written * 50 * MS;
        assert_eq!(ring.last_before(row + 1).map(|r| r.ktime_ns), Some(row));
        let given: Vec<u64> = history(&mut ring, u64::MAX, u64::MAX).iter().map(|r| r.ktime_ns).collect();
        assert_eq!(given.len(), 9);
        assert!(!given.contains(&row), "{given:?}");
    }
}

#[test]
fn a_reading_is_repeated_only_where_it_is_the_newest() {
    let mut ring = Ring::new(1 << 20, HOUR);
    assert!(!ring.repeat(0, 900 * MS, 50), "there is none");
    ring.push(memory(1000 * MS, 7));
    assert!(ring.repeat(1000 * MS, 1050 * MS, 50));
    assert!(!ring.repeat(1000 * MS, 1100 * MS, 50), "another one came between");
    assert!(!ring.repeat(1050 * MS, 1100 * MS, 20), "another rhythm");
    assert!(!ring.repeat(1050 * MS, 1050 * MS, 50), "an instant is unique");
    ring.newest_is_written();
    assert!(!ring.repeat(1050 * MS, 1100 * MS, 50), "it is a row, which the entry must tell");
    ring.push(memory(1100 * MS, 7));
    assert!(ring.repeat(1100 * MS, 1150 * MS, 50));
    let given: Vec<_> = history(&mut ring, u64::MAX, u64::MAX);
    assert_eq!(given, [memory(1000 * MS, 7), memory(1100 * MS, 7), memory(1150 * MS, 7)]);
}

#[test]
fn readings_older_than_the_window_go() {
    let mut ring = Ring::new(1 << 20, 1000 * MS);
    for i in 0..1000 {
        ring.push(memory(i * 20 * MS + 1000, 0));
    }
    assert_eq!((ring.len(), ring.cut()), (51, 0));
}

#[test]
fn an_unchanged_reading_costs_two_bytes_at_the_most() {
    let mut ring = Ring::new(1 << 20, HOUR);
    let mut at = 5 * HOUR;
    for i in 0..1500u64 {
        // a scheduler's jitter: up to ±200 µs
        at += 20 * MS + i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 400_000 - 200_000;
        ring.push(memory(at, 99 * PAGE));
    }
    assert!(ring.entries.len() < 2 * 1500 + 3, "{} bytes", ring.entries.len());
}

/// A container that allocates, throttles, forks and reclaims, all in every single reading.
fn busy(cgroup: u64, i: u64, at: u64) -> Reading {
    let mut r = Reading::new(at, 20);
    let noise = (cgroup * 7919 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    use super::super::File;
    for file in
        [File::MemoryCurrent, File::SwapCurrent, File::MemoryEvents, File::PidsCurrent, File::MemoryMax]
    {
        r.read(file);
    }
    r.set(Value::MemoryCurrent, (50_000 + noise % 8192) * PAGE);
    r.set(Value::SwapCurrent, (noise % 512) * PAGE);
    r.set(Value::EventsMax, i * 40 + noise % 10);
    r.set(Value::EventsHigh, 0);
    r.set(Value::NrPeriods, i / 5);
    r.set(Value::NrThrottled, i / 6);
    r.set(Value::ThrottledUsec, i * 11_000 + noise % 1000);
    r.set(Value::PidsCurrent, 40 + noise % 20);
    r.set(Value::MemoryMax, 1 << 30);
    r
}

#[test]
fn thirty_seconds_of_200_busy_cgroups_at_50_hz_fit_in_8_mb() {
    const MEMORY: u64 = 8 << 20;
    let mut total = 0;
    for cgroup in 0..200 {
        let mut ring = Ring::new(capacity(MEMORY, 200), 31_000 * MS);
        let mut at = 9 * HOUR;
        let first = at + 20 * MS;
        for i in 0..1500 {
            at += 20 * MS + (i * 37 % 300) * 1000;
            assert!(ring.push(busy(cgroup, i, at)));
        }
        assert_eq!(ring.cut(), 0, "{} of {} bytes", ring.entries.len(), ring.room());
        assert_eq!((ring.len(), ring.oldest().map(|r| r.ktime_ns)), (1500, Some(first)));
        assert!(size_of::<Ring>() + ring.bytes() <= capacity(MEMORY, 200));
        total += size_of::<Ring>() + ring.bytes();
    }
    println!("200 busy rings: {total} bytes");
    assert!(total as u64 <= MEMORY);
}

#[test]
fn a_ring_made_smaller_keeps_the_newest() {
    let mut ring = filled(10_000);
    ring.set_capacity(4096);
    assert!(ring.bytes() <= 4096 + 64, "{}", ring.bytes());
    let got = history(&mut ring, u64::MAX, u64::MAX);
    assert_eq!(got.len(), ring.len());
    assert_eq!(got.last(), Some(&memory(1000 * MS + 9999 * 50 * MS, 9999 * PAGE)));
}

prop_compose! {
    fn any_reading()(step_us in prop_oneof![1u64..100, 19_000u64..21_000, 0u64..1 << 40], period_ms in prop_oneof![Just(20u64), 0u64..70_000],
                     have in prop_oneof![Just(0x3fff_u16), 0u16..1 << 14], files in 0u8..32,
                     values in proptest::array::uniform14(prop_oneof![0u64..5, any::<u64>(), (0u64..1 << 20).prop_map(|p| p * PAGE)])) -> (u64, Reading) {
        let mut r = Reading::new(0, period_ms);
        r.files = files;
        for (i, value) in values.into_iter().enumerate().filter(|(i, _)| have >> i & 1 == 1) {
            r.put(i, value);
        }
        (step_us, r)
    }
}

proptest! {
    #[test]
    fn what_comes_out_is_what_went_in_once_in_order_and_bounded(steps in proptest::collection::vec(any_reading(), 1..120), capacity in 0usize..6000, pause in 0usize..120) {
        let mut ring = Ring::new(capacity, u64::MAX);
        let mut pushed: Vec<Reading> = Vec::new();
        let mut got = Vec::new();
        let mut at_us = 5_000_000u64;
        for (i, (step_us, r)) in steps.into_iter().enumerate() {
            at_us += step_us;
            let r = Reading { ktime_ns: at_us * 1000, ..r };
            prop_assert_eq!(ring.push(r), step_us > 0 || i == 0);
            if step_us > 0 || i == 0 {
                pushed.push(r);
            }
            prop_assert!(ring.entries.len() <= ring.room() && ring.entries.capacity() <= ring.room());
            if i == pause {
                got = history(&mut ring, u64::MAX, u64::MAX);
            }
        }
        let lost = usize::try_from(ring.cut()).expect("few");
        prop_assert_eq!(ring.len() + lost, pushed.len());
        prop_assert_eq!(ring.newest(), pushed.last().copied());
        prop_assert_eq!(ring.oldest(), pushed.get(lost).copied());
        let whole: Vec<Reading> = ring.iter().map(|p| p.out()).collect();
        prop_assert_eq!(&whole[..], &pushed[lost..]);
        // two histories: in order, nothing twice, all of what the ring held at either time
        got.extend(history(&mut ring, u64::MAX, u64::MAX));
        prop_assert!(got.windows(2).all(|w| w[0].ktime_ns < w[1].ktime_ns));
        prop_assert!(got.iter().all(|r| pushed.contains(r)));
        prop_assert!(got.len() >= ring.len());
    }

    /// Whatever short histories are taken in between, in the end each reading was given once, and what was a row not at all.
    #[test]
    fn each_reading_is_given_once(steps in proptest::collection::vec((0u8..5, 0u64..40, 1u64..30), 1..300)) {
        let mut ring = Ring::new(1 << 20, u64::MAX);
        let (mut now, mut wanted, mut got) = (1000 * MS, Vec::new(), Vec::new());
        for (what, ago, window) in steps {
            now += 20 * MS;
            match what {
                0 => {
                    let at = now - ago * 20 * MS;
                    got.extend(history(&mut ring, at, window * 20 * MS).iter().map(|r| r.ktime_ns));
                }
                1 => ring.push_written(memory(now, now)),
                2 => {
                    ring.push(memory(now, now));
                    ring.newest_is_written();
                }
                _ => {
                    ring.push(memory(now, now));
                    wanted.push(now);
                }
            }
        }
        got.extend(history(&mut ring, now, now).iter().map(|r| r.ktime_ns));
        got.sort_unstable();
        prop_assert_eq!(got, wanted);
    }
}
