//! One virtiofs daemon for one shared folder: the C one that QEMU 7 carries, or the Rust one that replaced it.
//! Must never outlive the VM. Called by `vm`.

use crate::child::{Reaped, bound_to_us, tail, tool};
use crate::clock::Deadline;
use crate::setup;
use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

pub struct Daemon {
    socket: PathBuf,
    tag: String,
    _process: Reaped,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    C,
    Rust,
}

impl Daemon {
    /// `cache` is the daemon's word for how long the guest may trust what it saw: `always` or `auto`.
    pub fn start(side: &Path, tag: &str, dir: &Path, cache: &str) -> Result<Self> {
        let (program, kind, help) = find()?;
        let socket = side.join(format!("{tag}.socket"));
        let log = side.join(format!("{tag}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut c = raised(&program);
        c.arg(format!("--socket-path={}", socket.display()));
        let root = setup::is_root();
        match kind {
            Kind::C => {
                c.arg("-o").arg(format!("source={},cache={cache},sandbox=chroot,xattr", dir.display()));
                c.arg("--rlimit-nofile=0");
            }
            Kind::Rust => {
                c.arg("--shared-dir").arg(dir).args(["--cache", cache, "--xattr"]);
                // Mount points that the guest learns of become automounts, and an overlay over those answers EREMOTE.
                // Daemons without the option keep them to themselves anyway.
                if help.contains("--no-announce-submounts") {
                    c.arg("--no-announce-submounts");
                }
                if dir == Path::new("/") && help.contains("--readonly") {
                    c.arg("--readonly");
                }
                // A user's own namespace makes the guest's root that user on the host. It pivots, which cannot be
                // done to `/`; that share is only read, and a user's rights are enough of a sandbox.
                c.args([
                    "--sandbox",
                    if root {
                        "chroot"
                    } else if dir == Path::new("/") {
                        "none"
                    } else {
                        "namespace"
                    },
                ]);
            }
        }
        c.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let process = c.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut process = Reaped(process);
        let deadline = Deadline::after(Duration::from_secs(10));
        while !socket.exists() {
            let gone = process.0.try_wait().context("cannot wait for virtiofsd")?;
            if gone.is_some() || deadline.passed() {
                bail!("{} does not share {}:\n{}", program.display(), dir.display(), tail(&log, 20));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { socket, tag: tag.to_owned(), _process: process })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn tag(&self) -> &str {
        &self.tag
    }
}

/// Whether there is a daemon that we may run; before anything is fetched for the VM.
pub fn check() -> Result<()> {
    let (program, kind, _) = find()?;
    if kind == Kind::C && !setup::is_root() {
        bail!(
            "{} works for root only: run this as root, or set FGM_VIRTIOFSD to a Rust one",
            program.display()
        );
    }
    Ok(())
}

/// The first daemon there is, with what it says of its options; `FGM_VIRTIOFSD` names another.
fn find() -> Result<(PathBuf, Kind, String)> {
    let set = std::env::var_os("FGM_VIRTIOFSD").map(PathBuf::from);
    let program = set
        .or_else(|| setup::VIRTIOFSD.iter().map(PathBuf::from).find(|p| p.exists()))
        .context("no virtiofsd (package virtiofsd, or qemu-system-common up to Debian 12)")?;
    let help = tool(&program).arg("--help").output();
    let help = help.with_context(|| format!("cannot start {}", program.display()))?;
    let help = String::from_utf8_lossy(&[help.stdout, help.stderr].concat()).into_owned();
    let kind = if help.contains("--shared-dir") { Kind::Rust } else { Kind::C };
    Ok((program, kind, help))
}

/// The daemon holds a descriptor for each inode that the guest knows: as many as we may have.
fn raised(program: &Path) -> Command {
    let mut c = bound_to_us("/bin/sh");
    let script = r#"ulimit -n 1000000 2>/dev/null || ulimit -n "$(ulimit -H -n)"; exec "$@""#;
    c.args(["-c", script, "virtiofsd"]).arg(program);
    c
}
