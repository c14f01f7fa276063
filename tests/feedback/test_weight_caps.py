import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.feedback.weight_caps import cap_group_weights, cap_weights, effective_share

GROUPED = st.lists(st.tuples(st.floats(0, 1e6), st.integers(-1, 30)), min_size=1, max_size=200)


@given(GROUPED, st.floats(0.001, 1.0))
def test_cap_no_group_has_more_than_its_share_and_nothing_rises(rows: list[tuple[float, int]], share: float) -> None:
    weights, group = np.array([w for w, _ in rows]), np.array([g for _, g in rows], np.int64)
    capped = cap_group_weights(weights, group, share)
    assert (capped >= 0).all()
    assert (capped <= weights * (1 + 1e-12)).all()
    grouped = group >= 0
    np.testing.assert_array_equal(capped[~grouped], weights[~grouped])
    sums = np.bincount(group[grouped], capped[grouped]) if grouped.any() else np.zeros(1)
    before = np.bincount(group[grouped], weights[grouped]) if grouped.any() else np.zeros(1)
    allowed = effective_share(int((before > 0).sum()), share) * capped.sum()
    assert (sums <= allowed * (1 + 1e-6) + 1e-9).all()
    # What is below the cap stays as it was, and nothing goes further down than the cap asks for.
    lowered = sums < before * (1 - 1e-9)
    assert (sums[lowered] >= allowed * (1 - 1e-6) - 1e-9).all()


@given(GROUPED, st.floats(0.001, 1.0))
def test_cap_again_changes_nothing(rows: list[tuple[float, int]], share: float) -> None:
    weights, group = np.array([w for w, _ in rows]), np.array([g for _, g in rows], np.int64)
    once = cap_group_weights(weights, group, share)
    np.testing.assert_allclose(cap_group_weights(once, group, share), once, rtol=1e-9, atol=1e-9)


def test_cap_keeps_proportions_within_a_group() -> None:
    weights = np.array([1.0, 3.0, *np.ones(99)])
    group = np.array([0, 0, *range(1, 100)])
    capped = cap_group_weights(weights, group, 0.03)
    assert capped[1] == pytest.approx(3 * capped[0])
    assert capped[:2].sum() == pytest.approx(0.03 * capped.sum())
    np.testing.assert_array_equal(capped[2:], 1.0)


def test_caps_of_users_and_creators_hold_together() -> None:
    rng = np.random.default_rng(0)
    users, creators = rng.integers(0, 300, 5000), rng.integers(0, 60, 5000)
    weights = rng.exponential(1.0, 5000)
    weights[users == 0] *= 200
    weights[creators == 0] *= 50
    capped = cap_weights(weights, [(users, 0.01), (creators, 0.05)])
    assert (np.bincount(users, capped) / capped.sum()).max() <= 0.01 + 1e-6
    assert (np.bincount(creators, capped) / capped.sum()).max() <= 0.05 + 1e-6


def test_caps_that_cannot_hold_leave_finite_weights() -> None:
    """Everything is by one creator, whom a cap of a fifth would need four others beside."""
    capped = cap_weights(np.ones(10), [(np.arange(10), 0.01), (np.zeros(10, np.int64), 0.2)])
    np.testing.assert_array_equal(capped, 1.0)
