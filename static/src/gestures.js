/**
 * Mouse, touch, wheel and keyboard over the charts: drag to zoom, shift-drag to pan, wheel to zoom, double click to reset,
 * arrows to move the cursor. Turns them into calls of the view and nothing else. The page must always stay scrollable:
 * a plain wheel zooms only while the charts have the focus and there is something to zoom. Called by charts.
 *
 * @import { View } from './view.js'
 */

/** A drag shorter than this many pixels is a click. */
const LEAST_DRAG = 4;
const WHEEL_STEP = 1.25;

/**
 * @param {HTMLElement} area the plotting area of one panel
 * @param {HTMLElement} stack the focusable element around all panels
 * @param {View} view
 * @param {(from: number | null, to: number | null) => void} showSelection
 */
export function attachPointer(area, stack, view, showSelection) {
  /** @type {{x: number, t: number, pan: boolean, range: {from: number, to: number}} | null} */
  let drag = null;
  const timeAt = (/** @type {number} */ clientX, range = view.range) => {
    const box = area.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (clientX - box.left) / box.width));
    return range.from + share * (range.to - range.from);
  };
  area.style.touchAction = 'pan-y';

  area.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    stack.focus({ preventScroll: true });
    if (event.pointerType === 'touch') {
      view.setCursor(timeAt(event.clientX));
      return;
    }
    event.preventDefault();
    area.setPointerCapture(event.pointerId);
    drag = { x: event.clientX, t: timeAt(event.clientX), pan: event.shiftKey, range: { ...view.range } };
  });
  area.addEventListener('pointermove', (event) => {
    if (drag?.pan) {
      const span = drag.range.to - drag.range.from;
      const moved = ((event.clientX - drag.x) / area.getBoundingClientRect().width) * span;
      const start = Math.min(Math.max(drag.range.from - moved, view.extent.from), view.extent.to - span);
      view.setRange(start, start + span);
      return;
    }
    const t = timeAt(event.clientX);
    view.setCursor(t);
    if (drag && Math.abs(event.clientX - drag.x) >= LEAST_DRAG) showSelection(drag.t, t);
  });
  const finish = (/** @type {PointerEvent} */ event) => {
    if (!drag) return;
    const { x, t, pan } = drag;
    drag = null;
    showSelection(null, null);
    if (!pan && event.type === 'pointerup' && Math.abs(event.clientX - x) >= LEAST_DRAG) view.setRange(t, timeAt(event.clientX));
  };
  area.addEventListener('pointerup', finish);
  area.addEventListener('pointercancel', finish);
  area.addEventListener('pointerleave', (event) => {
    if (!drag && event.pointerType !== 'touch') view.setCursor(null);
  });
  area.addEventListener('dblclick', () => view.reset());
  area.addEventListener(
    'wheel',
    (event) => {
      const asked = event.ctrlKey || event.metaKey || event.altKey;
      const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY);
      const whole = view.range.from === view.extent.from && view.range.to === view.extent.to;
      if (!asked && (!stack.contains(document.activeElement) || (whole && (event.deltaY > 0 || sideways)))) return;
      event.preventDefault();
      if (sideways) view.pan(event.deltaX / area.clientWidth);
      else view.zoom(event.deltaY > 0 ? WHEEL_STEP : 1 / WHEEL_STEP, timeAt(event.clientX));
    },
    { passive: false },
  );
}

/**
 * @param {HTMLElement} stack
 * @param {View} view
 * @param {(from: number, direction: 1 | -1) => number} neighbour the sample next to a time
 * @param {number} originUs where the cursor starts
 * @param {AbortSignal} signal ends it: the stack outlives one set of charts
 */
export function attachKeys(stack, view, neighbour, originUs, signal) {
  stack.addEventListener('keydown', (event) => {
    if (event.target !== stack || event.ctrlKey || event.metaKey || event.altKey) return;
    const middle = (view.range.from + view.range.to) / 2;
    const inView = originUs >= view.range.from && originUs <= view.range.to;
    const at = view.cursor ?? (inView ? originUs : middle);
    /** @type {Record<string, () => void>} */
    const keys = {
      ArrowLeft: () => (event.shiftKey ? view.pan(-0.2) : move(neighbour(at, -1))),
      ArrowRight: () => (event.shiftKey ? view.pan(0.2) : move(neighbour(at, 1))),
      '+': () => view.zoom(0.5, at),
      '=': () => view.zoom(0.5, at),
      '-': () => view.zoom(2, at),
      0: () => view.reset(),
      Home: () => move(originUs),
      Escape: () => (view.cursor === null ? view.reset() : view.setCursor(null)),
    };
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }, { signal });
  /** @param {number} t */
  function move(t) {
    const { from, to } = view.range;
    if (t < from || t > to) view.setRange(t - (to - from) / 2, t + (to - from) / 2);
    view.setCursor(t);
  }
}
