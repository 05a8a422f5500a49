/**
 * Making elements. Every text of a report (names, comms, paths) was chosen by whoever ran the container, so this
 * file only ever sets text nodes and attributes. It must never touch innerHTML. Called by every view file.
 */

const SVG = 'http://www.w3.org/2000/svg';

/**
 * @typedef {Node | string | number | null | undefined | false} Child
 * @typedef {Record<string, unknown>} Attributes `on…` keys are listeners, `class` and the rest are attributes, null is left out
 */

/**
 * @param {Element} node
 * @param {Attributes} attributes
 * @param {(Child | Child[])[]} children
 */
function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith('on')) node.addEventListener(key.slice(2), /** @type {EventListener} */ (value));
    else node.setAttribute(key, value === true ? '' : String(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
}

/**
 * @param {string} tag
 * @param {Attributes} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  fill(node, attributes, children);
  return node;
}

/**
 * @param {string} tag
 * @param {Attributes} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {SVGElement}
 */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  fill(node, attributes, children);
  return node;
}

/**
 * A section of the page: a landmark with its heading.
 * @param {string} id
 * @param {string} title
 * @param {string | null} note one line under the heading
 * @param {...(Child | Child[])} children
 */
export function section(id, title, note, ...children) {
  return h(
    'section',
    { id, class: 'section', 'aria-labelledby': `${id}-title` },
    h('div', { class: 'section-head' }, h('h2', { id: `${id}-title` }, title), note && h('p', { class: 'note' }, note)),
    ...children,
  );
}

/**
 * The mark of a severity: its shape says what its colour says.
 * @param {string | null | undefined} severity
 * @param {number} [size] pixels
 */
export function severityMark(severity, size = 12) {
  const shapes = { critical: 'M6 0 12 6 6 12 0 6Z', warning: 'M6 .8 11.8 11.2H.2Z' };
  const shape = shapes[/** @type {'critical'} */ (severity)];
  return svg(
    'svg',
    { viewBox: '0 0 12 12', width: size, height: size, class: `mark mark-${severity ?? 'info'}`, 'aria-hidden': 'true' },
    shape ? svg('path', { d: shape }) : svg('circle', { cx: 6, cy: 6, r: 4.5 }),
  );
}
