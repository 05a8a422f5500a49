//! This test binary, run again as the process that is killed: its test `child` does what it is told. And a copy of a folder for it.
//! Included by path; never in the product.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

/// What the child is told, a line each; in a process that is no child there is nothing.
const TOLD: &str = "FGM_TEST_CHILD";

/// In the test `child`: what it is told.
pub fn told() -> Option<Vec<String>> {
    Some(std::env::var(TOLD).ok()?.lines().map(str::to_owned).collect())
}

pub fn command(told: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]).env(TOLD, told.join("\n"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it; whether it came to its end, and what it said. `meanwhile` has it while it runs.
pub fn run(told: &[&str], meanwhile: impl FnOnce(&mut std::process::Child)) -> (bool, String) {
    let mut child = command(told).spawn().expect("a child");
    meanwhile(&mut child);
    drop(child.stdin.take());
    let (mut said, mut complaint) = (String::new(), String::new());
    child.stdout.take().expect("a pipe").read_to_string(&mut said).expect("text");
    child.stderr.take().expect("a pipe").read_to_string(&mut complaint).expect("text");
    let status = child.wait().expect("wait");
    assert!(status.success() || status.code().is_none(), "{status}: {said}{complaint}");
    (status.success(), said)
}

/// Runs it until it ends or dies by itself; whether it came to its end.
pub fn to_the_end(told: &[&str]) -> bool {
    run(told, |_| {}).0
}

pub fn copy(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let done = Command::new("cp").arg("-a").arg(from.join(".")).arg(dir.path()).status().expect("cp");
    assert!(done.success());
    dir
}
