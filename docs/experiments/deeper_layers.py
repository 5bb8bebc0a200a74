"""Von Oswald et al. §3, App A.10: K linear self-attention layers as K steps of GD, and of GD++.

Tasks and loss as in one_gd_step.py. K = 1 ... 10 layers are built by hand from W₀ = 0, with eta
(and gamma) tuned on other tasks. GD++ also moves the inputs; the condition number is that of X Xᵀ
as the last layer sees it, median over the tasks. At the end a trained recurrent layer, used twice.

    python docs/experiments/deeper_layers.py [--quick]
"""
import numpy as np
from common import command_line, script
from iclca_ref import gd_plus_plus_weights, lsa
from one_gd_step import D, N, average, loss_and_gradients, tasks, train


def after(layers, batch, eta, gamma):   # context and query after GD++; with gamma = 0 plain GD
    context, query, _ = batch
    weights = gd_plus_plus_weights(np.zeros((1, D)), eta, gamma, N)
    for _ in range(layers):
        context, query = lsa(context, query, weights)
    return context, query


def losses(layers, batch, eta, gamma=0.0):   # (prediction − y)² of each task
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


@script
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
        weights = train(rng, 0.05 * rng.standard_normal((2, D + 1, D + 1)),
                        lambda w, *batch: np.array(loss_and_gradients(*w, 2, *batch)[1:]),
                        steps=6_000, batch=256, rate=0.005, clip=1.0)   # two layers can blow up
        found = loss_and_gradients(*weights, 2, *test)[0]
        print(f"\nrecurrent layer, trained, used twice: {average(found)}")
