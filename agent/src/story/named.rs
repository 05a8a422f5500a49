//! What Kubernetes says of an incident: names, labels, how the container ended, and where it and the kernel disagree.
//!
//! Pure but for the table that is looked into. What is learnt once stays: a pod that goes, or a label that changes later, makes
//! no incident another one.

use super::{Open, Story};
use crate::incident::{Incident, Kubernetes};
use crate::pods::Pod;
use std::fmt::Write as _;

const OOM_KILLED: &str = "OOMKilled";

impl Open {
    /// Belongs to a pod of which nothing is known yet.
    pub(super) fn is_unnamed(&self) -> bool {
        self.incident.pod_uid.is_some() && self.incident.pod.is_none()
    }

    /// Takes what is known now. Whether that is more than before.
    pub(super) fn learn(&mut self) -> bool {
        let i = &mut self.incident;
        let Some(who) = self.pods.who(i.pod_uid.as_deref(), i.container_id.as_deref()) else { return false };
        let mut is_more = false;
        if i.pod.is_none() {
            i.namespace = Some(who.pod.namespace.clone());
            i.pod = Some(who.pod.name.clone());
            i.labels = Some(who.pod.labels.clone());
            is_more = true;
        }
        if let (None, Some(container)) = (&i.container, who.container()) {
            i.container = Some(container.name.clone());
            is_more = true;
        }
        // its successor is the last that is learnt: the counts of later ones are not its own
        let is_whole = i.kubernetes.as_ref().is_some_and(|k| k.next_container_id.is_some());
        let ended = i.container_id.as_deref().and_then(|id| who.ended(id));
        let pod_end = pod_end(i, &who.pod);
        if !is_whole && (ended.is_some() || pod_end.is_some()) {
            let told = Some(Kubernetes {
                reason: ended.and_then(|e| e.reason.clone()),
                exit_code: ended.map(|e| e.exit_code),
                restart_count: ended.map(|e| e.restart_count),
                next_container_id: ended.and_then(|e| e.next_container_id.clone()),
                pod_end,
            });
            is_more |= i.kubernetes != told;
            i.kubernetes = told;
        }
        is_more
    }
}

/// Why all of the pod was ended, where that explains a signal to this container.
fn pod_end(i: &Incident, pod: &Pod) -> Option<String> {
    if i.kind != "killed" {
        return None;
    }
    // both instants are kept to the second
    let was_deleted = pod.deleted_us.is_some_and(|at| at <= i.ts_us + 1_000_000);
    pod.reason.clone().or_else(|| was_deleted.then(|| "Deleted".to_owned()))
}

/// Whether the signal was sent by the container's runtime, as a kubelet asks it to.
fn is_by_runtime(i: &Incident) -> bool {
    let comm = i.killer.as_ref().and_then(|k| k.comm.as_deref()).unwrap_or_default();
    ["runc", "crun"].iter().any(|name| comm.starts_with(name))
}

/// Why a kubelet may have ended it. The kernel sees the runtime only, whoever asked for it.
fn say_pod_end(out: &mut String, k: &Kubernetes, i: &Incident) {
    if let Some(end) = &k.pod_end {
        let _ = match end.as_str() {
            "Deleted" => write!(out, " Its pod was being deleted."),
            end => write!(out, " Kubernetes says of its pod: {}.", end.trim_end_matches('.')),
        };
    } else if k.next_container_id.is_some() && i.kind == "killed" && is_by_runtime(i) {
        out.push_str(
            " Its pod was neither deleted nor evicted, and got another container in its place: so a kubelet does when a liveness or \
             startup probe fails (the pod's own events, kubectl describe pod, have each failure).",
        );
    }
}

impl Story {
    /// Incidents of pods of which nothing is known: those that still wait for a name, and those that no longer do.
    pub fn unnamed(&self) -> (usize, u64) {
        let all = self.open.values().chain(&self.waiting);
        (all.filter(|open| open.is_unnamed()).count(), self.given_up)
    }

    /// The incidents of which Kubernetes has told something since the last call, in new revisions: open ones, and those that
    /// were closed a while ago.
    pub fn learn(&mut self) -> Vec<Incident> {
        let changes = self.pods.changes();
        if std::mem::replace(&mut self.learnt, changes) == changes {
            return Vec::new();
        }
        let all = self.open.values_mut().chain(&mut self.waiting);
        let more = all.filter_map(|open| {
            open.learn().then(|| {
                open.revise();
                open.incident.clone()
            })
        });
        more.collect()
    }
}

/// What Kubernetes says of the end, and whether the kernel says the same.
pub(super) fn say(out: &mut String, i: &Incident) {
    let Some(kubernetes) = &i.kubernetes else { return };
    say_pod_end(out, kubernetes, i);
    let Kubernetes { reason, exit_code: Some(code), restart_count, .. } = kubernetes else { return };
    let reason = reason.as_deref().unwrap_or("no reason");
    let told = format!("{reason}, exit code {code}");
    let exit = i.exit.unwrap_or_default();
    let _ = match (i.kind == "oom_kill", reason == OOM_KILLED) {
        (true, true) => write!(out, " Kubernetes says so too: {told}."),
        (true, false) => {
            let init =
                if exit.signal == Some(9) { ", and the container's init ended with signal 9" } else { "" };
            write!(
                out,
                " Kubernetes does not say so: it has {told}, and nothing of an OOM kill. The kernel's OOM killer did kill in this \
                 container{init}."
            )
        }
        (false, true) => {
            write!(out, " Kubernetes says {told}, but no OOM kill in this container was seen by this agent.")
        }
        (false, false) => write!(out, " Kubernetes says {told}."),
    };
    let seen = exit.signal.map(|s| 128 + s).or(exit.code);
    if let Some(seen) = seen.filter(|seen| seen != code) {
        let _ = write!(out, " By the kernel its init ended in a way that is exit code {seen}.");
    }
    match restart_count {
        Some(1) => out.push_str(" It has been restarted once."),
        Some(n) if *n > 1 => {
            let _ = write!(out, " It has been restarted {n} times.");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{blame, event, evidence, kill, names, task};
    use super::*;
    use crate::cgroup::{Meta, identify};
    use crate::event::{Exit, Sent};
    use crate::names::CgroupId;
    use crate::pods::{Container, Ended, Pod, Pods};
    use std::sync::Arc;

    const S: u64 = 1_000_000_000;
    const UID: &str = "0f9c1c2e-1111-2222-3333-0123456789ab";

    fn id(n: u64) -> String {
        format!("{n:064x}")
    }

    fn owner() -> Arc<Meta> {
        let path = format!("/kubepods/burstable/pod{UID}/{}", id(7));
        Arc::new(Meta { id: CgroupId(7), parent_id: None, identity: identify(&path), path })
    }

    fn pod(ids: &[u64], ended: Vec<Ended>) -> Pod {
        let ids = ids.iter().map(|n| id(*n)).collect();
        Pod {
            uid: UID.into(),
            namespace: "shop".into(),
            name: "cart-0".into(),
            labels: [("app".to_owned(), "cart".to_owned())].into(),
            containers: vec![Container { name: "app".into(), ids, ended, ..Container::default() }],
            ..Pod::default()
        }
    }

    fn ended(reason: &str, exit_code: i32, next: Option<u64>) -> Vec<Ended> {
        vec![Ended {
            container_id: id(7),
            reason: Some(reason.into()),
            exit_code,
            restart_count: i32::from(next.is_some()),
            next_container_id: next.map(id),
        }]
    }

    fn story() -> (Story, Pods) {
        let pods = Pods::default();
        let mut story = Story::new(names(), 10 * S);
        story.set_pods(pods.clone());
        (story, pods)
    }

    fn oom(story: &mut Story) -> Incident {
        story.oom_kill(&owner(), &event(100 * S), &kill(42, 42), evidence(), None)
    }

    fn init_ends(story: &mut Story, exit_code: Option<i32>, signal: Option<i32>) {
        let exit = Exit { task: task(42, "hog"), ppid: None, inner_pid: Some(1), exit_code, signal };
        story.exit(CgroupId(7), &event(101 * S), &exit, true);
    }

    #[test]
    fn an_incident_has_the_names_that_are_known_at_once() {
        let (mut story, pods) = story();
        pods.apply(pod(&[7], Vec::new()));
        let i = oom(&mut story);
        assert_eq!(
            (i.namespace.as_deref(), i.pod.as_deref(), i.container.as_deref()),
            (Some("shop"), Some("cart-0"), Some("app"))
        );
        assert_eq!(i.labels.as_ref().map(|l| l["app"].as_str()), Some("cart"));
        assert!(
            i.kubernetes.is_none() && i.summary.contains("container app of pod shop/cart-0"),
            "{}",
            i.summary
        );
        assert!(story.learn().is_empty(), "nothing that it does not say already");
    }

    #[test]
    fn what_is_told_later_is_a_revision_also_of_a_closed_incident() {
        let (mut story, pods) = story();
        assert_eq!(oom(&mut story).pod, None);
        let closed = story.close_due(200 * S);
        assert_eq!((closed.len(), closed[0].revision), (1, 2));
        assert!(story.learn().is_empty());
        pods.apply(pod(&[7], Vec::new()));
        let named = story.learn();
        assert_eq!((named.len(), named[0].revision, named[0].closed), (1, 3, true));
        pods.apply(pod(&[7], ended("OOMKilled", 137, None)));
        pods.apply(pod(&[8], ended("OOMKilled", 137, Some(8))));
        let last = story.learn();
        let k = last[0].kubernetes.clone().expect("told");
        assert_eq!(
            (k.reason.as_deref(), k.exit_code, k.restart_count, k.next_container_id),
            (Some("OOMKilled"), Some(137), Some(1), Some(id(8)))
        );
        let mut later = pod(&[9], ended("OOMKilled", 137, Some(9)));
        later.containers[0].ended[0].restart_count = 5;
        pods.apply(later);
        assert!(story.learn().is_empty(), "later restarts are not its own");
    }

    #[test]
    fn an_incident_waits_for_its_name_as_long_as_it_takes() {
        let (mut story, pods) = story();
        oom(&mut story);
        story.close_due(200 * S);
        story.close_due(200 * S + 3600 * S);
        pods.apply(pod(&[7], Vec::new()));
        assert_eq!(story.learn().len(), 1, "the API server was down for an hour");
        story.close_due(201 * S + 3600 * S);
        pods.apply(pod(&[7], ended("OOMKilled", 137, None)));
        assert!(story.learn().is_empty(), "a named one waits for no more than a restart takes");
    }

    #[test]
    fn those_that_wait_for_a_name_are_counted_and_those_for_which_there_was_no_room() {
        let (mut story, pods) = story();
        let most = super::super::restart::MAX_WAITING;
        for (before, n) in (0..most + 3).zip(0..) {
            let path = format!("/kubepods/burstable/pod{UID}/{}", id(n));
            let owner = Arc::new(Meta { id: CgroupId(n), parent_id: None, identity: identify(&path), path });
            story.oom_kill(&owner, &event(100 * S), &kill(42, 42), evidence(), None);
            assert_eq!(story.unnamed(), (before + 1, 0));
        }
        story.close_due(200 * S);
        assert_eq!(story.unnamed(), (most, 3));
        pods.apply(pod(&[7], Vec::new()));
        story.learn();
        assert_eq!(story.unnamed(), (0, 3), "their rows have no name and will have none");
    }

    #[test]
    fn a_probe_that_failed_an_eviction_a_deletion_and_a_person_are_told_apart() {
        let killed = |pod: Pod, sender: &str| {
            let (mut story, pods) = story();
            pods.apply(pod);
            let mut blame = blame(Sent::ByTask);
            blame.kill.sender = task(99, sender);
            let exit = Exit {
                task: task(42, "app"),
                ppid: None,
                inner_pid: Some(1),
                exit_code: None,
                signal: Some(9),
            };
            let i = story.ended(&owner(), &event(100 * S), &exit, Some(&blame), &evidence());
            (i.kubernetes.and_then(|k| k.pod_end), i.summary)
        };
        let one = |next| pod(&[7], ended("Error", 137, next));
        let evicted =
            Pod { reason: Some("Evicted: The node was low on resource: memory.".into()), ..one(None) };
        let (end, summary) = killed(evicted, "runc");
        assert_eq!(end.as_deref(), Some("Evicted: The node was low on resource: memory."));
        assert!(summary.contains("of its pod: Evicted: The node was low on resource: memory. "), "{summary}");
        for (at_s, is_told) in [(70, true), (101, true), (102, false), (700, false)] {
            let deleted = Pod { deleted_us: Some(at_s * 1_000_000), ..one(None) };
            let (end, summary) = killed(deleted, "runc");
            assert_eq!(end.as_deref() == Some("Deleted"), is_told, "{at_s}");
            assert_eq!(summary.contains("Its pod was being deleted."), is_told, "{summary}");
        }
        let probe = |next, sender| killed(one(next), sender).1.contains("liveness or startup probe");
        assert!(probe(Some(8), "runc") && probe(Some(8), "crun"));
        assert!(!probe(None, "runc"), "not before another one has its place");
        assert!(!probe(Some(8), "kill"), "a person did");
        let (mut story, pods) = story();
        pods.apply(Pod { deleted_us: Some(0), ..one(None) });
        assert_eq!(oom(&mut story).kubernetes.and_then(|k| k.pod_end), None, "the kernel killed");
    }

    /// The summary of an OOM kill, or of an end without one, of which Kubernetes says this.
    fn summary(is_oom: bool, end: (Option<i32>, Option<i32>), reason: &str, code: i32) -> String {
        let (mut story, pods) = story();
        pods.apply(pod(&[7], ended(reason, code, None)));
        if is_oom {
            oom(&mut story);
            init_ends(&mut story, end.0, end.1);
        } else {
            let exit = Exit {
                task: task(42, "hog"),
                ppid: None,
                inner_pid: Some(1),
                exit_code: end.0,
                signal: end.1,
            };
            story.ended(&owner(), &event(100 * S), &exit, None, &evidence());
        }
        story.close_due(200 * S).remove(0).summary
    }

    #[test]
    fn where_kubernetes_and_the_kernel_disagree_it_is_said() {
        for (is_oom, end, reason, code, words, not) in [
            (
                true,
                (None, Some(9)),
                "OOMKilled",
                137,
                "Kubernetes says so too: OOMKilled, exit code 137.",
                "By the kernel",
            ),
            (
                true,
                (None, Some(9)),
                "Error",
                137,
                "does not say so: it has Error, exit code 137",
                "By the kernel",
            ),
            (
                true,
                (None, Some(9)),
                "Error",
                137,
                "and the container's init ended with signal 9.",
                "says so too",
            ),
            (true, (Some(1), None), "Error", 1, "kill in this container.", "signal 9."),
            (
                false,
                (None, Some(9)),
                "OOMKilled",
                137,
                "but no OOM kill in this container was seen",
                "says so too",
            ),
            (false, (Some(1), None), "Error", 1, "Kubernetes says Error, exit code 1.", "OOM kill in"),
            (false, (None, Some(9)), "Error", 143, "ended in a way that is exit code 137.", "OOM kill in"),
        ] {
            let said = summary(is_oom, end, reason, code);
            assert!(said.contains(words) && !said.contains(not), "{words:?}, not {not:?}: {said}");
        }
    }
}
