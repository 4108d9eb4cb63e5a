// @ts-check
// feed.js - keeps one page fresh: loads, listens, loads again when something happened.

import { isAbort } from './api.js';
import { Live } from './live.js';

const SETTLE_MS = 400; // events come in bursts: a round closing makes a dozen
const TICK_MS = 5000; // steps and speeds change without events
const HIDE_MS = 10_000; // a browser has six connections to a server, for all of its tabs together

export class Feed {
  /** @type {Live | null} */ #live = null;
  #timer = 0;
  #tick = 0;
  #hiding = 0;
  #loading = false;
  #again = false;
  #over = false;
  #o;

  /**
   * @param {import('./app.js').App} app
   * @param {{run?: string, load: () => Promise<void>, event?: (topic: string, e: any) => void, busy: () => boolean,
   *   tick: () => void, broken: (e: unknown) => void}} o
   *   load: ask for everything shown; busy: something is going on, so look every few seconds; tick: renew "ago"
   */
  constructor(app, o) {
    this.app = app;
    this.#o = o;
  }

  /** @param {() => string} [after] the newest event id, once loaded */
  async start(after) {
    await this.#load();
    if (this.#over) return;
    this.#tick = setInterval(() => {
      if (document.hidden) return;
      if (this.#o.busy()) this.#load();
      else this.#o.tick();
    }, TICK_MS);
    document.addEventListener('visibilitychange', this.#onSeen);
    this.#listen(after?.() ?? '', false);
    this.#onSeen(); // it may have been opened behind another
  }

  /** A page that nobody sees gives its stream back, and loads anew when it is looked at again. */
  #onSeen = () => {
    clearTimeout(this.#hiding);
    if (document.hidden) {
      this.#hiding = setTimeout(() => {
        this.#live?.close();
        this.#live = null;
      }, HIDE_MS);
    } else if (!this.#live) {
      this.#listen('', true);
    }
  };

  /** @param {string} after @param {boolean} anew what happened before it is open is to be loaded */
  #listen(after, anew) {
    this.#live = new Live({
      run: this.#o.run, after,
      event: (topic, e) => {
        this.#o.event?.(topic, e);
        this.kick();
      },
      anew: () => this.kick(),
      poll: () => this.#load(true),
      state: (s) => {
        if (this.#over) return;
        if (anew && s.open) {
          anew = false;
          this.kick();
        }
        this.app.standing(s);
      },
    });
  }

  /** Load soon, once for many causes. */
  kick() {
    this.#timer ||= setTimeout(() => {
      this.#timer = 0;
      this.#load();
    }, SETTLE_MS);
  }

  /** @param {boolean} [raise] */
  async #load(raise = false) {
    if (this.#loading) {
      this.#again = true;
      return;
    }
    this.#loading = true;
    try {
      await this.#o.load();
      if (!this.#over) this.app.fresh();
    } catch (e) {
      if (this.#over || isAbort(e)) return;
      this.app.failed(e);
      if (!this.#over) this.#o.broken(e);
      if (raise) throw e;
    } finally {
      this.#loading = false;
      if (this.#again && !this.#over) this.kick();
      this.#again = false;
    }
  }

  destroy() {
    this.#over = true;
    clearTimeout(this.#timer);
    clearInterval(this.#tick);
    clearTimeout(this.#hiding);
    document.removeEventListener('visibilitychange', this.#onSeen);
    this.#live?.close();
  }
}
