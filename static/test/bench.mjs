/**
 * How long the pages take in Chromium: the viewer over a data folder of any size, and a report. Prints one JSON object of
 * milliseconds and counts; judges nothing (`cargo xtask bench viewer` makes the folder and the report, and does). Not a
 * test. FGM_DATA, FGM_BIN as in serve.mjs, FGM_REPORT a report file (what is
 * not given is not opened):
 *
 *   FGM_DATA=DIR FGM_BIN=target/release/fgm FGM_REPORT=FILE node test/bench.mjs
 */

import { stat } from 'node:fs/promises';
import { documentIn, launch, openReport, plotBox } from './page.mjs';
import { view } from './serve.mjs';

const MOST_COMPARED = 8;
/** Pages start cold in a context of their own; the middle one of so many is told. */
const OPENINGS = 5;

const median = (/** @type {number[]} */ all) => [...all].sort((a, b) => a - b)[all.length >> 1];
const round = (/** @type {number} */ ms) => Math.round(ms * 10) / 10;

/**
 * From an input to the second frame after it, by which it is on the screen: the middle and the worst of `times`.
 * @param {import('playwright-core').Page} page @param {(i: number) => string} act the body of a function @param {number} times
 */
async function reaction(page, act, times) {
  const all = [];
  for (let i = 0; i < times; i += 1) {
    all.push(await page.evaluate(`new Promise((resolve) => requestAnimationFrame(() => { const t = performance.now(); (() => { ${act(i)} })(); requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - t))); }))`));
    await page.waitForTimeout(60);
  }
  return { median_ms: round(median(all)), worst_ms: round(Math.max(...all)) };
}

const typed = (/** @type {string} */ id, /** @type {string} */ text) => `const f = document.getElementById('${id}'); f.value = '${text}'; f.dispatchEvent(new Event('input', { bubbles: true }));`;

/** What a hand does on a chart; the same in viewer and report. @param {import('playwright-core').Page} page */
async function onCharts(page) {
  const box = await plotBox(page);
  const at = (/** @type {number} */ part) => `clientX: ${box.x + box.width * part}, clientY: ${box.y + 20}, bubbles: true, cancelable: true`;
  const over = "const a = document.querySelector('[data-panel=memory] .u-over');";
  const key = (/** @type {string} */ name) => `document.getElementById('stack').dispatchEvent(new KeyboardEvent('keydown', { key: '${name}', bubbles: true, cancelable: true }));`;
  await page.focus('#stack');
  return {
    cursor: await reaction(page, (i) => `${over} a.dispatchEvent(new PointerEvent('pointermove', { ${at(0.1 + i / 30)} }));`, 20),
    wheel: await reaction(page, (i) => `${over} a.dispatchEvent(new WheelEvent('wheel', { deltaY: ${i < 8 ? -120 : 120}, ${at(0.5)} }));`, 16),
    pan: await reaction(page, (i) => `document.querySelector('button[aria-label=${i % 2 ? 'Earlier' : 'Later'}]').click();`, 10),
    zoom_key: await reaction(page, (i) => key(i % 2 ? '-' : '+'), 10),
  };
}

const paintOf = (/** @type {import('playwright-core').Page} */ page) => page.evaluate(() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN);

/** @param {import('playwright-core').Browser} browser @param {string} url */
async function ofViewer(browser, url) {
  const get = async (/** @type {string} */ path) => (await fetch(`${url}${path}`)).json();
  const { store } = await get('/api/status');
  const { containers } = await get(`/api/containers?from=${store.from_us / 1e6}&to=${store.to_us / 1e6 + 1}`);
  const { metrics } = await get('/api/metrics');
  const chosen = containers.filter((c) => c.scope === 'container').sort((a, b) => b.rows - a.rows).slice(0, MOST_COMPARED);
  const address = `${url}/#containers=${chosen.map((c) => c.key).join(',')}&window=${store.from_us}-${store.to_us + 1e6}`;
  const [paints, drawn] = [[], []];
  let page;
  for (let i = 0; i < OPENINGS; i += 1) {
    await page?.context().close();
    page = await (await browser.newContext({ viewport: { width: 1440, height: 900 } })).newPage();
    page.setDefaultTimeout(120_000);
    await page.goto(address);
    await page.waitForFunction(() => document.documentElement.dataset.ready === 'yes');
    await page.waitForSelector('.panel canvas');
    paints.push(await paintOf(page));
    drawn.push(Number(await page.getAttribute('html', 'data-opened-ms')));
  }
  const count = (/** @type {number} */ n) => `${n}`;
  const found = {
    containers: containers.length,
    metrics: metrics.length,
    rows_drawn: chosen.reduce((sum, c) => sum + c.rows, 0),
    first_paint_ms: round(median(paints)),
    charts_drawn_ms: round(median(drawn)),
    interaction: {
      search_containers: await reaction(page, (i) => typed('search', ['', '0', '00', '1', '12', '12a', 'shop', 'b', 'bank', count(i)][i]), 10),
      search_metrics: await reaction(page, (i) => typed('metric', 'throttled '.slice(0, 1 + i)), 10),
      ...(await page.evaluate("document.getElementById('search').value = ''; document.getElementById('search').dispatchEvent(new Event('input')); document.getElementById('metric').value = ''; document.getElementById('metric').dispatchEvent(new Event('input')); document.activeElement.blur();"), await onCharts(page)),
    },
  };
  // A zoom at rest is asked for anew at the screen's resolution: what that takes with the server and the network in it.
  await page.keyboard.press('0');
  await page.waitForTimeout(500);
  found.finer_after_zoom_ms = round(await page.evaluate(() => new Promise((resolve) => {
    const stack = document.getElementById('stack');
    const before = stack.dataset.refined;
    const t = performance.now();
    new MutationObserver(() => stack.dataset.refined !== before && resolve(performance.now() - t)).observe(stack, { attributes: true });
    document.querySelector('button[aria-label="Zoom in"]').click();
  })));
  await page.context().close();
  return found;
}

/** @param {import('playwright-core').Browser} browser @param {string} file */
async function ofReport(browser, file) {
  const [paints, opened] = [[], []];
  let last;
  for (let i = 0; i < OPENINGS; i += 1) {
    await last?.context.close();
    last = await openReport(browser, file);
    paints.push(await paintOf(last.page));
    opened.push(last.openedMs);
  }
  const { provenance } = await documentIn(file);
  const found = { rows: provenance.thinned?.rows_of ?? provenance.rows, rows_embedded: provenance.rows, bytes: (await stat(file)).size, first_paint_ms: round(median(paints)), opened_ms: round(median(opened)), interaction: await onCharts(last.page) };
  await last.context.close();
  return found;
}

const [browser, served] = await Promise.all([launch(), process.env.FGM_DATA ? view() : null]);
try {
  const viewer = served && (await ofViewer(browser, served.url));
  const report = process.env.FGM_REPORT ? await ofReport(browser, process.env.FGM_REPORT) : null;
  console.log(JSON.stringify({ chromium: browser.version(), viewer, report }, null, 2));
} finally {
  await browser.close();
  await served?.stop();
}
