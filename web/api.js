// @ts-check
// api.js - the server's API as functions: problems become ApiError, an unchanged answer the same object.

const JSON_TYPE = 'application/json';
const WAIT_MS = 30_000;

/** What a problem document (RFC 9457) says. */
export class ApiError extends Error {
  /** @param {number} status @param {Record<string, any>} problem */
  constructor(status, problem) {
    super(problem.detail || problem.title || `the server answered ${status}`);
    this.status = status;
    this.code = problem.code ?? '';
    this.hint = problem.hint ?? '';
    this.errors = problem.errors ?? [];
    this.instance = problem.instance ?? '';
  }
}

/** The server could not be reached, or hung up. */
export class Unreachable extends Error {}

/** @param {unknown} e a request that was no longer wanted */
export const isAbort = (e) => e instanceof DOMException && e.name === 'AbortError';

/** @type {Map<string, {etag: string, data: any}>} */
const kept = new Map();
const KEPT_MOST = 200;

/** @param {string} method @param {string} path @param {{body?: unknown, signal?: AbortSignal, etag?: string, key?: string}} [o] */
async function send(method, path, { body, signal, etag, key } = {}) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), WAIT_MS);
  const pass = () => stop.abort();
  signal?.addEventListener('abort', pass);
  if (signal?.aborted) stop.abort();
  /** @type {Record<string, string>} */
  const headers = { Accept: JSON_TYPE };
  if (body !== undefined) headers['Content-Type'] = JSON_TYPE;
  if (etag) headers['If-None-Match'] = etag;
  if (key) headers['Idempotency-Key'] = key;
  try {
    const answer = await fetch(path, {
      method, headers, signal: stop.signal, cache: 'no-store', credentials: 'same-origin',
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    if (answer.status === 304 || answer.status === 204) return { answer, data: null };
    const text = await answer.text();
    if (!answer.ok) throw new ApiError(answer.status, parsed(text) ?? { title: answer.statusText });
    return { answer, data: text ? JSON.parse(text) : null };
  } catch (e) {
    if (e instanceof ApiError || signal?.aborted) throw e;
    throw new Unreachable(stop.signal.aborted ? 'the server did not answer in time' : 'the server cannot be reached');
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', pass);
  }
}

/** @param {string} text */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/**
 * While nothing changed, the answer is the very same object: callers compare with ===.
 * @param {string} path @param {AbortSignal} [signal] @returns {Promise<any>}
 */
export async function get(path, signal) {
  const known = kept.get(path);
  const { answer, data } = await send('GET', path, { signal, etag: known?.etag });
  if (answer.status === 304 && known) return known.data;
  const etag = answer.headers.get('ETag');
  kept.delete(path);
  if (etag) {
    kept.set(path, { etag, data });
    if (kept.size > KEPT_MOST) kept.delete(/** @type {string} */ (kept.keys().next().value));
  }
  return data;
}

/** @param {string} path @param {unknown} body @param {string} [key] the same one again gets the first answer */
export const post = async (path, body, key) => (await send('POST', path, { body, key })).data;

/** @param {string} path */
export const remove = async (path) => (await send('DELETE', path)).data;

/** Every page of a list, up to `most` items. @param {string} path @param {number} most @param {AbortSignal} [signal] */
export async function all(path, most, signal) {
  const join = path.includes('?') ? '&' : '?';
  const first = await get(`${path}${join}limit=${Math.min(most, 1000)}`, signal);
  if (!first.next_cursor || first.items.length >= most) return first.items;
  const items = [...first.items];
  let cursor = first.next_cursor;
  while (cursor && items.length < most) {
    const page = await get(`${path}${join}limit=1000&cursor=${encodeURIComponent(cursor)}`, signal);
    items.push(...page.items);
    cursor = page.items.length ? page.next_cursor : null;
  }
  return items;
}

/** Forget what was kept: another person may have logged in. */
export const forget = () => kept.clear();

/**
 * @typedef {{runs: string[], metric: string, x: string, log?: boolean, from?: number | null, to?: number | null,
 *   points?: number, smooth?: number, silo?: string}} SeriesQuery
 */

/** @param {SeriesQuery} q @param {boolean} csv */
export function seriesPath(q, csv) {
  const p = [`run=${q.runs.map(encodeURIComponent).join(',')}`, `metric=${q.metric}`, `x=${q.x}`];
  if (q.log) p.push('scale=log');
  if (q.from !== null && q.from !== undefined) p.push(`from=${q.from}`);
  if (q.to !== null && q.to !== undefined) p.push(`to=${q.to}`);
  if (!csv && q.points) p.push(`points=${q.points}`);
  if (q.smooth) p.push(`smooth=${q.smooth}`);
  if (q.silo) p.push(`silo=${q.silo}`);
  return `/api/v1/series${csv ? '.csv' : ''}?${p.join('&')}`;
}

/**
 * The login token of a printed address is what follows '#': never sent by the browser, wiped before use.
 * @param {string} hash
 */
export function tokenOf(hash) {
  const m = /^#(?:token=)?([\w.~+/=-]{16,})$/.exec(hash);
  return m ? m[1] : '';
}
