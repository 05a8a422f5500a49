//! Whether the paragraph of an incident tells what happened, sentence by sentence, by what the witness and the driver know. Must
//! never read another member of the incident than the paragraph: a right field does not make a right story. Pure. Called by `judge`.
//!
//! A sentence that is not in [`SENTENCES`] claims something that did not happen in this mix: nobody lowered a limit, sent a signal
//! or restarted a container, and nothing was unobservable.

use super::case::Group;
use super::mix::{self, LIVES_ON_S};
use super::play::NODE;
use super::score::{Kill, Truth, limit_of, seconds};
use serde_json::Value;
use std::collections::BTreeMap;

/// What makes a kind what it is: words that its story must have, and words that it must not have. The rest follows from each kill.
const KINDS: [(&str, &[&str], &[&str]); 9] = [
    ("node", &["the node itself had run out of memory", "ended with signal 9"], &["limit that was hit"]),
    ("init", &["the container's own memory.max of 8.0 MiB", "ended with signal 9"], &["exit code"]),
    ("child", &["\"hog\"", "ended with exit code 0"], &["ended with signal"]),
    // that they go together is told when the cgroup is still there to be asked
    ("group", &["killed 3 processes, ", "ended with signal 9"], &["The victim itself"]),
    (
        "pod-limit",
        &["not the container's own", "memory.max of 12.0 MiB"],
        &["the container's own memory.max"],
    ),
    ("short", &["memory.max of 6.0 MiB", "Its cgroup was removed"], &[]),
    ("storm", &["\"storm\"", "memory.max of 4.0 MiB"], &["processes, "]),
    ("sibling", &["\"holder\"", "asked for by \"asker\""], &["The victim itself", "in the same cgroup"]),
    ("ramp-", &["memory rose from ", "memory.max of 32.0 MiB"], &["stayed at"]),
];

type Verdict = Result<(), String>;

const WHO: &str = "who was killed";
const LIMIT: &str = "whose limit it was";
const TRIGGER: &str = "who asked for the memory";
const COURSE: &str = "the memory before";
const END: &str = "how its init ended";
const REMOVAL: &str = "the removal of its cgroup";
/// What no story lacks.
const PARTS: [&str; 6] = [WHO, LIMIT, TRIGGER, COURSE, END, REMOVAL];

/// How it begins, what it is about, and whether it is true.
type Sentence = (&'static str, &'static str, fn(&str, &Facts<'_>) -> Verdict);

/// All that there may be.
const SENTENCES: [Sentence; 14] = [
    ("At ", WHO, who),
    ("It held ", "what the victim held", held),
    ("The limit that was hit is ", LIMIT, limit),
    ("No memory limit was hit: ", LIMIT, limit),
    ("The victim itself ", TRIGGER, trigger),
    ("One of them", TRIGGER, trigger),
    ("The memory that could not be had was asked for by ", TRIGGER, trigger),
    ("The kernel kills all of ", "what goes together", together),
    ("In the ", COURSE, course),
    ("No reading of its memory from before the kill was kept", COURSE, no_course),
    ("Warnings: ", "warnings", warnings),
    ("Its init process ended with ", END, end),
    ("Its cgroup was removed ", REMOVAL, removal),
    ("Missing from the evidence: ", "what is missing", |_, _| Ok(())),
];

const MIB: f64 = 1024.0 * 1024.0;
/// A time is told to a tenth of a second.
const TENTH_S: f64 = 0.1;
/// The history that is wanted, and what a machine that gives the recorder no turn excuses of it.
const HISTORY_S: f64 = 30.0;
const EXCUSED_S: f64 = 1.0;

#[derive(Debug, Default)]
pub struct Stories {
    /// Containers in which something was killed: each has one story.
    pub of: usize,
    pub right: usize,
    /// Right ones and all, by kind.
    pub kinds: BTreeMap<String, (usize, usize)>,
    /// What is wrong, by the case's name.
    pub wrong: Vec<String>,
}

/// The kills of each container, in the order of their first.
pub fn by_container<'k, 'a>(truth: &'k Truth<'a>) -> Vec<Vec<&'k Kill<'a>>> {
    let mut all: Vec<Vec<&Kill<'_>>> = Vec::new();
    for kill in &truth.kills {
        match all.iter_mut().find(|kills| kills[0].container.id == kill.container.id) {
            Some(kills) => kills.push(kill),
            None => all.push(vec![kill]),
        }
    }
    all
}

/// What is told of a container.
pub fn told_of<'i>(incidents: &'i [Value], container: &Group) -> Vec<&'i Value> {
    incidents.iter().filter(|i| i["cgroup_id"] == container.id).collect()
}

pub fn judge(truth: &Truth<'_>, incidents: &[Value]) -> Stories {
    let mut stories = Stories::default();
    for kills in by_container(truth) {
        let case = kills[0].case;
        let wrong = match told_of(incidents, kills[0].container).as_slice() {
            [one] => wrong(&kills, one["summary"].as_str().unwrap_or_default()),
            [] => vec!["it has no story".to_owned()],
            more => vec![format!("one story is told as {}", more.len())],
        };
        let (right, of) = stories.kinds.entry(case.kind.clone()).or_default();
        *right += usize::from(wrong.is_empty());
        *of += 1;
        stories.wrong.extend(wrong.iter().map(|why| format!("{}: {why}", case.name)));
    }
    stories.right = stories.kinds.values().map(|(right, _)| right).sum();
    stories.of = stories.kinds.values().map(|(_, of)| of).sum();
    stories
}

/// What is wrong with the paragraph of these kills, which are of one container.
fn wrong(kills: &[&Kill<'_>], summary: &str) -> Vec<String> {
    let first = kills[0];
    let limit = match limit_of(first.case, first.container) {
        Ok(limit) => limit,
        Err(doubt) => return vec![doubt],
    };
    let facts = Facts { kills, first, limit };
    let mut wrong = Vec::new();
    let mut parts: BTreeMap<&str, usize> = BTreeMap::new();
    for said in summary.strip_suffix('.').unwrap_or(summary).split(". ") {
        let Some((_, part, is_true)) = SENTENCES.iter().find(|(begins, ..)| said.starts_with(begins)) else {
            wrong.push(format!("this did not happen: \"{said}\""));
            continue;
        };
        *parts.entry(part).or_default() += 1;
        if let Err(truth) = is_true(said, &facts) {
            wrong.push(format!("{part}: {truth}, told as \"{said}\""));
        }
    }
    wrong.extend(
        PARTS.iter().filter(|p| !parts.contains_key(*p)).map(|p| format!("nothing of {p}: {summary}")),
    );
    wrong.extend(parts.iter().filter(|(_, n)| **n > 1).map(|(p, _)| format!("twice {p}: {summary}")));
    let Some((_, says, never)) = KINDS.iter().find(|(kind, ..)| first.case.kind.starts_with(kind)) else {
        wrong.push(format!("nobody knows the story of {}", first.case.kind));
        return wrong;
    };
    wrong.extend(
        says.iter().filter(|w| !summary.contains(**w)).map(|w| format!("no word of `{w}`: {summary}")),
    );
    wrong.extend(never.iter().filter(|w| summary.contains(**w)).map(|w| format!("no `{w}` was: {summary}")));
    wrong
}

/// What happened in a container.
struct Facts<'a> {
    kills: &'a [&'a Kill<'a>],
    first: &'a Kill<'a>,
    /// `None`: the node's own.
    limit: Option<&'a Group>,
}

impl<'a> Facts<'a> {
    fn age_s(&self) -> f64 {
        seconds(self.first.ktime_ns.saturating_sub(self.first.container.born_ns))
    }

    /// From the kill to the instant at which none of the case's cgroups was left.
    fn gone_s(&self) -> f64 {
        seconds(self.first.container.removed_ns.saturating_sub(self.first.ktime_ns))
    }

    #[expect(clippy::cast_precision_loss, reason = "of sizes told with one decimal")]
    fn limit_bytes(&self) -> Option<f64> {
        self.limit.and_then(|l| l.limit_bytes).map(|bytes| bytes as f64)
    }

    fn is_ramp(&self) -> bool {
        self.first.case.kind.starts_with("ramp")
    }

    /// The container of a process of this case, and the process's name.
    fn find(&self, pid: u32) -> Option<(&'a Group, Option<String>)> {
        let case = self.first.case;
        let (nth, container) =
            case.containers.iter().enumerate().find(|(_, c)| c.processes.iter().any(|p| p.pid == pid))?;
        let at = container.processes.iter().filter(|p| p.ours).position(|p| p.pid == pid);
        Some((container, mix::comm(&case.kind, nth, at)))
    }

    /// As a story names a process.
    fn name(&self, pid: u32) -> String {
        let known = self.find(pid).and_then(|(_, comm)| comm);
        let comm = known.unwrap_or_else(|| self.first.trigger_comm.clone());
        format!("\"{comm}\" (pid {pid})")
    }

    /// How the init ended: as each process did that the driver started in the container, whichever of them was the first.
    fn init(&self) -> Result<String, String> {
        let container = self.first.container;
        let mut ends = container.processes.iter().filter(|p| p.ours).map(|p| p.signal);
        let first = ends.next().ok_or("nobody was started in it")?;
        match (ends.all(|end| end == first), first) {
            (true, Some(signal)) => Ok(format!("signal {signal}")),
            (true, None) if !container.ended_badly => Ok("exit code 0".to_owned()),
            _ => Err("the driver cannot tell".to_owned()),
        }
    }
}

/// Bytes of `12.0 MiB`.
fn size(text: &str) -> Option<f64> {
    let (number, unit) = text.split_once(' ')?;
    let power = ["KiB", "MiB", "GiB"].iter().position(|u| *u == unit)?;
    Some(number.parse::<f64>().ok()? * 1024_f64.powi(i32::try_from(power).ok()? + 1))
}

fn right(is_right: bool, truth: impl FnOnce() -> String) -> Verdict {
    if is_right { Ok(()) } else { Err(truth()) }
}

fn who(said: &str, f: &Facts<'_>) -> Verdict {
    let container = f.first.container;
    let pod =
        f.first.case.pod.path.rsplit_once("-pod").map_or("", |(_, rest)| rest.trim_end_matches(".slice"));
    let id = container.container_id.get(..12).unwrap_or(&container.container_id);
    let place = format!(" in container {id} of pod {} on node {NODE}", pod.replace('_', "-"));
    let mut victims: Vec<String> = f.kills.iter().map(|k| f.name(k.pid)).collect();
    let before = match victims.len() {
        1 => "process ".to_owned(),
        n => format!("{n} processes, "),
    };
    let told = said.split_once(" UTC the kernel's OOM killer killed ").and_then(|(_, rest)| {
        let names = rest.strip_suffix(&place)?.strip_prefix(&before)?;
        if victims.len() == 1 { Some(names) } else { names.strip_suffix(',') }
    });
    let mut told: Vec<&str> = told.into_iter().flat_map(|names| names.split(", ")).collect();
    told.sort_unstable();
    victims.sort_unstable();
    right(told == victims, || format!("{before}{}{place}", victims.join(", ")))
}

/// The kernel takes whoever has most, so it is half of what there may be, and no more than that.
fn held(said: &str, f: &Facts<'_>) -> Verdict {
    let read = || {
        let (anon, rest) = said.strip_prefix("It held ")?.split_once(" of anonymous memory (")?;
        Some((size(anon)?, size(rest.strip_suffix(" resident in all)")?)?))
    };
    let (anon, rss) = read().ok_or("it held some memory")?;
    let within = f.limit_bytes().is_none_or(|limit| (limit / 2.0..=limit + MIB).contains(&anon));
    right(within && rss >= anon && f.kills.len() == 1, || format!("of {:?} bytes", f.limit_bytes()))
}

fn limit(said: &str, f: &Facts<'_>) -> Verdict {
    let Some((owner, limit)) = f.limit.zip(f.limit_bytes()) else {
        let node = "No memory limit was hit: the node itself had run out of memory";
        return right(said == node, || node.to_owned());
    };
    let whose = if owner.id == f.first.container.id {
        "the container's own".to_owned()
    } else {
        format!("not the container's own but that of its ancestor {},", owner.path)
    };
    let wanted = format!(
        "The limit that was hit is {whose} memory.max of {:.1} MiB; its usage at that instant was ",
        limit / MIB
    );
    let usage = said.strip_prefix(&wanted).and_then(size);
    let is_full = usage.is_some_and(|usage| (limit * 0.9..=limit + MIB).contains(&usage));
    right(is_full, || format!("{wanted}about that"))
}

fn trigger(said: &str, f: &Facts<'_>) -> Verdict {
    let pid = f.first.trigger_pid;
    let name = f.name(pid);
    if f.kills.iter().any(|k| k.pid == pid) {
        let asked = "asked for the memory that could not be had";
        let wanted = match f.kills.len() {
            1 => format!("The victim itself {asked}"),
            _ => format!("One of them, {name}, {asked}"),
        };
        // as it was told before it named which
        let unnamed = f.kills.len() > 1 && said == format!("One of them {asked}");
        return right(said == wanted || unnamed, || wanted);
    }
    let by = format!("The memory that could not be had was asked for by {name} in ");
    let place = said.strip_prefix(&by);
    match f.find(pid) {
        Some((container, _)) if container.id == f.first.container.id => {
            right(place == Some("the same cgroup"), || format!("{by}the same cgroup"))
        }
        Some((container, _)) => {
            right(place == Some(container.path.as_str()), || format!("{by}{}", container.path))
        }
        // of what is no part of the case only the trace is known, and not always its name
        None => {
            let is_nameless = f.first.trigger_comm == "<...>" && said.contains(&format!("(pid {pid}) in "));
            right(place.is_some() || is_nameless, || by.clone())
        }
    }
}

fn together(said: &str, f: &Facts<'_>) -> Verdict {
    let wanted = "The kernel kills all of the container together, since its memory.oom.group is set";
    right(f.first.case.kind == "group" && said == wanted, || {
        "memory.oom.group is set in the groups".to_owned()
    })
}

fn no_course(_: &str, f: &Facts<'_>) -> Verdict {
    right(!f.is_ramp(), || "a ramp can be seen to rise".to_owned())
}

fn course(said: &str, f: &Facts<'_>) -> Verdict {
    let read = || {
        let (span, rest) = said.strip_prefix("In the ")?.split_once(" s before, the container's memory ")?;
        let (course, last) = rest.split_once("; the last reading was ")?;
        let last: f64 = last.strip_suffix(" ms before the kill")?.parse().ok()?;
        let (from, to) = match course.strip_prefix("rose from ") {
            Some(course) => course.split_once(" to ")?,
            None => course.strip_prefix("stayed at ").map(|at| (at, at))?,
        };
        Some((span.parse::<f64>().ok()?, size(from)?, size(to)?, last / 1e3))
    };
    let (span, from, to, last) = read().ok_or("it began with nothing and rose, or stayed")?;
    let (age, most) = (f.age_s(), f.limit_bytes().unwrap_or(f64::INFINITY) + MIB);
    right(span <= age + TENTH_S && last <= span + TENTH_S, || format!("it was {age:.3} s old"))?;
    right(from <= to && to <= most, || format!("it rose to {most:.0} bytes at most"))?;
    let is_whole = from < most / 2.0 && to > most * 0.75 && span >= age.min(HISTORY_S) - EXCUSED_S;
    right(is_whole || !f.is_ramp(), || format!("in {age:.3} s it rose from nothing to its limit"))
}

/// None older than the container, and none of a limit that is not there.
fn warnings(said: &str, f: &Facts<'_>) -> Verdict {
    let of_limit = ["limit_near", "memory_high", "memory_max", "forecast_oom"];
    for one in said.trim_start_matches("Warnings: ").split(", ") {
        let read = || {
            let (kind, at) = one.split_once(' ')?;
            Some((kind, at.strip_suffix(" s before")?.parse::<f64>().ok()?))
        };
        let (kind, at) = read().ok_or_else(|| format!("`{one}` is no warning"))?;
        right(at <= f.age_s() + TENTH_S, || format!("it was {:.3} s old", f.age_s()))?;
        right(f.limit.is_some() || !of_limit.contains(&kind), || "it had no limit".to_owned())?;
    }
    Ok(())
}

fn end(said: &str, f: &Facts<'_>) -> Verdict {
    let how = f.init()?;
    let least = if f.first.case.kind == "child" { LIVES_ON_S } else { 0.0 };
    let after = said.strip_prefix(&format!("Its init process ended with {how}, ")).and_then(after_the_kill);
    let is_then = after.is_some_and(|s| (least - TENTH_S..=f.gone_s() + TENTH_S).contains(&s));
    right(is_then, || format!("with {how}, {least} to {:.3} s after the kill", f.gone_s()))
}

fn removal(said: &str, f: &Facts<'_>) -> Verdict {
    let after = said.strip_prefix("Its cgroup was removed ").and_then(after_the_kill);
    right(after.is_some_and(|s| s <= f.gone_s() + TENTH_S), || format!("{:.3} s after the kill", f.gone_s()))
}

/// Seconds of `0.7 s after the kill`.
fn after_the_kill(text: &str) -> Option<f64> {
    text.strip_suffix(" s after the kill")?.parse().ok()
}

#[cfg(test)]
#[path = "stories_tests.rs"]
mod tests;
