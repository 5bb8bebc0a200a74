"""Dai et al. §4: how alike are in-context learning and fine-tuning? On models that have learned.

A model trained on induction (trained_induction.py) reads a text and then the trigger; it must give
the text's answer. Zero-shot is the trigger alone. Fine-tuned is the trigger alone after one step of
gradient descent on W_K and W_V for the demonstration "trigger → answer". Dai's measures compare the
two changes, beside Deutch et al.'s cautions: another answer, an untrained model, noise. Then: is
minus the gradient of that loss by biases, at 0, like ICLCA's biases of the text? With --prompt 6
five random tokens stand before the trigger.

    python docs/experiments/icl_vs_finetuning.py [--prompt 1] [--quick]
"""
from collections import defaultdict
import numpy as np
from common import command_line, mean_and_error, script
from backward import loss_and_gradients, mapped
from iclca_ref import iclca
from linear_transformer import check_shapes, chunked_attention, forward, rotate_at
from trained_induction import QUICK, SHORT, TRIGGER, asked, random_model, texts, trained
RATE = 1   # of 0.1, 0.3, 1 and 3 the one by which a trained model, on other texts, learns best


def unit(a):   # a / ‖a‖ over the last axis; ValueError for no vectors, or one without a direction
    norm = np.linalg.norm(a.astype(np.float64), axis=-1, keepdims=True)   # no square overflows
    if not norm.size or not ((norm > 0) & (norm < np.inf)).all():
        raise ValueError(f"a {a.shape} must hold vectors, of a norm that is neither 0, inf nor NaN")
    return a / norm


def cosine(a, b):
    """a·b / (‖a‖ ‖b‖) over the last axis: a and b (..., d) of one shape. Raises as `unit` does."""
    check_shapes("a:d b:d", a, b)
    return (unit(a) * unit(b)).sum(axis=-1)


def sim_aou(icl, fine_tuned, zero_shot):
    """SimAOU: the mean cosine of two updates of the attention output, ICL's and fine-tuning's.

    (examples, layers, width) each: the last token's output, scaled to norm 1 here. Both updates
    share zero_shot, so three random directions give 1/2 in wide vectors, 0.485 at width 9. §4.
    """
    icl, fine_tuned, zero_shot = unit(np.stack([icl, fine_tuned, zero_shot]))
    return cosine(icl - zero_shot, fine_tuned - zero_shot).mean()


def rec_to_ftp(icl, fine_tuned, zero_shot):
    """Rec2FTP: what share of the examples that fine-tuning corrects ICL corrects; NaN of none.
    (examples,) each, booleans: which are answered right.
    """
    icl, fine_tuned, zero_shot = np.stack([icl, fine_tuned, zero_shot], dtype=bool)   # refuses ints
    corrected = fine_tuned & ~zero_shot
    return float(icl[corrected].mean()) if corrected.any() else np.nan


def outputs(model, tokens, length):
    """Of the last token of texts (n, m): its answer (n,), each layer's attention output (n, layers,
    d_model), and its scores (R q)·(R k) with the last `length` tokens (n, layers, heads, length).
    """
    def attend(q, k, v, bias, rope, normalize):
        o, _ = chunked_attention(q, k, v, bias, rope, normalize)
        rq, rk = (rotate_at(x, rope, np.arange(q.shape[-2]) + 1) for x in (q, k))
        return o, (o[..., -1:, :], (rq[..., -1:, :] @ rk[..., -length:, :].mT)[..., 0, :])

    logits, read = forward(model, tokens, attend=attend)
    written = [(o @ layer.w_o).sum(axis=(-3, -2)) for (o, _), layer in zip(read, model.layers)]
    return logits[:, -1].argmax(axis=-1), *(
        np.stack(x, axis=1) for x in (written, [scores for _, scores in read]))


def tuned(model, answer):   # the model after one step on W_K and W_V for "trigger → answer"
    _, d, _ = loss_and_gradients(model, [TRIGGER], [answer])
    return model._replace(layers=tuple(
        w._replace(w_k=w.w_k - RATE * g.w_k, w_v=w.w_v - RATE * g.w_v)
        for w, g in zip(model.layers, d.layers)))


def settings(model, rng, n, length):   # n texts, their answers (n,), the outputs by setting
    def after(context):
        return outputs(model, np.concatenate([context, prompts], axis=1), length)

    def fine_tuned(answers):
        runs = (outputs(tuned(model, a), x[None], length) for x, a in zip(prompts, answers))
        return tuple(map(np.concatenate, zip(*runs)))

    m = SHORT["length"] + 1 - length
    context, _, answers = texts(rng, n, m)
    other_text, place, _ = texts(rng, n, m)               # with the same answer
    other_text[np.arange(n), place + 1] = answers
    prompts = asked(rng.integers(0, TRIGGER, (n, length - 1)))
    other = (answers + rng.integers(1, TRIGGER, n)) % TRIGGER
    return context, answers, {
        "zero-shot": after(context[:, :0]), "in context": after(context),
        "tuned": fine_tuned(answers), "other answer": fine_tuned(other),
        "other text": after(other_text)}


def measures(answers, zero_shot, icl, other):
    """Cosine of updates and SimAOU for each layer, SimAM, Rec2FTP, accuracy of `other`."""
    given, o, scores = zip(icl, other, zero_shot)
    right = [x == answers for x in given]
    aou = (sim_aou(*(x[:, [layer]] for x in o)) for layer in (0, 1))
    sim_am = cosine(*scores[:2]).mean()    # of the last token's scores
    return (*cosine(o[0] - o[2], o[1] - o[2]).mean(axis=0), *aou, sim_am, rec_to_ftp(*right),
            right[1].mean())


def gradient_and_biases(model, contexts, answers):
    """By layer, the mean cosine of −∂L/∂b_KV at b = 0 for "trigger → answer" with iclca's b_KV."""
    exact, ask = iclca(model, contexts), asked(contexts[:, :0])
    _, _, d = loss_and_gradients(model, ask, answers[:, None], mapped(np.zeros_like, exact))
    return [-cosine(*(x.kv.reshape(len(ask), -1) for x in pair)).mean() for pair in zip(d, exact)]


@script
def main(argv=None):
    parser = command_line(__doc__, "one model, trained for 300 steps, and 20 texts")
    parser.add_argument("--prompt", type=int, default=1, choices=range(1, 11), help="its tokens")
    args = parser.parse_args(argv)
    seeds, n, setting = (1, 20, QUICK) if args.quick else (5, 100, SHORT)
    rows = defaultdict(list)
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 2])
        models = {"trained": trained(seed, **setting), "untrained": random_model(rng)}
        for name, model in models.items():
            contexts, answers, found = settings(model, rng, n, args.prompt)
            zero_shot, icl = found.pop("zero-shot"), found["in context"]
            for how, other in found.items():
                rows[f"{name}, {how}"].append(measures(answers, zero_shot, icl, other))
            rows[f"{name}, -dL/db, b'"].append(gradient_and_biases(model, contexts, answers))
        rows["noise"].append(measures(rng.random(n) < 0.5, *(
            (rng.random(n) < 0.5, rng.standard_normal((n, 2, 32)),    # independent settings
             rng.standard_normal((n, 2, 2, args.prompt))) for _ in range(3))))
    print(f"{n} texts for each of {seeds} models, against in context; mean ± standard error\n")
    columns = "cosine 1", "cosine 2", "SimAOU 1", "SimAOU 2", "SimAM", "Rec2FTP", "accuracy"
    print(f"{'':23}" + "".join(f"{c:>11}" for c in columns))
    for name, values in rows.items():
        print(f"{name:23}" + "".join(f"{m:>6.2f}±{e:.2f}" if m == m else f"{'-':>11}"
                                     for m, e in zip(*mean_and_error(values))))
