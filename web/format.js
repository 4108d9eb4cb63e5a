// @ts-check
// format.js - numbers, times and sizes as people read them. Pure; an en dash stands for "unknown".

export const NONE = '–';

/** @param {unknown} v @returns {v is number} */
export const isNumber = (v) => typeof v === 'number' && Number.isFinite(v);

/**
 * A number with `digits` significant ones, never in scientific form, never with trailing zeros lost:
 * columns of figures keep their width.
 * @param {number} v @param {number} digits
 */
function significant(v, digits) {
  if (v === 0) return '0';
  const whole = Math.floor(Math.log10(Math.abs(v))) + 1;
  const text = v.toFixed(Math.min(20, Math.max(0, digits - whole)));
  // 9.996 rounds up into a further digit: take one decimal back.
  const grown = Math.floor(Math.log10(Math.abs(Number(text)))) + 1;
  return grown > whole ? v.toFixed(Math.min(20, Math.max(0, digits - grown))) : text;
}

/**
 * @param {unknown} v @param {string[]} units from ones upward, each 1000 times the one before
 * @param {string} gap
 */
function scaled(v, units, gap) {
  if (!isNumber(v)) return NONE;
  let n = v;
  let i = 0;
  while (i < units.length - 1 && Math.abs(n) >= 999.5) {
    n /= 1000;
    i++;
  }
  const text = i === 0 && Number.isInteger(n) ? String(n) : significant(n, 3);
  return units[i] ? `${text}${gap}${units[i]}` : text;
}

/** 4244000 → "4.24 MB": powers of ten, as links are sold. @param {unknown} v */
export const bytes = (v) => scaled(v, ['B', 'kB', 'MB', 'GB', 'TB', 'PB'], ' ');

/** 1228800 → "1.23 M". @param {unknown} v */
export const count = (v) => scaled(v, ['', 'k', 'M', 'B', 'T'], ' ');

/** 41000 → "41.0 k tok/s". @param {unknown} v */
export const rate = (v) => (isNumber(v) ? `${count(v)} tok/s` : NONE);

/** 1060864 → "1,060,864". @param {unknown} v */
export const exact = (v) => (isNumber(v) ? v.toLocaleString('en-GB') : NONE);

/** Four significant digits, but a perplexity above 10,000 is whole. @param {unknown} v */
export function perplexity(v) {
  if (!isNumber(v)) return NONE;
  return Math.abs(v) >= 9999.5 ? Math.round(v).toLocaleString('en-GB') : significant(v, 4);
}

/** @param {unknown} v */
export const loss = (v) => (isNumber(v) ? v.toFixed(4) : NONE);

/** Any other number: four significant digits, scientific where that is shorter. @param {unknown} v */
export function plain(v) {
  if (!isNumber(v)) return NONE;
  const a = Math.abs(v);
  if (a !== 0 && (a < 1e-4 || a >= 1e6)) return v.toExponential(2);
  return Number.isInteger(v) ? v.toLocaleString('en-GB') : significant(v, 4);
}

/** "0.4 s", "41 s", "3 min 12 s", "5 h 07 min", "2 d 4 h". @param {unknown} v seconds */
export function duration(v) {
  if (!isNumber(v)) return NONE;
  const sign = v < 0 ? '−' : '';
  const s = Math.abs(v);
  if (s < 0.9995) return s === 0 ? '0 s' : `${sign}${s < 0.01 ? Math.round(s * 1000) / 1000 : significant(s, 2)} s`;
  if (s < 59.95) return `${sign}${significant(s, s < 9.95 ? 2 : 3)} s`;
  const whole = Math.round(s);
  if (whole < 3600) return `${sign}${Math.floor(whole / 60)} min ${pad2(whole % 60)} s`;
  const minutes = Math.round(s / 60);
  if (minutes < 48 * 60) return `${sign}${Math.floor(minutes / 60)} h ${pad2(minutes % 60)} min`;
  const hours = Math.round(s / 3600);
  return `${sign}${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** One unit only, for axes and "ago": "40 s", "3 min", "5 h", "2 d". @param {unknown} v seconds */
export function shortDuration(v) {
  if (!isNumber(v)) return NONE;
  const sign = v < 0 ? '−' : '';
  const s = Math.abs(v);
  const [n, unit] =
    s < 60 ? [s, 's'] : s < 3600 ? [s / 60, 'min'] : s < 86400 ? [s / 3600, 'h'] : [s / 86400, 'd'];
  return `${sign}${Math.round(n * 10) / 10} ${unit}`;
}

/** @param {string | null | undefined} iso @param {number} nowMs */
export function ago(iso, nowMs) {
  const at = iso ? Date.parse(iso) : NaN;
  if (!Number.isFinite(at)) return NONE;
  const s = Math.floor((nowMs - at) / 1000);
  if (s < 3) return 'now'; // clocks differ by a little, in both directions
  if (s < 60) return `${s} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 48 * 3600) return `${Math.floor(s / 3600)} h ago`;
  return `${Math.floor(s / 86400)} d ago`;
}

/** @param {string | null | undefined} iso @param {number} nowMs */
export function until(iso, nowMs) {
  const at = iso ? Date.parse(iso) : NaN;
  if (!Number.isFinite(at)) return NONE;
  const s = (at - nowMs) / 1000;
  return s >= 0 ? `in ${shortDuration(Math.ceil(s))}` : `${shortDuration(Math.ceil(-s))} over`;
}

/** Local "2026-03-04 05:06:07". @param {string | number | null | undefined} at ISO, or Unix seconds */
export function stamp(at) {
  const d = new Date(typeof at === 'number' ? at * 1000 : at ?? NaN);
  if (Number.isNaN(d.getTime())) return NONE;
  return `${d.getFullYear()}-${pad2(d.getMonth() + 1)}-${pad2(d.getDate())} ${clock(d)}`;
}

/** The time alone when it is today. @param {number} at Unix seconds @param {number} nowMs */
export function when(at, nowMs) {
  const [day, time] = stamp(at).split(' ');
  return day === stamp(nowMs / 1000).split(' ')[0] ? time.slice(0, 5) : `${day} ${time.slice(0, 5)}`;
}

/** @param {Date} d */
export const clock = (d) => `${pad2(d.getHours())}:${pad2(d.getMinutes())}:${pad2(d.getSeconds())}`;

/** @param {number} n */
const pad2 = (n) => String(n).padStart(2, '0');

/** First 12 digits: enough to compare by eye; the whole is in the title. @param {string | null | undefined} hex */
export const digest = (hex) => (hex ? hex.slice(0, 12) : NONE);

/** @param {number} n @param {string} one @param {string} [many] */
export const plural = (n, one, many = `${one}s`) => `${n.toLocaleString('en-GB')} ${n === 1 ? one : many}`;

/** A spec value on one line. @param {unknown} v */
export function specValue(v) {
  if (v === null || v === undefined) return NONE;
  if (typeof v === 'object') return JSON.stringify(v);
  return v === '' ? '""' : String(v);
}

/**
 * {inner: {lr: 1}} → [["inner.lr", 1]], in the document's order.
 * @param {unknown} spec @param {string} [prefix] @returns {[string, unknown][]}
 */
export function flatten(spec, prefix = '') {
  if (spec === null || typeof spec !== 'object' || Array.isArray(spec)) return [[prefix, spec]];
  return Object.entries(spec).flatMap(([k, v]) => flatten(v, prefix ? `${prefix}.${k}` : k));
}
