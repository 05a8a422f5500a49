/**
 * What the page carries: the JSON document and the Parquet file, both embedded as text, and the shape of a cgroup's samples.
 * It must never fail as a whole: a broken document is an error to show, with the rest still usable. Called by main; `samples`
 * reads the file.
 *
 * @typedef {object} Group the samples of one cgroup, in time order
 * @property {string} id
 * @property {string | null} parentId
 * @property {string} path
 * @property {string} scope
 * @property {string | null} namespace
 * @property {string | null} pod
 * @property {string | null} container
 * @property {string | null} [on] its node, where the report is of several
 * @property {number} [rows] in the file, read or not
 * @property {Float64Array} t microseconds since the epoch
 * @property {Uint8Array} cause index into series.CAUSES
 * @property {Float64Array} periodMs
 * @property {number} [leastGapMs] of thinned rows: what is closer is no gap
 * @property {Record<string, Float64Array>} columns NaN where not read
 * @property {Record<string, import('./series.js').Line>} [drawn] lines that the agent made of them, in place of columns
 * @property {Record<string, import('./series.js').Mean[]>} [means] of drawn counters: rate and span of each bucket
 * @property {import('./series.js').Run[]} [bands] with drawn lines: where history and bursts are
 * @property {(number | null)[]} [periods] with drawn lines: the shortest period of each cause, ms
 */

/** The newest document format that this page understands. */
export const FORMAT = 1;

/** The kernel fields that the page draws; no other column is decoded. */
export const FIELDS = [
  'memory_current', 'memory_swap_current', 'memory_max', 'memory_stat_anon', 'memory_stat_file', 'memory_stat_kernel', 'memory_stat_slab',
  'cpu_stat_usage_usec', 'cpu_stat_user_usec', 'cpu_stat_system_usec', 'cpu_stat_nr_periods', 'cpu_stat_nr_throttled', 'cpu_max_quota_usec', 'cpu_max_period_usec',
  'memory_pressure_some_total_usec', 'memory_pressure_full_total_usec', 'cpu_pressure_some_total_usec', 'cpu_pressure_full_total_usec',
  'io_pressure_some_total_usec', 'io_pressure_full_total_usec', 'io_stat_rbytes', 'io_stat_wbytes', 'pids_current', 'pids_max',
];

/**
 * The JSON document of the page.
 * @param {string} text
 * @returns {{document: any, error: string | null}}
 */
export function readDocument(text) {
  try {
    const parsed = JSON.parse(text);
    if (typeof parsed !== 'object' || parsed === null) throw new Error('it is not an object');
    for (const key of ['events', 'processes', 'cgroups', 'lost']) if (!Array.isArray(parsed[key])) parsed[key] = [];
    parsed.incident ??= null;
    parsed.provenance ??= {};
    tellNodesApart(parsed);
    const newer = typeof parsed.format === 'number' && parsed.format > FORMAT;
    return { document: parsed, error: newer ? `This file has format ${parsed.format}; the page knows ${FORMAT}. Newer parts are not shown.` : null };
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return {
      document: { format: FORMAT, incident: null, events: [], processes: [], cgroups: [], lost: [], provenance: {} },
      error: `The report's JSON could not be read (${why}). This may be the empty template: export a report with "fgm export".`,
    };
  }
}

/**
 * Of several nodes: each cgroup says on which it is, and an id that more than one of them has is told apart by the node, as `ID@NODE`.
 * @param {any} document
 */
function tellNodesApart({ cgroups, events, processes }) {
  /** @type {Map<string, Set<string>>} */
  const nodes = new Map();
  for (const { cgroup_id: id, node } of cgroups) nodes.set(String(id), (nodes.get(String(id)) ?? new Set()).add(node));
  if (new Set(cgroups.map((/** @type {any} */ cgroup) => cgroup.node)).size < 2) return;
  for (const cgroup of cgroups) cgroup.on = cgroup.node;
  for (const item of [...cgroups, ...events, ...processes]) {
    for (const key of ['cgroup_id', 'parent_cgroup_id']) {
      if ((nodes.get(String(item[key]))?.size ?? 0) > 1) item[key] = `${item[key]}@${item.node}`;
    }
  }
}

/**
 * @param {string} text standard base64, white space allowed
 * @returns {Uint8Array}
 */
export function fromBase64(text) {
  const binary = atob(text.replace(/\s+/g, ''));
  const out = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) out[i] = binary.charCodeAt(i);
  return out;
}

/**
 * SHA-256 as hex, or null where the browser does not offer it.
 * @param {Uint8Array} bytes
 */
export async function sha256(bytes) {
  try {
    const digest = await crypto.subtle.digest('SHA-256', /** @type {BufferSource} */ (bytes));
    return Array.from(new Uint8Array(digest), (b) => b.toString(16).padStart(2, '0')).join('');
  } catch {
    return null;
  }
}
