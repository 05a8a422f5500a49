/**
 * The stack of panels over one x: builds a chart for each panel, keeps them on the view's range, draws the one crosshair
 * and fills the readout tables. It must never join rows of two cgroups (a group comes in, its panels go out) and never
 * make a request. Called by main, again for each choice of cgroup.
 *
 * @import { Group } from './data.js'
 * @import { Panel, Trace } from './panels.js'
 * @import { View } from './view.js'
 * @import { Clock } from './axis.js'
 */

import uPlot from 'uplot';
import { ticks } from './axis.js';
import { h, svg } from './dom.js';
import * as format from './format.js';
import { attachKeys, attachPointer } from './gestures.js';
import { color, drawBands, drawEvents, drawOverlay, drawSamples } from './marks.js';
import { panelsOf } from './panels.js';
import * as series from './series.js';

const POWERS_OF_TWO = Array.from({ length: 54 }, (_, n) => 2 ** n);

/** Room beside the plots; the same in every panel, in the overview and in the event strip, so that they line up. */
export function gutters() {
  return matchMedia('(max-width: 700px)').matches ? { left: 58, right: 36 } : { left: 76, right: 44 };
}

/**
 * @typedef {object} Scene what all panels share
 * @property {Group} group
 * @property {any} incident
 * @property {any[]} events
 * @property {(event: any) => boolean} isIncident
 * @property {number} originUs zero of the axis
 * @property {number} restUs where the readouts stand without a cursor
 * @property {View} view
 * @property {() => Clock} clock
 * @property {(id: string) => string} nameOf
 * @property {Panel[]} [panels] what to draw, when it is more than the panels of one cgroup
 * @property {(panel: string) => {marks: number[], lines: [number, number][][]} | undefined} [overlay] what analyses found
 */

/** @param {HTMLElement} stack @param {Scene} scene */
export function createCharts(stack, scene) {
  const { group, view, originUs } = scene;
  const panels = scene.panels ?? panelsOf(group, scene.incident, scene.nameOf);
  let bands = series.bands(group);
  const crosshair = h('div', { class: 'crosshair', hidden: true, 'aria-hidden': 'true' });
  const selection = h('div', { class: 'selection', hidden: true, 'aria-hidden': 'true' });
  stack.replaceChildren(crosshair, selection);

  const showSelection = (/** @type {number | null} */ from, /** @type {number | null} */ to) => {
    selection.hidden = from === null || to === null;
    if (from === null || to === null) return;
    const [a, b] = [xInStack(Math.min(from, to)), xInStack(Math.max(from, to))];
    selection.style.left = `${a}px`;
    selection.style.width = `${b - a}px`;
  };
  /** @param {number} t */
  const xInStack = (t) => {
    const area = built.find((panel) => panel.chart)?.chart?.over;
    if (!area) return 0;
    const box = area.getBoundingClientRect();
    return box.left - stack.getBoundingClientRect().left + ((t - view.range.from) / (view.range.to - view.range.from)) * box.width;
  };

  const built = panels.map((panel, index) => buildPanel(stack, panel, scene, () => bands, index === 0, showSelection));
  let instants = group.t;
  const neighbour = (/** @type {number} */ t, /** @type {1 | -1} */ direction) => {
    const at = series.indexAt(instants, direction > 0 ? t + 0.5 : t - 0.5);
    const next = Math.min(instants.length - 1, Math.max(0, direction > 0 ? at + 1 : at));
    return instants.length ? instants[next] : t;
  };
  const keys = new AbortController();
  attachKeys(stack, view, neighbour, originUs, keys.signal);

  const onRange = () => {
    for (const panel of built) panel.update();
    onCursor();
  };
  const onCursor = () => {
    const t = view.cursor;
    const shown = t !== null && t >= view.range.from && t <= view.range.to;
    crosshair.hidden = !shown;
    if (shown) crosshair.style.transform = `translateX(${xInStack(t)}px)`;
    for (const panel of built) panel.read(t ?? scene.restUs);
  };
  const dropRange = view.onRange(onRange);
  const dropCursor = view.onCursor(onCursor);
  const resize = new ResizeObserver(() => {
    for (const panel of built) panel.resize();
    onCursor();
  });
  resize.observe(stack);
  onCursor();

  return {
    panels,
    redraw: () => built.forEach((panel) => panel.chart?.redraw(true, true)),
    /**
     * Draws other values in the same panels; false when these are others.
     * @param {Panel[]} fresh @param {Group} newer @param {boolean} [draws] false while a new range is about to draw them
     */
    replace(fresh, newer, draws = true) {
      const shape = (/** @type {Panel[]} */ list) => list.map((p) => [p.id, ...p.traces.map((t) => t.key), ...p.steps.map((s) => s.key)].join()).join(';');
      if (shape(fresh) !== shape(panels)) return false;
      bands = series.bands(newer);
      instants = newer.t;
      panels.forEach((panel, i) => {
        panel.traces.forEach((trace, j) => (trace.line = fresh[i].traces[j].line));
        panel.steps.forEach((step, j) => (step.readings = fresh[i].steps[j].readings));
      });
      if (draws) onRange();
      return true;
    },
    destroy() {
      resize.disconnect();
      keys.abort();
      dropRange();
      dropCursor();
      for (const panel of built) panel.chart?.destroy();
      stack.replaceChildren();
    },
  };
}

/**
 * @param {HTMLElement} stack
 * @param {Panel} panel
 * @param {Scene} scene
 * @param {() => import('./series.js').Run[]} bands
 * @param {boolean} first
 * @param {(from: number | null, to: number | null) => void} showSelection
 */
function buildPanel(stack, panel, scene, bands, first, showSelection) {
  const { view, originUs } = scene;
  const titleId = `panel-${panel.id}`;
  const plot = h('div', { class: 'plot', role: 'img', 'aria-label': spoken(panel, scene.restUs) });
  const head = h('header', { class: 'panel-head' }, h('h3', { id: titleId }, panel.title), h('p', { class: 'note' }, panel.hint));
  const element = h('article', { class: 'panel', 'data-panel': panel.id, 'aria-labelledby': titleId });
  stack.append(element);
  if (!panel.traces.length) {
    element.classList.add('panel-empty');
    element.append(h('div', {}, head, h('p', { class: 'empty' }, `No ${panel.title} readings of this cgroup ${scene.panels ? 'in this range' : 'in this file'}.`)));
    return { chart: null, update() {}, resize() {}, read() {} };
  }
  const readout = buildReadout(panel, (index, show) => chart.setSeries(index, { show }));
  element.append(h('div', { class: 'panel-main' }, head, plot), readout.element);

  const show = format[panel.unit];
  const width = () => Math.max(220, Math.floor(plot.clientWidth));
  /** @type {Trace[]} */
  let visible = [];
  const data = () => {
    visible = panel.traces.map((trace) => ({ ...trace, line: series.thin(trace.line, view.range.from, view.range.to, width()) }));
    return /** @type {uPlot.AlignedData} */ (series.join(visible.map((trace) => trace.line), panel.steps.map((step) => step.readings), originUs));
  };
  const chart = new uPlot(
    {
      width: width(),
      height: panel.height,
      padding: [first ? 22 : 10, 0, 0, 0],
      cursor: { show: false },
      legend: { show: false },
      scales: {
        x: { time: false, auto: false, range: () => [(view.range.from - originUs) / 1e6, (view.range.to - originUs) / 1e6] },
        y: { range: (_u, _min, max) => [0, ceiling(panel, max)] },
        share: { range: [0, 100] },
      },
      axes: axes(panel, scene, show),
      series: [
        {},
        ...panel.traces.map((trace) => ({
          label: trace.label,
          scale: trace.scale ?? 'y',
          width: trace.width ?? 1.5,
          dash: trace.dash,
          stroke: () => color(trace.color),
          fill: trace.fill ? () => `${color(trace.color)}22` : undefined,
          points: { show: false },
        })),
        ...panel.steps.map((step) => ({
          label: step.label,
          scale: 'y',
          width: 1.75,
          dash: step.key === 'incident_limit' ? [3, 4] : [10, 4],
          stroke: () => color('critical'),
          points: { show: false },
          paths: uPlot.paths.stepped?.({ align: 1 }),
        })),
      ],
      hooks: {
        // What the chart really shows, where tests and bug reports can read it.
        setScale: [
          (u, key) => {
            if (key !== 'x') return;
            element.dataset.from = String(u.scales.x.min);
            element.dataset.to = String(u.scales.x.max);
          },
        ],
        drawClear: [(u) => drawBands(u, bands(), originUs, first, scene.events.find(scene.isIncident)?.ts_us ?? null)],
        drawSeries: [
          (u, index) => {
            const trace = visible[index - 1];
            if (trace && u.series[index].show) drawSamples(u, { line: trace.line, color: trace.color, scale: trace.scale ?? 'y', main: Boolean(trace.fill) || trace.width === 2 }, originUs);
          },
        ],
        draw: [(u) => { drawOverlay(u, scene.overlay?.(panel.id), originUs); drawEvents(u, scene.events, scene.isIncident, originUs, first); }],
      },
    },
    undefined,
    plot,
  );
  const update = () => chart.setData(data(), true);
  update();
  attachPointer(chart.over, stack, view, showSelection);

  return {
    chart,
    update,
    resize() {
      if (width() !== chart.width) chart.setSize({ width: width(), height: panel.height });
      update();
    },
    read: (/** @type {number} */ t) => readout.fill(t, show),
  };
}

/** @param {Panel} panel @param {number | null} max */
function ceiling(panel, max) {
  if (!max || max <= 0) return panel.unit === 'percent' ? 10 : 1;
  if (panel.unit === 'percent') return max > 80 ? Math.max(100, max) : Math.max(10, max * 1.15);
  return max * 1.12;
}

/**
 * @param {Panel} panel
 * @param {Scene} scene
 * @param {(v: unknown) => string} show
 * @returns {uPlot.Axis[]}
 */
function axes(panel, scene, show) {
  const line = { stroke: () => color('grid'), width: 1 };
  const font = '11px system-ui, -apple-system, "Segoe UI", sans-serif';
  const hasShare = panel.traces.some((trace) => trace.scale === 'share');
  return [
    {
      scale: 'x',
      size: 26,
      font,
      stroke: () => color('text-soft'),
      grid: line,
      ticks: { ...line, size: 4 },
      splits: (u) => shared(u, scene).map((tick) => (tick.t - scene.originUs) / 1e6),
      values: (u) => shared(u, scene).map((tick) => tick.label),
    },
    {
      scale: 'y',
      size: () => gutters().left,
      font,
      stroke: () => color('text-soft'),
      grid: line,
      ticks: { show: false },
      space: 34,
      gap: 6,
      ...(panel.unit === 'bytes' || panel.unit === 'bytesPerSecond' ? { incrs: POWERS_OF_TWO } : {}),
      values: (_u, splits) => splits.map((v) => show(v)),
    },
    {
      scale: hasShare ? 'share' : 'y',
      side: 1,
      size: () => gutters().right,
      font,
      stroke: () => color('text-soft'),
      grid: { show: false },
      ticks: { show: false },
      gap: 6,
      splits: hasShare ? () => [0, 50, 100] : () => [],
      values: (_u, splits) => splits.map((v) => `${v}%`),
    },
  ];
}

/** @param {uPlot} u @param {Scene} scene */
function shared(u, scene) {
  const width = u.bbox.width / (devicePixelRatio || 1) || u.width;
  return ticks(scene.view.range.from, scene.view.range.to, Math.max(3, Math.floor(width / 88)), scene.originUs, scene.clock());
}

/** The panel in one sentence, for those who cannot see it. @param {Panel} panel @param {number} t */
function spoken(panel, t) {
  const show = format[panel.unit];
  const parts = panel.traces.map((trace) => {
    let low = Infinity;
    let high = -Infinity;
    for (const v of trace.line.v) {
      if (v < low) low = v;
      if (v > high) high = v;
    }
    return `${trace.label}: ${show(low)} to ${show(high)}, ${show(series.valueAt(trace.line, t))} at ${format.clock(t)} UTC`;
  });
  return `${panel.title}. ${parts.join('; ')}.`;
}

/**
 * The table beside a panel: what each line is, and its value under the cursor.
 * @param {Panel} panel
 * @param {(index: number, show: boolean) => void} toggle
 */
function buildReadout(panel, toggle) {
  /** @type {{cell: HTMLElement, value: (t: number) => number}[]} */
  const rows = [];
  const body = h('tbody');
  const add = (/** @type {string} */ key, /** @type {string} */ label, /** @type {string} */ tint, /** @type {number[] | undefined} */ dash, /** @type {(t: number) => number} */ value) => {
    const index = rows.length + 1;
    const cell = h('td', { 'data-value': key });
    const button = h(
      'button',
      {
        type: 'button',
        class: 'legend-button',
        'aria-pressed': 'true',
        title: `${key}: show or hide this line`,
        onclick: () => {
          const shown = button.getAttribute('aria-pressed') !== 'true';
          button.setAttribute('aria-pressed', String(shown));
          toggle(index, shown);
        },
      },
      swatch(tint, dash),
      label,
    );
    body.append(h('tr', {}, h('th', { scope: 'row' }, button), cell));
    rows.push({ cell, value });
  };
  for (const trace of panel.traces) add(trace.key, trace.label, trace.color, trace.dash, (t) => series.valueAt(trace.line, t));
  for (const step of panel.steps) add(step.key, step.label, 'critical', [10, 4], (t) => series.carryForward(step.readings, [t])[0]);
  return {
    element: h('table', { class: 'readout' }, h('caption', { class: 'hidden' }, `${panel.title}: values at the cursor`), body),
    fill(/** @type {number} */ t, /** @type {(v: unknown) => string} */ show) {
      panel.traces.forEach((trace, i) => {
        rows[i].cell.textContent = trace.scale === 'share' ? format.percent(rows[i].value(t)) : show(rows[i].value(t));
      });
      panel.steps.forEach((_, i) => {
        const row = rows[panel.traces.length + i];
        row.cell.textContent = show(row.value(t));
      });
    },
  };
}

/** @param {string} tint @param {number[]} [dash] */
function swatch(tint, dash) {
  return svg('svg', { viewBox: '0 0 22 8', class: 'swatch', 'aria-hidden': 'true' }, svg('path', { d: 'M0 4H22', class: `stroke-${tint}`, 'stroke-dasharray': dash ? dash.join(' ') : null }));
}
