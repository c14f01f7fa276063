"""Hashed word tokens: a tokenizer that needs no vocabulary, so it cannot leak the future and never meets an unknown."""

import re
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_WORD = re.compile(r"\w+", re.UNICODE)


def split_words(text: str) -> list[str]:
    """Words of a text, in lower case, in order."""
    return _WORD.findall(text.lower())


def hash_tokens(texts: Sequence[str], num_buckets: int, max_tokens: int) -> npt.NDArray[np.int64]:
    """Token ids, int64 [len(texts), max_tokens]; 0 is padding, words take 1 .. num_buckets - 1 by CRC-32.

    >>> hash_tokens(["A cat", "a CAT!"], 100, 3).tolist()[0] == hash_tokens(["a cat"], 100, 3).tolist()[0]
    True
    """
    tokens = np.zeros((len(texts), max_tokens), dtype=np.int64)
    for row, text in enumerate(texts):
        words = split_words(text)[:max_tokens]
        tokens[row, : len(words)] = [1 + zlib.crc32(word.encode()) % (num_buckets - 1) for word in words]
    return tokens
