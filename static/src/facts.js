/**
 * The head of the page: title, time, summary, and the grid of facts. Every fact is one that the document holds; one that
 * is null is said to be not observed. It must never conclude anything itself. Called by main.
 */

import { h, severityMark } from './dom.js';
import * as format from './format.js';
import { kindName, limitSource, open, scopeName, signalName } from './words.js';

/** What the incident or the export is about, as a short name; with its node, where there are several. @param {any} about @returns {string} */
export function subjectName(about) {
  if (about.on) return `${subjectName({ ...about, on: null })} on ${about.on}`;
  if (about.container) return about.container;
  if (about.scope === 'pod' && about.pod) return about.pod;
  if (about.container_id) return format.shortId(about.container_id);
  return about.pod || format.baseName(about.cgroup_path) || 'unknown cgroup';
}

/**
 * @param {any} document
 * @param {{from: number, to: number} | null} extent of the samples, for an export that has no incident
 */
export function titleOf(document, extent) {
  const { incident, cgroups } = document;
  if (incident) return `${kindName(incident.kind)} in ${scopeName(incident.scope)} ${subjectName(incident)}`;
  const names = [...new Set(cgroups.filter((/** @type {any} */ c) => c.scope === 'container').map(subjectName))];
  const what = names.length === 0 ? 'Recorded data' : names.length <= 2 ? names.join(' and ') : `${names.length} containers`;
  if (!extent) return what;
  const sameDay = format.day(extent.from) === format.day(extent.to);
  return `${what}, ${format.day(extent.from)} ${format.clock(extent.from, false, 0)} to ${sameDay ? '' : `${format.day(extent.to)} `}${format.clock(extent.to, false, 0)} UTC`;
}

/** @param {any} about */
function whereLine(about) {
  return [
    about.pod && ['pod', about.namespace ? `${about.namespace}/${about.pod}` : about.pod],
    about.container_id && ['container', format.shortId(about.container_id), about.container_id],
    about.node ? ['node', about.node] : about.nodes && ['on', `${about.nodes.length} nodes`],
  ].filter(Boolean);
}

/**
 * @param {any} document
 * @param {{from: number, to: number} | null} extent
 */
export function createHeader(document, extent) {
  const { incident } = document;
  const when = incident && [
    h('time', { class: 'when', datetime: new Date(incident.ts_us / 1000).toISOString() }, format.utc(incident.ts_us)),
    h('span', { class: 'soft' }, format.localClock(incident.ts_us)),
  ];
  const { node, nodes } = document.provenance;
  const about = incident ?? { ...document.cgroups[0], node, nodes };
  return h(
    'header',
    { class: `hero${incident?.severity === 'critical' ? ' hero-critical' : ''}` },
    h(
      'p',
      { class: 'eyebrow' },
      incident ? h('span', { class: `badge badge-${incident.severity ?? 'info'}` }, severityMark(incident.severity), ` ${incident.severity ?? 'info'}`) : h('span', { class: 'badge' }, 'range export'),
      ...(when || []),
    ),
    h('h1', {}, titleOf(document, extent)),
    h('p', { class: 'where' }, ...whereLine(about).map((/** @type {any} */ [label, value, full]) => h('span', { title: full ?? null }, h('span', { class: 'soft' }, `${label} `), h('code', {}, value)))),
    incident && h('p', { class: 'summary', id: 'summary' }, incident.summary || 'No summary was written for this incident.'),
  );
}

/** @param {string} label @param {any[]} main @param {...any} rest */
function fact(label, main, ...rest) {
  return h('div', { class: 'fact' }, h('h2', {}, label), h('div', { class: 'fact-main' }, ...main), ...rest.filter(Boolean).map((child) => (child instanceof Node ? child : h('div', { class: 'fact-more' }, child))));
}

/** @param {string} label @param {string} text */
function unseen(label, text = 'not observed') {
  return fact(label, [h('span', { class: 'soft' }, text)]);
}

/** @param {any} who */
function task(who) {
  return [h('code', {}, who.comm ?? 'unknown'), who.pid !== null && who.pid !== undefined && ' ', h('span', { class: 'soft pid' }, `pid ${who.pid}`)];
}

/** @param {any} limit */
function limitFact(limit, /** @type {(id: string) => string} */ nameOf) {
  if (!limit) return unseen('Limit');
  if (limit.source === 'global') return fact('Limit that was hit', ['none: the node ran out'], limitSource(limit.source));
  const known = format.isNumber(limit.usage_bytes) && format.isNumber(limit.max_bytes) && limit.max_bytes > 0;
  const meter = known && h('div', { class: 'meter', 'aria-hidden': 'true' });
  if (meter) meter.style.setProperty('--share', `${Math.min(100, (limit.usage_bytes / limit.max_bytes) * 100)}%`);
  return fact(
    'Limit that was hit',
    [format.isNumber(limit.max_bytes) ? format.bytes(limit.max_bytes) : 'size not observed', h('span', { class: 'soft' }, ` of ${limit.cgroup_id ? nameOf(String(limit.cgroup_id)) : format.baseName(limit.cgroup_path) || 'a cgroup not seen from here'}`)],
    meter,
    format.isNumber(limit.usage_bytes) ? `in use ${format.bytes(limit.usage_bytes)}${known ? ` (${format.bytes(limit.max_bytes - limit.usage_bytes)} left)` : ''}${limit.swap_bytes > 0 ? ` and ${format.bytes(limit.swap_bytes)} of swap` : ''}` : 'usage at that instant not observed',
    limitSource(limit.source),
  );
}

/**
 * @param {any} incident
 * @param {(id: string) => string} nameOf
 */
export function createFacts(incident, nameOf) {
  const victims = incident.victims ?? [];
  const { trigger, killer, exit, kubernetes } = incident;
  const many = victims.length > 1;
  // a limit and an allocation that failed belong to an OOM kill; who sent a signal to the others
  const isOom = !['killed', 'crash'].includes(incident.kind);
  const elsewhere = (/** @type {any} */ who) => who?.cgroup_id && String(who.cgroup_id) !== String(incident.cgroup_id) && `in ${nameOf(String(who.cgroup_id))}`;
  const exitText = exit && (exit.signal ? signalName(exit.signal) : exit.code !== null && exit.code !== undefined ? `exit code ${exit.code}` : null);
  const evidence = [
    ['history before', format.seconds(incident.history_s)],
    ['last sample before', format.milliseconds(incident.last_sample_before_ms)],
    ['first burst sample after', format.milliseconds(incident.first_burst_after_ms)],
  ];
  return h(
    'section',
    { class: 'facts', 'aria-label': 'Facts' },
    victims.length
      ? fact(
          many ? `Victims (${victims.length})` : isOom ? 'Victim' : 'Init process',
          task(victims[0]),
          format.isNumber(victims[0].rss_bytes) && `resident ${format.bytes(victims[0].rss_bytes)}, of it anonymous ${format.bytes(victims[0].anon_bytes)}`,
          [victims[0].uid !== null && victims[0].uid !== undefined && `uid ${victims[0].uid}`, elsewhere(victims[0])].filter(Boolean).join(', '),
          many && h('ul', { class: 'fact-list' }, ...victims.slice(1).map((/** @type {any} */ victim) => h('li', {}, ...task(victim), ` ${format.bytes(victim.rss_bytes)}`))),
        )
      : unseen('Victim', 'none recorded'),
    isOom && (trigger
      ? fact('Triggered by', task(trigger), victims.some((/** @type {any} */ victim) => victim.pid === trigger.pid) ? 'the victim itself asked for the memory' : 'asked for the memory that was not there', elsewhere(trigger))
      : unseen('Triggered by')),
    isOom && limitFact(incident.limit, nameOf),
    exitText ? fact('Exit', [exitText], exit.signal && format.isNumber(exit.code) ? `exit code ${exit.code}` : null) : unseen('Exit', 'no exit observed in this window'),
    incident.kind === 'killed' && !killer && unseen('Killed by'),
    killer && fact('Killed by', task(killer), killer.signal && signalName(killer.signal), killer.cgroup_path && format.baseName(killer.cgroup_path)),
    kubernetes && fact('Kubernetes says', [open(kubernetes.reason) || 'no reason'], format.isNumber(kubernetes.exit_code) && `exit code ${kubernetes.exit_code}`, format.isNumber(kubernetes.restart_count) && `restart count ${kubernetes.restart_count}`, kubernetes.next_container_id && `next container ${format.shortId(kubernetes.next_container_id)}`),
    h('div', { class: 'fact' }, h('h2', {}, 'Evidence'), h('dl', { class: 'evidence' }, ...evidence.flatMap(([label, value]) => [h('dt', {}, label), h('dd', {}, value)]))),
  );
}

/** What "Copy summary" puts on the clipboard. @param {any} document @param {{from: number, to: number} | null} extent */
export function summaryText(document, extent) {
  const { incident, provenance } = document;
  const lines = [titleOf(document, extent)];
  if (incident) lines.push(format.utc(incident.ts_us), '', incident.summary || 'No summary was written.', '', `Incident ${incident.id}${incident.revision ? `, revision ${incident.revision}` : ''}`);
  if (provenance.parquet_sha256) lines.push(`Parquet SHA-256 ${provenance.parquet_sha256}`);
  return lines.join('\n');
}
