"""Items as weighted words and given vectors, for neighbours by content that no training went into."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from avrec_ray.towers.text_tokens import split_words


@dataclass(frozen=True, eq=False)
class WordWeights:
    """The words that tell texts apart, and how much each says."""

    column: dict[str, int]
    """Word to its place in vectors."""
    weights: npt.NDArray[np.float64]
    """[W]."""

    def vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """TF-IDF [N, W]; of any texts. A text without a known word has zeros."""
        pairs = [(row, self.column[w]) for row, text in enumerate(texts) for w in split_words(text) if w in self.column]
        rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
        counts = sparse.csr_matrix(
            (np.ones(len(rows), np.float32), (rows, columns)), shape=(len(texts), len(self.weights))
        )
        return np.asarray(counts.multiply(self.weights[None, :]).toarray(), np.float32)


def fit_words(texts: Sequence[str], max_words: int = 2048) -> WordWeights:
    """The words that at least two of the texts share, at most `max_words`, those of most texts; ties by spelling.

    A word weighs log(N / texts with the word).
    """
    num_items_of: dict[str, int] = {}
    for text in texts:
        for word in set(split_words(text)):
            num_items_of[word] = num_items_of.get(word, 0) + 1
    shared = sorted((word for word, count in num_items_of.items() if count > 1), key=lambda w: (-num_items_of[w], w))
    column = {word: place for place, word in enumerate(shared[:max_words])}
    frequency = np.array([num_items_of[word] for word in column] or [1])
    return WordWeights(column, np.log(max(len(texts), 1) / frequency))


def text_vectors(texts: Sequence[str], max_words: int = 2048) -> npt.NDArray[np.float32]:
    """TF-IDF [N, W] of the words of `fit_words`; W is at least 1."""
    return fit_words(texts, max_words).vectors(texts)


def join_vectors(texts: npt.NDArray[np.float32], given: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Words [N, W] and each modality's given vectors, NaN where an item has none, side by side with equal weight.

    Given vectors lose their mean, which all items share, and each part of an item has length 1, or 0 where it says
    nothing. Without given vectors the words come back as they are.
    """
    if not given:
        return texts
    centred = [np.nan_to_num(vectors - np.nanmean(vectors, 0)) for vectors in given]
    return np.concatenate([_unit(part) for part in (texts, *centred)], 1)


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
