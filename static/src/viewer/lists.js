/**
 * The two lists at the side: incidents, and containers with their filters. Buttons in lists, so that a screen reader has them
 * for nothing; a list is one stop of the tab key however long it is, and arrow keys go about in it. They hold no state but where
 * that stop is: a choice is told and comes back as the state. Called by main.
 *
 * @import { State } from './address.js'
 */

import { h, severityMark } from '../dom.js';
import { subjectName } from '../facts.js';
import * as format from '../format.js';
import { kindName, scopeName } from '../words.js';

/** Rows drawn at once: a node has some hundreds. */
const MOST_ROWS = 600;

/** How long ago, in words. @param {number} us */
export function ago(us) {
  const s = us / 1e6;
  if (s < 90) return `${Math.max(0, Math.round(s))} s ago`;
  if (s < 5400) return `${Math.round(s / 60)} min ago`;
  if (s < 129_600) return `${Math.round(s / 3600)} h ago`;
  return `${Math.round(s / 86_400)} days ago`;
}

/** Of a copied folder nothing is "ago": its own clock counts. @param {number} us @param {{nowUs: number, isFolder: boolean}} scene */
function when(us, { nowUs, isFolder }) {
  return isFolder ? format.clock(us, false, 0) : ago(nowUs - us);
}

/** Rows that page up and page down pass over. */
const PAGE_ROWS = 10;

/** Up and down from row to row, right and left within one. @param {KeyboardEvent} event */
function step(event) {
  const list = /** @type {HTMLElement} */ (event.currentTarget);
  const row = document.activeElement?.closest('li');
  if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
  const rows = [...list.children];
  const at = rows.indexOf(row);
  const buttons = [...row.querySelectorAll('button')];
  const column = buttons.indexOf(/** @type {HTMLButtonElement} */ (document.activeElement));
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + PAGE_ROWS, PageUp: at - PAGE_ROWS, Home: 0, End: rows.length - 1 }[event.key];
  const next = to === undefined
    ? { ArrowRight: buttons[column + 1], ArrowLeft: buttons[column - 1] }[event.key]
    : rows[Math.min(rows.length - 1, Math.max(0, to))].querySelectorAll('button')[column];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

/** The button that has the focus is where the tab key comes back to. @param {FocusEvent} event */
function rove(event) {
  const list = /** @type {HTMLElement} */ (event.currentTarget);
  for (const button of list.querySelectorAll('button[tabindex="0"]')) /** @type {HTMLElement} */ (button).tabIndex = -1;
  if (event.target instanceof HTMLElement) event.target.tabIndex = 0;
}

/**
 * A list with one stop: where it was before the list was drawn anew, else at what is chosen, else at the first.
 * @param {HTMLElement} mount @param {string} label @param {HTMLElement[]} rows
 */
function roving(mount, label, rows) {
  const named = (/** @type {Element | null} */ button) => (button instanceof HTMLElement ? button.dataset.stop : undefined);
  const had = mount.contains(document.activeElement) ? named(document.activeElement) : undefined;
  const was = had ?? named(mount.querySelector('button[tabindex="0"]'));
  const list = h('ul', { class: 'entries', 'aria-label': label, onkeydown: step, onfocusin: rove }, ...rows);
  const buttons = [...list.querySelectorAll('button')];
  for (const button of buttons) button.tabIndex = -1;
  const stop = buttons.find((b) => named(b) === was) ?? buttons.find((b) => b.hasAttribute('aria-current')) ?? buttons[0];
  if (stop) stop.tabIndex = 0;
  return { list, refocus: () => had !== undefined && stop?.focus({ preventScroll: true }) };
}

/**
 * @param {HTMLElement} mount
 * @param {{incidents: any[], chosen: string | null, nowUs: number, isFolder: boolean, choose: (incident: any) => void}} scene
 */
export function drawIncidents(mount, scene) {
  const { incidents, chosen, choose } = scene;
  if (!incidents.length) {
    mount.replaceChildren(h('p', { class: 'empty' }, 'None so far. A kill, a crash or a limit that is near will be listed here.'));
    return;
  }
  const { list, refocus } = roving(mount, 'Incidents', incidents.map((incident) =>
      h('li', {},
        h('button', { type: 'button', class: `entry entry-${incident.severity}`, 'data-incident': incident.id, 'data-stop': incident.id, 'aria-current': incident.id === chosen ? 'true' : null, title: incident.summary, onclick: () => choose(incident) },
          h('span', { class: 'entry-line' }, severityMark(incident.severity), h('strong', {}, kindName(incident.kind)), h('span', { class: 'soft entry-end', title: format.utc(incident.ts_us) }, when(incident.ts_us, scene))),
          h('span', { class: 'entry-line soft' }, `${scopeName(incident.scope)} ${subjectName(incident)}`, incident.victims?.[0]?.comm ? h('span', { class: 'entry-end' }, incident.victims[0].comm) : null)))));
  mount.replaceChildren(list);
  refocus();
}

/** @param {any} container @param {State['filter']} filter */
export function isShown(container, filter) {
  const text = [container.container, container.pod, container.namespace, container.container_id, container.pod_uid, container.cgroup_path].join(' ').toLowerCase();
  return filter.q.toLowerCase().split(/\s+/).every((word) => text.includes(word))
    && (!filter.scope || container.scope === filter.scope)
    && (!filter.qos || container.qos === filter.qos)
    && (!filter.ns || container.namespace === filter.ns)
    && (!filter.state || (filter.state === 'live') === container.is_live);
}

/** Memory against its limit, as words. @param {any} c */
function usage(c) {
  if (c.memory_bytes === null) return format.ABSENT;
  return c.memory_limit_bytes === null ? format.bytes(c.memory_bytes) : `${format.bytes(c.memory_bytes)} of ${format.bytes(c.memory_limit_bytes)}`;
}

/**
 * @param {HTMLElement} mount
 * @param {{containers: any[], chosen: string[], filter: State['filter'], nowUs: number, isFolder: boolean, choose: (key: string, add: boolean) => void}} scene
 */
export function drawContainers(mount, scene) {
  const { containers, chosen, filter, isFolder, choose } = scene;
  const shown = containers.filter((c) => isShown(c, filter));
  const { list, refocus } = roving(mount, 'Containers', shown.slice(0, MOST_ROWS).map((c) => {
      const at = chosen.indexOf(c.key);
      const name = subjectName(c);
      const share = c.memory_limit_bytes ? Math.min(100, (100 * c.memory_bytes) / c.memory_limit_bytes) : null;
      return h('li', { class: 'with-add' },
        h('button', { type: 'button', class: 'entry', 'data-key': c.key, 'data-stop': c.key, 'aria-current': at === 0 ? 'true' : null, title: c.cgroup_path, onclick: (/** @type {MouseEvent} */ e) => choose(c.key, e.ctrlKey || e.metaKey || e.shiftKey) },
          h('span', { class: 'entry-line' }, h('strong', {}, name), h('span', { class: `entry-end ${c.is_live ? 'live' : 'soft'}` }, c.is_live ? (isFolder ? 'to the end' : 'live') : `gone ${when(c.last_us, scene)}`)),
          h('span', { class: 'entry-line soft' }, h('span', { class: 'cut' }, [scopeName(c.scope), c.namespace && c.pod ? `${c.namespace}/${c.pod}` : c.pod, c.qos].filter(Boolean).join(' · ')), h('span', { class: 'entry-end num' }, usage(c), c.cpu_millicores !== null && c.is_live ? ` · ${format.millicores(c.cpu_millicores)}` : null)),
          share !== null && h('span', { class: 'meter', style: null, 'data-share': share.toFixed(0) })),
        h('button', { type: 'button', class: 'add', 'data-stop': `+${c.key}`, 'aria-pressed': String(at >= 0), 'aria-label': `Compare ${name}`, title: at >= 0 ? 'Take out of the comparison' : 'Compare: adds a line to the metric panels', onclick: () => choose(c.key, true) }, at >= 0 ? '✓' : '+'));
  }));
  mount.replaceChildren(
    h('p', { class: 'note', role: 'status', id: 'container-count' }, shown.length === containers.length ? `${containers.length} with samples in this range` : `${shown.length} of ${containers.length}`),
    list,
    shown.length > MOST_ROWS ? h('p', { class: 'note' }, `${shown.length - MOST_ROWS} more: narrow the search.`) : '',
  );
  for (const meter of mount.querySelectorAll('.meter')) /** @type {HTMLElement} */ (meter).style.setProperty('--share', `${/** @type {HTMLElement} */ (meter).dataset.share}%`);
  refocus();
}

/**
 * The filters over the container list.
 * @param {{containers: () => any[], state: State, changed: (isServer: boolean) => void}} scene
 */
export function createFilters({ containers, state, changed }) {
  const search = /** @type {HTMLInputElement} */ (h('input', { type: 'search', id: 'search', placeholder: 'Name, id or path  ( / )', 'aria-label': 'Search containers', value: state.filter.q, oninput: () => { state.filter.q = search.value; changed(false); } }));
  const selects = [
    { name: 'scope', label: 'Kind', of: (/** @type {any} */ c) => c.scope },
    { name: 'state', label: 'State', of: (/** @type {any} */ c) => (c.is_live ? 'live' : 'gone') },
    { name: 'qos', label: 'QoS', of: (/** @type {any} */ c) => c.qos },
    { name: 'ns', label: 'Namespace', of: (/** @type {any} */ c) => c.namespace },
  ].map(({ name, label, of }) => {
    const key = /** @type {'scope'} */ (name);
    const select = /** @type {HTMLSelectElement} */ (h('select', { id: `filter-${name}`, 'aria-label': label, onchange: () => { state.filter[key] = select.value; changed(false); } }));
    const fill = () => {
      const values = [...new Set([...containers().map(of), state.filter[key]].filter(Boolean))].sort();
      select.replaceChildren(h('option', { value: '' }, `${label}: all`), ...values.map((v) => h('option', { value: v, selected: v === state.filter[key] }, v)));
      select.hidden = !values.length;
    };
    return { select, fill };
  });
  const labels = /** @type {HTMLInputElement} */ (h('input', { type: 'search', id: 'filter-labels', placeholder: 'Labels: app=cart,tier in (web,api)', 'aria-label': 'Kubernetes label selector', value: state.filter.labels, onchange: () => { state.filter.labels = labels.value; changed(true); } }));
  return {
    element: h('div', { class: 'filters' }, search, h('div', { class: 'filter-row' }, ...selects.map((s) => s.select)), h('details', { open: Boolean(state.filter.labels) }, h('summary', {}, 'Labels'), labels)),
    fill: () => selects.forEach((s) => s.fill()),
    sync: () => { search.value = state.filter.q; labels.value = state.filter.labels; selects.forEach((s) => s.fill()); },
  };
}
