/**
 * What the agent's analyses found, as sentences, and as what is drawn over a panel for them. Pure: an answer of
 * /api/analyze in, words and marks out. It must never say more than the answer does. Called by main.
 *
 * @typedef {object} Overlay what is drawn over one panel
 * @property {number[]} marks instants
 * @property {[number, number][][]} lines each a list of (instant, value in the panel's unit)
 *
 * @typedef {{metric: string, panel: string, text: string, at: number | null, found: boolean}} Finding
 */

import * as format from '../format.js';
import { showing } from './model.js';

export const KINDS = /** @type {const} */ (['periodicity', 'changepoint', 'trend']);
/** Metrics of the fixed panels that are analysed, and where they are drawn. @type {Record<string, string>} */
export const FIXED = {
  memory_current: 'memory', cpu_stat_usage_usec: 'cpu', memory_pressure_some_total_usec: 'psi', io_stat_rbytes: 'io', io_stat_wbytes: 'io', pids_current: 'pids',
};
/** More marks than this are a hatching. */
const MOST_MARKS = 80;

/**
 * @param {string} kind
 * @param {any} answer
 * @param {(name: string) => any} metricOf of the catalogue
 * @param {string | null} only a key: of this container alone
 * @returns {{findings: Finding[], overlays: Record<string, Overlay>}}
 */
export function findingsOf(kind, answer, metricOf, only) {
  /** @type {Finding[]} */
  const findings = [];
  /** @type {Record<string, Overlay>} */
  const overlays = {};
  for (const series of answer.series) {
    if (only && series.key !== only) continue;
    for (const [name, found] of Object.entries(series.metrics)) {
      const metric = metricOf(name);
      if (!metric) continue;
      const panel = FIXED[name] ?? name;
      const [unit, factor] = showing(metric);
      const show = (/** @type {number} */ v) => format[unit](v * factor);
      const told = { periodicity: periodOf, changepoint: changesOf, trend: trendOf }[/** @type {'trend'} */ (kind)](found, show, answer);
      findings.push({ metric: name, panel, text: told.text, at: told.marks[0] ?? null, found: told.marks.length > 0 || told.lines.length > 0 });
      const over = (overlays[panel] ??= { marks: [], lines: [] });
      over.marks.push(...told.marks.slice(0, MOST_MARKS));
      over.lines.push(...told.lines.map((line) => line.map(([t, v]) => /** @type {[number, number]} */ ([t, v * factor]))));
    }
  }
  return { findings, overlays };
}

/** @typedef {{text: string, marks: number[], lines: [number, number][][]}} Told */
/** @typedef {(v: number) => string} Show */

/** @param {any} found @param {Show} show @param {any} answer @returns {Told} */
function periodOf(found, show, answer) {
  if (!found) return { text: 'no period', marks: [], lines: [] };
  const marks = [];
  for (let t = found.peak_us; t <= answer.to_us && marks.length <= MOST_MARKS; t += found.period_us) if (t >= answer.from_us) marks.push(t);
  return { text: `repeats every ${format.milliseconds(found.period_us / 1000)}, by ${show(found.swing)} (${format.percent(found.strength * 100)} of what it does beside its slow course)`, marks, lines: [] };
}

/** @param {any} found @param {Show} show @returns {Told} */
function changesOf(found, show) {
  if (!found?.changes.length) return { text: 'no change', marks: [], lines: [] };
  const one = (/** @type {any} */ c) => `${format.clock(c.t_us, false, 0)} ${c.kind === 'step' ? `from ${show(c.before)} to ${show(c.after)}` : `from ${slope(c.slope_before, show)} to ${slope(c.slope_after, show)}`}`;
  const more = found.left_out ? `; ${found.left_out} smaller ones` : '';
  return { text: `${found.changes.slice(0, 4).map(one).join('; ')}${found.changes.length > 4 ? `; ${found.changes.length - 4} more` : ''}${more}`, marks: found.changes.map((/** @type {any} */ c) => c.t_us), lines: [] };
}

/** @param {number} perSecond @param {Show} show */
function slope(perSecond, show) {
  if (/^0(\.0+)? ?\D*$/.test(show(Math.abs(perSecond)))) return 'level';
  return `${perSecond < 0 ? '−' : '+'}${show(Math.abs(perSecond)).replace(/\/s$/, '')} a second`;
}

/** @param {any} found @param {Show} show @returns {Told} */
function trendOf(found, show) {
  if (!found) return { text: 'too few readings since it last changed', marks: [], lines: [] };
  const seconds = (found.until_us - found.since_us) / 1e6;
  const start = /** @type {[number, number]} */ ([found.since_us, found.value - found.slope * seconds]);
  const since = `since ${format.clock(found.since_us, false, 0)}`;
  if (found.direction === 'flat') return { text: `flat ${since}`, marks: [], lines: [] };
  const base = `${found.direction} by ${slope(found.slope, show).replace(/^[+−]/, '')} ${since}`;
  const { forecast, limit } = found;
  if (!forecast) return { text: found.direction === 'rising' ? `${base}; no forecast: ${found.no_forecast}` : base, marks: [], lines: [[start, [found.until_us, found.value]]] };
  const latest = forecast.latest_s === null ? '' : `, at the latest ${format.seconds(forecast.latest_s)}`;
  const whose = limit.is_own ? 'its limit' : `the limit of ${format.baseName(limit.cgroup_path)}`;
  return {
    text: `${base}; at ${whose} of ${show(limit.value)} in ${format.seconds(forecast.seconds)} (at the earliest ${format.seconds(forecast.earliest_s)}${latest})`,
    marks: [],
    lines: [[start, [found.until_us + forecast.seconds * 1e6, found.value + found.slope * forecast.seconds]]],
  };
}
