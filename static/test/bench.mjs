/**
 * How long the viewer takes in Chromium over a data folder of any size: first drawing, typing into the search, a wheel's
 * turn, the cursor. Prints milliseconds and bounds nothing: machines differ. Not a test. FGM_DATA, FGM_BIN as in serve.mjs:
 *
 *   FGM_DATA=DIR FGM_BIN=target/release/fgm node test/bench.mjs
 */

import { launch, plotBox } from './page.mjs';
import { view } from './serve.mjs';

const [browser, served] = await Promise.all([launch(), view()]);
try {
  const page = await browser.newPage({ viewport: { width: 1440, height: 900 } });
  page.setDefaultTimeout(120_000);
  const told = [];
  const take = (what, ms) => told.push([what, Math.round(ms)]);
  const began = performance.now();
  const status = await (await fetch(`${served.url}/api/status`)).json();
  const range = `from=${status.store.from_us / 1e6}&to=${status.store.to_us / 1e6 + 1}`;
  const asked = performance.now();
  const { containers } = await (await fetch(`${served.url}/api/containers?${range}`)).json();
  take(`/api/containers, ${containers.length} of them`, performance.now() - asked);
  const keys = containers.filter((c) => c.scope === 'container').slice(0, 8).map((c) => c.key).join(',');
  await page.goto(`${served.url}/#containers=${keys}&window=${status.store.from_us}-${status.store.to_us + 1e6}`);
  await page.waitForSelector('.panel canvas');
  const paint = await page.evaluate(() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN);
  take('first contentful paint', paint);
  take('charts drawn', Number(await page.getAttribute('html', 'data-opened-ms')));
  await page.waitForFunction(() => document.documentElement.dataset.ready === 'yes');
  take('rows behind the charts', containers.filter((c) => keys.includes(c.key)).reduce((sum, c) => sum + c.rows, 0));
  /** Time from an input to the second frame after it. */
  const frame = (act) => page.evaluate(`new Promise((resolve) => { const t = performance.now(); (${act})(); requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - t))); })`);
  const worst = async (what, act, times = 10) => {
    const all = [];
    for (let i = 0; i < times; i += 1) all.push(await frame(act(i)));
    all.sort((a, b) => a - b);
    take(`${what}, median`, all[times >> 1]);
    take(`${what}, worst`, all[times - 1]);
  };
  await worst('a letter in the container search', (i) => `() => { const f = document.getElementById('search'); f.value = 'app-1${i}'; f.dispatchEvent(new Event('input')); }`);
  await worst('a letter in the metric search', (i) => `() => { const f = document.getElementById('metric'); f.value = '${'throttled'.slice(0, 1 + i)}'; f.dispatchEvent(new Event('input')); }`);
  const box = await plotBox(page);
  await worst('a wheel’s turn', () => `() => { const a = document.querySelector('[data-panel=memory] .u-over'); document.getElementById('stack').focus(); a.dispatchEvent(new WheelEvent('wheel', { deltaY: -120, clientX: ${box.x + box.width / 2}, clientY: ${box.y + 20}, bubbles: true, cancelable: true })); }`);
  await worst('the cursor', (i) => `() => { const a = document.querySelector('[data-panel=memory] .u-over'); a.dispatchEvent(new PointerEvent('pointermove', { clientX: ${box.x} + ${i} * 30, clientY: ${box.y + 20}, bubbles: true })); }`, 20);
  for (const [what, n] of told) console.log(`${String(n).padStart(9)}  ${what}`);
  console.log(`${String(Math.round(performance.now() - began)).padStart(9)}  in all`);
} finally {
  await browser.close();
  await served.stop();
}
