/**
 * Claims about the embedded file: what is read a cgroup and a column at a time is what is in it, and no more is read than was
 * asked for.
 */

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { decompress } from 'fzstd';
import { parquetReadObjects } from 'hyparquet';
import { FIELDS, readDocument } from '../src/data.js';
import { openSamples } from '../src/samples.js';
import { CAUSES } from '../src/series.js';

const bytesOf = async (/** @type {string} */ name) => new Uint8Array(await readFile(new URL(`fixture/${name}`, import.meta.url)));
const id = (/** @type {bigint} */ value) => BigInt.asUintN(64, value).toString();

/** Every row, in the file's order. @param {Uint8Array} bytes */
function rowsOf(bytes) {
  const file = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  return parquetReadObjects({ file, compressors: { ZSTD: (input, length) => decompress(input, new Uint8Array(length)) }, parsers: { timestampFromMicroseconds: Number } });
}

for (const name of ['incident.parquet', 'bare.parquet']) {
  test(`${name}_is_read_as_it_is`, async () => {
    const bytes = await bytesOf(name);
    const [samples, rows] = [await openSamples(bytes), await rowsOf(bytes)];
    assert.equal(samples.rows, rows.length);
    assert.equal(samples.from, Math.min(...rows.map((r) => r.ts)));
    assert.equal(samples.to, Math.max(...rows.map((r) => r.ts)));
    assert.deepEqual(samples.groups.map((g) => g.id).sort(), [...new Set(rows.map((r) => id(r.cgroup_id)))].sort());
    for (const group of samples.groups) {
      const own = rows.filter((r) => id(r.cgroup_id) === group.id).sort((a, b) => a.ts - b.ts);
      assert.equal(group.rows, own.length);
      assert.equal(group.path, own[0].cgroup_path);
      assert.equal(group.container, own[0].container ?? null);
      await samples.read(group, FIELDS);
      assert.deepEqual(Array.from(group.t), own.map((r) => r.ts));
      assert.deepEqual(Array.from(group.cause, (c) => CAUSES[c]), own.map((r) => r.cause));
      assert.deepEqual(Array.from(group.periodMs), own.map((r) => Number(r.period_ms)));
      for (const [field, values] of Object.entries(group.columns)) assert.deepEqual(Array.from(values), own.map((r) => (r[field] === null || r[field] === undefined ? NaN : Number(r[field]))), field);
      assert.deepEqual(Object.keys(group.columns).sort(), FIELDS.filter((f) => f in own[0]).sort());
    }
  });
}

test('nothing_is_read_before_it_is_asked_for', async () => {
  const bytes = await bytesOf('incident.parquet');
  const samples = await openSamples(bytes);
  const [first, second] = samples.groups;
  assert.equal(first.t.length, 0);
  await samples.read(first, ['memory_current']);
  assert.equal(first.t.length, first.rows);
  assert.deepEqual(Object.keys(first.columns), ['memory_current']);
  assert.equal(second.t.length, 0, 'of another cgroup nothing');
  const held = first.columns.memory_current;
  await samples.read(first, ['memory_current', 'pids_current']);
  assert.equal(first.columns.memory_current, held, 'and nothing twice');
  assert.ok(first.columns.pids_current);
});

test('names_are_those_of_the_document', async () => {
  const bytes = await bytesOf('incident.parquet');
  const [{ id: wanted }] = (await openSamples(bytes)).groups;
  const { groups } = await openSamples(bytes, [{ cgroup_id: wanted, cgroup_path: '/a', scope: 'pod', pod: 'b', parent_cgroup_id: '7' }]);
  assert.deepEqual([groups[0].path, groups[0].scope, groups[0].pod, groups[0].parentId, groups[0].container], ['/a', 'pod', 'b', '7', null]);
  assert.notEqual(groups[1].path, '', 'of one that the document does not name, those of its rows');
});

test('an_id_that_two_nodes_have_is_two_cgroups', async () => {
  const cgroup = (/** @type {string} */ id, /** @type {string} */ node) => ({ cgroup_id: id, node, parent_cgroup_id: '1', scope: 'pod', pod: 'cart-0', cgroup_path: '/a' });
  const text = JSON.stringify({ format: 1, cgroups: [cgroup('7', 'alfa'), cgroup('7', 'bravo'), cgroup('9', 'bravo')], events: [{ cgroup_id: '7', node: 'bravo' }, { cgroup_id: '9', node: 'bravo' }], processes: [{ cgroup_id: '7', node: 'alfa' }] });
  const { document } = readDocument(text);
  assert.deepEqual([...document.events, ...document.processes].map((item) => item.cgroup_id), ['7@bravo', '9', '7@alfa']);
  const samples = await openSamples(await bytesOf('nodes.parquet'), document.cgroups);
  assert.deepEqual(samples.groups.map((g) => [g.id, g.rows, g.on]), [['7@alfa', 20, 'alfa'], ['7@bravo', 20, 'bravo'], ['9', 20, 'bravo']]);
  for (const group of samples.groups) await samples.read(group, ['memory_current']);
  const [alfa, bravo, other] = samples.groups.map((g) => Array.from(g.columns.memory_current));
  assert.deepEqual([alfa, bravo, other], [Array(20).fill(4096), Array.from({ length: 20 }, (_, s) => 8192 * (s + 1)), Array(20).fill(1024)]);
  for (const { t } of samples.groups) assert.ok(t.every((v, i) => i === 0 || v - t[i - 1] === 1e6), 'in time order');
});

test('a_damaged_file_is_an_error', async () => {
  const bytes = await bytesOf('incident.parquet');
  await assert.rejects(openSamples(new Uint8Array(0)), /no Parquet file/);
  await assert.rejects(openSamples(bytes.subarray(0, 20_000)));
});
