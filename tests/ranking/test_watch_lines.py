"""Lines of watched shares: those of least squares, slopes of the error as measured, likelihoods as of a normal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import norm

from avrec_ray.ranking.watch_lines import LEAST_VARIANCE, PSEUDO_SPREAD, LinesFit, Watched

NUM_USERS, NUM_ITEMS, NUM_CLASSES = 12, 9, 3
SEEDS = st.integers(0, 2**32 - 1)


def world(seed: int) -> tuple[Watched, np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """What users watched, who is of which class, odds of each class, and the shares as a dense array."""
    rng = np.random.default_rng(seed)
    known = rng.random((NUM_USERS, NUM_ITEMS)) < 0.7
    logits = rng.normal(size=known.shape) * known
    rows, columns = np.nonzero(known)
    matrix = sparse.csr_matrix((logits[known], (rows, columns)), shape=known.shape)
    members = rng.dirichlet(np.ones(NUM_CLASSES), NUM_USERS)
    return Watched(sparse.csr_matrix(known * 1.0), matrix), members, rng.normal(size=(NUM_CLASSES, NUM_ITEMS)), known


@settings(max_examples=20)
@given(SEEDS)
def test_lines_are_of_least_squares(seed: int) -> None:
    watched, members, odds, known = world(seed)
    lines = watched.of_classes(members).lines(odds)
    error = 0.0
    for k in range(NUM_CLASSES):
        users, items = np.nonzero(known)
        weights, x, y = members[users, k], odds[k, items], watched.logits_UN.toarray()[users, items]
        middle = x - np.average(x, weights=weights)
        slope = max((weights * middle * y).sum() / ((weights * middle**2).sum() + PSEUDO_SPREAD), 0.0)
        intercept = np.average(y - slope * x, weights=weights)
        assert (lines.slopes_K[k], lines.intercepts_K[k]) == pytest.approx((slope, intercept), abs=1e-6)
        error += (weights * (y - intercept - slope * x) ** 2).sum() + PSEUDO_SPREAD * slope**2
    assert lines.squared_error == pytest.approx(error, abs=1e-5)


@settings(max_examples=20)
@given(SEEDS)
def test_error_slopes_are_those_of_the_error_of_the_best_lines(seed: int) -> None:
    watched, members, odds, _ = world(seed)
    of_classes, step = watched.of_classes(members), 1e-5
    found = of_classes.error_slopes(of_classes.lines(odds), odds)
    for k, item in np.ndindex(odds.shape):
        moved = np.zeros_like(odds)
        moved[k, item] = step
        up, down = (of_classes.lines(odds + sign * moved).squared_error for sign in (1, -1))
        assert found[k, item] == pytest.approx((up - down) / (4 * step), abs=1e-4)


def test_odds_twice_as_far_apart_have_half_the_slope() -> None:
    """And the same error, but for the penalty: watched shares do not hold the scale of tastes."""
    rng = np.random.default_rng(0)
    odds = rng.normal(size=(1, 400))
    logits = 1 + 2 * odds
    watched = Watched(sparse.csr_matrix(np.ones((1, 400))), sparse.csr_matrix(logits)).of_classes(np.ones((1, 1)))
    narrow, wide = watched.lines(odds), watched.lines(2 * odds)
    assert (narrow.slopes_K[0], wide.slopes_K[0]) == pytest.approx((2.0, 1.0), abs=0.02)
    assert narrow.intercepts_K[0] == pytest.approx(wide.intercepts_K[0], abs=0.01)


def test_likelihood_is_that_of_a_normal() -> None:
    watched, _, odds, known = world(3)
    lines = LinesFit(np.array([0.1, -0.5, 1.0]), np.array([0.0, 0.7, 2.0]), 0.0)
    found = watched.log_likelihood(lines, odds, 0.49)
    expected = lines.intercepts_K[:, None] + lines.slopes_K[:, None] * odds
    logits = watched.logits_UN.toarray()
    per_item = norm.logpdf(logits[:, None], expected, 0.7) * known[:, None]
    difference = per_item.sum(2) - found
    np.testing.assert_allclose(difference - difference[:, :1], 0.0, atol=1e-9)


def test_nothing_watched_tells_nothing() -> None:
    nothing = sparse.csr_matrix((NUM_USERS, NUM_ITEMS))
    watched, (_, members, odds, _) = Watched(nothing, nothing), world(0)
    of_classes = watched.of_classes(members)
    lines = of_classes.lines(odds)
    assert (lines.slopes_K.tolist(), lines.intercepts_K.tolist()) == ([0.0] * 3, [0.0] * 3)
    assert not of_classes.error_slopes(lines, odds).any()
    assert of_classes.variance(lines) == LEAST_VARIANCE
    assert not watched.log_likelihood(lines, odds, LEAST_VARIANCE).any()
