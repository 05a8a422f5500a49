//! `fgm doctor` as a program sees it: exit codes, and the members of its JSON, which stay. Needs no privilege; what a
//! kernel offers is told by the tests in the VM (`kernel_doctor.rs`).

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

fn doctor(dir: &Path, root: &str, args: &[&str], more: &str) -> (Option<i32>, String, String) {
    let config = dir.join("agent.toml");
    let text = format!(
        "data_dir = {:?}\ncgroup_root = {root:?}\nhealth_listen = \"127.0.0.1:0\"\n{more}",
        dir.join("data").display().to_string()
    );
    fs::write(&config, text).expect("written");
    let out = Command::new(env!("CARGO_BIN_EXE_fgm"))
        .args(["doctor", "--config"])
        .arg(&config)
        .args(args)
        .output()
        .expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (out.status.code(), text(out.stdout), text(out.stderr))
}

fn members(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

const FREE: &str = "listen = \"127.0.0.1:0\"\n";

#[test]
fn a_machine_without_cgroup_v2_is_2_and_everything_else_is_looked_at_all_the_same() {
    let dir = tempfile::tempdir().expect("a folder");
    let (code, text, _) = doctor(dir.path(), "/nonexistent", &["--json"], FREE);
    assert_eq!(code, Some(2), "{text}");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((report["verdict"].as_str(), report["level"].as_str()), (Some("broken"), Some("no_bpf")));
    let names: BTreeSet<&str> =
        report["findings"].as_array().expect("findings").iter().filter_map(|f| f["name"].as_str()).collect();
    for name in
        ["cgroup v2", "capabilities", "BTF", "open files", "pressure memory", "data folder", "addresses"]
    {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
    let (code, table, _) = doctor(dir.path(), "/nonexistent", &[], FREE);
    assert!(
        code == Some(2) && table.contains("! cgroup v2") && table.contains("\nbroken; rung no_bpf"),
        "{table}"
    );
    assert!(!dir.path().join("data").exists(), "it makes nothing");
}

#[test]
fn the_members_of_its_json_stay() {
    let Some(root) = cgroup_root() else {
        println!("SKIPPED the_members_of_its_json_stay: no cgroup v2 is mounted");
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let (code, text, said) = doctor(dir.path(), &root, &["--json", "--cost"], FREE);
    assert!(matches!(code, Some(0 | 1)), "{code:?}: {text} {said}");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let expected =
        ["agent_version", "cgroup_root", "cost", "findings", "kernel", "level", "reason", "verdict", "works"];
    assert_eq!(members(&report), BTreeSet::from(expected));
    let findings = report["findings"].as_array().expect("findings");
    for f in findings {
        assert_eq!(members(f), BTreeSet::from(["costs", "found", "mend", "name", "standing"]), "{f}");
        let standing = f["standing"].as_str().expect("text");
        assert!(["good", "note", "degraded", "broken"].contains(&standing), "{f}");
        assert!(standing != "degraded" || f["costs"].is_string() && f["mend"].is_string(), "{f}");
    }
    let worst = |s: &str| findings.iter().any(|f| f["standing"] == s);
    assert_eq!(code == Some(1), worst("degraded"));
    assert!(!worst("broken"));
    let cost = report["cost"].as_array().expect("cost");
    assert_eq!(members(&cost[0]), BTreeSet::from(["cgroups", "file", "p50_us", "share_percent", "tier"]));
    let (_, table, _) = doctor(dir.path(), &root, &["--cost"], FREE);
    assert!(table.contains("cgroup") && table.contains("cgroup v2"), "{table}");
}

fn cgroup_root() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut fields = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>());
    fields.find(|f| f.get(2) == Some(&"cgroup2")).map(|f| f[1].to_owned())
}

#[test]
fn what_another_holds_or_nobody_can_write_is_named_with_the_mend() {
    let dir = tempfile::tempdir().expect("a folder");
    let held = TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = format!("listen = \"{}\"\n", held.local_addr().expect("an address"));
    let finding = |text: &str, name: &str| {
        let report: Value = serde_json::from_str(text).expect("JSON");
        report["findings"]
            .as_array()
            .expect("findings")
            .iter()
            .find(|f| f["name"] == name)
            .expect("there")
            .clone()
    };
    let (code, text, _) = doctor(dir.path(), "/nonexistent", &["--json"], &taken);
    let addresses = finding(&text, "addresses");
    assert_eq!((code, addresses["standing"].as_str()), (Some(2), Some("broken")));
    assert!(addresses["found"].as_str().is_some_and(|f| f.contains("the port is taken")), "{addresses}");
    fs::write(dir.path().join("data"), "mine").expect("written");
    let (_, text, _) = doctor(dir.path(), "/nonexistent", &["--json"], FREE);
    assert!(
        finding(&text, "data folder")["found"].as_str().is_some_and(|f| f.contains("is a file")),
        "{text}"
    );
    // a wrong configuration is no finding
    let (code, text, said) = doctor(dir.path(), "/nonexistent", &["--json"], "nod = 1\n");
    assert!(code == Some(2) && text.is_empty() && said.contains("`nod`"), "{said}");
}
