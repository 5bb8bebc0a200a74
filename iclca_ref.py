"""A context becomes weights, exactly: reference code to read beside the papers.

One sum, three names. Over the tokens of a context, with keys k_i and values v_i, take

    Σ_i k_i ⊗ v_i

To Chen et al. it is b_KV, the bias that replaces the context in linear attention (ICLCA, Theorem 4.1). To Dai et al.
it is ΔW_ICLᵀ, the weight update that demonstrations act as. And with keys x_i and values W₀ x_i − y_i it is −N/η times
the transpose of ΔW = −(η/N) Σ_i (W₀ x_i − y_i) x_iᵀ, the step of gradient descent that von Oswald et al. find in a
linear layer. So converting a context of regression examples by ICLCA *is* a gradient step, and the three views of
in-context learning are one array. With rotary positions and a normalizer the same sum reads

    b'_KV = R_{−M} b_KV + Σ_{j≤M} R_{j−M} φ(k_j) v_jᵀ        b'_D = b_D + Σ_{j≤M} φ(k_j)

    O(X with b')  =  the last N rows of  O([X'; X] with b),  for every prompt X                 (Theorem 4.5)

`attention_bias` is that sum, `iclca` applies it layer by layer (Algorithm 1); then come the dual form, in which the
sum is a trained weight, and recurrences that train theirs as they read. `python iclca_ref.py` shows a text turned into
weights. Symbols are those of linear_transformer.py; in addition

    W0, W          regression weights (d_out, d_in), applied to rows as X @ W.T
    X, Y, E        training inputs (n, d_in), targets (n, d_out), error signals (n, d_out); x: test inputs (..., d_in)
    eta, gamma     learning rate; decay of a retention

The papers: Chen et al., ICML 2024 (arXiv 2406.02847); Dai et al. 2022 (2212.10559); Irie et al. 2022; Aizerman et
al. 1964; von Oswald et al., ICML 2023 (2212.07677). "Review" is the summary ICL-VS-FT of the dual form.
"""

import argparse
import difflib
import os
import re
import sys
import textwrap
import zipfile
from typing import NamedTuple

import numpy as np

from linear_transformer import (Bias, Transformer, block, chunked_attention, embed_tokens, forward, generate,
                                induction_transformer, rotate, softmax_attention)


# ---- ICLCA: a context as biases -------------------------------------------------------------------------------------

def key_value_matrix(k, v):
    """The Key-Value matrix A = Σ_j φ(k_j) v_jᵀ: k (..., m, d_k) and v (..., m, d_v) give (..., d_k, d_v).

    Tokens in front of a prompt change A alone, never the prompt's queries. Raises ValueError if the lengths differ.
    Source: Definition 3.4, Eq 6.
    """
    if k.shape[:-1] != v.shape[:-1]:
        raise ValueError(f"k (..., m, d_k) and v (..., m, d_v) must agree but for the width, got k {k.shape}, v {v.shape}")
    return k.swapaxes(-1, -2) @ v


def linear_bias(context, w_k, w_v, b_kv):
    """b'_KV = b_KV + (X' W_K)ᵀ X' W_V: the bias of Q (KᵀV + b_KV) that stands for the context X', for every prompt.

    context (..., m, d_model), w_k (d_model, d_k), w_v (d_model, d_v), b_kv and result (..., d_k, d_v).
    Raises ValueError if b_kv has another shape. Source: Theorem 4.1, Eq 9-11.
    """
    added = key_value_matrix(context @ w_k, context @ w_v)
    if np.shape(b_kv) != added.shape:
        raise ValueError(f"b_kv must be {added.shape}, got {np.shape(b_kv)}")
    return b_kv + added


def attention_bias(k, v, bias=None, rope=None):
    """The two biases that replace a context of M tokens, for every prompt after it.

        b'_KV = R_{−M} b_KV + Σ_{j=1..M} R_{j−M} φ(k_j) v_jᵀ,    b'_D = b_D + Σ_{j=1..M} φ(k_j)

    k (..., m, d_k) are the context's features, v (..., m, d_v); `bias` is what the context itself started from.
    With R_{j−M} the context keeps its places 1−M ... 0 while the prompt counts from 1 again.
    Raises ValueError for shapes that do not fit. Source: Theorem 4.5, Eq 14-16.

    >>> attention_bias(np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]]))
    Bias(kv=array([[11.]]), d=array([3.]))
    """
    start, m = Bias.start(k, k, v, bias), k.shape[-2]
    b_kv, b_d = start.turned(rope, -m)
    rk = rotate(k, *rope(np.arange(1, m + 1) - m)) if rope else k
    return Bias(b_kv + key_value_matrix(rk, v), b_d + k.sum(axis=-2))


def iclca(model, tokens, biases=None):
    """Algorithm 1: send the context through the layers once and keep the biases that it becomes, one Bias per layer.

    For every prompt, forward(model, prompt, iclca(model, tokens)) equals forward(model, tokens + prompt) on the
    prompt's rows. `biases` are those of contexts converted before: conversions compose, and leaving the result out
    undoes them. tokens (..., m), m = 0 included; raises as `embed_tokens` does. Source: §4.5, Algorithm 1.
    """
    def attend(q, k, v, bias, rope, normalize):
        return chunked_attention(q, k, v, bias, rope, normalize)[0], attention_bias(k, v, bias, rope)

    x, biases = embed_tokens(model, tokens, biases)
    for i, layer in enumerate(model.layers):
        x, biases[i] = block(x, layer, model, biases[i], attend)
    return biases


def save_biases(path, biases, **more):
    """Write one Bias per layer to a .npz file, exactly at `path`; `more` are arrays to keep beside them.

    Raises TypeError for arrays that need a pickle, such as Fractions, before anything is written.
    """
    arrays = {f"{name}_{i}": np.asarray(a) for i, bias in enumerate(biases) for name, a in zip(Bias._fields, bias)}
    arrays |= {name: np.asarray(a) for name, a in more.items()}
    for name, a in arrays.items():
        if a.dtype.hasobject:
            raise TypeError(f"{name} {a.shape} has dtype {a.dtype}, which a .npz file cannot hold without a pickle")
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def load_arrays(path):
    """All arrays of a .npz file, as a dict. Raises ValueError if it is none or if it holds a pickle, OSError as open()."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, TypeError, KeyError, AttributeError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a .npz file of plain arrays: {error}") from None


def load_biases(path, model=None):
    """The biases that `save_biases` wrote: a list of one Bias per layer.

    With a model, raises ValueError unless number, shapes (heads, d_k, d_v) and dtype are those of its layers; without,
    raises ValueError unless the file holds kv (..., d_k, d_v) and d (..., d_k) for layers 0, 1, ...
    """
    arrays, biases = load_arrays(path), []
    while f"kv_{len(biases)}" in arrays and f"d_{len(biases)}" in arrays:
        i = len(biases)
        kv, d = arrays[f"kv_{i}"], arrays[f"d_{i}"]
        if kv.ndim < 2 or kv.shape[:-1] != d.shape or kv.dtype.kind != "f" or kv.dtype != d.dtype:
            raise ValueError(f"{path}: layer {i} is no Bias: kv {kv.dtype} {kv.shape}, d {d.dtype} {d.shape}")
        biases.append(Bias(kv, d))
    if not biases or model is not None and len(biases) != len(model.layers):
        raise ValueError(f"{path} holds biases of {len(biases)} layers" + (f", not {len(model.layers)}" if model else ""))
    for i, (layer, bias) in enumerate(zip(model.layers if model else (), biases)):
        expected = (*layer.w_k.shape[::2], layer.w_v.shape[-1])
        if bias.kv.shape != expected or bias.kv.dtype != layer.w_k.dtype:
            raise ValueError(f"{path}: layer {i}'s kv is {bias.kv.dtype} {bias.kv.shape}, "
                             f"the model's is {layer.w_k.dtype} {expected}")
    return biases


# ---- The dual form: training as attention, attention as training -----------------------------------------------------

def lin_attn(V, K, q):
    """Linear attention without a normalizer, Σ_i v_i (k_i·q): V Kᵀ q in the review, where tokens are columns.

    V (..., n, d_v), K (..., n, d_k), q (..., d_k) or rows of it. Raises ValueError if lengths or widths differ.
    Source: review Eq 1.

    >>> lin_attn(V=np.array([[1, 0], [0, 1]]), K=np.array([[1, 2], [3, 4]]), q=np.array([1, 1]))
    array([3, 7])
    """
    if K.shape[:-1] != V.shape[:-1] or K.shape[-1] != q.shape[-1]:
        raise ValueError(f"V (..., n, d_v), K (..., n, d_k) and q (..., d_k) do not fit: V {V.shape}, K {K.shape}, q {q.shape}")
    return q @ K.swapaxes(-1, -2) @ V


def weight_update(E, X):
    """ΔW = Σ_i e_i ⊗ x_i, the sum of error signals times inputs: E (..., n, d_out), X (..., n, d_in) to (..., d_out, d_in).

    Raises ValueError if the lengths differ. Source: review Eq 2-3.
    """
    return key_value_matrix(E, X)


def dual_form(W0, E, X, x):
    """A trained linear layer, (W₀ + ΔW) x, as attention over its training data: W₀ x + LinAttn(E, X, x).

    The values are the error signals e_i, the keys the training inputs x_i, the query the test input x (..., d_in).
    Raises ValueError for shapes that do not fit. Source: review Eq 4; Irie et al. 2022 for a whole training run.
    """
    if W0.shape != (E.shape[-1], X.shape[-1]):
        raise ValueError(f"W0 must be (d_out, d_in) for E {E.shape} and X {X.shape}, got {W0.shape}")
    return x @ W0.T + lin_attn(E, X, x)


def mean_squared_gradient(outputs, targets):
    """(F(x_i) − y_i) / n: the gradient of 1/(2n) Σ ‖F(x_i) − y_i‖² with respect to each output. (n, d_out) twice."""
    return (outputs - targets) / len(outputs)


def gradient_descent(W0, X, Y, eta, steps=1, gradient=mean_squared_gradient):
    """Full-batch gradient descent on a linear layer, with a record of its run: (W, E, X_seen).

        E_t = −η · gradient(X W_{t−1}ᵀ, Y),    W_t = W_{t−1} + E_tᵀ X

    W0 (d_out, d_in), X (n, d_in), Y (n, d_out). E (steps·n, d_out) has the error signals of all steps, X_seen
    (steps·n, d_in) the input that met each, so that dual_form(W0, E, X_seen, x) is the trained layer at any x.
    gradient(outputs, Y) is the loss's gradient with respect to the outputs (n, d_out), by default that of
    1/(2n) Σ ‖W x_i − y_i‖². Raises ValueError for shapes that do not fit, no data, and a negative number of steps.
    Source: review Eq 2-4; von Oswald et al. Eq 2-3.

    >>> gradient_descent(np.zeros((1, 1)), np.array([[1.0], [2.0]]), np.array([[1.0], [2.0]]), eta=0.4)[0]
    array([[1.]])
    """
    if X.ndim != 2 or Y.ndim != 2 or len(X) != len(Y) or not len(X) or W0.shape != (Y.shape[1], X.shape[1]) or steps < 0:
        raise ValueError("need W0 (d_out, d_in), X (n, d_in), Y (n, d_out), n at least 1 and steps at least 0, "
                         f"got W0 {W0.shape}, X {X.shape}, Y {Y.shape}, steps = {steps}")
    W, errors = W0.copy(), [Y[:0]]
    for _ in range(steps):
        E = -eta * gradient(X @ W.T, Y)
        W = W + weight_update(E, X)
        errors.append(E)
    return W, np.concatenate(errors), np.concatenate([X[:0], *[X] * steps])


def kernel_prediction(alpha, X, x, kernel):
    """Σ_i α_i k(x_i, x): the potential function, which is the dual form on features if k(x, x') = φ(x)·φ(x').

    alpha (n,) or (n, d_out), X (n, d_in), x (..., d_in); kernel takes two vectors (d_in,) and returns a number.
    Raises ValueError if the lengths or widths differ. Source: Aizerman et al. 1964.

    >>> kernel_prediction(np.array([[2.0]]), np.array([[1.0, 1.0]]), np.array([3.0, 4.0]), lambda a, b: (a @ b)**2)
    array([98.])
    """
    if len(alpha) != len(X) or X.ndim != 2 or X.shape[-1] != x.shape[-1]:
        raise ValueError(f"need alpha (n, ...), X (n, d_in), x (..., d_in), got {alpha.shape}, {X.shape}, {x.shape}")
    return np.apply_along_axis(lambda one: np.array([kernel(x_i, one) for x_i in X]), -1, x) @ alpha


def icl_weight_update(context, w_k, w_v):
    """Dai et al.'s ΔW_ICL = Σ_i W_V x'_i ⊗ W_K x'_i: the demonstrations as an update of the zero-shot weights.

    context (..., m, d_model), w_k (d_model, d_k), w_v (d_model, d_v) to (..., d_v, d_k); the paper's W_K and W_V are
    transposed, its tokens are columns. Relaxed attention over [demonstrations; query tokens] is (W_ZSL + ΔW_ICL) q,
    with W_ZSL the same sum over the query tokens. Raises ValueError for widths that do not fit. Source: Dai et al. §3.
    """
    return weight_update(context @ w_v, context @ w_k)


# ---- How alike are in-context learning and fine-tuning? (Dai et al. §4) ----------------------------------------------

def unit(a):
    """a / ‖a‖ over the last axis. Raises ValueError for vectors of norm 0, and if there are none."""
    norms = np.linalg.norm(a, axis=-1, keepdims=True)
    if not norms.size or (norms == 0).any():
        raise ValueError(f"an array {a.shape} without vectors or with a vector of norm 0 has no direction")
    return a / norms


def cosine(a, b):
    """a·b / (‖a‖ ‖b‖) over the last axis. Raises ValueError for different shapes and for vectors of norm 0."""
    if a.shape != b.shape:
        raise ValueError(f"a cosine needs two arrays of one shape, got {a.shape} and {b.shape}")
    return (unit(a) * unit(b)).sum(axis=-1)


def sim_aou(icl, fine_tuned, zero_shot):
    """SimAOU: the mean cosine of the two updates of the attention output, ICL − zero-shot and fine-tuned − zero-shot.

    Each array is (examples, layers, width): the last token's attention output in one setting, scaled to norm 1 here.
    Raises ValueError for different shapes and for outputs or updates of norm 0. Source: Dai et al. §4.
    """
    if not icl.shape == fine_tuned.shape == zero_shot.shape:
        raise ValueError(f"need three arrays of one shape, got {icl.shape}, {fine_tuned.shape}, {zero_shot.shape}")
    icl, fine_tuned, zero_shot = unit(icl), unit(fine_tuned), unit(zero_shot)
    return cosine(icl - zero_shot, fine_tuned - zero_shot).mean()


def sim_am(icl, fine_tuned):
    """SimAM: the mean cosine of the attention weights that the last token gives to the query tokens, before softmax.

    Each array is (examples, layers, heads, query tokens). Raises ValueError for different shapes and for weights that
    are all 0. Source: Dai et al. §4.
    """
    return cosine(icl, fine_tuned).mean()


def rec_to_ftp(icl, fine_tuned, zero_shot):
    """Rec2FTP: of the examples that fine-tuning corrects (wrong zero-shot, right after), the share that ICL corrects too.

    Each array is (examples,) of booleans: whether the answer was right. Raises ValueError for different shapes, and if
    fine-tuning corrects nothing. Source: Dai et al. §4.

    >>> rec_to_ftp(icl=np.array([True, False]), fine_tuned=np.array([True, True]), zero_shot=np.array([False, False]))
    0.5
    """
    if not icl.shape == fine_tuned.shape == zero_shot.shape:
        raise ValueError(f"need three arrays of one shape, got {icl.shape}, {fine_tuned.shape}, {zero_shot.shape}")
    corrected = fine_tuned & ~zero_shot
    if not corrected.any():
        raise ValueError(f"fine-tuning corrects none of the {len(corrected)} examples: there is nothing to compare with")
    return float(icl[corrected].mean())


# ---- Online learning as attention: two more states that replace a context --------------------------------------------

def _per_head(gamma, k):
    """A decay γ, a number or one per head (...,), as (..., 1, 1) in k's arithmetic. Raises ValueError for other shapes."""
    gamma = np.asarray(gamma)
    if gamma.shape not in ((), k.shape[:-2]):
        raise ValueError(f"gamma must be a number or {k.shape[:-2]}, one per head of k {k.shape}, got {gamma.shape}")
    return (gamma.astype(k.dtype) if k.dtype.kind == "f" else gamma)[..., None, None]


def retention(q, k, v, gamma, state=None, rope=None):
    """RetNet's retention, linear attention that forgets: s_i = γ s_{i−1} + R_i k_i v_iᵀ, o_i = (R_i q_i)ᵀ s_i.

    q, k (..., n, d_k), v (..., n, d_v); gamma is a number or one per head (...,); state (..., d_k, d_v), zeros if None.
    Returns o (..., n, d_v) and the state in the frame of the next token, R_{−n} s_n, which replaces what was read.
    Raises ValueError for shapes that do not fit. Source: Sun et al. 2023; with γ = 1, Eq 19 without a normalizer.
    """
    b = Bias.start(q, k, v, None if state is None else Bias(state, state.sum(axis=-1)))   # its d is not used
    s, gamma, n, outputs = b.kv.copy(), _per_head(gamma, k), q.shape[-2], [v[..., :0, :]]
    rq, rk = (rotate(x, *rope(np.arange(1, n + 1))) if rope else x for x in (q, k))
    for i in range(n):
        rq_i, rk_i, v_i = (x[..., i:i + 1, :] for x in (rq, rk, v))
        s = gamma * s + rk_i.swapaxes(-1, -2) @ v_i
        outputs.append(rq_i @ s)
    return np.concatenate(outputs, axis=-2), b._replace(kv=s).turned(rope, -n).kv


def retention_bias(k, v, gamma, state=None, rope=None):
    """Theorem 4.5 for retention: γᴹ stands beside R_{−M}, as γⁿ composes just as R_n does.

        b' = γᴹ R_{−M} b + Σ_{j=1..M} γ^{M−j} R_{j−M} k_j v_jᵀ

    Arguments and errors as for `retention`; returns the state (..., d_k, d_v) that replaces the context.
    """
    start = Bias.start(k, k, v, None if state is None else Bias(state, state.sum(axis=-1)))    # its d is not used
    gamma, m = _per_head(gamma, k), k.shape[-2]
    decays = np.concatenate([gamma ** n for n in range(m, -1, -1)], axis=-2)                   # γᴹ, γ^{M−1}, ..., 1
    rk = rotate(k, *rope(np.arange(1, m + 1) - m)) if rope else k
    return decays[..., :1, :] * start.turned(rope, -m).kv + (decays[..., 1:, :] * rk).swapaxes(-1, -2) @ v


def delta_rule(q, k, v, beta, state=None):
    """DeltaNet: s_i = s_{i−1} + β_i k_i (v_i − s_{i−1}ᵀ k_i)ᵀ, o_i = s_iᵀ q_i.

    Each token is one step of gradient descent, with rate β_i, on ½ ‖sᵀ k_i − v_i‖²: the state *is* a weight matrix in
    training, and the bias that replaces what was read. It is not a sum over tokens: later ones overwrite earlier ones.
    q, k (..., n, d_k), v (..., n, d_v), beta (..., n), state (..., d_k, d_v) or None for zeros; returns o (..., n, d_v)
    and the state. Raises ValueError for shapes that do not fit. Source: Schlag et al. 2021; Yang et al. 2024.
    """
    s = Bias.start(q, k, v, None if state is None else Bias(state, state.sum(axis=-1))).kv.copy()
    outputs = [v[..., :0, :]]
    if beta.shape != k.shape[:-1]:
        raise ValueError(f"beta must be {k.shape[:-1]}, one for each token of k {k.shape}, got {beta.shape}")
    for i in range(k.shape[-2]):
        q_i, k_i, v_i, beta_i = (x[..., i:i + 1, :] for x in (q, k, v, beta[..., None]))
        s = s + beta_i * k_i.swapaxes(-1, -2) @ (v_i - k_i @ s)
        outputs.append(q_i @ s)
    return np.concatenate(outputs, axis=-2), s


# ---- Softmax attention, approximately (ICLAA) -----------------------------------------------------------------------
#
# exp(q·k) is a product of features φ(q)·φ(k) too, but of infinitely many. With finitely many the context, and only the
# context, is approximated; the prompt's tokens see one another exactly. `features` is a function from rows (..., n, d)
# to rows (..., n, r); the vectors it is given are q and k divided by d_k^(1/4), so that q·k is the score.

def gaussian_projection(rng, m, d):
    """m random directions (m, d) with independent normal entries, for `random_features`; rng is a numpy Generator."""
    return rng.standard_normal((m, d))


def orthogonal_projection(rng, m, d):
    """m random directions (m, d), orthogonal within each block of d, each distributed as a row of independent normals.

    The estimate stays unbiased and its variance falls. Source: §5; Choromanski et al. 2021 (Performer).
    """
    q, r = np.linalg.qr(rng.standard_normal((-(-m // d), d, d)))
    q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[:, None, :]  # uniform over the rotations
    return q.reshape(-1, d)[:m] * np.linalg.norm(rng.standard_normal((m, d)), axis=-1, keepdims=True)


def random_features(x, projection):
    """Performer's positive features, φ(x) = exp(W x − ‖x‖²/2) / √m, with E[φ(q)·φ(k)] = exp(q·k) over the rows of W.

    x (..., n, d), projection W (m, d), result (..., n, m), at most exp(‖w‖²/2) / √m however large x is.
    Raises ValueError if the widths differ. Source: §5; Choromanski et al. 2021, Lemma 1.
    """
    if projection.ndim != 2 or projection.shape[-1] != x.shape[-1]:
        raise ValueError(f"projection must be (m, {x.shape[-1]}) for x {x.shape}, got {projection.shape}")
    exponent = x @ projection.T.astype(x.dtype) - (x * x).sum(axis=-1, keepdims=True) / 2
    return np.exp(exponent) / len(projection) ** 0.5


def landmark_features(landmarks):
    """Features f with f(q)·f(k) = exp(q·k) for every q as soon as k is a landmark (Nyström): a function of rows.

        f(x) = L⁻¹ exp(Z x − ‖z‖²/2),    L Lᵀ = G = (exp(−‖z_a − z_b‖²/2))_{ab}

    landmarks Z (..., r, d) are rows such as some of the context's keys (`farthest_rows`), and the features of x
    (..., n, d) are (..., n, r). 4 r eps is added to G's diagonal, so landmarks may repeat; exact means up to that.
    Cholesky's triangular factor keeps small features small, as eigenvectors would not, so sharp attention is safe too.
    The function raises ValueError if the features are too large for x's type: f(x) is about exp(‖x‖²/2), which is
    finite for ‖x‖ < 13 in float32 and ‖x‖ < 37 in float64. Source: Williams and Seeger 2001 (Nyström).
    """
    z, r = landmarks.astype(np.float64), landmarks.shape[-2]
    half = (z * z).sum(axis=-1)[..., None, :] / 2
    gram = np.exp(z @ z.swapaxes(-1, -2) - half - half.swapaxes(-1, -2))
    inverse = np.linalg.inv(np.linalg.cholesky(gram + 4 * r * np.finfo(np.float64).eps * np.eye(r)))

    def features(x):
        with np.errstate(over="ignore", invalid="ignore"):
            f = (np.exp(x @ z.swapaxes(-1, -2) - half) @ inverse.swapaxes(-1, -2)).astype(x.dtype)
        if not np.isfinite(f).all():
            raise ValueError(f"x {x.shape} of norm up to {np.linalg.norm(x, axis=-1).max():.0f} has features too large "
                             f"for {x.dtype}")
        return f

    return features


def farthest_rows(k, r):
    """r of the rows of k (..., m, d), each the farthest from those before it, to be landmarks: (..., r, d).

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


def softmax_bias(k, v, features):
    """The biases that stand for a context in softmax attention: b_KV = Σ_j φ(k_j) v_jᵀ, b_D = Σ_j φ(k_j).

    k (..., m, d_k), v (..., m, d_v); returns Bias(kv (..., r, d_v), d (..., r)). The factor 1/√d_k of the scores is
    applied here, half of it to k. Raises ValueError for shapes that do not fit. Source: §5, Eq 18.
    """
    phi_k = features(k / k.shape[-1] ** 0.25)
    return Bias(key_value_matrix(phi_k, v), phi_k.sum(axis=-2))


def similarity_attention(similarity, phi_q, v, bias):
    """Exact similarities among the prompt's tokens, features for the context:

        o_i = (Σ_{j≤i} sim(q_i, k_j) v_j + φ(q_i)ᵀ b_KV) / (Σ_{j≤i} sim(q_i, k_j) + φ(q_i)ᵀ b_D)

    similarity (..., n, n) with zeros above the diagonal, phi_q (..., n, r), v (..., n, d_v), bias of width r. Exact if
    sim(q, k) = φ(q)·φ(k). Raises ValueError for shapes that do not fit and for a denominator of 0. Source: §5, Eq 17.
    """
    b_kv, b_d = Bias.start(phi_q, phi_q, v, bias)
    if similarity.shape != (*v.shape[:-1], v.shape[-2]):
        raise ValueError(f"similarity must be (..., n, n) for v {v.shape}, got {similarity.shape}")
    denominator = similarity.sum(axis=-1, keepdims=True) + phi_q @ b_d[..., None]
    if (denominator == 0).any():
        raise ValueError("the denominator Σ sim(q, k) + φ(q)·b_D is 0 for some token")
    return (similarity @ v + phi_q @ b_kv) / denominator


def softmax_attention_with_bias(q, k, v, bias, features):
    """Softmax attention, exact within the prompt, with a context that has become a `softmax_bias`.

    sim(q, k) = exp(q·k / √d_k) in `similarity_attention`. Every row is multiplied by one factor, exp(−its largest
    exponent), in all four sums alike, where a feature's exponent counts the size of its bias; so nothing overflows and
    no denominator vanishes. q, k (..., n, d_k), v (..., n, d_v); returns o (..., n, d_v).
    Raises ValueError for shapes that do not fit. Source: §5, Eq 17.
    """
    Bias.start(q, k, v)
    q, k = q / q.shape[-1] ** 0.25, k / k.shape[-1] ** 0.25
    scores = np.where(np.tri(q.shape[-2]), q @ k.swapaxes(-1, -2), -np.inf)
    phi_q = features(q)
    b_kv, b_d = Bias.start(phi_q, phi_q, v, bias)
    size = np.maximum(abs(b_kv).max(axis=-1, initial=0), abs(b_d))
    with np.errstate(divide="ignore"):  # log 0 = -inf is right: a feature of 0 stays 0
        exponents = np.log(abs(phi_q)) + np.log(size)[..., None, :]
    shift = np.concatenate([scores, exponents], axis=-1).max(axis=-1, keepdims=True)
    size = np.where(size > 0, size, 1)
    return similarity_attention(np.exp(scores - shift), np.sign(phi_q) * np.exp(exponents - shift), v,
                                Bias(b_kv / size[..., None], b_d / size))


def softmax_attend(q, k, v, converted=None, rope=None, normalize=True):
    """Softmax attention as the `attend` of `block` and `forward`; `converted` is a layer's (Bias, features) from `iclaa`."""
    q, k = (rotate(x, *rope(np.arange(1, x.shape[-2] + 1))) if rope else x for x in (q, k))
    if converted is None:
        return softmax_attention(q, k, v), None
    return softmax_attention_with_bias(q, k, v, *converted), converted


def iclaa(model, tokens, features_of):
    """Algorithm 1 for a softmax transformer, approximately: a (Bias, features) for each layer.

    forward(model, prompt, iclaa(model, tokens, features_of), softmax_attend) then approximates the logits with the
    context in front; model.phi must be `identity`. features_of(k) makes a layer's features from the context's keys
    (heads, m, d_k), already turned and divided by d_k^(1/4): lambda k: landmark_features(farthest_rows(k, r)), or
    lambda k: partial(random_features, projection=W).

    As in Theorem 4.5 the context keeps its places 1−M ... 0 (its keys are turned by R_{j−M}) and the prompt counts from
    1, which only relative positions allow (Assumption 4.3). With absolute positions the prompt must go on from M + 1;
    docs/experiments/gpt2.py does so. Raises as `forward` does. Source: §5 and Appendix D.
    """
    def attend(q, k, v, _, rope, normalize):
        o, _ = softmax_attend(q, k, v, None, rope)
        k = rotate(k, *rope(np.arange(1, k.shape[-2] + 1) - k.shape[-2]))
        features = features_of(k / k.shape[-1] ** 0.25)
        return o, (softmax_bias(k, v, features), features)

    return forward(model, tokens, attend=attend)[1]


# ---- The command line: a text becomes weights -----------------------------------------------------------------------

TEXT = """Ada feeds the owl. Ben mends the clock. Cleo paints a boat.
The owl sleeps by day and hunts by night. The clock strikes at noon and stops at dusk.
A boat waits in the harbour until the tide turns. When the tide turns, Cleo sails to Lisbon.
Ben writes to Ada, and Ada writes back: the owl hunts by night, the clock stops at dusk."""


class _Reader(NamedTuple):
    """A hand-built model, the words that its tokens mean, and the biases that the text it has read became."""

    model: Transformer
    words: list
    biases: list
    n_gram: int


def _split_words(text):
    """The words and punctuation marks of a text, in order."""
    return re.findall(r"\w+(?:['’-]\w+)*|-+|[^\w\s]", text)


def _join_words(words):
    """The inverse of split_words, up to spaces."""
    return re.sub(r" ([,.;:!?)\]])", r"\1", " ".join(words))


def _read_text(words, n_gram, room):
    """Build the induction transformer for these words, with room for so many tokens more, and convert them."""
    vocabulary = list(dict.fromkeys(words))
    model = induction_transformer(len(vocabulary), len(words) + room, n_gram)
    return _Reader(model, vocabulary, iclca(model, [vocabulary.index(word) for word in words]), n_gram)


def _tokens_of(prompt, words):
    """The tokens of a prompt. Raises ValueError if it is empty or has a word that `words` does not."""
    prompt = _split_words(prompt)
    for word in prompt:
        if word not in words:
            by_letters = {w.lower(): w for w in words}
            close = [by_letters[w] for w in difflib.get_close_matches(word.lower(), by_letters)]
            raise ValueError(f'the text has no word "{word}"' + (f'; close to it are {", ".join(close)}' if close else ""))
    if not prompt:
        raise ValueError("a prompt needs at least one word")
    return [words.index(word) for word in prompt]


def _row(label, text):
    """One line of the demonstration, or several of at most 79 columns."""
    return textwrap.fill(text, 79, initial_indent=f"  {label:<30}", subsequent_indent=" " * 32)


def _continuation(reader, tokens, n, biases=None):
    """What the model says next, in words."""
    if np.ptp(forward(reader.model, tokens, biases)[0][-1]) < 1e-6:
        return "(no idea: every word has the same logit)"
    return _join_words(reader.words[t] for t in generate(reader.model, tokens, n, biases))


def _demonstrate(reader, tokens, n, text=None):
    """Print how the prompt goes on with the text in context, converted, and without either."""
    print("\n" + _row("prompt", _join_words(reader.words[t] for t in tokens)))
    if text is not None:
        print(_row("with the text in context", _continuation(reader, text + tokens, n)))
    print(_row("converted, without the text", _continuation(reader, tokens, n, reader.biases)))
    print(_row("without either", _continuation(reader, tokens, n)))
    if text is not None:
        in_context = forward(reader.model, text + tokens)[0][len(text):]
        converted = forward(reader.model, tokens, reader.biases)[0]
        print(_row("largest difference of logits", f"{abs(in_context - converted).max():.1e}  (the first two)"))


def _strongest_rows(reader, count=6):
    """Lines that read the last layer's b_KV as a table: what came after what, and how often."""
    table = np.rint(reader.biases[-1].kv[0]).astype(int)[:reader.n_gram * len(reader.words)]
    for row in sorted(range(len(table)), key=lambda row: -table[row].max())[:count]:
        distance, word = divmod(row, len(reader.words))
        after = f'after "{reader.words[word]}"' + " _" * distance
        best = sorted(np.flatnonzero(table[row]), key=lambda b: -table[row, b])[:3]
        if best:
            yield textwrap.fill(", ".join(f'"{reader.words[b]}" ({table[row, b]})' for b in best), 79,
                                initial_indent=f"  {after[:40]:<24} comes ", subsequent_indent=" " * 33)


def _parse_arguments(argv):
    """The command line's arguments, checked; exits with code 2 if they are wrong."""
    def at_least(least):
        def number(text):
            if int(text) < least:
                raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
            return int(text)
        return number

    parser = argparse.ArgumentParser(prog="iclca_ref.py", description="Turn a text into the weights of a linear "
                                     "transformer (ICLCA, Algorithm 1), throw the text away, and continue prompts.")
    parser.add_argument("file", nargs="?", metavar="FILE", help="a UTF-8 text; without it, a short built-in one")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="words to continue, all from the text; may be "
                        "repeated; by default three places of the text")
    parser.add_argument("--generate", type=at_least(0), default=6, metavar="N", help="words to add (default 6)")
    parser.add_argument("--n-gram", type=at_least(1), default=2, metavar="K", help="words of history that the model "
                        "compares (default 2)")
    parser.add_argument("--max-words", type=at_least(1), default=1000, metavar="N", help="cut the text after so many "
                        "words and punctuation marks (default 1000)")
    disk = parser.add_mutually_exclusive_group()
    disk.add_argument("--save", metavar="NPZ", help="write the biases and the vocabulary to this file")
    disk.add_argument("--load", metavar="NPZ", help="answer from a file written by --save, without any text")
    arguments = parser.parse_args(argv)
    if arguments.load and arguments.file:
        parser.error("--load answers without the text: leave FILE out")
    return arguments


def _load_reader(path):
    """The _Reader that --save wrote. Raises ValueError if the file is something else."""
    arrays = load_arrays(path)
    words, sizes = arrays.get("words"), arrays.get("sizes")
    if words is None or words.dtype.kind != "U" or words.ndim != 1 or np.shape(sizes) != (2,) or sizes.dtype.kind != "i":
        raise ValueError(f"{path} was not written by --save")
    max_length, n_gram = map(int, sizes)
    model = induction_transformer(len(words), max_length, n_gram)
    return _Reader(model, words.tolist(), load_biases(path, model), n_gram)


def _read_words(path, max_words):
    """The first words of a file, or of the built-in text. Raises OSError, or ValueError if the file is no text."""
    text = TEXT
    if path:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    words = _split_words(text)
    if "\0" in text or not words:
        raise ValueError(f"{path} " + ("has no words" if not words else "is not a text: it has null characters"))
    if len(words) > max_words:
        print(f"The text has {len(words):,} words: cut after {max_words:,} (--max-words).")
    return words[:max_words]


def _run(arguments):
    """The demonstration. Raises OSError or ValueError with a message for the user."""
    prompts, source = arguments.prompt, os.path.basename(arguments.load or arguments.file or "the built-in text")
    if arguments.load:
        text, reader = None, _load_reader(arguments.load)
        if prompts is None:
            raise ValueError("--load needs a --prompt: the text is gone")
    else:
        words = _read_words(arguments.file, arguments.max_words)
        k = arguments.n_gram
        prompts = prompts or [_join_words(words[i:i + k]) for i in (0, len(words) // 3, 2 * len(words) // 3)]
        longest = max(len(_split_words(prompt)) for prompt in prompts)
        reader = _read_text(words, k, room=max(64, longest + arguments.generate))
        text = [reader.words.index(word) for word in words]
        source = f"{len(words):,} words of {source}"

    prompts = [_tokens_of(prompt, reader.words) for prompt in prompts]
    numbers = sum(a.size for bias in reader.biases for a in bias)
    print(textwrap.fill(f"A linear transformer of 2 layers, written down by hand and not trained, has read {source}. "
                        f"Algorithm 1 has made biases of it, {numbers:,} numbers "
                        f"({8 * numbers / 1e3:,.0f} kB), and the text is not needed any more.", 79))
    for prompt in prompts:
        _demonstrate(reader, prompt, arguments.generate, text)
    print('\nWhat the context has become, the last layer\'s b_KV (_ is any one word):')
    print("\n".join(_strongest_rows(reader)))
    if arguments.save:
        save_biases(arguments.save, reader.biases, words=reader.words, sizes=[reader.model.max_length, reader.n_gram])
        print(f"\nSaved. Without the text: python iclca_ref.py --load {arguments.save} --prompt ...")
    sys.stdout.flush()


def main(argv=None):
    """The command line; returns the exit code."""
    arguments = _parse_arguments(argv)
    try:
        _run(arguments)
    except KeyboardInterrupt:
        return 130
    except UnicodeDecodeError:
        print(f"iclca_ref.py: {arguments.file} is not a UTF-8 text", file=sys.stderr)
    except MemoryError:
        print("iclca_ref.py: not enough memory: try a smaller --max-words or --n-gram", file=sys.stderr)
    except BrokenPipeError:  # the reader of a pipe has gone, as with | head -1: no more output, no traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError) as error:
        print(f"iclca_ref.py: {error}", file=sys.stderr)
    else:
        return 0
    return 2


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")
    sys.exit(main())
