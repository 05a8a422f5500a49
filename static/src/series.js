/**
 * The algebra between Parquet columns and lines on a chart: readings of a column, the period in force, gaps, rates of
 * counters, limits carried forward, min/max thinning, and joining series over one x. Pure functions over arrays.
 * It must never invent a value: no rate from a first reading, across a gap or across a reset; no line over a gap.
 * Called by panels (which columns make which line) and charts (what is drawn at this zoom).
 *
 * Times are microseconds since the epoch (exact in a double until 2255). A value that was not read is NaN.
 *
 * @typedef {object} Readings one column of one cgroup, only the rows where it was read
 * @property {Float64Array} t
 * @property {Float64Array} v
 * @property {Uint8Array} cause index into CAUSES
 * @property {Float64Array} periodMs
 * @property {number} [leastGapMs]
 *
 * @typedef {object} Line what can be drawn
 * @property {Float64Array} t
 * @property {Float64Array} v
 * @property {Uint8Array} cause
 * @property {Uint8Array} cut 1: no line between the point before and this one
 *
 * @typedef {{cause: number, from: number, to: number, periodMs: number, rows: number}} Run
 * @typedef {{t: number, v: number, spanUs: number, cause: number, cut: number}} Mean a rate over a bucket
 */

export const CAUSES = ['base', 'history', 'burst'];
const BASE = 0;

/** A line ends where the next reading is further away than this many periods. */
export const GAP_PERIODS = 3;

/** Fewer distances than this do not make a habit. */
const LEAST_SPACINGS = 3;

/** Fast samples further apart than this belong to two triggers, not to one that lost rows. */
const SAME_TRIGGER_MS = 5000;

/**
 * @param {{t: Float64Array, cause: Uint8Array, periodMs: Float64Array, leastGapMs?: number}} rows
 * @param {Float64Array | null | undefined} column
 * @returns {Readings}
 */
export function readings(rows, column) {
  const leastGapMs = rows.leastGapMs ?? 0;
  let many = 0;
  if (column) for (let i = 0; i < column.length; i += 1) if (!Number.isNaN(column[i])) many += 1;
  if (column && many === column.length) return { t: rows.t, v: column, cause: rows.cause, periodMs: rows.periodMs, leastGapMs };
  const kept = new Uint32Array(many);
  if (column) for (let i = 0, k = 0; k < many; i += 1) if (!Number.isNaN(column[i])) kept[k++] = i;
  return { t: pick(rows.t, kept), v: column ? pick(column, kept) : new Float64Array(0), cause: pick(rows.cause, kept), periodMs: pick(rows.periodMs, kept), leastGapMs };
}

/**
 * Some elements of an array. A loop: `from` with a function takes twenty times as long.
 * @template {Float64Array | Uint8Array} T
 * @param {T} source
 * @param {ArrayLike<number>} places
 * @returns {T}
 */
function pick(source, places) {
  const out = /** @type {T} */ (new /** @type {any} */ (source.constructor)(places.length));
  for (let i = 0; i < places.length; i += 1) out[i] = source[places[i]];
  return out;
}

/**
 * Readings of what is set seldom and holds until it is set again: the first, the last, and where it changed.
 * @param {Readings} column
 * @returns {Readings}
 */
export function changes(column) {
  const { t, v, cause, periodMs } = column;
  const kept = [];
  for (let i = 0; i < t.length; i += 1) if (i === 0 || i === t.length - 1 || v[i] !== v[i - 1]) kept.push(i);
  return { ...column, t: pick(t, kept), v: pick(v, kept), cause: pick(cause, kept), periodMs: pick(periodMs, kept) };
}

/**
 * Stretches of one cause: a run ends where the next row of that cause is further away than `apart` says.
 * @param {{t: Float64Array, cause: Uint8Array, periodMs: Float64Array}} rows
 * @param {number} cause
 * @param {(periodMs: number) => number} apart milliseconds
 * @returns {Run[]}
 */
export function runs(rows, cause, apart) {
  /** @type {Run[]} */
  const out = [];
  /** @type {Run | null} */
  let run = null;
  for (let i = 0; i < rows.t.length; i += 1) {
    if (rows.cause[i] !== cause) continue;
    const t = rows.t[i];
    const periodMs = rows.periodMs[i];
    if (run && t - run.to <= apart(periodMs) * 1000) {
      run.to = t;
      run.periodMs = Math.max(run.periodMs, periodMs);
      run.rows += 1;
    } else {
      run = { cause, from: t, to: t, periodMs, rows: 1 };
      out.push(run);
    }
  }
  return out;
}

/** @type {Line} */
export const NOTHING = { t: new Float64Array(0), v: new Float64Array(0), cause: new Uint8Array(0), cut: new Uint8Array(0) };

/** The stretches to shade: history and burst where they really have rows. @param {{t: Float64Array, cause: Uint8Array, periodMs: Float64Array, bands?: Run[]}} rows */
export function bands(rows) {
  if (rows.bands) return rows.bands;
  const apart = (/** @type {number} */ periodMs) => periodMs * GAP_PERIODS;
  return [...runs(rows, 1, apart), ...runs(rows, 2, apart)];
}

/** @param {number[]} values */
function median(values) {
  const sorted = values.slice().sort((a, b) => a - b);
  return sorted[(sorted.length - 1) >> 1];
}

/**
 * A function that says which period was in force between two neighbouring readings. Inside a history or a burst it is
 * theirs; between the two the slower of both; elsewhere base's. A column of a slower tier (read in every tenth base row,
 * say) has the spacing it really has, since the row's period is that of the fast files.
 * @param {Readings} column
 * @returns {(i: number) => number} milliseconds in force between reading i-1 and i
 */
export function periodInForce(column) {
  const apart = (/** @type {number} */ periodMs) => Math.max(periodMs * GAP_PERIODS, SAME_TRIGGER_MS);
  const fast = [...runs(column, 1, apart), ...runs(column, 2, apart)];
  /** @type {number[]} */
  const spacing = [];
  let declared = 0;
  let last = NaN;
  for (let i = 0; i < column.t.length; i += 1) {
    if (column.cause[i] !== BASE) continue;
    declared = Math.max(declared, column.periodMs[i]);
    if (!Number.isNaN(last)) spacing.push((column.t[i] - last) / 1000);
    last = column.t[i];
  }
  const usual = median(spacing);
  const base = spacing.length >= LEAST_SPACINGS && usual > declared * GAP_PERIODS ? usual : declared;
  const holding = (/** @type {number} */ t) => fast.filter((run) => t >= run.from && t <= run.to);
  return (i) => {
    const before = holding(column.t[i - 1]);
    const after = holding(column.t[i]);
    const both = before.filter((run) => after.includes(run));
    if (both.length) return Math.min(...both.map((run) => run.periodMs));
    if (before.length && after.length) return Math.max(...[...before, ...after].map((run) => run.periodMs));
    return base || Math.max(column.periodMs[i - 1], column.periodMs[i]);
  };
}

/**
 * Which readings begin a new stretch: 1 where the one before is more than three periods away.
 * @param {Readings} column
 */
export function gaps(column) {
  const cut = new Uint8Array(column.t.length);
  /** @type {((i: number) => number) | null} */
  let period = null;
  for (let i = 1; i < cut.length; i += 1) {
    const apartMs = (column.t[i] - column.t[i - 1]) / 1000;
    // The cheap question first: nearly every neighbour is closer than its own period.
    if (apartMs > (column.leastGapMs ?? 0) && apartMs > GAP_PERIODS * Math.min(column.periodMs[i - 1], column.periodMs[i]) && apartMs > GAP_PERIODS * (period ??= periodInForce(column))(i)) cut[i] = 1;
  }
  return cut;
}

/** Readings closer than this on either side of the event may be joined over it. */
const JOINED_OVER_EVENT_US = 100_000;

/**
 * A gauge as a line. A kill changes a gauge at once: a slope from half a second before it to the first reading after it
 * would show memory falling while it rose. So the line stops at the event, unless the two readings are close.
 * @param {Readings} column
 * @param {number | null} [eventUs]
 * @returns {Line}
 */
export function gauge(column, eventUs = null) {
  return stopAt({ t: column.t, v: column.v, cause: column.cause, cut: gaps(column) }, eventUs);
}

/** The same for a line that is there already. @param {Line} drawn @param {number | null} eventUs @returns {Line} */
export function stopAt(drawn, eventUs) {
  const { t } = drawn;
  const after = eventUs === null ? 0 : indexAt(t, eventUs) + 1;
  if (after <= 0 || after >= t.length || t[after] - t[after - 1] <= JOINED_OVER_EVENT_US) return drawn;
  const cut = drawn.cut.slice();
  cut[after] = 1;
  return { ...drawn, cut };
}

/** A line in the making, of so many points at the most. @param {number} most */
function drawing(most) {
  const [t, v, cause, cut] = [new Float64Array(most), new Float64Array(most), new Uint8Array(most), new Uint8Array(most)];
  let n = 0;
  return {
    add(/** @type {number} */ at, /** @type {number} */ value, /** @type {number} */ why, /** @type {number} */ broken) {
      t[n] = at;
      v[n] = value;
      cause[n] = why;
      cut[n] = broken;
      n += 1;
    },
    /** @returns {Line} */
    done: () => ({ t: t.subarray(0, n), v: v.subarray(0, n), cause: cause.subarray(0, n), cut: cut.subarray(0, n) }),
  };
}

/**
 * A cumulative counter as a rate: units of the counter a second, times `factor`, at the end of each interval. Two readings
 * much closer than the period (a base row beside a burst row) would divide by almost nothing: the later one is passed
 * over, and what it counted is in the next interval.
 * @param {Readings} column
 * @param {number} [factor]
 * @returns {Line}
 */
export function rate(column, factor = 1) {
  const cut = gaps(column);
  const points = drawing(column.t.length);
  let from = 0;
  let broken = 0;
  for (let i = 1; i < column.t.length; i += 1) {
    const span = column.t[i] - column.t[from];
    const risen = column.v[i] - column.v[from];
    if (cut[i] || risen < 0) {
      broken = 1;
      from = i;
      continue;
    }
    if (span <= 0 || span < 500 * Math.min(column.periodMs[from], column.periodMs[i])) continue;
    points.add(column.t[i], (risen / span) * 1e6 * factor, column.cause[i], broken);
    broken = 0;
    from = i;
  }
  return points.done();
}

/**
 * How much one counter rose for each unit of another (throttled periods for each period), times `factor`. There is a point
 * only where the second has risen by `least` since the last: a share of one or two is noise, of none nothing at all.
 * @param {Readings} over both columns must come from the same rows: `t` is the join
 * @param {Readings} under
 * @param {number} [factor]
 * @param {number} [least]
 * @returns {Line}
 */
export function share(over, under, factor = 1, least = 1) {
  const cut = gaps(under);
  const points = drawing(under.t.length);
  let from = -1;
  let [broken, j, k] = [0, 0, 0];
  for (let i = 0; i < under.t.length; i += 1) {
    while (j < over.t.length && over.t[j] < under.t[i]) j += 1;
    if (cut[i]) {
      broken = 1;
      from = -1;
    }
    if (over.t[j] !== under.t[i]) continue;
    if (from >= 0) {
      const whole = under.v[i] - under.v[from];
      const part = over.v[j] - over.v[k];
      if (whole >= 0 && whole < least && part >= 0) continue;
      if (whole < 0 || part < 0) broken = 1;
      else {
        points.add(under.t[i], (part / whole) * factor, under.cause[i], broken);
        broken = 0;
      }
    }
    from = i;
    k = j;
  }
  return points.done();
}

/**
 * The same of two counters that came as mean rates over the same buckets.
 * @param {Mean[] | undefined} over
 * @param {Mean[] | undefined} under
 * @param {number} [factor]
 * @param {number} [least]
 * @returns {Line}
 */
export function ratio(over, under, factor = 1, least = 1) {
  const at = new Map((over ?? []).map((mean) => [mean.t, mean]));
  const points = drawing(under?.length ?? 0);
  let [part, whole, broken] = [0, 0, 0];
  for (const mean of under ?? []) {
    if (mean.cut) [part, whole, broken] = [0, 0, 1];
    const above = at.get(mean.t);
    if (!above) continue;
    part += (above.v * above.spanUs) / 1e6;
    whole += (mean.v * mean.spanUs) / 1e6;
    // Half a period off: means are rounded, whole periods are not.
    if (whole < least - 0.5) continue;
    points.add(mean.t, Math.min(1, part / whole) * factor, mean.cause, broken);
    [part, whole, broken] = [0, 0, 0];
  }
  return points.done();
}

/** The index of the last element that is not after `t`, or -1. @param {ArrayLike<number>} times @param {number} t */
export function indexAt(times, t) {
  let low = 0;
  let high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] <= t) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/**
 * A limit, which is read seldom and holds until it is read again. NaN before the first reading.
 * @param {Readings} column
 * @param {ArrayLike<number>} times in order
 */
export function carryForward(column, times) {
  const out = new Float64Array(times.length).fill(NaN);
  let at = times.length ? indexAt(column.t, times[0]) : -1;
  for (let i = 0; i < times.length; i += 1) {
    while (at + 1 < column.t.length && column.t[at + 1] <= times[i]) at += 1;
    if (at >= 0) out[i] = column.v[at];
  }
  return out;
}

/**
 * The value under the cursor: the last point not after `t`. Where the line stops there (a gap, or its end), the value
 * counts for three of the spacings it had, and no longer.
 * @param {Line} drawn
 * @param {number} t
 */
export function valueAt(drawn, t) {
  const i = indexAt(drawn.t, t);
  if (i < 0) return NaN;
  const stops = i + 1 >= drawn.t.length || drawn.cut[i + 1] === 1;
  const spacing = i > 0 && !drawn.cut[i] ? drawn.t[i] - drawn.t[i - 1] : 1e6;
  return stops && t - drawn.t[i] > GAP_PERIODS * spacing ? NaN : drawn.v[i];
}

/**
 * Thins a line to its first, lowest, highest and last point in each of `buckets` equal spans, so that no spike is lost.
 * One point on either side of the range is kept, so that lines run on to the edge.
 * @param {Line} full
 * @param {number} from
 * @param {number} to
 * @param {number} buckets
 * @returns {Line}
 */
export function thin(full, from, to, buckets) {
  const start = Math.max(0, indexAt(full.t, from));
  const end = Math.min(full.t.length, indexAt(full.t, to) + 2);
  if (end - start <= buckets * 4) {
    return { t: full.t.subarray(start, end), v: full.v.subarray(start, end), cause: full.cause.subarray(start, end), cut: full.cut.subarray(start, end) };
  }
  const width = (to - from) / buckets;
  const { t, v } = full;
  // The points beside the range may have a bucket of their own each.
  const points = drawing((buckets + 3) * 4);
  let i = start;
  let pending = 0;
  let seen = start - 1;
  while (i < end) {
    const bucket = Math.floor((t[i] - from) / width);
    let low = i;
    let high = i;
    let last = i;
    while (last + 1 < end && Math.floor((t[last + 1] - from) / width) === bucket) {
      last += 1;
      if (v[last] < v[low]) low = last;
      if (v[last] > v[high]) high = last;
    }
    const [one, two] = low < high ? [low, high] : [high, low];
    for (const at of [i, one, two, last]) {
      if (at <= seen) continue;
      for (let k = seen + 1; k <= at; k += 1) pending |= full.cut[k];
      points.add(t[at], v[at], full.cause[at], pending);
      pending = 0;
      seen = at;
    }
    i = last + 1;
  }
  return points.done();
}

/**
 * Joins lines over one x, as the chart library wants them: undefined where a line has no point (it runs on), null inside
 * a gap (it stops). `steps` are carried limits, with a value at every x from their first reading on.
 * @param {Line[]} lines
 * @param {Readings[]} steps
 * @param {number} originUs x is seconds from here
 * @returns {[number[], ...(number | null | undefined)[][]]}
 */
export function join(lines, steps, originUs) {
  let most = 0;
  for (const drawn of lines) most += drawn.t.length * 2;
  for (const step of steps) most += step.t.length;
  const all = new Float64Array(most);
  let many = 0;
  for (const drawn of lines) {
    for (let i = 0; i < drawn.t.length; i += 1) {
      all[many++] = drawn.t[i];
      // So that there is an instant inside each gap on which the line can stop.
      if (drawn.cut[i] && i > 0) all[many++] = (drawn.t[i - 1] + drawn.t[i]) / 2;
    }
  }
  for (const step of steps) {
    all.set(step.t, many);
    many += step.t.length;
  }
  const times = all.subarray(0, many).sort().filter((t, i, sorted) => i === 0 || t !== sorted[i - 1]);
  const columns = lines.map((drawn) => {
    /** @type {(number | null | undefined)[]} */
    const column = new Array(times.length).fill(undefined);
    let [before, at] = [-1, 0];
    for (let i = 0; i < drawn.t.length; i += 1) {
      while (times[at] < drawn.t[i]) at += 1;
      if (drawn.cut[i] && i > 0) column.fill(null, before + 1, at);
      column[at] = drawn.v[i];
      before = at;
    }
    return column;
  });
  const carried = steps.map((step) => Array.from(carryForward(step, times), (v) => (Number.isNaN(v) ? null : v)));
  return [Array.from(times, (t) => (t - originUs) / 1e6), ...columns, ...carried];
}
