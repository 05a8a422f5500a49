/**
 * What the API gives, as what the panels take: buckets become lines, containers become groups, metrics become panels.
 * Pure. It must never put two containers into one line, and never draw over a gap. Called by main.
 *
 * @import { Group } from '../data.js'
 * @import { Line, Mean } from '../series.js'
 * @import { Panel } from '../panels.js'
 */

import { subjectName } from '../facts.js';
import { FIELDS } from '../data.js';

export { FIELDS };
const COLORS = ['c-blue', 'c-orange', 'c-green', 'c-purple', 'c-brown'];
const DASHES = [undefined, [6, 3], [2, 3], [8, 3, 2, 3]];

/**
 * The lowest and the highest reading of each bucket, each at its own instant.
 * @param {any} b buckets, as the API has them
 * @param {number} fromUs
 * @returns {Line}
 */
export function lineOf(b, fromUs) {
  const [t, v, cause, cut] = [/** @type {number[]} */ ([]), /** @type {number[]} */ ([]), /** @type {number[]} */ ([]), /** @type {number[]} */ ([])];
  const add = (/** @type {number} */ at, /** @type {number} */ value, /** @type {number} */ i, /** @type {number} */ broken) => {
    t.push(fromUs + at);
    v.push(value);
    cause.push(b.cause[i]);
    cut.push(broken);
  };
  for (let i = 0; i < b.t.length; i += 1) {
    const first = b.min_t[i] <= b.max_t[i] ? [b.min_t[i], b.min[i]] : [b.max_t[i], b.max[i]];
    const last = b.min_t[i] <= b.max_t[i] ? [b.max_t[i], b.max[i]] : [b.min_t[i], b.min[i]];
    add(first[0], first[1], i, b.cut[i]);
    if (last[0] > first[0]) add(last[0], last[1], i, 0);
  }
  return { t: Float64Array.from(t), v: Float64Array.from(v), cause: Uint8Array.from(cause), cut: Uint8Array.from(cut) };
}

/** @param {any} b @param {number} fromUs @returns {Mean[]} */
function meansOf(b, fromUs) {
  return b.t.map((/** @type {number} */ t, /** @type {number} */ i) => ({ t: fromUs + t, v: b.avg[i], spanUs: b.span[i], cause: b.cause[i], cut: b.cut[i] }));
}

const CAUSES = ['base', 'history', 'burst'];

/** @param {any} series one of /api/timeseries @param {number} fromUs @returns {Group & {about: any}} */
export function groupOf(series, fromUs) {
  const drawn = Object.fromEntries(Object.entries(series.metrics).map(([name, buckets]) => [name, lineOf(buckets, fromUs)]));
  const means = Object.fromEntries(Object.entries(series.metrics).filter(([name]) => /nr_(periods|throttled)$/.test(name)).map(([name, buckets]) => [name, meansOf(buckets, fromUs)]));
  const longest = Object.values(drawn).sort((a, b) => b.t.length - a.t.length)[0];
  const periods = CAUSES.map((cause) => series.periods_ms?.[cause] ?? null);
  return {
    about: series,
    id: series.key,
    parentId: null,
    path: series.cgroup_path ?? '',
    scope: series.scope ?? 'other',
    namespace: series.namespace,
    pod: series.pod,
    container: series.container,
    t: longest?.t ?? new Float64Array(0),
    cause: longest?.cause ?? new Uint8Array(0),
    periodMs: Float64Array.from(longest?.t ?? [], (_, i) => periods[longest.cause[i]] ?? 1000),
    columns: {},
    drawn,
    means,
    periods,
    bands: (series.bands ?? []).map((/** @type {any} */ band) => ({ cause: CAUSES.indexOf(band.cause), from: band.from_us, to: band.to_us, periodMs: band.period_ms, rows: band.rows })),
  };
}

/** How a metric of the catalogue is shown: unit, and what to multiply it by. @param {any} metric @returns {[Panel['unit'], number, string]} */
export function showing(metric) {
  const counter = metric.kind === 'counter';
  if (metric.unit === 'bytes') return counter ? ['bytesPerSecond', 1, 'bytes a second'] : ['bytes', 1, 'bytes'];
  if (metric.unit === 'microseconds') {
    if (!counter) return ['milliseconds', 1e-3, 'time'];
    return metric.file === 'cpu.stat' ? ['millicores', 1e-3, 'thousandths of a core'] : ['percent', 1e-4, 'share of the time'];
  }
  if (metric.unit === 'percent_x100') return ['percent', 1e-2, 'per cent'];
  return counter ? ['perSecond', 1, `${metric.unit} a second`] : ['count', 1, metric.unit];
}

/** How a metric is told apart from those of other tables: node:meminfo_memfree. @param {any} metric */
export function idOf(metric) {
  return !metric.table || metric.table === 'samples' ? metric.name : `${metric.table}:${metric.name}`;
}

/** @param {any} about */
function lineName(about) {
  const name = about.scope === 'node' || (!about.cgroup_path && about.cgroup_id === null) ? 'node' : subjectName(about);
  const device = about.device_name ?? about.device;
  return device ? `${name} · ${device}` : name;
}

/**
 * One panel for several metrics, one line for each metric and container; limits are steps.
 * @param {{title: string, metrics: any[], groupsOf: (metric: any) => Group[]}} spec
 * @param {string} id
 * @returns {Panel}
 */
export function panelOfMany({ title, metrics, groupsOf }, id) {
  const drawn = metrics.filter((metric) => metric.kind !== 'limit');
  const [unit, factor, words] = showing(drawn[0] ?? metrics[0]);
  const several = new Set(metrics.flatMap((metric) => groupsOf(metric).map((group) => group.id))).size > 1;
  const nameOf = (/** @type {any} */ metric, /** @type {Group} */ group) => [metrics.length > 1 || !several ? metric.name.replace(/_(total_)?usec$/, '') : '', several ? lineName(/** @type {any} */ (group).about) : ''].filter(Boolean).join(' ');
  const steps = metrics.filter((metric) => drawn.length && metric.kind === 'limit').flatMap((metric) => groupsOf(metric).flatMap((group) => {
    const line = group.drawn?.[metric.name];
    return line ? [{ key: `${metric.name}:${group.id}`, label: nameOf(metric, group), readings: { ...line, v: line.v.map((v) => v * factor), periodMs: new Float64Array(line.t.length) } }] : [];
  }));
  let n = -1;
  const traces = (drawn.length ? drawn : metrics).flatMap((metric) => groupsOf(metric).flatMap((group) => {
    const line = group.drawn?.[metric.name];
    if (!line) return [];
    n += 1;
    return [{ key: `${metric.name}:${group.id}`, label: nameOf(metric, group), color: COLORS[n % COLORS.length], dash: DASHES[Math.floor(n / COLORS.length) % DASHES.length], width: n === 0 ? 2 : 1.5, line: { ...line, v: line.v.map((v) => v * factor) } }];
  }));
  return { id, title, hint: words, unit, height: 170, traces, steps };
}

/** One panel for a metric, one line for each container. @param {any} metric @param {Group[]} groups @returns {Panel} */
export function panelOf(metric, groups) {
  const [unit, factor, words] = showing(metric);
  const traces = groups.flatMap((group, i) => {
    const drawn = group.drawn?.[metric.name];
    if (!drawn) return [];
    const line = { ...drawn, v: drawn.v.map((v) => v * factor) };
    const label = lineName(/** @type {any} */ (group).about);
    return [{ key: `${metric.name}:${group.id}`, label, color: COLORS[i % COLORS.length], dash: DASHES[Math.floor(i / COLORS.length) % DASHES.length], width: i === 0 ? 2 : 1.5, line }];
  });
  return { id: idOf(metric), title: idOf(metric), hint: `${metric.about ? `${metric.about}; ` : ''}${words}`, unit, height: 150, traces, steps: [] };
}

/**
 * How well a metric answers a search: all words must be in it, or its letters in order. Lower is better, null is no.
 * @param {any} metric
 * @param {string} search
 */
export function rank(metric, search) {
  const text = `${metric.name} ${metric.file} ${metric.key ?? ''} ${metric.about ?? ''}`.toLowerCase();
  const words = search.toLowerCase().split(/[\s_.]+/).filter(Boolean);
  // What is the node's comes after what is a container's own.
  const beside = metric.table && metric.table !== 'samples' ? 40 : 0;
  if (!words.length) return 1000 + beside + metric.name.length;
  const places = words.map((word) => text.indexOf(word));
  if (places.every((at) => at >= 0)) return places.reduce((sum, at) => sum + at, 0) + metric.name.length / 100 + beside;
  let at = -1;
  let spread = 0;
  for (const letter of words.join('')) {
    const next = text.indexOf(letter, at + 1);
    if (next < 0) return null;
    spread += next - at;
    at = next;
  }
  return 200 + spread + beside;
}
