/**
 * The one state that all panels share: the visible range and the cursor, in microseconds. Holds no drawing and no data.
 * It must never let the range leave the extent or shrink to nothing. Called by charts, overview and timeline.
 */

/** The narrowest zoom. */
export const MIN_SPAN_US = 2000;

/**
 * @typedef {object} View
 * @property {{from: number, to: number}} extent
 * @property {{from: number, to: number}} range
 * @property {number | null} cursor
 * @property {(listener: () => void) => () => void} onRange gives a function that forgets the listener
 * @property {(listener: () => void) => () => void} onCursor the same
 * @property {(a: number, b: number) => void} setRange
 * @property {(factor: number, around?: number) => void} zoom
 * @property {(share: number) => void} pan
 * @property {() => void} reset
 * @property {(t: number | null) => void} setCursor
 */

/** @param {number} from @param {number} to @returns {View} */
export function createView(from, to) {
  /** @type {Set<() => void>} */
  const onRange = new Set();
  /** @type {Set<() => void>} */
  const onCursor = new Set();
  /** @type {View} */
  const view = {
    extent: { from, to: Math.max(to, from + MIN_SPAN_US) },
    range: { from, to: Math.max(to, from + MIN_SPAN_US) },
    cursor: null,
    onRange(listener) {
      onRange.add(listener);
      return () => onRange.delete(listener);
    },
    onCursor(listener) {
      onCursor.add(listener);
      return () => onCursor.delete(listener);
    },
    setRange(a, b) {
      const whole = view.extent.to - view.extent.from;
      const span = Math.min(Math.max(Math.abs(b - a), MIN_SPAN_US), whole);
      const start = Math.min(Math.max(Math.min(a, b), view.extent.from), view.extent.to - span);
      if (start === view.range.from && start + span === view.range.to) return;
      view.range = { from: start, to: start + span };
      for (const listener of onRange) listener();
    },
    // A factor above 1 shows more; `around` stays where it is.
    zoom(factor, around = (view.range.from + view.range.to) / 2) {
      view.setRange(around - (around - view.range.from) * factor, around + (view.range.to - around) * factor);
    },
    pan(share) {
      const by = (view.range.to - view.range.from) * share;
      const span = view.range.to - view.range.from;
      const start = Math.min(Math.max(view.range.from + by, view.extent.from), view.extent.to - span);
      view.setRange(start, start + span);
    },
    reset() {
      view.setRange(view.extent.from, view.extent.to);
    },
    setCursor(t) {
      if (t === view.cursor) return;
      view.cursor = t;
      for (const listener of onCursor) listener();
    },
  };
  return view;
}
