//! `cargo xtask bench evidence`: a mix of OOM kills, the recorder, and a witness of its own; then kill by kill whether the
//! recorder was right ([`judge`]). Must never take the recorder's word for what happened. Called by `bench`.
//!
//! The outer half: builds, starts the inner one (`play`) where cgroup v2 is, and takes the first bursts on this machine itself.
//! All that they leave is in one folder, which can be judged again.

use super::judge::{self, Asked};
use super::{Place, Programs, native, play};
use crate::progress::say;
use crate::vm::Guest;
use anyhow::{Context as _, Result, bail};
use serde_json::json;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A thousand kills took 13 minutes in an emulated machine beside others' work.
const LONGEST: Duration = Duration::from_mins(45);

pub struct Options<'a> {
    pub kernel: &'a str,
    pub asked: Asked<'a>,
    /// The folder of an earlier run, to be judged again with this recorder's `incidents` and `export`.
    pub again: Option<(&'a Path, &'a Path)>,
}

/// 0 when every bound holds, 1 otherwise.
pub fn bench(options: &Options<'_>) -> Result<i32> {
    let asked = &options.asked;
    if let Some((out, agent)) = options.again {
        return judge::judge(out, agent, asked);
    }
    let programs = Programs::build()?;
    let out = super::out_folder("evidence")?;
    match asked.place {
        Place::Vm => {
            in_vm(&out, &programs, options)?;
            // of a time that emulation stretches nothing can be said
            let native = native::first_bursts(&out, &programs).inspect_err(|why| {
                say(&format!("first burst: not to be had natively here, since {why:#}"));
            });
            let text = json!({ "first_burst_ms": native.unwrap_or_default() }).to_string();
            fs::write(out.join(judge::NATIVE), text).context("cannot write what was measured natively")?;
        }
        Place::Host => play::play(&play::Words {
            out: &out,
            agent: &programs.agent,
            workload: &programs.workload,
            truth: &programs.truth,
            kills: asked.kills,
            node_kills: 0,
            lane: asked.lane,
        })?,
    }
    judge::judge(&out, &programs.agent, asked)
}

fn in_vm(out: &Path, programs: &Programs, options: &Options<'_>) -> Result<()> {
    let asked = &options.asked;
    let own = crate::paths::own()?;
    // one of them takes an emulated machine a minute
    let node_kills = if asked.kills >= 200 { 2 } else { 1 };
    let mut words: Vec<OsString> = vec![own.into(), "bench".into(), "--play".into(), "evidence".into()];
    words.extend([out, &programs.agent, &programs.workload, &programs.truth].map(OsString::from));
    words.extend([asked.kills.to_string().into(), node_kills.to_string().into(), asked.lane.into()]);
    let mut guest = Guest::new(words)?;
    options.kernel.clone_into(&mut guest.series);
    guest.timeout = LONGEST;
    guest.out = Some(out.to_path_buf());
    let code = guest.run_with(&mut std::io::stderr(), &mut std::io::stderr())?;
    if code != 0 {
        bail!(
            "the benchmark failed in the test VM (exit code {code}); what there is of it is in {}",
            out.display()
        );
    }
    Ok(())
}
