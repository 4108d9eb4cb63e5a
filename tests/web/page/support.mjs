// support.mjs - a browser for page tests, and a page that remembers what went wrong in it.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { accessSync, constants } from 'node:fs';
import { after, before } from 'node:test';
import { fileURLToPath } from 'node:url';

const PLACES = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/chromium-browser'].filter(Boolean);
const executable = PLACES.find((p) => {
  try {
    accessSync(p, constants.X_OK);
    return true;
  } catch {
    return false;
  }
});

let playwright = null;
try {
  playwright = await import('playwright-core');
} catch { /* said below */ }

/** Why there can be no page tests here, or false. */
export const skip = !executable ? 'no Chromium on this machine' : !playwright ? 'playwright-core is not installed (npm ci --prefix tests/web)' : false;

/** One browser for the file. @returns {() => import('playwright-core').Browser} */
export function browser() {
  let b;
  before(async () => {
    if (skip) return;
    const root = process.getuid?.() === 0;
    b = await playwright.chromium.launch({ executablePath: executable, args: root ? ['--no-sandbox'] : [], env: { ...process.env, TZ: 'UTC' } });
  });
  after(async () => {
    // What a failed test left open must not keep the file from ending.
    setTimeout(() => process.exit(), 5000).unref();
    await b?.close();
  });
  return () => b;
}

/** A port that, with the one after it, no other test has while this file runs. @returns {() => number} */
export function ownPort() {
  let holder;
  let port;
  before(async () => {
    if (skip) return;
    holder = spawn('python3', ['-B', fileURLToPath(new URL('../../support/ports.py', import.meta.url))], { stdio: ['pipe', 'pipe', 'inherit'] });
    port = Number(await once(holder.stdout, 'data'));
  });
  after(() => holder?.stdin.end());
  return () => port;
}

/**
 * Open an address; what the page complains about is kept in `wrong`.
 * @param {import('playwright-core').Browser} b @param {string} url @param {{width?: number, height?: number, scheme?: 'light' | 'dark', touch?: boolean, allow?: RegExp}} [o]
 */
export async function open(b, url, { width = 1280, height = 900, scheme = 'light', touch = false, allow } = {}) {
  const context = await b.newContext({ viewport: { width, height }, colorScheme: scheme, timezoneId: 'UTC', locale: 'en-GB', hasTouch: touch, acceptDownloads: true });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  const wrong = [];
  // Reading pixels back is the tests' doing, not the page's.
  const note = (text) => allow?.test(text) || text.includes('willReadFrequently') || wrong.push(text);
  page.on('console', (m) => ['error', 'warning'].includes(m.type()) && note(`console: ${m.text()}`));
  page.on('pageerror', (e) => note(`uncaught: ${e.message}`));
  page.on('dialog', (d) => {
    note(`dialog: ${d.message()}`);
    d.dismiss();
  });
  page.on('response', (r) => r.status() >= 400 && note(`${r.status()} ${r.url()}`));
  await page.goto(url);
  return { page, wrong, close: async () => {
    await context.close();
    assert.deepEqual(wrong, [], 'the page complained');
  } };
}

/** Until the page is loaded and drawn: nothing is busy and the header says it is live. */
export async function settled(page, state = 'live') {
  await page.waitForFunction((s) => document.getElementById('live')?.dataset.state === s && !document.querySelector('[aria-busy]'), state);
  await page.evaluate(() => new Promise((ok) => requestAnimationFrame(() => requestAnimationFrame(ok))));
}

/** How many pixels of a chart's canvas have nearly this colour. @param {string} metric @param {string} hex */
export const painted = (page, metric, hex) => page.evaluate(([m, c]) => {
  const canvas = document.querySelector(`.chart[data-metric="${m}"] canvas`);
  if (!canvas) return 0;
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16));
  let n = 0;
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] > 200 && Math.abs(data[i] - r) < 12 && Math.abs(data[i + 1] - g) < 12 && Math.abs(data[i + 2] - b) < 12) n++;
  }
  return n;
}, [metric, hex]);

/** The plotting area of a chart. @param {string} metric */
export const area = (page, metric) => page.locator(`.chart[data-metric="${metric}"] .over`).boundingBox();

/** Wait until fn() is truthy. */
export async function until(what, fn, ms = 60_000) {
  const end = Date.now() + ms;
  for (;;) {
    const v = await fn();
    if (v) return v;
    if (Date.now() > end) assert.fail(`waited in vain for: ${what}`);
    await new Promise((ok) => setTimeout(ok, 30));
  }
}
