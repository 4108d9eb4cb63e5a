// Our ids against those of @huggingface/tokenizers, document by document: `photon data tokenizer`
// writes a tokenizer, both sides read it, `photon data prepare` gives ours as a shard.
// It takes U+0085 for no space and U+FEFF for one, unlike the Rust library, so neither is drawn.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Tokenizer } from '@huggingface/tokenizers';

const photon = join(process.env.PHOTON_BUILD ?? 'build/release', 'bin/photon');
const HEAD_BYTES = 1024;
const PARTS = ['a', 'the ', 'The', '  ', '   ', ' ', '\n', '\r\n', '\r\n\r\n', '\t', 'é', 'e\u0301',
  '中文', '日本語', '👩‍👩‍👧', '🇩🇪', 'שלום', 'سلام', '\u00a0', '\u3000', '\u2028', "'s", "'ll", "'T", '123',
  '4567', '½', 'Ⅷ', '{', '}', '==', '__init__', 'for (int i = 0;', '한국', 'ᄒ', 'ᅡ', 'ᆫ', '\u200d', 'ﬁ',
  'Å', 'İ', 'ß', '١٢', '\u0300', '_', '-', '...', '\u180e', '<|endoftext', 'x', 'YZ'];

let dir;
let texts;

/** Numbers below n from a fixed seed, so that a failure can be seen again. */
function dice(seed) {
  let s = seed;
  return (n) => {
    s = (Math.imul(s, 1103515245) + 12345) & 0x7fffffff;
    return (s >> 8) % n;
  };
}

before(() => {
  dir = mkdtempSync(join(tmpdir(), 'photon-oracle-'));
  const roll = dice(17);
  texts = Array.from({ length: 2000 }, () =>
    Array.from({ length: 1 + roll(40) }, () => PARTS[roll(PARTS.length)]).join(''));
  writeFileSync(join(dir, 'docs.jsonl'), texts.map((text) => `${JSON.stringify({ text })}\n`).join(''));
  execFileSync(photon, ['data', 'tokenizer', join(dir, 'docs.jsonl'), '--vocab', '600', '-q', '-o',
    join(dir, 'tokenizer.json')]);
});

after(() => rmSync(dir, { recursive: true, force: true }));

/** Our ids of every document, from the shard that prepare writes. */
function ours(name, endOfText) {
  execFileSync(photon, ['data', 'prepare', join(dir, 'docs.jsonl'), '-t', join(dir, `${name}.json`),
    '--heldout', '0', '-q', '-o', join(dir, name)]);
  const bytes = readFileSync(join(dir, name, 'train-00000.bin'));
  const documents = [[]];
  for (let at = HEAD_BYTES; at < bytes.length; at += 2) {
    const id = bytes.readUInt16LE(at);
    if (id === endOfText) documents.push([]);
    else documents.at(-1).push(id);
  }
  documents.pop();
  return documents;
}

function compare(name, change) {
  const file = JSON.parse(readFileSync(join(dir, 'tokenizer.json'), 'utf8'));
  change(file);
  writeFileSync(join(dir, `${name}.json`), JSON.stringify(file));
  const theirs = new Tokenizer(file, {});
  const got = ours(name, 0);
  assert.equal(got.length, texts.length);
  texts.forEach((text, i) => {
    assert.deepEqual(got[i], theirs.encode(text, { add_special_tokens: false }).ids,
      `document ${i}: ${JSON.stringify(text)}`);
  });
}

test('what we learned gives both libraries the same ids', () => compare('plain', () => {}));

test('so do merges written as pairs', () => compare('pairs', (file) => {
  file.model.merges = file.model.merges.map((m) => m.split(' '));
}));

test('so do NFC and added runs of spaces, as GPT-NeoX has them', () => compare('neox', (file) => {
  file.normalizer = { type: 'NFC' };
  for (let n = 24; n > 1; n--) {
    file.added_tokens.push({ id: 624 - n, content: ' '.repeat(n), single_word: false, lstrip: false,
      rstrip: false, normalized: true, special: false });
  }
}));

test('so does the expression of Llama 3', () => compare('llama', (file) => {
  const regex = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
    + ' ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';
  file.pre_tokenizer = { type: 'Sequence', pretokenizers: [
    { type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false },
    { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false }] };
}));
