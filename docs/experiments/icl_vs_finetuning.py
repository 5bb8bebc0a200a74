"""Dai et al. §4: how alike are in-context learning and fine-tuning? With Deutch et al.'s caution.

A linear-attention model of two layers reads regression tokens (x, y): demonstrations, then query
tokens (x, 0), the last of which is put into class +1 if minus its y-part is at least 0; labels are
the sign of w·x. Three settings: zero-shot (query tokens alone), in-context (demonstrations in
front), and fine-tuned (gradient descent on W_K and W_V over the demonstrations, each alone, then
zero-shot). Dai's three measures compare the second with the third, for a model whose layers are
built to descend a gradient and for untrained ones with random matrices.

Keys and values come from the demonstrations alone, as in von Oswald et al.'s Proposition 1, so in
context the built model is two layers of GD++ from W₀ = 0 (Appendix A.10), exactly. Without
demonstrations the query tokens read one another and themselves, as in Dai et al.'s W_ZSL.

    python docs/experiments/icl_vs_finetuning.py [--quick]
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from iclca_ref import LSA, gd_plus_plus_weights

D, N, QUERIES, LAYERS = 8, 24, 5, 2
ETA, GAMMA = 1.5, 0.02
RATES = 0.1, 0.3, 1, 3, 10, 30


# ---- The measures --------------------------------------------------------------------------------

def unit(a):
    """a / ‖a‖ over the last axis, for entries of any finite size: a (..., d).

    Raises ValueError for vectors of norm 0 or without a finite norm, and if there are none.
    """
    largest = abs(a).max(axis=-1, keepdims=True, initial=0)
    if not largest.size or not ((largest > 0) & (largest < np.inf)).all():
        raise ValueError(f"a {a.shape} must hold vectors, of a norm that is neither 0, inf nor NaN")
    a = a / largest  # so that no square overflows or vanishes
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


def cosine(a, b):
    """a·b / (‖a‖ ‖b‖) over the last axis: a and b (..., d) of one shape. Raises as `unit` does."""
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape, got {a.shape} and {b.shape}")
    return (unit(a) * unit(b)).sum(axis=-1)


def sim_aou(icl, fine_tuned, zero_shot):
    """SimAOU: how alike are the two updates of the attention output, ICL's and fine-tuning's?

    The mean cosine of icl − zero_shot and fine_tuned − zero_shot. Each array is (examples, layers,
    width): the last token's attention output in one setting, scaled to norm 1 here. Both updates
    share zero_shot, so three independent random directions do not give 0: they give 1/2 in the
    limit of large width, less below (about 0.40 at width 2, 0.485 at 9). Raises ValueError for
    different shapes and for outputs or updates of norm 0. Source: Dai et al. §4.
    """
    if not icl.shape == fine_tuned.shape == zero_shot.shape:
        raise ValueError("icl, fine_tuned and zero_shot must have one shape, "
                         f"got {icl.shape}, {fine_tuned.shape}, {zero_shot.shape}")
    icl, fine_tuned, zero_shot = unit(icl), unit(fine_tuned), unit(zero_shot)
    return cosine(icl - zero_shot, fine_tuned - zero_shot).mean()


def sim_am(icl, fine_tuned):
    """SimAM: the mean cosine of the last token's attention scores to the query tokens.

    Each array is (examples, layers, heads, query tokens), before softmax. Raises ValueError for
    different shapes and for scores that are all 0. Source: Dai et al. §4.
    """
    return cosine(icl, fine_tuned).mean()


def rec_to_ftp(icl, fine_tuned, zero_shot):
    """Rec2FTP: of the examples that fine-tuning corrects, the share that ICL corrects too.

    Corrected is what was wrong zero-shot and is right after. Each array is (examples,) of
    booleans: whether the answer was right. Raises TypeError for anything but booleans, ValueError
    for different shapes and if fine-tuning corrects nothing. Source: Dai et al. §4.

    >>> yes, no = True, False
    >>> rec_to_ftp(*map(np.array, ([yes, no], [yes, yes], [no, no])))
    0.5
    """
    if not icl.shape == fine_tuned.shape == zero_shot.shape:
        raise ValueError("icl, fine_tuned and zero_shot must have one shape, "
                         f"got {icl.shape}, {fine_tuned.shape}, {zero_shot.shape}")
    if not icl.dtype == fine_tuned.dtype == zero_shot.dtype == bool:
        raise TypeError("icl, fine_tuned and zero_shot must be booleans, "
                        f"got {icl.dtype}, {fine_tuned.dtype}, {zero_shot.dtype}")
    corrected = fine_tuned & ~zero_shot
    if not corrected.any():
        raise ValueError(f"fine-tuning corrects none of the {len(corrected)} examples")
    return float(icl[corrected].mean())


# ---- The model -----------------------------------------------------------------------------------
#
# Who reads whom is a matrix (n, n) of 0 and 1, in each of the three settings another one.

EACH_ALONE, UP_TO_ITSELF = np.eye(N), np.tri(QUERIES)
DEMONSTRATIONS = np.ones((N + QUERIES, 1)) * (np.arange(N + QUERIES) < N)


def run(tokens, layers, reads):
    """The predictions (tasks, n) of all tokens, and what happened in each layer.

        e_i ← e_i + o_i,    o_i = Σ_j (W_Q e_i · W_K e_j) P W_V e_j    over the j that i reads

    tokens (tasks, n, D + 1); a layer is an LSA of matrices (tasks, ...). The lists over layers:
    outputs and scores of the last token, inputs. Scores are W_Q e_i · W_K e_j, read or not.
    """
    outputs, scores, inputs = [], [], []
    for weights in layers:
        w_q, w_k, w_v, p = (w.swapaxes(-1, -2) for w in weights)
        s = tokens @ w_q @ (tokens @ w_k).swapaxes(-1, -2)
        o = (s * reads) @ tokens @ w_v @ p
        inputs.append(tokens)
        outputs.append(o[:, -1])
        scores.append(s[:, -1])
        tokens = tokens + o
    return -tokens[..., D], outputs, scores, inputs


def in_context(demonstrations, queries, layers):
    """`run` on demonstrations (tasks, N, D + 1), then query tokens: all read the demonstrations."""
    return run(np.concatenate([demonstrations, queries], axis=1), layers, DEMONSTRATIONS)


def gradients(tokens, targets, layers, reads):
    """The gradients of ½ mean (prediction − target)² with respect to each layer's W_K and W_V.

    The mean is over the tokens of a task; targets (tasks, n), the rest as for `run`.
    """
    predictions, _, _, inputs = run(tokens, layers, reads)
    d = np.zeros_like(tokens)
    d[..., D] = -(predictions - targets) / targets.shape[-1]
    found = []
    for e, (w_q, w_k, w_v, p) in zip(reversed(inputs), reversed(layers)):
        q, k, v = (e @ w.swapaxes(-1, -2) for w in (w_q, w_k, w_v))
        d_o = d @ p                                                  # with o = (reads · q kᵀ) v
        d_scores = d_o @ v.swapaxes(-1, -2) * reads
        d_v = (q @ k.swapaxes(-1, -2) * reads).swapaxes(-1, -2) @ d_o
        d_q, d_k = d_scores @ k, d_scores.swapaxes(-1, -2) @ q
        found.append([g.swapaxes(-1, -2) @ e for g in (d_k, d_v)])
        d = d + d_q @ w_q + d_k @ w_k + d_v @ w_v
    return found[::-1]


def fine_tune(tokens, targets, layers, rate, steps=20):
    """Gradient descent on all W_K and W_V, each token alone, gradients clipped to norm 1."""
    def clipped(g):
        return g / np.maximum(1, np.linalg.norm(g, axis=(-2, -1), keepdims=True))

    for _ in range(steps):
        found = gradients(tokens, targets, layers, EACH_ALONE)
        layers = [LSA(w_q, w_k - rate * clipped(d_k), w_v - rate * clipped(d_v), p)
                  for (w_q, w_k, w_v, p), (d_k, d_v) in zip(layers, found)]
    return layers


def built():
    """The layers that descend a gradient: GD++ from W₀ = 0, twice."""
    return [gd_plus_plus_weights(np.zeros((1, D)), ETA, GAMMA, N)] * LAYERS


def untrained(rng):
    """Layers of random matrices, each as large as the built one's."""
    return [LSA(*(np.linalg.norm(like) / np.linalg.norm(m) * m
                  for m, like in zip(rng.standard_normal((4, D + 1, D + 1)), weights)))
            for weights in built()]


# ---- The comparison ------------------------------------------------------------------------------

def tasks(rng, n):
    """Demonstrations (n, N, D + 1), query tokens (n, QUERIES, D + 1), labels (n, N + QUERIES)."""
    x, w = rng.uniform(-1, 1, (n, N + QUERIES, D)), rng.standard_normal((n, D, 1))
    labels = np.sign(x @ w)
    demonstrations = np.concatenate([x, labels], axis=-1)[:, :N]
    queries = np.concatenate([x, 0 * labels], axis=-1)[:, N:]
    return demonstrations, queries, labels[..., 0]


def compare(rng, layers, n_tasks, rate):
    """Outputs, scores, and whether the answer was right: zero_shot, fine_tuned and icl, by task."""
    demonstrations, queries, labels = tasks(rng, n_tasks)
    layers = [LSA(*(np.broadcast_to(m, (n_tasks, *m.shape)) for m in w)) for w in layers]
    tuned = fine_tune(demonstrations * ([1] * D + [0]), labels[:, :N], layers, rate)

    settings = {"zero_shot": run(queries, layers, UP_TO_ITSELF),
                "fine_tuned": run(queries, tuned, UP_TO_ITSELF),
                "icl": in_context(demonstrations, queries, layers)}
    outputs, scores, right = {}, {}, {}
    for name, (predictions, o, s, _) in settings.items():
        outputs[name] = np.stack(o, axis=1)                          # (tasks, layers, width)
        scores[name] = np.stack(s, axis=1)[:, :, None, -QUERIES:]    # (..., 1 head, query tokens)
        right[name] = (predictions[:, -1] >= 0) == (labels[:, -1] > 0)
    return outputs, scores, right


def measure(rng, layers, n_tasks):
    """The three measures and accuracies, at the rate that tunes best on other tasks."""
    accuracies = [compare(rng, layers, min(100, n_tasks // 3), rate)[2]["fine_tuned"].mean()
                  for rate in RATES]
    outputs, scores, right = compare(rng, layers, n_tasks, RATES[int(np.argmax(accuracies))])
    return (sim_aou(**outputs), sim_am(scores["icl"], scores["fine_tuned"]), rec_to_ftp(**right),
            *(right[name].mean() for name in ("zero_shot", "icl", "fine_tuned")))


def noise(rng, n_tasks):
    """The measures and accuracies of three settings that know nothing of one another."""
    outputs = rng.standard_normal((3, n_tasks, LAYERS, D + 1))
    scores = rng.standard_normal((2, n_tasks, LAYERS, 1, QUERIES))
    zero_shot, icl, tuned = right = rng.random((3, n_tasks)) < 0.5
    return (sim_aou(*outputs), sim_am(*scores), rec_to_ftp(icl, tuned, zero_shot),
            *right.mean(axis=1))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 tasks and 2 models")
    n_tasks, models = (100, 2) if parser.parse_args(argv).quick else (1_000, 10)
    rng = np.random.default_rng(0)
    columns = "SimAOU", "SimAM", "Rec2FTP", "zero-shot", "ICL", "tuned"
    print(f"{n_tasks:,} tasks for each of {models} models; mean ± standard deviation over models\n")
    print(f"{'':18}" + "".join(f"{c:>13}" for c in columns))
    for label, call in (("built to descend", lambda: measure(rng, built(), n_tasks)),
                        ("untrained", lambda: measure(rng, untrained(rng), n_tasks)),
                        ("noise", lambda: noise(rng, n_tasks))):
        runs = np.array([call() for _ in range(models)])
        print(f"{label:18}" + "".join(f"{m:>7.2f} ±{s:>4.2f}"
                                      for m, s in zip(runs.mean(axis=0), runs.std(axis=0))))


if __name__ == "__main__":
    main()
