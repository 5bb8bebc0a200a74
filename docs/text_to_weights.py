"""A text becomes weights, and the text is thrown away: the demonstration.

    python docs/text_to_weights.py                        a short built-in text
    python docs/text_to_weights.py FILE --prompt "..."    your own; --help lists the options

The model is a linear transformer of two layers whose weights are written down by hand
(`induction_transformer`): a `Transformer` like any other, run by `forward`, converted by `iclca`.
Converted on a text, its second layer's b_KV is the table of what followed what: the context,
readable, as a weight. `save_biases` and `load_biases` keep the biases of any model in a file.
ICLCA is Chen et al., ICML 2024 (arXiv 2406.02847).
"""

import argparse
import contextlib
import difflib
import itertools
import math
import os
import re
import signal
import sys
import textwrap
import threading
import unicodedata
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from iclca_ref import iclca
from linear_transformer import (Bias, Layer, Transformer, forward, identity, parallel_attention,
                                rope, rotate)

TEXT = """Ada feeds the owl. Ben mends the clock. Cleo paints a boat.
The owl sleeps by day and hunts by night. The clock strikes at noon and stops at dusk.
A boat waits in the harbour until the tide turns. When the tide turns, Cleo sails to Lisbon.
Ben writes to Ada, and Ada writes back: the owl hunts by night, the clock stops at dusk."""


# ---- The model built by hand ---------------------------------------------------------------------

def previous_token_layer(d_model, token, previous, max_length, dtype=np.float64):
    """A layer whose head s = 1, 2, ... copies the slice `token` of s places back to previous[s−1].

    The last entry of the residual stream is a constant 1. Every query is (2/d_k)(1, 0, 1, 0, ...),
    every key of head s is R_s (1, 0, 1, 0, ...), so with the frequencies θ_m = (2m + 1) π / d_k the
    score of j for i is

        mean over m of cos(θ_m (i − j − s))  =  1 if j = i − s,  0 at every other distance below d_k

    All slices have one width. d_k is even and at least max_length: exact for that many tokens.
    """
    heads, width = len(previous), token.stop - token.start
    d_k = max(max_length, heads + 1)
    d_k += d_k % 2
    theta = (np.arange(1, d_k, 2) * np.pi / d_k).astype(dtype)
    start = np.tile([1.0, 0.0], (heads, d_k // 2))
    w_q, w_k = np.zeros((2, heads, d_model, d_k), dtype)
    w_q[:, -1] = start * 2 / d_k
    w_k[:, -1] = rotate(start, *rope(np.arange(1, heads + 1), theta))
    w_v, w_o = np.zeros((heads, d_model, width), dtype), np.zeros((heads, width, d_model), dtype)
    w_v[:, token] = np.eye(width)
    for s, slot in enumerate(previous):
        w_o[s, :, slot] = np.eye(width)
    no_mlp = np.zeros((d_model, 0), dtype), np.zeros((0, d_model), dtype)
    return Layer(w_q, w_k, w_v, w_o, *no_mlp, theta)


def look_up_layer(d_model, queries, keys, value, output, dtype=np.float64):
    """A layer of one head: compares the slices `queries` with `keys`, copies `value` to `output`.

    The score of j for i is Σ_s x_i[queries[s]]·x_j[keys[s]]; θ = 0, so no position matters.
    """
    width = value.stop - value.start
    d_k = len(queries) * width
    d_k += d_k % 2
    w_q, w_k = np.zeros((2, 1, d_model, d_k), dtype)
    for s, (query, key) in enumerate(zip(queries, keys)):
        row = slice(s * width, (s + 1) * width)
        w_q[0, query, row] = w_k[0, key, row] = np.eye(width)
    w_v, w_o = np.zeros((1, d_model, width), dtype), np.zeros((1, width, d_model), dtype)
    w_v[0, value] = w_o[0, :, output] = np.eye(width)
    no_mlp = np.zeros((d_model, 0), dtype), np.zeros((0, d_model), dtype)
    return Layer(w_q, w_k, w_v, w_o, *no_mlp, theta=np.zeros(d_k // 2, dtype))


def induction_transformer(vocab_size, max_length, n_gram=2, dtype=np.float64):
    """Two layers, written down by hand, that continue a text as it went on before.

    Residual stream: token one-hot, n_gram slots for the tokens before it, an output slot, a 1.
    Layer 1 copies the n_gram previous tokens into their slots. Layer 2 compares the query
    (x_i, x_{i−1}, ...) with the key (x_{j−1}, x_{j−2}, ...) and answers with x_j: a word's logit is

        Σ_{j ≤ i, x_j = word}  (the number of s = 1 ... n_gram with x_{j−s} = x_{i+1−s})

    and layer 2's b_KV after a text is a table of counts: row (s−1)·vocab_size + a, column b, says
    how often b came s places after a. It is a vote: one long match can be outvoted by many short
    ones. φ = identity, no normalizer, no norm, no MLP. max_length bounds context and prompt
    together; `forward` checks the tokens that it is given, and who starts from biases must count
    those that made them. Raises ValueError unless all three sizes are at least 1.

    >>> from linear_transformer import generate
    >>> model = induction_transformer(vocab_size=5, max_length=20)
    >>> generate(model, [4, 0, 1, 2, 3, 4, 0], n=3)
    array([1, 2, 3])
    """
    if min(vocab_size, max_length, n_gram) < 1:
        raise ValueError(f"vocab_size {vocab_size}, max_length {max_length} and n_gram {n_gram} "
                         "must be at least 1")
    slots = [slice(s * vocab_size, (s + 1) * vocab_size) for s in range(n_gram + 2)]
    token, *previous, output = slots
    d_model = output.stop + 1
    embed, unembed = np.zeros((vocab_size, d_model), dtype), np.zeros((d_model, vocab_size), dtype)
    embed[:, token] = unembed[output] = np.eye(vocab_size)
    embed[:, -1] = 1
    layers = (previous_token_layer(d_model, token, previous, max_length, dtype),
              look_up_layer(d_model, slots[:n_gram], previous, token, output, dtype))
    return Transformer(embed, layers, unembed, phi=identity, normalize=False, norm=identity,
                       max_length=max_length)


# ---- Biases in files -----------------------------------------------------------------------------

OWN = re.compile(r"(kv|d)_\d+")  # the names of the biases' arrays


def ordinary(path):
    """The path. Raises OSError if what is there is a folder, a pipe, a device: no ordinary file."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"{path} is not an ordinary file")
    return path


def save_biases(path, biases, **more):
    """Write one Bias per layer to a .npz file, exactly at `path`; `more` are arrays beside them.

    The file is written beside `path` and then moved there: an error leaves the old one. Before
    that, raises ValueError for names in `more` that the biases use, TypeError for arrays that need
    a pickle, such as Fractions, and OSError if `path` is there and no ordinary file.
    """
    arrays = {f"{name}_{i}": a for i, b in enumerate(biases) for name, a in b._asdict().items()}
    if taken := list(filter(OWN.fullmatch, more)):
        raise ValueError(f"{', '.join(taken)}: such names are for the biases themselves")
    arrays = {name: np.asarray(a) for name, a in (arrays | more).items()}
    for name, a in arrays.items():
        if a.dtype.hasobject:
            raise TypeError(f"{name} {a.shape} has dtype {a.dtype}, which needs a pickle")
    path = os.path.realpath(ordinary(path))
    try:
        with zipfile.ZipFile(f"{path}.part", "w") as file:
            for name, a in arrays.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, a, version=(1, 0), allow_pickle=False)
        os.replace(f"{path}.part", path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        with contextlib.suppress(OSError):
            os.remove(f"{path}.part")


def read_array(file, info):
    """An array of an open .npz file. Raises ValueError, before it is read, for a wrong size."""
    with file.open(info) as member:
        version = np.lib.format.read_magic(member)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        size = info.file_size - member.tell()
        if version != (1, 0) or dtype.hasobject or size != math.prod(shape) * (dtype.itemsize or 1):
            raise ValueError(f"{info.filename} {version} cannot be {dtype} {shape} in {size} bytes")
        array = np.frombuffer(member.read(), dtype).reshape(shape, order="F" if fortran else "C")
    if dtype.kind == "U":
        set("".join(array.ravel().tolist()))  # raises if something in it is no character
    return array.copy()


def load_arrays(path):
    """All arrays of an uncompressed .npz file without pickles, as a dict.

    Raises OSError as open() does, and ValueError with its name for a file that is anything else.
    Memory and time are in proportion to the file's size, whatever it says of itself.
    """
    with open(ordinary(path), "rb") as stream:
        try:
            with zipfile.ZipFile(stream) as file:
                members, _ = file.infolist(), stream.seek(-12, os.SEEK_END)
                if not 0 < len(members) == int.from_bytes(stream.read(2), "little"):
                    raise ValueError("its directory does not list what it counts")
                if any(m.compress_type or m.compress_size != m.file_size for m in members):
                    raise ValueError("it is compressed")
                if sum(m.file_size for m in members) > os.fstat(stream.fileno()).st_size:
                    raise ValueError("its parts are larger than the whole")
                arrays = {m.filename.removesuffix(".npy"): read_array(file, m) for m in members}
                if len(arrays) < len(members):
                    raise ValueError("it has two arrays of one name")
                return arrays
        except Exception as error:  # zipfile and NumPy raise a dozen kinds for damaged files
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"{path} is not a .npz file of plain arrays: {reason}") from None


def load_biases(path, model=None):
    """The biases that `save_biases` wrote: a list of one Bias per layer.

    Raises OSError and ValueError as `load_arrays` does, and ValueError unless the file holds finite
    kv (..., d_k, d_v) and d (..., d_k) of one floating type for layers 0, 1, ... and, with a model,
    number, shapes (heads, d_k, d_v) and dtype are those of its layers.
    """
    arrays = load_arrays(path)
    found = set(filter(OWN.fullmatch, arrays))
    names = [Bias(f"kv_{i}", f"d_{i}") for i in range(len(found) // 2)]
    if not found or found != set(itertools.chain(*names)):
        raise ValueError(f"{path} does not hold a kv and a d for each of some layers 0, 1, ...")
    if model and len(names) != len(model.layers):
        raise ValueError(f"{path} holds biases of {len(names)} layers, not {len(model.layers)}")
    biases = [Bias(arrays[kv], arrays[d]) for kv, d in names]
    for i, (kv, d) in enumerate(biases):
        got = f"{path}: layer {i} has kv {kv.dtype} {kv.shape} and d {d.dtype} {d.shape}"
        if kv.ndim < 2 or kv.shape[:-1] != d.shape or kv.dtype.kind != "f" or kv.dtype != d.dtype:
            raise ValueError(f"{got}, which is no Bias")
        if not (np.isfinite(kv).all() and np.isfinite(d).all()):
            raise ValueError(f"{got}, with numbers that are not finite")
        if model:
            _, w_k, w_v, *_ = model.layers[i]
            expected = (*w_k.shape[::2], w_v.shape[-1])
            if kv.shape != expected or kv.dtype != w_k.dtype:
                raise ValueError(f"{got}, but the model's kv is {w_k.dtype} {expected}")
    return biases


# ---- Words ---------------------------------------------------------------------------------------

def split_words(text):
    """The words and punctuation marks of a text, in order, each with its combining marks."""
    text = unicodedata.normalize("NFC", text)
    marks = "\u200c\u200d" + "".join(c for c in set(text) if unicodedata.category(c)[0] == "M")
    word, marks = rf"[\w{marks}]+", f"[{marks}]*"  # most marks are not in re's \w
    mark = r"[^\w\s\x00-\x1f\x7f-\x9f]"
    return (m[0] for m in re.finditer(f"{word}(?:['’-]{word})*|-+|{mark}{marks}", text))


def join_words(words):
    """The inverse of split_words, up to spaces."""
    return re.sub(r" ([,.;:!?)\]])", r"\1", " ".join(words))


def tokens_of(words, vocabulary):
    """The tokens of words. Raises ValueError if there are none or if the vocabulary lacks one."""
    number = {word: i for i, word in enumerate(vocabulary)}
    for word in words:
        if word not in number:
            by_letters = {w.lower(): w for w in vocabulary}
            close = map(by_letters.get, difflib.get_close_matches(word.lower(), by_letters))
            raise ValueError(f"the text has no word \"{word[:40]}\"; close to it: "
                             f"{', '.join(close) or 'none'}")
    if not words:
        raise ValueError("a prompt needs at least one word")
    return [number[word] for word in words]


def read_words(path, max_words):
    """The first words of a file, or of the built-in text without one, and whether there are more.

    Reads at most a million characters. Raises OSError, or ValueError if the file is no text.
    """
    text = TEXT
    if path:
        with open(path, encoding="utf-8-sig") as file:
            try:
                text = file.read(1_000_000)
            except UnicodeDecodeError:
                raise ValueError(f"{path} is not a UTF-8 text") from None
    words = list(itertools.islice(split_words(text), max_words + 1))
    if "\0" in text:
        raise ValueError(f"{path} is not a text: it has null characters")
    if not words or max(map(len, words)) > 1000:
        raise ValueError(f"{path} has " + ("a word of over 1,000 letters" if words else "no words"))
    return words[:max_words], len(words) > max_words or len(text) == 1_000_000


# ---- The demonstration ---------------------------------------------------------------------------

INTRODUCTION = """\
A linear transformer of {layers} layers, written down by hand and not trained, has read {source}. \
It is a lookup that votes: each word that it has read gets a vote for every one of the {n_gram} \
words before it (--n-gram) that stands at the same distance from the end of the prompt. Algorithm \
1 has made biases of the text, {numbers:,} numbers ({kilobytes:,.0f} kB), and the text is not \
needed any more. The model's sizes fix how many numbers: this is no compression of the text."""

GLOSSARY = """
  Algorithm 1   ICLCA's: read the text once and keep each layer's sums
  bias          such a sum: a layer starts from it instead of from zero
  b_KV          a bias's matrix, Σ key ⊗ value over the text
  logit         a word's score to come next: here its number of votes"""


class Reader(NamedTuple):
    """A model, the words that its tokens mean, what the text became, and how long the text was."""

    model: Transformer
    words: list
    biases: list
    length: int


class Copies:
    """A matrix of which each column has one entry at most: x @ it copies, and multiplies no zeros.

    w is (heads, a, b), x is (1, n, a) or (heads, n, a). Raises ValueError for any other w.
    """

    __array_ufunc__ = None  # so that an array's @ leaves the product to __rmatmul__

    def __init__(self, w):
        self.shape, self.dtype, self.row = w.shape, w.dtype, abs(w).argmax(axis=-2)
        self.entry = np.take_along_axis(w, self.row[:, None], axis=-2)
        if np.count_nonzero(w) != np.count_nonzero(self.entry):
            raise ValueError(f"w {w.shape} has a column with more than one entry")

    def __rmatmul__(self, x):
        heads = np.broadcast_to(x, (len(self.row), *x.shape[-2:]))
        return self.entry * np.stack([h.take(row, axis=-1) for h, row in zip(heads, self.row)])


@contextlib.contextmanager
def announced(what):
    """Say on stderr what is being done, if it takes longer than a second."""
    timer = threading.Timer(1, lambda: print(f"... {what}", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def fast_model(vocab_size, max_length, n_gram):
    """The induction transformer, made of Copies. Raises ValueError if it would need over 2 GB."""
    width, length = (n_gram + 2) * vocab_size, max(max_length, n_gram)
    numbers = 2 * width * (n_gram * length + 2 * (n_gram + 1) * vocab_size + 5 * length)
    numbers += 10 * n_gram * length**2
    if 8 * numbers > 2e9:
        raise ValueError(f"the model would need {8 * numbers // 10**9:,} GB, and 2 are allowed: "
                         "lower --max-words, --n-gram or --generate, or shorten the prompt")
    model = induction_transformer(vocab_size, max_length, n_gram)
    layers = (Layer(*map(Copies, layer[:4]), *layer[4:]) for layer in model.layers)
    return model._replace(layers=tuple(layers))


def load_reader(path):
    """The Reader that --save wrote. Raises ValueError if the file is something else."""
    arrays = load_arrays(path)
    words, sizes, table = (arrays.get(name, np.zeros(0)) for name in ("words", "sizes", "kv_0"))
    if words.dtype.kind + sizes.dtype.kind == "Ui" and words.ndim == 1 and sizes.shape == (3,):
        words, (length, max_length, n_gram) = words.tolist(), sizes.tolist()
        if (1 <= length <= max_length and 1 <= n_gram * max_length * len(words) <= table.size
                and list(dict.fromkeys(split_words(" ".join(words)))) == words):
            model = fast_model(len(words), max_length, n_gram)
            biases = load_biases(path, model)
            if max(abs(a).max() for bias in biases for a in bias) < length + 1:
                return Reader(model, words, biases, length)
    raise ValueError(f"{path} was not written by --save")


def prepare(arguments):
    """The Reader, the tokens of its text ([] after --load) and of the prompts, the text's name."""
    name = os.path.basename(arguments.load or arguments.file or "the built-in text")
    prompts, n_gram, text = list(map(split_words, arguments.prompt or [])), arguments.n_gram, []
    if arguments.load:
        reader = load_reader(arguments.load)
        prompts = [tokens_of(list(prompt), reader.words) for prompt in prompts]
    else:
        words, more = read_words(arguments.file, arguments.max_words)
        name = f"{'the first ' * more}{len(words):,} words{' (--max-words)' * more} of {name}"
        places = sorted({0, len(words) // 3, 2 * len(words) // 3})
        vocabulary = list(dict.fromkeys(words))
        prompts = [tokens_of(list(prompt), vocabulary)  # mistakes are found before the long work
                   for prompt in prompts or [words[i:i + n_gram] for i in places]]
        text, room = tokens_of(words, vocabulary), max(map(len, prompts)) + arguments.generate
        with announced(f"converting {name}, {len(vocabulary):,} of them different"):
            model = fast_model(len(vocabulary), len(words) + max(64, room), n_gram)
            reader = Reader(model, vocabulary, iclca(model, text), len(words))
    if reader.length + max(map(len, prompts)) + arguments.generate > reader.model.max_length:
        room = reader.model.max_length - reader.length
        raise ValueError(f"there is room for {room:,} words after the text, prompt and --generate")
    return reader, text, prompts, name


def answer(model, tokens, n, biases=None):
    """The logits of all tokens, and the n tokens that follow, each the first with most votes."""
    logits, biases = forward(model, tokens, biases, parallel_attention)
    last, added = logits[-1], []
    for _ in range(n):
        added.append(int(np.rint(last).argmax()))  # votes are whole: rounding decides no tie
        (last,), biases = forward(model, added[-1:], biases)
    return logits, added


def row(label, text):
    """One line of the demonstration, or several of at most 79 columns."""
    return textwrap.fill(text, 79, initial_indent=f"  {label:<30}", subsequent_indent=" " * 32)


def compared(reader, text, prompt, n):
    """The lines that show how a prompt goes on with the text in context, converted, and without."""
    yield "\n" + row("prompt", join_words(reader.words[t] for t in prompt))
    settings = [("with the text in context", text + prompt, None)] if text else []
    settings += [("converted, without the text", prompt, reader.biases),
                 ("without either", prompt, None)]
    found = []
    for label, tokens, biases in settings:
        with announced(f"reading {len(tokens):,} words and adding {n:,}"):
            logits, added = answer(reader.model, tokens, n, biases)
        found.append(logits[-len(prompt):])
        words = join_words(reader.words[t] for t in added) or "(nothing, as --generate 0 asks for)"
        yield row(label, words if logits[-1].max() > 0.5 else "(no idea: no word has a vote)")
    if text:
        yield row("largest difference of logits", f"{abs(found[0] - found[1]).max():.1e}"
                  "  (in context, converted)")


def strongest_rows(reader, n_gram, count=6):
    """Lines that read the last layer's b_KV as a table: what came after what, and how often."""
    table = np.rint(reader.biases[-1].kv[0, :n_gram * len(reader.words)])
    for i in np.argsort(-table.max(axis=1), kind="stable")[:count]:
        distance, word = divmod(i, len(reader.words))
        after = f'after "{reader.words[word]}"' + " _" * distance
        best = [b for b in np.argsort(-table[i], kind="stable")[:3] if table[i, b] > 0]
        if best:
            came = ", ".join(f'"{reader.words[b]}" ({table[i, b]:.0f})' for b in best)
            yield textwrap.fill(came, 79, initial_indent=f"  {after[:40]:<24} comes ",
                                subsequent_indent=" " * 33)


def demonstration(arguments):
    """The demonstration, line by line. Raises OSError or ValueError with a message for the user."""
    reader, text, prompts, source = prepare(arguments)
    model, n_gram = reader.model, reader.model.layers[0].w_k.shape[0]
    if arguments.save:
        sizes = reader.length, model.max_length, n_gram
        save_biases(arguments.save, reader.biases, words=reader.words, sizes=sizes)
    arrays = [a for bias in reader.biases for a in bias]
    yield textwrap.fill(INTRODUCTION.format(
        layers=len(model.layers), source=source, n_gram=n_gram, numbers=sum(a.size for a in arrays),
        kilobytes=sum(a.nbytes for a in arrays) / 1e3), 79)
    yield GLOSSARY
    for prompt in prompts:
        yield from compared(reader, text, prompt, arguments.generate)
    yield "\nWhat the context has become, the last layer's b_KV (_ is any one word):"
    yield from list(strongest_rows(reader, n_gram)) or ["  (nothing has come after anything)"]
    if arguments.save:
        yield ("\nSaved. Without the text: "
               f"python docs/text_to_weights.py --load {arguments.save} --prompt ...")


# ---- The command line ----------------------------------------------------------------------------

def whole(least):
    """The type of an argument that is a whole number from `least` to a million."""
    def number(text):
        if not least <= int(text) <= 1_000_000:
            raise argparse.ArgumentTypeError(f"must be from {least} to 1,000,000, got {text}")
        return int(text)
    return number


def parse_arguments(argv):
    """The command line's arguments, checked; exits with code 2 if they are wrong."""
    parser = argparse.ArgumentParser(
        prog="text_to_weights.py", description="Turn a text into the weights of a linear "
        "transformer (ICLCA, Algorithm 1), throw the text away, and continue prompts.")
    add, add_file = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("file", nargs="?", metavar="FILE", help="a UTF-8 text; without it, a short built-in one")
    add("--prompt", action="append", metavar="TEXT", help="words to continue, all from the text; "
        "may be repeated; by default three places of the text")
    add("--generate", type=whole(0), default=6, metavar="N", help="words to add (default 6)")
    add("--n-gram", type=whole(1), default=2, metavar="K", help="words of history that the model "
        "compares (default 2)")
    add("--max-words", type=whole(1), default=1000, metavar="N", help="cut the text after so many "
        "words and punctuation marks (default 1000)")
    add_file("--save", metavar="NPZ", help="write the biases and the vocabulary to this file")
    add_file("--load", metavar="NPZ", help="answer from a file written by --save, without any text")
    arguments = parser.parse_args(argv)
    if "" in (arguments.file, arguments.save, arguments.load):
        parser.error("a file needs a name")
    if arguments.load and arguments.file:
        parser.error("--load answers without the text: leave FILE out")
    if arguments.load and not arguments.prompt:
        parser.error("--load needs a --prompt: the text is gone")
    return arguments


def show(line):
    """Print in the characters that stdout has; after an error Python's end shall not try again."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(line.encode(encoding, "replace").decode(encoding), flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def main(argv=None):
    """The command line; returns the exit code."""
    arguments = parse_arguments(argv)
    try:
        for line in demonstration(arguments):
            show(line)
        return 0
    except BrokenPipeError:  # the reader of a pipe has gone, as with | head -1: no need for words
        return 2
    except MemoryError:
        problem = "not enough memory: try a smaller --max-words or --n-gram"
    except (OSError, ValueError) as error:
        problem = error
    print(f"text_to_weights.py: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once and without a traceback
    sys.exit(main())
