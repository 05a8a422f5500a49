//! A Pod object of the API as what we keep of it. Pure: what is absent there is absent here, all else of the object goes.

use crate::pods::{Container, Ended, Owner, Pod};
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::collections::BTreeMap;

/// Bytes of labels that are kept of a pod, keys and values together. Kubernetes has no bound on their number; pods have some hundred bytes.
const MAX_LABEL_BYTES: usize = 8 << 10;
/// Characters that are kept of what a pod's status says about its end.
const MAX_REASON: usize = 200;
/// The annotations of the mirror of a static pod. In the cgroup path stands the hash, not the mirror's UID.
const MIRROR: &str = "kubernetes.io/config.mirror";
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
const CONFIG_SOURCE: &str = "kubernetes.io/config.source";

/// `containerd://0123…` → `0123…`; `None` for what is no id.
fn id(with_runtime: &str) -> Option<String> {
    let (_, id) = with_runtime.split_once("://")?;
    (!id.is_empty()).then(|| id.to_owned())
}

fn limit(of: Option<&api::ResourceRequirements>, what: &str) -> Option<String> {
    of?.limits.as_ref()?.get(what).map(|q| q.0.clone())
}

/// What the status tells of a container that ended: now, or before it was started anew.
fn ended(status: &api::ContainerStatus) -> Vec<Ended> {
    let own = status.container_id.as_deref().and_then(id);
    let states = [&status.last_state, &status.state].into_iter().flatten();
    let ends = states.filter_map(|s| s.terminated.as_ref());
    ends.filter_map(|end| {
        let container_id = end.container_id.as_deref().and_then(id)?;
        Some(Ended {
            next_container_id: own.clone().filter(|own| *own != container_id),
            container_id,
            reason: end.reason.clone().filter(|r| !r.is_empty()),
            exit_code: end.exit_code,
            restart_count: status.restart_count,
        })
    })
    .collect()
}

fn container(
    name: &str,
    image: Option<&String>,
    resources: Option<&api::ResourceRequirements>,
    statuses: &[api::ContainerStatus],
) -> Container {
    let status = statuses.iter().find(|s| s.name == name);
    let ended = status.map(ended).unwrap_or_default();
    let current = status.and_then(|s| s.container_id.as_deref()).and_then(id);
    let mut ids: Vec<String> = ended.iter().map(|e| e.container_id.clone()).collect();
    ids.extend(current.filter(|id| !ended.iter().any(|e| e.container_id == *id)));
    // a limit that was changed in place is told by the status
    let now = status.and_then(|s| s.resources.as_ref());
    let limit = |what| limit(now, what).or_else(|| limit(resources, what));
    Container {
        name: name.to_owned(),
        image: image.cloned().filter(|i| !i.is_empty()),
        restart_count: status.map_or(0, |s| s.restart_count),
        cpu_limit: limit("cpu"),
        memory_limit: limit("memory"),
        ids,
        ended,
    }
}

fn labels(all: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut bytes = 0;
    all.into_iter()
        .take_while(|(k, v)| {
            bytes += k.len() + v.len();
            bytes <= MAX_LABEL_BYTES
        })
        .collect()
}

/// The hash of the static pod whose mirror this is, as a kubelet makes them: both annotations with the same hash, a source that is not the API
/// server, the node as an owner. Who may make pods can write all that as well; see `pods`.
fn static_hash(annotations: &BTreeMap<String, String>, owners: &[OwnerReference]) -> Option<String> {
    let hash = annotations.get(MIRROR)?;
    let is_mirror = annotations.get(CONFIG_HASH) == Some(hash)
        && annotations.get(CONFIG_SOURCE).is_some_and(|source| source != "api")
        && owners.iter().any(|o| o.kind == "Node");
    is_mirror.then(|| hash.clone())
}

/// Why a kubelet ended all of a pod (`Evicted`, `Preempting`, `NodeShutdown`), with its words for it.
fn reason(status: &api::PodStatus) -> Option<String> {
    let reason = status.reason.as_deref().filter(|r| !r.is_empty())?;
    let words = status.message.as_deref().map_or_else(String::new, |m| format!(": {}", m.trim()));
    Some(format!("{reason}{words}").chars().take(MAX_REASON).collect())
}

/// When the deletion was asked for: its timestamp is the end of the time that the pod is given.
fn deleted_us(meta: &ObjectMeta) -> Option<i64> {
    let end = meta.deletion_timestamp.as_ref()?.0.as_second();
    end.checked_sub(meta.deletion_grace_period_seconds.unwrap_or(0))?.checked_mul(1_000_000)
}

/// `None` for an object that does not say who it is.
pub fn of(pod: api::Pod) -> Option<Pod> {
    let (meta, spec, status) = (pod.metadata, pod.spec.unwrap_or_default(), pod.status.unwrap_or_default());
    let told = |s: Option<String>| s.filter(|s| !s.is_empty());
    let (reason, deleted_us) = (reason(&status), deleted_us(&meta));
    let (uid, name, namespace) = (told(meta.uid)?, told(meta.name)?, told(meta.namespace)?);
    let annotations = meta.annotations.unwrap_or_default();
    let owners = meta.owner_references.unwrap_or_default();
    let owner = owners.iter().find(|o| o.controller == Some(true)).or(owners.first());
    let all = |s: &Option<Vec<api::ContainerStatus>>| s.clone().unwrap_or_default();
    let (main, init, ephemeral) = (
        all(&status.container_statuses),
        all(&status.init_container_statuses),
        all(&status.ephemeral_container_statuses),
    );
    let mut containers: Vec<Container> = Vec::new();
    for (list, statuses) in [(&spec.containers, &main), (&spec.init_containers.unwrap_or_default(), &init)] {
        let of = |c: &api::Container| container(&c.name, c.image.as_ref(), c.resources.as_ref(), statuses);
        containers.extend(list.iter().map(of));
    }
    let of =
        |c: &api::EphemeralContainer| container(&c.name, c.image.as_ref(), c.resources.as_ref(), &ephemeral);
    containers.extend(spec.ephemeral_containers.iter().flatten().map(of));
    Some(Pod {
        static_hash: static_hash(&annotations, &owners).filter(|hash| *hash != uid),
        uid,
        namespace,
        name,
        labels: labels(meta.labels.unwrap_or_default()),
        owner: owner.map(|o| Owner { kind: o.kind.clone(), name: o.name.clone() }),
        qos: told(status.qos_class),
        reason,
        deleted_us,
        containers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::Pods;
    use serde_json::{Value, json};

    const UID: &str = "0f9c1c2e-1111-2222-3333-0123456789ab";

    fn read(object: Value) -> Option<Pod> {
        of(serde_json::from_value(object).expect("a Pod"))
    }

    /// As a kubelet of 1.30 reports it: a crash loop's second container, an init container, a sidecar, a debug container.
    fn cart() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "cart-7d4b9c-x2x2x", "namespace": "shop", "uid": UID,
                "labels": {"app": "cart", "pod-template-hash": "7d4b9c"},
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "x"},
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cart-7d4b9c", "uid": "y", "controller": true}],
                "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsV1": {"f:status": {}}}],
            },
            "spec": {
                "nodeName": "n",
                "containers": [{"name": "app", "image": "cart:1", "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}}],
                "initContainers": [
                    {"name": "migrate", "image": "migrate:1"},
                    {"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"}],
                "ephemeralContainers": [{"name": "debugger-1", "image": "busybox"}],
            },
            "status": {
                "qosClass": "Burstable",
                "containerStatuses": [{
                    "name": "app", "image": "cart:1", "imageID": "", "ready": true, "restartCount": 1,
                    "containerID": "containerd://bbb", "resources": {"limits": {"cpu": "500m", "memory": "96Mi"}},
                    "state": {"running": {"startedAt": "2026-11-01T00:00:00Z"}},
                    "lastState": {"terminated": {"containerID": "containerd://aaa", "exitCode": 137, "reason": "OOMKilled"}},
                }],
                "initContainerStatuses": [
                    {"name": "migrate", "image": "", "imageID": "", "ready": true, "restartCount": 0, "containerID": "cri-o://ini",
                     "state": {"terminated": {"containerID": "cri-o://ini", "exitCode": 0, "reason": "Completed"}}},
                    {"name": "proxy", "image": "", "imageID": "", "ready": true, "restartCount": 0, "containerID": "docker://pro",
                     "state": {"running": {}}}],
                "ephemeralContainerStatuses": [
                    {"name": "debugger-1", "image": "", "imageID": "", "ready": false, "restartCount": 0, "containerID": "podman://dbg"}],
            },
        })
    }

    #[test]
    fn containers_of_every_kind_are_named_under_every_runtime() {
        let pod = read(cart()).expect("a pod");
        assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("shop", "cart-7d4b9c-x2x2x"));
        let owner = Owner { kind: "ReplicaSet".into(), name: "cart-7d4b9c".into() };
        assert_eq!((pod.owner.as_ref(), pod.qos.as_deref()), (Some(&owner), Some("Burstable")));
        assert_eq!(pod.labels["app"], "cart");
        let pods = Pods::default();
        pods.apply(pod);
        let named = |id| pods.who(Some(UID), Some(id)).and_then(|w| Some(w.container()?.name.clone()));
        for (id, name) in
            [("aaa", "app"), ("bbb", "app"), ("ini", "migrate"), ("pro", "proxy"), ("dbg", "debugger-1")]
        {
            assert_eq!(named(id).as_deref(), Some(name), "{id}");
        }
        assert_eq!(named("containerd://aaa"), None);
    }

    #[test]
    fn an_end_has_its_reason_and_the_container_that_came_next() {
        let pods = Pods::default();
        pods.apply(read(cart()).expect("a pod"));
        let who = pods.who(Some(UID), Some("aaa")).expect("known");
        let app = who.container().expect("known");
        assert_eq!((app.restart_count, app.image.as_deref()), (1, Some("cart:1")));
        assert_eq!((app.cpu_limit.as_deref(), app.memory_limit.as_deref()), (Some("500m"), Some("96Mi")));
        let end = Ended {
            container_id: "aaa".into(),
            reason: Some("OOMKilled".into()),
            exit_code: 137,
            restart_count: 1,
            next_container_id: Some("bbb".into()),
        };
        assert_eq!(who.ended("aaa"), Some(&end));
        assert_eq!(who.ended("bbb"), None, "it runs");
        let init = pods.who(Some(UID), Some("ini")).expect("known");
        assert_eq!(init.ended("ini").map(|e| e.next_container_id.clone()), Some(None));
    }

    #[test]
    fn between_two_containers_of_a_crash_loop_the_last_end_has_no_successor() {
        let mut object = cart();
        let app = &mut object["status"]["containerStatuses"][0];
        app["containerID"] = json!("containerd://aaa");
        app["state"] = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let pod = read(object).expect("a pod");
        assert_eq!(
            (pod.containers[0].ids.as_slice(), pod.containers[0].ended.len()),
            (&["aaa".to_owned()][..], 1)
        );
        assert_eq!(pod.containers[0].ended[0].next_container_id, None);
    }

    #[test]
    fn why_and_when_all_of_a_pod_ends_is_kept() {
        let pod = read(cart()).expect("a pod");
        assert_eq!((pod.reason, pod.deleted_us), (None, None));
        let mut object = cart();
        object["status"]["reason"] = json!("Evicted");
        object["status"]["message"] =
            json!("The node was low on resource: memory. ".to_owned() + &"é".repeat(500));
        object["metadata"]["deletionTimestamp"] = json!("2026-11-30T08:00:30Z");
        let pod = read(object.clone()).expect("a pod");
        let reason = pod.reason.expect("a reason");
        assert!(reason.starts_with("Evicted: The node was low on resource: memory. é"), "{reason}");
        assert_eq!(reason.chars().count(), MAX_REASON);
        assert_eq!(pod.deleted_us, Some(1_796_025_630_000_000));
        object["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        assert_eq!(read(object).and_then(|p| p.deleted_us), Some(1_796_025_600_000_000));
    }

    #[test]
    fn the_mirror_of_a_static_pod_has_the_hash_of_its_cgroup() {
        let hash = "0123456789abcdef0123456789abcdef";
        let mut object = cart();
        for no_mirror in [
            json!({CONFIG_HASH: hash, CONFIG_SOURCE: "file"}),
            json!({CONFIG_HASH: hash, MIRROR: hash}),
            json!({CONFIG_HASH: hash, MIRROR: hash, CONFIG_SOURCE: "api"}),
            json!({CONFIG_HASH: hash, MIRROR: "other", CONFIG_SOURCE: "file"}),
        ] {
            object["metadata"]["annotations"] = no_mirror.clone();
            assert_eq!(read(object.clone()).and_then(|p| p.static_hash), None, "{no_mirror}");
        }
        object["metadata"]["annotations"] = json!({CONFIG_HASH: hash, MIRROR: hash, CONFIG_SOURCE: "file"});
        let mut ownerless = object.clone();
        ownerless["metadata"]["ownerReferences"] = json!([]);
        assert_eq!(read(ownerless).and_then(|p| p.static_hash), None, "no kubelet made it");
        let pods = Pods::default();
        pods.apply(read(object).expect("a pod"));
        let who = pods.who(Some(hash), Some("bbb")).expect("known by its hash");
        assert_eq!(who.container().map(|c| c.name.as_str()), Some("app"));
    }

    #[test]
    fn an_object_that_lacks_what_it_should_have_is_taken_as_far_as_it_goes() {
        let meta = |m: Value| read(json!({"apiVersion": "v1", "kind": "Pod", "metadata": m}));
        assert_eq!(meta(json!({})), None);
        assert_eq!(meta(json!({"name": "a", "namespace": "b", "uid": ""})), None);
        let bare = meta(json!({"name": "a", "namespace": "b", "uid": "c"})).expect("a pod");
        assert_eq!((bare.containers.len(), bare.labels.len(), bare.qos), (0, 0, None));
        let mut pending = cart();
        pending["status"] = json!({"phase": "Pending"});
        let pending = read(pending).expect("a pod");
        assert_eq!(pending.containers.iter().map(|c| c.ids.len()).sum::<usize>(), 0);
        assert_eq!(pending.containers.len(), 4);
    }

    #[test]
    fn labels_without_end_are_cut() {
        let mut object = cart();
        object["metadata"]["labels"] = (0..10_000).map(|n| (format!("label-{n:05}"), json!("v"))).collect();
        let bytes: usize = read(object).expect("a pod").labels.iter().map(|(k, v)| k.len() + v.len()).sum();
        assert!(bytes > MAX_LABEL_BYTES / 2 && bytes <= MAX_LABEL_BYTES, "{bytes}");
    }
}
