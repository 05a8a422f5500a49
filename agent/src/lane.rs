//! The lane: fast readings of the few values that matter, kept in memory only, so that a trigger finds the time before it.
//!
//! A [`Reading`] is what one look at one cgroup gave, by the kernel's walk over all cgroups (`probes::Walk`) or, where
//! that cannot be had, by `pread` (`sampler`). [`Ring`] keeps the last ones of one cgroup, [`Pace`] decides how often to
//! look. Readings leave a ring as rows of cause `history`, each once.

mod pace;
mod ring;

pub use pace::Pace;
pub use ring::{Ring, capacity};

use crate::catalogue::{ColumnIndex, FileIndex, first_column};

/// The values of a reading, in the order of their columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    MemoryCurrent,
    SwapCurrent,
    EventsLow,
    EventsHigh,
    EventsMax,
    EventsOom,
    EventsOomKill,
    EventsOomGroupKill,
    EventsSockThrottled,
    NrPeriods,
    NrThrottled,
    ThrottledUsec,
    PidsCurrent,
    MemoryMax,
}

pub const VALUES: usize = 14;

/// The files whose values a reading holds. A reading holds three lines of cpu.stat and not the others, so that file has
/// no bit: a NULL beside a set bit would say that this kernel has no `usage_usec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    MemoryCurrent,
    SwapCurrent,
    MemoryEvents,
    PidsCurrent,
    MemoryMax,
}

const FILES: [FileIndex; 5] = [0, 1, 2, 6, 10];

const COLUMNS: [ColumnIndex; VALUES] = {
    let (events, cpu) = (first_column(FILES[2]), first_column(4));
    [
        first_column(FILES[0]),
        first_column(FILES[1]),
        events,
        events + 1,
        events + 2,
        events + 3,
        events + 4,
        events + 5,
        events + 6,
        cpu + 5,
        cpu + 6,
        cpu + 7,
        first_column(FILES[3]),
        first_column(FILES[4]),
    ]
};

/// The hot files that a reading holds whole, as bits of `files_read`.
pub const HOT_FILES: u64 = 1 << FILES[0] | 1 << FILES[1] | 1 << FILES[2] | 1 << FILES[3];

/// One look at one cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub ktime_ns: u64,
    /// The rhythm in force when it was taken.
    pub period_ms: u16,
    /// A bit per value that is there, and per file that was read.
    have: u16,
    files: u8,
    values: [u64; VALUES],
}

/// What a reading says of memory, for those who care for nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAt {
    pub ktime_ns: u64,
    pub memory_current: u64,
}

impl Reading {
    pub fn new(ktime_ns: u64, period_ms: u64) -> Self {
        let period_ms = u16::try_from(period_ms).unwrap_or(u16::MAX);
        Self { ktime_ns, period_ms, have: 0, files: 0, values: [0; VALUES] }
    }

    /// Says that a file was read, whatever it held.
    pub fn read(&mut self, file: File) {
        self.files |= 1 << file as u8;
    }

    pub fn set(&mut self, value: Value, to: u64) {
        self.put(value as usize, to);
    }

    fn put(&mut self, index: usize, to: u64) {
        self.have |= 1 << index;
        self.values[index] = to;
    }

    /// Takes over what was parsed of a file; columns that the lane does not hold are passed over.
    pub fn take(&mut self, file: FileIndex, pairs: &[(ColumnIndex, u64)]) {
        if let Some(bit) = FILES.iter().position(|f| *f == file) {
            self.files |= 1 << bit;
        }
        for &(column, value) in pairs {
            if let Some(index) = COLUMNS.iter().position(|c| *c == column) {
                self.put(index, value);
            }
        }
    }

    pub fn get(&self, value: Value) -> Option<u64> {
        (self.have >> value as usize & 1 == 1).then(|| self.values[value as usize])
    }

    pub fn memory_current(&self) -> Option<u64> {
        self.get(Value::MemoryCurrent)
    }

    /// `None` = not read, `Some(None)` = "max".
    pub fn memory_max(&self) -> Option<Option<u64>> {
        (self.files >> File::MemoryMax as u8 & 1 == 1).then(|| self.get(Value::MemoryMax))
    }

    pub fn memory_at(&self) -> Option<MemoryAt> {
        self.memory_current().map(|memory_current| MemoryAt { ktime_ns: self.ktime_ns, memory_current })
    }

    /// Whether both hold the same values of the same files.
    pub fn same_values(&self, other: &Self) -> bool {
        (self.have, self.files) == (other.have, other.files) && self.values == other.values
    }

    /// Nothing was there to be read.
    pub fn is_empty(&self) -> bool {
        self.have == 0
    }

    /// As the column `files_read` has it.
    pub fn files_read(&self) -> u64 {
        FILES.iter().enumerate().filter(|(i, _)| self.files >> i & 1 == 1).map(|(_, f)| 1 << f).sum()
    }

    /// Those of [`HOT_FILES`].
    pub fn hot_columns(&self) -> impl Iterator<Item = (ColumnIndex, u64)> + '_ {
        let of = |value: Value, file: File| (value as usize, self.files >> file as u8 & 1 == 1);
        [
            of(Value::MemoryCurrent, File::MemoryCurrent),
            of(Value::SwapCurrent, File::SwapCurrent),
            of(Value::EventsLow, File::MemoryEvents),
            of(Value::EventsHigh, File::MemoryEvents),
            of(Value::EventsMax, File::MemoryEvents),
            of(Value::EventsOom, File::MemoryEvents),
            of(Value::EventsOomKill, File::MemoryEvents),
            of(Value::EventsOomGroupKill, File::MemoryEvents),
            of(Value::EventsSockThrottled, File::MemoryEvents),
            of(Value::PidsCurrent, File::PidsCurrent),
        ]
        .into_iter()
        .filter(|(i, read)| *read && self.have >> i & 1 == 1)
        .map(|(i, _)| (COLUMNS[i], self.values[i]))
    }

    /// The values that are there, in the order of the table's columns.
    pub fn columns(&self) -> impl Iterator<Item = (ColumnIndex, u64)> + '_ {
        COLUMNS
            .iter()
            .zip(self.values)
            .enumerate()
            .filter(|(i, _)| self.have >> i & 1 == 1)
            .map(|(_, (c, v))| (*c, v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;

    #[test]
    fn values_stand_in_their_columns_and_files_at_their_bits() {
        let names: Vec<_> =
            COLUMNS.iter().filter_map(|i| catalogue::columns().nth(*i)).map(|(_, _, c)| c.name).collect();
        assert_eq!(
            names,
            [
                "memory_current",
                "memory_swap_current",
                "memory_events_low",
                "memory_events_high",
                "memory_events_max",
                "memory_events_oom",
                "memory_events_oom_kill",
                "memory_events_oom_group_kill",
                "memory_events_sock_throttled",
                "cpu_stat_nr_periods",
                "cpu_stat_nr_throttled",
                "cpu_stat_throttled_usec",
                "pids_current",
                "memory_max",
            ]
        );
        assert_eq!(Value::MemoryMax as usize + 1, VALUES);
        let files = FILES.map(|f| catalogue::FILES[f].name);
        assert_eq!(
            files,
            ["memory.current", "memory.swap.current", "memory.events", "pids.current", "memory.max"]
        );
    }

    #[test]
    fn no_limit_is_not_an_unknown_limit() {
        let mut r = Reading::new(1, 20);
        assert_eq!(r.memory_max(), None);
        r.read(File::MemoryMax);
        assert_eq!(r.memory_max(), Some(None));
        r.set(Value::MemoryMax, 4096);
        assert_eq!(r.memory_max(), Some(Some(4096)));
        assert_eq!(r.files_read(), 1 << 10);
    }

    #[test]
    fn what_was_parsed_is_taken_over_and_the_rest_passed_by() {
        let mut r = Reading::new(1, 20);
        r.take(4, &[(first_column(4), 77), (first_column(4) + 7, 9)]);
        r.take(6, &[(first_column(6), 3)]);
        assert_eq!(r.columns().collect::<Vec<_>>(), [(first_column(4) + 7, 9), (first_column(6), 3)]);
        assert_eq!(r.files_read(), 1 << 6, "cpu.stat has no bit");
    }
}
