"""Dai et al. §4: how alike are in-context learning and fine-tuning? And the caution of Deutch et al. 2024.

A causal linear-attention model of two layers reads regression tokens (x, y): demonstrations, then query tokens
(x, −W₀ x), the last of which is to be classified by the sign of minus its y-part; labels are the sign of w·x. Three
settings: zero-shot (query tokens alone), in-context (demonstrations in front), and fine-tuned (gradient descent on W_K
and W_V over the demonstrations, each alone, then zero-shot). Dai's three measures compare the second with the third, for
a model whose layers are built to descend a gradient (GD++, Appendix A.10) and for untrained ones with random matrices.

    python docs/experiments/icl_vs_finetuning.py [--quick]
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from iclca_ref import rec_to_ftp, sim_am, sim_aou
from linear_transformer import LSA, gd_plus_plus_weights

D, N, QUERIES, LAYERS = 8, 24, 5, 2
RATES = 0.1, 0.3, 1, 3, 10, 30


def layer(tokens, weights):
    """Causal linear self-attention: tokens (tasks, batch, n, D + 1) and matrices (tasks, 1, ...) to outputs and scores.

    o_i = Σ_{j≤i} (W_Q e_i · W_K e_j) P W_V e_j; the layer adds it to e_i.
    """
    w_q, w_k, w_v, p = (w.swapaxes(-1, -2) for w in weights)
    scores = np.tril(tokens @ w_q @ (tokens @ w_k).swapaxes(-1, -2))
    return scores @ tokens @ w_v @ p, scores


def run(tokens, layers):
    """Predictions (tasks, batch) of the last token, and lists over layers of its outputs and scores, and of the inputs."""
    outputs, scores, inputs = [], [], []
    for weights in layers:
        inputs.append(tokens)
        o, s = layer(tokens, weights)
        tokens = tokens + o
        outputs.append(o[:, :, -1])
        scores.append(s[:, :, -1])
    return -tokens[:, :, -1, D], outputs, scores, inputs


def gradients(tokens, targets, layers):
    """The gradients of ½ mean (prediction − target)² over the batch with respect to each layer's W_K and W_V."""
    predictions, _, _, inputs = run(tokens, layers)
    d = np.zeros_like(tokens)
    d[:, :, -1, D] = -(predictions - targets) / targets.shape[1]
    found = []
    for e, weights in zip(reversed(inputs), reversed(layers)):
        w_q, w_k, w_v, p = weights
        q, k, v = (e @ w.swapaxes(-1, -2) for w in (w_q, w_k, w_v))
        d_o = d @ p                                                   # with o = tril(q kᵀ) v
        d_scores = np.tril(d_o @ v.swapaxes(-1, -2))
        d_v = np.tril(q @ k.swapaxes(-1, -2)).swapaxes(-1, -2) @ d_o
        d_q, d_k = d_scores @ k, d_scores.swapaxes(-1, -2) @ q
        found.append([(g.swapaxes(-1, -2) @ e).sum(axis=1, keepdims=True) for g in (d_k, d_v)])
        d = d + d_q @ w_q + d_k @ w_k + d_v @ w_v
    return found[::-1]


def fine_tune(tokens, targets, layers, rate, steps=20):
    """Gradient descent on W_K and W_V of all layers, for each task on its own; gradients are clipped to norm 1."""
    def clipped(g):
        return g / np.maximum(1, np.linalg.norm(g, axis=(-2, -1), keepdims=True))

    for _ in range(steps):
        layers = [weights._replace(w_k=weights.w_k - rate * clipped(d_k), w_v=weights.w_v - rate * clipped(d_v))
                  for weights, (d_k, d_v) in zip(layers, gradients(tokens, targets, layers))]
    return layers


def compare(rng, layers, w0, n_tasks, rate):
    """For zero_shot, icl and fine_tuned: attention outputs, attention scores and whether the answer was right, by task."""
    x, w = rng.uniform(-1, 1, (n_tasks, 1, N + QUERIES, D)), rng.standard_normal((n_tasks, 1, D, 1))
    labels = np.sign(x @ w)
    queries = np.concatenate([x, -x @ w0.T], axis=-1)                # (x, −W₀ x), the label unknown
    demonstrations = np.concatenate([x, labels], axis=-1)[:, :, :N]
    layers = [LSA(*(np.broadcast_to(m, (n_tasks, 1, *m.shape)) for m in weights)) for weights in layers]
    each_alone = queries[:, 0, :N, None]                              # one sequence of one token per demonstration
    tuned = fine_tune(each_alone, labels[:, 0, :N, 0], layers, rate)

    settings = {"zero_shot": (queries[:, :, N:], layers), "fine_tuned": (queries[:, :, N:], tuned),
                "icl": (np.concatenate([demonstrations, queries[:, :, N:]], axis=2), layers)}
    outputs, scores, right = {}, {}, {}
    for name, (tokens, model) in settings.items():
        predictions, o, s, _ = run(tokens, model)
        outputs[name] = np.stack(o, axis=2)[:, 0]                     # (tasks, layers, width)
        scores[name] = np.stack([a[:, 0, None, -QUERIES:] for a in s], axis=1)   # (tasks, layers, 1 head, query tokens)
        right[name] = np.sign(predictions[:, 0]) == labels[:, 0, -1, 0]
    return outputs, scores, right


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 tasks and 3 models instead of 1,000 and 10")
    quick = parser.parse_args(argv).quick
    n_tasks, models = (100, 3) if quick else (1_000, 10)
    rng = np.random.default_rng(0)

    def built():
        w0 = 0.3 * rng.standard_normal((1, D))
        return [gd_plus_plus_weights(w0, 1.5, 0.02, N)] * LAYERS, w0

    def untrained():
        _, w0 = built()
        return [LSA(*(m * np.linalg.norm(like) / np.linalg.norm(m)                      # as large as the built ones
                      for m, like in zip(rng.standard_normal((4, D + 1, D + 1)), gd_plus_plus_weights(w0, 1.5, 0.02, N))))
                for _ in range(LAYERS)], w0

    def measure(model):
        """The three measures and the three accuracies, at the rate that serves fine-tuning best on other tasks."""
        accuracies = [compare(rng, *model, min(100, n_tasks // 3), rate)[2]["fine_tuned"].mean() for rate in RATES]
        outputs, scores, right = compare(rng, *model, n_tasks, RATES[int(np.argmax(accuracies))])
        return (sim_aou(**outputs), sim_am(scores["icl"], scores["fine_tuned"]), rec_to_ftp(**right),
                *(right[name].mean() for name in ("zero_shot", "icl", "fine_tuned")))

    columns = "SimAOU", "SimAM", "Rec2FTP", "zero-shot", "ICL", "tuned"
    print(f"{n_tasks:,} tasks for each of {models} models; mean ± standard deviation over models\n")
    print(f"{'':18}" + "".join(f"{c:>13}" for c in columns))
    for label, make in ("built to descend", built), ("untrained", untrained):
        runs = np.array([measure(make()) for _ in range(models)])
        print(f"{label:18}" + "".join(f"{m:>7.2f} ±{s:>4.2f}" for m, s in zip(runs.mean(axis=0), runs.std(axis=0))))


if __name__ == "__main__":
    main()
