/**
 * The events: marks on the time axis of the charts, and the list under them. A mark and its row are one thing: pointing at
 * or focusing either lights both. It must never leave an event out: what is outside the range is still in the list, and
 * marks that would cover each other go to rows of their own. Called by main.
 *
 * @import { View } from './view.js'
 */

import { gutters } from './charts.js';
import { h, severityMark } from './dom.js';
import * as format from './format.js';
import { kindName, open, signalName } from './words.js';

const ROW_HEIGHT = 24;
const MOST_ROWS = 6;
const BARE_WIDTH = 24;
const LABEL_ROOM = 7.2;
/** Details of an event shown before "more". */
const SHOWN_PAIRS = 7;

/**
 * Which row each mark goes to, so that none covers another. Where every row is taken, the mark whose words reach over the
 * place loses them, unless it is to keep them. Pure: pixels in, rows out.
 * @param {{x: number, width: number, keep?: boolean}[]} marks sorted by x
 * @param {number} most rows
 * @param {number} bare the width of a mark without words
 * @returns {{row: number, bare: boolean}[]}
 */
export function stackRows(marks, most, bare) {
  /** @type {{end: number, last: number}[]} */
  const rows = [];
  /** @type {{row: number, bare: boolean}[]} */
  const out = [];
  marks.forEach(({ x, width }, i) => {
    let row = rows.findIndex((r) => r.end <= x);
    if (row < 0 && rows.length < most) row = rows.push({ end: 0, last: -1 }) - 1;
    if (row < 0) {
      const order = rows.map((r, n) => ({ n, mark: marks[r.last] })).sort((a, b) => Number(a.mark.keep ?? false) - Number(b.mark.keep ?? false) || a.mark.x - b.mark.x);
      row = order[0].n;
      const before = rows[row].last;
      if (!marks[before].keep) {
        out[before].bare = true;
        rows[row].end = marks[before].x + bare;
      }
    }
    const wordless = width <= bare || rows[row].end > x;
    out.push({ row, bare: wordless });
    rows[row] = { end: x + (wordless ? bare : width), last: i };
  });
  return out;
}

/** Bytes, milliseconds or plain, as the key says. @param {string} key @param {unknown} value */
export function detailValue(key, value) {
  if (value === null || value === undefined) return format.ABSENT;
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  if (typeof value === 'object') return JSON.stringify(value);
  if (typeof value === 'number') {
    if (/_bytes$/.test(key)) return format.bytes(value);
    if (/_ms$/.test(key)) return format.milliseconds(value);
    if (/_(us|usec)$/.test(key)) return format.milliseconds(value / 1000);
    if (/_percent$/.test(key)) return format.percent(value);
    if (key === 'bytes_per_second') return format.bytesPerSecond(value);
    return String(value);
  }
  return String(value);
}

/**
 * What an event carries, flat: `victim.anon_bytes` becomes "victim anon". What is null inside is left out.
 * @param {any} detail
 * @param {string} [under]
 * @returns {[string, string][]}
 */
export function detailPairs(detail, under = '') {
  if (!detail || typeof detail !== 'object') return [];
  return Object.entries(detail).flatMap(([key, value]) => {
    if (value === null || value === undefined) return [];
    const name = `${under}${key === 'bytes_per_second' ? 'growth' : open(key.replace(/_(bytes|ms|us|usec|percent)$/, ''))}`;
    if (typeof value === 'object' && !Array.isArray(value)) return detailPairs(value, `${name} `);
    return [/** @type {[string, string]} */ ([name, key === 'cgroup_path' ? format.baseName(value) : detailValue(key, value)])];
  });
}

/** Who it was about: a task, else the cgroup. @param {any} event @param {(id: string) => string} nameOf */
function subject(event, nameOf) {
  const who = event.comm ? `${event.comm}${event.pid ? ` (pid ${event.pid})` : ''}` : event.pid ? `pid ${event.pid}` : '';
  const how = event.signal ? signalName(event.signal) : event.exit_code !== null && event.exit_code !== undefined ? `exit code ${event.exit_code}` : '';
  return [who || (event.cgroup_id ? nameOf(String(event.cgroup_id)) : ''), how].filter(Boolean).join(', ');
}

/**
 * @param {{strip: HTMLElement, list: HTMLElement}} mount
 * @param {{events: any[], isIncident: (event: any) => boolean, originUs: number, nameOf: (id: string) => string, view: View | null}} scene
 */
export function createTimeline(mount, scene) {
  const { originUs, view, isIncident, nameOf } = scene;
  const events = [...scene.events].sort((a, b) => a.ts_us - b.ts_us || a.ktime_ns - b.ktime_ns);
  if (!events.length) {
    mount.strip.hidden = true;
    mount.list.replaceChildren(h('p', { class: 'empty' }, 'No events in this window.'));
    return { destroy() {} };
  }
  /** @type {Map<any, HTMLElement[]>} */
  const linked = new Map(events.map((event) => [event, []]));
  const light = (/** @type {any} */ event, /** @type {boolean} */ on) => linked.get(event)?.forEach((node) => node.classList.toggle('lit', on));
  const link = (/** @type {any} */ event, /** @type {HTMLElement} */ node) => {
    linked.get(event)?.push(node);
    for (const type of ['mouseenter', 'focusin']) node.addEventListener(type, () => light(event, true));
    for (const type of ['mouseleave', 'focusout']) node.addEventListener(type, () => light(event, false));
  };

  const listRows = events.map((event) => listRow(event, isIncident(event), originUs, subject(event, nameOf), () => view && reveal(view, event.ts_us)));
  events.forEach((event, i) => link(event, listRows[i]));
  mount.list.replaceChildren(
    h(
      'div',
      { class: 'table-wrap' },
      h(
        'table',
        { class: 'events' },
        h('caption', { class: 'hidden' }, 'Events in time order'),
        h('thead', {}, h('tr', {}, ...['From event', 'UTC', 'What', 'Who', 'Seen by', 'Details'].map((text) => h('th', { scope: 'col' }, text)))),
        h('tbody', {}, ...listRows),
      ),
    ),
  );
  mount.strip.hidden = !view;
  if (!view) return { destroy() {} };

  const tip = h('div', { class: 'tip', role: 'status', hidden: true });
  const marks = events.map((event) => {
    const main = isIncident(event);
    const label = `${kindName(event.kind)}, ${format.relative(event.ts_us - originUs)}${subject(event, nameOf) ? `, ${subject(event, nameOf)}` : ''}`;
    const mark = h('button', { type: 'button', class: `event-mark${main ? ' event-main' : ''}`, 'aria-label': label }, severityMark(event.severity, main ? 15 : 12), h('span', {}, kindName(event.kind)));
    mark.addEventListener('click', () => reveal(view, event.ts_us));
    const showTip = () => {
      tip.replaceChildren(...tipText(event, originUs, subject(event, nameOf)));
      tip.hidden = false;
      const room = mount.strip.clientWidth;
      tip.style.left = `${Math.max(0, Math.min(mark.offsetLeft, room - Math.min(320, room)))}px`;
      tip.style.top = `${mark.offsetTop + ROW_HEIGHT}px`;
      view.setCursor(event.ts_us);
    };
    for (const type of ['mouseenter', 'focus']) mark.addEventListener(type, showTip);
    for (const type of ['mouseleave', 'blur']) {
      mark.addEventListener(type, () => {
        tip.hidden = true;
        view.setCursor(null);
      });
    }
    link(event, mark);
    return mark;
  });
  const outside = h('p', { class: 'strip-note' });
  mount.strip.replaceChildren(...marks, tip, outside);

  let rows = 1;
  const place = () => {
    const { left, right } = gutters();
    const width = mount.strip.clientWidth - left - right;
    const { from, to } = view.range;
    const inside = events.map((event, i) => ({ event, mark: marks[i], x: left + ((event.ts_us - from) / (to - from)) * width })).filter((m) => m.event.ts_us >= from && m.event.ts_us <= to);
    for (const mark of marks) mark.hidden = true;
    const boxes = inside.map((m) => ({ x: m.x - 12, width: 26 + kindName(m.event.kind).length * LABEL_ROOM, keep: isIncident(m.event) }));
    // Near the right edge there is no room for words: the mark stands alone there and is named on hover.
    boxes.forEach((box) => {
      if (box.x + box.width > left + width + right) box.width = BARE_WIDTH;
    });
    const placed = stackRows(boxes, MOST_ROWS, BARE_WIDTH);
    inside.forEach((m, i) => {
      m.mark.hidden = false;
      m.mark.classList.toggle('bare', placed[i].bare);
      m.mark.style.left = `${boxes[i].x}px`;
      m.mark.style.top = `${placed[i].row * ROW_HEIGHT}px`;
    });
    // Grows and never shrinks: the charts below must not move away under a mouse that zooms.
    rows = Math.max(rows, ...placed.map((p) => p.row + 1));
    mount.strip.style.height = `${rows * ROW_HEIGHT + 4}px`;
    const hiddenCount = events.length - inside.length;
    outside.textContent = inside.length ? '' : `No event in this range; ${hiddenCount} outside it, listed below.`;
  };
  const dropRange = view.onRange(place);
  const resize = new ResizeObserver(place);
  resize.observe(mount.strip);
  place();
  return {
    destroy() {
      dropRange();
      resize.disconnect();
    },
  };
}

/** @param {View} view @param {number} t */
function reveal(view, t) {
  const { from, to } = view.range;
  if (t < from || t > to) view.setRange(t - (to - from) / 2, t + (to - from) / 2);
  view.setCursor(t);
}

/** @param {any} event @param {number} originUs @param {string} who */
function tipText(event, originUs, who) {
  return [
    h('strong', {}, kindName(event.kind)),
    h('div', {}, `${format.relative(event.ts_us - originUs, 100)} · ${format.clock(event.ts_us, false, 6)} UTC`),
    h('div', {}, who || format.baseName(event.cgroup_path)),
    h('div', { class: 'tip-source' }, `seen by ${event.source ?? 'unknown'}`),
    h('dl', {}, ...detailPairs(event.detail).flatMap(([key, value]) => [h('dt', {}, key), h('dd', {}, value)])),
  ];
}

/** @param {[string, string][]} pairs */
function pairText(pairs) {
  return pairs.map(([key, value]) => `${key} ${value}`).join(' · ');
}

/**
 * @param {any} event
 * @param {boolean} main
 * @param {number} originUs
 * @param {string} who
 * @param {() => void} show
 */
function listRow(event, main, originUs, who, show) {
  const pairs = detailPairs(event.detail);
  return h(
    'tr',
    { class: main ? 'event-row-main' : '', 'aria-current': main ? 'true' : null },
    h('td', { class: 'num' }, h('button', { type: 'button', class: 'link num', title: 'Show in the charts', onclick: show }, format.relative(event.ts_us - originUs, 100))),
    h('td', { class: 'num soft' }, format.clock(event.ts_us)),
    h('th', { scope: 'row' }, severityMark(event.severity), ' ', kindName(event.kind), h('span', { class: 'hidden' }, ` (${event.severity ?? 'info'})`)),
    h('td', { class: who ? '' : 'event-absent' }, who || format.ABSENT),
    h('td', { class: 'soft' }, h('code', {}, event.source ?? format.ABSENT)),
    h('td', { class: 'soft' }, pairs.length ? pairText(pairs.slice(0, SHOWN_PAIRS)) : format.ABSENT, pairs.length > SHOWN_PAIRS && h('details', {}, h('summary', {}, `${pairs.length - SHOWN_PAIRS} more`), pairText(pairs.slice(SHOWN_PAIRS)))),
  );
}
