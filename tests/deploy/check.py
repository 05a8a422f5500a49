"""The chart: linted, rendered with each switch, valid for three Kubernetes versions, least privilege, equal to the plain manifests.
The scenarios' deploy.yaml: valid for the same, and what Pod Security calls restricted. The manifests as kubectl builds them; a machine without
kubectl skips that, and fails where it is CI (`CI=true`).

`check.py` checks; `check.py --write` renders deploy/manifests anew. Prints a line a check and `N passed, N failed` at the end.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import helm_python
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm"
MANIFEST = ROOT / "deploy/manifests/fgm.yaml"
VERSIONS = ["1.25", "1.30", "1.36"]
CASES = {
    "default": {},
    "privileged": {"privileged": True},
    "ptrace": {"sysPtrace": True},
    "no names": {"kubernetes": {"enabled": False}},
    "everything": {
        "cluster": "c1",
        "env": {"FGM_BUDGET_ROWS_PER_SECOND": "2000"},
        "imagePullSecrets": [{"name": "pull"}],
        "affinity": {"nodeAffinity": {}},
        "appArmorProfile": "Localhost/fgm",
        "seLinuxOptions": {"type": "spc_t"},
        "networkPolicy": {"enabled": True, "from": [{"namespaceSelector": {}}]},
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "node"},
    },
}
passed = failed = 0


def check(what, good, why=""):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    print(("ok   " if good else "FAIL ") + what + ("" if good else f": {why}"))


def render(values):
    chart = helm_python.Chart.load(str(CHART))
    texts = chart.render(values, name="fgm", namespace="fgm")
    return [doc for name in sorted(texts) for doc in yaml.safe_load_all(texts[name]) if doc]


def plain():
    """What people without Helm apply: the default rendering, with the namespace that it is put in."""
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "fgm", "labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
    }
    head = "# Rendered from deploy/helm by tests/deploy/check.py --write; a test holds that they are equal.\n"
    return head + yaml.safe_dump_all([namespace, *render({})], sort_keys=False, explicit_start=True)


def validate(case, docs):
    for doc in docs:
        if doc["apiVersion"].startswith("monitoring.coreos.com/"):  # custom resources, in no schema of Kubernetes' own
            continue
        for version in VERSIONS:
            what = f"{case}: {doc['kind']} is valid for Kubernetes {version}"
            try:
                kubernetes_validate.validate(doc, version, strict=True)
                check(what, True)
            except Exception as e:
                check(what, False, str(e)[:300])


def privilege(case, docs, capabilities, privileged):
    pod = next(d for d in docs if d["kind"] == "DaemonSet")["spec"]["template"]["spec"]
    agent = pod["containers"][0]["securityContext"]
    check(f"{case}: read-only root file system", agent["readOnlyRootFilesystem"] is True)
    check(f"{case}: privileged is {privileged}", agent["privileged"] is privileged)
    if not privileged:
        check(f"{case}: all capabilities dropped", agent["capabilities"]["drop"] == ["ALL"])
        check(f"{case}: only {capabilities} added", agent["capabilities"]["add"] == capabilities, agent["capabilities"])
        check(f"{case}: no privilege escalation", agent["allowPrivilegeEscalation"] is False)
        check(f"{case}: default seccomp profile", pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault")
    check(f"{case}: host pids, since kernel events carry them", pod["hostPID"] is True)
    check(f"{case}: neither host network nor host ipc", not pod.get("hostNetwork") and not pod.get("hostIPC"))
    mounts = pod["containers"][0]["volumeMounts"]
    check(f"{case}: only the data folder is writable", [m["name"] for m in mounts if not m.get("readOnly")] == ["data"])


def pss():
    """The capability and the reading that it is for come and go together."""
    name = "FGM_SAMPLING_PSS_BUDGET_MS"

    def budgets(values):
        pod = next(d for d in render(values) if d["kind"] == "DaemonSet")["spec"]["template"]["spec"]
        return [e["value"] for e in pod["containers"][0]["env"] if e["name"] == name]

    check("no PSS is read unless asked for", budgets({}) == [], budgets({}))
    for values in [{"sysPtrace": True}, {"sysPtrace": True, "privileged": True}]:
        got = budgets(values)
        check(f"{values} has time for PSS", len(got) == 1 and 0 < int(got[0]) <= 1000, got)
    own = budgets({"sysPtrace": True, "env": {name: "50"}})
    check("a budget of one's own stands alone", own == ["50"], own)
    known = name.removeprefix("FGM_SAMPLING_").lower()
    check("the agent knows that setting", f'"sampling.{known}"' in (ROOT / "agent/src/config.rs").read_text(), known)


def lifecycle():
    """What keeps an agent on every node, and takes it away in good order."""
    spec = next(d for d in render({}) if d["kind"] == "DaemonSet")["spec"]
    pod = spec["template"]["spec"]
    agent = pod["containers"][0]
    check("a node a tenth at a time", spec["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == "10%")
    check("on every node, whatever its taints", pod["tolerations"] == [{"operator": "Exists"}])
    check("evicted last", pod["priorityClassName"] == "system-node-critical")
    check("time to write what is in memory", pod["terminationGracePeriodSeconds"] > 20)
    for probe, path in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz"), ("startupProbe", "/healthz")]:
        check(f"{probe} asks {path} of the health port", agent[probe]["httpGet"] == {"path": path, "port": "health"})
    check("a memory limit, and no CPU limit that would stop a burst", set(agent["resources"]["limits"]) == {"memory"})
    host = {v["name"]: v["hostPath"]["path"] for v in pod["volumes"]}
    paths = {"data": "/var/lib/fgm", "cgroup": "/sys/fs/cgroup", "tracefs": "/sys/kernel/tracing"}
    check("of the host: data, cgroups and tracefs, no more", host == paths, host)
    docs = render({"appArmorProfile": "Localhost/fgm", "seLinuxOptions": {"type": "spc_t"}})
    template = next(d for d in docs if d["kind"] == "DaemonSet")["spec"]["template"]
    key = "container.apparmor.security.beta.kubernetes.io/agent"
    check("an AppArmor profile is named as asked", template["metadata"]["annotations"] == {key: "localhost/fgm"})
    check("an SELinux type too", template["spec"]["securityContext"]["seLinuxOptions"] == {"type": "spc_t"})


def network():
    policy = lambda **v: next(d for d in render({"networkPolicy": {"enabled": True, **v}}) if d["kind"] == "NetworkPolicy")["spec"]
    check("in: the health port only", policy()["ingress"] == [{"ports": [{"port": "health"}]}], policy()["ingress"])
    check("out: the API server's ports only", policy()["egress"] == [{"ports": [{"port": 443}, {"port": 6443}]}])
    closed = policy(apiServerPorts=[])
    check("out: nowhere, when so asked", "Egress" in closed["policyTypes"] and "egress" not in closed)


def scenarios():
    files = sorted((ROOT / "scenarios").glob("*/deploy.yaml"))
    check("every scenario has a deploy.yaml", len(files) == len(list((ROOT / "scenarios").glob("*/scenario.toml"))), files)
    for file in files:
        name = file.parent.name
        docs = list(yaml.safe_load_all(file.read_text()))
        validate(name, docs)
        own = {d["metadata"].get("namespace", d["metadata"]["name"]) for d in docs}
        check(f"{name}: in a namespace of its own", own == {f"fgm-{name}"}, own)
        for doc in docs:
            spec = doc["spec"]["template"]["spec"] if doc["kind"] == "Job" else doc.get("spec")
            if doc["kind"] not in ("Pod", "Job"):
                continue
            whole = spec["securityContext"]
            safe = whole["runAsNonRoot"] and whole["seccompProfile"]["type"] == "RuntimeDefault"
            for c in spec["containers"]:
                own = c["securityContext"]
                safe = safe and own["capabilities"] == {"drop": ["ALL"]} and own["allowPrivilegeEscalation"] is False
            check(f"{name}: {doc['metadata']['name']} is restricted, without a token", safe and spec["automountServiceAccountToken"] is False)


def kustomize():
    kubectl = shutil.which("kubectl")
    if not kubectl and os.environ.get("CI") != "true":
        print("SKIPPED kustomize: there is no kubectl here")
        return
    check("there is a kubectl", kubectl, "Debian's package kubernetes-client has it")
    if not kubectl:
        return
    built = subprocess.run([kubectl, "kustomize", ROOT / "deploy/manifests"], capture_output=True, text=True, timeout=60)
    kinds = {d["kind"] for d in yaml.safe_load_all(built.stdout) if d}
    check("kubectl kustomize builds deploy/manifests", built.returncode == 0 and {"Namespace", "DaemonSet"} <= kinds, built.stderr)


def rights(case, docs, wanted):
    # what the agent may do with the API, and whether it has a token for it
    roles = [d for d in docs if d["kind"] == "ClusterRole"]
    rules = [(r["apiGroups"], r["resources"], r["verbs"]) for d in roles for r in d["rules"]]
    check(f"{case}: the API may be used for {wanted}", rules == wanted, rules)
    bound = [(d["roleRef"]["name"], d["subjects"][0]) for d in docs if d["kind"] == "ClusterRoleBinding"]
    account = {"kind": "ServiceAccount", "name": "fgm", "namespace": "fgm"}
    check(f"{case}: bound to the agent's account alone", bound == [("fgm", account)] * len(wanted), bound)
    pod = next(d for d in docs if d["kind"] == "DaemonSet")["spec"]["template"]["spec"]
    check(f"{case}: a token only where it is used", pod["automountServiceAccountToken"] is bool(wanted))
    others = {"Role", "RoleBinding"} & {d["kind"] for d in docs}
    check(f"{case}: no other right", not others, others)


def main():
    if sys.argv[1:] == ["--write"]:
        MANIFEST.write_text(plain())
        return 0
    lint = helm_python.lint(str(CHART))
    grave = [m for m in lint["messages"] if m["severity"] > 1] + lint["errors"]
    check("helm lint", lint["total_charts_linted"] == 1 and not grave, grave)
    for case, values in CASES.items():
        validate(case, render(values))
    privilege("default", render({}), ["BPF", "PERFMON"], False)
    privilege("ptrace", render({"sysPtrace": True}), ["BPF", "PERFMON", "SYS_PTRACE"], False)
    privilege("privileged", render({"privileged": True}), None, True)
    rights("default", render({}), [([""], ["pods"], ["list", "watch"])])
    rights("no names", render({"kubernetes": {"enabled": False}}), [])
    kinds = {d["kind"] for d in render(CASES["everything"])}
    optional = {"NetworkPolicy", "PodMonitor", "Service", "ServiceMonitor"}
    check("optional resources appear when asked for", optional <= kinds, kinds)
    check("and only then", not optional & {d["kind"] for d in render({})})
    pss()
    lifecycle()
    network()
    scenarios()
    kustomize()
    check("deploy/manifests is what the chart renders (else: check.py --write)", MANIFEST.read_text() == plain())
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    check("the chart's version is the agent's", f'version = "{version}"' in (ROOT / "Cargo.toml").read_text(), version)
    print(f"{passed} passed, {failed} failed")
    return failed != 0


sys.exit(main())
