"""Items by words: the same order as BM25 worked out by hand, ties, nothing found."""

import dataclasses
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.catalogue import Catalogue
from avrec_ray.retrieval.lexical import LexicalIndex
from avrec_ray.towers.text_tokens import split_words
from tests.tiny_bundle import tiny_catalogue

WORDS = ("guitar", "piano", "night", "Lesson", "the")


def catalogue_of(titles: list[str], tags: list[list[str]] | None = None) -> Catalogue:
    empty = [[] for _ in titles]
    items = tiny_catalogue(len(titles))
    return dataclasses.replace(items, titles=titles, tags=tags or empty, categories=[None] * len(titles))


def bm25(titles: list[str], text: str) -> list[float]:
    texts = [Counter(split_words(title)) for title in titles]
    mean = max(sum(t.total() for t in texts) / len(texts), 1e-9)
    scores = []
    for words in texts:
        score = 0.0
        for word in set(split_words(text)):
            having = sum(word in other for other in texts)
            rarity = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
            count = words[word]
            score += rarity * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * words.total() / mean))
        scores.append(score)
    return scores


@given(
    titles=st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), min_size=1, max_size=8),
    text=st.lists(st.sampled_from((*WORDS, "unknown")), max_size=4).map(" ".join),
    k=st.integers(1, 10),
)
def test_search_is_bm25(titles: list[str], text: str, k: int) -> None:
    found = LexicalIndex(catalogue_of(titles)).search(text, k)
    expected = bm25(titles, text)
    assert [score for _, score in found] == pytest.approx(
        sorted([s for s in expected if s > 0], reverse=True)[:k], rel=1e-5
    )
    for row, score in found:
        assert score == pytest.approx(expected[row], rel=1e-5)
    assert len({row for row, _ in found}) == len(found)


def test_search_reads_tags_and_category_and_no_case() -> None:
    items = dataclasses.replace(
        tiny_catalogue(3), titles=["One", "Two", "Three"], tags=[["Jazz"], [], []], categories=[None, "JAZZ", "x"]
    )
    assert [row for row, _ in LexicalIndex(items).search("jazz", 10)] == [0, 1]


@pytest.mark.parametrize("text", ["", "!!!", "nothing of this", "\U0001f3b8"])
def test_search_without_a_known_word_finds_nothing(text: str) -> None:
    assert LexicalIndex(catalogue_of(["guitar"])).search(text, 5) == []


def test_search_in_an_empty_catalogue_finds_nothing() -> None:
    assert LexicalIndex(catalogue_of([])).search("guitar", 5) == []
