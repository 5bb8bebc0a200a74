"""Files, whole or refused; and the biases of any model in one: .npz, no pickle."""
import os
import re
import tempfile
import zipfile
from contextlib import contextmanager
import numpy as np
from linear_transformer import Bias


def check(fits, message):
    """Raise ValueError unless it fits."""
    if not fits:
        raise ValueError(message)


def ordinary(path):   # the path; OSError if there is a folder, a pipe, a device
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"{path} is not an ordinary file")
    return path


@contextmanager
def sound(path):
    """The file, to be read. Whatever a damaged one leads to becomes a ValueError with its name."""
    with open(ordinary(path), "rb") as file:
        try:
            yield file
        except Exception as error:   # zipfile, json and NumPy raise a dozen kinds
            why = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            raise ValueError(f"{path} is not sound, or does not fit: {why}") from None


def checked(arrays, model=None):
    """The biases among arrays named kv_0, d_0, kv_1, ...: a list of one Bias per layer.

    Raises ValueError unless they are plain: finite kv (..., d_k, d_v), d (..., d_k) of one type,
    float32 or float64, and those of the model if there is one.
    """
    for name, a in arrays.items():
        check(re.fullmatch(r"(kv|d)_\d{1,4}|[a-z]{1,40}", name) and a.dtype.kind in "biufU",
              f"{name[:40]!r} {a.dtype} is no plain array with a plain name")
    found = [name for name in arrays if "_" in name]
    n = len(model.layers) if model else max(1, len(found) // 2)
    check(set(found) == {f"{name}_{i}" for name in Bias._fields for i in range(n)},
          f"{n} layers need kv and d each, got {', '.join(found)[:99] or 'none'}")
    biases = [Bias(arrays[f"kv_{i}"], arrays[f"d_{i}"]) for i in range(n)]
    for i, (kv, d) in enumerate(biases):
        got = f"layer {i} has kv {kv.dtype} {kv.shape} and d {d.dtype} {d.shape}"
        check(kv.ndim > 1 and kv.shape[:-1] == d.shape and kv.dtype == d.dtype in ("f4", "f8"),
              f"{got}, which is no Bias of float32 or float64")
        check(np.isfinite(kv).all() and np.isfinite(d).all(), f"{got}, not all of it finite")
        w_k, w_v = model.layers[i][1:3] if model else (kv, kv)
        check(not model or (kv.dtype, kv.shape) == (w_k.dtype, (*w_k.shape[::2], w_v.shape[-1])),
              f"{got}, but the model's w_k is {w_k.dtype} {w_k.shape}")
    return biases


def save_biases(path, biases, **more):
    """Write one Bias per layer to a .npz file, exactly at `path`; `more` are arrays beside them.

    It is made in a folder of its own beside `path` and then moved: an error leaves the old file and
    nothing else. Raises TypeError or ValueError for what `load_biases` would refuse, and OSError.
    """
    own = {f"{name}_{i}": a for i, bias in enumerate(biases)
           for name, a in Bias(*bias)._asdict().items()}
    checked(arrays := {name: np.asarray(a) for name, a in dict(**own, **more).items()})
    path = ordinary(os.path.realpath(path))
    try:
        with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
            np.savez(part := os.path.join(folder, "part.npz"), **arrays)
            if os.path.exists(path):
                open(path, "r+b").close()  # what may not be written is not replaced
                os.chmod(part, os.stat(path).st_mode)
            os.replace(part, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def load(path, understand):
    """understand(the arrays by name) of an uncompressed .npz file, at the cost of its real size."""
    with sound(path) as stream:
        size, file = stream.seek(0, os.SEEK_END), zipfile.ZipFile(stream)
        members = {m.filename.removesuffix(".npy"): m for m in file.infolist()}
        stream.seek(size - 12)   # how many members there are by the file's end
        check(len(members) == int.from_bytes(stream.read(2), "little")
              and sum(m.file_size for m in members.values()) <= size and not file.testzip(),
              "it is compressed or damaged")
        arrays = {name: np.lib.format.read_array(file.open(m)) for name, m in members.items()}
        check(all(a.size <= size for a in arrays.values()), "an array is larger than the file")
        return understand(arrays)


def load_biases(path, model=None):
    """The biases that `save_biases` wrote, one per layer. Raises as `load` and `checked` do."""
    return load(path, lambda arrays: checked(arrays, model))
