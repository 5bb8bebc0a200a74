"""Von Oswald et al. §3, App A.10: K linear self-attention layers as K steps of GD, and of GD++.

Tasks as in one_gd_step.py (N = d = 10). For K = 1 ... 10 layers built by hand from W₀ = 0, with eta
(and gamma) tuned on one set of tasks and the loss measured on another: the mean of (prediction −
y)² at a new x and its standard error. GD++ also moves the inputs; the condition number is that of
X Xᵀ as the last layer sees it, median over the tasks. At the end a recurrent layer, used twice and
trained from random matrices by gradients written down by hand, beside two steps of each.

    python docs/experiments/deeper_layers.py [--quick]
"""
import numpy as np
from common import command_line, start
from iclca_ref import gd_plus_plus_weights, lsa
from one_gd_step import D, N, average, descend, tasks


def after(layers, batch, eta, gamma):
    """Context and query tokens after so many layers of GD++, which with gamma = 0 is plain GD."""
    context, query, _ = batch
    weights = gd_plus_plus_weights(np.zeros((1, D)), eta, gamma, N)
    for _ in range(layers):
        context, query = lsa(context, query, weights)
    return context, query


def losses(layers, batch, eta, gamma=0.0):
    """(prediction − y)² of each task."""
    return (-after(layers, batch, eta, gamma)[1][:, 0, D] - batch[2]) ** 2


def tune(layers, batch, best, factor=1.5):
    """Parameters of small mean loss: one at a time up or down by a factor that shrinks to 1."""
    with np.errstate(over="ignore", invalid="ignore"):    # where the steps diverge
        value = losses(layers, batch, *best).mean()
        while factor > 1.01:
            before = value
            for i in range(len(best)):
                for scale in factor, 1 / factor:
                    new = [*best[:i], best[i] * scale, *best[i + 1:]]
                    if (new_value := losses(layers, batch, *new).mean()) < value:
                        best, value = new, new_value
            factor = factor if value < before else factor ** 0.5
    return best


def loss_and_gradients(A, B, layers, tokens, answer):
    """(prediction − y)² of a recurrent layer, used so many times; its mean's gradients at A and B.

    e_j ← e_j + B S Aᵀ e_j for all tokens (batch, N + 1, D + 1), the query last, S = Σ e_i e_iᵀ over
    the context.
    """
    seen = []
    for _ in range(layers):
        S = tokens[:, :N].mT @ tokens[:, :N]
        seen.append((tokens, S))
        tokens = tokens + tokens @ A @ S @ B.T
    r = -tokens[:, N, D] - answer
    d_tokens, d_A, d_B = np.zeros_like(tokens), 0 * A, 0 * B
    d_tokens[:, N, D] = -2 * r / len(r)
    for before, S in reversed(seen):
        d_T = d_tokens @ B                                       # with T = before A S
        d_B += (d_tokens.mT @ before @ A @ S).sum(axis=0)
        d_A += (before.mT @ d_T @ S).sum(axis=0)
        d_S = (before @ A).mT @ d_T
        d_tokens = d_tokens + d_T @ S @ A.T
        d_tokens[:, :N] += before[:, :N] @ (d_S + d_S.mT)
    return r * r, d_A, d_B


def train(rng, layers, steps):
    """From small random matrices; gradients clipped to norm 1: two layers can blow up."""
    def gradient(weights):
        *tokens, answer = tasks(rng, 256)
        return np.array(loss_and_gradients(*weights, layers, np.hstack(tokens), answer)[1:])

    start = 0.05 * rng.standard_normal((2, D + 1, D + 1))
    return descend(start, gradient, steps, rate=0.005, clip=1.0)


def main(argv=None):
    quick = command_line(__doc__, quick="K up to 3, few tasks, no training").parse_args(argv).quick
    rng = np.random.default_rng(0)
    tuning, test = tasks(rng, 200 if quick else 2_000), tasks(rng, 1_000 if quick else 10_000)
    print(f"{'K':>2}{'GD':>15}{'eta':>6}{'GD++':>16}{'eta':>7}{'gamma':>8}{'condition':>11}")
    gd, plus = [1.5], [1.5, 0.01]
    for layers in range(1, 4 if quick else 11):
        gd, plus = tune(layers, tuning, gd), tune(layers, tuning, plus)
        x = after(layers - 1, test, *plus)[0][..., :D]
        print(f"{layers:>2}{average(losses(layers, test, *gd)):>15}{gd[0]:>6.2f}"
              f"{average(losses(layers, test, *plus)):>16}{plus[0]:>7.2f}{plus[1]:>8.4f}"
              f"{np.median(np.linalg.cond(x) ** 2):>11,.0f}", flush=True)
    if not quick:
        *tokens, answer = test
        found = loss_and_gradients(*train(rng, 2, 6_000), 2, np.hstack(tokens), answer)[0]
        print(f"\nrecurrent layer, trained, used twice: {average(found)}")


if __name__ == "__main__":
    start(main)
