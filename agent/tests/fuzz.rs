//! The fuzz targets without a fuzzer: each over what four kernels really print, whole and spoilt in many ways, the same on
//! each run. `FGM_FUZZ_CORPUS=DIR` writes the seeds for cargo-fuzz.

#[path = "../fuzz/src/checks.rs"]
mod checks;

use fgm::catalogue::{self, Format};
use std::fs;
use std::path::{Path, PathBuf};

/// Spoilt copies of each seed.
const COPIES: usize = 60;
/// Bytes that decide something in these files.
const BYTES: &[u8] = b"\n =.0-9mx:\xff\0";

fn agent() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// (kernel, file, text), of the target's own files first.
fn seeds(target: &str) -> Vec<(String, String, Vec<u8>)> {
    let mut out = Vec::new();
    for entry in fs::read_dir(agent().join("tests/fixtures/cgroup")).expect("fixtures").flatten() {
        let text = fs::read_to_string(entry.path()).expect("a fixture");
        let kernel = entry.path().file_stem().expect("a name").to_string_lossy().into_owned();
        for (name, text) in text.split("=== ").skip(1).filter_map(|p| p.split_once('\n')) {
            out.push((kernel.clone(), name.to_owned(), text.as_bytes().to_vec()));
        }
    }
    let format = |name: &str| match catalogue::file(name).map(|i| catalogue::FILES[i].format) {
        Some(Format::Single) => "single",
        Some(Format::KeyValue) => "key_value",
        Some(Format::Pressure) => "pressure",
        Some(Format::PerDevice) => "per_device",
        Some(Format::Pair) => "pair",
        None => "loose",
    };
    out.sort_by_key(|(kernel, name, _)| (format(name) != target, kernel.clone(), name.clone()));
    assert!(format(&out[0].1) == target, "no seed for {target}");
    out.retain(|(_, name, _)| target == "loose" || format(name) == target);
    out
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
        match self.below(8) {
            0 => text.truncate(at),
            1 if !text.is_empty() => text[at] = byte,
            2 => text.insert(at, byte),
            3 if !text.is_empty() => _ = text.remove(at),
            4 => text.splice(at..at, b"18446744073709551616".iter().copied()).for_each(drop),
            5 => text.extend_from_slice(other),
            6 => text.splice(at..at, other[..self.below(other.len())].iter().copied()).for_each(drop),
            _ => {
                let line: Vec<u8> = text.split_inclusive(|b| *b == b'\n').next().unwrap_or_default().to_vec();
                text.extend_from_slice(&line);
            }
        }
    }
}

#[test]
fn every_target_stands_whatever_is_made_of_its_seeds() {
    for (name, target) in checks::TARGETS {
        let seeds = seeds(name);
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        for (_, _, seed) in &seeds {
            target(seed);
            for _ in 0..COPIES {
                let mut text = seed.clone();
                for _ in 0..=dice.below(4) {
                    let other = &seeds[dice.below(seeds.len())].2;
                    dice.spoil(&mut text, other);
                }
                target(&text);
            }
        }
        println!("{name}: {} seeds, {} copies", seeds.len(), seeds.len() * COPIES);
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
            fs::write(dir.join(format!("{kernel}-{name}")), text).expect("a seed");
        }
    }
}
