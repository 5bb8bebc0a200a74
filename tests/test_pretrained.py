"""docs/pretrained: files of three formats, two kinds of tokens, decoding with a cache."""

import json
import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from iclca_ref import softmax_attend
from linear_transformer import Bias, forward, run_layers, softmax
from pretrained import bpe, gguf, gpt2, llama2c
from pretrained.decoding import cached_attend, continuation, sampler
from pretrained.kept import every_token

# ---- The files: a tiny random model in each format ----------------------------------------------

MERGES = [*zip(["l", "lo", "Ġ", "e", "low", "o", "r"], ["o", "w", "low", "r", "er", "w", "e"])]
TOKENIZER = gpt2.tokenizer_of(MERGES)
CONFIG = dict(vocab_size=264, n_positions=40, n_embd=8, n_layer=2, n_head=2)
rng, TENSORS = np.random.default_rng, {}
gpt2.build(lambda name, *n: TENSORS.setdefault(
    name, rng(len(TENSORS)).standard_normal(n, "f") / 2), *CONFIG.values())

def packed(tensors, **false_wpe):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, a in tensors.items():
        header[name] = dict(dtype="F32", shape=[*a.shape], data_offsets=[at, at := at + 4 * a.size])
    header.get("wpe.weight", {}).update(false_wpe)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in tensors.values())

MODEL, WPE = packed(TENSORS), TENSORS["wpe.weight"]
FILES = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": MODEL,
         "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, MERGES), ""]).encode(),
         "vocab.json": json.dumps(TOKENIZER.ids).encode()}
with tempfile.TemporaryDirectory() as folder:
    llama2c.write_tiny(Path(folder), rng(0))
    gguf.write_tiny(Path(folder, "tiny.gguf"), rng(0))
    FILES |= {path.name: path.read_bytes() for path in Path(folder).iterdir()}
TINY, STORIES, TOKENS = (FILES[name] for name in ("tiny.gguf", "stories15M.bin", "tokenizer.bin"))
NAN, PAIR = struct.pack("<f", np.nan), b"general.file_type"

def loaded(name, content=None, *dtype):
    """What is read of the format that has a file of this name, if it holds this content."""
    with tempfile.TemporaryDirectory() as folder:
        for file, sound in (FILES | ({} if content is None else {name: content})).items():
            path = Path(folder, file)
            sound(path) if callable(sound) else path.write_bytes(sound)
        if "bin" in name:
            return (llama2c.read_model(Path(folder, "stories15M.bin"), *dtype),
                    llama2c.read_tokens(Path(folder, "tokenizer.bin"), 264))
        return gguf.read(Path(folder, name), *dtype) if "gguf" in name else gpt2.read(folder)

def number(key, new, kind="I"):
    """A .gguf in whose metadata one number is another."""
    at = TINY.index(key) + len(key) + 4
    return TINY[:at] + struct.pack("<" + kind, new) + TINY[at + 4:]


WRONG = [("config.json", json.dumps(CONFIG | change).encode(), message) for change, message in (
    (dict(n_head=3), "n_head"), (dict(n_embd="8"), "sizes"), (dict(n_layer=0), "its sizes"),
    (dict(n_layer=1), "h.1.*no place"), (dict(n_layer=10**9), "'h.2.attn.c_attn.weight'"),
    (dict(layer_norm_epsilon=np.nan), "epsilon"), (dict(vocab_size=257), "vocab_size"),
    (dict(activation_function="relu"), "gelu_new"))]
WRONG += [("model.safetensors", content, message) for content, message in (
    (MODEL + b"x", "truncated"), (MODEL[:-1], "truncated"), (MODEL[:99], "JSON"),
    (b"\xff" * 8 + MODEL[8:], "decode"), (packed(TENSORS, data_offsets=[0, 1280]), "gaps"),
    (packed(TENSORS, data_offsets=None), ""), (packed(TENSORS, dtype=[]), "wpe"),
    (packed(TENSORS, shape=[8, 40]), "wpe.weight must .*40, 8"),
    (packed(TENSORS | {"wpe.weight": np.ones((41, 8), "f")}, shape=[40, 8]), "wpe.weight must"),
    (packed(TENSORS | {"transformer.wpe.weight": WPE}), "gaps"),
    (packed(TENSORS | {"wpe.weight": WPE * np.float32(np.nan)}), "wpe.weight .*no numbers"))]
WRONG += [("vocab.json", json.dumps(gpt2.tokenizer_of(MERGES[:-1]).ids).encode(), "fit merges.txt"),
          ("merges.txt", FILES["merges.txt"].replace(b"low er", b"lo wer"), "KeyError: 'wer'"),
          *((name, text, "") for name in FILES for text in (b"", b"\n[]", b"\xff", b"[" * 10**5))]
WRONG += [("tiny.gguf", TINY.replace(old, new), message) for old, new, message in (
    (b"GGUF\3", b"GGUF\1", "version 2 or 3"), (b"\0llama\x14", b"\0qwen2\x14", "must be llama"),
    (b"smollm", b"smallm", "smallm"), (b"h e", b"h z", "merges"), (b"h e", b"h h", "merges"),
    (b"\1" + bytes(7) + b"b", b"\1" + bytes(7) + b"a", "token_embd.weight must"),
    (b"1.ffn_up.", b"1.ffn_no.", "1.ffn_up"), (b"1.ffn_up.", b"0.ffn_up.", "off its place"),
    (b"context_length\4", b"context_length\6", "no model"),    # a float
    (PAIR, b"general.alignment", "by zero"), (PAIR, b"llama.block_count", "'block_count': 0"),
    (PAIR, b"llama.expert_used", "expert_used"), (b"\xae\x27", b"\0|", "no numbers"))]   # d = ∞
WRONG += [("tiny.gguf", content, message) for content, message in (
    (TINY[:-32], "truncated"), (TINY + b"x", "too long"), (TINY[:-4] + NAN, "no numbers"),
    (TINY[:8] + b"\xff" * 8 + TINY[16:], "requires a buffer"), (TINY[:999], "requires a buffer"),
    (number(b"block_count", 1), "no place"), (number(b"block_count", 10**9), "blk.2"),
    (number(b"embedding_length", 64), "have the shape"), (number(b"head_count", 3), "_count': 3"),
    (number(b"head_count_kv", 3), "_kv': 3"), (number(b"head_count_kv", 0), "_kv': 0"),
    (number(b"0.attn_norm.weight\1\0\0\0 " + bytes(7), 32), "bytes off its place"),
    (number(b"freq_base", np.nan, "f"), "base': nan"), (number(b"rms_epsilon", -1, "f"), ": -1.0"))]
WRONG += [("stories15M.bin", struct.pack("<7i", *sizes) + STORIES[28:], "no model") for sizes in (
    (16, 24, 2, 2, 2, 263, 256), (16, 24, 10**9, 2, 2, 264, 256), (16, 24, 2, 2, 1, 264, 256),
    (16, 24, 2, 16, 16, 264, 256), (-16, 24, 2, 2, 2, 264, 256))]
WRONG += [("stories15M.bin", STORIES[:400] + NAN + STORIES[404:], "finite"),
          ("tokenizer.bin", TOKENS[:4] + NAN + TOKENS[8:], "score nan"),
          ("tokenizer.bin", TOKENS[:-9], "requires a buffer"),
          *(("tokenizer.bin", content, "no tokenizer of 264") for content in (
              TOKENS + b"x", TOKENS.replace(b"\1\0\0\0T", b"\1\0\0\0o"), b"\5" + TOKENS[1:]))]


@pytest.mark.parametrize("name, content, message", WRONG, ids=range(len(WRONG)))
def test_a_file_that_is_not_sound_is_refused_with_its_name_and_the_reason(name, content, message):
    with pytest.raises(ValueError, match=f"({name}|model.safetensors).*{message}"):
        loaded(name, content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("make", [getattr(os, f) for f in ("mkdir", "mkfifo") if hasattr(os, f)])
def test_a_folder_or_a_pipe_is_refused_and_not_waited_for(name, make):
    with pytest.raises(OSError, match=f"{name} is not an ordinary file"):
        loaded(name, make)


@settings(max_examples=100)
@given(st.sampled_from([*FILES]), st.floats(0, 1), st.integers(0, 9), st.binary(max_size=9))
def test_a_damaged_file_is_read_or_refused_with_its_name(name, place, lost, new):
    at = int(len(FILES[name]) * place ** 4)    # mostly in the header
    try:
        loaded(name, FILES[name][:at] + new + FILES[name][at + lost:])
    except ValueError as error:
        assert name in str(error)


# ---- The models, written a second time from their descriptions ----------------------------------

def attended(q, k, v):
    p = np.tril(np.exp(q @ k.T / k.shape[1] ** 0.5))
    return p @ v / p.sum(axis=1, keepdims=True)

def llama(w, ids, heads, kv_heads, base, eps):
    """The logits, head by head, in float64; w(name) is a matrix as it is stored."""
    norm = lambda x, gain: gain * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)

    def turned(x):
        turns = np.exp(1j * np.outer(np.arange(len(x)), base ** -(np.arange(0, n, 2) / n)))
        return ((x[:, 0::2] + 1j * x[:, 1::2]) * turns).view(float)
    x, n = w("token_embd")[ids], len(w("attn_q", 0)) // heads
    for i in 0, 1:
        h = norm(x, w("attn_norm", i))
        for head in range(heads):
            a, b = (slice(n * j, n * j + n) for j in (head, head * kv_heads // heads))
            q, k, v = (h @ w("attn_" + c, i)[s].T for c, s in (("q", a), ("k", b), ("v", b)))
            x = x + attended(turned(q), turned(k), v) @ w("attn_output", i)[:, a].T
        h = norm(x, w("ffn_norm", i))
        gate = h @ w("ffn_gate", i).T
        x = x + gate / (1 + np.exp(-gate)) * (h @ w("ffn_up", i).T) @ w("ffn_down", i).T
    return norm(x, w("output_norm")) @ w("token_embd").T

def matrix(shape, kind, place, file=TINY):
    """The weights of a .gguf at this place, in float64."""
    block, n = {0: (4, 1), 1: (2, 1), 2: (18, 32), 3: (20, 32), 8: (34, 32)}[kind]
    raw = np.ndarray((np.prod(shape) // n, block), "u1", file, place)
    if kind < 2:
        return raw.view(["<f4", "<f2"][kind]).reshape(shape).astype(float)
    (d, m), q = raw[:, :4].view("<f2").astype(float).T[..., None], raw[:, -16:]
    q = np.hstack([q % 16, q // 16]) if kind < 8 else raw[:, 2:].view("i1")
    return (d * q + m if kind == 3 else d * (q - 8.0 * (kind == 2))).reshape(shape)


def test_the_files_of_llamas_are_read_as_their_descriptions_say(tmp_path):
    stories, at = {}, 28
    for name, *shape in (
            ("token_embd", 264, 16), ("attn_norm", 2, 16), ("attn_q", 2, 16, 16),
            ("attn_k", 2, 16, 16), ("attn_v", 2, 16, 16), ("attn_output", 2, 16, 16),
            ("ffn_norm", 2, 16), ("ffn_gate", 2, 24, 16), ("ffn_down", 2, 16, 24),
            ("ffn_up", 2, 24, 16), ("output_norm", 16)):
        stories[name] = matrix(shape, 0, at, STORIES)
        at += 4 * stories[name].size
    (path := tmp_path / "x.gguf").write_bytes(TINY)
    with path.open("rb") as file:
        tiny = {name: matrix(*what) for name, what in gguf.read_header(file)[1].items()}
    ids = [0, 260, 17, 99, 4]
    for name, tolerance, sizes, w in (    # a .gguf's d q + m is in float32
            ("stories15M.bin", 1e-11, (2, 2, 1e4, 1e-5), lambda name, *i: stories[name][i]),
            ("tiny.gguf", 1e-6, (4, 2, 1e5, 1e-5),
             lambda name, *i: tiny["".join(f"blk.{j}." for j in i) + name + ".weight"])):
        logits, low = (forward(loaded(name, None, dtype)[0], ids, attend=softmax_attend)[0]
                       for dtype in (np.float64, np.float32))
        np.testing.assert_allclose(logits, llama(w, ids, *sizes), 10 * tolerance, tolerance)
        assert low.dtype == np.float32 and abs(low - logits).max() < 1e-4


def second_gpt2(ids):
    """GPT-2, head by head, in float64: offsets are added as offsets."""
    def linear(x, name):
        w, offset = TENSORS[name + ".weight"], TENSORS[name + ".bias"]
        if "ln_" not in name:
            return x @ w + offset
        x = x - x.mean(-1, keepdims=True)
        return w * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) + offset
    x = TENSORS["wte.weight"][ids].astype(float) + WPE[:len(ids)]
    for h in "h.0.", "h.1.":
        qkv = np.split(linear(linear(x, h + "ln_1"), h + "attn.c_attn"), 6, axis=1)
        o = np.hstack([attended(*qkv[head::2]) for head in (0, 1)])
        x = x + linear(o, h + "attn.c_proj")
        z = linear(linear(x, h + "ln_2"), h + "mlp.c_fc")
        z = z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
        x = x + linear(z, h + "mlp.c_proj")
    return linear(x, "ln_f") @ TENSORS["wte.weight"].T

def test_the_model_is_gpt_2_written_a_second_time_with_or_without_a_prefix():
    others = {"h.0.attn.bias": np.ones((1, 1, 4, 4), "f"), "lm_head.weight": TENSORS["wte.weight"]}
    prefixed = {"transformer." + name: a for name, a in TENSORS.items()} | others
    for model in (loaded("model.safetensors", packed(t))[0] for t in (TENSORS, prefixed)):
        logits = forward(model, [5, 250, 5, 0, 261], attend=softmax_attend)[0]
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, second_gpt2([5, 250, 5, 0, 261]), atol=2e-5)


# ---- Texts and decoding -------------------------------------------------------------------------

@pytest.mark.parametrize("pattern, texts", [(bpe.GPT2, [
    "Hello| world", "I|'ll| we|'ve| won|'t|'m", "I|'|LL| '|d|'", "café| naïve| Ünï", "ab|12| 4|x",
    "2²½| Ⅷ| 一二", "a| | b|  | c", "a| \n| b|\n\n", " |\u00a0|x|\u3000| y", "hi|!!!| 🙂🙂|x", "'|é|'",
    "snake|_|case| e|\u0301", "\t|\t|x", "x|\x1c\ufeff|x|\x85|x", " "]), (bpe.SMOLLM, [
        "ab|1|2| |4| x", "a|  |1|  | b", "2|²|½| |Ⅷ| 一二", "'|1|'ll| \n|7|\n| b", "I|'ll| we"])])
def test_text_is_split_as_its_pattern_says(pattern, texts):
    for text in texts:
        assert bpe.split(text.replace("|", ""), pattern) == text.split("|")


LLAMA2C, SMOL = loaded("tokenizer.bin")[1], loaded("tiny.gguf")[1]

@given(st.text(), st.sampled_from([TOKENIZER, SMOL, gpt2.tokenizer_of([])]))
def test_the_pieces_are_the_text_and_every_text_comes_back_from_its_ids(text, tokenizer):
    assert "".join(bpe.split(text, tokenizer.pattern)) == text
    assert bpe.decode(bpe.encode(text, tokenizer), tokenizer) == text
    ids = llama2c.encode(text, LLAMA2C)
    assert ids[0] == 1 and llama2c.decode(ids, LLAMA2C) == (" " + text if text else "")


def test_pairs_merge_by_rank_within_pieces_special_tokens_are_one_unknown_bytes_left_out():
    no_x = SMOL._replace(ids={token: i for token, i in SMOL.ids.items() if token != "x"})
    for text, tokenizer, tokens in (
            ("lower lowlow loloer reerexrerxre", TOKENIZER,
             "lower|Ġlow|low|Ġ|lo|lo|er|Ġ|re|er|e|x|r|er|x|re"), ("hxe", no_x, "he"),
            ("the<|endoftext|> the", SMOL, "t|he|<|endoftext|>|Ġthe")):
        names = {i: token for token, i in tokenizer.ids.items()}
        assert "|".join(names[i] for i in bpe.encode(text, tokenizer)) == tokens
    assert bpe.decode(bpe.encode("é <|endoftext|>1", SMOL), SMOL) == "é <|endoftext|>1"
    tokens = [*TOKENIZER.ids]
    assert tokens[:2] == ["!", '"'] and tokens[94] == "¡" and tokens[188] == "Ā"    # GPT-2's ids
    # llama2.c: the first of the best scores; other characters are bytes, whatever their names
    assert llama2c.encode("Too é", LLAMA2C) == [1, 263, 261, 259, 3 + 0xC3, 3 + 0xA9]
    scores = {b" ": (0, 259), b"b": (0, 260), b" b": (-2, 261), b"bb": (-1, 262)}
    assert llama2c.encode("bbb", scores) == [1, 259, 262, 260]
    assert llama2c.decode([1, 3 + 65, 262], scores) == "Abb"


def by_whole_prompts(model, tokens, n, converted=None, choose=lambda x: x.argmax(axis=-1)):
    """As `continuation`, but by the definition: all tokens again for each."""
    for _ in range(n):
        new = choose(forward(model, tokens, converted, softmax_attend)[0][..., -1, :])
        tokens = np.concatenate([tokens, new[..., None]], axis=-1)
    return tokens[..., -n:]

def test_a_continuation_is_that_of_the_whole_prompt_each_time_in_context_or_converted():
    model, context = loaded("tiny.gguf", None, float)[0], rng(0).integers(0, 260, 12)
    tokens = rng(1).integers(0, 260, (2, 3, 5))
    expected = by_whole_prompts(model, np.append(context, tokens[0, 0]), 9)
    converted = every_token(model, context)
    assert (continuation(model, [*context, *tokens[0, 0]], 9) == expected).all()
    assert (continuation(model, tokens[0, 0], 9, converted) == expected).all()
    assert (continuation(model, tokens[0, 0], 9) != expected).any()
    for biases in None, converted:
        found, right = (way(model, tokens, 6, biases, sampler(rng(1)))
                        for way in (continuation, by_whole_prompts))
        assert found.shape == (2, 3, 6) and (found == right).all()


def test_gpt_2s_positions_go_on_behind_the_contexts_and_end_where_the_model_does():
    model, context = loaded("config.json")[0], rng(0).integers(0, 260, 12)
    biases, there = every_token(model, context[:-1]), gpt2.placed(model, 11)
    expected = by_whole_prompts(model, context, 20, choose=sampler(rng(1)))
    for reader, tokens, start, same in ((model, context, None, True), (
            there, context[-1:], biases, True), (model, context[-1:], biases, False)):
        found = continuation(reader, tokens, 20, start, sampler(rng(1)), gpt2.placed)
        assert (found == expected).all() == same
    assert continuation(model, [1] * 38, 2, place=gpt2.placed).shape == (2,)
    assert continuation(model, [[1], [2]], 0).shape == (2, 0)
    for reader, m, n, left in (model, 38, 3, 40), (there, 28, 2, 29):
        with pytest.raises(ValueError, match=f"{m}.* {n} tokens .* {left}"):
            continuation(reader, [1] * m, n, place=gpt2.placed)


def test_rows_count_by_their_weight_and_not_at_0_and_float32_stays():
    model, tokens = loaded("tiny.gguf")[0], np.array([9, 10])
    exact = [(Bias(3 * kv, 3 * d), f) for (kv, d), f in every_token(model, [5, 6, 7, 8])]
    padded = [(Bias(*(np.concatenate([b, 0 * b], axis=1) for b in bias)),
               lambda q, f=f: np.concatenate([f(q), f(q) + 1], axis=-1)) for bias, f in exact]
    expected = run_layers(model, tokens, exact, softmax_attend)[0]
    for converted in exact, padded:
        stream = run_layers(model, tokens, [(c,) for c in converted], cached_attend)[0]
        assert stream.dtype == np.float32
        np.testing.assert_allclose(stream, expected, atol=1e-5)


def test_tokens_are_drawn_with_their_probabilities():
    logits = np.array([0.5, -1.0, 1.5, -np.inf])
    shares = np.bincount(sampler(rng(0))(np.tile(logits, (4000, 1))), minlength=4) / 4000
    assert abs(shares - softmax(logits)).max() < 4 * 0.5 / 4000 ** 0.5 and shares[3] == 0
