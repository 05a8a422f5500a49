//! What nobody has named, as the status has it; and what a rotation waits for.

use super::{CID, Stage, id_of, on_stage, task};
use crate::clock::ktime_ns;
use crate::event::{Exit, What};
use crate::pods::{Pods, tests::pod};
use serde_json::json;

const SECOND: u64 = 1_000_000_000;
const UID: &str = "d6f0b51a-8f3b-4c39-9d3f-1f6f1a3f7d10";

/// One that came and went while the API server was away is told of by nobody.
#[test]
fn cgroups_and_incidents_of_a_pod_that_nobody_told_of_are_counted() {
    on_stage(100, true, |s| {
        let pods = Pods::default();
        s.state.set_pods(pods.clone());
        s.make("system.slice/cron.service");
        let id = id_of(&s.make(&format!("kubepods/pod{UID}/{CID}")));
        let mut now = ktime_ns();
        s.turn(now);
        let task = crate::event::Task { comm: "app".into(), ..task(60, id) };
        let exit = Exit { task, ppid: Some(7), inner_pid: Some(1), exit_code: None, signal: Some(9) };
        s.tell(What::Exit(exit));
        let counted =
            |cgroups, incidents| json!({"cgroups": cgroups, "incidents": incidents, "incidents_given_up": 0});
        assert_eq!(s.state.unnamed(now), counted(2, 1), "the pod and its container");
        pods.apply(pod("another", "cart", &[]));
        pods.apply(pod(UID, "cart", &[CID]));
        pods.deleted(UID);
        assert_eq!(s.state.unnamed(now + SECOND), counted(2, 1), "cgroups are not counted each second");
        now += 10 * SECOND;
        s.turn(now);
        assert_eq!(s.state.unnamed(now), counted(0, 0), "told of by its deletion");
    });
}

/// How many seconds after `due` the rotation comes, when `told` becomes known so many seconds after it.
fn late(s: &mut Stage, pods: &Pods, due: u64, told: Option<(u64, &str)>) -> u64 {
    let mut now = due;
    loop {
        if let Some((_, id)) = told.filter(|(at, _)| now >= due + at * SECOND) {
            pods.apply(pod(UID, "cart", &[id]));
        }
        if s.state.hand_over(now).is_some_and(|job| job.rotation.is_some()) {
            return (now - due) / SECOND;
        }
        now += SECOND / 4;
    }
}

/// Closed files stay as they are: the names of containers that began just before are waited for, and not for ever.
#[test]
fn a_rotation_waits_for_the_names_of_young_containers() {
    let sandbox = CID.replace('1', "2");
    // when its id is told; whether it has gone by then; whether a sandbox began before it; how late that makes the rotation
    for (told_s, has_gone, has_sandbox, wanted) in [
        (None, false, false, 29..31),
        (Some(0), false, false, 0..1),
        (Some(12), false, false, 12..13),
        (Some(12), true, false, 12..13),
        (Some(12), false, true, 12..13),
        (Some(0), false, true, 0..1),
    ] {
        on_stage(100, true, |s| {
            let pods = Pods::default();
            pods.apply(pod(UID, "cart", &[]));
            s.state.set_pods(pods.clone());
            let pod = format!("kubepods/pod{UID}");
            let own = format!("{pod}/{CID}");
            let sandbox = has_sandbox.then(|| format!("{pod}/{sandbox}"));
            for path in ["kubepods", &pod].into_iter().chain(sandbox.as_deref()).chain([&*own]) {
                let path = s.make(path);
                s.tell_start(&path);
                assert!(s.state.targets.contains_key(&id_of(&path)), "followed");
            }
            if has_gone {
                let path = s.make(&own);
                let id = id_of(&path);
                std::fs::remove_dir_all(&path).expect("removed");
                s.tell_end(id, "");
                assert!(!s.state.targets.contains_key(&id), "still followed");
            }
            let due = ktime_ns();
            s.state.handover.rotate_at(due);
            let late = late(s, &pods, due, told_s.map(|at| (at, CID)));
            assert!(wanted.contains(&late), "{told_s:?} {has_gone} {has_sandbox}: {late} s late");
        });
    }
}
