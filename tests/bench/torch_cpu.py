#!/usr/bin/env python3
"""The models of bench_engine.c in PyTorch, as the rival of our steps.

    torch_cpu.py [--ours build/release/tests/bench/bench_engine] [--size 5.8m]... [--seconds 10]
                 [--rounds 3] [--threads N] [--fp32]

The same shapes, batches and optimizer: pre-norm blocks with biases, learned positions, exact GELU, tied
head, clip by norm 1, AdamW; bf16 autocast as PyTorch recommends it on CPUs, and fp32. With --ours the two
take turns in one run, so that what else the machine does weighs on both. Needs python3-torch, which
nothing else in the project does; for --fp32 Debian's also needs libopenblas0-pthread, or it multiplies
by the reference BLAS.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

try:
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
except ImportError:
    sys.exit('torch_cpu.py: PyTorch is not installed; try apt-get install python3-torch')

SIZES = {  # vocabulary, width, heads, layers, sequences, tokens of a sequence
    '5.8m': (4096, 256, 8, 6, 8, 256),
    '29m': (8192, 512, 8, 8, 4, 512),
    '125m': (50368, 768, 12, 12, 1, 512),
}


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(d)
        self.norm_2 = nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.up = nn.Linear(d, 4 * d)
        self.down = nn.Linear(4 * d, d)

    def attention(self, x, mask):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if hasattr(F, 'scaled_dot_product_attention'):
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            s = q @ k.transpose(-2, -1) * (d // self.heads) ** -0.5
            o = torch.softmax(s.masked_fill(mask, float('-inf')), -1) @ v
        return self.out(o.transpose(1, 2).reshape(b, t, d))

    def forward(self, x, mask):
        x = x + self.attention(self.norm_1(x), mask)
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class Model(nn.Module):
    def __init__(self, vocab, d, heads, layers, t):
        super().__init__()
        self.wte = nn.Embedding(vocab, d)
        self.wpe = nn.Embedding(t, d)
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(d)
        nn.init.normal_(self.wte.weight, std=0.02)
        self.register_buffer('mask', torch.ones(t, t, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe.weight
        for block in self.blocks:
            x = block(x, self.mask)
        return F.linear(self.norm(x), self.wte.weight)


def measure(name, bf16, seconds):
    """Tokens per second and CPU seconds of a step, medians, after two steps to warm up."""
    vocab, d, heads, layers, batch, t = SIZES[name]
    torch.manual_seed(1)
    model = Model(vocab, d, heads, layers, t)
    optim = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0)
    times = []
    cpu = []
    end = None
    while end is None or len(times) < 3 or time.perf_counter() < end:
        tokens = torch.randint(vocab, (batch, t + 1))
        start, start_cpu = time.perf_counter(), time.process_time()
        optim.zero_grad(set_to_none=True)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=bf16):
            logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.float().view(-1, vocab), tokens[:, 1:].reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        times.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
        if end is None and len(times) == 2:
            end = time.perf_counter() + seconds
            times, cpu = [], []
    return batch * t / statistics.median(times), statistics.median(cpu)


def ours(program, name, seconds, threads):
    out = subprocess.run(
        [program, '--size', name, '--only', 'steps', '--seconds', str(seconds), '--threads', str(threads)],
        check=True, capture_output=True, text=True).stdout
    lines = [json.loads(line) for line in out.splitlines() if line.startswith('{')]
    return next(line for line in lines if line['bench'] == 'step')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--ours')
    p.add_argument('--size', action='append', choices=SIZES)
    p.add_argument('--seconds', type=float, default=10)
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument('--fp32', action='store_true', help='also PyTorch without autocast')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    for name in a.size or SIZES:
        rates = {'torch bf16': [], 'torch fp32': [], 'ours': []}
        cpu = {'torch bf16': [], 'torch fp32': [], 'ours': []}

        def note(who, rate, seconds):
            rates[who].append(rate)
            cpu[who].append(seconds)

        for _ in range(a.rounds):
            note('torch bf16', *measure(name, True, a.seconds))
            if a.fp32:
                note('torch fp32', *measure(name, False, a.seconds))
            if a.ours:
                step = ours(a.ours, name, a.seconds, a.threads)
                note('ours', step['tokens_per_s'], step['cpu_s'])
        best = {who: statistics.median(r) for who, r in rates.items() if r}
        row = {'bench': 'torch', 'size': name, 'torch': torch.__version__, 'threads': a.threads,
               'load': os.getloadavg()[0], 'tokens_per_s': best, 'cpu_s': {who: statistics.median(r) for who, r in cpu.items() if r}}
        if a.ours:
            row['ratio'] = best['ours'] / best['torch bf16']
            row['cpu_ratio'] = row['cpu_s']['torch bf16'] / row['cpu_s']['ours']
        print(json.dumps(row), flush=True)
        print('  '.join(f'{who} {r:.0f} tokens/s' for who, r in best.items())
              + (f"  ours / bf16 {row['ratio']:.2f}, by CPU time {row['cpu_ratio']:.2f}" if a.ours else ''), file=sys.stderr, flush=True)


if __name__ == '__main__':
    main()
