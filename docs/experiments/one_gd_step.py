"""Von Oswald et al., Figure 2: one trained linear self-attention layer is one gradient step.

Tasks: N = 10 examples, x ~ U(−1, 1) in 10 dimensions, y = w·x with w ~ N(0, I). The layer starts
from small random W_Q, W_K, W_V, P and is trained with Adam on fresh tasks; the loss is the mean of
(prediction − y)² at a new x. Beside it stands the step from W₀ = 0 at the rate that is best for it.

    python docs/experiments/one_gd_step.py [--quick]
"""
import numpy as np
from common import command_line, mean_and_error, script
from backward import adam
from iclca_ref import LSA, gd_weights, lsa
N, D = 10, 10


def tasks(rng, batch):
    """Context tokens (batch, N, D + 1), queries (batch, 1, D + 1) with y = 0, answers (batch,)."""
    x, w = rng.uniform(-1, 1, (batch, N + 1, D)), rng.standard_normal((batch, D, 1))
    tokens = np.concatenate([x, x @ w], axis=-1)
    query = tokens[:, N:] * ([1] * D + [0])
    return tokens[:, :N], query, tokens[:, N, D]


def predict(weights, context, query):   # minus the y-part of queries after the layer: (batch, n)
    return -lsa(context, query, weights)[1][..., D]


def loss_and_gradients(A, B, layers, context, query, answer):
    """(prediction − y)² of a recurrent layer, used so many times; its mean's gradients at A and B.

    e_j ← e_j + B S Aᵀ e_j for all tokens, S = Σ e_i e_iᵀ over the context.
    """
    tokens, seen = np.hstack([context, query]), []
    for _ in range(layers):
        S = tokens[:, :N].mT @ tokens[:, :N]
        T = tokens @ A @ S
        seen.append((tokens, S, T))
        tokens = tokens + T @ B.T
    r = -tokens[:, N, D] - answer
    d_tokens, d_A, d_B = np.zeros_like(tokens), 0 * A, 0 * B
    d_tokens[:, N, D] = -2 * r / len(r)
    for before, S, T in reversed(seen):
        d_T = d_tokens @ B
        d_B += np.tensordot(d_tokens, T, [[0, 1]] * 2)
        d_A += np.tensordot(before, d_T @ S, [[0, 1]] * 2)
        d_S = (before @ A).mT @ d_T
        d_tokens = d_tokens + d_T @ S @ A.T
        d_tokens[:, :N] += before[:, :N] @ (d_S + d_S.mT)
    return r * r, d_A, d_B


def gradients(weights, *batch):   # of the four matrices: A = W_Qᵀ W_K and B = P W_V, used once
    w_q, w_k, w_v, p = weights
    _, d_A, d_B = loss_and_gradients(w_q.T @ w_k, p @ w_v, 1, *batch)
    return LSA(w_q=w_k @ d_A.T, w_k=w_q @ d_A, w_v=p.T @ d_B, p=d_B @ w_v.T)


def train(rng, weights, gradients, steps, batch, rate, clip=np.inf):
    """The weights after Adam, with a learning rate that falls to 0 as a quarter of a cosine."""
    moments = None
    for t in range(steps):
        now, d = rate * np.cos(np.pi / 2 * t / steps), gradients(weights, *tasks(rng, batch))
        weights, moments = adam(weights, d, now, moments, (0.9, 0.99), clip)
    return weights


def picture(matrix):   # in block characters, darker for larger entries, - before negative ones
    shades = np.rint(abs(matrix) / abs(matrix).max() * 4).astype(int) * np.where(matrix < 0, -1, 1)
    return ["".join(" -"[int(s < 0)] + " ░▒▓█"[abs(s)] for s in row) for row in shades]


def average(x):   # the mean over the tasks, and its standard error
    return "{:.4f} ± {:.1g}".format(*mean_and_error(x))


@script
def main(argv=None):
    quick = command_line(__doc__, quick="300 steps instead of 5,000").parse_args(argv).quick
    steps, batch, tests = (300, 256, 5_000) if quick else (5_000, 512, 50_000)
    rng, size = np.random.default_rng(0), (4, D + 1, D + 1)
    weights = train(rng, LSA(*rng.normal(0, 0.1, size)), gradients, steps, batch, rate=0.01)
    context, query, answer = tasks(rng, tests)
    one = predict(gd_weights(np.zeros((1, D)), 1, N), context, query)[:, 0]
    eta = one @ answer / (one @ one)   # from W₀ = 0 a step's prediction is eta times that of rate 1
    step = gd_weights(np.zeros((1, D)), eta, N)
    ours, theirs = (predict(w, context, query)[:, 0] for w in (weights, step))
    units = np.broadcast_to(np.eye(D, D + 1), (tests, D, D + 1))   # predictions are linear, so ∂/∂x
    s, s_step = (predict(w, context, units) for w in (weights, step))
    cosines = np.vecdot(s, s_step) / np.sqrt(np.vecdot(s, s) * np.vecdot(s_step, s_step))
    loss, descended = (ours - answer) ** 2, (theirs - answer) ** 2
    # Only products are determined: the y-row of P W_V is −η/N times the targets if W_Kᵀ W_Q is 1.
    scores, values = weights.w_k.T @ weights.w_q, weights.p @ weights.w_v
    diagonal = -values[D, D] * np.diag(scores)[:D]
    print(f"{steps:,} steps of Adam, batches of {batch} fresh tasks; measured on {tests:,} tasks\n")
    for name, x in {
            "loss of the trained layer": loss, f"loss of one step, best eta = {eta:.3f}": descended,
            "relative difference, %": 100 * (loss - descended) / descended.mean(),
            "difference of predictions": abs(ours - theirs), "mean |y|": abs(answer),
            "cosine of sensitivities": cosines,
            "difference of sensitivities": np.linalg.norm(s - s_step, axis=-1),
            "mean norm of sensitivities": np.linalg.norm(s_step, axis=-1),
            "diagonal of the products": f"{diagonal.mean():.4f}, deviation {diagonal.std():.4f}",
            "eta/N": f"{eta / N:.4f}"}.items():
        print(f"{name:<36}{x if isinstance(x, str) else average(x)}")
    print("\nW_Kᵀ W_Q, trained" + " " * 11 + "and constructed")
    for rows in zip(*map(picture, (scores * np.sign(scores.trace()), step.w_k.T @ step.w_q))):
        print("|{}|    |{}|".format(*rows))
