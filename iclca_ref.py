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
that descend a gradient; a patch exact for any attention, but one query at a time; and softmax,
approximately. Arithmetic, errors and symbols are as in linear_transformer.py, with

    W0, W          regression weights (d_out, d_in), applied to rows as X @ W.T
    X, Y, E, x     training inputs (n, d_in), targets and error signals (n, d_out), test inputs
    eta, gamma     learning rate; how far GD++ moves the inputs
    A, B           one step of a linear recurrence, s ↦ A s + B

Chen et al., ICML 2024 (arXiv 2406.02847); Dai et al. 2022 (2212.10559); Irie et al. 2022; Aizerman
et al. 1964; von Oswald et al., ICML 2023 (2212.07677); Dherin et al. 2025 (2507.16003). "Review":
the four lines of the dual form (Irie et al.; Dai et al. §3), docs/derivation.md, section 10.
"""

from typing import NamedTuple

import numpy as np

from linear_transformer import (Bias, _divide, check_shapes, chunked_attention, rotate_at,
                                run_layers, softmax, softmax_attention)


# ---- ICLCA: a context as biases -----------------------------------------------------------------

def key_value_matrix(k, v):
    """The Key-Value matrix Σ_j φ(k_j) v_jᵀ: k (..., m, d_k), v (..., m, d_v) to (..., d_k, d_v).

    Without positions, tokens in front change this and the normalizer alone. Source: Def 3.4, Eq 6.
    """
    check_shapes("k:mk v:mv", k, v)
    return k.mT @ v


def linear_bias(context, w_k, w_v, b_kv):
    """b'_KV = b_KV + (X' W_K)ᵀ X' W_V: in Q (KᵀV + b_KV) it stands for X' in front of every prompt.

    X' (..., m, d), w_k (d, d_k), w_v (d, d_v), b_kv (..., d_k, d_v). Source: Thm 4.1, Eq 9-11.
    """
    check_shapes("context:md w_k?:dk w_v?:dv b_kv?:kv", context, w_k, w_v, b_kv)
    return b_kv + key_value_matrix(context @ w_k, context @ w_v)


def attention_bias(k, v, bias=None, rope=None):
    """The two biases that replace a context of M tokens, for every prompt after it.

        b'_KV = R_{−M} b_KV + Σ_{j=1..M} R_{j−M} φ(k_j) v_jᵀ,    b'_D = b_D + Σ_{j=1..M} φ(k_j)

    k (..., m, d_k), v (..., m, d_v); `bias` is what the context itself started from. The context
    keeps its places 1−M ... 0, and the prompt counts from 1 again. Source: Theorem 4.5, Eq 14-16.

    >>> attention_bias(np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]]))
    Bias(kv=array([[11.]]), d=array([3.]))
    """
    check_shapes("k:mk v:mv", k, v)
    m = k.shape[-2]
    b_kv, b_d = Bias.start(k, v, bias).turned(rope, -m)
    rk = rotate_at(k, rope, np.arange(1, m + 1) - m)
    return Bias(b_kv + rk.mT @ v, b_d + k.sum(axis=-2))


def iclca(model, tokens, biases=None):
    """Algorithm 1: send the context through the layers once, and at each apply Theorem 4.5.

    For every prompt, forward(model, prompt, iclca(model, tokens)) equals forward(model, tokens +
    prompt) on the prompt's rows. tokens (..., m), m ≥ 0; `biases` are those of contexts converted
    before: conversions compose, and leaving the result out undoes them. Source: §4.5.
    """
    def update_and_pass_on(q, k, v, bias, rope, normalize):
        o, _ = chunked_attention(q, k, v, bias, rope, normalize)   # the tokens go on with o
        return o, attention_bias(k, v, bias, rope)                 # this layer's b'_KV and b'_D

    return run_layers(model, tokens, biases, attend=update_and_pass_on)[1]


# ---- One law: every linear recurrence turns a context into one affine map of its state ----------

def linear_recurrence(q, A, B, state):
    """Any linear recurrence with its factor on the left: s_i = A_i s_{i−1} + B_i, o_i = s_iᵀ q_i.

        layer                                    A_i                        B_i
        linear attention                         I                          k vᵀ
        with rotary positions (Theorem 4.5)      R_{−1}                     k vᵀ
        RetNet (Sun et al. 2023)                 γ R_{−1}                   k vᵀ
        Mamba-2 (Dao and Gu 2024)                α I                        k vᵀ
        GLA (Yang et al. 2024), RWKV-6's decay   diag(a)                    k vᵀ
        DeltaNet (Schlag et al. 2021)            I − β k kᵀ                 β k vᵀ
        Gated DeltaNet (Yang et al. 2025)        α (I − β k kᵀ)             β k vᵀ
        Kimi Delta Attention (2510.26692)        (I − β k kᵀ) diag(a)       β k vᵀ
        Comba (2506.02475)                       α I − β k pᵀ               β k vᵀ
        Gated DeltaNet-2 (2605.22791)            (I − k (b∘k)ᵀ) diag(a)     k (w∘v)ᵀ
        RWKV-7 (2503.14456); DPLR: any b aᵀ      diag(w) − (a∘κ) κᵀ         k vᵀ
        DeltaProduct (2502.10297)                `context_map` of a token's own steps
        Mamba-3 (2603.15569): state [s; k vᵀ]    [[α R, β R], [0, 0]]       [γ k vᵀ; k vᵀ]
        momentum (2501.00663): state [M; S]      [[(1−α) I − θ k kᵀ, η I],  θ [k vᵀ; k vᵀ]
                                                  [−θ k kᵀ, η I]]

    Seen from the token that reads it, the state turns one place back before each: R_{−1}; Mamba-3's
    R is the token's own turn back. Stacked states are read by [q; 0]. q (..., n, d_k), A (..., n,
    d_k, d_k), B (..., n, d_k, d_v), state (..., d_k, d_v) give o (..., n, d_v), the last state.
    """
    check_shapes("q:nk A:nkk B:nkv state?:kv", q, A, B, state)
    state = np.array(np.broadcast_to(state, (*B.shape[:-3], *B.shape[-2:])))
    outputs = [q[..., :0, :] @ state]
    for i in range(q.shape[-2]):
        state = A[..., i, :, :] @ state + B[..., i, :, :]
        outputs.append(q[..., i:i + 1, :] @ state)
    return np.concatenate(outputs, axis=-2), state


def compose(later, earlier):
    """(A₂, B₂) after (A₁, B₁), one map: (A₂A₁, A₂B₁ + B₂). Associative (Martin and Cundy 2018)."""
    (A_2, B_2), (A_1, B_1) = later, earlier
    check_shapes("A_2?:kk B_2?:kv A_1?:kk B_1?:kv", A_2, B_2, A_1, B_1)
    return A_2 @ A_1, A_2 @ B_1 + B_2


def context_map(A, B):
    """A context as one map s ↦ A s + B of the state: A = A_m ⋯ A_1, B = Σ_j A_m ⋯ A_{j+1} B_j.

    A (..., m, d_k, d_k), B (..., m, d_k, d_v) give (..., d_k, d_k), (..., d_k, d_v). In Theorem 4.5
    A = R_{−M}, and B is b'_KV from the start 0.
    """
    check_shapes("A:mkk B:mkv", A, B)
    zero_A, zero_B = (np.zeros((*X.shape[:-3], *X.shape[-2:]), X.dtype) for X in (A, B))
    read = zero_A + np.eye(A.shape[-1], dtype=A.dtype), zero_B
    for j in range(A.shape[-3]):
        read = compose((A[..., j, :, :], B[..., j, :, :]), read)
    return read


def parallel_scan(A, B):
    """The maps of all prefixes at once: entry i is the `context_map` of the first i + 1 tokens.

    ⌈log₂ m⌉ rounds, each composing every map with the one 1, 2, 4, ... places before it. A (..., m,
    d_k, d_k), B (..., m, d_k, d_v) give two arrays of their shapes. Source: Hillis and Steele 1986.
    """
    check_shapes("A:mkk B:mkv", A, B)
    A, B = (np.array(X, np.result_type(A, B)) for X in (A, B))
    for step in (2 ** r for r in range((A.shape[-3] - 1).bit_length())):
        later, earlier = ([X[..., cut, :, :] for X in (A, B)] for cut in np.s_[step:, :-step])
        A[..., step:, :, :], B[..., step:, :, :] = compose(later, earlier)
    return A, B


# ---- The dual form: training as attention, attention as training --------------------------------

def lin_attn(V, K, q):
    """Linear attention without a normalizer, Σ_i v_i (k_i·q): V Kᵀ q in the review (columns).

    V (..., n, d_v), K (..., n, d_k); q is one query (d_k,) for all, or rows (..., r, d_k) of which
    K and V may lack the leading axes. Source: review Eq 1.
    """
    check_shapes("q?:k K:nk V:nv" if np.ndim(q) == 1 else "q:rk K?:nk V?:nv", q, K, V)
    return q @ (K.mT @ V)


def weight_update(E, X):
    """ΔW = Σ_i e_i ⊗ x_i (..., d_out, d_in): E (..., n, d_out), X (..., n, d_in). Review Eq 2-3."""
    check_shapes("E:no X:ni", E, X)
    return E.mT @ X


def dual_form(W0, E, X, x):
    """A trained linear layer (W₀ + ΔW) x as attention to its data: W₀ x + LinAttn(E, X, x).

    Values are the error signals e_i, keys the training inputs x_i, and the query, as in `lin_attn`,
    the test input x. Source: review Eq 4; Irie et al. for a whole run.
    """
    check_shapes("E:no X:ni W0?:oi", E, X, W0)
    return x @ W0.mT + lin_attn(E, X, x)


def gradient_descent(W0, X, Y, eta, steps=1, gradient=lambda F, Y: (F - Y) / len(Y)):
    """Full-batch gradient descent on a linear layer, with a record of its run: (W, E, X_seen).

        E_t = −η · gradient(X W_{t−1}ᵀ, Y),    W_t = W_{t−1} + E_tᵀ X

    W0 (d_out, d_in), X (n, d_in), Y (n, d_out); E (steps·n, d_out) has every step's error signals,
    X_seen (steps·n, d_in) the inputs they met: dual_form(W0, E, X_seen, x) is the trained layer.
    `gradient` is the loss's at the outputs F (n, d_out), by default of 1/(2n) Σ ‖W x_i − y_i‖².
    Source: review Eq 2-4; von Oswald Eq 2-3.
    """
    check_shapes("W0:oi X:ni Y:no", W0, X, Y)
    if W0.ndim != 2 or not len(X) or steps < 0:
        raise ValueError(f"need matrices, n ≥ 1 and steps ≥ 0, got X {X.shape} and steps = {steps}")
    W, errors = W0.copy(), [Y[:0]]
    for _ in range(steps):
        errors.append(-(eta * gradient(X @ W.T, Y)))
        W = W + weight_update(errors[-1], X)
    return W, np.concatenate(errors), np.tile(X, (steps, 1))


def kernel_prediction(alpha, X, x, kernel):
    """Σ_i α_i k(x_i, x), the potential function: the dual form on features if k = φ(x)·φ(x').

    alpha (n,) or (n, d_out), X (n, d_in), x (..., d_in); kernel takes two vectors (d_in,) and
    returns a number. Source: Aizerman et al. 1964.
    """
    rows = np.reshape(x, (-1, np.shape(x)[-1]))
    check_shapes("x:ri X?:ni alpha?:" + "no"[:np.ndim(alpha)], rows, X, alpha)
    similar = np.array([[kernel(x_i, row) for x_i in X] for row in rows])
    return similar.reshape(*np.shape(x)[:-1], len(X)) @ alpha


def icl_weight_update(context, w_k, w_v):
    """Dai et al.'s ΔW_ICL = Σ_i W_V x'_i ⊗ W_K x'_i: demonstrations as a weight update.

    context (..., m, d), w_k (d, d_k), w_v (d, d_v), the paper's transposed, to (..., d_v, d_k). The
    sum over the query tokens is W_ZSL, relaxed attention (W_ZSL + ΔW_ICL) q. Source: Dai et al. §3.
    """
    check_shapes("context:md w_k?:dk w_v?:dv", context, w_k, w_v)
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

    context (..., n, d), query (..., r, d), or (d,) for one context, weights an LSA; k_i = W_K e_i
    and so on. Returns both after the layer, in the same shapes. Source: Proposition 1, Eq 8.
    """
    rows = "d" if np.ndim(query) == 1 else "rd"
    check_shapes(f"context:nd query:{rows} w_q?:kd w_k?:kd w_v?:vd p?:dv", context, query, *weights)
    w_q, w_k, w_v, p = (w.mT for w in weights)
    s = key_value_matrix(context @ w_k, context @ w_v)
    return context + context @ w_q @ s @ p, query + query @ w_q @ s @ p


def _blocks(w0, factors, n=1):
    """1/n [[a I, b W₀ᵀ], [c W₀, d I]] for factors [[a, b], [c, d]], in W₀'s arithmetic."""
    check_shapes("w0:oi", w0)
    if w0.ndim != 2 or not n >= 1:
        raise ValueError(f"w0 must be (d_out, d_in) and n at least 1, got {w0.shape} and n = {n}")
    I_y, I_x = (np.eye(length, dtype=w0.dtype) + 0 * w0[:1, :1].sum() for length in w0.shape)
    (a, b), (c, d) = factors
    return np.block([[a * I_x, b * w0.T], [c * w0, d * I_y]]) / n


def gd_weights(w0, eta, n):
    """The LSA layer that takes one step of gradient descent on 1/(2n) Σ_i ‖W x_i − y_i‖² from W₀.

        W_K = W_Q = [[I, 0], [0, 0]],    W_V = [[0, 0], [W₀, −I]],    P = (η/n) I

    A context's (x, y) becomes (x, y − ΔW x), a query's (x, −W₀ x) becomes (x, −(W₀ + ΔW) x), minus
    its prediction; the layer is the next step too. w0 (d_out, d_in). Source: Prop 1, Eq 8, App A.1.

    >>> context, query = np.array([[1.0, 2.0]]), np.array([[3.0, 0.0]])   # x = 1, y = 2; x = 3
    >>> lsa(context, query, gd_weights(np.zeros((1, 1)), eta=0.5, n=1))[1]    # from W₀ = 0 to W = 1
    array([[ 3., -3.]])
    """
    w_k = _blocks(w0, [[1, 0], [0, 0]])
    w_v = _blocks(w0, [[0, 0], [1, -1]])
    return LSA(w_k, w_k, w_v, _blocks(w0, [[eta, 0], [0, eta]], n))


def gd_plus_plus_weights(w0, eta, gamma, n):
    """GD++: the layer of `gd_weights` that also moves the inputs, x_j ← (I − γ Σ_i x_i x_iᵀ) x_j.

        W_V = [[I, 0], [W₀, −I]],    P = diag(−γ I, (η/n) I)

    For the next layer each eigenvalue λ of Σ_i x_i x_iᵀ has become λ (1 − γλ)². Stack them with W₀
    = 0 only: else the next one's W₀ x is that of an x that has moved. Source: App A.10, Eq 23.
    """
    w_k = _blocks(w0, [[1, 0], [0, 0]])
    w_v = _blocks(w0, [[1, 0], [1, -1]])
    p = _blocks(w0, [[0, 0], [0, eta]], n) - _blocks(w0, [[gamma, 0], [0, 0]])
    return LSA(w_k, w_k, w_v, p)


def alternating_tokens(x, y):
    """The tokens x_1, y_1, x_2, y_2, ..., with positions: (x_j, 0, e_{2j−1}), (0, y_j, e_{2j}).

    x (n, d_in) and y (n, d_out) give (2n, d_in + d_out + 2n). Source: Prop 3, App A.5.
    """
    check_shapes("x:ni y:no", x, y)
    first, second = np.eye(2, dtype=x.dtype)[..., None]
    return np.hstack([np.kron(x, first), np.kron(y, second), np.eye(2 * len(x), dtype=x.dtype)])


def pairing_weights(n_x, n_y, n, dtype=np.float64):
    """The LSA layer that puts y_j next to x_j: it adds the y-part of the token after.

        W_Q = [0, 0, I],    W_K = [0, 0, S],    W_V = [0, I, 0],    P = W_Vᵀ,    S e_{t+1} = e_t

    Odd `alternating_tokens` become (x_j, y_j, e_{2j−1}), for `gd_weights`. Source: Prop 3, App A.5.
    """
    width = n_x + n_y + 2 * n
    w_q, w_k = (np.eye(2 * n, width, k=n_x + n_y + i, dtype=dtype) for i in (0, 1))   # I and S
    w_v = np.eye(n_y, width, k=n_x, dtype=dtype)
    return LSA(w_q, w_k, w_v, w_v.T)


# ---- The rank-one patch: any attention, one query at a time -------------------------------------

def implicit_weight_update(w, z, z_in_context):
    """ΔW = W (z_C − z) zᵀ / ‖z‖²: the patch of a weight W by which input z answers as z_C would.

    An MLP after any attention, with inputs z without and z_C with the context, so gives without it
    what it gives with it. It is the smallest such ΔW in Frobenius norm, of rank at most one, and
    depends on the query. w (..., d_out, d), z, z_in_context (..., d). Source: Dherin et al. 2025.
    """
    check_shapes("z:d z_in_context:d w?:od", z, z_in_context, w)
    z_row, change = z[..., None, :], (z_in_context - z)[..., :, None]
    square = z_row @ z_row.mT
    if (square == 0).any():
        raise ValueError(f"z·z is 0 for z {z.shape}: z is 0, or multiply both z by a large number")
    return w @ change @ z_row / square


# ---- Softmax attention, approximately (ICLAA) ---------------------------------------------------
# exp(q·k) has infinitely many features. With finitely many the context, and it alone, becomes
# Σ_j ψ(k_j) v_jᵀ and Σ_j ψ(k_j), read by φ(q): Eq 18 with two maps. Random features take ψ = φ.
# φ_a(q) = exp(z_a·q), a feature for each kept key z_a, is a compacted key-value cache; ψ(k_j) then
# shares token j out among the kept ones. Features see q and k over d_k^(1/4); we take their log.

def log_random_features(x, projection):
    """log φ(x) = W x − ‖x‖²/2 − ½ log m: Performer's features, E[φ(q)·φ(k)] = exp(q·k) over W.

    x (..., n, d), projection W (m, d) of independent normals give (..., n, m). Source: §5;
    Choromanski et al. 2021, Lemma 1.
    """
    check_shapes("x:nd projection?:md", x, projection)
    log_m = float(np.log(projection.shape[-2] or 1))
    return x @ projection.mT - (x * x).sum(axis=-1, keepdims=True) / 2 - log_m / 2


def softmax_bias(k, v, log_features):
    """The biases that stand for a context: b_KV = Σ_j φ(k_j) v_jᵀ, b_D = Σ_j φ(k_j).

    k (..., m, d_k), not yet scaled, and v (..., m, d_v) give r features. Source: §5, Eq 18.
    """
    phi_k = np.exp(log_features(k / k.shape[-1] ** 0.25))
    return Bias(key_value_matrix(phi_k, v), phi_k.sum(axis=-2))


def fitted_bias(attention, v, rows):
    """The best bias, nearly, with some of the context's own keys as features φ_a(q) = exp(k_a·q).

        b_KV = E v,    b_D = E 1,    min_{E ≥ 0} ‖A_R E − A‖,    e_j = the unit vector if j is in R

    attention A (..., n, m) is how n queries that may come attend to the m tokens, A_R its columns
    at `rows` R (..., r), all different; v (..., m, d_v). Exact for any query if all rows are kept.
    100 updates E ← E ∘ (A_Rᵀ A) / (A_Rᵀ A_R E) never increase the error (Lee and Seung 2001).
    Source: ours; the form of the bias is Attention Matching's, Zweiger et al. 2026 (2602.16284).
    """
    check_shapes("attention:nm v:mv rows?:r", attention, v, rows)
    kept = (rows[..., :, None] == np.arange(v.shape[-2])).astype(v.dtype)
    if not (rows.size and (attention >= 0).all() and (kept @ kept.mT == np.eye(len(rows.T))).all()):
        raise ValueError(f"need attention {attention.shape} ≥ 0, different rows {rows.shape} of v")
    A_R, e = attention @ kept.mT, kept + 1 / kept.shape[-2]
    seen, among_kept = A_R.mT @ attention, A_R.mT @ A_R
    for _ in range(100):
        e = e * seen / np.maximum(among_kept @ e, np.finfo(e.dtype).tiny)
    e = np.where(kept.any(axis=-2, keepdims=True), kept, e)
    return Bias(e @ v, e.sum(axis=-1))


def similarity_attention(similarity, phi_q, v, bias):
    """Exact similarities among the prompt's tokens, features for the context:

        o_i = (Σ_{j≤i} sim(q_i, k_j) v_j + φ(q_i)ᵀ b_KV) / (Σ_{j≤i} sim(q_i, k_j) + φ(q_i)ᵀ b_D)

    similarity (..., n, n), zeros above the diagonal, phi_q (..., n, r), v (..., n, d_v), bias of
    width r. Exact if sim(q, k) = φ(q)·φ(k). Source: §5, Eq 17.
    """
    check_shapes("v:nv similarity:nn phi_q:nr", v, similarity, phi_q)
    b_kv, b_d = Bias.start(phi_q, v, bias)
    return _divide(similarity @ v + phi_q @ b_kv,
                   similarity.sum(axis=-1, keepdims=True) + phi_q @ b_d[..., None])


def softmax_attention_with_bias(q, k, v, bias, log_features):
    """Softmax attention, exact within the prompt, with a context that has become a bias.

        o_i = (Σ_{j≤i} e^{q_i·k_j} v_j + φ(q_i)ᵀ b_KV) / (Σ_{j≤i} e^{q_i·k_j} + φ(q_i)ᵀ b_D)

    with q·k / √d_k for q·k. Nothing overflows: feature a is one more token, of score log φ_a(q) +
    log b_D,a and value b_KV,a / b_D,a, and softmax does the rest. Source: §5, Eq 17.
    """
    check_shapes("q:nk k:nk v:nv", q, k, v)
    q, k = (x / x.shape[-1] ** 0.25 for x in (q, k))
    log_phi = log_features(q)
    b_kv, b_d = Bias.start(log_phi, v, bias)
    if (b_d < 0).any() or (b_kv[b_d == 0] != 0).any():
        raise ValueError(f"b_D {b_d.shape} must be positive, or 0 where b_KV {b_kv.shape} is 0")
    with np.errstate(divide="ignore"):   # log 0 = -inf: a feature that no token of the context has
        of_features = log_phi + np.log(b_d)[..., None, :]
    of_prompt = np.where(np.tri(q.shape[-2]), q @ k.mT, -np.inf)
    values = np.concatenate([b_kv / np.where(b_d > 0, b_d, 1)[..., None], v], axis=-2)
    return softmax(np.concatenate([of_features, of_prompt], axis=-1)) @ values


def softmax_attend(q, k, v, converted=None, rope=None, normalize=True):
    """An adapter: softmax as `forward`'s `attend`; instead of a state it returns `converted`."""
    q, k = (rotate_at(x, rope, np.arange(1, np.shape(x)[-2] + 1)) for x in (q, k))
    attend = softmax_attention_with_bias if converted else softmax_attention
    return attend(q, k, v, *(converted or ())), converted


def iclaa(model, tokens, convert):
    """Algorithm 1 for a softmax transformer, approximately: a (Bias, log_features) for each layer.

    forward(model, prompt, iclaa(model, tokens, convert), softmax_attend) approximates the logits
    with the context in front; model.phi must be `identity`. convert(k, v) makes the pair of a
    layer's keys, turned to 1−M ... 0 as in Theorem 4.5, and values (heads, m, ...), for instance
    (softmax_bias(k, v, f), f), f = partial(log_random_features, projection=W). Source: §5, App D.
    """
    def attend(q, k, v, _, rope, normalize):
        o, _ = softmax_attend(q, k, v, None, rope)
        return o, convert(rotate_at(k, rope, np.arange(1, k.shape[-2] + 1) - k.shape[-2]), v)

    return run_layers(model, tokens, attend=attend)[1]
