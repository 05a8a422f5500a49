//! What must hold of each parser, whatever the bytes: it gives values or none, never half of them, and never panics.
//!
//! One function a target. `cargo +nightly fuzz run TARGET` feeds them (in `agent/`; `FGM_FUZZ_CORPUS=fuzz/corpus cargo test
//! --test fuzz` there writes seeds of four real kernels first), and agent/tests/fuzz.rs on any toolchain. Those of /proc are in
//! `proc_text`.

mod proc_text;

pub use proc_text::*;

use fgm::catalogue::{FILES, FileIndex, Format, first_column};
use fgm::cgroup::loose::visit;
use fgm::cgroup::parse::{Hints, devices, parse};

/// A target: its name and its function.
pub type Target = (&'static str, fn(&[u8]));

/// By name, as the files in `fuzz_targets`.
pub const TARGETS: [Target; 18] = [
    ("single", single),
    ("key_value", key_value),
    ("pressure", pressure),
    ("per_device", per_device),
    ("pair", pair),
    ("loose", loose),
    ("meminfo", meminfo),
    ("vmstat", vmstat),
    ("loadavg", loadavg),
    ("stat", stat),
    ("node_pressure", node_pressure),
    ("procs", procs),
    ("process_stat", process_stat),
    ("process_status", process_status),
    ("score", score),
    ("smaps_rollup", smaps_rollup),
    ("process_cgroup", process_cgroup),
    ("net_dev", net_dev),
];

pub fn single(text: &[u8]) {
    each(Format::Single, text);
}

pub fn key_value(text: &[u8]) {
    each(Format::KeyValue, text);
}

pub fn pressure(text: &[u8]) {
    each(Format::Pressure, text);
}

pub fn pair(text: &[u8]) {
    each(Format::Pair, text);
}

pub fn per_device(text: &[u8]) {
    each(Format::PerDevice, text);
    let mut sum = 0u64;
    let good = devices(text, |name, values| {
        assert!(!name.is_empty() && !name.contains(&b'='), "no device has such a name");
        sum = values.iter().flatten().fold(sum, |sum, v| sum.saturating_add(*v));
    });
    assert!(good.is_err() || text.is_empty() || text.ends_with(b"\n"), "a text that was cut");
}

pub fn loose(text: &[u8]) {
    let good = visit(text, |_, _, value| assert!(value.is_none_or(f64::is_finite), "{value:?}"));
    assert!(good.is_err() || text.is_empty() || text.ends_with(b"\n"), "a text that was cut");
}

/// The text as that of each file of this layout.
fn each(format: Format, text: &[u8]) {
    for (index, file) in FILES.iter().enumerate().filter(|(_, f)| f.format == format) {
        let mut hints = Hints::default();
        let first = read(index, &mut hints, text);
        // hints are to save work, not to change what is read
        assert_eq!(first, read(index, &mut hints, text), "{}", file.name);
    }
}

fn read(index: FileIndex, hints: &mut Hints, text: &[u8]) -> Option<Vec<(usize, u64)>> {
    const BEFORE: (usize, u64) = (usize::MAX, 7);
    let mut out = vec![BEFORE];
    let good = parse(index, hints, text, &mut out);
    assert_eq!(out.remove(0), BEFORE, "what stood there before stays");
    assert!(good.is_ok() || out.is_empty(), "an error and values");
    good.ok()?;
    assert!(text.is_empty() || text.ends_with(b"\n"), "a text that was cut");
    let own = first_column(index)..first_column(index + 1);
    for (n, (column, value)) in out.iter().enumerate() {
        assert!(own.contains(column) && i64::try_from(*value).is_ok(), "{column} {value}");
        assert!(out[..n].iter().all(|(other, _)| other != column), "column {column} twice");
    }
    Some(out)
}
