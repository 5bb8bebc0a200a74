"""ICLCA Table 1: relative error of the logits, converted model against the model in context.

Random linear transformers (elu + 1 features, normalizer, RoPE, LayerNorm, GELU), 60 tokens of
context and 20 of prompt, mean over random prompts of ‖converted − in context‖ / ‖in context‖ and
its standard error. The shapes of the paper's models are not known to us, ours are in SIZES.

    python docs/experiments/table1_exactness.py [--quick | --largest]
"""
import time
import numpy as np
from common import command_line, progress, script
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
    """Parameters; relative errors (prompts, 2), converted and if the context is dropped."""
    rng, began, errors = np.random.default_rng(0), time.perf_counter(), []
    model = random_transformer(rng, vocab_size, d_model, n_layers, n_heads, dtype=dtype)
    weights = [model.embed, model.unembed, *(w for layer in model.layers for w in layer)]
    for _ in range(prompts):
        text = rng.integers(0, vocab_size, M + N)
        expected = forward(model, text)[0][M:]
        found = [forward(model, text[M:], b)[0] for b in (iclca(model, text[:M]), None)]
        errors.append(np.linalg.norm(found - expected, axis=(1, 2)) / np.linalg.norm(expected))
    progress(f"  {dtype.__name__}, d_model = {d_model}: {time.perf_counter() - began:.0f} s")
    return sum(w.size for w in weights), np.array(errors)


@script
def main(argv=None):
    parser = command_line(__doc__, quick="the smallest size alone, 10 prompts")
    parser.add_argument("--largest", action="store_true",
                        help="also 1.98 billion parameters, in float32 (8 GB, minutes)")
    options = parser.parse_args(argv)
    print(f"{'parameters':>13}{'d_model':>9}{'layers':>8}{'prompts':>9}"
          f"{'float32':>16}{'paper':>9}{'float64':>16}{'dropped':>9}")
    for *sizes, prompts, paper in SIZES[:1 if options.quick else 5 if options.largest else 4]:
        prompts, cells = 10 if options.quick else prompts, []
        for dtype in (np.float32, np.float64)[:2 if sizes[1] <= 1024 else 1]:
            size, errors = measure(*sizes, prompts, dtype)
            mean, deviation = errors.mean(axis=0), errors.std(axis=0) / prompts ** 0.5
            cells += [f"{mean[0]:.1e} ±{deviation[0]:.0e}"]
        print(f"{size:>13,}{sizes[1]:>9}{sizes[2]:>8}{prompts:>9}{cells[0]:>16}{paper:>9}"
              f"{''.join(cells[1:]):>16}{mean[1]:>9.2f}", flush=True)
