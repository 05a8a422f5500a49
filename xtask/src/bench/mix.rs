//! Which kills the evidence benchmark makes, how many of each kind, and what each is made of. Values only.
//! Called by `play`.

/// What is asked of one process.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub role: Vec<String>,
    /// It must end before the case is over; the others are ended.
    pub awaited: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    pub limit: Option<&'static str>,
    pub group_kill: bool,
    /// Written to its processes' oom_score_adj by the driver.
    pub oom_score_adj: Option<i32>,
    pub parts: Vec<Part>,
}

/// Pods that are played at one instant, as one case each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub kind: &'static str,
    pub pod_limit: Option<&'static str>,
    pub containers: Vec<Container>,
    /// All processes wait for one instant.
    pub gate: bool,
    /// Its cgroups are removed at once after the kill.
    pub at_once: bool,
}

/// A kind: kills of a thousand, kills of one case, and the case.
type Kind = (&'static str, usize, usize, fn() -> Plan);

/// Longest first, so that the end does not wait for them.
const KINDS: &[Kind] = &[
    ("ramp-20s", 30, 1, || ramp("ramp-20s", "15", "20")),
    ("ramp-5s", 30, 1, || ramp("ramp-5s", "28", "5")),
    ("ramp-1s", 40, 1, || ramp("ramp-1s", "2", "1")),
    ("storm", 150, STORM, || storm(STORM)),
    ("init", 202, 1, || one("init", "8M", part("blast --bytes 16M --after 0.7 --name app"))),
    ("child", 180, 1, || {
        let app = format!("hog-child --bytes 16M --over 0.2 --after 0.7 --linger {LIVES_ON_S} --name app");
        one("child", "12M", part(&app))
    }),
    ("group", 120, 3, group),
    ("pod-limit", 120, 1, || {
        let app = container(None, part("blast --bytes 24M --after 0.7 --name app"));
        let pause = container(None, background("steady --bytes 64K --for 60 --name pause"));
        Plan { kind: "pod-limit", pod_limit: Some("12M"), containers: vec![pause, app], ..Plan::default() }
    }),
    ("short", 100, 1, || Plan { at_once: true, ..one("short", "6M", part("blast --bytes 12M --name app")) }),
    ("sibling", 28, 1, sibling),
];

/// How long the init of `child` outlives the child that is killed.
pub const LIVES_ON_S: f64 = 0.7;
/// Containers of one storm: more than are to go in a second, since not all of them find a processor in it.
const STORM: usize = 75;
/// Kills of a storm that are to be within one second.
pub const IN_A_SECOND: usize = 50;

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn part(line: &str) -> Part {
    Part { role: words(line), awaited: true }
}

fn background(line: &str) -> Part {
    Part { role: words(line), awaited: false }
}

fn container(limit: Option<&'static str>, part: Part) -> Container {
    Container { limit, parts: vec![part], ..Container::default() }
}

fn one(kind: &'static str, limit: &'static str, part: Part) -> Plan {
    Plan { kind, containers: vec![container(Some(limit), part)], ..Plan::default() }
}

/// No swap, anonymous, even: the kill that gives no other warning than the slope. More than the limit, so that the limit is
/// reached at nine tenths of the time.
fn ramp(kind: &'static str, after: &str, over: &str) -> Plan {
    one(kind, "32M", part(&format!("ramp --bytes 35M --after {after} --over {over} --name app")))
}

fn group() -> Plan {
    let parts = vec![
        part("steady --bytes 2M --for 60 --name worker"),
        part("steady --bytes 2M --for 60 --name worker"),
        part("blast --bytes 32M --after 0.7 --name app"),
    ];
    let app = Container { limit: Some("16M"), group_kill: true, parts, ..Container::default() };
    Plan { kind: "group", containers: vec![app], ..Plan::default() }
}

/// The container that holds most is killed when its neighbour asks for more; the neighbour comes through.
fn sibling() -> Plan {
    let victim = container(None, part("steady --bytes 14M --for 60 --name holder"));
    let asker = container(None, part("ramp --bytes 12M --after 2 --over 1 --name asker"));
    Plan { kind: "sibling", pod_limit: Some("24M"), containers: vec![victim, asker], ..Plan::default() }
}

fn storm(of: usize) -> Plan {
    let one = || container(Some("4M"), part("blast --bytes 8M --after stdin --name storm"));
    Plan { kind: "storm", containers: (0..of).map(|_| one()).collect(), gate: true, ..Plan::default() }
}

/// The node itself runs out of memory: whoever was told to be the first goes.
pub fn node() -> Plan {
    let hog = Container {
        oom_score_adj: Some(1000),
        parts: vec![part("blast --bytes 3G --after stdin --name node-hog")],
        ..Container::default()
    };
    // with nobody left to kill, the hog dying and its memory not given back yet, the kernel panics
    let next = Container {
        oom_score_adj: Some(900),
        parts: vec![background("steady --bytes 64K --for 120 --name node-next")],
        ..Container::default()
    };
    // not before they were told so
    Plan { kind: "node", containers: vec![hog, next], gate: true, ..Plan::default() }
}

/// All kinds that there can be in a run.
#[cfg(test)]
pub fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(name, ..)| *name).chain(["node"])
}

/// What the kernel calls a process: the `at`th that is started in the `nth` container of a case of this kind, or, with `None`, a child
/// of one.
pub fn comm(kind: &str, nth: usize, at: Option<usize>) -> Option<String> {
    let plan = match kind {
        "node" => node(),
        kind => KINDS.iter().find(|(name, ..)| *name == kind)?.3(),
    };
    let parts = &plan.containers.get(nth)?.parts;
    let Some(at) = at else {
        // the role names its child itself
        return parts.iter().any(|p| p.role.iter().any(|w| w == "hog-child")).then(|| "hog".to_owned());
    };
    parts.get(at)?.role.iter().skip_while(|w| *w != "--name").nth(1).cloned()
}

/// As many cases of each kind as give some `kills` in all, at least one of each, those of a kind spread over the whole.
pub fn plan(kills: usize) -> Vec<Plan> {
    let mut all: Vec<(usize, usize, Plan)> = Vec::new();
    for (nth, (_, share, of_one, make)) in KINDS.iter().enumerate() {
        let wanted = (kills * share).div_ceil(1000).max(1);
        // a storm of a short run is a small one
        let count = wanted.div_ceil(*of_one);
        for n in 0..count {
            let mut plan = make();
            if plan.gate && kills < 1000 {
                plan = storm(wanted.clamp(2, STORM));
            }
            // ramps at once, since they last; what is quick comes bit by bit
            let place = if nth < 3 { 0 } else { (n * 1000 + 500) / count };
            all.push((place, nth, plan));
        }
    }
    all.sort_by_key(|(place, nth, _)| (*place, *nth));
    all.into_iter().map(|(.., plan)| plan).collect()
}

#[cfg(test)]
mod tests {
    use super::{KINDS, comm, kinds, plan};

    fn kills(of: usize) -> usize {
        let killed = |kind: &str, parts: usize| if kind == "sibling" { 1 } else { parts };
        plan(of)
            .iter()
            .map(|p| {
                let awaited = p.containers.iter().flat_map(|c| &c.parts).filter(|p| p.awaited).count();
                killed(p.kind, awaited)
            })
            .sum()
    }

    #[test]
    fn each_process_of_a_kind_has_a_name() {
        for kind in kinds() {
            assert!(comm(kind, 0, Some(0)).is_some(), "{kind}");
        }
        let name = |kind, nth, at| comm(kind, nth, at).unwrap_or_default();
        assert_eq!([name("sibling", 1, Some(0)), name("group", 0, Some(1))], ["asker", "worker"]);
        assert_eq!([name("child", 0, None), name("init", 0, None)], ["hog", ""]);
        assert_eq!(comm("init", 1, Some(0)), None);
    }

    #[test]
    fn shares_are_of_a_thousand_and_each_kind_is_there() {
        assert_eq!(KINDS.iter().map(|(_, share, ..)| share).sum::<usize>(), 1000);
        assert_eq!(kills(1000), 1000);
        for of in [1, 20, 300] {
            let plan = plan(of);
            assert!(KINDS.iter().all(|(name, ..)| plan.iter().any(|p| p.kind == *name)), "{of}");
            assert!((of..of + 20).contains(&kills(of)), "{of}: {}", kills(of));
        }
    }
}
