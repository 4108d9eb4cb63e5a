import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';

import { BACKGROUND, contrast, lineStyle, PALETTE } from '../../web/theme.js';

test('contrast is WCAG’s', () => {
  assert.equal(contrast('#000000', '#ffffff').toFixed(2), '21.00');
  assert.equal(contrast('#777777', '#ffffff').toFixed(2), '4.48');
});

for (const shade of ['light', 'dark']) {
  test(`every line is at least 3:1 on ${shade}`, () => {
    for (const c of PALETTE[shade]) assert.ok(contrast(c, BACKGROUND[shade]) >= 3, `${c}: ${contrast(c, BACKGROUND[shade])}`);
  });
}

test('24 lines differ by colour or dash, and the 25th begins again', () => {
  const all = Array.from({ length: 24 }, (_, i) => JSON.stringify(lineStyle(i, 'light')));
  assert.equal(new Set(all).size, 24);
  assert.deepEqual(lineStyle(24, 'light'), lineStyle(0, 'light'));
  assert.deepEqual(lineStyle(-1, 'dark'), lineStyle(0, 'dark'));
});

/** The custom properties of the first rule that starts with `head`. */
function tokens(css, head) {
  const from = css.indexOf(head);
  const body = css.slice(css.indexOf('{', from) + 1, css.indexOf('}', from));
  return Object.fromEntries([...body.matchAll(/(--[\w-]+):\s*([^;]+);/g)].map((m) => [m[1], m[2]]));
}

test('text is at least 4.5:1 on every background of its theme', async () => {
  const css = await readFile(new URL('../../web/style.css', import.meta.url), 'utf8');
  for (const [shade, head] of [['light', ':root {'], ['dark', ':root[data-theme=dark] {']]) {
    const t = tokens(css, head);
    assert.equal(t['--surface'], BACKGROUND[shade], 'lines are drawn on the surface');
    for (const bg of ['--bg', '--surface', '--sunken']) {
      for (const ink of ['--ink', '--ink-2', '--ink-3', '--ok', '--warn', '--bad', '--accent']) {
        assert.ok(contrast(t[ink], t[bg]) >= 4.5, `${shade} ${ink} on ${bg}: ${contrast(t[ink], t[bg]).toFixed(2)}`);
      }
    }
  }
});

test('the system’s dark and the chosen dark are the same', async () => {
  const css = await readFile(new URL('../../web/style.css', import.meta.url), 'utf8');
  assert.deepEqual(tokens(css, ':root:not([data-theme=light])'), tokens(css, ':root[data-theme=dark] {'));
});
