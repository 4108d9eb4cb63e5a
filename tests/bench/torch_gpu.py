#!/usr/bin/env python3
"""The GPU sizes of bench_engine.c in PyTorch, as the rival of our steps on one GPU.

    torch_gpu.py [--ours build/release/tests/bench/bench_engine] [--size 125m-2k]... [--batch N]
                 [--seconds 10] [--rounds 3]

The same shapes and optimizer: pre-norm blocks without biases, ALiBi, exact GELU, tied head, clip by norm 1,
AdamW. PyTorch at its best: torch.compile, FlexAttention for ALiBi, bf16 autocast, fused AdamW. The batch is
ours unless --batch names a better one for PyTorch. With --ours the two take turns in one run, so that
clocks and temperature weigh on both. Needs PyTorch 2.5 or later, which nothing else in the project does.
"""
import argparse
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
except ImportError:
    sys.exit('torch_gpu.py: PyTorch 2.5 or later is not installed')

SIZES = {  # vocabulary, width, heads, layers, sequences, tokens of a sequence
    '125m-2k': (50368, 768, 12, 12, 8, 2048),
    '1b-2k': (50368, 2048, 16, 24, 4, 2048),
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
    def __init__(self, vocab, d, heads, layers, t):
        super().__init__()
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
            x = block(x, bias, self.mask)
        logits = F.linear(self.norm(x), self.wte.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def measure(name, batch, seconds):
    """Tokens per second, by the median step after ten to warm up, and the peak of memory."""
    vocab, d, heads, layers, ours_batch, t = SIZES[name]
    batch = batch or ours_batch
    torch.manual_seed(1)
    with torch.device('cuda'):
        model = Model(vocab, d, heads, layers, t)
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
    peak = torch.cuda.max_memory_allocated()
    del model, forward, optim, loss
    torch.cuda.empty_cache()  # ours takes its turn on the same GPU
    return batch * t / statistics.median(times), peak


def ours(program, name, seconds):
    out = subprocess.run([program, '--device', 'cuda', '--size', name, '--only', 'steps', '--seconds', str(seconds)],
                         check=True, capture_output=True, text=True).stdout
    lines = [json.loads(line) for line in out.splitlines() if line.startswith('{')]
    return next(line for line in lines if line['bench'] == 'step')['tokens_per_s']


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--ours')
    p.add_argument('--size', action='append', choices=SIZES)
    p.add_argument('--batch', type=int)
    p.add_argument('--seconds', type=float, default=10)
    p.add_argument('--rounds', type=int, default=3)
    a = p.parse_args()
    if not torch.cuda.is_available():
        sys.exit('torch_gpu.py: PyTorch sees no GPU')
    torch.set_float32_matmul_precision('high')
    for name in a.size or SIZES:
        rates = {'torch': [], 'ours': []}
        for _ in range(a.rounds):
            rate, peak = measure(name, a.batch, a.seconds)
            rates['torch'].append(rate)
            if a.ours:
                rates['ours'].append(ours(a.ours, name, a.seconds))
        best = {who: statistics.median(r) for who, r in rates.items() if r}
        row = {'bench': 'torch_gpu', 'size': name, 'torch': torch.__version__, 'gpu': torch.cuda.get_device_name(),
               'peak_bytes': peak, 'tokens_per_s': best}
        if a.ours:
            row['ratio'] = best['ours'] / best['torch']
        print(json.dumps(row), flush=True)


if __name__ == '__main__':
    main()
