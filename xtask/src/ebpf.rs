//! `cargo xtask build-ebpf`: the kernel programs, compiled for BPF into `target/ebpf`.
//! Must never put a binary object into git or need the workspace's own compiler to know BPF.
//! Called by a person, and by `demo` and `test` before they build the agent, which embeds the object.

use crate::child::{self, output, tool};
use crate::origin::Origin;
use crate::progress::{quiet, say};
use crate::toolchain::{self, Core, TARGET, Toolchain};
use crate::{paths, setup};
use anyhow::{Context as _, Result, bail};
use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";
/// The LLVM majors that this bpf-linker has a feature for.
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

const NO_COMPILER: &str = "no compiler here can build for BPF. Either of these makes one:
  rustup toolchain install nightly --profile minimal --component rust-src
  apt-get install -y --no-install-recommends rustc-web libstd-rust-web-dev-bpf     (Debian)
EBPF_RUSTC names one that is elsewhere";

pub fn object() -> PathBuf {
    paths::target().join("ebpf").join(TARGET).join("release/fgm-ebpf")
}

/// The verb: build, and print where the object is.
pub fn verb() -> Result<i32> {
    build()?;
    println!("{}", object().display());
    Ok(0)
}

/// Build the object unless sources, compiler and linker are those of the last build.
pub fn build() -> Result<()> {
    let toolchain = compiler()?;
    let linker = linker(&toolchain)?;
    let crate_dir = paths::root().join("agent-ebpf");
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", linker.display()),
    ];
    // The object's BTF has the path of each line, and the agent has the object.
    flags.extend(Origin::new(&paths::root(), Some(&toolchain.sysroot)).flags());
    let key = fingerprint(&crate_dir, &toolchain, &linker, &flags)?;
    let stamp = paths::target().join("ebpf/stamp");
    if object().exists() && fs::read_to_string(&stamp).is_ok_and(|s| s == key) {
        say("✓ kernel programs are up to date");
        return Ok(());
    }
    let mut c = tool("cargo");
    c.current_dir(&crate_dir).env("RUSTC", &toolchain.rustc);
    c.args(["build", "--release", "--bin", "fgm-ebpf", "--target", TARGET, "--target-dir"]);
    c.arg(paths::target().join("ebpf"));
    if crate_dir.join("Cargo.lock").exists() {
        c.arg("--locked");
    }
    match toolchain.core {
        // aya-ebpf uses unstable features; only that crate is let through on a stable compiler.
        Core::Prebuilt if !toolchain.nightly => {
            c.env("RUSTC_BOOTSTRAP", "aya_ebpf");
        }
        Core::Prebuilt => {}
        Core::Source => {
            c.args(["-Z", "build-std=core"]);
            if !toolchain.nightly {
                c.env("RUSTC_BOOTSTRAP", "1");
            }
        }
    }
    // Split by 0x1f, so that a space inside a path does not split a flag.
    c.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    say(&format!("  with {toolchain}"));
    let built = quiet("building the kernel programs", "build-ebpf", Duration::from_mins(15), &mut c);
    built.map_err(|e| {
        // What bpf-linker says when its LLVM is older than the compiler's.
        let stale =
            ["bitcode", "Unknown attribute", "Producer: "].iter().any(|s| format!("{e:#}").contains(s));
        let hint = format!(
            "{} may be older than LLVM {}: remove it and run this again",
            linker.display(),
            toolchain.llvm
        );
        if stale { e.context(hint) } else { e }
    })?;
    if !object().exists() {
        bail!("the build left no {}", object().display());
    }
    fs::write(&stamp, key).with_context(|| format!("cannot write {}", stamp.display()))
}

/// A compiler that can, installed if need be: Debian's packages where apt offers them, else rustup's nightly.
fn compiler() -> Result<Toolchain> {
    if let Some(found) = toolchain::find() {
        return Ok(found);
    }
    let packages = ["rustc-web", "libstd-rust-web-dev-bpf"];
    if setup::has_apt() && setup::is_root() {
        if !setup::apt_offers(packages[1]) {
            let limit = Duration::from_mins(5);
            // Failing is fine: rustup is the other way.
            let _ = quiet("refreshing apt's lists", "apt-update", limit, tool("apt-get").arg("update"));
        }
        if setup::apt_offers(packages[1]) {
            say("set-up needs a Rust compiler with `core` for BPF: rustc-web, libstd-rust-web-dev-bpf");
            setup::apt_install(&packages)?;
        }
    }
    if toolchain::find().is_none() && paths::which("rustup").is_some() {
        let mut c = tool("rustup");
        c.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
        say("set-up needs a Rust compiler with `core` for BPF: rustup's nightly with rust-src");
        if let Err(e) = quiet("installing nightly with rust-src", "rustup", Duration::from_mins(10), &mut c) {
            say(&format!("  {e:#}"));
        }
    }
    toolchain::find().context(NO_COMPILER)
}

/// `$BPF_LINKER`, ours under target/tools, one in PATH, else ours is installed now.
fn linker(toolchain: &Toolchain) -> Result<PathBuf> {
    if let Some(set) = env::var_os("BPF_LINKER") {
        return Ok(set.into());
    }
    let ours = paths::target().join("tools/bin").join(LINKER);
    if works(&ours) {
        return Ok(ours);
    }
    if let Some(found) = paths::which(LINKER).filter(|p| works(p)) {
        return Ok(found);
    }
    install_linker(toolchain)?;
    Ok(ours)
}

/// It runs, which includes that its libLLVM is still where it was.
fn works(linker: &Path) -> bool {
    linker.is_file() && output(tool(linker).arg("--version")).is_ok()
}

fn install_linker(toolchain: &Toolchain) -> Result<()> {
    let llvm = toolchain.llvm;
    if !LINKER_LLVM.contains(&llvm) {
        bail!(
            "{LINKER} {LINKER_VERSION} cannot be built for LLVM {llvm} of {toolchain} (it knows {LINKER_LLVM:?}): \
             set EBPF_RUSTC to another compiler, or BPF_LINKER to a linker that fits"
        );
    }
    let library = lib_llvm(toolchain).with_context(|| {
        format!("no libLLVM.so of major version {llvm} for {toolchain}: set BPF_LINKER to a linker that fits")
    })?;
    // bpf-linker's build wants a prefix with lib/libLLVM.so; the second name is its SONAME, for the run path.
    let prefix = paths::target().join("tools/llvm");
    let lib = prefix.join("lib");
    let _ = fs::remove_dir_all(&prefix);
    fs::create_dir_all(&lib).with_context(|| format!("cannot create {}", lib.display()))?;
    let soname = library.file_name().context("a library without a name")?;
    for name in [Path::new("libLLVM.so"), Path::new(soname)] {
        let at = lib.join(name);
        if !at.exists() {
            symlink(&library, &at).with_context(|| format!("cannot link {}", at.display()))?;
        }
    }
    let mut c = tool("cargo");
    c.env("LLVM_PREFIX", &prefix);
    c.env("CARGO_PROFILE_RELEASE_DEBUG", "0").env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    c.arg("install").arg(format!("{LINKER}@{LINKER_VERSION}"));
    c.args(["--locked", "--force", "--no-default-features", "--features", &format!("llvm-{llvm}")]);
    c.arg("--root").arg(paths::target().join("tools"));
    say(&format!(
        "set-up needs {LINKER} {LINKER_VERSION}, built against {} (2 to 4 minutes)",
        library.display()
    ));
    quiet(&format!("installing {LINKER}"), LINKER, Duration::from_mins(25), &mut c)
}

/// The shared LLVM of the compiler's major version: its own, else the distribution's.
fn lib_llvm(toolchain: &Toolchain) -> Option<PathBuf> {
    let prefix = format!("libLLVM.so.{}.", toolchain.llvm);
    let folders = [
        toolchain.sysroot.join("lib"),
        PathBuf::from(format!("/usr/lib/{}-linux-gnu", env::consts::ARCH)),
        PathBuf::from(format!("/usr/lib/llvm-{}/lib", toolchain.llvm)),
        PathBuf::from("/usr/lib64"),
        PathBuf::from("/usr/lib"),
    ];
    folders.iter().find_map(|folder| {
        let entries = fs::read_dir(folder).ok()?;
        let mut found: Vec<PathBuf> = entries
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)))
            .collect();
        found.sort();
        found.into_iter().next()
    })
}

/// What decides the object: the crate's files, the compiler, the linker, and what they are told.
fn fingerprint(crate_dir: &Path, toolchain: &Toolchain, linker: &Path, flags: &[String]) -> Result<String> {
    let mut files = Vec::new();
    collect(crate_dir, &mut files)?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in &files {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        (file, bytes).hash(&mut hasher);
    }
    let linker_len = fs::metadata(linker).with_context(|| format!("no linker {}", linker.display()))?.len();
    (toolchain.to_string(), linker, linker_len, flags).hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

fn collect(dir: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        // Cargo.lock is written by the first build when it is not there; it must not make the second one stale.
        if path.is_dir() && path.file_name().is_some_and(|n| n != "target") {
            collect(&path, into)?;
        } else if path.extension().is_some_and(|e| e == "rs" || e == "toml") {
            into.push(path);
        }
    }
    Ok(())
}

/// Build packages of the workspace and return the executables that came out.
pub fn cargo_build(what: &str, args: &[&str]) -> Result<Vec<PathBuf>> {
    let mut c = child::cargo();
    c.arg("build").args(args).args(["--message-format", "json-render-diagnostics"]);
    say(&format!("… building {what}"));
    executables(&mut c)
}

/// Run a cargo command with JSON messages; its own progress stays on stderr.
pub fn executables(c: &mut std::process::Command) -> Result<Vec<PathBuf>> {
    let done = c.stderr(std::process::Stdio::inherit()).output();
    let done = done.with_context(|| format!("cannot start `{}`", child::shown(c)))?;
    if !done.status.success() {
        bail!("`{}` failed: {}", child::shown(c), done.status);
    }
    let text = String::from_utf8_lossy(&done.stdout);
    let found = text.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message.get("executable")?.as_str().map(PathBuf::from)
    });
    Ok(found.collect())
}
