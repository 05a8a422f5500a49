//! The programs of a one-node cluster, made once and kept in the cache: kube-apiserver, kube-controller-manager, kube-scheduler, kubelet
//! and pause compiled from Debian's source package; etcd, containerd, runc, CNI plugins and kubectl from Debian's packages.
//! Must never leave a folder that looks whole and is not: it is made beside its place and renamed in. What the compiler has done stays
//! until all is done, so that a build that was interrupted goes on where it was. Called by `kubernetes`.
//!
//! Debian bookworm is the last release whose source package has every command and all that they are made of. It is Kubernetes 1.20, an
//! old one; what the agent asks of it (list and watch pods) has not changed since. Two cores need four to six minutes for it.

use crate::child::{TempDir, output, run, tool};
use crate::debian::{Apt, Of};
use crate::progress::{Step, quiet};
use crate::setup::{self, Check, Need};
use crate::{child, paths};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub const SUITE: &str = "bookworm";
const VERSION: &str = "1.20.2";
/// Raised when what is below makes something else of the same sources: a cache of another recipe is not used.
const RECIPE: u32 = 1;

/// Compiled from `cmd/` of the sources.
const COMMANDS: &[&str] = &["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"];
/// Used as Debian built them. The libraries are what runc and crun are linked with, and a machine without containers may lack them.
const PACKAGES: &[&str] = &[
    "etcd-server",
    "containerd",
    "runc",
    "crun",
    "containernetworking-plugins",
    "kubernetes-client",
    "libseccomp2",
    "libyajl2",
];
/// Needed for compiling only: the last Go of that release, and a library whose vendored version faults with it.
const BUILD_PACKAGES: &[&str] =
    &["golang-1.19-go", "golang-1.19-src", "golang-github-modern-go-reflect2-dev"];

pub const NEEDS: &[Need] = &[
    Need {
        package: "debian-archive-keyring",
        why: "proves that the sources of Kubernetes are Debian's",
        check: Check::AnyFile(&[
            "/usr/share/keyrings/debian-archive-keyring.gpg",
            "/usr/share/keyrings/debian-archive-keyring.pgp",
        ]),
    },
    Need { package: "gcc", why: "compiles the pause program", check: Check::Program("gcc") },
    Need {
        package: "libc6-dev",
        why: "compiles the pause program, statically",
        check: Check::AnyFile(&["/usr/lib/x86_64-linux-gnu/libc.a", "/usr/lib64/libc.a"]),
    },
];
/// Two cores that others use as well took forty; what was done by then is not done again.
pub const COMPILE: Duration = Duration::from_mins(80);

/// A folder with `bin/`, what the packages have below `usr/`, and `versions`.
pub struct Programs(PathBuf);

impl Programs {
    pub fn at(dir: &Path) -> Self {
        Self(dir.to_path_buf())
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// One of them, as a command that finds the others and their libraries.
    pub fn command(&self, name: &str) -> Result<Command> {
        let mut c = child::bound_to_us(self.program(name)?);
        self.surround(&mut c);
        Ok(c)
    }

    pub fn surround(&self, c: &mut Command) {
        let own = self.folders().map(PathBuf::into_os_string);
        let path = std::env::var_os("PATH").unwrap_or_default();
        c.env("PATH", [own.join(OsStr::new(":")), path].join(OsStr::new(":")));
        c.env("LD_LIBRARY_PATH", self.0.join("usr/lib/x86_64-linux-gnu"));
    }

    fn folders(&self) -> [PathBuf; 3] {
        ["bin", "usr/bin", "usr/sbin"].map(|d| self.0.join(d))
    }

    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let found = self.folders().map(|d| d.join(name)).into_iter().find(|p| p.is_file());
        found.with_context(|| {
            format!("{} has no {name}: remove that folder and run this again", self.0.display())
        })
    }

    /// The CNI plugins' folder.
    pub fn plugins(&self) -> PathBuf {
        self.0.join("usr/lib/cni")
    }

    /// What the programs say of themselves, and the packages that they come from.
    pub fn versions(&self) -> Result<String> {
        let said = |name: &str, arg: &str| -> Result<String> {
            let mut c = self.command(name)?;
            let text = output(c.arg(arg))?;
            Ok(text.lines().next().unwrap_or_default().trim().to_owned())
        };
        let kubernetes = said("kubelet", "--version")?;
        let (containerd, runc) = (said("containerd", "--version")?, said("runc", "--version")?);
        let (crun, etcd) = (said("crun", "--version")?, said("etcd", "--version")?);
        Ok(format!("{kubernetes} · {containerd} · {runc} · {crun} · {etcd}"))
    }
}

/// Whether the cache has them.
pub fn are_made() -> Result<bool> {
    Ok(place()?.join("versions").exists())
}

fn place() -> Result<PathBuf> {
    Ok(folder_in(&paths::cache()?.join("kubernetes")))
}

pub fn folder_in(cache: &Path) -> PathBuf {
    cache.join(format!("{VERSION}-{RECIPE}"))
}

/// The programs, made unless the cache has them.
pub fn ready() -> Result<Programs> {
    let dir = place()?;
    let (parent, name) = (dir.with_file_name(""), format!("{VERSION}-{RECIPE}"));
    if dir.join("versions").exists() {
        return Ok(Programs(dir));
    }
    setup::ensure(NEEDS)?;
    fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
    sweep(&parent);
    let work = Work(parent.join(format!(".{name}-{}", std::process::id())));
    let _ = fs::remove_dir_all(&work.0);
    let fresh = work.0.join("fresh");
    fs::create_dir_all(fresh.join("bin")).with_context(|| format!("cannot create {}", fresh.display()))?;
    // Go's objects are the same wherever its sources are (-trimpath), and each stands for itself: an old one is no danger.
    let objects = parent.join(format!("{name}-objects"));
    make(&work.0, &fresh, &objects)?;
    if fs::rename(&fresh, &dir).is_err() && !dir.join("versions").exists() {
        // An older incomplete folder is in the way.
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        fs::rename(&fresh, &dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    // Gone already is as good.
    let _ = fs::remove_dir_all(&objects);
    Ok(Programs(dir))
}

/// Gigabytes that are of no use to anybody once the programs are made, or the build is given up.
struct Work(PathBuf);

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a build that was killed left: its folder carries the number of a process that is no more.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix('.').and_then(|n| n.rsplit_once('-')).and_then(|(_, n)| n.parse().ok());
        if pid.is_some_and(|pid: u32| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn make(work: &Path, fresh: &Path, objects: &Path) -> Result<()> {
    let step = Step::begin(format!("fetching Kubernetes {VERSION} and what it runs on from Debian {SUITE}"));
    let state = TempDir::new("apt")?;
    let apt = Apt::new(state.path(), SUITE, Of::Sources)?;
    apt.update()?;
    let mut packages = apt.unpack(PACKAGES, fresh)?;
    let build = work.join("build");
    packages.extend(apt.unpack(BUILD_PACKAGES, &build)?);
    let sources = work.join("sources");
    fs::create_dir_all(&sources)?;
    apt.source("kubernetes", &sources)?;
    let (archive, version) = archive_in(&sources)?;
    packages.push(format!("kubernetes_{version}_source"));
    step.done(&version);

    let go = Go::new(&build, work, objects);
    let tree = go.path.join("src/k8s.io/kubernetes");
    fs::create_dir_all(&tree)?;
    let mut c = tool("tar");
    c.arg("-xf").arg(&archive).args(["--strip-components=1", "-C"]).arg(&tree);
    quiet("unpacking the sources", "kubernetes-unpack", Duration::from_mins(5), &mut c)?;
    renew_reflect2(&build, &tree)?;
    generate(&go, &tree, work)?;
    let mut c = go.build(&tree);
    c.arg("-o").arg(fresh.join("bin")).args(["-ldflags", &stamped()]);
    c.args(COMMANDS.iter().map(|name| format!("./cmd/{name}")));
    quiet(&format!("compiling {}", COMMANDS.join(", ")), "kubernetes-build", COMPILE, &mut c)?;
    pause(&tree, &fresh.join("bin/pause"))?;
    for name in COMMANDS.iter().chain(&["etcd", "containerd", "runc", "crun", "ctr", "kubectl", "pause"]) {
        Programs::at(fresh).program(name)?;
    }
    fs::write(fresh.join("versions"), packages.join("\n")).context("cannot write the list of versions")
}

/// `kubernetes_VERSION.orig.tar.gz`, which must be of the version that the recipe is for.
fn archive_in(sources: &Path) -> Result<(PathBuf, String)> {
    for entry in fs::read_dir(sources)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let version = name.split_once(".orig.tar.").and_then(|(v, _)| v.strip_prefix("kubernetes_"));
        if let Some(version) = version {
            // Debian writes `1.20.5+really1.20.2` where it went back to an older one
            if !version.rsplit("really").next().is_some_and(|v| v.starts_with(VERSION)) {
                bail!("Debian {SUITE} has Kubernetes {version} now, and this builds {VERSION}");
            }
            return Ok((entry.path(), version.to_owned()));
        }
    }
    bail!("the source package kubernetes has no kubernetes_*.orig.tar.*")
}

/// Debian's Go, in a folder of ours, as it was before modules: the sources bring all that they import.
struct Go {
    root: PathBuf,
    path: PathBuf,
    cache: PathBuf,
}

impl Go {
    fn new(build: &Path, work: &Path, objects: &Path) -> Self {
        let root = build.join("usr/lib/go-1.19");
        Self { root, path: work.join("go"), cache: objects.to_path_buf() }
    }

    fn build(&self, tree: &Path) -> Command {
        let mut c = child::bound_to_us(self.root.join("bin/go"));
        c.args(["build", "-trimpath"]).current_dir(tree);
        c.env("GOROOT", &self.root).env("GOPATH", &self.path).env("GOCACHE", &self.cache);
        c.env("GO111MODULE", "off").env("GOFLAGS", "").env("CGO_ENABLED", "0");
        c.env_remove("GOTOOLDIR").env_remove("GOARCH").env_remove("GOOS");
        c
    }
}

/// The version that the programs are to tell.
fn stamped() -> String {
    let mut flags = "-s -w".to_owned();
    for package in ["component-base/version", "client-go/pkg/version"] {
        for (name, value) in [
            ("gitVersion", format!("v{VERSION}")),
            ("gitMajor", "1".to_owned()),
            ("gitMinor", "20".to_owned()),
        ] {
            // Writing to a String cannot fail.
            let _ = write!(flags, " -X k8s.io/kubernetes/vendor/k8s.io/{package}.{name}={value}");
        }
    }
    flags
}

/// The vendored one is 1.0.1, which faults with Go 1.18 and later.
fn renew_reflect2(build: &Path, tree: &Path) -> Result<()> {
    let to = tree.join("vendor/github.com/modern-go/reflect2");
    let from = build.join("usr/share/gocode/src/github.com/modern-go/reflect2");
    for file in sources_in(&to)? {
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    for file in fs::read_dir(&from).with_context(|| format!("no {}", from.display()))?.flatten() {
        let name = file.file_name();
        let is_code = ["go", "s"].iter().any(|e| Path::new(&name).extension().is_some_and(|x| x == *e));
        if is_code && !name.to_string_lossy().ends_with("_test.go") {
            fs::copy(file.path(), to.join(&name))
                .with_context(|| format!("cannot copy {}", name.display()))?;
        }
    }
    Ok(())
}

/// The Go files right in a folder.
fn sources_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let files = entries.flatten().map(|e| e.path());
    Ok(files.filter(|p| p.is_file() && p.extension().is_some_and(|e| e == "go")).collect())
}

/// Makes `zz_generated.openapi.go`, which the archive lacks and the API server does not compile without.
fn generate(go: &Go, tree: &Path, work: &Path) -> Result<()> {
    let generator = work.join("openapi-gen");
    let mut c = go.build(tree);
    c.arg("-o").arg(&generator).arg("./vendor/k8s.io/kube-openapi/cmd/openapi-gen");
    quiet("compiling openapi-gen", "kubernetes-openapi-gen", COMPILE, &mut c)?;
    let mut packages = Vec::new();
    for (top, import) in [
        ("staging/src/k8s.io", "k8s.io/kubernetes/vendor/k8s.io"),
        ("pkg", "k8s.io/kubernetes/pkg"),
        ("cmd", "k8s.io/kubernetes/cmd"),
    ] {
        let mut found = BTreeSet::new();
        tagged(&tree.join(top), &mut found)?;
        for dir in found {
            let below = dir.strip_prefix(tree.join(top)).context("a folder outside its tree")?;
            packages.push(format!("{import}/{}", below.display()));
        }
    }
    let mut c = child::bound_to_us(&generator);
    c.current_dir(tree).env("GOROOT", &go.root).env("GOPATH", &go.path).env("GO111MODULE", "off");
    c.env("GOCACHE", &go.cache).env("PATH", with_go(go));
    c.args(["--v", "0", "--logtostderr", "-i", &packages.join(",")]);
    c.args([
        "-p",
        "k8s.io/kubernetes/pkg/generated/openapi",
        "-O",
        "zz_generated.openapi",
        "-r",
        "/dev/null",
    ]);
    c.args(["-h", "vendor/k8s.io/code-generator/hack/boilerplate.go.txt"]);
    quiet("generating the API's description", "kubernetes-openapi", COMPILE, &mut c)
}

fn with_go(go: &Go) -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    [go.root.join("bin").into_os_string(), path].join(OsStr::new(":"))
}

/// Folders below `dir` with a file that asks for a description of its types.
fn tagged(dir: &Path, found: &mut BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?.flatten() {
        let path = entry.path();
        let text = path.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if !["code-generator", "sample-"].iter().any(|w| text.contains(w)) {
                tagged(&path, found)?;
            }
        } else if text.ends_with(".go") && !text.ends_with("_test.go") {
            let code = fs::read(&path).with_context(|| format!("cannot read {text}"))?;
            if String::from_utf8_lossy(&code).contains("+k8s:openapi-gen=") {
                found.insert(dir.to_path_buf());
            }
        }
    }
    Ok(())
}

/// The program that holds a pod's namespaces.
fn pause(tree: &Path, to: &Path) -> Result<()> {
    let source = ["build/pause/linux/pause.c", "build/pause/pause.c"].map(|p| tree.join(p));
    let source = source.iter().find(|p| p.exists()).context("the sources have no build/pause/pause.c")?;
    run(tool("gcc").args(["-Os", "-Wall", "-static", "-s", "-DVERSION=fgm"]).arg("-o").arg(to).arg(source))
}

#[cfg(test)]
mod tests {
    use super::{archive_in, sweep, tagged};
    use crate::child::TempDir;
    use std::collections::BTreeSet;
    use std::fs;

    #[test]
    fn an_archive_of_another_version_is_refused() {
        let dir = TempDir::new("sources").expect("a folder");
        assert!(archive_in(dir.path()).is_err());
        fs::write(dir.path().join("kubernetes_1.20.5+really1.20.2.orig.tar.gz"), "").expect("a file");
        assert_eq!(archive_in(dir.path()).expect("an archive").1, "1.20.5+really1.20.2");
        fs::remove_dir_all(dir.path()).expect("removed");
        fs::create_dir(dir.path()).expect("a folder");
        fs::write(dir.path().join("kubernetes_1.20.2+really1.30.1.orig.tar.xz"), "").expect("a file");
        assert!(archive_in(dir.path()).expect_err("must be refused").to_string().contains("1.30.1"));
    }

    #[test]
    fn only_what_a_dead_build_left_is_swept() {
        let dir = TempDir::new("sweep").expect("a folder");
        let own = format!(".1.20.2-1-{}", std::process::id());
        for name in [own.as_str(), ".1.20.2-1-4294967295", "1.20.2-1"] {
            fs::create_dir(dir.path().join(name)).expect("a folder");
        }
        sweep(dir.path());
        assert!(dir.path().join(own).exists() && dir.path().join("1.20.2-1").exists());
        assert!(!dir.path().join(".1.20.2-1-4294967295").exists());
    }

    #[test]
    fn folders_that_ask_for_a_description_are_found() {
        let dir = TempDir::new("tagged").expect("a folder");
        for (path, text) in [
            ("api/v1/doc.go", "// +k8s:openapi-gen=true\n"),
            ("api/v2/doc.go", "package v2\n"),
            ("sample-server/doc.go", "// +k8s:openapi-gen=true\n"),
            ("api/v3/a_test.go", "// +k8s:openapi-gen=true\n"),
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
            fs::write(path, text).expect("a file");
        }
        let mut found = BTreeSet::new();
        tagged(dir.path(), &mut found).expect("read");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [dir.path().join("api/v1")]);
    }
}
