//! Embeds the eBPF object into the agent, when there is one.
//!
//! It is built by `cargo xtask build-ebpf`, with another compiler for another target, so this script must never build it:
//! it only copies `$FGM_EBPF_OBJECT`, or the place where xtask puts it, and sets `cfg(fgm_ebpf)`. Without an object the
//! agent compiles and runs, and says that it has no probes.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(fgm_ebpf)");
    println!("cargo::rerun-if-env-changed=FGM_EBPF_OBJECT");
    let var = |name: &str| PathBuf::from(env::var_os(name).unwrap_or_default());
    let object = match env::var_os("FGM_EBPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => var("CARGO_MANIFEST_DIR").join("../target/ebpf/bpfel-unknown-none/release/fgm-ebpf"),
    };
    // Also when it is missing: cargo then runs this script each time, and sees the object once it is there.
    println!("cargo::rerun-if-changed={}", object.display());
    if cfg!(target_endian = "big") {
        println!("cargo::warning=no eBPF object for big-endian machines: the agent will have no probes");
        return;
    }
    if !object.is_file() {
        if env::var_os("FGM_EBPF_OBJECT").is_some() {
            println!("cargo::error=FGM_EBPF_OBJECT names {}, which is no file", object.display());
        }
        return;
    }
    let embedded = var("OUT_DIR").join("fgm-ebpf");
    match fs::copy(&object, &embedded) {
        Ok(_) => println!("cargo::rustc-cfg=fgm_ebpf"),
        Err(e) => {
            println!("cargo::error=can't copy {} to {}: {e}", object.display(), embedded.display());
        }
    }
}
