import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as f from '../../web/format.js';

test('what is unknown is a dash, in every form', () => {
  for (const fn of [f.bytes, f.count, f.rate, f.exact, f.perplexity, f.loss, f.plain, f.duration, f.shortDuration]) {
    for (const v of [null, undefined, NaN, Infinity, 'x']) assert.equal(fn(v), f.NONE, `${fn.name}(${v})`);
  }
  assert.equal(f.ago(null, 0), f.NONE);
  assert.equal(f.ago('nonsense', 0), f.NONE);
  assert.equal(f.stamp(undefined), f.NONE);
  assert.equal(f.digest(null), f.NONE);
});

test('bytes are powers of ten with three digits', () => {
  assert.equal(f.bytes(0), '0 B');
  assert.equal(f.bytes(999), '999 B');
  assert.equal(f.bytes(4244000), '4.24 MB');
  assert.equal(f.bytes(999_600), '1.00 MB', 'rounding never prints 1000 kB');
  assert.equal(f.bytes(2e18), '2000 PB');
});

test('counts and speeds', () => {
  assert.equal(f.count(1228800), '1.23 M');
  assert.equal(f.count(320), '320');
  assert.equal(f.rate(41000), '41.0 k tok/s');
  assert.equal(f.exact(1060864), '1,060,864');
});

test('perplexity keeps four digits and grows whole', () => {
  assert.equal(f.perplexity(24.8149), '24.81');
  assert.equal(f.perplexity(871.24), '871.2');
  assert.equal(f.perplexity(9.99996), '10.00');
  assert.equal(f.perplexity(50368.2), '50,368');
  assert.equal(f.loss(3.21), '3.2100');
});

test('durations read as people say them', () => {
  const cases = [[0, '0 s'], [0.4, '0.40 s'], [0.004, '0.004 s'], [41.2, '41.2 s'], [192, '3 min 12 s'], [59.97, '1 min 00 s'], [3600, '1 h 00 min'],
    [18_420, '5 h 07 min'], [187_200, '2 d 4 h'], [-5, '−5.0 s']];
  for (const [s, want] of cases) assert.equal(f.duration(s), want);
});

test('ago counts up and forgives clocks that differ', () => {
  const now = Date.parse('2026-01-02T00:00:00Z');
  const at = (s) => new Date(now - s * 1000).toISOString();
  assert.equal(f.ago(at(-30), now), 'now');
  assert.equal(f.ago(at(12), now), '12 s ago');
  assert.equal(f.ago(at(190), now), '3 min ago');
  assert.equal(f.ago(at(7300), now), '2 h ago');
  assert.equal(f.ago(at(3 * 86400), now), '3 d ago');
  assert.equal(f.until(at(-90), now), 'in 1.5 min');
  assert.equal(f.until(at(90), now), '1.5 min over');
});

test('a spec becomes flat keys in its own order, arrays stay whole', () => {
  assert.deepEqual(f.flatten({ b: { y: 1, x: [1, 2] }, a: null }), [['b.y', 1], ['b.x', [1, 2]], ['a', null]]);
  assert.equal(f.specValue([0.9, 0.95]), '[0.9,0.95]');
  assert.equal(f.specValue(''), '""');
});
