/**
 * Asking the agent: JSON, files, and the live stream, all from the page's own origin and with the token where one is set.
 * The token lives in the tab's session and in no address. It must never ask anybody else. Called by main.
 */

const TOKEN = 'fgm-token';
/** @type {string | null} */
let token = null;
try {
  token = sessionStorage.getItem(TOKEN);
} catch {
  // A browser without storage asks again in each tab.
}

/** @param {string} text */
export function setToken(text) {
  token = text.trim() || null;
  try {
    if (token) sessionStorage.setItem(TOKEN, token);
    else sessionStorage.removeItem(TOKEN);
  } catch {
    // As above.
  }
}

/** What the agent says when it does not answer. */
export class Refusal extends Error {
  /** @param {number} status @param {string} detail */
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** @param {string} path @param {Record<string, string | number | null | undefined>} params */
export function urlOf(path, params) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) if (value !== null && value !== undefined && value !== '') query.set(name, String(value));
  return `${path}${query.size ? `?${query}` : ''}`;
}

/** @param {string} path @param {Record<string, any>} params @param {AbortSignal} [signal] */
async function get(path, params, signal) {
  let response;
  try {
    response = await fetch(urlOf(path, params), { headers: token ? { authorization: `Bearer ${token}` } : {}, signal, cache: 'no-store' });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refusal(0, 'the agent does not answer; is it still running?');
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Refusal(response.status, problem.detail ?? `the agent answered ${response.status}`);
}

/** @param {string} path @param {Record<string, any>} [params] @param {AbortSignal} [signal] @returns {Promise<any>} */
export async function ask(path, params = {}, signal) {
  return (await get(path, params, signal)).json();
}

/** A file and the name that the agent gives it. @param {string} path @param {Record<string, any>} params */
export async function file(path, params) {
  const response = await get(path, params);
  const name = /filename="([^"]+)"/.exec(response.headers.get('content-disposition') ?? '')?.[1] ?? 'fgm-export';
  return { name, type: response.headers.get('content-type') ?? '', bytes: new Uint8Array(await response.arrayBuffer()) };
}

/**
 * Follows /api/live until the signal or the agent ends it. By hand, since an EventSource cannot bring a token.
 * @param {Record<string, any>} params
 * @param {(name: string, data: any) => void} take
 * @param {AbortSignal} signal
 */
export async function follow(params, take, signal) {
  const response = await get('/api/live', params, signal);
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const messages = text.split('\n\n');
    text = messages.pop() ?? '';
    for (const message of messages) {
      const fields = message.split('\n').map((row) => /^(\w+): ?(.*)$/.exec(row));
      const of = (/** @type {string} */ name) => fields.filter((field) => field?.[1] === name).map((field) => field?.[2]).join('\n');
      if (of('event')) take(of('event'), JSON.parse(of('data') || 'null'));
    }
  }
}
