//! `cargo xtask vm`: one command in a throw-away guest over this machine's own root file system.
//! Must never write to the host outside its job folder and `--out`, and never outlive its deadline.
//! Called by a person, by `demo` and by `test`.
//!
//! The guest's root is the host's `/` by virtiofs, read-only, under an overlay in memory: programs run from the paths
//! that they have here. `--icount` counts instructions instead of time: a program's CPU repeats within 0.3 %, and every wait
//! of the guest is over at once, also that for a host's file, so no deadline inside says anything. `--systemd` has the host's systemd as process 1. A share `job` carries argv in and stdout, stderr and exit code out; a share `out` (--out) is
//! mounted at the same path as on the host. TCG unless `FGM_VM_KVM=1` and a timed probe boot shows that KVM works:
//! `/dev/kvm` may exist and still not run an ordinary kernel.

use crate::child::{self, Reaped, TempDir, bound_to_us, output, tool};
use crate::clock::Deadline;
use crate::kernel::{self, Kernel};
use crate::progress::{self, say};
use crate::usage::{self, Usage};
use crate::{paths, setup, virtiofs};
use anyhow::{Context as _, Result};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{env, thread};

/// Exit code of a guest that had to be ended, as of timeout(1).
pub const TIMED_OUT: i32 = 124;
/// Exit code when there is none of the command's own: the guest did not boot, panicked or lost its share.
pub const BROKEN: i32 = 125;

/// A guest that has written the exit code has this long to switch itself off.
const POWER_OFF: Duration = Duration::from_secs(15);
/// A KVM that works boots in 1-2 s; the probe may take this long.
const KVM_PROBE: Duration = Duration::from_secs(20);

pub struct Guest {
    pub series: String,
    pub timeout: Duration,
    pub mem: String,
    pub smp: u32,
    /// Size of the scratch disk, in truncate(1)'s words.
    pub disk: String,
    /// One instruction takes one nanosecond, and nobody waits for an idle guest: CPU time repeats whatever the host does.
    pub icount: bool,
    /// A network of the guest's own, in which this machine's loopback is 10.0.2.2, with these ports of it forwarded into the guest, at
    /// 10.0.2.15; else none.
    pub network: Option<Vec<u16>>,
    /// systemd as process 1, which the host must have, with its D-Bus.
    pub systemd: bool,
    pub out: Option<PathBuf>,
    pub cwd: PathBuf,
    pub argv: Vec<OsString>,
}

impl Guest {
    pub fn new(argv: Vec<OsString>) -> Result<Self> {
        Ok(Self {
            series: kernel::DEFAULT.to_owned(),
            timeout: Duration::from_mins(10),
            mem: "2G".to_owned(),
            smp: 2,
            disk: "256M".to_owned(),
            icount: false,
            network: None,
            systemd: false,
            out: None,
            cwd: env::current_dir().context("cannot tell the current folder")?,
            argv,
        })
    }

    /// Set up what is missing, boot, run the command with its output copied through, return its exit code.
    pub fn run(&self) -> Result<i32> {
        self.run_with(&mut std::io::stdout(), &mut std::io::stderr())
    }

    pub fn run_with(&self, stdout: &mut dyn Write, stderr: &mut dyn Write) -> Result<i32> {
        setup::vm()?;
        virtiofs::check()?;
        let kernel = kernel::ready(&self.series)?;
        let accel = if !self.icount && kvm_wanted() && kvm_works(&kernel)? { Accel::Kvm } else { Accel::Tcg };
        self.boot(&kernel, accel, stdout, stderr)
    }

    fn boot<'w>(
        &self,
        kernel: &Kernel,
        accel: Accel,
        stdout: &'w mut dyn Write,
        stderr: &'w mut dyn Write,
    ) -> Result<i32> {
        let job = TempDir::new("vm")?;
        let at = |name: &str| job.path().join(name);
        self.write_job(job.path())?;
        // Sockets and daemons' logs stay out of the job folder, which the guest can write.
        let side = TempDir::new("vm-side")?;
        let console = side.path().join("console");

        let mut shares = vec![("hostroot", Path::new("/"), "always"), ("job", job.path(), "auto")];
        if let Some(out) = &self.out {
            shares.push(("out", out.as_path(), "auto"));
        }
        let mut daemons = Vec::new();
        for (tag, dir, cache) in &shares {
            daemons.push(virtiofs::Daemon::start(side.path(), tag, dir, cache)?);
        }
        let disk = side.path().join("disk");
        child::run(tool("truncate").args(["-s", &self.disk]).arg(&disk)).context("bad --disk size")?;

        let mut qemu = self.qemu(kernel, accel, &console, &disk)?;
        for (n, daemon) in daemons.iter().enumerate() {
            qemu.arg("-chardev").arg(format!("socket,id=fs{n},path={}", daemon.socket().display()));
            qemu.arg("-device").arg(format!("vhost-user-fs-pci,chardev=fs{n},tag={}", daemon.tag()));
        }
        let log = File::create(side.path().join("qemu.log")).context("cannot write qemu's log")?;
        qemu.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut qemu = Reaped(qemu.spawn().context("cannot start qemu")?);

        let mut tails = [(Tail::new(at("stdout")), stdout), (Tail::new(at("stderr")), stderr)];
        let deadline = Deadline::after(self.timeout);
        let mut leaving: Option<Deadline> = None;
        let mut ended = false;
        while !ended {
            ended = qemu.0.try_wait().context("cannot wait for qemu")?.is_some();
            for (tail, to) in &mut tails {
                tail.copy(*to)?;
            }
            if ended {
                break;
            }
            if leaving.is_none() && at("rc").exists() {
                leaving = Some(Deadline::after(POWER_OFF));
            }
            if deadline.passed() || leaving.is_some_and(|d| d.passed()) {
                break;
            }
            thread::sleep(Duration::from_millis(40));
        }
        drop(qemu);
        for (tail, to) in &mut tails {
            tail.copy(*to)?;
        }
        // The last guest's console is kept for whoever wonders; nothing depends on it.
        let _ = fs::create_dir_all(paths::target().join("vm"));
        let _ = fs::copy(&console, paths::target().join("vm/console.log"));
        if let Ok(code) = fs::read_to_string(at("rc")) {
            return code.trim().parse().with_context(|| format!("the guest left `{code}` as exit code"));
        }
        report(&self.argv, self.timeout, ended, side.path());
        Ok(if ended { BROKEN } else { TIMED_OUT })
    }

    /// What the guest reads: arguments and environment NUL-separated, since a command may hold anything else.
    fn write_job(&self, job: &Path) -> Result<()> {
        let nul = |words: &[OsString]| {
            let mut bytes = Vec::new();
            for word in words {
                bytes.extend_from_slice(word.as_bytes());
                bytes.push(0);
            }
            bytes
        };
        let mut environment: Vec<OsString> = vec!["FGM_VM=1".into(), "TERM=dumb".into()];
        if progress::on_terminal() {
            environment.push(format!("{}=1", progress::TTY_ENV).into());
        }
        for (name, value) in env::vars_os() {
            let text = name.to_string_lossy();
            let kept = ["PATH", "HOME", "LANG", "CI", "RUST_LOG", "RUST_BACKTRACE"].contains(&&*text)
                || text.starts_with("FGM_") && text != progress::TTY_ENV;
            if kept {
                environment
                    .push([name.as_os_str(), OsStr::new("="), value.as_os_str()].into_iter().collect());
            }
        }
        let out = self.out.as_ref().map_or(OsStr::new(""), |o| o.as_os_str());
        for (name, bytes) in [
            ("argv", nul(&self.argv)),
            ("env", nul(&environment)),
            ("cwd", self.cwd.as_os_str().as_bytes().to_vec()),
            ("out", out.as_bytes().to_vec()),
            ("stdout", Vec::new()),
            ("stderr", Vec::new()),
        ] {
            fs::write(job.join(name), bytes)
                .with_context(|| format!("cannot write {}/{name}", job.display()))?;
        }
        Ok(())
    }

    fn qemu(
        &self,
        kernel: &Kernel,
        accel: Accel,
        console: &Path,
        disk: &Path,
    ) -> Result<std::process::Command> {
        let tcg = if self.icount { "tcg,thread=single" } else { "tcg,thread=multi" };
        let (accelerator, cpu) = match accel {
            Accel::Kvm => ("kvm", "host"),
            // Before QEMU 10, cmpxchg16b under multi-threaded TCG corrupts the flags: keep kernels from using it.
            Accel::Tcg if qemu_major()? < 10 => (tcg, "max,-cx16"),
            Accel::Tcg => (tcg, "max"),
        };
        let mut c = bound_to_us("qemu-system-x86_64");
        c.args([
            "-M",
            "q35",
            "-accel",
            accelerator,
            "-cpu",
            cpu,
            "-smp",
            &self.smp.to_string(),
            "-m",
            &self.mem,
        ]);
        if self.icount {
            c.args(["-icount", "shift=0,sleep=off"]);
        }
        c.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        // vhost-user needs the guest's memory shared with the daemons.
        c.arg("-object").arg(format!("memory-backend-memfd,id=mem,size={},share=on", self.mem));
        c.args(["-numa", "node,memdev=mem", "-device", "virtio-rng-pci"]);
        c.arg("-serial").arg(format!("file:{}", console.display()));
        c.arg("-drive").arg(format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()));
        if let Some(ports) = &self.network {
            let mut user = "user,id=net".to_owned();
            for port in ports {
                // Writing to a String cannot fail.
                let _ = std::fmt::Write::write_fmt(
                    &mut user,
                    format_args!(",hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:{port}"),
                );
            }
            c.args(["-netdev", &user, "-device", "virtio-net-pci,netdev=net"]);
        }
        c.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&kernel.initrd);
        c.arg("-append");
        let systemd = if self.systemd { " fgm.systemd" } else { "" };
        c.arg(format!("console=ttyS0 panic=-1 quiet fgm.modules={}{systemd}", kernel.modules.display()));
        Ok(c)
    }
}

#[derive(Clone, Copy)]
enum Accel {
    Tcg,
    Kvm,
}

fn qemu_major() -> Result<u32> {
    let text = output(tool("qemu-system-x86_64").arg("--version"))?;
    let version = text.split("version ").nth(1).unwrap_or_default();
    let major = version.split('.').next().unwrap_or_default().parse();
    major.with_context(|| format!("cannot read qemu's version from `{text}`"))
}

fn kvm_wanted() -> bool {
    env::var_os("FGM_VM_KVM").is_some_and(|v| v == "1")
}

/// Boot once under KVM, at most 20 s, and remember the answer until this machine boots again.
fn kvm_works(kernel: &Kernel) -> Result<bool> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let file = paths::cache()?.join(format!("kvm-{}", boot.trim()));
    if let Ok(answer) = fs::read_to_string(&file) {
        return Ok(answer.trim() == "works");
    }
    let mut probe = Guest::new(vec!["true".into()])?;
    probe.timeout = KVM_PROBE;
    let works = Path::new("/dev/kvm").exists()
        && probe.boot(kernel, Accel::Kvm, &mut std::io::sink(), &mut std::io::sink())? == 0;
    if !works {
        say("vm: KVM was asked for, but a probe boot under it does not come up here: using TCG");
    }
    fs::write(&file, if works { "works" } else { "does not work" })
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(works)
}

fn report(argv: &[OsString], timeout: Duration, ended: bool, side: &Path) {
    let command: Vec<_> = argv.iter().map(|a| a.to_string_lossy()).collect();
    let what = if ended {
        "the guest ended without an exit code".to_owned()
    } else {
        format!("no end within {} s (--timeout): the guest was killed", timeout.as_secs())
    };
    say(&format!("vm: `{}`: {what}. The end of its console:", command.join(" ")));
    for name in ["console", "qemu.log"] {
        let text = child::tail(&side.join(name), 25);
        if !text.trim().is_empty() {
            say(&text);
        }
    }
}

/// Follows a file that grows, and copies what is new.
struct Tail {
    path: PathBuf,
    file: Option<File>,
}

impl Tail {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    fn copy(&mut self, to: &mut dyn Write) -> Result<()> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(|| format!("cannot read {}", self.path.display()))?;
        if !bytes.is_empty() {
            to.write_all(&bytes).and_then(|()| to.flush()).context("cannot pass on the guest's output")?;
        }
        Ok(())
    }
}

/// A size as both truncate(1) and QEMU have it.
fn size(option: &str, text: &str) -> Result<String> {
    let digits = text.strip_suffix(['K', 'M', 'G']).unwrap_or(text);
    if digits.parse::<u64>().is_ok_and(|n| n > 0) {
        return Ok(text.to_owned());
    }
    Err(Usage(format!("{option} {text} is no size; one is 512M or 2G")).into())
}

fn number(option: &str, text: &str) -> Result<u32> {
    let number = text.parse().ok().filter(|n| *n > 0);
    number.ok_or_else(|| Usage(format!("{option} {text} is no whole number above 0")).into())
}

/// The verb: options, then `--`, then the command.
pub fn verb(args: &[OsString]) -> Result<i32> {
    const USAGE: &str = "cargo xtask vm [--kernel 6.1|6.12|6.18|7.3] [--out DIR] [--timeout SECONDS] [--mem 2G] \
                         [--smp 2] [--disk 256M] [--icount] [--systemd] -- COMMAND [ARGUMENT…]";
    let split = args.iter().position(|a| a == "--").ok_or_else(|| usage::wrong("no `--`", USAGE))?;
    let (options, command) = (&args[..split], &args[split + 1..]);
    if command.is_empty() {
        return Err(usage::wrong("no command after `--`", USAGE));
    }
    let mut guest = Guest::new(command.to_vec())?;
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let name = option.to_string_lossy();
        if name == "--icount" {
            guest.icount = true;
            continue;
        }
        if name == "--systemd" {
            guest.systemd = true;
            continue;
        }
        if !["--kernel", "--mem", "--disk", "--smp", "--timeout", "--out"].contains(&&*name) {
            return Err(usage::wrong(format!("unknown option `{name}`"), USAGE));
        }
        let value = options.next().ok_or_else(|| usage::wrong(format!("{name} has no value"), USAGE))?;
        let text = value.to_string_lossy();
        match &*name {
            "--kernel" => guest.series = text.into_owned(),
            "--mem" => guest.mem = size(&name, &text)?,
            "--disk" => guest.disk = size(&name, &text)?,
            "--smp" => guest.smp = number(&name, &text)?,
            "--timeout" => {
                guest.timeout = Duration::from_secs(number(&name, &text)?.into());
            }
            "--out" => {
                let dir = Path::new(value);
                fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
                guest.out = Some(dir.canonicalize().with_context(|| format!("no folder {}", dir.display()))?);
            }
            _ => {}
        }
    }
    guest.run()
}
