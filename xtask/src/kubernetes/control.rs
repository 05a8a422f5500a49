//! The control plane of a one-node cluster on this machine's loopback: etcd, API server, controllers, scheduler; and kubectl for it.
//! Must never listen beyond the loopback, nor outlive its value. Called by `kubernetes`.
//!
//! Here and not in the test VM: an emulated CPU is 5 to 27 times slower, and the API server alone, which is ready here in five seconds, would
//! take minutes there. The node reaches it through the VM's user network, in which our loopback is 10.0.2.2.

use super::programs::Programs;
use crate::child::{self, Reaped, output, tool};
use crate::clock::Deadline;
use crate::net::free_port;
use crate::progress::{Step, say};
use crate::setup::{self, Check, Need};
use anyhow::{Context as _, Result, bail};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

const NEEDS: &[Need] = &[Need {
    package: "openssl",
    why: "certificates of the test's cluster",
    check: Check::Program("openssl"),
}];

/// The first address of the range, where pods look for the API server; the node answers there.
pub const SERVICE: &str = "10.96.0.1";
const SERVICE_RANGE: &str = "10.96.0.0/16";
/// This machine's loopback, as the guest sees it.
pub const FROM_GUEST: &str = "10.0.2.2";
pub const NODE: &str = "fgm-node";
/// Of etcd and of the API server, which take a second and five when nothing else runs.
const READY: Duration = Duration::from_mins(3);

/// The only context of its kubeconfigs.
pub const CONTEXT: &str = "x";
/// Who has a certificate, and as whom.
const USERS: &[(&str, &str)] = &[
    ("admin", "/O=system:masters/CN=admin"),
    ("controllers", "/CN=system:kube-controller-manager"),
    ("scheduler", "/CN=system:kube-scheduler"),
];

pub struct Control<'p> {
    programs: &'p Programs,
    dir: PathBuf,
    pub port: u16,
    running: Vec<(&'static str, Reaped)>,
}

impl<'p> Control<'p> {
    /// Everything of it, keys and logs and data, is in `dir`, which must be there and ours alone.
    pub fn start(programs: &'p Programs, dir: &Path) -> Result<Self> {
        setup::ensure(NEEDS)?;
        let step = Step::begin("starting etcd, API server, controllers and scheduler");
        let port = free_port()?.port();
        let mut control = Self { programs, dir: dir.to_path_buf(), port, running: Vec::new() };
        control.certificates()?;
        let etcd = free_port()?.to_string();
        control.etcd(&etcd)?;
        control.api_server(&etcd)?;
        control.controllers()?;
        step.done("");
        Ok(control)
    }

    fn at(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn certificates(&self) -> Result<()> {
        let openssl = || {
            let mut c = tool("openssl");
            c.current_dir(&self.dir);
            c
        };
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let mut c = openssl();
        c.args(["req", "-x509"]).args(curve).args(["-days", "2", "-subj", "/CN=fgm-test-ca"]);
        output(c.args(["-keyout", "ca.key", "-out", "ca.crt"]))?;
        let names = format!(
            "IP:127.0.0.1,IP:{FROM_GUEST},IP:{SERVICE},DNS:localhost,DNS:kubernetes.default.svc,DNS:{NODE}"
        );
        let node = format!("/O=system:nodes/CN=system:node:{NODE}");
        let others = [("api-server", "/CN=kube-apiserver"), ("node", node.as_str())];
        for (name, subject) in USERS.iter().copied().chain(others) {
            let (key, request, certificate, more) =
                (format!("{name}.key"), format!("{name}.csr"), format!("{name}.crt"), format!("{name}.ext"));
            let mut c = openssl();
            c.arg("req").args(curve).args(["-subj", subject, "-keyout", &key, "-out", &request]);
            output(&mut c)?;
            let text = format!("subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n");
            fs::write(self.dir.join(&more), text).with_context(|| format!("cannot write {more}"))?;
            let mut c = openssl();
            c.args(["x509", "-req", "-in", &request, "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]);
            output(c.args(["-days", "2", "-extfile", &more, "-out", &certificate]))?;
        }
        output(openssl().args(["genrsa", "-out", "accounts.key", "2048"]))?;
        output(openssl().args(["rsa", "-in", "accounts.key", "-pubout", "-out", "accounts.pub"]))?;
        for (name, _) in USERS {
            Self::kubeconfig(name, &self.dir, &format!("https://127.0.0.1:{}", self.port))?;
        }
        Ok(())
    }

    /// A kubeconfig that names its certificates by their places in `dir`, beside which it is put.
    fn kubeconfig(name: &str, dir: &Path, server: &str) -> Result<()> {
        let at = |file: &str| dir.join(file).display().to_string();
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": at("ca.crt")}}],
            "users": [{"name": "u", "user": {
                "client-certificate": at(&format!("{name}.crt")), "client-key": at(&format!("{name}.key")),
            }}],
            "contexts": [{"name": CONTEXT, "context": {"cluster": "c", "user": "u"}}],
            "current-context": CONTEXT,
        });
        let path = dir.join(format!("{name}.kubeconfig"));
        fs::write(&path, config.to_string()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// What the node needs to be one: its keys, and a kubeconfig for the guest. Nobody else's keys.
    pub fn node_files(&self, into: &Path) -> Result<()> {
        for name in ["ca.crt", "node.crt", "node.key"] {
            fs::copy(self.dir.join(name), into.join(name)).with_context(|| format!("cannot copy {name}"))?;
        }
        Self::kubeconfig("node", into, &format!("https://{FROM_GUEST}:{}", self.port))
    }

    fn spawn(&mut self, name: &'static str, args: &[String]) -> Result<()> {
        let log = self.dir.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut c = self.programs.command(name)?;
        c.args(args).current_dir(&self.dir);
        c.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = c.spawn().with_context(|| format!("cannot start {name}"))?;
        self.running.push((name, Reaped(child)));
        Ok(())
    }

    fn etcd(&mut self, client: &str) -> Result<()> {
        let peer = format!("http://{}", free_port()?);
        let client = format!("http://{client}");
        let args = [
            format!("--data-dir={}", self.at("etcd")),
            "--unsafe-no-fsync".to_owned(),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
        ];
        self.spawn("etcd", &args)
    }

    fn api_server(&mut self, etcd: &str) -> Result<()> {
        let args = [
            format!("--etcd-servers=http://{etcd}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            // nobody goes by the endpoints of the service: the node relays for it
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--secure-port={}", self.port),
            format!("--tls-cert-file={}", self.at("api-server.crt")),
            format!("--tls-private-key-file={}", self.at("api-server.key")),
            format!("--client-ca-file={}", self.at("ca.crt")),
            format!("--service-account-key-file={}", self.at("accounts.pub")),
            format!("--service-account-signing-key-file={}", self.at("accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-cluster-ip-range={SERVICE_RANGE}"),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            format!("--kubelet-client-certificate={}", self.at("admin.crt")),
            format!("--kubelet-client-key={}", self.at("admin.key")),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ];
        self.spawn("kube-apiserver", &args)?;
        self.answers(&["get", "--raw", "/readyz"], "the API server is not ready")
    }

    /// Asks until there is an answer; `otherwise` is what is said when none comes.
    fn answers(&mut self, question: &[&str], otherwise: &str) -> Result<()> {
        let deadline = Deadline::after(READY);
        while self.ask(question).is_err() {
            self.alive()?;
            if deadline.passed() {
                bail!("{otherwise} after {} s{}", READY.as_secs(), self.last_words());
            }
            thread::sleep(Duration::from_millis(250));
        }
        Ok(())
    }

    fn controllers(&mut self) -> Result<()> {
        let common = |user: &str| {
            let config = self.at(&format!("{user}.kubeconfig"));
            vec![
                format!("--kubeconfig={config}"),
                "--port=0".to_owned(),
                "--secure-port=0".to_owned(),
                "--leader-elect=false".to_owned(),
            ]
        };
        let mut controllers = common("controllers");
        controllers.extend([
            format!("--service-account-private-key-file={}", self.at("accounts.key")),
            format!("--root-ca-file={}", self.at("ca.crt")),
            "--use-service-account-credentials=true".to_owned(),
            "--controllers=*,-bootstrapsigner,-tokencleaner".to_owned(),
        ]);
        let scheduler = common("scheduler");
        self.spawn("kube-controller-manager", &controllers)?;
        self.spawn("kube-scheduler", &scheduler)?;
        // Pods are refused until their namespace has its account.
        self.answers(&["get", "serviceaccount", "default"], "the controllers do nothing")
    }

    pub fn alive(&mut self) -> Result<()> {
        for (name, process) in &mut self.running {
            if let Some(status) = process.0.try_wait().context("cannot wait for the control plane")? {
                let log = self.dir.join(format!("{name}.log"));
                bail!("{name} ended: {status}; the end of {}:\n{}", log.display(), child::tail(&log, 20));
            }
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let mut text = String::new();
        for (name, _) in &self.running {
            let log = self.dir.join(format!("{name}.log"));
            // Writing to a String cannot fail.
            let _ = write!(text, "\n── the end of {}:\n{}", log.display(), child::tail(&log, 15));
        }
        text
    }

    /// The administrator's kubeconfig.
    pub fn config(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// kubectl of the same version, for this cluster.
    pub fn kubectl(&self, args: &[&str]) -> Result<Command> {
        let mut c = self.programs.command("kubectl")?;
        c.arg("--kubeconfig").arg(self.config());
        // so that what it looks up is of this cluster, not of the last that had this port
        c.arg("--cache-dir").arg(self.dir.join("kubectl"));
        c.args(args).stdin(Stdio::null()).env_remove("KUBECONFIG");
        Ok(c)
    }

    /// Another program, which finds kubectl and this cluster as a user's would.
    pub fn as_user(&self, program: &Path) -> Command {
        let mut c = child::bound_to_us(program);
        self.programs.surround(&mut c);
        // Where kubectl of this version keeps what it looked up.
        c.env("KUBECONFIG", self.config()).env("HOME", &self.dir);
        c
    }

    /// What kubectl prints; an error is its own words.
    pub fn ask(&self, args: &[&str]) -> Result<String> {
        output(self.kubectl(args)?.arg("--request-timeout=120s"))
    }

    /// Its logs, beside those of the node.
    pub fn keep_logs(&self, into: &Path) -> Result<()> {
        for (name, _) in &self.running {
            let log = format!("{name}.log");
            fs::copy(self.dir.join(&log), into.join(&log)).with_context(|| format!("cannot copy {log}"))?;
        }
        Ok(())
    }

    pub fn say_last_words(&self) {
        say(&self.last_words());
    }
}
