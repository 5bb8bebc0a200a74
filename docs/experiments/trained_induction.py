"""ICLCA Table 2: the induction-head task, with a model that has learned it.

A text of random tokens holds a trigger token once; asked the trigger, the model must answer the
token that followed it. A linear transformer of two layers and two heads (27,456 parameters) is
trained on texts that grow from 25 to 100 tokens; at 100 from the start it stays at chance, one
answer in 44. Then its accuracy with the text in context, without it, and converted to biases.

    python docs/experiments/trained_induction.py [--seeds 3] [--quick]
"""
import time
from functools import cache
import numpy as np
from common import at_least, command_line, progress, script
from backward import adam, loss_and_gradients, mapped
from iclca_ref import iclca
from linear_transformer import chunked_attention, forward, random_transformer, rotate_at
VOCABULARY, TRIGGER, BATCH = 45, 44, 64
FULL = dict(length=100, steps=1_200, rate=3e-3)
PAPER = {"in context": "99.95%", "without": "2.23%", "converted": "99.95%"}
SHORT, QUICK = (dict(length=20, steps=steps, rate=8e-3) for steps in (400, 300))   # 5 seconds
np.empty(31 * 2**20, np.uint8)   # once freed, it makes Linux' C library keep freed memory: faster


def texts(rng, n, length):
    """n texts (n, length), each with the trigger once, the trigger's places, the answers."""
    tokens, place = rng.integers(0, TRIGGER, (n, length)), rng.integers(0, length - 1, n)
    tokens[np.arange(n), place] = TRIGGER
    return tokens, place, tokens[np.arange(n), place + 1]


def asked(context):   # the texts (n, m) with the question after them: (n, m + 1)
    return np.pad(context, [(0, 0), (0, 1)], constant_values=TRIGGER)


def random_model(rng, dtype=np.float32):   # with small logits: it begins with an honest guess
    model = random_transformer(rng, VOCABULARY, 32, n_layers=2, n_heads=2, dtype=dtype)
    return model._replace(unembed=model.unembed / 10)


def train(seed, length, steps, rate, biases=None, constrain=lambda b: b):
    """Adam on the loss of the answer: yields step, length of the texts, loss, model, biases.

    Texts grow from 25 tokens in the first fifth to `length` at 70%; the rate warms up in 50 steps
    and falls to 5% along a cosine. `biases` are trained too, if given, and `constrain`ed.
    """
    rng, moments = np.random.default_rng(seed), None
    model = random_model(rng)
    for step in range(steps):
        done = step / steps
        n = round(np.interp(done, (0.2, 0.7), (min(25, length), length)))
        context, _, answers = texts(rng, BATCH, n)
        targets = np.pad(answers[:, None], [(0, 0), (n, 0)], constant_values=-1)
        loss, *d = loss_and_gradients(model, asked(context), targets, biases)
        now = rate * min(1, (step + 1) / 50) * float(0.525 + 0.475 * np.cos(np.pi * done))
        (model, biases), moments = adam((model, biases), d, now, moments)
        biases = biases and constrain(biases)
        yield step + 1, n, float(loss), model, biases


@cache
def trained(seed, length, steps, rate):
    """The model of `train`, which says on stderr how it goes; trained once in a process."""
    began = time.process_time()
    for step, n, loss, model, _ in train(seed, length, steps, rate):
        if step % 100 == 0:
            progress(f"seed {seed}, step {step:>5,}, texts of {n:>3} tokens, loss {loss:7.4f}, "
                     f"{time.process_time() - began:4.0f} s")
    return model


def last_logits(model, contexts):
    """The answers' logits with the contexts (n, m) in front, without, and converted: (3, n, 45)."""
    found = []
    for part in np.split(contexts, range(100, len(contexts), 100)):
        alone = asked(part[:, :0])
        runs = (asked(part), None), (alone, None), (alone, iclca(model, part))
        found.append([forward(model, tokens, biases)[0][:, -1] for tokens, biases in runs])
    return np.concatenate(found, axis=1)


def attention_weights(model, tokens):
    """How much each token looks at each: (layers, heads, n, n) for a text (n,).

    (R_i q_i)·(R_j k_j) / φ(q_i)·Σ_{l≤i} φ(k_l), 0 for j > i. Without rotations rows would sum to 1.
    """
    def attend(q, k, v, bias, rope, normalize):
        o, _ = chunked_attention(q, k, v, bias, rope, normalize)
        rq, rk = (rotate_at(x, rope, np.arange(q.shape[-2]) + 1) for x in (q, k))
        return o, np.tril(rq @ rk.mT) / np.tril(q @ k.mT).sum(axis=-1, keepdims=True)
    return np.stack(forward(model, tokens, attend=attend)[1])


def where_heads_look(model, rng, length, n=500):
    """Prints the two looks of an induction head, from the token after the trigger at the trigger
    (to learn what it follows), and at the answer: mean weights, how often the largest of a row.
    """
    context, place, _ = texts(rng, n, length)
    weights, text = attention_weights(model, asked(context)), np.arange(n)   # (2, n, 2, m, m)
    for name, i, j in (("the token after the trigger, at the trigger", place + 1, place),
                       ("the last trigger, at the answer", np.full(n, length), place + 1)):
        rows = weights[:, text, :, i]                                        # (n, 2, 2, m)
        largest = rows.argmax(axis=-1) == j[:, None, None]
        print(name)
        for (layer, head), mean in np.ndenumerate(rows[text, :, :, j].mean(axis=0)):
            share = largest[:, layer, head].mean()
            print(f"  layer {layer + 1}, head {head + 1}{mean:>10.3f}{share:>8.0%}")


@script
def main(argv=None):
    parser = command_line(__doc__, "texts of 20 tokens, 300 steps")
    parser.add_argument("--seeds", type=at_least(1), default=1, help="default 1")
    options = parser.parse_args(argv)
    setting, n = (QUICK, 500) if options.quick else (FULL, 6_000)
    models = [trained(seed, **setting) for seed in range(options.seeds)]
    rng, length = np.random.default_rng(1_000), setting["length"]   # no seed of the training
    print(f"{n:,} texts of {length} tokens, vocabulary {VOCABULARY}, one column per seed\n")
    context, _, answers = texts(rng, n, length)
    right = [last_logits(model, context).argmax(axis=-1) == answers for model in models]
    for shares, (name, paper) in zip(np.mean(right, axis=-1).T, PAPER.items()):
        print(f"{name:12}" + "".join(map("{:>10.2%}".format, shares)) + f"   paper {paper}")
    print("\nlargest difference of logits, in context and converted")
    for dtype in np.float64, np.float32:
        logits = (last_logits(mapped(lambda a: a.astype(dtype), m), context[:200]) for m in models)
        print(f"{dtype.__name__:12}" + "".join(f"{abs(x[0] - x[2]).max():>10.1e}" for x in logits))
    print("\naccuracy by length, in context / converted")
    for m in length, length * 3 // 2, length * 2:
        context, _, answers = texts(rng, min(n, 1_000), m)
        right = [last_logits(model, context).argmax(axis=-1) == answers for model in models]
        print(f"{m:<12}" + "".join(f"{a:>8.1%} /{c:>6.1%}" for a, _, c in np.mean(right, axis=-1)))
    print("\nwhere heads look: mean weight (how often the largest of its row), first seed")
    where_heads_look(models[0], rng, length)
