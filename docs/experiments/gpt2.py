"""GPT-2 in NumPy, its context converted approximately (ICLCA §6.4).

    python docs/experiments/gpt2.py [FOLDER] [--context TEXT] [--prompt TEXT] [--rule RULE]

FOLDER is GPT-2's release: config.json, model.safetensors, vocab.json, merges.txt; without it, a
small GPT-2 with random weights. Prints how the prompt goes on with the context in front, converted
and dropped, and the relative errors of the logits (the paper: 9.17% converted, 16.56% dropped).
GPT-2's positions are absolute, so Assumption 4.3 fails: if a prompt's positions started again from
0, its queries and keys would be others. Here they go on as if the context were there.
"""

import argparse
import json
import math
import re
import sys
import unicodedata
from pathlib import Path

import numpy as np

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])
import linear_transformer
from iclca_ref import softmax_attend
from linear_transformer import Layer, Transformer, embed_tokens, gelu, identity, layer_norm
from softmax_rules import MERGED, RANDOM, apart, caches, converted, rule


def build(get, vocab_size, n_positions, d, n_layer, n_head):
    """GPT-2 as a Transformer of ours and the embedding of positions; get(name, *shape) is a tensor.

    Gains are in the matrices after them. Offsets are last rows, for the 1 that norm puts in the
    place of the stream's last entry, and activation after the others. A head's last value is 1 for
    every token, and as attention's weights sum to 1 it stays 1, for the offset of c_proj.
    """
    def linear(name, rows, columns, ln=None):
        w, offset = get(name + ".weight", rows, columns), get(name + ".bias", columns)
        if ln:
            w, offset = get(ln + ".weight", rows)[:, None] * w, get(ln + ".bias", rows) @ w + offset
        return np.vstack([w, offset])

    def layer(i):
        qkv = linear(f"h.{i}.attn.c_attn", d, 3 * d, f"h.{i}.ln_1").reshape(d + 1, 3, n_head, d_k)
        w_q, w_k, w_v = qkv.transpose(1, 2, 0, 3)
        w_v = np.insert(w_v, d_k, np.arange(d + 1) == d, axis=2)
        proj = np.insert(linear(f"h.{i}.attn.c_proj", d, d), d, 0, axis=1)
        w_o = np.insert(proj[:d].reshape(n_head, d_k, -1), d_k, proj[d] / n_head, axis=1)
        w_1 = linear(f"h.{i}.mlp.c_fc", d, 4 * d, f"h.{i}.ln_2")
        w_2 = np.insert(linear(f"h.{i}.mlp.c_proj", 4 * d, d), d, 0, axis=1)
        return Layer(w_q, w_k, w_v, w_o, w_1, w_2, theta=np.zeros(d_k // 2))    # so that R_i = 1

    d_k, wte, wpe = d // n_head, get("wte.weight", vocab_size, d), get("wpe.weight", n_positions, d)
    unembed = np.vstack([get("ln_f.weight", d)[:, None] * wte.T, wte @ get("ln_f.bias", d)])
    wte, wpe = (np.insert(embedding, d, 0, axis=1) for embedding in (wte, wpe))
    return Transformer(wte, tuple(map(layer, range(n_layer))), unembed, phi=identity,
                       norm=lambda x: np.insert(layer_norm(x[..., :d]), d, 1, axis=-1),
                       activation=lambda x: np.insert(gelu(x), 4 * d, 1, axis=-1)), wpe


def placed(gpt2, ids, start=0):
    """A Transformer whose embedding is ids (n,) at start, start + 1, ..., and tokens 0 ... n−1."""
    (model, wpe), n = gpt2, len(ids)
    if start + n > len(wpe):
        raise ValueError(f"{start} + {n} tokens are more than the model's {len(wpe)} positions")
    return model._replace(embed=embed_tokens(model, ids)[0] + wpe[start:start + n]), np.arange(n)


def forward(gpt2, ids, start=0, converted=None):
    """The logits (n, vocab_size) of ids (n,) after `start` tokens, which became `converted`."""
    return linear_transformer.forward(*placed(gpt2, ids, start), converted, softmax_attend)[0]


def load(folder):
    """GPT-2 and its merges from a release folder. ValueError names the file that is not sound.

    A .safetensors file: the length of its header, 8 bytes; the header, in JSON; all tensors.
    """
    def check(fits, message):
        if not fits:
            raise ValueError(message)

    def take(name, *shape):
        entry = header.pop(name, None) or header.pop("transformer." + name, {})
        begin, end = entry.get("data_offsets", (0, 0))
        check([entry.get("dtype"), entry.get("shape"), end - begin]
              == ["F32", [*shape], 4 * math.prod(shape)], f"{name} must be F32 of shape {shape}")
        a = np.frombuffer(data, "<f4", math.prod(shape), start + begin).astype("f")
        check(abs(a).max() < 1e4, f"{name} has entries that are no numbers, or no trained ones")
        return a.reshape(shape)

    try:
        path = Path(folder, "merges.txt")
        merges = [(a, b) for a, b in map(str.split, path.read_text("utf-8").splitlines()[1:])]
        ids = vocabulary(merges)
        check(all(ids[a + b] > max(ids[a], ids[b]) for a, b in merges), "a merge of later tokens")
        path = Path(folder, "vocab.json")
        check(json.loads(path.read_bytes()) == ids, "it does not fit merges.txt")
        path = Path(folder, "config.json")
        config = json.loads(path.read_bytes())
        for key, ours in dict(vocab_size=len(ids), activation_function="gelu_new",
                              layer_norm_epsilon=1e-5, n_inner=None, scale_attn_weights=True,
                              scale_attn_by_inverse_layer_idx=False).items():
            check(config.get(key, ours) == ours, f"{key} must be {ours}")
        sizes = [config.get(key) for key in "vocab_size n_positions n_embd n_layer n_head".split()]
        check(all(type(n) is int and n > 0 for n in sizes) and not sizes[2] % (2 * sizes[4]),
              f"its sizes {sizes} must be positive, and n_embd an even multiple of n_head")
        path = Path(folder, "model.safetensors")
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        begins, ends = zip(*sorted(entry["data_offsets"] for entry in header.values()))
        check((*begins, len(data) - start) == (0, *ends), "truncated, or with overlaps or gaps")
        gpt2 = build(take, *sizes)
        more = [name for name in header if not re.search(r"\.attn\.(masked_)?bias$|^lm_head", name)]
        check(not more, f"{more} have no place in a model of these sizes, or are there twice")
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not sound: {type(error).__name__}: {error}") from None
    return gpt2, merges


# GPT-2 writes a byte as a printable character: itself where it is one, else the next from 256 on.
OTHER = [b for b in range(256) if b == 32 or not chr(b).isprintable()]
ALPHABET = [chr(256 + OTHER.index(b) if b in OTHER else b) for b in range(256)]
SPLIT = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[a-zA-Z]+| ?\d+| ?[^\sa-zA-Z\d]+|\s+(?!\S)|\s+", re.A)


def split(text):
    """The pieces of GPT-2's pattern, with an ASCII character in place of others of its class."""
    same = "".join(c if c.isascii() else "\t" if c.isspace() else
                   {"L": "a", "N": "0"}.get(unicodedata.category(c)[0], "!") for c in text)
    return [text[slice(*match.span())] for match in SPLIT.finditer(same)]


def vocabulary(merges):
    """The ids of all tokens: the bytes, what each merge makes, the end of a text."""
    tokens = [*sorted(ALPHABET), *map("".join, merges), "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}


def encode(text, merges):
    """The ids of a text: in each piece the first merge that is possible, everywhere, then again."""
    ids, ranks, found = vocabulary(merges), {pair: i for i, pair in enumerate(merges)}, []
    for piece in split(text):
        parts = [ALPHABET[byte] for byte in piece.encode("utf-8", "replace")]
        while pair := min(ranks.keys() & zip(parts, parts[1:]), key=ranks.get, default=()):
            here = rf"(?<!\S){re.escape(' '.join(pair))}(?!\S)"
            parts = re.sub(here, lambda _: "".join(pair), " ".join(parts)).split(" ")
        found += [ids[part] for part in parts]
    return found


def decode(ids, merges):
    """The text of ids; bytes that are no UTF-8 become the replacement character."""
    tokens = [*vocabulary(merges)]
    return bytes(ALPHABET.index(c) for i in ids for c in tokens[i]).decode("utf-8", "replace")


def main(argv=None):
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("folder", nargs="?", help="GPT-2's release folder")
    cli.add_argument("--context", default="Bill Gates and Paul Allen founded Microsoft.")
    cli.add_argument("--prompt", default=" The name of the company is")
    cli.add_argument("--rule", choices=[*MERGED, *RANDOM], default="merged, attended")
    cli.add_argument("--m", type=int, default=32, help="how many features (32)")
    cli.add_argument("--generate", type=int, default=12, help="tokens to add (12)")
    cli.add_argument("--quick", action="store_true", help="add 2 tokens only")
    a = cli.parse_args(argv)
    n, rng = 2 if a.quick else a.generate, np.random.default_rng(0)
    if not (a.prompt and 1 <= a.m <= 2**16 and 1 <= n <= 1024):
        cli.error("--prompt needs text, --m is from 1 to 65536, --generate from 1 to 1024")
    try:
        gpt2, merges = load(a.folder) if a.folder else (build(    # gains about 1, the rest about 0
            lambda name, *n: rng.standard_normal(n, "f") / 8 + bool(re.search("ln.*weight", name)),
            vocab_size=257, n_positions=256, d=64, n_layer=4, n_head=4), [])
        context, prompt = encode(a.context, merges), encode(a.prompt, merges)
        convert = rule(a.rule, a.m, gpt2[0].layers[0].w_q.shape[-1], rng)
        biases = converted(caches(*placed(gpt2, context)), convert)
        print(f"context: {len(context)} tokens, prompt: {len(prompt)} tokens\n\n"
              f"{'':28}{'relative error of logits':>25}   continuation")
        for name, front, *after in (
                ("with the context in front", context), ("dropped", []),
                (f"{a.rule}, m = {a.m}", [], len(context), biases)):
            ids = front + prompt
            logits = forward(gpt2, ids, *after)[len(front):]
            right = logits if front else right
            for _ in range(n):
                ids.append(int(forward(gpt2, ids, *after)[-1].argmax()))
            print(f"{name:28}{apart(logits, right):>25.2%}   {decode(ids[-n:], merges)!r}")
    except (OSError, ValueError) as error:
        raise SystemExit(f"gpt2.py: {error}") from None


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")    # a terminal without UTF-8
    main()
