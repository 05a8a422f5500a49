/**
 * What the page carries: the JSON document and the Parquet file, both embedded as text. Decodes the file once into
 * columns of doubles and splits the rows by cgroup. It must never mix two cgroups, and never fail as a whole: a broken
 * Parquet is an error to show, with the document still usable. Called by main.
 *
 * @typedef {object} Group the samples of one cgroup, in time order
 * @property {string} id
 * @property {string | null} parentId
 * @property {string} path
 * @property {string} scope
 * @property {string | null} namespace
 * @property {string | null} pod
 * @property {string | null} container
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

import { decompress } from 'fzstd';
import { parquetMetadataAsync, parquetRead } from 'hyparquet';
import { CAUSES } from './series.js';

/** The newest document format that this page understands. */
export const FORMAT = 1;

const NAMES = ['cgroup_path', 'scope', 'namespace', 'pod', 'container'];
const KEYS = ['ts', 'cgroup_id', 'parent_cgroup_id', 'cause', 'period_ms'];

/** The kernel fields that the page draws; no other column is decoded. */
export const FIELDS = [
  'memory_current', 'memory_swap_current', 'memory_max', 'memory_high', 'memory_stat_anon', 'memory_stat_file', 'memory_stat_kernel', 'memory_stat_slab',
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
 * @param {string} text standard base64, white space allowed
 * @returns {Uint8Array}
 */
export function fromBase64(text) {
  const binary = atob(text.replace(/\s+/g, ''));
  const out = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) out[i] = binary.charCodeAt(i);
  return out;
}

/** @param {unknown} value @returns {number} */
function double(value) {
  return value === null || value === undefined ? NaN : Number(value);
}

/** A kernfs id: unsigned in the kernel, signed in the file, text here. @param {unknown} value */
function idText(value) {
  return typeof value === 'bigint' ? BigInt.asUintN(64, value).toString() : String(value);
}

/**
 * @param {Uint8Array} bytes
 * @param {number} [leastGapMs] where the rows were thinned: how far apart they may be for that alone
 * @returns {Promise<Group[]>}
 */
export async function readSamples(bytes, leastGapMs = 0) {
  if (bytes.length === 0) throw new Error('no Parquet file is embedded in this page');
  const buffer = /** @type {ArrayBuffer} */ (bytes.buffer).slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  const file = { byteLength: buffer.byteLength, slice: (/** @type {number} */ from, /** @type {number | undefined} */ to) => buffer.slice(from, to) };
  const metadata = await parquetMetadataAsync(file);
  const present = new Set(metadata.schema.slice(1).map((element) => element.name));
  for (const key of KEYS.slice(0, 2)) if (!present.has(key)) throw new Error(`the Parquet file has no column ${key}`);
  const columns = [...KEYS, ...NAMES, ...FIELDS].filter((name) => present.has(name));
  const total = Number(metadata.num_rows);
  /** @type {Record<string, Float64Array>} */
  const numbers = {};
  /** @type {Record<string, unknown[]>} */
  const texts = {};
  const textual = new Set([...NAMES, 'cause', 'cgroup_id', 'parent_cgroup_id']);
  for (const name of columns) {
    if (textual.has(name)) texts[name] = new Array(total).fill(null);
    else numbers[name] = new Float64Array(total).fill(NaN);
  }
  await parquetRead({
    file,
    metadata,
    columns,
    compressors: { ZSTD: (input, length) => decompress(input, new Uint8Array(length)) },
    parsers: { timestampFromMicroseconds: Number, timestampFromMilliseconds: (ms) => Number(ms) * 1000, timestampFromNanoseconds: (ns) => Number(ns / 1000n) },
    onChunk: ({ columnName, columnData, rowStart }) => {
      const into = numbers[columnName];
      if (into) for (let i = 0; i < columnData.length; i += 1) into[rowStart + i] = double(columnData[i]);
      else for (let i = 0; i < columnData.length; i += 1) texts[columnName][rowStart + i] = columnData[i];
    },
  });
  return split(total, numbers, texts).map((group) => ({ ...group, leastGapMs }));
}

/**
 * @param {number} total
 * @param {Record<string, Float64Array>} numbers
 * @param {Record<string, unknown[]>} texts
 * @returns {Group[]}
 */
function split(total, numbers, texts) {
  /** @type {Map<unknown, number[]>} */
  const rows = new Map();
  for (let i = 0; i < total; i += 1) {
    const list = rows.get(texts.cgroup_id[i]);
    if (list) list.push(i);
    else rows.set(texts.cgroup_id[i], [i]);
  }
  return Array.from(rows, ([id, list]) => {
    list.sort((a, b) => numbers.ts[a] - numbers.ts[b]);
    const newest = list[list.length - 1];
    const name = (/** @type {string} */ key) => /** @type {string | null} */ (texts[key]?.[newest] ?? null);
    const parent = texts.parent_cgroup_id?.[newest];
    /** @type {Record<string, Float64Array>} */
    const columns = {};
    for (const field of FIELDS) if (numbers[field]) columns[field] = Float64Array.from(list, (i) => numbers[field][i]);
    return {
      id: idText(id),
      parentId: parent === null || parent === undefined ? null : idText(parent),
      path: name('cgroup_path') ?? '',
      scope: name('scope') ?? 'other',
      namespace: name('namespace'),
      pod: name('pod'),
      container: name('container'),
      t: Float64Array.from(list, (i) => numbers.ts[i]),
      cause: Uint8Array.from(list, (i) => Math.max(0, CAUSES.indexOf(/** @type {string} */ (texts.cause?.[i])))),
      periodMs: Float64Array.from(list, (i) => numbers.period_ms?.[i] || 1000),
      columns,
    };
  });
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
