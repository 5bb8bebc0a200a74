"""The transformer around the attention: blocks, logits, decoding, arithmetic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact import (assert_exactly_equal, assert_proved, assert_refuted, every, is_exact, rngs, symbolic_transformer,
                   transformers)
from iclca_ref import iclca
from linear_transformer import (elu_plus_one, forward, gelu, generate, layer_norm, parallel_attention,
                                random_transformer, recurrent_attention, relu)
from polynomials import unknown

floating = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def straightforward_forward(model, tokens):
    """The transformer as loops over layers, heads, tokens and earlier tokens; the rotations as 2 × 2 matrices."""
    x = [model.embed[t] for t in tokens]
    for layer in model.layers:
        h = [model.norm(x_i) for x_i in x]
        new = []
        for i in range(len(x)):
            total = 0 * x[i]
            for w_q, w_k, w_v, w_o in zip(*layer[:4]):
                numerator, denominator = 0, 0
                for j in range(i + 1):
                    q, k = model.phi(h[i] @ w_q), model.phi(h[j] @ w_k)
                    cos, sin = (a[0] for a in model.rope(np.array([i - j]), layer.theta))
                    score = sum(q[2 * p] * (cos[p] * k[2 * p] + sin[p] * k[2 * p + 1])
                                + q[2 * p + 1] * (cos[p] * k[2 * p + 1] - sin[p] * k[2 * p]) for p in range(len(cos)))
                    numerator, denominator = numerator + score * (h[j] @ w_v), denominator + q @ k
                total = total + (numerator / denominator if model.normalize else numerator) @ w_o
            a = x[i] + total
            b = h[i] if model.parallel else model.norm(a)
            new.append(a + model.activation(b @ layer.w_1) @ layer.w_2)
        x = new
    return np.stack([model.norm(x_i) @ model.unembed for x_i in x])


@pytest.mark.proves("the model is its formula", "§4.5, App D")
@given(transformers(), st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_the_model_is_its_formula_written_as_loops(model, tokens):
    assert_exactly_equal(forward(model, tokens)[0], straightforward_forward(model, tokens))


@pytest.mark.proves("the model is its formula", "§4.5, App D")
def test_the_model_is_its_formula_for_every_weight_angle_feature_map_norm_and_activation():
    options = dict(normalize=(False, True), parallel=(False, True))
    for shape in every(n=(1, 2), depth=(1, 2), **options) + every(n=(2,), heads=(2,), pairs=(2,), d_ff=(0, 2), **options):
        model = symbolic_transformer(**{name: size for name, size in shape.items() if name != "n"})
        tokens = [1, 0, 1][:shape["n"]]
        assert_proved(forward(model, tokens)[0], straightforward_forward(model, tokens), **shape)


@pytest.mark.breaks("the model is its formula", "the MLP after the attention in place of beside it, or the reverse")
def test_a_block_of_the_other_kind_is_another_model():
    model = symbolic_transformer()
    assert_refuted(forward(model, [0])[0], straightforward_forward(model._replace(parallel=True), [0]))


@pytest.mark.breaks("the model is its formula", "half-split rotary in place of interleaved")
def test_half_split_rotary_is_another_model():
    def half_split(x):                     # the pairs (x_0, x_2), (x_1, x_3): the same turn of other coordinates
        return unknown("phi")(x)[..., [0, 2, 1, 3]]

    model = symbolic_transformer(pairs=2)
    assert_refuted(forward(model, [0, 1])[0], straightforward_forward(model._replace(phi=half_split), [0, 1]))


@floating
@pytest.mark.parametrize("parallel", [False, True])
def test_the_model_is_its_formula_in_floating_point_too(dtype, parallel):
    model = random_transformer(np.random.default_rng(1), 9, 8, 2, 2, dtype=dtype)._replace(parallel=parallel)
    tokens = [1, 5, 8, 8, 0]
    np.testing.assert_allclose(forward(model, tokens)[0], straightforward_forward(model, tokens),
                               rtol=0, atol=100 * np.finfo(dtype).eps)


@given(transformers(n_layers=st.integers(1, 2)), st.integers(0, 2**32 - 1))
def test_a_batch_is_its_rows(model, seed):
    batch = np.random.default_rng(seed).integers(0, 4, (2, 2, 3))
    logits, biases = forward(model, batch)
    for i in np.ndindex(2, 2):
        assert_exactly_equal((logits[i], [(kv[i], d[i]) for kv, d in biases]), forward(model, batch[i]))


@floating
@given(rngs, st.sampled_from([0, None, 8]), st.booleans())
def test_float_models_keep_their_type_from_tokens_to_logits_and_biases(dtype, rng, d_ff, normalize):
    model = random_transformer(rng, 10, 8, 2, 2, d_ff, dtype)._replace(normalize=normalize)
    for attend in parallel_attention, recurrent_attention:
        logits, biases = forward(model, [1, 2, 3], attend=attend)
        assert {a.dtype for a in [logits, *model.embed, *sum(map(tuple, biases + iclca(model, [1, 2])), ())]} == {np.dtype(dtype)}
    assert {a.dtype for a in sum(map(tuple, model.layers), ())} == {np.dtype(dtype)}


@given(transformers(), st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_fractions_stay_fractions_from_tokens_to_logits_and_biases(model, tokens):
    logits, biases = forward(model, tokens, iclca(model, tokens))
    assert all(is_exact(a) for a in [logits, *sum(map(tuple, biases), ())])


@given(rngs, st.integers(0, 6))
def test_greedy_decoding_is_the_most_likely_token_of_the_whole_text_again_and_again(rng, n):
    model, tokens = random_transformer(rng, 30, 16, 2, 2), rng.integers(0, 30, 7)
    text = list(tokens)
    for _ in range(n):
        text.append(int(forward(model, text)[0][-1].argmax()))
    np.testing.assert_array_equal(generate(model, tokens, n), np.array(text[7:], int), strict=True)
    np.testing.assert_array_equal(generate(model, tokens[4:], n, iclca(model, tokens[:4])), text[7:])


@floating
@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_equal_logits_give_the_smallest_token_whatever_the_rounding(dtype, scale):
    model = random_transformer(np.random.default_rng(0), 5, 4, 1, 1, dtype=dtype)
    column, eps = scale * model.unembed[:, :1], np.finfo(dtype).eps
    ties = model._replace(unembed=np.concatenate([0 * column - 9 * abs(column), column, column * (1 + 4 * eps)], axis=1))
    last = forward(ties, [3])[0][-1]
    assert generate(ties, [3], 1) == (1 if last[0] < last[1] else 0)


@floating
def test_logits_that_differ_by_more_than_rounding_are_no_tie(dtype):
    model = random_transformer(np.random.default_rng(0), 5, 4, 1, 1, dtype=dtype)
    column, eps = model.unembed[:, :1], np.finfo(dtype).eps
    larger = column * dtype(1 + 4000 * eps)
    apart = model._replace(unembed=np.concatenate([column, larger], axis=1))
    assert generate(apart, [3], 1) == forward(apart, [3])[0][-1].argmax()


def test_logits_that_are_no_numbers_are_refused():
    model = random_transformer(np.random.default_rng(0), 5, 4, 1, 1)
    with pytest.raises(ValueError, match="finite"):
        generate(model._replace(unembed=model.unembed * np.nan), [1], 3)


def test_random_weights_have_variance_one_over_fan_in_and_less_where_they_write_to_the_residual_stream():
    model = random_transformer(np.random.default_rng(0), 500, 64, 2, 4, d_ff=128)
    w_q, w_k, w_v, w_o, w_1, w_2, theta = model.layers[0]
    for w, fan_in in [(model.embed, 1), (w_q, 64), (w_k, 64), (w_v, 64), (w_o, 64 * 4), (w_1, 64), (w_2, 128 * 4),
                      (model.unembed, 64)]:
        assert abs(w.std() * fan_in**0.5 - 1) < 0.05
    assert w_q.shape == w_k.shape == w_v.shape == (4, 64, 16) and w_o.shape == (4, 16, 64) and theta.shape == (8,)
    assert random_transformer(np.random.default_rng(0), 5, 8, 1, 1).layers[0].w_1.shape == (8, 32)
    assert random_transformer(np.random.default_rng(0), 5, 8, 1, 1, d_ff=0).layers[0].w_2.shape == (0, 8)


def test_elementwise_functions_take_their_known_values():
    x = np.array([-1.0, 0.0, 2.0])
    np.testing.assert_allclose(relu(x), [0, 0, 2])
    np.testing.assert_allclose(elu_plus_one(x), [np.exp(-1), 1, 3])
    np.testing.assert_allclose(elu_plus_one(x / 4), [np.exp(-0.25), 1, 1.5])
    np.testing.assert_allclose(gelu(x), [-0.158808009, 0, 1.954597694], atol=1e-9)
    np.testing.assert_allclose(layer_norm(np.array([1.0, 5.0])), [-2, 2] / np.sqrt(4 + 1e-5), rtol=1e-15)
    with np.errstate(all="raise"):
        elu_plus_one(np.array([1e4]))


model = random_transformer(np.random.default_rng(0), 10, 8, 2, 2)


@pytest.mark.parametrize("tokens, error", [
    ([1, 10], IndexError), ([-1, 2], IndexError), ([1.0, 2.0], TypeError), (["a"], TypeError), (3, TypeError),
    ([True], TypeError), ([], ValueError)])
def test_tokens_that_are_none_are_refused(tokens, error):
    with pytest.raises(error, match="tokens"):
        forward(model, tokens)


def test_biases_that_do_not_fit_the_model_are_refused():
    biases = iclca(model, [1, 2])
    for wrong in [], biases[:1], biases + biases:
        with pytest.raises(ValueError, match="biases"):
            forward(model, [1], wrong)
    other = iclca(random_transformer(np.random.default_rng(0), 10, 8, 2, 1), [1, 2])
    for wrong in other, [other[0], biases[1]], [b._replace(d=b.d[..., :1]) for b in biases]:
        with pytest.raises(ValueError, match=r"bias.kv \(\d, \d, \d\), bias.d \(\d, \d\)"):
            forward(model, [1], wrong)


def test_wrong_sizes_are_refused():
    rng = np.random.default_rng(0)
    for d_model, heads in (8, 3), (6, 2), (9, 3):
        with pytest.raises(ValueError, match="n_heads"):
            random_transformer(rng, 10, d_model, 1, heads)
    for tokens, n in ([1], -1), ([[1]], 1), (1, 1):
        with pytest.raises(ValueError, match="tokens must be"):
            generate(model, tokens, n)
    with pytest.raises(ValueError, match="empty"):
        generate(model, [], 1)
