//! The node of the cluster: containerd and kubelet in the test VM, until they are told to stop.
//! Must never run outside the test VM: it mounts, makes file systems and changes the network. Called by `kubernetes`, in the VM through
//! `xtask kubernetes --node`.
//!
//! What a kube-proxy would do is one address and a relay: pods look for the API server at the first address of the service range. Its
//! folder is shared with the host, which so reads its logs while it runs; files in it are all that the two say to each other.

use super::control::{FROM_GUEST, NODE, SERVICE};
use super::programs::Programs;
use crate::child::{self, Reaped, output, run, tool};
use crate::clock::Deadline;
use crate::net::relay;
use crate::progress::say;
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

/// Written by the host, read by the node: what to do (`Order`).
pub const ORDER: &str = "order.json";
/// Written by the host to end the node, and by the node when something of it has ended.
pub const STOP: &str = "stop";
pub const ENDED: &str = "ended";
/// Asks what the agent's process has been given; the answer.
pub const LOOK: &str = "look";
pub const PROCESS: &str = "process.json";
/// Where the agent's data is, on the node and in the shared folder afterwards.
pub const DATA: &str = "data";

const NODE_ADDRESS: &str = "10.0.2.15";
const SOCKET: &str = "/run/containerd/containerd.sock";
/// containerd takes 10 to 20 s to answer on an emulated CPU.
const CONTAINERD: Duration = Duration::from_mins(2);
/// The whole life of a node: whoever waits for it waits less.
const LIFE: Duration = Duration::from_mins(33);

/// What a node is made of; paths are the same in the guest as on the host.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Order {
    pub programs: PathBuf,
    pub images: Vec<PathBuf>,
    /// The image of a pod's sandbox.
    pub pause: String,
    /// Of the API server, on the host.
    pub api_port: u16,
    /// Of the kubelet, the same in the guest and forwarded from the host's loopback.
    pub kubelet_port: u16,
    /// Manifests of static pods.
    pub static_pods: PathBuf,
    /// Which cgroup driver: systemd's, which the guest then has as process 1, or cgroupfs.
    pub systemd: bool,
    /// The image of containers that no kubelet started, and the archive that it is in.
    pub workload: (String, PathBuf),
}

/// A container that no kubelet started.
pub struct Plain {
    pub name: &'static str,
    pub runtime: &'static str,
    /// Its cgroup: below containerd's namespace, or a scope of systemd's.
    pub path: &'static str,
    pub systemd: bool,
}

pub const PLAIN: [Plain; 4] = [
    Plain { name: "fgm-runc", runtime: "runc", path: "/default/fgm-runc", systemd: false },
    Plain { name: "fgm-crun", runtime: "crun", path: "/default/fgm-crun", systemd: false },
    Plain { name: "runc-1", runtime: "runc", path: "/system.slice/runc-runc-1.scope", systemd: true },
    Plain { name: "crun-1", runtime: "crun", path: "/system.slice/crun-crun-1.scope", systemd: true },
];

pub fn run_node(out: &Path) -> Result<()> {
    if std::env::var_os("FGM_VM").is_none() {
        bail!("a node is only made in the test VM");
    }
    let text = fs::read_to_string(out.join(ORDER)).context("there is no order")?;
    let order: Order = serde_json::from_str(&text).context("the order cannot be read")?;
    let programs = Programs::at(&order.programs);
    disk()?;
    network(&order)?;
    let mut containerd = containerd(&programs, &order, out)?;
    let mut kubelet = kubelet(&programs, &order, out)?;
    up("the kubelet is started");
    plain(&programs, &order)?;
    let deadline = Deadline::after(LIFE);
    loop {
        for (name, process) in [("containerd", &mut containerd), ("kubelet", &mut kubelet)] {
            if let Some(status) = process.0.try_wait().context("cannot wait for the node's programs")? {
                let words = format!("{name} ended: {status}");
                let _ = fs::write(out.join(ENDED), &words);
                bail!(words);
            }
        }
        if out.join(LOOK).exists() {
            fs::write(out.join(PROCESS), agent_process()?.to_string()).context("cannot answer a look")?;
            let _ = fs::remove_file(out.join(LOOK));
        }
        if out.join(STOP).exists() {
            break;
        }
        if deadline.passed() {
            bail!("nobody told the node to stop within {} s", LIFE.as_secs());
        }
        thread::sleep(Duration::from_millis(500));
    }
    drop(kubelet);
    up("stopping");
    if Path::new("/var/lib/fgm").exists() {
        run(tool("cp").args(["-r", "/var/lib/fgm"]).arg(out.join(DATA)))?;
    }
    Ok(())
}

fn up(what: &str) {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    say(&format!("node: {what}, {} s after the boot", uptime.split('.').next().unwrap_or_default()));
}

/// What containers, pods and their logs are kept on: overlayfs does not go on the guest's root, which is one itself.
fn disk() -> Result<()> {
    for module in ["overlay", "ext4", "veth", "bridge", "virtio_net"] {
        run(tool("modprobe").arg(module))?;
    }
    run(tool("mkfs.ext4").args(["-q", "/dev/vda"]))?;
    fs::create_dir_all("/run/disk")?;
    run(tool("mount").args(["/dev/vda", "/run/disk"]))?;
    for dir in ["/var/lib/kubelet", "/var/lib/containerd", "/var/log/pods", "/var/lib/fgm"] {
        let own = Path::new("/run/disk").join(dir.rsplit('/').next().unwrap_or_default());
        fs::create_dir_all(dir).with_context(|| format!("cannot create {dir}"))?;
        fs::create_dir_all(&own).with_context(|| format!("cannot create {}", own.display()))?;
        run(tool("mount").arg("--bind").arg(&own).arg(dir))?;
    }
    // a kubelet passes mounts on to containers
    run(tool("mount").args(["--make-rshared", "/"]))
}

fn network(order: &Order) -> Result<()> {
    fs::write("/proc/sys/kernel/hostname", NODE).context("cannot name the guest")?;
    fs::write("/etc/hosts", format!("127.0.0.1 localhost {NODE}\n")).context("cannot write /etc/hosts")?;
    let card = fs::read_dir("/sys/class/net")?
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .find(|name| name != "lo")
        .context("the guest has no network card")?;
    let ip = |args: &[&str]| run(tool("ip").args(args));
    ip(&["link", "set", &card, "up"])?;
    ip(&["address", "add", &format!("{NODE_ADDRESS}/24"), "dev", &card])?;
    ip(&["address", "add", &format!("{SERVICE}/32"), "dev", "lo"])?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot switch forwarding on")?;
    let to = format!("{FROM_GUEST}:{}", order.api_port);
    relay(format!("{SERVICE}:443").parse()?, to.parse()?)?;
    fs::create_dir_all("/etc/cni/net.d")?;
    let bridge = json!({
        "cniVersion": "0.4.0",
        "name": "fgm-test",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
            "ipam": {
                "type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    });
    fs::write("/etc/cni/net.d/10-bridge.conflist", bridge.to_string())
        .context("cannot configure the pods' network")
}

/// A program of the node with a log in the shared folder.
fn spawn(programs: &Programs, name: &str, args: &[String], out: &Path) -> Result<Reaped> {
    let log = out.join(format!("{name}.log"));
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut c = programs.command(name)?;
    c.args(args).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    Ok(Reaped(c.spawn().with_context(|| format!("cannot start {name}"))?))
}

fn containerd(programs: &Programs, order: &Order, out: &Path) -> Result<Reaped> {
    let mut config = format!(
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {:?}\nconf_dir = \"/etc/cni/net.d\"\n",
        order.pause,
        programs.plugins().display().to_string(),
    );
    if order.systemd {
        config += "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
                   [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nSystemdCgroup = true\n";
    }
    fs::write("/run/containerd.toml", config).context("cannot configure containerd")?;
    let args = ["--config", "/run/containerd.toml", "--log-level", "info"].map(str::to_owned);
    let mut containerd = spawn(programs, "containerd", &args, out)?;
    let deadline = Deadline::after(CONTAINERD);
    while ctr(programs, "k8s.io", &["version"]).is_err() {
        if containerd.0.try_wait()?.is_some() || deadline.passed() {
            bail!("containerd does not answer:\n{}", child::tail(&out.join("containerd.log"), 20));
        }
        thread::sleep(Duration::from_millis(300));
    }
    up("containerd answers");
    for image in &order.images {
        ctr(programs, "k8s.io", &["images", "import", &image.display().to_string()])?;
    }
    up("the images are imported");
    Ok(containerd)
}

/// containerd's own client.
fn ctr(programs: &Programs, namespace: &str, args: &[&str]) -> Result<String> {
    let mut c = programs.command("ctr")?;
    output(c.args(["--address", SOCKET, "--namespace", namespace]).args(args))
}

/// Containers that Kubernetes knows nothing of, in a cgroup of containerd's own making and, where there is systemd, in one of its scopes.
fn plain(programs: &Programs, order: &Order) -> Result<()> {
    let (image, archive) = &order.workload;
    ctr(programs, "default", &["images", "import", &archive.display().to_string()])?;
    for plain in PLAIN.iter().filter(|p| order.systemd || !p.systemd) {
        let runtime = programs.program(plain.runtime)?.display().to_string();
        let cgroup = format!("system.slice:{}:{}", plain.runtime, plain.name);
        let mut args = vec!["run", "--detach", "--runc-binary", &runtime];
        if plain.systemd {
            args.extend(["--runc-systemd-cgroup", "--cgroup", &cgroup]);
        }
        args.extend([
            image.as_str(),
            plain.name,
            "/workload",
            "steady",
            "--bytes",
            "4M",
            "--name",
            plain.name,
        ]);
        ctr(programs, "default", &args)?;
    }
    up("containers run that no kubelet started");
    Ok(())
}

fn kubelet(programs: &Programs, order: &Order, out: &Path) -> Result<Reaped> {
    let at = |name: &str| out.join(name).display().to_string();
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": if order.systemd { "systemd" } else { "cgroupfs" },
        "port": order.kubelet_port,
        "staticPodPath": order.static_pods,
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        "resolvConf": "",
        "authentication": {
            "anonymous": {"enabled": false}, "webhook": {"enabled": true}, "x509": {"clientCAFile": at("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": at("node.crt"),
        "tlsPrivateKeyFile": at("node.key"),
        "evictionHard": {"memory.available": "10Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "nodeStatusUpdateFrequency": "5s",
    });
    fs::write("/run/kubelet.json", config.to_string()).context("cannot configure the kubelet")?;
    let args = [
        "--config=/run/kubelet.json".to_owned(),
        format!("--kubeconfig={}", at("node.kubeconfig")),
        "--container-runtime=remote".to_owned(),
        format!("--container-runtime-endpoint=unix://{SOCKET}"),
        format!("--hostname-override={NODE}"),
        format!("--node-ip={NODE_ADDRESS}"),
        // the node's addresses are set from outside: from there it is reached by a forwarded port
        "--cloud-provider=external".to_owned(),
        "--v=2".to_owned(),
    ];
    spawn(programs, "kubelet", &args, out)
}

/// Of the process `fgm agent`: its capabilities, seccomp mode and root mount, as the kernel has them.
fn agent_process() -> Result<Value> {
    for entry in fs::read_dir("/proc").context("cannot read /proc")?.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        if !pid.bytes().all(|b| b.is_ascii_digit()) || read("cmdline") != "/fgm\0agent\0" {
            continue;
        }
        let status = read("status");
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
            line.map(|l| l.trim().to_owned())
        };
        let mounts = read("mounts");
        let writable: Vec<&str> = mounts
            .lines()
            .filter_map(|l| {
                let mut words = l.split(' ').skip(1);
                let (at, options) = (words.next()?, words.nth(1)?);
                options.split(',').any(|o| o == "rw").then_some(at)
            })
            .collect();
        return Ok(json!({
            "CapEff": field("CapEff"),
            "CapBnd": field("CapBnd"),
            "Seccomp": field("Seccomp"),
            "NoNewPrivs": field("NoNewPrivs"),
            "Uid": field("Uid"),
            "writable": writable,
            "cgroup": read("cgroup").trim(),
        }));
    }
    let mut running = String::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let _ = write!(running, "{} ", comm.trim());
    }
    Ok(json!({"missing": "no process is /fgm agent", "running": running}))
}
