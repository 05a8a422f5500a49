/**
 * The rows of controls over the panels: range, zoom, clock, analysis, dashboard, added metrics. It must never take the focus from
 * who works them with the keyboard. Called by main, which does what they ask for.
 *
 * @import { State } from './address.js'
 * @typedef {object} Acts
 * @property {(range: string | null, window: [number, number] | null) => void} chooseRange
 * @property {(part: {from: number, to: number}) => void} chooseWindow
 * @property {() => void} startLive
 * @property {() => void} stopLive
 * @property {(kind: string | null) => void} chooseAnalysis
 * @property {(id: string | null) => Promise<void>} chooseDashboard
 * @property {(name: string) => void} toggleMetric
 */

import { h } from '../dom.js';
import * as format from '../format.js';
import { legend, segments } from '../toolbar.js';
import * as dashboards from './dashboards.js';
import { KINDS } from './findings.js';
import { keep, ranges, tell, tools } from './page.js';
import { charts, dashboard, extent, groups, incident, isFolder, known, nameOf, nowUs, RANGE, RANGES, state, status, view } from './session.js';

/** @param {Acts} act */
export function drawRanges(act) {
  const custom = Boolean(state.window);
  const choices = RANGES.map((value) => ({ value, text: [value], title: `The last ${value}` }));
  const kept = status.store?.from_us ? { from: status.store.from_us, to: Math.max(status.store.to_us ?? 0, isFolder ? 0 : nowUs) } : null;
  ranges.replaceChildren(
    segments('range', 'Range', custom ? [...choices, { value: 'custom', text: [incident() ? 'incident' : 'fixed'], title: `${format.utc(extent().from)} to ${format.utc(extent().to)}` }] : choices, custom ? 'custom' : (state.range ?? RANGE), (value) => value !== 'custom' && act.chooseRange(value, null)),
    kept ? h('button', { type: 'button', id: 'all', title: 'All that is kept', onclick: () => act.chooseRange(null, [kept.from - 1, kept.to + 1]) }, 'All') : '',
    h('button', { type: 'button', id: 'live', 'aria-pressed': String(state.live), disabled: isFolder, title: isFolder ? 'A copied folder has nothing live' : 'Follow what happens now', onclick: () => (state.live ? act.stopLive() : act.startLive()) }, h('span', { class: 'dot', 'aria-hidden': 'true' }), state.live ? 'Live: on' : 'Live'),
    h('span', { class: 'soft note' }, `${format.day(extent().from)} ${format.clock(extent().from, false, 0)} to ${format.clock(extent().to, false, 0)} UTC`),
  );
}

/** @param {Acts} act @param {HTMLElement} search */
export function drawTools(act, search) {
  const active = /** @type {HTMLInputElement | null} */ (tools.contains(document.activeElement) ? document.activeElement : null);
  if (!view || active?.id === 'metric') return;
  const at = view;
  const button = (/** @type {string} */ text, /** @type {string} */ label, /** @type {() => void} */ press) => h('button', { type: 'button', 'aria-label': label, title: label, onclick: press }, text);
  const zoomed = at.range.from !== at.extent.from || at.range.to !== at.extent.to;
  tools.replaceChildren(
    h('div', { class: 'row' },
      h('div', { class: 'row' }, search),
      h('div', { class: 'row' },
        h('div', { class: 'buttons', role: 'group', 'aria-label': 'Zoom and pan' }, button('−', 'Zoom out', () => at.zoom(2)), button('+', 'Zoom in', () => at.zoom(0.5)), button('‹', 'Earlier', () => at.pan(-0.25)), button('›', 'Later', () => at.pan(0.25)), button('Reset', 'Reset: show the whole window', () => at.reset())),
        zoomed && h('button', { type: 'button', id: 'narrow', title: 'Make what is visible the whole range', onclick: () => act.chooseWindow(at.range) }, 'Keep this range'),
        segments('clock', 'Time axis', [{ value: 'relative', text: [incident() ? 'from event' : 'from start'] }, { value: 'utc', text: ['UTC'] }, { value: 'local', text: ['local'] }], state.clock, (mode) => { state.clock = /** @type {State['clock']} */ (mode); keep(false); charts?.redraw(); }))),
    h('div', { class: 'row keys' }, legend(groups), h('p', { class: 'note gestures' }, 'Drag to zoom, shift-drag to pan, wheel to zoom after a click, double-click to reset; arrow keys step through samples.')),
    h('div', { class: 'row choices' },
      segments('analyze', 'Analysis', [{ value: '', text: ['no analysis'] }, ...KINDS.map((kind) => ({ value: kind, text: [{ periodicity: 'periods', changepoint: 'changes', trend: 'trend' }[kind]], title: { periodicity: 'What repeats, and how often', changepoint: 'Where a level or a climb changed', trend: 'Where it is going, and when it is at its limit' }[kind] }))], state.analyze ?? '', (kind) => act.chooseAnalysis(kind || null)),
      h('label', { class: 'field' }, 'Panels ', createDashboardChoice(act))),
    state.metrics.length ? h('div', { class: 'chips' }, ...state.metrics.map((name) => h('button', { type: 'button', class: 'chip', title: 'Take this panel away', onclick: () => { act.toggleMetric(name); } }, name, ' ×'))) : '',
    groups.length > 1 && !dashboard() ? h('p', { class: 'note' }, `The fixed panels show ${nameOf(groups[0].id)}; metric panels have a line for each of the ${groups.length} compared.`) : '',
  );
  // What was chosen with the keyboard keeps the focus.
  if (!active) return;
  const same = [...tools.querySelectorAll('button, input, select')].find((node) => node.id === active.id && /** @type {HTMLInputElement} */ (node).name === active.name && node.textContent === active.textContent && (active.type !== 'radio' || /** @type {HTMLInputElement} */ (node).value === active.value));
  if (same instanceof HTMLElement) same.focus({ preventScroll: true });
}

/** @param {Acts} act */
function createDashboardChoice(act) {
  const own = dashboards.opened();
  const all = [...known, ...(own ? [own] : [])];
  const select = /** @type {HTMLSelectElement} */ (h('select', { id: 'dashboard', onchange: () => (select.value === '+' ? file_.click() : void act.chooseDashboard(select.value || null)) },
    h('option', { value: '' }, 'standard'), ...all.map((d) => h('option', { value: d.id, selected: d.id === state.dashboard, title: d.about ?? null }, d.title)), h('option', { value: '+' }, 'open a dashboard’s file…')));
  const file_ = /** @type {HTMLInputElement} */ (h('input', { type: 'file', id: 'dashboard-file', accept: '.json,application/json', 'aria-label': 'A dashboard as JSON', hidden: true, onchange: async () => {
    try {
      const text = await file_.files?.[0]?.text();
      if (text === undefined) return;
      dashboards.open(text);
      await act.chooseDashboard('file');
    } catch (error) {
      tell(error);
    }
  } }));
  return h('span', {}, select, file_);
}
