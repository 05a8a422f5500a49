//! What Kubernetes says of a run's pods, and how far the scenario has come by it. Values only: nothing is asked or waited for here.
//! Called by `cluster`.
//!
//! A pod's status has a container's present instance and the one before; what was seen of earlier ones is kept. All times are
//! the nodes', as those of the agents' rows.

use super::play::Played;
use super::{Expect, Scenario};
use crate::clock;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Of all that was seen so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// When the last of the scenario's containers had begun.
    pub started_us: Option<i64>,
    pub nodes: BTreeSet<String>,
    /// UIDs of its pods.
    pub pods: BTreeSet<String>,
    /// By container id.
    pub instances: BTreeMap<String, Instance>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    pub name: String,
    pub started_us: i64,
    pub ended: Option<Ended>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    pub code: i32,
    pub at_us: i64,
}

#[derive(Debug, PartialEq)]
pub enum Progress {
    /// Not all of its containers have begun yet; what Kubernetes says of one that has not.
    Starting(String),
    Playing,
    Over {
        at_us: i64,
    },
    /// It will never come to its end.
    Broken(String),
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn time(value: &Value) -> Option<i64> {
    clock::parse_utc(value.as_str()?)
}

/// A container's status, and the pod's name.
fn statuses(pods: &Value) -> impl Iterator<Item = (&str, &Value)> {
    list(&pods["items"]).iter().flat_map(|pod| {
        let name = pod["metadata"]["name"].as_str().unwrap_or("?");
        list(&pod["status"]["containerStatuses"]).iter().map(move |status| (name, status))
    })
}

impl Seen {
    /// Takes in what `kubectl get pods --output json` printed.
    pub fn note(&mut self, scenario: &Scenario, pods: &Value) {
        for pod in list(&pods["items"]) {
            self.nodes.extend(pod["spec"]["nodeName"].as_str().map(str::to_owned));
            self.pods.extend(pod["metadata"]["uid"].as_str().map(str::to_owned));
        }
        for (_, status) in statuses(pods) {
            for state in [
                &status["lastState"]["terminated"],
                &status["state"]["terminated"],
                &status["state"]["running"],
            ] {
                self.instance(status, state);
            }
        }
        if self.started_us.is_none() {
            let of = |name: &str| self.instances.values().filter(|i| i.name == name).count();
            let is_there = |c: &super::Container| of(&c.name) >= usize::try_from(c.copies).unwrap_or(1);
            if scenario.container.iter().all(is_there) {
                self.started_us = self.instances.values().map(|i| i.started_us).max();
            }
        }
    }

    fn instance(&mut self, status: &Value, state: &Value) {
        // That of a running one stands beside its state.
        let id = state["containerID"].as_str().or_else(|| status["containerID"].as_str());
        let id = id.and_then(|id| id.split_once("://")).map(|(_, id)| id);
        let (Some(id), Some(started_us), Some(name)) =
            (id, time(&state["startedAt"]), status["name"].as_str())
        else {
            return;
        };
        let code = state["exitCode"].as_i64().and_then(|code| i32::try_from(code).ok());
        let ended = code.zip(time(&state["finishedAt"])).map(|(code, at_us)| Ended { code, at_us });
        let known = self.instances.entry(id.to_owned());
        let known = known.or_insert_with(|| Instance { name: name.to_owned(), started_us, ended: None });
        known.ended = known.ended.or(ended);
    }

    /// By the same pods, which were noted before.
    pub fn progress(&self, scenario: &Scenario, expect: &Expect, pods: &Value, now_us: i64) -> Progress {
        let of_end = scenario.ends_with.as_deref();
        if let Some(why) = never(pods) {
            return Progress::Broken(why);
        }
        for i in self.instances.values() {
            let is_foreseen = of_end == Some(i.name.as_str()) || expect.foresees_end(&i.name);
            if let Some(Ended { code, .. }) = i.ended.filter(|_| !is_foreseen) {
                return Progress::Broken(format!(
                    "container {} ended before its time: exit code {code}",
                    i.name
                ));
            }
        }
        if let Some(at_us) = of_end.and_then(|name| self.last_end(scenario, name)) {
            return Progress::Over { at_us };
        }
        let Some(started_us) = self.started_us else { return Progress::Starting(not_started(pods)) };
        match scenario.length_s.and_then(|s| i64::try_from(s).ok()) {
            Some(length_s) if now_us >= started_us + length_s * 1_000_000 => {
                Progress::Over { at_us: started_us + length_s * 1_000_000 }
            }
            _ => Progress::Playing,
        }
    }

    /// The end of a container that is started again so often and no more, and of all its copies. In a cluster a container of a pod that
    /// restarts goes on for ever: what comes after is not the scenario's.
    fn last_end(&self, scenario: &Scenario, name: &str) -> Option<i64> {
        let c = scenario.container.iter().find(|c| c.name == name)?;
        let wanted = usize::try_from(c.copies * (c.restarts + 1)).ok()?;
        let own = self.instances.values().filter(|i| i.name == name);
        let mut ends: Vec<i64> = own.filter_map(|i| Some(i.ended?.at_us)).collect();
        ends.sort_unstable();
        ends.get(wanted.checked_sub(1)?).copied()
    }

    /// As the judge has them. How many OOM kills the kernel counted is not Kubernetes' to say.
    pub fn played(&self) -> Vec<Played> {
        let mut all: BTreeMap<&str, Played> = BTreeMap::new();
        for (id, i) in &self.instances {
            let played =
                all.entry(&i.name).or_insert_with(|| Played { name: i.name.clone(), ..Played::default() });
            played.ids.push(id.clone());
            played.exit_codes.extend(i.ended.map(|e| e.code));
        }
        all.into_values().collect()
    }
}

/// A reason for which a container waits and that no waiting mends.
fn never(pods: &Value) -> Option<String> {
    const IMAGE: [&str; 4] = ["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"];
    const OTHERS: [&str; 3] = ["CreateContainerConfigError", "CreateContainerError", "RunContainerError"];
    statuses(pods).find_map(|(pod, status)| {
        let waiting = &status["state"]["waiting"];
        let reason = waiting["reason"].as_str()?;
        let mend = if IMAGE.contains(&reason) {
            "; the image of the workload has to be on each node: `cargo xtask image --workload` makes it, `cargo xtask cluster deploy` \
             makes and loads it"
        } else if OTHERS.contains(&reason) {
            ""
        } else {
            return None;
        };
        let message = waiting["message"].as_str().unwrap_or_default();
        Some(format!("pod {pod}: container {}: {reason} {message}{mend}", status["name"].as_str().unwrap_or("?")))
    })
}

fn not_started(pods: &Value) -> String {
    let waiting = statuses(pods).find_map(|(pod, status)| {
        let reason = status["state"]["waiting"]["reason"].as_str()?;
        Some(format!("pod {pod}: {reason}"))
    });
    let unscheduled = || {
        list(&pods["items"]).iter().find_map(|pod| {
            let message =
                list(&pod["status"]["conditions"]).iter().find(|c| c["status"] == "False")?["message"]
                    .as_str()?;
            Some(format!("pod {}: {message}", pod["metadata"]["name"].as_str().unwrap_or("?")))
        })
    };
    waiting.or_else(unscheduled).unwrap_or_else(|| "no pod is there yet".to_owned())
}

/// What `status` shows of one pod.
#[derive(Debug, PartialEq, Serialize)]
pub struct Pod {
    #[serde(rename = "pod")]
    pub name: String,
    pub node: Option<String>,
    pub phase: String,
    pub restarts: u64,
    /// `app running`, `app CrashLoopBackOff`, `app ended with 137`.
    pub containers: Vec<String>,
}

pub fn shown(pods: &Value) -> Vec<Pod> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let one = |pod: &Value| {
        let all = list(&pod["status"]["containerStatuses"]);
        let container = |status: &Value| {
            let state = &status["state"];
            let word = match (&state["terminated"]["exitCode"], text(&state["waiting"]["reason"])) {
                (Value::Number(code), _) => format!("ended with {code}"),
                (_, Some(reason)) => reason,
                _ => "running".to_owned(),
            };
            format!("{} {word}", status["name"].as_str().unwrap_or("?"))
        };
        Pod {
            name: text(&pod["metadata"]["name"]).unwrap_or_default(),
            node: text(&pod["spec"]["nodeName"]),
            phase: text(&pod["status"]["phase"]).unwrap_or_default(),
            restarts: all.iter().filter_map(|s| s["restartCount"].as_u64()).sum(),
            containers: all.iter().map(container).collect(),
        }
    };
    list(&pods["items"]).iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::{Ended, Progress, Seen, shown};
    use crate::scenario::Scenario;
    use serde_json::{Value, json};

    const START: i64 = 1_790_000_000_000_000;

    fn at(second: u8) -> String {
        format!("2026-09-21T14:13:{:02}Z", 20 + second)
    }

    fn running(name: &str, id: &str, second: u8) -> Value {
        json!({"name": name, "containerID": format!("containerd://{id}"), "restartCount": 0, "lastState": {},
               "state": {"running": {"startedAt": at(second)}}})
    }

    fn terminated(id: &str, from: u8, to: u8, code: i32) -> Value {
        json!({"terminated": {"containerID": format!("containerd://{id}"), "startedAt": at(from), "finishedAt": at(to), "exitCode": code}})
    }

    fn pods(statuses: &[Value]) -> Value {
        json!({"items": [{"metadata": {"name": "app", "uid": "u"}, "spec": {"nodeName": "n"},
                          "status": {"phase": "Running", "containerStatuses": statuses}}]})
    }

    fn far(name: &str, seen: &mut Seen, pods: &Value, second: i64) -> Progress {
        let scenario = Scenario::load(name).expect(name);
        let expect = scenario.expect().expect(name);
        seen.note(&scenario, pods);
        seen.progress(&scenario, &expect, pods, START + second * 1_000_000)
    }

    #[test]
    fn a_container_that_is_started_twice_again_has_ended_for_good_at_its_third_end() {
        let mut seen = Seen::default();
        let status = |last: Value, state: Value, id: &str| {
            pods(&[
                json!({"name": "app", "containerID": format!("containerd://{id}"), "lastState": last, "state": state}),
            ])
        };
        let waits = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        for (last, state, id) in [
            (json!({}), terminated("a", 0, 2, 1), "a"),
            (terminated("a", 0, 2, 1), json!({"running": {"startedAt": at(3)}}), "b"),
            (terminated("b", 3, 5, 1), waits.clone(), "b"),
            (terminated("b", 3, 5, 1), json!({"running": {"startedAt": at(15)}}), "c"),
        ] {
            assert_eq!(far("crash-loop", &mut seen, &status(last, state, id), 16), Progress::Playing, "{id}");
        }
        let over = Progress::Over { at_us: START + 17_000_000 };
        assert_eq!(far("crash-loop", &mut seen, &status(terminated("c", 15, 17, 1), waits, "c"), 18), over);
        let fourth = status(terminated("c", 15, 17, 1), terminated("d", 37, 39, 1), "d");
        assert_eq!(far("crash-loop", &mut seen, &fourth, 40), over, "a fourth changes nothing");
        let played = seen.played();
        assert_eq!((played.len(), played[0].ids.len(), played[0].exit_codes.len()), (1, 4, 4));
        assert_eq!(played[0].oom_kill, None, "Kubernetes does not count them");
        assert_eq!(seen.instances["a"].ended, Some(Ended { code: 1, at_us: START + 2_000_000 }));
    }

    #[test]
    fn a_length_counts_from_the_last_start() {
        let mut seen = Seen::default();
        let two = pods(&[running("small", "a", 0), running("large", "b", 1)]);
        assert!(matches!(far("quiet", &mut seen, &two, 30), Progress::Starting(_)), "two of four");
        let four = [("small", 0), ("large", 1), ("quota", 2), ("free", 5)];
        let four = pods(&four.map(|(name, second)| running(name, name, second)));
        assert_eq!(far("quiet", &mut seen, &four, 24), Progress::Playing);
        assert_eq!(far("quiet", &mut seen, &four, 25), Progress::Over { at_us: START + 25_000_000 });
        let mut dead = seen.clone();
        let ended =
            json!({"name": "free", "containerID": "containerd://free", "state": terminated("free", 5, 9, 3)});
        let Progress::Broken(why) = far("quiet", &mut dead, &pods(&[ended]), 10) else {
            panic!("must be broken")
        };
        assert_eq!(why, "container free ended before its time: exit code 3");
    }

    #[test]
    fn what_no_waiting_mends_is_said() {
        let waits = |reason: &str| {
            pods(&[
                json!({"name": "app", "state": {"waiting": {"reason": reason, "message": "no such image"}}}),
            ])
        };
        let mut seen = Seen::default();
        let Progress::Broken(why) = far("oom-kill", &mut seen, &waits("ErrImagePull"), 1) else {
            panic!("broken")
        };
        assert!(why.contains("no such image") && why.contains("cargo xtask cluster deploy"), "{why}");
        let starting = Progress::Starting("pod app: ContainerCreating".into());
        assert_eq!(far("oom-kill", &mut seen, &waits("ContainerCreating"), 1), starting);
        let none = json!({"items": [{"metadata": {"name": "app"}, "status":
            {"conditions": [{"status": "False", "message": "0/1 nodes are available"}]}}]});
        assert_eq!(
            far("oom-kill", &mut seen, &none, 1),
            Progress::Starting("pod app: 0/1 nodes are available".into())
        );
        let pods = shown(&waits("ErrImagePull"));
        assert_eq!(pods[0].containers, ["app ErrImagePull"]);
    }

    #[test]
    fn each_copy_has_to_end() {
        let mut seen = Seen::default();
        let job = |n: usize| {
            let items: Vec<Value> = (0..n)
                .map(|i| {
                    json!({"metadata": {"name": format!("job-{i}")}, "status": {"containerStatuses": [
                        {"name": "job", "state": terminated(&format!("c{i}"), 1, 2, 0)}]}})
                })
                .collect();
            json!({ "items": items })
        };
        assert!(matches!(far("pod-churn", &mut seen, &job(19), 9), Progress::Starting(_)));
        assert_eq!(far("pod-churn", &mut seen, &job(20), 9), Progress::Over { at_us: START + 2_000_000 });
    }
}
