//! What a person gets who asks for something that cannot be: the exit code, the reason, the mend, and no half file.

#[path = "support/rows.rs"]
mod rows;

use fgm::store::{Store, Writer};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

fn fgm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fgm")).args(args).output().expect("runs")
}

/// Exit code and stderr.
fn refused(args: &[&str]) -> (Option<i32>, String) {
    let run = fgm(args);
    (run.status.code(), String::from_utf8_lossy(&run.stderr).into_owned())
}

fn data() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let writer = Writer::start(store, rows::BOOT_ID).expect("starts");
    writer.seal(1, rows::all(), rows::metadata(), None);
    writer.shutdown(Duration::from_secs(20)).expect("in time");
    dir
}

#[test]
fn help_names_the_exit_codes_and_the_keys() {
    let help = String::from_utf8(fgm(&["--help"]).stdout).expect("text");
    assert!(help.contains("Exit codes") && help.contains("export") && help.contains("incidents"), "{help}");
    let keys = String::from_utf8(fgm(&["agent", "--help-config"]).stdout).expect("text");
    assert!(keys.contains("rotation.every_s = 90") && keys.contains("FGM_ROTATION_EVERY_S"), "{keys}");
}

#[test]
fn a_wrong_command_line_or_configuration_is_2() {
    let dir = data();
    let path = dir.path().to_str().expect("text");
    let config = dir.path().join("agent.toml");
    std::fs::write(&config, "[rotation]\nevery = 5\n").expect("written");
    for (args, word) in [
        (vec!["exprt"], "unrecognized subcommand"),
        (vec!["export", "--incident", "latest"], "--output"),
        (
            vec![
                "export",
                "--data",
                path,
                "--server",
                "http://127.0.0.1:1",
                "--incident",
                "x",
                "-o",
                "x.html",
            ],
            "cannot be used with",
        ),
        (
            vec!["export", "--data", path, "--incident", "latest", "--range", "5m", "-o", "x.html"],
            "cannot be used with",
        ),
        (vec!["export", "--data", path, "--incident", "latest", "-o", "x.pdf"], "names no format"),
        (vec!["export", "--data", path, "--incident", "latest", "-o", "-"], "names no format"),
        (vec!["export", "--data", path, "-o", "x.html"], "neither an incident nor a time range"),
        (vec!["export", "--data", path, "--range", "5 minutes", "-o", "x.html"], "not a length of time"),
        (
            vec!["export", "--data", path, "--range", "5m", "--metrics", "nope", "-o", "x.html"],
            "no column is named nope",
        ),
        (
            vec!["export", "--server", "https://127.0.0.1:1", "--range", "5m", "-o", "x.html"],
            "http://HOST:PORT",
        ),
        (vec!["agent", "--config", config.to_str().expect("text")], "every_s"),
        (vec!["agent", "--config", "/nonexistent/agent.toml"], "name an existing file"),
    ] {
        let (code, stderr) = refused(&args);
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(word), "{args:?}: {stderr}");
    }
    assert!(!Path::new("x.html").exists());
}

#[test]
fn nothing_found_is_3_and_no_file_is_made() {
    let dir = data();
    let path = dir.path().to_str().expect("text");
    let out = dir.path().join("out.parquet");
    let out_text = out.to_str().expect("text");
    for args in [
        vec!["export", "--data", path, "--incident", "nope", "-o", out_text],
        vec!["export", "--data", path, "--range", "5m", "-o", out_text],
        vec!["export", "--data", path, "--from", "1", "-n", "nowhere", "-o", out_text],
    ] {
        let (code, stderr) = refused(&args);
        assert_eq!(code, Some(3), "{args:?}: {stderr}");
        assert!(!out.exists());
    }
    let empty = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(empty.path().join("recent")).expect("made");
    let (code, stderr) = refused(&["incidents", "--data", empty.path().to_str().expect("text")]);
    assert_eq!(code, Some(3), "{stderr}");
}

#[test]
fn a_folder_that_is_none_and_an_agent_that_is_not_there_are_1() {
    let (code, stderr) = refused(&["incidents", "--data", "/nonexistent"]);
    assert!(code == Some(1) && stderr.contains("not a data folder of fgm"), "{stderr}");
    let (code, stderr) = refused(&["incidents", "--server", "http://127.0.0.1:1"]);
    assert!(code == Some(1) && stderr.contains("is the agent running there?"), "{stderr}");
    let dir = data();
    let path = dir.path().to_str().expect("text");
    let (code, stderr) =
        refused(&["export", "--data", path, "--incident", "latest", "-o", "/nonexistent/x.html"]);
    assert!(code == Some(1) && stderr.contains("cannot write /nonexistent/x.html"), "{stderr}");
}

#[test]
fn a_copied_folder_is_read_without_being_changed() {
    let dir = data();
    let copy = tempfile::tempdir().expect("a folder");
    let run =
        Command::new("cp").arg("-r").arg(dir.path().join("recent")).arg(copy.path()).status().expect("runs");
    assert!(run.success());
    let before = std::fs::read_dir(copy.path()).expect("a folder").count();
    let path = copy.path().to_str().expect("text");
    let run = fgm(&["export", "--data", path, "--incident", "latest", "-o", "-", "--format", "html"]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert!(run.stdout.len() > 20_000);
    let run = fgm(&["incidents", "--data", path]);
    let text = String::from_utf8(run.stdout).expect("text");
    assert!(text.contains("oom_kill") && !text.contains('\u{1}'), "{text:?}");
    assert_eq!(std::fs::read_dir(copy.path()).expect("a folder").count(), before, "no lock, no new folder");
}
