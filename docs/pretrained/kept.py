"""What is left of a context that has been converted: self-study, measures, tables with errors.

"Kept" is the part of the context's benefit that is left, (dropped − converted) / (dropped − in
context), in percent ± its standard error over the contexts: of the loss of the tokens that really
follow, or of the KL divergence from the probabilities in context. Dropping is the stronger of its
two forms, with the first token, BOS, kept and without. m is the mean number of rows for a head.
"""

import time
from functools import partial

import numpy as np

from iclca_ref import iclaa, softmax_attend
from linear_transformer import Bias, forward
from pretrained.decoding import continuation, sampler
from pretrained.look import contexts
from pretrained.rules import RULES, apart, converted, random_features, score

SIZES, ANCHOR, WIDER = (4, 8, 16, 32), "Attention Matching", "random features, 32 m"


def logits(model, ids, biases=None):
    """Softmax's logits of ids (..., n), after a context as `converted` gives it."""
    return forward(model, ids, biases, softmax_attend)[0]


def every_token(model, context):
    """A context (m,) as biases that lose nothing: each token its own row."""
    return iclaa(model, context, lambda k, v: (Bias(v, np.ones_like(v[..., 0])),
                                               partial(score, z=k / k.shape[-1] ** 0.25)))


def self_study(model, context, rng, count=8, n=32):
    """What the model itself writes after a context (m,): (count, n) tokens, at temperature 1."""
    start = every_token(model, context[:-1])
    return continuation(model, [context[-1:]] * count, n, start, sampler(rng))


def measure(answer, expected, targets):
    """The loss of targets (n,), the KL from the expected logits (n, vocab), and their error."""
    p, q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (expected, answer))
    kl = (np.exp(p) * (p - q)).sum(axis=-1).mean()
    return -q[np.arange(len(targets)), targets].mean(), kl, apart(answer, expected)


def all_rules(rng):
    """RULES, and random features: 32 m of them, because few are worth nothing."""
    return {**RULES, WIDER: lambda layers, m: random_features(layers, 32 * m, rng)}


def conversions(model, context, rng, rules, sizes=SIZES, bos=1):
    """(name, m, biases, seconds) of a context (m,) for every rule and size.

    The second reading leaves out BOS, which draws attention wherever it stands. The first yield is
    ("self-study and reading", 0, None, seconds).
    """
    start = time.perf_counter()
    study = self_study(model, context, rng)
    layers = contexts(model, context, study, [t for t in context if t != bos])
    yield "self-study and reading", 0, None, time.perf_counter() - start
    for name, rule in rules.items():
        for m in sizes:
            start = time.perf_counter()
            biases = converted(rule(layers, m))
            yield name, m, biases, time.perf_counter() - start


def ratio(gap, benefit, i):
    """Σ gap / Σ benefit over contexts in percent, with its standard error, as text."""
    gap, benefit = gap[:, i], benefit[:, i]
    if len(gap) < 2 or not benefit.any():
        return "–"
    part = gap.sum() / benefit.sum()
    error = np.std(gap - part * benefit, ddof=1) / len(gap) ** 0.5 / abs(benefit.mean())
    return f"{100 * part:.2f} ± {100 * error:.2f}"


def difference(gap, benefit, i):
    """The mean of gap in percent of that of benefit, with its standard error, as text."""
    gap, benefit = gap[:, i], benefit[:, i]
    mean, error = gap.mean(), gap.std(ddof=1) / len(gap) ** 0.5
    return f"{100 * mean / benefit.mean():+.2f} ± {100 * error / benefit.mean():.2f}"


def tables(found, seconds, sizes):
    """Print what is kept. found {(name, m): a row (loss, KL, error) for each context}; m = 0: none.

    seconds {name: a list}: what a rule takes for a context, at its sizes.
    """
    found = {key: np.array(rows, float) for key, rows in found.items()}
    drops, rules = ("dropped", "dropped, BOS kept"), dict.fromkeys(n for n, m in found if m)
    for name in "in context", *drops:
        loss, kl, error = found[name, 0].mean(axis=0)
        print(f"{name:30}loss {loss:.3f}, KL {kl:.3f}, error of the logits {error:.3f}")
    dropped = np.stack([min((found[name, 0][:, i] for name in drops), key=np.mean)
                        for i in range(3)], axis=-1)
    benefit = dropped - found["in context", 0]
    for title, cell in (
            ("kept, %", lambda rows, _: ratio(dropped - rows, benefit, 0)),
            ("KL kept, %", lambda rows, _: ratio(dropped - rows, benefit, 1)),
            ("KL, above Att. Matching",
             lambda rows, m: difference(found[ANCHOR, m] - rows, benefit, 1)),
            ("error of the logits", lambda rows, _: f"{rows[:, 2].mean():.3f}")):
        print(f"\n{title:30}" + "".join(f"{f'm = {m}':>17}" for m in sizes))
        for name in rules:
            cells = (cell(found[name, m], m) for m in sizes)
            print(f"{name:30}" + "".join(f"{text:>17}" for text in cells))
    print("\nseconds per context")
    for name, taken in seconds.items():
        print(f"{name:30}{np.mean(taken):.2f}")
