"""Linear-attention transformers in NumPy: from tokens to outputs.

Softmax attention compares every token with every earlier one. Linear attention replaces exp(q·k) by a product of
features, φ(q)·φ(k), and then the sum over earlier tokens can be taken once and carried along,

    o_i = φ(q_i)ᵀ s_i / (φ(q_i)·z_i),    s_i = s_{i−1} + φ(k_i) v_iᵀ,    z_i = z_{i−1} + φ(k_i),

so a layer remembers all that it has read in one matrix s and one vector z. This file holds that attention in three
forms (token by token, all at once, in chunks), the transformer around it, and models whose weights are written down
by hand. A recurrence may start from any state: such a start is a `Bias`, and iclca_ref.py computes the Bias that
stands for a whole context. A model is data (NamedTuples of arrays) and functions; nothing here has hidden state.

Glossary (rows are tokens; heads and batches are leading axes, written ...):

    n, m           number of tokens in the prompt, in the context (the paper's N, M)
    d_k, d_v       width of a head's queries and keys, of its values; d_model: width of the residual stream
    q, k, v        queries and keys after the feature map (..., n, d_k), values (..., n, d_v)
    phi            the feature map φ, elementwise
    theta          rotary frequencies (d_k/2,), in radians per token
    rope           a function from positions (n,), integers counted from 1, to (cos, sin), each (n, d_k/2)
    R_i            the rotation by rope(i): pairs of features turn by the angles i·theta
    Bias(kv, d)    the state: kv (..., d_k, d_v) is the paper's b_KV or s, d (..., d_k) is its b_D or z

Arithmetic comes from the input: float32 gives float32, float64 gives float64, and object arrays of
fractions.Fraction give Fractions. ICLCA is Chen et al., ICML 2024 (arXiv 2406.02847).
"""

from functools import partial
from typing import Callable, NamedTuple

import numpy as np


# ---- Functions of single entries and of single tokens ---------------------------------------------------------------

def identity(x):
    """x itself: the feature map or norm of a model that has none."""
    return x


def relu(x):
    """max(x, 0), elementwise."""
    return np.maximum(x, 0)


def elu_plus_one(x):
    """elu(x) + 1 = x + 1 above 0, exp(x) below: the positive feature map of linear transformers (Katharopoulos 2020)."""
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def gelu(x):
    """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))): GELU in the tanh form of GPT-2 and GPT-J."""
    return x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x)))


def layer_norm(x):
    """(x − mean) / √(variance + 1e-5) over the last axis: layer normalization with gain 1 and offset 0."""
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / np.sqrt((centered * centered).mean(axis=-1, keepdims=True) + 1e-5)


def softmax(x):
    """exp(x_j) / Σ_l exp(x_l) over the last axis; the largest entry is subtracted first, so nothing overflows."""
    e = np.exp(x - x.max(axis=-1, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=-1, keepdims=True)


# ---- Rotary position embedding (Su et al. 2021; ICLCA Eq 12) --------------------------------------------------------

def rope_frequencies(d, base=10_000.0):
    """RoFormer's frequencies θ_m = base^(−2m/d), m = 0 ... d/2 − 1, in radians per token: (d/2,).

    Raises ValueError if d is odd.
    """
    if d % 2:
        raise ValueError(f"d must be even to rotate pairs, got {d}")
    return base ** (-np.arange(0, d, 2) / d)


def rope(positions, theta):
    """The cosines and sines of the angles position · θ_m: (n,) integers and (d/2,) give two arrays (n, d/2).

    The angles are computed in float64, because a float32 angle at position 10,000 is off by 0.0005; the results
    have theta's type.

    >>> rope(np.array([0, 1, -1]), np.array([np.pi / 2]))[1]
    array([[ 0.],
           [ 1.],
           [-1.]])
    """
    angles = np.multiply.outer(positions, theta)  # whole numbers times float32 are float64 in NumPy
    return np.cos(angles).astype(theta.dtype), np.sin(angles).astype(theta.dtype)


def rotate(x, cos, sin):
    """R x: turn the pairs (x_0, x_1), (x_2, x_3), ... by the angles that cos and sin belong to (RoFormer, interleaved).

        (x_{2m}, x_{2m+1})  becomes  (cos_m x_{2m} − sin_m x_{2m+1},  sin_m x_{2m} + cos_m x_{2m+1})

    x (..., n, d); cos and sin (n, d/2) or (1, d/2). The result has x's shape and x's floating type.
    Raises ValueError if cos and sin do not have half of x's width.
    """
    if 2 * cos.shape[-1] != x.shape[-1] or cos.shape != sin.shape:
        raise ValueError(f"cos {cos.shape} and sin {sin.shape} must have half the width of x {x.shape}")
    even, odd = x[..., 0::2], x[..., 1::2]
    rotated = np.empty_like(x, dtype=x.dtype if x.dtype.kind == "f" else np.result_type(x, cos))
    rotated[..., 0::2] = cos * even - sin * odd
    rotated[..., 1::2] = sin * even + cos * odd
    return rotated


# ---- Linear attention: one function in three forms ------------------------------------------------------------------

class Bias(NamedTuple):
    """The state of linear attention, and what a context becomes: kv is b_KV (..., d_k, d_v), d is b_D (..., d_k).

    It stands in the frame just before position 1: the token that comes next has position 1 (Theorem 4.5).
    Leading axes may be left out, and then one Bias serves the whole batch.
    """

    kv: np.ndarray
    d: np.ndarray

    @staticmethod
    def start(q, k, v, bias=None):
        """What attention over q, k (..., n, d_k) and v (..., n, d_v) starts from: `bias`, or zeros in k's and v's arithmetic.

        Raises ValueError unless all of the shapes fit.
        """
        if not (q.shape == k.shape and k.ndim >= 2 and k.shape[:-1] == v.shape[:-1]):
            raise ValueError(f"q, k must be (..., n, d_k) and v (..., n, d_v), got q {q.shape}, k {k.shape}, v {v.shape}")
        shape = (*k.shape[:-2], k.shape[-1], v.shape[-1])
        if bias is None:
            return Bias(np.zeros(shape, v.dtype), np.zeros(shape[:-1], k.dtype))
        kv, d = bias
        if kv.ndim < 2 or kv.shape != shape[-kv.ndim:] or d.shape != kv.shape[:-1]:
            raise ValueError(f"bias must be kv {shape} and d {shape[:-1]}, got kv {kv.shape} and d {d.shape}")
        return Bias(np.broadcast_to(kv, shape), np.broadcast_to(d, shape[:-1]))

    def turned(self, rope, n):
        """R_n b_KV, and b_D as it is: the state seen from n positions before; from n after, it is turned by −n."""
        if rope is None:
            return self
        return Bias(rotate(self.kv.swapaxes(-1, -2), *rope(np.array([n]))).swapaxes(-1, -2), self.d)

    def normalizer(self, q, z=0):
        """φ(q)ᵀ (z + b_D) for each row of q (..., n, d_k): (..., n, 1). Raises ValueError where it is 0."""
        normalizer = (q * (z + self.d[..., None, :])).sum(axis=-1, keepdims=True)
        if (normalizer == 0).any():
            raise ValueError("the normalizer φ(q)·(Σ φ(k) + b_D) is 0 for a token: take positive features or no normalizer")
        return normalizer


def recurrent_attention(q, k, v, bias=None, rope=None, normalize=True):
    """Linear attention token by token, as an RNN: the definition that the other two forms are tested against.

        s_i = s_{i−1} + R_i φ(k_i) v_iᵀ,   z_i = z_{i−1} + φ(k_i),   o_i = (R_i φ(q_i))ᵀ s_i / (φ(q_i)·z_i)

    q, k (..., n, d_k) are features already, v (..., n, d_v); `bias` is (s_0, z_0), zeros if None; without `rope`
    R_i = 1; with normalize=False the denominator is 1. Returns o (..., n, d_v) and the state after the last token
    in the frame of the next one, Bias(R_{−n} s_n, z_n).
    Raises ValueError for shapes that do not fit and for a denominator of 0.
    Source: §7, Eq 19, with kernelized attention's D₁ = φ and D₂ = Σ φ(K_j) (Definition 3.2).

    >>> one = np.ones((3, 1))
    >>> recurrent_attention(one, one, np.array([[3.0], [5.0], [10.0]]))[0].ravel()      # the mean so far
    array([3., 4., 6.])
    """
    state, n = Bias(*map(np.array, Bias.start(q, k, v, bias))), q.shape[-2]   # copies: the result is not the argument
    rq, rk = (rotate(x, *rope(np.arange(1, n + 1))) if rope else x for x in (q, k))
    outputs = [v[..., :0, :]]
    for i in range(n):
        q_i, k_i, v_i, rq_i, rk_i = (x[..., i:i + 1, :] for x in (q, k, v, rq, rk))
        state = Bias(state.kv + rk_i.swapaxes(-1, -2) @ v_i, state.d + k_i[..., 0, :])
        o_i = rq_i @ state.kv
        outputs.append(o_i / state.normalizer(q_i) if normalize else o_i)
    return np.concatenate(outputs, axis=-2), state.turned(rope, -n)


def parallel_attention(q, k, v, bias=None, rope=None, normalize=True):
    """Linear attention for all tokens at once, as masked matrix products; the same function as `recurrent_attention`.

        o_i = (R_i φ(q_i))ᵀ [Σ_{j≤i} R_j φ(k_j) v_jᵀ + b_KV] / (φ(q_i)ᵀ (Σ_{j≤i} φ(k_j) + b_D))

    Arguments, result and errors as there. Time and memory grow with n². Source: Definition 3.3, Eq 5 and 13.
    """
    b, n = Bias.start(q, k, v, bias), q.shape[-2]
    causal = np.tri(n, dtype=k.dtype)
    rq, rk = (rotate(x, *rope(np.arange(1, n + 1))) if rope else x for x in (q, k))
    o = (causal * (rq @ rk.swapaxes(-1, -2))) @ v + rq @ b.kv
    if normalize:
        o = o / b.normalizer(q, causal @ k)
    return o, Bias(rk.swapaxes(-1, -2) @ v + b.kv, k.sum(axis=-2) + b.d).turned(rope, -n)


def chunked_attention(q, k, v, bias=None, rope=None, normalize=True, chunk=32):
    """Linear attention in chunks: each chunk in parallel, started from the Bias that the one before it left.

    Theorem 4.5 applied over and over: what came before is the context, the chunk is the prompt. So it is the same
    function as `recurrent_attention`, in time and memory that grow linearly with n. 32 to 128 tokens a chunk are the
    fastest at width 64 (docs/experiments/speed.py). Arguments, result and errors as there.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    bias, outputs = Bias.start(q, k, v, bias), [v[..., :0, :]]
    for i in range(0, max(q.shape[-2], 1), chunk):
        o, bias = parallel_attention(*(x[..., i:i + chunk, :] for x in (q, k, v)), bias, rope, normalize)
        outputs.append(o)
    return np.concatenate(outputs, axis=-2), bias


def softmax_attention(q, k, v):
    """Softmax attention, causal: o_i = Σ_{j≤i} softmax_j(q_i·k_j / √d_k) v_j, for comparison.

    q, k (..., n, d_k), v (..., n, d_v); raises ValueError for other shapes. Source: Definition 3.1, Eq 1.
    """
    Bias.start(q, k, v)
    scores = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5
    return softmax(np.where(np.tri(q.shape[-2]), scores, -np.inf)) @ v


# ---- The transformer ------------------------------------------------------------------------------------------------

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
    parallel: bool = False          # GPT-J's block: attention and MLP side by side on the same input
    max_length: int | None = None   # the longest text that the weights are made for, if there is such a limit


def mlp(x, w_1, w_2, activation=gelu):
    """activation(x W_1) W_2, token by token: x (..., n, d), w_1 (d, d_ff), w_2 (d_ff, d_out)."""
    return activation(x @ w_1) @ w_2


def block(x, layer, model, bias=None, attend=chunked_attention):
    """One pre-norm layer: x + Attention(norm(x)), then x + MLP(norm(x)); GPT-J's block adds both to the same x.

    x (..., n, d_model); `bias` is what the attention starts from; `attend` is any of the forms of attention.
    Returns x after the layer and the attention's state. Everything but `attend` acts on each token alone, which is
    why a context can reach the tokens after it through the Bias only (Definition 3.4, §4.5, Appendix D).
    """
    h = model.norm(x)
    per_head = h[..., None, :, :]
    q, k, v = model.phi(per_head @ layer.w_q), model.phi(per_head @ layer.w_k), per_head @ layer.w_v
    o, bias = attend(q, k, v, bias, partial(model.rope, theta=layer.theta), model.normalize)
    attended = x + (o @ layer.w_o).sum(axis=-3)
    mlp_input = h if model.parallel else model.norm(attended)
    return attended + mlp(mlp_input, layer.w_1, layer.w_2, model.activation), bias


def embed_tokens(model, tokens, biases=None):
    """The rows of model.embed for `tokens` (..., n), and one Bias or None per layer: the input of the first layer.

    Raises TypeError if the tokens are not integers, IndexError if one is outside the vocabulary, ValueError if
    there are more than model.max_length or if the number of biases is not the number of layers.
    """
    tokens = np.asarray(tokens)
    if tokens.size == 0:
        tokens = tokens.astype(int)
    if tokens.ndim == 0 or tokens.dtype.kind not in "iu":
        raise TypeError(f"tokens must be an array of integers, got {tokens.dtype} of shape {tokens.shape}")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(model.embed):
        raise IndexError(f"tokens must be from 0 to {len(model.embed) - 1}, got {tokens.min()} to {tokens.max()}")
    if model.max_length is not None and tokens.shape[-1] > model.max_length:
        raise ValueError(f"tokens {tokens.shape}: the model was built for at most {model.max_length}")
    biases = [None] * len(model.layers) if biases is None else list(biases)
    if len(biases) != len(model.layers):
        raise ValueError(f"biases must be one per layer: got {len(biases)} for {len(model.layers)} layers")
    return model.embed[tokens], biases


def forward(model, tokens, biases=None, attend=chunked_attention):
    """The model: tokens (..., n) to logits (..., n, vocab_size), and the state of every layer after them.

    `biases` is what the layers start from, one Bias per layer: the state after earlier tokens, or a context
    converted by `iclca`. None starts from nothing. Raises as `embed_tokens` does, and ValueError for no tokens.
    """
    x, biases = embed_tokens(model, tokens, biases)
    if x.shape[-2] == 0:
        raise ValueError(f"tokens must not be empty, got shape {x.shape[:-1]}")
    for i, layer in enumerate(model.layers):
        x, biases[i] = block(x, layer, model, biases[i], attend)
    return model.norm(x) @ model.unembed, biases


def generate(model, tokens, n, biases=None):
    """Greedy decoding: the n tokens (n,) that continue `tokens` (m,), in one pass over them and one step per new token.

    Logits less than 1e-6 apart count as equal, and then the smallest token wins, so that rounding decides nothing.
    Raises as `forward` does, and ValueError for a negative n or tokens of another shape.
    """
    if n < 0 or np.ndim(tokens) != 1:
        raise ValueError(f"tokens must be (m,) and n at least 0, got tokens {np.shape(tokens)} and n = {n}")
    continuation = []
    for _ in range(n):
        logits, biases = forward(model, tokens, biases)
        tokens = [int(np.argmax(logits[-1] >= logits[-1].max() - 1e-6))]
        continuation += tokens
    return np.array(continuation, int)


# ---- Models built by hand -------------------------------------------------------------------------------------------

def random_transformer(rng, vocab_size, d_model, n_layers, n_heads, d_ff=None, dtype=np.float64):
    """A transformer with independent normal weights of variance 1 / fan-in, elu + 1 features, and rotary positions.

    The 2·n_layers matrices that write to the residual stream are divided by √(2·n_layers), as in GPT-2, so that the
    stream does not grow with depth. rng is a numpy.random.Generator; d_ff is 4·d_model if None, 0 leaves the MLPs out.
    Raises ValueError if the heads do not divide d_model into even widths.

    >>> model = random_transformer(np.random.default_rng(0), vocab_size=50, d_model=16, n_layers=2, n_heads=4)
    >>> forward(model, [3, 1, 4])[0].shape
    (3, 50)
    """
    if d_model % (2 * n_heads):
        raise ValueError(f"n_heads = {n_heads} must divide d_model = {d_model} into even widths")
    d_ff = 4 * d_model if d_ff is None else d_ff
    d_k = d_model // n_heads

    depth = 2 * n_layers

    def weights(*shape, fan_in):
        w = rng.standard_normal(shape, dtype)
        w /= max(fan_in, 1) ** 0.5
        return w

    def layer():
        w_q, w_k, w_v = (weights(n_heads, d_model, d_k, fan_in=d_model) for _ in range(3))
        w_o = weights(n_heads, d_k, d_model, fan_in=d_model * depth)
        w_1, w_2 = weights(d_model, d_ff, fan_in=d_model), weights(d_ff, d_model, fan_in=d_ff * depth)
        return Layer(w_q, w_k, w_v, w_o, w_1, w_2, rope_frequencies(d_k).astype(dtype))

    embed = weights(vocab_size, d_model, fan_in=1)
    return Transformer(embed, tuple(layer() for _ in range(n_layers)), weights(d_model, vocab_size, fan_in=d_model))


def previous_token_layer(d_model, token, previous, max_length, dtype=np.float64):
    """A layer whose head s = 1, 2, ... copies the slice `token` of the token s places back into the slice previous[s−1].

    The last entry of the residual stream is a constant 1. Every query is (2/d_k)(1, 0, 1, 0, ...), every key of head s
    is R_s (1, 0, 1, 0, ...), so with the frequencies θ_m = (2m + 1) π / d_k the score of j for i is

        mean over m of cos(θ_m (i − j − s))  =  1 if j = i − s,  0 at every other distance below d_k

    All slices have one width. d_k is even and at least max_length, so the layer is exact for that many tokens.
    """
    heads, width = len(previous), token.stop - token.start
    d_k = max(max_length, heads + 1)
    d_k += d_k % 2
    theta = (np.arange(1, d_k, 2) * np.pi / d_k).astype(dtype)
    start = np.tile([1.0, 0.0], (heads, d_k // 2))
    w_q, w_k = np.zeros((2, heads, d_model, d_k), dtype)
    w_q[:, -1] = start * 2 / d_k
    w_k[:, -1] = rotate(start, *rope(np.arange(1, heads + 1), theta))
    w_v, w_o = np.zeros((heads, d_model, width), dtype), np.zeros((heads, width, d_model), dtype)
    w_v[:, token] = np.eye(width)
    for s, slot in enumerate(previous):
        w_o[s, :, slot] = np.eye(width)
    return Layer(w_q, w_k, w_v, w_o, np.zeros((d_model, 0), dtype), np.zeros((0, d_model), dtype), theta)


def look_up_layer(d_model, queries, keys, value, output, dtype=np.float64):
    """A layer of one head that compares the slices `queries` with the slices `keys` and copies `value` into `output`.

    The score of j for i is Σ_s x_i[queries[s]]·x_j[keys[s]]; θ = 0, so the position does not matter.
    """
    width = value.stop - value.start
    d_k = len(queries) * width
    d_k += d_k % 2
    w_q, w_k = np.zeros((2, 1, d_model, d_k), dtype)
    for s, (query, key) in enumerate(zip(queries, keys)):
        row = slice(s * width, (s + 1) * width)
        w_q[0, query, row] = w_k[0, key, row] = np.eye(width)
    w_v, w_o = np.zeros((1, d_model, width), dtype), np.zeros((1, width, d_model), dtype)
    w_v[0, value] = w_o[0, :, output] = np.eye(width)
    return Layer(w_q, w_k, w_v, w_o, np.zeros((d_model, 0), dtype), np.zeros((0, d_model), dtype),
                 np.zeros(d_k // 2, dtype))


def induction_transformer(vocab_size, max_length, n_gram=2, dtype=np.float64):
    """Two layers, written down by hand, that continue a text as it went on before: n-gram induction.

    Residual stream: token one-hot, n_gram slots for the tokens before it, an output slot, a constant 1.
    Layer 1 copies the n_gram previous tokens into their slots. Layer 2 compares the query (x_i, x_{i−1}, ...) with the
    key (x_{j−1}, x_{j−2}, ...) and answers with the value x_j, so the logit of a word is

        Σ_{j ≤ i, x_j = word}  (the number of s = 1 ... n_gram with x_{j−s} = x_{i+1−s})

    and layer 2's b_KV after a text is a table of counts: row (s−1)·vocab_size + a, column b, says how often b came
    s places after a. It is a vote: one long match can be outvoted by many short ones. φ = identity, no normalizer,
    no norm, no MLP. max_length bounds context and prompt together.
    Raises ValueError unless vocab_size, max_length and n_gram are at least 1.

    >>> model = induction_transformer(vocab_size=5, max_length=20)
    >>> generate(model, [4, 0, 1, 2, 3, 4, 0], n=3)
    array([1, 2, 3])
    """
    if min(vocab_size, max_length, n_gram) < 1:
        raise ValueError(f"vocab_size {vocab_size}, max_length {max_length} and n_gram {n_gram} must be at least 1")
    slots = [slice(s * vocab_size, (s + 1) * vocab_size) for s in range(n_gram + 2)]
    token, *previous, output = slots
    d_model = output.stop + 1
    embed, unembed = np.zeros((vocab_size, d_model), dtype), np.zeros((d_model, vocab_size), dtype)
    embed[:, token] = unembed[output] = np.eye(vocab_size)
    embed[:, -1] = 1
    layers = (previous_token_layer(d_model, token, previous, max_length, dtype),
              look_up_layer(d_model, slots[:n_gram], previous, token, output, dtype))
    return Transformer(embed, layers, unembed, phi=identity, normalize=False, norm=identity, max_length=max_length)


# ---- Linear self-attention that descends a gradient (von Oswald et al., ICML 2023) ------------------------------------
#
# Regression tokens e_j = (x_j, y_j) are rows (..., n, n_x + n_y). The paper writes tokens as columns; its matrices keep
# their shapes here and are applied to rows as e @ W.T.

class LSA(NamedTuple):
    """The matrices of one linear self-attention layer, with the shapes of the paper: e_j ← e_j + P W_V E (W_K E)ᵀ W_Q e_j."""

    w_q: np.ndarray  # (d_k, n_x + n_y)
    w_k: np.ndarray  # (d_k, n_x + n_y)
    w_v: np.ndarray  # (d_v, n_x + n_y)
    p: np.ndarray    # (n_x + n_y, d_v)


def lsa(context, query, weights):
    """One linear self-attention layer, e_j ← e_j + P V Kᵀ q_j: keys and values come from the context tokens alone.

    context (..., n, d), query (..., m, d) or (d,), weights an LSA; returns both after the layer, with the same shapes.
    Raises ValueError for other shapes. Source: Proposition 1, Eq 8; rows are tokens here.
    """
    w_q, w_k, w_v, p = weights
    if context.ndim < 2 or not context.shape[-1] == query.shape[-1] == w_k.shape[-1]:
        raise ValueError(f"context and query must be rows as wide as w_k {w_k.shape}, got {context.shape}, {query.shape}")
    if query.shape[:-2] != context.shape[:-2]:
        raise ValueError(f"query {query.shape} must have the batch axes of context {context.shape}")
    keys_and_values = (context @ w_k.T).swapaxes(-1, -2) @ (context @ w_v.T)
    return tuple(e + e @ w_q.T @ keys_and_values @ p.T for e in (context, query))


def gd_weights(w0, eta, n):
    """The LSA layer that takes one step of gradient descent on L(W) = 1/(2n) Σ_i ‖W x_i − y_i‖² from W₀.

        W_K = W_Q = [[I, 0], [0, 0]],    W_V = [[0, 0], [W₀, −I]],    P = (η/n) I

    It moves each context token from (x, y) to (x, y − ΔW x) and the query token from (x, −W₀ x) to (x, −(W₀ + ΔW) x),
    so the prediction is minus the query's y-part; the same layer again is the next step.
    w0 (n_y, n_x); n is the number of context tokens. Raises ValueError if w0 is no matrix or n < 1.
    Source: Proposition 1 and Appendix A.1, Eq 8.

    >>> context, query = np.array([[1.0, 2.0]]), np.array([[3.0, 0.0]])       # x = 1, y = 2; W₀ = 0; predict at x = 3
    >>> lsa(context, query, gd_weights(np.zeros((1, 1)), eta=0.5, n=1))[1]    # one step: W = 1
    array([[ 3., -3.]])
    """
    if w0.ndim != 2 or n < 1:
        raise ValueError(f"w0 must be (n_y, n_x) and n at least 1, got w0 {w0.shape} and n = {n}")
    n_y, n_x = w0.shape
    one_x, one_y, zero = np.eye(n_x, dtype=w0.dtype), np.eye(n_y, dtype=w0.dtype), 0 * w0
    w_k = np.block([[one_x, zero.T], [zero, 0 * one_y]])
    w_v = np.block([[0 * one_x, zero.T], [w0, -one_y]])
    return LSA(w_k, w_k, w_v, p=np.eye(n_x + n_y, dtype=w0.dtype) * (eta / n))


def gd_plus_plus_weights(w0, eta, gamma, n):
    """GD++: the layer of `gd_weights` that also moves the inputs, x_j ← (I − γ Σ_i x_i x_iᵀ) x_j.

        W_V = [[I, 0], [W₀, −I]],    P = diag(−γ I, (η/n) I)

    For the layers after it each eigenvalue λ of Σ_i x_i x_iᵀ has become λ (1 − γλ)²: with 0 < γ ≤ 1/(3 λ_max) they lie
    closer together, so gradient descent goes faster. Arguments and errors as for `gd_weights`.
    Source: Appendix A.10, Eq 23.
    """
    w_q, w_k, w_v, p = gd_weights(w0, eta, n)
    x_part = w_k  # [[I, 0], [0, 0]]
    return LSA(w_q, w_k, w_v + x_part, p - p * x_part - gamma * x_part)


def alternating_tokens(x, y):
    """The tokens x_1, y_1, x_2, y_2, ..., each with its one-hot position: rows (x_j, 0, e_{2j−1}) and (0, y_j, e_{2j}).

    x (n, n_x) and y (n, n_y) give (2n, n_x + n_y + 2n). Raises ValueError if the lengths differ.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"x and y must be (n, n_x) and (n, n_y), got {x.shape} and {y.shape}")
    n, n_x = x.shape
    tokens = np.zeros((2 * n, n_x + y.shape[1] + 2 * n), np.result_type(x, y))
    tokens[0::2, :n_x], tokens[1::2, n_x:-2 * n or None] = x, y
    tokens[:, tokens.shape[1] - 2 * n:] = np.eye(2 * n, dtype=tokens.dtype)
    return tokens


def pairing_weights(n_x, n_y, n, dtype=np.float64):
    """The LSA layer that puts y_j next to x_j: it adds to every token the y-part of the token after it.

        W_Q = [0, 0, I],    W_K = [0, 0, S],    W_V = [0, I, 0],    P = W_Vᵀ,    S e_{t+1} = e_t

    On `alternating_tokens` the odd rows become (x_j, y_j, e_{2j−1}): the tokens that `gd_weights` needs.
    Source: Proposition 3 and Appendix A.5.
    """
    w_q = np.eye(2 * n, n_x + n_y + 2 * n, n_x + n_y, dtype=dtype)
    w_k = np.eye(2 * n, n_x + n_y + 2 * n, n_x + n_y + 1, dtype=dtype)
    w_v = np.eye(n_y, n_x + n_y + 2 * n, n_x, dtype=dtype)
    return LSA(w_q, w_k, w_v, w_v.T)
