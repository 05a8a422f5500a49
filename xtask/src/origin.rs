//! Where a program was built, kept out of the program: the same sources give the same bytes in any folder of any machine, and nobody who
//! has the program reads a home folder in it. Must never change what a debugger needs within the repository: its files are `/src/…`.
//! Called by `image` and `ebpf`.

use anyhow::{Result, bail};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders of this machine, and what they are called in a program. The compiler takes the last one that fits.
pub struct Origin(Vec<(PathBuf, &'static str)>);

impl Origin {
    /// `sysroot`: of a compiler that may have the library's sources.
    pub fn new(root: &Path, sysroot: Option<&Path>) -> Self {
        let set = |name: &str| env::var_os(name).filter(|v: &OsString| !v.is_empty()).map(PathBuf::from);
        let home = set("CARGO_HOME").or_else(|| Some(set("HOME")?.join(".cargo")));
        Self::of(root, home.as_deref(), sysroot)
    }

    fn of(root: &Path, cargo_home: Option<&Path>, sysroot: Option<&Path>) -> Self {
        let mut all = Vec::new();
        if let Some(sysroot) = sysroot {
            all.push((sysroot.join("lib/rustlib/src/rust"), "/rust"));
        }
        if let Some(home) = cargo_home {
            all.push((home.to_path_buf(), "/cargo"));
            // Below it a folder for each registry, named after its host: a mirror is no other source.
            let registries = fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten();
            let mut registries: Vec<PathBuf> = registries.map(|e| e.path()).collect();
            registries.sort();
            all.extend(registries.into_iter().map(|folder| (folder, "/cargo/registry")));
        }
        all.push((root.to_path_buf(), "/src"));
        Self(all)
    }

    pub fn flags(&self) -> Vec<String> {
        self.0.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect()
    }

    /// The same for a C compiler, whose `assert` has the file's path in it. Its flags are split at spaces.
    pub fn c_flags(&self) -> String {
        let maps = self.0.iter().map(|(from, to)| format!("-ffile-prefix-map={}={to}", from.display()));
        maps.filter(|flag| !flag.contains(' ')).collect::<Vec<_>>().join(" ")
    }

    /// An error when a program tells one of these folders all the same.
    pub fn is_untold(&self, name: &str, program: &[u8]) -> Result<()> {
        // The name of a folder right below `/` may well stand in a program for another reason.
        let folders = self.0.iter().map(|(folder, _)| folder).filter(|f| f.components().count() > 2);
        let marks: Vec<String> = folders.map(|f| format!("{}/", f.display())).collect();
        // One pass: a program has tens of megabytes.
        for (at, _) in program.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            if marks.iter().any(|mark| program[at..].starts_with(mark.as_bytes())) {
                let told: Vec<u8> = program[at..].iter().copied().take(120).collect();
                let told = String::from_utf8_lossy(&told).escape_debug().to_string();
                bail!("{name} names a folder of this machine: {told}");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Origin;
    use crate::child::TempDir;
    use std::fs;
    use std::path::Path;

    #[test]
    fn the_registry_loses_its_hosts_name_and_the_repository_comes_last() {
        let home = TempDir::new("cargo-home").expect("a folder");
        let registry = home.path().join("registry/src/mirror.example-0123");
        fs::create_dir_all(&registry).expect("a folder");
        let origin = Origin::of(Path::new("/home/me/fgm"), Some(home.path()), Some(Path::new("/opt/rust")));
        let flag = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
        assert_eq!(
            origin.flags(),
            [
                flag(Path::new("/opt/rust/lib/rustlib/src/rust"), "/rust"),
                flag(home.path(), "/cargo"),
                flag(&registry, "/cargo/registry"),
                flag(Path::new("/home/me/fgm"), "/src"),
            ]
        );
        let spaced = Origin::of(Path::new("/home/me/fgm"), Some(Path::new("/home/my own/.cargo")), None);
        assert_eq!(spaced.c_flags(), "-ffile-prefix-map=/home/me/fgm=/src");
    }

    #[test]
    fn a_program_that_names_the_home_folder_is_refused() {
        let origin = Origin::of(Path::new("/src"), Some(Path::new("/root/.cargo")), None);
        assert!(origin.is_untold("fgm", b"\0/src/agent/src/main.rs\0/cargo/registry/serde-1/lib.rs").is_ok());
        let told = origin.is_untold("fgm", b"\0/root/.cargo/registry/src/x/serde-1/lib.rs\0");
        assert!(told.expect_err("must be refused").to_string().contains("serde-1/lib.rs"));
    }
}
