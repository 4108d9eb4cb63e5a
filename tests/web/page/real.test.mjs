// The dashboard over the real photon-server and its PostgreSQL: contract, not fixture.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { accessSync, chmodSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';

import { perplexity } from '../../../web/format.js';
import { PALETTE } from '../../../web/theme.js';
import { browser, open, ownPort, painted, settled, skip as noBrowser, until } from './support.mjs';

const bin = path.resolve(process.env.PHOTON_BUILD || 'build/release', 'bin');
const skip = noBrowser || (() => {
  try {
    ['photon-server', 'photon', 'photon-client'].forEach((p) => accessSync(path.join(bin, p)));
    return false;
  } catch {
    return `no programs in ${bin}`;
  }
})();

const b = browser();
const ports = [ownPort(), ownPort()]; // of the server, and of the demo
let dir;
const children = new Set();

function start(name, args, log) {
  const out = openSync(path.join(dir, log), 'a');
  const child = spawn(path.join(bin, name), args, { stdio: ['ignore', out, out], cwd: dir });
  children.add(child);
  child.over = new Promise((ok) => child.on('exit', (code, signal) => {
    children.delete(child);
    ok(code ?? signal);
  }));
  return child;
}

before(() => {
  if (skip) return;
  dir = mkdtempSync(path.join(tmpdir(), 'photon-page-'));
  chmodSync(dir, 0o755); // PostgreSQL's own user passes through it
});
after(async () => {
  for (const c of children) {
    c.kill('SIGTERM');
    await Promise.race([c.over, new Promise((ok) => setTimeout(ok, 20_000).unref())]);
    c.kill('SIGKILL');
  }
  if (dir) rmSync(dir, { recursive: true, force: true });
});

const SPEC = { name: 'page-1', experiment: 'pages', model: { d_model: 32, n_heads: 2, n_layers: 1, vocab_size: 320, seq_len: 32 },
  federation: { rounds: 2, silos_per_round: 2, local_steps: 4 }, inner: { batch: 2 } };

test('login, a run that waits, actions, a server that is killed: the log has no gap and nothing twice', { skip, timeout: 300_000 }, async () => {
  const port = ports[0]();
  const url = `http://127.0.0.1:${port}`;
  const args = ['--data', path.join(dir, 'server'), '--listen', `127.0.0.1:${port}`, '--bulk-listen', `127.0.0.1:${port + 1}`];
  const ready = async () => until('the server to be ready', () => fetch(`${url}/readyz`).then((r) => r.ok, () => false));
  let server = start('photon-server', args, 'server.log');
  await ready();
  const token = readFileSync(path.join(dir, 'server', 'admin-token'), 'utf8').trim();
  const api = async (method, p, body) => {
    const r = await fetch(`${url}/api/v1${p}`, { method, body: body && JSON.stringify(body), headers: { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' } });
    assert.ok(r.ok, `${method} ${p}: ${r.status} ${r.ok ? '' : await r.text()}`);
    return r.json();
  };

  const { page, close } = await open(b(), `${url}/#${token}`, { allow: /ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_INCOMPLETE_CHUNKED|ERR_CONNECTION_RESET|ERR_FAILED|503/ });
  await settled(page);
  assert.equal(page.url(), `${url}/`);
  await page.getByText('No runs yet').waitFor();

  const run = await api('POST', '/runs', SPEC);
  await page.getByRole('link', { name: 'page-1' }).click();
  await page.waitForURL(/\/runs\/r_/);
  await page.getByRole('tab', { name: 'Events' }).click();
  await settled(page);
  await page.locator('.phase', { hasText: 'Waiting for' }).waitFor();

  const shown = async () => (await page.locator('.events td[data-key=message]').allInnerTexts()).reverse();
  const told = async () => (await api('GET', `/runs/${run.id}/events?limit=1000`)).items.filter((e) => !['metrics_added', 'silo_seen'].includes(e.kind)).map((e) => e.message).reverse();
  const same = async () => JSON.stringify(await shown()) === JSON.stringify(await told());

  await page.getByRole('button', { name: 'Stop' }).click();
  await page.keyboard.press('Escape');
  await until('the log to be complete', same);

  server.kill('SIGKILL');
  await server.over;
  await until('the page to say that it is stale', async () => (await page.locator('#live').getAttribute('data-state')) === 'stale');
  server = start('photon-server', args, 'server.log');
  await ready();
  await api('POST', `/runs/${run.id}/actions`, { action: 'stop' });
  await until('the stream to come back', async () => (await page.locator('#live').getAttribute('data-state')) === 'live');
  await page.locator('h1 + span .pill', { hasText: 'stopped' }).waitFor();
  await until('the log to be complete again', same);

  // The API's own words: who logged in here, and what was done to the run.
  await page.getByRole('link', { name: 'Audit' }).click();
  await page.getByRole('cell', { name: 'login' }).first().waitFor();
  await page.getByLabel('Show', { exact: true }).selectOption('run_stop');
  await page.waitForURL(/audit\?action=run_stop/);
  await until('the one row', async () => (await page.locator('.audit tbody tr').count()) === 1);
  assert.equal(await page.locator('.audit td[data-key=object]').innerText(), 'page-1');
  assert.equal(await page.locator('.audit td[data-key=status]').innerText(), 'done');

  for (const place of ['/', '/silos', '/audit', `/runs/${run.id}`, `/compare?run=${run.id}`, '/experiments/pages']) {
    await page.goto(url + place);
    await settled(page);
  }
  await page.getByRole('button', { name: 'Log out' }).click();
  await page.getByLabel('Token', { exact: true }).waitFor();
  server.kill('SIGTERM');
  await server.over;
  await close();
});

test('a federation of two silos draws its curve, and the page says what the API says', { skip, timeout: 600_000 }, async () => {
  const port = ports[1](); // the demo takes the next one too
  const demo = start('photon', ['demo', '--rounds', '2', '--silos', '2', '--port', String(port), '--state', path.join(dir, 'demo')], 'demo.log');
  const address = await until('the demo to print its address', () => /Dashboard:\s+(\S+)/.exec(readFileSync(path.join(dir, 'demo.log'), 'utf8'))?.[1], 300_000);
  const { page, close } = await open(b(), address, { allow: /422/ });
  await page.locator('h1 + span .pill', { hasText: 'finished' }).waitFor({ timeout: 300_000 });
  await settled(page);
  assert.ok(!page.url().includes('#'), 'the token is wiped');
  const id = new URL(page.url()).pathname.split('/').at(-1);
  const get = (p) => page.evaluate((u) => fetch(u).then((r) => r.json()), p);
  const run = await get(`/api/v1/runs/${id}`);
  const { series } = await get(`/api/v1/series?run=${id}&metric=eval_ppl&x=round`);
  assert.deepEqual(series[0].xs, [0, 1, 2]);
  assert.ok(series[0].ys[2] < series[0].ys[0], 'it learned');
  await until('the last perplexity', async () => (await page.locator('.vitals [data-key=ppl] .big').innerText()) === perplexity(run.eval_ppl));
  await until('the curve', async () => (await painted(page, 'eval_ppl', PALETTE.light[0])) > 300);
  const box = await page.locator('.chart[data-metric=eval_ppl] .over').boundingBox();
  await page.mouse.move(box.x + box.width / 2, box.y + 40);
  await until('the tooltip', async () => (await page.locator('.tip-row b:visible').count()) > 0);
  assert.equal(await page.locator('.tip-row b:visible').first().innerText(), perplexity(series[0].ys[1]));
  assert.equal(await page.locator('.expand').count(), 2);
  await page.locator('.expand').first().click();
  await until('two tasks', async () => (await page.locator('.tasks tbody tr').count()) >= 2);
  for (const x of ['Step', 'Tokens', 'Elapsed', 'Clock', 'Bytes']) {
    await page.getByRole('button', { name: x, exact: true }).click();
    await settled(page);
    await until(`the curve by ${x}`, async () => (await painted(page, 'eval_ppl', PALETTE.light[0])) > 200);
  }
  await page.getByRole('button', { name: 'Per silo' }).click();
  await until('a line for each silo', async () => (await page.locator('.chart[data-metric=eval_ppl] .key').count()) === 3);

  // A fork: what the server refuses stands at its field, what it makes has its page.
  await page.getByRole('tab', { name: 'Checkpoints' }).click();
  await page.getByRole('button', { name: 'Fork from checkpoint 1' }).click();
  const dialog = page.locator('dialog');
  await dialog.getByLabel('Rounds').fill('0');
  await dialog.getByLabel('Other changes of the spec').fill('inner.lr=-1\ninner.lrr=2');
  await dialog.locator('form').evaluate((form) => (form.noValidate = true)); // the browser would not send 0 rounds
  await dialog.getByRole('button', { name: 'Fork' }).click();
  await dialog.getByText("inner.lrr: unknown key 'lrr'").waitFor();
  assert.match(await page.locator('#fork-changes-problem').innerText(), /^inner\.lr: must be a number/m);
  assert.match(await page.locator('#fork-rounds-problem').innerText(), /^must be a whole number/);
  await dialog.getByLabel('Rounds').fill('1');
  await dialog.getByLabel('Other changes of the spec').fill('inner.lr=0.0003');
  const forked = await dialog.getByLabel('Name of the new run').inputValue();
  await dialog.getByRole('button', { name: 'Fork' }).click();
  await page.locator('h1', { hasText: forked }).waitFor();
  assert.equal(await page.getByRole('link', { name: `Forked from ${run.name}, checkpoint 1` }).getAttribute('href'), `/runs/${id}`);
  const child = new URL(page.url()).pathname.split('/').at(-1);
  assert.deepEqual(await get(`/api/v1/runs/${child}/spec`).then((s) => [s.name, s.federation.rounds, s.inner.lr]), [forked, 1, 0.0003]);
  assert.equal((await get(`/api/v1/runs/${child}`)).parent.checkpoint, 1);
  await close();
  demo.kill('SIGINT');
  await demo.over;
});
