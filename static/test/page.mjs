/**
 * What the browser tests share: a report file (FGM_REPORT, else the fixture put into the template), Chromium, and a page
 * that remembers every request and every error. Not a test itself. Called by report.test.mjs.
 */

import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import axe from 'axe-core';
import { chromium } from 'playwright-core';

const HERE = dirname(fileURLToPath(import.meta.url));
export const SHOTS = process.env.FGM_SHOTS ?? join(HERE, 'out');
const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];

/** The fixture's document and Parquet file. */
export async function fixture() {
  const document = JSON.parse(await readFile(join(HERE, 'fixture/incident.json'), 'utf8'));
  return { document, parquet: await readFile(join(HERE, 'fixture/incident.parquet')) };
}

/**
 * What the agent does: fills the two placeholders of the committed template.
 * @param {string} name
 * @param {unknown} document
 * @param {Buffer} parquet
 */
export async function writeReport(name, document, parquet) {
  const template = await readFile(join(HERE, '../dist/report.html'), 'utf8');
  const json = JSON.stringify(document).replaceAll('<', '\\u003c');
  // The file first: a name inside the JSON may spell its placeholder, base64 can spell neither.
  const html = template.replace('__FGM_PARQUET_BASE64__', () => parquet.toString('base64')).replace('__FGM_DATA_JSON__', () => json);
  const file = join(tmpdir(), `fgm-report-test-${process.pid}-${name}.html`);
  await writeFile(file, html);
  return file;
}

/** The document inside a report. @param {string} file */
export async function documentIn(file) {
  const html = await readFile(file, 'utf8');
  const found = /<script type="application\/json" id="fgm-data">(.*?)<\/script>/s.exec(html);
  if (!found) throw new Error(`${file} holds no fgm-data: is it a report?`);
  return JSON.parse(found[1]);
}

export async function launch() {
  await mkdir(SHOTS, { recursive: true });
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: FLAGS });
}

/**
 * Opens a report from disk and waits until it is drawn.
 * @param {import('playwright-core').Browser} browser
 * @param {string} file
 * @param {object} [options] of the browser context
 */
export async function openReport(browser, file, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1360, height: 900 }, acceptDownloads: true, timezoneId: 'Europe/Berlin', reducedMotion: 'reduce', ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(10_000);
  /** @type {string[]} */
  const requests = [];
  /** @type {string[]} */
  const errors = [];
  const own = pathToFileURL(resolve(file)).href;
  page.on('request', (request) => {
    if (request.url().split('#')[0] !== own) requests.push(request.url());
  });
  page.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning') errors.push(message.text());
  });
  page.on('pageerror', (error) => errors.push(String(error.stack)));
  await page.goto(own);
  await page.waitForFunction(() => document.documentElement.dataset.ready);
  return { page, context, requests, errors, openedMs: Number(await page.getAttribute('html', 'data-opened-ms')) };
}

/** Where the plotting area of the memory panel is, on the screen. @param {import('playwright-core').Page} page */
export async function plotBox(page) {
  const area = page.locator('[data-panel=memory] .u-over');
  await area.evaluate((node) => node.scrollIntoView({ block: 'center' }));
  return area.boundingBox();
}

/** How many different colours a canvas shows, sampled: 1 is blank. @param {import('playwright-core').Locator} canvas */
export function coloursOf(canvas) {
  return canvas.evaluate((node) => {
    const { width, height } = node;
    // Read from a copy: reading the chart's own canvas back makes the browser warn on the console.
    const copy = Object.assign(document.createElement('canvas'), { width, height }).getContext('2d', { willReadFrequently: true });
    copy.drawImage(node, 0, 0);
    const data = copy.getImageData(0, 0, width, height).data;
    const seen = new Set();
    for (let i = 0; i < data.length; i += 4) if (data[i + 3]) seen.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
    return seen.size;
  });
}

/** What axe-core finds against WCAG 2.2 A and AA: rule, and the first places. @param {import('playwright-core').Page} page */
export async function barriers(page) {
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] }));
  return violations.map((rule) => `${rule.id}: ${rule.help}: ${rule.nodes.slice(0, 3).map((node) => `${node.target} ${node.any.map((check) => check.message).join(' ')}`).join(' | ')}`);
}
