//! The test VM's initrd: busybox, the modules that the root share needs and our two scripts, as a newc cpio archive.
//! Must never depend on anything that differs between runs: its name is the hash of what goes into it.
//! Called by `kernel`.

use crate::child::{output, tool};
use crate::paths::which;
use anyhow::{Context as _, Result, bail};
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

const INIT: &str = include_str!("../vm/init");
const GUEST: &str = include_str!("../vm/guest");

/// What is loaded before the root exists; the rest can be loaded by `modprobe` from the guest.
const MODULES: &[&str] = &["virtio_pci", "virtiofs", "overlay", "virtio_blk", "virtio_rng"];

pub fn ready(kernel: &Path, version: &str) -> Result<PathBuf> {
    let busybox = which("busybox").context("busybox is not there (package busybox-static)")?;
    let meta = fs::metadata(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let mut hasher = DefaultHasher::new();
    (INIT, GUEST, MODULES, version, meta.len()).hash(&mut hasher);
    let path = kernel.join(format!("initrd-{:016x}", hasher.finish()));
    if path.exists() {
        return Ok(path);
    }
    let bytes = build(kernel, version, &busybox)?;
    let fresh = kernel.join(format!(".initrd-{}", std::process::id()));
    fs::write(&fresh, bytes).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, &path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

fn build(kernel: &Path, version: &str, busybox: &Path) -> Result<Vec<u8>> {
    let busybox = fs::read(busybox).context("cannot read busybox")?;
    // PT_INTERP is what a dynamic program has and a static one lacks; its text is enough to tell them apart.
    if busybox.windows(8).any(|w| w == b"/ld-linu") {
        bail!("busybox is linked dynamically and the test VM needs a static one (package busybox-static)");
    }
    let mut archive = Cpio::default();
    for dir in ["bin", "proc", "dev", "lower", "cow", "newroot", "mod"] {
        archive.entry(dir, 0o040_755, b"");
    }
    archive.entry("bin/busybox", 0o100_755, &busybox);
    archive.entry("init", 0o100_755, INIT.as_bytes());
    archive.entry("guest", 0o100_755, GUEST.as_bytes());
    let mut order = String::new();
    for file in module_files(kernel, version)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let name = name.split(".ko").next().unwrap_or_default().to_owned();
        archive.entry(&format!("mod/{name}.ko"), 0o100_644, &unpacked(&file)?);
        order.push_str(&name);
        order.push('\n');
    }
    archive.entry("mod/order", 0o100_644, order.as_bytes());
    Ok(archive.finish())
}

/// Module files in the order in which they have to be loaded, each once.
fn module_files(kernel: &Path, version: &str) -> Result<Vec<PathBuf>> {
    let modprobe = which("modprobe").context("modprobe is not there (package kmod)")?;
    let mut files: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        let mut c = tool(&modprobe);
        c.arg("-d").arg(kernel.join("usr")).args(["-S", version, "--show-depends", module]);
        let shown = output(&mut c).with_context(|| format!("kernel {version} has no module {module}"))?;
        for line in shown.lines() {
            let Some(path) = line.trim().strip_prefix("insmod ") else { continue };
            let path = PathBuf::from(path.split_whitespace().next().unwrap_or_default());
            if !files.contains(&path) {
                files.push(path);
            }
        }
    }
    Ok(files)
}

fn unpacked(module: &Path) -> Result<Vec<u8>> {
    let program = match module.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(module).with_context(|| format!("cannot read {}", module.display())),
    };
    let done = tool(program).arg("-dc").arg(module).stdin(Stdio::null()).output();
    let done = done.with_context(|| format!("cannot start {program}"))?;
    if !done.status.success() {
        bail!(
            "{program} cannot unpack {}: {}",
            module.display(),
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(done.stdout)
}

/// The "newc" cpio format that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.inode += 1;
        let (inode, size, name_size) = (self.inode, data.len(), name.len() + 1);
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}\
             {0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}",
            0, 1
        );
        // Writing to a Vec cannot fail.
        let _ = self.bytes.write_all(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(data);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::Cpio;

    #[test]
    fn cpio_is_aligned_and_ends_with_a_trailer() {
        let mut archive = Cpio::default();
        archive.entry("init", 0o100_755, b"abc");
        let bytes = archive.finish();
        assert!(bytes.starts_with(b"070701"));
        assert_eq!(bytes.len() % 4, 0);
        // Header 110 + "init\0" padded to 116, data padded to 120: the trailer's header follows.
        assert_eq!(&bytes[116..119], b"abc");
        assert_eq!(&bytes[120..126], b"070701");
        assert!(bytes.windows(11).any(|w| w == b"TRAILER!!!\0"));
    }
}
