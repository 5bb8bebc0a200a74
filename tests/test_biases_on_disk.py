"""save_biases and load_biases: .npz, no pickle, checked against the model."""

import zipfile

import numpy as np
import pytest

from exact import fractions
from iclca_ref import iclca, load_arrays, load_biases, save_biases
from linear_transformer import Bias, forward, random_transformer

model = random_transformer(np.random.default_rng(0), 10, 8, 2, 2, dtype=np.float32)
biases = iclca(model, [1, 2, 3])


@pytest.mark.parametrize("name", ["biases.npz", "biases"])   # NumPy would add .npz to the second
def test_saved_biases_come_back_the_same_to_the_bit(tmp_path, name):
    save_biases(tmp_path / name, biases, words=["a", "é"])
    assert [p.name for p in tmp_path.iterdir()] == [name]
    for checked_against in None, model:
        loaded = load_biases(tmp_path / name, checked_against)
        for new, old in zip(loaded, biases, strict=True):
            np.testing.assert_array_equal(new.kv, old.kv, strict=True)
            np.testing.assert_array_equal(new.d, old.d, strict=True)
    np.testing.assert_array_equal(forward(model, [4], loaded)[0], forward(model, [4], biases)[0])
    assert load_arrays(tmp_path / name)["words"].tolist() == ["a", "é"]


def test_arrays_that_need_a_pickle_are_refused_before_anything_is_written(tmp_path):
    for wrong in [Bias(fractions([[1]]), fractions([1]))], [biases[0]._replace(d=fractions([1]))]:
        with pytest.raises(TypeError, match="pickle"):
            save_biases(tmp_path / "biases.npz", wrong)
    assert not list(tmp_path.iterdir())


def other_model(**changes):
    sizes = dict(vocab_size=10, d_model=8, n_layers=2, n_heads=2, dtype=np.float32) | changes
    return random_transformer(np.random.default_rng(0), **sizes)


@pytest.mark.parametrize("changes", [dict(n_layers=1), dict(n_layers=3), dict(n_heads=1), dict(d_model=16),
                                     dict(dtype=np.float64)])
def test_biases_of_another_model_are_refused(tmp_path, changes):
    save_biases(tmp_path / "b", biases)
    with pytest.raises(ValueError, match="b(:| holds) .*(layer|layers)"):
        load_biases(tmp_path / "b", other_model(**changes))


def savez(path, **arrays):
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def junk(path):
    path.write_bytes(b"no zip at all")


def empty(path):
    path.write_bytes(b"")


def pickled(path):
    savez(path, kv_0=np.array([None]), d_0=np.array([None]))


def one_array(path):
    with open(path, "wb") as file:
        np.save(file, np.ones(3))


def nothing_in_it(path):
    savez(path)


def no_array(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("kv_0.npy", "junk")


def cut(path):
    save_biases(path, biases)
    path.write_bytes(path.read_bytes()[:-200])


def damaged(path):
    save_biases(path, biases)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(bytes(data))


def shapes_that_differ(path):
    save_biases(path, [Bias(np.ones((2, 3)), np.ones(3))])


def integers(path):
    save_biases(path, [Bias(np.ones((2, 3), int), np.ones(2, int))])


def types_that_differ(path):
    save_biases(path, [Bias(np.ones((2, 3)), np.ones(2, np.float32))])


@pytest.mark.parametrize("make", [junk, empty, pickled, one_array, nothing_in_it, no_array, cut, damaged,
                                  shapes_that_differ, integers, types_that_differ])
def test_files_that_hold_no_biases_are_refused_with_their_name(tmp_path, make):
    make(tmp_path / "some_file")
    with pytest.raises(ValueError, match="some_file"):
        load_biases(tmp_path / "some_file")


def test_biases_without_heads_and_in_a_batch_are_biases_too(tmp_path):
    for shape in (2, 3), (5, 4, 2, 3):
        save_biases(tmp_path / "b", [Bias(np.ones(shape), np.ones(shape[:-1]))])
        assert load_biases(tmp_path / "b")[0].kv.shape == shape


@pytest.mark.parametrize("changes, message", [(dict(n_layers=3), "b holds biases of 2 layers, not 3"),
                                              (dict(dtype=np.float64), "b: layer 0's kv is float32 (2, 4, 4), "
                                               "the model's is float64 (2, 4, 4)")])
def test_what_does_not_fit_is_said_word_for_word(tmp_path, changes, message):
    save_biases(tmp_path / "b", biases)
    with pytest.raises(ValueError) as raised:
        load_biases(tmp_path / "b", other_model(**changes))
    assert str(raised.value) == str(tmp_path / message)
    savez(tmp_path / "c", words=np.ones(1))
    with pytest.raises(ValueError, match="c holds biases of 0 layers$"):
        load_biases(tmp_path / "c")


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_biases(tmp_path / "none")
