"""Calibration: planted slopes come back, order stays, and what is said is what happens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from avrec_ray.ranking.calibration import calibration_error, fit_platt


@given(st.floats(0.3, 4.0), st.floats(-3.0, 1.0), st.floats(-5.0, 5.0), st.floats(0.1, 10.0))
def test_planted_slope_and_intercept_come_back(slope: float, intercept: float, shift: float, unit: float) -> None:
    rng = np.random.default_rng(0)
    plain = rng.normal(size=20_000)
    happened = rng.random(len(plain)) < expit(slope * plain + intercept)
    found_slope, found_intercept = fit_platt(unit * plain + shift, happened)
    assert found_slope * unit == pytest.approx(slope, rel=0.1, abs=0.1)
    assert found_slope * shift + found_intercept == pytest.approx(intercept, abs=0.15)


def test_probabilities_become_what_happens() -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(size=10_000)
    happened = rng.random(len(true)) < expit(true - 2)
    overconfident = 5 * true
    slope, intercept = fit_platt(overconfident[::2], happened[::2])
    before = calibration_error(expit(overconfident[1::2]), happened[1::2])
    after = calibration_error(expit(slope * overconfident[1::2] + intercept), happened[1::2])
    assert before > 0.2
    assert after < 0.02


@pytest.mark.parametrize("happened", [0.0, 1.0])
def test_outcomes_of_one_kind_give_a_bounded_answer(happened: float) -> None:
    slope, intercept = fit_platt(np.array([0.1, 0.2, 3.0]), np.full(3, happened > 0))
    said = expit(slope * np.array([0.1, 3.0]) + intercept)
    assert (said > 0.5).all() if happened else (said < 0.5).all()
    assert ((said > 0.01) & (said < 0.99)).all()


def test_a_logit_that_points_the_wrong_way_is_not_turned_round() -> None:
    logits = np.linspace(-1, 1, 100)
    slope, intercept = fit_platt(logits, logits < 0)
    assert slope == 0.0
    assert expit(intercept) == pytest.approx(0.5, abs=0.02)


def test_error_is_the_mean_distance_of_groups() -> None:
    said, happened = np.array([0.1] * 10 + [0.9] * 10), np.array([True] * 5 + [False] * 5 + [True] * 9 + [False])
    assert calibration_error(said, happened, num_bins=2) == pytest.approx(0.2)
    assert np.isnan(calibration_error(said[:0], happened[:0]))
    assert fit_platt(said[:0], happened[:0]) == (1.0, 0.0)
