"""The model built by hand: n-gram induction, and its b_KV as a table of counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact import assert_close, rngs
from iclca_ref import iclca
from linear_transformer import (Transformer, block, forward, generate, identity, induction_transformer, look_up_layer,
                                previous_token_layer, rope_frequencies)

texts = st.lists(st.integers(0, 4), min_size=1, max_size=40)


def counted(text, vocab_size, n_gram):
    """For every place of the text the votes for the next word: its histories and the text's, compared entry by entry."""
    votes = np.zeros((len(text), vocab_size))
    for i in range(len(text)):
        for j in range(i + 1):
            votes[i, text[j]] += sum(text[j - s] == text[i + 1 - s] for s in range(1, n_gram + 1) if j >= s)
    return votes


@pytest.mark.proves("induction by hand", "design; Table 2")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(texts, st.integers(1, 4), st.integers(0, 3))
def test_the_logits_count_how_far_the_histories_agree(dtype, text, n_gram, room):
    logits, _ = forward(induction_transformer(5, len(text) + room, n_gram, dtype), text)
    assert_close(logits + 1, (counted(text, 5, n_gram) + 1).astype(dtype), ulps=40 * len(text))


@pytest.mark.breaks("induction by hand", "the frequencies (2m + 1) π / d_k (RoFormer's in their place)")
@given(st.integers(0, 2**32 - 1))
def test_with_other_frequencies_the_heads_do_not_look_back_one_token(seed):
    text, model = np.random.default_rng(seed).integers(0, 5, 30), induction_transformer(5, 30)
    copy, look_up = model.layers
    expected = counted(text, 5, 2)
    assert_close(forward(model, text)[0] + 1, expected + 1, ulps=1000)
    blurred = model._replace(layers=(copy._replace(theta=rope_frequencies(30)), look_up))
    assert abs(forward(blurred, text)[0] - expected).max() > 0.1


@pytest.mark.breaks("b_KV is the table of what followed what", "a second layer without position (one turned by RoFormer's)")
@given(st.integers(0, 2**32 - 1))
def test_with_positions_in_the_second_layer_its_b_kv_is_no_table_of_counts(seed):
    text, model = np.random.default_rng(seed).integers(0, 5, 30), induction_transformer(5, 30)
    copy, look_up = model.layers
    plain, turned = (iclca(m, text)[1].kv for m in (model, model._replace(
        layers=(copy, look_up._replace(theta=rope_frequencies(10))))))
    assert_close(plain + 1, np.rint(plain) + 1, ulps=1000)
    assert abs(turned - np.rint(turned)).max() > 0.01


@pytest.mark.proves("b_KV is the table of what followed what", "design")
@given(texts, st.integers(1, 3))
def test_the_last_layers_b_kv_is_the_table_of_what_came_after_what(text, n_gram):
    table = np.zeros((n_gram, 5, 5))
    for s in range(1, n_gram + 1):
        np.add.at(table[s - 1], (text[:-s], text[s:]), 1)
    b_kv = iclca(induction_transformer(5, len(text), n_gram), text)[1].kv[0]
    assert_close(b_kv[:5 * n_gram] + 1, table.reshape(-1, 5) + 1, ulps=40 * len(text))


@given(rngs, st.integers(1, 3), st.integers(1, 60))
def test_the_converted_model_continues_as_the_text_in_context_does(rng, n_gram, m):
    model, text = induction_transformer(9, m + 40, n_gram), rng.integers(0, 9, m + 10)
    np.testing.assert_array_equal(generate(model, text[m:], 30, iclca(model, text[:m])), generate(model, text, 30))


def test_a_text_is_continued_as_it_went_on_before():
    model = induction_transformer(30, 50)
    text = np.random.default_rng(0).permutation(30)
    np.testing.assert_array_equal(generate(model, [*text, *text[:2]], 10), text[2:12])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_model_has_the_slots_widths_and_types_that_its_description_says(dtype):
    model = induction_transformer(5, 20, dtype=dtype)
    assert model.embed.shape == (5, 5 * 4 + 1) and model.unembed.shape == (21, 5) and model.max_length == 20
    copy, look_up = model.layers
    assert [w.shape for w in copy] == [(2, 21, 20), (2, 21, 20), (2, 21, 5), (2, 5, 21), (21, 0), (0, 21), (10,)]
    assert [w.shape for w in look_up] == [(1, 21, 10), (1, 21, 10), (1, 21, 5), (1, 5, 21), (21, 0), (0, 21), (5,)]
    assert {w.dtype for w in (model.embed, model.unembed, *copy, *look_up)} == {np.dtype(dtype)}
    assert previous_token_layer(9, slice(0, 2), [slice(2, 4), slice(4, 6), slice(6, 8)], 1).theta.shape == (2,)


def test_the_layers_work_on_any_slices_of_the_residual_stream():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.integers(0, 5, (6, 9)), np.ones((6, 1), int)], axis=1).astype(float)
    bare = Transformer(None, (), None, phi=identity, normalize=False, norm=identity)
    copied, _ = block(x, previous_token_layer(10, slice(3, 5), [slice(5, 7), slice(7, 9)], 6), bare)
    expected = x.copy()
    expected[1:, 5:7] += x[:-1, 3:5]
    expected[2:, 7:9] += x[:-2, 3:5]
    np.testing.assert_allclose(copied, expected, atol=1e-12)
    found, _ = block(x, look_up_layer(10, [slice(1, 3)], [slice(3, 5)], slice(5, 7), slice(7, 9)), bare)
    expected = x.copy()
    expected[:, 7:9] += np.tril(x[:, 1:3] @ x[:, 3:5].T) @ x[:, 5:7]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_an_odd_product_of_vocabulary_and_n_gram_is_padded():
    model = induction_transformer(3, 9, n_gram=1)
    assert model.layers[1].w_q.shape[-1] == 4
    np.testing.assert_array_equal(generate(model, [0, 1, 2, 0], 2), [1, 2])


def test_a_text_longer_than_the_model_was_built_for_and_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="at most 5"):
        forward(induction_transformer(3, 5), [0] * 6)
    for sizes in (0, 5, 1), (5, 0, 1), (5, 5, 0):
        with pytest.raises(ValueError, match="at least 1"):
            induction_transformer(*sizes)
