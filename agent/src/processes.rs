//! The process table of a cgroup: who is in it and who holds its memory.
//!
//! Read from cgroup.procs (of the cgroup and those below it) and /proc. A process that goes away meanwhile is left out;
//! what cannot be read of one is absent, and text that no kernel prints is counted. PSS is no part of a table: smaps_rollup takes the process's mm lock, so [`pss_bytes`] is for who asks.

use crate::accumulator::Process;
use crate::cgroup::parse::{number, whole};
use crate::names::CgroupId;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Processes in one table. A cgroup with more shows the first ones of cgroup.procs; the rest is counted.
pub const MAX_PROCESSES: usize = 512;
/// Directories below a container that are looked into; those left out are counted.
const MAX_DIRECTORIES: usize = 256;

/// By file: texts, or numbers in them, that are not what the kernel prints.
pub type Unparsed = BTreeMap<&'static str, u64>;

/// A table, what did not fit, and what could not be understood.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub processes: Vec<Process>,
    pub cut: u64,
    /// Directories found and not looked into, nor what is below them.
    pub directories_cut: u64,
    pub unparsed: Unparsed,
}

/// Pids in the cgroup at `path` and below, as the agent's pid namespace has them (0, invisible, is left out).
pub fn pids(path: &Path) -> Vec<u32> {
    gather(path, &mut Unparsed::new()).0
}

/// The pids of cgroup.procs, without the invisible, and whether all of the text was such.
fn parse_procs(text: &[u8], out: &mut Vec<u32>) -> bool {
    let whole = whole(text).is_ok();
    let end = if whole { text.len() } else { text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1) };
    let mut is_good = whole;
    for line in text[..end].split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
        match number(line).ok().and_then(|pid| u32::try_from(pid).ok()) {
            Some(0) => {}
            Some(pid) => out.push(pid),
            None => is_good = false,
        }
    }
    is_good
}

/// The pids, and the directories that were left out.
fn gather(path: &Path, unparsed: &mut Unparsed) -> (Vec<u32>, u64) {
    let (mut out, mut stack, mut visited) = (Vec::new(), vec![path.to_owned()], 0);
    while let Some(dir) = stack.pop() {
        if visited == MAX_DIRECTORIES {
            return (out, stack.len() as u64 + 1);
        }
        visited += 1;
        if let Ok(text) = fs::read(dir.join("cgroup.procs"))
            && !parse_procs(&text, &mut out)
        {
            count(unparsed, "cgroup.procs");
        }
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                stack.push(entry.path());
            }
        }
    }
    (out, 0)
}

/// The cgroup that a process (or a thread) is in, or was in when it ended: until its parent has waited for it, it is
/// still told. The path that the kernel gives counts from the root of our cgroup namespace.
pub fn cgroup_of(proc_root: &Path, pid: u32, cgroup_root: &Path) -> Option<CgroupId> {
    let text = fs::read_to_string(proc_root.join(pid.to_string()).join("cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(CgroupId(fs::metadata(cgroup_root.join(path.trim_start_matches('/'))).ok()?.ino()))
}

/// The table of a cgroup. `init_pid` is the container's first process, where it is known.
pub fn list(proc_root: &Path, cgroup: &Path, init_pid: Option<u32>) -> Listing {
    let mut unparsed = Unparsed::new();
    let (pids, directories_cut) = gather(cgroup, &mut unparsed);
    let cut = pids.len().saturating_sub(MAX_PROCESSES) as u64;
    let first = pids.into_iter().take(MAX_PROCESSES);
    let read: Vec<_> = first.filter_map(|pid| read(proc_root, pid, &mut unparsed)).collect();
    // a sandbox or a container inside this one has a pid 1 of its own, deeper: that is not this container's init
    let depth = read.iter().filter_map(|(_, depth)| *depth).min();
    let init_pid = init_pid.filter(|init| read.iter().any(|(p, _)| p.pid == *init));
    let processes = read
        .into_iter()
        .map(|(mut p, d)| {
            p.is_init = init_pid.map_or(d.is_some() && d == depth, |init| init == p.pid);
            p
        })
        .collect();
    Listing { processes, cut, directories_cut, unparsed }
}

/// The first process of a cgroup that has just begun: the one that is pid 1 of the outermost pid namespace made for it,
/// else the oldest of those in it. (A runtime's own helpers are in the cgroup before the container's init is.)
pub fn first(proc_root: &Path, cgroup: &Path) -> Option<u32> {
    pids(cgroup)
        .into_iter()
        .filter_map(|pid| {
            let dir = proc_root.join(pid.to_string());
            let stat = fs::read(dir.join("stat")).ok()?;
            let status = fs::read(dir.join("status")).unwrap_or_default();
            let depth = init_depth(&String::from_utf8_lossy(&status)).unwrap_or(usize::MAX);
            Some((depth, parse_stat(&String::from_utf8_lossy(&stat))?.start_ticks, pid))
        })
        .min()
        .map(|(_, _, pid)| pid)
}

/// How many pid namespaces lie around a process that is pid 1 of the innermost; `None` when it is not, or when there is
/// but one. The numbers of NSpid are its pids from the reader's namespace inwards.
fn init_depth(status: &str) -> Option<usize> {
    let numbers: Vec<_> = status_field(status, "NSpid")?.split_whitespace().collect();
    (numbers.len() > 1 && numbers.last() == Some(&"1")).then_some(numbers.len())
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
}

/// proc(5): fields 14, 15 (utime, stime) and 22 (starttime), counted behind the parenthesis that ends comm, since comm
/// may hold anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let at = |n: usize| number(fields.get(n - 3)?.as_bytes()).ok();
    Some(Stat { cpu_ticks: at(14)?.checked_add(at(15)?)?, start_ticks: at(22)? })
}

/// /proc/PID/status, by line.
fn status_field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

fn kib(text: &str) -> Option<u64> {
    number(text.strip_suffix("kB")?.trim_end().as_bytes()).ok()?.checked_mul(1024)
}

/// What is taken of /proc/PID/status. What it has no line of is `None` (a kernel thread has no memory).
#[derive(Debug, Default, PartialEq, Eq)]
struct Status {
    comm: Option<String>,
    state: Option<char>,
    anon: Option<u64>,
    file: Option<u64>,
    shmem: Option<u64>,
    swap: Option<u64>,
    threads: Option<u64>,
    depth: Option<usize>,
}

impl Status {
    fn rss(&self) -> Option<u64> {
        let sum = self.anon?.checked_add(self.file?)?.checked_add(self.shmem?)?;
        i64::try_from(sum).is_ok().then_some(sum)
    }
}

/// The status, and whether all that is taken of it was what the kernel prints.
fn parse_status(text: &[u8]) -> (Status, bool) {
    let text_of_comm = String::from_utf8_lossy(text);
    let mut is_good = whole(text).is_ok() && !text.is_empty();
    // the last line of a text that was cut may be half of a number
    let end = if is_good { text_of_comm.len() } else { text_of_comm.rfind('\n').map_or(0, |at| at + 1) };
    let status = &text_of_comm[..end];
    let mut size = |key: &str| {
        let field = status_field(status, key)?;
        let value = kib(field).filter(|v| i64::try_from(*v).is_ok());
        is_good &= value.is_some();
        value
    };
    let (anon, file) = (size("RssAnon"), size("RssFile"));
    let (shmem, swap) = (size("RssShmem"), size("VmSwap"));
    let threads = status_field(status, "Threads").and_then(|t| {
        let threads = number(t.as_bytes()).ok();
        is_good &= threads.is_some();
        threads
    });
    let comm = status_field(status, "Name").map(str::to_owned);
    is_good &= comm.is_some();
    let state = status_field(status, "State").and_then(|s| s.chars().next());
    (Status { comm, state, anon, file, shmem, swap, threads, depth: init_depth(status) }, is_good)
}

fn count(unparsed: &mut Unparsed, file: &'static str) {
    *unparsed.entry(file).or_default() += 1;
}

/// A process and its [`init_depth`]; `None` when it has gone, or its status does not even have a name.
fn read(proc_root: &Path, pid: u32, unparsed: &mut Unparsed) -> Option<(Process, Option<usize>)> {
    let dir = proc_root.join(pid.to_string());
    let (status, is_good) = parse_status(&fs::read(dir.join("status")).ok()?);
    if !is_good {
        count(unparsed, "status");
    }
    let mut score = |file: &'static str| {
        // it may have gone meanwhile
        let text = fs::read(dir.join(file)).ok()?;
        let value = std::str::from_utf8(&text).ok().and_then(|t| t.trim().parse::<i64>().ok());
        if value.is_none() {
            count(unparsed, file);
        }
        value
    };
    let (oom_score, oom_score_adj) = (score("oom_score"), score("oom_score_adj"));
    let stat = fs::read(dir.join("stat")).ok().map(|text| parse_stat(&String::from_utf8_lossy(&text)));
    if matches!(stat, Some(None)) {
        count(unparsed, "stat");
    }
    let micros = |s: Stat| Some(s.cpu_ticks.checked_mul(1_000_000)? / ticks_per_second());
    let process = Process {
        pid,
        rss_bytes: status.rss(),
        comm: status.comm?,
        state: status.state,
        anon_bytes: status.anon,
        file_bytes: status.file,
        shmem_bytes: status.shmem,
        swap_bytes: status.swap,
        threads: status.threads,
        // the size of the directory is the count of descriptors since 6.2; before, it is 0 and says nothing
        fds: fs::metadata(dir.join("fd")).ok().map(|m| m.size()).filter(|n| *n > 0),
        cpu_usec: stat.flatten().and_then(micros),
        oom_score,
        oom_score_adj,
        is_init: false,
    };
    Some((process, status.depth))
}

/// The proportional set size of a process: shared pages count for their share. The kernel goes over all of its page tables for that, some 6 ms
/// for each GB of small pages, and holds its mm lock meanwhile.
///
/// # Errors
/// That it has gone, or that CAP_SYS_PTRACE would be needed.
pub fn pss_bytes(proc_root: &Path, pid: u32) -> std::io::Result<u64> {
    let text = fs::read_to_string(proc_root.join(pid.to_string()).join("smaps_rollup"))?;
    status_field(&text, "Pss").and_then(kib).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))
}

fn ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comm_with_parentheses_does_not_shift_the_fields() {
        let line = "42 (a) b) (c) S 1 1 1 0 -1 4194560 1 2 3 4 70 30 0 0 20 0 1 0 12345 1 2 3\n";
        assert_eq!(parse_stat(line), Some(Stat { cpu_ticks: 100, start_ticks: 12_345 }));
        assert_eq!(parse_stat("junk"), None);
    }

    #[test]
    fn this_process_reads_as_the_kernel_has_it() {
        let (me, _) = read(Path::new("/proc"), std::process::id(), &mut Unparsed::new()).expect("alive");
        let comm = fs::read_to_string("/proc/self/comm").expect("comm");
        assert_eq!(me.comm, comm.trim_end());
        assert!(me.rss_bytes.is_some_and(|b| b > 1 << 20), "{me:?}");
        assert!(me.threads.is_some_and(|t| t >= 1));
    }

    #[test]
    fn pss_is_no_more_than_rss_and_none_of_one_that_has_gone() {
        let pid = std::process::id();
        let pss = pss_bytes(Path::new("/proc"), pid).expect("our own");
        let (me, _) = read(Path::new("/proc"), pid, &mut Unparsed::new()).expect("alive");
        assert!(pss > 0 && me.rss_bytes.is_some_and(|rss| pss <= rss + (16 << 20)), "{pss}: {me:?}");
        assert!(pss_bytes(Path::new("/proc"), 4_194_304).is_err());
    }

    /// A folder that looks like /proc, with processes of (pid, NSpid, start).
    fn fake_proc(dir: &Path, processes: &[(u32, &str, u32)]) {
        for (pid, nspid, start) in processes {
            let dir = dir.join(pid.to_string());
            fs::create_dir_all(&dir).expect("mkdir");
            fs::write(dir.join("status"), format!("Name:\tp{pid}\nNSpid:\t{nspid}\n")).expect("write");
            let stat = format!("{pid} (p) S 1 1 1 0 -1 0 1 2 3 4 7 3 0 0 20 0 1 0 {start} 1 2 3\n");
            fs::write(dir.join("stat"), stat).expect("write");
        }
        let procs: Vec<_> = processes.iter().map(|(pid, ..)| pid.to_string()).collect();
        fs::write(dir.join("cgroup.procs"), procs.join("\n") + "\n").expect("write");
    }

    #[test]
    fn a_sandbox_inside_a_container_does_not_make_a_second_init() {
        let dir = tempfile::tempdir().expect("a folder");
        // a helper of the runtime is the oldest; 12 is pid 1 of a namespace inside the container's
        fake_proc(dir.path(), &[(9, "9", 90), (10, "10 1", 100), (11, "11 7", 101), (12, "12 8 1", 102)]);
        let inits = |known| {
            let all = list(dir.path(), dir.path(), known).processes;
            all.into_iter().filter(|p| p.is_init).map(|p| p.pid).collect::<Vec<_>>()
        };
        assert_eq!((inits(None), inits(Some(9))), (vec![10], vec![9]));
        assert_eq!(first(dir.path(), dir.path()), Some(10));
    }

    #[test]
    fn a_process_that_has_gone_is_left_out() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("cgroup.procs"), format!("0\n{}\n4194304\n", std::process::id()))
            .expect("write");
        let listing = list(Path::new("/proc"), dir.path(), None);
        assert_eq!(listing.processes.len(), 1);
        assert_eq!(first(Path::new("/proc"), dir.path()), Some(std::process::id()));
    }

    #[test]
    fn directories_beyond_the_bound_are_counted() {
        let dir = tempfile::tempdir().expect("a folder");
        for i in 0..MAX_DIRECTORIES + 4 {
            fs::create_dir(dir.path().join(i.to_string())).expect("mkdir");
        }
        // the cgroup itself is one of those looked into
        assert_eq!(list(Path::new("/proc"), dir.path(), None).directories_cut, 5);
    }

    #[test]
    fn a_process_is_found_in_its_cgroup_v2_and_one_that_is_gone_is_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let (proc_root, cgroups) = (dir.path().join("proc"), dir.path().join("cgroup"));
        fs::create_dir_all(proc_root.join("7")).expect("made");
        fs::create_dir_all(cgroups.join("a/b")).expect("made");
        fs::write(proc_root.join("7/cgroup"), "4:memory:/x\n0::/a/b\n").expect("written");
        let id = fs::metadata(cgroups.join("a/b")).expect("there").ino();
        assert_eq!(cgroup_of(&proc_root, 7, &cgroups), Some(CgroupId(id)));
        assert_eq!(cgroup_of(&proc_root, 8, &cgroups), None);
        fs::write(proc_root.join("7/cgroup"), "0::/gone (deleted)\n").expect("written");
        assert_eq!(cgroup_of(&proc_root, 7, &cgroups), None);
    }

    #[test]
    fn spoilt_files_of_a_process_are_counted_and_leave_what_is_whole() {
        let dir = tempfile::tempdir().expect("a folder");
        fake_proc(dir.path(), &[(10, "10 1", 100), (11, "11 2", 101)]);
        let write = |file: &str, text: &[u8]| fs::write(dir.path().join(file), text).expect("write");
        let unparsed = || list(dir.path(), dir.path(), None).unparsed.into_iter().collect::<Vec<_>>();
        assert_eq!(unparsed(), []);
        write("cgroup.procs", b"10\n11");
        assert_eq!(unparsed(), [("cgroup.procs", 1)], "half of a number is another process");
        assert_eq!(list(dir.path(), dir.path(), None).processes.len(), 1);
        write("cgroup.procs", b"10\n-4\n11\n\xff\n99999999999\n");
        assert_eq!(unparsed(), [("cgroup.procs", 1)]);
        assert_eq!(list(dir.path(), dir.path(), None).processes.len(), 2);
        write("cgroup.procs", b"10\n11\n");
        assert_eq!(unparsed(), []);
        write("10/status", b"Name:\tp\nRssAnon:\t18446744073709551615 kB\nThreads:\tx\nVmSwap:\t7 kB\n");
        write("11/stat", b"11 (p) S 1\n");
        write("11/oom_score", b"");
        assert_eq!(unparsed(), [("oom_score", 1), ("stat", 1), ("status", 1)]);
        let processes = list(dir.path(), dir.path(), None).processes;
        let first = processes.iter().find(|p| p.pid == 10).expect("there");
        assert_eq!((first.anon_bytes, first.threads, first.swap_bytes), (None, None, Some(7 << 10)));
        write("10/status", b"");
        assert_eq!(list(dir.path(), dir.path(), None).processes.len(), 1);
    }

    #[test]
    fn the_processes_of_this_machine_have_no_faults() {
        let pids = fs::read_dir("/proc").expect("proc").flatten();
        let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        let mut unparsed = Unparsed::new();
        let read = pids.filter_map(|pid| read(Path::new("/proc"), pid, &mut unparsed)).count();
        assert!(read > 0 && unparsed.is_empty(), "{read} processes: {unparsed:?}");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(text in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let mut pids = Vec::new();
            let is_good = parse_procs(&text, &mut pids);
            proptest::prop_assert!(!is_good || text.is_empty() || text.ends_with(b"\n"));
            proptest::prop_assert!(pids.iter().all(|pid| *pid != 0));
            let _ = parse_stat(&String::from_utf8_lossy(&text));
            let (status, is_good) = parse_status(&text);
            proptest::prop_assert!(!is_good || status.comm.is_some());
        }

        /// Text that looks like the kernel's gets further into the parsers than noise does.
        #[test]
        fn no_likely_text_makes_it_panic(
            procs in "([0-9-]{0,12}\n?){0,20}",
            stat in "[0-9]{1,7} \\([ ()a-z]{0,16}\\)? S( [0-9-]{1,21}){0,24}\n?",
            status in "((Name|RssAnon|RssFile|RssShmem|VmSwap|Threads|NSpid):?\t? {0,3}[0-9a-z-]{0,21}( kB)?\n?){0,12}",
        ) {
            let _ = parse_procs(procs.as_bytes(), &mut Vec::new());
            let _ = parse_stat(&stat);
            let (status, _) = parse_status(status.as_bytes());
            let sizes = [status.anon, status.file, status.shmem, status.swap, status.rss()];
            proptest::prop_assert!(sizes.into_iter().flatten().all(|v| i64::try_from(v).is_ok()));
        }
    }
}
