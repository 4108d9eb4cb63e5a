// @ts-check
// login.js - asks for a token. The cookie that comes back is HttpOnly: the page never keeps the token.

import { h, setText } from './dom.js';

/**
 * @param {import('./app.js').App} app @param {HTMLElement} main @param {string} why
 * @param {(token?: string) => Promise<void>} start
 */
export function loginPage(app, main, why, start) {
  app.title('Log in');
  const field = /** @type {HTMLInputElement} */ (h('input', { type: 'password', id: 'token', name: 'token', autocomplete: 'current-password',
    spellcheck: 'false', required: true, 'aria-describedby': 'login-why' }));
  const problem = h('p.problem', { id: 'login-why', role: 'alert' }, why);
  const button = h('button.button.primary', { type: 'submit' }, 'Log in');
  const form = h('form.login', { onsubmit: async (/** @type {Event} */ e) => {
    e.preventDefault();
    button.setAttribute('disabled', '');
    setText(problem, '');
    try {
      await start(field.value.trim());
    } catch (err) {
      setText(problem, /** @type {Error} */ (err).message);
      button.removeAttribute('disabled');
      field.select();
      field.focus();
    }
  } },
  h('h1', null, 'Log in'),
  h('p', null, 'Paste a viewer or admin token. The server prints an address with one when it starts; an admin can make more.'),
  h('label', { for: 'token' }, 'Token'), field, problem, button);
  main.replaceChildren(form);
  field.focus();
  return { update() {}, destroy() {} };
}
