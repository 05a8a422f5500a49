//! Roles that are made of several processes: children that are killed, that burst, that are refused, a pipe that breaks.
//! Must never leave a child behind that lives longer than its role, nor start more than it was told. Called by `main`.

use crate::{memory, say};
use signal_hook::consts::SIGPIPE;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use std::{env, thread};

const SIGKILL: i32 = 9;

/// This program again, in another role.
fn again(role: &[&str]) -> Result<Command, String> {
    let own = env::current_exe().map_err(|e| format!("cannot tell my own path: {e}"))?;
    let mut c = Command::new(own);
    c.args(role);
    Ok(c)
}

fn start(role: &[&str]) -> Result<Child, String> {
    again(role)?.spawn().map_err(|e| format!("cannot start the child: {e}"))
}

fn code_if(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::from(3) }
}

/// The container's init: it outlives the child that the kernel kills, as a supervisor or a shell does.
pub fn hog(bytes: usize, over: Duration, after: Duration, linger: Duration) -> Result<ExitCode, String> {
    say("init is steady");
    let held = memory::touched(memory::STEADY_BYTES);
    memory::idle(&held, Some(after));
    let (bytes, over) = (bytes.to_string(), over.as_secs_f64().to_string());
    let mut child = start(&["ramp", "--bytes", &bytes, "--over", &over, "--hold", "1", "--name", "hog"])?;
    say(&format!("child {} ramps", child.id()));
    let status = child.wait().map_err(|e| format!("cannot wait for the child: {e}"))?;
    say(&format!("child {} ended: {status}; init lives on for {} s", child.id(), linger.as_secs()));
    memory::idle(&held, Some(linger));
    Ok(code_if(status.signal() == Some(SIGKILL)))
}

/// An init with two children: `holder` has memory, `asker` asks for more until the limit is reached. The kernel takes the
/// larger one, which asked for nothing.
pub fn crew(
    bytes: usize,
    grow: usize,
    over: Duration,
    after: Duration,
    linger: Duration,
) -> Result<ExitCode, String> {
    say("init is steady");
    let held = memory::touched(memory::STEADY_BYTES);
    let mut holder = start(&["steady", "--bytes", &bytes.to_string(), "--name", "holder"])?;
    memory::idle(&held, Some(after));
    let (grow, over) = (grow.to_string(), over.as_secs_f64().to_string());
    let hold = linger.as_secs_f64().to_string();
    let mut asker = start(&["ramp", "--bytes", &grow, "--over", &over, "--hold", &hold, "--name", "asker"])?;
    say(&format!("holder is {}, asker is {}", holder.id(), asker.id()));
    let asked = asker.wait().map_err(|e| format!("cannot wait for asker: {e}"))?;
    let held = holder.try_wait().map_err(|e| format!("cannot look at holder: {e}"))?;
    say(&format!("asker ended: {asked}; holder: {held:?}"));
    if held.is_none() {
        // Nobody is to outlive us; gone already is as good.
        let _ = holder.kill();
        let _ = holder.wait();
    }
    Ok(code_if(held.is_some_and(|s| s.signal() == Some(SIGKILL))))
}

/// A reader that stops reading and a writer that goes on: the kernel ends the writer by SIGPIPE, and this ends with 141, as a
/// shell with `pipefail` would.
pub fn pipe(after: Duration) -> Result<ExitCode, String> {
    thread::sleep(after);
    let mut c = again(&["pour", "--name", "writer"])?;
    let mut child = c.stdout(Stdio::piped()).spawn().map_err(|e| format!("cannot start the writer: {e}"))?;
    let mut from = child.stdout.take().ok_or("the writer has no pipe")?;
    let mut some = [0; 4096];
    from.read_exact(&mut some).map_err(|e| format!("cannot read from the writer: {e}"))?;
    drop(from);
    let status = child.wait().map_err(|e| format!("cannot wait for the writer: {e}"))?;
    say(&format!("writer {} ended: {status}", child.id()));
    match status.signal() {
        Some(SIGPIPE) => Ok(ExitCode::from(128 + 13)),
        _ => Ok(ExitCode::from(3)),
    }
}

/// Writes to stdout until nobody reads it. Rust's runtime ignores SIGPIPE; here it does what it does in other programs.
pub fn pour() -> Result<ExitCode, String> {
    let always = Arc::new(AtomicBool::new(true));
    signal_hook::flag::register_conditional_default(SIGPIPE, always)
        .map_err(|e| format!("cannot take SIGPIPE as it is: {e}"))?;
    let piece = [b'x'; 4096];
    loop {
        std::io::stdout().write_all(&piece).map_err(|e| format!("cannot write: {e}"))?;
    }
}

/// So many idle children, or as many as the kernel allows, until the time is over. 3 when none was refused.
pub fn forks(children: usize, after: Duration, length: Duration) -> Result<ExitCode, String> {
    let held = memory::touched(memory::STEADY_BYTES);
    memory::idle(&held, Some(after));
    let mut living: Vec<Child> = Vec::new();
    let mut refused = 0_u32;
    for _ in 0..children {
        match again(&["steady", "--bytes", "16K", "--name", "forked"])?.spawn() {
            Ok(child) => living.push(child),
            Err(e) if e.kind() == ErrorKind::WouldBlock => refused += 1,
            Err(e) => return Err(format!("cannot start a child: {e}")),
        }
    }
    say(&format!("{} children run, {refused} were refused", living.len()));
    memory::idle(&held, Some(length));
    for mut child in living {
        // Gone already is as good.
        let _ = child.kill();
        let _ = child.wait();
    }
    Ok(code_if(refused > 0))
}
