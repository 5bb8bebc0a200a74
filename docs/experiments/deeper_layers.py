"""Von Oswald et al. §3, App A.10: K linear self-attention layers as K steps of GD, and of GD++.

Tasks as in one_gd_step.py (N = d = 10). For K = 1 ... 10 layers built by hand from W₀ = 0, with eta
(and gamma) tuned on one set of tasks and the loss measured on another: the mean of (prediction −
y)² at a new x. GD++ also moves the inputs; the condition number is that of X Xᵀ as the last layer
sees it, median over the tasks. At the end a recurrent layer, used twice and trained from random
matrices by gradients written down by hand, to be set beside two steps of each.

    python docs/experiments/deeper_layers.py [--quick]
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from iclca_ref import gd_plus_plus_weights, lsa
from one_gd_step import D, N, tasks

W0 = np.zeros((1, D))


def after(layers, batch, eta, gamma):
    """Context and query tokens after so many layers of GD++, which with gamma = 0 is plain GD."""
    context, query, _ = batch
    weights = gd_plus_plus_weights(W0, eta, gamma, N)
    for _ in range(layers):
        context, query = lsa(context, query, weights)
    return context, query


def loss(layers, batch, eta, gamma=0.0):
    """The mean of (prediction − y)², infinite where the steps diverge."""
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.mean((-after(layers, batch, eta, gamma)[1][:, 0, D] - batch[2]) ** 2)
    return error if np.isfinite(error) else np.inf


def tune(objective, start, factor=1.5, rounds=6):
    """Parameters of small objective: one at a time up or down by a factor that shrinks to 1."""
    best, value = list(start), objective(*start)
    for _ in range(rounds):
        moved = True
        while moved:
            moved = False
            for i in range(len(best)):
                for scale in factor, 1 / factor:
                    new = best[:i] + [best[i] * scale] + best[i + 1:]
                    if (new_value := objective(*new)) < value:
                        best, value, moved = new, new_value, True
        factor = factor ** 0.5
    return best


def condition_number(context):
    """The median over tasks of λ_max / λ_min of X Xᵀ."""
    x = context[..., :D]
    return np.median(np.linalg.cond(x) ** 2)


# ---- A recurrent layer, trained: e_j ← e_j + B S Aᵀ e_j, S = Σ e_i e_iᵀ over the context ---------

def step(tokens, A, B):
    """All tokens (batch, N + 1, D + 1), the query last, after one layer; and S, for later."""
    context = tokens[:, :N]
    S = context.swapaxes(1, 2) @ context
    return tokens + tokens @ A @ S @ B.T, S


def loss_and_gradients(A, B, layers, tokens, answer):
    """The mean of (prediction − y)² after so many uses of the layer; its gradients at A and B."""
    seen = []
    for _ in range(layers):
        before = tokens
        tokens, S = step(before, A, B)
        seen.append((before, S))
    r = -tokens[:, N, D] - answer
    d_tokens, d_A, d_B = np.zeros_like(tokens), 0 * A, 0 * B
    d_tokens[:, N, D] = -2 * r / len(r)
    for before, S in reversed(seen):
        d_T = d_tokens @ B                                       # with T = before A S
        d_B += np.einsum("bni,bnj->ij", d_tokens, before @ A @ S)
        d_A += np.einsum("bni,bnj->ij", before, d_T @ S)
        d_S = (before @ A).swapaxes(1, 2) @ d_T
        d_tokens = d_tokens + d_T @ S @ A.T
        d_tokens[:, :N] += before[:, :N] @ (d_S + d_S.swapaxes(1, 2))
    return np.mean(r * r), d_A, d_B


def train(rng, layers, steps, batch=256, rate=0.005):
    """Adam from small random matrices; gradients clipped to norm 1: two layers can blow up."""
    A, B = 0.05 * rng.standard_normal((2, D + 1, D + 1))
    m = v = np.zeros((2, D + 1, D + 1))
    for t in range(1, steps + 1):
        context, query, answer = tasks(rng, batch)
        _, *g = loss_and_gradients(A, B, layers, np.concatenate([context, query], axis=1), answer)
        g = np.array(g) / max(1, np.linalg.norm(g))
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        now = rate * np.cos(np.pi / 2 * (t - 1) / steps)
        A, B = np.array([A, B]) - now * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
    return A, B


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="K = 1 ... 3, few tasks, no training")
    quick = parser.parse_args(argv).quick
    rng = np.random.default_rng(0)
    tuning, test = tasks(rng, 200 if quick else 2_000), tasks(rng, 1_000 if quick else 10_000)
    print(f"{'K':>2} {'GD':>8} {'eta':>6} {'GD++':>9} {'eta':>6} {'gamma':>7} {'condition':>11}")
    eta, plus = [1.5], [1.5, 0.01]
    for layers in range(1, 4 if quick else 11):
        eta = tune(lambda eta: loss(layers, tuning, eta), eta)
        plus = tune(lambda eta, gamma: loss(layers, tuning, eta, gamma), plus)
        condition = condition_number(after(layers - 1, test, *plus)[0])
        print(f"{layers:>2} {loss(layers, test, *eta):>8.4f} {eta[0]:>6.2f} "
              f"{loss(layers, test, *plus):>9.4f} {plus[0]:>6.2f} {plus[1]:>7.4f} "
              f"{condition:>11,.0f}", flush=True)
    if quick:
        return
    A, B = train(rng, 2, 6_000)
    context, query, answer = test
    trained, _, _ = loss_and_gradients(A, B, 2, np.concatenate([context, query], axis=1), answer)
    print(f"\nrecurrent layer, trained, used twice: {trained:.4f}")


if __name__ == "__main__":
    main()
