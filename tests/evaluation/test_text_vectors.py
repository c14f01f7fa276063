import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.evaluation.text_vectors import join_vectors, text_vectors


def test_words_weigh_by_count_and_rarity() -> None:
    vectors = text_vectors(["cat cat dog", "cat bird", "bird dog", "bird"])
    words = {"bird": 3, "cat": 2, "dog": 2}  # most items first, then by spelling
    assert vectors.shape == (4, 3)
    weight = {word: np.log(4 / count) for word, count in words.items()}
    assert vectors[0] == pytest.approx([0, 2 * weight["cat"], weight["dog"]])
    assert vectors[3] == pytest.approx([weight["bird"], 0, 0])


def test_words_of_one_item_say_nothing() -> None:
    assert not text_vectors(["one", "two", ""]).any()


def test_only_the_most_frequent_words_are_told_apart() -> None:
    assert text_vectors(["a b", "a b", "a c"], max_words=1).shape == (3, 1)


@given(st.lists(st.text(alphabet="abc ,.", max_size=12), max_size=8))
def test_vectors_are_finite_and_one_an_item(texts: list[str]) -> None:
    vectors = text_vectors(texts)
    assert len(vectors) == len(texts)
    assert np.isfinite(vectors).all()
    assert (vectors >= 0).all()


def test_join_gives_each_part_the_same_weight_and_missing_ones_none() -> None:
    words = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]], np.float32)
    given = np.array([[10.0, 11.0, 10.0], [np.nan] * 3, [12.0, 9.0, 10.0]], np.float32)
    joined = join_vectors(words, [given])
    np.testing.assert_allclose(joined[0, :2], [0.6, 0.8], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(joined[[0, 2], 2:], axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(joined[0, 2:], -joined[2, 2:], atol=1e-6)  # the shared mean is gone
    assert not joined[1].any()


def test_join_of_words_alone_changes_nothing() -> None:
    words = np.array([[3.0, 4.0]], np.float32)
    assert join_vectors(words, []) is words
