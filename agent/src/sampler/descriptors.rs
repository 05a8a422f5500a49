//! Which files of a cgroup stay open, and the lane that reads files: as many descriptors as may be, and what is without one is opened for
//! its reading.
//!
//! Must never read another cgroup under the old name: a directory is the one we mean by its inode. Called by the sampler and, once a
//! tick where the lane does not walk, by `pipeline`.

use super::{FileState, Read, Sampler, Target, Vanished};
use crate::catalogue::{FILES, FileIndex, Tier};
use crate::cgroup::parse::parse;
use crate::clock;
use crate::lane::Reading;
use crate::names::CgroupId;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// Descriptors left to the rest of the agent: its segments, its clients, its probes. Not even the lane takes of them.
pub(super) const RESERVED_DESCRIPTORS: usize = 256;
/// Hot files are kept open up to this share of the descriptors: the rest is for the lane's files of cgroups to come, as
/// each has ten hot files and only one of the lane's, which without a descriptor is read more seldom.
const HOT_SHARE: (usize, usize) = (7, 8);
/// How often the lane opens the file of a cgroup that has no descriptor: five calls of the kernel in place of one.
const OPENED_EVERY_MS: u64 = 250;

pub(super) fn hot_share(descriptors: usize) -> usize {
    descriptors / HOT_SHARE.1 * HOT_SHARE.0
}

impl Sampler {
    /// Keeps no more files of the hot tier open than that, whatever the limit of open files would allow: each takes kernel memory.
    pub fn keep_at_most(&mut self, hot: usize) {
        self.max_hot = self.max_hot.min(hot);
    }

    /// Opens what is to be kept open and is not, after the lane has ceased to walk.
    ///
    /// # Errors
    /// The cgroup is no more.
    pub fn keep_open(&mut self, target: &mut Target) -> Result<(), Vanished> {
        self.open_kept(target)
    }

    /// Drops what was kept of a cgroup.
    pub fn close(&mut self, target: &Target) {
        self.kept -= target.files.iter().filter(|f| f.kept.is_some()).count();
    }

    /// Descriptors kept, how many may be, and how many of the hot tier.
    pub fn descriptors(&self) -> (usize, usize, usize) {
        (self.kept, self.max_kept, self.max_hot)
    }

    /// The cgroup's directory, if it is still the one we mean; `None` when no descriptor can be had for it now.
    pub(super) fn directory(&mut self, target: &Target) -> Result<Option<OwnedFd>, Vanished> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(&target.path, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NODEV) => return Err(Vanished),
            Err(error) => {
                self.note_if_short(error);
                self.faults.unread("directory");
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
    pub(super) fn open_kept(&mut self, target: &mut Target) -> Result<(), Vanished> {
        let Some(dir) = self.directory(target)? else { return Ok(()) };
        for (i, file) in FILES.iter().enumerate() {
            let is_needed = Some(i) != self.memory_stat || !target.still.is_at_rest();
            if file.tier != Tier::Slow && self.walked >> i & 1 == 0 && is_needed {
                self.keep_file(target, i, &dir);
            }
        }
        Ok(())
    }

    pub(super) fn keep_file(&mut self, target: &mut Target, index: FileIndex, dir: &OwnedFd) {
        let (state, file) = (&mut target.files[index], &FILES[index]);
        if state.kept.is_some() {
            return;
        }
        let (may, can) = match file.tier {
            Tier::Lane => (self.max_kept, self.max_kept),
            _ => (self.max_hot, hot_share(self.max_kept)),
        };
        if self.kept >= may {
            if self.kept >= can {
                self.note_shortage();
            }
            return;
        }
        match rustix::fs::openat(dir, file.name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => {
                state.kept = Some(fd);
                state.absent = false;
                self.kept += 1;
            }
            Err(Errno::NOENT | Errno::OPNOTSUPP) => state.absent = true,
            // this file is opened anew at each read
            Err(error) => self.note_if_short(error),
        }
    }

    pub(super) fn let_go(&mut self, state: &mut FileState) {
        self.kept -= usize::from(state.kept.take().is_some());
    }

    /// The machine, or somebody else in this process, has taken descriptors that the limit would leave us.
    fn note_if_short(&mut self, error: Errno) {
        if matches!(error, Errno::MFILE | Errno::NFILE) {
            self.note_shortage();
        }
    }

    /// Whether more is wanted open than the limit of open files leaves: all is still read, more slowly.
    pub fn is_short(&self) -> bool {
        self.is_short
    }

    /// Says once that descriptors are short.
    fn note_shortage(&mut self) {
        if !std::mem::replace(&mut self.is_short, true) {
            tracing::warn!(
                kept = self.kept,
                limit = self.max_kept + RESERVED_DESCRIPTORS,
                "open files run short: files are opened anew for each sample, and cgroups to come may have a lane of four readings a second; raise RLIMIT_NOFILE (LimitNOFILE=) to 16 for each cgroup"
            );
        }
    }

    /// Reads the lane's file of a cgroup into its ring; one that is not kept open is opened for that, but not at each look. `None` where the
    /// cgroup has no such file, and where there is no news.
    pub fn lane(&mut self, target: &mut Target, period_ms: u64) -> Result<Option<Reading>, Vanished> {
        let (mut dir, mut period_ms) = (None, period_ms);
        if target.files[0].kept.is_none() {
            if target.files[0].absent {
                return Ok(None);
            }
            period_ms = period_ms.max(OPENED_EVERY_MS);
            let last_ns = target.ring.newest().map_or(0, |r| r.ktime_ns);
            // looks do not come at even distances: one that is a little early is not left out
            if clock::ktime_ns() < last_ns + period_ms * 1_000_000 / 10 * 9 {
                return Ok(None);
            }
            dir = self.directory(target)?;
            if dir.is_none() {
                return Ok(None);
            }
        }
        let ktime_ns = clock::ktime_ns();
        match self.read_file(target, 0, dir.as_ref()) {
            Read::Text(n) => {
                self.pairs.clear();
                if parse(0, &mut self.hints[0], &self.buffer[..n], &mut self.pairs).is_err() {
                    self.faults.unparsed(FILES[0].name);
                    return Ok(None);
                }
                let mut reading = Reading::new(ktime_ns, period_ms);
                reading.take(0, &self.pairs);
                Ok(target.ring.push(reading).then_some(reading))
            }
            Read::Vanished => Err(Vanished),
            Read::Absent => {
                target.files[0].absent = true;
                Ok(None)
            }
            Read::Failed => {
                self.faults.unread(FILES[0].name);
                Ok(None)
            }
        }
    }
}
