// The event stream in a real browser: what happens when the server dies.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { demoWorld, serve } from '../fixture.mjs';
import { browser, open, ownPort, settled, skip, until } from './support.mjs';

const b = browser();
const port = ownPort(); // nobody has it while the server is away
const REFUSED = /ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_INCOMPLETE_CHUNKED|ERR_CONNECTION_RESET/;

/** What the log shows, oldest first. */
const messages = async (page) => (await page.locator('.events td[data-key=message]').allInnerTexts()).reverse();
const told = (world) => world.events.map((x) => x.e).filter((e) => e.run === 'r_01RUN').map((e) => e.message);

test('after the server was killed and started again the log has no gap and nothing twice', { skip }, async () => {
  const world = demoWorld();
  let server = await serve(world, port());
  const { page, close } = await open(b(), `${server.url}/runs/r_01RUN?tab=events`, { allow: REFUSED });
  await settled(page);
  world.emit('round', 'round_sealed', 'r_01RUN', 'before the server died', { round: 12 });
  await until('an event to be shown', async () => (await messages(page)).includes('before the server died'));
  assert.deepEqual(await messages(page), told(world));

  await server.close();
  await until('the page to say that it is stale', async () => (await page.locator('#live').getAttribute('data-state')) === 'stale');
  assert.match(await page.locator('#live').innerText(), /^Stale since \d\d:\d\d:\d\d$/);
  for (let i = 0; i < 5; i++) world.emit('round', 'round_closed', 'r_01RUN', `while it was away ${i}`, { round: 12 });
  server = await serve(world, port());
  await until('the stream to come back', async () => (await page.locator('#live').getAttribute('data-state')) === 'live', 30_000);
  world.emit('round', 'round_opened', 'r_01RUN', 'after it came back', { round: 13 });
  await until('the last event', async () => (await messages(page)).includes('after it came back'));
  assert.deepEqual(await messages(page), told(world));
  await close();
  await server.close();
});

test('a new round appears by itself, in numbers and on the curve', { skip }, async () => {
  const world = demoWorld();
  const server = await serve(world);
  const { page, close } = await open(b(), `${server.url}/runs/r_01RUN`);
  await settled(page);
  const run = world.runs.find((r) => r.id === 'r_01RUN');
  Object.assign(run, { round: 12, eval_ppl: 12.34, eval_loss: Math.log(12.34) });
  world.series.r_01RUN.eval_ppl[0].ns.push(12);
  world.series.r_01RUN.eval_ppl[0].ys.push(12.34);
  world.emit('round', 'round_closed', 'r_01RUN', 'round 12 closed', { round: 12 });
  await until('the new perplexity', async () => (await page.locator('.vitals [data-key=ppl] .big').innerText()) === '12.34');
  await until('the chart to follow', async () => (await page.locator('.chart[data-metric=eval_ppl] .value').innerText()) === '12.34');
  assert.match(await page.title(), /^12\.34 · tiny-fedavg/);
  await close();
  await server.close();
});

test('an unchanged answer costs a 304 and leaves the table alone', { skip }, async () => {
  const world = demoWorld();
  const server = await serve(world);
  const { page, close } = await open(b(), `${server.url}/runs/r_01RUN`);
  await settled(page);
  await page.evaluate(() => (document.querySelector('.data tbody tr').dataset.mine = 'same row'));
  const before = world.asked.length;
  world.emit('silo', 'silo_seen', 'r_01RUN', '');
  await until('the page to ask again', () => world.asked.slice(before).some((a) => a.includes('/rounds')));
  await settled(page);
  assert.equal(await page.locator('.data tbody tr').first().getAttribute('data-mine'), 'same row');
  await close();
  await server.close();
});
