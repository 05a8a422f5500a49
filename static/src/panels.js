/**
 * Which columns make which line in which panel. Pure: from one cgroup's samples to lines and limits, no drawing.
 * It must never put two cgroups into one line, and never draw a counter as it stands. Called by charts.
 *
 * @import { Group } from './data.js'
 * @import { Line, Readings } from './series.js'
 *
 * @typedef {object} Trace
 * @property {string} key
 * @property {string} label
 * @property {string} color name of a CSS variable, without the dashes
 * @property {number[]} [dash]
 * @property {boolean} [fill]
 * @property {number} [width]
 * @property {'y' | 'share'} [scale]
 * @property {Line} line
 *
 * @typedef {object} Step a limit
 * @property {string} key
 * @property {string} label
 * @property {Readings} readings
 *
 * @typedef {object} Panel
 * @property {string} id
 * @property {string} title
 * @property {string} hint what is drawn, in one line
 * @property {'bytes' | 'millicores' | 'percent' | 'bytesPerSecond' | 'count' | 'perSecond' | 'milliseconds'} unit
 * @property {number} height
 * @property {Trace[]} traces
 * @property {Step[]} steps
 */

import * as series from './series.js';

/** A share of fewer scheduling periods than this would jump between 0 and 100 %. */
const LEAST_PERIODS = 5;

/** @param {Group} group @param {string} name @returns {Readings} */
function read(group, name) {
  // A line that the agent drew stands for its readings: only limits are read so, and those are as they were read.
  if (group.drawn) return { ...(group.drawn[name] ?? series.NOTHING), periodMs: new Float64Array(group.drawn[name]?.t.length ?? 0) };
  return series.readings(group, group.columns[name]);
}

/** A gauge, as a line. @param {Group} group @param {string} name @param {number | null} eventUs @returns {Line} */
function levelOf(group, name, eventUs) {
  return group.drawn ? series.stopAt(group.drawn[name] ?? series.NOTHING, eventUs) : series.gauge(read(group, name), eventUs);
}

/** A counter, as a rate. @param {Group} group @param {string} name @param {number} factor @returns {Line} */
function speedOf(group, name, factor) {
  if (!group.drawn) return series.rate(read(group, name), factor);
  const drawn = group.drawn[name] ?? series.NOTHING;
  return { ...drawn, v: drawn.v.map((v) => v * factor) };
}

/** One counter for each unit of another. @param {Group} group @param {string} over @param {string} under */
function shareOf(group, over, under) {
  if (!group.drawn) return series.share(read(group, over), read(group, under), 100, LEAST_PERIODS);
  return series.ratio(group.means?.[over], group.means?.[under], 100, LEAST_PERIODS);
}

/** @param {number} from @param {number} to @param {number} value @returns {Readings} */
function constant(from, to, value) {
  return { t: Float64Array.of(from, to), v: Float64Array.of(value, value), cause: new Uint8Array(2), periodMs: Float64Array.of(1000, 1000) };
}

/**
 * The limits that bind this cgroup's memory: its own, and the one that the incident names if that is another.
 * @param {Group} group
 * @param {any} incident
 * @param {(id: string) => string} nameOf
 * @returns {Step[]}
 */
function memoryLimits(group, incident, nameOf) {
  /** @type {Step[]} */
  const steps = [];
  const own = read(group, 'memory_max');
  const limit = incident?.limit;
  const named = limit && typeof limit.max_bytes === 'number' && group.t.length > 0;
  const mine = named && String(limit.cgroup_id) === group.id;
  if (own.t.length) steps.push({ key: 'memory_max', label: 'limit', readings: own });
  else if (mine) steps.push({ key: 'memory_max', label: 'limit at the event', readings: constant(group.t[0], group.t[group.t.length - 1], limit.max_bytes) });
  const above = named && !mine && limit.cgroup_path && group.path.startsWith(`${limit.cgroup_path.replace(/\/$/, '')}/`);
  if (above) {
    steps.push({ key: 'incident_limit', label: `limit of ${nameOf(String(limit.cgroup_id))}`, readings: constant(group.t[0], group.t[group.t.length - 1], limit.max_bytes) });
  }
  return steps;
}

/** @param {Group} group @returns {Step[]} */
function cpuLimit(group) {
  const quota = read(group, 'cpu_max_quota_usec');
  const period = read(group, 'cpu_max_period_usec');
  if (!quota.t.length || !period.t.length) return [];
  const per = series.carryForward(period, quota.t);
  return [{ key: 'cpu_max', label: 'limit', readings: { ...quota, v: quota.v.map((q, i) => (q / per[i]) * 1000) } }];
}

/** @param {Trace[]} traces */
function drawable(traces) {
  return traces.filter((trace) => trace.line.t.length > 0);
}

/** @param {Step[]} steps */
function limited(steps) {
  return steps.filter((step) => step.readings.t.length > 0).map((step) => ({ ...step, readings: series.changes(step.readings) }));
}

/**
 * @param {Group} group
 * @param {any} incident
 * @param {(id: string) => string} nameOf
 * @returns {Panel[]}
 */
export function panelsOf(group, incident, nameOf) {
  const level = (/** @type {string} */ name) => levelOf(group, name, incident?.ts_us ?? null);
  const speed = (/** @type {string} */ name, /** @type {number} */ factor) => speedOf(group, name, factor);
  const kernel = group.drawn?.memory_stat_kernel || group.columns.memory_stat_kernel?.some((v) => !Number.isNaN(v)) ? 'memory_stat_kernel' : 'memory_stat_slab';
  // A counter of microseconds: a second's rise over 1000 is thousandths of a core, over 10,000 per cent of the time.
  const MILLI = 1e-3;
  const STALL = 1e-4;
  return [
    {
      id: 'memory',
      title: 'Memory',
      hint: 'bytes charged to the cgroup, against its limit; all but what is in use and swap is of memory.stat, which may lag by 2 s',
      unit: 'bytes',
      height: 230,
      traces: drawable([
        { key: 'memory_current', label: 'in use', color: 'c-blue', fill: true, width: 2, line: level('memory_current') },
        { key: 'memory_stat_anon', label: 'anonymous', color: 'c-orange', line: level('memory_stat_anon') },
        { key: 'memory_stat_file', label: 'file cache', color: 'c-green', dash: [6, 3], line: level('memory_stat_file') },
        { key: kernel, label: kernel === 'memory_stat_kernel' ? 'kernel' : 'kernel (slab)', color: 'c-purple', dash: [2, 3], line: level(kernel) },
        { key: 'memory_swap_current', label: 'swap', color: 'c-brown', dash: [8, 3, 2, 3], line: level('memory_swap_current') },
      ]),
      steps: limited(memoryLimits(group, incident, nameOf)),
    },
    {
      id: 'cpu',
      title: 'CPU',
      hint: 'thousandths of a core; right: share of scheduling periods that were throttled',
      unit: 'millicores',
      height: 170,
      traces: drawable([
        { key: 'cpu_usage', label: 'used', color: 'c-blue', fill: true, width: 2, line: speed('cpu_stat_usage_usec', MILLI) },
        { key: 'cpu_user', label: 'user', color: 'c-green', dash: [6, 3], line: speed('cpu_stat_user_usec', MILLI) },
        { key: 'cpu_system', label: 'system', color: 'c-purple', dash: [2, 3], line: speed('cpu_stat_system_usec', MILLI) },
        { key: 'cpu_throttled', label: 'throttled, right axis', color: 'c-orange', scale: 'share', line: shareOf(group, 'cpu_stat_nr_throttled', 'cpu_stat_nr_periods') },
      ]),
      steps: limited(cpuLimit(group)),
    },
    {
      id: 'psi',
      title: 'Pressure (PSI)',
      hint: 'share of the time in which some, or all (full), tasks were stalled',
      unit: 'percent',
      height: 170,
      traces: drawable([
        { key: 'memory_some', label: 'memory, some', color: 'c-orange', width: 2, line: speed('memory_pressure_some_total_usec', STALL) },
        { key: 'memory_full', label: 'memory, full', color: 'c-orange', dash: [3, 3], line: speed('memory_pressure_full_total_usec', STALL) },
        { key: 'cpu_some', label: 'cpu, some', color: 'c-blue', line: speed('cpu_pressure_some_total_usec', STALL) },
        { key: 'cpu_full', label: 'cpu, full', color: 'c-blue', dash: [3, 3], line: speed('cpu_pressure_full_total_usec', STALL) },
        { key: 'io_some', label: 'io, some', color: 'c-green', line: speed('io_pressure_some_total_usec', STALL) },
        { key: 'io_full', label: 'io, full', color: 'c-green', dash: [3, 3], line: speed('io_pressure_full_total_usec', STALL) },
      ]),
      steps: [],
    },
    {
      id: 'io',
      title: 'Disk I/O',
      hint: 'bytes a second, all devices',
      unit: 'bytesPerSecond',
      height: 140,
      traces: drawable([
        { key: 'io_read', label: 'read', color: 'c-green', width: 2, line: speed('io_stat_rbytes', 1) },
        { key: 'io_write', label: 'written', color: 'c-purple', dash: [6, 3], line: speed('io_stat_wbytes', 1) },
      ]),
      steps: [],
    },
    {
      id: 'pids',
      title: 'Processes and threads',
      hint: 'tasks in the cgroup (pids.current)',
      unit: 'count',
      height: 120,
      traces: drawable([{ key: 'pids_current', label: 'tasks', color: 'c-blue', fill: true, width: 2, line: level('pids_current') }]),
      // A limit of thousands over a dozen tasks would press the line flat: it is shown only when it is near.
      steps: limited([{ key: 'pids_max', label: 'limit', readings: read(group, 'pids_max') }]).filter((step) => near(group.columns.pids_current ?? group.drawn?.pids_current?.v, step.readings.v)),
    },
  ];
}

/** @param {Float64Array | undefined} used @param {Float64Array} limit */
function near(used, limit) {
  let most = 0;
  for (const v of used ?? []) if (v > most) most = v;
  return limit.some((v) => v <= most * 4);
}
