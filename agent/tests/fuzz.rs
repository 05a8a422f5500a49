//! The fuzz targets without a fuzzer: each over what four kernels really print, whole and spoilt in many ways, the same on
//! each run. `FGM_FUZZ_CORPUS=DIR` writes the seeds for cargo-fuzz.

#[path = "../fuzz/src/checks.rs"]
mod checks;

use fgm::catalogue::{self, Format};
use std::fs;
use std::path::{Path, PathBuf};

/// Spoilt copies of each seed, and of all seeds of a target.
const COPIES: usize = 60;
const COPIES_OF_ALL: usize = 4000;
/// Bytes that decide something in these files.
const BYTES: &[u8] = b"\n =.0-9mx:\xff\0";
/// Numbers beyond 64 bits, at and beyond 63 bits, and beyond them once they are taken for KiB or for hundredths.
const NUMBERS: [&[u8]; 6] = [
    b"18446744073709551616",
    b"9223372036854775808",
    b"9223372036854775807",
    b"9999999999999999",
    b"99999999999999999",
    b"-1",
];
/// Words that decide something.
const WORDS: [&[u8]; 4] = [b"18446744073709551616", b"/..", b" 7 kB", b" =1.00"];

fn agent() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The target of a file of a cgroup.
fn of_cgroup(name: &str) -> &'static str {
    match catalogue::file(name).map(|i| catalogue::FILES[i].format) {
        Some(Format::Single) => "single",
        Some(Format::KeyValue) => "key_value",
        Some(Format::Pressure) => "pressure",
        Some(Format::PerDevice) => "per_device",
        Some(Format::Pair) => "pair",
        None => "loose",
    }
}

/// The target of a file of /proc, or of the cgroup.procs beside it. Those of a process stand below its pid.
fn of_proc(name: &str) -> &'static str {
    match name.trim_start_matches(|c: char| c.is_ascii_digit()) {
        "meminfo" => "meminfo",
        "vmstat" => "vmstat",
        "loadavg" => "loadavg",
        "stat" => "stat",
        procs if procs.ends_with("cgroup.procs") => "procs",
        "/stat" => "process_stat",
        "/status" => "process_status",
        "/oom_score" | "/oom_score_adj" => "score",
        "/smaps_rollup" => "smaps_rollup",
        "/cgroup" => "process_cgroup",
        "/net/dev" => "net_dev",
        pressure if pressure.starts_with("pressure/") => "node_pressure",
        _ => panic!("no parser reads {name}"),
    }
}

/// (kernel, file, text), of the target's own files first.
fn seeds(target: &str) -> Vec<(String, String, Vec<u8>)> {
    let mut out = Vec::new();
    for folder in ["cgroup", "proc"] {
        for entry in fs::read_dir(agent().join("tests/fixtures").join(folder)).expect("fixtures").flatten() {
            let text = fs::read_to_string(entry.path()).expect("a fixture");
            let kernel = entry.path().file_stem().expect("a name").to_string_lossy().into_owned();
            for (name, text) in text.split("=== ").skip(1).filter_map(|p| p.split_once('\n')) {
                let of = if folder == "proc" { of_proc(name) } else { of_cgroup(name) };
                out.push((of, kernel.clone(), name.to_owned(), text.as_bytes().to_vec()));
            }
        }
    }
    out.sort_by_key(|(of, kernel, name, _)| (*of != target, kernel.clone(), name.clone()));
    assert!(out[0].0 == target, "no seed for {target}");
    out.retain(|(of, ..)| target == "loose" || *of == target);
    out.into_iter().map(|(_, kernel, name, text)| (kernel, name, text)).collect()
}

/// A small generator of our own, so that a failure comes again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % n.max(1) as u64).expect("small")
    }

    fn spoil(&mut self, text: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(text.len());
        let byte = BYTES[self.below(BYTES.len())];
        match self.below(10) {
            0 => text.truncate(at),
            1 if !text.is_empty() => text[at] = byte,
            2 => text.insert(at, byte),
            3 if !text.is_empty() => _ = text.remove(at),
            4 => text.splice(at..at, WORDS[self.below(WORDS.len())].iter().copied()).for_each(drop),
            5 => text.extend_from_slice(other),
            6 => text.splice(at..at, other[..self.below(other.len())].iter().copied()).for_each(drop),
            7 => {
                let from = at + text[at..].iter().position(u8::is_ascii_digit).unwrap_or(0);
                let digits = text[from..].iter().take_while(|b| b.is_ascii_digit()).count();
                let number = NUMBERS[self.below(NUMBERS.len())];
                text.splice(from..from + digits, number.iter().copied()).for_each(drop);
            }
            // two lines become one
            8 => text[at..].iter_mut().filter(|b| **b == b'\n').take(1).for_each(|b| *b = b' '),
            _ => {
                let mut lines = text.split_inclusive(|b| *b == b'\n');
                let line: Vec<u8> = lines.nth(self.below(8)).unwrap_or_default().to_vec();
                text.extend_from_slice(&line);
            }
        }
    }
}

#[test]
fn every_target_stands_whatever_is_made_of_its_seeds() {
    for (name, target) in checks::TARGETS {
        let seeds = seeds(name);
        let copies = COPIES.max(COPIES_OF_ALL / seeds.len());
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        for (_, _, seed) in &seeds {
            target(seed);
            for _ in 0..copies {
                let mut text = seed.clone();
                for _ in 0..=dice.below(4) {
                    let other = &seeds[dice.below(seeds.len())].2;
                    dice.spoil(&mut text, other);
                }
                target(&text);
            }
        }
        println!("{name}: {} seeds, {} copies", seeds.len(), seeds.len() * copies);
    }
}

#[test]
fn every_target_can_be_run_by_cargo_fuzz() {
    let manifest = fs::read_to_string(agent().join("fuzz/Cargo.toml")).expect("a manifest");
    let mut files: Vec<String> = fs::read_dir(agent().join("fuzz/fuzz_targets"))
        .expect("targets")
        .flatten()
        .map(|e| e.path().file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    files.sort();
    let mut names = checks::TARGETS.map(|(name, _)| name);
    names.sort_unstable();
    assert_eq!(files, names);
    for name in names {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is no binary of fuzz/Cargo.toml");
        let text =
            fs::read_to_string(agent().join(format!("fuzz/fuzz_targets/{name}.rs"))).expect("a target");
        assert!(text.contains(&format!("fgm_fuzz::{name}(")), "{name} runs another's function");
    }
}

#[test]
fn seeds_are_written_when_asked_for() {
    let Ok(to) = std::env::var("FGM_FUZZ_CORPUS") else { return };
    for (target, _) in checks::TARGETS {
        let dir = Path::new(&to).join(target);
        fs::create_dir_all(&dir).expect("a folder");
        for (kernel, name, text) in seeds(target) {
            fs::write(dir.join(format!("{kernel}-{}", name.replace('/', "_"))), text).expect("a seed");
        }
    }
}
