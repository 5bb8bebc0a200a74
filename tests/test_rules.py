"""docs/pretrained: how tokens look at a context, the rules, what they keep; the scripts' errors."""

import re

import numpy as np
import pytest
from hypothesis import given, strategies as st

import gpt2
import smollm2
import stories15m
from linear_transformer import forward, identity, random_transformer, rotate_at, softmax
from pretrained import llama2c
from pretrained.decoding import anywhere, continuation, sampler
from pretrained.kept import every_token, logits, measure, ratio, self_study
from pretrained.rules import (RULES, contexts, converted, least_squares, mended, merged, pursuit,
                              random_features)

rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)
MODEL = random_transformer(np.random.default_rng(0), 50, 32, 2, 4)._replace(phi=identity)
MODEL = MODEL._replace(layers=tuple(    # sharper attention, and branches of their full size
    layer._replace(w_q=6 * layer.w_q, w_o=2 * layer.w_o) for layer in MODEL.layers))
GROUPED = MODEL._replace(layers=tuple(    # each two heads have the same keys and values
    layer._replace(w_k=layer.w_k[[0, 0, 1, 1]], w_v=layer.w_v[[0, 0, 1, 1]])
    for layer in MODEL.layers))
TEXT, M = np.random.default_rng(1).integers(0, 50, 34), 24
CONTEXT, REST = TEXT[:M], TEXT[M:]


def looked(model=MODEL, after=((3, 4, 5, 6), CONTEXT)):
    return contexts(model, CONTEXT, *enumerate(map(np.array, after), 1))


def error(biases, model=MODEL):
    return np.linalg.norm(logits(model, REST, biases) - logits(model, TEXT)[M:])


def test_the_attention_that_a_context_gets_is_the_attention_in_the_whole_text():
    seen, streams = [], []
    def attend(q, k, v, _, rope, normalize):
        q, k = (rotate_at(x, rope, np.arange(len(TEXT)) + 1) for x in (q, k))
        seen.append(softmax(np.where(np.tri(len(TEXT)), q @ k.mT / 8**0.5, -np.inf)))
        return seen[-1] @ v, None

    noting = MODEL._replace(norm=lambda x: streams.append(x[M:]) or MODEL.norm(x))
    forward(noting, TEXT, attend=attend)
    for i, c in enumerate(contexts(MODEL, CONTEXT, (3, REST))):
        np.testing.assert_allclose(c.attention, seen[i][:, M:, :M], atol=1e-12)
        weight = (3 / len(REST)) ** 0.5 / np.linalg.norm(streams[2 * i], axis=-1, keepdims=True)
        np.testing.assert_allclose(c.weight, weight)
        np.testing.assert_allclose(c.stream, streams[2 * i + 1])


def test_several_batches_are_read_each_by_itself_and_count_by_their_shares():
    one, two = looked(after=[(3, 4)])[1], looked(after=[[(7, 8), (3, 4)], (3, 4)])[1]
    np.testing.assert_allclose(two.attention[:, 2:], np.tile(one.attention, (2, 1)), atol=1e-12)
    np.testing.assert_allclose(two.weight[2:], [*one.weight / 2**0.5, *2**0.5 * one.weight])


def test_every_rule_that_keeps_all_tokens_is_exact_and_the_same_rule_with_fewer_is_not():
    for name in {*RULES} - {"Attention Matching"}:
        all_tokens, fewer = (error(converted(RULES[name](looked(), m))) for m in (10**9, 4))
        assert all_tokens < 1e-6 < fewer, name


def test_rows_for_heads_with_the_same_keys_are_the_same_in_these_heads_and_exact_if_all():
    assert error(converted(least_squares(looked(GROUPED), M, share=2)), GROUPED) < 1e-8
    for z, bias in least_squares(looked(GROUPED), 5, share=2):
        assert all((x[::2] == x[1::2]).all() and (x[0] != x[2]).any() for x in (z, *bias))


@given(rngs, st.integers(2, 5))
def test_pursuit_takes_the_column_that_lowers_the_error_most_and_says_by_how_much(rng, m):
    A, V, kept = rng.random((9, m)) ** 3, rng.standard_normal((m, 2)), []
    def error(rows):
        projected = A[:, rows] @ np.linalg.lstsq(A[:, rows], A @ V, rcond=None)[0]
        return ((A @ V - projected) ** 2).sum()

    (order,), (gains,) = pursuit((A.T @ A)[None], (A.T @ A @ V)[None])
    assert sorted(order) == [*range(m)]
    for j, gain in zip(order, gains):
        falls = {a: error(kept) - error([*kept, a]) for a in {*range(m)} - {*kept}}
        assert falls[j] == pytest.approx(max(falls.values()), abs=1e-7)
        assert gain == pytest.approx(falls[j], abs=1e-7)
        kept.append(j)
    (order,), (gains,) = pursuit(np.ones((1, 4, 4)), np.ones((1, 4, 1)))    # explained by the first
    assert sorted(order) == [0, 1, 2, 3] and gains.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("drawn", [False, True])
def test_each_head_has_a_row_and_the_next_goes_where_the_relative_error_falls_most(drawn):
    layers, gains, rows = looked(), [], [1] * 8
    for c in layers:
        A = c.attention * c.weight
        order, gain = pursuit(A.mT @ A, A.mT @ A @ c.v @ c.layer.w_o)
        if drawn:    # any other gains, which need not fall
            gain = np.random.default_rng(len(gains)).random((4, M)) ** [[9], [1], [1], [1]]
            c.plans[1] = A, order, gain
        gains += [*np.minimum.accumulate(gain, axis=-1)]    # at most what the rows before gained
    for _ in range(4 * len(rows)):
        rows[max(range(8), key=lambda head: [*gains[head], 0][rows[head]])] += 1
    made = np.array([(bias.d > 0).sum(axis=-1) for _, bias in least_squares(layers, 5)])
    assert made.ravel().tolist() == rows and len({*rows}) > 2


def test_least_squares_is_closer_where_it_was_fitted_than_any_other_rule():
    best = min(RULES, key=lambda name: error(converted(RULES[name](looked(after=[REST]), 3))))
    assert best == "least squares"


@given(rngs, st.sampled_from([1, 2]))
def test_values_are_moved_so_that_what_lacks_is_given_in_least_squares(rng, share):
    p, w_o, lacks = rng.random((4, 30, 3)), rng.standard_normal((4, 2, 8)), rng.random((30, 8))
    u = np.repeat(rng.standard_normal((4 // share, 3, 2)), share, axis=0)
    left = [lacks - np.einsum("hnr,hrv,hvd->nd", p, moved - u, w_o)
            for moved in (u, mended(u, p, w_o, lacks, share))]
    assert np.linalg.norm(left[1]) < np.linalg.norm(left[0])
    one, gram = mended(u[:1], p[:1], w_o[:1], lacks, 1) - u[:1], p[0].T @ p[0]
    assert np.linalg.norm(lacks - p[0] @ one[0] @ w_o[0]) < np.linalg.norm(lacks)
    given = p[0] @ rng.standard_normal((3, 2)) @ w_o[0]    # can be given, but for the ridge
    rest = given - p[0] @ (mended(u[:1], p[:1], w_o[:1], given, 1) - u[:1])[0] @ w_o[0]
    assert np.linalg.norm(rest) < 0.2 * np.linalg.norm(given)
    assert (mended(u, p, w_o, 0 * lacks, share) == u).all()


def test_each_layer_makes_up_for_what_those_before_it_have_missed():
    def streams(values):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pretrained.rules.mended", values)
            return error(converted(least_squares(looked(after=[REST]), 4)))

    assert streams(mended) < 0.8 * streams(lambda u, *rest: u)


def test_attention_matching_fits_values_by_least_squares_to_what_the_context_gives():
    c = looked()[0]
    z, bias = RULES["Attention Matching"]([c], 3)[0]
    values, p = bias.kv / bias.d[..., None], c.attention
    rows = (c.k[:, :, None] / c.k.shape[-1] ** 0.25 == z[:, None]).all(axis=-1)    # (heads, m, 3)
    first = p.mT @ p.sum(axis=-1, keepdims=True)    # the token most like the whole
    assert (rows[..., 0].argmax(axis=-1) == first[..., 0].argmax(axis=-1)).all()
    new = (p @ rows) * bias.d[:, None]
    fitted, wanted = ((p @ rows).mT @ x.sum(axis=-1)[..., None] for x in (new, p))
    assert abs(fitted / wanted - 1)[bias.d > 1e-2].max() < 0.01    # the best weights ≥ 0
    new = new / new.sum(axis=-1, keepdims=True)
    left = new @ values - p @ c.v / p.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(new.mT @ left, 0, atol=1e-8)


def test_merged_clusters_are_looked_at_as_much_as_their_keys():
    c = looked()[0]
    z, bias = merged(c, 5)
    scores = np.exp(c.q @ c.k.mT / c.k.shape[-1] ** 0.5)
    to_rows = np.exp(c.q / c.k.shape[-1] ** 0.25 @ z.mT) * bias.d[:, None]
    total = (to_rows / scores.sum(axis=-1, keepdims=True)).sum(axis=(-1, -2))
    np.testing.assert_allclose(total, M + 0.001 * (M - bias.d.sum(axis=-1)), rtol=1e-9)


def test_the_plain_rules_keep_the_tokens_that_they_name():
    c = looked()[0]
    most = c.attention.sum(axis=1).argmax(axis=-1)[:, None]
    for name, rows in (("last kept", [[-3, -2, -1]]), ("first and last kept", [[0, -2, -1]]),
                       ("most attended kept", most)):
        kept = RULES[name]([c], len(rows[0]))[0][1].kv
        assert (kept == np.take_along_axis(c.v, np.array(rows)[..., None] % M, axis=1)).all()
    assert random_features([c], 7, np.random.default_rng(1), 2)[0][1].kv.shape == (4, 14, 8)


def test_what_is_kept_is_a_ratio_of_sums_with_the_error_that_a_jackknife_finds():
    rng = np.random.default_rng(0)
    benefit = rng.random(200) + 0.5
    gap = benefit * (0.8 + 0.1 * rng.standard_normal(200))
    for sign, below in ("", benefit), ("+", np.full(200, benefit.mean())):
        without = [100 * np.delete(gap, i).mean() / np.delete(below, i).mean() for i in range(200)]
        text = ratio(gap, benefit, sign)
        assert [*map(float, text.split(" ± "))] == pytest.approx(
            [100 * gap.sum() / benefit.sum(), np.std(without) * 199 / 200**0.5], abs=0.02)
        assert text.startswith("+") == (sign == "+")


def test_the_measures_are_those_of_the_probabilities():
    answer, expected = np.random.default_rng(0).standard_normal((2, 3, 5))
    p, q = softmax(expected), softmax(answer)
    off = np.linalg.norm(answer - expected) / np.linalg.norm(expected)
    assert measure(answer, expected, [1, 0, 4]) == pytest.approx((
        -np.log(q[[0, 1, 2], [1, 0, 4]]).mean(), (p * np.log(p / q)).sum(axis=-1).mean(), off))


def test_self_study_is_what_the_model_draws_after_the_whole_context():
    whole = continuation(MODEL, [CONTEXT] * 2, 5, choose=sampler(np.random.default_rng(3)))
    assert (self_study(MODEL, CONTEXT, np.random.default_rng(3), 2, 5) == whole).all()
    assert error(every_token(MODEL, CONTEXT)) < 1e-9


def test_the_texts_name_their_facts_and_no_word_is_in_two_parts():
    parts = [smollm2.read_texts(part) for part in ("choices", "earlier", "second", "test")]
    for texts, tasks in parts:
        assert len(texts) >= 6 and all(len(questions) == 3 for _, questions in texts)
        assert all(fact.strip() in text for text, questions in texts for _, fact, _ in questions)
        assert all(len(dict(words)) >= 28 for words in tasks.values()) and len(tasks) == 3
    for name in "antonyms", "capitals", "past tense":
        words = [word for _, tasks in parts for word in dict(tasks[name])]
        assert len({*words}) == len(words)


@pytest.mark.parametrize("script, name", [
    (stories15m, "stories15M.bin"), (stories15m, "tokenizer.bin"), (smollm2, "tiny.gguf")])
def test_one_line_says_what_is_wrong_with_a_file(tmp_path, capsys, script, name):
    llama2c.write_tiny(tmp_path, np.random.default_rng(0))
    (tmp_path / name).write_bytes(b"x" * 100)
    assert script.main([str(tmp_path if script is stories15m else tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{script.__name__}.py: ") and name in error and error.count("\n") == 1


def test_a_prompt_is_continued_and_no_table_printed(capsys):
    assert not smollm2.main(["--prompt", "the herring", "--generate", "3"])
    output = capsys.readouterr().out
    assert "'the herring' goes on: '" in output and "kept" not in output


@pytest.mark.parametrize("place, kept", [(gpt2.pretrained.placed, True), (anywhere, False)])
def test_gpt2_after_a_context_that_is_kept_whole_reads_on_where_it_would(capsys, place, kept):
    model, tokenizer, _ = gpt2.read(None)
    texts = [(text[:60], questions) for text, questions in smollm2.read_texts("choices")[0][:2]]
    smollm2.facts(model, tokenizer, 256, texts, np.random.default_rng(0),
                  {"Attention Matching": least_squares}, (10**9,), place)
    whole = re.search("KL kept.*\nAttention Matching +100.00 ± 0.00\n", capsys.readouterr().out)
    assert bool(whole) == kept
