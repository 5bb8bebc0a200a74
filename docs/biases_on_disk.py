"""The biases of any model in a file: .npz, no pickle, whole or refused."""
import os
import re
import tempfile
import zipfile
import numpy as np
from linear_transformer import Bias


def checked(arrays, model=None):
    """The biases among arrays named kv_0, d_0, kv_1, ...: a list of one Bias per layer.

    Raises ValueError unless they are plain: finite kv (..., d_k, d_v), d (..., d_k) of one type,
    float32 or float64, and those of the model if there is one.
    """
    for name, a in arrays.items():
        if not re.fullmatch(r"(kv|d)_\d{1,4}|[a-z]{1,40}", name) or a.dtype.kind not in "biufU":
            raise ValueError(f"{name[:40]!r} {a.dtype} is no plain array with a plain name")
    found = [name for name in arrays if "_" in name]
    n = len(model.layers) if model else max(1, len(found) // 2)
    if set(found) != {f"{name}_{i}" for name in Bias._fields for i in range(n)}:
        raise ValueError(f"{n} layers need kv and d each, got {', '.join(found)[:99] or 'none'}")
    biases = [Bias(arrays[f"kv_{i}"], arrays[f"d_{i}"]) for i in range(n)]
    for i, (kv, d) in enumerate(biases):
        got = f"layer {i} has kv {kv.dtype} {kv.shape} and d {d.dtype} {d.shape}"
        if kv.ndim < 2 or kv.shape[:-1] != d.shape or not kv.dtype == d.dtype in ("f4", "f8"):
            raise ValueError(f"{got}, which is no Bias of float32 or float64")
        if not (np.isfinite(kv).all() and np.isfinite(d).all()):
            raise ValueError(f"{got}, with numbers that are not finite")
        w_k, w_v = model.layers[i][1:3] if model else (kv, kv)
        if model and (kv.dtype, kv.shape) != (w_k.dtype, (*w_k.shape[::2], w_v.shape[-1])):
            raise ValueError(f"{got}, but the model's w_k is {w_k.dtype} {w_k.shape}")
    return biases


def ordinary(path):   # the path; OSError if there is a folder, a pipe, a device
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"{path} is not an ordinary file")
    return path


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
    """understand(the arrays by name) of an uncompressed .npz file without pickles.

    Raises OSError as open() does, and ValueError for what is none or is not understood. Memory and
    time are in proportion to the file's size, whatever it says of itself.
    """
    with open(ordinary(path), "rb") as stream:
        try:
            file, size = zipfile.ZipFile(stream), os.fstat(stream.fileno()).st_size
            members = {m.filename.removesuffix(".npy"): m for m in file.infolist()}
            stream.seek(-12, os.SEEK_END)  # how many members there are by the file's end
            if (len(members) != int.from_bytes(stream.read(2), "little")
                    or sum(m.file_size for m in members.values()) > size or file.testzip()):
                raise ValueError("it is compressed or damaged")
            arrays = {name: np.lib.format.read_array(file.open(m)) for name, m in members.items()}
            if any(a.size > size for a in arrays.values()):
                raise ValueError("it says that an array is larger than the file")
            return understand(arrays)
        except Exception as error:  # zipfile and NumPy raise a dozen kinds for damaged files
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"{path} is not a file of such biases: {why}") from None


def load_biases(path, model=None):
    """The biases that `save_biases` wrote, one per layer. Raises as `load` and `checked` do."""
    return load(path, lambda arrays: checked(arrays, model))
