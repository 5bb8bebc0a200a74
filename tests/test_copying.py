"""Students copy functions: each public one runs in an empty namespace with the names it needs."""

import inspect
from functools import partial

import numpy as np
import pytest

import iclca_ref
import linear_transformer
from paper_map import EVERYTHING, OWN, in_order, needs

IMPORTS = ("from functools import partial, reduce\nfrom typing import Callable, NamedTuple\n"
           "import numpy as np\n")
WHOLE_MODELS = {"random_transformer", "block", "run_layers", "forward", "generate", "iclca",
                "iclaa", "softmax_attend"}
PUBLIC = sorted(name for name, value in OWN.items()
                if inspect.isfunction(value) and not name.startswith("_"))
rng = np.random.default_rng
x34, x43 = np.arange(12.0).reshape(3, 4) / 9 + 0.1, np.arange(12.0).reshape(4, 3) / 9 + 0.1
maps, tokens = np.arange(48.0).reshape(3, 4, 4) / 40, np.array([1, 2, 0])
bias, z = linear_transformer.Bias(np.eye(4), np.ones(4)), 0.1 * np.eye(4)
model = linear_transformer.random_transformer(rng(0), 5, 4, 1, 1)
softmax_model = model._replace(phi=linear_transformer.identity)
features = partial(iclca_ref.log_landmark_features, landmarks=z)


def convert(k, v):
    return iclca_ref.merged_bias(k, v, z), features


ARGUMENTS = {
    **dict.fromkeys(["identity", "relu", "elu_plus_one", "gelu", "layer_norm", "softmax"], [x34]),
    "check_shapes": ["x:nd y:nd", x34, x34], "divide": [x34, x34[:, :1]],
    "rope_frequencies": [4], "rope": [tokens, x34[0]], "rotate": [x34, x34[:, :2], x34[:, 2:]],
    "rotate_at": [x34, partial(linear_transformer.rope, theta=x34[0, :2]), tokens],
    **dict.fromkeys(["recurrent_attention", "parallel_attention", "chunked_attention"],
                    [x34, x34, x43.T, bias, partial(linear_transformer.rope, theta=x34[0, :2])]),
    "softmax_attention": [x34, x34, x43.T], "mlp": [x34, x43, x34],
    "block": [x34, model.layers[0], model], "embed_tokens": [model, tokens],
    "run_layers": [model, tokens], "forward": [model, tokens], "generate": [model, tokens, 5],
    "random_transformer": [rng, 5, 4, 1, 1],
    "key_value_matrix": [x34, x43.T], "linear_bias": [x34, x43, x43, np.eye(3)],
    "attention_bias": [x34, x34, bias, partial(linear_transformer.rope, theta=x34[0, :2])],
    "iclca": [model, tokens], "linear_recurrence": [x34, maps, maps, np.eye(4)],
    "compose": [maps[:2], maps[1:]], "context_map": [maps, maps],
    "lin_attn": [x34, x34, x34], "weight_update": [x34, x43.T],
    "dual_form": [np.eye(4), x34, x34, x34[0]], "mean_squared_gradient": [x34, x43.T],
    "gradient_descent": [np.eye(4), x34, x34, 0.1, 2],
    "kernel_prediction": [x34, x34, x34, np.dot], "icl_weight_update": [x34, x43, x43],
    "lsa": [x34, x34, iclca_ref.LSA(*[np.eye(4)] * 4)], "gd_weights": [x34, 0.1, 2],
    "gd_plus_plus_weights": [x34, np.float64(0.1), 0.1, 2], "alternating_tokens": [x34, x34],
    "pairing_weights": [1, 2, 3], "implicit_weight_update": [x34, x34[0], x34[1]],
    "orthogonal_projection": [rng, 5, 4], "log_random_features": [x34, x34],
    "random_features": [x34, x34], "log_landmark_features": [x34, x34], "farthest_rows": [x34, 2],
    "softmax_bias": [x34, x34, features], "merged_bias": [x34, x34, z],
    "similarity_attention": [np.tri(3), x34, x34, bias],
    "softmax_attention_with_bias": [x34, x34, x34, bias, features],
    "softmax_attend": [x34, x34, x34, (bias, features)], "iclaa": [softmax_model, tokens, convert],
}


def results(function, arguments):
    """Its result as nested lists of arrays, so that what is copied equals the original."""
    def plain(result):
        if isinstance(result, (tuple, list)):
            return [plain(a) for a in result]
        return result.__name__ if inspect.isfunction(result) else result

    return plain(function(*(a(0) if a is rng else a for a in arguments)))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_function_copied_with_the_names_it_needs_runs_and_gives_the_same(name):
    namespace = {}
    exec(IMPORTS, namespace)
    for copied in in_order(needs(name) | {name}):
        exec(compile(inspect.getsource(OWN[copied]), copied, "exec"), namespace)
    np.testing.assert_equal(results(namespace[name], ARGUMENTS[name]),
                            results(EVERYTHING[name], ARGUMENTS[name]))


def test_a_copy_without_one_of_the_names_it_needs_does_not_run():
    for name, missing in ("dual_form", "lin_attn"), ("forward", "gelu"), ("softmax_bias", "Bias"):
        namespace = {}
        exec(IMPORTS, namespace)
        with pytest.raises(NameError, match=missing):
            for copied in in_order(needs(name) | {name}):
                if copied != missing:
                    exec(inspect.getsource(OWN[copied]), namespace)
            results(namespace[name], ARGUMENTS[name])


def test_nine_of_ten_functions_need_at_most_three_names_besides_the_check_of_shapes():
    counted = {name: needs(name) - {"check_shapes"} for name in PUBLIC if name not in WHOLE_MODELS}
    many = {name: sorted(others) for name, others in counted.items() if len(others) > 3}
    assert len(many) <= 0.1 * len(counted), many
