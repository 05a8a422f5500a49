//! The lane's walk: asks a kernel program to go over every cgroup below a root, and hands over what it read.
//!
//! An edge. It keeps one link (`iter`); a tick makes an iterator of it, reads that once, and finds a record of each cgroup in memory that it
//! shares with the program. It tells which of them hold what they held at the look before: most do. It must never panic nor
//! stop the agent: what fails is an error with its reason, and the lane goes on by `pread`. `pipeline` calls it.
//!
//! A tick takes `cgroup_mutex` by either way, so it waits while the kernel makes, removes or moves cgroups.
use super::{
    NO_OBJECT, OBJECT, attach, btf::Btf, iter, kernel::Kernel, kfunc, ring_bytes, shared::Shared, take_map,
};
use crate::lane::{File, Reading, Value};
use crate::names::CgroupId;
use agent_ebpf::{ABSENT, LaneDue, LaneHead, LaneOffsets, LaneRecord, LaneValues, UNKNOWN, lane};
use aya::{EbpfLoader, programs::Iter};
use rustix::fs::{Mode, OFlags};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};
use zerocopy::IntoBytes;

/// Cgroups that find room, in 136 bytes each; what finds none is counted.
const SLOTS: u32 = 7700;
/// `enum bpf_cgroup_iter_order` of include/uapi/linux/bpf.h.
const BPF_CGROUP_ITER_SELF_ONLY: u32 = 1;
/// Maps of the object that the walk does not use: made as small as can be, and closed when it is attached.
const UNUSED_RINGS: [&str; 2] = ["EVENTS", "AYA_LOGS"];

/// Who goes from cgroup to cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The kernel, which calls `lane_walk` for each (Linux 6.1).
    Iterator,
    /// `lane_descend` itself, by `bpf_iter_css_next`, half as dear (Linux 6.8).
    Descent,
}

impl Way {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Iterator => "iter_cgroup",
            Self::Descent => "iter_css",
        }
    }

    /// The program, and the order in which the kernel is to call it.
    fn program(self) -> (&'static str, u32) {
        match self {
            Self::Iterator => ("lane_walk", lane::DESCENDANTS_PRE),
            Self::Descent => ("lane_descend", BPF_CGROUP_ITER_SELF_ONLY),
        }
    }
}

/// What the walk must know of the kernel.
#[derive(Clone)]
pub(super) struct LaneFacts {
    offsets: LaneOffsets,
    /// What cannot be read.
    missing: Vec<&'static str>,
    /// What the descent calls, or what it lacks.
    kfuncs: Result<kfunc::Ids, &'static str>,
}

/// What one walk gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub readings: u64,
    /// Cgroups that found no room.
    pub lost: u64,
}

/// One cgroup in one walk.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    record: &'a LaneRecord,
    period_ms: u64,
    /// When the look before this one was, if it found the same.
    pub same_since_ns: Option<u64>,
}

impl Look<'_> {
    pub fn id(&self) -> CgroupId {
        CgroupId(self.record.values.cgroup_id)
    }

    pub fn ktime_ns(&self) -> u64 {
        self.record.ktime_ns
    }

    pub fn memory_current(&self) -> Option<u64> {
        let values = &self.record.values;
        (values.have & lane::MEMORY != 0).then_some(values.memory_bytes)
    }

    /// The mark of memory.stat's numbers where it was asked for and can be had: another one when they are others.
    pub fn mark(&self) -> Option<u32> {
        (self.record.is_marked != 0).then_some(self.record.stat_mark)
    }

    pub fn reading(&self) -> Reading {
        reading(self.record.ktime_ns, &self.record.values, self.period_ms)
    }
}

pub struct Walk {
    head: Shared<LaneHead>,
    slots: Shared<LaneRecord>,
    /// What the walk before found in the same places.
    before: Vec<LaneRecord>,
    /// Holds the program, which holds its maps.
    link: OwnedFd,
    way: Way,
    missing: Vec<&'static str>,
}

impl Walk {
    /// Makes a walk over a cgroup and all below it.
    ///
    /// # Errors
    /// Why it cannot be had, with the mend.
    pub fn start(root: &Path) -> Result<Self, String> {
        Self::with_slots(root, SLOTS)
    }

    /// The same with room for another number of cgroups.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn with_slots(root: &Path, slots: u32) -> Result<Self, String> {
        let kernel = Kernel::read();
        let walk = Self::on(&kernel, root, slots);
        kernel.let_go();
        walk
    }

    /// The same on a kernel that was read already.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn start_on(kernel: &Kernel, root: &Path) -> Result<Self, String> {
        Self::on(kernel, root, SLOTS)
    }

    /// The same by a way of the caller's, to set one beside the other.
    ///
    /// # Errors
    /// Why it cannot be had this way.
    pub fn by(way: Way, kernel: &Kernel, root: &Path) -> Result<Self, String> {
        Self::load(way, kernel, root, SLOTS)
    }

    fn on(kernel: &Kernel, root: &Path, slots: u32) -> Result<Self, String> {
        Self::load(Way::Descent, kernel, root, slots).or_else(|reason| {
            tracing::debug!(reason, "the kernel itself is to go from cgroup to cgroup");
            Self::load(Way::Iterator, kernel, root, slots)
        })
    }

    fn load(way: Way, kernel: &Kernel, root: &Path, slots: u32) -> Result<Self, String> {
        let object = OBJECT.ok_or(NO_OBJECT)?;
        let LaneFacts { offsets, missing, kfuncs } = kernel.lane.clone()?;
        let patched = match (way, kfuncs) {
            (Way::Iterator, _) => None,
            (Way::Descent, Ok(ids)) => Some(kfunc::with_ids(object, &ids)),
            (Way::Descent, Err(name)) => return Err(format!("this kernel does not have {name}")),
        };
        let mut loader = EbpfLoader::new();
        loader
            .btf(None)
            .override_global("LANE", offsets.as_bytes(), true)
            .map_max_entries("LANE_SLOTS", slots);
        for map in UNUSED_RINGS {
            loader.map_max_entries(map, ring_bytes(0));
        }
        let mut ebpf = loader
            .load(patched.as_ref().map_or(object, |words| words.as_bytes()))
            .map_err(|e| format!("the eBPF object can't be loaded: {}", attach::explain(&e)))?;
        let btf = kernel.btf.as_ref().map_err(Clone::clone)?;
        let (name, order) = way.program();
        let program = ebpf.program_mut(name).ok_or_else(|| attach::no_program(name))?;
        let program = <&mut Iter>::try_from(program).map_err(|e| attach::explain(&e))?;
        program.load("cgroup", btf).map_err(|e| {
            attach::log_verifier(name, &e);
            format!("iter/cgroup: {} (the iterator over cgroups came with Linux 6.1)", attach::explain(&e))
        })?;
        let program = program.fd().map_err(|e| attach::explain(&e))?;
        let directory =
            rustix::fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|e| {
                    format!(
                        "{}: {e}; cgroup_root must name a directory of the cgroup v2 file system",
                        root.display()
                    )
                })?;
        let link = iter::link(program.as_fd(), &iter::over_cgroups(directory.as_fd(), order))
            .map_err(|e| format!("iter/cgroup over {}: {}", root.display(), attach::explain(&e)))?;
        let mut walk = Self {
            head: Shared::of(&take_map(&mut ebpf, "LANE_HEAD")?, 1)?,
            slots: Shared::of(&take_map(&mut ebpf, "LANE_SLOTS")?, slots as usize)?,
            before: Vec::new(),
            link,
            way,
            missing,
        };
        // the first walk proves that it can be done here
        walk.tick(20, |_, _| ())?;
        Ok(walk)
    }

    pub fn way(&self) -> Way {
        self.way
    }

    /// What this kernel does not let the walk read.
    pub fn missing(&self) -> &[&'static str] {
        &self.missing
    }

    /// Goes over all cgroups once and hands over a reading of each, parents first. `period_ms` is the rhythm in force.
    ///
    /// A walk whose root has gone gives nothing.
    ///
    /// # Errors
    /// That the kernel refuses to walk.
    pub fn tick(&mut self, period_ms: u64, mut f: impl FnMut(CgroupId, Reading)) -> Result<Counts, String> {
        self.look(period_ms, LaneDue::default(), |look| f(look.id(), look.reading()))
    }

    /// The same, where nothing is unpacked that is not asked for; with a mark of memory.stat of those that are due.
    ///
    /// # Errors
    /// That the kernel refuses to walk.
    pub fn look(
        &mut self,
        period_ms: u64,
        due: LaneDue,
        mut f: impl FnMut(Look<'_>),
    ) -> Result<Counts, String> {
        self.head.all_mut()[0] = LaneHead { due, met: 0 };
        let walked = walk(self.link.as_fd());
        // also after an error: it has read some
        let met = self.head.all()[0].met;
        let slots = self.slots.all();
        let readings = usize::try_from(met).unwrap_or(usize::MAX).min(slots.len());
        self.before.resize(readings, LaneRecord::default());
        for (record, before) in slots.iter().zip(&mut self.before) {
            let same_since_ns =
                (record.values.as_bytes() == before.values.as_bytes()).then_some(before.ktime_ns);
            if same_since_ns.is_some() {
                before.ktime_ns = record.ktime_ns;
            } else {
                *before = *record;
            }
            f(Look { record, period_ms, same_since_ns });
        }
        walked.map_err(|e| format!("a walk over the cgroups failed: {}", attach::explain(&e)))?;
        let readings = readings as u64;
        Ok(Counts { readings, lost: met - readings })
    }
}

fn reading(ktime_ns: u64, record: &LaneValues, period_ms: u64) -> Reading {
    let mut r = Reading::new(ktime_ns, period_ms);
    let have = |bit: u64| record.have & bit != 0;
    if have(lane::MEMORY) {
        r.read(File::MemoryCurrent);
        r.set(Value::MemoryCurrent, record.memory_bytes);
    }
    if have(lane::SWAP) {
        r.read(File::SwapCurrent);
        r.set(Value::SwapCurrent, record.swap_bytes);
    }
    if have(lane::MAX) {
        r.read(File::MemoryMax);
        if record.max_bytes != UNKNOWN {
            r.set(Value::MemoryMax, record.max_bytes);
        }
    }
    if have(lane::EVENTS) {
        const NAMES: [Value; lane::EVENTS_COUNT] = [
            Value::EventsLow,
            Value::EventsHigh,
            Value::EventsMax,
            Value::EventsOom,
            Value::EventsOomKill,
            Value::EventsOomGroupKill,
        ];
        r.read(File::MemoryEvents);
        for (value, n) in NAMES.into_iter().zip(record.events) {
            r.set(value, n);
        }
        if have(lane::SOCK_THROTTLED) {
            r.set(Value::EventsSockThrottled, record.sock_throttled);
        }
    }
    if have(lane::PIDS) {
        r.read(File::PidsCurrent);
        r.set(Value::PidsCurrent, record.pids);
    }
    if have(lane::CFS) {
        r.set(Value::NrPeriods, u64::from(record.nr_periods));
        r.set(Value::NrThrottled, u64::from(record.nr_throttled));
        r.set(Value::ThrottledUsec, record.throttled_ns / 1000);
    }
    r
}

/// What there is to know; an error when not even a cgroup's id can be read.
pub(super) fn resolve(btf: &Btf) -> Result<LaneFacts, String> {
    if btf.size("bpf_iter__cgroup").is_none() {
        return Err("this kernel has no iterator over cgroups: it came with Linux 6.1".to_owned());
    }
    let member = |of: &str, path: &str| btf.member(of, path).unwrap_or(ABSENT);
    // a pointer has 8 bytes on every machine that we build for
    let css = |id: &str| {
        let at = btf.member("cgroup", "subsys")?.checked_add(btf.enumerator(id)?.checked_mul(8)?);
        at.filter(|_| cfg!(target_pointer_width = "64"))
    };
    // low, high, max, oom, oom_kill, oom_group_kill have stood first and in this order since 5.12; is it so still?
    const ORDER: [&str; lane::EVENTS_COUNT] =
        ["MEMCG_LOW", "MEMCG_HIGH", "MEMCG_MAX", "MEMCG_OOM", "MEMCG_OOM_KILL", "MEMCG_OOM_GROUP_KILL"];
    let in_order = (0u32..).zip(ORDER).all(|(i, name)| btf.enumerator(name) == Some(i));
    let events = btf.member("mem_cgroup", "memory_events");
    let sock = btf
        .enumerator("MEMCG_SOCK_THROTTLED")
        .zip(events)
        .and_then(|(i, at)| at.checked_add(i.checked_mul(8)?));
    let offsets = LaneOffsets {
        cgroup_kn: member("cgroup", "kn"),
        kernfs_id: member("kernfs_node", "id"),
        cgroup_level: member("cgroup", "level"),
        memory_css: css("memory_cgrp_id").unwrap_or(ABSENT),
        pids_css: css("pids_cgrp_id").unwrap_or(ABSENT),
        cpu_css: css("cpu_cgrp_id").unwrap_or(ABSENT),
        css_flags: member("cgroup_subsys_state", "flags"),
        css_cgroup: member("cgroup_subsys_state", "cgroup"),
        css_online: btf.enumerator("CSS_ONLINE").unwrap_or(ABSENT),
        css_visible: btf.enumerator("CSS_VISIBLE").unwrap_or(ABSENT),
        memory_usage: member("mem_cgroup", "memory.usage"),
        memory_max: member("mem_cgroup", "memory.max"),
        swap_usage: member("mem_cgroup", "swap.usage"),
        memory_events: events.filter(|_| in_order).unwrap_or(ABSENT),
        sock_throttled: sock.unwrap_or(ABSENT),
        memory_vmstats: member("mem_cgroup", "vmstats"),
        vmstats_bytes: vmstats_bytes(btf).unwrap_or(0),
        vmstats_updates: member("memcg_vmstats", "stats_updates"),
        pids_counter: member("pids_cgroup", "counter"),
        cfs_nr_periods: member("task_group", "cfs_bandwidth.nr_periods"),
        cfs_nr_throttled: member("task_group", "cfs_bandwidth.nr_throttled"),
        cfs_throttled_time: member("task_group", "cfs_bandwidth.throttled_time"),
        page_size: u32::try_from(rustix::param::page_size()).unwrap_or(4096),
        mem_cgroup_id: btf.struct_id("mem_cgroup").unwrap_or(ABSENT),
        pids_cgroup_id: btf.struct_id("pids_cgroup").unwrap_or(ABSENT),
        task_group_id: btf.struct_id("task_group").unwrap_or(ABSENT),
    };
    let o = &offsets;
    let descent =
        [o.css_flags, o.css_cgroup, o.css_online, o.mem_cgroup_id, o.pids_cgroup_id, o.task_group_id];
    let kfuncs = if descent.contains(&ABSENT) { Err("a struct of its controllers") } else { kfunc::ids(btf) };
    if [offsets.cgroup_kn, offsets.kernfs_id, offsets.cgroup_level].contains(&ABSENT) {
        return Err(
            "this kernel's BTF does not tell where a cgroup keeps its id; please report the kernel's version"
                .to_owned(),
        );
    }
    let missing = [
        ("memory.current", [offsets.memory_css, offsets.memory_usage]),
        ("memory.swap.current", [offsets.memory_css, offsets.swap_usage]),
        ("memory.max", [offsets.memory_css, offsets.memory_max]),
        ("memory.events", [offsets.memory_css, offsets.memory_events]),
        ("pids.current", [offsets.pids_css, offsets.pids_counter]),
        ("cpu.stat nr_periods, nr_throttled", [offsets.cfs_nr_periods, offsets.cfs_nr_throttled]),
        ("cpu.stat throttled_usec", [offsets.cpu_css, offsets.cfs_throttled_time]),
    ];
    let missing =
        missing.into_iter().filter(|(_, needs)| needs.contains(&ABSENT)).map(|(name, _)| name).collect();
    Ok(LaneFacts { offsets, missing, kfuncs })
}

/// `memcg_vmstats` begins with what memory.stat prints, `state` and `events`; behind them stand a cgroup's own or pending ones.
fn vmstats_bytes(btf: &Btf) -> Option<u32> {
    let at = |name| btf.member("memcg_vmstats", name);
    let events = at("events").filter(|_| at("state") == Some(0))?;
    let end =
        ["state_local", "state_pending"].into_iter().filter_map(at).filter(|end| *end > events).min()?;
    usize::try_from(end).is_ok_and(|end| end <= 8 * lane::STAT_WORDS).then_some(end)
}

/// Makes an iterator and reads it to its end, which for a program that prints nothing is one read of 0 bytes.
fn walk(link: BorrowedFd<'_>) -> io::Result<()> {
    let iterator = iter::of(link)?;
    let mut nothing = [0u8; 64];
    while rustix::io::read(&iterator, &mut nothing)? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> LaneValues {
        LaneValues {
            cgroup_id: 7,
            memory_bytes: 4096,
            max_bytes: UNKNOWN,
            events: [1, 2, 3, 4, 5, 6],
            sock_throttled: 9,
            pids: 3,
            throttled_ns: 1999,
            nr_periods: 8,
            nr_throttled: 2,
            ..LaneValues::default()
        }
    }

    #[test]
    fn a_controller_that_is_not_there_leaves_nothing() {
        let r = reading(5000, &record(), 20);
        assert_eq!((r.columns().count(), r.files_read(), r.ktime_ns, r.period_ms), (0, 0, 5000, 20));
    }

    #[test]
    fn each_value_is_told_when_it_was_read() {
        let have = lane::MEMORY | lane::MAX | lane::EVENTS | lane::CFS;
        let r = reading(5000, &LaneValues { have, ..record() }, 20);
        assert_eq!((r.memory_current(), r.memory_max()), (Some(4096), Some(None)));
        assert_eq!((r.get(Value::EventsOomGroupKill), r.get(Value::EventsSockThrottled)), (Some(6), None));
        assert_eq!((r.get(Value::ThrottledUsec), r.get(Value::PidsCurrent)), (Some(1), None));
    }

    #[test]
    fn this_kernel_lets_all_be_read() {
        let Ok(data) = std::fs::read(super::super::offsets::BTF_PATH) else {
            println!("SKIPPED this_kernel_lets_all_be_read: no BTF");
            return;
        };
        match resolve(&Btf::parse(data).expect("BTF")) {
            Ok(facts) => assert!(facts.missing.is_empty(), "{:?}", facts.missing),
            Err(reason) => println!("SKIPPED this_kernel_lets_all_be_read: {reason}"),
        }
    }
}
