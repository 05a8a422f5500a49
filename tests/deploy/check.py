"""The chart: linted, rendered with each switch, valid for three Kubernetes versions, least privilege, equal to the plain manifests.

`check.py` checks; `check.py --write` renders deploy/manifests anew. Prints a line a check and `N passed, N failed` at the end.
"""

import pathlib
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
        if doc["kind"] == "PodMonitor":  # a custom resource, in no schema of Kubernetes' own
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
    check("optional resources appear when asked for", {"NetworkPolicy", "PodMonitor"} <= kinds, kinds)
    check("and only then", not {"NetworkPolicy", "PodMonitor"} & {d["kind"] for d in render({})})
    check("deploy/manifests is what the chart renders (else: check.py --write)", MANIFEST.read_text() == plain())
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    check("the chart's version is the agent's", f'version = "{version}"' in (ROOT / "Cargo.toml").read_text(), version)
    print(f"{passed} passed, {failed} failed")
    return failed != 0


sys.exit(main())
