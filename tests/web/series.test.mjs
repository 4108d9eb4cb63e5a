import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as s from '../../web/series.js';

const line = (xs, ys, more = {}) => ({ key: 'k', label: 'l', metric: 'eval_loss', run: 'r', silo: null, colour: '#000000', dash: [], width: 2, xs, ys, smooth: null,
  mins: null, maxs: null, points: xs.length, shown: xs.length, ...more });

test('a log axis ticks at 1, 2, 5', () => {
  assert.deepEqual(s.logTicks(6, 800, 8), [10, 20, 50, 100, 200, 500]);
});

test('a log axis within one decade still has three ticks or more', () => {
  for (const [lo, hi] of [[22, 27], [24.1, 24.9], [3, 60], [95, 105], [1e-4, 3e-4]]) {
    const t = s.logTicks(lo, hi, 6);
    assert.ok(t.length >= 3 && t.length <= 10, `${lo}…${hi}: ${t}`);
    assert.ok(t.every((v) => v >= lo && v <= hi), `${lo}…${hi}: ${t}`);
  }
});

test('a log axis of many decades is not crowded', () => {
  const t = s.logTicks(1, 1e9, 5);
  assert.ok(t.length >= 3 && t.length <= 5, String(t));
  assert.ok(t.every((v) => Number.isInteger(Math.log10(v))));
});

test('linear ticks are multiples of 1, 2 or 5 and rounds are whole', () => {
  assert.deepEqual(s.linearTicks(0, 0.3, 3), [0, 0.1, 0.2, 0.3]);
  assert.deepEqual(s.linearTicks(0, 2, 10, true), [0, 1, 2]);
  assert.deepEqual(s.linearTicks(0, 20, 5), [0, 5, 10, 15, 20]);
});

test('times tick at full minutes, hours and local days', () => {
  assert.deepEqual(s.durationTicks(0, 600, 5), [0, 120, 240, 360, 480, 600]);
  const day = 86400;
  assert.deepEqual(s.clockTicks(10 * day + 5, 13 * day + 5, 4, 3600), [11 * day - 3600, 12 * day - 3600, 13 * day - 3600]);
});

test('tick labels drop the zeros that only fill up', () => {
  assert.deepEqual(s.yTickLabels('upload_bytes', [0, 5e6, 1.5e9]), ['0 B', '5 MB', '1.5 GB']);
  assert.deepEqual(s.yTickLabels('eval_ppl', [20, 200, 20000]), ['20', '200', '20 k']);
  assert.deepEqual(s.yTickLabels('lr', [0, 2e-4, 5e-4]), ['0', '2e-4', '5e-4']);
  assert.deepEqual(s.xTickLabels('tokens', [0, 500000, 1000000]), ['0', '500 k', '1 M']);
});

test('what a log axis cannot show is left out of its range', () => {
  const l = line([0, 1, 2, 3, 4], [0, null, NaN, 10, 1000]);
  const [lo, hi] = s.yRange([l], [0, 4], true);
  assert.ok(lo > 5 && lo < 10 && hi > 1000 && hi < 2000, `${lo}…${hi}`);
  assert.equal(s.yRange([line([1], [0])], [0, 2], true), null);
});

test('the log range is padded in log space, not lifted to a power of ten', () => {
  const [lo, hi] = s.yRange([line([0, 1], [22, 27])], [0, 1], true);
  assert.ok(lo > 21 && hi < 28, `${lo}…${hi}`);
});

test('zooming keeps y on the points that are visible', () => {
  const l = line([0, 1, 2, 3, 4, 5], [1000, 500, 30, 29, 28, 27]);
  const [lo, hi] = s.yRange([l], [2.5, 5], false);
  assert.ok(lo > 26 && hi < 30, `${lo}…${hi}`);
});

test('a window between two points is ranged by its neighbours', () => {
  const [lo, hi] = s.yRange([line([0, 10], [1, 2])], [4, 5], false);
  assert.ok(lo <= 1 && hi >= 2);
});

test('amounts begin at zero, losses do not', () => {
  assert.equal(s.yRange([line([0, 1], [200, 210])], [0, 1], false, true)[0], 0);
  assert.ok(s.yRange([line([0, 1], [3.2, 3.4])], [0, 1], false)[0] > 3);
});

test('one point, equal points and no points have a range', () => {
  assert.deepEqual(s.xRange([line([3], [1])], false), [2, 4]);
  assert.equal(s.xRange([], false), null);
  assert.equal(s.xRange([line([0], [1])], true), null, 'zero is not on a log axis');
  const [lo, hi] = s.yRange([line([0, 1], [5, 5])], [0, 1], false);
  assert.ok(lo < 5 && hi > 5);
});

test('the nearest point skips gaps, and is nearest as the axis shows it', () => {
  assert.equal(s.nearest([1, 2, 3], [1, null, 3], 2.1, false, false), 2);
  assert.equal(s.nearest([1, 100], [1, 1], 20, false, false), 0);
  assert.equal(s.nearest([1, 100], [1, 1], 20, true, false), 1);
  assert.equal(s.nearest([1], [null], 1, false, false), -1);
  assert.equal(s.nearest([1, 2], [0, 5], 1, false, true), 1, 'zero is not on a log axis');
});

test('the smoothing slider and its factor go there and back', () => {
  assert.equal(s.smoothingOf(0), 0);
  assert.equal(s.smoothingOf(100), 0.999);
  for (let at = 0; at <= 100; at++) {
    const a = s.smoothingOf(at);
    assert.ok(a >= 0 && a <= 0.999);
    assert.ok(Math.abs(s.smoothingAt(a) - at) <= 1, `${at} → ${a} → ${s.smoothingAt(a)}`);
  }
});

test('zooming around a point leaves it where it is', () => {
  assert.deepEqual(s.zoomed([0, 10], 5, 0.5, false), [2.5, 7.5]);
  const [a, b] = s.zoomed([1, 100], 10, 0.5, true);
  assert.ok(Math.abs(a * b - 100) < 1e-9);
});

test('a chart is described by its last values, and by nothing when there is nothing', () => {
  assert.match(s.describe('Loss', 'round', [line([1, 2], [4, null])]), /l: 4\.0000 at round 1\.$/);
  assert.match(s.describe('Loss', 'round', []), /nothing to show/);
  assert.equal(s.thinned([line([1], [1], { points: 1_000_000, shown: 1500 })]), '1,500 of 1,000,000 points shown');
  assert.equal(s.thinned([line([1], [1])]), '');
});
