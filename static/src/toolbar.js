/**
 * The controls over the charts: which cgroup, which part of the window, which clock, and what the shadings mean. Real
 * form controls, so that the keyboard and a screen reader have them for nothing. It holds no state. Called by main.
 *
 * @import { Group } from './data.js'
 * @import { View } from './view.js'
 * @import { Clock } from './axis.js'
 */

import { h, svg } from './dom.js';
import { relative } from './format.js';
import { subjectName } from './facts.js';
import { bands } from './series.js';
import { CAUSES, scopeName } from './words.js';

/** More cgroups than this are offered as a list to pull down. */
const MOST_BUTTONS = 5;

/**
 * @param {object} scene
 * @param {Group[]} scene.groups
 * @param {Group} scene.group
 * @param {any} scene.incident
 * @param {number} scene.originUs
 * @param {View} scene.view
 * @param {Clock} scene.clock
 * @param {(id: string) => string} scene.nameOf
 * @param {(id: string) => void} scene.setGroup
 * @param {(mode: Clock) => void} scene.setClock
 */
export function createToolbar(scene) {
  const { view } = scene;
  const button = (/** @type {string} */ text, /** @type {string} */ label, /** @type {() => void} */ act) => h('button', { type: 'button', 'aria-label': label, title: label, onclick: act }, text);
  return h(
    'div',
    { class: 'toolbar' },
    h('div', { class: 'row' }, chooseGroup(scene), h('div', { class: 'row' }, presets(scene), h('div', { class: 'buttons', role: 'group', 'aria-label': 'Zoom and pan' }, button('−', 'Zoom out', () => view.zoom(2)), button('+', 'Zoom in', () => view.zoom(0.5)), button('‹', 'Earlier', () => view.pan(-0.25)), button('›', 'Later', () => view.pan(0.25)), button('Reset', 'Reset: show the whole window', () => view.reset())), chooseClock(scene))),
    h('div', { class: 'row keys' }, legend(scene.groups), h('p', { class: 'note gestures' }, 'Drag to zoom, shift-drag to pan, wheel to zoom after a click, double-click to reset; arrow keys step through samples.')),
  );
}

/** Containers first, then what they are in. @param {Group[]} groups */
function ordered(groups) {
  const rank = (/** @type {Group} */ group) => ['container', 'pod', 'service', 'node'].indexOf(group.scope) >>> 0;
  return [...groups].sort((a, b) => rank(a) - rank(b) || b.path.length - a.path.length || a.path.localeCompare(b.path));
}

/** @param {Parameters<typeof createToolbar>[0]} scene */
function chooseGroup({ groups, group, nameOf, setGroup }) {
  const list = ordered(groups);
  if (list.length > MOST_BUTTONS) {
    return h(
      'label',
      { class: 'field' },
      'Cgroup ',
      h('select', { id: 'cgroup', onchange: (/** @type {Event} */ event) => setGroup(/** @type {HTMLSelectElement} */ (event.target).value) }, ...list.map((g) => h('option', { value: g.id, selected: g === group }, `${nameOf(g.id)}${g.pod && g.scope === 'container' ? ` (${g.pod})` : ''}`))),
    );
  }
  return segments('cgroup', 'Cgroup', list.map((g) => ({ value: g.id, text: [h('span', { class: 'soft' }, `${scopeName(g.scope)} `), subjectName({ ...g, cgroup_path: g.path })], title: g.path })), group.id, setGroup);
}

/** @param {Parameters<typeof createToolbar>[0]} scene */
function chooseClock({ incident, clock, setClock }) {
  return segments('clock', 'Time axis', [{ value: 'relative', text: [incident ? 'from event' : 'from start'] }, { value: 'utc', text: ['UTC'] }, { value: 'local', text: ['local'] }], clock, (mode) => setClock(/** @type {Clock} */ (mode)));
}

/**
 * @param {string} name
 * @param {string} label
 * @param {{value: string, text: any[], title?: string}[]} choices
 * @param {string} chosen
 * @param {(value: string) => void} set
 */
export function segments(name, label, choices, chosen, set) {
  return h('fieldset', { class: 'segments', id: `choose-${name}` }, h('legend', { class: 'hidden' }, label), ...choices.map(({ value, text, title }) => h('label', { title: title ?? null }, h('input', { type: 'radio', name, value, checked: value === chosen, onchange: () => set(value) }), h('span', {}, ...text))));
}

/** Ready ranges around the event, as far as the window reaches. @param {Parameters<typeof createToolbar>[0]} scene */
function presets({ incident, originUs, view }) {
  if (!incident) return null;
  const spans = [[30, 10], [5, 1], [0.5, 0.1]].filter(([before, after]) => originUs - before * 1e6 >= view.extent.from - 1e6 && (before + after) * 1e6 < view.extent.to - view.extent.from);
  return h('div', { class: 'buttons', role: 'group', 'aria-label': 'Ranges around the event' }, ...spans.map(([before, after]) => h('button', { type: 'button', class: 'preset', title: `From ${relative(-before * 1e6)} to ${relative(after * 1e6)}`, onclick: () => view.setRange(originUs - before * 1e6, originUs + after * 1e6) }, before >= 1 ? `−${before} s` : `−${before * 1000} ms`)));
}

/** What shading and marks mean, for the causes that are in the file. @param {Group[]} groups */
export function legend(groups) {
  const rates = (/** @type {number} */ cause) => {
    const told = groups.flatMap((group) => group.periods?.[cause] ?? []);
    if (told.length) return Math.min(...told);
    let least = Infinity;
    for (const { periodMs, cause: causes } of groups) for (let i = 0; i < causes.length; i += 1) if (causes[i] === cause && periodMs[i] < least) least = periodMs[i];
    return Number.isFinite(least) ? least : null;
  };
  const shapes = [
    svg('circle', { cx: 11, cy: 7, r: 3, class: 'hollow' }),
    svg('circle', { cx: 11, cy: 7, r: 2.4, class: 'solid' }),
    svg('path', { d: 'M11 3 15 7 11 11 7 7Z', class: 'hollow' }),
  ];
  const shaded = groups.some((group) => bands(group).length > 0);
  return h(
    'ul',
    { class: 'cause-legend', 'aria-label': 'Where samples come from' },
    ...['base', 'history', 'burst'].map((cause, i) => {
      const period = rates(i);
      if (period === null || (i > 0 && !shaded)) return null;
      return h('li', { title: CAUSES[cause] }, svg('svg', { viewBox: '0 0 22 14', class: `cause cause-${cause}`, 'aria-hidden': 'true' }, shapes[i]), `${cause}, every ${period >= 1000 ? `${period / 1000} s` : `${period} ms`}`);
    }),
  );
}
