//! inotify over the tree of cgroups: directories made and removed, and `memory.events` files that changed. What the
//! agent has where no probe tells.
//!
//! An edge: it keeps watches and hands over what they tell; what that means is `pipeline`'s. Watches belong to the user,
//! not to the agent, so it takes a share of them only; those it could not have are counted and asked for again. Must never
//! wait. The kernel tells of a change of one file every 10 ms at the most (`cgroup_file_notify`).

use crate::names::CgroupId;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

const MAX_WATCHES: &str = "/proc/sys/fs/inotify/max_user_watches";
/// Of the user's watches, this share at the most: the kubelet and the shells of the node have the same user.
const SHARE: usize = 2;
/// Notices handed over in one go; what is left keeps the descriptor readable.
const MAX_NOTICES: usize = 4096;

/// What is to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants {
    /// Directories, for cgroups that come and go.
    pub directories: bool,
    /// memory.events, for kills.
    pub events: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    Made {
        parent: CgroupId,
        name: String,
    },
    Removed {
        parent: CgroupId,
        name: String,
    },
    /// memory.events of this cgroup changed: a kill in it or below it, or one of its other lines.
    Events(CgroupId),
    /// The kernel's queue was full: anything may have happened.
    Overflow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Directory,
    Events,
}

pub struct Notify {
    fd: OwnedFd,
    wants: Wants,
    max: usize,
    watches: HashMap<i32, (CgroupId, Of)>,
    of: HashMap<CgroupId, [Option<i32>; 2]>,
    /// Cgroups that lack a watch for want of room.
    refused: BTreeSet<CgroupId>,
    pub overflows: u64,
}

impl Notify {
    /// # Errors
    /// Why it cannot be had, with the mend.
    pub fn start(wants: Wants) -> Result<Self, String> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|e| match e {
            Errno::MFILE => {
                "no inotify instance is left to this user; raise fs.inotify.max_user_instances".to_owned()
            }
            e => format!("inotify: {e}"),
        })?;
        let limit = fs::read_to_string(MAX_WATCHES).ok().and_then(|t| t.trim().parse::<usize>().ok());
        Ok(Self {
            fd,
            wants,
            max: limit.unwrap_or(8192) / SHARE,
            watches: HashMap::new(),
            of: HashMap::new(),
            refused: BTreeSet::new(),
            overflows: 0,
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn wants(&self) -> Wants {
        self.wants
    }

    /// Watches held, and how many it may hold.
    pub fn watches(&self) -> (usize, usize) {
        (self.watches.len(), self.max)
    }

    /// Cgroups that it could not watch, or not wholly.
    pub fn refused(&self) -> usize {
        self.refused.len()
    }

    /// Why not all is watched, with the mend.
    pub fn shortage(&self) -> Option<String> {
        (!self.refused.is_empty()).then(|| {
            format!(
                "{} cgroups are not watched, since {} watches are all it may take (half of fs.inotify.max_user_watches): raise that",
                self.refused.len(),
                self.max
            )
        })
    }

    /// Watches a cgroup, as far as there is room. One that has gone or has no memory controller is no failure.
    pub fn watch(&mut self, id: CgroupId, path: &Path) {
        let have = self.of.get(&id).copied().unwrap_or_default();
        if [self.wants.directories, self.wants.events]
            .iter()
            .zip(have)
            .all(|(wanted, wd)| !wanted || wd.is_some())
        {
            return;
        }
        let directory = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::ONLYDIR;
        let wanted = [
            (self.wants.directories, Of::Directory, path.to_owned(), directory),
            (self.wants.events, Of::Events, path.join("memory.events"), WatchFlags::MODIFY),
        ];
        self.refused.remove(&id);
        for (at, (wanted, of, path, flags)) in wanted.into_iter().enumerate() {
            if !wanted || have[at].is_some() {
                continue;
            }
            if self.watches.len() >= self.max {
                self.refused.insert(id);
                break;
            }
            match inotify::add_watch(&self.fd, &path, flags) {
                Ok(wd) => {
                    self.watches.insert(wd, (id, of));
                    self.of.entry(id).or_default()[at] = Some(wd);
                }
                Err(Errno::NOSPC | Errno::NOMEM | Errno::MFILE) => {
                    self.refused.insert(id);
                }
                // gone, or not there: its end is told by its parent's directory
                Err(_) => {}
            }
        }
    }

    /// Those that lack a watch, to be tried again when others have gone.
    pub fn lacking(&self) -> Vec<CgroupId> {
        let room = self.max.saturating_sub(self.watches.len());
        self.refused.iter().copied().take(room).collect()
    }

    /// A watch outlives its cgroup, at the cost of kernel memory, until it is taken away.
    pub fn forget(&mut self, id: CgroupId) {
        self.refused.remove(&id);
        for wd in self.of.remove(&id).into_iter().flatten().flatten() {
            // a number may have gone over to a directory made anew at the same place
            if self.watches.get(&wd).is_some_and(|(of, _)| *of == id) {
                self.watches.remove(&wd);
                let _ = inotify::remove_watch(&self.fd, wd);
            }
        }
    }

    /// What was told since the last time, oldest first, at most [`MAX_NOTICES`].
    pub fn read(&mut self) -> Vec<Notice> {
        let mut notices = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        while notices.len() < MAX_NOTICES || !reader.is_buffer_empty() {
            let Ok(event) = reader.next() else { break };
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                self.overflows += 1;
                notices.push(Notice::Overflow);
                continue;
            }
            let Some(&(id, of)) = self.watches.get(&event.wd()) else { continue };
            if flags.contains(ReadFlags::IGNORED) {
                // the kernel has taken the watch away itself
                self.watches.remove(&event.wd());
                if let Some(have) = self.of.get_mut(&id) {
                    have.iter_mut().filter(|wd| **wd == Some(event.wd())).for_each(|wd| *wd = None);
                }
                continue;
            }
            let name = || event.file_name().and_then(|n| n.to_str().ok()).map(str::to_owned);
            let notice = match (of, flags.contains(ReadFlags::ISDIR)) {
                (Of::Events, _) if flags.contains(ReadFlags::MODIFY) => Some(Notice::Events(id)),
                (Of::Directory, true) if flags.contains(ReadFlags::CREATE) => {
                    name().map(|name| Notice::Made { parent: id, name })
                }
                (Of::Directory, true) if flags.contains(ReadFlags::DELETE) => {
                    name().map(|name| Notice::Removed { parent: id, name })
                }
                _ => None,
            };
            notices.extend(notice);
        }
        notices
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const ALL: Wants = Wants { directories: true, events: true };

    fn id(path: &Path) -> CgroupId {
        CgroupId(fs::metadata(path).expect("stat").ino())
    }

    #[test]
    fn what_comes_goes_and_changes_is_told_by_cgroup() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("memory.events"), "").expect("write");
        let root = id(dir.path());
        let mut n = Notify::start(ALL).expect("inotify");
        n.watch(root, dir.path());
        n.watch(root, dir.path());
        assert_eq!((n.watches().0, n.refused(), n.shortage()), (2, 0, None));
        fs::create_dir(dir.path().join("a")).expect("mkdir");
        fs::write(dir.path().join("plain"), "").expect("write");
        fs::write(dir.path().join("memory.events"), "oom_kill 1").expect("write");
        fs::remove_dir(dir.path().join("a")).expect("rmdir");
        let mut told = n.read();
        // opening to write truncates, which is a change too
        told.dedup();
        let name = || "a".to_owned();
        assert_eq!(
            told,
            [
                Notice::Made { parent: root, name: name() },
                Notice::Events(root),
                Notice::Removed { parent: root, name: name() }
            ]
        );
        n.forget(root);
        assert_eq!(n.watches().0, 0);
        fs::create_dir(dir.path().join("b")).expect("mkdir");
        assert_eq!(n.read(), []);
    }

    #[test]
    fn what_finds_no_room_is_counted_and_tried_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut n = Notify::start(Wants { directories: true, events: false }).expect("inotify");
        n.max = 2;
        let made: Vec<_> = (0..4)
            .map(|i| {
                let path = dir.path().join(i.to_string());
                fs::create_dir(&path).expect("mkdir");
                n.watch(id(&path), &path);
                path
            })
            .collect();
        assert_eq!((n.watches(), n.refused()), ((2, 2), 2));
        assert!(n.shortage().is_some_and(|s| s.contains("max_user_watches")));
        assert_eq!(n.lacking(), []);
        n.forget(id(&made[0]));
        let lacking = n.lacking();
        assert_eq!(lacking.len(), 1);
        n.watch(lacking[0], made.iter().find(|p| id(p) == lacking[0]).expect("one"));
        assert_eq!((n.watches().0, n.refused()), (2, 1));
    }
}
