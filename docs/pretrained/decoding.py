"""Texts of softmax models, token by token, with a key-value cache and a converted context."""
import numpy as np
from linear_transformer import rotate_at, run_layers, softmax


def cached_attend(q, k, v, state, rope=None, normalize=True):
    """Softmax attention as `forward`'s `attend`; the state (converted, k, v) takes up each token.

    converted: None or the (Bias, log_features) of `iclaa`; k, v: of all earlier tokens, or absent.
    """
    (converted, *past), n = state, q.shape[-2]
    seen = past[0].shape[-2] if past else 0
    q, k = (rotate_at(x, rope, np.arange(n) + seen + 1) / k.shape[-1] ** 0.25 for x in (q, k))
    k, v = (np.concatenate(both, axis=-2) for both in zip(past, (k, v))) if past else (k, v)
    scores = np.where(np.tri(n, n + seen, seen), q @ k.mT, -np.inf)
    if not converted:
        return softmax(scores) @ v, (None, k, v)
    (b_kv, b_d), log_features = converted
    with np.errstate(divide="ignore"):   # log 0 = -inf: a row that is not there
        rows = log_features(q) + np.log(b_d)[..., None, :]
    p, r = softmax(np.concatenate([rows, scores], axis=-1)), rows.shape[-1]
    o = p[..., :r] @ (b_kv / np.where(b_d > 0, b_d, 1)[..., None]) + p[..., r:] @ v
    return o, (converted, k, v)


def sampler(rng):
    """A choice of tokens with the model's own probabilities, for `continuation`."""
    def choose(logits):
        p = softmax(logits).cumsum(axis=-1)
        return (p > p[..., -1:] * rng.random((*p.shape[:-1], 1))).argmax(axis=-1)

    return choose


def anywhere(model, seen):
    """The model for the tokens after `seen` others: itself, where positions are relative."""
    return model


def continuation(model, tokens, n, converted=None, choose=lambda x: x.argmax(axis=-1),
                 place=anywhere):
    """The n tokens (..., n) after tokens (..., m), the likeliest or as `choose` chooses.

    `converted` as in `forward`; `place` as `anywhere`, or GPT-2's `placed`.
    """
    new, found = np.asarray(tokens), []
    if model.max_length is not None and new.shape[-1] + n > model.max_length:
        raise ValueError(f"{new.shape} and {n} tokens are more than the model's {model.max_length}")
    states, seen = [(c,) for c in converted or [None] * len(model.layers)], 0
    for _ in range(n):
        x, states = run_layers(place(model, seen), new, states, cached_attend)
        seen += new.shape[-1]
        new = choose(model.norm(x[..., -1, :]) @ model.unembed)[..., None]
        found.append(new)
    return np.concatenate([new[..., :0], *found], axis=-1)
