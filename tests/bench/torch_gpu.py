#!/usr/bin/env python3
"""The GPU sizes of bench_engine.c in PyTorch, as the rival of our steps on one GPU.

    torch_gpu.py [--ours build/release/tests/bench/bench_engine] [--size 125m-2k]... [--batch N]
                 [--checkpoint] [--seconds 10] [--rounds 3]

The same shapes and optimizer: pre-norm blocks without biases, ALiBi, exact GELU, tied head, clip by norm 1,
AdamW. PyTorch at its best: torch.compile, FlexAttention for ALiBi, bf16 autocast, fused AdamW. The batch is
ours unless --batch names a better one for PyTorch; where memory does not do for it, first the blocks are
computed again in the backward pass (--checkpoint begins so), then the batch is halved until it fits. With
--ours the two take turns in one run, so that clocks and temperature weigh on both. Needs PyTorch 2.5 or
later, which nothing else in the project does.
"""
import argparse
import gc
import json
import statistics
import subprocess
import sys
import time

try:
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from torch.utils.checkpoint import checkpoint
except ImportError:
    sys.exit('torch_gpu.py: PyTorch 2.5 or later is not installed')

SIZES = {  # vocabulary, width, heads, layers, sequences, tokens of a sequence
    '125m-2k': (50368, 768, 12, 12, 8, 2048),
    '1b-2k': (50368, 2048, 16, 24, 8, 2048),
    '3b-2k': (50368, 2560, 20, 32, 8, 2048),
    '7b-2k': (50368, 4096, 32, 32, 8, 2048),
}


def slopes(heads):
    """MPT's: those of the next power of two, the even ones first where heads are fewer."""
    n = 1
    while n < heads:
        n *= 2
    a = [2 ** (-8 * k / n) for k in range(1, n + 1)]
    return a if n == heads else (a[1::2] + a[::2])[:heads]


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(d, bias=False)
        self.norm_2 = nn.LayerNorm(d, bias=False)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.up = nn.Linear(d, 4 * d, bias=False)
        self.down = nn.Linear(4 * d, d, bias=False)

    def forward(self, x, bias, mask):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        o = flex_attention(q, k, v, score_mod=bias, block_mask=mask)
        x = x + self.out(o.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class Model(nn.Module):
    def __init__(self, vocab, d, heads, layers, t, again):
        super().__init__()
        self.again = again  # compute blocks again in the backward pass
        self.wte = nn.Embedding(vocab, d)
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(d, bias=False)
        nn.init.normal_(self.wte.weight, std=0.02)
        self.register_buffer('slopes', torch.tensor(slopes(heads)), persistent=False)
        self.mask = create_block_mask(lambda b, h, i, j: j <= i, None, None, t, t, device='cuda')

    def forward(self, tokens, targets):
        table = self.slopes

        def bias(score, b, h, i, j):
            return score + table[h] * (j - i)

        x = self.wte(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, bias, self.mask, use_reentrant=False) if self.again else block(x, bias, self.mask)
        logits = F.linear(self.norm(x), self.wte.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def measure(name, batch, again, seconds):
    """Tokens per second, by the median step after ten to warm up, and the peak of memory."""
    vocab, d, heads, layers, _, t = SIZES[name]
    torch.manual_seed(1)
    torch.cuda.reset_peak_memory_stats()
    with torch.device('cuda'):
        model = Model(vocab, d, heads, layers, t, again)
    optim = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0, fused=True)
    forward = torch.compile(model)
    times = []
    end = None
    while end is None or len(times) < 5 or time.perf_counter() < end:
        tokens = torch.randint(vocab, (batch, t + 1), device='cuda')
        torch.cuda.synchronize()
        start = time.perf_counter()
        optim.zero_grad(set_to_none=True)
        with torch.autocast('cuda', dtype=torch.bfloat16):
            loss = forward(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        if end is None and len(times) == 10:
            end = time.perf_counter() + seconds
            times = []
    return batch * t / statistics.median(times), torch.cuda.max_memory_allocated()


def forget():
    """Give back what a measurement took: the other side has its turn on the same GPU."""
    gc.collect()
    torch._dynamo.reset()
    torch.cuda.empty_cache()


def fitting(name, batch, again):
    """The first of (batch, again), (batch, True), (batch / 2, True)... that memory does for, or None."""
    while batch:
        try:
            measure(name, batch, again, 0)
            return batch, again
        except torch.cuda.OutOfMemoryError:
            batch, again = (batch // 2 if again else batch), True
        finally:
            forget()
    return None


def ours(program, name, seconds):
    """Tokens per second, or None when it fails; what it says of that is shown."""
    done = subprocess.run([program, '--device', 'cuda', '--size', name, '--only', 'steps', '--seconds', str(seconds)],
                          stdout=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    return next((line['tokens_per_s'] for line in lines if line['bench'] == 'step'), None)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--ours')
    p.add_argument('--size', action='append', choices=SIZES)
    p.add_argument('--batch', type=int)
    p.add_argument('--checkpoint', action='store_true', help='compute blocks again in the backward pass')
    p.add_argument('--seconds', type=float, default=10)
    p.add_argument('--rounds', type=int, default=3)
    a = p.parse_args()
    if not torch.cuda.is_available():
        sys.exit('torch_gpu.py: PyTorch sees no GPU')
    torch.set_float32_matmul_precision('high')
    for name in a.size or SIZES:
        row = {'bench': 'torch_gpu', 'size': name, 'torch': torch.__version__, 'gpu': torch.cuda.get_device_name()}
        rates = {'torch': [], 'ours': []}
        fits = fitting(name, a.batch or SIZES[name][4], a.checkpoint)
        for _ in range(a.rounds):
            if fits:
                rate, row['peak_bytes'] = measure(name, *fits, a.seconds)
                forget()
                rates['torch'].append(rate)
            rate = ours(a.ours, name, a.seconds) if a.ours else None
            if rate:
                rates['ours'].append(rate)
        best = {who: statistics.median(r) for who, r in rates.items() if r}
        row.update(batch=fits and fits[0], checkpoint=fits and fits[1], tokens_per_s=best)
        if len(best) == 2:
            row['ratio'] = best['ours'] / best['torch']
        print(json.dumps(row), flush=True)
        print('%s: %s' % (name, ', '.join('%s %.0f tokens/s' % item for item in best.items())), file=sys.stderr, end='')
        print(', ratio %.2f' % row['ratio'] if 'ratio' in row else '' if fits else ', PyTorch does not fit', file=sys.stderr, flush=True)


if __name__ == '__main__':
    main()
