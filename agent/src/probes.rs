//! The kernel's own account of what happened: loads the eBPF programs, attaches them, and turns their records into
//! [`KernelEvent`]s.
//!
//! An edge: what it reads is decoded by pure functions (`decode`, `btf`, `format`), and it decides nothing. It must never
//! panic nor stop the agent; what could not be attached is in the [`Ladder`], what could not be delivered in [`Losses`].
//! `pipeline` starts it, polls [`Probes::fd`] and drains it; `doctor` and the status page show the ladder.
//!
//! The lane's walk over all cgroups ([`Walk`]) is loaded apart from the events, so that neither needs the other.

mod attach;
mod btf;
mod decode;
mod format;
mod hooks;
mod iter;
mod kernel;
mod kfunc;
mod netns;
mod offsets;
mod shared;
mod walk;

pub use kernel::Kernel;
pub use netns::{Namespaces, rung as namespaces_rung};
pub use walk::{Counts, Look, Walk, Way};

use crate::{
    event::{KernelEvent, What},
    names::CgroupId,
};
use agent_ebpf::{kind, reclaim};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, MapError, PerCpuArray, PerCpuHashMap, RingBuf},
};
use decode::ScopeHooks;
use serde::Serialize;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use zerocopy::IntoBytes;

#[cfg(fgm_ebpf)]
static OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fgm-ebpf")));
#[cfg(not(fgm_ebpf))]
static OBJECT: Option<&[u8]> = None;

const NO_OBJECT: &str = "built without the eBPF object: cargo xtask build-ebpf, then build the agent again";

/// Smallest and largest ring; the kernel wants a power of two of pages.
const RING_BYTES: (u32, u32) = (4096, 1 << 28);

/// Most records handed over in one go, so that a flood cannot keep the caller from its other work. More than a ring of
/// the default size holds of any kind but exits; what is left keeps [`Probes::fd`] readable.
const DRAIN_RECORDS: usize = 4096;

/// Entries read of the table of reclaims in one go: twice what it holds.
const MAX_RECLAIMS: usize = 8192;

/// How a program can be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    TpBtf,
    RawTp,
    Tracepoint,
    Fentry,
}

impl Mechanism {
    pub const ALL: [Self; 4] = [Self::TpBtf, Self::RawTp, Self::Tracepoint, Self::Fentry];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::RawTp => "raw_tp",
            Self::Tracepoint => "tracepoint",
            Self::Fentry => "fentry",
        }
    }
}

#[derive(Clone, Debug)]
pub struct ProbeConfig {
    /// Size of the event ring; rounded up to a power of two between 4 KiB and 256 MiB.
    pub ring_bytes: u32,
    /// Whether the programs' own diagnostics go to the log. Off, their code is pruned by the verifier.
    pub log: bool,
    /// Exits delivered per cgroup and second; the rest is counted as cut.
    pub exits_per_second: u32,
    /// The same for kills, execs, populated and frozen, each.
    pub events_per_second: u32,
    /// Cgroups made, and removed, per parent and second; four times that for all together that are nested deeper than a
    /// container.
    pub cgroups_per_second: u32,
    /// Mechanisms not to use, for kernels where one misbehaves, and for tests of the others.
    pub without: Vec<Mechanism>,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self {
            ring_bytes: 1 << 20,
            log: false,
            // A shell that forks without pause makes some 1,000 a second; an incident needs the few around it.
            exits_per_second: 100,
            // A restart loop as fast as a kubelet allows makes one or two of each in a second.
            events_per_second: 20,
            // A kubelet starts tens; beyond this the walk of the tree finds what was not told.
            cgroups_per_second: 1000,
            without: Vec::new(),
        }
    }
}

/// How much of the kernel side is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    FullBpf,
    NoFentry,
    NoBpf,
}

impl Level {
    /// What the agent does on this rung, in words.
    fn works(self) -> &'static str {
        match self {
            Self::FullBpf => {
                "all: samples, kills with victim, trigger and limit, exits, containers of any age"
            }
            Self::NoFentry => {
                "samples, and what the attached hooks report; the limit that a kill hit is inferred from memory.events.local"
            }
            Self::NoBpf => {
                "samples of every container; kills with their cgroup and the limit they hit, from memory.events, without victim and trigger; no exits, no signals"
            }
        }
    }
}

/// What is attached, and how; what is not, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Ladder {
    pub level: Level,
    /// What works on this rung.
    pub works: &'static str,
    pub hooks: Vec<Hook>,
    /// Why there is nothing at all.
    pub reason: Option<String>,
}

impl Ladder {
    /// The lowest rung: not even an attempt at a hook was possible.
    pub fn none(reason: String) -> Self {
        let level = Level::NoBpf;
        Self { level, works: level.works(), hooks: Vec::new(), reason: Some(reason) }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Hook {
    /// The event it serves, as in the `events` table.
    pub event: &'static str,
    /// The kernel's name of the tracepoint or function.
    pub hook: &'static str,
    pub mechanism: Option<&'static str>,
    /// Why it, or a better mechanism than the one in force, could not be attached.
    pub error: Option<String>,
    /// What is lost without it.
    pub costs: &'static str,
}

/// Records that did not arrive, since the programs were loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Losses {
    pub kinds: Vec<KindLoss>,
    /// Records that came but made no sense to this version.
    pub undecodable: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KindLoss {
    pub kind: &'static str,
    /// The ring was full.
    pub lost: u64,
    /// Held back by the rate limit.
    pub cut: u64,
    pub lost_per_cpu: Vec<u64>,
    pub cut_per_cpu: Vec<u64>,
}

/// Direct reclaim in one cgroup since its first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReclaimTotals {
    /// Reclaims begun.
    pub count: u64,
    /// Of those that have ended.
    pub total_ns: u64,
    pub longest_ns: u64,
}

fn sum<'a>(per_cpu: impl Iterator<Item = &'a reclaim::Totals>) -> ReclaimTotals {
    per_cpu.fold(ReclaimTotals::default(), |all, cpu| ReclaimTotals {
        count: all.count + cpu[reclaim::COUNT],
        total_ns: all.total_ns + cpu[reclaim::TOTAL_NS],
        longest_ns: all.longest_ns.max(cpu[reclaim::LONGEST_NS]),
    })
}

#[derive(Debug, thiserror::Error)]
#[error("signals to pid {pid} will not be told: the kernel's table of inits takes no more: {reason}")]
pub struct InitsFull {
    pid: u32,
    reason: String,
}

/// The loaded and attached programs. Dropping it detaches them.
pub struct Probes {
    ring: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
    cut: PerCpuArray<MapData, u64>,
    inits: HashMap<MapData, u32, u64>,
    reclaims: PerCpuHashMap<MapData, u64, reclaim::Totals>,
    log: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    scope: ScopeHooks,
    undecodable: u64,
    namespaces: Result<Arc<Namespaces>, String>,
    /// Holds the programs and their links.
    _ebpf: Ebpf,
}

/// Whether this agent was built with the kernel programs in it.
pub fn embedded() -> bool {
    OBJECT.is_some()
}

/// Loads and attaches all that this kernel allows. Never panics; what could not be attached is in the ladder with the
/// reason and the mend. `None` when nothing could.
pub fn start(config: &ProbeConfig) -> (Option<Probes>, Ladder) {
    let kernel = Kernel::read();
    let started = start_on(&kernel, config);
    kernel.let_go();
    started
}

/// The same on a kernel that was read already.
pub fn start_on(kernel: &Kernel, config: &ProbeConfig) -> (Option<Probes>, Ladder) {
    match try_start(kernel, config) {
        Ok((probes, ladder)) if ladder.level != Level::NoBpf => (Some(probes), ladder),
        Ok((_, ladder)) => (None, ladder),
        Err(reason) => (None, Ladder::none(reason)),
    }
}

fn try_start(kernel: &Kernel, config: &ProbeConfig) -> Result<(Probes, Ladder), String> {
    let object = OBJECT.ok_or(NO_OBJECT)?;
    let facts = &kernel.facts;
    let settings = agent_ebpf::Settings {
        exits_per_second: config.exits_per_second,
        events_per_second: config.events_per_second,
        cgroups_per_second: config.cgroups_per_second,
        ..facts.settings
    };
    let log_level = if config.log { aya_log::Level::Debug as u8 } else { 0 };
    let mut loader = EbpfLoader::new();
    loader
        // Rust programs carry no relocations against the kernel's BTF, and its copy is large.
        .btf(None)
        .override_global("OFFSETS", facts.offsets.as_bytes(), true)
        .override_global("FORMATS", facts.formats.as_bytes(), true)
        .override_global("SETTINGS", settings.as_bytes(), true)
        .override_global(aya_log::LEVEL, &log_level, true)
        .map_max_entries("EVENTS", ring_bytes(config.ring_bytes));
    if !config.log {
        loader.map_max_entries("AYA_LOGS", ring_bytes(0));
    }
    let mut ebpf = loader
        .load(object)
        .map_err(|e| format!("the eBPF object can't be loaded: {}", attach::explain(&e)))?;
    drop(loader);
    let log = if config.log { Some(logger(&mut ebpf)?) } else { None };
    let ring = RingBuf::try_from(take_map(&mut ebpf, "EVENTS")?).map_err(|e| attach::explain(&e))?;
    let lost = PerCpuArray::try_from(take_map(&mut ebpf, "LOST")?).map_err(|e| attach::explain(&e))?;
    let cut = PerCpuArray::try_from(take_map(&mut ebpf, "CUT")?).map_err(|e| attach::explain(&e))?;
    let inits = HashMap::try_from(take_map(&mut ebpf, "INITS")?).map_err(|e| attach::explain(&e))?;
    let reclaims =
        PerCpuHashMap::try_from(take_map(&mut ebpf, "RECLAIMS")?).map_err(|e| attach::explain(&e))?;
    let (hooks, scope) = attach::attach_all(&mut ebpf, kernel, &config.without);
    let namespaces = Namespaces::load(&mut ebpf, kernel).map(Arc::new);
    let ladder = ladder(hooks, scope);
    let probes =
        Probes { ring, lost, cut, inits, reclaims, log, scope, undecodable: 0, namespaces, _ebpf: ebpf };
    Ok((probes, ladder))
}

fn ladder(hooks: Vec<Hook>, scope: ScopeHooks) -> Ladder {
    let attached = hooks.iter().any(|hook| hook.mechanism.is_some());
    let level = match (attached, scope) {
        (false, _) => Level::NoBpf,
        (true, ScopeHooks::None) => Level::NoFentry,
        (true, _) => Level::FullBpf,
    };
    let reason = (!attached).then(|| {
        let first = hooks.iter().find_map(|hook| hook.error.as_deref());
        format!("no hook could be attached; {}", first.unwrap_or("the kernel gave no reason"))
    });
    Ladder { level, works: level.works(), hooks, reason }
}

fn take_map(ebpf: &mut Ebpf, name: &str) -> Result<aya::maps::Map, String> {
    ebpf.take_map(name).ok_or_else(|| format!("the embedded eBPF object has no map {name}: {NO_OBJECT}"))
}

fn logger(ebpf: &mut Ebpf) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, String> {
    aya_log::EbpfLogger::init(ebpf).map_err(|e| format!("the programs' log can't be read: {e}"))
}

fn ring_bytes(wanted: u32) -> u32 {
    let page = u32::try_from(rustix::param::page_size()).unwrap_or(RING_BYTES.0);
    wanted.clamp(page.max(RING_BYTES.0), RING_BYTES.1).next_power_of_two()
}

impl Probes {
    /// Readable, to poll(2), when events wait.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// What tells network namespaces.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub fn namespaces(&self) -> Result<Arc<Namespaces>, String> {
        self.namespaces.clone()
    }

    /// Hands over the events that wait, oldest first, at most [`DRAIN_RECORDS`] of them. Never blocks.
    pub fn drain(&mut self, mut f: impl FnMut(KernelEvent)) {
        self.drain_while(|event| {
            f(event);
            true
        });
    }

    /// [`Probes::drain`] until `f` wants no more. Whether nothing waits now.
    pub fn drain_while(&mut self, mut f: impl FnMut(KernelEvent) -> bool) -> bool {
        let mut wants_more = true;
        let mut taken = 0;
        while wants_more && taken < DRAIN_RECORDS {
            let Some(record) = self.ring.next() else { break };
            taken += 1;
            let decoded = decode::decode(&record, self.scope);
            drop(record);
            match decoded {
                Ok(mut event) => {
                    self.add_totals(&mut event);
                    wants_more = f(event);
                }
                Err(_) => self.undecodable += 1,
            }
        }
        self.flush_log();
        wants_more && taken < DRAIN_RECORDS
    }

    /// Names a container's init that has no pid namespace of its own, by its pid in the agent's, so that signals to it are
    /// told as kills and its execs are. The kernel side forgets it when it exits.
    pub fn set_init(&mut self, pid: u32, container: CgroupId) -> Result<(), InitsFull> {
        match self.inits.insert(pid, container.0, 0) {
            Ok(()) => Ok(()),
            Err(e) => Err(InitsFull { pid, reason: attach::explain(&e) }),
        }
    }

    /// Forgets an init named by [`Probes::set_init`]; one that is not there is no error.
    pub fn clear_init(&mut self, pid: u32) {
        let _: Result<(), MapError> = self.inits.remove(&pid);
    }

    /// Totals of direct reclaim for each cgroup that had any and is still there. One may come twice.
    pub fn reclaim(&self, mut f: impl FnMut(CgroupId, ReclaimTotals)) {
        // When the kernel removes an entry at which the walk stands, the walk begins again.
        for (id, values) in self.reclaims.iter().take(MAX_RECLAIMS).flatten() {
            f(CgroupId(id), sum(values.iter()));
        }
    }

    fn add_totals(&self, event: &mut KernelEvent) {
        if let What::Reclaim(reclaim) = &mut event.what
            && let Ok(values) = self.reclaims.get(&reclaim.cgroup_id.0, 0)
        {
            let totals = sum(values.iter());
            reclaim.count = totals.count;
            reclaim.total_ns = totals.total_ns;
            reclaim.longest_ns = totals.longest_ns;
        }
    }

    /// What did not arrive so far. Counters of a map that can't be read are left out.
    pub fn losses(&mut self) -> Losses {
        self.flush_log();
        let kinds = [
            (kind::OOM_KILL, "oom_kill"),
            (kind::CGROUP_START, "cgroup_start"),
            (kind::CGROUP_END, "cgroup_end"),
            (kind::EXIT, "exit"),
            (kind::OOM_SCOPE, "oom_scope"),
            (kind::KILL, "kill"),
            (kind::EXEC, "exec"),
            (kind::MEMORY_RECLAIM, "memory_reclaim"),
            (kind::POPULATED, "populated"),
            (kind::FROZEN, "frozen"),
        ];
        let per_cpu = |map: &PerCpuArray<MapData, u64>, kind: u32| -> Vec<u64> {
            map.get(&kind, 0).map(|values| values.iter().copied().collect()).unwrap_or_default()
        };
        let kinds = kinds
            .into_iter()
            .map(|(kind, name)| {
                let (lost, cut) = (per_cpu(&self.lost, kind), per_cpu(&self.cut, kind));
                KindLoss {
                    kind: name,
                    lost: lost.iter().sum(),
                    cut: cut.iter().sum(),
                    lost_per_cpu: lost,
                    cut_per_cpu: cut,
                }
            })
            .collect();
        Losses { kinds, undecodable: self.undecodable }
    }

    fn flush_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_sizes_are_powers_of_two_within_bounds() {
        assert_eq!(ring_bytes(0), 4096);
        assert_eq!(ring_bytes(5000), 8192);
        assert_eq!(ring_bytes(1 << 20), 1 << 20);
        assert_eq!(ring_bytes(u32::MAX), 1 << 28);
    }

    #[test]
    fn the_configuration_names_the_same_mechanisms() {
        assert_eq!(crate::config::Probes::MECHANISMS, Mechanism::ALL.map(Mechanism::as_str));
    }

    #[test]
    fn without_any_hook_the_level_is_no_bpf_and_says_why() {
        let hook = Hook {
            event: "exit",
            hook: "sched_process_exit",
            mechanism: None,
            error: Some("tp_btf: no BTF".into()),
            costs: "",
        };
        let ladder = ladder(vec![hook.clone()], ScopeHooks::None);
        assert_eq!(ladder.level, Level::NoBpf);
        assert!(ladder.reason.is_some_and(|reason| reason.contains("no BTF")));
        let attached = Hook { mechanism: Some("tp_btf"), error: None, ..hook };
        let ladder = super::ladder(vec![attached], ScopeHooks::None);
        assert_eq!((ladder.level, ladder.reason), (Level::NoFentry, None));
    }
}
