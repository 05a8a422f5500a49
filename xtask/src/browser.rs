//! What pages are opened with: Chromium, node and the front end's libraries, fetched where they lack.
//! Must never take another version of a library than the lock file says. Called by `test` and `bench viewer`.

use crate::child::tool;
use crate::paths;
use crate::progress::{quiet, say};
use crate::setup::{self, Check, Need};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CHROMIUMS: &[&str] = &[
    "/usr/bin/chromium",
    "/usr/bin/chromium-browser",
    "/usr/bin/google-chrome-stable",
    "/usr/bin/google-chrome",
];
const NEEDS: &[Need] = &[
    Need { package: "nodejs", why: "builds and tests the report", check: Check::Program("node") },
    Need { package: "npm", why: "fetches the report's libraries", check: Check::Program("npm") },
    Need {
        package: "chromium",
        why: "opens the report in the browser test",
        check: Check::AnyFile(CHROMIUMS),
    },
];

pub fn ensure() -> Result<()> {
    setup::ensure(NEEDS)
}

pub fn folder() -> PathBuf {
    paths::root().join("static")
}

pub fn chromium() -> Result<&'static str> {
    CHROMIUMS.iter().find(|p| Path::new(p).exists()).copied().context("no chromium")
}

/// The libraries of the lock file, fetched once.
pub fn libraries() -> Result<()> {
    let folder = folder();
    let lock = folder.join("package-lock.json");
    let wanted = fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let stamp = folder.join("node_modules/.fgm-lock");
    if fs::read_to_string(&stamp).is_ok_and(|s| s == wanted) {
        say("✓ the report's libraries are there");
        return Ok(());
    }
    let mut c = tool("npm");
    c.current_dir(&folder).args(["ci", "--no-audit", "--no-fund"]);
    quiet("fetching the report's libraries", "npm-ci", Duration::from_mins(10), &mut c)?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}
