//! The parsers over what four kernels really print (tests/fixtures: cgroup, a container of the test VM; proc, the VM), whole and spoilt: a
//! file that was cut, grown, emptied or filled with junk gives its values or none, and never a panic.

use fgm::catalogue::{self, COLUMNS, FILES, Format, loose};
use fgm::cgroup::loose::visit;
use fgm::cgroup::parse::{Hints, devices, parse};
use fgm::processes::{self, parse as process};
use fgm::sampler::{Network, Node};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const KERNELS: [&str; 4] = ["6.1", "6.12", "6.18", "7.3"];

/// The files of a fixture: `=== name`, then its text.
fn fixture(path: &str) -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path);
    let text = fs::read_to_string(path).expect("a fixture");
    let parts = text.split("=== ").skip(1).map(|p| p.split_once('\n').expect("a name"));
    parts.map(|(n, t)| (n.to_owned(), t.to_owned())).collect()
}

/// All files of a container on one kernel.
fn files(kernel: &str) -> BTreeMap<String, String> {
    let files = fixture(&format!("cgroup/{kernel}.txt"));
    assert!(files.len() > 55, "{} files", files.len());
    files
}

fn every() -> Vec<(String, String)> {
    KERNELS.into_iter().flat_map(files).filter(|(_, text)| !text.is_empty()).collect()
}

/// What is made of a file's text, whichever of the two parsers it is for: (name, value), or nothing.
fn read(name: &str, text: &[u8]) -> Option<Vec<(String, f64)>> {
    let mut out = Vec::new();
    if let Some(index) = catalogue::file(name) {
        let names: Vec<_> = catalogue::columns().map(|(_, _, c)| c.name).collect();
        let mut pairs = Vec::new();
        let parsed = parse(index, &mut Hints::default(), text, &mut pairs);
        assert!(parsed.is_ok() || pairs.is_empty(), "{name}: an error and values");
        parsed.ok()?;
        #[expect(clippy::cast_precision_loss, reason = "to compare with what was read of the same text")]
        out.extend(pairs.into_iter().map(|(c, v)| (names[c].to_owned(), v as f64)));
        return Some(out);
    }
    visit(text, |key, sub, value| {
        let words = [key, sub].map(|b| String::from_utf8_lossy(b).into_owned());
        out.push((words.join(" "), value.unwrap_or(f64::NAN)));
    })
    .ok()?;
    Some(out)
}

#[test]
fn every_file_of_every_kernel_is_read_whole() {
    let mut columns = BTreeSet::new();
    for kernel in KERNELS {
        for (name, text) in files(kernel) {
            if loose::LEFT_OUT.iter().any(|(n, _)| *n == name) {
                continue;
            }
            let got = read(&name, text.as_bytes()).unwrap_or_else(|| panic!("{kernel} {name}: {text}"));
            let words = text.split_ascii_whitespace().count();
            assert!(
                !got.is_empty() || words == 0 || text == "max\n",
                "{kernel} {name} gives nothing: {text}"
            );
            columns.extend(got.into_iter().map(|(n, _)| n));
        }
    }
    assert!(columns.len() > 140, "{} names", columns.len());
}

/// A node's /proc with its init, a kernel thread, and pid 1 of a pid namespace.
#[test]
fn what_every_kernel_prints_of_the_node_and_its_processes_is_read_whole() {
    for kernel in KERNELS {
        let dir = tempfile::tempdir().expect("a folder");
        let files = fixture(&format!("proc/{kernel}.txt"));
        for (name, text) in &files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
            fs::write(path, text).expect("write");
        }
        let mut node = Node::new(dir.path());
        let mut rest = Vec::new();
        let row = node.read(Some(&mut rest));
        let (taken, columns) = (row.iter().flatten().count(), row.len());
        // pressure/irq and the keys of NUMA are not of every kernel
        assert!(taken + 12 >= columns, "{kernel}: {taken} of {columns} columns");
        assert!(rest.len() > 50, "{kernel}: {} keys without a column", rest.len());
        assert!(
            node.faults.unparsed.is_empty() && node.faults.unread.is_empty(),
            "{kernel}: {:?}",
            node.faults
        );

        let found = processes::list(dir.path(), dir.path(), None);
        assert!(found.unparsed.is_empty(), "{kernel}: {:?}", found.unparsed);
        assert_eq!(found.processes.len(), 3, "{kernel}");
        for p in &found.processes {
            let is_kernels = p.comm == "kthreadd";
            assert_eq!(p.rss_bytes.is_none(), is_kernels, "{kernel}: {p:?}");
            assert!(p.threads == Some(1) && p.state == Some('S') && p.cpu_usec.is_some(), "{kernel}: {p:?}");
            assert!(p.oom_score.is_some() && p.oom_score_adj == Some(0), "{kernel}: {p:?}");
            let pss = processes::pss_bytes(dir.path(), p.pid).ok();
            assert!(pss.is_some() != is_kernels && pss <= p.rss_bytes, "{kernel}: {pss:?} {p:?}");
            let cgroup = process::cgroup(files[&format!("{}/cgroup", p.pid)].as_bytes());
            assert!(cgroup.is_some(), "{kernel}: {p:?}");
            assert_eq!(p.is_init, p.pid > 2, "{kernel}: {p:?}");
        }

        let (mut network, mut out) = (Network::new(dir.path()), Vec::new());
        network.read(1, None, 1000, 100, &mut out);
        assert!(out.len() >= 8 && network.faults.unparsed.is_empty(), "{kernel}: {} values", out.len());
    }
}

/// 6.12 after 6.1.
fn version(text: &str) -> (u32, u32) {
    let (major, minor) = text.split_once('.').expect("a version");
    (major.parse().expect("a number"), minor.parse().expect("a number"))
}

#[test]
fn no_kernel_has_a_key_before_the_catalogue_says_so() {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for kernel in KERNELS {
        let files = files(kernel);
        for file in FILES {
            let Some(text) = files.get(file.name) else { continue };
            for c in file.columns {
                let is_there = match file.format {
                    Format::Single | Format::Pair => true,
                    Format::KeyValue => text.lines().any(|l| l.split(' ').next() == Some(c.key)),
                    Format::Pressure => text.contains(c.key.split('.').next().expect("a side")),
                    Format::PerDevice => text.contains(c.key),
                };
                if is_there {
                    seen.entry(c.name).or_insert(kernel);
                    assert!(
                        version(c.since) <= version(kernel),
                        "{} is in {kernel}, not only since {}",
                        c.name,
                        c.since
                    );
                }
            }
        }
    }
    // one that came between two of these kernels came after the older of them
    for (_, _, c) in catalogue::columns() {
        if let Some(at) =
            seen.get(c.name).and_then(|k| KERNELS.iter().position(|o| o == k)).filter(|at| *at > 0)
        {
            // zswap is built into the newest of them only
            let needs_config = c.name.contains("zsw");
            assert!(
                needs_config || version(c.since) > version(KERNELS[at - 1]),
                "{} since {}",
                c.name,
                c.since
            );
        }
    }
}

/// A spoilt copy of a text.
fn spoil(text: &[u8], how: usize, at: usize, byte: u8) -> Vec<u8> {
    let mut out = text.to_vec();
    let at = at % out.len().max(1);
    let line =
        |n: usize| text.split_inclusive(|b| *b == b'\n').nth(n % text.split(|b| *b == b'\n').count().max(1));
    match how {
        0 => out.truncate(at),
        1 => out[at] = byte,
        2 => out.insert(at, byte),
        3 => _ = out.remove(at),
        4 => out.extend(line(at).unwrap_or_default()),
        5 => {
            let digits = text.iter().position(u8::is_ascii_digit).unwrap_or(0);
            out.splice(digits..digits, *b"99999999999999999999");
        }
        6 => {
            let digits = text.iter().position(u8::is_ascii_digit).unwrap_or(0);
            out.insert(digits, b'-');
        }
        7 => out.splice(at..at, [0xff, 0xfe]).for_each(drop),
        8 => out.extend(std::iter::repeat_n(b"new_key 7\n", 5000).flatten()),
        _ => out.clear(),
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn a_spoilt_file_gives_its_values_or_none(n in 0usize..1000, how in 0usize..10, at in 0usize..3000, byte in any::<u8>()) {
        let all = every();
        let (name, text) = &all[n % all.len()];
        let spoilt = spoil(text.as_bytes(), how, at, byte);
        let got = read(name, &spoilt);
        // the same through hints that a whole file has left
        if let Some(index) = catalogue::file(name) {
            let (mut hints, mut pairs, mut again) = (Hints::default(), Vec::new(), Vec::new());
            let _ = parse(index, &mut hints, text.as_bytes(), &mut pairs);
            let second = parse(index, &mut hints, &spoilt, &mut again);
            prop_assert_eq!(second.is_ok(), got.is_some());
            prop_assert!(again.iter().all(|(c, _)| *c < COLUMNS));
        }
        let mut sum = 0u64;
        let _ = devices(&spoilt, |_, values| sum = sum.wrapping_add(values.iter().flatten().sum()));
        let Some(got) = got else { return Ok(()) };
        let mut names = BTreeSet::new();
        if catalogue::file(name).is_some() {
            prop_assert!(got.iter().all(|(n, _)| names.insert(n.clone())), "a key twice in {:?}", got);
            prop_assert!(got.iter().all(|(_, v)| *v >= 0.0 && *v < 9.3e18), "{:?}", got);
        }
        prop_assert!(spoilt.is_empty() || spoilt.ends_with(b"\n"), "a text that was cut");
    }

    #[test]
    fn no_bytes_make_the_loose_parser_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = visit(&text, |_, _, _| {});
        let _ = devices(&text, |_, _| {});
    }
}

#[test]
fn each_kind_of_damage_has_no_value() {
    let none = |name: &str, text: &[u8]| {
        assert_eq!(read(name, text), None, "{name} {:?}", String::from_utf8_lossy(text));
    };
    none("memory.current", b"");
    none("memory.current", b"4096");
    none("memory.current", b"-1\n");
    none("memory.current", b"1\n2\n");
    none("memory.current", b"9223372036854775808\n");
    none("memory.current", b"\xff\xfe\n");
    none("memory.stat", b"");
    none("memory.stat", b"anon 1\nanon 1\n");
    none("memory.stat", b"anon 1\nfile -2\n");
    none("memory.stat", b"anon 1\nfile 2");
    none("memory.stat", b"anon  1\n");
    none("cpu.pressure", b"");
    none("cpu.pressure", b"some avg10=0.0 avg60=0.00 avg300=0.00 total=0\n");
    none("cpu.pressure", b"some avg10=0.00 avg10=0.00\n");
    none("io.stat", b"8:0 rbytes=1\n8:0 rbytes=2\n");
    none("io.stat", b"8:0 rbytes=1 rbytes=1\n");
    none("io.stat", b"8:0 rbytes=9223372036854775807\n8:16 rbytes=9223372036854775807\n");
    none("io.stat", b"rbytes=1\n");
    none("cpu.max", b"max\n");
    none("memory.numa_stat", b"anon N0=x\n");
    none("memory.numa_stat", b"anon N0=1");
    none("hugetlb.2MB.current", b"1 2 3\n");
    assert_eq!(read("io.stat", b""), Some(vec![]), "no device yet");
    assert_eq!(read("misc.current", b""), Some(vec![]), "no resource");
}
