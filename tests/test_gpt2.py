"""docs/experiments/gpt2.py: the file format, the tokenizer, the model, and the conversion."""

import json
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpt2
from gpt2 import convert, decode, encode, forward, generate, load, random_gpt2, read_safetensors, split
from iclca_ref import farthest_rows, gaussian_projection, landmark_features, random_features

CONFIG = dict(vocab_size=256, n_positions=40, n_embd=8, n_layer=2, n_head=2, layer_norm_epsilon=1e-5,
              activation_function="gelu_new")


def random_tensors(seed=0):
    """A small GPT-2 as the release names its tensors, with gains and offsets that are not 1 and 0."""
    rng, d = np.random.default_rng(seed), 8
    shapes = {"wte.weight": (256, d), "wpe.weight": (40, d), "ln_f.weight": (d,), "ln_f.bias": (d,)}
    for i in range(2):
        for name, shape in {"ln_1": (d,), "attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "ln_2": (d,),
                            "mlp.c_fc": (d, 4 * d), "mlp.c_proj": (4 * d, d)}.items():
            shapes |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[-1:]}
    return {name: rng.standard_normal(shape).astype(np.float32) / 2 for name, shape in shapes.items()}


def to_bytes(a, dtype):
    """An array's bytes in a dtype of safetensors, written independently of the reader."""
    if dtype == "BF16":
        return (a.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return a.astype({"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "U8": "u1"}[dtype]).tobytes()


def write_safetensors(path, tensors, dtype="F32", change=lambda header: None, cut=0, more=b""):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, a in tensors.items():
        raw = to_bytes(a, dtype)
        header[name] = dict(dtype=dtype, shape=list(a.shape), data_offsets=[len(data), len(data) + len(raw)])
        data += raw
    change(header)
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + data + more
    path.write_bytes(content[:len(content) - cut])


def write_folder(folder, tensors=None, config=CONFIG, **options):
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors or random_tensors(), **options)
    (folder / "vocab.json").write_text(json.dumps(gpt2.byte_tokenizer().ids), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")


# ---- The file format ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype, bits", [("F32", 24), ("F64", 24), ("F16", 11), ("BF16", 8)])
def test_tensors_are_read_back_in_float32_as_far_as_their_type_is_precise(tmp_path, dtype, bits):
    tensors = random_tensors() | {"scalar": np.array(1.5, np.float32), "empty": np.ones((0, 3), np.float32)}
    write_safetensors(tmp_path / "t", tensors, dtype)
    read = read_safetensors(tmp_path / "t")
    assert read.keys() == tensors.keys()
    for name, a in tensors.items():
        assert read[name].dtype == np.float32 and read[name].shape == a.shape
        np.testing.assert_allclose(read[name], a, rtol=2.0 ** (1 - bits), atol=1e-7 if dtype == "F16" else 0)
    assert list(read_safetensors(tmp_path / "t", "scalar".__eq__)) == ["scalar"]


def edit(name, **fields):
    return lambda header: header[name].update(fields)


@pytest.mark.parametrize("options, message", [
    (dict(cut=1), "h.1.mlp.c_proj.bias ends"), (dict(cut=10**9), "truncated"), (dict(more=b"x"), "1 bytes belong to no"),
    (dict(change=edit("wpe.weight", data_offsets=[0, 1280])), "wte.weight begins at byte 0, not 1280"),
    (dict(change=edit("wpe.weight", data_offsets=[10**9, 10**9 + 1280])), "wpe.weight ends"),
    (dict(change=edit("wpe.weight", data_offsets=[-1280, 0])), "wpe.weight: .*non-negative"),
    (dict(change=edit("wpe.weight", data_offsets=[0])), "wpe.weight must have"),
    (dict(change=edit("wpe.weight", dtype="F7")), "wpe.weight .*F7"),
    (dict(change=edit("wpe.weight", dtype=["F32"])), "wpe.weight .*dtype"),
    (dict(change=edit("wpe.weight", shape=[40, 9])), "wpe.weight is F32"),
    (dict(change=edit("wpe.weight", shape=["40", 8])), "wpe.weight: .*non-negative"),
    (dict(change=edit("wpe.weight", shape=None)), "wpe.weight must have"),
    (dict(change=lambda header: header.update(more=3)), "more must have"),
    (dict(dtype="I64"), "wte.weight is I64, not a floating type"), (dict(dtype="U8"), "U8, not a floating type")])
def test_a_file_that_lies_is_refused_with_the_name_of_the_tensor(tmp_path, options, message):
    write_folder(tmp_path, **options)
    with pytest.raises(ValueError, match=f"safetensors.*{message}"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 20, (2).to_bytes(8, "little") + b"[]",
                                     (4).to_bytes(8, "little") + b"junk", (9).to_bytes(8, "little") + b"[" * 9,
                                     (2).to_bytes(8, "little") + b"\xff\xfe"])
def test_junk_is_refused(tmp_path, content):
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="model.safetensors"):
        load(tmp_path)


@given(st.data())
def test_no_damage_to_the_header_gets_past_the_reader_unnoticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damage") / "t"
    tensors = {"a": np.ones((2, 2), np.float32), "b": np.zeros(3, np.float32)}
    write_safetensors(path, tensors)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 29))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read = read_safetensors(path)
    except ValueError:
        return
    assert sum(a.size for a in read.values()) <= 7


def test_missing_tensors_and_wrong_shapes_are_refused_by_name(tmp_path):
    tensors = random_tensors()
    write_folder(tmp_path, {name: a for name, a in tensors.items() if name != "h.1.ln_2.bias"})
    with pytest.raises(ValueError, match="h.1.ln_2.bias is missing"):
        load(tmp_path)
    write_folder(tmp_path, tensors | {"h.0.attn.c_attn.weight": np.ones((24, 8), np.float32)})
    with pytest.raises(ValueError, match=r"h.0.attn.c_attn.weight is \(24, 8\)"):
        load(tmp_path)


@pytest.mark.parametrize("change", [dict(n_head=3), dict(n_layer=0), dict(n_embd="8"), dict(activation_function="relu"),
                                    dict(vocab_size=None), dict(layer_norm_epsilon="small")])
def test_configurations_that_make_no_sense_are_refused(tmp_path, change):
    write_folder(tmp_path, config=CONFIG | change)
    with pytest.raises(ValueError, match="config.json"):
        load(tmp_path)
    for text in "[]", "{", "":
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="config.json"):
            load(tmp_path)


def test_a_prefix_shards_and_tensors_that_are_not_needed_are_understood(tmp_path):
    tensors, ids = random_tensors(), [72, 105]
    write_folder(tmp_path, tensors | {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32)})
    expected = forward(load(tmp_path), ids)
    write_folder(tmp_path, {"transformer." + name: a for name, a in tensors.items()})
    np.testing.assert_array_equal(forward(load(tmp_path), ids), expected)
    names = list(tensors)
    for shard, part in ("one", names[:9]), ("two", names[9:]):
        write_safetensors(tmp_path / f"{shard}.safetensors", {name: tensors[name] for name in part})
    (tmp_path / "model.safetensors").unlink()
    index = {name: f"{'one' if name in names[:9] else 'two'}.safetensors" for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    np.testing.assert_array_equal(forward(load(tmp_path), ids), expected)
    for wrong in {"wte.weight": "../one.safetensors"}, {"wte.weight": 3}, []:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(ValueError, match="weight_map"):
            load(tmp_path)


# ---- The model ------------------------------------------------------------------------------------------------------

def second_forward(t, ids, n_head=2, eps=1e-5, start=0):
    """GPT-2 a second time, from the tensors by name: one token at a time, plain loops, float64, keys and values kept."""
    t = {name: a.astype(np.float64) for name, a in t.items()}
    d, past, logits = t["wte.weight"].shape[1], {}, []

    def ln(x, name):
        mean = sum(x) / d
        variance = sum((x_i - mean) ** 2 for x_i in x) / d
        return np.array([(x_i - mean) / math.sqrt(variance + eps) * g + b
                         for x_i, g, b in zip(x, t[name + ".weight"], t[name + ".bias"])])

    def conv1d(x, name):
        w = t[name + ".weight"]
        return np.array([sum(x[i] * w[i, o] for i in range(len(x))) + t[name + ".bias"][o] for o in range(w.shape[1])])

    for position, token in enumerate(ids):
        x = t["wte.weight"][token] + t["wpe.weight"][start + position]
        for i in range(2):
            qkv = conv1d(ln(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
            heads = []
            for h in range(n_head):
                q, k, v = (qkv[s * d + h * d // n_head:s * d + (h + 1) * d // n_head] for s in range(3))
                seen = past.setdefault((i, h), [])
                seen.append((k, v))
                weights = [math.exp(q @ k_j / math.sqrt(d / n_head)) for k_j, _ in seen]
                heads.append(sum(w * v_j for w, (_, v_j) in zip(weights, seen)) / sum(weights))
            x = x + conv1d(np.concatenate(heads), f"h.{i}.attn.c_proj")
            inner = conv1d(ln(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
            inner = [0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) for z in inner]
            x = x + conv1d(inner, f"h.{i}.mlp.c_proj")
        logits.append([ln(x, "ln_f") @ row for row in t["wte.weight"]])
    return np.array(logits)


def test_the_model_is_gpt_2_written_a_second_time(tmp_path):
    write_folder(tmp_path)
    model, ids = load(tmp_path), [5, 250, 5, 0, 77]
    logits = forward(model, ids)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, second_forward(random_tensors(), ids), atol=2e-5)
    small = model._replace(eps=0.5)
    np.testing.assert_allclose(forward(small, ids), second_forward(random_tensors(), ids, eps=0.5), atol=2e-5)


def test_converted_with_every_key_a_landmark_gpt_2_answers_as_with_the_context(tmp_path):
    write_folder(tmp_path)
    model, context, prompt = load(tmp_path), [5, 6, 5, 7, 8, 5, 6], [1, 2, 3]
    biases = convert(model, context, landmark_features)
    expected = forward(model, context + prompt)[7:]
    np.testing.assert_allclose(forward(model, prompt, biases), expected, atol=2e-5)
    assert generate(model, prompt, 4, biases) == generate(model, context + prompt, 4)
    # Absolute positions: counted from 0 again, the same biases give another answer (Assumption 4.3).
    assert abs(forward(model, prompt, biases._replace(length=0)) - expected).max() > 0.01


def test_fewer_landmarks_and_random_features_come_closer_than_dropping_the_context():
    model, rng = random_gpt2(np.random.default_rng(0)), np.random.default_rng(1)
    context, prompt = rng.integers(0, 256, 60), rng.integers(0, 256, 10)
    expected = forward(model, np.concatenate([context, prompt]))[60:]

    def error(logits):
        return np.linalg.norm(logits - expected) / np.linalg.norm(expected)

    dropped = error(forward(model, prompt))
    w = gaussian_projection(rng, 256, 16)
    for features_of in lambda k: landmark_features(farthest_rows(k, 30)), lambda k: partial(random_features, projection=w):
        assert error(forward(model, prompt, convert(model, context, features_of))) < 0.7 * dropped


@pytest.mark.parametrize("ids", [[], [256], [-1], [0.5], [[1]], [1] * 41])
def test_ids_that_are_none_are_refused(tmp_path, ids):
    write_folder(tmp_path)
    with pytest.raises(ValueError, match="ids|positions"):
        forward(load(tmp_path), ids)


# ---- Text -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, pieces", [
    ("Hello world", ["Hello", " world"]),
    ("I'll say we've won't", ["I", "'ll", " say", " we", "'ve", " won", "'t"]),
    ("I'LL 'd'", ["I", "'", "LL", " '", "d", "'"]),
    ("café naïve Ünï", ["café", " naïve", " Ünï"]),
    ("2²½ Ⅷ 一二", ["2²½", " Ⅷ", " 一二"]),                # ², ½ and Ⅷ are numbers, 一 and 二 letters
    ("abc123 45x", ["abc", "123", " 45", "x"]),
    ("a  b   c", ["a", " ", " b", "  ", " c"]),
    ("a \n b\n\n", ["a", " \n", " b", "\n\n"]),
    (" \u00a0x\u3000 y", [" ", "\u00a0", "x", "\u3000", " y"]),
    ("hi!!! 🙂🙂x", ["hi", "!!!", " 🙂🙂", "x"]),
    ("snake_case e\u0301", ["snake", "_", "case", " e", "\u0301"]),
    ("'é'", ["'", "é", "'"]), ("", []), (" ", [" "]), ("\t\tx", ["\t", "\t", "x"])])
def test_text_is_split_as_gpt_2_splits_it(text, pieces):
    assert split(text) == pieces


@given(st.text())
def test_the_pieces_are_the_text_and_every_text_comes_back_from_its_ids(text):
    tokenizer = gpt2.byte_tokenizer()
    assert "".join(split(text)) == text
    ids = encode(text, tokenizer)
    assert ids == list(text.encode("utf-8")) and decode(ids, tokenizer) == text


def test_pairs_are_merged_by_rank_everywhere_and_never_across_pieces():
    merges = [("l", "o"), ("lo", "w"), ("Ġ", "low"), ("e", "r"), ("low", "er")]
    tokens = [*gpt2.byte_tokenizer().ids, *("".join(pair) for pair in merges)]
    tokenizer = gpt2.Tokenizer({token: i for i, token in enumerate(tokens)}, {p: r for r, p in enumerate(merges)})
    assert [tokens[i] for i in encode("lower lowlow", tokenizer)] == ["lower", "Ġlow", "low"]
    assert decode(encode("lower  lowlow é", tokenizer), tokenizer) == "lower  lowlow é"
    assert decode([gpt2.byte_tokenizer().ids[gpt2.BYTES[0xFF]]], tokenizer) == "\ufffd"
    with pytest.raises(ValueError, match="no token"):
        encode("z", tokenizer._replace(ids={}))


def test_the_bytes_alphabet_is_gpt_2s():
    assert gpt2.BYTES[ord(" ")] == "Ġ" and gpt2.BYTES[ord("\n")] == "Ċ" and gpt2.BYTES[ord("a")] == "a"
    assert gpt2.BYTES[0] == "Ā" and gpt2.BYTES[0xAD] == "Ń" and len(set(gpt2.BYTES.values())) == 256


# ---- The command line -----------------------------------------------------------------------------------------------

def test_the_script_runs_on_a_folder_and_reports_both_errors(tmp_path, capsys):
    write_folder(tmp_path)
    assert gpt2.main([str(tmp_path), "--context", "a b a b", "--prompt", " a", "--quick", "--m", "99"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "context: 7 tokens, prompt: 2 tokens" in lines
    converted, dropped = (float(line.split("%")[0].split()[-1]) for line in lines[-2:])
    assert converted < 0.01 < dropped


@pytest.mark.parametrize("arguments", [["nowhere"], ["--prompt", ""], ["--context", "x" * 300]])
def test_a_mistake_gets_one_line_and_exit_code_2(capsys, arguments):
    assert gpt2.main([*arguments, "--quick"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_merges_that_are_no_pairs_are_refused(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nc\n", encoding="utf-8")
    with pytest.raises(ValueError, match="merges.txt"):
        gpt2.load_tokenizer(tmp_path)
