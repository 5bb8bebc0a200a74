"""A context that no one machine holds, converted in shards: Algorithm 1 with a scan in every layer.

After a context with the Bias b, a shard of m tokens that alone has b_i leaves R_{-m} b + b_i. So an
exclusive scan of the shards' own Biases gives each the one to start from, and it goes through the
layer. Its residual stream stays in a file that all workers reach.

    OMP_NUM_THREADS=1 python docs/experiments/sharded_context.py [--quick] [--shards 4 2 1]
"""
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from time import perf_counter
import numpy as np
from common import at_least, command_line, script
from iclca_ref import attention_bias, iclca
from linear_transformer import Bias, block, random_transformer, run_layers


class Folder(str):   # one array per shard, in files; for workers that are threads a dict does it
    def __setitem__(self, shard, x):
        np.save(f"{self}/{shard}.npy", x, allow_pickle=False)
    def __getitem__(self, shard):
        return np.load(f"{self}/{shard}.npy", allow_pickle=False)


def one_round(streams, model, before, layer, shard, given):
    """A shard's tokens, or its stream taken through layer `before` from a Bias, to its own Bias."""
    x, _ = block(streams[shard], before, model, given) if before else run_layers(model, given)
    streams[shard] = x
    return block(x, layer._replace(w_1=layer.w_1[:, :0], w_2=layer.w_2[:0]), model,   # no MLP yet
                 attend=lambda q, k, v, bias, rope, _: (v, attention_bias(k, v, None, rope)))[1]


def scan(lengths, own, start, rope):   # each shard's Bias to start from, and last the whole's
    starts = [start]
    for m, b in zip(lengths, own):
        starts.append(Bias(starts[-1].turned(rope, -m).kv + b.kv, starts[-1].d + b.d))
    return starts


def convert(model, shards, executor, streams, biases=None):
    """iclca(model, tokens, biases) for tokens (..., m) that come as a list of arrays."""
    outline, lengths = model._replace(layers=(), unembed=None), [x.shape[-1] for x in shards]
    before, given, converted = None, shards, []
    for layer, bias in zip(model.layers, biases or [None] * len(model.layers), strict=True):
        task = partial(one_round, streams, outline, before, layer)
        own = list(executor.map(task, range(len(shards)), given))
        bias = bias or Bias(*(0 * x for x in own[0]))
        *given, whole = scan(lengths, own, bias, partial(model.rope, theta=layer.theta))
        before, converted = layer, [*converted, whole]
    return converted


@script
def main(argv=None):
    parser = command_line(__doc__, quick="2 shards, 1,000 tokens")
    parser.add_argument("--shards", type=at_least(1), nargs="+", default=[4, 2, 1])
    options = parser.parse_args(argv)
    n, counts = (1_000, [2]) if options.quick else (100_000, options.shards)
    model, found = random_transformer(np.random.default_rng(0), 1000, 64, 4, 4, dtype="f"), []
    tokens = np.random.default_rng(1).integers(0, 1000, n)
    for count in counts:    # most first: the largest worker so far is printed
        began = perf_counter()
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as ex, TemporaryDirectory() as at:
            found.append(convert(model, np.array_split(tokens, count), ex, Folder(at)))
        peak = __import__("resource").getrusage(-1).ru_maxrss if sys.platform == "linux" else 0
        print(f"{count} shards: {perf_counter() - began:.1f} s; largest worker {peak / 1e3:.0f} MB")
    began, expected = perf_counter(), iclca(model, tokens)
    off = max(abs(a.kv - b.kv).max() / abs(b.kv).max() for x in found for a, b in zip(x, expected))
    print(f"unsharded, {n:,} tokens: {perf_counter() - began:.1f} s; Biases differ by {off:.0e}")
    began, (b, *_) = perf_counter(), expected
    scan([n] * 1000, [b] * 1000, b, partial(model.rope, theta=model.layers[0].theta))
    print(f"scan of 1,000 Biases, {b.kv.nbytes + b.d.nbytes} bytes: {perf_counter() - began:.3f} s")
