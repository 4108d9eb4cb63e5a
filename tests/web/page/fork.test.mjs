// A run is forked from a checkpoint on its page, by those who may.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { test } from 'node:test';

import { demoWorld, serve } from '../fixture.mjs';
import { browser, open, settled, skip, until } from './support.mjs';

const b = browser();

async function on(world, fn, o = {}) {
  const server = await serve(world);
  const { page, close } = await open(b(), `${server.url}/runs/r_01RUN?tab=checkpoints`, o);
  await settled(page);
  await fn(page, server);
  await close();
  await server.close();
}

const forkFrom = (page, n) => page.getByRole('button', { name: `Fork from checkpoint ${n}` });
const submit = (page) => page.locator('dialog').getByRole('button', { name: 'Fork' });
/** What a field's description says is wrong. */
const wrong = (page, field) => page.locator(`#fork-${field}-problem`).innerText();
const focused = (page) => page.evaluate(() => document.activeElement.id);

test('a fork sends what was asked for, once, and the new run names its parent', { skip }, async () => {
  const world = demoWorld();
  await on(world, async (page) => {
    assert.equal(await page.locator('[data-key=fork] button').count(), 4, 'those that are kept, and only those');
    await forkFrom(page, 10).click();
    assert.equal(await focused(page), 'fork-name');
    assert.equal(await page.getByLabel('Name of the new run').inputValue(), 'tiny-fedavg-fork-10');
    assert.equal(await page.locator('dialog').getByLabel('Rounds').inputValue(), '20');
    await page.locator('dialog').getByLabel('Rounds').fill('30');
    await page.getByLabel('Other changes of the spec').fill('inner.lr=0.0003\nouter.name=fedavg');
    const answer = world.hold(); // the second click comes before the answer
    await submit(page).dblclick();
    answer();
    await page.waitForURL(/\/runs\/r_01FORK0$/);
    await settled(page);
    assert.equal(world.asked.filter((a) => a === 'POST /api/v1/runs/r_01RUN/fork').length, 1);
    assert.equal(world.forks.length, 1);
    assert.deepEqual(world.forks[0].body, { checkpoint: 10, name: 'tiny-fedavg-fork-10', spec: { inner: { lr: 0.0003 }, outer: { name: 'fedavg' }, federation: { rounds: 30 } } });
    assert.match(world.forks[0].key, /^[!-~]{16,128}$/);
    assert.equal(await page.locator('dialog').count(), 0);
    await until('the name of the new run', async () => (await page.locator('h1').innerText()) === 'tiny-fedavg-fork-10');
    await page.getByRole('link', { name: 'Forked from tiny-fedavg, checkpoint 10' }).click();
    await page.waitForURL(/\/runs\/r_01RUN$/);
  });
});

test('the name that is suggested is free, and one that is typed stays', { skip }, async () => {
  const world = demoWorld();
  world.addRun('r_01TAKEN', 'tiny-fedavg-fork-11', { closed: 0 });
  await on(world, async (page) => {
    await forkFrom(page, 11).click();
    const name = page.getByLabel('Name of the new run');
    await until('a free name', async () => (await name.inputValue()) === 'tiny-fedavg-fork-11-2');
    await page.keyboard.press('Escape');
    await until('the dialog to go', async () => (await page.locator('dialog').count()) === 0);
    assert.equal(await page.evaluate(() => document.activeElement.ariaLabel), 'Fork from checkpoint 11', 'the focus is where it was');
    const answered = page.waitForResponse(/\/api\/v1\/runs\?q=/);
    const answer = world.hold();
    await forkFrom(page, 11).click();
    await page.keyboard.type('mine');
    answer();
    await answered;
    await page.keyboard.press('Enter');
    await page.waitForURL(/\/runs\/r_01FORK0$/);
    assert.deepEqual(world.forks[0].body, { checkpoint: 11, name: 'mine' });
  });
});

test('a refusal is shown at its field, which gets the focus; what the page itself sees is not sent', { skip }, async () => {
  const world = demoWorld();
  world.refusals.push({ status: 422, code: 'BAD_SPEC', detail: 'the run spec has 2 problems', errors: [{ pointer: '/federation/rounds', detail: 'must be at most 1000000' },
    { pointer: '/inner/lr', detail: 'must be above 0' }] }, { status: 404, code: 'CHECKPOINT_REMOVED', detail: 'the file of checkpoint 11 is past its keeping', hint: 'fork from a newer one' });
  await on(world, async (page) => {
    await forkFrom(page, 11).click();
    const changes = page.getByLabel('Other changes of the spec');
    await changes.fill('inner.lr');
    await submit(page).click();
    assert.match(await wrong(page, 'changes'), /has no “=”/);
    assert.equal(await focused(page), 'fork-changes');
    assert.ok(!world.asked.some((a) => a.endsWith('/fork')), 'nothing is sent');

    await changes.fill('inner.lr=-1');
    await submit(page).click();
    await page.getByText('must be at most 1000000').waitFor();
    assert.equal(await wrong(page, 'changes'), 'inner.lr: must be above 0');
    assert.equal(await focused(page), 'fork-rounds', 'the first that is wrong');
    assert.deepEqual(await page.locator('dialog [aria-invalid=true]').evaluateAll((all) => all.map((e) => e.id)), ['fork-rounds', 'fork-changes']);

    await changes.fill('');
    await submit(page).click();
    await page.getByText('past its keeping: fork from a newer one').waitFor();
    assert.equal(await page.locator('dialog [aria-invalid]').count(), 0);

    await page.getByLabel('Name of the new run').fill('tiny-paused');
    await submit(page).click();
    await until('the name to be refused', async () => (await wrong(page, 'name')) === "there is a run named 'tiny-paused' already");
    assert.equal(await focused(page), 'fork-name');
    assert.equal(world.forks.length, 0);
  }, { allow: /422|404|409/ });
});

test('the same again after a lost answer has the same key', { skip }, async () => {
  const world = demoWorld();
  await on(world, async (page) => {
    await forkFrom(page, 11).click();
    const keys = [];
    await page.route('**/fork', async (route) => {
      keys.push(route.request().headers()['idempotency-key']);
      const lost = keys.length === 1;
      const answer = await route.fetch();
      await (lost ? route.abort() : route.fulfill({ response: answer }));
    });
    await submit(page).click();
    await page.getByText('the server cannot be reached').waitFor();
    await submit(page).click();
    await page.waitForURL(/\/runs\/r_01FORK0$/);
    assert.equal(keys.length, 2);
    assert.equal(keys[0], keys[1]);
    assert.equal(world.forks.length, 1);
  }, { allow: /ERR_FAILED/ });
});

test('a viewer is offered no fork', { skip }, () => on(demoWorld({ role: 'viewer' }), async (page) => {
  await page.getByRole('link', { name: 'Download checkpoint 11' }).waitFor();
  assert.equal(await page.getByRole('button', { name: /Fork/ }).count(), 0);
  assert.equal(await page.locator('[data-key=fork]').count(), 0);
}));

test('axe finds nothing in the dialog, refused or not, in either theme, and it fits a phone', { skip }, async () => {
  const world = demoWorld();
  const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
  await on(world, async (page) => {
    await page.evaluate(axe);
    const findings = () => page.evaluate(async () => (await window.axe.run()).violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.html.slice(0, 160)).join(' | ')}`));
    await forkFrom(page, 11).click();
    assert.deepEqual(await findings(), []);
    await page.getByLabel('Other changes of the spec').fill(`${'x'.repeat(200)}`);
    await submit(page).click();
    await page.getByText('has no “=”').waitFor();
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme });
      assert.deepEqual(await findings(), [], colorScheme);
    }
    await page.setViewportSize({ width: 360, height: 640 });
    const box = await page.locator('dialog').evaluate((d) => [d.scrollWidth - d.clientWidth, document.documentElement.scrollWidth - innerWidth, d.getBoundingClientRect().left >= 0]);
    assert.deepEqual(box, [0, 0, true]);
    const low = await page.locator('dialog input, dialog button, dialog textarea').evaluateAll((all) => all.filter((e) => e.getBoundingClientRect().height < 43.5).map((e) => e.id || e.textContent));
    assert.deepEqual(low, [], 'targets for a finger');
  });
});

test('the dialog goes with its page', { skip }, async () => {
  await on(demoWorld(), async (page) => {
    await page.getByRole('link', { name: 'Runs', exact: true }).first().click();
    await page.waitForURL(/\/$/);
    await page.goBack();
    await forkFrom(page, 10).click();
    await page.locator('dialog').waitFor();
    await page.goForward();
    await page.waitForURL(/\/$/);
    await until('the dialog to go', async () => (await page.locator('dialog').count()) === 0);
    await page.getByRole('link', { name: 'tiny-fedavg', exact: true }).first().click();
    await page.waitForURL(/\/runs\/r_01RUN/);
  });
});
