"""Speed, as ratios within one run: attention in its forms, conversion, decoding.

All in float32, 8 heads of width 64 unless said. Times are the best of several runs, and what is
compared takes turns; memory is what Python's tracemalloc sees at the peak. The times in the first
line are those of this machine; the rest are ratios, and hold on other machines, roughly.

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
from linear_transformer import (chunked_attention, elu_plus_one, forward, generate,
                                parallel_attention, random_transformer, recurrent_attention, rope,
                                rope_frequencies, softmax_attention)

HEADS, D = 8, 64


def loop_in_place(q, k, v, chunk=32):
    """The yardstick: normalized attention without rotation, every step written for speed."""
    o, s, z = np.empty_like(v), np.zeros((HEADS, D, D), v.dtype), np.zeros((HEADS, D, 1), v.dtype)
    causal = np.tri(chunk, dtype=v.dtype)
    for i in range(0, v.shape[1], chunk):
        q_c, k_c, v_c, o_c = (x[:, i:i + chunk] for x in (q, k, v, o))
        scores = q_c @ k_c.swapaxes(-1, -2)
        scores *= causal[:scores.shape[-1], :scores.shape[-1]]
        np.matmul(scores, v_c, out=o_c)
        o_c += q_c @ s
        normalizer = q_c @ z
        normalizer += scores.sum(axis=-1, keepdims=True)
        o_c /= normalizer
        s += k_c.swapaxes(-1, -2) @ v_c
        z += k_c.sum(axis=-2)[..., None]
    return o


def seconds(repeat, *calls):
    """The shortest of `repeat` runs of each call, in turns."""
    best = [np.inf] * len(calls)
    for _ in range(repeat):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
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


def line(label, value):
    print(f"{label:<52}{value:>7.2f}")


def attention(rng, n, size, repeat):
    """Chunked attention over n tokens, with its options, beside a matrix product and the loop."""
    a, full, double = rng.standard_normal((size, size), np.float32), qkv(rng, n), qkv(rng, 2 * n)
    turned = partial(rope, theta=rope_frequencies(D).astype(np.float32))
    chunks = 16, 32, 64, 128, 256
    product, once, plain, rotated, loop, twice, *by_chunk = seconds(
        repeat, lambda: a @ a, lambda: chunked_attention(*full),
        lambda: chunked_attention(*full, normalize=False),
        lambda: chunked_attention(*full, rope=turned),
        lambda: loop_in_place(*full), lambda: chunked_attention(*double),
        *(partial(chunked_attention, *full, chunk=chunk) for chunk in chunks))
    flops = 2 * size**3 / product
    print(f"matrix product, {size:,} × {size:,}: {flops / 1e9:.0f} GFLOP/s; "
          f"chunked attention, {n:,} tokens: {once * 1e3:.1f} ms\n")
    best = 8 * D * D * HEADS * n / flops           # its time at the speed of the matrix product
    line("share of the matrix product", best / once)
    line("share of the matrix product without normalizer", best / plain)
    line("share of the matrix product with rotation", best / rotated)
    line("time with normalizer / without", once / plain)
    line("time with rotation / without", rotated / once)
    line("time / a loop that works in place", once / loop)
    line("twice the tokens, time", twice / once)
    for label, options in ("", {}), (" with rotation", {"rope": turned}):
        most = peak(lambda: chunked_attention(*full, **options))
        line("peak memory / output" + label, most / full[2].nbytes)
    for chunk, t in zip(chunks, by_chunk):
        line(f"time with chunks of {chunk} / default", t / once)


def other_forms(rng, lengths, repeat):
    """The other forms of attention, and softmax, in units of chunked attention's time."""
    print("\ntime / chunked attention\n"
          f"{'tokens':>8}{'recurrent':>12}{'parallel':>12}{'softmax':>12}")
    forms = chunked_attention, recurrent_attention, parallel_attention, softmax_attention
    for n in lengths:
        arguments = qkv(rng, n)
        base, *others = seconds(repeat, *(partial(attend, *arguments) for attend in forms))
        print(f"{n:>8}" + "".join(f"{t / base:>12.2f}" for t in others))


def conversion(rng, lengths, repeat):
    """What a prompt, and a token, cost after a context that was converted."""
    model = random_transformer(rng, 1000, 256, 4, 4, dtype=np.float32)
    prompt = rng.integers(0, 1000, 16)
    print("\na prompt of 16 tokens after a context, 4 layers of width 256; time / prompt alone\n"
          f"{'context':>8}{'in front':>12}{'converted':>12}{'iclca/forward':>15}"
          f"{'one token more':>16}")
    for m in lengths:
        context = rng.integers(0, 1000, m)
        biases, both = iclca(model, context), np.concatenate([context, prompt])
        alone, converted, token = seconds(
            3 * repeat, lambda: forward(model, prompt), lambda: forward(model, prompt, biases),
            lambda: generate(model, prompt[:1], 1, biases))
        in_front, passed, once = seconds(
            repeat, lambda: forward(model, both), lambda: forward(model, context),
            lambda: iclca(model, context))
        print(f"{m:>8}{in_front / alone:>12.2f}{converted / alone:>12.2f}{once / passed:>15.2f}"
              f"{token / alone:>16.2f}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short texts, one run each")
    quick = parser.parse_args(argv).quick
    rng, lengths = np.random.default_rng(0), (64, 256) if quick else (64, 256, 1024, 4096)
    attention(rng, *((1024, 512, 1) if quick else (8192, 2048, 7)))
    other_forms(rng, lengths, 1 if quick else 3)
    conversion(rng, lengths, 1 if quick else 7)


if __name__ == "__main__":
    main()
