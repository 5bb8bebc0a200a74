"""Linear-attention transformers in NumPy: from tokens to outputs.

Softmax attention compares every token with every earlier one. Linear attention replaces exp(q·k) by
a product of features, φ(q)·φ(k), and then the sum over earlier tokens is taken once and carried on:

    o_i = φ(q_i)ᵀ s_i / (φ(q_i)·z_i),    s_i = s_{i−1} + φ(k_i) v_iᵀ,    z_i = z_{i−1} + φ(k_i),

so a layer remembers all that it has read in one matrix s and one vector z. Here are that attention
in three forms (token by token, all at once, in chunks) and the transformer around it. It may start
from any state, a `Bias`; iclca_ref.py computes the one that stands for a whole context.

Glossary (rows are tokens; heads and batches are leading axes, written ...):

    n, m           number of tokens in the prompt, in the context (the paper's N, M)
    d_k, d_v       width of a head's queries and keys, of its values; d_model: of the stream
    q, k, v        queries and keys after the feature map (..., n, d_k), values (..., n, d_v)
    phi            the feature map φ
    theta          rotary frequencies (d_k/2,), in radians per token
    rope           None, or a function such as partial(rope, theta=theta) from positions (n,),
                   counted from 1, negative ones too, to the (cos, sin) (n, d_k/2) of R_1, R_2, ...
    R_i            the rotation at position i: pairs of features turn by the angles i·theta
    Bias(kv, d)    the state: kv (..., d_k, d_v) is the paper's b_KV or s, d (..., d_k) its b_D or z

Arithmetic comes from the input, by NumPy's own promotion: float32 gives float32 (an np.float64
scalar makes it float64, Python's numbers and rotations do not), object arrays of Fractions or any
exact ring the same: a field where something is divided, so no ints. Shapes that do not fit are a
ValueError that shows them; bool, unsigned numbers and float16, whose sums go wrong silently, a
TypeError. ICLCA is Chen et al., ICML 2024 (arXiv 2406.02847).
"""

from functools import partial
from typing import Callable, NamedTuple

import numpy as np


def check_shapes(spec, *arrays):
    """Raise ValueError unless the arrays have the shapes of `spec`, such as "q:nk k:nk v:nv".

    Every letter is one length. Heads and batches are equal axes before them; where a name has a ?
    the first of them may be left out, and the array serves the whole batch.
    """
    parts, seen = [part.split(":") for part in spec.split()], {}
    for (name, letters), a in zip(parts, arrays):
        if type(a) not in (np.ndarray, np.memmap) or a.dtype.char not in "bhilqpfdgFDGO":
            raise TypeError(f"{name.rstrip('?')} must be an array of signed integers, float32 or "
                            f"wider, or objects, got {type(a).__name__} {getattr(a, 'dtype', '')}")
    batch = max((a.shape[:-len(letters)] for (_, letters), a in zip(parts, arrays)), key=len)
    for (name, letters), a in zip(parts, arrays):
        n = a.ndim - len(letters)
        fits = n >= 0 and a.shape[:n] == (batch[len(batch) - n:] if name[-1] == "?" else batch)
        if not fits or tuple(map(seen.setdefault, letters, a.shape[n:])) != a.shape[n:]:
            got = ", ".join(f"{name.rstrip('?')} {a.shape}" for (name, _), a in zip(parts, arrays))
            raise ValueError(f"shapes must be {spec} after equal leading axes, got {got}")


# ---- Functions of single entries and of single tokens -------------------------------------------

def identity(x):
    """x itself: the feature map or norm of a model that has none."""
    return x


def relu(x):
    """max(x, 0), elementwise."""
    return np.maximum(x, 0)


def elu_plus_one(x):
    """elu(x) + 1, a positive feature: x + 1 above 0, exp(x) below (Katharopoulos et al. 2020)."""
    return np.maximum(x, 0) + np.exp(np.minimum(x, 0))


def gelu(x):
    """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))): GELU in the tanh form of GPT-2 and GPT-J."""
    return x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x)))


def layer_norm(x):
    """(x − mean) / √(variance + 1e-5) over the last axis: layer normalization, gain 1, offset 0."""
    centered = x - np.mean(x, axis=-1, keepdims=True)
    return centered / np.sqrt((centered * centered).mean(axis=-1, keepdims=True) + 1e-5)


def softmax(x):
    """exp(x_j) / Σ_l exp(x_l) over the last axis; the largest entry is subtracted first."""
    e = np.exp(x - np.max(np.add(x, 0.0), axis=-1, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=-1, keepdims=True)


# ---- Rotary position embedding (Su et al. 2021; ICLCA Eq 12) ------------------------------------

def rope_frequencies(d, base=10_000.0):
    """RoFormer's frequencies θ_m = base^(−2m/d), m < d/2, in radians per token: (d/2,), d even."""
    if d < 0 or d % 2:
        raise ValueError(f"d must be even, and not negative, to rotate pairs, got {d}")
    return base ** (-np.arange(0, d, 2) / d)


def rope(positions, theta):
    """The cosines and sines of the angles position · θ_m: (n,) and (d/2,) give two arrays (n, d/2).

    Angles are float64, as in float32 one is off by 0.0005 at 10,000; the results have theta's type.
    """
    angles, dtype = np.multiply.outer(positions, theta, dtype=np.float64), np.asarray(theta).dtype
    return tuple(f(angles).astype(dtype if dtype.kind == "f" else float) for f in (np.cos, np.sin))


def rotate(x, cos, sin):
    """R x: turn the pairs (x_0, x_1), (x_2, x_3), ... by the angles of cos and sin (RoFormer).

        (x_{2m}, x_{2m+1})  becomes  (cos_m x_{2m} − sin_m x_{2m+1},  sin_m x_{2m} + cos_m x_{2m+1})

    x (..., n, d); cos and sin (..., n, d/2), or one row for all n.
    """
    check_shapes("x:nd cos?:rh sin?:rh", x, cos, sin)
    if cos.shape[-2] not in (1, x.shape[-2]) or 2 * cos.shape[-1] != x.shape[-1]:
        raise ValueError(f"cos {cos.shape}, sin {sin.shape} must be half as wide as x {x.shape}")
    if x.dtype in (np.float32, np.float64) and "c" not in cos.dtype.kind + sin.dtype.kind:
        # complex numbers times exp(i·angle): the same, faster
        z = np.ascontiguousarray(x).view(np.result_type(x, np.complex64))
        return (z * (cos + 1j * sin).astype(z.dtype)).view(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack([cos * even - sin * odd, sin * even + cos * odd], axis=-1).reshape(x.shape)


def rotate_at(x, rope, positions):
    """R_i x_i for each row x_i of x (..., n, d) and its position i; x itself without `rope`."""
    return x if rope is None else rotate(x, *rope(positions))


# ---- Linear attention: one function in three forms ----------------------------------------------

class Bias(NamedTuple):
    """The state of linear attention, and what a context becomes: the paper's b_KV and b_D.

    kv (..., d_k, d_v) and d (..., d_k), seen from where the next token has position 1 (Theorem
    4.5); without leading axes one serves a batch. Not ALiBi's bias, which is added to the scores.
    """

    kv: np.ndarray
    d: np.ndarray

    @staticmethod
    def start(k, v, bias=None):
        """What attention with keys k and values v starts from: `bias` for each text, or zeros."""
        full = (*k.shape[:-2], *k.shape[-1:], *v.shape[-1:])
        bias = Bias(np.zeros(full, v.dtype), np.zeros(full[:-1], k.dtype)) if bias is None else bias
        check_shapes("k:nk v:nv bias.kv?:kv bias.d?:k", k, v, *bias)
        sizes = full, full[:-1]
        return Bias(*(x if x.shape == n else np.broadcast_to(x, n) for x, n in zip(bias, sizes)))

    def turned(self, rope, n):
        """R_n b_KV, and b_D as it is: the state seen from n positions earlier (−n: later)."""
        return Bias(rotate_at(self.kv.mT, rope, np.array([n])).mT, self.d)


def _divide(o, normalizer):
    """o_i / normalizer_i: (..., n, d_v), (..., n, 1). One that cancels to nearly 0 costs digits."""
    if (normalizer == 0).any():
        raise ValueError("normalizer φ(q)·(Σ φ(k) + b_D) is 0: take positive features, or none")
    return o / normalizer


def recurrent_attention(q, k, v, bias=None, rope=None, normalize=True):
    """Linear attention token by token, as an RNN: the definition of the other two forms too.

        s_i = s_{i−1} + R_i φ(k_i) v_iᵀ,   z_i = z_{i−1} + φ(k_i),
        o_i = (R_i φ(q_i))ᵀ s_i / (φ(q_i)·z_i)

    q, k (..., n, d_k) are features already, v (..., n, d_v); `bias` is (s_0, z_0), zeros if None;
    without `rope` R_i = 1; with normalize=False the denominator is 1, else 0 is a ValueError. Gives
    o (..., n, d_v) and the state seen from the next token, Bias(R_{−n} s_n, z_n). Source: Eq 19.

    >>> one = np.ones((3, 1))
    >>> recurrent_attention(one, one, np.array([[3.0], [5.0], [10.0]]))[0].ravel()   # running mean
    array([3., 4., 6.])
    """
    check_shapes("q:nk k:nk v:nv", q, k, v)
    (s, z), n, outputs = Bias.start(k, v, bias), q.shape[-2], [v[..., :0, :]]
    rq, rk = rotate_at(np.stack([q, k]), rope, np.arange(1, n + 1))
    for i in range(n):
        q_i, k_i, v_i, rq_i, rk_i = (x[..., i, :, None] for x in (q, k, v, rq, rk))   # columns
        s, z = s + rk_i @ v_i.mT, z + k_i[..., 0]
        o_i = rq_i.mT @ s
        outputs.append(_divide(o_i, q_i.mT @ z[..., None]) if normalize else o_i)
    return np.concatenate(outputs, axis=-2), Bias(np.array(s), np.array(z)).turned(rope, -n)


def parallel_attention(q, k, v, bias=None, rope=None, normalize=True):
    """Linear attention for all tokens at once, by masked matrix products: the same function again.

        o_i = (R_i φ(q_i))ᵀ [Σ_{j≤i} R_j φ(k_j) v_jᵀ + b_KV] / (φ(q_i)ᵀ [Σ_{j≤i} φ(k_j) + b_D])

    Everything else is as in `recurrent_attention`. Source: Definition 3.3, Eq 5 and 13.
    """
    check_shapes("q:nk k:nk v:nv", q, k, v)
    (b_kv, b_d), n = Bias.start(k, v, bias), q.shape[-2]
    rq, rk = rotate_at(np.stack([q, k]), rope, np.arange(1, n + 1))
    o = np.tril(rq @ rk.mT) @ v + rq @ b_kv
    if normalize:
        o = _divide(o, np.tril(q @ k.mT).sum(axis=-1, keepdims=True) + q @ b_d[..., None])
    return o, Bias(rk.mT @ v + b_kv, k.sum(axis=-2) + b_d).turned(rope, -n)


def chunked_attention(q, k, v, bias=None, rope=None, normalize=True, chunk=32):
    """Linear attention in chunks: Eq 13 for each, started from the sums that the last one left.

    The same function as `recurrent_attention`, in time and memory that grow linearly with n; the
    sums are turned once, at the end.
    """
    check_shapes("q:nk k:nk v:nv", q, k, v)
    if not 1 <= chunk < np.inf:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    (b_kv, b_d), n, chunk = Bias.start(k, v, bias), q.shape[-2], int(chunk)
    for i in range(0, max(n, 1), chunk):
        q_c, k_c, v_c = (x[..., i:i + chunk, :] for x in (q, k, v))
        here = np.arange(n)[i:i + chunk] + 1
        rq, rk = (q_c, k_c) if rope is None else rotate_at(np.stack([q_c, k_c]), rope, here)
        scores = np.tril(rq @ rk.mT)
        o_c = scores @ v_c + rq @ b_kv
        if normalize:
            weights = np.tril(q_c @ k_c.mT) if rope is not None else scores
            o_c = _divide(o_c, weights @ np.ones_like(k_c[..., :1]) + q_c @ b_d[..., None])
        o = np.empty(v.shape, o_c.dtype) if i == 0 else o
        o[..., i:i + chunk, :] = o_c
        b_kv, b_d = rk.mT @ v_c + b_kv, k_c.sum(axis=-2) + b_d
    return o, Bias(b_kv, b_d).turned(rope, -n)


def softmax_attention(q, k, v):
    """Softmax attention, causal: o_i = Σ_{j≤i} softmax_j(q_i·k_j / √d_k) v_j, for comparison.

    q, k (..., n, d_k), v (..., n, d_v). Source: Definition 3.1, Eq 1.
    """
    check_shapes("q:nk k:nk v:nv", q, k, v)
    return softmax(np.where(np.tri(q.shape[-2]), q / q.shape[-1] ** 0.5 @ k.mT, -np.inf)) @ v


# ---- The transformer ----------------------------------------------------------------------------

class Layer(NamedTuple):
    """The weights of one layer; an MLP of width d_ff = 0 is none."""

    w_q: np.ndarray    # (heads, d_model, d_k)
    w_k: np.ndarray    # (heads, d_model, d_k)
    w_v: np.ndarray    # (heads, d_model, d_v)
    w_o: np.ndarray    # (heads, d_v, d_model)
    w_1: np.ndarray    # (d_model, d_ff)
    w_2: np.ndarray    # (d_ff, d_model)
    theta: np.ndarray  # (d_k/2,), handed to the model's rope and used nowhere else


class Transformer(NamedTuple):
    """A decoder: embedding, pre-norm layers, unembedding, and the functions that they use."""

    embed: np.ndarray    # (vocab_size, d_model)
    layers: tuple        # of Layer
    unembed: np.ndarray  # (d_model, vocab_size)
    phi: Callable = elu_plus_one
    normalize: bool = True
    norm: Callable = layer_norm
    activation: Callable = gelu
    rope: Callable = rope
    parallel: bool = False          # GPT-J's block: MLP beside attention; not `parallel_attention`
    max_length: int | None = None   # the longest text that the weights are made for, if limited


def block(x, layer, model, bias=None, attend=chunked_attention):
    """One pre-norm layer: x + Attention(norm(x)), then x + MLP(norm(x)), MLP(h) = act(h W_1) W_2.

    GPT-J's block (model.parallel) adds both to the same x (..., n, d_model). `attend` is any form
    of attention, `bias` its start; returns x after the layer and the state. All but `attend` acts
    on each token alone: a context reaches later ones through the Bias only (Def 3.4, §4.5, App D).
    """
    h = model.norm(x).reshape(-1, x.shape[-1])   # the rows of all texts: one large product
    check_shapes("x:nd w_q:hdk w_k:hdk w_v:hdv w_o:hvd w_1:df w_2:gd", h, *layer[:6])
    heads_inside = (*range(1, x.ndim - 1), 0, -2, -1)
    q, k, v = ((h @ w).reshape(len(w), *x.shape[:-1], w.shape[-1]).transpose(heads_inside)
               for w in layer[:3])
    o, bias = attend(model.phi(q), model.phi(k), v, bias, partial(model.rope, theta=layer.theta),
                     model.normalize)
    attended = x + (o @ layer.w_o).sum(axis=-3)
    h = h if model.parallel else model.norm(attended).reshape(h.shape)
    return attended + (model.activation(h @ layer.w_1) @ layer.w_2).reshape(x.shape), bias


def _embed_tokens(model, tokens, biases=None):
    """The rows of model.embed for `tokens` (..., n), and one Bias or None per layer."""
    tokens = np.asarray(tokens) if np.size(tokens) else np.zeros(np.shape(tokens), int)
    if tokens.ndim == 0 or tokens.dtype.kind not in "iu":
        raise TypeError(f"tokens must be integers (..., n), got {tokens.dtype} {tokens.shape}")
    if ((tokens < 0) | (tokens >= len(model.embed))).any():
        raise IndexError(f"need 0 ≤ tokens < {len(model.embed)}: {tokens.min()} to {tokens.max()}")
    if model.max_length is not None and tokens.shape[-1] > model.max_length:
        raise ValueError(f"tokens {tokens.shape} are more than the model's {model.max_length}")
    biases = [None] * len(model.layers) if biases is None else list(biases)
    if len(biases) != len(model.layers):
        raise ValueError(f"biases must be one per layer, {len(model.layers)}: got {len(biases)}")
    return model.embed[tokens], biases


def run_layers(model, tokens, biases=None, attend=chunked_attention):
    """The layers alone: tokens (..., n) to the stream (..., n, d_model), and the layers' states."""
    x, biases = _embed_tokens(model, tokens, biases)
    for i, layer in enumerate(model.layers):
        x, biases[i] = block(x, layer, model, biases[i], attend)
    return x, biases


def forward(model, tokens, biases=None, attend=chunked_attention):
    """The model: tokens (..., n) to logits (..., n, vocab_size), and the layers' states.

    `biases` is what each layer starts from: None, the state after earlier tokens, or a context that
    `iclca` converted. Tokens outside the vocabulary are an IndexError, none a ValueError.
    """
    x, biases = run_layers(model, tokens, biases, attend)
    check_shapes("x:nd unembed?:dv", x.reshape(-1, x.shape[-1]), model.unembed)
    if x.shape[-2] == 0:
        raise ValueError(f"tokens must not be empty, got shape {x.shape[:-1]}")
    return np.tensordot(model.norm(x), model.unembed, 1), biases


def generate(model, tokens, n, biases=None):
    """Greedy decoding: the n tokens (n,) of the largest logits, one by one, after `tokens` (m,).

    The first among equals wins; logits that are not finite are a ValueError, and so are more tokens
    to be read, m + n − 1, than model.max_length, which does not know of those that became `biases`.
    """
    (x, biases), n = _embed_tokens(model, tokens, biases), int(n)
    if n < 0 or x.ndim != 2 or not len(x) or len(x) + n - 1 > (model.max_length or np.inf):
        raise ValueError(f"tokens must be (m,), m ≥ 1, n ≥ 0, m + n − 1 ≤ {model.max_length} (if "
                         f"not None), got {np.shape(tokens)} and {n = }")
    continuation = []
    for _ in range(n):
        logits, biases = forward(model, tokens, biases)
        if not np.isfinite(logits[-1]).all():
            raise ValueError(f"logits after {len(x) + len(continuation)} tokens are not finite")
        tokens = [int(np.argmax(logits[-1]))]
        continuation += tokens
    return np.array(continuation, int)


def random_transformer(rng, vocab_size, d_model, n_layers, n_heads, d_ff=None, dtype=np.float64):
    """A model with independent normal weights of variance 1 / fan-in, elu + 1 features, and RoPE.

    What writes to the residual stream is divided by √(2·n_layers), as in GPT-2, so that it does not
    grow with depth. rng is a numpy.random.Generator; d_ff is 4·d_model if None, 0 for no MLPs.
    """
    if n_layers < 0 or n_heads < 1 or d_model % (2 * n_heads):
        raise ValueError(f"{n_layers = } must be ≥ 0, {n_heads = } ≥ 1, {d_model = } / heads even")
    d_ff, d_k, depth = 4 * d_model if d_ff is None else d_ff, d_model // n_heads, 2 * n_layers

    def weights(fan_in, *shape):
        return rng.standard_normal(shape, dtype) / float(max(fan_in, 1)) ** 0.5

    return Transformer(weights(1, vocab_size, d_model), tuple(
        Layer(*(weights(d_model, n_heads, d_model, d_k) for _ in range(3)),
              weights(depth * d_model, n_heads, d_k, d_model), weights(d_model, d_model, d_ff),
              weights(depth * d_ff, d_ff, d_model), rope_frequencies(d_k).astype(dtype))
        for _ in range(n_layers)), weights(d_model, d_model, vocab_size))
