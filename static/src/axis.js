/**
 * Ticks of the shared time axis: round distances from the event, or round clock times. Pure.
 * It must never label two ticks alike. Called by charts and timeline.
 */

import { clock, day, relative } from './format.js';

/** @typedef {'relative' | 'utc' | 'local'} Clock */

const STEPS_US = [
  100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 10e6, 15e6, 30e6, 60e6, 120e6, 300e6, 600e6, 900e6, 1800e6, 3600e6, 7200e6,
  10_800e6, 21_600e6, 43_200e6, 86_400e6,
];

/**
 * @param {number} from microseconds
 * @param {number} to
 * @param {number} most how many ticks there is room for
 * @returns {number} the step, in microseconds
 */
export function stepOf(from, to, most) {
  const least = (to - from) / Math.max(1, most);
  return STEPS_US.find((step) => step >= least) ?? Math.ceil(least / 86_400e6) * 86_400e6;
}

/**
 * @param {number} from
 * @param {number} to
 * @param {number} most
 * @param {number} originUs the event
 * @param {Clock} mode
 * @returns {{t: number, label: string}[]}
 */
export function ticks(from, to, most, originUs, mode) {
  const step = stepOf(from, to, most);
  const base = mode === 'relative' ? originUs : mode === 'local' ? new Date(from / 1000).getTimezoneOffset() * 60e6 : 0;
  const out = [];
  for (let n = Math.ceil((from - base) / step); base + n * step <= to; n += 1) {
    const t = base + n * step;
    out.push({ t, label: tickLabel(t, step, originUs, mode) });
  }
  return out;
}

/** @param {number} t @param {number} step @param {number} originUs @param {Clock} mode */
function tickLabel(t, step, originUs, mode) {
  if (mode === 'relative') return relative(t - originUs, step);
  const local = mode === 'local';
  if (step >= 86_400e6) return day(t, local);
  return clock(t, local, step >= 1e6 ? 0 : step >= 1e3 ? 3 : 6);
}
