//! The one reader of cgroup files: opens them, reads them, sets the values through the recorder's handles, and commits
//! the row.
//!
//! Hot files stay open and are read by `pread`; slow ones are opened when they are due. A cgroup that has gone is an
//! ordinary result. A file that cannot be read or parsed leaves its columns NULL, its bit clear and a count. Called by
//! `pipeline`, which decides when.

mod cost;

pub use cost::{Cost, costs};

use crate::accumulator::{SampleRow, Samples, Stamp};
use crate::catalogue::{COLUMNS, FILES, FileIndex, Tier, columns};
use crate::cgroup::Meta;
use crate::cgroup::parse::{Hints, parse};
use crate::clock;
use crate::discovery::join;
use crate::lane::{Reading, Ring};
use crate::names::{Cause, CgroupId};
use crate::recorder::{Handle, Row, Series};
use crate::warn::Watch;
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
/// Descriptors left to the rest of the agent: its segments, its clients, its probes. Not even the lane takes of them.
const RESERVED_DESCRIPTORS: usize = 256;
/// Hot files are kept open up to this share of the descriptors: the rest is for the lane's files of cgroups to come, as
/// each has ten hot files and only one of the lane's, which without a descriptor is not read at all.
const HOT_SHARE: (usize, usize) = (7, 8);

/// The cgroup is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vanished;

#[derive(Debug, Default)]
struct FileState {
    kept: Option<OwnedFd>,
    absent: bool,
    hints: Hints,
}

/// What is kept for one followed cgroup.
pub struct Target {
    pub meta: Arc<Meta>,
    pub ring: Ring,
    pub next_base_ns: u64,
    pub next_slow_ns: u64,
    /// When its process table is due.
    pub next_table_ns: u64,
    pub first_seen_ns: u64,
    /// Instant of the latest row of any cause.
    pub last_row_ns: u64,
    /// memory.max as last read, by file or by the lane; `None` = not read or "max".
    pub memory_max: Option<u64>,
    /// The kernel told us of its birth, so that its first process is the first one that we see.
    pub born_here: bool,
    /// The container's first process, when we saw it start.
    pub init_pid: Option<u32>,
    /// memory.current when the process table was last taken for a rise to the limit, and when.
    pub last_table: Option<(u64, u64)>,
    /// memory.current as the lane read it last.
    pub last_memory: Option<u64>,
    /// Its early warnings.
    pub watch: Watch,
    path: PathBuf,
    row: Arc<Row>,
    handles: Vec<Handle>,
    files: Vec<FileState>,
}

/// Why a row is taken, and whether the slow files belong to it.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    pub cause: Cause,
    pub period_ms: u32,
    pub burst: Option<&'a str>,
    pub slow: bool,
    /// The row's memory.current takes the place of a lane reading.
    pub in_lane: bool,
}

/// What went wrong with files, since the start.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// By file name: text that did not parse.
    pub unparsed: BTreeMap<&'static str, u64>,
    /// By file name: reads that failed for another reason than the end of the cgroup.
    pub unread: BTreeMap<&'static str, u64>,
}

pub struct Sampler {
    root: PathBuf,
    series: Series,
    buffer: Vec<u8>,
    pairs: Vec<(usize, u64)>,
    kept: usize,
    max_kept: usize,
    memory_max_column: usize,
    is_short: bool,
    pub faults: Faults,
}

enum Read {
    Text(usize),
    Absent,
    Vanished,
    Failed,
}

impl Sampler {
    pub fn new(root: &Path, series: Series, descriptor_limit: usize) -> Self {
        Self {
            root: root.to_owned(),
            series,
            buffer: vec![0; BUFFER],
            pairs: Vec::with_capacity(COLUMNS),
            kept: 0,
            max_kept: descriptor_limit.saturating_sub(RESERVED_DESCRIPTORS),
            memory_max_column: columns().find(|(_, _, c)| c.name == "memory_max").map_or(0, |(i, _, _)| i),
            is_short: false,
            faults: Faults::default(),
        }
    }

    /// Starts to follow a cgroup. `None` when it has gone already.
    pub fn open(&mut self, meta: &Arc<Meta>, ring: Ring, now_ns: u64) -> Option<Target> {
        let path = join(&self.root, &meta.path);
        let (row, handles) = self.series.open(meta.id);
        let mut target = Target {
            meta: meta.clone(),
            ring,
            next_base_ns: now_ns,
            next_slow_ns: now_ns,
            next_table_ns: now_ns,
            first_seen_ns: now_ns,
            last_row_ns: 0,
            memory_max: None,
            born_here: false,
            init_pid: None,
            last_table: None,
            last_memory: None,
            watch: Watch::default(),
            path,
            row,
            handles,
            files: FILES.iter().map(|_| FileState::default()).collect(),
        };
        if self.open_kept(&mut target).is_err() {
            self.series.close(meta.id);
            return None;
        }
        Some(target)
    }

    /// Drops what was kept of a cgroup.
    pub fn close(&mut self, target: &Target) {
        self.kept -= target.files.iter().filter(|f| f.kept.is_some()).count();
        self.series.close(target.meta.id);
    }

    /// Descriptors kept, and how many may be.
    pub fn descriptors(&self) -> (usize, usize) {
        (self.kept, self.max_kept)
    }

    /// The cgroup's directory, if it is still the one we mean; `None` when no descriptor can be had for it now.
    fn directory(&mut self, target: &Target) -> Result<Option<OwnedFd>, Vanished> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(&target.path, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NODEV) => return Err(Vanished),
            Err(_) => {
                *self.faults.unread.entry("directory").or_default() += 1;
                return Ok(None);
            }
        };
        match rustix::fs::fstat(&dir) {
            Ok(stat) if CgroupId(stat.st_ino) == target.meta.id => Ok(Some(dir)),
            _ => Err(Vanished),
        }
    }

    /// Opens the files to be kept that are not open yet. The lane's file first: it is read most often, so it is the
    /// one to keep when descriptors run short.
    fn open_kept(&mut self, target: &mut Target) -> Result<(), Vanished> {
        let Some(dir) = self.directory(target)? else { return Ok(()) };
        for (i, file) in FILES.iter().enumerate() {
            let state = &mut target.files[i];
            if file.tier == Tier::Slow || state.kept.is_some() {
                continue;
            }
            let may = match file.tier {
                Tier::Lane => self.max_kept,
                _ => self.max_kept / HOT_SHARE.1 * HOT_SHARE.0,
            };
            if self.kept >= may {
                self.note_shortage();
                continue;
            }
            match rustix::fs::openat(&dir, file.name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
                Ok(fd) => {
                    state.kept = Some(fd);
                    state.absent = false;
                    self.kept += 1;
                }
                Err(Errno::NOENT | Errno::OPNOTSUPP) => state.absent = true,
                // out of descriptors: this file is opened anew at each read
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Says once that descriptors are short.
    fn note_shortage(&mut self) {
        if !std::mem::replace(&mut self.is_short, true) {
            tracing::warn!(
                kept = self.kept,
                limit = self.max_kept + RESERVED_DESCRIPTORS,
                "open files run short: files are opened anew for each sample, and cgroups to come may have no lane (no history before a kill); raise RLIMIT_NOFILE (LimitNOFILE=) to 16 for each cgroup"
            );
        }
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
                    Ok(fd) => rustix::io::pread(&fd, &mut self.buffer[..], 0),
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

    /// Reads one row of a cgroup and commits it. The row's instant is the one just before its first file was read.
    /// Nothing is committed of a cgroup that goes away meanwhile.
    pub fn sample(
        &mut self,
        target: &mut Target,
        plan: Plan<'_>,
        offset: clock::Offset,
        out: &mut Samples,
    ) -> Result<Stamp, Vanished> {
        let Plan { cause, period_ms, burst, slow, in_lane } = plan;
        let started = clock::ktime_ns();
        let look_again = slow || started.saturating_sub(target.first_seen_ns) < YOUNG_NS;
        if look_again {
            self.open_kept(target)?;
        }
        let opens = slow
            || target
                .files
                .iter()
                .zip(FILES)
                .any(|(s, f)| f.tier != Tier::Slow && s.kept.is_none() && !s.absent);
        let dir = if opens { self.directory(target)? } else { None };
        let at = clock::ktime_ns();
        let mut files_read = 0u64;
        let mut reading = in_lane.then(|| Reading::new(at, u64::from(period_ms)));
        for (index, file) in FILES.iter().enumerate() {
            if file.tier == Tier::Slow && !slow {
                continue;
            }
            if target.files[index].absent && !look_again {
                continue;
            }
            match self.read_file(target, index, dir.as_ref()) {
                Read::Text(n) => {
                    let state = &mut target.files[index];
                    state.absent = false;
                    self.pairs.clear();
                    if parse(index, &mut state.hints, &self.buffer[..n], &mut self.pairs).is_err() {
                        *self.faults.unparsed.entry(file.name).or_default() += 1;
                        continue;
                    }
                    files_read |= 1 << index;
                    if file.name == "memory.max" {
                        target.memory_max =
                            self.pairs.iter().find(|(c, _)| *c == self.memory_max_column).map(|(_, v)| *v);
                    }
                    for &(column, value) in &self.pairs {
                        target.handles[column].set(value);
                    }
                    if let Some(reading) = &mut reading {
                        reading.take(index, &self.pairs);
                    }
                }
                Read::Absent => target.files[index].absent = true,
                Read::Vanished => {
                    target.row.take(&mut Vec::new());
                    return Err(Vanished);
                }
                Read::Failed => *self.faults.unread.entry(file.name).or_default() += 1,
            }
        }
        if let Some(reading) = reading.filter(|r| !r.is_empty()) {
            target.ring.push_written(reading);
        }
        let stamp = Stamp { ktime_ns: at, wall_us: offset.wall_us(at) };
        out.commit(&target.meta, SampleRow { at: stamp, cause, period_ms, burst, files_read }, &target.row);
        target.last_row_ns = at;
        Ok(stamp)
    }

    /// Reads the lane's file of a cgroup into its ring. `None` where the cgroup has no such file.
    pub fn lane(&mut self, target: &mut Target, period_ms: u64) -> Result<Option<Reading>, Vanished> {
        if target.files[0].kept.is_none() {
            return Ok(None);
        }
        let ktime_ns = clock::ktime_ns();
        match self.read_file(target, 0, None) {
            Read::Text(n) => {
                self.pairs.clear();
                let parsed = parse(0, &mut target.files[0].hints, &self.buffer[..n], &mut self.pairs);
                let Some(&(_, memory_current)) = parsed.ok().and(self.pairs.first()) else {
                    *self.faults.unparsed.entry(FILES[0].name).or_default() += 1;
                    return Ok(None);
                };
                target.last_memory = Some(memory_current);
                let mut reading = Reading::new(ktime_ns, period_ms);
                reading.take(0, &self.pairs);
                Ok(target.ring.push(reading).then_some(reading))
            }
            Read::Vanished => Err(Vanished),
            Read::Absent => Ok(None),
            Read::Failed => {
                *self.faults.unread.entry(FILES[0].name).or_default() += 1;
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accumulator::{NodeNames, Pending};
    use crate::cgroup::identify;
    use crate::recorder;
    use arrow::array::{Array, AsArray, RecordBatch};
    use arrow::datatypes::Int64Type;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    /// A cgroup made of ordinary files: what the parsers and the policy need, not what the kernel does.
    fn fake(dir: &Path, files: &[(&str, &str)]) -> Arc<Meta> {
        let path = dir.join("web.service");
        fs::create_dir_all(&path).expect("mkdir");
        for (name, text) in files {
            fs::write(path.join(name), text).expect("write");
        }
        let id = CgroupId(fs::metadata(&path).expect("stat").ino());
        Arc::new(Meta {
            id,
            parent_id: None,
            path: "/web.service".into(),
            identity: identify("/web.service"),
        })
    }

    const SLOW: Plan<'_> =
        Plan { cause: Cause::Base, period_ms: 1000, burst: None, slow: true, in_lane: false };
    const HOT: Plan<'_> = Plan { slow: false, ..SLOW };

    fn with_sampler<T>(dir: &Path, descriptors: usize, test: impl FnOnce(&mut Sampler) -> T) -> T {
        let (recorder, series) = recorder::build();
        metrics::with_local_recorder(&recorder, || test(&mut Sampler::new(dir, series, descriptors)))
    }

    fn batch(samples: Samples) -> RecordBatch {
        let names = NodeNames { cluster: None, node: "n".into(), boot_id: "b".into() };
        Pending { samples, ..Pending::default() }.batches(&names).expect("builds").remove(0).1
    }

    fn cell(batch: &RecordBatch, column: &str, row: usize) -> Option<i64> {
        let a = batch.column_by_name(column).expect("column").as_primitive::<Int64Type>();
        a.is_valid(row).then(|| a.value(row))
    }

    fn bit(batch: &RecordBatch, file: &str) -> bool {
        let mask = cell(batch, "files_read", 0).expect("a mask");
        mask >> crate::catalogue::file(file).expect("known") & 1 == 1
    }

    #[test]
    fn max_is_null_with_its_bit_and_junk_is_null_without() {
        let dir = tempfile::tempdir().expect("a folder");
        let meta = fake(
            dir.path(),
            &[("memory.current", "8192\n"), ("memory.max", "max\n"), ("pids.current", "many\n")],
        );
        with_sampler(dir.path(), 1024, |s| {
            let mut target = s.open(&meta, Ring::new(1000, u64::MAX), 0).expect("there");
            let mut out = Samples::default();
            s.sample(&mut target, SLOW, clock::Offset::measure(), &mut out).expect("there");
            let b = batch(out);
            assert_eq!(cell(&b, "memory_current", 0), Some(8192));
            assert_eq!((cell(&b, "memory_max", 0), bit(&b, "memory.max")), (None, true));
            assert_eq!((cell(&b, "pids_current", 0), bit(&b, "pids.current")), (None, false));
            assert!(!bit(&b, "cpu.stat"), "a file that is not there was not read");
            assert_eq!(s.faults.unparsed.get("pids.current"), Some(&1));
        });
    }

    #[test]
    fn a_directory_made_anew_under_the_old_name_is_another_cgroup() {
        let dir = tempfile::tempdir().expect("a folder");
        let meta = fake(dir.path(), &[("memory.current", "1\n")]);
        with_sampler(dir.path(), 1024, |s| {
            let mut target = s.open(&meta, Ring::new(1000, u64::MAX), 0).expect("there");
            fs::rename(dir.path().join("web.service"), dir.path().join("old")).expect("rename");
            fake(dir.path(), &[("memory.current", "2\n")]);
            let mut out = Samples::default();
            assert!(s.sample(&mut target, SLOW, clock::Offset::measure(), &mut out).is_err());
            assert!(out.is_empty(), "no row of a cgroup that has gone");
        });
    }

    #[test]
    fn a_file_that_is_not_there_is_no_failed_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let meta = fake(dir.path(), &[("memory.current", "4096\n")]);
        with_sampler(dir.path(), 1024, |s| {
            let mut target = s.open(&meta, Ring::new(1000, u64::MAX), clock::ktime_ns()).expect("there");
            let mut out = Samples::default();
            s.sample(&mut target, HOT, clock::Offset::measure(), &mut out).expect("there");
            assert!(s.faults.unread.is_empty(), "{:?}", s.faults.unread);
        });
    }

    #[test]
    fn the_reserve_of_descriptors_is_kept_and_the_lane_goes_before_hot_files() {
        let dir = tempfile::tempdir().expect("a folder");
        let hot = ["memory.swap.current", "memory.events", "cpu.stat", "io.stat", "pids.current"];
        let mut files = vec![("memory.current", "1\n")];
        files.extend(hot.map(|f| (f, "")));
        let meta = fake(dir.path(), &files);
        with_sampler(dir.path(), RESERVED_DESCRIPTORS + 16, |s| {
            let open: Vec<_> =
                (0..20).map(|_| s.open(&meta, Ring::new(1000, u64::MAX), 0).expect("there")).collect();
            assert_eq!(s.descriptors(), (16, 16));
            let lanes = open.iter().filter(|t| t.files[0].kept.is_some()).count();
            assert_eq!(lanes, 5, "hot files stop at 14, so that two more lanes find room");
        });
    }

    #[test]
    fn short_of_descriptors_it_still_reads_everything() {
        let dir = tempfile::tempdir().expect("a folder");
        let meta = fake(
            dir.path(),
            &[("memory.current", "4096\n"), ("cpu.stat", "usage_usec 7\n"), ("pids.current", "3\n")],
        );
        with_sampler(dir.path(), RESERVED_DESCRIPTORS + 1, |s| {
            // one descriptor is all there is: it is the lane's
            let mut target = s.open(&meta, Ring::new(1000, u64::MAX), 0).expect("there");
            assert_eq!(s.descriptors().0, 1);
            let mut out = Samples::default();
            s.sample(&mut target, HOT, clock::Offset::measure(), &mut out).expect("there");
            assert_eq!(s.lane(&mut target, 50).map(|r| r.and_then(|r| r.memory_current())), Ok(Some(4096)));
            let b = batch(out);
            assert_eq!((cell(&b, "cpu_stat_usage_usec", 0), cell(&b, "pids_current", 0)), (Some(7), Some(3)));
            s.close(&target);
            assert_eq!(s.descriptors().0, 0);
        });
    }
}
