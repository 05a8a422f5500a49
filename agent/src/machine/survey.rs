//! What this machine offers and lacks, one finding a thing: what is there, what its absence costs, and the mend.
//!
//! The agent logs at its start what `fgm doctor` prints: the same findings. Reads /proc, /sys and the cgroup root, changes
//! nothing but the soft limit of open files and what of this program stays in memory, and never fails: what cannot be looked at is found to be missing.

use super::{
    Limit, MachineError, controllers, is_cgroup2, mount_of, pages::keep_program, raise_descriptor_limit,
    refusal, trimmed,
};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Controllers that samples come from.
const CONTROLLERS: [&str; 4] = ["memory", "cpu", "io", "pids"];
/// Descriptors for the lane's and the hot files of a cgroup.
const DESCRIPTORS_A_CGROUP: u64 = 16;
/// A node of this many cgroups should find room.
const CGROUPS: u64 = 250;
/// Inode numbers of the initial namespaces, of include/linux/proc_ns.h.
const FIRST_PIDNS: u64 = 0xEFFF_FFFC;
const FIRST_CGROUPNS: u64 = 0xEFFF_FFFB;

/// How it stands with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    Good,
    /// A fact of this machine that the reader of its data should know.
    Note,
    /// The agent works, with less.
    Degraded,
    /// The agent cannot work.
    Broken,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub name: String,
    pub standing: Standing,
    pub found: String,
    /// What is lost by it.
    pub costs: Option<String>,
    pub mend: Option<String>,
}

impl Finding {
    pub fn good(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), standing: Standing::Good, found: found.into(), costs: None, mend: None }
    }

    pub fn note(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { standing: Standing::Note, ..Self::good(name, found) }
    }

    pub fn degraded(
        name: impl Into<String>,
        found: impl Into<String>,
        costs: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        let (costs, mend) = (Some(costs.into()), Some(mend.into()));
        Self { standing: Standing::Degraded, costs, mend, ..Self::good(name, found) }
    }

    /// An error of ours, which has its mend in it.
    pub fn broken(name: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self { standing: Standing::Broken, ..Self::good(name, error.to_string()) }
    }

    /// In one line, for the log.
    pub fn line(&self) -> String {
        let parts = [Some(&self.found), self.costs.as_ref(), self.mend.as_ref()];
        let parts: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
        format!("{}: {}", self.name, parts.join("; "))
    }
}

/// Why this folder will not do as the cgroup root.
pub(super) fn check_root(root: &Path) -> Result<(), MachineError> {
    let missing = |source| MachineError::Missing { path: root.to_owned(), source };
    if is_cgroup2(root).map_err(missing)? {
        return Ok(());
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let there = mount_of("cgroup2", &mounts).map(|v2| (controllers(&v2), v2));
    Err(refusal(root, there, mount_of("cgroup", &mounts).is_some()))
}

/// All findings.
pub fn survey(root: &Path) -> Vec<Finding> {
    let mut all = vec![match check_root(root) {
        Ok(()) => Finding::good("cgroup v2", format!("mounted at {}", root.display())),
        Err(e) => Finding::broken("cgroup v2", &e),
    }];
    let there = controllers(root);
    if all[0].standing == Standing::Good {
        all.extend(CONTROLLERS.iter().map(|c| controller(c, root, &there)));
    }
    all.extend([user(), capabilities(&status()), btf(), tracefs(), pid_namespace(), cgroup_namespace()]);
    all.extend([open_files(), locked_memory(), inotify(), swap(), zswap()]);
    all.extend(["cpu", "memory", "io", "irq"].map(pressure));
    all
}

fn controller(name: &str, root: &Path, there: &[String]) -> Finding {
    let file = root.join("cgroup.controllers");
    if there.iter().any(|t| t == name) {
        return Finding::good(format!("controller {name}"), format!("in {}", file.display()));
    }
    Finding::degraded(
        format!("controller {name}"),
        format!("the {name} controller is not in {}", file.display()),
        format!("the columns {name}_* stay NULL but for what every cgroup has (pressure, CPU time)"),
        format!(
            "take it from cgroup v1 (cgroup_no_v1={name} on the kernel's command line), or write +{name} to the cgroup.subtree_control above"
        ),
    )
}

fn user() -> Finding {
    match rustix::process::geteuid().as_raw() {
        0 => Finding::good("user", "root"),
        uid => Finding::degraded(
            "user",
            format!("not root (uid {uid})"),
            "the tables of other users' processes lack descriptors, and some cgroups may be unreadable",
            "run it as root, with the few capabilities that it needs",
        ),
    }
}

fn status() -> String {
    fs::read_to_string("/proc/self/status").unwrap_or_default()
}

fn effective(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

/// Names of the capabilities that the probes need and this process does not hold.
pub fn missing_capabilities() -> Vec<&'static str> {
    missing_from(&status())
}

fn missing_from(status: &str) -> Vec<&'static str> {
    const SYS_ADMIN: u32 = 21;
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;
    let Some(effective) = effective(status) else { return Vec::new() };
    let has = |bit: u32| effective >> bit & 1 == 1 || effective >> SYS_ADMIN & 1 == 1;
    [("CAP_BPF", BPF), ("CAP_PERFMON", PERFMON)]
        .into_iter()
        .filter(|&(_, bit)| !has(bit))
        .map(|(name, _)| name)
        .collect()
}

fn capabilities(status: &str) -> Finding {
    const SYS_PTRACE: u32 = 19;
    let mask = effective(status).unwrap_or(0);
    let missing = missing_from(status);
    let optional =
        if mask >> SYS_PTRACE & 1 == 1 { "" } else { "; no CAP_SYS_PTRACE (optional: I/O of processes)" };
    let found = format!("CapEff {mask:016x}{optional}");
    if missing.is_empty() {
        return Finding::good("capabilities", format!("CAP_BPF and CAP_PERFMON; {found}"));
    }
    Finding::degraded(
        "capabilities",
        format!("{} missing; {found}", missing.join(" and ")),
        "no probes: kills without victim, no exits, no signals",
        format!("grant {}", missing.join(" and ")),
    )
}

fn btf() -> Finding {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    match fs::metadata(PATH) {
        Ok(meta) => Finding::good("BTF", format!("{PATH}, {} KiB", meta.len() / 1024)),
        Err(e) => Finding::degraded(
            "BTF",
            format!("{PATH}: {e}"),
            "tracepoints alone: no limiting cgroup, no lane by BPF",
            "a kernel with CONFIG_DEBUG_INFO_BTF=y, and /sys mounted",
        ),
    }
}

/// Only the last resort of the probes needs it.
fn tracefs() -> Finding {
    let found = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        .into_iter()
        .find(|path| Path::new(path).join("events").is_dir());
    match found {
        Some(path) => Finding::good("tracefs", path),
        None => Finding {
            mend: Some("mount -t tracefs tracefs /sys/kernel/tracing".to_owned()),
            ..Finding::note("tracefs", "not mounted; needed only where a kernel has no BTF")
        },
    }
}

fn namespace(kind: &str) -> Option<u64> {
    fs::metadata(format!("/proc/self/ns/{kind}")).ok().map(|m| m.ino())
}

fn pid_namespace() -> Finding {
    if namespace("pid") == Some(FIRST_PIDNS) {
        return Finding::good("pid namespace", "the machine's own");
    }
    Finding::degraded(
        "pid namespace",
        "one of its own",
        "processes outside of it have no pid here: no process tables of other containers, victims named by comm and cgroup alone",
        "hostPID: true (docker run --pid=host); on a kind node, where the node is a container, this is as it should be",
    )
}

fn cgroup_namespace() -> Finding {
    if namespace("cgroup") == Some(FIRST_CGROUPNS) {
        return Finding::good("cgroup namespace", "the machine's own");
    }
    Finding::note(
        "cgroup namespace",
        "one of its own: paths count from its root, and what is outside is not recorded",
    )
}

fn open_files() -> Finding {
    // as the agent does at its start
    let in_force = raise_descriptor_limit();
    let room = in_force as u64 / DESCRIPTORS_A_CGROUP;
    let found = format!("{in_force} may be open, enough for some {room} cgroups");
    if room >= CGROUPS {
        return Finding::good("open files", found);
    }
    Finding::degraded(
        "open files",
        found,
        "beyond that files are opened anew for each sample, at ten times the cost, and new cgroups have no history",
        format!("raise RLIMIT_NOFILE (LimitNOFILE=) to {DESCRIPTORS_A_CGROUP} for each cgroup"),
    )
}

fn locked_memory() -> Finding {
    match keep_program() {
        Ok(bytes) => Finding::good(
            "locked memory",
            format!("the pages in use of the program's {} MiB stay in memory", bytes >> 20),
        ),
        Err(error) => {
            let limit: Limit = getrlimit(Resource::Memlock).current;
            let limit = limit.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
            Finding::degraded(
                "locked memory",
                format!("the program can't be locked into memory: {error} (RLIMIT_MEMLOCK is {limit})"),
                "on a node that is out of memory the kernel evicts the agent's own program, and it samples seconds late",
                "give it CAP_IPC_LOCK, or raise RLIMIT_MEMLOCK (LimitMEMLOCK=) to 64 MiB",
            )
        }
    }
}

fn inotify() -> Finding {
    let of = |name: &str| trimmed(&format!("/proc/sys/fs/inotify/{name}")).unwrap_or_else(|| "?".to_owned());
    Finding::note(
        "inotify",
        format!(
            "{} watches, {} instances for each user; used only where probes cannot be had, at two watches a cgroup",
            of("max_user_watches"),
            of("max_user_instances")
        ),
    )
}

fn swap() -> Finding {
    let text = fs::read_to_string("/proc/swaps").unwrap_or_default();
    match text.lines().skip(1).count() {
        0 => Finding::note(
            "swap",
            "none: memory that no file backs can't be reclaimed, so that a container dies within milliseconds of its limit",
        ),
        n => Finding::note("swap", format!("{n} areas in use")),
    }
}

fn zswap() -> Finding {
    let on = trimmed("/sys/module/zswap/parameters/enabled").is_some_and(|v| v == "Y");
    Finding::note("zswap", if on { "on" } else { "off" })
}

fn pressure(kind: &str) -> Finding {
    let (name, path) = (format!("pressure {kind}"), format!("/proc/pressure/{kind}"));
    match fs::read(&path) {
        Ok(_) => Finding::good(name, path),
        // since 6.1, and only where the kernel accounts for time in interrupts
        Err(e) if kind == "irq" => Finding::note(name, format!("{path}: {e}")),
        Err(e) => Finding::degraded(
            name,
            format!("{path}: {e}"),
            format!("the columns {kind}_pressure_* stay NULL and stalls are not warned of"),
            "psi=1 on the kernel's command line (CONFIG_PSI=y)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing_from("CapEff:\t0000000000000000\n"), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing_from("CapEff:\t0000008000000000\n"), ["CAP_PERFMON"]);
        assert!(missing_from("CapEff:\t0000000000200000\n").is_empty(), "CAP_SYS_ADMIN stands for both");
        assert!(missing_from("nothing").is_empty());
        let told = capabilities("CapEff:\t0000008000000000\n");
        assert_eq!((told.standing, told.mend.as_deref()), (Standing::Degraded, Some("grant CAP_PERFMON")));
    }

    #[test]
    fn a_folder_that_is_no_cgroup_v2_is_broken_and_has_no_controllers_to_complain_of() {
        let dir = tempfile::tempdir().expect("a folder");
        let all = survey(dir.path());
        assert_eq!((all[0].name.as_str(), all[0].standing), ("cgroup v2", Standing::Broken));
        assert!(all[0].found.contains(&dir.path().display().to_string()));
        assert!(!all.iter().any(|f| f.name.starts_with("controller")));
    }

    #[test]
    fn what_is_degraded_has_its_cost_and_its_mend() {
        for finding in survey(Path::new("/proc")).into_iter().chain([controller("io", Path::new("/x"), &[])])
        {
            if finding.standing == Standing::Degraded {
                assert!(finding.costs.is_some() && finding.mend.is_some(), "{finding:?}");
            }
        }
        let line = controller("io", Path::new("/x"), &[]).line();
        assert!(
            line.contains("/x/cgroup.controllers") && line.contains("io_*") && line.contains("+io"),
            "{line}"
        );
    }
}
