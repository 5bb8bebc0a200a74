"""Rules that make a few weighted tokens of a softmax context: keys kept, and a Bias for them.

The rule to take is `least_squares`. In words:

1. Let the model write on from the context, a few times, and read the context a second time. Note
   how those tokens attend to it: tokens that may come look much like them.
2. Keep the context's tokens one by one, in whichever head it helps most: the token whose attention
   explains most of what that head's output still lacks, relative to the stream. Every head has one.
3. Share out each token that is not kept among those that are, in the positive parts that fit the
   attention best (`fitted_bias`); a kept token's value is then the sum of its parts.

A rule takes look.py's `contexts` and the mean number m of rows for a head, and gives (landmarks,
Bias) for each layer, for `converted`. A row holds d_k + d_v + 1 numbers, a token as it is one less.
"""

from functools import partial

import numpy as np

from iclca_ref import fitted_bias, log_random_features, softmax_bias
from linear_transformer import Bias

TINY = 1e-30


def pursuit(gram, target):
    """The order in which to keep tokens, and what each explains of ‖A V‖²: (heads, m) both.

    gram = AᵀA (heads, m, m), target = AᵀA V. Next is the column a of A, less what the kept ones
    explain of it, of the largest ‖aᵀ A V‖² / ‖a‖²: pivoted Gram-Schmidt.
    """
    left, f, order, gains = np.diagonal(gram, 0, -2, -1), np.zeros_like(gram), [], []
    floor, heads = 1e-12 * left.max(axis=-1) + TINY, np.arange(len(gram))
    for i in range(gram.shape[-1]):
        gain = (target * target).sum(axis=-1) / np.maximum(left, floor[:, None])
        j = np.where(left > floor[:, None], gain, np.where(left > -np.inf, 0, -1)).argmax(axis=-1)
        more = left[heads, j] > floor    # else all columns are explained already
        order.append(j)
        gains.append(np.where(more, gain[heads, j], 0))
        f[..., i] = (gram[heads, j] - (f @ f[heads, j, :, None])[..., 0]) * (
            more / np.maximum(left[heads, j], floor) ** 0.5)[:, None]
        target = target - f[..., i, None] * (target[heads, j] / np.where(
            more, f[heads, j, i], 1)[:, None])[:, None]
        left = left - f[..., i] ** 2
        left[heads, j] = -np.inf    # kept
    return np.stack(order, axis=-1), np.stack(gains, axis=-1)


def planned(c, share):
    """The attention A (groups, n, m) of heads that share keys, and `pursuit` for each group."""
    if share not in c.plans:
        A = (c.attention * c.weight).astype(float).reshape(-1, share * len(c.weight), c.k.shape[-2])
        w = c.w_o.astype(float).swapaxes(1, 2).reshape(len(A), -1, c.v.shape[-1])
        V, gram = c.v[::share] @ np.linalg.qr(w, mode="r").mT, A.mT @ A    # VVᵀ = v W_O W_Oᵀ vᵀ
        c.plans[share] = A, *pursuit(gram, gram @ V)
    return c.plans[share]


def least_squares(layers, m, share=1):
    """The rule above: m rows for a head, or for each `share` heads, if those have the same keys."""
    plans, tokens = [planned(c, share) for c in layers], layers[0].k.shape[-2]
    gains = np.concatenate([np.minimum.accumulate(gain, axis=-1) for *_, gain in plans])
    gains[:, 0] = np.inf    # a row for every head; others count at most what those before gained
    best = np.argsort(-gains, axis=None, kind="stable")[:min(m, tokens) * len(gains)]
    budgets = np.bincount(best // tokens, minlength=len(gains)).reshape(len(layers), -1)
    return [fitted(c, A, order, n, share) for c, (A, order, _), n in zip(layers, plans, budgets)]


def fitted(c, A, order, budget, share):
    """`fitted_bias` of one layer, each head with the first rows of its order; others weigh 0."""
    r = budget.max()
    z, (kv, d) = np.zeros_like(c.k[:, :r]), Bias(np.zeros_like(c.v[:, :r]), 0 * c.v[:, :r, 0])
    for i, rows in enumerate(rows[:n] for rows, n in zip(order, budget)):
        here = np.s_[i * share:(i + 1) * share, :len(rows)]
        z[here] = c.k[i * share, rows] / c.k.shape[-1] ** 0.25
        kv[here], d[here] = fitted_bias(A[i], c.v[i * share], rows)
    return z, Bias(kv, d)


def keep(c, rows):
    """Some tokens of the context as they are: rows (heads or 1, r)."""
    k, v = (np.take_along_axis(x, rows[..., None], axis=-2) for x in (c.k, c.v))
    return k / k.shape[-1] ** 0.25, Bias(v, np.ones_like(v[..., 0]))


def attention_matching(c, m):
    """Zweiger et al. 2026 (2602.16284), with as many rows in every head.

    Tokens by matching pursuit on what the context as a whole is given, A 1; weights by nonnegative
    least squares on that (30 updates after each token); values by least squares on the output.
    """
    A, heads = c.attention.astype(float), np.arange(len(c.k))[:, None]
    gram, rows, w = A.mT @ A, np.zeros((len(A), 0), int), np.zeros((len(A), 0))
    mass = gram.sum(axis=-1)
    for _ in range(min(m, A.shape[-1])):
        left = mass - (w[:, None] @ gram[heads, rows])[:, 0]
        left[heads, rows] = -np.inf
        rows = np.concatenate([rows, left.argmax(axis=-1)[:, None]], axis=-1)
        w = np.insert(w, w.shape[-1], 1, axis=-1)
        kept = gram[heads[..., None], rows[..., None], rows[:, None]]
        for _ in range(30):
            w = w * mass[heads, rows] / ((kept @ w[..., None])[..., 0] + TINY)
    w = np.maximum(w, 1e-6)
    of_rows = np.take_along_axis(A, rows[:, None], axis=-1) * w[:, None]
    new, old = (x / (x.sum(axis=-1, keepdims=True) + TINY) for x in (of_rows, A))
    values = np.linalg.pinv(new, rcond=1e-6) @ (old @ c.v)
    return keep(c, rows)[0], Bias(*(x.astype(c.v.dtype) for x in (w[..., None] * values, w)))


def merged(c, m):
    """Our earlier rule: keys, weighted by how the context's last queries look at them, are merged.

    Clustered by key and value; each cluster is scaled to be looked at as much as its keys were.
    """
    def looked_at(z):    # 0.001: what nobody looks at still counts
        return (np.exp(q @ z.mT - log_z).sum(axis=-2) + 0.001)[..., None]

    q, k = (x / x.shape[-1] ** 0.25 for x in (c.q, c.k))
    log_z = np.logaddexp.reduce(q @ k.mT, axis=-1, keepdims=True)
    x = np.concatenate([y / (np.linalg.norm(y, axis=(-2, -1), keepdims=True) + TINY)
                        for y in (k, c.v)], axis=-1)
    w, m, apart = looked_at(k), min(m, k.shape[-2]), (x * x).sum(axis=-1)
    for i in range(m):    # each the farthest from those before it
        far = (w[..., 0] * apart).argmax(axis=-1)[..., None, None]
        distance = ((x - np.take_along_axis(x, far, axis=-2)) ** 2).sum(axis=-1)
        nearest = np.where(distance < apart, i, nearest if i else 0)
        apart = np.minimum(distance, apart) if i else distance
    part = (np.eye(m, dtype=k.dtype)[nearest] * w).mT
    total = part.sum(axis=-1, keepdims=True)
    z = part @ k / (total + TINY)
    return z, Bias(part @ c.v / looked_at(z), (total / looked_at(z))[..., 0])


def equal(rule):
    """A rule for one layer, with the same m in every head, as one for all layers."""
    return lambda layers, m: [rule(c, min(m, c.k.shape[-2])) for c in layers]


RULES = {"last kept": equal(lambda c, m: keep(c, np.arange(c.k.shape[-2])[None, -m:])),
         "first and last kept": equal(lambda c, m: keep(c, np.r_[0, 1 - m:0][None])),
         "most attended kept": equal(
             lambda c, m: keep(c, np.argsort(-c.attention.sum(axis=-2), axis=-1)[..., :m])),
         "merged, attended": equal(merged), "Attention Matching": equal(attention_matching),
         "least squares": least_squares}


def random_features(layers, m, rng):
    """The paper's: m independent directions for all heads (ICLCA §5)."""
    directions = rng.standard_normal((m, layers[0].k.shape[-1]))
    features = partial(log_random_features, projection=directions)
    return [(features, softmax_bias(c.k, c.v, features)) for c in layers]


def converted(made):
    """What a rule has made, as `forward` takes it with `softmax_attend`."""
    return [(bias, z if callable(z) else partial(score, z=z)) for z, bias in made]


def score(x, z):
    """log φ(x) = Z x: how strongly x (..., n, d_k) attends to each landmark (..., r, d_k)."""
    return x @ z.mT


def apart(answer, expected):
    """The relative error of logits."""
    return np.linalg.norm(answer - expected) / np.linalg.norm(expected)
