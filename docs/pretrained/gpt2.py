"""GPT-2's release as a Transformer of ours: config.json, model.safetensors, vocab.json, merges.txt.

GPT-2's positions are absolute, and part of what a token is embedded as: `placed` moves them.
"""
import json
import math
import re
from pathlib import Path
import numpy as np
from biases_on_disk import check, sound
from linear_transformer import Layer, Transformer, gelu, identity, layer_norm
from pretrained.bpe import ALPHABET, Tokenizer


class Placed:
    """An embedding of tokens (..., n) that adds those of the positions, from the first on."""

    def __init__(self, tokens, positions):
        self.tokens, self.positions = tokens, positions

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, tokens):
        return self.tokens[tokens] + self.positions[:tokens.shape[-1]]


def placed(model, start):
    """The model for tokens that come after `start` others."""
    embed = Placed(model.embed.tokens, model.embed.positions[start:])
    return model._replace(embed=embed, max_length=len(embed.positions))


def build(get, vocab_size, n_positions, d, n_layer, n_head):
    """GPT-2, with gains in the matrices after them; get(name, *shape) is a tensor.

    Offsets are last rows, for the 1 that norm puts in the stream's last place and activation after
    the others. A head's last value is 1 for all tokens: attention keeps it, for c_proj's offset.
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
    embed = Placed(*(np.insert(rows, d, 0, axis=1) for rows in (wte, wpe)))
    return Transformer(embed, tuple(map(layer, range(n_layer))), unembed, phi=identity,
                       norm=lambda x: np.insert(layer_norm(x[..., :d]), d, 1, axis=-1),
                       activation=lambda x: np.insert(gelu(x), 4 * d, 1, axis=-1),
                       max_length=n_positions)


def tokenizer_of(merges):
    """The ids of all tokens: the bytes, what each merge makes, the end of a text."""
    tokens = [*sorted(ALPHABET), *map("".join, merges), "<|endoftext|>"]
    return Tokenizer(*(dict(zip(names, range(len(names)))) for names in (tokens, merges)))


def read(folder):
    """(model, tokenizer) of a release folder. ValueError names the file that is not sound."""
    def get(name, *shape):
        dtype, found, (begin, end) = map(header.pop(name).get, ("dtype", "shape", "data_offsets"))
        check([dtype, found, end - begin] == ["F32", [*shape], 4 * math.prod(shape)],
              f"{name} must be F32 of shape {shape}, not {dtype} of {found}")
        file.seek(start + begin)
        a = np.fromfile(file, "<f4", math.prod(shape)).astype("f").reshape(shape)
        check(abs(a).max() < 1e4, f"{name} has entries that are no numbers, or no trained ones")
        return a

    with sound(Path(folder, "merges.txt")) as file:
        merges = [(a, b) for a, b in map(str.split, file.read().decode().splitlines()[1:])]
        ids, *_ = tokenizer = tokenizer_of(merges)
        check(all(ids[a + b] > max(ids[a], ids[b]) for a, b in merges), "a merge of later tokens")
    with sound(Path(folder, "vocab.json")) as file:
        check(json.load(file) == ids, "it does not fit merges.txt")
    with sound(Path(folder, "config.json")) as file:
        config = json.load(file)
        ours = dict(vocab_size=len(ids), activation_function="gelu_new", layer_norm_epsilon=1e-5,
                    n_inner=None, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
        check(ours.items() <= (ours | config).items(), f"it must agree with {ours}")
        sizes = [config.get(key) for key in "vocab_size n_positions n_embd n_layer n_head".split()]
        check(all(type(n) is int and n > 0 for n in sizes) and sizes[2] % (2 * sizes[4]) == 0,
              f"its sizes {sizes} must be positive, and n_embd an even multiple of n_head")
    with sound(path := Path(folder, "model.safetensors")) as file:
        # the length of its header, 8 bytes; the header, in JSON; all tensors
        size, start = path.stat().st_size, 8 + int.from_bytes(file.read(8), "little")
        header = {name.removeprefix("transformer."): entry for name, entry in json.loads(
            file.read(min(start - 8, 1 << 26))).items() if name != "__metadata__"}
        begins, ends = zip(*sorted(entry["data_offsets"] for entry in header.values()))
        check((*begins, size - start) == (0, *ends), "truncated, or with overlaps or gaps")
        model = build(get, *sizes)
        more = [name for name in header if not re.search(r"\.attn\.(masked_)?bias$|^lm_head", name)]
        check(not more, f"{more} have no place in a model of these sizes")
    return model, tokenizer
