"""Any function on a batch is the same function on each of the batch's parts, put together.

A line of the table has a function and the shapes of its arguments without leading axes. Every
argument marked ? is tried with all of the batch's leading axes and with each number of them left
out (the first ones, as NumPy has it); = as many as the argument before it; ! always without any.
What the parts are is proved elsewhere; here nothing may mix, skip or swap them.
"""

from fractions import Fraction
from functools import cache, partial
from itertools import product

import numpy as np
import pytest

from exact import assert_close, assert_differ, assert_exactly_equal, flat, fractions
from iclca_ref import (LSA, attention_bias, compose, context_map, dual_form, farthest_rows, iclaa,
                       iclca, icl_weight_update, kernel_prediction, key_value_matrix, lin_attn,
                       linear_bias, linear_recurrence, log_landmark_features, log_random_features,
                       lsa, mean_squared_gradient, merged_bias, random_features,
                       similarity_attention, softmax_attend,
                       softmax_attention_with_bias, softmax_bias, weight_update)
from linear_transformer import (Bias, Layer, Transformer, block, chunked_attention, forward,
                                identity, parallel_attention, random_transformer,
                                recurrent_attention, relu, rope_frequencies, rotate,
                                run_layers, softmax, softmax_attention)

BATCHES = (), (1,), (2,), (2, 1), (2, 3)
# 2 and 3 are lengths of batches too, so that an axis in the wrong place would fit
LENGTHS = dict(n=3, k=2, v=3, d=4, r=2, o=3, i=2, h=5, w=1, m=2, f=16)
FORMS = {"recurrent": recurrent_attention, "parallel": parallel_attention,
         "chunked": partial(chunked_attention, chunk=2)}


def quarter_turns(positions, theta):
    """A rope in whole numbers: position · theta quarters of a full turn."""
    quarters = np.multiply.outer(positions, theta) % 4
    return tuple(np.array(turns, object)[quarters] for turns in ([1, 0, -1, 0], [0, 1, 0, -1]))


rope = partial(quarter_turns, theta=np.array([1]))


def whole(rng, numbers, *shape):
    """Whole numbers from 1 to 9, so that no denominator vanishes: ints, Fractions or floats."""
    entries = rng.integers(1, 10, shape)
    return fractions(entries) if numbers is Fraction else entries.astype(
        float if numbers is float else object)


def case(name, function, spec, numbers=int):
    return pytest.param(function, spec.split(), numbers, id=name)


def attention(form, rope, normalize):
    return lambda q, k, v, kv, d: form(q, k, v, Bias(kv, d), rope, normalize)


def kernel(a, b):
    """A kernel that is not symmetric."""
    return (a[0] + a[1] * b[0] + b[1] * b[1]) * (a[1] + b[0] * b[1])


# ---- Five layers of five heads ------------------------------------------------------------------

def deep_model(dtype=object, **options):
    rng = np.random.default_rng(0)

    def layer():
        shapes = [(5, 2, 2)] * 3 + [(5, 2, 2), (2, 3), (3, 2)]
        weights = [rng.integers(-2, 3, shape).astype(dtype) for shape in shapes]
        return Layer(*(w if dtype is object else w / 4 for w in weights), np.array([1]))

    options = dict(phi=identity, normalize=False, norm=identity, activation=relu) | options
    embed, unembed = (rng.integers(-3, 4, s).astype(dtype) for s in ((9, 2), (2, 4)))
    return Transformer(embed, tuple(layer() for _ in range(5)), unembed, rope=quarter_turns,
                       **options)


model = deep_model()


def tokens(x):
    """Tokens of a vocabulary of 9, made of the numbers of the arguments."""
    return (np.asarray(x, float) - 1).astype(int)


def on_biases(function):
    """A function of a model's tokens and biases, as one of arrays: the same for all layers."""
    return lambda x, kv, d: function(tokens(x), [Bias(kv + i, d) for i in range(5)])


def merge(k, v):
    z = farthest_rows(k, 2)
    return merged_bias(k, v, z), partial(log_landmark_features, landmarks=z)


softmax_model = deep_model(float)


def iclaa_biases(x):
    return [bias for bias, _ in iclaa(softmax_model, tokens(x), merge)]


def after_iclaa(x):
    converted = iclaa(softmax_model, tokens(x), merge)
    return forward(softmax_model, tokens(x)[..., :2], converted, softmax_attend)[0]


# ---- The table ----------------------------------------------------------------------------------

W = np.random.default_rng(1).standard_normal((6, 2))
log_features = partial(log_random_features, projection=W)
qkv = "q:nk k:nk v:nv"
IN_HEADS = "x:n kv?:hkk d?:hk"

CASES = [
    *[case(f"{name}{' rotated' * bool(turn)}{' normalized' * normalize}",
           attention(form, turn, normalize), f"{qkv} kv?:kv d?:k", Fraction)
      for (name, form), turn, normalize in product(FORMS.items(), (None, rope), (False, True))],
    *[case(f"{name}, no start", form, qkv, Fraction) for name, form in FORMS.items()],
    case("rotate", lambda x: rotate(x, *rope(np.arange(3))), "x:nk"),
    case("attention_bias", lambda k, v, *b: attention_bias(k, v, Bias(*b), rope),
         "k:nk v:nv kv?:kv d?:k"),
    case("attention_bias, no start", attention_bias, "k:nk v:nv"),
    case("linear_bias", linear_bias, "context:nd w_k?:dk w_v?:dv b_kv?:kv"),
    case("key_value_matrix", key_value_matrix, "k:nk v:nv"),
    case("linear_recurrence", linear_recurrence, "q:nk A:nkk B:nkv state?:kv"),
    case("context_map", context_map, "A:nkk B:nkv"),
    case("compose", lambda *a: compose(a[:2], a[2:]), "A_2:kk B_2:kv A_1?:kk B_1?:kv"),
    case("compose, one later map", lambda *a: compose(a[2:], a[:2]), "A:kk B:kv A_2?:kk B_2=:kv"),
    case("lin_attn", lambda q, K, V: lin_attn(V, K, q), "q:rk K?:nk V?:nv"),
    case("lin_attn, one query", lambda q, K, V: lin_attn(V, K, q), "q!:k K:nk V?:nv"),
    case("lin_attn, one context", lambda q, K, V: lin_attn(V, K, q), "q:rk K!:nk V!:nv"),
    case("weight_update", weight_update, "E:no X:ni"),
    case("icl_weight_update", icl_weight_update, "context:nd w_k?:dk w_v?:dv"),
    case("dual_form", dual_form, "W0?:oi E:no X:ni x:ri"),
    case("dual_form, one input", dual_form, "W0?:oi E:no X:ni x!:i"),
    case("dual_form, one layer", dual_form, "W0!:oi E?:no X=:ni x:ri"),
    case("mean_squared_gradient", mean_squared_gradient, "outputs:no targets:no", Fraction),
    case("kernel_prediction", partial(kernel_prediction, kernel=kernel), "alpha!:no X!:ni x:i"),
    case("kernel_prediction of rows", partial(kernel_prediction, kernel=kernel),
         "alpha!:n X!:ni x:ri"),
    case("lsa", lambda context, query, *weights: lsa(context, query, LSA(*weights)),
         "context:nd query:rd w_q?:kd w_k?:kd w_v?:vd p?:dv"),
    case("lsa, one query token",
         lambda query, context, *weights: lsa(context, query, LSA(*weights)),
         "query!:d context!:nd w_q!:kd w_k!:kd w_v!:vd p!:dv"),
    case("similarity_attention",
         lambda v, sim, phi_q, *b: similarity_attention(sim, phi_q, v, Bias(*b)),
         "v:nv similarity:nn phi_q:nr kv?:rv d?:r", Fraction),
    case("farthest_rows", lambda k: farthest_rows(k, 2), "k:nk"),
    case("block", lambda x, *b: block(x, model.layers[0], model, Bias(*b)),
         "x:nk kv?:hkk d?:hk"),
    case("block, one start for all heads", lambda x, *b: block(x, model.layers[0], model, Bias(*b)),
         "x:nk kv!:kk d!:k"),
    case("forward", on_biases(partial(forward, model)), IN_HEADS),
    case("iclca", on_biases(partial(iclca, model)), IN_HEADS),
    case("iclca, no start", lambda x: iclca(model, tokens(x)), "x:n"),

    case("softmax", softmax, "x:nd", float),
    case("softmax_attention", softmax_attention, qkv, float),
    case("softmax_bias", partial(softmax_bias, log_features=log_features), "k:nk v:nv", float),
    case("softmax_bias, landmarks of each",
         lambda k, v, z: softmax_bias(k, v, partial(log_landmark_features, landmarks=z)),
         "k:nk v:nv z?:rk", float),
    case("merged_bias", merged_bias, "k:nf v:nv landmarks?:rf", float),
    case("softmax_attention_with_bias",
         lambda q, k, v, z, *b: softmax_attention_with_bias(
             q, k, v, Bias(*b), partial(log_landmark_features, landmarks=z)),
         f"{qkv} z?:rk kv?:rv d?:r", float),
    case("log_random_features", log_features, "x:nk", float),
    case("random_features", partial(random_features, projection=W / 9), "x:nk", float),
    case("log_landmark_features", log_landmark_features, "x:nk landmarks?:rk", float),
    case("iclaa", iclaa_biases, "x:n", float),
    case("forward after iclaa", after_iclaa, "x:n", float),
]


def leading_axes(batch, marks):
    """Every way in which the arguments may have the leading axes of the batch."""
    choices = [range(len(batch) + 1) if mark == "?" else [0] for mark in marks]
    for left_out in product(*choices):
        leading = []
        for mark, n in zip(marks, left_out):
            leading.append({"=": leading[-1] if leading else batch, "!": ()}.get(mark, batch[n:]))
        yield leading


@pytest.mark.parametrize("function, spec, numbers", CASES)
def test_a_function_of_a_batch_is_the_function_of_its_parts(function, spec, numbers):
    rng = np.random.default_rng(0)
    names, letters = zip(*(part.split(":") for part in spec))
    cores = [tuple(LENGTHS[letter] for letter in core) for core in letters]
    for batch in BATCHES if any(name[-1] != "!" for name in names) else [()]:
        # one array for each number of leading axes, so that few parts differ and all are known
        arrays = cache(lambda i, n: whole(rng, numbers, *batch[len(batch) - n:], *cores[i]))
        on_part = cache(lambda *parts: flat(function(*(arrays(i, n)[at]
                                                       for i, (n, at) in enumerate(parts)))))
        for leading in leading_axes(batch, [name[-1] for name in names]):
            lengths = [len(axes) for axes in leading]
            results = flat(function(*(arrays(i, n) for i, n in enumerate(lengths))))
            for at in np.ndindex(batch):
                parts = on_part(*((n, at[len(batch) - n:]) for n in lengths))
                here = [result[at] for result in results]
                if numbers is not float:
                    assert_exactly_equal(here, parts)
                else:
                    assert_close(here, parts, ulps=500)


FLOATS = [case for case in CASES if not case.id.startswith(("block", "forward", "icl"))]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function, spec, numbers", FLOATS)
def test_a_function_of_floats_gives_floats_of_the_same_size(function, spec, numbers, dtype):
    """Rotations included, though their cosines are Python's whole numbers here."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(1, 10, tuple(LENGTHS[letter] for letter in part.split(":")[1]))
              for part in spec]
    for result in flat(function(*(array.astype(dtype) for array in arrays))):
        assert result.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_model_of_floats_gives_floats_of_the_same_size(dtype):
    model = random_transformer(np.random.default_rng(0), 9, 8, 2, 2, dtype=dtype)
    softmax_model = model._replace(phi=identity)
    converted = iclaa(softmax_model, [1, 2, 3], merge)
    results = flat([forward(model, [4, 5], iclca(model, [1, 2, 3])), [b for b, _ in converted],
                    forward(softmax_model, [4, 5], converted, softmax_attend)[0],
                    list(model.layers), model.embed, model.unembed])
    assert {result.dtype for result in results} == {np.dtype(dtype)}


# ---- Heads and layers are parts too -------------------------------------------------------------

x = np.array([[3, 1], [1, 4], [-1, 5]], object)


@pytest.mark.parametrize("parallel", [False, True])
def test_the_heads_of_a_layer_add_up_each_from_its_own_start(parallel):
    layer, many = model.layers[0], model._replace(parallel=parallel)
    rng = np.random.default_rng(2)
    start = Bias(whole(rng, int, 5, 2, 2), whole(rng, int, 5, 2))
    no_mlp = layer._replace(w_1=layer.w_1[:, :0], w_2=layer.w_2[:0])
    each = [no_mlp._replace(**{name: getattr(layer, name)[i:i + 1]
                               for name in ("w_q", "w_k", "w_v", "w_o")}) for i in range(5)]
    alone = [block(x, head, many, Bias(start.kv[i:i + 1], start.d[i:i + 1]))
             for i, head in enumerate(each)]
    together, state = block(x, no_mlp, many, start)
    assert_exactly_equal(together, x + sum(y - x for y, _ in alone))
    assert_exactly_equal(state, [np.concatenate(s) for s in zip(*(s for _, s in alone))])
    for y, _ in alone:
        assert_differ(y, x)


def test_the_heads_of_a_random_model_turn_by_the_frequencies_of_their_own_width():
    for layer in random_transformer(np.random.default_rng(0), 9, 24, 5, 2).layers:
        np.testing.assert_array_equal(layer.theta, rope_frequencies(12))


def test_five_layers_are_five_blocks_one_after_the_other():
    text = np.array([1, 8, 2, 5])
    x, states = model.embed[text], []
    for layer in model.layers:
        x, state = block(x, layer, model)
        states.append(state)
    assert_exactly_equal(run_layers(model, text), (x, states))
    assert_exactly_equal(forward(model, text), (x @ model.unembed, states))
    assert_exactly_equal(iclca(model, text), states)


def test_a_context_becomes_the_biases_of_five_layers_of_five_heads_for_a_batch_of_prompts():
    context, prompts = np.array([1, 8, 2]), np.array([[5, 7], [0, 3]])
    expected = [forward(model, [*context, *prompt])[0][3:] for prompt in prompts]
    biases = iclca(model, context)
    assert_exactly_equal(forward(model, prompts, biases)[0], np.stack(expected))
    for i in range(5):
        missing = biases[:i] + [None] + biases[i + 1:]
        assert_differ(forward(model, prompts, missing)[0], np.stack(expected))
