//! The one reader of cgroup files: opens them, reads them, sets the values through the recorder's handles, and commits
//! the row.
//!
//! Hot files stay open and are read by `pread`, as many of them as may be; slow ones are opened when they are due. A cgroup that has gone is an
//! ordinary result. A file that cannot be read or parsed leaves its columns NULL, its bit clear and a count. What has no
//! column goes into the `metrics` table. `node` and `network` below read of /proc. Called by `pipeline`, which decides when.

mod cost;
mod descriptors;
mod devices;
mod loose;
pub mod network;
pub mod node;
mod still;

pub use cost::{Cost, costs};
pub use network::Network;
pub use node::Node;
pub use still::Still;

use crate::accumulator::{Device, Pending, SampleRow, Stamp, Value};
use crate::catalogue::{self, COLUMNS, FILES, File, FileIndex, Format, Tier, column};
use crate::cgroup::Meta;
use crate::cgroup::parse::{Hints, parse};
use crate::clock;
use crate::discovery::join;
use crate::lane::{self, Reading, Ring};
use crate::names::Cause;
use crate::recorder::{Handle, MASK_WORDS, Row, Series};
use crate::warn::Watch;
use descriptors::{RESERVED_DESCRIPTORS, hot_share};
use devices::Devices;
use loose::{Loose, LooseIndex};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest file that we read: memory.stat is 1.7 KB on 6.12, io.stat grows with the devices.
const BUFFER: usize = 64 << 10;
/// A file that is not there is looked for again at each slow read, and at every read while the cgroup is this young:
/// controllers are often switched on just after a directory is made.
const YOUNG_NS: u64 = 5_000_000_000;
/// A row's files are read this long after the look of the lane that it is dated by, at the most: base rows are taken in the same
/// turn as the look. An older reading is not taken into a row.
const ONE_INSTANT_NS: u64 = 10_000_000;
/// A value without a column that stays the same has a row this often: most of a cgroup's fifty never change, and 200
/// cgroups would fill a quarter of the agent's memory with them.
const REPEAT_EVERY_NS: u64 = 60_000_000_000;

/// The cgroup is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vanished;

#[derive(Debug, Default)]
struct FileState {
    kept: Option<OwnedFd>,
    absent: bool,
}

/// What is kept for one followed cgroup.
pub struct Target {
    pub meta: Arc<Meta>,
    pub ring: Ring,
    pub next_base_ns: u64,
    pub next_slow_ns: u64,
    /// Something happened: the next base row brings what has no column, which takes too long for the row at the event.
    pub loose_wanted: bool,
    /// When its process table is due.
    pub next_table_ns: u64,
    pub first_seen_ns: u64,
    /// Instant of the latest row of any cause.
    pub last_row_ns: u64,
    /// memory.max as last read, by file or by the lane; `None` = not read or "max".
    pub memory_max: Option<u64>,
    /// When its file was last read.
    pub limit_read_ns: u64,
    /// memory.current when the process table was last taken for a rise to the limit, and when.
    pub last_table: Option<(u64, u64)>,
    /// memory.current as the lane read it last.
    pub last_memory: Option<u64>,
    /// When its warnings were looked for last.
    pub watched_ns: u64,
    /// Its early warnings.
    pub watch: Watch,
    /// Whether memory.stat needs to be read.
    pub still: Still,
    path: PathBuf,
    files: Box<[FileState]>,
    /// Files that go into the `metrics` table, and when they are looked for again.
    loose: Arc<[LooseIndex]>,
    next_listing_ns: u64,
    /// What was written of them last, and when all of it is written again.
    last_values: Vec<Value>,
    next_repeat_ns: u64,
    /// As last written into `io_devices`.
    devices: Vec<Device>,
}

impl Target {
    /// Something happened: the next base row brings what has no column, all of it.
    pub fn want_all(&mut self) {
        self.loose_wanted = true;
        self.next_repeat_ns = 0;
    }
}

/// Why a row is taken, and whether the slow files belong to it.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    pub cause: Cause,
    pub period_ms: u32,
    pub burst: Option<&'a str>,
    pub slow: bool,
    /// What has no column is read as well.
    pub loose: bool,
    /// The row's memory.current takes the place of a lane reading.
    pub in_lane: bool,
}

/// What a reading left: its instant, and its rows besides the one of `samples`.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    pub at: Stamp,
    pub metrics: u64,
    pub devices: u64,
    /// Values that found no room among the series.
    pub cut: u64,
    /// memory.current of a row that takes the place of a lane reading, in bytes.
    pub in_lane: Option<u64>,
}

/// What went wrong with files, since the start.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// By file name: text that did not parse.
    pub unparsed: BTreeMap<String, u64>,
    /// By file name: reads that failed for another reason than the end of the cgroup.
    pub unread: BTreeMap<String, u64>,
}

impl Faults {
    fn count(of: &mut BTreeMap<String, u64>, file: &str) {
        match of.get_mut(file) {
            Some(n) => *n += 1,
            None => _ = of.insert(file.to_owned(), 1),
        }
    }

    fn unparsed(&mut self, file: &str) {
        Self::count(&mut self.unparsed, file);
    }

    fn unread(&mut self, file: &str) {
        Self::count(&mut self.unread, file);
    }
}

pub struct Sampler {
    root: PathBuf,
    row: Arc<Row>,
    handles: Vec<Handle>,
    /// By file. The kernel prints the same lines of each cgroup.
    hints: Box<[Hints]>,
    buffer: Vec<u8>,
    pairs: Vec<(usize, u64)>,
    kept: usize,
    max_kept: usize,
    /// Those of the hot tier.
    max_hot: usize,
    /// Hot files that were opened for one reading.
    pub opened: u64,
    memory_max_column: usize,
    order: Box<[FileIndex]>,
    memory_stat: Option<FileIndex>,
    usage_column: usize,
    /// The files whose values the lane's walk brings, a bit each; 0 when the lane does not walk. They are not kept open.
    walked: u64,
    /// Readings of memory.stat that were taken over from the row before.
    pub taken_over: u64,
    is_short: bool,
    loose: Loose,
    /// The listing of the latest cgroup: most have the same, and share it.
    listing: Arc<[LooseIndex]>,
    devices: Devices,
    values: Vec<Value>,
    changed: Vec<Device>,
    pub faults: Faults,
}

enum Read {
    Text(usize),
    Absent,
    Vanished,
    Failed,
}

impl Sampler {
    pub fn new(root: &Path, series: &Series, descriptor_limit: usize) -> Self {
        let (row, handles) = series.handles();
        let memory_stat = catalogue::file("memory.stat");
        let max_kept = descriptor_limit.saturating_sub(RESERVED_DESCRIPTORS);
        Self {
            root: root.to_owned(),
            row,
            handles,
            hints: FILES.iter().map(|_| Hints::default()).collect(),
            buffer: vec![0; BUFFER],
            pairs: Vec::with_capacity(COLUMNS),
            kept: 0,
            max_kept,
            max_hot: hot_share(max_kept),
            opened: 0,
            memory_max_column: column("memory_max").unwrap_or(0),
            // whether memory.stat needs to be read is known by cpu.stat
            order: (0..FILES.len()).filter(|i| Some(*i) != memory_stat).chain(memory_stat).collect(),
            memory_stat,
            usage_column: column("cpu_stat_usage_usec").unwrap_or(0),
            walked: 0,
            taken_over: 0,
            is_short: false,
            loose: Loose::default(),
            listing: Arc::default(),
            devices: Devices::default(),
            values: Vec::new(),
            changed: Vec::new(),
            faults: Faults::default(),
        }
    }

    /// Starts to follow a cgroup. `None` when it has gone already and left no reading in its ring: one that did may still be told of.
    pub fn open(&mut self, meta: &Arc<Meta>, ring: Ring, now_ns: u64) -> Option<Target> {
        let path = join(&self.root, &meta.path);
        let mut target = Target {
            meta: meta.clone(),
            ring,
            next_base_ns: now_ns,
            next_slow_ns: now_ns,
            loose_wanted: false,
            next_table_ns: now_ns,
            first_seen_ns: now_ns,
            last_row_ns: 0,
            memory_max: None,
            limit_read_ns: 0,
            last_table: None,
            last_memory: None,
            watched_ns: 0,
            watch: Watch::default(),
            still: Still::default(),
            path,
            files: FILES.iter().map(|_| FileState::default()).collect(),
            loose: Arc::default(),
            next_listing_ns: 0,
            last_values: Vec::new(),
            next_repeat_ns: 0,
            devices: Vec::new(),
        };
        (self.open_kept(&mut target).is_ok() || !target.ring.is_empty()).then_some(target)
    }

    /// Says whether the lane walks: then its files need not be kept open, and a row has what the last look has brought.
    pub fn set_walks(&mut self, walks: bool) {
        self.walked = if walks { lane::HOT_FILES } else { 0 };
    }

    fn read_file(&mut self, target: &Target, index: FileIndex, dir: Option<&OwnedFd>) -> Read {
        let state = &target.files[index];
        let result = match (&state.kept, dir) {
            (Some(fd), _) => rustix::io::pread(fd, &mut self.buffer[..], 0),
            (None, Some(dir)) => {
                match rustix::fs::openat(
                    dir,
                    FILES[index].name,
                    OFlags::RDONLY | OFlags::CLOEXEC,
                    Mode::empty(),
                ) {
                    Ok(fd) => {
                        self.opened += u64::from(FILES[index].tier != Tier::Slow);
                        rustix::io::pread(&fd, &mut self.buffer[..], 0)
                    }
                    Err(e) => Err(e),
                }
            }
            (None, None) if state.absent => return Read::Absent,
            (None, None) => return Read::Failed,
        };
        match result {
            Ok(n) if n < BUFFER => Read::Text(n),
            Err(Errno::NODEV) => Read::Vanished,
            Err(Errno::NOENT | Errno::OPNOTSUPP) => Read::Absent,
            Ok(_) | Err(_) => Read::Failed,
        }
    }

    /// What the lane's walk has just brought of a cgroup, if that is no row yet.
    fn looked(&self, target: &Target, now_ns: u64) -> Option<Reading> {
        let is_now = |r: &Reading| {
            r.ktime_ns > target.last_row_ns && now_ns.saturating_sub(r.ktime_ns) <= ONE_INSTANT_NS
        };
        target.ring.newest().filter(|r| self.walked != 0 && is_now(r))
    }

    /// Reads one row of a cgroup and commits it. The row's instant is the one just before its first value was read: that of the
    /// lane's walk where it has brought some, which then is this row and no history.
    /// Nothing is committed of a cgroup that goes away meanwhile.
    pub fn sample(
        &mut self,
        target: &mut Target,
        plan: Plan<'_>,
        offset: clock::Offset,
        out: &mut Pending,
    ) -> Result<Taken, Vanished> {
        let Plan { cause, period_ms, burst, slow, loose, in_lane } = plan;
        let started = clock::ktime_ns();
        let look_again = slow || started.saturating_sub(target.first_seen_ns) < YOUNG_NS;
        if look_again {
            self.open_kept(target)?;
        }
        // a slow row has everything from the files, one in place of a look of the lane its own reading
        let looked = if slow || in_lane { None } else { self.looked(target, started) };
        let mut files_read = looked.map_or(0, |r| r.files_read() & self.walked);
        let (mut dir, mut is_asked) = (None, slow);
        if slow {
            dir = self.directory(target)?;
        }
        for (column, value) in looked.iter().flat_map(Reading::hot_columns) {
            self.handles[column].set(value);
        }
        let at = looked.map_or_else(clock::ktime_ns, |r| r.ktime_ns);
        let mut reading = in_lane.then(|| Reading::new(at, u64::from(period_ms)));
        let mut usage_usec = None;
        for step in 0..self.order.len() {
            let index = self.order[step];
            let file = &FILES[index];
            if file.tier == Tier::Slow && !slow {
                continue;
            }
            if target.files[index].absent && !look_again || files_read >> index & 1 == 1 {
                continue;
            }
            let is_stat = Some(index) == self.memory_stat;
            if is_stat && !look_again && looked.is_some() && target.still.take_over(usage_usec, &self.row) {
                files_read |= 1 << index;
                self.taken_over += 1;
                if target.still.is_at_rest() {
                    self.let_go(&mut target.files[index]);
                }
                continue;
            }
            let state = &target.files[index];
            if state.kept.is_none() && !state.absent && !std::mem::replace(&mut is_asked, true) {
                dir = match self.directory(target) {
                    Ok(dir) => dir,
                    Err(Vanished) => return Err(self.vanished()),
                };
            }
            if is_stat
                && !target.still.is_at_rest()
                && let Some(dir) = &dir
            {
                self.keep_file(target, index, dir);
            }
            match self.read_file(target, index, dir.as_ref()) {
                Read::Text(n) => {
                    target.files[index].absent = false;
                    self.pairs.clear();
                    if parse(index, &mut self.hints[index], &self.buffer[..n], &mut self.pairs).is_err() {
                        self.faults.unparsed(file.name);
                        continue;
                    }
                    files_read |= 1 << index;
                    if file.name == "memory.max" {
                        target.limit_read_ns = at;
                        target.memory_max =
                            self.pairs.iter().find(|(c, _)| *c == self.memory_max_column).map(|(_, v)| *v);
                    }
                    for &(column, value) in &self.pairs {
                        self.handles[column].set(value);
                        if column == self.usage_column {
                            usage_usec = Some(value);
                        }
                    }
                    if is_stat {
                        let mut columns = [0; MASK_WORDS];
                        self.pairs.iter().for_each(|(c, _)| columns[c / 64] |= 1 << (c % 64));
                        target.still.read(usage_usec, columns, &self.row);
                    }
                    if let Some(reading) = &mut reading {
                        reading.take(index, &self.pairs);
                    }
                    if file.format == Format::PerDevice && cause == Cause::Base {
                        let text = &self.buffer[..n];
                        self.devices.changed(text, slow, &mut target.devices, &mut self.changed);
                    }
                    if loose {
                        self.rest_of(file, n);
                    }
                }
                Read::Absent => target.files[index].absent = true,
                Read::Vanished => return Err(self.vanished()),
                Read::Failed => self.faults.unread(file.name),
            }
        }
        if let Some(dir) = dir.filter(|_| loose)
            && self.loose_files(target, &dir, at).is_err()
        {
            return Err(self.vanished());
        }
        let memory_current = reading.as_ref().and_then(Reading::memory_current);
        if let Some(reading) = reading.filter(|r| !r.is_empty()) {
            target.ring.push_written(reading);
        } else if looked.is_some() {
            target.ring.newest_is_written();
        }
        let stamp = Stamp { ktime_ns: at, wall_us: offset.wall_us(at) };
        let row = SampleRow { at: stamp, cause, period_ms, burst, files_read };
        out.samples.commit(&target.meta, row, &self.row);
        let devices = self.changed.len() as u64;
        out.devices.extend(self.changed.drain(..).map(|d| (stamp, target.meta.clone(), d)));
        if loose {
            self.keep_changes(target, cause != Cause::Base, at);
        }
        let metrics = out.metrics.commit(stamp, Some(&target.meta), &mut self.values);
        target.last_row_ns = at;
        let cut = std::mem::take(&mut self.loose.cut);
        Ok(Taken { at: stamp, metrics, devices, cut, in_lane: memory_current })
    }

    /// Leaves out the values that are as they were written last, unless all are due.
    fn keep_changes(&mut self, target: &mut Target, all: bool, now: u64) {
        let same = |(a, x): &Value, (b, y): &Value| Arc::ptr_eq(a, b) && x.to_bits() == y.to_bits();
        if all || target.next_repeat_ns <= now || target.last_values.len() != self.values.len() {
            target.last_values.clone_from(&self.values);
            target.next_repeat_ns = now + REPEAT_EVERY_NS;
            return;
        }
        let mut last = target.last_values.iter_mut();
        self.values.retain(|value| match last.next() {
            Some(before) if same(before, value) => false,
            Some(before) => {
                before.clone_from(value);
                true
            }
            None => true,
        });
    }

    /// Nothing of a reading stays that met the end of its cgroup.
    fn vanished(&mut self) -> Vanished {
        self.row.take(&mut Vec::new());
        self.values.clear();
        self.changed.clear();
        Vanished
    }

    /// The values of a file of the catalogue for which it has no column: a newer kernel's, another machine's.
    fn rest_of(&mut self, file: &'static File, length: usize) {
        let known = |key: &[u8], sub: &[u8]| match file.format {
            Format::KeyValue => file.columns.iter().any(|c| c.key.as_bytes() == key),
            Format::PerDevice => file.columns.iter().any(|c| c.key.as_bytes() == sub),
            Format::Single | Format::Pair | Format::Pressure => true,
        };
        if matches!(file.format, Format::KeyValue | Format::PerDevice) {
            let index = self.loose.file(file.name);
            if self.loose.take(index, &self.buffer[..length], known, &mut self.values).is_err() {
                self.faults.unparsed(file.name);
            }
        }
    }
}

#[cfg(test)]
mod tests;
