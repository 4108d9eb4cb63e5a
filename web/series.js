// @ts-check
// series.js - what a chart is made of: metrics, axes, ticks, ranges, nearest points. Pure.

import * as f from './format.js';

/**
 * One line of a chart. `key` is what hides it in the address: run, silo or metric.
 * @typedef {{key: string, label: string, metric: string, run: string, silo: string | null, colour: string,
 *   dash: number[], width: number, xs: number[], ys: (number | null)[], smooth: (number | null)[] | null,
 *   mins: (number | null)[] | null, maxs: (number | null)[] | null, points: number, shown: number}} Line
 * @typedef {[number, number]} Range
 */

/**
 * `zero`: amounts, whose axis begins at zero, since their sizes are compared.
 * @type {Record<string, {label: string, log: boolean, zero?: boolean, format: (v: unknown) => string, short?: string}>}
 */
export const METRICS = {
  eval_ppl: { label: 'Perplexity', log: true, format: f.perplexity, short: 'ppl' },
  eval_loss: { label: 'Evaluation loss', log: false, format: f.loss, short: 'evaluation' },
  eval_bpb: { label: 'Bits per byte', log: false, format: f.loss },
  train_loss: { label: 'Training loss', log: false, format: f.loss, short: 'training' },
  grad_norm: { label: 'Gradient norm', log: true, format: f.plain },
  lr: { label: 'Learning rate', log: false, format: f.plain },
  tokens_per_s: { label: 'Tokens per second', log: false, zero: true, format: f.count },
  delta_norm: { label: 'Delta norm', log: false, format: f.plain },
  outer_step_norm: { label: 'Outer step norm', log: false, format: f.plain },
  upload_bytes: { label: 'Bytes received', log: false, zero: true, format: f.bytes, short: 'up' },
  download_bytes: { label: 'Bytes sent', log: false, zero: true, format: f.bytes, short: 'down' },
  download_s: { label: 'Download time', log: false, format: f.duration, zero: true },
  train_s: { label: 'Training time', log: false, format: f.duration, zero: true },
  upload_s: { label: 'Upload time', log: false, format: f.duration, zero: true },
  aggregate_s: { label: 'Aggregation time', log: false, format: f.duration, zero: true },
  round_s: { label: 'Round time', log: false, format: f.duration, zero: true },
};

/** @param {string} name */
export const metric = (name) => METRICS[name] ?? { label: name, log: false, zero: false, format: f.plain };

/** @type {Record<string, {label: string, axis: string, format: (v: unknown) => string}>} */
export const AXES = {
  round: { label: 'Round', axis: 'round', format: (v) => (f.isNumber(v) ? `round ${f.plain(v)}` : f.NONE) },
  step: { label: 'Step', axis: 'local steps', format: (v) => (f.isNumber(v) ? `step ${f.exact(v)}` : f.NONE) },
  tokens: { label: 'Tokens', axis: 'tokens', format: (v) => (f.isNumber(v) ? `${f.count(v)} tokens` : f.NONE) },
  elapsed: { label: 'Elapsed', axis: 'time since the start', format: f.duration },
  time: { label: 'Clock', axis: 'time', format: (v) => (f.isNumber(v) ? f.stamp(v) : f.NONE) },
  bytes: { label: 'Bytes', axis: 'bytes sent and received', format: f.bytes },
};

// ---- what can be drawn ---------------------------------------------------------------

/** What an axis cannot show is a gap rather than a lie. @param {unknown} v @param {boolean} log */
export const drawable = (v, log) => f.isNumber(v) && (!log || v > 0);

/** @param {Line} line the curve that is read off: smoothed where it is smoothed */
export const curve = (line) => line.smooth ?? line.ys;

/** Least index with xs[i] ≥ x, or xs.length. @param {number[]} xs @param {number} x */
export function lowerBound(xs, x) {
  let lo = 0;
  let hi = xs.length;
  while (lo < hi) {
    const mid = (lo + hi) >> 1;
    if (xs[mid] < x) lo = mid + 1;
    else hi = mid;
  }
  return lo;
}

/**
 * Index of the drawable point whose x is nearest, or -1.
 * @param {number[]} xs @param {(number | null)[]} ys @param {number} x @param {boolean} logX @param {boolean} logY
 */
export function nearest(xs, ys, x, logX, logY) {
  const at = lowerBound(xs, x);
  let left = at - 1;
  let right = at;
  while (left >= 0 && !(drawable(ys[left], logY) && drawable(xs[left], logX))) left--;
  while (right < xs.length && !(drawable(ys[right], logY) && drawable(xs[right], logX))) right++;
  if (left < 0) return right < xs.length ? right : -1;
  if (right >= xs.length) return left;
  const d = (/** @type {number} */ i) =>
    logX && x > 0 ? Math.abs(Math.log(xs[i]) - Math.log(x)) : Math.abs(xs[i] - x);
  return d(left) <= d(right) ? left : right;
}

// ---- ranges --------------------------------------------------------------------------

/** @param {Line[]} lines @param {boolean} log @returns {Range | null} from the first to the last x */
export function xRange(lines, log) {
  let lo = Infinity;
  let hi = -Infinity;
  for (const { xs } of lines) {
    const first = log ? lowerBound(xs, Number.MIN_VALUE) : 0;
    if (first >= xs.length) continue;
    lo = Math.min(lo, xs[first]);
    hi = Math.max(hi, xs[xs.length - 1]);
  }
  if (lo > hi) return null;
  if (lo < hi) return [lo, hi];
  return log ? [lo / 2, hi * 2] : [lo - 1, hi + 1];
}

/**
 * The y range of what can be seen between x0 and x1, padded by 4 %. A line that merely crosses the
 * window, with no point inside, counts by its neighbours.
 * @param {Line[]} lines @param {Range} x @param {boolean} log @param {boolean} [zero] @returns {Range | null}
 */
export function yRange(lines, [x0, x1], log, zero = false) {
  let lo = Infinity;
  let hi = -Infinity;
  const take = (/** @type {unknown} */ v) => {
    if (!drawable(v, log)) return;
    lo = Math.min(lo, /** @type {number} */ (v));
    hi = Math.max(hi, /** @type {number} */ (v));
  };
  for (const line of lines) {
    let from = lowerBound(line.xs, x0);
    let to = lowerBound(line.xs, x1);
    if (to < line.xs.length && line.xs[to] === x1) to++;
    if (from === to) {
      from = Math.max(0, from - 1);
      to = Math.min(line.xs.length, to + 1);
    }
    for (let i = from; i < to; i++) {
      take(line.ys[i]);
      if (line.smooth) take(line.smooth[i]);
      if (line.mins && line.maxs) {
        take(line.mins[i]);
        take(line.maxs[i]);
      }
    }
  }
  return lo > hi ? null : padded(zero && !log ? Math.min(0, lo) : lo, hi, log);
}

/** @param {number} lo @param {number} hi @param {boolean} log @returns {Range} */
export function padded(lo, hi, log) {
  if (log) {
    const pad = hi > lo ? (Math.log10(hi) - Math.log10(lo)) * 0.04 : 0.05;
    return [lo * 10 ** -pad, hi * 10 ** pad];
  }
  const pad = hi > lo ? (hi - lo) * 0.04 : Math.abs(lo) * 0.05 || 1;
  // Nothing measured here is below zero unless a value says so.
  return [lo >= 0 && lo - pad < 0 ? 0 : lo - pad, hi + pad];
}

/**
 * Zoom around a point of the axis.
 * @param {Range} range @param {number} at @param {number} factor < 1 zooms in @param {boolean} log @returns {Range}
 */
export function zoomed(range, at, factor, log) {
  const to = log ? Math.log : (/** @type {number} */ v) => v;
  const back = log ? Math.exp : (/** @type {number} */ v) => v;
  const c = to(at);
  return [back(c - (c - to(range[0])) * factor), back(c + (to(range[1]) - c) * factor)];
}

// ---- ticks ---------------------------------------------------------------------------

/** The step of 1, 2 or 5 × 10^n that gives at most `most` steps. @param {number} span @param {number} most */
export function step125(span, most) {
  const raw = span / Math.max(1, most);
  const ten = 10 ** Math.floor(Math.log10(raw));
  for (const m of [1, 2, 5, 10]) {
    if (m * ten >= raw * (1 - 1e-9)) return m * ten;
  }
  return 10 * ten;
}

/** @param {number} lo @param {number} hi @param {number} step @returns {number[]} */
function multiples(lo, hi, step) {
  const out = [];
  const slack = (hi - lo) * 1e-9;
  for (let i = Math.ceil((lo - slack) / step); i * step <= hi + slack && out.length < 1000; i++) {
    out.push(Number((i * step).toPrecision(12))); // 0.1 × 3 is not 0.30000000000000004
  }
  return out;
}

/** @param {number} lo @param {number} hi @param {number} most @param {boolean} [whole] no tick between two rounds */
export function linearTicks(lo, hi, most, whole = false) {
  if (!(hi > lo)) return [lo];
  const step = step125(hi - lo, most);
  return multiples(lo, hi, whole ? Math.max(1, step) : step);
}

/**
 * 1, 2, 5 in each decade; within one decade finer, over many decades coarser.
 * @param {number} lo @param {number} hi @param {number} most
 */
export function logTicks(lo, hi, most) {
  if (!(lo > 0 && hi > lo)) return lo > 0 ? [lo] : [];
  const from = Math.floor(Math.log10(lo));
  const to = Math.ceil(Math.log10(hi));
  for (const digits of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1, 3], [1]]) {
    const out = [];
    for (let e = from; e <= to; e++) {
      for (const d of digits) {
        const v = Number((d * 10 ** e).toPrecision(12));
        if (v >= lo * (1 - 1e-9) && v <= hi * (1 + 1e-9)) out.push(v);
      }
    }
    if (digits.length === 9 && out.length < 3) return linearTicks(lo, hi, most); // less than a decade
    if (digits.length === 9 && to - from > 1) continue; // 1-2-5 unless within about one decade
    if (out.length <= most) return out;
  }
  const every = Math.max(1, Math.ceil((to - from + 1) / most));
  const out = [];
  for (let e = Math.ceil(from / every) * every; e <= to; e += every) {
    if (10 ** e >= lo && 10 ** e <= hi) out.push(10 ** e);
  }
  return out;
}

const SECONDS = [
  1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800,
];

/** @param {number} span @param {number} most */
function secondsStep(span, most) {
  if (span / most < 1) return step125(span, most);
  return SECONDS.find((s) => span / s <= most) ?? 604800 * Math.max(1, step125(span / 604800, most));
}

/** @param {number} lo @param {number} hi @param {number} most seconds */
export const durationTicks = (lo, hi, most) => (hi > lo ? multiples(lo, hi, secondsStep(hi - lo, most)) : [lo]);

/**
 * Ticks at full local hours and days. @param {number} lo @param {number} hi Unix seconds @param {number} most
 * @param {number} [offset] what to add to UTC, in seconds
 */
export function clockTicks(lo, hi, most, offset = -60 * new Date(lo * 1000).getTimezoneOffset()) {
  if (!(hi > lo)) return [lo];
  return multiples(lo + offset, hi + offset, secondsStep(hi - lo, most)).map((t) => t - offset);
}

/** @param {string} x @param {number} lo @param {number} hi @param {number} most @param {boolean} log */
export function xTicks(x, lo, hi, most, log) {
  if (log) return logTicks(lo, hi, most);
  if (x === 'elapsed') return durationTicks(lo, hi, most);
  if (x === 'time') return clockTicks(lo, hi, most);
  return linearTicks(lo, hi, most, x === 'round' || x === 'step');
}

/** @param {string} x @param {number[]} ticks @returns {string[]} */
export function xTickLabels(x, ticks) {
  if (x === 'time') {
    const days = ticks.length > 1 && ticks[ticks.length - 1] - ticks[0] >= 2 * 86400;
    const fine = ticks.length > 1 && ticks[1] - ticks[0] < 60;
    return ticks.map((t) => {
      const [day, clock] = f.stamp(t).split(' ');
      return days ? day.slice(5) : fine ? clock : clock.slice(0, 5);
    });
  }
  if (x === 'elapsed') return ticks.map(f.shortDuration);
  if (x === 'bytes') return ticks.map((v) => trim(f.bytes(v)));
  return ticks.map((v) => trim(v >= 10000 ? f.count(v) : f.plain(v)));
}

/** Labels of a value axis; the zeros that only fill up to three digits go. @param {string} name @param {number[]} ticks */
export function yTickLabels(name, ticks) {
  const kind = metric(name).format;
  if (kind === f.bytes || kind === f.count || kind === f.duration) return ticks.map((v) => trim(kind(v)));
  const small = ticks.some((v) => v !== 0 && Math.abs(v) < 1e-3);
  return ticks.map((v) =>
    small && v !== 0 ? trim(v.toExponential(1).replace('e', ' e')).replace(' e', 'e') : trim(v >= 10000 ? f.count(v) : String(v)),
  );
}

/** "1.20 M" → "1.2 M". @param {string} text */
const trim = (text) => text.replace(/(\.\d*?)0+(?=\D|$)/, '$1').replace(/\.(?=\D|$)/, '');

// ---- smoothing -----------------------------------------------------------------------

/** Off, or 0.5 … 0.999: the slider is even in the length of memory, not in the factor. @param {number} at 0…100 */
export function smoothingOf(at) {
  if (at <= 0) return 0;
  return Math.min(0.999, Number((1 - 10 ** (-3 * Math.min(1, at / 100))).toFixed(4)));
}

/** @param {number} a @returns {number} 0…100 */
export function smoothingAt(a) {
  if (!(a > 0)) return 0;
  return Math.round((100 * -Math.log10(1 - Math.min(0.999, a))) / 3);
}

// ---- words ---------------------------------------------------------------------------

/** What a screen reader says of a chart. @param {string} title @param {string} x @param {Line[]} lines */
export function describe(title, x, lines) {
  const told = lines.slice(0, 6).map((line) => {
    const ys = curve(line);
    let i = ys.length - 1;
    while (i >= 0 && !f.isNumber(ys[i])) i--;
    return i < 0
      ? `${line.label}: no values yet`
      : `${line.label}: ${metric(line.metric).format(ys[i])} at ${AXES[x].format(line.xs[i])}`;
  });
  const rest = lines.length > 6 ? `; and ${lines.length - 6} more` : '';
  return lines.length === 0
    ? `${title}: nothing to show yet.`
    : `${title} by ${AXES[x].axis}. Last values: ${told.join('; ')}${rest}.`;
}

/** "1,500 of 1,000,000 points" when thinned, else ''. @param {Line[]} lines */
export function thinned(lines) {
  const points = lines.reduce((n, l) => n + l.points, 0);
  const shown = lines.reduce((n, l) => n + l.shown, 0);
  return shown < points ? `${f.exact(shown)} of ${f.exact(points)} points shown` : '';
}
