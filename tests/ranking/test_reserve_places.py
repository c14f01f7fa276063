"""Places for fresh items: enough of them, and nothing else moves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.ranking.policy import reserve_places


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
