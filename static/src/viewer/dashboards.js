/**
 * Dashboards: panels, containers and time as JSON. Those of scenarios/ are in the page, others are read from a file that
 * the reader picks; nothing is sent anywhere. A file that is wrong is refused with what is wrong in it. Called by main.
 *
 * @typedef {{scope?: string, namespace?: string, labels?: string, path?: string, search?: string}} Selector
 * @typedef {{title: string, metrics: string[], containers?: Selector}} PanelSpec
 * @typedef {object} Dashboard
 * @property {string} id
 * @property {string} title
 * @property {string} [about]
 * @property {string} time `run` (from the first to the last sample of its containers), or a length such as 15m
 * @property {Selector} containers
 * @property {PanelSpec[]} panels
 */

/* global __FGM_DASHBOARDS__ */
const KEPT = 'fgm-dashboard';
const SELECTORS = ['scope', 'namespace', 'labels', 'path', 'search'];

/** @param {any} raw @param {string} id @returns {Dashboard} */
export function read(raw, id) {
  const fail = (/** @type {string} */ what) => { throw new Error(`This is no dashboard: ${what}`); };
  if (typeof raw !== 'object' || raw === null) fail('it is no object');
  if (raw.format !== 1) fail(`format is ${raw.format}, this page knows 1`);
  if (typeof raw.title !== 'string' || !raw.title) fail('title is missing');
  const selector = (/** @type {any} */ s, /** @type {string} */ where) => {
    for (const key of Object.keys(s ?? {})) if (!SELECTORS.includes(key)) fail(`${where} has ${key}; known are ${SELECTORS.join(', ')}`);
    return s ?? {};
  };
  const time = raw.time ?? 'run';
  if (time !== 'run' && !/^\d+[smhd]$/.test(time)) fail(`time is ${time}; it is "run" or a length such as 15m`);
  if (!Array.isArray(raw.panels) || !raw.panels.length) fail('it has no panels');
  raw.panels.forEach((/** @type {any} */ panel, /** @type {number} */ i) => {
    if (typeof panel?.title !== 'string' || !Array.isArray(panel.metrics) || !panel.metrics.length) fail(`panel ${i + 1} needs a title and metrics`);
    selector(panel.containers, `panel ${i + 1}`);
  });
  return { id, title: raw.title, about: raw.about, time, containers: selector(raw.containers, 'containers'), panels: raw.panels };
}

/** What the page brings. @returns {Dashboard[]} */
export function builtIn() {
  const all = /** @type {Record<string, any>} */ (__FGM_DASHBOARDS__);
  return Object.entries(all).map(([id, raw]) => read(raw, id));
}

/** The one that was opened from a file in this tab. @returns {Dashboard | null} */
export function opened() {
  try {
    const text = sessionStorage.getItem(KEPT);
    return text ? read(JSON.parse(text), 'file') : null;
  } catch {
    return null;
  }
}

/** @param {string} text @returns {Dashboard} */
export function open(text) {
  let raw;
  try {
    raw = JSON.parse(text);
  } catch (error) {
    throw new Error(`This is no JSON: ${error instanceof Error ? error.message : error}`);
  }
  const dashboard = read(raw, 'file');
  try {
    sessionStorage.setItem(KEPT, text);
  } catch {
    // A browser without storage forgets it at the next load.
  }
  return dashboard;
}

/** `*` for any run of characters. @param {string} pattern @param {string} text */
export function glob(pattern, text) {
  return new RegExp(`^${pattern.split('*').map((part) => part.replace(/[.+?^${}()|[\]\\]/g, '\\$&')).join('.*')}$`).test(text);
}

/** Of what is in a container's row; labels only the agent knows. @param {any} about @param {Selector | undefined} selector */
export function takes(about, selector) {
  if (!selector) return true;
  return (!selector.scope || about.scope === selector.scope)
    && (!selector.namespace || about.namespace === selector.namespace)
    && (!selector.path || glob(selector.path, about.cgroup_path ?? ''))
    && (!selector.search || [about.container, about.pod, about.cgroup_path].join(' ').toLowerCase().includes(selector.search.toLowerCase()));
}
