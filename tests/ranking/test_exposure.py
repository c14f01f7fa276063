"""Exposure over requests: targets are met, the state decides alone, and boosts stay bounded."""

import doctest
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.errors import ConfigError
from avrec_ray.ranking import exposure
from avrec_ray.ranking.exposure import (
    ExposureState,
    boosts,
    check_targets,
    item_groups,
    merit_of,
    no_exposure,
    position_weights,
    record,
    target_shares,
)
from avrec_ray.ranking.policy import Policy, PolicyConfig
from avrec_ray.types import Query
from tests.tiny_bundle import tiny_catalogue

K, NUM_CANDIDATES = 10, 60


def simulate(targets: dict[str, Any], strength: float, num_requests: int = 1_000) -> ExposureState:
    """Requests to a catalogue of which each fourth item, group "b", scores one deviation less."""
    codes = (np.arange(NUM_CANDIDATES) % 4 == 0).astype(np.int64)
    state, rng = no_exposure(2), np.random.default_rng(0)
    for _ in range(num_requests):
        scores = rng.normal(size=NUM_CANDIDATES) - codes
        deviation = scores.std()
        added = strength * boosts(state, target_shares(["a", "b"], targets, state), codes, K)
        shown = np.argsort(-(scores + deviation * added), kind="stable")[:K]
        state = record(state, codes[shown], codes, merit_of(scores / deviation))
    return state


@pytest.mark.parametrize(
    ("targets", "shares"),
    [({"b": 0.25}, [0.75, 0.25]), ({"*": "equal"}, [0.5, 0.5]), ({"a": 0.4, "b": 0.6}, [0.4, 0.6]), ({}, None)],
)
def test_exposure_is_within_five_percent_of_its_target_after_1000_requests(
    targets: dict[str, Any], shares: list[float] | None
) -> None:
    state = simulate(targets, strength=2.0)
    wanted = state.merit / state.merit.sum() if shares is None else np.array(shares)
    assert state.exposure / state.exposure.sum() == pytest.approx(wanted, rel=0.05)
    before = simulate(targets, strength=0.0)
    assert before.exposure / before.exposure.sum() != pytest.approx(wanted, rel=0.05)


def test_state_counts_discounted_places_and_shares_of_merit() -> None:
    codes = np.array([0, 1, -1, 1])
    state = record(no_exposure(2), codes[[1, 2, 0]], codes, np.array([0.1, 0.2, 0.3, 0.4]))
    assert state.exposure.tolist() == [0.5, 1.0]
    assert state.merit == pytest.approx(np.array([0.1, 0.6]))
    assert state.num_requests == 1
    assert position_weights(3).tolist() == pytest.approx([1, 1 / np.log2(3), 0.5])


given_amounts = st.lists(st.floats(0, 1e6), min_size=2, max_size=6)


@given(given_amounts, given_amounts, st.integers(1, 50), st.sampled_from(["merit", "equal"]))
def test_boosts_are_bounded_and_none_without_a_debt(
    exposed: list[float], merits: list[float], k: int, kind: str
) -> None:
    num = min(len(exposed), len(merits))
    state = ExposureState(np.array(exposed[:num]), np.array(merits[:num]))
    names = [str(number) for number in range(num)]
    shares = target_shares(names, {"*": kind}, state)
    assert shares.sum() == pytest.approx(1)
    assert (shares >= 0).all()
    codes = np.array([-1, *range(num)])
    added = boosts(state, shares, codes, k)
    assert ((added >= 0) & (added <= 1)).all()
    assert added[0] == 0
    ahead = state.exposure >= shares * state.exposure.sum()
    assert (added[1:][ahead] == 0).all()


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ({}, [0.125, 0.375, 0.5]),
        ({"*": "equal"}, [1 / 3] * 3),
        ({"a": 0.5}, [0.5, 3 / 14, 4 / 14]),
        ({"a": "equal", "b": "merit", "c": 0.0}, [8 / 17, 9 / 17, 0.0]),
        ({"a": 0.2, "b": 0.3, "c": 0.5}, [0.2, 0.3, 0.5]),
    ],
)
def test_target_shares_fill_up_what_is_not_given(targets: dict[str, Any], expected: list[float]) -> None:
    state = ExposureState(np.zeros(3), np.array([1.0, 3.0, 4.0]), 8)
    assert target_shares(["a", "b", "c"], targets, state).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"a": "fair"}, r"exposure_targets.a='fair'; expected a share in \[0, 1\], merit or equal"),
        ({"a": 1.5}, r"exposure_targets.a=1.5"),
        ({"a": True}, r"exposure_targets.a=True"),
        ({"a": None}, r"exposure_targets.a=None"),
        ({"*": 0.5}, r"exposure_targets.\*=0.5; expected merit or equal"),
        ({"a": 0.6, "b": 0.6}, r"shares sum to 1.2; expected at most 1"),
        ({"z": 0.5}, r"exposure_targets.z: no item has this group; expected one of \['a', 'b'\]"),
        ({"a": 0.5, "b": 0.4}, r"shares of all groups sum to 0.9; expected 1"),
    ],
)
def test_wrong_targets_are_refused(targets: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_targets(targets, ["a", "b"])


@pytest.mark.parametrize("column", ["creator", "category", "warm"])
def test_groups_of_a_catalogue(column: str) -> None:
    items = tiny_catalogue(40)
    groups = item_groups(items, column)
    values = {"creator": items.creator_ids, "category": items.categories}.get(
        column, ["warm" if w else "cold" for w in items.warm]
    )
    assert [groups.names[code] if code >= 0 else None for code in groups.codes] == values


def policy_lists(num: int, seed: int = 0) -> tuple[list[npt.NDArray[np.int64]], ExposureState]:
    """Lists of a policy with a share for cold items, each request with the state that the one before gave."""
    items = tiny_catalogue(40)
    embeddings = np.eye(40, dtype=np.float32)
    policy = Policy(
        items, embeddings, PolicyConfig(exposure_groups="warm", exposure_targets={"cold": 0.3}, exposure_strength=3.0)
    )
    ledger, rng, lists = policy.ledger(), np.random.default_rng(seed), []
    assert ledger is not None
    for _ in range(num):
        placement = policy(rng.normal(size=40).astype(np.float32), np.arange(40), Query(None, k=8), state=ledger.state)
        assert placement.exposure is not None
        ledger.state = placement.exposure
        lists.append(placement.order)
    return lists, ledger.state


def test_policy_meets_the_target_and_repeats_itself() -> None:
    lists, state = policy_lists(300)
    assert state.exposure[0] / state.exposure.sum() == pytest.approx(0.3, rel=0.05)
    assert state.num_requests == 300
    again, _ = policy_lists(300)
    assert all(np.array_equal(one, other) for one, other in zip(lists, again, strict=True))


def test_policy_without_a_state_or_without_groups_steers_nothing() -> None:
    scores, rows = np.random.default_rng(0).normal(size=40).astype(np.float32), np.arange(40)
    items, embeddings = tiny_catalogue(40), np.eye(40, dtype=np.float32)
    plain = Policy(items, embeddings, PolicyConfig())
    assert plain.ledger() is None
    steered = Policy(items, embeddings, PolicyConfig(exposure_groups="warm", exposure_targets={"cold": 1.0, "warm": 0}))
    placement = steered(scores, rows, Query(None))
    assert np.array_equal(placement.order, plain(scores, rows, Query(None)).order)
    assert placement.exposure is None


def test_policy_refuses_a_target_for_a_group_that_no_item_has() -> None:
    cfg = PolicyConfig(exposure_groups="category", exposure_targets={"musik": 0.5})
    with pytest.raises(ConfigError, match=r"targets.musik: no item has this group; expected one of \('cooking', "):
        Policy(tiny_catalogue(8), np.eye(8, dtype=np.float32), cfg)


def test_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(exposure).failed == 0
