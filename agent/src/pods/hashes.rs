//! Which pod a static pod is. In the path of its cgroup stands a hash, and the API server knows it by a mirror whose annotations have that hash.
//!
//! Whoever may make pods can write a mirror's annotations, but no kubelet runs what is made so: it never has a container. So a hash belongs to who
//! has had one, in whatever order they are told of; if that still leaves two, to the one that has the container in question, else to nobody.

use super::{Entry, Known, Pod};
use std::collections::HashMap;

/// By hash, the UIDs of those that claim it and have had a container, in the order in which they were told of.
#[derive(Debug, Default)]
pub(super) struct Hashes(HashMap<String, Vec<String>>);

fn has(pod: &Pod, container_id: &str) -> bool {
    pod.containers.iter().any(|c| c.ids.iter().any(|id| id == container_id))
}

impl Hashes {
    pub(super) fn add(&mut self, pod: &Pod) {
        let hash = pod.static_hash.as_ref().filter(|_| pod.containers.iter().any(|c| !c.ids.is_empty()));
        if let Some(hash) = hash {
            self.0.entry(hash.clone()).or_default().push(pod.uid.clone());
        }
    }

    pub(super) fn remove(&mut self, pod: &Pod) {
        let Some(hash) = &pod.static_hash else { return };
        let Some(uids) = self.0.get_mut(hash) else { return };
        uids.retain(|uid| *uid != pod.uid);
        if uids.is_empty() {
            self.0.remove(hash);
        }
    }

    pub(super) fn is_claimed(&self, hash: &str) -> bool {
        self.0.contains_key(hash)
    }
}

impl Known {
    /// The pod with this hash, for its container with this id where one is named; one that is there before one that was deleted.
    pub(super) fn by_hash(&self, hash: &str, container_id: Option<&str>) -> Option<&Entry> {
        let all: Vec<&Entry> =
            self.hashes.0.get(hash)?.iter().filter_map(|uid| self.by_uid.get(uid)).collect();
        let owns = |e: &Entry| container_id.is_some_and(|id| has(&e.pod, id));
        for (must_own, is_gone) in [(true, false), (true, true), (false, false), (false, true)] {
            let mut fit = all.iter().filter(|e| e.is_gone == is_gone && (owns(e) || !must_own));
            let Some(last) = fit.next_back() else { continue };
            // mirrors of one static pod, one after another, have one name
            let name = |e: &Entry| (e.pod.namespace.clone(), e.pod.name.clone());
            return fit.all(|e| name(e) == name(last)).then_some(*last);
        }
        None
    }

    /// Whose a hash is, whatever the container.
    pub(super) fn holder(&self, hash: &str) -> Option<&Entry> {
        self.by_hash(hash, None)
    }

    pub(super) fn holds_hash(&self, pod: &Pod) -> bool {
        let holder = pod.static_hash.as_ref().and_then(|hash| self.holder(hash));
        holder.is_some_and(|e| e.pod.uid == pod.uid)
    }

    /// What stands in the path of a pod's cgroup, or in that of one of its containers.
    pub(super) fn uid_in_path(&self, pod: &Pod, container_id: Option<&str>) -> String {
        let is_own = |hash: &&String| self.by_hash(hash, container_id).is_some_and(|e| e.pod.uid == pod.uid);
        pod.static_hash.as_ref().filter(is_own).unwrap_or(&pod.uid).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::pod;
    use super::super::{Pod, Pods};

    const HASH: &str = "0123456789abcdef0123456789abcdef";

    fn static_pod(uid: &str, name: &str, ids: &[&str]) -> Pod {
        Pod { static_hash: Some(HASH.to_owned()), ..pod(uid, name, ids) }
    }

    /// The pod's name by the hash in a path, and the container's.
    fn named(pods: &Pods, container_id: Option<&str>) -> Option<(String, Option<String>)> {
        let who = pods.who(Some(HASH), container_id)?;
        Some((who.pod.name.clone(), who.container().map(|c| c.name.clone())))
    }

    fn etcd(container: Option<&str>) -> (String, Option<String>) {
        ("etcd".to_owned(), container.map(str::to_owned))
    }

    /// What the table `containers` says of the hash: a pod's name and a container's id.
    fn rows(pods: &Pods) -> Vec<(String, Option<String>)> {
        let (news, _) = pods.take_news(100);
        let of_hash = news.iter().filter(|n| n.pod_uid() == HASH);
        of_hash.map(|n| (n.pod.name.clone(), n.id().map(str::to_owned))).collect()
    }

    #[test]
    fn who_only_claims_a_hash_never_has_it_in_whatever_order() {
        let (liar, mirror) = (static_pod("u2", "a-liar", &[]), static_pod("u1", "etcd", &["c1"]));
        for first in [true, false] {
            let pods = Pods::default();
            pods.keep_news();
            let both = if first { [&liar, &mirror] } else { [&mirror, &liar] };
            for p in both {
                pods.apply(p.clone());
            }
            assert_eq!(
                (named(&pods, Some("c1")), named(&pods, None)),
                (Some(etcd(Some("app"))), Some(etcd(None)))
            );
            assert_eq!(named(&pods, Some("sandbox")), Some(etcd(None)));
            assert_eq!(rows(&pods), [("etcd".to_owned(), None), ("etcd".to_owned(), Some("c1".to_owned()))]);
            assert_eq!(pods.uids(|p| p.name == "a-liar"), ["u2"], "its labels choose no one else");
            assert!(pods.uids(|p| p.name == "etcd").contains(&HASH.to_owned()));
            pods.deleted("u2");
            assert_eq!(named(&pods, Some("c1")), Some(etcd(Some("app"))));
        }
        let pods = Pods::default();
        pods.apply(liar);
        assert_eq!(named(&pods, Some("c1")), None, "nor when it is alone");
    }

    #[test]
    fn of_two_that_had_containers_each_has_its_own_and_nobody_the_rest() {
        let (other, mirror) = (static_pod("u2", "a-liar", &["c2"]), static_pod("u1", "etcd", &["c1"]));
        for first in [true, false] {
            let pods = Pods::default();
            let both = if first { [&other, &mirror] } else { [&mirror, &other] };
            for p in both {
                pods.apply(p.clone());
            }
            pods.keep_news();
            assert_eq!(named(&pods, Some("c1")), Some(etcd(Some("app"))));
            assert_eq!((named(&pods, None), named(&pods, Some("sandbox"))), (None, None));
            rows(&pods);
            pods.deleted("u2");
            assert_eq!(
                (named(&pods, None), named(&pods, Some("sandbox"))),
                (Some(etcd(None)), Some(etcd(None)))
            );
            assert_eq!(rows(&pods), [("etcd".to_owned(), None), ("etcd".to_owned(), Some("c1".to_owned()))]);
        }
        let pods = Pods::default();
        pods.apply(static_pod("u2", "a-liar", &["c1"]));
        pods.apply(mirror);
        assert_eq!(named(&pods, Some("c1")), None, "it cannot be told which");
    }

    #[test]
    fn a_mirror_that_is_made_anew_goes_on_with_the_name() {
        let pods = Pods::default();
        pods.keep_news();
        pods.apply(static_pod("u1", "etcd", &["c1"]));
        pods.deleted("u1");
        assert_eq!(named(&pods, Some("c1")), Some(etcd(Some("app"))), "it was deleted, and is not forgotten");
        pods.apply(static_pod("u3", "etcd", &[]));
        assert_eq!(named(&pods, Some("c1")), Some(etcd(Some("app"))));
        rows(&pods);
        pods.apply(static_pod("u3", "etcd", &["c2"]));
        assert_eq!(rows(&pods), [("etcd".to_owned(), None), ("etcd".to_owned(), Some("c2".to_owned()))]);
        assert_eq!(
            (named(&pods, Some("c1")), named(&pods, Some("c2"))),
            (Some(etcd(Some("app"))), Some(etcd(Some("app"))))
        );
        pods.deleted("u3");
        assert_eq!(named(&pods, None), Some(etcd(None)), "two that have gone, of one name");
    }

    /// The table `containers` of an earlier run has it by its hash.
    #[test]
    fn what_an_earlier_run_knew_by_the_hash_gives_way_to_what_is_told() {
        let pods = Pods::default();
        pods.remember([pod(HASH, "etcd-before", &["c1"])]);
        assert_eq!(named(&pods, None).map(|n| n.0).as_deref(), Some("etcd-before"));
        pods.apply(static_pod("u2", "a-liar", &[]));
        assert_eq!(named(&pods, None).map(|n| n.0).as_deref(), Some("etcd-before"));
        pods.apply(static_pod("u1", "etcd", &["c1", "c2"]));
        assert_eq!(named(&pods, Some("c2")), Some(etcd(Some("app"))));
    }
}
