//! Set-up: what a verb needs on the machine, installed with apt when we may, else named exactly.
//! Must never install without saying what and why, and never touch the machine's apt configuration.
//! Called at the start of `demo`, `test`, `vm` and `build-ebpf`.

use crate::child::{self, tool};
use crate::paths::which;
use crate::progress::{quiet, say};
use anyhow::{Result, bail};
use std::path::Path;
use std::time::Duration;

/// How to see that something is there. By program or file, so that it works on distributions without dpkg too.
pub enum Check {
    Program(&'static str),
    AnyFile(&'static [&'static str]),
    Package,
}

pub struct Need {
    /// Debian's and Ubuntu's name.
    pub package: &'static str,
    pub why: &'static str,
    pub check: Check,
}

impl Need {
    fn met(&self) -> bool {
        match self.check {
            Check::Program(name) => which(name).is_some(),
            Check::AnyFile(paths) => paths.iter().any(|p| Path::new(p).exists()),
            Check::Package => installed(self.package),
        }
    }
}

/// Both implementations of the virtiofs daemon, in the places where distributions put them.
pub const VIRTIOFSD: &[&str] =
    &["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/bin/virtiofsd"];

const VM: &[Need] = &[
    Need {
        package: "qemu-system-x86",
        why: "runs the test kernels",
        check: Check::Program("qemu-system-x86_64"),
    },
    Need { package: "busybox-static", why: "first program of the test VM", check: Check::Program("busybox") },
    Need { package: "kmod", why: "module dependencies of the test kernels", check: Check::Program("depmod") },
    Need { package: "xz-utils", why: "unpacks kernel modules", check: Check::Program("xz") },
    Need { package: "zstd", why: "unpacks kernel modules", check: Check::Program("zstd") },
    Need {
        package: "debian-archive-keyring",
        why: "proves that the test kernels are Debian's",
        check: Check::AnyFile(&[
            "/usr/share/keyrings/debian-archive-keyring.gpg",
            "/usr/share/keyrings/debian-archive-keyring.pgp",
        ]),
    },
];

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn has_apt() -> bool {
    which("apt-get").is_some() && which("dpkg").is_some()
}

fn installed(package: &str) -> bool {
    child::output(tool("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]))
        .is_ok_and(|s| s == "installed")
}

/// Whether apt could install this package, as far as its lists know.
pub fn apt_offers(package: &str) -> bool {
    has_apt()
        && child::output(tool("apt-cache").args(["policy", package]))
            .is_ok_and(|s| s.lines().any(|l| l.trim().starts_with("Candidate:") && !l.contains("(none)")))
}

/// What the test VM needs. Its virtiofs daemon is part of QEMU's packages up to Debian 12, its own package later.
pub fn vm() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the test VM runs x86_64 kernels only and this machine is {}", std::env::consts::ARCH);
    }
    ensure(VM)?;
    ensure(&[Need {
        package: "virtiofsd",
        why: "shares files with the test VM",
        check: Check::AnyFile(VIRTIOFSD),
    }])
}

/// Make all of these true, or stop with the commands that would.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|n| !n.met()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    say("set-up needs:");
    for need in &missing {
        say(&format!("  {:24} {}", need.package, need.why));
    }
    let names: Vec<&str> = missing.iter().map(|n| n.package).collect();
    if !has_apt() {
        bail!("this machine has no apt: install the equivalents of {} and run this again", names.join(", "));
    }
    if !is_root() {
        bail!(
            "installing needs root. Run these, then this again:\n  sudo apt-get update\n  \
             sudo apt-get install -y --no-install-recommends {}",
            names.join(" ")
        );
    }
    apt_install(&names)?;
    if let Some(still) = missing.iter().find(|n| !n.met()) {
        bail!("apt installed {} but what it is for ({}) is still not there", still.package, still.why);
    }
    Ok(())
}

/// Install with apt; lists are refreshed only when it does not work without (a fresh container has none).
pub fn apt_install(names: &[&str]) -> Result<()> {
    let install = || {
        let mut c = tool("apt-get");
        c.args(["-o", "DPkg::Lock::Timeout=120", "install", "-y", "--no-install-recommends"]);
        c.args(names).env("DEBIAN_FRONTEND", "noninteractive");
        c
    };
    let limit = Duration::from_mins(15);
    let what = format!("installing {}", names.join(", "));
    let simulated = install().arg("--simulate").output().is_ok_and(|o| o.status.success());
    if simulated && quiet(&what, "apt-install", limit, &mut install()).is_ok() {
        return Ok(());
    }
    quiet("refreshing apt's lists", "apt-update", limit, tool("apt-get").arg("update"))?;
    quiet(&what, "apt-install", limit, &mut install())
}
