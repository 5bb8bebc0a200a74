"""GGUF files of Llama's kind, such as SmolLM2-135M-Instruct, as Transformers of ours.

A file: magic, version, two counts; the metadata, each a name, a type, a value; for each tensor its
name, its shape (reversed), type and offset; the tensors, aligned. Weights are in blocks.
"""

import math
import os
import struct
from functools import partial

import numpy as np

from linear_transformer import Layer, Transformer, identity, rope_frequencies
from pretrained.bpe import ALPHABET, GPT2, SMOLLM, Tokenizer, check, sound
from pretrained.llama2c import rms_norm, swiglu

NUMBERS, STRING, ARRAY = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}, 8, 9
D, NIBBLES = ("d", "<f2"), ("q", "u1", 16)
# Type: how many weights are in a block, and its parts. F32, F16, Q4_0, Q4_1, Q8_0.
BLOCKS = {kind: (size, np.dtype(parts)) for kind, size, parts in (
    (0, 1, "<f4"), (1, 1, "<f2"), (2, 32, [D, NIBBLES]), (3, 32, [D, ("m", "<f2"), NIBBLES]),
    (8, 32, [D, ("q", "i1", 32)]))}
SIZES = ("block_count", "context_length", "embedding_length", "feed_forward_length",
         "attention.head_count", "attention.head_count_kv")
RATES = "rope.freq_base", "attention.layer_norm_rms_epsilon"


def weights(kind, raw):
    """Blocks (n,) as numbers (n, size) in float32; nibbles are 16 low ones, then 16 high ones."""
    if kind < 2:
        return raw.astype("f")
    d, q = raw["d"].astype("f")[:, None], raw["q"]
    q = q if kind == 8 else np.concatenate([q & 15, q >> 4], axis=-1)
    if kind == 3:
        return d * q + raw["m"].astype("f")[:, None]
    return d * (q.astype("f") - 8 * (kind == 2))


def read_header(file):
    """The metadata, and {name: (shape, type, place in the file)} of all tensors."""
    def take(n):
        check(file.tell() + n <= min(size, 1 << 26), f"byte {file.tell() + n} is not of a header")
        return file.read(n)

    def number(kind):
        return struct.unpack("<" + kind, take(struct.calcsize("<" + kind)))[0]

    def value(kind):
        if kind == STRING:
            return take(number("Q")).decode()
        if kind != ARRAY:
            return number(NUMBERS[kind])
        kind, n = number("I"), number("Q")
        check(n < 1 << 20, f"an array of {n}")
        if kind == STRING:
            return [value(kind) for _ in range(n)]
        return np.frombuffer(take(n * struct.calcsize("<" + NUMBERS[kind])), "<" + NUMBERS[kind])

    size = os.fstat(file.fileno()).st_size
    check((take(4), number("I")) in ((b"GGUF", 2), (b"GGUF", 3)), "no GGUF of version 2 or 3")
    n_tensors, n_pairs = number("Q"), number("Q")
    check(max(n_tensors, n_pairs) < 1 << 16, f"{n_tensors} tensors, {n_pairs} pairs of metadata")
    pairs = [(value(STRING), value(number("I"))) for _ in range(n_pairs)]
    found = [(value(STRING), [number("Q") for _ in range(min(number("I"), 9))][::-1], number("I"),
              number("Q")) for _ in range(n_tensors)]
    meta, tensors = dict(pairs), {}
    align = meta.get("general.alignment", 32)
    check(type(align) is int and 0 < align <= 4096, f"general.alignment is {align}")
    end = start = -(-file.tell() // align) * align
    for name, shape, kind, offset in found:
        block, parts = BLOCKS.get(kind, (0, None))
        check(block and shape and all(shape) and shape[-1] % block == 0 and offset == end - start,
              f"{name} has type {kind}, shape {shape}, {offset - end + start} bytes off its place")
        tensors[name] = shape, kind, end
        end += -(-math.prod(shape) // block * parts.itemsize // align) * align
    check(end - align < size <= end, f"{size} bytes where {end} are named: truncated or too long")
    check(len(meta) + len(tensors) == n_pairs + n_tensors, "a name is there twice")
    return meta, tensors


def read_tokenizer(meta):
    """The metadata's byte-pair tokenizer; tokens of the types 3 and 4 are special."""
    tokens, kinds, merges, model, name = (meta["tokenizer.ggml." + key] for key in (
        "tokens", "token_type", "merges", "model", "pre"))
    pattern = {("gpt2", "gpt-2"): GPT2, ("gpt2", "smollm"): SMOLLM}[model, name]
    ids = {token: i for i, token in enumerate(tokens)}
    ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
    check(len(tokens) == len(ids) == len(kinds) and "" not in ids, "tokens must be all different")
    check(len(ranks) == len(merges) and all(len(pair) == 2 and {*pair, "".join(pair)} <= ids.keys()
                                            for pair in ranks), "merges must be of two tokens")
    special = (token for token, kind in zip(tokens, kinds) if kind in (3, 4))
    return Tokenizer(ids, ranks, pattern, tuple(special))


def build(get, vocab, tied, depth, max_length, d, d_ff, heads, kv_heads, base, eps):
    """Llama as a Transformer: gains in the matrices after them, key-value heads repeated."""
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
        found, kind, place = tensors.pop(name)
        check(found == [*shape], f"{name} must have the shape {shape}, not {found}")
        file.seek(place)
        raw = np.fromfile(file, BLOCKS[kind][1], math.prod(shape) // BLOCKS[kind][0])
        x = weights(kind, raw).reshape(shape).astype(dtype, copy=False)
        check(abs(x).max() < 1e6, f"{name} has entries that are no numbers, or no trained ones")
        return x

    with sound(path), open(path, "rb") as file, np.errstate(all="ignore"):
        meta, tensors = read_header(file)
        check(meta["general.architecture"] == "llama", "its architecture must be llama")
        ours = {key[6:]: value for key, value in meta.items() if key.startswith("llama.")}
        *sizes, base, eps = map(ours.pop, SIZES + RATES)
        check(all(type(n) is int and n > 0 for n in sizes), f"its sizes are {sizes}")
        check(1 <= base < 1e9 and 0 < eps < 1, f"its rotary base is {base}, its epsilon {eps}")
        d, heads, kv_heads = sizes[2], *sizes[4:]
        check(d % (2 * heads) == heads % kv_heads == 0, f"{heads}, {kv_heads} heads for {d}")
        tokenizer = read_tokenizer(meta)
        implied = {"vocab_size": len(tokenizer.ids)} | dict.fromkeys(
            ("rope.dimension_count", "attention.key_length", "attention.value_length"), d // heads)
        check(ours.items() <= implied.items(), f"not all of {ours} is as it is read here")
        model = build(get, len(tokenizer.ids), "output.weight" not in tensors, *sizes, base,
                      float(f"{eps:.6g}"))
        check(not tensors, f"{[*tensors][:9]} have no place in such a model")
    return model, tokenizer, kv_heads


def write_tiny(path, rng):
    """A tiny random model: tensors of every type, two key-value heads for four, a few merges."""
    def pack(x):
        if isinstance(x, list):
            return b"".join([struct.pack("<I", ARRAY), pack(x[0])[:4], struct.pack("<Q", len(x)),
                             *(pack(entry)[4:] for entry in x)])
        kind = {str: STRING, int: 4, float: 6}[type(x)]
        return struct.pack("<I", kind) + (struct.pack("<" + NUMBERS[kind], x) if kind != STRING
                                          else struct.pack("<Q", len(x.encode())) + x.encode())

    def get(name, *shape):    # random bytes as blocks, their scales so that weights are about 1/6
        kind = 0 if "norm" in name else (8, 3, 2, 1)[len(heads) % 4]
        size, parts = BLOCKS[kind]
        raw = (rng.standard_normal(math.prod(shape) // size) / 6 + ("norm" in name)).astype(parts)
        if kind > 1:
            raw = np.frombuffer(rng.bytes(raw.nbytes), parts).copy()
            raw["d"] = .002 if kind == 8 else .03
        if kind == 3:
            raw["m"] = -.2
        heads.append(pack(name)[4:] + struct.pack(
            f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, sum(map(len, data))))
        data.append(raw.tobytes() + bytes(-raw.nbytes % 32))
        return np.zeros(shape)

    heads, data, sizes = [], [], (2, 2048, 32, 64, 4, 2, 1e5, 1e-5)
    merges = ["h e", "Ġ t", "Ġt he", "i n", "Ġ a", "e r"]
    tokens = ["<|endoftext|>", *sorted(ALPHABET), *(merge.replace(" ", "") for merge in merges)]
    meta = dict(zip(["llama." + key for key in SIZES + RATES], sizes)) | {
        "general.architecture": "llama", "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges, "tokenizer.ggml.token_type": [3] + [1] * len(tokens[1:])}
    build(get, len(tokens), True, *sizes)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(heads), len(meta)) + b"".join(
        [pack(key)[4:] + pack(x) for key, x in meta.items()] + heads)
    path.write_bytes(head + bytes(-len(head) % 32) + b"".join(data))
