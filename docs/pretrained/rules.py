"""Rules that make a few weighted tokens of a softmax context: keys kept, and a Bias for them.

The rule to take is `least_squares`. In words:

1. Let the model write on from the context, a few times, and read the context a second time, which
   counts twice as much: tokens that may come look at the context much as these do.
2. Keep the context's tokens one by one, in whichever head it helps most: the token whose attention
   explains most of what that head's output still lacks, relative to the stream. Every head has one.
   Heads that have the same keys keep the same tokens.
3. Share out each token that is not kept among those that are, in the positive parts that fit the
   attention best (`fitted_bias`): so many tokens is a kept one worth.
4. Layer by layer, move the kept tokens' values so that the converted model's stream comes out as in
   context, by least squares: so each layer makes up for what those before it have missed.

A rule takes `contexts` and the mean number m of rows for a head, and gives (landmarks, Bias) for
each layer, for `converted`. A row holds d_k + d_v + 1 numbers, a token as it is one less.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from iclca_ref import fitted_bias, log_random_features, softmax_bias
from linear_transformer import Bias, Layer, Transformer, block, rotate_at, softmax

TINY = 1e-30


# ---- How tokens that may come look at a context --------------------------------------------------

class After(NamedTuple):
    """Texts that may come after a context, n tokens in all, and the model that reads them."""

    model: Transformer
    x: np.ndarray         # (n, d_model): embedded
    position: np.ndarray  # (n,): their places, from 1 in each text
    sees: np.ndarray      # (n, n): whether one sees the other, itself or before it in its own text


class Context(NamedTuple):
    """One layer's context of m tokens, and how n others, which may come after it, look at it."""

    layer: Layer
    after: After
    q: np.ndarray          # (heads, ≤ 64, d_k): the context's last queries, turned to 1, 2, ...
    k: np.ndarray          # (heads, m, d_k): its keys, turned to 1−m ... 0
    v: np.ndarray          # (heads, m, d_v)
    attention: np.ndarray  # (heads, n, m): what the others give to each of its tokens
    stream: np.ndarray     # (n, d_model): theirs after this attention
    weight: np.ndarray     # (n, 1): √share / ‖x‖ of their stream before it
    plans: dict            # what `least_squares` has found out for all m


def contexts(model, tokens, *after, reader=None):
    """A Context for each layer; `after`: pairs (share, tokens (n,) or (b, n) that may come next).

    `reader` reads those, the model if None: GPT-2 is another one at another place in a text.
    """
    texts = [(share / np.size(batch), text) for share, batch in after
             for text in np.atleast_2d(batch)]
    m, n, reader, found = len(tokens), [len(text) for _, text in texts], reader or model, []
    number = np.repeat(np.arange(len(n) + 1), [m, *n])    # 0 is the context, which all others see
    position = np.concatenate([np.arange(1 - m, 1), *(np.arange(k) + 1 for k in n)])
    sees = (position[:, None] >= position) & ((number[:, None] == number) | (number == 0))
    share = np.repeat([share for share, _ in texts], n)[:, None]
    x = np.concatenate([model.embed[tokens], *(reader.embed[text] for _, text in texts)])
    after = After(model, x[m:], position[m:], sees[m:, m:])
    for layer in model.layers:
        def attend(q, k, v, _, rope, normalize):
            last = rotate_at(q[:, :m][:, -64:], rope, np.arange(min(m, 64)) + 1)
            q, k = (rotate_at(y, rope, position) for y in (q, k))
            p = softmax(np.where(sees, q @ k.mT / k.shape[-1] ** 0.5, -np.inf))
            return p @ v, (last, k[:, :m], v[:, :m], p[:, m:, :m],
                           (x + np.tensordot(p @ v, layer.w_o, ((0, 2), (0, 1))))[m:])

        weight = share**0.5 / np.linalg.norm(x[m:], axis=-1, keepdims=True)
        x, seen = block(x, layer, model, None, attend)
        found.append(Context(layer, after, *seen, weight, {}))
    return found


# ---- Rules ---------------------------------------------------------------------------------------

def pursuit(gram, target):
    """The order in which to keep tokens, and what each explains of ‖A V‖²: (heads, m) both.

    gram = AᵀA (heads, m, m), target = AᵀA V. Next is the column a of A, less what the kept ones
    explain of it, of the largest ‖aᵀ A V‖² / ‖a‖²: pivoted Gram-Schmidt.
    """
    left, f, order, gains = np.diagonal(gram, 0, -2, -1), np.zeros_like(gram), [], []
    floor, heads = 1e-12 * left.max(axis=-1, keepdims=True) + TINY, np.arange(len(gram))
    for i in range(gram.shape[-1]):
        gain = (target * target).sum(axis=-1) / np.maximum(left, floor)
        gain = np.where(left > floor, gain, np.where(left > -np.inf, 0, -1))
        j = gain.argmax(axis=-1)
        order.append(j)
        gains.append(gain[heads, j])
        more = left[heads, j, None] > floor    # else all columns are explained already
        scale = more / np.maximum(left[heads, j, None], floor) ** 0.5
        f[..., i] = (gram[heads, j] - (f @ f[heads, j, :, None])[..., 0]) * scale
        part = target[heads, j] / np.where(more, f[heads, j, i, None], 1)
        target = target - f[..., i, None] * part[:, None]
        left = left - f[..., i] ** 2
        left[heads, j] = -np.inf    # kept
    return np.stack(order, axis=-1), np.stack(gains, axis=-1)


def planned(c, share):
    """The attention A (groups, n, m) of heads that share keys, and `pursuit` for each group."""
    if share not in c.plans:
        A = (c.attention * c.weight).astype(float).reshape(-1, share * len(c.weight), c.k.shape[-2])
        w = c.layer.w_o.astype(float).swapaxes(1, 2).reshape(len(A), -1, c.v.shape[-1])
        V, gram = c.v[::share] @ np.linalg.qr(w, mode="r").mT, A.mT @ A    # VVᵀ = v W_O W_Oᵀ vᵀ
        c.plans[share] = A, *pursuit(gram, gram @ V)
    return c.plans[share]


def mended(u, p, w_o, lacks, share):
    """Values u (heads, r, d_v) moved, group after group, so that Σ_h p_h u_h W_h gives what lacks.

    p (heads, n, r), w_o (heads, d_v, d_model), lacks (n, d_model); each `share` heads have the same
    u. For each group least squares with a ridge, exact for heads alone, else a step towards it.
    """
    u = u.copy()
    for mine in [np.s_[i:i + share] for i in range(0, len(u), share)] * 2:
        P, W = p[mine], w_o[mine]
        gram, metric = (P.mT @ P).sum(axis=0), (W @ W.mT).mean(axis=0)
        ridge = (0.1 * np.trace(gram) / len(gram) + TINY) * np.eye(len(gram))
        more = np.linalg.solve(gram + ridge, (P.mT @ lacks @ W.mT).sum(axis=0))
        more = np.linalg.solve(metric, more.T).T
        given = (P @ (more @ W)).sum(axis=0)
        step = (given * lacks).sum() / ((given * given).sum() + TINY)
        u[mine] += step * more
        lacks = lacks - step * given
    return u


def least_squares(layers, m, share=1):
    """The rule above: m rows for a head, or for each `share` heads, if those have the same keys."""
    plans, tokens, made = [planned(c, share) for c in layers], layers[0].k.shape[-2], []
    gains = np.concatenate([np.minimum.accumulate(gain, axis=-1) for *_, gain in plans])
    gains[:, 0] = np.inf    # a row for every head; others count at most what those before gained
    best = np.argsort(-gains, axis=None, kind="stable")[:min(m, tokens) * len(gains)]
    budgets = np.bincount(best // tokens, minlength=len(gains)).reshape(len(layers), -1)
    model, x, position, sees = layers[0].after
    for c, (A, order, _), budget in zip(layers, plans, budgets):
        z, kv = (np.zeros_like(y[:, :budget.max()]) for y in (c.k, c.v))
        d = 0 * kv[..., 0]    # rows beyond a head's own budget weigh 0
        for i, rows in enumerate(rows[:n] for rows, n in zip(order, budget)):
            here = np.s_[i * share:(i + 1) * share, :len(rows)]
            z[here] = c.k[i * share, rows] / c.k.shape[-1] ** 0.25
            kv[here], d[here] = fitted_bias(A[i], c.v[i * share], rows)

        def attend(q, k, v, _, rope, normalize):
            q, k = (rotate_at(y, rope, position) / y.shape[-1] ** 0.25 for y in (q, k))
            with np.errstate(divide="ignore"):
                rows = q @ z.mT + np.log(d)[:, None]
            p = softmax(np.concatenate([rows, np.where(sees, q @ k.mT, -np.inf)], axis=-1))
            p, own = p[..., :rows.shape[-1]], p[..., rows.shape[-1]:] @ v
            u, w_o = kv / np.where(d > 0, d, 1)[..., None], c.layer.w_o
            lacks = c.stream - x - np.tensordot(p @ u + own, w_o, ((0, 2), (0, 1)))
            u = mended(u, p * c.weight, w_o, lacks * c.weight, share)
            return p @ u + own, Bias(u * d[..., None], d)

        x, bias = block(x, c.layer, model, None, attend)
        made.append((z, bias))
    return made


def own_rows(k, v):
    """Tokens as they are, each a row of weight 1: keys and values (heads, r, ...)."""
    return k / k.shape[-1] ** 0.25, Bias(v, np.ones_like(v[..., 0]))


def keep(c, rows):
    """`own_rows` of a layer's tokens in the places rows (heads or 1, r)."""
    return own_rows(*(np.take_along_axis(x, rows[..., None], axis=-2) for x in (c.k, c.v)))


def attention_matching(c, m):
    """Zweiger et al. 2026 (2602.16284), with as many rows in every head.

    Tokens by matching pursuit on what the context as a whole is given, A 1; weights by nonnegative
    least squares on that (30 updates after each token); values by least squares on the output.
    """
    A, heads = c.attention.astype(float), np.arange(len(c.k))[:, None]
    gram, rows, w = A.mT @ A, np.zeros((len(A), 0), int), np.zeros((len(A), 0))
    mass = gram.sum(axis=-1)
    for _ in range(m):
        left = mass - (w[:, None] @ gram[heads, rows])[:, 0]
        left[heads, rows] = -np.inf
        rows = np.append(rows, left.argmax(axis=-1)[:, None], axis=-1)
        w = np.append(w, np.ones_like(heads), axis=-1)
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
    w, apart, nearest = looked_at(k), (x * x).sum(axis=-1), 0
    for i in range(m):    # each the farthest from those before it
        far = (w[..., 0] * apart).argmax(axis=-1)[..., None, None]
        distance = ((x - np.take_along_axis(x, far, axis=-2)) ** 2).sum(axis=-1)
        nearest = np.where(distance < apart, i, nearest)
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


def random_features(layers, m, rng, times=1):
    """The paper's: m (or so many times m) independent directions for all heads (ICLCA §5)."""
    directions = rng.standard_normal((times * m, layers[0].k.shape[-1]))
    features = partial(log_random_features, projection=directions)
    return [(features, softmax_bias(c.k, c.v, features)) for c in layers]


def converted(made):
    """What a rule has made, as `forward` takes it with `softmax_attend`: log φ(x) is Z x."""
    return [(bias, z if callable(z) else lambda x, z=z: x @ z.mT) for z, bias in made]
