#!/usr/bin/env python3
"""The GPU sizes of bench_engine.c in PyTorch, as the rival of our steps on one GPU.

    torch_gpu.py [--ours build/release/tests/bench/bench_engine] [--size 125m-2k]... [--batch N]
                 [--checkpoint] [--seconds 10] [--rounds 3]
                 [--attention A] [--mode M] [--weights W] [--device cpu]

The same shapes and optimizer: pre-norm blocks without biases, ALiBi, exact GELU, tied head, clip by norm 1,
AdamW (fused). PyTorch at its best: what the installed version has is tried and the fastest kept, first the
attention, then how it is compiled, then how weights are kept; all that was tried is told, and what fails or
computes something else is named and left out. --attention, --mode and --weights take one without a search.

    attention  flex: FlexAttention. flash, cudnn: scaled_dot_product_attention by that kernel with is_causal,
               ALiBi in eight more columns of q and k (see widened()). bias: the same function with ALiBi and
               the mask as an array. plain: two products and a softmax
    mode       default, reduce-overhead and max-autotune of torch.compile (the last two use CUDA graphs), eager
    weights    autocast: fp32, bf16 autocast. master: bf16 for all but an fp32 copy that AdamW works on; its
               gradients are bf16 too, where ours are fp32

A step is 32 sequences on both sides. PyTorch takes them in passes of 8 unless --batch names a better number;
where memory does not do for it, first the blocks are computed again in the backward pass (--checkpoint begins
so), then the batch is halved until it fits. With --ours the two take turns in one run, so that clocks and temperature weigh on both. --device cpu
with --size tiny only shows that the script runs.
"""
import argparse
import contextlib
import gc
import json
import math
import statistics
import subprocess
import sys
import time

try:
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint
except ImportError:
    torch = None
    nn = argparse.Namespace(Module=object)  # so that --help works

try:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
except ImportError:
    flex_attention = None  # before PyTorch 2.5

SIZES = {  # vocabulary, width, heads, layers, sequences of a pass, tokens of a sequence
    'tiny': (512, 96, 3, 2, 2, 128),
    '125m-2k': (50368, 768, 12, 12, 8, 2048),
    '1b-2k': (50368, 2048, 16, 24, 8, 2048),
    '3b-2k': (50368, 2560, 20, 32, 8, 2048),
    '7b-2k': (50368, 4096, 32, 32, 8, 2048),
}
STEP_PASSES = 4  # a step is so many of those batches, as `passes` in bench_engine.c
ATTENTION = ('flex', 'cudnn', 'flash', 'bias', 'plain')
MODES = ('default', 'reduce-overhead', 'max-autotune', 'eager')
WEIGHTS = ('autocast', 'master')


class Unfit(Exception):
    """This variant is not to be had here."""


def slopes(heads):
    """MPT's: those of the next power of two, the even ones first where heads are fewer."""
    n = 1
    while n < heads:
        n *= 2
    a = [2 ** (-8 * k / n) for k in range(1, n + 1)]
    return a if n == heads else (a[1::2] + a[::2])[:heads]


# ---- attention: each takes q, k, v (B, H, T, D) and gives the same -----------------------------------------

def by_flex(q, k, v, made):
    return flex_attention(q, k, v, score_mod=made['mod'], block_mask=made['mask'])


def widened(q, k, v, made):
    """
    Kernels for causal attention know no bias. But a row's softmax does not see what is added to all of it, so
    slope (j - i) may be slope j, and that is a product: of columns that hold the slope with columns that hold j,
    both as sums of two numbers that bf16 has. Kernels want widths that eight divides; v is padded alike.
    """
    b, h, t, d = q.shape
    extra_q = made['extra_q'].to(q.dtype).view(1, h, 1, 8).expand(b, h, t, 8)
    extra_k = made['extra_k'].to(q.dtype).view(1, 1, t, 8).expand(b, h, t, 8)
    o = F.scaled_dot_product_attention(torch.cat((q, extra_q), -1), torch.cat((k, extra_k), -1), F.pad(v, (0, 8)),
                                       is_causal=True, scale=d ** -0.5)
    return o[..., :d]


def by_bias(q, k, v, made):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=made['bias'].to(q.dtype))


def by_hand(q, k, v, made):
    s = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return torch.softmax(s.float() + made['bias'], -1).to(v.dtype) @ v


FUNCTIONS = {'flex': by_flex, 'cudnn': widened, 'flash': widened, 'bias': by_bias, 'plain': by_hand}


def prepare(kind, heads, t, d, device):
    """What an attention needs beside q, k and v."""
    table = torch.tensor(slopes(heads), device=device)
    made = {}
    if kind == 'flex':
        made['mod'] = lambda score, b, h, i, j: score + table[h] * (j - i)
        made['mask'] = create_block_mask(lambda b, h, i, j: j <= i, None, None, t, t, device=device)
    elif FUNCTIONS[kind] is widened:
        exact = table * math.sqrt(d)  # the kernel multiplies by 1 / sqrt(d)
        high = exact.to(torch.bfloat16).float()
        low = (exact - high).to(torch.bfloat16).float()
        j = torch.arange(t, device=device)
        none = torch.zeros(max(heads, t), 4, device=device)
        made['extra_q'] = torch.cat((torch.stack((high, high, low, low), 1), none[:heads]), 1)
        made['extra_k'] = torch.cat((torch.stack((j // 256 * 256, j % 256) * 2, 1).float(), none[:t]), 1)
    else:
        j = torch.arange(t, device=device)
        gap = (j[None, :] - j[:, None]).float()
        bias = table[:, None, None] * gap
        made['bias'] = bias.masked_fill(gap > 0, float('-inf'))[None]
    return made


def allow(kind):
    """scaled_dot_product_attention chooses among these; the others are forbidden."""
    for one in ('flash', 'mem_efficient', 'math', 'cudnn'):
        switch = getattr(torch.backends.cuda, 'enable_%s_sdp' % one, None)
        if switch:
            switch(one == kind if kind in ('flash', 'cudnn') else True)


def check_attention(kind, heads, d, device):
    """Does it compute what the plain one does? A rival that does less is none."""
    if kind == 'flex' and (flex_attention is None or device == 'cpu'):
        raise Unfit('FlexAttention needs PyTorch 2.5 and a GPU')
    if kind in ('cudnn', 'flash', 'bias') and not hasattr(F, 'scaled_dot_product_attention'):
        raise Unfit('scaled_dot_product_attention needs PyTorch 2.0')
    if kind == 'cudnn' and not (device == 'cuda' and hasattr(torch.backends.cuda, 'enable_cudnn_sdp')):
        raise Unfit('this kernel needs PyTorch 2.4 and a GPU')
    t = 384  # more than one of the columns holds; FlexAttention began with multiples of 128
    with torch.no_grad():
        torch.manual_seed(2)
        q, k, v = (torch.randn(2, heads, t, d, device=device).to(torch.bfloat16) for _ in range(3))
        allow(kind)
        got = FUNCTIONS[kind](q, k, v, prepare(kind, heads, t, d, device)).float()
        want = by_hand(q.float(), k.float(), v.float(), prepare('plain', heads, t, d, device))
        error = ((got - want).norm() / want.norm()).item()
    if not error < 1e-2:
        raise Unfit('it computes something else: relative error %.2g' % error)


# ---- the model ---------------------------------------------------------------------------------------------

class Norm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight)


class Block(nn.Module):
    def __init__(self, d, heads, attention):
        super().__init__()
        self.heads = heads
        self.attention = attention
        self.norm_1 = Norm(d)
        self.norm_2 = Norm(d)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.up = nn.Linear(d, 4 * d, bias=False)
        self.down = nn.Linear(4 * d, d, bias=False)

    def forward(self, x, made):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        o = self.attention(q, k, v, made)
        x = x + self.out(o.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class Model(nn.Module):
    def __init__(self, vocab, d, heads, layers, t, kind, again, device):
        super().__init__()
        self.again = again  # compute blocks again in the backward pass
        self.wte = nn.Embedding(vocab, d)
        self.blocks = nn.ModuleList(Block(d, heads, FUNCTIONS[kind]) for _ in range(layers))
        self.norm = Norm(d)
        nn.init.normal_(self.wte.weight, std=0.02)
        self.made = prepare(kind, heads, t, d // heads, device)

    def forward(self, tokens, targets):
        x = self.wte(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, self.made, use_reentrant=False) if self.again else block(x, self.made)
        logits = F.linear(self.norm(x), self.wte.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


class Optimizer:
    """AdamW on the parameters, or on fp32 copies of bf16 ones."""

    def __init__(self, model, master, device):
        self.params = list(model.parameters())
        self.copies = [nn.Parameter(p.detach().float()) for p in self.params] if master else self.params
        fused = {'fused': True} if device == 'cuda' else {}
        self.adamw = torch.optim.AdamW(self.copies, lr=1e-4, betas=(0.9, 0.95), weight_decay=0, **fused)

    def zero_grad(self, keep):
        """Without keep the first pass of a step hands over its gradients instead of adding them to zeros."""
        for p in self.params:
            if not keep:
                p.grad = None
            elif p.grad is None:
                p.grad = torch.zeros_like(p)
            else:
                p.grad.zero_()

    def step(self):
        apart = self.copies is not self.params
        if apart:
            for p, copy in zip(self.params, self.copies):
                copy.grad = p.grad.float()
        nn.utils.clip_grad_norm_(self.copies, 1.0)
        self.adamw.step()
        if apart:
            with torch.no_grad():
                if hasattr(torch, '_foreach_copy_'):
                    torch._foreach_copy_(self.params, self.copies)
                else:
                    for p, copy in zip(self.params, self.copies):
                        p.copy_(copy)


def built(model, mode):
    if mode == 'eager':
        return model
    if not hasattr(torch, 'compile'):
        raise Unfit('torch.compile needs PyTorch 2.0')
    return torch.compile(model, mode=None if mode == 'default' else mode, dynamic=False)


# ---- measuring ---------------------------------------------------------------------------------------------

def passes_of(name, batch):
    return max(1, SIZES[name][4] * STEP_PASSES // batch)


def measure(name, variant, batch, again, seconds, device):
    """Tokens per second, by the median step after ten to warm up, and the peak of memory."""
    kind, mode, weights = variant
    vocab, d, heads, layers, _, t = SIZES[name]
    passes = passes_of(name, batch)
    # What a graph has put out is overwritten by its next pass.
    keep = passes > 1 and mode in ('reduce-overhead', 'max-autotune')
    gpu = device == 'cuda'
    wait = torch.cuda.synchronize if gpu else lambda: None
    # Graphs keep their outputs where the next step writes: they have to know where a step begins.
    begin = getattr(getattr(torch, 'compiler', None), 'cudagraph_mark_step_begin', lambda: None)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    allow(kind)
    torch.manual_seed(1)
    with torch.device(device) if gpu and hasattr(torch.device, '__enter__') else contextlib.nullcontext():
        model = Model(vocab, d, heads, layers, t, kind, again, device)
    model = model.to(device)
    optim = Optimizer(model, weights == 'master', device)
    if weights == 'master':
        model.to(torch.bfloat16)
        optim.params = list(model.parameters())
    forward = built(model, mode)
    warm = 10 if gpu else 2
    times = []
    end = None
    while end is None or len(times) < 5 or time.perf_counter() < end:
        steps = torch.randint(vocab, (passes, batch, t + 1), device=device)
        wait()
        start = time.perf_counter()
        optim.zero_grad(keep)
        for tokens in steps:
            begin()
            with torch.autocast(device, dtype=torch.bfloat16, enabled=weights == 'autocast'):
                loss = forward(tokens[:, :-1], tokens[:, 1:]) / passes
            loss.backward()
        optim.step()
        wait()
        times.append(time.perf_counter() - start)
        if end is None and len(times) == warm:
            if not math.isfinite(loss.item()):
                raise Unfit('its loss is not finite')
            end = time.perf_counter() + seconds
            times = []
    return passes * batch * t / statistics.median(times), torch.cuda.max_memory_allocated() if gpu else 0


def forget():
    """Give back what a measurement took: the other side has its turn on the same GPU."""
    gc.collect()
    if hasattr(torch, '_dynamo'):
        torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def fitting(name, variant, batch, again, seconds, device):
    """Of (batch, again), (batch, True), (batch / 2, True)... the first that memory does for, and its rate."""
    while batch:
        full = False
        try:
            return measure(name, variant, batch, again, seconds, device)[0], batch, again
        except Exception as e:  # what is compiled wraps it in others
            full = 'out of memory' in str(e)
            if not full:
                raise
        finally:
            forget()
        batch, again = (batch // 2 if again else batch), True
    raise Unfit('it does not fit into memory')


def short(e):
    return ' '.join((str(e) or type(e).__name__).split())[:200]


class Search:
    """The fastest variant of a size, and what was tried."""

    def __init__(self, name, batch, again, device, seconds):
        self.name, self.batch, self.again, self.device, self.seconds = name, batch, again, device, seconds
        self.best = None  # rate, variant, batch, again
        self.tried = []
        self.checked = {}

    def attention_fits(self, kind):
        if kind not in self.checked:
            _, d, heads, _, _, _ = SIZES[self.name]
            try:
                check_attention(kind, heads, d // heads, self.device)
                self.checked[kind] = None
            except Exception as e:
                self.checked[kind] = short(e)  # and not what its frames hold
        if self.checked[kind]:
            raise Unfit(self.checked[kind])

    def attempt(self, variant):
        told = dict(zip(('attention', 'mode', 'weights'), variant))
        try:
            self.attention_fits(variant[0])
            rate, batch, again = fitting(self.name, variant, self.batch, self.again, self.seconds, self.device)
            told.update(tokens_per_s=rate, batch=batch, checkpoint=again)
            if not self.best or rate > self.best[0]:
                self.best = rate, variant, batch, again
            said = '%.0f tokens/s' % rate
        except Exception as e:  # compilers fail in many ways; none of them ends the comparison
            told['skipped'] = short(e)
            said = 'skipped: ' + short(e)
        forget()
        self.tried.append(told)
        print('  %s, PyTorch by %s: %s' % (self.name, ', '.join(variant), said), file=sys.stderr, flush=True)

    def run(self, attention, mode, weights):
        compiles = hasattr(torch, 'compile')
        kinds = [attention] if attention else ATTENTION[:-1]
        for kind in kinds:
            self.attempt((kind, mode or ('default' if compiles else 'eager'), weights or 'autocast'))
        for kind in kinds if compiles and not (self.best or mode) else ():
            if kind != 'flex':  # which is slow beyond use when it is not compiled
                self.attempt((kind, 'eager', weights or 'autocast'))
        if not self.best and not attention:
            self.attempt(('plain', mode or 'eager', weights or 'autocast'))
        if self.best and not mode and compiles and self.best[1][1] != 'eager':
            for other in ('reduce-overhead', 'max-autotune'):
                self.attempt((self.best[1][0], other, self.best[1][2]))
        if self.best and not weights:
            self.attempt((self.best[1][0], self.best[1][1], 'master'))


def ours(program, name, seconds):
    """Tokens per second, or None when it fails; what it says of that is shown."""
    done = subprocess.run([program, '--device', 'cuda', '--size', name, '--only', 'steps', '--seconds', str(seconds)],
                          stdout=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    return next((line['tokens_per_s'] for line in lines if line['bench'] == 'step'), None)


def compare(name, a):
    row = {'bench': 'torch_gpu', 'size': name, 'torch': torch.__version__,
           'gpu': torch.cuda.get_device_name() if a.device == 'cuda' else 'none'}
    rates = {'torch': [], 'ours': []}
    search = Search(name, a.batch or SIZES[name][4], a.checkpoint, a.device, min(a.seconds, 2))
    search.run(a.attention, a.mode, a.weights)
    row['tried'] = search.tried
    if search.best:
        _, variant, batch, again = search.best
        row.update(zip(('attention', 'mode', 'weights'), variant), batch=batch, checkpoint=again)
    for _ in range(a.rounds):
        if search.best:
            try:
                rate, row['peak_bytes'] = measure(name, variant, batch, again, a.seconds, a.device)
                rates['torch'].append(rate)
            except Exception as e:  # memory that did before may be in pieces
                print('  %s, PyTorch failed: %s' % (name, short(e)), file=sys.stderr)
            forget()
        rate = ours(a.ours, name, a.seconds) if a.ours else None
        if rate:
            rates['ours'].append(rate)
    best = {who: statistics.median(r) for who, r in rates.items() if r}
    row['tokens_per_s'] = best
    if len(best) == 2:
        row['ratio'] = best['ours'] / best['torch']
    print(json.dumps(row), flush=True)
    said = ['%s %.0f tokens/s' % item for item in best.items()]
    said += ['ratio %.2f' % row['ratio']] if 'ratio' in row else []
    said += ['PyTorch by %s, %d sequences a pass%s' % (', '.join(variant), batch, ', blocks computed again' if again else '')
             if search.best else 'PyTorch ran no variant']
    print('%s: %s' % (name, ', '.join(said)), file=sys.stderr, flush=True)
    return 'torch' in best and ('ours' in best or not a.ours)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--ours')
    p.add_argument('--size', action='append', choices=SIZES)
    p.add_argument('--batch', type=int)
    p.add_argument('--checkpoint', action='store_true', help='compute blocks again in the backward pass')
    p.add_argument('--seconds', type=float, default=10)
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--attention', choices=ATTENTION, help='this one alone, no search')
    p.add_argument('--mode', choices=MODES, help='of torch.compile; this one alone')
    p.add_argument('--weights', choices=WEIGHTS, help='this one alone')
    p.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    a = p.parse_args()
    if torch is None:
        sys.exit('torch_gpu.py: PyTorch is not installed')
    if a.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('torch_gpu.py: PyTorch sees no GPU')
    if a.device == 'cpu' and a.ours:
        sys.exit('torch_gpu.py: ours is measured on a GPU; torch_cpu.py compares on a CPU')
    torch.set_float32_matmul_precision('high')
    done = [compare(name, a) for name in a.size or [s for s in SIZES if s != 'tiny']]
    sys.exit(0 if all(done) else 1)


if __name__ == '__main__':
    main()
