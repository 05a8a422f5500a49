//! The process table of a cgroup: who is in it and who holds its memory.
//!
//! Read from cgroup.procs (of the cgroup and those below it) and /proc. A process that goes away meanwhile is left out;
//! what cannot be read of one is absent, and text that no kernel prints is counted. PSS is no part of a table: smaps_rollup takes the process's mm lock, so [`pss_bytes`] is for who asks.

pub mod parse;

use crate::accumulator::Process;
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

/// The pids, and the directories that were left out.
fn gather(path: &Path, unparsed: &mut Unparsed) -> (Vec<u32>, u64) {
    let (mut out, mut stack, mut visited) = (Vec::new(), vec![path.to_owned()], 0);
    while let Some(dir) = stack.pop() {
        if visited == MAX_DIRECTORIES {
            return (out, stack.len() as u64 + 1);
        }
        visited += 1;
        if let Ok(text) = fs::read(dir.join("cgroup.procs"))
            && !parse::procs(&text, &mut out)
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
    let text = fs::read(proc_root.join(pid.to_string()).join("cgroup")).ok()?;
    let path = parse::cgroup(&text)?;
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
            let stat = parse::stat(&fs::read(dir.join("stat")).ok()?)?;
            let (status, _) = parse::status(&fs::read(dir.join("status")).unwrap_or_default());
            Some((status.depth.unwrap_or(usize::MAX), stat.start_ticks, pid))
        })
        .min()
        .map(|(_, _, pid)| pid)
}

fn count(unparsed: &mut Unparsed, file: &'static str) {
    *unparsed.entry(file).or_default() += 1;
}

/// A process and its depth (see [`parse::Status`]); `None` when it has gone, or its status does not even have a name.
fn read(proc_root: &Path, pid: u32, unparsed: &mut Unparsed) -> Option<(Process, Option<usize>)> {
    let dir = proc_root.join(pid.to_string());
    let (status, is_good) = parse::status(&fs::read(dir.join("status")).ok()?);
    if !is_good {
        count(unparsed, "status");
    }
    let mut score = |file: &'static str| {
        // it may have gone meanwhile
        let text = fs::read(dir.join(file)).ok()?;
        let value = parse::score(&text);
        if value.is_none() {
            count(unparsed, file);
        }
        value
    };
    let (oom_score, oom_score_adj) = (score("oom_score"), score("oom_score_adj"));
    let usec = |text: Vec<u8>| parse::stat(&text)?.cpu_usec(ticks_per_second());
    let cpu_usec = fs::read(dir.join("stat")).ok().map(usec);
    if cpu_usec == Some(None) {
        count(unparsed, "stat");
    }
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
        cpu_usec: cpu_usec.flatten(),
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
/// That it has gone, that CAP_SYS_PTRACE would be needed, or (`InvalidData`) that the text is not what the kernel prints.
pub fn pss_bytes(proc_root: &Path, pid: u32) -> std::io::Result<u64> {
    let text = fs::read(proc_root.join(pid.to_string()).join("smaps_rollup"))?;
    parse::pss(&text).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidData))
}

fn ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
