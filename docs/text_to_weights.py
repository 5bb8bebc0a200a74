"""A text becomes weights, and the text is thrown away: the demonstration.

    python docs/text_to_weights.py                        a short built-in text
    python docs/text_to_weights.py FILE --prompt "..."    your own; --help lists the options

A linear transformer's weights are written by hand; b_KV becomes the table of what followed what.
"""
import argparse
import difflib
import io
import os
import re
import signal
import sys
import textwrap
import unicodedata
import numpy as np
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "experiments"))
from common import at_least, progress, told
from biases_on_disk import checked, load, load_biases, save_biases  # noqa: F401
from iclca_ref import iclca
from linear_transformer import Layer, Transformer, forward, generate, identity, rope, rotate

TEXT = """Ada feeds the owl. Ben mends the clock. Cleo paints a boat.
The owl sleeps by day and hunts by night. The clock strikes at noon and stops at dusk.
A boat waits in the harbour until the tide turns. When the tide turns, Cleo sails to Lisbon.
Ben writes to Ada, and Ada writes back: the owl hunts by night, the clock stops at dusk."""
GLOSSARY = """
  Algorithm 1   ICLCA's: read the text once and keep each layer's sums
  bias          such a sum: a layer starts from it instead of from zero
  b_KV          a bias's matrix, Σ key ⊗ value over the text
  logit         a word's score to come next: here its number of votes"""


def induction_transformer(vocab_size, max_length, n_gram=2, dtype=np.float64):
    """Two layers, written down by hand, that continue a text as it went on before.

    Residual stream: token one-hot, n_gram slots for the tokens before it, an output slot, a 1.
    Layer 1: head s copies the token of s places back into slot s. Every query is (2/d_k)(1, 0, ...)
    and every key R_s (1, 0, 1, 0, ...), so with θ_m = (2m + 1) π / d_k the score of j for i is

        mean over m of cos(θ_m (i − j − s))  =  1 if j = i − s,  0 at every other distance below d_k

    Layer 2 (θ = 0: no positions) compares the query (x_i, x_{i−1}, ...) with the key (x_{j−1},
    x_{j−2}, ...) and answers with x_j: one vote for each s = 1 ... n_gram with x_{j−s} = x_{i+1−s}.
    A token's logit is its votes less token / (4·vocab_size): of equal votes the first token's wins.
    Layer 2's b_KV after a text counts: row (s−1)·vocab_size + a, column b, is how often b came s
    places after a. max_length bounds context and prompt together, also if biases are the context.

    >>> model = induction_transformer(vocab_size=5, max_length=20)
    >>> generate(model, [4, 0, 1, 2, 3, 4, 0], n=3)
    array([1, 2, 3])
    """
    if min(sizes := (vocab_size, max_length, n_gram)) < 1:
        raise ValueError(f"vocab_size, max_length and n_gram must be at least 1, got {sizes}")
    output, d_k = (n_gram + 1) * vocab_size, max(max_length, n_gram + 1) + 1 & -2    # d_k is even
    stream = np.eye(output + vocab_size + 1, dtype=dtype)  # columns read from it, rows write to it
    embed, unembed = stream[:vocab_size].copy(), stream[:, output:-1].copy()
    embed[:, -1], unembed[-1] = 1, -np.arange(vocab_size) / (4 * vocab_size)
    theta = (np.arange(1, d_k, 2) * np.pi / d_k).astype(dtype)
    start = np.tile([1.0, 0.0], (n_gram, d_k // 2))
    w_q, w_k = np.zeros((2, n_gram, len(stream), d_k), dtype)
    w_q[:, -1], w_k[:, -1] = start * 2 / d_k, rotate(start, *rope(np.arange(n_gram) + 1, theta))
    w_v = np.tile(stream[:, :vocab_size], (n_gram, 1, 1))
    w_o = stream[vocab_size:output].reshape(n_gram, vocab_size, -1)
    no_mlp, even = (stream[:, :0], stream[:0]), n_gram * vocab_size + 1 & -2  # the 1 more reads a 0
    copy = Layer(w_q, w_k, w_v, w_o, *no_mlp, theta)
    look_up = Layer(stream[None, :, :even], stream[None, :, vocab_size:vocab_size + even],
                    w_v[:1], stream[None, output:-1], *no_mlp, np.zeros(even // 2, dtype))
    return Transformer(embed, (copy, look_up), unembed, phi=identity, normalize=False,
                       norm=identity, max_length=max_length)


def split_words(text):
    """The words and punctuation marks of a text, in order, each with its combining marks."""
    text = unicodedata.normalize("NFC", text)
    marks = "\u200c\u200d" + "".join(c for c in set(text) if unicodedata.category(c)[0] == "M")
    word, mark = rf"[\w{marks}]+", r"[^\w\s\x00-\x1f\x7f-\x9f]"  # most marks are not in re's \w
    return re.findall(f"{word}(?:['’-]{word})*|-+|{mark}[{marks}]*", text)


def tokens_of(words, vocabulary):
    """The tokens of words. Raises ValueError, with words close to it, if one is not there."""
    if missing := [word for word in words if word not in vocabulary]:
        lower = {word.lower(): word for word in vocabulary}
        close = map(lower.get, difflib.get_close_matches(missing[0].lower(), lower))
        raise ValueError(f"the text has no word \"{missing[0][:40]}\"; close to it: "
                         f"{', '.join(close) or 'none'}")
    return [vocabulary.index(word) for word in words]


def read_words(path, most):
    """The first words of a file's first million characters, and what to call them."""
    how = dict(encoding="utf-8-sig", errors="surrogateescape")
    with io.StringIO(TEXT) if path is None else open(path, **how) as file:
        words = split_words(text := file.read(1_000_000))
    if re.search("[\0\udc80-\udcff]", text) or not 1 <= max(map(len, words[:most] or [""])) <= 1000:
        raise ValueError(f"{path} is no UTF-8 text of words, with at most 1,000 letters each")
    cut, words = len(words) > most or len(text) == 1_000_000, words[:most]
    return words, (f"{'the first ' * cut}{len(words):,} words{' (--max-words)' * cut} of "
                   f"{os.path.basename(path or 'the built-in text')}")


def affordable(vocab_size, max_length, n_gram):
    """The induction transformer. Raises ValueError if it and such a text would need over 2 GB."""
    width = (n_gram + 2) * vocab_size
    if (size := 8 * (width**2 + 2 * n_gram * max_length * (width + 3 * max_length))) > 2e9:
        raise ValueError(f"the model would need {size // 10**9:,} GB, and 2 are allowed: lower "
                         "--max-words, --n-gram or --generate, or shorten the prompt")
    return induction_transformer(vocab_size, max_length, n_gram)


def saved(arrays):   # what --save wrote: the model, its biases, its words, how many it has read
    words, length = arrays["words"].tolist(), arrays["length"].item()
    known = list(dict.fromkeys(split_words(" ".join(words)))) == words
    if not known or not 1 <= length <= arrays["kv_0"].shape[1]:
        raise ValueError("--save does not write such words or such a length")
    model = affordable(len(words), *arrays["kv_0"].shape[1::-1])
    return model, checked(arrays, model), words, length


def prepare(ask):
    """Model, biases, words, the text's tokens (none after --load), the prompts, the text's name."""
    text, prompts, name = [], list(map(split_words, ask.prompt or [])), ask.load or ""
    if ask.load is not None:
        model, biases, words, length = load(ask.load, saved)
    else:
        text, name = read_words(ask.file, ask.max_words)
        words, length = list(dict.fromkeys(text)), len(text)
        prompts = prompts or [text[i:][:ask.n_gram] for i in np.unique(np.arange(3) * length // 3)]
    text, *prompts = (tokens_of(part, words) for part in [text, *prompts])
    room = max(map(len, prompts)) + ask.generate
    if not all(prompts):
        raise ValueError("a prompt needs at least one word")
    if ask.load is None:    # a model for the text and as many tokens more, at least 64
        model = affordable(len(words), length + max(64, room), ask.n_gram)
        if length > 500:
            progress(f"... reading {name}, {len(words):,} of them different")
        biases = iclca(model, text)
    if ask.save is not None:
        save_biases(ask.save, biases, words=words, length=length)
    if length + room > model.max_length:
        raise ValueError(f"there is room for {model.max_length - length:,} words after the text")
    return model, biases, words, text, prompts, os.path.basename(name)


def row(label, *words):   # a label, and words joined as in a text, in lines of up to 79 columns
    text = re.sub(r" ([,.;:!?)\]])", r"\1", " ".join(words))
    return textwrap.fill(text, 79, initial_indent=f"  {label:<30}", subsequent_indent=" " * 32)


def compared(model, biases, words, text, prompt, n):
    """The lines that show how a prompt goes on with the text in context, converted, and without."""
    yield "\n" + row("prompt", *(words[t] for t in prompt))
    found = []
    for label, tokens, start in [("with the text in context", text + prompt, None),
                                 ("converted, without the text", prompt, biases),
                                 ("without either", prompt, None)][not text:]:
        logits, state = forward(model, tokens, start)
        added = [int(logits[-1].argmax())]
        added = [*added, *generate(model, added, max(n - 1, 0), state)][:n]
        said = [words[t] for t in added] or ["(nothing, as --generate 0 asks for)"]
        yield row(label, *(said if logits[-1].max() > 0.5 else ["(no idea: no word has a vote)"]))
        found.append(logits[-len(prompt):])
    if text:
        yield row("largest difference of logits", f"{abs(found[0] - found[1]).max():.1e}"
                  "  (in context, converted)")


def strongest_rows(table, words):   # b_KV as a table: what came after what, and how often
    for i in np.argsort(-table.max(axis=1), kind="stable")[:6]:
        if best := [b for b in np.argsort(-table[i], kind="stable")[:3] if table[i, b] > 0]:
            after = f'after "{words[i % len(words)]}"' + " _" * (i // len(words))
            came = ", ".join(f'"{words[b]}" ({table[i, b]:.0f})' for b in best)
            yield row(f"{after[:40]:<24} comes ", came)


def demonstration(ask):
    """The demonstration, line by line. Raises OSError or ValueError with a message for the user."""
    model, biases, words, text, prompts, name = prepare(ask)
    n_gram, numbers = len(model.layers[0].w_k), sum(a.size for bias in biases for a in bias)
    yield textwrap.fill(
        f"A linear transformer of {len(model.layers)} layers, written down by hand and not trained,"
        f" has read {name}. It is a lookup that votes: each word that it has read gets a vote for "
        f"every one of the {n_gram} words before it (--n-gram) that stands at the same distance "
        f"from the end of the prompt. Algorithm 1 has made biases of the text, {numbers:,} numbers "
        f"({8 * numbers / 1e3:,.0f} kB), and the text is not needed any more. The model's sizes fix"
        " how many numbers: this is no compression of the text.", 79) + "\n" + GLOSSARY
    for prompt in prompts:
        yield from compared(model, biases, words, text, prompt, ask.generate)
    yield "\nWhat the context has become, the last layer's b_KV (_ is any one word):"
    table = np.rint(biases[-1].kv[0, :n_gram * len(words)])
    yield from list(strongest_rows(table, words)) or ["  (nothing has come after anything)"]
    if ask.save:
        yield f"\nSaved. Without the text: python docs/{parser.prog} --load {ask.save} --prompt ..."


parser = argparse.ArgumentParser(
    prog="text_to_weights.py", description="Turn a text into the weights of a linear transformer "
    "(ICLCA, Algorithm 1), throw the text away, and continue prompts.")
add, add_file = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
add("file", nargs="?", metavar="FILE", help="a UTF-8 text; without it, a short built-in one")
add("--prompt", action="append", metavar="TEXT", help="words to continue, all from the text; may "
    "be repeated; by default three places of the text")
add("--generate", type=at_least(0), default=6, metavar="N", help="words to add (default 6)")
add("--n-gram", type=at_least(1), default=2, metavar="K", help="words of history that the model "
    "compares (default 2)")
add("--max-words", type=at_least(1), default=1000, metavar="N", help="cut the text after so many "
    "words and punctuation marks (default 1000)")
add_file("--save", metavar="NPZ", help="write the biases and the vocabulary to this file")
add_file("--load", metavar="NPZ", help="answer from a file written by --save, without any text")


@told
def main(argv=None):
    ask = parser.parse_args(argv)
    for wrong, message in [
            ([] in [*vars(ask).values(), *(ask.prompt or ())], "an option's value cannot be --"),
            (ask.load and ask.file, "--load answers without the text: leave FILE out"),
            (ask.load and not ask.prompt, "--load needs a --prompt: the text is gone"),
            (ask.file and ask.save and os.path.exists(ask.file) and os.path.exists(ask.save)
             and os.path.samefile(ask.file, ask.save), "--save would overwrite FILE")]:
        if wrong:
            parser.error(message)
    for line in demonstration(ask):
        print(line, flush=True)


if __name__ == "__main__":
    for number in signal.SIGINT, signal.SIGTERM:  # no traceback, and nothing half written stays
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # | head ends it
    sys.stdout and sys.stdout.reconfigure(errors="replace")
    sys.exit(main())
