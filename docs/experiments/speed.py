"""Speed, as ratios within one run: the forms of attention, conversion, decoding, and the share of the machine's speed.

All in float32, 8 heads of width 64 unless said. Times are the best of several runs; memory is what Python's tracemalloc
sees at the peak. One number here is a time in itself, the rest are ratios: they hold on other machines, roughly.

    python docs/experiments/speed.py [--quick]
"""

import argparse
import sys
import time
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from iclca_ref import iclca
from linear_transformer import (chunked_attention, elu_plus_one, forward, generate, parallel_attention, random_transformer,
                                recurrent_attention, rope, rope_frequencies, softmax_attention)

HEADS, D = 8, 64


def seconds(call, repeat):
    """The shortest of `repeat` runs."""
    best = np.inf
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def qkv(rng, n):
    """Positive features and values (8, n, 64)."""
    x = rng.standard_normal((3, HEADS, n, D), np.float32)
    return elu_plus_one(x[0]), elu_plus_one(x[1]), x[2]


def peak(call):
    """The largest memory that the call holds at once, in bytes."""
    tracemalloc.start()
    call()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short texts, one run each")
    quick = parser.parse_args(argv).quick
    rng, repeat = np.random.default_rng(0), 1 if quick else 7
    longest = 1024 if quick else 8192

    a = rng.standard_normal((2048, 2048), np.float32)
    machine = 2 * 2048**3 / seconds(lambda: a @ a, repeat)
    full, double = qkv(rng, longest), qkv(rng, 2 * longest)
    once = seconds(lambda: chunked_attention(*full), repeat)
    print(f"matrix product, 2048 × 2048: {machine / 1e9:.0f} GFLOP/s; chunked attention, {longest:,} tokens: {once * 1e3:.1f} ms\n")
    turned = partial(rope, theta=rope_frequencies(D).astype(np.float32))
    operations = 8 * D * D * HEADS * longest
    for label, options in ("", {}), (" without normalizer", {"normalize": False}), (" with rotation", {"rope": turned}):
        share = operations / seconds(lambda: chunked_attention(*full, **options), repeat) / machine
        print(f"{'share of the matrix product' + label:<52}{share:>7.2f}")
    print(f"{'twice the tokens, time':<52}{seconds(lambda: chunked_attention(*double), repeat) / once:>7.2f}")
    print(f"{'peak memory / output':<52}{peak(lambda: chunked_attention(*full)) / full[2].nbytes:>7.2f}")
    for chunk in 16, 32, 64, 128, 256:
        print(f"{f'time with chunks of {chunk} / default':<52}"
              f"{seconds(lambda: chunked_attention(*full, chunk=chunk), repeat) / once:>7.2f}")

    print(f"\ntime / chunked attention\n{'tokens':>8}{'recurrent':>12}{'parallel':>12}{'softmax':>12}")
    for n in (64, 256, 1024) if quick else (64, 256, 1024, 4096):
        arguments = qkv(rng, n)
        base, *others = (seconds(lambda: attend(*arguments), max(1, repeat // 2)) for attend in
                         (chunked_attention, recurrent_attention, parallel_attention, softmax_attention))
        print(f"{n:>8}" + "".join(f"{t / base:>12.2f}" for t in others))

    model = random_transformer(rng, 1000, 256, 4, 4, dtype=np.float32)
    prompt, lengths = rng.integers(0, 1000, 16), (64, 256, 1024) if quick else (64, 256, 1024, 4096)
    print(f"\na prompt of 16 tokens after a context, 4 layers of width 256; time / prompt alone\n"
          f"{'context':>8}{'in front':>12}{'converted':>12}{'iclca/forward':>15}{'one token more':>16}")
    alone = seconds(lambda: forward(model, prompt), 3 * repeat)
    for m in lengths:
        context = rng.integers(0, 1000, m)
        biases = iclca(model, context)
        in_front = seconds(lambda: forward(model, np.concatenate([context, prompt])), repeat)
        converted = seconds(lambda: forward(model, prompt, biases), 3 * repeat)
        conversion = seconds(lambda: iclca(model, context), repeat) / seconds(lambda: forward(model, context), repeat)
        token = seconds(lambda: generate(model, prompt[:1], 1, biases), 3 * repeat)
        print(f"{m:>8}{in_front / alone:>12.2f}{converted / alone:>12.2f}{conversion:>15.2f}{token / alone:>16.2f}")


if __name__ == "__main__":
    main()
