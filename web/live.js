// @ts-check
// live.js - the event stream, how it stands, and polling while it is away.
//
// Events carry ids; the browser resumes after the last one it saw, and so do we when it gives up.
// An id seen before is dropped, so a replay shows nothing twice.

export const TOPICS = ['run', 'round', 'task', 'silo', 'checkpoint', 'metric'];
const POLL_MS = 10_000;
const RETRY_MS = [500, 1000, 2000, 4000, 8000, 15_000];
const REMEMBERED = 20_000;

/**
 * "12-7" before "12-10": ids are pairs of counts. @param {string} a @param {string} b
 */
export function compareIds(a, b) {
  const [a1, a2 = '0'] = a.split('-');
  const [b1, b2 = '0'] = b.split('-');
  return Number(a1) - Number(b1) || Number(a2) - Number(b2);
}

/** Remembers what was seen, up to a bound. */
export class Seen {
  #ids = new Set();
  /** @param {string} id @returns {boolean} true when new */
  add(id) {
    if (this.#ids.has(id)) return false;
    this.#ids.add(id);
    if (this.#ids.size > REMEMBERED) this.#ids.delete(this.#ids.values().next().value);
    return true;
  }
}

/**
 * What the page says about its connection. Pure.
 * @param {{open: boolean, polled: boolean, since: number | null}} s @param {(ms: number) => string} clock
 * @returns {{state: 'live' | 'polling' | 'reconnecting' | 'stale', text: string}}
 */
export function standing({ open, polled, since }, clock) {
  if (open) return { state: 'live', text: 'Live' };
  if (polled) return { state: 'polling', text: 'Polling' };
  if (since === null) return { state: 'reconnecting', text: 'Connecting' };
  return { state: 'stale', text: `Stale since ${clock(since)}` };
}

export class Live {
  #source = /** @type {EventSource | null} */ (null);
  #seen = new Seen();
  #last = '';
  #tries = 0;
  #closed = false;
  #wasOpen = false;
  #timer = 0;
  #poller = 0;
  #o;

  /**
   * @param {{run?: string, after?: string, event: (topic: string, event: any) => void, anew: () => void,
   *   poll: () => Promise<void>, state: (s: {open: boolean, polled: boolean, since: number | null}) => void}} o
   *   anew: something may have been missed; poll: ask for everything; state: open or not, since when
   */
  constructor(o) {
    this.#o = o;
    this.#last = o.after ?? '';
    this.since = /** @type {number | null} */ (null);
    this.#connect();
  }

  #connect() {
    const p = [];
    if (this.#o.run) p.push(`run=${encodeURIComponent(this.#o.run)}`);
    if (this.#last) p.push(`after=${encodeURIComponent(this.#last)}`);
    const source = new EventSource(`/api/v1/stream${p.length ? `?${p.join('&')}` : ''}`);
    this.#source = source;
    source.onopen = () => this.#opened();
    source.onerror = () => this.#dropped(source);
    for (const topic of TOPICS) {
      source.addEventListener(topic, (e) => this.#event(topic, /** @type {MessageEvent} */ (e)));
    }
    source.addEventListener('reset', () => this.#o.anew());
  }

  #opened() {
    this.#tries = 0;
    this.since = null;
    clearInterval(this.#poller);
    this.#poller = 0;
    this.#o.state({ open: true, polled: false, since: null });
    // Without an id to resume after, what happened meanwhile was not replayed.
    if (this.#wasOpen && !this.#last) this.#o.anew();
    this.#wasOpen = true;
  }

  /** @param {EventSource} source */
  #dropped(source) {
    if (this.#closed || source !== this.#source) return;
    this.since ??= Date.now();
    this.#o.state({ open: false, polled: false, since: this.#wasOpen ? this.since : null });
    if (!this.#poller) this.#poller = setInterval(() => this.#poll(), POLL_MS);
    // A refused stream (503 while the server starts, 401) is final for the browser: try again ourselves.
    if (source.readyState !== EventSource.CLOSED) return;
    const wait = RETRY_MS[Math.min(this.#tries++, RETRY_MS.length - 1)];
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => !this.#closed && this.#connect(), wait);
  }

  async #poll() {
    try {
      await this.#o.poll();
      if (this.#poller) this.#o.state({ open: false, polled: true, since: this.since });
    } catch {
      if (this.#poller) this.#o.state({ open: false, polled: false, since: this.since ?? Date.now() });
    }
  }

  /** @param {string} topic @param {MessageEvent} e */
  #event(topic, e) {
    let event;
    try {
      event = JSON.parse(e.data);
    } catch {
      return; // a torn line: the next refresh shows what it meant
    }
    const id = e.lastEventId || event.id;
    if (id) {
      if (!this.#seen.add(id)) return;
      this.#last = id;
    }
    this.#o.event(topic, event);
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    clearInterval(this.#poller);
    this.#poller = 0;
    this.#source?.close();
  }
}
