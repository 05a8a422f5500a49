/**
 * The top of the page: what the incident was, or which container is shown, and the ways to take it away. It must never say of a
 * container that is gone that it lives. Called by main.
 */

import { h, severityMark } from '../dom.js';
import { subjectName } from '../facts.js';
import * as format from '../format.js';
import { copyText, saveBytes } from '../save.js';
import { kindName, scopeName } from '../words.js';
import { file } from './api.js';
import { head, said, say, tell } from './page.js';
import { containers, extent, incident, isFolder, nameOf, seconds, state, view } from './session.js';

export function drawHead() {
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
