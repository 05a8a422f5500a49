//! Debian's packages and sources without installing any: an apt whose sources, lists, cache and dpkg status are in one folder of ours.
//! Must never touch the machine's own apt lists, sources or packages. Called by `kernel` and `kubernetes`.

use crate::child::{Reaped, TempDir, output, run, tail, tool, wait_until};
use crate::clock::Deadline;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What a suite is asked for; the lists of sources are 10 MB more.
#[derive(Clone, Copy, PartialEq)]
pub enum Of {
    Binaries,
    Sources,
}

pub struct Apt {
    state: PathBuf,
}

impl Apt {
    pub fn new(state: &Path, suite: &str, of: Of) -> Result<Self> {
        for folder in
            ["lists/partial", "cache/archives/partial", "etc/preferences.d", "etc/apt.conf.d", "debs"]
        {
            fs::create_dir_all(state.join(folder))
                .with_context(|| format!("cannot create {}/{folder}", state.display()))?;
        }
        fs::write(state.join("status"), "")?;
        let keyring = ["gpg", "pgp"]
            .map(|e| format!("/usr/share/keyrings/debian-archive-keyring.{e}"))
            .into_iter()
            .find(|p| Path::new(p).exists())
            .context("no Debian archive keyring (package debian-archive-keyring)")?;
        let archive = archive()?;
        let sources = if of == Of::Sources {
            format!("deb-src [signed-by={keyring}] {archive} {suite} main\n")
        } else {
            String::new()
        };
        let binaries = format!("deb [arch=amd64 signed-by={keyring}] {archive} {suite} main\n");
        fs::write(state.join("etc/sources.list"), binaries + &sources)?;
        Ok(Self { state: state.to_path_buf() })
    }

    fn command(&self, program: &str) -> Command {
        let at = |name: &str| self.state.join(name).display().to_string();
        let mut c = tool(program);
        for option in [
            format!("Dir::Etc={}", at("etc")),
            format!("Dir::Etc::sourcelist={}", at("etc/sources.list")),
            "Dir::Etc::sourceparts=/dev/null".into(),
            format!("Dir::State={}", self.state.display()),
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::State::status={}", at("status")),
            format!("Dir::Cache={}", at("cache")),
            "APT::Architecture=amd64".into(),
            "APT::Sandbox::User=root".into(),
            "Acquire::Languages=none".into(),
            "Acquire::Retries=3".into(),
        ] {
            c.arg("-o").arg(option);
        }
        c
    }

    pub fn update(&self) -> Result<()> {
        bounded(self.command("apt-get").args(["-qq", "update"]), Duration::from_mins(5))
    }

    /// Names of the suite's packages that begin so (all: an empty prefix), one a line.
    pub fn names(&self, prefix: &str) -> Result<String> {
        let prefix = (!prefix.is_empty()).then_some(prefix);
        output(self.command("apt-cache").arg("pkgnames").args(prefix))
    }

    /// Fetches packages, without what they depend on, and unpacks them into one folder. Their versions are `NAME_VERSION_ARCH` in
    /// the names of the files, which are given back.
    pub fn unpack(&self, packages: &[impl AsRef<std::ffi::OsStr>], into: &Path) -> Result<Vec<String>> {
        let debs = self.state.join("debs");
        let mut download = self.command("apt-get");
        download.args(["-qq", "download"]).args(packages).current_dir(&debs);
        bounded(&mut download, Duration::from_mins(10))?;
        let mut names = Vec::new();
        for deb in fs::read_dir(&debs)?.flatten().map(|d| d.path()) {
            run(tool("dpkg-deb").arg("-x").arg(&deb).arg(into))?;
            // gone, so that what is unpacked next is another lot
            fs::remove_file(&deb).with_context(|| format!("cannot remove {}", deb.display()))?;
            names.extend(deb.file_stem().map(|n| n.to_string_lossy().into_owned()));
        }
        names.sort();
        Ok(names)
    }

    /// Fetches the files of a source package, checked by apt and not unpacked.
    pub fn source(&self, package: &str, into: &Path) -> Result<()> {
        let mut c = self.command("apt-get");
        c.args(["-qq", "source", "--download-only", package]).current_dir(into);
        bounded(&mut c, Duration::from_mins(10))
    }
}

/// The Debian archive that the machine itself uses, so that a company's mirror is honoured.
fn archive() -> Result<String> {
    if let Ok(set) = std::env::var("FGM_DEBIAN_MIRROR") {
        return Ok(set);
    }
    let targets = output(tool("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]));
    let own = targets.unwrap_or_default();
    let own = own.lines().map(|l| l.trim().trim_end_matches('/')).find(|l| l.ends_with("/debian"));
    own.map(str::to_owned).context(
        "this machine's apt knows no Debian archive (on Ubuntu it does not), and the test VM's kernels come from one: \
         set FGM_DEBIAN_MIRROR to the address of a Debian mirror, up to and with its /debian",
    )
}

/// A command without the dozen options that keep apt in a folder of ours.
fn brief(command: &Command) -> String {
    let mut words = vec![command.get_program().display().to_string()];
    let mut args = command.get_args();
    while let Some(arg) = args.next() {
        if arg == "-o" {
            args.next();
        } else {
            words.push(arg.display().to_string());
        }
    }
    words.join(" ")
}

fn bounded(command: &mut Command, limit: Duration) -> Result<()> {
    let log = TempDir::new("log")?;
    let path = log.path().join("out");
    let file = fs::File::create(&path)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let child =
        command.spawn().with_context(|| format!("cannot start `{}`", command.get_program().display()))?;
    let mut child = Reaped(child);
    match wait_until(&mut child.0, Deadline::after(limit))? {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("{} failed: {status}\n{}", brief(command), tail(&path, 20)),
        None => bail!("{} was ended after {} s", brief(command), limit.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_command_is_shown_without_apts_options() {
        let mut command = std::process::Command::new("apt-get");
        command.args(["-o", "Dir::Etc=/x", "-qq", "update"]);
        assert_eq!(super::brief(&command), "apt-get -qq update");
    }
}
