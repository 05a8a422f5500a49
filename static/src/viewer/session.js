/**
 * What the viewer knows: the state that is in the address, the agent's answers, and what is drawn of them. Others read it and change
 * it by `set` alone. It must never ask the agent nor touch the page. Called by all of the viewer.
 *
 * @import { Group } from '../data.js'
 * @import { State } from './address.js'
 */

import { subjectName } from '../facts.js';
import { scopeName } from '../words.js';
import * as address from './address.js';
import * as dashboards from './dashboards.js';
import { idOf } from './model.js';

export const RANGES = ['1m', '5m', '15m', '1h', '6h', '24h'];
export const RANGE = '15m';
/** Containers compared at once: beyond it lines cannot be told apart. */
export const MOST_CONTAINERS = 8;

export const seconds = (/** @type {number} */ us) => (us / 1e6).toFixed(6);
const UNITS = { s: 1e6, m: 60e6, h: 3600e6, d: 86_400e6 };
export const spanOf = (/** @type {string} */ range) => Number.parseInt(range, 10) * (UNITS[/** @type {'m'} */ (range.at(-1))] ?? 60e6);

/** @type {State} */
export const state = address.parse(location.hash);
/** @type {any} */
export let status = {};
/** @type {any[]} */
export let incidents = [];
/** @type {any[]} */
export let containers = [];
/** @type {any[]} */
export let catalogue = [];
/** @type {Group[]} */
export let groups = [];
/** Of other tables than samples. @type {Record<string, Group[]>} */
export let beside = {};
/** @type {{kind: string, findings: import('./findings.js').Finding[], overlays: Record<string, import('./findings.js').Overlay>} | null} */
export let analysis = null;
export const known = dashboards.builtIn();
/** @type {any[]} */
export let events = [];
export let nowUs = 0;
export let isFolder = false;
/** @type {ReturnType<typeof import('../view.js').createView> | null} */
export let view = null;
/** @type {ReturnType<typeof import('../charts.js').createCharts> | null} */
export let charts = null;
/** @type {{destroy: () => void, redraw?: () => void}[]} */
export let around = [];
/** @type {any} */
export let scene = null;

/** @param {Record<string, any>} fresh what is not named stays */
export function set(fresh) {
  ({ status = status, incidents = incidents, containers = containers, catalogue = catalogue, groups = groups, beside = beside, analysis = analysis, events = events, nowUs = nowUs, isFolder = isFolder, view = view, charts = charts, around = around, scene = scene } = fresh);
}

export const incident = () => incidents.find((one) => one.id === state.incident) ?? null;

/** The key of an incident's cgroup, as /api/containers has it. @param {any} of */
export function keyOf(of) {
  return of.cgroup_id === null ? null : `${of.cgroup_id}@${(of.boot_id ?? '').replaceAll('-', '').slice(0, 8)}`;
}

/** What the panels are to show: µs. */
export function extent() {
  if (state.window) return { from: state.window[0], to: state.window[1] };
  const span = spanOf(state.range ?? RANGE);
  return { from: nowUs - span, to: nowUs };
}

export const dashboard = () => (state.dashboard === 'file' ? dashboards.opened() : (known.find((d) => d.id === state.dashboard) ?? null));
export const metricOf = (/** @type {string} */ id) => catalogue.find((m) => idOf(m) === id);

/** The metrics of the catalogue that are drawn beyond the fixed panels. */
export function wanted() {
  const ids = [...(dashboard()?.panels.flatMap((p) => p.metrics) ?? []), ...state.metrics];
  return [...new Set(ids)].map(metricOf).filter(Boolean);
}

/** @param {string} id a key, or the bare cgroup id of an event */
export function nameOf(id) {
  const known = containers.find((c) => c.key === id || c.cgroup_id === id);
  return known ? `${scopeName(known.scope)} ${subjectName(known)}` : `cgroup ${id.split('@')[0]}`;
}
