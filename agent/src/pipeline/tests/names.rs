//! What nobody has named, as the status has it.

use super::{CID, id_of, on_stage, task};
use crate::clock::ktime_ns;
use crate::event::{Exit, What};
use crate::pods::{Pods, tests::pod};
use serde_json::json;

const SECOND: u64 = 1_000_000_000;

/// One that came and went while the API server was away is told of by nobody.
#[test]
fn cgroups_and_incidents_of_a_pod_that_nobody_told_of_are_counted() {
    const UID: &str = "d6f0b51a-8f3b-4c39-9d3f-1f6f1a3f7d10";
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
