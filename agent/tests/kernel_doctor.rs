//! `fgm doctor` against real kernels: what it says of a whole machine, and of one that something was taken from. Run as
//! root in the test VM; elsewhere each test says that it was skipped and why.

#[expect(dead_code, reason = "the stage of the agent's tests, of which these need the guard")]
#[path = "kernel_agent/stage.rs"]
mod stage;

use serde_json::Value;
use std::process::Command;

fn doctor(prefix: &[&str], name: &str) -> (Option<i32>, Value) {
    let mut words = prefix.to_vec();
    words.extend([env!("CARGO_BIN_EXE_fgm"), "doctor", "--json"]);
    let out = Command::new(words[0])
        .args(&words[1..])
        .envs([
            ("FGM_DATA_DIR", "/tmp/fgm-doctor"),
            ("FGM_LISTEN", "127.0.0.1:0"),
            ("FGM_HEALTH_LISTEN", "127.0.0.1:0"),
        ])
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&out.stdout);
    println!("{name}: {text}{}", String::from_utf8_lossy(&out.stderr));
    (out.status.code(), serde_json::from_str(&text).expect("JSON"))
}

fn finding<'a>(report: &'a Value, name: &str) -> &'a Value {
    let found = report["findings"].as_array().expect("findings").iter().find(|f| f["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {report}"))
}

#[test]
fn a_whole_machine_is_well() {
    if !stage::guard("a_whole_machine_is_well") {
        return;
    }
    let (code, report) = doctor(&[], "whole");
    assert_eq!((report["verdict"].as_str(), report["level"].as_str()), (Some("well"), Some("full_bpf")));
    assert_eq!(code, Some(0));
    for (name, found) in [
        ("hook mark_victim (oom_kill)", "tp_btf"),
        ("hook oom_kill_process (oom_kill)", "fentry"),
        ("hook try_to_free_mem_cgroup_pages (memory_reclaim)", "fentry"),
    ] {
        let f = finding(&report, name);
        assert_eq!((f["standing"].as_str(), f["found"].as_str()), (Some("good"), Some(found)), "{f}");
    }
    let lane = finding(&report, "hook iter/cgroup (lane)");
    let way = lane["found"].as_str().unwrap_or_default();
    assert!(lane["standing"] == "good" && ["iter_css", "iter_cgroup"].contains(&way), "{lane}");
    for name in [
        "cgroup v2",
        "controller memory",
        "BTF",
        "tracefs",
        "capabilities",
        "pid namespace",
        "pressure memory",
    ] {
        assert_eq!(finding(&report, name)["standing"], "good", "{name}");
    }
}

#[test]
fn what_was_taken_away_is_named_with_its_cost_and_its_mend() {
    if !stage::guard("what_was_taken_away_is_named_with_its_cost_and_its_mend") {
        return;
    }
    let (code, report) = doctor(&["setpriv", "--bounding-set=-all", "--inh-caps=-all"], "no capabilities");
    assert_eq!((code, report["level"].as_str()), (Some(1), Some("no_bpf")));
    let capabilities = finding(&report, "capabilities");
    assert_eq!(capabilities["mend"], "grant CAP_BPF and CAP_PERFMON");
    assert!(capabilities["costs"].as_str().is_some_and(|c| c.contains("without victim")), "{capabilities}");
    assert_eq!(finding(&report, "hook memory.events (oom_kill)")["found"], "by inotify");
    assert_eq!(finding(&report, "hook iter/cgroup (lane)")["found"], "by pread");

    let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"";
    let (code, report) = doctor(&["unshare", "-m", "sh", "-c", hide], "no BTF");
    assert_eq!((code, report["level"].as_str()), (Some(1), Some("no_fentry")));
    assert_eq!(finding(&report, "BTF")["standing"], "degraded");
    assert!(
        finding(&report, "hook mark_victim (oom_kill)")["found"]
            .as_str()
            .is_some_and(|f| f.starts_with("tracepoint;"))
    );

    let (code, report) = doctor(&["unshare", "--pid", "--fork", "--mount-proc", "--cgroup"], "namespaces");
    assert_eq!(code, Some(1));
    assert!(finding(&report, "pid namespace")["mend"].as_str().is_some_and(|m| m.contains("hostPID")));
    assert_eq!(finding(&report, "cgroup namespace")["standing"], "note");
}
