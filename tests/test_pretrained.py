"""docs/pretrained: files of three formats, two kinds of tokens, decoding with a cache."""

import json
import struct
import tempfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from iclca_ref import iclaa, softmax_attend
from linear_transformer import Bias, forward, run_layers, softmax
from pretrained import bpe, gguf, gpt2, llama2c
from pretrained.decoding import cached_attend, continuation, sampler

# ---- The files: a tiny random model in each format ----------------------------------------------

MERGES = [*zip(["l", "lo", "Ġ", "e", "low", "o", "r"], ["o", "w", "low", "r", "er", "w", "e"])]
TOKENIZER = gpt2.tokenizer_of(MERGES)
CONFIG = dict(vocab_size=264, n_positions=40, n_embd=8, n_layer=2, n_head=2)
normal, TENSORS = np.random.default_rng(0).standard_normal, {}
gpt2.build(lambda name, *n: TENSORS.setdefault(name, normal(n, "f") / 2), *CONFIG.values())


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
    llama2c.write_tiny(Path(folder), np.random.default_rng(0))
    gguf.write_tiny(Path(folder, "tiny.gguf"), np.random.default_rng(0))
    FILES |= {path.name: path.read_bytes() for path in Path(folder).iterdir()}
TINY, STORIES, TOKENS = (FILES[name] for name in ("tiny.gguf", "stories15M.bin", "tokenizer.bin"))


def loaded(name, content=None, *dtype):
    """What is read of the format that has a file of this name, if it holds this content."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        for file, sound in FILES.items():
            path.with_name(file).write_bytes(sound)
        path.write_bytes(FILES[name] if content is None else content)
        if "bin" in name:
            return (llama2c.read_model(path.with_name("stories15M.bin"), *dtype),
                    llama2c.read_tokens(path.with_name("tokenizer.bin"), 264))
        return gguf.read(path, *dtype) if "gguf" in name else gpt2.read(folder)


def number(key, new, kind="I"):
    """A .gguf in whose metadata one number is another."""
    at = TINY.index(key) + len(key) + 4
    return TINY[:at] + struct.pack("<" + kind, new) + TINY[at + 4:]


def more(key, whole=TINY):
    """A .gguf with one more pair in its metadata, so long that the tensors are still aligned."""
    pair = struct.pack(f"<Q{len(key)}sIQ", len(key), key, 8, n := -(20 + len(key)) % 32)
    n_pairs = struct.pack("<Q", struct.unpack_from("<Q", whole, 16)[0] + 1)
    return whole[:16] + n_pairs + pair + b"x" * n + whole[24:]


WRONG = [("config.json", json.dumps(CONFIG | change).encode(), message) for change, message in (
    (dict(n_head=3), "n_head"), (dict(n_embd="8"), "sizes"), (dict(n_layer=0), "its sizes"),
    (dict(n_layer=1), "h.1.*no place"), (dict(n_layer=10**9), "h.2.attn.c_attn.weight must"),
    (dict(layer_norm_epsilon=np.nan), "epsilon"), (dict(layer_norm_epsilon=-1e-5), "epsilon"),
    (dict(activation_function="relu"), "gelu_new"), (dict(vocab_size=257), "vocab_size"))]
WRONG += [("model.safetensors", content, message) for content, message in (
    (MODEL + b"x", "truncated"), (MODEL[:-1], "truncated"), (MODEL[:99], "truncated"),
    (b"\xff" * 8 + MODEL[8:], "a header of 18446744073709551615 bytes"),
    (packed(TENSORS, data_offsets=[0, 1280]), "gaps"), (packed(TENSORS, data_offsets=None), ""),
    (packed(TENSORS, shape=[8, 40]), "wpe.weight must .*40, 8"), (packed(TENSORS, dtype=[]), "wpe"),
    (packed(TENSORS | {"wpe.weight": np.ones((41, 8), "f")}, shape=[40, 8]), "wpe.weight must"),
    (packed(TENSORS | {"transformer.wpe.weight": WPE}), "transformer.wpe.weight.* twice"),
    (packed(TENSORS | {"wpe.weight": WPE * np.float32(np.nan)}), "wpe.weight .*no numbers"))]
WRONG += [("vocab.json", json.dumps(gpt2.tokenizer_of(MERGES[:-1]).ids).encode(), "fit merges.txt"),
          ("merges.txt", FILES["merges.txt"].replace(b"low er", b"lo wer"), "KeyError: 'wer'"),
          *((name, text, "") for name in FILES for text in (b"", b"\n[]", b"\xff", b"[" * 10**5))]
WRONG += [("tiny.gguf", TINY.replace(old, new), message) for old, new, message in (
    (b"GGUF\3", b"GGUF\1", "version 2 or 3"), (b"\0llama\x14", b"\0qwen2\x14", "must be llama"),
    (b"smollm", b"smallm", "smallm"), (b"h e", b"h z", "merges"), (b"h e", b"h h", "merges"),
    (b"\1" + bytes(7) + b"b", b"\1" + bytes(7) + b"a", "all different"),
    (b"1.ffn_up.", b"1.ffn_no.", "1.ffn_up"), (b"1.ffn_up.", b"0.ffn_up.", "twice"))]
WRONG += [("tiny.gguf", content, message) for content, message in (
    (TINY[:-32], "truncated"), (TINY + b"x", "too long"),
    (TINY[:8] + b"\xff" * 8 + TINY[16:], "18446744073709551615 tensors"),
    (number(b"block_count", 1), "no place"), (number(b"block_count", 10**9), "blk.2"),
    (number(b"embedding_length", 64), "have the shape"), (number(b"head_count", 3), "3, 2 heads"),
    (number(b"head_count_kv", 3), "4, 3 heads"), (number(b"head_count_kv", 0), "sizes"),
    (number(b"0.attn_norm.weight\1\0\0\0 " + bytes(7), 32), "bytes off its place"),
    (number(b"freq_base", np.nan, "f"), "base"), (number(b"rms_epsilon", -1, "f"), "epsilon"),
    (more(b"llama.rope.scaling.type"), "rope.scaling"), (more(b"llama.expert_count"), "expert_"),
    (more(b"general.alignment"), "alignment"), (more(b"general.architecture"), "twice"),
    (TINY[:-4] + b"\0\0\xc0\x7f", "no numbers"))]
WRONG += [("stories15M.bin", struct.pack("<7i", *sizes) + STORIES[28:], "no model")
          for sizes in ((16, 24, 2, 2, 2, 263, 256), (16, 24, 10**9, 2, 2, 264, 256), (0,) * 7,
                        (16, 24, 2, 2, 1, 264, 256), (16, 24, 2, 16, 16, 264, 256),
                        (-16, 24, 2, 2, 2, 264, 256))]
NAN = struct.pack("<f", np.nan)
WRONG += [("stories15M.bin", STORIES[:400] + NAN + STORIES[404:], "finite"),
          ("tokenizer.bin", TOKENS[:4] + NAN + TOKENS[8:], "score nan"),
          *(("tokenizer.bin", content, "no tokenizer of 264") for content in (
              TOKENS + b"x", TOKENS.replace(b"\1\0\0\0T", b"\1\0\0\0o"),
              struct.pack("<i", 5) + TOKENS[4:], TOKENS[:4]))]


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_a_file_that_is_not_sound_is_refused_with_its_name_and_the_reason(case):
    name, content, message = WRONG[case]
    with pytest.raises(ValueError, match=f"({name}|model.safetensors).*{message}"):
        loaded(name, content)


@pytest.mark.parametrize("name, limits", [
    ("tiny.gguf", [30, 700, 7000, 32000]), ("stories15M.bin", [28]), ("tokenizer.bin", [3000]),
    ("model.safetensors", [2000]), *((name, [len(FILES[name])]) for name in [*FILES][2:4])])
@settings(max_examples=40)
@given(data=st.data())
def test_a_damaged_file_is_refused_with_its_name_or_gives_finite_numbers(name, limits, data):
    whole, at = FILES[name], data.draw(st.integers(0, data.draw(st.sampled_from(limits))))
    new = data.draw(st.binary(max_size=3) | st.sampled_from(
        [struct.pack("<Q", n) for n in (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)]))
    try:
        model, tokens, *_ = loaded(name, data.draw(st.sampled_from([
            whole[:at], whole[:at] + new + whole[at + len(new):],
            whole[:at] + new + whole[at + data.draw(st.integers(0, 9)):]])))
    except ValueError as error:
        assert name in str(error)
    else:
        assert all(np.isfinite(a).all() for layer in model.layers for a in layer)
        assert len(model.embed) == len(tokens if "bin" in name else tokens.ids)
        if [*FILES].index(name) < 4:    # what says all twice changes no answer
            same = np.array_equal(*(forward(m, [5, 6, 7], attend=softmax_attend)[0]
                                    for m in (model, loaded("config.json")[0])))
            assert tokens == TOKENIZER and (same or len(model.layers[0].w_q) != 2)    # n_head


# ---- The models, written a second time from their descriptions ----------------------------------

def llama(w, ids, heads, kv_heads, base, eps):
    """The last logits, by loops over positions and heads; w(name) is a matrix as it is stored."""
    def norm(x, gain):
        return gain * x / np.sqrt(np.mean(x * x) + eps)

    def turn(x, position):
        pairs = (x[0::2] + 1j * x[1::2]) * np.exp(
            1j * position * base ** -(np.arange(0, len(x), 2) / len(x)))
        return np.stack([pairs.real, pairs.imag], axis=-1).ravel()

    stream, n = [w("embed")[i] for i in ids], len(w("q", 0)) // heads
    for i in 0, 1:
        h, new = [norm(x, w("gain_1", i)) for x in stream], []
        for t, x in enumerate(stream):
            out = []
            for head in range(heads):
                group = head * kv_heads // heads
                a, b = slice(n * head, n * head + n), slice(n * group, n * group + n)
                q = turn((w("q", i) @ h[t])[a], t)
                scores = np.exp([q @ turn((w("k", i) @ h[s])[b], s) / n ** 0.5
                                 for s in range(t + 1)])
                out.append(sum(p * (w("v", i) @ h[s])[b]
                               for s, p in enumerate(scores / scores.sum())))
            x = x + w("o", i) @ np.concatenate(out)
            y = norm(x, w("gain_2", i))
            gate = w("gate", i) @ y
            new.append(x + w("down", i) @ (gate / (1 + np.exp(-gate)) * (w("up", i) @ y)))
        stream = new
    return w("unembed") @ norm(stream[-1], w("gain"))


def test_llama2cs_file_is_read_as_its_description_says():
    sizes = dict(embed=(264, 16), gain_1=(2, 16), q=(2, 16, 16), k=(2, 16, 16), v=(2, 16, 16),
                 o=(2, 16, 16), gain_2=(2, 16), gate=(2, 24, 16), down=(2, 16, 24), up=(2, 24, 16),
                 gain=(16,))
    raw = np.frombuffer(STORIES, "<f4")[7:].astype(float)
    places = np.cumsum([0] + [np.prod(shape) for shape in sizes.values()])
    arrays = {name: raw[at:at + np.prod(shape)].reshape(shape)
              for at, (name, shape) in zip(places, sizes.items())}
    arrays["unembed"], ids = arrays["embed"], [1, 260, 17, 99, 4]
    logits = forward(loaded("stories15M.bin", None, float)[0], ids, attend=softmax_attend)[0][-1]
    expected = llama(lambda name, *i: arrays[name][i], ids, 2, 2, 1e4, 1e-5)
    np.testing.assert_allclose(logits, expected, rtol=1e-10, atol=1e-12)


def matrices(path, data):
    """{name: matrix} of a .gguf, each weight by itself, as the format says."""
    with path.open("rb") as file:
        tensors = gguf.read_header(file)[1]

    def weight(kind, place, i):
        def take(code, at):
            return struct.unpack_from("<" + code, data, place + i // n * size + at)[0]

        size, n = {0: (4, 1), 1: (2, 1), 2: (18, 32), 3: (20, 32), 8: (34, 32)}[kind]
        if kind < 2:
            return take("fe"[kind], 0)
        d, j = take("e", 0), i % n
        if kind == 8:
            return d * take("b", 2 + j)
        nibble = take("B", size - 16 + j % 16) >> j // 16 * 4 & 15
        return d * nibble + take("e", 2) if kind == 3 else d * (nibble - 8)

    return {name: np.array([weight(kind, place, i) for i in range(np.prod(shape))]).reshape(shape)
            for name, (shape, kind, place) in tensors.items()}


def test_a_gguf_is_read_as_its_description_says(tmp_path):
    (tmp_path / "x.gguf").write_bytes(TINY)
    arrays, ids = matrices(tmp_path / "x.gguf", TINY), [0, 260, 17, 99, 4]
    names = dict(gain_1="attn_norm", q="attn_q", k="attn_k", v="attn_v", o="attn_output",
                 gain_2="ffn_norm", gate="ffn_gate", up="ffn_up", down="ffn_down",
                 embed="token_embd", unembed="token_embd", gain="output_norm")
    expected = llama(lambda name, *i: arrays[
        (f"blk.{i[0]}." if i else "") + names[name] + ".weight"], ids, 4, 2, 1e5, 1e-5)
    logits, low = (forward(loaded("tiny.gguf", None, dtype)[0], ids, attend=softmax_attend)[0]
                   for dtype in (np.float64, np.float32))
    np.testing.assert_allclose(logits[-1], expected, rtol=1e-5, atol=1e-6)   # d q + m in float32
    assert low.dtype == np.float32 and abs(low - logits).max() < 1e-4


def second_gpt2(ids):
    """GPT-2 written a second time: offsets added as offsets, one query at a time, in float64."""
    def linear(x, name):
        if "ln_" not in name:
            return x @ TENSORS[name + ".weight"] + TENSORS[name + ".bias"]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * TENSORS[name + ".weight"] + TENSORS[name + ".bias"]

    x = TENSORS["wte.weight"][ids].astype(float) + TENSORS["wpe.weight"][:len(ids)]
    for h in "h.0.", "h.1.":
        qkv = linear(linear(x, h + "ln_1"), h + "attn.c_attn").reshape(-1, 3, 2, 4)
        o = np.zeros((len(ids), 2, 4))
        for i, head in np.ndindex(len(ids), 2):
            q, k, v = qkv[i, 0, head], qkv[:i + 1, 1, head], qkv[:i + 1, 2, head]
            o[i, head] = np.exp(k @ q / 2) @ v / np.exp(k @ q / 2).sum()
        x = x + linear(o.reshape(-1, 8), h + "attn.c_proj")
        z = linear(linear(x, h + "ln_2"), h + "mlp.c_fc")
        z = z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
        x = x + linear(z, h + "mlp.c_proj")
    return linear(x, "ln_f") @ TENSORS["wte.weight"].T


def test_the_model_is_gpt_2_written_a_second_time_with_or_without_a_prefix():
    others = {"h.0.attn.bias": np.ones((1, 1, 4, 4), "f"), "lm_head.weight": TENSORS["wte.weight"]}
    prefixed = {"transformer." + name: a for name, a in TENSORS.items()} | others
    for tensors in TENSORS, prefixed:
        model, _ = loaded("model.safetensors", packed(tensors))
        logits = forward(model, [5, 250, 5, 0, 261], attend=softmax_attend)[0]
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, second_gpt2([5, 250, 5, 0, 261]), atol=2e-5)


# ---- Texts --------------------------------------------------------------------------------------

LLAMA2C = loaded("tokenizer.bin")[1]


def tokens_of(text, tokenizer):
    names = {i: token for token, i in tokenizer.ids.items()}
    return "|".join(names[i] for i in bpe.encode(text, tokenizer))


@pytest.mark.parametrize("pattern, texts", [(bpe.GPT2, [
    "Hello| world", "I|'ll| we|'ve| won|'t|'m", "I|'|LL| '|d|'", "café| naïve| Ünï", "ab|12| 4|x",
    "2²½| Ⅷ| 一二", "a| | b|  | c", "a| \n| b|\n\n", " |\u00a0|x|\u3000| y", "hi|!!!| 🙂🙂|x", "'|é|'",
    "snake|_|case| e|\u0301", "\t|\t|x", "x|\x1c\ufeff|x|\x85|x", " "]), (bpe.SMOLLM, [
    "ab|1|2| |4| x", "a|  |1|  | b", "2|²|½| |Ⅷ| 一二", "'|1|'ll| \n|7|\n| b", "I|'ll| we"])])
def test_text_is_split_as_its_pattern_says(pattern, texts):
    for text in texts:
        assert bpe.split(text.replace("|", ""), pattern) == text.split("|")


@given(st.text(), st.sampled_from([TOKENIZER, TOKENIZER._replace(pattern=bpe.SMOLLM),
                                   gpt2.tokenizer_of([])]))
def test_the_pieces_are_the_text_and_every_text_comes_back_from_its_ids(text, tokenizer):
    assert "".join(bpe.split(text, tokenizer.pattern)) == text
    assert bpe.decode(bpe.encode(text, tokenizer), tokenizer) == text


@given(st.text("ab", max_size=12), st.dictionaries(
    st.tuples(st.text("ab", min_size=1, max_size=3), st.text("ab", min_size=1, max_size=3)),
    st.integers(0, 3)))
def test_pairs_are_joined_as_by_looking_at_all_pairs_again_for_each(text, ranks):
    parts = [*text]
    while possible := [(ranks[pair], i) for i, pair in enumerate(zip(parts, parts[1:]))
                       if pair in ranks]:
        i = min(possible)[1]
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2:]]
    assert bpe.join(text, lambda *pair: ranks.get(pair, np.inf)) == parts


def test_pairs_are_merged_by_rank_everywhere_and_never_across_pieces():
    assert tokens_of("lower lowlow loloer reerexrerxre", TOKENIZER) == (
        "lower|Ġlow|low|Ġ|lo|lo|er|Ġ|re|er|e|x|r|er|x|re")
    tokens = [*TOKENIZER.ids]
    assert tokens[:2] == ["!", '"'] and tokens[94] == "¡" and tokens[188] == "Ā"    # GPT-2's ids


def test_special_tokens_are_one_and_a_byte_that_is_no_token_is_left_out_before_joining():
    tokenizer = loaded("tiny.gguf")[1]
    assert tokens_of("the<|endoftext|> the", tokenizer) == "t|he|<|endoftext|>|Ġthe"
    assert bpe.decode(bpe.encode("é <|endoftext|>1", tokenizer), tokenizer) == "é <|endoftext|>1"
    ids = {token: i for token, i in tokenizer.ids.items() if token != "x"}
    assert tokens_of("hxe", tokenizer._replace(ids=ids)) == "he"


@given(st.text(max_size=20))
def test_llama2cs_texts_come_back_from_their_ids(text):
    ids, tokens = llama2c.encode(text, LLAMA2C), LLAMA2C
    assert ids[0] == 1 and llama2c.decode(ids, tokens) == (" " + text if text else "")


def test_llama2cs_pairs_are_joined_by_score_and_other_characters_become_bytes():
    assert llama2c.encode("Too é", LLAMA2C) == [1, 263, 261, 259, 3 + 0xC3, 3 + 0xA9]


# ---- Decoding -----------------------------------------------------------------------------------

def by_whole_prompts(model, tokens, n, converted=None, choose=lambda x: x.argmax(axis=-1)):
    """As `continuation`, but by the definition: all tokens again for each."""
    for _ in range(n):
        new = choose(forward(model, tokens, converted, softmax_attend)[0][..., -1, :])
        tokens = np.concatenate([tokens, new[..., None]], axis=-1)
    return tokens[..., -n:]


def every_token(k, v):
    """The exact conversion of a softmax context: each token a row of its own."""
    return Bias(v, np.ones_like(v[..., 0])), lambda q: q @ (k / k.shape[-1] ** 0.25).mT


def test_a_continuation_is_that_of_the_whole_prompt_each_time_in_context_or_converted():
    rng = np.random.default_rng(0)
    model, other = loaded("tiny.gguf", None, float)[0], loaded("config.json")[0]
    context, tokens = rng.integers(0, 260, 12), rng.integers(0, 260, (2, 3, 5))
    expected = by_whole_prompts(model, np.append(context, tokens[0, 0]), 9)
    converted = iclaa(model, context, every_token)
    assert (continuation(model, [*context, *tokens[0, 0]], 9) == expected).all()
    assert (continuation(model, tokens[0, 0], 9, converted) == expected).all()
    assert (continuation(model, tokens[0, 0], 9) != expected).any()
    for biases in None, converted:
        found, *same = (f(model, tokens, 6, biases, sampler(np.random.default_rng(1)))
                        for f in (continuation, by_whole_prompts, by_whole_prompts))
        assert found.shape == (2, 3, 6) and all((found == again).all() for again in same)
    # GPT-2's positions are absolute: those of the tokens go on behind the context's
    biases = iclaa(other, context[:-1], every_token)
    expected = by_whole_prompts(other, context, 20, choose=sampler(np.random.default_rng(1)))
    there = gpt2.placed(other, 11)
    for model, tokens, start, same in ((other, context, None, True), (
            there, context[-1:], biases, True), (other, context[-1:], biases, False)):
        draw = sampler(np.random.default_rng(1))
        found = continuation(model, tokens, 20, start, draw, gpt2.placed)
        assert (found == expected).all() == same


def test_rows_count_by_their_weight_and_not_at_0_and_float32_stays():
    model = loaded("tiny.gguf")[0]
    context, tokens = [5, 6, 7, 8], np.array([9, 10])
    exact = [(Bias(3 * kv, 3 * d), f) for (kv, d), f in iclaa(model, context, every_token)]
    padded = [(Bias(*(np.concatenate([b, 0 * b], axis=1) for b in bias)),
               lambda q, f=f: np.concatenate([f(q), f(q) + 1], axis=-1)) for bias, f in exact]
    streams = [run_layers(model, tokens, [(c,) for c in converted], cached_attend)[0]
               for converted in (exact, padded)]
    np.testing.assert_allclose(*streams, atol=1e-5)
    assert streams[1].dtype == np.float32
    np.testing.assert_allclose(streams[0], run_layers(model, tokens, exact, softmax_attend)[0],
                               atol=1e-5)


def test_tokens_are_drawn_with_their_probabilities():
    logits = np.array([0.5, -1.0, 1.5, -np.inf])
    drawn = sampler(np.random.default_rng(0))(np.broadcast_to(logits, (4000, 4)))
    shares = np.bincount(drawn, minlength=4) / 4000
    assert abs(shares - softmax(logits)).max() < 4 * 0.5 / 4000 ** 0.5 and shares[3] == 0


def test_no_text_is_longer_than_the_model_is_made_for():
    model, _ = loaded("config.json")
    assert continuation(model, [1] * 38, 2, place=gpt2.placed).shape == (2,)
    assert continuation(model, [[1], [2]], 0).shape == (2, 0)
    with pytest.raises(ValueError, match="38.* 3 tokens .* 40"):
        continuation(model, [1] * 38, 3, place=gpt2.placed)


@pytest.mark.parametrize("wrong, message", [
    ("nowhere", "nowhere"), ("--context=", "--context"), ("--prompt=", "--prompt"),
    ("--m=0", "--m"), ("--generate=999", "999 tokens are more than the model's")])
def test_gpt2s_script_answers_a_mistake_in_words(wrong, message, capsys):
    try:
        assert import_module("gpt2").main([wrong]) == 2
    except SystemExit as stop:
        assert stop.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
