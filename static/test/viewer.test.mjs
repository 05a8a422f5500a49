/**
 * Claims about the viewer in a real browser, over a real `fgm view` of a real data folder: FGM_DATA names one with an OOM
 * kill in it, such as the demo's. Without it these tests are skipped, and say so.
 */

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { barriers, coloursOf, launch, plotBox, SHOTS } from './page.mjs';
import { DATA, liveOver, view } from './serve.mjs';

const OPTIONS = { timeout: 60_000, skip: DATA ? false : 'FGM_DATA names no data folder' };
/** @type {import('playwright-core').Browser} */
let browser;
/** @type {{url: string, stop: () => Promise<void>}} */
let served;
let kill;

before(async () => {
  if (!DATA) return;
  [browser, served] = await Promise.all([launch(), view()]);
  const { incidents } = await (await fetch(`${served.url}/api/incidents`)).json();
  kill = incidents.find((one) => one.kind === 'oom_kill');
  assert.ok(kill, 'the folder holds an OOM kill');
}, { timeout: 60_000 });

after(async () => {
  await browser?.close();
  await served?.stop();
});

async function open(hash = '', options = {}, url = served.url) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, acceptDownloads: true, timezoneId: 'Europe/Berlin', reducedMotion: 'reduce', ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);
  const elsewhere = [];
  const errors = [];
  page.on('request', (request) => { if (!request.url().startsWith(url)) elsewhere.push(request.url()); });
  page.on('console', (message) => { if (['error', 'warning'].includes(message.type())) errors.push(message.text()); });
  page.on('pageerror', (error) => errors.push(String(error.stack)));
  await page.goto(`${url}/${hash}`);
  await page.waitForFunction(() => document.documentElement.dataset.ready);
  await idle(page);
  return { page, context, elsewhere, errors };
}

const idle = (page) => page.waitForFunction(() => document.documentElement.dataset.state === 'idle');
const shot = (page, name, fullPage = false) => page.screenshot({ path: join(SHOTS, `viewer-${name}.png`), fullPage });
const range = (page) => page.$eval('[data-panel=memory]', (panel) => [Number(panel.dataset.from), Number(panel.dataset.to)]);
const traces = (page, panel) => page.locator(`[data-panel=${panel}] .legend-button`).count();

test('it_opens_on_the_worst_incident_and_says_what_was_killed_and_why', OPTIONS, async () => {
  const { page, context, elsewhere, errors } = await open();
  assert.equal(await page.getAttribute('html', 'data-ready'), 'yes');
  assert.equal(await page.textContent('#summary'), kill.summary);
  assert.equal(await page.getAttribute('[data-incident][aria-current=true]', 'data-incident'), kill.id);
  const canvases = await page.locator('.panel canvas').all();
  assert.ok(canvases.length >= 4, `${canvases.length} panels are drawn`);
  for (const canvas of canvases) assert.ok((await coloursOf(canvas)) > 4, 'a chart is not blank');
  assert.match(await page.textContent('[data-panel=memory] [data-value=memory_max]'), /[KMG]iB/, 'the limit is drawn');
  assert.equal(await page.locator('#event-list tr[aria-current=true]').count(), 1, 'the kill is marked among the events');
  assert.match(await page.textContent('.cause-legend'), /base.*history.*burst/s);
  console.log(`# first drawing after ${await page.getAttribute('html', 'data-opened-ms')} ms`);
  await shot(page, 'light', true);
  assert.deepEqual(elsewhere, [], 'no request to elsewhere');
  assert.deepEqual(errors, [], 'no error');
  await context.close();
});

test('a_zoom_brings_out_more_and_the_address_shows_it_again', OPTIONS, async () => {
  const { page, context, errors } = await open();
  const whole = await range(page);
  const box = await plotBox(page);
  const x = (t) => box.x + ((t - whole[0]) / (whole[1] - whole[0])) * box.width;
  await page.mouse.move(x(-2), box.y + 60);
  await page.mouse.down();
  await page.mouse.move(x(0.5), box.y + 70, { steps: 5 });
  await page.mouse.up();
  await page.waitForFunction(() => Number(document.getElementById('stack').dataset.refined) > 0);
  const zoomed = await range(page);
  assert.ok(Math.abs(zoomed[0] + 2) < 0.3 && Math.abs(zoomed[1] - 0.5) < 0.3, `from ${zoomed}`);
  await page.waitForFunction(() => location.hash.includes('zoom='));
  await page.mouse.move(x(-30), box.y - 40);
  await shot(page, 'zoomed');
  const again = await open(new URL(page.url()).hash);
  const shown = await range(again.page);
  assert.ok(Math.abs(shown[0] - zoomed[0]) < 0.01 && Math.abs(shown[1] - zoomed[1]) < 0.01, 'the link shows the same part');
  assert.equal(await again.page.textContent('#summary'), kill.summary);
  await again.context.close();
  const began = Date.now();
  await page.mouse.move(x(-10), box.y + 60);
  await page.mouse.wheel(0, -120);
  await page.waitForFunction((w) => { const p = document.querySelector('[data-panel=memory]'); return p.dataset.to - p.dataset.from < w * 0.95; }, zoomed[1] - zoomed[0]);
  console.log(`# a wheel's turn is drawn after ${Date.now() - began} ms`);
  await page.getByRole('button', { name: 'Reset: show the whole window' }).click();
  assert.deepEqual(await range(page), whole);
  assert.deepEqual(errors, []);
  await context.close();
});

test('containers_are_searched_filtered_and_compared_without_mixing', OPTIONS, async () => {
  const { page, context, errors } = await open();
  const rows = page.locator('#container-list [data-key]');
  const all = await rows.count();
  assert.ok(all >= 3, `${all} containers`);
  await page.keyboard.press('/');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'search');
  await page.keyboard.type(kill.container_id.slice(0, 12));
  assert.equal(await rows.count(), 1);
  assert.match(await page.textContent('#container-count'), new RegExp(`1 of ${all}`));
  assert.match(page.url(), /q=/);
  await page.fill('#search', '');
  await page.selectOption('#filter-scope', 'pod');
  assert.ok((await rows.count()) < all);
  await page.selectOption('#filter-scope', 'container');
  const other = page.locator('#container-list li:not(:has([aria-current=true])) .add').first();
  await other.click();
  await page.fill('#metric', 'pgfault');
  await page.keyboard.press('Enter');
  await idle(page);
  await page.waitForSelector('[data-panel=memory_stat_pgfault] canvas');
  assert.equal(await traces(page, 'memory_stat_pgfault'), 2, 'a line for each container');
  assert.match(page.url(), /metrics=memory_stat_pgfault/);
  await page.locator('[data-panel=memory_stat_pgfault]').scrollIntoViewIfNeeded();
  await shot(page, 'compared');
  await page.goBack();
  await idle(page);
  await page.waitForFunction(() => !document.querySelector('[data-panel=memory_stat_pgfault]'));
  assert.deepEqual(errors, []);
  await context.close();
});

test('the_keyboard_is_enough', OPTIONS, async () => {
  const { page, context } = await open();
  await page.keyboard.press('Tab');
  await page.keyboard.press('Enter');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'stack', 'the skip link goes to the charts');
  const before_ = await page.textContent('#now');
  await page.keyboard.press('ArrowRight');
  assert.notEqual(await page.textContent('#now'), before_);
  const whole = await range(page);
  await page.keyboard.press('+');
  const zoomed = await range(page);
  assert.ok(zoomed[1] - zoomed[0] < (whole[1] - whole[0]) * 0.6);
  await page.keyboard.press('0');
  assert.deepEqual(await range(page), whole);
  await page.locator('#incident-list .entry').first().focus();
  await page.keyboard.press('ArrowDown');
  const second = await page.evaluate(() => document.activeElement.dataset.incident);
  await page.keyboard.press('Enter');
  await idle(page);
  assert.equal(await page.getAttribute('[data-incident][aria-current=true]', 'data-incident'), second);
  const unnamed = await page.$$eval('button, input, select', (nodes) => nodes.filter((n) => !(n.textContent.trim() || n.getAttribute('aria-label') || n.labels?.length)).map((n) => n.outerHTML));
  assert.deepEqual(unnamed, [], 'every control has a name');
  await context.close();
});

test('a_list_is_one_stop_of_the_tab_key_and_arrows_go_about_in_it', OPTIONS, async () => {
  const { page, context } = await open();
  const here = () => page.evaluate(() => ({ key: document.activeElement.dataset.stop, list: document.activeElement.closest('ul')?.getAttribute('aria-label') }));
  const keys = await page.$$eval('#container-list [data-key]', (nodes) => nodes.map((n) => n.dataset.key));
  for (const list of ['#incident-list', '#container-list']) assert.equal(await page.locator(`${list} button:not([tabindex="-1"])`).count(), 1, list);
  assert.equal(await page.getAttribute('#container-list [tabindex="0"]', 'aria-current'), 'true', 'it is at what is chosen');
  await page.locator('#container-list [tabindex="0"]').focus();
  await page.keyboard.press('Home');
  assert.deepEqual(await here(), { key: keys[0], list: 'Containers' });
  await page.keyboard.press('ArrowDown');
  assert.equal((await here()).key, keys[1]);
  await page.keyboard.press('ArrowRight');
  assert.equal((await here()).key, `+${keys[1]}`, 'right of it is its comparison');
  await page.keyboard.press('Enter');
  await idle(page);
  assert.equal((await here()).key, `+${keys[1]}`, 'which keeps the focus when the list is drawn anew');
  await page.keyboard.press('End');
  assert.equal((await here()).key, `+${keys.at(-1)}`);
  await page.keyboard.press('ArrowLeft');
  await page.keyboard.press('PageUp');
  assert.equal((await here()).key, keys.at(-11) ?? keys[0]);
  await page.keyboard.press('Tab');
  assert.notEqual((await here()).list, 'Containers', 'one more and it is left');
  await page.keyboard.press('Shift+Tab');
  assert.equal((await here()).key, keys.at(-11) ?? keys[0], 'and comes back to where it was');
  await context.close();
});

test('an_incident_can_be_taken_away_as_report_and_as_parquet', OPTIONS, async () => {
  const { page, context, errors } = await open(`#incident=${encodeURIComponent(kill.id)}&containers=${kill.cgroup_id}@${kill.boot_id.replaceAll('-', '').slice(0, 8)}&window=${kill.window.from_us}-${kill.window.to_us}`);
  const take = async (button) => {
    const [download] = await Promise.all([page.waitForEvent('download'), page.click(button)]);
    return { name: download.suggestedFilename(), bytes: await readFile(await download.path()) };
  };
  const parquet = await take('#save-parquet');
  assert.equal(parquet.bytes.subarray(0, 4).toString(), 'PAR1');
  const whole = await (await fetch(`${served.url}/api/export?incident=${encodeURIComponent(kill.id)}&format=parquet`)).arrayBuffer();
  assert.ok(parquet.bytes.equals(Buffer.from(whole)), 'the same bytes as the API gives');
  const report = await take('#save-report');
  assert.match(report.name, /\.html$/);
  assert.ok(report.bytes.includes(parquet.bytes.toString('base64')), 'the report embeds those bytes');
  assert.deepEqual(errors, []);
  await context.close();
});

test('dark_and_phone_are_whole', OPTIONS, async () => {
  const dark = await open('#theme=dark');
  assert.equal(await dark.page.getAttribute('html', 'data-theme'), 'dark');
  assert.match(dark.page.url(), /theme=dark/, 'the theme stays in the address');
  await shot(dark.page, 'dark', true);
  await dark.context.close();
  const phone = await open('', { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true });
  // what overflows widens the page to itself: the screen stays
  assert.deepEqual(await phone.page.evaluate(() => [document.documentElement.scrollWidth, innerWidth, screen.width]), [390, 390, 390]);
  await shot(phone.page, 'phone', true);
  assert.deepEqual([...dark.errors, ...phone.errors], []);
  await phone.context.close();
});

test('analyses_are_said_and_drawn_over_the_panels_and_are_in_the_address', OPTIONS, async () => {
  const { page, context, errors } = await open();
  const before_ = await page.locator('[data-panel=memory] canvas').screenshot();
  await page.locator('#choose-analyze label', { hasText: 'changes' }).click();
  await page.waitForSelector('#findings [data-finding=memory_current]');
  assert.match(await page.textContent('#findings'), /What changed in container/);
  assert.match(await page.textContent('[data-finding=memory_current]'), /\d\d:\d\d:\d\d from/);
  assert.match(page.url(), /analyze=changepoint/);
  await page.waitForTimeout(200);
  assert.ok(!before_.equals(await page.locator('[data-panel=memory] canvas').screenshot()), 'something is drawn over the panel');
  assert.equal(await page.evaluate(() => document.activeElement?.value), 'changepoint', 'the choice keeps the focus');
  await page.locator('[data-panel=memory]').scrollIntoViewIfNeeded();
  await shot(page, 'changes');
  const truth = await (await fetch(`${served.url}/api/analyze/changepoint?metric=memory_current&containers=${kill.cgroup_id}@${kill.boot_id.replaceAll('-', '').slice(0, 8)}&from=${(kill.window.from_us - 1e6) / 1e6}&to=${(kill.window.to_us + 1e6) / 1e6}`)).json();
  const nearest = Math.min(...truth.series[0].metrics.memory_current.changes.map((c) => Math.abs(c.t_us - kill.ts_us)));
  assert.ok(nearest < 1e6, `a change within a second of the kill, not ${nearest} us`);
  await page.locator('#choose-analyze label', { hasText: 'no analysis' }).click();
  await page.waitForSelector('#findings', { state: 'hidden' });
  assert.deepEqual(errors, []);
  await context.close();
});

test('a_dashboard_brings_its_panels_containers_and_time_and_a_file_of_ones_own_too', OPTIONS, async () => {
  const { page, context, elsewhere, errors } = await open();
  await page.selectOption('#dashboard', { label: 'OOM kill of a child' });
  await page.waitForSelector('[data-panel=oom-kill-0] canvas');
  await idle(page);
  assert.match(page.url(), /dashboard=oom-kill/);
  assert.ok((await traces(page, 'oom-kill-0')) >= 3, 'a line for each container, and the limit');
  assert.equal(await page.textContent('[data-panel=oom-kill-6] .legend-button'), 'meminfo_memavailable', 'the node has a line of its own');
  assert.equal(await page.locator('[data-panel=memory]').count(), 0, 'in place of the fixed panels');
  await shot(page, 'dashboard', true);
  const again = await open(new URL(page.url()).hash);
  assert.equal(await again.page.locator('[data-panel=oom-kill-0] canvas').count(), 1, 'the link shows it again');
  await again.context.close();
  const own = { format: 1, title: 'Mine', time: 'run', containers: { scope: 'pod' }, panels: [{ title: 'Tasks', metrics: ['pids_current'] }] };
  await page.setInputFiles('#dashboard-file', { name: 'mine.json', mimeType: 'application/json', buffer: Buffer.from(JSON.stringify(own)) });
  await page.waitForSelector('[data-panel=file-0] canvas');
  assert.equal(await traces(page, 'file-0'), 1);
  await page.setInputFiles('#dashboard-file', { name: 'bad.json', mimeType: 'application/json', buffer: Buffer.from('{"format":9}') });
  await page.waitForFunction(() => /format is 9/.test(document.getElementById('trouble').textContent));
  assert.deepEqual([elsewhere, errors], [[], []]);
  await context.close();
});

test('a_metric_of_the_node_is_found_and_drawn_as_the_nodes', OPTIONS, async () => {
  const { page, context, errors } = await open();
  await page.fill('#metric', 'memavailable');
  await page.keyboard.press('Enter');
  await page.waitForSelector('[data-panel="node:meminfo_memavailable"] canvas');
  assert.equal(await page.textContent('[data-panel="node:meminfo_memavailable"] .legend-button'), 'node');
  assert.match(await page.textContent('[data-panel="node:meminfo_memavailable"] [data-value]'), /[GM]iB/);
  assert.match(page.url(), /metrics=node:meminfo_memavailable/);
  assert.deepEqual(errors, []);
  await context.close();
});

test('two_devices_are_two_lines_and_each_says_which', OPTIONS, async () => {
  const told = await (await fetch(`${served.url}/api/timeseries?table=io_devices&metric=rbytes&from=${kill.window.from_us / 1e6 - 60}&to=${kill.window.to_us / 1e6}&resolution=100ms`)).json();
  const [disk] = told.series;
  const { t } = disk.metrics.rbytes;
  const { page, context, errors } = await open();
  // The folder has one disk: the answer gets the same again, as another disk that is busy.
  await page.route('**/api/timeseries?*table=io_devices*', async (route) => {
    const answer = await route.fetch();
    const body = await answer.json();
    body.series = body.series.flatMap((one) => {
      const other = structuredClone({ ...one, device: '8:16', device_name: 'sdb' });
      for (const part of ['avg', 'max', 'min']) other.metrics.rbytes[part] = other.metrics.rbytes[part].map(() => 4096);
      return [one, other];
    });
    await route.fulfill({ response: answer, json: body });
  });
  await page.goto(`${served.url}/#containers=${disk.key}&metrics=io_devices:rbytes&window=${told.from_us + t[0] - 1}-${told.from_us + t.at(-1)}`);
  await page.waitForSelector('[data-panel="io_devices:rbytes"] canvas');
  await idle(page);
  const legend = page.locator('[data-panel="io_devices:rbytes"] .legend-button');
  const names = await legend.allTextContents();
  assert.equal(names.length, 2, `${names}`);
  assert.deepEqual(names.map((name) => name.split(' · ')[1]), [names[0].split(' · ')[1], 'sdb']);
  assert.notEqual(names[0], names[1]);
  const values = await page.locator('[data-panel="io_devices:rbytes"] [data-value]').allTextContents();
  assert.match(values[1], /^4 KiB/, 'the second disk has its own readings');
  assert.doesNotMatch(values[0], /^4 KiB/, 'and the first has not got them');
  await page.locator('[data-panel="io_devices:rbytes"]').scrollIntoViewIfNeeded();
  await shot(page, 'devices');
  assert.deepEqual(errors, []);
  await context.close();
});

test('roles_labels_and_contrast_bar_nobody', OPTIONS, async () => {
  for (const theme of ['light', 'dark']) {
    const { page, context } = await open(`#theme=${theme}`);
    assert.deepEqual(await barriers(page), [], theme);
    await page.locator('#choose-analyze label', { hasText: 'changes' }).click();
    await page.waitForSelector('#findings [data-finding]');
    await page.fill('#metric', 'memory');
    assert.deepEqual(await barriers(page), [], `${theme}, with what was found and a list open`);
    await context.close();
  }
});

test('the_tab_key_goes_from_list_to_charts_in_the_order_of_the_page_and_shows_where_it_is', OPTIONS, async () => {
  const { page, context } = await open();
  const stops = [];
  for (let i = 0; i < 60 && !stops.some((stop) => stop.id === 'stack'); i += 1) {
    await page.keyboard.press('Tab');
    stops.push(await page.evaluate(() => {
      const node = document.activeElement;
      const style = getComputedStyle(node.type === 'radio' ? node.closest('label') : node);
      const own = getComputedStyle(node);
      const marked = [style, own].some((s) => s.outlineStyle !== 'none' || s.boxShadow !== 'none') || node.matches('.skip');
      return { id: node.id, part: node.closest('aside') ? 'lists' : node.closest('main') ? 'main' : 'top', marked, what: node.outerHTML.slice(0, 80) };
    }));
  }
  assert.equal(stops.at(-1).id, 'stack', `the charts are reached: ${stops.map((stop) => stop.what).join(' ')}`);
  const parts = stops.map((stop) => stop.part).filter((part, i, all) => part !== all[i - 1]);
  assert.deepEqual(parts, ['top', 'lists', 'main']);
  assert.deepEqual(stops.filter((stop) => !stop.marked), [], 'what has the focus is marked');
  const roles = await page.locator('body').ariaSnapshot();
  for (const role of [/banner/, /complementary "Incidents and containers"/, /main/, /group "Events on the time axis"/, /group "Charts\. Arrow keys/, /radiogroup|group "Range"/, /status/]) assert.match(roles, role);
  await context.close();
});

test('what_happens_is_said_in_a_live_region', OPTIONS, async () => {
  const { page, context } = await open();
  await page.context().grantPermissions(['clipboard-read', 'clipboard-write']);
  await page.getByRole('button', { name: 'Copy link' }).click();
  await page.getByRole('status').filter({ hasText: 'Link copied' }).waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), page.url());
  await page.route('**/api/timeseries?*', (route) => route.fulfill({ status: 503, contentType: 'application/problem+json', body: JSON.stringify({ status: 503, title: 'busy', detail: 'too many requests at once' }) }));
  await page.locator('#incident-list .entry').last().click();
  await page.locator('#incident-list .entry').first().click();
  await page.getByRole('alert').filter({ hasText: 'too many requests at once' }).waitFor();
  await context.close();
});

test('live_follows_and_announces_and_stops', OPTIONS, async () => {
  const live = await liveOver(served.url, kill);
  const { page, context, errors } = await open('', {}, live.url);
  await page.click('#live');
  await page.waitForFunction(() => Number(document.documentElement.dataset.ticks) >= 4);
  assert.equal(await page.getAttribute('#live', 'aria-pressed'), 'true');
  assert.match(page.url(), /live=1/);
  assert.equal(await page.getAttribute('#incident-list .entry', 'data-incident'), `${kill.id}-again`, 'the new incident is the first of the list');
  await shot(page, 'live');
  await page.click('#live');
  const ticks = Number(await page.getAttribute('html', 'data-ticks'));
  assert.equal(await page.getAttribute('#live', 'aria-pressed'), 'false');
  await page.waitForTimeout(1500);
  assert.equal(Number(await page.getAttribute('html', 'data-ticks')), ticks, 'no more ticks');
  assert.deepEqual(errors, []);
  await context.close();
  await live.stop();
});

test('what_the_agent_refuses_is_said_and_the_page_still_stands', OPTIONS, async () => {
  const { page, context } = await open('#containers=1@nowhere0&range=1m');
  assert.match(await page.textContent('#nothing'), /No samples of this container/);
  assert.ok((await page.locator('#incident-list .entry').count()) > 0);
  await context.close();
  const wrong = await open('#containers=447@12a31d58&window=5-9000000000000000');
  assert.equal(await wrong.page.locator('aside').isVisible(), true);
  await wrong.context.close();
});
