"""The laws of a state that is handed from call to call: run(tokens, state) -> (outputs, state).

Explained in docs/check_your_cache.md. python docs/experiments/state_laws.py [--quick]
"""
import argparse
import sys
from functools import partial
from pathlib import Path
import numpy as np
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from linear_transformer import Bias, Layer, forward, random_transformer, rope, rope_frequencies

FAULTS = {   # what each makes of run(t, s), t (batch, n) the tokens, s the state
    "none: our own model": lambda run, t, s: run(t, s),
    "state dropped for several tokens": lambda run, t, s: run(t, s if t.shape[1] == 1 else None),
    "whole chunks": lambda run, t, s: (run(t, s)[0], run(t[:, :t.shape[1] // 32 * 32 or 1], s)[1]),
    "offset wrong by one": lambda run, t, s: run(
        t, s and [b.turned(partial(rope, theta=rope_frequencies(16)), -1) for b in s]),
    "normalizer not carried": lambda run, t, s: run(t, s and [Bias(b.kv, 0 * b.d) for b in s]),
    "half precision": lambda run, t, s: run(t, s and [Bias(*map(np.float16, b)) for b in s]),
    "batch rows mixed": lambda run, t, s: run(t, s and [Bias(b.kv[::-1], b.d[::-1]) for b in s]),
    "state wiped in place": lambda run, t, s: (run(t, s), [b.kv.fill(0) for b in s or []])[0],
}


def apart(found, expected):
    """The largest difference, relative to the largest entry expected."""
    return abs(found - expected).max() / abs(expected).max()


def read(run, tokens, *cuts):
    """The outputs for tokens (batch, n) cut into pieces, the state handed on."""
    calls = [(None, None)]
    for piece in np.split(tokens, cuts, axis=1):
        calls.append(run(piece, calls[-1][1]))
    return np.concatenate([o for o, _ in calls[1:]], axis=1)


def differences(run, tokens, p):
    """How far each law is off for two texts (2, n) cut after p tokens; "": from no state."""
    one, rest, whole = tokens[:1], tokens[:1, p:], run(tokens[:1], None)[0]
    cut, ones, s = read(run, one, p), read(run, one, *range(p, one.size)), run(one[:, :p], None)[1]
    first, _, again = [run(*call)[0] for call in ((rest, s), (tokens[1:], None), (rest, s))]
    return {"rest of one token": apart(ones[:, p], whole[:, p]),
            "rest of several": apart(cut, whole), "": apart(cut[:, p:], run(rest, None)[0]),
            "one by one": apart(ones, whole), "state used twice": apart(again, first),
            "resumed twice": apart(read(run, one, p, p + 2), whole),
            "batch rows": apart(read(run, tokens[::-1], p)[1:], cut)}


def check(run, tokens, splits, limit):
    """Yield for each law its worst difference, a guess, and the splits at which it is broken."""
    tried = {p: differences(run, tokens, p) for p in splits}
    for law in filter(None, tried[splits[0]]):
        bad = [p for p in splits if not tried[p][law] <= limit]
        off = tried[(bad or splits)[0]]
        hints = {"mixed": "rows" in law, "in place": "used" in law, "few digits": off[law] < 1e-3,
                 "state dropped": "one" not in law and off[""] <= limit,
                 "right one by one": all(tried[p]["one by one"] <= limit for p in splits)}
        guess = ", ".join(hint for hint in hints if hints[hint]) or "position? normalizer?"
        yield law, max(tried[p][law] for p in splits), guess if bad else "holds", bad


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer splits")
    splits = (1, 32, 33) if parser.parse_args(argv).quick else (1, 2, 31, 32, 33, 63, 64, 65)
    rng = np.random.default_rng(0)
    model, tokens = random_transformer(rng, 50, 32, 2, 2, dtype="f"), rng.integers(0, 50, (2, 70))
    noisy = [Layer(*(w * (1 + 1e-7 * rng.random(w.shape, "f")) for w in x)) for x in model.layers]
    noise = apart(*(forward(m, tokens)[0] for m in (model._replace(layers=noisy), model)))
    print(f"weights changed by 1e-7 change the logits by {noise:.1e}; a law fails at 20 times that")
    for name, fault in FAULTS.items():
        print(f"\n{name:<63}fails after")
        for row in check(partial(fault, partial(forward, model)), tokens, splits, 20 * noise):
            print("  {:<19}{:>9.1e}  {:<33}{}".format(*row))


if __name__ == "__main__":
    main()
