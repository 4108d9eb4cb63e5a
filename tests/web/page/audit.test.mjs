// The audit log: newest first, page by page, filtered, for administrators.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { demoWorld, serve, World } from '../fixture.mjs';
import { browser, open, settled, skip, until } from './support.mjs';

const b = browser();

async function on(world, path, fn, o = {}) {
  const server = await serve(world);
  const { page, close } = await open(b(), server.url + path, o);
  await fn(page, server);
  await close();
  await server.close();
}

const column = (page, key) => page.locator(`.audit td[data-key=${key}]`).allInnerTexts();

test('who, what, on what, from where, and what came of it; names are links', { skip }, () => on(demoWorld(), '/audit', async (page) => {
  await settled(page);
  assert.deepEqual((await column(page, 'action')).slice(0, 4), ['run pause', 'run pause', 'access', 'checkpoint download']);
  assert.deepEqual((await column(page, 'object')).slice(0, 2), ['tiny-paused', 'tiny-fednesterov']);
  assert.deepEqual((await column(page, 'status')).slice(0, 3), ['done', 'refused, 409', 'refused, 401 and 1,204 more before it']);
  assert.equal((await column(page, 'who'))[2], 'a stranger');
  assert.equal((await column(page, 'who')).at(-1), 'photon-server', 'the first token is made by the server, not by a stranger');
  assert.equal((await column(page, 'address'))[2], '203.0.113.9');
  assert.ok((await column(page, 'object')).includes('token of hospital-a'));
  await page.getByRole('link', { name: 'hospital-a' }).click();
  await page.waitForURL(/silos\/s_01A/);
}));

test('one action alone, one person alone, both in the address, and back', { skip }, () => on(demoWorld(), '/audit', async (page) => {
  await settled(page);
  await page.getByLabel('Show', { exact: true }).selectOption('run_pause');
  await page.waitForURL(/action=run_pause/);
  await until('two rows', async () => (await column(page, 'action')).length === 2);
  await page.getByRole('button', { name: 'operator' }).first().focus();
  await page.keyboard.press('Enter');
  await page.waitForURL(/action=run_pause&token=k_01OP/);
  await page.getByRole('button', { name: 'Only what operator did' }).waitFor();
  await page.getByLabel('Show', { exact: true }).selectOption('silo_join');
  await page.getByText('Nothing of this kind is in the log.').waitFor();
  await page.getByRole('button', { name: 'Only what operator did' }).click();
  await until('the join', async () => (await column(page, 'object')).join() === 'hospital-a');
  await page.goBack();
  await page.goBack();
  await until('two rows again', async () => (await column(page, 'action')).join() === 'run pause,run pause');
}));

test('a hundred at first, then what is older; what is new comes on top and nothing twice', { skip }, async () => {
  const w = new World();
  for (let i = 1; i <= 230; i++) w.addAudit('login', '', { name: `person-${i}` });
  await on(w, '/audit', async (page) => {
    await settled(page);
    const who = async () => (await column(page, 'who')).map((t) => Number(/\d+/.exec(t)[0]));
    const down = (from, to) => Array.from({ length: from - to + 1 }, (_, i) => from - i);
    assert.deepEqual(await who(), down(230, 131));
    const more = page.getByRole('button', { name: 'Show older' });
    await more.click();
    await until('the second page', async () => (await who()).length === 200);
    w.addAudit('login', '', { name: 'person-231' });
    await until('the new row', async () => (await who())[0] === 231);
    await more.click();
    await until('the end', async () => !(await more.isVisible()));
    assert.deepEqual(await who(), down(231, 1));
  });
});

test('an empty log says so', { skip }, () => on(new World(), '/audit', async (page) => {
  await page.getByText('Nothing has been changed yet.').waitFor();
  assert.ok(!(await page.locator('table').isVisible()));
}));

test('a log that cannot be loaded says why', { skip }, async () => {
  const w = demoWorld();
  w.broken = '/api/v1/audit';
  await on(w, '/audit', async (page) => {
    await page.getByText('The audit log could not be loaded: the database is away.').waitFor();
    w.broken = '';
    await page.getByRole('cell', { name: 'login' }).waitFor();
    assert.ok(!(await page.locator('.banner').isVisible()));
  }, { allow: /503/ });
});

test('on a phone a row is a card, read from what was done to where it came from', { skip }, () => on(demoWorld(), '/audit', async (page) => {
  await settled(page);
  const cells = await page.locator('.audit tbody tr').nth(2).locator('td').evaluateAll((all) =>
    all.map((td) => [td.dataset.key, td.getBoundingClientRect()]).sort(([, a], [, c]) => a.top - c.top || a.left - c.left).map(([k]) => k));
  assert.deepEqual(cells, ['action', 'status', 'object', 'at', 'who', 'address']);
  const over = await page.locator('.audit td').evaluateAll((all) => all.filter((td) => td.scrollWidth > td.clientWidth).map((td) => td.textContent));
  assert.deepEqual(over, []);
  await page.mouse.wheel(0, 600);
  await until('the page to scroll', () => page.evaluate(() => scrollY > 100));
  assert.ok(await page.getByRole('link', { name: 'Audit' }).evaluate((a) => a.getBoundingClientRect().top >= 0), 'the places to go stay in sight');
}, { width: 390, height: 844, touch: true }));
