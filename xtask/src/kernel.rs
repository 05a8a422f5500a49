//! Test kernels: Debian's cloud kernels, fetched by series through a private apt state and kept in the cache.
//! Must never touch the machine's own apt lists, sources or packages. Called by `vm`.

use crate::child::{TempDir, run, tool};
use crate::debian::{Apt, Of};
use crate::progress::Step;
use crate::usage::Usage;
use crate::{initrd, paths};
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The series that we test, oldest first.
pub const SERIES: &[&str] = &["6.1", "6.12", "6.18", "7.3"];
pub const DEFAULT: &str = "6.12";

/// A kernel that is ready to boot.
pub struct Kernel {
    pub image: PathBuf,
    pub initrd: PathBuf,
    /// `lib/modules/<version>` as a host path; the guest binds it over its own.
    pub modules: PathBuf,
}

/// Suites to look into for a series. Old kernels leave the archive, so a series may be found in a later one only.
fn suites(series: &str) -> &'static [&'static str] {
    match series {
        "6.1" => &["bookworm"],
        "6.12" => &["bookworm-backports", "trixie"],
        _ => &["trixie-backports", "forky", "sid"],
    }
}

/// Refuses what cannot be a series, before anything is built or fetched for it.
pub fn check_series(series: &str) -> Result<()> {
    if series.split('.').all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit())) {
        return Ok(());
    }
    Err(Usage(format!("`{series}` is no kernel series; tested are {}", SERIES.join(", "))).into())
}

/// Held while the cache is looked into and filled: guests of one series start side by side.
static CACHE: Mutex<()> = Mutex::new(());

/// The kernel of a series, fetched unless the cache has it.
pub fn ready(series: &str) -> Result<Kernel> {
    check_series(series)?;
    let _one = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = paths::cache()?.join("kernels").join(series);
    if !dir.join("version").exists() {
        fetch(series, &dir)?;
    }
    let read = fs::read_to_string(dir.join("version"));
    let version = read.with_context(|| format!("cannot read {}/version", dir.display()))?.trim().to_owned();
    let modules = dir.join("usr/lib/modules").join(&version);
    let initrd = initrd::ready(&dir, &version)?;
    Ok(Kernel { image: modules.join("vmlinuz"), initrd, modules })
}

fn fetch(series: &str, dir: &Path) -> Result<()> {
    let step = Step::begin(format!("fetching a Debian cloud kernel of series {series}"));
    let parent = dir.parent().context("the kernel cache has no parent folder")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let mut misses = Vec::new();
    for suite in suites(series) {
        let state = TempDir::new("apt")?;
        let apt = Apt::new(state.path(), suite, Of::Binaries)?;
        let found = apt.update().and_then(|()| newest(&apt, series));
        let version = match found {
            Ok(Some(version)) => version,
            Ok(None) => {
                misses.push(format!("{suite}: lists no linux-image-{series}.*-cloud-amd64"));
                continue;
            }
            Err(e) => {
                misses.push(format!("{suite}: {e:#}"));
                continue;
            }
        };
        // Unpacked beside its place and renamed in, so that an interrupted fetch is never taken for a kernel.
        let fresh = parent.join(format!(".{series}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&fresh);
        unpack(&apt, &version, &fresh)?;
        arrange(&version, &fresh)?;
        if fs::rename(&fresh, dir).is_err() {
            // Another run was faster, or an old incomplete folder is in the way.
            if !dir.join("version").exists() {
                fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
                fs::rename(&fresh, dir).with_context(|| format!("cannot create {}", dir.display()))?;
            }
            let _ = fs::remove_dir_all(&fresh);
        }
        step.done(&format!("{version} from {suite}"));
        return Ok(());
    }
    bail!(
        "no kernel of series {series} to be had (tested are {}):\n  {}\nFGM_DEBIAN_MIRROR names another Debian archive",
        SERIES.join(", "),
        misses.join("\n  ")
    )
}

/// Put image, configuration and modules where `ready` and `modprobe -d` look for them, `version` last.
fn arrange(version: &str, dir: &Path) -> Result<()> {
    let modules = dir.join("usr/lib/modules").join(version);
    let old = dir.join("lib/modules");
    if old.is_dir() && !modules.is_dir() {
        fs::create_dir_all(dir.join("usr/lib"))?;
        fs::rename(&old, dir.join("usr/lib/modules")).context("cannot move the kernel's modules")?;
    }
    for name in ["vmlinuz", "config"] {
        let (at, from) = (modules.join(name), dir.join("boot").join(format!("{name}-{version}")));
        if !at.exists() {
            fs::copy(&from, &at).with_context(|| format!("the kernel package lacks {}", from.display()))?;
        }
    }
    let depmod = paths::which("depmod").context("depmod is not there (package kmod)")?;
    run(tool(depmod).arg("-b").arg(dir.join("usr")).arg(version))?;
    fs::write(dir.join("version"), version).context("cannot write the kernel's version file")
}

/// The newest cloud image of a series that the suite has.
fn newest(apt: &Apt, series: &str) -> Result<Option<String>> {
    Ok(newest_of(&apt.names(&format!("linux-image-{series}."))?))
}

/// The image and, from 6.17 on, the packages that its files were split into.
fn unpack(apt: &Apt, version: &str, into: &Path) -> Result<()> {
    let names = apt.names("")?;
    let wanted: Vec<String> = ["image", "binary", "modules", "base"]
        .map(|part| format!("linux-{part}-{version}"))
        .into_iter()
        .filter(|name| names.lines().any(|l| l == name))
        .collect();
    apt.unpack(&wanted, into).map(drop)
}

/// Of package names, the version of the newest ordinary cloud image (`-rt-`, `-dbg` and unsigned ones are not).
fn newest_of(names: &str) -> Option<String> {
    let version = |name: &str| Some(name.trim().strip_prefix("linux-image-")?.to_owned());
    names
        .lines()
        .filter(|n| n.ends_with("-cloud-amd64") && !n.contains("-rt-"))
        .filter_map(version)
        .max_by_key(|v| numbers(v))
}

/// `6.12.90+deb12.1-cloud-amd64` as the numbers in it, which compare as versions do.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::newest_of;

    #[test]
    fn newest_compares_numbers_not_text() {
        let names = "linux-image-6.12.9+bpo-cloud-amd64\nlinux-image-6.12.90+deb12.1-cloud-amd64\n\
                     linux-image-6.12.90+deb12.1-cloud-amd64-unsigned\nlinux-image-6.12.95-rt-cloud-amd64\n\
                     linux-image-6.12.99-amd64\nlinux-image-6.12.90+deb12.1-cloud-amd64-dbg";
        assert_eq!(newest_of(names).as_deref(), Some("6.12.90+deb12.1-cloud-amd64"));
        assert_eq!(newest_of(""), None);
    }

    #[test]
    fn what_cannot_be_a_series_is_refused() {
        assert!(super::check_series("6.12").is_ok());
        for wrong in ["", "6.", "6.12x", "../6"] {
            assert!(super::check_series(wrong).is_err(), "{wrong}");
        }
    }
}
