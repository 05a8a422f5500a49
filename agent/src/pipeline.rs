//! The agent's run: sets everything up, turns the one loop that owns the state, and takes it down again.
//!
//! Order of the set-up: the machine is looked at, the store opened, the recorder proved, the probes attached, then the
//! tree is walked and sampling begins. The loop waits in `poll` for the kernel's ring, for other threads or for the next
//! instant at which something is due; it never waits for disk, network or Kubernetes.

mod bursts;
mod early;
mod handover;
mod inbox;
mod inits;
mod kinds;
mod lane;
mod limits;
mod names;
mod node;
mod notices;
mod outage;
mod react;
mod sealer;
mod shared;
mod source;
mod spent;
mod state;
mod tables;
mod targets;
#[cfg(test)]
mod tests;
mod time;
mod warnings;

use crate::accumulator::NodeNames;
use crate::clock;
use crate::config::Config;
use crate::discovery::{Rules, Tree};
use crate::export;
use crate::kubernetes::Kubernetes;
use crate::machine::Machine;
use crate::probes::{self, Kernel, Ladder, Mechanism, Namespaces, Probes, ReclaimTotals};
use crate::recorder;
use crate::sampler::Sampler;
use crate::ship::{self, Ship};
use crate::store::{Store, Writer};
use crate::upkeep::Upkeep;
use crate::viewer;
use anyhow::Context as _;
use inbox::{Inbox, Input};
use lane::Lane;
use notices::Notices;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sealer::{Sealer, Setup};
use serde_json::json;
use shared::Shared;
use source::LiveSource;
use state::State;
use std::sync::Arc;

/// The loop looks up at least this often, to publish its status and to see a request whose wake was lost.
/// Reacting to events, before the clock has its turn.
const REACT_FOR_NS: u64 = 10_000_000;
/// Reacting to what waits when the run ends.
const LAST_WORDS_NS: u64 = 5_000_000_000;
const LONGEST_WAIT_NS: u64 = 1_000_000_000;
const STATUS_EVERY_NS: u64 = 1_000_000_000;
const RECLAIMS_EVERY_NS: u64 = 10 * STATUS_EVERY_NS;
/// Names of an incident's rows must not hold what separates parts of an id or of a path.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting, with the mend; or that the last rows could not be written.
pub fn run(mut config: Config) -> anyhow::Result<()> {
    let machine = Machine::look(&config.cgroup_root)?;
    for what in &machine.lacks {
        tracing::warn!("{what}");
    }
    let is_host_name = config.node.is_empty();
    if is_host_name {
        config.node.clone_from(&machine.host);
    }
    let names = NodeNames {
        cluster: Some(config.cluster.clone()).filter(|c| !c.is_empty()),
        node: plain(&config.node),
        boot_id: machine.boot_id.clone(),
    };
    let rules = Rules::new(&config.sampling.include, &config.sampling.exclude)?;
    let mut tree = Tree::new(&config.cgroup_root, rules, config.sampling.max_cgroups)?;
    let store = Store::open(&config.data_dir)?;
    let kubernetes = Kubernetes::start(&config, is_host_name);
    store.set_pods(kubernetes.pods.clone());
    let series = recorder::install()?;
    let Means { mut probes, namespaces, lane, notices, ladder, has_events } =
        Means::find(&config, &mut tree)?;
    log_ladder(&ladder);

    let shared = Arc::new(Shared::default());
    // those of earlier runs, oldest first
    match export::incidents(&store.view(), Vec::new()) {
        Ok(earlier) => earlier.into_iter().rev().for_each(|incident| shared.announce(incident)),
        Err(problem) => tracing::warn!(%problem, "earlier incidents cannot be listed"),
    }
    let outage = outage::before(&store.view(), &machine.boot_id, config.sampling.base_period_ms);
    store.reserve(config.retention.reserve_bytes);
    let writer = Writer::start(store.clone(), &machine.boot_id)?;
    let metadata = metadata(&config, &names, &machine, &ladder, lane.pace.period_ms());
    let sealer = Sealer::start(Setup {
        writer,
        names: names.clone(),
        metadata,
        shared: shared.clone(),
        pods: kubernetes.pods.clone(),
        unshipped: ship::told(&store),
    })
    .context("cannot start the sealer thread")?;
    let (outside, inbox) = inbox::open().context("cannot make an eventfd")?;
    let closed = shared.clone();
    let ship = Ship::start(&store, &config, Box::new(move |wanted| closed.incidents_that(wanted)))
        .context("cannot start the ship thread")?;
    let source = Arc::new(LiveSource::new(
        shared.clone(),
        outside.clone(),
        series.clone(),
        store.clone(),
        names.clone(),
        kubernetes.view(),
        ship.status(),
    ));
    let server = viewer::serve(source, store.clone(), &config)?;
    let upkeep = Upkeep::start(store.clone(), &config, kubernetes.pods.clone())
        .context("cannot start the upkeep thread")?;
    stop_on_signals(outside).context("cannot listen for signals")?;

    let mut sampler = Sampler::new(&config.cgroup_root, &series, machine.descriptor_limit);
    sampler.keep_at_most(config.sampling.max_descriptors);
    let mut state = State::new(config, names, tree, sampler, series.clone(), lane, has_events);
    state.set_moving(sealer.moving());
    if kubernetes.is_running() {
        state.set_pods(kubernetes.pods.clone());
    }
    state.set_notices(notices);
    if let Some(namespaces) = namespaces {
        state.network.ask(move |pid| namespaces.number(pid));
    }
    if let Some(outage) = outage {
        state.note_outage(outage);
    }
    let about = About { machine, ladder, started_ns: clock::ktime_ns(), shared };
    tracing::info!(listen = %server.address(), data_dir = %store.dir().display(), "recording");
    let outcome = turn(&mut state, probes.as_mut(), &inbox, &sealer, &about);

    // whatever ended the loop, the rows are written
    tracing::info!("closing");
    server.stop();
    upkeep.stop();
    ship.stop();
    kubernetes.stop();
    let _ = sealer.give(state.finish());
    sealer.finish().context("the last rows")?;
    tracing::info!("closed");
    outcome
}

/// What the agent can do its work with on this machine.
struct Means {
    probes: Option<Probes>,
    namespaces: Option<Arc<Namespaces>>,
    lane: Lane,
    notices: Notices,
    ladder: Ladder,
    has_events: bool,
}

impl Means {
    fn find(config: &Config, tree: &mut Tree) -> anyhow::Result<Self> {
        let kernel = config.probes.enabled.then(Kernel::read);
        let (probes, mut ladder) = start_probes(config, kernel.as_ref());
        let lane = Lane::start(config, kernel.as_ref());
        if let Some(kernel) = kernel {
            kernel.let_go();
        }
        let lane = lane?;
        let has_events = ladder.hooks.iter().any(|h| h.event == "cgroup_start" && h.mechanism.is_some());
        let notices = Notices::start(&ladder, tree);
        ladder.hooks.extend(notices.rungs());
        ladder.hooks.push(lane.rung());
        let namespaces = match &probes {
            Some(probes) => probes.namespaces(),
            None => Err("it is loaded with the programs of the events, and they are not".to_owned()),
        };
        ladder.hooks.push(probes::namespaces_rung(&namespaces));
        Ok(Self { probes, namespaces: namespaces.ok(), lane, notices, ladder, has_events })
    }
}

/// The ladder that an agent would have here: all is loaded and attached as at its start, and let go of again.
///
/// # Errors
/// What keeps an agent from starting.
pub fn ladder(config: &Config) -> anyhow::Result<Ladder> {
    let rules = Rules::new(&config.sampling.include, &config.sampling.exclude)?;
    let mut tree = Tree::new(&config.cgroup_root, rules, config.sampling.max_cgroups)?;
    Ok(Means::find(config, &mut tree)?.ladder)
}

fn start_probes(config: &Config, kernel: Option<&Kernel>) -> (Option<Probes>, Ladder) {
    let Some(kernel) = kernel else {
        return (None, Ladder::none("probes.enabled is false in the configuration".to_owned()));
    };
    let wanted = probes::ProbeConfig {
        ring_bytes: config.probes.ring_bytes,
        log: config.probes.log,
        without: Mechanism::ALL
            .into_iter()
            .filter(|m| config.probes.without.iter().any(|name| name == m.as_str()))
            .collect(),
        ..probes::ProbeConfig::default()
    };
    probes::start_on(kernel, &wanted)
}

fn log_ladder(ladder: &Ladder) {
    if let Some(reason) = &ladder.reason {
        tracing::warn!(reason, works = ladder.works, "no kernel probes");
    }
    for hook in &ladder.hooks {
        match (hook.mechanism, &hook.error) {
            (Some(mechanism), None) => tracing::info!(hook = hook.hook, mechanism, "probe attached"),
            (Some(mechanism), Some(error)) => {
                tracing::info!(hook = hook.hook, mechanism, error, "probe attached, not by the best means");
            }
            (None, error) => {
                let error = error.as_deref().unwrap_or("unknown");
                tracing::warn!(hook = hook.hook, error, costs = hook.costs, "probe not attached");
            }
        }
    }
}

/// What each segment of the run says about it.
fn metadata(
    config: &Config,
    names: &NodeNames,
    machine: &Machine,
    ladder: &Ladder,
    lane_period_ms: u64,
) -> Vec<(String, String)> {
    let text = |v: serde_json::Value| v.to_string();
    let hz = |period_ms: u64| text(json!(1000.0 / f64::from(u32::try_from(period_ms).unwrap_or(u32::MAX))));
    [
        ("fgm.agent_version", env!("CARGO_PKG_VERSION").to_owned()),
        ("fgm.node", names.node.clone()),
        ("fgm.cluster", names.cluster.clone().unwrap_or_default()),
        ("fgm.boot_id", names.boot_id.clone()),
        ("fgm.kernel", machine.kernel.clone()),
        ("fgm.cgroup_root", config.cgroup_root.display().to_string()),
        ("fgm.ladder", text(json!(ladder))),
        ("fgm.base_hz", hz(config.sampling.base_period_ms)),
        ("fgm.lane_hz", hz(lane_period_ms)),
        ("fgm.burst_hz", hz(config.trigger.oom_kill.burst_period_ms)),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .into()
}

fn stop_on_signals(outside: inbox::Outside) -> std::io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
    std::thread::Builder::new().name("fgm-signals".to_owned()).spawn(move || {
        if signals.forever().next().is_some() {
            outside.send_surely(Input::Shutdown);
        }
    })?;
    Ok(())
}

/// What the status page tells besides the state.
struct About {
    machine: Machine,
    ladder: Ladder,
    started_ns: u64,
    shared: Arc<Shared>,
}

/// Direct reclaim of all cgroups that are there, as the kernel's table has it. Read now and then: a table of thousands
/// takes milliseconds.
#[derive(Clone, Copy, Default)]
struct Reclaims {
    next_ns: u64,
    cgroups: u64,
    totals: ReclaimTotals,
}

impl Reclaims {
    fn look(&mut self, probes: &Probes, now: u64) {
        if now < self.next_ns {
            return;
        }
        *self = Self { next_ns: now + RECLAIMS_EVERY_NS, ..Self::default() };
        probes.reclaim(|_, of| {
            self.cgroups += 1;
            self.totals.count += of.count;
            self.totals.total_ns += of.total_ns;
            self.totals.longest_ns = self.totals.longest_ns.max(of.longest_ns);
        });
    }
}

fn turn(
    state: &mut State,
    mut probes: Option<&mut Probes>,
    inbox: &Inbox,
    sealer: &Sealer,
    about: &About,
) -> anyhow::Result<()> {
    let mut next_status = 0;
    let mut reclaims = Reclaims::default();
    loop {
        let mut is_drained = drain(state, probes.as_deref_mut());
        let now = clock::ktime_ns();
        state.heed(now);
        if let Some(job) = state.tick(now) {
            sealer.give(job)?;
        }
        if state.has_vanished() {
            // the kernel's last word about a cgroup was said before its files went away
            is_drained = drain(state, probes.as_deref_mut());
            if is_drained {
                state.forget_vanished();
            }
        }
        name_inits(state, probes.as_deref_mut());
        if now >= next_status {
            next_status = now + STATUS_EVERY_NS;
            if is_drained {
                // what the counters saw may still be waiting to be told by the kernel
                state.settle_kills(now);
            }
            if let Some(probes) = &probes {
                reclaims.look(probes, now);
            }
            publish(state, probes.as_deref_mut(), reclaims, about);
        }
        while let Ok(input) = inbox.inputs.try_recv() {
            match input {
                Input::Rows { table, from_us, reply } => {
                    let _ = reply.send(state.rows(table, from_us));
                }
                Input::Shutdown => {
                    // what the kernel told until now belongs to this run
                    let until = clock::ktime_ns() + LAST_WORDS_NS;
                    while !drain(state, probes.as_deref_mut()) && clock::ktime_ns() < until {}
                    state.forget_vanished();
                    return Ok(());
                }
            }
        }
        if is_drained {
            wait(state, probes.as_deref(), inbox)?;
        }
    }
}

/// Tells the kernel side of inits that it cannot know by a pid namespace, so that signals to them are told.
fn name_inits(state: &mut State, probes: Option<&mut Probes>) {
    let inits = state.inits.take_news();
    let Some(probes) = probes else { return };
    for (pid, container) in inits {
        if let Err(error) = probes.set_init(pid, container) {
            tracing::debug!(%error, "an init is not watched");
        }
    }
}

/// Reacts to what the kernel told, for [`REACT_FOR_NS`] at the most: a storm of events in one pod must not hold up the lane of all
/// others, which is the evidence of what comes next. Whether nothing waits now.
fn drain(state: &mut State, probes: Option<&mut Probes>) -> bool {
    let Some(probes) = probes else { return true };
    let until = clock::ktime_ns() + REACT_FOR_NS;
    let mut heard_ns = 0;
    let is_drained = probes.drain_while(|event| {
        heard_ns = event.ktime_ns;
        state.react(event);
        state.lane_if_due();
        clock::ktime_ns() < until
    });
    state.heard_ns = (!is_drained).then_some(heard_ns);
    is_drained
}

fn wait(state: &State, probes: Option<&Probes>, inbox: &Inbox) -> anyhow::Result<()> {
    let now = clock::ktime_ns();
    let ns = state.next_due().saturating_sub(now).min(LONGEST_WAIT_NS);
    if ns == 0 {
        return Ok(());
    }
    let timeout =
        Timespec { tv_sec: (ns / 1_000_000_000).cast_signed(), tv_nsec: (ns % 1_000_000_000).cast_signed() };
    let inbox_fd = inbox.fd();
    let mut fds = vec![PollFd::from_borrowed_fd(inbox_fd, PollFlags::IN)];
    if let Some(probes) = probes {
        fds.push(PollFd::from_borrowed_fd(probes.fd(), PollFlags::IN));
    }
    fds.extend(state.notices.fd(now).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(e) => return Err(e).context("poll"),
    }
    inbox.clear();
    Ok(())
}

fn publish(state: &mut State, probes: Option<&mut Probes>, reclaims: Reclaims, about: &About) {
    let losses = probes.map(Probes::losses);
    if let Some(losses) = &losses {
        state.note_losses(losses);
    }
    let now = clock::ktime_ns();
    let running_s = (now - about.started_ns) / 1_000_000_000;
    let cpu = clock::process_cpu_ns();
    metrics::gauge!("fgm_followed_cgroups")
        .set(f64::from(u32::try_from(state.tree.followed()).unwrap_or(u32::MAX)));
    metrics::counter!("fgm_cpu_nanoseconds_total").absolute(cpu);
    let account = state.ledger.account();
    for (table, reason, rows) in account.losses() {
        let reason = reason.to_owned();
        metrics::counter!("fgm_lost_rows_total", "table" => table.as_str(), "reason" => reason)
            .absolute(rows);
    }
    let (kept, may, hot) = state.sampler.descriptors();
    let unnamed = state.unnamed(now);
    about.shared.set_status(json!({
        "agent_version": env!("CARGO_PKG_VERSION"),
        "node": state.names.node,
        "cluster": state.names.cluster,
        "boot_id": state.names.boot_id,
        "kernel": about.machine.kernel,
        "cgroup_root": state.config.cgroup_root.display().to_string(),
        "ladder": about.ladder,
        "probe_losses": losses,
        "reclaim": {
            "cgroups": reclaims.cgroups,
            "count": reclaims.totals.count,
            "stalled_ns": reclaims.totals.total_ns,
            "longest_ns": reclaims.totals.longest_ns,
        },
        "machine_lacks": about.machine.lacks,
        "running_s": running_s,
        "cpu_ns": cpu,
        "cost": state.spent.status(cpu, running_s, state.tree.followed()),
        "rates": {
            "base_period_ms": state.config.sampling.base_period_ms,
            "lane_period_ms": state.lane.pace.period_ms(),
            "burst_period_ms": state.config.trigger.oom_kill.burst_period_ms,
        },
        "cgroups": {
            "known": state.tree.known(),
            "followed": state.tree.followed(),
            "waiting": state.waiting(),
            "cut": state.tree.cut,
        },
        "unnamed": unnamed,
        "descriptors": {
            "kept": kept,
            "limit": may,
            "hot_limit": hot,
            "opened": state.sampler.opened,
            "is_short": state.sampler.is_short(),
        },
        "files": {
            "unparsed": state.sampler.faults.unparsed,
            "unread": state.sampler.faults.unread,
            "memory_stat_taken_over": state.sampler.taken_over,
        },
        "node_files": {"unparsed": state.node.faults.unparsed, "unread": state.node.faults.unread},
        "process_files": {"unparsed": state.process_faults},
        "network_files": {"unparsed": state.network.faults.unparsed, "unread": state.network.faults.unread},
        "bursts": {
            "running": state.trigger.running(),
            "rows_per_second": state.trigger.rows_per_second(),
            "budget_rows_per_second": state.burst_cost.rows_per_second(),
        },
        "events_outside": state.outside,
        "notices": state.notices.status(),
        "lane": state.lane.status(state.rings()),
        "lane_late_max_ms": state.lane_late_max_ns / 1_000_000,
        "rows_in_memory": state.pending.rows(),
        "bytes_in_memory": state.pending.bytes(),
        "clock_offset_ns": state.offset.as_ns(),
        "clock_steps": state.clock_steps.status(),
        "ledger": account.to_json(),
    }));
}
