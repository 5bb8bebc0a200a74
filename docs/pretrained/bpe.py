"""Byte-pair encoding, on bytes, for any pattern."""
import math
import re
import unicodedata
from typing import NamedTuple

# A byte is written as a printable character: itself where it is one, else the next from 256 on.
OTHER = [b for b in range(256) if b == 32 or not chr(b).isprintable()]
ALPHABET = [chr(256 + OTHER.index(b) if b in OTHER else b) for b in range(256)]
BYTES = {c: bytes([b]) for b, c in enumerate(ALPHABET)}

# How a text is cut into pieces, for `split`; SmolLM2's takes every digit by itself.
GPT2 = r"'(?:[stmd]|re|ve|ll)| ?[a-zA-Z]+| ?\d+| ?[^\sa-zA-Z\d]+|\s+(?!\S)|\s+"
SMOLLM = r"'(?:[stmd]|re|ve|ll)| ?[a-zA-Z]+|\d| ?[^\sa-zA-Z\d]+|\s+(?![^\s\d])|\s+"


class Tokenizer(NamedTuple):
    """What a vocabulary is: data for `encode` and `decode`."""

    ids: dict             # {token, in the letters of ALPHABET: its id}, in the order of the ids
    ranks: dict           # {(left, right): the number of the merge that joins them}
    pattern: str = GPT2   # how a text is cut into pieces
    special: tuple = ()   # tokens that stand for themselves in a text, such as <|endoftext|>


def split(text, pattern):
    """The pieces of a text, matched with an ASCII character in place of others of its class."""
    same = "".join(c if c.isascii() else "\t" if c.isspace() else
                   {"L": "a", "N": "0"}.get(unicodedata.category(c)[0], "!") for c in text)
    return [text[slice(*match.span())] for match in re.finditer(pattern, same, re.A)]


def join(parts, rank):
    """Join the neighbours of lowest rank(left, right), first the first, as long as one is < inf."""
    parts = list(parts)
    while (best := min(ranks := [*map(rank, parts, parts[1:])], default=math.inf)) < math.inf:
        i = ranks.index(best)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


def encode(text, tokenizer):
    """The ids of a text. A byte that is no token is left out, as other programs leave it out."""
    ids, ranks, pattern, special = tokenizer
    found, rank = [], lambda *pair: ranks.get(pair, math.inf)
    for part in re.split(f"({'|'.join(map(re.escape, special)) or '(?!)'})", text):
        for piece in [] if part in special else split(part, pattern):
            letters = (ALPHABET[byte] for byte in piece.encode("utf-8", "replace"))
            found += join(filter(ids.__contains__, letters), rank)
        found += [part] * (part in special)
    return [ids[token] for token in found]


def decode(ids, tokenizer):
    """The text of ids; bytes that are no UTF-8 become the replacement character."""
    letters = "".join(map([*tokenizer.ids].__getitem__, ids))
    return b"".join(BYTES.get(c) or c.encode() for c in letters).decode("utf-8", "replace")
