//! The ring of one cgroup: its last readings, packed, bounded in bytes and in age.
//!
//! Each reading is kept as what changed since the one before. All numbers are varints (7 bits a byte, low ones first);
//! differences are wrapped and zigzagged, so that any value comes back exactly:
//! ```text
//! entry = time [changed new-shape? new-values]
//! time  = zigzag(step - step before) << 1 | something changed        step: µs since the reading before
//! changed: a bit per value; bit 14: which values and files there are; bit 15: the period; bit 16: the reading before is a row
//! ```
//! An unchanged reading costs one or two bytes (three when it came more than 2 ms off its rhythm), and its instant is
//! kept to the microsecond. Sizes in bytes go in pages, the unit in which the kernel charges. The oldest reading is
//! kept whole; to drop it is to decode the next one onto it. Never allocates beyond its capacity.

use super::{Reading, VALUES, Value};
use std::collections::VecDeque;

/// The longest entry: time, mask, shape and period, and all values.
const LONGEST: usize = LONGEST_TIME + 3 + 5 + 3 + VALUES * 10;
const LONGEST_TIME: usize = 10;
const SHAPE: u32 = 1 << VALUES;
const PERIOD: u32 = 1 << (VALUES + 1);
/// Short histories that are known apart. A burst that is late twenty times a second makes so many in its ten seconds.
const MAX_GIVEN: usize = 256;
const WRITTEN: u32 = 1 << (VALUES + 2);

/// A reading and the step that led to it.
#[derive(Clone, Copy, Debug)]
struct Point {
    us: u64,
    step_us: u64,
    reading: Reading,
}

impl Point {
    fn out(&self) -> Reading {
        Reading { ktime_ns: self.us * 1000, ..self.reading }
    }
}

#[derive(Debug)]
pub struct Ring {
    ends: Option<(Point, Point)>,
    /// Every reading but the oldest.
    entries: VecDeque<u8>,
    len: usize,
    capacity: usize,
    window_us: u64,
    /// Readings up to here are in the table already.
    written_us: u64,
    /// And those from one instant to another, in order: a short history was given of each, and none of what lies between.
    given: Vec<(u64, u64)>,
    /// So is the newest; of the others the entry behind each tells.
    newest_is_written: bool,
    /// Readings that were dropped for want of room, younger than the window.
    cut: u64,
}

/// Bytes that each of `cgroups` rings may take, so that all together stay within `memory_bytes`. The share is that of the
/// next multiple of 64, so that it changes seldom as cgroups come and go.
pub fn capacity(memory_bytes: u64, cgroups: usize) -> usize {
    usize::try_from(memory_bytes).unwrap_or(usize::MAX) / cgroups.max(1).next_multiple_of(64)
}

impl Ring {
    /// `capacity` in bytes, the ring's own frame included.
    pub fn new(capacity: usize, window_ns: u64) -> Self {
        let mut ring = Self {
            ends: None,
            entries: VecDeque::new(),
            len: 0,
            capacity: 0,
            window_us: window_ns / 1000,
            written_us: 0,
            given: Vec::new(),
            newest_is_written: false,
            cut: 0,
        };
        ring.set_capacity(capacity);
        ring
    }

    fn room(&self) -> usize {
        self.capacity.saturating_sub(size_of::<Self>())
    }

    /// Appends a reading. One that is not younger than the newest is refused: instants are unique and in order.
    pub fn push(&mut self, reading: Reading) -> bool {
        let us = reading.ktime_ns / 1000;
        let Some((_, newest)) = &mut self.ends else {
            let point = Point { us, step_us: 0, reading };
            self.ends = Some((point, point));
            self.len = 1;
            return true;
        };
        if us <= newest.us {
            return false;
        }
        let step_us = us - newest.us;
        let mut packed = Packed::<LONGEST>::new();
        let is_written = std::mem::take(&mut self.newest_is_written);
        let point = Point { us, step_us, reading };
        packed.entry(newest, &point, is_written);
        *newest = point;
        self.append(us, packed.bytes())
    }

    /// Appends the newest reading again, at another instant: of most readings of most cgroups nothing but the time is another one.
    /// `since_ns` is when it was taken. `false` when the newest is not that one: then the reading itself is wanted.
    pub fn repeat(&mut self, since_ns: u64, ktime_ns: u64, period_ms: u64) -> bool {
        let us = ktime_ns / 1000;
        let Some((_, newest)) = &mut self.ends else { return false };
        let is_that = newest.us == since_ns / 1000 && u64::from(newest.reading.period_ms) == period_ms;
        if !is_that || us <= newest.us || self.newest_is_written {
            return false;
        }
        let step_us = us - newest.us;
        let mut packed = Packed::<LONGEST_TIME>::new();
        packed.varint(zigzag(newest.step_us, step_us) << 1);
        (newest.us, newest.step_us) = (us, step_us);
        self.append(us, packed.bytes())
    }

    /// Puts an entry behind the others and lets go what is too old or has no room.
    fn append(&mut self, us: u64, packed: &[u8]) -> bool {
        self.len += 1;
        let oldest_wanted = us.saturating_sub(self.window_us);
        while self.oldest_us() < oldest_wanted {
            if self.entries.is_empty() {
                return self.keep_newest();
            }
            self.drop_oldest();
        }
        while self.entries.len() + packed.len() > self.room() {
            self.cut += 1;
            if self.entries.is_empty() {
                return self.keep_newest();
            }
            self.drop_oldest();
        }
        self.grow(packed.len());
        self.entries.extend(packed);
        true
    }

    fn keep_newest(&mut self) -> bool {
        if let Some((oldest, newest)) = &mut self.ends {
            *oldest = *newest;
        }
        self.len = 1;
        true
    }

    /// Makes room by half of what there is, never beyond the capacity: doubling would.
    fn grow(&mut self, more: usize) {
        let need = self.entries.len() + more;
        if need > self.entries.capacity() {
            let target = (need + need / 2).max(64).min(self.room()).max(need);
            self.entries.reserve_exact(target - self.entries.len());
        }
    }

    fn oldest_us(&self) -> u64 {
        self.ends.as_ref().map_or(u64::MAX, |(oldest, _)| oldest.us)
    }

    /// The one behind it takes its place; the newest is never dropped.
    fn drop_oldest(&mut self) {
        let Some((oldest, _)) = &mut self.ends else { return };
        let entries = &mut self.entries;
        if unpack(oldest, std::iter::from_fn(|| entries.pop_front())).is_some() {
            self.len -= 1;
        }
    }

    /// Makes the ring smaller or larger; the oldest readings go first.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
        let room = self.room();
        while self.entries.len() > room {
            self.drop_oldest();
            self.cut += 1;
        }
        self.entries.shrink_to(room);
    }

    fn iter(&self) -> impl Iterator<Item = Point> + '_ {
        self.iter_written().map(|(point, _)| point)
    }

    /// All readings, each with whether it is a row already.
    fn iter_written(&self) -> impl Iterator<Item = (Point, bool)> + '_ {
        let mut at = self.ends.as_ref().map(|(oldest, _)| *oldest);
        let mut bytes = self.entries.iter().copied();
        std::iter::from_fn(move || {
            let now = at?;
            let mut next = now;
            let is_written = unpack(&mut next, &mut bytes);
            at = is_written.map(|_| next);
            Some((now, is_written.unwrap_or(self.newest_is_written)))
        })
    }

    /// Gives the readings of the last `window_ns` up to `now_ns` that were never given before, oldest first, and marks
    /// them as given.
    pub fn take_history(&mut self, now_ns: u64, window_ns: u64, mut give: impl FnMut(&Reading)) -> usize {
        let (now_us, from_us) = (now_ns / 1000, now_ns.saturating_sub(window_ns) / 1000);
        let (mut given, mut last) = (0, 0);
        let mut spans = self.given.iter().copied().peekable();
        for (point, is_written) in self.iter_written() {
            let us = point.us;
            if us <= self.written_us || is_written || us < from_us || us > now_us {
                continue;
            }
            while spans.next_if(|(_, end)| *end < us).is_some() {}
            if spans.peek().is_some_and(|(start, _)| *start <= us) {
                continue;
            }
            give(&point.out());
            given += 1;
            last = us;
        }
        if given > 0 {
            self.note_given(from_us, last);
        }
        given
    }

    /// All from here to there is in the table now. What is older and is not may be asked for later.
    fn note_given(&mut self, from_us: u64, to_us: u64) {
        let oldest_us = self.oldest_us();
        self.given.retain(|(_, end)| *end >= oldest_us);
        if from_us <= self.written_us.max(oldest_us) {
            self.written_us = self.written_us.max(to_us);
            self.given.retain(|(_, end)| *end > to_us);
            return;
        }
        let (mut from, mut to) = (from_us, to_us);
        self.given.retain(|&(start, end)| {
            let is_apart = end < from || start > to;
            if !is_apart {
                (from, to) = (from.min(start), to.max(end));
            }
            is_apart
        });
        let at = self.given.partition_point(|(start, _)| *start < from);
        self.given.insert(at, (from, to));
        if self.given.len() > MAX_GIVEN {
            self.written_us = self.written_us.max(self.given.remove(0).1);
        }
    }

    /// The youngest reading strictly before an instant.
    pub fn last_before(&self, ktime_ns: u64) -> Option<Reading> {
        self.iter().take_while(|p| p.us * 1000 < ktime_ns).last().map(|p| p.out())
    }

    /// The oldest reading that is not older than an instant.
    pub fn oldest_since(&self, ktime_ns: u64) -> Option<Reading> {
        self.iter().find(|p| p.us >= ktime_ns / 1000).map(|p| p.out())
    }

    pub fn oldest(&self) -> Option<Reading> {
        self.ends.as_ref().map(|(oldest, _)| oldest.out())
    }

    pub fn newest(&self) -> Option<Reading> {
        self.ends.as_ref().map(|(_, newest)| newest.out())
    }

    /// Whether a reading says something else than the newest, but for its instant and rhythm.
    pub fn is_news(&self, reading: &Reading) -> bool {
        self.ends.as_ref().is_none_or(|(_, newest)| !newest.reading.same_values(reading))
    }

    /// Says that the newest is in the table already, while others before it are not.
    pub fn newest_is_written(&mut self) {
        self.newest_is_written = true;
    }

    /// Appends a reading that is in the table already, so that later questions find it and no history repeats it.
    pub fn push_written(&mut self, reading: Reading) {
        if self.push(reading) {
            self.newest_is_written = true;
        }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Readings held.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes taken beside the frame, used or not.
    pub fn bytes(&self) -> usize {
        self.entries.capacity()
    }

    /// Readings dropped before their time.
    pub fn cut(&self) -> u64 {
        self.cut
    }
}

/// Sizes are multiples of 4 KiB or more: rotated they are small numbers, and whatever is not comes back as well.
fn in_pages(index: usize, value: u64) -> u64 {
    if is_size(index) { value.rotate_right(12) } else { value }
}

fn from_pages(index: usize, value: u64) -> u64 {
    if is_size(index) { value.rotate_left(12) } else { value }
}

fn is_size(index: usize) -> bool {
    [Value::MemoryCurrent, Value::SwapCurrent, Value::MemoryMax].iter().any(|v| *v as usize == index)
}

fn zigzag(from: u64, to: u64) -> u64 {
    let by = to.wrapping_sub(from).cast_signed();
    (by << 1 ^ by >> 63).cast_unsigned()
}

fn unzigzag(from: u64, by: u64) -> u64 {
    from.wrapping_add(by >> 1 ^ (by & 1).wrapping_neg())
}

struct Packed<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Packed<N> {
    fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.byte(v | 0x80);
            v >>= 7;
        }
        self.byte(v);
    }

    fn byte(&mut self, v: u64) {
        self.bytes[self.len] = v.to_le_bytes()[0];
        self.len += 1;
    }

    fn entry(&mut self, before: &Point, now: &Point, is_written: bool) {
        let (a, b) = (&before.reading, &now.reading);
        let mut changed = 0u32;
        for i in 0..VALUES {
            changed |= u32::from(a.values[i] != b.values[i]) << i;
        }
        if (a.have, a.files) != (b.have, b.files) {
            changed |= SHAPE;
        }
        if a.period_ms != b.period_ms {
            changed |= PERIOD;
        }
        if is_written {
            changed |= WRITTEN;
        }
        // the steps differ by less than 2^62 µs, 146,000 years
        self.varint(zigzag(before.step_us, now.step_us) << 1 | u64::from(changed != 0));
        if changed == 0 {
            return;
        }
        self.varint(u64::from(changed));
        if changed & SHAPE != 0 {
            self.varint(u64::from(b.have) << 8 | u64::from(b.files));
        }
        if changed & PERIOD != 0 {
            self.varint(u64::from(b.period_ms));
        }
        for i in (0..VALUES).filter(|i| changed >> i & 1 == 1) {
            self.varint(zigzag(in_pages(i, a.values[i]), in_pages(i, b.values[i])));
        }
    }
}

fn varint(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let (mut v, mut shift) = (0u64, 0);
    loop {
        let byte = bytes.next()?;
        v |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(v);
        }
        shift += 7;
    }
}

/// Turns a point into the one after it, and tells whether the one before is a row already. `None` where there is none.
fn unpack(point: &mut Point, mut bytes: impl Iterator<Item = u8>) -> Option<bool> {
    let bytes = &mut bytes;
    let time = varint(bytes)?;
    point.step_us = unzigzag(point.step_us, time >> 1);
    point.us += point.step_us;
    if time & 1 == 0 {
        return Some(false);
    }
    let changed = u32::try_from(varint(bytes)?).ok()?;
    let reading = &mut point.reading;
    if changed & SHAPE != 0 {
        let shape = varint(bytes)?;
        let [files, low, high, ..] = shape.to_le_bytes();
        (reading.have, reading.files) = (u16::from_le_bytes([low, high]), files);
    }
    if changed & PERIOD != 0 {
        reading.period_ms = u16::try_from(varint(bytes)?).ok()?;
    }
    for i in (0..VALUES).filter(|i| changed >> i & 1 == 1) {
        reading.values[i] = from_pages(i, unzigzag(in_pages(i, reading.values[i]), varint(bytes)?));
    }
    Some(changed & WRITTEN != 0)
}

#[cfg(test)]
mod tests;
