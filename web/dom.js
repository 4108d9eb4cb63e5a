// @ts-check
// dom.js - making and renewing elements. Text is only ever text: names come from strangers.

/**
 * @param {string} tag 'div', 'div.card', 'span.pill.ok'
 * @param {Record<string, any> | null} [attrs] on…: listener; dataset: object; else an attribute (true = empty, false/null = none)
 * @param {...(Node | string | null | undefined | false)} children strings become text nodes
 * @returns {HTMLElement}
 */
export function h(tag, attrs, ...children) {
  const [name, ...classes] = tag.split('.');
  const el = document.createElement(name);
  if (classes.length) el.classList.add(...classes);
  for (const [k, v] of Object.entries(attrs ?? {})) set(el, k, v);
  append(el, children);
  return el;
}

/** @param {Element} el @param {string} k @param {any} v */
function set(el, k, v) {
  if (v === null || v === undefined || v === false) return;
  if (k.startsWith('on')) el.addEventListener(k.slice(2), v);
  else if (k === 'dataset') Object.assign(/** @type {HTMLElement} */ (el).dataset, v);
  else if (k === 'vars') for (const [n, s] of Object.entries(v)) /** @type {HTMLElement} */ (el).style.setProperty(n, s);
  else if (k === 'value') /** @type {HTMLInputElement} */ (el).value = v;
  else el.setAttribute(k, v === true ? '' : String(v));
}

/** @param {Element} el @param {(Node | string | null | undefined | false)[]} children */
function append(el, children) {
  for (const c of children) if (c !== null && c !== undefined && c !== false) el.append(c);
}

const SVG = 'http://www.w3.org/2000/svg';

/** An outline icon of 16 × 16 from path data. @param {string} d */
export function icon(d) {
  const svg = document.createElementNS(SVG, 'svg');
  const path = document.createElementNS(SVG, 'path');
  for (const [k, v] of Object.entries({ viewBox: '0 0 16 16', 'aria-hidden': 'true', class: 'icon' })) svg.setAttribute(k, v);
  path.setAttribute('d', d);
  svg.append(path);
  return svg;
}

export const ICONS = {
  download: 'M8 2.5v7m0 0 3-3m-3 3-3-3M3 12.5h10',
  image: 'M2.5 3.5h11v9h-11zM2.5 10.5l3-3 3 3 2-2 3 3',
  table: 'M2.5 3.5h11v9h-11zM2.5 6.5h11M2.5 9.5h11M6.5 3.5v9',
  back: 'M7 3.5 2.5 8 7 12.5M2.5 8h11',
  chevron: 'M6 4l4 4-4 4',
  fork: 'M4 13.5V2.5M4 10c0-2 1.5-3 4-3s4-1 4-3V2.5',
  pause: 'M5.5 3.5v9M10.5 3.5v9',
  play: 'M5 3.5v9l7-4.5z',
  stop: 'M4 4h8v8H4z',
  plus: 'M8 3v10M3 8h10',
  close: 'M4 4l8 8M12 4l-8 8',
  search: 'M7 11.5a4.5 4.5 0 1 0 0-9 4.5 4.5 0 0 0 0 9zM10.5 10.5l3 3',
  reset: 'M3 8a5 5 0 1 0 1.6-3.7M3 2.5v2.8h2.8',
  up: 'M8 13V3.5m0 0-3.5 3.5M8 3.5 11.5 7',
  down: 'M8 3v9.5m0 0L4.5 9M8 12.5 11.5 9',
};

/** Change text only when it differs: screen readers and selections are left in peace. @param {Element} el @param {string} text */
export function setText(el, text) {
  if (el.textContent !== text) el.textContent = text;
}

/**
 * A column of a table. `text` is what is shown, and what it is compared by; `draw` replaces the plain text,
 * and then `text` must change whenever the drawing would. A `mute` label is there for screen readers alone.
 * @template T
 * @typedef {{key: string, label: string, num?: boolean, wide?: boolean, mute?: boolean, hint?: string, sort?: (row: T) => number | string | null,
 *   text: (row: T) => string, title?: (row: T) => string, draw?: (row: T) => Node | string | (Node | string)[], head?: () => Node}} Column
 */

/**
 * A table whose rows are renewed in place, by key; on a narrow screen each row is a card.
 * @template T
 * @param {{label: string, columns: Column<T>[], key: (row: T) => string, empty: string,
 *   onsort?: (key: string) => void, href?: (row: T) => string}} o
 */
export function dataTable(o) {
  const heads = o.columns.map((c) => {
    const button = o.onsort && c.sort && h('button.sort', { type: 'button', onclick: () => o.onsort?.(c.key) }, c.label);
    return h(`th${c.num ? '.num' : ''}`, { scope: 'col', role: 'columnheader', title: c.hint }, button || c.head?.() || (c.mute ? h('span.sr', null, c.label) : c.label));
  });
  const body = h('tbody', { role: 'rowgroup' });
  const table = h('table.data', { role: 'table', 'aria-label': o.label },
    h('thead', { role: 'rowgroup' }, h('tr', { role: 'row' }, ...heads)), body);
  const empty = h('p.empty', { hidden: true }, o.empty);
  const root = h('div.table', null, h('div.scroll', null, table), empty);
  /** @type {Map<string, {tr: HTMLElement, cells: HTMLElement[], texts: string[], detail: HTMLElement | null}>} */
  let known = new Map();

  /** @param {T} row @param {{cells: HTMLElement[], texts: string[]}} r */
  function renew(row, r) {
    o.columns.forEach((c, i) => {
      const text = c.text(row);
      const mark = c.title ? `${text}\n${c.title(row)}` : text;
      if (r.texts[i] === mark) return;
      r.texts[i] = mark;
      const td = r.cells[i];
      const drawn = c.draw ? c.draw(row) : text;
      td.replaceChildren(...(Array.isArray(drawn) ? drawn : [drawn]));
      if (c.title) td.title = c.title(row);
    });
  }

  /** @param {T[]} rows @param {string} [sorted] '-key' or 'key', to mark the head */
  function update(rows, sorted = '') {
    const next = new Map();
    const order = rows.flatMap((row) => {
      const key = o.key(row);
      const r = known.get(key) ?? makeRow();
      next.set(key, r);
      renew(row, r);
      return r.detail ? [r.tr, r.detail] : [r.tr];
    });
    for (const [key, r] of known) {
      if (next.has(key)) continue;
      r.tr.remove();
      r.detail?.remove();
    }
    order.forEach((tr, i) => {
      if (body.children[i] !== tr) body.insertBefore(tr, body.children[i] ?? null);
    });
    known = next;
    empty.hidden = rows.length > 0;
    table.hidden = rows.length === 0;
    o.columns.forEach((c, i) => {
      if (sorted.replace('-', '') === c.key) heads[i].setAttribute('aria-sort', sorted.startsWith('-') ? 'descending' : 'ascending');
      else heads[i].removeAttribute('aria-sort');
    });
  }

  function makeRow() {
    const cells = o.columns.map((c) =>
      h(`td${c.num ? '.num' : ''}${c.wide ? '.wide' : ''}`, { role: 'cell', dataset: { label: c.mute ? '' : c.label, key: c.key } }));
    return { tr: h('tr', { role: 'row' }, ...cells), cells, texts: /** @type {string[]} */ ([]),
      detail: /** @type {HTMLElement | null} */ (null) };
  }

  /** Put something under a row, or take it away. @param {string} key @param {Node | null} node */
  function detail(key, node) {
    const r = known.get(key);
    if (!r) return;
    r.detail?.remove();
    r.detail = node && h('tr.detail', { role: 'row' }, h('td', { role: 'cell', colspan: o.columns.length }, node));
    if (r.detail) r.tr.after(r.detail);
  }

  return { root, update, detail, table, setEmpty: (/** @type {string} */ s) => setText(empty, s) };
}

/**
 * By a column; what is unknown goes last in either direction.
 * @template T @param {T[]} rows @param {Column<T>[]} columns @param {string} by '-key' or 'key'
 */
export function sorted(rows, columns, by) {
  const down = by.startsWith('-');
  const value = columns.find((c) => c.key === by.replace('-', ''))?.sort;
  if (!value) return rows;
  return [...rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null ? 1 : 0) - (y === null ? 1 : 0);
    const d = typeof x === 'number' && typeof y === 'number' ? x - y : String(x).localeCompare(String(y), 'en');
    return down ? -d : d;
  });
}

/** First click on a head: down for numbers; second: the other way. @param {string} now @param {string} key @param {boolean} num */
export function nextSort(now, key, num) {
  if (now === key) return `-${key}`;
  if (now === `-${key}`) return key;
  return num ? `-${key}` : key;
}

const TONES = {
  running: 'ok', training: 'ok', evaluating: 'ok', uploading: 'ok', downloading: 'ok', open: 'ok', active: 'ok',
  aggregating: 'ok', leased: 'ok', finished: 'done', closed: 'done', done: 'done',
  paused: 'warn', pending: 'idle', waiting: 'idle', created: 'idle', cancelled: 'idle', stopped: 'idle',
  failed: 'bad', gone: 'bad', aborted: 'bad', revoked: 'bad',
};

/** A state in a word and a colour, never in colour alone. @param {string} state */
export const pill = (state) => h('span.pill', { dataset: { tone: /** @type {any} */ (TONES)[state] ?? 'idle' } }, state);

/** @param {number} done @param {number} of @param {string} label @param {number} [partial] the part of one more that is done */
export function progress(done, of, label, partial = 0) {
  const at = of > 0 ? Math.min(1, (done + partial) / of) : 0;
  return h('span.bar', { role: 'progressbar', 'aria-label': label, 'aria-valuemin': 0, 'aria-valuemax': of, 'aria-valuenow': done },
    h('span', { vars: { '--at': `${(at * 100).toFixed(1)}%` } }));
}

/**
 * A choice of one in a row of words.
 * @param {string} label @param {[string, string][]} options value, word @param {string} value @param {(v: string) => void} change
 */
export function segmented(label, options, value, change) {
  const buttons = options.map(([v, word]) =>
    h('button', { type: 'button', 'aria-pressed': String(v === value), dataset: { value: v }, onclick: () => change(v) }, word));
  const root = h('div.segmented', { role: 'group', 'aria-label': label }, ...buttons);
  return {
    root,
    set: (/** @type {string} */ now) => buttons.forEach((b) => b.setAttribute('aria-pressed', String(b.dataset.value === now))),
  };
}

/**
 * Ask before what cannot be undone. @param {string} title @param {string} text @param {string} verb @param {boolean} [danger]
 * @returns {Promise<boolean>}
 */
export function confirmed(title, text, verb, danger = false) {
  return new Promise((resolve) => {
    const yes = h(`button.button${danger ? '.danger' : '.primary'}`, { type: 'button', onclick: () => close(true) }, verb);
    const no = h('button.button', { type: 'button', onclick: () => close(false) }, 'Cancel');
    const dialog = /** @type {HTMLDialogElement} */ (h('dialog', { 'aria-labelledby': 'dialog-title', oncancel: () => close(false) },
      h('h2', { id: 'dialog-title' }, title), h('p', null, text), h('div.row.end', null, no, yes)));
    const close = (/** @type {boolean} */ ok) => {
      shut(dialog);
      resolve(ok);
    };
    document.body.append(dialog);
    dialog.showModal();
    no.focus();
  });
}

/** Away with it at once, secrets and all, and the focus back where it was. @param {HTMLDialogElement} dialog */
export function shut(dialog) {
  dialog.close();
  dialog.remove();
}

let toastTimer = 0;
/** A line at the foot of the page that goes away. @param {string} text @param {'ok' | 'bad'} [tone] */
export function toast(text, tone = 'ok') {
  const el = /** @type {HTMLElement} */ (document.getElementById('toast'));
  setText(el, text);
  el.dataset.tone = tone;
  el.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (el.hidden = true), tone === 'bad' ? 10_000 : 4000);
}
