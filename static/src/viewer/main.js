/**
 * Puts the viewer together: the lists at the side, the panels of what was chosen, and the state in the address. It asks
 * the agent and draws with the report's own parts. It must never leave an old answer under a new question (each question
 * ends the one before), and never hide that the agent refused. The page's only entry point.
 *
 * @import { Group } from '../data.js'
 * @import { State } from './address.js'
 */

import { createCharts } from '../charts.js';
import { h, section, severityMark } from '../dom.js';
import { subjectName } from '../facts.js';
import * as format from '../format.js';
import { createOverview } from '../overview.js';
import { panelsOf } from '../panels.js';
import { copyText, saveBytes } from '../save.js';
import { createThemeChoice } from '../theme.js';
import { createTimeline } from '../timeline.js';
import { legend, segments } from '../toolbar.js';
import { createView } from '../view.js';
import { kindName, lossSentence, scopeName } from '../words.js';
import * as address from './address.js';
import { ask, file, follow, Refusal, setToken } from './api.js';
import * as dashboards from './dashboards.js';
import { findingsOf, FIXED, KINDS } from './findings.js';
import { createFilters, drawContainers, drawIncidents } from './lists.js';
import { createMetricSearch } from './metrics.js';
import { FIELDS, groupOf, idOf, panelOf, panelOfMany } from './model.js';

const RANGES = ['1m', '5m', '15m', '1h', '6h', '24h'];
const RANGE = '15m';
/** Containers compared at once: beyond it lines cannot be told apart. */
const MOST_CONTAINERS = 8;
/** A zoom is asked for anew once it has rested so long. */
const REST_MS = 120;
const LIST_EVERY_MS = 10_000;
const RETRY_MS = 5000;
const SEVERITIES = ['critical', 'warning', 'info'];

const seconds = (/** @type {number} */ us) => (us / 1e6).toFixed(6);
const UNITS = { s: 1e6, m: 60e6, h: 3600e6, d: 86_400e6 };
const spanOf = (/** @type {string} */ range) => Number.parseInt(range, 10) * (UNITS[/** @type {'m'} */ (range.at(-1))] ?? 60e6);
const reason = (/** @type {unknown} */ error) => (error instanceof Error ? error.message : String(error));

/** @type {State} */
const state = address.parse(location.hash);
/** @type {any} */
let status = {};
/** @type {any[]} */
let incidents = [];
/** @type {any[]} */
let containers = [];
/** @type {any[]} */
let catalogue = [];
/** @type {Group[]} */
let groups = [];
/** Of other tables than samples. @type {Record<string, Group[]>} */
let beside = {};
/** @type {{kind: string, findings: import('./findings.js').Finding[], overlays: Record<string, import('./findings.js').Overlay>} | null} */
let analysis = null;
/** @type {AbortController | null} */
let analysing = null;
const known = dashboards.builtIn();
/** @type {any[]} */
let events = [];
let nowUs = 0;
let isFolder = false;
/** @type {ReturnType<typeof createView> | null} */
let view = null;
/** @type {ReturnType<typeof createCharts> | null} */
let charts = null;
/** @type {{destroy: () => void, redraw?: () => void}[]} */
let around = [];
/** @type {any} */
let scene = null;
/** @type {AbortController | null} */
let asking = null;
/** @type {AbortController | null} */
let refining = null;
/** @type {AbortController | null} */
let following = null;
let resting = 0;

const said = h('p', { class: 'status', role: 'status' });
const trouble = h('div', { id: 'trouble', role: 'alert' });
const incidentList = h('div', { id: 'incident-list' });
const containerList = h('div', { id: 'container-list' });
const head = h('div', { id: 'head' });
const ranges = h('div', { class: 'row ranges' });
const tools = h('div', { class: 'toolbar' });
const overview = h('div', { class: 'overview', id: 'overview' });
const strip = h('div', { class: 'strip', id: 'strip', role: 'group', 'aria-label': 'Events on the time axis' });
const now = h('p', { class: 'now', id: 'now' });
const stack = h('div', { class: 'stack', id: 'stack', tabindex: 0, role: 'group', 'aria-label': 'Charts. Arrow keys move the cursor from sample to sample, shift and arrows pan, plus and minus zoom, 0 shows the whole window.' });
const empty = h('p', { class: 'empty', id: 'nothing', hidden: true });
const eventList = h('div', { id: 'event-list' });
const findings = h('div', { id: 'findings', role: 'status', hidden: true });
const missing = h('ul', { class: 'missing', id: 'missing', hidden: true });
const filters = createFilters({ containers: () => containers, state, changed: (isServer) => { keep(false); if (isServer) void loadContainers(); else drawLists(); } });
const search = createMetricSearch({ catalogue: () => catalogue, chosen: () => state.metrics, toggle: (name) => { state.metrics = state.metrics.includes(name) ? state.metrics.filter((m) => m !== name) : [...state.metrics, name]; keep(true); void load(); } });

function say(/** @type {string} */ text) {
  said.textContent = text;
  setTimeout(() => said.textContent === text && (said.textContent = ''), 5000);
}

function keep(/** @type {boolean} */ isStep) {
  address.write(state, isStep);
}

/** Shows why something failed, where it will be seen; null takes it away. @param {unknown} error */
function tell(error) {
  if (error instanceof DOMException && error.name === 'AbortError') return;
  if (error instanceof Refusal && error.status === 401) return void askToken();
  trouble.replaceChildren(error ? h('p', { class: 'broken' }, `${reason(error)}${/[.!?]$/.test(reason(error)) ? '' : '.'}`) : '');
}

function askToken() {
  const field = /** @type {HTMLInputElement} */ (h('input', { type: 'password', id: 'token', autocomplete: 'off', 'aria-label': 'Token' }));
  const enter = (/** @type {Event} */ event) => {
    event.preventDefault();
    setToken(field.value);
    location.reload();
  };
  trouble.replaceChildren(h('form', { class: 'broken token', onsubmit: enter }, h('p', {}, 'This agent asks for a token: the text of its token_file.'), field, h('button', { type: 'submit', class: 'primary' }, 'Open')));
  field.focus();
}

const incident = () => incidents.find((one) => one.id === state.incident) ?? null;

/** The key of an incident's cgroup, as /api/containers has it. @param {any} of */
function keyOf(of) {
  return of.cgroup_id === null ? null : `${of.cgroup_id}@${(of.boot_id ?? '').replaceAll('-', '').slice(0, 8)}`;
}

/** What the panels are to show: µs. */
function extent() {
  if (state.window) return { from: state.window[0], to: state.window[1] };
  const span = spanOf(state.range ?? RANGE);
  return { from: nowUs - span, to: nowUs };
}

/** @param {any} of */
function chooseIncident(of) {
  const key = keyOf(of);
  Object.assign(state, { incident: of.id, containers: key ? [key] : [], dashboard: null, range: null, zoom: null, live: false, clock: 'relative' });
  // What is in the window, and a second more so that nothing stands on the edge.
  state.window = [of.window.from_us - 1e6, of.window.to_us + 1e6];
  stopLive();
  keep(true);
  drawLists();
  void Promise.all([load(), loadContainers()]);
  if (matchMedia('(max-width: 980px)').matches) head.scrollIntoView();
}

/** @param {string} key @param {boolean} add */
function chooseContainer(key, add) {
  if (add) {
    const others = state.containers.filter((k) => k !== key);
    if (others.length === state.containers.length && others.length >= MOST_CONTAINERS) return say(`At most ${MOST_CONTAINERS} at once.`);
    state.containers = others.length === state.containers.length ? [...others, key] : others;
  } else {
    state.containers = [key];
    if (incident() && keyOf(incident()) !== key) state.incident = null;
  }
  keep(true);
  drawLists();
  void load();
  if (!add && matchMedia('(max-width: 980px)').matches) head.scrollIntoView();
}

/** @param {string | null} range @param {[number, number] | null} window */
function chooseRange(range, window) {
  Object.assign(state, { range, window, zoom: null, incident: null });
  if (state.clock === 'relative') state.clock = 'utc';
  if (window && state.live) stopLive();
  keep(true);
  void Promise.all([load(), loadContainers()]);
}

function drawLists() {
  drawIncidents(incidentList, { incidents, chosen: state.incident, nowUs, isFolder, choose: chooseIncident });
  drawContainers(containerList, { containers, chosen: state.containers, filter: state.filter, nowUs, isFolder, choose: chooseContainer });
}

async function loadContainers() {
  const { from, to } = extent();
  try {
    const answer = await ask('/api/containers', { from: seconds(from), to: seconds(to), labels: state.filter.labels });
    containers = answer.containers;
    filters.fill();
    drawLists();
  } catch (error) {
    tell(error);
  }
}

async function loadIncidents() {
  incidents = (await ask('/api/incidents')).incidents;
}

/** @param {{from: number, to: number}} part @param {number} pixels @param {AbortSignal} signal */
async function fetchGroups(part, pixels, signal) {
  const ms = Math.max(1, Math.ceil((part.to - part.from) / 1000 / pixels));
  const picked = wanted();
  const names = (/** @type {string} */ table) => picked.filter((m) => m.table === table).map((m) => m.name);
  const get = (/** @type {string} */ table, /** @type {string[]} */ metrics, /** @type {string} */ of) => ask('/api/timeseries', { table, metric: metrics.join(','), containers: of, from: seconds(part.from), to: seconds(part.to), resolution: `${ms}ms` }, signal);
  const keys = state.containers.join(',');
  const others = ['io_devices', 'node'].filter((table) => names(table).length);
  const [answer, ...more] = await Promise.all([
    get('samples', [...new Set([...(dashboard() ? ['memory_current'] : FIELDS), ...names('samples')])], keys),
    ...others.map((table) => get(table, names(table), table === 'node' ? '' : keys)),
  ]);
  const found = state.containers.flatMap((key) => answer.series.filter((/** @type {any} */ s) => s.key === key));
  const groupsOf = (/** @type {any} */ a) => a.series.map((/** @type {any} */ s) => ({ ...groupOf(s, a.from_us), id: [s.key ?? 'node', s.device].filter(Boolean).join('/') }));
  return { groups: found.map((/** @type {any} */ s) => groupOf(s, answer.from_us)), beside: Object.fromEntries(others.map((table, i) => [table, groupsOf(more[i])])), lost: [answer, ...more].flatMap((a) => a.lost) };
}

const dashboard = () => (state.dashboard === 'file' ? dashboards.opened() : (known.find((d) => d.id === state.dashboard) ?? null));
const metricOf = (/** @type {string} */ id) => catalogue.find((m) => idOf(m) === id);

/** The metrics of the catalogue that are drawn beyond the fixed panels. */
function wanted() {
  const ids = [...(dashboard()?.panels.flatMap((p) => p.metrics) ?? []), ...state.metrics];
  return [...new Set(ids)].map(metricOf).filter(Boolean);
}

/** @param {Group[]} of @param {Record<string, Group[]>} [others] */
function panelsFor(of, others = beside) {
  const groupsOf = (/** @type {any} */ metric) => (metric.table === 'samples' ? of : (others[metric.table] ?? []));
  const chosen = dashboard();
  const own = chosen
    ? chosen.panels.map((panel, i) => panelOfMany({ title: panel.title, metrics: panel.metrics.map(metricOf).filter(Boolean), groupsOf: (m) => groupsOf(m).filter((g) => m.table === 'node' || dashboards.takes(/** @type {any} */ (g).about, panel.containers)) }, `${chosen.id}-${i}`)).filter((p) => p.unit)
    : panelsOf(of[0], incident(), nameOf);
  return [...own, ...state.metrics.map(metricOf).filter(Boolean).map((metric) => panelOf(metric, groupsOf(metric)))];
}

/**
 * Shows a dashboard: its containers, its time, its panels.
 * @param {string | null} id null = the fixed panels
 */
async function chooseDashboard(id) {
  state.dashboard = id;
  const chosen = dashboard();
  if (!chosen) {
    state.dashboard = null;
    keep(true);
    return void load();
  }
  const { scope, namespace, labels, path, search: word } = chosen.containers;
  const kept = status.store?.from_us && chosen.time === 'run';
  const time = kept ? { from: seconds(status.store.from_us - 1), to: seconds(Math.max(status.store.to_us, isFolder ? 0 : nowUs) + 1) } : { range: chosen.time === 'run' ? RANGE : chosen.time };
  try {
    const found = (await ask('/api/containers', { scope, namespace, labels, containers: path, search: word, ...time })).containers.slice(0, MOST_CONTAINERS);
    if (!found.length) {
      state.dashboard = null;
      return say(`No container is as “${chosen.title}” asks for.`);
    }
    const least = Math.min(...found.map((/** @type {any} */ c) => c.first_us));
    const most = Math.max(...found.map((/** @type {any} */ c) => c.last_us));
    Object.assign(state, { incident: null, containers: found.map((/** @type {any} */ c) => c.key), zoom: null, live: false, clock: 'utc', window: chosen.time === 'run' ? [least - 1, most + 1] : null, range: chosen.time === 'run' ? null : chosen.time });
    stopLive();
    keep(true);
    drawLists();
    await Promise.all([load(), loadContainers()]);
  } catch (error) {
    tell(error);
  }
}

/** @param {string | null} kind */
function chooseAnalysis(kind) {
  state.analyze = kind;
  keep(true);
  void analyse();
}

/** Asks what the visible part does over time, and draws it over the panels. */
async function analyse() {
  analysing?.abort();
  const kind = state.analyze;
  if (!kind || !view || !state.containers.length) {
    analysis = null;
    drawFindings();
    charts?.redraw();
    return;
  }
  const mine = (analysing = new AbortController());
  const { from, to } = view.range;
  const names = [...new Set([...(dashboard() ? [] : Object.keys(FIXED)), ...wanted().filter((m) => m.table === 'samples' && m.kind !== 'limit').map((m) => m.name)])];
  if (!names.length) return;
  findings.setAttribute('aria-busy', 'true');
  try {
    const answer = await ask(`/api/analyze/${kind}`, { metric: names.join(','), containers: state.containers[0], from: seconds(from), to: seconds(to) }, mine.signal);
    if (mine.signal.aborted) return;
    analysis = { kind, ...findingsOf(kind, answer, metricOf, state.containers[0]) };
    const chosen = dashboard();
    // a dashboard's panels have names of their own
    if (chosen) for (const [i, panel] of chosen.panels.entries()) for (const name of panel.metrics) analysis.overlays[`${chosen.id}-${i}`] ??= analysis.overlays[FIXED[name] ?? name];
    drawFindings();
    charts?.redraw();
  } catch (error) {
    tell(error);
  } finally {
    if (!mine.signal.aborted) findings.removeAttribute('aria-busy');
  }
}

function drawFindings() {
  findings.hidden = !analysis;
  if (!analysis) return findings.replaceChildren();
  const told = analysis.findings.filter((f) => f.found);
  const silent = analysis.findings.filter((f) => !f.found);
  const title = { periodicity: 'What repeats', changepoint: 'What changed', trend: 'Where it is going' }[/** @type {'trend'} */ (analysis.kind)];
  findings.replaceChildren(
    h('h3', {}, `${title} in ${nameOf(state.containers[0])}`),
    told.length ? h('ul', {}, ...told.map((f) => h('li', { 'data-finding': f.metric }, h('code', {}, f.metric), ` ${f.text}`))) : '',
    silent.length ? h('p', { class: 'note' }, `Of ${silent.map((f) => f.metric).join(', ')}: ${[...new Set(silent.map((f) => f.text.replace(/ since .*/, '')))].join(' or ')}.`) : '',
    analysis.findings.length ? '' : h('p', { class: 'note' }, 'There are too few readings in this part to say anything.'),
  );
}

/** @param {string} id a key, or the bare cgroup id of an event */
function nameOf(id) {
  const known = containers.find((c) => c.key === id || c.cgroup_id === id);
  return known ? `${scopeName(known.scope)} ${subjectName(known)}` : `cgroup ${id.split('@')[0]}`;
}

/** The event that the incident is about. @param {any} event */
function isChief(event) {
  const of = incident();
  return Boolean(of) && event.ts_us === of.ts_us && event.kind === of.kind;
}

/** Asks for what is chosen and draws it. @param {boolean} [quiet] the same view, with newer rows */
async function load(quiet = false) {
  asking?.abort();
  const mine = (asking = new AbortController());
  refining?.abort();
  clearTimeout(resting);
  document.documentElement.dataset.state = 'loading';
  drawHead();
  drawRanges();
  if (!quiet) {
    analysing?.abort();
    analysis = null;
    drawFindings();
  }
  if (!state.containers.length) {
    clear('Choose a container or an incident.');
    document.documentElement.dataset.state = 'idle';
    return;
  }
  const whole = extent();
  try {
    const [answer, told] = await Promise.all([
      fetchGroups(whole, 600, mine.signal),
      ask('/api/events', { from: seconds(whole.from), to: seconds(whole.to), containers: state.containers.join(',') }, mine.signal),
    ]);
    if (mine.signal.aborted) return;
    tell(null);
    events = told.events;
    groups = answer.groups;
    beside = answer.beside;
    missing.hidden = !answer.lost.length;
    missing.replaceChildren(...answer.lost.map((/** @type {any} */ loss) => h('li', {}, lossSentence(loss))));
    if (!groups.length || groups[0].id !== state.containers[0]) clear('No samples of this container in this range: it had not started, was gone, or the agent was not running.');
    else draw(whole, quiet);
    document.documentElement.dataset.openedMs ??= performance.now().toFixed(0);
  } catch (error) {
    tell(error);
  } finally {
    if (!mine.signal.aborted) document.documentElement.dataset.state = 'idle';
  }
}

/** @param {string} why */
function clear(why) {
  charts?.destroy();
  for (const part of around) part.destroy();
  [charts, around, view] = [null, [], null];
  [tools, overview, strip, now].forEach((part) => part.replaceChildren());
  empty.textContent = why;
  empty.hidden = false;
  eventList.replaceChildren(h('p', { class: 'empty' }, 'No events.'));
}

/** @param {{from: number, to: number}} whole @param {boolean} quiet */
function draw(whole, quiet) {
  empty.hidden = true;
  const same = quiet && view && charts && scene;
  const follows = same && view && view.range.from === view.extent.from && view.range.to === view.extent.to;
  if (!same || !view) {
    charts?.destroy();
    charts = null;
    view = createView(whole.from, whole.to);
    if (state.zoom) view.setRange(...state.zoom);
    view.onRange(onZoom);
    view.onCursor(drawNow);
  } else {
    view.extent = { ...whole };
    if (follows) view.range = { ...whole };
  }
  const originUs = same ? scene.originUs : (incident()?.ts_us ?? whole.from);
  const restUs = incident()?.ts_us ?? whole.to;
  const panels = panelsFor(groups);
  if (same) Object.assign(scene, { group: groups[0], restUs, events });
  else scene = { group: groups[0], incident: incident(), events, isIncident: isChief, originUs, restUs, view, clock: () => state.clock, nameOf, panels, overlay: (/** @type {string} */ id) => analysis?.overlays[id] };
  if (!same || !charts?.replace(panels, groups[0])) {
    charts?.destroy();
    scene.panels = panels;
    charts = createCharts(stack, scene);
  }
  for (const part of around) part.destroy();
  around = [createOverview(overview, scene), createTimeline({ strip, list: eventList }, { events, isIncident: isChief, originUs, nameOf, view })];
  drawTools();
  drawNow();
  if (view.range.from !== view.extent.from || view.range.to !== view.extent.to) void refine();
  if (state.analyze && !quiet) void analyse();
}

function onZoom() {
  if (!view) return;
  const isWhole = view.range.from === view.extent.from && view.range.to === view.extent.to;
  state.zoom = isWhole ? null : [view.range.from, view.range.to];
  refining?.abort();
  clearTimeout(resting);
  // What is there already, at once; what the zoom brings out, when it rests.
  charts?.replace(panelsFor(groups), groups[0]);
  drawTools();
  resting = setTimeout(() => { keep(false); void refine(); if (state.analyze) void analyse(); }, REST_MS);
}

/** The visible part at the resolution of the screen. */
async function refine() {
  if (!view || !charts) return;
  if (view.range.from === view.extent.from && view.range.to === view.extent.to) return;
  const mine = (refining = new AbortController());
  try {
    const { groups: finer, beside: others } = await fetchGroups(view.range, Math.max(300, stack.clientWidth), mine.signal);
    if (mine.signal.aborted || !finer.length || finer[0].id !== groups[0].id) return;
    // Limits are read seldom: what a narrow range does not hold stays as the whole range has it.
    for (const group of finer) {
      const whole = groups.find((g) => g.id === group.id);
      for (const name of Object.keys(whole?.drawn ?? {})) if (whole?.drawn && group.drawn && !group.drawn[name]) group.drawn[name] = whole.drawn[name];
    }
    charts?.replace(panelsFor(finer, others), finer[0]);
    stack.dataset.refined = String(Number(stack.dataset.refined ?? 0) + 1);
  } catch (error) {
    tell(error);
  }
}

function drawHead() {
  const of = incident();
  const focus = containers.find((c) => c.key === state.containers[0]);
  if (of) {
    document.title = `${kindName(of.kind)} in ${subjectName(of)} · fgm`;
    const link = (/** @type {string} */ kind) => ({ incident: of.id, format: kind });
    head.replaceChildren(h('header', { class: `hero${of.severity === 'critical' ? ' hero-critical' : ''}` },
      h('div', { class: 'eyebrow' }, h('span', { class: `badge badge-${of.severity}` }, severityMark(of.severity), of.severity), h('span', { class: 'when' }, format.utc(of.ts_us)), h('span', { class: 'soft' }, format.localClock(of.ts_us))),
      h('h1', {}, `${kindName(of.kind)} in ${scopeName(of.scope)} ${subjectName(of)}`),
      h('p', { class: 'summary', id: 'summary' }, of.summary),
      h('div', { class: 'buttons-row' },
        h('button', { type: 'button', class: 'primary', id: 'save-report', onclick: () => save('/api/export', link('html')) }, 'Save report (HTML)'),
        h('button', { type: 'button', id: 'save-parquet', onclick: () => save('/api/export', link('parquet')) }, 'Save Parquet'),
        h('button', { type: 'button', onclick: async () => say((await copyText(of.summary)) ? 'Summary copied.' : 'The browser refused to copy.') }, 'Copy summary'),
        h('button', { type: 'button', onclick: async () => say((await copyText(location.href)) ? 'Link copied: it shows this view again.' : 'The browser refused to copy.') }, 'Copy link'))));
    return;
  }
  const name = focus ? `${scopeName(focus.scope)} ${subjectName(focus)}` : state.containers.length ? nameOf(state.containers[0]) : '';
  document.title = name ? `${name} · fgm` : 'fgm';
  head.replaceChildren(h('header', { class: 'section' },
    h('h1', { class: 'plain' }, name || 'Nothing chosen'),
    focus && h('p', { class: 'where soft' }, ...[focus.pod && `pod ${focus.namespace ? `${focus.namespace}/` : ''}${focus.pod}`, focus.qos, focus.is_live ? (isFolder ? 'there to the end of the record' : 'live') : `gone since ${format.utc(focus.last_us)}`].filter(Boolean).map((text) => h('span', {}, text)), h('code', {}, focus.cgroup_path)),
    state.containers.length > 0 && h('div', { class: 'buttons-row' }, ...['parquet', 'csv', 'html'].map((kind) => h('button', { type: 'button', onclick: () => { const part = view?.range ?? extent(); return save('/api/export', { containers: state.containers.join(','), from: seconds(part.from), to: seconds(part.to), format: kind }); } }, `Save ${{ parquet: 'Parquet', csv: 'CSV', html: 'report (HTML)' }[kind]}`)))));
}

/** @param {string} path @param {Record<string, any>} params */
async function save(path, params) {
  say('The agent makes the file…');
  try {
    const made = await file(path, params);
    saveBytes(made.bytes, made.name);
    say(`Saved ${made.name}.`);
  } catch (error) {
    said.textContent = '';
    tell(error);
  }
}

function drawRanges() {
  const custom = Boolean(state.window);
  const choices = RANGES.map((value) => ({ value, text: [value], title: `The last ${value}` }));
  const kept = status.store?.from_us ? { from: status.store.from_us, to: Math.max(status.store.to_us ?? 0, isFolder ? 0 : nowUs) } : null;
  ranges.replaceChildren(
    segments('range', 'Range', custom ? [...choices, { value: 'custom', text: [incident() ? 'incident' : 'fixed'], title: `${format.utc(extent().from)} to ${format.utc(extent().to)}` }] : choices, custom ? 'custom' : (state.range ?? RANGE), (value) => value !== 'custom' && chooseRange(value, null)),
    kept ? h('button', { type: 'button', id: 'all', title: 'All that is kept', onclick: () => chooseRange(null, [kept.from - 1, kept.to + 1]) }, 'All') : '',
    h('button', { type: 'button', id: 'live', 'aria-pressed': String(state.live), disabled: isFolder, title: isFolder ? 'A copied folder has nothing live' : 'Follow what happens now', onclick: () => (state.live ? stopLive() : startLive()) }, h('span', { class: 'dot', 'aria-hidden': 'true' }), state.live ? 'Live: on' : 'Live'),
    h('span', { class: 'soft note' }, `${format.day(extent().from)} ${format.clock(extent().from, false, 0)} to ${format.clock(extent().to, false, 0)} UTC`),
  );
}

function drawTools() {
  const active = /** @type {HTMLInputElement | null} */ (tools.contains(document.activeElement) ? document.activeElement : null);
  if (!view || active?.id === 'metric') return;
  const at = view;
  const button = (/** @type {string} */ text, /** @type {string} */ label, /** @type {() => void} */ act) => h('button', { type: 'button', 'aria-label': label, title: label, onclick: act }, text);
  const zoomed = at.range.from !== at.extent.from || at.range.to !== at.extent.to;
  tools.replaceChildren(
    h('div', { class: 'row' },
      h('div', { class: 'row' }, search),
      h('div', { class: 'row' },
        h('div', { class: 'buttons', role: 'group', 'aria-label': 'Zoom and pan' }, button('−', 'Zoom out', () => at.zoom(2)), button('+', 'Zoom in', () => at.zoom(0.5)), button('‹', 'Earlier', () => at.pan(-0.25)), button('›', 'Later', () => at.pan(0.25)), button('Reset', 'Reset: show the whole window', () => at.reset())),
        zoomed && h('button', { type: 'button', id: 'narrow', title: 'Make what is visible the whole range', onclick: () => chooseWindow(at.range) }, 'Keep this range'),
        segments('clock', 'Time axis', [{ value: 'relative', text: [incident() ? 'from event' : 'from start'] }, { value: 'utc', text: ['UTC'] }, { value: 'local', text: ['local'] }], state.clock, (mode) => { state.clock = /** @type {State['clock']} */ (mode); keep(false); charts?.redraw(); }))),
    h('div', { class: 'row keys' }, legend(groups), h('p', { class: 'note gestures' }, 'Drag to zoom, shift-drag to pan, wheel to zoom after a click, double-click to reset; arrow keys step through samples.')),
    h('div', { class: 'row choices' },
      segments('analyze', 'Analysis', [{ value: '', text: ['no analysis'] }, ...KINDS.map((kind) => ({ value: kind, text: [{ periodicity: 'periods', changepoint: 'changes', trend: 'trend' }[kind]], title: { periodicity: 'What repeats, and how often', changepoint: 'Where a level or a climb changed', trend: 'Where it is going, and when it is at its limit' }[kind] }))], state.analyze ?? '', (kind) => chooseAnalysis(kind || null)),
      h('label', { class: 'field' }, 'Panels ', createDashboardChoice())),
    state.metrics.length ? h('div', { class: 'chips' }, ...state.metrics.map((name) => h('button', { type: 'button', class: 'chip', title: 'Take this panel away', onclick: () => { state.metrics = state.metrics.filter((m) => m !== name); keep(true); void load(); } }, name, ' ×'))) : '',
    groups.length > 1 && !dashboard() ? h('p', { class: 'note' }, `The fixed panels show ${nameOf(groups[0].id)}; metric panels have a line for each of the ${groups.length} compared.`) : '',
  );
  // What was chosen with the keyboard keeps the focus.
  if (!active) return;
  const same = [...tools.querySelectorAll('button, input, select')].find((node) => node.id === active.id && /** @type {HTMLInputElement} */ (node).name === active.name && node.textContent === active.textContent && (active.type !== 'radio' || /** @type {HTMLInputElement} */ (node).value === active.value));
  if (same instanceof HTMLElement) same.focus({ preventScroll: true });
}

function createDashboardChoice() {
  const own = dashboards.opened();
  const all = [...known, ...(own ? [own] : [])];
  const select = /** @type {HTMLSelectElement} */ (h('select', { id: 'dashboard', onchange: () => (select.value === '+' ? file_.click() : void chooseDashboard(select.value || null)) },
    h('option', { value: '' }, 'standard'), ...all.map((d) => h('option', { value: d.id, selected: d.id === state.dashboard, title: d.about ?? null }, d.title)), h('option', { value: '+' }, 'open a dashboard’s file…')));
  const file_ = /** @type {HTMLInputElement} */ (h('input', { type: 'file', id: 'dashboard-file', accept: '.json,application/json', 'aria-label': 'A dashboard as JSON', hidden: true, onchange: async () => {
    try {
      const text = await file_.files?.[0]?.text();
      if (text === undefined) return;
      dashboards.open(text);
      await chooseDashboard('file');
    } catch (error) {
      tell(error);
    }
  } }));
  return h('span', {}, select, file_);
}

/** @param {{from: number, to: number}} part */
function chooseWindow(part) {
  Object.assign(state, { window: [part.from, part.to], range: null, zoom: null });
  keep(true);
  void Promise.all([load(), loadContainers()]);
}

function drawNow() {
  if (!view || !scene) return;
  const t = view.cursor ?? scene.restUs;
  const title = view.cursor === null ? (incident() ? 'At the event' : state.live ? 'Now' : 'At the end') : state.clock === 'relative' ? format.relative(t - scene.originUs) : format.clock(t, state.clock === 'local');
  now.replaceChildren(h('strong', {}, title), h('span', {}, `${format.clock(t)} UTC`), h('span', { class: 'soft' }, format.localClock(t)));
}

async function startLive() {
  if (state.window) Object.assign(state, { window: null, range: '5m', incident: null, clock: 'utc' });
  state.live = true;
  state.zoom = null;
  keep(true);
  void loadContainers();
  following?.abort();
  const mine = (following = new AbortController());
  await load();
  let listed = performance.now();
  while (!mine.signal.aborted) {
    try {
      await follow({ containers: state.containers.join(','), metric: 'memory_current,cpu_stat_usage_usec' }, (name, data) => {
        if (name === 'tick') {
          nowUs = data.now_us;
          document.documentElement.dataset.ticks = String(Number(document.documentElement.dataset.ticks ?? 0) + 1);
          if (document.documentElement.dataset.state !== 'loading') void load(true);
          if (performance.now() - listed > LIST_EVERY_MS) {
            listed = performance.now();
            void loadContainers();
          }
        } else if (name === 'samples') {
          for (const series of data.series) {
            const row = containers.find((c) => c.key === series.key);
            const newest = series.rows.at(-1)?.values.memory_current;
            if (row && newest !== undefined) Object.assign(row, { memory_bytes: newest, is_live: true });
          }
          drawLists();
        } else if (name === 'incidents') {
          for (const one of data.incidents) incidents = [one, ...incidents.filter((old) => old.id !== one.id)];
          incidents.sort((a, b) => b.ts_us - a.ts_us);
          say(`${kindName(data.incidents[0].kind)} in ${subjectName(data.incidents[0])}.`);
          drawLists();
        } else if (name === 'lost') say(`${data.rows} rows were too many for one message.`);
        else if (name === 'problem') tell(new Refusal(data.status, data.detail));
      }, mine.signal);
      if (!mine.signal.aborted) throw new Refusal(0, 'the agent ended the live stream');
    } catch (error) {
      if (mine.signal.aborted) return;
      tell(error);
      if (error instanceof Refusal && [401, 403, 404].includes(error.status)) return stopLive();
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

function stopLive() {
  following?.abort();
  following = null;
  state.live = false;
  keep(false);
  drawRanges();
}

/** What to show when the address says nothing: the worst of the newest, else the first container. */
function chooseFirst() {
  if (state.incident || state.containers.length) return;
  const worst = [...incidents].sort((a, b) => SEVERITIES.indexOf(a.severity) - SEVERITIES.indexOf(b.severity) || Number(b.kind === 'oom_kill') - Number(a.kind === 'oom_kill') || b.ts_us - a.ts_us)[0];
  if (worst) return void Object.assign(state, { incident: worst.id, containers: keyOf(worst) ? [keyOf(worst)] : [], window: [worst.window.from_us - 1e6, worst.window.to_us + 1e6], clock: 'relative' });
  if (isFolder && !state.range && !state.window && status.store.from_us) state.window = [status.store.from_us - 1, status.store.to_us + 1];
}

async function restore() {
  // The address is the newer one: nothing may be written to it before it was read.
  following?.abort();
  Object.assign(state, address.parse(location.hash));
  filters.sync();
  drawLists();
  await Promise.all([load(), loadContainers()]);
  if (state.live) void startLive();
}

async function start() {
  const theme = createThemeChoice(() => { charts?.redraw(); around.forEach((part) => part.redraw?.()); });
  const about = h('span', { class: 'brand' }, h('strong', {}, 'fgm'));
  document.querySelector('.loading')?.remove();
  document.body.prepend(
    h('a', { class: 'skip', href: '#stack', onclick: (/** @type {Event} */ e) => { e.preventDefault(); stack.focus(); stack.scrollIntoView(); } }, 'Skip to the charts'),
    h('div', { class: 'top', role: 'banner' }, about, h('div', { class: 'actions' }, said, theme)),
    h('div', { class: 'viewer' },
      h('aside', { 'aria-label': 'Incidents and containers' },
        h('section', { class: 'section', 'aria-labelledby': 'incidents-title' }, h('h2', { id: 'incidents-title' }, 'Incidents'), incidentList),
        h('section', { class: 'section', 'aria-labelledby': 'containers-title' }, h('h2', { id: 'containers-title' }, 'Containers'), filters.element, containerList)),
      h('main', { id: 'main' }, trouble, head,
        h('section', { class: 'section', id: 'charts', 'aria-labelledby': 'charts-title' }, h('h2', { id: 'charts-title', class: 'hidden' }, 'Charts'), ranges, tools, findings, empty, h('div', { class: 'rail' }, overview, strip, now), stack),
        section('events', 'Events', 'of what is chosen, in time order', eventList),
        missing)),
  );
  document.addEventListener('keydown', (event) => {
    const typing = event.target instanceof HTMLElement && /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
    if (event.key === '/' && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      document.getElementById('search')?.focus();
    }
  });
  addEventListener('popstate', () => void restore());
  addEventListener('hashchange', () => { if (address.format(state, location.hash) !== location.hash.replace(/^#/, '')) void restore(); });
  status = await ask('/api/status');
  isFolder = status.mode === 'folder';
  nowUs = status.now_us ?? Date.now() * 1000;
  about.append(` ${status.node ?? 'viewer'}${isFolder ? ' · a copied folder, nothing live' : ''}`);
  if (status.degraded) tell(new Refusal(0, `the agent is degraded: ${status.degraded}`));
  [catalogue] = await Promise.all([ask('/api/metrics').then((a) => a.metrics), loadIncidents()]);
  chooseFirst();
  await loadContainers();
  if (!state.containers.length && containers.length) state.containers = [containers[0].key];
  keep(false);
  drawLists();
  await load();
  if (state.live) void startLive();
  document.documentElement.dataset.ready = 'yes';
}

start().catch((error) => {
  tell(error);
  document.documentElement.dataset.ready = 'broken';
});
