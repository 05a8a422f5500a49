/**
 * Follows what happens now: ticks, readings and incidents as the agent sends them, and again after it was away. It must never
 * follow two streams at once. Called by main.
 */

import { subjectName } from '../facts.js';
import { kindName } from '../words.js';
import { follow, Refusal } from './api.js';
import { say, tell } from './page.js';
import { containers, incidents, set, state } from './session.js';

const LIST_EVERY_MS = 10_000;
const RETRY_MS = 5000;

/** @type {AbortController | null} */
let following = null;

export function endLive() {
  following?.abort();
  following = null;
}

/**
 * Until `endLive`.
 * @param {{load: (quiet?: boolean) => Promise<void>, loadContainers: () => Promise<void>, drawLists: () => void, stopLive: () => void}} acts
 */
export async function followLive({ load, loadContainers, drawLists, stopLive }) {
  following?.abort();
  const mine = (following = new AbortController());
  await load();
  let listed = performance.now();
  /** @param {string} name @param {any} data */
  const take = (name, data) => {
    if (name === 'tick') {
      set({ nowUs: data.now_us });
      document.documentElement.dataset.ticks = String(Number(document.documentElement.dataset.ticks ?? 0) + 1);
      if (document.documentElement.dataset.state !== 'loading') void load(true);
      if (performance.now() - listed > LIST_EVERY_MS) {
        listed = performance.now();
        void loadContainers();
      }
    } else if (name === 'samples') {
      for (const series of data.series) {
        const row = containers.find((c) => c.key === series.key);
        const newest = series.rows.at(-1)?.values.memory_current;
        if (row && newest !== undefined) Object.assign(row, { memory_bytes: newest, is_live: true });
      }
      drawLists();
    } else if (name === 'incidents') {
      const ids = data.incidents.map((/** @type {any} */ one) => one.id);
      set({ incidents: [...data.incidents, ...incidents.filter((old) => !ids.includes(old.id))].sort((a, b) => b.ts_us - a.ts_us) });
      say(`${kindName(data.incidents[0].kind)} in ${subjectName(data.incidents[0])}.`);
      drawLists();
    } else if (name === 'lost') say(`${data.rows} rows were too many for one message.`);
    else if (name === 'problem') tell(new Refusal(data.status, data.detail));
  };
  while (!mine.signal.aborted) {
    try {
      await follow({ containers: state.containers.join(','), metric: 'memory_current,cpu_stat_usage_usec' }, take, mine.signal);
      if (!mine.signal.aborted) throw new Refusal(0, 'the agent ended the live stream');
    } catch (error) {
      if (mine.signal.aborted) return;
      tell(error);
      if (error instanceof Refusal && [401, 403, 404].includes(error.status)) return stopLive();
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}
