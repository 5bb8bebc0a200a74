"""ICLCA Table 2: the induction-head task, with the hand-built model.

A text of 100 random tokens holds a trigger token once; asked the trigger, the model must answer the
token that followed it. Accuracy over 1,000 random texts with the text in context, without it, and
converted and without it. The paper's trained model has 99.95%, 2.23% and 99.95%; one answer in 44
is right by chance here.

    python docs/experiments/table2_induction.py [--quick]
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])
from iclca_ref import iclca
from linear_transformer import forward
from text_to_weights import induction_transformer

VOCABULARY, LENGTH = 45, 100
TRIGGER = VOCABULARY - 1


def texts(rng, n):
    """n texts (n, LENGTH) of tokens below TRIGGER and once the trigger; the answers (n,)."""
    tokens, place = rng.integers(0, TRIGGER, (n, LENGTH)), rng.integers(0, LENGTH - 1, n)
    tokens[np.arange(n), place] = TRIGGER
    return tokens, tokens[np.arange(n), place + 1]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 texts instead of 1,000")
    n = 100 if parser.parse_args(argv).quick else 1_000
    rng = np.random.default_rng(0)
    model = induction_transformer(VOCABULARY, LENGTH + 1, n_gram=1)
    context, answer = texts(rng, n)
    prompt = np.full((n, 1), TRIGGER)
    logits = {"in context": forward(model, np.concatenate([context, prompt], axis=1))[0],
              "without": forward(model, prompt)[0],
              "converted": forward(model, prompt, iclca(model, context))[0]}
    print(f"{n:,} texts of {LENGTH} tokens, vocabulary {VOCABULARY}\n")
    print(f"{'':12}{'accuracy':>10}{'paper':>10}")
    for (label, found), paper in zip(logits.items(), ("99.95%", "2.23%", "99.95%")):
        # votes are whole numbers: rounded, so that rounding errors do not break ties
        accuracy = np.mean(np.rint(found[:, -1]).argmax(axis=-1) == answer)
        print(f"{label:12}{accuracy:>10.2%}{paper:>10}")
    difference = abs(logits["in context"][:, -1] - logits["converted"][:, -1]).max()
    print(f"\nlargest difference of logits, in context and converted: {difference:.0e}")


if __name__ == "__main__":
    main()
