import doctest

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.bundle import Catalogue
from avrec_ray.errors import ConfigError
from avrec_ray.ranking import policy
from avrec_ray.ranking.policy import PolicyConfig, allowed_mask, apply_policy
from avrec_ray.types import Filters, Query

CATEGORIES = ["music", "sport", None, "music"]
LANGUAGES = ["en", "de", "en", None]
DURATIONS = np.array([10, 60, np.nan, 20], np.float32)


def unit_vectors(num: int, seed: int = 0) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(num, 6)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def catalogue(num_items: int) -> Catalogue:
    return Catalogue(
        item_ids=[f"i{n}" for n in range(num_items)],
        titles=[""] * num_items,
        categories=[["music", "sport", None][n % 3] for n in range(num_items)],
        tags=[[]] * num_items,
        creator_ids=[f"c{n // 4}" for n in range(num_items)],
        languages=[["en", "de"][n % 2] for n in range(num_items)],
        durations=np.arange(num_items, dtype=np.float32),
        popularity=np.zeros(num_items, np.float32),
        recent_popularity=np.zeros(num_items, np.float32),
        warm=np.ones(num_items, bool),
    )


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(), [True, True, True, True]),
        (Filters(categories=("music", "cooking")), [True, False, False, True]),
        (Filters(languages=("en",)), [True, False, True, False]),
        (Filters(max_duration_seconds=20.0), [True, False, False, True]),
        (Filters(categories=("music",), languages=("en",), max_duration_seconds=9.0), [False] * 4),
        (Filters(exclude_items=("a", "zz")), [False, True, True, True]),
    ],
)
def test_allowed_mask_leaves_out_what_is_not_known_to_fit(filters: Filters, expected: list[bool]) -> None:
    assert allowed_mask(CATEGORIES, LANGUAGES, DURATIONS, filters, ["a", "b", "c", "d"]).tolist() == expected


def test_allowed_mask_of_an_empty_catalogue_is_empty() -> None:
    assert allowed_mask([], [], np.zeros(0, np.float32), Filters(categories=("x",), max_duration_seconds=1)).shape == (
        0,
    )


def test_allowed_mask_without_ids_leaves_exclusions_to_the_caller() -> None:
    assert allowed_mask(CATEGORIES, LANGUAGES, DURATIONS, Filters(exclude_items=("a",))).all()


@given(st.lists(st.sampled_from(["a", "b", None]), max_size=12), st.sets(st.sampled_from("abc")))
def test_allowed_mask_grows_with_the_wanted_values(categories: list[str | None], wanted: set[str]) -> None:
    columns = (categories, [None] * len(categories), np.zeros(len(categories), np.float32))
    narrow = allowed_mask(*columns, Filters(categories=tuple(sorted(wanted | {"c"}))))
    wide = allowed_mask(*columns, Filters(categories=("a", "b", "c")))
    assert (wide | ~narrow).all()


def policy_order(query: Query, cfg: PolicyConfig, num: int = 24) -> npt.NDArray[np.int64]:
    """Candidates are the catalogue rows backwards, so that a row is never its position."""
    rows = np.arange(num)[::-1].copy()
    scores = np.sin(np.arange(num) * 1.7).astype(np.float32)
    return apply_policy(scores, rows, catalogue(num), unit_vectors(num), query, cfg)


def test_policy_by_default_is_the_order_of_the_scores() -> None:
    scores = np.sin(np.arange(24) * 1.7).astype(np.float32)
    expected = np.argsort(-scores, kind="stable")
    assert np.array_equal(policy_order(Query(None, k=10), PolicyConfig()), expected[:10])
    assert np.array_equal(policy_order(Query(None, k=99), PolicyConfig()), expected)


def test_policy_filters_before_it_cuts() -> None:
    items = catalogue(24)
    filters = Filters(categories=("music",), languages=("en",), max_duration_seconds=20, exclude_items=("i6",))
    order = policy_order(Query(None, k=10, filters=filters), PolicyConfig())
    assert sorted(items.item_ids[23 - p] for p in order) == ["i0", "i12", "i18"]


def test_policy_caps_creators_and_categories() -> None:
    items = catalogue(24)
    order = policy_order(Query(None, k=6), PolicyConfig(max_per_creator=1))
    assert len({items.creator_ids[23 - p] for p in order}) == 6
    order = policy_order(Query(None, k=6), PolicyConfig(max_per_category=1, max_per_creator=1))
    assert [items.categories[23 - p] for p in order].count("music") == 1


def test_policy_diversity_of_the_query_wins_over_the_configured_one() -> None:
    base = policy_order(Query(None, k=8), PolicyConfig())
    configured = policy_order(Query(None, k=8), PolicyConfig(diversity=0.9))
    asked = policy_order(Query(None, k=8, diversity=0.9), PolicyConfig(diversity=0.1))
    assert np.array_equal(configured, asked)
    assert not np.array_equal(configured, base)


def test_policy_of_no_candidates_is_empty() -> None:
    order = apply_policy(
        np.zeros(0, np.float32),
        np.zeros(0, np.int64),
        catalogue(4),
        unit_vectors(4),
        Query(None, diversity=0.5),
        PolicyConfig(max_per_creator=1),
    )
    assert order.tolist() == []
    assert policy_order(Query(None, filters=Filters(languages=("fr",))), PolicyConfig(diversity=0.5)).tolist() == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"diversity": 1.5}, r"policy.diversity=1.5 is outside \[0, 1\]"),
        ({"max_per_creator": -1}, "policy.max_per_creator=-1"),
        ({"max_per_category": -1}, "policy.max_per_category=-1"),
    ],
)
def test_config_out_of_range_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PolicyConfig(**settings)  # type: ignore[arg-type]


def test_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(policy).failed == 0
