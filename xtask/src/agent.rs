//! A running agent with a folder of its own: started, asked by its API, ended as an orchestrator ends it.
//! Must never outlive its value. Called by `demo_play` and by `bench`.

use crate::child::{self, Reaped};
use crate::clock::Deadline;
use crate::http;
use crate::net::free_port;
use crate::progress::Step;
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

/// A debug agent in an emulated CPU needs seconds to read the kernel's types; beside others' work, minutes.
const READY: Duration = Duration::from_mins(4);
/// Its writer has 20 s; an emulated machine that others use as well takes its time to come to that.
const STOP: Duration = Duration::from_mins(2);

pub struct Agent {
    process: Reaped,
    address: SocketAddr,
    log: PathBuf,
}

impl Agent {
    /// `keys` are those before any table of the configuration, `tables` the tables. Returns when it is ready.
    pub fn start(out: &Path, program: &Path, keys: &str, tables: &str) -> Result<Self> {
        let step = Step::begin("starting the agent");
        let (address, health) = (free_port()?, free_port()?);
        let config = out.join("agent.toml");
        let data = out.join("data").display().to_string();
        let text = format!(
            "data_dir = {data:?}\nlisten = \"{address}\"\nhealth_listen = \"{health}\"\n{keys}{tables}"
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let log = out.join("agent.log");
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut c = child::bound_to_us(program);
        c.args(["agent", "--config"]).arg(&config).env("RUST_BACKTRACE", "0");
        c.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let process = Reaped(c.spawn().with_context(|| format!("cannot start {}", program.display()))?);
        let mut agent = Self { process, address, log };
        let deadline = Deadline::after(READY);
        while !http::get(address, "/readyz").is_ok_and(|r| r.status == 200) {
            agent.alive()?;
            if deadline.passed() {
                bail!("the agent is not ready after {} s{}", READY.as_secs(), agent.last_words());
            }
            thread::sleep(Duration::from_millis(100));
        }
        step.done("");
        Ok(agent)
    }

    pub fn alive(&mut self) -> Result<()> {
        if let Some(status) = self.process.0.try_wait().context("cannot wait for the agent")? {
            bail!("the agent ended: {status}{}", self.last_words());
        }
        Ok(())
    }

    pub fn last_words(&self) -> String {
        format!("; the end of {}:\n{}", self.log.display(), child::tail(&self.log, 25))
    }

    /// What its API answers, which must be JSON.
    pub fn get(&self, path: &str) -> Result<Value> {
        let reply = http::get(self.address, path)?;
        if reply.status != 200 {
            bail!("{path} answers {}: {}", reply.status, reply.body);
        }
        serde_json::from_str(&reply.body).with_context(|| format!("{path} is not JSON"))
    }

    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// SIGTERM, as an orchestrator ends it; it has to close its files and say 0.
    pub fn stop(mut self) -> Result<()> {
        let step = Step::begin("stopping the agent");
        let pid = rustix::process::Pid::from_child(&self.process.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .context("cannot signal the agent")?;
        match child::wait_until(&mut self.process.0, Deadline::after(STOP))? {
            Some(status) if status.success() => step.done(""),
            Some(status) => bail!("the agent ended badly on SIGTERM: {status}{}", self.last_words()),
            None => {
                bail!("the agent does not end on SIGTERM within {} s{}", STOP.as_secs(), self.last_words())
            }
        }
        Ok(())
    }
}
