//! OOM kills as the memory controller counts them, for where no probe tells of them: `memory.events.local` of the cgroup
//! that lost a process, and `memory.events`, which also counts for all below it and so remembers those of cgroups that
//! have gone.
//!
//! Each kill is given out once: what a cgroup's own counter has grown by is its own, and what is left of the growth of a
//! sum belongs to cgroups below it whose own counter cannot be read any more. The kernel counts in the cgroup itself first
//! and then upwards (`memcg_memory_event`), so that a sum read before the parts is never larger than they are. Called by
//! `pipeline`; must never guess which of several cgroups it was.

use super::{Tree, join};
use crate::cgroup::Meta;
use crate::names::CgroupId;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub(super) const LOCAL: &str = "memory.events.local";
const SUM: &str = "memory.events";

/// Lines of those files.
#[derive(Clone, Copy)]
pub(super) enum Key {
    Oom,
    OomKill,
}

/// The counters of one cgroup when last read; `None` = not known.
#[derive(Debug)]
pub(super) struct Counted {
    /// `oom` of its own: whose limit was hit is the one where it grew.
    pub oom_local: Option<u64>,
    /// `oom_kill` of its own.
    kills_local: Option<u64>,
    /// Kills in it and below it that were given out, or were there before us.
    told: Option<u64>,
}

impl Counted {
    pub const ZERO: Self = Self { oom_local: Some(0), kills_local: Some(0), told: Some(0) };
}

/// Kills that were not given out before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kills {
    /// The cgroup they were in; of those that have gone, the deepest one above that is still there.
    pub meta: Arc<Meta>,
    pub count: u64,
    pub of_gone: bool,
}

fn parse(text: &str, key: Key) -> Option<u64> {
    let name = match key {
        Key::Oom => "oom",
        Key::OomKill => "oom_kill",
    };
    text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// The text of a file; nothing where there is no such file, since a controller that is off has counted nothing.
fn text(path: &Path) -> Option<String> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Some("oom 0\noom_kill 0\n".to_owned()),
        read => read.ok(),
    }
}

impl Tree {
    /// Keeps account of memory.events as well, from before the first walk on.
    pub fn keep_sums(&mut self) {
        self.sums = true;
    }

    pub(super) fn read_count(&self, path: &str, file: &str, key: Key) -> Option<u64> {
        parse(&fs::read_to_string(join(&self.root_path, path).join(file)).ok()?, key)
    }

    /// What a cgroup that was there before us has counted until now.
    pub(super) fn counted(&self, path: &str) -> Counted {
        let dir = join(&self.root_path, path);
        let local = text(&dir.join(LOCAL));
        let of = |key| parse(local.as_deref()?, key);
        let told = if self.sums { text(&dir.join(SUM)).and_then(|t| parse(&t, Key::OomKill)) } else { None };
        Counted { oom_local: of(Key::Oom), kills_local: of(Key::OomKill), told }
    }

    /// By how much the cgroup's own count of kills has grown since it was last asked for.
    pub fn kills_here(&mut self, id: CgroupId) -> u64 {
        let Some(path) = self.nodes.get(&id).map(|n| n.meta.path.clone()) else { return 0 };
        let Some(now) = self.read_count(&path, LOCAL, Key::OomKill) else { return 0 };
        let before = self.nodes.get_mut(&id).and_then(|n| n.counted.kills_local.replace(now));
        before.map_or(0, |before| now.saturating_sub(before))
    }

    /// Kills in a cgroup and below it that were not given out yet. A part of the tree that has none costs one read.
    pub fn kills(&mut self, id: CgroupId) -> Vec<Kills> {
        let (mut found, mut grown) = (Vec::new(), Vec::new());
        let mut stack = vec![id];
        while let Some(at) = stack.pop() {
            let Some(meta) = self.nodes.get(&at).map(|n| n.meta.clone()) else { continue };
            let Some(sum) = self.read_count(&meta.path, SUM, Key::OomKill) else { continue };
            if self.untold(at, sum) == 0 {
                continue;
            }
            let count = self.kills_here(at);
            if count > 0 {
                self.told(at, count);
                found.push(Kills { meta: meta.clone(), count, of_gone: false });
            }
            stack.extend(self.children(at).map(|n| n.meta.id));
            grown.push((meta, sum));
        }
        // those below stand behind those above: from the deepest up
        for (meta, sum) in grown.into_iter().rev() {
            let count = self.untold(meta.id, sum);
            if count > 0 {
                self.told(meta.id, count);
                found.push(Kills { meta, count, of_gone: true });
            }
        }
        found
    }

    /// Whether there is anything to give out.
    pub fn has_grown(&mut self, id: CgroupId) -> bool {
        let path = self.nodes.get(&id).map(|n| n.meta.path.clone());
        let sum = path.and_then(|path| self.read_count(&path, SUM, Key::OomKill));
        sum.is_some_and(|sum| self.untold(id, sum) > 0)
    }

    /// What a sum has that was not given out. The first one of a cgroup whose past is not known is its past.
    pub fn untold(&mut self, id: CgroupId, sum: u64) -> u64 {
        let Some(node) = self.nodes.get_mut(&id) else { return 0 };
        sum.saturating_sub(*node.counted.told.get_or_insert(sum))
    }

    fn told(&mut self, id: CgroupId, count: u64) {
        let line: Vec<_> = self.lineage(id).map(|n| n.meta.id).collect();
        for id in line {
            if let Some(told) = self.nodes.get_mut(&id).and_then(|n| n.counted.told.as_mut()) {
                *told += count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Rules;
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    fn id(path: &Path) -> CgroupId {
        CgroupId(fs::metadata(path).expect("stat").ino())
    }

    fn write(path: &Path, local: u64, sum: u64) {
        fs::write(path.join(LOCAL), format!("oom 0\noom_kill {local}\n")).expect("write");
        fs::write(path.join(SUM), format!("oom 0\noom_kill {sum}\noom_group_kill 0\n")).expect("write");
    }

    fn tree(dir: &Path) -> Tree {
        let mut t = Tree::new(dir, Rules::default(), 100).expect("a root");
        t.keep_sums();
        t.rescan();
        t
    }

    /// (path, count, of those that have gone)
    fn told(kills: Vec<Kills>) -> Vec<(String, u64, bool)> {
        kills.into_iter().map(|k| (k.meta.path.clone(), k.count, k.of_gone)).collect()
    }

    fn pod(dir: &Path) -> [PathBuf; 3] {
        let all = ["pod", "pod/a", "pod/b"].map(|p| dir.join(p));
        for p in &all {
            fs::create_dir(p).expect("mkdir");
            write(p, 0, 0);
        }
        all
    }

    #[test]
    fn a_kill_is_given_out_once_wherever_one_looks() {
        let dir = tempfile::tempdir().expect("a folder");
        let [pod, a, b] = pod(dir.path());
        write(&a, 3, 3);
        write(&pod, 0, 3);
        let mut t = tree(dir.path());
        assert_eq!(told(t.kills(id(&pod))), [], "what was there before us is not ours");
        write(&a, 5, 5);
        write(&pod, 0, 5);
        assert_eq!(told(t.kills(id(&pod))), [("/pod/a".to_owned(), 2, false)]);
        assert_eq!(told(t.kills(id(&a))), []);
        write(&b, 1, 1);
        write(&pod, 0, 6);
        assert_eq!(told(t.kills(id(&b))), [("/pod/b".to_owned(), 1, false)]);
        assert_eq!(told(t.kills(id(&pod))), []);
    }

    #[test]
    fn a_kill_in_a_cgroup_that_has_gone_is_its_parents() {
        let dir = tempfile::tempdir().expect("a folder");
        let [pod, a, b] = pod(dir.path());
        let mut t = tree(dir.path());
        t.removed(id(&a));
        fs::remove_dir_all(&a).expect("rmdir");
        write(&b, 1, 1);
        write(&pod, 0, 3);
        let all = told(t.kills(id(&pod)));
        assert_eq!(all, [("/pod/b".to_owned(), 1, false), ("/pod".to_owned(), 2, true)]);
        assert_eq!(told(t.kills(id(&pod))), []);
    }

    #[test]
    fn one_that_came_since_the_start_began_with_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let [pod, ..] = pod(dir.path());
        let mut t = tree(dir.path());
        let late = pod.join("late");
        fs::create_dir(&late).expect("mkdir");
        write(&late, 1, 1);
        write(&pod, 0, 1);
        t.rescan();
        assert_eq!(told(t.kills(id(&pod))), [("/pod/late".to_owned(), 1, false)]);
    }

    #[test]
    fn keys_are_whole_words() {
        let text = "low 0\noom 2\noom_kill 7\noom_group_kill 9\n";
        assert_eq!((parse(text, Key::Oom), parse(text, Key::OomKill)), (Some(2), Some(7)));
        assert_eq!(parse("oom_kill many\n", Key::OomKill), None);
    }

    proptest! {
        /// However kills, looks and ends are mixed, what is given out is what was counted.
        #[test]
        fn what_is_given_out_is_what_was_counted(
            steps in prop::collection::vec((0usize..3, 0u64..3, 0usize..4), 1..20)
        ) {
            let dir = tempfile::tempdir().expect("a folder");
            let paths = pod(dir.path());
            let ids = [id(&paths[0]), id(&paths[1]), id(&paths[2])];
            let (mut local, mut gone, mut alive, mut given) = ([0u64; 3], 0u64, [true; 3], 0);
            let mut t = tree(dir.path());
            for (at, kills, look) in steps {
                if look == 3 && at > 0 && alive[at] {
                    alive[at] = false;
                    gone += std::mem::take(&mut local[at]);
                    t.removed(ids[at]);
                    fs::remove_dir_all(&paths[at]).expect("rmdir");
                    continue;
                }
                local[at] += if alive[at] { kills } else { 0 };
                for i in (0..3).filter(|i| alive[*i]) {
                    let sum = if i == 0 { local.iter().sum::<u64>() + gone } else { local[i] };
                    write(&paths[i], local[i], sum);
                }
                if look < 3 && alive[look] {
                    given += t.kills(ids[look]).iter().map(|k| k.count).sum::<u64>();
                }
            }
            given += t.kills(ids[0]).iter().map(|k| k.count).sum::<u64>();
            prop_assert_eq!(given, local.iter().sum::<u64>() + gone);
        }
    }
}
