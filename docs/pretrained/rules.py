"""Rules that make a few weighted tokens of a softmax context: keys kept, and a Bias for them.

The rule to take is `least_squares`. In words:

1. Let the model write on from the context, a few times, and read the context a second time. Note
   how those tokens attend to it: tokens that may come look much like them. What is read counts
   twice as much as what is written.
2. Keep the context's tokens one by one, in whichever head it helps most: the token whose attention
   explains most of what that head's output still lacks, relative to the stream. Every head has one.
3. Share out each token that is not kept among those that are, in the positive parts that fit the
   attention best (`fitted_bias`): this makes the kept tokens' weights. Given these, their values
   are those that fit the outputs best. Heads that have the same keys keep the same tokens.

A rule takes `contexts` and the mean number m of rows for a head, and gives (landmarks, Bias) for
each layer, for `converted`. A row holds d_k + d_v + 1 numbers, a token as it is one less.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from iclca_ref import fitted_bias, log_random_features, softmax_attend, softmax_bias
from linear_transformer import Bias, block, rotate_at, run_layers, softmax

TINY = 1e-30


# ---- How tokens that may come look at a context --------------------------------------------------

class Context(NamedTuple):
    """One layer's context of m tokens, and how n others, which may come after it, look at it."""

    q: np.ndarray          # (heads, ≤ 64, d_k): the context's last queries, turned to 1, 2, ...
    k: np.ndarray          # (heads, m, d_k): its keys, turned to 1−m ... 0
    v: np.ndarray          # (heads, m, d_v)
    w_o: np.ndarray        # (heads, d_v, d_model)
    attention: np.ndarray  # (heads, n, m): what the others give to each of its tokens
    o: np.ndarray          # (heads, n, d_v): what they are given in all, by their own texts too
    weight: np.ndarray     # (n, 1): 1 / ‖x‖ of their stream, times √(share of their batch)
    plans: dict            # what `least_squares` has found out for all m


def caches(model, tokens):
    """Each layer's q, k, v of a context, as a Context has them."""
    def attend(q, k, v, _, rope, normalize):
        n, last = np.arange(k.shape[-2]) + 1, q[..., -64:, :]
        return softmax_attend(q, k, v, None, rope)[0], (
            rotate_at(last, rope, n[:64]), rotate_at(k, rope, n - len(n)), v)

    return run_layers(model, tokens, attend=attend)[1]


def looks(model, cached, share, tokens):
    """By layer: how tokens (b, n) after a context look at it (heads, b n, m), o, their weight."""
    x, found = model.embed[tokens], []
    for layer, (_, k, v) in zip(model.layers, cached):
        def attend(q, k_x, v_x, _, rope, normalize):
            n, m = q.shape[-2], k.shape[-2]
            q, k_x = (rotate_at(y, rope, np.arange(n) + 1) for y in (q, k_x))
            own = np.where(np.tri(n), q @ k_x.mT, -np.inf)
            p = softmax(np.concatenate([q @ k.mT, own], axis=-1) / k.shape[-1] ** 0.5)
            o = p[..., :m] @ v + p[..., m:] @ v_x
            return o, (p[..., :m], o)

        weight = (share / (x * x).sum(axis=-1) / x[..., 0].size).reshape(-1, 1) ** 0.5
        x, seen = block(x, layer, model, None, attend)
        found.append((*(np.concatenate([*y], axis=-2) for y in seen), weight))
    return found


def contexts(model, tokens, *after, reader=None):
    """A Context for each layer; `after`: pairs (share, tokens (n,) or (b, n) that may come next).

    `reader` reads those, the model if None: GPT-2 is another one at another place in a text.
    """
    cached = caches(model, tokens)
    seen = [looks(reader or model, cached, share, np.atleast_2d(batch)) for share, batch in after]
    return [Context(*qkv, layer.w_o, *(np.concatenate(x, axis=-2) for x in zip(*batches)), {})
            for qkv, layer, *batches in zip(cached, model.layers, *seen)]


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
        w = c.w_o.astype(float).swapaxes(1, 2).reshape(len(A), -1, c.v.shape[-1])
        V, gram = c.v[::share] @ np.linalg.qr(w, mode="r").mT, A.mT @ A    # VVᵀ = v W_O W_Oᵀ vᵀ
        c.plans[share] = A, *pursuit(gram, gram @ V)
    return c.plans[share]


def with_best_values(bias, A, v, o, rows):
    """A bias of r rows with the best values, given its weights, for n queries with outputs o.

    (1 + e_D) (ô − o) = e_N − o e_D, where e_D = A_R b_D − A 1 and e_N = A_R b_KV − A v: so b_KV is
    least squares, min ‖A_R b_KV − (A v + o e_D)‖. A (n, m), v (m, d_v), o (n, d_v), rows (r,).
    """
    A_R = A[:, rows]
    left = A @ v + o * (A_R @ bias.d - A.sum(axis=-1))[:, None] - A_R @ bias.kv
    return bias._replace(kv=bias.kv + np.linalg.lstsq(A_R, left, rcond=0.01)[0])


def least_squares(layers, m, share=1):
    """The rule above: m rows for a head, or for each `share` heads, if those have the same keys."""
    plans, tokens, made = [planned(c, share) for c in layers], layers[0].k.shape[-2], []
    gains = np.concatenate([np.minimum.accumulate(gain, axis=-1) for *_, gain in plans])
    gains[:, 0] = np.inf    # a row for every head; others count at most what those before gained
    best = np.argsort(-gains, axis=None, kind="stable")[:min(m, tokens) * len(gains)]
    budgets = np.bincount(best // tokens, minlength=len(gains)).reshape(len(layers), -1)
    for c, (A, order, _), budget in zip(layers, plans, budgets):
        o = c.o.reshape(*A.shape[:2], -1)
        z, kv = (np.zeros_like(x[:, :budget.max()]) for x in (c.k, c.v))
        d = 0 * kv[..., 0]    # rows beyond a head's own budget weigh 0
        for i, rows in enumerate(rows[:n] for rows, n in zip(order, budget)):
            here = np.s_[i * share:(i + 1) * share, :len(rows)]
            z[here] = c.k[i * share, rows] / c.k.shape[-1] ** 0.25
            v = c.v[i * share].astype(float)
            kv[here], d[here] = with_best_values(fitted_bias(A[i], v, rows), A[i], v, o[i], rows)
        made.append((z, Bias(kv, d)))
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
