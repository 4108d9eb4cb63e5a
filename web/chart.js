// @ts-check
// chart.js - the one door to uPlot: draws lines, lets people point, zoom and take a picture.
//
// uPlot draws; pointing is ours, since with an x column of its own per line (mode 2) uPlot finds no
// nearest point, and touch, keys and a cursor shared between charts are not among its features.
// Both ranges are always computed here and handed over together, so a zoom keeps y on what is visible.

import * as s from './series.js';
import { h } from './dom.js';
import { token } from './theme.js';

const VENDOR = '/assets/vendor/uplot-1.6.32/';

/** @type {any} */
let uPlot = null;

/** @returns {Promise<boolean>} false: the library is not installed, and tables are shown instead */
export async function load() {
  if (uPlot) return true;
  try {
    uPlot = (await import(`${VENDOR}uPlot.esm.js`)).default;
  } catch {
    return false;
  }
  document.head.append(h('link', { rel: 'stylesheet', href: `${VENDOR}uPlot.min.css` }));
  return true;
}

/**
 * @typedef {{lines: s.Line[], metric: string, x: string, lx: boolean, ly: boolean, xr: s.Range | null,
 *   shade: string, title: string}} Picture
 * @typedef {{from: s.Range, x0: number, x1: number}} Pinch
 */

const FONT = '11px system-ui, sans-serif';
const DOT_SPACE = 14; // CSS pixels per point above which every point gets a dot
const DRAG_MIN = 6;
const TIP_LINES = 14;

export class Chart {
  /** @type {any} */ #u = null;
  /** @type {Picture | null} */ #p = null;
  #built = '';
  /** @type {s.Range} */ #X = [0, 1];
  /** @type {s.Range} */ #Y = [0, 1];
  /** @type {(Path2D | null)[]} */ #dots = [];
  /** @type {Map<number, PointerEvent>} */ #fingers = new Map();
  /** @type {Pinch | null} where two fingers began */ #pinch = null;
  /** @type {number | null} */ #dragFrom = null;
  /** @type {number | null} */ #cursor = null;
  /** @type {number | undefined} where the pointer was */ #y;
  #frame = 0;
  #observer;
  #o;

  /**
   * @param {HTMLElement} parent sized by the style sheet
   * @param {{label: string, onzoom: (r: s.Range | null, done: boolean) => void, oncursor: (x: number | null) => void}} o
   */
  constructor(parent, o) {
    this.#o = o;
    this.parent = parent;
    this.cross = h('div.cross', { hidden: true });
    this.box = h('div.zoombox', { hidden: true });
    this.marks = h('div.marks');
    this.over = h('div.over', { tabindex: 0, role: 'group',
      'aria-label': `${o.label}: arrow keys read values, plus and minus zoom, Escape shows everything` },
    this.box, this.cross, this.marks);
    this.tip = h('div.tip', { hidden: true });
    this.spoken = h('div.sr', { role: 'status' });
    parent.append(this.over, this.tip, this.spoken);
    this.#listen();
    this.#observer = new ResizeObserver(() => this.#resize());
    this.#observer.observe(parent);
  }

  destroy() {
    this.#observer.disconnect();
    cancelAnimationFrame(this.#frame);
    this.#u?.destroy();
    this.#u = null;
  }

  /** @param {Picture} p */
  update(p) {
    this.#p = p;
    this.#ranges();
    const key = JSON.stringify([p.x, p.lx, p.ly, p.metric, p.shade,
      p.lines.map((l) => [l.key, l.colour, l.dash, l.width, Boolean(l.smooth)])]);
    if (p.lines.length === 0) {
      this.#u?.destroy();
      this.#u = null;
      this.#built = '';
    } else if (key === this.#built && this.#u) {
      const data = this.#data();
      this.#u.batch(() => {
        this.#u.setData(data, false);
        this.#u.setScale('x', { min: this.#X[0], max: this.#X[1] });
        this.#u.setScale('y', { min: this.#Y[0], max: this.#Y[1] });
      });
    } else {
      this.#u?.destroy();
      this.#build();
      this.#built = key;
    }
    this.over.hidden = p.lines.length === 0;
    this.#label();
    this.#point(this.#cursor, !this.tip.hidden, this.#y);
  }

  #ranges() {
    const p = /** @type {Picture} */ (this.#p);
    const span = p.xr && !(p.lx && p.xr[0] <= 0) ? p.xr : s.xRange(p.lines, p.lx);
    this.#X = span ?? (p.lx ? [1, 10] : [0, 1]);
    this.#Y = s.yRange(p.lines, this.#X, p.ly, s.metric(p.metric).zero) ?? (p.ly ? [1, 10] : [0, 1]);
  }

  /** Faint raw lines first, so that they lie behind; what is for all silos last, over each of them. @returns {{line: s.Line, raw: boolean}[]} */
  #layers() {
    const { lines } = /** @type {Picture} */ (this.#p);
    return [...lines.filter((l) => l.smooth).map((line) => ({ line, raw: true })), ...lines.filter((l) => l.silo).map((line) => ({ line, raw: false })), ...lines.filter((l) => !l.silo).map((line) => ({ line, raw: false }))];
  }

  #data() {
    return [null, ...this.#layers().map(({ line, raw }) => [line.xs, raw ? line.ys : s.curve(line)])];
  }

  #build() {
    const p = /** @type {Picture} */ (this.#p);
    const ink = token('--ink-3');
    const rule = token('--rule');
    const layers = this.#layers();
    const most = (/** @type {number} */ px, /** @type {number} */ each) => Math.max(2, Math.floor(px / each));
    // Ticks are ours, but uPlot draws an axis only if it finds an increment too, and below 5 it takes none but its own.
    const axis = {
      stroke: ink, font: FONT, gap: 6, filter: (/** @type {any} */ _, /** @type {number[]} */ v) => v,
      incrs: (/** @type {any} */ _, /** @type {number} */ __, /** @type {number} */ min, /** @type {number} */ max) => [Math.max(5, max - min)],
      grid: { stroke: rule, width: 1 }, ticks: { show: false },
    };
    const plot = {
      mode: 2, ...this.#size(), padding: [10, 16, 0, 4],
      cursor: { show: false }, legend: { show: false }, select: { show: false },
      scales: {
        x: { time: false, distr: p.lx ? 3 : 1, range: () => this.#X },
        y: { distr: p.ly ? 3 : 1, range: () => this.#Y },
      },
      axes: [
        { ...axis, grid: { show: false }, size: 28, border: { show: true, stroke: token('--rule-2'), width: 1 },
          splits: (/** @type {any} */ u) => s.xTicks(p.x, ...this.#X, most(u.bbox.width / devicePixelRatio, u.bbox.width / devicePixelRatio > 500 ? 90 : 56), p.lx),
          values: (/** @type {any} */ _, /** @type {number[]} */ v) => s.xTickLabels(p.x, v) },
        { ...axis, scale: 'y',
          size: (/** @type {any} */ _, /** @type {string[] | null} */ v) => 16 + 6.4 * Math.max(2, ...(v ?? []).map((t) => t.length)),
          splits: (/** @type {any} */ u) => {
            const n = most(u.bbox.height / devicePixelRatio, 36);
            return p.ly ? s.logTicks(...this.#Y, n) : s.linearTicks(...this.#Y, n);
          },
          values: (/** @type {any} */ _, /** @type {number[]} */ v) => s.yTickLabels(p.metric, v) },
      ],
      series: [null, ...layers.map(({ line, raw }, i) => ({
        facets: [{ scale: 'x', auto: true }, { scale: 'y', auto: true }], auto: false,
        label: line.label, stroke: line.colour, fill: `${line.colour}22`, width: raw ? 1 : line.width, dash: line.dash,
        alpha: raw ? 0.28 : 1, points: { show: false },
        paths: (/** @type {any} */ u, /** @type {number} */ si) => this.#path(u, si, layers[i].raw),
      }))],
      hooks: { drawSeries: [(/** @type {any} */ u, /** @type {number} */ i) => this.#drawDots(u, i)],
        draw: [() => this.#place()] },
    };
    this.#u = new uPlot(plot, this.#data(), this.parent);
    this.parent.prepend(this.#u.root);
    this.canvas = /** @type {HTMLCanvasElement} */ (this.#u.ctx.canvas);
    this.canvas.setAttribute('role', 'img');
  }

  /**
   * The visible piece of a line and one point beyond each edge. What the axes cannot show breaks the line.
   * @param {any} u @param {number} si @param {boolean} raw
   */
  #path(u, si, raw) {
    const p = /** @type {Picture} */ (this.#p);
    const { line } = this.#layers()[si - 1];
    const ys = raw ? line.ys : s.curve(line);
    const { xs } = line;
    const X = placer(this.#X, p.lx, u.bbox.left, u.bbox.width);
    const Y = placer(this.#Y, p.ly, u.bbox.top + u.bbox.height, -u.bbox.height);
    const from = Math.max(0, s.lowerBound(xs, this.#X[0]) - 1);
    const to = Math.min(xs.length - 1, s.lowerBound(xs, this.#X[1]));
    const stroke = new Path2D();
    const dots = new Path2D();
    const each = to - from < u.bbox.width / devicePixelRatio / DOT_SPACE;
    const r = (each ? 2.6 : 2) * devicePixelRatio;
    const shows = (/** @type {number} */ i) => s.drawable(ys[i], p.ly) && s.drawable(xs[i], p.lx);
    let pen = false;
    for (let i = from; i <= to; i++) {
      if (!shows(i)) {
        pen = false;
        continue;
      }
      const x = X(xs[i]);
      const y = Y(/** @type {number} */ (ys[i]));
      if (pen) stroke.lineTo(x, y);
      else stroke.moveTo(x, y);
      const alone = !pen && (i === to || !shows(i + 1));
      if (!raw && (each || alone)) {
        dots.moveTo(x + r, y);
        dots.arc(x, y, r, 0, 2 * Math.PI);
      }
      pen = true;
    }
    this.#dots[si] = raw ? null : dots;
    const fill = !raw && !line.smooth && line.mins && line.maxs ? band(line, from, to, X, Y, p) : null;
    return { stroke, fill, flags: 0 };
  }

  /** @param {any} u @param {number} si */
  #drawDots(u, si) {
    const dots = this.#dots[si];
    if (!dots) return;
    const { ctx, bbox } = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left - 6, bbox.top - 6, bbox.width + 12, bbox.height + 12);
    ctx.clip();
    ctx.fillStyle = this.#layers()[si - 1].line.colour;
    ctx.fill(dots);
    ctx.restore();
  }

  #size() {
    return { width: Math.max(120, this.parent.clientWidth), height: Math.max(80, this.parent.clientHeight) };
  }

  #resize() {
    const size = this.#size();
    if (this.#u && (size.width !== this.#u.width || size.height !== this.#u.height)) this.#u.setSize(size);
  }

  /** Lay the part that is pointed at over the plotting area. */
  #place() {
    const { bbox } = this.#u ?? {};
    if (!bbox) return;
    const px = (/** @type {number} */ v) => `${v / devicePixelRatio}px`;
    Object.assign(this.over.style, { left: px(bbox.left), top: px(bbox.top), width: px(bbox.width), height: px(bbox.height) });
  }

  #label() {
    const p = /** @type {Picture} */ (this.#p);
    this.canvas?.setAttribute('aria-label', s.describe(p.title, p.x, p.lines));
  }

  // ---- pointing ----------------------------------------------------------------------

  #listen() {
    const { over } = this;
    over.addEventListener('pointermove', (e) => this.#moved(e));
    over.addEventListener('pointerdown', (e) => this.#pressed(e));
    over.addEventListener('pointerup', (e) => this.#released(e, true));
    over.addEventListener('pointercancel', (e) => this.#released(e, false));
    // A lifted finger leaves too, but what it pointed at stays until something else is touched.
    over.addEventListener('pointerleave', (e) => e.pointerType === 'mouse' && this.#fingers.size === 0 && this.#share(null));
    over.addEventListener('dblclick', () => this.#o.onzoom(null, true));
    over.addEventListener('keydown', (e) => this.#key(e));
    over.addEventListener('blur', () => this.#share(null));
  }

  /** @param {PointerEvent} e */
  #at = (e) => e.clientX - this.over.getBoundingClientRect().left;

  /** @param {number} px */
  #value(px) {
    const w = this.over.clientWidth || 1;
    const { lx } = /** @type {Picture} */ (this.#p);
    const part = Math.min(1, Math.max(0, px / w));
    return lx ? this.#X[0] * (this.#X[1] / this.#X[0]) ** part : this.#X[0] + (this.#X[1] - this.#X[0]) * part;
  }

  /** @param {PointerEvent} e */
  #pressed(e) {
    this.#fingers.set(e.pointerId, e);
    if (e.pointerType === 'mouse' && e.button === 0) {
      this.#dragFrom = this.#at(e);
      this.over.setPointerCapture(e.pointerId);
    } else if (this.#fingers.size === 1) this.#share(this.#value(this.#at(e)), e.clientY);
    if (this.#fingers.size === 2) {
      const [a, b] = [...this.#fingers.values()].map(this.#at);
      this.#pinch = { from: this.#X, x0: Math.min(a, b), x1: Math.max(a, b) };
    }
  }

  /** @param {PointerEvent} e */
  #moved(e) {
    if (this.#fingers.has(e.pointerId)) this.#fingers.set(e.pointerId, e);
    if (this.#pinch && this.#fingers.size === 2) return this.#pinched();
    const px = this.#at(e);
    if (this.#dragFrom !== null) {
      const [a, b] = [this.#dragFrom, Math.min(this.over.clientWidth, Math.max(0, px))].sort((m, n) => m - n);
      this.box.hidden = b - a < DRAG_MIN;
      Object.assign(this.box.style, { left: `${a}px`, width: `${b - a}px` });
    }
    this.#share(this.#value(px), e.clientY);
  }

  #pinched() {
    const pinch = /** @type {Pinch} */ (this.#pinch);
    const [a, b] = [...this.#fingers.values()].map(this.#at).sort((m, n) => m - n);
    if (b - a < 10) return;
    const { lx } = /** @type {Picture} */ (this.#p);
    const to = lx ? Math.log : (/** @type {number} */ v) => v;
    const back = lx ? Math.exp : (/** @type {number} */ v) => v;
    const w = this.over.clientWidth;
    const [f0, f1] = pinch.from.map(to);
    const per = ((f1 - f0) * (pinch.x1 - pinch.x0)) / w / (b - a); // axis units a pixel, now
    const left = f0 + ((f1 - f0) * pinch.x0) / w - per * a;
    this.#o.onzoom([back(left), back(left + per * w)], false);
  }

  /** @param {PointerEvent} e @param {boolean} done */
  #released(e, done) {
    this.#fingers.delete(e.pointerId);
    if (this.#pinch && this.#fingers.size < 2) {
      this.#pinch = null;
      this.#o.onzoom(this.#X, true);
    }
    if (this.#dragFrom !== null) {
      const [a, b] = [this.#dragFrom, this.#at(e)].sort((m, n) => m - n);
      this.#dragFrom = null;
      this.box.hidden = true;
      if (done && b - a >= DRAG_MIN) this.#o.onzoom([this.#value(a), this.#value(b)], true);
    }
  }

  /** @param {KeyboardEvent} e */
  #key(e) {
    const p = this.#p;
    if (!p || p.lines.length === 0 || e.ctrlKey || e.metaKey || e.altKey) return;
    const mid = this.#cursor ?? this.#value(this.over.clientWidth / 2);
    if (e.key === 'Escape') {
      if (this.#dragFrom !== null) {
        this.#dragFrom = null;
        this.box.hidden = true;
      } else this.#o.onzoom(null, true);
    } else if (e.key === '+' || e.key === '=') this.#o.onzoom(s.zoomed(this.#X, mid, 0.5, p.lx), true);
    else if (e.key === '-') this.#o.onzoom(this.#within(s.zoomed(this.#X, mid, 2, p.lx)), true);
    else if (['ArrowLeft', 'ArrowRight', 'Home', 'End'].includes(e.key)) this.#step(e.key);
    else return;
    e.preventDefault();
    e.stopPropagation();
  }

  /** Zooming out ends at everything. @param {s.Range} r @returns {s.Range | null} */
  #within(r) {
    const { lines, lx } = /** @type {Picture} */ (this.#p);
    const whole = s.xRange(lines, lx);
    return whole && r[0] <= whole[0] && r[1] >= whole[1] ? null : r;
  }

  /** To the next point of the first line. @param {string} key */
  #step(key) {
    const { lines, lx, ly } = /** @type {Picture} */ (this.#p);
    const { xs } = lines[0];
    const ys = s.curve(lines[0]);
    const usable = xs.map((_, i) => i).filter((i) => s.drawable(ys[i], ly) && s.drawable(xs[i], lx) &&
      xs[i] >= this.#X[0] && xs[i] <= this.#X[1]);
    if (usable.length === 0) return;
    let i = usable.length - 1;
    if (key === 'Home') i = 0;
    else if (key !== 'End' && this.#cursor !== null) {
      const now = usable.indexOf(s.nearest(xs, ys, this.#cursor, lx, ly));
      i = Math.min(usable.length - 1, Math.max(0, now + (key === 'ArrowLeft' ? -1 : 1)));
    }
    this.#share(xs[usable[i]]);
    this.spoken.textContent = this.tip.innerText.replaceAll('\n', ' ');
  }

  /** @param {number | null} x @param {number} [clientY] */
  #share(x, clientY) {
    cancelAnimationFrame(this.#frame);
    this.#y = clientY;
    const show = () => {
      this.#point(x, x !== null, clientY);
      this.#o.oncursor(x);
    };
    if (clientY === undefined) show();
    else this.#frame = requestAnimationFrame(show);
  }

  /** The cursor of another chart of the page. @param {number | null} x */
  cursorAt(x) {
    this.#point(x, false);
  }

  /**
   * Every line's own nearest point; the one nearest to the pointer first.
   * @param {number | null} x @param {boolean} tip @param {number} [clientY]
   */
  #point(x, tip, clientY) {
    const p = this.#p;
    this.#cursor = x;
    const outside = x === null || !p || !this.#u || x < this.#X[0] || x > this.#X[1];
    this.cross.hidden = outside;
    this.tip.hidden = outside || !tip;
    this.marks.replaceChildren();
    if (outside) return;
    const X = placer(this.#X, p.lx, 0, this.over.clientWidth);
    const Y = placer(this.#Y, p.ly, this.over.clientHeight, -this.over.clientHeight);
    this.cross.style.transform = `translateX(${X(x)}px)`;
    const top = this.over.getBoundingClientRect().top;
    const near = p.lines.flatMap((line) => {
      const ys = s.curve(line);
      const i = s.nearest(line.xs, ys, x, p.lx, p.ly);
      if (i < 0 || line.xs[i] < this.#X[0] || line.xs[i] > this.#X[1]) return [];
      const y = Y(/** @type {number} */ (ys[i]));
      const aside = Math.abs(X(line.xs[i]) - X(x));
      return [{ line, i, y, aside, far: clientY === undefined ? 0 : Math.abs(y - (clientY - top)) }];
    });
    // A line that ended before the pointer has nothing to say there, unless it is alone.
    const least = Math.min(...near.map((n) => n.aside));
    const here = near.filter((n) => n.aside <= Math.max(least, this.#reach(n, x))).sort((a, b) => a.far - b.far);
    for (const n of here) {
      if (n.y < -1 || n.y > this.over.clientHeight + 1) continue;
      this.marks.append(h('i', { vars: { '--c': n.line.colour, left: `${X(n.line.xs[n.i])}px`, top: `${n.y}px` } }));
    }
    if (tip) this.#showTip(x, here);
  }

  /** How far from the pointer a point may be: any distance within its line, a few pixels beyond its ends. @param {{line: s.Line}} n @param {number} x */
  #reach({ line }, x) {
    return x >= line.xs[0] && x <= line.xs[line.xs.length - 1] ? Infinity : 24;
  }

  /** @param {number} x @param {{line: s.Line, i: number, aside: number}[]} near */
  #showTip(x, near) {
    const p = /** @type {Picture} */ (this.#p);
    const axis = s.AXES[p.x];
    const closest = near.reduce((a, b) => (b.aside < a.aside ? b : a), near[0]);
    const head = closest ? closest.line.xs[closest.i] : x;
    const rows = near.slice(0, TIP_LINES).map(({ line, i }) => {
      const value = s.metric(line.metric).format;
      const other = line.xs[i] !== head ? axis.format(line.xs[i]) : '';
      return h('div.tip-row', null,
        h('span.swatch', { vars: { '--c': line.colour }, dataset: { dash: String(line.dash.length ? line.dash[0] : 0) } }),
        h('span.tip-name', null, line.label),
        h('b', null, value(s.curve(line)[i])),
        line.smooth ? h('small', null, `raw ${value(line.ys[i])}`) : null,
        other ? h('small', null, other) : null);
    });
    if (near.length > TIP_LINES) rows.push(h('small', null, `and ${near.length - TIP_LINES} more`));
    this.tip.replaceChildren(h('div.tip-head', null, axis.format(head)), ...rows);
    const w = this.over.clientWidth;
    const at = placer(this.#X, p.lx, 0, w)(x);
    const left = this.over.offsetLeft + at;
    const right = at > w / 2;
    Object.assign(this.tip.style, { left: right ? 'auto' : `${left + 14}px`,
      right: right ? `${this.parent.clientWidth - left + 14}px` : 'auto', top: `${this.over.offsetTop + 6}px` });
  }

  // ---- picture -----------------------------------------------------------------------

  /** The chart with title and legend, as a PNG. @returns {Promise<Blob | null>} */
  png() {
    const p = this.#p;
    if (!this.#u || !p) return Promise.resolve(null);
    const from = this.#u.ctx.canvas;
    const k = devicePixelRatio;
    const named = p.lines.length > 1 ? p.lines : [];
    const can = document.createElement('canvas');
    const perRow = Math.max(1, Math.floor(from.width / k / 190));
    can.width = from.width;
    can.height = from.height + k * (44 + 18 * Math.ceil(named.length / perRow));
    const ctx = /** @type {CanvasRenderingContext2D} */ (can.getContext('2d'));
    ctx.fillStyle = token('--surface');
    ctx.fillRect(0, 0, can.width, can.height);
    ctx.scale(k, k);
    ctx.fillStyle = token('--ink');
    ctx.font = '600 15px system-ui, sans-serif';
    ctx.fillText(`${p.title} by ${s.AXES[p.x].axis}`, 16, 26);
    ctx.font = '12px system-ui, sans-serif';
    named.forEach((line, i) => {
      const [x, y] = [16 + 190 * (i % perRow), 46 + 18 * Math.floor(i / perRow)];
      ctx.fillStyle = line.colour;
      ctx.fillRect(x, y - 5, 14, 3);
      ctx.fillStyle = token('--ink-2');
      ctx.fillText(line.label, x + 20, y, 162);
    });
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.drawImage(from, 0, can.height - from.height);
    return new Promise((resolve) => can.toBlob(resolve, 'image/png'));
  }
}

/**
 * A value's place: `at` for the range's start, `at + size` for its end.
 * @param {s.Range} range @param {boolean} log @param {number} at @param {number} size @returns {(v: number) => number}
 */
function placer(range, log, at, size) {
  if (log) {
    const lo = Math.log(range[0]);
    const k = size / (Math.log(range[1]) - lo || 1);
    return (v) => at + (Math.log(v) - lo) * k;
  }
  const k = size / (range[1] - range[0] || 1);
  return (v) => at + (v - range[0]) * k;
}

/**
 * Between the least and the greatest value of each thinned bucket: there along the top, back along the bottom.
 * @param {s.Line} line @param {number} from @param {number} to
 * @param {(v: number) => number} X @param {(v: number) => number} Y @param {{lx: boolean, ly: boolean}} p
 */
function band({ xs, mins, maxs }, from, to, X, Y, { lx, ly }) {
  const path = new Path2D();
  /** @type {number[]} */
  let piece = [];
  const shows = (/** @type {number} */ i) => s.drawable(xs[i], lx) && s.drawable(mins?.[i], ly) && s.drawable(maxs?.[i], ly);
  const flush = () => {
    if (piece.length > 1) {
      piece.forEach((i, n) => (n ? path.lineTo : path.moveTo).call(path, X(xs[i]), Y(/** @type {any} */ (maxs)[i])));
      for (const i of piece.reverse()) path.lineTo(X(xs[i]), Y(/** @type {any} */ (mins)[i]));
      path.closePath();
    }
    piece = [];
  };
  for (let i = from; i <= to; i++) {
    if (shows(i)) piece.push(i);
    else flush();
  }
  flush();
  return path;
}
