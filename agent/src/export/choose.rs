//! Which rows a selection stands for: the cgroups of an incident, or those that a namespace, labels or names choose.
//!
//! Reads keys and names of rows, no values. Called by `export` before anything is encoded.

use super::problem::Problem;
use super::selection::{Containers, Rows, glob, instant};
use super::{Evidence, Failure, NARROW, find};
use crate::incident::Incident;
use crate::names::{CgroupId, Table};
use crate::query::{self, Filter, Identity, Key, Plan};
use crate::segment;
use crate::store::View;
use std::collections::{BTreeMap, BTreeSet};

/// The rows that a selection stands for.
pub struct Found {
    pub incident: Option<Incident>,
    pub filter: Filter,
    pub plan: Plan,
    pub identities: BTreeMap<Key, Identity>,
}

/// Finds them, and holds them against the limits.
pub fn find_rows(evidence: &Evidence, rows: &Rows) -> Result<Found, Failure> {
    match rows {
        Rows::Incident { id, before_us, after_us } => {
            let incident = find(&evidence.incidents, id)?.clone();
            let (from_us, to_us) = around(&incident, *before_us, *after_us);
            let boot = Some(segment::boot_of(&incident.boot_id));
            let wide = Filter { boot, ..Filter::range(from_us, to_us) };
            let around = samples(evidence, &wide, u64::MAX)?;
            let wanted = cgroups_of(&incident, &around.identities()?);
            let filter = Filter { cgroups: Some(wanted), ..wide };
            found(evidence, Some(incident), filter)
        }
        Rows::Range { from_us, to_us, containers } => {
            let mut filter = Filter::range(*from_us, *to_us);
            let found = if containers.is_everything() {
                found(evidence, None, filter)?
            } else {
                let chooser = Chooser::new(containers, &evidence.incidents);
                let wide = Filter {
                    cgroups: chooser.ids(),
                    containers: chooser.container_ids(),
                    ..Filter::range(*from_us, *to_us)
                };
                let around = samples(evidence, &wide, u64::MAX)?;
                let mut identities = around.identities()?;
                identities.retain(|key, who| chooser.takes(key, who));
                filter.cgroups = Some(identities.keys().filter_map(|k| k.cgroup_id).collect());
                let plan = around.of(|key| identities.contains_key(key));
                plan.within(evidence.limits.max_rows)?;
                Found { incident: None, filter, plan, identities }
            };
            let n = found.identities.values().filter(|who| who.scope.as_deref() == Some("container")).count();
            if n > evidence.limits.max_containers {
                let limit = evidence.limits.max_containers as u64;
                return Err(Problem::too_large("export.max_containers", limit, n as u64, NARROW).into());
            }
            if found.plan.rows == 0 {
                return Err(nothing(&evidence.view, *from_us, *to_us, containers).into());
            }
            Ok(found)
        }
    }
}

/// The time of an incident that is exported; what is not named is as its own window has it.
pub fn around(incident: &Incident, before_us: Option<i64>, after_us: Option<i64>) -> (i64, i64) {
    let from_us = before_us.map_or(incident.window.from_us, |b| incident.ts_us.saturating_sub(b));
    let to_us = after_us.map_or(incident.window.to_us, |a| incident.ts_us.saturating_add(a));
    (from_us, to_us)
}

fn samples(evidence: &Evidence, filter: &Filter, max_rows: u64) -> Result<Plan, Failure> {
    Ok(query::plan(&evidence.view, Table::Samples, filter, max_rows)?.named_by(&evidence.pods))
}

fn found(evidence: &Evidence, incident: Option<Incident>, filter: Filter) -> Result<Found, Failure> {
    let plan = samples(evidence, &filter, evidence.limits.max_rows)?;
    let identities = plan.identities()?;
    Ok(Found { incident, filter, plan, identities })
}

fn nothing(view: &View, from_us: i64, to_us: i64, containers: &Containers) -> Problem {
    let held = view.segments.iter().filter(|s| s.table == Table::Samples);
    let from = held.clone().map(|s| s.from_us).min();
    let to = held.map(|s| s.to_us).max();
    let store = match (from, to) {
        (Some(from), Some(to)) => {
            format!("closed segments reach from {} to {}", instant(from, 0), instant(to, 0))
        }
        _ => "no segment is closed yet".to_owned(),
    };
    let labels = if containers.labels.is_empty() {
        ""
    } else {
        "; labels are known of pods that Kubernetes told the agent of (table `containers`), and of those that an incident names"
    };
    let (from, to) = (instant(from_us, 0), instant(to_us, 0));
    Problem::not_found(format!("no sample from {from} to {to} matches; {store}{labels}"))
}

/// The container, the victims', the limit's cgroup, and the ancestors of the first up to and including the pod.
fn cgroups_of(incident: &Incident, identities: &BTreeMap<Key, Identity>) -> BTreeSet<i64> {
    let id = |id: u64| CgroupId(id).as_i64();
    let mut wanted: BTreeSet<i64> = incident.cgroup_id.map(id).into_iter().collect();
    wanted.extend(incident.victims.iter().filter_map(|v| v.cgroup_id).map(id));
    wanted.extend(incident.limit.iter().filter_map(|l| l.cgroup_id).map(id));
    let own = incident.cgroup_path.clone().or_else(|| {
        let own = identities.iter().find(|(k, _)| k.cgroup_id == incident.cgroup_id.map(id));
        own.and_then(|(_, who)| who.cgroup_path.clone())
    });
    let Some(own) = own else { return wanted };
    let mut above: Vec<(&str, &Identity, i64)> = identities
        .iter()
        .filter_map(|(key, who)| Some((who.cgroup_path.as_deref()?, who, key.cgroup_id?)))
        .filter(|(path, _, _)| is_at_or_above(path, &own))
        .collect();
    above.sort_by_key(|(path, _, _)| std::cmp::Reverse(path.len()));
    // Without a pod among them (a service, a bare container) nothing above belongs to it.
    if let Some(pod) = above.iter().position(|(_, who, _)| who.scope.as_deref() == Some("pod")) {
        wanted.extend(above[..=pod].iter().map(|(_, _, id)| *id));
    }
    wanted
}

fn is_at_or_above(path: &str, own: &str) -> bool {
    own.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// How a cgroup is named across boots: its id, and the beginning of the boot's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named(pub String);

/// As much of a boot id as tells boots apart.
const BOOT_PART: usize = 8;

impl Named {
    pub fn of(key: &Key) -> Option<Self> {
        let boot = key.boot.get(..BOOT_PART).unwrap_or(&key.boot);
        Some(Self(format!("{}@{boot}", CgroupId::from_i64(key.cgroup_id?))))
    }

    /// The id in it, when it is one.
    pub fn cgroup_id(text: &str) -> Option<i64> {
        let (id, boot) = text.split_once('@')?;
        let is_boot = !boot.is_empty() && boot.bytes().all(|b| b.is_ascii_alphanumeric());
        Some(CgroupId(id.parse().ok().filter(|_| is_boot)?).as_i64())
    }
}

/// Holds cgroups against what is asked for.
pub struct Chooser<'a> {
    containers: &'a Containers,
    /// Pods whose labels are known and hold, by uid and by namespace and name.
    labelled: BTreeSet<String>,
    in_namespace: BTreeSet<&'a str>,
    /// Ids of containers that have one of the names.
    named: BTreeSet<&'a str>,
}

impl<'a> Chooser<'a> {
    pub fn new(containers: &'a Containers, incidents: &[Incident]) -> Self {
        let mut labelled: BTreeSet<String> = containers.told.labelled.iter().cloned().collect();
        for incident in incidents.iter().filter(|_| !containers.labels.is_empty()) {
            if incident.labels.as_ref().is_some_and(|has| containers.labels.hold(has)) {
                labelled.extend(incident.pod_uid.clone());
                labelled.extend(in_namespace(incident.namespace.as_ref(), incident.pod.as_ref()));
            }
        }
        let told = |of: &'a Vec<String>| of.iter().map(String::as_str).collect();
        let (in_namespace, named) = (told(&containers.told.in_namespace), told(&containers.told.named));
        Self { containers, labelled, in_namespace, named }
    }

    /// The only ids that can be meant, when all are given by key: nothing else needs to be looked at.
    pub fn ids(&self) -> Option<BTreeSet<i64>> {
        let names = &self.containers.names;
        let ids: Option<BTreeSet<i64>> = names.iter().map(|name| Named::cgroup_id(name)).collect();
        ids.filter(|_| !names.is_empty())
    }

    /// The whole container ids, when nothing else is given: files know which of them they have not.
    pub fn container_ids(&self) -> Option<BTreeSet<String>> {
        let names = &self.containers.names;
        let is_id = |name: &String| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        (!names.is_empty() && names.iter().all(is_id)).then(|| names.iter().cloned().collect())
    }

    pub fn takes(&self, key: &Key, who: &Identity) -> bool {
        let wanted = self.containers;
        // by its rows, or by the table, which knows who had no name yet when its file was closed
        let fits_namespace = wanted.namespace.is_none()
            || who.namespace == wanted.namespace
            || who.pod_uid.as_ref().is_some_and(|uid| self.in_namespace.contains(uid.as_str()));
        let is_told = who.container_id.as_ref().is_some_and(|id| self.named.contains(id.as_str()));
        let has_labels = wanted.labels.is_empty()
            || who.pod_uid.as_ref().is_some_and(|uid| self.labelled.contains(uid))
            || in_namespace(who.namespace.as_ref(), who.pod.as_ref())
                .is_some_and(|n| self.labelled.contains(&n));
        let own = Named::of(key);
        let is_named = |name: &String| {
            let id_begins =
                name.len() >= 12 && who.container_id.as_ref().is_some_and(|id| id.starts_with(name));
            let path_matches = who.cgroup_path.as_ref().is_some_and(|path| glob(name, path));
            own.as_ref().is_some_and(|own| own.0 == *name)
                || who.container.as_ref() == Some(name)
                || id_begins
                || (name.starts_with(['/', '*']) && path_matches)
        };
        let fits_names = wanted.names.is_empty() || is_told || wanted.names.iter().any(is_named);
        fits_namespace && has_labels && fits_names
    }
}

fn in_namespace(namespace: Option<&String>, pod: Option<&String>) -> Option<String> {
    Some(format!("{}/{}", namespace?, pod?))
}
