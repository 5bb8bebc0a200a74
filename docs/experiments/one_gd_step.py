"""Von Oswald et al., Figure 2: one trained linear self-attention layer is one gradient step.

Tasks: N = 10 examples, x ~ U(−1, 1) in 10 dimensions, y = w·x with w ~ N(0, I). The layer starts
from small random W_Q, W_K, W_V, P and is trained with Adam, by gradients written down by hand, on
batches of fresh tasks; the loss is the mean of (prediction − y)² at a new x. Beside it stands the
step from W₀ = 0 with the learning rate that is best for it.

    python docs/experiments/one_gd_step.py [--quick]
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from icl_vs_finetuning import cosine
from iclca_ref import LSA, gd_weights, lsa

N, D = 10, 10


def tasks(rng, batch):
    """Context tokens (batch, N, D + 1), queries (batch, 1, D + 1) with y = 0, answers (batch,)."""
    x, w = rng.uniform(-1, 1, (batch, N + 1, D)), rng.standard_normal((batch, D, 1))
    tokens = np.concatenate([x, x @ w], axis=-1)
    query = tokens[:, N:] * ([1] * D + [0])
    return tokens[:, :N], query, tokens[:, N, D]


def predict(weights, context, query):
    """Minus the query's y-part after the layer: (batch,)."""
    return -lsa(context, query, weights)[1][:, 0, D]


def gradients(weights, context, query, answer):
    """The gradient of the mean of (prediction − answer)² with respect to the four matrices.

    With G = Σ e_i e_iᵀ the layer adds P W_V G W_Kᵀ W_Q e_q to the query token e_q; the prediction
    is minus the y-part. The rest is the chain rule.
    """
    w_q, w_k, w_v, p = weights
    e = query[:, 0]
    G = context.swapaxes(1, 2) @ context
    q = e @ w_q.T                              # W_Q e
    u = q @ w_k                                # W_Kᵀ q
    g = (G @ u[..., None])[..., 0]             # G u
    s = g @ w_v.T                              # W_V g
    d_o = np.zeros_like(e)
    d_o[:, D] = -2 * (predict(weights, context, query) - answer) / len(e)
    d_s = d_o @ p
    d_g = d_s @ w_v
    d_u = (G @ d_g[..., None])[..., 0]
    d_q = d_u @ w_k.T
    return LSA(w_q=d_q.T @ e, w_k=q.T @ d_u, w_v=d_s.T @ g, p=d_o.T @ s)


def train(rng, steps, batch, rate=0.01, b1=0.9, b2=0.99):
    """Adam, with a learning rate that falls to 0 as a quarter of a cosine."""
    weights = LSA(*rng.normal(0, 0.1, (4, D + 1, D + 1)))
    m = v = LSA(0, 0, 0, 0)
    for t in range(1, steps + 1):
        g = gradients(weights, *tasks(rng, batch))
        m = LSA(*(b1 * a + (1 - b1) * b for a, b in zip(m, g)))
        v = LSA(*(b2 * a + (1 - b2) * b * b for a, b in zip(v, g)))
        now = rate * np.cos(np.pi / 2 * (t - 1) / steps)
        weights = LSA(*(w - now * (a / (1 - b1**t)) / (np.sqrt(b / (1 - b2**t)) + 1e-8)
                        for w, a, b in zip(weights, m, v)))
    return weights


def best_rate(context, query, answer):
    """The best learning rate of the step from W₀ = 0: its prediction is eta times that of 1."""
    one = predict(gd_weights(np.zeros((1, D)), 1, N), context, query)
    return one @ answer / (one @ one)


def sensitivities(weights, context):
    """∂ prediction / ∂ x of the query: (batch, D), from D unit queries, since it is linear."""
    units = np.broadcast_to(np.eye(D, D + 1), (len(context), D, D + 1))
    return -lsa(context, units, weights)[1][:, :, D]


def picture(matrix):
    """A matrix in block characters, darker for larger entries, with - in front of negative ones."""
    scale = abs(matrix).max()
    shade = np.rint(abs(matrix) / scale * 4).astype(int)
    return ["".join((" -"[int(a < 0 and s > 0)] + " ░▒▓█"[s]) for a, s in zip(*row))
            for row in zip(matrix, shade)]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="300 steps instead of 5,000")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default 0)")
    arguments = parser.parse_args(argv)
    rng = np.random.default_rng(arguments.seed)
    steps, batch, tests = (300, 256, 5_000) if arguments.quick else (5_000, 512, 50_000)
    weights = train(rng, steps, batch)
    test = context, query, answer = tasks(rng, tests)
    eta = best_rate(*test)
    step = gd_weights(np.zeros((1, D)), eta, N)

    trained, descended = predict(weights, context, query), predict(step, context, query)
    s_trained, s_step = sensitivities(weights, context), sensitivities(step, context)
    losses = [np.mean((p - answer) ** 2) for p in (trained, descended)]
    # Only products are determined. The y-row of P W_V reads off the targets, −η/N times if W_Kᵀ W_Q
    # is scaled to 1.
    products = weights.w_k.T @ weights.w_q, (weights.p @ weights.w_v)
    diagonal = -products[1][D, D] * np.diag(products[0])[:D]

    print(f"{steps:,} steps of Adam, batches of {batch} fresh tasks; "
          f"measured on {tests:,} tasks\n")
    print(f"loss of the trained layer          {losses[0]:.5f}")
    print(f"loss of one step, best eta = {eta:.3f} {losses[1]:.5f}")
    print(f"relative difference                {losses[0] / losses[1] - 1:+.3%}\n")
    print("Figure 2's measures of alignment")
    print(f"difference of predictions          {np.mean(abs(trained - descended)):.4f}"
          f"  (mean |y| {np.mean(abs(answer)):.3f})")
    print(f"cosine of sensitivities            {np.mean(cosine(s_trained, s_step)):.5f}")
    print("difference of sensitivities        "
          f"{np.mean(np.linalg.norm(s_trained - s_step, axis=-1)):.4f}"
          f"  (mean norm {np.mean(np.linalg.norm(s_step, axis=-1)):.3f})\n")
    print(f"diagonal of the products           {diagonal.mean():.4f} ± {diagonal.std():.4f}"
          f"  (eta/N = {eta / N:.4f})\n")
    print("W_Kᵀ W_Q, trained" + " " * 11 + "and constructed")
    sign = np.sign(products[0].trace())
    for left, right in zip(picture(sign * products[0]), picture(step.w_k.T @ step.w_q)):
        print(f"|{left}|    |{right}|")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8
    main()
