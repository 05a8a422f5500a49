//! What a person gets who asks for something that cannot be: the exit code, the reason, the mend, and no half file.

#[path = "support/rows.rs"]
mod rows;

use fgm::store::{Store, Writer};
use std::io::{Read, Write};
use std::net::TcpListener;
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
            vec![
                "export",
                "--data",
                path,
                "--from",
                "2026-01-02T00:00:00Z",
                "--to",
                "2026-01-01T00:00:00Z",
                "-o",
                "x.html",
            ],
            "from (2026-01-02T00:00:00Z) is not before to",
        ),
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
fn a_kind_that_there_is_not_is_2_and_the_kinds_are_listed() {
    let dir = data();
    let path = dir.path().to_str().expect("text");
    for args in [vec!["events", "-k", "bogus", "--data", path], vec!["events", "-k", "bogus", "--follow"]] {
        let (code, text) = refused(&args);
        assert_eq!(code, Some(2), "{text}");
        assert!(
            text.contains("bogus") && text.contains("oom_kill, exit") && text.contains("clock_step"),
            "{text}"
        );
        assert!(!text.contains("kind="), "the command line's own words: {text}");
    }
}

#[test]
fn a_misspelt_metric_is_2_with_the_nearest_and_where_all_are() {
    let dir = data();
    let path = dir.path().to_str().expect("text");
    let out = dir.path().join("x.csv");
    let out = out.to_str().expect("text");
    for args in [
        vec!["export", "--data", path, "--from", "1", "-m", "memory_curent", "-o", out],
        vec!["analyze", "trend", "--data", path, "--from", "1", "-m", "memory_curent"],
    ] {
        let (code, text) = refused(&args);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains("memory_current") && text.contains("`fgm metrics`"), "{text}");
        assert!(text.len() < 400, "{text}");
    }
    let all = String::from_utf8(fgm(&["metrics", "throttled"]).stdout).expect("text");
    assert!(all.contains("cpu_stat_nr_throttled") && !all.contains("memory_current"), "{all}");
    assert_eq!(fgm(&["metrics", "no such word"]).status.code(), Some(3));
}

/// Years after its last reading a copied folder still has a last quarter of an hour.
#[test]
fn a_range_over_a_folder_ends_at_its_newest_reading() {
    let dir = data();
    let path = dir.path().to_str().expect("text");
    let out = dir.path().join("x.csv");
    let out = out.to_str().expect("text");
    for verb in [vec!["events"], vec!["incidents"], vec!["export", "-o", out], vec!["analyze", "trend"]] {
        let run = fgm(&[&verb[..], &["--data", path, "--range", "1h"]].concat());
        assert!(run.status.success(), "{verb:?}: {}", String::from_utf8_lossy(&run.stderr));
    }
    let help = String::from_utf8(fgm(&["events", "--help"]).stdout).expect("text");
    assert!(help.contains("newest reading"), "{help}");
}

#[test]
fn nothing_in_a_range_names_it_and_the_range_of_the_data() {
    let dir = data();
    let path = dir.path().to_str().expect("text");
    for (verb, what) in [("events", "no event from"), ("incidents", "no incident from")] {
        let (code, text) = refused(&[
            verb,
            "--data",
            path,
            "--from",
            "2001-01-01T00:00:00Z",
            "--to",
            "2001-01-02T00:00:00Z",
        ]);
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains(what) && text.contains("2001-01-02T00:00:00Z"), "{text}");
        assert!(text.contains("the data reaches from 20"), "{text}");
        assert!(!text.contains("recorded"), "what was not looked at is not spoken of: {text}");
    }
}

#[test]
fn of_a_broken_file_what_is_known_is_told_and_no_more() {
    let dir = tempfile::tempdir().expect("a folder");
    let broken = dir.path().join("1-a-1.parquet");
    std::fs::write(&broken, b"PAR1 and then nothing").expect("written");
    let run = fgm(&["inspect", broken.to_str().expect("text")]);
    let text = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{text}");
    assert!(text.contains("unreadable, 21 bytes") && text.contains("PROBLEM: "), "{text}");
    assert!(text.contains("1-a-1.parquet has a problem; it is listed above"), "{text}");
    assert!(!text.contains("null") && !text.contains("1 problems"), "{text}");
}

#[test]
fn nothing_found_is_3_and_no_file_is_made() {
    let dir = data();
    let path = dir.path().to_str().expect("text");
    let out = dir.path().join("out.parquet");
    let out_text = out.to_str().expect("text");
    for args in [
        vec!["export", "--data", path, "--incident", "nope", "-o", out_text],
        vec!["export", "--data", path, "--from", "1", "--to", "2", "-o", out_text],
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

/// A server that gives one answer to each of `n` requests.
fn server(answer: &'static str, n: usize) -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let thread = std::thread::spawn(move || {
        for mut stream in listener.incoming().take(n).flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (address, thread)
}

#[test]
fn a_server_that_is_no_agent_is_told_apart_and_no_file_is_made() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("x.html");
    let page =
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    let missing = "HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    let health = "HTTP/1.1 404 Not Found\r\nContent-Type: application/problem+json\r\nContent-Length: 39\r\n\
                  Connection: close\r\n\r\n{\"type\":\"urn:fgm:problem:no-such-path\"}";
    for (answer, word) in
        [(page, "an fgm agent?"), (missing, "an fgm agent?"), (health, "that of health_listen")]
    {
        let (address, thread) = server(answer, 2);
        let out_text = out.to_str().expect("text");
        for args in [
            vec!["incidents", "--server", &address],
            vec!["export", "--server", &address, "--range", "5m", "-o", out_text],
        ] {
            let (code, stderr) = refused(&args);
            assert_eq!(code, Some(1), "{args:?}: {stderr}");
            assert!(stderr.contains(word) && stderr.contains(&address), "{args:?}: {stderr}");
        }
        thread.join().expect("served");
    }
    assert!(!out.exists());
    let (code, stderr) = refused(&["incidents", "--server", "http://"]);
    assert!(code == Some(2) && stderr.contains("http://HOST:PORT"), "{stderr}");
}

#[test]
fn an_output_that_is_no_file_is_written_to_and_never_replaced() {
    use std::os::unix::fs::FileTypeExt;
    let dir = data();
    let path = dir.path().to_str().expect("text");
    let export = |out: &Path| {
        let out = out.to_str().expect("text");
        refused(&["export", "--data", path, "--incident", "latest", "--format", "html", "-o", out])
    };
    let (code, stderr) = export(dir.path());
    assert!(code == Some(2) && stderr.contains("is a folder"), "{stderr}");

    // A pipe stands for a device: a test must not have /dev at its mercy.
    let pipe = dir.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).expect("read")
    });
    let (code, stderr) = export(&pipe);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(reader.join().expect("read").len() > 20_000);
    assert!(std::fs::metadata(&pipe).expect("there").file_type().is_fifo());

    let (target, link) = (dir.path().join("target.html"), dir.path().join("link.html"));
    std::fs::write(&target, "old").expect("written");
    std::os::unix::fs::symlink(&target, &link).expect("a link");
    assert_eq!(export(&link).0, Some(0));
    assert!(std::fs::read(&target).expect("there").len() > 20_000);
    assert!(std::fs::symlink_metadata(&link).expect("there").is_symlink());
}

#[test]
fn a_damaged_file_is_named_at_an_export_and_the_rest_is_exported() {
    let dir = data();
    let path = dir.path().to_str().expect("text");
    let folder = dir.path().join("recent/table=samples");
    std::fs::write(folder.join("0000000000000001-x-00000001.parquet"), "junk").expect("written");
    let run = fgm(&["export", "--data", path, "--incident", "latest", "--format", "csv", "-o", "-"]);
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && stderr.contains("0000000000000001-x-00000001.parquet"), "{stderr}");
    assert!(String::from_utf8(run.stdout).expect("text").lines().count() > 1);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let dir = data();
    let path = dir.path().to_str().expect("text");
    for args in [
        vec!["agent", "--help-config"],
        vec!["incidents", "--data", path, "--json"],
        vec!["export", "--data", path, "--incident", "latest", "--format", "html", "-o", "-"],
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_fgm"))
            .args(&args)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("runs");
        drop(child.stdout.take());
        assert!(child.wait().expect("ends").success(), "{args:?}");
    }
}
