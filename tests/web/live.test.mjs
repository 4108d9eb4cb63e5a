import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';

import { isTold, merged, safeUrl } from '../../web/details.js';
import { Feed } from '../../web/feed.js';
import { compareIds, Live, Seen, standing } from '../../web/live.js';

/** An EventSource that does what the test says. */
class FakeSource {
  static all = [];
  static CLOSED = 2;
  constructor(url) {
    Object.assign(this, { url, readyState: 0, listeners: {} });
    FakeSource.all.push(this);
  }
  addEventListener(name, fn) { this.listeners[name] = fn; }
  send(topic, id, data = {}) { this.listeners[topic]({ lastEventId: id, data: JSON.stringify({ id, ...data }) }); }
  drop(final) { this.readyState = final ? 2 : 0; this.onerror(); }
  close() { this.closed = true; }
}

let live;
afterEach(() => {
  live?.close();
  FakeSource.all = [];
});

function begin(o = {}) {
  globalThis.EventSource = FakeSource;
  const said = { events: [], states: [], anew: 0, polls: 0 };
  live = new Live({ run: 'r_1', event: (t, e) => said.events.push(e.id), anew: () => said.anew++, poll: async () => void said.polls++, state: (s) => said.states.push(s), ...o });
  return said;
}

test('ids are compared as pairs of numbers', () => {
  assert.deepEqual(['10-1', '9-2', '9-10', '100-0'].sort(compareIds), ['9-2', '9-10', '10-1', '100-0']);
});

test('an event that comes twice is shown once', () => {
  const said = begin();
  FakeSource.all[0].send('round', '1-1');
  FakeSource.all[0].send('round', '1-1');
  FakeSource.all[0].send('task', '1-2');
  assert.deepEqual(said.events, ['1-1', '1-2']);
});

test('the stream starts after what was loaded', () => {
  begin({ after: '5-9' });
  assert.equal(FakeSource.all[0].url, '/api/v1/stream?run=r_1&after=5-9');
});

test('a refused stream is tried again after the last id that was seen', async () => {
  const said = begin();
  FakeSource.all[0].onopen();
  FakeSource.all[0].send('round', '3-4');
  FakeSource.all[0].drop(true);
  while (FakeSource.all.length < 2) await new Promise((ok) => setTimeout(ok, 20));
  assert.equal(FakeSource.all[1].url, '/api/v1/stream?run=r_1&after=3-4');
  FakeSource.all[1].onopen();
  assert.equal(said.anew, 0, 'nothing was missed');
  assert.deepEqual(said.states.map((s) => s.open), [true, false, true]);
});

test('a stream that the browser mends itself is left to the browser', (t) => {
  begin();
  FakeSource.all[0].onopen();
  const timers = t.mock.method(globalThis, 'setTimeout');
  FakeSource.all[0].drop(false);
  assert.equal(timers.mock.callCount(), 0, 'no second stream is on its way');
  FakeSource.all[0].drop(true);
  assert.equal(timers.mock.callCount(), 1);
});

test('with no id to resume after, everything is loaded anew', () => {
  const said = begin();
  FakeSource.all[0].onopen();
  FakeSource.all[0].drop(false);
  FakeSource.all[0].onopen();
  assert.equal(said.anew, 1);
});

test('reset loads anew, a torn event is dropped', () => {
  const said = begin();
  FakeSource.all[0].listeners.reset({});
  FakeSource.all[0].listeners.round({ lastEventId: '1-1', data: '{"id":' });
  assert.equal(said.anew, 1);
  assert.deepEqual(said.events, []);
});

test('what was seen is remembered up to a bound', () => {
  const seen = new Seen();
  for (let i = 0; i < 25_000; i++) assert.ok(seen.add(`1-${i}`));
  assert.ok(!seen.add('1-24999'));
});

test('the page says how it stands', () => {
  const clock = () => '12:04:11';
  assert.equal(standing({ open: true, polled: false, since: null }, clock).text, 'Live');
  assert.equal(standing({ open: false, polled: false, since: 1 }, clock).text, 'Stale since 12:04:11');
  assert.equal(standing({ open: false, polled: true, since: 1 }, clock).state, 'polling');
  assert.equal(standing({ open: false, polled: false, since: null }, clock).state, 'reconnecting');
});

test('the log is newest first, without doubles, and unchanged when nothing is new', () => {
  const log = merged([], [{ id: '1-2' }, { id: '1-10' }, { id: '1-11', kind: 'metrics_added' }]);
  assert.deepEqual(log.map((e) => e.id), ['1-10', '1-2']);
  assert.equal(merged(log, [{ id: '1-2' }]), log);
  assert.deepEqual(merged(log, [{ id: '1-3' }, { id: '1-3' }]).map((e) => e.id), ['1-10', '1-3', '1-2']);
  assert.ok(!isTold({ kind: 'metrics_added' }) && isTold({ kind: 'round_closed' }));
});

test('only a path of this server is linked', () => {
  assert.equal(safeUrl('/api/v1/runs/r_1/checkpoints/3/weights'), '/api/v1/runs/r_1/checkpoints/3/weights');
  for (const bad of ['javascript:alert(1)', '//evil.example/api/v1/x', 'https://evil.example', '/api/v1/"onclick', null, 7]) assert.equal(safeUrl(bad), '#');
});

test('a page that nobody sees gives its stream back, and loads anew when it is seen', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  globalThis.EventSource = FakeSource;
  const hears = [];
  globalThis.document = { hidden: false, addEventListener: (_, fn) => hears.push(fn), removeEventListener: () => hears.pop() };
  let loads = 0;
  const feed = new Feed({ fresh() {}, failed() {}, standing() {} }, { run: 'r_1', load: async () => void loads++, busy: () => false, tick() {}, broken() {} });
  await feed.start(() => '1-1');
  const look = (hidden) => {
    document.hidden = hidden;
    hears.forEach((fn) => fn());
  };
  look(true);
  t.mock.timers.tick(5000);
  look(false);
  t.mock.timers.tick(20_000);
  assert.ok(!FakeSource.all[0].closed, 'a short look elsewhere costs nothing');
  look(true);
  t.mock.timers.tick(20_000);
  assert.ok(FakeSource.all[0].closed);
  look(false);
  assert.equal(FakeSource.all.length, 2);
  assert.equal(loads, 1);
  FakeSource.all[1].onopen();
  t.mock.timers.tick(1000);
  assert.equal(loads, 2, 'once it is open nothing can be missed');
  feed.destroy();
  assert.ok(FakeSource.all[1].closed && hears.length === 0);

  document.hidden = true; // opened behind another page
  const behind = new Feed({ fresh() {}, failed() {}, standing() {} }, { load: async () => {}, busy: () => false, tick() {}, broken() {} });
  await behind.start();
  t.mock.timers.tick(20_000);
  assert.ok(FakeSource.all[2].closed);
  behind.destroy();
  delete globalThis.document;
});
