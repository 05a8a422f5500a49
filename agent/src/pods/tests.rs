//! Tests of the table: what is known of a pod, for how long, and what of it is news.

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
    assert_eq!(pods.uids(|p| p.labels.get("app").is_some_and(|v| v == "store")), ["u2"]);
}
