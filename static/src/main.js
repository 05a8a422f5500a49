/**
 * Puts the page together: reads what is embedded, builds the sections in reading order, wires the choices. It must never
 * leave the page blank: whatever is broken is said in its place and the rest still stands. The page's only entry point.
 *
 * @import { Group } from './data.js'
 * @import { Samples } from './samples.js'
 * @import { Clock } from './axis.js'
 */

import { createCharts } from './charts.js';
import { FIELDS, fromBase64, readDocument, sha256 } from './data.js';
import { h, section } from './dom.js';
import { createFacts, createHeader, subjectName, summaryText, titleOf } from './facts.js';
import * as format from './format.js';
import { createMissing, createProvenance, gapSentence } from './missing.js';
import { createOverview } from './overview.js';
import { createProcesses } from './processes.js';
import { openSamples } from './samples.js';
import { saveBytes, copyText } from './save.js';
import { indexAt, CAUSES } from './series.js';
import { createThemeChoice } from './theme.js';
import { createTimeline } from './timeline.js';
import { createToolbar, legend } from './toolbar.js';
import { createView } from './view.js';
import { CAUSES as CAUSE_WORDS, kindName, scopeName } from './words.js';

/** @param {string} id */
function embedded(id) {
  return document.getElementById(id)?.textContent ?? '';
}

/** @param {unknown} error */
function reason(error) {
  return error instanceof Error ? error.message : String(error);
}

/** Short names for cgroups: from the document, else from the samples. @param {any} report @param {Group[]} groups */
function namer(report, groups) {
  const known = new Map();
  for (const group of groups) known.set(group.id, group);
  for (const cgroup of report.cgroups) known.set(String(cgroup.cgroup_id), { ...cgroup });
  return (/** @type {string} */ id) => {
    const cgroup = known.get(id);
    if (cgroup) return `${scopeName(cgroup.scope)} ${subjectName(cgroup)}`;
    const limit = report.incident?.limit;
    return limit && String(limit.cgroup_id) === id ? format.baseName(limit.cgroup_path) || `cgroup ${id}` : `cgroup ${id}`;
  };
}

/** The cgroup to show first: the incident's, else its victim's, else the first container. @param {Group[]} groups @param {any} incident */
function firstGroup(groups, incident) {
  const wanted = [incident?.cgroup_id, ...(incident?.victims ?? []).map((/** @type {any} */ victim) => victim.cgroup_id)].filter(Boolean).map(String);
  return groups.find((group) => wanted.includes(group.id)) ?? groups.find((group) => group.scope === 'container') ?? groups[0];
}

/** @param {Samples | null} samples @param {any} incident */
function extentOf(samples, incident) {
  const from = Math.min(incident?.window?.from_us ?? Infinity, samples?.from ?? Infinity);
  const to = Math.max(incident?.window?.to_us ?? -Infinity, samples?.to ?? -Infinity);
  return Number.isFinite(from) && Number.isFinite(to) ? { from, to } : null;
}

/**
 * The event that the incident is about: the one of its kind at its instant, else the nearest of those that it lists.
 * @param {any[]} events
 * @param {any} incident
 */
function chiefEvent(events, incident) {
  if (!incident) return null;
  const same = events.find((event) => event.ts_us === incident.ts_us && event.kind === incident.kind);
  const far = (/** @type {any} */ event) => Math.abs(event.ts_us - incident.ts_us);
  return same ?? events.filter((event) => (incident.events ?? []).includes(event.event_id)).sort((a, b) => far(a) - far(b))[0] ?? null;
}

async function start() {
  const { document: report, error: documentError } = readDocument(embedded('fgm-data'));
  const { incident } = report;
  /** @type {Samples | null} */
  let samples = null;
  /** @type {unknown} */
  let samplesError = null;
  /** @type {Uint8Array} */
  let parquet = new Uint8Array(0);
  try {
    parquet = fromBase64(embedded('fgm-parquet'));
    // Two buckets may lie between the rows that were kept of each.
    samples = await openSamples(parquet, report.cgroups, (2 * (report.provenance.thinned?.bucket_us ?? 0)) / 1000);
    if (!samples.groups.length) throw new Error('it holds no rows');
    await samples.read(firstGroup(samples.groups, incident), FIELDS);
  } catch (error) {
    samples = null;
    samplesError = error;
  }
  const groups = samples?.groups ?? [];
  const hash = parquet.length ? await sha256(parquet) : null;
  const extent = extentOf(samples, incident);
  const originUs = incident?.ts_us ?? extent?.from ?? 0;
  // Where the readouts stand while nothing is pointed at: at the event, or at the end of a plain range.
  const restUs = incident?.ts_us ?? extent?.to ?? 0;
  if (!report.cgroups.length) report.cgroups = groups.map((group) => ({ ...group, cgroup_id: group.id, parent_cgroup_id: group.parentId, cgroup_path: group.path }));
  const nameOf = namer(report, groups);
  const noun = incident ? (incident.kind === 'oom_kill' ? 'kill' : 'event') : 'start of the range';
  document.title = titleOf(report, extent);

  const status = h('p', { class: 'status', role: 'status' });
  const say = (/** @type {string} */ text) => {
    status.textContent = text;
    setTimeout(() => status.textContent === text && (status.textContent = ''), 4000);
  };
  /** @type {() => void} */
  let redraw = () => {};
  const fileName = `${(incident?.id ?? `fgm-${extent ? format.day(extent.from) : 'export'}`).replace(/[^A-Za-z0-9._-]+/g, '-')}.parquet`;
  const top = h(
    'div',
    { class: 'top', role: 'banner' },
    h('span', { class: 'brand' }, h('strong', {}, 'fgm'), ' ', incident ? 'incident report' : 'export'),
    h('nav', { 'aria-label': 'Sections' }, ...[['charts', 'Charts'], ['events', 'Events'], ['processes', 'Processes'], ['missing', 'Missing'], ['provenance', 'Provenance']].map(([id, text]) => h('a', { href: `#${id}`, onclick: jump }, text))),
    h('div', { class: 'actions' }, status,
      h('button', { type: 'button', id: 'copy', onclick: async () => say((await copyText(summaryText(report, extent))) ? 'Summary copied.' : 'The browser refused to copy.') }, 'Copy summary'),
      h('button', { type: 'button', id: 'save', class: 'primary', disabled: !parquet.length, onclick: () => { saveBytes(parquet, fileName); say(`Saved ${fileName}.`); } }, 'Save Parquet'),
      createThemeChoice(() => redraw())),
  );

  const stack = h('div', { class: 'stack', id: 'stack', tabindex: 0, role: 'group', 'aria-label': 'Charts. Arrow keys move the cursor from sample to sample, shift and arrows pan, plus and minus zoom, 0 shows the whole window.' });
  const overview = h('div', { class: 'overview', id: 'overview' });
  const strip = h('div', { class: 'strip', id: 'strip', role: 'group', 'aria-label': 'Events on the time axis' });
  const charts = section('charts', incident ? 'Before and after' : 'Samples', null);
  const eventList = h('div', { id: 'event-list' });
  const processes = h('div', { id: 'process-table' });
  const missing = h('div', {}, createMissing(report, samples ? { gaps: [], unread: samples.groups.length } : null));
  const main = h(
    'main',
    { id: 'main' },
    createHeader(report, extent),
    documentError && h('p', { class: 'broken', role: 'alert' }, documentError),
    incident && createFacts(incident, nameOf),
    charts,
    section('events', 'Events', report.events.length ? `${report.events.length} in this window, in time order` : null, eventList),
    section('processes', incident ? `Processes at the ${noun}` : 'Processes', null, processes),
    section('missing', 'What is missing', null, missing),
    section('provenance', 'Where this comes from', null, ...createProvenance(report, { sha256: hash, rows: samples?.rows ?? null, bytes: parquet.length })),
  );
  document.querySelector('.loading')?.remove();
  document.body.prepend(h('a', { class: 'skip', href: '#charts', onclick: jump }, 'Skip to the charts'), top, main);

  const events = report.events;
  const chief = chiefEvent(events, incident);
  const isIncident = (/** @type {any} */ event) => event === chief;
  createProcesses(processes, { processes: report.processes, victims: incident?.victims ?? [], originUs, manyCgroups: new Set(report.processes.map((/** @type {any} */ row) => String(row.cgroup_id))).size > 1, nameOf, noun });
  if (!samples || !extent) {
    charts.append(h('p', { class: 'broken', role: 'alert' }, `The samples cannot be shown: ${reason(samplesError)}. The rest of this report does not depend on them${parquet.length ? ', and the embedded file can still be saved' : ''}.`));
    createTimeline({ strip, list: eventList }, { events, isIncident, originUs, nameOf, view: null });
    document.documentElement.dataset.ready = 'broken';
    return;
  }

  const view = createView(extent.from, extent.to);
  /** @type {Clock} */
  let clock = incident ? 'relative' : 'utc';
  let group = firstGroup(groups, incident);
  /** @type {{redraw: () => void, destroy: () => void}[]} */
  let drawn = [];
  const draw = () => {
    for (const part of drawn) part.destroy();
    const scene = { group, incident, events, isIncident, originUs, restUs, view, clock: () => clock, nameOf };
    drawn = [createOverview(overview, scene), createCharts(stack, scene)];
    stack.dataset.group = group.id;
  };
  let chosen = group;
  const choose = async (/** @type {string} */ id) => {
    chosen = groups.find((g) => g.id === id) ?? group;
    const wanted = chosen;
    try {
      await samples.read(wanted, FIELDS);
    } catch (error) {
      if (chosen !== wanted) return;
      for (const part of drawn) part.destroy();
      drawn = [];
      stack.replaceChildren(h('p', { class: 'broken', role: 'alert' }, `The samples of ${nameOf(wanted.id)} cannot be shown: ${reason(error)}.`));
      stack.dataset.group = wanted.id;
    }
    if (chosen !== wanted || stack.dataset.group === wanted.id) return;
    group = wanted;
    draw();
    tell();
  };
  redraw = () => drawn.forEach((part) => part.redraw());

  const now = h('p', { class: 'now', id: 'now' });
  const tell = () => {
    const t = view.cursor ?? restUs;
    const at = indexAt(group.t, t);
    const cause = at >= 0 ? CAUSES[group.cause[at]] : null;
    now.replaceChildren(
      h('strong', {}, view.cursor === null ? (incident ? `At the ${noun}` : 'At the end') : format.relative(t - originUs)),
      h('span', {}, `${format.clock(t)} UTC`),
      h('span', { class: 'soft' }, format.localClock(t)),
      cause ? h('span', { class: 'soft', title: CAUSE_WORDS[cause] }, t === group.t[at] ? `a ${cause} sample` : `last sample: ${cause}, ${format.milliseconds((t - group.t[at]) / 1000)} before`) : '',
    );
  };
  const toolbar = createToolbar({ groups, group, incident, originUs, view, clock, nameOf, setGroup: choose, setClock: (mode) => { clock = mode; redraw(); } });
  charts.append(
    toolbar,
    h('div', { class: 'rail' }, overview, strip, now),
    stack,
  );
  draw();
  createTimeline({ strip, list: eventList }, { events, isIncident, originUs, nameOf, view });
  view.onCursor(tell);
  tell();
  document.documentElement.dataset.openedMs = performance.now().toFixed(0);
  document.documentElement.dataset.ready = 'yes';

  // What only the sections below and the legend need, in pieces, so that the page stays the reader's.
  const pause = () => new Promise((resolve) => { setTimeout(resolve); });
  const gaps = [];
  for (const [i, other] of groups.entries()) {
    await pause();
    try {
      gaps.push(gapSentence(await samples.read(other, ['memory_current'], pause)));
    } catch (error) {
      gaps.push(`The samples of ${nameOf(other.id)} cannot be read: ${reason(error)}.`);
    }
    missing.replaceChildren(createMissing(report, { gaps, unread: groups.length - i - 1 }));
  }
  toolbar.querySelector('.cause-legend')?.replaceWith(legend(groups));
  document.documentElement.dataset.read = 'all';
}

/** Goes to a section without giving up the theme in the address. @param {Event} event */
function jump(event) {
  event.preventDefault();
  const link = /** @type {HTMLAnchorElement} */ (event.currentTarget);
  const target = document.querySelector(link.getAttribute('href') ?? '');
  if (!(target instanceof HTMLElement)) return;
  target.scrollIntoView();
  target.setAttribute('tabindex', '-1');
  target.focus({ preventScroll: true });
}

start().catch((error) => {
  document.body.prepend(h('p', { class: 'broken', role: 'alert' }, `This report could not be shown: ${reason(error)}.`));
  document.documentElement.dataset.ready = 'broken';
});
