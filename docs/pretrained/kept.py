"""What is left of a context that has been converted: self-study, measures, tables with errors.

"Kept" is the part of the context's benefit that is left, (dropped − converted) / (dropped − in
context), in percent ± its standard error over the contexts: of the loss of the tokens that really
follow, or of the KL divergence from the probabilities in context. Dropping is the stronger of its
two forms, with the first token, BOS, kept and without. m is the mean number of rows for a head.
"""
import time
from itertools import product
import numpy as np
from iclca_ref import iclaa, softmax_attend
from linear_transformer import forward
from pretrained.decoding import anywhere, continuation, sampler
from pretrained.rules import contexts, converted, own_rows
SIZES, WIDER = (4, 8, 16, 32), "random features, 32 m"   # few are worth nothing


def logits(model, ids, biases=None):
    """Softmax's logits of ids (..., n), after a context as `converted` gives it."""
    return forward(model, ids, biases, softmax_attend)[0]


def every_token(model, context):
    """A context (m,) as biases that lose nothing: each token its own row."""
    return iclaa(model, context, lambda k, v: converted([own_rows(k, v)])[0])


def self_study(model, context, rng, count=8, n=32, place=anywhere):
    """What the model itself writes after a context (m,): (count, n) tokens, at temperature 1."""
    start, last = every_token(model, context[:-1]), place(model, len(context) - 1)
    return continuation(last, [context[-1:]] * count, n, start, sampler(rng), place)


def apart(answer, expected):
    """The relative error of logits."""
    return np.linalg.norm(answer - expected) / np.linalg.norm(expected)


def measure(answer, expected, targets):
    """The loss of targets (n,), the KL from the expected logits (n, vocab), and their error."""
    p, q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (expected, answer))
    kl = (np.exp(p) * (p - q)).sum(axis=-1).mean()
    return -q[np.arange(len(targets)), targets].mean(), kl, apart(answer, expected)


def conversions(model, context, rng, rules, seconds, sizes=SIZES, bos=1, place=anywhere):
    """(name, m, biases) of a context (m,) for every rule and size; its time goes into `seconds`.

    The second reading leaves out BOS, which draws attention wherever it stands.
    """
    began = time.perf_counter()
    study, again = self_study(model, context, rng, place=place), [t for t in context if t != bos]
    layers = contexts(model, context, (1, study), (2, again), reader=place(model, len(context)))
    seconds["self-study and reading"].append(time.perf_counter() - began)
    for name, m in product(rules, sizes):
        began = time.perf_counter()
        biases = converted(rules[name](layers, m))
        seconds[name].append(time.perf_counter() - began)
        yield name, m, biases


def ratio(gap, benefit, sign=""):
    """Σ gap / Σ benefit over contexts (n,) in percent ± its standard error, as text.

    With the sign "+" it is a difference, in percent of a benefit that is taken as known.
    """
    if len(gap) < 2 or not benefit.any():
        return "–"
    part = gap.sum() / benefit.sum()
    deviation = np.std(gap if sign else gap - part * benefit, ddof=1)
    error = deviation / len(gap) ** 0.5 / abs(benefit.mean())
    return f"{100 * part:{sign}.2f} ± {100 * error:.2f}"


def table_row(name, cells):
    """Print a line of a table."""
    print(f"{name:30}" + "".join(f"{cell:>17}" for cell in cells))


def tables(found, seconds, sizes):
    """Print what is kept. found {(name, m): a row (loss, KL, error) for each context}; m = 0: none.

    seconds {name: a list}: what a rule takes for a context, at its sizes.
    """
    found = {key: np.transpose(rows) for key, rows in found.items()}
    drops, rules = ("dropped", "dropped, BOS kept"), dict.fromkeys(n for n, m in found if m)
    for name in "in context", *drops:
        loss, kl, error = found[name, 0].mean(axis=1)
        print(f"{name:30}loss {loss:.3f}, KL {kl:.3f}, error of the logits {error:.3f}")
    dropped = [min((found[name, 0][i] for name in drops), key=np.mean) for i in range(3)]
    benefit = dropped - found["in context", 0]
    for title, cell in {
            "kept, %": lambda x, _: ratio(dropped[0] - x[0], benefit[0]),
            "KL kept, %": lambda x, _: ratio(dropped[1] - x[1], benefit[1]),
            "KL, above Att. Matching":
                lambda x, m: ratio(found["Attention Matching", m][1] - x[1], benefit[1], "+"),
            "error of the logits": lambda x, _: f"{x[2].mean():.3f}"}.items():
        print()
        table_row(title, (f"m = {m}" for m in sizes))
        for name in rules:
            table_row(name, (cell(found[name, m], m) for m in sizes))
    print("\nseconds per context")
    for name, taken in seconds.items():
        print(f"{name:30}{np.mean(taken):.2f}")
