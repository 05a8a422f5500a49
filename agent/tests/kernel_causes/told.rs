//! What the tests of causes share: a program that begins in a cgroup, and what an agent has stored of a kind of event.

use crate::stage::{Agent, Cgroup, Process, ints, texts};
use serde_json::Value;
use std::process::{Command, Stdio};

/// A program that begins in the cgroup: what starts it goes in first, then becomes it, as a runtime does.
pub fn begin(script: &str, cgroup: &Cgroup) -> Process {
    let child = Command::new("sh")
        .args(["-c", "echo 0 > \"$0\" && exec sh -c \"$1\""])
        .arg(cgroup.path.join("cgroup.procs"))
        .arg(script)
        .stdin(Stdio::null())
        .spawn()
        .expect("sh");
    Process { pid: child.id(), child }
}

pub fn summary(incident: &Value) -> &str {
    incident["summary"].as_str().expect("a summary")
}

/// The details of all events of a kind, in closed segments.
pub fn details(agent: &Agent, wanted: &str) -> Vec<(Option<i64>, Value)> {
    let mut out = Vec::new();
    for batch in agent.stored("events") {
        let (ids, kinds, details) =
            (ints(&batch, "cgroup_id"), texts(&batch, "kind"), texts(&batch, "detail"));
        for ((id, kind), detail) in ids.into_iter().zip(kinds).zip(details) {
            if kind.as_deref() == Some(wanted) {
                out.push((id, serde_json::from_str(&detail.expect("a detail")).expect("JSON")));
            }
        }
    }
    out
}
