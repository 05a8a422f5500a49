//! Agents in nodes that are containers themselves, as kind has them: several cgroup and pid namespaces side by side on one
//! kernel, each agent in one of them. Run like `kernel_agent.rs`, whose stage it shares.
//!
//! Truth: NSpid of /proc/PID/status as the host has it, inode numbers, a private tracefs instance, wait(2), and what the
//! processes print about themselves.

#[path = "kernel_nested/node.rs"]
mod node;
#[expect(dead_code, reason = "shared with kernel_agent.rs, which uses the rest")]
#[path = "kernel_agent/stage.rs"]
mod stage;

use node::{Node, inode, kind};
use serde_json::Value;
use stage::{Agent, Cgroup, MIB, Pod, Victims, guard, ints, texts, wait};
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(150);

/// Not a test: the body of the processes that the tests start from this very binary.
#[test]
fn child_role() {
    if let Ok(role) = std::env::var(stage::ROLE) {
        stage::play(&role);
    }
}

/// An event as the table has it: cgroup, kind, pid.
fn events(agent: &Agent) -> Vec<(Option<i64>, String, Option<i64>)> {
    let mut out = Vec::new();
    for batch in agent.stored("events") {
        let (cgroup, pid, kind) = (ints(&batch, "cgroup_id"), ints(&batch, "pid"), texts(&batch, "kind"));
        out.extend((0..batch.num_rows()).map(|i| (cgroup[i], kind[i].clone().expect("a kind"), pid[i])));
    }
    out
}

fn column(agent: &Agent, table: &str, name: &str) -> BTreeSet<i64> {
    agent.stored(table).iter().flat_map(|batch| ints(batch, name)).flatten().collect()
}

fn has_history(agent: &Agent, cgroup: &Cgroup) -> bool {
    agent.stored("samples").iter().any(|batch| {
        let (ids, causes) = (ints(batch, "cgroup_id"), texts(batch, "cause"));
        let id = Some(cgroup.id().cast_signed());
        ids.into_iter().zip(causes).any(|(of, cause)| of == id && cause.as_deref() == Some("history"))
    })
}

/// Nothing in any table of this agent is of a cgroup outside its node.
fn sees_only_its_own(agent: &Agent, node: &Node) {
    let own = node.cgroup_ids();
    for table in ["events", "samples", "processes", "incidents"] {
        let seen = column(agent, table, "cgroup_id");
        assert!(!seen.is_empty(), "{table} has rows");
        assert!(seen.is_subset(&own), "{table}: {:?} are not of the node", seen.difference(&own));
    }
    let status = agent.status();
    assert_eq!(status["cgroups"]["known"].as_u64(), Some(own.len() as u64), "{status}");
    assert_ne!(status["lane"]["source"], "pread", "{status}");
    assert!(status["events_outside"].as_u64() > Some(0), "the others' events came, and were dropped");
}

fn is_of(incident: &Value, cgroup: &Cgroup, path: &str, pod: &Pod) {
    assert_eq!(incident["cgroup_id"].as_u64(), Some(cgroup.id()), "{incident}");
    assert_eq!(incident["cgroup_path"].as_str(), Some(path), "{incident}");
    assert_eq!(incident["container_id"].as_str(), Some(cgroup.container_id.as_str()), "{incident}");
    assert_eq!(incident["pod_uid"].as_str(), Some(pod.uid.as_str()), "{incident}");
    assert_eq!(incident["victims"][0]["cgroup_id"].as_u64(), Some(cgroup.id()), "{incident}");
}

fn pid_of(value: &Value) -> Option<u32> {
    value["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
}

#[test]
fn two_nodes_side_by_side_see_their_own_containers_only() {
    if !guard("two_nodes_side_by_side_see_their_own_containers_only") {
        return;
    }
    let (a, b) = (Node::start(), Node::start());
    let (in_a, in_b) = (a.agent("node-a"), b.agent("node-b"));
    let (pod_a, pod_b) = (Pod::below(&a.path, None), Pod::below(&b.path, None));
    let (hungry, steady) = (pod_a.container(Some(64 * MIB)), pod_b.container(Some(64 * MIB)));
    let truth = Victims::begin();
    let mut neighbour = b.container("hold 1", &steady);
    let mut victim = a.container("ramp 100 8", &hungry);
    assert_ne!(victim.host, victim.node);
    victim.wait();
    assert_eq!(truth.pids(), BTreeSet::from([victim.host]));

    let i = in_a.closed_incident_of(&hungry, LIMIT);
    assert_eq!(i["kind"], "oom_kill");
    is_of(&i, &hungry, &a.inside(&hungry), &pod_a);
    assert_eq!(pid_of(&i["victims"][0]), Some(victim.node), "{i}");
    assert_eq!(pid_of(&i["trigger"]), Some(victim.node), "{i}");
    assert_eq!(i["limit"]["cgroup_id"].as_u64(), Some(hungry.id()));
    assert_eq!(i["limit"]["cgroup_path"].as_str(), Some(a.inside(&hungry).as_str()));
    assert_eq!((i["limit"]["max_bytes"].as_u64(), &i["limit"]["source"]), (Some(64 * MIB), &"fentry".into()));
    assert_eq!(i["exit"]["signal"], 9, "it was the init: {i}");
    assert_eq!(in_b.incidents(), Vec::<Value>::new());

    // a kill within b
    let killer = b.run(&format!("echo $$; kill -9 {}", neighbour.node));
    let killer: u32 = killer.trim().parse().expect("a pid");
    neighbour.wait();
    let i = in_b.closed_incident_of(&steady, LIMIT);
    assert_eq!((&i["kind"], &i["exit"]["signal"]), (&"killed".into(), &9.into()), "{i}");
    is_of(&i, &steady, &b.inside(&steady), &pod_b);
    assert_eq!(pid_of(&i["victims"][0]), Some(neighbour.node), "{i}");
    assert_eq!(pid_of(&i["killer"]), Some(killer), "{i}");
    assert_eq!(i["killer"]["cgroup_path"].as_str(), Some("/init.scope"), "{i}");
    assert_eq!(in_a.incidents().len(), 1);

    // and one from outside: its sender has no pid and no place in a
    let other = pod_a.container(None);
    let mut stranded = a.container("hold 1", &other);
    let kill = format!("kill -9 {}", stranded.host);
    assert!(std::process::Command::new("sh").args(["-c", &kill]).status().expect("sh").success());
    stranded.wait();
    let i = in_a.closed_incident_of(&other, LIMIT);
    assert_eq!((&i["kind"], pid_of(&i["victims"][0])), (&"killed".into(), Some(stranded.node)), "{i}");
    assert_eq!((&i["killer"]["pid"], &i["killer"]["cgroup_path"]), (&Value::Null, &Value::Null), "{i}");
    assert_eq!(i["killer"]["comm"], "sh");
    let summary = i["summary"].as_str().expect("a summary");
    assert!(summary.contains("pid not visible from here"), "{summary}");
    assert!(summary.contains("a cgroup outside what this agent sees"), "{summary}");

    // of two segments that are closed from now on the second has all that there is by now
    let before = [&in_a, &in_b].map(|agent| (agent, agent.segments().len()));
    wait("two segments of each", LIMIT, || before.iter().all(|(agent, n)| agent.segments().len() > n + 1));
    sees_only_its_own(&in_a, &a);
    sees_only_its_own(&in_b, &b);
    assert!(has_history(&in_a, &hungry), "the lane's walk began at the node's own root");
    for (agent, container, cgroup) in [(&in_a, &victim, &hungry), (&in_b, &neighbour, &steady)] {
        let all = events(agent);
        let pid = Some(i64::from(container.node));
        let of = |kind: &str, id: Option<u64>| {
            all.iter().any(|(cgroup, k, p)| {
                k == kind && *p == pid && id.is_none_or(|id| *cgroup == Some(id.cast_signed()))
            })
        };
        // it comes into its cgroup after its exec
        assert!(of("exec", None) && of("exit", Some(cgroup.id())), "pid {pid:?}: {all:?}");
        assert!(
            !all.iter().any(|(_, _, p)| *p == Some(i64::from(container.host))),
            "a pid of the host's: {all:?}"
        );
        assert!(column(agent, "processes", "pid").contains(&i64::from(container.node)));
    }
}

#[test]
fn a_limit_above_the_agents_root_is_named_for_what_it_is() {
    if !guard("a_limit_above_the_agents_root_is_named_for_what_it_is") {
        return;
    }
    let node = Node::start();
    let agent = node.agent("node");
    let pod = Pod::below(&node.path, None);
    for (limiting, path, words) in [
        (node.path.clone(), Some("/"), "that of the cgroup in which this whole node lives,"),
        (kind(), None, "that of a cgroup above all that this agent sees,"),
    ] {
        let app = pod.container(None);
        fs::write(limiting.join("memory.swap.max"), "0").expect("memory.swap.max");
        fs::write(limiting.join("memory.max"), (160 * MIB).to_string()).expect("memory.max");
        let mut victim = node.container("ramp 300 4", &app);
        victim.wait();
        fs::write(limiting.join("memory.max"), "max").expect("memory.max");
        let i = agent.closed_incident_of(&app, LIMIT);
        assert_eq!(pid_of(&i["victims"][0]), Some(victim.node), "{i}");
        assert_eq!(i["limit"]["cgroup_id"].as_u64(), Some(inode(&limiting)), "{i}");
        assert_eq!(
            (i["limit"]["cgroup_path"].as_str(), i["limit"]["max_bytes"].as_u64()),
            (path, Some(160 * MIB))
        );
        let summary = i["summary"].as_str().expect("a summary");
        assert!(summary.contains(words), "{summary}");
    }
}

#[test]
fn who_looks_from_outside_sees_the_innermost_container() {
    if !guard("who_looks_from_outside_sees_the_innermost_container") {
        return;
    }
    let node = Node::start();
    let agent = Agent::start_with("host", "");
    let pod = Pod::below(&node.path, None);
    let app = pod.container(Some(64 * MIB));
    let mut victim = node.container("ramp 100 4", &app);
    victim.wait();
    let i = agent.closed_incident_of(&app, LIMIT);
    is_of(&i, &app, &format!("/kind/docker-{}.scope{}", node.id, node.inside(&app)), &pod);
    assert_eq!(pid_of(&i["victims"][0]), Some(victim.host), "{i}");
    assert_eq!((&i["limit"]["cgroup_id"], &i["exit"]["signal"]), (&app.id().into(), &9.into()), "{i}");
}
