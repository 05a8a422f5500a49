//! Each way in which a story can be wrong, one by one: a judge that finds nothing wrong proves nothing.

use super::super::case::{Case, Group, Process};
use super::super::mix;
use super::super::score::{Kill, Truth};
use super::{KINDS, judge};
use serde_json::{Value, json};

const S: u64 = 1_000_000_000;
const MIB: u64 = 1 << 20;
const POD: &str = "/kubepods.slice/kubepods-pod00000001_0000_4000_8000_0000000000b4.slice";
const POD_UID: &str = "00000001-0000-4000-8000-0000000000b4";
const SELF: &str = "The victim itself asked for the memory that could not be had. ";
const ROSE: &str = "In the 3.0 s before, the container's memory rose from 0.0 KiB to 7.5 MiB; the last reading was 12 ms before the kill. ";
const NINE: &str = "Its init process ended with signal 9, 0.0 s after the kill. ";
const GONE: &str = "Its cgroup was removed 1.0 s after the kill.";

/// A case, its kills as victim and trigger, and what is told of them.
struct Told {
    case: Case,
    kills: Vec<(u32, u32)>,
    story: String,
}

/// Pids are 42, 43 … in each container, a hundred more in the next.
fn case(kind: &str, pod_mib: u64, containers: &[(u64, &[Option<i32>])]) -> Case {
    let group = |id: u64, path: String, mib: u64, is_hit: bool| Group {
        id,
        path,
        container_id: format!("{id:064x}"),
        limit_bytes: (mib > 0).then_some(mib * MIB),
        born_ns: 47 * S,
        removed_ns: 51 * S,
        oom: u64::from(mib > 0 && is_hit),
        ..Group::default()
    };
    let made = (0..).zip(containers).map(|(n, (mib, signals))| {
        let pids = (42 + 100 * n..).zip(*signals);
        let processes = pids.map(|(pid, signal)| Process { pid, signal: *signal, ours: true });
        let mut container = group(7 + u64::from(n), format!("{POD}/c{n}.scope"), *mib, true);
        container.processes = processes.collect();
        container.ended_badly = signals.iter().any(Option::is_some);
        container
    });
    let containers = made.collect();
    Case {
        name: format!("{kind}-0"),
        kind: kind.to_owned(),
        pod: group(6, POD.to_owned(), pod_mib, true),
        containers,
    }
}

fn killed(what: &str, nth: usize) -> String {
    let id = &format!("{:064x}", 7 + nth)[..12];
    format!(
        "At 2026-11-30 06:55:53.353 UTC the kernel's OOM killer killed {what} in container {id} of pod {POD_UID} on node bench. "
    )
}

fn own(limit: &str) -> String {
    format!(
        "The limit that was hit is the container's own memory.max of {limit}; its usage at that instant was {limit}. "
    )
}

fn pods(limit: &str) -> String {
    format!(
        "The limit that was hit is not the container's own but that of its ancestor {POD}, memory.max of {limit}; its usage at \
         that instant was {limit}. "
    )
}

/// A right story of each kind.
fn all() -> Vec<Told> {
    let nine = Some(9);
    let told = |case, kills: &[(u32, u32)], parts: &[&str]| Told {
        case,
        kills: kills.to_vec(),
        story: parts.concat(),
    };
    let mut child = case("child", 0, &[(12, &[None])]);
    child.containers[0].processes.push(Process { pid: 99, signal: None, ours: false });
    let ramp = |kind: &str| {
        let mut case = case(kind, 0, &[(32, &[nine])]);
        case.containers[0].born_ns = 10 * S;
        case
    };
    let app = killed("process \"app\" (pid 42)", 0);
    let rises = "In the 30.0 s before, the container's memory rose from 160.0 KiB to 31.9 MiB; the last reading was 25 ms before \
         the kill. Warnings: forecast_oom 1.8 s before, limit_near 0.7 s before. ";
    let mut all = vec![
        told(
            case("node", 0, &[(0, &[nine]), (0, &[nine])]),
            &[(42, 42)],
            &[
                &killed("process \"node-hog\" (pid 42)", 0),
                "It held 1.8 GiB of anonymous memory (1.8 GiB resident in all). ",
                "No memory limit was hit: the node itself had run out of memory. ",
                SELF,
                ROSE,
                NINE,
                GONE,
            ],
        ),
        told(
            case("init", 0, &[(8, &[nine])]),
            &[(42, 42)],
            &[
                &app,
                "It held 7.8 MiB of anonymous memory (9.2 MiB resident in all). ",
                &own("8.0 MiB"),
                SELF,
                ROSE,
                "Warnings: limit_near 0.1 s before. ",
                NINE,
                "Its cgroup was removed 0.2 s after the kill. Missing from the evidence: 2 rows of samples (late).",
            ],
        ),
        told(
            child,
            &[(99, 99)],
            &[
                &killed("process \"hog\" (pid 99)", 0),
                "It held 7.6 MiB of anonymous memory (9.1 MiB resident in all). ",
                &own("12.0 MiB"),
                SELF,
                ROSE,
                "Its init process ended with exit code 0, 0.7 s after the kill. ",
                GONE,
            ],
        ),
        told(
            case("group", 0, &[(16, &[nine, nine, nine])]),
            &[(44, 44), (42, 44), (43, 44)],
            &[
                &killed("3 processes, \"app\" (pid 44), \"worker\" (pid 43), \"worker\" (pid 42),", 0),
                &own("16.0 MiB"),
                "One of them, \"app\" (pid 44), asked for the memory that could not be had. ",
                "The kernel kills all of the container together, since its memory.oom.group is set. ",
                ROSE,
                NINE,
                GONE,
            ],
        ),
        told(
            case("pod-limit", 12, &[(0, &[nine]), (0, &[nine])]),
            &[(142, 142)],
            &[
                &killed("process \"app\" (pid 142)", 1),
                "It held 11.6 MiB of anonymous memory (13.1 MiB resident in all). ",
                &pods("12.0 MiB"),
                SELF,
                ROSE,
                NINE,
                GONE,
            ],
        ),
        told(
            case("short", 0, &[(6, &[nine])]),
            &[(42, 42)],
            &[
                &app,
                &own("6.0 MiB"),
                SELF,
                "No reading of its memory from before the kill was kept. ",
                NINE,
                "Its cgroup was removed 0.0 s after the kill.",
            ],
        ),
        told(
            case("storm", 0, &[(4, &[nine])]),
            &[(42, 42)],
            &[
                &killed("process \"storm\" (pid 42)", 0),
                &own("4.0 MiB"),
                SELF,
                "In the 3.0 s before, the container's memory stayed at 160.0 KiB; the last reading was 40 ms before the kill. ",
                NINE,
                GONE,
            ],
        ),
        told(
            case("sibling", 24, &[(0, &[nine]), (0, &[None])]),
            &[(42, 142)],
            &[
                &killed("process \"holder\" (pid 42)", 0),
                "It held 14.1 MiB of anonymous memory (15.6 MiB resident in all). ",
                &pods("24.0 MiB"),
                &format!(
                    "The memory that could not be had was asked for by \"asker\" (pid 142) in {POD}/c1.scope. "
                ),
                "In the 2.9 s before, the container's memory rose from 0.0 KiB to 14.2 MiB; the last reading was 10 ms before the \
                 kill. ",
                NINE,
                GONE,
            ],
        ),
    ];
    all.extend(
        ["ramp-1s", "ramp-5s", "ramp-20s"]
            .map(|kind| told(ramp(kind), &[(42, 42)], &[&app, &own("32.0 MiB"), SELF, rises, NINE, GONE])),
    );
    all
}

fn of(kind: &str) -> Told {
    all().into_iter().find(|t| t.case.kind == kind).expect(kind)
}

fn kills(told: &Told) -> Truth<'_> {
    let (case, mut kills) = (&told.case, Vec::new());
    for (pid, trigger_pid) in told.kills.iter().copied() {
        let container =
            case.containers.iter().find(|c| c.processes.iter().any(|p| p.pid == pid)).expect("its own");
        let trigger_comm = "<...>".to_owned();
        kills.push(Kill { case, container, pid, ktime_ns: 50 * S, trigger_pid, trigger_comm });
    }
    Truth { kills, doubts: Vec::new() }
}

fn incident(told: &Told, story: &str) -> Value {
    json!({"id": "i", "cgroup_id": kills(told).kills[0].container.id, "summary": story})
}

fn wrong(told: &Told, story: &str) -> Vec<String> {
    let stories = judge(&kills(told), &[incident(told, story)]);
    assert_eq!((stories.of, stories.right), (1, usize::from(stories.wrong.is_empty())));
    assert_eq!(stories.kinds[&told.case.kind], (stories.right, 1));
    stories.wrong
}

#[test]
fn a_right_story_of_each_kind_of_the_mix_is_right() {
    let all = all();
    for kind in mix::kinds() {
        assert_eq!(KINDS.iter().filter(|(begins, ..)| kind.starts_with(begins)).count(), 1, "{kind}");
        let told = all.iter().find(|t| t.case.kind == kind).expect(kind);
        assert_eq!(wrong(told, &told.story), Vec::<String>::new(), "{kind}");
    }
    let group = of("group");
    let unnamed = group.story.replace("One of them, \"app\" (pid 44), asked", "One of them asked");
    assert_eq!(wrong(&group, &unnamed), Vec::<String>::new(), "older agents do not say which");
}

#[test]
fn a_story_that_is_wrong_in_one_thing_is_wrong() {
    for (kind, what, instead) in [
        ("init", "\"app\" (pid 42)", "\"app\" (pid 43)"),
        ("init", "\"app\" (pid 42)", "\"workload\" (pid 42)"),
        ("init", "of pod 00000001", "of pod 00000002"),
        ("init", "in container 000", "in container 001"),
        ("init", "on node bench", "on node other"),
        ("init", "held 7.8 MiB", "held 0.1 MiB"),
        ("init", "held 7.8 MiB", "held 78.0 MiB"),
        ("init", "9.2 MiB resident", "5.2 MiB resident"),
        ("init", "the container's own memory.max", "the pod's own memory.max"),
        ("init", "memory.max of 8.0 MiB", "memory.max of 16.0 MiB"),
        ("init", "instant was 8.0 MiB", "instant was 3.0 MiB"),
        ("init", "; its usage at that instant was 8.0 MiB", "; its usage at that instant was not observed"),
        ("init", "instant was 8.0 MiB", "instant was 8.0 MiB, and 1.0 MiB of swap"),
        ("init", "The victim itself", "One of them"),
        ("init", "signal 9", "signal 15"),
        ("init", "signal 9", "exit code 137"),
        ("init", "0.0 s after the kill", "4.0 s after the kill"),
        ("init", "removed 0.2 s", "removed 2.0 s"),
        ("init", "limit_near 0.1 s", "limit_near 9.0 s"),
        ("init", "In the 3.0 s", "In the 9.0 s"),
        ("init", "rose from 0.0 KiB to 7.5 MiB", "rose from 0.0 KiB to 75.0 MiB"),
        ("init", "rose from 0.0 KiB to 7.5 MiB", "fell from 7.5 MiB to 0.0 KiB"),
        ("init", "rose from 0.0 KiB to 7.5 MiB", "rose from 7.5 MiB to 0.0 KiB"),
        ("init", "reading was 12 ms", "reading was 12000 ms"),
        (
            "node",
            "the node itself had run out",
            "the node's memory, or what the asking process may use of it, had run out",
        ),
        ("node", "Its init", "Warnings: limit_near 0.1 s before. Its init"),
        ("child", "\"hog\" (pid 99)", "\"app\" (pid 42)"),
        ("child", "exit code 0, 0.7 s", "exit code 3, 0.7 s"),
        ("child", "exit code 0, 0.7 s", "exit code 0, 0.1 s"),
        ("child", "exit code 0", "signal 9"),
        ("group", "3 processes, \"app\" (pid 44), \"worker\" (pid 43), ", "2 processes, \"app\" (pid 44), "),
        ("group", "\"worker\" (pid 43)", "\"app\" (pid 43)"),
        ("group", "One of them, \"app\" (pid 44),", "One of them, \"worker\" (pid 43),"),
        ("group", "One of them, \"app\" (pid 44),", "The victim itself"),
        ("pod-limit", "not the container's own but that of its ancestor", "the container's own and that of"),
        ("pod-limit", "ancestor /kubepods.slice/kubepods-pod", "ancestor /kubepods.slice, "),
        ("pod-limit", "memory.max of 12.0 MiB", "memory.max of 24.0 MiB"),
        ("sibling", "\"asker\" (pid 142)", "\"holder\" (pid 42)"),
        ("sibling", "/c1.scope", "/c0.scope"),
        ("sibling", "\"holder\" (pid 42) in container", "\"asker\" (pid 142) in container"),
        ("ramp-20s", "rose from 160.0 KiB to 31.9 MiB", "rose from 160.0 KiB to 1.9 MiB"),
        ("ramp-20s", "rose from 160.0 KiB to 31.9 MiB", "rose from 30.0 MiB to 31.9 MiB"),
        ("ramp-20s", "rose from 160.0 KiB to 31.9 MiB", "stayed at 31.9 MiB"),
        ("ramp-20s", "In the 30.0 s", "In the 20.0 s"),
    ] {
        let told = of(kind);
        assert!(told.story.contains(what), "{what} is not in: {}", told.story);
        let wrong = wrong(&told, &told.story.replacen(what, instead, 1));
        assert!(wrong.iter().any(|w| w.starts_with(&told.case.name)), "{kind}: {instead}");
    }
}

#[test]
fn a_trigger_in_the_same_container_that_is_no_victim_is_told_so() {
    let mut told = of("child");
    told.kills = vec![(99, 42)];
    let by = "The memory that could not be had was asked for by \"app\" (pid 42) in the same cgroup. ";
    assert_eq!(wrong(&told, &told.story.replace(SELF, by)), Vec::<String>::new());
    assert_eq!(wrong(&told, &told.story).len(), 1);
    // one of no container of the case: of its place nothing is known
    told.kills = vec![(99, 7)];
    let by = "The memory that could not be had was asked for by \"kworker\" (pid 7) in /init.scope. ";
    assert_eq!(wrong(&told, &told.story.replace(SELF, by)), Vec::<String>::new());
    assert_eq!(wrong(&told, &told.story.replace(SELF, &by.replace("pid 7", "pid 8"))).len(), 1);
}

#[test]
fn a_story_that_leaves_something_out_or_says_it_twice_is_wrong() {
    let told = of("init");
    let story = told.story.trim_end_matches('.');
    for required in [
        "At ",
        "The limit that was hit",
        "The victim itself",
        "In the ",
        "Its init process",
        "Its cgroup was removed",
    ] {
        let without: Vec<&str> = story.split(". ").filter(|s| !s.starts_with(required)).collect();
        assert_eq!(without.len(), story.split(". ").count() - 1, "{required}");
        let wrong_then = wrong(&told, &without.join(". "));
        assert!(wrong_then.iter().any(|w| w.contains("nothing of")), "{required}: {wrong_then:?}");
        let twice = story.split(". ").find(|s| s.starts_with(required)).expect(required);
        let wrong_then = wrong(&told, &format!("{story}. {twice}."));
        assert!(wrong_then.iter().any(|w| w.contains("twice")), "{required}: {wrong_then:?}");
    }
    assert!(!wrong(&told, "").is_empty());
    assert!(!wrong(&of("ramp-5s"), &of("short").story.replace("6.0 MiB", "32.0 MiB")).is_empty());
}

#[test]
fn what_did_not_happen_is_wrong_in_any_story() {
    for claim in [
        "It had been lowered from 500.0 MiB to 8.0 MiB at most 20 ms before the kill; who wrote it: cause not observed.",
        "Who asked for the memory was not observed.",
        "Which memory limit was hit was not observed.",
        "Its init process was not seen to end, and its cgroup was still there when this was written.",
        "Its cgroup was still there when this was written.",
        "Container 000000000000, the only one that started in this pod since, took its place 1.0 s after the kill.",
        "The signal was sent by \"kubelet\" (pid 3), uid 0 in /init.scope, a child of \"systemd\" (pid 1).",
        "Kubernetes says so too: OOMKilled, exit code 137.",
        "No memory had run out: the kill was asked for by SysRq.",
    ] {
        for told in all() {
            let wrong = wrong(&told, &format!("{} {claim}", told.story));
            assert!(!wrong.is_empty(), "{}: {claim}", told.case.name);
        }
    }
}

#[test]
fn each_container_has_one_story() {
    let told = of("init");
    let right = incident(&told, &told.story);
    for (incidents, words) in
        [(vec![], "no story"), (vec![right.clone(), right.clone()], "one story is told as 2")]
    {
        let stories = judge(&kills(&told), &incidents);
        assert_eq!((stories.of, stories.right), (1, 0));
        assert!(stories.wrong[0].contains(words), "{stories:?}");
    }
    assert_eq!(judge(&Truth::default(), &[right]).of, 0);
}
