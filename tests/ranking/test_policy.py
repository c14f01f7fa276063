import doctest
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.bundle import Catalogue
from avrec_ray.errors import ConfigError
from avrec_ray.ranking import policy
from avrec_ray.ranking.policy import PolicyConfig, allowed_mask, apply_policy, cap_groups, cap_per_group, mmr
from avrec_ray.types import Filters, Query

CATEGORIES = ["music", "sport", None, "music"]
LANGUAGES = ["en", "de", "en", None]
DURATIONS = np.array([10, 60, np.nan, 20], np.float32)


def unit_vectors(num: int, seed: int = 0) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(num, 6)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def similarity_within(order: npt.NDArray[np.int64], embeddings: npt.NDArray[np.float32]) -> float:
    """Mean cosine between the items of a list."""
    cosine = embeddings[order] @ embeddings[order].T
    return float((cosine.sum() - len(order)) / (len(order) * (len(order) - 1)))


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


scores_lists = st.lists(st.floats(-1e3, 1e3, width=32), max_size=25)


@given(scores_lists, st.integers(1, 30))
def test_mmr_without_diversity_is_the_ranking(scores: list[float], k: int) -> None:
    order = mmr(np.array(scores, np.float32), unit_vectors(len(scores)), 0.0, k)
    assert order.tolist() == sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def test_mmr_without_diversity_keeps_differences_that_normalising_would_lose() -> None:
    scores = np.array([1e30, 1.0, 1.0 + 1e-6, -1e30], np.float32)
    assert mmr(scores, unit_vectors(4), 0.0, 4).tolist() == [0, 2, 1, 3]


@given(scores_lists, st.floats(0, 1), st.integers(1, 30), st.integers(0, 9))
@settings(deadline=None)
def test_mmr_lists_distinct_candidates_and_starts_with_the_best(
    scores: list[float], diversity: float, k: int, seed: int
) -> None:
    values, embeddings = np.array(scores, np.float32), unit_vectors(len(scores), seed)
    order = mmr(values, embeddings, diversity, k)
    assert len(order) == min(k, len(scores))
    assert len(set(order.tolist())) == len(order)
    assert np.array_equal(order, mmr(values, embeddings, diversity, k))
    if len(order) and diversity < 1:
        assert values[order[0]] == pytest.approx(values.max(), abs=1e-6 * float(np.ptp(values)))
    assert np.array_equal(order, mmr(values, embeddings, diversity, len(scores) + 1)[:k])


@given(st.integers(2, 9), st.floats(0.01, 1), st.integers(0, 50))
@settings(deadline=None)
def test_mmr_equals_the_formula_one_place_at_a_time(num: int, diversity: float, seed: int) -> None:
    scores = np.random.default_rng(seed).random(num).astype(np.float32)
    embeddings = unit_vectors(num, seed).astype(np.float64)
    relevance = (scores.astype(np.float64) - scores.min()) / (np.float64(scores.max()) - scores.min())
    placed: list[int] = []
    for _ in range(num):
        left = [i for i in np.argsort(-scores, kind="stable").tolist() if i not in placed]
        worth = [
            (1 - diversity) * relevance[i]
            - diversity * max([(1 + embeddings[i] @ embeddings[j]) / 2 for j in placed], default=0.0)
            for i in left
        ]
        placed.append(left[int(np.argmax(worth))])
    assert mmr(scores, embeddings.astype(np.float32), diversity, num).tolist() == placed


@given(st.floats(0.01, 100), st.floats(-50, 50), st.floats(0, 1))
@settings(deadline=None)
def test_mmr_does_not_depend_on_the_scale_of_scores(scale: float, shift: float, diversity: float) -> None:
    scores = np.array([8, 7, 6, 4, 2, 1], np.float64)
    embeddings = unit_vectors(6)
    assert np.array_equal(mmr(scores * scale + shift, embeddings, diversity, 6), mmr(scores, embeddings, diversity, 6))


def test_mmr_moves_a_copy_behind_what_differs() -> None:
    embeddings = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    scores = np.array([3, 2.9, 1.0])
    assert mmr(scores, embeddings, 0.0, 3).tolist() == [0, 1, 2]
    assert mmr(scores, embeddings, 0.8, 3).tolist() == [0, 2, 1]


def test_mmr_similarity_falls_along_the_dial() -> None:
    embeddings, scores = unit_vectors(60), np.random.default_rng(1).random(60)
    within = [similarity_within(mmr(scores, embeddings, d, 10), embeddings) for d in (0.0, 0.3, 0.6, 1.0)]
    assert within == sorted(within, reverse=True)
    assert within[-1] < within[0] - 0.1


def test_mmr_with_equal_scores_keeps_the_order_where_items_are_equal() -> None:
    assert mmr(np.ones(4), np.tile([[1.0, 0.0]], (4, 1)).astype(np.float32), 0.5, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [np.array([1.0, np.nan]), np.array([np.inf, 1.0]), np.ones(3)])
def test_mmr_refuses_scores_that_are_not_finite_or_do_not_fit(bad: npt.NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match=r"expected finite \[K\]"):
        mmr(bad, unit_vectors(2), 0.5, 2)


@pytest.mark.parametrize("diversity", [-0.1, 1.1, float("nan")])
def test_mmr_refuses_diversity_outside_its_range(diversity: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        mmr(np.ones(2), unit_vectors(2), diversity, 2)


def test_cap_per_group_defers_what_is_over_and_back_fills() -> None:
    groups = ["a", "a", "a", None, None, None, "b"]
    order = np.arange(7)
    assert cap_per_group(order, groups, cap=1, k=4).tolist() == [0, 3, 4, 5]
    assert cap_per_group(order, groups, cap=2, k=7).tolist() == [0, 1, 3, 4, 5, 6, 2]
    assert cap_per_group(order, groups, cap=0, k=3).tolist() == [0, 1, 2]


groups_lists = st.lists(st.sampled_from(["a", "b", "c", None]), max_size=20)


@given(groups_lists, st.integers(0, 4), st.integers(1, 25), st.randoms(use_true_random=False))
def test_cap_per_group_keeps_k_and_breaks_the_cap_only_when_it_must(
    groups: list[str | None], cap: int, k: int, random: Random
) -> None:
    positions = list(range(len(groups)))
    random.shuffle(positions)
    order = np.array(positions, np.int64)
    shown = cap_per_group(order, groups, cap, k)
    assert len(shown) == min(k, len(groups))
    assert len(set(shown.tolist())) == len(shown)
    if cap == 0:
        assert np.array_equal(shown, order[:k])
        return
    room = sum(min(groups.count(g), cap) for g in {"a", "b", "c"}) + groups.count(None)
    within = shown[: min(k, room)]
    assert all([groups[p] for p in within].count(g) <= cap for g in ("a", "b", "c"))
    rank = {position: place for place, position in enumerate(positions)}
    assert [rank[p] for p in within.tolist()] == sorted(rank[p] for p in within.tolist())


def test_cap_groups_keeps_every_cap_at_once() -> None:
    creators, categories = ["x", "x", "y", "y", "z"], ["m", "s", "m", "s", "s"]
    assert cap_groups(np.arange(5), [(creators, 1), (categories, 1)], 2).tolist() == [0, 3]
    assert cap_groups(np.arange(5), [(creators, 1), (categories, 0)], 3).tolist() == [0, 2, 4]
    assert cap_groups(np.arange(5), [(creators, 1), (categories, 1)], 5).tolist() == [0, 3, 1, 2, 4]


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
