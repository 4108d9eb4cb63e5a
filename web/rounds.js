// @ts-check
// rounds.js - the table of rounds, and of the tasks within one.

import * as f from './format.js';
import { get } from './api.js';
import { siloPath } from './address.js';
import { dataTable, h, icon, ICONS, pill, progress, setText } from './dom.js';

const FIRST = 12; // rounds shown before one asks for all

const PARTS = /** @type {const} */ ([
  ['download_s', 'download'], ['train_s', 'train'], ['upload_s', 'upload'], ['aggregate_s', 'aggregate'], ['eval_s', 'evaluate'],
]);

/** The parts of a round's time, null where unknown, and the share of each. Pure. @param {any} split */
export function timeParts(split) {
  const parts = PARTS.map(([key, word]) => ({ word, seconds: f.isNumber(split?.[key]) ? /** @type {number} */ (split[key]) : null }));
  const sum = parts.reduce((n, p) => n + (p.seconds ?? 0), 0);
  return parts.map((p) => ({ ...p, share: sum > 0 ? (p.seconds ?? 0) / sum : 0 }));
}

/** As long as its column is wide. Pure. @param {number | null} seconds */
export const partText = (seconds) => (seconds !== null && seconds >= 60 ? f.shortDuration(seconds) : f.duration(seconds));

/** @param {any} round */
export function splitBar(round) {
  const parts = timeParts(round.split);
  if (parts.every((p) => !p.seconds)) return h('span.quiet', null, f.NONE);
  return h('div.split', null,
    h('div.split-bar', { 'aria-hidden': 'true' }, ...parts.filter((p) => p.share > 0).map((p) =>
      h('span', { dataset: { part: p.word }, vars: { '--share': String(p.share) }, title: `${p.word} ${f.duration(p.seconds)}` }))),
    h('div.split-text', null, ...parts.map((p) =>
      h('span', { dataset: { part: p.word } }, h('span.word', null, `${p.word} `), h('b', { title: f.duration(p.seconds) }, partText(p.seconds))))));
}

/** Who counted: "4 / 4", and who did not. Pure. @param {any} r */
export const counted = (r) => `${r.accepted} / ${r.silos_expected}${r.dropped ? `, ${r.dropped} dropped` : ''}`;

/** "open, deadline in 12 s". Pure. @param {any} r @param {number} now */
export function roundState(r, now) {
  if (r.state !== 'open' || !r.deadline) return r.state;
  return `${r.state}, deadline ${f.until(r.deadline, now)}`;
}

/** @param {(button: HTMLElement, round: any) => void} expand @returns {import('./dom.js').Column<any>[]} */
const columns = (expand) => [
  { key: 'number', label: 'Round', num: true, text: (r) => String(r.number),
    draw: (r) => h('button.expand', { type: 'button', 'aria-expanded': 'false', 'aria-label': `Round ${r.number}: show tasks`,
      onclick: (/** @type {Event} */ e) => expand(/** @type {HTMLElement} */ (e.currentTarget), r) }, icon(ICONS.chevron), String(r.number)) },
  { key: 'state', label: 'State', text: (r) => `${r.state}${r.attempt > 1 ? ` ${r.attempt}` : ''}`, title: (r) => roundState(r, Date.now()),
    draw: (r) => [pill(r.state), r.attempt > 1 ? h('small', null, ` attempt ${r.attempt}`) : ''] },
  { key: 'silos', label: 'Updates', num: true, hint: 'accepted, of those asked for', text: counted },
  { key: 'time', label: 'Time', num: true, text: (r) => f.duration(r.seconds) },
  { key: 'predicted', label: 'Predicted', num: true, text: (r) => f.duration(r.predicted?.seconds ?? null) },
  { key: 'split', label: 'Where the time went', wide: true, text: (r) => JSON.stringify(r.split ?? null), draw: splitBar,
    head: () => h('div.split-text.split-head', null, ...PARTS.map(([, word]) => h('span', { dataset: { part: word } }, word))) },
  { key: 'train', label: 'Training loss', num: true, text: (r) => f.loss(r.train_loss) },
  { key: 'ppl', label: 'Perplexity', num: true, text: (r) => f.perplexity(r.eval_ppl), title: (r) => `loss ${f.loss(r.eval_loss)}` },
  { key: 'tokens', label: 'Tokens', num: true, text: (r) => f.count(r.tokens), title: (r) => f.exact(r.tokens) },
  { key: 'up', label: 'Received', num: true, text: (r) => f.bytes(r.upload_bytes) },
  { key: 'down', label: 'Sent', num: true, text: (r) => f.bytes(r.download_bytes) },
  { key: 'norm', label: 'Delta norm', num: true, text: (r) => f.plain(r.delta_norm) },
];

/** What stands behind a codec's name: how large the update was, what went one rung up, what is still owed. Pure. @param {any} t */
export function codecTitle(t) {
  const parts = [];
  if (f.isNumber(t.update_bytes)) parts.push(f.bytes(t.update_bytes));
  if (t.fallback_share > 0) parts.push(`${f.plain(100 * t.fallback_share)} % of the parameters one rung up`);
  if (t.residual_ratio > 0) parts.push(`residual ${f.plain(t.residual_ratio)} of the delta`);
  return parts.join(', ');
}

/** @type {import('./dom.js').Column<any>[]} */
const TASKS = [
  { key: 'silo', label: 'Silo', text: (t) => `${t.silo}\u0000${t.silo_name}`,
    draw: (t) => (t.silo ? h('a', { href: siloPath(t.silo) }, t.silo_name ?? t.silo) : 'unclaimed') },
  { key: 'kind', label: 'Task', text: (t) => t.kind },
  { key: 'state', label: 'State', text: (t) => t.state, draw: (t) => pill(t.state) },
  { key: 'step', label: 'Steps', num: true, text: (t) => `${t.step ?? 0} / ${t.steps ?? 0}`,
    draw: (t) => (t.steps ? h('div.roundcell', null, `${t.step ?? 0} / ${t.steps}`, progress(t.step ?? 0, t.steps, 'Steps')) : f.NONE) },
  { key: 'tokens', label: 'Tokens', num: true, text: (t) => f.count(t.tokens) },
  { key: 'loss', label: 'Training loss', num: true, text: (t) => f.loss(t.train_loss) },
  { key: 'down', label: 'Download', num: true, text: (t) => f.duration(t.download_s) },
  { key: 'train', label: 'Train', num: true, text: (t) => f.duration(t.train_s) },
  { key: 'up', label: 'Upload', num: true, text: (t) => f.duration(t.upload_s) },
  { key: 'codec', label: 'Codec', text: (t) => t.codec ?? f.NONE, title: codecTitle },
  { key: 'error', label: 'Codec error', num: true, hint: 'what the codec left out of the update, as a share of its norm',
    text: (t) => f.plain(t.codec_error) },
  { key: 'norm', label: 'Norm', num: true, text: (t) => f.plain(t.update_norm) },
  { key: 'cosine', label: 'Cosine', num: true, hint: 'with the mean of all updates', text: (t) => f.plain(t.update_cosine) },
  { key: 'sha', label: 'SHA-256', text: (t) => f.digest(t.update_sha256), title: (t) => t.update_sha256 ?? '' },
];

/** @param {any} r */
const keyOf = (r) => `${r.number}/${r.attempt}`;

/**
 * Each row opens to the round's tasks; those of a round that is still open are renewed with the table.
 * @param {string} run
 */
export function roundsTable(run) {
  /** @type {Map<string, {number: number, table: ReturnType<typeof dataTable>, live: boolean}>} */
  const open = new Map();
  const table = dataTable({ label: 'Rounds', columns: columns(expand), key: keyOf, empty: 'No round has been opened yet.' });
  table.root.classList.add('rounds');

  /** @param {HTMLElement} button @param {any} round */
  function expand(button, round) {
    const key = keyOf(round);
    const now = !open.has(key);
    button.setAttribute('aria-expanded', String(now));
    if (!now) {
      open.delete(key);
      return table.detail(key, null);
    }
    const tasks = dataTable({ label: `Tasks of round ${round.number}`, columns: TASKS, key: (t) => t.id, empty: 'This round has no tasks yet.' });
    tasks.root.classList.add('tasks');
    open.set(key, { number: round.number, table: tasks, live: true });
    table.detail(key, tasks.root);
    fill(key);
  }

  /** @param {string} key */
  async function fill(key) {
    const one = open.get(key);
    if (!one) return;
    try {
      const round = await get(`/api/v1/runs/${encodeURIComponent(run)}/rounds/${one.number}`);
      one.live = !['closed', 'aborted'].includes(round.state);
      one.table.update(round.tasks ?? []);
    } catch (e) {
      one.table.setEmpty(`The tasks could not be loaded: ${/** @type {Error} */ (e).message}.`);
      one.table.update([]);
    }
  }

  const more = h('button.more', { type: 'button', hidden: true, onclick: () => {
    whole = true;
    update(known);
  } });
  let whole = false;
  /** @type {any[]} */
  let known = [];

  /** @param {any[]} rounds newest first */
  function update(rounds) {
    known = rounds;
    more.hidden = whole || rounds.length <= FIRST;
    setText(more, `Show all ${rounds.length} rounds`);
    table.update(more.hidden ? rounds : rounds.slice(0, FIRST));
    for (const [key, one] of open) if (one.live) fill(key);
  }

  return { root: h('div', null, table.root, more), update };
}
