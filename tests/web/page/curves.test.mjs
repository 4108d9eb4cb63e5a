// What a chart shows and how it is read, zoomed and taken away.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import { perplexity } from '../../../web/format.js';
import { PALETTE } from '../../../web/theme.js';
import { demoWorld, serve } from '../fixture.mjs';
import { area, browser, open, painted, settled, skip, until } from './support.mjs';

const b = browser();
let world;
let server;
before(async () => {
  world = demoWorld();
  server = await serve(world);
});
after(() => server.close());

const run = async (search = '', o = {}) => {
  const p = await open(b(), `${server.url}/runs/r_01RUN${search}`, o);
  await settled(p.page);
  return p;
};
/** The axis labels are on the canvas: the y range is read off where a value is drawn instead. */
const values = () => world.series.r_01RUN.eval_ppl[0].ys;

for (const scheme of ['light', 'dark']) {
  test(`the curve is painted in its colour, ${scheme}`, { skip }, async () => {
    const { page, close } = await run('', { scheme });
    assert.ok((await painted(page, 'eval_ppl', PALETTE[scheme][0])) > 500);
    assert.ok((await painted(page, 'train_loss', PALETTE[scheme][0])) > 100);
    assert.ok((await painted(page, 'train_loss', PALETTE[scheme][1])) > 100, 'the second line of the loss chart');
    await close();
  });
}

test('hovering tells the value that the API gave', { skip }, async () => {
  const { page, close } = await run();
  const box = await area(page, 'eval_ppl');
  const rounds = world.series.r_01RUN.eval_ppl[0].ns;
  for (const n of [2, 7, 11]) {
    await page.mouse.move(box.x + (box.width * n) / rounds.at(-1) - (n === 11 ? 1 : 0), box.y + 60);
    await until(`the value of round ${n}`, async () => (await page.locator('.chart[data-metric=eval_ppl] .tip-head').innerText().catch(() => '')) === `round ${n}`);
    assert.equal(await page.locator('.chart[data-metric=eval_ppl] .tip-row b').innerText(), perplexity(values()[n]));
  }
  await close();
});

test('the other charts show the same place', { skip }, async () => {
  const { page, close } = await run();
  const box = await area(page, 'eval_ppl');
  await page.mouse.move(box.x + box.width / 2, box.y + 60);
  await page.locator('.chart[data-metric=train_loss] .cross').waitFor();
  assert.equal(await page.locator('.tip:visible').count(), 1, 'one tooltip only');
  await page.mouse.move(2, 2);
  await until('the cursors to go', async () => (await page.locator('.cross:visible').count()) === 0);
  await close();
});

test('a tooltip stays while new numbers come', { skip }, async () => {
  const { page, close } = await run();
  const box = await area(page, 'eval_ppl');
  await page.mouse.move(box.x + box.width / 2, box.y + 60);
  await page.locator('.tip:visible').waitFor();
  const before = world.asked.length;
  world.emit('metric', 'eval_done', 'r_01RUN', 'evaluated');
  await until('the page to ask again', () => world.asked.slice(before).some((a) => a.includes('/series')));
  await settled(page);
  assert.equal(await page.locator('.tip:visible').count(), 1);
  await close();
});

async function drag(page, metric, from, to) {
  const box = await area(page, metric);
  await page.mouse.move(box.x + box.width * from, box.y + 40);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * ((from + to) / 2), box.y + 60, { steps: 4 });
  await page.mouse.move(box.x + box.width * to, box.y + 60, { steps: 4 });
  await page.mouse.up();
}

test('dragging zooms all charts, asks for that part alone, and keeps y on what is visible', { skip }, async () => {
  const { page, close } = await run();
  const before = world.asked.length;
  await drag(page, 'eval_ppl', 0.5, 0.9);
  await page.waitForURL(/[?&]xr=5\.\d+~9\.\d+/);
  await until('the zoomed series', () => world.asked.slice(before).filter((a) => /series\?.*from=5/.test(a)).length >= 4);
  await settled(page);
  // The highest visible value lies near the top, where before it was in the lower half.
  const first = Math.ceil(Number(/xr=([\d.]+)/.exec(page.url())[1]));
  const [x0, x1] = /xr=([\d.]+)~([\d.]+)/.exec(page.url()).slice(1).map(Number);
  const box = await area(page, 'eval_ppl');
  await page.mouse.move(box.x + (box.width * (first - x0)) / (x1 - x0), box.y + 5);
  // Drawn in the next frame: before it the dot is where the drag left it.
  await until('the cursor', async () => (await page.locator('.chart[data-metric=eval_ppl] .tip-head').innerText().catch(() => '')) === `round ${first}`);
  const dot = await page.locator('.chart[data-metric=eval_ppl] .marks i').boundingBox();
  assert.ok(dot.y - box.y < box.height * 0.25, `the dot is ${Math.round(dot.y - box.y)} of ${Math.round(box.height)} px down`);
  await page.locator('.chart[data-metric=eval_ppl] .over').dblclick();
  await page.waitForURL((u) => !u.search.includes('xr='));
  await page.goBack();
  await page.waitForURL(/xr=/);
  await page.getByRole('button', { name: 'Reset zoom' }).first().click();
  await page.waitForURL((u) => !u.search.includes('xr='));
  await close();
});

test('a zoom taken back before its answer leaves the whole curve', { skip }, async () => {
  const { page, close } = await run();
  let held = 0;
  let go = () => {};
  const gate = new Promise((resolve) => (go = resolve));
  await page.route(/series\?.*from=/, async (route) => {
    held++;
    await gate;
    await route.continue().catch(() => {}); // the page may have given it up
  });
  await drag(page, 'eval_ppl', 0.5, 0.9);
  await until('the zoomed series to be asked for', () => held >= 4);
  await page.locator('.chart[data-metric=eval_ppl] .over').dblclick();
  await page.waitForURL((u) => !u.search.includes('xr='));
  go();
  await page.waitForTimeout(1000);
  const box = await area(page, 'eval_ppl');
  await page.mouse.move(box.x + box.width / 2, box.y + 5);
  await page.mouse.move(box.x + 2, box.y + 5);
  await until('a value at the left', async () => /^round [01]$/.test(await page.locator('.chart[data-metric=eval_ppl] .tip-head').innerText().catch(() => '')));
  await close();
});

test('the address holds the whole state: opened anew it shows and says the same', { skip }, async () => {
  const search = '?x=tokens&ly=0&sm=0.9&xr=500000~2000000&silos=1&hide=s_01B&tab=events';
  const { page, close } = await run(search);
  assert.equal(new URL(page.url()).search, search);
  assert.equal(await page.locator('.segmented button[aria-pressed=true]').innerText(), 'Tokens');
  assert.equal(await page.getByRole('button', { name: 'Per silo' }).getAttribute('aria-pressed'), 'true');
  assert.equal(await page.locator('.chart[data-metric=eval_ppl] .tool.word[aria-pressed]').getAttribute('aria-pressed'), 'false');
  assert.equal(await page.locator('.chart[data-metric=eval_ppl] .key[data-key=s_01B]').getAttribute('aria-pressed'), 'false');
  assert.equal(await page.getByRole('tab', { name: 'Events' }).getAttribute('aria-selected'), 'true');
  assert.equal(await page.locator('.smooth output').innerText(), '0.9');
  await page.getByRole('button', { name: 'Elapsed' }).click();
  await page.waitForURL(/x=elapsed/);
  assert.ok(!page.url().includes('xr='), 'a range in tokens means nothing in seconds');
  await close();
});

test('smoothing keeps the raw line faint behind and is told', { skip }, async () => {
  const { page, close } = await run('?sm=0.9');
  assert.match(await page.locator('.chart[data-metric=eval_ppl] .note').innerText(), /smoothed 0\.9 \(the loss is smoothed/);
  const box = await area(page, 'eval_ppl');
  await page.mouse.move(box.x + box.width / 2, box.y + 60);
  assert.match(await page.locator('.chart[data-metric=eval_ppl] .tip-row').innerText(), /raw/);
  const slider = page.getByLabel('Smoothing');
  await slider.fill('0');
  await page.waitForURL((u) => !u.search.includes('sm='));
  await close();
});

test('per silo: a line each, the legend hides one and Alt-click keeps one', { skip }, async () => {
  const { page, close } = await run('?silos=1');
  const keys = page.locator('.chart[data-metric=eval_ppl] .key');
  assert.equal(await keys.count(), 6);
  await keys.nth(1).click();
  await page.waitForURL(/hide=s_01A/);
  await keys.nth(2).click({ modifiers: ['Alt'] });
  await until('one line', async () => (await page.locator('.chart[data-metric=eval_ppl] .key[aria-pressed=true]').count()) === 1);
  await keys.nth(2).click({ modifiers: ['Alt'] });
  await until('all lines', async () => (await page.locator('.chart[data-metric=eval_ppl] .key[aria-pressed=true]').count()) === 6);
  await close();
});

test('on a log axis null, zero and NaN are gaps, not errors', { skip }, async () => {
  world.addRun('r_01GAPS', 'gaps', { closed: 6 });
  world.setSeries('r_01GAPS', 'eval_ppl', [0, 1, 2, 3, 4, 5, 6], [900, 0, null, NaN, 50, 40, -3]);
  const { page, close } = await open(b(), `${server.url}/runs/r_01GAPS`);
  await settled(page);
  assert.ok((await painted(page, 'eval_ppl', PALETTE.light[0])) > 50);
  assert.match(await page.locator('.chart[data-metric=eval_ppl] .note').innerText(), /zero and below/);
  const box = await area(page, 'eval_ppl');
  await page.mouse.move(box.x + (box.width * 2.2) / 6, box.y + 40);
  await page.locator('.chart[data-metric=eval_ppl] .tip').waitFor();
  assert.equal(await page.locator('.chart[data-metric=eval_ppl] .tip-row b').innerText(), '50.00');
  await page.getByRole('button', { name: 'Log x' }).click();
  await page.waitForURL(/lx=1/);
  await settled(page);
  await close();
});

test('PNG is a picture of the chart, CSV has every point', { skip }, async () => {
  const { page, close } = await run();
  const [png] = await Promise.all([page.waitForEvent('download'), page.getByRole('button', { name: 'Perplexity: save as PNG' }).click()]);
  const bytes = await readFile(await png.path());
  assert.equal(bytes.subarray(1, 4).toString(), 'PNG');
  assert.ok(bytes.readUInt32BE(16) > 600 && bytes.readUInt32BE(20) > 300, 'width and height');
  assert.equal(png.suggestedFilename(), 'tiny-fedavg-eval_ppl.png');
  const [csv] = await Promise.all([page.waitForEvent('download'), page.getByRole('link', { name: 'Perplexity: CSV, every point' }).click()]);
  const lines = (await readFile(await csv.path(), 'utf8')).trim().split('\r\n');
  assert.equal(lines.length, 1 + values().length);
  assert.equal(lines[1].split(',').at(-1), String(values()[0]));
  await close();
});

test('the table behind a chart has its numbers', { skip }, async () => {
  const { page, close } = await run();
  await page.getByRole('button', { name: 'Perplexity: view data' }).click();
  const cells = page.locator('.chart[data-metric=eval_ppl] .chart-table tbody tr');
  assert.equal(await cells.count(), values().length);
  assert.deepEqual(await cells.first().locator('td').allInnerTexts(), ['ppl', 'round 11', perplexity(values()[11])]);
  await close();
});
