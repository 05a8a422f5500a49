//! `cargo xtask cluster` against recorded stand-ins of kind, minikube, kubectl and helm: the exact calls, in their order, and what
//! happens when a tool is missing or fails. Must never run a real one: PATH has the stand-ins only.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder of stand-ins, each of which notes its call and answers as it was told.
struct Stand(PathBuf);

impl Stand {
    fn new(name: &str, tools: &[(&str, &str)]) -> Self {
        let dir = std::env::temp_dir().join(format!("fgm-cluster-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("bin")).expect("a folder");
        fs::write(dir.join("calls"), "").expect("a file");
        fs::write(dir.join("image.tar"), "an image").expect("a file");
        for (tool, answer) in tools {
            let path = dir.join("bin").join(tool);
            let script = format!("#!/bin/sh\necho \"{tool} $*\" >> {}/calls\n{answer}\n", dir.display());
            fs::write(&path, script).expect("a script");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        }
        Self(dir)
    }

    fn run(&self, line: &str) -> Output {
        let image = self.0.join("image.tar");
        let line = line.replace("IMAGE", image.to_str().expect("a path"));
        Command::new(env!("CARGO_BIN_EXE_xtask"))
            .arg("cluster")
            .args(line.split(' '))
            .env("PATH", self.0.join("bin"))
            .output()
            .expect("xtask runs")
    }

    /// The calls so far.
    fn calls(&self) -> Vec<String> {
        self.plain(&fs::read_to_string(self.0.join("calls")).expect("the calls"))
    }

    /// Its lines, with the paths of this machine taken out.
    fn plain(&self, text: &str) -> Vec<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
        let text = text.replace(root.to_str().expect("a path"), "ROOT");
        text.replace(self.0.to_str().expect("a path"), "DIR").lines().map(str::to_owned).collect()
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

fn good(output: &Output) {
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// sha256 of what `Stand` calls an image, its first 8 bytes.
const MARK: &str = "a5df3fde7b200c3f";

const ANSWERS: &str = "case \"$*\" in *\"get pods\"*) echo pod/fgm-abc;; esac";

/// All verbs in the order in which a person has them, of a cluster that is named so.
fn verbs(cluster: &str) -> [String; 5] {
    [
        format!("create {cluster}"),
        format!("deploy {cluster} --image IMAGE"),
        format!("status {cluster}"),
        format!("viewer {cluster} --node demo-worker --port 9000"),
        format!("destroy {cluster}"),
    ]
}

/// The calls that they make, where the cluster's own tool has these words.
fn expected(create: &str, load: &str, destroy: &str, context: &str) -> Vec<String> {
    let kubectl = format!("kubectl --context {context} --namespace fgm");
    vec![
        create.to_owned(),
        load.to_owned(),
        format!(
            "helm upgrade --install fgm ROOT/deploy/helm --kube-context {context} --namespace fgm --create-namespace \
             --set-string cluster=demo --set-string podAnnotations.fgm-image={MARK}"
        ),
        format!("{kubectl} label namespace fgm pod-security.kubernetes.io/enforce=privileged --overwrite"),
        format!("{kubectl} rollout status daemonset/fgm --timeout 240s"),
        format!("{kubectl} get daemonset,pods --output wide"),
        format!(
            "{kubectl} get pods --selector app.kubernetes.io/name=fgm --field-selector spec.nodeName=demo-worker --output name"
        ),
        format!("{kubectl} port-forward --address 127.0.0.1 pod/fgm-abc 9000:8050"),
        destroy.to_owned(),
    ]
}

fn of_kind() -> Vec<String> {
    expected(
        "kind create cluster --name demo --wait 180s",
        "kind load image-archive DIR/image.tar --name demo",
        "kind delete cluster --name demo",
        "kind-demo",
    )
}

/// Whose context has the profile's own name.
fn of_minikube() -> Vec<String> {
    expected(
        "minikube start --profile demo",
        "minikube image load DIR/image.tar --profile demo",
        "minikube delete --profile demo",
        "demo",
    )
}

#[test]
fn a_cluster_is_made_filled_shown_and_removed_by_these_calls() {
    for (tool, calls) in [("kind", of_kind()), ("minikube", of_minikube())] {
        let stand = Stand::new(tool, &[(tool, ""), ("helm", ""), ("kubectl", ANSWERS)]);
        for line in verbs(&format!("--{tool} demo")) {
            good(&stand.run(&line));
        }
        assert_eq!(stand.calls(), calls);
    }
}

/// What a dry run prints is what is called otherwise, of each verb, and nothing is called. Which pod it will be nobody knows before.
#[test]
fn a_dry_run_shows_the_calls_and_makes_none() {
    for (tool, calls) in [("kind", of_kind()), ("minikube", of_minikube())] {
        let stand = Stand::new(&format!("dry-{tool}"), &[]);
        let mut shown = String::new();
        for line in verbs(&format!("--{tool} demo")) {
            let output = stand.run(&format!("{line} --dry-run"));
            good(&output);
            shown += &text(&output.stdout);
        }
        let shown: Vec<String> =
            stand.plain(&shown).into_iter().map(|l| l.replace(" POD ", " pod/fgm-abc ")).collect();
        assert_eq!(shown, calls);
        assert_eq!(stand.calls(), Vec::<String>::new());
        // Without an archive both are built first.
        let output = stand.run(&format!("deploy --{tool} demo --dry-run"));
        good(&output);
        let shown = stand.plain(&text(&output.stdout));
        assert_eq!(shown[..2], ["cargo xtask image", "cargo xtask image --workload"]);
        let loads = ["fgm", "workload"]
            .map(|name| calls[1].replace("DIR/image.tar", &format!("ROOT/target/image/{name}.tar")));
        assert_eq!(shown[2..4], loads);
        assert_eq!(shown.len(), 7, "{shown:?}");
    }
}

#[test]
fn a_viewer_of_any_node_takes_the_first_agent_and_says_when_there_is_none() {
    for tool in ["kind", "minikube"] {
        let stand = Stand::new(&format!("viewer-{tool}"), &[("kubectl", ANSWERS)]);
        let output = stand.run(&format!("viewer --{tool} m"));
        good(&output);
        assert!(text(&output.stderr).contains("pod/fgm-abc is at http://127.0.0.1:8050/"), "{output:?}");
        let context = if tool == "kind" { "kind-m" } else { "m" };
        let kubectl = format!("kubectl --context {context} --namespace fgm");
        assert_eq!(
            stand.calls(),
            [
                format!("{kubectl} get pods --selector app.kubernetes.io/name=fgm --output name"),
                format!("{kubectl} port-forward --address 127.0.0.1 pod/fgm-abc 8050:8050"),
            ]
        );
        let none = Stand::new(&format!("none-{tool}"), &[("kubectl", "")]);
        let output = none.run(&format!("viewer --{tool} m --node n"));
        assert_eq!(output.status.code(), Some(1));
        let words = text(&output.stderr);
        assert!(
            words.contains(&format!("no agent runs on node n in {context}: cargo xtask cluster deploy")),
            "{words}"
        );
    }
}

#[test]
fn a_status_is_what_kubectl_says_and_its_failure_too() {
    let table = "echo 'daemonset.apps/fgm 2 2 2'";
    let stand = Stand::new("status", &[("kubectl", table)]);
    for cluster in ["--kind m", "--minikube m"] {
        let output = stand.run(&format!("status {cluster}"));
        good(&output);
        assert_eq!(text(&output.stdout), "daemonset.apps/fgm 2 2 2\n");
    }
    let calls = ["kind-m", "m"].map(|context| {
        format!("kubectl --context {context} --namespace fgm get daemonset,pods --output wide")
    });
    assert_eq!(stand.calls(), calls);
    let gone = Stand::new("gone", &[("kubectl", "echo 'error: context \"m\" does not exist' >&2; exit 1")]);
    let output = gone.run("status --minikube m");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("does not exist"), "{}", text(&output.stderr));
}

#[test]
fn tools_are_looked_for_first_and_named_with_the_way_to_get_them() {
    let stand = Stand::new("missing", &[("kind", "")]);
    let output = stand.run("deploy --kind demo --image IMAGE");
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("helm is not in PATH") && said.contains("kubectl is not in PATH"), "{said}");
    assert!(said.contains("get-helm-3") && !said.contains("kind is not in PATH"), "{said}");
    assert_eq!(stand.calls(), Vec::<String>::new(), "nothing is done by halves");
}

#[test]
fn a_tool_that_fails_ends_it_with_its_own_words() {
    let stand = Stand::new(
        "fails",
        &[
            ("kind", ""),
            ("kubectl", ""),
            ("helm", "echo 'Error: Kubernetes cluster unreachable' >&2; exit 1"),
        ],
    );
    let output = stand.run("deploy --kind broken --image IMAGE");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("Kubernetes cluster unreachable"), "{}", text(&output.stderr));
    assert_eq!(stand.calls().len(), 2, "load and install, and nothing after the failure");
    let no_image = stand.run("deploy --kind demo --image /nonexistent.tar");
    assert!(text(&no_image.stderr).contains("/nonexistent.tar"), "{}", text(&no_image.stderr));
    assert_eq!(stand.run("deploy").status.code(), Some(2));
}
