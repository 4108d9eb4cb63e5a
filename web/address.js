// @ts-check
// address.js - the address is the state: what is shown can be sent to a colleague. Pure.
//
// Defaults are left out and the order is fixed, so reading an address and writing it again gives the
// same one. Unknown parameters are dropped.

/**
 * @typedef {{page: 'runs' | 'run' | 'compare' | 'experiment' | 'silos' | 'silo' | 'audit' | 'tokens' | 'missing', id: string}} Route
 * @typedef {{runs: string[], q: string, state: string, sort: string, x: string, lx: boolean, ly: boolean | null,
 *   sm: number, xr: [number, number] | null, silos: boolean, same: boolean, hide: string[], tab: string,
 *   action: string, token: string, theme: string}} View
 */

/** @returns {View} */
export const defaults = () => ({
  runs: [], q: '', state: '', sort: '', x: 'round', lx: false, ly: null, sm: 0, xr: null,
  silos: false, same: false, hide: [], tab: '', action: '', token: '', theme: '',
});

const AXIS_NAMES = ['round', 'step', 'tokens', 'elapsed', 'time', 'bytes'];

/** @param {string} pathname @returns {Route} */
export function route(pathname) {
  const parts = pathname.split('/').filter(Boolean);
  const id = parts[1] === undefined ? '' : decode(parts[1]);
  if (parts.length === 0) return { page: 'runs', id: '' };
  if (parts.length === 1 && ['runs', 'login', 'experiments'].includes(parts[0])) return { page: 'runs', id: '' };
  if (parts.length === 1 && parts[0] === 'silos') return { page: 'silos', id: '' };
  if (parts.length === 1 && parts[0] === 'audit') return { page: 'audit', id: '' };
  if (parts.length === 1 && parts[0] === 'tokens') return { page: 'tokens', id: '' };
  if (parts.length === 1 && parts[0] === 'compare') return { page: 'compare', id: '' };
  if (parts.length === 2 && parts[0] === 'runs') return { page: 'run', id };
  if (parts.length === 2 && parts[0] === 'silos') return { page: 'silo', id };
  if (parts.length === 2 && parts[0] === 'experiments') return { page: 'experiment', id };
  return { page: 'missing', id: pathname };
}

/** @param {string} s */
function decode(s) {
  try {
    return decodeURIComponent(s);
  } catch {
    return s;
  }
}

/** @param {string} search @returns {View} */
export function read(search) {
  const p = new URLSearchParams(search);
  const v = defaults();
  v.runs = list(p.get('run'));
  v.q = p.get('q') ?? '';
  v.state = p.get('state') ?? '';
  v.sort = /^-?[a-z_]+$/.test(p.get('sort') ?? '') ? /** @type {string} */ (p.get('sort')) : '';
  v.x = AXIS_NAMES.includes(p.get('x') ?? '') ? /** @type {string} */ (p.get('x')) : 'round';
  v.lx = p.get('lx') === '1';
  v.ly = p.get('ly') === '1' ? true : p.get('ly') === '0' ? false : null;
  const sm = Number(p.get('sm'));
  v.sm = sm > 0 && sm <= 0.999 ? sm : 0;
  v.xr = readRange(p.get('xr'));
  v.silos = p.get('silos') === '1';
  v.same = p.get('same') === '1';
  v.hide = list(p.get('hide'));
  v.tab = /^[a-z]+$/.test(p.get('tab') ?? '') ? /** @type {string} */ (p.get('tab')) : '';
  v.action = /^[a-z_]{1,40}$/.test(p.get('action') ?? '') ? /** @type {string} */ (p.get('action')) : '';
  v.token = /^k_\w{1,40}$/.test(p.get('token') ?? '') ? /** @type {string} */ (p.get('token')) : '';
  v.theme = ['light', 'dark'].includes(p.get('theme') ?? '') ? /** @type {string} */ (p.get('theme')) : '';
  return v;
}

/** @param {View} v @returns {string} '' or '?…' */
export function write(v) {
  /** @type {string[]} */
  const out = [];
  const put = (/** @type {string} */ k, /** @type {string} */ s) => out.push(`${k}=${escape(s)}`);
  if (v.runs.length) put('run', v.runs.join(','));
  if (v.q) put('q', v.q);
  if (v.state) put('state', v.state);
  if (v.sort) put('sort', v.sort);
  if (v.x !== 'round') put('x', v.x);
  if (v.lx) put('lx', '1');
  if (v.ly !== null) put('ly', v.ly ? '1' : '0');
  if (v.sm) put('sm', String(v.sm));
  if (v.xr) put('xr', v.xr.map(short).join('~'));
  if (v.silos) put('silos', '1');
  if (v.same) put('same', '1');
  if (v.hide.length) put('hide', v.hide.join(','));
  if (v.tab) put('tab', v.tab);
  if (v.action) put('action', v.action);
  if (v.token) put('token', v.token); // its id: the secret is never in an address
  if (v.theme) put('theme', v.theme);
  return out.length ? `?${out.join('&')}` : '';
}

/** Six digits place an edge within a pixel, and keep the address readable. @param {number} v */
const short = (v) => String(Number(v.toPrecision(v > 1e9 && v < 1e10 ? 11 : 6)));

/** @param {string | null} s @returns {[number, number] | null} */
function readRange(s) {
  const m = /^(-?[\d.]+(?:e[+-]?\d+)?)~(-?[\d.]+(?:e[+-]?\d+)?)$/.exec(s ?? '');
  if (!m) return null;
  const [a, b] = [Number(m[1]), Number(m[2])];
  return Number.isFinite(a) && Number.isFinite(b) && a < b ? [a, b] : null;
}

/** @param {string | null} s */
const list = (s) => [...new Set((s ?? '').split(',').filter(Boolean))];

/** Percent-encode, but leave commas and tildes readable. @param {string} s */
const escape = (s) => encodeURIComponent(s).replace(/%2C/g, ',');

/** @param {string} id */
export const runPath = (id) => `/runs/${encodeURIComponent(id)}`;
/** @param {string} id */
export const siloPath = (id) => `/silos/${encodeURIComponent(id)}`;
/** @param {string} name */
export const experimentPath = (name) => `/experiments/${encodeURIComponent(name)}`;
/** @param {string[]} ids */
export const comparePath = (ids) => `/compare${write({ ...defaults(), runs: ids })}`;
