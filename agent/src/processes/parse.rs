//! The text of the files of one process, as values. No I/O.
//!
//! Bytes, since a process may call itself what is no UTF-8. What was cut, has a key twice or a number that no column holds gives
//! nothing of it; whether that was so is told, so that it can be counted. Called by `processes`.

use crate::cgroup::parse::{number, whole};

/// Appends the pids of cgroup.procs, without 0 (a process that our pid namespace does not show); whether all of the text was pids.
pub fn procs(text: &[u8], out: &mut Vec<u32>) -> bool {
    let (text, mut is_good) = whole_lines(text);
    for line in text.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
        match number(line).ok().and_then(|pid| u32::try_from(pid).ok()) {
            Some(0) => {}
            Some(pid) => out.push(pid),
            None => is_good = false,
        }
    }
    is_good
}

/// The text without a last line that was cut, which may end with half of a number, and whether there was none.
fn whole_lines(text: &[u8]) -> (&[u8], bool) {
    match whole(text) {
        Ok(()) => (text, true),
        Err(_) => (&text[..text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1)], false),
    }
}

/// What is taken of /proc/PID/stat, in ticks of `sysconf(_SC_CLK_TCK)`.
#[derive(Debug, PartialEq, Eq)]
pub struct Stat {
    /// In user mode and in the kernel, of all threads.
    pub cpu_ticks: u64,
    /// Since the boot.
    pub start_ticks: u64,
}

/// proc(5): fields 14, 15 (utime, stime) and 22 (starttime), counted behind the parenthesis that ends comm, since comm
/// may hold anything but the end of a line. `None` = not what the kernel prints.
pub fn stat(text: &[u8]) -> Option<Stat> {
    let line = text.strip_suffix(b"\n").filter(|line| !line.contains(&b'\n'))?;
    let behind = &line[line.iter().rposition(|&b| b == b')')? + 1..];
    let fields: Vec<&[u8]> = behind.split(u8::is_ascii_whitespace).filter(|f| !f.is_empty()).collect();
    let at = |n: usize| number(fields.get(n - 3)?).ok();
    Some(Stat { cpu_ticks: at(14)?.checked_add(at(15)?)?, start_ticks: at(22)? })
}

impl Stat {
    /// In µs; `None` when they are too many for a column.
    pub fn cpu_usec(&self, ticks_per_second: u64) -> Option<u64> {
        let usec = self.cpu_ticks.checked_mul(1_000_000)? / ticks_per_second;
        i64::try_from(usec).is_ok().then_some(usec)
    }
}

/// What stands behind each `key:`, and whether none of the keys stands twice; which of two is true nobody knows.
fn fields<'a, const N: usize>(text: &'a str, keys: [&str; N]) -> ([Option<&'a str>; N], bool) {
    let (mut out, mut times) = ([None; N], [0; N]);
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        if let Some(i) = keys.iter().position(|k| *k == key) {
            times[i] += 1;
            out[i] = (times[i] == 1).then(|| value.trim());
        }
    }
    (out, times.iter().all(|n| *n < 2))
}

/// `1234 kB`, in bytes.
fn kib(text: &str) -> Option<u64> {
    let kib = number(text.strip_suffix("kB")?.trim_end().as_bytes()).ok()?;
    kib.checked_mul(1024).filter(|bytes| i64::try_from(*bytes).is_ok())
}

/// What is taken of /proc/PID/status; sizes in bytes. What it has no line of is `None` (a kernel thread has no memory).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub comm: Option<String>,
    pub state: Option<char>,
    pub anon: Option<u64>,
    pub file: Option<u64>,
    pub shmem: Option<u64>,
    pub swap: Option<u64>,
    pub threads: Option<u64>,
    /// How many pid namespaces lie around a process that is pid 1 of the innermost; `None` when it is not, or when there
    /// is but one.
    pub depth: Option<usize>,
}

impl Status {
    /// The three parts of the resident set.
    pub fn rss(&self) -> Option<u64> {
        let sum = self.anon?.checked_add(self.file?)?.checked_add(self.shmem?)?;
        i64::try_from(sum).is_ok().then_some(sum)
    }
}

/// The status, and whether all that is taken of it was what the kernel prints.
pub fn status(text: &[u8]) -> (Status, bool) {
    let (lines, is_whole) = whole_lines(text);
    let lines = String::from_utf8_lossy(lines);
    let keys = ["Name", "State", "RssAnon", "RssFile", "RssShmem", "VmSwap", "Threads", "NSpid"];
    let ([name, state, anon, file, shmem, swap, threads, ns_pid], is_once) = fields(&lines, keys);
    let mut is_good = is_whole && is_once && name.is_some();
    let mut taken = |field: Option<&str>, read: fn(&str) -> Option<u64>| {
        let value = read(field?);
        is_good &= value.is_some();
        value
    };
    let status = Status {
        comm: name.map(str::to_owned),
        state: state.and_then(|s| s.chars().next()),
        anon: taken(anon, kib),
        file: taken(file, kib),
        shmem: taken(shmem, kib),
        swap: taken(swap, kib),
        threads: taken(threads, |t| number(t.as_bytes()).ok()),
        depth: ns_pid.and_then(init_depth),
    };
    let parts = [status.anon, status.file, status.shmem];
    is_good &= status.rss().is_some() || parts.contains(&None);
    (status, is_good)
}

/// The numbers of NSpid are its pids from the reader's namespace inwards.
fn init_depth(pids: &str) -> Option<usize> {
    let depth = pids.split_whitespace().count();
    (depth > 1 && pids.split_whitespace().next_back() == Some("1")).then_some(depth)
}

/// The number of oom_score or oom_score_adj, which may be below zero; `None` = not what the kernel prints.
pub fn score(text: &[u8]) -> Option<i64> {
    let line = text.strip_suffix(b"\n")?;
    let (sign, digits) = line.strip_prefix(b"-").map_or((1, line), |digits| (-1, digits));
    Some(sign * i64::try_from(number(digits).ok()?).ok()?)
}

/// `Pss` of smaps_rollup in bytes; `None` = not what the kernel prints.
pub fn pss(text: &[u8]) -> Option<u64> {
    whole(text).ok()?;
    let ([pss], _) = fields(std::str::from_utf8(text).ok()?, ["Pss"]);
    kib(pss?)
}

/// The path in cgroup v2 of /proc/PID/cgroup, from the root of the reader's cgroup namespace, with its first slash. `None` = not what
/// the kernel prints, or outside that namespace: there it leads upwards, to what may be no cgroup at all.
pub fn cgroup(text: &[u8]) -> Option<&str> {
    whole(text).ok()?;
    // a name may end with any other blank
    let mut paths = std::str::from_utf8(text).ok()?.split('\n').filter_map(|line| line.strip_prefix("0::"));
    let path =
        paths.next().filter(|path| path.starts_with('/') && !path.split('/').any(|part| part == ".."))?;
    paths.next().is_none().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comm_with_parentheses_does_not_shift_the_fields() {
        let line = b"42 (a) b) (c) S 1 1 1 0 -1 4194560 1 2 3 4 70 30 0 0 20 0 1 0 12345 1 2 3\n";
        assert_eq!(stat(line), Some(Stat { cpu_ticks: 100, start_ticks: 12_345 }));
        assert_eq!(stat(b"junk\n"), None);
        let start = line.windows(5).position(|w| w == b"12345").expect("there");
        assert_eq!(stat(&line[..start + 2]), None, "half of an instant is another one");
        assert_eq!(stat(&line.repeat(2)), None, "which of two nobody knows");
    }

    #[test]
    fn what_stands_twice_or_does_not_fit_is_no_value_of_a_status() {
        let of = |text: &str| status(text.as_bytes());
        assert_eq!(of("Name:\ta\nVmSwap:\t1 kB\nVmSwap:\t2 kB\n").0.swap, None);
        assert!(!of("Name:\ta\nVmSwap:\t1 kB\nVmSwap:\t2 kB\n").1);
        let half = i64::MAX as u64 / 2048;
        let huge = format!("Name:\ta\nRssAnon:\t{half} kB\nRssFile:\t{half} kB\nRssShmem:\t2 kB\n");
        let (status, is_good) = of(&huge);
        assert_eq!((status.anon, status.rss(), is_good), (Some(half * 1024), None, false));
        assert!(of("Name:\tkthreadd\nThreads:\t1\nNSpid:\t2\n").1);
    }

    #[test]
    fn half_of_a_score_is_no_score() {
        assert_eq!((score(b"-998\n"), score(b"0\n"), score(b"1332\n")), (Some(-998), Some(0), Some(1332)));
        for text in ["-99", "", "\n", "-\n", "+5\n", "5\n6\n", "--1\n", "9223372036854775808\n"] {
            assert_eq!(score(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_cgroup_outside_our_namespace_has_no_path() {
        assert_eq!(cgroup(b"4:memory:/x\n0::/a/b\n"), Some("/a/b"));
        assert_eq!(cgroup(b"0::/..a\n"), Some("/..a"));
        for text in ["0::/../x\n", "0::/..\n", "0::/a", "0::/a\n0::/b\n", "0::a\n", "4:memory:/x\n", ""] {
            assert_eq!(cgroup(text.as_bytes()), None, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(text in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let mut pids = Vec::new();
            let is_good = procs(&text, &mut pids);
            proptest::prop_assert!(!is_good || text.is_empty() || text.ends_with(b"\n"));
            proptest::prop_assert!(pids.iter().all(|pid| *pid != 0));
            let (status, is_good) = status(&text);
            proptest::prop_assert!(!is_good || status.comm.is_some());
            let _ = (stat(&text), score(&text), pss(&text), cgroup(&text));
        }

        /// Text that looks like the kernel's gets further into the parsers than noise does.
        #[test]
        fn no_likely_text_makes_it_panic(
            pids in "([0-9-]{0,12}\n?){0,20}",
            line in "[0-9]{1,7} \\([ ()a-z]{0,16}\\)? S( [0-9-]{1,21}){0,24}\n?",
            lines in "((Name|RssAnon|RssFile|RssShmem|VmSwap|Threads|NSpid|Pss):?\t? {0,3}[0-9a-z-]{0,21}( kB)?\n?){0,12}",
        ) {
            let _ = procs(pids.as_bytes(), &mut Vec::new());
            let _ = (stat(line.as_bytes()), pss(lines.as_bytes()));
            let (status, _) = status(lines.as_bytes());
            let sizes = [status.anon, status.file, status.shmem, status.swap, status.rss()];
            proptest::prop_assert!(sizes.into_iter().flatten().all(|v| i64::try_from(v).is_ok()));
        }
    }
}
