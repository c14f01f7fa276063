import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.evaluation.watch_metrics import count_inversions, mean_absolute_error, xauc
from tests.evaluation.golden_metrics import load, our_watch_values

Seconds = npt.NDArray[np.float64]


@st.composite
def watched(draw: st.DrawFn) -> tuple[Seconds, Seconds]:
    """Predicted and actual seconds with ties in both."""
    size = draw(st.integers(1, 25))
    predicted = draw(st.lists(st.integers(-3, 9), min_size=size, max_size=size))
    actual = draw(st.lists(st.integers(0, 9), min_size=size, max_size=size))
    return np.array(predicted, np.float64), np.array(actual, np.float64)


def slow_xauc(predicted: Seconds, actual: Seconds) -> float:
    """Pair by pair."""
    pairs = [(i, j) for i in range(len(actual)) for j in range(len(actual)) if actual[i] < actual[j]]
    wins = [(predicted[i] < predicted[j]) + (predicted[i] == predicted[j]) / 2 for i, j in pairs]
    return float(np.mean(wins)) if wins else math.nan


def test_watch_metrics_equal_other_libraries() -> None:
    for case in load()["watch"]:
        ours = our_watch_values(case)
        assert ours["mean_absolute_error"] == pytest.approx(case["mean_absolute_error"], abs=1e-9)
        if case["xauc"] is not None:
            assert ours["xauc"] == pytest.approx(case["xauc"], abs=1e-9)


@given(watched())
def test_xauc_counts_every_pair(case: tuple[Seconds, Seconds]) -> None:
    assert xauc(*case) == pytest.approx(slow_xauc(*case), abs=1e-12, nan_ok=True)


@given(watched())
def test_xauc_depends_on_order_alone_and_turns_over_with_it(case: tuple[Seconds, Seconds]) -> None:
    predicted, actual = case
    value = xauc(predicted, actual)
    assert xauc(np.exp(predicted), actual**3 + 1) == pytest.approx(value, nan_ok=True)
    assert xauc(predicted[::-1], actual[::-1]) == pytest.approx(value, nan_ok=True)
    assert xauc(-predicted, actual) == pytest.approx(1 - value, nan_ok=True)


def test_xauc_of_right_wrong_and_constant_order() -> None:
    actual = np.array([1.0, 5.0, 5.0, 9.0])
    assert xauc(actual, actual) == 1
    assert xauc(-actual, actual) == 0
    assert xauc(np.zeros(4), actual) == 0.5
    assert math.isnan(xauc(np.arange(3.0), np.ones(3)))


def test_xauc_of_many_impressions_lays_out_no_pairs() -> None:
    size = 200_000  # all pairs would take 40 GB as bool
    rng = np.random.default_rng(0)
    actual = rng.gamma(2.0, 10.0, size)
    assert xauc(rng.random(size), actual) == pytest.approx(0.5, abs=0.005)
    assert xauc(actual.astype(np.float32), actual) == pytest.approx(1, abs=1e-6)


@given(st.lists(st.integers(0, 40), max_size=40))
def test_count_inversions_counts_pairs_whose_first_is_larger(ranks: list[int]) -> None:
    expected = sum(ranks[i] > ranks[j] for i in range(len(ranks)) for j in range(i + 1, len(ranks)))
    assert count_inversions(np.array(ranks, np.int64)) == expected


@pytest.mark.parametrize(
    ("predicted", "actual", "message"),
    [
        (np.ones(2), np.ones(3), r"got predicted \(2,\) and actual \(3,\)"),
        (np.zeros(0), np.zeros(0), "at least one"),
        (np.ones((2, 2)), np.ones((2, 2)), "one prediction for each watch time"),
        (np.array([1.0, np.nan]), np.ones(2), "predicted holds nan in row 1"),
        (np.ones(2), np.array([np.inf, 1.0]), "actual holds inf in row 0"),
        (np.ones(2), np.array([1.0, -0.5]), "actual holds -0.5 in row 1; a watch time is at least 0"),
    ],
)
def test_watch_metrics_refuse_what_they_cannot_compare(predicted: Seconds, actual: Seconds, message: str) -> None:
    for metric in (mean_absolute_error, xauc):
        with pytest.raises(ValueError, match=message):
            metric(predicted, actual)
