//! `cargo xtask image`: the agent as an OCI image FROM scratch, one static binary in one layer, without Docker.
//! Must give the same bytes for the same binary, and must never push anything anywhere. Called by a person, by `cluster` and by `kubernetes`.
//!
//! The file is an OCI image layout in a tar, with Docker's `manifest.json` beside its `index.json`, so that `ctr images import`,
//! `kind load image-archive`, `minikube image load`, `podman load` and `docker load` all take it. The layer is not
//! compressed: importers store it unpacked anyway, and a compressor's version would change the digest.
//!
//! `deploy/Containerfile` makes the same with Docker or podman: it has the content from `--root`, and a test holds the rest.

#[cfg(test)]
mod containerfile;

use crate::origin::Origin;
use crate::progress::say;
use crate::setup::{self, Check, Need};
use crate::{child, ebpf, paths, usage};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

const USAGE: &str =
    "cargo xtask image [--workload] [--out FILE] [--tag NAME:TAG] [--root FOLDER] [--without-certificates]";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// What the agent's TLS clients trust: where distributions keep it, Debian's first.
const CERTIFICATES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Where the agent looks for it.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";
const NEEDS: &[Need] = &[Need {
    package: "ca-certificates",
    why: "what the agent in the image trusts when it speaks to a bucket",
    check: Check::AnyFile(CERTIFICATES),
}];

/// What is in an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Of {
    Agent,
    /// The program that scenarios are made of.
    Workload,
    /// What holds a pod's namespaces on the test's node; not built here.
    Pause,
}

impl Of {
    fn program(self) -> &'static str {
        match self {
            Self::Agent => "fgm",
            Self::Workload => "workload",
            Self::Pause => "pause",
        }
    }
}

/// How a program in an image is compiled.
#[derive(Clone, Copy, PartialEq)]
pub enum Profile {
    /// As it is delivered.
    Release,
    /// In a third of the time, for a test of everything around it.
    Dev,
}

impl Profile {
    fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "dev",
        }
    }
}

#[derive(Debug, PartialEq)]
struct Args {
    of: Of,
    out: PathBuf,
    tag: String,
    /// The content as a folder, and no image.
    root: Option<PathBuf>,
    without_certificates: bool,
}

impl Args {
    fn parse(words: &[String]) -> Result<Self> {
        let mut words = words.iter().map(String::as_str);
        let (mut of, mut out, mut tag, mut root) = (Of::Agent, None, None, None);
        let mut without_certificates = false;
        while let Some(word) = words.next() {
            match word {
                "--workload" => of = Of::Workload,
                "--out" => out = Some(PathBuf::from(usage::value(words.next(), word, USAGE)?)),
                "--tag" => tag = Some(usage::value(words.next(), word, USAGE)?.to_owned()),
                "--root" => root = Some(PathBuf::from(usage::value(words.next(), word, USAGE)?)),
                "--without-certificates" => without_certificates = true,
                _ => return Err(usage::wrong(format!("unknown option `{word}`"), USAGE)),
            }
        }
        if root.is_some() && (out.is_some() || tag.is_some()) {
            return Err(usage::wrong("--root makes no image, which --out and --tag are for", USAGE));
        }
        let tag = tag.unwrap_or_else(|| if of == Of::Agent { default_tag() } else { workload_tag() });
        if !tag.rsplit_once(':').is_some_and(|(name, tag)| !name.is_empty() && !tag.contains('/')) {
            return Err(usage::wrong(format!("`{tag}` is not NAME:TAG"), USAGE));
        }
        Ok(Self { of, out: out.unwrap_or_else(|| archive(of)), tag, root, without_certificates })
    }
}

pub fn verb(args: &[OsString]) -> Result<i32> {
    let words: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let args = Args::parse(&words)?;
    // First, so that what is missing is said before minutes of compiling.
    let certificates = if args.without_certificates { None } else { certificates(args.of)? };
    let program = build(args.of, Profile::Release)?;
    if let Some(root) = &args.root {
        unpack(args.of, &program, certificates.as_deref(), root)?;
        println!("{}", root.display());
    } else {
        println!("{}", make(args.of, &program, certificates.as_deref(), &args.out, &args.tag)?);
    }
    Ok(0)
}

/// What an image's clients are to trust; of those that have none, nothing.
pub fn certificates(of: Of) -> Result<Option<Vec<u8>>> {
    if of != Of::Agent {
        return Ok(None);
    }
    let mend = "`--without-certificates` makes an image that trusts no certificate authority";
    setup::ensure(NEEDS).context(mend)?;
    let places: Vec<&Path> = CERTIFICATES.iter().map(Path::new).collect();
    bundle(&places).map(Some).context(mend)
}

fn bundle(places: &[&Path]) -> Result<Vec<u8>> {
    let shown: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
    let Some(place) = places.iter().find(|p| p.exists()) else {
        bail!("no certificates here: neither {}", shown.join(" nor "));
    };
    let bytes = fs::read(place).with_context(|| format!("cannot read {}", place.display()))?;
    let mark = b"-----BEGIN CERTIFICATE-----";
    if !bytes.windows(mark.len()).any(|w| w == mark) {
        bail!("{} has no certificate in it", place.display());
    }
    Ok(bytes)
}

/// Where an image is put unless told.
pub fn archive(of: Of) -> PathBuf {
    paths::target().join(format!("image/{}.tar", of.program()))
}

/// Writes the image of a static program; what it is, as JSON.
pub fn make(of: Of, program: &Path, certificates: Option<&[u8]>, out: &Path, tag: &str) -> Result<Value> {
    must_be_static(program)?;
    let binary = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let image = assemble(of, &binary, certificates, tag)?;
    if let Some(dir) = out.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let mut file = File::create(out).with_context(|| format!("cannot create {}", out.display()))?;
    file.write_all(&image.archive).with_context(|| format!("cannot write {}", out.display()))?;
    Ok(json!({ "image": tag, "archive": out, "digest": image.digest, "bytes": image.archive.len() }))
}

/// Writes what would be in the image into a folder, for who makes it with another tool.
fn unpack(of: Of, program: &Path, certificates: Option<&[u8]>, root: &Path) -> Result<()> {
    must_be_static(program)?;
    let binary = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let layer = layer(of, &binary, certificates)?;
    fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
    tar::Archive::new(layer.as_slice())
        .unpack(root)
        .with_context(|| format!("cannot write into {}", root.display()))
}

pub fn default_tag() -> String {
    format!("fgm:{}", env!("CARGO_PKG_VERSION"))
}

pub fn workload_tag() -> String {
    format!("fgm-workload:{}", env!("CARGO_PKG_VERSION"))
}

/// The static program; the agent with its kernel programs in it.
pub fn build(of: Of, profile: Profile) -> Result<PathBuf> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the image is made for x86_64 and this machine is {}", std::env::consts::ARCH);
    }
    let name = of.program();
    if of == Of::Agent {
        ebpf::build()?;
    }
    say(&format!("… building the static {name}"));
    let mut c = child::cargo();
    // Always with --target: the flag then reaches no build script, and a folder of its own keeps other builds as they are.
    let profile = profile.as_str();
    c.args(["build", "--profile", profile, "-p", name, "--bin", name, "--target", TRIPLE]);
    c.args(["--config", &format!("profile.{profile}.strip=\"symbols\"")]);
    c.args(["--message-format", "json-render-diagnostics"]);
    let sysroot = child::output(child::tool("rustc").current_dir(paths::root()).args(["--print", "sysroot"]));
    let origin = Origin::new(&paths::root(), sysroot.ok().as_deref().map(Path::new));
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    flags.extend(origin.flags());
    c.env("CARGO_TARGET_DIR", paths::target()).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    c.env(format!("CFLAGS_{}", TRIPLE.replace('-', "_")), origin.c_flags());
    let built = ebpf::executables(&mut c)?;
    let built = built.into_iter().find(|p| p.ends_with(name));
    let built = built.with_context(|| format!("cargo built no {name}"))?;
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    origin.is_untold(name, &bytes)?;
    Ok(built)
}

/// An image FROM scratch has no dynamic linker, and would say only "no such file" of a program that asks for one.
fn must_be_static(program: &Path) -> Result<()> {
    let mut head = Vec::new();
    let file = File::open(program).with_context(|| format!("cannot read {}", program.display()))?;
    file.take(4096).read_to_end(&mut head).with_context(|| format!("cannot read {}", program.display()))?;
    if has_interpreter(&head) {
        bail!("{} is linked dynamically; it cannot run in an image FROM scratch", program.display());
    }
    Ok(())
}

/// Whether a 64-bit little-endian ELF has a program header of type PT_INTERP. Its headers stand in the first 4 KiB.
fn has_interpreter(head: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| head.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let start = head.get(32..40).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let (Some(start), Some(size), Some(count)) = (start, u16_at(54), u16_at(56)) else { return true };
    (0..usize::from(count)).any(|n| {
        let at = usize::try_from(start).unwrap_or(usize::MAX).saturating_add(n * usize::from(size));
        let kind = head.get(at..at.saturating_add(4)).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        kind.is_none_or(|k| k == PT_INTERP)
    })
}

struct Image {
    archive: Vec<u8>,
    /// Of the manifest: what a registry would call the image.
    digest: String,
}

/// All that is in the image, as a tar.
fn layer(of: Of, binary: &[u8], certificates: Option<&[u8]>) -> Result<Vec<u8>> {
    let mut layer = Tar::new();
    layer.file(of.program(), binary, 0o755)?;
    if let Some(certificates) = certificates {
        layer.folder("etc")?;
        layer.folder("etc/ssl")?;
        layer.folder("etc/ssl/certs")?;
        layer.file(BUNDLE, certificates, 0o644)?;
    }
    if of == Of::Agent {
        // The mount point of the data volume, so that a read-only root will do.
        layer.folder("var")?;
        layer.folder("var/lib")?;
        layer.folder("var/lib/fgm")?;
    }
    layer.finish()
}

/// How it is run, as a configuration has it. No `User`: root, whose capabilities are all that is used of it.
fn settings(of: Of, tag: &str) -> Value {
    let mut settings = json!({
        "Entrypoint": [format!("/{}", of.program())],
        "Env": ["PATH=/"],
        "Labels": {
            "org.opencontainers.image.title": tag.rsplit_once(':').map_or(tag, |(name, _)| name),
            "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
        },
    });
    if of == Of::Agent {
        settings["Cmd"] = json!(["agent"]);
        settings["Volumes"] = json!({ "/var/lib/fgm": {} });
        settings["ExposedPorts"] = json!({ "8050/tcp": {}, "8051/tcp": {} });
    }
    settings
}

fn assemble(of: Of, binary: &[u8], certificates: Option<&[u8]>, tag: &str) -> Result<Image> {
    let layer = layer(of, binary, certificates)?;
    let layer_digest = sha256(&layer);
    let config = bytes(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": settings(of, tag),
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
    }))?;
    let config_digest = sha256(&config);
    let manifest = bytes(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config_digest, config.len()),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer_digest, layer.len())],
    }))?;
    let manifest_digest = sha256(&manifest);
    let mut entry =
        descriptor("application/vnd.oci.image.manifest.v1+json", &manifest_digest, manifest.len());
    entry["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    // containerd takes the full name from its own key; other tools take the tag alone from OCI's.
    entry["annotations"] = json!({
        "io.containerd.image.name": full_name(tag),
        "org.opencontainers.image.ref.name": tag.rsplit_once(':').map_or(tag, |(_, t)| t),
    });
    let blob = |digest: &str| format!("blobs/sha256/{digest}");
    let docker =
        json!([{ "Config": blob(&config_digest), "RepoTags": [tag], "Layers": [blob(&layer_digest)] }]);
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    let mut archive = Tar::new();
    archive.file("oci-layout", &bytes(&json!({ "imageLayoutVersion": "1.0.0" }))?, 0o644)?;
    archive.file("index.json", &bytes(&index)?, 0o644)?;
    archive.file("manifest.json", &bytes(&docker)?, 0o644)?;
    archive.folder("blobs")?;
    archive.folder("blobs/sha256")?;
    for (digest, content) in
        [(&config_digest, &config), (&manifest_digest, &manifest), (&layer_digest, &layer)]
    {
        archive.file(&blob(digest), content, 0o644)?;
    }
    Ok(Image { archive: archive.finish()?, digest: format!("sha256:{manifest_digest}") })
}

/// The name as container runtimes write it out: `fgm:1` is `docker.io/library/fgm:1`.
fn full_name(tag: &str) -> String {
    match tag.split_once('/') {
        None => format!("docker.io/library/{tag}"),
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => tag.to_owned(),
        Some(_) => format!("docker.io/{tag}"),
    }
}

fn descriptor(media_type: &str, digest: &str, size: usize) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size })
}

fn bytes(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).context("JSON that cannot be written")
}

fn sha256(content: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(content).iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// A tar whose bytes depend on names and contents only: owner root, time 0.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn file(&mut self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        self.entry(name, content, mode, tar::EntryType::Regular)
    }

    fn folder(&mut self, name: &str) -> Result<()> {
        self.entry(&format!("{name}/"), &[], 0o755, tar::EntryType::Directory)
    }

    fn entry(&mut self, name: &str, content: &[u8], mode: u32, kind: tar::EntryType) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(u64::try_from(content.len()).context("a file too large for a tar")?);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        self.0
            .append_data(&mut header, name, content)
            .with_context(|| format!("cannot add {name} to the tar"))
    }

    fn finish(self) -> Result<Vec<u8>> {
        self.0.into_inner().context("cannot finish the tar")
    }
}

#[cfg(test)]
mod tests {
    use super::{Args, Of, assemble, bundle, full_name, has_interpreter, sha256, unpack};
    use crate::child::TempDir;
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::Read as _;
    use std::path::Path;

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut tar = tar::Archive::new(archive);
        let entries = tar.entries().expect("a tar");
        let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.expect("an entry");
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("its content");
            (entry.path().expect("a path").display().to_string(), content)
        };
        entries.map(read).collect()
    }

    #[test]
    fn every_blob_has_the_digest_and_size_that_name_it() {
        let image = assemble(Of::Agent, b"a program", Some(b"certificates"), "fgm:1.2").expect("an image");
        let files = files(&image.archive);
        for (path, content) in files.iter().filter(|(p, c)| p.starts_with("blobs/sha256/") && !c.is_empty()) {
            assert_eq!(path, &format!("blobs/sha256/{}", sha256(content)));
        }
        let json = |path: &str| serde_json::from_slice::<serde_json::Value>(&files[path]).expect("JSON");
        let blob = |d: &serde_json::Value| {
            let digest = d["digest"].as_str().and_then(|s| s.strip_prefix("sha256:")).expect("a digest");
            let path = format!("blobs/sha256/{digest}");
            assert_eq!(d["size"], files[&path].len());
            path
        };
        let manifest = json(&blob(&json("index.json")["manifests"][0]));
        let config = json(&blob(&manifest["config"]));
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(config["config"]["Entrypoint"][0], "/fgm");
        assert!(layer.ends_with(
            config["rootfs"]["diff_ids"][0].as_str().expect("a digest").trim_start_matches("sha256:")
        ));
        let inner = self::files(&files[&layer]);
        assert_eq!(inner["fgm"], b"a program");
        assert!(inner.contains_key("var/lib/fgm/"));
        assert_eq!(inner["etc/ssl/certs/ca-certificates.crt"], b"certificates");
    }

    #[test]
    fn the_agents_image_has_certificates_or_there_is_none() {
        let dir = TempDir::new("certificates").expect("a folder");
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        let found = || bundle(&[&first, &second]);
        let error = found().expect_err("there are none").to_string();
        assert!(error.contains("/first nor ") && error.contains("/second"), "{error}");
        fs::write(&second, "# none\n").expect("a file");
        assert!(found().expect_err("an empty list").to_string().contains("no certificate in it"));
        let text = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";
        fs::write(&second, text).expect("a file");
        assert_eq!(found().expect("one"), text.as_bytes());
        let parse = |line: &str| Args::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert!(!parse("").expect("right words").without_certificates);
        assert!(parse("--without-certificates").expect("right words").without_certificates);
        assert!(parse("--root a --out b").is_err() && parse("--tag a/b").is_err());
    }

    #[test]
    fn a_folder_has_what_the_image_would_have() {
        let dir = TempDir::new("root").expect("a folder");
        // An ELF without a program header, which asks for no interpreter.
        let mut program = vec![0; 64];
        program[..4].copy_from_slice(b"\x7fELF");
        fs::write(dir.path().join("program"), &program).expect("a file");
        let root = dir.path().join("root");
        unpack(Of::Agent, &dir.path().join("program"), Some(b"certificates"), &root).expect("unpacked");
        assert_eq!(fs::read(root.join("fgm")).expect("the program"), program);
        let bundle = fs::read(root.join("etc/ssl/certs/ca-certificates.crt")).expect("certificates");
        assert_eq!(bundle, b"certificates");
        assert!(root.join("var/lib/fgm").is_dir());
        assert!(unpack(Of::Agent, Path::new("/nonexistent"), None, &root).is_err());
    }

    #[test]
    fn the_same_program_gives_the_same_image() {
        let make = || assemble(Of::Agent, b"a program", None, "fgm:1").expect("an image");
        assert_eq!(make().archive, make().archive);
        assert_ne!(make().digest, assemble(Of::Agent, b"another", None, "fgm:1").expect("an image").digest);
    }

    #[test]
    fn the_workload_is_an_image_of_its_own() {
        let image = assemble(Of::Workload, b"roles", None, "fgm-workload:1").expect("an image");
        let files = files(&image.archive);
        let has = |text: &str| files.values().any(|f| String::from_utf8_lossy(f).contains(text));
        assert!(has("\"Entrypoint\":[\"/workload\"]"));
        assert!(!has("/var/lib/fgm"));
    }

    #[test]
    fn names_are_written_out_as_runtimes_do() {
        assert_eq!(full_name("fgm:1"), "docker.io/library/fgm:1");
        assert_eq!(full_name("us/fgm:1"), "docker.io/us/fgm:1");
        assert_eq!(full_name("registry.example:5000/fgm:1"), "registry.example:5000/fgm:1");
    }

    #[test]
    fn a_dynamic_program_is_told_apart() {
        let own = std::fs::read(std::env::current_exe().expect("a path")).expect("this test");
        assert!(has_interpreter(&own[..4096]), "tests are linked dynamically");
        assert!(has_interpreter(b"no ELF"), "what cannot be read is not called static");
    }
}
