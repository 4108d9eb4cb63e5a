#!/usr/bin/env python3
"""Our fold and outer step beside Flower's aggregation of the same number of updates of one model.

    flower.py --flower FOLDER [--bench build/release/tests/bench/bench_aggregate] [--updates 8]
              [--codec int8] [--rounds 5]

FOLDER holds Flower's package `flwr` (framework/py of its repository); its code is run as it is: from replies
as they arrived, arrays as bytes in memory, through strategy_utils.aggregate_arrayrecords (what FedAvg calls)
to the new array record. Modules of its transport, which this path only names, are stood in for where they
or their versions are not installed. Ours goes from coded files to a new checkpoint file with its SHA-256.
TMPDIR says where our files lie; /dev/shm keeps the disk out of it, since Flower writes nothing.

Both take turns; medians of seconds and of processor seconds, and their ratios. Needs python3-numpy.
"""
import argparse
import importlib.abc
import importlib.machinery
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import types


# Generated for newer versions than some systems have; and what is only replaced where it is missing.
TRANSPORT = ('google', 'grpc', 'grpc_health')
IF_MISSING = ('Crypto', 'alembic', 'click', 'cryptography', 'iterators', 'packaging', 'pathspec', 'ray', 'requests',
              'rich', 'sqlalchemy', 'starlette', 'tomli', 'tomli_w', 'torch', 'typer', 'uvicorn', 'yaml')


class AnyType(type):
    def __getattr__(cls, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return Anything


class Anything(metaclass=AnyType):
    """Takes whatever is asked of it; nothing of what is measured ever asks."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def __class_getitem__(cls, item):
        return cls

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return Anything()


class Stand(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return AnyType(name, (Anything,), {})


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, wanted):
        self.wanted = wanted

    def find_spec(self, name, path, target=None):
        if self.wanted(name):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Stand(spec.name)

    def exec_module(self, module):
        pass


def flower(folder):
    try:
        import numpy
    except ImportError:
        sys.exit('flower.py: NumPy is not installed; try apt-get install python3-numpy')
    if not os.path.isdir(os.path.join(folder, 'flwr')):
        sys.exit(f'flower.py: {folder} has no folder flwr; give framework/py of a clone of Flower')
    sys.path.insert(0, folder)
    sys.meta_path.insert(0, StandIns(lambda n: n.startswith('flwr.proto') or n.split('.')[0] in TRANSPORT))
    sys.meta_path.append(StandIns(lambda n: n.split('.')[0] in IF_MISSING))
    from flwr.common import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
    return numpy, Array, ArrayRecord, MetricRecord, RecordDict, aggregate_arrayrecords


def shapes():
    """The parameters of the 125m shape, as bench_aggregate has them."""
    d, layers, vocabulary = 768, 12, 50368
    out = {'transformer.wte.weight': (vocabulary, d), 'transformer.norm_f.weight': (d,)}
    for i in range(layers):
        out.update({
            f'blocks.{i}.Wqkv': (3 * d, d), f'blocks.{i}.out_proj': (d, d), f'blocks.{i}.up_proj': (4 * d, d),
            f'blocks.{i}.down_proj': (d, 4 * d), f'blocks.{i}.norm_1': (d,), f'blocks.{i}.norm_2': (d,)})
    return out


class Flower:
    def __init__(self, folder, updates):
        np, array, array_record, metric_record, record_dict, self.aggregate = flower(folder)
        rng = np.random.default_rng(1)
        self.replies = []
        for k in range(updates):
            arrays = {n: array(rng.standard_normal(s, dtype=np.float32) * np.float32(1e-3))
                      for n, s in shapes().items()}
            self.replies.append(record_dict({'arrays': array_record(arrays),
                                             'metrics': metric_record({'num-examples': k + 1})}))

    def run(self):
        began, cpu = time.monotonic(), time.process_time()
        self.aggregate(self.replies, 'num-examples')
        return time.monotonic() - began, time.process_time() - cpu


def ours(bench, updates, codec):
    done = subprocess.run([bench, '--updates', str(updates), '--codec', codec, '--outer', 'fedavg'], check=True,
                          stdout=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    if not lines:
        sys.exit('flower.py: ' + done.stdout.strip())
    return {line['threads']: line for line in lines}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--flower', required=True)
    p.add_argument('--bench', default='build/release/tests/bench/bench_aggregate')
    p.add_argument('--updates', type=int, default=8)
    p.add_argument('--codec', default='int8')
    p.add_argument('--rounds', type=int, default=5)
    a = p.parse_args()
    rival = Flower(a.flower, a.updates)
    theirs, mine = [], []
    for i in range(a.rounds):
        theirs.append(rival.run())
        mine.append(ours(a.bench, a.updates, a.codec))
        print(f'round {i + 1} of {a.rounds}: Flower {theirs[-1][0]:.2f} s, ours ' +
              ', '.join(f'{m["seconds"]:.2f} s with {t} threads' for t, m in mine[-1].items()), file=sys.stderr)
    wall = statistics.median(t[0] for t in theirs)
    cpu = statistics.median(t[1] for t in theirs)
    print(json.dumps({'bench': 'flower', 'updates': a.updates, 'seconds': round(wall, 3), 'cpu_s': round(cpu, 3),
                      'peak_rss_mib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
    for threads in mine[0]:
        s = statistics.median(m[threads]['seconds'] for m in mine)
        c = statistics.median(m[threads]['cpu_s'] for m in mine)
        print(json.dumps({'bench': 'ours', 'codec': a.codec, 'threads': threads, 'seconds': s, 'cpu_s': c,
                          'ratio': round(wall / s, 2), 'cpu_ratio': round(cpu / c, 2),
                          'peak_rss_mib': mine[-1][threads]['peak_rss_mib']}))


if __name__ == '__main__':
    main()
