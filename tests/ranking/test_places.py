"""Places one by one: caps, places for fresh items, pins; and nothing else moves."""

from collections.abc import Hashable, Sequence
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.ranking.diversity import ByScore
from avrec_ray.ranking.places import PlaceRules, fill_places
from avrec_ray.ranking.policy import Groups

Order = npt.NDArray[np.int64]


def filled(
    order: Order,
    k: int,
    fresh: npt.NDArray[np.bool_],
    share: float,
    caps: Sequence[tuple[Sequence[Hashable | None], int]],
) -> Order:
    """What the first `k` places hold of candidates whose order by score is `order`."""
    codes = [(Groups(groups).codes[order], cap) for groups, cap in caps]
    places, propensities = fill_places(
        ByScore(-np.arange(len(order), dtype=np.float64)),
        k,
        PlaceRules(fresh=fresh[order], fresh_share=share, caps=codes),
    )
    assert (propensities == 1).all()
    return order[places]


def reserve_places(order: Order, fresh: npt.NDArray[np.bool_], share: float) -> Order:
    return filled(order, len(order), fresh, share, [])


def cap_groups(order: Order, caps: Sequence[tuple[Sequence[Hashable | None], int]], k: int) -> Order:
    return filled(order, k, np.zeros(len(order), bool), 0.0, caps)


def cap_per_group(order: Order, groups: Sequence[Hashable | None], cap: int, k: int) -> Order:
    return cap_groups(order, [(groups, cap)], k)


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 10))
def test_every_run_holds_a_fresh_item_while_there_are_any(flags: list[bool], every: int) -> None:
    fresh = np.array(flags, bool)
    order = np.random.default_rng(len(flags)).permutation(len(flags))
    placed = reserve_places(order, fresh, 1 / every)
    assert sorted(placed.tolist()) == list(range(len(flags)))
    for start in range(len(placed) - every + 1):
        run = placed[start : start + every]
        assert fresh[run].any() or not fresh[placed[start:]].any()
    for kind in (True, False):  # within each kind the order stays
        assert [p for p in placed if fresh[p] == kind] == [p for p in order if fresh[p] == kind]


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_without_fresh_items_or_without_a_share_nothing_moves(share: float) -> None:
    order = np.array([3, 1, 0, 2])
    fresh = np.array([True, False, False, False]) if share == 0 else np.zeros(4, bool)
    assert reserve_places(order, fresh, share).tolist() == [3, 1, 0, 2]


def test_a_fresh_item_that_earned_its_place_counts() -> None:
    fresh = np.array([False, True, False, False, False, True])
    assert reserve_places(np.arange(6), fresh, 0.25).tolist() == [0, 1, 2, 3, 4, 5]


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
