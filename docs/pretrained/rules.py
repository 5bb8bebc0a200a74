"""Rules that make a few weighted tokens of a softmax context.

wip
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from iclca_ref import log_random_features, softmax_attend, softmax_bias
from linear_transformer import Bias, block, rotate_at, run_layers, softmax

try:
    from iclca_ref import fitted_bias
except ImportError:
    def fitted_bias(attention, v, rows):
        A_R = np.take_along_axis(attention, rows[..., None, :], axis=-1)
        top, gram = A_R.mT @ attention, A_R.mT @ A_R
        unit = (rows[..., :, None] == np.arange(attention.shape[-1])).astype(attention.dtype)
        free = 1 - unit.sum(axis=-2, keepdims=True).clip(0, 1)
        E = unit + free / rows.shape[-1]
        for _ in range(100):
            E = np.where(free, E * top / (gram @ E + 1e-30), unit)
        return Bias(E @ v, E.sum(axis=-1))

PERTOKEN = WFIT = False
ALL = 10**9   # every token of the context


class Context(NamedTuple):
    """One layer's context, and how tokens that may come look at it."""

    q: np.ndarray          # (heads, n', d_k): the context's last queries, turned to 1, 2, ...
    k: np.ndarray          # (heads, m, d_k): its keys, turned to 1−m ... 0
    v: np.ndarray          # (heads, m, d_v)
    w_o: np.ndarray        # (heads, d_v, d_model)
    attention: np.ndarray  # (heads, n, m): what those tokens give to each of the context's
    size: float            # the mean of ‖x‖² of their stream x
    out: float = 1


def caches(model, tokens, ahead=64):
    """Each layer's (q, k, v): keys turned to the places 1−M ... 0, the last queries to 1, 2, ..."""
    def attend(q, k, v, _, rope, normalize):
        m = k.shape[-2]
        return softmax_attend(q, k, v, None, rope)[0], (
            rotate_at(q[..., -ahead:, :], rope, np.arange(min(ahead, m)) + 1),
            rotate_at(k, rope, np.arange(m) + 1 - m), v)

    return run_layers(model, tokens, attend=attend)[1]


def looks(model, cached, tokens):
    """Read tokens (b, n) after a context: each layer's attention (heads, b n, m) to it, and mean ‖x‖²."""
    x, found = model.embed[tokens], []
    for layer, (_, k, v) in zip(model.layers, cached):
        def attend(q, k_x, v_x, _, rope, normalize):
            n, m = q.shape[-2], k.shape[-2]
            q, k_x = (rotate_at(x, rope, np.arange(n) + 1) for x in (q, k_x))
            old = q @ k.mT
            new = np.where(np.tri(n), q @ k_x.mT, -np.inf)
            p = softmax(np.concatenate([old, new], axis=-1) / q.shape[-1] ** 0.5)
            o = p[..., :m] @ v + p[..., m:] @ v_x
            wv = np.sqrt(((o @ layer.w_o) ** 2).sum(-1))
            return o, (p[..., :m], wv)

        size = (x * x).sum(axis=-1)
        if not PERTOKEN: size = 0 * size + size.mean()
        x, (p, wv) = block(x, layer, model, None, attend)
        found.append((np.concatenate([*p], axis=-2), 1 / np.sqrt(size.ravel() * size.size), np.concatenate([*wv], axis=-1)))
    return found


def contexts(model, tokens, *after):
    """A Context for each layer; `after` are batches of tokens (b, n) that may come behind it."""
    cached = caches(model, tokens)
    seen = [looks(model, cached, np.atleast_2d(tokens)) for tokens in after]
    return [Context(*qkv, layer.w_o, np.concatenate([o[0] for o in of_layer], axis=-2),
                    np.concatenate([o[1] for o in of_layer]), np.concatenate([o[2] for o in of_layer], axis=-1))
            for qkv, layer, of_layer in zip(cached, model.layers, zip(*seen))]


# ---- which rows

def pursuit(gram, target, steps):
    """Rows one by one, each the column of A that explains most of what is left of A V.

    gram = AᵀA (..., m, m), target = AᵀA V (..., m, d): order (..., steps), gains (..., steps).
    """
    left, m = np.diagonal(gram, axis1=-2, axis2=-1).copy(), gram.shape[-1]
    floor, F, order, gains = 1e-9 * left, np.zeros((*gram.shape[:-1], steps)), [], []
    for i in range(steps):
        gain = np.where(left > floor, (target * target).sum(axis=-1) / np.maximum(left, 1e-300), 0)
        j = gain.argmax(axis=-1)[..., None]
        order.append(j)
        gains.append(np.take_along_axis(gain, j, axis=-1))
        at = j[..., None]
        f = np.take_along_axis(gram, at, axis=-1) - F[..., :i] @ np.take_along_axis(F[..., :i], at, axis=-2).mT
        pivot = np.maximum(np.take_along_axis(left, j, axis=-1), np.take_along_axis(floor, j, axis=-1))[..., None] + 1e-300
        target = target - f * (np.take_along_axis(target, at, axis=-2) / pivot)
        F[..., i] = (f / pivot ** 0.5)[..., 0]
        left = left - F[..., i] ** 2
        np.put_along_axis(left, j, 0, axis=-1)
    return np.concatenate(order, axis=-1), np.concatenate(gains, axis=-1)


def ranked(c, steps, group=1, scale=1.0):
    """pursuit for each head (or group of heads) of one layer, gains relative to ‖x‖²."""
    n, m = c.attention.shape[-2:]
    A = (c.attention * c.size[:, None]).reshape(-1, group * n, m).astype(float)
    gram = A.mT @ A
    w = c.w_o.astype(float)
    L = np.linalg.cholesky((w @ w.mT).reshape(-1, group, *w.shape[1:2] * 2).sum(axis=1))
    vL = c.v[::group].astype(float) @ L
    o = A @ vL
    size = scale * np.sqrt((c.out.reshape(len(A), -1)**2).mean(axis=-1))[:, None, None]
    V = np.concatenate([vL, size * np.ones_like(vL[..., :1])], axis=-1)
    order, gains = pursuit(gram, gram @ V, min(steps, m))
    return order, gains


def least_squares(layers, m, group=1, shared=True, scale=1.0, fit=fitted_bias, cap=10):
    """"""
    total = layers[0].k.shape[-2]
    m = min(m, total)
    plans = [ranked(c, min(total, cap * m), group, scale) for c in layers]
    gains = np.array([np.minimum.accumulate(g, axis=-1) for _, g in plans])
    gains[..., 0] = np.inf
    if shared:
        floor = np.sort(gains, axis=None)[-m * gains[..., 0].size]
    made = []
    for c, (order, _), g in zip(layers, plans, gains):
        heads, r = len(c.k), [max(1, int((x >= floor).sum())) if shared else m for x in g]
        r_max = max(r)
        z = np.zeros((heads, r_max, c.k.shape[-1]), c.k.dtype)
        kv, d = np.zeros((heads, r_max, c.v.shape[-1]), c.v.dtype), np.zeros((heads, r_max), c.v.dtype)
        for a, rows in enumerate(order):
            rows, of = rows[:r[a]], slice(a * group, a * group + group)
            A = np.concatenate(c.attention[of] / (1 / c.size[:, None] if WFIT else 1)).astype(float)
            b = fit(A, c.v[a * group].astype(float), rows)
            z[of, :r[a]] = c.k[a * group, rows] / c.k.shape[-1] ** 0.25
            kv[of, :r[a]], d[of, :r[a]] = b
        made.append((z, Bias(kv, d)))
    return made


def nonnegative(gram, top, w, steps=50):
    for _ in range(steps):
        w = w * top / ((gram @ w[..., None])[..., 0] + 1e-30)
    return w


def attention_matching_layer(c, m, normalized=False, weighted=True):
    A = c.attention.astype(float)
    gram = A.mT @ A
    total = gram.sum(axis=-1)
    M = gram.shape[-1]
    m = min(m, M)
    rows, w = np.zeros((len(A), 0), int), np.zeros((len(A), 0))
    for i in range(m):
        w = w.reshape(len(A), -1)
        r = total.copy()
        if i:
            r = r - (np.take_along_axis(gram, rows[:, None, :], axis=-1) @ w[..., None])[..., 0]
        if normalized:
            r = r / np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1) + 1e-300)
        np.put_along_axis(r, rows, -np.inf, axis=-1)
        rows = np.concatenate([rows, r.argmax(axis=-1)[:, None]], axis=-1)
        G = np.take_along_axis(np.take_along_axis(gram, rows[:, :, None], axis=-2), rows[:, None, :], axis=-1)
        t = np.take_along_axis(total, rows, axis=-1)
        w = nonnegative(G, t, np.concatenate([w, np.ones((len(A), 1))], axis=-1) + 1e-3, 50)
    w = nonnegative(G, t, w, 500)
    w = np.maximum(w, 1e-6)
    A_R = np.take_along_axis(A, rows[:, None, :], axis=-1)
    if weighted:
        X, Y = A_R * w[:, None], A @ c.v
    else:
        X = A_R * w[:, None]
        X, Y = X / (X.sum(-1, keepdims=True) + 1e-30), A @ c.v / (A.sum(-1, keepdims=True) + 1e-30)
    values = np.linalg.pinv(X, rcond=1e-6) @ Y
    k = np.take_along_axis(c.k, rows[..., None], axis=-2)
    return k / k.shape[-1] ** 0.25, Bias((w[..., None] * values).astype(c.v.dtype), w.astype(c.v.dtype))


def attention_matching(layers, m, **how):
    return [attention_matching_layer(c, m, **how) for c in layers]


def clusters(x, r, weight):
    """Which of r rows, each the farthest by weight, is nearest: x (..., m, d) gives (..., m)."""
    apart, nearest = (x * x).sum(axis=-1), np.zeros(x.shape[:-1], int)
    for c in range(r):
        far = (weight * apart).argmax(axis=-1)[..., None, None]
        d = ((x - np.take_along_axis(x, far, axis=-2)) ** 2).sum(axis=-1)
        nearest = np.where(d < apart, c, nearest)
        apart = np.minimum(d, apart) if c else d
    return nearest


def attended_landmarks(q, k, v, m):
    q, k = (x / x.shape[-1] ** 0.25 for x in (q, k))
    m, tiny = min(m, k.shape[-2]), 1e-30
    log_z = np.logaddexp.reduce(q @ k.mT, axis=-1, keepdims=True)

    def looked_at(z):    # 0.001: what nobody looks at still counts
        return np.exp(q @ z.mT - log_z).sum(axis=-2)[..., None] + 0.001

    w = looked_at(k)
    rows = np.concatenate([x / (np.linalg.norm(x, axis=(-2, -1), keepdims=True) + tiny)
                           for x in (k, v)], axis=-1)
    share = np.eye(m, dtype=k.dtype)[clusters(rows, m, w[..., 0])] * w    # (..., n, m)
    share, total = share.mT, share.sum(axis=-2)[..., None]
    z = share @ k / (total + tiny)
    return z, Bias(share @ v / looked_at(z), (total / looked_at(z))[..., 0])


def keep(c, rows):
    """Some tokens of the context as they are: rows (heads, r)."""
    k, v = (np.take_along_axis(x, rows[..., None], axis=-2) for x in (c.k, c.v))
    return k / k.shape[-1] ** 0.25, Bias(v, np.ones_like(v[..., 0]))


def landmark_features(x, landmarks):
    return x @ landmarks.mT


def converted(made):
    return [(b, partial(landmark_features, landmarks=z)) for z, b in made]


def apart(answer, expected):
    """The relative error of logits."""
    return np.linalg.norm(answer - expected) / np.linalg.norm(expected)
