/**
 * The parts of the page that others fill, and how something is said: in passing, or as trouble that stays. It must never keep
 * trouble to itself. Called by all of the viewer that draws.
 */

import { h } from '../dom.js';
import * as address from './address.js';
import { Refusal, setToken } from './api.js';
import { state } from './session.js';

const reason = (/** @type {unknown} */ error) => (error instanceof Error ? error.message : String(error));

export const said = h('p', { class: 'status', role: 'status' });
export const trouble = h('div', { id: 'trouble', role: 'alert' });
export const incidentList = h('div', { id: 'incident-list' });
export const containerList = h('div', { id: 'container-list' });
export const head = h('div', { id: 'head' });
export const ranges = h('div', { class: 'row ranges' });
export const tools = h('div', { class: 'toolbar' });
export const overview = h('div', { class: 'overview', id: 'overview' });
export const strip = h('div', { class: 'strip', id: 'strip', role: 'group', 'aria-label': 'Events on the time axis' });
export const now = h('p', { class: 'now', id: 'now' });
export const stack = h('div', { class: 'stack', id: 'stack', tabindex: 0, role: 'group', 'aria-label': 'Charts. Arrow keys move the cursor from sample to sample, shift and arrows pan, plus and minus zoom, 0 shows the whole window.' });
export const empty = h('p', { class: 'empty', id: 'nothing', hidden: true });
export const eventList = h('div', { id: 'event-list' });
export const findings = h('div', { id: 'findings', role: 'status', hidden: true });
export const missing = h('ul', { class: 'missing', id: 'missing', hidden: true });

export function say(/** @type {string} */ text) {
  said.textContent = text;
  setTimeout(() => said.textContent === text && (said.textContent = ''), 5000);
}

export function keep(/** @type {boolean} */ isStep) {
  address.write(state, isStep);
}

/** Shows why something failed, where it will be seen; null takes it away. @param {unknown} error */
export function tell(error) {
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
