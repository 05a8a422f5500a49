//! What must hold of the parsers of /proc: what they take stands in the text as a plain reading of it has it (numbers of 128 bits, lines and
//! words), and what a plain reading finds spoilt they do not take, and say so.

use fgm::catalogue::node::{FILES, Layout};
use fgm::processes::parse::{self, Stat};
use fgm::sampler::network::interfaces;
use fgm::sampler::node;
use std::collections::BTreeSet;

const TICKS: u64 = 100;

/// A number as it stands there.
fn int(word: &str) -> Option<u128> {
    let is_plain = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    is_plain.then(|| word.parse().unwrap_or(u128::MAX))
}

/// A number that a column holds.
fn fits(value: u128) -> Option<u64> {
    i64::try_from(value).ok().map(i64::cast_unsigned)
}

fn small(word: &str) -> Option<u64> {
    int(word).and_then(fits)
}

fn cents(word: &str) -> Option<u64> {
    let (whole, part) = word.split_once('.')?;
    // of each side as well
    (part.len() == 2).then_some(u128::from(small(whole)?) * 100 + u128::from(small(part)?)).and_then(fits)
}

/// `None` = a text that was cut, or none.
fn lines(text: &[u8]) -> Option<Vec<&str>> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('\n')?;
    Some(text.split('\n').collect())
}

/// Key and number of all that is in a text, in its order; `None` = not what the kernel prints.
fn plain(layout: Layout, text: &[u8]) -> Option<Vec<(String, u64)>> {
    let mut out = Vec::new();
    for line in lines(text)? {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match (layout, &words[..]) {
            (_, []) => {}
            (Layout::KibiBytes, [key, n]) => out.push((key.strip_suffix(':')?.to_owned(), small(n)?)),
            (Layout::KibiBytes, [key, n, "kB"]) => {
                out.push((key.strip_suffix(':')?.to_owned(), fits(u128::from(small(n)?) * 1024)?));
            }
            (Layout::KeyValue, [key, n]) => out.push(((*key).to_owned(), small(n)?)),
            (Layout::LoadAvg, [one, five, fifteen, tasks, pid]) => {
                let (runnable, all) = tasks.split_once('/')?;
                let numbers = [cents(one), cents(five), cents(fifteen), small(runnable), small(all)];
                for (place, n) in numbers.into_iter().enumerate() {
                    out.push((place.to_string(), n?));
                }
                small(pid)?;
            }
            (Layout::Ticks, [key, numbers @ ..]) if !numbers.is_empty() => {
                let is_time = key.starts_with("cpu");
                for (place, n) in numbers.iter().take(10).enumerate() {
                    let n = u128::from(small(n)?);
                    let n = if is_time { n * 1_000_000 / u128::from(TICKS) } else { n };
                    out.push((format!("{key}.{place}"), fits(n)?));
                }
            }
            (Layout::Pressure, [side, pairs @ ..]) if !pairs.is_empty() => {
                for pair in pairs {
                    let (key, n) = pair.split_once('=').filter(|(key, _)| !key.is_empty())?;
                    out.push((format!("{side}.{key}"), if key == "total" { small(n)? } else { cents(n)? }));
                }
            }
            _ => return None,
        }
    }
    (!out.is_empty()).then_some(out)
}

/// The text as that of each file of the node with this layout.
fn of_node(layout: Layout, text: &[u8]) {
    for file in FILES.iter().filter(|f| f.layout == layout) {
        let mut rest = Vec::new();
        let values = node::parse(file, text, TICKS, |key, value| rest.push((key.to_owned(), value))).ok();
        let is_known = |key: &str| file.columns.iter().any(|c| c.key == key);
        let (known, strange): (Vec<_>, Vec<_>) =
            plain(layout, text).unwrap_or_default().into_iter().partition(|(key, _)| is_known(key));
        let keys: BTreeSet<&str> = known.iter().map(|(key, _)| key.as_str()).collect();
        let is_good = plain(layout, text).is_some() && keys.len() == known.len();
        let wanted = is_good.then(|| {
            let of = |key| known.iter().find(|(k, _)| k == key).map(|(_, v)| *v);
            file.columns.iter().map(|c| of(c.key)).collect::<Vec<_>>()
        });
        assert_eq!(values, wanted, "{}", file.path);
        if is_good && matches!(layout, Layout::KibiBytes | Layout::KeyValue) {
            assert_eq!(rest, strange, "{}", file.path);
        }
    }
}

pub fn meminfo(text: &[u8]) {
    of_node(Layout::KibiBytes, text);
}

pub fn vmstat(text: &[u8]) {
    of_node(Layout::KeyValue, text);
}

pub fn loadavg(text: &[u8]) {
    of_node(Layout::LoadAvg, text);
}

pub fn stat(text: &[u8]) {
    of_node(Layout::Ticks, text);
}

pub fn node_pressure(text: &[u8]) {
    of_node(Layout::Pressure, text);
}

pub fn procs(text: &[u8]) {
    let mut pids = vec![7];
    let is_good = parse::procs(text, &mut pids);
    // what stands behind the last end of a line was cut
    let whole = text.iter().rposition(|b| *b == b'\n').map_or(&b""[..], |at| &text[..at]);
    let words = whole.split(|b| *b == b'\n').map(String::from_utf8_lossy).filter(|w| !w.is_empty());
    let read: Vec<Option<u32>> = words.map(|w| u32::try_from(small(&w)?).ok()).collect();
    let wanted: Vec<u32> =
        [7].into_iter().chain(read.iter().copied().flatten().filter(|p| *p != 0)).collect();
    assert_eq!(pids, wanted);
    let was_cut = text.last().is_some_and(|b| *b != b'\n');
    assert_eq!(is_good, !was_cut && !read.contains(&None));
}

pub fn process_stat(text: &[u8]) {
    let got = parse::stat(text);
    let Some(Stat { cpu_ticks, start_ticks }) = got else {
        let plain = String::from_utf8_lossy(text).into_owned();
        let behind = plain.strip_suffix('\n').filter(|t| !t.contains('\n')).and_then(|t| t.rsplit_once(')'));
        let words: Vec<&str> = behind.map_or(Vec::new(), |(_, rest)| rest.split_ascii_whitespace().collect());
        let numbers = [11, 12, 19].map(|at| words.get(at).copied().and_then(small));
        assert!(numbers.contains(&None), "all of it is there: {plain}");
        return;
    };
    let end = text.iter().rposition(|b| *b == b')').expect("an end of the name") + 1;
    let rest = String::from_utf8_lossy(&text[end..]);
    let words: Vec<&str> = rest.split_ascii_whitespace().collect();
    assert_eq!(int(words[11]).zip(int(words[12])).map(|(a, b)| a + b), Some(u128::from(cpu_ticks)));
    assert_eq!(int(words[19]), Some(u128::from(start_ticks)));
    // whatever it calls itself, and what was cut is no number
    assert_eq!(parse::stat(&[b"1 (\xff) S 1 (", &text[end - 1..]].concat()), got);
    assert_eq!(parse::stat(&text[..text.len() - 1]), None);
    assert_eq!(parse::stat(&text.repeat(2)), None);
    assert!(got.and_then(|s| s.cpu_usec(TICKS)).is_none_or(|v| i64::try_from(v).is_ok()));
}

pub fn process_status(text: &[u8]) {
    let (got, is_good) = parse::status(text);
    let whole = text.iter().rposition(|b| *b == b'\n').map_or(&b""[..], |at| &text[..=at]);
    let whole = String::from_utf8_lossy(whole);
    let of = |key: &str| -> Vec<&str> {
        whole.lines().filter_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(str::trim).collect()
    };
    let kib = |field: &str| fits(u128::from(small(field.strip_suffix("kB")?.trim_end())?) * 1024);
    let mut is_plain = text.ends_with(b"\n");
    // none of a key that is not there, stands twice or has no number, and of the last two it is said
    let mut wanted = |key: &str, read: &dyn Fn(&str) -> Option<u64>| {
        let found = of(key);
        let value = if let [one] = found[..] { read(one) } else { None };
        is_plain &= found.is_empty() || value.is_some();
        value
    };
    let sizes = ["RssAnon", "RssFile", "RssShmem", "VmSwap"].map(|key| wanted(key, &kib));
    assert_eq!([got.anon, got.file, got.shmem, got.swap], sizes);
    assert_eq!(got.threads, wanted("Threads", &small));
    let parts = [sizes[0], sizes[1], sizes[2]];
    let sum: Option<u128> = parts.iter().map(|n| n.map(u128::from)).sum();
    assert_eq!(got.rss(), sum.and_then(fits));
    is_plain &= sum.is_none() || got.rss().is_some();
    is_plain &= of("State").len() < 2 && of("NSpid").len() < 2;
    let name = if let [one] = of("Name")[..] { Some(one.to_owned()) } else { None };
    assert_eq!(got.comm, name);
    assert_eq!(is_good, is_plain && name.is_some());
}

pub fn score(text: &[u8]) {
    let got = parse::score(text);
    let line = std::str::from_utf8(text).ok().and_then(|t| t.strip_suffix('\n'));
    let digits = line.map(|l| l.strip_prefix('-').unwrap_or(l));
    assert_eq!(got.map(i64::unsigned_abs), digits.and_then(small));
    assert!(got.is_none_or(|n| n >= 0 || text.starts_with(b"-")));
    assert!(got.is_none_or(|n| n <= 0 || !text.starts_with(b"-")));
}

pub fn smaps_rollup(text: &[u8]) {
    let fields = lines(text).into_iter().flatten().filter_map(|l| l.strip_prefix("Pss:")).collect::<Vec<_>>();
    let wanted = if let [one] = fields[..] {
        let kib = one.trim().strip_suffix("kB").and_then(|n| small(n.trim_end()));
        kib.and_then(|n| fits(u128::from(n) * 1024))
    } else {
        None
    };
    assert_eq!(parse::pss(text), wanted);
}

pub fn process_cgroup(text: &[u8]) {
    let paths = lines(text).into_iter().flatten().filter_map(|l| l.strip_prefix("0::")).collect::<Vec<_>>();
    let wanted = if let [one] = paths[..] { Some(one) } else { None };
    let leads_out = |path: &str| {
        path == "/.." || path.starts_with("/../") || path.ends_with("/..") || path.contains("/../")
    };
    assert_eq!(parse::cgroup(text), wanted.filter(|p| p.starts_with('/') && !leads_out(p)));
}

pub fn net_dev(text: &[u8]) {
    let found = interfaces(text);
    let was_cut = !text.ends_with(b"\n");
    let whole = text.iter().rposition(|b| *b == b'\n').map_or(&b""[..], |at| &text[..at]);
    let lines: Vec<_> = whole.split(|b| *b == b'\n').skip(2).collect();
    for (name, values) in &found.good {
        let is_of = |line: &&[u8]| {
            let line = std::str::from_utf8(line).ok()?.trim_ascii_start();
            let numbers = line.strip_prefix(name)?.trim_ascii_start().strip_prefix(':')?;
            Some(numbers.split_ascii_whitespace().map(small).eq(values.iter().copied().map(Some)))
        };
        assert!(name.split_ascii_whitespace().eq([*name]), "{name:?} is no name");
        assert!(lines.iter().any(|line| is_of(line) == Some(true)), "{name}: {values:?} is in no line");
    }
    let names: BTreeSet<&str> = found.good.iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), found.good.len(), "a name twice");
    // each line is an interface, or counted; one of a name that stands twice is not both
    let counted = usize::try_from(found.spoilt + found.cut).expect("few");
    let taken = found.good.len();
    assert!(taken == lines.len() || counted > 0, "{taken} of {} lines, and nothing is said", lines.len());
    assert!(counted > 0 || (taken > 0 && !was_cut), "a text that was cut");
    assert!(taken + counted <= lines.len() + 1, "more is counted than there is");
}
