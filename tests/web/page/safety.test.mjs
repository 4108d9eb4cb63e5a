// Strangers' names, who may do what, and people who do not use a mouse or do not see.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';

import { PALETTE } from '../../../web/theme.js';
import { demoWorld, HOSTILE, serve } from '../fixture.mjs';
import { browser, open, painted, settled, skip, until } from './support.mjs';

const b = browser();
let world;
let server;
before(async () => {
  world = demoWorld();
  server = await serve(world);
});
after(() => server.close());

const ROUTES = ['/', '/runs/r_01RUN', '/runs/r_01RUN?silos=1&tab=silos', '/runs/r_01RUN?tab=events', '/runs/r_01RUN?tab=checkpoints', '/runs/r_01RUN?tab=spec',
  '/compare?run=r_01RUN,r_01OLD&same=1', '/experiments/demo', '/silos', '/silos/s_01C', '/tokens', '/audit', '/nothing/is/here'];

/** Loaded and drawn; the page for what does not exist has nothing to load. */
const arrived = (page, route) => (route.startsWith('/nothing') ? page.locator('h1').waitFor() : settled(page));

const axe = skip ? '' : await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** What axe finds on the page, by that rule or by all. */
async function findings(page, rule) {
  const { violations } = await page.evaluate((only) => window.axe.run(only ? { runOnly: [only] } : {}), rule);
  return violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.html.slice(0, 160)).join(' | ')}`);
}

for (const route of ROUTES) {
  test(`${route}: no console error, no 404; axe finds nothing, nor in dark colours`, { skip }, async () => {
    const { page, close } = await open(b(), server.url + route);
    await arrived(page, route);
    assert.ok((await page.locator('h1').innerText()).length > 0);
    await page.evaluate(axe);
    assert.deepEqual(await findings(page), []);
    const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const light = await background();
    await page.emulateMedia({ colorScheme: 'dark' });
    await until('dark colours', async () => (await background()) !== light);
    assert.deepEqual(await findings(page, 'color-contrast'), []);
    await close();
  });
}

test('a silo with a hostile name is text everywhere', { skip }, async () => {
  world.addRun('r_01EVIL', HOSTILE, { closed: 3, more: { experiment: HOSTILE, reason: HOSTILE, waiting_for: HOSTILE }, spec: { name: HOSTILE, [HOSTILE]: HOSTILE } });
  world.emit('run', 'run_started', 'r_01EVIL', HOSTILE);
  const places = ['/', '/silos', '/silos/s_01C', '/tokens', '/audit', '/runs/r_01EVIL?silos=1&tab=silos', '/runs/r_01EVIL?tab=events', '/runs/r_01EVIL?tab=spec', '/compare?run=r_01RUN,r_01EVIL',
    `/experiments/${encodeURIComponent(HOSTILE)}`];
  for (const place of places) {
    const { page, close } = await open(b(), server.url + place);
    await settled(page);
    assert.equal(await page.locator('main img').count(), 0, place);
    assert.ok(await page.getByText(HOSTILE).count(), `${place} shows the name`);
    await close();
  }
  const { page, close } = await open(b(), `${server.url}/runs/r_01EVIL?silos=1`);
  await settled(page);
  const over = page.locator('.chart[data-metric=eval_ppl] .over');
  await over.hover();
  await until('the tooltip', async () => (await page.locator('.tip-name', { hasText: HOSTILE }).count()) > 0);
  await page.locator('.expand').nth(1).click();
  await page.locator('.tasks', { hasText: HOSTILE }).first().waitFor();
  assert.equal(await page.locator('main img').count(), 0);
  await close();
  world.runs = world.runs.filter((r) => r.id !== 'r_01EVIL');
});

test('the page runs under its policy: nothing inline, nothing from elsewhere', { skip }, async () => {
  const answer = await fetch(server.url);
  assert.match(answer.headers.get('content-security-policy'), /default-src 'none'; script-src 'self'; style-src 'self'/);
  const html = await answer.text();
  assert.doesNotMatch(html, /<style|style=|onclick|<script>|https?:/);
});

test('axe finds nothing in dialogs, an open round and an open table', { skip }, async () => {
  const { page, close } = await open(b(), `${server.url}/runs/r_01RUN`);
  await settled(page);
  await page.evaluate(axe);
  await page.locator('.expand').nth(1).click();
  await page.locator('.tasks td').first().waitFor();
  await page.getByRole('button', { name: 'Perplexity: view data' }).click();
  assert.deepEqual(await findings(page), [], 'an open round and an open table');
  await page.getByRole('button', { name: 'Stop' }).click();
  assert.deepEqual(await findings(page), [], 'a dialog');
  await page.keyboard.press('Escape');
  await close();
});

test('at 360 × 640 nothing scrolls sideways', { skip }, async () => {
  for (const route of ROUTES) {
    const { page, close } = await open(b(), server.url + route, { width: 360, height: 640, touch: true });
    await arrived(page, route);
    const wide = await page.evaluate(() => {
      scrollTo(500, 0);
      return [document.documentElement.scrollWidth - innerWidth, scrollX];
    });
    assert.deepEqual(wide, [0, 0], route);
    await close();
  }
});

test('on a phone, targets are large enough for a finger and a finger reads the chart', { skip }, async () => {
  const { page, close } = await open(b(), `${server.url}/runs/r_01RUN`, { width: 360, height: 640, touch: true });
  await settled(page);
  const small = await page.evaluate(() => [...document.querySelectorAll('button, .button, select, .top nav a')].filter((e) => e.checkVisibility() && !e.closest('.legend'))
    .map((e) => [e.textContent, e.getBoundingClientRect()]).filter(([, r]) => r.height < 43.5 && r.height > 0).map(([t, r]) => `${t}: ${r.height}`));
  assert.deepEqual(small, []);
  const over = page.locator('.chart[data-metric=eval_ppl] .over');
  await over.scrollIntoViewIfNeeded();
  const box = await over.boundingBox();
  await page.touchscreen.tap(box.x + box.width / 2, box.y + box.height / 2);
  await page.locator('.chart[data-metric=eval_ppl] .tip').waitFor();
  await close();
});

test('a viewer is offered no action, an admin is asked before each', { skip }, async () => {
  const w = demoWorld({ role: 'viewer' });
  const s = await serve(w);
  const seen = await open(b(), `${s.url}/runs/r_01RUN`);
  await settled(seen.page);
  assert.equal(await seen.page.getByRole('button', { name: 'Pause' }).count(), 0);
  assert.equal(await seen.page.getByRole('link', { name: 'Audit' }).count(), 0);
  await seen.page.goto(`${s.url}/audit`);
  await seen.page.getByText('shown to those who log in with an admin token').waitFor();
  assert.equal(await seen.page.locator('table').count(), 0);
  assert.ok(!w.asked.some((a) => a.includes('/api/v1/audit')), 'nothing is asked for');
  await seen.close();
  w.role = 'admin';
  const { page, close } = await open(b(), `${s.url}/runs/r_01RUN`);
  await settled(page);
  await page.getByRole('button', { name: 'Pause' }).click();
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Cancel', 'the harmless answer has the focus');
  await page.keyboard.press('Escape');
  await until('the dialog to go', async () => (await page.locator('dialog').count()) === 0);
  assert.equal(w.runs.find((r) => r.id === 'r_01RUN').state, 'running');
  await page.getByRole('button', { name: 'Pause' }).click();
  await page.locator('dialog').getByRole('button', { name: 'Pause' }).click();
  await page.getByRole('button', { name: 'Resume' }).waitFor();
  assert.equal(w.runs.find((r) => r.id === 'r_01RUN').state, 'paused');
  await close();
  await s.close();
});

test('the printed address logs in and forgets its token', { skip }, async () => {
  const w = demoWorld({ token: 'photon_viewer_0123456789abcdef' });
  const s = await serve(w);
  const { page, close } = await open(b(), `${s.url}/#token=${w.token}`);
  await settled(page);
  assert.equal(page.url(), `${s.url}/`);
  assert.ok(!w.asked.some((a) => a.includes('photon_viewer')), 'the token is in no address');
  await page.reload();
  await settled(page);
  assert.equal(await page.evaluate(() => document.cookie + JSON.stringify({ ...localStorage })), '{}', 'the page keeps nothing');
  await close();
  await s.close();
});

test('without a login there is a form, a wrong token is told, the right one goes on to where one was', { skip }, async () => {
  const w = demoWorld({ token: 'photon_viewer_0123456789abcdef' });
  const s = await serve(w);
  const { page, close } = await open(b(), `${s.url}/runs/r_01RUN`, { allow: /401/ });
  await page.getByLabel('Token', { exact: true }).fill('wrong');
  await page.keyboard.press('Enter');
  await page.getByText('this token is not known').waitFor();
  await page.getByLabel('Token', { exact: true }).fill(w.token);
  await page.keyboard.press('Enter');
  await settled(page);
  assert.equal(await page.locator('h1').innerText(), 'tiny-fedavg');
  await page.getByRole('button', { name: 'Log out' }).click();
  await page.getByLabel('Token', { exact: true }).waitFor();
  await close();
  await s.close();
});

test('by keyboard alone: into a run, through a chart, along the tabs', { skip }, async () => {
  const { page, close } = await open(b(), server.url);
  await settled(page);
  const tabTo = async (what, fn) => {
    for (let i = 0; i < 80; i++) {
      await page.keyboard.press('Tab');
      if (await page.evaluate(fn)) return;
    }
    assert.fail(`no Tab leads to ${what}`);
  };
  await page.keyboard.press('/');
  await page.keyboard.type('fedavg');
  await page.waitForURL(/q=fedavg/);
  await tabTo('the run', () => document.activeElement.textContent === 'tiny-fedavg');
  await page.keyboard.press('Enter');
  await page.waitForURL(/runs\/r_01RUN/);
  await until('the curve', async () => (await painted(page, 'eval_ppl', PALETTE.light[0])) > 0); // the page that was left was live and quiet too
  await settled(page);
  await tabTo('the chart', () => document.activeElement.className === 'over');
  assert.ok(await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle !== 'none'), 'the focus is seen');
  await page.keyboard.press('End');
  await page.keyboard.press('ArrowLeft');
  await until('the value to be told', async () => /round 10/.test(await page.locator('.chart[data-metric=eval_ppl] [role=status]').innerText()));
  await page.keyboard.press('+');
  await page.waitForURL(/xr=/);
  await page.keyboard.press('Escape');
  await page.waitForURL((u) => !u.search.includes('xr='));
  await page.keyboard.press(']');
  await page.waitForURL(/sm=/);
  await tabTo('the tabs', () => document.activeElement.getAttribute('role') === 'tab');
  await page.keyboard.press('ArrowRight');
  await page.waitForURL(/tab=silos/);
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Silos');
  await close();
});

test('the chart has a name that tells its last value', { skip }, async () => {
  const { page, close } = await open(b(), `${server.url}/runs/r_01RUN`);
  await settled(page);
  assert.match(await page.locator('.chart[data-metric=eval_ppl] canvas').getAttribute('aria-label'), /^Perplexity by round\. Last values: ppl: [\d.]+ at round 11\.$/);
  await close();
});

test('a theme that was chosen stays, and the address can ask for one', { skip }, async () => {
  const { page, close } = await open(b(), server.url);
  await settled(page);
  await page.getByLabel('Theme').selectOption('dark');
  await page.reload();
  await settled(page);
  assert.equal(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), 'rgb(14, 17, 20)');
  await page.goto(`${server.url}/?theme=light`);
  await settled(page);
  assert.equal(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), 'rgb(245, 246, 248)');
  await close();
});
