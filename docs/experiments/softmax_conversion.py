"""ICLCA §5 and §6.4 in small: how well a softmax transformer's context converts, by features.

Random softmax transformers (4 layers, 4 heads of width 16, float32), 64 context tokens and 16
prompt tokens, at three sharpnesses: the standard deviation of the attention scores in the first
layer. Three kinds of features: random ones, i.i.d. or orthogonal, and merged landmarks, where each
key is counted at the nearest of m keys. The residual branches have their full size here, not the
damped one of `random_transformer`, so that the context matters. Mean over random models and texts
of ‖logits − logits in context‖ / ‖logits in context‖ on the prompt.

    python docs/experiments/softmax_conversion.py [--quick]
"""

import argparse
import math
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from iclca_ref import (farthest_rows, iclaa, log_landmark_features, log_random_features,
                       merged_bias, orthogonal_projection, softmax_attend, softmax_bias)
from linear_transformer import forward, identity, random_transformer

M, N, LAYERS, HEADS, D_MODEL = 64, 16, 4, 4, 64
SHARPNESSES = 0.25, 0.8, 3.0


def softmax_transformer(rng, sharpness):
    """A random softmax transformer whose first scores have this standard deviation."""
    model = random_transformer(rng, 100, D_MODEL, LAYERS, HEADS, dtype=np.float32)
    s, branch = math.sqrt(sharpness), math.sqrt(2 * LAYERS)
    return model._replace(phi=identity, layers=tuple(
        layer._replace(w_q=s * layer.w_q, w_k=s * layer.w_k,
                       w_o=branch * layer.w_o, w_2=branch * layer.w_2)
        for layer in model.layers))


def landmarks(k, m):
    """The m rows (..., m, d_k) at which the keys k (..., n, d_k) are counted."""
    return farthest_rows(k / k.shape[-1] ** 0.25, m)


def conversion(rng, kind, m):
    """`convert` of `iclaa` with m features: a layer's keys and values to (Bias, log_features)."""
    def merged(k, v):
        z = landmarks(k, m)
        return merged_bias(k, v, z), partial(log_landmark_features, landmarks=z)

    def projected(k, v):
        features = partial(log_random_features, projection=w)
        return softmax_bias(k, v, features), features

    if kind == "landmark":
        return merged
    size = m, D_MODEL // HEADS
    w = orthogonal_projection(rng, *size) if kind == "orthogonal" else rng.standard_normal(size)
    return projected


def errors(rng, sharpness, sizes):
    """Relative errors of one random model: {(kind, m): error}, and ("dropped", 0)."""
    model, text = softmax_transformer(rng, sharpness), rng.integers(0, 100, M + N)
    expected = forward(model, text, attend=softmax_attend)[0][M:]

    def error(biases):
        logits = forward(model, text[M:], biases, softmax_attend)[0]
        return float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))

    found = {("dropped", 0): error(None)}
    for kind in "random", "orthogonal", "landmark":
        for m in sizes:
            if kind != "landmark" or m <= M:
                found[kind, m] = error(iclaa(model, text[:M], conversion(rng, kind, m)))
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
        for kind in "random", "orthogonal", "landmark":
            row = [mean[kind, m] for m in sizes if (kind, m) in mean]
            print(f"{sharpness:>9}  {kind:<12}"
                  + "".join(f"{e:>10.3f}" if e > 5e-4 else f"{e:>10.0e}" for e in row))


if __name__ == "__main__":
    main()
