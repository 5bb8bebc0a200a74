"""llama2.c's models of Llama's kind (Karpathy), such as stories15M: their two files, their texts.

A model is a `Transformer` of ours as it stands: RMS norm, whose gains are folded into the
matrices after it, softmax attention with rotary positions, and an MLP whose halves multiply.
"""

import math
import struct

import numpy as np

from linear_transformer import Layer, Transformer, identity, rope_frequencies
from pretrained.bpe import join


def swiglu(h):
    """silu(a) · b for the halves a, b of h (..., 2 d_ff)."""
    a, b = np.split(h, 2, axis=-1)
    return a * b / (1 + np.exp(np.minimum(-a, 80)))    # exp(80) still fits a float32


def rms_norm(x, eps=1e-5):
    """x / √(mean of squares + eps); the gains are in the matrices after it."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)


def shapes_of(d, d_ff, depth, heads, _, vocab, positions):
    """The arrays of stories15M.bin in their order; a negative vocab says that unembed follows."""
    return [(abs(vocab), d), (depth, d), *[(depth, d, d)] * 4, (depth, d), (depth, d_ff, d),
            (depth, d, d_ff), (depth, d_ff, d), (d,), (positions, d // heads),
            *[(-vocab, d)] * (vocab < 0)]


def read_model(path, dtype=np.float32):
    """stories15M.bin as a Transformer. Raises ValueError, before it is read, for another file."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = struct.unpack("<7i", file.read(28)) if size > 28 else (0,) * 7
        d, _, depth, heads = head[:4]
        if (min(*head[:5], abs(head[5]), head[6]) < 1 or d % (2 * heads) or heads != head[4]
                or size != 28 + 4 * sum(map(math.prod, shapes_of(*head)))):
            raise ValueError(f"{path}: {size} bytes are no model of the sizes {head}")
        read = [np.fromfile(file, "<f4", math.prod(shape)).reshape(shape).astype(dtype)
                for shape in shapes_of(*head)]
    if not all(np.isfinite(a).all() for a in read):
        raise ValueError(f"{path}: a weight is not a finite number")
    embed, gain_1, w_q, w_k, w_v, w_o, gain_2, w_1, w_2, w_3, gain, _ = read[:12]
    w_q, w_k, w_v = ((w * gain_1[:, None]).reshape(depth, heads, -1, d).mT for w in (w_q, w_k, w_v))
    w_1 = (np.concatenate([w_1, w_3], axis=1) * gain_2[:, None]).mT
    layers = map(Layer, w_q, w_k, w_v, w_o.mT.reshape(depth, heads, -1, d), w_1, w_2.mT,
                 [rope_frequencies(d // heads).astype(dtype)] * depth)
    return Transformer(embed, tuple(layers), (read[12 * (head[5] < 0)] * gain).T, phi=identity,
                       norm=rms_norm, activation=swiglu, max_length=head[6])


def read_tokens(path, vocab_size):
    """tokenizer.bin as {token: (score, id)}, tokens as bytes. Raises ValueError for another."""
    tokens, at = [], 4
    with open(path, "rb") as file:
        data = file.read(1 << 26)
    while at + 8 <= len(data) and len(tokens) < vocab_size:
        score, n = struct.unpack_from("<fi", data, at)
        at += 8 + max(n, 0)
        tokens.append((data[at - n:at], score))
        if not math.isfinite(score) or n < 1:
            raise ValueError(f"{path}: token {len(tokens) - 1} has score {score}, length {n}")
    longest = max((len(token) for token, _ in tokens), default=0)
    if (vocab_size < 259 or len(tokens) != vocab_size or at != len(data)
            or data[:4] != struct.pack("<i", longest)
            or len({token for token, _ in tokens[259:]}) != vocab_size - 259):
        raise ValueError(f"{path} is no tokenizer of {vocab_size} different tokens, 259 or more")
    return {token: (score, i) for i, (token, score) in enumerate(tokens)}


def encode(text, tokens):
    """BOS and the ids of a text: characters, else bytes, joined in pairs, the best score first."""
    parts = [part for c in " " * bool(text) + text for b in [c.encode("utf-8", "replace")]
             for part in ([b] if b in tokens else (b[i:i + 1] for i in range(len(b))))]
    parts = join(parts, lambda a, b: -tokens.get(a + b, (-math.inf,))[0])
    return [1] + [tokens[part][1] if part in tokens else part[0] + 3 for part in parts]


def decode(ids, tokens):
    """The text of ids; 3 to 258 are the bytes, whatever their tokens are called."""
    names = {i: token for token, (_, i) in tokens.items()}
    raw = b"".join(bytes([i - 3]) if i < 259 else names[i] for i in ids if i > 2)
    return raw.decode("utf-8", "replace")


def write_tiny(folder, rng):
    """A tiny random model and its tokenizer in the same format: 'To' and bytes."""
    head, names = (16, 24, 2, 2, 2, 264, 256), [b"%d" % i for i in range(1000, 1259)]
    weights = [rng.standard_normal(shape) / shape[-1] ** 0.5 for shape in shapes_of(*head)]
    (folder / "stories15M.bin").write_bytes(
        struct.pack("<7i", *head) + b"".join(w.astype("<f4").tobytes() for w in weights))
    (folder / "tokenizer.bin").write_bytes(struct.pack("<i", 4) + b"".join(
        struct.pack("<fi", -i, len(name)) + name
        for i, name in enumerate([*names, b" ", b"T", b"o", b" T", b" To"])))
