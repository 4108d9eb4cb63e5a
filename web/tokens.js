// @ts-check
// tokens.js - who may speak with the server: tokens are made, shown once, and revoked. For administrators.

import * as f from './format.js';
import { all, post, remove } from './api.js';
import { confirmed, dataTable, h, icon, ICONS, pill, setText, shut, toast } from './dom.js';
import { Feed } from './feed.js';

const MOST = 2000;
const DAY_S = 86400;
const LIVES = [1, 7, 30]; // days; the server gives no more than the last

/** Whether it still opens a door. Pure. @param {any} t @param {number} now ms */
export const tokenState = (t, now) => (t.revoked_at ? 'revoked' : t.expires_at && Date.parse(t.expires_at) <= now ? 'expired' : 'active');

/** Those that open a door first, newest first within. Pure. @param {any[]} tokens @param {number} now */
export const tokensInOrder = (tokens, now) => [...tokens].sort((a, b) => Number(tokenState(a, now) !== 'active') - Number(tokenState(b, now) !== 'active') ||
  b.created_at.localeCompare(a.created_at));

/** @param {(t: any) => void} revoke @returns {import('./dom.js').Column<any>[]} */
const columns = (revoke) => [
  { key: 'name', label: 'Name', text: (t) => t.name, title: (t) => t.id },
  { key: 'role', label: 'Role', text: (t) => t.role },
  { key: 'state', label: 'State', text: (t) => tokenState(t, Date.now()), draw: (t) => pill(tokenState(t, Date.now())) },
  { key: 'created', label: 'Made', text: (t) => f.stamp(t.created_at) },
  { key: 'used', label: 'Last used', text: (t) => (t.last_used_at ? f.ago(t.last_used_at, Date.now()) : f.NONE) },
  { key: 'expires', label: 'Ends', text: (t) => (t.expires_at ? f.stamp(t.expires_at) : 'never') },
  { key: 'revoke', label: 'Revoke', mute: true, text: (t) => tokenState(t, Date.now()),
    draw: (t) => (tokenState(t, Date.now()) === 'active' ? h('button.quiet', { type: 'button', 'aria-label': `Revoke the token ${t.name}`, onclick: () => revoke(t) }, 'Revoke') : '') },
];

/** A token for a person or a program; silos are invited on their own page. @param {() => void} made */
function make(made) {
  const name = /** @type {HTMLInputElement} */ (h('input', { id: 'token-name', required: true, maxlength: 63, placeholder: 'alice', autocomplete: 'off', spellcheck: 'false' }));
  const role = /** @type {HTMLSelectElement} */ (h('select', { id: 'token-role' }, h('option', { value: 'viewer' }, 'viewer: reads'), h('option', { value: 'admin' }, 'admin: changes too')));
  const life = /** @type {HTMLSelectElement} */ (h('select', { id: 'token-life' }, ...LIVES.map((d) => h('option', { value: d, selected: d === 30 || null }, d === 1 ? 'a day' : `${d} days`))));
  const out = h('div', { 'aria-live': 'polite' });
  const go = h('button.button.primary', { type: 'submit' }, 'Make a token');
  const close = h('button.button', { type: 'button', onclick: () => shut(dialog) }, 'Close');
  const form = h('form', { onsubmit: async (/** @type {Event} */ e) => {
    e.preventDefault();
    go.setAttribute('disabled', '');
    try {
      const token = await post('/api/v1/tokens', { role: role.value, name: name.value.trim(), ttl_s: Number(life.value) * DAY_S });
      out.replaceChildren(h('p', null, 'It is shown only now:'), h('pre', { tabindex: 0 }, token.secret));
      made();
    } catch (err) {
      go.removeAttribute('disabled');
      out.replaceChildren(h('p.problem', { role: 'alert' }, /** @type {Error} */ (err).message));
    }
  } }, h('h2', { id: 'token-title' }, 'Make a token'), h('label', { for: 'token-name' }, 'Its name'), name, h('label', { for: 'token-role' }, 'What it may do'), role,
    h('label', { for: 'token-life' }, 'How long it works'), life, out, h('div.row.end', null, close, go));
  const dialog = /** @type {HTMLDialogElement} */ (h('dialog', { 'aria-labelledby': 'token-title', onclose: () => dialog.remove() }, form));
  document.body.append(dialog);
  dialog.showModal();
  name.focus();
}

/** @param {import('./app.js').App} app @param {HTMLElement} main */
export function tokensPage(app, main) {
  app.title('Tokens');
  /** @type {any[] | null} */
  let tokens = null;
  const problem = h('p.banner', { hidden: true, dataset: { tone: 'bad' } });
  const table = dataTable({ label: 'Tokens', columns: columns(revoke), key: (t) => t.id, empty: 'There is no token yet.' });
  table.root.classList.add('tokens');
  main.replaceChildren(
    h('div.head', null, h('div', null, h('h1', null, 'Tokens'), h('p.sub', null, 'Who may read, change, join and train. A secret is shown once, when it is made.')),
      h('span.grow'), h('button.button', { type: 'button', onclick: () => make(() => feed.kick()) }, icon(ICONS.plus), 'Make a token')),
    problem, h('div.card.flush', null, table.root));

  const paint = () => tokens && table.update(tokensInOrder(tokens, Date.now()));

  /** @param {any} t */
  async function revoke(t) {
    if (!(await confirmed(`Revoke ${t.name}?`, `This ${t.role} token stops working at once and for good.`, 'Revoke', true))) return;
    try {
      await remove(`/api/v1/tokens/${encodeURIComponent(t.id)}`);
      toast(`${t.name}: revoked`);
      feed.kick();
    } catch (e) {
      app.failed(e);
      toast(/** @type {Error} */ (e).message, 'bad');
    }
  }

  const feed = new Feed(app, {
    load: async () => {
      tokens = await all('/api/v1/tokens', MOST);
      problem.hidden = true;
      paint();
    },
    busy: () => true, tick: paint,
    broken: (e) => {
      problem.hidden = tokens !== null;
      setText(problem, `The tokens could not be loaded: ${/** @type {Error} */ (e).message}.`);
    },
  });
  feed.start();
  return { update: paint, destroy: () => feed.destroy() };
}
