// @ts-check
// audit.js - the audit log: who asked for a change, from where, and what came of it. For administrators.

import * as f from './format.js';
import { all, get } from './api.js';
import { runPath, siloPath } from './address.js';
import { dataTable, h, icon, ICONS, setText, toast } from './dom.js';
import { Feed } from './feed.js';

const PAGE = 100;
const NAMES_MOST = 2000;

/** What can be asked for alone; `access` is what was refused before it was known. */
export const ACTIONS = ['run_create', 'run_fork', 'run_pause', 'run_resume', 'run_stop', 'silo_join', 'silo_pause', 'silo_resume', 'silo_revoke',
  'token_create', 'token_rotate', 'token_revoke', 'login', 'logout', 'checkpoint_download', 'access'];

/**
 * Rows newest first without a gap, and where those before them begin (null: there are none).
 * @typedef {{rows: any[], cursor: string | null}} Log
 */

/**
 * With the newest page before what is known. One that does not reach it replaces it, so that there is never a gap. Pure.
 * @param {Log | null} log @param {{items: any[], next_cursor: string | null}} page @returns {Log}
 */
export function withNewer(log, page) {
  const at = log?.rows.length ? page.items.findIndex((r) => r.id === log.rows[0].id) : -1;
  if (!log || at < 0) return { rows: page.items, cursor: page.next_cursor };
  return at === 0 ? log : { rows: [...page.items.slice(0, at), ...log.rows], cursor: log.cursor };
}

/** @param {Log} log @param {{items: any[], next_cursor: string | null}} page @returns {Log} */
export const withOlder = (log, page) => ({ rows: [...log.rows, ...page.items], cursor: page.next_cursor });

/** What is asked for. Pure. @param {{action: string, token: string}} view @param {string | null} [cursor] */
export const auditPath = ({ action, token }, cursor) => [`/api/v1/audit?limit=${PAGE}`, action && `action=${action}`, token && `token=${token}`,
  cursor && `cursor=${encodeURIComponent(cursor)}`].filter(Boolean).join('&');

/**
 * What it was done to: by its name where that is known, else as it was written. Pure.
 * @param {string} object @param {Map<string, string>} names of runs, silos and tokens by id @returns {{text: string, href: string}}
 */
export function objectOf(object, names) {
  const [, id, kind, checkpoint] = /^(([rsk])_\w+)(?:\/(\d+))?$/.exec(object) ?? [];
  const name = names.get(id);
  if (name === undefined) return { text: object || f.NONE, href: '' };
  if (kind === 'r') return { text: checkpoint ? `${name}, checkpoint ${checkpoint}` : name, href: runPath(id) };
  return kind === 's' ? { text: name, href: siloPath(id) } : { text: `token of ${name}`, href: '' };
}

/** What came of it, in words: the status alone says little. Pure. @param {any} r */
export const outcome = (r) => [r.status < 400 ? 'done' : `refused, ${r.status}`, r.left_out ? `and ${f.exact(r.left_out)} more before it` : ''].filter(Boolean).join(' ');

/** @param {string} word */
const spoken = (word) => word.replaceAll('_', ' ');

/**
 * @param {Map<string, string>} names @param {(token: string) => void} only
 * @returns {import('./dom.js').Column<any>[]}
 */
const columns = (names, only) => [
  { key: 'at', label: 'Time', text: (r) => f.stamp(r.at), title: (r) => `request ${r.request}` },
  { key: 'who', label: 'Who', text: (r) => `${r.token}\u0000${r.name}\u0000${r.role}`,
    draw: (r) => (r.token ? h('div.name', null, h('button.link', { type: 'button', title: `Only what ${r.token} did`, onclick: () => only(r.token) }, r.name || r.token),
      h('small', null, r.role)) : r.name || 'a stranger') }, // without a token the server itself has a name
  { key: 'action', label: 'What', text: (r) => spoken(r.action) },
  { key: 'object', label: 'On what', text: (r) => `${r.object}\u0000${objectOf(r.object, names).text}`, title: (r) => r.object,
    draw: (r) => {
      const { text, href } = objectOf(r.object, names);
      return href ? h('a', { href }, text) : text;
    } },
  { key: 'address', label: 'From', text: (r) => r.address || f.NONE },
  { key: 'status', label: 'Outcome', text: outcome, draw: (r) => h('span.kind', { dataset: { tone: r.status < 400 ? 'done' : 'bad' } }, outcome(r)) },
];

/** @param {import('./app.js').App} app @param {HTMLElement} main */
export function auditPage(app, main) {
  app.title('Audit');
  /** @type {Log | null} */
  let log = null;
  /** @type {Map<string, string>} */
  const names = new Map();
  const asked = new Set();
  let filter = auditPath(app.view());
  const problem = h('p.banner', { hidden: true, dataset: { tone: 'bad' } });
  const actions = /** @type {HTMLSelectElement} */ (h('select', { id: 'audit-action', onchange: () => app.change({ action: actions.value }) },
    h('option', { value: '' }, 'Everything'), ...ACTIONS.map((a) => h('option', { value: a }, spoken(a)))));
  const chosen = h('button.button', { type: 'button', hidden: true, onclick: () => app.change({ token: '' }) });
  const table = dataTable({ label: 'Audit log', columns: columns(names, (token) => app.change({ token })), key: (r) => r.id, empty: '' });
  table.root.classList.add('audit');
  const more = /** @type {HTMLButtonElement} */ (h('button.more', { type: 'button', hidden: true, onclick: older }, 'Show older'));
  main.replaceChildren(
    h('div.head', null, h('div', null, h('h1', null, 'Audit'),
      h('p.sub', null, 'Who asked for a change, from where, and what came of it. Of many refusals at once, most are only counted.'))),
    problem,
    h('div.filters', null, h('label', { for: 'audit-action' }, 'Show'), actions, chosen),
    h('div.card.flush', null, table.root, more));

  function paint() {
    const v = app.view();
    if (v.action && !ACTIONS.includes(v.action) && actions.value !== v.action) actions.append(h('option', { value: v.action }, spoken(v.action)));
    actions.value = v.action;
    chosen.hidden = !v.token;
    const who = names.get(v.token) ?? log?.rows.find((r) => r.token === v.token)?.name ?? v.token;
    chosen.replaceChildren(`Only what ${who} did`, icon(ICONS.close));
    if (!log) return;
    table.setEmpty(v.action || v.token ? 'Nothing of this kind is in the log.' : 'Nothing has been changed yet.');
    table.update(log.rows);
    more.hidden = log.cursor === null;
  }

  /** Names are an aid: without them the ids are shown. @param {any[]} rows */
  async function learnNames(rows) {
    const fresh = rows.flatMap((r) => /^[rsk]_\w+/.exec(r.object)?.[0] ?? []).filter((id) => !names.has(id) && !asked.has(id));
    if (fresh.length === 0) return;
    fresh.forEach((id) => asked.add(id));
    const lists = await Promise.allSettled(['runs', 'silos', 'tokens'].map((what) => all(`/api/v1/${what}`, NAMES_MOST)));
    for (const l of lists) if (l.status === 'fulfilled') l.value.forEach((/** @type {any} */ x) => names.set(x.id, x.name));
  }

  /** @param {string} path @param {(page: any) => Log} join an answer to a filter that is no longer wanted is dropped */
  async function load(path, join) {
    const wanted = filter;
    const page = await get(path);
    await learnNames(page.items);
    if (filter !== wanted) return;
    log = join(page);
    problem.hidden = true;
    paint();
  }

  async function older() {
    const from = log;
    if (!from) return;
    more.disabled = true;
    try {
      // While it was asked for, a newer row may have come on top; the end is where it was.
      await load(auditPath(app.view(), from.cursor), (page) => (log && log.cursor === from.cursor ? withOlder(log, page) : /** @type {Log} */ (log)));
    } catch (e) {
      app.failed(e);
      toast(`What is older could not be loaded: ${/** @type {Error} */ (e).message}`, 'bad');
    }
    more.disabled = false;
  }

  const feed = new Feed(app, {
    load: () => load(filter, (page) => withNewer(log, page)),
    busy: () => true, tick: paint,
    broken: (e) => {
      problem.hidden = log !== null;
      setText(problem, `The audit log could not be loaded: ${/** @type {Error} */ (e).message}.`);
    },
  });
  feed.start();
  return {
    update: () => {
      if (filter !== auditPath(app.view())) {
        filter = auditPath(app.view());
        log = null;
        feed.kick();
      }
      paint();
    },
    destroy: () => feed.destroy(),
  };
}
