//! The paragraph of an incident, in plain English, from the evidence alone.

use super::{Open, named};
use crate::event::Sent;
use crate::incident::{Incident, LimitHit, Victim};
use std::fmt::Write as _;

/// Victims named in the paragraph; it must stay one. The incident lists more of them.
const MAX_NAMES: usize = 5;

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn bytes(v: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut v, mut unit) = (v as f64 / 1024.0, 0);
    while v >= 1024.0 && unit < UNITS.len() - 1 {
        v /= 1024.0;
        unit += 1;
    }
    format!("{v:.1} {}", UNITS[unit])
}

fn utc(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us)
        .map_or_else(|_| format!("{us} µs"), |t| t.strftime("%Y-%m-%d %H:%M:%S.%3f UTC").to_string())
}

fn process(comm: Option<&str>, pid: Option<u32>) -> String {
    let comm = comm.map_or_else(|| "a process".to_owned(), |c| format!("\"{c}\""));
    pid.map_or_else(|| format!("{comm} (pid not visible from here)"), |pid| format!("{comm} (pid {pid})"))
}

/// What the incident's cgroup is called in a sentence.
fn noun(i: &Incident) -> &str {
    match i.scope.as_str() {
        known @ ("container" | "pod" | "service" | "node") => known,
        _ => "cgroup",
    }
}

/// The first twelve characters of a container id, as people know it.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn owner(i: &Incident) -> String {
    let name = match (&i.namespace, &i.pod, &i.container) {
        (Some(ns), Some(pod), Some(c)) => Some(format!("container {c} of pod {ns}/{pod}")),
        _ => None,
    };
    name.unwrap_or_else(|| match (&i.container_id, &i.pod_uid) {
        (Some(c), Some(p)) => format!("container {} of pod {p}", short(c)),
        (Some(c), None) => format!("container {}", short(c)),
        (None, Some(p)) => format!("pod {p}"),
        (None, None) => format!("cgroup {}", i.cgroup_path.as_deref().unwrap_or("unknown")),
    })
}

fn victims(out: &mut String, i: &Incident, more: u64) {
    let name = |v: &Victim| process(v.comm.as_deref(), v.pid);
    let all = i.victims.len() as u64 + more;
    let mut names: Vec<String> = i.victims.iter().take(MAX_NAMES).map(name).collect();
    let more = more + i.victims.len().saturating_sub(MAX_NAMES) as u64;
    if more > 0 {
        names.push(format!("{more} more"));
    }
    let unseen = i.victims.iter().all(|v| v.pid.is_none() && v.comm.is_none());
    let what = match names.as_slice() {
        [_] if unseen => "a process that was not observed".to_owned(),
        _ if unseen => format!("{all} processes that were not observed"),
        [one] => format!("process {one}"),
        many => format!("{} processes, {},", all, many.join(", ")),
    };
    let _ = write!(
        out,
        "At {} the kernel's OOM killer killed {what} in {} on node {}.",
        utc(i.ts_us),
        owner(i),
        i.node
    );
    if let [one] = i.victims.as_slice()
        && let (Some(anon), Some(rss)) = (one.anon_bytes, one.rss_bytes)
    {
        let _ = write!(out, " It held {} of anonymous memory ({} resident in all).", bytes(anon), bytes(rss));
    }
}

fn limit(out: &mut String, i: &Incident, limit: Option<&LimitHit>) {
    let Some(limit) = limit else {
        out.push_str(" Which memory limit was hit was not observed.");
        return;
    };
    let without = match limit.source.as_str() {
        "global" => "No memory limit was hit: the node itself had run out of memory.",
        "global_cpuset" => {
            "No memory limit was hit: what the asking process's cpuset allows of the node's memory had run out."
        }
        "global_mempolicy" => {
            "No memory limit was hit: the NUMA nodes that the asking process's memory policy names had run out."
        }
        "global_sysrq" => {
            "No memory had run out: the kill was asked for by SysRq. Who asked for it: cause not observed."
        }
        "global_unknown" => {
            "No memory limit was hit: the node's memory, or what the asking process may use of it, had run out; which of \
             these was not observed."
        }
        _ => "",
    };
    if !without.is_empty() {
        let _ = write!(out, " {without}");
        return;
    }
    let inside = |path: &&String| {
        let own = i.cgroup_path.as_deref().unwrap_or("/").trim_end_matches('/');
        path.strip_prefix(own).is_some_and(|rest| rest.starts_with('/'))
    };
    let whose = if limit.cgroup_id == i.cgroup_id {
        format!("the {}'s own", noun(i))
    } else {
        match &limit.cgroup_path {
            // crun's `container`, or a limit that the workload set itself
            Some(path) if inside(&path) => format!("not the {}'s own but that of {path} inside it,", noun(i)),
            // the root of the agent's view, where a node is a container itself
            Some(path) if path == "/" => {
                format!("not the {}'s own but that of the cgroup in which this whole node lives,", noun(i))
            }
            Some(path) => format!("not the {}'s own but that of its ancestor {path},", noun(i)),
            None => format!("not the {}'s own but that of a cgroup above all that this agent sees,", noun(i)),
        }
    };
    let max = limit
        .max_bytes
        .map_or_else(|| "of unknown size".to_owned(), |m| format!("memory.max of {}", bytes(m)));
    let _ = write!(out, " The limit that was hit is {whose} {max}");
    match limit.usage_bytes {
        Some(usage) => {
            let _ = write!(out, "; its usage at that instant was {}", bytes(usage));
            if let Some(swap) = limit.swap_bytes.filter(|s| *s > 0) {
                let _ = write!(out, ", and {} of swap", bytes(swap));
            }
            out.push('.');
        }
        None => out.push_str("; its usage at that instant was not observed."),
    }
}

/// How long before the incident's first event an instant was.
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn before_it(i: &Incident, us: i64) -> String {
    let us = (i.ts_us - us).max(0) as f64;
    if us < 1e7 { format!("{:.0} ms", us / 1e3) } else { format!("{:.1} s", us / 1e6) }
}

fn limit_change(out: &mut String, i: &Incident) {
    let Some(change) = &i.limit_change else { return };
    let size = |v: Option<u64>| v.map_or_else(|| "no limit".to_owned(), bytes);
    let _ = write!(
        out,
        " It had been lowered from {} to {}",
        size(change.before_bytes),
        size(change.after_bytes)
    );
    let (first, last) = (before_it(i, change.not_before_us), before_it(i, change.not_after_us));
    let _ = if change.not_after_us >= i.ts_us {
        write!(out, " at most {first} before the kill")
    } else {
        write!(out, " between {first} and {last} before the kill")
    };
    match &change.by {
        Some(by) => {
            let place = by.cgroup_path.as_deref().unwrap_or("a cgroup outside what this agent sees");
            let who = process(by.comm.as_deref(), by.pid);
            let _ = write!(
                out,
                ", by {who} in {place}: more was in use than the new limit allows, so the kernel killed."
            );
        }
        None => out.push_str("; who wrote it: cause not observed."),
    }
}

fn trigger(out: &mut String, i: &Incident) {
    let enforced = i.limit_change.as_ref().is_some_and(|c| c.by.is_some());
    if enforced || i.limit.as_ref().is_some_and(|l| l.source == "global_sysrq") {
        // nobody asked for memory
        return;
    }
    let Some(t) = &i.trigger else {
        out.push_str(" Who asked for the memory was not observed.");
        return;
    };
    if t.pid.is_some() && i.victims.iter().any(|v| v.pid == t.pid) {
        let who = match i.victims.len() {
            1 => "The victim itself".to_owned(),
            _ => format!("One of them, {},", process(t.comm.as_deref(), t.pid)),
        };
        let _ = write!(out, " {who} asked for the memory that could not be had.");
        return;
    }
    let place = if t.cgroup_id.is_some() && i.victims.iter().any(|v| v.cgroup_id == t.cgroup_id) {
        "in the same cgroup".to_owned()
    } else {
        match (&t.cgroup_path, t.cgroup_id) {
            (Some(path), _) => format!("in {path}"),
            (None, Some(_)) => "in a cgroup outside what this agent sees".to_owned(),
            (None, None) => "in a cgroup that was not observed".to_owned(),
        }
    };
    let _ = write!(
        out,
        " The memory that could not be had was asked for by {} {place}.",
        process(t.comm.as_deref(), t.pid)
    );
}

fn group(out: &mut String, open: &Open) {
    let Some(path) = &open.evidence.group_path else { return };
    let own = format!("the {}", noun(&open.incident));
    let whole = if open.incident.cgroup_path.as_ref() == Some(path) { &own } else { path };
    let _ = write!(out, " The kernel kills all of {whole} together, since its memory.oom.group is set.");
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn before(out: &mut String, open: &Open) {
    let e = &open.evidence;
    let end = moment(&open.incident);
    let (Some(from), Some(last)) = (e.earlier.or(e.oldest), e.last) else {
        let _ = write!(out, " No reading of its memory from before {end} was kept.");
        return;
    };
    let span = (open.incident.ktime_ns.saturating_sub(from.ktime_ns)) as f64 / 1e9;
    let gap = open.incident.ktime_ns.saturating_sub(last.ktime_ns) as f64 / 1e6;
    let (then, now) = (bytes(from.memory_current), bytes(last.memory_current));
    let course = match last.memory_current.cmp(&from.memory_current) {
        std::cmp::Ordering::Greater => format!("rose from {then} to {now}"),
        std::cmp::Ordering::Less => format!("fell from {then} to {now}"),
        std::cmp::Ordering::Equal => format!("stayed at {now}"),
    };
    let _ = write!(out, " In the {span:.1} s before, the {}'s memory {course}", noun(&open.incident));
    let _ = write!(out, "; the last reading was {gap:.0} ms before {end}.");
    let warned: Vec<_> = e
        .warnings
        .iter()
        .map(|(_, kind, at)| {
            format!("{kind} {:.1} s before", open.incident.ktime_ns.saturating_sub(*at) as f64 / 1e9)
        })
        .collect();
    if !warned.is_empty() {
        let _ = write!(out, " Warnings: {}.", warned.join(", "));
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn after(out: &mut String, open: &Open) {
    let i = &open.incident;
    let since = |ns: u64| ns.saturating_sub(i.ktime_ns) as f64 / 1e9;
    match (i.exit, open.init_ended_ns) {
        (Some(exit), Some(at)) => {
            let how = match (exit.signal, exit.code) {
                (Some(signal), _) => format!("signal {signal}"),
                (None, Some(code)) => format!("exit code {code}"),
                (None, None) => "an unknown status".to_owned(),
            };
            let _ = write!(out, " Its init process ended with {how}, {:.1} s after the kill.", since(at));
        }
        _ if open.gone_ns.is_none() && i.closed && i.scope == "container" => {
            out.push_str(" Its init process was not seen to end, and its cgroup was still there when this was written.");
        }
        _ if open.gone_ns.is_none() && i.closed && i.scope != "node" => {
            out.push_str(" Its cgroup was still there when this was written.");
        }
        _ => {}
    }
    gone_and_missing(out, open);
}

/// What the incident is about, for "before the kill".
fn moment(i: &Incident) -> &'static str {
    if i.kind == "crash" { "the end" } else { "the kill" }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn gone_and_missing(out: &mut String, open: &Open) {
    let i = &open.incident;
    if let Some(at) = open.gone_ns {
        let after = at.saturating_sub(i.ktime_ns) as f64 / 1e9;
        let _ = write!(out, " Its cgroup was removed {after:.1} s after {}.", moment(i));
    }
    if let Some(restart) = &i.restart {
        let after = restart.started_ktime_ns.saturating_sub(i.ktime_ns) as f64 / 1e9;
        let who = match (&restart.container_id, &i.pod_uid) {
            (Some(next), Some(_)) => {
                format!(
                    "Container {}, the only one that started in this pod since, took its place",
                    short(next)
                )
            }
            _ => "It was started anew".to_owned(),
        };
        let _ = write!(out, " {who} {after:.1} s after {}.", moment(i));
    }
    if open.more_events > 0 {
        let _ = write!(out, " {} more events of it are in the events table.", open.more_events);
    }
    if i.closed && !i.lost.is_empty() {
        let parts: Vec<_> =
            i.lost.iter().map(|l| format!("{} rows of {} ({})", l.rows, l.table, l.reason)).collect();
        let _ = write!(out, " Missing from the evidence: {}.", parts.join(", "));
    }
}

/// How a container ended that no OOM kill ended, and whose doing it was.
fn end(out: &mut String, open: &Open) {
    let i = &open.incident;
    let init = i.victims.first().map_or_else(|| "the init".to_owned(), |v| process(v.comm.as_deref(), v.pid));
    let exit = i.exit.unwrap_or_default();
    let how = match (i.kind.as_str(), exit.signal, exit.code) {
        ("killed", ..) => "was killed with signal 9 (SIGKILL)".to_owned(),
        (_, Some(signal), _) => format!("crashed with signal {signal}"),
        (_, None, Some(code)) => format!("ended by itself with exit code {code}"),
        (_, None, None) => "ended in an unknown way".to_owned(),
    };
    let _ =
        write!(out, "At {} the init process {init} of {} on node {} {how}.", utc(i.ts_us), owner(i), i.node);
    if i.kind != "killed" && exit.signal.is_none() {
        out.push_str(" No signal was involved; its own output tells why.");
        return;
    }
    let Some(blame) = &open.blame else {
        let what = if i.kind == "killed" { "who sent the signal" } else { "what raised the signal" };
        let _ = write!(out, " No OOM kill was seen; {what}: cause not observed.");
        return;
    };
    let kill = &blame.kill;
    let name = |t: &crate::event::Task| process(Some(&t.comm), t.pid);
    let uid = kill.sender_uid.map_or_else(String::new, |uid| format!(", uid {uid}"));
    let place = blame.sender_path.as_deref().unwrap_or("a cgroup outside what this agent sees");
    let by = match kill.sent {
        Sent::ByTask => format!(
            "was sent by {}{uid} in {place}, a child of {}",
            name(&kill.sender),
            name(&kill.sender_parent)
        ),
        Sent::ByCgroupKill => {
            format!("came from a write to cgroup.kill by {}{uid} in {place}", name(&kill.sender))
        }
        Sent::ByParentDeath => format!("came since its parent {} had died", name(&kill.sender)),
        Sent::ByOomKiller => "came from the kernel's OOM killer".to_owned(),
        Sent::ByKernel => "came from the kernel itself, not from a process".to_owned(),
        Sent::ByTimerOrIo => "came from a timer or I/O notification that the process had ordered".to_owned(),
    };
    let _ = write!(out, " The signal {by}.");
}

pub(super) fn write(open: &Open) -> String {
    let i = &open.incident;
    let mut out = String::new();
    if i.kind != "oom_kill" {
        end(&mut out, open);
        before(&mut out, open);
        gone_and_missing(&mut out, open);
        named::say(&mut out, i);
        return out;
    }
    victims(&mut out, i, open.more_victims);
    limit(&mut out, i, i.limit.as_ref());
    limit_change(&mut out, i);
    trigger(&mut out, i);
    group(&mut out, open);
    before(&mut out, open);
    after(&mut out, open);
    named::say(&mut out, i);
    out
}
