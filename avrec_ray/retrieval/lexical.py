"""Items by the words of their title, tags and category: what search answers where text cannot be encoded.

BM25 (Robertson and Zaragoza, 2009) over an inverted index in memory: about 12 bytes a word of the catalogue.
"""

import math
from array import array
from collections import Counter, defaultdict

import numpy as np

from avrec_ray.catalogue import Catalogue
from avrec_ray.towers.text_tokens import split_words

_SATURATION, _LENGTH = 1.2, 0.75
"""k1 and b."""


class LexicalIndex:
    """Built once a catalogue; safe for threads after that."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._rows: dict[str, array[int]] = defaultdict(lambda: array("I"))
        self._counts: dict[str, array[int]] = defaultdict(lambda: array("H"))
        lengths = np.zeros(len(catalogue), np.float32)
        for row, words in enumerate(map(_words_of, *_columns(catalogue))):
            lengths[row] = len(words)
            for word, count in Counter(words).items():
                self._rows[word].append(row)
                self._counts[word].append(min(count, 65535))
        self._num_items = len(catalogue)
        mean = max(float(lengths.sum()) / max(len(catalogue), 1), 1e-9)
        self._length_penalty = _SATURATION * (1 - _LENGTH + _LENGTH * lengths / mean)

    def search(self, text: str, k: int) -> list[tuple[int, float]]:
        """Rows and scores of the up to `k` items that share a word with `text`, best first; ties in catalogue order."""
        scores = np.zeros(self._num_items, np.float32)
        for word in set(split_words(text)):
            if word in self._rows:
                rows = np.frombuffer(self._rows[word], np.uint32)
                counts = np.frombuffer(self._counts[word], np.uint16).astype(np.float32)
                rarity = math.log(1 + (self._num_items - len(rows) + 0.5) / (len(rows) + 0.5))
                scores[rows] += rarity * counts * (1 + _SATURATION) / (counts + self._length_penalty[rows])
        best = np.argsort(-scores, kind="stable")[:k]
        return [(int(row), float(scores[row])) for row in best if scores[row] > 0]


def _columns(catalogue: Catalogue) -> tuple[list[str], list[list[str]], list[str | None]]:
    return catalogue.titles, catalogue.tags, catalogue.categories


def _words_of(title: str, tags: list[str], category: str | None) -> list[str]:
    return split_words(" ".join([title, *tags, category or ""]))
