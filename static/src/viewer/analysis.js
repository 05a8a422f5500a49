/**
 * Asks what the visible part does over time, says it in words and hands it to the panels to draw. It must never leave what was
 * found in one part over another. Called by main.
 */

import { h } from '../dom.js';
import { ask } from './api.js';
import { findingsOf, FIXED } from './findings.js';
import { findings, tell } from './page.js';
import { analysis, charts, dashboard, metricOf, nameOf, seconds, set, state, view, wanted } from './session.js';

/** @type {AbortController | null} */
let analysing = null;

/** Takes away what was found. */
export function forget() {
  analysing?.abort();
  set({ analysis: null });
  drawFindings();
}

/** Asks what the visible part does over time, and draws it over the panels. */
export async function analyse() {
  analysing?.abort();
  const kind = state.analyze;
  if (!kind || !view || !state.containers.length) {
    forget();
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
    const found = { kind, ...findingsOf(kind, answer, metricOf, state.containers[0]) };
    const chosen = dashboard();
    // a dashboard's panels have names of their own
    if (chosen) for (const [i, panel] of chosen.panels.entries()) for (const name of panel.metrics) found.overlays[`${chosen.id}-${i}`] ??= found.overlays[FIXED[name] ?? name];
    set({ analysis: found });
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
