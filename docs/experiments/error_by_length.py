"""How float32's error grows with the length of the context: Theorem 4.5 in float32 and float64.

Features between 0 and 10,000, values ~ N(0, 1), 2 heads of width 16. For contexts of 100 to 100,000
tokens the relative error, in units of eps = 1.2e-7, of the state b_KV as `chunked_attention`
carries it and as `attention_bias` sums it, and of the attention output of the last 100 tokens, with
and without rotation.

    python docs/experiments/error_by_length.py [--quick]
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from iclca_ref import attention_bias
from linear_transformer import chunked_attention, rope, rope_frequencies

HEADS, D = 2, 16


def errors(rng, n, rotated):
    """Relative errors, in eps, of the carried state, the summed state, and the last 100 outputs."""
    q, k = rng.random((2, HEADS, n, D), np.float32) * np.float32(1e4)
    v = rng.standard_normal((HEADS, n, D), np.float32)
    found = {}
    for dtype in np.float64, np.float32:
        theta = rope_frequencies(D).astype(np.float32).astype(dtype)  # the same angles in both
        turn = partial(rope, theta=theta) if rotated else None
        arguments = [x.astype(dtype) for x in (q, k, v)]
        o, carried = chunked_attention(*arguments, rope=turn)
        found[dtype] = carried.kv, attention_bias(*arguments[1:], rope=turn).kv, o[:, -100:]
    assert all(np.isfinite(a).all() for a in found[np.float32])
    return [np.linalg.norm(a - b) / np.linalg.norm(b) / np.finfo(np.float32).eps
            for a, b in zip(found[np.float32], found[np.float64])]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 10,000 tokens")
    quick = parser.parse_args(argv).quick
    lengths = (100, 1_000, 10_000) if quick else (100, 1_000, 10_000, 100_000)
    rng = np.random.default_rng(0)
    print("relative error of float32 in units of eps = 1.2e-7\n")
    print(f"{'tokens':>8}  {'':12}{'state carried':>15}{'state summed':>15}{'outputs':>10}")
    for n in lengths:
        for rotated in False, True:
            print(f"{n:>8}  {'rotated' if rotated else 'not rotated':12}"
                  + "".join(f"{e:>{w}.1f}" for e, w in zip(errors(rng, n, rotated), (15, 15, 10))))


if __name__ == "__main__":
    main()
