"""Our answers to docs/exercises.md. Do the exercises first."""

import numpy as np

def linear_attention(q, k, v):
    s, z, outputs = 0, 0, []
    for q_i, k_i, v_i in zip(q, k, v):
        s, z = s + np.outer(k_i, v_i), z + k_i
        outputs.append(q_i @ s / (q_i @ z))
    return np.array(outputs)

def absorb_for_one(x, context):
    # With w_1 = I it is xᵀx w_2 = xᵀx + cᵀc. At the prompt 0 the left side is 0, the right is not.
    identity = np.eye(x.shape[1])
    return identity, identity + np.linalg.solve(x.T @ x, context.T @ context), 0 * context

def same_bias(context):
    # The bias is W_Kᵀ (XᵀX) W_V: four halves of a token are as good as the token. All that a linear
    # layer sees of a context is XᵀX, on the side of the keys and of the values.
    return np.concatenate([context / 2] * 4)

def bad_denominator(turn):
    # The score of equal vectors is |q|² cos(angle): far enough apart, it is not positive.
    q, n = np.ones(2), 1
    while q @ turn(n) @ q > 0:
        n = n + 1
    return q, q, n

def convert(k, v, b_kv, b_d, turn):
    # The rotations stand in the numerator alone, so b_D has nothing to turn.
    m = len(k)
    turned = [turn(j - m) @ k[j - 1] for j in range(1, m + 1)]
    return turn(-m) @ b_kv + np.transpose(turned) @ v, b_d + k.sum(axis=0)

def forget(kv, k, v, turn):
    # b' = R_{−1} b + R_0 k vᵀ, so b = R_1 (b' − k vᵀ). DeltaNet can unless β ‖k‖² = 1: then
    # I − β k kᵀ is not invertible, and what was stored along k is gone.
    return turn(1) @ (kv - np.outer(k, v))

def order_matters(k_1, v_1, k_2, v_2, turn):
    # The later context stays, the earlier is turned back by the later's length. So the difference
    # is 0 without rotation, or more generally if (R_{−m_2} − 1) b_1 = (R_{−m_1} − 1) b_2.
    one, two = (convert(k, v, np.zeros((k.shape[1], v.shape[1])), 0, turn)[0]
                for k, v in ((k_1, v_1), (k_2, v_2)))
    return (turn(-len(k_2)) @ one + two) - (turn(-len(k_1)) @ two + one)

def forgetful(q, k, v, state):
    if state is None or len(q) > 1:
        state = np.zeros((k.shape[1], v.shape[1]))
    states = state + np.cumsum(k[:, :, None] * v[:, None], axis=0)
    return np.array([s.T @ q_i for s, q_i in zip(states, q)]), states[-1]

def laws_broken(run, q, k, v):
    # `forgetful` breaks "several" alone: decoding token by token never shows the fault.
    n, broken, state = len(q), set(), None
    whole, _ = run(q, k, v, None)
    for m in range(1, n):
        _, before = run(q[:m], k[:m], v[:m], None)
        rest, again = (run(q[m:], k[m:], v[m:], before)[0] for _ in range(2))
        if (rest != whole[m:]).any():
            broken.add("one" if m == n - 1 else "several")
        if (again != rest).any():
            broken.add("twice")
    for i in range(n):
        output, state = run(q[i:i + 1], k[i:i + 1], v[i:i + 1], state)
        if (output != whole[i]).any():
            broken.add("steps")
    return broken

def states_at_once(a, b):
    # With P_i = a_1 ⋯ a_i it is s_i = P_i Σ_{j≤i} b_j / P_j. At e⁻¹⁰ a token 1 / P_9 = e⁹⁰ is more
    # than float32 can hold (float64: e⁷¹⁰, token 71); later P is 0, and 0 · ∞ is no number.
    # Doubling never divides: s ↦ a s + b after s ↦ a' s + b' is s ↦ a a' s + (a b' + b).
    with np.errstate(all="ignore"):
        by_sums, reach = np.cumprod(a) * np.cumsum(b / np.cumprod(a)), 1
    while reach < len(a):
        b = np.concatenate([b[:reach], a[reach:] * b[:-reach] + b[reach:]])
        a = np.concatenate([a[:reach], a[reach:] * a[:-reach]])
        reach = 2 * reach
    return by_sums, b

def trained_output(W0, X, Y, x, eta, steps):
    seen, errors = X[:0], Y[:0]
    for _ in range(steps):
        outputs = X @ W0.T + X @ seen.T @ errors
        seen = np.concatenate([seen, X])
        errors = np.concatenate([errors, -eta * (outputs - Y) / len(X)])
    return W0 @ x + (seen @ x) @ errors

def step_weights(W0, eta, n):
    n_y, n_x = W0.shape
    w_k = np.diag([1.0] * n_x + [0.0] * n_y)
    w_v = np.pad(np.hstack([W0, -np.eye(n_y)]) * (eta / n), [(n_x, 0), (0, 0)])
    return w_k, w_k, w_v, np.eye(n_x + n_y)

def equalizing_gamma(first, second):
    # √a (1 − γa) = √b (1 − γb), so γ = (√b − √a) / (b√b − a√a). The root with −√b is right too.
    # Where all eigenvalues of the Hessian are one λ, a step of n/λ ends in the minimum.
    return 1 / (first + (first * second) ** 0.5 + second)

def train_on_bias(b_kv, W0, eta, n, steps):
    # Keys x, values (x, y): b_KV is [Σ x xᵀ, Σ x yᵀ], and the gradient needs nothing else.
    H, G = b_kv[:, :len(b_kv)], b_kv[:, len(b_kv):]
    for _ in range(steps):
        W0 = W0 - eta / n * (W0 @ H - G.T)
    return W0

def keys_gradient(q, k, v, g, G):
    # Σ_{i≥j} (v_j·g_i) q_i + G v_j: the queries v, the keys g and the values q, from the last token
    # to the first, starting from Gᵀ.
    state, gradient = G.T, np.zeros(k.shape)
    for j in reversed(range(len(k))):
        state = state + np.outer(g[j], q[j])
        gradient[j] = v[j] @ state
    return gradient

def virtual_context(q, k, b_d, g, eta, turn):
    # The gradient is Σ_i R_i q_i (g_i / below_i)ᵀ, and R_{i−n} R_n = R_i. Steps add up: T of them
    # are T n tokens. b_D's step is Σ_i η (g_i·o_i) / below_i q_i: the same keys, with weights.
    below = (q * (b_d + np.cumsum(k, axis=0))).sum(axis=1, keepdims=True)
    return q @ turn(len(q)).T, -eta * g / below

def learn_context(k, v, q, eta, steps):
    # All steps lie in the span of q's rows: what is orthogonal to them is never learned. In the end
    # b_KV is the projection of kᵀv on that span: right on q, whatever its cosine with kᵀv.
    exact, b_kv = k.T @ v, np.zeros((k.shape[1], v.shape[1]))
    for _ in range(steps):
        b_kv = b_kv - eta / len(q) * q.T @ (q @ b_kv - q @ exact)
    unseen = exact - np.linalg.pinv(q) @ q @ exact
    return b_kv, unseen[:, abs(unseen).sum(axis=0).argmax()]

def delta_bias(k, v, beta):
    # Token j adds β_j k_j v_jᵀ and multiplies all that was there by I − β_j k_j k_jᵀ. So contexts
    # whose keys are orthogonal to each other's do not touch, and can be swapped.
    effective = np.zeros(k.shape)
    for j in range(len(k)):
        effective = effective - beta[j] * np.outer(effective @ k[j], k[j])
        effective[j] = beta[j] * k[j]
    return effective, effective.T @ v

def best_shares(attention, rows):
    # Merging is one E of many, so its error is never less. Least squares may make b_D = E 1
    # negative, and a denominator 0: `fitted_bias` keeps E ≥ 0, and its error lies between.
    kept, unit = attention[:, rows], np.eye(len(rows))
    best = np.linalg.pinv(kept) @ attention
    best[:, rows] = unit
    far = np.linalg.norm(kept[:, :, None] - attention[:, None], axis=0)
    return best, unit[:, far.argmin(axis=0)]
