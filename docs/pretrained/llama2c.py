"""Models of Llama's kind as Transformers of ours; llama2.c's (Karpathy), such as stories15M."""
import math
import struct
import numpy as np
from biases_on_disk import check, sound
from linear_transformer import Layer, Transformer, identity, rope_frequencies
from pretrained.bpe import join


def swiglu(h):
    """silu(a) · b for the halves a, b of h (..., 2 d_ff)."""
    a, b = np.split(h, 2, axis=-1)
    return a * b / (1 + np.exp(np.minimum(-a, 80)))    # exp(80) still fits a float32


def llama(get, vocab, tied, depth, max_length, d, d_ff, heads, kv_heads, base=1e4, eps=1e-5):
    """Llama, its gains multiplied in, key-value heads repeated; get(name, *shape) is (to, from)."""
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
                       norm=lambda x: x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps),
                       activation=swiglu, max_length=max_length)


def shapes_of(d, d_ff, depth, heads, _, vocab, positions):
    """The arrays of stories15M.bin in their order; a negative vocab says that output follows."""
    square = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (depth, d, d))
    return dict(token_embd=(abs(vocab), d), attn_norm=(depth, d), **square, ffn_norm=(depth, d),
                ffn_gate=(depth, d_ff, d), ffn_down=(depth, d, d_ff), ffn_up=(depth, d_ff, d),
                output_norm=(d,), rope=(positions, d // heads), output=(max(-vocab, 0), d))


def read_model(path, dtype=np.float32):
    """stories15M.bin as a Transformer. Raises ValueError, before it is read, for another file."""
    def get(name, *_):
        *layer, name, _ = name.split(".")
        return arrays[name][tuple(map(int, layer[1:]))]

    with sound(path) as file:
        d, d_ff, depth, heads, kv_heads, vocab, length = head = struct.unpack("<7i", file.read(28))
        check(min(*head[:5], abs(vocab), length) > 0 == d % (2 * heads) and heads == kv_heads
              and path.stat().st_size == 28 + 4 * sum(map(math.prod, shapes_of(*head).values())),
              f"truncated, or no model of the sizes {head}")
        arrays = {name: np.fromfile(file, "<f4", math.prod(shape)).reshape(shape).astype(dtype)
                  for name, shape in shapes_of(*head).items()}
        check(all(np.isfinite(a).all() for a in arrays.values()), "not all weights are finite")
        return llama(get, abs(vocab), vocab > 0, depth, length, d, d_ff, heads, heads)


def read_tokens(path, vocab_size):
    """tokenizer.bin as {token: (score, id)}, tokens as bytes. Raises ValueError for another."""
    with sound(path) as file:
        data, at, tokens = file.read(1 << 26), 4, {}
        for i in range(vocab_size):
            score, n = struct.unpack_from("<fi", data, at)
            check(math.isfinite(score) and n > 0, f"token {i} has score {score}, length {n}")
            at += 8 + n
            tokens[data[at - n:at]] = score, i
        different = sum(i >= 259 for _, i in tokens.values())    # the bytes need not be
        check(different == vocab_size - 259 and at == len(data)
              and data[:4] == struct.pack("<i", max(map(len, tokens))),
              f"no tokenizer of {vocab_size} different tokens, 259 or more")
    return tokens


def encode(text, tokens):
    """BOS and the ids of a text: characters, else bytes, joined in pairs, the best score first."""
    parts = [part for c in " " * bool(text) + text for b in [c.encode("utf-8", "replace")]
             for part in ([b] if b in tokens else (b[i:i + 1] for i in range(len(b))))]
    parts = join(parts, lambda a, b: -tokens.get(a + b, (-math.inf,))[0])
    return [1] + [tokens[part][1] if part in tokens else part[0] + 3 for part in parts]


def decode(ids, tokens):
    """The text of ids; 3 to 258 are the bytes, whatever their tokens are called."""
    names = {i: token for token, (_, i) in tokens.items()} | {i + 3: bytes([i]) for i in range(256)}
    return b"".join(names[i] for i in ids if i > 2).decode("utf-8", "replace")


def write_tiny(folder, rng):
    """A tiny random model and its tokenizer in the same format: 'To' and bytes."""
    head, names = (16, 24, 2, 2, 2, 264, 256), [b"%d" % i for i in range(1000, 1259)]
    weights = (rng.standard_normal(n) / n[-1] ** 0.5 for n in shapes_of(*head).values())
    (folder / "stories15M.bin").write_bytes(
        struct.pack("<7i", *head) + b"".join(w.astype("<f4").tobytes() for w in weights))
    (folder / "tokenizer.bin").write_bytes(struct.pack("<i", 4) + b"".join(
        struct.pack("<fi", -i, len(name)) + name
        for i, name in enumerate([*names, b" ", b"T", b"o", b" T", b" To"])))
