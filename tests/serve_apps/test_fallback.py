"""Lists without a model: the best rung that something is known for, and filters on every rung."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.types import Event, Filters, Query, RankedItem
from serve_apps.fallback import Fallback, Vectors
from tests.serve_apps.conftest import NUM_ITEMS, small_catalogue


def vectors() -> Vectors:
    """Items of a category point in one direction, all but the same."""
    drawn = np.random.default_rng(0).normal(0, 0.05, (NUM_ITEMS, 8))
    drawn[np.arange(NUM_ITEMS), np.arange(NUM_ITEMS) % 4] += 1
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)


def liked(*item_ids: str) -> tuple[Event, ...]:
    return tuple(Event("u", item_id, "like", float(n)) for n, item_id in enumerate(item_ids))


def ranked(*item_ids: str) -> list[RankedItem]:
    return [RankedItem(item_id, n, 1.0 / n) for n, item_id in enumerate(item_ids, start=1)]


CATALOGUE = small_catalogue()


def rows_of(items: list[RankedItem]) -> list[int]:
    return [CATALOGUE.index_of[item.item_id] for item in items]


def test_history_gives_what_is_near_to_it() -> None:
    rung, items = Fallback(CATALOGUE, vectors()).recommend(Query("u", liked("i1", "i5"), k=5))
    assert rung == "content_mean"
    assert {row % 4 for row in rows_of(items)} == {1}
    assert not {"i1", "i5"} & {item.item_id for item in items}


def test_newer_choices_count_more() -> None:
    _, items = Fallback(CATALOGUE, vectors()).recommend(Query("u", liked(*["i1"] * 8, *["i2"] * 8), k=3))
    assert {row % 4 for row in rows_of(items)} == {2}


def test_the_last_list_goes_before_the_history() -> None:
    fallback = Fallback(CATALOGUE, vectors())
    fallback.remember("u", ranked("i3", "i7"))
    rung, items = fallback.recommend(Query("u", liked("i1"), k=3))
    assert (rung, {row % 4 for row in rows_of(items)}) == ("cached_vector", {3})
    assert fallback.recommend(Query("other", (), k=3))[0] == "popular"


def test_without_vectors_the_segment_comes_first() -> None:
    rung, items = Fallback(CATALOGUE).recommend(Query("u", liked("i1", "i5", "i9"), k=9))
    assert rung == "segment_popular"
    music = [item.item_id for item in items][:7]
    assert music == ["i13", "i17", "i21", "i25", "i29", "i33", "i37"]  # English music, the most popular first
    assert [item.item_id for item in items][7:] == ["i0", "i2"]
    assert Fallback(CATALOGUE).recommend(Query("u", liked("i1", "i5"), k=2))[0] == "popular"


def test_items_that_joined_later_have_no_vector_and_harm_nothing() -> None:
    rung, items = Fallback(CATALOGUE, vectors()[:20]).recommend(Query("u", liked("i30", "i1"), k=5))
    assert rung == "content_mean"
    assert max(rows_of(items)) < 20
    assert Fallback(CATALOGUE, vectors()[:20]).recommend(Query("u", liked("i30"), k=5))[0] == "popular"


@given(
    st.lists(st.integers(0, NUM_ITEMS - 2), max_size=8),
    st.sampled_from([(), ("music",), ("music", "sport")]),
    st.one_of(st.none(), st.floats(1, 500)),
    st.integers(1, 50),
    st.booleans(),
)
def test_filters_and_met_items_hold_on_every_rung(
    met: list[int], categories: tuple[str, ...], longest: float | None, k: int, has_vectors: bool
) -> None:
    fallback = Fallback(CATALOGUE, vectors() if has_vectors else None)
    fallback.remember("u", ranked("i2"))
    filters = Filters(categories=categories, max_duration_seconds=longest, exclude_items=("i0",))
    for user in ("u", "v"):
        _, items = fallback.recommend(Query(user, liked(*(f"i{n}" for n in met)), k=k, filters=filters))
        found = [item.item_id for item in items]
        assert len(found) == len(set(found)) <= k
        assert [item.rank for item in items] == list(range(1, len(items) + 1))
        assert not {"i0", *(f"i{n}" for n in met)} & set(found)
        scores = [item.score for item in items]
        assert has_vectors is False or scores == sorted(scores, reverse=True) or items[0].source == "popular"
        for row in rows_of(items):
            assert not categories or CATALOGUE.categories[row] in categories
            assert longest is None or not CATALOGUE.durations[row] > longest


@pytest.mark.parametrize("has_vectors", [True, False])
def test_nothing_allowed_is_an_empty_list(has_vectors: bool) -> None:
    fallback = Fallback(CATALOGUE, vectors() if has_vectors else None)
    query = Query("u", liked("i1"), k=5, filters=Filters(exclude_items=tuple(CATALOGUE.item_ids)))
    assert fallback.recommend(query)[1] == []
