"""Items as weighted words and given vectors, for neighbours by content that no training went into."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from avrec_ray.towers.text_tokens import split_words


def text_vectors(texts: Sequence[str], max_words: int = 2048) -> npt.NDArray[np.float32]:
    """TF-IDF [N, W] of the words that at least two items share: term count times log(N / items with the word).

    W is at most `max_words`, the words of most items; ties by spelling. An item without such a word has zeros.
    """
    words = [split_words(text) for text in texts]
    num_items_of: dict[str, int] = {}
    for mine in words:
        for word in set(mine):
            num_items_of[word] = num_items_of.get(word, 0) + 1
    shared = sorted((word for word, count in num_items_of.items() if count > 1), key=lambda w: (-num_items_of[w], w))
    column = {word: place for place, word in enumerate(shared[:max_words])}
    pairs = [(row, column[word]) for row, mine in enumerate(words) for word in mine if word in column]
    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    counts = sparse.csr_matrix(
        (np.ones(len(rows), np.float32), (rows, columns)), shape=(len(texts), max(1, len(column)))
    )
    frequency = np.array([num_items_of[word] for word in column] or [1])
    weights = np.log(max(len(texts), 1) / frequency)
    return np.asarray(counts.multiply(weights[None, :]).toarray(), np.float32)


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
