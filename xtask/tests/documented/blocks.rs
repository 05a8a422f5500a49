//! The shell commands that README.md and docs/*.md tell people to type, one by one, each with what its line says that it needs. Read by
//! `xtask/tests/documented.rs` and `agent/tests/documented.rs`, which run those that need nothing.
//!
//! A line's comment begins with what it needs: `# cluster`, `# cluster: more words`. Without such a word a test runs the command.

use std::fs;
use std::path::{Path, PathBuf};

/// What no test that runs anywhere has: a cluster, a container engine, a running agent, a bucket, a node of one's own.
const NEEDS: [&str; 5] = ["cluster", "docker", "agent", "bucket", "node"];

pub struct Typed {
    /// `docs/install.md:12`
    pub at: String,
    pub words: Vec<String>,
    pub needs: Option<&'static str>,
}

impl Typed {
    pub fn line(&self) -> String {
        format!("{}: {}", self.at, self.words.join(" "))
    }
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").to_path_buf()
}

pub fn all() -> Vec<Typed> {
    let docs = fs::read_dir(root().join("docs")).expect("docs").flatten().map(|e| e.path());
    let mut files: Vec<PathBuf> = docs.filter(|p| p.extension().is_some_and(|e| e == "md")).collect();
    files.push(root().join("README.md"));
    files.sort();
    let read = |path: &PathBuf| {
        let name = path.strip_prefix(root()).expect("below it").display().to_string();
        of(&name, &fs::read_to_string(path).expect("a document"))
    };
    let typed: Vec<Typed> = files.iter().flat_map(read).collect();
    assert!(typed.len() > 40, "only {} commands were found", typed.len());
    typed
}

/// Of one document. A block that does not say its language may be anything, so it is refused.
pub fn of(name: &str, text: &str) -> Vec<Typed> {
    let (mut all, mut language): (_, Option<&str>) = (Vec::new(), None);
    for (n, line) in text.lines().enumerate() {
        let at = format!("{name}:{}", n + 1);
        match (line.strip_prefix("```"), language) {
            (Some(info), None) => {
                assert!(!info.is_empty(), "{at}: the block does not say its language (sh for commands)");
                let shells = ["bash", "shell", "console", "zsh"];
                assert!(!shells.contains(&info), "{at}: commands are in blocks of `sh`");
                language = Some(info);
            }
            (Some(_), Some(_)) => language = None,
            (None, Some("sh")) => all.extend(commands(&at, line)),
            _ => {}
        }
    }
    all
}

/// `a && b   # cluster: why` are two commands that need a cluster.
fn commands(at: &str, line: &str) -> Vec<Typed> {
    let (command, comment) = line.split_once(" # ").unwrap_or((line, ""));
    let first = comment.trim().split([':', ',', ';', ' ']).next().unwrap_or_default();
    let needs = NEEDS.into_iter().find(|need| *need == first);
    let one = |part: &str| Typed { at: at.to_owned(), words: words(part), needs };
    command.split("&&").map(one).filter(|typed| !typed.words.is_empty()).collect()
}

/// As a shell splits them, with 'single quotes' alone.
fn words(command: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for (n, part) in command.split('\'').enumerate() {
        if n % 2 == 0 {
            all.extend(part.split_whitespace().map(str::to_owned));
        } else {
            all.push(part.to_owned());
        }
    }
    all
}
