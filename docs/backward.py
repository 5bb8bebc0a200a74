"""The gradient of a transformer of linear attention, and Adam: what it takes to train one.

The backward pass of linear attention is linear attention. Let A(q, k, v; s) be attention without
normalizer and rotations, o_i = Σ_{j≤i} (q_i·k_j) v_j + sᵀ q_i, with the last state s' = s + Σ_j
k_j v_jᵀ, and Ā the same function run backwards in time. With g_i = ∂L/∂o_i and G = ∂L/∂s'

    ∂L/∂q = A(g, v, k; sᵀ)      ∂L/∂k = Ā(v, g, q; Gᵀ)      ∂L/∂v, ∂L/∂s = Ā(k, q, g; G)

and `linear_gradients` is these three lines. The rest is the chain rule. The forward pass is that of
linear_transformer.py itself: it runs with functions that write down what went in and came out, and
the backward pass reads these notes from the end. Symbols are those of linear_transformer.py; d_x
stands for ∂L/∂x. Cumulative sums as the gradients: Katharopoulos et al. 2020 (2006.16236), §3.3.1.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from linear_transformer import (Bias, Layer, chunked_attention, elu_plus_one, gelu, identity, layer_norm,
                                relu, rotate_at, run_layers)


# ---- Functions of entries and of tokens: y = f(x) and g = ∂L/∂y give ∂L/∂x ------------------------

def gelu_backward(x, y, g):
    """With t = tanh(u), y = x (1 + t)/2: dy/dx = (1 + t)/2 + x (1 − t²)/2 · du/dx."""
    c, square = (2 / np.pi) ** 0.5, x * x
    t = np.tanh(c * x * (1 + 0.044715 * square))
    return g * (1 + t) / 2 * (1 + x * (1 - t) * (c + 3 * 0.044715 * c * square))


def layer_norm_backward(x, y, g):
    """(g − mean(g) − y mean(g y)) / σ, where y = (x − mean(x)) / σ, over the last axis."""
    sigma = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    mean_g, mean_gy = (a.mean(axis=-1, keepdims=True) for a in (g, g * y))
    return (g - mean_g - y * mean_gy) / sigma


BACKWARD = {identity: lambda x, y, g: g,
            relu: lambda x, y, g: g * (x > 0),
            elu_plus_one: lambda x, y, g: g * np.minimum(y, 1),   # exp(x) below 0, 1 above
            gelu: gelu_backward,
            layer_norm: layer_norm_backward}


# ---- Attention: the theorem ------------------------------------------------------------------------

def A(q, k, v, s):
    """o_i = Σ_{j≤i} (q_i·k_j) v_j + sᵀ q_i and s' = s + Σ_j k_j v_jᵀ: s (..., d_k, d_v)."""
    o, last = chunked_attention(q, k, v, Bias(s, 0 * s.sum(axis=-1)), normalize=False)
    return o, last.kv


def reversed_in_time(q, k, v, s):
    """Ā: the same with Σ_{j≥i}."""
    o, last = A(*(x[..., ::-1, :] for x in (q, k, v)), s)
    return o[..., ::-1, :], last


def linear_gradients(q, k, v, s, g, G):
    """∂L/∂q, ∂L/∂k, ∂L/∂v and ∂L/∂s of o, s' = A(q, k, v; s), from g = ∂L/∂o and G = ∂L/∂s'."""
    d_q, _ = A(g, v, k, s.mT)
    d_k, _ = reversed_in_time(v, g, q, G.mT)
    d_v, d_s = reversed_in_time(k, q, g, G)
    return d_q, d_k, d_v, d_s


def attention_gradients(q, k, v, bias, rope, normalize, o, g, G=None):
    """∂L/∂q, ∂L/∂k, ∂L/∂v and the Bias of ∂L/∂bias, of o, state = attention(q, k, v, bias, ...).

    g (..., n, d_v) is ∂L/∂o, G the Bias of ∂L/∂state, zeros if None. Rotations: q and k are turned,
    the gradients turned back. Normalizer: o = above/below, so g/below goes into the numerator's
    pass, and −(g/below)·o into a second one, of keys with the value 1 and without rotations.
    """
    start, places, one = Bias.start(k, v, bias), np.arange(q.shape[-2]) + 1, 0 * v[..., :1] + 1
    G = Bias(0 * start.kv, 0 * start.d) if G is None else G.turned(rope, len(places))
    g_below = 0 * g[..., :1]
    if normalize:
        g = g / A(q, k, one, start.d[..., None])[0]
        g_below = -(g * o).sum(axis=-1, keepdims=True)
    turned = (rotate_at(x, rope, places) for x in (q, k))
    d_rq, d_rk, d_v, d_kv = linear_gradients(*turned, v, start.kv, g, G.kv)
    d_q, d_k, _, d_d = linear_gradients(q, k, one, start.d[..., None], g_below, G.d[..., None])
    d_q, d_k = d_q + rotate_at(d_rq, rope, -places), d_k + rotate_at(d_rk, rope, -places)
    return d_q, d_k, d_v, Bias(d_kv, d_d[..., 0])


# ---- The transformer -------------------------------------------------------------------------------

FUNCTIONS = "phi", "norm", "activation"   # of a Transformer


def recorded(function, notes):
    """The same function; each call appends (first argument or all, result) to `notes`."""
    def call(*arguments):
        notes.append((arguments if len(arguments) > 1 else arguments[0], function(*arguments)))
        return notes[-1][1]
    return call


def rows(x):
    """x (..., d) as a matrix, also for d = 0."""
    return x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1])


def summed(x, ndim):
    """x summed over its leading axes, down to `ndim`."""
    return x.sum(axis=tuple(range(x.ndim - ndim)))


def block_gradients(layer, model, notes, d_x):
    """∂L/∂x, a Layer and a Bias of gradients of one `block`, whose notes it takes from the end."""
    phi, norm, activation = (BACKWARD[getattr(model, name)] for name in FUNCTIONS)
    inner, hidden = map(rows, notes.pop())
    stream, m = (None, None) if model.parallel else notes.pop()
    arguments, (o, _) = notes.pop()
    (k_0, k), (q_0, q), (x, h) = (notes.pop() for _ in range(3))

    d_inner = activation(inner, hidden, rows(d_x) @ layer.w_2.T)
    d_m = (d_inner @ layer.w_1.T).reshape(d_x.shape)
    d_stream = d_x if model.parallel else d_x + norm(stream, m, d_m)
    d_heads, h_heads = d_stream[..., None, :, :], h[..., None, :, :]
    d_q, d_k, d_v, d_bias = attention_gradients(*arguments, o, d_heads @ layer.w_o.mT)
    d_qkv = phi(q_0, q, d_q), phi(k_0, k, d_k), d_v
    d_h = sum((d @ w.mT).sum(axis=-3) for d, w in zip(d_qkv, layer))

    d_layer = Layer(*(summed(h_heads.mT @ d, 3) for d in d_qkv), summed(o.mT @ d_heads, 3),
                    rows(h if model.parallel else m).T @ d_inner, hidden.T @ rows(d_x),
                    0 * layer.theta)   # theta is not trained
    return d_stream + norm(x, h, d_h + d_m if model.parallel else d_h), d_layer, d_bias


def cross_entropy(logits, answers):
    """The mean of −log softmax(logits)[answer], and its gradient: logits (n, vocab_size)."""
    log_p = logits - logits.max(axis=-1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(axis=-1, keepdims=True))
    p, right = np.exp(log_p), np.arange(logits.shape[-1]) == answers[:, None]
    return -log_p[right].mean(), (p - right.astype(p.dtype)) / len(p)


def loss_and_gradients(model, tokens, targets, biases=None):
    """The mean cross entropy, and its gradients: of the model's weights, of what it starts from.

    tokens and targets (..., n) are integers; a target of −1 is none. Returns the loss, a
    Transformer of gradients (of theta: 0) and, for each layer, a Bias of gradients in the shape of
    its bias, or (heads, ...) if it starts from nothing. Raises TypeError for functions that are not
    in BACKWARD, ValueError and IndexError for targets that do not fit, and as `forward` does.
    """
    for name in FUNCTIONS:
        if getattr(model, name) not in BACKWARD:
            known = ", ".join(f.__name__ for f in BACKWARD)
            raise TypeError(f"{name} must be one of {known}, got {getattr(model, name)!r}")
    targets, notes = np.asarray(targets), []
    asked = targets >= 0
    if targets.shape != np.shape(tokens) or not asked.any():
        raise ValueError(f"targets must have the shape of tokens, {np.shape(tokens)}, and hold one "
                         f"that is not −1, got {targets.shape}")
    if targets.max() >= model.unembed.shape[1]:
        raise IndexError(f"targets must be below {model.unembed.shape[1]}, got {targets.max()}")
    noted = model._replace(**{name: recorded(getattr(model, name), notes) for name in FUNCTIONS})
    x, _ = run_layers(noted, tokens, biases, recorded(chunked_attention, notes))

    h = model.norm(x[asked])
    loss, d_logits = cross_entropy(h @ model.unembed, targets[asked])
    d_x, d_layers, d_biases, d_embed = 0 * x, [], [], 0 * model.embed
    d_x[asked] = BACKWARD[model.norm](x[asked], h, d_logits @ model.unembed.T)
    for layer, bias in zip(model.layers[::-1], (biases or [None] * len(model.layers))[::-1]):
        d_x, d_layer, d_bias = block_gradients(layer, model, notes, d_x)
        ndim = bias.kv.ndim if bias else 3
        d_layers.insert(0, d_layer)
        d_biases.insert(0, Bias(summed(d_bias.kv, ndim), summed(d_bias.d, ndim - 1)))
    np.add.at(d_embed, tokens, d_x)
    return loss, model._replace(embed=d_embed, layers=tuple(d_layers),
                                unembed=h.T @ d_logits), d_biases


# ---- Adam: a tree is an array, or a tuple or list of trees (a Transformer, a list of Biases) --------

def mapped(f, tree, *others):
    """f of the arrays at the same place of all trees, in a tree like the first."""
    if not isinstance(tree, (tuple, list)):
        return f(tree, *others) if isinstance(tree, np.ndarray) else tree
    parts = [mapped(f, *parts) for parts in zip(tree, *others)]
    return tree._make(parts) if hasattr(tree, "_make") else type(tree)(parts)


def arrays(tree):
    """The arrays of a tree, in order."""
    found = []
    mapped(found.append, tree)
    return found


def adam(tree, gradients, rate, moments=None, betas=(0.9, 0.98), clip=1.0):
    """One step of Adam (Kingma and Ba 2015): the tree and the moments for the next, nothing kept.

        m = β₁ m + (1 − β₁) g,   v = β₂ v + (1 − β₂) g²,   x − rate · (m / c₁) / (√(v / c₂) + 1e-8)

    with c = 1 − βᵗ at step t and g scaled down, if need be, to the norm `clip` of all together.
    """
    t, m, v = moments or (0, mapped(np.zeros_like, tree), mapped(np.zeros_like, tree))
    norm = sum(float((g * g).sum()) for g in arrays(gradients)) ** 0.5
    (b1, b2), t, scale = betas, t + 1, min(1.0, clip / max(norm, 1e-30))
    m = mapped(lambda m, g: b1 * m + (1 - b1) * scale * g, m, gradients)
    v = mapped(lambda v, g: b2 * v + (1 - b2) * (scale * g) ** 2, v, gradients)
    c1, c2 = 1 - b1**t, 1 - b2**t
    return mapped(lambda x, m, v: x - rate * (m / c1) / ((v / c2) ** 0.5 + 1e-8), tree, m, v), (t, m, v)
