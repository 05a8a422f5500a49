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

    /// The calls so far, with the paths of this machine taken out.
    fn calls(&self) -> Vec<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
        let text = fs::read_to_string(self.0.join("calls")).expect("the calls");
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

#[test]
fn a_kind_cluster_is_made_filled_shown_and_removed_by_these_calls() {
    let answers =
        [("kind", ""), ("helm", ""), ("kubectl", "case \"$*\" in *\"get pods\"*) echo pod/fgm-abc;; esac")];
    let stand = Stand::new("kind", &answers);
    for line in [
        "create --kind demo",
        "deploy --kind demo --image IMAGE",
        "status --kind demo",
        "viewer --kind demo --node demo-worker --port 9000",
        "destroy --kind demo",
    ] {
        good(&stand.run(line));
    }
    let kubectl = "kubectl --context kind-demo --namespace fgm";
    let expected = [
        "kind create cluster --name demo --wait 180s".to_owned(),
        "kind load image-archive DIR/image.tar --name demo".to_owned(),
        format!(
            "helm upgrade --install fgm ROOT/deploy/helm --kube-context kind-demo --namespace fgm --create-namespace \
             --set-string cluster=demo --set-string podAnnotations.fgm-image={MARK}"
        ),
        format!("{kubectl} label namespace fgm pod-security.kubernetes.io/enforce=privileged --overwrite"),
        format!("{kubectl} rollout status daemonset/fgm --timeout 240s"),
        format!("{kubectl} get daemonset,pods --output wide"),
        format!(
            "{kubectl} get pods --selector app.kubernetes.io/name=fgm --field-selector spec.nodeName=demo-worker --output name"
        ),
        format!("{kubectl} port-forward --address 127.0.0.1 pod/fgm-abc 9000:8050"),
        "kind delete cluster --name demo".to_owned(),
    ];
    assert_eq!(stand.calls(), expected);
}

#[test]
fn minikube_has_its_own_words() {
    let stand = Stand::new("minikube", &[("minikube", ""), ("helm", ""), ("kubectl", "")]);
    for line in ["create --minikube m", "deploy --minikube m --image IMAGE", "destroy --minikube m"] {
        good(&stand.run(line));
    }
    let calls = stand.calls();
    assert_eq!(calls[0], "minikube start --profile m");
    assert_eq!(calls[1], "minikube image load DIR/image.tar --profile m");
    assert!(
        calls[2].starts_with("helm upgrade --install fgm ROOT/deploy/helm --kube-context m "),
        "{calls:?}"
    );
    assert_eq!(calls.last().map(String::as_str), Some("minikube delete --profile m"));
    let viewer = stand.run("viewer --minikube m");
    assert_eq!(viewer.status.code(), Some(1));
    assert!(text(&viewer.stderr).contains("no agent runs in m"), "{}", text(&viewer.stderr));
}

#[test]
fn a_dry_run_shows_the_calls_and_makes_none() {
    let stand = Stand::new("dry", &[("kind", ""), ("helm", ""), ("kubectl", "")]);
    let output = stand.run("deploy --kind demo --dry-run");
    good(&output);
    assert_eq!(stand.calls(), Vec::<String>::new());
    let shown = text(&output.stdout);
    let first: Vec<&str> = shown.lines().map(|l| l.split(" /").next().unwrap_or(l)).collect();
    assert_eq!(first[..3], ["cargo xtask image", "cargo xtask image --workload", "kind load image-archive"]);
    assert!(shown.contains("helm upgrade --install") && shown.contains("rollout status"), "{shown}");
    let viewer = text(&stand.run("viewer --kind demo --dry-run").stdout);
    assert!(viewer.ends_with("port-forward --address 127.0.0.1 POD 8050:8050\n"), "{viewer}");
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
