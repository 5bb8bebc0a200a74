"""Our answers to docs/exercises.md. Do the exercises first."""

import numpy as np


def linear_attention(q, k, v):
    s, z, outputs = 0, 0, []
    for q_i, k_i, v_i in zip(q, k, v):
        s, z = s + np.multiply.outer(k_i, v_i), z + k_i
        outputs.append(q_i @ s / (q_i @ z))
    return np.array(outputs)


def absorb(context, w_k, w_v):
    return (context @ w_k).T @ (context @ w_v)


def counterexample(w_1, w_2):
    return 0 * w_1[:1]


def normalizer_bias(k, b_d):
    # The rotations stand in the numerator alone, so there is nothing to turn.
    return b_d + k.sum(axis=0)


def kv_bias(k, v, turn):
    m = len(k)
    return sum(np.multiply.outer(turn(j - m) @ k[j - 1], v[j - 1]) for j in range(1, m + 1))


def forget(kv, k, v, turn):
    # b' = R_{−1} b + R_0 k vᵀ, so b = R_1 (b' − k vᵀ).
    return turn(1) @ (kv - np.multiply.outer(k, v))


def order_matters(k_1, v_1, k_2, v_2, turn):
    # The later context stays, the earlier is turned back by the later's length. 0 without rotation: a sum has no order.
    first, second = kv_bias(k_1, v_1, turn), kv_bias(k_2, v_2, turn)
    return (turn(-len(k_2)) @ first + second) - (turn(-len(k_1)) @ second + first)


def trained_output(W0, X, Y, x, eta, steps):
    seen, errors = X[:0], Y[:0]
    for _ in range(steps):
        outputs = X @ W0.T + X @ seen.T @ errors
        seen, errors = np.concatenate([seen, X]), np.concatenate([errors, -eta * (outputs - Y) / len(X)])
    return W0 @ x + (seen @ x) @ errors


def step_weights(W0, eta, n):
    n_y, n_x = W0.shape
    w_k = np.zeros((n_x + n_y, n_x + n_y), W0.dtype)
    w_k[:n_x, :n_x] = np.eye(n_x, dtype=W0.dtype)
    w_v = np.zeros_like(w_k)
    w_v[n_x:] = np.concatenate([W0, -np.eye(n_y, dtype=W0.dtype)], axis=1) * (eta / n)
    return w_k, w_k, w_v, np.eye(n_x + n_y, dtype=W0.dtype)


def best_gamma(eigenvalues):
    return 1 / (3 * max(eigenvalues))


def gradient_step_from_bias(b_kv, eta, n):
    return -(eta / n) * b_kv.T


def delta_bias(k, v, beta):
    # Token j adds β_j k_j v_jᵀ and multiplies all that was there by 1 − β_j k_j k_jᵀ.
    effective = 0 * k
    for j in range(len(k)):
        effective = effective - beta[j] * np.multiply.outer(effective @ k[j], k[j])
        effective[j] = effective[j] + beta[j] * k[j]
    return effective, effective.T @ v
