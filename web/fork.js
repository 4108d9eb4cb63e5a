// @ts-check
// fork.js - a new run that begins with a checkpoint of another one: what is asked for, sent and refused.

import { all, ApiError, post } from './api.js';
import { runPath } from './address.js';
import { h, setText, toast } from './dom.js';

const NAME_MOST = 63;
const NAMES_MOST = 2000;

/** A name that nobody has, made of the parent's. Pure. @param {string} parent @param {number} checkpoint @param {Set<string>} taken */
export function freeName(parent, checkpoint, taken) {
  for (let n = 1; ; n++) {
    const end = `-fork-${checkpoint}${n > 1 ? `-${n}` : ''}`;
    const name = parent.slice(0, NAME_MOST - end.length) + end;
    if (!taken.has(name)) return name;
  }
}

/** @param {unknown} v @returns {v is Record<string, any>} */
const isObject = (v) => typeof v === 'object' && v !== null && !Array.isArray(v);

/** JSON where it is some, else the words themselves, as --set takes them. @param {string} text */
function valueOf(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/**
 * Changes of a spec as they were typed: a JSON object, or a line for each key. Throws what is wrong with them. Pure.
 * @param {string} typed @returns {Record<string, any>}
 */
export function changesOf(typed) {
  const text = typed.trim();
  if (/^[[{]/.test(text)) {
    try {
      const changes = JSON.parse(text);
      if (isObject(changes)) return changes;
    } catch (e) {
      throw new Error(`This is no JSON: ${/** @type {Error} */ (e).message}`);
    }
    throw new Error('The changes must be a JSON object, or lines such as inner.lr=0.0003');
  }
  // Without a prototype, no key means more than its name.
  const changes = Object.create(null);
  for (const line of text.split('\n').map((l) => l.trim()).filter(Boolean)) {
    const at = line.indexOf('=');
    if (at < 0) throw new Error(`“${line}” has no “=”; try inner.lr=0.0003`);
    const path = line.slice(0, at).trim().split('.');
    if (path.includes('')) throw new Error(`“${line}” has an empty key; try inner.lr=0.0003`);
    const last = /** @type {string} */ (path.pop());
    let into = changes;
    for (const key of path) {
      into = into[key] ??= Object.create(null);
      if (!isObject(into)) throw new Error(`“${line}” goes into something that is no object`);
    }
    into[last] = valueOf(line.slice(at + 1).trim());
  }
  return changes;
}

/**
 * What is sent: only what differs from the parent. Throws what is wrong with the changes. Pure.
 * @param {{checkpoint: number, name: string, rounds: number, typed: string}} form @param {number} rounds of the parent
 */
export function forkBody(form, rounds) {
  const spec = changesOf(form.typed);
  if (isObject(spec.federation) && 'rounds' in spec.federation) throw new Error('The rounds have a field of their own, above');
  // A federation that is no object goes as it is: the server says what it should be.
  if (form.rounds !== rounds && (spec.federation === undefined || isObject(spec.federation))) spec.federation = { ...spec.federation, rounds: form.rounds };
  return { checkpoint: form.checkpoint, name: form.name, ...(Object.keys(spec).length ? { spec } : {}) };
}

/** @typedef {{name: string[], rounds: string[], changes: string[], rest: string[]}} Refusal what is wrong, by field */

/** @returns {Refusal} */
const none = () => ({ name: [], rounds: [], changes: [], rest: [] });

/** A refusal beside the fields that it points at. Pure. @param {unknown} e @returns {Refusal} */
export function refusalOf(e) {
  const out = none();
  const { message, code, hint, errors } = /** @type {ApiError} */ (e);
  if (code === 'NAME_TAKEN') out.name.push(message);
  else if (!errors?.length) out.rest.push(hint ? `${message}: ${hint}` : message);
  else for (const { pointer, detail } of errors) {
    const key = pointer.replace(/^\/(spec\/)?/, '').replaceAll('/', '.');
    if (pointer === '/name') out.name.push(detail);
    else if (pointer === '/federation/rounds') out.rounds.push(detail);
    else (pointer === '/checkpoint' ? out.rest : out.changes).push(`${key}: ${detail}`);
  }
  return out;
}

/** Random, where the page has no secure context too, which crypto.randomUUID needs. */
const newKey = () => `page-${Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16).padStart(8, '0')).join('')}`;

/** @param {import('./app.js').App} app @param {any} run @param {any} spec the run's @param {number} checkpoint its number */
export function fork(app, run, spec, checkpoint) {
  const suggested = freeName(run.name, checkpoint, new Set([run.name]));
  const name = /** @type {HTMLInputElement} */ (h('input', { required: true, maxlength: NAME_MOST, value: suggested, autocomplete: 'off', autocapitalize: 'none', spellcheck: 'false' }));
  const rounds = /** @type {HTMLInputElement} */ (h('input', { type: 'number', required: true, min: 1, step: 1, value: spec.federation.rounds }));
  const changes = /** @type {HTMLTextAreaElement} */ (h('textarea', { rows: 3, placeholder: 'inner.lr=0.0003', autocomplete: 'off', autocapitalize: 'none', spellcheck: 'false' }));
  const rest = h('p.problem', { role: 'alert' });
  const fields = [
    field('name', 'Name of the new run', name, ''),
    field('rounds', 'Rounds', rounds, `Counted anew: the new run begins with round 1. ${run.name} was given ${spec.federation.rounds}.`),
    field('changes', 'Other changes of the spec', changes, 'A line for each key=value, or a JSON object. What is not named stays as it is in the Spec tab; model and tokenizer cannot change.'),
  ];
  const go = h('button.button.primary', { type: 'submit' }, 'Fork');
  const dialog = /** @type {HTMLDialogElement} */ (h('dialog', { 'aria-labelledby': 'fork-title', onclose: () => dialog.remove() },
    h('form', { onsubmit: submit }, h('h2', { id: 'fork-title' }, `Fork ${run.name} from checkpoint ${checkpoint}`),
      h('p', null, `A new run begins with the weights of checkpoint ${checkpoint} and goes on with its count of steps.`),
      ...fields.flatMap((f) => f.parts), rest,
      h('div.row.end', null, h('button.button', { type: 'button', onclick: () => dialog.close() }, 'Cancel'), go))));
  let key = '';
  let sent = '';

  /** @param {'name' | 'rounds' | 'changes'} k @param {string} label @param {HTMLInputElement | HTMLTextAreaElement} input @param {string} note */
  function field(k, label, input, note) {
    const id = `fork-${k}`;
    const wrong = h('p.problem', { id: `${id}-problem`, hidden: true });
    input.id = id;
    input.setAttribute('aria-describedby', `${id}-problem${note ? ` ${id}-note` : ''}`);
    return { parts: [h('label', { for: id }, label), input, wrong, note && h('p.note', { id: `${id}-note` }, note)], input,
      say: (/** @type {Refusal} */ refusal) => {
        setText(wrong, refusal[k].join('\n'));
        wrong.hidden = refusal[k].length === 0;
        if (wrong.hidden) input.removeAttribute('aria-invalid');
        else input.setAttribute('aria-invalid', 'true');
        return wrong.hidden;
      } };
  }

  /** The first field that is wrong gets the focus, and with it what is wrong is read out. @param {Refusal} refusal */
  function say(refusal) {
    const wrong = fields.filter((f) => !f.say(refusal));
    setText(rest, refusal.rest.join('\n'));
    wrong[0]?.input.focus();
  }

  /** @param {Event} e */
  async function submit(e) {
    e.preventDefault();
    say(none());
    let body;
    try {
      body = forkBody({ checkpoint, name: name.value.trim(), rounds: rounds.valueAsNumber, typed: changes.value }, spec.federation.rounds);
    } catch (err) {
      return say({ ...none(), changes: [/** @type {Error} */ (err).message] });
    }
    // The same again after an answer that was lost must not make a second run; what was refused may be asked for anew.
    const text = JSON.stringify(body);
    if (text !== sent) [sent, key] = [text, newKey()];
    go.setAttribute('disabled', '');
    try {
      const made = await post(`/api/v1/runs/${encodeURIComponent(run.id)}/fork`, body, key);
      toast(`${made.name}: created`);
      if (!dialog.open) return;
      dialog.close();
      app.go(runPath(made.id));
    } catch (err) {
      go.removeAttribute('disabled');
      // After these it may be that it was made before: the key stays.
      if (err instanceof ApiError && err.status < 500 && ![401, 408, 429].includes(err.status)) sent = '';
      if (!dialog.open) return toast(/** @type {Error} */ (err).message, 'bad');
      if (err instanceof ApiError && err.status === 401) {
        dialog.close();
        return app.failed(err);
      }
      say(refusalOf(err));
    }
  }

  /** The suggestion may have been taken: ask, and leave alone what is typed meanwhile. */
  async function suggest() {
    const runs = await all(`/api/v1/runs?q=${encodeURIComponent(run.name.slice(0, NAME_MOST / 2))}`, NAMES_MOST);
    const free = freeName(run.name, checkpoint, new Set(runs.map((/** @type {any} */ r) => r.name)));
    if (name.value !== suggested || free === suggested) return;
    name.value = free;
    if (document.activeElement === name) name.select();
  }

  document.body.append(dialog);
  dialog.showModal();
  name.select();
  suggest().catch(() => {}); // then the server says that it is taken
}
