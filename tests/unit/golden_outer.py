#!/usr/bin/env python3
"""The golden values of test_outer.c, from the formulas as published, in decimals of 50 digits.

Sources: McMahan et al. 2017 (FedAvg), Douillard et al. 2023 (Nesterov as PyTorch's SGD writes it),
Huo et al. 2020, algorithm 3 (FedMom), Reddi et al. 2021, algorithm 2 (FedAdam, FedYogi) with the
bias correction of Kingma and Ba 2015. Run it to see the numbers:  tests/unit/golden_outer.py
"""
from decimal import Decimal as D, getcontext

getcontext().prec = 50
# Doubles as such: both sides start from the same bits.
X0 = [D(0.5), D(-1.25), D(0.001), D(3.0)]
DELTAS = [[D(0.01), D(-0.02), D(0.0), D(1e-7)],
          [D(-0.03), D(-0.015), D(0.25), D(1e-7)],
          [D(0.002), D(0.04), D(-0.5), D(-3e-7)]]


def fedavg(x, s, d, t):
    return x - D(0.8) * d, s


def fednesterov(x, s, d, t):
    buf = D(0.9) * s.get('m', D(0)) + d
    return x - D(0.7) * (d + D(0.9) * buf), {'m': buf}


def fedmom(x, s, d, t):
    w, old = x - D(0.7) * d, s.get('v', x)
    return w + D(0.9) * (w - old), {'v': w}


def adaptive(x, s, d, t, second):
    b1, b2 = D(0.9), D(0.99)
    m = b1 * s.get('m', D(0)) + (1 - b1) * d
    v = second(s.get('v', D(0)), d * d, b2)
    return x - D(0.01) * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + D(0.001)), {'m': m, 'v': v}


def fedadam(x, s, d, t):
    return adaptive(x, s, d, t, lambda v, sq, b2: b2 * v + (1 - b2) * sq)


def fedyogi(x, s, d, t):
    def second(v, sq, b2):
        return v - (1 - b2) * sq * (0 if v == sq else (v - sq).copy_abs() / (v - sq))
    return adaptive(x, s, d, t, second)


for rule in (fedavg, fednesterov, fedmom, fedadam, fedyogi):
    print(f'{rule.__name__}: x, then the state, after each round')
    x, state = list(X0), [{} for _ in X0]
    for t, delta in enumerate(DELTAS, 1):
        x, state = map(list, zip(*(rule(*a, t) for a in zip(x, state, delta))))
        print('    {{' + ', '.join(f'{float(v)!r}' for v in x) + '},')
        for key in sorted(state[0]):
            print('     {' + ', '.join(f'{float(s[key])!r}' for s in state) + '},')
        print('    },')
