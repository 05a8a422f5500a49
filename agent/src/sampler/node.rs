//! The node as a whole: /proc's memory, reclaim, pressure, load and CPU time, a row a second.
//!
//! A key that the catalogue has no column for goes into the `metrics` table, every ten seconds. A file that is not there
//! leaves NULL; one that cannot be read, was cut, is empty, is no text or has a key twice leaves NULL and a count.

use super::Faults;
use super::loose::Loose;
use crate::accumulator::Value;
use crate::catalogue::node::{FILES, Layout, NodeFile, columns};
use crate::cgroup::parse::{ParseError, hundredths, number, whole};
use rustix::io::Errno;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Places of a line of /proc/stat that are looked at: `intr` has hundreds.
const PLACES: usize = 10;
/// Micros in a tick's second.
const MICROS: u64 = 1_000_000;

pub struct Node {
    proc_root: PathBuf,
    loose: Loose,
    ticks: u64,
    pub faults: Faults,
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split_ascii_whitespace()
}

/// Calls `each` with the key (and its place, for lines of many) and the number of each value.
fn visit(
    file: &NodeFile,
    text: &[u8],
    ticks: u64,
    mut each: impl FnMut(&str, &str, u64),
) -> Result<(), ParseError> {
    whole(text)?;
    // the kernel prints something into each of them
    let text =
        std::str::from_utf8(text).ok().filter(|t| !t.trim_ascii().is_empty()).ok_or(ParseError::Layout)?;
    let int = |word: &str| number(word.as_bytes());
    let scaled = |word: &str, by: u64, per: u64| {
        let value = u128::from(int(word)?) * u128::from(by) / u128::from(per);
        i64::try_from(value).map(i64::cast_unsigned).map_err(|_| ParseError::Number)
    };
    for line in text.lines() {
        let mut words = words(line);
        let Some(first) = words.next() else { continue };
        match file.layout {
            Layout::KibiBytes => {
                let key = first.strip_suffix(':').ok_or(ParseError::Layout)?;
                let word = words.next().ok_or(ParseError::Layout)?;
                let scale = match words.next() {
                    None => 1,
                    Some("kB") => 1024,
                    Some(_) => return Err(ParseError::Layout),
                };
                each(key, "", scaled(word, scale, 1)?);
            }
            Layout::KeyValue => each(first, "", int(words.next().ok_or(ParseError::Layout)?)?),
            Layout::LoadAvg => {
                let mut next = || words.next().ok_or(ParseError::Layout);
                for (place, word) in [("0", first), ("1", next()?), ("2", next()?)] {
                    each(place, "", hundredths(word.as_bytes())?);
                }
                let (runnable, tasks) = next()?.split_once('/').ok_or(ParseError::Layout)?;
                each("3", "", int(runnable)?);
                each("4", "", int(tasks)?);
                // the latest pid
                int(next()?)?;
            }
            Layout::Ticks => {
                let (scale, per) = if first.starts_with("cpu") { (MICROS, ticks) } else { (1, 1) };
                let mut words = words.by_ref().take(PLACES).enumerate().peekable();
                words.peek().ok_or(ParseError::Layout)?;
                for (place, word) in words {
                    let place = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"][place];
                    each(first, place, scaled(word, scale, per)?);
                }
                continue;
            }
            Layout::Pressure => {
                let mut pairs = words.by_ref().peekable();
                pairs.peek().ok_or(ParseError::Layout)?;
                for word in pairs {
                    let (key, value) =
                        word.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or(ParseError::Layout)?;
                    let value = if key == "total" { int(value)? } else { hundredths(value.as_bytes())? };
                    each(first, key, value);
                }
            }
        }
        if words.next().is_some() {
            return Err(ParseError::Layout);
        }
    }
    Ok(())
}

/// The values of a file of the node, in the order of its columns. What has none goes to `rest` (meminfo and vmstat; a key may stand
/// there twice, which who keeps the series knows). `ticks`: how many a second has.
///
/// # Errors
/// Text that the kernel would not print, or with a column's key twice; `rest` may have been called for what stood before it.
pub fn parse(
    file: &NodeFile,
    text: &[u8],
    ticks: u64,
    mut rest: impl FnMut(&str, u64),
) -> Result<Vec<Option<u64>>, ParseError> {
    let mut values = vec![None; file.columns.len()];
    let mut is_twice = false;
    let has_rest = matches!(file.layout, Layout::KibiBytes | Layout::KeyValue);
    visit(file, text, ticks, |key, sub, value| {
        match file.columns.iter().position(|c| is(c.key, key, sub)) {
            Some(i) => is_twice |= values[i].replace(value).is_some(),
            None if has_rest => rest(key, value),
            None => {}
        }
    })?;
    if is_twice { Err(ParseError::Layout) } else { Ok(values) }
}

/// Whether the column's key is `key`, or `key.sub`.
fn is(column: &str, key: &str, sub: &str) -> bool {
    if sub.is_empty() {
        return column == key;
    }
    column.strip_prefix(key).and_then(|c| c.strip_prefix('.')) == Some(sub)
}

/// Whether a file is not of this kernel. PSI that is switched off at boot has its files, which answer EOPNOTSUPP.
fn is_not_there(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::OPNOTSUPP)
}

impl Node {
    pub fn new(proc_root: &Path) -> Self {
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        Self { proc_root: proc_root.to_owned(), loose: Loose::default(), ticks, faults: Faults::default() }
    }

    /// Reads the row; what has no column goes into `rest`, if that is asked for.
    pub fn read(&mut self, mut rest: Option<&mut Vec<Value>>) -> Vec<Option<u64>> {
        let mut row = vec![None; columns().count()];
        let mut first = 0;
        for file in FILES {
            let range = first..first + file.columns.len();
            first = range.end;
            let text = match fs::read(self.proc_root.join(file.path)) {
                Ok(text) => text,
                Err(e) if is_not_there(&e) => continue,
                Err(_) => {
                    self.faults.unread(file.path);
                    continue;
                }
            };
            let mut strange = String::new();
            let values = parse(file, &text, self.ticks, |key, value| {
                if rest.is_some() {
                    use std::fmt::Write as _;
                    let _ = writeln!(strange, "{key} {value}");
                }
            });
            let Ok(values) = values else {
                self.faults.unparsed(file.path);
                continue;
            };
            row[range].copy_from_slice(&values);
            if let Some(rest) = rest.as_deref_mut() {
                let index = self.loose.file(file.path);
                if self.loose.take(index, strange.as_bytes(), |_, _| false, rest).is_err() {
                    self.faults.unparsed(file.path);
                }
            }
        }
        row
    }

    /// Values that found no room since the last look.
    pub fn take_cut(&mut self) -> u64 {
        std::mem::take(&mut self.loose.cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(row: &[Option<u64>], name: &str) -> Option<u64> {
        let (i, ..) = columns().find(|(_, _, c)| c.name == name).expect("a column");
        row[i]
    }

    #[test]
    fn a_node_of_known_files_has_their_values() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("pressure")).expect("mkdir");
        for (file, text) in [
            (
                "meminfo",
                "MemTotal:        2020724 kB\nActive(anon):  20 kB\nHugePages_Total:       3\nNew_Thing:  2 kB\n",
            ),
            ("vmstat", "pgfault 7\nnr_new 5\noom_kill 1\n"),
            ("loadavg", "0.37 0.08 12.03 2/65 499\n"),
            (
                "stat",
                "cpu  1321 0 1349 1679 3 0 3 0 0 0\ncpu0 840 0 746 607 2 0 2 0 0 0\nintr 99 1 2 3\nctxt 5\nbtime 9\nprocs_running 2\n",
            ),
            (
                "pressure/memory",
                "some avg10=6.07 avg60=2.55 avg300=0.63 total=2179637\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
            ),
            ("pressure/io", "some avg10\n"),
        ] {
            fs::write(dir.path().join(file), text).expect("write");
        }
        let mut node = Node::new(dir.path());
        node.ticks = 100;
        let mut rest = Vec::new();
        let row = node.read(Some(&mut rest));
        for (name, is) in [
            ("meminfo_memtotal", Some(2_020_724 * 1024)),
            ("meminfo_active_anon", Some(20 * 1024)),
            ("meminfo_hugepages_total", Some(3)),
            ("vmstat_oom_kill", Some(1)),
            ("loadavg_1min_x100", Some(37)),
            ("loadavg_15min_x100", Some(1203)),
            ("loadavg_tasks", Some(65)),
            ("stat_cpu_user_usec", Some(13_210_000)),
            ("stat_cpu_idle_usec", Some(16_790_000)),
            ("stat_intr", Some(99)),
            ("stat_procs_running", Some(2)),
            ("stat_procs_blocked", None),
            ("memory_pressure_some_avg10_x100", Some(607)),
            ("memory_pressure_some_total_usec", Some(2_179_637)),
            ("io_pressure_some_total_usec", None),
            ("cpu_pressure_some_total_usec", None),
        ] {
            assert_eq!(value(&row, name), is, "{name}");
        }
        let rest: Vec<_> = rest.iter().map(|(m, v)| (m.name.as_str(), *v)).collect();
        assert_eq!(rest, [("meminfo_New_Thing", 2048.0), ("vmstat_nr_new", 5.0)]);
        assert_eq!(node.faults.unparsed.get("pressure/io"), Some(&1));
        assert!(node.faults.unread.is_empty(), "a file that is not there is no fault");
    }

    #[test]
    fn this_node_reads_as_its_files_say() {
        let mut node = Node::new(Path::new("/proc"));
        let row = node.read(None);
        let text = fs::read_to_string("/proc/meminfo").expect("meminfo");
        let total = text.lines().next().and_then(|l| l.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
        assert_eq!(value(&row, "meminfo_memtotal"), total.map(|v| v * 1024));
        assert!(value(&row, "stat_ctxt").is_some() && value(&row, "loadavg_tasks").is_some());
        assert!(node.faults.unparsed.is_empty(), "{:?}", node.faults);
    }

    #[test]
    fn spoilt_text_gives_nothing_and_is_counted() {
        const PSI: &str = "some avg10=6.07 avg60=2.55 avg300=0.63 total=2179637\n";
        let spoilt: [(&str, &[u8]); 17] = [
            ("meminfo", b""),
            ("meminfo", b"MemTotal: 2020724 kB\nMemFree: 12"),
            ("meminfo", b"MemTotal: 1 kB\nMemTotal: 2 kB\n"),
            ("meminfo", b"MemTotal: -1 kB\n"),
            ("meminfo", b"MemTotal: 1 kB 2\n"),
            ("meminfo", b"MemTotal: 9007199254740992 kB\n"),
            ("vmstat", b"oom_kill 1\noom_kill 1\n"),
            ("vmstat", b"oom_kill 18446744073709551616\n"),
            ("vmstat", b"oom_kill 1 2\n"),
            ("loadavg", b"0.37 0.08 12.03 2/65 499"),
            ("loadavg", b"0.37 0.08\n"),
            ("loadavg", b"92233720368547758.08 0.08 12.03 2/65 499\n"),
            ("loadavg", b"0.37 0.08 12.03 2/65 499\n0.37 0.08 12.03 2/65 499\n"),
            ("stat", b"ctxt 5\nctxt 6\n"),
            ("stat", b"ctxt 5\nprocesses\n"),
            ("pressure/memory", b"some avg10=6.07 avg10=6.07\n"),
            ("pressure/memory", b"some avg10=6.07 \xff=1 total=7\n"),
        ];
        for (file, text) in spoilt {
            let dir = tempfile::tempdir().expect("a folder");
            fs::create_dir(dir.path().join("pressure")).expect("mkdir");
            fs::write(dir.path().join("pressure/io"), PSI).expect("write");
            fs::write(dir.path().join(file), text).expect("write");
            let mut node = Node::new(dir.path());
            let row = node.read(None);
            let shown = String::from_utf8_lossy(text);
            assert_eq!(row.iter().flatten().count(), 4, "{file} {shown:?}: {row:?}");
            assert_eq!(value(&row, "io_pressure_some_total_usec"), Some(2_179_637), "the others are read");
            assert_eq!(
                node.faults.unparsed.into_iter().collect::<Vec<_>>(),
                [(file.to_owned(), 1)],
                "{shown:?}"
            );
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_counted_whichever_it_is() {
        let dir = tempfile::tempdir().expect("a folder");
        for file in ["vmstat", "pressure/cpu"] {
            // a directory cannot be read as a file
            fs::create_dir_all(dir.path().join(file)).expect("mkdir");
        }
        let mut node = Node::new(dir.path());
        assert!(node.read(None).iter().all(Option::is_none));
        assert_eq!(node.faults.unread.keys().collect::<Vec<_>>(), ["pressure/cpu", "vmstat"]);
        assert!(is_not_there(&Errno::OPNOTSUPP.into()) && is_not_there(&Errno::NOENT.into()));
        assert!(!is_not_there(&Errno::IO.into()));
    }

    #[test]
    fn a_strange_key_that_stands_twice_is_no_two_rows() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("vmstat"), "oom_kill 1\nnr_new 5\nnr_new 6\n").expect("write");
        let mut node = Node::new(dir.path());
        let mut rest = Vec::new();
        assert_eq!(value(&node.read(Some(&mut rest)), "vmstat_oom_kill"), Some(1));
        assert!(rest.is_empty(), "{rest:?}");
        assert_eq!(node.faults.unparsed.get("vmstat"), Some(&1));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(file in 0..FILES.len(), text in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = parse(&FILES[file], &text, 100, |_, _| {});
        }

        /// Text that looks like the kernel's gets further into the parsers than noise does.
        #[test]
        fn no_likely_text_makes_it_panic(file in 0..FILES.len(), text in "([a-z]{0,4}[:=]? {0,2}[0-9./=-]{0,21}( kB)?[ \n]){0,20}\n?") {
            let good = parse(&FILES[file], text.as_bytes(), 100, |_, _| {});
            proptest::prop_assert!(good.is_err() || text.ends_with('\n'));
        }
    }
}
