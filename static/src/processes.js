/**
 * The process table: one instant at a time (by default the last one before the event), sortable, victim and init marked
 * in words. It must never mix two instants, and says so when the victim is not among the rows. Called by main.
 */

import { h } from './dom.js';
import * as format from './format.js';

/**
 * @typedef {object} Column
 * @property {string} key
 * @property {string} label
 * @property {boolean} [text] left-aligned, sorted as text
 * @property {(v: any) => string} [show]
 */

/** @type {Column[]} */
const COLUMNS = [
  { key: 'pid', label: 'PID' },
  { key: 'comm', label: 'Command', text: true },
  { key: 'state', label: 'State', text: true },
  { key: 'rss_bytes', label: 'RSS', show: format.bytes },
  { key: 'anon_bytes', label: 'Anon', show: format.bytes },
  { key: 'file_bytes', label: 'File', show: format.bytes },
  { key: 'shmem_bytes', label: 'Shmem', show: format.bytes },
  { key: 'swap_bytes', label: 'Swap', show: format.bytes },
  { key: 'threads', label: 'Threads', show: format.count },
  { key: 'fds', label: 'FDs', show: format.count },
  { key: 'cpu_usec', label: 'CPU time', show: (v) => (format.isNumber(v) ? format.milliseconds(v / 1000) : format.ABSENT) },
  { key: 'oom_score', label: 'OOM score', show: (v) => (format.isNumber(v) ? String(v) : format.ABSENT) },
  { key: 'oom_score_adj', label: 'OOM adj', show: (v) => (format.isNumber(v) ? String(v) : format.ABSENT) },
];

/** @type {Record<string, string>} */
const STATES = { R: 'running', S: 'sleeping', D: 'waiting for disk', Z: 'zombie', T: 'stopped', t: 'traced', I: 'idle', X: 'dead' };

/**
 * The instants of the rows, and the one to show first: the nearest that is not after the event, else the first.
 * @param {{ts_us: number}[]} rows
 * @param {number} originUs
 */
export function instantsOf(rows, originUs) {
  const instants = [...new Set(rows.map((row) => row.ts_us))].sort((a, b) => a - b);
  const before = instants.filter((t) => t <= originUs);
  return { instants, chosen: before.length ? before[before.length - 1] : instants[0] };
}

/**
 * Rows in the order asked for; absent values last either way.
 * @template {Record<string, any>} T
 * @param {T[]} rows
 * @param {string} key
 * @param {boolean} ascending
 * @returns {T[]}
 */
export function sorted(rows, key, ascending) {
  const absent = (/** @type {any} */ v) => v === null || v === undefined;
  return [...rows].sort((a, b) => {
    if (absent(a[key]) || absent(b[key])) return Number(absent(a[key])) - Number(absent(b[key]));
    const order = typeof a[key] === 'number' ? a[key] - b[key] : String(a[key]).localeCompare(String(b[key]));
    return (ascending ? order : -order) || a.pid - b.pid;
  });
}

/**
 * @param {HTMLElement} mount
 * @param {{processes: any[], victims: any[], originUs: number, manyCgroups: boolean, nameOf: (id: string) => string, noun: string}} scene
 */
export function createProcesses(mount, scene) {
  const { processes, victims, originUs } = scene;
  if (!processes.length) {
    mount.replaceChildren(h('p', { class: 'empty' }, 'No process rows were recorded in this window.'));
    return;
  }
  const { instants, chosen } = instantsOf(processes, originUs);
  const state = { at: chosen, key: 'rss_bytes', ascending: false };
  const body = h('tbody');
  const note = h('p', { class: 'note', 'aria-live': 'polite' });
  const heads = COLUMNS.map((column) =>
    h(
      'th',
      { scope: 'col', class: column.text ? '' : 'num' },
      h(
        'button',
        {
          type: 'button',
          class: 'sort',
          onclick: () => {
            state.ascending = state.key === column.key ? !state.ascending : Boolean(column.text) || column.key === 'pid';
            state.key = column.key;
            fill();
          },
        },
        column.label,
        h('span', { class: 'arrow', 'aria-hidden': 'true' }),
      ),
    ),
  );
  const isVictim = (/** @type {any} */ row) => row.is_victim || victims.some((victim) => victim.pid === row.pid);

  const fill = () => {
    heads.forEach((head, i) => {
      const mine = COLUMNS[i].key === state.key;
      head.setAttribute('aria-sort', mine ? (state.ascending ? 'ascending' : 'descending') : 'none');
    });
    const rows = processes.filter((row) => row.ts_us === state.at);
    const most = Math.max(1, ...rows.map((row) => row.rss_bytes ?? 0));
    body.replaceChildren(
      ...sorted(rows, state.key, state.ascending).map((row) =>
        h(
          'tr',
          { class: isVictim(row) ? 'victim' : '', 'data-pid': row.pid },
          ...COLUMNS.map((column) => {
            const value = column.show ? column.show(row[column.key]) : (row[column.key] ?? format.ABSENT);
            if (column.key === 'comm') {
              return h('th', { scope: 'row' }, h('code', {}, value), isVictim(row) && h('span', { class: 'tag tag-victim' }, 'victim'), row.is_init && h('span', { class: 'tag' }, 'init'), scene.manyCgroups && h('span', { class: 'soft' }, ` ${scene.nameOf(String(row.cgroup_id))}`));
            }
            if (column.key === 'rss_bytes') {
              const bar = h('span', { class: 'bar', 'aria-hidden': 'true' });
              bar.style.setProperty('--share', `${((row.rss_bytes ?? 0) / most) * 100}%`);
              return h('td', { class: 'num with-bar' }, bar, h('span', {}, value));
            }
            return h('td', { class: column.text ? '' : 'num', title: column.key === 'state' ? (STATES[row.state] ?? null) : null }, value);
          }),
        ),
      ),
    );
    const missing = victims.filter((victim) => !rows.some((row) => row.pid === victim.pid));
    const when = `${rows.length} processes, read ${format.milliseconds(Math.abs(state.at - originUs) / 1000)} ${state.at <= originUs ? 'before' : 'after'} the ${scene.noun}.`;
    note.textContent = missing.length ? `${when} Not in this reading: victim ${missing.map((victim) => `${victim.comm ?? 'unknown'}${victim.pid ? ` (pid ${victim.pid})` : ''}`).join(', ')}.` : when;
  };

  const choice =
    instants.length > 1 &&
    h(
      'label',
      { class: 'field' },
      'Instant ',
      h(
        'select',
        {
          onchange: (/** @type {Event} */ event) => {
            state.at = Number(/** @type {HTMLSelectElement} */ (event.target).value);
            fill();
          },
        },
        ...instants.map((t) => h('option', { value: t, selected: t === chosen }, `${format.relative(t - originUs, 100)}  (${format.clock(t)} UTC)`)),
      ),
    );
  mount.replaceChildren(
    h('div', { class: 'row' }, note, choice),
    h('div', { class: 'table-wrap', tabindex: 0, role: 'region', 'aria-label': 'Process table, scrolls sideways' }, h('table', { class: 'processes' }, h('caption', { class: 'hidden' }, 'Processes at the instant'), h('thead', {}, h('tr', {}, ...heads)), body)),
  );
  fill();
}
