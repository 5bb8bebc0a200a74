"""Rules that make a few weighted tokens of a softmax context: what stories15m.py and gpt2.py share.

A rule takes one layer's queries, keys and values of the context (`caches`) and a size m, and gives
landmarks Z (..., m, d_k), or a function of log features, and the Bias that goes with them. A row
holds d_k + d_v + 1 numbers, d_k + d_v if a token is kept as it is. `attended_landmarks` is ours.
"""

from functools import partial

import numpy as np

from iclca_ref import (farthest_rows, log_landmark_features, log_random_features, merged_bias,
                       orthogonal_projection, softmax_attend, softmax_bias)
from linear_transformer import Bias, rotate_at, run_layers, softmax

ALL = 10**9   # every token of the context


def caches(model, tokens, ahead=64):
    """Each layer's (q, k, v): keys turned to the places 1−M ... 0, the last queries to 1, 2, ...

    Those queries are a guess at what the prompt, which will stand there, is going to look for.
    """
    def attend(q, k, v, _, rope, normalize):
        m = k.shape[-2]
        return softmax_attend(q, k, v, None, rope)[0], (
            rotate_at(q[..., -ahead:, :], rope, np.arange(min(ahead, m)) + 1),
            rotate_at(k, rope, np.arange(m) + 1 - m), v)

    return run_layers(model, tokens, attend=attend)[1]


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
    """A context merged into m tokens by how the queries q look at it: landmarks and their Bias.

        w_j = Σ_i e^{q_i·k_j} / Z_i,    z_c = Σ_{j∈c} w_j k_j / Σ_{j∈c} w_j,
        u_c = Σ_i e^{q_i·z_c} / Z_i,  b_KV,c = Σ_{j∈c} w_j v_j / u_c,  b_D,c = Σ_{j∈c} w_j / u_c

    with Z_i = Σ_l e^{q_i·k_l}: q looks at each cluster c as much as at its keys. Exact if m is all of them.
    """
    q, k = (x / x.shape[-1] ** 0.25 for x in (q, k))
    m, tiny = min(m, k.shape[-2]), 1e-30
    log_z = np.logaddexp.reduce(log_landmark_features(q, k), axis=-1, keepdims=True)

    def looked_at(z):    # 0.001: what nobody looks at still counts
        return np.exp(log_landmark_features(q, z) - log_z).sum(axis=-2)[..., None] + 0.001

    w = looked_at(k)
    rows = np.concatenate([x / (np.linalg.norm(x, axis=(-2, -1), keepdims=True) + tiny)
                           for x in (k, v)], axis=-1)
    share = np.eye(m, dtype=k.dtype)[clusters(rows, m, w[..., 0])] * w    # (..., n, m)
    share, total = share.swapaxes(-1, -2), share.sum(axis=-2)[..., None]
    z = share @ k / (total + tiny)
    return z, Bias(share @ v / looked_at(z), (total / looked_at(z))[..., 0])


def keep(k, v, rows):
    """Some tokens of the context as they are: rows (heads, r)."""
    k, v = (np.take_along_axis(x, rows[..., None], axis=-2) for x in (k, v))
    return k / k.shape[-1] ** 0.25, Bias(v, np.ones_like(v[..., 0]))


def last_kept(q, k, v, m):
    """The last m tokens of the context as they are."""
    return keep(k, v, np.arange(k.shape[-2])[None, -m:])


def most_attended_kept(q, k, v, m):
    """The m tokens, in each head, that the queries attend to most, as they are."""
    attended = softmax(q @ k.swapaxes(-1, -2) / k.shape[-1] ** 0.5).sum(axis=-2)
    return keep(k, v, np.argsort(-attended, axis=-1)[..., :m])


def farthest_landmarks(q, k, v, m):
    """Each key counted at the nearest of m keys that are far apart: `merged_bias`."""
    z = farthest_rows(k / k.shape[-1] ** 0.25, min(m, k.shape[-2]))
    return z, merged_bias(k, v, z)


MERGED = {"last kept": last_kept, "most attended kept": most_attended_kept,
          "merged, farthest": farthest_landmarks, "merged, attended": attended_landmarks}
RANDOM = {"random features": lambda rng, *size: rng.standard_normal(size),
          "orthogonal features": orthogonal_projection}


def rule(name, m, d_k, rng):
    """The rule of that name: rule(q, k, v) gives landmarks, or log features, and a Bias."""
    if name in MERGED:
        return partial(MERGED[name], m=m)
    features = partial(log_random_features, projection=RANDOM[name](rng, m, d_k))
    return lambda q, k, v: (features, softmax_bias(k, v, features))


def converted(layers, rule):
    """The biases that `rule` makes of `caches`."""
    made = [rule(*layer) for layer in layers]
    return [(b, z if callable(z) else partial(log_landmark_features, landmarks=z)) for z, b in made]


def apart(answer, expected):
    """The relative error of logits."""
    return np.linalg.norm(answer - expected) / np.linalg.norm(expected)
