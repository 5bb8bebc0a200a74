"""ICLCA: Theorem 4.1, §4.1's impossibility, Theorem 4.5, Algorithm 1, and what breaks them."""

from functools import partial

import numpy as np
from hypothesis import strategies as st

from arguments import a, batches, calls, case, refused, types_and_layouts
from exact import (Case, arrays, assert_close, assert_proved, attention_cases, every, fractions,
                   random_arrays, rational_rope, realistic, rngs, shapes, symbolic_case,
                   symbolic_transformer, transformers, uniform)
from iclca_ref import attention_bias, iclca, key_value_matrix, linear_bias
from linear_transformer import (Bias, Layer, Transformer, chunked_attention, forward, identity,
                                parallel_attention, random_transformer, recurrent_attention, rope,
                                run_layers)
from polynomials import variables
from theorem import broken, theorem

attend = partial(chunked_attention, chunk=2)   # so that short texts have several chunks
always, never = st.just(True), st.just(False)
least = dict(least_context=1, least_prompt=1)


# ---- The Key-Value matrix, and Theorem 4.1: one linear layer ------------------------------------

def linear_layer(x, w_q, w_k, w_v, b_kv):
    """Eq 9: Q (KᵀV + b_KV), without a mask."""
    return x @ w_q @ ((x @ w_k).T @ (x @ w_v) + b_kv)


# a context, a prompt, w_q, w_k, w_v and b_kv
LAYER = dict(c="m d", x="n d", q="d d_k", k="d d_k", v="d d_v", b="d_k d_v")
linear_cases, symbolic_layer = partial(random_arrays, LAYER), partial(arrays, variables, LAYER)


@theorem("Theorem 4.1", "Thm 4.1, Eq 9-11", linear_cases(m=0), shapes(
    [*every(m=range(3), n=(1, 2), d=(1, 2), d_k=(1, 2), d_v=(1,)),
     dict(m=3, n=3, d=2, d_k=2, d_v=2)],
    every(m=range(4), n=range(4), d=(1, 2), d_k=(1, 2), d_v=(1, 2))), symbolic_layer)
def theorem_4_1(context, x, w_q, w_k, w_v, b_kv, layer=linear_layer):
    """Eq 9 of X with b'_KV  =  the rows of X in Eq 9 of [X'; X] with b_KV."""
    in_context = layer(np.concatenate([context, x]), w_q, w_k, w_v, b_kv)[len(context):]
    return layer(x, w_q, w_k, w_v, linear_bias(context, w_k, w_v, b_kv)), in_context

@broken(theorem_4_1, "a normalizer, and no bias for it", linear_cases(),
        [symbolic_layer()], tuple(fractions([[[1]], [[2]], [[1]], [[1]], [[1]], [[1]]])))
def theorem_4_1_with_a_normalizer(*case):
    def normalized(x, w_q, w_k, w_v, b_kv):
        return linear_layer(x, w_q, w_k, w_v, b_kv) / (x @ w_q @ (x @ w_k).sum(axis=0))[:, None]

    return theorem_4_1(*case, normalized)


@theorem("the Key-Value matrix adds", "Def 3.4, Eq 6", attention_cases(),
         every(m=range(3), n=range(3), heads=(1, 2), pairs=(1,), d_v=(1, 2)))
def splits(case, matrix=key_value_matrix):
    """The Key-Value matrices of the two parts of a text add up to that of the whole."""
    (_, k, v), (_, k_x, v_x) = case.context, case.prompt
    return matrix(k, v) + matrix(k_x, v_x), matrix(case.k, case.v)

@broken(splits, "keys divided by the sum of all keys", attention_cases(**least),
        [symbolic_case(1, 1)])
def splits_with_keys_that_depend_on_all_tokens(case):
    return splits(case, lambda k, v: key_value_matrix(k / k.sum(axis=-2, keepdims=True), v))


# ---- §4.1: no other weights will do -------------------------------------------------------------

def two_weights(**shape):
    """A context, a prompt, w_k, w_v, and any w_1 and w_2 in their place."""
    context, x, _, w_k, w_v, _ = symbolic_layer(**shape)
    return context, x, w_k, w_v, variables("a", *w_k.shape), variables("b", *w_v.shape)


@theorem("no W_1, W_2 absorb a context", "§4.1, Eq 7-8, App A", None,
         every(m=range(1, 3), n=range(1, 3), d=(1, 2), d_k=(1, 2), d_v=(1, 2)), two_weights)
def no_weights_absorb_a_context(context, x, w_k, w_v, w_1, w_2):
    """(X W_1)ᵀ X W_2 = (X W_K)ᵀ X W_V + (X' W_K)ᵀ X' W_V does not hold for all X: at X = 0 the left
    is 0, whatever W_1 and W_2, and the right is what a bias adds, which is not 0."""
    x, added = 0 * x, linear_bias(context, w_k, w_v, 0 * w_k.T @ w_v)
    assert (added != 0).all()   # as polynomials without reciprocals, so in values too
    needed = key_value_matrix(x @ w_k, x @ w_v) + key_value_matrix(context @ w_k, context @ w_v)
    return (key_value_matrix(x @ w_1, x @ w_2), needed), (0 * added, added)

@broken(no_weights_absorb_a_context, "a bias beside them, which is there at X = 0 too",
        linear_cases(), [symbolic_layer()])
def with_a_bias_beside_them(context, x, w_q, w_k, w_v, b_kv):
    weights_alone = key_value_matrix(0 * x @ w_k, 0 * x @ w_v)
    return linear_bias(context, w_k, w_v, weights_alone), weights_alone


# ---- Theorem 4.5: one attention layer -----------------------------------------------------------

starts = dict(rotated=(False, True), started=(False, True))
options = starts | dict(normalized=(False, True))
SHAPES = shapes(
    [*every(m=range(4), n=(1, 2), **options), dict(m=34, n=2, rotated=True),
     *every(m=(2, 3), n=(3,), heads=(2,), pairs=(2,), d_v=(3,), **options)],
    [*every(m=range(4), n=range(4), heads=(1, 2), pairs=(1, 2), d_v=(1, 2, 3), **options),
     dict(m=70, n=30, rotated=True, started=True)])


def long_text(rng, dtype):
    q, k, v, bias, rope = realistic(rng, dtype, n=int(rng.integers(21, 221)))
    return Case(q, k, v, q.shape[-2] - 20, bias, rope, True)


# The smallest cases in which the broken proofs fail: one token of context, one of prompt.
turning = partial(rational_rope, theta=fractions([["3/5", "4/5"]]))
smallest = Case(*fractions([[[1, 0], [1, 0]]] * 3), 1, None, turning, False)
smallest_normalized = Case(*fractions([[[1], [1]], [[1], [1]], [[1], [0]]]), 1, None, None, True)
rotated, normalized = (attention_cases(**least, **{x: always}) for x in ("rotated", "normalized"))


def along_one_axis():
    """One token of context, one of prompt, with vectors (x, 0), so that the difference is short."""
    case = symbolic_case(1, 1, rotated=True)
    case.q[..., 1] = case.k[..., 1] = 0
    return case


@theorem("Theorem 4.5", "Thm 4.5, Eq 14-16", attention_cases(), SHAPES, floats=long_text, ulps=300)
def theorem_4_5(case, convert=attention_bias, attend=attend):
    """O(X with b')  =  the last N rows of  O([X'; X] with b)."""
    (_, k, v), how = case.context, (case.rope, case.normalize)
    converted, _ = attend(*case.prompt, convert(k, v, case.bias, case.rope), *how)
    in_context, _ = attend(case.q, case.k, case.v, case.bias, *how)
    return converted, in_context[..., case.m:, :]

@broken(theorem_4_5, "leaving out R_{−M} (the context not turned back)", rotated,
        [along_one_axis()], smallest, difference="k0_0_0*q0_1_0*v0_0_0 "
        "- 1/2*k0_0_0*q0_1_0*v0_0_0*w0^-1 - 1/2*k0_0_0*q0_1_0*v0_0_0*w0")   # q k v (1 − cos θ)
def not_turned_back(case):
    return theorem_4_5(case, lambda *context: attention_bias(*context).turned(case.rope, case.m))

@broken(theorem_4_5, "leaving out b_D", normalized, [symbolic_case(1, 1, normalized=True)],
        smallest_normalized)
def without_the_bias_of_the_normalizer(case):
    return theorem_4_5(case, lambda k, *rest: Bias(attention_bias(k, *rest).kv, 0 * k.sum(axis=-2)))

@broken(theorem_4_5, "absolute positions, added (against Assumption 4.3)",
        st.tuples(attention_cases(**least), rngs.map(lambda rng: uniform(rng, 8, 4))),
        [(symbolic_case(1, 1), variables("p", 2, 2))],
        (smallest._replace(rope=None), fractions([[0, 0], [1, 0]])))
def with_absolute_positions(case, p):
    def placed(x, m):
        """x with its places' rows of p; after the first m tokens they count from 1 again."""
        return x + p[[*range(m), *range(x.shape[-2] - m)], :x.shape[-1]]

    again, on = (case._replace(q=placed(case.q, m), k=placed(case.k, m)) for m in (case.m, 0))
    return theorem_4_5(again)[0], theorem_4_5(on)[1]

@broken(theorem_4_5, "turning by the angle of n + 1 at n (R_a R_b ≠ R_{a+b})", rotated,
        [symbolic_case(1, 1, rotated=True)], smallest)
def with_rotations_that_do_not_compose(case):
    """R_0 = 1, and R_{−a} is still the inverse of R_a."""
    return theorem_4_5(case._replace(rope=lambda n: case.rope(n + np.sign(n))))

@broken(theorem_4_5, "the normalizer (Σ φ(k))² (against Assumption 4.4)",
        attention_cases(**least, rotated=never, biased=never), [symbolic_case(1, 1)],
        smallest_normalized)
def with_a_normalizer_that_does_not_separate(case):
    def squared(q, k, v, bias, rope, normalize):
        o, _ = parallel_attention(q, k, v, bias, rope, normalize=False)
        d = k.cumsum(axis=-2) ** 2 + (0 if bias is None else bias.d[..., None, :])
        return o / (q * d).sum(axis=-1, keepdims=True), None

    return theorem_4_5(case, lambda k, v, *_: Bias(key_value_matrix(k, v), k.sum(axis=-2) ** 2),
                       squared)


# ---- Eq 19: the bias is the state; contexts compose ---------------------------------------------

@theorem("Eq 19: the bias is the state", "§7, Eq 19", attention_cases(),
         every(m=range(4), n=(0,), heads=(1, 2), pairs=(1, 2), d_v=(1, 2), **starts))
def bias_is_state(case, turn=0):
    """The closed sum for the context  =  the recurrence's state after it, `turn` places before."""
    q, k, v = case.context
    _, state = recurrent_attention(q, k, v, case.bias, case.rope, normalize=False)
    return attention_bias(k, v, case.bias, case.rope), state.turned(case.rope, turn)

@broken(bias_is_state, "the state in the frame of the first token",
        attention_cases(least_context=1, rotated=always), [symbolic_case(1, 0, rotated=True)])
def state_in_the_frame_of_the_first_token(case):
    return bias_is_state(case, turn=case.m)


@theorem("contexts compose", "§1, §8", attention_cases(), [
    *every(m=range(3), n=range(3), heads=(1, 2), pairs=(1, 2), **starts),
    dict(m=40, n=30, rotated=True, started=True)])
def contexts_compose(case):
    """One context converted on top of another  =  both converted at once."""
    (_, k, v), (_, k_x, v_x) = case.context, case.prompt
    first = attention_bias(k, v, case.bias, case.rope)
    return (attention_bias(k_x, v_x, first, case.rope),
            attention_bias(case.k, case.v, case.bias, case.rope))

@broken(contexts_compose, "adding the two biases as they are", rotated,
        [symbolic_case(1, 1, rotated=True)])
def contexts_added(case):
    parts = [attention_bias(k, v, None, case.rope).kv for _, k, v in (case.context, case.prompt)]
    return sum(parts), attention_bias(case.k, case.v, None, case.rope).kv


# ---- Algorithm 1: whole transformers ------------------------------------------------------------

ones, no_mlp = fractions([[[1, 1]]]), fractions(np.zeros((2, 1, 0), int))
layer_of_ones = Layer(ones, ones, ones[..., :1], ones[..., :1], no_mlp[0], no_mlp[1].T,
                      theta=fractions([["3/5", "4/5"]]))
tiny = Transformer(fractions([[1], [2]]), (layer_of_ones,) * 2, fractions([[1]]), identity, False,
                   identity, identity, rational_rope)
kinds = dict(normalize=(False, True), parallel=(False, True))
texts = partial(st.lists, st.integers(0, 3), max_size=3)
some, one_token = texts(min_size=1), texts(min_size=1, max_size=1)
some_texts = st.tuples(transformers(), some, some)


def of_any_model(m, n, **shape):
    return symbolic_transformer(**shape), [0, 1][:m], [2, 3][:n]

def of_any_block(heads, **shape):
    bias = Bias(variables("s", heads, 2, 1), variables("z", heads, 2))
    return *of_any_model(heads=heads, **shape), [bias]


def random_text(rng, dtype):
    options = {name: bool(rng.integers(2)) for name in ("normalize", "parallel")}
    model = random_transformer(rng, 100, 40, int(rng.integers(1, 8)), n_heads=5,
                               d_ff=[0, None][rng.integers(2)], dtype=dtype)._replace(**options)
    text = rng.integers(0, 100, 80).tolist()
    return model, text[:60], text[60:], None, chunked_attention


# at most 5 eps in 400 models: each sums 80 tokens in another order
@theorem("Algorithm 1", "§4.5, App D", st.tuples(transformers(), texts(), some), shapes(
    every(m=(1, 2), n=(1, 2), depth=(1, 2), **kinds)
    + every(m=(1,), n=(1,), depth=(3,), heads=(2,), pairs=(2,), normalize=(False, True), d_ff=(2,)),
    every(m=range(3), n=(1, 2), depth=(1, 2, 3), heads=(1, 2), pairs=(1, 2), d_ff=(0, 1), **kinds)),
    of_any_model, floats=random_text, ulps=80)
def algorithm_1(model, context, prompt, biases=None, attend=attend):
    """The prompt's logits and states with the context converted  =  with it in front."""
    logits, state = forward(model, context + prompt, biases, attend)
    converted = forward(model, prompt, iclca(model, context, biases), attend)
    return converted, (logits[len(context):], state)

@theorem("Algorithm 1", "§4.5, App D", None,
         every(m=(1, 2), n=(1, 2), heads=(1, 2), **kinds), of_any_block)
def one_block_is_the_induction_over_depth(model, context, prompt, biases):
    """From any rows and biases one block converts, and gives the next block the context's rows."""
    converted, expected = algorithm_1(model, context, prompt, biases)
    alone, whole = (run_layers(model, text, biases)[0] for text in (context, context + prompt))
    return (converted, alone), (expected, whole[:len(context)])

@broken(algorithm_1, "one context token that sees the prompt (against Assumption 4.2)",
        st.tuples(transformers(n_layers=st.just(2)), one_token, some),
        [of_any_model(1, 1, depth=2)], (tiny, [0], [1]))
def with_a_context_token_that_sees_the_prompt(model, context, prompt):
    """The context is one token, and every token of the prompt sees what it should."""
    def looking_ahead(q, k, v, bias, rope, normalize):
        o, state = attend(q, k, v, bias, rope, normalize)
        if bias is None:   # nothing in front: the first token starts from the second one
            first, (_, k_2, v_2) = ([x[..., i:i + 1, :] for x in (q, k, v)] for i in (0, 1))
            second = attention_bias(k_2, v_2).turned(rope, 2)
            o[..., :1, :], _ = attend(*first, second, rope, normalize)
        return o, state

    return algorithm_1(model, context, prompt, attend=looking_ahead)

def test_in_one_layer_a_context_token_that_sees_the_prompt_does_no_harm():
    assert_proved(*with_a_context_token_that_sees_the_prompt(*of_any_model(1, 2, depth=1)))


@broken(algorithm_1, "leaving out the biases of the first layer", some_texts,
        [of_any_model(1, 1, depth=2)], (tiny, [0], [1]))
def without_the_biases_of_the_first_layer(model, context, prompt):
    biases = [None, *iclca(model, context)[1:]]
    return forward(model, prompt, biases)[0], forward(model, context + prompt)[0][len(context):]


@theorem("contexts compose", "§1, §8", st.tuples(transformers(), texts(), texts()))
def contexts_compose_in_whole_models(model, first, second):
    """The second text converted on top of the first  =  both converted at once."""
    return iclca(model, second, iclca(model, first)), iclca(model, first + second)


@theorem("the empty context changes nothing", "§4.5", some_texts,
         every(n=(1, 2), depth=(1, 2), **kinds), partial(of_any_model, 0))
def empty_context(model, context, prompt):
    """The prompt after the empty context, and a context's biases after it  =  both without it."""
    biases = iclca(model, context)
    return ((forward(model, prompt, iclca(model, [])), iclca(model, [], biases)),
            (forward(model, prompt), biases))

@broken(empty_context, "a context of one token", some_texts, [of_any_model(1, 1)], (tiny, [0], [1]))
def context_of_one_token(model, context, prompt):
    return forward(model, prompt, iclca(model, context[:1]))[0], forward(model, prompt)[0]


@theorem("decoding is one pass", "§7, Eq 19", st.tuples(transformers(), texts(), some),
         every(m=(1, 2), n=(1,), depth=(1, 2), **kinds), of_any_model)
def decoding(model, context, prompt):
    """Token by token from the converted biases  =  one pass; and the last state too."""
    logits, biases = [], iclca(model, context)
    for token in prompt:
        of_token, biases = forward(model, [token], biases)
        logits.append(of_token)
    whole, last = forward(model, context + prompt)
    return (np.concatenate(logits), biases), (whole[len(context):], last)

@broken(decoding, "the context's biases again at every token",
        st.tuples(transformers(), some, texts(min_size=2)), [of_any_model(1, 2)],
        (tiny, [0], [1, 0]))
def decoding_with_the_same_biases(model, context, prompt):
    whole, _ = forward(model, context + prompt)
    return forward(model, prompt[-1:], iclca(model, context))[0], whole[-1:]


# ---- What the functions do with their arguments -------------------------------------------------

CASES = [
    case("attention_bias", lambda k, v, *b: attention_bias(k, v, Bias(*b), turning),
         "k:nk v:nv kv?:kv d?:k"),
    case("attention_bias, no start", attention_bias, "k:nk v:nv"),
    case("linear_bias", linear_bias, "context:nd w_k?:dk w_v?:dv b_kv?:kv"),
    case("key_value_matrix", key_value_matrix, "k:nk v:nv")]
test_batches, test_types = batches(*CASES), types_and_layouts(*CASES)

test_mistakes = refused(
    *[(f"bias.kv {kv}, bias.d (2,)", lambda kv=kv: attention_bias(
        a(4, 5, 2), a(4, 5, 3), Bias(a(*kv), a(2)))) for kv in ((2, 2), (1, 2, 3))],
    *calls(key_value_matrix, "k v", "23 13"),
    *calls(linear_bias, "_ _ _ b_kv", "45 53 52 11", "45 53 52 31", "45 53 52 232", "45 53 52 23"),
    ("rope; theta", lambda: attention_bias(a(3, 2), a(3, 2), rope=rope)),
    ("Bias; kv; d", lambda: attention_bias(a(3, 2), a(3, 2), ())),
    ("biases; 2; 3", lambda: iclca(tiny, [1], [None] * 3)),
    ("k; list", lambda: key_value_matrix([[1]], [[1]])),
    *[(f"k; {t}", lambda t=t: attention_bias(a(3, 2).astype(t), a(3, 2)))
      for t in ("bool", "uint8", "float16")])


def test_a_start_of_another_type_is_promoted_as_numpy_does():
    start = Bias(np.full((2, 2), 0.5), np.full(2, 0.5))
    for dtype in np.int64, np.float32, np.float64:
        kv, d = attention_bias(np.ones((3, 2), dtype), np.ones((3, 2), dtype), start)
        assert kv.dtype == d.dtype == np.float64 and (kv == 3.5).all() and (d == 3.5).all()


def test_algorithm_1_takes_its_biases_from_the_closed_sum():
    model = random_transformer(np.random.default_rng(0), 9, 8, 1, 2, dtype=np.float32)
    layer, tokens = model.layers[0], np.random.default_rng(1).integers(0, 9, 500)
    h = model.norm(model.embed[tokens])
    expected = attention_bias(model.phi(h @ layer.w_k), h @ layer.w_v,
                              rope=partial(model.rope, theta=layer.theta))
    assert_close(iclca(model, tokens)[0], expected, ulps=0)
