/**
 * Puts the viewer together: the lists at the side, the panels of what was chosen, and the state in the address. It asks
 * the agent and draws with the report's own parts. It must never leave an old answer under a new question (each question
 * ends the one before), and never hide that the agent refused. The page's only entry point.
 */

import { createCharts } from '../charts.js';
import { h, section } from '../dom.js';
import * as format from '../format.js';
import { createOverview } from '../overview.js';
import { createThemeChoice } from '../theme.js';
import { createTimeline } from '../timeline.js';
import { createView } from '../view.js';
import { lossSentence } from '../words.js';
import * as address from './address.js';
import { analyse, forget } from './analysis.js';
import { ask, Refusal } from './api.js';
import { drawRanges, drawTools } from './controls.js';
import { fetchGroups, panelsFor } from './groups.js';
import { drawHead } from './head.js';
import { createFilters, drawContainers, drawIncidents } from './lists.js';
import { endLive, followLive } from './live.js';
import { createMetricSearch } from './metrics.js';
import { containerList, empty, eventList, findings, head, incidentList, keep, missing, now, overview, ranges, said, say, stack, strip, tell, tools, trouble } from './page.js';
import { analysis, around, catalogue, charts, containers, dashboard, events, extent, groups, incident, incidents, isFolder, keyOf, MOST_CONTAINERS, nameOf, nowUs, RANGE, scene, seconds, set, state, status, view } from './session.js';

/** A zoom is asked for anew once it has rested so long. */
const REST_MS = 250;
const SEVERITIES = ['critical', 'warning', 'info'];

/** @type {AbortController | null} */
let asking = null;
/** @type {AbortController | null} */
let refining = null;
let resting = 0;
/** Whether the charts show what was asked for the visible part alone. */
let isFiner = false;

const filters = createFilters({ containers: () => containers, state, changed: (isServer) => { keep(false); if (isServer) void loadContainers(); else drawLists(); } });
const search = createMetricSearch({ catalogue: () => catalogue, chosen: () => state.metrics, toggle: toggleMetric });
const acts = { chooseRange, chooseWindow, startLive: () => void startLive(), stopLive, chooseAnalysis, chooseDashboard, toggleMetric };

/** @param {string} name */
function toggleMetric(name) {
  state.metrics = state.metrics.includes(name) ? state.metrics.filter((m) => m !== name) : [...state.metrics, name];
  keep(true);
  void load();
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
    set({ containers: answer.containers });
    filters.fill();
    drawLists();
  } catch (error) {
    tell(error);
  }
}

async function loadIncidents() {
  set({ incidents: (await ask('/api/incidents')).incidents });
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

/** The event that the incident is about. @param {any} event */
function isChief(event) {
  const of = incident();
  return Boolean(of) && event.ts_us === of.ts_us && event.kind === of.kind;
}

/**
 * Asks for what is chosen and draws it.
 * @param {boolean} [quiet] the same view, with newer rows
 * @param {Promise<void>} [listed] at the start: the list of containers, which is asked for beside the readings; names come from it
 */
async function load(quiet = false, listed) {
  asking?.abort();
  const mine = (asking = new AbortController());
  refining?.abort();
  clearTimeout(resting);
  document.documentElement.dataset.state = 'loading';
  drawHead();
  drawRanges(acts);
  if (!quiet) forget();
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
      listed?.then(drawHead),
    ]);
    if (mine.signal.aborted) return;
    tell(null);
    set({ events: told.events, groups: answer.groups, beside: answer.beside });
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
  set({ charts: null, around: [], view: null });
  [tools, overview, strip, now].forEach((part) => part.replaceChildren());
  empty.textContent = why;
  empty.hidden = false;
  eventList.replaceChildren(h('p', { class: 'empty' }, 'No events.'));
}

/** @param {{from: number, to: number}} whole @param {boolean} quiet */
function draw(whole, quiet) {
  empty.hidden = true;
  isFiner = false;
  const same = quiet && view && charts && scene;
  const follows = same && view && view.range.from === view.extent.from && view.range.to === view.extent.to;
  if (!same || !view) {
    charts?.destroy();
    const fresh = createView(whole.from, whole.to);
    set({ charts: null, view: fresh });
    if (state.zoom) fresh.setRange(...state.zoom);
    fresh.onRange(onZoom);
    fresh.onCursor(drawNow);
  } else {
    view.extent = { ...whole };
    if (follows) view.range = { ...whole };
  }
  const originUs = same ? scene.originUs : (incident()?.ts_us ?? whole.from);
  const restUs = incident()?.ts_us ?? whole.to;
  const panels = panelsFor(groups);
  if (same) Object.assign(scene, { group: groups[0], restUs, events });
  else set({ scene: { group: groups[0], incident: incident(), events, isIncident: isChief, originUs, restUs, view, clock: () => state.clock, nameOf, panels, overlay: (/** @type {string} */ id) => analysis?.overlays[id] } });
  if (!same || !charts?.replace(panels, groups[0])) {
    charts?.destroy();
    scene.panels = panels;
    set({ charts: createCharts(stack, scene) });
  }
  for (const part of around) part.destroy();
  set({ around: [createOverview(overview, scene), createTimeline({ strip, list: eventList }, { events, isIncident: isChief, originUs, nameOf, view })] });
  drawTools(acts, search);
  drawNow();
  if (view.range.from !== view.extent.from || view.range.to !== view.extent.to) void refine();
  if (state.analyze && !quiet) void analyse();
}

/** Each step of a wheel comes here: what does not change with the range is left alone. */
function onZoom() {
  if (!view) return;
  const isWhole = view.range.from === view.extent.from && view.range.to === view.extent.to;
  state.zoom = isWhole ? null : [view.range.from, view.range.to];
  refining?.abort();
  clearTimeout(resting);
  // What is there already, at once; what the zoom brings out, when it rests.
  if (isFiner) charts?.replace(panelsFor(groups), groups[0], false);
  isFiner = false;
  if (isWhole === Boolean(tools.querySelector('#narrow'))) drawTools(acts, search);
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
    if (charts.replace(panelsFor(finer, others), finer[0])) isFiner = true;
    stack.dataset.refined = String(Number(stack.dataset.refined ?? 0) + 1);
  } catch (error) {
    tell(error);
  }
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
  await followLive({ load, loadContainers, drawLists, stopLive });
}

function stopLive() {
  endLive();
  state.live = false;
  keep(false);
  drawRanges(acts);
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
  endLive();
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
  const fresh = await ask('/api/status');
  set({ status: fresh, isFolder: fresh.mode === 'folder', nowUs: fresh.now_us ?? Date.now() * 1000 });
  about.append(` ${status.node ?? 'viewer'}${isFolder ? ' · a copied folder, nothing live' : ''}`);
  if (status.degraded) tell(new Refusal(0, `the agent is degraded: ${status.degraded}`));
  await Promise.all([ask('/api/metrics').then((a) => set({ catalogue: a.metrics })), loadIncidents()]);
  chooseFirst();
  const listed = loadContainers();
  if (!state.containers.length) {
    await listed;
    if (containers.length) state.containers = [containers[0].key];
  }
  keep(false);
  drawLists();
  await load(false, listed);
  if (state.live) void startLive();
  document.documentElement.dataset.ready = 'yes';
}

start().catch((error) => {
  tell(error);
  document.documentElement.dataset.ready = 'broken';
});
