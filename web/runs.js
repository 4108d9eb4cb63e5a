// @ts-check
// runs.js - the list of runs: what is running, how far, how well.

import * as f from './format.js';
import { all } from './api.js';
import { comparePath, experimentPath, runPath } from './address.js';
import { dataTable, h, icon, ICONS, nextSort, pill, progress, segmented, setText, sorted } from './dom.js';
import { Feed } from './feed.js';

const MOST = 2000;
const STATES = /** @type {[string, string][]} */ ([['', 'All'], ['live', 'Live'], ['finished', 'Finished'], ['failed', 'Failed']]);

/** @param {any} run @param {string} state */
const isState = (run, state) =>
  !state || (state === 'live' ? ['created', 'running', 'paused'].includes(run.state)
    : state === 'failed' ? ['failed', 'stopped'].includes(run.state) : run.state === state);

/** The runs that match. Pure. @param {any[]} runs @param {{q: string, state: string}} view */
export function matching(runs, { q, state }) {
  const words = q.toLowerCase().split(/\s+/).filter(Boolean);
  return runs.filter((r) => {
    const text = `${r.name} ${r.experiment ?? ''} ${r.id}`.toLowerCase();
    return isState(r, state) && words.every((w) => text.includes(w));
  });
}

/** "2 running, 1 paused, 14 runs". Pure. @param {any[]} runs */
export function tally(runs) {
  const of = (/** @type {string} */ s) => runs.filter((r) => r.state === s).length;
  return [['running', of('running')], ['paused', of('paused')]].filter(([, n]) => n).map(([s, n]) => `${n} ${s}`)
    .concat(f.plural(runs.length, 'run')).join(' · ');
}

/** @param {{selected: Set<string>, toggle: (id: string, on: boolean) => void}} pick @returns {import('./dom.js').Column<any>[]} */
export function runColumns(pick) {
  return [
    { key: 'pick', label: 'Compare', mute: true, text: (r) => r.id, // and not whether it is ticked: that would draw the box anew, under the finger
      draw: (r) => {
        const box = /** @type {HTMLInputElement} */ (h('input', { type: 'checkbox', 'aria-label': `Compare ${r.name}`,
          onchange: () => pick.toggle(r.id, box.checked) }));
        box.checked = pick.selected.has(r.id);
        return h('label.check', null, box);
      } },
    { key: 'name', label: 'Run', wide: true, sort: (r) => r.name, text: (r) => `${r.name}\u0000${r.experiment}\u0000${r.params}`,
      draw: (r) => h('div.name', null, h('a', { href: runPath(r.id) }, r.name),
        h('small', null, r.experiment ? h('a.quiet', { href: experimentPath(r.experiment) }, r.experiment) : null,
          [r.experiment ? ' · ' : '', f.count(r.params), ' parameters'].join(''))) },
    { key: 'state', label: 'State', sort: (r) => r.state, text: (r) => r.state, draw: (r) => pill(r.state) },
    { key: 'round', label: 'Round', num: true, sort: (r) => r.round / (r.rounds || 1), text: (r) => `${r.round} / ${r.rounds}`,
      draw: (r) => h('div.roundcell', null, h('span', null, `${r.round} / ${r.rounds}`), progress(r.round, r.rounds, `Rounds of ${r.name}`)) },
    { key: 'ppl', label: 'Perplexity', num: true, sort: (r) => r.eval_ppl, text: (r) => f.perplexity(r.eval_ppl) },
    { key: 'tokens', label: 'Tokens', num: true, sort: (r) => r.tokens, text: (r) => f.count(r.tokens), title: (r) => f.exact(r.tokens) },
    { key: 'silos', label: 'Silos', num: true, hint: 'live, of those a round asks for', sort: (r) => r.silos_live,
      text: (r) => `${r.silos_live} / ${r.silos_per_round}` },
    { key: 'bytes', label: 'Traffic', num: true, hint: 'received and sent by the server',
      sort: (r) => r.upload_bytes + r.download_bytes, text: (r) => f.bytes(r.upload_bytes + r.download_bytes),
      title: (r) => `${f.bytes(r.upload_bytes)} received, ${f.bytes(r.download_bytes)} sent` },
    { key: 'updated', label: 'Updated', num: true, sort: (r) => Date.parse(r.updated_at), text: (r) => f.ago(r.updated_at, Date.now()),
      title: (r) => f.stamp(r.updated_at) },
  ];
}

/** @param {import('./app.js').App} app @param {HTMLElement} main */
export function runsPage(app, main) {
  app.title('Runs');
  /** @type {any[] | null} */
  let runs = null;
  /** @type {Set<string>} */
  const selected = new Set();
  const columns = runColumns({ selected, toggle: (id, on) => {
    if (on) selected.add(id);
    else selected.delete(id);
    paint();
  } });
  const search = /** @type {HTMLInputElement} */ (h('input', { type: 'search', placeholder: 'Search runs', 'aria-label': 'Search runs',
    oninput: () => app.change({ q: search.value }, true, true) }));
  const states = segmented('State', STATES, app.view().state, (state) => app.change({ state }));
  const compare = h('button.button.primary', { type: 'button', hidden: true, onclick: () => app.go(comparePath([...selected])) }, 'Compare');
  const table = dataTable({ label: 'Runs', columns, key: (r) => r.id, empty: '',
    onsort: (key) => app.change({ sort: nextSort(app.view().sort, key, Boolean(columns.find((c) => c.key === key)?.num)) }) });
  table.root.classList.add('runs');
  const total = h('p.sub', null, 'Loading…');
  const problem = h('p.banner', { hidden: true, dataset: { tone: 'bad' } });
  const first = h('section.blank', { hidden: true }, h('h2', null, 'No runs yet'),
    h('p', null, 'A run starts when a run spec is submitted and enough silos are here:'),
    h('pre', null, 'photon run submit -f spec.json'), h('p', null, 'Or see everything work on this machine, with four silos: ', h('code', null, 'make demo')));
  main.replaceChildren(
    h('div.head', null, h('div', null, h('h1', null, 'Runs'), total), h('span.grow'), compare),
    problem,
    h('div.filters', null, h('label.search', null, icon(ICONS.search), search), states.root),
    h('div.card.flush', null, table.root), first);

  function paint() {
    const v = app.view();
    if (document.activeElement !== search) search.value = v.q;
    states.set(v.state);
    compare.hidden = selected.size < 2;
    setText(compare, `Compare ${selected.size} runs`);
    if (!runs) return;
    const list = sorted(matching(runs, v), columns, v.sort);
    setText(total, tally(runs));
    first.hidden = runs.length > 0;
    /** @type {HTMLElement} */ (table.root.parentElement).hidden = runs.length === 0;
    /** @type {HTMLElement} */ (main.querySelector('.filters')).hidden = runs.length === 0;
    table.setEmpty('No run matches.');
    table.update(list, v.sort);
  }

  const feed = new Feed(app, {
    load: async () => {
      runs = await all('/api/v1/runs', MOST);
      problem.hidden = true;
      paint();
    },
    busy: () => Boolean(runs?.some((r) => r.state === 'running')),
    tick: paint,
    broken: (e) => {
      problem.hidden = runs !== null;
      setText(problem, `The runs could not be loaded: ${/** @type {Error} */ (e).message}.`);
    },
  });
  feed.start();
  paint();
  return { update: paint, destroy: () => feed.destroy() };
}
