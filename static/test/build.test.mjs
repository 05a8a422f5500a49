/**
 * Claims about the template that is committed: it is what the sources give, and it keeps the agent's contract.
 */

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { MOST_BYTES, PAGES, PLACEHOLDERS, make } from '../build.mjs';

const committed = await readFile(new URL('../dist/report.html', import.meta.url), 'utf8');

for (const page of Object.values(PAGES)) {
  test(`the_committed_${page.name}_is_what_the_build_gives`, async () => {
    const built = await make(page);
    assert.equal(built, await make(page), 'two builds differ');
    const there = await readFile(new URL(`../dist/${page.name}`, import.meta.url), 'utf8');
    assert.ok(built === there, `dist/${page.name} is stale: run "npm run build" and commit it`);
  });
}

test('the_viewer_asks_its_own_agent_alone', async () => {
  const page = await readFile(new URL('../dist/viewer.html', import.meta.url), 'utf8');
  assert.ok(Buffer.byteLength(page) <= MOST_BYTES);
  assert.match(page, /default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'/);
  assert.doesNotMatch(page, /<(?:script|link|img|iframe)[^>]+(?:src|href)="(?!data:)/i, 'nothing is loaded from elsewhere');
});

test('the_template_keeps_the_contract', () => {
  for (const placeholder of PLACEHOLDERS) assert.equal(committed.split(placeholder).length, 2, placeholder);
  assert.ok(Buffer.byteLength(committed) <= MOST_BYTES);
  assert.match(committed, /default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:/);
  assert.doesNotMatch(committed, /<(?:script|link|img|iframe)[^>]+(?:src|href)="(?!data:)/i, 'nothing is loaded from elsewhere');
  const style = /<style>(.*?)<\/style>/s.exec(committed)?.[1] ?? '';
  assert.ok(style.length > 1000);
  assert.doesNotMatch(style, /@import|url\(/i, 'nor by the style');
  assert.doesNotMatch(committed, /\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon/, 'nor by the script');
});

test('no_address_in_the_lock_file', async () => {
  const lock = await readFile(new URL('../package-lock.json', import.meta.url), 'utf8');
  assert.doesNotMatch(lock, /https?:/);
  const { dependencies, devDependencies } = JSON.parse(await readFile(new URL('../package.json', import.meta.url), 'utf8'));
  for (const [name, version] of Object.entries({ ...dependencies, ...devDependencies })) assert.match(version, /^\d+\.\d+\.\d+$/, `${name} is pinned`);
});
