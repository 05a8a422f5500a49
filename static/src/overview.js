/**
 * The strip over all panels: the whole window small, with a brush that is the visible range. Mouse, touch and arrow keys
 * move the brush or one of its edges. It must never show another range than the view's. Called by main.
 *
 * @import { Group } from './data.js'
 * @import { View } from './view.js'
 */

import uPlot from 'uplot';
import { gutters } from './charts.js';
import { h } from './dom.js';
import { relative } from './format.js';
import { color, drawBands, drawEvents } from './marks.js';
import * as series from './series.js';

const HEIGHT = 48;

/**
 * @param {HTMLElement} mount
 * @param {{group: Group, view: View, events: any[], isIncident: (event: any) => boolean, originUs: number}} scene
 */
export function createOverview(mount, scene) {
  const { group, view, originUs } = scene;
  const bands = series.bands(group);
  const { extent } = view;
  const plot = h('div', { class: 'overview-plot', 'aria-hidden': 'true' });
  const shadeLeft = h('div', { class: 'brush-shade' });
  const shadeRight = h('div', { class: 'brush-shade' });
  const slider = (/** @type {string} */ part, /** @type {string} */ label) => h('div', { class: `brush-${part}`, role: 'slider', tabindex: 0, 'aria-label': label, 'aria-orientation': 'horizontal' });
  const body = slider('body', 'Visible range: arrow keys move it');
  const from = slider('edge', 'Start of the visible range');
  const to = slider('edge', 'End of the visible range');
  const track = h('div', { class: 'brush' }, shadeLeft, shadeRight, body, from, to);
  mount.replaceChildren(h('div', { class: 'overview-frame' }, plot, track));

  const whole = group.drawn ? (group.drawn.memory_current ?? group.drawn.cpu_stat_usage_usec ?? series.NOTHING) : series.gauge(series.readings(group, group.columns.memory_current));
  const width = () => Math.max(120, Math.floor(plot.clientWidth));
  const data = () => /** @type {uPlot.AlignedData} */ (series.join([series.thin(whole, extent.from, extent.to, width())], [], originUs));
  const chart = new uPlot(
    {
      width: width(),
      height: HEIGHT,
      padding: [2, 0, 2, 0],
      cursor: { show: false },
      legend: { show: false },
      scales: {
        x: { time: false, auto: false, range: () => [(extent.from - originUs) / 1e6, (extent.to - originUs) / 1e6] },
        y: { range: (_u, _min, max) => [0, (max || 1) * 1.1] },
      },
      axes: [{ show: false }, { show: false }],
      series: [{}, { width: 1, stroke: () => color('c-blue'), fill: () => `${color('c-blue')}33`, points: { show: false } }],
      hooks: {
        drawClear: [(u) => drawBands(u, bands, originUs, false)],
        draw: [(u) => drawEvents(u, scene.events, scene.isIncident, originUs, false)],
      },
    },
    data(),
    plot,
  );

  const place = () => {
    const share = (/** @type {number} */ t) => ((t - extent.from) / (extent.to - extent.from)) * 100;
    const a = share(view.range.from);
    const b = share(view.range.to);
    shadeLeft.style.cssText = `left:0;width:${a}%`;
    shadeRight.style.cssText = `left:${b}%;right:0`;
    body.style.cssText = `left:${a}%;width:${b - a}%`;
    from.style.left = `${a}%`;
    to.style.left = `${b}%`;
    const speak = (/** @type {HTMLElement} */ node, /** @type {number} */ now, /** @type {string} */ text) => {
      node.setAttribute('aria-valuemin', '0');
      node.setAttribute('aria-valuemax', '100');
      node.setAttribute('aria-valuenow', now.toFixed(1));
      node.setAttribute('aria-valuetext', text);
    };
    speak(from, a, relative(view.range.from - originUs));
    speak(to, b, relative(view.range.to - originUs));
    speak(body, (a + b) / 2, `${relative(view.range.from - originUs)} to ${relative(view.range.to - originUs)}`);
  };

  /** Moves what a part stands for by some microseconds. @param {Element} part @param {number} by @param {{from: number, to: number}} start */
  const shift = (part, by, start) => {
    if (part === from) view.setRange(Math.min(start.from + by, start.to), start.to);
    else if (part === to) view.setRange(start.from, Math.max(start.to + by, start.from));
    else {
      const span = start.to - start.from;
      const at = Math.min(Math.max(start.from + by, extent.from), extent.to - span);
      view.setRange(at, at + span);
    }
  };
  for (const part of [body, from, to]) {
    part.addEventListener('keydown', (event) => {
      const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!direction) return;
      event.preventDefault();
      shift(part, direction * (extent.to - extent.from) * (event.shiftKey ? 0.1 : 0.01), { ...view.range });
    });
  }
  track.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    const part = /** @type {HTMLElement} */ (event.target);
    const box = track.getBoundingClientRect();
    const perPixel = (extent.to - extent.from) / box.width;
    const grabbed = part === from || part === to || part === body ? part : null;
    const start = { ...view.range };
    const t0 = extent.from + (event.clientX - box.left) * perPixel;
    // A drag on the free track, or on a brush that is the whole window, draws a new range.
    const fresh = !grabbed || (grabbed === body && start.from === extent.from && start.to === extent.to);
    (grabbed ?? body).focus({ preventScroll: true });
    track.setPointerCapture(event.pointerId);
    const move = (/** @type {PointerEvent} */ e) => {
      const by = (e.clientX - event.clientX) * perPixel;
      if (!fresh) shift(/** @type {Element} */ (grabbed), by, start);
      else if (Math.abs(e.clientX - event.clientX) > 3) view.setRange(t0, t0 + by);
    };
    const done = () => {
      track.removeEventListener('pointermove', move);
      track.removeEventListener('pointerup', done);
      track.removeEventListener('pointercancel', done);
    };
    track.addEventListener('pointermove', move);
    track.addEventListener('pointerup', done);
    track.addEventListener('pointercancel', done);
  });
  track.addEventListener('dblclick', () => view.reset());

  const dropRange = view.onRange(place);
  const resize = new ResizeObserver(() => {
    const { left, right } = gutters();
    mount.style.paddingLeft = `${left}px`;
    mount.style.paddingRight = `${right}px`;
    if (width() === chart.width) return;
    chart.setSize({ width: width(), height: HEIGHT });
    chart.setData(data(), true);
  });
  resize.observe(mount);
  place();
  return {
    redraw: () => chart.redraw(true, true),
    destroy() {
      dropRange();
      resize.disconnect();
      chart.destroy();
      mount.replaceChildren();
    },
  };
}
