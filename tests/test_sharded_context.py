"""A context converted in shards is the context converted in one piece, however it is cut."""

import os
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import combinations_with_replacement
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import given, settings

import sharded_context
from exact import assert_differ, assert_exactly_equal, rngs, transformers
from iclca_ref import iclca
from linear_transformer import Bias, random_transformer
from sharded_context import Folder, convert

EVERY_CUT = [cut for n in range(4) for cut in combinations_with_replacement(range(4), n)]


class Here(ThreadPoolExecutor):
    """Runs every task at once, in this process; keeps what was handed in and what came back."""

    def map(self, task, shards, given):
        self.seen = [(x, task(shard, x)) for shard, x in zip(shards, given, strict=True)]
        return [result for _, result in self.seen]


@settings(max_examples=3)
@given(transformers(), rngs)
def test_a_context_in_shards_is_converted_as_in_one_piece_for_every_way_to_cut_it(model, rng):
    earlier, tokens = rng.integers(0, 4, 2), rng.integers(0, 4, 3)
    for biases in None, iclca(model, earlier):
        expected = iclca(model, tokens, biases)
        for cut in EVERY_CUT:
            found = convert(model, np.split(tokens, cut), Here(), {}, biases)
            assert_exactly_equal(found, expected)


@settings(max_examples=3)
@given(transformers(), rngs)
def test_with_a_scan_that_does_not_turn_the_shards_give_another_conversion(model, rng):
    tokens, scan = rng.integers(0, 4, 3), sharded_context.scan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded_context, "scan", lambda lengths, *rest: scan([0, 0], *rest))
        assert_differ(convert(model, np.split(tokens, [1]), Here(), {}), iclca(model, tokens))


def test_a_worker_gets_its_own_tokens_once_and_then_biases_and_keeps_its_own_stream():
    model = random_transformer(np.random.default_rng(0), 9, 8, 2, 2)
    shards, here, streams = [np.arange(5), np.arange(0), np.arange(9)], Here(), {}
    convert(model, shards, here, streams)
    assert [streams[i].shape for i in range(3)] == [(5, 8), (0, 8), (9, 8)]
    for pair in here.seen:
        assert [(b.kv.shape, b.d.shape) for b in pair] == [((2, 4, 4), (2, 4))] * 2


def test_in_processes_the_biases_are_the_same_and_a_dead_worker_is_an_error_not_a_hang(tmp_path):
    model = random_transformer(np.random.default_rng(0), 9, 8, 2, 2)
    shards = np.array_split(np.random.default_rng(1).integers(0, 9, 70), 3)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = convert(model, shards, pool, Folder(tmp_path))
        for a, b in zip(found, iclca(model, np.concatenate(shards))):
            assert isinstance(a, Bias) and np.allclose(a.kv, b.kv, rtol=0, atol=1e-13)
            assert np.allclose(a.d, b.d, rtol=1e-14)
        with pytest.raises(BrokenExecutor, match="terminated abruptly"):
            convert(model, shards, Dying(pool), Folder(tmp_path))


class Dying:
    """A pool whose two workers are killed before the second round."""

    def __init__(self, pool):
        self.pool, self.rounds = pool, 0

    def map(self, *arguments):
        self.rounds += 1
        if self.rounds == 2:
            for _ in range(2):
                self.pool.submit(os._exit, 1)
        return self.pool.map(*arguments)


def test_a_folder_keeps_floats_to_the_bit_and_refuses_what_would_need_pickle(tmp_path):
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    folder = Folder(tmp_path)
    folder[0] = x
    assert folder[0].dtype == x.dtype and (folder[0] == x).all()
    with pytest.raises(ValueError, match="allow_pickle"):
        folder[1] = x.astype(object)
