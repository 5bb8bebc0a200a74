"""The gradient of a transformer of linear attention, which is linear attention again; and Adam.

Let A(q, k, v; s) be attention without normalizer and rotations, o_i = Σ_{j≤i} (q_i·k_j) v_j + sᵀ
q_i with the last state s' = s + Σ_j k_j v_jᵀ, and Ā the same run backwards in time. Then, with g
for ∂L/∂o and G for ∂L/∂s' (docs/derivation.md; as sums: Katharopoulos et al. 2020, §3.3.1)

    ∂L/∂q = A(g, v, k; sᵀ)      ∂L/∂k = Ā(v, g, q; Gᵀ)      ∂L/∂v, ∂L/∂s = Ā(k, q, g; G)

The rest is the chain rule: the forward pass is linear_transformer's own, with functions that note
what goes in and comes out, and the backward pass takes the notes from the end. d_x is ∂L/∂x.
"""
import numpy as np
from linear_transformer import (Bias, Layer, chunked_attention, elu_plus_one, forward, gelu,
                                identity, layer_norm, relu, rotate_at)


def gelu_backward(x, y, g):
    """y = x (1 + t)/2 with t = tanh(u): dy/dx = (1 + t)/2 · (1 + x (1 − t) du/dx)."""
    c, square = (2 / np.pi) ** 0.5, x * x
    t = np.tanh(c * x * (1 + 0.044715 * square))
    return g * (1 + t) / 2 * (1 + x * (1 - t) * (c + 3 * 0.044715 * c * square))


def layer_norm_backward(x, y, g):
    """(g − mean(g) − y mean(g y)) / σ for y = (x − mean(x)) / σ."""
    mean_g, mean_gy = (a.mean(axis=-1, keepdims=True) for a in (g, g * y))
    return (g - mean_g - y * mean_gy) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)


BACKWARD = {identity: lambda x, y, g: g, relu: lambda x, y, g: g * (x > 0),
            elu_plus_one: lambda x, y, g: g * np.minimum(y, 1),   # 1, and exp(x) below 0
            gelu: gelu_backward, layer_norm: layer_norm_backward}   # (x, f(x), d_f) to d_x


def A(q, k, v, s, time=1):
    """o_i = Σ_{j≤i} (q_i·k_j) v_j + sᵀ q_i, s' = s + Σ_j k_j v_jᵀ; time = −1: with j ≥ i, Ā."""
    q, k, v = (x[..., ::time, :] for x in (q, k, v))
    o, last = chunked_attention(q, k, v, Bias(s, 0 * s.sum(axis=-1)), normalize=False)
    return o[..., ::time, :], last.kv


def linear_gradients(q, k, v, s, g, G):
    """The theorem: d_q, d_k, d_v, d_s of o, s' = A(q, k, v, s), from g = d_o and G = d_s'."""
    d_q, _ = A(g, v, k, s.mT)
    d_k, _ = A(v, g, q, G.mT, time=-1)
    return d_q, d_k, *A(k, q, g, G, time=-1)


def attention_gradients(q, k, v, bias, rope, normalize, o, g, G=None):
    """The gradients of o, state = attention(q, k, v, bias, ...), from g = d_o and G = d_state:
    q and k are turned, their gradients turned back. The normalizer: o = above/below, so g/below
    enters the numerator's pass, and −(g/below)·o a second one, with the value 1 and not turned.
    """
    start, one = Bias.start(k, v, bias), np.ones_like(v[..., :1])
    places = np.arange(q.shape[-2]) + 1
    G = Bias(0 * start.kv, 0 * start.d) if G is None else G.turned(rope, len(places))
    if normalize:
        g = g / A(q, k, one, start.d[..., None])[0]
    g_below = -(g * o).sum(axis=-1, keepdims=True) * int(normalize)
    rq, rk = (rotate_at(x, rope, places) for x in (q, k))
    *turned, d_v, d_kv = linear_gradients(rq, rk, v, start.kv, g, G.kv)
    *more, _, d_d = linear_gradients(q, k, one, start.d[..., None], g_below, G.d[..., None])
    d_q, d_k = (rotate_at(t, rope, -places) + m for t, m in zip(turned, more))
    return d_q, d_k, d_v, Bias(d_kv, d_d[..., 0])


def block_gradients(layer, model, notes, d_x):
    """Of one `block`, whose notes it takes from the end: d_x, a Layer and a Bias of gradients."""
    phi, norm, activation = (BACKWARD[f] for f in (model.phi, model.norm, model.activation))
    inner, hidden = notes.pop()
    stream, m = (None, None) if model.parallel else notes.pop()
    *arguments, (o, _) = notes.pop()
    (k_0, k), (q_0, q), (x, h) = (notes.pop() for _ in range(3))
    rows, over = d_x.reshape(len(inner), -1), tuple(range(x.ndim - 2))
    d_inner = activation(inner, hidden, rows @ layer.w_2.T)
    d_m = (d_inner @ layer.w_1.T).reshape(x.shape)
    d_stream, d_h = (d_x, d_m) if model.parallel else (d_x + norm(stream, m, d_m), 0)
    d_o, per_head = d_stream[..., None, :, :], [h[..., None, :, :]] * 3 + [o]
    d_q, d_k, d_v, d_bias = attention_gradients(*arguments, o, d_o @ layer.w_o.mT)
    d_all = phi(q_0, q, d_q), phi(k_0, k, d_k), d_v, d_o
    d_h = d_h + sum((d @ w.mT).sum(axis=-3) for d, w in zip(d_all[:3], layer))
    d_w = [(x.mT @ d).sum(axis=over) for x, d in zip(per_head, d_all)]
    d_mlp = (h if model.parallel else m).reshape(rows.shape).T @ d_inner, hidden.T @ rows
    return d_stream + norm(x, h, d_h), Layer(*d_w, *d_mlp, 0 * layer.theta), d_bias


def gradients(model, tokens, loss, biases=None):
    """L, a Transformer of gradients and a list of Biases, for loss(logits) -> (L, d_logits)."""
    def noted(f):
        return lambda *x: notes.append((*x, f(*x))) or notes[-1][-1]
    functions = dict(phi=model.phi, norm=model.norm, activation=model.activation)
    if unknown := {name: f for name, f in functions.items() if f not in BACKWARD}:
        raise TypeError(f"functions without a backward function: {unknown}")
    with_notes = model._replace(**{name: noted(f) for name, f in functions.items()})
    notes, biases = [], [None] * len(model.layers) if biases is None else list(biases)
    logits, _ = forward(with_notes, tokens, biases, noted(chunked_attention))
    (value, d_logits), (x, h) = loss(logits), notes.pop()
    d_x = BACKWARD[model.norm](x, h, d_logits @ model.unembed.T)
    d_unembed = (h.mT @ d_logits).sum(axis=tuple(range(h.ndim - 2)))
    d_embed, d_layers = 0 * model.embed, list(model.layers)
    for i in reversed(range(len(biases))):
        d_x, d_layers[i], d_bias = block_gradients(model.layers[i], model, notes, d_x)
        served = range(d_bias.kv.ndim - (biases[i].kv.ndim if biases[i] else 3))   # by one bias
        biases[i] = Bias(*(b.sum(axis=tuple(served)) for b in d_bias))
    np.add.at(d_embed, tokens, d_x)
    return value, model._replace(embed=d_embed, layers=tuple(d_layers), unembed=d_unembed), biases


def loss_and_gradients(model, tokens, targets, biases=None):
    """The mean cross entropy of targets (..., n), none where −1, and its gradients: a Transformer
    (theta is not trained: 0), and a Bias for each layer, of its bias' shape or (heads, ...).
    """
    targets, width = np.asarray(targets), model.unembed.shape[1]
    right = targets[..., None] == np.arange(width)   # one of a row, or none
    if targets.shape != np.shape(tokens) or not right.any() or targets.max() >= width:
        raise ValueError(f"targets must be −1 or below {width}, not all −1, of the tokens' shape")

    def cross_entropy(logits):
        z = logits - logits.max(axis=-1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        d_logits = (np.exp(log_p) - right) * right.any(axis=-1, keepdims=True)
        return -log_p[right].mean(), d_logits / float(right.sum())
    return gradients(model, tokens, cross_entropy, biases)


def mapped(f, tree, *others):
    """f of the arrays at one place of all trees: an array, or a tuple or list of trees."""
    if not isinstance(tree, (tuple, list)):
        return f(tree, *others) if isinstance(tree, np.ndarray) else tree
    parts = [mapped(f, *parts) for parts in zip(tree, *others)]
    return tree._make(parts) if hasattr(tree, "_make") else type(tree)(parts)


def adam(tree, gradients, rate, moments=None, betas=(0.9, 0.98), clip=1.0):
    """One step of Adam, of gradients clipped to norm `clip`: the tree, the moments for the next."""
    t, m, v = moments or (0, *[mapped(np.zeros_like, tree)] * 2)
    squares, t, (b1, b2) = [], t + 1, betas
    mapped(lambda _, g: squares.append(float((g * g).sum())), tree, gradients)
    scale = min(1.0, clip / max(sum(squares) ** 0.5, 1e-30))
    m = mapped(lambda m, g: b1 * m + (1 - b1) * scale * g, m, gradients)
    v = mapped(lambda v, g: b2 * v + (1 - b2) * (scale * g) ** 2, v, gradients)
    step, least = rate * (1 - b2**t) ** 0.5 / (1 - b1**t), 1e-8 * (1 - b2**t) ** 0.5
    return mapped(lambda x, m, v: x - step * m / (v ** 0.5 + least), tree, m, v), (t, m, v)
