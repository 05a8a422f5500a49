//! Holds `deploy/Containerfile` against what `image` writes: whoever builds with Docker gets the same image. Tests only; must never need
//! Docker.

use super::{Args, Of, default_tag, settings};
use crate::paths;
use serde_json::{Map, Value, json};
use std::fs;

/// Each instruction and its words, continued lines joined, by stage.
fn stages(text: &str) -> Vec<Vec<(String, String)>> {
    let lines: String =
        text.lines().filter(|l| !l.trim_start().starts_with('#')).fold(String::new(), |all, line| match line
            .strip_suffix('\\')
        {
            Some(open) => all + open,
            None => all + line + "\n",
        });
    let mut stages: Vec<Vec<(String, String)>> = Vec::new();
    for line in lines.lines().filter(|l| !l.trim().is_empty()) {
        let (word, rest) = line.trim().split_once(' ').expect("an instruction with words");
        if word == "FROM" {
            stages.push(Vec::new());
        }
        stages.last_mut().expect("FROM is the first").push((word.to_owned(), rest.trim().to_owned()));
    }
    stages
}

/// `a=b c="d e"` as pairs.
fn pairs(text: &str) -> Vec<(String, String)> {
    let (mut all, mut rest) = (Vec::new(), text.trim());
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').expect("a closed quote"),
            None => after.split_once(' ').unwrap_or((after, "")),
        };
        all.push((key.to_owned(), value.to_owned()));
        rest = after.trim_start();
    }
    all
}

/// The configuration that a builder makes of a stage.
fn configuration(stage: &[(String, String)]) -> Value {
    let mut config = Map::new();
    let list = |words: &str| words.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for (word, rest) in stage {
        let (key, value) = match word.as_str() {
            "FROM" | "COPY" => continue,
            "ENTRYPOINT" => ("Entrypoint", serde_json::from_str(rest).expect("a list: no shell is there")),
            "CMD" => ("Cmd", serde_json::from_str(rest).expect("a list: no shell is there")),
            "USER" => ("User", json!(rest)),
            "WORKDIR" => ("WorkingDir", json!(rest)),
            "ENV" => ("Env", json!(pairs(rest).iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>())),
            "LABEL" => {
                ("Labels", pairs(rest).into_iter().map(|(k, v)| (k, json!(v))).collect::<Map<_, _>>().into())
            }
            "VOLUME" => {
                ("Volumes", list(rest).into_iter().map(|v| (v, json!({}))).collect::<Map<_, _>>().into())
            }
            "EXPOSE" => {
                let ports = list(rest).into_iter().map(|port| (format!("{port}/tcp"), json!({})));
                ("ExposedPorts", ports.collect::<Map<_, _>>().into())
            }
            other => panic!("{other} is not what image.rs does"),
        };
        assert!(config.insert(key.to_owned(), value).is_none(), "{word} twice");
    }
    config.into()
}

#[test]
fn a_containerfile_makes_the_image_that_xtask_makes() {
    let text = fs::read_to_string(paths::root().join("deploy/Containerfile")).expect("the Containerfile");
    let stages = stages(&text);
    let [build, image] = stages.as_slice() else { panic!("{} stages", stages.len()) };
    assert_eq!(configuration(image), settings(Of::Agent, &default_tag()));
    let copies: Vec<&str> = image.iter().filter(|(w, _)| w == "COPY").map(|(_, r)| r.as_str()).collect();
    assert_eq!((image[0].1.as_str(), copies), ("scratch", vec!["--from=build /image /"]));
    assert!(build[0].1.ends_with(" AS build"), "{:?}", build[0]);
    let runs: Vec<&str> = build.iter().filter(|(w, _)| w == "RUN").map(|(_, r)| r.as_str()).collect();
    let words = runs[0].strip_prefix("cargo xtask image ").expect("the verb");
    let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    let args = Args::parse(&words).expect("words that the verb knows");
    assert_eq!((runs.len(), args.of, args.without_certificates), (1, Of::Agent, false));
    assert_eq!(args.root.as_deref(), Some(std::path::Path::new("/image")));
    // The line that tells how it is built has the same tag.
    assert!(text.contains(&format!("docker build -f deploy/Containerfile -t {} .", default_tag())));
}

#[test]
fn what_is_built_is_not_sent_to_the_builder() {
    let text = fs::read_to_string(paths::root().join(".dockerignore")).expect("the list");
    for ignored in [".git", "target", "agent-ebpf/target", "**/node_modules"] {
        assert!(text.lines().any(|l| l == ignored), "{ignored}");
    }
}
