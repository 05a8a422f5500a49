/**
 * Claims about what is said and drawn of an analysis, and about which dashboards are taken.
 */

import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { glob, read, takes } from '../src/viewer/dashboards.js';
import { findingsOf } from '../src/viewer/findings.js';
import { idOf, panelOfMany } from '../src/viewer/model.js';

const MEMORY = { name: 'memory_current', table: 'samples', kind: 'gauge', unit: 'bytes', file: 'memory.current' };
const CPU = { name: 'cpu_stat_usage_usec', table: 'samples', kind: 'counter', unit: 'microseconds', file: 'cpu.stat' };
const metricOf = (name) => [MEMORY, CPU].find((m) => m.name === name);
const answer = (metrics) => ({ from_us: 0, to_us: 100e6, series: [{ key: '1@a', metrics }, { key: '2@a', metrics: { memory_current: null } }] });

test('a_trend_says_when_which_limit_is_met_and_its_line_leads_there', () => {
  const found = { direction: 'rising', slope: 2 ** 20, slope_low: 2 ** 20, slope_high: 2 ** 20, value: 60 * 2 ** 20, since_us: 40e6, until_us: 100e6, limit: { value: 64 * 2 ** 20, is_own: false, cgroup_path: '/a/pod7' }, forecast: { seconds: 4, earliest_s: 3.5, latest_s: null }, no_forecast: null };
  const { findings, overlays } = findingsOf('trend', answer({ memory_current: found }), metricOf, '1@a');
  assert.equal(findings.length, 1, 'of the one container alone');
  assert.match(findings[0].text, /^rising by 1 MiB a second since 00:00:40; at the limit of pod7 of 64 MiB in 4 s \(at the earliest 3.5 s\)$/);
  assert.deepEqual(overlays.memory.lines, [[[40e6, 0], [104e6, 64 * 2 ** 20]]]);
  const without = findingsOf('trend', answer({ memory_current: { ...found, forecast: null, no_forecast: 'why not' } }), metricOf, '1@a');
  assert.match(without.findings[0].text, /no forecast: why not$/);
  assert.equal(without.overlays.memory.lines[0].at(-1)[0], 100e6, 'a line without a forecast ends where the readings end');
});

test('a_period_is_marked_at_each_peak_inside_the_range_in_the_panels_unit', () => {
  const found = { period_us: 30e6, strength: 0.5, swing: 400_000, cycles: 9, agreement: 0.9, peak_us: -10e6 };
  const { findings, overlays } = findingsOf('periodicity', answer({ cpu_stat_usage_usec: found, memory_current: null }), metricOf, '1@a');
  assert.match(findings[0].text, /^repeats every 30 s, by 400 m \(50 %/);
  assert.deepEqual(overlays.cpu.marks, [20e6, 50e6, 80e6]);
  assert.deepEqual([findings[1].text, findings[1].found], ['no period', false]);
});

test('changes_are_told_with_what_was_left_out', () => {
  const step = (t_us) => ({ t_us, kind: 'step', before: 1024, after: 4096, slope_before: 0, slope_after: 0, size: 9 });
  const slope = { ...step(9e6), kind: 'slope', slope_after: -2048 };
  const { findings, overlays } = findingsOf('changepoint', answer({ memory_current: { changes: [step(5e6), slope], left_out: 3, within_us: 1 } }), metricOf, '1@a');
  assert.equal(findings[0].text, '00:00:05 from 1 KiB to 4 KiB; 00:00:09 from level to −2 KiB a second; 3 smaller ones');
  assert.deepEqual(overlays.memory.marks, [5e6, 9e6]);
});

test('every_dashboard_of_the_scenarios_is_whole', async () => {
  const folder = new URL('../../scenarios/', import.meta.url);
  let many = 0;
  for (const name of await readdir(folder)) {
    const text = await readFile(new URL(`${name}/dashboard.json`, folder), 'utf8').catch(() => null);
    if (!text) continue;
    many += 1;
    assert.ok(read(JSON.parse(text), name).panels.length > 1, name);
  }
  assert.ok(many >= 1);
});

test('what_is_no_dashboard_is_refused_with_what_is_wrong', () => {
  const good = { format: 1, title: 'x', panels: [{ title: 'y', metrics: ['memory_current'] }] };
  assert.equal(read(good, 'a').time, 'run');
  for (const [change, why] of [[{ format: 2 }, /format is 2/], [{ title: '' }, /title/], [{ time: 'yesterday' }, /time is yesterday/], [{ panels: [] }, /no panels/], [{ panels: [{ title: 'y' }] }, /panel 1 needs/], [{ containers: { pod: 'x' } }, /containers has pod/]]) {
    assert.throws(() => read({ ...good, ...change }, 'a'), why);
  }
  assert.throws(() => read(null, 'a'), /no object/);
});

test('a_selector_takes_what_it_says', () => {
  const about = { scope: 'container', namespace: 'shop', cgroup_path: '/kubepods.slice/pod7/x.scope', container: 'cart' };
  assert.ok(glob('/kubepods*/x.scope', about.cgroup_path) && !glob('/kubepods*x', about.cgroup_path) && !glob('.', 'a'));
  assert.ok(takes(about, undefined) && takes(about, { scope: 'container', path: '*pod7*', search: 'CAR' }));
  for (const other of [{ scope: 'pod' }, { namespace: 'x' }, { path: '/a*' }, { search: 'web' }]) assert.ok(!takes(about, other), JSON.stringify(other));
});

test('a_panel_of_several_metrics_keeps_containers_apart_and_draws_limits_as_steps', () => {
  const line = (v) => ({ t: Float64Array.of(0, 1), v: Float64Array.of(v, v), cause: new Uint8Array(2), cut: new Uint8Array(2) });
  const group = (id, v) => ({ id, about: { container: id, cgroup_path: `/${id}` }, drawn: { memory_current: line(v), memory_max: line(99) } });
  const limit = { ...MEMORY, name: 'memory_max', kind: 'limit' };
  const two = panelOfMany({ title: 't', metrics: [MEMORY, limit], groupsOf: () => [group('a', 1), group('b', 2)] }, 'p');
  assert.deepEqual(two.traces.map((t) => [t.label, t.line.v[0]]), [['memory_current a', 1], ['memory_current b', 2]]);
  assert.deepEqual(two.steps.map((s) => [s.label, s.readings.v[0]]), [['memory_max a', 99], ['memory_max b', 99]]);
  const one = panelOfMany({ title: 't', metrics: [CPU], groupsOf: () => [{ ...group('a', 1), drawn: { cpu_stat_usage_usec: line(5000) } }] }, 'p');
  assert.deepEqual([one.unit, one.traces[0].label, one.traces[0].line.v[0]], ['millicores', 'cpu_stat_usage', 5]);
  assert.equal(idOf({ ...MEMORY, table: 'node' }), 'node:memory_current');
});
