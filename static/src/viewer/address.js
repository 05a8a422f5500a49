/**
 * The state of the view as the part of the address after "#": what is copied from the address bar shows the same again.
 * The theme is in there as well and is left alone. Called by main.
 *
 * @typedef {object} State
 * @property {string | null} incident
 * @property {string[]} containers keys; the first is the one that the panels show
 * @property {string | null} range such as 15m, up to now
 * @property {[number, number] | null} window µs, in place of a range
 * @property {[number, number] | null} zoom µs, the visible part
 * @property {string[]} metrics beyond the fixed panels
 * @property {string | null} dashboard in place of the fixed panels
 * @property {string | null} analyze periodicity, changepoint or trend
 * @property {boolean} live
 * @property {'relative' | 'utc' | 'local'} clock
 * @property {Record<'q' | 'scope' | 'qos' | 'ns' | 'state' | 'labels', string>} filter
 */

const FILTERS = /** @type {const} */ (['q', 'scope', 'qos', 'ns', 'state', 'labels']);

/** @param {string | null} text @returns {[number, number] | null} */
function span(text) {
  const parts = (text ?? '').split('-').map(Number);
  return parts.length === 2 && parts.every(Number.isFinite) && parts[0] < parts[1] ? [parts[0], parts[1]] : null;
}

const list = (/** @type {string | null} */ text) => (text ?? '').split(',').filter(Boolean);

/** @param {string} hash @returns {State} */
export function parse(hash) {
  const at = new URLSearchParams(hash.replace(/^#/, ''));
  const clock = at.get('clock');
  return {
    incident: at.get('incident'),
    containers: list(at.get('containers')),
    range: at.get('range'),
    window: span(at.get('window')),
    zoom: span(at.get('zoom')),
    metrics: list(at.get('metrics')),
    dashboard: at.get('dashboard'),
    analyze: at.get('analyze'),
    live: at.get('live') === '1',
    clock: clock === 'relative' || clock === 'local' ? clock : 'utc',
    filter: /** @type {State['filter']} */ (Object.fromEntries(FILTERS.map((name) => [name, at.get(name) ?? '']))),
  };
}

/** @param {State} state @param {string} hash what is there now, for the theme */
export function format(state, hash) {
  const at = new URLSearchParams();
  const put = (/** @type {string} */ name, /** @type {string | null | undefined | false} */ value) => value && at.set(name, value);
  put('incident', state.incident);
  put('containers', state.containers.join(','));
  put('range', state.range);
  put('window', state.window && state.window.map(Math.round).join('-'));
  put('zoom', state.zoom && state.zoom.map(Math.round).join('-'));
  put('metrics', state.metrics.join(','));
  put('dashboard', state.dashboard);
  put('analyze', state.analyze);
  put('live', state.live && '1');
  put('clock', state.clock !== 'utc' && state.clock);
  for (const name of FILTERS) put(name, state.filter[name]);
  put('theme', new URLSearchParams(hash.replace(/^#/, '')).get('theme'));
  // Commas and colons may stand as they are in a fragment, and are easier to read so.
  return at.toString().replaceAll('%2C', ',').replaceAll('%40', '@').replaceAll('%3A', ':');
}

/** @param {State} state @param {boolean} isStep something that "back" should undo */
export function write(state, isStep) {
  const next = `#${format(state, location.hash)}`;
  if (next !== location.hash) history[isStep ? 'pushState' : 'replaceState'](null, '', next);
}
