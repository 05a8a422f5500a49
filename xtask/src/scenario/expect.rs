//! `expect.toml`: what must and must not be told of a scenario, and the comparison with what was told. Values only: nothing is
//! played or read here. Called by `run`; what the kernel's own files must say is also checked by `demo`.
//!
//! Strict: a warning of a kind that no rule names, or an incident that none does, is unexpected.
//!
//! A cluster cannot be asked for all that a scenario asks of cgroup files, and each kubelet sets some as it likes: `[[cluster]]` has the
//! rules that hold there instead, if need be only where the agents' own rows say that such a file has such a value.

use super::play::Record;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// By the kernel's files and wait(2): a scenario that did not do what it is for proves nothing.
    #[serde(default)]
    kernel: Vec<Kernel>,
    #[serde(default)]
    event: Vec<Rule>,
    #[serde(default)]
    incident: Vec<Rule>,
    #[serde(default)]
    series: Vec<Series>,
    /// Kinds of warnings that may be told as well: on a fast machine they are, on an emulated one not always.
    #[serde(default)]
    may: Vec<String>,
    /// Kinds of events that must not be told at all.
    #[serde(default)]
    must_not: Vec<String>,
    /// In a cluster, the first that is so.
    #[serde(default)]
    cluster: Vec<Variant>,
}

/// Lists that stand in a cluster in the place of those above; what is not named stays.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    /// What is different there, for whoever reads the verdict.
    why: String,
    when: Option<When>,
    kernel: Option<Vec<Kernel>>,
    event: Option<Vec<Rule>>,
    incident: Option<Vec<Rule>>,
    series: Option<Vec<Series>>,
    may: Option<Vec<String>>,
    must_not: Option<Vec<String>>,
}

/// Only where this is the highest value that a container's samples have of a metric. Where they have none, the variant will do as well.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct When {
    container: String,
    metric: String,
    is: f64,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kernel {
    container: String,
    /// Of all its instances together.
    oom_kill: Option<u64>,
    /// Of each instance that ended, 128 + N for signal N.
    exit_code: Option<i32>,
}

/// Events or incidents of one kind, of a container.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    kind: String,
    container: String,
    /// Exactly so many…
    count: Option<usize>,
    /// …or that many at the least (1).
    at_least: Option<usize>,
    /// JSON pointers and the values there.
    #[serde(default)]
    like: BTreeMap<String, toml::Value>,
    /// JSON pointers to numbers that must be so large.
    #[serde(default)]
    least: BTreeMap<String, f64>,
    /// JSON pointers to what must not be null, in all but so many of them.
    #[serde(default)]
    present: Vec<String>,
    #[serde(default)]
    absent_in: usize,
    /// The limit that was hit is that of this container.
    limit_of: Option<String>,
}

/// The highest value that the recorded samples have of a metric; of a counter, its rate a second.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Series {
    container: String,
    metric: String,
    at_least: f64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Verdict {
    pub met: Vec<String>,
    pub missing: Vec<String>,
    pub unexpected: Vec<String>,
    /// Which of a cluster's rules were held, and why.
    #[serde(skip)]
    pub note: Option<String>,
}

impl Verdict {
    pub fn is_good(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty()
    }

    fn settle(&mut self, good: bool, what: String, found: &str) {
        if good {
            self.met.push(what);
        } else {
            self.missing.push(format!("{what}; {found}"));
        }
    }
}

impl Rule {
    fn what(&self, of: &str) -> String {
        let like: Vec<String> = self.like.iter().map(|(p, v)| format!(" {p} {v}")).collect();
        let least: Vec<String> = self.least.iter().map(|(p, v)| format!(" {p} ≥ {v}")).collect();
        let limit = self.limit_of.as_ref().map(|c| format!(" at the limit of {c}")).unwrap_or_default();
        let present: Vec<String> = self.present.iter().map(|p| format!(" {p} told")).collect();
        format!(
            "{of} {} of {}{}{}{limit}{}",
            self.kind,
            self.container,
            like.concat(),
            least.concat(),
            present.concat()
        )
    }

    fn takes(&self, told: &Value, record: &Record) -> bool {
        let at = |pointer: &str| told.pointer(pointer).unwrap_or(&Value::Null);
        told["kind"] == self.kind.as_str()
            && record.container_of(told) == Some(&self.container)
            && self.like.iter().all(|(p, v)| serde_json::to_value(v).is_ok_and(|v| *at(p) == v))
            && self.least.iter().all(|(p, v)| at(p).as_f64().is_some_and(|n| n >= *v))
            && self.limit_of.as_ref().is_none_or(|c| record.is_limit_of(told, c))
    }
}

impl Expect {
    pub fn parse(text: &str) -> Result<Self> {
        Ok(toml::from_str(text)?)
    }

    /// Containers and metrics whose highest value the judge asks for.
    pub fn measured(&self, in_cluster: bool) -> Vec<(&str, &str)> {
        let variants = || self.cluster.iter().filter(|_| in_cluster);
        let series = self.series.iter().chain(variants().flat_map(|v| v.series.iter().flatten()));
        let series = series.map(|s| (s.container.as_str(), s.metric.as_str()));
        let when = variants().filter_map(|v| v.when.as_ref());
        let mut all: Vec<_> = series.chain(when.map(|w| (w.container.as_str(), w.metric.as_str()))).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// So many incidents are to be told.
    pub fn incidents(&self) -> usize {
        self.incident.iter().map(|r| r.count.or(r.at_least).unwrap_or(1)).sum()
    }

    /// Every container that a rule names.
    pub fn containers(&self) -> Vec<String> {
        let kernel = self.kernel.iter().map(|k| &k.container);
        let rules = self.event.iter().chain(&self.incident).map(|r| &r.container);
        let own = kernel.chain(rules).chain(self.series.iter().map(|s| &s.container));
        let when = self.cluster.iter().filter_map(|v| v.when.as_ref()).map(|w| &w.container);
        let of_variants = self.cluster.iter().flat_map(|v| self.with(v).containers());
        own.chain(when).cloned().chain(of_variants).collect()
    }

    /// Whether this container's end is part of the scenario, wherever it is played.
    pub fn foresees_end(&self, container: &str) -> bool {
        let variants = self.cluster.iter().filter_map(|v| v.kernel.as_ref()).flatten();
        self.kernel.iter().chain(variants).any(|k| k.container == container && k.exit_code.is_some())
    }

    /// The rules where a variant holds.
    fn with(&self, variant: &Variant) -> Self {
        fn one<T: Clone>(own: &[T], other: Option<&Vec<T>>) -> Vec<T> {
            other.map_or(own, Vec::as_slice).to_vec()
        }
        Self {
            kernel: one(&self.kernel, variant.kernel.as_ref()),
            event: one(&self.event, variant.event.as_ref()),
            incident: one(&self.incident, variant.incident.as_ref()),
            series: one(&self.series, variant.series.as_ref()),
            may: one(&self.may, variant.may.as_ref()),
            must_not: one(&self.must_not, variant.must_not.as_ref()),
            cluster: Vec::new(),
        }
    }

    /// What the kernel's files and wait(2) say of one container, the former where they can be read; an error when that is not what
    /// the scenario is for.
    pub fn kernel(&self, container: &str, oom_kill: Option<u64>, exit_codes: &[i32]) -> Result<(), String> {
        for k in self.kernel.iter().filter(|k| k.container == container) {
            if let (Some(want), Some(found)) = (k.oom_kill, oom_kill)
                && want != found
            {
                return Err(format!("container {container}: {found} OOM kills, and {want} were to be"));
            }
            if let Some(want) = k.exit_code
                && let Some(code) = exit_codes.iter().find(|code| **code != want)
            {
                return Err(format!("container {container}: exit code {code}, and {want} was to be"));
            }
        }
        Ok(())
    }

    pub fn judge(&self, record: &Record) -> Verdict {
        let mut own = self.held(record);
        if !record.in_cluster {
            return own;
        }
        for variant in &self.cluster {
            let found = match &variant.when {
                None => variant.why.clone(),
                Some(when) => match record.peak(&when.container, &when.metric) {
                    Some(value) if (value - when.is).abs() < 0.5 => {
                        format!("{} ({} of {} is {})", variant.why, when.metric, when.container, when.is)
                    }
                    Some(_) => continue,
                    None if own.is_good() => continue,
                    None => format!("{} ({} of {} is not known)", variant.why, when.metric, when.container),
                },
            };
            let verdict = self.with(variant).held(record);
            let is_known =
                variant.when.as_ref().is_none_or(|w| record.peak(&w.container, &w.metric).is_some());
            if is_known || verdict.is_good() {
                own = Verdict { note: Some(found), ..verdict };
                break;
            }
        }
        own
    }

    /// By these rules, without any variant.
    fn held(&self, record: &Record) -> Verdict {
        let mut verdict = Verdict::default();
        if let Some(error) = &record.error {
            verdict.missing.push(format!("the scenario itself: {error}"));
            return verdict;
        }
        for node in &record.silent {
            verdict.missing.push(format!("what was told on node {node}"));
        }
        for c in &record.containers {
            if let Err(why) = self.kernel(&c.name, c.oom_kill, &c.exit_codes) {
                verdict.missing.push(why);
            }
        }
        rules("event", &self.event, &record.events, record, &mut verdict);
        rules("incident", &self.incident, &record.incidents, record, &mut verdict);
        for s in &self.series {
            let found = record.peak(&s.container, &s.metric);
            let what = format!("{} of {} ≥ {}", s.metric, s.container, s.at_least);
            let told = found.map_or("no value".to_owned(), |v| format!("at the most {v:.0}"));
            verdict.settle(found.is_some_and(|v| v >= s.at_least), what, &told);
        }
        self.unexpected(record, &mut verdict);
        verdict
    }

    fn unexpected(&self, record: &Record, verdict: &mut Verdict) {
        let named =
            |kind: &str| self.event.iter().any(|r| r.kind == kind) || self.may.iter().any(|k| k == kind);
        let mut count: BTreeMap<String, u32> = BTreeMap::new();
        for event in &record.events {
            let kind = event["kind"].as_str().unwrap_or_default();
            let warns = event["severity"] != "info" && !named(kind);
            if warns || self.must_not.iter().any(|k| k == kind) {
                let of = record.container_of(event).map_or("a pod", String::as_str);
                *count.entry(format!("event {kind} of {of}, first {}", event["detail"])).or_default() += 1;
            }
        }
        for incident in &record.incidents {
            let known = |r: &Rule| {
                incident["kind"] == r.kind.as_str() && record.container_of(incident) == Some(&r.container)
            };
            if !self.incident.iter().any(known) {
                let summary = incident["summary"].as_str().unwrap_or_default();
                *count.entry(format!("incident {}: {summary}", incident["kind"])).or_default() += 1;
            }
        }
        verdict.unexpected.extend(count.into_iter().map(|(what, n)| format!("{n} × {what}")));
    }
}

fn rules(of: &str, rules: &[Rule], told: &[Value], record: &Record, verdict: &mut Verdict) {
    for rule in rules {
        let taken: Vec<&Value> = told.iter().filter(|t| rule.takes(t, record)).collect();
        let lacking = |p: &String| {
            taken.iter().filter(|t| t.pointer(p).is_none_or(Value::is_null)).count() > rule.absent_in
        };
        let (least, most) = match rule.count {
            Some(count) => (count, count),
            None => (rule.at_least.unwrap_or(1), usize::MAX),
        };
        let what = rule.what(of);
        let good = taken.len() >= least && !rule.present.iter().any(lacking);
        verdict.settle(good, format!("{least} × {what}"), &format!("{} told", taken.len()));
        if taken.len() > most {
            verdict.unexpected.push(format!("{} × {what}; {most} were to be", taken.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Expect;
    use crate::scenario::play::{Played, Record};
    use serde_json::{Value, json};

    const EXPECT: &str = r#"
        must_not = ["frozen"]
        [[kernel]]
        container = "app"
        oom_kill = 1
        exit_code = 137
        [[event]]
        kind = "oom_kill"
        container = "app"
        count = 1
        like = { "/comm" = "hog" }
        [[incident]]
        kind = "oom_kill"
        container = "app"
        limit_of = "app"
        least = { "/history_s" = 5 }
        present = ["/restart"]
        [[series]]
        container = "app"
        metric = "memory_current"
        at_least = 100
    "#;

    fn record(events: Value, incidents: Value) -> Record {
        let list = |v: Value| v.as_array().cloned().unwrap_or_default();
        let app = Played {
            name: "app".into(),
            ids: vec!["77".into(), "88".into()],
            oom_kill: Some(1),
            exit_codes: vec![137],
        };
        Record {
            containers: vec![app],
            events: list(events),
            incidents: list(incidents),
            peaks: [("app memory_current".to_owned(), Some(100.0))].into(),
            ..Record::default()
        }
    }

    fn kill() -> Value {
        json!({"kind": "oom_kill", "container_id": "88", "comm": "hog", "severity": "critical"})
    }

    fn incident() -> Value {
        json!({"kind": "oom_kill", "container_id": "88", "history_s": 7.5, "restart": {},
               "limit": {"cgroup_path": "/kubepods/pod1/cri-containerd-88.scope"}})
    }

    #[test]
    fn what_was_told_as_expected_is_met() {
        let verdict =
            Expect::parse(EXPECT).expect("good").judge(&record(json!([kill()]), json!([incident()])));
        assert!(verdict.is_good(), "{verdict:?}");
        assert_eq!(verdict.met.len(), 3);
    }

    #[test]
    fn what_is_not_there_is_missing() {
        let expect = Expect::parse(EXPECT).expect("good");
        for change in [
            json!({"limit": {"cgroup_path": "/kubepods/pod1"}}),
            json!({"history_s": 4.0}),
            json!({"history_s": null}),
            json!({"restart": null}),
            json!({"container_id": "99"}),
        ] {
            let mut incident = incident();
            for (key, value) in change.as_object().expect("an object") {
                incident[key] = value.clone();
            }
            let verdict = expect.judge(&record(json!([kill()]), json!([incident])));
            assert!(!verdict.missing.is_empty(), "{change}");
        }
        let mut other = record(json!([kill()]), json!([incident()]));
        other.peaks.clear();
        other.containers[0].exit_codes = vec![0];
        assert_eq!(expect.judge(&other).missing.len(), 2);
        let silent =
            Record { silent: vec!["n: gone".into()], ..record(json!([kill()]), json!([incident()])) };
        assert_eq!(expect.judge(&silent).missing, ["what was told on node n: gone"]);
        let mut killed = record(json!([kill()]), json!([incident()]));
        killed.containers[0].oom_kill = Some(2);
        assert_eq!(expect.judge(&killed).missing.len(), 1);
        killed.containers[0].oom_kill = None;
        assert!(expect.judge(&killed).is_good(), "nobody could count them");
        let mut of_pod = incident();
        (of_pod["cgroup_path"], of_pod["limit"]) = (json!("/pod1/cri-88"), json!({"cgroup_path": "/pod1"}));
        let mut kubelets = record(json!([kill()]), json!([of_pod]));
        assert_eq!(expect.judge(&kubelets).missing.len(), 1);
        kubelets.in_cluster = true;
        assert!(expect.judge(&kubelets).is_good(), "a kubelet's pods have their containers' limit");
        kubelets.incidents[0]["limit"]["cgroup_path"] = json!("/");
        assert_eq!(expect.judge(&kubelets).missing.len(), 1);
        let failed = Record { error: Some("no cgroup".into()), ..Record::default() };
        assert!(!Expect::default().judge(&failed).is_good());
    }

    #[test]
    fn what_nobody_asked_for_is_unexpected() {
        let expect = Expect::parse(EXPECT).expect("good");
        let warn =
            |kind: &str, severity: &str| json!({"kind": kind, "container_id": "77", "severity": severity});
        for (events, incidents) in [
            (json!([kill(), kill()]), json!([incident()])),
            (json!([kill(), warn("psi_stall", "warning")]), json!([incident()])),
            (json!([kill(), warn("frozen", "info")]), json!([incident()])),
            (json!([kill()]), json!([incident(), {"kind": "crash", "container_id": "77"}])),
        ] {
            let verdict = expect.judge(&record(events, incidents));
            assert_eq!((verdict.missing.len(), verdict.unexpected.len()), (0, 1), "{verdict:?}");
        }
        let quiet = record(json!([kill(), warn("exec", "info")]), json!([incident()]));
        assert!(expect.judge(&quiet).is_good(), "what only tells is no alarm");
        let may = Expect::parse(&format!("may = [\"psi_stall\"]\n{EXPECT}")).expect("good");
        assert!(
            may.judge(&record(json!([kill(), warn("psi_stall", "warning")]), json!([incident()]))).is_good()
        );
    }

    #[test]
    fn a_rule_that_is_misspelt_is_refused() {
        assert!(Expect::parse(&EXPECT.replace("at_least", "at_leest")).is_err());
        assert!(Expect::parse(&EXPECT.replace("container = \"app\"", "")).is_err());
    }
}
