"""The checks of docs/exercises.md: python -m pytest docs/exercises

An exercise is a generator of cases that grow, (what, hint, arguments, expected). `expected` is what
the project's modules give, or a function of the answer's parts that says in words what is wrong
with them; what it says is "" or False if nothing is. Nine digits have to be right.
"""

import copy
import inspect
import re
import sys
import traceback
from functools import partial

import numpy as np
import pytest

if __name__ == "__main__":   # here already: pytest knows where the project's modules are
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))

from iclca_ref import (attention_bias, context_map, gd_weights, gradient_descent,
                       key_value_matrix, LSA, lsa, parallel_scan)
from linear_transformer import Bias, recurrent_attention, rope as rope_at, rotate_at

pytestmark = pytest.mark.filterwarnings("default")   # a warning does not make an answer wrong
# what an answer raises is shown without the lines of this file
__tracebackhide__ = lambda error: not error.errisinstance(pytest.fail.Exception)


def difference(found, expected, part="", digits=9):
    """What is wrong with an array, a part of an answer, in words; "" if nothing is."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    close = partial(np.isclose, b=expected, rtol=10.0**-digits, atol=10.0**-digits)
    if found.shape == expected.shape and close(found).all():
        return ""
    if found.T.shape == expected.shape and close(found.T).all():
        problem = "it is the transpose of what is expected"
    elif found.shape != expected.shape:
        problem = f"its shape is {found.shape}, expected {expected.shape}"
    else:
        factor = (found * expected).sum() / ((expected**2).sum() or 1) or 1
        at = tuple(np.argwhere(~close(found))[0].tolist())
        problem = (f"it is {factor:.10g} times what is expected"
                   if found.size > 1 and close(found / factor).all() else
                   f"entry {list(at)} is {found[at] + 0:.10g}, expected {expected[at]:.10g}")
    return f"{part}: {problem}".removeprefix(": ")


def problem_with(found, expected):
    """What is wrong with an answer, in words; nothing if nothing is."""
    judge = expected if callable(expected) else lambda found: difference(found, expected)
    parts = list(inspect.signature(judge).parameters)
    if found is None:
        return "it is None: is a return missing?"
    if parts[1:] and (not isinstance(found, (tuple, list)) or len(found) != len(parts)):
        return f"expected {len(parts)} things, {', '.join(parts)}, got {found!r}"
    try:
        return judge(*(np.asarray(x, float) for x in found)) if parts[1:] else judge(found)
    except (TypeError, ValueError, IndexError) as error:
        return f"it cannot be used: {error}"


def check(name, answers):
    """Try an answer on all its cases: skip if it is not there yet, fail in words if it is wrong."""
    answer, right = getattr(answers, name), []
    draws = map(EXERCISES[name], map(np.random.default_rng, range(5)))
    for what, hint, arguments, expected in (case for cases in zip(*draws) for case in cases):
        try:
            found = answer(*copy.deepcopy(arguments))
        except NotImplementedError:
            pytest.skip("not attempted")
        except Exception as error:
            getattr(error, "add_note", print)(f"{name} was called for {what}")
            raise
        if problem := problem_with(found, expected):
            before = ", ".join(dict.fromkeys(x for x in right if x != what))
            if re.search("None|used|shape|transpose|things", problem):
                hint = ""           # the form is wrong, no more is known
            verdict = f"{name}: {before and f'right for {before}; '}wrong for {what}. {hint}"
            given = zip(inspect.signature(answer).parameters, arguments)
            shown = (f"    {x} = {np.asarray(a).tolist()}" for x, a in given if not callable(a))
            pytest.fail("\n".join([verdict.rstrip(), f"  {problem}", *shown]), pytrace=False)
        right.append(what)


def whole(rng, *shape):
    """Small whole numbers, none of them 0, as floats."""
    return rng.integers(1, 4, shape) * rng.choice([-1.0, 1.0], shape)

def turns(*quarters):
    """turn(n), the matrix R_n whose pairs turn by n times these quarters of a circle; its rope."""
    def rope(positions):
        return [np.round(x, 12) + 0 for x in rope_at(positions, np.pi / 2 * np.array(quarters))]
    return lambda n: rotate_at(np.eye(2 * len(quarters)), rope, np.array([n])).T, rope

def slopes(loss, x):
    """The gradient at x of a loss that is linear in x: its growth if one entry grows by 1."""
    units = np.eye(x.size).reshape(-1, *x.shape)
    return np.reshape([loss(x + unit) - loss(x) for unit in units], x.shape)

def run_with(fault, q, k, v, state):
    """s_i = s_{i−1} + k_i v_iᵀ and o_i = s_iᵀ q_i, with a fault that a cache may have."""
    dropped = fault == "drops" or fault == "drops for several" and len(q) > 1
    start = None if state is None or dropped else Bias(state, 0 * state[:, 0])
    outputs, (after, _) = recurrent_attention(q, k, v, start, normalize=False)
    if fault == "changes in place" and state is not None:
        state[:] = after
    return outputs, state if fault == "keeps" and len(q) == 1 and state is not None else after

turn, rope = turns(1, 2)     # whole numbers stay whole


# ---- The exercises, in their order --------------------------------------------------------------

def linear_attention(rng):
    for n, what in (1, "one token"), (2, "two tokens"), (4, "four tokens"):
        (q, k), v = abs(whole(rng, 2, n, 2)), whole(rng, n, 3)
        yield (what, "Does a token see itself and all before it, and none after it?", (q, k, v),
               recurrent_attention(q, k, v)[0])

def absorb_for_one(rng):
    for x in [[2, 0], [0, 2]], [[1, 1], [1, -1]], [[1, 2, 0], [0, 1, 0], [1, 0, 1]]:
        x, context = np.array(x, float), whole(rng, 1, len(x))
        def wrong(w_1, w_2, other):
            for_one, for_other = (((y @ w_1).T @ (y @ w_2), y.T @ y + context.T @ context)
                                  for y in (x, other))
            return (difference(*for_one, "(x w_1)ᵀ (x w_2)") or not difference(*for_other, digits=6)
                    and "your weights are right for `other` too")
        yield f"a prompt of {len(x)} tokens", "", (x, context), wrong

def same_bias(rng):
    for m, what in (1, "one token"), (3, "three tokens"):
        context = rng.choice([-3.0, -1.0, 1.0, 3.0], (m, 3))
        def wrong(found):
            old = np.concatenate([context, -context, 0 * context])
            seen = np.transpose(found) @ found
            return (difference(seen, context.T @ context, "XᵀX of your context")
                    or any(np.allclose(x, y) for x in found for y in old)
                    and "a row of yours is 0, or plus or minus one of the context's")
        yield what, "", (context,), wrong

def bad_denominator(rng):
    for degrees in 90, 50, 6:
        turn, _ = turns(degrees / 90)
        def wrong(q, k, n):
            if q.shape != (2,) or k.shape != (2,) or n % 1 or min(*q, *k) <= 0:
                return f"q and k must be two positive features each, n whole: {q}, {k}, {n}"
            score = q @ turn(int(n)) @ k
            return f"q · R_n k is {score:.3g}, not 0 or less" if score > 1e-9 else ""
        yield f"{degrees}°", "How far must a slow hand go until it points away?", (turn,), wrong

def convert(rng):
    for m, start, what, hint in (
            (1, 0, "one token", "The last token stands at 0, where nothing turns."),
            (3, 0, "three tokens", "Is each key turned back, the j-th of M by R_{j−M}?"),
            (1, 1, "one token after a start", "Is what was there turned back too, and b_D not?"),
            (3, 1, "three tokens after a start", "By how much is what was there turned back?")):
        k, v = whole(rng, m, 4), whole(rng, m, 2)
        given = k, v, start * whole(rng, 4, 2) + 0, start * whole(rng, 4) + 0
        kv, d = attention_bias(k, v, Bias(*given[2:]), rope)
        yield (what, hint, (*given, turn),
               lambda b_kv, b_d: difference(b_kv, kv, "b_kv") or difference(b_d, d, "b_d"))

def forget(rng):
    for m, what in (0, "a text of one token"), (1, "a text of two tokens"), (3, "four tokens"):
        k, v = whole(rng, m + 1, 4), whole(rng, m + 1, 2)
        before, after = (attention_bias(k[:n], v[:n], rope=rope).kv for n in (m, m + 1))
        yield what, "Turn forward what it has turned back.", (after, k[-1], v[-1], turn), before

def order_matters(rng):
    for m_1, m_2, hint in ((1, 1, "The earlier context is turned back by the later one's length."),
                           (2, 2, "Is each key turned within its own context too?"),
                           (1, 3, "Which length turns which?"), (3, 2, "")):
        one, two = ((whole(rng, m, 4), whole(rng, m, 2)) for m in (m_1, m_2))
        one_two, two_one = (attention_bias(*later, attention_bias(*first, rope=rope), rope).kv
                            for first, later in ((one, two), (two, one)))
        yield f"contexts of {m_1} and {m_2} tokens", hint, (*one, *two, turn), one_two - two_one

def forgetful(rng):
    for n, start, what, hint in ((3, 0, "three tokens from nothing", ""),
                                 (1, 1, "one token from a state", "Then the state counts."),
                                 (2, 1, "two tokens from a state", "Then the state is dropped.")):
        given = *whole(rng, 3, n, 2), whole(rng, 2, 2) if start else None
        right = run_with("drops for several", *given)
        yield (what, hint, given, lambda outputs, state:
               difference(outputs, right[0], "outputs") or difference(state, right[1], "state"))

def laws_broken(rng):
    for fault, what, broken in (
            ("none", "a right run", set()),
            ("drops for several", "one that drops the state when several tokens come", {"several"}),
            ("drops", "one that always drops it", {"one", "several", "steps"}),
            ("changes in place", "one that changes the state in place", {"twice"}),
            ("keeps", "one that hands back the old state after one token", {"steps"})):
        given = partial(run_with, fault), *abs(whole(rng, 3, 5, 2))
        yield (what, "Is each law tried on its own, from a fresh start?", given, lambda found:
               found != broken and f"got {found or 'none'}, expected {broken or 'none'}")

def states_at_once(rng):
    for n, decays, dtype, what, hint in (
            (11, [0.5, 1], "f8", "eleven tokens", "Each b reaches all later states, decayed."),
            (12, [np.exp(-10)], "f4", "decays of e^-10 in float32", "The two sums overflow.")):
        a, b = rng.choice(decays, n).astype(dtype), whole(rng, n).astype(dtype)
        states = parallel_scan(a[:, None, None], b[:, None, None])[1].ravel()
        def wrong(by_sums, by_doubling):
            sums = difference(by_sums, states, "by_sums", 5)
            if dtype == "f4":
                sums = not sums and "by_sums: it is right even here: is it the two sums?"
            return difference(by_doubling, states, "by_doubling", 5) or sums
        yield what, hint, (a, b), wrong

def trained_output(rng):
    for steps, what, hint in (
            (0, "no step", "Then there is only W_0."), (1, "one step", "Is e_i divided by n?"),
            (2, "two steps", "The second step's errors are those of the layer after the first.")):
        n = rng.integers(1, 5)
        W0, X, Y, x = whole(rng, 2, 3), whole(rng, n, 3), whole(rng, n, 2), whole(rng, 3)
        yield what, hint, (W0, X, Y, x, 0.25, steps), gradient_descent(W0, X, Y, 0.25, steps)[0] @ x

def step_weights(rng):
    for n in 1, 2, 4:
        W0, context, query = whole(rng, 2, 3), whole(rng, n, 5), whole(rng, 1, 5)
        def wrong(W_Q, W_K, W_V, P):
            layers = LSA(W_Q, W_K, W_V, np.eye(5)), gd_weights(W0, 0.5, n)
            found, right = (np.concatenate(lsa(context, query, layer)) for layer in layers)
            return (difference(P, np.eye(5), "P must be the identity")
                    or difference(found, right, "the tokens after the layer, the query last"))
        yield f"n = {n}", "Where must η/n go, P being 1? Once or twice?", (W0, 0.5, n), wrong

def equalizing_gamma(rng):
    for first, second in (1, 4), (4, 1), (1, 9), (2, 3), (0.5, 8):
        def wrong(gamma):
            one, two = (float(x * (1 - gamma * x) ** 2) for x in (first, second))
            return not abs(one - two) <= 1e-9 * one and f"they become {one:.6g} and {two:.6g}"
        yield f"eigenvalues {first} and {second}", "", (float(first), float(second)), wrong

def train_on_bias(rng):
    for steps, what, hint in (
            (1, "one step", "With [H G] = b_kv the gradient is (W H − Gᵀ) / n."),
            (2, "two steps", "The second step starts from the weights after the first.")):
        n = int(rng.integers(1, 5))
        W0, X, Y = whole(rng, 2, 3), whole(rng, n, 3), whole(rng, n, 2)
        b_kv = key_value_matrix(X, np.hstack([X, Y]))
        yield what, hint, (b_kv, W0, 0.25, n, steps), gradient_descent(W0, X, Y, 0.25, steps)[0]

def keys_gradient(rng):
    for n, counts, what, hint in (
            (1, 0, "one token", "L grows by g·o, and o = (q·k) v."),
            (3, 0, "three tokens", "Token j is read at j and after it: time runs backwards."),
            (3, 1, "three tokens whose last state counts", "Does it start from G or from Gᵀ?")):
        (q, k), (v, g), G = whole(rng, 2, n, 2), whole(rng, 2, n, 3), counts * whole(rng, 2, 3) + 0
        def loss(k):
            o, (state, _) = recurrent_attention(q, k, v, normalize=False)
            return (g * o).sum() + (G * state).sum()
        yield what, hint, (q, k, v, g, G), slopes(loss, k)

def virtual_context(rng):
    for n, quarters, what, hint in (
            (1, (0, 0), "one token, nothing turned", "b_KV is read by q, and divided by what?"),
            (3, (0, 0), "three tokens, nothing turned", "Each token has a normalizer of its own."),
            (3, (1, 2), "three tokens", "Query j stands at j, the last of your n tokens at 0.")):
        turn, rope = turns(*quarters)
        (q, k), (v, g), b_d = abs(whole(rng, 2, n, 4)), whole(rng, 2, n, 2), abs(whole(rng, 4))
        def loss(b_kv):
            return (g * recurrent_attention(q, k, v, Bias(b_kv, b_d), rope)[0]).sum()
        step = -0.5 * slopes(loss, np.zeros((4, 2)))
        yield (what, hint, (q, k, b_d, g, 0.5, turn), lambda keys, values:
               difference(attention_bias(keys, values, rope=rope).kv, step, "b_KV of your tokens"))

def learn_context(rng):
    for steps, what in (1, "one step"), (3, "three steps"):
        k, v, q = whole(rng, 4, 3), whole(rng, 4, 2), whole(rng, 2, 3)
        exact = key_value_matrix(k, v)
        learned = gradient_descent(np.zeros((2, 3)), q, q @ exact, 0.25, steps)[0].T
        def wrong(b_kv, blind):
            return (difference(b_kv, learned, "b_kv")
                    or abs(q @ blind).max() > 1e-9 * abs(blind).max()
                    and "blind: training changes the answer to it, for a row of q sees it"
                    or abs(blind @ exact).max() <= 1e-6 and "blind: its answer in context is 0")
        yield what, "From 0, towards q kᵀ v, divided by n?", (k, v, q, 0.25, steps), wrong

def delta_bias(rng):
    for m, what, hint in (
            (1, "one token", "One token's key is only scaled, by β."),
            (2, "two tokens", "The second token also erases part of what the first has written."),
            (4, "four tokens", "Each token erases from all that was written before it.")):
        k, v, beta = whole(rng, m, 2), whole(rng, m, 3), rng.choice([0.25, 0.5, 1], m)
        scaled = (beta[:, None] * k)[:, :, None]
        _, keys = context_map(np.eye(2) - scaled * k[:, None], scaled * np.eye(m)[:, None])
        for v, hint in (v, hint), (v - v, "Here v is 0: the keys may not use the values."):
            yield (what, hint, (k, v, beta), lambda effective, state: (
                difference(effective, keys.T, "effective") or difference(state, keys @ v, "state")))

def best_shares(rng):
    for n, m, rows, what, hint in (
            (4, 3, [0, 2], "two of three tokens kept", "Each column of E is a task of its own."),
            (9, 6, [1, 2, 5], "three of six tokens kept", ""),
            (2, 6, [5, 0, 3], "more tokens kept than queries", "A kept token stands for itself.")):
        A, unit = rng.dirichlet(np.ones(m), n), np.eye(len(rows))
        A_R, far = A[:, rows], np.linalg.norm(A[:, rows, None] - A[:, None], axis=0)
        def wrong(best, merged):
            return (difference(best[:, rows], unit, "the kept tokens' columns of best")
                    or difference(A_R.T @ A_R @ best, A_R.T @ A, "A_Rᵀ A_R best, expected A_Rᵀ A")
                    or difference(merged, unit[:, far.argmin(axis=0)], "merged"))
        yield what, hint, (A, np.array(rows)), wrong


EXERCISES = {name: f for name, f in list(globals().items()) if inspect.isgeneratorfunction(f)}


@pytest.mark.parametrize("name", EXERCISES, ids=map("{:02}-{}".format, range(1, 99), EXERCISES))
def test_exercise(name):
    try:
        import answers
    except Exception:
        pytest.exit(traceback.format_exc(limit=-1), returncode=2)
    check(name, answers)
