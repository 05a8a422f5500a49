//! The node as a whole: /proc's memory, reclaim, pressure, load and CPU time, a row a second.
//!
//! A key that the catalogue has no column for goes into the `metrics` table, every ten seconds. A file that is not there
//! leaves NULL; one that cannot be read or parsed leaves NULL and a count.

use super::Faults;
use super::loose::Loose;
use crate::accumulator::Value;
use crate::catalogue::node::{FILES, Layout, NodeFile, columns};
use crate::cgroup::parse::{ParseError, hundredths, number};
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
    text: &str,
    ticks: u64,
    mut each: impl FnMut(&str, &str, u64),
) -> Result<(), ParseError> {
    let int = |word: &str| number(word.as_bytes());
    for line in text.lines() {
        let mut words = words(line);
        let Some(first) = words.next() else { continue };
        match file.layout {
            Layout::KibiBytes => {
                let key = first.strip_suffix(':').ok_or(ParseError::Layout)?;
                let value = int(words.next().ok_or(ParseError::Layout)?)?;
                let scale = if words.next() == Some("kB") { 1024 } else { 1 };
                each(key, "", value.checked_mul(scale).ok_or(ParseError::Number)?);
            }
            Layout::KeyValue => each(first, "", int(words.next().ok_or(ParseError::Layout)?)?),
            Layout::LoadAvg => {
                for (place, word) in std::iter::once(first).chain(words).enumerate() {
                    match (place, word.split_once('/')) {
                        (0..3, _) => each(["0", "1", "2"][place], "", hundredths(word.as_bytes())?),
                        (3, Some((runnable, tasks))) => {
                            each("3", "", int(runnable)?);
                            each("4", "", int(tasks)?);
                        }
                        // the latest pid
                        _ => {}
                    }
                }
            }
            Layout::Ticks => {
                let scale = if first.starts_with("cpu") { MICROS } else { 1 };
                let per = if first.starts_with("cpu") { ticks } else { 1 };
                for (place, word) in words.take(PLACES).enumerate() {
                    let value = int(word)?.checked_mul(scale).ok_or(ParseError::Number)? / per;
                    each(first, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"][place], value);
                }
            }
            Layout::Pressure => {
                for word in words {
                    let (key, value) = word.split_once('=').ok_or(ParseError::Layout)?;
                    let value = if key == "total" { int(value)? } else { hundredths(value.as_bytes())? };
                    each(first, key, value);
                }
            }
        }
    }
    Ok(())
}

/// Whether the column's key is `key`, or `key.sub`.
fn is(column: &str, key: &str, sub: &str) -> bool {
    if sub.is_empty() {
        return column == key;
    }
    column.strip_prefix(key).and_then(|c| c.strip_prefix('.')) == Some(sub)
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
            let text = match fs::read_to_string(self.proc_root.join(file.path)) {
                Ok(text) => text,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(_) => {
                    // PSI that is switched off at boot answers with EOPNOTSUPP
                    if file.layout != Layout::Pressure {
                        self.faults.unread(file.path);
                    }
                    continue;
                }
            };
            let mut values = vec![None; file.columns.len()];
            let mut strange = String::new();
            let parsed = visit(file, &text, self.ticks, |key, sub, value| {
                match file.columns.iter().position(|c| is(c.key, key, sub)) {
                    Some(i) => values[i] = Some(value),
                    None if matches!(file.layout, Layout::KibiBytes | Layout::KeyValue) && rest.is_some() => {
                        use std::fmt::Write as _;
                        let _ = writeln!(strange, "{key} {value}");
                    }
                    None => {}
                }
            });
            if parsed.is_err() {
                self.faults.unparsed(file.path);
                continue;
            }
            row[range].copy_from_slice(&values);
            if let Some(rest) = rest.as_deref_mut() {
                let index = self.loose.file(file.path);
                let _ = self.loose.take(index, strange.as_bytes(), |_, _| false, rest);
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

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(file in 0..FILES.len(), text in "[ -~\n]{0,200}") {
            let _ = visit(&FILES[file], &text, 100, |_, _, _| {});
        }
    }
}
