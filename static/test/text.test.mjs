/**
 * Claims about what is written: formats, ticks, words, rows of marks, the choice of an instant, the view's bounds.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { stepOf, ticks } from '../src/axis.js';
import { fromBase64, readDocument } from '../src/data.js';
import { subjectName, titleOf } from '../src/facts.js';
import * as format from '../src/format.js';
import { losses, silence } from '../src/missing.js';
import { instantsOf, sorted } from '../src/processes.js';
import { detailPairs, stackRows } from '../src/timeline.js';
import { createView, MIN_SPAN_US } from '../src/view.js';
import { kindName, lossSentence } from '../src/words.js';

const KILL = 1_795_489_927_416_203;

test('bytes_never_round_up_to_the_limit', () => {
  assert.equal(format.bytes(0), '0 B');
  assert.equal(format.bytes(1023), '1023 B');
  assert.equal(format.bytes(128 * 2 ** 20), '128 MiB');
  assert.equal(format.bytes(128 * 2 ** 20 - 8192), '127.99 MiB');
  assert.equal(format.bytes(128 * 2 ** 20 - 1), '127.99 MiB');
  assert.equal(format.bytes(79.58 * 2 ** 20), '79.6 MiB');
  assert.equal(format.bytes(64.02 * 2 ** 20), '64 MiB');
  assert.equal(format.bytes(-2048), '−2 KiB');
  assert.equal(format.bytes(null), '–');
  assert.equal(format.bytes(NaN), '–');
  assert.equal(format.bytes(2 ** 60 * 5000), '5000 EiB');
});

test('rates_and_times_have_their_units', () => {
  assert.equal(format.millicores(474.4), '474 m');
  assert.equal(format.millicores(0), '0 m');
  assert.equal(format.millicores(12_000), '12.0 cores');
  assert.equal(format.percent(41.2), '41 %');
  assert.equal(format.percent(0.04), '0 %');
  assert.equal(format.bytesPerSecond(2048), '2 KiB/s');
  assert.equal(format.milliseconds(3.1), '3.1 ms');
  assert.equal(format.milliseconds(17.7), '18 ms');
  assert.equal(format.seconds(30), '30 s');
  assert.equal(format.milliseconds(125_000), '2 min 5 s');
  assert.equal(format.count(12_345), '12,345');
});

test('time_from_the_event_is_signed', () => {
  assert.equal(format.relative(0), '0 s');
  assert.equal(format.relative(-5_000_000, 100_000), '−5.0 s');
  assert.equal(format.relative(-17_700, 100), '−17.7 ms');
  assert.equal(format.relative(1_400_000), '+1.400 s');
  assert.equal(format.relative(-600_000_000), '−10:00 min');
  assert.equal(format.relative(9000e6), '+2 h 30 min');
  for (const [us, resolution, text] of [[-300, 1000, '−0.3 ms'], [300, 1000, '+0.3 ms'], [-40, 1000, '−40 µs'], [40, 100, '+40 µs'], [-1, 100, '−1 µs'], [1, 1e6, '+1 µs'], [-499, 1000, '−0.5 ms']]) {
    assert.equal(format.relative(us, resolution), text, 'beside the event is not at it');
  }
  assert.equal(format.milliseconds(0.003), '3 µs');
  assert.equal(format.milliseconds(0), '0 ms');
});

test('the_clock_is_utc_to_the_microsecond', () => {
  assert.equal(format.utc(KILL), '2026-11-24 03:12:07.416 UTC');
  assert.equal(format.clock(KILL, false, 6), '03:12:07.416203');
  assert.equal(format.clock(KILL, false, 0), '03:12:07');
});

test('ticks_are_round_and_never_labelled_alike', () => {
  for (const span of [3e3, 7e4, 1e6, 68e6, 3600e6, 30 * 86_400e6]) {
    for (const mode of ['relative', 'utc', 'local']) {
      const got = ticks(KILL - span * 0.8, KILL + span * 0.2, 8, KILL, mode);
      assert.ok(got.length >= 1 && got.length <= 9, `${got.length} ticks over ${span} (${mode})`);
      assert.equal(new Set(got.map((tick) => tick.label)).size, got.length, `${mode} ${span}: ${got.map((tick) => tick.label)}`);
    }
  }
  assert.equal(stepOf(0, 60e6, 6), 10e6);
  assert.ok(ticks(KILL - 10e6, KILL + 10e6, 6, KILL, 'relative').some((tick) => tick.label === '0 s'), 'the event has a tick');
});

test('unknown_words_are_shown_not_dropped', () => {
  assert.equal(kindName('oom_kill'), 'Out-of-memory kill');
  assert.equal(kindName('some_new_kind'), 'Some new kind');
  assert.equal(lossSentence({ table: 'samples', reason: 'ring_full', rows: 2 }), '2 samples are missing: the kernel ring buffer was full.');
  assert.equal(lossSentence({ table: 'events', reason: 'odd_reason', rows: 1 }), '1 event is missing: odd reason.');
  assert.match(lossSentence({ table: 'processes', reason: 'vanished', rows: null }), /^An unknown number of process rows/);
});

test('a_loss_told_twice_is_one_loss', () => {
  const loss = { table: 'samples', reason: 'late', rows: 16 };
  const got = losses({ lost: [loss, { table: 'events', reason: 'x', rows: 0 }], incident: { lost: [{ ...loss, rows: 4 }] } });
  assert.deepEqual(got, [loss]);
});

test('what_is_of_several_nodes_says_of_which', () => {
  const loss = { table: 'samples', reason: 'late', rows: 2 };
  const got = losses({ lost: [{ ...loss, node: 'a' }, { ...loss, node: 'b' }], incident: null });
  assert.deepEqual(got.map(lossSentence), ['2 samples of node a are missing: the sampler came too late for the tick.', '2 samples of node b are missing: the sampler came too late for the tick.']);
  assert.deepEqual(silence({ unanswered: [{ node: 'c', why: 'no agent runs there' }, { node: 'node-1', why: null }] }), ['Node c gave no answer (no agent runs there): what it has recorded is not in this export.', 'Node node-1 gave no answer: what it has recorded is not in this export.']);
  assert.deepEqual(silence({}), []);
  assert.equal(subjectName({ container: 'cart', on: 'a' }), 'cart on a');
});

test('details_have_units_by_their_keys', () => {
  assert.deepEqual(detailPairs({ max_bytes: 2048, window_ms: 500, init: false, odd: null, victim: { anon_bytes: 1024, uid: null, cgroup_path: '/a/b' }, list: [1] }), [['max', '2 KiB'], ['window', '500 ms'], ['init', 'no'], ['victim anon', '1 KiB'], ['victim cgroup path', 'b'], ['list', '[1]']]);
  assert.deepEqual(detailPairs({ bytes_per_second: 2048 }), [['growth', '2 KiB/s']]);
  assert.deepEqual(detailPairs(null), []);
});

test('marks_that_would_cover_each_other_go_to_rows_of_their_own', () => {
  const got = stackRows([{ x: 0, width: 100 }, { x: 10, width: 100 }, { x: 50, width: 100 }, { x: 120, width: 40 }], 2, 18);
  assert.deepEqual(got, [{ row: 0, bare: true }, { row: 1, bare: false }, { row: 0, bare: false }, { row: 1, bare: false }]);
});

test('the_instant_shown_first_is_the_last_before_the_event', () => {
  assert.equal(instantsOf([{ ts_us: 5 }, { ts_us: 9 }, { ts_us: 11 }, { ts_us: 9 }], 10).chosen, 9);
  assert.equal(instantsOf([{ ts_us: 10 }], 10).chosen, 10);
  assert.equal(instantsOf([{ ts_us: 11 }, { ts_us: 30 }], 10).chosen, 11);
});

test('absent_values_sort_last_either_way', () => {
  const rows = [{ pid: 1, v: null }, { pid: 2, v: 5 }, { pid: 3, v: 9 }];
  assert.deepEqual(sorted(rows, 'v', true).map((r) => r.pid), [2, 3, 1]);
  assert.deepEqual(sorted(rows, 'v', false).map((r) => r.pid), [3, 2, 1]);
});

test('the_view_never_leaves_its_extent', () => {
  const view = createView(0, 10e6);
  let told = 0;
  const forget = view.onRange(() => (told += 1));
  view.setRange(8e6, 20e6);
  assert.deepEqual(view.range, { from: 0, to: 10e6 }, 'wider than all is all');
  view.setRange(4e6, 3e6);
  assert.deepEqual(view.range, { from: 3e6, to: 4e6 }, 'either way round');
  view.pan(100);
  assert.deepEqual(view.range, { from: 9e6, to: 10e6 });
  view.zoom(1e-9);
  assert.equal(view.range.to - view.range.from, MIN_SPAN_US);
  view.reset();
  assert.deepEqual(view.range, { from: 0, to: 10e6 });
  forget();
  view.setRange(1, 5e6);
  assert.equal(told, 4);
});

test('titles_name_the_incident_or_the_range', () => {
  const incident = { kind: 'oom_kill', scope: 'container', container: null, container_id: 'a'.repeat(64), cgroup_path: '/x/y' };
  assert.equal(titleOf({ incident, cgroups: [] }, null), `Out-of-memory kill in container ${'a'.repeat(12)}`);
  const range = titleOf({ incident: null, cgroups: [{ scope: 'container', container: 'api' }] }, { from: KILL, to: KILL + 60e6 });
  assert.equal(range, 'api, 2026-11-24 03:12:07 to 03:13:07 UTC');
  assert.equal(subjectName({ cgroup_path: '/system.slice/ssh.service' }), 'ssh.service');
});

test('a_broken_document_still_gives_a_page', () => {
  const broken = readDocument('{"format": 1,');
  assert.match(broken.error, /could not be read/);
  assert.deepEqual(broken.document.events, []);
  assert.match(readDocument('{"format": 2}').error, /format 2/);
  assert.equal(readDocument('{"format": 1}').error, null);
});

test('base64_may_have_line_breaks', () => {
  assert.deepEqual([...fromBase64('AQI\nD/w==')], [1, 2, 3, 255]);
});
