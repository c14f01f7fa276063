"""The policy: filters before all, each dial by itself and with the others, and the order of the scores without any."""

import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.catalogue import Catalogue
from avrec_ray.errors import ConfigError
from avrec_ray.ranking import policy
from avrec_ray.ranking.diversity import dpp
from avrec_ray.ranking.policy import Placement, Policy, PolicyConfig, allowed_mask, apply_policy
from avrec_ray.types import Filters, Query
from tests.tiny_bundle import tiny_catalogue

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
        choices_per_day=np.zeros(num_items, np.float32),
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


DAY = 86_400.0


def placed(cfg: PolicyConfig, query: Query, at_seconds: float | None = DAY, num: int = 24) -> Placement:
    rows = np.arange(num)[::-1].copy()
    scores = np.sin(np.arange(num) * 1.7).astype(np.float32)
    return Policy(catalogue(num), unit_vectors(num), cfg)(scores, rows, query, at_seconds)


def with_rules(folder: Path, *rules: dict[str, Any]) -> str:
    path = folder / "rules.json"
    path.write_text(json.dumps([{"name": f"r{n}", **rule} for n, rule in enumerate(rules)]))
    return str(path)


def ids(order: npt.NDArray[np.int64], num: int = 24) -> list[str]:
    return [f"i{num - 1 - position}" for position in order]


@pytest.mark.parametrize("diversifier", ["mmr", "dpp"])
@pytest.mark.parametrize("k", [5, 40])
def test_policy_with_every_dial_at_zero_is_the_order_of_the_scores(diversifier: str, k: int) -> None:
    off = PolicyConfig(diversifier=diversifier, dpp_window=3, exploration_seed=4, exposure_groups="warm")
    found = placed(off, Query("u", k=k), at_seconds=None)
    assert np.array_equal(found.order, policy_order(Query(None, k=k), PolicyConfig()))
    assert (found.propensities == 1).all()
    assert found.exposure is None


def test_policy_takes_the_diversifier_of_its_settings() -> None:
    orders = [
        placed(PolicyConfig(diversity=0.6, diversifier=name, dpp_window=window), Query(None, k=12)).order.tolist()
        for name, window in (("mmr", 0), ("dpp", 0), ("dpp", 2))
    ]
    assert len({tuple(order) for order in orders}) == 3
    rows = np.arange(24)[::-1]
    scores = np.sin(np.arange(24) * 1.7).astype(np.float32)
    assert orders[1] == dpp(scores, unit_vectors(24)[rows], 0.6, 12).tolist()
    assert orders[2] == dpp(scores, unit_vectors(24)[rows], 0.6, 12, window=2).tolist()


def test_policy_explores_the_same_on_one_day_and_anew_on_the_next() -> None:
    cfg = PolicyConfig(exploration=0.5, diversity=0.3)
    first = placed(cfg, Query("u", k=10), 5 * DAY)
    later = placed(cfg, Query("u", k=10), 5.9 * DAY)
    assert np.array_equal(first.order, later.order)
    assert np.array_equal(first.propensities, later.propensities)
    assert ((first.propensities > 0) & (first.propensities < 1)).all()
    for other in (placed(cfg, Query("u", k=10), 6 * DAY), placed(cfg, Query("v", k=10), 5 * DAY)):
        assert not np.array_equal(first.order, other.order)
    with pytest.raises(ValueError, match="exploration draws anew each day; give the at_seconds"):
        placed(cfg, Query("u"), at_seconds=None)


def test_policy_explores_as_far_as_its_temperature_says() -> None:
    best = set(placed(PolicyConfig(), Query("u", k=5)).order.tolist())
    kept = [
        np.mean([len(best & set(placed(PolicyConfig(exploration=t), Query(f"u{n}", k=5)).order)) for n in range(25)])
        for t in (0.01, 0.3, 3.0)
    ]
    assert kept[0] > 4.5 > kept[1] > kept[2]


def test_policy_blocks_win_over_pins_and_boosts_and_pins_respect_filters(tmp_path: Path) -> None:
    rules = with_rules(
        tmp_path,
        {"match": {"item_ids": ["i3"]}, "action": "pin", "place": 1},
        {"match": {"item_ids": ["i3"]}, "action": "boost", "boost": 9},
        {"match": {"item_ids": ["i3", "i4"]}, "action": "block"},
        {"match": {"item_ids": ["i7"]}, "action": "pin", "place": 3},  # sport, de
        {"match": {"item_ids": ["i8"]}, "action": "boost", "boost": 9},
    )
    cfg = PolicyConfig(rules=rules, diversity=0.4, exploration=0.2, max_per_creator=1)
    found = placed(cfg, Query("u", k=24))
    assert not {"i3", "i4"} & set(ids(found.order))
    assert len(found.order) == 22
    assert ids(found.order)[2] == "i7"
    assert found.propensities[2] == 1
    assert "i7" not in ids(placed(cfg, Query("u", k=24, filters=Filters(languages=("en",)))).order)
    assert ids(placed(PolicyConfig(rules=rules), Query("u", k=4)).order)[0] == "i8"


def test_policy_pins_count_in_caps_and_outlive_short_lists(tmp_path: Path) -> None:
    rules = with_rules(tmp_path, {"match": {"item_ids": ["i0"]}, "action": "pin", "place": 6})
    found = ids(placed(PolicyConfig(rules=rules, max_per_creator=1), Query(None, k=6)).order)
    assert found[5] == "i0"
    assert not {"i1", "i2", "i3"} & set(found)  # of the same creator
    few = Filters(exclude_items=tuple(f"i{n}" for n in range(3, 24)))
    assert ids(placed(PolicyConfig(rules=rules), Query(None, k=6, filters=few)).order)[-1] == "i0"
    assert ids(placed(PolicyConfig(rules=rules), Query(None, k=5)).order) == ids(
        placed(PolicyConfig(), Query(None, k=5)).order
    )


@given(
    st.floats(0, 1),
    st.sampled_from(["mmr", "dpp"]),
    st.sampled_from([0.0, 0.2, 2.0]),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.25]),
    st.integers(1, 30),
    st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=60)
def test_policy_shows_k_distinct_allowed_candidates_whatever_the_dials(
    diversity: float, diversifier: str, exploration: float, cap: int, fresh_share: float, k: int, at_seconds: int
) -> None:
    cfg = PolicyConfig(
        diversity=diversity,
        diversifier=diversifier,
        exploration=exploration,
        max_per_creator=cap,
        fresh_share=fresh_share,
        exposure_groups="category",
    )
    items = tiny_catalogue(24)
    policy = Policy(items, unit_vectors(24), cfg)
    ledger = policy.ledger()
    query = Query("u", k=k, filters=Filters(languages=("en",)))
    scores = np.random.default_rng(at_seconds).normal(size=24).astype(np.float32)
    found = policy(scores, np.arange(24), query, float(at_seconds), ledger.state if ledger else None)
    allowed = [row for row in range(24) if items.languages[row] == "en"]
    assert len(found.order) == min(k, len(allowed))
    assert len(set(found.order.tolist())) == len(found.order)
    assert set(found.order.tolist()) <= set(allowed)
    assert ((found.propensities > 0) & (found.propensities <= 1)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diversity": 1.5}, r"policy.diversity=1.5 is outside \[0, 1\]"),
        ({"max_per_creator": -1}, "policy.max_per_creator=-1"),
        ({"max_per_category": -1}, "policy.max_per_category=-1"),
        ({"diversifier": "mrr"}, r"policy.diversifier='mrr' is not one of \['dpp', 'mmr'\]"),
        ({"dpp_window": -1}, "policy.dpp_window=-1"),
        ({"exploration": -0.1}, "policy.exploration=-0.1"),
        ({"exposure_groups": "language"}, "policy.exposure_groups='language' is not one of"),
        ({"exposure_targets": {"a": "fair"}}, "policy.exposure_targets.a='fair'"),
        ({"exposure_strength": -1}, "policy.exposure_strength=-1"),
        ({"rules": "rules.yaml"}, "policy.rules='rules.yaml' is not absolute"),
    ],
)
def test_config_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PolicyConfig(**changes)


def test_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(policy).failed == 0
