"""ICLCA §6.3: biases that are trained with the model; and a context that is learned as biases.

First, b_KV and b_D of both layers are trained from zero together with the model, on the task of
trained_induction.py with texts of 20 tokens. Every arm sees the same first weights and the same
texts, seed by seed; steps are counted until half and 99% of 256 other texts are answered. Then
the model is frozen, and biases alone are trained to give its in-context answers without the
context: a gradient step on them is a conversion of virtual tokens (docs/derivation.md).

    python docs/experiments/trained_biases.py [--seeds 10] [--quick]
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])
from backward import adam, gradients
from iclca_ref import iclca
from linear_transformer import Bias, forward, softmax
from trained_induction import (QUICK, SHORT, TRIGGER, VOCABULARY, answers_given, asked, short_model,
                               texts, train)

ARMS = {"none": None,
        "b_KV": lambda b: [Bias(kv, 0 * d) for kv, d in b],
        "b_KV, b_D >= 0": lambda b: [Bias(kv, np.maximum(d, 0)) for kv, d in b],
        "b_KV, b_D signed": lambda b: b}


def zero_biases():
    """One Bias of zeros for each of the two layers."""
    return [Bias(np.zeros((2, 16, 16), np.float32), np.zeros((2, 16), np.float32)) for _ in range(2)]


def curve(seed, constrain, steps, every=10):
    """Losses (steps,) of the training batches, and accuracies after every 10; NaN once it fails.

    With signs in b_D the normalizer may be 0 or the loss no number: then the training has failed.
    """
    context, _, answers = texts(np.random.default_rng([seed, 1]), 256, SHORT["length"])
    losses, accuracies = np.full((2, steps), np.nan)

    def watch(step, _, loss, model, biases):
        losses[step - 1] = loss
        if step % every == 0:
            logits, _ = forward(model, asked(context), biases)
            accuracies[step - 1] = (logits[:, -1].argmax(axis=-1) == answers).mean()

    try:
        train(seed, **{**SHORT, "steps": steps}, biases=constrain and zero_biases(),
              constrain=constrain, watch=watch)
    except ValueError as error:
        print(f"  seed {seed} fails: {error}")
    return losses, accuracies[every - 1::every]


def reached(accuracies, level, every=10):
    """The step at which the accuracy reaches `level` (between two measurements on a line), or NaN."""
    above = accuracies >= level
    if not above.any():
        return np.nan
    i = int(above.argmax())
    low = accuracies[i - 1] if i else 0
    return every * (i + (level - low) / (accuracies[i] - low))


def mean_and_error(x):
    """The mean and its standard error, of the numbers that are not NaN."""
    x = np.asarray(x)[np.isfinite(x)]
    return (x.mean(), x.std(ddof=1) / len(x) ** 0.5) if len(x) > 1 else (np.nan, np.nan)


def compare_arms(seeds, steps):
    """Trains every arm with every seed; prints means and standard errors, and differences to none."""
    found = {}
    for name, constrain in ARMS.items():
        rows = []
        for seed in range(seeds):
            losses, accuracies = curve(seed, constrain, steps)
            rows.append((reached(accuracies, 0.5), reached(accuracies, 0.99), losses[-50:].mean(),
                         accuracies[-1], np.nanmax(losses[min(100, steps // 2):])))
        found[name] = np.array(rows)
        cells = [mean_and_error(column) for column in found[name].T]
        print(f"{name:18}" + "".join(f"{m:>9.4g} ±{e:>6.2g}" for m, e in cells)
              + f"{np.isfinite(found[name][:, 1]).sum():>7}", flush=True)
    print("\npaired differences to none")
    for name in list(ARMS)[1:]:
        cells = [mean_and_error(column) for column in (found[name] - found["none"]).T[:3]]
        print(f"{name:18}" + "".join(f"{m:>9.3g} ±{e:>6.2g}" for m, e in cells))


# ---- A context that is learned as biases -------------------------------------------------------------

def learn_a_context(model, rng, steps, measured):
    """Biases trained from zero towards the model's in-context answers: KL and cosines, by steps.

    The prompts are random tokens and then the trigger; the KL is that of the answers after all of
    their tokens, of 100 other prompts. Cosines are those with the exact b_KV, one for each layer.
    """
    context, _, _ = texts(rng, 1, SHORT["length"])
    exact, biases, moments = iclca(model, context[0]), zero_biases(), None

    def prompts(n):
        return asked(rng.integers(0, TRIGGER, (n, 5)))

    def kl(logits, p):
        return float((p * np.log(p / softmax(logits))).sum(axis=-1).mean())

    other = prompts(100)
    for step in range(steps + 1):
        if step in measured:
            cosines = [(b.kv * e.kv).sum() / (np.linalg.norm(b.kv) * np.linalg.norm(e.kv) or 1)
                       for b, e in zip(biases, exact)]
            yield step, kl(*(f(forward(model, other, b)[0]) for f, b in
                             ((lambda x: x, biases), (softmax, exact)))), *cosines
        batch = prompts(64)
        p = softmax(forward(model, batch, exact)[0])
        _, _, found = gradients(model, batch, lambda logits: (kl(logits, p), (softmax(logits) - p)
                                                              / p[..., 0].size), biases)
        rate = 0.03 * (1 - 0.95 * step / (steps + 1))
        biases, moments = adam(biases, found, rate, moments)
        biases = ARMS["b_KV, b_D >= 0"](biases)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="2 seeds, 20 steps; 30 steps")
    args = parser.parse_args(argv)
    seeds, steps, learn = (2, 20, 30) if args.quick else (args.seeds, SHORT["steps"], 600)
    print(f"{seeds} paired seeds of {steps} steps, mean ± standard error\n")
    columns = "half", "99%", "last loss", "accuracy", "worst loss"
    print(f"{'biases':18}" + "".join(f"{c:>17}" for c in columns) + "  at 99%")
    compare_arms(seeds, steps)

    model = short_model(0, (QUICK if args.quick else SHORT)["steps"])
    print("\na context learned as biases, the model frozen\n\n"
          f"{'steps':>9}{'KL':>10}{'cosine of b_KV, layer 1':>26}{'layer 2':>10}")
    measured = {0, 10, 30, 100, 300, learn}
    for step, kl, *cosines in learn_a_context(model, np.random.default_rng(0), learn, measured):
        print(f"{step:>9}{kl:>10.4f}{cosines[0]:>26.2f}{cosines[1]:>10.2f}", flush=True)
    print(f"{'converted':>9}{0:>10.4f}{1:>26.2f}{1:>10.2f}   (one pass, no gradient)")


if __name__ == "__main__":
    main()
