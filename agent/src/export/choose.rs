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
            let from_us = before_us.map_or(incident.window.from_us, |b| incident.ts_us.saturating_sub(b));
            let to_us = after_us.map_or(incident.window.to_us, |a| incident.ts_us.saturating_add(a));
            let boot = Some(segment::boot_of(&incident.boot_id));
            let wide = Filter { from_us, to_us, boot, cgroups: None };
            let around = query::plan(&evidence.view, Table::Samples, &wide, u64::MAX)?;
            let wanted = cgroups_of(&incident, &around.identities()?);
            let filter = Filter { cgroups: Some(wanted), ..wide };
            found(evidence, Some(incident), filter)
        }
        Rows::Range { from_us, to_us, containers } => {
            let mut filter = Filter::range(*from_us, *to_us);
            if !containers.is_everything() {
                let around = query::plan(&evidence.view, Table::Samples, &filter, u64::MAX)?;
                let identities = around.identities()?;
                let labelled = labelled(&evidence.incidents, &containers.labels);
                let chosen = identities.iter().filter(|(_, who)| is_chosen(who, containers, &labelled));
                filter.cgroups = Some(chosen.filter_map(|(k, _)| k.cgroup_id).collect());
            }
            let found = found(evidence, None, filter)?;
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

fn found(evidence: &Evidence, incident: Option<Incident>, filter: Filter) -> Result<Found, Failure> {
    let plan = query::plan(&evidence.view, Table::Samples, &filter, evidence.limits.max_rows)?;
    let identities = plan.identities()?;
    Ok(Found { incident, filter, plan, identities })
}

fn nothing(view: &View, from_us: i64, to_us: i64, containers: &Containers) -> Problem {
    let held = view.segments.iter().filter(|s| s.table == Table::Samples);
    let from = held.clone().map(|s| s.from_us).min();
    let to = held.map(|s| s.to_us).max();
    let store = match (from, to) {
        (Some(from), Some(to)) => format!("closed segments reach from {} to {}", instant(from), instant(to)),
        _ => "no segment is closed yet".to_owned(),
    };
    let labels = if containers.labels.is_empty() {
        ""
    } else {
        "; labels are known only of pods that an incident names"
    };
    let (from, to) = (instant(from_us), instant(to_us));
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

/// Pods that have all the labels, by uid and by namespace and name, as far as incidents tell.
fn labelled(incidents: &[Incident], labels: &[(String, String)]) -> BTreeSet<String> {
    let mut pods = BTreeSet::new();
    for incident in incidents {
        let Some(has) = &incident.labels else { continue };
        if !labels.is_empty() && labels.iter().all(|(k, v)| has.get(k) == Some(v)) {
            pods.extend(incident.pod_uid.clone());
            pods.extend(
                incident.namespace.as_ref().zip(incident.pod.as_ref()).map(|(n, p)| format!("{n}/{p}")),
            );
        }
    }
    pods
}

fn is_chosen(who: &Identity, containers: &Containers, labelled: &BTreeSet<String>) -> bool {
    let in_namespace = containers.namespace.is_none() || who.namespace == containers.namespace;
    let has_labels = containers.labels.is_empty()
        || who.pod_uid.as_ref().is_some_and(|uid| labelled.contains(uid))
        || who
            .namespace
            .as_ref()
            .zip(who.pod.as_ref())
            .is_some_and(|(n, p)| labelled.contains(&format!("{n}/{p}")));
    let is_named = |name: &String| {
        let id_begins = name.len() >= 12 && who.container_id.as_ref().is_some_and(|id| id.starts_with(name));
        let path_matches = who.cgroup_path.as_ref().is_some_and(|path| glob(name, path));
        who.container.as_ref() == Some(name) || id_begins || (name.starts_with(['/', '*']) && path_matches)
    };
    in_namespace && has_labels && (containers.names.is_empty() || containers.names.iter().any(is_named))
}
