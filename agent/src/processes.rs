//! The process table of a cgroup: who is in it and who holds its memory.
//!
//! Read from cgroup.procs (of the cgroup and those below it) and /proc. A process that goes away meanwhile is left out;
//! what cannot be read of one is absent. PSS is no part of a table: smaps_rollup takes the process's mm lock, so [`pss_bytes`] is for who asks.

use crate::accumulator::Process;
use crate::names::CgroupId;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Processes in one table. A cgroup with more shows the first ones of cgroup.procs; the rest is counted.
pub const MAX_PROCESSES: usize = 512;
/// Directories below a container that are looked into; those left out are counted.
const MAX_DIRECTORIES: usize = 256;

/// A table, and what did not fit.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub processes: Vec<Process>,
    pub cut: u64,
    /// Directories found and not looked into, nor what is below them.
    pub directories_cut: u64,
}

/// Pids in the cgroup at `path` and below, as the agent's pid namespace has them (0, invisible, is left out).
pub fn pids(path: &Path) -> Vec<u32> {
    gather(path).0
}

/// The pids, and the directories that were left out.
fn gather(path: &Path) -> (Vec<u32>, u64) {
    let (mut out, mut stack, mut visited) = (Vec::new(), vec![path.to_owned()], 0);
    while let Some(dir) = stack.pop() {
        if visited == MAX_DIRECTORIES {
            return (out, stack.len() as u64 + 1);
        }
        visited += 1;
        if let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) {
            out.extend(text.lines().filter_map(|l| l.parse::<u32>().ok()).filter(|pid| *pid != 0));
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
    let (pids, directories_cut) = gather(cgroup);
    let cut = pids.len().saturating_sub(MAX_PROCESSES) as u64;
    let read: Vec<_> = pids.into_iter().take(MAX_PROCESSES).filter_map(|pid| read(proc_root, pid)).collect();
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
    Listing { processes, cut, directories_cut }
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
    let at = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
    Some(Stat { cpu_ticks: at(14)? + at(15)?, start_ticks: at(22)? })
}

/// /proc/PID/status, by line.
fn status_field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

fn kib(status: &str, key: &str) -> Option<u64> {
    status_field(status, key)?.strip_suffix("kB")?.trim().parse::<u64>().ok().map(|v| v * 1024)
}

/// A process and its [`init_depth`]; `None` when it has gone.
fn read(proc_root: &Path, pid: u32) -> Option<(Process, Option<usize>)> {
    let dir = proc_root.join(pid.to_string());
    let status = String::from_utf8_lossy(&fs::read(dir.join("status")).ok()?).into_owned();
    let number = |file: &str| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<i64>().ok();
    let stat = fs::read(dir.join("stat")).ok().map(|b| String::from_utf8_lossy(&b).into_owned());
    let (anon, file, shmem) = (kib(&status, "RssAnon"), kib(&status, "RssFile"), kib(&status, "RssShmem"));
    let process = Process {
        pid,
        comm: status_field(&status, "Name")?.to_owned(),
        state: status_field(&status, "State").and_then(|s| s.chars().next()),
        rss_bytes: anon.zip(file).zip(shmem).map(|((a, f), s)| a + f + s),
        anon_bytes: anon,
        file_bytes: file,
        shmem_bytes: shmem,
        swap_bytes: kib(&status, "VmSwap"),
        threads: status_field(&status, "Threads").and_then(|t| t.parse().ok()),
        // the size of the directory is the count of descriptors since 6.2; before, it is 0 and says nothing
        fds: fs::metadata(dir.join("fd")).ok().map(|m| m.size()).filter(|n| *n > 0),
        cpu_usec: stat.as_deref().and_then(parse_stat).map(|s| s.cpu_ticks * 1_000_000 / ticks_per_second()),
        oom_score: number("oom_score"),
        oom_score_adj: number("oom_score_adj"),
        is_init: false,
    };
    Some((process, init_depth(&status)))
}

/// The proportional set size of a process: shared pages count for their share. The kernel goes over all of its page tables for that, some 6 ms
/// for each GB of small pages, and holds its mm lock meanwhile.
///
/// # Errors
/// That it has gone, or that CAP_SYS_PTRACE would be needed.
pub fn pss_bytes(proc_root: &Path, pid: u32) -> std::io::Result<u64> {
    let text = fs::read_to_string(proc_root.join(pid.to_string()).join("smaps_rollup"))?;
    kib(&text, "Pss").ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))
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
        let (me, _) = read(Path::new("/proc"), std::process::id()).expect("alive");
        let comm = fs::read_to_string("/proc/self/comm").expect("comm");
        assert_eq!(me.comm, comm.trim_end());
        assert!(me.rss_bytes.is_some_and(|b| b > 1 << 20), "{me:?}");
        assert!(me.threads.is_some_and(|t| t >= 1));
    }

    #[test]
    fn pss_is_no_more_than_rss_and_none_of_one_that_has_gone() {
        let pid = std::process::id();
        let pss = pss_bytes(Path::new("/proc"), pid).expect("our own");
        let (me, _) = read(Path::new("/proc"), pid).expect("alive");
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
        fs::write(dir.join("cgroup.procs"), procs.join("\n")).expect("write");
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
}
