#!/usr/bin/env python3
"""The golden losses of test_model.c, from a second writing of the model that shares nothing with it.

Plain Python in double precision, after Hugging Face's modeling_mpt.py (Wqkv is cut into q, k, v and
each of these into heads; ALiBi's bias is added to scores over the square root of the head size) and
the learned positions of llm-foundry. Weights and text come from their definitions in common/rng.h,
common/params.h and tests/support/tiny.h. Run it to see the numbers:  tests/kernels/golden.py
"""
import math
import struct

MASK = (1 << 64) - 1
D, HEADS, LAYERS, VOCAB, SEQ, BATCH = 32, 4, 2, 53, 12, 4


def f32(x):
    return struct.unpack('f', struct.pack('f', x))[0]


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def u64(key, counter):
    return mix((mix(key) + counter * 0x9E3779B97F4A7C15) & MASK)


def unit(key, counter):
    return (u64(key, counter) >> 11) * 2.0**-53


def normal(key, counter):
    u = 1.0 - unit(key, 2 * counter)
    return math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * unit(key, 2 * counter + 1))


def key_of(seed, purpose):
    h = 0xCBF29CE484222325
    for c in purpose.encode():
        h = ((h ^ c) * 0x100000001B3) & MASK
    return mix(mix(seed) ^ h)


def shapes(learned, bias):
    s = {'transformer.wte.weight': (VOCAB, D), 'transformer.norm_f.weight': (D,)}
    if learned:
        s['transformer.wpe.weight'] = (SEQ, D)
    for i in range(LAYERS):
        b = f'transformer.blocks.{i}.'
        s[b + 'norm_1.weight'] = s[b + 'norm_2.weight'] = (D,)
        s[b + 'attn.Wqkv.weight'] = (3 * D, D)
        s[b + 'attn.out_proj.weight'] = (D, D)
        s[b + 'ffn.up_proj.weight'] = (4 * D, D)
        s[b + 'ffn.down_proj.weight'] = (D, 4 * D)
    if bias:
        s.update({n.replace('.weight', '.bias'): shape[:1] for n, shape in s.items()
                  if '.wte.' not in n and '.wpe.' not in n})
    return s


def weights(learned, bias):
    out, offset = {}, 0
    for name, shape in sorted(shapes(learned, bias).items()):
        count = math.prod(shape)
        if len(shape) == 2:
            std = math.sqrt(2.0 / shape[1])
            if 'out_proj' in name or 'down_proj' in name:
                std /= math.sqrt(2.0 * LAYERS)
            key = key_of(5, name)
            flat = [f32(std * normal(key, i)) for i in range(count)]
            out[name] = [flat[r * shape[1]:(r + 1) * shape[1]] for r in range(shape[0])]
        else:
            start = 1.0 if name.endswith('weight') else 0.0
            out[name] = [f32(start + f32(f32(0.1) * f32(normal(17, offset + i))))
                         for i in range(count)]
        offset += count
    return out


def row(key):
    t = [u64(key, 0) % VOCAB]
    for i in range(1, SEQ + 1):
        t.append((t[-1] * 3 + u64(key, i) % 3) % VOCAB)
    return t


def linear(w, name, x):
    b = w.get(name + '.bias')
    return [sum(a * c for a, c in zip(r, x)) + (b[i] if b else 0.0)
            for i, r in enumerate(w[name + '.weight'])]


def norm(w, name, x):
    mean = sum(x) / D
    rstd = 1.0 / math.sqrt(sum((v - mean)**2 for v in x) / D + 1e-5)
    b = w.get(name + '.bias', [0.0] * D)
    return [(v - mean) * rstd * g + c for v, g, c in zip(x, w[name + '.weight'], b)]


def gelu(x):
    return 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0)))


def attention(w, name, xs, alibi):
    packed = [linear(w, name + '.Wqkv', x) for x in xs]
    size = D // HEADS
    slopes = [2.0**(-8.0 * (h + 1) / HEADS) for h in range(HEADS)]
    outs = []
    for i in range(SEQ):
        out = []
        for h in range(HEADS):
            cut = slice(h * size, (h + 1) * size)
            q = packed[i][:D][cut]
            scores = []
            for j in range(i + 1):
                k = packed[j][D:2 * D][cut]
                s = sum(a * b for a, b in zip(q, k)) / math.sqrt(size)
                scores.append(s + (slopes[h] * (j - (SEQ - 1)) if alibi else 0.0))
            top = max(scores)
            p = [math.exp(s - top) for s in scores]
            total = sum(p)
            for c in range(size):
                out.append(sum(p[j] * packed[j][2 * D:][cut][c] for j in range(i + 1)) / total)
        outs.append(linear(w, name + '.out_proj', out))
    return outs


def loss(learned, bias):
    w = weights(learned, bias)
    total = 0.0
    for b in range(BATCH):
        tokens = row(100 + b)
        xs = [[e + (w['transformer.wpe.weight'][t][c] if learned else 0.0)
               for c, e in enumerate(w['transformer.wte.weight'][tokens[t]])] for t in range(SEQ)]
        for i in range(LAYERS):
            k = f'transformer.blocks.{i}.'
            ys = attention(w, k + 'attn', [norm(w, k + 'norm_1', x) for x in xs], not learned)
            xs = [[a + c for a, c in zip(x, y)] for x, y in zip(xs, ys)]
            hs = [linear(w, k + 'ffn.up_proj', norm(w, k + 'norm_2', x)) for x in xs]
            ys = [linear(w, k + 'ffn.down_proj', [gelu(h) for h in hid]) for hid in hs]
            xs = [[a + c for a, c in zip(x, y)] for x, y in zip(xs, ys)]
        for t in range(SEQ):
            f = norm(w, 'transformer.norm_f', xs[t])
            logits = [sum(a * c for a, c in zip(e, f)) for e in w['transformer.wte.weight']]
            top = max(logits)
            lse = top + math.log(sum(math.exp(v - top) for v in logits))
            total += lse - logits[tokens[t + 1]]
    return total / (BATCH * SEQ)


for switches in range(4):
    print(f'{loss(learned=not switches & 1, bias=not switches & 2):.15f},')
