#!/usr/bin/env python3
"""The golden digests of test_codec.c, from the formulas of docs/ARCHITECTURE.md, value by value.

Written without the C code in view: floats are exact fractions, and one function rounds them to F32
or BF16. Run it to see the digests:  tests/unit/golden_codec.py
"""
import hashlib
import struct
from fractions import Fraction as Fr


def f32(v):  # the nearest F32 of a fraction; a double's quotient of two F32 rounds to it as well
    return struct.unpack('<f', struct.pack('<f', float(v)))[0]


def bits(v):
    return struct.unpack('<I', struct.pack('<f', v))[0]


def bf16_near(v):
    b = bits(v)
    return (b + 0x7fff + (b >> 16 & 1)) >> 16


def bf16_up(v):
    return (bits(v) + 0xffff) >> 16


def bf16(b):
    return struct.unpack('<f', struct.pack('<I', b << 16))[0]


def values(n):
    """Whole numbers by a multiplicative hash, scaled by powers of two: exact in F32."""
    out = []
    for i in range(n):
        h = (i * 2654435761 + 12345) & 0xffffffff
        h ^= h >> 13
        h = (h * 2246822519) & 0xffffffff
        whole = (h >> 8) - (1 << 23)
        out.append(float(whole) * 2.0 ** -(30 + i // 256 % 3 + (h & 7)))
    return out


def even(v):  # to the nearest whole number, ties to even
    return round(Fr(v))


Q4 = [0.0419921875, 0.126953125, 0.2158203125, 0.30859375, 0.4140625, 0.53125, 0.6796875, 0.890625]
Q2 = [0.1474609375, 0.49609375]


def encode(codec, u, k=64):
    main, side, gap = bytearray(), bytearray(), bytearray()
    if codec == 'bf16':
        for v in u:
            main += struct.pack('<H', bf16_near(v))
    elif codec == 'int8':
        for at in range(0, len(u), 256):
            block = u[at:at + 256]
            sb = bf16_up(f32(Fr(max(map(abs, block))) / 127))
            side += struct.pack('<H', sb)
            for v in block:
                q = even(f32(Fr(v) / Fr(bf16(sb))))
                main += struct.pack('<b', max(-127, min(127, q)))
    elif codec in ('q4', 'q2'):
        levels = Q4 if codec == 'q4' else Q2
        codes = []
        for at in range(0, len(u), 256):
            block = u[at:at + 256]
            sb = bf16_up(max(map(abs, block)))
            side += struct.pack('<H', sb)
            for v in block:
                r = Fr(f32(Fr(abs(v)) / Fr(bf16(sb))))
                j = min(range(len(levels)), key=lambda j: (abs(Fr(levels[j]) - r), j))
                codes.append(j | (len(levels) if struct.pack('<f', v)[3] & 0x80 else 0))
        per, width = (2, 4) if codec == 'q4' else (4, 2)
        for at in range(0, len(codes), per):
            main.append(sum(c << width * i for i, c in enumerate(codes[at:at + per])))
    else:
        r = 0
        while k * 2 ** (r + 1) <= 0.69 * 4096:
            r += 1
        stream, kept = [], []
        for at in range(0, len(u), 4096):
            tile = u[at:at + 4096]
            m = -(-k * len(tile) // 4096)
            index = sorted(sorted(range(len(tile)), key=lambda i: (-abs(tile[i]), i))[:m])
            before = -1
            for i in index:
                g = i - before - 1
                before = i
                stream += [0] * (g >> r) + [1] + [g >> b & 1 for b in range(r)]
                kept.append(tile[i])
        for at in range(0, len(stream), 8):
            gap.append(sum(b << i for i, b in enumerate(stream[at:at + 8])))
        mag = [abs(v) for v in kept]
        t = sorted(mag, reverse=True)[len(mag) // 2]
        for _ in range(8):
            low = [v for v in mag if v < t]
            high = [v for v in mag if v >= t]
            hi = sum_in_order(high if high else low)
            lo = sum_in_order(low) if low else hi
            t = (lo + hi) / 2
        side += struct.pack('<HH', bf16_near(f32(lo)), bf16_near(f32(hi)))
        limit = f32(t)
        codes = [int(abs(v) >= limit) | (2 if v < 0 else 0) for v in kept]
        for at in range(0, len(codes), 4):
            main.append(sum(c << 2 * i for i, c in enumerate(codes[at:at + 4])))
    return bytes(main), bytes(side), bytes(gap)


def sum_in_order(v):  # a mean, its sum in doubles and in the order of the values
    s = 0.0
    for x in v:
        s += x
    return s / len(v)


if __name__ == '__main__':
    for codec in ('bf16', 'int8', 'q4', 'q2', 'topk'):
        for n in (9001, 7):
            parts = encode(codec, values(n))
            print('{CODEC_%s, %d, "%s"}, // %s bytes' %
                  (codec.upper(), n, hashlib.sha256(b''.join(parts)).hexdigest()[:32],
                   ' + '.join(str(len(p)) for p in parts)))
