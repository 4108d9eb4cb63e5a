// @ts-check
// panel.js - a card with one chart: fetches its series, shows legend, table, CSV and PNG.

import * as f from './format.js';
import * as s from './series.js';
import { get, isAbort, seriesPath } from './api.js';
import { Chart } from './chart.js';
import { h, icon, ICONS, setText, toast } from './dom.js';
import { lineStyle } from './theme.js';

const REQUERY_MS = 150; // after a zoom: the window moves many times before it stands still
const TABLE_ROWS = 500;

/**
 * What all charts of a page share.
 * @typedef {{runs: {id: string, name: string}[], silos: {id: string, name: string}[], drawing: boolean,
 *   view: () => import('./address.js').View, shade: () => 'light' | 'dark',
 *   change: (v: Partial<import('./address.js').View>, done?: boolean) => void, panels: Panel[]}} Context
 */

/**
 * One answer's series as lines. Pure.
 * @param {any[]} answers one per metric (and per silo request), in order
 * @param {{runs: {id: string, name: string}[], silos: {id: string, name: string}[], metrics: number, shade: 'light' | 'dark'}} o
 * @returns {s.Line[]}
 */
export function linesOf(answers, { runs, silos, metrics, shade }) {
  /** @type {s.Line[]} */
  const lines = [];
  const perSilo = answers.some((a) => a.series.some((/** @type {any} */ one) => one.silo));
  answers.forEach((answer, part) => {
    for (const one of answer.series) {
      const run = runs.findIndex((r) => r.id === one.run);
      const silo = one.silo ? silos.findIndex((r) => r.id === one.silo) : -1;
      const many = runs.length > 1;
      const what = s.metric(answer.metric);
      const ordinal = one.silo ? silo + 1 : many ? run : Math.min(part, metrics - 1);
      const { colour, dash } = lineStyle(ordinal, shade);
      // As many bytes go down as come up, often: one line must not hide the other.
      const broken = answer.metric === 'download_bytes' && !many && !one.silo && part > 0;
      lines.push({
        key: one.silo ?? (many ? one.run : answer.metric),
        label: one.silo ? one.silo_name ?? one.silo : many ? runs[run]?.name ?? one.run_name : perSilo ? 'all silos' : what.short ?? what.label,
        metric: answer.metric, run: one.run, silo: one.silo ?? null, colour, dash: broken ? [7, 4] : dash,
        width: one.silo ? 1.25 : many ? 1.5 : 2,
        xs: one.xs, ys: one.ys, smooth: one.smooth ?? null,
        mins: one.shown < one.points ? one.mins ?? null : null, maxs: one.shown < one.points ? one.maxs ?? null : null,
        points: one.points, shown: one.shown,
      });
    }
  });
  // The aggregate is drawn over its silos, and the first line named is the one people read.
  return lines.sort((a, b) => Number(Boolean(a.silo)) - Number(Boolean(b.silo)));
}

/** Rows of the table behind a chart. Pure. @param {s.Line[]} lines @param {string} x @returns {string[][]} */
export function tableRows(lines, x) {
  const rows = [];
  for (const line of lines) {
    const value = s.metric(line.metric).format;
    for (let i = line.xs.length - 1; i >= 0 && rows.length < TABLE_ROWS; i--) {
      rows.push([line.label, s.AXES[x].format(line.xs[i]), value(line.ys[i])]);
    }
  }
  return rows;
}

export class Panel {
  /** @type {s.Line[]} */ #lines = [];
  /** @type {AbortController | null} */ #asking = null;
  /** @type {Chart | null} */ #chart = null;
  #timer = 0;
  #asked = '';
  #wanted = ''; // the request in flight
  #answers = /** @type {any[]} */ ([]);
  #tableOpen = false;
  #c;
  #o;

  /** @param {Context} context @param {{title: string, metrics: string[], tall?: boolean, empty: string, silos?: boolean}} o */
  constructor(context, o) {
    this.#c = context;
    this.#o = o;
    const tool = (/** @type {string} */ label, /** @type {string} */ d, /** @type {() => void} */ onclick) =>
      h('button.tool', { type: 'button', title: label, 'aria-label': `${o.title}: ${label}`, onclick }, icon(d));
    this.value = h('span.value');
    this.log = h('button.tool.word', { type: 'button', title: 'Logarithmic values', 'aria-label': `${o.title}: log scale`,
      onclick: () => context.change({ ly: this.#logY() ? this.#default(false) : this.#default(true) }) }, 'log');
    this.tableButton = tool('view data', ICONS.table, () => this.#toggleTable());
    this.tableButton.setAttribute('aria-expanded', 'false');
    this.csv = h('span.row.tight');
    this.pngButton = tool('save as PNG', ICONS.image, () => this.#png());
    this.reset = h('button.tool.word', { type: 'button', hidden: true, onclick: () => context.change({ xr: null }) }, 'Reset zoom');
    this.legend = h('div.legend');
    this.plot = h('div.plot');
    this.note = h('p.note');
    this.empty = h('p.empty', { hidden: true });
    this.table = h('div.chart-table', { hidden: true, tabindex: 0, role: 'region', 'aria-label': `${o.title}: data` });
    this.root = h(`section.card.chart${o.tall ? '.tall' : ''}`, { 'aria-label': o.title, dataset: { metric: o.metrics[0] } },
      h('header', null, h('h2', null, o.title), this.value, h('span.grow'), this.reset, o.tall ? this.log : null,
        this.tableButton, this.csv, this.pngButton),
      this.legend, h('div.plotarea', null, this.plot, this.empty), this.table, this.note);
    if (context.drawing) {
      this.#chart = new Chart(this.plot, {
        label: o.title,
        onzoom: (r, done) => context.change({ xr: r }, done),
        oncursor: (x) => context.panels.forEach((p) => p !== this && p.#chart?.cursorAt(x)),
      });
    } else {
      this.plot.hidden = true;
      this.pngButton.hidden = true;
      this.#tableOpen = true;
      this.tableButton.hidden = true;
    }
    context.panels.push(this);
  }

  destroy() {
    clearTimeout(this.#timer);
    this.#asking?.abort();
    this.#chart?.destroy();
  }

  #logY() {
    const { ly } = this.#c.view();
    const usual = s.metric(this.#o.metrics[0]).log;
    return this.#o.tall ? ly ?? usual : usual;
  }

  /** The usual choice is left out of the address. @param {boolean} log */
  #default = (log) => (log === s.metric(this.#o.metrics[0]).log ? null : log);

  /** @param {boolean} csv @returns {string[]} the requests this chart is made of */
  #paths(csv) {
    const v = this.#c.view();
    const runs = this.#c.runs.map((r) => r.id);
    if (runs.length === 0) return [];
    const perSilo = v.silos && runs.length === 1 && this.#o.silos !== false;
    const metrics = perSilo ? this.#o.metrics.slice(0, 1) : this.#o.metrics;
    const pad = v.xr ? (v.xr[1] - v.xr[0]) * 0.02 : 0; // a little beyond the edges, so that lines reach them
    const ask = { runs, x: v.x, log: v.lx, smooth: v.sm,
      points: Math.min(3000, Math.max(200, 2 * Math.round(this.plot.clientWidth || 600))),
      from: v.xr ? (v.lx ? v.xr[0] / 1.02 : v.xr[0] - pad) : null, to: v.xr ? (v.lx ? v.xr[1] * 1.02 : v.xr[1] + pad) : null };
    const whole = csv ? { ...ask, smooth: 0, log: false } : ask;
    return [
      ...metrics.map((metric) => seriesPath({ ...whole, metric }, csv)),
      ...(perSilo ? [seriesPath({ ...whole, metric: metrics[0], silo: 'all' }, csv)] : []),
    ];
  }

  /** The view changed: show what is known at once, ask for the rest. */
  show() {
    this.#paint();
    const paths = this.#paths(false).join('\n');
    clearTimeout(this.#timer);
    if (paths === this.#asked) {
      if (this.#wanted !== paths) this.#asking?.abort(); // asked for in between, not wanted any more
      return;
    }
    this.#timer = setTimeout(() => this.refresh().catch(() => {}), this.#asked ? REQUERY_MS : 0);
  }

  /** Ask anew; an unchanged answer costs a 304 and no drawing. */
  async refresh() {
    const paths = this.#paths(false);
    this.#asking?.abort();
    const asking = new AbortController();
    this.#asking = asking;
    this.#wanted = paths.join('\n');
    this.root.setAttribute('aria-busy', 'true');
    try {
      const answers = await Promise.all(paths.map((p) => get(p, asking.signal)));
      this.#asked = paths.join('\n');
      if (answers.length !== this.#answers.length || answers.some((a, i) => a !== this.#answers[i])) {
        this.#answers = answers;
        this.#paint();
      }
      setText(this.empty, this.#o.empty);
    } catch (e) {
      if (isAbort(e)) return;
      setText(this.empty, `Could not be loaded: ${/** @type {Error} */ (e).message}.`);
      throw e;
    } finally {
      if (this.#asking === asking) this.root.removeAttribute('aria-busy');
    }
  }

  /** Draw from what is known. */
  #paint() {
    const v = this.#c.view();
    const answers = this.#answers.filter((a) => a.x === v.x); // after a change of axis the old ones do not fit
    this.#lines = linesOf(answers, { runs: this.#c.runs, silos: this.#c.silos, metrics: this.#o.metrics.length, shade: this.#c.shade() })
      .filter((l) => l.xs.length > 0);
    const visible = this.#lines.filter((l) => !v.hide.includes(l.key));
    this.empty.hidden = visible.length > 0;
    if (this.#lines.length > 0 && visible.length === 0) setText(this.empty, 'All lines are hidden.');
    this.log.setAttribute('aria-pressed', String(this.#logY()));
    this.reset.hidden = v.xr === null;
    this.#paintValue(visible);
    this.#paintLegend(v);
    this.#paintNote(visible, v);
    this.#paintCsv();
    this.#paintTable(visible, v);
    // Last, when the legend and the notes have taken their room.
    this.#chart?.update({ lines: visible, metric: this.#o.metrics[0], x: v.x, lx: v.lx, ly: this.#logY(), xr: v.xr,
      shade: this.#c.shade(), title: this.#o.title });
  }

  /** @param {s.Line[]} visible */
  #paintValue(visible) {
    const line = visible[0];
    const ys = line ? line.ys : [];
    let i = ys.length - 1;
    while (i >= 0 && !f.isNumber(ys[i])) i--;
    setText(this.value, line && this.#c.runs.length === 1 && i >= 0 ? s.metric(line.metric).format(ys[i]) : '');
  }

  /** @param {import('./address.js').View} v */
  #paintLegend(v) {
    this.legend.hidden = this.#lines.length < 2;
    const keys = [...new Map(this.#lines.map((l) => [l.key, l])).values()];
    const mark = JSON.stringify([keys.map((l) => [l.key, l.label, l.colour]), v.hide]);
    if (this.legend.dataset.mark === mark) return;
    this.legend.dataset.mark = mark;
    const focused = this.legend.contains(document.activeElement) ? /** @type {any} */ (document.activeElement).dataset.key : null;
    this.legend.replaceChildren(...keys.map((l) =>
      h('button.key', { type: 'button', 'aria-pressed': String(!v.hide.includes(l.key)), dataset: { key: l.key },
        title: 'Click: show or hide. Alt-click: this one alone.',
        onclick: (/** @type {MouseEvent} */ e) => this.#toggle(l.key, keys.map((k) => k.key), e.altKey) },
      h('span.swatch', { vars: { '--c': l.colour }, dataset: { dash: String(l.dash[0] ?? 0) } }), l.label)));
    for (const b of this.legend.children) if (focused && /** @type {HTMLElement} */ (b).dataset.key === focused) /** @type {HTMLElement} */ (b).focus();
  }

  /** @param {string} key @param {string[]} keys @param {boolean} solo */
  #toggle(key, keys, solo) {
    const { hide } = this.#c.view();
    const others = keys.filter((k) => k !== key);
    const isSolo = !hide.includes(key) && others.every((k) => hide.includes(k));
    if (solo) this.#c.change({ hide: isSolo ? hide.filter((k) => !keys.includes(k)) : [...hide.filter((k) => !keys.includes(k)), ...others] });
    else this.#c.change({ hide: hide.includes(key) ? hide.filter((k) => k !== key) : [...hide, key] });
  }

  /** @param {s.Line[]} visible @param {import('./address.js').View} v */
  #paintNote(visible, v) {
    const notes = [s.thinned(visible)];
    if (v.sm && visible.length) notes.push(`smoothed ${v.sm}${this.#o.metrics[0] === 'eval_ppl' ? ' (the loss is smoothed, then exponentiated)' : ''}`);
    if (this.#logY() && visible.some((l) => l.ys.some((y) => f.isNumber(y) && y <= 0))) notes.push('values of zero and below are not on a logarithmic axis');
    setText(this.note, notes.filter(Boolean).join(' · '));
    this.note.hidden = !this.note.textContent;
  }

  #paintCsv() {
    const paths = this.#paths(true);
    if (this.csv.dataset.mark === paths.join('\n')) return;
    this.csv.dataset.mark = paths.join('\n');
    this.csv.replaceChildren(...paths.map((href, i) => {
      const metric = this.#o.metrics[Math.min(i, this.#o.metrics.length - 1)];
      const each = href.includes('silo=all');
      const what = each ? 'Each silo' : s.metric(metric).label;
      return h(paths.length > 1 ? 'a.tool.word' : 'a.tool', { href, download: `${metric}${each ? '-silos' : ''}.csv`, title: `CSV, every point: ${what}`,
        'aria-label': `${this.#o.title}: CSV, every point${paths.length > 1 ? `: ${what}` : ''}` },
      icon(ICONS.download), paths.length > 1 ? what : '');
    }));
  }

  #toggleTable() {
    this.#tableOpen = !this.#tableOpen;
    this.#paint();
  }

  /** @param {s.Line[]} visible @param {import('./address.js').View} v */
  #paintTable(visible, v) {
    this.table.hidden = !this.#tableOpen || visible.length === 0;
    this.tableButton.setAttribute('aria-expanded', String(this.#tableOpen));
    if (this.table.hidden) return;
    const rows = tableRows(visible, v.x);
    const total = visible.reduce((n, l) => n + l.xs.length, 0);
    this.table.replaceChildren(
      h('table', null, h('caption.sr', null, this.#o.title),
        h('thead', null, h('tr', null, ...['Line', s.AXES[v.x].label, this.#o.title].map((t, i) => h(`th${i ? '.num' : ''}`, { scope: 'col' }, t)))),
        h('tbody', null, ...rows.map((r) => h('tr', null, ...r.map((t, i) => h(`td${i ? '.num' : ''}`, null, t)))))),
      ...(total > rows.length ? [h('p.note', null, `${f.exact(rows.length)} of ${f.exact(total)} rows; the CSV has every point.`)] : []));
  }

  async #png() {
    const blob = await this.#chart?.png();
    if (!blob) return toast('There is nothing to save yet.', 'bad');
    const href = URL.createObjectURL(blob);
    h('a', { href, download: `${[this.#c.runs[0]?.name ?? 'photon', this.#o.metrics[0]].join('-').replace(/[^\w.-]+/g, '_')}.png` }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10_000);
  }
}
