/**
 * Kernel and ledger words in plain English. A word that is not known here is shown as it stands (underscores opened),
 * never dropped. Pure. Called by facts, timeline and missing.
 */

/** @type {Record<string, string>} */
const KINDS = {
  oom_kill: 'Out-of-memory kill',
  node_oom: 'Out of memory on the node',
  memory_reclaim: 'Memory reclaim',
  limit_near: 'Memory limit near',
  exit: 'Exit',
  crash: 'Crash',
  killed: 'Kill',
  kill: 'Kill signal sent',
  probe_kill: 'Killed after a failed probe',
  eviction: 'Eviction',
  limit_change: 'Limit changed',
  exec: 'Workload started',
  fork_limit: 'Fork refused',
  cgroup_start: 'Cgroup created',
  cgroup_end: 'Cgroup removed',
  populated: 'Populated changed',
  frozen: 'Frozen changed',
  cpu_throttled: 'CPU throttled',
  psi_stall: 'Pressure stall',
  memory_high: 'memory.high reached',
  memory_max: 'memory.max reached',
  forecast_oom: 'Out of memory forecast',
};

/** @type {Record<string, string>} */
const REASONS = {
  agent_down: 'the agent was not running',
  ring_full: 'the kernel ring buffer was full',
  ring_overflow: 'the kernel ring buffer was full',
  queue_full: 'a queue inside the agent was full',
  rate_limited: 'the kernel-side rate limit cut them',
  rate_limit: 'the kernel-side rate limit cut them',
  undecodable: 'the record from the kernel was not understood',
  burst_budget: 'other bursts had used up the budget',
  process_budget: 'the process tables of the container had had their share of time',
  journal_damaged: 'the journal was damaged',
  burst_rest: 'the container had had its longest burst and rested',
  burst_cool_down: 'the same kind of event had had its burst a moment before',
  budget: 'the CPU budget suppressed them',
  suppressed: 'the trigger budget suppressed them',
  vanished: 'the cgroup was gone before it could be read',
  read_error: 'reading the file failed',
  too_many: 'there were more than one reading may list',
  late: 'the sampler came too late for the tick',
  tick_missed: 'the sampler missed the tick',
  disk_full: 'the disk was full',
  write_error: 'writing failed',
  torn_journal: 'the end of the journal was torn',
  not_in_range: 'they are outside the kept range',
  retention: 'retention had removed them',
};

/** @type {Record<string, string>} */
const TABLES = {
  samples: 'samples', events: 'events', processes: 'process rows', io_devices: 'device rows', metrics: 'metric values', node: 'node rows',
};

/** @type {Record<string, string>} */
const LIMIT_SOURCES = {
  fentry: 'read in the kernel at the instant of the kill',
  global: 'the kernel saw no cgroup limit in this kill',
  events_local: 'inferred from memory.events.local after the kill',
};

/** @type {Record<number, string>} */
const SIGNALS = {
  1: 'SIGHUP', 2: 'SIGINT', 3: 'SIGQUIT', 4: 'SIGILL', 5: 'SIGTRAP', 6: 'SIGABRT', 7: 'SIGBUS', 8: 'SIGFPE', 9: 'SIGKILL', 11: 'SIGSEGV',
  13: 'SIGPIPE', 14: 'SIGALRM', 15: 'SIGTERM', 24: 'SIGXCPU', 25: 'SIGXFSZ', 31: 'SIGSYS',
};

/** @param {string | null | undefined} word */
export function open(word) {
  return (word ?? '').replaceAll('_', ' ');
}

/** @param {string | null | undefined} kind */
export function kindName(kind) {
  if (!kind) return 'Event';
  const text = open(kind);
  return KINDS[kind] ?? text.charAt(0).toUpperCase() + text.slice(1);
}

/** @param {string | null | undefined} source */
export function limitSource(source) {
  return source ? (LIMIT_SOURCES[source] ?? `source: ${open(source)}`) : 'source not recorded';
}

/** @param {number | null | undefined} signal */
export function signalName(signal) {
  if (signal === null || signal === undefined) return '';
  return SIGNALS[signal] ? `${SIGNALS[signal]} (${signal})` : `signal ${signal}`;
}

/**
 * One row of the ledger as a sentence.
 * @param {{table: string, reason: string, rows: number | null, node?: string}} loss
 */
export function lossSentence(loss) {
  const table = TABLES[loss.table] ?? (open(loss.table) || 'rows');
  const many = loss.rows === null || loss.rows === undefined ? 'An unknown number of' : loss.rows.toLocaleString('en-US');
  const what = loss.rows === 1 ? table.replace(/s$/, '') : table;
  const verb = loss.rows === 1 ? 'is' : 'are';
  const reason = REASONS[loss.reason] ?? (loss.reason ? open(loss.reason) : 'reason not recorded');
  return `${many} ${what}${loss.node ? ` of node ${loss.node}` : ''} ${verb} missing: ${reason}.`;
}

/** What a cause of a sample means. @type {Record<string, string>} */
export const CAUSES = {
  base: 'base: every container, all the time',
  history: 'history: from the memory ring, written out because of the event',
  burst: 'burst: this container alone, after the event',
};

/** @param {string | null | undefined} scope */
export function scopeName(scope) {
  return { container: 'container', pod: 'pod', service: 'service', node: 'node' }[scope ?? ''] ?? 'cgroup';
}
