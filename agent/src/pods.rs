//! What Kubernetes says of the pods of this node: names, labels, limits and how containers ended, by pod UID and by container id.
//!
//! A bounded table of values that several threads share; a lock is held for one look-up or one change. `kubernetes` keeps it current, and
//! what it was told becomes rows of the table `containers`, from which it can be had again; the
//! sealer and the writer name rows by it, `story` incidents, `viewer` what it lists. Who a cgroup *is* comes from its path
//! alone: this only adds names, and where nothing is known it says nothing. No I/O, no clock.

mod fill;

use crate::cgroup::Identity;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Pods of a node at the most. Kubernetes is tested with 110, people run 500; beyond this they are counted and not named.
pub const MAX_PODS: usize = 8192;
/// Deleted pods that keep their names, for rows and incidents that are still in memory.
const MAX_GONE: usize = 1000;
/// Revisions that wait to become rows: what all containers of [`MAX_PODS`] pods are told anew in.
const MAX_NEWS: usize = 4 * MAX_PODS;
/// Containers that had one place in a pod, one after another, and their ends: a crash loop makes one each five minutes.
const MAX_EARLIER: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub kind: String,
    pub name: String,
}

/// How a container ended, as Kubernetes tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub container_id: String,
    /// `OOMKilled`, `Error`, `Completed`, …
    pub reason: Option<String>,
    pub exit_code: i32,
    /// Restarts of this container when that was told.
    pub restart_count: i32,
    /// The container that took its place.
    pub next_container_id: Option<String>,
}

/// A container of a pod, whatever it is for: init, sidecar, main or ephemeral.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    pub name: String,
    pub image: Option<String>,
    pub restart_count: i32,
    /// As Kubernetes writes them: `500m`, `64Mi`.
    pub cpu_limit: Option<String>,
    pub memory_limit: Option<String>,
    /// Ids that it has and had, the newest last.
    pub ids: Vec<String>,
    pub ended: Vec<Ended>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub uid: String,
    /// What stands in the cgroup path of a static pod instead of the UID of its mirror.
    pub static_hash: Option<String>,
    pub namespace: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub owner: Option<Owner>,
    pub qos: Option<String>,
    pub containers: Vec<Container>,
}

/// Who a cgroup is to Kubernetes.
#[derive(Clone, Debug)]
pub struct Who {
    pub pod: Arc<Pod>,
    container: Option<usize>,
}

impl Who {
    /// `None` for the pod itself, its sandbox, and a container that Kubernetes has not told of yet.
    pub fn container(&self) -> Option<&Container> {
        self.pod.containers.get(self.container?)
    }

    /// How the container with this id ended, if it did and that was told.
    pub fn ended(&self, container_id: &str) -> Option<&Ended> {
        self.container()?.ended.iter().find(|e| e.container_id == container_id)
    }
}

/// What was told of a pod, or of one of its containers: a row of the table `containers`.
#[derive(Clone, Debug)]
pub struct Revision {
    pub pod: Arc<Pod>,
    /// Its place in the pod, and which of those that had it.
    container: Option<(usize, String)>,
    /// As its cgroup's path has it.
    pod_uid: String,
}

impl Revision {
    pub fn pod_uid(&self) -> &str {
        &self.pod_uid
    }

    pub fn id(&self) -> Option<&str> {
        self.container.as_ref().map(|(_, id)| id.as_str())
    }

    pub fn container(&self) -> Option<&Container> {
        self.pod.containers.get(self.container.as_ref()?.0)
    }

    /// How it ended, if it did.
    pub fn ended(&self) -> Option<&Ended> {
        let id = self.id()?;
        self.container()?.ended.iter().find(|e| e.container_id == id)
    }
}

/// How many pods are known, and how many were too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub live: usize,
    pub gone: usize,
    /// Times that a pod was not taken since [`MAX_PODS`] are known.
    pub refused: u64,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    is_gone: bool,
}

#[derive(Debug, Default)]
struct Known {
    by_uid: HashMap<String, Entry>,
    /// Static pods' hashes and container ids, with the UID of their pod.
    by_hash: HashMap<String, String>,
    by_container: HashMap<String, String>,
    gone: VecDeque<String>,
    refused: u64,
    /// Where somebody makes rows of them.
    news: Option<VecDeque<Revision>>,
    news_lost: u64,
}

/// The table, shared.
#[derive(Clone, Debug, Default)]
pub struct Pods(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<Known>,
    changes: AtomicU64,
}

/// What was known of a container before, laid under what is told now: Kubernetes forgets all but the last end.
fn keep_earlier(now: &mut Container, before: &Container) {
    let mut ids: Vec<String> = before.ids.iter().filter(|id| !now.ids.contains(id)).cloned().collect();
    ids.append(&mut now.ids);
    ids.drain(..ids.len().saturating_sub(MAX_EARLIER));
    now.ids = ids;
    let is_told_anew = |e: &&Ended| now.ended.iter().any(|n| n.container_id == e.container_id);
    let mut ended: Vec<Ended> = before.ended.iter().filter(|e| !is_told_anew(e)).cloned().collect();
    ended.append(&mut now.ended);
    ended.drain(..ended.len().saturating_sub(MAX_EARLIER));
    now.ended = ended;
}

/// Whether all that its containers' rows have of it is as it was.
fn is_same_pod(a: &Pod, b: &Pod) -> bool {
    (&a.namespace, &a.name, &a.labels, &a.owner, &a.qos)
        == (&b.namespace, &b.name, &b.labels, &b.owner, &b.qos)
}

impl Known {
    fn apply(&mut self, mut pod: Pod) -> bool {
        let before = self.by_uid.get(&pod.uid).map(|e| e.pod.clone());
        match self.by_uid.get(&pod.uid) {
            Some(before) => {
                for c in &mut pod.containers {
                    if let Some(was) = before.pod.containers.iter().find(|b| b.name == c.name) {
                        keep_earlier(c, was);
                    }
                }
                if *before.pod == pod && !before.is_gone {
                    return false;
                }
            }
            None if self.by_uid.len() - self.gone.len() >= MAX_PODS => {
                self.refused += 1;
                return false;
            }
            None => {}
        }
        self.forget(&pod.uid.clone());
        for id in pod.containers.iter().flat_map(|c| &c.ids) {
            self.by_container.insert(id.clone(), pod.uid.clone());
        }
        // a live pod keeps its hash: an annotation that says the same is not believed
        if let Some(hash) = &pod.static_hash {
            let holder = self.by_hash.get(hash).and_then(|uid| self.by_uid.get(uid));
            if holder.is_none_or(|h| h.is_gone) {
                self.by_hash.insert(hash.clone(), pod.uid.clone());
            }
        }
        let pod = Arc::new(pod);
        self.tell(before.as_deref(), &pod);
        self.by_uid.insert(pod.uid.clone(), Entry { pod, is_gone: false });
        true
    }

    /// Notes what is new of a pod and its containers.
    fn tell(&mut self, before: Option<&Pod>, pod: &Arc<Pod>) {
        let Some(news) = &mut self.news else { return };
        let before = before.filter(|b| is_same_pod(b, pod));
        // only who holds a hash is in the path by it
        let hash = pod.static_hash.as_ref().filter(|h| self.by_hash.get(*h) == Some(&pod.uid));
        let pod_uid = hash.unwrap_or(&pod.uid);
        let mut told: Vec<Option<(usize, String)>> = Vec::new();
        if before.is_none() {
            told.push(None);
        }
        for (place, c) in pod.containers.iter().enumerate() {
            let was = before.and_then(|b| b.containers.iter().find(|w| w.name == c.name));
            if was == Some(c) {
                continue;
            }
            let ended = c.ended.iter().filter(|e| was.is_none_or(|w| !w.ended.contains(e)));
            let mut ids: Vec<&String> = ended.map(|e| &e.container_id).collect();
            ids.extend(c.ids.last().filter(|last| !ids.contains(last)));
            told.extend(ids.into_iter().map(|id| Some((place, id.clone()))));
        }
        for container in told {
            if news.len() < MAX_NEWS {
                news.push_back(Revision { pod: pod.clone(), container, pod_uid: pod_uid.clone() });
            } else {
                self.news_lost += 1;
            }
        }
    }

    /// Notes all that is there anew.
    fn tell_all(&mut self) {
        let live: Vec<_> = self.by_uid.values().filter(|e| !e.is_gone).map(|e| e.pod.clone()).collect();
        for pod in live {
            self.tell(None, &pod);
        }
    }

    /// One of an earlier run, of which nobody has told in this one.
    fn remember(&mut self, pod: Pod) {
        if self.by_uid.contains_key(&pod.uid) || self.gone.len() >= MAX_GONE {
            return;
        }
        let (uid, news) = (pod.uid.clone(), self.news.take());
        self.apply(pod);
        self.news = news;
        self.deleted(&uid);
    }

    fn forget(&mut self, uid: &str) {
        let Some(entry) = self.by_uid.remove(uid) else { return };
        self.gone.retain(|gone| gone != uid);
        let is_own = |of: &String| of == uid;
        for id in entry.pod.containers.iter().flat_map(|c| &c.ids) {
            if self.by_container.get(id).is_some_and(is_own) {
                self.by_container.remove(id);
            }
        }
        if let Some(hash) =
            entry.pod.static_hash.as_ref().filter(|h| self.by_hash.get(*h).is_some_and(is_own))
        {
            self.by_hash.remove(hash);
        }
    }

    fn deleted(&mut self, uid: &str) {
        let Some(entry) = self.by_uid.get_mut(uid).filter(|e| !e.is_gone) else { return };
        entry.is_gone = true;
        self.gone.push_back(uid.to_owned());
        if self.gone.len() > MAX_GONE
            && let Some(oldest) = self.gone.front().cloned()
        {
            self.forget(&oldest);
        }
    }

    fn who(&self, pod_uid: Option<&str>, container_id: Option<&str>) -> Option<Who> {
        let by_path =
            pod_uid.and_then(|uid| self.by_uid.get(uid).or_else(|| self.by_uid.get(self.by_hash.get(uid)?)));
        // where the path names no pod (a runtime with cgroups of its own), the container's id is as good
        let by_id = || match pod_uid {
            None => self.by_uid.get(self.by_container.get(container_id?)?),
            Some(_) => None,
        };
        let pod = by_path.or_else(by_id)?.pod.clone();
        let has = |id: &str| pod.containers.iter().position(|c| c.ids.iter().any(|own| own == id));
        let container = container_id.and_then(has);
        Some(Who { pod, container })
    }
}

impl Pods {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.0.changes.fetch_add(1, Ordering::Release);
    }

    /// A pod that is there, as it is now.
    pub fn apply(&self, pod: Pod) {
        if self.known().apply(pod) {
            self.changed();
        }
    }

    /// A pod was deleted. Its names stay while they may be needed.
    pub fn deleted(&self, uid: &str) {
        self.known().deleted(uid);
    }

    /// A whole list was told: what is not in it was deleted while nobody watched.
    pub fn only(&self, is_listed: impl Fn(&str) -> bool) {
        let mut known = self.known();
        let live = known.by_uid.iter().filter(|(_, e)| !e.is_gone);
        let gone: Vec<String> = live.map(|(uid, _)| uid.clone()).filter(|uid| !is_listed(uid)).collect();
        for uid in &gone {
            known.deleted(uid);
        }
    }

    /// Those of an earlier run, the latest first, for names that nobody tells any more.
    pub fn remember(&self, earlier: impl IntoIterator<Item = Pod>) {
        for pod in earlier {
            self.known().remember(pod);
        }
        self.changed();
    }

    /// From now on what is told is kept for [`Pods::take_news`].
    pub fn keep_news(&self) {
        let mut known = self.known();
        if known.news.is_none() {
            known.news = Some(VecDeque::new());
            known.tell_all();
        }
    }

    /// What was told since the last call, the oldest first, at most so much; and how much was too much to be kept.
    pub fn take_news(&self, most: usize) -> (Vec<Revision>, u64) {
        let mut known = self.known();
        let lost = std::mem::take(&mut known.news_lost);
        let Some(news) = &mut known.news else { return (Vec::new(), lost) };
        let n = news.len().min(most);
        (news.drain(..n).collect(), lost)
    }

    /// All that is there becomes news again: a row must not be older than what is kept of the others.
    pub fn tell_all(&self) {
        self.known().tell_all();
    }

    /// Grows whenever something is known that was not.
    pub fn changes(&self) -> u64 {
        self.0.changes.load(Ordering::Acquire)
    }

    pub fn count(&self) -> Count {
        let known = self.known();
        let gone = known.gone.len();
        Count { live: known.by_uid.len() - gone, gone, refused: known.refused }
    }

    /// Who a cgroup is, by what its path says. A container is looked for in the pod that the path names.
    pub fn who(&self, pod_uid: Option<&str>, container_id: Option<&str>) -> Option<Who> {
        if pod_uid.is_none() && container_id.is_none() {
            return None;
        }
        self.known().who(pod_uid, container_id)
    }

    /// Whether Kubernetes has told which container of a pod it is; never of a sandbox.
    pub fn has_named(&self, who: &Identity) -> bool {
        let who = self.who(who.pod_uid.as_deref(), who.container_id.as_deref());
        who.is_some_and(|who| who.container().is_some())
    }

    /// Pods whose labels `hold`, by UID; static ones by the hash in their path as well.
    pub fn labelled(&self, hold: impl Fn(&BTreeMap<String, String>) -> bool) -> Vec<String> {
        let known = self.known();
        let pods = known.by_uid.values().map(|e| &e.pod).filter(|p| hold(&p.labels));
        pods.flat_map(|p| std::iter::once(&p.uid).chain(&p.static_hash)).cloned().collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A pod with one container; `ids` are those that it has and had.
    pub(crate) fn pod(uid: &str, name: &str, ids: &[&str]) -> Pod {
        let container = Container {
            name: "app".to_owned(),
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            ..Container::default()
        };
        Pod {
            uid: uid.to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            containers: vec![container],
            ..Pod::default()
        }
    }

    fn name(pods: &Pods, uid: Option<&str>, container: Option<&str>) -> Option<(String, Option<String>)> {
        let who = pods.who(uid, container)?;
        Some((who.pod.name.clone(), who.container().map(|c| c.name.clone())))
    }

    #[test]
    fn a_container_is_named_by_its_pod_and_its_id() {
        let pods = Pods::default();
        pods.apply(pod("u1", "cart", &["c1"]));
        let cart = |c: Option<&str>| Some(("cart".to_owned(), c.map(str::to_owned)));
        assert_eq!(name(&pods, Some("u1"), Some("c1")), cart(Some("app")));
        assert_eq!(name(&pods, Some("u1"), None), cart(None), "the pod's own cgroup");
        assert_eq!(name(&pods, Some("u1"), Some("sandbox")), cart(None), "not told of: no name is made up");
        assert_eq!(name(&pods, None, Some("c1")), cart(Some("app")), "a path that names no pod");
        assert_eq!(name(&pods, Some("other"), Some("c1")), None, "the path says another pod");
        assert_eq!(name(&pods, None, None), None);
    }

    #[test]
    fn a_static_pod_is_known_by_the_hash_in_its_path_and_no_annotation_takes_it_over() {
        let pods = Pods::default();
        let mut mirror = pod("u1", "etcd-n1", &["c1"]);
        mirror.static_hash = Some("hash".to_owned());
        pods.apply(mirror.clone());
        let mut liar = pod("u2", "liar", &["c2"]);
        liar.static_hash = Some("hash".to_owned());
        pods.apply(liar);
        assert_eq!(
            name(&pods, Some("hash"), Some("c1")),
            Some(("etcd-n1".to_owned(), Some("app".to_owned())))
        );
        pods.deleted("u1");
        mirror.uid = "u3".to_owned();
        mirror.name = "etcd-n1-again".to_owned();
        pods.apply(mirror);
        assert_eq!(name(&pods, Some("hash"), None).map(|n| n.0).as_deref(), Some("etcd-n1-again"));
    }

    #[test]
    fn earlier_ids_and_ends_of_a_container_are_kept_and_bounded() {
        let pods = Pods::default();
        let end = |id: &str| Ended {
            container_id: id.to_owned(),
            reason: Some("OOMKilled".to_owned()),
            exit_code: 137,
            restart_count: 1,
            next_container_id: None,
        };
        for n in 0..3 * MAX_EARLIER {
            let mut p = pod("u", "cart", &[&format!("c{n}")]);
            p.containers[0].ended = vec![end(&format!("c{}", n.wrapping_sub(1)))];
            pods.apply(p);
        }
        let last = format!("c{}", 3 * MAX_EARLIER - 2);
        let who = pods.who(Some("u"), Some(&last)).expect("known");
        assert_eq!(who.container().map(|c| (c.ids.len(), c.ended.len())), Some((MAX_EARLIER, MAX_EARLIER)));
        assert!(who.ended(&last).is_some());
        assert!(pods.who(None, Some("c0")).is_none(), "too long ago");
        assert_eq!(pods.0.known.lock().expect("ours").by_container.len(), MAX_EARLIER);
    }

    #[test]
    fn a_deleted_pod_keeps_its_name_for_a_while_and_not_for_ever() {
        let pods = Pods::default();
        for n in 0..2 * MAX_GONE {
            pods.apply(pod(&format!("u{n}"), "cart", &[&format!("c{n}")]));
        }
        pods.only(|_| false);
        let c = pods.count();
        assert_eq!((c.live, c.gone, c.refused), (0, MAX_GONE, 0));
        assert_eq!(pods.0.known.lock().expect("ours").by_container.len(), MAX_GONE);
        pods.apply(pod("again", "cart", &["c"]));
        pods.deleted("again");
        pods.deleted("again");
        assert!(name(&pods, Some("again"), Some("c")).is_some());
    }

    #[test]
    fn beyond_the_bound_pods_are_counted_and_not_taken() {
        let pods = Pods::default();
        for n in 0..MAX_PODS + 3 {
            pods.apply(pod(&format!("u{n}"), "cart", &[]));
        }
        let c = pods.count();
        assert_eq!((c.live, c.refused), (MAX_PODS, 3));
        let before = pods.changes();
        pods.apply(pod("u1", "cart", &[]));
        assert_eq!(pods.changes(), before, "nothing new was told");
    }

    #[test]
    fn news_are_what_changed_and_all_when_that_is_asked_for() {
        let pods = Pods::default();
        pods.apply(pod("u1", "cart", &["c1"]));
        pods.keep_news();
        let news = || {
            let (news, lost) = pods.take_news(100);
            assert_eq!(lost, 0);
            news.iter().map(|n| n.id().unwrap_or("pod").to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(news(), ["pod", "c1"], "what was known before");
        pods.apply(pod("u1", "cart", &["c1"]));
        assert_eq!(news(), [""; 0]);
        pods.apply(pod("u1", "cart", &["c2"]));
        assert_eq!(news(), ["c2"], "the pod is as it was");
        let mut relabelled = pod("u1", "cart", &["c2"]);
        relabelled.labels.clear();
        pods.apply(relabelled);
        assert_eq!(news(), ["pod", "c2"], "each row has the labels");
        pods.deleted("u1");
        pods.tell_all();
        assert_eq!(news(), [""; 0], "of one that has gone all was told");
        for n in 0..MAX_NEWS {
            pods.apply(pod(&format!("v{}", n % 100), &format!("cart-{n}"), &[]));
        }
        pods.apply(pod("one-more", "cart", &[]));
        assert_eq!(pods.take_news(1).1, 1, "beyond the bound they are counted");
    }

    #[test]
    fn labels_choose_pods() {
        let pods = Pods::default();
        pods.apply(pod("u1", "cart", &[]));
        pods.apply(pod("u2", "store", &[]));
        assert_eq!(pods.labelled(|l| l.get("app").is_some_and(|v| v == "store")), ["u2"]);
    }
}
