/**
 * What the viewer's browser tests need besides Chromium: a real `fgm view` over a data folder (FGM_DATA; the binary is
 * FGM_BIN or that of the debug build), and a stand-in for the one thing that a folder has not, a live stream. Not a test
 * itself. Called by viewer.test.mjs.
 */

import { spawn } from 'node:child_process';
import { createServer, get } from 'node:http';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

export const DATA = process.env.FGM_DATA;
const BINARY = process.env.FGM_BIN ?? fileURLToPath(new URL('../../target/debug/fgm', import.meta.url));

/** @param {string[]} [more] arguments @returns {Promise<{url: string, stop: () => Promise<void>}>} */
export async function view(more = []) {
  const child = spawn(BINARY, ['view', DATA, '--listen', '127.0.0.1:0', ...more], { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  const first = new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).once('line', resolve);
    child.once('error', reject);
    child.once('exit', (code) => reject(new Error(`fgm view ended with ${code}`)));
    setTimeout(() => reject(new Error('fgm view printed no address')), 20_000).unref();
  });
  const url = String(await first).replace(/\/$/, '');
  return { url, stop: async () => { child.kill('SIGTERM'); await ended; } };
}

/**
 * Passes everything on to `fgm view`, but says that the folder is a running agent and ticks: once a second a message, and
 * after the third an incident, which is the newest of the folder under another id.
 * @param {string} upstream
 * @param {any} incident
 */
export async function liveOver(upstream, incident) {
  const server = createServer((request, response) => {
    if (request.url?.startsWith('/api/live')) {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      let n = 0;
      const send = (name, data) => response.write(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`);
      const timer = setInterval(() => {
        n += 1;
        if (n === 3) send('incidents', { incidents: [{ ...incident, id: `${incident.id}-again`, ts_us: incident.window.to_us + 60e6 }] });
        send('tick', { now_us: incident.window.to_us + n * 1e6 });
      }, 1000);
      response.on('close', () => clearInterval(timer));
      return;
    }
    get(`${upstream}${request.url}`, (answer) => {
      if (request.url !== '/api/status') {
        response.writeHead(answer.statusCode ?? 502, answer.headers);
        answer.pipe(response);
        return;
      }
      let text = '';
      answer.on('data', (part) => (text += part));
      answer.on('end', () => {
        response.writeHead(200, { 'content-type': 'application/json' });
        response.end(JSON.stringify({ ...JSON.parse(text), mode: 'agent' }));
      });
    }).on('error', () => response.destroy());
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(null)));
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  return { url: `http://127.0.0.1:${port}`, stop: () => new Promise((resolve) => { server.closeAllConnections(); server.close(() => resolve(null)); }) };
}
