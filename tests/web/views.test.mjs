import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ApiError, seriesPath, tokenOf } from '../../web/api.js';
import { auditPath, objectOf, outcome, withNewer, withOlder } from '../../web/audit.js';
import { inOrder, specRows } from '../../web/compare.js';
import { changesOf, forkBody, freeName, refusalOf } from '../../web/fork.js';
import { nextSort, sorted } from '../../web/dom.js';
import { linesOf, tableRows } from '../../web/panel.js';
import { codecTitle, counted, partText, roundState, timeParts } from '../../web/rounds.js';
import { lineage, phase, runActions, summary, vitals } from '../../web/run.js';
import { matching, runColumns, tally } from '../../web/runs.js';
import { tokensInOrder, tokenState } from '../../web/tokens.js';
import { byTrouble, joinLine, siloActions, siloFacts, straggler, todayText } from '../../web/silos.js';

const run = (over) => ({ id: 'r_1', name: 'tiny-1', experiment: 'demo', state: 'running', round: 3, rounds: 20, params: 1060864, tokens: 1228800, eval_loss: 3.21, eval_ppl: 24.8,
  silos_live: 4, silos_per_round: 4, created_at: '2026-01-01T00:00:00.000Z', updated_at: '2026-01-01T00:10:00.000Z', finished_at: null, upload_bytes: 120, download_bytes: 480,
  reason: null, initial_eval_loss: 5.77, best_eval_loss: 3.21, best_round: 3, live_round: null, eta_s: 600, waiting_for: null, ...over });
const value = (list, key) => list.find((v) => v.key === key);

test('runs are found by words of name, experiment and id, and by state', () => {
  const runs = [run(), run({ id: 'r_2', name: 'big', experiment: 'other', state: 'failed' })];
  assert.deepEqual(matching(runs, { q: 'DEMO tiny', state: '' }).map((r) => r.id), ['r_1']);
  assert.deepEqual(matching(runs, { q: '', state: 'failed' }).map((r) => r.id), ['r_2']);
  assert.deepEqual(matching(runs, { q: 'zzz', state: '' }), []);
  assert.equal(tally(runs), '1 running · 2 runs');
});

test('sorting puts the unknown last in both directions', () => {
  const columns = runColumns({ selected: new Set(), toggle() {} });
  const runs = [run({ id: 'a', eval_ppl: null }), run({ id: 'b', eval_ppl: 9 }), run({ id: 'c', eval_ppl: 100 })];
  assert.deepEqual(sorted(runs, columns, 'ppl').map((r) => r.id), ['b', 'c', 'a']);
  assert.deepEqual(sorted(runs, columns, '-ppl').map((r) => r.id), ['c', 'b', 'a']);
  assert.equal(sorted(runs, columns, 'nonsense'), runs);
  assert.equal(nextSort('', 'ppl', true), '-ppl');
  assert.equal(nextSort('-ppl', 'ppl', true), 'ppl');
});

test('the headline numbers of a run that goes on', () => {
  const list = vitals(run(), Date.parse('2026-01-01T00:10:00Z'));
  assert.equal(value(list, 'ppl').value, '24.80');
  assert.equal(value(list, 'ppl').sub, 'lowest so far · from 320.5');
  assert.equal(value(list, 'round').value, '3 / 20');
  assert.equal(value(list, 'eta').value, '10 min 00 s');
  assert.equal(value(list, 'bytes').sub, '200 B a round');
});

test('a run that has not begun divides nothing by zero', () => {
  const list = vitals(run({ round: 0, state: 'created', eval_ppl: null, best_eval_loss: null, initial_eval_loss: null, eta_s: null, tokens: 0 }), 0);
  assert.equal(value(list, 'ppl').value, '–');
  assert.equal(value(list, 'ppl').sub, 'not evaluated yet');
  assert.equal(value(list, 'tokens').sub, '');
  assert.ok(list.every((v) => !/NaN|Infinity|undefined|null/.test(v.value + v.sub)));
});

test('a better round behind is named', () => {
  assert.match(value(vitals(run({ best_round: 2, best_eval_loss: 3.1 }), 0), 'ppl').sub, /^best 22\.20, round 2/);
});

test('what is waited for is a sentence', () => {
  const round = { number: 4, state: 'open', accepted: 3, silos_expected: 4, deadline: '2026-01-01T00:11:00Z' };
  assert.equal(phase(run({ waiting_for: '2 more silos (2 of 4 are here)' }), 0), 'Waiting for 2 more silos (2 of 4 are here)');
  assert.equal(phase(run({ live_round: round }), Date.parse('2026-01-01T00:10:00Z')), 'Round 4: 3 of 4 updates are in, deadline in 1 min');
  assert.equal(phase(run({ live_round: { ...round, state: 'aggregating', accepted: 1 } }), 0), 'Round 4: aggregating 1 update');
  assert.equal(phase(run(), 0), '');
  assert.equal(lineage(run()), '');
  assert.equal(lineage(run({ parent: { run: 'r_1', name: 'tiny-1', checkpoint: 12, steps: 768 } })), 'Forked from tiny-1, checkpoint 12');
});

test('a join line has the address the server gives and the pin its key needs', () => {
  const page = 'https://10.0.0.1:8443';
  assert.equal(joinLine({ public_url: null, pin: null }, page, 'lab-e'), `photon-client join ${page} --name lab-e --state ./photon-silo`);
  assert.equal(joinLine({ public_url: 'https://agg.example.org', pin: 'sha256//AAA=' }, page, 'lab-e'),
    'photon-client join https://agg.example.org --name lab-e --state ./photon-silo --pin sha256//AAA=');
});

test('a state allows its actions only', () => {
  assert.deepEqual(runActions('running'), ['pause', 'stop']);
  assert.deepEqual(runActions('paused'), ['resume', 'stop']);
  assert.deepEqual(runActions('finished'), []);
  assert.deepEqual(siloActions({ state: 'revoked' }), []);
  assert.match(summary(run({ preset: '125m' }), null), /^125m · 1\.06 M parameters · started/);
});

test('a round’s time is split into shares that add up', () => {
  const parts = timeParts({ download_s: 1, train_s: 30, upload_s: 2, aggregate_s: 0, eval_s: null });
  assert.equal(parts.length, 5);
  assert.equal(parts.reduce((n, p) => n + p.share, 0).toFixed(9), '1.000000000');
  assert.equal(parts[4].seconds, null);
  assert.ok(timeParts(null).every((p) => p.share === 0));
  assert.equal(partText(71.2), '1.2 min', 'no wider than its column');
  assert.equal(partText(59.5), '59.5 s');
  assert.equal(partText(null), '–');
  assert.equal(counted({ accepted: 3, silos_expected: 4, dropped: 1 }), '3 / 4, 1 dropped');
  assert.equal(roundState({ state: 'closed', deadline: '2026-01-01T00:00:00Z' }, 0), 'closed');
});

test('silos that are gone come first, and the slow one is named only when it is clearly slow', () => {
  const silo = (id, tokens_per_s, status = 'training') => ({ id, name: id, tokens_per_s, status });
  assert.deepEqual(byTrouble([silo('a', 1), silo('b', 1, 'gone'), silo('c', 1, 'revoked')]).map((s) => s.id), ['b', 'a', 'c']);
  assert.equal(straggler([silo('a', 100), silo('b', 95), silo('c', 40)]), 'c');
  assert.equal(straggler([silo('a', 100), silo('b', 95), silo('c', 90)]), null);
  assert.equal(straggler([silo('a', 100), silo('c', 10)]), null, 'of two nobody is the slow one');
});

test('specs show what differs, or everything', () => {
  const specs = [{ name: 'a', inner: { lr: 1, batch: 8 } }, { name: 'b', inner: { lr: 2, batch: 8 }, extra: true }];
  assert.deepEqual(specRows(specs, false).map((r) => [r.key, ...r.values]), [['inner.lr', '1', '2'], ['extra', '–', 'true']]);
  assert.equal(specRows(specs, true).length, 4);
  assert.deepEqual(specRows([null], false), []);
  assert.deepEqual(inOrder([{ id: 'b', created_at: '2' }, { id: 'a', created_at: '1' }]).map((r) => r.id), ['a', 'b']);
});

const series = (over) => ({ run: 'r_1', run_name: 'n', silo: null, silo_name: null, points: 2, shown: 2, xs: [1, 2], ys: [3, 2], smooth: null, mins: [3, 2], maxs: [3, 2], ...over });
const names = { runs: [{ id: 'r_1', name: 'one' }], silos: [{ id: 's_1', name: 'hospital' }], metrics: 1, shade: 'light' };

test('lines: the aggregate first, silos after it, each with its colour', () => {
  const lines = linesOf([{ metric: 'train_loss', series: [series({ silo: 's_1', silo_name: 'hospital' })] }, { metric: 'train_loss', series: [series()] }], names);
  assert.deepEqual(lines.map((l) => l.label), ['all silos', 'hospital']);
  assert.notEqual(lines[0].colour, lines[1].colour);
  assert.equal(lines[0].mins, null, 'a band is for buckets of more than one point');
});

test('lines: two runs have their names and colours, two metrics of one run theirs', () => {
  const two = linesOf([{ metric: 'eval_ppl', series: [series(), series({ run: 'r_2' })] }], { ...names, runs: [{ id: 'r_1', name: 'one' }, { id: 'r_2', name: 'two' }] });
  assert.deepEqual(two.map((l) => [l.key, l.label]), [['r_1', 'one'], ['r_2', 'two']]);
  assert.notEqual(two[0].colour, two[1].colour);
  const metrics = linesOf([{ metric: 'train_loss', series: [series()] }, { metric: 'eval_loss', series: [series()] }], { ...names, metrics: 2 });
  assert.deepEqual(metrics.map((l) => l.key), ['train_loss', 'eval_loss']);
  assert.deepEqual(tableRows(metrics, 'round')[0], ['training', 'round 2', '2.0000']);
});

test('a series is asked for by its parts, none of them empty', () => {
  assert.equal(seriesPath({ runs: ['r_a', 'r_b'], metric: 'eval_ppl', x: 'tokens', log: true, from: 0, to: 5, points: 900, smooth: 0.9, silo: 'all' }, false),
    '/api/v1/series?run=r_a,r_b&metric=eval_ppl&x=tokens&scale=log&from=0&to=5&points=900&smooth=0.9&silo=all');
  assert.equal(seriesPath({ runs: ['r_a'], metric: 'lr', x: 'round', from: null, to: null, points: 900 }, true), '/api/v1/series.csv?run=r_a&metric=lr&x=round');
});

test('the token is what follows the hash, with its name or without', () => {
  assert.equal(tokenOf('#token=photon_abcdefghijklmnop'), 'photon_abcdefghijklmnop');
  assert.equal(tokenOf('#photon_abcdefghijklmnop'), 'photon_abcdefghijklmnop');
  assert.equal(tokenOf('#main'), '');
  assert.equal(tokenOf(''), '');
});

test('what a codec did is told in words, and nothing where it did nothing', () => {
  assert.equal(codecTitle({ update_bytes: null, fallback_share: 0, residual_ratio: 0 }), '');
  assert.match(codecTitle({ update_bytes: 1024, fallback_share: 0.25, residual_ratio: 2 }), /25 % of the parameters one rung up, residual 2 of the delta$/);
});

test('what a silo moved today stands beside its limits, where it has any', () => {
  assert.equal(todayText(undefined), '–');
  assert.equal(todayText({ upload_bytes: 0, download_bytes: 4244000, upload_limit: null, download_limit: null }), 'received 0 B, sent 4.24 MB');
  assert.equal(todayText({ upload_bytes: 5e8, download_bytes: 0, upload_limit: 1e9, download_limit: 2e12 }), 'received 500 MB of 1.00 GB, sent 0 B of 2.00 TB');
  assert.ok(siloFacts({ status: 'waiting', state: 'active', id: 's_1' }, 0).some(([k]) => k === 'Today'));
});

const rows = (...ids) => ids.map((id) => ({ id: String(id) }));
const ids = (log) => log.rows.map((r) => Number(r.id));

test('the audit log grows at both ends, and a gap is never shown', () => {
  let log = withNewer(null, { items: rows(9, 8), next_cursor: '8' });
  log = withOlder(log, { items: rows(7, 6), next_cursor: null });
  assert.deepEqual([ids(log), log.cursor], [[9, 8, 7, 6], null]);
  assert.equal(withNewer(log, { items: rows(9, 8), next_cursor: '8' }), log, 'nothing new');
  log = withNewer(log, { items: rows(10, 9), next_cursor: '9' });
  assert.deepEqual([ids(log), log.cursor], [[10, 9, 8, 7, 6], null]);
  log = withNewer(log, { items: rows(14, 13), next_cursor: '13' });
  assert.deepEqual([ids(log), log.cursor], [[14, 13], '13'], '11 and 12 are not known, so what is older is asked for again');
  assert.deepEqual(ids(withNewer({ rows: [], cursor: null }, { items: rows(1), next_cursor: null })), [1]);
});

test('the audit log is asked for with its filters', () => {
  assert.equal(auditPath({ action: '', token: '' }), '/api/v1/audit?limit=100');
  assert.equal(auditPath({ action: 'run_pause', token: 'k_1' }, '17'), '/api/v1/audit?limit=100&action=run_pause&token=k_1&cursor=17');
});

test('what a change was done to has its name where one is known, and is as it was written elsewhere', () => {
  const names = new Map([['r_1', 'tiny'], ['s_1', 'hospital'], ['k_1', 'guest']]);
  assert.deepEqual(objectOf('r_1', names), { text: 'tiny', href: '/runs/r_1' });
  assert.deepEqual(objectOf('r_1/3', names), { text: 'tiny, checkpoint 3', href: '/runs/r_1' });
  assert.deepEqual(objectOf('s_1', names), { text: 'hospital', href: '/silos/s_1' });
  assert.deepEqual(objectOf('k_1', names), { text: 'token of guest', href: '' });
  for (const o of ['r_2', 'r_1/../x', 'GET /api/v1/runs/r_1']) assert.deepEqual(objectOf(o, names), { text: o, href: '' });
  assert.equal(objectOf('', names).text, '–');
  assert.equal(outcome({ status: 204, left_out: 0 }), 'done');
  assert.equal(outcome({ status: 401, left_out: 1204 }), 'refused, 401 and 1,204 more before it');
});

test('tokens that open a door come first, the newest of them on top', () => {
  const now = Date.parse('2026-01-02T00:00:00Z');
  const token = (id, created_at, more = {}) => ({ id, created_at, expires_at: null, revoked_at: null, ...more });
  const old = token('a', '2026-01-01T00:00:00Z');
  const ended = token('b', '2026-01-01T02:00:00Z', { expires_at: '2026-01-02T00:00:00Z' });
  const gone = token('c', '2026-01-01T03:00:00Z', { revoked_at: '2026-01-01T04:00:00Z' });
  const fresh = token('d', '2026-01-01T01:00:00Z', { expires_at: '2026-01-02T00:00:01Z' });
  assert.deepEqual([old, ended, gone, fresh].map((t) => tokenState(t, now)), ['active', 'expired', 'revoked', 'active']);
  assert.deepEqual(tokensInOrder([ended, old, gone, fresh], now).map((t) => t.id), ['d', 'a', 'c', 'b']);
});

test('a fork is given a name that nobody has, and none that is too long', () => {
  assert.equal(freeName('demo-1', 13, new Set(['demo-1'])), 'demo-1-fork-13');
  assert.equal(freeName('demo-1', 13, new Set(['demo-1-fork-13', 'demo-1-fork-13-2'])), 'demo-1-fork-13-3');
  const long = freeName('x'.repeat(63), 200, new Set());
  assert.equal(long.length, 63);
  assert.match(long, /^x+-fork-200$/);
});

/** As it goes over the wire. */
const sent = (o) => JSON.parse(JSON.stringify(o));

test('changes of a spec are a line for each key, or JSON', () => {
  assert.deepEqual(sent(changesOf(' inner.lr = 0.0003\n\nouter.name=fedavg\r\ninner.betas=[0.9, 0.95]\nexperiment=a=b')),
    { inner: { lr: 0.0003, betas: [0.9, 0.95] }, outer: { name: 'fedavg' }, experiment: 'a=b' });
  assert.deepEqual(sent(changesOf('\n{"inner": {"lr": 1}}')), { inner: { lr: 1 } });
  assert.deepEqual(sent(changesOf('  ')), {});
  assert.throws(() => changesOf('seed=1\ninner.lr'), /“inner\.lr” has no “=”/);
  assert.throws(() => changesOf('inner..lr=1'), /empty key/);
  assert.throws(() => changesOf('inner=1\ninner.lr=1'), /no object/);
  assert.throws(() => changesOf('{"inner": '), /no JSON/);
  assert.throws(() => changesOf('[1]'), /must be a JSON object/);
  changesOf('__proto__.evil=1\nconstructor.prototype.evil=1');
  assert.equal({}.evil, undefined, 'a key is only a key');
});

test('a fork sends what differs from its parent, and nothing else', () => {
  const form = { checkpoint: 13, name: 'b', rounds: 20, typed: '' };
  assert.deepEqual(sent(forkBody(form, 20)), { checkpoint: 13, name: 'b' });
  assert.deepEqual(sent(forkBody({ ...form, rounds: 5, typed: 'federation.local_steps=8' }, 20)), { checkpoint: 13, name: 'b', spec: { federation: { local_steps: 8, rounds: 5 } } });
  assert.deepEqual(sent(forkBody({ ...form, rounds: 5, typed: 'federation=3' }, 20)).spec, { federation: 3 }, 'the server says what is wrong with it');
  assert.throws(() => forkBody({ ...form, typed: 'federation.rounds=3' }, 20), /field of their own/);
});

test('a refusal is told beside the field that it points at', () => {
  const refused = (problem) => refusalOf(new ApiError(422, problem));
  assert.deepEqual(refused({ code: 'BAD_SPEC', detail: 'the run spec has 3 problems', errors: [{ pointer: '/name', detail: 'must be a name' },
    { pointer: '/federation/rounds', detail: 'must be 1 or more' }, { pointer: '/inner/lr', detail: 'must be above 0' }] }),
  { name: ['must be a name'], rounds: ['must be 1 or more'], changes: ['inner.lr: must be above 0'], rest: [] });
  assert.deepEqual(refused({ errors: [{ pointer: '/spec/model', detail: 'stays' }, { pointer: '/spec/name', detail: 'is given beside it' }] }).changes,
    ['model: stays', 'name: is given beside it']);
  assert.deepEqual(refused({ code: 'NAME_TAKEN', detail: 'there is one', hint: 'choose another name' }).name, ['there is one']);
  assert.deepEqual(refused({ code: 'CHECKPOINT_REMOVED', detail: 'it is gone', hint: 'fork from a newer one' }).rest, ['it is gone: fork from a newer one']);
  assert.deepEqual(refusalOf(new Error('the server cannot be reached')).rest, ['the server cannot be reached']);
});
