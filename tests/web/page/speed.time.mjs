// How long a chart of much takes, which is told alone: the other tests of the page may share the machine.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { PALETTE } from '../../../web/theme.js';
import { serve, World } from '../fixture.mjs';
import { browser, open, painted, settled, skip, until } from './support.mjs';

const b = browser();

/** Milliseconds until all four charts are painted, and until a zoom returns. @param {string} url */
async function one(url) {
  const start = Date.now();
  const { page, close } = await open(b(), url);
  await until('all four charts', async () => (await painted(page, 'train_loss', PALETTE.light[0])) > 20 && (await painted(page, 'eval_ppl', PALETTE.light[0])) > 20);
  const paint = Date.now() - start;
  await settled(page);
  assert.match(await page.locator('.chart[data-metric=train_loss] .note').innerText(), /30,000 of 20,000,000 points shown/);
  assert.equal(await page.locator('.chart[data-metric=eval_ppl] .key').count(), 20);
  const zoom = await page.evaluate(() => {
    const over = document.querySelector('.chart[data-metric=train_loss] .over');
    const from = performance.now();
    over.dispatchEvent(new KeyboardEvent('keydown', { key: '+', bubbles: true }));
    return performance.now() - from;
  });
  await close();
  return { paint, zoom };
}

test('twenty runs of a million points each: first paint and zoom', { skip }, async (t) => {
  const big = new World();
  big.addSilo('s_1', 'one');
  const ids = Array.from({ length: 20 }, (_, i) => {
    big.addRun(`r_${10 + i}`, `run ${i}`, { closed: 40, rounds: 40, state: 'finished', points: 1_000_000, floor: 2.8 + i / 40 });
    return `r_${10 + i}`;
  });
  const s = await serve(big);
  // A pause of the machine makes one try long, a slow page all of them.
  let paint = Infinity;
  let zoom = Infinity;
  for (let i = 0; i < 3 && !(paint < 6000 && zoom < 1000); i++) {
    const took = await one(`${s.url}/compare?run=${ids}`);
    t.diagnostic(`first paint ${took.paint} ms, zoom ${Math.round(took.zoom)} ms`);
    paint = Math.min(paint, took.paint);
    zoom = Math.min(zoom, took.zoom);
  }
  assert.ok(paint < 6000, `first paint took ${paint} ms`);
  assert.ok(zoom < 1000, `zoom took ${zoom} ms`);
  await s.close();
});
