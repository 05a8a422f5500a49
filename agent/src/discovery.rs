//! Which cgroups there are, and which we follow: a tree of ids that the kernel's mkdir and rmdir events keep, and that
//! a walk of the file system starts and corrects.
//!
//! What `memory.events` counts of kills in it is in `kills`, beside this file.
//!
//! Keyed by id, so that a directory made anew under an old name is a new cgroup. Paths are relative to the agent's
//! cgroup root: an event's parent must be in the tree, which is also how events from outside the root drop out.

mod kills;

use crate::cgroup::{Identity, Meta, holds_pods, identify};
use crate::names::{CgroupId, Scope};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use kills::Kills;
use kills::{Counted, Key, LOCAL};

/// Cgroups known at the most, followed or not, as a multiple of those followed. A tree larger than that is counted as
/// cut, never grown into.
const KNOWN_PER_FOLLOWED: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    #[error("cannot read the cgroup root {}: {source}; set cgroup_root to where cgroup v2 is mounted", path.display())]
    Root { path: PathBuf, source: std::io::Error },
    #[error("sampling.{key}: {pattern:?} is not a glob: {source}")]
    Glob { key: &'static str, pattern: String, source: glob::PatternError },
}

/// What to follow besides containers, pods, services and what holds pods.
#[derive(Debug, Default)]
pub struct Rules {
    include: Vec<glob::Pattern>,
    exclude: Vec<glob::Pattern>,
}

impl Rules {
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, DiscoveryError> {
        let compile = |key, list: &[String]| {
            list.iter()
                .map(|p| {
                    glob::Pattern::new(p).map_err(|source| DiscoveryError::Glob {
                        key,
                        pattern: p.clone(),
                        source,
                    })
                })
                .collect::<Result<_, _>>()
        };
        Ok(Self { include: compile("include", include)?, exclude: compile("exclude", exclude)? })
    }

    fn follow(&self, path: &str, identity: &Identity) -> bool {
        if self.exclude.iter().any(|p| p.matches(path)) {
            return false;
        }
        let known = matches!(identity.scope, Scope::Container | Scope::Pod | Scope::Service | Scope::Node);
        known || holds_pods(path) || self.include.iter().any(|p| p.matches(path))
    }
}

#[derive(Debug)]
pub struct Node {
    pub meta: Arc<Meta>,
    pub followed: bool,
    /// The rules want it followed; it is not when there was no room.
    wanted: bool,
    counted: Counted,
    children: usize,
}

/// What a walk found.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// In the tree now, or followed now that there is room for it.
    Added(Arc<Meta>),
    /// Not there any more. The tree keeps it until [`Tree::removed`], since the kernel may have a last word about it.
    Gone(Arc<Meta>),
}

#[derive(Debug)]
pub struct Tree {
    root_path: PathBuf,
    root: CgroupId,
    nodes: HashMap<CgroupId, Node>,
    rules: Rules,
    max_followed: usize,
    followed: usize,
    /// Cgroups that were not taken in, or not followed, when they came since a bound was reached.
    pub cut: u64,
    /// Those of them that are there now, as far as is known, and not in the tree: the next walk meets them again.
    refused: u64,
    /// The first walk is over: what comes now has come since the start.
    walked: bool,
    /// Whether memory.events is kept account of.
    sums: bool,
    /// What came and what went since it was last asked for, where somebody asks.
    news: Option<Vec<News>>,
}

/// A cgroup that came into the tree or left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    Came(CgroupId),
    Went(CgroupId),
}

impl Tree {
    /// A tree that knows its root only.
    pub fn new(root_path: &Path, rules: Rules, max_followed: usize) -> Result<Self, DiscoveryError> {
        let stat = fs::metadata(root_path)
            .map_err(|source| DiscoveryError::Root { path: root_path.to_owned(), source })?;
        let root = CgroupId(stat.ino());
        let mut tree = Self {
            root_path: root_path.to_owned(),
            root,
            nodes: HashMap::new(),
            rules,
            max_followed,
            followed: 0,
            cut: 0,
            refused: 0,
            walked: false,
            sums: false,
            news: None,
        };
        tree.add(root, None, "/".to_owned());
        Ok(tree)
    }

    fn add(&mut self, id: CgroupId, parent_id: Option<CgroupId>, path: String) -> Option<Arc<Meta>> {
        if self.nodes.len() >= self.max_followed * KNOWN_PER_FOLLOWED {
            self.cut += 1;
            self.refused += 1;
            return None;
        }
        let identity = identify(&path);
        let wanted = self.rules.follow(&path, &identity);
        let followed = wanted && self.followed < self.max_followed;
        self.cut += u64::from(wanted && !followed);
        let meta = Arc::new(Meta { id, parent_id, path, identity });
        // one that has come since the start began with nothing, whatever it counts when we first look
        let counted = if self.walked { Counted::ZERO } else { self.counted(&meta.path) };
        self.nodes.insert(id, Node { meta: meta.clone(), followed, wanted, counted, children: 0 });
        self.followed += usize::from(followed);
        self.tell(News::Came(id));
        if let Some(parent) = parent_id.and_then(|p| self.nodes.get_mut(&p)) {
            parent.children += 1;
        }
        Some(meta)
    }

    /// A directory was made. `None` when it lies outside the root, is known already or finds no room.
    pub fn made(&mut self, id: CgroupId, parent_id: CgroupId, name: &str) -> Option<Arc<Meta>> {
        if self.nodes.contains_key(&id) {
            return None;
        }
        let path = self.path_below(parent_id, name)?;
        self.add(id, Some(parent_id), path)
    }

    fn path_below(&self, parent_id: CgroupId, name: &str) -> Option<String> {
        let parent = &self.nodes.get(&parent_id)?.meta.path;
        Some(if parent == "/" { format!("/{name}") } else { format!("{parent}/{name}") })
    }

    /// One that has gone and was never in the tree, as it would have been followed; `None` when it lies outside the root (or below
    /// another stranger), when the rules pass it over, and when there is no room in which it would have been followed.
    pub fn stranger(&self, id: CgroupId, parent_id: Option<CgroupId>, name: &str) -> Option<Arc<Meta>> {
        let has_room =
            self.followed < self.max_followed && self.nodes.len() < self.max_followed * KNOWN_PER_FOLLOWED;
        let path = self.path_below(parent_id.filter(|_| self.walked && has_room)?, name)?;
        let identity = identify(&path);
        self.rules.follow(&path, &identity).then(|| Arc::new(Meta { id, parent_id, path, identity }))
    }

    /// A directory was removed.
    pub fn removed(&mut self, id: CgroupId) -> Option<Node> {
        if id == self.root {
            return None;
        }
        let node = self.nodes.remove(&id)?;
        self.followed -= usize::from(node.followed);
        if let Some(parent) = node.meta.parent_id.and_then(|p| self.nodes.get_mut(&p)) {
            parent.children = parent.children.saturating_sub(1);
        }
        self.tell(News::Went(id));
        Some(node)
    }

    /// Walks the file system, takes in what the tree does not know and tells what has gone. Below a directory that
    /// cannot be read for another reason than its end (no descriptor left, no right) nothing is called gone.
    pub fn rescan(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        // those that found no room are met again, and are not cut again
        let (cut_before, refused_before) = (self.cut, std::mem::take(&mut self.refused));
        let mut seen = HashSet::from([self.root]);
        let mut unread = HashSet::new();
        let mut stack = vec![(self.root, self.root_path.clone())];
        while let Some((parent_id, dir)) = stack.pop() {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(e) => {
                    let gone = e.kind() == io::ErrorKind::NotFound
                        || e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error());
                    if !gone {
                        unread.insert(parent_id);
                    }
                    continue;
                }
            };
            for entry in entries {
                let Ok(entry) = entry else {
                    unread.insert(parent_id);
                    break;
                };
                if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                    continue;
                }
                let id = CgroupId(entry.ino());
                let name = entry.file_name();
                let Some(name) = name.to_str() else { continue };
                seen.insert(id);
                if let Some(meta) = self.made(id, parent_id, name) {
                    changes.push(Change::Added(meta));
                }
                // kernfs counts a directory's directories in its links: most have none, and need not be read
                if entry.metadata().is_ok_and(|m| m.nlink() == 2) {
                    continue;
                }
                stack.push((id, entry.path()));
            }
        }
        for node in self.nodes.values().filter(|n| !seen.contains(&n.meta.id)) {
            if !self.lineage(node.meta.id).any(|n| unread.contains(&n.meta.id)) {
                changes.push(Change::Gone(node.meta.clone()));
            }
        }
        self.cut = self.cut.saturating_sub(self.refused.min(refused_before)).max(cut_before);
        self.follow_more(&mut changes);
        self.walked = true;
        changes
    }

    /// Keeps [`News`] from now on, those of the cgroups that are there first.
    pub fn keep_news(&mut self) {
        self.news = Some(self.nodes.keys().map(|id| News::Came(*id)).collect());
    }

    /// The oldest of the news, at most so many.
    pub fn take_news(&mut self, most: usize) -> Vec<News> {
        self.news.as_mut().map(|news| news.drain(..news.len().min(most)).collect()).unwrap_or_default()
    }

    fn tell(&mut self, news: News) {
        if let Some(all) = &mut self.news {
            all.push(news);
        }
    }

    /// Follows those that found no room when they came, as far as there is room now.
    fn follow_more(&mut self, changes: &mut Vec<Change>) {
        let room = self.max_followed.saturating_sub(self.followed);
        if room == 0 {
            return;
        }
        for node in self.nodes.values_mut().filter(|n| n.wanted && !n.followed).take(room) {
            node.followed = true;
            self.followed += 1;
            let added = Change::Added(node.meta.clone());
            if !changes.contains(&added) {
                changes.push(added);
            }
        }
    }

    pub fn get(&self, id: CgroupId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub fn root(&self) -> CgroupId {
        self.root
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    pub fn known(&self) -> usize {
        self.nodes.len()
    }

    pub fn followed(&self) -> usize {
        self.followed
    }

    /// The cgroup and its ancestors, innermost first.
    pub fn lineage(&self, id: CgroupId) -> impl Iterator<Item = &Node> {
        std::iter::successors(self.nodes.get(&id), |n| self.nodes.get(&n.meta.parent_id?))
    }

    /// What a person would name when something happens in this cgroup: the innermost container around it, else the
    /// pod, else the service, else the innermost followed one.
    pub fn owner(&self, id: CgroupId) -> Option<&Node> {
        let rank = |n: &Node| match n.meta.identity.scope {
            Scope::Container => 0,
            Scope::Pod => 1,
            Scope::Service => 2,
            Scope::Other => 3,
            Scope::Node => 4,
        };
        // the first of the smallest rank is the innermost one
        self.lineage(id).filter(|n| n.followed).min_by_key(|n| rank(n))
    }

    /// A followed cgroup and those above it up to its pod (or itself alone, where there is none).
    pub fn up_to_pod(&self, id: CgroupId) -> Vec<Arc<Meta>> {
        let line: Vec<_> = self.lineage(id).filter(|n| n.followed).collect();
        let pod = line.iter().position(|n| n.meta.identity.scope == Scope::Pod).unwrap_or(0);
        line.into_iter().take(pod + 1).map(|n| n.meta.clone()).collect()
    }

    /// The cgroups right below one.
    pub fn children(&self, id: CgroupId) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(move |n| n.meta.parent_id == Some(id))
    }

    pub fn path(&self, meta: &Meta) -> PathBuf {
        join(&self.root_path, &meta.path)
    }

    /// The deepest of the cgroup and its ancestors whose `oom` in memory.events.local grew since it was last read; all
    /// of them are read anew. This finds the limit that was hit where no probe can.
    pub fn limit_by_events_local(&mut self, id: CgroupId) -> Option<Arc<Meta>> {
        let line: Vec<_> = self.lineage(id).map(|n| n.meta.clone()).collect();
        let mut deepest = None;
        for meta in line {
            let now = self.read_count(&meta.path, LOCAL, Key::Oom);
            if let Some(node) = self.nodes.get_mut(&meta.id) {
                let before = &mut node.counted.oom_local;
                let grew = before.zip(now).is_some_and(|(before, now)| now > before);
                if grew && deepest.is_none() {
                    deepest = Some(meta);
                }
                *before = now.or(*before);
            }
        }
        deepest
    }
}

/// `root` + a path of ours with its leading slash.
pub fn join(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn tree(dir: &Path, max: usize) -> Tree {
        Tree::new(dir, Rules::default(), max).expect("a root")
    }

    #[test]
    fn a_walk_finds_what_is_there_and_what_has_gone() {
        let dir = tempfile::tempdir().expect("a folder");
        let container = dir.path().join("docker").join(CID);
        fs::create_dir_all(container.join("inner")).expect("mkdir");
        let mut t = tree(dir.path(), 100);
        assert_eq!(t.rescan().len(), 3);
        assert_eq!(t.rescan(), []);
        let inner = CgroupId(fs::metadata(container.join("inner")).expect("stat").ino());
        assert_eq!(t.owner(inner).map(|n| n.meta.path.clone()), Some(format!("/docker/{CID}")));
        fs::remove_dir(container.join("inner")).expect("rmdir");
        assert!(matches!(&t.rescan()[..], [Change::Gone(m)] if m.id == inner));
        assert!(t.removed(inner).is_some());
        assert_eq!((t.known(), t.followed()), (3, 2));
    }

    #[test]
    fn what_lies_below_a_directory_that_cannot_be_read_is_not_called_gone() {
        let dir = tempfile::tempdir().expect("a folder");
        let slice = dir.path().join("system.slice");
        fs::create_dir_all(slice.join("a.service")).expect("mkdir");
        let mut t = tree(dir.path(), 100);
        t.rescan();
        // a link in place of the directory, to itself: ELOOP, as good an error as EMFILE for everybody, root too
        let (aside, id) = (dir.path().join("aside"), fs::metadata(&slice).expect("stat").ino());
        fs::rename(&slice, &aside).expect("rename");
        t.root_path = dir.path().join("loop");
        std::os::unix::fs::symlink("loop", &t.root_path).expect("symlink");
        assert_eq!(t.rescan(), []);
        assert!(t.get(CgroupId(id)).is_some());
    }

    #[test]
    fn one_that_found_no_room_is_followed_when_there_is_some() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["a.service", "b.service"] {
            fs::create_dir(dir.path().join(name)).expect("mkdir");
        }
        let mut t = tree(dir.path(), 2);
        t.rescan();
        let first = |t: &Tree, followed| {
            t.nodes().find(|n| n.followed == followed && n.meta.path != "/").map(|n| n.meta.clone())
        };
        let (in_, out) = (first(&t, true).expect("one has room"), first(&t, false).expect("one has none"));
        fs::remove_dir(dir.path().join(&in_.path[1..])).expect("rmdir");
        t.removed(in_.id);
        assert_eq!(t.rescan(), [Change::Added(out)]);
        assert_eq!((t.followed(), t.cut), (2, 1));
    }

    #[test]
    fn an_event_from_outside_the_root_is_not_ours() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut t = tree(dir.path(), 100);
        assert!(t.made(CgroupId(5), CgroupId(u64::MAX), "x").is_none());
        assert!(t.made(CgroupId(5), t.root(), "x.service").is_some());
        assert!(t.made(CgroupId(5), t.root(), "x.service").is_none(), "known already");
        assert!(t.removed(CgroupId(5)).is_some_and(|n| n.followed));
        assert!(t.removed(t.root()).is_none());
    }

    #[test]
    fn the_bounds_hold_and_what_they_cut_is_counted() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut t = tree(dir.path(), 3);
        for i in 0..20u64 {
            t.made(CgroupId(u64::MAX - i), t.root(), &format!("s{i}.service"));
        }
        assert_eq!((t.followed(), t.known()), (3, 12));
        assert!(t.cut >= 8, "{}", t.cut);
    }

    #[test]
    fn what_found_no_room_is_cut_once_however_often_it_is_met() {
        let dir = tempfile::tempdir().expect("a folder");
        for i in 0..10 {
            fs::create_dir(dir.path().join(format!("s{i}.service"))).expect("mkdir");
        }
        let mut t = tree(dir.path(), 1);
        t.rescan();
        // the root is followed, three are known and seven are not: ten are cut
        assert_eq!((t.followed(), t.known(), t.cut), (1, 4, 10));
        t.rescan();
        t.rescan();
        assert_eq!(t.cut, 10);
        fs::create_dir(dir.path().join("late.service")).expect("mkdir");
        t.rescan();
        assert_eq!(t.cut, 11);
    }

    #[test]
    fn include_and_exclude_are_globs_of_paths() {
        let dir = tempfile::tempdir().expect("a folder");
        let rules = Rules::new(&["/batch/*".into()], &["/system.slice/noisy*".into()]).expect("globs");
        let mut t = Tree::new(dir.path(), rules, 100).expect("a root");
        let root = t.root();
        t.made(CgroupId(u64::MAX - 1), root, "batch");
        t.made(CgroupId(u64::MAX - 2), CgroupId(u64::MAX - 1), "job1");
        t.made(CgroupId(u64::MAX - 3), root, "system.slice");
        t.made(CgroupId(u64::MAX - 4), CgroupId(u64::MAX - 3), "noisy.service");
        let followed = |n: u64| t.get(CgroupId(u64::MAX - n)).is_some_and(|n| n.followed);
        assert_eq!([1, 2, 3, 4].map(followed), [false, true, false, false]);
        assert!(Rules::new(&["[".into()], &[]).is_err_and(|e| e.to_string().contains("sampling.include")));
    }

    #[test]
    fn the_limit_is_where_oom_grew_deepest() {
        let dir = tempfile::tempdir().expect("a folder");
        let (pod, leaf) = (dir.path().join("a"), dir.path().join("a").join("b"));
        fs::create_dir_all(&leaf).expect("mkdir");
        let write = |p: &Path, n: u32| {
            fs::write(p.join("memory.events.local"), format!("low 0\noom {n}\noom_kill 9\n"))
        };
        write(&pod, 1).and(write(&leaf, 0)).expect("write");
        let mut t = tree(dir.path(), 100);
        t.rescan();
        let leaf_id = CgroupId(fs::metadata(&leaf).expect("stat").ino());
        assert_eq!(t.limit_by_events_local(leaf_id), None);
        write(&pod, 2).expect("write");
        assert_eq!(t.limit_by_events_local(leaf_id).map(|m| m.path.clone()), Some("/a".into()));
        assert_eq!(t.limit_by_events_local(leaf_id), None, "the same growth counts once");
    }
}
