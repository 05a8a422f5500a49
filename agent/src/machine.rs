//! What this machine is and whether the agent can work here: cgroup v2, its controllers, names and limits.
//!
//! Read once at the start. An error names what is missing and the mend; a missing controller is a warning, since the
//! rest still works. `survey`, beside this file, has each thing that is looked at.

mod pages;
mod survey;

pub use pages::give_back_memory;
pub use survey::{Finding, Standing, missing_capabilities, survey};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::path::{Path, PathBuf};

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// A resource limit; `None` = unlimited.
type Limit = Option<u64>;

#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("cgroup_root {} does not exist or cannot be read ({source}); mount cgroup v2 there or set cgroup_root to where it is", path.display())]
    Missing { path: PathBuf, source: std::io::Error },
    #[error("cgroup_root {} is not a cgroup v2 mount, {} is one: set cgroup_root to it", path.display(), v2.display())]
    Elsewhere { path: PathBuf, v2: PathBuf },
    #[error("cgroup_root {} is not a cgroup v2 mount, and nothing else in /proc/self/mounts is one; mount it (mount -t cgroup2 cgroup2 {}), or give the agent's container the host's /sys/fs/cgroup", path.display(), path.display())]
    Unmounted { path: PathBuf },
    #[error("cgroup_root {} is not a cgroup v2 mount: this machine runs cgroup v1 only; start the kernel with systemd.unified_cgroup_hierarchy=1 (or cgroup_no_v1=all)", path.display())]
    V1 { path: PathBuf },
    #[error("cgroup_root {} is not a cgroup v2 mount: this is a hybrid machine, whose v2 hierarchy is at {} with the controllers [{controllers}] while v1 holds the others; start the kernel with systemd.unified_cgroup_hierarchy=1, or set cgroup_root to {} and do without what v1 holds", path.display(), v2.display(), v2.display())]
    Hybrid { path: PathBuf, v2: PathBuf, controllers: String },
}

/// The facts of the node that rows and status carry.
#[derive(Clone, Debug)]
pub struct Machine {
    pub host: String,
    pub boot_id: String,
    pub kernel: String,
    /// What does not work here and what that costs, in words.
    pub lacks: Vec<String>,
    pub descriptor_limit: usize,
}

fn trimmed(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
}

fn is_cgroup2(path: &Path) -> Result<bool, std::io::Error> {
    // Its control files are on the same mount.
    if !fs::metadata(path)?.is_dir() {
        return Err(std::io::Error::from(std::io::ErrorKind::NotADirectory));
    }
    let stat = rustix::fs::statfs(path)?;
    Ok(u64::try_from(stat.f_type).is_ok_and(|t| t == CGROUP2_MAGIC))
}

/// The first mount of this type in the text of /proc/self/mounts.
fn mount_of(wanted: &str, mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|l| {
        let mut f = l.split(' ');
        let (path, kind) = (f.nth(1)?, f.next()?);
        (kind == wanted).then(|| PathBuf::from(path))
    })
}

/// Why a folder that is no cgroup v2 will not do, given where v2 is mounted with which controllers, and whether there is v1.
fn refusal(cgroup_root: &Path, v2: Option<(Vec<String>, PathBuf)>, has_v1: bool) -> MachineError {
    let path = cgroup_root.to_owned();
    match v2 {
        // With its memory controller it is a whole cgroup v2, whatever else may be mounted.
        Some((controllers, v2)) if !has_v1 || controllers.iter().any(|c| c == "memory") => {
            MachineError::Elsewhere { path, v2 }
        }
        Some((controllers, v2)) => MachineError::Hybrid { path, v2, controllers: controllers.join(" ") },
        None if has_v1 => MachineError::V1 { path },
        None => MachineError::Unmounted { path },
    }
}

fn controllers(root: &Path) -> Vec<String> {
    let text = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Raises the soft limit of open files to the hard one, and returns what is in force.
fn raise_descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let in_force = if setrlimit(Resource::Nofile, wanted).is_ok() { limit.maximum } else { limit.current };
    // no limit at all: one that no node reaches
    in_force.map_or(1 << 20, |n| usize::try_from(n).unwrap_or(1 << 20))
}

impl Machine {
    pub fn kernel() -> String {
        trimmed("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned())
    }

    /// Looks at the machine.
    pub fn look(cgroup_root: &Path) -> Result<Self, MachineError> {
        survey::check_root(cgroup_root)?;
        let degraded = |f: &Finding| f.standing == Standing::Degraded;
        let lacks = survey(cgroup_root).iter().filter(|f| degraded(f)).map(Finding::line).collect();
        Ok(Self {
            host: trimmed("/proc/sys/kernel/hostname").unwrap_or_else(|| "unknown".to_owned()),
            boot_id: trimmed("/proc/sys/kernel/random/boot_id").unwrap_or_else(|| "unknown".to_owned()),
            kernel: Self::kernel(),
            lacks,
            descriptor_limit: raise_descriptor_limit(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_folder_is_no_cgroup_v2_and_the_error_has_the_mend() {
        let dir = tempfile::tempdir().expect("a folder");
        let e = Machine::look(dir.path()).expect_err("must be refused").to_string();
        assert!(
            e.contains(&dir.path().display().to_string()) && e.contains("is not a cgroup v2 mount"),
            "{e}"
        );
        let e = Machine::look(Path::new("/proc/self/stat")).expect_err("must be refused").to_string();
        assert!(e.contains("not a directory") && e.contains("cgroup_root"), "{e}");
        let e = Machine::look(Path::new("/nonexistent/x")).expect_err("must be refused").to_string();
        assert!(e.contains("/nonexistent/x") && e.contains("cgroup_root"), "{e}");
    }

    #[test]
    fn the_refusal_says_where_cgroup_v2_is_and_what_it_lacks() {
        let say = |v2: Option<(&str, &str)>, has_v1| {
            let v2 = v2.map(|(has, at)| (has.split(' ').map(str::to_owned).collect(), PathBuf::from(at)));
            refusal(Path::new("/srv/x"), v2, has_v1).to_string()
        };
        let whole = say(Some(("cpu io memory pids", "/sys/fs/cgroup")), false);
        assert!(whole.contains("/srv/x") && whole.contains("set cgroup_root to it"), "{whole}");
        let hybrid = say(Some(("hugetlb", "/sys/fs/cgroup/unified")), true);
        assert!(hybrid.contains("[hugetlb]") && hybrid.contains("unified_cgroup_hierarchy"), "{hybrid}");
        assert!(say(None, true).contains("cgroup v1 only"));
        assert!(say(None, false).contains("mount -t cgroup2"));
    }

    #[test]
    fn mounts_are_found_by_type() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_of("cgroup2", mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_of("cgroup", mounts), Some(PathBuf::from("/sys/fs/cgroup/memory")));
        assert_eq!(mount_of("cgroup2", "proc /proc proc rw 0 0\n"), None);
    }
}
