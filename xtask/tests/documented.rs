//! Each command in README.md and docs/*.md is run by a test, or says what it needs that a test has not. Those of `cargo xtask` that do nothing
//! are run here, those of `fgm` in `agent/tests/documented.rs`; of the rest the words are checked. Must never start anything in a
//! cluster: PATH is empty.

#[path = "documented/blocks.rs"]
mod blocks;

use blocks::{Typed, all, of, root};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// What a run of CI does in a larger way: the command, the file that has it, and its words there.
const ELSEWHERE: [(&str, &str, &str); 3] = [
    ("cargo xtask demo", "xtask/src/suite.rs", "demo::in_vm("),
    ("cargo xtask test", ".ci/run", "exec cargo xtask test"),
    ("cargo xtask image", "xtask/src/kubernetes.rs", "image::build(Of::Agent, profile)"),
];
/// Who reads this has done it.
const CLONE: [&str; 2] = ["git clone", "cd fine-grained-monitor"];

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("fgm-documented-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder");
        Self(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs it; what it says when it fails.
fn xtask(words: &[String], dry: bool, runs: &Folder) -> Result<String, String> {
    let mut c = Command::new(env!("CARGO_BIN_EXE_xtask"));
    c.args(&words[2..]).args(dry.then_some("--dry-run"));
    c.env("PATH", "/nonexistent").env("FGM_RUNS", &runs.0).env_remove("KUBECONFIG");
    let output = c.output().expect("xtask runs");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
}

fn starts(typed: &Typed, with: &str) -> bool {
    typed.words.join(" ").starts_with(with)
}

/// Runs what can be run here; says whether a test runs it, here or elsewhere.
fn is_run(typed: &Typed, runs: &Folder) -> bool {
    if typed.words[0] == "fgm" || CLONE.iter().any(|c| starts(typed, c)) {
        return true;
    }
    if let Some((_, file, words)) = ELSEWHERE.iter().find(|(command, ..)| typed.words.join(" ") == *command) {
        let text = fs::read_to_string(root().join(file)).expect("the file that runs it");
        assert!(text.contains(words), "{}: {file} does not run it any more", typed.line());
        return true;
    }
    if starts(typed, "cargo xtask scenario status") {
        let done = xtask(&typed.words, false, runs);
        assert!(done.is_ok(), "{}: {done:?}", typed.line());
        return true;
    }
    false
}

#[test]
fn each_command_is_run_or_says_what_it_needs() {
    let runs = Folder::new("run");
    for typed in all().iter().filter(|typed| typed.needs.is_none()) {
        assert!(is_run(typed, &runs), "{}: no test runs it, and its comment names no need", typed.line());
    }
}

#[test]
fn what_needs_a_cluster_has_words_that_xtask_knows() {
    let runs = Folder::new("dry");
    let mut tried = 0;
    for typed in all() {
        let is_dry = ["cargo xtask cluster ", "cargo xtask scenario run "].iter().any(|v| starts(&typed, v));
        if !is_dry {
            continue;
        }
        let shown = xtask(&typed.words, true, &runs).unwrap_or_else(|e| panic!("{}: {e}", typed.line()));
        assert!(!shown.is_empty(), "{}: nothing would be done", typed.line());
        tried += 1;
    }
    assert!(tried >= 6, "{tried}");
    assert_eq!(fs::read_dir(&runs.0).expect("a folder").count(), 0, "a dry run left something");
}

#[test]
fn each_file_of_ours_that_a_command_names_is_there() {
    let mut seen = 0;
    for typed in all() {
        for word in typed.words.iter().filter(|w| ["deploy/", "scenarios/"].iter().any(|d| w.starts_with(d)))
        {
            assert!(root().join(word).exists(), "{}: there is no {word}", typed.line());
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen}");
}

#[test]
fn a_block_is_read_line_by_line_and_must_say_its_language() {
    let text = "```sh\na b 'c d' && e   # cluster: why\nf   # what it does\n```\n```toml\ng = 1\n```\n";
    let read: Vec<_> = of("x.md", text).into_iter().map(|t| (t.at, t.words, t.needs)).collect();
    let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        read,
        [
            ("x.md:2".to_owned(), words(&["a", "b", "c d"]), Some("cluster")),
            ("x.md:2".to_owned(), words(&["e"]), Some("cluster")),
            ("x.md:3".to_owned(), words(&["f"]), None),
        ]
    );
    let runs = Folder::new("unknown");
    assert!(!is_run(&of("x.md", "```sh\nkubectl get pods\n```\n")[0], &runs));
    for text in ["```\na\n```\n", "```bash\na\n```\n"] {
        assert!(std::panic::catch_unwind(|| of("x.md", text)).is_err(), "{text}");
    }
}

/// The numbers of memory stand in performance.md alone; the chart's limit has to fit them.
#[test]
fn the_charts_memory_limit_is_above_what_was_measured() {
    let read = |file: &str| fs::read_to_string(root().join(file)).expect(file);
    let measured = read("docs/performance.md");
    let row =
        measured.lines().find(|l| l.starts_with("| 2,000 | fgm |")).expect("the row of 2,000 containers");
    let mb: f64 = row.split('|').nth(9).and_then(|cell| cell.trim().parse().ok()).expect("its MB");
    let values = read("deploy/helm/values.yaml");
    let limit = values.split_once("limits:").expect("limits").1;
    let limit = limit.lines().find_map(|l| l.trim().strip_prefix("memory: ")).expect("a memory limit");
    let limit: f64 = limit.strip_suffix("Mi").and_then(|n| n.parse().ok()).expect("in Mi");
    // Half as much again: an export or the merge of an hour comes on top.
    assert!(mb > 1.0 && mb * 1.5 <= limit * 1.048_576, "{mb} MB measured, {limit} Mi allowed");
    let operate = read("docs/operate.md");
    let sizes = operate.split_once("## Sizes").expect("a section").1;
    assert!(sizes.contains("(performance.md)") && !sizes.contains(" MB"), "numbers of its own: {sizes}");
}
