/**
 * Claims about the page in a real browser, opened from disk. With FGM_REPORT=FILE they are made about that report (of a
 * real kill); without, about the fixture. The broken and the range variants are always made from the fixture.
 */

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { openSamples } from '../src/samples.js';
import { indexAt } from '../src/series.js';
import { barriers, coloursOf, documentIn, fixture, launch, openReport, plotBox, SHOTS, writeReport } from './page.mjs';

const TIMEOUT = { timeout: 60_000 };
/** @type {import('playwright-core').Browser} */
let browser;
let file;
let told;
const written = [];

async function make(name, document, parquet) {
  const path = await writeReport(name, document, parquet);
  written.push(path);
  return path;
}

before(async () => {
  browser = await launch();
  const { document, parquet } = await fixture();
  file = process.env.FGM_REPORT ?? (await make('incident', document, parquet));
  told = await documentIn(file);
}, TIMEOUT);

after(async () => {
  await browser?.close();
  for (const path of written) await rm(path, { force: true });
});

const shot = (page, name, fullPage = true) => page.screenshot({ path: join(SHOTS, `${name}.png`), fullPage });
/** The range that each panel's chart really has, in seconds from the event. */
const ranges = (page) => page.$$eval('[data-panel]', (panels) => panels.filter((p) => p.dataset.from).map((p) => [Number(p.dataset.from), Number(p.dataset.to)]));

test('the_report_shows_the_incident', TIMEOUT, async () => {
  const { page, context, requests, errors, openedMs } = await openReport(browser, file);
  assert.equal(await page.getAttribute('html', 'data-ready'), 'yes');
  assert.ok(openedMs > 0 && openedMs < 2000, `opened in ${openedMs} ms`);
  assert.equal(await page.textContent('#summary'), told.incident.summary);
  for (const victim of told.incident.victims.filter((v) => v.pid !== null)) {
    const row = page.locator(`#process-table tr.victim[data-pid="${victim.pid}"]`);
    const inTable = told.processes.some((p) => p.pid === victim.pid);
    assert.equal(inTable, true, `the report's process rows hold the victim ${victim.pid}`);
    assert.equal(await row.count(), 1, `victim ${victim.pid} is in the table`);
    assert.match(await row.textContent(), /victim/);
  }
  const canvases = await page.locator('.panel canvas').all();
  assert.ok(canvases.length >= 1, 'at least one chart');
  for (const canvas of canvases) assert.ok((await coloursOf(canvas)) > 4, 'a chart is not blank');
  assert.ok((await coloursOf(page.locator('.panel[data-panel=memory] canvas'))) > 12, 'memory has lines, bands and marks');
  assert.equal(await page.locator('#event-list tbody tr').count(), told.events.length, 'every event is listed');
  assert.equal(await page.locator('tr[aria-current=true]').count(), 1, 'the incident event is marked');
  assert.equal(await page.locator('#missing li, #missing .all-there').count() > 0, true);
  assert.match(await page.textContent('#provenance'), /checked: the embedded file has this hash/);
  await shot(page, 'light');
  assert.deepEqual(requests, [], 'no request');
  assert.deepEqual(errors, [], 'no error');
  await context.close();
});

test('dragging_zooms_every_panel_and_reset_shows_all', TIMEOUT, async () => {
  const { page, context, errors } = await openReport(browser, file);
  const whole = await ranges(page);
  const box = await plotBox(page);
  await page.mouse.move(box.x + box.width * 0.3, box.y + 60);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.5, box.y + 70, { steps: 5 });
  assert.equal(await page.locator('.selection').isVisible(), true, 'the selection shows while dragging');
  await page.mouse.up();
  const zoomed = await ranges(page);
  const width = (r) => r[1] - r[0];
  for (const [i, range] of zoomed.entries()) {
    assert.deepEqual(range, zoomed[0], 'all panels have one range');
    assert.ok(Math.abs(width(range) / width(whole[i]) - 0.2) < 0.03, `a fifth of the window, not ${width(range) / width(whole[i])}`);
  }
  await page.keyboard.down('Shift');
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.3, box.y + 70, { steps: 4 });
  await page.mouse.up();
  await page.keyboard.up('Shift');
  const panned = await ranges(page);
  assert.ok(Math.abs(width(panned[0]) - width(zoomed[0])) < 1e-3 && panned[0][0] > zoomed[0][0], 'shift-drag pans');
  await page.mouse.wheel(0, -120);
  await page.waitForFunction((w) => { const p = document.querySelector('[data-from]'); return p.dataset.to - p.dataset.from < w * 0.95; }, width(panned[0]));
  await page.mouse.dblclick(box.x + 200, box.y + 60);
  assert.deepEqual(await ranges(page), whole, 'double click resets');
  await page.getByRole('button', { name: 'Zoom in' }).click();
  assert.notDeepEqual(await ranges(page), whole);
  await page.getByRole('button', { name: 'Reset: show the whole window' }).click();
  assert.deepEqual(await ranges(page), whole, 'the button resets');
  const preset = page.locator('.preset').last();
  if (await preset.count()) {
    await preset.click();
    await page.mouse.move(box.x + box.width * 0.6, box.y + 60);
    await page.locator('#charts').scrollIntoViewIfNeeded();
    await shot(page, 'zoomed');
  }
  assert.deepEqual(errors, []);
  await context.close();
});

test('the_cursor_is_one_and_reads_every_panel', TIMEOUT, async () => {
  const { page, context } = await openReport(browser, file);
  const box = await plotBox(page);
  const atKill = await page.textContent('[data-panel=memory] [data-value=memory_current]');
  await page.mouse.move(box.x + box.width * 0.97, box.y + 60);
  assert.equal(await page.locator('.crosshair').isVisible(), true);
  const later = await page.textContent('[data-panel=memory] [data-value=memory_current]');
  assert.notEqual(later, atKill, 'the readout follows the cursor');
  assert.match(await page.textContent('#now'), /^\+/, 'the time is told from the event');
  await context.close();
});

test('the_saved_parquet_has_the_hash_that_the_report_names', TIMEOUT, async () => {
  const { page, context, requests, errors } = await openReport(browser, file);
  const [download] = await Promise.all([page.waitForEvent('download'), page.click('#save')]);
  const bytes = await readFile(await download.path());
  assert.equal(createHash('sha256').update(bytes).digest('hex'), told.provenance.parquet_sha256);
  assert.match(download.suggestedFilename(), /^[A-Za-z0-9._-]+\.parquet$/);
  assert.deepEqual(requests.filter((url) => !url.startsWith('blob:')), []);
  assert.deepEqual(errors, []);
  await context.close();
});

test('the_keyboard_reaches_and_works_everything', TIMEOUT, async () => {
  const { page, context } = await openReport(browser, file);
  const reached = new Set();
  for (let i = 0; i < 120; i += 1) {
    await page.keyboard.press('Tab');
    const name = await page.evaluate(() => {
      const node = document.activeElement;
      return node === document.body ? '' : node.id || node.name || node.className || node.textContent;
    });
    if (name) reached.add(name);
  }
  for (const wanted of ['copy', 'save', 'theme', 'clock', 'stack', 'brush-body', 'brush-edge', 'sort', 'legend-button']) assert.ok(reached.has(wanted), `${wanted} is reached by Tab: ${[...reached]}`);
  const [whole] = await ranges(page);
  await page.locator('#stack').focus();
  await page.keyboard.press('ArrowLeft');
  assert.match(await page.textContent('#now'), /^−/, 'the sample before the event');
  assert.match(await page.textContent('#now'), /a (base|history|burst) sample/);
  await page.keyboard.press('+');
  assert.ok((await ranges(page))[0][0] > whole[0], '+ zooms in');
  await page.keyboard.press('0');
  assert.deepEqual((await ranges(page))[0], whole, '0 resets');
  await page.locator('.brush-edge').first().focus();
  await page.keyboard.press('Shift+ArrowRight');
  assert.ok((await ranges(page))[0][0] > whole[0], 'the brush moves');
  const head = page.locator('th:has(button.sort)').first();
  await head.locator('button').focus();
  await page.keyboard.press('Enter');
  assert.equal(await head.getAttribute('aria-sort'), 'ascending');
  await context.close();
});

test('a_sample_just_before_the_event_has_a_distance_and_a_sign', TIMEOUT, async () => {
  const { document, parquet } = await fixture();
  const samples = await openSamples(parquet);
  const group = await samples.read(samples.groups.find((g) => g.id === String(document.incident.cgroup_id)), []);
  const sampleUs = group.t[indexAt(group.t, document.incident.ts_us)];
  for (const [us, told] of [[300, '0.3 ms'], [40, '40 µs'], [1, '1 µs']]) {
    const close = structuredClone(document);
    const chief = close.events.find((event) => event.ts_us === close.incident.ts_us && event.kind === close.incident.kind);
    chief.ts_us = close.incident.ts_us = sampleUs + us;
    const { page, context } = await openReport(browser, await make(`close-${us}`, close, parquet));
    await page.locator('#stack').focus();
    await page.keyboard.press('ArrowLeft');
    assert.equal(await page.textContent('#now strong'), `−${told}`);
    assert.match(await page.textContent('#now'), /a (base|history|burst) sample/);
    await context.close();
  }
});

test('events_show_their_details_and_light_their_row', TIMEOUT, async () => {
  const { page, context } = await openReport(browser, file);
  const mark = page.locator('.event-main').first();
  await mark.hover();
  assert.equal(await page.locator('.tip').isVisible(), true);
  assert.equal(await page.locator('tr.lit').count(), 1);
  await page.locator('h1').hover();
  assert.equal(await page.locator('.tip').isVisible(), false);
  await mark.focus();
  assert.equal(await page.locator('.tip').isVisible(), true, 'by focus as well');
  await context.close();
});

test('another_cgroup_draws_its_own_samples', TIMEOUT, async (t) => {
  const { page, context, errors } = await openReport(browser, file);
  const choices = page.locator('#choose-cgroup input');
  if ((await choices.count()) < 2) {
    await context.close();
    return t.skip('this report holds one cgroup');
  }
  const value = () => page.textContent('[data-panel=memory] [data-value=memory_current]');
  const choose = async (n) => {
    await choices.nth(n).check();
    await page.waitForFunction(([id]) => document.getElementById('stack').dataset.group === id, [await choices.nth(n).inputValue()]);
  };
  const first = await value();
  await choose(1);
  assert.notEqual(await value(), '–');
  await choose(0);
  assert.equal(await value(), first);
  await page.keyboard.press('Tab');
  assert.deepEqual(errors, []);
  await context.close();
});

test('dark_by_the_system_and_by_choice', TIMEOUT, async () => {
  const dark = await openReport(browser, file, { colorScheme: 'dark' });
  assert.equal(await dark.page.getAttribute('html', 'data-theme'), 'dark');
  await shot(dark.page, 'dark');
  await dark.page.check('input[name=theme][value=light]', { force: true });
  assert.equal(await dark.page.getAttribute('html', 'data-theme'), 'light');
  assert.match(dark.page.url(), /#theme=light$/, 'remembered in the address');
  assert.deepEqual(dark.errors, []);
  await dark.context.close();
});

test('roles_labels_and_contrast_bar_nobody', TIMEOUT, async () => {
  for (const colorScheme of ['light', 'dark']) {
    const { page, context } = await openReport(browser, file, { colorScheme });
    assert.deepEqual(await barriers(page), [], colorScheme);
    await context.close();
  }
});

test('a_phone_has_no_sideways_scroll', TIMEOUT, async () => {
  const { page, context, errors } = await openReport(browser, file, { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 });
  // innerWidth grows with what overflows: the screen does not
  const widths = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth, screen.width]);
  assert.deepEqual(widths, [390, 390, 390]);
  assert.ok((await coloursOf(page.locator('.panel[data-panel=memory] canvas'))) > 12);
  await shot(page, 'phone');
  assert.deepEqual(errors, []);
  await context.close();
});

test('a_broken_parquet_is_said_and_the_rest_stands', TIMEOUT, async () => {
  const { document, parquet } = await fixture();
  for (const [name, bytes, why] of [['none', Buffer.alloc(0), /no Parquet file is embedded/], ['cut', parquet.subarray(0, 20_000), /./], ['torn', Buffer.concat([parquet.subarray(0, 4), Buffer.alloc(40_000, 0x5a), parquet.subarray(40_004)]), /./]]) {
    const { page, context } = await openReport(browser, await make(name, document, bytes));
    assert.equal(await page.getAttribute('html', 'data-ready'), 'broken', name);
    assert.match(await page.textContent('#charts .broken'), why);
    assert.equal(await page.textContent('#summary'), document.incident.summary);
    assert.equal(await page.locator('tr.victim').count(), 1);
    assert.equal(await page.locator('#event-list tbody tr').count(), document.events.length);
    assert.doesNotMatch(await page.textContent('#missing'), /Nothing is known/);
    if (name === 'torn') {
      assert.match(await page.textContent('#provenance'), /DOES NOT MATCH/);
      await shot(page, 'broken');
    }
    await context.close();
  }
});

test('a_range_export_titles_itself', TIMEOUT, async () => {
  const { document, parquet } = await fixture();
  const plain = { ...document, incident: null, events: [], processes: [], lost: [], provenance: { ...document.provenance, hooks: [] } };
  const { page, context, errors } = await openReport(browser, await make('range', plain, parquet));
  assert.match(await page.textContent('h1'), /^api, 2026-11-24 03:11:\d\d to 03:12:\d\d UTC$/);
  assert.ok((await coloursOf(page.locator('.panel[data-panel=memory] canvas'))) > 8);
  assert.match(await page.textContent('#events'), /No events/);
  assert.deepEqual(errors, []);
  await shot(page, 'range');
  await context.close();
});

test('hostile_names_stay_text', TIMEOUT, async () => {
  const { document, parquet } = await fixture();
  const evil = '</script><img src=x onerror="document.title=\'owned\'">__FGM_PARQUET_BASE64__';
  const nasty = structuredClone(document);
  nasty.incident.container = evil;
  nasty.incident.summary = evil;
  nasty.events[0].comm = evil;
  nasty.processes[0].comm = evil;
  const { page, context, requests, errors } = await openReport(browser, await make('hostile', nasty, parquet));
  assert.equal(await page.getAttribute('html', 'data-ready'), 'yes', 'the samples are still there');
  assert.equal(await page.textContent('#summary'), evil);
  assert.equal(await page.locator('main img').count(), 0);
  assert.notEqual(await page.title(), 'owned');
  assert.deepEqual([requests, errors], [[], []]);
  const widths = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(widths[0] <= widths[1], 'long names wrap');
  await context.close();
});

test('on_paper_it_is_light_and_without_controls', TIMEOUT, async () => {
  const { page, context, errors } = await openReport(browser, file, { colorScheme: 'dark' });
  await page.emulateMedia({ media: 'print', colorScheme: 'dark' });
  await page.evaluate(() => dispatchEvent(new Event('beforeprint')));
  assert.equal(await page.getAttribute('html', 'data-theme'), 'light');
  assert.equal(await page.locator('.top').isVisible(), false);
  assert.equal(await page.locator('#summary').isVisible(), true);
  await shot(page, 'print');
  await page.evaluate(() => dispatchEvent(new Event('afterprint')));
  assert.equal(await page.getAttribute('html', 'data-theme'), 'dark');
  assert.deepEqual(errors, []);
  await context.close();
});

test('a_group_without_some_columns_says_so', TIMEOUT, async () => {
  const { document } = await fixture();
  const parquet = await readFile(new URL('fixture/bare.parquet', import.meta.url));
  const { page, context, errors } = await openReport(browser, await make('bare', document, parquet));
  assert.equal(await page.locator('.panel canvas').count(), 1);
  assert.equal(await page.locator('.panel .empty').count(), 4);
  assert.match(await page.textContent('[data-panel=cpu]'), /No CPU readings/);
  assert.deepEqual(errors, []);
  await context.close();
});
