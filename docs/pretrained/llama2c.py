"""llama2.c's models of Llama's kind (Karpathy), such as stories15M: files, texts, next tokens.

A model is a `Transformer` of ours as it stands: RMS norm, whose gains are folded into the
matrices after it, softmax attention with rotary positions, and an MLP whose halves multiply.
"""

import math
import struct
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from iclca_ref import iclaa, log_landmark_features, softmax_attend
from linear_transformer import (Bias, Layer, Transformer, identity, rope_frequencies, run_layers,
                                softmax)


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
    w_q, w_k, w_v = ((w * gain_1[:, None]).reshape(depth, heads, -1, d).swapaxes(2, 3)
                     for w in (w_q, w_k, w_v))
    w_1 = (np.concatenate([w_1, w_3], axis=1) * gain_2[:, None]).swapaxes(1, 2)
    layers = map(Layer, w_q, w_k, w_v, w_o.swapaxes(1, 2).reshape(depth, heads, -1, d), w_1,
                 w_2.swapaxes(1, 2), [rope_frequencies(d // heads).astype(dtype)] * depth)
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
    while True:
        scores = [tokens.get(a + b, (-math.inf,))[0] for a, b in zip(parts, parts[1:])]
        if max(scores, default=-math.inf) == -math.inf:
            return [1] + [tokens[p][1] if p in tokens else p[0] + 3 for p in parts]
        i = scores.index(max(scores))
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


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


def next_probabilities(model, ids, biases=None):
    """How probable each token is after ids (..., n): (..., vocab_size)."""
    x = run_layers(model, ids, biases, softmax_attend)[0][..., -1, :]
    return softmax(model.norm(x) @ model.unembed)


def continuation(model, ids, n, biases=None):
    """The n likeliest tokens after ids (m,), one by one, up to BOS or EOS, where a text ends."""
    found, n = [], min(n, model.max_length - len(ids))
    while len(found) < n and not {1, 2} & {*found}:
        found.append(int(next_probabilities(model, [*ids, *found], biases).argmax()))
    return found


def every_token(k, v):
    """A context as the exact conversion holds it, each token its own landmark, for `iclaa`."""
    landmarks = k / k.shape[-1] ** 0.25
    return Bias(v, np.ones_like(v[..., 0])), partial(log_landmark_features, landmarks=landmarks)


def draw_texts(model, rng, count, length):
    """Texts that the model draws from its own probabilities: (count, length), BOS first."""
    ids = np.ones((count, 1), int)
    for n in range(1, length):
        if n % 16 == 1:    # all tokens but the last become a key-value cache
            start, past = n - 1, iclaa(model, ids[:, :-1], every_token) if n > 1 else None
        p = next_probabilities(model, ids[:, start:], past).cumsum(axis=-1)
        drawn = (p > p[:, -1:] * rng.random((count, 1))).argmax(axis=-1)
        ids = np.concatenate([ids, drawn[:, None]], axis=1)
    return ids
