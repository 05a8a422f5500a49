//! `deploy.yaml` of each scenario, rendered from its `scenario.toml`, so that both play the same. Text in, text out; a cluster is
//! never asked. Called by `scenario manifests`; tests/deploy holds what it writes against Kubernetes' schemas.
//!
//! What Kubernetes cannot be asked for (`memory.oom.group`, `pids.max`, `io.max` are the node's to set) is said in the file.

use super::{Container, Scenario, folder, names};
use crate::progress::say;
use anyhow::{Context as _, Result, bail};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

const HEAD: &str = "\
# Rendered from scenario.toml by `cargo xtask scenario manifests --write`; a test holds that they are equal.
# Its image: `cargo xtask image --workload`.
";

/// On each object of a run, with the run's id.
pub const RUN_LABEL: &str = "fgm/run";

/// The namespace of a scenario, or of one run of it: two runs have nothing in common then.
pub fn namespace(name: &str) -> String {
    format!("fgm-{}", name.to_lowercase())
}

fn path(name: &str) -> PathBuf {
    folder().join(name).join("deploy.yaml")
}

pub fn write_all() -> Result<()> {
    for name in names() {
        let path = path(&name);
        fs::write(&path, render(&Scenario::load(&name)?, None)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// 0 when every file in the tree is what would be written.
pub fn check_all() -> Result<i32> {
    let mut stale = Vec::new();
    for name in names() {
        if fs::read_to_string(path(&name)).ok() != Some(render(&Scenario::load(&name)?, None)?) {
            stale.push(name);
        }
    }
    if stale.is_empty() {
        return Ok(0);
    }
    say(&format!(
        "deploy.yaml of {} is not what scenario.toml says: cargo xtask scenario manifests --write",
        stale.join(", ")
    ));
    Ok(1)
}

/// `64M` of a control file, whose M is 2^20, as Kubernetes has it.
fn memory(text: &str) -> Result<String> {
    let good = text.strip_suffix(['K', 'M', 'G']).unwrap_or(text).parse::<u64>().is_ok();
    if !good {
        bail!("memory.max is `{text}`, which is no size");
    }
    Ok(if text.ends_with(['K', 'M', 'G']) { format!("{text}i") } else { text.to_owned() })
}

/// `20000 100000` of cpu.max as thousandths of a processor.
fn cpu(text: &str) -> Result<String> {
    let parts: Vec<u64> = text.split(' ').filter_map(|n| n.parse().ok()).collect();
    let [quota, period] = parts[..] else { bail!("cpu.max is `{text}`, and not QUOTA PERIOD") };
    Ok(format!("{}m", quota * 1000 / period.max(1)))
}

/// A word of a role as it is in a cluster: services have names there, and each its own address.
fn word(word: &str, own: &Container, all: &[Container]) -> Result<String> {
    let port = |c: &Container| c.port.with_context(|| format!("container {} has no port", c.name));
    if word == "{listen}" {
        return Ok(format!("0.0.0.0:{}", port(own)?));
    }
    if let Some(name) = word.strip_prefix("{at:").and_then(|w| w.strip_suffix('}')) {
        let other = all.iter().find(|c| c.name == name).with_context(|| format!("no container {name}"))?;
        return Ok(format!("{}:{}", other.pod, port(other)?));
    }
    Ok(word.replace("{scratch}", "/scratch/file"))
}

/// The whole file: a namespace, then each pod, or job, and its services. Those of a run have a namespace of its own and its label.
pub fn render(scenario: &Scenario, run: Option<&str>) -> Result<String> {
    let mut out = String::from(HEAD);
    // One for each, so that two may run at a time and go by their namespace.
    let namespace = namespace(run.unwrap_or(&scenario.name));
    let labelled =
        |indent: &str| run.map_or(String::new(), |run| format!("{indent}{RUN_LABEL}: {}\n", quoted(run)));
    let mut pods: Vec<&str> = Vec::new();
    for c in &scenario.container {
        if !pods.contains(&c.pod.as_str()) {
            pods.push(&c.pod);
        }
    }
    write!(
        out,
        "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  labels:\n    \
         pod-security.kubernetes.io/enforce: restricted\n{}",
        labelled("    ")
    )?;
    for pod in pods {
        let own: Vec<&Container> = scenario.container.iter().filter(|c| c.pod == pod).collect();
        let copies = own.iter().map(|c| c.copies).max().unwrap_or(1);
        let labels = format!("app: {pod}\n", pod = quoted(pod));
        let scenario_label = format!("fgm/scenario: {}\n", quoted(&scenario.name));
        let metadata = |indent: &str| format!("{indent}{labels}{indent}{scenario_label}{}", labelled(indent));
        if copies > 1 {
            write!(out, "---\napiVersion: batch/v1\nkind: Job\n")?;
            write!(
                out,
                "metadata:\n  name: {pod}\n  namespace: {namespace}\n  labels:\n{}",
                metadata("    ")
            )?;
            write!(
                out,
                "spec:\n  completions: {copies}\n  parallelism: 2\n  backoffLimit: 0\n  template:\n"
            )?;
            write!(out, "    metadata:\n      labels:\n{}    spec:\n", metadata("        "))?;
            out += &spec(&own, &scenario.container, "      ")?;
        } else {
            write!(out, "---\napiVersion: v1\nkind: Pod\n")?;
            write!(
                out,
                "metadata:\n  name: {pod}\n  namespace: {namespace}\n  labels:\n{}",
                metadata("    ")
            )?;
            write!(out, "spec:\n{}", spec(&own, &scenario.container, "  ")?)?;
        }
        for port in own.iter().filter_map(|c| c.port) {
            write!(out, "---\napiVersion: v1\nkind: Service\n")?;
            write!(
                out,
                "metadata:\n  name: {pod}\n  namespace: {namespace}\n  labels:\n{}",
                metadata("    ")
            )?;
            write!(out, "spec:\n  selector:\n    app: {}\n  ports:\n  - port: {port}\n", quoted(pod))?;
        }
    }
    Ok(out)
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A pod's spec, each line behind `indent`.
fn spec(own: &[&Container], all: &[Container], indent: &str) -> Result<String> {
    let restart = if own.iter().any(|c| c.restarts > 0) { "Always" } else { "Never" };
    let scratch = own.iter().any(|c| c.role.iter().any(|w| w.contains("{scratch}")));
    let mut text = format!(
        "restartPolicy: {restart}\nterminationGracePeriodSeconds: 2\nautomountServiceAccountToken: false\n\
         securityContext:\n  runAsNonRoot: true\n  runAsUser: 65534\n  runAsGroup: 65534\n  fsGroup: 65534\n  seccompProfile:\n    type: RuntimeDefault\n\
         containers:\n"
    );
    for c in own {
        write!(text, "- name: {}\n  image: \"{}\"\n", c.name, crate::image::workload_tag())?;
        write!(text, "  imagePullPolicy: IfNotPresent\n  args:\n")?;
        for w in &c.role {
            writeln!(text, "  - {}", quoted(&word(w, c, all)?))?;
        }
        if let Some(port) = c.port {
            write!(text, "  ports:\n  - containerPort: {port}\n")?;
        }
        let limit = |file: &str| c.files.get(file);
        if limit("memory.max").is_some() || limit("cpu.max").is_some() {
            write!(text, "  resources:\n    limits:\n")?;
        }
        if let Some(size) = limit("memory.max") {
            writeln!(text, "      memory: {}", quoted(&memory(size)?))?;
        }
        if let Some(quota) = limit("cpu.max") {
            writeln!(text, "      cpu: {}", quoted(&cpu(quota)?))?;
        }
        for (file, value) in &c.files {
            if !["memory.max", "cpu.max", "memory.swap.max"].contains(&file.as_str()) {
                writeln!(text, "  # not Kubernetes' to ask for, but the node's to set: {file} = {value}")?;
            }
        }
        write!(
            text,
            "  securityContext:\n    allowPrivilegeEscalation: false\n    readOnlyRootFilesystem: true\n    \
             capabilities:\n      drop:\n      - ALL\n"
        )?;
        if scratch {
            write!(text, "  volumeMounts:\n  - name: scratch\n    mountPath: /scratch\n")?;
        }
    }
    if scratch {
        write!(text, "volumes:\n- name: scratch\n  emptyDir: {{}}\n")?;
    }
    Ok(text.lines().fold(String::new(), |all, line| all + indent + line + "\n"))
}

#[cfg(test)]
mod tests {
    use super::{check_all, cpu, memory, names, render};
    use crate::scenario::Scenario;

    #[test]
    fn limits_are_written_as_kubernetes_has_them() {
        assert_eq!(memory("64M").expect("a size"), "64Mi");
        assert_eq!(memory("4096").expect("a size"), "4096");
        assert_eq!(cpu("20000 100000").expect("a quota"), "200m");
        assert!(memory("max").is_err());
        assert!(cpu("max 100000").is_err());
    }

    #[test]
    fn each_object_of_a_run_has_its_label_and_its_namespace() {
        for name in names() {
            let scenario = Scenario::load(&name).expect(&name);
            let (plain, text) =
                (render(&scenario, None).expect(&name), render(&scenario, Some("r-1Z")).expect(&name));
            let of = |text: &str, what: &str| text.matches(what).count();
            // A job's pods have labels of their own.
            let labels = of(&text, "\nkind: ") + of(&text, "\n  template:");
            assert_eq!(of(&text, "fgm/run: \"r-1Z\"\n"), labels, "{name}");
            let own = format!("fgm-{name}\n");
            assert_eq!(of(&text, "fgm-r-1z\n"), of(&plain, &own), "{name}");
            assert_eq!(of(&text, &own), 0, "{name}");
        }
    }

    #[test]
    fn every_deploy_yaml_is_what_its_scenario_says() {
        assert_eq!(check_all().expect("all are read"), 0);
    }
}
