// The page when there is little: no run, no value, one point, one silo, no chart library, no server.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { PALETTE } from '../../../web/theme.js';
import { demoWorld, serve, World } from '../fixture.mjs';
import { area, browser, open, painted, settled, skip, until } from './support.mjs';

const b = browser();

async function on(world, path, fn, o = {}) {
  const server = await serve(world);
  const { page, close } = await open(b(), server.url + path, o);
  await settled(page);
  await fn(page, server);
  await close();
  await server.close();
}

test('no runs: the page says how to begin', { skip }, () => on(new World(), '/', async (page) => {
  assert.equal(await page.locator('.blank h2').innerText(), 'No runs yet');
  assert.ok(!(await page.locator('table').first().isVisible()));
}));

test('no silos: the page says so', { skip }, () => on(new World(), '/silos', async (page) => {
  await page.getByText('No silo has joined yet.').waitFor();
}));

test('a search that finds nothing says so, and a run can be found again', { skip }, () => on(demoWorld(), '/?q=zzz', async (page) => {
  await page.getByText('No run matches.').waitFor();
  await page.getByLabel('Search runs').fill('');
  await page.getByRole('link', { name: 'tiny-fedavg' }).waitFor();
}));

test('a run that waits for silos tells for what, with every chart empty', { skip }, async () => {
  const w = new World();
  w.addRun('r_1', 'waiting', { closed: 0, state: 'created', more: { waiting_for: '2 more silos (0 of 2 are here)', silos_per_round: 2 } });
  for (const m of Object.keys(w.series.r_1)) w.series.r_1[m].forEach((s) => Object.assign(s, { ns: [], ys: [] }));
  Object.assign(w.runs[0], { eval_ppl: null, eval_loss: null, initial_eval_loss: null });
  w.checkpoints.r_1 = [];
  await on(w, '/runs/r_1', async (page) => {
    assert.equal(await page.locator('.phase').innerText(), 'Waiting for 2 more silos (0 of 2 are here)');
    assert.equal(await page.locator('.plotarea .empty:visible').count(), 4);
    assert.equal(await page.locator('.vitals [data-key=ppl] .big').innerText(), '–');
    await page.getByText('No round has been opened yet.').waitFor();
    await page.getByText('No silo is here yet.').waitFor();
    assert.doesNotMatch(await page.locator('main').innerText(), /NaN|undefined|null|Infinity/);
  });
});

test('one silo and one point: a dot, readable', { skip }, async () => {
  const w = new World();
  w.addSilo('s_1', 'alone');
  w.addRun('r_1', 'single', { closed: 0 });
  await on(w, '/runs/r_1', async (page) => {
    assert.ok((await painted(page, 'eval_ppl', PALETTE.light[0])) >= 6);
    const box = await area(page, 'eval_ppl');
    await page.mouse.move(box.x + box.width / 2, box.y + 30);
    await until('the value', async () => (await page.locator('.tip-row b').count()) === 1);
    assert.doesNotMatch(await page.locator('main').innerText(), /NaN|undefined|null|Infinity/);
  });
});

test('without the chart library the numbers are tables', { skip }, async () => {
  const w = demoWorld();
  w.missing.push('vendor/');
  await on(w, '/runs/r_01RUN', async (page) => {
    await page.getByText('The chart library is not installed').waitFor();
    assert.equal(await page.locator('canvas').count(), 0);
    assert.ok((await page.locator('.chart[data-metric=eval_ppl] .chart-table tbody tr').count()) > 5);
  }, { allow: /404/ });
});

test('a run that does not exist says so', { skip }, async () => {
  const server = await serve(demoWorld());
  const { page, close } = await open(b(), `${server.url}/runs/r_nobody`, { allow: /404/ });
  await page.getByText('This run could not be loaded').waitFor();
  await close();
  await server.close();
});

test('many rounds: a dozen at first, then all', { skip }, async () => {
  const w = new World();
  w.addSilo('s_1', 'one');
  w.addRun('r_1', 'long', { closed: 60, rounds: 60, state: 'finished' });
  await on(w, '/runs/r_1', async (page) => {
    assert.equal(await page.locator('.expand').count(), 12);
    await page.getByRole('button', { name: 'Show all 60 rounds' }).click();
    assert.equal(await page.locator('.expand').count(), 60);
  });
});

test('runs are chosen, compared, and taken out again', { skip }, () => on(demoWorld(), '/', async (page) => {
  await page.getByLabel('Compare tiny-fedavg').check();
  await page.getByLabel('Compare tiny-fednesterov').check();
  await page.getByRole('button', { name: 'Compare 2 runs' }).click();
  await page.waitForURL(/compare\?run=r_01/);
  await page.locator('.diff tbody th').first().waitFor(); // the page that was left was live and quiet too
  await settled(page);
  assert.deepEqual(await page.locator('.diff tbody th').allInnerTexts(), ['seed', 'outer.name', 'outer.lr', 'outer.momentum']);
  await page.getByRole('button', { name: 'Show equal keys too' }).click();
  assert.ok((await page.locator('.diff tbody th').count()) > 15);
  await page.getByRole('button', { name: 'Remove tiny-fednesterov' }).click();
  await page.waitForURL((u) => u.searchParams.get('run') === 'r_01RUN');
  await page.getByText('There is one run only.').waitFor();
  await settled(page);
}));

test('nothing to compare: no spec is spoken of, and the old places lead to the runs', { skip }, () => on(demoWorld(), '/compare', async (page, server) => {
  await page.getByText('Choose runs to compare in the list of runs.').waitFor();
  assert.ok(!(await page.getByText('Where the specs differ').isVisible()));
  await page.goto(`${server.url}/login`);
  await page.getByRole('link', { name: 'tiny-fedavg' }).waitFor();
}));

test('an admin invites a silo: the secret is shown once, on this page', { skip }, () => on(demoWorld(), '/silos', async (page) => {
  await page.getByRole('button', { name: 'Invite a silo' }).click();
  await page.getByLabel('Its name').fill('clinic-f');
  await page.getByRole('button', { name: 'Make a join token' }).click();
  await page.getByText('photon_join_secret_0123456789').waitFor();
  assert.match(await page.locator('dialog pre').first().innerText(), /^photon-client join http:.* --name clinic-f .* --pin sha256\/\//);
  await page.getByRole('button', { name: 'Close' }).click();
  assert.equal(await page.locator('dialog').count(), 0);
  assert.equal(await page.evaluate(() => document.activeElement?.textContent?.trim()), 'Invite a silo', 'the focus is back');
}));
