/**
 * Asks for the readings of what is chosen, and makes panels of them: the fixed ones or a dashboard's, and the metrics that were
 * added. It must never put two containers or devices into one line. Called by main.
 *
 * @import { Group } from '../data.js'
 */

import { panelsOf } from '../panels.js';
import { ask } from './api.js';
import * as dashboards from './dashboards.js';
import { FIELDS, groupOf, panelOf, panelOfMany } from './model.js';
import { beside, dashboard, incident, metricOf, nameOf, seconds, state, wanted } from './session.js';

/** @param {{from: number, to: number}} part @param {number} pixels @param {AbortSignal} signal */
export async function fetchGroups(part, pixels, signal) {
  const ms = Math.max(1, Math.ceil((part.to - part.from) / 1000 / pixels));
  const picked = wanted();
  const names = (/** @type {string} */ table) => picked.filter((m) => m.table === table).map((m) => m.name);
  const get = (/** @type {string} */ table, /** @type {string[]} */ metrics, /** @type {string} */ of) => ask('/api/timeseries', { table, metric: metrics.join(','), containers: of, from: seconds(part.from), to: seconds(part.to), resolution: `${ms}ms` }, signal);
  const keys = state.containers.join(',');
  const others = ['io_devices', 'node'].filter((table) => names(table).length);
  const [answer, ...more] = await Promise.all([
    get('samples', [...new Set([...(dashboard() ? ['memory_current'] : FIELDS), ...names('samples')])], keys),
    ...others.map((table) => get(table, names(table), table === 'node' ? '' : keys)),
  ]);
  const found = state.containers.flatMap((key) => answer.series.filter((/** @type {any} */ s) => s.key === key));
  const groupsOf = (/** @type {any} */ a) => a.series.map((/** @type {any} */ s) => ({ ...groupOf(s, a.from_us), id: [s.key ?? 'node', s.device].filter(Boolean).join('/') }));
  return { groups: found.map((/** @type {any} */ s) => groupOf(s, answer.from_us)), beside: Object.fromEntries(others.map((table, i) => [table, groupsOf(more[i])])), lost: [answer, ...more].flatMap((a) => a.lost) };
}

/** @param {Group[]} of @param {Record<string, Group[]>} [others] */
export function panelsFor(of, others = beside) {
  const groupsOf = (/** @type {any} */ metric) => (metric.table === 'samples' ? of : (others[metric.table] ?? []));
  const chosen = dashboard();
  const own = chosen
    ? chosen.panels.map((panel, i) => panelOfMany({ title: panel.title, metrics: panel.metrics.map(metricOf).filter(Boolean), groupsOf: (m) => groupsOf(m).filter((g) => m.table === 'node' || dashboards.takes(/** @type {any} */ (g).about, panel.containers)) }, `${chosen.id}-${i}`)).filter((p) => p.unit)
    : panelsOf(of[0], incident(), nameOf);
  return [...own, ...state.metrics.map(metricOf).filter(Boolean).map((metric) => panelOf(metric, groupsOf(metric)))];
}
