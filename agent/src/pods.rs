//! What Kubernetes says of the pods of this node: names, labels, limits and how containers ended, by pod UID and by container id.
//!
//! A bounded table of values that several threads share; a lock is held for one look-up or one change. `kubernetes` keeps it current, and
//! what it was told becomes rows of the table `containers`, from which it can be had again; the
//! sealer and the writer name rows by it, `story` incidents, `viewer` what it lists. Who a cgroup *is* comes from its path
//! alone: this only adds names, and where nothing is known it says nothing. No I/O, no clock.

mod fill;
mod hashes;

pub use fill::{NAMED_BY, NAMES};

use crate::cgroup::Identity;
use hashes::Hashes;
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
    /// Why all of it was ended by the kubelet, as its status has it: `Evicted: The node was low on resource: memory.`
    pub reason: Option<String>,
    /// When its deletion was asked for, in µs since 1970, to the second.
    pub deleted_us: Option<i64>,
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
    hashes: Hashes,
    /// Container ids, with the UID of their pod.
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
        let held = self.holds_hash(&pod);
        self.forget(&pod.uid.clone());
        for id in pod.containers.iter().flat_map(|c| &c.ids) {
            self.by_container.insert(id.clone(), pod.uid.clone());
        }
        self.hashes.add(&pod);
        let pod = Arc::new(pod);
        self.by_uid.insert(pod.uid.clone(), Entry { pod: pod.clone(), is_gone: false });
        // as its cgroup's path has it from now on, all that was told of it is news
        let is_new = self.holds_hash(&pod) && !held;
        self.tell(before.as_deref().filter(|_| !is_new), &pod);
        true
    }

    /// Notes what is new of a pod and its containers.
    fn tell(&mut self, before: Option<&Pod>, pod: &Arc<Pod>) {
        if self.news.is_none() {
            return;
        }
        let before = before.filter(|b| is_same_pod(b, pod));
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
            let pod_uid = self.uid_in_path(pod, container.as_ref().map(|(_, id)| id.as_str()));
            let Some(news) = self.news.as_mut().filter(|news| news.len() < MAX_NEWS) else {
                self.news_lost += 1;
                continue;
            };
            news.push_back(Revision { pod: pod.clone(), container, pod_uid });
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
        self.hashes.remove(&entry.pod);
    }

    fn deleted(&mut self, uid: &str) {
        let Some(pod) = self.by_uid.get(uid).filter(|e| !e.is_gone).map(|e| e.pod.clone()) else { return };
        let hash = pod.static_hash.as_deref();
        let held = hash.and_then(|hash| self.holder(hash)).map(|e| e.pod.uid.clone());
        if let Some(entry) = self.by_uid.get_mut(uid) {
            entry.is_gone = true;
        }
        // of two that claimed one hash, the other is known to be the one from now on
        let holds = hash.and_then(|hash| self.holder(hash)).filter(|now| !now.is_gone);
        if let Some(now) = holds.map(|e| e.pod.clone()).filter(|now| held.as_ref() != Some(&now.uid)) {
            self.tell(None, &now);
        }
        self.gone.push_back(uid.to_owned());
        if self.gone.len() > MAX_GONE
            && let Some(oldest) = self.gone.front().cloned()
        {
            self.forget(&oldest);
        }
    }

    fn who(&self, pod_uid: Option<&str>, container_id: Option<&str>) -> Option<Who> {
        let by_path = pod_uid.and_then(|uid| {
            if self.hashes.is_claimed(uid) { self.by_hash(uid, container_id) } else { self.by_uid.get(uid) }
        });
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

    /// How many of these cgroups belong to a pod of which nothing is known.
    pub fn count_unnamed<'a>(&self, cgroups: impl Iterator<Item = &'a Identity>) -> usize {
        let known = self.known();
        let of_pods = cgroups.filter(|who| who.pod_uid.is_some());
        of_pods.filter(|who| known.who(who.pod_uid.as_deref(), who.container_id.as_deref()).is_none()).count()
    }

    /// Pods that are wanted, as cgroup paths have them: by UID, static ones by their hash as well.
    pub fn uids(&self, wanted: impl Fn(&Pod) -> bool) -> Vec<String> {
        let known = self.known();
        let pods = known.by_uid.values().map(|e| &e.pod).filter(|p| wanted(p));
        let hash = |p: &Arc<Pod>| p.static_hash.clone().filter(|_| known.holds_hash(p));
        pods.flat_map(|p| std::iter::once(p.uid.clone()).chain(hash(p))).collect()
    }

    /// The ids of containers that are wanted.
    pub fn container_ids(&self, wanted: impl Fn(&Container) -> bool) -> Vec<String> {
        let known = self.known();
        let containers = known.by_uid.values().flat_map(|e| &e.pod.containers).filter(|c| wanted(c));
        containers.flat_map(|c| &c.ids).cloned().collect()
    }
}

#[cfg(test)]
pub(crate) mod tests;
