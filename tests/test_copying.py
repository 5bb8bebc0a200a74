"""Students copy functions: each public function runs in an empty namespace, with the names that docs/paper_map.md gives."""

import dis
import inspect
import re
import types
from pathlib import Path

import numpy as np
import pytest

import iclca_ref
import linear_transformer

MODULES = linear_transformer, iclca_ref
IMPORTS = "import zipfile\nfrom functools import partial\nfrom typing import Callable, NamedTuple\nimport numpy as np\n"
EXEMPT = {"forward", "generate", "iclca", "main"}       # whole models and the command line
PUBLIC = {name: f for module in MODULES for name, f in vars(module).items()
          if inspect.isfunction(f) and f.__module__ == module.__name__ and not name.startswith("_")}


def own(name):
    """A function or class of the modules by its name, or None."""
    return next((value for module in MODULES if (value := vars(module).get(name)) is not None
                 and getattr(value, "__module__", None) in ("linear_transformer", "iclca_ref")), None)


def globals_of(code):
    """The global names that a piece of code and the functions inside it may use."""
    here = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return here.union(*(globals_of(c) for c in code.co_consts if isinstance(c, types.CodeType)))


def needs(name, found=None):
    """The names of the modules that the function or class `name` needs, and theirs."""
    found = set() if found is None else found
    value = own(name)
    functions = [value] if inspect.isfunction(value) else [f for f in map(inspect.unwrap, (
        getattr(f, "__func__", f) for f in vars(value).values())) if inspect.isfunction(f) and f.__module__ == value.__module__]
    names = set().union(*(globals_of(f.__code__) for f in functions))
    defaults = [f.__defaults__ or () for f in functions] + [getattr(value, "_field_defaults", {}).values()]
    names |= {d.__name__ for ds in defaults for d in ds if inspect.isfunction(d)}
    for other in sorted(names):
        if own(other) is not None and other != name and other not in found:
            found.add(other)
            needs(other, found)
    return found - {name}


def in_order(names):
    """The names in the order in which the modules define them."""
    return sorted(names, key=lambda n: (own(n).__module__ != "linear_transformer", inspect.getsourcelines(own(n))[1]))


x34, x43 = np.arange(12.0).reshape(3, 4) / 9 + 0.1, np.arange(12.0).reshape(4, 3) / 9 + 0.1
tokens = np.array([1, 2, 0])


def model(n):
    return n["random_transformer"](np.random.default_rng(0), 5, 4, 1, 1)


EXAMPLES = {
    **{name: lambda n, name=name: n[name](x34) for name in
       "identity relu elu_plus_one gelu layer_norm softmax unit".split()},
    "rope_frequencies": lambda n: n["rope_frequencies"](4), "rope": lambda n: n["rope"](tokens, x34[0]),
    "rotate": lambda n: n["rotate"](x34, x34[:, :2], x34[:, 2:]),
    **{name: lambda n, name=name: n[name](x34, x34, x43.T) for name in
       "recurrent_attention parallel_attention chunked_attention softmax_attention softmax_attend".split()},
    "mlp": lambda n: n["mlp"](x34, x43, x34), "random_transformer": lambda n: model(n).embed,
    "embed_tokens": lambda n: n["embed_tokens"](model(vars(linear_transformer)), tokens)[0],
    "block": lambda n: n["block"](x34, model(vars(linear_transformer)).layers[0], model(vars(linear_transformer))),
    "previous_token_layer": lambda n: n["previous_token_layer"](5, slice(0, 2), [slice(2, 4)], 4),
    "look_up_layer": lambda n: n["look_up_layer"](4, [slice(0, 1)], [slice(1, 2)], slice(0, 1), slice(2, 3)),
    "induction_transformer": lambda n: n["induction_transformer"](3, 5).layers,
    "lsa": lambda n: n["lsa"](x34, x34, [np.eye(4)] * 4), "gd_weights": lambda n: n["gd_weights"](x34, 0.1, 2),
    "gd_plus_plus_weights": lambda n: n["gd_plus_plus_weights"](x34, 0.1, 0.1, 2),
    "alternating_tokens": lambda n: n["alternating_tokens"](x34, x34), "pairing_weights": lambda n: n["pairing_weights"](1, 2, 3),
    "linear_bias": lambda n: n["linear_bias"](x34, x43, x43, np.eye(3)),
    **{name: lambda n, name=name: n[name](x34, x34) for name in
       "key_value_matrix attention_bias weight_update mean_squared_gradient cosine".split()},
    "lin_attn": lambda n: n["lin_attn"](x34, x34, x34), "dual_form": lambda n: n["dual_form"](np.eye(4), x34, x34, x34),
    "gradient_descent": lambda n: n["gradient_descent"](np.eye(4), x34, x34, 0.1, 2),
    "kernel_prediction": lambda n: n["kernel_prediction"](x34, x34, x34, np.dot),
    "icl_weight_update": lambda n: n["icl_weight_update"](x34, x43, x43),
    "sim_aou": lambda n: n["sim_aou"](x34[None], x34[None] ** 2, x34[None] ** 3), "sim_am": lambda n: n["sim_am"](x34, x34**2),
    "rec_to_ftp": lambda n: n["rec_to_ftp"](tokens > 0, tokens > -1, tokens > 2),
    "retention": lambda n: n["retention"](x34, x34, x34, 0.5, np.eye(4)),
    "retention_bias": lambda n: n["retention_bias"](x34, x34, 0.5),
    "delta_rule": lambda n: n["delta_rule"](x34, x34, x34, x34[:, 0]),
    **{name: lambda n, name=name: n[name](np.random.default_rng(0), 5, 4) for name in
       "gaussian_projection orthogonal_projection".split()},
    "random_features": lambda n: n["random_features"](x34, x34), "landmark_features": lambda n: n["landmark_features"](x34)(x34),
    "farthest_rows": lambda n: n["farthest_rows"](x34, 2),
    "softmax_bias": lambda n: n["softmax_bias"](x34, x34, np.exp),
    "similarity_attention": lambda n: n["similarity_attention"](np.tri(3), x34, x34, None),
    "softmax_attention_with_bias": lambda n: n["softmax_attention_with_bias"](x34, x34, x34, None, np.exp),
    "iclaa": lambda n: [bias for bias, _ in n["iclaa"](model(vars(linear_transformer)), tokens, lambda k: np.exp)],
    "save_biases": lambda n: n["save_biases"](n["path"], [(x34, x34)]),
    "load_arrays": lambda n: list(n["load_arrays"](n["path"]).values()),
    "load_biases": lambda n: n["load_biases"](n["path"]),
}


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - EXEMPT))
def test_a_function_copied_with_the_names_it_needs_runs_and_gives_the_same(name, tmp_path):
    namespace = {}
    exec(IMPORTS, namespace)
    for copied in in_order(needs(name) | {name}):
        exec(compile(inspect.getsource(own(copied)), copied, "exec"), namespace)
    bias = linear_transformer.Bias(x34[:, :2], x34[:, 0])
    iclca_ref.save_biases(tmp_path / "b.npz", [bias])
    everything = vars(linear_transformer) | vars(iclca_ref)
    results = [EXAMPLES[name](n | {"path": tmp_path / "b.npz"}) for n in (namespace, everything)]
    np.testing.assert_equal(*map(plain, results))


def plain(result):
    """Nested tuples and lists of arrays as lists, so that a copied NamedTuple equals the original."""
    return [plain(a) for a in result] if isinstance(result, (tuple, list)) else result


def test_nine_of_ten_functions_need_at_most_three_other_names():
    counted = {name: needs(name) for name in PUBLIC.keys() - EXEMPT}
    many = sorted(name for name, others in counted.items() if len(others) > 3)
    assert len(many) <= 0.1 * len(counted), many


def test_the_paper_map_lists_every_public_function_and_what_to_copy_with_it():
    text = (Path(__file__).parent.parent / "docs" / "paper_map.md").read_text("utf-8")
    listed = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", text.split("## Every public function")[1], re.M))
    assert listed.keys() == PUBLIC.keys()
    for name in PUBLIC.keys() - EXEMPT:
        expected = needs(name)
        given = set(re.findall(r"`(\w+)`", listed[name])) if len(expected) <= 3 else None
        assert given is None and "the file" in listed[name] or given == expected, (name, expected)
