/**
 * Claims about the viewer's algebra, without a page: buckets become lines, the address holds the state, a search finds.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ratio } from '../src/series.js';
import { format, parse } from '../src/viewer/address.js';
import { groupOf, lineOf, panelOf, rank, showing } from '../src/viewer/model.js';

const buckets = { t: [10, 20, 40], min: [1, 2, 5], max: [1, 9, 5], avg: [1, 4, 5], min_t: [10, 18, 40], max_t: [10, 12, 40], n: [1, 3, 1], span: [0, 0, 0], cause: [0, 1, 2], cut: [0, 0, 1] };

test('a_bucket_gives_its_lowest_and_highest_at_their_own_instants', () => {
  const line = lineOf(buckets, 1000);
  assert.deepEqual([...line.t], [1010, 1012, 1018, 1040]);
  assert.deepEqual([...line.v], [1, 9, 2, 5]);
  assert.deepEqual([...line.cut], [0, 0, 0, 1]);
  assert.deepEqual([...line.cause], [0, 1, 1, 2]);
});

test('two_containers_are_two_lines_of_a_panel', () => {
  const series = (key) => ({ key, cgroup_path: `/${key}`, scope: 'container', container: key, periods_ms: { base: 1000, history: null, burst: null }, bands: [], metrics: { pids_current: buckets } });
  const groups = ['a', 'b'].map((key) => groupOf(series(key), 0));
  const panel = panelOf({ name: 'pids_current', file: 'pids.current', key: null, kind: 'gauge', unit: 'count' }, groups);
  assert.deepEqual(panel.traces.map((trace) => trace.label), ['a', 'b']);
  assert.notEqual(panel.traces[0].color, panel.traces[1].color);
  assert.equal(panelOf({ name: 'cpu_weight', file: 'cpu.weight', key: null, kind: 'limit', unit: 'weight' }, groups).traces.length, 0);
});

test('a_counter_of_time_is_a_share_or_a_part_of_a_core', () => {
  assert.deepEqual(showing({ kind: 'counter', unit: 'microseconds', file: 'cpu.stat' }).slice(0, 2), ['millicores', 1e-3]);
  assert.deepEqual(showing({ kind: 'counter', unit: 'microseconds', file: 'io.pressure' }).slice(0, 2), ['percent', 1e-4]);
  assert.deepEqual(showing({ kind: 'limit', unit: 'microseconds', file: 'cpu.max' }).slice(0, 2), ['milliseconds', 1e-3]);
  assert.deepEqual(showing({ kind: 'counter', unit: 'bytes', file: 'io.stat' }).slice(0, 2), ['bytesPerSecond', 1]);
});

test('a_share_needs_enough_periods_and_does_not_lead_over_a_gap', () => {
  const mean = (t, v, cut = 0) => ({ t, v, spanUs: 1e6, cause: 0, cut });
  const under = [mean(1, 2), mean(2, 2), mean(3, 2), mean(4, 10, 1)];
  const over = [mean(1, 1), mean(2, 2), mean(3, 0), mean(4, 5, 1)];
  const line = ratio(over, under, 100, 5);
  assert.deepEqual([...line.t], [3, 4]);
  assert.deepEqual([...line.v], [50, 50]);
  assert.deepEqual([...line.cut], [0, 1]);
  assert.equal(ratio(undefined, under).t.length, 0);
});

test('the_address_gives_the_state_back', () => {
  const state = { incident: 'node-1', containers: ['42@12a31d58', '7@12a31d58'], range: null, window: [1, 2_000_000], zoom: [10, 20], metrics: ['pids_current', 'node:meminfo_memfree'], dashboard: 'oom-kill', analyze: 'trend', live: false, clock: 'relative', filter: { q: 'ca rt&x', scope: 'container', qos: '', ns: 'shop', state: 'gone', labels: 'app in (a,b)' } };
  const hash = format(state, '#theme=dark');
  assert.deepEqual(parse(`#${hash}`), state);
  assert.match(hash, /theme=dark$/);
  for (const bad of ['', '#window=5-4', '#zoom=x', '#%%%', '#live=2&clock=moon']) assert.equal(parse(bad).window, null);
});

test('a_search_finds_words_in_any_order_and_letters_in_order', () => {
  const metric = (name, file, key) => ({ name, file, key });
  const throttled = metric('cpu_stat_nr_throttled', 'cpu.stat', 'nr_throttled');
  const current = metric('memory_current', 'memory.current', null);
  assert.notEqual(rank(throttled, 'throttled cpu'), null);
  assert.notEqual(rank(current, 'memcur'), null);
  assert.equal(rank(current, 'throttled'), null);
  assert.ok(rank(current, 'memory') < rank(current, 'mcrt'), 'a whole word is better than scattered letters');
});
