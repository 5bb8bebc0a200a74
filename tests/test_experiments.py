"""The experiments: each runs with --quick, its figures hold, its gradients are derivatives."""

import importlib
import io
import os
import re
import subprocess
import sys
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import redirect_stdout
from functools import cache, partial
from itertools import combinations_with_replacement
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings

import one_gd_step, sharded_context, state_laws
from exact import assert_close, assert_differ, assert_exactly_equal, rngs, transformers
from iclca_ref import LSA, iclca
from linear_transformer import forward, random_transformer
from sharded_context import Folder, convert, scan

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.stem for path in (ROOT / "docs" / "experiments").glob("*.py")
                 if path.stem != "common" and not (ROOT / "tests" / f"test_{path.name}").exists())
NUMBER = r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?"
ROW = rf"^\| (\w+) \| ([^|]+) \| (\d+) \| ({NUMBER}) \| ({NUMBER}) to ({NUMBER}) \|$"
FIGURES = re.findall(ROW, (ROOT / "docs" / "results.md").read_text("utf-8"), re.M)


@cache
def quick_run(script):
    """What the script prints with --quick."""
    with redirect_stdout(io.StringIO()) as output:
        importlib.import_module(script).main(["--quick"])
    return output.getvalue()


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_experiment_runs_prints_a_table_and_explains_its_options(script, capsys):
    lines = quick_run(script).splitlines()
    assert len(lines) >= 2 and max(map(len, lines)) <= 100 and script in next(zip(*FIGURES))
    with pytest.raises(SystemExit, match="^0$"):
        importlib.import_module(script).main(["--help"])
    assert "--quick" in capsys.readouterr().out


@pytest.mark.parametrize("script, line, place, documented, low, high", FIGURES)
def test_the_documented_quick_figures_hold(script, line, place, documented, low, high):
    printed = re.sub(" +", " ", quick_run(script).replace(",", ""))
    rest = re.search(rf"^ ?{re.escape(line.replace(',', ''))}\b(.*)$", printed, re.M)[1]
    for figure in documented, re.findall(NUMBER, rest)[int(place) - 1]:
        assert float(low) <= float(figure) <= float(high)


def test_a_wrong_option_is_named_and_the_exit_code_is_2(capsys):
    for wrong in "0", "-1", "x":
        with pytest.raises(SystemExit, match="^2$"):
            sharded_context.main(["--shards", "2", wrong])
        assert "argument --shards: must be a whole number" in capsys.readouterr().err


def test_a_reader_who_stops_reading_ends_a_script_in_silence():
    with subprocess.Popen([sys.executable, state_laws.__file__, "--quick"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as script:
        script.stdout.readline()
        script.stdout.close()
        assert script.stderr.read() == b"" and script.wait() == 1


def test_the_gradients_written_by_hand_are_the_derivatives_of_the_losses():
    rng = np.random.default_rng(0)
    weights, (*tokens, answer) = rng.normal(0, 0.5, (4, 11, 11)), one_gd_step.tasks(rng, 3)
    losses = [(lambda x: np.mean((one_gd_step.predict(LSA(*x), *tokens)[:, 0] - answer) ** 2),
               weights, one_gd_step.gradients(LSA(*weights), *tokens, answer))]
    for layers in 1, 2, 3:
        run = lambda x, n=layers: one_gd_step.loss_and_gradients(*x, n, *tokens, answer)
        losses += [(lambda x, run=run: run(x)[0].mean(), x := weights[:2] / 5, run(x)[1:])]
    for loss, x, gradient in losses:
        step = 1e-6 * rng.standard_normal(x.shape)
        growth = (loss(x + step) - loss(x - step)) / 2
        assert growth == pytest.approx((gradient * step).sum(), 1e-6, 0) and abs(growth) > 1e-9


SMALL = random_transformer(np.random.default_rng(0), 9, 8, 2, 2)
MODEL = partial(forward, random_transformer(np.random.default_rng(0), 50, 32, 2, 2))
TOKENS = np.random.default_rng(1).integers(1, 49, (2, 40))
LATER = {"rest of several", "resumed twice"}
REST = LATER | {"rest of one token", "one by one"}
ALL = REST | {"state used twice", "batch rows"}
CAUGHT = {
    "none: our own model": (set(), None), "float16": (REST, "few digits? position? window?"),
    "rows mixed": ({"batch rows"}, "mixed"), "wiped in place": ({"state used twice"}, "in place"),
    "state dropped for several": (LATER, "state dropped"), "not a number": (ALL, "not finite"),
    "one layer dropped": (LATER, "dropped in part? window?"),
    "random": (ALL | {"nothing ahead"}, "random? reads ahead?")}
FAULTS = state_laws.FAULTS | {
    "one layer dropped": lambda run, t, s: run(t, s and [s[0], s[1] if t.shape[1] == 1 else None]),
    "not a number": lambda run, t, s: (run(t, None)[0] * (np.nan if s else 1), 1),
    "random": lambda run, t, s: (run(t, None)[0] * np.random.random(), 1)}


@pytest.mark.parametrize("name", FAULTS)
def test_every_planted_fault_breaks_its_laws_and_no_other(name):
    run = partial(FAULTS[name], MODEL)
    found = [row for row in state_laws.check(run, TOKENS, (1, 32, 33), 1e-12) if row[3]]
    expected = CAUGHT.get(name, (REST, "position? window? normalizer?"))
    assert ({law for law, *_ in found}, found[0][2] if found else None) == expected
    assert name != "whole chunks" or found[2][::3] == ("rest of several", [33])


def test_a_run_sees_forward_strides_may_return_tensors_and_hears_its_mistakes_at_once():
    calls = []
    def run(tokens, state):
        calls.append(tokens)
        outputs, state = MODEL(tokens, state)
        tensor = SimpleNamespace(double=lambda: outputs, cpu=lambda: tensor, detach=lambda: tensor)
        return tensor, state

    laws = state_laws.check(run, TOKENS[::-1, ::-1], (1, 32, 33), 1e-12)
    assert next(laws)[2] == "holds" and len(calls) == 4
    assert [bad for *_, bad in laws] == [[]] * 6 and min(min(x.strides) for x in calls) > 0
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
        whole = iclca(model, tokens, biases)
        for cut in (cut for n in range(4) for cut in combinations_with_replacement(range(4), n)):
            assert_exactly_equal(convert(model, np.split(tokens, cut), Here(), {}, biases), whole)
    with pytest.MonkeyPatch.context() as patch:    # a scan that does not turn
        patch.setattr(sharded_context, "scan", lambda lengths, *rest: scan([0, 0], *rest))
        assert_differ(convert(model, np.split(tokens, [1]), Here(), {}), iclca(model, tokens))


def test_workers_get_their_tokens_once_and_then_biases_and_a_dead_one_is_an_error(tmp_path):
    shards, here, streams = [np.arange(5), np.arange(0), np.arange(9)], Here(), {}
    convert(SMALL, shards, here, streams)
    assert [streams[i].shape for i in range(3)] == [(5, 8), (0, 8), (9, 8)]
    assert {(b.kv.shape, b.d.shape) for pair in here.seen for b in pair} == {((2, 4, 4), (2, 4))}
    expected, folder = iclca(SMALL, np.concatenate(shards)), Folder(tmp_path)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert_close(convert(SMALL, shards, pool, folder), expected, ulps=100)
        dying = SimpleNamespace(map=lambda *given: pool.map(os._exit, range(3)))
        with pytest.raises(BrokenExecutor, match="terminated abruptly"):     # and not a hang
            convert(SMALL, shards, dying, folder)
    folder[0] = x = np.float32([0.1, np.pi])
    np.testing.assert_array_equal(folder[0], x, strict=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        folder[1] = x.astype(object)
