"""ICLCA §6.3: biases that are trained with the model; and a context that is learned as biases.

First, b_KV and b_D are trained from zero with trained_induction.py's model, the same texts in all
arms. Then biases alone are trained to give a frozen model's in-context answers.

    python docs/experiments/trained_biases.py [--quick]
"""
from itertools import product
import numpy as np
from common import command_line, mean_and_error, progress, script
from backward import adam, gradients
from iclca_ref import iclca
from linear_transformer import Bias, forward, softmax
from trained_induction import QUICK, SHORT, TRIGGER, asked, texts, train, trained
ARMS = {"none": None,
        "b_KV alone": lambda biases: [Bias(kv, 0 * d) for kv, d in biases],
        "b_D >= 0": lambda biases: [Bias(kv, np.maximum(d, 0)) for kv, d in biases],
        "b_D signed": lambda biases: biases}
ZEROS = [Bias(np.zeros((2, 16, 16), np.float32), np.zeros((2, 16), np.float32))] * 2   # by layer
COLUMNS = "half", "99%", "last loss", "worst loss", "accuracy"


def run(seed, constrain, steps):
    """COLUMNS of one training: steps until half and 99% of 256 other texts are answered (NaN:
    never), the mean of the last 50 losses, the worst of the second half, the last accuracy.
    """
    context, _, answers = texts(np.random.default_rng([seed, 1]), 256, SHORT["length"])
    losses, found = [], [0.0]
    for step, _, loss, model, biases in train(seed, **SHORT | {"steps": steps}, constrain=constrain,
                                              biases=constrain and ZEROS):
        losses.append(loss)
        if step % 10 == 0:
            logits, _ = forward(model, asked(context), biases)
            found.append((logits[:, -1].argmax(axis=-1) == answers).mean())
    def reached(level):
        i = np.argmax(np.array(found) >= level)   # 0 if none is
        return 10 * (i - (found[i] - level) / (found[i] - found[i - 1])) if i else np.nan
    return reached(0.5), reached(0.99), np.mean(losses[-50:]), max(losses[steps // 2:]), found[-1]


def summary(values):   # means and standard errors of the columns, over seeds that are not NaN
    columns = [column[np.isfinite(column)] for column in np.transpose(values)]
    return "".join("{:>9.3g} ±{:<6.2g}".format(*mean_and_error(c)) if len(c) > 1
                   else f"{'never':>9}{'':8}" for c in columns).rstrip()


def learn_a_context(model, rng, steps):
    """Biases trained on the model's in-context answers to prompts of six tokens: (steps, KL on 100
    other prompts, each layer's cosine with the exact b_KV); the exact biases come last.
    """
    exact, biases, moments = iclca(model, texts(rng, 1, SHORT["length"])[0][0]), ZEROS, None
    def answers(tokens, biases):
        return softmax(forward(model, tokens, biases)[0])
    def now(biases):
        p, q = answers(other, exact), answers(other, biases)
        return (p * np.log(p / q)).sum(axis=-1).mean(), *(
            (b.kv * e.kv).sum() / np.sqrt((b.kv**2).sum() * (e.kv**2).sum() or 1)
            for b, e in zip(biases, exact))

    other = asked(rng.integers(0, TRIGGER, (100, 5)))
    for step in range(steps + 1):
        if step in (0, 10, 30, 100, 300, steps):
            yield step, *now(biases)
        batch = asked(rng.integers(0, TRIGGER, (64, 5)))
        p = answers(batch, exact)
        _, _, d = gradients(model, batch, lambda z: (0, (softmax(z) - p) / p[..., 0].size), biases)
        biases, moments = adam(biases, d, 0.03 * (1 - 0.95 * step / (steps + 1)), moments)
        biases = ARMS["b_D >= 0"](biases)
    yield "converted", *now(exact)


@script
def main(argv=None):
    quick = command_line(__doc__, "2 seeds, 20 steps; 30 steps").parse_args(argv).quick
    seeds, steps, learn = (2, 20, 30) if quick else (10, SHORT["steps"], 600)
    values = {name: [] for name in ARMS}
    for seed, (name, constrain) in product(range(seeds), ARMS.items()):
        values[name].append(run(seed, constrain, steps))
        progress(f"seed {seed} {name:12}" + "".join(f"{x:>10.4g}" for x in values[name][-1]))
    print(f"{seeds} paired seeds of {steps} steps, mean ± standard error\n")
    print(f"{'':12}" + "".join(f"{c:>10}{'':7}" for c in COLUMNS).rstrip())
    for name in ARMS:
        print(f"{name:12}{summary(values[name])}")
    print("\ndifferences to none, seed by seed")
    for name in list(ARMS)[1:]:
        print(f"{name:12}{summary(np.subtract(values[name], values['none']))}")
    model = trained(0, **QUICK if quick else SHORT)
    print(f"\na context learned\n\n{'steps':>9}{'KL':>10}{'cosine 1':>12}{'cosine 2':>11}")
    for row in learn_a_context(model, np.random.default_rng(0), learn):
        print("{:>9}{:>10.4f}{:>12.2f}{:>11.2f}".format(*row), flush=True)
