//! `cargo xtask test --kubernetes`: our image and our manifests on a real one-node cluster, a pod of which is OOM-killed, and the agent
//! asked what it knows, as a user would ask.
//! Must never judge the agent by what the agent says: names, reason and restart are those that kubectl has. Called by `suite`.
//!
//! The control plane runs here (`control`), the node in the test VM (`node`), of programs that are made once (`programs`). The plain
//! manifests go in as they are in the tree: nothing of the DaemonSet is changed for the test. The agent is reached by `kubectl
//! port-forward`, so that what docs/install.md tells is what is tested.

mod check;
mod control;
mod events;
pub mod kubectl;
mod node;
mod play;
mod programs;

use crate::child::{self, Reaped, TempDir};
use crate::clock::{self, Deadline};
use crate::image::{self, Of, Profile};
use crate::net::free_port;
use crate::progress::{Step, say};
use crate::setup::{Check, Need};
use crate::tally::Tally;
use crate::vm::Guest;
use crate::{paths, setup, usage};
use anyhow::{Context as _, Result, bail};
use control::Control;
use play::{Test, manifest};
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

/// The life of the guest: every wait of `play`, one after the other.
const WHOLE: Duration = Duration::from_mins(34);

const SYSTEMD: &[Need] = &[
    Need {
        package: "systemd",
        why: "process 1 of the test's node",
        check: Check::AnyFile(&["/lib/systemd/systemd", "/usr/lib/systemd/systemd"]),
    },
    Need {
        package: "dbus",
        why: "by which runc asks systemd for cgroups",
        check: Check::Program("dbus-daemon"),
    },
];

const SANDBOX: &str = "fgm-pause:1";

/// The parts that are processes of their own: what plays in the guest, and what makes the programs. Nobody else calls them.
pub fn verb(args: &[OsString]) -> Result<i32> {
    let words: Vec<_> = args.iter().map(|a| a.to_string_lossy()).collect();
    match words.iter().map(AsRef::as_ref).collect::<Vec<_>>().as_slice() {
        ["--node", out] => node::run_node(Path::new(out))?,
        ["--programs"] => _ = programs::ready()?,
        _ => return Err(usage::wrong("not for people", "cargo xtask test --kubernetes")),
    }
    Ok(0)
}

/// The programs in the making, beside other work and of the lowest priority.
pub struct Making(Option<Reaped>);

/// Begins to make the programs, unless they are there. What goes wrong is told by [`test`], which makes what is not made.
pub fn make_beside() -> Result<Making> {
    if programs::are_made()? {
        return Ok(Making(None));
    }
    // by us: two that install packages at the same time get into each other's way
    setup::ensure(SYSTEMD)?;
    setup::ensure(programs::NEEDS)?;
    let log = paths::target().join("logs/kubernetes-programs.log");
    fs::create_dir_all(log.with_file_name("")).context("cannot create a folder for logs")?;
    let log = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut c = child::bound_to_us("nice");
    c.args(["-n", "19"]).arg(paths::own()?).args(["kubernetes", "--programs"]);
    c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Ok(Making(Some(Reaped(c.spawn().context("cannot start `nice`")?))))
}

impl Making {
    /// Waits for its end, whatever that is.
    pub fn wait(self) -> Result<()> {
        if let Some(mut making) = self.0 {
            let step =
                Step::begin("waiting for the programs of Kubernetes (target/logs/kubernetes-programs.log)");
            child::wait_until(&mut making.0, Deadline::after(programs::COMPILE))?;
            step.done("");
        }
        Ok(())
    }
}

/// One cluster on one kernel, by systemd's cgroup driver or by cgroupfs.
pub fn test(kernel: &str, systemd: bool, profile: Profile) -> Result<Tally> {
    // First, so that a machine that lacks something says so before minutes of compiling.
    setup::vm()?;
    if systemd {
        setup::ensure(SYSTEMD)?;
    }
    let programs = programs::ready()?;
    say(&programs.versions()?);
    let out = paths::target().join("kubernetes").join(clock::stamp());
    fs::create_dir_all(out.join("static")).with_context(|| format!("cannot create {}", out.display()))?;
    let out = out.canonicalize()?;
    let fgm = image::build(Of::Agent, profile)?;
    let workload = image::build(Of::Workload, profile)?;
    let images = images(&fgm, &workload, &programs, &out)?;
    let side = TempDir::new("cluster")?;
    let control = Control::start(&programs, side.path())?;
    let kubelet_port = free_port()?.port();
    control.node_files(&out)?;
    fs::write(out.join("static/keeper.yaml"), manifest("static.yaml")?).context("cannot write a manifest")?;
    let order = node::Order {
        programs: programs.dir().to_path_buf(),
        pause: format!("docker.io/library/{SANDBOX}"),
        api_port: control.port,
        kubelet_port,
        static_pods: out.join("static"),
        systemd,
        workload: (format!("docker.io/library/{}", image::workload_tag()), images[1].clone()),
        images: images.to_vec(),
    };
    fs::write(out.join(node::ORDER), serde_json::to_string(&order)?).context("cannot write the order")?;
    let words: [OsString; 4] =
        [paths::own()?.into(), "kubernetes".into(), "--node".into(), out.clone().into()];
    let mut guest = Guest::new(words.to_vec())?;
    kernel.clone_into(&mut guest.series);
    (guest.mem, guest.disk) = ("3G".to_owned(), "3G".to_owned());
    (guest.timeout, guest.out) = (WHOLE, Some(out.clone()));
    guest.network = Some(vec![kubelet_port]);
    guest.systemd = systemd;

    let mut test = Test::new(control, out, fgm, systemd);
    let played = thread::scope(|scope| {
        let node = scope.spawn(|| guest.run_with(&mut std::io::stderr(), &mut std::io::stderr()));
        let played = test.play(&node);
        if played.is_err() {
            test.last_words();
        }
        fs::write(test.out().join(node::STOP), "").context("cannot stop the node")?;
        let code = node.join().map_err(|_| anyhow::anyhow!("the guest's thread panicked"))??;
        if played.is_ok() && code != 0 {
            bail!("the node ended with exit code {code}");
        }
        played
    });
    test.keep_logs();
    for archive in images {
        // some 200 MB, and made anew in seconds
        let _ = fs::remove_file(archive);
    }
    let killed = played?;
    test.folder(&killed)?;
    Ok(test.tally())
}

/// Agent, workload and the sandbox of pods, as archives.
fn images(fgm: &Path, workload: &Path, programs: &programs::Programs, out: &Path) -> Result<[PathBuf; 3]> {
    let of = [
        (Of::Agent, fgm, image::default_tag()),
        (Of::Workload, workload, image::workload_tag()),
        (Of::Pause, &programs.program("pause")?, SANDBOX.to_owned()),
    ];
    let archives = ["fgm.tar", "workload.tar", "pause.tar"].map(|name| out.join(name));
    for ((of, program, tag), archive) in of.iter().zip(&archives) {
        image::make(*of, program, image::certificates(*of)?.as_deref(), archive, tag)?;
    }
    Ok(archives)
}
