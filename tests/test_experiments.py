"""The experiments: each runs with --quick, its figures hold, its gradients are derivatives."""

import functools
import importlib
import io
import os
import re
import subprocess
import sys
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import redirect_stdout
from itertools import combinations_with_replacement
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings

import deeper_layers
import icl_vs_finetuning
import one_gd_step
import sharded_context
import speed
import state_laws
from exact import assert_differ, assert_exactly_equal, rngs, transformers
from iclca_ref import LSA, iclca
from linear_transformer import Bias, chunked_attention, forward, random_transformer

ROOT = Path(__file__).parent.parent
# a script that has a test file of its own is run there
SCRIPTS = sorted(path.stem for path in (ROOT / "docs" / "experiments").glob("*.py")
                 if path.stem != "common" and not (ROOT / "tests" / f"test_{path.name}").exists())
NUMBER = r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?"
ROW = rf"^\| (\w+) \| ([^|]+) \| (\d+) \| ({NUMBER}) \| ({NUMBER}) to ({NUMBER}) \|$"
FIGURES = re.findall(ROW, (ROOT / "docs" / "results.md").read_text("utf-8"), re.M)


@functools.cache
def quick_run(script):
    """What the script prints with --quick."""
    with redirect_stdout(io.StringIO()) as output:
        importlib.import_module(script).main(["--quick"])
    return output.getvalue()


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_experiment_runs_prints_a_table_and_explains_its_options(script, capsys):
    lines = quick_run(script).splitlines()
    assert len(lines) >= 2 and max(map(len, lines)) <= 100
    assert script in {name for name, *_ in FIGURES}
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main(["--help"])
    assert stop.value.code == 0 and "--quick" in capsys.readouterr().out


@pytest.mark.parametrize("script, line, place, documented, low, high", FIGURES,
                         ids=[f"{script}: {line}, {place}" for script, line, place, *_ in FIGURES])
def test_the_documented_quick_figures_hold(script, line, place, documented, low, high):
    lines = (" ".join(text.split()) for text in quick_run(script).splitlines())
    rest = next(text[len(line):] for text in lines if re.match(rf"{re.escape(line)}\b", text))
    found = re.findall(NUMBER, rest)[int(place) - 1].replace(",", "")
    for figure in documented, found:
        assert float(low) <= float(figure) <= float(high)


@pytest.mark.parametrize("options", ["sharded_context --tokens -1", "sharded_context --shards 2 0",
                                     "sharded_context --tokens x", "one_gd_step --seed -1"])
def test_a_wrong_option_is_named_and_the_exit_code_is_2(options, capsys):
    script, *arguments = options.split()
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main(arguments)
    assert stop.value.code == 2
    assert f"argument {arguments[0]}: must be a whole number" in capsys.readouterr().err


def test_a_reader_who_stops_reading_ends_a_script_in_silence():
    command = [sys.executable, ROOT / "docs" / "experiments" / "state_laws.py", "--quick"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as script:
        script.stdout.readline()
        script.stdout.close()
        assert script.stderr.read() == b"" and script.wait() == 1


def assert_gradient(loss, x, gradient, rng, h=1e-5):
    """The derivative of the loss at x in a random direction is the gradient's component there."""
    direction = rng.standard_normal(x.shape)
    direction /= np.linalg.norm(direction)
    slope = (loss(x + h * direction) - loss(x - h * direction)) / (2 * h)
    assert slope == pytest.approx((gradient * direction).sum(), rel=1e-6) and abs(slope) > 1e-3


def test_the_gradients_written_by_hand_are_the_derivatives_of_the_loss():
    rng = np.random.default_rng(0)
    weights, batch = rng.normal(0, 0.5, (4, 11, 11)), one_gd_step.tasks(rng, 3)
    assert_gradient(lambda x: np.mean((one_gd_step.predict(LSA(*x), *batch[:2]) - batch[2]) ** 2),
                    weights, np.array(one_gd_step.gradients(LSA(*weights), *batch)), rng)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_gradients_of_the_recurrent_layer_are_the_derivatives_of_its_loss(layers):
    rng = np.random.default_rng(0)
    weights, (*tokens, answer) = rng.normal(0, 0.1, (2, 11, 11)), one_gd_step.tasks(rng, 3)

    def run(weights):
        return deeper_layers.loss_and_gradients(*weights, layers, np.hstack(tokens), answer)

    assert_gradient(lambda x: run(x)[0].mean(), weights, np.array(run(weights)[1:]), rng)


@pytest.mark.parametrize("reads", [np.eye(5), np.tri(5)], ids=["each alone", "up to itself"])
def test_the_gradients_of_fine_tuning_are_the_derivatives_of_its_loss(reads):
    rng = np.random.default_rng(0)
    (w_q, p), x = rng.normal(0, 0.4, (2, 1, 9, 9)), rng.normal(0, 0.4, (2, 2, 1, 9, 9))
    tokens, targets = rng.standard_normal((1, 5, 9)), rng.standard_normal((1, 5))

    def layers(x):
        return [LSA(w_q, w_k, w_v, p) for w_k, w_v in x]

    def loss(x):
        return 0.5 * np.mean((icl_vs_finetuning.run(tokens, layers(x), reads)[0] - targets) ** 2)

    found = icl_vs_finetuning.gradients(tokens, targets, layers(x), reads)
    assert_gradient(loss, x, np.array([*map(list, found)]), rng)


@pytest.mark.parametrize("n", [1, 32, 70])
def test_the_loop_that_speed_is_measured_against_computes_the_same_attention(n):
    given = speed.qkv(np.random.default_rng(0), n)
    assert speed.loop_in_place(*given) == pytest.approx(chunked_attention(*given)[0], 1e-4, 1e-5)


SMALL = random_transformer(np.random.default_rng(0), 9, 8, 2, 2)
MODEL = functools.partial(forward, random_transformer(np.random.default_rng(0), 50, 32, 2, 2))
TOKENS = np.random.default_rng(1).integers(1, 49, (2, 40))
REST = {"rest of one token", "one by one", "rest of several", "resumed twice"}
ALL = REST | {"state used twice", "batch rows"}
CAUGHT = {
    "none: our own model": (set(), None), "rows mixed": ({"batch rows"}, "mixed"),
    "wiped in place": ({"state used twice"}, "in place"),
    "state dropped for several": ({"rest of several", "resumed twice"}, "state dropped"),
    "one layer dropped": ({"rest of several", "resumed twice"}, "dropped in part? window?"),
    "float16": (REST, "few digits? position? window?"), "not a number": (ALL, "not finite"),
    "random": (ALL | {"nothing ahead"}, "random? reads ahead?")}
FAULTS = {**state_laws.FAULTS,
          "one layer dropped": lambda run, t, s: run(t, s and [
              s[0], Bias(*((t.shape[1] == 1) * x for x in s[1]))]),
          "not a number": lambda run, t, s: (run(t, None)[0] * (np.nan if s else 1), 1),
          "random": lambda run, t, s: (run(t, None)[0] * np.random.random(), 1)}


@pytest.mark.parametrize("name", FAULTS)
def test_every_planted_fault_breaks_its_laws_and_no_other(name):
    run = functools.partial(FAULTS[name], MODEL)
    found = [row for row in state_laws.check(run, TOKENS, (1, 32, 33), 1e-12) if row[3]]
    expected = CAUGHT.get(name, (REST, "position? window? normalizer?"))
    assert ({law for law, *_ in found}, found[0][2] if found else None) == expected
    assert name != "whole chunks" or found[2][::3] == ("rest of several", [33])


def test_a_run_sees_arrays_with_forward_strides_may_return_tensors_and_a_law_is_yielded_at_once():
    calls = []

    def run(tokens, state):
        assert min(tokens.strides) > 0
        calls.append(tokens)
        outputs, state = MODEL(tokens, state)
        on_cpu = SimpleNamespace(double=lambda: outputs)
        return SimpleNamespace(detach=lambda: SimpleNamespace(cpu=lambda: on_cpu), cpu=None), state

    laws = state_laws.check(run, TOKENS[::-1, ::-1], (1, 32, 33), 1e-12)
    assert next(laws)[2] == "holds" and len(calls) == 4
    assert [bad for *_, bad in laws] == [[]] * 6


def test_no_state_other_outputs_and_impossible_splits_are_told():
    for run, split, message in [(lambda t, s: (t, None), 1, "run returned no state"),
                                (lambda t, s: (t[:, -1:], 1), 1, r"\(1, 1\) for tokens \(1, 40\)"),
                                (MODEL, 0, "from 1 to 37"), (MODEL, 38, "from 1 to 37")]:
        with pytest.raises(ValueError, match=message):
            next(state_laws.check(run, TOKENS, [split], 1e-12))


class Here:
    """An executor in this process, which keeps what was handed in and what came back."""

    def map(self, task, shards, given):
        self.seen = [(x, task(shard, x)) for shard, x in zip(shards, given, strict=True)]
        return [result for _, result in self.seen]


@settings(max_examples=3)
@given(transformers(), rngs)
def test_a_context_in_shards_is_converted_as_in_one_piece_for_every_way_to_cut_it(model, rng):
    earlier, tokens = rng.integers(0, 4, 2), rng.integers(0, 4, 3)
    for biases in None, iclca(model, earlier):
        expected = iclca(model, tokens, biases)
        for cut in (cut for n in range(4) for cut in combinations_with_replacement(range(4), n)):
            found = sharded_context.convert(model, np.split(tokens, cut), Here(), {}, biases)
            assert_exactly_equal(found, expected)
    with pytest.MonkeyPatch.context() as patch:    # a scan that does not turn
        scan = sharded_context.scan
        patch.setattr(sharded_context, "scan", lambda lengths, *rest: scan([0, 0], *rest))
        found = sharded_context.convert(model, np.split(tokens, [1]), Here(), {})
        assert_differ(found, iclca(model, tokens))


def test_a_worker_gets_its_own_tokens_once_and_then_biases_and_keeps_its_own_stream():
    shards, here, streams = [np.arange(5), np.arange(0), np.arange(9)], Here(), {}
    sharded_context.convert(SMALL, shards, here, streams)
    assert [streams[i].shape for i in range(3)] == [(5, 8), (0, 8), (9, 8)]
    for pair in here.seen:
        assert [(b.kv.shape, b.d.shape) for b in pair] == [((2, 4, 4), (2, 4))] * 2


def test_in_processes_the_biases_are_the_same_and_a_dead_worker_is_an_error_not_a_hang(tmp_path):
    shards, folder = np.array_split(np.arange(70) % 9, 3), sharded_context.Folder(tmp_path)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = sharded_context.convert(SMALL, shards, pool, folder)
        for a, b in zip(found, iclca(SMALL, np.concatenate(shards)), strict=True):
            assert np.allclose(a.kv, b.kv, rtol=0, atol=1e-13) and np.allclose(a.d, b.d, 1e-14)
        rounds = iter([pool.map, lambda *given: [pool.submit(os._exit, 1), pool.map(*given)][1]])
        dying = SimpleNamespace(map=lambda *given: next(rounds)(*given))
        with pytest.raises(BrokenExecutor, match="terminated abruptly"):
            sharded_context.convert(SMALL, shards, dying, folder)
    folder[0] = x = np.float32([0.1, np.pi])
    assert folder[0].dtype == x.dtype and (folder[0] == x).all()
    with pytest.raises(ValueError, match="allow_pickle"):
        folder[1] = x.astype(object)
