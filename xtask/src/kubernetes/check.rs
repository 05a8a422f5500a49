//! What the agent has to have told of the killed container, held against what kubectl says of it.
//! Must never take the agent's word for what it is checked against: the right answers come from the API server. Pure; called by
//! `kubernetes`.

use crate::progress::say;
use crate::tally::Tally;
use serde_json::Value;

/// Counts checks, a line for each.
#[derive(Default)]
pub struct Checks {
    passed: u32,
    failed: u32,
}

impl Checks {
    pub fn that(&mut self, what: &str, good: bool, seen: &dyn std::fmt::Display) {
        if good {
            self.passed += 1;
            say(&format!("  ok   {what}"));
        } else {
            self.failed += 1;
            say(&format!("  FAIL {what}: {seen}"));
        }
    }

    pub fn is(&mut self, what: &str, seen: &Value, wanted: &Value) {
        self.that(what, seen == wanted && !seen.is_null(), &format!("{seen}, and Kubernetes has {wanted}"));
    }

    /// One test: counting each check would drown the others' numbers.
    pub fn tally(&self) -> Tally {
        say(&format!("  {} checks passed, {} failed", self.passed, self.failed));
        if self.failed == 0 && self.passed > 0 { Tally::PASSED } else { Tally::FAILED }
    }
}

/// The container that was killed, by the API server.
pub struct Killed {
    pub pod: Value,
    status: Value,
}

const NAME: &str = "app";

impl Killed {
    /// Of `kubectl get pods -o json`; `None` until the container has ended and another one has taken its place.
    pub fn of(pods: &Value) -> Option<Self> {
        let pod = pods["items"].as_array()?.first()?;
        let all = pod["status"]["containerStatuses"].as_array()?;
        let status = all.iter().find(|s| s["name"] == NAME)?;
        let ended = &status["lastState"]["terminated"]["containerID"];
        (ended.is_string() && status["containerID"] != *ended)
            .then(|| Self { pod: pod.clone(), status: status.clone() })
    }

    pub fn ended(&self) -> &Value {
        &self.status["lastState"]["terminated"]
    }

    /// Without the runtime's name in front.
    pub fn id(&self) -> Value {
        id(&self.ended()["containerID"])
    }

    /// Whether this incident is its.
    pub fn is_of(&self, incident: &Value) -> bool {
        incident["container_id"] == self.id() && incident["kind"] == "oom_kill"
    }

    pub fn incident(&self, checks: &mut Checks, i: &Value) {
        let meta = &self.pod["metadata"];
        checks.is("the incident names the pod", &i["pod"], &meta["name"]);
        checks.is("and its namespace", &i["namespace"], &meta["namespace"]);
        checks.is("and its container", &i["container"], &self.status["name"]);
        checks.is("and the pod's labels, all of them", &i["labels"], &meta["labels"]);
        checks.is("and its UID", &i["pod_uid"], &meta["uid"]);
        let k = &i["kubernetes"];
        checks.is("Kubernetes' reason is joined", &k["reason"], &self.ended()["reason"]);
        // a runtime that hears of the end before it hears of the kill has `Error`, which is a disagreement to be told
        let agrees = k["reason"] == "OOMKilled";
        checks.that("and it is OOMKilled, or Error", agrees || k["reason"] == "Error", &k["reason"]);
        checks.is("and the exit code", &k["exit_code"], &self.ended()["exitCode"]);
        // on a slow machine its successor may have been killed as well by now: then this is the later one, and its count
        let restarts = &self.status["restartCount"];
        checks.is("and the restart, as it was counted for this end", &k["restart_count"], restarts);
        let summary = i["summary"].as_str().unwrap_or_default();
        let pod = format!("{}/{}", text(&meta["namespace"]), text(&meta["name"]));
        let times = match restarts.as_u64() {
            Some(1) => "restarted once".to_owned(),
            n => format!("restarted {} times", n.unwrap_or_default()),
        };
        let says = if agrees { "Kubernetes says so too: OOMKilled" } else { "does not say so: it has Error" };
        let words = [pod.as_str(), says, &times];
        checks.that("the summary says all this", words.iter().all(|w| summary.contains(w)), &summary);
        let victim = &i["victims"][0]["comm"];
        checks.that("the victim is the workload", victim == "cart", victim);
        let limit = i["limit"]["max_bytes"].as_u64();
        checks.that("the limit is the container's 64 MiB", limit == Some(64 << 20), &i["limit"]);
        let history = i["history_s"].as_f64().unwrap_or_default();
        checks.that("there is history from before the kill", history >= 10.0, &i["history_s"]);
    }

    /// The incident that a file has in it which `fgm export` wrote: as whoever gets that file alone has it.
    pub fn exported(&self, checks: &mut Checks, whence: &str, incident: Option<&Value>) {
        let Some(i) = incident else {
            checks.that(&format!("{whence} has the incident in it"), false, &"none");
            return;
        };
        let meta = &self.pod["metadata"];
        let mut is = |what: &str, seen: &Value, wanted: &Value| {
            checks.is(&format!("{whence} has the {what}"), seen, wanted);
        };
        is("pod", &i["pod"], &meta["name"]);
        is("namespace", &i["namespace"], &meta["namespace"]);
        is("container", &i["container"], &self.status["name"]);
        is("labels, all of them", &i["labels"], &meta["labels"]);
        let k = &i["kubernetes"];
        is("reason", &k["reason"], &self.ended()["reason"]);
        is("exit code", &k["exit_code"], &self.ended()["exitCode"]);
        is("restart count", &k["restart_count"], &self.status["restartCount"]);
        is("container that took its place", &k["next_container_id"], &id(&self.status["containerID"]));
    }

    /// Rows of `samples`, as `fgm export --format json` writes them.
    pub fn rows(&self, checks: &mut Checks, whence: &str, rows: &Value) {
        let all = rows.as_array().map(Vec::as_slice).unwrap_or_default();
        let own: Vec<_> = all.iter().filter(|r| r["container_id"] == self.id()).collect();
        let meta = &self.pod["metadata"];
        let named = own.iter().filter(|r| {
            r["namespace"] == meta["namespace"] && r["pod"] == meta["name"] && r["container"] == NAME
        });
        let named = named.count();
        checks.that(
            &format!("{whence}: each of the {} rows of the killed container has its names", own.len()),
            own.len() >= 10 && named == own.len(),
            &format!("{named} have, of {} in {} rows", own.len(), all.len()),
        );
    }

    /// Of `/api/containers`: what is there of the pod now.
    pub fn container(&self, checks: &mut Checks, containers: &Value) {
        let all = containers["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let Some(one) = all.iter().find(|c| c["container_id"] == self.id()) else {
            checks.that("the container is listed by its pod's labels", false, containers);
            return;
        };
        let owner = &self.pod["metadata"]["ownerReferences"][0];
        checks.is("the container's list has the pod's owner", &one["owner"]["name"], &owner["name"]);
        checks.is("of its kind", &one["owner"]["kind"], &owner["kind"]);
        let spec =
            self.pod["spec"]["containers"].as_array().and_then(|all| all.iter().find(|c| c["name"] == NAME));
        let spec = spec.unwrap_or(&Value::Null);
        checks.is("and its image", &one["image"], &spec["image"]);
        checks.is("and its limit", &one["memory_limit"], &spec["resources"]["limits"]["memory"]);
        checks.is("the pod's QoS class is that of its path", &one["qos"], &self.pod["status"]["qosClass"]);
        let others: Vec<_> = all.iter().filter_map(|c| c["container"].as_str()).collect();
        let beside = ["migrate", "proxy"].iter().all(|name| others.contains(name));
        checks.that("the init container and the one beside it are named too", beside, &others.join(" "));
    }
}

/// The DaemonSet's promise, as the kernel has it: two capabilities, seccomp, no new privileges, and one place to write.
pub fn privilege(checks: &mut Checks, process: &Value) {
    // CAP_PERFMON is 38, CAP_BPF 39
    let own = Value::from("000000c000000000");
    checks.is("the agent has BPF and PERFMON and no other capability", &process["CapEff"], &own);
    checks.is("nor can it get any", &process["CapBnd"], &own);
    checks.is("a seccomp filter is on", &process["Seccomp"], &Value::from("2"));
    checks.is("no new privileges", &process["NoNewPrivs"], &Value::from("1"));
    let writable: Vec<&str> =
        process["writable"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    // what a runtime gives to every container, whatever its root: memory, and what the kubelet binds
    let given = ["/dev", "/proc", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
    let more = |path: &&&str| {
        !given.iter().any(|g| **path == *g || path.strip_prefix(g).is_some_and(|r| r.starts_with('/')))
    };
    let more: Vec<_> = writable.iter().filter(more).copied().collect();
    checks.that(
        "of the host it can write its data folder only",
        more == ["/var/lib/fgm"],
        &process["writable"],
    );
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub fn id(value: &Value) -> Value {
    value.as_str().and_then(|s| s.split_once("://")).map(|(_, id)| id).into()
}

#[cfg(test)]
mod tests {
    use super::{Checks, Killed, privilege, text};
    use serde_json::{Value, json};

    fn pods() -> Value {
        json!({"items": [{
            "metadata": {"name": "cart-1", "namespace": "shop", "uid": "u", "labels": {"app": "cart"}},
            "status": {"qosClass": "Burstable", "containerStatuses": [
                {"name": "proxy", "containerID": "containerd://ppp"},
                {"name": "app", "containerID": "containerd://bbb", "restartCount": 1, "lastState": {"terminated":
                    {"containerID": "containerd://aaa", "reason": "OOMKilled", "exitCode": 137}}},
            ]},
        }]})
    }

    fn incident() -> Value {
        json!({
            "kind": "oom_kill", "container_id": "aaa", "pod": "cart-1", "namespace": "shop", "container": "app",
            "labels": {"app": "cart"}, "pod_uid": "u", "victims": [{"comm": "cart"}], "limit": {"max_bytes": 64 << 20},
            "kubernetes": {"reason": "OOMKilled", "exit_code": 137, "restart_count": 1, "next_container_id": "bbb"}, "history_s": 20.5,
            "summary": "In shop/cart-1. Kubernetes says so too: OOMKilled, exit code 137. It has been restarted once.",
        })
    }

    #[test]
    fn a_container_is_killed_when_another_has_its_place() {
        let killed = Killed::of(&pods()).expect("killed");
        assert_eq!(killed.id(), "aaa");
        assert!(killed.is_of(&incident()));
        let mut waiting = pods();
        waiting["items"][0]["status"]["containerStatuses"][1]["containerID"] = json!("containerd://aaa");
        assert!(Killed::of(&waiting).is_none());
        assert!(Killed::of(&json!({"items": []})).is_none());
    }

    #[test]
    fn each_thing_that_an_incident_lacks_is_a_failure() {
        let killed = Killed::of(&pods()).expect("killed");
        let failed = |i: &Value| {
            let mut checks = Checks::default();
            killed.incident(&mut checks, i);
            checks.failed
        };
        assert_eq!(failed(&incident()), 0);
        for name in
            ["pod", "namespace", "container", "labels", "pod_uid", "victims", "limit", "history_s", "summary"]
        {
            let mut i = incident();
            i[name] = Value::Null;
            assert_eq!(failed(&i), 1, "{name}");
        }
        let mut i = incident();
        i["kubernetes"]["restart_count"] = json!(2);
        assert_eq!(failed(&i), 1);
        let mut pods = pods();
        pods["items"][0]["status"]["containerStatuses"][1]["restartCount"] = json!(2);
        i["summary"] = json!(text(&i["summary"]).replace("restarted once", "restarted 2 times"));
        let mut checks = Checks::default();
        Killed::of(&pods).expect("killed").incident(&mut checks, &i);
        assert_eq!(checks.failed, 0, "of one that was killed the second time");
        // a runtime that never heard of the kill: said by Kubernetes, and told as a disagreement
        let mut i = incident();
        (pods, i["kubernetes"]["reason"]) = (self::pods(), json!("Error"));
        pods["items"][0]["status"]["containerStatuses"][1]["lastState"]["terminated"]["reason"] =
            json!("Error");
        let failed = |i: &Value| {
            let mut checks = Checks::default();
            Killed::of(&pods).expect("killed").incident(&mut checks, i);
            checks.failed
        };
        assert_eq!(failed(&i), 1);
        let said = "Kubernetes says so too: OOMKilled";
        i["summary"] = json!(text(&i["summary"]).replace(said, "Kubernetes does not say so: it has Error"));
        assert_eq!(failed(&i), 0);
    }

    #[test]
    fn an_export_without_labels_or_restart_is_a_failure() {
        let killed = Killed::of(&pods()).expect("killed");
        let failed = |incident: Option<&Value>| {
            let mut checks = Checks::default();
            killed.exported(&mut checks, "test", incident);
            checks.failed
        };
        assert_eq!((failed(Some(&incident())), failed(None)), (0, 1));
        for pointer in [
            "/pod",
            "/namespace",
            "/container",
            "/labels",
            "/kubernetes/reason",
            "/kubernetes/exit_code",
            "/kubernetes/restart_count",
            "/kubernetes/next_container_id",
        ] {
            let mut i = incident();
            *i.pointer_mut(pointer).expect(pointer) = Value::Null;
            assert_eq!(failed(Some(&i)), 1, "{pointer}");
        }
    }

    #[test]
    fn a_row_without_a_name_is_a_failure_and_so_are_none() {
        let killed = Killed::of(&pods()).expect("killed");
        let failed = |rows: &[Value]| {
            let mut checks = Checks::default();
            killed.rows(&mut checks, "test", &json!(rows));
            checks.failed
        };
        let row = json!({"container_id": "aaa", "namespace": "shop", "pod": "cart-1", "container": "app"});
        let mut rows = vec![row; 12];
        assert_eq!(failed(&rows), 0);
        rows[3]["pod"] = Value::Null;
        assert_eq!(failed(&rows), 1);
        assert_eq!(failed(&[]), 1);
    }

    #[test]
    fn one_capability_or_one_place_to_write_too_many_is_a_failure() {
        let failed = |cap: &str, writable: &[&str]| {
            let mut checks = Checks::default();
            let process = json!({"CapEff": cap, "CapBnd": cap, "Seccomp": "2", "NoNewPrivs": "1", "writable": writable});
            privilege(&mut checks, &process);
            checks.failed
        };
        assert_eq!(failed("000000c000000000", &["/var/lib/fgm", "/dev/shm", "/etc/hosts"]), 0);
        assert_eq!(failed("000000c000200000", &["/var/lib/fgm"]), 2);
        assert_eq!(failed("000000c000000000", &["/var/lib/fgm", "/devices"]), 1);
        assert_eq!(failed("000000c000000000", &["/", "/var/lib/fgm"]), 1);
    }
}
