// @ts-check
// details.js - the quieter parts of a run: events, checkpoints, spec.

import * as f from './format.js';
import { dataTable, h, icon, ICONS, setText } from './dom.js';
import { compareIds } from './live.js';

const EVENTS_MOST = 1000;

/** Chatter that the log leaves out: what silos report every few seconds. Pure. @param {any} e */
export const isTold = (e) => !['metrics_added', 'silo_seen'].includes(e.kind);

/**
 * The log, newest first, each event once whatever way it came, without the chatter. Pure.
 * @param {any[]} log @param {any[]} more @returns {any[]}
 */
export function merged(log, more) {
  const known = new Set(log.map((e) => e.id));
  const fresh = more.filter((e) => isTold(e) && !known.has(e.id) && known.add(e.id));
  if (fresh.length === 0) return log;
  return [...log, ...fresh].sort((a, b) => compareIds(b.id, a.id)).slice(0, EVENTS_MOST);
}

/** @param {string} kind */
const tone = (kind) => (/failed|refused|gone|aborted|starved|revoked|expired/.test(kind) ? 'bad'
  : /paused|stopped|released/.test(kind) ? 'warn' : /closed|finished|created|accepted|done/.test(kind) ? 'done' : 'idle');

export function eventsTable() {
  const table = dataTable({ label: 'Events', key: (e) => e.id, empty: 'Nothing has happened yet.', columns: [
    { key: 'at', label: 'Time', text: (e) => f.stamp(e.at), title: (e) => e.id },
    { key: 'kind', label: 'Event', text: (e) => e.kind,
      draw: (e) => h('span.kind', { dataset: { tone: tone(e.kind) } }, e.kind.replaceAll('_', ' ')) },
    { key: 'message', label: 'What happened', wide: true, text: (e) => e.message || f.specValue(e.detail) },
  ] });
  table.root.classList.add('events');
  return table;
}

const LATEST = 12;

/** The newest few events beside the curve: a page that lives. */
export function latestList() {
  const list = h('ol.latest');
  return { root: h('div.latest-box', null, h('h3', null, 'Latest'), list), update: (/** @type {any[]} */ events) => {
    const few = events.slice(0, LATEST);
    const mark = few.map((e) => e.id).join();
    if (list.dataset.mark === mark) return;
    list.dataset.mark = mark;
    list.replaceChildren(...few.map((e) => h('li', { title: f.stamp(e.at) }, h('time', { datetime: e.at }, f.stamp(e.at).slice(11, 16)),
      h('span', { dataset: { tone: tone(e.kind) } }, e.message || e.kind.replaceAll('_', ' ')))));
  } };
}

/** @param {((number: number) => void) | null} fork null: for those who may not */
export const checkpointsTable = (fork) => dataTable({ label: 'Checkpoints', key: (c) => String(c.number), empty: 'No checkpoint yet.', columns: [
  { key: 'number', label: 'Checkpoint', num: true, text: (c) => String(c.number), title: (c) => (c.number === 0 ? 'the initial model' : `after round ${c.number}`) },
  { key: 'ppl', label: 'Perplexity', num: true, text: (c) => f.perplexity(c.eval_ppl), title: (c) => `loss ${f.loss(c.eval_loss)}` },
  { key: 'bytes', label: 'Size', num: true, text: (c) => f.bytes(c.bytes), title: (c) => `${f.exact(c.bytes)} bytes` },
  { key: 'at', label: 'Written', text: (c) => f.stamp(c.created_at) },
  { key: 'sha', label: 'SHA-256', wide: true, text: (c) => c.sha256 ?? '', draw: (c) => h('code.sha', null, c.sha256 ?? f.NONE) },
  { key: 'get', label: 'Weights', text: (c) => `${c.kept}${c.url}`,
    draw: (c) => (c.kept ? h('a.button.small', { href: safeUrl(c.url), download: '', 'aria-label': `Download checkpoint ${c.number}, safetensors` },
      icon(ICONS.download), 'safetensors') : h('span.quiet', { title: 'The numbers remain, the file was removed' }, 'removed')) },
  ...(fork ? [{ key: 'fork', label: 'Fork', mute: true, text: (/** @type {any} */ c) => String(c.kept),
    draw: (/** @type {any} */ c) => (c.kept ? h('button.button.small', { type: 'button', 'aria-label': `Fork from checkpoint ${c.number}`, onclick: () => fork(c.number) },
      icon(ICONS.fork), 'Fork') : '') }] : []),
] });

/** A path of this server, or nothing. Pure. @param {unknown} url */
export const safeUrl = (url) => (typeof url === 'string' && /^\/api\/v1\/[\w/.-]+$/.test(url) ? url : '#');

export function specView() {
  const body = h('tbody');
  const text = h('pre', { tabindex: 0 });
  const root = h('div.spec', null,
    h('div.scroll', null, h('table.pairs', { 'aria-label': 'Run spec' }, body)),
    h('details', null, h('summary', null, 'As JSON'), text));
  return { root, update: (/** @type {any} */ spec) => {
    const json = JSON.stringify(spec, null, 2);
    if (text.textContent === json) return;
    setText(text, json);
    body.replaceChildren(...f.flatten(spec).map(([k, v]) => h('tr', null, h('th', { scope: 'row' }, k), h('td', null, f.specValue(v)))));
  } };
}
