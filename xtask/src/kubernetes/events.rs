//! Every kind of event that pods have in their lives, told by the agent as the DaemonSet runs it: two capabilities, seccomp, a
//! read-only root. Must count only what a probe told: files and scans see some of it too. Pure; called by `play`.

use super::check::Checks;
use serde_json::Value;

/// Kinds, and the mechanism that tells each where nothing is missing.
const WANTED: [(&str, &str); 8] = [
    ("cgroup_start", "tp_btf"),
    ("cgroup_end", "tp_btf"),
    ("populated", "tp_btf"),
    ("exec", "tp_btf"),
    ("exit", "tp_btf"),
    ("kill", "tp_btf"),
    ("oom_kill", "tp_btf"),
    ("memory_reclaim", "fentry"),
];
/// What stands in for a probe.
const STANDS_IN: [&str; 4] = ["pread", "inotify", "poll", "scan"];

/// Each hook by the best mechanism that there is for it.
pub fn hooks(checks: &mut Checks, ladder: &Value) {
    checks.that("all probes are attached", ladder["level"] == "full_bpf", ladder);
    let all = ladder["hooks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_whole = |h: &&Value| {
        h["mechanism"].as_str().is_some_and(|m| !STANDS_IN.contains(&m) && m != "tracepoint")
            && h["error"].is_null()
    };
    let lacking: Vec<_> = all.iter().filter(|h| !is_whole(h)).map(|h| &h["hook"]).collect();
    checks.that(
        &format!("each of its {} hooks by the best mechanism", all.len()),
        all.len() > WANTED.len() && lacking.is_empty(),
        &format!("not: {lacking:?}"),
    );
}

/// The events of the cluster so far; `stopped` is a container whose pod was deleted.
pub fn lives(checks: &mut Checks, events: &[Value], stopped: &Value) {
    for (kind, mechanism) in WANTED {
        let of_kind = || events.iter().filter(|e| e["kind"] == kind);
        let told = of_kind()
            .filter(|e| e["source"].as_str().is_some_and(|s| s.split('/').next() == Some(mechanism)))
            .count();
        let sources: Vec<_> = of_kind().map(|e| &e["source"]).collect();
        checks.that(
            &format!("{kind} is told by {mechanism}, {told} times"),
            told > 0,
            &format!("told by {sources:?}"),
        );
    }
    let own = || events.iter().filter(|e| e["container_id"] == *stopped && !stopped.is_null());
    let asked = own().find(|e| e["kind"] == "kill" && e["signal"] == 15);
    let sender = asked.map(|e| e["detail"]["sender"]["comm"].clone()).unwrap_or_default();
    checks.that("a deleted pod's SIGTERM is told with its sender, the runtime", sender == "runc", &sender);
    let ended = own().any(|e| e["kind"] == "exit" && e["detail"]["is_init"] == true);
    checks.that("and the end of the container's init", ended, &own().count());
}

#[cfg(test)]
mod tests {
    use super::super::check::Checks;
    use super::{WANTED, hooks, lives};
    use crate::tally::Tally;
    use serde_json::{Value, json};

    fn events() -> Vec<Value> {
        let mut all: Vec<Value> = WANTED
            .iter()
            .map(|(kind, how)| json!({"kind": kind, "source": format!("{how}/hook"), "container_id": "x"}))
            .collect();
        all.push(
            json!({"kind": "kill", "source": "tp_btf/signal_generate", "signal": 15, "container_id": "p",
            "detail": {"sender": {"comm": "runc"}}}),
        );
        all.push(json!({"kind": "exit", "source": "tp_btf/sched_process_exit", "container_id": "p",
            "detail": {"is_init": true}}));
        all
    }

    fn is_good(events: &[Value]) -> bool {
        let mut checks = Checks::default();
        lives(&mut checks, events, &json!("p"));
        checks.tally() == Tally::PASSED
    }

    #[test]
    fn each_kind_must_be_told_by_its_probe() {
        assert!(is_good(&events()));
        for n in 0..WANTED.len() {
            let mut all = events();
            all[n]["source"] = json!("files");
            // a kill and an exit are told twice
            let twice = matches!(WANTED[n].0, "kill" | "exit");
            assert_eq!(is_good(&all), twice, "{}", WANTED[n].0);
        }
        let mut all = events();
        all[WANTED.len()]["detail"]["sender"]["comm"] = json!("sh");
        assert!(!is_good(&all));
        all.truncate(WANTED.len());
        assert!(!is_good(&all));
    }

    #[test]
    fn a_hook_that_is_not_at_its_best_is_a_failure() {
        let mut ladder = json!({"level": "full_bpf", "hooks": []});
        ladder["hooks"] = (0..9).map(|n| json!({"hook": n, "mechanism": "tp_btf", "error": null})).collect();
        let good = |ladder: &Value| {
            let mut checks = Checks::default();
            hooks(&mut checks, ladder);
            checks.tally() == Tally::PASSED
        };
        assert!(good(&ladder));
        for (key, value) in
            [("mechanism", json!(null)), ("mechanism", json!("pread")), ("error", json!("no right"))]
        {
            let mut one = ladder.clone();
            one["hooks"][3][key] = value;
            assert!(!good(&one), "{key}");
        }
        ladder["level"] = json!("no_fentry");
        assert!(!good(&ladder));
    }
}
