"""ICLCA Table 1: relative error of the logits, converted model against the model in context.

Random linear transformers (elu + 1 features, normalizer, RoPE, LayerNorm, GELU), 60 tokens of
context and 20 of prompt, mean over random prompts of ‖converted − in context‖ / ‖in context‖. The
paper gives 2.9e-7 at 205K parameters and 4.3e-6 at 1.98B, in single precision; the shapes of its
models are not known to us, ours are in SIZES.

    python docs/experiments/table1_exactness.py [--quick | --largest]
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from iclca_ref import iclca
from linear_transformer import forward, random_transformer

M, N = 60, 20
SIZES = [  # vocab_size, d_model, layers, heads, prompts, the paper's error
    (65, 64, 4, 4, 100, "2.9e-07"),
    (600, 192, 4, 6, 100, ""),
    (1_000, 512, 6, 8, 50, ""),
    (1_000, 1024, 16, 16, 8, ""),
    (18_200, 2560, 24, 20, 3, "4.3e-06")]


def measure(vocab_size, d_model, n_layers, n_heads, prompts, dtype):
    """Parameters, mean relative error converted, mean relative error if the context is dropped."""
    rng = np.random.default_rng(0)
    model = random_transformer(rng, vocab_size, d_model, n_layers, n_heads, dtype=dtype)
    weights = [model.embed, model.unembed, *(w for layer in model.layers for w in layer)]
    errors = []
    for _ in range(prompts):
        text = rng.integers(0, vocab_size, M + N)
        expected = forward(model, text)[0][M:]
        found = forward(model, text[M:], iclca(model, text[:M]))[0], forward(model, text[M:])[0]
        errors.append([np.linalg.norm(logits - expected) for logits in found]
                      / np.linalg.norm(expected))
    return sum(w.size for w in weights), *np.mean(errors, axis=0)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest size alone, 10 prompts")
    parser.add_argument("--largest", action="store_true",
                        help="also 1.98 billion parameters, in float32 (8 GB, minutes)")
    arguments = parser.parse_args(argv)
    sizes = SIZES[:1 if arguments.quick else 5 if arguments.largest else 4]
    print(f"{'parameters':>13} {'d_model':>8} {'layers':>7} {'prompts':>8} "
          f"{'float32':>9} {'paper':>9} {'float64':>9} {'dropped':>9}")
    for vocab_size, d_model, n_layers, n_heads, prompts, paper in sizes:
        start, prompts = time.perf_counter(), 10 if arguments.quick else prompts
        results = {}
        for dtype in (np.float32, np.float64) if d_model <= 1024 else (np.float32,):
            print(f"  {dtype.__name__}, d_model = {d_model} ...", file=sys.stderr, end="",
                  flush=True)
            results[dtype] = measure(vocab_size, d_model, n_layers, n_heads, prompts, dtype)
            print(f" {time.perf_counter() - start:.0f} s", file=sys.stderr)
        parameters, error, dropped = results[np.float32]
        double = f"{results[np.float64][1]:9.1e}" if np.float64 in results else f"{'':9}"
        print(f"{parameters:>13,} {d_model:>8} {n_layers:>7} {prompts:>8} "
              f"{error:>9.1e} {paper:>9} {double} {dropped:>9.2f}")


if __name__ == "__main__":
    main()
