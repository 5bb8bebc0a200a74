"""docs/llama2c.py and docs/experiments/stories15m.py: the files, the tokens, the rules."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclca_ref import log_landmark_features, softmax_attend
from linear_transformer import forward, softmax
from llama2c import decode, draw_texts, encode, read_model, read_tokens, shapes_of, write_tiny
from softmax_rules import ALL, MERGED, RANDOM, attended_landmarks, caches, converted, rule
from stories15m import main

MODEL, TOKENS = "stories15M.bin", "tokenizer.bin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    write_tiny(path, np.random.default_rng(0))
    return path


def read(folder):
    model = read_model(folder / MODEL)
    return model, read_tokens(folder / TOKENS, len(model.embed))


def by_the_description(path, ids):
    """The last logits, by loops over positions and heads, from the file's description alone."""
    raw, at = np.fromfile(path, "<f4")[7:].astype(float), 0
    d, d_ff, depth, heads, _, vocab, _ = np.fromfile(path, "<i4", 7).tolist()

    def take(*shape):
        nonlocal at
        at += np.prod(shape)
        return raw[at - np.prod(shape):at].reshape(shape)

    def norm(x, gain):
        return gain * x / np.sqrt(np.mean(x * x) + 1e-5)

    def turn(x, position):
        theta = 1e4 ** -(np.arange(0, len(x), 2) / len(x))
        pairs = (x[0::2] + 1j * x[1::2]) * np.exp(1j * position * theta)
        return np.stack([pairs.real, pairs.imag], axis=-1).ravel()

    embed, g_1 = take(vocab, d), take(depth, d)
    w_q, w_k, w_v, w_o = (take(depth, d, d) for _ in range(4))
    g_2, w_1, w_2, w_3, g = (take(*s) for s in ((depth, d), (depth, d_ff, d), (depth, d, d_ff),
                                                 (depth, d_ff, d), (d,)))
    stream, n = [embed[i] for i in ids], d // heads
    for i in range(depth):
        h = [norm(x, g_1[i]) for x in stream]
        new = []
        for t, x in enumerate(stream):
            out = []
            for a in (slice(n * head, n * head + n) for head in range(heads)):
                q = turn((w_q[i] @ h[t])[a], t)
                scores = np.exp([q @ turn((w_k[i] @ h[s])[a], s) / n ** 0.5 for s in range(t + 1)])
                out.append(sum(p * (w_v[i] @ h[s])[a] for s, p in enumerate(scores / scores.sum())))
            x = x + w_o[i] @ np.concatenate(out)
            y = norm(x, g_2[i])
            gate = w_1[i] @ y
            new.append(x + w_2[i] @ (gate / (1 + np.exp(-gate)) * (w_3[i] @ y)))
        stream = new
    return embed @ norm(stream[-1], g)


def test_the_model_read_from_the_file_is_the_one_that_the_format_describes(folder):
    ids = [1, 260, 17, 99, 4]
    logits = forward(read_model(folder / MODEL, np.float64), ids, attend=softmax_attend)[0][-1]
    expected = by_the_description(folder / MODEL, ids)
    np.testing.assert_allclose(logits, expected, rtol=1e-10, atol=1e-12)


@given(st.text(max_size=20))
def test_every_text_is_encoded_and_decoded_back(folder, text):
    tokens = read_tokens(folder / TOKENS, 264)
    ids = encode(text, tokens)
    assert ids[0] == 1
    assert decode(ids, tokens) == (" " + text if text else "")


def test_pairs_are_joined_by_score_and_other_characters_become_bytes(folder):
    ids = encode("Too é", read_tokens(folder / TOKENS, 264))
    assert ids == [1, 263, 261, 259, 3 + 0xC3, 3 + 0xA9]


def damages(content):
    flip = st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255)).map(
        lambda f: content[:f[0]] + bytes([content[f[0]] ^ f[1]]) + content[f[0] + 1:])
    cut = st.tuples(st.integers(0, len(content)), st.integers(1, 40)).map(
        lambda c: content[:c[0]] + content[c[0] + c[1]:])
    header = st.binary(min_size=28, max_size=28).map(lambda h: h + content[28:])
    return st.one_of(flip, cut, header, st.binary(max_size=60))


@pytest.mark.parametrize("name", [MODEL, TOKENS])
@given(data=st.data())
def test_a_damaged_file_is_refused_by_its_name_or_gives_finite_numbers(folder, tmp_path_factory,
                                                                       name, data):
    whole = (folder / name).read_bytes()
    damaged = tmp_path_factory.getbasetemp() / name
    damaged.write_bytes(data.draw(damages(whole)))
    try:
        if name == MODEL:
            model = read_model(damaged)
            assert model.embed.shape == (264, 16) and len(model.layers) == 2
            assert all(np.isfinite(a).all() for layer in model.layers for a in layer)
        else:
            assert {i for _, i in read_tokens(damaged, 264).values()} <= {*range(264)}
    except ValueError as error:
        assert name in str(error)


@pytest.mark.parametrize("head", [
    (16, 24, 2, 2, 2, 263, 256), (16, 24, 10**9, 2, 2, 264, 256), (0,) * 7,
    (16, 24, 2, 2, 1, 264, 256), (16, 24, 2, 16, 16, 264, 256), (16, 24, 2, 0, 0, 264, 256),
    (-16, 24, 2, 2, 2, 264, 256)])
def test_sizes_that_do_not_fit_are_refused_before_the_file_is_read(folder, tmp_path, monkeypatch,
                                                                   head):
    (tmp_path / MODEL).write_bytes(struct.pack("<7i", *head) + (folder / MODEL).read_bytes()[28:])
    monkeypatch.setattr(np, "fromfile", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=MODEL):
        read_model(tmp_path / MODEL)


def test_heads_of_odd_width_and_weights_that_are_no_numbers_are_refused(folder, tmp_path):
    head = 16, 24, 2, 16, 16, 264, 256
    size = sum(int(np.prod(shape)) for shape in shapes_of(*head))
    (tmp_path / MODEL).write_bytes(struct.pack("<7i", *head) + bytes(4 * size))
    with pytest.raises(ValueError, match=MODEL):
        read_model(tmp_path / MODEL)
    whole = (folder / MODEL).read_bytes()
    (tmp_path / MODEL).write_bytes(whole[:400] + struct.pack("<f", np.nan) + whole[404:])
    with pytest.raises(ValueError, match="not a finite"):
        read_model(tmp_path / MODEL)


@pytest.mark.parametrize("change", [
    lambda whole: whole + b"x", lambda whole: whole[:4] + struct.pack("<f", np.nan) + whole[8:],
    lambda whole: whole[:-1], lambda whole: whole.replace(b"\1\0\0\0T", b"\1\0\0\0o"),
    lambda whole: struct.pack("<i", 5) + whole[4:], lambda whole: whole[:-10] + b"\1\0\0\0 ",
    lambda whole: whole[:4]])
def test_a_tokenizer_that_does_not_fit_is_refused_by_name(folder, tmp_path, change):
    (tmp_path / TOKENS).write_bytes(change((folder / TOKENS).read_bytes()))
    with pytest.raises(ValueError, match=TOKENS):
        read_tokens(tmp_path / TOKENS, 264)


def test_every_rule_that_keeps_all_landmarks_is_exact_and_the_same_rule_with_fewer_is_not(folder):
    model, tokens = read(folder)
    ids = draw_texts(model, np.random.default_rng(1), 1, 30)[0]
    expected = forward(model, ids, attend=softmax_attend)[0][20:]
    layers = caches(model, ids[:20])
    for name in MERGED:
        for m in 8, ALL:
            biases = converted(layers, rule(name, m, 8, None))
            answer = forward(model, ids[20:], biases, softmax_attend)[0]
            assert (abs(answer - expected).max() < 1e-5) == (m == ALL), (name, m)


def test_random_features_are_of_the_kind_and_the_number_that_the_rule_names():
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 6, 8))
    for name in RANDOM:
        features, bias = rule(name, 8, 8, np.random.default_rng(1))(q, k, v)
        w = features.keywords["projection"]
        assert bias.kv.shape == (2, 8, 8) and w.shape == (8, 8)
        gram = w @ w.T / np.multiply.outer(*[np.linalg.norm(w, axis=1)] * 2)
        assert np.allclose(gram, np.eye(8)) == (name == "orthogonal features")


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_attended_landmarks_are_looked_at_as_much_as_their_keys(m, n, r, seed):
    q, k, v = (np.random.default_rng(seed).standard_normal((2, rows, 4)) for rows in (n, m, m))
    z, bias = attended_landmarks(q, k, v, r)
    scores = np.exp(q @ k.swapaxes(-1, -2) / 2)
    to_landmarks = np.exp(log_landmark_features(q / 2 ** 0.5, z)) * bias.d[:, None]
    total = (to_landmarks / scores.sum(axis=-1, keepdims=True)).sum(axis=(-1, -2))
    floor = 0.001 * (m - bias.d.sum(axis=-1))    # what each key counts that nobody looks at
    np.testing.assert_allclose(total, n + floor, rtol=1e-9)
    assert (bias.d >= 0).all() and z.shape[-2] == min(m, r)


def test_the_most_attended_tokens_are_those_with_the_largest_sum_of_attention():
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 6, 4))
    z, bias = MERGED["most attended kept"](q, k, v, m=1)
    p = np.exp(q[0] @ k[0].T / 2)
    assert (bias.kv[0, 0] == v[0, (p / p.sum(axis=1, keepdims=True)).sum(axis=0).argmax()]).all()


def test_texts_are_drawn_as_without_a_cache(folder):
    model, _ = read(folder)
    rng, ids = np.random.default_rng(3), np.ones((2, 1), int)
    for _ in range(39):
        p = softmax(forward(model, ids, attend=softmax_attend)[0][:, -1]).cumsum(axis=-1)
        drawn = (p > p[:, -1:] * rng.random((2, 1))).argmax(axis=-1)
        ids = np.concatenate([ids, drawn[:, None]], axis=1)
    assert (draw_texts(model, np.random.default_rng(3), 2, 40) == ids).all()


@pytest.mark.parametrize("damage, message", [
    (lambda f: (f / MODEL).unlink(), MODEL), (lambda f: (f / TOKENS).unlink(), TOKENS),
    (lambda f: (f / TOKENS).write_bytes(b"x" * 100), TOKENS)])
def test_the_command_line_says_in_one_line_what_is_wrong_with_a_folder(tmp_path, capsys, damage,
                                                                       message):
    write_tiny(tmp_path, np.random.default_rng(0))
    damage(tmp_path)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_text_of_the_users_serves_as_context(tmp_path, capsys):
    (tmp_path / "text").write_bytes(b"The owl sleeps by day.\xff\0 " * 30)
    assert main(["--quick", "--text", str(tmp_path / "text")]) == 0
    assert "1 contexts of 150 to 150 tokens" in capsys.readouterr().out
    (tmp_path / "text").write_bytes(b"short")
    assert main(["--quick", "--text", str(tmp_path / "text")]) == 2
