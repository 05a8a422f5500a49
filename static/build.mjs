/**
 * Bundles src/ into dist/report.html, the one file that the agent takes as its template, and dist/viewer.html, the page
 * that it serves. The same sources give the same bytes: no time, no path, no version of the machine in it. It fails when
 * a page breaks its contract (each placeholder once, nothing that ends the script early, size). Called by
 * `npm run build` and by the tests.
 */

import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const HERE = dirname(fileURLToPath(import.meta.url));
export const MOST_BYTES = 300 * 1024;
export const PLACEHOLDERS = ['__FGM_DATA_JSON__', '__FGM_PARQUET_BASE64__'];
const BUNDLED = ['uplot', 'hyparquet', 'fzstd'];

/** The licences of what is bundled, as they ask. */
async function notices() {
  const parts = [];
  for (const name of BUNDLED) {
    const folder = join(HERE, 'node_modules', name);
    const { version } = JSON.parse(await readFile(join(folder, 'package.json'), 'utf8'));
    const text = (await readFile(join(folder, 'LICENSE'), 'utf8')).trim().replaceAll('*/', '* /');
    parts.push(`${name} ${version}\n${text}`);
  }
  return `/*! This file contains:\n\n${parts.join('\n\n')}\n*/`;
}

/** The dashboards of the scenarios, by name. */
async function dashboards() {
  const folder = join(HERE, '../scenarios');
  /** @type {Record<string, any>} */
  const all = {};
  for (const name of (await readdir(folder)).sort()) {
    const text = await readFile(join(folder, name, 'dashboard.json'), 'utf8').catch(() => null);
    if (text) all[name] = JSON.parse(text);
  }
  return JSON.stringify(all);
}

/** @param {string} entry @param {Record<string, unknown>} options */
async function bundle(entry, options) {
  const result = await build({
    absWorkingDir: HERE, entryPoints: [entry], bundle: true, minify: true, write: false, charset: 'utf8', legalComments: 'none', logLevel: 'warning', ...options,
  });
  return result.outputFiles[0].text.trim();
}

/**
 * @typedef {object} Page
 * @property {string} name of the file in src/ and in dist/
 * @property {string} entry
 * @property {string} style
 * @property {string[]} placeholders what the agent fills in
 */

/** @type {Record<'report' | 'viewer', Page>} */
export const PAGES = {
  report: { name: 'report.html', entry: 'src/main.js', style: 'src/styles.css', placeholders: PLACEHOLDERS },
  viewer: { name: 'viewer.html', entry: 'src/viewer/main.js', style: 'src/viewer/viewer.css', placeholders: [] },
};

/** @param {Page} page @returns {Promise<string>} the file */
export async function make(page) {
  const [html, style, code, licences] = await Promise.all([
    readFile(join(HERE, 'src', page.name), 'utf8'),
    bundle(page.style, {}),
    bundle(page.entry, { format: 'iife', target: 'es2022', define: { __FGM_DASHBOARDS__: await dashboards() } }),
    notices(),
  ]);
  const script = `${licences}\n${code}`;
  for (const [name, text] of [['script', script], ['style', style]]) {
    if (new RegExp(`</${name}|<!--`, 'i').test(text)) throw new Error(`the bundled ${name} contains a sequence that would end it early in HTML`);
  }
  // Functions, since "$&" in a bundle would be taken for a pattern.
  const out = html.replace('{{STYLE}}', () => style).replace('{{SCRIPT}}', () => script);
  for (const placeholder of page.placeholders) {
    const times = out.split(placeholder).length - 1;
    if (times !== 1) throw new Error(`${placeholder} stands ${times} times in ${page.name}; the agent needs it exactly once`);
  }
  const bytes = Buffer.byteLength(out);
  if (bytes > MOST_BYTES) throw new Error(`${page.name} has ${bytes} bytes, more than ${MOST_BYTES}: drop something or raise MOST_BYTES with a reason`);
  return out;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const page of Object.values(PAGES)) {
    const file = join(HERE, 'dist', page.name);
    const text = await make(page);
    await mkdir(dirname(file), { recursive: true });
    await writeFile(file, text);
    console.log(`${file}: ${Buffer.byteLength(text)} bytes`);
  }
}
