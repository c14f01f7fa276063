import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.errors import ConfigError
from avrec_ray.evaluation.drift import (
    DriftConfig,
    count_drift,
    jensen_shannon,
    psi,
    psi_by_chance,
    value_drift,
    vector_drift,
)

CFG = DriftConfig()
COUNTS = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=20)


@given(COUNTS)
def test_counts_any(rows: list[tuple[int, int]]) -> None:
    before, after = np.array(rows).T
    drift = count_drift("x", before, after)
    assert drift.psi >= 0
    assert 0 <= drift.js <= 1
    back = count_drift("x", after, before)
    assert (back.psi, back.js) == (pytest.approx(drift.psi), pytest.approx(drift.js))
    assert count_drift("x", before, before).psi == 0


def test_known_values() -> None:
    p, q = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    assert psi(p, q) == pytest.approx(0.25 * np.log(3))
    assert jensen_shannon(p, p) == 0
    middle = (p + q) / 2
    expected = 0.5 * (p * np.log2(p / middle)).sum() + 0.5 * (q * np.log2(q / middle)).sum()
    assert jensen_shannon(p, q) == pytest.approx(expected)


def test_samples_of_one_distribution_stay_below_what_chance_explains_as_often_as_said() -> None:
    rng = np.random.default_rng(0)
    beyond = 0
    for _ in range(400):
        drift = value_drift("x", rng.normal(size=2000), rng.normal(size=300), 10)
        beyond += drift.psi > drift.by_chance
    assert 0.02 <= beyond / 400 <= 0.09  # 5 of 100


def test_small_samples_are_not_warned_about_and_a_real_shift_is() -> None:
    rng = np.random.default_rng(1)
    small = value_drift("x", rng.normal(size=40), rng.normal(size=20), 10)
    assert small.psi > CFG.warn_psi
    assert not small.is_notable(CFG)
    moved = value_drift("x", rng.normal(size=2000), rng.normal(1.0, size=500), 10)
    assert moved.is_notable(CFG)
    assert moved.line(CFG).startswith("WARNING  x: PSI ")


def test_unknown_values_are_left_out_and_nothing_to_compare_is_no_drift() -> None:
    values = np.array([1.0, 2.0, np.nan, 3.0])
    assert value_drift("x", values, values, 4).psi == 0
    assert value_drift("x", values, np.array([np.nan]), 4).psi == 0
    assert count_drift("x", np.zeros(3), np.ones(3)).psi == 0
    assert vector_drift("x", np.zeros((0, 4)), np.ones((3, 4)), CFG).psi == 0


def test_vectors_that_turn_are_seen_and_those_that_stay_are_not() -> None:
    rng = np.random.default_rng(2)
    axes = rng.normal(size=(16, 16))
    before, same = rng.normal(size=(1000, 16)) @ axes, rng.normal(size=(500, 16)) @ axes
    assert not vector_drift("x", before, same, CFG).is_notable(CFG)
    assert vector_drift("x", before, same + 2 * axes[0], CFG).is_notable(CFG)


def test_more_comparisons_and_smaller_samples_differ_more_by_chance() -> None:
    assert psi_by_chance(100, 100, 10) < psi_by_chance(100, 100, 10, num_compared=8) < psi_by_chance(50, 50, 10, 8)


def test_config_refuses() -> None:
    with pytest.raises(ConfigError, match=r"retrain.drift.num_bins=1 is outside"):
        DriftConfig(num_bins=1)
