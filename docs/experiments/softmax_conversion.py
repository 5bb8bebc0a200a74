"""ICLCA §5 and §6.4 in small: how well a softmax transformer's context converts, by features.

Random softmax transformers (4 layers, 4 heads of width 16, float32), 64 context tokens and 16
prompt tokens, at three sharpnesses: the standard deviation of the attention scores in the first
layer. Random features, i.i.d. or orthogonal; keys merged at the nearest of m (landmark) or by how
they are attended to; least squares (docs/pretrained/rules.py). The residual branches have their
full size here, not the damped one of `random_transformer`, so that the context matters. Mean over
random models and texts of ‖logits − logits in context‖ / ‖logits in context‖ on the prompt.

    python docs/experiments/softmax_conversion.py [--quick]
"""

import argparse
import math
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])
from iclca_ref import log_random_features, softmax_attend, softmax_bias
from linear_transformer import Bias, forward, identity, random_transformer
from pretrained.look import contexts
from pretrained.rules import RULES, apart, converted

M, N, LAYERS, HEADS, D_MODEL = 64, 16, 4, 4, 64
SHARPNESSES = 0.25, 0.8, 3.0


def orthogonal_projection(rng, m, d):
    """m random directions (m, d), orthogonal in each block of d, as long as independent normals.

    Each row is distributed as one of rng.standard_normal((m, d)), so the estimate of random
    features stays unbiased; its variance falls. Source: §5; Choromanski et al. 2021.
    """
    q, r = np.linalg.qr(rng.standard_normal((-(-m // d), d, d)))
    q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[:, None, :]  # now q is uniform
    return q.reshape(-1, d)[:m] * np.linalg.norm(rng.standard_normal((m, d)), axis=1, keepdims=True)


def with_features(layers, projection):
    """Random features with these directions (m, d), in every layer and head."""
    features = partial(log_random_features, projection=projection)
    return [(features, softmax_bias(c.k, c.v, features)) for c in layers]


def landmarks(layers, m):
    """Every key counted at the nearest of m, each the farthest from those before it (Gonzalez)."""
    made = []
    for c in layers:
        k = c.k / c.k.shape[-1] ** 0.25
        apart_from = ((k[:, :, None] - k[:, None]) ** 2).sum(axis=-1)    # (heads, tokens, tokens)
        rows = (k * k).sum(axis=-1).argmax(axis=-1)[:, None]
        while rows.shape[-1] < m:
            nearest = np.take_along_axis(apart_from, rows[:, None], axis=-1).min(axis=-1)
            rows = np.append(rows, nearest.argmax(axis=-1)[:, None], axis=-1)
        nearest = np.take_along_axis(apart_from, rows[:, None], axis=-1).argmin(axis=-1)
        e = np.eye(m, dtype=k.dtype)[nearest].mT
        z = np.take_along_axis(k, rows[..., None], axis=-2)
        made.append((z, Bias(e @ c.v, e.sum(axis=-1))))
    return made


def rules(rng):
    """{name: rule(layers, m)}."""
    return {"random": lambda x, m: with_features(x, rng.standard_normal((m, D_MODEL // HEADS))),
            "orthogonal": lambda x, m: with_features(
                x, orthogonal_projection(rng, m, D_MODEL // HEADS)),
            "landmark": landmarks, "attended": RULES["merged, attended"],
            "fitted": RULES["least squares"]}


def softmax_transformer(rng, sharpness):
    """A random softmax transformer whose first scores have this standard deviation."""
    model = random_transformer(rng, 100, D_MODEL, LAYERS, HEADS, dtype=np.float32)
    s, branch = math.sqrt(sharpness), math.sqrt(2 * LAYERS)
    return model._replace(phi=identity, layers=tuple(
        layer._replace(w_q=s * layer.w_q, w_k=s * layer.w_k,
                       w_o=branch * layer.w_o, w_2=branch * layer.w_2)
        for layer in model.layers))


def errors(rng, sharpness, sizes):
    """Relative errors of one random model: {(kind, m): error}, and ("dropped", 0)."""
    model, text = softmax_transformer(rng, sharpness), rng.integers(0, 100, M + N)
    expected = forward(model, text, attend=softmax_attend)[0][M:]

    def error(biases):
        return apart(forward(model, text[M:], biases, softmax_attend)[0], expected)

    found = {("dropped", 0): error(None)}
    others = np.random.default_rng(0).integers(0, 100, (4, M))    # no part of the seed's stream
    layers = contexts(model, text[:M], others, text[:M])
    for kind, rule in rules(rng).items():
        for m in sizes:
            if kind in ("random", "orthogonal") or m <= M:
                found[kind, m] = error(converted(rule(layers, m)))
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 models and 3 sizes, not 20 and 7")
    quick = parser.parse_args(argv).quick
    models, sizes = (2, (16, 64, 256)) if quick else (20, (16, 32, 64, 128, 256, 512, 1024))
    print(f"relative error of the logits, mean of {models} random models; "
          f"{M} context tokens, {N} prompt tokens\n")
    print(f"{'sharpness':>9}  {'features':<12}" + "".join(f"{'m = ' + str(m):>10}" for m in sizes))
    for sharpness in SHARPNESSES:
        rng = np.random.default_rng(0)
        runs = [errors(rng, sharpness, sizes) for _ in range(models)]
        mean = {key: np.mean([run[key] for run in runs]) for key in runs[0]}
        print(f"{sharpness:>9}  {'dropped':<12}{mean['dropped', 0]:>10.3f}")
        for kind in rules(rng):
            row = [mean[kind, m] for m in sizes if (kind, m) in mean]
            print(f"{sharpness:>9}  {kind:<12}"
                  + "".join(f"{e:>10.3f}" if e > 5e-4 else f"{e:>10.0e}" for e in row))


if __name__ == "__main__":
    main()
