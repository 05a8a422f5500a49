/**
 * Claims about the algebra of series.js: what is a rate, a gap, a reset, a limit, a spike.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as series from '../src/series.js';

const MS = 1000;
const [BASE, HISTORY, BURST] = [0, 1, 2];

/** Rows from [milliseconds, value, cause, period in ms]. */
function rows(list) {
  return {
    t: Float64Array.from(list, (r) => r[0] * MS),
    v: Float64Array.from(list, (r) => r[1] ?? NaN),
    cause: Uint8Array.from(list, (r) => r[2] ?? BASE),
    periodMs: Float64Array.from(list, (r) => r[3] ?? 1000),
  };
}

const read = (list) => {
  const r = rows(list);
  return series.readings(r, r.v);
};

const base = (n, value = (i) => i) => Array.from({ length: n }, (_, i) => [i * 1000, value(i)]);

test('readings_leave_out_what_was_not_read', () => {
  const got = read([[0, 1], [1000, null], [2000, 3]]);
  assert.deepEqual([...got.t], [0, 2000 * MS]);
  assert.deepEqual([...got.v], [1, 3]);
  assert.equal(series.readings(rows([[0, 1]]), undefined).t.length, 0);
});

test('a_first_reading_gives_no_rate', () => {
  assert.equal(series.rate(read([[0, 100]])).t.length, 0);
  const two = series.rate(read([[0, 100], [1000, 350]]));
  assert.deepEqual([[...two.t], [...two.v]], [[1000 * MS], [250]]);
});

test('cpu_microseconds_become_millicores', () => {
  const line = series.rate(read([[0, 0], [1000, 500_000]]), 1e-3);
  assert.equal(line.v[0], 500);
});

test('a_counter_that_fell_is_a_reset_and_gives_no_rate', () => {
  const line = series.rate(read([[0, 10], [1000, 20], [2000, 3], [3000, 8]]));
  assert.deepEqual([...line.v], [10, 5]);
  assert.deepEqual([...line.cut], [0, 1], 'and the line stops there');
});

test('no_rate_across_a_gap', () => {
  const line = series.rate(read([[0, 0], [1000, 10], [9000, 5000], [10_000, 5010]]));
  assert.deepEqual([...line.v], [10, 10]);
  assert.deepEqual([...line.cut], [0, 1]);
});

test('a_base_row_beside_a_burst_row_divides_by_nothing_small', () => {
  const line = series.rate(read([[0, 0], [1000, 1000], [1003, 1900, BURST, 50], [1053, 1950, BURST, 50], [1103, 2000, BURST, 50]]));
  assert.equal(Math.max(...line.v) < 20_000, true, `a spike of ${Math.max(...line.v)} from 3 ms`);
  const counted = line.v.reduce((sum, v, i) => sum + (v * (line.t[i] - (i ? line.t[i - 1] : 0))) / 1e6, 0);
  assert.ok(Math.abs(counted - 2000) < 1e-6, 'and nothing counted is lost');
});

test('a_gap_is_more_than_three_periods', () => {
  assert.deepEqual([...series.gaps(read([[0, 1], [1000, 1], [4000, 1], [7001, 1]]))], [0, 0, 0, 1]);
});

test('inside_a_history_the_lane_s_period_is_in_force', () => {
  const lane = Array.from({ length: 60 }, (_, i) => [10_000 + i * 50, 1, HISTORY, 50]).filter(([t]) => t < 11_000 || t >= 11_400);
  const all = [...base(11), ...lane, [14_000, 1], [15_000, 1]].sort((a, b) => a[0] - b[0]);
  const cut = series.gaps(read(all));
  const cutTimes = all.filter((_, i) => cut[i]).map((r) => r[0]);
  assert.deepEqual(cutTimes, [11_400], 'only the hole in the lane: neither its start nor its end nor base');
});

test('a_column_of_a_slow_tier_has_its_own_spacing', () => {
  const slow = Array.from({ length: 8 }, (_, i) => [i * 10_000, 5]);
  assert.equal(series.gaps(read(slow)).some(Boolean), false);
  assert.equal(series.gaps(read([...slow, [120_000, 5]])).at(-1), 1);
});

test('history_and_burst_meet_without_a_gap_when_the_kill_is_between', () => {
  const lane = Array.from({ length: 20 }, (_, i) => [i * 50, 1, HISTORY, 50]);
  const burst = Array.from({ length: 20 }, (_, i) => [990 + i * 50, 1, BURST, 50]);
  assert.equal(series.gaps(read([...lane, ...burst])).some(Boolean), false);
});

test('a_gauge_stops_at_the_event_unless_it_was_read_close_by', () => {
  const seldom = read([[0, 90], [1000, 100], [1600, 20]]);
  assert.deepEqual([...series.gauge(seldom, 1500 * MS).cut], [0, 0, 1]);
  assert.deepEqual([...series.gauge(seldom).cut], [0, 0, 0]);
  const close = read([[1450, 90, HISTORY, 50], [1500, 100, HISTORY, 50], [1540, 20, BURST, 50]]);
  assert.deepEqual([...series.gauge(close, 1510 * MS).cut], [0, 0, 0]);
});

test('bands_are_where_history_and_burst_have_rows', () => {
  const all = rows([...base(3), ...[0, 50, 100].map((t) => [1500 + t, 1, HISTORY, 50]), ...[0, 50, 500, 550].map((t) => [1700 + t, 1, BURST, 50])]);
  const got = series.bands(all).map((b) => [series.CAUSES[b.cause], b.from / MS, b.to / MS, b.rows]);
  assert.deepEqual(got, [['history', 1500, 1600, 3], ['burst', 1700, 1750, 2], ['burst', 2200, 2250, 2]]);
});

test('a_share_needs_enough_to_divide_by', () => {
  const under = read([[0, 0], [50, 0, BURST, 50], [100, 3, BURST, 50], [150, 6, BURST, 50], [200, 6, BURST, 50]].map((r) => [r[0], r[1], BURST, 50]));
  const over = read([[0, 0], [50, 0], [100, 3], [150, 3], [200, 3]].map((r) => [r[0], r[1], BURST, 50]));
  const line = series.share(over, under, 100, 5);
  assert.deepEqual([[...line.t], [...line.v]], [[150 * MS], [50]]);
  assert.equal(series.share(over, read([[0, 7, BURST, 50], [50, 7, BURST, 50]]), 100).t.length, 0, 'no period passed: no share');
});

test('a_limit_holds_until_it_is_read_again_and_not_before', () => {
  const limit = read([[2000, 128], [12_000, 256]]);
  assert.deepEqual([...series.carryForward(limit, [1000, 2000, 11_999, 12_000, 99_000].map((t) => t * MS))], [NaN, 128, 128, 256, 256]);
});

test('the_value_under_the_cursor_ends_with_the_line', () => {
  const line = series.gauge(read([[0, 1], [1000, 2], [9000, 3]]));
  assert.equal(series.valueAt(line, -1), NaN);
  assert.equal(series.valueAt(line, 500 * MS), 1);
  assert.equal(series.valueAt(line, 3900 * MS), 2);
  assert.equal(series.valueAt(line, 4100 * MS), NaN, 'inside the gap nothing is known');
  assert.equal(series.valueAt(line, 9000 * MS), 3);
});

test('thinning_keeps_the_spike_the_ends_and_the_gaps', () => {
  const n = 50_000;
  const many = read(Array.from({ length: n }, (_, i) => [i * 1000, i === 31_337 ? 9999 : i === 7000 ? -5 : Math.sin(i / 50)]));
  const full = series.gauge(many);
  full.cut[40_000] = 1;
  const thin = series.thin(full, 0, (n - 1) * 1000 * MS, 500);
  assert.ok(thin.t.length <= 500 * 4 + 4, `${thin.t.length} points`);
  assert.ok(thin.v.includes(9999) && thin.v.includes(-5), 'both spikes');
  assert.equal(thin.t[0], 0);
  assert.equal(thin.t.at(-1), (n - 1) * 1000 * MS);
  assert.equal(thin.cut.reduce((a, b) => a + b, 0), 1);
  for (let i = 1; i < thin.t.length; i += 1) assert.ok(thin.t[i] > thin.t[i - 1], 'in order, none twice');
});

test('thinning_leaves_few_points_as_they_are_with_a_neighbour_on_each_side', () => {
  const line = series.gauge(read(base(10)));
  assert.deepEqual([...series.thin(line, 3500 * MS, 5500 * MS, 100).v], [3, 4, 5, 6]);
});

test('joined_lines_run_on_over_foreign_instants_and_stop_in_gaps', () => {
  const a = series.gauge(read([[0, 1], [1000, 2], [9000, 3]]));
  const b = series.gauge(read([[0, 7], [500, 8, BURST, 50], [1000, 9], [2000, 9]]));
  const [x, ya, yb, limit] = series.join([a, b], [read([[500, 64]])], 0);
  assert.deepEqual(x, [0, 0.5, 1, 2, 5, 9]);
  assert.deepEqual(ya, [1, undefined, 2, null, null, 3], 'the gap is whole, whatever others have inside it');
  assert.deepEqual(yb, [7, 8, 9, 9, undefined, undefined]);
  assert.deepEqual(limit, [null, 64, 64, 64, 64, 64]);
});

test('a_limit_is_where_it_was_set_and_nothing_between', () => {
  const t = Float64Array.from({ length: 1000 }, (_, i) => i * 1e6);
  const v = Float64Array.from(t, (_, i) => (i < 400 ? 64 : 128));
  const limit = { t, v, cause: new Uint8Array(1000), periodMs: new Float64Array(1000).fill(1000) };
  const kept = series.changes(limit);
  assert.deepEqual(Array.from(kept.t), [0, 400e6, 999e6]);
  const times = [0, 399.9e6, 400e6, 998e6, 5000e6];
  assert.deepEqual(series.carryForward(kept, times), series.carryForward(limit, times), 'what it stands for is the same');
  assert.equal(series.changes({ ...limit, t: t.subarray(0, 0), v: v.subarray(0, 0) }).t.length, 0);
});
