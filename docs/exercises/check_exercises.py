"""The checks of docs/exercises.md: python -m pytest docs/exercises/check_exercises.py

Answers are handed float64 arrays of small whole numbers, halves and quarters, so that float arrays
compute without rounding, and their results are compared, as the rational numbers that they are,
with what the project's modules give over the rationals. Where roots or inverses are needed nine
digits have to be right; exercises.md says so.
"""

import inspect
import xml.etree.ElementTree
from fractions import Fraction

import numpy as np
import pytest

from iclca_ref import (attention_bias, context_map, gd_weights, gradient_descent,
                       implicit_weight_update, key_value_matrix, LSA, lsa)
from linear_transformer import Bias, recurrent_attention, rotate

pytestmark = pytest.mark.filterwarnings("default")   # a warning does not make an answer wrong
ROUNDED = ("it is right up to rounding only: a float cannot hold thirds or fifths, and roots and "
           "inverses round. Do without them, or compute with fractions.Fraction")


@pytest.fixture
def answers():
    """The file beside this one. The project's own tests hand in other modules."""
    import answers
    return answers


def rational(a):
    """The numbers of an array or nested list as Fractions, each the very number that it was."""
    a = np.asarray(a, dtype=object)
    return np.array([Fraction(x) for x in a.ravel()] + [None], dtype=object)[:-1].reshape(a.shape)


def show(x):
    """Numbers as whole numbers and fractions, in nested lists."""
    if isinstance(x, (list, tuple, np.ndarray)):
        return "[" + ", ".join(show(y) for y in x) + "]"
    small = isinstance(x, (int, float, np.number, Fraction)) and Fraction(x).denominator <= 4096
    return str(Fraction(x)) if small else f"{float(x):.10g}" if isinstance(x, Fraction) else str(x)


def difference(found, expected, nine_digits):
    """What is wrong with an array, in words; "" if nothing is."""
    try:
        found, expected = rational(found), rational(expected)
    except (TypeError, ValueError, OverflowError):
        return f"it is not an array of finite numbers: {found!r}"
    if found.shape != expected.shape:
        turned = ": is it transposed?" if found.T.shape == expected.shape else ""
        return f"its shape is {found.shape}, expected {expected.shape}{turned}"
    if (found == expected).all():
        return ""
    if abs(found - expected).max() <= (1 + abs(expected).max()) / 10**9:
        return "" if nine_digits else ROUNDED
    if (found == -expected).all():
        return "it is minus what is expected"
    if found.shape == found.T.shape and (found.T == expected).all():
        return "it is the transpose of what is expected"
    at = tuple(map(int, np.argwhere(found != expected)[0]))
    return f"entry {list(at)} is {show(found[at])}, expected {show(expected[at])}"


class Attempt:
    """One answer, tried on cases that grow, so that the first that differs says what is missing."""

    def __init__(self, answers, name, parts="", nine_digits=False):
        self.name, self.parts, self.nine_digits = name, parts.split(), nine_digits
        self.function, self.passed = getattr(answers, name, None), {}

    def call(self, what, *arguments):
        """The answer to copies of the arguments; `what` names the case."""
        if self.function is None:
            pytest.fail(f"answers.py has no function {self.name}", pytrace=False)
        self.what, self.arguments = what, arguments
        try:
            copies = (x.copy() if isinstance(x, np.ndarray) else x for x in arguments)
            return self.function(*copies)
        except NotImplementedError:
            pytest.skip("not attempted")

    def require(self, right, problem, hint=""):
        """Fail with the problem in the case called last, unless it is right."""
        if right:
            self.passed[self.what] = True
            return
        before = [x for x in self.passed if x != self.what]
        equal = f"right for {', '.join(before)}; " if before else ""
        names = inspect.signature(self.function).parameters
        given = [f"    {n} = {show(x)}" for n, x in zip(names, self.arguments) if not callable(x)]
        lines = [f"{self.name}: {equal}wrong for {self.what}. {hint}".rstrip(), f"  {problem}"]
        pytest.fail("\n".join(lines + ["  with"] * bool(given) + given), pytrace=False)

    def returned(self, found, n):
        """Fail unless the answer is n things."""
        many = isinstance(found, (tuple, list)) and len(found) == n
        self.require(many, f"expected {n} things, {', '.join(self.parts)}, got {found!r}")

    def equal(self, what, arguments, expected, hint=""):
        """Call the answer and compare; with `parts` it is a tuple, and each is compared."""
        found = self.call(what, *arguments)
        if found is None:
            self.require(False, "it returned None: is a return missing?")
        if self.parts:
            self.returned(found, len(self.parts))
        else:
            found, expected = [found], [expected]
        for part, f, e in zip(self.parts or [""], found, expected):
            problem = difference(f, e, self.nine_digits)
            self.require(not problem, f"{part}: {problem}" if part else problem, hint)
        return found


def draws(n=5):
    """Generators for a few instances of each case."""
    return map(np.random.default_rng, range(n))


def whole(rng, *shape):
    """Small whole numbers, none of them 0, as floats."""
    return rng.integers(1, 4, shape) * rng.choice([-1.0, 1.0], shape)


def quarter_turns(d):
    """turn(n), the matrix R_n whose m-th pair turns by mn quarters of a circle, and its rope."""
    def rope(positions):
        quarters = np.multiply.outer(positions, range(1, d // 2 + 1)) % 4
        return rational([1, 0, -1, 0])[quarters], rational([0, 1, 0, -1])[quarters]

    return lambda n: rotate(rational(np.eye(d)), *rope(np.array([n]))).T.astype(float), rope


def turns_of(angle):
    """turn(n) in two dimensions, by n times an angle in radians."""
    return lambda n: np.array([[np.cos(n * angle), -np.sin(n * angle)],
                               [np.sin(n * angle), np.cos(n * angle)]])


def test_01_two_sums(answers):
    attempt = Attempt(answers, "linear_attention")
    for n, what in (1, "one token"), (2, "two tokens"), (4, "four tokens"):
        for rng in draws():
            q, k = np.empty((2, 0, 2))
            while len(q) < n:              # denominators are powers of 2: floats do not round
                new_q, new_k = rng.integers(1, 4, (2, 1, 2)).astype(float)
                if (new_q @ (k.sum(axis=0) + new_k[0])).item() in (2, 4, 8, 16, 32):
                    q, k = np.concatenate([q, new_q]), np.concatenate([k, new_k])
            v = whole(rng, n, 3)
            attempt.equal(what, (q, k, v), recurrent_attention(*map(rational, (q, k, v)))[0],
                          "Does a token see itself and all before it, and none after it?")


def test_02_right_for_one_prompt(answers):
    attempt = Attempt(answers, "absorb_for_one", "w_1 w_2 other", nine_digits=True)
    for x in [[2, 0], [0, 2]], [[1, 1], [1, -1]], [[1, 2, 0], [0, 1, 0], [1, 0, 1]]:
        x = np.array(x, float)
        d = len(x)
        for rng in draws():
            context = whole(rng, 1, d)
            found = attempt.call(f"a prompt of {d} tokens", x, context)
            attempt.returned(found, 3)
            w_1, w_2, other = (np.asarray(a, float) for a in found)
            attempt.require(w_1.shape == w_2.shape == (d, d), "w_1 and w_2 must be (d, d)")
            attempt.require(other.ndim == 2 and other.shape[1] == d, "other must be (n, d)")
            problem = difference((x @ w_1).T @ (x @ w_2), x.T @ x + context.T @ context, True)
            attempt.require(not problem, f"(x w_1)ᵀ (x w_2): {problem}")
            apart = (other @ w_1).T @ (other @ w_2) - (other.T @ other + context.T @ context)
            attempt.require(abs(apart).max() > 1e-6, "your weights are right for `other` too")


def test_03_what_the_bias_forgets(answers):
    attempt = Attempt(answers, "same_bias")
    for m, what in (1, "one token"), (3, "three tokens"):
        for rng in draws():
            context = rng.choice([-3.0, -1.0, 1.0, 3.0], (m, 3))
            found = attempt.call(what, context)
            shape = np.shape(found)
            attempt.require(len(shape) == 2 and shape[1] == 3, f"shape {shape}, expected (n, 3)")
            found, context = rational(found), rational(context)
            problem = difference(found.T @ found, context.T @ context, False)
            attempt.require(not problem, f"XᵀX of your context: {problem}")
            rows = {tuple(sign * row) for row in context for sign in (1, -1)} | {(0, 0, 0)}
            attempt.require(not rows & set(map(tuple, found)),
                            "a row of yours is 0, or plus or minus one of the context's")


def test_04_why_the_denominator_is_not_turned(answers):
    attempt = Attempt(answers, "bad_denominator", "q k n")
    for angle, what in (np.pi / 2, "quarter turns"), (1, "1 radian"), (0.1, "a tenth of a radian"):
        turn = quarter_turns(2)[0] if angle > 1 else turns_of(angle)
        found = attempt.call(what, turn)
        attempt.returned(found, 3)
        q, k, n = found
        vectors = np.shape(q) == np.shape(k) == (2,)
        attempt.require(vectors and int(n) == n, "q and k must be (2,) and n a whole number")
        attempt.require(min(*q, *k) > 0, f"features must be positive: q = {q}, k = {k}")
        score = (np.asarray(q, float) @ turn(int(n)) @ np.asarray(k, float)).item()
        attempt.require(score <= 1e-9, f"q · R_n k is {score:.3g}, not 0 or less",
                        "How far must a slow hand go until it points away?")


def test_05_turn_back(answers):
    attempt = Attempt(answers, "convert", "b_kv b_d")
    for m, start, what, hint in (
            (1, 0, "one token", "The last token stands at 0, where nothing turns."),
            (2, 0, "two tokens", "Is each key turned back, the j-th of M by R_{j−M}?"),
            (4, 0, "four tokens", "Is the j-th of M turned by R_{j−M}?"),
            (1, 1, "one token after a start", "Is what was there turned back too, and b_D not?"),
            (3, 1, "three tokens after a start", "By how much is what was there turned back?")):
        for rng in draws():
            turn, rope = quarter_turns(4)
            k, v = whole(rng, m, 4), whole(rng, m, 2)
            b_kv, b_d = start * whole(rng, 4, 2), start * whole(rng, 4)
            bias = Bias(*map(rational, (b_kv, b_d)))
            expected = attention_bias(*map(rational, (k, v)), bias, rope)
            attempt.equal(what, (k, v, b_kv, b_d, turn), expected, hint)


def test_06_undo_a_context(answers):
    attempt = Attempt(answers, "forget")
    for m, what in (0, "a text of one token"), (1, "a text of two tokens"), (3, "four tokens"):
        for rng in draws():
            turn, rope = quarter_turns(4)
            k, v = whole(rng, m + 1, 4), whole(rng, m + 1, 2)
            before, after = (attention_bias(*map(rational, (k[:n], v[:n])), rope=rope).kv
                             for n in (m, m + 1))
            attempt.equal(what, (after.astype(float), k[-1], v[-1], turn), before,
                          "What the last token turned back must be turned forward again.")


def test_07_swap_two_contexts(answers):
    attempt = Attempt(answers, "order_matters")
    for m_1, m_2, hint in ((1, 1, "The earlier context is turned back by the later one's length."),
                           (2, 2, "Is each key turned within its own context too?"),
                           (1, 3, "Which length turns which?"), (3, 2, "")):
        for rng in draws():
            turn, rope = quarter_turns(4)
            k_1, v_1, k_2, v_2 = (whole(rng, *s) for s in ((m_1, 4), (m_1, 2), (m_2, 4), (m_2, 2)))
            one, two = (tuple(map(rational, kv)) for kv in ((k_1, v_1), (k_2, v_2)))
            one_two = attention_bias(*two, attention_bias(*one, rope=rope), rope).kv
            two_one = attention_bias(*one, attention_bias(*two, rope=rope), rope).kv
            attempt.equal(f"contexts of {m_1} and {m_2} tokens", (k_1, v_1, k_2, v_2, turn),
                          one_two - two_one, hint)


def right_run(q, k, v, state=None):
    """Linear attention without a normalizer: s_i = s_{i−1} + k_i v_iᵀ, o_i = s_iᵀ q_i."""
    bias = None if state is None else Bias(state, 0 * state[:, 0])
    outputs, after = recurrent_attention(q, k, v, bias, normalize=False)
    return outputs, after.kv


def run_that_drops(q, k, v, state=None):
    return right_run(q, k, v, state if len(q) == 1 else None)


def run_that_always_drops(q, k, v, state=None):
    return right_run(q, k, v)


def run_that_changes_the_state_in_place(q, k, v, state=None):
    outputs, after = right_run(q, k, v, state)
    if state is not None:
        state[:] = after
    return outputs, after


def run_that_hands_back_the_old_state(q, k, v, state=None):
    outputs, after = right_run(q, k, v, state)
    return outputs, after if state is None or len(q) > 1 else state


def test_08_a_forgetful_cache(answers):
    attempt = Attempt(answers, "forgetful", "outputs state")
    for n, start, what, hint in ((1, 0, "one token from nothing", ""),
                                 (3, 0, "three tokens from nothing", ""),
                                 (1, 1, "one token from a state", "Then the state counts."),
                                 (2, 1, "two tokens from a state", "Then the state is dropped.")):
        for rng in draws():
            q, k, v = whole(rng, 3, n, 2)
            state = whole(rng, 2, 2) if start else None
            attempt.equal(what, (q, k, v, state), run_that_drops(q, k, v, state), hint)


def test_09_which_law_notices(answers):
    attempt = Attempt(answers, "laws_broken")
    for what, run, expected in (
            ("a right run", right_run, set()),
            ("one that drops the state when several tokens come", run_that_drops, {"several"}),
            ("one that always drops it", run_that_always_drops, {"one", "several", "steps"}),
            ("one that changes the state in place", run_that_changes_the_state_in_place, {"twice"}),
            ("one that hands back the old state after one token", run_that_hands_back_the_old_state,
             {"steps"})):
        for rng in draws():
            q, k, v = (rng.integers(1, 4, (5, 2)).astype(float) for _ in range(3))
            found = attempt.call(what, run, q, k, v)
            attempt.require(isinstance(found, (set, frozenset)) and found == expected,
                            f"got {found or 'no law'}, expected {expected or 'no law'}",
                            "Is each law tried on its own, from a fresh start?")


def test_10_the_dual_form(answers):
    attempt = Attempt(answers, "trained_output")
    for steps, what, hint in (
            (0, "no step", "Then there is only W_0."), (1, "one step", "Is e_i divided by n?"),
            (2, "two steps", "The second step's errors are those of the layer after the first."),
            (3, "three steps", "Is every step's error kept, with the input that it met?")):
        for rng, n in zip(draws(), (1, 2, 4, 2, 4)):
            W0, X, Y, x = whole(rng, 2, 3), whole(rng, n, 3), whole(rng, n, 2), whole(rng, 3)
            W = gradient_descent(*map(rational, (W0, X, Y)), Fraction(1, 4), steps)[0]
            attempt.equal(what, (W0, X, Y, x, 0.25, steps), W @ rational(x), hint)


def test_11_a_step_by_attention(answers):
    attempt = Attempt(answers, "step_weights", "W_Q W_K W_V P")
    for n in 1, 2, 4:
        for rng in draws():
            W0, context, query = whole(rng, 2, 3), whole(rng, n, 5), whole(rng, 1, 5)
            found = attempt.call(f"n = {n}", W0, 0.5, n)
            attempt.returned(found, 4)
            weights = LSA(*map(rational, found))
            shapes = [w.shape for w in weights]
            attempt.require(shapes == [(5, 5)] * 4, f"the shapes are {shapes}, expected (5, 5)")
            problem = difference(weights.p, np.eye(5), False)
            attempt.require(not problem, f"P must be the identity: {problem}")
            context, query = rational(context), rational(query)
            right = gd_weights(rational(W0), Fraction(1, 2), n)
            for part, f, e in zip(("the context after the layer", "the query after the layer"),
                                  lsa(context, query, weights), lsa(context, query, right)):
                problem = difference(f, e, False)
                attempt.require(not problem, f"{part}: {problem}",
                                "Where must η/n go, if P is the identity? Once or twice?")


def test_12_two_eigenvalues_made_one(answers):
    attempt = Attempt(answers, "equalizing_gamma", nine_digits=True)
    for first, second in (1, 4), (4, 1), (1, 9), (2, 3), (0.5, 8):
        gamma = attempt.call(f"eigenvalues {first} and {second}", float(first), float(second))
        attempt.require(np.ndim(gamma) == 0 and gamma is not None, f"not a number: {gamma!r}")
        one, two = (x * (1 - gamma * x) ** 2 for x in (first, second))
        attempt.require(one > 0 and abs(one - two) <= 1e-9 * abs(one),
                        f"they become {float(one):.6g} and {float(two):.6g}")


def test_13_train_on_a_context_that_is_gone(answers):
    attempt = Attempt(answers, "train_on_bias")
    for steps, what, hint in (
            (1, "one step", "With [H G] = b_kv the gradient is (W H − Gᵀ) / n."),
            (2, "two steps", "The second step starts from the weights after the first."),
            (3, "three steps", "")):
        for rng, n in zip(draws(), (1, 2, 4, 2, 4)):
            W0, X, Y = whole(rng, 2, 3), whole(rng, n, 3), whole(rng, n, 2)
            b_kv = key_value_matrix(X, np.hstack([X, Y]))
            W = gradient_descent(*map(rational, (W0, X, Y)), Fraction(1, 4), steps)[0]
            attempt.equal(what, (b_kv, W0, 0.25, n, steps), W, hint)


def gated_delta_steps(k, v, alpha, beta):
    """A_i = α_i (I − β_i k_i k_iᵀ) and B_i = β_i k_i v_iᵀ over the rationals."""
    k, v, alpha, beta = map(rational, (k, v, alpha, beta))
    scaled = beta[:, None, None] * k[:, :, None]
    identity = rational(np.eye(k.shape[1]))
    return alpha[:, None, None] * (identity - scaled * k[:, None, :]), scaled * v[:, None, :]


def test_14_deltanet_converts(answers):
    attempt = Attempt(answers, "delta_bias", "effective state")
    for m, what, hint in (
            (1, "one token", "One token's key is only scaled, by β."),
            (2, "two tokens", "The second token also erases part of what the first has written."),
            (4, "four tokens", "Each token erases from all that was written before it.")):
        for rng in draws():
            k, v, beta = whole(rng, m, 2), whole(rng, m, 3), rng.choice([0.25, 0.5, 1], m)
            effective, state, nothing = (
                context_map(*gated_delta_steps(k, values, np.ones(m), beta))[1]
                for values in (np.eye(m), v, 0 * v))
            attempt.equal(what, (k, v, beta), (effective.T, state), hint)
            attempt.equal(what, (k, 0 * v, beta), (effective.T, nothing),
                          "Here v is 0: the effective keys may not use the values.")


def test_15_the_map_of_gated_deltanet(answers):
    attempt = Attempt(answers, "gated_delta_map", "A B")
    for m, decay, what, hint in (
            (1, [1.0], "one token without decay", "A erases along k, B writes."),
            (1, [0.25, 0.5], "one token", "α decays what was there, not what is written now."),
            (2, [0.25, 0.5], "two tokens", "Which of the two maps stands on the left?"),
            (3, [0.25, 0.5], "three tokens", "Does every later A act on what was written before?")):
        for rng in draws():
            k, v = whole(rng, m, 2), whole(rng, m, 3)
            alpha, beta = rng.choice(decay, m), rng.choice([0.25, 0.5, 1], m)
            expected = context_map(*gated_delta_steps(k, v, alpha, beta))
            attempt.equal(what, (k, v, alpha, beta), expected, hint)


def test_16_least_squares_in_context(answers):
    attempt = Attempt(answers, "least_squares", "o G H", nine_digits=True)
    for m, n, what, hint in (
            (0, 1, "one token", "o_i = G_iᵀ (H_i + λI)⁻¹ q_i, with token i itself in both sums."),
            (0, 3, "three tokens", "Does each token have sums of its own, up to itself?"),
            (3, 2, "two tokens after a context", "Do both sums start from what was handed in?")):
        for rng in draws():
            q, k, v = whole(rng, m + n, 2), whole(rng, m + n, 2), whole(rng, m + n, 3)
            beta = rng.choice([0.5, 1, 2], m + n)
            o, pairs = [], [(np.zeros((2, 3)), np.zeros((2, 2)))]
            for i in range(m + n):
                G, H = (pairs[-1][j] + beta[i] * np.outer(k[i], (v[i], k[i])[j]) for j in (0, 1))
                o.append(q[i] @ np.linalg.solve(H + 2 * np.eye(2), G))
                pairs.append((G, H))
            attempt.equal(what, (q[m:], k[m:], v[m:], beta[m:], 2.0, *pairs[m]),
                          (np.array(o[m:]), *pairs[-1]), hint)


def test_17_two_queries(answers):
    attempt = Attempt(answers, "serve_two", nine_digits=True)
    for second, what, hint in (([1, -1, 0], "queries at right angles", "A rank of two is needed."),
                               ([2, 1, -1], "queries at an angle", "Do two patches interfere?")):
        for rng in draws():
            w, c, z = whole(rng, 2, 3), whole(rng, 2, 3), np.array([[1.0, 1, 0], second])
            expected = w @ (c - z).T @ np.linalg.pinv(z.T)
            found = attempt.call(what, w, z, c)
            for i in 0, 1:
                alone = difference(found, implicit_weight_update(w, z[i], c[i]), True)
                attempt.require(alone, f"this is the patch of query {i + 1} alone", hint)
            problem = difference(found, expected, True)
            attempt.require(not problem, f"ΔW: {problem}", hint)
    for rng in draws():
        w, c, z = whole(rng, 2, 3), whole(rng, 1, 3), np.array([[1.0, 1, 0], [2, 2, 0]])
        attempt.equal("parallel queries, z_2 = 2 z_1, whose answers are parallel too",
                      (w, z, np.vstack([c, 2 * c])), implicit_weight_update(w, z[0], c[0]),
                      "One patch serves both: (W + ΔW) 2z = 2 (W + ΔW) z. Is zᵀz invertible here?")
        c = np.vstack([c, 2 * c + w[:1]])                  # w w_1 is not 0, so the answers part
        found = attempt.call("parallel queries whose answers are not", w, z, c)
        attempt.require(found is None, f"no ΔW serves both, expected None, got {found}")


def squares(path):
    """{(x, y): opacity} of the visible squares of side 20 in an SVG file."""
    found = {}
    for rect in xml.etree.ElementTree.parse(path).iter():
        x, y, width, height, opacity = (
            float(rect.get(name, default).rstrip("px%")) for name, default in
            (("x", "0"), ("y", "0"), ("width", "0"), ("height", "0"), ("fill-opacity", "1")))
        if rect.tag.endswith("rect") and width == height == 20 and opacity:
            found[x, y] = opacity
    return found


def test_18_a_context_seen(answers, tmp_path):
    attempt = Attempt(answers, "draw_context")
    for text, hint in (("a b", "One word follows another: one square, in the row of the first."),
                       ("c a b", "Are the words sorted?"),
                       ("a b a b a c", "Is the opacity a share of the largest entry?"),
                       ("the cat saw the dog and the cat ran", "")):
        words, path = text.split(), tmp_path / "context.svg"
        attempt.call(f"“{text}”", words, str(path))
        attempt.require(path.exists(), "no file was written")
        known = sorted(set(words))
        one_hot = np.eye(len(known))[[known.index(word) for word in words]]
        b_kv = key_value_matrix(one_hot[:-1], one_hot[1:])
        expected = {(20.0 * c, 20.0 * r): b_kv[r, c] / b_kv.max() for r, c in np.argwhere(b_kv)}
        try:
            found = squares(path)
        except (xml.etree.ElementTree.ParseError, ValueError) as error:
            attempt.require(False, f"not an SVG file that can be read: {error}")
        places = f"squares at {show(sorted(found))}, expected {show(sorted(expected))}"
        attempt.require(found.keys() == expected.keys(), places, hint)
        for place, opacity in expected.items():
            attempt.require(abs(found[place] - opacity) <= 0.01,
                            f"the opacity at {show(place)} is {found[place]}, "
                            f"expected {opacity:.2f}", hint)
