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
    transposed = np.arange(6.0).reshape(3, 2).T
    np.savez(tmp_path / "b.npz", kv_0=transposed, d_0=np.ones(2))
    assert_same(load_biases(tmp_path / "b.npz"), [Bias(transposed, np.ones(2))])


@pytest.mark.parametrize("wrong, more, error", [
    ([Bias(fractions([[1]]), fractions([1]))], {}, TypeError),
    ([biases[0]._replace(d=fractions([1]))], {}, TypeError),
    (biases, dict(words=np.array([None])), TypeError),
    (biases, dict(kv_0=[1]), ValueError), (biases, dict(d_7=[1]), ValueError)])
def test_pickles_and_its_own_names_are_refused_before_it_writes(tmp_path, wrong, more, error):
    with pytest.raises(error, match="pickle|for the biases themselves"):
        save_biases(tmp_path / "biases.npz", wrong, **more)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
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

@pytest.mark.parametrize("changes", [dict(n_layers=1), dict(n_layers=3), dict(n_heads=1),
                                     dict(d_model=16), dict(dtype=np.float64)])
def test_biases_of_another_model_are_refused(tmp_path, changes):
    save_biases(tmp_path / "b", biases)
    other = random_transformer(np.random.default_rng(0), **sizes | changes)
    expected = "b(: layer 0 .*the model's kv is float| holds biases of 2 layers, not)"
    with pytest.raises(ValueError, match=expected):
        load_biases(tmp_path / "b", other)


one, two, nan = np.ones((2, 3)), np.ones(2), np.full(2, np.nan)


@pytest.mark.parametrize("arrays, message", [
    (dict(), "does not list"), (dict(words=one), "does not hold a kv and a d"),
    (dict(kv_0=one), "does not hold a kv and a d"),
    (dict(kv_0=one, d_1=two), "does not hold a kv and a d"),
    (dict(kv_1=one, d_1=two), "does not hold a kv and a d"),
    (dict(kv_0=one, d_0=two, kv_2=one, d_2=two), "does not hold a kv and a d"),
    (dict(kv_0=one, d_0=one[0]), "no Bias"), (dict(kv_0=two, d_0=one[0, 0]), "no Bias"),
    (dict(kv_0=one.astype(int), d_0=two.astype(int)), "no Bias"),
    (dict(kv_0=one, d_0=np.float32(two)), "no Bias"),
    (dict(kv_0=one, d_0=nan), "not finite"), (dict(kv_0=one * np.inf, d_0=two), "not finite")])
def test_arrays_that_are_no_biases_are_refused_with_the_files_name(tmp_path, arrays, message):
    np.savez(tmp_path / "some_file.npz", **arrays)
    with pytest.raises(ValueError, match=f"some_file.npz.*{message}"):
        load_biases(tmp_path / "some_file.npz")


def npy(array=two, **says):
    """The bytes of a .npy file, which may say something else of itself than it is."""
    stream = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array) | says
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + array.tobytes()


def zipped(*members, names=("kv_0.npy", "d_0.npy"), method=zipfile.ZIP_STORED):
    """The bytes of a zip file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for name, data in zip(names, members):
            file.writestr(name, data)
    return stream.getvalue()


def changed(data, *places):
    """The bytes with a bit set at so many bytes after each signature."""
    data = bytearray(data)
    for signature, after in places:
        data[data.index(signature) + after] |= 1
    return bytes(data)


def overlapping():
    """A file whose directory lists its one large member a hundred times."""
    data = zipped(bytes(10_000))
    directory, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    entries = data[directory:end] * 100
    sizes = struct.pack("<HHLL", 100, 100, len(entries), directory)
    return data[:directory] + entries + data[end:end + 8] + sizes + data[end + 20:]


LOCAL, ENTRY = b"PK\3\4", b"PK\1\2"


@pytest.mark.parametrize("content, message", [
    (b"no zip at all", "not a zip"), (b"", "not a zip"), (npy(), "not a zip"),
    (zipped(b"junk"), "magic"), (zipped(b""), "magic"), (zipped(npy()[:12]), "EOF"),
    (zipped(npy(descr="|O")), "cannot be object"), (zipped(npy() + b"\0"), "cannot be"),
    (zipped(npy()[:6] + b"\2" + npy()[7:]), "cannot be"), (zipped(npy(shape="((((")), ""),
    (zipped(npy(np.array(["a"]))[:-4] + b"\xff" * 4), ""),
    (zipped(npy(np.array(["abc"]))[:-4] + b"\0\0\x11\0"), "character|chr"),
    (zipped(npy(shape=(10**12,))), "cannot be"), (zipped(npy(shape=(10**30, 0))), ""),
    (zipped(npy(shape=(10**12,), descr="<U0")), "cannot be"), (zipped(npy(shape=(-1, -2))), ""),
    (zipped(npy(), npy(), names=("kv_0.npy", "kv_0")), "two arrays of one name"),
    (zipped(bytes(10**6), method=zipfile.ZIP_DEFLATED), "compressed"),
    (zipped(bytes(10**6), method=zipfile.ZIP_LZMA), "compressed"),
    (changed(zipped(npy()), (LOCAL, 8), (ENTRY, 10)), "it is compressed"),
    (changed(zipped(npy()), (LOCAL, 6), (ENTRY, 8)), "encrypted"),
    (changed(zipped(npy(), npy()), (ENTRY, 33)), "directory"),  # a comment hides the second entry
    (overlapping(), "larger")])
def test_what_is_no_npz_or_says_wrong_things_of_itself_is_refused(tmp_path, content, message):
    (tmp_path / "some_file").write_bytes(content)
    for load in load_arrays, load_biases:
        with pytest.raises(ValueError, match=f"some_file is not a .npz file .*: .*({message})"):
            load(tmp_path / "some_file")


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        load_biases(tmp_path / "none")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "b.npz"
    save_biases(path, biases, words=["Ada", "feeds"])
    return path, path.read_bytes(), load_arrays(path)


places = st.floats(0, 1, exclude_max=True)


@st.composite
def damages(draw):
    """A function from bytes to other bytes: bits flipped, a part deleted, repeated or inserted."""
    kind = draw(st.sampled_from(["flip", "cut", "delete", "insert", "repeat"]))
    start, length, new = draw(places), draw(st.integers(1, 40)), draw(st.binary(min_size=1))
    bits = draw(st.lists(st.tuples(places, st.integers(0, 7)), min_size=1, max_size=3))

    def damage(data):
        i, flipped = int(start * len(data)), bytearray(data)
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
