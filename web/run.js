// @ts-check
// run.js - one run: how it stands, its curves, its silos and rounds, and what can be done to it.

import * as f from './format.js';
import { all, get, post } from './api.js';
import { comparePath, experimentPath, runPath } from './address.js';
import { checkpointsTable, eventsTable, latestList, merged, specView } from './details.js';
import { confirmed, h, icon, ICONS, pill, progress, segmented, setText, toast } from './dom.js';
import { Feed } from './feed.js';
import { fork } from './fork.js';
import { Panel } from './panel.js';
import { roundsTable } from './rounds.js';
import { AXES, smoothingAt, smoothingOf } from './series.js';
import { nowTable, runSilosTable } from './silos.js';

const ROUNDS = 500;
const TABS = /** @type {[string, string][]} */ ([['', 'Rounds'], ['silos', 'Silos'], ['checkpoints', 'Checkpoints'], ['events', 'Events'], ['spec', 'Spec']]);
const LIVE = ['created', 'running', 'paused'];

/** Which actions its state allows. Pure. @param {string} state */
export const runActions = (state) => (state === 'running' ? ['pause', 'stop'] : state === 'paused' ? ['resume', 'stop'] : state === 'created' ? ['stop'] : []);

const ASK = /** @type {Record<string, [string, string]>} */ ({
  pause: ['Pause', 'The round under way goes on to its end; no new one opens until the run is resumed.'],
  resume: ['Resume', 'Silos get tasks again.'],
  stop: ['Stop', 'The run ends here for good. Its checkpoints and numbers remain.'],
});

/** Where a run came from in words, or ''. Pure. @param {any} run */
export const lineage = (run) => (run.parent ? `Forked from ${run.parent.name}, checkpoint ${run.parent.checkpoint}` : '');

/** What is going on in a sentence, or ''. Pure. @param {any} run @param {number} now */
export function phase(run, now) {
  if (run.waiting_for) return `Waiting for ${run.waiting_for}`;
  const r = run.live_round;
  if (!r) return '';
  if (r.state === 'aggregating') return `Round ${r.number}: aggregating ${f.plural(r.accepted, 'update')}`;
  if (r.state === 'pending') return `Round ${r.number}: about to open`;
  return `Round ${r.number}: ${r.accepted} of ${r.silos_expected} updates are in${r.deadline ? `, deadline ${f.until(r.deadline, now)}` : ''}`;
}

/**
 * The headline numbers: what, its value, and a line below it. Pure.
 * @param {any} run @param {number} now @returns {{key: string, label: string, value: string, sub: string, title?: string}[]}
 */
export function vitals(run, now) {
  const best = f.isNumber(run.best_eval_loss) ? (run.best_round === run.round ? 'lowest so far' : `best ${f.perplexity(Math.exp(run.best_eval_loss))}, round ${run.best_round}`) : '';
  const from = f.isNumber(run.initial_eval_loss) ? `from ${f.perplexity(Math.exp(run.initial_eval_loss))}` : '';
  const each = run.round > 0 ? (/** @type {number} */ v) => v / run.round : null;
  const bytes = run.upload_bytes + run.download_bytes;
  return [
    { key: 'ppl', label: 'Perplexity', value: f.perplexity(run.eval_ppl), sub: [best, from].filter(Boolean).join(' · ') || 'not evaluated yet' },
    { key: 'round', label: 'Round', value: `${run.round} / ${run.rounds}`, sub: '' },
    { key: 'eta', label: LIVE.includes(run.state) ? 'Time left' : 'Took',
      value: LIVE.includes(run.state) ? f.duration(run.eta_s) : f.duration((Date.parse(run.finished_at ?? run.updated_at) - Date.parse(run.created_at)) / 1000),
      sub: LIVE.includes(run.state) ? (f.isNumber(run.eta_s) ? `until ${f.when(now / 1000 + run.eta_s, now)}` : `started ${f.ago(run.created_at, now)}`)
        : `ended ${f.ago(run.finished_at ?? run.updated_at, now)}` },
    { key: 'tokens', label: 'Tokens', value: f.count(run.tokens), sub: each ? `${f.count(each(run.tokens))} a round` : '', title: f.exact(run.tokens) },
    { key: 'silos', label: 'Silos here', value: `${run.silos_live} / ${run.silos_per_round}`,
      sub: run.silos_live < run.silos_per_round && LIVE.includes(run.state) ? `${run.silos_per_round - run.silos_live} missing` : 'asked for in a round' },
    { key: 'bytes', label: 'Traffic', value: f.bytes(bytes), sub: each ? `${f.bytes(each(bytes))} a round` : '',
      title: `${f.bytes(run.upload_bytes)} received by the server, ${f.bytes(run.download_bytes)} sent` },
  ];
}

/** The line under the name. Pure. @param {any} run @param {any} spec */
export function summary(run, spec) {
  return [run.preset, `${f.count(run.params)} parameters`, spec?.outer?.name, spec?.inner?.optimizer,
    spec?.federation?.local_steps ? `${f.plural(spec.federation.local_steps, 'local step')}` : '',
    spec?.federation?.overlap_steps ? `${spec.federation.overlap_steps} of them ahead` : '',
    spec?.federation?.fragments > 1 ? `${spec.federation.fragments} fragments in turn` : '',
    `started ${f.stamp(run.created_at)}`].filter(Boolean).join(' · ');
}

/**
 * The controls above charts: x axis, smoothing, per-silo lines.
 * @param {import('./app.js').App} app @param {{silos: boolean}} o
 */
export function chartControls(app, o) {
  const axes = segmented('X axis', Object.entries(AXES).map(([k, a]) => [k, a.label]), app.view().x, (x) => app.change({ x, xr: null }));
  const range = /** @type {HTMLInputElement} */ (h('input', { type: 'range', min: 0, max: 100, step: 1, id: 'smoothing',
    oninput: () => app.change({ sm: smoothingOf(Number(range.value)) }, false),
    onchange: () => app.change({ sm: smoothingOf(Number(range.value)) }) }));
  const told = h('output', { for: 'smoothing' });
  const logX = h('button.toggle', { type: 'button', onclick: () => app.change({ lx: !app.view().lx, xr: null }) }, 'Log x');
  const silos = h('button.toggle', { type: 'button', onclick: () => app.change({ silos: !app.view().silos }) }, 'Per silo');
  const root = h('div.controls', { role: 'toolbar', 'aria-label': 'Charts' }, axes.root, logX, o.silos ? silos : null,
    h('div.smooth', null, h('label', { for: 'smoothing' }, 'Smoothing'), range, told));
  return { root, update: () => {
    const v = app.view();
    axes.set(v.x);
    logX.setAttribute('aria-pressed', String(v.lx));
    silos.setAttribute('aria-pressed', String(v.silos));
    if (document.activeElement !== range) range.value = String(smoothingAt(v.sm));
    range.setAttribute('aria-valuetext', v.sm ? String(v.sm) : 'off');
    setText(told, v.sm ? String(v.sm) : 'off');
  } };
}

/** Keys for the charts of a page. @param {import('./app.js').App} app @param {string} key */
export function chartKey(app, key) {
  const v = app.view();
  if (key === 'r') app.change({ xr: null });
  if (key === 'l') app.change({ ly: v.ly === null ? false : null });
  const to = smoothingAt(v.sm) + (key === ']' ? 5 : -5);
  if (key === '[' || key === ']') app.change({ sm: smoothingOf(Math.max(0, Math.min(100, to))) });
}

/** @param {import('./app.js').App} app @param {HTMLElement} main @param {string} id */
export function runPage(app, main, id) {
  const base = `/api/v1/runs/${encodeURIComponent(id)}`;
  /** @type {any} */ let run = null;
  /** @type {any} */ let spec = null;
  /** @type {any[]} */ let rounds = [];
  /** @type {any[]} */ let silos = [];
  /** @type {any[]} */ let checkpoints = [];
  /** @type {any[]} */ let events = [];
  app.title('');

  const context = { runs: [{ id, name: id }], silos: /** @type {{id: string, name: string}[]} */ ([]), drawing: app.drawing, view: app.view,
    shade: app.shade, change: app.change, panels: /** @type {Panel[]} */ ([]) };
  const ppl = new Panel(context, { title: 'Perplexity', metrics: ['eval_ppl'], tall: true, empty: 'The first value comes when the initial model has been evaluated.' });
  const small = [
    new Panel(context, { title: 'Loss', metrics: ['train_loss', 'eval_loss'], empty: 'The first values come with the first local steps.' }),
    new Panel(context, { title: 'Tokens per second', metrics: ['tokens_per_s'], empty: 'The first values come with the first local steps.' }),
    new Panel(context, { title: 'Bytes per round', metrics: ['upload_bytes', 'download_bytes'], empty: 'The first values come with the first closed round.' }),
  ];

  const name = h('h1', null, id);
  const state = h('span');
  const sub = h('p.sub', null, 'Loading…');
  const crumb = h('div.crumbs', null, h('a.crumb', { href: '/' }, icon(ICONS.back), 'Runs'));
  const actions = h('div.row');
  const banner = h('p.banner', { hidden: true });
  const doing = h('p.phase', { hidden: true });
  const strip = h('dl.vitals');
  const bar = h('div');
  const controls = chartControls(app, { silos: true });
  const now = nowTable();
  const latest = latestList();
  const nowTitle = h('h2', null, 'Silos now');
  const tables = { '': roundsTable(id), silos: runSilosTable(() => app.view().sort, (sort) => app.change({ sort })),
    checkpoints: checkpointsTable(app.admin ? (n) => fork(app, run, spec, n) : null), events: eventsTable(), spec: specView() };
  const tabs = TABS.map(([key, word]) => h('button', { type: 'button', role: 'tab', id: `tab-${key || 'rounds'}`, 'aria-controls': 'tabpanel',
    dataset: { tab: key }, onclick: () => app.change({ tab: key, sort: '' }), onkeydown: tabKey }, word));
  const tabpanel = h('div.card.flush', { role: 'tabpanel', id: 'tabpanel', tabindex: 0 });
  const notice = app.drawing ? null : h('p.banner', { dataset: { tone: 'warn' } }, 'The chart library is not installed on the server, so the numbers are shown as tables. “make web” fetches it.');

  main.replaceChildren(
    h('div.head', null, h('div', null, crumb, h('div.row', null, name, state), sub), h('span.grow'), actions),
    banner, strip, doing, notice ?? '', controls.root,
    h('div.stage', null, ppl.root, h('section.card.now', { 'aria-label': 'Silos now' }, h('header', null, nowTitle), now.root, latest.root)),
    h('div.trio', null, ...small.map((p) => p.root)),
    h('div.tabs', { role: 'tablist', 'aria-label': 'Details' }, ...tabs), tabpanel);

  /** @param {KeyboardEvent} e */
  function tabKey(e) {
    const at = TABS.findIndex(([k]) => k === app.view().tab);
    const to = e.key === 'ArrowRight' ? at + 1 : e.key === 'ArrowLeft' ? at - 1 : e.key === 'Home' ? 0 : e.key === 'End' ? TABS.length - 1 : -9;
    if (to === -9) return;
    e.preventDefault();
    const next = TABS[(to + TABS.length) % TABS.length][0];
    app.change({ tab: next, sort: '' });
    tabs.find((b) => b.dataset.tab === next)?.focus();
  }

  /** @param {string} action */
  async function act(action) {
    const [verb, text] = ASK[action];
    if (!(await confirmed(`${verb} ${run.name}?`, text, verb, action === 'stop'))) return;
    try {
      run = await post(`${base}/actions`, { action });
      toast(`${run.name}: ${run.state}`);
    } catch (e) {
      toast(/** @type {Error} */ (e).message, 'bad');
    }
    paint();
    feed.kick();
  }

  function paintHead() {
    app.title(`${f.isNumber(run.eval_ppl) ? `${f.perplexity(run.eval_ppl)} · ` : ''}${run.name}`);
    setText(name, run.name);
    state.replaceChildren(pill(run.state));
    setText(sub, summary(run, spec));
    const wanted = `${run.experiment}\n${app.admin ? run.state : ''}`;
    if (actions.dataset.mark !== wanted) {
      actions.dataset.mark = wanted;
      crumb.replaceChildren(h('a.crumb', { href: '/' }, icon(ICONS.back), 'Runs'),
        run.experiment ? h('a.crumb', { href: experimentPath(run.experiment) }, run.experiment) : '',
        run.parent ? h('a.crumb', { href: runPath(run.parent.run) }, lineage(run)) : '');
      const glyph = /** @type {Record<string, string>} */ ({ pause: ICONS.pause, resume: ICONS.play, stop: ICONS.stop });
      actions.replaceChildren(h('a.button', { href: run.experiment ? experimentPath(run.experiment) : comparePath([id]) }, 'Compare'),
        ...(app.admin ? runActions(run.state) : []).map((a) =>
          h(`button.button${a === 'stop' ? '.danger' : ''}`, { type: 'button', onclick: () => act(a) }, icon(glyph[a]), ASK[a][0])));
    }
    banner.hidden = !run.reason;
    banner.dataset.tone = run.state === 'failed' ? 'bad' : 'warn';
    setText(banner, run.reason ? `${run.state[0].toUpperCase()}${run.state.slice(1)}: ${run.reason}` : '');
    const going = LIVE.includes(run.state) ? phase(run, Date.now()) : '';
    doing.hidden = !going;
    setText(doing, going);
    doing.dataset.tone = run.waiting_for ? 'warn' : 'ok';
  }

  function paintVitals() {
    const r = run.live_round;
    const part = r && r.silos_expected ? r.accepted / r.silos_expected : 0;
    bar.replaceChildren(progress(run.round, run.rounds, 'Rounds', part));
    const list = vitals(run, Date.now());
    if (strip.children.length === 0) {
      strip.append(...list.map((v) => h('div', { dataset: { key: v.key } }, h('dt', null, v.label), h('dd', null, h('span.big'),
        v.key === 'round' ? bar : h('span.under')))));
    }
    list.forEach((v, i) => {
      const box = /** @type {HTMLElement} */ (strip.children[i]);
      if (v.title) box.title = v.title;
      setText(/** @type {Element} */ (box.querySelector('dt')), v.label);
      setText(/** @type {Element} */ (box.querySelector('.big')), v.value);
      const under = box.querySelector('.under');
      if (under) setText(under, v.sub);
    });
  }

  function paint() {
    const v = app.view();
    controls.update();
    for (const b of tabs) {
      const on = b.dataset.tab === v.tab;
      b.setAttribute('aria-selected', String(on));
      b.tabIndex = on ? 0 : -1;
    }
    const key = /** @type {keyof typeof tables} */ (v.tab in tables ? v.tab : '');
    const shown = tables[key];
    tabpanel.setAttribute('aria-labelledby', `tab-${key || 'rounds'}`);
    if (tabpanel.firstChild !== shown.root) tabpanel.replaceChildren(shown.root);
    if (!run) return;
    paintHead();
    paintVitals();
    now.update(silos);
    latest.update(events);
    setText(nowTitle, silos.length ? `Silos now · ${silos.filter((s) => !['gone', 'revoked'].includes(s.status)).length} of ${silos.length} here` : 'Silos now');
    if (key === '') tables[''].update(rounds);
    if (key === 'silos') tables.silos.update(silos);
    if (key === 'checkpoints') tables.checkpoints.update(checkpoints);
    if (key === 'events') tables.events.update(events);
    if (key === 'spec' && spec) tables.spec.update(spec);
  }

  let first = true;
  let newest = ''; // event when the first load began, chatter too: the stream goes on there
  const feed = new Feed(app, {
    run: id,
    load: async () => {
      newest ||= (await get(`${base}/events?limit=1`)).items[0]?.id ?? '';
      [run, rounds, silos, checkpoints, spec] = await Promise.all([get(base), all(`${base}/rounds`, ROUNDS), all(`${base}/silos`, 1000),
        all(`${base}/checkpoints`, ROUNDS), spec ?? get(`${base}/spec`)]);
      events = merged(events, (await get(`${base}/events?chatter=0&limit=200`)).items);
      context.runs = [{ id, name: run.name }];
      context.silos = [...silos].sort((a, b) => (a.id < b.id ? -1 : 1)).map((s) => ({ id: s.id, name: s.name }));
      paint();
      if (first) context.panels.forEach((p) => p.show());
      else await Promise.all(context.panels.map((p) => p.refresh()));
      first = false;
    },
    event: (_, e) => {
      events = merged(events, [e]);
      latest.update(events);
      if (app.view().tab === 'events') tables.events.update(events);
    },
    busy: () => run?.state === 'running',
    tick: paint,
    broken: (e) => {
      if (run) return;
      banner.hidden = false;
      banner.dataset.tone = 'bad';
      setText(banner, `This run could not be loaded: ${/** @type {Error} */ (e).message}.`);
      setText(sub, '');
    },
  });
  feed.start(() => newest);
  const onKey = (/** @type {Event} */ e) => chartKey(app, /** @type {CustomEvent} */ (e).detail);
  main.addEventListener('photon-key', onKey);
  paint();
  return {
    update: () => {
      paint();
      context.panels.forEach((p) => p.show());
    },
    destroy: () => {
      main.removeEventListener('photon-key', onKey);
      feed.destroy();
      context.panels.forEach((p) => p.destroy());
    },
  };
}
