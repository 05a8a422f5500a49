/**
 * Numbers and instants as text: bytes, rates, spans of time, UTC and local clocks. Pure; knows nothing of the page.
 * It must never round a value into a claim: absent stays "–", and a limit is never shown as reached when it is not.
 * Called by every view file and by the axes of the charts.
 */

export const ABSENT = '–';

const BINARY = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];

/** @param {unknown} value @returns {value is number} */
export function isNumber(value) {
  return typeof value === 'number' && Number.isFinite(value);
}

/**
 * About three digits, rounded as usual; but what is below a whole number never rounds up to it: 127.99 of 128 is not 128.
 * @param {number} value
 */
function digits(value) {
  const usual = value < 10 ? 2 : value < 1000 ? 1 : 0;
  const whole = Math.ceil(value);
  for (const places of [usual, 2]) {
    const text = value.toFixed(places);
    if (Number(text) < whole || value === whole) return text.includes('.') ? text.replace(/\.?0+$/, '') : text;
  }
  return (Math.floor(value * 100) / 100).toFixed(2);
}

/** @param {unknown} value */
export function bytes(value) {
  if (!isNumber(value)) return ABSENT;
  let size = Math.abs(value);
  let unit = 0;
  while (size >= 1024 && unit < BINARY.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${value < 0 ? '−' : ''}${unit === 0 ? Math.round(size) : digits(size)} ${BINARY[unit]}`;
}

/** @param {unknown} value */
export function bytesPerSecond(value) {
  return isNumber(value) ? `${bytes(value)}/s` : ABSENT;
}

/** @param {unknown} value thousandths of a core */
export function millicores(value) {
  if (!isNumber(value)) return ABSENT;
  return value >= 10_000 ? `${(value / 1000).toFixed(1)} cores` : `${value < 10 ? Number(value.toFixed(1)) : Math.round(value)} m`;
}

/** @param {unknown} value */
export function percent(value) {
  if (!isNumber(value)) return ABSENT;
  return `${Math.abs(value) < 10 ? Number(value.toFixed(1)) : Math.round(value)} %`;
}

/** @param {unknown} value */
export function perSecond(value) {
  if (!isNumber(value)) return ABSENT;
  return `${value < 100 ? Number(value.toFixed(value < 10 ? 2 : 1)) : Math.round(value).toLocaleString('en-US')}/s`;
}

/** @param {unknown} value */
export function count(value) {
  return isNumber(value) ? Math.round(value).toLocaleString('en-US') : ABSENT;
}

/**
 * A length of time from milliseconds, in the unit that a person would say.
 * @param {unknown} value
 */
export function milliseconds(value) {
  if (!isNumber(value)) return ABSENT;
  const size = Math.abs(value);
  const sign = value < 0 ? '−' : '';
  if (size > 0 && size < 0.01) return `${sign}${Number((size * 1000).toFixed(1))} µs`;
  if (size < 10) return `${sign}${Number(size.toFixed(2))} ms`;
  if (size < 1000) return `${sign}${Math.round(size)} ms`;
  if (size < 60_000) return `${sign}${Number((size / 1000).toFixed(size < 10_000 ? 2 : 1))} s`;
  const minutes = Math.floor(size / 60_000);
  const seconds = Math.round((size % 60_000) / 1000);
  if (minutes < 60) return `${sign}${minutes} min ${seconds} s`;
  return `${sign}${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** @param {unknown} value */
export function seconds(value) {
  return isNumber(value) ? milliseconds(value * 1000) : ABSENT;
}

/**
 * Time from the event, signed: `−5.00 s`, `+3 ms`, `−40 µs`; `0 s` is the event's own instant alone.
 * @param {number} us microseconds
 * @param {number} [resolutionUs] the smallest difference that has to show; of what is less, its first digit
 */
export function relative(us, resolutionUs = 1000) {
  const size = Math.abs(us);
  // An instant is told to the microsecond.
  if (size < 0.5) return '0 s';
  const sign = us < 0 ? '−' : '+';
  while (size < resolutionUs / 2) resolutionUs /= 10;
  if (size < 100 && resolutionUs <= 10) return `${sign}${Math.round(size)} µs`;
  if (size < 1_000_000 && resolutionUs < 100_000) {
    const places = resolutionUs < 100 ? 2 : resolutionUs < 1000 ? 1 : 0;
    return `${sign}${(size / 1000).toFixed(places)} ms`;
  }
  if (size < 120_000_000) {
    const places = resolutionUs >= 1_000_000 ? 0 : resolutionUs >= 100_000 ? 1 : resolutionUs >= 10_000 ? 2 : 3;
    return `${sign}${(size / 1e6).toFixed(places)} s`;
  }
  const minutes = Math.floor(size / 60e6);
  const rest = (size % 60e6) / 1e6;
  if (minutes < 120) return `${sign}${minutes}:${rest.toFixed(0).padStart(2, '0')} min`;
  return `${sign}${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** @param {number} value @param {number} width */
function pad(value, width) {
  return String(value).padStart(width, '0');
}

/**
 * The fields of an instant on the wall, in UTC or in the reader's zone.
 * @param {number} us
 * @param {boolean} local
 */
function fields(us, local) {
  const date = new Date(Math.floor(us / 1000));
  const micro = Math.floor(us) - Math.floor(us / 1000) * 1000;
  return local
    ? { y: date.getFullYear(), mo: date.getMonth() + 1, d: date.getDate(), h: date.getHours(), mi: date.getMinutes(), s: date.getSeconds(), ms: date.getMilliseconds(), micro }
    : { y: date.getUTCFullYear(), mo: date.getUTCMonth() + 1, d: date.getUTCDate(), h: date.getUTCHours(), mi: date.getUTCMinutes(), s: date.getUTCSeconds(), ms: date.getUTCMilliseconds(), micro };
}

/** `2026-11-24` @param {number} us @param {boolean} [local] */
export function day(us, local = false) {
  const f = fields(us, local);
  return `${f.y}-${pad(f.mo, 2)}-${pad(f.d, 2)}`;
}

/**
 * `03:12:07.416`
 * @param {number} us
 * @param {boolean} [local]
 * @param {0 | 3 | 6} [places] digits after the second
 */
export function clock(us, local = false, places = 3) {
  const f = fields(us, local);
  const fraction = places === 0 ? '' : places === 3 ? `.${pad(f.ms, 3)}` : `.${pad(f.ms, 3)}${pad(f.micro, 3)}`;
  return `${pad(f.h, 2)}:${pad(f.mi, 2)}:${pad(f.s, 2)}${fraction}`;
}

/** @param {number} us */
export function utc(us) {
  return isNumber(us) ? `${day(us)} ${clock(us)} UTC` : ABSENT;
}

/** The reader's zone, as the browser names it. */
export function zoneName() {
  try {
    return Intl.DateTimeFormat().resolvedOptions().timeZone || 'local time';
  } catch {
    return 'local time';
  }
}

/**
 * The reader's own clock and zone, or nothing when that is UTC.
 * @param {number} us
 */
export function localClock(us) {
  if (new Date(us / 1000).getTimezoneOffset() === 0) return '';
  return `${day(us, true) === day(us) ? '' : `${day(us, true)} `}${clock(us, true)} ${zoneName()}`;
}

/** A long id short enough for a line; the full one goes into the title attribute. @param {string | null | undefined} id */
export function shortId(id) {
  return !id ? '' : id.length > 16 ? id.slice(0, 12) : id;
}

/** The last component of a cgroup path. @param {string | null | undefined} path */
export function baseName(path) {
  if (!path) return '';
  const parts = path.split('/').filter(Boolean);
  return parts.length ? parts[parts.length - 1] : '/';
}
