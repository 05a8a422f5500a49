//! `cargo xtask scenario` in a cluster, against recorded stand-ins of kubectl and fgm: the exact calls, in their order, what is made of the
//! answers, and what is left of a run whose xtask was killed. Must never run a real one: PATH has the stand-ins only.

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// A folder of stand-ins, each of which notes its call and gives the answer that a file has.
struct Stand(PathBuf);

const KUBECTL: &str = "case \"$*\" in \
    *daemonset*) answer agents;; *'get pods'*) answer pods;; *' logs '*) echo '[pod/app/app] hello';; \
    *apply*) [ -e refused ] && { cat refused >&2; rm refused; exit 1; };; esac; exit 0";
/// `export` writes what it was asked for into its last word.
const FGM: &str = "case \"$1\" in incidents) answer incidents; exit 3;; events) answer events;; metrics) answer metrics;; \
    export) for last; do :; done; answer rows > \"$last\";; esac; exit 0";

impl Stand {
    fn new(name: &str, tools: &[&str]) -> Self {
        let dir = std::env::temp_dir().join(format!("fgm-scenario-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("bin")).expect("a folder");
        let stand = Self(dir);
        stand.write("calls", "");
        for tool in tools {
            let path = stand.0.join("bin").join(tool);
            let body = if *tool == "fgm" { FGM } else { KUBECTL };
            let script = format!(
                "#!/bin/sh\nPATH=/usr/bin:/bin\ncd {}\nanswer() {{ cat \"$1\"; }}\necho \"{tool} $*\" >> calls\n{body}\n",
                stand.0.display()
            );
            fs::write(&path, script).expect("a script");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        }
        stand.answer("agents", &json!({"status": {"numberReady": 2, "desiredNumberScheduled": 2}}));
        stand.answer("pods", &pods(&ended(141)));
        stand.answer("incidents", &json!({"incidents": [crash()], "total": 1, "unanswered": []}));
        stand.write("events", &format!("{}\n{}\n", exit("writer", 13, None), exit("app", 0, Some(141))));
        stand.write("rows", "rows");
        stand
    }

    fn write(&self, name: &str, text: &str) {
        // At once, since a stand-in may read it now.
        let fresh = self.0.join(format!("{name}.new"));
        fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, self.0.join(name))).expect("a file");
    }

    fn answer(&self, name: &str, value: &Value) {
        self.write(name, &value.to_string());
    }

    fn command(&self, line: &str) -> Command {
        let fgm = self.0.join("bin/fgm");
        let line = line.replace("FGM", fgm.to_str().expect("a path"));
        let mut c = Command::new(env!("CARGO_BIN_EXE_xtask"));
        c.arg("scenario").args(line.split(' ')).stdin(Stdio::null());
        c.env("PATH", self.0.join("bin")).env("FGM_RUNS", self.0.join("runs")).env_remove("KUBECONFIG");
        c
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().expect("xtask runs")
    }

    fn json(&self, line: &str) -> Value {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        last(&output)
    }

    fn runs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.join("runs")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn record(&self) -> Value {
        let path = self.0.join("runs").join(&self.runs()[0]).join("run.json");
        serde_json::from_str(&fs::read_to_string(path).expect("the record")).expect("JSON")
    }

    /// The calls since the last question, with what differs from run to run taken out.
    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.0.join("calls")).expect("the calls");
        self.write("calls", "");
        let mut calls = calls.replace(self.0.to_str().expect("a path"), "DIR");
        if let Some(run) = self.runs().first() {
            calls = calls.replace(run, "RUN").replace(&run.to_lowercase(), "run");
        }
        let mut after_time = false;
        let mut word = |w: &str| {
            let is_time = std::mem::replace(&mut after_time, w == "--from" || w == "--to");
            // That of the end is Kubernetes', and the same each time.
            if is_time && !w.starts_with("1790") { "TIME".to_owned() } else { w.to_owned() }
        };
        calls.lines().map(|line| line.split(' ').map(&mut word).collect::<Vec<_>>().join(" ")).collect()
    }

    /// Until `what` is so; a test that waits in vain says what was told.
    fn until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let is_so = (0..1200).any(|_| is_so(self) || (sleep(Duration::from_millis(50)), false).1);
        assert!(is_so, "{what}: {:?}", self.calls());
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn last(output: &Output) -> Value {
    serde_json::from_str(text(&output.stdout).lines().last().expect("a line")).expect("JSON")
}

fn pods(statuses: &Value) -> Value {
    json!({"items": [{"metadata": {"name": "app", "uid": "u-1"}, "spec": {"nodeName": "worker"},
                      "status": {"phase": "Running", "containerStatuses": statuses}}]})
}

/// 2026-09-21T14:13:20Z is 1,790,000,000 s.
fn ended(code: i32) -> Value {
    json!([{"name": "app", "containerID": "containerd://aaa", "restartCount": 0, "state": {"terminated":
        {"containerID": "containerd://aaa", "startedAt": "2026-09-21T14:13:20Z", "finishedAt": "2026-09-21T14:13:23Z", "exitCode": code}}}])
}

fn running() -> Value {
    json!([{"name": "app", "containerID": "containerd://aaa", "restartCount": 0,
            "state": {"running": {"startedAt": "2026-09-21T14:13:20Z"}}}])
}

fn crash() -> Value {
    json!({"kind": "crash", "pod_uid": "u-1", "container_id": "aaa", "closed": true, "exit": {"code": 141}, "summary": "It crashed."})
}

fn exit(comm: &str, signal: i32, code: Option<i32>) -> Value {
    json!({"kind": "exit", "container_id": "aaa", "comm": comm, "signal": signal, "exit_code": code, "severity": "warning",
           "detail": {"is_init": signal == 0}})
}

const RUN: &str = "run sigpipe-crash --on kind --cluster demo --fgm FGM --json";

fn kubectl(rest: &str) -> String {
    format!("kubectl --context kind-demo {rest}")
}

fn logs() -> String {
    kubectl(
        "--namespace fgm-run logs --selector fgm/run=RUN --all-containers --prefix --tail -1 --max-log-requests 64",
    )
}

fn delete() -> String {
    kubectl("delete namespace --selector fgm/run=RUN --wait=false")
}

fn get_pods() -> String {
    kubectl("--namespace fgm-run get pods --selector fgm/run=RUN --output json")
}

fn asks(to: &str) -> [String; 2] {
    let fgm = |what: &str, rest: &str| {
        format!("fgm {what} --all-nodes --context kind-demo --json {rest} --from TIME --to {to}")
    };
    [fgm("incidents", "--limit 10000"), fgm("events", "--namespace fgm-run")]
}

fn exports() -> [String; 2] {
    ["html", "parquet"].map(|ending| {
        format!(
            "fgm export --all-nodes --context kind-demo --namespace fgm-run --from TIME --to TIME --output DIR/runs/RUN/RUN.{ending}"
        )
    })
}

/// Of a run that is over: no more is told than until 3.5 s after the end that Kubernetes has.
const END: &str = "1790000006.500000";

#[test]
fn a_run_comes_to_its_end_is_judged_and_exported_by_these_calls() {
    let stand = Stand::new("whole", &["kubectl", "fgm"]);
    let output = stand.run(RUN);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let outcome = last(&output);
    let keys: Vec<&String> = outcome.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["html", "met", "missing", "parquet", "run", "scenario", "unexpected"]);
    assert_eq!(
        (outcome["met"].as_array().map(Vec::len), &outcome["scenario"]),
        (Some(3), &json!("sigpipe-crash"))
    );
    let runs = stand.runs();
    assert_eq!((runs.len(), &outcome["run"]), (1, &json!(runs[0])));
    for file in ["html", "parquet"] {
        let path = outcome[file].as_str().expect("a path");
        assert_eq!(fs::read_to_string(path).expect("the file"), "rows");
    }
    let mut expected = vec![
        kubectl("--namespace fgm get daemonset fgm --output json"),
        kubectl("apply --filename DIR/runs/RUN/deploy.yaml"),
        get_pods(),
        asks(END)[0].clone(),
    ];
    expected.extend(asks(END));
    expected.extend([logs(), delete()]);
    expected.extend(exports());
    assert_eq!(stand.calls(), expected);
    let folder = stand.0.join("runs").join(&runs[0]);
    let manifest = fs::read_to_string(folder.join("deploy.yaml")).expect("what was applied");
    assert_eq!(manifest.matches(&format!("fgm/run: \"{}\"", runs[0])).count(), 2, "namespace and pod");

    // What it left is there for later verbs, and nothing is asked twice.
    let status = &stand.json("status --json")[0];
    assert_eq!(
        (&status["state"], &status["note"], &status["label"]),
        (&json!("ended"), &json!("as expected"), &json!(format!("fgm/run={}", runs[0])))
    );
    assert_eq!(text(&stand.run("logs sigpipe-crash").stdout), "[pod/app/app] hello\n");
    assert_eq!(stand.calls(), Vec::<String>::new());
    assert_eq!(stand.json(&format!("export {} --json", runs[0])), outcome);
    assert_eq!(stand.calls(), exports());
    assert!(text(&stand.run("stop sigpipe-crash").stderr).contains("has ended before"));
    assert_eq!(stand.calls(), [delete()], "once more is no harm");
}

#[test]
fn what_is_missing_or_unexpected_on_any_node_is_told_and_is_exit_code_1() {
    let stand = Stand::new("unmet", &["kubectl", "fgm"]);
    stand.answer("pods", &pods(&ended(1)));
    let kill = json!({"kind": "oom_kill", "pod_uid": "u-1", "container_id": "aaa", "closed": true, "summary": "Killed."});
    let other = json!({"kind": "crash", "pod_uid": "u-2", "container_id": "bbb", "namespace": "shop", "closed": false});
    let silent = json!([{"node": "worker", "why": "gone"}, {"node": "else", "why": "gone"}]);
    stand.answer("incidents", &json!({"incidents": [kill, other], "unanswered": silent}));
    stand.write("events", "");
    // Kubernetes makes a namespace's account after the namespace.
    stand.write("refused", "error: serviceaccount \"default\" not found");
    let output = stand.run(RUN);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let outcome = last(&output);
    let missing = outcome["missing"].to_string();
    assert_eq!(outcome["missing"].as_array().map(Vec::len), Some(5), "{missing}");
    assert!(
        missing.contains("node worker: gone")
            && missing.contains("exit code 1, and 141")
            && !missing.contains("else"),
        "{missing}"
    );
    assert_eq!(outcome["unexpected"], json!(["1 × incident \"oom_kill\": Killed."]), "another's is not ours");
    let calls = stand.calls();
    assert_eq!(calls.iter().filter(|c| c.contains(" apply ")).count(), 2, "{calls:?}");
    assert_eq!(stand.json("status sigpipe-crash --json")[0]["note"], "not as expected");
}

#[test]
fn a_series_is_the_highest_row_of_any_node() {
    let stand = Stand::new("series", &["kubectl", "fgm"]);
    let names = ["small", "large", "quota", "free"];
    let statuses = names.map(|name| {
        let mut status = running()[0].clone();
        (status["name"], status["containerID"]) = (json!(name), json!(format!("containerd://{name}")));
        status
    });
    stand.answer("pods", &pods(&json!(statuses)));
    stand.answer("incidents", &json!({"incidents": [], "unanswered": []}));
    stand.write("events", "");
    stand.answer("metrics", &json!({"metrics": [{"name": "memory_current", "kind": "gauge"}]}));
    let rows = |bytes: u64| json!([{"container_id": "large", "ktime_ns": 1, "memory_current": bytes}, {"container_id": "small", "ktime_ns": 1}]);
    stand.answer("rows", &rows(15_000_000));
    let outcome = stand.json("run quiet --on minikube --fgm FGM --json");
    assert_eq!(outcome["met"], json!(["memory_current of large ≥ 14000000"]));
    let calls = stand.calls();
    let asked = "fgm export --all-nodes --context minikube --namespace fgm-run --from TIME --to TIME --metrics memory_current --output DIR/runs/RUN/series.json";
    assert!(
        calls.contains(&asked.to_owned()) && calls.contains(&"fgm metrics memory_current --json".to_owned()),
        "{calls:?}"
    );
    stand.answer("rows", &rows(13_000_000));
    let output = stand.run("run quiet --context minikube --fgm FGM --json");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(last(&output)["missing"], json!(["memory_current of large ≥ 14000000; at the most 13000000"]));
}

#[test]
fn what_the_kubelet_set_decides_what_is_expected() {
    let stand = Stand::new("kubelet", &["kubectl", "fgm"]);
    // The sidecar is there as long as the pod is.
    let mut sidecar = running()[0].clone();
    (sidecar["name"], sidecar["containerID"]) = (json!("sidecar"), json!("containerd://bbb"));
    stand.answer("pods", &pods(&json!([ended(137)[0], sidecar])));
    let kill = json!({"kind": "oom_kill", "container_id": "aaa", "pod_uid": "u-1", "closed": true, "history_s": 25.0,
                      "cgroup_path": "/pod/aaa", "limit": {"cgroup_path": "/pod/aaa"}, "exit": {"signal": 9},
                      "victims": [{"comm": "hog"}, {"comm": "app"}], "summary": "Killed."});
    stand.answer("incidents", &json!({"incidents": [kill], "unanswered": []}));
    let event = |kind: &str, signal: i32| json!({"kind": kind, "container_id": "aaa", "comm": "hog", "signal": signal, "severity": "warning", "detail": {}});
    let told = ["forecast_oom", "limit_near", "oom_kill", "oom_kill", "exit", "exit"];
    let told: Vec<String> =
        told.iter().map(|kind| event(kind, if *kind == "exit" { 9 } else { 0 }).to_string()).collect();
    stand.write("events", &told.join("\n"));
    stand.answer("metrics", &json!({"metrics": [{"name": "memory_oom_group", "kind": "limit"}]}));
    let rows = |group: u8| json!([{"container_id": "aaa", "ktime_ns": 1, "memory_oom_group": group}]);
    stand.answer("rows", &rows(1));
    let output = stand.run("run oom-kill --context c --fgm FGM --json");
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let keys: Vec<String> =
        last(&output).as_object().expect("an object").keys().map(ToString::to_string).collect();
    let mut promised = ["run", "scenario", "met", "missing", "unexpected", "html", "parquet"];
    promised.sort_unstable();
    assert_eq!(keys, promised);
    let words = text(&output.stderr);
    assert!(words.contains("by the rules for a cluster: the kubelet set memory.oom.group"), "{words}");
    stand.answer("rows", &rows(0));
    let output = stand.run("run oom-kill --context c --fgm FGM --json");
    let missing = last(&output)["missing"].to_string();
    assert!(missing.contains("exit code 137, and 0 was to be"), "{missing}");
}

#[test]
fn a_scenario_that_cannot_be_played_says_why_and_leaves_nothing() {
    let stand = Stand::new("broken", &["kubectl", "fgm"]);
    let waits = json!({"waiting": {"reason": "ErrImagePull", "message": "no such image"}});
    stand.answer("pods", &pods(&json!([{"name": "app", "state": waits}])));
    let output = stand.run(RUN);
    assert_eq!(output.status.code(), Some(1));
    let missing = last(&output)["missing"].to_string();
    assert!(missing.contains("no such image") && missing.contains("cargo xtask cluster deploy"), "{missing}");
    assert!(stand.calls().contains(&delete()));
    assert_eq!(stand.record()["state"], "failed");
    // Nor where no agent answers, who may answer later.
    stand.write("incidents", "");
    let output = stand.run(RUN);
    assert!(text(&output.stderr).contains("fgm incidents printed no JSON"), "{}", text(&output.stderr));
    assert!(stand.calls().iter().any(|c| c.contains(" delete namespace ")));
    stand.answer("incidents", &json!({"incidents": [], "unanswered": []}));
    let missing = stand.json("export sigpipe-crash --json")["missing"].to_string();
    assert!(missing.contains("no such image"), "{missing}");
    stand.write("refused", "error: forbidden");
    let output = stand.run(RUN);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("error: forbidden"), "{}", text(&output.stderr));
    assert_eq!(stand.json("status sigpipe-crash --json")[0]["state"], "failed");
}

/// A run that goes on until it is stopped.
fn playing(stand: &Stand) -> Child {
    stand.answer("pods", &pods(&running()));
    let child = stand.command(RUN).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("xtask runs");
    stand.until("it asks for its pods", |s| {
        fs::read_to_string(s.0.join("calls")).is_ok_and(|c| c.contains("get pods"))
    });
    stand.until("it has noted them", |s| s.record()["seen"]["started_us"].is_i64());
    child
}

#[test]
fn a_run_whose_xtask_was_killed_is_asked_stopped_and_exported() {
    let stand = Stand::new("killed", &["kubectl", "fgm"]);
    let mut child = playing(&stand);
    let status = &stand.json("status --json")[0];
    assert_eq!((&status["note"], &status["watched"]), (&json!("playing"), &json!(true)));
    child.kill().and_then(|()| child.wait()).expect("killed");
    stand.calls();
    let status = &stand.json("status sigpipe-crash --json")[0];
    assert_eq!((&status["state"], &status["watched"]), (&json!("playing"), &json!(false)));
    assert_eq!(status["pods"][0]["containers"], json!(["app running"]));
    assert!(status["note"].as_str().is_some_and(|n| n.contains("nobody waits")), "{status}");
    let table = text(&stand.run("status").stdout);
    assert!(table.contains("kind demo") && table.contains("app running, 0 restarts"), "{table}");
    assert_eq!(text(&stand.run("logs sigpipe-crash").stdout), "[pod/app/app] hello\n");
    assert_eq!(stand.calls(), [get_pods(), get_pods(), logs()]);

    // An export takes what there is by now, and again when there is more.
    let outcome = stand.json("export sigpipe-crash --json");
    assert_eq!(outcome["met"].as_array().map(Vec::len), Some(3));
    assert_eq!(stand.json("stop sigpipe-crash --json")["state"], "stopped");
    stand.answer("incidents", &json!({"incidents": [], "unanswered": []}));
    let stopped = stand.json("export sigpipe-crash --json");
    assert_eq!(stopped["missing"].as_array().map(Vec::len), Some(1), "{stopped}");
    let mut expected = vec![get_pods()];
    expected.extend(asks("TIME"));
    expected.extend(exports());
    expected.extend([get_pods(), logs(), delete()]);
    expected.extend(asks("TIME"));
    expected.extend(exports());
    assert_eq!(stand.calls(), expected);
    assert_eq!(stand.json("status --json")[0]["state"], "stopped");
}

#[test]
fn a_run_that_is_stopped_elsewhere_or_interrupted_ends() {
    let stand = Stand::new("stopped", &["kubectl", "fgm"]);
    let child = playing(&stand);
    assert!(stand.run("stop sigpipe-crash").status.success());
    let output = child.wait_with_output().expect("its end");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("the run was stopped; cargo xtask scenario export"),
        "{}",
        text(&output.stderr)
    );

    let stand = Stand::new("interrupted", &["kubectl", "fgm"]);
    let child = playing(&stand);
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill").success());
    let output = child.wait_with_output().expect("its end");
    assert!(text(&output.stderr).contains("interrupted, and stopped"), "{}", text(&output.stderr));
    assert_eq!((&stand.record()["state"], stand.calls().last()), (&json!("stopped"), Some(&delete())));
}

#[test]
fn a_detached_run_is_waited_for_in_the_background() {
    let stand = Stand::new("detached", &["kubectl", "fgm"]);
    stand.answer("pods", &pods(&running()));
    let output = stand.run("run sigpipe-crash --on kind --cluster demo --fgm FGM --detach");
    assert_eq!(text(&output.stdout).trim(), stand.runs()[0]);
    stand.until("it waits", |s| s.json("status --json")[0]["watched"] == true);
    stand.answer("pods", &pods(&ended(141)));
    stand.until("it has ended", |s| s.json("status --json")[0]["state"] == "ended");
    let log = stand.0.join("runs").join(&stand.runs()[0]).join("watch.log");
    stand.until("it is exported", |_| fs::read_to_string(&log).is_ok_and(|words| words.ends_with("}\n")));
    let words = fs::read_to_string(&log).expect("its words");
    assert!(words.contains("\"missing\":[]"), "{words}");
}

#[test]
fn what_lacks_is_named_with_the_mend_before_anything_is_made() {
    let stand = Stand::new("lacks", &["kubectl", "fgm"]);
    for (agents, said) in [
        ("{\"status\":{\"desiredNumberScheduled\":2}}", "of 2 agents in kind demo none is ready"),
        ("", "no agents in kind demo"),
    ] {
        stand.write("agents", agents);
        if agents.is_empty() {
            let script = "#!/bin/sh\necho 'Error from server (NotFound): daemonsets.apps \"fgm\" not found' >&2; exit 1\n";
            fs::write(stand.0.join("bin/kubectl"), script).expect("a script");
        }
        let output = stand.run(RUN);
        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(words.contains(said) && words.contains("cargo xtask cluster deploy --kind demo"), "{words}");
    }
    fs::remove_file(stand.0.join("bin/kubectl")).expect("removed");
    let words = text(&stand.run(RUN).stderr);
    assert!(words.contains("kubectl is not in PATH. To get it:\n    curl"), "{words}");
    assert_eq!(stand.runs(), Vec::<String>::new());
}

#[test]
fn a_dry_run_shows_the_calls_and_makes_none() {
    let stand = Stand::new("dry", &["kubectl"]);
    let output = stand.run("run shop --on kind --dry-run");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!((stand.calls(), stand.runs()), (vec![], vec![]));
    let shown = text(&output.stdout);
    let verbs = [
        "get daemonset",
        " apply ",
        "get pods",
        "fgm incidents",
        "fgm events",
        " logs ",
        " delete ",
        "fgm export",
        "fgm export",
    ];
    assert_eq!(shown.lines().count(), verbs.len(), "{shown}");
    for (line, verb) in shown.lines().zip(verbs) {
        assert!(line.contains(verb) && line.contains("--context kind-kind "), "{line}");
    }
}

#[test]
fn wrong_words_are_refused_with_what_would_be_right() {
    let stand = Stand::new("wrong", &["kubectl"]);
    for (line, said) in [
        ("run sigpipe-crash --on moon", "there are vm, host, kind and minikube"),
        ("run sigpipe-crash --on vm --cluster a", "--cluster goes with --on kind or --on minikube only"),
        ("run sigpipe-crash --on host --detach", "--detach goes with --on kind"),
        ("run sigpipe-crash --on kind --kernel 6.1", "--kernel goes with --on vm only"),
        ("run sigpipe-crash --on kind --cluster ../a", "is no name"),
        ("run sigpipe-crash --on kind --context a", "--context goes without --on"),
        ("run nothing --on kind", "no scenario `nothing`"),
        ("status nothing", "neither a run nor a scenario: cargo xtask scenario status lists"),
        ("export sigpipe-crash", "has not been run: cargo xtask scenario run sigpipe-crash"),
        ("stop ../calls", "neither a run nor a scenario"),
        ("stop", "neither the NAME of a scenario nor a RUN"),
        ("stop a b", "`b` is a second"),
        ("logs a --json", "unknown option `--json`"),
    ] {
        let output = stand.run(line);
        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {words}");
        assert!(words.contains(said), "{line}: {words}");
    }
    let output = stand.run("status");
    assert!(
        output.status.success() && text(&output.stderr).contains("no runs in"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(stand.calls(), Vec::<String>::new());
}

/// The record of a run in the test VM, as `run` leaves it before it plays.
fn in_vm(stand: &Stand, watcher: &Value) -> PathBuf {
    let folder = stand.0.join("runs/quiet-1");
    fs::create_dir_all(&folder).expect("a folder");
    let record = json!({
        "run": "quiet-1", "scenario": "quiet", "place": "vm", "label": "fgm/run=quiet-1", "state": "playing", "from_us": 5_000_000,
        "watcher": watcher, "folder": folder, "fgm": stand.0.join("bin/fgm"),
    });
    fs::write(folder.join("run.json"), record.to_string()).expect("a record");
    folder
}

fn began(pid: u32) -> u64 {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).expect("a process");
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19)?.parse().ok()).expect("its start")
}

#[test]
fn a_run_in_the_vm_is_ended_with_its_process_and_exported_from_its_folder() {
    let stand = Stand::new("vm", &["fgm"]);
    let mut process = Command::new("sleep").arg("600").process_group(0).spawn().expect("a process");
    let pid = process.id();
    let folder = in_vm(&stand, &json!({"pid": pid, "began": began(pid)}));
    assert_eq!(stand.json("status quiet-1 --json")[0]["watched"], true);
    let none = stand.run("export quiet");
    assert!(text(&none.stderr).contains("has recorded nothing"), "{}", text(&none.stderr));
    fs::create_dir(folder.join("data")).expect("a folder");
    fs::write(folder.join("agent.log"), "the agent's words\n").expect("a log");
    assert_eq!(stand.json("stop quiet --json")["state"], "stopped");
    assert!(!process.wait().expect("its end").success());
    assert_eq!(text(&stand.run("logs quiet").stdout), "the agent's words\n");
    let outcome = stand.json("export quiet --json");
    assert_eq!(outcome["missing"], json!(["the scenario itself: it was ended before its end"]));
    assert!(outcome["html"].as_str().is_some_and(|p| Path::new(p).exists()), "{outcome}");
    let call = "fgm export --from 5.000000 --to TIME --data DIR/runs/RUN/data -o DIR/runs/RUN/RUN.";
    let calls: Vec<String> =
        stand.calls().iter().map(|c| c.replace("--from TIME", "--from 5.000000")).collect();
    assert_eq!(calls, ["html", "parquet"].map(|ending| format!("{call}{ending}")));
}

#[test]
fn a_run_in_the_vm_whose_xtask_was_killed_is_no_longer_waited_for() {
    let stand = Stand::new("vm-killed", &["fgm"]);
    // A later process of the same number.
    in_vm(&stand, &json!({"pid": std::process::id(), "began": began(std::process::id()) + 1}));
    let status = &stand.json("status --json")[0];
    assert!(status["note"].as_str().is_some_and(|n| n.contains("its xtask has ended")), "{status}");
    assert_eq!(stand.json("stop quiet --json")["state"], "stopped");
}
