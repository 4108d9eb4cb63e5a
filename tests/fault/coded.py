"""Updates below f32 written by hand from docs/API.md, "Files": a sound one on each rung, and what may be wrong with it.

The values are codes out of a hat, not a training's: a reader cannot tell. Hostile gives one file after the other that
must be refused, each as (what is wrong, the file, what the create says otherwise than the truth).
"""

import copy
import struct

from silo_client import write_safetensors

RUNGS = ("f32", "bf16", "int8", "q4", "q2", "topk")
TILE, BLOCK, GROUP = 4096, 256, 65536
ELEMENT = {"F32": 4, "U32": 4, "BF16": 2, "I8": 1, "U8": 1}
LEVELS = {"q4": [0x3D2C, 0x3E02, 0x3E5D, 0x3E9E, 0x3ED4, 0x3F08, 0x3F2E, 0x3F64], "q2": [0x3E17, 0x3EFE]}
PER_BYTE = {"q4": 2, "q2": 4, "topk": 4}
SOUND_SCALE = 0x3680  # 2^-18, as BF16
BAD_SCALES = (0x0001, 0x087F, 0x7201, 0x7F7F, 0x7F80, 0x7F81, 0x7FC0, 0x8000, 0xB680, 0xFF80, 0xFFFF)  # no 2^-110..2^101
BAD_LEVELS = (0x7FC0, 0x7F80, 0x3F81, 0x7F7F, 0x8000, 0xBF00, 0x0001, 0x3700)


def size(shape):
    n = 1
    for d in shape:
        n *= d
    return n


def rung_of(codec, shape):
    """Norms and biases are never below int8."""
    return "int8" if len(shape) == 1 and codec in ("q4", "q2", "topk") else codec


# ---- places of what topk keeps ----


def rice_bits(k):
    r = 0
    while k << (r + 1) <= 2826:
        r += 1
    return r


def kept_of(k, n):
    return [-(-k * min(TILE, n - at) // TILE) for at in range(0, n, TILE)]


def gap_bytes(gaps, r):
    bits = "".join("0" * (g >> r) + "1" + "".join(str(g >> b & 1) for b in range(r)) for g in gaps)
    return bytes(int(bits[at:at + 8][::-1], 2) for at in range(0, len(bits), 8)), -len(bits) % 8


def places(draw, k, n):
    """Gaps of a group of n, tile after tile."""
    out = []
    for t, kept in enumerate(kept_of(k, n)):
        at = sorted(draw.sample(range(min(TILE, n - t * TILE)), kept))
        out += [b - a - 1 for a, b in zip([-1] + at, at)]
    return out


class Part:
    def __init__(self, tensor, suffix, dtype, shape, data):
        self.tensor, self.suffix, self.dtype, self.shape = tensor, suffix, dtype, list(shape)
        self.data = bytearray(data)

    def name(self):
        return self.tensor + (":" + self.suffix if self.suffix else "")


def words(values):
    return struct.pack("<%dH" % len(values), *values)


class File:
    """A sound update of that rung: its metadata, its parts in flat order, and its bytes."""

    def __init__(self, tensors, meta, codec, k, draw):
        self.codec, self.k, self.tensors, self.meta = codec, k, tensors, {}
        for key, value in meta.items():
            self.meta[key] = codec if key == "codec" else value
            if key == "codec":
                self.meta["fallback"] = ""
                if codec == "topk":
                    self.meta["k"] = "%04d" % k
        self.parts = [p for name, shape in tensors for p in self.tensor(name, shape, rung_of(codec, shape), draw)]
        self.order = None  # of the parts in the file, where it is not the right one

    def tensor(self, name, shape, rung, draw):
        n = size(shape)
        assert n <= GROUP  # one group each, here
        blocks = -(-n // BLOCK)
        scale = Part(name, "scale", "BF16", [blocks], words([SOUND_SCALE] * blocks))
        if rung == "f32":
            return [Part(name, "", "F32", shape, struct.pack("<%df" % n, *(draw.gauss(0, 1e-4) for _ in range(n))))]
        if rung == "bf16":
            return [Part(name, "", "BF16", shape, words([0x3880 | draw.getrandbits(7) | draw.getrandbits(1) << 15
                                                         for _ in range(n)]))]
        if rung == "int8":
            return [Part(name, "q8", "I8", shape, bytes(draw.randrange(-127, 128) & 255 for _ in range(n))), scale]
        if rung == "topk":
            return self.topk(name, n, draw)
        codes = [draw.randrange(2 * len(LEVELS[rung])) for _ in range(n)]
        return [Part(name, "level", "BF16", [len(LEVELS[rung])], words(LEVELS[rung])),
                self.packed(name, rung, codes, 8 // PER_BYTE[rung]), scale]

    def topk(self, name, n, draw):
        gap, self.spare_bits = gap_bytes(places(draw, self.k, n), rice_bits(self.k))
        codes = [draw.randrange(4) for _ in range(sum(kept_of(self.k, n)))]
        return [Part(name, "gap", "U8", [len(gap)], gap), Part(name, "gap_at", "U32", [2], struct.pack("<2I", 0, len(gap))),
                Part(name, "mag", "BF16", [1, 2], words([SOUND_SCALE, SOUND_SCALE + 64])),
                self.packed(name, "val", codes, 2)]

    def packed(self, name, suffix, codes, width):
        per = 8 // width
        data = bytes(sum(c << width * i for i, c in enumerate(codes[at:at + per])) for at in range(0, len(codes), per))
        return Part(name, suffix, "U8", [len(data)], data)

    def bytes(self):
        header, body = {"__metadata__": self.meta}, b""
        for part in self.order or sorted(self.parts, key=lambda p: -ELEMENT.get(p.dtype, 1)):
            header[part.name()] = {"dtype": part.dtype, "shape": part.shape, "data_offsets": [len(body), len(body) + len(part.data)]}
            body += part.data
        return write_safetensors(header, body)


class Hostile:
    """Ways to spoil a sound file; each refuses itself by False where its rung has no such thing."""

    def __init__(self, draw):
        self.draw = draw
        self.makers = [self.scale, self.loud, self.value, self.code, self.level, self.padding, self.place, self.place_of_gaps,
                       self.cut, self.longer, self.other_rung, self.wrong_rung, self.fallback, self.meta, self.shape, self.dtype,
                       self.order, self.missing, self.declared]

    def make(self, sound):
        while True:
            self.file, self.says, self.blob = copy.deepcopy(sound), {"codec": sound.codec}, None
            maker = self.draw.choice(self.makers)
            if maker() is not False:
                data = self.blob or self.file.bytes()
                assert data != sound.bytes() or self.says != {"codec": sound.codec}, maker.__name__
                return maker.__name__.replace("_", " "), data, self.says

    def pick(self, *suffixes):
        found = [p for p in self.file.parts if p.suffix in suffixes]
        return self.draw.choice(found) if found else None

    def put(self, part, index, value):
        part.data[2 * index:2 * index + 2] = words([value])

    # ---- numbers ----

    def scale(self):
        part = self.pick("scale", "mag")
        if not part:
            return False
        self.put(part, self.draw.randrange(len(part.data) // 2), self.draw.choice(BAD_SCALES))

    def loud(self):
        """Each number may be, the norm of all may not."""
        name = max(self.file.tensors, key=lambda t: size(t[1]))[0]
        bits = (127 + self.draw.randrange(20, 100)) << 7
        parts = [p for p in self.file.parts if p.tensor == name and (p.suffix in ("scale", "mag") or p.dtype == "BF16" and not p.suffix)]
        for part in parts:
            part.data = bytearray(words([bits]) * (len(part.data) // 2))
        return bool(parts)

    def value(self):
        if self.file.codec != "bf16":
            return False
        part = self.pick("")
        n = len(part.data) // 2
        bad = self.draw.choice((0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x7F81))
        for i in self.draw.choice(([0], [n - 1], [self.draw.randrange(n)], range(n))):
            self.put(part, i, bad)

    def code(self):
        """-128, which no encoder gives."""
        part = self.pick("q8")
        if not part:
            return False
        part.data[self.draw.choice((0, len(part.data) - 1, self.draw.randrange(len(part.data))))] = 0x80

    def level(self):
        part = self.pick("level")
        if not part:
            return False
        count = len(part.data) // 2
        if self.draw.randrange(2):
            self.put(part, self.draw.randrange(count), self.draw.choice(BAD_LEVELS))
        else:
            part.data = bytearray(words(LEVELS[self.file.codec][::-1]))  # falling

    def padding(self):
        """Bits after the last code."""
        part = self.pick("q4", "q2", "val")
        if not part:
            return False
        n = size(dict(self.file.tensors)[part.tensor])
        codes = sum(kept_of(self.file.k, n)) if part.suffix == "val" else n
        rest = codes % PER_BYTE["topk" if part.suffix == "val" else part.suffix]
        if rest == 0:
            return False
        width = 2 if part.suffix in ("val", "q2") else 4
        part.data[-1] |= 1 << self.draw.randrange(width * rest, 8)

    # ---- places of topk ----

    def gaps(self, part, data):
        """Other bytes of gaps, and where they end said truly."""
        part.data, part.shape = bytearray(data), [len(data)]
        for p in self.file.parts:
            if p.tensor == part.tensor and p.suffix == "gap_at":
                p.data = bytearray(struct.pack("<2I", 0, len(data)))

    def place(self):
        """An index out of its tile, bits that end early or go on, a run that never ends."""
        part = self.pick("gap")
        if not part:
            return False
        n, k = size(dict(self.file.tensors)[part.tensor]), self.file.k
        r, gaps, how = rice_bits(k), places(self.draw, k, n), self.draw.randrange(5)
        if how == 0:
            gaps[self.draw.randrange(len(gaps))] += self.draw.choice((min(n, TILE), TILE, 2 * TILE))
            self.gaps(part, gap_bytes(gaps, r)[0])
        elif how == 1:
            self.gaps(part, part.data[:self.draw.randrange(1, len(part.data))])
        elif how == 2:
            self.gaps(part, bytes(part.data) + bytes([self.draw.randrange(256)] * self.draw.choice((1, 2, 9))))
        elif how == 3:
            self.gaps(part, bytes(len(part.data)))
        else:
            data, spare = gap_bytes(gaps, r)
            if spare == 0:
                return False
            self.gaps(part, data[:-1] + bytes([data[-1] | 0x80 >> self.draw.randrange(spare)]))

    def place_of_gaps(self):
        part = self.pick("gap_at")
        if not part:
            return False
        (_, end) = struct.unpack("<2I", part.data)
        if self.draw.randrange(4) == 0:  # bytes that no place of gaps speaks of
            (gap,) = [p for p in self.file.parts if p.tensor == part.tensor and p.suffix == "gap"]
            self.gaps(gap, bytes(gap.data) + b"\0")
            part.data = bytearray(struct.pack("<2I", 0, end))
            return None
        bad = self.draw.choice(((1, end), (0, end - 1), (0, end + 1), (end, 0), (0, 0), (0, 0xFFFFFFFF), (0xFFFFFFFF, end)))
        part.data = bytearray(struct.pack("<2I", *bad))

    # ---- the whole file ----

    def cut(self):
        data = self.file.bytes()
        self.blob = data[:len(data) - self.draw.choice((1, 2, 7, self.draw.randrange(1, len(data) - 1)))]

    def longer(self):
        self.blob = self.file.bytes() + bytes(self.draw.choice((1, 2, 8)))

    def other_rung(self):
        """Sound in itself, and not of the rung that the upload was declared for."""
        self.says["codec"] = self.draw.choice([c for c in RUNGS if c != self.file.codec])

    def wrong_rung(self):
        """A tensor below its rung, or more than one above."""
        codec = self.file.codec
        near = {"bf16": ("bf16", "f32"), "int8": ("int8", "bf16"), "q4": ("q4", "int8"), "q2": ("q2", "q4"), "topk": ("topk", "q2")}[codec]
        name, shape = self.draw.choice([t for t in self.file.tensors if len(t[1]) > 1])
        rung = self.draw.choice([c for c in RUNGS if c not in near])
        made = self.file.tensor(name, shape, rung, self.draw)
        at = [i for i, p in enumerate(self.file.parts) if p.tensor == name]
        self.file.parts[at[0]:at[-1] + 1] = made
        self.file.meta["fallback"] = self.draw.choice(("", name))

    def fallback(self):
        names = [t[0] for t in self.file.tensors]
        self.file.meta["fallback"] = self.draw.choice((names[0], ",".join(names), ",", "x" * 99, " "))

    def meta(self):
        key = self.draw.choice(sorted(set(self.file.meta) - {"fallback", "codec"}))
        old = self.file.meta[key]
        if self.draw.randrange(3) == 0:
            del self.file.meta[key]
        else:
            self.file.meta[key] = self.draw.choice(("0" * len(old) if old.strip("0") else "1" * len(old), old + "0", old[:-1], ""))

    def shape(self):
        part = self.draw.choice(self.file.parts)
        part.shape = self.draw.choice((part.shape + [2], [1] + part.shape, [], [size(part.shape) + 1], [1 << 62], [1 << 40] * 2,
                                       [-d for d in part.shape], [2 * d for d in part.shape]))

    def dtype(self):
        part = self.draw.choice(self.file.parts)
        part.dtype = self.draw.choice([d for d in ("F32", "BF16", "F16", "I8", "U8", "I32", "F64", "", "BOOL") if d != part.dtype])

    def order(self):
        """Sound, but not in the one order."""
        order = sorted(self.file.parts, key=lambda p: -ELEMENT[p.dtype])
        a, b = self.draw.sample(range(len(order)), 2)
        order[a], order[b] = order[b], order[a]
        self.file.order = order

    def missing(self):
        part = self.draw.choice(self.file.parts)
        how = self.draw.randrange(3)
        if how == 0:
            self.file.parts.remove(part)
        elif how == 1:
            part.suffix += "x"
        else:
            self.file.parts.append(Part("extra", "", part.dtype, part.shape, part.data))

    def declared(self):
        """More than any plan of this rung can need, or a size that is none."""
        self.says["bytes"] = self.draw.choice((1 << 22, 1 << 32, 1 << 40, (1 << 40) + 1, (1 << 53) - 1, 0, -1))
