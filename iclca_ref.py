"""A context becomes weights, exactly: reference code to read beside the papers.

One sum, three names: Σ_i k_i ⊗ v_i over the tokens of a context, with keys k_i and values v_i.

To Chen et al. it is b_KV, the bias that replaces the context in linear attention (ICLCA, Theorem
4.1). To Dai et al. it is ΔW_ICLᵀ, the weight update that demonstrations act as. And with keys x_i
and values W₀ x_i − y_i it is −N/η times the transpose of ΔW = −(η/N) Σ_i (W₀ x_i − y_i) x_iᵀ, the
gradient step that von Oswald et al. find in a linear layer. So converting a context of regression
examples by ICLCA *is* a gradient step. With rotary positions and a normalizer the same sum reads

    b'_KV = R_{−M} b_KV + Σ_{j≤M} R_{j−M} φ(k_j) v_jᵀ        b'_D = b_D + Σ_{j≤M} φ(k_j)

    O(X with b')  =  the last N rows of  O([X'; X] with b),  for every prompt X       (Theorem 4.5)

`attention_bias` is that sum, and `iclca` applies it layer by layer (Algorithm 1). Then come the
one law behind every linear recurrence; the dual form, in which the sum is a trained weight; layers
that descend a gradient; the rank-one patch, exact for any attention but one query at a time; and
softmax attention, approximately. Symbols are those of linear_transformer.py, and

    W0, W          regression weights (d_out, d_in), applied to rows as X @ W.T
    X, Y, E, x     training inputs (n, d_in), targets and error signals (n, d_out), test inputs
    eta, gamma     learning rate; how far GD++ moves the inputs
    A, B           one step of a linear recurrence, s ↦ A s + B

Shapes that do not fit raise ValueError, as there. Chen et al., ICML 2024 (arXiv 2406.02847); Dai et
al. 2022 (2212.10559); Irie et al. 2022; Aizerman et al. 1964; von Oswald et al., ICML 2023
(2212.07677); Dherin et al. 2025 (2507.16003). "Review": ICL-VS-FT's summary of the dual form.
"""

from functools import reduce
from typing import NamedTuple

import numpy as np

from linear_transformer import (Bias, check_shapes, chunked_attention, divide, rotate_at,
                                run_layers, softmax, softmax_attention)


# ---- ICLCA: a context as biases -----------------------------------------------------------------

def key_value_matrix(k, v):
    """The Key-Value matrix Σ_j φ(k_j) v_jᵀ: k (..., m, d_k), v (..., m, d_v) to (..., d_k, d_v).

    Tokens in front of a prompt change this alone, never its queries. Source: Definition 3.4, Eq 6.
    """
    check_shapes("k:mk v:mv", k, v)
    return k.swapaxes(-1, -2) @ v


def linear_bias(context, w_k, w_v, b_kv):
    """b'_KV = b_KV + (X' W_K)ᵀ X' W_V: in Q (KᵀV + b_KV) it stands for X' in front of every prompt.

    X' (..., m, d), w_k (d, d_k), w_v (d, d_v), b_kv (..., d_k, d_v). Source: Thm 4.1, Eq 9-11.
    """
    check_shapes("context:md w_k?:dk w_v?:dv b_kv?:kv", context, w_k, w_v, b_kv)
    return b_kv + key_value_matrix(context @ w_k, context @ w_v)


def attention_bias(k, v, bias=None, rope=None):
    """The two biases that replace a context of M tokens, for every prompt after it.

        b'_KV = R_{−M} b_KV + Σ_{j=1..M} R_{j−M} φ(k_j) v_jᵀ,    b'_D = b_D + Σ_{j=1..M} φ(k_j)

    k (..., m, d_k) are the context's features, v (..., m, d_v) its values; `bias` is what the
    context itself started from. With R_{j−M} the context keeps its places 1−M ... 0 while the
    prompt counts from 1 again. Source: Theorem 4.5, Eq 14-16.

    >>> attention_bias(np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]]))
    Bias(kv=array([[11.]]), d=array([3.]))
    """
    start, m = Bias.start(k, v, bias), k.shape[-2]
    b_kv, b_d = start.turned(rope, -m)
    rk = rotate_at(k, rope, np.arange(1, m + 1) - m)
    return Bias(b_kv + rk.swapaxes(-1, -2) @ v, b_d + k.sum(axis=-2))


def iclca(model, tokens, biases=None):
    """Algorithm 1: send the context through the layers once, and at each apply Theorem 4.5.

    For every prompt, forward(model, prompt, iclca(model, tokens)) equals forward(model, tokens +
    prompt) on the prompt's rows. `biases` are those of contexts converted before: conversions
    compose, and leaving the result out undoes them. tokens (..., m), m = 0 included. Raises as
    `embed_tokens` does. Source: §4.5, Algorithm 1.
    """
    def update_and_pass_on(q, k, v, bias, rope, normalize):
        new_bias = attention_bias(k, v, bias, rope)                   # this layer's b'_KV and b'_D
        o, _ = chunked_attention(q, k, v, bias, rope, normalize)      # the tokens go on with o
        return o, new_bias

    return run_layers(model, tokens, biases, attend=update_and_pass_on)[1]


# ---- One law: every linear recurrence turns a context into one affine map of its state ----------

def linear_recurrence(q, A, B, state):
    """Any linear recurrence, token by token: s_i = A_i s_{i−1} + B_i, o_i = s_iᵀ q_i.

        layer                                    A_i                        B_i
        linear attention                         I                          k vᵀ
        with rotary positions (Theorem 4.5)      R_{−1}                     k vᵀ
        RetNet (Sun et al. 2023)                 γ R_{−1}                   k vᵀ
        Mamba-2 (Dao and Gu 2024)                α_i I                      k vᵀ
        GLA (Yang et al. 2024), RWKV-6's decay   diag(a_i)                  k vᵀ
        DeltaNet (Schlag et al. 2021)            I − β k kᵀ                 β k vᵀ
        Gated DeltaNet (Yang et al. 2025)        α_i (I − β k kᵀ)           β k vᵀ
        Kimi Delta Attention (2025)              (I − β k kᵀ) diag(a_i)     β k vᵀ

    Rotation is R_{−1} at every position because the state is seen from the token that reads it: it
    turns one place back before each, and R_iᵀ R_j = R_{j−i}. DeltaNet's state is a weight matrix in
    training, one step of rate β on ½ ‖sᵀ k − v‖² per token. q (..., n, d_k), A (..., n, d_k, d_k),
    B (..., n, d_k, d_v), state (..., d_k, d_v); returns o (..., n, d_v) and the last state.
    """
    check_shapes("q:nk A:nkk B:nkv state?:kv", q, A, B, state)
    state = np.array(np.broadcast_to(state, (*B.shape[:-3], *B.shape[-2:])))
    outputs = [B[..., :0, :, :].sum(axis=-2)]
    for i in range(q.shape[-2]):
        state = A[..., i, :, :] @ state + B[..., i, :, :]
        outputs.append(q[..., i:i + 1, :] @ state)
    return np.concatenate(outputs, axis=-2), state


def compose(later, earlier):
    """(A₂, B₂) after (A₁, B₁), one map: (A₂A₁, A₂B₁ + B₂). Associative (Martin and Cundy 2018)."""
    (A_2, B_2), (A_1, B_1) = later, earlier
    matrices = [np.empty(X.shape[-2:]) for X in (A_2, B_2, A_1, B_1)]   # leading axes may broadcast
    check_shapes("A_2:kk B_2:kv A_1:kk B_1:kv", *matrices)
    return A_2 @ A_1, A_2 @ B_1 + B_2


def context_map(A, B):
    """A context as one map of the state, s ↦ A s + B, whatever the prompt and the start s.

        A = A_m ⋯ A_1,    B = Σ_j A_m ⋯ A_{j+1} B_j

    A (..., m, d_k, d_k), B (..., m, d_k, d_v), as in `linear_recurrence`; returns the pair
    (..., d_k, d_k), (..., d_k, d_v). Theorem 4.5 is the case A = R_{−M}, B = b'_KV of the start 0.
    """
    check_shapes("A:mkk B:mkv", A, B)
    zero_A, zero_B = (X[..., :0, :, :].sum(axis=-3) for X in (A, B))
    nothing_read = zero_A + np.eye(A.shape[-1], dtype=A.dtype), zero_B
    steps = zip(np.moveaxis(A, -3, 0), np.moveaxis(B, -3, 0))
    return reduce(lambda earlier, step: compose(step, earlier), steps, nothing_read)


# ---- The dual form: training as attention, attention as training --------------------------------

def lin_attn(V, K, q):
    """Linear attention without a normalizer, Σ_i v_i (k_i·q): V Kᵀ q in the review (columns).

    V (..., n, d_v), K (..., n, d_k); q is one query (d_k,), or rows (..., r, d_k) with the leading
    axes of K and V, which may leave theirs out. Source: review Eq 1.

    >>> lin_attn(V=np.array([[1, 0], [0, 1]]), K=np.array([[1, 2], [3, 4]]), q=np.array([1, 1]))
    array([3, 7])
    """
    rows = q if q.ndim > 1 else np.broadcast_to(q, (*K.shape[:-2], 1, *q.shape))
    check_shapes("q:rk K?:nk V?:nv", rows, K, V)
    o = rows @ K.swapaxes(-1, -2) @ V
    return o if q.ndim > 1 else o[..., 0, :]


def weight_update(E, X):
    """ΔW = Σ_i e_i ⊗ x_i, error signals times inputs: E (..., n, d_out), X (..., n, d_in).

    Returns (..., d_out, d_in). Source: review Eq 2-3.
    """
    check_shapes("E:no X:ni", E, X)
    return E.swapaxes(-1, -2) @ X


def dual_form(W0, E, X, x):
    """A trained linear layer (W₀ + ΔW) x as attention to its data: W₀ x + LinAttn(E, X, x).

    The values are the error signals e_i, the keys the training inputs x_i, the query the test
    input x, as for `lin_attn`. Source: review Eq 4; Irie et al. for a whole run.
    """
    check_shapes("E:no X:ni W0?:oi", E, X, W0)
    return x @ W0.swapaxes(-1, -2) + lin_attn(E, X, x)


def mean_squared_gradient(outputs, targets):
    """(F(x_i) − y_i) / n: the gradient of 1/(2n) Σ ‖F(x_i) − y_i‖² at each output (n, d_out)."""
    check_shapes("outputs:no targets:no", outputs, targets)
    return (outputs - targets) / outputs.shape[-2]


def _plain(number):
    """A NumPy scalar as Python's: it must not turn float32 arrays into float64."""
    return number.item() if isinstance(number, (np.generic, np.ndarray)) else number


def gradient_descent(W0, X, Y, eta, steps=1, gradient=mean_squared_gradient):
    """Full-batch gradient descent on a linear layer, with a record of its run: (W, E, X_seen).

        E_t = −η · gradient(X W_{t−1}ᵀ, Y),    W_t = W_{t−1} + E_tᵀ X

    W0 (d_out, d_in), X (n, d_in), Y (n, d_out). E (steps·n, d_out) has the error signals of all
    steps, X_seen (steps·n, d_in) the input that met each, so that dual_form(W0, E, X_seen, x) is
    the trained layer at any x. gradient(outputs, Y) is the loss's gradient at the outputs (n,
    d_out), by default that of 1/(2n) Σ ‖W x_i − y_i‖². Raises ValueError for no data and a
    negative number of steps. Source: review Eq 2-4; von Oswald et al. Eq 2-3.
    """
    check_shapes("W0:oi X:ni Y:no", W0, X, Y)
    if W0.ndim != 2 or not len(X) or steps < 0:
        raise ValueError(f"need matrices, n ≥ 1 and steps ≥ 0, got X {X.shape} and steps = {steps}")
    W, errors = W0.copy(), [Y[:0]]
    for _ in range(steps):
        E = -_plain(eta) * gradient(X @ W.T, Y)
        W = W + weight_update(E, X)
        errors.append(E)
    return W, np.concatenate(errors), np.concatenate([X[:0], *[X] * steps])


def kernel_prediction(alpha, X, x, kernel):
    """Σ_i α_i k(x_i, x), the potential function: the dual form on features if k = φ(x)·φ(x').

    alpha (n,) or (n, d_out), X (n, d_in), x (..., d_in); kernel takes two vectors (d_in,) and
    returns a number. Source: Aizerman et al. 1964.
    """
    check_shapes("X:ni alpha:n" if alpha.ndim == 1 else "X:ni alpha:no", X, alpha)
    if X.ndim != 2 or x.shape[-1:] != X.shape[-1:]:
        raise ValueError(f"X must be (n, d_in) and x (..., d_in), got X {X.shape} and x {x.shape}")
    similar = np.array([[kernel(x_i, row) for x_i in X] for row in x.reshape(-1, X.shape[1])])
    return similar.reshape(*x.shape[:-1], len(X)) @ alpha


def icl_weight_update(context, w_k, w_v):
    """Dai et al.'s ΔW_ICL = Σ_i W_V x'_i ⊗ W_K x'_i: demonstrations as a weight update.

    context (..., m, d_model), w_k (d_model, d_k), w_v (d_model, d_v), the paper's transposed, to
    (..., d_v, d_k). Relaxed attention over [demonstrations; query tokens] is (W_ZSL + ΔW_ICL) q,
    with W_ZSL the same sum over the query tokens. Source: Dai et al. §3.
    """
    return weight_update(context @ w_v, context @ w_k)


# ---- Layers that descend a gradient (von Oswald et al., ICML 2023) ------------------------------
# Regression tokens e_j = (x_j, y_j) are rows (..., n, d_in + d_out). The paper writes tokens as
# columns; its matrices keep their shapes here and are applied to rows as e @ W.T.

class LSA(NamedTuple):
    """The matrices of one linear self-attention layer, with the shapes of the paper."""

    w_q: np.ndarray  # (d_k, d_in + d_out)
    w_k: np.ndarray  # (d_k, d_in + d_out)
    w_v: np.ndarray  # (d_v, d_in + d_out)
    p: np.ndarray    # (d_in + d_out, d_v)


def lsa(context, query, weights):
    """One linear self-attention layer, e_j ← e_j + P Σ_i v_i (k_i·q_j), with i over the context.

    context (..., n, d), query (..., r, d) or (d,), weights an LSA; k_i = W_K e_i and so on. Returns
    both after the layer, in the same shapes. Source: Proposition 1, Eq 8.
    """
    rows = query if query.ndim > 1 else query[None]
    check_shapes("context:nd query:rd w_q?:kd w_k?:kd w_v?:vd p?:dv", context, rows, *weights)
    w_q, w_k, w_v, p = (w.swapaxes(-1, -2) for w in weights)
    s = key_value_matrix(context @ w_k, context @ w_v)
    return context + context @ w_q @ s @ p, query + query @ w_q @ s @ p


def _blocks(w0, eta, n):
    """The unit matrices of x and y, a zero as large as W₀, and η/n, in W₀'s arithmetic."""
    if w0.ndim != 2 or n < 1:
        raise ValueError(f"w0 must be (d_out, d_in) and n at least 1, got {w0.shape} and n = {n}")
    d_out, d_in = w0.shape
    return np.eye(d_in, dtype=w0.dtype), np.eye(d_out, dtype=w0.dtype), 0 * w0, _plain(eta / n)


def gd_weights(w0, eta, n):
    """The LSA layer that takes one step of gradient descent on 1/(2n) Σ_i ‖W x_i − y_i‖² from W₀.

        W_K = W_Q = [[I, 0], [0, 0]],    W_V = [[0, 0], [W₀, −I]],    P = (η/n) I

    It moves context tokens from (x, y) to (x, y − ΔW x) and the query token from (x, −W₀ x) to
    (x, −(W₀ + ΔW) x), so the prediction is minus the query's y-part; the same layer again is the
    next step. w0 (d_out, d_in), n ≥ 1 tokens; eta exact if w0 is. Source: Prop 1, App A.1, Eq 8.

    >>> context, query = np.array([[1.0, 2.0]]), np.array([[3.0, 0.0]])   # x = 1, y = 2; x = 3
    >>> lsa(context, query, gd_weights(np.zeros((1, 1)), eta=0.5, n=1))[1]    # from W₀ = 0 to W = 1
    array([[ 3., -3.]])
    """
    I_x, I_y, zero, step = _blocks(w0, eta, n)
    w_k = np.block([[I_x, zero.T], [zero, 0 * I_y]])
    w_v = np.block([[0 * I_x, zero.T], [w0, -I_y]])
    p = step * np.block([[I_x, zero.T], [zero, I_y]])
    return LSA(w_k, w_k, w_v, p)


def gd_plus_plus_weights(w0, eta, gamma, n):
    """GD++: the layer of `gd_weights` that also moves the inputs, x_j ← (I − γ Σ_i x_i x_iᵀ) x_j.

        W_V = [[I, 0], [W₀, −I]],    P = diag(−γ I, (η/n) I)

    For the next layers each eigenvalue λ of Σ_i x_i x_iᵀ has become λ (1 − γλ)². If two positive
    ones differ and 0 < γ ≤ 1/(3 λ_max), they lie closer together, and with η tuned again gradient
    descent goes faster. Stack such layers with W₀ = 0 only: else the next compares its W₀ x, at an
    x that has moved, with a query of the old one. Arguments as before. Source: App A.10, Eq 23.
    """
    I_x, I_y, zero, step = _blocks(w0, eta, n)
    w_k = np.block([[I_x, zero.T], [zero, 0 * I_y]])
    w_v = np.block([[I_x, zero.T], [w0, -I_y]])
    p = np.block([[-_plain(gamma) * I_x, zero.T], [zero, step * I_y]])
    return LSA(w_k, w_k, w_v, p)


def alternating_tokens(x, y):
    """The tokens x_1, y_1, x_2, y_2, ..., with positions: (x_j, 0, e_{2j−1}), (0, y_j, e_{2j}).

    x (n, d_in) and y (n, d_out) give (2n, d_in + d_out + 2n). Source: Prop 3, App A.5.
    """
    check_shapes("x:ni y:no", x, y)
    if x.ndim != 2:
        raise ValueError(f"x must be (n, d_in), one context, got {x.shape}")
    n, d = len(x), x.shape[1] + y.shape[1]
    pairs = np.stack([np.hstack([x, 0 * y]), np.hstack([0 * x, y])], axis=1)
    return np.hstack([pairs.reshape(2 * n, d), np.eye(2 * n, dtype=pairs.dtype)])


def pairing_weights(d_in, d_out, n, dtype=np.float64):
    """The LSA layer that puts y_j next to x_j: it adds the y-part of the token after.

        W_Q = [0, 0, I],    W_K = [0, 0, S],    W_V = [0, I, 0],    P = W_Vᵀ,    S e_{t+1} = e_t

    On `alternating_tokens` the odd rows become (x_j, y_j, e_{2j−1}): the tokens that `gd_weights`
    needs. Source: Prop 3, App A.5.
    """
    no_xy, next_one = np.zeros((2 * n, d_in + d_out), dtype), np.eye(2 * n, k=1, dtype=dtype)
    w_q = np.hstack([no_xy, np.eye(2 * n, dtype=dtype)])
    w_k = np.hstack([no_xy, next_one])
    w_v = np.hstack([np.zeros((d_out, d_in), dtype), np.eye(d_out, 2 * n + d_out, dtype=dtype)])
    return LSA(w_q, w_k, w_v, w_v.T)


# ---- The rank-one patch: any attention, one query at a time -------------------------------------

def implicit_weight_update(w, z, z_in_context):
    """ΔW = W (z_C − z) zᵀ / ‖z‖²: the patch of a weight W by which input z answers as z_C would.

    (W + ΔW) z = W z_C, so an MLP after any attention gives without the context what it gives with
    it, if z and z_C are its inputs without and with the context. Rank one, and the smallest such
    ΔW in Frobenius norm. It depends on the query token, which ICLCA's biases do not. w (d_out, d),
    z and z_in_context (d,). Raises ValueError if z is 0. Source: Dherin et al. 2025.
    """
    check_shapes("w:od z:d z_in_context:d", w, z, z_in_context)
    if z @ z == 0:
        raise ValueError(f"z {z.shape} is 0: no weight times 0 is anything but 0")
    return np.multiply.outer(w @ (z_in_context - z), z) / (z @ z)


# ---- Softmax attention, approximately (ICLAA) ---------------------------------------------------
# exp(q·k) is a product of infinitely many features. With finitely many the context, and only the
# context, is approximated. Features see q and k divided by d_k^(1/4), so that q·k is the score, and
# are given by their logarithms, since exp(q·k) overflows and its logarithm does not.

def orthogonal_projection(rng, m, d):
    """m random directions (m, d), orthogonal in each block of d, as long as independent normals.

    Each row is distributed as one of rng.standard_normal((m, d)), so the estimate of
    `log_random_features` stays unbiased; its variance falls. Source: §5; Choromanski et al. 2021.
    """
    q, r = np.linalg.qr(rng.standard_normal((-(-m // d), d, d)))
    q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[:, None, :]  # now q is uniform
    return q.reshape(-1, d)[:m] * np.linalg.norm(rng.standard_normal((m, d)), axis=1, keepdims=True)


def log_random_features(x, projection):
    """log φ(x) = W x − ‖x‖²/2 − ½ log m: Performer's features, E[φ(q)·φ(k)] = exp(q·k) over W.

    x (..., n, d), projection W (m, d) of independent normals or `orthogonal_projection`; result
    (..., n, m). Source: §5; Choromanski et al. 2021, Lemma 1.
    """
    check_shapes("x:nd projection?:md", x, projection)
    w = projection.astype(np.result_type(x, np.float16)).swapaxes(-1, -2)
    return x @ w - (x * x).sum(axis=-1, keepdims=True) / 2 - np.log(w.shape[-1] or 1).item() / 2


def random_features(x, projection):
    """φ(x) = exp(W x − ‖x‖²/2) / √m, from the logarithm: x (..., n, d), W (m, d) to (..., n, m)."""
    return np.exp(log_random_features(x, projection))


def log_landmark_features(x, landmarks):
    """log φ(x) = Z x: how strongly each landmark is attended to, x (..., n, d), Z (..., r, d)."""
    check_shapes("x:nd landmarks?:rd", x, landmarks)
    return x @ landmarks.swapaxes(-1, -2)


def farthest_rows(k, r):
    """r of the rows of k (..., m, d), each the farthest from those before it: (..., r, d).

    The first is the row of largest norm. Raises ValueError unless 1 ≤ r ≤ m. Source: Gonzalez 1985.
    """
    if not 1 <= r <= k.shape[-2]:
        raise ValueError(f"r must be from 1 to {k.shape[-2]}, the rows of k {k.shape}, got {r}")
    chosen, distance = [], (k * k).sum(axis=-1)
    for i in range(r):
        farthest = distance.argmax(axis=-1)[..., None, None]
        chosen.append(np.take_along_axis(k, farthest, axis=-2))
        d = ((k - chosen[-1]) ** 2).sum(axis=-1)
        distance = np.minimum(distance, d) if i else d
    return np.concatenate(chosen, axis=-2)


def softmax_bias(k, v, log_features):
    """The biases that stand for a context: b_KV = Σ_j φ(k_j) v_jᵀ, b_D = Σ_j φ(k_j).

    k (..., m, d_k), not yet scaled, and v (..., m, d_v) give r features. Source: §5, Eq 18.
    """
    phi_k = np.exp(log_features(k / k.shape[-1] ** 0.25))
    return Bias(key_value_matrix(phi_k, v), phi_k.sum(axis=-2))


def merged_bias(k, v, landmarks):
    """A context merged into r weighted tokens, each key counted at its nearest landmark z(j):

        b_KV = Σ_j e_{z(j)} v_jᵀ,    b_D = Σ_j e_{z(j)},    to go with φ(q) = exp(Z q)

    Positive, so no denominator vanishes; exact when every key is a landmark. k (..., m, d_k), not
    yet scaled, v (..., m, d_v), Z (..., r, d_k), such as `farthest_rows` of k / d_k^(1/4). Ours.
    """
    check_shapes("k:md v:mv landmarks?:rd", k, v, landmarks)
    apart = k[..., :, None, :] / k.shape[-1] ** 0.25 - landmarks[..., None, :, :]
    nearest = (apart * apart).sum(axis=-1).argmin(axis=-1)
    e = np.eye(landmarks.shape[-2], dtype=k.dtype)[nearest]
    return Bias(key_value_matrix(e, v), e.sum(axis=-2))


def similarity_attention(similarity, phi_q, v, bias):
    """Exact similarities among the prompt's tokens, features for the context:

        o_i = (Σ_{j≤i} sim(q_i, k_j) v_j + φ(q_i)ᵀ b_KV) / (Σ_{j≤i} sim(q_i, k_j) + φ(q_i)ᵀ b_D)

    similarity (..., n, n) with zeros above the diagonal, phi_q (..., n, r), v (..., n, d_v), bias
    of width r. Exact if sim(q, k) = φ(q)·φ(k). Refuses a denominator of 0. Source: §5, Eq 17.
    """
    check_shapes("v:nv similarity:nn phi_q:nr", v, similarity, phi_q)
    b_kv, b_d = Bias.start(phi_q, v, bias)
    return divide(similarity @ v + phi_q @ b_kv,
                  similarity.sum(axis=-1, keepdims=True) + phi_q @ b_d[..., None])


def softmax_attention_with_bias(q, k, v, bias, log_features):
    """Softmax attention, exact within the prompt, with a context that has become a bias.

        o_i = (Σ_{j≤i} e^{q_i·k_j} v_j + φ(q_i)ᵀ b_KV) / (Σ_{j≤i} e^{q_i·k_j} + φ(q_i)ᵀ b_D)

    with q·k / √d_k for q·k. This is `similarity_attention`, but nothing overflows: feature a is one
    more token, of score log φ_a(q) + log b_D,a and value b_KV,a / b_D,a, and softmax does the rest.
    q, k (..., n, d_k), v (..., n, d_v). Raises ValueError for a negative b_D. Source: §5, Eq 17.
    """
    check_shapes("q:nk k:nk v:nv", q, k, v)
    q, k = (x / x.shape[-1] ** 0.25 for x in (q, k))
    log_phi = log_features(q)
    b_kv, b_d = Bias.start(log_phi, v, bias)
    if (b_d < 0).any():
        raise ValueError(f"b_D {b_d.shape} must not be negative: features of softmax are positive")
    with np.errstate(divide="ignore"):   # log 0 = -inf: a feature that no token of the context has
        of_features = log_phi + np.log(b_d)[..., None, :]
    of_prompt = np.where(np.tri(q.shape[-2]), q @ k.swapaxes(-1, -2), -np.inf)
    values = np.concatenate([b_kv / np.where(b_d > 0, b_d, 1)[..., None], v], axis=-2)
    return softmax(np.concatenate([of_features, of_prompt], axis=-1)) @ values


def softmax_attend(q, k, v, converted=None, rope=None, normalize=True):
    """An adapter: softmax as `forward`'s `attend`, `converted` of `iclaa`; it returns no state."""
    q, k = (rotate_at(x, rope, np.arange(1, x.shape[-2] + 1)) for x in (q, k))
    if converted is None:
        return softmax_attention(q, k, v), None
    return softmax_attention_with_bias(q, k, v, *converted), converted


def iclaa(model, tokens, convert):
    """Algorithm 1 for a softmax transformer, approximately: a (Bias, log_features) for each layer.

    forward(model, prompt, iclaa(model, tokens, convert), softmax_attend) approximates the logits
    with the context in front; model.phi must be `identity`. convert(k, v) makes one layer's pair
    of the context's keys and values (heads, m, ...), such as (softmax_bias(k, v, f), f) with f =
    partial(log_random_features, projection=W). As in Theorem 4.5 the context's keys are turned to
    the places 1−M ... 0, which only relative positions allow (Assumption 4.3). Source: §5, App D.
    """
    def attend(q, k, v, _, rope, normalize):
        o, _ = softmax_attend(q, k, v, None, rope)
        return o, convert(rotate_at(k, rope, np.arange(1, k.shape[-2] + 1) - k.shape[-2]), v)

    return run_layers(model, tokens, attend=attend)[1]


if __name__ == "__main__":
    from linear_transformer import forward, random_transformer
    rng = np.random.default_rng(0)
    model, text = random_transformer(rng, 50, 64, n_layers=4, n_heads=4), rng.integers(0, 50, 80)
    expected, biases = forward(model, text)[0][60:], iclca(model, text[:60])
    for name, start in ("converted", biases), ("dropped", None):
        apart = abs(forward(model, text[60:], start)[0] - expected).max()
        print(f"context {name}: the logits are {apart:.1e} from those in context")
    print("a text that becomes weights: python docs/text_to_weights.py")
