//! Finds a compiler that can build for BPF: one with a prebuilt `core` for it, or one with the library's source.
//! Must never assume a version: distributions move theirs. Called by `ebpf`.

use crate::child::{output, tool};
use crate::paths;
use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

pub const TARGET: &str =
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// Where a compiler's `core` for BPF comes from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Core {
    /// Compiled already, in the sysroot (Debian's libstd-rust-web-dev-bpf).
    Prebuilt,
    /// Compiled by `-Zbuild-std` from rust-src.
    Source,
}

#[derive(Clone, Debug)]
pub struct Toolchain {
    pub rustc: PathBuf,
    pub release: String,
    pub nightly: bool,
    pub llvm: u32,
    pub sysroot: PathBuf,
    pub core: Core,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = if self.core == Core::Prebuilt { "prebuilt core" } else { "core from rust-src" };
        write!(f, "rustc {} ({}, LLVM {}, {core})", self.release, self.rustc.display(), self.llvm)
    }
}

/// The first compiler that serves: `$EBPF_RUSTC`, then rustup's toolchains (nightly first), then /usr/bin/rustc.
pub fn find() -> Option<Toolchain> {
    let mut candidates: Vec<PathBuf> = env::var_os("EBPF_RUSTC").map(PathBuf::from).into_iter().collect();
    if paths::which("rustup").is_some() {
        let list = output(tool("rustup").args(["toolchain", "list"])).unwrap_or_default();
        let mut names: Vec<&str> = list.lines().filter_map(|l| l.split_whitespace().next()).collect();
        names.sort_by_key(|name| !name.starts_with("nightly"));
        let which = |name: &&str| output(tool("rustup").args(["which", "rustc", "--toolchain", name])).ok();
        candidates.extend(names.iter().filter_map(which).map(PathBuf::from));
    }
    candidates.push("/usr/bin/rustc".into());
    candidates.iter().filter(|p| p.is_file()).find_map(|p| probe(p))
}

/// What a compiler says of itself; `None` when it has no way to a `core` for BPF.
fn probe(rustc: &Path) -> Option<Toolchain> {
    let sysroot = PathBuf::from(output(tool(rustc).args(["--print", "sysroot"])).ok()?);
    let core = core_of(&sysroot)?;
    let text = output(tool(rustc).arg("-vV")).ok()?;
    let (release, llvm) = versions(&text)?;
    let nightly = release.contains("nightly") || release.contains("-dev");
    Some(Toolchain { rustc: rustc.to_path_buf(), release, nightly, llvm, sysroot, core })
}

fn core_of(sysroot: &Path) -> Option<Core> {
    let rustlib = sysroot.join("lib/rustlib");
    let prebuilt = fs::read_dir(rustlib.join(TARGET).join("lib")).ok().is_some_and(|entries| {
        entries.flatten().any(|e| {
            let name = e.file_name().to_string_lossy().into_owned();
            name.starts_with("libcore-") && Path::new(&name).extension().is_some_and(|x| x == "rlib")
        })
    });
    if prebuilt {
        return Some(Core::Prebuilt);
    }
    // build-std needs the lock file too; Debian's rust-src packages lack it.
    let library = rustlib.join("src/rust/library");
    (library.join("core/src/lib.rs").exists() && library.join("Cargo.lock").exists()).then_some(Core::Source)
}

fn versions(text: &str) -> Option<(String, u32)> {
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some((field("release:")?.to_owned(), llvm))
}

#[cfg(test)]
mod tests {
    use super::{Core, TARGET, core_of, versions};
    use crate::child::TempDir;
    use std::fs;

    #[test]
    fn versions_are_read_from_rustc_output() {
        let text = "rustc 1.96.0 (abc 2026-05-28)\nrelease: 1.96.0\nLLVM version: 22.1.2\n";
        assert_eq!(versions(text), Some(("1.96.0".to_owned(), 22)));
        assert_eq!(versions("rustc 1.96.0"), None);
    }

    #[test]
    fn core_is_found_prebuilt_before_source_and_else_not() {
        let sysroot = TempDir::new("sysroot").expect("a folder");
        assert_eq!(core_of(sysroot.path()), None);
        let library = sysroot.path().join("lib/rustlib/src/rust/library");
        fs::create_dir_all(library.join("core/src")).expect("library");
        fs::write(library.join("core/src/lib.rs"), "").expect("core");
        assert_eq!(core_of(sysroot.path()), None, "without the lock file build-std cannot work");
        fs::write(library.join("Cargo.lock"), "").expect("lock");
        assert_eq!(core_of(sysroot.path()), Some(Core::Source));
        let lib = sysroot.path().join("lib/rustlib").join(TARGET).join("lib");
        fs::create_dir_all(&lib).expect("lib");
        fs::write(lib.join("libcore-0123.rlib"), "").expect("rlib");
        assert_eq!(core_of(sysroot.path()), Some(Core::Prebuilt));
    }
}
