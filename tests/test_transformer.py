"""The transformer around the attention: blocks, logits, decoding, arithmetic."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arguments import a, assert_arguments_stay, batches, case, refused
from exact import every, flat, rngs, symbolic_transformer, transformer_of, transformers
from iclca_ref import iclca
from linear_transformer import (Bias, Transformer, block, elu_plus_one, forward, gelu,
                                generate, identity, layer_norm, random_transformer, relu,
                                rope_frequencies)
from polynomials import unknown
from theorem import broken, theorem


# ---- The model is its formula -------------------------------------------------------------------

def straightforward_forward(model, tokens):
    """The transformer as loops over layers, heads and tokens; the rotations as 2 × 2 matrices."""
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
                    cos, sin = (t[0] for t in model.rope(np.array([i - j]), layer.theta))
                    score = sum(q[2 * p] * (cos[p] * k[2 * p] + sin[p] * k[2 * p + 1])
                                + q[2 * p + 1] * (cos[p] * k[2 * p + 1] - sin[p] * k[2 * p])
                                for p in range(len(cos)))
                    numerator = numerator + score * (h[j] @ w_v)
                    denominator = denominator + q @ k
                total = total + (numerator / denominator if model.normalize else numerator) @ w_o
            attended = x[i] + total
            b = h[i] if model.parallel else model.norm(attended)
            new.append(attended + model.activation(b @ layer.w_1) @ layer.w_2)
        x = new
    return np.stack([model.norm(x_i) @ model.unembed for x_i in x])


def of_any_model(n, **shape):
    return symbolic_transformer(**shape), [1, 0, 1][:n]

def random_text(rng, dtype):
    model = random_transformer(rng, 9, 20, n_layers=5, n_heads=5, dtype=dtype)
    return model._replace(parallel=bool(rng.integers(2))), rng.integers(0, 9, 5).astype(np.uint8)


kinds = dict(normalize=(False, True), parallel=(False, True))
texts = st.lists(st.integers(0, 3), min_size=1, max_size=3)


@theorem("the model is its formula", "§4.5, App D", st.tuples(transformers(), texts),
         every(n=(1, 2), depth=(1, 2), **kinds)
         + every(n=(2,), heads=(2,), pairs=(2,), d_ff=(0, 2), **kinds), of_any_model,
         floats=random_text, ulps=100)
def model_is_its_formula(model, tokens, other=identity):
    """The logits  =  those by loops, of the same model or `other` of it."""
    return forward(model, tokens)[0], straightforward_forward(other(model), tokens)

@broken(model_is_its_formula, "the MLP after the attention in place of beside it, or the reverse",
        None, [of_any_model(1), of_any_model(1, parallel=True)])
def a_block_of_the_other_kind(*case):
    return model_is_its_formula(*case, lambda model: model._replace(parallel=not model.parallel))

@broken(model_is_its_formula, "half-split rotary in place of interleaved", None,
        [of_any_model(2, pairs=2)])
def half_split_rotary(*case):
    """The pairs (x_0, x_2), (x_1, x_3): the same turn of other coordinates."""
    def half_split(x):
        return unknown("phi")(x)[..., [0, 2, 1, 3]]

    return model_is_its_formula(*case, lambda model: model._replace(phi=half_split))


# ---- Greedy decoding ----------------------------------------------------------------------------

@given(rngs, st.integers(0, 6))
def test_greedy_decoding_is_the_largest_logit_of_the_whole_text_again_and_again(rng, n):
    model, tokens = random_transformer(rng, 30, 16, 2, 2), rng.integers(0, 30, 7)
    text = list(tokens)
    for _ in range(n):
        text.append(int(forward(model, text)[0][-1].argmax()))
    for rest, biases in (tokens, None), (tokens[4:], iclca(model, tokens[:4])):
        o = generate(model, rest, n, biases)
        np.testing.assert_array_equal(o, np.array(text[7:], int), strict=True)


model = random_transformer(np.random.default_rng(0), 10, 8, 2, 2)
short = model._replace(max_length=5)


def with_logits(*last):
    """A model whose logits are these after every token."""
    return Transformer(np.ones((len(last), 1)), (), np.array([last]), norm=identity)


@pytest.mark.parametrize("logits, greedy", [
    ([1.0, 2.0, -1e9], 1), ([-3.0, -1.0, -2.0], 1), ([-1e9, -5.0, -4.999999], 2), ([0, 0, 0], 0),
    ([1.0, 1 + 4e-16, 0.0], 1), ([2.0, 2.0, 1.0], 0), (np.float32([1, 1 + 2e-7, 0]), 1)])
def test_greedy_means_greedy(logits, greedy):
    assert generate(with_logits(*logits), [0], 2).tolist() == [greedy] * 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused_whenever_they_come(bad):
    follows = np.roll(np.eye(5), 1, axis=1)   # the tokens 0 → 1 → 2 → 3, and after 3 no numbers
    follows[3] = bad
    counting = Transformer(follows, (), np.eye(5), norm=identity)
    with np.errstate(invalid="ignore"):   # 0 · inf
        assert generate(counting, [0], 3).tolist() == [1, 2, 3]
        with pytest.raises(ValueError, match="after 4 tokens are not finite"):
            generate(counting, [0], 4)
    with pytest.raises(ValueError, match="after 1 tokens are not finite"):
        generate(with_logits(0.0, bad, 1.0), [0], 1)


def test_a_text_may_be_as_long_as_the_model_allows():
    assert forward(short, [1, 2, 3, 4, 5])[0].shape == (5, 10)
    assert len(generate(short, [1, 2, 3], 3)) == 3   # the last one is not read


# ---- The functions themselves -------------------------------------------------------------------

def test_random_weights_are_independent_with_variance_one_over_fan_in():
    """And 1 / (2 · layers) of it where they write to the residual stream."""
    model = random_transformer(np.random.default_rng(0), 500, 64, 3, 4, d_ff=128)
    assert model[3:-3] == (elu_plus_one, True, layer_norm, gelu)   # a Transformer's own, if not told
    matrices = [model.embed, model.unembed]
    for layer in model.layers:
        w_q, w_k, w_v, w_o, w_1, w_2, theta = layer
        for w, fan_in in [(model.embed, 1), (w_q, 64), (w_k, 64), (w_v, 64), (w_o, 64 * 6),
                          (w_1, 64), (w_2, 128 * 6), (model.unembed, 64)]:
            assert abs(w.std() * fan_in**0.5 - 1) < 0.05 and abs(w.mean()) < 0.1 / fan_in**0.5
        assert w_q.shape == w_k.shape == w_v.shape == (4, 64, 16) and w_o.shape == (4, 16, 64)
        np.testing.assert_array_equal(theta, rope_frequencies(16))
        matrices += layer[:-1]
    numbers = np.concatenate([w.ravel()[:4000] for w in matrices])
    assert len(np.unique(numbers)) == len(numbers)   # no two matrices are drawn alike
    rng, sizes = np.random.default_rng(0), (np.int64(4), np.int64(1))
    for d_ff, shape in (None, (8, 32)), (0, (8, 0)):
        assert random_transformer(rng, 5, 8, 1, 1, d_ff).layers[0].w_1.shape == shape
    narrow = random_transformer(rng, 5, *sizes, 2, dtype=np.float32)
    assert {w.dtype for w in flat([list(narrow.layers), narrow.embed])} == {np.dtype(np.float32)}


def test_elementwise_functions_take_their_known_values():
    x = np.array([-1.0, 0.0, 2.0])
    np.testing.assert_allclose(relu(x), [0, 0, 2])
    np.testing.assert_allclose(elu_plus_one(x), [np.exp(-1), 1, 3])
    np.testing.assert_allclose(elu_plus_one(x / 4), [np.exp(-0.25), 1, 1.5])
    np.testing.assert_allclose(gelu(x), [-0.158808009, 0, 1.954597694], atol=1e-9)
    normed = np.array([-2, 2]) / np.sqrt(4 + 1e-5)
    np.testing.assert_allclose(layer_norm([1.0, 5.0]), normed, rtol=1e-15)
    assert elu_plus_one(np.array([255], np.uint8)) == 256
    with np.errstate(all="raise"):
        elu_plus_one(np.array([1e4]))


# ---- Batches and bad input ----------------------------------------------------------------------

def quarter_turns(positions, theta):
    """A rope in whole numbers: a quarter of a full turn at each position."""
    return [np.array(turn, object)[positions % 4, None] for turn in ([1, 0, -1, 0], [0, 1, 0, -1])]


rng = np.random.default_rng(0)
deep = transformer_of(   # five layers of five heads, in whole numbers
    lambda _, *shape: rng.integers(-2, 3, shape).astype(object), lambda *_: np.array([1]), 5, 5, 1,
    3, identity, False, identity, relu, quarter_turns)


def on_biases(function):
    """A function of the model's tokens and biases, as one of arrays: the same for all layers."""
    return lambda x, kv, d: function((x % 4).astype(int), [Bias(kv + i, d) for i in range(5)])


test_batches = batches(
    case("block", lambda x, *b: block(x, deep.layers[0], deep, Bias(*b)), "x:nk kv?:hkw d?:hk"),
    case("block, one start for all heads",
         lambda x, *b: block(x, deep.layers[0], deep, Bias(*b)), "x:nk kv!:kw d!:k"),
    case("block, GPT-J", lambda x: block(x, deep.layers[0], deep._replace(parallel=True)), "x:nk"),
    case("forward", on_biases(partial(forward, deep)), "x:n kv?:hkw d?:hk"),
    case("iclca", on_biases(partial(iclca, deep)), "x:n kv?:hkw d?:hk"),
    case("iclca, no start", lambda x: iclca(deep, (x % 4).astype(int)), "x:n"))


def one_layer(x, **weights):
    return lambda: block(x, model.layers[0]._replace(**weights), model)


def made(d_model=8, n_layers=2, n_heads=2):
    return lambda: random_transformer(np.random.default_rng(0), 9, d_model, n_layers, n_heads)


def test_a_model_may_have_no_layers():
    assert made(n_layers=0)().layers == () and forward(made(n_layers=0)(), [1])[0].shape == (1, 9)


biases = iclca(model, [1, 2])
other = iclca(made(n_heads=1)(), [1, 2])

test_mistakes = refused(
    *[(words, lambda tokens=tokens: forward(model, tokens)) for words, tokens in [
        ("tokens; float64 (1,)", [1.0]), ("tokens; ()", 1), ("tokens; bool", [True]), ("U1", ["a"]),
        ("tokens; < 10; -1 to 3", [3, -1]), ("tokens; < 10; 0 to 10", [0, 10]),
        ("tokens; (0,)", []), ("tokens; (2, 0)", [[], []])]],
    ("tokens (4,); 3", lambda: forward(model._replace(max_length=3), [0] * 4)),
    *[("tokens; 5", lambda args=args: generate(short, *args)) for args in (
        ([1, 2, 3], 4), ([1, 2, 3, 4, 5, 6], 0), ([1, 2], np.uint8(255)))],
    ("bias.kv (2, 4, 4)", lambda: forward(model, [1], [a(2, 2, 4, 4)] * 2)),
    *[(f"biases; 2; {n}", lambda n=n: forward(model, [1], [None] * n)) for n in (0, 1, 4)],
    *[("bias.kv (; bias.d (", lambda b=b: forward(model, [1], b))
      for b in (other, [other[0], biases[1]], [b._replace(d=b.d[..., :1]) for b in biases])],
    *[(f"got {np.shape(args[0])} and n = ", lambda args=args: generate(model, *args)) for args in (
        ([[1]], 1), ([1], -1), ([], 0), ([], 1))],
    ("tokens", lambda: generate(model, [99], 0)), ("tokens", lambda: generate(model, 1, 1)),
    *[("n_heads; d_model", made(d_model, n_heads=n_heads)) for d_model, n_heads in (
        (8, 3), (6, 2), (9, 3), (8, 0), (8, -2))], ("n_layers = -1", made(n_layers=-1)),
    ("axes", one_layer(a(8))), ("w_q (1, 8, 4)", one_layer(a(5, 8), w_q=a(1, 8, 4))),
    ("w_o (1, 4, 8)", one_layer(a(5, 8), w_o=a(1, 4, 8))),
    ("w_o (2, 4, 1)", one_layer(a(5, 8), w_o=a(2, 4, 1))),
    *[(f"{name} {s}", one_layer(x, **{name: a(*s)})) for x in (a(5, 8), a(3, 5, 8)) for name, s in (
        ("w_2", (32, 1)), ("w_2", (3, 32, 8)), ("w_1", (3, 8, 32)), ("w_1", (32,)))],
    ("cos (5, 1)", one_layer(a(5, 8), theta=a(1))),
    *[(f"unembed {s}", lambda s=s: forward(model._replace(unembed=a(*s)), [1, 2]))
      for s in ((8,), (7, 9), (2, 8, 9))],
    ("x; float16", lambda: forward(model._replace(embed=model.embed.astype(np.float16)), [1])))


def test_a_model_is_not_modified_and_not_returned():
    tokens, start = np.array([1, 2, 3]), [None, None]
    assert_arguments_stay(
        lambda *_: [forward(model, tokens, biases), generate(model, tokens, 3, biases),
                    iclca(model, tokens, biases), iclca(model, [], biases)],
        tokens, model.embed, model.unembed, model.layers, biases)
    forward(model, tokens, start), iclca(model, tokens, start)
    assert start == [None, None]
