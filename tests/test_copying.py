"""Students copy functions: each public one runs in an empty namespace with the names it needs."""

import inspect
from copy import deepcopy
from functools import partial

import numpy as np
import pytest

from linear_transformer import Bias, identity, random_transformer, rope
from paper_map import EVERYTHING, OWN, needs

IMPORTS = ("import numpy as np\nfrom functools import partial\n"
           "from typing import Callable, NamedTuple")
PUBLIC = sorted(name for name in OWN if inspect.isfunction(OWN[name]) and name[0] != "_")
WHOLE_MODELS = {"random_transformer", "block", "run_layers", "forward", "generate", "iclca",
                "iclaa", "softmax_attend"}
rng = np.random.default_rng(0)
x34, x43, maps = map(rng.random, [(3, 4), (4, 3), (3, 4, 4)])
model, tokens, eye = random_transformer(rng, 5, 4, 1, 1), np.array([1, 2, 0]), np.eye(4)
bias, turns, features = Bias(eye, x34[0]), partial(rope, theta=x34[0, :2]), lambda x: x / 9
ARGUMENTS = {
    **dict.fromkeys(["identity", "relu", "elu_plus_one", "gelu", "layer_norm", "softmax"], [x34]),
    **dict.fromkeys(["key_value_matrix", "weight_update", "alternating_tokens",
                     "log_random_features"], [x34, x34]), "check_shapes": ["x:nd y:nd", x34, x34],
    **dict.fromkeys(["recurrent_attention", "parallel_attention", "chunked_attention"],
                    [x34, x34, x43.T, bias, turns]), "attention_bias": [x34, x34, bias, turns],
    **dict.fromkeys(["lin_attn", "softmax_attention"], [x34, x34, x34]), "rope": [tokens, x34[0]],
    "iclaa": [model._replace(phi=identity), tokens, lambda k, v: (Bias(k.mT @ v, k[0]), features)],
    **dict.fromkeys(["run_layers", "forward", "iclca"], [model, tokens]), "rope_frequencies": [4],
    **dict.fromkeys(["context_map", "parallel_scan"], [maps, maps]), "lsa": [x34, x34, [eye] * 4],
    "softmax_attention_with_bias": [x34, x34, x34, bias, features], "generate": [model, tokens, 5],
    "gd_plus_plus_weights": [x34, np.float64(0.1), 0.1, 2], "block": [x34, model.layers[0], model],
    "similarity_attention": [np.tri(3), x34, x34, bias], "rotate": [x34, x34[:, :2], x34[:, 2:]],
    "softmax_attend": [x34, x34, x34, (bias, features)], "random_transformer": [rng, 5, 4, 1, 1],
    "implicit_weight_update": [x34, x34[0], x34[1]], "kernel_prediction": [x34, x34, x34, np.dot],
    "linear_bias": [x34, x43, x43, eye[:3, :3]], "linear_recurrence": [x34, maps, maps, eye],
    "gradient_descent": [eye, x34, x34, 0.1, 2], "fitted_bias": [x34, x43, tokens[:2]],
    "dual_form": [eye, x34, x34, x34[0]], "icl_weight_update": [x34, x43, x43],
    "softmax_bias": [x34, x34, features], "rotate_at": [x34, turns, tokens],
    "compose": [maps[:2], maps[1:]], "pairing_weights": [1, 2, 3], "gd_weights": [x34, 0.1, 2]}


def copied(name, left_out=None):
    """The function, copied with the names that it needs but one."""
    namespace, parts = {}, [part for part in needs(name) if part != left_out]
    exec("\n".join([IMPORTS, *(inspect.getsource(OWN[part]) for part in parts)]), namespace)
    return namespace[name]


def result(function, name):
    """What it returns for the arguments of that name; a function among it by its name."""
    def plain(x):
        return list(map(plain, x)) if isinstance(x, (tuple, list)) else getattr(x, "__name__", x)

    return plain(function(*deepcopy(ARGUMENTS[name])))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_function_copied_with_the_names_it_needs_runs_and_gives_the_same(name):
    np.testing.assert_equal(result(copied(name), name), result(EVERYTHING[name], name))


@pytest.mark.parametrize("name, missing", [("dual_form", "lin_attn"), ("softmax_bias", "Bias"),
                                           ("forward", "_divide"), ("random_transformer", "gelu")])
def test_a_copy_without_one_of_the_names_it_needs_does_not_run(name, missing):
    with pytest.raises(NameError, match=missing):
        result(copied(name, left_out=missing), name)


def test_nine_of_ten_functions_need_at_most_three_names_besides_the_check_of_shapes():
    counts = {name: len({*needs(name)} - {name, "check_shapes"}) for name in PUBLIC}
    many = [name for name in counts.keys() - WHOLE_MODELS if counts[name] > 3]
    assert len(many) <= 0.1 * len(counts.keys() - WHOLE_MODELS), many
