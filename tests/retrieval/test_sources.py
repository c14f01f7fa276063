"""Each source by hand, on eight items whose embeddings are angles; the first source to name an item has it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.catalogue import Catalogue
from avrec_ray.errors import ConfigError
from avrec_ray.retrieval.config import IndexConfig, MatcherConfig
from avrec_ray.retrieval.index import build_index
from avrec_ray.retrieval.interests import medoids
from avrec_ray.retrieval.neighbours import ItemNeighbours
from avrec_ray.retrieval.sources import MAX_CLUSTERED, SOURCES, Asked, Stock, gather
from avrec_ray.training.friends import Friendships

DEGREES = (0, 10, 20, 90, 100, 110, 180, 190)
POPULARITY = (0.05, 0.10, 0.0, 0.30, 0.20, 0.0, 0.25, 0.10)
CREATORS = ("x", "x", "x", "y", "x", "y", None, None)


def unit(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


def catalogue() -> Catalogue:
    """Items 0 to 2 are music, 3 to 5 sport; 6 and 7 have no category and another language; 2 and 5 are new."""
    popularity = np.array(POPULARITY, np.float32)
    return Catalogue(
        item_ids=[str(row) for row in range(8)],
        titles=[""] * 8,
        categories=["music"] * 3 + ["sport"] * 3 + [None] * 2,
        tags=[[]] * 8,
        creator_ids=list(CREATORS),
        languages=["en"] * 6 + ["de"] * 2,
        durations=np.full(8, np.nan, np.float32),
        popularity=popularity,
        recent_popularity=popularity,
        choices_per_day=popularity,
        warm=popularity > 0,
    )


def friendships() -> Friendships:
    """User 0 reads users 1 (weight 2; chose 3 at 10, 6 at 20) and 2 (weight 1; chose 6 at 5, 4 at 30)."""
    return Friendships(
        friend_row=np.array([1, 2]),
        log_weight=np.log(np.array([2.0, 1.0])).astype(np.float32),
        friend_starts=np.array([0, 2, 2, 2]),
        item_idx=np.array([3, 6, 6, 4]),
        at_seconds=np.array([10.0, 20.0, 5.0, 30.0]),
        starts=np.array([0, 0, 2, 4]),
        per_friend=10,
    )


def stock(**settings: Any) -> Stock:
    """Item 0 speaks for 1, 3 and 6, the last most."""
    vectors = unit(*DEGREES)
    session = ItemNeighbours(
        np.array([0] + [3] * 8), np.array([1, 3, 6]), np.array([0.2, 0.5, 0.9], np.float32), recency=0.8
    )
    index = build_index(vectors, IndexConfig())
    return Stock(catalogue(), vectors, index, MatcherConfig(**settings), session, friendships())


def asked(chosen: list[int] | None = None, **given: Any) -> Asked:
    """A query at 12 degrees; what was chosen is seen."""
    rows = np.array(chosen or [], np.int64)
    values: dict[str, Any] = {"vector": 2 * unit(12)[0], "chosen": rows, "followed": rows[:0], "seen": np.unique(rows)}
    return Asked(**{**values, **given})


def named(source: str, query: Asked, count: int = 8, **settings: Any) -> list[int]:
    rows, scores = SOURCES[source](stock(**settings), query, count)
    assert scores == pytest.approx([2 * np.cos(np.deg2rad(DEGREES[row] - 12)) for row in rows], abs=1e-5)
    assert scores.dtype == np.float32
    return rows.tolist()


def test_the_user_tower_names_the_nearest() -> None:
    assert named("user_tower", asked(), 3) == [1, 2, 0]
    assert named("user_tower", asked([1]), 3) == [2, 0, 3]


def test_neighbours_are_what_choices_speak_for_most() -> None:
    assert named("neighbours", asked([0])) == [6, 3, 1]
    assert named("neighbours", asked([0]), 2) == [6, 3]
    assert named("neighbours", asked([0, 6])) == [3, 1]
    assert named("neighbours", asked([5])) == []


def test_item_to_item_goes_in_turns_from_the_newest_choice_on() -> None:
    assert named("item_to_item", asked([6, 0, 3, 3]), 4, item_to_item_last=2) == [4, 1, 5, 2]
    assert named("item_to_item", asked([6, 0, 3]), 3, item_to_item_last=1) == [4, 5, 2]
    assert named("item_to_item", asked([0, 1, 0]), 2, item_to_item_last=1) == [2, 3]


def test_interests_are_asked_by_what_stands_for_them() -> None:
    settings = {"num_multi_interest": 3, "multi_interest_queries": 2}
    assert named("interests", asked([0, 1, 3]), 3, **settings) == [4, 2, 5]
    assert named("interests", asked([]), 3, **settings) == []


def test_popular_is_of_the_categories_of_the_newest_choices_else_of_their_languages_else_of_all() -> None:
    assert named("popular", asked([0])) == [1, 2]
    assert named("popular", asked([0, 3])) == [4, 1, 2, 5]
    assert named("popular", asked([3, 0]), item_to_item_last=1) == [1, 2]
    assert named("popular", asked([6])) == [7]
    assert named("popular", asked([])) == [3, 6, 4, 1, 7, 0, 2, 5]
    assert named("popular", asked([]), 2) == [3, 6]


def test_followed_creators_give_popular_and_new_items_in_turns() -> None:
    assert named("followed", asked([0], followed=np.array([0, 0]))) == [4, 2, 1]
    assert named("followed", asked([0], followed=np.array([0, 3, 6]))) == [3, 2, 4, 5, 1]
    assert named("followed", asked([6], followed=np.array([6]))) == []
    assert named("followed", asked([0])) == []


def test_friends_name_what_they_chose_before_by_the_weight_of_friendships() -> None:
    assert named("friends", asked(profile_row=0)) == [6, 3, 4]
    assert named("friends", asked(profile_row=0, newest_at=20.0)) == [3, 6]
    assert named("friends", asked([6], profile_row=0)) == [3, 4]
    assert named("friends", asked(profile_row=1)) == named("friends", asked()) == []


def test_fresh_are_the_nearest_that_nobody_chose() -> None:
    assert named("fresh", asked()) == [2, 5]
    assert named("fresh", asked([2]), 1) == [5]
    assert named("fresh", asked(allowed=catalogue().warm)) == []


@pytest.mark.parametrize("source", SOURCES)
def test_no_source_names_what_is_seen_or_not_allowed_nor_more_than_its_quota(source: str) -> None:
    settings = {"num_multi_interest": 3, "multi_interest_queries": 2}
    query = {"followed": np.array([0, 3]), "profile_row": 0}
    free = named(source, asked([0, 3], **query), **settings)
    assert free
    allowed = np.ones(8, bool)
    allowed[free[0]] = False
    fewer = named(source, asked([0, 3], allowed=allowed, **query), **settings)
    assert not {free[0], 0, 3} & set(fewer)
    assert set(free[1:]) <= set(fewer)
    assert named(source, asked([0, 3], **query), 1, **settings) == free[:1]
    assert named(source, asked([0, 3], allowed=np.zeros(8, bool), **query), **settings) == []


def test_without_table_or_friends_their_sources_name_nothing() -> None:
    vectors = unit(*DEGREES)
    bare = Stock(catalogue(), vectors, build_index(vectors, IndexConfig()), MatcherConfig())
    for source in ("neighbours", "friends"):
        rows, scores = SOURCES[source](bare, asked([0], profile_row=0), 5)
        assert len(rows) == len(scores) == 0


def test_gather_keeps_the_first_source_and_asks_none_without_quota() -> None:
    found = gather(stock(), asked([0]), {"user_tower": 2, "neighbours": 2, "popular": 1, "fresh": 0})
    assert [(row, source) for row, (_, source) in found.items()] == [
        (1, "user_tower"), (2, "user_tower"), (6, "neighbours"), (3, "neighbours"),
    ]  # fmt: skip
    assert found == gather(stock(), asked([0]), {"user_tower": 2, "neighbours": 2})
    with pytest.raises(KeyError, match="tower_of_babel"):
        gather(stock(), asked(), {"tower_of_babel": 0})


def test_quotas_name_every_source_in_the_order_of_the_table() -> None:
    assert list(MatcherConfig().quotas) == list(SOURCES)
    assert {name for name, count in MatcherConfig().quotas.items() if count} == {"user_tower"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_candidates": 0}, r"matcher.num_candidates=0 is outside \[1, inf\]"),
        ({"num_item_to_item": -1}, r"matcher.num_item_to_item=-1 is outside \[0, inf\]"),
        ({"num_popular": -1}, "matcher.num_popular=-1 is outside"),
        ({"num_followed": -1}, "matcher.num_followed=-1 is outside"),
        ({"num_friends": -1}, "matcher.num_friends=-1 is outside"),
        ({"item_to_item_last": 0}, r"matcher.item_to_item_last=0 is outside \[1, inf\]"),
        ({"multi_interest_queries": -1}, "matcher.multi_interest_queries=-1 is outside"),
        ({"multi_interest_queries": 3}, "num_multi_interest=0 with matcher.multi_interest_queries=3; expected both"),
        ({"num_multi_interest": 9}, "num_multi_interest=9 with matcher.multi_interest_queries=0; expected both"),
    ],
)
def test_quotas_out_of_range_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MatcherConfig(**settings)


def test_medoids_of_few_items_are_the_items() -> None:
    assert medoids(unit(0, 90), 3).tolist() == [0, 1]
    assert medoids(unit(), 3).tolist() == []


@given(st.lists(st.integers(0, 359), max_size=MAX_CLUSTERED), st.integers(1, 6))
def test_medoids_are_some_of_the_items_and_no_more_than_asked_for(degrees: list[int], count: int) -> None:
    found = medoids(unit(*degrees), count).tolist()
    assert len(set(found)) == len(found) <= count
    assert bool(found) == bool(degrees)
    assert all(0 <= place < len(degrees) for place in found)
