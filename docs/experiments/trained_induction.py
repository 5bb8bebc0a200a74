"""ICLCA Table 2: the induction-head task, with a model that has learned it.

A text of random tokens holds a trigger token once; asked the trigger, the model must answer the
token that followed it. A linear transformer of two layers and two heads (27,456 parameters) is
trained from random weights on texts that grow from 25 to 100 tokens; at 100 from the start it stays
at chance. Then its accuracy with the text in context, without it, and converted to biases; at
lengths that it was not trained on; and what its heads look at. One answer in 44 is right by chance.

    python docs/experiments/trained_induction.py [--seeds 3] [--quick]
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import numpy as np

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])
from backward import adam, loss_and_gradients, mapped
from iclca_ref import iclca
from linear_transformer import chunked_attention, forward, random_transformer, rotate_at

VOCABULARY, TRIGGER, BATCH = 45, 44, 64
FULL = dict(length=100, steps=1_200, rate=3e-3)
SHORT, QUICK = (dict(length=20, steps=steps, rate=8e-3) for steps in (400, 300))
np.empty(31 * 2**20, np.uint8)   # once freed, it makes Linux' C library keep freed memory: faster


# ---- The task and the training ---------------------------------------------------------------------

def texts(rng, n, length):
    """n texts (n, length), each with the trigger once, the trigger's places and the answers (n,)."""
    tokens, place = rng.integers(0, TRIGGER, (n, length)), rng.integers(0, length - 1, n)
    tokens[np.arange(n), place] = TRIGGER
    return tokens, place, tokens[np.arange(n), place + 1]


def asked(context):
    """The texts (n, m) with the question after them: (n, m + 1)."""
    return np.concatenate([context, np.full((len(context), 1), TRIGGER)], axis=1)


def random_model(rng, dtype=np.float32):
    """The model before training: small logits, so that it begins with an honest guess."""
    model = random_transformer(rng, VOCABULARY, 32, n_layers=2, n_heads=2, dtype=dtype)
    return model._replace(unembed=model.unembed / 10)


def train(seed, length, steps, rate, biases=None, constrain=lambda b: b, watch=lambda *now: None):
    """A model that is trained from `seed`, and its biases.

    Adam; the loss is of the answer alone. Texts grow from 25 tokens in the first fifth to `length`
    at 70% (a shorter `length` is that of all); the rate warms up in 50 steps and falls to 5% along
    a cosine. `biases` are trained too, if given, and `constrain`ed after each step. Each step ends
    with watch(step, length of the texts, loss, model, biases).
    """
    rng, moments = np.random.default_rng(seed), None
    model = random_model(rng)
    for step in range(steps):
        done = step / steps
        n = round(np.interp(done, (0.2, 0.7), (min(25, length), length)))
        context, _, answers = texts(rng, BATCH, n)
        targets = np.full((BATCH, n + 1), -1)
        targets[:, -1] = answers
        loss, d_model, d_biases = loss_and_gradients(model, asked(context), targets, biases)
        now = rate * min(1, (step + 1) / 50) * float(0.525 + 0.475 * np.cos(np.pi * done))
        (model, biases), moments = adam((model, biases), (d_model, biases and d_biases), now, moments)
        biases = biases and constrain(biases)
        watch(step + 1, n, float(loss), model, biases)
    return model, biases


# ---- What it has learned ---------------------------------------------------------------------------

def answers_given(model, prompts, contexts=None, each=100):
    """The last token's logits (n, vocabulary): after contexts (n, m) that were converted, if any."""
    logits = []
    for i in range(0, len(prompts), each):
        biases = None if contexts is None else iclca(model, contexts[i:i + each])
        logits.append(forward(model, prompts[i:i + each], biases)[0][:, -1])
    return np.concatenate(logits)


def attention_weights(model, tokens):
    """How much each token looks at each: (layers, n, heads, tokens, tokens) for texts (n, tokens).

    (R_i q_i)·(R_j k_j) / φ(q_i)·Σ_{l≤i} φ(k_l), 0 for j > i. Without rotations rows would sum to 1.
    """
    found = []

    def attend(q, k, v, bias, rope, normalize):
        rq, rk = (rotate_at(x, rope, np.arange(q.shape[-2]) + 1) for x in (q, k))
        below = np.tril(q @ k.mT).sum(axis=-1, keepdims=True)
        found.append(np.tril(rq @ rk.mT) / below)
        return chunked_attention(q, k, v, bias, rope, normalize)

    forward(model, tokens, attend=attend)
    return np.stack(found)


def where_heads_look(model, rng, length, n=500):
    """Mean weights (layers, heads) and whether they are the row's largest: what an induction head does.

    Of the token after the trigger at the trigger before it, and of the last trigger at the answer.
    """
    context, place, _ = texts(rng, n, length)
    weights, text = attention_weights(model, asked(context)), np.arange(n)
    rows = {"token after the trigger at the trigger": (place + 1, place),
            "last trigger at the answer": (np.full(n, length), place + 1)}
    for name, (i, j) in rows.items():
        row = weights[:, text, :, i]                      # (n, layers, heads, tokens)
        at = row[text, :, :, j]
        yield name, at.mean(axis=0), (row.argmax(axis=-1) == j[:, None, None]).mean(axis=0)


def progress(step, length, loss, *_):
    """What `train` may print while it runs."""
    if step % 100 == 0:
        print(f"  step {step:>5,}, texts of {length:>3} tokens, loss {loss:.4f}", flush=True)


@functools.cache
def short_model(seed, steps=SHORT["steps"]):
    """A model that is trained on texts of 20 tokens, in about 5 seconds; trained once per process."""
    return train(seed, **{**SHORT, "steps": steps})[0]


def main(argv=None):
    pass
