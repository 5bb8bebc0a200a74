"""ICLCA §5 and §6.4 in small: how well a softmax transformer's context converts, by features.

Random softmax transformers (4 layers, 4 heads of width 16, float32), 64 context tokens and 16
prompt tokens, at three sharpnesses: the standard deviation of the attention scores in the first
layer. Random features, i.i.d. or orthogonal, and two ways of merging keys (docs/softmax_rules.py): at
the nearest of m keys (landmark), and by how they are attended to. The residual branches have their full size here, not the
damped one of `random_transformer`, so that the context matters. Mean over random models and texts
of ‖logits − logits in context‖ / ‖logits in context‖ on the prompt.

    python docs/experiments/softmax_conversion.py [--quick]
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])
from iclca_ref import softmax_attend
from linear_transformer import forward, identity, random_transformer
from softmax_rules import RANDOM, apart, caches, converted, rule

M, N, LAYERS, HEADS, D_MODEL = 64, 16, 4, 4, 64
SHARPNESSES = 0.25, 0.8, 3.0
KINDS = {"random": "random features", "orthogonal": "orthogonal features",
         "landmark": "merged, farthest", "attended": "merged, attended"}


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

    found, layers = {("dropped", 0): error(None)}, caches(model, text[:M])
    for kind, name in KINDS.items():
        for m in sizes:
            if name in RANDOM or m <= M:
                found[kind, m] = error(converted(layers, rule(name, m, D_MODEL // HEADS, rng)))
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
        for kind in KINDS:
            row = [mean[kind, m] for m in sizes if (kind, m) in mean]
            print(f"{sharpness:>9}  {kind:<12}"
                  + "".join(f"{e:>10.3f}" if e > 5e-4 else f"{e:>10.0e}" for e in row))


if __name__ == "__main__":
    main()
