/**
 * The rows of the embedded Parquet file, a cgroup and a column at a time: opening finds which rows are whose (by the
 * statistics of pages where they tell, else by the ids themselves, and by the node where the document has an id of several), and
 * reads no value before it is asked for. It must never mix two cgroups. What is not Parquet, or damaged, is an error of the call that met it. Called by main.
 *
 * @import { Group } from './data.js'
 *
 * @typedef {object} Samples
 * @property {number} rows of the file
 * @property {Group[]} groups with no readings yet; each once `read` has been asked for it
 * @property {number} from the first and the last instant of all, microseconds since the epoch
 * @property {number} to
 * @property {(group: Group, fields: string[], pause?: () => Promise<void>) => Promise<Group>} read gives the group its instants and those
 *   of the columns that the file has; what is there already is not read again; `pause` is waited for between two pieces of the work
 */

import { decompress } from 'fzstd';
import { parquetMetadataAsync, parquetScan, readColumnIndex, readOffsetIndex } from 'hyparquet';
import { CAUSES } from './series.js';

/** @typedef {{from: number, to: number}} Rows the first, and the one after the last */

const KEYS = ['ts', 'cgroup_id'];
const NAMES = ['parent_cgroup_id', 'cgroup_path', 'scope', 'namespace', 'pod', 'container'];

const parsers = {
  timestampFromMicroseconds: Number,
  timestampFromMilliseconds: (/** @type {bigint} */ ms) => Number(ms) * 1000,
  timestampFromNanoseconds: (/** @type {bigint} */ ns) => Number(ns / 1000n),
};

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
 * @param {any[]} [cgroups] the names of cgroups, as the document has them; those of others are read from their rows
 * @param {number} [leastGapMs] where the rows were thinned: how far apart they may be for that alone
 * @returns {Promise<Samples>}
 */
export async function openSamples(bytes, cgroups = [], leastGapMs = 0) {
  if (bytes.length === 0) throw new Error('no Parquet file is embedded in this page');
  const buffer = /** @type {ArrayBuffer} */ (bytes.buffer).slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  const file = { byteLength: buffer.byteLength, slice: (/** @type {number} */ from, /** @type {number | undefined} */ to) => buffer.slice(from, to) };
  const metadata = await parquetMetadataAsync(file, { parsers });
  const present = new Set(metadata.schema.slice(1).map((element) => element.name));
  for (const key of KEYS) if (!present.has(key)) throw new Error(`the Parquet file has no column ${key}`);
  const scan = await parquetScan({ file, metadata, parsers, compressors: { ZSTD: (input, length) => decompress(input, new Uint8Array(length)) } });
  const chunk = (/** @type {any} */ group, /** @type {string} */ name) => group.columns.find((/** @type {any} */ c) => c.meta_data.path_in_schema[0] === name);

  /** @type {Map<unknown, Rows[]>} */
  const whose = new Map();
  const note = (/** @type {unknown} */ id, /** @type {number} */ from, /** @type {number} */ to) => {
    const held = whose.get(id) ?? [];
    const last = held[held.length - 1];
    if (last?.to === from) last.to = to;
    else held.push({ from, to });
    whose.set(id, held);
  };
  /** @type {Rows[]} */
  const pieces = [];
  let [from, to, start] = [Infinity, -Infinity, 0];
  for (const group of metadata.row_groups) {
    const end = start + Number(group.num_rows);
    pieces.push({ from: start, to: end });
    for (const { low, high, nulls, rows } of statisticsOf(buffer, metadata, chunk(group, 'cgroup_id'), end - start)) {
      if (low !== undefined && low === high && nulls === 0) note(low, start + rows.from, start + rows.to);
      else {
        const ids = await scan.readColumn({ column: 'cgroup_id', rowStart: start + rows.from, rowEnd: start + rows.to });
        for (let i = 0; i < ids.length; i += 1) note(ids[i], start + rows.from + i, start + rows.from + i + 1);
      }
    }
    const told = chunk(group, 'ts').meta_data.statistics;
    const known = [told?.min_value, told?.max_value].map(Number);
    const ts = known.every(Number.isFinite) ? known : await scan.readColumn({ column: 'ts', rowStart: start, rowEnd: end });
    for (let i = 0; i < ts.length; i += 1) {
      from = Math.min(from, Number(ts[i]));
      to = Math.max(to, Number(ts[i]));
    }
    start = end;
  }

  /** One column over some rows; no read reaches over the end of a row group. @param {string} column @param {Rows[]} rows @param {(value: any, i: number) => void} take @param {() => Promise<void>} [pause] */
  const each = async (column, rows, take, pause) => {
    let i = 0;
    for (const run of rows) {
      for (const piece of pieces) {
        const [rowStart, rowEnd] = [Math.max(run.from, piece.from), Math.min(run.to, piece.to)];
        if (rowStart >= rowEnd) continue;
        const values = await scan.readColumn({ column, rowStart, rowEnd });
        for (let k = 0; k < values.length; k += 1) take(values[k], i + k);
        i += values.length;
        await pause?.();
      }
    }
  };
  const count = (/** @type {Rows[]} */ rows) => rows.reduce((sum, run) => sum + run.to - run.from, 0);
  /** @param {string} column @param {Rows[]} rows @param {Uint32Array | null} order @param {() => Promise<void>} [pause] */
  const numbers = async (column, rows, order, pause) => {
    const out = new Float64Array(count(rows));
    await each(column, rows, (value, i) => (out[i] = double(value)), pause);
    return order ? Float64Array.from(order, (i) => out[i]) : out;
  };

  const known = new Map(cgroups.map((cgroup) => [String(cgroup.cgroup_id), cgroup]));
  /** @type {Map<string, any[]>} */
  const shared = new Map();
  for (const cgroup of cgroups) {
    const [id, ...node] = String(cgroup.cgroup_id).split('@');
    if (node.length) shared.set(id, [...(shared.get(id) ?? []), cgroup]);
  }
  /** Which of some rows are of each node that has this id; one that no node has is itself. @param {string} id @param {Rows[]} rows */
  const ofNodes = async (id, rows) => {
    const owners = shared.get(id);
    if (!owners) return [{ id, rows, order: /** @type {Uint32Array | null} */ (null), count: count(rows) }];
    /** @type {Map<string, number[]>} */
    const places = new Map(owners.map(({ node }) => [node, []]));
    await each('node', rows, (node, i) => places.get(node)?.push(i));
    return owners.map((owner) => ({ id: owner.cgroup_id, rows, order: Uint32Array.from(places.get(owner.node) ?? []), count: places.get(owner.node)?.length ?? 0 }));
  };
  const rowsOf = new Map();
  /** @type {Group[]} */
  const groups = [];
  const all = [];
  for (const [key, rows] of whose) all.push(...(await ofNodes(idText(key), rows)));
  for (const held of all) {
    const { id, rows } = held;
    /** @type {Record<string, any>} */
    const named = { ...known.get(id) };
    const newest = rows[rows.length - 1].to - 1;
    if (!known.has(id)) for (const name of NAMES.filter((n) => present.has(n))) await each(name, [{ from: newest, to: newest + 1 }], (value) => (named[name] = value));
    const parent = named.parent_cgroup_id ?? null;
    groups.push({
      id,
      parentId: parent === null ? null : idText(parent),
      path: named.cgroup_path ?? '',
      scope: named.scope ?? 'other',
      namespace: named.namespace ?? null,
      pod: named.pod ?? null,
      container: named.container ?? null,
      on: named.on ?? null,
      rows: held.count,
      t: new Float64Array(0),
      cause: new Uint8Array(0),
      periodMs: new Float64Array(0),
      leastGapMs,
      columns: {},
    });
    rowsOf.set(id, held);
  }
  return {
    rows: Number(metadata.num_rows),
    groups,
    from,
    to,
    async read(group, fields, pause) {
      const held = rowsOf.get(group.id);
      if (!group.t.length) {
        const t = await numbers('ts', held.rows, null, pause);
        if (held.order || !t.every((v, i) => i === 0 || v >= t[i - 1])) held.order = (held.order ?? Uint32Array.from(t, (_, i) => i)).sort((/** @type {number} */ a, /** @type {number} */ b) => t[a] - t[b]);
        const cause = new Uint8Array(t.length);
        if (present.has('cause')) await each('cause', held.rows, (value, i) => (cause[i] = Math.max(0, CAUSES.indexOf(value))), pause);
        const periodMs = present.has('period_ms') ? await numbers('period_ms', held.rows, held.order, pause) : new Float64Array(t.length);
        group.cause = held.order ? Uint8Array.from(held.order, (i) => cause[i]) : cause;
        group.periodMs = periodMs.map((ms) => ms || 1000);
        group.t = held.order ? Float64Array.from(held.order, (i) => t[i]) : t;
      }
      for (const field of fields) if (present.has(field) && !group.columns[field]) group.columns[field] = await numbers(field, held.rows, held.order, pause);
      return group;
    },
  };
}

/**
 * The least and the greatest value of each page of a column in a row group; without a page index, of the whole.
 * @param {ArrayBuffer} buffer @param {any} metadata @param {any} chunk @param {number} total rows of the group
 * @returns {{low: unknown, high: unknown, nulls: number, rows: Rows}[]}
 */
function statisticsOf(buffer, metadata, chunk, total) {
  const { column_index_offset: at, column_index_length: length, offset_index_offset: placesAt } = chunk;
  if (!at || !length || !placesAt) {
    const told = chunk.meta_data.statistics;
    return [{ low: told?.min_value, high: told?.max_value, nulls: Number(told?.null_count ?? NaN), rows: { from: 0, to: total } }];
  }
  const schema = metadata.schema.find((/** @type {any} */ element) => element.name === chunk.meta_data.path_in_schema[0]);
  const index = readColumnIndex({ view: new DataView(buffer, Number(at)), offset: 0 }, schema, /** @type {any} */ (parsers));
  const { page_locations: pages } = readOffsetIndex({ view: new DataView(buffer, Number(placesAt)), offset: 0 });
  return pages.map((page, i) => ({
    low: index.min_values[i],
    high: index.max_values[i],
    nulls: index.null_pages[i] ? NaN : Number(index.null_counts?.[i] ?? NaN),
    rows: { from: Number(page.first_row_index), to: i + 1 < pages.length ? Number(pages[i + 1].first_row_index) : total },
  }));
}
