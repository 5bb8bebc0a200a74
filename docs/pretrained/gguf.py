"""GGUF files of Llama's kind, such as SmolLM2-135M-Instruct, as Transformers of ours.

A file: magic, version, two counts; the metadata: names, types, values; the tensors' names, shapes
(reversed), types and offsets; the tensors, aligned, in blocks of weights.
"""
import io
import math
import struct
import numpy as np
from biases_on_disk import check, sound
from pretrained.bpe import ALPHABET, GPT2, SMOLLM, Tokenizer
from pretrained.llama2c import llama

NUMBERS, STRING, ARRAY = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}, 8, 9
D, NIBBLES = ("d", "<f2"), ("q", "u1", 16)
# Type: how many weights are in a block, and its parts. F32, F16; Q4_0, Q4_1, Q8_0.
BLOCKS = {0: (1, np.dtype("<f4")), 1: (1, np.dtype("<f2")), 2: (32, np.dtype([D, NIBBLES])),
          3: (32, np.dtype([D, ("m", "<f2"), NIBBLES])), 8: (32, np.dtype([D, ("q", "i1", 32)]))}
SIZES = ("block_count context_length embedding_length feed_forward_length attention.head_count "
         "attention.head_count_kv rope.freq_base attention.layer_norm_rms_epsilon").split()


def read_header(file):
    """The metadata, and {name: (shape, type, place in the file)} of all tensors."""
    def take(kinds):
        return struct.unpack("<" + kinds, head.read(struct.calcsize("<" + kinds)))

    def value(kind):
        if kind == STRING:
            return take(f"{take('Q')[0]}s")[0].decode()
        if kind != ARRAY:
            return take(NUMBERS[kind])[0]
        kind, n = take("IQ")
        return [value(kind) for _ in range(n)] if kind == STRING else take(f"{n}{NUMBERS[kind]}")

    head, size = io.BytesIO(file.read(1 << 24)), file.seek(0, 2)
    check(take("4sI") in ((b"GGUF", 2), (b"GGUF", 3)), "no GGUF of version 2 or 3")
    n_tensors, n_pairs = take("QQ")
    meta = {value(STRING): value(*take("I")) for _ in range(n_pairs)}
    tensors = {value(STRING): (take(f"{min(take('I')[0], 9)}Q")[::-1], *take("IQ"))
               for _ in range(n_tensors)}
    align = meta.get("general.alignment", 32)
    end = start = -(-head.tell() // align) * align
    for name, (shape, kind, offset) in tensors.items():
        block, parts = BLOCKS.get(kind, (0, None))
        check(block and shape[-1] % block == 0 and offset == end - start,
              f"{name} has type {kind}, shape {shape}, {offset - end + start} bytes off its place")
        tensors[name] = shape, kind, end
        end += -(-math.prod(shape) // block * parts.itemsize // align) * align
    check(end - align < size <= end, f"{size} bytes where {end} are named: truncated or too long")
    return meta, tensors


def read_tokenizer(meta):
    """The metadata's byte-pair tokenizer; tokens of the types 3 and 4 are special."""
    tokens, kinds, merges, model, name = (meta["tokenizer.ggml." + key] for key in (
        "tokens", "token_type", "merges", "model", "pre"))
    pattern = {("gpt2", "gpt-2"): GPT2, ("gpt2", "smollm"): SMOLLM}[model, name]
    ids = {token: i for i, token in enumerate(tokens)}
    ranks = {(a, b): i for i, (a, b) in enumerate(merge.split(" ") for merge in merges)}
    check("" not in ids and all({a, b, a + b} <= ids.keys() for a, b in ranks),
          "a token is empty, or one of the merges is not of two tokens")
    special = (token for token, kind in zip(tokens, kinds, strict=True) if kind in (3, 4))
    return Tokenizer(ids, ranks, pattern, tuple(special))


def read(path, dtype=np.float32):
    """(model, tokenizer, number of key-value heads). ValueError for a file that is not sound."""
    def get(name, *shape):
        found, kind, place = tensors.pop(name)
        check(found == shape, f"{name} must have the shape {shape}, not {found}")
        file.seek(place)
        x = np.fromfile(file, BLOCKS[kind][1], math.prod(shape) // BLOCKS[kind][0])
        if kind > 1:
            d, q = x["d"].astype("f")[:, None], x["q"]
            q = q if kind == 8 else np.concatenate([q & 15, q >> 4], axis=-1)    # 16 low, 16 high
            x = d * q + (x["m"].astype("f")[:, None] if kind == 3 else -8 * (kind == 2) * d)
        x = x.astype(dtype, copy=False).reshape(shape)
        check(abs(x).max() < 1e6, f"{name} has entries that are no numbers, or no trained ones")
        return x

    with sound(path) as file, np.errstate(all="ignore"):
        meta, tensors = read_header(file)
        check(meta["general.architecture"] == "llama", "its architecture must be llama")
        ours = {key[6:]: value for key, value in meta.items() if key.startswith("llama.")}
        *_, d, _, heads, kv_heads, base, eps = sizes = [*map(ours.pop, SIZES)]
        check(all(type(n) is int and n > 0 for n in sizes[:6]) and 1 <= base < 1e9 and 0 < eps < 1
              and d % (2 * heads) == heads % kv_heads == 0, f"no model: {dict(zip(SIZES, sizes))}")
        tokenizer = read_tokenizer(meta)
        implied = {"vocab_size": len(tokenizer.ids)} | dict.fromkeys(
            ("rope.dimension_count", "attention.key_length", "attention.value_length"), d // heads)
        check(ours.items() <= implied.items(), f"not all of {ours} is as it is read here")
        model = llama(get, len(tokenizer.ids), "output.weight" not in tensors, *sizes[:7],
                      float(f"{eps:.6g}"))
        check(not tensors, f"{[*tensors][:9]} have no place in such a model")
    return model, tokenizer, kv_heads


def write_tiny(path, rng):
    """A tiny random model: tensors of every type, two key-value heads for four, a few merges."""
    def pack(x):    # its type, itself
        if isinstance(x, list):
            entries = b"".join(pack(entry)[4:] for entry in x)
            return struct.pack("<I4sQ", ARRAY, pack(x[0])[:4], len(x)) + entries
        if isinstance(x, str):
            return struct.pack("<IQ", STRING, len(x.encode())) + x.encode()
        return struct.pack("<II", 4, x) if isinstance(x, int) else struct.pack("<If", 6, x)

    def get(name, *shape):    # random bytes as blocks, their scales so that weights are about 1/6
        kind = 0 if "norm" in name else (8, 3, 2, 1)[len(heads) % 4]
        size, parts = BLOCKS[kind]
        raw = (rng.standard_normal(math.prod(shape) // size) / 6 + ("norm" in name)).astype(parts)
        if kind > 1:
            raw = np.frombuffer(bytearray(rng.bytes(raw.nbytes)), parts)
            raw[[*parts.names[:-1]]] = {2: (.03,), 3: (.03, -.2), 8: (.002,)}[kind]    # d, m
        heads.append(pack(name)[4:] + struct.pack(
            f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(data)))
        data.extend(raw.tobytes() + bytes(-raw.nbytes % 32))
        return np.zeros(shape)

    heads, data, sizes = [], bytearray(), (2, 2048, 32, 64, 4, 2, 1e5, 1e-5)
    merges = ["h e", "Ġ t", "Ġt he", "i n", "Ġ a", "e r"]
    tokens = ["<|endoftext|>", *sorted(ALPHABET), *(merge.replace(" ", "") for merge in merges)]
    llama(get, len(tokens), True, *sizes)
    meta = dict(zip(["llama." + key for key in SIZES], sizes)) | {
        "general.file_type": 0, "general.architecture": "llama", "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges, "tokenizer.ggml.token_type": [3] + [1] * len(tokens[1:])}
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(heads), len(meta)) + b"".join(
        [pack(key)[4:] + pack(x) for key, x in meta.items()] + heads)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
