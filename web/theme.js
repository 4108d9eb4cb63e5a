// @ts-check
// theme.js - light, dark or as the system has it, and the colours of lines in each.
//
// The hues are Okabe and Ito's, told apart by people who do not see all colours. Yellow, sky blue and
// orange are too pale on white and black is invisible on dark, so each theme has its own tuned set, all
// at least 3:1 against its background (a test computes that). After eight hues come two dashes: 24 lines.

export const BACKGROUND = { light: '#ffffff', dark: '#16191d' };

export const PALETTE = {
  light: ['#0072b2', '#d55e00', '#00875f', '#b8578f', '#9a6700', '#2a89bd', '#7a7200', '#30363d'],
  dark: ['#56a9e8', '#f0803c', '#2ebd94', '#dd93bd', '#e69f00', '#7cc9f2', '#d9cf45', '#d5d9de'],
};

const DASHES = [[], [7, 4], [2, 3]];

/** @typedef {'light' | 'dark'} Shade */

/** @param {number} ordinal @param {Shade} shade */
export function lineStyle(ordinal, shade) {
  const colours = PALETTE[shade];
  const n = Math.max(0, ordinal) % (colours.length * DASHES.length);
  return { colour: colours[n % colours.length], dash: DASHES[Math.floor(n / colours.length)] };
}

/** WCAG's contrast ratio of two #rrggbb. @param {string} a @param {string} b */
export function contrast(a, b) {
  const [hi, lo] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (hi + 0.05) / (lo + 0.05);
}

/** @param {string} hex */
function luminance(hex) {
  const [r, g, b] = [1, 3, 5].map((i) => {
    const c = parseInt(hex.slice(i, i + 2), 16) / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// ---- the page's half -----------------------------------------------------------------

const KEY = 'photon-theme';

/** @returns {'system' | Shade} what was chosen; the address goes before what was kept */
export function chosen() {
  const said = new URLSearchParams(location.search).get('theme') ?? localStorage.getItem(KEY);
  return said === 'light' || said === 'dark' ? said : 'system';
}

/** @returns {Shade} what is shown */
export function shade() {
  const c = chosen();
  if (c !== 'system') return c;
  return matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';
}

/** @param {string} choice */
export function choose(choice) {
  if (choice === 'light' || choice === 'dark') localStorage.setItem(KEY, choice);
  else localStorage.removeItem(KEY);
}

/** Put the theme on the page. */
export function apply() {
  const c = chosen();
  if (c === 'system') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = c;
}

/** @param {() => void} fn called when the system changes its mind */
export function onSystemChange(fn) {
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', fn);
}

/** The value of a colour of the style sheet. @param {string} name */
export const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
