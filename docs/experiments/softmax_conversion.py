"""ICLCA §5 and §6.4 in small: how well a softmax transformer's context converts, by features.

Random models, branches of full size so that the context matters; sharpness: the deviation of the
first scores. The paper's random features; the context's m most attended keys: kept as they are,
with the others merged into the nearest, and with `fitted_bias`, as 64 other tokens attend to them.

    python docs/experiments/softmax_conversion.py [--quick]
"""
from functools import partial
import numpy as np
from common import command_line, script
import linear_transformer as lt
from iclca_ref import fitted_bias, log_random_features, softmax_attend, softmax_bias
M, N, LAYERS, HEADS, D, SIZES = 64, 16, 4, 4, 16, (8, 16, 32, 64, 256, 1024)


def softmax_transformer(rng, sharpness):
    """A random softmax transformer whose first scores have this standard deviation."""
    model = lt.random_transformer(rng, 100, HEADS * D, LAYERS, HEADS, dtype=np.float32)
    s, b = sharpness ** 0.5, (2 * LAYERS) ** 0.5
    return model._replace(phi=lt.identity, layers=[x._replace(
        w_q=s * x.w_q, w_k=s * x.w_k, w_o=b * x.w_o, w_2=b * x.w_2) for x in model.layers])


def read(q, k, v, _, rope, normalize):
    """Attention that returns the first M keys and values, and how later tokens attend to them."""
    q, k = (lt.rotate_at(x, rope, np.arange(x.shape[-2]) + 1 - M) for x in (q, k))
    p = lt.softmax(np.where(np.tri(q.shape[-2]), q @ k.mT / D ** 0.5, -np.inf))
    return p @ v, (k[:, :M], v[:, :M], p[:, M:, :M])


def converted(kind, m, rng, k, v, attention):
    """The Bias of one layer's context and its features, as `iclaa` has them; None for "dropped"."""
    if kind == "random":
        features = partial(log_random_features, projection=rng.standard_normal((m, D), np.float32))
        return softmax_bias(k, v, features), features
    rows = np.argsort(-attention.sum(axis=-2))[:, :m]
    z = np.take_along_axis(k, rows[..., None], axis=-2)
    nearest = ((k[:, None] - z[:, :, None]) ** 2).sum(axis=-1).argmin(axis=-2)[:, None]
    E = nearest == np.arange(m)[:, None] if kind == "merged" else rows[..., None] == np.arange(M)
    bias = fitted_bias(attention, v, rows) if kind == "fitted" else lt.Bias(E @ v, E.sum(axis=-1))
    return None if kind == "dropped" else (bias, lambda x: x @ z.mT / D ** 0.25)


@script
def main(argv=None):
    models = 2 if command_line(__doc__, quick="2 models, not 20").parse_args(argv).quick else 20
    print(f"error of the logits, mean of {models} models ± standard error; {M} + {N} tokens\n")
    print("sharpness  features" + "".join(f"{f'm = {m}':>13}" for m in SIZES))
    for sharpness in 0.25, 0.8, 3.0:
        rng, found = np.random.default_rng(0), {}
        for _ in range(models):
            model, text = softmax_transformer(rng, sharpness), rng.integers(0, 100, M + N)
            layers = lt.run_layers(model, [*text[:M], *rng.integers(0, 100, M)], attend=read)[1]
            expected = lt.forward(model, text, attend=softmax_attend)[0][M:]
            for kind, sizes in dict(dropped=1, random=6, kept=4, merged=4, fitted=4).items():
                biases = [[converted(kind, m, rng, *x) for x in layers] for m in SIZES[:sizes]]
                logits = [lt.forward(model, text[M:], b, softmax_attend)[0] for b in biases]
                off = np.linalg.norm(logits - expected, axis=(1, 2)) / np.linalg.norm(expected)
                found.setdefault(kind, []).append(off)
        for kind, errors in found.items():
            cells = zip(np.mean(errors, axis=0), np.std(errors, axis=0) / models ** 0.5)
            cells = (f"{e:.3f}±{s:.3f}" if e > 5e-4 else f"{e:.0e}" for e, s in cells)
            print(f"{sharpness:>9}  {kind:<8}" + "".join(map("{:>13}".format, cells)), flush=True)
