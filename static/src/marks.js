/**
 * What is drawn on a chart besides its lines: the shaded stretches of history and burst, the marks of single samples
 * (hollow circle: base, dot: history, diamond: burst), and the lines of events. Shapes and words say what colours say.
 * It must never change data or scales. Called by charts and overview, from the chart library's draw hooks.
 *
 * @import uPlot from 'uplot'
 * @import { Run } from './series.js'
 */

import { kindName } from './words.js';

/** Samples closer than this many CSS pixels are drawn as a line only. */
const MARK_SPACING = 7;
/** The same for the thinner lines of a panel, which would otherwise hide the main one. */
const MINOR_SPACING = 18;
/** No cause marks more than this many samples of one line in one view. */
const MOST_MARKS = 600;

/** @param {string} name a CSS variable, without the dashes */
export function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim() || '#888888';
}

/** @param {uPlot} u @param {number} us @param {number} originUs canvas pixels */
function xOf(u, us, originUs) {
  return u.valToPos((us - originUs) / 1e6, 'x', true);
}

/**
 * @param {uPlot} u
 * @param {Run[]} bands
 * @param {number} originUs
 * @param {boolean} named write the words into the bands
 * @param {number | null} chiefUs where the incident's line will be: no word lies under it
 */
export function drawBands(u, bands, originUs, named, chiefUs) {
  const { ctx, bbox } = u;
  const ratio = devicePixelRatio || 1;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  for (const band of bands) {
    const name = band.cause === 1 ? 'history' : 'burst';
    const left = Math.max(bbox.left, xOf(u, band.from, originUs));
    const right = Math.min(bbox.left + bbox.width, Math.max(xOf(u, band.to, originUs), xOf(u, band.from, originUs) + ratio));
    if (right <= left) continue;
    ctx.fillStyle = color(`band-${name}`);
    ctx.fillRect(left, bbox.top, right - left, bbox.height);
    ctx.fillStyle = color(`band-${name}-edge`);
    ctx.fillRect(left, bbox.top + bbox.height - 3 * ratio, right - left, 3 * ratio);
    if (named && right - left > 56 * ratio) {
      ctx.font = `${11 * ratio}px system-ui, sans-serif`;
      ctx.fillStyle = color('text-soft');
      ctx.textAlign = 'left';
      ctx.textBaseline = 'top';
      const [gap, width] = [6 * ratio, ctx.measureText(name).width];
      const line = chiefUs === null ? -Infinity : xOf(u, chiefUs, originUs);
      const isUnder = line > left && line < left + width + 2 * gap;
      const at = (isUnder ? line : left) + gap;
      if (at + width < right) ctx.fillText(name, at, bbox.top + 5 * ratio);
    }
  }
  ctx.restore();
}

/**
 * @param {uPlot} u
 * @param {{ts_us: number, kind: string, severity: string}[]} events
 * @param {(event: any) => boolean} isIncident
 * @param {number} originUs
 * @param {boolean} named
 */
export function drawEvents(u, events, isIncident, originUs, named) {
  const { ctx, bbox } = u;
  const ratio = devicePixelRatio || 1;
  ctx.save();
  let taken = -Infinity;
  // The incident last, so that its line lies on top; its label first, so that it is never the one left out.
  const ordered = [...events].sort((a, b) => Number(isIncident(a)) - Number(isIncident(b)));
  for (const event of ordered) {
    const x = Math.round(xOf(u, event.ts_us, originUs));
    if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) continue;
    const main = isIncident(event);
    ctx.strokeStyle = color(main ? 'critical' : 'event-line');
    ctx.lineWidth = (main ? 2 : 1) * ratio;
    ctx.setLineDash(main ? [] : [2 * ratio, 3 * ratio]);
    ctx.beginPath();
    ctx.moveTo(x, main && named ? bbox.top - 17 * ratio : bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    if (!named || !main || x - taken < 40 * ratio) continue;
    taken = x;
    const text = kindName(event.kind);
    ctx.font = `600 ${11 * ratio}px system-ui, sans-serif`;
    const width = ctx.measureText(text).width + 10 * ratio;
    const flip = x + width > bbox.left + bbox.width;
    ctx.fillStyle = color('critical');
    ctx.fillRect(flip ? x - width : x, bbox.top - 19 * ratio, width, 17 * ratio);
    ctx.fillStyle = color('on-critical');
    ctx.textAlign = 'left';
    ctx.textBaseline = 'middle';
    ctx.fillText(text, (flip ? x - width : x) + 5 * ratio, bbox.top - 10 * ratio);
  }
  ctx.restore();
}

/**
 * What an analysis found: dashed lines through the panel where something changed or peaks, and where a trend leads.
 * @param {uPlot} u
 * @param {{marks: number[], lines: [number, number][][]} | undefined} overlay
 * @param {number} originUs
 */
export function drawOverlay(u, overlay, originUs) {
  if (!overlay) return;
  const { ctx, bbox } = u;
  const ratio = devicePixelRatio || 1;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.strokeStyle = color('accent');
  ctx.fillStyle = color('accent');
  ctx.lineWidth = 1.5 * ratio;
  ctx.setLineDash([5 * ratio, 4 * ratio]);
  for (const t of overlay.marks) {
    const x = Math.round(xOf(u, t, originUs));
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.beginPath();
    ctx.moveTo(x - 5 * ratio, bbox.top);
    ctx.lineTo(x + 5 * ratio, bbox.top);
    ctx.lineTo(x, bbox.top + 8 * ratio);
    ctx.fill();
  }
  ctx.lineWidth = 2.5 * ratio;
  ctx.setLineDash([9 * ratio, 5 * ratio]);
  for (const line of overlay.lines) {
    ctx.beginPath();
    line.forEach(([t, v], i) => ctx[i ? 'lineTo' : 'moveTo'](xOf(u, t, originUs), u.valToPos(v, 'y', true)));
    ctx.stroke();
  }
  ctx.restore();
}

/**
 * Marks the samples of one line, for each cause that is sparse enough here to tell one sample from the next.
 * @param {uPlot} u
 * @param {{line: import('./series.js').Line, color: string, scale: string, main: boolean}} trace
 * @param {number} originUs
 */
export function drawSamples(u, trace, originUs) {
  const { ctx, bbox } = u;
  const ratio = devicePixelRatio || 1;
  /** @type {[number, number][][]} */
  const points = [[], [], []];
  for (let i = 0; i < trace.line.t.length; i += 1) {
    const x = xOf(u, trace.line.t[i], originUs);
    if (x < bbox.left - 2 || x > bbox.left + bbox.width + 2) continue;
    points[trace.line.cause[i]].push([x, u.valToPos(trace.line.v[i], trace.scale, true)]);
  }
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top - 4 * ratio, bbox.width, bbox.height + 8 * ratio);
  ctx.clip();
  ctx.setLineDash([]);
  ctx.lineWidth = 1.4 * ratio;
  ctx.strokeStyle = color(trace.color);
  points.forEach((list, cause) => {
    if (!list.length || list.length > MOST_MARKS) return;
    const closest = usualSpacing(list);
    if (closest < (trace.main ? MARK_SPACING : MINOR_SPACING) * ratio) return;
    for (const [x, y] of list) {
      ctx.beginPath();
      if (cause === 1) ctx.arc(x, y, 1.8 * ratio, 0, 2 * Math.PI);
      else if (cause === 0) ctx.arc(x, y, 2.6 * ratio, 0, 2 * Math.PI);
      else {
        const r = 3.2 * ratio;
        ctx.moveTo(x, y - r);
        ctx.lineTo(x + r, y);
        ctx.lineTo(x, y + r);
        ctx.lineTo(x - r, y);
        ctx.closePath();
      }
      ctx.fillStyle = cause === 1 ? color(trace.color) : color('card');
      ctx.fill();
      ctx.stroke();
    }
  });
  ctx.restore();
}

/** The median distance of neighbours, in pixels. @param {[number, number][]} points */
function usualSpacing(points) {
  if (points.length < 2) return Infinity;
  const apart = points.slice(1).map((p, i) => p[0] - points[i][0]);
  apart.sort((a, b) => a - b);
  return apart[apart.length >> 1];
}
