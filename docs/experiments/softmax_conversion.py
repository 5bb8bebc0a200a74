"""ICLCA §5 and §6.4 in small: how well a context of a softmax transformer converts, by kind and number of features.

Random softmax transformers (4 layers, 4 heads of width 16, float32), 64 context tokens and 16 prompt tokens, at three
sharpnesses: the standard deviation of the attention scores in the first layer. The residual branches have their full
size here, not the damped one of `random_transformer`, so that the context matters. Mean over random models and texts of
‖logits − logits in context‖ / ‖logits in context‖ on the prompt.

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
        layer._replace(w_q=s * layer.w_q, w_k=s * layer.w_k, w_o=branch * layer.w_o, w_2=branch * layer.w_2)
        for layer in model.layers))


def relative_error(logits, expected):
    """‖logits − expected‖ / ‖expected‖."""
    return float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))


def converter(kind, m, d_k, rng):
    """`convert` for `iclaa`: m of the keys as landmarks, or m random or orthogonal features."""
    def landmarks(k, v):
        z = farthest_rows(k / k.shape[-1] ** 0.25, min(m, k.shape[-2]))
        return merged_bias(k, v, z), partial(log_landmark_features, landmarks=z)

    if kind == "landmark":
        return landmarks
    w = rng.standard_normal((m, d_k)) if kind == "random" else orthogonal_projection(rng, m, d_k)
    features = partial(log_random_features, projection=w)
    return lambda k, v: (softmax_bias(k, v, features), features)


def errors(rng, sharpness, sizes):
    """Relative errors of one random model: {(kind, m): error}, and ("dropped", 0)."""
    model, text = softmax_transformer(rng, sharpness), rng.integers(0, 100, M + N)
    expected = forward(model, text, attend=softmax_attend)[0][M:]

    def error(biases):
        return relative_error(forward(model, text[M:], biases, softmax_attend)[0], expected)

    found = {("dropped", 0): error(None)}
    for kind in "random", "orthogonal", "landmark":
        for m in sizes:
            if kind != "landmark" or m <= M:
                convert = converter(kind, m, D_MODEL // HEADS, rng)
                found[kind, m] = error(iclaa(model, text[:M], convert))
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 random models and 3 sizes instead of 20 and 7")
    arguments = parser.parse_args(argv)
    models, sizes = (3, (16, 64, 256)) if arguments.quick else (20, (16, 32, 64, 128, 256, 512, 1024))
    print(f"relative error of the logits, mean of {models} random models; {M} context tokens, {N} prompt tokens\n")
    print(f"{'sharpness':>9}  {'features':<12}" + "".join(f"{'m = ' + str(m):>10}" for m in sizes))
    for sharpness in SHARPNESSES:
        rng = np.random.default_rng(0)
        runs = [errors(rng, sharpness, sizes) for _ in range(models)]
        mean = {key: np.mean([run[key] for run in runs]) for key in runs[0]}
        print(f"{sharpness:>9}  {'dropped':<12}{mean['dropped', 0]:>10.3f}")
        for kind in "random", "orthogonal", "landmark":
            row = (f"{mean[kind, m]:>10.3f}" if mean[kind, m] > 5e-4 else f"{mean[kind, m]:>10.0e}" for m in sizes
                   if (kind, m) in mean)
            print(f"{sharpness:>9}  {kind:<12}" + "".join(row))


if __name__ == "__main__":
    main()
