//! The lane: a bounded ring of fast readings for each cgroup, in memory only, so that a trigger finds the time before it.
//!
//! Each reading keeps the instant at which it was read. When a trigger fires the part not yet written is taken out
//! as `history`; nothing is given out twice. Readings come from `pread` of memory.current today; a BPF walk over all
//! cgroups is to take its place behind the same `push`.

use crate::catalogue::{ColumnIndex, FILES};
use std::collections::VecDeque;

/// The column that a reading fills: the first one of the catalogue's first file, memory.current.
pub const COLUMN: ColumnIndex = 0;
const _: () = assert!(matches!(FILES[0].name.as_bytes(), b"memory.current"));

/// A page is the unit in which the kernel charges memory, so a reading in pages loses nothing.
const PAGE: u64 = 4096;
/// Bytes of one packed reading.
pub const READING_BYTES: usize = size_of::<Packed>();

/// Readings that a ring has room for when it gets its first one.
const FIRST_READINGS: usize = 32;

/// One reading as it is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub ktime_ns: u64,
    pub memory_current: u64,
}

/// Time since the previous reading in µs (71 minutes at the most), and pages.
#[derive(Clone, Copy, Debug)]
struct Packed {
    after_us: u32,
    pages: u32,
}

/// The ring of one cgroup.
#[derive(Debug)]
pub struct Ring {
    readings: VecDeque<Packed>,
    capacity: usize,
    /// Instant of the newest reading, and of the one before the oldest kept; in µs of the monotonic clock.
    newest_us: u64,
    base_us: u64,
    /// Readings up to here are in the table already.
    written_us: u64,
    /// Readings that fell out unread since the last history, for the account of what was kept.
    overwritten: u64,
}

impl Ring {
    pub fn new(capacity: usize) -> Self {
        Self {
            readings: VecDeque::new(),
            capacity: capacity.max(1),
            newest_us: 0,
            base_us: 0,
            written_us: 0,
            overwritten: 0,
        }
    }

    /// Appends a reading. One that is not younger than the newest is refused: instants are unique and in order.
    pub fn push(&mut self, reading: Reading) -> bool {
        let us = reading.ktime_ns / 1000;
        if us <= self.newest_us && !self.readings.is_empty() {
            return false;
        }
        let pages = u32::try_from(reading.memory_current / PAGE).unwrap_or(u32::MAX);
        if self.readings.is_empty() {
            self.base_us = us;
            self.newest_us = us;
        }
        // after a pause too long for the packing the old part would carry wrong times: let it go
        let Ok(after_us) = u32::try_from(us - self.newest_us) else {
            self.overwritten += self.readings.len() as u64;
            self.readings.clear();
            return self.push(reading);
        };
        self.newest_us = us;
        while self.readings.len() >= self.capacity {
            self.drop_oldest();
        }
        let (held, allocated) = (self.readings.len(), self.readings.capacity());
        if held == allocated {
            // doubles as any vector, but never beyond what the ring may hold
            self.readings.reserve_exact(held.max(FIRST_READINGS).min(self.capacity - held));
        }
        self.readings.push_back(Packed { after_us, pages });
        true
    }

    fn drop_oldest(&mut self) {
        if let Some(gone) = self.readings.pop_front() {
            let at = self.base_us + u64::from(gone.after_us);
            self.overwritten += u64::from(at > self.written_us);
            self.base_us = at;
        }
    }

    /// Makes the ring smaller or larger; the oldest readings go first.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity.max(1);
        while self.readings.len() > self.capacity {
            self.drop_oldest();
        }
        self.readings.shrink_to(self.capacity);
    }

    fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.readings.iter().scan(self.base_us, |at, p| {
            *at += u64::from(p.after_us);
            Some((*at, u64::from(p.pages) * PAGE))
        })
    }

    /// Gives the readings of the last `window_ns` up to `now_ns` that were never given before, oldest first, and marks
    /// them as given.
    pub fn take_history(&mut self, now_ns: u64, window_ns: u64, mut give: impl FnMut(Reading)) -> usize {
        let (now_us, from_us) = (now_ns / 1000, now_ns.saturating_sub(window_ns) / 1000);
        let (mut given, mut last) = (0, self.written_us);
        for (us, memory_current) in self.iter() {
            if us > self.written_us && us >= from_us && us <= now_us {
                give(Reading { ktime_ns: us * 1000, memory_current });
                given += 1;
                last = us;
            }
        }
        self.written_us = last;
        given
    }

    /// The youngest reading strictly before an instant.
    pub fn last_before(&self, ktime_ns: u64) -> Option<Reading> {
        self.iter()
            .take_while(|(us, _)| us * 1000 < ktime_ns)
            .last()
            .map(|(us, memory_current)| Reading { ktime_ns: us * 1000, memory_current })
    }

    /// The oldest reading that is not older than an instant.
    pub fn oldest_since(&self, ktime_ns: u64) -> Option<Reading> {
        self.iter()
            .find(|(us, _)| *us >= ktime_ns / 1000)
            .map(|(us, memory_current)| Reading { ktime_ns: us * 1000, memory_current })
    }

    /// Appends a reading that is in the table already, so that later questions find it and no history repeats it.
    pub fn push_written(&mut self, reading: Reading) {
        if self.push(reading) {
            self.written_us = self.newest_us;
        }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn len(&self) -> usize {
        self.readings.len()
    }

    /// Bytes that the readings take, used or not.
    pub fn bytes(&self) -> usize {
        self.readings.capacity() * READING_BYTES
    }

    pub fn is_empty(&self) -> bool {
        self.readings.is_empty()
    }
}

/// Readings that each of `cgroups` rings may hold, so that all together stay within `memory_bytes`. The share is that of
/// the next power of two, so that it changes seldom as cgroups come and go.
pub fn capacity(memory_bytes: u64, cgroups: usize, history_s: u64, period_ms: u64) -> usize {
    let wanted = history_s * 1000 / period_ms.max(1) + 1;
    let share = memory_bytes / READING_BYTES as u64 / cgroups.max(64).next_power_of_two() as u64;
    usize::try_from(wanted.min(share)).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    fn filled(n: u64, capacity: usize) -> Ring {
        let mut ring = Ring::new(capacity);
        for i in 0..n {
            assert!(ring.push(Reading { ktime_ns: 1000 * MS + i * 50 * MS, memory_current: i * PAGE }));
        }
        ring
    }

    fn history(ring: &mut Ring, now: u64, window: u64) -> Vec<Reading> {
        let mut out = Vec::new();
        ring.take_history(now, window, |r| out.push(r));
        out
    }

    #[test]
    fn history_is_the_window_and_is_given_once() {
        let mut ring = filled(100, 1000);
        let now = 1000 * MS + 99 * 50 * MS;
        let first = history(&mut ring, now, 1000 * MS);
        assert_eq!(first.len(), 21);
        assert_eq!(first.last(), Some(&Reading { ktime_ns: now, memory_current: 99 * PAGE }));
        assert!(history(&mut ring, now, 60_000 * MS).is_empty());
        ring.push(Reading { ktime_ns: now + 50 * MS, memory_current: 7 * PAGE });
        assert_eq!(history(&mut ring, now + 60 * MS, 60_000 * MS).len(), 1);
    }

    #[test]
    fn what_was_read_after_the_event_is_not_before_it() {
        let ring = filled(10, 100);
        let kill = 1000 * MS + 4 * 50 * MS + 1;
        assert_eq!(ring.last_before(kill).map(|r| r.memory_current), Some(4 * PAGE));
        assert_eq!(ring.last_before(10), None);
    }

    #[test]
    fn capacity_is_shared_within_the_budget() {
        assert_eq!(capacity(16 << 20, 100, 60, 50), 1201);
        let many = capacity(16 << 20, 4096, 60, 50);
        assert!(many * 4096 * READING_BYTES <= 16 << 20 && many > 400);
    }

    #[test]
    fn a_smaller_ring_gives_its_memory_back() {
        let mut ring = filled(1000, 1000);
        ring.set_capacity(10);
        assert_eq!((ring.len(), ring.bytes()), (10, 10 * READING_BYTES));
        assert_eq!(ring.oldest_since(1000 * MS + 995 * 50 * MS).map(|r| r.memory_current), Some(995 * PAGE));
    }

    proptest! {
        #[test]
        fn a_ring_is_bounded_and_keeps_the_newest_in_order(steps in proptest::collection::vec((0u64..200_000_000_000, 0u64..1 << 30), 1..200), capacity in 1usize..50) {
            let mut ring = Ring::new(capacity);
            let mut pushed: Vec<Reading> = Vec::new();
            let mut at = 5_000_000_000u64;
            for (step, pages) in steps {
                at += step / 1000 * 1000;
                let r = Reading { ktime_ns: at, memory_current: pages * PAGE };
                if ring.push(r) {
                    pushed.push(r);
                }
                prop_assert!(ring.len() <= capacity);
                prop_assert!(ring.bytes() <= capacity * READING_BYTES);
            }
            let got = history(&mut ring, u64::MAX, u64::MAX);
            let expect = &pushed[pushed.len() - got.len()..];
            prop_assert_eq!(&got[..], expect);
            prop_assert_eq!(got.len(), capacity.min(pushed.len()));
        }
    }
}
