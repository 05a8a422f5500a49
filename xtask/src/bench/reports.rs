//! Whether what a user hands on tells the story that `fgm incidents` tells: one incident of each kind is exported as a report and as
//! Parquet, and both are read again. Must never judge the story itself: that is `stories`'s. Called by `judge`.
//!
//! The reports stay in the run's folder, one of each kind, to be looked at.

use super::score::{Kill, Truth};
use super::stories::{by_container, told_of};
use crate::child::{output, tool};
use crate::exported;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

#[derive(Debug, Default)]
pub struct Reports {
    pub of: usize,
    pub right: usize,
    pub wrong: Vec<String>,
}

pub fn judge(out: &Path, agent: &Path, truth: &Truth<'_>, incidents: &[Value]) -> Result<Reports> {
    let folder = out.join("reports");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut kinds: BTreeMap<&str, Vec<&Kill<'_>>> = BTreeMap::new();
    for kills in by_container(truth) {
        kinds.entry(&kills[0].case.kind).or_insert(kills);
    }
    let mut reports = Reports { of: kinds.len(), ..Reports::default() };
    for (kind, kills) in kinds {
        let wrong = match told_of(incidents, kills[0].container).first() {
            // an export that fails is one that tells nothing
            Some(told) => export(&out.join("data"), &folder.join(kind), agent, told, &kills)
                .unwrap_or_else(|e| vec![format!("{e:#}")]),
            None => vec!["there is no incident to report".to_owned()],
        };
        reports.right += usize::from(wrong.is_empty());
        reports.wrong.extend(wrong.iter().map(|why| format!("report of {}: {why}", kills[0].case.name)));
    }
    Ok(reports)
}

fn export(data: &Path, file: &Path, agent: &Path, told: &Value, kills: &[&Kill<'_>]) -> Result<Vec<String>> {
    let id = told["id"].as_str().context("an incident without an id")?;
    let read = |ending: &str| {
        let file = file.with_extension(ending);
        output(tool(agent).args(["export", "--incident", id, "--data"]).arg(data).arg("-o").arg(&file))?;
        fs::read(&file).with_context(|| format!("cannot read {}", file.display()))
    };
    let page = String::from_utf8_lossy(&read("html")?).into_owned();
    let mut wrong = differs("the report", told, exported::of_report(&page).as_ref());
    wrong.extend(differs("the Parquet file", told, exported::of_parquet(&read("parquet")?).as_ref()));
    wrong.extend(untold(exported::of_page(&page, "events").as_ref(), kills));
    Ok(wrong)
}

/// Ids of cgroups are text in what is exported.
fn with_ids_as_text(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let as_text = |name: &str, v: &Value| {
                if name == "cgroup_id" && v.is_number() { v.to_string().into() } else { with_ids_as_text(v) }
            };
            Value::Object(members.iter().map(|(name, v)| (name.clone(), as_text(name, v))).collect())
        }
        Value::Array(items) => items.iter().map(with_ids_as_text).collect(),
        other => other.clone(),
    }
}

/// Members of the incident that a file has otherwise than `fgm incidents`, its id and its paragraph among them.
fn differs(file: &str, told: &Value, exported: Option<&Value>) -> Vec<String> {
    let Some(exported) = exported else { return vec![format!("{file} has no incident in it")] };
    let told = with_ids_as_text(told);
    let members = told.as_object().into_iter().flatten();
    let others = members.filter(|(name, v)| exported.get(name.as_str()) != Some(*v));
    others.map(|(name, v)| format!("{file} has {name} = {}, told as {v}", exported[name.as_str()])).collect()
}

/// Kills that are not among the report's events.
fn untold(events: Option<&Value>, kills: &[&Kill<'_>]) -> Vec<String> {
    let events: Vec<&Value> = events.and_then(Value::as_array).into_iter().flatten().collect();
    let is_of = |e: &Value, kill: &Kill<'_>| e["kind"] == "oom_kill" && e["pid"] == kill.pid;
    let lacking = kills.iter().filter(|kill| !events.iter().any(|e| is_of(e, kill)));
    lacking.map(|kill| format!("the kill of pid {} is not among its events", kill.pid)).collect()
}

#[cfg(test)]
mod tests {
    use super::{differs, untold};
    use crate::bench::case::{Case, Group};
    use crate::bench::score::Kill;
    use serde_json::{Value, json};

    fn told() -> Value {
        json!({"id": "i", "summary": "At noon.", "cgroup_id": 7, "victims": [{"pid": 42, "cgroup_id": 7}]})
    }

    #[test]
    fn a_file_with_another_story_is_found() {
        let file = json!({"id": "i", "summary": "At noon.", "cgroup_id": "7", "victims": [{"pid": 42, "cgroup_id": "7"}]});
        assert_eq!(differs("it", &told(), Some(&file)), Vec::<String>::new());
        for (pointer, value) in [
            ("/summary", json!("At one.")),
            ("/id", json!("j")),
            ("/victims/0/pid", json!(43)),
            ("/cgroup_id", Value::Null),
        ] {
            let mut other = file.clone();
            *other.pointer_mut(pointer).expect(pointer) = value;
            assert_eq!(differs("it", &told(), Some(&other)).len(), 1, "{pointer}");
        }
        assert_eq!(differs("it", &told(), None), ["it has no incident in it"]);
    }

    #[test]
    fn a_kill_that_is_not_among_the_events_is_found() {
        let (case, container) = (Case::default(), Group::default());
        let kill = Kill {
            case: &case,
            container: &container,
            pid: 42,
            ktime_ns: 5,
            trigger_pid: 42,
            trigger_comm: "app".into(),
        };
        let lacks = |events: &Value| untold(Some(events), &[&kill]).len();
        assert_eq!(lacks(&json!([{"kind": "exit", "pid": 42}, {"kind": "oom_kill", "pid": 42}])), 0);
        assert_eq!(lacks(&json!([{"kind": "exit", "pid": 42}, {"kind": "oom_kill", "pid": 43}])), 1);
        assert_eq!(untold(None, &[&kill]).len(), 1);
    }
}
