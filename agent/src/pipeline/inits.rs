//! Which process is a container's init, and how we know.
//!
//! The end of the init is the end of the container, so it must be known at once: a container may live 200 ms. What tells
//! it, from the weakest on: the oldest process in cgroup.procs (read when the cgroup gets its first process, and with its
//! base samples), the first exec in a cgroup that was made under our eyes, an exec by pid 1 of a pid namespace; both by a
//! process whose parent is outside. Must never take a sandbox's pid 1 inside a container for the container's own. `react` and `state` call it.

use super::state::State;
use crate::cgroup::Meta;
use crate::event::{Exec, Exit};
use crate::names::{CgroupId, Scope};
use crate::processes;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// runc starts a container by two helpers that end well once its init runs: one that ends so early while others go on
/// was not the init.
const HELPERS_WITHIN: u64 = 1_000_000_000;

/// What runc's helpers call themselves: on a slow node one ends later than that.
const RUNC_STAGE: &str = "runc:[";
/// What the one process of a pod's sandbox is called, whatever the runtime.
const SANDBOX: &str = "pause";

/// How an init is known; a better reason takes the place of a weaker one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum By {
    Oldest,
    FirstExec,
    Namespace,
}

struct Init {
    pid: u32,
    by: By,
    /// What goes on in the container after its end is another process, and no init.
    ended: bool,
}

/// As long as their cgroups live.
#[derive(Default)]
pub(super) struct Inits {
    /// Cgroups of whose birth the kernel told us: their first process is the first one that we see.
    born: HashSet<CgroupId>,
    known: HashMap<CgroupId, Init>,
    /// Those that the kernel side is to be told of, so that signals to them are told.
    news: Vec<(u32, CgroupId)>,
}

impl Inits {
    pub fn born(&mut self, id: CgroupId) {
        self.born.insert(id);
    }

    pub fn is_born_here(&self, id: CgroupId) -> bool {
        self.born.contains(&id)
    }

    pub fn forget(&mut self, id: CgroupId) {
        self.born.remove(&id);
        self.known.remove(&id);
    }

    pub fn pid(&self, id: CgroupId) -> Option<u32> {
        self.known.get(&id).filter(|init| !init.ended).map(|init| init.pid)
    }

    /// The container whose init has this pid, as long as it has not ended.
    pub fn of_pid(&self, pid: u32) -> Option<CgroupId> {
        self.known.iter().find(|(_, init)| !init.ended && init.pid == pid).map(|(id, _)| *id)
    }

    pub fn learn(&mut self, id: CgroupId, pid: u32, by: By) {
        let known = self.known.get(&id);
        if known.is_some_and(|init| init.ended || by <= init.by) {
            return;
        }
        if known.is_none_or(|init| init.pid != pid) {
            self.news.push((pid, id));
        }
        self.known.insert(id, Init { pid, by, ended: false });
    }

    /// Whether anything is known of it, be it that it has ended.
    fn is_settled(&self, id: CgroupId) -> bool {
        self.known.contains_key(&id)
    }

    /// The init ended; or a helper did, that was taken for it.
    fn ended(&mut self, id: CgroupId, pid: u32, is_helper: bool) {
        self.news.retain(|news| *news != (pid, id));
        if is_helper {
            self.known.remove(&id);
        } else if let Some(init) = self.known.get_mut(&id) {
            init.ended = true;
        }
    }

    pub fn take_news(&mut self) -> Vec<(u32, CgroupId)> {
        std::mem::take(&mut self.news)
    }
}

impl State {
    /// Whether it is a pod's sandbox, whose one process holds the pod's namespaces. A runtime ends it by SIGKILL whenever the pod
    /// ends: an event, and nothing that went wrong.
    pub(super) fn is_sandbox(&self, owner: &Meta, comm: &str) -> bool {
        let who = &owner.identity;
        who.pod_uid.is_some() && comm == SANDBOX && self.pods.as_ref().is_none_or(|pods| !pods.has_named(who))
    }

    /// Remembers the oldest process of a container that was born under our eyes. One that was there before us has had
    /// other processes maybe, so its oldest one proves nothing.
    pub(super) fn look_for_init(&mut self, id: CgroupId) {
        if !self.inits.is_born_here(id) || self.inits.is_settled(id) {
            return;
        }
        let Some(node) = self.tree.get(id).filter(|n| n.meta.identity.scope == Scope::Container) else {
            return;
        };
        if let Some(pid) = processes::first(Path::new("/proc"), &self.tree.path(&node.meta)) {
            self.inits.learn(id, pid, By::Oldest);
        }
    }

    /// A program begins in a container: its own one, maybe.
    pub(super) fn learn_init(&mut self, owner: &Meta, exec: &Exec) {
        let Some(pid) = exec.task.pid.filter(|_| owner.identity.scope == Scope::Container) else { return };
        let by = match (exec.inner_pid, exec.first_process && self.inits.is_born_here(owner.id)) {
            (Some(1), _) => By::Namespace,
            (_, true) => By::FirstExec,
            _ => return,
        };
        // One whose parent is inside is the init of a sandbox, or the child of an init that came in without an exec.
        if !self.has_inside(owner, exec.ppid) {
            self.inits.learn(owner.id, pid, by);
        }
    }

    fn has_inside(&self, owner: &Meta, pid: Option<u32>) -> bool {
        pid.is_some_and(|pid| processes::pids(&self.tree.path(owner)).contains(&pid))
    }

    /// Whether it was the container's init that ended: the process that we know as such, or pid 1 of a namespace whose
    /// parent is outside the container. (One whose parent is inside is the init of a sandbox in it.)
    pub(super) fn is_init(&mut self, owner: &Meta, ktime_ns: u64, exit: &Exit) -> bool {
        if let Some(pid) = exit.task.pid.filter(|pid| self.inits.pid(owner.id) == Some(*pid)) {
            let first_seen = self.targets.get(&owner.id).map_or(ktime_ns, |t| t.first_seen_ns);
            let is_early = ktime_ns < first_seen + HELPERS_WITHIN || exit.task.comm.starts_with(RUNC_STAGE);
            let is_helper = is_early
                && exit.exit_code == Some(0)
                && exit.inner_pid != Some(1)
                // the kernel tells of an end before it takes the task out of the list (do_exit, 6.12)
                && processes::pids(&self.tree.path(owner)).iter().any(|other| *other != pid);
            self.inits.ended(owner.id, pid, is_helper);
            return !is_helper;
        }
        exit.inner_pid == Some(1) && !self.has_inside(owner, exit.ppid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_better_reason_takes_the_place_of_a_weaker_one_and_no_other() {
        let (mut inits, id) = (Inits::default(), CgroupId(7));
        inits.learn(id, 10, By::Oldest);
        inits.learn(id, 11, By::Oldest);
        assert_eq!(inits.pid(id), Some(10));
        inits.learn(id, 12, By::FirstExec);
        inits.learn(id, 13, By::Namespace);
        inits.learn(id, 14, By::FirstExec);
        assert_eq!(inits.pid(id), Some(13));
        assert_eq!(inits.take_news(), [(10, id), (12, id), (13, id)]);
        inits.ended(id, 13, false);
        inits.learn(id, 15, By::Namespace);
        assert_eq!(inits.pid(id), None, "a container has one init and no other after it");
        inits.forget(id);
        inits.learn(id, 16, By::Oldest);
        inits.ended(id, 16, true);
        assert!(inits.take_news().is_empty(), "it ended before the kernel side was told");
        inits.learn(id, 17, By::Oldest);
        assert_eq!(inits.pid(id), Some(17));
    }
}
