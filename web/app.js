// @ts-check
// app.js - the page's frame: who is looking, which page is shown, its state in the address.

import * as address from './address.js';
import * as api from './api.js';
import * as chart from './chart.js';
import * as theme from './theme.js';
import { clock, NONE } from './format.js';
import { h, setText } from './dom.js';
import { standing } from './live.js';
import { auditPage } from './audit.js';
import { comparePage, experimentPage } from './compare.js';
import { loginPage } from './login.js';
import { runPage } from './run.js';
import { runsPage } from './runs.js';
import { siloPage, silosPage } from './silos.js';
import { tokensPage } from './tokens.js';

/**
 * What a page gets. `change` edits the address; `done` false while a thing is still being dragged.
 * @typedef {{me: {role: string, name: string}, admin: boolean, drawing: boolean,
 *   view: () => address.View, route: () => address.Route, shade: () => 'light' | 'dark',
 *   change: (v: Partial<address.View>, done?: boolean, quiet?: boolean) => void, go: (path: string) => void,
 *   standing: (s: {open: boolean, polled: boolean, since: number | null}) => void,
 *   fresh: () => void, failed: (e: unknown) => void, title: (t: string) => void}} App
 * @typedef {{update: () => void, destroy: () => void}} Page a page that is mounted in <main>
 */

const main = /** @type {HTMLElement} */ (document.getElementById('main'));
const live = /** @type {HTMLElement} */ (document.getElementById('live'));
const asof = /** @type {HTMLElement} */ (document.getElementById('asof'));
const who = /** @type {HTMLElement} */ (document.getElementById('who'));
const ofAdmins = /** @type {HTMLElement[]} */ ([...document.querySelectorAll('[data-nav=tokens], [data-nav=audit]')]);
const themes = /** @type {HTMLSelectElement} */ (document.getElementById('theme'));

/** @type {Page | null} */
let page = null;
let shown = '';
let view = address.read(location.search);
let draggedFrom = '';

/** @type {App} */
const app = {
  me: { role: '', name: '' }, admin: false, drawing: false,
  view: () => view,
  route: () => address.route(location.pathname),
  shade: theme.shade,
  change,
  go: (path) => {
    history.pushState(null, '', path);
    arrive(true);
  },
  standing: (s) => {
    const { state, text } = standing(s, (ms) => clock(new Date(ms)));
    live.dataset.state = state;
    setText(live, text);
  },
  fresh: () => setText(asof, `as of ${clock(new Date())}`),
  failed: (e) => {
    if (e instanceof api.ApiError && e.status === 401) ask(e.message);
  },
  title: (t) => (document.title = t ? `${t} · Photon` : 'Photon'),
};

/** @param {Partial<address.View>} part @param {boolean} [done] @param {boolean} [quiet] never a step of its own for "back" */
function change(part, done = true, quiet = false) {
  view = { ...view, ...part };
  const here = location.pathname + location.search;
  const there = location.pathname + address.write(view);
  if (!done) {
    draggedFrom ||= here;
    history.replaceState(null, '', there);
  } else if (quiet) {
    history.replaceState(null, '', there);
  } else {
    if (draggedFrom) history.replaceState(null, '', draggedFrom);
    if (there !== (draggedFrom || here)) history.pushState(null, '', there);
    draggedFrom = '';
  }
  page?.update();
}

const PAGES = { runs: runsPage, run: runPage, compare: comparePage, experiment: experimentPage, silos: silosPage, silo: siloPage, audit: auditPage, tokens: tokensPage };

/** Show what the address says. @param {boolean} [moved] by a link: focus goes to the new page */
function arrive(moved = false) {
  view = address.read(location.search);
  const route = app.route();
  const key = `${route.page}/${route.id}/${route.page === 'compare' ? view.runs.join() : ''}`;
  document.querySelectorAll('[data-nav]').forEach((a) => {
    const on = a.getAttribute('data-nav') === (route.page === 'silo' ? 'silos' : route.page) ||
      (a.getAttribute('data-nav') === 'runs' && ['run', 'compare', 'experiment'].includes(route.page));
    if (on) a.setAttribute('aria-current', 'page');
    else a.removeAttribute('aria-current');
  });
  applyTheme();
  if (key === shown && page) return page.update();
  leavePage();
  shown = key;
  const barred = ['audit', 'tokens'].includes(route.page) && !app.admin;
  live.hidden = barred || route.page === 'missing';
  if (route.page === 'missing') page = blank('There is nothing here', `No page is called ${route.id}.`);
  else if (barred) page = blank('For administrators', `${route.page === 'audit' ? 'The audit log is' : 'Tokens are'} shown to those who log in with an admin token.`);
  else page = PAGES[route.page](app, main, route.id);
  if (moved) {
    scrollTo(0, 0);
    main.focus({ preventScroll: true });
  }
}

/** A dialog goes with the page that it was opened on: behind it another one would be out of reach. */
function leavePage() {
  page?.destroy();
  for (const dialog of document.querySelectorAll('dialog')) {
    dialog.dispatchEvent(new Event('cancel'));
    dialog.close();
    dialog.remove();
  }
}

/** A page that has nothing to load. @param {string} title @param {string} text @returns {Page} */
function blank(title, text) {
  app.title(title);
  setText(asof, '');
  main.replaceChildren(h('section.blank', null, h('h1', null, title), h('p', null, text), h('a.button', { href: '/' }, 'All runs')));
  return { update() {}, destroy() {} };
}

/** @param {string} why */
function ask(why) {
  leavePage();
  shown = '';
  page = loginPage(app, main, why, start);
  live.hidden = true;
  ofAdmins.forEach((a) => (a.hidden = true));
  setText(asof, '');
  who.replaceChildren();
}

/** @param {string} [token] */
async function start(token) {
  api.forget();
  if (token) await api.post('/api/v1/login', { token });
  app.me = await api.get('/api/v1/me');
  app.admin = app.me.role === 'admin';
  ofAdmins.forEach((a) => (a.hidden = !app.admin));
  who.replaceChildren(h('span.role', { title: `You are logged in as ${app.me.name || app.me.role}` }, app.me.name || app.me.role || NONE),
    h('button.quiet', { type: 'button', onclick: leave }, 'Log out'));
  arrive();
}

async function leave() {
  try {
    await api.remove('/api/v1/login');
    ask('');
  } catch (e) {
    ask(/** @type {Error} */ (e).message);
  }
}

function applyTheme() {
  theme.apply();
  themes.value = theme.chosen();
}

themes.addEventListener('change', () => {
  theme.choose(themes.value);
  change({ theme: '' }, true, true);
  applyTheme();
  page?.update();
});
theme.onSystemChange(() => page?.update());
addEventListener('popstate', () => arrive());

document.addEventListener('click', (e) => {
  const a = /** @type {Element} */ (e.target).closest?.('a[href]');
  if (!a || e.defaultPrevented || e.button || e.metaKey || e.ctrlKey || e.shiftKey || e.altKey) return;
  const href = /** @type {string} */ (a.getAttribute('href'));
  if (!href.startsWith('/') || href.startsWith('/api/') || a.hasAttribute('download')) return;
  e.preventDefault();
  app.go(href + (view.theme ? `${href.includes('?') ? '&' : '?'}theme=${view.theme}` : ''));
});

/** Keys that work anywhere but in a field: / searches, [ ] smooth, l log, r resets the zoom. */
document.addEventListener('keydown', (e) => {
  const at = /** @type {HTMLElement} */ (e.target);
  if (e.ctrlKey || e.metaKey || e.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(at.tagName)) return;
  if (e.key === '/') /** @type {HTMLElement | null} */ (main.querySelector('input[type=search]'))?.focus();
  else if (['[', ']', 'l', 'r'].includes(e.key)) main.dispatchEvent(new CustomEvent('photon-key', { detail: e.key }));
  else return;
  e.preventDefault();
});

(async () => {
  applyTheme();
  const token = api.tokenOf(location.hash);
  if (token) history.replaceState(null, '', location.pathname + location.search);
  app.drawing = await chart.load();
  try {
    await start(token);
  } catch (e) {
    const why = /** @type {Error} */ (e).message;
    ask(e instanceof api.ApiError && e.status === 401 && !token ? '' : why);
  }
})();
