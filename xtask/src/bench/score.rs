//! What the recorder said against what was: kill by kill, and what is wrong by name. Pure. Called by `evidence`.

use super::case::{Case, Group, Line};
use super::history::{self, Looks};
use super::mix::IN_A_SECOND;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The two clocks are one; between the kernel's mark and the probe on it a CPU of a virtual machine may be taken away.
const SAME_NS: u64 = 1_000_000_000;
const SECOND: f64 = 1e9;
/// History that is wanted, in seconds, of a container that is as old.
const WANTED_S: f64 = 30.0;

/// A process that the OOM killer ended, as the witness and the driver have it.
#[derive(Clone, Debug)]
pub struct Kill<'a> {
    pub case: &'a Case,
    pub container: &'a Group,
    pub pid: u32,
    pub ktime_ns: u64,
    pub trigger_pid: u32,
    pub trigger_comm: String,
}

#[derive(Debug, Default)]
pub struct Truth<'a> {
    /// In the order of their marks.
    pub kills: Vec<Kill<'a>>,
    /// Why the truth itself is in doubt; then nothing can be called right.
    pub doubts: Vec<String>,
}

/// Whose limit it was, by who counted an `oom` in its own memory.events.local. `None`: nobody did, the node it was.
pub fn limit_of<'a>(case: &'a Case, container: &'a Group) -> Result<Option<&'a Group>, String> {
    match (container.oom > 0, case.pod.oom > 0) {
        (true, true) => Err(format!("{}: container and pod counted an oom", case.name)),
        (true, false) => Ok(Some(container)),
        (false, true) => Ok(Some(&case.pod)),
        (false, false) => Ok(None),
    }
}

impl<'a> Truth<'a> {
    pub fn of(cases: &'a [Case], lines: &[Line]) -> Self {
        let mut truth = Self::default();
        let mut by_pid: BTreeMap<u32, Vec<(&Case, &Group)>> = BTreeMap::new();
        for case in cases {
            for group in &case.containers {
                for process in &group.processes {
                    by_pid.entry(process.pid).or_default().push((case, group));
                }
            }
        }
        let mut seen = BTreeSet::new();
        for line in lines {
            let Line::MarkVictim { ktime_ns, pid, trigger_pid, trigger_comm } = line else { continue };
            let (ktime_ns, pid, trigger_pid) = (*ktime_ns, *pid, *trigger_pid);
            let lived = |g: &Group| (g.born_ns..g.removed_ns).contains(&ktime_ns);
            let found = by_pid.get(&pid).into_iter().flatten().find(|(_, g)| lived(g));
            let Some(&(case, container)) = found else {
                truth.doubts.push(format!("pid {pid} was marked and belongs to no case"));
                continue;
            };
            let ended_otherwise =
                container.processes.iter().any(|p| p.pid == pid && p.ours && p.signal != Some(9));
            // a task that dies anyway is marked as well; one of a group may be marked twice
            if !ended_otherwise && seen.insert((container.id, pid)) {
                let trigger_comm = trigger_comm.clone();
                truth.kills.push(Kill { case, container, pid, ktime_ns, trigger_pid, trigger_comm });
            }
        }
        truth.check(cases, lines);
        truth
    }

    /// Three counts that know nothing of each other must agree.
    fn check(&mut self, cases: &[Case], lines: &[Line]) {
        let mut counted = 0;
        for case in cases {
            for group in case.containers.iter().chain([&case.pod]) {
                counted += group.oom_kill;
                let marked = self.kills.iter().filter(|k| k.container.id == group.id).count() as u64;
                // of a group each member is counted, the first one twice
                let agrees =
                    if case.kind == "group" { marked <= group.oom_kill } else { marked == group.oom_kill };
                if !agrees {
                    let why = format!("{}: {marked} marked, {} counted", case.name, group.oom_kill);
                    self.doubts.push(why);
                }
            }
            let limits = case.containers.iter().map(|container| limit_of(case, container));
            self.doubts.extend(limits.filter_map(Result::err));
        }
        let (mut begin, mut end) = (None, None);
        for line in lines {
            match line {
                Line::Begin { vmstat_oom_kill } => begin = Some(*vmstat_oom_kill),
                Line::End { vmstat_oom_kill, overrun } => {
                    end = Some(*vmstat_oom_kill);
                    if *overrun > 0 {
                        self.doubts.push(format!("the trace lost {overrun} records"));
                    }
                }
                Line::MarkVictim { .. } => {}
            }
        }
        match begin.zip(end) {
            Some((begin, end)) if end - begin == counted => {}
            Some((begin, end)) => self.doubts.push(format!(
                "/proc/vmstat counts {} OOM kills, memory.events.local {counted}",
                end - begin
            )),
            None => self.doubts.push("the witness did not come to its end".to_owned()),
        }
    }
}

#[derive(Debug, Default)]
pub struct Score {
    pub right_victim: usize,
    pub right_container: usize,
    pub right_limit: usize,
    /// Of the incidents' first kills.
    pub right_trigger: usize,
    pub triggers: usize,
    /// Kills, each with what is wrong about it, and alarms without a kill.
    pub wrong: Vec<String>,
    pub false_alarms: usize,
    /// Of containers that were 30 s old at their first kill, by the rows: the least.
    pub history_s_min: Option<f64>,
    /// By how much the rows before a first kill fell short of the container's age (or 30 s).
    pub history_short: Most,
    /// The longest time without a row in the history of a first kill.
    pub history_gap: Most,
    /// By how much an incident claims more history than the rows show.
    pub history_claimed: Most,
    /// Of each ramp: from the last row to the kill.
    pub last_sample_ms: Vec<f64>,
    /// As the incidents have it.
    pub first_burst_ms: Vec<f64>,
    /// The most kills of one storm within a second.
    pub storm: usize,
    /// The least time in which [`IN_A_SECOND`] kills of one storm were; `None` when no storm has as many.
    pub storm_within_s: Option<f64>,
}

/// The largest of some times in seconds, and whose it is.
#[derive(Debug, Default, PartialEq)]
pub struct Most {
    pub s: f64,
    pub whose: String,
}

impl Most {
    fn see(&mut self, s: f64, whose: &str) {
        if s > self.s {
            *self = Self { s, whose: whose.to_owned() };
        }
    }
}

fn u64_at(value: &Value, path: &str) -> Option<u64> {
    value.pointer(path)?.as_u64()
}

/// An incident's victim of this pid and about this instant.
fn victim<'v>(incident: &'v Value, kill: &Kill<'_>) -> Option<&'v Value> {
    incident.get("victims")?.as_array()?.iter().find(|v| {
        u64_at(v, "/pid") == Some(u64::from(kill.pid))
            && u64_at(v, "/ktime_ns").is_some_and(|at| at.abs_diff(kill.ktime_ns) < SAME_NS)
    })
}

#[expect(clippy::cast_precision_loss, reason = "seconds for a person")]
pub fn seconds(ns: u64) -> f64 {
    ns as f64 / SECOND
}

pub fn score(truth: &Truth<'_>, cases: &[Case], incidents: &[Value], looks: &Looks) -> Score {
    let mut score = Score::default();
    let (mut explained, mut had_one) = (BTreeSet::new(), BTreeSet::new());
    for kill in &truth.kills {
        let what = format!("{}: pid {} at {} ns", kill.case.name, kill.pid, kill.ktime_ns);
        if had_one.insert(kill.container.id) {
            score.history(kill, looks, &what);
        }
        let Some((at, incident, victim)) =
            incidents.iter().enumerate().find_map(|(at, i)| Some((at, i, victim(i, kill)?)))
        else {
            score.wrong.push(format!("{what}: not recorded"));
            continue;
        };
        score.right_victim += 1;
        let id = Some(kill.container.id);
        let container = incident.get("container_id").and_then(Value::as_str);
        if u64_at(victim, "/cgroup_id") == id
            && u64_at(incident, "/cgroup_id") == id
            && container == Some(&kill.container.container_id)
        {
            score.right_container += 1;
        } else {
            score.wrong.push(format!("{what}: told of {container:?}, {}", incident["cgroup_path"]));
        }
        match limit_is_right(kill, incident) {
            Ok(()) => score.right_limit += 1,
            Err(why) => score.wrong.push(format!("{what}: {why}")),
        }
        // what an incident says once, it says of its first kill
        if u64_at(incident, "/ktime_ns") == u64_at(victim, "/ktime_ns") && explained.insert(at) {
            score.first(kill, incident, &what);
            let claimed = incident["history_s"].as_f64();
            let shown = shown(kill, looks).map_or(0.0, |s| s.length.as_secs_f64());
            score.history_claimed.see(claimed.unwrap_or(0.0) - shown, &what);
        }
    }
    score.false_alarms = false_alarms(truth, cases, incidents, &mut score.wrong);
    (score.storm, score.storm_within_s) = storm(truth);
    score
}

fn limit_is_right(kill: &Kill<'_>, incident: &Value) -> Result<(), String> {
    let limit = &incident["limit"];
    let Some(owner) = limit_of(kill.case, kill.container)? else {
        let global = limit["source"] == "global" && limit["cgroup_id"].is_null();
        return if global { Ok(()) } else { Err(format!("the node's own, told as {limit}")) };
    };
    if u64_at(limit, "/cgroup_id") != Some(owner.id) {
        return Err(format!("the limit is that of {}, told as {limit}", owner.path));
    }
    if u64_at(limit, "/max_bytes") != owner.limit_bytes {
        return Err(format!("the limit is {:?} bytes, told as {limit}", owner.limit_bytes));
    }
    Ok(())
}

fn shown(kill: &Kill<'_>, looks: &Looks) -> Option<history::Shown> {
    history::shown(looks.get(&kill.container.id)?, kill.ktime_ns)
}

impl Score {
    /// What the rows show before the first kill of a container.
    fn history(&mut self, kill: &Kill<'_>, looks: &Looks, what: &str) {
        let age = seconds(kill.ktime_ns.saturating_sub(kill.container.born_ns));
        let whose = format!("{what}, {age:.3} s old");
        let shown = shown(kill, looks);
        let length = shown.map_or(0.0, |s| s.length.as_secs_f64());
        if age >= WANTED_S {
            self.history_s_min = Some(self.history_s_min.map_or(length, |least| least.min(length)));
        }
        self.history_short.see(age.min(WANTED_S) - length, &whose);
        self.history_gap.see(shown.map_or(0.0, |s| s.gap.as_secs_f64()), &whose);
        if kill.case.kind.starts_with("ramp") {
            // without any row it is as long ago as the machine's start
            let last = shown.map_or(seconds(kill.ktime_ns), |s| s.last.as_secs_f64());
            self.last_sample_ms.push(last * 1e3);
        }
    }

    fn first(&mut self, kill: &Kill<'_>, incident: &Value, what: &str) {
        self.triggers += 1;
        if u64_at(incident, "/trigger/pid") == Some(u64::from(kill.trigger_pid)) {
            self.right_trigger += 1;
        } else {
            let told = &incident["trigger"];
            self.wrong.push(format!("{what}: the trigger is pid {}, told as {told}", kill.trigger_pid));
        }
        self.first_burst_ms.extend(incident["first_burst_after_ms"].as_f64());
    }
}

/// Victims that nobody killed, and ends of containers that ended well.
fn false_alarms(truth: &Truth<'_>, cases: &[Case], incidents: &[Value], wrong: &mut Vec<String>) -> usize {
    let mut count = 0;
    for incident in incidents {
        let id = u64_at(incident, "/cgroup_id");
        let told = |what: &str| format!("false alarm {}: {what}: {}", incident["id"], incident["summary"]);
        if incident["kind"] == "oom_kill" {
            let none = Vec::new();
            for v in incident["victims"].as_array().unwrap_or(&none) {
                let known = truth.kills.iter().any(|k| {
                    u64_at(v, "/pid") == Some(u64::from(k.pid))
                        && u64_at(v, "/ktime_ns").is_some_and(|at| at.abs_diff(k.ktime_ns) < SAME_NS)
                });
                if !known {
                    count += 1;
                    wrong.push(told(&format!("nobody killed pid {}", v["pid"])));
                }
            }
        } else {
            let group = cases.iter().flat_map(|c| &c.containers).find(|g| Some(g.id) == id);
            if !group.is_some_and(|g| g.ended_badly) {
                count += 1;
                wrong.push(told("it ended well"));
            }
        }
    }
    count
}

/// The most kills of one storm within a second, and the least time of as many as are wanted in one.
fn storm(truth: &Truth<'_>) -> (usize, Option<f64>) {
    let mut storms: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for kill in truth.kills.iter().filter(|k| k.case.kind == "storm") {
        storms.entry(&kill.case.name).or_default().push(kill.ktime_ns);
    }
    let (mut most, mut least) = (0, None);
    for at in storms.values_mut() {
        at.sort_unstable();
        let within = |from: u64| at.iter().filter(|t| (from..from + 1_000_000_000).contains(*t)).count();
        most = at.iter().map(|t| within(*t)).max().unwrap_or(0).max(most);
        let took = at.windows(IN_A_SECOND).map(|some| some[IN_A_SECOND - 1] - some[0]).min();
        least = least.into_iter().chain(took).min();
    }
    (most, least.map(seconds))
}

/// The value below which 99 of 100 lie; `None` of nothing.
pub fn p99(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * 99).div_ceil(100).checked_sub(1)?;
    sorted.get(at).copied()
}

pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
#[path = "score_tests.rs"]
mod tests;
