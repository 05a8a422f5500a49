//! What a configuration file and the environment may say, and what is told of a wrong one.

use super::*;

fn load(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, text).expect("write");
    Config::load(Some(&path), |_| None)
}

#[test]
fn an_unknown_key_names_file_line_and_the_accepted_keys() {
    let e = load("node = \"a\"\n\n[rotation]\nevery = 5\n").expect_err("must be refused").to_string();
    assert!(e.contains("agent.toml") && e.contains("line 4") && e.contains("`every`"), "{e}");
    assert!(e.contains("every_s"), "{e}");
}

#[test]
fn a_wrong_type_names_its_line() {
    let e = load("[lane]\nperiod_ms = \"fast\"\n").expect_err("must be refused").to_string();
    assert!(e.contains("line 2") && e.contains("lane.period_ms: period of the lane"), "{e}");
    let e = load("lane = 3\n").expect_err("must be refused").to_string();
    assert!(e.contains("line 1") && e.contains("a table: [lane]"), "{e}");
    let e = load("listen = \"localhost:80\"\n").expect_err("must be refused").to_string();
    assert!(e.contains("line 1") && e.contains("127.0.0.1:8050"), "{e}");
}

#[test]
fn a_value_out_of_range_names_its_place_and_the_rule() {
    let e = load("\n[lane]\nperiod_ms = 3\n").expect_err("must be refused").to_string();
    assert!(e.contains("agent.toml, line 3: lane.period_ms = 3") && e.contains("10 to 1000"), "{e}");
    let e = load("data_dir = \"\"\n").expect_err("must be refused").to_string();
    assert!(e.contains("line 1: data_dir") && e.contains("leave the key out"), "{e}");
    let e = Config::load(None, |k| (k == "FGM_ROTATION_EVERY_S").then(|| "0".to_owned()))
        .expect_err("must be refused")
        .to_string();
    assert!(e.contains("environment variable FGM_ROTATION_EVERY_S") && e.contains("1 to 3600"), "{e}");
}

#[test]
fn the_environment_wins_over_the_file() {
    let env = |k: &str| match k {
        "FGM_NODE" => Some("n1".to_owned()),
        "FGM_ROTATION_EVERY_S" => Some("7".to_owned()),
        _ => None,
    };
    let c = Config::load(None, env).expect("good");
    assert_eq!((c.node.as_str(), c.rotation.every_s), ("n1", 7));
}

#[test]
fn a_wrong_variable_is_named_with_what_would_do() {
    for (variable, value, word) in [
        ("FGM_ROTATION_EVERY_S", "soon", "not a whole number; rotation.every_s: seconds after"),
        ("FGM_ROTATION_EVERY_S", "-1", "not negative; rotation.every_s"),
        ("FGM_ROTATION_EVERY_S", "", "not a whole number"),
        ("FGM_PROBES_ENABLED", "yes", "neither true nor false"),
        ("FGM_SAMPLING_INCLUDE", "a", "not a list"),
        ("FGM_LISTEN", "nope", "127.0.0.1:8050"),
    ] {
        let e = Config::load(None, |k| (k == variable).then(|| value.to_owned()));
        let e = e.expect_err("must be refused").to_string();
        assert!(e.contains(&format!("{variable}={value:?}")) && e.contains(word), "{e}");
    }
}

#[test]
fn a_misspelt_variable_is_refused_and_another_programs_is_not() {
    let check = |name: &str| Config::check_variables(std::iter::once(name.to_owned()));
    let e = check("FGM_ROTATION_EVRY_S").expect_err("must be refused").to_string();
    assert!(e.contains("FGM_ROTATION_EVRY_S") && e.contains("FGM_ROTATION_EVERY_S"), "{e}");
    for fine in ["FGM_LANE_PERIOD_MS", "FGM_LOG", "PATH", "FGM_EXPORT_SERVICE_HOST", "FGM_PORT_8051_TCP"] {
        assert!(check(fine).is_ok(), "{fine}");
    }
}

#[test]
fn a_kind_keeps_its_own_defaults_beside_what_the_file_sets() {
    let c = load("[trigger.oom_kill]\nburst_length_s = 3\n").expect("good");
    assert_eq!((c.trigger.oom_kill.burst_length_s, c.trigger.oom_kill.cool_down_s), (3, 0));
    assert_eq!(c.trigger.limit_near, TriggerKind::default());
    let e = load("[trigger.oom]\nenabled = true\n").expect_err("must be refused").to_string();
    assert!(e.contains("`oom`") && e.contains("`oom_kill`"), "{e}");
}

#[test]
fn every_key_is_in_the_help_and_every_default_has_a_key() {
    fn keys(prefix: &str, t: &toml::Table, out: &mut Vec<String>) {
        for (k, v) in t {
            let key = if prefix.is_empty() { k.clone() } else { format!("{prefix}.{k}") };
            match v {
                toml::Value::Table(t) => keys(&key, t, out),
                _ => out.push(key),
            }
        }
    }
    let mut all = Vec::new();
    keys("", &toml::Table::try_from(Config::default()).expect("serialises"), &mut all);
    let mut listed: Vec<String> = super::keys().into_iter().map(|(k, _)| k).collect();
    all.sort();
    listed.sort();
    assert_eq!(all, listed);
}
