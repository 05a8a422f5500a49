//! What a cgroup's path says: container, pod, service, and the ids in it.
//!
//! Pure text work. Identity comes from the path alone (all runtimes, both cgroup drivers); Kubernetes only adds names.
//! `parse` and `loose` below read the files' text. `discovery` calls this file for each directory it sees.

pub mod loose;
pub mod parse;

use crate::names::{CgroupId, Qos, Scope};

/// What the path of a cgroup says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub scope: Scope,
    pub pod_uid: Option<String>,
    pub container_id: Option<String>,
    pub qos: Option<Qos>,
    /// The cgroup lies inside a container's own cgroup (crun's `container`, systemd in a container).
    pub inside_container: bool,
}

/// A cgroup as rows name it. Made once when it is seen, shared by all of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub id: CgroupId,
    pub parent_id: Option<CgroupId>,
    /// From the agent's cgroup root, with a leading slash; the root itself is `/`.
    pub path: String,
    pub identity: Identity,
}

fn is_hex(s: &str) -> bool {
    !s.is_empty() && s.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A pod UID: 8-4-4-4-12 hex digits (dashes, or underscores as systemd needs them), or the 32 hex digits of a static
/// pod's config hash.
fn pod_uid(s: &str) -> Option<String> {
    if s.len() == 32 && is_hex(s) {
        return Some(s.to_owned());
    }
    let dashed = s.replace('_', "-");
    let groups: Vec<&str> = dashed.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|g| g.len()).collect();
    (lengths == [8, 4, 4, 4, 12] && groups.iter().all(|g| is_hex(g))).then_some(dashed)
}

fn stem(component: &str) -> &str {
    component.strip_suffix(".slice").unwrap_or(component)
}

/// `kubepods-burstable-pod<uid>.slice`, `kubelet-kubepods-pod<uid>.slice`, `pod<uid>`.
fn pod_of(component: &str) -> Option<String> {
    let stem = stem(component);
    let at = stem.rfind("pod").filter(|&at| at == 0 || stem[..at].ends_with('-'))?;
    pod_uid(&stem[at + 3..])
}

fn qos_of(component: &str) -> Option<Qos> {
    let stem = stem(component);
    let mut words = stem.split('-');
    if stem == "burstable" || words.any(|w| w == "burstable") {
        Some(Qos::Burstable)
    } else if stem == "besteffort" || stem.split('-').any(|w| w == "besteffort") {
        Some(Qos::BestEffort)
    } else {
        None
    }
}

/// Scopes of systemd's driver: runtime, dash, id.
const RUNTIME_PREFIXES: &[&str] =
    &["cri-containerd-", "crio-", "docker-", "libpod-", "runc-", "crun-", "nerdctl-"];
/// containerd without Kubernetes: `/<namespace>/<id>`, where the id may be any name.
const CONTAINERD_NAMESPACES: &[&str] = &["default", "k8s.io", "moby", "buildkit"];

/// The container id that one component names, given its parent's component.
fn container_of(component: &str, parent: Option<&str>, in_pod: bool) -> Option<String> {
    if let Some(stem) = component.strip_suffix(".scope") {
        let id = RUNTIME_PREFIXES.iter().find_map(|p| stem.strip_prefix(p))?;
        // conmon is the monitor of a container, not the container
        return (!id.is_empty() && !id.starts_with("conmon-")).then(|| id.to_owned());
    }
    if component.contains('.') {
        return None;
    }
    let name = RUNTIME_PREFIXES.iter().find_map(|p| component.strip_prefix(p)).unwrap_or(component);
    if name.starts_with("conmon-") {
        return None;
    }
    if name.len() == 64 && is_hex(name) {
        return Some(name.to_owned());
    }
    let named = in_pod || parent.is_some_and(|p| CONTAINERD_NAMESPACES.contains(&p));
    (named && !name.is_empty() && pod_of(component).is_none()).then(|| name.to_owned())
}

/// The cgroup in which a kubelet keeps its pods: what they may use together is its limit.
fn is_kubepods(component: &str) -> bool {
    let stem = stem(component);
    stem == "kubepods" || stem.ends_with("-kubepods")
}

/// Whether pods lie right in this cgroup: the kubelet's own, or that of a QoS class in it.
pub fn holds_pods(path: &str) -> bool {
    let mut components = path.rsplit('/');
    let [own, parent] = [(); 2].map(|()| components.next().unwrap_or_default());
    is_kubepods(own) || is_kubepods(parent) && qos_of(own).is_some()
}

/// Reads a path from the cgroup root, such as
/// `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod….slice/cri-containerd-….scope`.
/// Where containers nest (kind), the innermost pod and container win.
pub fn identify(path: &str) -> Identity {
    let mut id = Identity {
        scope: Scope::Other,
        pod_uid: None,
        container_id: None,
        qos: None,
        inside_container: false,
    };
    let mut parent = None;
    let mut qos = None;
    let mut in_kubepods = false;
    for component in path.split('/').filter(|c| !c.is_empty()) {
        if is_kubepods(component) {
            (in_kubepods, qos) = (true, None);
            id.scope = Scope::Other;
        } else if let Some(uid) = pod_of(component).filter(|_| in_kubepods) {
            id.pod_uid = Some(uid);
            id.container_id = None;
            id.inside_container = false;
            id.scope = Scope::Pod;
            id.qos = Some(qos_of(component).or(qos).unwrap_or(Qos::Guaranteed));
        } else if let Some(container) = container_of(component, parent, id.scope == Scope::Pod) {
            if id.scope != Scope::Pod {
                // a container of another runtime nested in a pod's container is that pod's no more
                id.pod_uid = id.pod_uid.filter(|_| id.scope == Scope::Pod);
                id.qos = id.qos.filter(|_| id.pod_uid.is_some());
            }
            id.container_id = Some(container);
            id.scope = Scope::Container;
            id.inside_container = false;
            in_kubepods = false;
        } else {
            qos = qos_of(component).or(qos);
            if id.container_id.is_some() {
                id.inside_container = true;
                id.scope = Scope::Other;
            } else {
                id.scope = if component.ends_with(".service") { Scope::Service } else { Scope::Other };
            }
        }
        parent = Some(component);
    }
    if parent.is_none() {
        id.scope = Scope::Node;
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f9c1c2e-1111-2222-3333-0123456789ab";
    const CID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const CID2: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

    fn check(path: &str, scope: Scope, pod: Option<&str>, container: Option<&str>, qos: Option<Qos>) {
        let i = identify(path);
        assert_eq!(
            (i.scope, i.pod_uid.as_deref(), i.container_id.as_deref(), i.qos),
            (scope, pod, container, qos),
            "{path}"
        );
    }

    #[test]
    fn what_holds_pods_is_known_by_its_name_and_place() {
        for path in [
            "/kubepods",
            "/kubepods/burstable",
            "/kubepods.slice",
            "/kubepods.slice/kubepods-besteffort.slice",
            "/kubelet.slice/kubelet-kubepods.slice",
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice",
            "/docker/x/kubelet/kubepods/besteffort",
        ] {
            assert!(holds_pods(path), "{path}");
        }
        let pod = format!("/kubepods/burstable/pod{UID}");
        for path in ["/", "/system.slice", "/burstable", "/system.slice/burstable", "/notkubepods", &pod] {
            assert!(!holds_pods(path), "{path}");
        }
    }

    #[test]
    fn containers_of_every_runtime_and_driver_are_known() {
        let u = UID.replace('-', "_");
        let burst = Some(Qos::Burstable);
        let systemd = format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{u}.slice");
        check(&systemd, Scope::Pod, Some(UID), None, burst);
        for runtime in ["cri-containerd", "crio", "docker"] {
            let p = format!("{systemd}/{runtime}-{CID}.scope");
            check(&p, Scope::Container, Some(UID), Some(CID), burst);
        }
        check(
            &format!("/kubepods/besteffort/pod{UID}/{CID}"),
            Scope::Container,
            Some(UID),
            Some(CID),
            Some(Qos::BestEffort),
        );
        check(
            &format!("/kubepods/pod{UID}/{CID}"),
            Scope::Container,
            Some(UID),
            Some(CID),
            Some(Qos::Guaranteed),
        );
        check(
            &format!("/kubepods.slice/kubepods-pod{u}.slice"),
            Scope::Pod,
            Some(UID),
            None,
            Some(Qos::Guaranteed),
        );
        check(&format!("/machine.slice/libpod-{CID}.scope"), Scope::Container, None, Some(CID), None);
        check("/system.slice/runc-web1.scope", Scope::Container, None, Some("web1"), None);
        check(&format!("/docker/{CID}"), Scope::Container, None, Some(CID), None);
        check("/default/web1", Scope::Container, None, Some("web1"), None);
    }

    #[test]
    fn static_pods_are_named_by_their_hash() {
        let hash = "0123456789abcdef0123456789abcdef";
        let p = format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{hash}.slice/cri-containerd-{CID}.scope"
        );
        check(&p, Scope::Container, Some(hash), Some(CID), Some(Qos::Burstable));
    }

    #[test]
    fn monitors_and_slices_are_not_containers() {
        check(&format!("/machine.slice/libpod-conmon-{CID}.scope"), Scope::Other, None, None, None);
        let u = UID.replace('-', "_");
        let p = format!("/kubepods.slice/kubepods-pod{u}.slice/crio-conmon-{CID}.scope");
        assert_eq!(identify(&p).container_id, None);
        check("/kubepods.slice/kubepods-burstable.slice", Scope::Other, None, None, None);
        check("/system.slice", Scope::Other, None, None, None);
        check("/system.slice/cron.service", Scope::Service, None, None, None);
        check("/user.slice/user-0.slice/session-1.scope", Scope::Other, None, None, None);
        check("/", Scope::Node, None, None, None);
    }

    #[test]
    fn a_cgroup_inside_a_container_belongs_to_it() {
        let i = identify(&format!("/kubepods/pod{UID}/{CID}/container"));
        assert!(i.inside_container);
        assert_eq!((i.scope, i.container_id.as_deref()), (Scope::Other, Some(CID)));
    }

    #[test]
    fn the_innermost_container_wins_in_kind() {
        let u = UID.replace('-', "_");
        let p = format!(
            "/system.slice/docker-{CID}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
             kubelet-kubepods-burstable-pod{u}.slice/cri-containerd-{CID2}.scope"
        );
        let i = identify(&p);
        assert_eq!(
            (i.scope, i.pod_uid.as_deref(), i.container_id.as_deref()),
            (Scope::Container, Some(UID), Some(CID2))
        );
        assert!(!i.inside_container);
    }

    proptest::proptest! {
        #[test]
        fn any_path_gives_an_identity(path in "[/a-z0-9._-]{0,200}") {
            let i = identify(&path);
            proptest::prop_assert!(i.scope != Scope::Container || i.container_id.is_some());
            proptest::prop_assert!(i.scope != Scope::Pod || i.pod_uid.is_some());
        }
    }
}
