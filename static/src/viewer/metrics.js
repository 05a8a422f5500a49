/**
 * Finding a metric in the catalogue: a field, and the best matches under it, with what each is. Enter takes the marked
 * one, arrow keys move the mark, Escape closes. Called by main.
 */

import { h } from '../dom.js';
import { idOf, rank } from './model.js';

const MOST = 12;

/** @param {{catalogue: () => any[], chosen: () => string[], toggle: (name: string) => void}} scene */
export function createMetricSearch({ catalogue, chosen, toggle }) {
  /** @type {any[]} */
  let found = [];
  let marked = 0;
  const list = h('ul', { id: 'metric-list', role: 'listbox', tabindex: -1, 'aria-label': 'Metrics', hidden: true });
  const input = /** @type {HTMLInputElement} */ (h('input', {
    type: 'search', id: 'metric', role: 'combobox', 'aria-expanded': 'false', 'aria-controls': 'metric-list', 'aria-autocomplete': 'list', autocomplete: 'off',
    placeholder: 'Add a metric: throttled, pgmajfault, oom_kill…', 'aria-label': 'Add a metric',
    oninput: () => show(), onfocus: () => show(), onblur: () => setTimeout(close, 150), onkeydown: (/** @type {KeyboardEvent} */ event) => press(event),
  }));
  const close = () => {
    list.hidden = true;
    input.setAttribute('aria-expanded', 'false');
  };
  const mark = (/** @type {number} */ to) => {
    marked = Math.max(0, Math.min(found.length - 1, to));
    list.childNodes.forEach((node, i) => /** @type {Element} */ (node).classList?.toggle('marked', i === marked));
    /** @type {Element | undefined} */ (list.children[marked])?.scrollIntoView({ block: 'nearest' });
    input.setAttribute('aria-activedescendant', found.length ? `metric-${marked}` : '');
  };
  const show = () => {
    const ranked = catalogue().map((metric) => ({ metric, at: rank(metric, input.value) })).filter((r) => r.at !== null);
    found = ranked.sort((a, b) => /** @type {number} */ (a.at) - /** @type {number} */ (b.at)).slice(0, MOST).map((r) => r.metric);
    list.replaceChildren(...(found.length ? found.map((metric, i) => h('li', { role: 'option', id: `metric-${i}`, 'aria-selected': String(chosen().includes(idOf(metric))), onmousedown: (/** @type {Event} */ e) => { e.preventDefault(); take(idOf(metric)); } },
      h('code', {}, idOf(metric)), h('span', {}, metric.about ?? ''), h('span', { class: 'soft' }, `${metric.file}${metric.key ? ` · ${metric.key}` : ''} · ${metric.kind}, ${metric.unit.replaceAll('_', ' ')}${metric.tier === 'slow' ? ' · read every 10 s' : ''}${metric.table === 'io_devices' ? ' · a line for each device' : ''}`)))
      : [h('li', { class: 'empty' }, 'No metric of that name.')]));
    list.hidden = false;
    input.setAttribute('aria-expanded', 'true');
    mark(0);
  };
  const take = (/** @type {string} */ name) => {
    input.value = '';
    close();
    toggle(name);
  };
  const press = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
      event.preventDefault();
      mark(marked + (event.key === 'ArrowDown' ? 1 : -1));
    } else if (event.key === 'Enter' && !list.hidden && found[marked]) take(idOf(found[marked]));
    else if (event.key === 'Escape') close();
  };
  return h('div', { class: 'metric-search' }, input, list);
}
