"""save_biases and load_biases: a .npz file, no pickle, whole or refused."""

import errno
import io
import os
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact import fractions
from iclca_ref import iclca
from linear_transformer import Bias, forward, random_transformer
from text_to_weights import load_arrays, load_biases, save_biases

sizes = dict(vocab_size=10, d_model=8, n_layers=2, n_heads=2, dtype=np.float32)
model = random_transformer(np.random.default_rng(0), **sizes)
biases = iclca(model, [1, 2, 3])


def assert_same(loaded, saved):
    for new, old in zip(loaded, saved, strict=True):
        np.testing.assert_array_equal(new.kv, old.kv, strict=True)
        np.testing.assert_array_equal(new.d, old.d, strict=True)


@pytest.mark.parametrize("name", ["biases.npz", "biases"])
def test_saved_biases_come_back_the_same_to_the_bit(tmp_path, name):
    save_biases(tmp_path / name, biases, words=["a", "é"])
    assert [p.name for p in tmp_path.iterdir()] == [name]
    for checked_against in None, model:
        assert_same(load_biases(tmp_path / name, checked_against), biases)
    loaded = load_biases(tmp_path / name)
    loaded[0].kv[...] += 0     # they are the caller's own to change
    np.testing.assert_array_equal(forward(model, [4], loaded)[0], forward(model, [4], biases)[0])
    assert load_arrays(tmp_path / name)["words"].tolist() == ["a", "é"]
    with np.load(tmp_path / name) as arrays:
        np.testing.assert_array_equal(arrays["kv_1"], biases[1].kv)


@pytest.mark.parametrize("shape", [(2, 3), (5, 4, 2, 3), (2, 0)])
def test_biases_without_heads_in_a_batch_and_of_many_layers_come_back_in_order(tmp_path, shape):
    many = [Bias(np.full(shape, i, float), np.full(shape[:-1], -i, float)) for i in range(12)]
    save_biases(tmp_path / "b", many)
    assert_same(load_biases(tmp_path / "b"), many)


def test_what_numpy_itself_has_saved_is_read_too(tmp_path):
    transposed = np.ones((3, 2)).T
    np.savez(tmp_path / "b.npz", kv_0=transposed, d_0=np.ones(2))
    assert_same(load_biases(tmp_path / "b.npz"), [Bias(transposed, np.ones(2))])


@pytest.mark.parametrize("wrong, more, error", [
    ([Bias(fractions([[1]]), fractions([1]))], {}, TypeError),
    ([biases[0]._replace(d=fractions([1]))], {}, TypeError), (biases, dict(words=np.array([None])), TypeError),
    (biases, dict(kv_0=[1]), ValueError), (biases, dict(d_7=[1]), ValueError)])
def test_pickles_and_names_of_its_own_are_refused_before_anything_is_written(tmp_path, wrong, more, error):
    with pytest.raises(error, match="pickle" if error is TypeError else "for the biases themselves"):
        save_biases(tmp_path / "biases.npz", wrong, **more)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    save_biases(tmp_path / "b", biases)
    before, write = (tmp_path / "b").read_bytes(), np.lib.format.write_array

    def write_once(*arguments, **options):
        monkeypatch.setattr(np.lib.format, "write_array", fail)
        write(*arguments, **options)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(np.lib.format, "write_array", write_once)
    with pytest.raises(type(error)) as raised:
        save_biases(tmp_path / "b", biases[:1] * 3)
    assert raised.type is KeyboardInterrupt or str(tmp_path / "b") in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["b"] and (tmp_path / "b").read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX files")
def test_a_link_is_followed_and_what_is_no_file_is_left_alone(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "b")
    save_biases(tmp_path / "link", biases)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "b").is_file()
    os.mkfifo(tmp_path / "pipe")
    for name in "pipe", ".":
        for attempt in load_biases, lambda path: save_biases(path, biases):
            with pytest.raises(OSError, match=rf"{name} is not an ordinary file"):
                attempt(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()


# ---- What is refused -----------------------------------------------------------------------------

@pytest.mark.parametrize("changes", [dict(n_layers=1), dict(n_layers=3), dict(n_heads=1), dict(d_model=16),
                                     dict(dtype=np.float64)])
def test_biases_of_another_model_are_refused(tmp_path, changes):
    save_biases(tmp_path / "b", biases)
    other = random_transformer(np.random.default_rng(0), **sizes | changes)
    expected = "holds biases of 2 layers, not" if "n_layers" in changes else r"layer 0 .*the model's kv is float"
    with pytest.raises(ValueError, match=f"b(:)? {expected}"):
        load_biases(tmp_path / "b", other)


one, two, nan = np.ones((2, 3)), np.ones(2), np.full(2, np.nan)


@pytest.mark.parametrize("arrays, message", [
    (dict(), "does not list"), (dict(words=one), "does not hold a kv and a d"),
    (dict(kv_0=one), "does not hold a kv and a d"), (dict(kv_0=one, d_1=two), "does not hold a kv and a d"),
    (dict(kv_1=one, d_1=two), "does not hold a kv and a d"),
    (dict(kv_0=one, d_0=two, kv_2=one, d_2=two), "does not hold a kv and a d"),
    (dict(kv_0=one, d_0=one[0]), "no Bias"), (dict(kv_0=two, d_0=one[0, 0]), "no Bias"),
    (dict(kv_0=one.astype(int), d_0=two.astype(int)), "no Bias"), (dict(kv_0=one, d_0=np.float32(two)), "no Bias"),
    (dict(kv_0=one, d_0=nan), "not finite"), (dict(kv_0=one * np.inf, d_0=two), "not finite")])
def test_arrays_that_are_no_biases_are_refused_with_the_files_name(tmp_path, arrays, message):
    np.savez(tmp_path / "some_file.npz", **arrays)
    with pytest.raises(ValueError, match=f"some_file.npz.*{message}"):
        load_biases(tmp_path / "some_file.npz")


def npy(array=two, header=None, **options):
    """The bytes of a .npy file; `header` changes what it says of itself."""
    stream = io.BytesIO()
    np.save(stream, array, **options)
    data = stream.getvalue()
    return data if header is None else data[:10] + header.encode().ljust(len(data[10:-array.nbytes]) - 1) + b"\n"


def zipped(path, *members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members:
            file.writestr(name, data)
    return bytearray(path.read_bytes())


def claiming(path, shape, descr="<f8"):
    zipped(path, ("kv_0.npy", npy(header=f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}")))


def encrypted(path):
    data = zipped(path, ("kv_0.npy", npy()))
    for start, flags in (b"PK\3\4", 6), (b"PK\1\2", 8):
        data[data.index(start) + flags] |= 1
    path.write_bytes(data)


def swallowing(path):
    """A file in whose directory the first entry's comment is so long that it hides the second."""
    data = zipped(path, ("kv_0.npy", npy()), ("d_0.npy", npy()))
    data[data.index(b"PK\1\2") + 33] = 1
    path.write_bytes(data)


def overlapping(path):
    """A file whose directory lists its one large member a hundred times under other names."""
    data = bytes(zipped(path, ("kv_0", bytes(10_000))))
    directory, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    entries = data[directory:end] * 100
    path.write_bytes(data[:directory] + entries + data[end:end + 8] + struct.pack(
        "<HHLL", 100, 100, len(entries), directory) + data[end + 20:])


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make, message", [
    (lambda path: path.write_bytes(b"no zip at all"), "not a zip"), (lambda path: path.write_bytes(b""), "not a zip"),
    (lambda path: path.write_bytes(npy()), "not a zip"), (lambda path: zipped(path, ("kv_0.npy", "junk")), "magic"),
    (lambda path: zipped(path, ("kv_0.npy", b"")), "magic"), (lambda path: zipped(path, ("kv_0.npy", npy()[:12])), "EOF"),
    (lambda path: zipped(path, ("kv_0.npy", npy(np.array([None]), allow_pickle=True))), "object"),
    (lambda path: zipped(path, ("kv_0.npy", npy()[:6] + b"\2" + npy()[7:])), "cannot be"),
    (lambda path: zipped(path, ("kv_0.npy", npy() + b"\0")), "cannot be"),
    (lambda path: zipped(path, ("kv_0.npy", npy(np.array(["a"]))[:-4] + b"\xff" * 4)), ""),
    (lambda path: zipped(path, ("kv_0.npy", npy(np.array(["a"]))[:-4] + b"\0\0\x11\0")), ""),
    (lambda path: zipped(path, ("kv_0.npy", npy()), ("kv_0.npy", npy())), "two arrays of one name"),
    (lambda path: zipped(path, ("kv_0.npy", npy()), ("kv_0", npy())), "two arrays of one name"),
    (lambda path: claiming(path, (10**12,)), "cannot be"), (lambda path: claiming(path, (10**30, 0)), ""),
    (lambda path: claiming(path, (10**12,), "<U0"), "cannot be"), (lambda path: claiming(path, (-1, -2)), ""),
    (lambda path: claiming(path, "(" * 90), ""), (encrypted, "encrypted"), (swallowing, "directory"), (overlapping, "larger"),
    (lambda path: zipped(path, ("kv_0.npy", bytes(10**6)), method=zipfile.ZIP_DEFLATED), "compressed"),
    (lambda path: zipped(path, ("kv_0.npy", bytes(10**6)), method=zipfile.ZIP_LZMA), "compressed")])
def test_a_file_that_is_no_npz_or_says_wrong_things_of_itself_is_refused_with_its_name(tmp_path, make, message):
    make(tmp_path / "some_file")
    for load in load_arrays, load_biases:
        with pytest.raises(ValueError, match=f"some_file is not a .npz file of plain arrays: .*({message})"):
            load(tmp_path / "some_file")


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        load_biases(tmp_path / "none")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "b.npz"
    save_biases(path, biases, words=["Ada", "feeds"])
    return path, path.read_bytes(), load_arrays(path)


@st.composite
def damages(draw):
    """A function from bytes to other bytes: a few bits flipped, a part deleted, repeated or inserted."""
    kind, start, length = draw(st.sampled_from("flip cut delete insert repeat".split())), draw(st.floats(0, 1)), None
    length, new = draw(st.integers(1, 40)), draw(st.binary(min_size=1, max_size=8))
    bits = draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=3))

    def damage(data):
        i = int(start * len(data))
        flipped = bytearray(data)
        for place, bit in bits:
            flipped[int(place * len(data))] ^= 1 << bit
        return {"flip": bytes(flipped), "cut": data[:i], "delete": data[:i] + data[i + length:],
                "insert": data[:i] + new + data[i:], "repeat": data[:i + length] + data[i:]}[kind]
    return damage


@given(damages())
def test_a_damaged_file_is_refused_with_its_name_or_nothing_in_it_has_changed(saved, damage):
    path, data, arrays = saved
    path.write_bytes(damage(data))
    try:
        loaded = load_arrays(path)
    except ValueError as error:
        assert "b.npz" in str(error)
    else:
        assert loaded.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(loaded[name], array, strict=True)
