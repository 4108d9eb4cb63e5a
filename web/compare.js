// @ts-check
// compare.js - several runs over each other, and where their specs differ.

import * as f from './format.js';
import { all, get, isAbort } from './api.js';
import { comparePath, runPath } from './address.js';
import { dataTable, h, icon, ICONS, pill, setText } from './dom.js';
import { Feed } from './feed.js';
import { Panel } from './panel.js';
import { chartControls, chartKey } from './run.js';
import { lineStyle } from './theme.js';

/**
 * The spec's keys and each run's value; only those that differ unless `same`. Pure.
 * @param {any[]} specs one per run, or null while unknown @param {boolean} same
 * @returns {{key: string, values: string[], differs: boolean}[]}
 */
export function specRows(specs, same) {
  const maps = specs.map((s) => new Map(s ? f.flatten(s) : []));
  const keys = [...new Set(maps.flatMap((m) => [...m.keys()]))];
  return keys.map((key) => {
    const values = maps.map((m) => (m.has(key) ? f.specValue(m.get(key)) : f.NONE));
    return { key, values, differs: new Set(values).size > 1 };
  }).filter((r) => same || (r.differs && r.key !== 'name')); // names head the columns
}

/** Oldest first, so that a run keeps its colour when another joins. Pure. @param {any[]} runs */
export const inOrder = (runs) => [...runs].sort((a, b) => (a.created_at < b.created_at ? -1 : a.created_at > b.created_at ? 1 : a.id < b.id ? -1 : 1));

/** @param {import('./app.js').App} app @param {HTMLElement} main */
export const comparePage = (app, main) => overlay(app, main, {
  title: 'Compare', sub: '', find: async () => {
    const ids = app.view().runs;
    const found = await Promise.all(ids.map((id) => get(`/api/v1/runs/${encodeURIComponent(id)}`)));
    return found;
  },
});

/** @param {import('./app.js').App} app @param {HTMLElement} main @param {string} name */
export const experimentPage = (app, main, name) => overlay(app, main, {
  title: name, sub: 'Experiment', find: async () => (await all('/api/v1/runs', 2000)).filter((/** @type {any} */ r) => r.experiment === name),
});

/**
 * @param {import('./app.js').App} app @param {HTMLElement} main
 * @param {{title: string, sub: string, find: () => Promise<any[]>}} o
 */
function overlay(app, main, o) {
  app.title(o.title);
  /** @type {any[] | null} */ let runs = null;
  /** @type {any[]} */ let specs = [];
  const context = { runs: /** @type {{id: string, name: string}[]} */ ([]), silos: [], drawing: app.drawing, view: app.view, shade: app.shade,
    change: app.change, panels: /** @type {Panel[]} */ ([]) };
  const ppl = new Panel(context, { title: 'Perplexity', metrics: ['eval_ppl'], tall: true, empty: 'No run has been evaluated yet.' });
  const small = [
    new Panel(context, { title: 'Training loss', metrics: ['train_loss'], empty: 'No run has trained yet.' }),
    new Panel(context, { title: 'Tokens per second', metrics: ['tokens_per_s'], empty: 'No run has trained yet.' }),
    new Panel(context, { title: 'Delta norm', metrics: ['delta_norm'], empty: 'No round has closed yet.' }),
  ];
  const controls = chartControls(app, { silos: false });
  const sub = h('p.sub', null, 'Loading…');
  const banner = h('p.banner', { hidden: true, dataset: { tone: 'bad' } });
  const columns = /** @type {import('./dom.js').Column<any>[]} */ ([
    { key: 'name', label: 'Run', wide: true, text: (r) => `${r.name}\u0000${r.ordinal}\u0000${app.shade()}`,
      draw: (r) => h('div.name', null, h('span.row.named', null, h('span.swatch', { vars: { '--c': lineStyle(r.ordinal, app.shade()).colour },
        dataset: { dash: String(lineStyle(r.ordinal, app.shade()).dash[0] ?? 0) } }), h('a', { href: runPath(r.id) }, r.name))) },
    { key: 'state', label: 'State', text: (r) => r.state, draw: (r) => pill(r.state) },
    { key: 'round', label: 'Round', num: true, text: (r) => `${r.round} / ${r.rounds}` },
    { key: 'ppl', label: 'Perplexity', num: true, text: (r) => f.perplexity(r.eval_ppl) },
    { key: 'loss', label: 'Evaluation loss', num: true, text: (r) => f.loss(r.eval_loss) },
    { key: 'tokens', label: 'Tokens', num: true, text: (r) => f.count(r.tokens) },
    { key: 'bytes', label: 'Traffic', num: true, text: (r) => f.bytes(r.upload_bytes + r.download_bytes) },
    ...(o.sub ? [] : [{ key: 'remove', label: 'Remove', mute: true, text: () => 'Remove', draw: (/** @type {any} */ r) => h('button.quiet', { type: 'button',
      'aria-label': `Remove ${r.name}`, onclick: () => app.go(comparePath(app.view().runs.filter((x) => x !== r.id))) }, 'Remove') }]),
  ]);
  const table = dataTable({ label: 'Runs compared', columns, key: (r) => r.id, empty: 'Choose runs to compare in the list of runs.' });
  const same = h('button.toggle', { type: 'button', onclick: () => app.change({ same: !app.view().same }) }, 'Show equal keys too');
  const diff = h('table.pairs.diff', { 'aria-label': 'Spec differences' });
  const noDiff = h('p.empty', { hidden: true });
  const differences = h('section.card.flush.specs', { 'aria-label': 'Spec', hidden: true },
    h('header', null, h('h2', null, 'Where the specs differ'), h('span.grow'), same), h('div.scroll', null, diff), noDiff);
  const charts = h('div', null, controls.root, h('div.stage.one', null, ppl.root), h('div.trio', null, ...small.map((p) => p.root)));
  main.replaceChildren(
    h('div.head', null, h('div', null, h('a.crumb', { href: '/' }, icon(ICONS.back), 'Runs'), h('h1', null, o.title), sub)),
    banner, app.drawing ? '' : h('p.banner', { dataset: { tone: 'warn' } }, 'The chart library is not installed on the server, so the numbers are shown as tables. “make web” fetches it.'),
    charts, h('div.card.flush', null, table.root), differences);

  function paintDiff() {
    const v = app.view();
    same.setAttribute('aria-pressed', String(v.same));
    const rows = specRows(specs, v.same);
    const names = (runs ?? []).map((r) => r.name);
    const mark = JSON.stringify([rows, names]);
    noDiff.hidden = rows.length > 0;
    diff.hidden = rows.length === 0;
    setText(noDiff, (runs ?? []).length < 2 ? 'There is one run only.' : 'The specs are the same.');
    if (diff.dataset.mark === mark) return;
    diff.dataset.mark = mark;
    diff.replaceChildren(
      h('thead', null, h('tr', null, h('th', { scope: 'col' }, 'Key'), ...names.map((n) => h('th', { scope: 'col' }, n)))),
      h('tbody', null, ...rows.map((r) => h(`tr${r.differs ? '.differs' : ''}`, null, h('th', { scope: 'row' }, r.key), ...r.values.map((t) => h('td', null, t))))));
  }

  function paint() {
    controls.update();
    if (!runs) return;
    charts.hidden = differences.hidden = runs.length === 0;
    setText(sub, [o.sub, f.plural(runs.length, 'run')].filter(Boolean).join(' · '));
    table.update(runs.map((r, ordinal) => ({ ...r, ordinal })));
    paintDiff();
  }

  const feed = new Feed(app, {
    load: async () => {
      const first = runs === null;
      const found = inOrder(await o.find());
      const known = new Map((runs ?? []).map((r, i) => [r.id, specs[i]]));
      specs = await Promise.all(found.map((r) => known.get(r.id) ?? get(`/api/v1/runs/${encodeURIComponent(r.id)}/spec`).catch((e) => {
        if (isAbort(e)) throw e;
        return null;
      })));
      runs = found;
      context.runs = found.map((r) => ({ id: r.id, name: r.name }));
      banner.hidden = true;
      paint();
      if (first) context.panels.forEach((p) => p.show());
      else await Promise.all(context.panels.map((p) => p.refresh()));
    },
    busy: () => Boolean(runs?.some((r) => r.state === 'running')),
    tick: paint,
    broken: (e) => {
      if (runs) return;
      banner.hidden = false;
      setText(banner, `The runs could not be loaded: ${/** @type {Error} */ (e).message}.`);
      setText(sub, '');
    },
  });
  feed.start();
  const onKey = (/** @type {Event} */ e) => chartKey(app, /** @type {CustomEvent} */ (e).detail);
  main.addEventListener('photon-key', onKey);
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
