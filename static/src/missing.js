/**
 * The honest end of the page: what is missing (the ledger, hooks that did not attach, gaps in the samples) in plain words,
 * and where the data comes from. It must never say that nothing is missing when it could not look. Called by main.
 *
 * @import { Group } from './data.js'
 */

import { h } from './dom.js';
import { subjectName } from './facts.js';
import * as format from './format.js';
import * as series from './series.js';
import { lossSentence, open, scopeName } from './words.js';

/**
 * The ledger's rows of the export and of the incident, each loss once.
 * @param {any} document
 * @returns {{table: string, reason: string, rows: number | null}[]}
 */
export function losses(document) {
  /** @type {Map<string, any>} */
  const out = new Map();
  for (const loss of [...document.lost, ...(document.incident?.lost ?? [])]) {
    const key = `${loss.table}/${loss.reason}/${loss.node ?? ''}`;
    const known = out.get(key);
    if (!known || (loss.rows ?? 0) > (known.rows ?? 0)) out.set(key, loss);
  }
  return [...out.values()].filter((loss) => loss.rows !== 0);
}

/** Nodes that gave no answer when all were asked. @param {any} provenance @returns {string[]} */
export function silence({ unanswered }) {
  return (unanswered ?? []).map((/** @type {any} */ { node, why }) => `Node ${node} gave no answer${why ? ` (${why})` : ''}: what it has recorded is not in this export.`);
}

/** A node's part of an export of several. @param {any} one */
function partOf({ node, rows, agent_version: version, kernel, ladder }) {
  return `${node}: ${[`${format.count(rows)} rows`, version && `fgm ${version}`, kernel, typeof ladder === 'string' && `probes ${open(ladder)}`].filter(Boolean).join(', ')}`;
}

/**
 * Gaps that the samples themselves show, whatever the ledger says.
 * @param {Group} group
 */
export function gapSentence(group) {
  const memory = series.readings(group, group.columns.memory_current);
  const cut = series.gaps(memory);
  let many = 0;
  let longest = 0;
  for (let i = 1; i < cut.length; i += 1) {
    if (!cut[i]) continue;
    many += 1;
    longest = Math.max(longest, memory.t[i] - memory.t[i - 1]);
  }
  if (!many) return null;
  return `${many} ${many === 1 ? 'gap' : 'gaps'} in the memory readings of ${scopeName(group.scope)} ${subjectName({ ...group, cgroup_path: group.path })}, the longest ${format.milliseconds(longest / 1000)}; the lines stop there.`;
}

/**
 * @param {any} document
 * @param {{gaps: (string | null)[], unread: number} | null} samples what their cgroups lack, as far as they were read; null: the file
 *   could not be
 */
export function createMissing(document, samples) {
  const { provenance } = document;
  const sentences = [...silence(provenance), ...losses(document).map(lossSentence)];
  const { thinned } = provenance;
  if (thinned) sentences.push(`This report was thinned to fit: it holds ${format.count(provenance.rows)} of ${format.count(thinned.rows_of)} rows. Of every ${format.milliseconds(thinned.bucket_us / 1000)} those with the lowest and the highest values are here, and all within 2 s of the event; export the same selection as Parquet for all of them.`);
  if (provenance.redacted) sentences.push('Names and labels: they were replaced by stand-ins or left out when this was exported.');
  for (const sentence of samples?.gaps ?? []) if (sentence) sentences.push(sentence);
  for (const { node, hooks } of [{ ...provenance, node: null }, ...(provenance.nodes ?? [])]) {
    for (const hook of hooks ?? []) if (hook.error) sentences.push(`The hook ${hook.hook} (${open(hook.event)}) was not attached${node ? ` on node ${node}` : ''}: ${hook.error}.`);
  }
  if (samples?.unread) sentences.push(`Gaps in the samples: ${format.count(samples.unread)} ${samples.unread === 1 ? 'cgroup is' : 'cgroups are'} still being looked through.`);
  if (!samples) sentences.push('The samples: the embedded Parquet file could not be read.');
  if (!sentences.length) return h('p', { class: 'all-there' }, 'Nothing is known to be missing.');
  return h('ul', { class: 'missing' }, ...sentences.map((text) => h('li', {}, text)));
}

/** @param {unknown} hz */
function rateText(hz) {
  return format.isNumber(hz) ? `${hz} Hz` : format.ABSENT;
}

/**
 * @param {any} document
 * @param {{sha256: string | null, rows: number | null, bytes: number}} file what this page really holds
 */
export function createProvenance(document, file) {
  const { provenance: p, incident } = document;
  const told = p.parquet_sha256;
  const check = !told ? 'the report names no hash' : !file.sha256 ? 'not checked: this browser offers no SHA-256 here' : file.sha256 === told ? 'checked: the embedded file has this hash' : `DOES NOT MATCH: the embedded file has ${file.sha256}`;
  const rowText = format.isNumber(p.rows) ? `${format.count(p.rows)}${file.rows !== null && file.rows !== p.rows ? ` (but the file holds ${format.count(file.rows)})` : ''}` : format.count(file.rows);
  /** @type {[string, any][]} */
  const pairs = [
    ['Incident', incident && `${incident.id}${incident.revision ? `, revision ${incident.revision}` : ''}`],
    ['Agent', p.agent_version && `fgm ${p.agent_version}`],
    ['Node', [p.node, p.cluster && `cluster ${p.cluster}`].filter(Boolean).join(', ')],
    ['Nodes', p.nodes && h('ul', {}, ...p.nodes.map((/** @type {any} */ one) => h('li', {}, partOf(one))))],
    ['Kernel', p.kernel],
    ['Boot', p.boot_id],
    ['Probes', p.ladder && open(typeof p.ladder === 'string' ? p.ladder : JSON.stringify(p.ladder))],
    ['Rates', `base ${rateText(p.base_hz)}, lane ${rateText(p.lane_hz)}, burst ${rateText(p.burst_hz)}`],
    ['Cgroup root', p.cgroup_root],
    ['Clock', format.isNumber(p.clock_offset_ns) ? `monotonic + ${p.clock_offset_ns} ns` : null],
    ['Written', format.isNumber(p.generated_us) ? format.utc(p.generated_us) : null],
    ['Parquet', `${rowText} rows, ${format.bytes(file.bytes)}${format.isNumber(p.schema_version) ? `, schema ${p.schema_version}` : ''}`],
    ['Whole export', p.thinned && `${format.count(p.thinned.rows_of)} rows, ${p.thinned.full_sha256 ? `${format.bytes(p.thinned.full_bytes)}, SHA-256 ${p.thinned.full_sha256}` : 'too many to be encoded for a report: their bytes and hash are not known'}`],
    ['SHA-256', told && h('span', {}, h('code', { class: 'hash' }, told), h('span', { class: told && file.sha256 && file.sha256 !== told ? 'alarm' : 'soft' }, ` ${check}`))],
  ];
  const hooks = p.hooks ?? [];
  return [
    h('dl', { class: 'pairs' }, ...pairs.filter(([, value]) => value).flatMap(([label, value]) => [h('dt', {}, label), h('dd', {}, value)])),
    hooks.length > 0 &&
      h(
        'div',
        { class: 'table-wrap' },
        h(
          'table',
          { class: 'hooks' },
          h('caption', {}, 'Hooks: which one won for each event'),
          h('thead', {}, h('tr', {}, ...['Event', 'Hook', 'Mechanism', 'State'].map((text) => h('th', { scope: 'col' }, text)))),
          h('tbody', {}, ...hooks.map((/** @type {any} */ hook) => h('tr', {}, h('th', { scope: 'row' }, open(hook.event)), h('td', {}, h('code', {}, hook.hook ?? format.ABSENT)), h('td', {}, hook.mechanism ?? format.ABSENT), h('td', { class: hook.error ? 'alarm' : 'soft' }, hook.error ?? 'attached')))),
        ),
      ),
  ];
}
