"""GPT-2 in NumPy, its context converted approximately (ICLCA §6.4).

Reads the release folder of GPT-2 (config.json, model.safetensors, vocab.json, merges.txt), or makes a small random
GPT-2, and prints how a prompt goes on with the context in front, with the context converted into biases, and without,
and the relative errors of the logits. The paper's figures for GPT-2 are 16.56% dropped and 9.17% converted.

    python docs/experiments/gpt2.py [FOLDER] [--context TEXT] [--prompt TEXT] [--features random|orthogonal|landmark] [--m M]

GPT-2's positions are absolute, so Assumption 4.3 fails: a prompt whose positions started again from 0 would get other
queries and keys. The converted model keeps the prompt's positions as if the context were there (`Converted.length`).
"""

import argparse
import json
import math
import re
import sys
import unicodedata
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from iclca_ref import (farthest_rows, gaussian_projection, landmark_features, orthogonal_projection, random_features,
                       softmax_attention_with_bias, softmax_bias)
from linear_transformer import gelu, softmax_attention


# ---- The model ------------------------------------------------------------------------------------------------------

class Layer(NamedTuple):
    """One block; matrices are (in, out), as in the release's Conv1D."""

    ln_1: tuple      # gain (d,), offset (d,); likewise ln_2
    c_attn: tuple    # weight (d, 3d), bias (3d,): queries, keys, values
    attn_proj: tuple  # (d, d), (d,)
    ln_2: tuple
    c_fc: tuple      # (d, 4d), (4d,)
    mlp_proj: tuple  # (4d, d), (d,)


class GPT2(NamedTuple):
    wte: np.ndarray  # (vocab_size, d), also the unembedding
    wpe: np.ndarray  # (n_positions, d)
    layers: tuple
    ln_f: tuple
    n_head: int
    eps: float = 1e-5


class Converted(NamedTuple):
    """What a context has become: a (Bias, features) for each layer, and its length, from which positions go on."""

    layers: list
    length: int


def normalize(x, ln, eps):
    """(x − mean) / √(variance + eps) · gain + offset."""
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / np.sqrt((centered * centered).mean(axis=-1, keepdims=True) + eps) * ln[0] + ln[1]


def linear(x, weights):
    """x W + b: GPT-2's Conv1D."""
    return x @ weights[0] + weights[1]


def run(model, ids, start, attend):
    """The logits (n, vocab_size) of ids (n,) at the positions start, start + 1, ...; attend(i, q, k, v) is layer i's."""
    ids, n = np.asarray(ids), len(ids)
    if ids.ndim != 1 or not n or ids.dtype.kind not in "iu" or not 0 <= ids.min() <= ids.max() < len(model.wte):
        raise ValueError(f"ids must be at least one integer from 0 to {len(model.wte) - 1}, got {ids.dtype} {ids.shape}")
    if start + n > len(model.wpe):
        raise ValueError(f"{start} + {n} tokens are more than the model's {len(model.wpe)} positions")
    x = model.wte[ids] + model.wpe[start:start + n]
    for i, layer in enumerate(model.layers):
        qkv = linear(normalize(x, layer.ln_1, model.eps), layer.c_attn)
        q, k, v = qkv.reshape(n, 3, model.n_head, -1).transpose(1, 2, 0, 3)          # (heads, n, d_k) each
        x = x + linear(attend(i, q, k, v).transpose(1, 0, 2).reshape(n, -1), layer.attn_proj)
        x = x + linear(gelu(linear(normalize(x, layer.ln_2, model.eps), layer.c_fc)), layer.mlp_proj)
    return normalize(x, model.ln_f, model.eps) @ model.wte.T


def forward(model, ids, biases=None):
    """The logits (n, vocab_size) of ids (n,), after the context that `biases` (a Converted) stands for."""
    if biases is None:
        return run(model, ids, 0, lambda i, q, k, v: softmax_attention(q, k, v))

    def attend(i, q, k, v):  # in float64, where the features of long keys fit: see landmark_features
        o = softmax_attention_with_bias(*(x.astype(np.float64) for x in (q, k, v)), *biases.layers[i])
        return o.astype(q.dtype)

    return run(model, ids, biases.length, attend)


def convert(model, ids, features_of):
    """A context as biases (ICLAA): features_of(k) makes a layer's features from its keys (heads, m, d_k) / d_k^(1/4)."""
    layers = []

    def attend(i, q, k, v):
        k64 = k.astype(np.float64)
        features = features_of(k64 / k.shape[-1] ** 0.25)
        layers.append((softmax_bias(k64, v.astype(np.float64), features), features))
        return softmax_attention(q, k, v)

    run(model, ids, 0, attend)
    return Converted(layers, len(ids))


def generate(model, ids, n, biases=None):
    """The n ids that continue `ids`, greedily; each is one pass over all, without a cache."""
    text = list(ids)
    for _ in range(n):
        text.append(int(forward(model, text, biases)[-1].argmax()))
    return text[len(ids):]


# ---- The release folder ---------------------------------------------------------------------------------------------

SIZES = dict(F64=8, I64=8, U64=8, F32=4, I32=4, U32=4, F16=2, BF16=2, I16=2, U16=2, I8=1, U8=1, BOOL=1)


def check_header(header, data_size):
    """{name: (dtype, shape, begin, end)} of a safetensors header. Raises ValueError that names the tensor that is wrong."""
    tensors = {}
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            numbers = (*shape, begin, end)
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{name} must have dtype, shape and two data_offsets, got {entry!r:.200}") from None
        if any(type(x) is not int or x < 0 for x in numbers):
            raise ValueError(f"{name}: shape {shape} and offsets {begin}, {end} must be non-negative integers")
        if not isinstance(dtype, str) or dtype not in SIZES:
            raise ValueError(f"{name} has the unknown dtype {dtype!r}")
        if end - begin != SIZES[dtype] * math.prod(shape):
            raise ValueError(f"{name} is {dtype} {shape} but has {end - begin} bytes")
        if end > data_size:
            raise ValueError(f"{name} ends at byte {end} of {data_size}: truncated")
        tensors[name] = dtype, shape, begin, end
    here = 0
    for name, (_, _, begin, end) in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if begin != here:
            raise ValueError(f"{name} begins at byte {begin}, not {here}: tensors must neither overlap nor leave gaps")
        here = end
    if here != data_size:
        raise ValueError(f"{data_size - here} bytes belong to no tensor")
    return tensors


def read_safetensors(path, wanted=lambda name: True):
    """The tensors of a .safetensors file as float32 arrays, by name: those for which wanted(name) is true.

    The format: the length of the header (8 bytes, little-endian), the header in JSON with dtype, shape and data_offsets
    of each tensor, then the tensors, row by row and without gaps. F32, F16, BF16 and F64 are read. The whole header is
    checked before anything is read. Raises ValueError with the tensor's name for whatever does not fit.
    """
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > size:
            raise ValueError(f"{path}: truncated: the header should end at byte {start} of {size}")
        try:
            header = json.loads(file.read(start - 8))
            tensors = check_header({k: t for k, t in header.items() if k != "__metadata__"}, size - start)
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: not a sound safetensors header: {error}") from None
        arrays = {}
        for name in filter(wanted, tensors):
            dtype, shape, begin, end = tensors[name]
            if dtype not in ("F32", "F16", "BF16", "F64"):
                raise ValueError(f"{path}: {name} is {dtype}, not a floating type")
            file.seek(start + begin)
            raw = np.frombuffer(file.read(end - begin), "<u2" if dtype == "BF16" else f"<f{SIZES[dtype]}")
            if dtype == "BF16":  # the upper half of a float32
                raw = (raw.astype("<u4") << 16).view("<f4")
            arrays[name] = raw.astype(np.float32).reshape(shape)
    return arrays


def read_json(path):
    """A JSON object. Raises ValueError if the file holds something else."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def load(folder):
    """The model in a release folder: config.json and model.safetensors, or its shards with model.safetensors.index.json.

    Raises ValueError that names the tensor if one is missing or has another shape than the configuration says, and
    OSError for a missing file.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    try:
        vocab, positions, d, n_layer, n_head = (config[key] for key in ("vocab_size", "n_positions", "n_embd", "n_layer",
                                                                        "n_head"))
        if any(type(x) is not int or x < 1 for x in (vocab, positions, d, n_layer, n_head)) or d % n_head:
            raise ValueError("sizes must be positive integers and n_head must divide n_embd")
        if config.get("activation_function", "gelu_new") != "gelu_new":
            raise ValueError(f"the activation {config['activation_function']!r} is not GPT-2's gelu_new")
        inner, eps = config.get("n_inner") or 4 * d, float(config.get("layer_norm_epsilon", 1e-5))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'}: {error!r}") from None
    shapes = {"wte.weight": (vocab, d), "wpe.weight": (positions, d), "ln_f.weight": (d,), "ln_f.bias": (d,)}
    parts = {"ln_1": (d,), "attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "ln_2": (d,), "mlp.c_fc": (d, inner),
             "mlp.c_proj": (inner, d)}
    for i in range(n_layer):
        for part, shape in parts.items():
            shapes |= {f"h.{i}.{part}.weight": shape, f"h.{i}.{part}.bias": shape[-1:]}

    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = read_json(index).get("weight_map", {})
        if not isinstance(files, dict) or any(not isinstance(f, str) or Path(f).name != f for f in files.values()):
            raise ValueError(f"{index}: weight_map must name files of the folder")
        files = sorted(set(files.values()))
    else:
        files = ["model.safetensors"]
    stored = {}
    for file in files:
        stored |= read_safetensors(folder / file, lambda name: name.removeprefix("transformer.") in shapes)
    stored = {name.removeprefix("transformer."): a for name, a in stored.items()}
    for name, shape in shapes.items():
        if name not in stored:
            raise ValueError(f"{folder}: the tensor {name} is missing")
        if stored[name].shape != shape:
            raise ValueError(f"{folder}: {name} is {stored[name].shape}, the configuration needs {shape}")

    def pair(name):
        return stored[name + ".weight"], stored[name + ".bias"]

    layers = tuple(Layer(*(pair(f"h.{i}.{part}") for part in parts)) for i in range(n_layer))
    return GPT2(stored["wte.weight"], stored["wpe.weight"], layers, pair("ln_f"), n_head, eps)


def random_gpt2(rng, vocab_size=256, n_positions=256, d=64, n_layer=4, n_head=4, dtype=np.float32):
    """A GPT-2 with random weights of variance 1 / fan-in; over bytes by default."""
    def matrix(rows, columns):
        return rng.standard_normal((rows, columns), dtype) / math.sqrt(rows), np.zeros(columns, dtype)

    def ln():
        return np.ones(d, dtype), np.zeros(d, dtype)

    layers = tuple(Layer(ln(), matrix(d, 3 * d), matrix(d, d), ln(), matrix(d, 4 * d), matrix(4 * d, d))
                   for _ in range(n_layer))
    wte, wpe = (rng.standard_normal((rows, d), dtype) / math.sqrt(d) for rows in (vocab_size, n_positions))
    return GPT2(wte, wpe, layers, ln(), n_head)


# ---- Text: GPT-2's byte-level byte-pair encoding -----------------------------------------------------------------------

class Tokenizer(NamedTuple):
    ids: dict    # token, in the alphabet of `BYTES`, -> id
    ranks: dict  # (left, right) -> rank of the merge


# GPT-2 writes each byte as a printable character: itself where it is one, else the next one from 256 on.
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
BYTES = {b: chr(b) if b in PRINTABLE else chr(256 + sum(x not in PRINTABLE for x in range(b))) for b in range(256)}

# GPT-2's pattern, 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+, on the stand-ins of `stand_in`
SPLIT = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[a-zA-Z]+| ?[0-9]+| ?[^\sa-zA-Z0-9]+|\s+(?!\S)|\s+", re.ASCII)


def stand_in(character):
    """An ASCII character of the same class (letter, number, space, other), which `re` can match without \\p{L}."""
    if character < "\x1c" or " " <= character <= "\x7f":
        return character
    if character.isspace() and character > "\x1f":
        return "\t"
    return {"L": "a", "N": "0"}.get(unicodedata.category(character)[0], "!")


def split(text):
    """The pieces of a text that are encoded one by one, as GPT-2 splits it; together they are the text."""
    return [text[m.start():m.end()] for m in SPLIT.finditer("".join(map(stand_in, text)))]


def merge(piece, ranks):
    """Byte-pair encoding of one piece: join the pair of lowest rank, everywhere, until no pair has a rank."""
    parts = [BYTES[b] for b in piece.encode("utf-8", "surrogatepass")]
    while len(parts) > 1:
        best = min(zip(parts, parts[1:]), key=lambda pair: ranks.get(pair, math.inf))
        if best not in ranks:
            break
        joined, i = [], 0
        while i < len(parts):
            width = 2 if tuple(parts[i:i + 2]) == best else 1
            joined.append("".join(parts[i:i + width]))
            i += width
        parts = joined
    return parts


def encode(text, tokenizer):
    """The ids of a text. Raises ValueError if a part of it is not in the vocabulary."""
    parts = [part for piece in split(text) for part in merge(piece, tokenizer.ranks)]
    unknown = next((part for part in parts if part not in tokenizer.ids), None)
    if unknown is not None:
        raise ValueError(f"the vocabulary has no token {unknown!r}")
    return [tokenizer.ids[part] for part in parts]


@lru_cache(maxsize=1)
def byte_of():
    return {character: b for b, character in BYTES.items()}


def decode(ids, tokenizer):
    """The text of ids; bytes that are no UTF-8 become the replacement character."""
    tokens = {i: token for token, i in tokenizer.ids.items()}
    characters = "".join(tokens[i] for i in ids)
    return bytes(b for c in characters for b in ([byte_of()[c]] if c in byte_of() else c.encode())).decode("utf-8", "replace")


def load_tokenizer(folder):
    """vocab.json and merges.txt of a release folder."""
    folder = Path(folder)
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{folder / 'merges.txt'}: every line must be two tokens")
    return Tokenizer(read_json(folder / "vocab.json"), {pair: rank for rank, pair in enumerate(pairs)})


def byte_tokenizer():
    """One token for each byte, no merges: for a random GPT-2."""
    return Tokenizer({character: b for b, character in BYTES.items()}, {})


# ---- The experiment -------------------------------------------------------------------------------------------------

def features_maker(kind, m, rng, d_k):
    """features_of for `convert`: m random or orthogonal features, or m of the context's keys as landmarks."""
    if kind == "landmark":
        return lambda k: landmark_features(farthest_rows(k, min(m, k.shape[-2])))
    projection = dict(random=gaussian_projection, orthogonal=orthogonal_projection)[kind](rng, m, d_k)
    return lambda k: partial(random_features, projection=projection)


def main(argv=None):
    parser = argparse.ArgumentParser(description="GPT-2 with its context converted into biases (ICLCA §6.4).")
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="GPT-2's release folder; without it, random weights")
    parser.add_argument("--context", default="The company was founded by Bill Gates and Paul Allen. Its name is Microsoft.",
                        metavar="TEXT", help="what is converted")
    parser.add_argument("--prompt", default=" The name of the company is", metavar="TEXT", help="what is continued")
    parser.add_argument("--features", choices=["random", "orthogonal", "landmark"], default="landmark")
    parser.add_argument("--m", type=int, default=64, metavar="M", help="number of features (default 64)")
    parser.add_argument("--generate", type=int, default=12, metavar="N", help="tokens to add (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default 0)")
    parser.add_argument("--quick", action="store_true", help="add 2 tokens only")
    arguments = parser.parse_args(argv)
    if arguments.m < 1 or arguments.generate < 0:
        parser.error("--m must be at least 1 and --generate at least 0")
    rng = np.random.default_rng(arguments.seed)
    try:
        if arguments.folder:
            model, tokenizer = load(arguments.folder), load_tokenizer(arguments.folder)
        else:
            model, tokenizer = random_gpt2(rng), byte_tokenizer()
            print("No folder: a small GPT-2 with random weights over bytes, so the words mean nothing.\n")
        context, prompt = encode(arguments.context, tokenizer), encode(arguments.prompt, tokenizer)
        n, d_k = 2 if arguments.quick else arguments.generate, model.wte.shape[1] // model.n_head
        biases = convert(model, context, features_maker(arguments.features, arguments.m, rng, d_k))
        expected = forward(model, context + prompt)[len(context):]
        rows = [("with the context in front", generate(model, context + prompt, n), expected),
                (f"converted, {arguments.features} m = {arguments.m}", generate(model, prompt, n, biases),
                 forward(model, prompt, biases)),
                ("dropped", generate(model, prompt, n), forward(model, prompt))]
    except (OSError, ValueError) as error:
        print(f"gpt2.py: {error}", file=sys.stderr)
        return 2
    print(f"context: {len(context)} tokens, prompt: {len(prompt)} tokens\n")
    print(f"{'':28}{'relative error of logits':>25}   continuation")
    for label, continuation, logits in rows:
        error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
        print(f"{label:28}{error:>25.2%}   {decode(continuation, tokenizer)!r}")
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8
    sys.exit(main())
