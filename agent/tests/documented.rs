//! The commands of `fgm` in README.md and docs/*.md: those that need no agent and no cluster are run, over a copy of a data folder of real
//! agents; of the others it is seen that `fgm` knows their words. `xtask/tests/documented.rs` holds that each is one or the other.

#[path = "../../xtask/tests/documented/blocks.rs"]
mod blocks;

use blocks::{Typed, all, root};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What the documents call a folder of the reader's.
const FOLDERS: [&str; 2] = ["/copied/data/folder", "/data/folder"];

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("a copy");
        }
    }
}

/// In an empty folder, with the reader's folder in place.
fn command(typed: &Typed, dir: &Path) -> Command {
    let data = dir.join("data").display().to_string();
    let mut c = Command::new(env!("CARGO_BIN_EXE_fgm"));
    c.args(typed.words[1..].iter().map(|w| if FOLDERS.contains(&w.as_str()) { &data } else { w }));
    c.current_dir(dir).stdin(Stdio::null());
    c
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Serves until it is ended: its page's address is enough.
fn serves(typed: &Typed, dir: &Path) {
    let mut c = command(typed, dir);
    c.args(["--listen", "127.0.0.1:0"]).stdout(Stdio::piped());
    let mut child = c.spawn().expect("fgm runs");
    let mut line = String::new();
    let read = BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line);
    child.kill().and_then(|()| child.wait()).expect("its end");
    assert!(read.is_ok() && line.contains("http://127.0.0.1:"), "{}: {line}", typed.line());
}

#[test]
fn what_needs_nothing_runs_as_it_is_told() {
    let mut ran = 0;
    for typed in all().iter().filter(|t| t.needs.is_none() && t.words[0] == "fgm") {
        let dir = tempfile::tempdir().expect("a folder");
        copy(&root().join("agent/tests/fixtures/golden/schema-2"), &dir.path().join("data"));
        ran += 1;
        if typed.words[1] == "view" {
            serves(typed, dir.path());
            continue;
        }
        let output = command(typed, dir.path()).output().expect("fgm runs");
        // What doctor says of a machine is its exit code.
        let good = output.status.success() || typed.words[1] == "doctor" && !output.stdout.is_empty();
        assert!(good, "{}: {}", typed.line(), said(&output));
        if let Some(at) = typed.words.iter().position(|w| w == "-o") {
            let made = fs::metadata(dir.path().join(&typed.words[at + 1])).map_or(0, |m| m.len());
            assert!(made > 1000, "{}: {made} bytes", typed.line());
        }
    }
    assert!(ran >= 6, "only {ran}");
}

#[test]
fn what_needs_more_has_words_that_fgm_knows() {
    for typed in all().iter().filter(|t| t.needs.is_some() && t.words[0] == "fgm") {
        let output = command(typed, Path::new("/")).arg("--help").output().expect("fgm runs");
        assert!(output.status.success(), "{}: {}", typed.line(), said(&output));
    }
    // Which is a test only if a wrong word is told.
    let wrong = Typed {
        at: String::new(),
        words: vec!["fgm".into(), "events".into(), "--folow".into()],
        needs: None,
    };
    assert!(!command(&wrong, Path::new("/")).arg("--help").output().expect("fgm runs").status.success());
}
