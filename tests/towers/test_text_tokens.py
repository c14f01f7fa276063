"""Hashed words: the same word has the same id everywhere, and 0 stays padding."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.towers.text_tokens import hash_tokens


def test_hash_tokens_ignores_case_and_punctuation() -> None:
    first, second = hash_tokens(["Loud: Drums, at NIGHT!", "loud drums at night"], 8192, 6)
    assert first.tolist() == second.tolist()
    assert (first[:4] > 0).all()
    assert first[4:].tolist() == [0, 0]


def test_hash_tokens_reads_words_of_any_script() -> None:
    tokens = hash_tokens(["夜の音楽 ночь", "", "?! ..."], 8192, 4)
    assert (tokens > 0).sum(1).tolist() == [2, 0, 0]


def test_hash_tokens_is_the_same_in_every_process() -> None:
    assert hash_tokens(["cat dog"], 8192, 2).tolist() == [[5826, 768]]


@given(st.lists(st.text(max_size=40), max_size=5), st.integers(2, 50), st.integers(1, 8))
def test_hash_tokens_stays_inside_its_buckets_and_length(texts: list[str], buckets: int, length: int) -> None:
    tokens = hash_tokens(texts, buckets, length)
    assert tokens.shape == (len(texts), length)
    assert tokens.dtype == np.int64
    assert ((tokens >= 0) & (tokens < buckets)).all()
    assert (np.diff((tokens > 0).astype(int), axis=1) <= 0).all()  # padding only behind
