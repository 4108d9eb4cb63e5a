// fixture.mjs - a server with the shape of docs/API.md and data that a test controls.
//
// For what a real federation cannot be asked for: hostile names, twenty runs of a million points, an event
// at a given instant, a server that dies. It serves web/ under the same headers as photon-server.
//   node tests/web/fixture.mjs [port]     to look at it
import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { createHash } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import path from 'node:path';

const WEB = fileURLToPath(new URL('../../web/', import.meta.url));
const TYPES = { '.html': 'text/html; charset=utf-8', '.js': 'text/javascript; charset=utf-8', '.css': 'text/css; charset=utf-8', '.svg': 'image/svg+xml' };
export const CSP = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
  "base-uri 'none'; frame-ancestors 'none'; form-action 'self'";
export const HOSTILE = '<img src=x onerror=alert(1)>';

const iso = (ms) => new Date(ms).toISOString();
const hex = (seed) => createHash('sha256').update(String(seed)).digest('hex');
/** A fixed stream of numbers in [0, 1). */
const noise = (seed) => () => {
  seed = (seed * 1664525 + 1013904223) >>> 0;
  return seed / 2 ** 32;
};

export class World {
  constructor({ now = Date.now(), role = 'admin', token = '' } = {}) {
    Object.assign(this, { now, role, token, runs: [], silos: [], rounds: {}, series: {}, specs: {}, checkpoints: {}, runSilos: {}, events: [], audit: [], tokens: [], seq: 0,
      streams: new Set(), asked: [], forks: [], refusals: [], held: null, missing: [], broken: '' });
  }

  addSilo(id, name, more = {}) {
    const silo = { id, name, state: 'active', status: 'training', last_seen_at: iso(this.now - 4000), device: 'cpu, 2 threads, bf16', version: '0.1.0',
      tokens_per_s: 41000, tokens: 307200, rounds: 3, upload_bytes: 12732000, download_bytes: 16976000, failures: 0, train_loss: 3.31,
      step: 12, steps: 64, round: 4, created_at: iso(this.now - 86400e3), ...more };
    this.silos.push(silo);
    return silo;
  }

  /** A run whose evaluation loss falls as c + a·exp(-k·n); points = how many training points it claims to have. */
  addRun(id, name, { rounds = 20, closed = 8, a = 3.4, floor = 3.2, k = 0.25, state = 'running', points = 0, silos = this.silos, more = {}, spec = {} } = {}) {
    const start = this.now - (closed + 1) * 60e3;
    const rand = noise(hex(id).charCodeAt(3) * 7919 + closed);
    const lossAt = (n) => floor + a * Math.exp(-k * n);
    const evals = Array.from({ length: closed + (closed >= 0 ? 1 : 0) }, (_, n) => lossAt(n) + 0.02 * (rand() - 0.5) * Number(n > 0));
    const best = evals.slice(1).length ? Math.min(...evals.slice(1)) : null;
    const perRound = 65536 * Math.max(1, silos.length);
    const bytes = 4244000 * Math.max(1, silos.length);
    const round = (n, over = {}) => ({ number: n, attempt: 1, state: 'closed', silos_expected: silos.length, quorum: Math.max(1, silos.length - 1), accepted: silos.length, dropped: 0,
      opened_at: iso(start + n * 60e3), deadline: iso(start + n * 60e3 + 3600e3), sealed_at: iso(start + n * 60e3 + 40e3), closed_at: iso(start + n * 60e3 + 41e3), seconds: 41.2 + rand(),
      split: { download_s: 0.4 + rand(), train_s: 31 + 3 * rand(), upload_s: 0.9 + 2 * rand(), aggregate_s: 0.3 + rand() / 4, eval_s: 2 + rand() },
      train_loss: evals[n] + 0.05, eval_loss: evals[n], eval_ppl: Math.exp(evals[n]), tokens: perRound, upload_bytes: bytes, download_bytes: bytes * 1.02 | 0,
      delta_norm: 1.6 * Math.exp(-0.1 * n), outer_step_norm: 1.6 * Math.exp(-0.1 * n), manifest: hex(`m${n}`), base_sha256: hex(`b${n - 1}`), ...over });
    const list = Array.from({ length: closed }, (_, i) => round(i + 1));
    const live = state === 'running' && closed < rounds ? round(closed + 1, { state: 'open', accepted: Math.max(0, silos.length - 2), sealed_at: null, closed_at: null, seconds: null, split: null,
      train_loss: null, eval_loss: null, eval_ppl: null, tokens: 0, upload_bytes: 0, download_bytes: bytes, delta_norm: null, outer_step_norm: null, deadline: iso(this.now + 1800e3) }) : null;
    if (live) list.push(live);
    this.rounds[id] = list;
    this.checkpoints[id] = evals.map((loss, n) => ({ number: n, sha256: hex(`${id}${n}`), bytes: 4244000, params: 1060864, weights_digest: hex(n), eval_loss: loss, eval_ppl: Math.exp(loss),
      created_at: iso(start + n * 60e3 + 41e3), kept: n > closed - 3 || n === 0, url: `/api/v1/runs/${id}/checkpoints/${n}/weights` }));
    const run = { id, name, experiment: 'demo', state, round: closed, rounds, preset: '', params: 1060864, tokens: closed * perRound, eval_loss: evals.at(-1) ?? null,
      eval_ppl: evals.length ? Math.exp(evals.at(-1)) : null, silos_live: silos.filter((s) => s.status !== 'gone').length, silos_per_round: silos.length,
      created_at: iso(start), updated_at: iso(this.now - 7000), finished_at: state === 'finished' ? iso(this.now - 7000) : null, upload_bytes: closed * bytes, download_bytes: closed * bytes * 1.02 | 0,
      reason: null, initial_eval_loss: evals[0] ?? null, best_eval_loss: best, best_round: best === null ? null : evals.indexOf(best), live_round: live,
      eta_s: state === 'running' ? (rounds - closed) * 42 : null, waiting_for: null, head_checkpoint: this.checkpoints[id].at(-1) ?? null, ...more };
    this.runs.unshift(run);
    this.specs[id] = { name, experiment: 'demo', seed: 17, model: { d_model: 128, n_heads: 4, n_layers: 4, vocab_size: 320, seq_len: 256, position: 'learned', bias: true },
      federation: { rounds, silos_per_round: silos.length, min_silos: 3, local_steps: 64, deadline_s: 86400 }, inner: { optimizer: 'adamw', lr: 0.001, betas: [0.9, 0.95], batch: 8, warmup: 100 },
      outer: { name: 'fedavg', lr: 1, momentum: 0 }, weights: 'tokens', inner_state: 'keep', codec: { up: 'f32', down: 'f32' }, eval: { every: 1, windows: 16 }, keep_checkpoints: 3, ...spec };
    this.runSilos[id] = silos;
    this.makeSeries(id, { evals, closed, perRound, bytes, start, points, silos, lossAt, rand });
    return run;
  }

  makeSeries(id, { evals, closed, perRound, bytes, start, points, silos, lossAt, rand }) {
    const at = { round: (n) => n, step: (n) => n * 64, tokens: (n) => n * perRound, elapsed: (n) => n * 60, time: (n) => start / 1000 + n * 60, bytes: (n) => n * bytes * 2 };
    const set = this.series[id] = {};
    const put = (metric, silo, ns, value) => {
      (set[metric] ??= []).push({ silo, ns, ys: ns.map(value), at });
    };
    const rounds = Array.from({ length: closed }, (_, i) => i + 1);
    put('eval_loss', null, evals.map((_, n) => n), (n) => evals[n]);
    put('eval_ppl', null, evals.map((_, n) => n), (n) => Math.exp(evals[n]));
    for (const s of silos) put('eval_ppl', s.id, evals.map((_, n) => n), (n) => Math.exp(evals[n] + 0.08 * (rand() - 0.5)));
    const dense = closed ? Array.from({ length: Math.min(1500, Math.max(closed * 64, points)) }, (_, i, m = Math.min(1500, Math.max(closed * 64, points))) => ((i + 1) / m) * closed) : [];
    this.claimed ??= {};
    this.claimed[id] = points || dense.length;
    put('train_loss', null, dense, (n) => lossAt(n) + 0.06 + 0.12 * (rand() - 0.5));
    put('tokens_per_s', null, dense, () => 41000 * Math.max(1, silos.length) * (0.96 + 0.08 * rand()));
    for (const s of silos) {
      put('train_loss', s.id, dense, (n) => lossAt(n) + 0.06 + 0.3 * (rand() - 0.5));
      put('tokens_per_s', s.id, dense, () => (s.tokens_per_s ?? 41000) * (0.9 + 0.2 * rand()));
      put('upload_bytes', s.id, rounds, () => bytes / silos.length);
    }
    put('upload_bytes', null, rounds, () => bytes);
    put('download_bytes', null, rounds, () => bytes * 1.02 | 0);
    put('delta_norm', null, rounds, (n) => 1.6 * Math.exp(-0.1 * n));
  }

  /** Replace a metric's numbers outright: xs are rounds. */
  setSeries(run, metric, ns, ys) {
    const at = this.series[run].eval_loss[0].at;
    this.series[run][metric] = [{ silo: null, ns, ys, at }];
  }

  /** The newest token. */
  addToken(id, name, role, more = {}) {
    const token = { id, name, role, created_at: iso(this.now - 864e5 + this.tokens.length * 60e3), expires_at: null, revoked_at: null, last_used_at: null, ...more };
    this.tokens.unshift(token);
    return token;
  }

  /** A run that begins with a checkpoint of another one; the same key again gives the same. */
  fork(from, body, key) {
    const known = this.forks.find((x) => x.key === key);
    if (known) return known.run;
    const parent = this.runs.find((r) => r.id === from);
    const run = this.addRun(`r_01FORK${this.forks.length}`, body.name, { closed: 0, rounds: body.spec?.federation?.rounds ?? parent.rounds, state: 'created',
      more: { parent: { run: from, name: parent.name, checkpoint: body.checkpoint, steps: 64 * body.checkpoint } } });
    this.forks.push({ from, body, key, run });
    return run;
  }

  /** The newest row of the audit log. */
  addAudit(action, object, more = {}) {
    const id = this.audit.length + 1;
    this.audit.unshift({ id: String(id), at: iso(this.now - 864e5 + id * 60e3), role: 'admin', token: 'k_01OP', name: 'operator', address: '192.0.2.7', action, object, status: 200,
      left_out: 0, request: `q_${id}`, ...more });
  }

  answerSeries(q) {
    const x = q.get('x') ?? 'round';
    const [from, to] = [q.get('from'), q.get('to')].map((v) => (v === null || v === '' ? null : Number(v)));
    const a = Number(q.get('smooth') ?? 0);
    const silo = q.get('silo');
    const out = [];
    for (const id of q.get('run').split(',')) {
      for (const one of this.series[id]?.[q.get('metric')] ?? []) {
        if (silo === 'all' ? !one.silo : silo ? one.silo !== silo : one.silo) continue;
        const all = one.ns.map((n, i) => [one.at[x](n), one.ys[i]]);
        const smooth = ema(all.map((p) => p[1]), a, q.get('metric') === 'eval_ppl');
        const keep = all.map((p, i) => [...p, smooth[i]]).filter(([v]) => (from === null || v >= from) && (to === null || v <= to));
        out.push({ run: id, run_name: this.runs.find((r) => r.id === id).name, silo: one.silo, silo_name: this.silos.find((s) => s.id === one.silo)?.name ?? null,
          points: one.ns.length >= 1500 ? this.claimed[id] : keep.length, shown: keep.length, xs: keep.map((p) => p[0]), ys: keep.map((p) => (Number.isFinite(p[1]) ? p[1] : null)),
          smooth: a > 0 ? keep.map((p) => p[2]) : null, mins: keep.map((p) => (Number.isFinite(p[1]) ? p[1] : null)), maxs: keep.map((p) => (Number.isFinite(p[1]) ? p[1] : null)) });
      }
    }
    return { metric: q.get('metric'), x, series: out };
  }

  /** What is asked from here on is answered when the function that this gives is called. */
  hold() {
    let go;
    this.held = new Promise((ok) => (go = ok));
    return () => {
      this.held = null;
      go();
    };
  }

  emit(topic, kind, run, message, more = {}) {
    const e = { id: `7-${++this.seq}`, at: iso(Date.now()), kind, run, round: null, silo: null, detail: {}, message, ...more };
    this.events.push({ topic, e });
    for (const s of this.streams) s(topic, e);
    return e;
  }
}

function ema(ys, a, exp) {
  let s = 0;
  let w = 0;
  return ys.map((y) => {
    if (!Number.isFinite(y)) return null;
    s = a * s + (1 - a) * (exp ? Math.log(y) : y);
    w = a * w + (1 - a);
    return exp ? Math.exp(s / w) : s / w;
  });
}

/** The usual picture: a run half way, one finished, five silos of which one is slow, one gone and one hostile. */
export function demoWorld(o = {}) {
  const w = new World(o);
  w.addSilo('s_01A', 'hospital-a');
  w.addSilo('s_01B', 'university-b', { tokens_per_s: 39800, step: 20 });
  w.addSilo('s_01C', HOSTILE, { tokens_per_s: 40100, status: 'uploading', step: 64 });
  w.addSilo('s_01D', 'institute-d', { tokens_per_s: 14100, step: 7, failures: 2 });
  w.addSilo('s_01E', 'lab-e', { status: 'gone', last_seen_at: iso(w.now - 340e3), tokens_per_s: null, step: null, steps: null });
  w.addRun('r_01OLD', 'tiny-fednesterov', { closed: 20, k: 0.19, floor: 3.1, state: 'finished', spec: { outer: { name: 'fednesterov', lr: 0.7, momentum: 0.9 }, seed: 18 } });
  w.addRun('r_01PAUSED', 'tiny-paused', { closed: 3, state: 'paused', more: { reason: 'an admin paused it' } });
  w.addRun('r_01RUN', 'tiny-fedavg', { closed: 11 });
  for (let n = 1; n <= 11; n++) {
    w.emit('round', 'round_opened', 'r_01RUN', `round ${n} opened for 5 silos`, { round: n });
    w.emit('task', 'update_accepted', 'r_01RUN', `update of ${HOSTILE} accepted`, { round: n });
    w.emit('round', 'round_closed', 'r_01RUN', `round ${n} closed with 5 of 5 updates`, { round: n });
    w.emit('checkpoint', 'checkpoint_created', 'r_01RUN', `checkpoint ${n}`, { round: n });
  }
  w.emit('silo', 'silo_gone', 'r_01RUN', 'lab-e was not heard of for 75 s');
  w.addAudit('token_create', 'k_01OP', { role: 'nobody', token: null, name: 'photon-server', address: '', status: 201 });
  w.addAudit('login', '', { status: 204 });
  w.addAudit('token_create', 'k_01JOIN', { status: 201 });
  w.addAudit('silo_join', 's_01A', { role: 'join', token: 'k_01JOIN', name: 'hospital-a', address: '198.51.100.24', status: 201 });
  w.addAudit('run_create', 'r_01RUN', { status: 201 });
  w.addToken('k_01OP', 'operator', 'admin', { last_used_at: iso(w.now - 5e3) });
  w.addToken('k_01GUEST', HOSTILE, 'viewer', { expires_at: iso(w.now + 864e5) });
  w.addToken('k_01OLD', 'old', 'viewer', { expires_at: iso(w.now - 864e5) });
  w.addToken('k_01JOIN', 'hospital-a', 'join', { expires_at: iso(w.now + 864e5) });
  w.addAudit('checkpoint_download', 'r_01OLD/20', { role: 'viewer', token: 'k_01GUEST', name: HOSTILE, address: '2001:db8::7' });
  w.addAudit('access', `GET /api/v1/runs/${HOSTILE}`, { role: 'nobody', token: null, name: '', address: '203.0.113.9', status: 401, left_out: 1204 });
  w.addAudit('run_pause', 'r_01OLD', { status: 409 });
  w.addAudit('run_pause', 'r_01PAUSED');
  return w;
}

/** @returns {Promise<{url: string, port: number, close: () => Promise<void>}>} */
export async function serve(world, port = 0) {
  const sockets = new Set();
  const server = createServer((req, res) => handle(world, req, res).catch((e) => {
    res.writeHead(500);
    res.end(String(e.stack));
  }));
  server.on('connection', (s) => {
    sockets.add(s);
    s.on('close', () => sockets.delete(s));
  });
  await new Promise((ok, no) => server.once('error', no).listen(port, '127.0.0.1', ok));
  return { url: `http://127.0.0.1:${server.address().port}`, port: server.address().port,
    close: () => new Promise((ok) => {
      server.close(ok);
      for (const s of sockets) s.destroy();
    }) };
}

async function handle(world, req, res) {
  const url = new URL(req.url, 'http://x');
  const p = decodeURIComponent(url.pathname);
  const head = { 'Content-Security-Policy': CSP, 'X-Content-Type-Options': 'nosniff' };
  world.asked.push(`${req.method} ${req.url}`);
  await world.held;
  const send = (status, body, type = 'application/json', more = {}) => {
    const text = typeof body === 'string' || Buffer.isBuffer(body) ? body : JSON.stringify(body);
    const etag = `"${createHash('sha256').update(text).digest('hex').slice(0, 20)}"`;
    if (req.method === 'GET' && status === 200 && req.headers['if-none-match'] === etag) {
      res.writeHead(304, { ...head, ETag: etag });
      return res.end();
    }
    res.writeHead(status, { ...head, 'Content-Type': type, ETag: etag, 'Cache-Control': 'no-cache', ...more });
    res.end(text);
  };
  const problem = (status, code, detail, more = {}) => send(status, { type: 'about:blank', title: code, status, code, detail, instance: 'q_1', ...more }, 'application/problem+json');

  if (p.startsWith('/assets/')) {
    const file = path.join(WEB, path.normalize(p.slice(8)));
    if (world.missing.some((m) => p.includes(m)) || !file.startsWith(WEB)) return problem(404, 'NOT_FOUND', p);
    return readFile(file).then((b) => send(200, b, TYPES[path.extname(file)] ?? 'application/octet-stream'), () => problem(404, 'NOT_FOUND', p));
  }
  if (p === '/version') {
    return send(200, { version: '0.1.0', commit: '0', protocol: 1, public_url: null, pin: 'sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=' });
  }
  if (!p.startsWith('/api/')) return send(200, await readFile(path.join(WEB, 'index.html')), TYPES['.html']);
  if (p === '/api/v1/login') {
    const body = req.method === 'POST' ? JSON.parse(await text(req)) : {};
    if (req.method === 'POST' && body.token !== world.token) return problem(401, 'UNAUTHORIZED', 'this token is not known');
    res.writeHead(204, { ...head, 'Set-Cookie': `photon=${req.method === 'POST' ? body.token : ''}; HttpOnly; SameSite=Strict; Path=/` });
    return res.end();
  }
  if (world.token && !(req.headers.cookie ?? '').includes(`photon=${world.token}`)) return problem(401, 'UNAUTHORIZED', 'log in first');
  if (p === '/api/v1/stream') return stream(world, url, req, res, head);
  const body = req.method === 'POST' ? JSON.parse(await text(req)) : null;
  if (world.broken === p) return problem(503, 'UNAVAILABLE', 'the database is away');
  if (world.role !== 'admin' && ['/api/v1/audit', '/api/v1/tokens'].includes(p)) return problem(403, 'FORBIDDEN', 'this needs an admin token');
  const forked = /^\/api\/v1\/runs\/([^/]+)\/fork$/.exec(p);
  if (forked && req.method === 'POST') {
    if (world.role !== 'admin') return problem(403, 'FORBIDDEN', 'this needs an admin token');
    const refusal = world.refusals.shift();
    if (refusal) return problem(refusal.status, refusal.code, refusal.detail, refusal);
    const key = req.headers['idempotency-key'];
    if (world.runs.some((r) => r.name === body.name) && !world.forks.some((x) => x.key === key)) return problem(409, 'NAME_TAKEN', `there is a run named '${body.name}' already`, { hint: 'choose another name' });
    return send(201, world.fork(forked[1], body, key));
  }
  const answer = route(world, req.method, p.slice('/api/v1'.length), url.searchParams, body);
  if (answer === null) return problem(404, 'NOT_FOUND', `${p} does not exist`);
  if (p.endsWith('.csv')) return send(200, answer, 'text/csv; charset=utf-8', { 'Content-Disposition': 'attachment; filename="series.csv"' });
  return send(200, answer);
}

function route(w, method, p, q, body) {
  const list = (items) => {
    const limit = Number(q.get('limit') ?? 50);
    const from = Number(q.get('cursor') ?? 0);
    return { items: items.slice(from, from + limit), next_cursor: from + limit < items.length ? String(from + limit) : null };
  };
  if (p === '/me') return { role: w.role, name: w.role === 'admin' ? 'operator' : 'guest' };
  if (p === '/runs') return list(w.runs.map(({ reason, live_round, ...r }) => r));
  if (p === '/silos') return list(w.silos);
  if (p === '/audit') return list(w.audit.filter((r) => (q.get('action') ?? r.action) === r.action && (q.get('token') ?? r.token) === r.token));
  if (p === '/tokens' && method === 'GET') return list(w.tokens);
  if (p === '/series') return w.answerSeries(q);
  if (p === '/series.csv') return csv(w.answerSeries(new URLSearchParams([...q, ['points', '1000000']])));
  if (p === '/tokens' && method === 'POST') {
    const { ttl_s, ...named } = body;
    const made = w.addToken(`k_${w.tokens.length}`, named.name, named.role, { expires_at: iso(w.now + ttl_s * 1000) });
    return { ...made, secret: 'photon_join_secret_0123456789' };
  }
  let m = /^\/tokens\/([^/]+)$/.exec(p);
  if (m && method === 'DELETE') {
    const token = w.tokens.find((t) => t.id === m[1]);
    if (token) token.revoked_at = iso(w.now);
    return token ?? null;
  }
  m = /^\/silos\/([^/]+)(\/actions)?$/.exec(p);
  if (m) {
    const silo = w.silos.find((s) => s.id === m[1]);
    if (silo && body) silo.state = { pause: 'paused', resume: 'active', revoke: 'revoked' }[body.action];
    return silo ?? null;
  }
  m = /^\/runs\/([^/]+)(?:\/(.*))?$/.exec(p);
  const run = m && w.runs.find((r) => r.id === m[1]);
  if (!run) return null;
  const what = m[2] ?? '';
  if (what === '') return run;
  if (what === 'actions') {
    run.state = { pause: 'paused', resume: 'running', stop: 'stopped' }[body.action];
    w.emit('run', `run_${run.state}`, run.id, `${run.name} is ${run.state}`);
    return run;
  }
  if (what === 'spec') return w.specs[run.id];
  if (what === 'silos') return list(w.runSilos[run.id]);
  if (what === 'rounds') return list([...w.rounds[run.id]].reverse());
  if (what === 'checkpoints') return list([...w.checkpoints[run.id]].reverse());
  if (what === 'events') return list(w.events.map((x) => x.e).filter((e) => e.run === run.id).reverse());
  const round = /^rounds\/(\d+)$/.exec(what);
  const found = round && w.rounds[run.id].find((r) => r.number === Number(round[1]));
  if (!found) return null;
  return { ...found, tasks: w.runSilos[run.id].map((s, i) => ({ id: `t_${i}`, slot: i, kind: 'train', silo: s.id, silo_name: s.name, state: found.state === 'closed' ? 'done' : i < found.accepted ? 'done' : 'leased',
    attempt: 1, step: found.state === 'closed' ? 64 : 12 + i, steps: 64, tokens: 65536, download_s: 0.4, train_s: 31.5, upload_s: 1.1, train_loss: found.train_loss, update_norm: 1.2, update_cosine: 0.83,
    update_sha256: hex(`${s.id}${found.number}`), update_bytes: 124786800, codec: 'int8', codec_error: 0.0071, residual_ratio: 0.0072, fallback_share: 0.02, lease_until: null })) };
}

function csv({ metric, x, series }) {
  const rows = series.flatMap((s) => s.xs.map((v, i) => [s.run_name, s.silo_name ?? '', v, s.ys[i] ?? '']));
  const cell = (v) => (/[",\r\n]/.test(String(v)) ? `"${String(v).replaceAll('"', '""')}"` : String(v));
  return [['run', 'silo', x, metric], ...rows].map((r) => r.map(cell).join(',')).join('\r\n') + '\r\n';
}

function stream(world, url, req, res, head) {
  res.writeHead(200, { ...head, 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-store' });
  res.write(': hello\n\n');
  const run = url.searchParams.get('run');
  const after = req.headers['last-event-id'] ?? url.searchParams.get('after');
  const write = (topic, e) => {
    if (!run || e.run === run) res.write(`id: ${e.id}\nevent: ${topic}\ndata: ${JSON.stringify(e)}\n\n`);
  };
  if (after) for (const { topic, e } of world.events) if (Number(e.id.split('-')[1]) > Number(after.split('-')[1])) write(topic, e);
  world.streams.add(write);
  req.on('close', () => world.streams.delete(write));
}

async function text(req) {
  const parts = [];
  for await (const c of req) parts.push(c);
  return Buffer.concat(parts).toString();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await serve(demoWorld(), Number(process.argv[2] ?? 0));
  console.log(url);
}
