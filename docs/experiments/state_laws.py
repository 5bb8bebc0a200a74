"""The laws of a state that is handed from call to call: run(tokens, state) -> (outputs, state).

Explained in docs/check_your_cache.md. python docs/experiments/state_laws.py [--quick]
"""
from functools import partial
import numpy as np
from common import command_line, script
from linear_transformer import Bias, Layer, forward, random_transformer, rope, rope_frequencies
TURN = partial(rope, theta=rope_frequencies(16))
FAULTS = {   # what each makes of run(t, s), t (batch, n) the tokens, s the state
    "none: our own model": lambda run, t, s: run(t, s),
    "state dropped for several": lambda run, t, s: run(t, s if t.shape[1] == 1 else None),
    "whole chunks": lambda run, t, s: (run(t, s)[0], run(t[:, :len(t.T) // 32 * 32 or 1], s)[1]),
    "offset wrong by one": lambda run, t, s: run(t, s and [b.turned(TURN, -1) for b in s]),
    "normalizer lost": lambda run, t, s: run(t, s and [b._replace(d=0 * b.d) for b in s]),
    "window forgotten": lambda run, t, s: run(abs(np.diff(t, prepend=49)), s),
    "float16": lambda run, t, s: run(t, s and [Bias(*(np.half(x) + 0 * x for x in b)) for b in s]),
    "rows mixed": lambda run, t, s: run(t, s and [Bias(*map(np.flipud, b)) for b in s]),
    "wiped in place": lambda run, t, s: (run(t, s), [b.kv.fill(0) for b in s or []])[0],
}


def apart(found, expected):   # the largest difference, relative to the largest entry expected
    return abs(found - expected).max() / abs(expected).max()


def call(run, tokens, *state):   # run, and its outputs as NumPy's (also torch's, of any device)
    o, state = run(tokens, *state)
    o = np.array(o.detach().cpu().double() if hasattr(o, "cpu") else o)
    if state is None or o.shape[:2] != tuple(tokens.shape):
        shapes = f"outputs {o.shape} for tokens {tuple(tokens.shape)}"
        raise ValueError(f"run returned {'no state' if state is None else shapes}")
    return o, state


def read(run, tokens, *ends):   # the outputs in pieces with these ends, the state handed on
    calls = [(None, None)]
    for piece in map(slice, (0, *ends), ends):
        calls.append(call(run, tokens[:, piece], calls[-1][1]))
    return np.concatenate([outputs for outputs, _ in calls[1:]], axis=1)


def check(run, tokens, splits, limit, padded=None):
    """Yield for each law its worst difference, a guess, and the splits at which it is broken.

    tokens (2, n), NumPy's or torch's. padded(tokens, state, mask) may be run itself; it is called,
    for the last law, with a mask (2, n), NumPy's, that is False at padding.
    """
    tokens, splits, n = tokens[[0, 1]], sorted(splits), tokens.shape[1]    # a copy: forward strides
    if not splits or not 0 < splits[0] <= splits[-1] < n - 2:
        raise ValueError(f"splits must be from 1 to {n - 3} for {n} tokens, got {splits}")
    both, one, until, one_by_one = tokens[[1, 0]], tokens[:1], dict(zip(splits, splits[1:])), True
    whole = read(run, one, n)

    def after(p, *ends):
        return read(run, one, p, *ends)[:, p:], whole[:, p:ends[-1]]
    def twice(p):
        state = call(run, one[:, :p], None)[1]
        calls = (one[:, p:], state), (both[:1], None), (one[:, p:], state)
        return [call(run, *given)[0] for given in calls][::-2]
    def behind(p):
        mask = np.arange(n) < [[p], [n]]
        state = call(padded, tokens, None, mask)[1]
        return call(padded, tokens[:, p:], state, mask[:, p:] | True)[0][:1], whole[:, p:]

    for law, pair, guess in [
            ("nothing ahead", lambda p: (read(run, one, p), whole[:, :p]), "random? reads ahead?"),
            ("rest of one token", lambda p: after(p, p + 1), ""),
            ("one by one", lambda p: after(p, *range(p + 1, until.get(p, n) + 1)), ""),
            ("rest of several", lambda p: after(p, n), ""),
            ("resumed twice", lambda p: after(p, p + 2, n), ""),
            ("state used twice", twice, "in place"),
            ("batch rows", lambda p: (read(run, both, p, n)[1:], read(run, one, p, n)), "mixed"),
            ("padding behind", behind, "pads read? position?")][:None if padded else -1]:
        pairs = {p: pair(p) for p in splits}
        off = [apart(*pairs[p]) for p in splits]
        bad, worst = [p for p, x in zip(splits, off) if not x <= limit], np.max(off)
        one_by_one &= not bad or law not in ("rest of one token", "one by one")
        if bad and not guess:
            first, fresh = pairs[bad[0]][0][:, :1], call(run, one[:, bad[0]:], None)[0][:, :1]
            guess = ("not finite" if not np.isfinite(worst) else
                     "state dropped" if apart(first, fresh) <= limit else
                     "dropped in part? window?" if one_by_one else
                     "few digits? position? window?" if worst < 1e-4 else
                     "position? few digits? window?" if worst < 1e-2 else
                     "position? window? normalizer?")
        yield law, worst, guess if bad else "holds", bad


@script
def main(argv=None):
    quick = command_line(__doc__, quick="three splits instead of eight").parse_args(argv).quick
    splits = (1, 32, 33) if quick else (1, 2, 31, 32, 33, 63, 64, 65)
    rng = np.random.default_rng(0)
    model, tokens = random_transformer(rng, 50, 32, 2, 2, dtype="f"), rng.integers(0, 50, (2, 70))
    noisy = [Layer(*(w * (1 + 1e-7 * rng.random(w.shape, "f")) for w in x)) for x in model.layers]
    noise = apart(*(forward(m, tokens)[0] for m in (model._replace(layers=noisy), model)))
    print(f"weights changed by 1e-7 change the logits by {noise:.1e}; a law fails at 20 times that")
    for name, fault in FAULTS.items():
        print(f"\n{name:<63}fails after")
        for row in check(partial(fault, partial(forward, model)), tokens, splits, 20 * noise):
            print("  {:<19}{:>9.1e}  {:<33}{}".format(*row), flush=True)
