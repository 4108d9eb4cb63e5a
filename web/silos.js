// @ts-check
// silos.js - silos: of one run (a table and what each does now), of the federation, and one alone.

import * as f from './format.js';
import { all, get, post } from './api.js';
import { siloPath } from './address.js';
import { confirmed, dataTable, h, icon, ICONS, nextSort, pill, progress, setText, shut, sorted, toast } from './dom.js';
import { Feed } from './feed.js';

/** What is wrong goes first, then by name. Pure. @param {any[]} silos */
export function byTrouble(silos) {
  const rank = (/** @type {any} */ s) => (s.status === 'gone' ? 0 : s.status === 'revoked' ? 2 : 1);
  return [...silos].sort((a, b) => rank(a) - rank(b) || a.name.localeCompare(b.name, 'en') || (a.id < b.id ? -1 : 1));
}

/**
 * The slowest of three or more that work, when it is clearly slower than the middle one. Pure.
 * @param {any[]} silos @returns {string | null} its id
 */
export function straggler(silos) {
  const known = silos.filter((s) => f.isNumber(s.tokens_per_s) && s.tokens_per_s > 0 && s.status !== 'gone')
    .sort((a, b) => a.tokens_per_s - b.tokens_per_s);
  if (known.length < 3) return null;
  const middle = known[Math.floor(known.length / 2)].tokens_per_s;
  return known[0].tokens_per_s < 0.6 * middle ? known[0].id : null;
}

/** @param {any} s */
const stepText = (s) => (f.isNumber(s.step) && f.isNumber(s.steps) && s.steps > 0 ? `${s.step} / ${s.steps}` : f.NONE);

const NAME = /** @type {import('./dom.js').Column<any>} */ ({
  key: 'name', label: 'Silo', wide: true, sort: (s) => s.name, text: (s) => `${s.id}\u0000${s.name}\u0000${s.slow ?? ''}\u0000${s.version ?? ''}`,
  draw: (s) => h('div.name', null, h('a', { href: siloPath(s.id) }, s.name),
    s.slow ? h('span.flag', { title: 'Its speed is below 60 % of the middle one' }, 'slowest') : null,
    h('small', null, s.version ? `photon-client ${s.version}` : s.id)),
});
const STATUS = /** @type {import('./dom.js').Column<any>} */ ({
  key: 'status', label: 'Status', sort: (s) => s.status ?? '', text: (s) => `${s.status}\u0000${s.state}`,
  draw: (s) => [pill(s.status ?? s.state), s.state !== 'active' && s.state !== s.status ? h('small', null, ` ${s.state}`) : ''],
});
const SEEN = /** @type {import('./dom.js').Column<any>} */ ({
  key: 'seen', label: 'Last heard', num: true, sort: (s) => (s.last_seen_at ? Date.parse(s.last_seen_at) : null),
  text: (s) => f.ago(s.last_seen_at, Date.now()), title: (s) => f.stamp(s.last_seen_at),
});
const DEVICE = /** @type {import('./dom.js').Column<any>} */ ({ key: 'device', label: 'Device', sort: (s) => s.device ?? null, text: (s) => s.device || f.NONE });
const SPEED = /** @type {import('./dom.js').Column<any>} */ ({ key: 'speed', label: 'Speed', num: true, sort: (s) => s.tokens_per_s, text: (s) => f.rate(s.tokens_per_s) });
const FAILURES = /** @type {import('./dom.js').Column<any>} */ ({
  key: 'failures', label: 'Failures', num: true, sort: (s) => s.failures ?? null, text: (s) => (f.isNumber(s.failures) ? String(s.failures) : f.NONE),
  draw: (s) => h(`span${s.failures > 0 ? '.bad' : ''}`, null, f.isNumber(s.failures) ? String(s.failures) : f.NONE),
});

/** @type {import('./dom.js').Column<any>[]} */
export const RUN_SILOS = [
  NAME, STATUS,
  { key: 'step', label: 'Step', num: true, sort: (s) => s.step ?? null, text: stepText },
  SEEN, DEVICE, SPEED,
  { key: 'tokens', label: 'Tokens', num: true, sort: (s) => s.tokens, text: (s) => f.count(s.tokens), title: (s) => f.exact(s.tokens) },
  { key: 'rounds', label: 'Rounds', num: true, sort: (s) => s.rounds, text: (s) => f.exact(s.rounds) },
  { key: 'loss', label: 'Training loss', num: true, sort: (s) => s.train_loss, text: (s) => f.loss(s.train_loss) },
  { key: 'up', label: 'Received', num: true, hint: 'by the server from this silo', sort: (s) => s.upload_bytes, text: (s) => f.bytes(s.upload_bytes) },
  { key: 'down', label: 'Sent', num: true, hint: 'by the server to this silo', sort: (s) => s.download_bytes, text: (s) => f.bytes(s.download_bytes) },
  FAILURES,
];

/** @param {any[]} silos */
export function marked(silos) {
  const slow = straggler(silos);
  return silos.map((s) => (s.id === slow ? { ...s, slow: 'slow' } : s));
}

/** The silos of a run as a table. @param {() => string} sort @param {(by: string) => void} onsort */
export function runSilosTable(sort, onsort) {
  const table = dataTable({ label: 'Silos of this run', columns: RUN_SILOS, key: (s) => s.id, empty: 'No silo has taken part yet.',
    onsort: (key) => onsort(nextSort(sort(), key, Boolean(RUN_SILOS.find((c) => c.key === key)?.num))) });
  return { root: table.root, update: (/** @type {any[]} */ silos) => {
    const by = sort();
    table.update(by ? sorted(marked(silos), RUN_SILOS, by) : byTrouble(marked(silos)), by);
  } };
}

/** What each silo does now: a short list beside the curve. @type {import('./dom.js').Column<any>[]} */
const NOW = [
  { ...NAME, text: (s) => `${s.id}\u0000${s.name}\u0000${s.slow ?? ''}`, draw: (s) => h('div.name', null,
    h('a', { href: siloPath(s.id) }, s.name), s.slow ? h('span.flag', { title: 'Its speed is below 60 % of the middle one' }, 'slowest') : null) },
  { key: 'doing', label: 'Status', text: (s) => `${s.status}\u0000${stepText(s)}\u0000${s.status === 'gone' ? f.ago(s.last_seen_at, Date.now()) : ''}`,
    draw: (s) => h('div.doing', null, pill(s.status ?? s.state),
      s.status === 'gone' ? h('small', null, f.ago(s.last_seen_at, Date.now()))
        : f.isNumber(s.step) && s.steps > 0 && ['training', 'uploading', 'evaluating'].includes(s.status)
          ? progress(s.step, s.steps, `Steps of ${s.name}`) : null) },
  { key: 'speed', label: 'Speed', num: true, text: (s) => (f.isNumber(s.tokens_per_s) ? `${f.count(s.tokens_per_s)}/s` : f.NONE), title: () => 'tokens per second' },
];

export function nowTable() {
  const table = dataTable({ label: 'What each silo does now', columns: NOW, key: (s) => s.id, empty: 'No silo is here yet.' });
  table.root.classList.add('now-table');
  return { root: table.root, update: (/** @type {any[]} */ silos) => table.update(byTrouble(marked(silos))) };
}

// ---- /silos --------------------------------------------------------------------------

/** @type {import('./dom.js').Column<any>[]} */
const ALL = [NAME, STATUS, SEEN, DEVICE, SPEED, FAILURES,
  { key: 'created', label: 'Joined', num: true, sort: (s) => (s.created_at ? Date.parse(s.created_at) : null),
    text: (s) => f.ago(s.created_at, Date.now()), title: (s) => f.stamp(s.created_at) }];

/** @param {import('./app.js').App} app @param {HTMLElement} main */
export function silosPage(app, main) {
  app.title('Silos');
  /** @type {any[] | null} */
  let silos = null;
  const total = h('p.sub', null, 'Loading…');
  const problem = h('p.banner', { hidden: true, dataset: { tone: 'bad' } });
  const table = dataTable({ label: 'Silos', columns: ALL, key: (s) => s.id, empty: 'No silo has joined yet.',
    onsort: (key) => app.change({ sort: nextSort(app.view().sort, key, Boolean(ALL.find((c) => c.key === key)?.num)) }) });
  main.replaceChildren(
    h('div.head', null, h('div', null, h('h1', null, 'Silos'), total), h('span.grow'),
      app.admin ? h('button.button', { type: 'button', onclick: invite }, icon(ICONS.plus), 'Invite a silo') : null),
    problem, h('div.card.flush', null, table.root));

  function paint() {
    if (!silos) return;
    const by = app.view().sort;
    const here = silos.filter((s) => !['gone', 'revoked', 'paused'].includes(s.status)).length;
    setText(total, `${here} here · ${f.plural(silos.length, 'silo')}`);
    table.update(by ? sorted(silos, ALL, by) : byTrouble(silos), by);
  }

  const feed = new Feed(app, {
    load: async () => {
      silos = await all('/api/v1/silos', 2000);
      problem.hidden = true;
      paint();
    },
    busy: () => true, tick: paint,
    broken: (e) => {
      problem.hidden = silos !== null;
      setText(problem, `The silos could not be loaded: ${/** @type {Error} */ (e).message}.`);
    },
  });
  feed.start();
  return { update: paint, destroy: () => feed.destroy() };
}

/** What a silo's operator types, but for the token. Pure. @param {any} about GET /version @param {string} origin @param {string} name */
export const joinLine = (about, origin, name) =>
  `photon-client join ${about.public_url ?? origin} --name ${name} --state ./photon-silo${about.pin ? ` --pin ${about.pin}` : ''}`;

/** A join token for one silo: shown once, here. */
function invite() {
  const name = /** @type {HTMLInputElement} */ (h('input', { id: 'invite-name', required: true, maxlength: 63, pattern: '[A-Za-z0-9][A-Za-z0-9._\\-]*',
    placeholder: 'hospital-a', autocomplete: 'off', spellcheck: 'false' }));
  const out = h('div', { 'aria-live': 'polite' });
  const make = h('button.button.primary', { type: 'submit' }, 'Make a join token');
  const close = h('button.button', { type: 'button', onclick: () => shut(dialog) }, 'Close');
  const form = h('form', { onsubmit: async (/** @type {Event} */ e) => {
    e.preventDefault();
    make.setAttribute('disabled', '');
    try {
      const about = await get('/version');
      const token = await post('/api/v1/tokens', { role: 'join', name: name.value.trim(), ttl_s: 604800 });
      out.replaceChildren(
        h('p', null, 'Send this line to the silo’s operator:'), h('pre', { tabindex: 0 }, joinLine(about, location.origin, token.name)),
        h('p', null, 'and, by another way, the token it asks for. It is shown only now, works once, and for seven days:'),
        h('pre', { tabindex: 0 }, token.secret));
    } catch (err) {
      make.removeAttribute('disabled');
      out.replaceChildren(h('p.problem', { role: 'alert' }, /** @type {Error} */ (err).message));
    }
  } }, h('h2', { id: 'invite-title' }, 'Invite a silo'),
    h('p', null, 'Makes a line for its operator to run, and a token that works once.'), h('label', { for: 'invite-name' }, 'Its name'), name, out, h('div.row.end', null, close, make));
  const dialog = /** @type {HTMLDialogElement} */ (h('dialog', { 'aria-labelledby': 'invite-title', onclose: () => dialog.remove() }, form));
  document.body.append(dialog);
  dialog.showModal();
  name.focus();
}

// ---- /silos/{silo} -------------------------------------------------------------------

/** What it moved since midnight (UTC), and what it may. Pure. @param {any} t */
export const todayText = (t) => {
  if (!t) return f.NONE;
  const of = (/** @type {number} */ n, /** @type {number | null} */ most) => f.bytes(n) + (most === null ? '' : ` of ${f.bytes(most)}`);
  return `received ${of(t.upload_bytes, t.upload_limit)}, sent ${of(t.download_bytes, t.download_limit)}`;
};

/** What is told of a silo. Pure. @param {any} s @param {number} now @returns {[string, string][]} */
export const siloFacts = (s, now) => [
  ['Status', s.status ?? s.state], ['State', s.state], ['Last heard', f.ago(s.last_seen_at, now)], ['Device', s.device || f.NONE],
  ['Speed', f.rate(s.tokens_per_s)], ['Version', s.version || f.NONE], ['Failures', f.isNumber(s.failures) ? String(s.failures) : f.NONE],
  ['Rounds', f.exact(s.rounds)], ['Tokens', f.count(s.tokens)], ['Received in all', f.bytes(s.upload_bytes)], ['Sent in all', f.bytes(s.download_bytes)],
  ['Today', todayText(s.today)], ['Joined', f.stamp(s.created_at)], ['Id', s.id],
];

/** Which actions its state allows. Pure. @param {any} s */
export const siloActions = (s) => (s.state === 'revoked' ? [] : s.state === 'paused' ? ['resume', 'revoke'] : ['pause', 'revoke']);

const SILO_ASK = /** @type {Record<string, [string, string]>} */ ({
  pause: ['Pause', 'It finishes what it holds and gets no new task until it is resumed.'],
  resume: ['Resume', 'It gets tasks again.'],
  revoke: ['Revoke', 'Its token stops working at once and for good; to come back it has to be invited again.'],
});

/** @param {import('./app.js').App} app @param {HTMLElement} main @param {string} id */
export function siloPage(app, main, id) {
  const path = `/api/v1/silos/${encodeURIComponent(id)}`;
  /** @type {any} */
  let silo = null;
  const name = h('h1', null, id);
  const state = h('span');
  const actions = h('div.row');
  const facts = h('dl.facts');
  const problem = h('p.banner', { hidden: true, dataset: { tone: 'bad' } });
  main.replaceChildren(h('div.head', null, h('div', null, h('a.crumb', { href: '/silos' }, icon(ICONS.back), 'Silos'), h('div.row', null, name, state)),
    h('span.grow'), actions), problem, h('section.card', { 'aria-label': 'Facts' }, facts));

  function paint() {
    if (!silo) return;
    app.title(silo.name);
    setText(name, silo.name);
    state.replaceChildren(pill(silo.status ?? silo.state));
    facts.replaceChildren(...siloFacts(silo, Date.now()).map(([k, v]) => h('div', null, h('dt', null, k), h('dd', null, v))));
    const wanted = app.admin ? siloActions(silo).join() : '';
    if (actions.dataset.mark === wanted) return;
    actions.dataset.mark = wanted;
    actions.replaceChildren(...(app.admin ? siloActions(silo) : []).map((a) =>
      h(`button.button${a === 'revoke' ? '.danger' : ''}`, { type: 'button', onclick: () => act(a) }, SILO_ASK[a][0])));
  }

  /** @param {string} action */
  async function act(action) {
    const [verb, text] = SILO_ASK[action];
    if (!(await confirmed(`${verb} ${silo.name}?`, text, verb, action === 'revoke'))) return;
    try {
      silo = await post(`${path}/actions`, { action });
      paint();
      toast(`${silo.name}: ${silo.state}`);
    } catch (e) {
      toast(/** @type {Error} */ (e).message, 'bad');
    }
  }

  const feed = new Feed(app, {
    load: async () => {
      silo = await get(path);
      problem.hidden = true;
      paint();
    },
    busy: () => silo?.state !== 'revoked', tick: paint,
    broken: (e) => {
      problem.hidden = silo !== null;
      setText(problem, `This silo could not be loaded: ${/** @type {Error} */ (e).message}.`);
    },
  });
  feed.start();
  return { update: paint, destroy: () => feed.destroy() };
}
