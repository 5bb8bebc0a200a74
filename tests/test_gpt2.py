"""docs/experiments/gpt2.py: the release folder, the model, its context, its text."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from gpt2 import build, decode, encode, forward, load, main, placed, split, vocabulary
from softmax_rules import apart, caches, converted, rule

MERGES = [*zip(["l", "lo", "Ġ", "e", "low", "o", "r"], ["o", "w", "low", "r", "er", "w", "e"])]
CONFIG = dict(vocab_size=264, n_positions=40, n_embd=8, n_layer=2, n_head=2)
normal, TENSORS = np.random.default_rng(0).standard_normal, {}
build(lambda name, *n: TENSORS.setdefault(name, normal(n, "f") / 2), *CONFIG.values())


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
         "vocab.json": json.dumps(vocabulary(MERGES)).encode()}


def loaded(changed={}):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in (FILES | changed).items():
            Path(folder, name).write_bytes(content)
        return load(folder)


WRONG = [("config.json", json.dumps(CONFIG | change).encode(), message) for change, message in (
    (dict(n_head=3), "n_head"), (dict(n_embd="8"), "sizes"), (dict(n_layer=0), "its sizes"),
    (dict(n_layer=1), "h.1.*no place"), (dict(n_layer=10**9), "h.2.attn.c_attn.weight must"),
    (dict(layer_norm_epsilon=np.nan), "epsilon"), (dict(layer_norm_epsilon=-1e-5), "epsilon"),
    (dict(activation_function="relu"), "gelu_new"), (dict(vocab_size=257), "vocab_size"))]
WRONG += [("model.safetensors", content, message) for content, message in (
    (MODEL + b"x", "truncated"), (MODEL[:-1], "truncated"), (MODEL[:99], "JSON"),
    (packed(TENSORS, data_offsets=[0, 1280]), "gaps"), (packed(TENSORS, data_offsets=None), ""),
    (packed(TENSORS, shape=[8, 40]), "wpe.weight must .*40, 8"), (packed(TENSORS, dtype=[]), "wpe"),
    (packed(TENSORS | {"wpe.weight": np.ones((41, 8), "f")}, shape=[40, 8]), "wpe.weight must"),
    (packed(TENSORS | {"transformer.wpe.weight": WPE}), "transformer.wpe.weight.* twice"),
    (packed(TENSORS | {"wpe.weight": WPE * np.float32(np.nan)}), "wpe.weight .*no numbers"))]
WRONG += [("vocab.json", json.dumps(vocabulary(MERGES[:-1])).encode(), "fit merges.txt"),
          ("merges.txt", FILES["merges.txt"].replace(b"low er", b"lo wer"), "KeyError: 'wer'"),
          *((name, text, "") for name in FILES for text in (b"", b"\n[]", b"\xff", b"[" * 10**5))]


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_a_file_that_is_not_sound_is_refused_with_its_name(case):
    name, content, message = WRONG[case]
    with pytest.raises(ValueError, match=f"(json|txt|safetensors) is not .*{message}"):
        loaded({name: content})


@given(st.data())
def test_damage_is_refused_or_changes_no_answer(data):
    name, old = data.draw(st.sampled_from(sorted(FILES.items())))
    header = 8 + int.from_bytes(old[:8], "little") if old is MODEL else len(old)
    at, cut = data.draw(st.integers(0, header - 2)), data.draw(st.integers(0, 2))
    try:
        found, merges = loaded({name: old[:at] + data.draw(st.binary(max_size=2)) + old[at + cut:]})
    except ValueError as error:
        assert any(f"{name} is not sound" in str(error) for name in FILES)
    else:
        same = forward(found, [5, 6, 7]) == forward(loaded()[0], [5, 6, 7])
        assert merges == MERGES and (same.all() or len(found[0].layers[0].w_q) != 2)    # n_head


def second_forward(ids):
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
    more = {"h.0.attn.bias": np.ones((1, 1, 4, 4), "f"), "lm_head.weight": TENSORS["wte.weight"]}
    prefixed = {"transformer." + name: a for name, a in TENSORS.items()} | more
    for tensors in TENSORS, prefixed:
        model, _ = loaded({"model.safetensors": packed(tensors)})
        assert (logits := forward(model, [5, 250, 5, 0, 261])).dtype == np.float32
        np.testing.assert_allclose(logits, second_forward([5, 250, 5, 0, 261]), atol=2e-5)


def test_a_converted_context_is_exact_in_full_and_nearer_than_none_in_part():
    model, rng = loaded()[0], np.random.default_rng(0)
    context, prompt = rng.integers(0, 264, 30), rng.integers(0, 264, 9)
    expected = forward(model, [*context, *prompt])[30:]

    def error(kind, m, start=30):
        biases = converted(caches(*placed(model, context)), rule(kind, m, 4, rng))
        return apart(forward(model, prompt, start, biases), expected)

    full = error("merged, farthest", 99), error("merged, attended", 99)
    assert max(full) < 1e-5 < 0.1 < error("merged, attended", 99, start=0)        # Assumption 4.3
    for kind, m in (("merged, farthest", 15), ("merged, attended", 15), ("random features", 512),
                    ("orthogonal features", 512)):
        assert 1e-3 < error(kind, m) < 0.7 * apart(forward(model, prompt), expected)


@pytest.mark.parametrize("text", [
    "Hello| world", "I|'ll| we|'ve| won|'t|'m", "I|'|LL| '|d|'", "café| naïve| Ünï", "ab|12| 4|x",
    "2²½| Ⅷ| 一二", "a| | b|  | c", "a| \n| b|\n\n", " |\u00a0|x|\u3000| y", "hi|!!!| 🙂🙂|x", "'|é|'",
    "snake|_|case| e|\u0301", "\t|\t|x", "x|\x1c\ufeff|x|\x85|x", " "])
def test_text_is_split_as_gpt_2_splits_it(text):
    assert split(text.replace("|", "")) == text.split("|")


@given(st.text(), st.sampled_from([MERGES, []]))
def test_the_pieces_are_the_text_and_every_text_comes_back_from_its_ids(text, merges):
    assert "".join(split(text)) == text == decode(encode(text, merges), merges)


def test_pairs_are_merged_by_rank_everywhere_and_never_across_pieces():
    tokens = [*vocabulary(MERGES)]
    ids = encode("lower lowlow loloer reerexrerxre", MERGES)
    assert "|".join(tokens[i] for i in ids) == "lower|Ġlow|low|Ġ|lo|lo|er|Ġ|re|er|e|x|r|er|x|re"
    assert tokens[:2] == ["!", '"'] and tokens[94] == "¡" and tokens[188] == "Ā"    # GPT-2's ids


@pytest.mark.parametrize("wrong", ["nowhere", "--prompt=", "--prompt=" + "x" * 300, "--m=999999"])
def test_a_mistake_is_answered_in_words(wrong):
    with pytest.raises(SystemExit) as stop:
        main([wrong])
    assert stop.value.code == 2 or any(word in stop.value.code for word in ("nowhere", "positions"))
