//! Where things are: the repository, its target folder, and the cache that outlives clones.
//! Must never create a file outside `target/` and the cache. Called by every verb.

use anyhow::{Context as _, Result};
use std::env;
use std::path::{Path, PathBuf};

/// The repository's root, whatever folder the verb was called from.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// `target/` of the repository. Outputs of xtask stay here even when `CARGO_TARGET_DIR` moves cargo's own.
pub fn target() -> PathBuf {
    root().join("target")
}

/// Test kernels and the like, kept between clones: `$FGM_CACHE`, else `$XDG_CACHE_HOME/fgm`, else `~/.cache/fgm`.
pub fn cache() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("FGM_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("fgm")))
        .or_else(|| set("HOME").map(|d| d.join(".cache/fgm")))
        .context("no cache folder: set FGM_CACHE, XDG_CACHE_HOME or HOME")
}

/// `PATH` look-up of a program; the sbin folders are searched too, since an ordinary user lacks them in PATH.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|d| d.join(program))
        .find(|p| p.is_file())
}

/// This program, to be run again. `cargo test` may have put another build of the same sources in its place meanwhile; the kernel then
/// calls the one that runs deleted.
pub fn own() -> Result<PathBuf> {
    let path = std::env::current_exe().context("cannot tell my own path")?;
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or_else(|| path.clone(), PathBuf::from))
}
