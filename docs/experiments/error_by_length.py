"""How float32's error grows with the length of the context: Theorem 4.5 in float32 and float64.

Features between 0 and 10,000, values ~ N(0, 1). Relative errors of the state b_KV, as it is carried
by `chunked_attention` and summed by `attention_bias`, and of the last 100 outputs.

    python docs/experiments/error_by_length.py [--quick]
"""
from functools import partial
import numpy as np
from common import command_line, script
from iclca_ref import attention_bias
from linear_transformer import chunked_attention, rope, rope_frequencies
HEADS, D = 2, 16


def columns(q, k, v, rotated, dtype):
    """The carried state, the summed state, and the last 100 outputs, with float32's angles."""
    q, k, v, theta = (x.astype(np.float32).astype(dtype) for x in (q, k, v, rope_frequencies(D)))
    turn = partial(rope, theta=theta) if rotated else None
    o, carried = chunked_attention(q, k, v, rope=turn)
    return carried.kv, attention_bias(k, v, rope=turn).kv, o[:, -100:]


@script
def main(argv=None):
    quick = command_line(__doc__, quick="up to 10,000 tokens").parse_args(argv).quick
    rng = np.random.default_rng(0)
    print("relative error of float32 in units of eps = 1.2e-7\n")
    print(f"{'tokens':>8}  {'':12}{'state carried':>15}{'state summed':>15}{'outputs':>10}")
    for n in (100, 1_000, 10_000, 100_000)[:3 if quick else 4]:
        for how in "not rotated", "rotated":
            q, k = rng.random((2, HEADS, n, D), np.float32) * np.float32(1e4)
            qkv = q, k, rng.standard_normal((HEADS, n, D), np.float32)
            found = (columns(*qkv, how == "rotated", dtype) for dtype in (np.float32, np.float64))
            row = (np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(*found))
            print("{:>8}  {:12}{:>15.1f}{:>15.1f}{:>10.1f}".format(
                n, how, *(x / np.finfo(np.float32).eps for x in row)), flush=True)
