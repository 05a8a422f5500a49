/**
 * Light, dark, or as the system has it. The choice lives in the page's address (#theme=dark) and nowhere else: a page
 * opened from disk may have no storage, and one report must not change another. Called by main.
 */

import { h } from './dom.js';

const CHOICES = ['system', 'light', 'dark'];

function fromAddress() {
  const chosen = new URLSearchParams(location.hash.slice(1)).get('theme') ?? '';
  return CHOICES.includes(chosen) ? chosen : 'system';
}

/** @param {string} choice */
function toAddress(choice) {
  const hash = new URLSearchParams(location.hash.slice(1));
  if (choice === 'system') hash.delete('theme');
  else hash.set('theme', choice);
  try {
    history.replaceState(null, '', `#${hash}`);
  } catch {
    // Some browsers refuse this for files; the choice then lasts as long as the page.
  }
}

/** @param {() => void} onChange the charts have to be drawn again */
export function createThemeChoice(onChange) {
  const system = matchMedia('(prefers-color-scheme: dark)');
  let choice = fromAddress();
  const apply = (/** @type {string | null} */ forced = null) => {
    const dark = forced ? forced === 'dark' : choice === 'dark' || (choice === 'system' && system.matches);
    document.documentElement.dataset.theme = dark ? 'dark' : 'light';
    onChange();
  };
  system.addEventListener('change', () => apply());
  addEventListener('beforeprint', () => apply('light'));
  addEventListener('afterprint', () => apply());
  apply();
  return h(
    'fieldset',
    { class: 'segments' },
    h('legend', { class: 'hidden' }, 'Theme'),
    ...CHOICES.map((name) =>
      h(
        'label',
        {},
        h('input', {
          type: 'radio',
          name: 'theme',
          value: name,
          checked: name === choice,
          onchange: () => {
            choice = name;
            toAddress(name);
            apply();
          },
        }),
        h('span', {}, name),
      ),
    ),
  );
}
