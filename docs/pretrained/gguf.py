"""GGUF files of Llama's kind, such as SmolLM2-135M-Instruct, as Transformers of ours.

A file: magic, version, two counts; the metadata, each a name, a type, a value; for each tensor its
name, its shape (reversed), type and offset; the tensors, aligned. `read` gives the model, its
byte-pair `Tokenizer` and the number of key-value heads, which the query heads share in order.
"""

import math
import os
import struct
from functools import partial

import numpy as np

from linear_transformer import Layer, Transformer, identity, rope_frequencies
from pretrained.bpe import ALPHABET, GPT2, SMOLLM, Tokenizer
from pretrained.llama2c import rms_norm, swiglu

NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
half, nibbles = ("d", "<f2"), ("q", "u1", 16)
# Type: how many weights a block holds, and its bytes. F32, F16, Q4_0, Q4_1, Q8_0, Q6_K.
BLOCKS = {number: (size, np.dtype(parts)) for number, size, parts in (
    (0, 1, "<f4"), (1, 1, "<f2"), (2, 32, [half, nibbles]), (3, 32, [half, ("m", "<f2"), nibbles]),
    (8, 32, [half, ("q", "i1", 32)]),
    (14, 256, [("q", "u1", (2, 64)), ("high", "u1", (2, 1, 32)), ("scale", "i1", 16), half]))}
PATTERNS = {"gpt-2": GPT2, "smollm": SMOLLM}
SIZES = ("block_count", "context_length", "embedding_length", "feed_forward_length",
         "attention.head_count", "attention.head_count_kv")
RATES = "rope.freq_base", "attention.layer_norm_rms_epsilon"


def check(fits, message):
    if not fits:
        raise ValueError(message)


def weights(kind, raw):
    """Blocks (..., n) as numbers (..., n · size), in float32: for most d · q, for Q4_1 d · q + m."""
    if kind < 2:
        return raw.astype("f")
    d, q = raw["d"].astype("f")[..., None], raw["q"]
    if kind < 8:        # four bits each, the low ones first
        q = np.concatenate([q & 15, q >> 4], axis=-1).astype("f") - 8 * (kind == 2)
    if kind == 14:      # four bits and two more, d times a scale for each 16
        high = (raw["high"] >> np.array([[0], [2], [4], [6]], "u1") & 3) << 4
        q = np.concatenate([q & 15, q >> 4], axis=-1) | high.reshape(*q.shape[:-1], 128)
        q = q.reshape(*raw.shape, 256) - np.float32(32)
        d = d * np.repeat(raw["scale"], 16, axis=-1)
    x = d * q + (raw["m"].astype("f")[..., None] if kind == 3 else 0)
    return x.reshape(*raw.shape[:-1], -1)


def read_header(file):
    """The metadata, and {name: (shape, type, place in the file)} of all tensors."""
    def take(n):
        check(file.tell() + n <= min(size, 1 << 26), f"byte {file.tell() + n} is not of a header")
        return file.read(n)

    def number(kind):
        return struct.unpack("<" + kind, take(struct.calcsize("<" + kind)))[0]

    def string():
        return take(number("Q")).decode()

    def value(kind):
        if kind != ARRAY:
            return string() if kind == STRING else number(NUMBERS[kind])
        kind, n = number("I"), number("Q")
        if kind == STRING:
            return [string() for _ in range(n)]
        return np.frombuffer(take(n * struct.calcsize("<" + NUMBERS[kind])), "<" + NUMBERS[kind])

    def tensor():
        shape = [number("Q") for _ in range(min(number("I"), 9))][::-1]
        return shape, number("I"), number("Q")

    size = os.fstat(file.fileno()).st_size
    check((take(4), number("I")) in ((b"GGUF", 2), (b"GGUF", 3)), "no GGUF of version 2 or 3")
    n_tensors, n_pairs = number("Q"), number("Q")
    pairs = [(string(), value(number("I"))) for _ in range(n_pairs)]
    found = [(string(), tensor()) for _ in range(n_tensors)]
    meta, tensors = dict(pairs), dict(found)
    check((len(meta), len(tensors)) == (n_pairs, n_tensors), "a name is there twice")
    align = meta.get("general.alignment", 32)
    check(type(align) is int and 0 < align <= 4096, f"general.alignment is {align}")
    end = start = -(-file.tell() // align) * align
    for name, (shape, kind, offset) in found:
        block, parts = BLOCKS.get(kind, (0, None))
        check(block and shape and all(shape) and shape[-1] % block == 0 and offset == end - start,
              f"{name} is of type {kind}, shape {shape}, and {offset - end + start} bytes off")
        tensors[name] = shape, kind, end
        end += -(-math.prod(shape) // block * parts.itemsize // align) * align
    check(end - align < size <= end, f"{size} bytes where {end} are named: truncated or too long")
    return meta, tensors


def read_tensor(file, shape, kind, place):
    """One tensor, as numbers in float32."""
    size, parts = BLOCKS[kind]
    file.seek(place)
    return weights(kind, np.fromfile(file, parts, math.prod(shape) // size)).reshape(shape)


def read_tokenizer(meta):
    """The metadata's byte-pair tokenizer; types 3 and 4 are special."""
    tokens, kinds, merges, model, name = (meta["tokenizer.ggml." + key] for key in (
        "tokens", "token_type", "merges", "model", "pre"))
    check(model == "gpt2" and name in PATTERNS, f"the tokenizer {model}, {name} is not known here")
    ids = {token: i for i, token in enumerate(tokens)}
    ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
    check(len(tokens) == len(ids) == len(kinds) and "" not in ids, "tokens must be all different")
    check(len(ranks) == len(merges) and all(len(pair) == 2 and {*pair, "".join(pair)} <= ids.keys()
                                            for pair in ranks), "merges must be of two tokens")
    special = [token for token, kind in zip(tokens, kinds) if kind in (3, 4)]
    return Tokenizer(ids, ranks, PATTERNS[name], tuple(sorted(special, key=len, reverse=True)))


def build(get, vocab, depth, max_length, d, d_ff, heads, kv_heads, base, eps, tied):
    """Llama as a Transformer of ours: gains folded in, key-value heads repeated for their queries."""
    def layer(i):
        def w(name, *shape):
            return get(f"blk.{i}.{name}.weight", *shape)

        gain, mlp_gain = w("attn_norm", d)[:, None], w("ffn_norm", d)[:, None]
        qkv = (np.repeat(w(name, n * d_k, d).reshape(n, d_k, d).mT * gain, heads // n, axis=0)
               for name, n in (("attn_q", heads), ("attn_k", kv_heads), ("attn_v", kv_heads)))
        gate_up = np.concatenate([w("ffn_gate", d_ff, d), w("ffn_up", d_ff, d)]).T * mlp_gain
        return Layer(*qkv, w("attn_output", d, d).T.reshape(heads, d_k, d), gate_up,
                     w("ffn_down", d, d_ff).T, theta)

    d_k, embed = d // heads, get("token_embd.weight", vocab, d)
    theta = rope_frequencies(d_k, base).astype(embed.dtype)
    unembed = (embed if tied else get("output.weight", vocab, d)) * get("output_norm.weight", d)
    return Transformer(embed, tuple(map(layer, range(depth))), unembed.T, phi=identity,
                       norm=partial(rms_norm, eps=eps), activation=swiglu, max_length=max_length)


def read(path, dtype=np.float32):
    """(model, tokenizer, number of key-value heads). ValueError for a file that is not sound."""
    def get(name, *shape):
        found, *where = tensors.pop(name)
        check(found == [*shape], f"{name} must have the shape {shape}, not {found}")
        x = read_tensor(file, found, *where).astype(dtype, copy=False)
        check(np.abs(x).max() < 1e6, f"{name} has entries that are no numbers, or no trained ones")
        return x

    try:
        with open(path, "rb") as file, np.errstate(all="ignore"):
            meta, tensors = read_header(file)
            check(meta["general.architecture"] == "llama", "its architecture must be llama")
            ours = {key[6:]: value for key, value in meta.items() if key.startswith("llama.")}
            sizes, base, eps = [ours.pop(key) for key in SIZES], *map(ours.pop, RATES)
            check(all(type(n) is int and n > 0 for n in sizes) and min(base, eps) > 0, "its sizes")
            _, _, d, _, heads, kv_heads = sizes
            check(d % (2 * heads) == heads % kv_heads == 0, f"{heads}, {kv_heads} heads for {d}")
            tokenizer = read_tokenizer(meta)
            implied = dict.fromkeys(("rope.dimension_count", "attention.key_length",
                                     "attention.value_length"), d // heads)
            for key, value in ours.items():   # such as rope.scaling.factor
                check(value == (implied | {"vocab_size": len(tokenizer.ids)}).get(key),
                      f"llama.{key} = {value} is not what is read here")
            model = build(get, len(tokenizer.ids), *sizes, base, float(f"{eps:.6g}"),
                          "output.weight" not in tensors)
            check(not tensors, f"{[*tensors][:9]} have no place in such a model")
            return model, tokenizer, kv_heads
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError,
            struct.error) as error:
        raise ValueError(f"{path} is not sound: {type(error).__name__}: {error}") from None


def write_tiny(path, rng):
    """A tiny random model with tensors of every type, four heads for two, words of a few letters."""
    def string(text):
        return struct.pack("<Q", len(text.encode())) + text.encode()

    def value(x):
        if isinstance(x, list):
            text = isinstance(x[0], str)
            return struct.pack("<IIQ", ARRAY, STRING if text else 4, len(x)) + b"".join(
                string(entry) if text else struct.pack("<I", entry) for entry in x)
        kind = {str: STRING, int: 4, float: 6}[type(x)]
        return struct.pack("<I", kind) + (
            string(x) if kind == STRING else struct.pack("<" + NUMBERS[kind], x))

    merges = ["h e", "Ġ t", "Ġt he", "i n", "Ġ a", "e r"]
    tokens = ["<|endoftext|>", *sorted(ALPHABET), *(merge.replace(" ", "") for merge in merges)]
    vocab, d, d_ff, d_kv = len(tokens), 32, 256, 16
    meta = dict(zip(["llama." + key for key in SIZES + RATES], (2, 2048, d, d_ff, 4, 2, 1e5, 1e-5)))
    meta |= {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2",
             "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
             "tokenizer.ggml.token_type": [3] + [1] * (vocab - 1), "tokenizer.ggml.merges": merges}
    tensors = [("token_embd", (vocab, d), 8), ("output_norm", (d,), 0)]
    tensors += [(f"blk.{i}.{name}", shape, kind) for i in (0, 1) for name, shape, kind in (
        ("attn_norm", (d,), 0), ("attn_q", (d, d), 3), ("attn_k", (d_kv, d), 2),
        ("attn_v", (d_kv, d), 1), ("attn_output", (d, d), 8), ("ffn_norm", (d,), 0),
        ("ffn_gate", (d_ff, d), 3), ("ffn_up", (d_ff, d), 2), ("ffn_down", (d, d_ff), 14))]
    head, data = b"", b""
    for name, shape, kind in tensors:
        size, parts = BLOCKS[kind]
        n = math.prod(shape) // size
        raw = rng.standard_normal(n) / 6 + ("norm" in name)
        if kind > 1:    # random bytes, with scales that make weights of the same size
            blocks = np.frombuffer(rng.bytes(n * parts.itemsize), parts).copy()
            blocks["d"] = {8: .002, 14: 1e-4}.get(kind, .03)
            if kind == 3: blocks["m"] = -.2
            raw = blocks
        head += string(name + ".weight") + struct.pack(
            f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(data))
        data += raw.astype(parts).tobytes()
        data += bytes(-len(data) % 32)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(meta)) + b"".join(
        string(key) + value(x) for key, x in meta.items()) + head
    path.write_bytes(head + bytes(-len(head) % 32) + data)
