"""How tokens that may come look at a context: what the rules of rules.py are made from."""

from typing import NamedTuple

import numpy as np

from iclca_ref import softmax_attend
from linear_transformer import block, rotate_at, run_layers, softmax


class Context(NamedTuple):
    """One layer's context of m tokens, and how n others, which may come after it, look at it."""

    q: np.ndarray          # (heads, ≤ 64, d_k): the context's last queries, turned to 1, 2, ...
    k: np.ndarray          # (heads, m, d_k): its keys, turned to 1−m ... 0
    v: np.ndarray          # (heads, m, d_v)
    w_o: np.ndarray        # (heads, d_v, d_model)
    attention: np.ndarray  # (heads, n, m): what the others give to each of its tokens
    weight: np.ndarray     # (n, 1): 1 / ‖x‖ of their stream; each batch of them counts alike
    plans: dict            # what `least_squares` has found out for all m


def caches(model, tokens):
    """Each layer's q, k, v of a context, as a Context has them."""
    def attend(q, k, v, _, rope, normalize):
        n, last = np.arange(k.shape[-2]) + 1, q[..., -64:, :]
        return softmax_attend(q, k, v, None, rope)[0], (
            rotate_at(last, rope, n[:64]), rotate_at(k, rope, n - len(n)), v)

    return run_layers(model, tokens, attend=attend)[1]


def looks(model, cached, tokens):
    """How tokens (b, n) after a context look at it: (heads, b n, m), and their weight, by layer."""
    x, found = model.embed[tokens], []
    for layer, (_, k, v) in zip(model.layers, cached):
        def attend(q, k_x, v_x, _, rope, normalize):
            n, m = q.shape[-2], k.shape[-2]
            q, k_x = (rotate_at(y, rope, np.arange(n) + 1) for y in (q, k_x))
            own = np.where(np.tri(n), q @ k_x.mT, -np.inf)
            p = softmax(np.concatenate([q @ k.mT, own], axis=-1) / k.shape[-1] ** 0.5)
            return p[..., :m] @ v + p[..., m:] @ v_x, p[..., :m]

        weight = ((x * x).sum(axis=-1) * x[..., 0].size).reshape(-1, 1) ** -0.5
        x, attention = block(x, layer, model, None, attend)
        found.append((np.concatenate([*attention], axis=-2), weight))
    return found


def contexts(model, tokens, *after, reader=None):
    """A Context for each layer; `after` are batches of tokens (n,) or (b, n) that may come next.

    `reader` is the model that reads those, where the place in a text changes it (GPT-2).
    """
    cached = caches(model, tokens)
    seen = [looks(reader or model, cached, np.atleast_2d(batch)) for batch in after]
    return [Context(*qkv, layer.w_o, *(np.concatenate(x, axis=-2) for x in zip(*batches)), {})
            for qkv, layer, *batches in zip(cached, model.layers, *seen)]
