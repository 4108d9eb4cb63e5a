import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as a from '../../web/address.js';

const round = (search) => a.write(a.read(search));

test('defaults are left out', () => {
  assert.equal(a.write(a.defaults()), '');
  assert.equal(round('?x=round&lx=0&sm=0'), '');
});

test('open, read, write gives the same address', () => {
  for (const s of [
    '', '?x=tokens', '?x=elapsed&lx=1&ly=0&sm=0.9&xr=1.5~80.25', '?run=r_01A,r_01B&x=bytes&hide=r_01A', '?q=tiny%20run&state=live&sort=-tokens',
    '?x=time&xr=1764000000~1764003600', '?xr=-1~2.5e%2B21', '?silos=1&same=1&hide=s_01,train_loss&tab=events&theme=dark', '?action=run_pause&token=k_01A',
  ]) {
    assert.equal(round(s), s);
  }
});

test('every view survives the journey', () => {
  const v = { ...a.defaults(), runs: ['r_1', 'r_2'], q: 'a&b=c,d #?', state: 'live', sort: '-ppl', x: 'tokens', lx: true, ly: false, sm: 0.99, xr: [1e8, 4e9],
    silos: true, same: true, hide: ['x'], tab: 'spec', action: 'login', token: 'k_01', theme: 'light' };
  assert.deepEqual(a.read(a.write(v)), v);
});

test('nonsense becomes the default, never an error', () => {
  assert.deepEqual(a.read('?x=evil&sm=7&xr=5~1&ly=2&sort=DROP%20TABLE&tab=<&action=a%26b&token=r_1&theme=pink'), a.defaults());
  assert.deepEqual(a.read('?xr=a~b'), a.defaults());
  assert.deepEqual(a.route('/runs/%E0%A4%A'), { page: 'run', id: '%E0%A4%A' });
});

test('routes', () => {
  assert.equal(a.route('/').page, 'runs');
  assert.deepEqual(a.route('/runs/r_01'), { page: 'run', id: 'r_01' });
  assert.deepEqual(a.route(a.experimentPath('a/b c')), { page: 'experiment', id: 'a/b c' });
  assert.equal(a.route('/silos/s_1').page, 'silo');
  for (const p of ['/login', '/experiments']) assert.equal(a.route(p).page, 'runs');
  assert.equal(a.route('/audit').page, 'audit');
  assert.equal(a.route('/tokens').page, 'tokens');
  assert.equal(a.route('/audit/1').page, 'missing');
  assert.equal(a.route('/nothing/here/at/all').page, 'missing');
});

test('twenty runs fit in two kilobytes', () => {
  const ids = Array.from({ length: 20 }, (_, i) => `r_01J${String(i).padStart(23, '0')}`);
  assert.ok(a.comparePath(ids).length < 2048);
});
