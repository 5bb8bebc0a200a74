"""Speed, as ratios within one run: attention in its forms, whole models, conversion, decoding.

All in float32, attention with 8 heads of width 64. Ratios hold on other machines, roughly.

    python docs/experiments/speed.py [--quick]
"""
import tracemalloc
from functools import partial
from timeit import timeit
import numpy as np
from common import command_line, script
import linear_transformer as lt
from iclca_ref import iclca
HEADS, D = 8, 64


def seconds(repeat, *calls):   # the shortest run of each, in turns
    return np.min([[timeit(call, number=1) for call in calls] for _ in range(repeat)], axis=0)


def qkv(rng, n):   # positive features and values (8, n, 64)
    q, k, v = rng.standard_normal((3, HEADS, n, D), np.float32)
    return lt.elu_plus_one(q), lt.elu_plus_one(k), v


def peak(call):   # the largest memory that the call holds at once, in bytes
    tracemalloc.start()
    call()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def attention(rng, n, size, repeat):
    """Chunked attention over n tokens, with its options, beside a matrix product."""
    a, full, double = rng.standard_normal((size, size), np.float32), qkv(rng, n), qkv(rng, 2 * n)
    turn = partial(lt.rope, theta=lt.rope_frequencies(D).astype(np.float32))
    attend, chunks = partial(lt.chunked_attention, *full), (16, 32, 64, 128, 256)
    product, once, plain, rotated, twice, *by_chunk = seconds(
        repeat, lambda: a @ a, attend, partial(attend, normalize=False), partial(attend, rope=turn),
        lambda: lt.chunked_attention(*double), *(partial(attend, chunk=chunk) for chunk in chunks))
    flops = 2 * size**3 / product
    print(f"matrix product, {size:,} × {size:,}: {flops / 1e9:.0f} GFLOP/s; "
          f"chunked attention, {n:,} tokens: {once * 1e3:.1f} ms\n")
    best = 8 * D * D * HEADS * n / flops           # its time at the speed of the matrix product
    for label, ratio in [
            ("share of the matrix product", best / once), ("  without normalizer", best / plain),
            ("  with rotation", best / rotated), ("twice the tokens, time", twice / once),
            ("peak memory / output", peak(attend) / full[2].nbytes),
            ("  with rotation", peak(partial(attend, rope=turn)) / full[2].nbytes),
            *((f"time, chunks of {c} / default", t / once) for c, t in zip(chunks, by_chunk))]:
        print(f"{label:<40}{ratio:>7.2f}")
    return flops


def forms(rng, lengths, repeat):   # and softmax, in units of chunked attention's time
    print("\ntime / chunked attention\n  tokens   recurrent    parallel     softmax")
    for n in lengths:
        base, *others = seconds(repeat, *(partial(getattr(lt, f"{form}_attention"), *qkv(rng, n))
                                          for form in "chunked recurrent parallel softmax".split()))
        print(f"{n:>8}" + "".join(f"{t / base:>12.2f}" for t in others))


def models(rng, flops, lengths, repeat):
    """A model's share of the matrix product, and what a prompt costs after a converted context."""
    model = lt.random_transformer(rng, 1000, 256, 4, 4, dtype=np.float32)
    size = model.unembed.size + sum(w.size for layer in model.layers for w in layer[:-1])
    print("\n4 layers of width 256, texts × tokens: share of the matrix product")
    for shape in (8, 256), (24, 5), (64, 1), (1, 1):
        best = 2 * size * np.prod(shape) / flops     # two operations for each weight and token
        found, = seconds(repeat, partial(lt.forward, model, rng.integers(0, 1000, shape)))
        print(f"{shape[0]:>8} ×{shape[1]:>4}{best / found:>12.2f}")
    prompt = rng.integers(0, 1000, 16)
    print("\na prompt of 16 tokens after a context, time / prompt alone\n"
          " context    in front   converted  iclca/forward  one token more")
    for m in lengths:
        context = rng.integers(0, 1000, m)
        biases, both = iclca(model, context), np.concatenate([context, prompt])
        alone, converted, token, in_front, passed, once = seconds(repeat, *(
            partial(lt.forward, model, prompt), partial(lt.forward, model, prompt, biases),
            partial(lt.generate, model, prompt[:1], 1, biases), partial(lt.forward, model, both),
            partial(lt.forward, model, context), partial(iclca, model, context)))
        print(f"{m:>8}{in_front / alone:>12.2f}{converted / alone:>12.2f}{once / passed:>15.2f}"
              f"{token / alone:>16.2f}")


@script
def main(argv=None):
    quick = command_line(__doc__, quick="short texts, one run each").parse_args(argv).quick
    rng, lengths = np.random.default_rng(0), (64, 256) if quick else (64, 256, 1024, 4096)
    flops = attention(rng, *((1024, 512, 1) if quick else (8192, 2048, 7)))
    forms(rng, lengths, 1 if quick else 3)
    models(rng, flops, lengths, 1 if quick else 7)
